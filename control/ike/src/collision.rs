//! Rekeys that cross (RFC 7296 section 2.8.1, 2.8.2, 2.25): both sides rekey the same SA at once.
//!
//! A Child SA, C, seen from A, whose exchange makes D; B's makes E:
//!
//! ```text
//!   A                                        B
//!   rekey C (Ni1)  ------\        /--------- rekey C (Ni2)
//!                         \      /
//!   answer (Nr2), E  <-----------/           rekey arrives: answer (Nr1), D
//!   D arrives  <-------------------------    E arrives
//!   lowest of Ni1, Nr1 < lowest of Ni2, Nr2: D is redundant
//!   Delete D   ------------------------->
//!              <-------------------------    Delete C
//!   E remains
//! ```
//!
//! Whoever made the SA with the lowest of the four nonces deletes it; whoever made the other one deletes C. Should B
//! have finished before A's request arrives, no redundant SA is made: B answers CHILD_SA_NOT_FOUND or
//! TEMPORARY_FAILURE, and A, which saw B's rekey, lets its own go. The same holds for IKE SAs, with TEMPORARY_FAILURE.

use crate::api::*;
use crate::child::Sends;
use crate::create_child::ChildOffer;
use crate::endpoint::Endpoint;
use crate::exchange::{Purpose, Task};
use crate::kept::field::fields;
use crate::sa::{ChildState, IkeSa, State};
use crate::wire::Payload;
use spindle_abi::Time;
use std::time::Duration;

/// A rekey of a Child SA by the peer that crossed our own, and that we have answered.
pub(crate) struct ChildCollision {
    /// The Child SA that the peer created.
    pub(crate) theirs: ChildSaId,
    /// The lower nonce of that exchange.
    pub(crate) lowest: Vec<u8>,
}

fields!(ChildCollision { theirs, lowest });

/// An IKE rekey by the peer that crossed our own, and that we have answered.
pub(crate) struct IkeCollision {
    /// The IKE SA that the peer created.
    pub(crate) theirs: IkeSaId,
    /// The lower nonce of that exchange.
    pub(crate) lowest: Vec<u8>,
}

fields!(IkeCollision { theirs, lowest });

/// An SA that its peer should delete is deleted by us after this long.
pub(crate) const ABANDONED: Duration = Duration::from_secs(30);
/// After IKE rekeys that crossed, the old IKE SA stays as long, unless the peer deletes its redundant one before. RFC
/// 7296 section 2.25.2: a Delete that overtook our response would make the peer forget its rekey, and that one would
/// be left to us alone.
const CROSSED: Duration = Duration::from_secs(5);

impl Endpoint {
    /// The peer rekeyed one of our Child SAs. RFC 7296 section 2.25.1: if we are rekeying it too, the redundant one
    /// is found when our response arrives.
    pub(crate) fn note_child_rekeyed_by_peer(
        &mut self,
        now: Time,
        sa: &mut IkeSa,
        old: ChildSaId,
        theirs: ChildSaId,
        lowest: Vec<u8>,
    ) {
        let ours = sa.outstanding.as_mut().and_then(|o| match &mut o.purpose {
            Purpose::CreateChild(offer) if offer.replaces == Some(old) => Some(offer),
            _ => None,
        });
        let crossed = ours.is_some();
        if let Some(offer) = ours {
            offer.collision = Some(ChildCollision { theirs, lowest });
        }
        sa.queue.retain(|(_, task)| *task != Task::RekeyChild(old));
        if let Some(child) = sa.child(old) {
            // Deleted by us then, should the peer forget to.
            child.rekey_at = Some(now.after(ABANDONED));
            if !crossed {
                child.state = ChildState::Rekeyed;
            }
        }
    }

    /// Our rekey failed, the peer's stands.
    pub(crate) fn yield_to_peers_rekey(&mut self, sa: &mut IkeSa, offer: &ChildOffer) {
        if let Some(old) = offer.replaces.and_then(|old| sa.child(old)) {
            old.state = ChildState::Rekeyed;
        }
    }

    /// Our rekey of a Child SA is answered.
    pub(crate) fn complete_child_rekey(
        &mut self,
        now: Time,
        sa: &mut IkeSa,
        old: ChildSaId,
        mut offer: ChildOffer,
        payloads: &[Payload],
        nonces: (&[u8], &[u8]),
    ) {
        let collision = offer.collision.take();
        let lost = collision.as_ref().is_some_and(|c| *nonces.0.min(nonces.1) < *c.lowest);
        let sends = if lost { Sends::Never } else { Sends::AtOnce };
        let new = self.complete_child(now, sa, offer, payloads, nonces, sends);
        match (new, collision) {
            // The peer deletes the old one, we delete ours.
            (Some(new), Some(_)) if lost => {
                sa.enqueue(now, Task::DeleteChild(new));
            }
            // Nothing came of ours; the peer's stands.
            (None, Some(_)) => {}
            (Some(_), collision) => {
                if let Some(theirs) = collision.and_then(|c| sa.child(c.theirs)) {
                    theirs.state = ChildState::Rekeyed;
                    self.stop_sending(theirs);
                }
                sa.enqueue(now, Task::DeleteChild(old));
            }
            // Nothing came of it; the old one stays, and is rekeyed again in time.
            (None, None) => {
                if let Some(child) = sa.child(old) {
                    let later = child.config.rekey_time / 10;
                    child.rekey_at = (!later.is_zero()).then(|| now.after(later));
                }
                return;
            }
        }
        if let Some(child) = sa.child(old) {
            child.state = ChildState::Rekeyed;
            child.rekey_at = lost.then(|| now.after(ABANDONED));
        }
    }

