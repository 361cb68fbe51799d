//! IKE_SA_INIT, both roles (RFC 7296 section 1.2): proposals, key exchange and nonces in clear; with COOKIE (2.6),
//! INVALID_KE_PAYLOAD (1.2, 2.6.1) and NAT detection (2.23). What IKE_SESSION_RESUME does the same way is here too.
//!
//! Nothing here is authenticated. So an error in answer to our request is believed only after further tries (2.21.1),
//! and nothing but our own half-open IKE SA is touched.

use crate::admission::MAX_REQUEST;
use crate::api::*;
use crate::connect::Profile;
use crate::crypto::{Group, IkeKeys, IkeProposal, IkeSuite, PrivateKey, nat_detection_hash, select_ike};
use crate::endpoint::{Endpoint, NAT_PORT, find_error, find_notify, notification, notifies};
use crate::exchange::{Outstanding, Purpose};
use crate::redirect;
use crate::resume::Resumed;
use crate::retransmit::Schedule;
use crate::sa::{IkeSa, Nat, SaKeys, Setup};
use crate::tombstone::{LastResponse, message_hash};
use crate::wire::{Message, Payload, Proposal, View, exchange, notify};
use spindle_abi::Time;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

/// What the initiator keeps until the response.
pub(crate) struct Initiation {
    key: PrivateKey,
    nonce: Vec<u8>,
    cookie: Option<Vec<u8>>,
    /// COOKIE and INVALID_KE_PAYLOAD answers followed.
    restarts: u32,
    /// The last error that was answered, by whomever.
    pub(crate) error: Option<u16>,
}

/// RFC 7296 section 2.6: the number of cookie rounds is bounded, the same for key exchange rounds.
pub(crate) const MAX_RESTARTS: u32 = 6;
/// Retransmissions that still follow after an unauthenticated error (section 2.21.1).
const TRIES_AFTER_ERROR: u32 = 2;

impl Endpoint {
    /// Begins an IKE SA as initiator. `cookie`: one that the peer gave beforehand.
    pub(crate) fn begin_init(&mut self, now: Time, sa: &mut IkeSa, cookie: Option<Vec<u8>>) {
        let Some(group) = sa.connection.proposals.first().and_then(|p| p.groups.first().copied()) else {
            return sa.end(Authority::Local("no usable proposal"), false);
        };
        let key = PrivateKey::generate(group, &mut *self.random);
        let nonce = self.nonce();
        let initiation = Initiation { key, nonce, cookie, restarts: 0, error: None };
        self.send_init_request(now, sa, initiation);
    }

    fn send_init_request(&mut self, now: Time, sa: &mut IkeSa, initiation: Initiation) {
        let proposals = &sa.connection.proposals;
        let offer = (1..).zip(proposals.iter()).map(|(number, p)| p.to_wire(number, &[])).collect();
        // RFC 7296 section 2.6: the cookie comes first, all else stays as it was.
        let mut payloads: Vec<Payload> = Vec::new();
        payloads.extend(initiation.cookie.clone().map(|cookie| notification(notify::COOKIE, cookie)));
        payloads.extend([
            Payload::Sa(offer),
            key_exchange(&initiation.key),
            Payload::Nonce(initiation.nonce.clone()),
        ]);
        let nonce = initiation.nonce.clone();
        let schedule = Schedule::new(sa.connection.retransmission, now);
        let purpose = Purpose::Init(Box::new(initiation));
        self.send_first_request(sa, exchange::IKE_SA_INIT, payloads, nonce, purpose, schedule);
    }

