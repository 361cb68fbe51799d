//! The ids and priorities of policies in the dataplane. Where a policy stands follows from its priority, and what its SAs
//! are bound to is its id; so another configuration may put policies between others, and those that stay are not
//! touched, nor lose an SA for a moment.
//!
//! A new policy gets a priority between its neighbours'. Where there is no room for one, all move to the other half of the
//! numbers. Commands go in such an order that two policies whose order does not change are never seen in the other one.

use crate::api::{Config, Policy};
use spindle_ike::api::{ChildConfig, ConnectionConfig};
use std::collections::{BTreeSet, HashMap, HashSet};

/// Priorities are in the one half or the other.
const HALF: u32 = 1 << 31;

/// The policies in their order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Spd(Vec<Place>);

/// One policy's numbers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    pub(crate) label: String,
    pub(crate) id: u32,
    pub(crate) priority: u32,
}

/// A child's policy by name; no other policy has a slash.
pub(crate) fn label(connection: &str, child: &str) -> String {
    format!("{connection}/{child}")
}

/// One policy of a configuration.
#[derive(Clone, Copy)]
pub(crate) enum Entry<'a> {
    /// A child's.
    Protect(&'a ConnectionConfig, &'a ChildConfig),
    /// BYPASS or DISCARD.
    Other(&'a Policy),
}

impl Entry<'_> {
    /// As the configuration gives it: its place among the others.
    pub(crate) fn id(&self) -> u32 {
        match self {
            Entry::Protect(_, child) => child.policy,
            Entry::Other(policy) => policy.id,
        }
    }

    pub(crate) fn label(&self) -> String {
        match self {
            Entry::Protect(connection, child) => label(&connection.name, &child.name),
            Entry::Other(policy) => policy.name.clone(),
        }
    }
}

/// All policies of a configuration.
pub(crate) fn entries(config: &Config) -> impl Iterator<Item = Entry<'_>> {
    let children = config.connections.iter().flat_map(|c| c.children.iter().map(move |child| (c, child)));
    let protect = children.map(|(connection, child)| Entry::Protect(connection, child));
    protect.chain(config.policies.iter().map(Entry::Other))
}

/// The same in their order, with their names.
pub(crate) fn in_order(config: &Config) -> Vec<(String, Entry<'_>)> {
    let mut all: Vec<_> = entries(config).collect();
    all.sort_by_key(Entry::id);
    all.into_iter().map(|entry| (entry.label(), entry)).collect()
}

/// Names and ids, in order.
fn wanted(config: &Config) -> Vec<(String, u32)> {
    in_order(config).into_iter().map(|(label, entry)| (label, entry.id())).collect()
}

/// Those that stand in the same order in both, as many as can be.
pub(crate) fn stay<'a>(old: &[String], new: &'a [String]) -> HashSet<&'a str> {
    let places: HashMap<&str, usize> = old.iter().enumerate().map(|(at, name)| (name.as_str(), at)).collect();
    let common: Vec<(&str, usize)> =
        new.iter().filter_map(|name| Some((name.as_str(), *places.get(name.as_str())?))).collect();
    // The longest increasing row: of each length the one that ends lowest, and what each one follows.
    let mut ends: Vec<usize> = Vec::new();
    let mut follows = vec![None; common.len()];
    for (at, (_, place)) in common.iter().enumerate() {
        let length = ends.partition_point(|end| common[*end].1 < *place);
        follows[at] = length.checked_sub(1).map(|before| ends[before]);
        match ends.get_mut(length) {
            Some(end) => *end = at,
            None => ends.push(at),
        }
    }
    let mut stays = HashSet::new();
    let mut next = ends.last().copied();
    while let Some(at) = next {
        stays.insert(common[at].0);
        next = follows[at];
    }
    stays
}

impl Spd {
    /// Of a configuration that nothing comes before: ids are as it gives them.
    pub(crate) fn new(config: &Config) -> Spd {
        Spd::default().place(wanted(config), &HashSet::new())
    }

    /// Of the one that comes after this; what bears one of the `replaced` names is another policy from here on.
    pub(crate) fn next(&self, config: &Config, replaced: &BTreeSet<String>) -> Spd {
        let wanted = wanted(config);
        let names = |all: &mut dyn Iterator<Item = &String>| all.cloned().collect::<Vec<_>>();
        let old = names(&mut self.0.iter().map(|place| &place.label));
        let new = names(&mut wanted.iter().map(|(label, _)| label));
        let mut stays = stay(&old, &new);
        stays.retain(|label| !replaced.contains(*label));
        let known: HashMap<&str, u32> = self.0.iter().map(|place| (place.label.as_str(), place.id)).collect();
        let mut used: HashSet<u32> = self.0.iter().map(|place| place.id).collect();
        let mut free = used.iter().max().copied().unwrap_or(0);
        let mut fresh = || {
            while !used.insert(free) {
                free = free.wrapping_add(1);
            }
            free
        };
        let mut numbered = Vec::with_capacity(wanted.len());
        for (label, _) in &wanted {
            let id = known.get(label.as_str()).filter(|_| !replaced.contains(label)).copied();
            numbered.push((label.clone(), id.unwrap_or_else(&mut fresh)));
        }
        self.place(numbered, &stays)
    }

