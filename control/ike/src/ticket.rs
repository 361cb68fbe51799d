//! Tickets by value (RFC 5723 section 4.1, 4.2, 6): asked for, granted and kept.
//!
//! Whoever asks is the client of its own ticket; between two gateways that is each of them. The initiator of IKE_AUTH
//! asks in that exchange, its responder a little later in an INFORMATIONAL one, and after an IKE rekey both do so on
//! the new IKE SA: under the old one's protection a new ticket would give away what the rekey has won, should the old
//! one's keys be lost with an earlier ticket. What a ticket holds is written and read here; sealing it, so that nobody else can, and knowing which are used is the
//! [`TicketKeeper`]'s. A ticket goes with its IKE SA, unless the peer lost that one: then it waits with the connection
//! for the next initiation ([`resume`](crate::resume)).

use crate::api::*;
use crate::connect::Profile;
use crate::crypto::{IkeSuite, Prf, Secret, equal};
use crate::endpoint::{Endpoint, find_notify, notification};
use crate::exchange::{Purpose, Task};
use crate::kept::field::{Field, Reader, Writer, fields};
use crate::random::Random;
use crate::sa::{IkeSa, State};
use crate::wire::{Id, Payload, authentication, notify};
use spindle_abi::Time;
use std::rc::Rc;
use std::time::Duration;
use zeroize::Zeroizing;

/// Names one ticket of this gateway for its whole life.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TicketId(pub [u8; 32]);

/// What an unused, unexpired ticket of this gateway holds.
pub struct OpenedTicket {
    /// Which it is.
    pub id: TicketId,
    /// The state that was sealed.
    pub state: Zeroizing<Vec<u8>>,
}

impl Field for TicketId {
    fn put(&self, out: &mut Writer) {
        self.0.put(out);
    }
    fn take(from: &mut Reader<'_>) -> Option<TicketId> {
        Some(TicketId(Field::take(from)?))
    }
}

/// Seals and opens this gateway's tickets; implemented by recovery. RFC 5723 section 6.1: encrypted, authenticated,
/// with the key's identity and an absolute expiry; section 9.5: under keys that serve nothing else.
pub trait TicketKeeper {
    /// A ticket that only [`TicketKeeper::open`] understands, for so long; `None` if none can be granted.
    fn seal(
        &mut self,
        now: Time,
        lifetime: Duration,
        state: &[u8],
        random: &mut dyn Random,
    ) -> Option<Vec<u8>>;
    /// Opens a ticket of our own; `None` if it is foreign, damaged, expired or used.
    fn open(&mut self, now: Time, ticket: &[u8]) -> Option<OpenedTicket>;
    /// An IKE SA stands by this ticket: used from here on, and after a crash. `false` if it was used before.
    fn spend(&mut self, now: Time, ticket: TicketId) -> bool;
}

/// Grants no ticket and knows none.
pub(crate) struct NoTickets;

impl TicketKeeper for NoTickets {
    fn seal(&mut self, _: Time, _: Duration, _: &[u8], _: &mut dyn Random) -> Option<Vec<u8>> {
        None
    }
    fn open(&mut self, _: Time, _: &[u8]) -> Option<OpenedTicket> {
        None
    }
    fn spend(&mut self, _: Time, _: TicketId) -> bool {
        false
    }
}

/// A ticket of the peer's, and until when it is good.
pub(crate) struct Ticket {
    octets: Vec<u8>,
    expires: Time,
}

fields!(Ticket { octets, expires });

/// A ticket whose IKE SA the peer lost, with what RFC 5723 section 5 marks "from the ticket": a client cannot look
/// into it. The identities and the authentication method are the connection's.
pub(crate) struct Held {
    pub(crate) ticket: Vec<u8>,
    expires: Time,
    pub(crate) suite: IkeSuite,
    pub(crate) sk_d: Secret,
    pub(crate) spis: IkeSpis,
}

/// Octets of a peer's ticket at most: it must fit into a datagram beside a nonce.
const MAX_TICKET: usize = 1200;
/// A longer one is promised in IKE_AUTH, whose other payloads are long already, and granted on its own.
const MAX_TICKET_IN_AUTH: usize = 512;
/// Until a ticket is asked for in an exchange of its own: what is urgent goes before.
const ASK_AFTER: Duration = Duration::from_secs(1);
/// Until a ticket is asked for again that was promised once more.
const ASK_AGAIN: Duration = Duration::from_secs(60);

const VERSION: u8 = 1;

