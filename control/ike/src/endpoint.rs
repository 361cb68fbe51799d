//! The endpoint: all IKE SAs of a gateway. A datagram is dispatched by our own SPI in its header; what comes of it is
//! queued as [`Output`].
//!
//! An IKE SA is taken out of the table while one of its handlers runs ([`Endpoint::with_sa`]), so a handler may use
//! the rest of the endpoint, other IKE SAs included. When it returns, the next exchange is started, an IKE SA that
//! ended is buried, and its timer is set.

use crate::admission::{ClearErrors, HalfOpen};
use crate::api::*;
use crate::auth::peer;
use crate::connect::Connection;
use crate::cookie::CookieSecrets;
use crate::kept::Kept;
use crate::random::Random;
use crate::retransmit::Schedule;
use crate::sa::{IkeSa, IkeSas, State};
use crate::spi::{ChildSpis, Indices};
use crate::take_down::TakenDown;
use crate::ticket::NoTickets;
use crate::tombstone::{MessageHash, Tombstones};
use crate::wire::{self, Protection, View, exchange, notify};
use spindle_abi::{Command, Spi, Time};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

/// UDP port whose datagrams carry the non-ESP marker (RFC 3948 section 2.2, RFC 7296 section 2.23).
pub(crate) const NAT_PORT: u16 = 4500;

/// All IKE SAs of a gateway. Datagrams, the dataplane's events, wishes and the time go in; [`Output`]s come out.
pub struct Endpoint {
    /// The connections have their own.
    pub(crate) config: EndpointConfig,
    pub(crate) connections: Vec<Connection>,
    /// When connections are initiated again, by number.
    pub(crate) retries: BTreeSet<(Time, usize)>,
    /// Since somebody last asked.
    answers: InitialAnswers,
    pub(crate) lookups: Lookups,
    pub(crate) tokens: Box<dyn TokenMaker>,
    pub(crate) tickets: Box<dyn TicketKeeper>,
    pub(crate) activity: Box<dyn ActivityReader>,
    pub(crate) random: Box<dyn Random>,
    outputs: VecDeque<Output>,
    pub(crate) next_id: u64,
    pub(crate) sas: IkeSas,
    /// By our own SPI, in whichever position it is.
    by_spi: BTreeMap<IkeSpi, IkeSaId>,
    /// By the peer's address and port.
    pub(crate) by_remote: BTreeSet<(SocketAddr, IkeSaId)>,
    /// IKE SAs by the IKE_SA_INIT request of their peer. RFC 7296 section 2.1: a retransmission is known by the whole
    /// packet, for peers behind one NAT may choose the same SPI.
    pub(crate) by_init: BTreeMap<MessageHash, IkeSaId>,
    pub(crate) half_open: HalfOpen,
    timers: BTreeSet<(Time, IkeSaId)>,
    pub(crate) tombstones: Tombstones,
    pub(crate) cookies: CookieSecrets,
    /// Peers to which INITIAL_CONTACT was sent, or an IKE SA made, in this incarnation: our identity, theirs.
    pub(crate) contacted: BTreeSet<(Identity, Identity)>,
    pub(crate) child_spis: ChildSpis,
    pub(crate) indices: Indices,
    pub(crate) child_home: BTreeMap<ChildSaId, IkeSaId>,
    /// Outbound SPIs, present and recently removed. Several peers may choose the same.
    pub(crate) outbound: BTreeMap<(Spi, ChildSaId), IkeSaId>,
    pub(crate) recent_outbound: VecDeque<(Time, Spi, ChildSaId)>,
    /// Inbound SAs that a successor replaced, still receiving for a while.
    pub(crate) lingering: VecDeque<(Time, Spi, u32)>,
    pub(crate) clear_errors: ClearErrors,
    /// Configured addresses of ours that are not on this machine.
    pub(crate) absent: BTreeSet<IpAddr>,
    pub(crate) shutting_down: bool,
    pub(crate) taken_down: Option<TakenDown>,
    /// What of all this outlives the process, where it is kept.
    pub(crate) kept: Option<Kept>,
}

