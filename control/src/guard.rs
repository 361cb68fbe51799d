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
//!   forwards, both ways, so nothing else here makes room for it.
//!
//! A selector that holds an outer address (such as 0.0.0.0/0) cannot be forbidden by itself, or IKE would be cut
//! off; packets of such pairs are forbidden from `local_ts` to `remote_ts` and back, IKE excepted.

use crate::config::Settings;
use spindle_abi::{AddressRange, PolicyAction};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
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

/// The guard of one gateway.
#[derive(Clone, Debug)]
pub struct Guard {
    table: String,
    inside: String,
    outside: String,
    locals: Vec<IpAddr>,
    ports: [u16; 2],
    narrow: Vec<(u32, u32)>,
    wide: Option<[Vec<(u32, u32)>; 2]>,
    /// Protected addresses between which and us policies let packets by in clear.
    in_clear: Vec<(u32, u32)>,
    kept: PathBuf,
}

impl Guard {
    /// The guard that this configuration needs.
    pub fn new(settings: &Settings) -> Guard {
        let locals = settings.local_addresses();
        let remotes =
            settings.connections.iter().flat_map(|c| c.remote.iter().chain(&c.redirect_to).copied());
        let outer: BTreeSet<IpAddr> = locals.iter().copied().chain(remotes).collect();
        let (local, remote) = settings.protected_ranges();
        let is_wide = |r: &AddressRange| r.start <= r.end && outer.range(r.start..=r.end).next().is_some();
        let any_wide = local.iter().chain(&remote).any(is_wide);
        let narrow = local.iter().chain(&remote).filter(|r| !is_wide(r));
        let bypass = settings.policies.iter().filter(|policy| policy.action == PolicyAction::Bypass);
        let bypass = bypass.flat_map(|policy| &policy.selectors.remote).map(|s| &s.addresses);
        // It stands before what protects them, or it would never be asked.
        let in_clear = bypass.filter(|r| remote.iter().any(|protected| protected.holds(r)));
        Guard {
            table: format!("spindle-{}", settings.gateway.name),
            inside: settings.gateway.inside.clone(),
            outside: settings.gateway.outside.clone(),
            ports: [settings.gateway.ike_port, settings.gateway.natt_port],
            narrow: merge(narrow),
            in_clear: merge(in_clear),
            wide: any_wide.then(|| [merge(local.iter()), merge(remote.iter())]),
            locals,
            kept: settings.gateway.run_dir.join("guard-sysctls.json"),
        }
    }

