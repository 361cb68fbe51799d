//! IKE_AUTH with pre-shared keys, both roles (RFC 7296 section 1.2, 2.15): identities, AUTH, QCD tokens (RFC 6290
//! section 4.2), INITIAL_CONTACT, and the first Child SA.

use crate::api::*;
use crate::child::Sends;
use crate::connect::Profile;
use crate::create_child::{ChildOffer, Terms};
use crate::crypto::{equal, psk_authentication, select_ike};
use crate::endpoint::{Endpoint, NAT_PORT, find_error, find_notify, notification};
use crate::exchange::{Purpose, Task};
use crate::kept::field::fields;
use crate::sa::{IkeSa, State, jittered};
use crate::window::Request;
use crate::wire::{Id, Payload, authentication, exchange, notify};
use spindle_abi::Time;
use std::rc::Rc;
use std::time::Duration;

/// What the initiator keeps until the response.
pub(crate) struct Authenticating {
    pub(crate) child: ChildOffer,
}

fields!(Authenticating { child });

/// How often a NAT's mapping is kept alive (RFC 3948 section 4: 20 seconds by default).
pub(crate) const KEEPALIVE: Duration = Duration::from_secs(20);

impl Endpoint {
    /// Sends the IKE_AUTH request.
    pub(crate) fn begin_auth(&mut self, now: Time, sa: &mut IkeSa) {
        let connection = sa.connection.clone();
        let first = sa.wanted.pop_first();
        let profile = first.and_then(|name| connection.child(&name)).or(connection.children.first().cloned());
        let Some(profile) = profile else {
            return sa.end(Authority::Local("the connection has no child"), false);
        };
        let Some(inbound) = self.allocate_child_spi() else {
            return sa.end(Authority::Local("no SPI is free"), false);
        };
        let trigger = self.take_trigger(&profile);
        let child = ChildOffer::first(profile, inbound, trigger);
        let id = Id::new(&connection.local_id);
        let Some(data) = authentication_data(sa, true, &id) else { return };
        let mut payloads = vec![Payload::IdInitiator(id)];
        if self.may_send_initial_contact(sa) {
            payloads.push(notification(notify::INITIAL_CONTACT, Vec::new()));
        }
        payloads.push(Payload::IdResponder(Id::new(&connection.remote_id)));
        payloads.push(Payload::Authentication { method: authentication::SHARED_KEY, data });
        // RFC 6290 section 4.2: after AUTH, before the Child SA's payloads.
        payloads.extend(self.own_token(sa.spis, sa.remote));
        payloads.extend(child.payloads());
        payloads.extend(self.ticket_request(&connection));
        let purpose = Purpose::Auth(Box::new(Authenticating { child }));
        self.request(now, sa, exchange::IKE_AUTH, &payloads, purpose);
        sa.hurry();
    }

    /// The response to our IKE_AUTH request.
    pub(crate) fn receive_auth_response(
        &mut self,
        now: Time,
        sa: &mut IkeSa,
        datagram: &Datagram,
        auth: Authenticating,
        payloads: &[Payload],
    ) {
        let Parts { id_responder, method, data, .. } = Parts::of(payloads);
        let Some((id, data)) = id_responder.zip(data) else {
            // RFC 7296 section 2.21.2: without AUTH the error is about the IKE SA.
            let error = find_error(payloads).unwrap_or(notify::INVALID_SYNTAX);
            self.release_child_spi(auth.child.inbound);
            sa.refusal = Some(format!("the peer answers IKE_AUTH with error {error}"));
            return sa.end(Authority::ProtocolError(Evidence(())), false);
        };
        let authentic = id.identity().is_some_and(|id| id.is(&sa.connection.remote_id))
            && method == authentication::SHARED_KEY
            && authentication_data(sa, false, id).is_some_and(|expected| equal(&expected, data));
        if !authentic {
            // RFC 7296 section 2.21.2: the initiator tells in an INFORMATIONAL exchange.
            self.release_child_spi(auth.child.inbound);
            sa.refusal = Some("the peer's identity or key is not the configured one".into());
            sa.state = State::Refused;
            let failed = [notification(notify::AUTHENTICATION_FAILED, Vec::new())];
            return self.inform(now, sa, &failed, Purpose::RefuseResponder);
        }
        if !sa.surplus {
            self.end_initiations_beside(now, sa);
        }
        self.establish(now, sa);
        // RFC 7296 section 2.23: where the answer came from is where the peer is.
        self.follow_peer(sa, datagram);
        self.store_tokens(sa, payloads);
        // Whoever answers nothing to a TICKET_REQUEST knows no tickets.
        sa.ticket_at = None;
        self.store_ticket(now, sa, payloads);
        if self.follow_redirect_in_auth(now, sa, &auth.child, payloads) {
            return;
        }
        let setup = std::mem::take(&mut sa.setup);
        let (name, nonces) = (auth.child.profile.name.clone(), (&setup.nonce_i[..], &setup.nonce_r[..]));
        if self.complete_child(now, sa, auth.child, payloads, nonces, Sends::AtOnce).is_none() {
            self.make_child_later(now, sa, &name);
        }
        self.end_superseded(now, sa);
        if sa.surplus {
            return self.close(now, sa, Authority::Superseded(Evidence(())));
        }
        self.settle_duplicates(now, sa);
        self.send_away(now, sa);
    }

