//! The guard: while it stands the kernel carries nothing between the protected and the unprotected side, and
//! shows no protected address outside, whether or not Spindle runs.
//!
//! It is two nftables tables named after the gateway, installed in one transaction before anything else and left
//! in place by a stop or a crash, and a few sysctls. Packets that the dataplane sends through AF_XDP don't pass
//! it; packets for the host (IKE, ARP, ND) do. Where a packet could show an address, in order:
//!
//! * *prerouting*: what is not for an address of the very interface it came in by ends here. The forward hook alone
//!   would be too late: a packet whose TTL is used up, or without a route, is answered by an ICMP error that quotes
//!   it before that hook. The same rule keeps the host from answering for its other side's addresses. From outside,
//!   a source in clear that is protected or routed inside is a forgery: an answer would name it, or come to it.
//! * *forward*: nothing, in either direction, nor between one of the two sides and a third interface.
//! * *input*: no ESP. It is the dataplane's; while that is away the kernel would answer that it knows no such protocol.
//! * *postrouting*, before any NAT: only sources that are addresses of the outside interface leave by it, nothing
//!   from or to a selector's address, and no ICMP error that quotes one. Nor one that tells of an unreachable protocol
//!   or port: what is down for a moment is none.
//! * *arp output*: no request or answer with a protected address in either field; but for who of these is to be reached in
//!   clear, by a policy that stands before what protects the others, is asked. What passes in clear the dataplane
//!   forwards, both ways, so nothing else here makes room for it. IPv6's neighbour discovery is ICMPv6: in *postrouting*
//!   the same holds for it.
//!
//! With virtual interfaces the host itself is on the protected side: it forwards between them and its own networks, never
//! to or from the outside; and from outside IKE alone, and neighbour discovery, may come from where a route leads into a
//! tunnel.
//!
//! Where a side is a VLAN, all of this holds for its device, to which the kernel gives frames with the tag, and for the
//! interface below it, whose frames without the tag are of another network.
//!
//! A selector that holds an outer address (such as 0.0.0.0/0) cannot be forbidden by itself, or IKE would be cut
//! off; packets of such pairs are forbidden from `local_ts` to `remote_ts` and back, IKE excepted.

use crate::config::{Inside, Settings};
use spindle_abi::{AddressRange, PolicyAction};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Why the guard could not be set or opened: the machine's or the operator's fault; each says the fix.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// No `nft`.
    #[error(
        "the command nft is missing, and without its rules the kernel could forward cleartext; install the package nftables"
    )]
    NoNft,
    /// `nft` refused.
    #[error("nft refused the guard: {0}; run as root on a kernel with nf_tables (inet, arp and fib)")]
    Refused(String),
    /// A sysctl could not be set.
    #[error("{path} must be {value} and cannot be set: {error}; set it yourself, or make /proc/sys writable")]
    Sysctl {
        /// Its file.
        path: String,
        /// The value wanted.
        value: &'static str,
        /// Why not.
        error: std::io::Error,
    },
    /// The values to restore could not be kept.
    #[error("{path} cannot be written: {error}; make run_dir writable")]
    Keep {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
}

/// Outside: answer ARP only for the interface's own addresses and name no others in requests (arp_ignore,
/// arp_announce); neither send nor believe redirects; no source routes; stand in for nobody.
const OUTSIDE_SYSCTLS: &[(&str, &str, &str)] = &[
    ("ipv4", "arp_ignore", "1"),
    ("ipv4", "arp_announce", "2"),
    ("ipv4", "send_redirects", "0"),
    ("ipv4", "accept_redirects", "0"),
    ("ipv4", "accept_source_route", "0"),
    ("ipv4", "proxy_arp", "0"),
    ("ipv6", "accept_redirects", "0"),
    ("ipv6", "proxy_ndp", "0"),
];
/// Inside: a source that is routed outside is a forgery (rp_filter).
const INSIDE_SYSCTLS: &[(&str, &str, &str)] =
    &[("ipv4", "rp_filter", "1"), ("ipv4", "send_redirects", "0"), ("ipv4", "accept_source_route", "0")];

