//! Rekeying the IKE SA by CREATE_CHILD_SA, both roles (RFC 7296 section 1.3.2, 2.18), with the QCD token of the new
//! IKE SA (RFC 6290 section 4.3).

use crate::api::*;
use crate::collision::IkeCollision;
use crate::create_child::ChildParts;
use crate::crypto::{Group, IkeProposal, PrivateKey, select_ike};
use crate::endpoint::{Endpoint, find_error, find_notify, notification};
use crate::exchange::{Purpose, Task};
use crate::init::{chosen_ike, key_exchange, wanted_group};
use crate::kept::field::fields;
use crate::sa::{IkeSa, SaKeys, State, again};
use crate::window::Request;
use crate::wire::{Payload, exchange, notify};
use spindle_abi::Time;

/// What the initiator keeps until the response.
pub(crate) struct IkeOffer {
    /// Our SPI of the new IKE SA.
    pub(crate) spi: IkeSpi,
    nonce: Vec<u8>,
    key: PrivateKey,
    /// The peer rekeyed the IKE SA meanwhile.
    pub(crate) collision: Option<IkeCollision>,
}

fields!(IkeOffer { spi, nonce, key, collision });

impl Endpoint {
    /// Starts the rekey of an IKE SA.
    pub(crate) fn begin_ike_rekey(&mut self, now: Time, sa: &mut IkeSa) {
        let current = sa.keys.as_ref().map(|k| k.ike.suite().group);
        self.request_ike_rekey(now, sa, current);
    }

    fn request_ike_rekey(&mut self, now: Time, sa: &mut IkeSa, group: Option<Group>) {
        let Some(group) = group else { return };
        let spi = self.allocate_ike_spi();
        self.reserve_spi(spi, sa.id);
        let key = PrivateKey::generate(group, &mut *self.random);
        let nonce = self.nonce();
        let offer =
            (1..).zip(sa.connection.proposals.iter()).map(|(number, p)| p.to_wire(number, &spi)).collect();
        let payloads = [Payload::Sa(offer), Payload::Nonce(nonce.clone()), key_exchange(&key)];
        let purpose = Purpose::RekeyIke(Box::new(IkeOffer { spi, nonce, key, collision: None }));
        self.request(now, sa, exchange::CREATE_CHILD_SA, &payloads, purpose);
    }

    /// The peer rekeys the IKE SA.
    pub(crate) fn receive_ike_rekey_request(&mut self, now: Time, sa: &mut IkeSa, request: Request<'_>) {
        // RFC 7296 section 2.25.1: not while a Child SA is being created, rekeyed or closed; section 2.25.2: nor
        // while the IKE SA is being closed, as it is after a rekey (section 2.8.2).
        let crossed = match sa.outstanding.as_ref().map(|o| &o.purpose) {
            Some(Purpose::RekeyIke(offer)) => Some(offer.collision.is_some()),
            _ => None,
        };
        if !sa.is_established() || sa.child_exchange_under_way() || crossed == Some(true) {
            return self.respond_error(sa, &request, notify::TEMPORARY_FAILURE);
        }
        let ChildParts { offer: Some(offer), nonce: Some(nonce_i), key: Some((group, public)), .. } =
            ChildParts::of(&request.payloads)
        else {
            return self.reject_syntax(now, sa, &request);
        };
        let preferred = Group::from_id(group);
        let Ok((suite, chosen)) = select_ike(&sa.connection.proposals, offer, preferred) else {
            return self.respond_error(sa, &request, notify::NO_PROPOSAL_CHOSEN);
        };
        // RFC 7296 section 3.3.1: eight octets; section 3.1: never zero.
        let Some(spi) = IkeSpi::try_from(&chosen.spi[..]).ok().filter(|spi| *spi != [0; 8]) else {
            return self.respond_error(sa, &request, notify::NO_PROPOSAL_CHOSEN);
        };
        if Some(suite.group) != preferred {
            let wanted = suite.group.id().to_be_bytes().to_vec();
            return self.respond(sa, &request, &[notification(notify::INVALID_KE_PAYLOAD, wanted)]);
        }
        let key = PrivateKey::generate(suite.group, &mut *self.random);
        let Ok(shared) = key.agree(public) else {
            return self.reject_syntax(now, sa, &request);
        };
        let nonce_r = self.nonce();
        let spis = IkeSpis { initiator: spi, responder: self.allocate_ike_spi() };
        let Some(keys) = sa.keys.as_ref().map(|k| k.ike.rekey(suite, &shared, nonce_i, &nonce_r, spis))
        else {
            return;
        };
        let answer = IkeProposal::from(suite).to_wire(chosen.number, &spis.responder);
        let mut payloads =
            vec![Payload::Sa(vec![answer]), Payload::Nonce(nonce_r.clone()), key_exchange(&key)];
        // RFC 6290 section 4.3: the token of the new IKE SA, under the old one.
        payloads.extend(self.own_token(spis, sa.remote));
        payloads.extend(self.defer_ticket_request(sa, &request.payloads));
        let mut new = self.successor(now, sa, spis, false, SaKeys::new(keys, false));
        new.lowest_nonce = nonce_i.to_vec().min(nonce_r);
        let lowest = new.lowest_nonce.clone();
        new.predecessor = Some(sa.id);
        let id = new.id;
        self.insert_sa(now, new);
        self.respond(sa, &request, &payloads);
        match sa.outstanding.as_mut().map(|o| &mut o.purpose) {
            Some(Purpose::RekeyIke(offer)) => {
                offer.collision = Some(IkeCollision { theirs: id, lowest });
            }
            _ => self.inherit(now, sa, id),
        }
    }

