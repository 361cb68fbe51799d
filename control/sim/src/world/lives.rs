//! How gateways' processes begin and end, whole or control alone, and what of them reaches the disk.

use super::{Due, EPOCH, World};
use crate::oracle::side_of;
use crate::scenario::Death;
use spindle_abi::{Event, Time};
use spindle_recovery::api::{Generation, Input, TokenMethod};
use std::time::Duration;

impl World {
    pub(super) fn boot(&mut self, side: usize) -> Result<(), String> {
        if self.machines[side].dataplane.is_some() {
            return Ok(());
        }
        let wall_clock = EPOCH + self.now.0 / 1_000_000_000;
        match self.machines[side].boot(self.now, wall_clock) {
            Ok(boot) => {
                self.trace(|| {
                    format!(
                        "{side} starts, incarnation {}, {} former SPIs",
                        boot.incarnation,
                        boot.former.len()
                    )
                });
                self.summary.boots += 1;
                self.oracle.booted(side, &boot, self.scenario.configs[side_of(side)].journal, wall_clock)?;
                self.oracle.nobody_is_forsaken(side, &self.machines)?;
                for record in &boot.former {
                    self.attacker.learns_spi(side_of(side), record.spi.0);
                }
                if self.scenario.cluster && side_of(side) == 1 {
                    self.look(side)?;
                }
                self.tell(side, Event::Ready);
                self.settle(side)
            }
            // The power went within the start; the next one comes.
            Err(_) if self.machines[side].disk.is_dark() => Ok(()),
            Err(error) => Err(format!("gateway {side} does not start: {error}")),
        }
    }

    /// Control starts beside a dataplane that has gone on.
    pub(super) fn resume(&mut self, side: usize) -> Result<(), String> {
        if self.machines[side].running.is_some() {
            return Ok(());
        }
        let wall_clock = EPOCH + self.now.0 / 1_000_000_000;
        match self.machines[side].resume(self.now, wall_clock) {
            Ok(adopted) => {
                adopted.map_err(|what| format!("control of {side} starts again: {what}"))?;
                self.trace(|| format!("{side}'s control starts"));
                self.summary.adoptions += 1;
                self.oracle.nobody_is_forsaken(side, &self.machines)?;
                let now = self.now;
                if self.machines[side].dataplane_at(now).is_some() {
                    self.tell(side, Event::Ready);
                }
                self.settle(side)
            }
            Err(_) if self.machines[side].disk.is_dark() => Ok(()),
            Err(error) => Err(format!("control of {side} does not start again: {error}")),
        }
    }

    /// `kill -9` of control alone.
    pub(super) fn control_dies(&mut self, side: usize, down: Duration) {
        if self.machines[side].running.is_none() {
            return;
        }
        self.summary.control_deaths += 1;
        self.trace(|| format!("{side}'s control dies"));
        self.machines[side].kill_control();
        self.oracle.control_died(side);
        let life = self.machines[side].whole_life;
        self.schedule(down, Due::Resume { side, life });
    }

    /// `kill -9` of the dataplane alone: another one stands in its place, with rings of its own, and is up after a while.
    pub(super) fn dataplane_dies(&mut self, side: usize, down: Duration) -> Result<(), String> {
        let machine = &mut self.machines[side];
        if machine.dataplane.is_none() {
            return Ok(());
        }
        machine.start_dataplane(self.now.after(down));
        let dataplane = machine.dataplane_life;
        self.summary.dataplane_deaths += 1;
        self.trace(|| format!("{side}'s dataplane dies"));
        self.schedule(down, Due::Up { side, dataplane });
        // A control process that is away finds out when it is back.
        let Some(running) = self.machines[side].running.as_mut() else { return Ok(()) };
        running.gateway.handle(self.now, Input::NewDataplane);
        self.settle(side)
    }

    pub(super) fn die(&mut self, side: usize, death: Death) {
        let machine = &mut self.machines[side];
        if death == Death::PowerInWrite && machine.dataplane.is_some() {
            let changes = self.dice.below(24) as u64;
            machine.disk.light_fuse(changes);
            let life = machine.whole_life;
            self.schedule(Duration::from_millis(250), Due::PowerGone { side, life });
            return;
        }
        if machine.dataplane.is_none() && !machine.disk.is_dark() {
            return;
        }
        self.summary.crashes += 1;
        match death {
            Death::Kill => machine.kill(),
            _ => machine.lose_power(&mut self.dice),
        }
        self.sweep_until[side] = Time(0);
        self.trace(|| format!("{side} dies: {death:?}"));
        self.oracle.died(side);
        // A start takes a while, at least.
        let after = self.down[side] + self.dice.between(Duration::from_millis(5), Duration::from_millis(50));
        self.schedule(after, Due::Boot(side));
    }

    pub(super) fn commit(&mut self, side: usize) -> Result<(), String> {
        let running = self.machines[side].running.as_mut().expect("alive");
        let writes = running.pending.clone();
        self.oracle.committing(side, &writes);
        let running = self.machines[side].running.as_mut().expect("alive");
        if running.commit() {
            self.oracle.committed(side, writes);
        } else if !self.machines[side].disk.is_dark() {
            return Err(format!("gateway {side} cannot commit to its journal"));
        }
        Ok(())
    }

    pub(super) fn write_secrets(
        &mut self,
        side: usize,
        new: Option<(TokenMethod, u64)>,
        keep: Vec<Generation>,
    ) -> Result<(), String> {
        self.trace(|| {
            format!("{side} writes its secrets, a new one: {}, kept: {}", new.is_some(), keep.len())
        });
        self.oracle.writing_secrets(side, &keep);
        let written = self.machines[side].running.as_mut().expect("alive").write_secrets(new, keep);
        match &written {
            Some(generations) => {
                self.summary.rotations += u64::from(new.is_some());
                self.summary.generations_dropped +=
                    self.oracle.wrote_secrets(side, generations, &self.machines)?;
            }
            None if self.machines[side].disk.is_dark() => return Ok(()),
            None => return Err(format!("gateway {side} cannot write its secrets")),
        }
        let running = self.machines[side].running.as_mut().expect("alive");
        running.gateway.handle(self.now, Input::Secrets(written));
        self.settle(side)
    }
}
