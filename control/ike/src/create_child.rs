//! Child SAs: what is offered and agreed on, in IKE_AUTH and in CREATE_CHILD_SA (RFC 7296 section 1.3.1, 1.3.3), both
//! roles. Crossing rekeys are settled in `collision`.

use crate::api::*;
use crate::child::{Agreed, Sends};
use crate::collision::{ABANDONED, ChildCollision};
use crate::connect::ChildProfile;
use crate::crypto::{EspProposal, Group, PrivateKey, Secret, select_esp};
use crate::endpoint::{Endpoint, find_error, find_notify, notification};
use crate::exchange::{Purpose, Task};
use crate::init::{is_single, key_exchange};
use crate::kept::field::fields;
use crate::narrow::{chosen, has_first, narrow};
use crate::resources::{Share, refusal, share_of_peers};
use crate::sa::{ChildSa, ChildState, IkeSa};
use crate::transport::{self, Narrowed};
use crate::window::Request;
use crate::wire::{Payload, Proposal, exchange, notify, protocol};
use spindle_abi::{Mode, Selector, SelectorSet, Spi, Time};
use std::rc::Rc;
use std::time::Duration;

/// What the initiator of a Child SA keeps until the response.
pub(crate) struct ChildOffer {
    pub(crate) profile: Rc<ChildProfile>,
    pub(crate) inbound: Spi,
    /// The packet that wants it.
    trigger: Option<(Selector, Selector)>,
    /// Empty in IKE_AUTH, which uses IKE_SA_INIT's.
    pub(crate) nonce: Vec<u8>,
    pub(crate) key: Option<PrivateKey>,
    pub(crate) replaces: Option<ChildSaId>,
    /// The peer has lost the Child SA that it replaces: the request cannot name it.
    pub(crate) lost: bool,
    /// In CREATE_CHILD_SA, not IKE_AUTH.
    create: bool,
    /// Beside the first one, for this worker (RFC 9611).
    pub(crate) worker: Option<u16>,
    /// Transport mode is asked for.
    transport: bool,
    /// The peer rekeyed or made the same Child SA meanwhile.
    pub(crate) collision: Option<ChildCollision>,
}

fields!(ChildOffer {
    profile,
    inbound,
    trigger,
    nonce,
    key,
    replaces,
    lost,
    create,
    worker,
    transport,
    collision
});

/// A Child SA that we ask for.
pub(crate) struct Wish {
    pub(crate) profile: Rc<ChildProfile>,
    pub(crate) replaces: Option<ChildSaId>,
    /// The peer has lost the one that it replaces.
    pub(crate) lost: bool,
    /// Beside the first one, for this worker (RFC 9611).
    pub(crate) worker: Option<u16>,
    /// The group that the peer wants; else the one that we do.
    pub(crate) group: Option<Group>,
}

impl Wish {
    pub(crate) fn new(profile: Rc<ChildProfile>) -> Wish {
        Wish { profile, replaces: None, lost: false, worker: None, group: None }
    }
}

/// What the responder of a Child SA brings to it, besides the request.
pub(crate) struct Terms<'a> {
    nonces: (&'a [u8], &'a [u8]),
    create: bool,
    replaces: Option<ChildSaId>,
    sends: Sends,
}

impl<'a> Terms<'a> {
    /// The first Child SA, in IKE_AUTH.
    pub(crate) fn first(nonces: (&'a [u8], &'a [u8])) -> Terms<'a> {
        Terms { nonces, create: false, replaces: None, sends: Sends::AtOnce }
    }
}

/// A request of the peer's may have crossed ours that made a Child SA so recently.
const CROSSED: Duration = Duration::from_secs(10);
/// Until a Child SA that the peer has not used yet is looked at again.
const UNCONFIRMED: Duration = Duration::from_millis(500);
/// A peer that has not seen our answer for so long has given up.
const UNSEEN: Duration = Duration::from_secs(30);

