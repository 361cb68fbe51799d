//! The ordered policies of the outbound direction (RFC 4301 section 4.4.1), each with its outbound SAs.

use crate::Refused;
use crate::selectors::{Flow, Selectors};
use spindle_abi::{PolicyAction, Time};
use std::collections::HashMap;

pub(crate) struct Policy {
    pub(crate) id: u32,
    priority: u32,
    pub(crate) action: PolicyAction,
    selectors: Selectors,
    /// Indexes of its outbound SAs, the latest installed last.
    pub(crate) sas: Vec<u32>,
    pub(crate) acquired: Option<Time>,
    /// Packets that wait for an SA, at most.
    pub(crate) hold: u16,
}

pub(crate) struct Policies {
    /// By priority, then in the order in which they were set.
    ordered: Vec<Policy>,
    limit: usize,
    /// SAs whose policy does not exist at present.
    orphans: HashMap<u32, Vec<u32>>,
}

impl Policies {
    pub(crate) fn new(limit: u32) -> Policies {
        Policies { ordered: Vec::new(), limit: limit as usize, orphans: HashMap::new() }
    }

    pub(crate) fn set(
        &mut self,
        id: u32,
        priority: u32,
        action: PolicyAction,
        selectors: Selectors,
        hold: u16,
    ) -> Result<(), Refused> {
        let old = self.ordered.iter().position(|p| p.id == id).map(|at| self.ordered.remove(at));
        if old.is_none() && self.ordered.len() >= self.limit {
            return Err(Refused::Full("policies"));
        }
        let (sas, acquired) = match old {
            Some(old) => (old.sas, old.acquired),
            None => (self.orphans.remove(&id).unwrap_or_default(), None),
        };
        let at = self.ordered.partition_point(|p| p.priority <= priority);
        self.ordered.insert(at, Policy { id, priority, action, selectors, sas, acquired, hold });
        Ok(())
    }

    pub(crate) fn remove(&mut self, id: u32) {
        let Some(at) = self.ordered.iter().position(|p| p.id == id) else { return };
        let policy = self.ordered.remove(at);
        if !policy.sas.is_empty() {
            self.orphans.insert(id, policy.sas);
        }
    }

    fn sas(&mut self, id: u32) -> &mut Vec<u32> {
        match self.ordered.iter().position(|p| p.id == id) {
            Some(at) => &mut self.ordered[at].sas,
            None => self.orphans.entry(id).or_default(),
        }
    }

    pub(crate) fn add_sa(&mut self, id: u32, index: u32) {
        self.sas(id).push(index);
    }

    pub(crate) fn remove_sa(&mut self, id: u32, index: u32) {
        self.sas(id).retain(|other| *other != index);
        if self.orphans.get(&id).is_some_and(Vec::is_empty) {
            self.orphans.remove(&id);
        }
    }

    /// The first policy that matches; none is DISCARD.
    #[inline]
    pub(crate) fn find(&mut self, flow: &Flow) -> Option<&mut Policy> {
        self.ordered.iter_mut().find(|policy| policy.selectors.matches(flow))
    }
}
