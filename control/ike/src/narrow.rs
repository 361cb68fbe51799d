//! Traffic selectors: narrowing by the responder and its check by the initiator (RFC 7296 section 2.9).

use spindle_abi::{Selector, SelectorSet};

/// Selectors on a side of an offer that are looked at: taking a subset is allowed, and the work for one message bounded.
const LOOKED_AT: usize = 64;

/// The part of what the peer offers that policy allows, [`SelectorSet::MAX`] selectors a side at most: a subset is
/// allowed, a superset is not. `None` if there is no packet that both allow (TS_UNACCEPTABLE).
///
/// The initiator's first selector is that of the packet that triggered the exchange: it is to be in the subset if policy
/// allows it, so offers are taken in their order.
pub(crate) fn narrow(offer: &SelectorSet, policy: &SelectorSet) -> Option<SelectorSet> {
    let common = |offer: &[Selector], policy: &[Selector]| {
        let offer = offer.iter().take(LOOKED_AT);
        let all: Vec<_> = offer.flat_map(|o| policy.iter().filter_map(|p| o.intersection(p))).collect();
        without_repetition(&all)
    };
    let mut set = in_pairs(&SelectorSet {
        local: common(&offer.local, &policy.local),
        remote: common(&offer.remote, &policy.remote),
    });
    set.local.truncate(SelectorSet::MAX);
    set.remote.truncate(SelectorSet::MAX);
    Some(in_pairs(&set)).filter(|set| !set.local.is_empty())
}

/// Are the initiator's first choices in what was narrowed?
pub(crate) fn has_first(narrowed: &SelectorSet, offer: &SelectorSet) -> bool {
    let side = |narrowed: &[Selector], offer: &[Selector]| {
        offer.first().is_some_and(|first| narrowed.iter().any(|n| n.holds(first)))
    };
    side(&narrowed.local, &offer.local) && side(&narrowed.remote, &offer.remote)
}

/// What the responder chose, if it is a subset of our offer (RFC 7296 section 2.9: it narrows, never widens).
pub(crate) fn chosen(chosen: &SelectorSet, offer: &SelectorSet) -> Option<SelectorSet> {
    let side = |chosen: &[Selector], offer: &[Selector]| {
        // As many as there can be in a message; those of the triggering packet are repeated by the next ones.
        let chosen = without_repetition(chosen);
        let subset = chosen.iter().all(|c| offer.iter().any(|o| o.holds(c)));
        (subset && chosen.len() <= SelectorSet::MAX).then_some(chosen)
    };
    let set = SelectorSet {
        local: side(&chosen.local, &offer.local)?,
        remote: side(&chosen.remote, &offer.remote)?,
    };
    set.pairs().next()?;
    Some(set)
}

/// Those alone that no other one holds, each once.
fn without_repetition(selectors: &[Selector]) -> Vec<Selector> {
    let mut found: Vec<Selector> = Vec::new();
    for selector in selectors {
        if found.iter().any(|f| f.holds(selector)) {
            continue;
        }
        // The wider one takes the place of the first that it holds: the order is the initiator's.
        match found.iter().position(|f| selector.holds(f)) {
            Some(at) => {
                found[at] = *selector;
                let mut place = 0..;
                found.retain(|f| place.next() == Some(at) || !selector.holds(f));
            }
            None => found.push(*selector),
        }
    }
    found
}

