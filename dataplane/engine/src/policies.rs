//! The SPD: ordered policies (RFC 4301 section 4.4.1), those that protect with their outbound SAs.

use crate::index::Index;
use crate::pieces::Slots;
use crate::selectors::{Flow, Selectors};
use crate::{DropReason, Refused};
use spindle_abi::{PolicyAction, SelectorSet, Time};
use spindle_aead::prefetch;
use std::collections::{BTreeMap, BTreeSet};

/// For which packets an outbound SA is taken; of two of one rank, the later one is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Rank {
    /// Meant for another worker's packets: only where there is nothing else.
    Foreign,
    /// For all packets.
    Common,
    /// Meant for this worker's packets.
    Own,
}

/// An outbound SA of a policy.
#[derive(Clone, Copy)]
pub(crate) struct Candidate {
    pub(crate) index: u32,
    rank: Rank,
}

/// No SA has this index.
pub(crate) const NO_SA: u32 = u32::MAX;

/// Where a policy stands among the others: by priority, then in the order in which they were set.
type Order = (u32, u64);

/// What each packet looks at, in one cache line.
#[repr(align(64))]
pub(crate) struct Policy {
    selectors: Selectors,
    order: Order,
    /// The index of the last one of its SAs, which is taken before the others; or [`NO_SA`].
    pub(crate) latest: u32,
    pub(crate) id: u32,
    /// Packets that wait for an SA, at most.
    pub(crate) hold: u16,
    pub(crate) action: PolicyAction,
}

const _: () = assert!(size_of::<Policy>() == 64);

/// What few packets look at.
#[derive(Default)]
pub(crate) struct Behind {
    /// What the selectors were made from.
    set: SelectorSet,
    /// Its outbound SAs, by rank, the latest of each rank last.
    pub(crate) sas: Vec<Candidate>,
    pub(crate) acquired: Option<Time>,
}

/// How far the look-up of a packet's policy has come.
#[derive(Clone, Copy)]
pub(crate) enum Sought {
    /// Nothing is known.
    Anywhere,
    /// All policies that may match stand under this hash.
    Under(u64),
    /// No other policy than the one at this place can match.
    At(u32),
}

/// No command costs more with many of them than with few, but for a few comparisons; see [`Index`].
#[derive(Default)]
pub(crate) struct Policies {
    policies: Slots<Policy>,
    /// In the same places.
    behind: Slots<Behind>,
    index: Index,
    /// Where the policy with this id is.
    places: BTreeMap<u32, u32>,
    limit: usize,
    /// So many were set so far.
    turn: u64,
    /// SAs whose policy does not exist at present.
    orphans: BTreeMap<u32, Vec<Candidate>>,
    /// The places of those that do not protect.
    without_sas: BTreeSet<u32>,
}

impl Policies {
    pub(crate) fn new(limit: u32) -> Policies {
        Policies { limit: limit as usize, ..Policies::default() }
    }

    pub(crate) fn set(
        &mut self,
        id: u32,
        priority: u32,
        action: PolicyAction,
        set: SelectorSet,
        hold: u16,
    ) -> Result<(), Refused> {
        let selectors = Selectors::new(&set).ok_or(Refused::Full("selectors"))?;
        let old = self.places.get(&id).copied();
        if let Some(at) = old {
            let same = self.policies.at_mut(at);
            if (same.order.0, same.action, &self.behind.at(at).set) == (priority, action, &set) {
                same.hold = hold;
                return Ok(());
            }
        }
        if old.is_none() && self.places.len() >= self.limit {
            return Err(Refused::Full("policies"));
        }
        let (sas, acquired) = match old.map(|at| self.take(id, at)) {
            Some(old) => (old.sas, old.acquired),
            None => (self.orphans.remove(&id).unwrap_or_default(), None),
        };
        self.turn += 1;
        let order = (priority, self.turn);
        let latest = latest(&sas);
        let at = self.policies.put(Policy { selectors, order, latest, id, hold, action });
        let policies = &self.policies;
        self.index.insert(at, &set, |one, other| policies.at(one).order < policies.at(other).order);
        let beside = self.behind.put(Behind { set, sas, acquired });
        debug_assert_eq!(at, beside, "both are given back together");
        self.places.insert(id, at);
        if action != PolicyAction::Protect {
            self.without_sas.insert(at);
        }
        Ok(())
    }