/// How connections are found, by their numbers.
#[derive(Default)]
pub(crate) struct Lookups {
    /// The connection and child of a policy.
    pub(crate) policies: BTreeMap<u32, (usize, String)>,
    /// The connections between two identities, ours first.
    pub(crate) peers: BTreeMap<(Identity, Identity), Vec<usize>>,
    /// The connections between two addresses, the peer's first; without one, for peers at any.
    pub(crate) by_addresses: BTreeMap<(Option<IpAddr>, IpAddr), Vec<usize>>,
    /// The connections with a peer of this identity, in one case.
    pub(crate) by_remote_id: BTreeMap<Identity, Vec<usize>>,
    /// A connection's number by its name.
    pub(crate) by_name: HashMap<String, usize>,
}

impl Lookups {
    pub(crate) fn new(connections: &[Shared<ConnectionConfig>]) -> Lookups {
        let mut found = Lookups::default();
        for (number, connection) in connections.iter().enumerate() {
            found.peers.entry(peer(connection)).or_default().push(number);
            found.by_addresses.entry((connection.remote, connection.local)).or_default().push(number);
            for gateway in &connection.redirect_to {
                found.by_addresses.entry((Some(*gateway), connection.local)).or_default().push(number);
            }
            found.by_remote_id.entry(connection.remote_id.in_one_case()).or_default().push(number);
            found.by_name.entry(connection.name.clone()).or_insert(number);
            found.policies.extend(connection.children.iter().map(|c| (c.policy, (number, c.name.clone()))));
        }
        found
    }
}

impl Endpoint {
    /// Without any SA.
    pub fn new(
        mut config: EndpointConfig,
        tokens: Box<dyn TokenMaker>,
        activity: Box<dyn ActivityReader>,
        random: Box<dyn Random>,
    ) -> Endpoint {
        let configured = std::mem::take(&mut config.connections);
        let lookups = Lookups::new(&configured);
        let mut connections: Vec<Connection> = Vec::with_capacity(configured.len());
        for (number, config) in configured.into_iter().enumerate() {
            connections.push(Connection::new(number, config, connections.last()));
        }
        Endpoint {
            config,
            connections,
            retries: BTreeSet::new(),
            answers: InitialAnswers::default(),
            lookups,
            tokens,
            tickets: Box::new(NoTickets),
            activity,
            random,
            outputs: VecDeque::new(),
            next_id: 1,
            sas: IkeSas::default(),
            by_spi: BTreeMap::new(),
            by_remote: BTreeSet::new(),
            by_init: BTreeMap::new(),
            half_open: HalfOpen::default(),
            timers: BTreeSet::new(),
            tombstones: Tombstones::default(),
            cookies: CookieSecrets::default(),
            contacted: BTreeSet::new(),
            child_spis: ChildSpis::default(),
            indices: Indices::default(),
            child_home: BTreeMap::new(),
            outbound: BTreeMap::new(),
            recent_outbound: VecDeque::new(),
            lingering: VecDeque::new(),
            clear_errors: ClearErrors::default(),
            absent: BTreeSet::new(),
            shutting_down: false,
            taken_down: None,
            kept: None,
        }
    }

    /// Takes a datagram of port 500 or 4500.
    pub fn handle(&mut self, now: Time, datagram: Datagram) {
        let message = match datagram.local.port() {
            NAT_PORT => wire::strip_non_esp_marker(&datagram.data),
            _ => Some(&datagram.data[..]),
        };
        let Some(message) = message else { return };
        let view = match View::parse(message) {
            Ok(view) => view,
            Err(wire::Error::MajorVersion { header, .. }) => {
                return self.refuse_version(now, &header, &datagram);
            }
            Err(_) => return,
        };
        let header = view.header();
        match (header.exchange, view.protection()) {
            (exchange::IKE_SA_INIT | exchange::IKE_SESSION_RESUME, None) if !header.response => {
                self.receive_init_request(now, &datagram, message, &view);
            }
            (exchange::IKE_SA_INIT | exchange::IKE_SESSION_RESUME, None) => {
                if let Some(&id) = self.by_spi.get(&header.spis.initiator) {
                    self.with_sa(now, id, |e, sa| match header.exchange {
                        exchange::IKE_SA_INIT => e.receive_init_response(now, sa, &datagram, message, &view),
                        _ => e.receive_resume_response(now, sa, &datagram, message, &view),
                    });
                }
            }
            (exchange::IKE_SA_INIT | exchange::IKE_SESSION_RESUME, Some(_)) => {}
            (_, Some(protection)) => self.receive_protected(now, &datagram, message, &view, protection),
            (_, None) => self.receive_clear(&datagram, &view),
        }
    }