    /// An IKE_AUTH request on a half-open IKE SA.
    pub(crate) fn receive_auth_request(&mut self, now: Time, sa: &mut IkeSa, request: Request<'_>) {
        let Parts { id_initiator, id_responder, method, data } = Parts::of(&request.payloads);
        // RFC 7296 section 2.16: without AUTH the initiator wants EAP, which is not spoken here.
        if id_initiator.is_some() && data.is_none() {
            self.respond_error(sa, &request, notify::AUTHENTICATION_FAILED);
            return self.refuse(now, sa);
        }
        let Some((id, data)) = id_initiator.zip(data) else {
            return self.reject_syntax(now, sa, &request);
        };
        let connection = match sa.resumed.and_then(|resumed| resumed.ticket) {
            Some(ticket) => {
                let authentic = |connection: &Profile| authentication_with(sa, connection, true, id);
                self.authenticate_resumed(now, sa, ticket, (id, id_responder), authentic, data)
            }
            None => self.authenticate(sa, id, id_responder, method, data),
        };
        let Some(connection) = connection else {
            self.respond_error(sa, &request, notify::AUTHENTICATION_FAILED);
            return self.refuse(now, sa);
        };
        self.connections[sa.connection.number].sas.remove(&sa.id);
        sa.connection = connection;
        sa.sir &= self.config.sir.contains(&sa.connection.name);
        // From our answer to the request that follows it; with the peer's computing, so not too short.
        sa.round_trip = Some(now.since(sa.created));
        follow_to_auth(sa, request.datagram);
        let is_contact = find_notify(&request.payloads, notify::INITIAL_CONTACT).is_some();
        if is_contact {
            self.end_older(now, sa);
        }
        let id = Id::new(&sa.connection.local_id);
        let Some(data) = authentication_data(sa, false, &id) else { return };
        let mut payloads = vec![
            Payload::IdResponder(id),
            Payload::Authentication { method: authentication::SHARED_KEY, data },
        ];
        payloads.extend(self.own_token(sa.spis, sa.remote));
        self.establish(now, sa);
        self.end_resumed(now, sa);
        self.drop_initiations(now, sa);
        self.store_tokens(sa, &request.payloads);
        let setup = std::mem::take(&mut sa.setup);
        let terms = Terms::first((&setup.nonce_i, &setup.nonce_r));
        // RFC 5685 section 6: no Child SA, where the peer is to go elsewhere.
        if let Some(redirect) = self.redirect_in_auth(now, sa) {
            payloads.push(redirect);
            return self.respond(sa, &request, &payloads);
        }
        // RFC 7296 section 1.2, 2.21.2: if the Child SA fails, the IKE SA is still created.
        match self.accept_child(now, sa, &request.payloads, terms) {
            Ok((_, accepted)) => payloads.extend(accepted),
            Err(error) => payloads.push(error),
        }
        self.end_superseded(now, sa);
        payloads.extend(self.answer_ticket_request(now, sa, &request.payloads));
        self.respond(sa, &request, &payloads);
        self.settle_duplicates(now, sa);
        self.send_away(now, sa);
    }