impl ChildOffer {
    /// The first Child SA of an IKE SA, in IKE_AUTH: without key exchange, with IKE_SA_INIT's nonces.
    pub(crate) fn first(
        profile: Rc<ChildProfile>,
        inbound: Spi,
        trigger: Option<(Selector, Selector)>,
    ) -> ChildOffer {
        ChildOffer {
            transport: profile.transport != TransportMode::Never,
            profile,
            inbound,
            trigger,
            nonce: Vec::new(),
            key: None,
            replaces: None,
            lost: false,
            create: false,
            worker: None,
            collision: None,
        }
    }

    /// N(USE_TRANSPORT_MODE), SA, Ni, KEi, TSi, TSr.
    pub(crate) fn payloads(&self) -> Vec<Payload> {
        let spi = self.inbound.0.to_be_bytes();
        let proposals = (1..).zip(self.profile.proposals.iter());
        let offer = proposals.map(|(number, p)| p.to_wire(number, spi, self.create)).collect();
        let mut payloads: Vec<Payload> = self.transport.then(transport::wish).into_iter().collect();
        payloads.push(Payload::Sa(offer));
        if self.create {
            payloads.push(Payload::Nonce(self.nonce.clone()));
            payloads.extend(self.key.as_ref().map(key_exchange));
        }
        // RFC 7296 section 2.9: SHOULD begin with the packet that triggered it, as closely as it can be named.
        let side = |first: Option<Selector>, all: &[Selector]| {
            let first = first.filter(|first| !all.contains(first));
            first.into_iter().chain(all.iter().copied()).collect()
        };
        let SelectorSet { local, remote } = &self.profile.selectors;
        payloads.push(Payload::TsInitiator(side(self.trigger.map(|t| t.0), local)));
        payloads.push(Payload::TsResponder(side(self.trigger.map(|t| t.1), remote)));
        payloads.extend(self.resource_info());
        payloads
    }
}

/// The payloads that make a Child SA.
pub(crate) struct ChildParts<'a> {
    pub(crate) offer: Option<&'a [Proposal]>,
    pub(crate) nonce: Option<&'a [u8]>,
    pub(crate) key: Option<(u16, &'a [u8])>,
    ts_initiator: Option<&'a [Selector]>,
    ts_responder: Option<&'a [Selector]>,
}

impl<'a> ChildParts<'a> {
    pub(crate) fn of(payloads: &'a [Payload]) -> ChildParts<'a> {
        let mut parts =
            ChildParts { offer: None, nonce: None, key: None, ts_initiator: None, ts_responder: None };
        for payload in payloads {
            match payload {
                Payload::Sa(proposals) => parts.offer = Some(proposals),
                Payload::Nonce(nonce) => parts.nonce = Some(nonce),
                Payload::KeyExchange { group, data } => parts.key = Some((*group, data)),
                Payload::TsInitiator(selectors) => parts.ts_initiator = Some(selectors),
                Payload::TsResponder(selectors) => parts.ts_responder = Some(selectors),
                _ => {}
            }
        }
        parts
    }
}

impl Endpoint {
    /// Starts CREATE_CHILD_SA for the child with this name; where one stands, for workers that lack one.
    pub(crate) fn create_child(&mut self, now: Time, sa: &mut IkeSa, name: &str) {
        let exists = sa.children.iter().any(|c| c.config.name == name && c.state == ChildState::Installed);
        if exists {
            return self.create_for_workers(now, sa, name);
        }
        let Some(profile) = sa.connection.child(name) else { return };
        if let Some((_, at)) = sa.backoff.get(name).filter(|(_, at)| *at > now) {
            return sa.enqueue(*at, Task::CreateChild(name.to_owned()));
        }
        self.request_child(now, sa, Wish::new(profile));
    }

    /// Starts CREATE_CHILD_SA beside a Child SA that the peer has lost; what it made itself meanwhile will do.
    pub(crate) fn begin_child_replacement(&mut self, now: Time, sa: &mut IkeSa, id: ChildSaId) {
        let Some(old) = sa.child(id).filter(|c| c.state == ChildState::Installed) else { return };
        let (profile, installed, share) = (old.config.clone(), old.installed, old.share);
        let newer = |c: &ChildSa| {
            c.id > id && c.installed >= installed && c.config.name == profile.name && c.share == share
        };
        if sa.children.iter().any(|c| newer(c) && c.state == ChildState::Installed) {
            return sa.enqueue(now, Task::DeleteChild(id));
        }
        self.request_child(now, sa, Wish { replaces: Some(id), lost: true, ..Wish::new(profile) });
    }

