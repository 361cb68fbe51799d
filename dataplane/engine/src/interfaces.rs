//! Virtual interfaces: the host's own stack as the protected side, beside the inside port or in its place.
//!
//! What the host routes into one is held against the policies of that interface alone, so two peers may both have
//! 0.0.0.0/0, and the route chooses between them. What comes on an SA of such a policy goes to the host by the same
//! interface. The host is the router there: it counts the hops, and has multicast.

use crate::policies::Policies;
use crate::{ArrayVec, BURST, Counter, Engine, Frame, Output, Refused};
use spindle_abi::{MAX_INTERFACES, Time};
use std::collections::BTreeMap;

/// The inside itself, which is a virtual interface too if [`crate::EngineConfig::inside_is_host`].
pub(crate) const INSIDE: u16 = 0;

/// Which policy is of which interface; those of virtual interfaces, in their order.
#[derive(Default)]
pub(crate) struct Interfaces {
    of: BTreeMap<u32, u16>,
    policies: Vec<Policies>,
}

impl Interfaces {
    /// The interface of a policy.
    pub(crate) fn of(&self, policy: u32) -> u16 {
        self.of.get(&policy).copied().unwrap_or(INSIDE)
    }

    /// The policies of a virtual interface, if any was bound to it.
    #[inline]
    pub(crate) fn policies(&self, interface: u16) -> Option<&Policies> {
        self.policies.get(usize::from(interface).checked_sub(1)?)
    }

    pub(crate) fn policies_mut(&mut self, interface: u16) -> Option<&mut Policies> {
        self.policies.get_mut(usize::from(interface).checked_sub(1)?)
    }
}

impl Engine {
    pub(crate) fn bind_policy(&mut self, id: u32, interface: u16) -> Result<(), Refused> {
        if !(1..=MAX_INTERFACES).contains(&interface) {
            return Err(Refused::Impossible("interface"));
        }
        let limit = self.max_policies;
        while self.interfaces.policies.len() < usize::from(interface) {
            self.interfaces.policies.push(Policies::new(limit));
        }
        match self.interfaces.of.insert(id, interface) {
            Some(before) if before != interface => {
                self.interfaces.of.insert(id, before);
                Err(Refused::Impossible("interface: the policy is of another one"))
            }
            _ => Ok(()),
        }
    }

    /// The policies that packets from this interface are held against; `None` if none was bound to it.
    #[inline]
    pub(crate) fn policies_of(&self, interface: u16) -> Option<&Policies> {
        if interface == INSIDE { Some(&self.policies) } else { self.interfaces.policies(interface) }
    }

    /// The policies among which this one is.
    pub(crate) fn policies_with(&mut self, policy: u32) -> &mut Policies {
        match self.interfaces.of(policy) {
            INSIDE => &mut self.policies,
            // `bind_policy` has made them.
            interface => &mut self.interfaces.policies[usize::from(interface) - 1],
        }
    }

    /// All policies.
    pub(crate) fn policy_ids(&self) -> impl Iterator<Item = u32> {
        std::iter::once(&self.policies).chain(&self.interfaces.policies).flat_map(Policies::ids)
    }

    /// As [`Engine::process`], for packets that the host has routed into a virtual interface; each behind 14 octets
    /// for an Ethernet header. Interface 0 is the inside.
    pub fn process_from_host<F: Frame>(
        &mut self,
        now: Time,
        interface: u16,
        burst: &mut ArrayVec<F, BURST>,
        out: &mut impl Output<F>,
    ) {
        self.counters.add(Counter::ReceivedInside, burst.len() as u64);
        self.process_inside(now, interface, burst, out);
    }

    /// Is the host the router behind this interface?
    #[inline]
    pub(crate) fn is_host(&self, interface: u16) -> bool {
        interface != INSIDE || self.inside_is_host
    }

    #[inline]
    pub(crate) fn send_to_host<F: Frame>(&mut self, interface: u16, frame: F, out: &mut impl Output<F>) {
        self.counters.add(Counter::DeliveredInside, 1);
        out.to_host(interface, frame);
    }
}
