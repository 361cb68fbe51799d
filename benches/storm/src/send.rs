//! `send` and `sink`: the two ends of a storm on the command line, for people and as one line of JSON.

use crate::interface::{Interface, driver_counter, neighbour};
use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use spindle_bpf::storm::{Sink, Storm, StormOptions};
use spindle_testbed::parse_mac;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

#[derive(Args)]
pub(crate) struct SendArguments {
    /// The veth that the storm leaves by
    #[arg(long)]
    pub(crate) interface: String,
    /// Destination address
    #[arg(long)]
    pub(crate) destination: Ipv4Addr,
    /// Its MAC address; without one the kernel's neighbour table is asked
    #[arg(long, value_parser = parse_mac)]
    pub(crate) destination_mac: Option<[u8; 6]>,
    /// Source address, or a prefix from which each packet takes a random one
    #[arg(long, value_parser = parse_prefix)]
    pub(crate) source: (Ipv4Addr, u8),
    /// Packets to send at most
    #[arg(long, default_value_t = u64::from(u32::MAX) - 256)]
    pub(crate) count: u64,
    /// Seconds to send at most
    #[arg(long, default_value_t = 10.0)]
    pub(crate) seconds: f64,
    /// Packets per second; 0 is as fast as possible
    #[arg(long, default_value_t = 0)]
    pub(crate) pps: u64,
    /// Octets of a frame, from the Ethernet header on
    #[arg(long, default_value_t = 96)]
    pub(crate) size: u16,
    /// Encapsulate in UDP, port 4500 (RFC 3948)
    #[arg(long)]
    pub(crate) encapsulated: bool,
    /// The core to send on
    #[arg(long)]
    pub(crate) core: Option<usize>,
    /// How far to yield the core to whoever else needs it, 0 to 19
    #[arg(long, default_value_t = 0)]
    pub(crate) nice: i32,
    /// Chooses the sequence of SPIs; random if not given
    #[arg(long)]
    pub(crate) key: Option<u32>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// What `send` tells.
#[derive(Serialize, Deserialize, Clone, Debug, Default)]
pub(crate) struct Sent {
    /// Frames that the program redirected.
    pub(crate) sent: u64,
    /// Of these, frames that the veth took.
    pub(crate) accepted: u64,
    /// Frames that the veth refused: its ring was full.
    pub(crate) refused_ring_full: u64,
    /// Frames that the kernel could not redirect: interface down, or no XDP program at the far end.
    pub(crate) refused_redirect: u64,
    /// SPIs left out because they are reserved.
    pub(crate) reserved_skipped: u64,
    /// Frames per second, first to last.
    pub(crate) pps: f64,
    /// The key of the sequence of SPIs.
    pub(crate) key: u32,
}

#[derive(Args)]
pub(crate) struct SinkArguments {
    /// The veth to stand on
    #[arg(long)]
    pub(crate) interface: String,
    /// Seconds to stay
    #[arg(long, default_value_t = 10.0)]
    pub(crate) seconds: f64,
    /// Look at the frames, and remember as many SPIs to find duplicates
    #[arg(long, default_value_t = 0)]
    pub(crate) record: u32,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// What `sink` tells.
#[derive(Serialize, Deserialize, Clone, Debug, Default)]
pub(crate) struct Sunk {
    /// Frames that arrived.
    pub(crate) frames: u64,
    /// Frames with ESP.
    pub(crate) esp: u64,
    /// IPv4 headers with a wrong checksum.
    pub(crate) bad_checksums: u64,
    /// ESP with a reserved SPI.
    pub(crate) reserved: u64,
    /// ESP with an SPI seen before.
    pub(crate) duplicates: u64,
    /// ESP whose SPI could not be remembered.
    pub(crate) unrecorded: u64,
}

fn parse_prefix(text: &str) -> Result<(Ipv4Addr, u8)> {
    let (address, length) = text.split_once('/').unwrap_or((text, "32"));
    let length = length.parse().ok().filter(|length| *length <= 32);
    Ok((address.parse()?, length.with_context(|| format!("{text} is no IPv4 prefix"))?))
}

/// The signals that end a storm or a sink early, and still let it tell what it saw.
pub(crate) fn stop_flag() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [Signal::INT, Signal::TERM] {
        signal_hook::flag::register(signal.as_raw(), Arc::clone(&stop))?;
    }
    Ok(stop)
}

/// Keeps this thread on one core.
pub(crate) fn pin(core: usize) -> Result<()> {
    let mut cores = rustix::thread::CpuSet::new();
    cores.set(core);
    rustix::thread::sched_setaffinity(None, &cores).with_context(|| format!("there is no core {core}"))
}

/// Sends a storm.
pub(crate) fn send(arguments: &SendArguments) -> Result<()> {
    let interface = Interface::find(&arguments.interface)?;
    let destination_mac = match arguments.destination_mac {
        Some(mac) => mac,
        None => neighbour(&arguments.interface, arguments.destination)?.with_context(|| {
            format!(
                "the MAC address of {} is not known on {}: ping it first, or give --destination-mac",
                arguments.destination, arguments.interface
            )
        })?,
    };
    if !(0.0..=3600.0).contains(&arguments.seconds) {
        bail!("--seconds: a storm lasts an hour at most");
    }
    let key = match arguments.key {
        Some(key) => key,
        None => getrandom::u32().map_err(|error| anyhow!("the kernel gives no random numbers: {error}"))?,
    };
    let storm = Storm::load(&StormOptions {
        interface: interface.index,
        source_mac: interface.mac,
        destination_mac,
        source: arguments.source.0,
        source_prefix: arguments.source.1,
        destination: arguments.destination,
        encapsulated: arguments.encapsulated,
        size: arguments.size,
        key,
        limit: arguments.count,
        rate: arguments.pps,
    })?;
    let transmitted = || -> Result<(u64, u64)> {
        let counter = |suffix| driver_counter(&arguments.interface, "tx_queue_", suffix);
        Ok((counter("_xdp_xmit")?, counter("_xdp_xmit_errors")?))
    };
    rustix::process::nice(arguments.nice.clamp(0, 19)).context("yielding the core")?;
    let before = transmitted()?;
    let duration = Duration::from_secs_f64(arguments.seconds);
    let stop = stop_flag()?;
    let counts = storm.run(duration, arguments.core, &stop, |_| ())?;
    let after = transmitted()?;
    let (accepted, ring_full) = (after.0 - before.0, after.1 - before.1);
    let sent = Sent {
        sent: counts.sent,
        accepted,
        refused_ring_full: ring_full,
        refused_redirect: counts.sent.saturating_sub(accepted + ring_full),
        reserved_skipped: counts.reserved_skipped,
        pps: counts.rate,
        key,
    };
    if arguments.json {
        println!("{}", serde_json::to_string(&sent)?);
    } else {
        println!("{} packets sent, {:.0} packets/s", sent.sent, sent.pps);
        println!(
            "{} taken by the veth, {} refused for its ring was full",
            sent.accepted, sent.refused_ring_full
        );
        if sent.refused_redirect > 0 {
            println!("{} not redirected: has the far end an XDP program?", sent.refused_redirect);
        }
    }
    Ok(())
}

/// Counts a storm.
pub(crate) fn sink(arguments: &SinkArguments) -> Result<()> {
    let sink = Sink::attach(Interface::find(&arguments.interface)?.index, arguments.record)?;
    let stop = stop_flag()?;
    let end = Instant::now() + Duration::from_secs_f64(arguments.seconds.clamp(0.0, 3600.0));
    if arguments.json {
        println!("{{\"ready\":true}}");
    }
    while Instant::now() < end && !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(10));
    }
    let counts = sink.counts()?;
    let sunk = Sunk {
        frames: counts.frames,
        esp: counts.esp,
        bad_checksums: counts.bad_checksums,
        reserved: counts.reserved,
        duplicates: counts.duplicates,
        unrecorded: counts.unrecorded,
    };
    if arguments.json {
        println!("{}", serde_json::to_string(&sunk)?);
    } else {
        println!("{} frames arrived", sunk.frames);
        if arguments.record > 0 {
            println!(
                "{} with ESP, {} SPIs twice, {} wrong checksums",
                sunk.esp, sunk.duplicates, sunk.bad_checksums
            );
        }
    }
    Ok(())
}
