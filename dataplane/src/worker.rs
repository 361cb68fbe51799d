//! One worker: a thread that owns a queue of each side, an engine, and this worker's ends of the rings.
//!
//! A turn of its loop: commands → frames from inside and from the host → frames from outside → those that other workers
//! hand over → send, replenish, publish → counters. With nothing to do it spins for a while and then sleeps until a frame, a command or an [`Update`] comes.

use crate::capture::Capture;
use crate::handover::Sleeper;
use crate::held::{Towards, UNRESOLVED};
use crate::outlet::Outlet;
use arrayvec::ArrayVec;
use crossbeam::queue::ArrayQueue;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::{ClockId, Timespec, clock_gettime};
use spindle_abi::{Command, CommandRecord, Event, Selector, Spi, Time};
use spindle_bpf::steer::{InClear, SpiStates};
use spindle_engine::{BURST, DropReason, Engine, NextHop, Origin, Output, PortConfig, PortId};
use spindle_port::{Port, XdpFrame, XdpPort};
use spindle_ring::{ActivityWriter, Broken, Consumer, CounterWriter, WorkerRings};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Commands between two bursts at most: a start brings many, a storm must not wait for long.
const COMMANDS: usize = 64;
/// Commands at most while no frames come.
const COMMANDS_AT_LEISURE: usize = 1024;
/// How long an idle worker spins before it sleeps.
const SPIN: Duration = Duration::from_micros(50);
/// How long it sleeps at most: former SPIs and held frames have deadlines.
const SLEEP: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
/// Between two looks at what has a deadline.
const HOUSEKEEPING: Duration = Duration::from_millis(1);
/// Between two questions to the kernel for its counters.
const SOCKET_COUNTERS: Duration = Duration::from_millis(20);
/// SAs whose activity is told at one housekeeping, and before a sleep.
const ACTIVITIES: usize = 1024;

/// From the process's main thread to a worker.
#[derive(Clone, Debug)]
pub(crate) enum Update {
    /// A destination's next hop; `None`: there is none.
    NextHop(IpAddr, Option<NextHop>),
    /// Routes or links changed.
    ForgetNextHops,
    /// What a port is, after its link or its addresses changed.
    Port(PortId, PortConfig),
    /// This host's addresses changed.
    LocalAddresses(Vec<IpAddr>),
}

/// What main and a worker share.
pub(crate) struct Shared {
    /// To the worker: those of the latest attachment, after control's death.
    pub(crate) rings: ArrayQueue<WorkerRings>,
    /// To the worker.
    pub(crate) updates: ArrayQueue<Update>,
    /// To the worker: its part in a capture, or none any more.
    pub(crate) captures: ArrayQueue<Option<Box<Capture>>>,
    /// Back from it, to be freed.
    pub(crate) captured: ArrayQueue<Box<Capture>>,
    /// Wakes the worker for an update or for the end, and for other workers' frames.
    pub(crate) sleeper: Arc<Sleeper>,
    /// The worker is to end.
    pub(crate) stop: AtomicBool,
    /// Counters, of all workers and of main's.
    pub(crate) counters: Arc<CounterWriter>,
}

impl Shared {
    /// Is there nothing for the worker?
    fn has_nothing(&self) -> bool {
        self.updates.is_empty() && self.rings.is_empty() && self.captures.is_empty()
    }
}

/// Does an idle worker sleep?
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Polling {
    /// Spins, then sleeps.
    Adaptive,
    /// Never sleeps: a core of its own.
    Busy,
}

/// One worker.
pub(crate) struct Worker {
    pub(crate) engine: Engine,
    pub(crate) outlet: Outlet<Option<XdpPort>>,
    pub(crate) commands: Consumer<CommandRecord>,
    pub(crate) activity: ActivityWriter,
    /// What XDP is told by the first worker alone: all of them hear the same commands.
    pub(crate) xdp: Option<(SpiStates, InClear)>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) polling: Polling,
    /// Numbers of the engine's counters begin here, of the sockets' there.
    pub(crate) engine_counters: usize,
    pub(crate) socket_counters: usize,
}