/// Those alone that a packet can match whose other end matches one on the other side.
fn in_pairs(set: &SelectorSet) -> SelectorSet {
    let side = |these: &[Selector], others: &[Selector]| {
        let has_pair = |one: &&Selector| {
            SelectorSet { local: vec![**one], remote: others.to_vec() }.pairs().next().is_some()
        };
        these.iter().filter(has_pair).copied().collect()
    };
    SelectorSet { local: side(&set.local, &set.remote), remote: side(&set.remote, &set.local) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::IpAddr;

    const TCP: u8 = 6;
    const UDP: u8 = 17;

    fn range(start: [u8; 4], end: [u8; 4]) -> Selector {
        Selector::addresses(IpAddr::from(start), IpAddr::from(end))
    }

    fn ports(selector: Selector, protocol: u8, start_port: u16, end_port: u16) -> Selector {
        Selector { protocol, start_port, end_port, ..selector }
    }

    fn any() -> Selector {
        range([0; 4], [255; 4])
    }

    fn set(local: Vec<Selector>, remote: Vec<Selector>) -> SelectorSet {
        SelectorSet { local, remote }
    }

    /// RFC 7296 section 2.9.
    #[test]
    fn the_responder_narrows_to_what_both_allow() {
        let net = range([10, 1, 0, 0], [10, 1, 0, 255]);
        let policy = set(vec![net], vec![any()]);
        assert_eq!(narrow(&set(vec![any()], vec![any()]), &policy), Some(policy.clone()));
        let host = range([10, 1, 0, 7], [10, 1, 0, 7]);
        assert_eq!(narrow(&set(vec![host, net], vec![any()]), &policy), Some(policy.clone()));
        assert_eq!(narrow(&set(vec![range([10, 2, 0, 0], [10, 2, 0, 9])], vec![any()]), &policy), None);
    }

    /// RFC 7296 section 2.9, 3.13.1.
    #[test]
    fn protocols_and_ports_are_narrowed_too() {
        let net = range([10, 1, 0, 0], [10, 1, 0, 255]);
        let https = ports(net, TCP, 443, 443);
        let policy = set(vec![https], vec![any()]);
        // The peer offers all; TCP from port 400; another protocol; OPAQUE.
        assert_eq!(narrow(&set(vec![any()], vec![any()]), &policy), Some(policy.clone()));
        let some =
            narrow(&set(vec![ports(net, TCP, 400, 500)], vec![ports(any(), TCP, 1024, 65535)]), &policy);
        assert_eq!(some, Some(set(vec![https], vec![ports(any(), TCP, 1024, 65535)])));
        assert_eq!(narrow(&set(vec![ports(net, UDP, 0, 65535)], vec![any()]), &policy), None);
        assert_eq!(narrow(&set(vec![ports(net, TCP, 444, 500)], vec![any()]), &policy), None);
        assert_eq!(narrow(&set(vec![ports(net, TCP, 65535, 0)], vec![any()]), &policy), None);
    }

    /// Two on each side: what has no counterpart there is left out, and where nothing is left it is unacceptable.
    #[test]
    fn selectors_without_a_counterpart_of_their_protocol_are_left_out() {
        let (web, dns) = (ports(any(), TCP, 443, 443), ports(any(), UDP, 53, 53));
        let (tcp, udp) = (ports(any(), TCP, 0, 65535), ports(any(), UDP, 0, 65535));
        let policy = set(vec![web, dns], vec![tcp, udp]);
        assert_eq!(narrow(&policy, &policy), Some(policy.clone()));
        assert_eq!(narrow(&set(vec![any()], vec![udp]), &policy), Some(set(vec![dns], vec![udp])));
        assert_eq!(narrow(&set(vec![dns], vec![any()]), &policy), Some(set(vec![dns], vec![udp])));
        assert_eq!(narrow(&set(vec![web], vec![udp]), &policy), None);
        let v6 = Selector::addresses("::".parse().unwrap(), "ff::".parse().unwrap());
        assert_eq!(narrow(&set(vec![any()], vec![v6]), &set(vec![any(), v6], vec![v6])), None);
    }

    /// RFC 7296 section 2.9: the first selectors are those of the packet that waits.
    #[test]
    fn the_first_choices_are_kept_where_there_is_no_room_for_all() {
        let host = |n: u8| range([10, 1, 0, 2 * n], [10, 1, 0, 2 * n]);
        let offer = set([7].into_iter().chain(0..7).map(host).collect(), vec![any()]);
        let narrowed = narrow(&offer, &set(vec![any()], vec![any()])).unwrap();
        assert_eq!(narrowed.local, [host(7), host(0), host(1), host(2)]);
        assert!(has_first(&narrowed, &offer));
        let other = narrow(&offer, &set(vec![host(1), host(2)], vec![any()])).unwrap();
        assert!(!has_first(&other, &offer));
    }

    #[test]
    fn a_wider_choice_than_the_offer_is_none() {
        let net = range([10, 1, 0, 0], [10, 1, 0, 255]);
        let wide = range([10, 1, 0, 0], [10, 1, 1, 255]);
        let both = |s| set(vec![s], vec![s]);
        assert_eq!(chosen(&both(net), &both(wide)), Some(both(net)));
        assert_eq!(chosen(&both(wide), &both(net)), None);
        assert_eq!(chosen(&set(vec![wide], vec![net]), &both(net)), None);
        assert_eq!(chosen(&set(vec![], vec![net]), &both(net)), None);
        // Any protocol is wider than TCP, any port than one, and UDP is another.
        let https = ports(net, TCP, 443, 443);
        assert_eq!(chosen(&both(https), &both(ports(net, TCP, 0, 65535))), Some(both(https)));
        for other in [net, ports(net, TCP, 0, 65535), ports(net, UDP, 443, 443), ports(net, TCP, 65535, 0)] {
            assert_eq!(chosen(&both(other), &both(https)), None);
        }
        assert_eq!(chosen(&set(vec![https], vec![ports(net, UDP, 0, 65535)]), &both(net)), None, "no packet");
    }

    /// A responder may answer with all that was offered, the triggering packet's among them.
    #[test]
    fn a_choice_that_repeats_itself_is_understood() {
        let nets: Vec<_> = (0..4).map(|n| range([10, 1, n, 0], [10, 1, n, 255])).collect();
        let packet = Selector::of_packet(IpAddr::from([10, 1, 2, 9]), TCP, Some(4711));
        let all = [&[packet], &nets[..]].concat();
        let offer = set(nets.clone(), vec![any()]);
        let found = chosen(&set(all, vec![any()]), &offer).unwrap().local;
        assert_eq!(found, [nets[2], nets[0], nets[1], nets[3]]);
    }

    #[test]
    fn no_more_selectors_come_out_than_the_dataplane_takes() {
        let hosts: Vec<_> = (0..9).map(|i| range([10, 1, 0, 2 * i], [10, 1, 0, 2 * i])).collect();
        let narrowed = narrow(&set(hosts, vec![any()]), &set(vec![any()], vec![any()])).unwrap();
        assert_eq!(narrowed.local.len(), SelectorSet::MAX);
    }

    fn selector() -> impl Strategy<Value = Selector> {
        let ports = prop_oneof![
            Just((0, 65535)),
            Just((65535, 0)),
            (0u16..4, 0u16..4).prop_map(|(a, b)| (a.min(b), a.max(b)))
        ];
        ((0u8..4, 0u8..4), 0u8..3, ports).prop_map(|((a, b), protocol, (start_port, end_port))| Selector {
            protocol,
            start_port,
            end_port,
            ..range([10, 0, 0, a.min(b)], [10, 0, 0, a.max(b)])
        })
    }

    fn sides(most: usize) -> impl Strategy<Value = SelectorSet> {
        let side = || proptest::collection::vec(selector(), 1..=most);
        (side(), side()).prop_map(|(local, remote)| SelectorSet { local, remote })
    }

    proptest! {
        /// What narrowing leaves is what a packet must match on both sides, as long as there is room.
        #[test]
        fn a_packet_matches_what_is_narrowed_if_and_only_if_it_matches_both(
            offer in sides(2), policy in sides(2),
            ends in (0u8..4, 0u8..4), protocol in 1u8..3, ports: Option<(u8, u8)>,
        ) {
            let ports = ports.map(|(a, b)| (u16::from(a % 4), u16::from(b % 4)));
            let matches = |set: &SelectorSet| {
                let end = |n| IpAddr::from([10, 0, 0, n]);
                set.matches((end(ends.0), ports.map(|p| p.0)), (end(ends.1), ports.map(|p| p.1)), protocol)
            };
            let narrowed = narrow(&offer, &policy);
            prop_assert_eq!(narrowed.as_ref().is_some_and(matches), matches(&offer) && matches(&policy));
            if let Some(narrowed) = narrowed {
                prop_assert!(policy.holds(&narrowed) && offer.holds(&narrowed));
                prop_assert_eq!(chosen(&narrowed, &offer), Some(narrowed.clone()));
                prop_assert_eq!(narrow(&narrowed, &policy), Some(narrowed), "a rekey changes nothing");
            }
        }
    }
}