    /// Sends the first request of an IKE SA, in clear. `payloads`: those of its exchange alone; NAT detection (RFC 7296
    /// section 2.23, RFC 5723 section 4.3.2) and the announcements of SIR and of redirects follow them.
    pub(crate) fn send_first_request(
        &mut self,
        sa: &mut IkeSa,
        exchange: u8,
        mut payloads: Vec<Payload>,
        nonce_i: Vec<u8>,
        purpose: Purpose,
        schedule: Schedule,
    ) {
        payloads.extend(nat_detection(sa.spis, sa.local, sa.remote, sa.connection.force_encapsulation));
        payloads.extend(self.sir_announcement(&sa.connection.name));
        payloads.extend(redirect::announcement(sa));
        sa.redirectable = !sa.connection.redirect_to.is_empty();
        let header = Header {
            spis: sa.spis,
            next_payload: 0,
            exchange,
            response: false,
            initiator: true,
            message_id: 0,
        };
        let octets = Message { header, payloads }.emit();
        sa.setup = Setup { request: octets.clone(), nonce_i, ..Setup::default() };
        sa.send_id = 1;
        self.transmit(sa, &octets);
        sa.outstanding = Some(Outstanding { message_id: 0, octets, purpose, schedule });
        sa.hurry();
    }

    /// A response to our IKE_SA_INIT request, perhaps.
    pub(crate) fn receive_init_response(
        &mut self,
        now: Time,
        sa: &mut IkeSa,
        datagram: &Datagram,
        octets: &[u8],
        view: &View<'_>,
    ) {
        let header = view.header();
        let ours = sa.initiator && sa.spis.initiator == header.spis.initiator;
        let is_init = |o: &mut Outstanding| matches!(o.purpose, Purpose::Init(_));
        if !ours || header.initiator || header.message_id != 0 {
            return;
        }
        let Ok(message) = view.message() else { return };
        let Some(mut outstanding) = sa.outstanding.take_if(is_init) else { return };
        let Purpose::Init(initiation) = &mut outstanding.purpose else { return };
        if let Some(agreed) = agree(sa, initiation, &message) {
            self.count_answer(&outstanding.schedule);
            sa.round_trip = outstanding.schedule.round_trip(now).or(sa.round_trip);
            return self.finish_init(now, sa, datagram, octets, agreed);
        }
        if find_notify(&message.payloads, notify::REDIRECT).is_some() {
            if !self.follow_redirect_in_clear(now, sa, &message.payloads) {
                sa.outstanding = Some(outstanding);
            }
            return;
        }
        if restart(sa, initiation, &message.payloads, &mut *self.random) {
            let Purpose::Init(initiation) = outstanding.purpose else { return };
            return self.send_init_request(now, sa, *initiation);
        }
        // RFC 7296 section 2.21.1: an error in clear may be forged; the true answer may still come.
        if let Some(error) = find_error(&message.payloads) {
            initiation.error = Some(error);
            outstanding.schedule.limit(TRIES_AFTER_ERROR);
        }
        sa.outstanding = Some(outstanding);
    }

    /// As initiator: the first exchange is over.
    pub(crate) fn finish_init(
        &mut self,
        now: Time,
        sa: &mut IkeSa,
        datagram: &Datagram,
        octets: &[u8],
        agreed: Agreed,
    ) {
        sa.spis = agreed.spis;
        sa.origin.lowest_nonce = sa.setup.nonce_i.clone().min(agreed.nonce.clone());
        sa.keys = Some(SaKeys::new(agreed.keys, true));
        sa.setup.response = octets.to_vec();
        sa.setup.nonce_r = agreed.nonce;
        sa.sir = self.agrees_on_sir(&sa.connection.name, &agreed.payloads);
        sa.nat = detect_nat(agreed.spis, datagram, &agreed.payloads, sa.connection.force_encapsulation);
        // RFC 7296 section 2.23: with a NAT in between, all goes on at port 4500.
        if sa.nat.encapsulates() {
            sa.local.set_port(NAT_PORT);
            if sa.remote.port() == 500 {
                sa.remote.set_port(NAT_PORT);
            }
        }
        self.begin_auth(now, sa);
    }

