//! What a gateway wants done, and what goes out on the network: carried out here, and judged by the oracle before
//! anybody sees it.

use super::{Due, EPOCH, GROUP_COMMIT, World};
use crate::machine::Verdicts;
use crate::nat::Nat;
use crate::network::Packet;
use crate::oracle::side_of;
use crate::scenario::{Death, OTHER, OUTSIDE};
use spindle_abi::{Command, Time};
use spindle_ike::api::Datagram;
use spindle_ike::wire::View;
use spindle_recovery::api::Output;
use std::time::Duration;

impl World {
    pub(super) fn carry_out(&mut self, side: usize, verdicts: Verdicts) -> Result<(), String> {
        for packet in verdicts.inside {
            self.oracle.delivered(side, &packet)?;
            self.summary.packets_delivered += 1;
            let gap =
                self.delivered.replace(self.now).map_or(Duration::ZERO, |before| self.now.since(before));
            self.summary.longest_gap = self.summary.longest_gap.max(gap);
        }
        for packet in verdicts.outside {
            let dataplane = self.machines[side].dataplane.as_ref().expect("it sends");
            self.oracle.sent_outside(side, &packet, dataplane)?;
            self.send(side_of(side), Packet::Esp(packet));
        }
        for event in verdicts.events {
            self.tell(side, event);
        }
        Ok(())
    }

    /// Carries out what a gateway wants done, and has it judged.
    pub(super) fn settle(&mut self, side: usize) -> Result<(), String> {
        self.oracle.stepped(side, &self.machines[side])?;
        loop {
            let Some(running) = self.machines[side].running.as_mut() else { return Ok(()) };
            let Some(output) = running.gateway.poll() else { break };
            if let Some((left, down)) = &mut self.machines[side].fuse {
                match left.checked_sub(1) {
                    Some(fewer) => *left = fewer,
                    None => {
                        let down = *down;
                        self.control_dies(side, down);
                        return Ok(());
                    }
                }
            }
            let running = self.machines[side].running.as_mut().expect("it has outputs");
            match output {
                Output::Keep(changes) => self.machines[side].keep(changes),
                Output::Transmit(datagram) => self.transmit(side, datagram)?,
                Output::Command { sequence, command } => {
                    self.trace(|| format!("{side} commands {}", brief(&command)));
                    self.oracle.commanded(side, &command)?;
                    match &command {
                        Command::SetSpiState { spi, .. } => self.attacker.learns_spi(side_of(side), spi.0),
                        Command::InstallInbound { sa, .. } => {
                            self.attacker.learns_spi(side_of(side), sa.spi.0)
                        }
                        _ => {}
                    }
                    let machine = &self.machines[side];
                    let (life, dataplane) = (machine.life, machine.dataplane_life);
                    let up_at = machine.dataplane.as_ref().map_or(Time(0), |dataplane| dataplane.up_at);
                    let at = self.now.after(self.scenario.ring_delay).max(up_at);
                    let command = Box::new(command);
                    self.schedule_at(at, Due::Command { side, life, dataplane, sequence, command });
                }
                Output::Journal(write) => {
                    running.pending.push(write);
                    if running.pending.len() == 1 {
                        let life = self.machines[side].life;
                        let after = self.dice.between(Duration::ZERO, GROUP_COMMIT);
                        self.schedule(after, Due::Commit { side, life });
                    }
                }
                Output::Secrets { new, keep } => {
                    let life = self.machines[side].life;
                    let after = self.dice_of_secrets.between(Duration::ZERO, Duration::from_millis(30));
                    self.schedule(after, Due::Secrets { side, life, new, keep });
                }
                Output::Persist(used) => {
                    let wall_clock = EPOCH + self.now.0 / 1_000_000_000;
                    if running.remember(&used, wall_clock) {
                        self.oracle.remembered(side, &used)?;
                    } else if self.machines[side].disk.is_dark() {
                        // The power went within this write: what was to follow it never leaves.
                        self.die(side, Death::Power);
                        return Ok(());
                    } else {
                        return Err(format!("gateway {side} cannot remember used tickets"));
                    }
                }
                Output::Report(report) => {
                    self.trace(|| {
                        format!(
                            "{side} reports {} {:?} {:?} {}",
                            report.name, report.spis, report.spi, report.detail
                        )
                    });
                    match report.name {
                        "proof" => {
                            self.summary.proofs += 1;
                            self.oracle.proved(side, report.spis)?;
                        }
                        "confirmation" => {
                            self.summary.confirmations += 1;
                            self.oracle.confirmed(side, report.spis);
                        }
                        "ike-established" => {
                            self.summary.established += 1;
                            self.summary.resumed += u64::from(report.detail.ends_with("resumed"));
                        }
                        "ike-deleted" if report.detail == "timeout" => self.summary.given_up += 1,
                        "ike-deleted" if report.detail == "superseded" => self.summary.superseded += 1,
                        "initiation-failed" => self.summary.given_up += 1,
                        "token-failed" => self.summary.tokens_failed += 1,
                        "redirect-followed" => self.summary.redirects_followed += 1,
                        "ike-rekeyed" => self.summary.ike_rekeys += 1,
                        "token-acknowledged" => self.summary.tokens_acknowledged += 1,
                        "maker-off" => return Err("takes its peer for a copy of itself".into()),
                        _ => {}
                    }
                }
            }
        }
        self.oracle.stepped(side, &self.machines[side])
    }

