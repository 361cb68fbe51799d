//! The configuration file: TOML with the nouns of swanctl.conf. the README has its schema.
//!
//! [`Settings::load`] reads and checks all of it; what comes out is what the gateway, the guard and the
//! supervisor are told. Nothing here looks at the machine (interfaces, addresses): the supervisor does.

mod connection;
mod interfaces;
mod order;
mod policies;
pub(crate) mod ports;
mod read;
mod restart;
mod transport;
mod vlans;

pub use interfaces::{Device, Inside, InterfaceSettings};
pub use read::ConfigError;
pub use vlans::Vlan;

use policies::Places;
use read::{Document, Section, Value};
use spindle_abi::{AddressRange, RING_SIZE, RING_SIZES};
use spindle_ike::api::{ConnectionConfig, Shared};
use spindle_recovery::api::{Limits, Method, Policy, SirLimits, TokenMethod};
use spindle_recovery::secrets::method_name;
use spindle_ring::MAX_WORKERS;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use zeroize::Zeroizing;

/// Where lock and control socket are if the file doesn't say.
pub const RUN_DIR: &str = "/run/spindle";

type Result<T> = std::result::Result<T, ConfigError>;

/// A whole configuration, checked.
#[derive(Debug)]
pub struct Settings {
    /// The file it came from.
    pub file: PathBuf,
    /// `[gateway]`.
    pub gateway: GatewaySettings,
    /// `[recovery]`.
    pub recovery: RecoverySettings,
    /// `[connections.*]`, in the order of the file. The ids of their policies and of the others are one order.
    pub connections: Vec<Shared<ConnectionConfig>>,
    /// `[policies.*]`.
    pub policies: Vec<Policy>,
    /// `recovery` of the connections that have it.
    pub connection_methods: BTreeMap<String, Vec<Method>>,
    /// Virtual interfaces of children; the first one has number 1.
    children_interfaces: Vec<String>,
    /// The text of the file.
    source: Source,
}

/// A text with secrets. Redacted in Debug.
struct Source(Zeroizing<String>);

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Source(..)")
    }
}

/// `[gateway]`: the machine's side.
#[derive(Clone, Debug)]
pub struct GatewaySettings {
    /// Shown to people, and part of the guard's name.
    pub name: String,
    /// What must survive a crash.
    pub state_dir: PathBuf,
    /// Lock, control socket.
    pub run_dir: PathBuf,
    /// A file outside of `state_dir` by which a copied or rolled back `state_dir` is noticed.
    pub anchor: PathBuf,
    /// The protected side.
    pub inside: Inside,
    /// `[gateway.interfaces.*]`.
    pub interfaces: Vec<InterfaceSettings>,
    /// The interface of the unprotected side.
    pub outside: String,
    /// The VLAN of `inside` that is the protected side.
    pub inside_vlan: Option<Vlan>,
    /// The VLAN of `outside` that is the unprotected side.
    pub outside_vlan: Option<Vlan>,
    /// The maker id of a cluster; without it, a random one of this gateway.
    pub cluster: Option<String>,
    /// How workers wait for packets.
    pub polling: Polling,
    /// Workers of the dataplane, each on a queue of both interfaces.
    pub workers: usize,
    /// The core of the worker; of the first one, if there are several, and the others follow. Without it the kernel decides.
    pub core: Option<u32>,
    /// Descriptors of each AF_XDP ring: a power of two.
    pub ring_size: u32,
    /// How XDP is attached.
    pub xdp_mode: XdpMode,
    /// Our port for IKE.
    pub ike_port: u16,
    /// Our port for IKE and ESP in UDP.
    pub natt_port: u16,
    /// Half-open IKE SAs from which on a COOKIE is asked for.
    pub cookie_threshold: usize,
    /// Lifetime of the tickets that we grant, at most.
    pub ticket_lifetime: Duration,
    /// May root have the keys of Child SAs, by `spindle capture --keys`?
    pub capture_keys: bool,
}

/// How workers wait for packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Polling {
    /// Spin, then sleep.
    Adaptive,
    /// Spin; for a core of its own.
    Busy,
}

