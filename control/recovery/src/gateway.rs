//! The gateway: the IKE endpoint, and around it the recovery from crashes, ours and the peers'.
//!
//! Datagrams go to the endpoint; what it cannot account for comes back as `Unmatched` and is judged ([`heard`]). Its reports keep the journal in
//! step. The dataplane's events become answers, wishes to the endpoint, or acknowledgements. All that is to be
//! done leaves by [`Gateway::poll`], in order.

use crate::answer::Answers;
use crate::api::{Boot, Config, Input, JournalWrite, Method, Output};
use crate::capacity::Capacity;
use crate::hints::Hints;
use crate::journal::{FormerTable, Journal, longest_lifetime};
use crate::limits::{BySource, SourceHash, Total};
use crate::qcd::{ProtectedTokens, Tokens};
use crate::reconnect::Reconnect;
use crate::rotation::Rotation;
use crate::spd::Spd;
use crate::stats::{Counter, Stats};
use crate::tickets::{SharedTickets, Tickets};
use crate::turns::Turns;
pub use adopt::{Left, Records};
use dataplane::{Awaited, Dataplane};
use spindle_abi::{Command, MAX_FORMER_AT_ONCE, Spi, SpiState, Time};
use spindle_ike::Endpoint;
use spindle_ike::api::{
    ActivityReader, Change, ConnectionConfig, EndpointConfig, IkeSaId, IkeSaStatus, Refused, Shared,
};
use spindle_ike::random::Random;
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;
use take_down::TakingDown;
pub use take_down::{TakeDownRefused, TakeDownStatus};
use zeroize::Zeroizing;

/// Reports of tokens sent, per second; all are counted.
const TOKEN_REPORTS: u32 = 100;
/// The same of hints, and of what is checked on them, which anybody may cause; and so many at once.
const HINT_REPORTS: (u32, u32) = (10, 100);
/// Handshakes begun in one [`Gateway::tick`]: so many key exchanges does an answer wait for at most.
const BEGUN_AT_ONCE: usize = 8;

/// One connection as shown to people; a tunnel that is configured but down is here too.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConnectionStatus {
    /// Its name.
    pub name: String,
    /// Established IKE SAs.
    pub ike_sas: usize,
    /// Installed Child SAs.
    pub child_sas: usize,
    /// Is it waiting to be initiated again (after a proof, or a start)?
    pub initiating: bool,
}

/// A whole gateway's control plane.
pub struct Gateway {
    /// As it was given.
    configured: Config,
    /// The same with the policies' ids in the dataplane.
    config: Config,
    spd: Spd,
    incarnation: u64,
    wall_clock: (u64, Time),
    endpoint: Endpoint,
    answers: Answers,
    tokens: Rc<Tokens>,
    rotation: Rotation,
    /// When IKE SAs that ended without a report were last looked for.
    swept: Time,
    /// The IKE SA that the datagram at hand made, with us as responder.
    accepted: Option<IkeSaId>,
    tickets: Rc<RefCell<Tickets>>,
    former: FormerTable,
    journal: Journal,
    hints: Hints,
    reconnect: Reconnect,
    /// How many handshakes can be taken.
    capacity: Capacity,
    /// Handshakes after crashes, so many.
    pace: Total,
    /// Connections whose peers were told of a crash, and the handshakes by which they come back have taken from the
    /// pace.
    told: HashSet<String>,
    /// Those of connections that start with us.
    start_pace: Total,
    /// Peers of the journal that are to be told, within the pace.
    turns: Turns,
    /// The connections that the start has not come to yet, by their places.
    starting: VecDeque<usize>,
    /// Former SPIs, one of each IKE SA, whose peers are to be told unasked.
    unasked: VecDeque<Spi>,
    /// Does any connection use tokens?
    takes_tokens: bool,
    /// The connection of each policy.
    policies: HashMap<u32, String>,
    /// Where a connection has the method.
    sir: Option<sir::Sir>,
    hash: SourceHash,
    failed_tokens: BySource,
    token_reports: Total,
    hint_reports: Total,
    probe_reports: Total,
    stats: Stats,
    output: VecDeque<Output>,
    /// SPIs whose former state the dataplane has not been told yet.
    untold: std::vec::IntoIter<Spi>,
    /// What it has been told, and what it has acknowledged.
    dataplane: Dataplane,
    ready: bool,
    taking_down: Option<TakingDown>,
    stopping: bool,
    /// Of which life what is kept is: to be kept as well.
    life: Option<Change>,
    /// The policies' numbers: the same.
    numbers: Option<Change>,
    /// An earlier process of this incarnation has done what is done at the start.
    has_adopted: bool,
}

