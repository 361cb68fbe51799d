//! The dataplane process: workers, each on an AF_XDP queue of either side, steered by XDP, told by control what to do.
//!
//! ```text
//! control ── commands ──► workers ── events ──► control       worker ◄─ frames ─► AF_XDP inside, outside
//! kernel ◄─ rtnetlink ─► main ── next hops, addresses ──► workers ── unresolved destinations ──► main
//!                                 worker ◄─ frames of others' SAs ─► worker
//! ```
//!
//! Main sets everything up, then follows the kernel's tables and copies counters until it is told to end. Exit codes:
//! 0 ended as told, 1 failed while running, 2 could not start (and how to mend it).

#![forbid(unsafe_code)]

mod capture;
mod capture_server;
mod devices;
mod handover;
mod held;
mod interface;
mod network;
mod outlet;
mod worker;

use anyhow::{Context, Result, anyhow, bail};
use capture_server::Captures;
use clap::{Parser, ValueEnum};
use crossbeam::queue::ArrayQueue;
use devices::Device;
use futures_util::{Stream, StreamExt};
use handover::{Neighbours, Sleeper};
use held::Towards;
use interface::{Interface, VlanDevice, port_config};
use netlink_packet_route::RouteNetlinkMessage;
use network::{Changed, Network};
use outlet::Outlet;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;
use rustix::event::{EventfdFlags, eventfd};
use rustix::mm::MlockAllFlags;
use rustix::process::{DumpableBehavior, Signal};
use rustix::thread::CpuSet;
use spindle_abi::{RING_SIZE, RING_SIZES};
use spindle_aead::Provider;
use spindle_bpf::steer::{MAX_SPIS, Mode, NAT_PORT, Side, Steer};
use spindle_engine::{Engine, EngineConfig, PortConfig, PortId, SaRegion};
use spindle_port::{Vlan, WorkerPorts, XdpPort, bind_workers};
use spindle_ring::capture::OUTSIDE;
use spindle_ring::capture_socket;
use spindle_ring::{Bell, Broken, CounterWriter, DataplaneSide, Heir};
use std::io::{IsTerminal, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use worker::{Polling, SOCKET_COUNTER_NAMES, Shared, Worker};

/// Between two copies of the XDP programs' counters.
const COUNTERS: Duration = Duration::from_millis(20);
/// Destinations that wait to be looked up, and updates that wait to be taken.
const QUEUE: usize = 1024;

/// Spindle's dataplane. Started by `spindle up`, not by hand.
#[derive(Parser, Debug)]
#[command(version)]
struct Arguments {
    /// The protected side's interface, if it has one of its own.
    #[arg(long)]
    inside: Option<String>,
    /// A TUN device by which the host's own stack is on the protected side: NUMBER:NAME. Number 0 is the inside.
    #[arg(long = "tun")]
    tuns: Vec<Device>,
    /// The unprotected side's interface.
    #[arg(long)]
    outside: String,
    /// The VLAN of the inside interface that is the protected side, with the kernel's device for it: ID:DEVICE.
    #[arg(long)]
    inside_vlan: Option<VlanDevice>,
    /// The same of the outside interface.
    #[arg(long)]
    outside_vlan: Option<VlanDevice>,
    /// The UDP port on which ESP comes in UDP.
    #[arg(long, default_value_t = NAT_PORT)]
    nat_port: u16,
    /// The core that the worker stays on; the first one, if there are several, and the others follow.
    #[arg(long)]
    core: Option<usize>,
    /// What an idle worker does.
    #[arg(long, value_enum, default_value = "adaptive")]
    polling: Polling,
    /// Descriptors of each AF_XDP ring: a power of two from 64 to 16,384. A worker has ten frames of 4 KiB for each.
    #[arg(long, default_value_t = RING_SIZE, value_parser = ring_size)]
    ring_size: u32,
    /// The gateway's run directory, where `spindle capture` asks; without it nobody can.
    #[arg(long)]
    run_dir: Option<PathBuf>,
    /// For tests: packets on unknown SPIs go to the socket of all others, which then shares their fate.
    #[arg(long, hide = true)]
    one_socket: bool,
    /// Where XDP runs.
    #[arg(long, value_enum, default_value = "native")]
    xdp_mode: XdpMode,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum XdpMode {
    /// In the driver.
    Native,
    /// In the kernel's stack, for drivers without XDP.
    Generic,
}

fn ring_size(text: &str) -> Result<u32, String> {
    let size = text.parse().ok().filter(|size: &u32| RING_SIZES.contains(size) && size.is_power_of_two());
    size.ok_or_else(|| format!("must be a power of two from {} to {}", RING_SIZES.start(), RING_SIZES.end()))
}

/// What `spindle upgrade` asks before it puts this program in: could it go on with what the running one shares?
fn facts() -> String {
    let [header, records] = spindle_ring::LAYOUT;
    let version = env!("CARGO_PKG_VERSION");
    format!(
        r#"{{"program":"spindle-dataplane","version":"{version}","layout":"{header:016x}{records:016x}","kept":""}}"#
    )
}

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == "--facts") {
        // Who asked reads it, or has gone.
        let _ = writeln!(std::io::stdout(), "{}", facts());
        return ExitCode::SUCCESS;
    }
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()),
        )
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(2, &error.into()),
    };
    runtime.block_on(async {
        match Dataplane::start(&arguments).await {
            Err(error) => fail(2, &error),
            Ok(dataplane) => match dataplane.run().await {
                Err(error) => fail(1, &error),
                Ok(()) => ExitCode::SUCCESS,
            },
        }
    })
}

