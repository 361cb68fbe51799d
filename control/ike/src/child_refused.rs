//! What becomes of a Child SA that we asked for and that the peer refuses (RFC 7296 section 1.3, 2.25; RFC 9611 section 6).

use crate::api::*;
use crate::connect::backoff;
use crate::create_child::{ChildOffer, Wish};
use crate::crypto::Group;
use crate::endpoint::{Endpoint, find_notify};
use crate::exchange::Task;
use crate::init::wanted_group;
use crate::resources::Share;
use crate::sa::{ChildState, IkeSa, again};
use crate::wire::{Payload, notify};
use spindle_abi::Time;
use std::time::Duration;

impl Endpoint {
    /// RFC 7296 section 2.25, 1.3: what the peer's error means for our wish.
    pub(crate) fn child_refused(
        &mut self,
        now: Time,
        sa: &mut IkeSa,
        offer: &ChildOffer,
        error: u16,
        payloads: &[Payload],
    ) {
        let name = offer.profile.name.clone();
        if offer.collision.is_some() {
            if let Some(old) = offer.replaces.filter(|_| offer.lost) {
                sa.enqueue(now, Task::DeleteChild(old));
            }
            return self.yield_to_peers_rekey(sa, offer);
        }
        let task = match offer.replaces {
            Some(old) if offer.lost => Task::ReplaceChild(old),
            Some(old) => Task::RekeyChild(old),
            None if offer.worker.is_some() => Task::CreateForWorkers(name.clone()),
            None => Task::CreateChild(name.clone()),
        };
        let anew = |share| match share {
            Share::Worker(_) => Task::CreateForWorkers(name.clone()),
            _ => Task::CreateChild(name.clone()),
        };
        match error {
            notify::TEMPORARY_FAILURE => self.try_later(now, sa, task),
            // RFC 7296 section 2.25: the Child SA is silently deleted and made anew; unless its end is known here, by
            // a rekey or Delete of the peer's that crossed ours (section 2.8.1).
            notify::CHILD_SA_NOT_FOUND => {
                let Some(old) = offer.replaces.and_then(|old| sa.child(old)) else { return };
                if old.state == ChildState::Installed {
                    let (old, task) = (old.id, anew(old.share));
                    self.remove_child(now, sa, old, false);
                    sa.enqueue(now, task);
                }
            }
            error => {
                if let Some(group) = self.other_group(sa, offer, error, payloads) {
                    sa.ke_retries += 1;
                    let ChildOffer { replaces, lost, worker, .. } = *offer;
                    let wish = Wish {
                        replaces,
                        lost,
                        worker,
                        group: Some(group),
                        ..Wish::new(offer.profile.clone())
                    };
                    return self.request_child(now, sa, wish);
                }
                // RFC 9611 section 6: TS_MAX_QUEUE, as a rule. There are enough of them.
                if offer.worker.is_some() {
                    return tracing::info!(
                        connection = sa.connection.name,
                        name,
                        error,
                        "no more Child SAs for workers"
                    );
                }
                tracing::warn!(connection = sa.connection.name, name, error, "the peer refuses the Child SA");
                let old = offer.replaces.and_then(|old| sa.child(old)).map(|old| (old.id, old.share));
                match old {
                    // RFC 7296 section 4: an implementation MUST be capable of deleting the old SA and creating a
                    // new one.
                    Some((old, share)) if error == notify::NO_ADDITIONAL_SAS => {
                        sa.enqueue(now, Task::DeleteChild(old));
                        sa.enqueue(now, anew(share));
                    }
                    // Tried again well before the sequence numbers end.
                    Some((old, _)) => {
                        let later = now.after(again(offer.profile.rekey_time));
                        sa.child(old).into_iter().for_each(|old| old.rekey_at = Some(later));
                    }
                    // The peer has one Child SA per IKE SA, and that is gone.
                    None if error == notify::NO_ADDITIONAL_SAS && sa.children.is_empty() => {
                        self.close(now, sa, Authority::ProtocolError(Evidence(())));
                    }
                    None => self.make_child_later(now, sa, &name),
                }
            }
        }
    }

    /// RFC 7296 section 1.3: the group that the peer wants instead, if we offered it and it may help.
    fn other_group(&self, sa: &IkeSa, offer: &ChildOffer, error: u16, payloads: &[Payload]) -> Option<Group> {
        let invalid = find_notify(payloads, error).filter(|_| error == notify::INVALID_KE_PAYLOAD);
        let wanted = invalid.and_then(wanted_group).filter(|_| sa.ke_retries < 3);
        let offered = |g: &Group| offer.profile.proposals.iter().any(|p| p.groups.contains(g));
        let other = |g: &Group| offer.key.as_ref().is_some_and(|k| k.group() != *g);
        wanted.filter(offered).filter(other)
    }

    /// The peer refused or deleted this Child SA. If it is to be up always it is asked for again, ever more seldom;
    /// packets that want it must wait as long.
    pub(crate) fn make_child_later(&mut self, now: Time, sa: &mut IkeSa, name: &str) {
        let failures = sa.backoff.get(name).map_or(0, |(failures, _)| failures.saturating_add(1));
        let jitter = Duration::from_millis(u64::from(self.random_u32() % 250));
        let at = now.after(backoff(failures) + jitter);
        sa.backoff.insert(name.to_owned(), (failures, at));
        if sa.connection.started().contains(name) {
            sa.enqueue(at, Task::CreateChild(name.to_owned()));
        }
    }
}
