//! A storm of unknown SPIs at a gateway: how `spindle-storm` is aimed in the topology.

use crate::error::Result;
use crate::topology::{Side, Topology};
use std::path::Path;
use std::process::Command;

/// Storms come from this prefix (RFC 2544's benchmark addresses), so from many sources.
const SOURCES: &str = "198.18.0.0/15";

/// What a gateway answers to a storm's sources goes to a neighbour that isn't there.
pub fn absorb_answers(topology: &Topology, side: Side) -> Result<()> {
    let (gateway, outside) = (topology.gateway(side), side.outside_interface());
    let nobody = topology.addresses.outside.host(99);
    gateway.ip(&format!("neigh add {nobody} lladdr 02:00:00:00:00:63 dev {outside} nud permanent"))?;
    gateway.ip(&format!("route add {SOURCES} via {nobody}"))?;
    Ok(())
}

/// `spindle-storm send` toward a gateway's outer interface, in the delay box's namespace; its bounds are the caller's to
/// add.
pub fn storm(topology: &Topology, toward: Side, program: &Path) -> Result<Command> {
    let mac = topology.hardware_address(toward)?.map(|octet| format!("{octet:02x}")).join(":");
    let mut command = topology.delay_box().command(program);
    command
        .args(["send", "--interface", &toward.box_interface(), "--source", SOURCES])
        .args(["--destination", &topology.addresses.gateway_outside(toward).to_string()])
        .args(["--destination-mac", &mac]);
    Ok(command)
}