    /// The connection whose peer this is: by addresses, identities, what was negotiated, and the key.
    fn authenticate(
        &self,
        sa: &IkeSa,
        id: &Id,
        wanted: Option<&Id>,
        method: u8,
        data: &[u8],
    ) -> Option<Rc<Profile>> {
        let identity = id.identity()?;
        let wanted = match wanted {
            Some(id) => Some(id.identity()?),
            None => None,
        };
        let suite = sa.keys.as_ref()?.ike.suite();
        let offer = [crate::crypto::IkeProposal::from(suite).to_wire(1, &[])];
        // As by `candidates`, but from the few with this identity: there may be very many at one address.
        let named = self.lookups.by_remote_id.get(&identity.in_one_case()).map_or(&[][..], Vec::as_slice);
        let between = |remote| {
            // In ascending order.
            let all = self.lookups.by_addresses.get(&(remote, sa.local.ip())).map_or(&[][..], Vec::as_slice);
            let named = named.iter().filter(move |number| all.binary_search(number).is_ok());
            named.map(|number| &self.connections[*number].profile)
        };
        let matching = between(Some(sa.remote.ip())).chain(between(None)).find(|c| {
            identity.is(&c.remote_id)
                && wanted.as_ref().is_none_or(|w| w.is(&c.local_id))
                && select_ike(&c.proposals, &offer, None).is_ok()
        })?;
        let expected = authentication_with(sa, matching, true, id)?;
        (method == authentication::SHARED_KEY && equal(&expected, data)).then(|| matching.clone())
    }

    /// As responder: this half-open IKE SA failed. It stays only to repeat its answer.
    pub(crate) fn refuse(&mut self, now: Time, sa: &mut IkeSa) {
        sa.state = State::Refused;
        sa.expires = Some(now.after(self.config.half_open_timeout));
    }

    /// It is authenticated.
    fn establish(&mut self, now: Time, sa: &mut IkeSa) {
        self.leave_half_open(sa);
        sa.state = State::Established;
        sa.remote_id = Some(sa.connection.remote_id.clone());
        self.contacted.insert(peer(&sa.connection));
        self.start_timers(now, sa);
        self.note_success(sa);
        self.report(Report::IkeEstablished {
            ike: sa.id,
            spis: sa.spis,
            connection: sa.connection.name.clone(),
            initiator: sa.initiator,
            resumed: sa.resumed.is_some(),
        });
        for name in std::mem::take(&mut sa.wanted) {
            sa.enqueue(now, Task::CreateChild(name));
        }
    }

    /// Timers of an IKE SA that begins its life.
    pub(crate) fn start_timers(&mut self, now: Time, sa: &mut IkeSa) {
        sa.established = Some(now);
        sa.heard = now;
        sa.expires = None;
        sa.dpd_at = (!sa.connection.dpd_delay.is_zero()).then(|| now.after(sa.connection.dpd_delay));
        sa.rekey_at = jittered(now, sa.connection.rekey_time, self.random_u32());
        sa.keepalive_at = sa.nat.here.then(|| now.after(KEEPALIVE));
        sa.ticket_at = self.first_ticket_at(now, sa);
    }

    /// INITIAL_CONTACT is sent in the first IKE_AUTH to an identity in an incarnation (or after a proof that the peer
    /// lost its SAs), and only where no other IKE SA with it is active, or may be so there already: RFC 7296 section 2.4
    /// lets it say that this is the only one, and an entity that may be replicated MUST NOT say so. A half-open one that
    /// the peer initiated may be anybody's; it ends nothing of it, for it is not established there.
    fn may_send_initial_contact(&self, sa: &IkeSa) -> bool {
        let first = !self.contacted.contains(&peer(&sa.connection));
        let asks =
            |other: &IkeSa| matches!(other.outstanding.as_ref().map(|o| &o.purpose), Some(Purpose::Auth(_)));
        let active = |id| self.sas.get(id).is_some_and(|other| other.established.is_some() || asks(other));
        !self.config.replicated && (first || sa.initial_contact) && !self.same_peer(sa).iter().any(active)
    }

    /// INITIAL_CONTACT came: the peer has no IKE SA that was made before this one's IKE_SA_INIT (RFC 7296 section
    /// 2.4: it is authenticated here).
    fn end_older(&mut self, now: Time, sa: &IkeSa) {
        for id in self.same_peer(sa) {
            self.with_sa(now, id, |_, other| {
                if other.established.is_some_and(|at| at < sa.created) {
                    other.end(Authority::InitialContact(Evidence(())), false);
                }
            });
        }
    }

