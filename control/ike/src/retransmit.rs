//! When a request is sent again (RFC 7296 section 2.1, 2.4).

use crate::api::Retransmission;
use crate::kept::field::{Field, Reader, Writer};
use spindle_abi::Time;
use std::time::Duration;

/// The schedule of one outstanding request.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    settings: Retransmission,
    /// Retransmissions on schedule so far.
    tries: u32,
    sent: Time,
    next: Time,
    /// Sent more than once, so an answer may be to either.
    repeated: bool,
    /// When it was first sent.
    began: Time,
    /// Packets wait for it, until then at least; the first interval in which it is sent again meanwhile.
    hurried: Option<(Time, Duration)>,
    /// It was asked to be sent again out of schedule, then.
    asked: Option<Time>,
}

/// What [`Schedule::due`] asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Due {
    /// Nothing yet.
    Nothing,
    /// Send it again; `first` is for the first time.
    Retransmit {
        /// The first retransmission?
        first: bool,
    },
    /// The last interval has passed.
    Failed,
}

/// The settings are the connection's.
impl Field for Schedule {
    fn put(&self, out: &mut Writer) {
        let Schedule { settings: _, tries, sent, next, repeated, began, hurried, asked } = self;
        tries.put(out);
        (*sent, *next).put(out);
        (*repeated, *began).put(out);
        (*hurried, *asked).put(out);
    }
    fn take(from: &mut Reader<'_>) -> Option<Schedule> {
        let tries = Field::take(from)?;
        let (sent, next) = Field::take(from)?;
        let (repeated, began) = Field::take(from)?;
        let (hurried, asked) = Field::take(from)?;
        let settings = from.retransmission()?;
        Some(Schedule { settings, tries, sent, next, repeated, began, hurried, asked })
    }
}

impl Schedule {
    /// An interval is never longer than this.
    const LONGEST: Duration = Duration::from_secs(3600);
    /// While packets wait.
    pub(crate) const HURRIED: Duration = Duration::from_secs(2);

    /// For a request that is sent at `now`.
    pub(crate) fn new(settings: Retransmission, now: Time) -> Schedule {
        let (hurried, asked) = (None, None);
        let mut schedule = Schedule {
            settings,
            tries: 0,
            sent: now,
            next: now,
            repeated: false,
            began: now,
            hurried,
            asked,
        };
        schedule.next = now.after(schedule.interval());
        schedule
    }

    /// The interval after the retransmission with number `tries`. RFC 7296 section 2.4: intervals MUST grow
    /// exponentially.
    fn interval(&self) -> Duration {
        let base = if self.settings.base >= 1.0 { self.settings.base } else { 1.0 };
        let factor = base.powi(self.tries.min(64) as i32);
        let seconds = self.settings.timeout.as_secs_f64() * factor;
        Duration::from_secs_f64(seconds.clamp(0.001, Self::LONGEST.as_secs_f64()))
    }

    /// What is due now; counts a retransmission as made.
    pub(crate) fn due(&mut self, now: Time) -> Due {
        if now < self.next {
            return match self.again().is_some_and(|at| at <= now) {
                true => {
                    self.sent_again(now);
                    Due::Retransmit { first: false }
                }
                false => Due::Nothing,
            };
        }
        if self.tries >= self.settings.tries {
            return Due::Failed;
        }
        self.tries += 1;
        self.sent_again(now);
        self.next = now.after(self.interval());
        Due::Retransmit { first: self.tries == 1 }
    }

    /// When something is due.
    pub(crate) fn next(&self) -> Time {
        self.again().map_or(self.next, |at| at.min(self.next))
    }

    /// Out of schedule, while packets wait. RFC 7296 section 2.4: each interval is as long as all before it together, up
    /// to [`Schedule::HURRIED`].
    fn again(&self) -> Option<Time> {
        let hurried = self.hurried.and_then(|(until, first)| {
            let interval = self.sent.since(self.began).max(first).min(Schedule::HURRIED);
            Some(self.sent.after(interval)).filter(|at| *at <= until)
        });
        [hurried, self.asked].into_iter().flatten().min()
    }

    /// Packets wait for the answer: it is sent again sooner, first after `first`; they are asked for again within
    /// [`Schedule::HURRIED`].
    pub(crate) fn hurry(&mut self, now: Time, first: Duration) {
        self.hurried = Some((now.after(Schedule::HURRIED), first));
    }