impl Polling {
    /// As in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Polling::Adaptive => "adaptive",
            Polling::Busy => "busy",
        }
    }
}

/// How XDP is attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// In the stack; for drivers that know no XDP.
    Generic,
}

impl XdpMode {
    /// As in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            XdpMode::Native => "native",
            XdpMode::Generic => "generic",
        }
    }
}

/// `[recovery]`.
#[derive(Clone, Debug)]
pub struct RecoverySettings {
    /// In order of preference, for connections without `recovery`; holds `Liveness` always.
    pub methods: Vec<Method>,
    /// Does a restarted token maker show its journal's peers their tokens unasked?
    pub proactive: bool,
    /// Keep inbound SPIs on disk (RFC 6290 section 8.2)?
    pub journal: bool,
    /// Make tokens?
    pub token_maker: bool,
    /// Store and check tokens?
    pub token_taker: bool,
    /// How tokens are made (RFC 6290 section 5.1, 5.2).
    pub token_method: TokenMethod,
    /// The secret's age at which it is rotated; zero is never. Never with `secret_file`.
    pub secret_rotation: Duration,
    /// The secret, where a cluster shares it; without it, a file of our own in `state_dir`.
    pub secret_file: Option<PathBuf>,
    /// Budgets.
    pub limits: Limits,
}

impl Settings {
    /// Reads and checks a file, and the files with keys that it names.
    pub fn load(file: &Path) -> Result<Settings> {
        let octets = std::fs::read(file).map_err(|e| ConfigError {
            file: file.into(),
            line: 0,
            key: String::new(),
            problem: format!("cannot be read: {e}; name a readable file with --config FILE"),
        })?;
        Settings::read(file, &octets)
    }

    /// Checks the octets of a file.
    fn read(file: &Path, octets: &[u8]) -> Result<Settings> {
        let source = std::str::from_utf8(octets).map_err(|e| ConfigError {
            file: file.into(),
            line: read::line(&octets[..e.valid_up_to()]),
            key: String::new(),
            problem: "this is not UTF-8, as TOML must be; save it as UTF-8".into(),
        })?;
        Settings::parse(file, source)
    }

    /// Checks a text; `file` is named in errors, and relative paths in the text are relative to its directory.
    pub fn parse(file: &Path, source: &str) -> Result<Settings> {
        let document = Document::new(file, source);
        let table = document.parse()?;
        let root = document.root(&table);
        let base = file.parent().unwrap_or(Path::new(""));
        let gateway = gateway(&root.required("gateway", "…` or the section `[gateway]")?.section()?, base)?;
        let recovery = recovery(&root.section("recovery")?, base)?;
        let (mut connections, mut connection_methods) = (Vec::new(), BTreeMap::new());
        let mut children_interfaces = Vec::new();
        let mut places = Places::default();
        let section = root.section("connections")?;
        for (name, value) in section.entries() {
            let noted = (&mut places, &mut children_interfaces);
            let (connection, methods) = connection::connection(&name, &value, (base, &gateway), noted)?;
            connections.push(Shared::from(connection));
            connection_methods.extend(methods.map(|methods| (name, methods)));
        }
        if connections.is_empty() {
            return Err(section.error("has no connection; add a section such as `[connections.office]`"));
        }
        let others = root.section("policies")?;
        let others = others.entries();
        let mut policies = others
            .iter()
            .map(|(name, value)| policies::policy(name, value, &mut places))
            .collect::<Result<Vec<_>>>()?;
        root.finish()?;
        let ids = places.ids();
        for child in connections.iter_mut().flat_map(|c| &mut c.children) {
            child.policy = ids[child.policy as usize];
        }
        for policy in &mut policies {
            policy.id = ids[policy.id as usize];
        }
        let settings = Settings {
            file: file.into(),
            gateway,
            recovery,
            connections,
            policies,
            connection_methods,
            children_interfaces,
            source: Source(Zeroizing::new(source.to_owned())),
        };
        policies::check_order(&settings)?;
        settings.check_interfaces()?;
        settings.check_vlans()?;
        Ok(settings)
    }

