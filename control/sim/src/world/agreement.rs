//! The end of a world: nothing disturbs it any more, and the gateways are to agree on one IKE SA, which is to stay.

use super::{Due, World};
use crate::oracle::side_of;
use crate::scenario::OUTSIDE;
use spindle_abi::{SpiState, Time};
use spindle_ike::api::{ChildSaStatus, IkeSaStatus, IkeSpis};
use std::time::Duration;

/// How long the gateways may take to agree once nothing disturbs them.
const PATIENCE: Duration = Duration::from_secs(90);

/// How long a request is sent again, at most, before its IKE SA ends.
const UNANSWERED: Duration = Duration::from_secs(7);
/// How often one looks.
const POLL: Duration = Duration::from_millis(250);

/// What the gateways agree on.
struct Agreed {
    since: Time,
    spis: IkeSpis,
    /// IKE SAs that had been authenticated until then.
    established: u64,
}

impl World {
    pub(super) fn run(&mut self) -> Result<(), String> {
        self.run_until(self.scenario.calm)?;
        self.calm_down();
        self.agree()?;
        // And now traffic passes.
        let numbers = [0, 1].map(|side| self.host_sends(side));
        let numbers = [numbers[0].clone()?, numbers[1].clone()?];
        self.run_until(self.now.after(
            self.scenario.conditions.delay + self.scenario.conditions.jitter + Duration::from_millis(5),
        ))?;
        for (side, number) in numbers.into_iter().enumerate() {
            if !self.oracle.arrived(number) {
                return Err(format!(
                    "both agree, and packet {number} of the host behind {side} does not arrive"
                ));
            }
        }
        self.summary.tokens_shown = self.oracle.tokens_shown;
        self.summary.followed = self.oracle.followed;
        Ok(())
    }

    /// Lets time pass until the gateways have agreed for as long as they are to: on the very same IKE SA all the time, while
    /// nobody makes another one. But where they rekey it may be another one, and where messages were lost one may still end
    /// by a request that was asked before the calm and never answered (RFC 7296 section 2.4).
    fn agree(&mut self) -> Result<(), String> {
        let (began, steady) = (self.now, self.scenario.steady);
        let last_word = began.after(if self.scenario.loses() { UNANSWERED } else { Duration::ZERO });
        let rekeys = self.scenario.rekeys();
        let mut agreed: Option<Agreed> = None;
        while agreed.as_ref().is_none_or(|agreed| self.now < agreed.since.after(steady)) {
            if agreed.is_none() && self.now >= began.after(PATIENCE) {
                let what = self.agreement().err().unwrap_or("not steady".into());
                return Err(format!("no agreement {PATIENCE:?} after the last disturbance: {what}"));
            }
            // First with packets, then by liveness checks alone.
            if agreed.as_ref().is_some_and(|agreed| self.now >= agreed.since.after(steady / 20)) {
                (self.scenario.traffic, self.delivered) = ([None, None], None);
            }
            self.run_until(self.now.after(POLL))?;
            let now = self.agreement().map(|spis| (spis, self.summary.established));
            match (now, &agreed) {
                (Ok((spis, established)), None) => {
                    agreed = Some(Agreed { since: self.now, spis, established });
                }
                (Err(_), None) => {}
                (Ok(now), Some(before)) if now == (before.spis, before.established) => {}
                (_, Some(_)) if rekeys || self.now < last_word => agreed = None,
                (now, Some(before)) => {
                    return Err(format!(
                        "agreed at {} ns on {:?}, and then: {now:?}",
                        before.since.0, before.spis
                    ));
                }
            }
        }
        self.summary.recovered_in = self.now.since(self.scenario.calm).saturating_sub(steady);
        Ok(())
    }

    /// The one IKE SA that both gateways hold, with the same Child SAs; or what they disagree about.
    fn agreement(&self) -> Result<IkeSpis, String> {
        let sas_of = |machine: usize| self.machines[machine].running.as_ref().map(|r| r.gateway.sas());
        let idle = |machine: &usize| self.active[side_of(*machine)] != Some(*machine);
        for machine in (0..self.machines.len()).filter(idle) {
            if sas_of(machine).is_some_and(|sas| !sas.is_empty()) {
                return Err(format!("{machine} holds IKE SAs, and another one stands in its place"));
            }
        }
        let sas = self.active.map(|machine| sas_of(machine?));
        let [Some(a), Some(b)] = sas else { return Err("a gateway is down".into()) };
        let state = |sas: &[IkeSaStatus]| {
            sas.iter().map(|sa| format!("{:?} {}", sa.spis, sa.state)).collect::<Vec<_>>().join(", ")
        };
        let differ = || Err(format!("a holds [{}], b holds [{}]", state(&a), state(&b)));
        let ([ours], [theirs]) = (&a[..], &b[..]) else { return differ() };
        let established = [ours, theirs].iter().all(|sa| sa.state == "established");
        if !established || ours.spis != theirs.spis || ours.initiator == theirs.initiator {
            return differ();
        }
        // An attacker who sends a captured message from elsewhere, first, moves one end there for a while.
        let second = self.active[1].map_or(OUTSIDE[1], |machine| self.machines[machine].outside);
        if ours.remote.ip() != second || !self.finds(theirs, ours) {
            return Err(format!("{:?} goes from {} to {}", ours.spis, theirs.remote, ours.remote));
        }
        let mut of_a: Vec<_> = ours.children.iter().map(|c| (c.inbound, c.outbound)).collect();
        let mut of_b: Vec<_> = theirs.children.iter().map(|c| (c.outbound, c.inbound)).collect();
        of_a.sort();
        of_b.sort();
        // Of one that was lost without a crash the peer learns when it sends on it: never, once there is another one.
        let common = of_a.iter().any(|child| of_b.contains(child));
        if of_a != of_b && (self.summary.forgotten == 0 || !common) {
            return Err(format!("Child SAs of {:?}: a {of_a:?}, b (swapped) {of_b:?}", ours.spis));
        }
        if of_a.is_empty() {
            return Err("no Child SA".into());
        }
        for (side, sa) in [ours, theirs].into_iter().enumerate() {
            let dataplane = self.active[side].and_then(|machine| self.machines[machine].dataplane.as_ref());
            let lacking =
                |c: &&ChildSaStatus| dataplane.is_none_or(|d| d.spi_state(c.inbound) != SpiState::Current);
            if let Some(child) = sa.children.iter().find(lacking) {
                return Err(format!("{side} has {} and its dataplane has not", child.inbound));
            }
        }
        Ok(ours.spis)
    }

    /// Does the second gateway send where the first one is?
    fn finds(&self, theirs: &IkeSaStatus, ours: &IkeSaStatus) -> bool {
        match &self.nat {
            Some(nat) => nat.seen_at(ours.local.port()) == Some(theirs.remote),
            None => theirs.remote.ip() == OUTSIDE[0],
        }
    }

    fn calm_down(&mut self) {
        self.trace(|| "calm".into());
        self.network.heal();
        self.traps.clear();
        for machine in &mut self.machines {
            machine.disk.put_fuse_out();
            machine.fuse = None;
        }
        self.calm = true;
        // Both hosts send now, so that a tunnel that is to be trapped comes up.
        for side in 0..2 {
            self.scenario.traffic[side] = Some(Duration::from_millis(250));
            self.schedule(Duration::ZERO, Due::Host(side));
        }
    }
}
