//! Protected messages within the window of 1: what is sealed and opened, which Message ID is due, what a
//! retransmitted request gets, and which handler a message goes to (RFC 7296 section 2.1 to 2.3).

use crate::api::*;
use crate::endpoint::{Endpoint, find_notify, notification};
use crate::exchange::Purpose;
use crate::sa::{IkeSa, State};
use crate::tombstone::{LastResponse, message_hash};
use crate::wire::{self, Payload, View, exchange, notify};
use spindle_abi::Time;

/// An authenticated request that is due.
pub(crate) struct Request<'a> {
    pub(crate) header: Header,
    pub(crate) payloads: Vec<Payload>,
    pub(crate) datagram: &'a Datagram,
    /// From the IKE header on.
    message: &'a [u8],
}

impl Endpoint {
    /// A sealed message of an IKE SA; `None` before it has keys.
    pub(crate) fn seal(
        &mut self,
        sa: &mut IkeSa,
        exchange: u8,
        response: bool,
        message_id: u32,
        payloads: &[Payload],
    ) -> Option<Vec<u8>> {
        let header = Header {
            spis: sa.spis,
            next_payload: 0,
            exchange,
            response,
            initiator: sa.initiator,
            message_id,
        };
        Some(wire::seal(&header, payloads, &mut sa.keys.as_mut()?.sealing))
    }

    /// A protected message of this IKE SA, if it is authentic.
    pub(crate) fn receive_sealed(
        &mut self,
        now: Time,
        sa: &mut IkeSa,
        datagram: &Datagram,
        message: &[u8],
        view: &View<'_>,
    ) {
        let header = view.header();
        // The sender's I flag is the opposite of ours; the SPIs matched in these positions.
        let Some(keys) = &sa.keys else { return };
        let repeated = sa.last_response.as_ref().filter(|_| !header.response);
        let repeated = repeated.filter(|last| last.message_id == header.message_id);
        let due = match (header.response, &sa.outstanding) {
            (true, Some(o)) => o.message_id == header.message_id && exchange_of(o) == Some(header.exchange),
            (true, None) => false,
            (false, _) => sa.receive_id == header.message_id && takes_requests(sa, header.exchange),
        };
        // RFC 7296 section 2.3: what is outside the window is dropped.
        if !due && repeated.is_none() {
            return;
        }
        let opened = view.open(&keys.opening);
        if matches!(opened, Err(wire::Error::Integrity | wire::Error::Unprotected)) {
            return;
        }
        // RFC 7296 section 2.1: a retransmitted request triggers a retransmission of the response and nothing else.
        if let Some(last) = repeated {
            let response = last.response.clone();
            // Either this copy or the first one may be an attacker's.
            if sa.follows_peer() && datagram.remote != sa.remote {
                sa.elsewhere = Some(datagram.remote);
            }
            return self.answer(datagram, &response);
        }
        sa.note_heard(now);
        self.follow_peer(sa, datagram);
        if header.response {
            return self.receive_response(now, sa, datagram, opened);
        }
        sa.receive_id = sa.receive_id.saturating_add(1);
        match opened {
            Ok(payloads) => self.receive_request(now, sa, Request { header, payloads, datagram, message }),
            Err(error) => {
                let request = Request { header, payloads: Vec::new(), datagram, message };
                self.reject(now, sa, &request, error);
            }
        }
    }

    fn receive_request(&mut self, now: Time, sa: &mut IkeSa, request: Request<'_>) {
        // RFC 6290 section 4.4: a token is accepted in any protected exchange; an IKE_AUTH that fails stores none.
        if sa.established.is_some() {
            self.store_tokens(sa, &request.payloads);
        }
        let of_child = |p: &Payload| matches!(p, Payload::Sa(_) | Payload::Delete(wire::Delete::Esp(_)));
        if request.payloads.iter().any(of_child) {
            self.inherit_early(now, sa);
        }
        match request.header.exchange {
            exchange::IKE_AUTH => self.receive_auth_request(now, sa, request),
            exchange::CREATE_CHILD_SA => self.receive_create_child_request(now, sa, request),
            _ => self.receive_informational_request(now, sa, request),
        }
    }

    fn receive_response(
        &mut self,
        now: Time,
        sa: &mut IkeSa,
        datagram: &Datagram,
        opened: Result<Vec<Payload>, wire::Error>,
    ) {
        let Some(outstanding) = sa.outstanding.take() else { return };
        sa.round_trip = outstanding.schedule.round_trip(now).or(sa.round_trip);
        if matches!(outstanding.purpose, Purpose::Auth(_)) {
            self.count_answer(&outstanding.schedule);
        }
        let payloads = match opened {
            Ok(payloads) => payloads,
            // RFC 7296 section 2.21.3: an authenticated peer that breaks the protocol. A response is never answered.
            Err(error) => return self.give_up(now, sa, outstanding.purpose, &error.to_string()),
        };
        if sa.established.is_some() && !matches!(outstanding.purpose, Purpose::RekeyIke(_)) {
            self.store_tokens(sa, &payloads);
            self.store_ticket(now, sa, &payloads);
        }
        // RFC 7296 section 2.21.3: INVALID_SYNTAX is fatal in both peers.
        if find_notify(&payloads, notify::INVALID_SYNTAX).is_some() && sa.established.is_some() {
            self.abandon(now, sa, outstanding.purpose);
            return sa.end(Authority::ProtocolError(Evidence(())), false);
        }
        match outstanding.purpose {
            Purpose::Init(_) | Purpose::Resume(_) => {}
            Purpose::Auth(auth) => self.receive_auth_response(now, sa, datagram, *auth, &payloads),
            Purpose::CreateChild(offer) => self.receive_child_response(now, sa, *offer, &payloads),
            Purpose::RekeyIke(offer) => self.receive_ike_rekey_response(now, sa, *offer, &payloads),
            Purpose::DeleteChildren(children) => {
                for child in children {
                    self.finish_child_delete(now, sa, child);
                }
            }
            Purpose::DeleteIke => self.finish_ike_delete(sa),
            Purpose::Informational => self.take_check_spi_answer(sa, &payloads),
            Purpose::Token => {
                self.tokens.acknowledged(sa.spis);
                self.report(Report::TokenAcknowledged { ike: sa.id, spis: sa.spis });
            }
            Purpose::Redirect(to) => self.report(Report::Redirected { ike: sa.id, to }),
            Purpose::RefuseResponder => sa.end(Authority::ProtocolError(Evidence(())), false),
        }
    }

