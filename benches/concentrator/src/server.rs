//! The concentrator: the real control plane and its real store, with what stands in for its dataplane and its sockets.
//! One server works in rounds as the daemon does: what waits of the dataplane's events, then of the datagrams, then what is
//! due; and what that wants done leaves at the end of the round. A round takes as long as its work costs.

use crate::costs::{Costs, Samples};
use crate::scenario::Scenario;
use crate::work::{Kind, Seen};
use crate::world::EPOCH;
use spindle_abi::{Command, Event, SaActivity, Spi, SpiReport, SpiState, Time};
use spindle_ike::api::{ActivityReader, Datagram};
use spindle_recovery::Gateway;
use spindle_recovery::api::{Input, JournalWrite, Output, Report, TokenMethod, UsedTicket};
use spindle_recovery::store::Store;
use spindle_sim::{Dice, Disk};
use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Datagrams that wait at most: 1024 in the daemon, and about as many more as fit into 4 MiB of the kernel's.
pub(crate) const DATAGRAMS: usize = 4096;
/// Events about unknown SPIs that wait at most.
pub(crate) const NOISE: usize = 16_384;
/// Events of one ring in one round at most.
const EVENTS_AT_ONCE: usize = 1024;
/// The dataplane tells of so many former SPIs at most, each time that it looks.
const REPORTS: u64 = 64;
const SWEEP: Duration = Duration::from_millis(1);
/// Datagrams in one round at most; and where those share a commit of used tickets.
const DATAGRAMS_AT_ONCE: usize = 32;
const DATAGRAMS_OF_A_COMMIT: usize = 128;

/// The concentrator never looks: it checks no liveness.
struct Unread;

impl ActivityReader for Unread {
    fn activity(&self, _: u32) -> SaActivity {
        SaActivity::default()
    }
}

/// What a round wants done, and until when it took.
#[derive(Default)]
pub(crate) struct Round {
    pub(crate) end: Time,
    pub(crate) transmits: Vec<Datagram>,
    pub(crate) reports: Vec<Report>,
    /// Tickets to be remembered before anything leaves.
    used: Vec<UsedTicket>,
}

/// A concentrator that runs.
pub(crate) struct Server {
    gateway: Gateway,
    store: Store,
    /// Of the dataplane.
    states: HashMap<Spi, SpiState>,
    /// SAs whose first packet is to be told.
    first: HashSet<Spi>,
    /// The latest packets on former SPIs that the dataplane has not told yet, and the order of their turns.
    former: HashMap<Spi, SpiReport>,
    turns: VecDeque<Spi>,
    /// When it has looked for them last.
    swept: Time,
    urgent: VecDeque<Event>,
    noise: VecDeque<Event>,
    datagrams: VecDeque<Datagram>,
    pub(crate) dropped: u64,
    journal: Vec<JournalWrite>,
    seen: Seen,
    /// Octets on the heap that the control plane holds.
    pub(crate) memory: i64,
    busy_until: Time,
    worked: Duration,
}

impl Server {
    /// An incarnation begins, and is ready before it returns; what that causes at once comes with it.
    pub(crate) fn start(
        scenario: &Scenario,
        disk: &mut Disk,
        now: Time,
        restarted: bool,
        costs: &Costs,
        samples: &mut Samples,
    ) -> anyhow::Result<(Server, Round)> {
        let mut dice = Dice::new(scenario.seed, if restarted { 2 } else { 1 });
        let mut handle = disk.attach();
        let mut store = Store::open(handle.clone())?;
        let wall = (EPOCH + now.since(Time(0)).as_secs(), now);
        let booted = store.boot(&mut handle, &mut dice, wall, false, TokenMethod::Spis)?;
        let mut gateway = None;
        let memory = allocation_counter::measure(|| {
            let config = scenario.of_concentrator(restarted);
            let boot = booted.boot.clone();
            gateway = Some(Gateway::new(config, boot, Box::new(Unread), Box::new(dice), now));
        });
        let mut server = Server {
            gateway: gateway.ok_or_else(|| anyhow::anyhow!("no gateway was made"))?,
            store,
            states: HashMap::new(),
            first: HashSet::new(),
            former: HashMap::new(),
            turns: VecDeque::new(),
            swept: now,
            urgent: VecDeque::from([Event::Ready]),
            noise: VecDeque::new(),
            datagrams: VecDeque::new(),
            dropped: 0,
            journal: Vec::new(),
            seen: Seen::default(),
            memory: memory.bytes_current,
            busy_until: now,
            worked: Duration::ZERO,
        };
        let mut round = Round { end: now, ..Round::default() };
        while let Some(event) = server.urgent.pop_front() {
            let mut work = server.step(now, Some(Input::Event(event)), &mut round, samples)?;
            // The start itself is not what is looked at, but what it sends.
            work.retain(|(kind, _)| *kind != Kind::Event);
            round.end = round.end.after(costs.of(&work));
        }
        server.busy_until = round.end;
        Ok((server, round))
    }

