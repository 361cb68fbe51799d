//! Several Child SAs with the same selectors, one for each worker (RFC 9611): so one peer can use all of them. The first one
//! serves every worker that has none of its own. Beside it whoever initiated it makes one for each of its workers, one
//! exchange after the other; the other side gives each to the worker that has fewest, and makes what is then still missing
//! to its own. A peer that does not answer SA_RESOURCE_INFO has but the first.

use crate::api::*;
use crate::connect::ChildProfile;
use crate::create_child::{ChildOffer, Wish};
use crate::endpoint::{Endpoint, find_notify, notification};
use crate::exchange::Task;
use crate::kept::field::variants;
use crate::sa::{ChildSa, ChildState, IkeSa};
use crate::wire::{Payload, notify};
use spindle_abi::{Resource, SelectorSet, Spi, Time};
use std::time::Duration;

/// Child SAs for workers beside a first one that a peer may make, at most: RFC 9611 section 6 wants twice the workers, and
/// the peer may have as many as a dataplane can have here.
const MOST: usize = 32;
/// Whoever did not initiate the first one waits as long for the initiator's.
const THEIR_TURN: Duration = Duration::from_secs(2);

/// What a Child SA is among those with its selectors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Share {
    /// The only one, as far as both sides have said.
    Alone,
    /// There may be more; this one serves all workers that have none.
    First,
    /// For this worker.
    Worker(u16),
}

variants!(Share { 0 = Alone, 1 = First, 2 = Worker(worker) });

impl Share {
    /// Inbound SPIs are random, so what is for all workers is spread among them. Both SAs of a pair belong to one.
    pub(crate) fn resource(self, inbound: Spi) -> Resource {
        match self {
            Share::Alone | Share::First => Resource { worker: inbound.0 as u16, dedicated: false },
            Share::Worker(worker) => Resource { worker, dedicated: true },
        }
    }

    /// RFC 9611 section 3: a responder that is willing answers with SA_RESOURCE_INFO.
    pub(crate) fn answer(self) -> Option<Payload> {
        (self != Share::Alone).then(info)
    }
}

/// RFC 9611 section 5.1: the data is optional, and SHOULD NOT tell of the hardware (section 7).
fn info() -> Payload {
    notification(notify::SA_RESOURCE_INFO, Vec::new())
}

impl ChildOffer {
    /// RFC 9611 section 3: the first Child SA and each further one bring SA_RESOURCE_INFO; a rekey need not.
    pub(crate) fn resource_info(&self) -> Option<Payload> {
        (self.profile.resources > 0 && self.replaces.is_none()).then(info)
    }

    /// What the peer's answer makes of it.
    pub(crate) fn agreed_share(&self, answer: &[Payload]) -> Share {
        let willing = self.profile.resources > 0 && find_notify(answer, notify::SA_RESOURCE_INFO).is_some();
        match self.worker {
            Some(worker) => Share::Worker(worker),
            None if willing => Share::First,
            None => Share::Alone,
        }
    }
}

/// Those of a child that belong together.
fn group<'a>(sa: &'a IkeSa, name: &'a str) -> impl Iterator<Item = &'a ChildSa> {
    let installed = |c: &&ChildSa| c.state == ChildState::Installed && c.share != Share::Alone;
    sa.children.iter().filter(move |c| c.config.name == name).filter(installed)
}

/// How many of a child's a worker has of its own.
fn of_worker(sa: &IkeSa, name: &str, worker: u16) -> usize {
    group(sa, name).filter(|c| c.share == Share::Worker(worker)).count()
}

/// The peer asks for a Child SA that replaces none: what it is to be, or the error.
pub(crate) fn share_of_peers(
    sa: &IkeSa,
    profile: &ChildProfile,
    selectors: &SelectorSet,
    request: &[Payload],
) -> Result<Share, u16> {
    if profile.resources == 0 || find_notify(request, notify::SA_RESOURCE_INFO).is_none() {
        return Ok(Share::Alone);
    }
    let mut there = group(sa, &profile.name).filter(|c| c.selectors == *selectors).peekable();
    if there.peek().is_none() {
        return Ok(Share::First);
    }
    // RFC 9611 section 6: not NO_ADDITIONAL_SAS, which would mean all selectors.
    if there.filter(|c| matches!(c.share, Share::Worker(_))).count() >= MOST {
        return Err(notify::TS_MAX_QUEUE);
    }
    // RFC 9611 section 4: on the one with the least of them.
    let fewest = (0..profile.resources).min_by_key(|worker| of_worker(sa, &profile.name, *worker));
    Ok(Share::Worker(fewest.unwrap_or_default()))
}

/// What an IKE SA answers that has as many Child SAs as it may have.
pub(crate) fn refusal(sa: &IkeSa, request: &[Payload]) -> u16 {
    let several = sa.children.iter().any(|c| c.share != Share::Alone);
    let further = several && find_notify(request, notify::SA_RESOURCE_INFO).is_some();
    if further { notify::TS_MAX_QUEUE } else { notify::NO_ADDITIONAL_SAS }
}

impl Endpoint {
    /// Makes one for the first worker that has none; its answer leads to the next.
    pub(crate) fn create_for_workers(&mut self, now: Time, sa: &mut IkeSa, name: &str) {
        let Some(profile) = sa.connection.child(name).filter(|profile| profile.resources > 1) else { return };
        if group(sa, name).next().is_none() {
            return;
        }
        let missing = (0..profile.resources).find(|worker| of_worker(sa, name, *worker) == 0);
        if let Some(worker) = missing {
            self.request_child(now, sa, Wish { worker: Some(worker), ..Wish::new(profile) });
        }
    }

    /// A Child SA of ours was made: those for workers follow.
    pub(crate) fn continue_for_workers(&mut self, now: Time, sa: &mut IkeSa, new: ChildSaId, share: Share) {
        let Some(child) = sa.child(new).filter(|_| share != Share::Alone) else { return };
        let (name, selectors) = (child.config.name.clone(), child.selectors.clone());
        // RFC 9611 section 3: they MUST be of identical properties. Transforms are chosen alike each time.
        let first = group(sa, &name).find(|c| c.share == Share::First);
        if matches!(share, Share::Worker(_)) && first.is_some_and(|first| first.selectors != selectors) {
            return sa.enqueue(now, Task::DeleteChild(new));
        }
        sa.enqueue(now, Task::CreateForWorkers(name));
    }

    /// The peer made a Child SA: what is missing when it has had time for its own, we make.
    pub(crate) fn complete_for_workers(&mut self, now: Time, sa: &mut IkeSa, new: ChildSaId) {
        if let Some(first) = sa.child(new).filter(|c| c.share == Share::First && c.replaces.is_none()) {
            let name = first.config.name.clone();
            sa.enqueue(now.after(THEIR_TURN), Task::CreateForWorkers(name));
        }
    }
}
