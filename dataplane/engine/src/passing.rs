//! Datagrams in fragments that pass in clear by a policy for specific ports (RFC 4301 section 7.4): only their first
//! fragments show ports, so it is remembered which of these were let by, and with what ports.
//!
//! A later fragment is held against the policies with the ports of its first one, and passes where these still let it by. One
//! that comes before its first, or after [`PATIENCE`], is dropped as one that shows no ports. Nothing of a fragment is
//! authentic, so all is bounded as in [`crate::reassembly`].

use crate::reassembly::{Key, place_for};
use crate::selectors::Flow;
use crate::{Engine, PortId};
use spindle_abi::{PolicyAction, Time};
use spindle_wire::ip::Head;
use std::time::Duration;

/// How long a datagram's later fragments are let by after its first one.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Clone, Copy)]
struct First {
    key: Key,
    ports: (u16, u16),
    at: Time,
}

/// The datagrams whose first fragments passed lately.
pub(crate) struct Passing {
    places: Vec<Option<First>>,
}

impl Passing {
    /// So many datagrams at a time; at least one.
    pub(crate) fn new(places: usize) -> Passing {
        Passing { places: vec![None; places.max(1)] }
    }

    /// A first fragment passes, which shows these ports.
    pub(crate) fn note(&mut self, now: Time, key: Key, ports: (u16, u16)) {
        let at = self.place_for(now, &key);
        self.places[at] = Some(First { key, ports, at: now });
    }

    /// The ports of the datagram to which a later fragment belongs, if its first one passed lately.
    pub(crate) fn ports(&self, now: Time, key: &Key) -> Option<(u16, u16)> {
        let first = self.places.iter().flatten().find(|first| first.key == *key)?;
        (now.since(first.at) < PATIENCE).then_some(first.ports)
    }

    /// Its own place, else another one's.
    fn place_for(&self, now: Time, key: &Key) -> usize {
        let own = self.places.iter().position(|place| place.is_some_and(|first| first.key == *key));
        own.unwrap_or_else(|| {
            let lately = |first: &First| now.since(first.at) < PATIENCE;
            let held = self.places.iter().map(|place| {
                place.as_ref().filter(|first| lately(first)).map(|first| (first.key.source, first.at))
            });
            place_for(key.source, held)
        })
    }
}

impl Engine {
    /// A packet as the policies see it, which look from inside; a later fragment with its first one's ports, where they let
    /// that one by and still do.
    #[inline]
    pub(crate) fn flow(&self, now: Time, ingress: PortId, head: &Head, packet: &[u8]) -> Flow {
        let flow = Flow::of(head, packet);
        let seen = if ingress == PortId::Outside { flow.reversed() } else { flow };
        if !flow.hides_ports() || head.fragment_offset == 0 {
            return seen;
        }
        let ports = Key::of(head, packet).and_then(|key| self.passing.ports(now, &key));
        let Some(ports) = ports else { return seen };
        let shown = Flow { ports: Some(ports), hidden: false, ..flow };
        let shown = if ingress == PortId::Outside { shown.reversed() } else { shown };
        let found = self.policies.find(&shown).ok().flatten();
        match found.map(|place| self.policies.action(place)) {
            Some(PolicyAction::Bypass) => shown,
            _ => seen,
        }
    }

    /// A policy lets this packet by in clear.
    #[inline]
    pub(crate) fn note_passing(&mut self, now: Time, head: &Head, packet: &[u8]) {
        if head.more_fragments
            && head.fragment_offset == 0
            && let Some(ports) = Flow::of(head, packet).ports
            && let Some(key) = Key::of(head, packet)
        {
            self.passing.note(now, key, ports);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(source: u8, identification: u32) -> Key {
        Key {
            source: [192, 0, 2, source].into(),
            destination: [10, 1, 0, 2].into(),
            protocol: Some(17),
            identification,
        }
    }

    fn at(seconds: u64) -> Time {
        Time(seconds * 1_000_000_000)
    }

    #[test]
    fn a_later_fragment_has_its_first_one_s_ports_for_a_while() {
        let mut passing = Passing::new(16);
        passing.note(at(10), key(1, 7), (4000, 53));
        assert_eq!(passing.ports(at(14), &key(1, 7)), Some((4000, 53)));
        for other in [key(2, 7), key(1, 8), Key { protocol: Some(6), ..key(1, 7) }] {
            assert_eq!(passing.ports(at(14), &other), None);
        }
        assert_eq!(passing.ports(at(15), &key(1, 7)), None);
        // The identification is used again.
        passing.note(at(20), key(1, 7), (4001, 53));
        assert_eq!(passing.ports(at(20), &key(1, 7)), Some((4001, 53)));
    }

    #[test]
    fn no_source_takes_more_than_its_share_and_the_oldest_gives_way() {
        let mut passing = Passing::new(16);
        passing.note(at(1), key(1, 0), (1, 1));
        for n in 0..100 {
            passing.note(at(2), key(2, n), (2, 2));
        }
        assert_eq!(passing.ports(at(2), &key(1, 0)), Some((1, 1)));
        let held = |source, now| (0..100).filter(|n| passing.ports(now, &key(source, *n)).is_some()).count();
        assert_eq!(held(2, at(2)), 2);
        for source in 3..=30 {
            passing.note(at(3), key(source, 0), (3, 3));
        }
        assert_eq!(passing.ports(at(3), &key(1, 0)), None);
        assert_eq!((3..=30).filter(|s| passing.ports(at(3), &key(*s, 0)).is_some()).count(), 16);
    }
}
