//! Traffic selectors: narrowing by the responder and its check by the initiator (RFC 7296 section 2.9).

use spindle_abi::{Selector, SelectorSet};

/// Does every packet that `inner` matches match `outer` as well?
pub(crate) fn within(inner: &Selector, outer: &Selector) -> bool {
    inner.intersection(outer) == Some(*inner)
}

/// The part of what the peer offers that policy allows; `None` if a side has nothing in common (TS_UNACCEPTABLE).
/// At most [`SelectorSet::MAX`] selectors a side: a subset is allowed, a superset is not.
pub(crate) fn narrow(offer: &SelectorSet, policy: &SelectorSet) -> Option<SelectorSet> {
    let set = SelectorSet {
        local: common(&offer.local, &policy.local),
        remote: common(&offer.remote, &policy.remote),
    };
    (!set.local.is_empty() && !set.remote.is_empty()).then_some(set)
}

/// RFC 7296 section 2.9: where the subset is one that the initiator's first selector (the packet that triggered the
/// exchange) belongs to, it is to be included: offers are taken in their order.
fn common(offer: &[Selector], policy: &[Selector]) -> Vec<Selector> {
    let mut found: Vec<Selector> = Vec::new();
    for both in offer.iter().flat_map(|o| policy.iter().filter_map(|p| o.intersection(p))) {
        if found.iter().any(|f| within(&both, f)) {
            continue;
        }
        found.retain(|f| !within(f, &both));
        if found.len() < SelectorSet::MAX {
            found.push(both);
        }
    }
    found
}

/// Is what the responder chose a subset of our offer? (RFC 7296 section 2.9: it narrows, never widens.)
pub(crate) fn is_subset(chosen: &SelectorSet, offer: &SelectorSet) -> bool {
    let side = |chosen: &[Selector], offer: &[Selector]| {
        !chosen.is_empty()
            && chosen.len() <= SelectorSet::MAX
            && chosen.iter().all(|c| offer.iter().any(|o| within(c, o)))
    };
    side(&chosen.local, &offer.local) && side(&chosen.remote, &offer.remote)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    fn range(start: [u8; 4], end: [u8; 4]) -> Selector {
        Selector::addresses(IpAddr::from(start), IpAddr::from(end))
    }

    fn set(local: Vec<Selector>, remote: Vec<Selector>) -> SelectorSet {
        SelectorSet { local, remote }
    }

    /// RFC 7296 section 2.9.
    #[test]
    fn the_responder_narrows_to_what_both_allow() {
        let net = range([10, 1, 0, 0], [10, 1, 0, 255]);
        let any = range([0, 0, 0, 0], [255, 255, 255, 255]);
        let policy = set(vec![net], vec![any]);
        assert_eq!(narrow(&set(vec![any], vec![any]), &policy), Some(policy.clone()));
        let host = range([10, 1, 0, 7], [10, 1, 0, 7]);
        assert_eq!(narrow(&set(vec![host, net], vec![any]), &policy), Some(policy.clone()));
        assert_eq!(narrow(&set(vec![range([10, 2, 0, 0], [10, 2, 0, 9])], vec![any]), &policy), None);
    }

    #[test]
    fn a_wider_choice_than_the_offer_is_no_subset() {
        let net = range([10, 1, 0, 0], [10, 1, 0, 255]);
        let wide = range([10, 1, 0, 0], [10, 1, 1, 255]);
        assert!(is_subset(&set(vec![net], vec![net]), &set(vec![wide], vec![wide])));
        assert!(!is_subset(&set(vec![wide], vec![net]), &set(vec![net], vec![net])));
        assert!(!is_subset(&set(vec![], vec![net]), &set(vec![net], vec![net])));
    }

    #[test]
    fn no_more_selectors_come_out_than_the_dataplane_takes() {
        let hosts: Vec<_> = (0..9).map(|i| range([10, 1, 0, 2 * i], [10, 1, 0, 2 * i])).collect();
        let any = range([0, 0, 0, 0], [255, 255, 255, 255]);
        let narrowed = narrow(&set(hosts, vec![any]), &set(vec![any], vec![any])).unwrap();
        assert_eq!(narrowed.local.len(), SelectorSet::MAX);
    }
}