/// Outside, where the host's routes may lead into a tunnel: what comes from there is none the less (rp_filter, loosely).
const HOST_SYSCTLS: &[(&str, &str, &str)] = &[("ipv4", "rp_filter", "2")];

/// The guard of one gateway.
#[derive(Clone, Debug)]
pub struct Guard {
    table: String,
    /// The interface of the protected side, if it has one of its own, and its VLAN's device.
    inside: Vec<String>,
    /// TUN devices, by which the host itself is on that side.
    devices: Vec<String>,
    /// The interface of the unprotected side, and its VLAN's device.
    outside: Vec<String>,
    ports: [u16; 2],
    /// IPv4's and IPv6's.
    protected: [Protected; 2],
    kept: PathBuf,
}

/// What is protected of one IP version, and what goes outside by itself.
#[derive(Clone, Debug)]
struct Protected {
    version: &'static Version,
    locals: Vec<IpAddr>,
    /// None if one may be anywhere.
    peers: Option<Vec<IpAddr>>,
    narrow: Vec<Range>,
    wide: Option<[Vec<Range>; 2]>,
    /// Behind peers, where the host itself is to reach that through tunnels alone.
    own_wide: Vec<Range>,
    /// Protected addresses between which and us policies let packets by in clear.
    in_clear: Vec<Range>,
}

/// First and last address, as numbers.
type Range = (u128, u128);

/// How nft calls things of one IP version, and where an ICMP error of it has the quoted addresses: its quote begins 8
/// octets into it (RFC 792, RFC 4443).
#[derive(Debug)]
struct Version {
    is_ipv4: bool,
    header: &'static str,
    errors: &'static str,
    /// Bit offsets in the ICMP message, and bits, of the quoted source and destination.
    quoted: [&'static str; 2],
    show: fn(u128) -> String,
    number: fn(u128) -> String,
}

const VERSIONS: [&Version; 2] = [
    &Version {
        is_ipv4: true,
        header: "ip",
        errors: "icmp type { destination-unreachable, source-quench, redirect, time-exceeded, parameter-problem }",
        quoted: ["@th,160,32", "@th,192,32"],
        show: |n| Ipv4Addr::from(n as u32).to_string(),
        number: |n| format!("{n:#010x}"),
    },
    &Version {
        is_ipv4: false,
        header: "ip6",
        errors: "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem }",
        quoted: ["@th,128,128", "@th,256,128"],
        show: |n| Ipv6Addr::from(n).to_string(),
        number: |n| format!("{n:#034x}"),
    },
];

impl Guard {
    /// The guard that this configuration needs.
    pub fn new(settings: &Settings) -> Guard {
        let locals = settings.local_addresses();
        let peers: BTreeSet<IpAddr> = settings
            .connections
            .iter()
            .flat_map(|c| c.remote.iter().chain(&c.redirect_to).copied())
            .collect();
        let outer: BTreeSet<IpAddr> = locals.iter().chain(&peers).copied().collect();
        let is_wide = |r: &AddressRange| r.start <= r.end && outer.range(r.start..=r.end).next().is_some();
        let (local, remote) = settings.protected_ranges();
        let bypass = settings.policies.iter().filter(|policy| policy.action == PolicyAction::Bypass);
        let bypass = bypass.flat_map(|policy| &policy.selectors.remote).map(|s| &s.addresses);
        // It stands before what protects them, or it would never be asked.
        let in_clear: Vec<&AddressRange> =
            bypass.filter(|r| remote.iter().any(|protected| protected.holds(r))).collect();
        // Where routes alone choose a tunnel, it is they that must not be wrong.
        let by_address = settings.by_address();
        let from: Vec<_> = by_address.iter().flat_map(|(_, set)| &set.local).map(|s| s.addresses).collect();
        let to: Vec<_> = by_address.iter().flat_map(|(_, set)| &set.remote).map(|s| s.addresses).collect();
        let inside = settings.gateway.inside_devices();
        let of = |version: &'static Version| {
            let mine = |r: &&AddressRange| r.start.is_ipv4() == version.is_ipv4;
            let is_of = |a: &IpAddr| a.is_ipv4() == version.is_ipv4;
            let (from, to) = (from.iter().filter(mine), to.iter().filter(mine));
            let any_wide = from.clone().chain(to.clone()).any(is_wide);
            let known = settings.connections.iter().filter(|c| is_of(&c.local)).all(|c| c.remote.is_some());
            Protected {
                version,
                locals: locals.iter().copied().filter(is_of).collect(),
                peers: known.then(|| peers.iter().copied().filter(is_of).collect()),
                narrow: merge(local.iter().chain(&remote).filter(mine).filter(|r| !is_wide(r))),
                wide: any_wide.then(|| [merge(from), merge(to.clone())]),
                own_wide: match settings.gateway.inside {
                    Inside::Host(_) => merge(to.filter(|r| is_wide(r))),
                    Inside::Interface(_) => Vec::new(),
                },
                in_clear: merge(in_clear.iter().copied().filter(mine)),
            }
        };
        Guard {
            table: format!("spindle-{}", settings.gateway.name),
            devices: settings.devices().into_iter().map(|device| device.name).collect(),
            outside: settings.gateway.outside_devices(),
            ports: [settings.gateway.ike_port, settings.gateway.natt_port],
            protected: VERSIONS.map(of),
            inside,
            kept: settings.gateway.run_dir.join("guard-sysctls.json"),
        }
    }

