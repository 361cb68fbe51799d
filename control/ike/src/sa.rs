//! The state of one IKE SA and of its Child SAs. Plain data; the exchanges (`init`, `auth`, `create_child`, …) change
//! it, and what they leave in `ended` and `queue` is carried out by the endpoint when they return.

use crate::api::*;
use crate::connect::{ChildProfile, Profile};
use crate::crypto::IkeKeys;
use crate::exchange::{Outstanding, Purpose, Task};
use crate::kept::field::{Field, Reader, Writer, fields, variants};
use crate::resources::Share;
use crate::resume::Resumed;
use crate::retransmit::Schedule;
use crate::ticket::Ticket;
use crate::tombstone::{LastResponse, MessageHash};
use crate::wire::{OpeningKey, SealingKey};
use spindle_abi::{Command, Mode, SaParameters, SelectorSet, Spi, Time};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Where an IKE SA is in its life.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// Not yet authenticated.
    Connecting,
    /// As responder: authentication failed. Only repeats its answer until it expires.
    Refused,
    /// In use.
    Established,
    /// An IKE rekey succeeded; the new one has the Child SAs. Whoever initiated the rekey deletes this one.
    Rekeyed,
    /// Our Delete is queued or outstanding.
    Deleting(Authority),
}

variants!(State { 0 = Connecting, 1 = Refused, 2 = Established, 3 = Rekeyed, 4 = Deleting(authority) });

/// Why and how an IKE SA ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Ending {
    pub(crate) authority: Authority,
    /// By a Delete that both sides know of; leaves a tombstone.
    pub(crate) exchanged: bool,
}

/// What NAT detection found (RFC 7296 section 2.23).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Nat {
    /// We are behind a NAT.
    pub(crate) here: bool,
    /// The peer is behind a NAT.
    pub(crate) there: bool,
}

fields!(Nat { here, there });

impl Nat {
    /// ESP goes in UDP, IKE to port 4500.
    pub(crate) fn encapsulates(self) -> bool {
        self.here || self.there
    }
}

/// What the AUTH payloads sign: kept from IKE_SA_INIT until IKE_AUTH is over (RFC 7296 section 2.15).
#[derive(Clone, Default)]
pub(crate) struct Setup {
    /// The IKE_SA_INIT request, from its IKE header on.
    pub(crate) request: Vec<u8>,
    /// The IKE_SA_INIT response.
    pub(crate) response: Vec<u8>,
    pub(crate) nonce_i: Vec<u8>,
    pub(crate) nonce_r: Vec<u8>,
}

fields!(Setup { request, response, nonce_i, nonce_r });

/// The keys of an IKE SA, ready for use in our role.
pub(crate) struct SaKeys {
    pub(crate) ike: IkeKeys,
    /// We are the IKE SA's original initiator.
    initiator: bool,
    pub(crate) sealing: SealingKey,
    pub(crate) opening: OpeningKey,
}

impl SaKeys {
    /// `initiator`: we are the IKE SA's original initiator.
    pub(crate) fn new(ike: IkeKeys, initiator: bool) -> SaKeys {
        SaKeys { initiator, sealing: ike.sealing(initiator), opening: ike.opening(initiator), ike }
    }
}

/// No IV is used twice: those of messages that left are passed over.
impl Field for SaKeys {
    fn put(&self, out: &mut Writer) {
        self.ike.put(out);
        self.initiator.put(out);
        self.sealing.next_iv().put(out);
    }
    fn take(from: &mut Reader<'_>) -> Option<SaKeys> {
        let mut keys = SaKeys::new(Field::take(from)?, Field::take(from)?);
        keys.sealing.skip_to(Field::take(from)?);
        Some(keys)
    }
}

/// The IKE_SA_INIT from which an IKE SA comes, by however many rekeys: settles duplicates.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Origin {
    /// Did we initiate it?
    pub(crate) ours: bool,
    /// The lower of its nonces.
    pub(crate) lowest_nonce: Vec<u8>,
}

fields!(Origin { ours, lowest_nonce });

