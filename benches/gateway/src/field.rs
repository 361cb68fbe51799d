//! Where one gateway is measured: a generator before it, a sink behind it, each in a network namespace of its own.
//!
//! ```text
//!  source            gateway             sink
//!  a-host ═══════ a-in   a-out ═══════ sink
//!  10.1.0.2     10.1.0.1  192.0.2.1    192.0.2.2
//! ```
//!
//! The generator makes plain packets by XDP live frames in one long call on the first core, where the kernel also runs the
//! NAPI of `a-in`. The gateway has the second core. The sink's NAPI runs where [`Napi`] says, for all gateways alike: which
//! core it is on decides what sending costs.

use crate::process::{Process, wait_until};
use anyhow::{Context, Result, bail};
use spindle_bpf::storm::{PlainOptions, Sink, Storm};
use spindle_testbed::{Addresses, Namespace, PREFIX, Side, parse_mac};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The generator's core.
pub(crate) const GENERATOR_CORE: usize = 0;
/// The gateway's core.
pub(crate) const GATEWAY_CORE: usize = 1;
/// What a gateway may take until packets pass it.
const PATIENCE: Duration = Duration::from_secs(20);
/// From the first packets that pass to the measurement.
const SETTLE: Duration = Duration::from_millis(300);
/// The sink's interface.
const SINK: &str = "sink";

/// Where the kernel receives what the gateway has sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Napi {
    /// In a kernel thread on the generator's core, as if the next hop were another machine.
    Threaded,
    /// Where it was sent: on the gateway's core.
    Softirq,
}

impl Napi {
    /// As the rows say it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Napi::Threaded => "next hop on the generator's core",
            Napi::Softirq => "next hop on the gateway's core",
        }
    }
}

/// What one measurement counted.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Rate {
    /// Frames per second at the sink.
    pub(crate) frames: f64,
    /// Octets of a frame, with its Ethernet header.
    pub(crate) octets: f64,
}

/// The namespaces; removed on drop, with what runs in them.
pub(crate) struct Field {
    /// Of the generator.
    pub(crate) source: Namespace,
    /// Of the gateway.
    pub(crate) gateway: Namespace,
    /// Of the sink.
    pub(crate) sink: Namespace,
    /// The addresses on both sides.
    pub(crate) addresses: Addresses,
}

/// A name that belongs to this process, by which what a killed one left is found.
pub(crate) fn namespace(what: &str) -> Result<Namespace> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let namespace = Namespace::create(&format!("{PREFIX}-{}-{number}-{what}", std::process::id()))?;
    namespace.sysctl("ipv6/conf/default/disable_ipv6", "1")?;
    Ok(namespace)
}

/// A veth pair whose ends are up.
pub(crate) fn join((one, name): (&Namespace, &str), (other, others): (&Namespace, &str)) -> Result<()> {
    one.ip(&format!("link add {name} type veth peer name {others} netns {}", other.name()))?;
    one.ip(&format!("link set {name} up"))?;
    other.ip(&format!("link set {others} up"))?;
    Ok(())
}

/// A neighbour that nobody has to be asked for.
pub(crate) fn neighbour(of: (&Namespace, &str), address: Ipv4Addr, at: (&Namespace, &str)) -> Result<()> {
    let mac = at.0.mac(at.1)?;
    of.0.ip(&format!("neigh replace {address} lladdr {mac} dev {} nud permanent", of.1))?;
    Ok(())
}

impl Field {
    /// Makes the namespaces. The kernel forwards nothing between them.
    pub(crate) fn create() -> Result<Field> {
        spindle_testbed::prepare()?;
        let field = Field {
            source: namespace("source")?,
            gateway: namespace("gateway-a")?,
            sink: namespace("sink")?,
            addresses: Addresses::default(),
        };
        let (inside, outside, host) =
            (Side::A.inside_interface(), Side::A.outside_interface(), Side::A.host_interface());
        join((&field.source, &host), (&field.gateway, &inside))?;
        join((&field.gateway, &outside), (&field.sink, SINK))?;
        let (a, peer) = (&field.addresses, field.addresses.gateway_outside(Side::B));
        field.gateway.ip(&format!("addr add {}/24 dev {inside}", a.gateway_inside(Side::A)))?;
        field.gateway.ip(&format!("addr add {}/24 dev {outside}", a.gateway_outside(Side::A)))?;
        neighbour((&field.gateway, &outside), peer, (&field.sink, SINK))?;
        neighbour((&field.gateway, &inside), a.host(Side::A), (&field.source, &host))?;
        field.gateway.sysctl("ipv4/ip_forward", "0")?;
        Ok(field)
    }

