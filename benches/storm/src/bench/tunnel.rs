//! What a tunnel on the stormed port loses, what control does meanwhile, and a crash in the middle of it.
//!
//! Host A sends a packet each millisecond to host B, through two real gateways; the storm enters the same veth as the
//! tunnel's ESP. Gateway B's worker has its core for itself; all else shares the generator's, which yields to it.

use super::field::{Bounds, Field, GENERATOR_CORE, WORKER_CORE};
use anyhow::{Context, Result, bail};
use rustix::process::Pid;
use serde::Serialize;
use spindle_testbed::{DelayBox, Gateway, Host, Link, Marker, Settings, Side, Stream, StreamLog};
use std::time::{Duration, Instant};

/// Of the tunnel's packets.
const INTERVAL: Duration = Duration::from_millis(1);
/// Octets of their UDP payloads.
const LENGTH: usize = 64;
/// In the delay box.
const ROUND_TRIP: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(10);

/// A tunnel and a storm at the same time.
#[derive(Serialize, Clone, Copy, PartialEq, Debug)]
pub(crate) struct Together {
    /// Packets that host A sent.
    pub(crate) packets_sent: u64,
    /// Of these, packets that host B never got.
    pub(crate) packets_lost: u64,
    /// The storm's rate.
    pub(crate) storm_pps: f64,
    /// The storm's packets that entered the veth.
    pub(crate) storm_sent: u64,
    /// Of these, packets on which the gateway detected an unknown SPI.
    pub(crate) storm_detected: u64,
    /// Control's share of one core, 0 to 1.
    pub(crate) control_cpu_share: f64,
}

impl Together {
    /// The tunnel's share that was lost.
    pub(crate) fn tunnel_loss(&self) -> f64 {
        self.packets_lost as f64 / self.packets_sent.max(1) as f64
    }

    /// The storm's share that was not detected.
    pub(crate) fn storm_loss(&self) -> f64 {
        self.storm_sent.saturating_sub(self.storm_detected) as f64 / self.storm_sent.max(1) as f64
    }
}

/// Two gateways with an established tunnel.
pub(crate) struct Tunnel<'a> {
    field: &'a Field,
    gateways: [Gateway; 2],
    _delay: DelayBox,
    _directory: tempfile::TempDir,
}

