//! The world: one clock that jumps to the next thing due. Peers start one after the other and establish their SAs; the
//! concentrator crashes, is down for a while, and starts again; the world ends when all are back.

use crate::costs::{Costs, Samples};
use crate::peer::{Herd, Members};
use crate::scenario::Scenario;
use crate::server::{Round, Server};
use crate::summary::Observed;
use anyhow::bail;
use spindle_abi::{Spi, SpiState, Time};
use spindle_ike::api::Datagram;
use spindle_sim::{Disk, Schedule};
use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

/// Seconds since 1970 at the world's beginning.
pub(crate) const EPOCH: u64 = 1_700_000_000;
/// Peers that start per second before the crash, at least; and the seconds in which very many start.
const STARTS: u64 = 500;
const STARTING: u64 = 15;
/// From the last start to the crash: longer than anything that holds a young SA back.
const SETTLING: Duration = Duration::from_secs(40);
/// The same where the concentrator forgets its peers meanwhile: none of them must check its liveness before the crash.
const SETTLING_FRUGALLY: Duration = Duration::from_secs(12);
/// From the time when a peer's SAs stand until they may be forgotten: all that follows has been exchanged.
const EXCHANGED: Duration = Duration::from_secs(3);
/// From the crash to ready.
pub const DOWN: Duration = Duration::from_secs(2);
/// Group commits of the journal happen within this time.
const GROUP_COMMIT: Duration = Duration::from_millis(20);
/// A world ends at the latest so long after ready.
const PATIENCE: Duration = Duration::from_secs(4 * 3600);

enum Due {
    Start(u32),
    Forget(u32),
    // Boxed, for a million things wait.
    ToPeer(u32, Box<Datagram>),
    ToServer(Box<Datagram>),
    Esp(u32, Spi),
    Tick(u32),
    Packet(u32),
    Round,
    Commit,
    Crash,
    Restart,
}

struct World<'a> {
    scenario: Scenario,
    costs: &'a Costs,
    /// What work costs before the crash, where it is no matter.
    nothing: Costs,
    clock: Rc<Cell<Time>>,
    queue: Schedule<Due>,
    disk: Disk,
    server: Option<Server>,
    /// When its next round is scheduled.
    round: Option<Time>,
    commit: bool,
    /// Gateways of peers, and how many peers each has.
    herds: Vec<Option<Herd>>,
    together: u32,
    members: Rc<Members>,
    /// Those whose SAs stand on both sides, before the crash or after it.
    up: Vec<bool>,
    /// Those that take no further part.
    gone: Vec<bool>,
    left: usize,
    crashed: bool,
    samples: Samples,
    observed: Observed,
}

/// Plays a scenario to its end; with `told`, which hears how far it has come.
pub fn play(scenario: &Scenario, costs: &Costs, told: &dyn Fn(&str)) -> anyhow::Result<Observed> {
    let (mut observed, mut samples) = World::new(scenario, costs).run(told)?;
    observed.seen = samples.medians();
    Ok(observed)
}

/// Times every call of the concentrator's control plane.
pub(crate) fn time(scenario: &Scenario) -> anyhow::Result<Samples> {
    let guess = Costs([(crate::costs::Kind::Other, 100.0)].into());
    Ok(World::new(scenario, &guess).run(&|_| {})?.1)
}

/// A datagram as whoever it is for receives it.
pub(crate) fn across(Datagram { local, remote, data }: Datagram) -> Datagram {
    Datagram { local: remote, remote: local, data }
}

