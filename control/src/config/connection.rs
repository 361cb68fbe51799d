//! `[connections.*]` and `[connections.*.children.*]`.

use super::interfaces::of_child;
use super::policies::Places;
use super::read::{Section, Value};
use super::{GatewaySettings, Result, policies, ports, transport};
use spindle_abi::{Limits, Selector, SelectorSet};
use spindle_ike::api::{
    ChildConfig, ConnectionConfig, Identity, Lifetime, Psk, Retransmission, StartAction, TransportMode,
};
use spindle_recovery::api::Method;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;
use zeroize::Zeroizing;

/// What is wrong with an IPv4 address beside an IPv6 one.
const ONE_VERSION: &str = "are of two IP versions; write two of one version";
const START_ACTIONS: &[(&str, StartAction)] =
    &[("none", StartAction::None), ("trap", StartAction::Trap), ("start", StartAction::Start)];
const ENCRYPTION: &[&str] = &["aes128gcm16", "aes192gcm16", "aes256gcm16", "chacha20poly1305"];
const PRF: &[&str] = &["prfsha256", "prfsha384"];
const KEY_EXCHANGE: &[&str] = &["x25519", "curve25519", "ecp256"];
const SEQUENCE_NUMBERS: &[&str] = &["esn", "noesn"];

/// One connection, and its methods of recovery if it names some. `places` knows the policies of the whole file, and
/// `interfaces` are the children's virtual ones.
pub(super) fn connection(
    name: &str,
    value: &Value<'_>,
    (base, gateway): (&Path, &GatewaySettings),
    (places, interfaces): (&mut Places, &mut Vec<String>),
) -> Result<(ConnectionConfig, Option<Vec<Method>>)> {
    let section = value.section()?;
    check_name(name, value)?;

    let local = section
        .required("local", "{ address = \"192.0.2.2\", id = \"west.example\", psk = \"…\" }")?
        .section()?;
    let local_address = local.required("address", "\"192.0.2.2\"")?.address()?;
    let local_id = match local.optional("id") {
        Some(value) => identity(&value)?,
        None => Identity::Address(local_address),
    };
    let psk = psk(&local, base)?;
    local.finish()?;

    let remote =
        section.required("remote", "{ address = \"192.0.2.1\", id = \"east.example\" }")?.section()?;
    let remote_value = remote.required("address", "\"192.0.2.1\"` (or `\"%any\"")?;
    let remote_address = match remote_value.string()? {
        "%any" => None,
        _ => Some(remote_value.address()?),
    };
    if remote_address == Some(local_address) {
        return Err(remote_value.error("is our own address (local.address); write the peer's"));
    }
    if remote_address.is_some_and(|remote| remote.is_ipv4() != local_address.is_ipv4()) {
        return Err(remote_value.error(format!("and local.address ({local_address}) {ONE_VERSION}")));
    }
    let remote_id = match (remote.optional("id"), remote_address) {
        (Some(value), _) => identity(&value)?,
        (None, Some(address)) => Identity::Address(address),
        (None, None) => return Err(remote.missing("id", "with address \"%any\" say who the peer must be")),
    };
    let remote_port = match remote.optional("port") {
        Some(value) => value.integer(1..=65535)? as u16,
        None => 500,
    };
    remote.finish()?;

    let proposals = match section.optional("proposals") {
        Some(value) => {
            proposals(&value, &[ENCRYPTION, PRF, KEY_EXCHANGE], 3, "aes128gcm16-prfsha256-x25519")?
        }
        None => vec!["aes128gcm16-prfsha256-x25519".into()],
    };
    let retransmit = section.section("retransmit")?;
    let retransmission = Retransmission {
        timeout: retransmit
            .optional("timeout")
            .map_or(Ok(Duration::from_secs(4)), |v| v.positive_duration())?,
        base: retransmit.optional("base").map_or(Ok(1.8), |v| v.float(1.0..=10.0))?,
        tries: retransmit.optional("tries").map_or(Ok(5), |v| v.integer(0..=100))? as u32,
    };
    retransmit.finish()?;

    let start_action =
        section.optional("start_action").map_or(Ok(StartAction::None), |v| v.one_of(START_ACTIONS))?;
    let mut children = Vec::new();
    let child_section = section.section("children")?;
    for (name, value) in child_section.entries() {
        let ends = (local_address, remote_address);
        children.push(child(&name, &value, places.note(&value), ends, gateway, interfaces)?);
    }
    if children.is_empty() {
        return Err(child_section.error("has no child; add a section with local_ts and remote_ts"));
    }
    let redirect_to = redirect_to(&section, local_address, remote_address)?;
    if !redirect_to.is_empty() && children.iter().any(|child| child.transport != TransportMode::Never) {
        let problem = "stands beside a child with mode \"transport\", which is between two addresses alone; take it out, \
                       or write mode = \"tunnel\" there";
        return Err(section.error_of("redirect_to", problem));
    }
    let config = ConnectionConfig {
        name: name.into(),
        local: local_address,
        remote: remote_address,
        remote_port,
        local_id,
        remote_id,
        psk,
        proposals,
        force_encapsulation: section.optional("encap").map_or(Ok(false), |v| v.boolean())?,
        dpd_delay: section.optional("dpd_delay").map_or(Ok(Duration::from_secs(30)), |v| v.duration())?,
        retransmission,
        rekey_time: section
            .optional("rekey_time")
            .map_or(Ok(Duration::from_secs(4 * 3600)), |v| v.duration())?,
        redirect_to,
        resumption: section.optional("resumption").map_or(Ok(false), |v| v.boolean())?,
        start_action,
        children,
    };
    let methods = section.optional("recovery").map(|value| super::methods(&value)).transpose()?;
    section.finish()?;
    Ok((config, methods))
}