    /// The response to our request cannot be understood: the exchange failed, and the IKE SA is closed.
    fn give_up(&mut self, now: Time, sa: &mut IkeSa, purpose: Purpose, why: &str) {
        tracing::debug!(spis = ?sa.spis, why, "the peer's response cannot be understood");
        self.abandon(now, sa, purpose);
        if sa.established.is_none() || matches!(sa.state, State::Deleting(_) | State::Rekeyed) {
            return sa.end(Authority::ProtocolError(Evidence(())), false);
        }
        self.close(now, sa, Authority::ProtocolError(Evidence(())));
    }

    /// Answers a request that was authentic but not understood. RFC 7296 section 2.5: UNSUPPORTED_CRITICAL_PAYLOAD
    /// rejects the request alone; section 2.21.3: INVALID_SYNTAX ends the IKE SA at both ends.
    fn reject(&mut self, now: Time, sa: &mut IkeSa, request: &Request<'_>, error: wire::Error) {
        let Some(notify) = error.notify() else { return };
        self.respond(sa, request, &[Payload::Notify(notify)]);
        if sa.state == State::Connecting {
            self.refuse(now, sa);
        } else if matches!(error, wire::Error::Malformed(_)) {
            sa.end(Authority::ProtocolError(Evidence(())), false);
        }
    }

    /// The same for a request whose payloads do not make sense together.
    pub(crate) fn reject_syntax(&mut self, now: Time, sa: &mut IkeSa, request: &Request<'_>) {
        self.reject(now, sa, request, wire::Error::Malformed("payloads are missing or impossible"));
    }

    /// Sends the response to a request, back to where it came from (RFC 7296 section 2.11), and keeps it for
    /// retransmissions.
    pub(crate) fn respond(&mut self, sa: &mut IkeSa, request: &Request<'_>, payloads: &[Payload]) {
        let Header { exchange, message_id, .. } = request.header;
        let Some(response) = self.seal(sa, exchange, true, message_id, payloads) else { return };
        self.answer(request.datagram, &response);
        let request = message_hash(request.message);
        sa.last_response = Some(LastResponse { message_id, request, response });
    }

    /// Answers with a single error.
    pub(crate) fn respond_error(&mut self, sa: &mut IkeSa, request: &Request<'_>, kind: u16) {
        self.respond(sa, request, &[notification(kind, Vec::new())]);
    }

    /// RFC 7296 section 2.23: a peer behind a NAT is followed to the source of any new authenticated packet; but not
    /// by a host that is behind a NAT itself.
    pub(crate) fn follow_peer(&mut self, sa: &mut IkeSa, datagram: &Datagram) {
        let moved = sa.remote != datagram.remote && sa.local.port() == datagram.local.port();
        if moved && sa.follows_peer() {
            sa.elsewhere = Some(std::mem::replace(&mut sa.remote, datagram.remote));
            self.readdress(sa);
        }
    }

    /// Stores the QCD tokens of a protected message (RFC 6290 section 4.4).
    pub(crate) fn store_tokens(&mut self, sa: &mut IkeSa, payloads: &[Payload]) {
        if !self.config.token_taker {
            return;
        }
        for token in crate::endpoint::notifies(payloads) {
            // RFC 6290 section 4.1: SPI Size MUST be 0; the Protocol ID is ignored (RFC 7296 section 3.10).
            let valid = token.kind == notify::QUICK_CRASH_DETECTION && token.spi.is_empty();
            if valid && sa.store_token(&token.data) {
                self.report(Report::TokenStored { ike: sa.id });
            }
        }
    }
}

/// The exchange type of a request that only a protected response answers.
fn exchange_of(outstanding: &crate::exchange::Outstanding) -> Option<u8> {
    match outstanding.purpose {
        Purpose::Init(_) | Purpose::Resume(_) => None,
        Purpose::Auth(_) => Some(exchange::IKE_AUTH),
        Purpose::CreateChild(_) | Purpose::RekeyIke(_) => Some(exchange::CREATE_CHILD_SA),
        _ => Some(exchange::INFORMATIONAL),
    }
}

/// May a new request of this type come now? RFC 7296 section 1.2: IKE_AUTH first and once; section 1.4: an
/// INFORMATIONAL only after the initial exchanges.
fn takes_requests(sa: &IkeSa, exchange: u8) -> bool {
    match (&sa.state, exchange) {
        (State::Connecting, exchange::IKE_AUTH) => !sa.initiator,
        (State::Connecting | State::Refused, _) => false,
        (_, exchange::CREATE_CHILD_SA | exchange::INFORMATIONAL) => true,
        _ => false,
    }
}