impl Gateway {
    /// After [`Store::boot`](crate::store::Store::boot). Control is authoritative from here on: the journal is
    /// read, and nothing lives from before.
    pub fn new(
        config: Config,
        boot: Boot,
        activity: Box<dyn ActivityReader>,
        random: Box<dyn Random>,
        now: Time,
    ) -> Gateway {
        Gateway::make(config, None, boot, activity, random, now).begin(now)
    }

    /// The same, where what it needs to go on after its death is kept ([`Output::Keep`]).
    pub fn keeping(
        config: Config,
        boot: Boot,
        activity: Box<dyn ActivityReader>,
        random: Box<dyn Random>,
        now: Time,
    ) -> Gateway {
        let mut gateway = Gateway::make(config, None, boot, activity, random, now);
        gateway.keep();
        // The dataplane may have outlived a control process whose memory is lost.
        gateway.say_all_again();
        gateway.begin(now)
    }

    /// After [`Store::resume`](crate::store::Store::resume): another process of this incarnation died and left this. Keeps
    /// as well.
    pub fn adopting(
        config: Config,
        mut boot: Boot,
        left: Left,
        activity: Box<dyn ActivityReader>,
        random: Box<dyn Random>,
        now: Time,
    ) -> Gateway {
        adopt::as_begun(&mut boot, &left);
        let mut gateway = Gateway::make(config, left.records.policies(), boot, activity, random, now);
        gateway.keep();
        gateway.begin_adoption();
        gateway.adopt(now, left);
        gateway.tell_adopted(now);
        gateway
    }

    /// `told`: the policies that the dataplane has.
    fn make(
        config: Config,
        told: Option<Spd>,
        boot: Boot,
        activity: Box<dyn ActivityReader>,
        mut random: Box<dyn Random>,
        now: Time,
    ) -> Gateway {
        let mut key = Zeroizing::new([0; 32]);
        random.fill(&mut *key);
        let hash = SourceHash::new(&key);
        let configured = config.clone();
        let spd = told.map_or_else(|| Spd::new(&config), |told| told.next(&config, &BTreeSet::new()));
        let mut config = config;
        spd.number(&mut config);
        let sir = sir::Sir::new(&config, &mut *random, now);
        let mut boot = boot;
        if !config.journal {
            boot.former.clear();
        }
        let tokens = Rc::new(Tokens::new(&boot.maker_id, config.token_maker));
        let former_until = boot.former.iter().map(|record| record.hard_expiry).max().unwrap_or(0);
        let wall = boot.wall_clock.0;
        let rotation = Rotation::new(&config, &boot.secrets, longest_lifetime(&config), former_until, wall);
        tokens.set(rotation.generations());
        let answers = Answers::new(&config, &boot, tokens.clone(), hash.clone());
        let protected = ProtectedTokens(tokens.clone());

        let mut ike = EndpointConfig::new(config.connections.clone());
        let takes_tokens = takes_tokens(&config);
        ike.token_taker = takes_tokens;
        ike.replicated = config.replicated;
        ike.paced = true;
        ike.sir = sir::speakers(&config);
        ike.cookie_threshold = config.cookie_threshold;
        ike.ticket_lifetime = config.ticket_lifetime;
        let mut endpoint = Endpoint::new(ike, Box::new(protected), activity, random);
        let tickets = Rc::new(RefCell::new(Tickets::new(boot.tickets, boot.wall_clock)));
        endpoint.set_tickets(Box::new(SharedTickets(tickets.clone())));
        let former = FormerTable::new(boot.former);
        endpoint.avoid_spis(former.spis());

        let limits = &config.limits;
        let handshakes = limits.handshakes_total;
        Gateway {
            incarnation: boot.incarnation,
            wall_clock: boot.wall_clock,
            endpoint,
            answers,
            tokens,
            rotation,
            swept: now,
            accepted: None,
            tickets,
            journal: Journal::new(&config, boot.incarnation),
            hints: Hints::new(limits),
            reconnect: Reconnect::default(),
            sir,
            capacity: Capacity::new(handshakes, limits.handshakes_max),
            pace: Total::at_once(handshakes, contact::at_once(handshakes, handshakes)),
            told: HashSet::new(),
            start_pace: Total::at_once(handshakes, contact::evenly(handshakes)),
            turns: Turns::default(),
            starting: VecDeque::new(),
            unasked: VecDeque::new(),
            takes_tokens,
            policies: connections_of_policies(&config),
            hash,
            failed_tokens: BySource::new(
                limits.failed_tokens_logged_per_source,
                limits.failed_tokens_logged_total,
            ),
            token_reports: Total::new(TOKEN_REPORTS),
            hint_reports: Total::at_once(HINT_REPORTS.0, HINT_REPORTS.1),
            probe_reports: Total::at_once(HINT_REPORTS.0, HINT_REPORTS.1),
            stats: Stats::default(),
            output: VecDeque::new(),
            untold: Vec::new().into_iter(),
            former,
            dataplane: Dataplane::default(),
            ready: false,
            taking_down: None,
            stopping: false,
            life: None,
            numbers: None,
            has_adopted: false,
            configured,
            spd,
            config,
        }
    }