/// One IKE SA.
pub(crate) struct IkeSa {
    pub(crate) id: IkeSaId,
    pub(crate) connection: Rc<Profile>,
    pub(crate) spis: IkeSpis,
    /// Are we the original initiator?
    pub(crate) initiator: bool,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    /// Where else authentic messages of a peer behind a NAT came from lately: the address before the present one, or
    /// that of a copy. Our retransmissions go there too, and a response from there leads back.
    pub(crate) elsewhere: Option<SocketAddr>,
    pub(crate) nat: Nat,
    pub(crate) state: State,
    pub(crate) ended: Option<Ending>,
    /// From the end of IKE_SA_INIT on.
    pub(crate) keys: Option<SaKeys>,
    pub(crate) setup: Setup,
    /// As responder, of the IKE_SA_INIT request.
    pub(crate) init_hash: Option<MessageHash>,
    /// Counts among the half-open IKE SAs of peers that initiated, under this address or prefix.
    pub(crate) half_open: Option<IpAddr>,
    /// The lower nonce of the exchange that created it, to settle rekeys that crossed.
    pub(crate) lowest_nonce: Vec<u8>,
    /// The peer announced Safe IKE Recovery, and so did we.
    pub(crate) sir: bool,
    /// The original initiator may be redirected (RFC 5685 section 3): it said so, be it the peer or us.
    pub(crate) redirectable: bool,
    /// As original initiator: the gateway that redirected us to this one.
    pub(crate) redirected_from: Option<IpAddr>,
    /// The peer redirected us elsewhere: it ends by a Delete as soon as the IKE SA there stands.
    pub(crate) redirected: bool,
    /// As a gateway that is taken down: when its Delete is due, whether the peer has gone or not.
    pub(crate) leave_at: Option<Time>,
    /// How long an exchange took that needed no retransmission; the last one's.
    pub(crate) round_trip: Option<Duration>,
    /// The IKE SA that ends once this one is authenticated, for its peer is confirmed to have lost it.
    pub(crate) supersedes: Option<IkeSaId>,
    /// The next liveness check asks about the ESP SA with this outbound SPI.
    pub(crate) check: Option<Spi>,
    pub(crate) origin: Origin,
    /// The IKE SA that it may take the place of, where two rekeys crossed. Until that is settled no Child SA is its
    /// own.
    pub(crate) predecessor: Option<IkeSaId>,
    /// When its first message was sent or received.
    pub(crate) created: Time,
    pub(crate) established: Option<Time>,
    pub(crate) remote_id: Option<Identity>,
    /// Message ID of our next request (RFC 7296 section 2.2).
    pub(crate) send_id: u32,
    /// Message ID of the peer's next request.
    pub(crate) receive_id: u32,
    pub(crate) outstanding: Option<Outstanding>,
    pub(crate) last_response: Option<LastResponse>,
    /// Exchanges to come, none before its time.
    pub(crate) queue: Vec<(Time, Task)>,
    /// Children to be created once it is established.
    pub(crate) wanted: BTreeSet<String>,
    /// When a packet last came that waits for it, or is to be taken for waiting as the peer lost its SAs.
    pub(crate) awaited: Option<Time>,
    /// INITIAL_CONTACT may be sent although it was before in this incarnation.
    pub(crate) initial_contact: bool,
    pub(crate) children: Vec<ChildSa>,
    /// Outbound SPIs of Child SAs removed lately.
    pub(crate) recent_outbound: Vec<(Spi, ChildSaId)>,
    /// The peer's QCD tokens for this IKE SA, newest first (RFC 6290 section 5: several may be kept).
    pub(crate) tokens: Vec<Zeroizing<Vec<u8>>>,
    /// The peer's ticket for this IKE SA (RFC 5723).
    pub(crate) ticket: Option<Ticket>,
    /// When to ask for one.
    pub(crate) ticket_at: Option<Time>,
    /// Made by a ticket.
    pub(crate) resumed: Option<Resumed>,
    /// When an authenticated IKE message last came.
    pub(crate) heard: Time,
    pub(crate) dpd_at: Option<Time>,
    pub(crate) rekey_at: Option<Time>,
    /// Half-open, refused and rekeyed IKE SAs end then.
    pub(crate) expires: Option<Time>,
    pub(crate) keepalive_at: Option<Time>,
    /// The first and the last TEMPORARY_FAILURE of an uninterrupted row (RFC 7296 section 2.25).
    pub(crate) refused: Option<(Time, Time)>,
    /// Children that the peer refused or deleted: how often in a row, and from when on they are asked for again.
    pub(crate) backoff: BTreeMap<String, (u32, Time)>,
    /// INVALID_KE_PAYLOAD answers followed since the last success.
    pub(crate) ke_retries: u32,
    /// As initiator: an attempt beside this one succeeded first; closed as soon as it is authenticated.
    pub(crate) surplus: bool,
    /// Why the initiation failed, for people.
    pub(crate) refusal: Option<String>,
    /// The peer's address, as the endpoint has it.
    pub(crate) noted_remote: Option<SocketAddr>,
    /// Its timer, as the endpoint has it.
    pub(crate) scheduled: Option<Time>,
}