/// Addresses of the peer's other gateways.
fn redirect_to(section: &Section<'_>, local: IpAddr, remote: Option<IpAddr>) -> Result<Vec<IpAddr>> {
    let Some(value) = section.optional("redirect_to") else { return Ok(Vec::new()) };
    let mut gateways = Vec::new();
    for entry in value.array(16)? {
        let gateway = entry.address()?;
        if gateway == local {
            return Err(entry.error("is our own address (local.address); write another gateway of the peer"));
        }
        if gateway.is_ipv4() != local.is_ipv4() {
            return Err(entry.error(format!("and local.address ({local}) {ONE_VERSION}")));
        }
        if Some(gateway) == remote || gateways.contains(&gateway) {
            let fix = "names a gateway that is named already (remote.address is one); remove it here";
            return Err(entry.error(fix));
        }
        gateways.push(gateway);
    }
    Ok(gateways)
}

pub(super) fn check_name(name: &str, value: &Value<'_>) -> Result<()> {
    let valid = name.len() <= 64 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if valid && !name.is_empty() {
        return Ok(());
    }
    Err(value.error(format!("\"{name}\" is no name; write 1 to 64 letters, digits, - _ and .")))
}

fn child(
    name: &str,
    value: &Value<'_>,
    policy: u32,
    ends: (IpAddr, Option<IpAddr>),
    gateway: &GatewaySettings,
    interfaces: &mut Vec<String>,
) -> Result<ChildConfig> {
    let section = value.section()?;
    check_name(name, value)?;
    let selectors = policies::selectors(&section)?;
    // With an interface of its own the route chooses.
    if selectors.local == selectors.remote && section.optional("interface").is_none() {
        let problem = "is the same as local_ts; write the networks behind the peer";
        return Err(section.error_of("remote_ts", problem));
    }
    let proposals = match section.optional("esp_proposals") {
        Some(value) => proposals(&value, &[ENCRYPTION, KEY_EXCHANGE, SEQUENCE_NUMBERS], 1, "aes128gcm16")?,
        None => vec!["aes128gcm16".into()],
    };
    let replay_window = match section.optional("replay_window") {
        Some(value) => match value.integer(0..=65_536)? {
            0 => 0,
            n if n >= 32 && n.is_power_of_two() => n as u32,
            n => {
                return Err(
                    value.error(format!("is {n}; write a power of two from 32 to 65536, or 0 for none"))
                );
            }
        },
        None => 1024,
    };
    let interface = section.optional("interface").map(|v| of_child(&v, gateway, interfaces)).transpose()?;
    let interface = interface.unwrap_or(0);
    let transport = transport::mode(&section, &selectors, interface, ends, gateway)?;
    // RFC 4303 section 3.3.3: where there is no replay window there should be no Extended Sequence Numbers.
    if replay_window == 0 && proposals.iter().any(|proposal| proposal.split('-').any(|word| word == "esn")) {
        let fix = "is 0, and esp_proposals has \"esn\", which needs a window; write 32 or more here, or take \"esn\" out";
        return Err(section.error_of("replay_window", fix));
    }
    let rekey_time =
        section.optional("rekey_time").map_or(Ok(Duration::from_secs(3600)), |v| v.duration())?;
    let per_worker = section.optional("per_cpu_sas").map_or(Ok(false), |v| v.boolean())?;
    let config = ChildConfig {
        name: name.into(),
        policy,
        interface,
        transport,
        selectors,
        proposals,
        rekey_time,
        lifetime: lifetime(&section, rekey_time)?,
        replay_window,
        hold_packets: section.optional("hold_packets").map_or(Ok(0), |v| v.integer(0..=256))? as u16,
        resources: if per_worker { gateway.workers as u16 } else { 0 },
        start_action: section
            .optional("start_action")
            .map_or(Ok(StartAction::Trap), |v| v.one_of(START_ACTIONS))?,
    };
    section.finish()?;
    Ok(config)
}