/// What a ticket of ours holds (RFC 5723 section 5: all items "from the ticket"; certificates are not used).
pub(crate) struct TicketState {
    pub(crate) suite: IkeSuite,
    method: u8,
    /// Body of the client's ID payload, the IDi of a resumption.
    id_initiator: Vec<u8>,
    /// Body of our own, its IDr.
    id_responder: Vec<u8>,
    /// The old IKE SA's (section 5, Note 4): to find it if it lives, never to be used again.
    pub(crate) spis: IkeSpis,
    pub(crate) sk_d: Secret,
    /// Of the pre-shared key: with a new key an earlier ticket is void (section 6.2).
    credential: Secret,
}

impl TicketState {
    /// Of an established IKE SA, for its peer as client.
    fn of(sa: &IkeSa) -> Option<TicketState> {
        let keys = &sa.keys.as_ref()?.ike;
        Some(TicketState {
            suite: keys.suite(),
            method: authentication::SHARED_KEY,
            id_initiator: Id::new(&sa.connection.remote_id).body().to_vec(),
            id_responder: Id::new(&sa.connection.local_id).body().to_vec(),
            spis: sa.spis,
            sk_d: keys.derivation_key().clone(),
            credential: credential(&sa.connection),
        })
    }

    fn encode(&self) -> Zeroizing<Vec<u8>> {
        // Room for all, so that no copy with SK_d is left behind.
        let mut out = Zeroizing::new(Vec::with_capacity(1024));
        out.extend([VERSION, self.method]);
        out.extend(self.spis.initiator);
        out.extend(self.spis.responder);
        let suite = self.suite.to_string();
        let parts: [&[u8]; 5] =
            [suite.as_bytes(), &self.id_initiator, &self.id_responder, &self.sk_d, &self.credential];
        for part in parts {
            out.extend(u16::try_from(part.len()).unwrap_or(u16::MAX).to_be_bytes());
            out.extend(part);
        }
        out
    }

    pub(crate) fn decode(octets: &[u8]) -> Option<TicketState> {
        let (head, mut rest) = octets.split_first_chunk::<18>()?;
        let [VERSION, method, spis @ ..] = head else { return None };
        let (initiator, responder) = spis.split_at(8);
        let mut part = || {
            let (length, after) = rest.split_first_chunk::<2>()?;
            let (part, after) = after.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
            rest = after;
            Some(part)
        };
        let suite = IkeSuite::parse(std::str::from_utf8(part()?).ok()?)?;
        let (id_initiator, id_responder) = (part()?.to_vec(), part()?.to_vec());
        let (sk_d, credential) = (Zeroizing::new(part()?.to_vec()), Zeroizing::new(part()?.to_vec()));
        let whole = rest.is_empty() && sk_d.len() == suite.prf.length();
        whole.then_some(TicketState {
            suite,
            method: *method,
            id_initiator,
            id_responder,
            spis: IkeSpis { initiator: initiator.try_into().ok()?, responder: responder.try_into().ok()? },
            sk_d,
            credential,
        })
    }

    /// May the client resume with this connection? As it is configured now: identities, key and proposals are still
    /// those that the ticket was granted for.
    pub(crate) fn serves(&self, connection: &Profile) -> bool {
        let allowed = |p: &crate::crypto::IkeProposal| {
            p.encryption.contains(&self.suite.encryption)
                && p.prf.contains(&self.suite.prf)
                && p.groups.contains(&self.suite.group)
        };
        connection.resumption
            && self.method == authentication::SHARED_KEY
            && self.id_initiator == Id::new(&connection.remote_id).body()
            && self.id_responder == Id::new(&connection.local_id).body()
            && equal(&self.credential, &credential(connection))
            && connection.proposals.iter().any(allowed)
    }
}

fn credential(connection: &Profile) -> Secret {
    Prf::HmacSha256.compute(&connection.psk.0, &[b"credential of a ticket"])
}

impl Endpoint {
    /// Lets this gateway grant and take tickets, for connections with `resumption`.
    pub fn set_tickets(&mut self, tickets: Box<dyn TicketKeeper>) {
        self.tickets = tickets;
    }

    /// The operator ended a connection, as a user logs out: RFC 5723 section 6.2, its ticket MUST be deleted.
    pub fn forget_ticket(&mut self, connection: &str) {
        for connection in self.connections.iter_mut().filter(|c| c.profile.name == connection) {
            connection.ticket = None;
        }
    }

    /// TICKET_REQUEST, where the connection is one that resumes.
    pub(crate) fn ticket_request(&self, connection: &Profile) -> Option<Payload> {
        connection.resumption.then(|| notification(notify::TICKET_REQUEST, Vec::new()))
    }