    /// The response to our rekey of the IKE SA.
    pub(crate) fn receive_ike_rekey_response(
        &mut self,
        now: Time,
        sa: &mut IkeSa,
        offer: IkeOffer,
        payloads: &[Payload],
    ) {
        let IkeOffer { spi, nonce, key, collision } = offer;
        let agreed = || {
            let ChildParts { offer: Some(chosen), nonce: Some(nonce_r), key: Some((group, public)), .. } =
                ChildParts::of(payloads)
            else {
                return None;
            };
            let (suite, chosen) = chosen_ike(&sa.connection.proposals, chosen, key.group())?;
            let responder = IkeSpi::try_from(&chosen.spi[..]).ok().filter(|spi| *spi != [0; 8])?;
            let shared = (group == key.group().id()).then(|| key.agree(public).ok()).flatten()?;
            let spis = IkeSpis { initiator: spi, responder };
            let keys = sa.keys.as_ref()?.ike.rekey(suite, &shared, &nonce, nonce_r, spis);
            Some((spis, keys, nonce.clone().min(nonce_r.to_vec())))
        };
        match agreed() {
            Some((spis, keys, lowest)) => {
                sa.refused = None;
                sa.ke_retries = 0;
                let mut new = self.successor(now, sa, spis, true, SaKeys::new(keys, true));
                new.lowest_nonce = lowest;
                // RFC 6290 section 4.3: the token in this response is the new IKE SA's.
                self.store_tokens(&mut new, payloads);
                self.settle_ike_rekey(now, sa, new, collision);
            }
            None => {
                self.forget_spi(&spi);
                // RFC 7296 section 2.8.2: the peer did not see that the rekeys crossed; its own stands.
                if let Some(collision) = collision {
                    return self.inherit(now, sa, collision.theirs);
                }
                self.ike_rekey_refused(now, sa, key.group(), payloads);
            }
        }
    }

    fn ike_rekey_refused(&mut self, now: Time, sa: &mut IkeSa, group: Group, payloads: &[Payload]) {
        match find_error(payloads) {
            Some(notify::TEMPORARY_FAILURE) => self.try_later(now, sa, Task::RekeyIke),
            // RFC 7296 section 4: an implementation MUST be capable of deleting the old SA and creating a new one.
            Some(notify::NO_ADDITIONAL_SAS) => self.close(now, sa, Authority::ProtocolError(Evidence(()))),
            Some(error) => {
                let wanted = find_notify(payloads, notify::INVALID_KE_PAYLOAD).and_then(wanted_group);
                let offered = |g: &Group| sa.connection.proposals.iter().any(|p| p.groups.contains(g));
                let other = wanted.filter(|g| *g != group).filter(offered).filter(|_| sa.ke_retries < 3);
                if other.is_some() {
                    sa.ke_retries += 1;
                    return self.request_ike_rekey(now, sa, other);
                }
                tracing::warn!(
                    connection = sa.connection.name,
                    error,
                    "the peer refuses to rekey the IKE SA"
                );
                sa.rekey_at = Some(now.after(again(sa.connection.rekey_time)));
            }
            None => self.close(now, sa, Authority::ProtocolError(Evidence(()))),
        }
    }

    /// The IKE SA that a rekey makes: same peer, own SPIs, keys and Message IDs.
    fn successor(
        &mut self,
        now: Time,
        sa: &IkeSa,
        spis: IkeSpis,
        initiator: bool,
        keys: SaKeys,
    ) -> Box<IkeSa> {
        let id = IkeSaId(self.next_id());
        let ends = (sa.local, sa.remote);
        let mut new = IkeSa::new(id, sa.connection.clone(), spis, initiator, ends, now);
        new.state = State::Established;
        new.nat = sa.nat;
        (new.sir, new.round_trip) = (sa.sir, sa.round_trip);
        (new.redirectable, new.redirected_from) = (sa.redirectable, sa.redirected_from);
        new.remote_id = sa.remote_id.clone();
        new.origin = sa.origin.clone();
        new.keys = Some(keys);
        self.start_timers(now, &mut new);
        new
    }
}