    /// An error about a key of this file, for what shows only when the machine is looked at.
    pub fn error(&self, key: &str, problem: impl Into<String>) -> ConfigError {
        let line = Document::new(&self.file, self.source()).line_of(key);
        ConfigError { file: self.file.clone(), line, key: key.into(), problem: problem.into() }
    }

    /// The text that these settings were read from, keys in it.
    pub fn source(&self) -> &Zeroizing<String> {
        &self.source.0
    }

    /// Our outer addresses, each once.
    pub fn local_addresses(&self) -> Vec<IpAddr> {
        let mut addresses: Vec<_> = self.connections.iter().map(|c| c.local).collect();
        addresses.sort();
        addresses.dedup();
        addresses
    }

    /// The ranges of all `local_ts` and of all `remote_ts`.
    pub fn protected_ranges(&self) -> (Vec<AddressRange>, Vec<AddressRange>) {
        let children = || self.connections.iter().flat_map(|c| &c.children);
        let local = children().flat_map(|c| &c.selectors.local).map(|s| s.addresses).collect();
        let remote = children().flat_map(|c| &c.selectors.remote).map(|s| s.addresses).collect();
        (local, remote)
    }
}

fn gateway(section: &Section<'_>, base: &Path) -> Result<GatewaySettings> {
    let name_value = section.required("name", "\"west\"")?;
    let name = name_value.string()?.to_owned();
    if name.len() > 32 || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
        return Err(
            name_value.error(format!("\"{name}\" is no name; write 1 to 32 letters, digits, - and _"))
        );
    }
    let path = |key, default: String| match section.optional(key) {
        Some(value) => Ok::<_, ConfigError>(base.join(value.string()?)),
        None => Ok(PathBuf::from(default)),
    };
    let port = |key, default| match section.optional(key) {
        Some(value) => value.integer(1..=65535).map(|n| n as u16),
        None => Ok(default),
    };
    let state_dir = path("state_dir", "/var/lib/spindle".into())?;
    let run_dir = path("run_dir", RUN_DIR.into())?;
    // Of `struct sockaddr_un`, the final zero included.
    const LONGEST_SOCKET: usize = 108;
    if run_dir.join(crate::protocol::SUPERVISOR_SOCKET).as_os_str().len() >= LONGEST_SOCKET {
        return Err(
            section.error_of("run_dir", "is too long for the control socket in it; write a shorter path")
        );
    }
    let anchor = match section.optional("anchor") {
        Some(value) => {
            let anchor = base.join(value.string()?);
            if anchor.starts_with(&state_dir) {
                return Err(value.error(
                    "lies inside of state_dir, where it would be copied and rolled back with \
                                        it; name a file outside",
                ));
            }
            anchor
        }
        None => {
            let mut sibling = state_dir.clone().into_os_string();
            sibling.push("-anchor");
            sibling.into()
        }
    };
    let inside = interfaces::inside(&section.required("inside", "[\"eth1\"]")?)?;
    let outside_value = section.required("outside", "[\"eth0\"]")?;
    let outside = interface(&outside_value)?;
    if matches!(&inside, Inside::Interface(name) | Inside::Host(name) if *name == outside) {
        return Err(outside_value.error(format!("{outside} is the inside interface too; name another one")));
    }
    let (inside_vlan, outside_vlan) = vlans::vlans(section, &inside, &outside)?;
    let cluster = match section.optional("cluster") {
        Some(value) if value.string()?.len() > 64 => {
            return Err(value.error("is longer than 64 octets; write a shorter name"));
        }
        Some(value) => Some(value.string()?.to_owned()),
        None => None,
    };
    let polling = match section.optional("polling") {
        Some(value) => value.one_of(&[("adaptive", Polling::Adaptive), ("busy", Polling::Busy)])?,
        None => Polling::Adaptive,
    };
    let workers = match section.optional("workers") {
        Some(value) => value.integer(1..=MAX_WORKERS as u64)? as usize,
        None => 1,
    };
    let core = section.optional("core").map(|v| v.integer(0..=1023)).transpose()?.map(|n| n as u32);
    let ring_size = match section.optional("ring_size") {
        Some(value) => {
            let size = value.integer(u64::from(*RING_SIZES.start())..=u64::from(*RING_SIZES.end()))?;
            if !size.is_power_of_two() {
                let nearest = size.next_power_of_two();
                return Err(value.error(format!("is {size}, and must be a power of two; write {nearest}")));
            }
            size as u32
        }
        None => RING_SIZE,
    };
    let xdp_mode = match section.optional("xdp_mode") {
        Some(value) => value.one_of(&[("native", XdpMode::Native), ("generic", XdpMode::Generic)])?,
        None => XdpMode::Native,
    };
    let (ike_port, natt_port) = (port("ike_port", 500)?, port("natt_port", 4500)?);
    if ike_port == natt_port {
        return Err(
            section.error(format!("ike_port and natt_port are both {ike_port}; give them different ports"))
        );
    }
    let cookie_threshold = match section.optional("cookie_threshold") {
        Some(value) => value.integer(0..=1_000_000)? as usize,
        None => 64,
    };
    let ticket_lifetime = match section.optional("ticket_lifetime") {
        Some(value) => {
            let lifetime = value.positive_duration()?;
            // A ticket in the peer's hands, and its key on our disk, hold the key of an IKE SA so long.
            if !(Duration::from_secs(60)..=Duration::from_secs(24 * 3600)).contains(&lifetime) {
                return Err(value.error("is not between 1m and 24h; write a time between them"));
            }
            lifetime
        }
        None => Duration::from_secs(3600),
    };
    let capture_keys = section.optional("capture_keys").map_or(Ok(false), |v| v.boolean())?;
    let interfaces = interfaces::interfaces(&section.section("interfaces")?)?;
    section.finish()?;
    Ok(GatewaySettings {
        name,
        state_dir,
        run_dir,
        anchor,
        inside,
        interfaces,
        outside,
        inside_vlan,
        outside_vlan,
        cluster,
        polling,
        workers,
        core,
        ring_size,
        xdp_mode,
        ike_port,
        natt_port,
        cookie_threshold,
        ticket_lifetime,
        capture_keys,
    })
}