impl Tunnel<'_> {
    /// Starts both gateways and brings up the tunnel.
    pub(crate) fn establish(field: &Field) -> Result<Tunnel<'_>> {
        let topology = &field.topology;
        let directory = tempfile::tempdir()?;
        let programs = spindle_testbed::programs()?;
        let delay = DelayBox::start(topology, Link::with_round_trip(ROUND_TRIP))?;
        let gateway = |side: Side, polling: &str, core: usize| -> Result<Gateway> {
            let path = directory.path().join(side.letter().to_string());
            let gateway = Gateway::new(side, &topology.addresses, topology.gateway(side), &path, &programs)?;
            let more_gateway = format!("polling = \"{polling}\"\ncore = {core}");
            gateway.configure(&Settings { more_gateway, ..Settings::default() }, &topology.addresses)?;
            Ok(gateway)
        };
        let mut gateways =
            [gateway(Side::A, "adaptive", GENERATOR_CORE)?, gateway(Side::B, "busy", WORKER_CORE)?];
        for gateway in &mut gateways {
            gateway.start()?;
            gateway.wait_ready(PATIENCE)?;
        }
        gateways[0].initiate()?;
        Ok(Tunnel { field, gateways, _delay: delay, _directory: directory })
    }

    fn host(&self, side: Side) -> Host<'_> {
        let topology = &self.field.topology;
        Host { namespace: topology.host(side), address: topology.addresses.host(side).into() }
    }

    /// Packets from host A to host B; returns once they arrive.
    fn stream(&self) -> Result<Stream> {
        let began = spindle_testbed::now();
        let stream =
            Stream::start(self.host(Side::A), self.host(Side::B), Marker::random(), INTERVAL, LENGTH)?;
        stream.wait_delivery_since(began, PATIENCE).context("nothing passes the tunnel")?;
        Ok(stream)
    }

    /// Unknown SPIs that gateway B has detected.
    fn detected(&self) -> Result<u64> {
        let stats = self.gateways[1].stats()?;
        number(&stats, "unknown_spi_detected").context("`spindle stats` has no unknown_spi_detected")
    }

    /// A storm with these bounds from this core, and what the tunnel loses meanwhile.
    pub(crate) fn storm(&self, bounds: Bounds, core: usize) -> Result<Together> {
        let stream = self.stream()?;
        let (detected, control) = (self.detected()?, Control::find(&self.gateways[1])?);
        let (began, worked) = (Instant::now(), control.worked()?);
        let sent = self.field.begin_storm(bounds, core)?.finish()?;
        let share = (control.worked()? - worked).as_secs_f64() / began.elapsed().as_secs_f64();
        let log = stream.stop(Duration::from_millis(500));
        Ok(Together {
            packets_sent: log.sent.len() as u64,
            packets_lost: log.lost(),
            storm_pps: sent.pps,
            storm_sent: sent.accepted,
            storm_detected: self.detected()?.saturating_sub(detected),
            control_cpu_share: share,
        })
    }

    /// Kills gateway B in a storm, starts it again, and waits for its recovery: milliseconds from ready to the first
    /// packet delivered.
    pub(crate) fn crash(&mut self, bounds: Bounds) -> Result<f64> {
        let stream = self.stream()?;
        let storm = self.field.begin_storm(bounds, GENERATOR_CORE)?;
        std::thread::sleep(Duration::from_millis(500));
        let b = &mut self.gateways[1];
        b.kill_group()?;
        std::thread::sleep(Duration::from_millis(500));
        b.start()?;
        let ready = b.wait_ready(PATIENCE)?;
        let first = stream.wait_delivery_since(ready, PATIENCE);
        let log: StreamLog = stream.stop(Duration::from_millis(100));
        let sent = storm.finish()?;
        let first = first.with_context(|| {
            format!("{} packets sent, none delivered within {PATIENCE:?} of ready", log.sent.len())
        })?;
        if sent.accepted == 0 {
            bail!("the storm did not reach the gateway");
        }
        Ok((first.received - ready) as f64 / 1e6)
    }
}

/// The first number with this name anywhere in JSON.
fn number(value: &serde_json::Value, name: &str) -> Option<u64> {
    match value {
        serde_json::Value::Object(map) => map
            .get(name)
            .and_then(serde_json::Value::as_u64)
            .or_else(|| map.values().find_map(|value| number(value, name))),
        serde_json::Value::Array(list) => list.iter().find_map(|value| number(value, name)),
        _ => None,
    }
}

/// A gateway's control process.
struct Control(Pid);

impl Control {
    /// The child of `spindle up` with this name.
    fn find(gateway: &Gateway) -> Result<Control> {
        let supervisor = gateway.pid().context("the gateway does not run")?;
        let children = std::fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children"))?;
        let is_control = |pid: &i32| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            name.trim() == "spindle-control"
        };
        let pid = children.split_whitespace().filter_map(|pid| pid.parse().ok()).find(is_control);
        Ok(Control(pid.and_then(Pid::from_raw).context("`spindle up` has no child spindle-control")?))
    }

    /// The processor time that it has used: fields 14 and 15 of /proc/PID/stat, in hundredths of a second.
    fn worked(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.as_raw_nonzero()))?;
        let (_, fields) = stat.rsplit_once(") ").context("/proc/PID/stat")?;
        let ticks: Vec<u64> = fields.split(' ').skip(11).take(2).filter_map(|f| f.parse().ok()).collect();
        Ok(Duration::from_millis(ticks.iter().sum::<u64>() * 10))
    }
}