impl World<'_> {
    fn new<'a>(scenario: &Scenario, costs: &'a Costs) -> World<'a> {
        let (peers, together) = (scenario.peers as usize, scenario.herd());
        let clock = Rc::new(Cell::new(Time(1)));
        let members = Rc::new(Members::new(scenario.peers, &clock));
        World {
            scenario: *scenario,
            costs,
            nothing: Costs::default(),
            clock,
            queue: Schedule::default(),
            disk: Disk::default(),
            server: None,
            round: None,
            commit: false,
            herds: (0..scenario.peers.div_ceil(together)).map(|_| None).collect(),
            together,
            members,
            up: vec![false; peers],
            gone: vec![false; peers],
            left: peers,
            crashed: false,
            samples: Samples::default(),
            observed: Observed::new(peers),
        }
    }

    fn run(mut self, told: &dyn Fn(&str)) -> anyhow::Result<(Observed, Samples)> {
        told("the peers establish their SAs");
        self.start_server(false)?;
        let starts = STARTS.max(u64::from(self.scenario.peers) / STARTING);
        for peer in (0..self.scenario.peers).step_by(self.together as usize) {
            let at = Duration::from_nanos(u64::from(peer) * 1_000_000_000 / starts);
            self.schedule(self.now().after(at), Due::Start(peer));
        }
        let all_started = Duration::from_secs(u64::from(self.scenario.peers) / starts);
        let settling = if self.scenario.frugal { SETTLING_FRUGALLY } else { SETTLING };
        let crash = self.now().after(all_started + settling);
        self.schedule(crash, Due::Crash);
        let tenth = self.up.len().div_ceil(10);
        let mut told_at = tenth;
        while !(self.crashed && self.server.is_some() && self.left == 0) {
            let Some((at, due)) = self.queue.take() else { bail!("nothing happens any more") };
            self.clock.set(at);
            if matches!(due, Due::Crash) {
                told("the concentrator crashes");
            }
            self.happen(at, due)?;
            let back = self.up.len() - self.left;
            if let Some(ready) = self.observed.ready
                && back >= told_at
            {
                told(&format!("{back} peers are back {:.1} s after ready", at.since(ready).as_secs_f64()));
                told_at = back + tenth;
            }
            if self.observed.ready.is_some_and(|ready| at.since(ready) > PATIENCE) {
                bail!("{} peers are not back after {PATIENCE:?}", self.left);
            }
        }
        if let Some(server) = &self.server {
            self.observed.memory = server.memory;
            self.observed.dropped = server.dropped;
        }
        for peer in 0..self.scenario.peers {
            self.observed.periods[peer as usize] = self.members.period(peer);
        }
        Ok((self.observed, self.samples))
    }

    fn now(&self) -> Time {
        self.clock.get()
    }

    fn schedule(&mut self, at: Time, due: Due) {
        self.queue.put(at, due);
    }

    fn one_way(&self) -> Duration {
        self.scenario.rtt / 2
    }

    fn happen(&mut self, now: Time, due: Due) -> anyhow::Result<()> {
        match due {
            Due::Start(first) => {
                let many = self.together.min(self.scenario.peers - first);
                let herd = Herd::start(&self.scenario, first, many, &self.members);
                self.herds[(first / self.together) as usize] = Some(herd);
                self.with_herd(first, |_| {});
            }
            Due::Forget(number) if self.crashed => {
                if self.observed.back[number as usize].is_some_and(|back| back.after(EXCHANGED) <= now) {
                    self.gone[number as usize] = true;
                    self.with_herd(number, |herd| herd.leave(now, number));
                }
            }
            Due::Forget(number) => {
                if let Some(server) = &mut self.server {
                    server.forget(now, number);
                }
            }
            Due::ToPeer(number, _) if self.gone[number as usize] => {}
            Due::ToPeer(number, datagram) => self.with_herd(number, |herd| herd.receive(now, *datagram)),
            Due::Tick(number) => self.with_herd(number, |herd| {
                if herd.scheduled == Some(now) {
                    herd.scheduled = None;
                    herd.tick(now);
                }
            }),
            Due::Packet(number) => self.packet(now, number),
            Due::ToServer(datagram) => {
                if let Some(server) = &mut self.server {
                    server.receive(*datagram);
                }
                self.schedule_round();
            }
            Due::Esp(number, spi) => {
                let end = |ip| SocketAddr::new(ip, 0);
                if let Some(server) = &mut self.server {
                    server.esp(now, spi, end(Scenario::address(number)), end(Scenario::concentrator()));
                }
                self.schedule_round();
            }
            Due::Round => {
                if self.round == Some(now) {
                    self.round = None;
                    if let Some(server) = &mut self.server {
                        let costs = if self.crashed { self.costs } else { &self.nothing };
                        let round = server.round(now, costs, &mut self.samples)?;
                        self.carry_out(round);
                    }
                }
            }
            Due::Commit => {
                self.commit = false;
                if let Some(server) = &mut self.server {
                    server.commit()?;
                }
            }
            Due::Crash => self.crash(now)?,
            Due::Restart => self.start_server(true)?,
        }
        Ok(())
    }

    fn start_server(&mut self, restarted: bool) -> anyhow::Result<()> {
        let now = self.now();
        let (server, round) =
            Server::start(&self.scenario, &mut self.disk, now, restarted, self.costs, &mut self.samples)?;
        self.server = Some(server);
        if restarted {
            self.observed.ready = Some(now);
        }
        self.carry_out(round);
        Ok(())
    }

    fn crash(&mut self, now: Time) -> anyhow::Result<()> {
        if self.left > 0 {
            bail!("{} peers had no SA when the crash was due", self.left);
        }
        self.crashed = true;
        if let Some(mut server) = self.server.take() {
            // SETTLING ago the last SA was made: all is on disk.
            server.commit()?;
            self.disk.kill();
        }
        self.round = None;
        self.left = self.up.len();
        self.up.fill(false);
        for number in 0..self.scenario.peers {
            self.members.cut(number, Some(now));
            self.schedule_packet(number, now);
        }
        self.schedule(now.after(DOWN), Due::Restart);
        Ok(())
    }

    /// What a round of the concentrator wants done.
    fn carry_out(&mut self, round: Round) {
        for report in &round.reports {
            if report.name == "ike-established" && self.observed.ready.is_some() {
                self.observed.handshakes.push(round.end);
                self.observed.resumed += u64::from(report.detail.ends_with("resumed"));
            }
            if report.name == "installed"
                && let Some(peer) = report.connection.as_deref().and_then(Scenario::peer_named)
            {
                self.look(round.end, peer);
            }
        }
        let arrival = round.end.after(self.one_way());
        for datagram in round.transmits {
            let peer = Scenario::peer_at(datagram.remote.ip());
            if let Some(peer) = peer.filter(|peer| *peer < self.scenario.peers) {
                self.schedule(arrival, Due::ToPeer(peer, Box::new(across(datagram))));
            }
        }
        if !self.commit {
            self.commit = true;
            self.schedule(round.end.after(GROUP_COMMIT), Due::Commit);
        }
        self.schedule_round();
    }

    fn schedule_round(&mut self) {
        let next = self.server.as_ref().and_then(|server| server.next_round(self.now()));
        if let Some(at) = next.filter(|at| self.round.is_none_or(|round| *at < round)) {
            self.round = Some(at);
            self.schedule(at, Due::Round);
        }
    }

    /// Does something with the gateway of a peer; sends what it wants sent, and sees who is back.
    fn with_herd(&mut self, number: u32, act: impl FnOnce(&mut Herd)) {
        let (now, arrival) = (self.now(), self.now().after(self.one_way()));
        let Some(herd) = self.herds.get_mut((number / self.together) as usize).and_then(Option::as_mut)
        else {
            return;
        };
        act(herd);
        while let Some(datagram) = herd.poll(now) {
            self.queue.put(arrival, Due::ToServer(Box::new(across(datagram))));
        }
        if let Some(at) = herd.deadline().map(|at| at.max(now))
            && herd.scheduled.is_none_or(|scheduled| at < scheduled)
        {
            herd.scheduled = Some(at);
            self.queue.put(at, Due::Tick(number));
        }
        for number in herd.take_changed() {
            self.look(now, number);
        }
    }

    /// Is a peer back: does the SA on which it sends stand on both sides?
    fn look(&mut self, at: Time, number: u32) {
        let Some(spi) = self.members.outbound(number) else { return };
        let stands = self.server.as_ref().is_some_and(|server| server.state(spi) == SpiState::Current);
        if !stands || self.up[number as usize] {
            return;
        }
        self.up[number as usize] = true;
        self.left -= 1;
        self.members.cut(number, None);
        if self.crashed {
            self.observed.back[number as usize] = Some(at);
        }
        if self.scenario.frugal {
            self.schedule(at.after(EXCHANGED), Due::Forget(number));
        }
    }

    /// A peer's host sends. Once it is back only the first packet matters.
    fn packet(&mut self, now: Time, number: u32) {
        let arrival = now.after(self.one_way());
        self.members.packet_left(number);
        match self.members.outbound(number) {
            Some(spi) => self.schedule(arrival, Due::Esp(number, spi)),
            None => self.with_herd(number, |herd| herd.acquire(now, number)),
        }
        if !self.up[number as usize] {
            self.schedule_packet(number, now);
        }
    }

    fn schedule_packet(&mut self, number: u32, now: Time) {
        if let Some(at) = self.members.next_packet(now, number) {
            self.schedule(at, Due::Packet(number));
        }
    }
}
