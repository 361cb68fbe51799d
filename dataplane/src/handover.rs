//! Frames between workers: what has come to one and is of another one's SA.
//!
//! Each ordered pair of workers has a bounded queue of its own: one writes it, the other reads it, and neither waits. All frames
//! are of one UMEM, so that a frame changes hands without a copy. For each that it has taken a worker gives an empty one
//! back, by the queue of the other direction: so no pool runs dry, however unequal the traffic. A worker that sleeps is
//! rung, at most once a turn.

use arrayvec::ArrayVec;
use crossbeam::queue::ArrayQueue;
use spindle_engine::{BURST, Origin};
use spindle_port::Pool;
use spindle_ring::Bell;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

/// Frames in one queue at most: some bursts, for a worker that is busy.
const QUEUE: usize = 1024;

/// What is on a queue.
enum Handed<F> {
    /// To be processed.
    Frame(Origin, F),
    /// In exchange for one that was taken.
    Empty(F),
}

type Queue<F> = Arc<ArrayQueue<Handed<F>>>;

/// By which a worker that sleeps is woken.
pub(crate) struct Sleeper {
    asleep: AtomicBool,
    bell: Bell,
}

impl Sleeper {
    pub(crate) fn new(bell: Bell) -> Sleeper {
        Sleeper { asleep: AtomicBool::new(false), bell }
    }

    /// Wakes it, or keeps it from its next sleep.
    pub(crate) fn wake(&self) {
        self.bell.ring();
    }

    /// Wakes it if it sleeps: whoever put something on a queue before calls it, and the sleeper looks at its queues after
    /// it has announced its sleep; so one of both sees the other.
    fn wake_if_asleep(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) {
            self.bell.ring();
        }
    }

    /// Before the last look at the queues.
    pub(crate) fn announce(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    pub(crate) fn awake(&self) {
        self.asleep.store(false, Ordering::Relaxed);
        self.bell.silence();
    }
}

impl AsFd for Sleeper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

/// Another worker, as one sees it.
struct Neighbour<F> {
    to: Queue<F>,
    from: Queue<F>,
    sleeper: Arc<Sleeper>,
    /// It was given frames since it was last woken.
    has_news: bool,
    /// Empty frames that it has to get.
    owed: usize,
    /// Came from it, behind frames of another origin.
    next: Option<(Origin, F)>,
}

/// All other workers, by their numbers; none in one's own place.
pub(crate) struct Neighbours<F>(Vec<Option<Neighbour<F>>>);

impl<F> Default for Neighbours<F> {
    fn default() -> Neighbours<F> {
        Neighbours(Vec::new())
    }
}

impl<F> Neighbours<F> {
    /// For each worker its neighbours.
    pub(crate) fn of_all(sleepers: &[Arc<Sleeper>]) -> Vec<Neighbours<F>> {
        let count = sleepers.len();
        let queues: Vec<Queue<F>> = (0..count * count).map(|_| Arc::new(ArrayQueue::new(QUEUE))).collect();
        let queue = |from: usize, to: usize| queues[from * count + to].clone();
        let neighbour = |me: usize, other: usize| Neighbour {
            to: queue(me, other),
            from: queue(other, me),
            sleeper: sleepers[other].clone(),
            has_news: false,
            owed: 0,
            next: None,
        };
        let of = |me| (0..count).map(|other| (other != me).then(|| neighbour(me, other))).collect();
        (0..count).map(|me| Neighbours(of(me))).collect()
    }

    /// Gives a frame to a worker; or back, if too many wait for that one.
    pub(crate) fn give(&mut self, worker: u16, origin: Origin, frame: F) -> Result<(), F> {
        let Some(Some(neighbour)) = self.0.get_mut(usize::from(worker)) else { return Err(frame) };
        match neighbour.to.push(Handed::Frame(origin, frame)) {
            Ok(()) => {
                neighbour.has_news = true;
                Ok(())
            }
            Err(Handed::Frame(_, frame) | Handed::Empty(frame)) => Err(frame),
        }
    }

    /// Numbers of workers, this one among them.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// Takes frames of one origin that a worker gave, as many as fit; empty ones go into the pool.
    pub(crate) fn take(
        &mut self,
        worker: usize,
        burst: &mut ArrayVec<F, BURST>,
        pool: &mut Pool<F>,
    ) -> Option<Origin> {
        let Some(Some(neighbour)) = self.0.get_mut(worker) else { return None };
        let mut origin = None;
        while !burst.is_full() {
            let next = neighbour.next.take().or_else(|| neighbour.receive(pool));
            match next {
                Some((other, frame)) if origin.is_some_and(|origin| origin != other) => {
                    neighbour.next = Some((other, frame));
                    break;
                }
                Some((same, frame)) => {
                    origin = Some(same);
                    burst.push(frame);
                }
                None => break,
            }
        }
        neighbour.owed += burst.len();
        origin
    }