    fn begin(mut self, now: Time) -> Gateway {
        self.set_up();
        self.drain(now);
        self
    }

    /// Takes a datagram or an event.
    pub fn handle(&mut self, now: Time, input: Input) {
        match input {
            Input::Datagram(datagram) if self.is_elsewhere(datagram.local.ip()) => {}
            Input::Datagram(datagram) => self.endpoint.handle(now, datagram),
            Input::Addresses(here) => self.addresses(now, &here),
            Input::Event(event) => self.event(now, event),
            Input::NewDataplane => self.dataplane_is_new(now),
            Input::Secrets(generations) => self.secrets_written(now, generations),
        }
        self.drain(now);
    }

    /// Does what is due, and begins a few handshakes. What answers has come meanwhile goes before more of them: while this is
    /// still due, take that first.
    pub fn tick(&mut self, now: Time) {
        let wall = self.wall(now);
        while let Some(spi) = self.former.expire(wall) {
            self.stats.count(Counter::FormerExpired);
            self.command(Command::SetSpiState { spi, state: SpiState::Unknown });
            self.output.push_back(Output::Journal(JournalWrite::Remove(spi)));
            self.endpoint.release_spi(spi);
        }
        while let Some(ike) = self.hints.next_due(now, &self.endpoint) {
            self.probe(now, ike, false);
        }
        self.tick_sir(now);
        self.endpoint.tick(now);
        self.drain(now);
        for _ in 0..BEGUN_AT_ONCE {
            if !self.begin_next(now) {
                break;
            }
            self.drain(now);
        }
    }

    /// Begins the next handshake that is to be begun, within the pace: of those whose traffic came first.
    fn begin_next(&mut self, now: Time) -> bool {
        if let Some(due) = self.reconnect.next_due(now, &mut self.pace) {
            self.initiate_due(now, &due);
            return true;
        }
        self.start_again(now) || self.start_next(now) || self.tell_unasked(now)
    }

    /// Is an [`Output::Persist`] the next one? What is handled before it is polled shares its commit.
    pub fn has_to_persist(&self) -> bool {
        self.tickets.borrow().has_fresh()
    }

    /// What is to be done next, in order.
    pub fn poll(&mut self) -> Option<Output> {
        // On disk before the answer by which they are used.
        let used = self.tickets.borrow_mut().take_fresh();
        if !used.is_empty() {
            return Some(Output::Persist(used));
        }
        // Before anybody sees what has changed.
        let mut changes = self.endpoint.take_changes();
        changes.extend(self.life.take().into_iter().chain(self.numbers.take()));
        if !changes.is_empty() {
            return Some(Output::Keep(changes));
        }
        if let Some(output) = self.output.pop_front() {
            return Some(output);
        }
        if self.untold.as_slice().is_empty() {
            return self.sweep_doubts();
        }
        let spis = self.untold.by_ref().take(MAX_FORMER_AT_ONCE);
        // One may have expired before its turn came.
        let spis = spis.filter(|spi| self.former.row(*spi).is_some()).collect();
        Some(self.numbered(Command::SetFormer { spis }, Awaited::Boot))
    }

