//! IKE_SESSION_RESUME, both roles (RFC 5723 section 4.3): a ticket and nonces in clear make the keys of a new IKE SA
//! from SK_d of the old one; IKE_AUTH follows as after IKE_SA_INIT, with AUTH by SK_pi and SK_pr.
//!
//! ```text
//!   client                                          gateway
//!   HDR, [N(COOKIE),] Ni, N(TICKET_OPAQUE)  ------>
//!                                           <------  HDR, Nr
//!   HDR, SK {IDi, IDr, AUTH, SA, TSi, TSr}  ------>
//!                                           <------  HDR, SK {IDr, AUTH, SA, TSi, TSr}
//! ```
//!
//! Nothing before IKE_AUTH is authenticated. An answer that is no acceptance, forged or not, leads to IKE_SA_INIT at
//! once, and so does silence after one retransmission on schedule: the regular exchange is never the weaker one.

use crate::api::*;
use crate::connect::Profile;
use crate::crypto::{IkeKeys, equal};
use crate::endpoint::{Endpoint, find_error, find_notify, notification};
use crate::exchange::{Outstanding, Purpose};
use crate::init::{Agreed, HalfOpen, MAX_RESTARTS, usable_cookie};
use crate::kept::field::fields;
use crate::retransmit::Schedule;
use crate::sa::IkeSa;
use crate::ticket::{Held, TicketId};
use crate::wire::{Id, Message, Payload, View, exchange, notify};
use spindle_abi::Time;
use std::rc::Rc;

/// What the client keeps until the response.
pub(crate) struct Resumption {
    held: Held,
    nonce: Vec<u8>,
    cookie: Option<Vec<u8>>,
    /// COOKIE answers followed.
    restarts: u32,
}

/// What an IKE SA that a ticket made knows of its origin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Resumed {
    /// The IKE SA that it resumes.
    pub(crate) old: IkeSpis,
    /// As gateway: the ticket, used once the client is authenticated.
    pub(crate) ticket: Option<TicketId>,
}

fields!(Resumed { old, ticket });

/// Retransmissions of a request on schedule before the regular exchange takes its place: a peer may know no tickets any more.
const TRIES: u32 = 1;

impl Endpoint {
    /// Begins an IKE SA as initiator, with a ticket. `cookie`: one that the peer gave beforehand.
    pub(crate) fn begin_resume(&mut self, now: Time, sa: &mut IkeSa, held: Held, cookie: Option<Vec<u8>>) {
        let nonce = self.nonce();
        self.send_resume_request(now, sa, Resumption { held, nonce, cookie, restarts: 0 });
    }

    fn send_resume_request(&mut self, now: Time, sa: &mut IkeSa, resumption: Resumption) {
        let mut payloads: Vec<Payload> = Vec::new();
        payloads.extend(resumption.cookie.clone().map(|cookie| notification(notify::COOKIE, cookie)));
        payloads.push(Payload::Nonce(resumption.nonce.clone()));
        payloads.push(notification(notify::TICKET_OPAQUE, resumption.held.ticket.clone()));
        let nonce = resumption.nonce.clone();
        let mut schedule = Schedule::new(sa.connection.retransmission, now);
        schedule.limit(TRIES);
        let purpose = Purpose::Resume(Box::new(resumption));
        self.send_first_request(sa, exchange::IKE_SESSION_RESUME, payloads, nonce, purpose, schedule);
    }

    /// A response to our IKE_SESSION_RESUME request, perhaps.
    pub(crate) fn receive_resume_response(
        &mut self,
        now: Time,
        sa: &mut IkeSa,
        datagram: &Datagram,
        octets: &[u8],
        view: &View<'_>,
    ) {
        let header = view.header();
        if !sa.initiator || header.initiator || header.message_id != 0 {
            return;
        }
        let Ok(message) = view.message() else { return };
        let resumes = |o: &mut Outstanding| matches!(o.purpose, Purpose::Resume(_));
        let Some(outstanding) = sa.outstanding.take_if(resumes) else { return };
        let Outstanding { purpose: Purpose::Resume(mut resumption), message_id, octets: request, schedule } =
            outstanding
        else {
            return;
        };
        let payloads = message.payloads;
        if find_notify(&payloads, notify::REDIRECT).is_some() {
            if !self.follow_redirect_in_clear(now, sa, &payloads) {
                let purpose = Purpose::Resume(resumption);
                sa.outstanding = Some(Outstanding { message_id, octets: request, purpose, schedule });
            }
            return;
        }
        let refused = find_notify(&payloads, notify::TICKET_NACK).is_some();
        if refused || find_error(&payloads).is_some() {
            tracing::debug!(connection = sa.connection.name, "the peer takes no ticket");
            return self.begin_init(now, sa, None);
        }
        let nonce = payloads.iter().find_map(|p| match p {
            Payload::Nonce(nonce) => Some(nonce.clone()),
            _ => None,
        });
        if let Some(nonce) = nonce.filter(|_| header.spis.responder != [0; 8]) {
            let Held { suite, sk_d, spis: old, .. } = &resumption.held;
            self.count_answer(&schedule);
            sa.round_trip = schedule.round_trip(now).or(sa.round_trip);
            let keys = IkeKeys::resume(*suite, sk_d, &resumption.nonce, &nonce, header.spis);
            sa.resumed = Some(Resumed { old: *old, ticket: None });
            return self.finish_init(
                now,
                sa,
                datagram,
                octets,
                Agreed { keys, nonce, spis: header.spis, payloads },
            );
        }
        let cookie = usable_cookie(&payloads, resumption.cookie.as_ref());
        if let Some(cookie) = cookie.filter(|_| resumption.restarts < MAX_RESTARTS) {
            resumption.cookie = Some(cookie);
            resumption.restarts += 1;
            return self.send_resume_request(now, sa, *resumption);
        }
        let purpose = Purpose::Resume(resumption);
        sa.outstanding = Some(Outstanding { message_id, octets: request, purpose, schedule });
    }

