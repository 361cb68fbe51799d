//! One gateway under test: its configuration, its processes, its command line.
//!
//! Everything that the testbed knows of the gateway's configuration file, verbs and JSON stands in this module.

use crate::cleanup::Guard;
use crate::error::{Context, Error, Result};
use crate::namespace::{Namespace, run};
use crate::packet::now;
use crate::topology::{Addresses, Network, Side};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// What tests and the demo vary of a gateway's configuration; the rest follows from the topology.
#[derive(Clone, PartialEq, Debug)]
pub struct Settings {
    /// Methods of recovery, in order of preference: `qcd`, `liveness`.
    pub methods: Vec<String>,
    /// Whether inbound SPIs are kept on disk, so that INVALID_SPI can carry a token (RFC 6290 section 8.2).
    pub journal: bool,
    /// Proposal for the IKE SA.
    pub proposal: String,
    /// Proposal for the Child SA.
    pub esp_proposal: String,
    /// How long a silent peer is not probed.
    pub dpd_delay: Duration,
    /// First retransmission after this long, each next one `base` times later, `tries` retransmissions in all.
    pub retransmit: Retransmit,
    /// `none`, `trap` or `start`, of the Child SA.
    pub start_action: String,
    /// Our outer address, where it is not the side's.
    pub local: Option<Ipv4Addr>,
    /// The peer's outer address, where it is not the other side's: `%any`.
    pub remote: Option<String>,
    /// Descriptors of each AF_XDP ring, if not the usual ones; a start takes 40 KiB of memory for each.
    pub ring_size: Option<u32>,
    /// More lines for `[gateway]`.
    pub more_gateway: String,
    /// More lines for `[recovery]`.
    pub more_recovery: String,
    /// More lines for `[connections.ab]`.
    pub more_connection: String,
    /// More lines for `[connections.ab.children.net]`.
    pub more_child: String,
    /// Connections beside `ab`, each with identities and selectors of its own that no host has. Gateway A starts them.
    pub idle_connections: u32,
}

/// A schedule of retransmissions (RFC 7296 section 2.4).
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Retransmit {
    /// Time before the first retransmission.
    pub timeout: Duration,
    /// Factor from one interval to the next.
    pub base: f64,
    /// Retransmissions before the IKE SA is given up.
    pub tries: u32,
}

impl Retransmit {
    /// From a request's first transmission until it is given up.
    pub fn total(&self) -> Duration {
        (0..=self.tries).map(|attempt| self.timeout.mul_f64(self.base.powi(attempt as i32))).sum()
    }
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            methods: vec!["qcd".to_owned(), "liveness".to_owned()],
            journal: true,
            proposal: "aes128gcm16-prfsha256-x25519".to_owned(),
            esp_proposal: "aes128gcm16".to_owned(),
            dpd_delay: Duration::from_secs(30),
            retransmit: Retransmit { timeout: Duration::from_secs(4), base: 1.8, tries: 5 },
            start_action: "trap".to_owned(),
            local: None,
            remote: None,
            ring_size: None,
            more_gateway: String::new(),
            more_recovery: String::new(),
            more_connection: String::new(),
            more_child: String::new(),
            idle_connections: 0,
        }
    }
}

/// The hosts that an idle connection would serve: none is there.
const IDLE: [Network; 2] = [
    Network { address: Ipv4Addr::new(172, 16, 0, 0), prefix: 13 },
    Network { address: Ipv4Addr::new(172, 24, 0, 0), prefix: 13 },
];

