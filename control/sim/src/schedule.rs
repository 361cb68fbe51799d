//! What is due in a world, and when: ordered by time, then by the order in which it was put there.

use spindle_abi::Time;
use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BinaryHeap};

/// Nanoseconds of a slot of what is due later.
const SLOT: u64 = 1 << 24;

/// Things that are due. A million of them, most of them due much later, cost little: only those of a slot are kept in
/// order.
#[derive(Debug)]
pub struct Schedule<T> {
    /// All before the end of a slot; empty only if there is nothing at all.
    soon: BinaryHeap<Reverse<Entry<T>>>,
    /// The slots from this one on are `later`.
    slot: u64,
    later: BTreeMap<u64, Vec<Reverse<Entry<T>>>>,
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
        Schedule { soon: BinaryHeap::new(), slot: 0, later: BTreeMap::new(), count: 0, number: 0 }
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
        if slot < self.slot {
            self.soon.push(entry);
        } else {
            self.later.entry(slot).or_default().push(entry);
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
        if self.soon.is_empty()
            && let Some((slot, entries)) = self.later.pop_first()
        {
            self.soon = entries.into();
            self.slot = slot + 1;
        }
        Some((entry.at, entry.due))
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
        let after = prop_oneof![0..4_u64, 0..3 * SLOT, 0..1000 * SLOT];
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