    /// A message with an SK payload goes to its IKE SA; a request to none is recovery's to judge.
    fn receive_protected(
        &mut self,
        now: Time,
        datagram: &Datagram,
        message: &[u8],
        view: &View<'_>,
        protection: Protection,
    ) {
        let header = view.header();
        let own = if header.initiator { header.spis.responder } else { header.spis.initiator };
        let known = self.by_spi.get(&own).copied();
        if let Some(id) = known.filter(|id| self.sas.get(id).is_some_and(|sa| sa.spis == header.spis)) {
            if protection == Protection::Sk {
                self.with_sa(now, id, |e, sa| e.receive_sealed(now, sa, datagram, message, view));
            }
            return;
        }
        // RFC 7296 section 2.21.4: a response outside any known IKE SA MUST NOT be answered.
        if header.response || matches!(protection, Protection::Fragment { number: 2.., .. }) {
            return;
        }
        if let Some(response) = self.tombstones.replay(own, header.message_id, message) {
            let response = response.to_vec();
            return self.answer(datagram, &response);
        }
        let tombstone = self.tombstones.stands(header.spis);
        let (local, remote) = (datagram.local, datagram.remote);
        self.push(Output::Unmatched(Unmatched::ProtectedRequest { header, local, remote, tombstone }));
    }

    /// A message in clear. RFC 7296 section 2.4, 2.21.4: it changes no SA; section 1.5: it is not answered.
    fn receive_clear(&mut self, datagram: &Datagram, view: &View<'_>) {
        let Ok(message) = view.message() else { return };
        let notifies: Vec<Notify> = notifies(&message.payloads).cloned().collect();
        let hint = |kind| {
            matches!(kind, notify::INVALID_IKE_SPI | notify::INVALID_SPI | notify::QUICK_CRASH_DETECTION)
        };
        let sir = self.hears_sir() && view.header().exchange == exchange::SIR;
        if sir || notifies.iter().any(|n| hint(n.kind)) {
            let (local, remote) = (datagram.local, datagram.remote);
            let header = message.header;
            self.push(Output::Unmatched(Unmatched::Clear { header, notifies, local, remote }));
        }
    }

    /// RFC 7296 section 2.5: a higher major version MUST be dropped and SHOULD be told, in clear.
    fn refuse_version(&mut self, now: Time, header: &Header, datagram: &Datagram) {
        if header.response || !self.may_answer_in_clear(now) {
            return;
        }
        if let Some(notify) = (wire::Error::MajorVersion { header: *header, version: 3 }).notify() {
            self.answer_in_clear(datagram, header, vec![wire::Payload::Notify(notify)]);
        }
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Time) {
        let due: Vec<IkeSaId> = self.timers.range(..=(now, IkeSaId(u64::MAX))).map(|(_, id)| *id).collect();
        for id in due {
            self.with_sa(now, id, |e, sa| e.tick_sa(now, sa));
        }
        self.tick_removed(now);
        while let Some(own) = self.tombstones.expire(now) {
            self.keep_tombstone_no_more(own);
        }
        while !self.config.paced && self.start_due(now) {}
    }