impl Settings {
    /// The configuration file of one side; its own files lie in `directory`.
    pub fn text(&self, side: Side, addresses: &Addresses, directory: &Path) -> String {
        let (name, peer) = (side.letter(), side.other().letter());
        let here = self.local.map_or(addresses.outer(side), IpAddr::V4);
        let other = addresses.outer(side.other()).to_string();
        let there = self.remote.as_ref().unwrap_or(&other);
        let (local_ts, remote_ts) = (addresses.protected(side), addresses.protected(side.other()));
        let directory = directory.display();
        let methods: Vec<String> = self.methods.iter().map(|method| format!("\"{method}\"")).collect();
        let milliseconds = |time: Duration| format!("\"{}ms\"", time.as_millis());
        let connection = format!(
            r#"proposals = ["{proposal}"]
dpd_delay = {dpd_delay}
retransmit = {{ timeout = {timeout}, base = {base:.3}, tries = {tries} }}
{more_connection}
"#,
            proposal = self.proposal,
            dpd_delay = milliseconds(self.dpd_delay),
            timeout = milliseconds(self.retransmit.timeout),
            base = self.retransmit.base,
            tries = self.retransmit.tries,
            more_connection = self.more_connection,
        );
        let mut text = String::new();
        // Writing to a string can't fail.
        let _ = write!(
            text,
            r#"[gateway]
name = "{name}"
state_dir = "{directory}/state"
run_dir = "{directory}/run"
anchor = "{directory}/anchor"
inside = ["{inside}"]
outside = ["{outside}"]
{ring_size}
{more_gateway}
[recovery]
methods = [{methods}]
journal = {journal}
{more_recovery}
[connections.ab]
local = {{ address = "{here}", id = "{name}.example", psk = "a secret of the testbed alone" }}
remote = {{ address = "{there}", id = "{peer}.example" }}
{connection}
[connections.ab.children.net]
local_ts = ["{local_ts}"]
remote_ts = ["{remote_ts}"]
esp_proposals = ["{esp_proposal}"]
start_action = "{start_action}"
{more_child}"#,
            inside = side.inside_interface(),
            outside = side.outside_interface(),
            methods = methods.join(", "),
            journal = self.journal,
            esp_proposal = self.esp_proposal,
            start_action = self.start_action,
            ring_size = self.ring_size.map_or_else(String::new, |size| format!("ring_size = {size}")),
            more_gateway = self.more_gateway,
            more_recovery = self.more_recovery,
            more_child = self.more_child,
        );
        let start_action = if side == Side::A { "start" } else { "none" };
        for number in 1..=self.idle_connections {
            let [local_ts, remote_ts] = [side, side.other()].map(|of| IDLE[of as usize].host(number));
            let _ = write!(
                text,
                r#"
[connections.idle-{number}]
local = {{ address = "{here}", id = "{name}{number}.example", psk = "a secret of the testbed alone" }}
remote = {{ address = "{there}", id = "{peer}{number}.example" }}
{connection}
[connections.idle-{number}.children.net]
local_ts = ["{local_ts}"]
remote_ts = ["{remote_ts}"]
esp_proposals = ["{}"]
start_action = "{start_action}"
"#,
                self.esp_proposal
            );
        }
        text
    }
}

/// Something that a gateway reported, from `spindle events --json`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct GatewayEvent {
    /// CLOCK_REALTIME in microseconds.
    pub at_us: u64,
    /// What: `start`, `ready`, `hint`, `probe`, `proof`, `installed`, …
    pub event: String,
    /// Everything else that was told.
    #[serde(flatten)]
    pub more: serde_json::Map<String, serde_json::Value>,
}

/// The folder where the gateway's programs should be: that of this program, or `SPINDLE_BIN_DIR`.
pub(crate) fn program_folder() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("SPINDLE_BIN_DIR") {
        return Ok(PathBuf::from(folder));
    }
    let own = std::env::current_exe().context(|| "finding this program".to_owned())?;
    let folder = own.parent().unwrap_or(Path::new("/"));
    // Tests lie one folder below.
    Ok(if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder }.to_owned())
}

/// The folder of the gateway's programs; an error that says how to build them if one is missing.
pub fn programs() -> Result<PathBuf> {
    let folder = program_folder()?;
    for name in ["spindle", "spindle-dataplane", "spindle-control"] {
        if !folder.join(name).exists() {
            let place = folder.display();
            let text = format!("{place} has no {name}; build it with `cargo build --workspace --bins`");
            return Err(Error::Machine(text));
        }
    }
    Ok(folder)
}