    /// What `nft -f -` is told: one transaction that replaces an earlier guard of this gateway.
    pub fn ruleset(&self) -> String {
        let table = &self.table;
        let sides = names(self.inside.iter().chain(&self.outside));
        let behind = names(self.inside.iter().chain(&self.devices));
        let outside = &match &self.outside[..] {
            [one] => format!("\"{one}\""),
            all => names(all.iter()),
        };
        let mut text = format!(
            "table inet {table}\ndelete table inet {table}\ntable arp {table}\ndelete table arp {table}\n\
             table inet {table} {{\n\
             \tchain prerouting {{\n\t\ttype filter hook prerouting priority -310; policy accept;\n\
             \t\tiifname {sides} fib daddr . iif type != {{ local, broadcast, multicast }} drop\n"
        );
        // Writing to a String cannot fail.
        for protected in &self.protected {
            if let Some(narrow) = protected.narrow() {
                let header = protected.version.header;
                let _ = writeln!(text, "\t\tiifname {outside} {header} saddr {narrow} drop");
            }
        }
        if !self.devices.is_empty() {
            for protected in &self.protected {
                protected.write_peers(outside, self.ports, &mut text);
            }
        }
        let _ = writeln!(text, "\t\tiifname {outside} fib saddr oifname {behind} drop");
        let _ = write!(
            text,
            "\t}}\n\tchain forward {{\n\t\ttype filter hook forward priority -310; policy accept;\n\
             \t\tiifname {sides} drop\n\t\toifname {sides} drop\n\t}}\n\
             \tchain input {{\n\t\ttype filter hook input priority -310; policy accept;\n\
             \t\tiifname {outside} meta l4proto esp drop\n\t}}\n\
             \tchain postrouting {{\n\t\ttype filter hook postrouting priority -310; policy accept;\n\
             \t\toifname != {outside} accept\n\
             \t\ticmp type destination-unreachable icmp code {{ prot-unreachable, port-unreachable }} drop\n\
             \t\ticmpv6 type destination-unreachable icmpv6 code port-unreachable drop\n\
             \t\ticmpv6 type parameter-problem icmpv6 code 1 drop\n"
        );
        for protected in &self.protected {
            protected.write_sources(&mut text);
        }
        for protected in &self.protected {
            protected.write_addresses(self.ports, &mut text);
        }
        text.push_str("\t}\n}\n");
        let _ = write!(
            text,
            "table arp {table} {{\n\tchain output {{\n\t\ttype filter hook output priority 0; policy accept;\n"
        );
        let [protected, _] = &self.protected;
        if let Some(narrow) = protected.narrow() {
            let _ = writeln!(text, "\t\toifname {outside} arp saddr ip {narrow} drop");
            if !protected.in_clear.is_empty() {
                let asked = set(&protected.in_clear, protected.version.show);
                let _ = writeln!(text, "\t\toifname {outside} arp daddr ip {asked} accept");
            }
            let _ = writeln!(text, "\t\toifname {outside} arp daddr ip {narrow} drop");
        }
        text.push_str("\t}\n}\n");
        text
    }