    /// Gives priorities to all but those that stay.
    fn place(&self, wanted: Vec<(String, u32)>, stays: &HashSet<&str>) -> Spd {
        let high = self.0.first().is_some_and(|place| place.priority >= HALF);
        let start = if high { HALF } else { 0 };
        let kept: HashMap<&str, u32> = self
            .0
            .iter()
            .filter(|place| stays.contains(place.label.as_str()))
            .map(|place| (place.label.as_str(), place.priority))
            .collect();
        let priority = |label: &String| kept.get(label.as_str()).copied();
        // Nor any that another policy has until it is moved or removed.
        let taken: HashSet<u32> = self.0.iter().map(|place| place.priority).collect();
        let placed = spread(start, &wanted, &taken, priority);
        let placed = placed.or_else(|| spread(HALF - start, &wanted, &taken, |_| None)).unwrap_or_default();
        let places = wanted.into_iter().zip(placed);
        Spd(places.map(|((label, id), priority)| Place { label, id, priority }).collect())
    }

    /// Gives a configuration these ids in place of its own.
    pub(crate) fn number(&self, config: &mut Config) {
        let ids: HashMap<&str, u32> = self.0.iter().map(|place| (place.label.as_str(), place.id)).collect();
        for connection in &mut config.connections {
            for place in 0..connection.children.len() {
                let child = &connection.children[place];
                let id = ids.get(label(&connection.name, &child.name).as_str()).copied();
                // One that stays as it is goes on being shared.
                if let Some(id) = id.filter(|id| *id != child.policy) {
                    connection.children[place].policy = id;
                }
            }
        }
        for policy in &mut config.policies {
            policy.id = ids.get(policy.name.as_str()).copied().unwrap_or(policy.id);
        }
    }

    pub(crate) fn places(&self) -> &[Place] {
        &self.0
    }

    /// In which order the policies are to be set by a dataplane that has those of `before`.
    pub(crate) fn order_after(&self, before: &Spd) -> Vec<&Place> {
        let old: HashMap<u32, u32> = before.0.iter().map(|place| (place.id, place.priority)).collect();
        let goes = |place: &&Place, down: bool| {
            old.get(&place.id)
                .is_some_and(|old| if down { place.priority > *old } else { place.priority < *old })
        };
        // The last one goes down first, and the first one up first: so none passes another whose order is the same.
        let down = self.0.iter().rev().filter(|place| goes(place, true));
        let up = self.0.iter().filter(|place| goes(place, false));
        let others = self.0.iter().filter(|place| !goes(place, true) && !goes(place, false));
        down.chain(up).chain(others).collect()
    }

    /// For the process after this one.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut octets = Vec::new();
        for Place { label, id, priority } in &self.0 {
            octets.extend_from_slice(&(label.len() as u32).to_be_bytes());
            octets.extend_from_slice(label.as_bytes());
            octets.extend_from_slice(&id.to_be_bytes());
            octets.extend_from_slice(&priority.to_be_bytes());
        }
        octets
    }

    /// The other way; `None` if it is none, or not one that could be.
    pub(crate) fn decode(mut octets: &[u8]) -> Option<Spd> {
        let mut places: Vec<Place> = Vec::new();
        let mut ids = HashSet::new();
        let number = |octets: &mut &[u8]| {
            let (head, rest) = octets.split_first_chunk()?;
            *octets = rest;
            Some(u32::from_be_bytes(*head))
        };
        while !octets.is_empty() {
            let length = number(&mut octets)? as usize;
            let (text, rest) = octets.split_at_checked(length)?;
            octets = rest;
            let label = std::str::from_utf8(text).ok()?.to_owned();
            let (id, priority) = (number(&mut octets)?, number(&mut octets)?);
            let follows = places.last().is_none_or(|last| last.priority < priority);
            if !follows || !ids.insert(id) {
                return None;
            }
            places.push(Place { label, id, priority });
        }
        Some(Spd(places))
    }
}