    /// What `nft -f -` is told: one transaction that replaces an earlier guard of this gateway.
    pub fn ruleset(&self) -> String {
        let Guard { table, inside, outside, .. } = self;
        let mut text = format!(
            "table inet {table}\ndelete table inet {table}\ntable arp {table}\ndelete table arp {table}\n\
             table inet {table} {{\n\
             \tchain prerouting {{\n\t\ttype filter hook prerouting priority -310; policy accept;\n\
             \t\tiifname {{ \"{inside}\", \"{outside}\" }} fib daddr . iif type != {{ local, broadcast, multicast }} drop\n\
             \t\tiifname \"{outside}\" fib saddr oifname \"{inside}\" drop\n"
        );
        let narrow = (!self.narrow.is_empty()).then(|| addresses(&self.narrow));
        // Writing to a String cannot fail.
        if let Some(narrow) = &narrow {
            let _ = writeln!(text, "\t\tiifname \"{outside}\" ip saddr {narrow} drop");
        }
        let _ = write!(
            text,
            "\t}}\n\tchain forward {{\n\t\ttype filter hook forward priority -310; policy accept;\n\
             \t\tiifname {{ \"{inside}\", \"{outside}\" }} drop\n\t\toifname {{ \"{inside}\", \"{outside}\" }} drop\n\t}}\n\
             \tchain input {{\n\t\ttype filter hook input priority -310; policy accept;\n\
             \t\tiifname \"{outside}\" meta l4proto esp drop\n\t}}\n\
             \tchain postrouting {{\n\t\ttype filter hook postrouting priority -310; policy accept;\n\
             \t\toifname != \"{outside}\" accept\n\
             \t\ticmp type destination-unreachable icmp code {{ prot-unreachable, port-unreachable }} drop\n\
             \t\ticmpv6 type destination-unreachable icmpv6 code port-unreachable drop\n\
             \t\ticmpv6 type parameter-problem icmpv6 code 1 drop\n"
        );
        let locals: Vec<String> = self.locals.iter().map(IpAddr::to_string).collect();
        let locals = format!("{{ {} }}", locals.join(", "));
        let _ = writeln!(
            text,
            "\t\tmeta nfproto ipv4 ip saddr != {locals} fib saddr . oif type != local drop\n\
             \t\tip6 saddr != :: fib saddr . oif type != local drop"
        );
        if let Some(narrow) = &narrow {
            // An ICMP error's quote begins 8 octets into it (RFC 792): the quoted source is 12 octets further.
            let quoted = numbers(&self.narrow);
            let errors = "icmp type { destination-unreachable, source-quench, redirect, time-exceeded, parameter-problem }";
            let _ = write!(
                text,
                "\t\tip saddr {narrow} drop\n\t\tip daddr {narrow} drop\n\
                 \t\t{errors} @th,160,32 {quoted} drop\n\t\t{errors} @th,192,32 {quoted} drop\n"
            );
        }
        if let Some([local, remote]) = &self.wide {
            let (local, remote) = (addresses(local), addresses(remote));
            let [ike, natt] = self.ports;
            let _ = write!(
                text,
                "\t\tip saddr {locals} udp sport {{ {ike}, {natt} }} accept\n\
                 \t\tip saddr {local} ip daddr {remote} drop\n\t\tip saddr {remote} ip daddr {local} drop\n"
            );
        }
        text.push_str("\t}\n}\n");
        let _ = write!(
            text,
            "table arp {table} {{\n\tchain output {{\n\t\ttype filter hook output priority 0; policy accept;\n"
        );
        if let Some(narrow) = &narrow {
            let _ = writeln!(text, "\t\toifname \"{outside}\" arp saddr ip {narrow} drop");
            if !self.in_clear.is_empty() {
                let asked = addresses(&self.in_clear);
                let _ = writeln!(text, "\t\toifname \"{outside}\" arp daddr ip {asked} accept");
            }
            let _ = writeln!(text, "\t\toifname \"{outside}\" arp daddr ip {narrow} drop");
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
        of(&self.outside, OUTSIDE_SYSCTLS)
            .chain(of(&self.inside, INSIDE_SYSCTLS))
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

/// Sorted, overlapping and adjacent ones made one: nft refuses sets whose intervals overlap.
fn merge<'a>(ranges: impl Iterator<Item = &'a AddressRange>) -> Vec<(u32, u32)> {
    let mut sorted: Vec<(u32, u32)> = ranges
        .filter_map(|r| match (r.start, r.end) {
            (IpAddr::V4(start), IpAddr::V4(end)) => Some((start.into(), end.into())),
            _ => None,
        })
        .collect();
    sorted.sort_unstable();
    let mut merged: Vec<(u32, u32)> = Vec::new();
    for (start, end) in sorted {
        match merged.last_mut() {
            Some(last) if start <= last.1.saturating_add(1) => last.1 = last.1.max(end),
            _ => merged.push((start, end)),
        }
    }
    merged
}

/// As a set of addresses.
fn addresses(ranges: &[(u32, u32)]) -> String {
    set(ranges, |n| Ipv4Addr::from(n).to_string())
}

/// The same as a set of integers, for raw payload.
fn numbers(ranges: &[(u32, u32)]) -> String {
    set(ranges, |n| format!("{n:#010x}"))
}

fn set(ranges: &[(u32, u32)], show: impl Fn(u32) -> String) -> String {
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
        let source = format!(
            "[gateway]\nname='b'\ninside=['b-in']\noutside=['b-out']\n[connections.c]\n\
             local={{address='192.0.2.2',psk='k'}}\nremote={{address='192.0.2.1'}}\n\
             [connections.c.children.n]\nlocal_ts={local_ts}\nremote_ts={remote_ts}\n"
        );
        Guard::new(&Settings::parse(Path::new("b.toml"), &source).unwrap())
    }

    #[test]
    fn overlapping_and_adjacent_ranges_become_one() {
        let g = guard("['10.2.0.0/24', '10.2.1.0/24', '10.2.0.128/25']", "['10.1.0.7']");
        assert_eq!(addresses(&g.narrow), "{ 10.1.0.7, 10.2.0.0-10.2.1.255 }");
        assert_eq!(numbers(&g.narrow), "{ 0x0a010007, 0x0a020000-0x0a0201ff }");
    }

    #[test]
    fn a_selector_that_holds_an_outer_address_forbids_pairs_and_leaves_ike() {
        let g = guard("['10.2.0.0/24']", "['0.0.0.0/0']");
        assert_eq!(g.narrow, [(0x0a02_0000, 0x0a02_00ff)]);
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

    #[test]
    fn the_rules_are_one_transaction_that_replaces_the_earlier_ones() {
        let rules = guard("['10.2.0.0/24']", "['10.1.0.0/24']").ruleset();
        assert!(rules.starts_with("table inet spindle-b\ndelete table inet spindle-b\n"));
        assert!(!rules.contains("udp sport"), "no wide selector, so no exception");
    }
}