    /// An IKE_SESSION_RESUME request: a half-open IKE SA, or TICKET_NACK (RFC 5723 section 4.3.2). What is wrong with
    /// a ticket is not said.
    pub(crate) fn accept_resume(
        &mut self,
        now: Time,
        datagram: &Datagram,
        octets: &[u8],
        message: &Message,
        proven: &mut bool,
    ) -> Result<(), Option<Notify>> {
        let nonce = message.payloads.iter().find_map(|p| match p {
            Payload::Nonce(nonce) => Some(nonce),
            _ => None,
        });
        let ticket = find_notify(&message.payloads, notify::TICKET_OPAQUE);
        let Some((nonce_i, ticket)) = nonce.zip(ticket) else {
            let kind = notify::INVALID_SYNTAX;
            return Err(Some(Notify { kind, protocol: 0, spi: Vec::new(), data: Vec::new() }));
        };
        *proven = self.proves_address(now, datagram, message, nonce_i)?;
        let Some((ticket, state, connection)) = self.open_ticket(now, datagram, &ticket.data) else {
            // Shorter than the request, so not worth an attacker's while, and what waits for it is a whole peer:
            // RFC 7296 section 2.21.4's limit is the half-open IKE SAs' here.
            let refusal = vec![notification(notify::TICKET_NACK, Vec::new())];
            self.answer_in_clear(datagram, &message.header, refusal);
            return Err(None);
        };
        let initiator = message.header.spis.initiator;
        let spis = IkeSpis { initiator, responder: self.allocate_ike_spi() };
        let nonce_r = self.nonce();
        let keys = IkeKeys::resume(state.suite, &state.sk_d, nonce_i, &nonce_r, spis);
        let resumed = Some(Resumed { old: state.spis, ticket: Some(ticket) });
        let payloads = vec![Payload::Nonce(nonce_r.clone())];
        let made = HalfOpen { connection, keys, spis, nonce_i: nonce_i.clone(), nonce_r, payloads, resumed };
        self.open_half(now, datagram, octets, message, made);
        Ok(())
    }

    /// As gateway: does this client hold the key that the ticket was granted with? RFC 5723 section 4.3.3: IDi and IDr
    /// MUST be the ticket's, which are the connection's. Then the ticket is used (section 4.3.1: not before).
    pub(crate) fn authenticate_resumed(
        &mut self,
        now: Time,
        sa: &IkeSa,
        ticket: TicketId,
        (id, wanted): (&Id, Option<&Id>),
        authentic: impl FnOnce(&Profile) -> Option<Vec<u8>>,
        data: &[u8],
    ) -> Option<Rc<Profile>> {
        let connection = sa.connection.clone();
        let named = id.identity().as_ref() == Some(&connection.remote_id)
            && wanted.is_none_or(|id| id.identity().as_ref() == Some(&connection.local_id));
        let expected = authentic(&connection)?;
        (named && equal(&expected, data) && self.tickets.spend(now, ticket)).then_some(connection)
    }

    /// As gateway: the client resumed an IKE SA that lives here. RFC 5723 section 4.3.4: it SHOULD be silently deleted,
    /// its Child SAs with it.
    pub(crate) fn end_resumed(&mut self, now: Time, sa: &IkeSa) {
        let Some(Resumed { old, ticket: Some(_) }) = sa.resumed else { return };
        let same = self.same_peer(sa);
        if let Some(id) = self.find_by_spis(old).filter(|id| same.contains(id)) {
            self.with_sa(now, id, |_, other| other.end(Authority::Superseded(Evidence(())), false));
        }
    }
}