/// Ascending priorities within the half that begins here, with the given ones where they are; `None` without room.
fn spread(
    start: u32,
    wanted: &[(String, u32)],
    taken: &HashSet<u32>,
    given: impl Fn(&String) -> Option<u32>,
) -> Option<Vec<u32>> {
    let end = u64::from(start) + u64::from(HALF);
    let mut priorities = Vec::with_capacity(wanted.len());
    let mut low = u64::from(start);
    let mut at = 0;
    while at < wanted.len() {
        let run = wanted[at..].iter().take_while(|(label, _)| given(label).is_none()).count();
        let fixed = wanted.get(at + run).and_then(|(label, _)| given(label));
        let high = fixed.map_or(end, u64::from);
        let step = high.checked_sub(low)? / (run as u64 + 1);
        let mut last = low;
        for n in 1..=run as u64 {
            last = (low + n * step).max(last + 1);
            while taken.contains(&(last as u32)) {
                last += 1;
            }
            if last >= high {
                return None;
            }
            priorities.push(last as u32);
        }
        priorities.extend(fixed);
        low = high;
        at += run + usize::from(fixed.is_some());
    }
    Some(priorities)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Policy;
    use crate::testing::config;
    use spindle_abi::{PolicyAction, SelectorSet};

    fn of(names: &[&str]) -> Config {
        let mut config = config();
        config.connections.clear();
        let policies = (1..).zip(names).map(|(id, name)| Policy {
            name: (*name).into(),
            id,
            action: PolicyAction::Discard,
            selectors: SelectorSet::default(),
        });
        config.policies = policies.collect();
        config
    }

    fn none() -> BTreeSet<String> {
        BTreeSet::new()
    }

    fn labels(spd: &Spd) -> Vec<&str> {
        spd.places().iter().map(|place| place.label.as_str()).collect()
    }

    #[test]
    fn what_stays_keeps_its_numbers_and_what_comes_gets_others() {
        let old = Spd::new(&of(&["a", "b", "c"]));
        let new = old.next(&of(&["x", "a", "y", "c"]), &none());
        let [x, a, y, c] = new.places() else { panic!("{new:?}") };
        assert_eq!((a, c), (&old.places()[0], &old.places()[2]));
        assert!(x.priority < a.priority && a.priority < y.priority && y.priority < c.priority);
        assert!(x.id != y.id && old.places().iter().all(|place| ![x.id, y.id].contains(&place.id)));
        let replaced = old.next(&of(&["a", "b", "c"]), &BTreeSet::from(["b".to_owned()]));
        assert_ne!(replaced.places()[1].id, old.places()[1].id);
        assert_eq!(Spd::decode(&new.encode()), Some(new));
    }

    /// A dataplane that is told one command after the other, seen between any two of them.
    fn orders_never_swap(old: &Spd, new: &Spd) {
        let mut now: HashMap<u32, u32> = old.places().iter().map(|p| (p.id, p.priority)).collect();
        let place = |spd: &Spd, id: u32| spd.places().iter().position(|p| p.id == id);
        for told in new.order_after(old) {
            now.insert(told.id, told.priority);
            for a in now.keys() {
                for b in now.keys().filter(|b| *b != a) {
                    assert_ne!(now[a], now[b], "two at one place");
                    let before = |spd: &Spd| Some(place(spd, *a)? < place(spd, *b)?);
                    if let (Some(true), Some(true)) = (before(old), before(new)) {
                        assert!(now[a] < now[b], "{a} and {b} have changed places");
                    }
                }
            }
        }
    }

    #[test]
    fn whatever_moves_the_order_of_two_that_keep_theirs_is_never_another() {
        let names: Vec<String> = (0..12).map(|n| n.to_string()).collect();
        let (mut state, mut spd) = (7_u32, Spd::default());
        let mut random = move |below: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) % below
        };
        for _ in 0..2000 {
            let mut order: Vec<&str> = names.iter().map(String::as_str).collect();
            for at in (1..order.len()).rev() {
                order.swap(at, random(at as u32 + 1) as usize);
            }
            order.truncate(1 + random(12) as usize);
            let next = spd.next(&of(&order), &none());
            assert_eq!(labels(&next), order);
            orders_never_swap(&spd, &next);
            spd = next;
        }
    }

    #[test]
    fn without_room_all_move_to_the_other_half() {
        let mut spd = Spd::new(&of(&["a", "z"]));
        let mut names = vec!["a".to_owned(), "z".to_owned()];
        for n in 0..100 {
            names.insert(1, format!("n{n}"));
            let order: Vec<&str> = names.iter().map(String::as_str).collect();
            let next = spd.next(&of(&order), &none());
            assert_eq!(labels(&next), order);
            orders_never_swap(&spd, &next);
            spd = next;
        }
        let high = spd.places().iter().filter(|place| place.priority >= HALF).count();
        assert!([0, spd.places().len()].contains(&high), "some are in either half");
    }

    #[test]
    fn what_could_not_be_is_not_read() {
        let spd = Spd::new(&of(&["a", "b"]));
        let octets = spd.encode();
        assert_eq!(Spd::decode(&octets[..octets.len() - 1]), None);
        let twice = [octets.clone(), octets].concat();
        assert_eq!(Spd::decode(&twice), None);
    }
}