    /// When it was last sent.
    pub(crate) fn sent(&self) -> Time {
        self.sent
    }

    /// It is sent now, out of schedule; the schedule goes on as it was.
    pub(crate) fn sent_again(&mut self, now: Time) {
        self.sent = now;
        self.repeated = true;
        self.asked = None;
    }

    /// It is to be sent again once, out of schedule, so long after it was last sent.
    pub(crate) fn ask_again(&mut self, now: Time, again_after: Duration) {
        self.asked.get_or_insert(self.sent.after(again_after).max(now));
    }

    /// Has it been sent more than once?
    pub(crate) fn is_repeated(&self) -> bool {
        self.repeated
    }

    /// How long the answer that came now took, if it is known which transmission it answers.
    pub(crate) fn round_trip(&self, now: Time) -> Option<Duration> {
        (!self.repeated).then(|| now.since(self.sent))
    }

    /// Nobody listened for a while until now: what was given up meanwhile may have been answered. It is sent once more.
    pub(crate) fn missed(&mut self, now: Time) {
        if self.next <= now {
            self.next = now;
            self.tries = self.tries.min(self.settings.tries.saturating_sub(1));
        }
    }

    /// At most so many retransmissions more.
    pub(crate) fn limit(&mut self, more: u32) {
        self.settings.tries = self.settings.tries.min(self.tries.saturating_add(more));
    }

    /// The next one is due at `at`, if that is sooner.
    pub(crate) fn hasten(&mut self, at: Time) {
        self.next = self.next.min(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7296 section 2.4: retransmission times MUST increase exponentially.
    #[test]
    fn intervals_grow_until_the_request_is_given_up() {
        let settings = Retransmission { timeout: Duration::from_secs(1), base: 2.0, tries: 3 };
        let mut schedule = Schedule::new(settings, Time(0));
        let mut at = Vec::new();
        loop {
            let now = schedule.next();
            match schedule.due(now) {
                Due::Retransmit { first } => {
                    assert_eq!(first, at.is_empty());
                    at.push(now.0 / 1_000_000_000);
                }
                Due::Failed => {
                    assert_eq!(now.0 / 1_000_000_000, 15);
                    break;
                }
                Due::Nothing => unreachable!("it is due"),
            }
        }
        assert_eq!(at, [1, 3, 7]);
    }

    #[test]
    fn only_an_answer_to_a_request_sent_once_measures_the_round_trip() {
        let settings = Retransmission { timeout: Duration::from_secs(1), base: 2.0, tries: 3 };
        let mut schedule = Schedule::new(settings, Time(5));
        assert_eq!(schedule.round_trip(Time(25)), Some(Duration::from_nanos(20)));
        schedule.sent_again(Time(7));
        assert_eq!(schedule.round_trip(Time(25)), None);
    }

    /// RFC 7296 section 2.4: intervals grow exponentially; the schedule itself goes on as it was.
    #[test]
    fn while_packets_wait_a_request_is_sent_again_in_intervals_that_double() {
        let settings = Retransmission { timeout: Duration::from_secs(20), base: 2.0, tries: 3 };
        let mut schedule = Schedule::new(settings, Time(0));
        let (at_ms, first) = (|ms: u64| Time(ms * 1_000_000), Duration::from_millis(100));
        let mut sent = Vec::new();
        // Packets come each second, up to the fifth.
        for second in 0..30 {
            if second < 5 {
                schedule.hurry(at_ms(second * 1000), first);
            }
            while schedule.next() < at_ms((second + 1) * 1000) {
                let now = schedule.next();
                assert!(matches!(schedule.due(now), Due::Retransmit { .. }));
                sent.push(now.0 / 1_000_000);
            }
        }
        assert_eq!(sent, [100, 200, 400, 800, 1600, 3200, 5200, 20_000]);
    }

    #[test]
    fn sending_out_of_schedule_does_not_move_it() {
        let settings = Retransmission { timeout: Duration::from_secs(1), base: 2.0, tries: 3 };
        let mut schedule = Schedule::new(settings, Time(0));
        let next = schedule.next();
        schedule.sent_again(Time(5));
        assert_eq!((schedule.sent(), schedule.next()), (Time(5), next));
        assert_eq!(schedule.due(Time(6)), Due::Nothing);
    }
}