    /// An IKE_SA_INIT or IKE_SESSION_RESUME request, of anyone.
    pub(crate) fn receive_init_request(
        &mut self,
        now: Time,
        datagram: &Datagram,
        octets: &[u8],
        view: &View<'_>,
    ) {
        let header = view.header();
        let valid = header.initiator && header.spis.responder == [0; 8] && header.message_id == 0;
        if !valid || self.shutting_down {
            return;
        }
        let hash = message_hash(octets);
        if let Some(id) = self.by_init.get(&hash) {
            let last = self.sas.get(id).and_then(|sa| sa.last_response.as_ref());
            if let Some(response) = last.filter(|r| r.message_id == 0).map(|r| r.response.clone()) {
                self.answer(datagram, &response);
            }
            return;
        }
        if self.taken_down.is_some() {
            return self.turn_away(datagram, view);
        }
        if octets.len() > MAX_REQUEST || !self.has_room_for(datagram.remote.ip()) {
            return;
        }
        let mut proven = false;
        let result = view.message().map_err(|error| error.notify());
        let answer = result.and_then(|message| match header.exchange {
            exchange::IKE_SA_INIT => self.accept_init(now, datagram, octets, &message, &mut proven),
            _ => self.accept_resume(now, datagram, octets, &message, &mut proven),
        });
        if let Err(Some(notify)) = answer
            && (proven || self.may_answer_in_clear(now))
        {
            self.answer_in_clear(datagram, &header, vec![Payload::Notify(notify)]);
        }
    }

    /// Creates a half-open IKE SA and answers; or says which notification to answer with, if any. `proven` becomes
    /// true where the sender showed a COOKIE that was demanded.
    fn accept_init(
        &mut self,
        now: Time,
        datagram: &Datagram,
        octets: &[u8],
        message: &Message,
        proven: &mut bool,
    ) -> Result<(), Option<Notify>> {
        let error = |kind, data| Some(Notify { kind, protocol: 0, spi: Vec::new(), data });
        let syntax = || error(notify::INVALID_SYNTAX, Vec::new());
        let parts = Parts::of(&message.payloads).ok_or_else(syntax)?;
        *proven = self.proves_address(now, datagram, message, parts.nonce)?;
        let group = Group::from_id(parts.group);
        let chosen = self.candidates(datagram.local.ip(), datagram.remote.ip()).find_map(|connection| {
            let (suite, offer) = select_ike(&connection.proposals, parts.offer, group).ok()?;
            Some((connection.clone(), suite, offer.number))
        });
        let Some((connection, suite, number)) = chosen else {
            return Err(error(notify::NO_PROPOSAL_CHOSEN, Vec::new()));
        };
        // RFC 7296 section 1.2: the group that we want, in two octets.
        if Some(suite.group) != group {
            return Err(error(notify::INVALID_KE_PAYLOAD, suite.group.id().to_be_bytes().to_vec()));
        }
        let key = PrivateKey::generate(suite.group, &mut *self.random);
        let shared = key.agree(parts.key).map_err(|_| syntax())?;
        let initiator = message.header.spis.initiator;
        let spis = IkeSpis { initiator, responder: self.allocate_ike_spi() };
        let nonce_r = self.nonce();
        let keys = IkeKeys::new(suite, &shared, parts.nonce, &nonce_r, spis);
        let chosen = IkeProposal::from(suite).to_wire(number, &[]);
        let payloads = vec![Payload::Sa(vec![chosen]), key_exchange(&key), Payload::Nonce(nonce_r.clone())];
        let nonce_i = parts.nonce.to_vec();
        let made = HalfOpen { connection, keys, spis, nonce_i, nonce_r, payloads, resumed: None };
        self.open_half(now, datagram, octets, message, made);
        Ok(())
    }

    /// As responder: makes the half-open IKE SA of a request that is accepted, and answers it.
    pub(crate) fn open_half(
        &mut self,
        now: Time,
        datagram: &Datagram,
        octets: &[u8],
        message: &Message,
        made: HalfOpen,
    ) {
        let HalfOpen { connection, keys, spis, nonce_i, nonce_r, mut payloads, resumed } = made;
        let id = IkeSaId(self.next_id());
        let mut sa = IkeSa::new(id, connection, spis, false, (datagram.local, datagram.remote), now);
        let force = sa.connection.force_encapsulation;
        sa.nat = detect_nat(message.header.spis, datagram, &message.payloads, force);
        sa.keys = Some(SaKeys::new(keys, false));
        sa.resumed = resumed;
        payloads.extend(nat_detection(spis, sa.local, sa.remote, sa.connection.force_encapsulation));
        sa.sir = self.agrees_on_sir(&sa.connection.name, &message.payloads);
        payloads.extend(self.sir_announcement(&sa.connection.name).filter(|_| sa.sir));
        sa.redirectable = redirect::is_supported(&message.payloads);
        let header = Header { spis, response: true, initiator: false, ..message.header };
        let response = Message { header, payloads }.emit();
        self.answer(datagram, &response);
        sa.setup = Setup { request: octets.to_vec(), response: response.clone(), nonce_i, nonce_r };
        sa.origin.lowest_nonce = sa.setup.nonce_i.clone().min(sa.setup.nonce_r.clone());
        let request = message_hash(octets);
        sa.last_response = Some(LastResponse { message_id: 0, request, response });
        sa.receive_id = 1;
        sa.expires = Some(now.after(self.config.half_open_timeout));
        sa.init_hash = Some(request);
        self.by_init.insert(request, id);
        self.enter_half_open(&mut sa);
        self.insert_sa(now, sa);
    }