    /// When an IKE SA that begins its life asks for a ticket, if it has none by then.
    pub(crate) fn first_ticket_at(&self, now: Time, sa: &IkeSa) -> Option<Time> {
        sa.connection.resumption.then(|| now.after(ASK_AFTER))
    }

    /// Asks for a ticket: none came yet, or the one that is held ends soon (RFC 5723 section 4.1).
    pub(crate) fn request_ticket(&mut self, now: Time, sa: &mut IkeSa) {
        let request = self.ticket_request(&sa.connection);
        self.inform(now, sa, request.as_slice(), Purpose::Informational);
    }

    /// The answer to a TICKET_REQUEST among these payloads, with a ticket for `sa` (RFC 5723 section 4.1: a ticket,
    /// TICKET_NACK, or TICKET_ACK for a later one).
    pub(crate) fn answer_ticket_request(
        &mut self,
        now: Time,
        sa: &IkeSa,
        payloads: &[Payload],
    ) -> Option<Payload> {
        find_notify(payloads, notify::TICKET_REQUEST)?;
        let Some((lifetime, ticket)) = self.grant(now, sa) else {
            return Some(notification(notify::TICKET_NACK, Vec::new()));
        };
        let in_auth = payloads.iter().any(|p| matches!(p, Payload::Authentication { .. }));
        if in_auth && ticket.len() > MAX_TICKET_IN_AUTH {
            return Some(notification(notify::TICKET_ACK, Vec::new()));
        }
        // RFC 5723 section 7.1: seconds left, then the ticket.
        let data = [&lifetime.to_be_bytes(), ticket.as_slice()].concat();
        Some(notification(notify::TICKET_LT_OPAQUE, data))
    }

    /// The same in an IKE rekey: the ticket of the new IKE SA is granted under its own protection only.
    pub(crate) fn defer_ticket_request(&self, sa: &IkeSa, payloads: &[Payload]) -> Option<Payload> {
        find_notify(payloads, notify::TICKET_REQUEST)?;
        let answer = if sa.connection.resumption { notify::TICKET_ACK } else { notify::TICKET_NACK };
        Some(notification(answer, Vec::new()))
    }

    /// A ticket, and its lifetime in seconds. RFC 5723 section 6.2: no longer than that of an IKE SA, and finite.
    fn grant(&mut self, now: Time, sa: &IkeSa) -> Option<(u32, Vec<u8>)> {
        let state = TicketState::of(sa).filter(|_| sa.connection.resumption)?.encode();
        let rekey = Some(sa.connection.rekey_time).filter(|time| !time.is_zero());
        let lifetime =
            rekey.map_or(self.config.ticket_lifetime, |time| time.min(self.config.ticket_lifetime));
        let seconds = u32::try_from(lifetime.as_secs()).ok().filter(|seconds| *seconds > 0)?;
        let lifetime = Duration::from_secs(seconds.into());
        let ticket = self.tickets.seal(now, lifetime, &state, &mut *self.random)?;
        (ticket.len() <= MAX_TICKET).then_some((seconds, ticket))
    }

    /// Keeps the ticket of a protected message, if it holds one (RFC 5723 section 4.2), and settles when the next one
    /// is asked for.
    pub(crate) fn store_ticket(&mut self, now: Time, sa: &mut IkeSa, payloads: &[Payload]) {
        if !sa.connection.resumption {
            return;
        }
        if find_notify(payloads, notify::TICKET_NACK).is_some() {
            sa.ticket_at = None;
        } else if find_notify(payloads, notify::TICKET_ACK).is_some() {
            // Soon where IKE_AUTH was too long for it; else seldom, for it may be the answer every time.
            let in_auth = payloads.iter().any(|p| matches!(p, Payload::Authentication { .. }));
            sa.ticket_at = Some(now.after(if in_auth { ASK_AFTER } else { ASK_AGAIN }));
        }
        let Some(granted) = find_notify(payloads, notify::TICKET_LT_OPAQUE) else { return };
        let Some((lifetime, octets)) = granted.data.split_first_chunk::<4>() else { return };
        let lifetime = Duration::from_secs(u32::from_be_bytes(*lifetime).into());
        if lifetime.is_zero() || !(1..=MAX_TICKET).contains(&octets.len()) {
            return;
        }
        sa.ticket = Some(Ticket { octets: octets.to_vec(), expires: now.after(lifetime) });
        // RFC 5723 section 4.1: another one when this one's lifetime is about to end.
        sa.ticket_at = Some(now.after((lifetime / 4 * 3).max(ASK_AFTER)));
    }

