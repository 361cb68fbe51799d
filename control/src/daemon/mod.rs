//! The control process: carries datagrams, events, requests and the time to the [`Gateway`], and what it wants done
//! to sockets, rings and disk.
//!
//! One thread, one loop: take what has come (a bounded portion of each), let the gateway work, carry out its outputs
//! in their order, then sleep until a socket, the rings' bell, a request or the gateway's deadline wakes it. The
//! journal's commits have a thread of their own. Everything that must be on disk before the first message is there
//! when [`Store::boot`] returns, and only then does the gateway exist.

mod addresses;
mod bridge;
mod callers;
pub mod disk;
mod events;
mod keep;
mod merge;
mod messages;
mod reload;
mod requests;
mod rotation;
mod safety;
mod server;
mod show;
mod sockets;
mod take_down;
mod wait;
mod watchers;

use crate::config::Settings;
use crate::protocol::{Pids, Status};
use addresses::Addresses;
use bridge::Bridge;
use callers::Callers;
use disk::{Files, Journal};
use events::EventLog;
use keep::Keeper;
use rustix::mm::MlockAllFlags;
use rustix::process::DumpableBehavior;
use rustix::time::{ClockId, clock_gettime};
use server::Asked;
use sockets::Sockets;
use spindle_abi::{Event, Time};
use spindle_ike::api::{ActivityReader, Change, Datagram, Key};
use spindle_ike::random::Random;
use spindle_recovery::api::{Config, Input, Output, Report};
use spindle_recovery::secrets::method_name;
use spindle_recovery::store::{Resumed, SmallFile, SmallFiles, StoreError};
use spindle_recovery::{Gateway, Left, Records};
use spindle_ring::{AttachError, Broken, ControlSide, Heir};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::Receiver;
use wait::Waiter;
use watchers::Watchers;
use zeroize::Zeroizing;

/// Datagrams taken at a time, before what they lead to is sent: a key exchange may come of each.
const PORTION: usize = 32;
/// The same where used tickets are to be on disk before that: a commit takes as long as several resumptions, so more share it.
const PORTION_OF_A_COMMIT: usize = 128;
/// How long a stop waits for the peers' answers once the last Delete is sent.
const STOP: Duration = Duration::from_secs(2);

/// What the supervisor says at the start.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// Its process.
    pub supervisor: u32,
    /// The dataplane's process.
    pub dataplane: u32,
    /// When this incarnation began, microseconds since 1970.
    pub started_us: u64,
    /// Make a new QCD secret.
    pub new_secret: bool,
}

/// Why the process ends.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The operator has to change something first; starting again is of no use.
    #[error("{0}")]
    Refused(String),
    /// The other process, or the machine.
    #[error("{0}")]
    Failed(String),
}

impl From<Broken> for Failure {
    fn from(broken: Broken) -> Failure {
        Failure::Failed(format!("the dataplane broke a ring: {broken:?}"))
    }
}

/// The operating system's randomness.
struct SystemRandom;

impl Random for SystemRandom {
    fn fill(&mut self, octets: &mut [u8]) {
        // Without randomness no key is safe; Linux gives it once booted, so this cannot be survived nor expected.
        getrandom::fill(octets).expect("the kernel gives random octets");
    }
}

fn now() -> Time {
    let t = clock_gettime(ClockId::Monotonic);
    Time(t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64)
}

/// Microseconds since 1970.
pub fn wall_clock_us() -> u64 {
    let t = clock_gettime(ClockId::Realtime);
    t.tv_sec as u64 * 1_000_000 + t.tv_nsec as u64 / 1_000
}