    /// The connections that a peer at this address may have, the most specific first.
    pub(crate) fn candidates(&self, local: IpAddr, remote: IpAddr) -> impl Iterator<Item = &Rc<Profile>> {
        let between = move |remote| self.lookups.by_addresses.get(&(remote, local)).into_iter().flatten();
        let numbers = between(Some(remote)).chain(between(None));
        numbers.map(|number| &self.connections[*number].profile)
    }
}

/// The payloads that an IKE_SA_INIT message must have.
struct Parts<'a> {
    offer: &'a [Proposal],
    group: u16,
    key: &'a [u8],
    nonce: &'a [u8],
}

impl<'a> Parts<'a> {
    fn of(payloads: &'a [Payload]) -> Option<Parts<'a>> {
        let (mut offer, mut key, mut nonce) = (None, None, None);
        for payload in payloads {
            match payload {
                Payload::Sa(proposals) if offer.is_none() => offer = Some(proposals),
                Payload::KeyExchange { group, data } if key.is_none() => key = Some((*group, data)),
                Payload::Nonce(octets) if nonce.is_none() => nonce = Some(octets),
                _ => {}
            }
        }
        let (group, key) = key?;
        Some(Parts { offer: offer?, group, key, nonce: nonce? })
    }
}

/// What the initiator has from the response that completes the first exchange.
pub(crate) struct Agreed {
    pub(crate) keys: IkeKeys,
    /// Nr.
    pub(crate) nonce: Vec<u8>,
    pub(crate) spis: IkeSpis,
    pub(crate) payloads: Vec<Payload>,
}

/// What the responder makes of a request that it accepts. `payloads` go into the answer.
pub(crate) struct HalfOpen {
    pub(crate) connection: Rc<Profile>,
    pub(crate) keys: IkeKeys,
    pub(crate) spis: IkeSpis,
    pub(crate) nonce_i: Vec<u8>,
    pub(crate) nonce_r: Vec<u8>,
    pub(crate) payloads: Vec<Payload>,
    pub(crate) resumed: Option<Resumed>,
}

/// Is this the answer that completes the exchange? Its choice must be one of ours (RFC 7296 section 2.7).
fn agree(sa: &IkeSa, initiation: &Initiation, message: &Message) -> Option<Agreed> {
    let parts = Parts::of(&message.payloads)?;
    let spis = message.header.spis;
    let group = initiation.key.group();
    let (suite, _) = chosen_ike(&sa.connection.proposals, parts.offer, group)?;
    if spis.responder == [0; 8] || parts.group != group.id() {
        return None;
    }
    let shared = initiation.key.agree(parts.key).ok()?;
    let keys = IkeKeys::new(suite, &shared, &sa.setup.nonce_i, parts.nonce, spis);
    Some(Agreed { keys, nonce: parts.nonce.to_vec(), spis, payloads: message.payloads.clone() })
}

/// The single proposal of a response, if it is a choice from ours: one transform of each type (section 3.3.6).
pub(crate) fn chosen_ike<'a>(
    ours: &[IkeProposal],
    response: &'a [Proposal],
    group: Group,
) -> Option<(IkeSuite, &'a Proposal)> {
    let [proposal] = response else { return None };
    let (suite, _) = select_ike(ours, response, Some(group)).ok()?;
    (suite.group == group && is_single(proposal)).then_some((suite, proposal))
}

