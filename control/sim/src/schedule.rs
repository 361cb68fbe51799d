//! What is due in a world, and when: ordered by time, then by the order in which it was put there.

use spindle_abi::Time;
use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

/// Nanoseconds of a slot of what is due later.
const SLOT: u64 = 1 << 24;
/// Slots that are found without a search: about a minute.
const NEXT: u64 = 1 << 12;

type Slot<T> = Vec<Reverse<Entry<T>>>;

/// Things that are due. A million of them, most of them due much later, cost little: only those of a slot are kept in
/// order.
#[derive(Debug)]
pub struct Schedule<T> {
    /// All before the end of a slot; empty only if there is nothing at all.
    soon: BinaryHeap<Reverse<Entry<T>>>,
    /// The slots from this one on are `next`, at most [`NEXT`] of them.
    slot: u64,
    next: VecDeque<Slot<T>>,
    /// What was too far away when it was put here.
    later: BTreeMap<u64, Slot<T>>,
    count: usize,
    number: u64,
}

#[derive(Debug)]
struct Entry<T> {
    at: Time,
    number: u64,
    due: T,
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Entry<T>) -> bool {
        self.number == other.number
    }
}
impl<T> Eq for Entry<T> {}
impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Entry<T>) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Entry<T>) -> Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

impl<T> Default for Schedule<T> {
    fn default() -> Schedule<T> {
        Schedule {
            soon: BinaryHeap::new(),
            slot: 0,
            next: VecDeque::new(),
            later: BTreeMap::new(),
            count: 0,
            number: 0,
        }
    }
}

impl<T> Schedule<T> {
    /// This is due then.
    pub fn put(&mut self, at: Time, due: T) {
        self.number += 1;
        self.count += 1;
        let entry = Reverse(Entry { at, number: self.number, due });
        let slot = at.0 / SLOT;
        if self.soon.is_empty() {
            self.slot = slot + 1;
        }
        match slot.checked_sub(self.slot) {
            None => self.soon.push(entry),
            Some(away) if away < NEXT => {
                let away = away as usize;
                if self.next.len() <= away {
                    self.next.resize_with(away + 1, Vec::new);
                }
                self.next[away].push(entry);
            }
            Some(_) => self.later.entry(slot).or_default().push(entry),
        }
    }

    /// When the next thing is due.
    pub fn next_at(&self) -> Option<Time> {
        self.soon.peek().map(|Reverse(entry)| entry.at)
    }

    /// Takes the next thing, and when it is due.
    pub fn take(&mut self) -> Option<(Time, T)> {
        let Reverse(entry) = self.soon.pop()?;
        self.count -= 1;
        while self.soon.is_empty() && self.turn() {}
        Some((entry.at, entry.due))
    }

    /// The next slot's turn comes; false if there is none.
    fn turn(&mut self) -> bool {
        if self.next.is_empty() {
            let Some((slot, _)) = self.later.first_key_value() else { return false };
            self.slot = *slot;
        }
        let mut entries = self.next.pop_front().unwrap_or_default();
        entries.extend(self.later.remove(&self.slot).into_iter().flatten());
        self.soon = entries.into();
        self.slot += 1;
        true
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Put(u64),
        Take,
    }

    fn step() -> impl Strategy<Value = Step> {
        // Within a slot, in the next ones, and far away.
        let after = prop_oneof![0..4_u64, 0..3 * SLOT, 0..1000 * SLOT, 0..3 * NEXT * SLOT];
        prop_oneof![3 => after.prop_map(Step::Put), 2 => Just(Step::Take)]
    }

    proptest! {
        #[test]
        fn things_come_by_time_and_then_in_the_order_in_which_they_were_put(steps in prop::collection::vec(step(), 0..300)) {
            let (mut schedule, mut now) = (Schedule::default(), Time(0));
            let mut model: Vec<(Time, usize)> = Vec::new();
            let end = std::iter::repeat_n(Step::Take, steps.len());
            for (number, step) in steps.iter().cloned().chain(end).enumerate() {
                match step {
                    Step::Put(after) => {
                        let at = Time(now.0 + after);
                        schedule.put(at, number);
                        model.push((at, number));
                    }
                    Step::Take => {
                        model.sort();
                        let first = (!model.is_empty()).then(|| model.remove(0));
                        prop_assert_eq!(schedule.next_at(), first.map(|(at, _)| at));
                        prop_assert_eq!(schedule.take(), first);
                        now = first.map_or(now, |(at, _)| at);
                    }
                }
                prop_assert_eq!(schedule.count(), model.len());
            }
        }
    }
}