/// Names of the sockets' counters, for one side after the other.
pub(crate) const SOCKET_COUNTER_NAMES: [&str; 6] = [
    "socket_inside_dropped",
    "socket_inside_ring_full",
    "socket_inside_transmit_invalid",
    "socket_outside_dropped",
    "socket_outside_ring_full",
    "socket_outside_transmit_invalid",
];

/// CLOCK_MONOTONIC.
pub(crate) fn monotonic() -> Time {
    let t = clock_gettime(ClockId::Monotonic);
    Time(t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64)
}

impl Worker {
    /// Runs until it is told to stop, or until the other process breaks the attachment.
    pub(crate) fn run(mut self) -> Result<(), Broken> {
        let (mut busy, mut kept, mut asked, mut limit) = (monotonic(), Time(0), Time(0), COMMANDS_AT_LEISURE);
        self.say_ready();
        while !self.shared.stop.load(Ordering::Relaxed) {
            let now = monotonic();
            self.outlet.now = now;
            if !self.shared.rings.is_empty() {
                self.attach();
            }
            if !self.shared.captures.is_empty() {
                self.change_capture();
            }
            let orders = self.updates(now) + self.commands(now, limit)?;
            let frames = self.burst(now, PortId::Inside)
                + self.bursts_of_host(now)
                + self.burst(now, PortId::Outside)
                + self.bursts_of_others(now);
            limit = if frames > 0 { COMMANDS } else { COMMANDS_AT_LEISURE };
            self.outlet.finish(&mut self.engine);
            if orders + frames > 0 {
                busy = now;
                self.report();
            }
            if now.since(kept) >= HOUSEKEEPING {
                kept = now;
                self.keep_house(now);
            }
            if now.since(asked) >= SOCKET_COUNTERS {
                asked = now;
                self.ask_sockets();
            }
            if let Some(broken) = self.outlet.broken {
                return Err(broken);
            }
            if self.polling == Polling::Adaptive && now.since(busy) >= SPIN {
                self.sleep()?;
            }
        }
        self.ask_sockets();
        Ok(())
    }

    fn say_ready(&mut self) {
        let _ = self.outlet.event(Event::Ready); // the first of a fresh ring, so there is room
        self.outlet.urgent.publish();
    }

    /// Goes on with another control: the SAs stay as they are, what the dead one had not taken yet is lost.
    fn attach(&mut self) {
        let Some(rings) = self.shared.rings.pop() else { return };
        self.commands = rings.commands;
        (self.outlet.urgent, self.outlet.noise) = (rings.urgent, rings.noise);
        self.say_ready();
    }

    /// Begins or ends a capture; the memory of one that has ended is main's to free.
    fn change_capture(&mut self) {
        let Some(next) = self.shared.captures.pop() else { return };
        if let Some(mut ended) = std::mem::replace(&mut self.outlet.capture, next) {
            ended.publish();
            let _ = self.shared.captured.push(ended);
        }
    }

    /// Moves what one port has received, one burst at most.
    fn burst(&mut self, now: Time, port: PortId) -> usize {
        let mut burst: ArrayVec<XdpFrame, BURST> = ArrayVec::new();
        self.outlet.ports[port as usize].receive(&mut burst);
        let frames = burst.len();
        if frames > 0 {
            let origin = match port {
                PortId::Inside => Origin::Inside(0),
                PortId::Outside => Origin::Outside,
            };
            self.outlet.came(origin, &burst);
            self.engine.process(now, port, &mut burst, &mut self.outlet);
        }
        frames
    }

    /// Moves what the host has routed into its virtual interfaces, a burst of each at most.
    fn bursts_of_host(&mut self, now: Time) -> usize {
        let mut places: ArrayVec<usize, BURST> = ArrayVec::new();
        self.outlet.tuns.ready(&mut places);
        let mut frames = 0;
        for place in places {
            let mut burst: ArrayVec<XdpFrame, BURST> = ArrayVec::new();
            let Some(interface) = self.outlet.tuns.receive(place, &mut burst) else { continue };
            frames += burst.len();
            self.outlet.came(Origin::Inside(interface), &burst);
            self.engine.process_from_host(now, interface, &mut burst, &mut self.outlet);
            // Each burst takes empty frames for the next.
            self.outlet.finish(&mut self.engine);
        }
        frames
    }