    fn tick_sa(&mut self, now: Time, sa: &mut IkeSa) {
        self.tick_outstanding(now, sa);
        let is_due = |at: Option<Time>| at.is_some_and(|at| at <= now);
        if sa.ended.is_some() {
            return;
        }
        if is_due(sa.expires) {
            sa.expires = None;
            match sa.state {
                State::Rekeyed => self.close(now, sa, Authority::Superseded(Evidence(()))),
                _ => sa.end(Authority::Timeout(Evidence(())), false),
            }
        }
        if is_due(sa.dpd_at) {
            self.check_liveness(now, sa);
        }
        if is_due(sa.keepalive_at) {
            self.send_keepalive(now, sa);
        }
        if is_due(sa.rekey_at) {
            sa.rekey_at = None;
            sa.enqueue(now, crate::exchange::Task::RekeyIke);
        }
        if is_due(sa.ticket_at) {
            self.want_ticket(now, sa);
        }
        if is_due(sa.leave_at) {
            sa.leave_at = None;
            self.close(now, sa, crate::take_down::LEAVES);
        }
        let due: Vec<ChildSaId> = sa.children.iter().filter(|c| is_due(c.rekey_at)).map(|c| c.id).collect();
        for id in due {
            self.want_child_rekey(now, sa, id);
        }
        let over: Vec<ChildSaId> = sa.children.iter().filter(|c| is_due(c.expires)).map(|c| c.id).collect();
        for id in over {
            self.expire_child(now, sa, id);
        }
    }

    /// A request of an initial exchange, on this schedule, is answered.
    pub(crate) fn count_answer(&mut self, schedule: &Schedule) {
        self.answers.all = self.answers.all.saturating_add(1);
        self.answers.late = self.answers.late.saturating_add(schedule.is_repeated().into());
    }

    /// The answers since this was last asked.
    pub fn take_answers(&mut self) -> InitialAnswers {
        std::mem::take(&mut self.answers)
    }

    /// What is to be done next, in order.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Endpoint::tick`] is to be called next.
    pub fn deadline(&self) -> Option<Time> {
        let timers = self.timers.first().map(|(at, _)| *at);
        let connections = self.start_due_at().filter(|_| !self.config.paced);
        [timers, connections, self.removed_deadline(), self.tombstones.deadline()].into_iter().flatten().min()
    }

    // What the handlers use.

    /// Runs a handler on an IKE SA, and what follows from it.
    pub(crate) fn with_sa<R>(
        &mut self,
        now: Time,
        id: IkeSaId,
        handler: impl FnOnce(&mut Endpoint, &mut IkeSa) -> R,
    ) -> Option<R> {
        let mut sa = self.sas.remove(&id)?;
        self.note_changed(id);
        let result = handler(self, &mut sa);
        self.insert_sa(now, sa);
        Some(result)
    }

    /// Puts an IKE SA, new or taken out, into the table: starts its next exchange, or buries it.
    pub(crate) fn insert_sa(&mut self, now: Time, mut sa: Box<IkeSa>) {
        self.note_changed(sa.id);
        self.start_next(now, &mut sa);
        if let Some(at) = sa.scheduled.take() {
            self.timers.remove(&(at, sa.id));
        }
        let noted = sa.noted_remote.replace(sa.remote);
        if noted != Some(sa.remote) {
            if let Some(old) = noted {
                self.by_remote.remove(&(old, sa.id));
                if sa.established.is_some() {
                    self.report(Report::PeerMoved { ike: sa.id, spis: sa.spis, remote: sa.remote });
                }
            }
            self.by_remote.insert((sa.remote, sa.id));
        }
        if let Some(ending) = sa.ended.take() {
            self.by_remote.remove(&(sa.remote, sa.id));
            return self.bury(now, sa, ending);
        }
        sa.scheduled = sa.deadline();
        if let Some(at) = sa.scheduled {
            self.timers.insert((at, sa.id));
        }
        self.by_spi.insert(sa.own_spi(), sa.id);
        self.connections[sa.connection.number].sas.insert(sa.id);
        self.sas.insert(sa);
    }

    /// Our own SPI names it no more.
    pub(crate) fn forget_spi(&mut self, spi: &IkeSpi) {
        self.by_spi.remove(spi);
    }

    /// An own SPI is used before its IKE SA is in the table: an IKE rekey under way.
    pub(crate) fn reserve_spi(&mut self, spi: IkeSpi, by: IkeSaId) {
        self.by_spi.insert(spi, by);
    }

