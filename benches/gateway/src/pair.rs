//! Two gateways between two hosts, all on this machine's cores, and TCP through them.
//!
//! ```text
//!  host-a          gateway-a            gateway-b          host-b
//!  a-host ══════ a-in   a-out ══════ b-out   b-in ══════ b-host
//!  10.1.0.2    10.1.0.1  192.0.2.1  192.0.2.2  10.2.0.1   10.2.0.2
//! ```
//!
//! The hosts' MTU is one that fits every peer's tunnel, and all neighbours are known, for ipsec-secgw answers no ARP.

use crate::field::{join, namespace, neighbour};
use crate::process::{Process, wait_until};
use crate::subject::{Boringtun, Dpdk, Neighbours, Programs};
use crate::tcp;
use anyhow::{Context, Result};
use spindle_testbed::strongswan::{Charon, Peer};
use spindle_testbed::{Addresses, Gateway, Host, Namespace, Settings, Side, ping};
use std::path::Path;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);
/// Of the hosts, in octets: kernel-libipsec's device has no more.
pub(crate) const MTU: u16 = 1400;

/// The namespaces; removed on drop, with what runs in them.
pub(crate) struct Pair {
    hosts: [Namespace; 2],
    gateways: [Namespace; 2],
    addresses: Addresses,
}

/// Two gateways of a kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Gateways {
    /// Ours, with IKE.
    Spindle,
    /// DPDK's, with static SAs; the hosts make whole checksums for it.
    IpsecSecgw,
    /// strongSwan with ESP in its own process (kernel-libipsec), with IKE.
    Strongswan,
    /// WireGuard in a process.
    Boringtun,
}

/// What runs in both places; ended when dropped.
enum Running {
    Spindle { _gateways: [Gateway; 2] },
    IpsecSecgw { _gateways: [Process; 2] },
    Strongswan { _gateways: [Charon; 2] },
    Boringtun { _gateways: [Boringtun; 2] },
}

impl Pair {
    fn create() -> Result<Pair> {
        spindle_testbed::prepare()?;
        let pair = Pair {
            hosts: [namespace("host-a")?, namespace("host-b")?],
            gateways: [namespace("gateway-a")?, namespace("gateway-b")?],
            addresses: Addresses::default(),
        };
        let [a, b] = [Side::A, Side::B];
        let outside = |side: Side| side.outside_interface();
        join((&pair.gateways[0], &outside(a)), (&pair.gateways[1], &outside(b)))?;
        for side in [a, b] {
            join((pair.host(side), &side.host_interface()), (pair.gateway(side), &side.inside_interface()))?;
        }
        for side in [a, b] {
            pair.equip(side)?;
        }
        Ok(pair)
    }

    fn host(&self, side: Side) -> &Namespace {
        &self.hosts[side as usize]
    }

    fn gateway(&self, side: Side) -> &Namespace {
        &self.gateways[side as usize]
    }

    /// Addresses, routes and neighbours of one side.
    fn equip(&self, side: Side) -> Result<()> {
        let (host, gateway, a) = (self.host(side), self.gateway(side), &self.addresses);
        let (on_host, inside, outside) =
            (side.host_interface(), side.inside_interface(), side.outside_interface());
        let other = side.other();
        host.ip(&format!("link set {on_host} mtu {MTU}"))?;
        host.ip(&format!("addr add {}/24 dev {on_host}", a.host(side)))?;
        host.ip(&format!("route add default via {}", a.gateway_inside(side)))?;
        gateway.ip(&format!("addr add {}/24 dev {inside}", a.gateway_inside(side)))?;
        gateway.ip(&format!("addr add {}/24 dev {outside}", a.gateway_outside(side)))?;
        neighbour((host, &on_host), a.gateway_inside(side), (gateway, &inside))?;
        neighbour((gateway, &inside), a.host(side), (host, &on_host))?;
        let there = (self.gateway(other), other.outside_interface());
        neighbour((gateway, &outside), a.gateway_outside(other), (there.0, &there.1))?;
        for (setting, value) in [("conf/all/rp_filter", "0"), ("conf/default/rp_filter", "0")] {
            gateway.sysctl(&format!("ipv4/{setting}"), value)?;
        }
        Ok(())
    }

    fn end(&self, side: Side) -> Host<'_> {
        Host { namespace: self.host(side), address: self.addresses.host(side).into() }
    }
}

/// Bits per second of one TCP connection from host A to host B, through two gateways of this kind.
pub(crate) fn measure(kind: Gateways, programs: &Programs<'_>, seconds: f64) -> Result<f64> {
    let directory = tempfile::tempdir()?;
    let pair = Pair::create()?;
    let running = start(kind, &pair, programs, directory.path())
        .with_context(|| format!("two gateways of {kind:?}"))?;
    wait_until("an answer from host B", PATIENCE, || {
        Ok(!ping(pair.end(Side::A), pair.addresses.host(Side::B).into(), 1, 56)?.is_empty())
    })?;
    let rate = tcp::stream(pair.end(Side::A), pair.end(Side::B), seconds);
    drop(running);
    rate
}

fn start(kind: Gateways, pair: &Pair, programs: &Programs<'_>, directory: &Path) -> Result<Running> {
    let forwarding = |on: bool| -> Result<()> {
        for gateway in &pair.gateways {
            gateway.sysctl("ipv4/ip_forward", if on { "1" } else { "0" })?;
        }
        Ok(())
    };
    let both = [Side::A, Side::B];
    Ok(match kind {
        Gateways::Spindle => {
            let gateway = |side: Side| -> Result<Gateway> {
                let path = directory.join(side.letter().to_string());
                let mut gateway =
                    Gateway::new(side, &pair.addresses, pair.gateway(side), &path, programs.spindle)?;
                gateway.start()?;
                gateway.wait_ready(PATIENCE)?;
                Ok(gateway)
            };
            let gateways = [gateway(Side::A)?, gateway(Side::B)?];
            gateways[0].initiate()?;
            Running::Spindle { _gateways: gateways }
        }
        Gateways::IpsecSecgw => {
            forwarding(false)?;
            for side in both {
                let line = format!("ethtool -K {} tx off", side.host_interface());
                pair.host(side).run(&line)?;
            }
            let gateway = |side: Side| -> Result<Process> {
                let other = side.other();
                let neighbours = Neighbours {
                    host: pair.host(side).mac(&side.host_interface())?,
                    peer: pair.gateway(other).mac(&other.outside_interface())?,
                };
                let (gateway, built) = (pair.gateway(side), programs.ipsec_secgw);
                Dpdk::IpsecSecgw.start(gateway, side, side as usize, &neighbours, built, directory)
            };
            Running::IpsecSecgw { _gateways: [gateway(Side::A)?, gateway(Side::B)?] }
        }
        Gateways::Strongswan => {
            forwarding(true)?;
            let charon = |side: Side| -> Result<Charon> {
                let peer = Peer::of(&pair.addresses, side, &Settings::default());
                let path = directory.join(side.letter().to_string());
                Charon::start(pair.gateway(side).name(), &path, &peer)
            };
            let gateways = [charon(Side::A)?, charon(Side::B)?];
            gateways[0].initiate()?;
            Running::Strongswan { _gateways: gateways }
        }
        Gateways::Boringtun => {
            forwarding(true)?;
            let end = |side: Side| Boringtun::start(pair.gateway(side), side, programs.boringtun, directory);
            Running::Boringtun { _gateways: [end(Side::A)?, end(Side::B)?] }
        }
    })
}