    pub(crate) fn remove(&mut self, id: u32) {
        let Some(at) = self.places.get(&id).copied() else { return };
        let old = self.take(id, at);
        if !old.sas.is_empty() {
            self.orphans.insert(id, old.sas);
        }
    }

    /// Takes it out of its place.
    fn take(&mut self, id: u32, at: u32) -> Behind {
        let old = std::mem::take(self.behind.at_mut(at));
        self.index.remove(at, &old.set);
        self.places.remove(&id);
        self.without_sas.remove(&at);
        self.policies.give_back(at);
        self.behind.give_back(at);
        old
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = u32> {
        self.places.keys().copied()
    }

    fn change_sas(&mut self, id: u32, change: impl FnOnce(&mut Vec<Candidate>)) {
        match self.places.get(&id) {
            Some(at) => {
                let sas = &mut self.behind.at_mut(*at).sas;
                change(sas);
                self.policies.at_mut(*at).latest = latest(sas);
            }
            None => change(self.orphans.entry(id).or_default()),
        }
    }

    /// The outbound SA that is taken before the others.
    pub(crate) fn latest_sa(&self, id: u32) -> Option<u32> {
        let sas = self.places.get(&id).map(|at| &self.behind.at(*at).sas).or_else(|| self.orphans.get(&id));
        sas?.last().map(|sa| sa.index)
    }

    pub(crate) fn add_sa(&mut self, id: u32, index: u32, rank: Rank) {
        self.change_sas(id, |sas| {
            let at = sas.partition_point(|sa| sa.rank <= rank);
            sas.insert(at, Candidate { index, rank });
        });
    }

    pub(crate) fn remove_sa(&mut self, id: u32, index: u32) {
        self.change_sas(id, |sas| sas.retain(|sa| sa.index != index));
        if self.orphans.get(&id).is_some_and(Vec::is_empty) {
            self.orphans.remove(&id);
        }
    }

    /// The first of three steps over a burst: fetches where a packet's policy will be looked for.
    #[inline]
    pub(crate) fn seek(&self, flow: &Flow) -> Sought {
        self.index.prefetch(flow).map_or(Sought::Anywhere, Sought::Under)
    }

    /// The second one: fetches the policies that will be looked at.
    #[inline]
    pub(crate) fn approach(&self, flow: &Flow, sought: Sought) -> Sought {
        let near = |place| prefetch(self.policies.at(place));
        match sought {
            Sought::Under(hash) => match self.index.only(hash) {
                Some(place) => {
                    near(place);
                    Sought::At(place)
                }
                None => Sought::Anywhere,
            },
            _ if self.index.is_short() => Sought::Anywhere,
            _ => {
                self.index.visit(flow, |place| {
                    near(place);
                    false
                });
                Sought::Anywhere
            }
        }
    }

    /// And the third: as [`Policies::place`].
    #[inline]
    pub(crate) fn reach(&self, flow: &Flow, sought: Sought) -> Result<u32, DropReason> {
        match sought {
            Sought::At(place) if self.policies.at(place).selectors.matches_v4(flow) => Ok(place),
            _ => self.place(flow),
        }
    }

    /// The place of the first policy that matches; none is DISCARD.
    ///
    /// RFC 4301 section 7: what shows no ports does not match specific ones. But a fragment that may belong to what an
    /// earlier policy takes must not pass in clear, nor is it one that no policy knows: it is dropped for what it is.
    #[inline]
    pub(crate) fn find(&self, flow: &Flow) -> Result<Option<u32>, DropReason> {
        let mut first: Option<(Order, u32)> = None;
        let mut perhaps: Option<Order> = None;
        let hidden = flow.hides_ports();
        self.index.visit(flow, |place| {
            let policy = self.policies.at(place);
            if first.is_some_and(|(order, _)| policy.order >= order) {
                return false;
            }
            if policy.selectors.matches(flow) {
                first = Some((policy.order, place));
                return false;
            }
            let is_earlier = perhaps.is_none_or(|order| policy.order < order);
            if hidden && is_earlier && policy.selectors.matches_without_ports(flow) {
                perhaps = Some(policy.order);
            }
            true
        });
        let in_doubt = perhaps.is_some_and(|perhaps| {
            first.is_none_or(|(order, place)| {
                perhaps < order && self.policies.at(place).action == PolicyAction::Bypass
            })
        });
        if in_doubt { Err(DropReason::FragmentWithoutPorts) } else { Ok(first.map(|(_, place)| place)) }
    }

    /// As [`Policies::find`]; that none matches is a reason as well.
    #[inline]
    pub(crate) fn place(&self, flow: &Flow) -> Result<u32, DropReason> {
        self.find(flow)?.ok_or(DropReason::NoPolicy)
    }

    #[inline]
    pub(crate) fn at(&self, place: u32) -> &Policy {
        self.policies.at(place)
    }

    #[inline]
    pub(crate) fn action(&self, place: u32) -> PolicyAction {
        self.at(place).action
    }

    /// Of the policy at this place.
    pub(crate) fn behind(&self, place: u32) -> &Behind {
        self.behind.at(place)
    }

    pub(crate) fn behind_mut(&mut self, place: u32) -> &mut Behind {
        self.behind.at_mut(place)
    }

    /// May this packet, seen from here, come on an SA whose selectors it matches? RFC 4301 section 4.4.1: policies that
    /// stand before the SA's cut out of its selectors what they match.
    #[inline]
    pub(crate) fn admits(&self, flow: &Flow) -> Result<(), DropReason> {
        if self.without_sas.is_empty() { Ok(()) } else { self.admits_before(flow) }
    }

    #[inline(never)]
    fn admits_before(&self, flow: &Flow) -> Result<(), DropReason> {
        match self.find(flow)?.map(|place| self.action(place)) {
            Some(PolicyAction::Discard) => Err(DropReason::PolicyDiscard),
            Some(PolicyAction::Bypass) => Err(DropReason::SelectorMismatch),
            Some(PolicyAction::Protect) | None => Ok(()),
        }
    }

    /// The selectors of all BYPASS policies.
    pub(crate) fn in_clear(&self) -> impl Iterator<Item = &SelectorSet> {
        let passing = self.without_sas.iter().filter(|at| self.action(**at) == PolicyAction::Bypass);
        passing.map(|at| &self.behind.at(*at).set)
    }
}

fn latest(sas: &[Candidate]) -> u32 {
    sas.last().map_or(NO_SA, |sa| sa.index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use spindle_abi::{AddressRange, Selector};
    use std::net::IpAddr;

    fn address(six: bool, last: u16) -> IpAddr {
        if six {
            IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last])
        } else {
            [10, 0, (last >> 8) as u8, last as u8].into()
        }
    }