    /// An IKE SA ends. RFC 5723 section 6.2: a ticket ends with its IKE SA, where one side deleted that, and with a
    /// rekey of it. But the one that the peer lost, as a QCD token proves (RFC 6290 section 7) or no answer to any
    /// request (section 9.4: never an untrusted message), is what a ticket is for: it waits for the next initiation.
    pub(crate) fn keep_ticket(&mut self, sa: &mut IkeSa, authority: &Authority) {
        let Some(ticket) = sa.ticket.take() else { return };
        let lost = matches!(authority, Authority::Timeout(_) | Authority::Token(_));
        let connection = &mut self.connections[sa.connection.number];
        let goes_on = connection.sas.iter().any(|id| self.sas.get(id).is_some_and(IkeSa::is_established));
        if lost && sa.state == State::Established && !goes_on {
            connection.ticket = sa.keys.as_ref().map(|keys| Held {
                ticket: ticket.octets,
                expires: ticket.expires,
                suite: keys.ike.suite(),
                sk_d: keys.ike.derivation_key().clone(),
                spis: sa.spis,
            });
        }
    }

    /// The ticket for a new initiation, if one waits. RFC 5723 section 4.3.1: presented once, and never when it is
    /// known to have expired.
    pub(crate) fn take_ticket(&mut self, now: Time, number: usize) -> Option<Held> {
        let connection = &mut self.connections[number];
        connection.ticket.take().filter(|held| held.expires > now && connection.profile.resumption)
    }

    /// A presented ticket: what it holds, and the connection that it resumes; `None` is TICKET_NACK.
    pub(crate) fn open_ticket(
        &mut self,
        now: Time,
        datagram: &Datagram,
        ticket: &[u8],
    ) -> Option<(TicketId, TicketState, Rc<Profile>)> {
        let opened = self.tickets.open(now, ticket)?;
        let state = TicketState::decode(&opened.state)?;
        let connection = self
            .candidates(datagram.local.ip(), datagram.remote.ip())
            .find(|connection| state.serves(connection))?
            .clone();
        Some((opened.id, state, connection))
    }

    /// A ticket is due.
    pub(crate) fn want_ticket(&mut self, now: Time, sa: &mut IkeSa) {
        sa.ticket_at = None;
        sa.enqueue(now, Task::RequestTicket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Group;
    use spindle_abi::Suite;

    fn state() -> TicketState {
        TicketState {
            suite: IkeSuite { encryption: Suite::Aes256Gcm, prf: Prf::HmacSha384, group: Group::P256 },
            method: authentication::SHARED_KEY,
            id_initiator: Id::new(&Identity::Fqdn("client.example".into())).body().to_vec(),
            id_responder: Id::new(&Identity::KeyId(vec![7; 255])).body().to_vec(),
            spis: IkeSpis { initiator: [1; 8], responder: [2; 8] },
            sk_d: Zeroizing::new(vec![3; 48]),
            credential: Zeroizing::new(vec![4; 32]),
        }
    }

    /// RFC 5723 section 6.1: all that section 5 marks "from the ticket".
    #[test]
    fn a_tickets_state_comes_back_and_no_part_of_it_is_taken_for_the_whole() {
        let (state, octets) = (state(), state().encode());
        let back = TicketState::decode(&octets).expect("the whole state");
        assert_eq!((back.suite, back.method, back.spis), (state.suite, state.method, state.spis));
        assert_eq!((back.id_initiator, back.id_responder), (state.id_initiator, state.id_responder));
        assert_eq!((back.sk_d, back.credential), (state.sk_d, state.credential));
        for length in 0..octets.len() {
            assert!(TicketState::decode(&octets[..length]).is_none(), "{length} octets");
        }
        let longer = [&octets[..], &[0]].concat();
        assert!(TicketState::decode(&longer).is_none());
        let another_version = [&[VERSION + 1], &octets[1..]].concat();
        assert!(TicketState::decode(&another_version).is_none());
    }

    /// With the longest identities it fits beside a nonce into a datagram.
    #[test]
    fn the_longest_state_is_bounded() {
        let longest = Id::new(&Identity::KeyId(vec![7; 255])).body().to_vec();
        let (sk_d, suite) = (Zeroizing::new(vec![3; 64]), IkeSuite { prf: Prf::HmacSha512, ..state().suite });
        let state = TicketState { id_initiator: longest, sk_d, suite, ..state() };
        assert!(state.encode().len() <= 1024 && state.encode().len() + 100 <= MAX_TICKET);
    }
}