    /// When [`Gateway::tick`] is to be called next.
    pub fn deadline(&self) -> Option<Time> {
        let expiry = self.former.next_expiry().map(|second| {
            let left = second.saturating_sub(self.wall_clock.0);
            self.wall_clock.1.after(Duration::from_secs(left))
        });
        let dismissal = self.taking_down.as_ref().and_then(TakingDown::deadline);
        let waits = !self.turns.line.is_empty() || !self.unasked.is_empty();
        let turn = waits.then(|| self.pace.room_at());
        let start = (!self.starting.is_empty()).then(|| self.pace.room_at().max(self.start_pace.room_at()));
        let reconnect = self.reconnect.deadline(&self.pace);
        let again = self.endpoint.start_due_at().map(|at| at.max(self.pace.room_at()));
        let sir = self.sir.as_ref().and_then(|sir| sir.deadline(&self.pace));
        let own = [
            expiry,
            self.hints.deadline(),
            reconnect,
            again,
            turn,
            start,
            dismissal,
            self.rotation_deadline(),
            sir,
        ];
        own.into_iter().chain([self.endpoint.deadline()]).flatten().min()
    }

    /// Starts a connection, or one of its children.
    pub fn initiate(&mut self, now: Time, connection: &str, child: Option<&str>) -> Result<(), Refused> {
        let result = self.endpoint.initiate(now, connection, child, false);
        self.drain(now);
        result
    }

    /// Deletes the IKE SAs of a connection, or the Child SAs of one of its children; how many.
    pub fn terminate(&mut self, now: Time, connection: &str, child: Option<&str>) -> Result<usize, Refused> {
        self.reconnect.forget(connection);
        self.endpoint.forget_ticket(connection);
        self.each(now, connection, child, Endpoint::terminate_ike, Endpoint::terminate_child)
    }

    /// Rekeys the IKE SAs of a connection, or the Child SAs of one of its children; how many.
    pub fn rekey(&mut self, now: Time, connection: &str, child: Option<&str>) -> Result<usize, Refused> {
        self.each(now, connection, child, Endpoint::rekey_ike, Endpoint::rekey_child)
    }

    /// For drills and simulations: loses the IKE SAs of a connection, or the Child SAs of one of its children, as by a fault: no peer is
    /// told, and nothing is begun; how many.
    pub fn forget(&mut self, now: Time, connection: &str, child: Option<&str>) -> Result<usize, Refused> {
        self.each(now, connection, child, Endpoint::forget_ike, Endpoint::forget_child)
    }

    /// All IKE SAs with their Child SAs.
    pub fn sas(&self) -> Vec<IkeSaStatus> {
        self.endpoint.sas()
    }

    /// The configuration of a connection; an error if none has this name.
    pub fn configured(&self, connection: &str) -> Result<&ConnectionConfig, Refused> {
        let unknown = || Refused::UnknownConnection(connection.to_owned());
        self.endpoint.connection(connection).ok_or_else(unknown)
    }

    /// Those of one connection.
    pub fn sas_of(&self, connection: &str) -> Vec<IkeSaStatus> {
        self.endpoint.sas_of(connection)
    }

    /// How many IKE SAs there are, and how many Child SAs.
    pub fn count(&self) -> (usize, usize) {
        self.endpoint.count()
    }

    /// All connections, in configuration order.
    pub fn connections(&self) -> Vec<ConnectionStatus> {
        let status = |name: &String| {
            let of_it = || self.journal.of_connection(name);
            ConnectionStatus {
                name: name.clone(),
                ike_sas: of_it().count(),
                child_sas: of_it().map(|(_, row)| row.children.len()).sum(),
                initiating: self.reconnect.is_wanted(name),
            }
        };
        self.config.connections.iter().map(|c| status(&c.name)).collect()
    }

