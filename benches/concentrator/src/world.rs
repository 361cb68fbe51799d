//! The world: one clock that jumps to the next thing due. Peers start one after the other and establish their SAs; the
//! concentrator crashes, is down for a while, and starts again; the world ends when all are back.

use crate::costs::{Costs, Samples};
use crate::peer::Peer;
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
/// Peers that start per second, before the crash.
const STARTS: u64 = 500;
/// From the last start to the crash: longer than anything that holds a young SA back.
const SETTLING: Duration = Duration::from_secs(40);
/// From the crash to ready.
pub const DOWN: Duration = Duration::from_secs(2);
/// Group commits of the journal happen within this time.
const GROUP_COMMIT: Duration = Duration::from_millis(20);
/// A world ends at the latest so long after ready.
const PATIENCE: Duration = Duration::from_secs(4 * 3600);

enum Due {
    Start(u32),
    ToPeer(u32, Datagram),
    ToServer(Datagram),
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
    clock: Rc<Cell<Time>>,
    queue: Schedule<Due>,
    disk: Disk,
    server: Option<Server>,
    /// When its next round is scheduled.
    round: Option<Time>,
    commit: bool,
    peers: Vec<Option<Peer>>,
    /// Those whose SAs stand on both sides, before the crash or after it.
    up: Vec<bool>,
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

impl World<'_> {
    fn new<'a>(scenario: &Scenario, costs: &'a Costs) -> World<'a> {
        let peers = scenario.peers as usize;
        World {
            scenario: *scenario,
            costs,
            clock: Rc::new(Cell::new(Time(1))),
            queue: Schedule::default(),
            disk: Disk::default(),
            server: None,
            round: None,
            commit: false,
            peers: (0..peers).map(|_| None).collect(),
            up: vec![false; peers],
            left: peers,
            crashed: false,
            samples: Samples::default(),
            observed: Observed::new(peers),
        }
    }

    fn run(mut self, told: &dyn Fn(&str)) -> anyhow::Result<(Observed, Samples)> {
        told("the peers establish their SAs");
        self.start_server(false)?;
        for peer in 0..self.scenario.peers {
            let at = Duration::from_nanos(u64::from(peer) * 1_000_000_000 / STARTS);
            self.schedule(self.now().after(at), Due::Start(peer));
        }
        let all_started = Duration::from_secs(u64::from(self.scenario.peers) / STARTS);
        let crash = self.now().after(all_started + SETTLING);
        self.schedule(crash, Due::Crash);
        while !(self.crashed && self.server.is_some() && self.left == 0) {
            let Some((at, due)) = self.queue.take() else { bail!("nothing happens any more") };
            self.clock.set(at);
            if matches!(due, Due::Crash) {
                told("the concentrator crashes");
            }
            self.happen(at, due)?;
            if self.observed.ready.is_some_and(|ready| at.since(ready) > PATIENCE) {
                bail!("{} peers are not back after {PATIENCE:?}", self.left);
            }
        }
        if let Some(server) = &self.server {
            self.observed.memory = server.memory;
            self.observed.dropped = server.dropped;
        }
        for (peer, period) in self.peers.iter().zip(&mut self.observed.periods) {
            *period = peer.as_ref().map_or(0, Peer::period);
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
            Due::Start(number) => {
                self.peers[number as usize] = Some(Peer::start(&self.scenario, number, &self.clock));
                self.settle_peer(number);
            }
            Due::ToPeer(number, datagram) => self.with_peer(number, |peer| peer.receive(now, datagram)),
            Due::Tick(number) => {
                let peer = self.peers.get(number as usize).and_then(Option::as_ref);
                if peer.is_some_and(|peer| peer.scheduled == Some(now)) {
                    self.with_peer(number, |peer| {
                        peer.scheduled = None;
                        peer.tick(now);
                    });
                }
            }
            Due::Packet(number) => self.packet(now, number),
            Due::ToServer(datagram) => {
                if let Some(server) = &mut self.server {
                    server.receive(datagram);
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
                        let round = server.round(now, self.costs, &mut self.samples)?;
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
        self.left = self.peers.len();
        self.up.fill(false);
        for number in 0..self.scenario.peers {
            if let Some(peer) = &self.peers[number as usize] {
                peer.carried.cut(Some(now));
            }
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
        for Datagram { local, remote, data } in round.transmits {
            if let Some(peer) = Scenario::peer_at(remote.ip()).filter(|peer| *peer < self.scenario.peers) {
                self.schedule(arrival, Due::ToPeer(peer, Datagram { local: remote, remote: local, data }));
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

    fn with_peer(&mut self, number: u32, act: impl FnOnce(&mut Peer)) {
        if let Some(peer) = self.peers.get_mut(number as usize).and_then(Option::as_mut) {
            act(peer);
            self.settle_peer(number);
        }
    }

    /// Sends what a peer wants sent, and sees whether it is back.
    fn settle_peer(&mut self, number: u32) {
        let (now, arrival) = (self.now(), self.now().after(self.one_way()));
        let Some(mut peer) = self.peers[number as usize].take() else { return };
        while let Some(Datagram { local, remote, data }) = peer.poll(now) {
            self.schedule(arrival, Due::ToServer(Datagram { local: remote, remote: local, data }));
        }
        if let Some(at) = peer.deadline().map(|at| at.max(now))
            && peer.scheduled.is_none_or(|scheduled| at < scheduled)
        {
            peer.scheduled = Some(at);
            self.schedule(at, Due::Tick(number));
        }
        self.peers[number as usize] = Some(peer);
        self.look(now, number);
    }

    /// Is a peer back: does the SA on which it sends stand on both sides?
    fn look(&mut self, at: Time, number: u32) {
        let peer = self.peers.get(number as usize).and_then(Option::as_ref);
        let Some((peer, spi)) = peer.and_then(|peer| Some((peer, peer.outbound()?))) else { return };
        let stands = self.server.as_ref().is_some_and(|server| server.state(spi) == SpiState::Current);
        if !stands || self.up[number as usize] {
            return;
        }
        self.up[number as usize] = true;
        self.left -= 1;
        peer.carried.cut(None);
        if self.crashed {
            self.observed.back[number as usize] = Some(at);
        }
    }

    /// A peer's host sends. Once it is back only the first packet matters.
    fn packet(&mut self, now: Time, number: u32) {
        let arrival = now.after(self.one_way());
        let Some(peer) = self.peers[number as usize].as_mut() else { return };
        peer.sending = false;
        match peer.outbound() {
            Some(spi) => self.schedule(arrival, Due::Esp(number, spi)),
            None => self.with_peer(number, |peer| peer.acquire(now)),
        }
        if !self.up[number as usize] {
            self.schedule_packet(number, now);
        }
    }

    fn schedule_packet(&mut self, number: u32, now: Time) {
        let Some(peer) = self.peers[number as usize].as_mut().filter(|peer| !peer.sending) else { return };
        peer.sending = true;
        let at = peer.carried.next(now);
        self.schedule(at, Due::Packet(number));
    }
}
