//! What the machine must offer before a gateway starts on it. Each refusal says the fix.

use crate::config::{Inside, Settings};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::net::UdpSocket;

/// Network configuration: XDP, nftables.
const CAP_NET_ADMIN: u32 = 12;
/// AF_XDP sockets.
const CAP_NET_RAW: u32 = 13;
/// Locked memory.
pub const CAP_IPC_LOCK: u32 = 14;
/// BPF before [`CAP_BPF`] was split off.
const CAP_SYS_ADMIN: u32 = 21;
/// XDP programs and maps.
const CAP_BPF: u32 = 39;

/// Has this process this effective capability?
pub fn has_capability(capability: u32) -> bool {
    std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|text| {
            let line = text.lines().find_map(|l| l.strip_prefix("CapEff:"))?;
            u64::from_str_radix(line.trim(), 16).ok()
        })
        .is_some_and(|set| set >> capability & 1 == 1)
}

/// Privileges, before anything is touched.
pub fn check_privileges() -> Result<(), String> {
    let mut missing = Vec::new();
    for (name, any_of) in [
        ("CAP_NET_ADMIN", &[CAP_NET_ADMIN][..]),
        ("CAP_NET_RAW", &[CAP_NET_RAW]),
        ("CAP_BPF", &[CAP_BPF, CAP_SYS_ADMIN]),
    ] {
        if !any_of.iter().any(|c| has_capability(*c)) {
            missing.push(name);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(format!("spindle up lacks {}; run it as root (sudo spindle up …)", missing.join(", ")))
}

/// Interfaces, AF_XDP and addresses.
pub fn check(settings: &Settings) -> Result<(), String> {
    let probe =
        UdpSocket::bind("0.0.0.0:0").map_err(|e| format!("no UDP socket can be made: {e}; run as root"))?;
    let inside = match &settings.gateway.inside {
        Inside::Interface(name) => Some(("inside", name)),
        // The dataplane makes it.
        Inside::Host(_) => None,
    };
    for (key, name) in inside.into_iter().chain([("outside", &settings.gateway.outside)]) {
        if rustix::net::netdevice::name_to_index(&probe, name).is_err() {
            let problem =
                format!("this machine has no interface {name}; create it, or name one that `ip link` shows");
            return Err(settings.error(&format!("gateway.{key}"), problem).to_string());
        }
    }
    for (key, interface, vlan) in settings.gateway.vlans() {
        let (id, device) = (vlan.id, &vlan.device);
        if rustix::net::netdevice::name_to_index(&probe, device).is_err() {
            let problem = format!(
                "this machine has no interface {device} for VLAN {id}; create it by `ip link add link {interface} name \
                 {device} type vlan id {id}`, or name the one that `ip link` shows: `{{ id = {id}, device = \"…\" }}`"
            );
            return Err(settings.error(&format!("gateway.{key}"), problem).to_string());
        }
    }
    if !settings.devices().is_empty() && !std::path::Path::new("/dev/net/tun").exists() {
        return Err(
            "this machine has no /dev/net/tun, of which virtual interfaces are made; run `modprobe tun`"
                .into(),
        );
    }
    rustix::net::socket_with(AddressFamily::XDP, SocketType::RAW, SocketFlags::CLOEXEC, None).map_err(|e| {
        format!("this kernel offers no AF_XDP sockets ({e}); run one with CONFIG_XDP_SOCKETS=y, Linux 5.11 or later")
    })?;
    // A cluster's addresses come and go.
    let fixed = if settings.gateway.cluster.is_none() { settings.local_addresses() } else { Vec::new() };
    for address in fixed {
        UdpSocket::bind((address, 0)).map_err(|e| {
            let problem = format!(
                "{address} is not an address of this machine ({e}); add it with `ip address add`, or correct it"
            );
            let first = settings.connections.iter().find(|connection| connection.local == address);
            let name = first.map_or("", |connection| &connection.name);
            settings.error(&format!("connections.{name}.local.address"), problem).to_string()
        })?;
    }
    Ok(())
}