    /// Our IKE rekey is answered by `ours`, whose exchange's lower nonce is `lowest`.
    pub(crate) fn settle_ike_rekey(
        &mut self,
        now: Time,
        sa: &mut IkeSa,
        mut ours: Box<IkeSa>,
        collision: Option<IkeCollision>,
    ) {
        // Where the peer has used its own one already, it has compared the nonces before us.
        let settled = sa.state == State::Rekeyed;
        let lost = settled || collision.as_ref().is_some_and(|c| ours.lowest_nonce < c.lowest);
        let mut delete_at = now;
        match collision {
            // RFC 7296 section 2.8.2: the survivor inherits the Child SAs; the peer deletes the old IKE SA.
            Some(collision) if lost => {
                self.inherit(now, sa, collision.theirs);
                self.close(now, &mut ours, Authority::Superseded(Evidence(())));
                self.insert_sa(now, ours);
                return;
            }
            Some(collision) => {
                let redundant = self.with_sa(now, collision.theirs, |_, theirs| {
                    theirs.state = State::Rekeyed;
                    theirs.expires = Some(now.after(ABANDONED));
                    move_tasks(theirs, &mut ours);
                });
                delete_at = redundant.map_or(now, |()| now.after(CROSSED));
            }
            None => {}
        }
        ours.enqueue(now, Task::SendToken);
        self.succeed(now, sa, &mut ours);
        self.insert_sa(now, ours);
        sa.expires = None;
        sa.enqueue(delete_at, Task::DeleteIke);
    }

    /// A redundant IKE SA has ended: the one that both sides rekeyed need stay no longer.
    pub(crate) fn release_predecessor(&mut self, now: Time, redundant: &IkeSa) {
        let Some(old) = redundant.predecessor else { return };
        self.with_sa(now, old, |_, old| {
            for (at, _) in old.queue.iter_mut().filter(|(_, task)| *task == Task::DeleteIke) {
                *at = now.min(*at);
            }
        });
    }

    /// `theirs`, made by the peer's rekey, takes the place of `sa`, which the peer is to delete.
    pub(crate) fn inherit(&mut self, now: Time, sa: &mut IkeSa, theirs: IkeSaId) {
        self.with_sa(now, theirs, |e, theirs| e.succeed(now, sa, theirs));
    }

    /// The peer handles Child SAs on an IKE SA whose rekey crossed ours: it knows already that this one survives.
    pub(crate) fn inherit_early(&mut self, now: Time, theirs: &mut IkeSa) {
        if let Some(old) = theirs.predecessor.take() {
            self.with_sa(now, old, |e, old| e.succeed(now, old, theirs));
        }
    }

    /// `new` takes the place of `old`: it inherits the Child SAs and what waits for them (RFC 7296 section 2.8), and
    /// the wish that it be closed.
    pub(crate) fn succeed(&mut self, now: Time, old: &mut IkeSa, new: &mut IkeSa) {
        new.predecessor = None;
        if old.state == State::Rekeyed {
            return;
        }
        // The peer's address as it was last heard of.
        if old.heard > new.heard {
            (new.local, new.remote, new.elsewhere) = (old.local, old.remote, old.elsewhere);
        }
        self.report(Report::IkeRekeyed { old: old.id, new: new.id, spis: new.spis });
        (new.redirected, new.leave_at) = (old.redirected, old.leave_at.take());
        self.move_children(old, new);
        move_tasks(old, new);
        self.supersede_successor(old, new);
        let state = std::mem::replace(&mut old.state, State::Rekeyed);
        old.expires = Some(now.after(ABANDONED));
        match state {
            State::Deleting(authority) => self.close(now, new, authority),
            _ => self.settle_duplicates(now, new),
        }
    }
}

/// What waits for the Child SAs of one IKE SA goes to its successor.
fn move_tasks(old: &mut IkeSa, new: &mut IkeSa) {
    for (at, task) in std::mem::take(&mut old.queue) {
        match task {
            // A ticket is an IKE SA's own, as a token is.
            Task::RekeyIke | Task::DeleteIke | Task::Liveness | Task::SendToken | Task::RequestTicket => {}
            task => new.enqueue(at, task),
        }
    }
}
