//! What the kernel says of interfaces and neighbours, through `ip -j` and `ethtool`.

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use spindle_testbed::parse_mac;
use std::net::Ipv4Addr;
use std::process::Command;

/// An Ethernet interface of this network namespace.
#[derive(Debug)]
pub(crate) struct Interface {
    /// Its index.
    pub(crate) index: u32,
    /// Its MAC address.
    pub(crate) mac: [u8; 6],
}

/// Runs a command and returns what it printed; its complaint is the error.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("cannot run {program}: is it installed?"))?;
    if !output.status.success() {
        bail!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?)
}

impl Interface {
    /// The interface with this name.
    pub(crate) fn find(name: &str) -> Result<Interface> {
        #[derive(Deserialize)]
        struct Link {
            ifindex: u32,
            address: String,
        }
        let links: Vec<Link> = serde_json::from_str(&run("ip", &["-j", "link", "show", "dev", name])?)?;
        let link = links.first().with_context(|| format!("no interface {name}"))?;
        Ok(Interface { index: link.ifindex, mac: parse_mac(&link.address)? })
    }
}

/// The MAC address of a neighbour on this interface, if the kernel knows it.
pub(crate) fn neighbour(interface: &str, address: Ipv4Addr) -> Result<Option<[u8; 6]>> {
    #[derive(Deserialize)]
    struct Neighbour {
        dst: String,
        lladdr: Option<String>,
    }
    let neighbours: Vec<Neighbour> =
        serde_json::from_str(&run("ip", &["-j", "neighbour", "show", "dev", interface])?)?;
    let found = neighbours.into_iter().find(|n| n.dst == address.to_string()).and_then(|n| n.lladdr);
    Ok(found.map(|mac| parse_mac(&mac)).transpose()?)
}

/// The sum over all queues of one of the driver's own counters, such as `xdp_xmit` of `tx_queue_0_xdp_xmit`.
pub(crate) fn driver_counter(interface: &str, prefix: &str, suffix: &str) -> Result<u64> {
    let text = run("ethtool", &["-S", interface])?;
    let mut sum = None;
    for line in text.lines() {
        let Some((name, value)) = line.trim().split_once(": ") else { continue };
        let queue = name.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(suffix));
        if queue.is_some_and(|queue| queue.bytes().all(|c| c.is_ascii_digit())) {
            *sum.get_or_insert(0) += value.trim().parse::<u64>()?;
        }
    }
    sum.with_context(|| format!("{interface} has no counters {prefix}N{suffix}: is it a veth?"))
}
