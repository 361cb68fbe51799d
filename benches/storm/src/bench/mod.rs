//! `bench`: one run that measures what a storm is, what it costs, and what survives it.
//!
//! All steps use one topology of the testbed: the storm leaves the delay box towards gateway B's outer interface, so
//! that each step meets the same veth, and only what stands at its far end differs. The generator has the first core
//! (the kernel runs the receiving veth's NAPI there too, in the generator's own system call), the worker the second.

mod dataplane;
mod field;
mod report;
mod tunnel;

use anyhow::{Context, Result, bail};
use clap::Args;
use dataplane::Detection;
use field::{Bounds, Field, GENERATOR_CORE, WORKER_CORE};
use report::Report;
use std::path::PathBuf;
use tunnel::Tunnel;

/// SPIs that the engine's table holds when it is measured alone.
const KNOWN_SPIS: u32 = 100_000;
/// Packets for that.
const ENGINE_PACKETS: u32 = 1 << 20;

#[derive(Args)]
pub(crate) struct BenchArguments {
    /// Write the result to this file as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Seconds of each storm
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Rounds of those measurements that are compared; the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=99))]
    rounds: u8,
}

#[derive(Args)]
pub(crate) struct DetectArguments {
    /// Packets to send at most
    #[arg(long, default_value_t = 200_000)]
    count: u64,
    /// Seconds to send at most
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Packets per second; 0 is as fast as possible
    #[arg(long, default_value_t = 100_000)]
    pps: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(crate) struct FormerArguments {
    /// Former SPIs on each of which a packet comes meanwhile
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=1000))]
    spis: u32,
    /// Seconds to send
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Packets on unknown SPIs go to the socket of all others
    #[arg(long)]
    one_socket: bool,
}

/// One storm on a fresh dataplane; an error if its packets don't add up.
pub(crate) fn detect(arguments: &DetectArguments) -> Result<()> {
    let field = Field::create()?;
    let DetectArguments { count, seconds, pps, json } = *arguments;
    let detection = dataplane::detect(&field, Bounds { count, seconds, pps, nice: 0 })?;
    if json {
        println!("{}", serde_json::to_string(&detection)?);
        return Ok(());
    }
    println!("{} packets sent, {} unknown SPIs detected", detection.sent, detection.detected);
    for (reason, count) in &detection.dropped {
        println!("{count} dropped: {reason}");
    }
    Ok(())
}

/// A storm that the port cannot take, and what becomes of packets on former SPIs meanwhile; as JSON.
pub(crate) fn former(arguments: &FormerArguments) -> Result<()> {
    let field = Field::create()?;
    let FormerArguments { spis, seconds, one_socket } = *arguments;
    let told = dataplane::former(&field, Bounds::full(seconds), spis, one_socket)?;
    println!("{}", serde_json::to_string(&told)?);
    Ok(())
}

/// Measures everything, prints the table, writes the JSON. What fails is said, and the rest is still measured.
pub(crate) fn bench(arguments: &BenchArguments) -> Result<()> {
    let mut report = Report::new();
    let field = Field::create()?;
    let mut missing = Vec::new();
    let mut step = |name: &str, report: &mut Report, measure: &dyn Fn(&mut Report) -> Result<()>| {
        eprintln!("{name} ...");
        if let Err(error) = measure(report) {
            eprintln!("  not measured: {error:#}");
            report.notes.push(format!("{name}: not measured: {error:#}"));
            missing.push(name.to_owned());
        }
    };
    step("the generator's ceiling", &mut report, &|report| {
        report.generator_pps = Some(field.ceiling(arguments.seconds)?);
        Ok(())
    });
    step("the port alone, and the engine's detection", &mut report, &|report| {
        detection(&field, arguments, report)
    });
    step("the engine alone", &mut report, &|report| {
        let nanoseconds = spindle_benches::nanoseconds_per_unknown_spi(KNOWN_SPIS, ENGINE_PACKETS);
        report.engine_ns_per_unknown_spi = nanoseconds.is_finite().then_some(nanoseconds);
        if nanoseconds.is_finite() { Ok(()) } else { bail!("the engine's bench gave no number") }
    });
    step("a tunnel in the storm, and a crash", &mut report, &|report| together(&field, arguments, report));

    println!("{report}");
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))?;
    }
    if !missing.is_empty() {
        bail!("not everything could be measured: {}", missing.join("; "));
    }
    Ok(())
}

/// Alternating rounds, so that whatever else the machine does meets both alike.
fn detection(field: &Field, arguments: &BenchArguments, report: &mut Report) -> Result<()> {
    let (mut recycled, mut detected) = (Vec::new(), Vec::new());
    let mut sum = Detection::default();
    for round in 1..=arguments.rounds {
        let recycle = field.recycle(Bounds::full(arguments.seconds))?;
        let detection = dataplane::detect(field, Bounds::full(arguments.seconds))?;
        eprintln!(
            "  round {round}: {:.2} M/s recycled, {:.2} M/s detected",
            recycle / 1e6,
            detection.pps / 1e6
        );
        recycled.push(recycle);
        detected.push(detection.pps);
        sum.add(detection);
    }
    report.recycle_only_pps = Some(median(recycled));
    report.detected_pps = Some(median(detected));
    report.sent = Some(sum.sent);
    report.detected = Some(sum.detected);
    report.noise_lost = Some(sum.noise_lost);
    report.dropped = sum.dropped;
    Ok(())
}

/// Below the port's capacity, above it, and a crash in between.
fn together(field: &Field, arguments: &BenchArguments, report: &mut Report) -> Result<()> {
    let capacity = report.detected_pps.context("the rate of detection is not known")?;
    let half = |seconds| Bounds { pps: (capacity / 2.0) as u64, nice: 19, ..Bounds::full(seconds) };
    let mut tunnel = Tunnel::establish(field)?;
    let below = tunnel.storm(half(arguments.seconds), GENERATOR_CORE)?;
    report.control_cpu_share = Some(below.control_cpu_share);
    report.tunnel_packets_sent = Some(below.packets_sent);
    report.tunnel_packets_lost = Some(below.packets_lost);
    report.tunnel_below_capacity = Some(below);
    // On the worker's own core the generator takes half of the worker's time, and sends more than is left can take.
    report.tunnel_above_capacity = Some(tunnel.storm(Bounds::full(arguments.seconds), WORKER_CORE)?);
    report.recovery_under_storm_ms = Some(tunnel.crash(half(arguments.seconds + 10.0))?);
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