/// A gateway in its namespace. Its files survive in its directory; its processes are killed on drop.
#[derive(Debug)]
pub struct Gateway {
    side: Side,
    namespace: String,
    directory: PathBuf,
    programs: PathBuf,
    running: Option<Running>,
}

/// A command of the command line that runs beside; killed when dropped.
#[derive(Debug)]
pub struct Background(Child);

impl Background {
    /// Interrupts it, as by Ctrl-C, and waits for its end; was that a success?
    pub fn interrupt(mut self) -> Result<bool> {
        let what = || "waiting for a command's end".to_owned();
        let _ = kill(Pid::from_raw(self.0.id() as i32), Signal::SIGINT);
        self.0.wait().map(|status| status.success()).context(what)
    }

    /// Waits until it ends by itself; was that a success?
    pub fn wait(mut self) -> Result<bool> {
        self.0.wait().map(|status| status.success()).context(|| "waiting for a command's end".to_owned())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = killpg(Pid::from_raw(self.0.id() as i32), Signal::SIGKILL);
        let _ = self.0.wait();
    }
}

#[derive(Debug)]
struct Running {
    child: Child,
    /// When it was started, CLOCK_REALTIME in nanoseconds.
    started: u64,
    _guard: Guard,
}

impl Drop for Running {
    fn drop(&mut self) {
        // The guard, which drops next, only knows the group; without a wait a zombie would stay.
        let _ = killpg(Pid::from_raw(self.child.id() as i32), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

impl Gateway {
    /// Writes the configuration of one side's gateway, whose programs lie in `programs`; nothing runs yet.
    pub fn new(
        side: Side,
        addresses: &Addresses,
        namespace: &Namespace,
        directory: &Path,
        programs: &Path,
    ) -> Result<Gateway> {
        let gateway = Gateway {
            side,
            namespace: namespace.name().to_owned(),
            directory: directory.to_owned(),
            programs: programs.to_owned(),
            running: None,
        };
        gateway.configure(&Settings::default(), addresses)?;
        Ok(gateway)
    }

    /// Writes another configuration, for the next start.
    pub fn configure(&self, settings: &Settings, addresses: &Addresses) -> Result<()> {
        let what = || format!("writing the configuration in {}", self.directory.display());
        for folder in ["state", "run"] {
            std::fs::create_dir_all(self.directory.join(folder)).context(what)?;
        }
        std::fs::write(self.config(), settings.text(self.side, addresses, &self.directory)).context(what)
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.directory.join("spindle.toml")
    }

    /// Where its state, its configuration and its log lie.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn name(&self) -> String {
        format!("gateway {}", self.side.letter().to_ascii_uppercase())
    }

    /// What it wrote to standard output and error, in all its lives.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// The last lines of its log, for an error message.
    fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// Starts `spindle up` as the leader of a process group; when, CLOCK_REALTIME in nanoseconds.
    pub fn start(&mut self) -> Result<u64> {
        self.start_with(&[])
    }

    /// The same with further arguments of `spindle up`.
    pub fn start_with(&mut self, arguments: &[&str]) -> Result<u64> {
        let what = || "starting `spindle up`".to_owned();
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.directory.join("log"))
            .context(what)?;
        let mut command = self.in_namespace(&self.programs.join("spindle"));
        command.arg("up").arg("--config").arg(self.config()).args(arguments);
        command.stdin(Stdio::null()).stdout(log.try_clone().context(what)?).stderr(log);
        let started = now();
        let child = command.spawn().context(what)?;
        let guard = Guard::process_group(child.id() as i32);
        self.running = Some(Running { child, started, _guard: guard });
        Ok(started)
    }

    fn in_namespace(&self, program: &Path) -> std::process::Command {
        let mut command = std::process::Command::new("ip");
        command.args(["netns", "exec", &self.namespace]).arg(program).process_group(0);
        command
    }

    /// When it was last started, CLOCK_REALTIME in nanoseconds, if it runs.
    pub fn started(&self) -> Option<u64> {
        self.running.as_ref().map(|running| running.started)
    }

    /// The PID of `spindle up`, which is also its process group.
    pub fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(|running| running.child.id())
    }