    /// A datagram arrives.
    pub(crate) fn receive(&mut self, datagram: Datagram) {
        if self.datagrams.len() < DATAGRAMS {
            self.datagrams.push_back(datagram);
        } else {
            self.dropped += 1;
        }
    }

    /// ESP arrives; the dataplane tells what control should know.
    pub(crate) fn esp(&mut self, now: Time, spi: Spi, source: SocketAddr, destination: SocketAddr) {
        let report = SpiReport { spi, sequence: 1, source, destination, at: now };
        match self.state(spi) {
            SpiState::Current if self.first.remove(&spi) => {
                self.urgent.push_back(Event::FirstInbound { spi });
            }
            // Coalesced by the dataplane, and never lost.
            SpiState::Former => {
                if self.former.insert(spi, report).is_none() {
                    if self.turns.is_empty() {
                        self.swept = now;
                    }
                    self.turns.push_back(spi);
                }
            }
            SpiState::Unknown if self.noise.len() < NOISE => self.noise.push_back(Event::UnknownSpi(report)),
            SpiState::Unknown => self.dropped += 1,
            SpiState::Current | SpiState::Larval | SpiState::Retired => {}
        }
    }

    pub(crate) fn state(&self, spi: Spi) -> SpiState {
        self.states.get(&spi).copied().unwrap_or(SpiState::Unknown)
    }

    /// When the next round is to begin, if anything is to be done.
    pub(crate) fn next_round(&self, now: Time) -> Option<Time> {
        let waits = !(self.urgent.is_empty() && self.noise.is_empty() && self.datagrams.is_empty());
        let sweep = (!self.turns.is_empty()).then(|| self.swept.after(SWEEP));
        let due = if waits { Some(now) } else { self.gateway.deadline().into_iter().chain(sweep).min() };
        due.map(|at| at.max(self.busy_until).max(now))
    }

    /// The dataplane tells of former SPIs, as often as it has looked meanwhile.
    fn sweep(&mut self, now: Time) {
        let sweeps = now.since(self.swept).as_nanos() as u64 / SWEEP.as_nanos() as u64;
        self.swept = self.swept.after(SWEEP * sweeps as u32);
        let turns = self.turns.len().min((sweeps * REPORTS) as usize);
        let reports = self.turns.drain(..turns).filter_map(|spi| self.former.remove(&spi));
        self.urgent.extend(reports.map(Event::FormerSpi));
    }

