//! How many handshakes this control plane and its peers can take, measured while they take them: from how busy it was and how
//! many ended follows the pace at which it would be as busy as it may be; and where it initiates, late answers say that the
//! peers can't follow.
//!
//! Whoever drives the gateway tells how long it has worked; the gateway tells which handshakes ended, and which answers came
//! late. At the end of each interval they become a rate, for [`Total::set`](crate::limits::Total::set).

use spindle_abi::Time;
use spindle_ike::api::InitialAnswers;
use std::time::Duration;

/// Judged so often at most.
const INTERVAL: Duration = Duration::from_millis(100);
/// Of each second the control plane may be busy so long; what is left is for what nobody has paced.
const MAY_BE_BUSY: Duration = Duration::from_millis(800);

const SECOND: u128 = 1_000_000_000;

/// The handshakes a second that may begin, and what is seen of them.
#[derive(Clone, Debug)]
pub(crate) struct Capacity {
    least: u32,
    most: u32,
    pace: u32,
    /// When the interval at hand began, and how long the driver had worked in all by then.
    began: Option<(Time, Duration)>,
    ended: u32,
    answers: InitialAnswers,
}

impl Capacity {
    /// It begins at `least` handshakes a second, and never allows fewer.
    pub(crate) fn new(least: u32, most: u32) -> Capacity {
        Capacity {
            least,
            most: most.max(least),
            pace: least,
            began: None,
            ended: 0,
            answers: InitialAnswers::default(),
        }
    }

    /// Handshakes a second that may begin.
    pub(crate) fn pace(&self) -> u32 {
        self.pace
    }

    /// A handshake ended well.
    pub(crate) fn handshake_ended(&mut self) {
        self.ended = self.ended.saturating_add(1);
    }

    /// Peers answered.
    pub(crate) fn answered(&mut self, answers: InitialAnswers) {
        self.answers.all = self.answers.all.saturating_add(answers.all);
        self.answers.late = self.answers.late.saturating_add(answers.late);
    }