    /// Subnets, hosts, ranges and everything, of both versions.
    fn selector() -> impl Strategy<Value = Selector> {
        let range = prop_oneof![
            (0u16..40).prop_map(|a| (a, a)),
            (0u16..10).prop_map(|a| (4 * a, 4 * a + 3)),
            (0u16..40, 0u16..40).prop_map(|(a, b)| (a.min(b), a.max(b))),
            Just((0, 0xffff)),
        ];
        let ports = prop_oneof![3 => Just((0, 65535)), 1 => Just((65535, 0)), 2 => (0u16..4).prop_map(|p| (p, p + 1))];
        let protocol = prop_oneof![2 => Just(0), 2 => Just(6u8), 1 => Just(17), 1 => Just(47)];
        (range, any::<bool>(), protocol, ports).prop_map(|((a, b), six, protocol, (start_port, end_port))| {
            Selector {
                addresses: AddressRange { start: address(six, a), end: address(six, b) },
                protocol,
                start_port,
                end_port,
            }
        })
    }

    fn set() -> impl Strategy<Value = SelectorSet> {
        let side = || proptest::collection::vec(selector(), 1..=3);
        (side(), side()).prop_map(|(local, remote)| SelectorSet { local, remote })
    }

    #[derive(Clone, Debug)]
    enum Change {
        Set(u32, u32, PolicyAction, SelectorSet),
        Remove(u32),
    }

    fn change() -> impl Strategy<Value = Change> {
        let action =
            prop_oneof![Just(PolicyAction::Protect), Just(PolicyAction::Bypass), Just(PolicyAction::Discard)];
        prop_oneof![
            6 => (0u32..30, 0u32..9, action, set()).prop_map(|(id, priority, action, set)| Change::Set(id, priority, action, set)),
            1 => (0u32..30).prop_map(Change::Remove),
        ]
    }