    /// Gives empty frames back for those that were taken, and wakes those who were given something.
    pub(crate) fn settle(&mut self, pool: &mut Pool<F>) {
        for neighbour in self.0.iter_mut().flatten() {
            while neighbour.owed > 0 {
                let Some(frame) = pool.take() else { break };
                if let Err(Handed::Frame(_, frame) | Handed::Empty(frame)) =
                    neighbour.to.push(Handed::Empty(frame))
                {
                    pool.put(frame);
                    break;
                }
                neighbour.owed -= 1;
            }
            if std::mem::take(&mut neighbour.has_news) {
                neighbour.sleeper.wake_if_asleep();
            }
        }
    }

    /// Has nobody given anything?
    pub(crate) fn is_idle(&self) -> bool {
        self.0.iter().flatten().all(|neighbour| neighbour.from.is_empty() && neighbour.next.is_none())
    }
}

impl<F> Neighbour<F> {
    fn receive(&self, pool: &mut Pool<F>) -> Option<(Origin, F)> {
        loop {
            match self.from.pop()? {
                Handed::Frame(origin, frame) => return Some((origin, frame)),
                Handed::Empty(frame) => pool.put(frame),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use spindle_engine::{Frame, MemoryFrame};

    fn two() -> (Neighbours<MemoryFrame>, Neighbours<MemoryFrame>, Vec<Arc<Sleeper>>) {
        let sleeper = |_| Arc::new(Sleeper::new(Bell::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap())));
        let sleepers: Vec<_> = (0..2).map(sleeper).collect();
        let mut all = Neighbours::of_all(&sleepers);
        let second = all.remove(1);
        (all.remove(0), second, sleepers)
    }

    fn frame(octet: u8) -> MemoryFrame {
        MemoryFrame::new(&[octet])
    }

    fn take(
        of: &mut Neighbours<MemoryFrame>,
        from: usize,
        pool: &mut Pool<MemoryFrame>,
    ) -> (Option<Origin>, Vec<u8>) {
        let mut burst = ArrayVec::new();
        let origin = of.take(from, &mut burst, pool);
        (origin, burst.iter().map(|frame| frame.data()[0]).collect())
    }

    #[test]
    fn frames_come_in_their_order_by_origin_and_are_exchanged_for_empty_ones() {
        let (mut first, mut second, _) = two();
        let (mut of_first, mut of_second) = (Pool::with_capacity(8), Pool::with_capacity(8));
        (0..4).for_each(|_| of_second.put(frame(0xee)));
        for (octet, origin) in [(1, Origin::Outside), (2, Origin::Outside), (3, Origin::Inside(0))] {
            first.give(1, origin, frame(octet)).unwrap();
        }
        assert!(!second.is_idle() && first.is_idle());
        assert_eq!(take(&mut second, 0, &mut of_second), (Some(Origin::Outside), vec![1, 2]));
        assert!(!second.is_idle());
        assert_eq!(take(&mut second, 0, &mut of_second), (Some(Origin::Inside(0)), vec![3]));
        assert_eq!(take(&mut second, 0, &mut of_second), (None, vec![]));
        second.settle(&mut of_second);
        assert_eq!(take(&mut first, 1, &mut of_first), (None, vec![]));
        assert_eq!((of_first.len(), of_second.len()), (3, 1), "three for three");
        second.settle(&mut of_second);
        assert_eq!(of_second.len(), 1, "once");
    }

    #[test]
    fn who_owes_and_has_none_pays_later() {
        let (mut first, mut second, _) = two();
        let (mut of_first, mut of_second) = (Pool::with_capacity(8), Pool::with_capacity(8));
        first.give(1, Origin::Outside, frame(1)).unwrap();
        take(&mut second, 0, &mut of_second);
        second.settle(&mut of_second);
        take(&mut first, 1, &mut of_first);
        assert_eq!(of_first.len(), 0);
        of_second.put(frame(2));
        second.settle(&mut of_second);
        take(&mut first, 1, &mut of_first);
        assert_eq!((of_first.len(), of_second.len()), (1, 0));
    }

    #[test]
    fn a_full_queue_and_a_worker_that_is_not_there_give_the_frame_back() {
        let (mut first, _second, _) = two();
        (0..QUEUE).for_each(|_| first.give(1, Origin::Outside, frame(1)).unwrap());
        assert_eq!(first.give(1, Origin::Outside, frame(2)).unwrap_err().data(), [2]);
        assert_eq!(first.give(0, Origin::Outside, frame(3)).unwrap_err().data(), [3], "oneself");
        assert_eq!(first.give(2, Origin::Outside, frame(4)).unwrap_err().data(), [4]);
    }

    #[test]
    fn only_who_sleeps_is_rung() {
        let (mut first, _second, sleepers) = two();
        let mut pool = Pool::with_capacity(1);
        let rung = || {
            let mut poll = [rustix::event::PollFd::new(&*sleepers[1], rustix::event::PollFlags::IN)];
            let at_once = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
            rustix::event::poll(&mut poll, Some(&at_once)).unwrap() == 1
        };
        first.give(1, Origin::Outside, frame(1)).unwrap();
        first.settle(&mut pool);
        assert!(!rung());
        sleepers[1].announce();
        first.settle(&mut pool);
        assert!(!rung(), "nothing new");
        first.give(1, Origin::Outside, frame(1)).unwrap();
        first.settle(&mut pool);
        assert!(rung());
        sleepers[1].awake();
        assert!(!rung());
    }
}