/// An array of one interface.
fn interface(value: &Value<'_>) -> Result<String> {
    let entry = value.array(1)?.remove(0);
    let name = entry.string()?;
    let valid = name.len() <= 15 && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b'"');
    if valid {
        Ok(name.into())
    } else {
        Err(entry.error(format!("\"{name}\" cannot be an interface's name")))
    }
}

fn recovery(section: &Section<'_>, base: &Path) -> Result<RecoverySettings> {
    let flag = |key, default| section.optional(key).map_or(Ok(default), |v| v.boolean());
    let token_methods = [TokenMethod::Spis, TokenMethod::SpisAndAddress].map(|m| (method_name(m), m));
    let token_method = section.optional("token_method").map(|v| v.one_of(&token_methods)).transpose()?;
    let secret_file = match section.optional("secret_file") {
        Some(value) => Some(base.join(value.string()?)),
        None => None,
    };
    let secret_rotation = match section.optional("secret_rotation") {
        Some(value) => {
            let age = value.duration()?;
            if !age.is_zero() && age < Duration::from_secs(1) {
                return Err(value.error("is less than a second; write \"1s\" or more, or \"0s\" for never"));
            }
            if !age.is_zero() && secret_file.is_some() {
                return Err(value.error(
                    "would rotate the secret of a cluster on this member alone; take it out, or secret_file",
                ));
            }
            age
        }
        None => Duration::ZERO,
    };
    let settings = RecoverySettings {
        methods: match section.optional("methods") {
            Some(value) => methods(&value)?,
            None => vec![Method::Qcd, Method::Liveness],
        },
        proactive: flag("proactive", false)?,
        journal: flag("journal", true)?,
        token_maker: flag("token_maker", true)?,
        token_taker: flag("token_taker", true)?,
        token_method: token_method.unwrap_or_default(),
        secret_rotation,
        secret_file,
        limits: Limits { sir: sir(&section.section("sir")?)?, ..limits(&section.section("limits")?)? },
    };
    section.finish()?;
    Ok(settings)
}

const METHODS: &[(&str, Method)] = &[
    ("initial-contact", Method::InitialContact),
    ("qcd", Method::Qcd),
    ("sir", Method::Sir),
    ("liveness", Method::Liveness),
];