fields!(IkeSa {
    id, connection, spis, initiator, local, remote, elsewhere, nat, state, keys, setup, init_hash, half_open,
    lowest_nonce, sir, redirectable, redirected_from, redirected, leave_at, round_trip, supersedes, check, origin,
    predecessor, created, established, remote_id, send_id, receive_id, outstanding, last_response, queue, wanted,
    awaited, initial_contact, children, recent_outbound, tokens, ticket, ticket_at, resumed, heard, dpd_at, rekey_at,
    expires, keepalive_at, refused, backoff, ke_retries, surplus;
    // One that has ended is kept no more; the others are the endpoint's notes.
    ended: None, refusal: None, noted_remote: None, scheduled: None,
});

/// While packets wait a request of the initial exchanges is first sent again after four round trips, at least the first
/// of these; where none was measured, after the second.
const HURRIED_AGAIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_millis(500));

/// IKE SAs by their handles. Each has a place of its own, as it is taken out while one of its handlers runs.
#[derive(Default)]
pub(crate) struct IkeSas(BTreeMap<IkeSaId, Box<IkeSa>>);

impl IkeSas {
    pub(crate) fn get(&self, id: &IkeSaId) -> Option<&IkeSa> {
        self.0.get(id).map(|sa| &**sa)
    }

    pub(crate) fn get_mut(&mut self, id: &IkeSaId) -> Option<&mut IkeSa> {
        self.0.get_mut(id).map(|sa| &mut **sa)
    }

    pub(crate) fn insert(&mut self, sa: Box<IkeSa>) {
        self.0.insert(sa.id, sa);
    }

    pub(crate) fn remove(&mut self, id: &IkeSaId) -> Option<Box<IkeSa>> {
        self.0.remove(id)
    }