/// Hard limits are a tenth beyond the soft ones where they aren't named.
fn lifetime(section: &Section<'_>, rekey_time: Duration) -> Result<Lifetime> {
    let life_time = match section.optional("life_time") {
        None => rekey_time + rekey_time / 10,
        Some(value) => match value.duration()? {
            life_time if life_time <= rekey_time && !life_time.is_zero() => {
                return Err(value.error("is not longer than rekey_time; write more, or \"0s\" for no end"));
            }
            life_time => life_time,
        },
    };
    let pair = |soft: &'static str, hard: &'static str, read: fn(&Value<'_>) -> Result<u64>| {
        let rekey = section.optional(soft).map_or(Ok(0), |value| read(&value))?;
        let life = match section.optional(hard) {
            None => rekey + rekey / 10,
            Some(value) => match read(&value)? {
                life if life <= rekey && life != 0 => {
                    return Err(value.error(format!("is not more than {soft}; write more, or 0 for no end")));
                }
                life => life,
            },
        };
        Ok((rekey, life))
    };
    let packets = pair("rekey_packets", "life_packets", |value| value.integer(0..=1 << 60))?;
    let bytes = pair("rekey_bytes", "life_bytes", |value| value.octets())?;
    Ok(Lifetime {
        life_time,
        rekey: Limits { packets: packets.0, bytes: bytes.0 },
        life: Limits { packets: packets.1, bytes: bytes.1 },
    })
}

/// RFC 7296 section 3.5: an address, a mail address, `keyid:` and hexadecimal digits, else a domain name, perhaps
/// after `@`.
fn identity(value: &Value<'_>) -> Result<Identity> {
    let text = value.string()?;
    if text.len() > 255 {
        return Err(value.error("is longer than 255 octets; write a shorter identity"));
    }
    if let Some(digits) = text.strip_prefix("keyid:") {
        let octets = hexadecimal(digits)
            .ok_or_else(|| value.error("`keyid:` must be followed by pairs of hexadecimal digits"))?;
        return Ok(Identity::KeyId(octets));
    }
    Ok(match text.parse::<IpAddr>() {
        Ok(address) => Identity::Address(address),
        // strongSwan's notation: `@` says that a domain name follows, `@@` a mail address.
        Err(_) => match (text.strip_prefix("@@"), text.strip_prefix('@')) {
            (Some(mail), _) => Identity::Email(mail.into()),
            (None, Some(name)) => Identity::Fqdn(name.into()),
            (None, None) if text.contains('@') => Identity::Email(text.into()),
            (None, None) => Identity::Fqdn(text.into()),
        },
    })
}

fn hexadecimal(digits: &str) -> Option<Vec<u8>> {
    if digits.is_empty() || !digits.len().is_multiple_of(2) || !digits.is_ascii() {
        return None;
    }
    (0..digits.len()).step_by(2).map(|i| u8::from_str_radix(&digits[i..i + 2], 16).ok()).collect()
}