    /// Waits until it says that it is ready; when it was, CLOCK_REALTIME in nanoseconds.
    pub fn wait_ready(&mut self, patience: Duration) -> Result<u64> {
        self.wait_event("ready", patience)
    }

    /// Waits for an event of this life; when it was, CLOCK_REALTIME in nanoseconds.
    pub fn wait_event(&mut self, event: &str, patience: Duration) -> Result<u64> {
        let deadline = Instant::now() + patience;
        let name = self.name();
        let Some(running) = &self.running else {
            return Err(Error::Subject(format!("{name} does not run")));
        };
        let started = running.started;
        loop {
            // Until it is up the command fails; that isn't an error yet.
            let events = self.events().unwrap_or_default();
            if let Some(found) =
                events.iter().find(|found| found.event == event && found.at_us >= started / 1_000)
            {
                return Ok(found.at_us * 1_000);
            }
            if let Some(running) = &mut self.running
                && let Ok(Some(status)) = running.child.try_wait()
            {
                let end = self.log_end();
                return Err(Error::Subject(format!(
                    "{name} ended by itself ({status}); its log ends:\n{end}"
                )));
            }
            if Instant::now() > deadline {
                let end = self.log_end();
                let text =
                    format!("{name} did not report `{event}` within {patience:?}; its log ends:\n{end}");
                return Err(Error::Subject(text));
            }
            std::thread::sleep(Duration::from_millis(25));
        }
    }

    /// Kills the whole process group with SIGKILL; when, CLOCK_REALTIME in nanoseconds. What lay in its run
    /// directory is gone as after a reboot; its state directory and anchor survive. An error if a process lives on.
    pub fn kill_group(&mut self) -> Result<u64> {
        let Some(mut running) = self.running.take() else {
            return Err(Error::Subject(format!("{} does not run", self.name())));
        };
        let killed = now();
        killpg(Pid::from_raw(running.child.id() as i32), Signal::SIGKILL)
            .context(|| format!("killing {}", self.name()))?;
        let _ = running.child.wait();
        self.wait_gone()?;
        drop(running);
        drop(std::fs::remove_dir_all(self.directory.join("run")));
        drop(std::fs::create_dir(self.directory.join("run")));
        Ok(killed)
    }

    fn wait_gone(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            let left = crate::cleanup::processes_in(&self.namespace);
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Error::Subject(format!("processes of {} live on: {left:?}", self.name())));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asks it to end with SIGTERM and waits; an error if it doesn't within ten seconds.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut running) = self.running.take() else { return Ok(()) };
        kill(Pid::from_raw(running.child.id() as i32), Signal::SIGTERM)
            .context(|| format!("stopping {}", self.name()))?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while running.child.try_wait().context(|| "waiting for a gateway".to_owned())?.is_none() {
            if Instant::now() > deadline {
                return Err(Error::Subject(format!("{} did not end on SIGTERM", self.name())));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.wait_gone()
    }

    /// Runs `spindle VERB…` against this gateway (`list-sas --json`, say); what it printed.
    pub fn spindle(&self, line: &str) -> Result<String> {
        run(&mut self.verb(line))
    }

    /// A verb. The gateway is found by its run directory, from any namespace: its configuration may be long to read.
    fn verb(&self, line: &str) -> std::process::Command {
        let program = self.programs.join("spindle");
        let (mut command, by) = match line.split_whitespace().next() {
            // These are about interfaces.
            Some("close" | "open") => (self.in_namespace(&program), ["--config".into(), self.config()]),
            _ => (std::process::Command::new(program), ["--run-dir".into(), self.directory.join("run")]),
        };
        command.args(line.split_whitespace()).args(by).process_group(0);
        command
    }

    /// Begins a verb and does not wait for its end.
    pub fn begin(&self, line: &str) -> Result<Background> {
        let mut command = self.verb(line);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Background(command.spawn().context(|| format!("starting `spindle {line}`"))?))
    }

