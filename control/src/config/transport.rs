//! `mode` of a child. Transport mode is for what this machine itself sends and receives at the outer addresses (RFC 4301
//! section 4.1), so a child that has it names these and nothing else.

use super::interfaces::Inside;
use super::read::Section;
use super::{GatewaySettings, Result};
use spindle_abi::{AddressRange, SelectorSet};
use spindle_ike::api::TransportMode;
use std::net::IpAddr;

const MODES: &[(&str, TransportMode)] =
    &[("tunnel", TransportMode::Never), ("transport", TransportMode::Required)];

/// The mode of a child with these selectors, by this virtual interface (0 is none), between these outer addresses.
pub(super) fn mode(
    section: &Section<'_>,
    selectors: &SelectorSet,
    interface: u16,
    (local, remote): (IpAddr, Option<IpAddr>),
    gateway: &GatewaySettings,
) -> Result<TransportMode> {
    let Some(value) = section.optional("mode") else { return Ok(TransportMode::Never) };
    let mode = value.one_of(MODES)?;
    if mode == TransportMode::Never {
        return Ok(mode);
    }
    if interface == 0 && matches!(gateway.inside, Inside::Interface(_)) {
        return Err(value.error(
            "is \"transport\", which is for this machine's own packets, and hosts are inside; write gateway.inside = \
             \"tun\", give the child an interface of its own (`interface`), or write \"tunnel\"",
        ));
    }
    let Some(remote) = remote else {
        return Err(value.error(
            "is \"transport\", and the peer may be anywhere (remote.address); write its address there, or \"tunnel\" here",
        ));
    };
    let sides = [
        ("local_ts", &selectors.local, local, "local.address"),
        ("remote_ts", &selectors.remote, remote, "remote.address"),
    ];
    for (key, side, end, of) in sides {
        if side.iter().any(|selector| selector.addresses != AddressRange { start: end, end }) {
            let problem = format!(
                "is not {of} alone, and mode is \"transport\"; write [\"{end}\"], with protocol and ports if wanted, or \
                 mode = \"tunnel\""
            );
            return Err(section.error_of(key, &problem));
        }
    }
    Ok(mode)
}