    /// A new IKE SPI of our own.
    pub(crate) fn allocate_ike_spi(&mut self) -> IkeSpi {
        let by_spi = &self.by_spi;
        crate::spi::ike_spi(&mut *self.random, |spi| by_spi.contains_key(spi))
    }

    pub(crate) fn by_own_spi(&self, spi: &IkeSpi) -> Option<IkeSaId> {
        self.by_spi.get(spi).copied()
    }

    /// Handles are never used twice.
    pub(crate) fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }

    pub(crate) fn random_u32(&mut self) -> u32 {
        let mut octets = [0; 4];
        self.random.fill(&mut octets);
        u32::from_be_bytes(octets)
    }

    /// A nonce: random, at least half the PRF's key size (RFC 7296 section 2.10).
    pub(crate) fn nonce(&mut self) -> Vec<u8> {
        let mut nonce = vec![0; 32];
        self.random.fill(&mut nonce);
        nonce
    }

    /// Our QCD token of an IKE SA as a payload (RFC 6290 section 4.1: Protocol ID 1, SPI Size 0).
    pub(crate) fn own_token(&self, spis: IkeSpis, peer: SocketAddr) -> Option<wire::Payload> {
        let data = self.tokens.token(spis, peer.ip())?;
        let kind = notify::QUICK_CRASH_DETECTION;
        Some(wire::Payload::Notify(Notify { kind, protocol: wire::protocol::IKE, spi: Vec::new(), data }))
    }

    pub(crate) fn push(&mut self, output: Output) {
        self.outputs.push_back(output);
    }

    pub(crate) fn report(&mut self, report: Report) {
        self.push(Output::Report(report));
    }

    pub(crate) fn dataplane(&mut self, command: Command) {
        self.push(Output::Dataplane(command));
    }

    /// Sends a message to an IKE SA's peer.
    pub(crate) fn transmit(&mut self, sa: &IkeSa, message: &[u8]) {
        self.send(sa.local, sa.remote, message);
    }

    /// Sends a message back to where a datagram came from (RFC 7296 section 2.11).
    pub(crate) fn answer(&mut self, datagram: &Datagram, message: &[u8]) {
        self.send(datagram.local, datagram.remote, message);
    }

    pub(crate) fn send(&mut self, local: SocketAddr, remote: SocketAddr, message: &[u8]) {
        let data = match local.port() {
            NAT_PORT => wire::add_non_esp_marker(message),
            _ => message.to_vec(),
        };
        self.push(Output::Transmit(Datagram { local, remote, data }));
    }

    /// Answers a request in clear, with its SPIs and Message ID.
    pub(crate) fn answer_in_clear(
        &mut self,
        datagram: &Datagram,
        request: &Header,
        payloads: Vec<wire::Payload>,
    ) {
        let header = Header { response: true, initiator: !request.initiator, ..*request };
        let message = wire::Message { header, payloads }.emit();
        self.answer(datagram, &message);
    }
}

/// The Notify payloads of a chain.
pub(crate) fn notifies(payloads: &[wire::Payload]) -> impl Iterator<Item = &Notify> {
    payloads.iter().filter_map(|p| match p {
        wire::Payload::Notify(notify) => Some(notify),
        _ => None,
    })
}

/// The Notification Data of the first Notify payload of this type.
pub(crate) fn find_notify(payloads: &[wire::Payload], kind: u16) -> Option<&Notify> {
    notifies(payloads).find(|n| n.kind == kind)
}

/// The first error among the notifications; `None` if there is none (RFC 7296 section 3.10.1).
pub(crate) fn find_error(payloads: &[wire::Payload]) -> Option<u16> {
    notifies(payloads).map(|n| n.kind).find(|kind| *kind < notify::STATUS)
}

/// A Notify payload about the IKE SA or the exchange: no SPI, Protocol ID zero (RFC 7296 section 3.10).
pub(crate) fn notification(kind: u16, data: Vec<u8>) -> wire::Payload {
    wire::Payload::Notify(Notify { kind, protocol: 0, spi: Vec::new(), data })
}
