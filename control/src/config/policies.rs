//! `[policies.*]`: what passes in clear (BYPASS) and what is dropped (DISCARD). And the one order of all policies, these
//! and those of the children (PROTECT): that of the file (RFC 4301 section 4.4.1).

use super::order::Earlier;
use super::read::{Section, Value};
use super::{Result, Settings, ports};
use spindle_abi::{PolicyAction, Selector, SelectorSet};
use spindle_recovery::api::Policy;
use std::collections::BTreeMap;

const MODES: &[(&str, PolicyAction)] = &[("pass", PolicyAction::Bypass), ("drop", PolicyAction::Discard)];

/// One policy.
pub(super) fn policy(name: &str, value: &Value<'_>, places: &mut Places) -> Result<Policy> {
    let section = value.section()?;
    super::connection::check_name(name, value)?;
    let mode = section.required("mode", "\"pass\"` (in clear) or `mode = \"drop\"")?;
    let action = mode.one_of(MODES)?;
    let selectors = selectors(&section)?;
    section.finish()?;
    Ok(Policy { name: name.into(), id: places.note(value), action, selectors })
}

/// `local_ts` and `remote_ts`.
pub(super) fn selectors(section: &Section<'_>) -> Result<SelectorSet> {
    let remote_ts = section.required("remote_ts", "[\"10.1.0.0/24\"]")?;
    let local_ts = section.required("local_ts", "[\"10.2.0.0/24\"]")?;
    let set = SelectorSet {
        local: super::connection::selectors(&local_ts)?,
        remote: super::connection::selectors(&remote_ts)?,
    };
    let all = |set: &SelectorSet, of_local: bool| {
        let pairs = |one: &Selector| match of_local {
            true => SelectorSet { local: vec![*one], remote: set.remote.clone() },
            false => SelectorSet { local: set.local.clone(), remote: vec![*one] },
        };
        let side = if of_local { &set.local } else { &set.remote };
        side.iter().find(|one| pairs(one).pairs().next().is_none()).copied()
    };
    for (value, of_local, other) in [(&local_ts, true, "remote_ts"), (&remote_ts, false, "local_ts")] {
        if let Some(alone) = all(&set, of_local) {
            let shown = format!("{}-{}{}", alone.addresses.start, alone.addresses.end, ports::show(&alone));
            return Err(value.error(format!(
                "has {shown}, and {other} nothing of its protocol and IP version, so it matches no packet; add it \
                 there or take it out here"
            )));
        }
    }
    Ok(set)
}

/// Where in the file policies stand, those of children too: by this the first one is found that matches a packet.
#[derive(Default)]
pub(super) struct Places(Vec<usize>);

impl Places {
    /// Notes one; its number until all are known.
    pub(super) fn note(&mut self, value: &Value<'_>) -> u32 {
        self.0.push(value.place());
        self.0.len() as u32 - 1
    }

    /// The ids of all, from 1, by these numbers: the lower one comes first.
    pub(super) fn ids(&self) -> Vec<u32> {
        let mut order: Vec<usize> = (0..self.0.len()).collect();
        order.sort_by_key(|number| self.0[*number]);
        let mut ids = vec![0; order.len()];
        for (id, number) in (1..).zip(order) {
            ids[number] = id;
        }
        ids
    }
}

/// One that stands behind others which match all of its packets would never be asked. (Virtual interfaces have policies of
/// their own each.)
pub(super) fn check_order(settings: &Settings) -> Result<()> {
    let children = settings.connections.iter().flat_map(|connection| {
        let key = |name: &str| format!("connections.{}.children.{name}", connection.name);
        connection.children.iter().map(move |c| (c.policy, c.interface, key(&c.name), &c.selectors))
    });
    let others = settings.policies.iter().map(|p| (p.id, 0, format!("policies.{}", p.name), &p.selectors));
    let mut all: Vec<_> = children.chain(others).collect();
    all.sort_by_key(|(id, ..)| *id);
    let mut by_interface = BTreeMap::<u16, Earlier>::new();
    for (_, interface, key, selectors) in all {
        let earlier = by_interface.entry(interface).or_default();
        if let Some(holding) = earlier.holding(selectors) {
            let which = if holding.len() == 1 { "the other one" } else { "one of them" };
            let problem = format!(
                "stands behind {}, whose local_ts and remote_ts hold all of its own, so no packet would ever come \
                 here; put it first, or narrow {which}",
                holding.join(" and ")
            );
            return Err(settings.error(&key, problem));
        }
        earlier.push(key, selectors);
    }
    Ok(())
}