    /// Sets the guard, or replaces an earlier one without a gap.
    pub fn close(&self) -> Result<(), GuardError> {
        nft(&self.ruleset())?;
        self.keep_sysctls()?;
        for (path, value) in self.sysctls() {
            set_sysctl(&path, value)?;
        }
        Ok(())
    }

    /// Takes the guard away: the operator's decision alone. Restores the sysctls that [`Guard::close`] found.
    pub fn open(&self) -> Result<(), GuardError> {
        let table = &self.table;
        // Declared first, so that deleting succeeds where there is none.
        nft(&format!(
            "table inet {table}\ndelete table inet {table}\ntable arp {table}\ndelete table arp {table}\n"
        ))?;
        let kept: BTreeMap<String, String> =
            std::fs::read(&self.kept).ok().and_then(|b| serde_json::from_slice(&b).ok()).unwrap_or_default();
        for (path, _) in self.sysctls() {
            if let Some(value) = kept.get(&path) {
                // An interface that is gone took its sysctls along.
                let _ = std::fs::write(&path, value);
            }
        }
        let _ = std::fs::remove_file(&self.kept);
        Ok(())
    }

    fn sysctls(&self) -> impl Iterator<Item = (String, &'static str)> {
        let of = |interface: &str, list: &'static [(&str, &str, &'static str)]| {
            let interface = interface.to_owned();
            list.iter().map(move |(family, key, value)| {
                (format!("/proc/sys/net/{family}/conf/{interface}/{key}"), *value)
            })
        };
        let of_host = if self.devices.is_empty() { &[] } else { HOST_SYSCTLS };
        let outside = self.outside.iter();
        outside
            .flat_map(move |outside| of(outside, OUTSIDE_SYSCTLS).chain(of(outside, of_host)))
            .chain(self.inside.iter().flat_map(move |inside| of(inside, INSIDE_SYSCTLS)))
            // A kernel without IPv6 has none of its files, and an interface may come later: `up` sees to that.
            .filter(|(path, _)| Path::new(path).exists())
    }

    /// Notes the values found, unless a guard of before has noted them.
    fn keep_sysctls(&self) -> Result<(), GuardError> {
        if self.kept.exists() {
            return Ok(());
        }
        let found: BTreeMap<String, String> = self
            .sysctls()
            .filter_map(|(path, _)| Some((path.clone(), std::fs::read_to_string(path).ok()?.trim().into())))
            .collect();
        let text = serde_json::to_vec(&found).unwrap_or_default();
        // Whole or not at all: half of it would be kept for good, and nothing restored from it.
        let new = self.kept.with_extension("new");
        std::fs::write(&new, text)
            .and_then(|()| std::fs::rename(&new, &self.kept))
            .map_err(|error| GuardError::Keep { path: self.kept.clone(), error })
    }
}

fn set_sysctl(path: &str, value: &'static str) -> Result<(), GuardError> {
    if std::fs::read_to_string(path).is_ok_and(|found| found.trim() == value) {
        return Ok(());
    }
    std::fs::write(path, value).map_err(|error| GuardError::Sysctl { path: path.into(), value, error })
}

fn nft(input: &str) -> Result<(), GuardError> {
    let refused = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => GuardError::NoNft,
        _ => GuardError::Refused(e.to_string()),
    };
    let spawn = |program: &str| {
        Command::new(program)
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
    };
    // A service's PATH may lack the sbin directories.
    let mut child = spawn("nft").or_else(|_| spawn("/usr/sbin/nft")).map_err(refused)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).map_err(refused)?;
    }
    let output = child.wait_with_output().map_err(refused)?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(GuardError::Refused(stderr.lines().next().unwrap_or("without saying why").trim().into()))
}

