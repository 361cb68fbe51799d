//! The world: one clock that jumps to the next thing due, and everything that happens at it. What the gateways want done
//! in consequence is carried out in [`outputs`].

mod agreement;
mod cluster;
mod due;
mod lives;
mod outputs;

use crate::attacker::Attacker;
use crate::machine::{Machine, inside_packet};
use crate::nat::Nat;
use crate::network::{Network, Packet};
use crate::oracle::{Oracle, side_of};
use crate::random::Dice;
use crate::scenario::{Action, CONNECTION, Death, HOSTS, MEMBERS, OTHER, OUTSIDE, Scenario};
use crate::schedule::Schedule;
use crate::{Failure, Summary};
use due::Due;
use spindle_abi::{Event, Time};
use spindle_engine::PortId;
use spindle_ike::api::Datagram;
use spindle_ike::wire::{Payload, Protection, View, exchange, notify};
use spindle_recovery::api::Input;
use std::fmt::Write as _;
use std::time::Duration;

/// Seconds since 1970 at the world's beginning.
const EPOCH: u64 = 1_700_000_000;
/// Group commits of the journal happen within this time.
const GROUP_COMMIT: Duration = Duration::from_millis(100);
/// Between two sweeps of a dataplane that may owe events.
const SWEEP: Duration = Duration::from_millis(20);
/// A dataplane is swept this long after the last packet from outside.
const SWEEP_AFTER: Duration = Duration::from_millis(200);
/// A peer that is redirected has so long to go.
const GRACE: Duration = Duration::from_secs(10);
/// A gateway works for one nanosecond of so many.
const HARDLY_BUSY: u64 = 8;
/// Steps without the clock moving at most.
const MAX_STEPS_AT_ONCE: u32 = 20_000;
/// Things under way at most.
const MAX_QUEUE: usize = 20_000;

/// How many messages with a token in clear this may cause: one for a request with an SK payload (or the first
/// fragment), none for any other datagram.
fn tokens_due(packet: &Packet) -> u32 {
    let view = packet.ike_message().and_then(|message| View::parse(message).ok());
    match view.map(|view| (view.header().response, view.protection())) {
        Some((false, Some(Protection::Sk | Protection::Fragment { number: 1, .. }))) => 1,
        _ => 0,
    }
}

/// The same for ESP on an SPI of an earlier incarnation: to the recorded address, and to the source if it differs; with
/// four generations of two parents each takes two messages.
const TOKENS_DUE_ON_FORMER_SPI: u32 = 4;

/// Is it a message in clear that no IKE SA may end by: SIR's answers, hints, all but a token and what begins an IKE SA?
fn is_harmless(packet: &Packet) -> bool {
    let view = packet.ike_message().and_then(|message| View::parse(message).ok());
    let begins = [exchange::IKE_SA_INIT, exchange::IKE_SESSION_RESUME];
    let clear = view.filter(|v| v.protection().is_none() && !begins.contains(&v.header().exchange));
    let Some(Ok(message)) = clear.map(|view| view.message()) else { return false };
    let token = |p: &Payload| matches!(p, Payload::Notify(n) if n.kind == notify::QUICK_CRASH_DETECTION);
    !message.payloads.iter().any(token)
}

/// A crash that waits for its moment.
struct Trap {
    side: usize,
    exchange: u8,
    response: bool,
    skip: usize,
    before: bool,
    death: Death,
    down: Duration,
}