    /// Moves what other workers have handed over, a burst of each at most.
    fn bursts_of_others(&mut self, now: Time) -> usize {
        let mut frames = 0;
        for worker in 0..self.outlet.neighbours.count() {
            let mut burst: ArrayVec<XdpFrame, BURST> = ArrayVec::new();
            let outlet = &mut self.outlet;
            let Some(origin) = outlet.neighbours.take(worker, &mut burst, &mut outlet.pool) else { continue };
            frames += burst.len();
            outlet.came(origin, &burst);
            self.engine.take_over(now, origin, &mut burst, outlet);
        }
        frames
    }

    /// Carries out what control sent, as far as there is room to acknowledge it.
    fn commands(&mut self, now: Time, limit: usize) -> Result<usize, Broken> {
        if self.commands.is_empty()? {
            return Ok(0);
        }
        let room = self.outlet.urgent.room(limit)?.min(limit);
        let (mut count, mut policies_changed) = (0, false);
        while count < room {
            let Some(record) = self.commands.pop()? else { break };
            count += 1;
            let (sequence, command) = record.decode();
            policies_changed |= matches!(
                command,
                Ok(Command::SetPolicy { .. } | Command::RemovePolicy { .. } | Command::Sweep)
            );
            let done = match command {
                Ok(command) => self.carry_out(now, sequence, command),
                Err(error) => {
                    tracing::error!(sequence, %error, "command refused");
                    false
                }
            };
            let _ = self.outlet.event(Event::Acknowledged { sequence, done });
        }
        if let Some((spi_states, _)) = &mut self.xdp
            && let Err(error) = spi_states.flush()
        {
            tracing::error!(%error, "the XDP program does not know all SPIs; in a storm their packets may be lost");
        }
        if policies_changed {
            self.tell_in_clear();
        }
        Ok(count)
    }

    /// XDP drops what no BYPASS policy can match.
    fn tell_in_clear(&mut self) {
        let Some((_, in_clear)) = &mut self.xdp else { return };
        let of = |side: &[Selector]| side.iter().flat_map(|s| s.addresses.networks()).collect::<Vec<_>>();
        let local = self.engine.in_clear().flat_map(|set| of(&set.local));
        let remote = self.engine.in_clear().flat_map(|set| of(&set.remote));
        if let Err(error) = in_clear.replace(local, remote) {
            tracing::error!(%error, "the XDP program drops packets from outside that policies let by in clear");
        }
    }

    fn carry_out(&mut self, now: Time, sequence: u64, command: Command) -> bool {
        // The inbound SPIs whose state it changes.
        let (one, many);
        let spis: &[Spi] = match &command {
            Command::SetSpiState { spi, .. } => {
                one = [*spi];
                &one
            }
            Command::InstallInbound { sa, .. } => {
                one = [sa.spi];
                &one
            }
            Command::SetFormer { spis } => {
                many = spis.clone();
                &many
            }
            Command::Sweep => {
                many = self.engine.spis_in_doubt().collect();
                &many
            }
            _ => &[],
        };
        let served = match &command {
            Command::InstallOutbound { sa } => Some(sa.policy),
            _ => None,
        };
        let result = self.engine.apply(now, command);
        if let Some(policy) = served {
            self.take_up(now, policy);
        }
        if let Err(error) = &result {
            tracing::error!(sequence, %error, "command refused");
        }
        if let Some((spi_states, _)) = &mut self.xdp {
            spis.iter().for_each(|spi| spi_states.set(spi.0, self.engine.spi_state(*spi) as u8));
        }
        result.is_ok()
    }