/// Runs by this file until it is told to stop, or something breaks.
pub fn run(file: &Path, start: Start) -> Result<(), Failure> {
    // Keys stay out of core files, of other users' ptrace, and of swap: the last only where no limit could make a
    // later allocation fail.
    let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
    if crate::machine::has_capability(crate::machine::CAP_IPC_LOCK) {
        let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
        let _ = rustix::mm::mlockall(flags);
    }
    let unattached = |e: AttachError| Failure::Failed(e.to_string());
    let side = ControlSide::from_environment().map_err(unattached)?;
    let heir = Heir::from_environment().map_err(unattached)?;
    let kept = Keeper::from_environment().map_err(unattached)?;
    let settings = match kept.as_ref().and_then(|(_, records)| Keeper::configuration(records)) {
        Some(text) => Settings::parse(file, text),
        None => Settings::load(file),
    };
    let settings = settings.map_err(|e| Failure::Refused(e.to_string()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| Failure::Failed(format!("no event loop: {e}")))?.block_on(async {
        let mut daemon = Daemon::start(settings, start, side, heir, kept)?;
        daemon.run().await
    })
}

#[expect(deprecated, reason = "these own the descriptor that they claim to be; the successor is unsafe")]
fn watch<T: AsRawFd>(descriptor: T) -> io::Result<AsyncFd<T>> {
    AsyncFd::new(descriptor)
}

struct Daemon {
    settings: Arc<Settings>,
    status: Status,
    gateway: Gateway,
    bridge: Bridge,
    /// By which the next attachment comes if the dataplane dies alone.
    heir: Option<AsyncFd<Heir>>,
    /// Where there is memory that outlives us.
    keeper: Option<Keeper>,
    activity: Box<dyn ActivityReader>,
    /// Where a cluster moves them.
    addresses: Option<Addresses>,
    sockets: Sockets,
    datagrams: Receiver<Datagram>,
    requests: Receiver<Asked>,
    journal: Journal,
    /// So long it was waited for the disk where nothing else waited.
    waited: Duration,
    files: Files,
    /// Of `rotate-secret`.
    rotations: Callers,
    /// Of `take-down`.
    take_downs: Callers,
    events: EventLog,
    waiters: Vec<Waiter>,
    watchers: Watchers,
    stopping: Option<Time>,
    /// Nothing makes them unsafe.
    makes_tokens: bool,
}

impl Daemon {
    fn start(
        own: Settings,
        start: Start,
        side: ControlSide,
        heir: Option<Heir>,
        kept: Option<(Keeper, Records)>,
    ) -> Result<Daemon, Failure> {
        let settings = &own;
        let state_dir = &settings.gateway.state_dir;
        let refused = |e: StoreError| {
            let problem = match &e {
                StoreError::Database(redb::Error::Io(e)) => format!(
                    "{} cannot be used: {e}; make it readable and writable, or name another directory",
                    state_dir.display()
                ),
                e => format!("{}: {e}", state_dir.display()),
            };
            Failure::Refused(settings.error("gateway.state_dir", problem).to_string())
        };
        let mut store = disk::open_store(state_dir).map_err(refused)?;
        store.set_ticket_lifetime(settings.gateway.ticket_lifetime);
        tracing::debug!("the database is open");
        let mut files = Files::new(settings);
        if settings.recovery.secret_file.is_some() {
            store.share_secret();
            if !start.new_secret {
                shared_secret_is_there(settings, &mut files)?;
            }
        }
        let clock = (wall_clock_us() / 1_000_000, now());
        let method = settings.recovery.token_method;
        let (mut keeper, records) = match kept {
            Some((keeper, records)) => (Some(keeper), records),
            None => (None, Records::default()),
        };
        // What another process of this incarnation left is gone on with; else another incarnation begins.
        let resumed = match records.incarnation() {
            Some(incarnation) => store.resume(&mut files, clock, incarnation),
            None => Ok(None),
        };
        let begun = resumed.and_then(|resumed| match resumed {
            Some(Resumed { booted, current }) => Ok((booted, Some(Left { records, journal: current }))),
            None => {
                let booted = store.boot(&mut files, &mut SystemRandom, clock, start.new_secret, method)?;
                keeper.iter_mut().for_each(Keeper::clear);
                Ok((booted, None))
            }
        });
        let (booted, left) = begun.map_err(|e| match &e {
            StoreError::File(file, _) => of_file(settings, &files, *file, e.to_string()),
            StoreError::SecretMissing | StoreError::SecretMalformed(_) => {
                of_file(settings, &files, SmallFile::Secret, e.to_string())
            }
            _ => refused(e),
        })?;
        if let Some(warning) = booted.anchor.warning(settings.recovery.secret_file.is_some()) {
            tracing::error!("{}: {warning}", settings.gateway.anchor.display());
        }
        if booted.skipped > 0 {
            tracing::warn!("{} journal records were left out", booted.skipped);
        }
        let mut boot = booted.boot;
        tracing::debug!(
            "incarnation {} is on disk, {} former SPIs are read",
            boot.incarnation,
            boot.former.len()
        );
        let made_by = boot.secrets.first().map(|newest| newest.method);
        if settings.recovery.secret_file.is_some() && made_by != Some(method) {
            return Err(Failure::Refused(format!(
                "{}: its secret is not one for recovery.token_method = \"{}\"; write the other method",
                files.path(SmallFile::Secret).display(),
                method_name(method)
            )));
        }
        let off = safety::unsafe_for_tokens(settings).filter(|_| settings.recovery.token_maker);
        if let Some(cluster) = &settings.gateway.cluster {
            boot.maker_id = cluster.clone().into_bytes();
        }

        let ports = [settings.gateway.ike_port, settings.gateway.natt_port];
        let moved = settings.gateway.cluster.is_some();
        let addresses = moved.then(|| Addresses::follow(settings.local_addresses())).transpose();
        let addresses = addresses.map_err(|e| Failure::Failed(format!("cannot follow addresses: {e}")))?;
        // Routes may lead into virtual interfaces, and IKE never does.
        let device = (!settings.devices().is_empty()).then_some(settings.gateway.outside_device());
        let (sockets, datagrams) =
            Sockets::bind(&settings.local_addresses(), ports, moved, device).map_err(|(socket, e)| {
                let fix = match e.kind() {
                    io::ErrorKind::AddrInUse => {
                        "another IKE daemon has it; stop that one (`ss -ulpn` shows it)"
                    }
                    io::ErrorKind::AddrNotAvailable => {
                        "give this machine the address, or correct local.address"
                    }
                    _ => "run as root",
                };
                Failure::Refused(format!("UDP {socket} cannot be bound: {e}; {fix}"))
            })?;
        let run_dir = &settings.gateway.run_dir;
        let requests = server::listen(run_dir)
            .map_err(|e| format!("{} cannot be used: {e}; make it writable", run_dir.display()))
            .map_err(|problem| Failure::Refused(settings.error("gateway.run_dir", problem).to_string()))?;

        let status = Status {
            name: settings.gateway.name.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            incarnation: boot.incarnation,
            ready: false,
            maker_id: match &settings.gateway.cluster {
                Some(cluster) => cluster.clone(),
                None => boot.maker_id.iter().map(|octet| format!("{octet:02x}")).collect(),
            },
            tokens: boot.anchor_matches,
            former_spis: boot.former.len(),
            started_us: start.started_us,
            ready_us: None,
            taken_down: false,
            pids: Pids {
                supervisor: start.supervisor,
                dataplane: start.dataplane,
                control: std::process::id(),
            },
            ike_sas: 0,
            child_sas: 0,
        };
        let journal = Journal::start(store).map_err(|e| Failure::Failed(format!("no thread: {e}")))?;
        let bridge = Bridge::new(side, settings.gateway.natt_port);
        let config = gateway_config(settings, off.is_none());
        let activity = Box::new(bridge.activity());
        let (reader, random) = (Box::new(bridge.activity()), Box::new(SystemRandom));
        let mut gateway = match left {
            Some(left) => Gateway::adopting(config, boot, left, reader, random, now()),
            None if keeper.is_some() => Gateway::keeping(config, boot, reader, random, now()),
            None => Gateway::new(config, boot, reader, random, now()),
        };
        if let Some(addresses) = &addresses {
            gateway.handle(now(), Input::Addresses(addresses.here().to_vec()));
        }
        tracing::debug!("the gateway is made");
        let mut daemon = Daemon {
            settings: Arc::new(own),
            status,
            gateway,
            bridge,
            heir: heir.map(watch).transpose().map_err(|e| Failure::Failed(format!("no event loop: {e}")))?,
            keeper,
            activity,
            addresses,
            sockets,
            datagrams,
            requests,
            journal,
            waited: Duration::ZERO,
            files,
            rotations: Callers::default(),
            take_downs: Callers::default(),
            events: EventLog::new(),
            waiters: Vec::new(),
            watchers: Watchers::default(),
            stopping: None,
            makes_tokens: off.is_none(),
        };
        daemon.keep_configuration();
        let detail = format!("incarnation {}", daemon.status.incarnation);
        let report = |name, detail| Report { name, connection: None, spis: None, spi: None, detail };
        daemon.note(start.started_us, &report("start", detail));
        if let Some(why) = off {
            daemon.note(start.started_us, &report("maker-off", format!("no QCD token leaves: {why}")));
        }
        Ok(daemon)
    }

    /// What the gateway is told of these settings.
    fn config(&self, settings: &Settings) -> Config {
        gateway_config(settings, self.makes_tokens)
    }

    /// So that another control process goes on with this configuration, whatever the file says then.
    fn keep_configuration(&mut self) {
        let text = Zeroizing::new(self.settings.source().as_bytes().to_vec());
        let change = Change { key: Key::Configuration, record: Some(text) };
        self.keeper.iter_mut().for_each(|keeper| keeper.write(std::slice::from_ref(&change)));
    }

    async fn run(&mut self) -> Result<(), Failure> {
        let failed = |e: io::Error| Failure::Failed(format!("no event loop: {e}"));
        let mut bell = watch(self.bridge.bell().map_err(failed)?).map_err(failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let runtime = tokio::runtime::Handle::current().metrics();
        let mut events = Vec::new();
        loop {
            let more = self.work(&mut events)?;
            // What the sockets' tasks take counts too.
            let busy = runtime.worker_total_busy_duration(0);
            self.gateway.worked(now(), busy.saturating_sub(self.waited));
            if self.has_stopped() {
                return Ok(());
            }
            let deadline = self.deadline();
            let due = deadline.is_some_and(|d| d <= now()) && self.bridge.has_room();
            let idle = !more && !due && self.bridge.announce_sleep()?;
            let wait = async {
                match deadline {
                    // The sockets' tasks must have their turn.
                    _ if !idle => tokio::task::yield_now().await,
                    Some(deadline) => tokio::time::sleep(deadline.since(now())).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                _ = terminate.recv() => self.stop(),
                _ = interrupt.recv() => self.stop(),
                Some(asked) = self.requests.recv() => self.answer(asked),
                ready = async {
                    match &self.heir {
                        Some(heir) => heir.readable().await.map(|mut ready| ready.clear_ready()),
                        None => std::future::pending().await,
                    }
                } => {
                    ready.map_err(failed)?;
                    if self.attach(&mut events)? {
                        bell = watch(self.bridge.bell().map_err(failed)?).map_err(failed)?;
                    }
                }
                ready = bell.readable() => ready.map_err(failed)?.clear_ready(),
                () = async {
                    match &self.addresses {
                        Some(addresses) => addresses.wait().await,
                        None => std::future::pending().await,
                    }
                } => self.note_addresses(),
                Some(datagram) = self.datagrams.recv(), if idle && self.status.ready && self.bridge.has_room() => {
                    self.gateway.handle(now(), Input::Datagram(datagram));
                }
                () = wait => {}
            }
        }
    }

    /// Takes what has come, lets the gateway work, and carries out what it wants. Is there more?
    fn work(&mut self, events: &mut Vec<Event>) -> Result<bool, Failure> {
        // Before what came to them.
        self.note_addresses();
        let mut more = self.bridge.events(events)?;
        for event in events.drain(..) {
            self.gateway.handle(now(), Input::Event(event));
        }
        // Before it is ready an answer of ours would be a promise that the dataplane cannot keep; the sockets' queues
        // hold what comes.
        // While the dataplane takes no commands, what would cause more of them waits there too.
        for taken in (1..).take_while(|_| self.status.ready && self.bridge.has_room()) {
            let Ok(datagram) = self.datagrams.try_recv() else { break };
            self.gateway.handle(now(), Input::Datagram(datagram));
            let most = if self.gateway.has_to_persist() { PORTION_OF_A_COMMIT } else { PORTION };
            if taken >= most {
                more = true;
                break;
            }
        }
        // What answers others leaves before what we begin.
        let mut reported = self.carry_out(more)?;
        if self.gateway.deadline().is_some_and(|d| d <= now()) {
            self.gateway.tick(now());
            reported |= self.carry_out(more)?;
        }
        self.bridge.flush()?;
        self.end_rotations();
        self.end_take_downs();
        if reported || self.waiters.iter().any(|w| w.deadline() <= now()) {
            self.settle();
        }
        Ok(more)
    }

    /// Does what the gateway wants. Has it reported something? `more`: of what has come, some is not taken yet.
    fn carry_out(&mut self, more: bool) -> Result<bool, Failure> {
        let mut reported = false;
        while self.bridge.has_room() {
            let Some(output) = self.gateway.poll() else { break };
            match output {
                Output::Transmit(datagram) => {
                    // Should we die right after it, the dataplane has what the peer is told of.
                    self.bridge.flush()?;
                    self.sockets.send(&datagram);
                }
                Output::Command { sequence, command } => {
                    self.tell_watchers(&command);
                    self.bridge.command(sequence, command);
                }
                Output::Journal(write) => self.journal.write(write),
                Output::Secrets { new, keep } => self.write_secrets(new, keep),
                Output::Keep(changes) => self.keeper.iter_mut().for_each(|keeper| keeper.write(&changes)),
                Output::Persist(used) => {
                    let began = now();
                    if !self.journal.remember(used) {
                        self.gateway.cannot_remember();
                    }
                    // One commit takes all that come meanwhile, so it is no load while a round takes those.
                    if !more {
                        self.waited += now().since(began);
                    }
                }
                Output::Report(report) => {
                    reported = true;
                    self.note(wall_clock_us(), &report);
                }
            }
        }
        Ok(reported)
    }

    /// The dataplane has died and another one been started: what the dead one still said, then the rings of the new one.
    fn attach(&mut self, events: &mut Vec<Event>) -> Result<bool, Failure> {
        let next = self.heir.as_ref().map(|heir| heir.get_ref().control_side()).transpose();
        let Some((side, dataplane)) = next.map_err(|e| Failure::Failed(e.to_string()))?.flatten() else {
            return Ok(false);
        };
        // One that broke a ring is not heard to the end.
        while let Ok(more) = self.bridge.events(events) {
            for event in events.drain(..) {
                self.gateway.handle(now(), Input::Event(event));
            }
            if !more {
                break;
            }
        }
        events.clear();
        self.bridge.attach(side);
        self.status.pids.dataplane = dataplane;
        self.gateway.handle(now(), Input::NewDataplane);
        Ok(true)
    }

    fn note_addresses(&mut self) {
        for here in self.addresses.as_mut().map(Addresses::changed).unwrap_or_default() {
            self.gateway.handle(now(), Input::Addresses(here));
        }
    }

    fn deadline(&self) -> Option<Time> {
        let waiters = self.waiters.iter().map(Waiter::deadline);
        let others = self.rotations.deadline().into_iter().chain(self.take_downs.deadline());
        self.gateway.deadline().into_iter().chain(waiters).chain(others).chain(self.stopping).min()
    }

    /// For the log, `spindle events` and those who wait.
    fn note(&mut self, at_us: u64, report: &Report) {
        let Report { name, connection, spis, spi, detail } = report;
        let connection = connection.as_deref().unwrap_or("-");
        match *name {
            "capture-keys" => tracing::warn!(connection, "{name} {detail}"),
            "maker-off" | "secret-rotation-failed" => tracing::error!(connection, ?spis, "{name} {detail}"),
            _ => tracing::info!(connection, ?spis, ?spi, "{name} {detail}"),
        }
        self.events.add(at_us, report);
        match *name {
            "ready" => {
                (self.status.ready, self.status.ready_us) = (true, Some(at_us));
                self.set_interfaces();
            }
            "dataplane-restarted" => self.status.ready = false,
            "dataplane-ready" => {
                self.status.ready = true;
                self.set_interfaces();
            }
            _ => {}
        }
        for waiter in &mut self.waiters {
            waiter.note(report);
        }
        self.note_rotation(report);
    }

    /// The dataplane has made the devices, or found them.
    fn set_interfaces(&self) {
        let settings = Arc::clone(&self.settings);
        tokio::spawn(async move {
            if let Err(error) = crate::interfaces::apply(&settings).await {
                tracing::error!("virtual interfaces lack addresses or routes: {error}");
            }
        });
    }

    fn stop(&mut self) {
        if self.stopping.is_none() {
            tracing::info!("stopping: deleting all SAs");
            let last = self.gateway.shut_down(now());
            self.stopping = Some(last.after(STOP));
        }
    }

    fn has_stopped(&self) -> bool {
        self.stopping.is_some_and(|patience| patience <= now() || self.gateway.count().0 == 0)
    }
}

fn gateway_config(settings: &Settings, makes_tokens: bool) -> Config {
    Config {
        name: settings.gateway.name.clone(),
        connections: settings.connections.clone(),
        policies: settings.policies.clone(),
        methods: settings.recovery.methods.clone(),
        connection_methods: settings.connection_methods.clone(),
        proactive: settings.recovery.proactive,
        // A cluster's members share identities: what one of them holds, another one cannot know.
        replicated: settings.gateway.cluster.is_some(),
        token_maker: settings.recovery.token_maker && makes_tokens,
        token_taker: settings.recovery.token_taker,
        token_method: settings.recovery.token_method,
        secret_rotation: settings.recovery.secret_rotation,
        secret_shared: settings.recovery.secret_file.is_some(),
        journal: settings.recovery.journal,
        limits: settings.recovery.limits,
        cookie_threshold: settings.gateway.cookie_threshold,
        ticket_lifetime: settings.gateway.ticket_lifetime,
    }
}

/// A secret that a cluster shares is brought here by the operator, never made.
fn shared_secret_is_there(settings: &Settings, files: &mut Files) -> Result<(), Failure> {
    let missing = "the QCD secret is missing; copy the cluster's there, or make one with --new-secret";
    match files.read(SmallFile::Secret) {
        Ok(None) => Err(of_file(settings, files, SmallFile::Secret, missing.into())),
        _ => Ok(()),
    }
}

/// A refusal for the sake of a small file, by the key that names it.
fn of_file(settings: &Settings, files: &Files, file: SmallFile, problem: String) -> Failure {
    let key = match file {
        SmallFile::Secret => "recovery.secret_file",
        SmallFile::Anchor => "gateway.anchor",
    };
    Failure::Refused(settings.error(key, format!("{}: {problem}", files.path(file).display())).to_string())
}