    fn transmit(&mut self, side: usize, datagram: Datagram) -> Result<(), String> {
        if !self.may_send(side, &datagram)? {
            return Ok(());
        }
        let shown = self.oracle.transmitted(self.now, side, &datagram)?;
        if !shown.is_empty() {
            match self.tokens_due.checked_sub(1) {
                Some(left) => self.tokens_due = left,
                None if self.scenario.configs[side_of(side)].proactive => {
                    self.oracle.unasked(side, &shown)?
                }
                None => return Err(format!("gateway {side} shows a token that nothing asked for")),
            }
        }
        let packet = Packet::sent(&datagram);
        let header =
            packet.ike_message().and_then(|message| View::parse(message).ok()).map(|view| view.header());
        self.trace(|| {
            let Some(header) = header else { return format!("{side} keeps its mapping alive") };
            let kind = if header.response { "response" } else { "request" };
            let SpisBrief(spis) = SpisBrief::from(header.spis);
            let tokens = if !shown.is_empty() { " with a token" } else { "" };
            format!(
                "{side} sends {} {kind} {} of {spis} to {}{tokens}",
                exchange_name(header.exchange),
                header.message_id,
                datagram.remote
            )
        });
        let trap = self.traps.iter_mut().position(|trap| {
            let matches = header.is_some_and(|h| {
                (trap.side, trap.exchange, trap.response) == (side_of(side), h.exchange, h.response)
            });
            let now = matches && trap.skip == 0;
            trap.skip -= usize::from(matches && !now);
            now
        });
        let trap = trap.map(|at| self.traps.remove(at));
        if !trap.as_ref().is_some_and(|trap| trap.before) {
            self.send(side_of(side), packet);
        }
        if let Some(trap) = trap {
            self.down[side] = trap.down;
            self.die(side, trap.death);
        }
        Ok(())
    }

    /// Onto the network, under the attacker's eyes.
    fn send(&mut self, side: usize, packet: Packet) {
        let packet = match &mut self.nat {
            Some(nat) if side == 0 => nat.outward(packet),
            // Nobody outside finds the way to what is behind it.
            Some(_) => Some(packet).filter(|packet| packet.destination() != Some(OUTSIDE[0].into())),
            None => Some(packet),
        };
        let Some(packet) = packet else { return };
        self.summary.hash(self.now, &packet);
        let attacked = !self.calm && self.now >= Time(0).after(self.scenario.attack_from);
        if self.attacker.sees(&packet) && attacked && self.dice.percent(60) {
            // The pair is new: half-open at one side, not known yet at the other.
            for _ in 0..1 + self.dice.below(3) {
                let forged = self.attacker.names_latest_pair();
                let window = self.scenario.conditions.delay * 4 + Duration::from_millis(1);
                let after = self.dice.between(Duration::ZERO, window);
                self.inject(forged, after);
            }
        }
        if attacked
            && let Some(forged) = self.attacker.races(&packet)
            && self.dice.percent(30)
        {
            let after = self.dice.between(Duration::ZERO, self.scenario.conditions.delay * 2);
            self.inject(forged, after);
        }
        let Some(to) = self.machine_of(&packet) else { return };
        for at in self.network.arrivals(self.now, side_of(to), &mut self.dice) {
            self.schedule_at(at, Due::Arrive(to, packet.clone()));
        }
    }

    /// The attacker's packets are never lost.
    pub(super) fn inject(&mut self, packet: Packet, after: Duration) {
        self.summary.strikes += 1;
        self.trace(|| format!("attacker sends {}", packet.brief()));
        if let Some(to) = self.machine_of(&packet) {
            self.schedule(after, Due::Arrive(to, packet));
        }
    }

    /// Whom its destination is of: a side, or the other gateway.
    fn machine_of(&self, packet: &Packet) -> Option<usize> {
        let destination = packet.destination()?;
        let behind_nat = Nat::has(destination).then_some(0);
        let other = (self.scenario.other && destination == OTHER).then_some(2);
        behind_nat.or(other).or_else(|| OUTSIDE.iter().position(|address| destination == *address))
    }
}

/// The first two octets of each SPI are enough to tell them apart.
struct SpisBrief(String);

impl From<spindle_ike::api::IkeSpis> for SpisBrief {
    fn from(spis: spindle_ike::api::IkeSpis) -> SpisBrief {
        let [i0, i1, ..] = spis.initiator;
        let [r0, r1, ..] = spis.responder;
        SpisBrief(format!("{i0:02x}{i1:02x}.._{r0:02x}{r1:02x}.."))
    }
}

fn exchange_name(exchange: u8) -> String {
    match exchange {
        34 => "IKE_SA_INIT".into(),
        35 => "IKE_AUTH".into(),
        36 => "CREATE_CHILD_SA".into(),
        37 => "INFORMATIONAL".into(),
        38 => "IKE_SESSION_RESUME".into(),
        other => format!("exchange {other}"),
    }
}

fn brief(command: &Command) -> String {
    match command {
        Command::InstallInbound { sa, .. } => format!("InstallInbound {} at {}", sa.spi, sa.index),
        Command::InstallOutbound { sa } => format!("InstallOutbound {} at {}", sa.spi, sa.index),
        other => format!("{other:?}"),
    }
}
