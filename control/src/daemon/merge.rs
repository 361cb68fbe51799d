//! All workers as one: every worker is told every command, and acknowledges it. The gateway hears of it once, when the last of
//! them has, and that the dataplane is ready when all of its workers are.

use spindle_abi::Event;
use std::collections::VecDeque;

/// What not all workers have said yet.
pub(super) struct Merge {
    /// For each worker: is it ready, and how many of `waiting` has it acknowledged?
    workers: Vec<(bool, usize)>,
    /// Commands in their order.
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    sequence: u64,
    /// Workers that have not acknowledged it.
    left: usize,
    /// No one has refused it.
    done: bool,
}

impl Merge {
    pub(super) fn of(workers: usize) -> Merge {
        Merge { workers: vec![(false, 0); workers], waiting: VecDeque::new() }
    }

    /// A command goes to all workers.
    pub(super) fn sent(&mut self, sequence: u64) {
        let left = self.workers.len();
        if left > 1 {
            self.waiting.push_back(Waiting { sequence, left, done: true });
        }
    }

    /// What a worker's event is for the gateway, if it is anything yet.
    pub(super) fn event(&mut self, worker: usize, event: Event) -> Option<Event> {
        if self.workers.len() == 1 {
            return Some(event);
        }
        match event {
            Event::Ready => {
                self.workers.get_mut(worker)?.0 = true;
                self.workers.iter().all(|(ready, _)| *ready).then_some(event)
            }
            Event::Acknowledged { sequence, done } => self.acknowledged(worker, sequence, done),
            event => Some(event),
        }
    }

    /// Each worker acknowledges in the order of the commands; so the one that all have is the first that waits.
    fn acknowledged(&mut self, worker: usize, sequence: u64, done: bool) -> Option<Event> {
        let (_, said) = self.workers.get_mut(worker)?;
        let command = self.waiting.get_mut(*said).filter(|command| command.sequence == sequence)?;
        *said += 1;
        command.left -= 1;
        command.done &= done;
        if command.left > 0 {
            return None;
        }
        let Waiting { sequence, done, .. } = self.waiting.pop_front()?;
        self.workers.iter_mut().for_each(|(_, said)| *said -= 1);
        Some(Event::Acknowledged { sequence, done })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spindle_abi::Spi;

    #[test]
    fn a_command_is_acknowledged_when_the_last_worker_has() {
        let mut merge = Merge::of(3);
        (1..=2).for_each(|sequence| merge.sent(sequence));
        let said = |sequence, done| Event::Acknowledged { sequence, done };
        assert_eq!(merge.event(0, said(1, true)), None);
        assert_eq!(merge.event(0, said(2, true)), None);
        assert_eq!(merge.event(2, said(1, false)), None);
        assert_eq!(merge.event(2, said(7, true)), None, "never sent");
        assert_eq!(merge.event(1, said(1, true)), Some(said(1, false)), "one has refused it");
        assert_eq!(merge.event(1, said(2, true)), None);
        assert_eq!(merge.event(2, said(2, true)), Some(said(2, true)));
        assert_eq!(merge.event(2, said(2, true)), None, "said already");
    }

    #[test]
    fn the_dataplane_is_ready_when_all_workers_are_and_other_events_are_each_workers_own() {
        let mut merge = Merge::of(2);
        let first = Event::FirstInbound { spi: Spi(300) };
        assert_eq!(merge.event(1, Event::Ready), None);
        assert_eq!(merge.event(1, Event::Ready), None);
        assert_eq!(merge.event(1, first), Some(first));
        assert_eq!(merge.event(0, Event::Ready), Some(Event::Ready));
    }

    #[test]
    fn one_worker_is_heard_as_it_is() {
        let mut merge = Merge::of(1);
        let said = Event::Acknowledged { sequence: 9, done: true };
        assert_eq!(merge.event(0, said), Some(said));
    }
}
