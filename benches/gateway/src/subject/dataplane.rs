//! Our own: a real `spindle-dataplane` with real rings, this process in control's place, and one outbound SA.

use crate::field::{Field, GATEWAY_CORE};
use crate::process::{Process, wait_until};
use anyhow::{Context, Result, bail};
use spindle_abi::{
    Command, CommandRecord, Event, KeyMaterial, Limits, Mode, PolicyAction, SaParameters, Selector,
    SelectorSet, Spi, Suite,
};
use spindle_ring::{AttachmentFds, ControlSide, Side as AttachmentSide};
use spindle_testbed::{Addresses, Network, Side};
use std::path::Path;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);

/// The running dataplane, and what keeps its rings.
pub(crate) struct Dataplane {
    process: Process,
    control: ControlSide,
}

impl Dataplane {
    /// Starts it on the field's gateway. It encapsulates what goes to the other side's network.
    pub(crate) fn start(field: &Field, programs: &Path, directory: &Path) -> Result<Dataplane> {
        let attachment = AttachmentFds::create(1)?;
        let mut command = field.gateway.command(programs.join("spindle-dataplane"));
        command
            .args(["--inside", &Side::A.inside_interface(), "--outside", &Side::A.outside_interface()])
            .args(["--core", &GATEWAY_CORE.to_string()]);
        attachment.give(AttachmentSide::Dataplane, &mut command);
        let control = attachment.control_side()?;
        let process = Process::start(command, "spindle-dataplane", directory)?;
        let mut dataplane = Dataplane { process, control };
        dataplane.wait_for(Event::Ready)?;
        for (sequence, command) in (1..).zip(commands(&field.addresses)) {
            let record =
                CommandRecord::encode(sequence, &command).context("a command that no record holds")?;
            dataplane.control.workers[0].commands.push(&record)?;
            dataplane.wait_for(Event::Acknowledged { sequence, done: true })?;
        }
        Ok(dataplane)
    }

    fn wait_for(&mut self, event: Event) -> Result<()> {
        wait_until(&format!("{event:?} of the dataplane"), PATIENCE, || {
            self.process.check()?;
            while let Some(record) = self.control.workers[0].urgent.pop()? {
                if record.decode()? == event {
                    return Ok(true);
                }
            }
            Ok(false)
        })
    }

    /// An error unless its counters say that packets were encapsulated, and none lost by its own fault.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.process.check()?;
        let count =
            |name: &str| self.control.counters.iter().find(|(n, _)| n == name).map(|(_, value)| value);
        let delivered = count("delivered_outside").context("no counter delivered_outside")?;
        if delivered == 0 {
            let counts: Vec<_> = self.control.counters.iter().filter(|(_, value)| *value > 0).collect();
            bail!("the dataplane encapsulated nothing: {counts:?}");
        }
        Ok(())
    }
}

/// One policy and one SA, AES-128-GCM in tunnel mode.
fn commands(addresses: &Addresses) -> [Command; 2] {
    let whole = |network: Network| {
        let last = network.host(u32::MAX.checked_shr(network.prefix.into()).unwrap_or(0));
        vec![Selector::addresses(network.address.into(), last.into())]
    };
    let selectors = SelectorSet { local: whole(addresses.inside_a), remote: whole(addresses.inside_b) };
    let policy = Command::SetPolicy {
        id: 1,
        priority: 1,
        action: PolicyAction::Protect,
        selectors: selectors.clone(),
        hold: 0,
    };
    let sa = SaParameters {
        spi: Spi(0x1000_0001),
        index: 1,
        policy: 1,
        resource: Default::default(),
        mode: Mode::Tunnel,
        suite: Suite::Aes128Gcm,
        keymat: KeyMaterial::new(&[7; 20]).expect("the length of AES-128-GCM's"),
        local: (addresses.gateway_outside(Side::A), 0).into(),
        remote: (addresses.gateway_outside(Side::B), 0).into(),
        encapsulated: false,
        selectors,
        esn: false,
        soft: Limits::default(),
        hard: Limits::default(),
    };
    [policy, Command::InstallOutbound { sa }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sa_protects_all_that_goes_to_the_other_side() {
        let [policy, install] = commands(&Addresses::default());
        let Command::InstallOutbound { sa } = install else { panic!("an outbound SA") };
        let Command::SetPolicy { id, selectors, .. } = policy else { panic!("a policy") };
        let remote = Selector::addresses([10, 2, 0, 0].into(), [10, 2, 0, 255].into());
        assert_eq!((sa.policy, &sa.selectors, &selectors.remote), (id, &selectors, &vec![remote]));
    }
}
