//! A cluster's address, as it moves between its two members, and what a member is asked that has not got it (RFC 6290 sections 6
//! and 9.2).
//!
//! The kernel gives and takes the address at once; the member learns of it a little later, when it looks. What comes to an
//! address that a machine has not is nothing to it, and nothing leaves from there.

use super::{Due, MEMBERS, OUTSIDE, World};
use crate::network::Packet;
use crate::scenario::Death;
use spindle_recovery::api::Input;
use std::time::Duration;

impl World {
    /// The address leaves the member that has it, which may die by that, and comes to the other one after `gap`.
    pub(super) fn move_address(&mut self, death: Option<(Death, Duration)>, gap: Duration) {
        let Some(from) = self.active[1].filter(|_| self.scenario.cluster) else { return };
        let to = 3 - from;
        self.trace(|| format!("the address leaves {from} for {to}"));
        self.summary.fail_overs += 1;
        self.active[1] = None;
        self.left[from] = true;
        self.oracle.has_address(from, false);
        self.will_look(from, self.scenario.look_delay);
        self.schedule(gap, Due::AddressComes(to));
        if let Some((death, down)) = death {
            self.down[from] = down;
            self.die(from, death);
        }
    }

    pub(super) fn address_comes(&mut self, machine: usize) {
        self.trace(|| format!("the address comes to {machine}"));
        self.active[1] = Some(machine);
        self.will_look(machine, self.scenario.look_delay.min(Duration::from_millis(20)));
    }

    fn will_look(&mut self, machine: usize, within: Duration) {
        let after = self.dice_of_cluster.between(Duration::ZERO, within);
        let life = self.machines[machine].life;
        self.schedule(after, Due::Look { machine, life });
    }

    /// A member looks which addresses it has now.
    pub(super) fn look(&mut self, machine: usize) -> Result<(), String> {
        let here = self.active[1] == Some(machine);
        let left = std::mem::take(&mut self.left[machine]);
        let Some(running) = self.machines[machine].running.as_mut() else { return Ok(()) };
        // It is told of both, where it has left and come back.
        if left || !here {
            running.gateway.handle(self.now, Input::Addresses(Vec::new()));
        }
        if here {
            running.gateway.handle(self.now, Input::Addresses(vec![OUTSIDE[1].into()]));
        }
        self.knows_address[machine] = here;
        self.oracle.has_address(machine, here);
        self.settle(machine)
    }

    /// What comes for the one that has the address may come to the other one too.
    pub(super) fn overhear(&mut self, packet: &Packet) -> Result<(), String> {
        let Packet::Ike { .. } = packet else { return Ok(()) };
        for machine in [1, 2] {
            let idle = self.active[1] != Some(machine) && !self.knows_address[machine];
            if idle && self.dice_of_cluster.percent(25) {
                self.summary.standby_asked += 1;
                self.arrive_at(machine, packet.clone())?;
            }
        }
        Ok(())
    }

    /// What the attacker asks the gateways it may ask a member, at its own address.
    pub(super) fn ask_member(&mut self, packet: &Packet) {
        let Packet::Ike { source, destination, data } = packet else { return };
        if !self.scenario.cluster || !self.dice_of_cluster.percent(50) {
            return;
        }
        let (source, mut destination, data) = (*source, *destination, data.clone());
        let machine = self.dice_of_cluster.one(&[1, 2]);
        destination.set_ip(MEMBERS[machine - 1].into());
        let packet = Packet::Ike { source, destination, data };
        self.schedule(Duration::ZERO, Due::Asked { machine, packet });
    }

    /// May this leave? Only from an address that is here; and a member that knows of none does not even try.
    pub(super) fn may_send(
        &self,
        machine: usize,
        datagram: &spindle_ike::api::Datagram,
    ) -> Result<bool, String> {
        let side = crate::oracle::side_of(machine);
        if datagram.local.ip() != self.machines[machine].outside {
            return Err(format!("{machine} sends from {}", datagram.local));
        }
        if !self.scenario.cluster || side == 0 {
            return Ok(true);
        }
        if !self.knows_address[machine] {
            return Err(format!("{machine} sends without the address"));
        }
        Ok(self.active[1] == Some(machine))
    }
}