    pub(crate) fn contains_key(&self, id: &IkeSaId) -> bool {
        self.0.contains_key(id)
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &IkeSaId> {
        self.0.keys()
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &IkeSa> {
        self.0.values().map(|sa| &**sa)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

/// RFC 6290 section 4.5: at least four tokens; as many are kept of one peer.
pub(crate) const TOKENS: usize = 4;

impl IkeSa {
    /// A new one that knows no more than its ends.
    pub(crate) fn new(
        id: IkeSaId,
        connection: Rc<Profile>,
        spis: IkeSpis,
        initiator: bool,
        (local, remote): (SocketAddr, SocketAddr),
        now: Time,
    ) -> Box<IkeSa> {
        Box::new(IkeSa {
            id,
            connection,
            spis,
            initiator,
            local,
            remote,
            elsewhere: None,
            nat: Nat::default(),
            state: State::Connecting,
            ended: None,
            keys: None,
            setup: Setup::default(),
            init_hash: None,
            half_open: None,
            lowest_nonce: Vec::new(),
            origin: Origin { ours: initiator, lowest_nonce: Vec::new() },
            sir: false,
            redirectable: false,
            redirected_from: None,
            redirected: false,
            leave_at: None,
            round_trip: None,
            supersedes: None,
            check: None,
            predecessor: None,
            created: now,
            established: None,
            remote_id: None,
            send_id: 0,
            receive_id: 0,
            outstanding: None,
            last_response: None,
            queue: Vec::new(),
            wanted: BTreeSet::new(),
            awaited: None,
            initial_contact: false,
            children: Vec::new(),
            recent_outbound: Vec::new(),
            tokens: Vec::new(),
            ticket: None,
            ticket_at: None,
            resumed: None,
            heard: now,
            dpd_at: None,
            rekey_at: None,
            expires: None,
            keepalive_at: None,
            refused: None,
            backoff: BTreeMap::new(),
            ke_retries: 0,
            surplus: false,
            refusal: None,
            noted_remote: None,
            scheduled: None,
        })
    }

    /// The SPI that we chose.
    pub(crate) fn own_spi(&self) -> IkeSpi {
        if self.initiator { self.spis.initiator } else { self.spis.responder }
    }

    /// Authenticated and not on its way out: exchanges may begin on it.
    pub(crate) fn is_established(&self) -> bool {
        self.state == State::Established && self.ended.is_none()
    }

    /// Our attempt to make it is under way, and wanted.
    pub(crate) fn is_initiation(&self) -> bool {
        self.initiator && self.state == State::Connecting && self.ended.is_none() && !self.surplus
    }

    /// Is its peer's address the source of the last new authenticated packet (RFC 7296 section 2.23)?
    pub(crate) fn follows_peer(&self) -> bool {
        self.established.is_some() && self.nat.there && !self.nat.here
    }

    /// It is over; the first reason stands.
    pub(crate) fn end(&mut self, authority: Authority, exchanged: bool) {
        self.ended.get_or_insert(Ending { authority, exchanged });
    }

    /// Its first request, if that is outstanding, is sent again so long after it was last sent, unless it is due sooner.
    pub(crate) fn hasten_first_request(&mut self, now: Time, again_after: Duration) {
        if let Some(outstanding) = self.outstanding.as_mut().filter(|o| o.purpose.is_first()) {
            let soon = outstanding.schedule.sent().after(again_after);
            outstanding.schedule.hasten(soon.max(now));
        }
    }

    /// Packets wait for it: the request of its initial exchanges that is outstanding is sent again sooner than scheduled
    /// (RFC 7296 section 2.1: when is the initiator's to say). If the peer crashed meanwhile, what it answers to IKE_AUTH
    /// is a hint, and another attempt begins.
    pub(crate) fn hurry(&mut self) {
        let Some(at) = self.awaited else { return };
        let first = self.round_trip.map_or(HURRIED_AGAIN.1, |round_trip| round_trip.saturating_mul(4));
        let first = first.clamp(HURRIED_AGAIN.0, Schedule::HURRIED);
        let initial = |purpose: &Purpose| purpose.is_first() || matches!(purpose, Purpose::Auth(_));
        if let Some(outstanding) = self.outstanding.as_mut().filter(|o| initial(&o.purpose)) {
            outstanding.schedule.hurry(at, first);
        }
    }

    /// Adds a task if the same one isn't waiting.
    pub(crate) fn enqueue(&mut self, not_before: Time, task: Task) {
        if !self.queue.iter().any(|(_, t)| *t == task) {
            self.queue.push((not_before, task));
        }
    }

    /// Its Child SA with this handle.
    pub(crate) fn child(&mut self, id: ChildSaId) -> Option<&mut ChildSa> {
        self.children.iter_mut().find(|c| c.id == id)
    }

    /// The children that it serves, or is to serve.
    pub(crate) fn child_names(&self) -> BTreeSet<String> {
        let served = self.children.iter().filter(|c| c.state != ChildState::Deleting);
        let wanted = self.queue.iter().filter_map(|(_, task)| match task {
            Task::CreateChild(name) => Some(name.clone()),
            _ => None,
        });
        served.map(|c| c.config.name.clone()).chain(wanted).collect()
    }

    /// Its Child SA with this outbound SPI.
    pub(crate) fn child_by_outbound(&mut self, spi: Spi) -> Option<&mut ChildSa> {
        self.children.iter_mut().find(|c| c.outbound == spi)
    }

    /// Stores a token that the peer sent under protection (RFC 6290 section 4.4: in any exchange; section 5: 16 to
    /// 128 octets). `true` if it is new.
    pub(crate) fn store_token(&mut self, token: &[u8]) -> bool {
        if !(16..=128).contains(&token.len()) || self.holds_token(token) {
            return false;
        }
        self.tokens.insert(0, Zeroizing::new(token.to_vec()));
        self.tokens.truncate(TOKENS);
        true
    }

    /// Compares with every stored token in constant time.
    pub(crate) fn holds_token(&self, token: &[u8]) -> bool {
        let mut found = subtle::Choice::from(0);
        for stored in &self.tokens {
            found |= stored.ct_eq(token);
        }
        found.into()
    }

    /// Is an exchange of ours under way that creates, rekeys or closes a Child SA (RFC 7296 section 2.25)?
    pub(crate) fn child_exchange_under_way(&self) -> bool {
        let purpose = self.outstanding.as_ref().map(|o| &o.purpose);
        matches!(purpose, Some(Purpose::CreateChild(_) | Purpose::DeleteChildren(_)))
    }

    /// Is our own IKE rekey outstanding?
    pub(crate) fn rekeying(&self) -> bool {
        matches!(self.outstanding.as_ref().map(|o| &o.purpose), Some(Purpose::RekeyIke(_)))
    }

    /// Is the Child SA with this handle being rekeyed by us?
    pub(crate) fn rekeying_child(&self, id: ChildSaId) -> bool {
        match self.outstanding.as_ref().map(|o| &o.purpose) {
            Some(Purpose::CreateChild(offer)) => offer.replaces == Some(id),
            _ => false,
        }
    }

    /// An authenticated message came: RFC 7296 section 2.4's evidence.
    pub(crate) fn note_heard(&mut self, now: Time) {
        self.heard = now;
        if self.dpd_at.is_some() {
            self.dpd_at = Some(now.after(self.connection.dpd_delay));
        }
    }

    /// May this exchange begin in its present state? On its way out, only the Delete may.
    pub(crate) fn may_start(&self, task: &Task) -> bool {
        match self.state {
            State::Connecting | State::Refused => false,
            State::Established if self.predecessor.is_some() => {
                matches!(task, Task::Liveness | Task::SendToken)
            }
            State::Established => true,
            State::Rekeyed | State::Deleting(_) => *task == Task::DeleteIke,
        }
    }

    /// When it next has something to do.
    pub(crate) fn deadline(&self) -> Option<Time> {
        let outstanding = self.outstanding.as_ref().map(|o| o.schedule.next());
        let queue = match &self.outstanding {
            Some(_) => None,
            None => self.queue.iter().filter(|(_, task)| self.may_start(task)).map(|(at, _)| *at).min(),
        };
        let children = match self.state {
            State::Established => self.children.iter().flat_map(|c| [c.rekey_at, c.expires]).flatten().min(),
            _ => None,
        };
        let own = match self.state {
            State::Established => {
                [self.dpd_at, self.rekey_at, self.keepalive_at, self.ticket_at, self.leave_at]
            }
            _ => [None; 5],
        };
        own.into_iter().chain([outstanding, queue, children, self.expires]).flatten().min()
    }

    /// The state's name for people.
    pub(crate) fn state_name(&self) -> &'static str {
        match self.state {
            State::Connecting | State::Refused => "connecting",
            State::Established if self.rekeying() => "rekeying",
            State::Established => "established",
            State::Rekeyed | State::Deleting(_) => "deleting",
        }
    }
}

/// Where a Child SA is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ChildState {
    /// In use.
    Installed,
    /// Its successor is installed; it is to be deleted by the rekey's initiator.
    Rekeyed,
    /// Our Delete is queued or outstanding.
    Deleting,
}

variants!(ChildState { 0 = Installed, 1 = Rekeyed, 2 = Deleting });

/// One Child SA: an inbound and an outbound ESP SA.
pub(crate) struct ChildSa {
    pub(crate) id: ChildSaId,
    pub(crate) config: Rc<ChildProfile>,
    pub(crate) inbound: Spi,
    pub(crate) outbound: Spi,
    pub(crate) inbound_index: u32,
    pub(crate) outbound_index: u32,
    pub(crate) mode: Mode,
    pub(crate) proposal: String,
    pub(crate) selectors: SelectorSet,
    pub(crate) state: ChildState,
    pub(crate) share: Share,
    pub(crate) installed: Time,
    pub(crate) rekey_at: Option<Time>,
    /// The end of its life.
    pub(crate) expires: Option<Time>,
    pub(crate) encapsulated: bool,
    /// How the inbound SA was installed.
    pub(crate) inbound_command: Box<Command>,
    pub(crate) outbound_sa: Box<SaParameters>,
    /// The outbound SA waits for the peer to use the new SA first.
    pub(crate) outbound_waits: bool,
    pub(crate) outbound_installed: bool,
    /// Not any more once its life is over, though the peer has not heard of that yet.
    pub(crate) inbound_installed: bool,
    /// The Child SA that this one replaces.
    pub(crate) replaces: Option<ChildSaId>,
    /// The lower nonce of our CREATE_CHILD_SA that made it where there was none; else empty.
    pub(crate) lowest_nonce: Vec<u8>,
    /// Made by the request before this Message ID, which is the peer's next one: until that comes, the peer may not
    /// have seen our answer.
    pub(crate) confirmed_by: Option<u32>,
}

fields!(ChildSa {
    id,
    config,
    inbound,
    outbound,
    inbound_index,
    outbound_index,
    proposal,
    mode,
    selectors,
    state,
    installed,
    rekey_at,
    expires,
    encapsulated,
    inbound_command,
    outbound_sa,
    outbound_waits,
    outbound_installed,
    inbound_installed,
    share,
    replaces,
    lowest_nonce,
    confirmed_by,
});

/// When an SA whose rekey was refused is rekeyed again: well before its end.
pub(crate) fn again(lifetime: Duration) -> Duration {
    if lifetime.is_zero() { Duration::from_secs(300) } else { lifetime / 10 }
}

/// A soft lifetime, jittered downwards by up to a tenth, so that both sides seldom rekey at once (RFC 7296 section
/// 2.8.1). `random` is any number. `None` if the lifetime is zero, which is never.
pub(crate) fn jittered(now: Time, lifetime: Duration, random: u32) -> Option<Time> {
    let share = f64::from(random) / f64::from(u32::MAX);
    (!lifetime.is_zero()).then(|| now.after(lifetime.mul_f64(1.0 - share / 10.0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connect::Connection;

    fn sa() -> Box<IkeSa> {
        let id = |name: &str| Identity::Fqdn(name.into());
        let config = ConnectionConfig {
            name: "peer".into(),
            local: [192, 0, 2, 1].into(),
            remote: None,
            remote_port: 500,
            local_id: id("a"),
            remote_id: id("b"),
            psk: Psk(Zeroizing::new(Vec::new())),
            proposals: Vec::new(),
            force_encapsulation: false,
            dpd_delay: Duration::ZERO,
            retransmission: Retransmission { timeout: Duration::from_secs(1), base: 1.5, tries: 4 },
            rekey_time: Duration::ZERO,
            resumption: false,
            redirect_to: Vec::new(),
            start_action: StartAction::Trap,
            children: Vec::new(),
        };
        let ends = (([192, 0, 2, 1], 500).into(), ([192, 0, 2, 2], 500).into());
        let spis = IkeSpis { initiator: [1; 8], responder: [2; 8] };
        IkeSa::new(IkeSaId(1), Connection::new(0, config.into(), None).profile, spis, true, ends, Time(0))
    }

    /// A deadline that passes without anything being done would never let the gateway rest.
    #[test]
    fn what_may_not_start_any_more_sets_no_deadline() {
        let mut sa = sa();
        sa.enqueue(Time(5), Task::Liveness);
        assert_eq!(sa.deadline(), None, "not yet established");
        sa.state = State::Established;
        assert_eq!(sa.deadline(), Some(Time(5)));
        for state in [State::Rekeyed, State::Deleting(Authority::Local("test"))] {
            sa.state = state;
            assert_eq!(sa.deadline(), None);
        }
        sa.enqueue(Time(7), Task::DeleteIke);
        assert_eq!(sa.deadline(), Some(Time(7)));
    }
}
