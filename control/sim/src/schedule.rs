//! What is due in a world, and when: ordered by time, then by the order in which it was put there.

use spindle_abi::Time;
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// Things that are due.
#[derive(Debug)]
pub struct Schedule<T> {
    entries: BinaryHeap<Reverse<Entry<T>>>,
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
        Schedule { entries: BinaryHeap::new(), number: 0 }
    }
}

impl<T> Schedule<T> {
    /// This is due then.
    pub fn put(&mut self, at: Time, due: T) {
        self.number += 1;
        self.entries.push(Reverse(Entry { at, number: self.number, due }));
    }

    /// When the next thing is due.
    pub fn next_at(&self) -> Option<Time> {
        self.entries.peek().map(|Reverse(entry)| entry.at)
    }

    /// Takes the next thing, and when it is due.
    pub fn take(&mut self) -> Option<(Time, T)> {
        let Reverse(entry) = self.entries.pop()?;
        Some((entry.at, entry.due))
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.entries.len()
    }
}