    /// Both sides may have initiated, at once or because one had not heard of the other's IKE SA. Of two IKE SAs of a
    /// connection, one by each side, the one whose IKE_SA_INIT had the lowest nonce is deleted by its creator, as
    /// after simultaneous rekeys (RFC 7296 section 2.8.1). Only what is known to both ends decides, so both decide
    /// alike, whenever they look; and a side that has lost one of the two deletes nothing of the peer's.
    pub(crate) fn settle_duplicates(&mut self, now: Time, sa: &mut IkeSa) {
        for id in self.same_peer(sa) {
            let lost = self.with_sa(now, id, |e, other| {
                let both = other.is_established() && sa.is_established();
                let unsettled = other.predecessor.is_some() || sa.predecessor.is_some();
                let same = other.connection.number == sa.connection.number;
                if !both || unsettled || !same || other.origin.ours == sa.origin.ours {
                    return false;
                }
                let other_lost = other.origin.lowest_nonce < sa.origin.lowest_nonce;
                if other_lost && other.origin.ours {
                    e.close_duplicate(now, other, sa);
                }
                let lost = !other_lost && sa.origin.ours;
                if lost {
                    e.close_duplicate(now, sa, other);
                }
                lost
            });
            if lost == Some(true) {
                return;
            }
        }
    }

    /// What the one that stays lacks is made on it.
    fn close_duplicate(&mut self, now: Time, lost: &mut IkeSa, stays: &mut IkeSa) {
        for name in &lost.child_names() - &stays.child_names() {
            stays.enqueue(now, Task::CreateChild(name));
        }
        self.close(now, lost, Authority::Superseded(Evidence(())));
    }
}

/// The payloads that matter to authentication; absent ones are `None`.
struct Parts<'a> {
    id_initiator: Option<&'a Id>,
    id_responder: Option<&'a Id>,
    method: u8,
    data: Option<&'a [u8]>,
}

impl<'a> Parts<'a> {
    fn of(payloads: &'a [Payload]) -> Parts<'a> {
        let mut parts = Parts { id_initiator: None, id_responder: None, method: 0, data: None };
        for payload in payloads {
            match payload {
                Payload::IdInitiator(id) => parts.id_initiator = Some(id),
                Payload::IdResponder(id) => parts.id_responder = Some(id),
                Payload::Authentication { method, data } => {
                    parts.method = *method;
                    parts.data = Some(data);
                }
                _ => {}
            }
        }
        parts
    }
}

/// RFC 7296 section 2.23: by its IKE_AUTH request an initiator behind a NAT has gone to port 4500, and where it is now
/// is seen here only; any other may have. But where no NAT is, its address is the one that IKE_SA_INIT came from and
/// signed: a copy of this request that an attacker sends first, from elsewhere, is answered and moves nothing.
fn follow_to_auth(sa: &mut IkeSa, datagram: &Datagram) {
    let there = datagram.remote.ip() == sa.remote.ip() && datagram.local.ip() == sa.local.ip();
    let floated = datagram.local.port() == NAT_PORT && datagram.remote.port() == NAT_PORT;
    if sa.nat.there || there && floated {
        (sa.local, sa.remote) = (datagram.local, datagram.remote);
    }
}

/// Who speaks with whom.
pub(crate) fn peer(connection: &ConnectionConfig) -> (Identity, Identity) {
    (connection.local_id.clone(), connection.remote_id.clone())
}

/// AUTH of the original initiator or responder with the IKE SA's connection.
fn authentication_data(sa: &IkeSa, initiator: bool, id: &Id) -> Option<Vec<u8>> {
    authentication_with(sa, &sa.connection, initiator, id)
}

/// RFC 7296 section 2.15: the signer's IKE_SA_INIT message, the other side's nonce, prf(SK_p, ID).
fn authentication_with(sa: &IkeSa, connection: &Profile, initiator: bool, id: &Id) -> Option<Vec<u8>> {
    let keys = sa.keys.as_ref()?;
    let setup = &sa.setup;
    let (message, nonce) =
        if initiator { (&setup.request, &setup.nonce_r) } else { (&setup.response, &setup.nonce_i) };
    let octets = keys.ike.signed_octets(initiator, message, nonce, id.body());
    // RFC 5723 section 4.3.3: by the new IKE SA's SK_pi or SK_pr, which are the ticket's.
    if sa.resumed.is_some() {
        return Some(keys.ike.resumed_authentication(initiator, &octets).to_vec());
    }
    Some(psk_authentication(keys.ike.suite().prf, &connection.psk.0, &octets).to_vec())
}