    /// The driver has worked so long since it began. The new pace, if it changes.
    ///
    /// A herd that doesn't come (its token was lost, the peer is dead) shows nothing of the capacity, so the pace grows
    /// only behind what ended, to twice of that at most: what is under way already can't overrun us. If most of those peers
    /// that do answer were asked more than once, it falls below what ended, so that what waits at them becomes less.
    pub(crate) fn worked(&mut self, now: Time, in_all: Duration) -> Option<u32> {
        let (began, before) = *self.began.get_or_insert((now, in_all));
        let took = now.since(began);
        if took < INTERVAL {
            return None;
        }
        self.began = Some((now, in_all));
        let ended = u128::from(std::mem::take(&mut self.ended));
        let (took, busy) = (took.as_nanos(), in_all.saturating_sub(before).as_nanos());
        let may = MAY_BE_BUSY.as_nanos();
        let could = ended * may / busy.max(1);
        let twice = 2 * ended * SECOND / took;
        let InitialAnswers { all, late } = std::mem::take(&mut self.answers);
        let pace = if busy * SECOND >= may * took {
            could
        } else if late > all / 2 {
            twice * 2 / 5
        } else {
            could.min(twice).max(self.pace.into())
        };
        let pace = pace.clamp(self.least.into(), self.most.into()) as u32;
        let changes = pace != self.pace;
        self.pace = pace;
        changes.then_some(pace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: u32 = 200;
    const MOST: u32 = 50_000;

    /// A server and the work that it is given, a millisecond after the other.
    struct Server {
        capacity: Capacity,
        /// For each handshake.
        cost: Duration,
        now: Time,
        worked: Duration,
        waiting: u32,
    }

    impl Server {
        fn new(cost: Duration) -> Server {
            let capacity = Capacity::new(LEAST, MOST);
            Server { capacity, cost, now: Time(1), worked: Duration::ZERO, waiting: 0 }
        }

        /// A millisecond in which so many handshakes come, and other work; how many ended.
        fn run(&mut self, come: u32, other: Duration) -> u32 {
            let millisecond = Duration::from_millis(1);
            let room = millisecond.saturating_sub(other).as_nanos() / self.cost.as_nanos();
            self.waiting += come;
            let ended = self.waiting.min(room as u32);
            self.waiting -= ended;
            self.worked += (self.cost * ended + other).min(millisecond);
            self.now = self.now.after(millisecond);
            (0..ended).for_each(|_| self.capacity.handshake_ended());
            self.capacity.worked(self.now, self.worked);
            ended
        }

        /// The same for so many, where all that may begin does, and a share of those comes.
        fn herd(&mut self, milliseconds: u32, come_of_ten: u32, other: Duration) -> u32 {
            let mut owed = 0;
            let mut most = 0;
            for _ in 0..milliseconds {
                owed += self.capacity.pace() * come_of_ten;
                let come = owed / 10_000;
                owed %= 10_000;
                self.run(come, other);
                most = most.max(self.waiting);
            }
            most
        }
    }

    #[test]
    fn a_herd_is_taken_at_four_fifths_of_what_can_be_after_a_second() {
        for (cost, capacity) in [(50, 20_000), (100, 10_000), (500, 2000)] {
            let mut server = Server::new(Duration::from_micros(cost));
            let waited = server.herd(1500, 10, Duration::ZERO);
            let pace = server.capacity.pace();
            assert!((capacity * 7 / 10..=capacity * 85 / 100).contains(&pace), "{pace} of {capacity}");
            assert!(waited <= capacity / 10, "{waited} waited");
        }
    }

    #[test]
    fn other_work_takes_from_the_pace_and_gives_it_back() {
        let mut server = Server::new(Duration::from_micros(100));
        server.herd(1500, 10, Duration::ZERO);
        server.herd(1000, 10, Duration::from_micros(600));
        let beside = server.capacity.pace();
        assert!((1500..=4000).contains(&beside), "{beside}");
        server.herd(1000, 10, Duration::ZERO);
        assert!(server.capacity.pace() >= 7000, "{}", server.capacity.pace());
    }

    /// The peers take 2000 a second, and this side could begin far more.
    #[test]
    fn peers_that_answer_late_are_not_overrun() {
        let mut capacity = Capacity::new(LEAST, MOST);
        let (mut now, mut worked) = (Time(1), Duration::ZERO);
        let (mut owed, mut queue, mut most, mut all_ended) = (0, 0, 0, 0);
        capacity.worked(now, worked);
        for millisecond in 0..10_000 {
            owed += capacity.pace();
            queue += owed / 1000;
            owed %= 1000;
            let ended = 2.min(queue);
            // What waited for a fifth of a second was sent again.
            let late = if queue > 400 { ended } else { 0 };
            queue -= ended;
            (0..ended).for_each(|_| capacity.handshake_ended());
            capacity.answered(InitialAnswers { all: ended, late });
            now = now.after(Duration::from_millis(1));
            worked += Duration::from_micros(20) * ended;
            capacity.worked(now, worked);
            if millisecond > 2000 {
                (most, all_ended) = (most.max(queue), all_ended + ended);
            }
        }
        assert!(most < 2000, "{most} waited at the peers");
        assert!(all_ended > 14_000, "{all_ended} of 16,000 ended");
    }

    #[test]
    fn what_does_not_come_back_makes_nothing_faster() {
        let mut server = Server::new(Duration::from_micros(100));
        server.herd(3000, 4, Duration::ZERO);
        assert_eq!(server.capacity.pace(), LEAST, "two of five come back");
        server.herd(3000, 0, Duration::from_micros(10));
        assert_eq!(server.capacity.pace(), LEAST, "none does");
    }

    #[test]
    fn neither_slower_than_the_least_nor_faster_than_the_most() {
        let mut server = Server::new(Duration::from_micros(10));
        server.herd(3000, 10, Duration::ZERO);
        assert_eq!(server.capacity.pace(), MOST);
        // Busy with other things alone.
        for _ in 0..300 {
            server.run(0, Duration::from_millis(1));
        }
        assert_eq!(server.capacity.pace(), LEAST);
        assert_eq!(Capacity::new(500, 100).pace(), 500);
    }

    #[test]
    fn a_time_without_handshakes_changes_nothing() {
        let mut server = Server::new(Duration::from_micros(100));
        server.herd(1500, 10, Duration::ZERO);
        let pace = server.capacity.pace();
        server.herd(10_000, 0, Duration::from_micros(10));
        assert_eq!(server.capacity.pace(), pace);
    }

    #[test]
    fn a_driver_that_tells_nothing_keeps_the_pace() {
        let mut capacity = Capacity::new(LEAST, MOST);
        (0..1000).for_each(|_| capacity.handshake_ended());
        assert_eq!(capacity.pace(), LEAST);
        // The first time begins an interval; the second, too soon, ends none.
        assert_eq!(capacity.worked(Time(5), Duration::from_secs(1)), None);
        assert_eq!(capacity.worked(Time(5).after(INTERVAL / 2), Duration::from_secs(2)), None);
        assert_eq!(capacity.pace(), LEAST);
    }
}