/// Does a proposal hold at most one transform of each type?
pub(crate) fn is_single(proposal: &Proposal) -> bool {
    let kinds: Vec<u8> = proposal.transforms.iter().map(|t| t.kind).collect();
    (1..kinds.len()).all(|i| !kinds[..i].contains(&kinds[i]))
}

/// Does this answer ask for another request, with a COOKIE or another group? If so, `initiation` is that request's.
fn restart(
    sa: &IkeSa,
    initiation: &mut Initiation,
    payloads: &[Payload],
    random: &mut dyn crate::random::Random,
) -> bool {
    if initiation.restarts >= MAX_RESTARTS {
        return false;
    }
    if let Some(notify) = find_notify(payloads, notify::INVALID_KE_PAYLOAD) {
        let Some(group) = wanted_group(notify) else { return false };
        // RFC 7296 section 1.2: the wanted group must be one that we offered. Another one would be a downgrade.
        let offered = sa.connection.proposals.iter().any(|p| p.groups.contains(&group));
        if !offered || group == initiation.key.group() {
            return false;
        }
        initiation.key = PrivateKey::generate(group, random);
    } else if let Some(cookie) = usable_cookie(payloads, initiation.cookie.as_ref()) {
        initiation.cookie = Some(cookie);
    } else {
        return false;
    }
    initiation.restarts += 1;
    true
}

/// The cookie that an answer asks for, unless it was shown already. RFC 7296 section 2.6: 1 to 64 octets.
pub(crate) fn usable_cookie(payloads: &[Payload], shown: Option<&Vec<u8>>) -> Option<Vec<u8>> {
    let cookie = &find_notify(payloads, notify::COOKIE)?.data;
    ((1..=64).contains(&cookie.len()) && shown != Some(cookie)).then(|| cookie.clone())
}

/// The group that an INVALID_KE_PAYLOAD notification asks for (RFC 7296 section 1.3).
pub(crate) fn wanted_group(notify: &Notify) -> Option<Group> {
    Group::from_id(u16::from_be_bytes(<[u8; 2]>::try_from(&notify.data[..]).ok()?))
}

pub(crate) fn key_exchange(key: &PrivateKey) -> Payload {
    Payload::KeyExchange { group: key.group().id(), data: key.public().to_vec() }
}

/// NAT_DETECTION_SOURCE_IP and NAT_DETECTION_DESTINATION_IP (RFC 7296 section 2.23). To force UDP encapsulation the
/// source is given as one that cannot be ours, so that the peer sees a NAT as well.
pub(crate) fn nat_detection(
    spis: IkeSpis,
    local: SocketAddr,
    remote: SocketAddr,
    force: bool,
) -> [Payload; 2] {
    let source = if force { SocketAddr::from(([0, 0, 0, 0], 0)) } else { local };
    let data = |address| nat_detection_hash(spis, address).to_vec();
    [
        notification(notify::NAT_DETECTION_SOURCE_IP, data(source)),
        notification(notify::NAT_DETECTION_DESTINATION_IP, data(remote)),
    ]
}

/// RFC 7296 section 2.23: the peer is behind a NAT if none of its source hashes is its address as seen here; we are
/// if the destination hash isn't our own address. Without these payloads the peer knows no NAT traversal; with them
/// `force` makes us see a NAT in any case.
fn detect_nat(spis: IkeSpis, datagram: &Datagram, payloads: &[Payload], force: bool) -> Nat {
    let hashes = |kind| notifies(payloads).filter(move |n| n.kind == kind).map(|n| &n.data);
    let differs = |kind, address| {
        let expected = nat_detection_hash(spis, address);
        hashes(kind).next().is_some() && hashes(kind).all(|data| data[..] != expected)
    };
    let here = differs(notify::NAT_DETECTION_DESTINATION_IP, datagram.local);
    let traverses = hashes(notify::NAT_DETECTION_SOURCE_IP).next().is_some();
    let there = differs(notify::NAT_DETECTION_SOURCE_IP, datagram.remote);
    Nat { here, there: there || force && traverses && !here }
}