/// `psk`, or the content of `psk_file` without its line end. `0x` begins hexadecimal digits, as in swanctl.conf.
fn psk(local: &Section<'_>, base: &Path) -> Result<Psk> {
    let (value, text) = match (local.optional("psk"), local.optional("psk_file")) {
        (Some(_), Some(file)) => return Err(file.error("stands beside psk; keep one of them")),
        (None, None) => return Err(local.missing("psk", "add `psk = \"…\"`, or `psk_file = \"FILE\"`")),
        (Some(value), None) => {
            let text = Zeroizing::new(value.string()?.to_owned());
            (value, text)
        }
        (None, Some(value)) => {
            let path = base.join(value.string()?);
            let unreadable = |e: io::Error| {
                value.error(format!("{} cannot be read: {e}; name a readable file", path.display()))
            };
            let file = File::open(&path).map_err(unreadable)?;
            if file.metadata().map_err(unreadable)?.permissions().mode() & 0o077 != 0 {
                let path = path.display();
                return Err(value.error(format!(
                    "others than its owner may read {path}, or change it; `chmod 0600 {path}`"
                )));
            }
            let text = io::read_to_string(file).map_err(unreadable)?;
            let text = Zeroizing::new(text);
            let line = Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned());
            if line.is_empty() {
                return Err(value.error(format!("{} is empty; write the key into it", path.display())));
            }
            (value, line)
        }
    };
    let octets = match text.strip_prefix("0x") {
        Some(digits) => hexadecimal(digits)
            .ok_or_else(|| value.error("`0x` must be followed by pairs of hexadecimal digits"))?,
        None => text.as_bytes().to_vec(),
    };
    Ok(Psk(Zeroizing::new(octets)))
}

/// strongSwan's notation; the first `required` kinds must be there.
fn proposals(value: &Value<'_>, kinds: &[&[&str]], required: usize, example: &str) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for entry in value.array(16)? {
        let text = entry.string()?;
        let mut seen = vec![false; kinds.len()];
        for word in text.split('-') {
            match kinds.iter().position(|kind| kind.contains(&word)) {
                Some(kind) => seen[kind] = true,
                None => {
                    return Err(entry.error(format!(
                        "\"{word}\" in \"{text}\" is not supported; write from {}, as in \"{example}\"",
                        kinds.concat().join(", ")
                    )));
                }
            }
        }
        if let Some(kind) = seen[..required].iter().position(|seen| !seen) {
            return Err(entry.error(format!(
                "\"{text}\" lacks one of {}; write it as in \"{example}\"",
                kinds[kind].join(", ")
            )));
        }
        all.push(text.to_owned());
    }
    Ok(all)
}

/// Subnets, addresses and ranges: `10.1.0.0/24`, `10.1.0.7`, `10.1.0.1-10.1.0.9`, `2001:db8:1::/64` and so on; perhaps with
/// protocol and ports.
pub(super) fn selectors(value: &Value<'_>) -> Result<Vec<Selector>> {
    value
        .array(SelectorSet::MAX)?
        .iter()
        .map(|entry| {
            let text = entry.string()?;
            let refused = |problem| entry.error(format!("\"{text}\" {problem}"));
            let (addresses, limits) = ports::split(text).map_err(refused)?;
            let (start, end) = range(addresses).map_err(refused)?;
            Ok(limits.of(Selector::addresses(start, end)))
        })
        .collect()
}

fn range(text: &str) -> std::result::Result<(IpAddr, IpAddr), String> {
    let fix = "is no subnet; write one such as \"10.1.0.0/24\" or \"2001:db8:1::/64\", or a range such as \
               \"10.1.0.1-10.1.0.9\"";
    let parse = |t: &str| t.trim().parse::<IpAddr>().map_err(|_| fix.to_owned());
    if let Some((start, end)) = text.split_once('-') {
        let (start, end) = (parse(start)?, parse(end)?);
        return match (start, end) {
            _ if start.is_ipv4() != end.is_ipv4() => {
                Err("has ends of two IP versions; write two of one version".into())
            }
            _ if start > end => Err("ends before it starts; swap its ends".into()),
            ends => Ok(ends),
        };
    }
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (parse(address)?, Some(length)),
        None => (parse(text)?, None),
    };
    let width: u32 = if address.is_ipv4() { 32 } else { 128 };
    let length = match length {
        Some(length) => length.parse().ok().filter(|n| *n <= width).ok_or(fix)?,
        None => width,
    };
    let host = u128::MAX.checked_shr(128 - width + length).unwrap_or(0);
    let (bits, of): (u128, fn(u128) -> IpAddr) = match address {
        IpAddr::V4(address) => (address.to_bits().into(), |bits| Ipv4Addr::from(bits as u32).into()),
        IpAddr::V6(address) => (address.to_bits(), |bits| Ipv6Addr::from(bits).into()),
    };
    if bits & host != 0 {
        return Err(format!("has host bits set; write \"{}/{length}\"", of(bits & !host)));
    }
    Ok((address, of(bits | host)))
}