    /// Runs a verb with `--json`.
    pub fn json(&self, verb: &str) -> Result<serde_json::Value> {
        let text = self.spindle(&format!("{verb} --json"))?;
        serde_json::from_str(&text)
            .map_err(|error| Error::Subject(format!("`spindle {verb} --json` of {}: {error}", self.name())))
    }

    /// Brings up the Child SA.
    pub fn initiate(&self) -> Result<()> {
        self.spindle("initiate ab").map(drop)
    }

    /// Its counters, as `spindle stats --json` gives them.
    pub fn stats(&self) -> Result<serde_json::Value> {
        self.json("stats")
    }

    /// Waits until it has read all datagrams that the kernel has for its namespace by now.
    pub(crate) fn wait_read(&self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        let control = &self.json("status")?["pids"]["control"];
        let tables = ["udp", "udp6"].map(|table| format!("/proc/{control}/net/{table}"));
        loop {
            let read = tables.iter().map(|file| {
                std::fs::read_to_string(file).context(|| format!("reading {file}")).map(|t| has_unread(&t))
            });
            if !read.collect::<Result<Vec<bool>>>()?.contains(&true) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Error::Subject(format!("{} reads no datagrams any more", self.name())));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// What it reported since it was started, oldest first.
    pub fn events(&self) -> Result<Vec<GatewayEvent>> {
        serde_json::from_value(self.json("events")?)
            .map_err(|error| Error::Subject(format!("`spindle events --json` of {}: {error}", self.name())))
    }

    /// The first event of a name at or after a time (CLOCK_REALTIME in nanoseconds); its time.
    pub fn event_since(events: &[GatewayEvent], event: &str, since: u64) -> Option<u64> {
        events
            .iter()
            .find(|found| found.event == event && found.at_us >= since / 1_000)
            .map(|found| found.at_us * 1_000)
    }
}

/// Is a receive queue of one of the kernel's tables of sockets (`/proc/net/udp`) not empty? The fifth column holds both
/// queues' octets, in hexadecimal.
fn has_unread(table: &str) -> bool {
    let queues = table.lines().skip(1).filter_map(|line| line.split_whitespace().nth(4)?.split_once(':'));
    queues.into_iter().any(|(_, receive)| receive.bytes().any(|digit| digit != b'0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_is_not_empty_is_seen() {
        let table = |receive| {
            format!(
                "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n \
                 101: 010200C0:01F4 00000000:0000 07 0000A000:00000000 00:00000000 00000000     0        0 4711\n \
                 102: 010200C0:1194 00000000:0000 07 00000000:{receive} 00:00000000 00000000     0        0 4712\n"
            )
        };
        assert!(!has_unread(&table("00000000")));
        assert!(has_unread(&table("00000300")));
        assert!(!has_unread(""));
    }

    #[test]
    fn a_schedule_ends_after_its_last_retransmission_went_unanswered() {
        let short = Retransmit { timeout: Duration::from_millis(100), base: 2.0, tries: 2 };
        assert_eq!(short.total(), Duration::from_millis(700));
        // strongSwan's defaults: a request is given up after 165 s.
        assert_eq!(Settings::default().retransmit.total().as_secs(), 165);
    }

    #[test]
    fn both_sides_configurations_mirror_each_other() {
        let (settings, addresses) = (Settings::default(), Addresses::default());
        let a = settings.text(Side::A, &addresses, Path::new("/d"));
        let b = settings.text(Side::B, &addresses, Path::new("/d"));
        assert!(a.contains("local = { address = \"192.0.2.1\", id = \"a.example\""));
        assert!(b.contains("remote = { address = \"192.0.2.1\", id = \"a.example\" }"));
        assert!(a.contains("local_ts = [\"10.1.0.0/24\"]") && b.contains("remote_ts = [\"10.1.0.0/24\"]"));
        assert!(b.contains("outside = [\"b-out\"]"));
    }
}