    /// The MAC address of the host.
    pub(crate) fn host_mac(&self) -> Result<String> {
        Ok(self.source.mac(&Side::A.host_interface())?)
    }

    /// The MAC address of the peer's outer interface.
    pub(crate) fn peer_mac(&self) -> Result<String> {
        Ok(self.sink.mac(SINK)?)
    }

    /// Waits until XDP programs stand on both of the gateway's interfaces.
    pub(crate) fn wait_attached(&self, by: &mut Process) -> Result<()> {
        for interface in [Side::A.inside_interface(), Side::A.outside_interface()] {
            wait_until("an XDP program on each interface", PATIENCE, || {
                by.check()?;
                Ok(self.gateway.ip(&format!("-j link show dev {interface}"))?.contains("\"xdp\""))
            })?;
        }
        Ok(())
    }

    /// Sends plain packets of so many octets at full rate for so long, and counts what the gateway makes of them.
    pub(crate) fn measure(&self, size: u16, seconds: f64, napi: Napi) -> Result<Rate> {
        let sink = self.sink.enter(|| -> Result<Sink> { Ok(Sink::attach(index(SINK)?, 0)?) })??;
        if napi == Napi::Threaded {
            thread_napi(&self.sink)?;
        }
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let generator = scope.spawn(|| self.source.enter(|| self.generate(size, &stop)));
            let rate = count(&sink, seconds);
            stop.store(true, Ordering::Relaxed);
            let generated = generator.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            generated??;
            rate
        })
    }

    fn generate(&self, size: u16, stop: &AtomicBool) -> Result<()> {
        let (host, inside) = (Side::A.host_interface(), Side::A.inside_interface());
        let storm = Storm::load_plain(&PlainOptions {
            interface: index(&host)?,
            source_mac: parse_mac(&self.source.mac(&host)?)?,
            destination_mac: parse_mac(&self.gateway.mac(&inside)?)?,
            source: self.addresses.host(Side::A),
            destination: self.addresses.host(Side::B),
            size,
        })?;
        storm.run(Duration::from_secs(120), Some(GENERATOR_CORE), stop, |_| ())?;
        Ok(())
    }
}

/// What arrives at the sink, from a moment after the first frames on.
fn count(sink: &Sink, seconds: f64) -> Result<Rate> {
    wait_until("packets behind the gateway", PATIENCE, || Ok(sink.counts()?.frames > 1000))?;
    std::thread::sleep(SETTLE);
    let (before, began) = (sink.counts()?, Instant::now());
    std::thread::sleep(Duration::from_secs_f64(seconds));
    let (after, elapsed) = (sink.counts()?, began.elapsed());
    let frames = (after.frames - before.frames) as f64;
    if frames == 0.0 {
        bail!("packets came through at first, and then no more");
    }
    let octets = (after.octets - before.octets) as f64 / frames;
    Ok(Rate { frames: frames / elapsed.as_secs_f64(), octets })
}

/// Has the sink's NAPI run in a kernel thread, on the generator's core.
fn thread_napi(namespace: &Namespace) -> Result<()> {
    let status =
        namespace.command("sh").args(["-c", &format!("echo 1 > /sys/class/net/{SINK}/threaded")]).status()?;
    if !status.success() {
        bail!("the kernel knows no threaded NAPI (Linux 5.12 has it)");
    }
    let thread = kernel_thread(&format!("napi/{SINK}-")).context("the sink's NAPI has no thread")?;
    let mut cores = rustix::thread::CpuSet::new();
    cores.set(GENERATOR_CORE);
    rustix::thread::sched_setaffinity(Some(thread), &cores).context("moving the sink's NAPI")?;
    // It shares that core with the generator, as much its equal as the run was begun.
    let nice = rustix::process::getpriority_process(None)?;
    rustix::process::setpriority_process(Some(thread), nice).context("the priority of the sink's NAPI")
}

/// The latest kernel thread whose name begins like this.
fn kernel_thread(prefix: &str) -> Option<rustix::process::Pid> {
    let all = std::fs::read_dir("/proc").ok()?.flatten();
    let is_it = |pid: &i32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with(prefix))
    };
    let pids = all.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok());
    rustix::process::Pid::from_raw(pids.filter(is_it).max()?)
}

/// The index of an interface of the calling thread's namespace.
fn index(interface: &str) -> Result<u32> {
    use rustix::net::{AddressFamily, SocketType, netdevice, socket};
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    netdevice::name_to_index(&socket, interface).with_context(|| format!("there is no interface {interface}"))
}