impl Protected {
    /// The narrow ranges as a set of addresses, if there are any.
    fn narrow(&self) -> Option<String> {
        (!self.narrow.is_empty()).then(|| set(&self.narrow, self.version.show))
    }

    /// Peers themselves may be where a route leads into a tunnel, and so may neighbours.
    fn write_peers(&self, outside: &str, [ike, natt]: [u16; 2], text: &mut String) {
        let Version { is_ipv4, header, .. } = self.version;
        if !is_ipv4 {
            let _ = writeln!(
                text,
                "\t\tiifname {outside} icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept"
            );
        }
        let from = match &self.peers {
            None => format!("meta nfproto {}", if *is_ipv4 { "ipv4" } else { "ipv6" }),
            Some(peers) if peers.is_empty() => return,
            Some(peers) => format!("{header} saddr {}", list(peers)),
        };
        let _ = writeln!(text, "\t\tiifname {outside} {from} udp dport {{ {ike}, {natt} }} accept");
    }

    /// Only what is from an address of the outside interface may leave by it. IPv6's duplicate address detection is from
    /// none (RFC 4862 section 5.4.2).
    fn write_sources(&self, text: &mut String) {
        let header = self.version.header;
        let but = if self.version.is_ipv4 { "" } else { " ip6 saddr != ::" };
        let locals = (!self.locals.is_empty()).then(|| format!(" {header} saddr != {}", list(&self.locals)));
        let _ = writeln!(
            text,
            "\t\tmeta nfproto {}{but}{} fib saddr . oif type != local drop",
            if self.version.is_ipv4 { "ipv4" } else { "ipv6" },
            locals.unwrap_or_default(),
        );
    }

    /// Nothing leaves from or to a protected address, nor names one.
    fn write_addresses(&self, [ike, natt]: [u16; 2], text: &mut String) {
        let Version { header, errors, quoted: [source, destination], show, number, .. } = self.version;
        if !self.version.is_ipv4 && !self.in_clear.is_empty() {
            let asked = set(&self.in_clear, number);
            let _ = writeln!(text, "\t\ticmpv6 type nd-neighbor-solicit @th,64,128 {asked} accept");
        }
        if let Some(narrow) = self.narrow() {
            let numbers = set(&self.narrow, number);
            let _ = write!(
                text,
                "\t\t{header} saddr {narrow} drop\n\t\t{header} daddr {narrow} drop\n\
                 \t\t{errors} {source} {numbers} drop\n\t\t{errors} {destination} {numbers} drop\n"
            );
            if !self.version.is_ipv4 {
                // The target stands 8 octets into the message, a redirect's destination 24 (RFC 4861 sections 4.3 to 4.5).
                let _ = write!(
                    text,
                    "\t\ticmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, nd-redirect }} @th,64,128 {numbers} drop\n\
                     \t\ticmpv6 type nd-redirect @th,192,128 {numbers} drop\n"
                );
            }
        }
        if let Some([local, remote]) = &self.wide {
            let (local, remote) = (set(local, show), set(remote, show));
            if !self.locals.is_empty() {
                let locals = list(&self.locals);
                let _ = writeln!(text, "\t\t{header} saddr {locals} udp sport {{ {ike}, {natt} }} accept");
            }
            if !self.version.is_ipv4 {
                let _ =
                    writeln!(text, "\t\ticmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept");
            }
            let _ = write!(
                text,
                "\t\t{header} saddr {local} {header} daddr {remote} drop\n\
                 \t\t{header} saddr {remote} {header} daddr {local} drop\n"
            );
        }
        if !self.own_wide.is_empty() {
            // IKE and neighbour discovery are let by above.
            let _ = writeln!(text, "\t\t{header} daddr {} drop", set(&self.own_wide, show));
        }
    }
}