    /// One round.
    pub(crate) fn round(&mut self, now: Time, costs: &Costs, samples: &mut Samples) -> anyhow::Result<Round> {
        let mut round = Round { end: now, ..Round::default() };
        self.sweep(now);
        let events: Vec<Event> = {
            let (urgent, noise) =
                (self.urgent.len().min(EVENTS_AT_ONCE), self.noise.len().min(EVENTS_AT_ONCE));
            self.urgent.drain(..urgent).chain(self.noise.drain(..noise)).collect()
        };
        for event in events {
            let work = self.step(round.end, Some(Input::Event(event)), &mut round, samples)?;
            round.end = round.end.after(costs.of(&work));
        }
        let mut is_full = false;
        for taken in 1.. {
            let Some(datagram) = self.datagrams.pop_front() else { break };
            let work = self.step(round.end, Some(Input::Datagram(datagram)), &mut round, samples)?;
            round.end = round.end.after(costs.of(&work));
            let most = if round.used.is_empty() { DATAGRAMS_AT_ONCE } else { DATAGRAMS_OF_A_COMMIT };
            is_full = taken >= most;
            if is_full {
                break;
            }
        }
        if self.gateway.deadline().is_some_and(|at| at <= round.end) {
            let work = self.step(round.end, None, &mut round, samples)?;
            round.end = round.end.after(costs.of(&work));
        }
        let without_disk = round.end.since(now);
        if !round.used.is_empty() {
            self.store.remember(&round.used, EPOCH + now.since(Time(0)).as_secs())?;
            round.end = round.end.after(costs.of(&[(Kind::Persist, 1)]));
        }
        self.busy_until = round.end;
        // As the daemon counts: one commit takes all that come meanwhile.
        self.worked += if is_full { round.end.since(now) } else { without_disk };
        self.gateway.worked(round.end, self.worked);
        Ok(round)
    }

    /// One call of the control plane; its work.
    fn step(
        &mut self,
        now: Time,
        input: Option<Input>,
        round: &mut Round,
        samples: &mut Samples,
    ) -> anyhow::Result<Vec<(Kind, u32)>> {
        let (mut inside, mut took) = (Vec::new(), Duration::ZERO);
        let gateway = &mut self.gateway;
        // What goes in and out is allocated and freed inside, so that only what stays counts.
        let called = allocation_counter::measure(|| {
            let given = input.clone();
            let began = Instant::now();
            match given {
                Some(input) => gateway.handle(now, input),
                None => gateway.tick(now),
            }
            while let Some(output) = gateway.poll() {
                inside.push(output);
            }
            took = began.elapsed();
        });
        let outputs = inside.clone();
        let dropped = allocation_counter::measure(|| drop(inside));
        self.memory += called.bytes_current + dropped.bytes_current;
        let work = self.seen.work(input.as_ref(), &outputs);
        samples.note(&work, took);
        for output in outputs {
            match output {
                Output::Transmit(datagram) => round.transmits.push(datagram),
                Output::Command { sequence, command } => {
                    let done = self.apply(command);
                    self.urgent.push_back(Event::Acknowledged { sequence, done });
                }
                Output::Journal(write) => self.journal.push(write),
                Output::Persist(used) => round.used.extend(used),
                Output::Keep(_) => {}
                Output::Report(report) => round.reports.push(report),
                Output::Secrets { .. } => {
                    anyhow::bail!("the secret is to be rotated, which nobody asked for")
                }
            }
        }
        Ok(work)
    }

    fn apply(&mut self, command: Command) -> bool {
        match command {
            // A current one is touched only to retire it.
            Command::SetSpiState { spi, state }
                if self.state(spi) != SpiState::Current || state == SpiState::Retired =>
            {
                self.states.insert(spi, state);
                self.first.remove(&spi);
            }
            Command::SetFormer { spis } => {
                for spi in spis {
                    self.apply(Command::SetSpiState { spi, state: SpiState::Former });
                }
            }
            Command::InstallInbound { sa, report_first, .. } => {
                self.states.insert(sa.spi, SpiState::Current);
                if report_first {
                    self.first.insert(sa.spi);
                }
            }
            _ => {}
        }
        true
    }

    /// A peer's SAs go without a word, but for the journal's, which the crash will leave.
    pub(crate) fn forget(&mut self, now: Time, peer: u32) {
        // There is one, for the peer is up.
        let _ = self.gateway.forget(now, &Scenario::name(peer), None);
        while let Some(output) = self.gateway.poll() {
            if let Output::Command { sequence, command } = output {
                let done = self.apply(command);
                self.gateway.handle(now, Input::Event(Event::Acknowledged { sequence, done }));
            }
        }
    }

    /// The journal's thread: nothing waits for it.
    pub(crate) fn commit(&mut self) -> anyhow::Result<()> {
        if !self.journal.is_empty() {
            self.store.commit(&std::mem::take(&mut self.journal))?;
        }
        Ok(())
    }
}