    fn flow() -> impl Strategy<Value = Flow> {
        let protocol = prop_oneof![Just(6u8), Just(17), Just(47), Just(1)];
        ((0u16..42, 0u16..42), any::<bool>(), protocol, (0u16..5, 0u16..5), any::<bool>()).prop_map(
            |((a, b), six, protocol, ports, fragment)| {
                let has_ports = [6, 17].contains(&protocol);
                Flow {
                    source: address(six, a),
                    destination: address(six, b),
                    protocol,
                    ports: (has_ports && !fragment).then_some(ports),
                    hidden: has_ports && fragment,
                }
            },
        )
    }

    /// The SPD as RFC 4301 writes it: a list that is read from its head (section 4.4.1), each selector of a packet held
    /// against each of the entry (section 4.4.1.1), fragments as in section 7.
    #[derive(Default)]
    struct Plain(Vec<(u32, u32, PolicyAction, SelectorSet)>);

    impl Plain {
        fn change(&mut self, change: &Change) {
            match change {
                Change::Remove(id) => self.0.retain(|entry| entry.0 != *id),
                Change::Set(id, priority, action, set) => {
                    let same = self.0.iter().any(|e| (e.0, e.1, e.2, &e.3) == (*id, *priority, *action, set));
                    if !same {
                        self.0.retain(|entry| entry.0 != *id);
                        self.0.push((*id, *priority, *action, set.clone()));
                        self.0.sort_by_key(|entry| entry.1);
                    }
                }
            }
        }

        fn decide(&self, flow: &Flow) -> Result<Option<u32>, DropReason> {
            let matches = |set: &SelectorSet| {
                let (source, destination) = (flow.ports.map(|p| p.0), flow.ports.map(|p| p.1));
                set.matches((flow.source, source), (flow.destination, destination), flow.protocol)
            };
            let any_port = |side: &[Selector]| {
                side.iter().map(|s| Selector { start_port: 0, end_port: 65535, ..*s }).collect()
            };
            let mut in_doubt = false;
            for (id, _, action, set) in &self.0 {
                if matches(set) {
                    let leaks = in_doubt && *action == PolicyAction::Bypass;
                    return if leaks { Err(DropReason::FragmentWithoutPorts) } else { Ok(Some(*id)) };
                }
                let without = SelectorSet { local: any_port(&set.local), remote: any_port(&set.remote) };
                in_doubt |= flow.hidden && matches(&without);
            }
            if in_doubt { Err(DropReason::FragmentWithoutPorts) } else { Ok(None) }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn what_is_found_is_what_the_rfc_s_list_finds(
            changes in proptest::collection::vec(change(), 1..60),
            flows in proptest::collection::vec(flow(), 1..60),
        ) {
            let (mut policies, mut plain) = (Policies::new(100), Plain::default());
            for change in &changes {
                plain.change(change);
                match change {
                    Change::Remove(id) => policies.remove(*id),
                    Change::Set(id, priority, action, set) => {
                        policies.set(*id, *priority, *action, set.clone(), 0).unwrap();
                    }
                }
            }
            for flow in &flows {
                let sought = policies.approach(flow, policies.seek(flow));
                prop_assert_eq!(policies.reach(flow, sought), policies.place(flow));
                let found = policies.find(flow).map(|place| place.map(|place| policies.at(place).id));
                prop_assert_eq!(found, plain.decide(flow), "{:?}", flow);
            }
            let without_sas = plain.0.iter().filter(|entry| entry.2 != PolicyAction::Protect).count();
            prop_assert_eq!(policies.without_sas.len(), without_sas);
        }
    }

    /// Of ten thousand policies between pairs of hosts, one is looked at.
    #[test]
    fn a_look_up_does_not_go_through_all_policies() {
        let mut policies = Policies::new(20_000);
        let host = |net: u8, n: u32| IpAddr::from(((u32::from(net) << 24) | n).to_be_bytes());
        for n in 0..10_000 {
            let end = |address| vec![Selector::addresses(address, address)];
            let set = SelectorSet { local: end(host(10, n)), remote: end(host(11, n)) };
            policies.set(n, n, PolicyAction::Protect, set, 0).unwrap();
        }
        for n in [0, 4711, 9_999] {
            let (source, destination) = (host(10, n), host(11, n));
            let flow = Flow { source, destination, protocol: 6, ports: Some((1, 2)), hidden: false };
            let mut looked_at = 0;
            policies.index.visit(&flow, |place| {
                assert_eq!(place, n);
                looked_at += 1;
                true
            });
            assert_eq!((looked_at, policies.find(&flow)), (1, Ok(Some(n))));
        }
    }
}