    /// Starts the rekey of a Child SA.
    pub(crate) fn begin_child_rekey(&mut self, now: Time, sa: &mut IkeSa, id: ChildSaId) {
        let receive_id = sa.receive_id;
        let Some(child) = sa.child(id).filter(|c| c.state == ChildState::Installed) else { return };
        // A Child SA of the peer's rekey that it hasn't used yet: the peer may not know of it, our answer on its way.
        let unseen = child.confirmed_by == Some(receive_id) && now.since(child.installed) < UNSEEN;
        let (pending, index) = (child.outbound_waits, child.inbound_index);
        if pending || unseen && self.activity.activity(index).packets == 0 {
            return sa.enqueue(now.after(UNCONFIRMED), Task::RekeyChild(id));
        }
        let Some(profile) = sa.child(id).map(|c| c.config.clone()) else { return };
        self.request_child(now, sa, Wish { replaces: Some(id), ..Wish::new(profile) });
    }

    pub(crate) fn request_child(&mut self, now: Time, sa: &mut IkeSa, wish: Wish) {
        let Wish { profile, replaces, lost, worker, group } = wish;
        let Some(inbound) = self.allocate_child_spi() else { return };
        let group = group.or(profile.proposals.first().and_then(|p| p.groups.first().copied()));
        let key = group.map(|group| PrivateKey::generate(group, &mut *self.random));
        let nonce = self.nonce();
        // RFC 7296 section 2.9.2: a rekey SHOULD NOT name a packet.
        let trigger = self.take_trigger(&profile).filter(|_| replaces.is_none() && worker.is_none());
        // A rekey changes the keys alone.
        let transport = match replaces.and_then(|id| sa.child(id)) {
            Some(old) => old.mode == Mode::Transport,
            None => profile.transport != TransportMode::Never,
        };
        let offer = ChildOffer {
            profile,
            inbound,
            trigger,
            nonce,
            key,
            replaces,
            lost,
            create: true,
            worker,
            transport,
            collision: None,
        };
        let mut payloads = Vec::new();
        if let Some(old) = replaces.filter(|_| !lost).and_then(|id| sa.child(id)) {
            // RFC 7296 section 1.3.3: the SPI is the one that we expect in inbound packets.
            let spi = old.inbound.0.to_be_bytes().to_vec();
            let (kind, protocol) = (notify::REKEY_SA, protocol::ESP);
            payloads.push(Payload::Notify(Notify { kind, protocol, spi, data: Vec::new() }));
        }
        payloads.extend(offer.payloads());
        let purpose = Purpose::CreateChild(Box::new(offer));
        self.request(now, sa, exchange::CREATE_CHILD_SA, &payloads, purpose);
    }

    /// The response to our CREATE_CHILD_SA request for a Child SA.
    pub(crate) fn receive_child_response(
        &mut self,
        now: Time,
        sa: &mut IkeSa,
        offer: ChildOffer,
        payloads: &[Payload],
    ) {
        if let Some(error) = find_error(payloads) {
            self.release_child_spi(offer.inbound);
            return self.child_refused(now, sa, &offer, error, payloads);
        }
        sa.refused = None;
        sa.ke_retries = 0;
        let Some(nonce) = ChildParts::of(payloads).nonce else {
            self.release_child_spi(offer.inbound);
            return self.close(now, sa, Authority::ProtocolError(Evidence(())));
        };
        let nonce_i = offer.nonce.clone();
        match offer.replaces {
            None => self.complete_created_child(now, sa, offer, payloads, (&nonce_i, nonce)),
            Some(old) if offer.lost => {
                self.complete_created_child(now, sa, offer, payloads, (&nonce_i, nonce));
                if sa.child(old).is_some_and(|old| old.state == ChildState::Installed) {
                    sa.enqueue(now, Task::DeleteChild(old));
                }
            }
            Some(old) => self.complete_child_rekey(now, sa, old, offer, payloads, (&nonce_i, nonce)),
        }
    }