/// Methods of recovery, in order of preference.
fn methods(value: &Value<'_>) -> Result<Vec<Method>> {
    let mut methods = Vec::new();
    for word in value.array(METHODS.len())? {
        let method = word.one_of(METHODS)?;
        if methods.contains(&method) {
            return Err(word.error("stands twice; take one out"));
        }
        methods.push(method);
    }
    // RFC 7296 section 2.4 is not optional.
    if !methods.contains(&Method::Liveness) {
        return Err(value.error("lacks \"liveness\", which is always on; add it"));
    }
    Ok(methods)
}

/// `[recovery.sir]`.
fn sir(section: &Section<'_>) -> Result<SirLimits> {
    let mut limits = SirLimits::default();
    let rate = |key, place: &mut u32| -> Result<()> {
        if let Some(value) = section.optional(key) {
            *place = value.integer(0..=1_000_000)? as u32;
        }
        Ok(())
    };
    let duration = |key, place: &mut Duration| -> Result<()> {
        if let Some(value) = section.optional(key) {
            *place = value.duration()?;
        }
        Ok(())
    };
    rate("queries_per_sa", &mut limits.queries_per_sa)?;
    rate("queries_total", &mut limits.queries_total)?;
    rate("recovering_at_once", &mut limits.recovering_at_once)?;
    rate("answers_per_source", &mut limits.answers_per_source)?;
    rate("answers_total", &mut limits.answers_total)?;
    duration("wait_min", &mut limits.wait_min)?;
    duration("wait_max", &mut limits.wait_max)?;
    duration("dampen_new", &mut limits.dampen_new)?;
    duration("dampen_denied", &mut limits.dampen_denied)?;
    duration("dampen_recovered", &mut limits.dampen_recovered)?;
    duration("dampen_max", &mut limits.dampen_max)?;
    for (short, long, names) in [
        (limits.wait_min, limits.wait_max, ("wait_min", "wait_max")),
        (limits.dampen_recovered, limits.dampen_max, ("dampen_recovered", "dampen_max")),
    ] {
        if short > long {
            return Err(section.error(format!("{} is longer than {}; shorten it", names.0, names.1)));
        }
    }
    section.finish()?;
    Ok(limits)
}

fn limits(section: &Section<'_>) -> Result<Limits> {
    let mut limits = Limits::default();
    let duration = |key, place: &mut Duration| -> Result<()> {
        if let Some(value) = section.optional(key) {
            *place = value.positive_duration()?;
        }
        Ok(())
    };
    let rate = |key, place: &mut u32| -> Result<()> {
        if let Some(value) = section.optional(key) {
            *place = value.integer(0..=1_000_000)? as u32;
        }
        Ok(())
    };
    duration("former_interval", &mut limits.former_interval)?;
    rate("former_other_per_source", &mut limits.former_other_per_source)?;
    rate("former_other_total", &mut limits.former_other_total)?;
    rate("invalid_spi_per_source", &mut limits.invalid_spi_per_source)?;
    rate("invalid_spi_total", &mut limits.invalid_spi_total)?;
    rate("invalid_ike_spi_per_source", &mut limits.invalid_ike_spi_per_source)?;
    rate("invalid_ike_spi_total", &mut limits.invalid_ike_spi_total)?;
    if let Some(value) = section.optional("handshakes_total") {
        limits.handshakes_total = value.integer(1..=1_000_000)? as u32;
    }
    if let Some(value) = section.optional("handshakes_max") {
        limits.handshakes_max = value.integer(limits.handshakes_total.into()..=1_000_000)? as u32;
    }
    rate("probes_total", &mut limits.probes_total)?;
    rate("probes_again_total", &mut limits.probes_again_total)?;
    duration("probe_again", &mut limits.probe_again)?;
    duration("probe_interval", &mut limits.probe_interval)?;
    rate("failed_tokens_logged_per_source", &mut limits.failed_tokens_logged_per_source)?;
    rate("failed_tokens_logged_total", &mut limits.failed_tokens_logged_total)?;
    section.finish()?;
    Ok(limits)
}

#[cfg(test)]
mod interfaces_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod transport_tests;