pub(crate) struct World {
    now: Time,
    queue: Schedule<Due>,
    /// The first gateway's, and the second one's or those of both members in its place, or the second one's and the other
    /// gateway's. What is said of a `side` of a
    /// machine's is said of its place here.
    machines: Vec<Machine>,
    /// Which of them has each side's address, or stands there with its own.
    active: [Option<usize>; 2],
    /// Do they know that they have?
    knows_address: [bool; 3],
    /// Has the address left since they looked?
    left: [bool; 3],
    dice_of_cluster: Dice,
    network: Network,
    /// Before the first gateway.
    nat: Option<Nat>,
    attacker: Attacker,
    oracle: Oracle,
    scenario: Scenario,
    dice: Dice,
    dice_of_secrets: Dice,
    traps: Vec<Trap>,
    /// Messages with a token in clear that what happens now may still cause.
    tokens_due: u32,
    /// Until when each dataplane is swept.
    sweep_until: [Time; 3],
    /// How long each machine stays down after what kills it next.
    down: [Duration; 3],
    packets: u64,
    /// When the last packet arrived.
    delivered: Option<Time>,
    calm: bool,
    pub(crate) summary: Summary,
    trace: Option<String>,
}

impl World {
    pub(crate) fn new(seed: u64, trace: bool, scenario: Scenario) -> World {
        let machine = |side: usize| {
            let random = Dice::new(seed, 10 + side as u64);
            Machine::new(OUTSIDE[side_of(side)], scenario.configs[side_of(side)].clone(), random)
        };
        let member = |machine: Machine| machine.join(Dice::new(seed, 15), EPOCH);
        let other = || {
            let mut config = scenario.configs[1].clone();
            config.connections[0].local = OTHER.into();
            Machine::new(OTHER, config, Dice::new(seed, 12))
        };
        let machines = match scenario.cluster {
            true => vec![machine(0), member(machine(1)), member(machine(2))],
            false if scenario.other => vec![machine(0), machine(1), other()],
            false => vec![machine(0), machine(1)],
        };
        let mut world = World {
            now: Time(1),
            queue: Schedule::default(),
            machines,
            active: [Some(0), Some(1)],
            knows_address: [false; 3],
            left: [false; 3],
            dice_of_cluster: Dice::new(seed, 16),
            network: Network::new(scenario.conditions.clone()),
            nat: scenario.nat.then(|| Nat::new(OUTSIDE[0], Dice::new(seed, 9))),
            attacker: Attacker::new(Dice::new(seed, 2), OUTSIDE, scenario.speaks_sir()),
            oracle: Oracle::new(scenario.nat.then(|| OUTSIDE[0].into())),
            dice: Dice::new(seed, 1),
            dice_of_secrets: Dice::new(seed, 5),
            traps: Vec::new(),
            tokens_due: 0,
            sweep_until: [Time(0); 3],
            down: [Duration::ZERO; 3],
            packets: 0,
            delivered: None,
            calm: false,
            summary: Summary::default(),
            trace: trace.then(String::new),
            scenario,
        };
        for side in 0..2 {
            let delay = world.dice.between(Duration::ZERO, Duration::from_millis(300));
            world.schedule(delay, Due::Boot(side));
            world.schedule(delay, Due::Host(side));
        }
        if world.scenario.cluster {
            world.oracle.has_address(2, false);
        }
        if world.machines.len() > 2 {
            world.schedule(Duration::ZERO, Due::Boot(2));
        }
        for (at, action) in world.scenario.actions.clone() {
            world.schedule(at.since(Time(0)), Due::Act(action));
        }
        world.schedule(world.scenario.attack_from, Due::Strike);
        world
    }

    /// Plays the scenario to its end.
    pub(crate) fn play(&mut self) -> Result<(), Failure> {
        self.run().map_err(|what| Failure {
            at: self.now,
            what,
            trace: self.trace.take().unwrap_or_default(),
            scenario: format!("{:#?}", self.scenario),
        })
    }

