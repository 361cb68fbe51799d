//! A line of those who wait for the pace of handshakes: each has one place in it, those with traffic before all others, and
//! among themselves in the order of their coming.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// A place in the line.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Place {
    without_traffic: bool,
    order: u64,
}

/// Who waits, each with a value.
#[derive(Debug)]
pub(crate) struct Line<K, V> {
    places: BTreeMap<Place, K>,
    waiting: HashMap<K, (Place, V)>,
    order: u64,
}

impl<K, V> Default for Line<K, V> {
    fn default() -> Self {
        Line { places: BTreeMap::new(), waiting: HashMap::new(), order: 0 }
    }
}

impl<K: Copy + Eq + Hash, V> Line<K, V> {
    /// Does nobody wait?
    pub(crate) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Does somebody with traffic?
    pub(crate) fn any_with_traffic(&self) -> bool {
        self.places.first_key_value().is_some_and(|(place, _)| !place.without_traffic)
    }

    /// Does this one?
    pub(crate) fn contains(&self, key: K) -> bool {
        self.waiting.contains_key(&key)
    }

    /// It waits behind all others, or where it waits already, now with this value. The first `traffic` of one that waits
    /// without takes it behind those with.
    pub(crate) fn put(&mut self, key: K, value: V, traffic: bool) {
        let before = match self.waiting.get_mut(&key) {
            Some((place, old)) if !traffic || !place.without_traffic => {
                *old = value;
                return;
            }
            before => before.map(|(place, _)| *place),
        };
        if let Some(before) = before {
            self.places.remove(&before);
        }
        self.order += 1;
        let place = Place { without_traffic: !traffic, order: self.order };
        self.places.insert(place, key);
        self.waiting.insert(key, (place, value));
    }

    /// The first one; it waits no more.
    pub(crate) fn next(&mut self) -> Option<(K, V)> {
        let (_, key) = self.places.pop_first()?;
        self.waiting.remove(&key).map(|(_, value)| (key, value))
    }

    /// It waits no more.
    pub(crate) fn remove(&mut self, key: K) {
        if let Some((place, _)) = self.waiting.remove(&key) {
            self.places.remove(&place);
        }
    }

    /// Nobody waits any more.
    pub(crate) fn clear(&mut self) {
        self.places.clear();
        self.waiting.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(line: &mut Line<u8, char>) -> String {
        std::iter::from_fn(|| line.next()).map(|(key, value)| format!("{key}{value} ")).collect()
    }

    #[test]
    fn those_with_traffic_are_first_each_in_their_order() {
        let mut line = Line::default();
        for (key, traffic) in [(1, false), (2, true), (3, false), (4, false), (5, true)] {
            line.put(key, 'a', traffic);
        }
        line.put(1, 'b', false); // stays where it is
        line.put(4, 'c', true); // behind those with traffic
        line.put(2, 'd', false); // keeps what it has
        line.put(2, 'e', true);
        line.remove(3);
        assert!(line.any_with_traffic() && line.contains(4) && !line.contains(3));
        assert_eq!(all(&mut line), "2e 5a 4c 1b ");
        assert!(line.is_empty() && line.waiting.is_empty() && !line.any_with_traffic());
    }

    proptest! {
        /// Beside a model: a list that is searched.
        #[test]
        fn it_does_what_a_list_does(steps in prop::collection::vec((0..5_u8, 0..4_u8, any::<char>()), 0..64)) {
            let (mut line, mut list) = (Line::default(), Vec::<(u8, char, bool)>::new());
            for (key, step, value) in steps {
                match step {
                    0 | 1 => {
                        let traffic = step == 1;
                        line.put(key, value, traffic);
                        match list.iter().position(|(other, ..)| *other == key) {
                            Some(at) if !traffic || list[at].2 => list[at].1 = value,
                            at => {
                                at.map(|at| list.remove(at));
                                list.push((key, value, traffic));
                            }
                        }
                    }
                    2 => {
                        let first = list.iter().position(|(.., traffic)| *traffic).or((!list.is_empty()).then_some(0));
                        let first = first.map(|at| list.remove(at));
                        prop_assert_eq!(line.next(), first.map(|(key, value, _)| (key, value)));
                    }
                    _ => {
                        line.remove(key);
                        list.retain(|(other, ..)| *other != key);
                    }
                }
                prop_assert_eq!(line.places.len(), list.len());
                prop_assert_eq!(line.waiting.len(), list.len());
                prop_assert_eq!(line.any_with_traffic(), list.iter().any(|(.., traffic)| *traffic));
            }
        }
    }
}