    /// As initiator: installs what the response agreed to. `None` if it is none of what was offered.
    pub(crate) fn complete_child(
        &mut self,
        now: Time,
        sa: &mut IkeSa,
        offer: ChildOffer,
        payloads: &[Payload],
        nonces: (&[u8], &[u8]),
        sends: Sends,
    ) -> Option<ChildSaId> {
        let parts = ChildParts::of(payloads);
        let group = offer.key.as_ref().map(PrivateKey::group);
        let suite = parts.offer.and_then(|o| chosen_esp(&offer.profile.proposals, o, group, offer.create));
        let selectors = parts
            .ts_initiator
            .zip(parts.ts_responder)
            .map(|(local, remote)| SelectorSet { local: local.to_vec(), remote: remote.to_vec() });
        let mode = transport::agreed(offer.profile.transport, offer.transport, transport::is_in(payloads));
        let selectors = selectors.zip(mode).and_then(|(selectors, mode)| match mode {
            Mode::Tunnel => chosen(&selectors, &offer.profile.selectors),
            Mode::Transport => chosen(&transport::substitute(sa, &selectors), &offer.profile.selectors)
                .filter(|selectors| transport::is_between_ends(sa, selectors)),
        });
        let valid = selectors.zip(mode).zip(suite);
        let agreed = valid.and_then(|((selectors, mode), (suite, outbound))| {
            let shared = agree(offer.key.as_ref().filter(|_| suite.group.is_some()), parts.key)?;
            let keys = sa.keys.as_ref()?.ike.child(
                suite.encryption,
                shared.as_ref().map(|s| s.as_slice()),
                nonces.0,
                nonces.1,
            );
            Some(Agreed {
                config: offer.profile.clone(),
                inbound: offer.inbound,
                outbound,
                mode,
                selectors,
                suite: suite.encryption,
                esn: suite.esn,
                proposal: suite.to_string(),
                inbound_keys: keys.responder,
                outbound_keys: keys.initiator,
                replaces: offer.replaces,
                share: offer.agreed_share(payloads),
            })
        });
        let Some(agreed) = agreed else {
            let error = find_error(payloads);
            let mode_declined = error.is_none() && mode.is_none();
            tracing::warn!(
                connection = sa.connection.name,
                ?error,
                mode_declined,
                "no Child SA came of the exchange"
            );
            self.release_child_spi(offer.inbound);
            // The peer has installed what we cannot use (RFC 7296 section 2.9: its choice must be a subset).
            if error.is_none() && parts.offer.is_some() {
                sa.enqueue(now, Task::DeleteSpi(offer.inbound));
            }
            return None;
        };
        let (share, replaces) = (agreed.share, agreed.replaces);
        let new = self.install_child(now, sa, agreed, sends)?;
        if replaces.is_none() {
            self.continue_for_workers(now, sa, new, share);
        }
        Some(new)
    }