fn fail(code: u8, error: &anyhow::Error) -> ExitCode {
    tracing::error!("spindle-dataplane: {error:#}");
    ExitCode::from(code)
}

/// The running process.
struct Dataplane {
    steer: Steer,
    network: Network,
    handle: rtnetlink::Handle,
    workers: Vec<Arc<Shared>>,
    counters: Arc<CounterWriter>,
    xdp_counters: usize,
    requests: mpsc::Receiver<Towards>,
    notifications: Notifications,
    threads: Vec<std::thread::JoinHandle<()>>,
    /// How the first one of them ends.
    ended: mpsc::Receiver<Result<(), Broken>>,
    /// By which the next attachment comes if control dies alone.
    heir: Option<AsyncFd<Heir>>,
    captures: Option<Captures>,
}

type Notifications = Pin<Box<dyn Stream<Item = RouteNetlinkMessage>>>;

impl Dataplane {
    async fn start(arguments: &Arguments) -> Result<Dataplane> {
        protect_process()?;
        let side = DataplaneSide::from_environment()?;
        #[expect(
            deprecated,
            reason = "an Heir owns the descriptor that it claims to be; the successor is unsafe"
        )]
        let heir =
            Heir::from_environment()?.map(AsyncFd::new).transpose().context("cannot wait for control")?;
        let (connection, handle, notifications) = rtnetlink::new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv6Route,
        ])
        .context("cannot open rtnetlink")?;
        tokio::spawn(connection);
        let workers = side.workers.len();
        let (inside_vlan, outside_vlan) = (arguments.inside_vlan.as_ref(), arguments.outside_vlan.as_ref());
        let inside = match &arguments.inside {
            Some(name) => Some(Interface::find(&handle, name, inside_vlan, workers).await?),
            None => None,
        };
        let outside = Interface::find(&handle, &arguments.outside, outside_vlan, workers).await?;
        if inside.as_ref().is_some_and(|inside| inside.wire.index == outside.wire.index) {
            bail!("--inside and --outside are the same interface; they must be two");
        }
        let inside_is_host = arguments.tuns.iter().any(|device| device.interface == 0);
        if inside_is_host && inside.is_some() {
            bail!("--inside and --tun 0 are both the inside; it must be one");
        }
        let host = network::local_addresses(&handle).await?;
        let local = each_once(&host);
        // The kernel makes a map with millions of buckets, which takes as long as all the rest; so it goes on beside it.
        let (addresses, nat_port) = (local.clone(), arguments.nat_port);
        let loading = std::thread::spawn(move || Steer::load(&addresses, nat_port, MAX_SPIS));

        let inside_index = inside.as_ref().map(|inside| inside.wire.index);
        let mut bound = bind_workers(inside_index, outside.wire.index, workers as u32, arguments.ring_size)?;
        for ports in &mut bound {
            ports.outside.set_vlan(outside.vlan);
            if let (Some(port), Some(inside)) = (&mut ports.inside, &inside) {
                port.set_vlan(inside.vlan);
            }
        }
        let zero_copy = bound.iter().all(|ports| {
            ports.outside.is_zero_copy() && ports.inside.as_ref().is_none_or(XdpPort::is_zero_copy)
        });
        let choice = Provider::choose()?;
        for (provider, algorithm) in &choice.failed {
            tracing::error!(%provider, ?algorithm, "a self-test failed: something is amiss with this machine");
        }
        let config_of = |interface: &Interface| port_config(&interface.link, &host);
        let ports = (inside.as_ref().map(config_of), config_of(&outside));
        // Without an inside nothing leaves by it.
        let mtu = devices::mtu(outside.link.mtu);
        let none =
            || PortConfig { mac: [0; 6], mtu, complete_checksums: false, address: None, address_v6: None };
        let provider = choice.provider;
        let config = EngineConfig::new(local.clone(), ports.0.unwrap_or_else(none), ports.1);
        let region = Some(SaRegion::new(Arc::new(side.sas), Arc::new(side.windows)));
        let workers = workers as u16;
        let config = EngineConfig { provider, nat_port, inside_is_host, region, workers, ..config };
        let mut steer = loading.join().map_err(|_| anyhow!("loading the XDP programs failed"))??;
        let spi_states = steer.take_spi_states()?.context("the XDP program has no SPI states")?;
        let vlans = [(Side::Inside, inside.as_ref()), (Side::Outside, Some(&outside))];
        for (side, vlan) in vlans.into_iter().filter_map(|(side, of)| Some((side, of?.vlan?))) {
            steer.set_vlan(side, vlan.id())?;
        }
        let in_clear = steer.take_in_clear()?.context("the XDP program has no addresses of policies")?;
        for (queue, ports) in (0..).zip(&bound) {
            if let Some(inside) = &ports.inside {
                steer.set_socket(Side::Inside, queue, inside.as_fd())?;
            }
            steer.set_socket(Side::Outside, queue, ports.outside.as_fd())?;
            let background = ports.outside.background().context("the outside port has no background")?;
            steer.set_background(
                queue,
                if arguments.one_socket { ports.outside.as_fd() } else { background },
            )?;
        }
        let mut engines: Vec<Engine> =
            (0..workers).map(|worker| Engine::new(EngineConfig { worker, ..config.clone() })).collect();

        let mut counters = side.counters;
        let mut first = |names: &mut dyn Iterator<Item = &'static str>| -> Result<usize> {
            let mut number = None;
            for name in names {
                let next = counters.define(name).context("more counters than there is room for")?;
                number.get_or_insert(next);
            }
            number.context("no counters")
        };
        let mut numbers = Vec::new();
        for engine in &engines {
            let of_engine = first(&mut engine.counters().iter().map(|(name, _)| name))?;
            numbers.push((of_engine, first(&mut SOCKET_COUNTER_NAMES.into_iter())?));
        }
        let xdp_counters = first(&mut steer.counts()?.into_iter().map(|(name, _)| name))?;

        let counters = Arc::new(counters);
        let sleepers = (0..workers).map(|_| sleeper()).collect::<Result<Vec<_>>>()?;
        let shared = |sleeper: &Arc<Sleeper>| Shared {
            updates: ArrayQueue::new(QUEUE),
            rings: ArrayQueue::new(1),
            captures: ArrayQueue::new(1),
            captured: ArrayQueue::new(2),
            sleeper: sleeper.clone(),
            stop: AtomicBool::new(false),
            counters: counters.clone(),
        };
        let all: Vec<Arc<Shared>> = sleepers.iter().map(|sleeper| Arc::new(shared(sleeper))).collect();
        let outside_mtu = outside.link.mtu;
        let sides = [(PortId::Inside, inside.as_ref()), (PortId::Outside, Some(&outside))];
        let links = sides.into_iter().filter_map(|(port, side)| Some((port, side?.link.clone()))).collect();
        let by_interface = !arguments.tuns.is_empty();
        let network = Network::new(handle.clone(), links, by_interface, all.clone()).await?;
        let (requests_in, requests) = mpsc::channel(QUEUE);
        let mut xdp = Some((spi_states, in_clear));
        let mut ready = Vec::new();
        let parts = bound.into_iter().zip(side.workers).zip(Neighbours::of_all(&sleepers)).zip(numbers);
        for (((ports, rings), neighbours), (engine_counters, socket_counters)) in parts {
            let WorkerPorts { inside, outside, pool } = ports;
            let events = (rings.urgent, rings.noise);
            let mut outlet =
                Outlet::new([inside, Some(outside)], pool, neighbours, events, requests_in.clone());
            outlet.tuns = devices::open(&handle, &arguments.tuns, outside_mtu).await?;
            ready.push(Worker {
                engine: engines.remove(0),
                outlet,
                commands: rings.commands,
                activity: side.activity.clone(),
                xdp: xdp.take(),
                shared: all[ready.len()].clone(),
                polling: arguments.polling,
                engine_counters,
                socket_counters,
            });
        }
        let mode = match arguments.xdp_mode {
            XdpMode::Native => Mode::Native,
            XdpMode::Generic => {
                tracing::warn!(
                    "generic XDP: frames that the kernel has merged (up to 65,226 octets) are too long and are dropped \
                     (socket_*_dropped); `ethtool -K NAME gro off gso off tso off` on the senders avoids it"
                );
                Mode::Generic
            }
        };
        if let Some(inside) = &inside {
            steer.attach(Side::Inside, inside.wire.index, mode).context(inside.wire.name.clone())?;
        }
        steer.attach(Side::Outside, outside.wire.index, mode).context(outside.wire.name.clone())?;
        let vlan =
            |interface: Option<&Interface>| interface.and_then(|interface| interface.vlan).map(Vlan::id);
        tracing::info!(
            inside_vlan = vlan(inside.as_ref()),
            outside_vlan = vlan(Some(&outside)),
            inside = inside.map_or("the host".to_owned(), |inside| inside.wire.name),
            outside = outside.wire.name,
            ?mode,
            zero_copy,
            workers,
            generation = side.generation,
            "XDP is attached"
        );
        let captures = match &arguments.run_dir {
            Some(run_dir) => {
                let interfaces = interfaces(arguments);
                let listening = Captures::listen(run_dir, interfaces, nat_port);
                Some(listening.with_context(|| format!("cannot listen in {}", run_dir.display()))?)
            }
            None => None,
        };
        let (end, ended) = mpsc::channel(ready.len());
        let start = |(number, worker)| start_worker(worker, number, arguments.core, end.clone());
        let threads = ready.into_iter().enumerate().map(start).collect::<Result<_>>()?;
        Ok(Dataplane {
            steer,
            network,
            handle,
            workers: all,
            counters,
            xdp_counters,
            requests,
            notifications: Box::pin(notifications.filter_map(|(message, _)| {
                std::future::ready(match message.payload {
                    NetlinkPayload::InnerMessage(inner) => Some(inner),
                    _ => None,
                })
            })),
            threads,
            ended,
            heir,
            captures,
        })
    }

    /// Follows the kernel until SIGTERM or SIGINT.
    async fn run(mut self) -> Result<()> {
        let mut terminate = signal(SignalKind::terminate()).context("cannot wait for signals")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for signals")?;
        let mut tick = tokio::time::interval(COUNTERS);
        let result = loop {
            tokio::select! {
                Some(towards) = self.requests.recv() => self.network.resolve(towards).await,
                Some(message) = self.notifications.next() => match self.network.notice(&message) {
                    Changed::Nothing => {}
                    Changed::Addresses | Changed::Link => self.host_changed().await?,
                    Changed::InterfaceGone(name) => break Err(anyhow!("the interface {name} is gone")),
                },
                _ = tick.tick() => {
                    self.copy_counters();
                    if let Some(captures) = &mut self.captures {
                        captures.collect(&self.workers);
                    }
                }
                asked = async {
                    match &self.captures {
                        Some(captures) => captures.wait().await,
                        None => std::future::pending().await,
                    }
                } => {
                    let served = asked.and_then(|()| match &mut self.captures {
                        Some(captures) => captures.serve(&self.workers),
                        None => Ok(()),
                    });
                    if let Err(error) = served {
                        tracing::warn!(%error, "no capture");
                    }
                }
                ready = async {
                    match &self.heir {
                        Some(heir) => heir.readable().await.map(|mut ready| ready.clear_ready()),
                        None => std::future::pending().await,
                    }
                } => {
                    ready.context("cannot wait for control")?;
                    self.attach()?;
                }
                _ = terminate.recv() => break Ok(()),
                _ = interrupt.recv() => break Ok(()),
                ended = self.ended.recv() => break match ended {
                    Some(Err(broken)) => Err(anyhow::Error::new(broken)),
                    _ => Err(anyhow!("a worker has ended")),
                },
            }
        };
        for worker in &self.workers {
            worker.stop.store(true, Ordering::Relaxed);
            worker.sleeper.wake();
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        self.copy_counters();
        result // dropping `steer` detaches XDP
    }

    /// Control has died and another one been started: the workers go on with new rings.
    fn attach(&self) -> Result<()> {
        let Some(heir) = &self.heir else { return Ok(()) };
        if let Some(side) = heir.get_ref().dataplane_side()? {
            tracing::info!(generation = side.generation, "control has been started anew");
            if side.workers.len() != self.workers.len() {
                bail!("control was started anew with rings for another number of workers");
            }
            for (worker, rings) in self.workers.iter().zip(side.workers) {
                worker.rings.force_push(rings);
                worker.sleeper.wake();
            }
        }
        Ok(())
    }

    /// Addresses or links changed.
    async fn host_changed(&mut self) -> Result<()> {
        let host = network::local_addresses(&self.handle).await?;
        let local = each_once(&host);
        self.steer.set_local_addresses(&local)?;
        for (port, link) in self.network.links() {
            self.network.tell_port(*port, port_config(link, &host));
        }
        self.network.tell_addresses(local);
        Ok(())
    }

    fn copy_counters(&self) {
        let Ok(counts) = self.steer.counts() else { return };
        for (n, (_, value)) in counts.into_iter().enumerate() {
            self.counters.store(self.xdp_counters + n, value);
        }
    }
}