    fn run_until(&mut self, end: Time) -> Result<(), String> {
        let (mut at_once, mut last) = (0, Time(0));
        loop {
            let due = self.queue.next_at();
            let deadline = |side: usize| {
                let running = self.machines[side].running.as_ref()?;
                running.gateway.deadline().map(|at| (at.max(self.now), side))
            };
            let tick = (0..self.machines.len()).filter_map(deadline).min();
            let next = [due, tick.map(|(at, _)| at)].into_iter().flatten().min();
            let Some(next) = next.filter(|next| *next <= end) else {
                self.now = self.now.max(end);
                return Ok(());
            };
            self.now = next;
            at_once = if next == last { at_once + 1 } else { 0 };
            last = next;
            self.summary.steps += 1;
            if at_once > MAX_STEPS_AT_ONCE {
                return Err("does not come to rest".into());
            }
            if self.queue.count() > MAX_QUEUE {
                return Err("sends without measure".into());
            }
            self.tokens_due = 0;
            match tick {
                Some((at, side)) if due.is_none_or(|due| at < due) => {
                    let running = self.machines[side].running.as_mut().expect("it has a deadline");
                    running.gateway.tick(next);
                    running.gateway.worked(next, Duration::from_nanos(next.0 / HARDLY_BUSY));
                    self.settle(side)?;
                }
                _ => {
                    let (_, due) = self.queue.take().expect("it was looked at");
                    self.happen(due)?;
                }
            }
            for side in 0..self.machines.len() {
                if self.machines[side].disk.is_dark() {
                    self.die(side, Death::Power);
                }
            }
        }
    }

    fn schedule(&mut self, after: Duration, due: Due) {
        self.schedule_at(self.now.after(after), due);
    }

    fn schedule_at(&mut self, at: Time, due: Due) {
        self.queue.put(at, due);
    }