    /// An [`Output::Persist`] came to nothing: no ticket is taken any more, for it could be taken twice.
    pub fn cannot_remember(&mut self) {
        self.tickets.borrow_mut().cannot_remember();
    }

    /// Named counters, and the handshakes a second that may begin; the names are stable.
    pub fn stats(&self) -> Vec<(&'static str, u64)> {
        let pace = ("handshakes-pace", u64::from(self.capacity.pace()));
        self.stats.all().into_iter().chain([pace]).collect()
    }

    /// Deletes all SAs by exchanges and begins none any more; drive the gateway until [`Gateway::sas`] is empty or
    /// patience ends. When the last Delete is sent: 20 seconds from now at most.
    pub fn shut_down(&mut self, now: Time) -> Time {
        self.stopping = true;
        self.reconnect.clear();
        self.turns.line.clear();
        self.starting.clear();
        self.unasked.clear();
        let last = self.endpoint.shut_down(now);
        self.drain(now);
        last
    }

    /// Carries out all that the endpoint wants, and what follows from it.
    fn drain(&mut self, now: Time) {
        loop {
            while let Some(output) = self.endpoint.poll() {
                match output {
                    spindle_ike::api::Output::Transmit(datagram) => {
                        self.output.push_back(Output::Transmit(datagram));
                    }
                    spindle_ike::api::Output::Dataplane(command) => self.command(command),
                    spindle_ike::api::Output::Unmatched(unmatched) => self.unmatched(now, unmatched),
                    spindle_ike::api::Output::Report(report) => self.reported(now, report),
                }
            }
            // Within the pace: those whose traffic came first.
            if !self.answer_waiting(now) && !self.dismiss_next(now) && !self.advance_rotation(now) {
                break;
            }
        }
        self.accepted = None;
        self.tickets.borrow_mut().count_into(&mut self.stats);
        let writes = self.journal.take_writes();
        if self.config.journal {
            self.output.extend(writes.into_iter().map(Output::Journal));
        }
    }

    fn each(
        &mut self,
        now: Time,
        connection: &str,
        child: Option<&str>,
        of_ike: impl Fn(&mut Endpoint, Time, IkeSaId) -> Result<(), Refused>,
        of_child: impl Fn(&mut Endpoint, Time, spindle_ike::api::ChildSaId) -> Result<(), Refused>,
    ) -> Result<usize, Refused> {
        let configured = self.configured(connection)?;
        if let Some(child) = child.filter(|child| configured.children.iter().all(|c| c.name != *child)) {
            return Err(Refused::UnknownChild(connection.to_owned(), child.to_owned()));
        }
        let mut done = 0;
        for ike in self.endpoint.sas_of(connection) {
            match child {
                None => done += usize::from(of_ike(&mut self.endpoint, now, ike.id).is_ok()),
                Some(name) => {
                    for child in ike.children.iter().filter(|c| c.name == name) {
                        done += usize::from(of_child(&mut self.endpoint, now, child.id).is_ok());
                    }
                }
            }
        }
        self.drain(now);
        if done == 0 { Err(Refused::UnknownSa) } else { Ok(done) }
    }

    /// Seconds since 1970.
    fn wall(&self, now: Time) -> u64 {
        self.wall_clock.0.saturating_add(now.since(self.wall_clock.1).as_secs())
    }
}

/// By the ids of their children's policies in the dataplane.
fn connections_of_policies(config: &Config) -> HashMap<u32, String> {
    let of = |c: &Shared<ConnectionConfig>| {
        c.children.iter().map(|child| (child.policy, c.name.clone())).collect::<Vec<_>>()
    };
    config.connections.iter().flat_map(of).collect()
}

/// Without the method, tokens are neither stored nor checked; hints remain, for they are RFC 7296's.
fn takes_tokens(config: &Config) -> bool {
    let takes = |c: &Shared<ConnectionConfig>| config.methods_of(&c.name).contains(&Method::Qcd);
    config.token_taker && config.connections.iter().any(takes)
}

mod addresses;
mod adopt;
mod contact;
mod dataplane;
mod heard;
mod reconfigure;
mod reported;
mod secrets;
mod sir;
mod take_down;
#[cfg(test)]
mod tests;