/// Where frames can be captured.
fn interfaces(arguments: &Arguments) -> Vec<capture_socket::Interface> {
    let inside = arguments.inside.iter().map(|name| (0, false, name));
    let tuns = arguments.tuns.iter().map(|device| (device.interface, true, &device.name));
    let outside = [(OUTSIDE, false, &arguments.outside)];
    let all = inside.chain(tuns).chain(outside);
    all.map(|(number, raw, name)| capture_socket::Interface { number, raw, name: name.clone() }).collect()
}

/// Ends with the supervisor; leaves no keys in core files or swap; is not traced.
fn protect_process() -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).context("PR_SET_PDEATHSIG")?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).context("PR_SET_DUMPABLE")?;
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    if let Err(error) = rustix::mm::mlockall(flags) {
        tracing::warn!(%error, "keys may reach the swap: raise `ulimit -l` or grant CAP_IPC_LOCK");
    }
    Ok(())
}

/// This host's addresses.
fn each_once(host: &[(u32, IpAddr)]) -> Vec<IpAddr> {
    let mut all: Vec<_> = host.iter().map(|(_, address)| *address).collect();
    all.sort();
    all.dedup();
    all
}

fn sleeper() -> Result<Arc<Sleeper>> {
    let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).context("eventfd")?;
    Ok(Arc::new(Sleeper::new(Bell::new(bell))))
}

fn start_worker(
    worker: Worker,
    number: usize,
    first_core: Option<usize>,
    ended: mpsc::Sender<Result<(), Broken>>,
) -> Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new()
        .name(format!("worker-{number}"))
        .spawn(move || {
            if let Some(core) = first_core.map(|first| first + number) {
                let mut set = CpuSet::new();
                set.set(core);
                if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
                    tracing::warn!(core, %error, "the worker is not pinned");
                }
            }
            let _ = ended.try_send(worker.run());
        })
        .context("cannot start a worker's thread")
}