    fn trace(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            let at = self.now.0 as f64 / 1e9;
            writeln!(trace, "{at:13.6}  {}", line()).expect("writing to a string");
        }
    }

    /// Is the process that this was meant for still the one that runs?
    fn alive(&self, side: usize, life: u64) -> bool {
        self.machines[side].running.is_some() && self.machines[side].life == life
    }

    /// Is the dataplane that this was meant for still there?
    fn is_whole(&self, side: usize, whole_life: u64) -> bool {
        self.machines[side].dataplane.is_some() && self.machines[side].whole_life == whole_life
    }

    fn happen(&mut self, due: Due) -> Result<(), String> {
        match due {
            Due::Arrive(side, packet) => self.arrive(side, packet),
            // The rings of a control process that died are read until there is another one.
            Due::Command { side, life, dataplane, sequence, command }
                if self.machines[side].life == life && self.machines[side].dataplane_life == dataplane =>
            {
                let Some(dataplane) = self.machines[side].dataplane.as_mut() else { return Ok(()) };
                let done = dataplane.apply(self.now, *command);
                self.tell(side, Event::Acknowledged { sequence, done });
                Ok(())
            }
            Due::Told { side, life, dataplane, event }
                if self.alive(side, life) && self.machines[side].dataplane_life == dataplane =>
            {
                self.trace(|| format!("{side} is told {event:?}"));
                if let Event::FormerSpi(report) | Event::UnknownSpi(report) = &event {
                    // Just after the start the dataplane may not know yet which SPIs are former ones.
                    let former = self.oracle.is_former(side, report.spi);
                    self.tokens_due = if former { TOKENS_DUE_ON_FORMER_SPI } else { 0 };
                }
                let running = self.machines[side].running.as_mut().expect("alive");
                running.gateway.handle(self.now, Input::Event(event));
                self.settle(side)
            }
            Due::Commit { side, life } if self.alive(side, life) => self.commit(side),
            Due::Secrets { side, life, new, keep } if self.alive(side, life) => {
                self.write_secrets(side, new, keep)
            }
            Due::Sweep { side, life } if self.is_whole(side, life) => {
                let verdicts = self.machines[side].dataplane.as_mut().expect("alive").sweep(self.now);
                self.carry_out(side, verdicts)?;
                if self.now < self.sweep_until[side] {
                    self.schedule(SWEEP, Due::Sweep { side, life });
                } else {
                    self.sweep_until[side] = Time(0);
                }
                Ok(())
            }
            Due::Boot(side) => self.boot(side),
            Due::Resume { side, life } if self.is_whole(side, life) => self.resume(side),
            Due::Up { side, dataplane } if self.machines[side].dataplane_life == dataplane => {
                self.tell(side, Event::Ready);
                Ok(())
            }
            Due::PowerGone { side, life } if self.is_whole(side, life) => {
                // The fuse of a machine that wrote nothing burns down all the same.
                self.die(side, Death::Power);
                Ok(())
            }
            Due::Host(side) => {
                if let Some(interval) = self.scenario.traffic[side] {
                    self.host_sends(side)?;
                    self.schedule(interval, Due::Host(side));
                }
                Ok(())
            }
            Due::Strike => {
                if !self.calm {
                    let packet = self.attacker.strikes();
                    self.ask_member(&packet);
                    self.inject(packet, Duration::ZERO);
                    let gap = self.dice.between(Duration::ZERO, self.scenario.attack_interval * 2);
                    self.schedule(gap, Due::Strike);
                }
                Ok(())
            }
            Due::Asked { machine, packet } => {
                self.summary.standby_asked += 1;
                self.arrive_at(machine, packet)
            }
            Due::AddressComes(machine) => {
                self.address_comes(machine);
                Ok(())
            }
            Due::Look { machine, life } if self.alive(machine, life) => self.look(machine),
            Due::Act(action) => self.act(action),
            _ => Ok(()),
        }
    }

    /// Control hears of it after the ring's delay.
    fn tell(&mut self, side: usize, event: Event) {
        // The noise ring is lossy.
        if !event.is_urgent() && self.dice.percent(10) {
            return;
        }
        let (life, dataplane) = (self.machines[side].life, self.machines[side].dataplane_life);
        self.schedule(self.scenario.ring_delay, Due::Told { side, life, dataplane, event });
    }

    fn arrive(&mut self, side: usize, packet: Packet) -> Result<(), String> {
        let to_nat = packet.destination().is_some_and(Nat::has);
        let packet = match &self.nat {
            Some(nat) if to_nat => nat.inward(packet),
            _ => Some(packet),
        };
        let Some(packet) = packet else { return Ok(()) };
        if self.scenario.cluster && side == 1 {
            self.overhear(&packet)?;
        }
        let machine = if self.scenario.other { Some(side) } else { self.active[side] };
        match machine {
            Some(machine) => self.arrive_at(machine, packet),
            None => Ok(()),
        }
    }

    fn arrive_at(&mut self, side: usize, packet: Packet) -> Result<(), String> {
        self.tokens_due = tokens_due(&packet);
        self.oracle.arrives(side, &packet);
        let harmless = is_harmless(&packet);
        match packet {
            Packet::Ike { source, destination, data } => {
                let Some(running) = self.machines[side].running.as_mut() else { return Ok(()) };
                let datagram = Datagram { local: destination, remote: source, data };
                let before = harmless.then(|| running.gateway.sas());
                running.gateway.handle(self.now, Input::Datagram(datagram));
                self.settle(side)?;
                self.oracle.arrived_whole(side);
                self.oracle.nothing_ended(before.unwrap_or_default(), &self.machines[side])
            }
            Packet::Esp(octets) => {
                let now = self.now;
                let Some(dataplane) = self.machines[side].dataplane_at(now) else { return Ok(()) };
                let verdicts = dataplane.process(now, PortId::Outside, &octets);
                if self.sweep_until[side] == Time(0) {
                    let life = self.machines[side].whole_life;
                    self.schedule(SWEEP, Due::Sweep { side, life });
                }
                self.sweep_until[side] = self.now.after(SWEEP_AFTER);
                self.carry_out(side, verdicts)
            }
        }
    }

    fn host_sends(&mut self, side: usize) -> Result<u64, String> {
        self.packets += 1;
        let number = self.packets;
        self.oracle.host_sent(side, number);
        self.summary.packets_sent += 1;
        let packet = inside_packet(HOSTS[side], HOSTS[1 - side], number);
        let Some(machine) = self.active[side] else { return Ok(number) };
        let now = self.now;
        if let Some(dataplane) = self.machines[machine].dataplane_at(now) {
            let verdicts = dataplane.process(now, PortId::Inside, &packet);
            self.carry_out(machine, verdicts)?;
        }
        Ok(number)
    }

    fn act(&mut self, action: Action) -> Result<(), String> {
        if self.calm {
            return Ok(());
        }
        self.trace(|| format!("{action:?}"));
        match action {
            Action::Crash { side, death, down, again } => {
                let machine = self.active[side].unwrap_or(side);
                self.down[machine] = down;
                self.die(machine, death);
                if let Some(again) = again {
                    let after = down + Duration::from_millis(10) + again;
                    self.schedule(after, Due::Act(Action::Crash { side, death, down, again: None }));
                }
                Ok(())
            }
            Action::CrashAt { side, exchange, response, skip, before, death, down } => {
                self.traps.push(Trap { side, exchange, response, skip, before, death, down });
                Ok(())
            }
            Action::MoveAddress { death, gap } => {
                self.move_address(death, gap);
                Ok(())
            }
            Action::MoveMapping => {
                self.nat.iter_mut().for_each(Nat::moves);
                self.summary.mappings_moved += 1;
                Ok(())
            }
            Action::HandOver => {
                let running = self.machines[1].running.as_ref();
                if let Some(left) = running.map(|r| r.gateway.sas()).filter(|sas| !sas.is_empty()) {
                    return Err(format!("is to be stopped, and {} IKE SAs are left", left.len()));
                }
                self.active[1] = Some(2);
                self.die(1, Death::Kill);
                Ok(())
            }
            Action::LoseSecret { side, state } => {
                self.machines[side].lose_secret(state);
                self.oracle.secret_lost(side, state);
                Ok(())
            }
            Action::ControlDies { side, after, down } => {
                // A member's death is that of its dataplane too: nobody would know whether it had the address all the time.
                let Some(machine) = self.active[side].filter(|_| side == 0 || !self.scenario.cluster) else {
                    return Ok(());
                };
                match after {
                    0 => self.control_dies(machine, down),
                    after => self.machines[machine].fuse = Some((after, down)),
                }
                Ok(())
            }
            Action::DataplaneDies { side, down } => match self.active[side] {
                Some(machine) => self.dataplane_dies(machine, down),
                None => Ok(()),
            },
            Action::CutOff { side, for_ } => {
                self.network.cut_off(side, self.now.after(for_));
                Ok(())
            }
            Action::Rekey { side, .. }
            | Action::RotateSecret { side }
            | Action::TakeDown { side, .. }
            | Action::Forget { side, .. }
            | Action::Initiate { side }
            | Action::Terminate { side } => {
                let now = self.now;
                let Some(side) = self.active[side] else { return Ok(()) };
                let Some(running) = self.machines[side].running.as_mut() else { return Ok(()) };
                let gateway = &mut running.gateway;
                // Refused where there is nothing to rekey or to end: that is an answer too.
                let _ = match action {
                    Action::Rekey { ike: true, .. } => gateway.rekey(now, CONNECTION, None).map(|_| ()),
                    Action::Rekey { .. } => {
                        gateway.rekey(now, CONNECTION, Some(crate::scenario::CHILD)).map(|_| ())
                    }
                    Action::Forget { child, .. } => {
                        gateway.forget(now, CONNECTION, child.then_some(crate::scenario::CHILD)).map(|lost| {
                            self.summary.forgotten += lost as u64;
                        })
                    }
                    // So is a maker that is switched off.
                    Action::RotateSecret { .. } => {
                        let _ = gateway.rotate_secret(now);
                        Ok(())
                    }
                    Action::TakeDown { redirect, .. } => {
                        let to = redirect.then_some(OTHER.into());
                        let _ = gateway.take_down(now, to, if redirect { GRACE } else { Duration::ZERO });
                        self.summary.take_downs += 1;
                        Ok(())
                    }
                    Action::Initiate { .. } => gateway.initiate(now, CONNECTION, None),
                    _ => gateway.terminate(now, CONNECTION, None).map(|_| ()),
                };
                self.settle(side)
            }
        }
    }
}