    /// What waits for an SA of this policy has one; what it does not fit waits on.
    fn take_up(&mut self, now: Time, policy: u32) {
        for _ in 0..self.outlet.without_sa.count(|of| of == policy) {
            let Some(w) = self.outlet.without_sa.take_for(|of| of == policy) else { return };
            self.engine.take_up(now, policy, w.frame, &mut self.outlet);
        }
    }

    /// Takes what main sent.
    fn updates(&mut self, now: Time) -> usize {
        let mut count = 0;
        while let Some(update) = self.shared.updates.pop() {
            count += 1;
            match update {
                Update::NextHop(destination, next_hop) => {
                    let set = self.engine.set_next_hop(destination, next_hop).is_ok();
                    while let Some(w) = self.outlet.held.take_for(|(_, to)| to == destination) {
                        if set && next_hop.is_some() {
                            self.engine.forward(now, w.key.0, destination, w.frame, &mut self.outlet);
                        } else {
                            self.engine.give_up(w.frame, DropReason::NoNextHop, &mut self.outlet);
                        }
                    }
                }
                Update::ForgetNextHops => {
                    self.engine.clear_next_hops();
                    let waited: ArrayVec<Towards, UNRESOLVED> = self.outlet.held.keys().collect();
                    waited.into_iter().for_each(|towards| self.outlet.ask(towards));
                }
                Update::Port(port, config) => self.engine.set_port(port, &config),
                Update::LocalAddresses(addresses) => self.engine.set_local_addresses(&addresses),
            }
        }
        count
    }

    /// What has a deadline: urgent events, held frames, the activity of SAs.
    fn keep_house(&mut self, now: Time) {
        self.outlet.allow_noise();
        self.engine.sweep(now, &mut self.outlet);
        while let Some(w) = self.outlet.held.take_expired(now) {
            self.engine.give_up(w.frame, DropReason::NoNextHop, &mut self.outlet);
        }
        while let Some(w) = self.outlet.without_sa.take_expired(now) {
            self.engine.give_up(w.frame, DropReason::NoSa, &mut self.outlet);
        }
        self.tell_activity();
        self.report();
    }

    fn tell_activity(&mut self) {
        self.engine.changed_activity(ACTIVITIES, |index, activity| self.activity.store(index, activity));
    }

    fn report(&self) {
        for (n, (_, value)) in self.engine.counters().iter().enumerate() {
            self.shared.counters.store(self.engine_counters + n, value);
        }
    }

    fn ask_sockets(&self) {
        for (side, port) in self.outlet.ports.iter().enumerate() {
            let Some(Ok(counts)) = port.as_ref().map(XdpPort::counts) else { continue };
            let values = [counts.dropped, counts.ring_full, counts.transmit_invalid];
            for (n, value) in values.into_iter().enumerate() {
                self.shared.counters.store(self.socket_counters + side * values.len() + n, value);
            }
        }
    }

    /// Sleeps until there is something to do, unless there is already.
    fn sleep(&mut self) -> Result<(), Broken> {
        if !self.commands.announce_sleep()? {
            return Ok(());
        }
        self.shared.sleeper.announce();
        let idle = self.outlet.ports.iter_mut().flatten().all(XdpPort::is_idle);
        if idle && self.outlet.neighbours.is_idle() && self.shared.has_nothing() {
            // Else what the last frames did would be unseen for as long as it sleeps.
            self.tell_activity();
            let wake = self.shared.sleeper.as_fd();
            let [inside, outside] = &self.outlet.ports;
            let background = outside.as_ref().and_then(XdpPort::background);
            let bell = self.commands.bell().map(AsFd::as_fd);
            let fds = [
                Some(wake),
                bell,
                inside.as_ref().map(AsFd::as_fd),
                outside.as_ref().map(AsFd::as_fd),
                background,
                self.outlet.tuns.watch(),
            ];
            let mut fds: ArrayVec<PollFd<'_>, 6> =
                fds.into_iter().flatten().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
            // An interrupted sleep is as good as a short one.
            let _ = poll(&mut fds, Some(&SLEEP));
        }
        self.shared.sleeper.awake();
        self.commands.awake();
        Ok(())
    }
}