/// Sorted, overlapping and adjacent ones made one: nft refuses sets whose intervals overlap. All are of one version.
fn merge<'a>(ranges: impl Iterator<Item = &'a AddressRange>) -> Vec<Range> {
    let number = |address: IpAddr| match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    };
    let mut sorted: Vec<Range> = ranges.map(|r| (number(r.start), number(r.end))).collect();
    sorted.sort_unstable();
    let mut merged: Vec<Range> = Vec::new();
    for (start, end) in sorted {
        match merged.last_mut() {
            Some(last) if start <= last.1.saturating_add(1) => last.1 = last.1.max(end),
            _ => merged.push((start, end)),
        }
    }
    merged
}

/// Interfaces, as a set of nft's.
fn names<'a>(interfaces: impl Iterator<Item = &'a String>) -> String {
    let names: Vec<String> = interfaces.map(|name| format!("\"{name}\"")).collect();
    format!("{{ {} }}", names.join(", "))
}

fn list(addresses: &[IpAddr]) -> String {
    let addresses: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
    format!("{{ {} }}", addresses.join(", "))
}

/// As nft writes sets.
fn set(ranges: &[Range], show: impl Fn(u128) -> String) -> String {
    let elements: Vec<String> = ranges
        .iter()
        .map(
            |(start, end)| {
                if start == end { show(*start) } else { format!("{}-{}", show(*start), show(*end)) }
            },
        )
        .collect();
    format!("{{ {} }}", elements.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(local_ts: &str, remote_ts: &str) -> Guard {
        guard_between(["192.0.2.2", "192.0.2.1"], local_ts, remote_ts)
    }

    fn guard_between([local, remote]: [&str; 2], local_ts: &str, remote_ts: &str) -> Guard {
        let source = format!(
            "[gateway]\nname='b'\ninside=['b-in']\noutside=['b-out']\n[connections.c]\n\
             local={{address='{local}',psk='k'}}\nremote={{address='{remote}'}}\n\
             [connections.c.children.n]\nlocal_ts={local_ts}\nremote_ts={remote_ts}\n"
        );
        Guard::new(&Settings::parse(Path::new("b.toml"), &source).unwrap())
    }

    #[test]
    fn overlapping_and_adjacent_ranges_become_one() {
        let g = guard("['10.2.0.0/24', '10.2.1.0/24', '10.2.0.128/25']", "['10.1.0.7']");
        assert_eq!(g.protected[0].narrow().unwrap(), "{ 10.1.0.7, 10.2.0.0-10.2.1.255 }");
        assert_eq!(set(&g.protected[0].narrow, VERSIONS[0].number), "{ 0x0a010007, 0x0a020000-0x0a0201ff }");
    }

    #[test]
    fn a_selector_that_holds_an_outer_address_forbids_pairs_and_leaves_ike() {
        let g = guard("['10.2.0.0/24']", "['0.0.0.0/0']");
        assert_eq!(g.protected[0].narrow, [(0x0a02_0000, 0x0a02_00ff)]);
        let rules = g.ruleset();
        let ike = rules.find("ip saddr { 192.0.2.2 } udp sport { 500, 4500 } accept").unwrap();
        let pair =
            rules.find("ip saddr { 10.2.0.0-10.2.0.255 } ip daddr { 0.0.0.0-255.255.255.255 } drop").unwrap();
        assert!(ike < pair);
        assert!(rules.find("ip daddr { 10.2.0.0-10.2.0.255 } drop").unwrap() < ike);
    }

    /// Who is reached in clear among protected addresses must be found on the link; the others are named to nobody.
    #[test]
    fn arp_asks_for_those_alone_whom_a_policy_bypasses() {
        let policies =
            "[policies.p]\nmode='pass'\nlocal_ts=['10.2.0.0/24']\nremote_ts=['10.1.0.9', '203.0.113.0/24']\n";
        let source = format!(
            "[gateway]\nname='b'\ninside=['b-in']\noutside=['b-out']\n{policies}[connections.c]\n\
             local={{address='192.0.2.2',psk='k'}}\nremote={{address='192.0.2.1'}}\n\
             [connections.c.children.n]\nlocal_ts=['10.2.0.0/24']\nremote_ts=['10.1.0.0/24']\n"
        );
        let rules = Guard::new(&Settings::parse(Path::new("b.toml"), &source).unwrap()).ruleset();
        let source = rules.find("arp saddr ip { 10.1.0.0-10.1.0.255, 10.2.0.0-10.2.0.255 } drop").unwrap();
        let asked = rules.find("arp daddr ip { 10.1.0.9 } accept").unwrap();
        let others = rules.find("arp daddr ip { 10.1.0.0-10.1.0.255, 10.2.0.0-10.2.0.255 } drop").unwrap();
        assert!(source < asked && asked < others);
        assert!(!guard("['10.2.0.0/24']", "['10.1.0.0/24']").ruleset().contains("accept\n\t\toifname"));
    }

    /// RFC 4861 sections 4.3 to 4.5, RFC 4443 section 2.4 c.
    #[test]
    fn protected_ipv6_addresses_are_forbidden_in_headers_quotes_and_neighbour_discovery() {
        let rules = guard("['10.2.0.0/24', '2001:db8:2::/64']", "['10.1.0.0/24', '2001:db8:1::7']").ruleset();
        let narrow = "{ 2001:db8:1::7, 2001:db8:2::-2001:db8:2:0:ffff:ffff:ffff:ffff }";
        let numbers = "{ 0x20010db8000100000000000000000007, \
                       0x20010db8000200000000000000000000-0x20010db800020000ffffffffffffffff }";
        for rule in [
            format!("iifname \"b-out\" ip6 saddr {narrow} drop"),
            format!("\t\tip6 saddr {narrow} drop"),
            format!("\t\tip6 daddr {narrow} drop"),
            format!("parameter-problem }} @th,128,128 {numbers} drop"),
            format!("parameter-problem }} @th,256,128 {numbers} drop"),
            format!("nd-redirect }} @th,64,128 {numbers} drop"),
            "meta nfproto ipv6 ip6 saddr != :: fib saddr . oif type != local drop".into(),
        ] {
            assert!(rules.contains(&rule), "{rule}\n{rules}");
        }
        assert!(!rules.contains("arp saddr ip { 2001"));
    }

    #[test]
    fn a_selector_that_holds_an_outer_ipv6_address_leaves_ike_and_neighbour_discovery() {
        let rules =
            guard_between(["2001:db8::2", "2001:db8::1"], "['2001:db8:2::/64']", "['::/0']").ruleset();
        let [narrow, ike, discovery, pair] = [
            "ip6 daddr { 2001:db8:2::-2001:db8:2:0:ffff:ffff:ffff:ffff } drop",
            "ip6 saddr { 2001:db8::2 } udp sport { 500, 4500 } accept",
            "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept",
            "ip6 saddr { 2001:db8:2::-2001:db8:2:0:ffff:ffff:ffff:ffff } ip6 daddr { ::-ffff:",
        ]
        .map(|rule| rules.find(rule).unwrap_or_else(|| panic!("{rule}\n{rules}")));
        assert!(narrow < ike && ike < discovery && discovery < pair);
        assert!(!rules.contains("ip saddr {"), "no IPv4 here");
    }

    /// Per IP version: who may send IKE though routes lead to him through a tunnel, and what of a wide selector the host
    /// itself may not send in clear.
    #[test]
    fn a_host_as_the_inside_hears_ike_of_peers_and_sends_nothing_in_clear() {
        let rules = |remote: &str, child: &str| {
            let source = format!(
                "[gateway]\nname='b'\ninside='tun'\noutside=['b-out']\n[connections.c4]\n\
                 local={{address='192.0.2.2',psk='k'}}\nremote={{{remote}}}\n\
                 [connections.c4.children.n]\nlocal_ts=['10.2.0.1']\nremote_ts=['0.0.0.0/0']\n{child}\n\
                 [connections.c6]\nlocal={{address='2001:db8::2',psk='k'}}\nremote={{address='2001:db8::1'}}\n\
                 [connections.c6.children.n]\nlocal_ts=['2001:db8:2::1']\nremote_ts=['::/0']\n"
            );
            Guard::new(&Settings::parse(Path::new("b.toml"), &source).unwrap()).ruleset()
        };
        let known = rules("address='192.0.2.1'", "");
        let ike = "udp dport { 500, 4500 } accept";
        let in_order = |all: &[String]| {
            let places = all.iter().map(|rule| known.find(rule).unwrap_or_else(|| panic!("{rule}\n{known}")));
            assert!(places.is_sorted(), "{all:?}\n{known}");
        };
        for (header, own, peer, local, all) in [
            ("ip", "192.0.2.2", "192.0.2.1", "10.2.0.1", "0.0.0.0-255.255.255.255"),
            (
                "ip6",
                "2001:db8::2",
                "2001:db8::1",
                "2001:db8:2::1",
                "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            ),
        ] {
            in_order(&[
                format!("\t\tiifname \"b-out\" {header} saddr {{ {local} }} drop\n"),
                format!("\t\tiifname \"b-out\" {header} saddr {{ {peer} }} {ike}\n"),
                "\t\tiifname \"b-out\" fib saddr oifname { \"spindle0\" } drop\n".into(),
                format!("\t\t{header} saddr {{ {own} }} udp sport {{ 500, 4500 }} accept\n"),
                format!("\t\t{header} saddr {{ {local} }} {header} daddr {{ {all} }} drop\n"),
                format!("\t\t{header} daddr {{ {all} }} drop\n"),
            ]);
        }
        assert!(known.contains("\t\tiifname { \"b-out\" } drop\n"));
        in_order(&[
            "\t\tiifname \"b-out\" icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept\n".into(),
            "fib saddr oifname".into(),
        ]);

        // A peer that may be anywhere, of its IP version; and a child that routes alone choose.
        let any = rules("address='%any',id='a'", "interface='ipsec0'");
        assert!(any.contains(&format!("\t\tiifname \"b-out\" meta nfproto ipv4 {ike}\n")), "{any}");
        assert!(any.contains(&format!("\t\tiifname \"b-out\" ip6 saddr {{ 2001:db8::1 }} {ike}\n")), "{any}");
        assert!(any.contains("fib saddr oifname { \"spindle0\", \"ipsec0\" } drop\n"), "{any}");
        assert!(!any.contains("\t\tip daddr { 0.0.0.0-255.255.255.255 } drop\n"), "{any}");
        assert!(any.contains("\t\tip6 daddr { ::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff } drop\n"), "{any}");
    }

    #[test]
    fn of_a_vlan_the_device_and_the_interface_below_it_are_guarded() {
        let source = "[gateway]\nname='b'\ninside=['b-in']\noutside=['b-out']\ninside_vlan=200\n\
                      outside_vlan={id=100,device='uplink'}\n[connections.c]\n\
                      local={address='192.0.2.2',psk='k'}\nremote={address='192.0.2.1'}\n\
                      [connections.c.children.n]\nlocal_ts=['10.2.0.0/24']\nremote_ts=['10.1.0.0/24']\n";
        let guard = Guard::new(&Settings::parse(Path::new("b.toml"), source).unwrap());
        let rules = guard.ruleset();
        let (sides, outside) =
            ("{ \"b-in\", \"b-in.200\", \"b-out\", \"uplink\" }", "{ \"b-out\", \"uplink\" }");
        for rule in [
            format!("iifname {sides} fib daddr . iif type !="),
            format!("iifname {sides} drop\n\t\toifname {sides} drop\n"),
            format!("iifname {outside} meta l4proto esp drop"),
            format!("iifname {outside} fib saddr oifname {{ \"b-in\", \"b-in.200\" }} drop"),
            format!("oifname != {outside} accept"),
            format!("oifname {outside} arp daddr ip"),
        ] {
            assert!(rules.contains(&rule), "{rule}\n{rules}");
        }
        assert!(!rules.contains("\"b-out\" "), "never without the other one: {rules}");
    }

    #[test]
    fn the_rules_are_one_transaction_that_replaces_the_earlier_ones() {
        let rules = guard("['10.2.0.0/24']", "['10.1.0.0/24']").ruleset();
        assert!(rules.starts_with("table inet spindle-b\ndelete table inet spindle-b\n"));
        assert!(!rules.contains("udp sport"), "no wide selector, so no exception");
    }
}