    /// A CREATE_CHILD_SA request: a new Child SA, the rekey of one, or of the IKE SA.
    pub(crate) fn receive_create_child_request(&mut self, now: Time, sa: &mut IkeSa, request: Request<'_>) {
        let parts = ChildParts::of(&request.payloads);
        let Some((offer, nonce)) = parts.offer.zip(parts.nonce) else {
            return self.reject_syntax(now, sa, &request);
        };
        let nonce_i = nonce.to_vec();
        if offer.iter().any(|p| p.protocol == protocol::IKE) {
            return self.receive_ike_rekey_request(now, sa, request);
        }
        if parts.ts_initiator.is_none() || parts.ts_responder.is_none() {
            return self.reject_syntax(now, sa, &request);
        }
        // RFC 7296 section 2.25.2: TEMPORARY_FAILURE while the IKE SA is being rekeyed or closed.
        if !sa.is_established() || sa.rekeying() {
            return self.respond_error(sa, &request, notify::TEMPORARY_FAILURE);
        }
        let rekey = find_notify(&request.payloads, notify::REKEY_SA);
        let replaces = match rekey.map(|n| self.rekey_target(sa, n)).transpose() {
            Ok(replaces) => replaces,
            Err(error) => return self.respond(sa, &request, &[error]),
        };
        let nonce_r = self.nonce();
        let sends = if replaces.is_some() { Sends::OnceUsed } else { Sends::AtOnce };
        let terms = Terms { nonces: (&nonce_i, &nonce_r), create: true, replaces, sends };
        let result = self.accept_child(now, sa, &request.payloads, terms);
        match (result, replaces) {
            (Ok((theirs, accepted)), Some(old)) => {
                self.note_child_rekeyed_by_peer(now, sa, old, theirs, nonce_i.min(nonce_r));
                self.respond(sa, &request, &accepted);
            }
            (Ok((theirs, accepted)), None) => {
                self.note_child_made_by_peer(now, sa, theirs, nonce_i.min(nonce_r));
                self.respond(sa, &request, &accepted);
            }
            (Err(error), _) => {
                let fatal = matches!(&error, Payload::Notify(n) if n.kind == notify::INVALID_SYNTAX);
                self.respond(sa, &request, &[error]);
                // RFC 7296 section 2.21.3: INVALID_SYNTAX ends the IKE SA at both ends.
                if fatal {
                    sa.end(Authority::ProtocolError(Evidence(())), false);
                }
            }
        }
    }

    /// Our CREATE_CHILD_SA for a Child SA that the peer does not have is answered. Where the peer's for the same one
    /// crossed it, the one with the lowest nonce is redundant, and its creator deletes it (RFC 7296 section 2.8.1).
    fn complete_created_child(
        &mut self,
        now: Time,
        sa: &mut IkeSa,
        mut offer: ChildOffer,
        payloads: &[Payload],
        nonces: (&[u8], &[u8]),
    ) {
        let collision = offer.collision.take();
        let lowest = nonces.0.min(nonces.1);
        let lost = collision.as_ref().is_some_and(|c| *lowest < *c.lowest);
        let sends = if lost { Sends::Never } else { Sends::AtOnce };
        let Some(new) = self.complete_child(now, sa, offer, payloads, nonces, sends) else { return };
        if lost {
            return sa.enqueue(now, Task::DeleteChild(new));
        }
        sa.child(new).into_iter().for_each(|child| child.lowest_nonce = lowest.to_vec());
        if let Some(theirs) = collision.and_then(|c| sa.child(c.theirs)) {
            self.leave_to_its_creator(now, theirs);
        }
    }

    /// A redundant Child SA that the peer made and is to delete.
    fn leave_to_its_creator(&mut self, now: Time, child: &mut ChildSa) {
        child.state = ChildState::Rekeyed;
        child.rekey_at = Some(now.after(ABANDONED));
        self.stop_sending(child);
    }

    /// The peer made a Child SA where one for the same selectors stands or is under way. If ours crossed it the nonces
    /// decide. Else both stand (RFC 7296 section 2.8); if the peer has lost the one before, its rekey will tell.
    fn note_child_made_by_peer(&mut self, now: Time, sa: &mut IkeSa, theirs: ChildSaId, lowest: Vec<u8>) {
        let Some(child) = sa.child(theirs) else { return };
        let (name, selectors) = (child.config.name.clone(), child.selectors.clone());
        // RFC 9611 section 4: both sides may make some of these at once, and all stand.
        if matches!(child.share, Share::Worker(_)) {
            return;
        }
        let ours = sa.outstanding.as_mut().and_then(|o| match &mut o.purpose {
            Purpose::CreateChild(offer) if offer.profile.name == name && offer.worker.is_none() => {
                Some(offer)
            }
            _ => None,
        });
        if let Some(offer) = ours.filter(|offer| offer.replaces.is_none() || offer.lost) {
            offer.collision = Some(ChildCollision { theirs, lowest: lowest.clone() });
        }
        let is_like = |c: &ChildSa| c.id != theirs && !matches!(c.share, Share::Worker(_));
        let stands = |c: &&ChildSa| is_like(c) && c.state == ChildState::Installed;
        let old =
            sa.children.iter().filter(stands).find(|c| c.config.name == name && c.selectors == selectors);
        let Some(old) = old.filter(|old| !sa.rekeying_child(old.id)) else { return };
        let crossed = !old.lowest_nonce.is_empty() && now.since(old.installed) < CROSSED;
        let (id, redundant) = (old.id, lowest <= old.lowest_nonce);
        let Some(child) = sa.child(theirs).filter(|_| crossed) else { return };
        if redundant {
            return self.leave_to_its_creator(now, child);
        }
        child.replaces = Some(id);
        sa.enqueue(now, Task::DeleteChild(id));
    }

    /// The Child SA that a REKEY_SA notification names, or the error to answer with (RFC 7296 section 2.25.1).
    fn rekey_target(&self, sa: &mut IkeSa, notify: &Notify) -> Result<ChildSaId, Payload> {
        let spi = <[u8; 4]>::try_from(&notify.spi[..]).ok().map(|s| Spi(u32::from_be_bytes(s)));
        let creating = matches!(sa.outstanding.as_ref().map(|o| &o.purpose), Some(Purpose::CreateChild(_)));
        let child = spi.filter(|_| notify.protocol == protocol::ESP).and_then(|s| sa.child_by_outbound(s));
        match child {
            Some(child) if child.state == ChildState::Installed => Ok(child.id),
            Some(_) => Err(notification(notify::TEMPORARY_FAILURE, Vec::new())),
            // It may be the one that we are asking for, whose answer is on its way.
            None if creating => Err(notification(notify::TEMPORARY_FAILURE, Vec::new())),
            // The SPI that was not found is named.
            None => Err(Payload::Notify(Notify {
                kind: notify::CHILD_SA_NOT_FOUND,
                protocol: notify.protocol,
                spi: notify.spi.clone(),
                data: Vec::new(),
            })),
        }
    }

    /// As responder: narrows, chooses, installs. The payloads of the answer, or the error.
    pub(crate) fn accept_child(
        &mut self,
        now: Time,
        sa: &mut IkeSa,
        payloads: &[Payload],
        terms: Terms<'_>,
    ) -> Result<(ChildSaId, Vec<Payload>), Payload> {
        let error = |kind| notification(kind, Vec::new());
        let parts = ChildParts::of(payloads);
        let (Some(offer), Some(remote), Some(local)) = (parts.offer, parts.ts_initiator, parts.ts_responder)
        else {
            return Err(error(notify::TS_UNACCEPTABLE));
        };
        if sa.children.len() >= self.config.max_children {
            return Err(error(refusal(sa, payloads)));
        }
        let wish = SelectorSet { local: local.to_vec(), remote: remote.to_vec() };
        let old = terms.replaces.and_then(|id| sa.child(id)).map(|c| (c.config.clone(), c.selectors.clone()));
        let (profiles, in_use) = match old {
            Some((profile, selectors)) => (vec![profile], Some(selectors)),
            None => (sa.connection.children.clone(), None),
        };
        // RFC 7296 section 2.9: the profile that leaves the whole wish is the best; one that leaves the initiator's first
        // choices comes before those that do not.
        let asked = transport::is_in(payloads);
        let narrowed = || profiles.iter().filter_map(|c| transport::narrow_for(sa, c, &wish, asked));
        let best = narrowed()
            .find(|n| n.selectors.holds(&n.wish))
            .or_else(|| narrowed().find(|n| has_first(&n.selectors, &n.wish)))
            .or_else(|| narrowed().next());
        let Some(Narrowed { profile, mode, wish, selectors }) = best else {
            // RFC 7296 section 3.10.1: of proposals, USE_TRANSPORT_MODE included, none is acceptable; else no selectors.
            let other_mode = profiles.iter().any(|c| narrow(&wish, &c.selectors).is_some());
            return Err(error(if other_mode { notify::NO_PROPOSAL_CHOSEN } else { notify::TS_UNACCEPTABLE }));
        };
        // RFC 7296 section 2.9.2: a rekey MUST NOT be narrowed below what is in use.
        let selectors = in_use.filter(|s| wish.holds(s) && !selectors.holds(s)).unwrap_or(selectors);
        let share = match terms.replaces {
            None => share_of_peers(sa, profile, &selectors, payloads).map_err(error)?,
            Some(_) => Share::Alone,
        };
        let preferred = parts.key.and_then(|(group, _)| Group::from_id(group));
        let Ok((suite, chosen)) = select_esp(&profile.proposals, offer, preferred, terms.create) else {
            return Err(error(notify::NO_PROPOSAL_CHOSEN));
        };
        let Some(outbound) = usable_spi(chosen) else { return Err(error(notify::NO_PROPOSAL_CHOSEN)) };
        // RFC 7296 section 1.3: the group of KE must be the chosen one.
        if suite.group.is_some() && suite.group != preferred {
            let group = suite.group.map_or(0, Group::id).to_be_bytes().to_vec();
            return Err(notification(notify::INVALID_KE_PAYLOAD, group));
        }
        let key = suite.group.map(|group| PrivateKey::generate(group, &mut *self.random));
        let Some(shared) = agree(key.as_ref(), parts.key) else { return Err(error(notify::INVALID_SYNTAX)) };
        let no_more = || error(notify::NO_ADDITIONAL_SAS);
        let inbound = self.allocate_child_spi().ok_or_else(no_more)?;
        let (nonce_i, nonce_r) = terms.nonces;
        let shared = shared.as_ref().map(|s| s.as_slice());
        let Some(keys) = sa.keys.as_ref().map(|k| k.ike.child(suite.encryption, shared, nonce_i, nonce_r))
        else {
            return Err(no_more());
        };
        let answer = EspProposal::from(suite).to_wire(chosen.number, inbound.0.to_be_bytes(), terms.create);
        let mut accepted = Vec::new();
        if mode == Mode::Transport {
            accepted.push(transport::wish());
        }
        accepted.push(Payload::Sa(vec![answer]));
        if terms.create {
            accepted.push(Payload::Nonce(nonce_r.to_vec()));
            accepted.extend(key.as_ref().map(key_exchange));
        }
        accepted.push(Payload::TsInitiator(selectors.remote.clone()));
        accepted.push(Payload::TsResponder(selectors.local.clone()));
        accepted.extend(share.answer());
        let agreed = Agreed {
            config: profile.clone(),
            inbound,
            outbound,
            mode,
            selectors,
            suite: suite.encryption,
            esn: suite.esn,
            proposal: suite.to_string(),
            inbound_keys: keys.initiator,
            outbound_keys: keys.responder,
            replaces: terms.replaces,
            share,
        };
        let id = self.install_child(now, sa, agreed, terms.sends).ok_or_else(no_more)?;
        // An initiator of IKE_AUTH takes no request before its answer, so that one needs no confirmation.
        let next = terms.create.then_some(sa.receive_id);
        sa.child(id).into_iter().for_each(|child| child.confirmed_by = next);
        self.complete_for_workers(now, sa, id);
        Ok((id, accepted))
    }
}

/// The sender's inbound SPI in a proposal, which must not be a reserved one (RFC 4303 section 2.1).
fn usable_spi(proposal: &Proposal) -> Option<Spi> {
    let spi = u32::from_be_bytes(<[u8; 4]>::try_from(&proposal.spi[..]).ok()?);
    (spi >= 256).then_some(Spi(spi))
}

/// The single proposal of a response, if it is a choice from ours, and the responder's SPI.
fn chosen_esp(
    ours: &[EspProposal],
    response: &[Proposal],
    group: Option<Group>,
    create: bool,
) -> Option<(crate::crypto::EspSuite, Spi)> {
    let [proposal] = response else { return None };
    let (suite, _) = select_esp(ours, response, group, create).ok()?;
    let fits = is_single(proposal) && (suite.group.is_none() || suite.group == group);
    Some((suite, usable_spi(proposal).filter(|_| fits)?))
}

/// The shared secret of an optional key exchange: `None` if there should be one and it fails.
fn agree(key: Option<&PrivateKey>, peer: Option<(u16, &[u8])>) -> Option<Option<Secret>> {
    let Some(key) = key else { return Some(None) };
    let (group, data) = peer?;
    (group == key.group().id()).then(|| key.agree(data).ok()).flatten().map(Some)
}
