//! `spindle-concentrator`: crashes a concentrator with very many peers in simulated time, and says how they come back.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout)] // what the program is for

use anyhow::Context;
use clap::{Parser, ValueEnum};
use spindle_benches::Machine;
use spindle_concentrator::costs::Costs;
use spindle_concentrator::report::Report;
use spindle_concentrator::scenario::{MANY, Method, Pacing, Scenario};
use spindle_concentrator::world;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    /// Peers; several numbers: one after the other
    #[arg(long, default_value = "10000", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    peers: Vec<u32>,
    /// How they come back; all methods if none is named
    #[arg(long, value_delimiter = ',')]
    method: Vec<Method>,
    /// Which pace the restarted concentrator keeps; each of them if none is named
    #[arg(long, value_delimiter = ',')]
    pacing: Vec<Pacing>,
    /// `handshakes_total`, unless pacing is off
    #[arg(long, default_value_t = 200)]
    handshakes_total: u32,
    /// Only with tickets, or only without; both if neither is said
    #[arg(long)]
    resumption: Option<Switch>,
    /// Round-trip time to every peer
    #[arg(long, default_value_t = 20.0)]
    rtt_ms: f64,
    /// Of all randomness
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Crashes that are played at the same time, each on a thread: their time is simulated, so it is no matter
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    jobs: u16,
    /// Take the costs from an earlier run's JSON file instead of measuring them; where it is that of `--json` too, rows are
    /// added to it
    #[arg(long)]
    costs: Option<PathBuf>,
    /// Write the report here too
    #[arg(long)]
    json: Option<PathBuf>,
}

impl Arguments {
    fn scenarios(&self) -> Vec<Scenario> {
        let wanted = |only: Option<Switch>, on| only.is_none_or(|only| (only == Switch::On) == on);
        let methods = if self.method.is_empty() { &Method::ALL[..] } else { &self.method };
        let mut scenarios = Vec::new();
        for peers in &self.peers {
            for method in methods {
                // What has no effect is run once.
                let paces = match (method.is_paced(), self.pacing.is_empty()) {
                    (false, _) => &[Pacing::Measured][..],
                    (true, true) => &Pacing::ALL,
                    (true, false) => &self.pacing,
                };
                for pacing in paces {
                    let tickets = |resumption: &bool| match method.may_resume() {
                        true => wanted(self.resumption, *resumption),
                        false => !resumption,
                    };
                    scenarios.extend([false, true].into_iter().filter(tickets).map(|resumption| Scenario {
                        peers: *peers,
                        method: *method,
                        pacing: *pacing,
                        handshakes_total: self.handshakes_total,
                        resumption,
                        rtt: Duration::from_secs_f64(self.rtt_ms.max(0.0) / 1000.0),
                        seed: self.seed,
                        frugal: *peers > MANY,
                    }));
                }
            }
        }
        scenarios
    }
}

/// The report to which rows are added: a new one with costs measured now, or an earlier one with its costs.
fn begin(arguments: &Arguments) -> anyhow::Result<Report> {
    let command =
        format!("scripts/bench concentrator {}", std::env::args().skip(1).collect::<Vec<_>>().join(" "));
    let Some(path) = &arguments.costs else {
        eprintln!("spindle-concentrator: measuring what work costs");
        let machine = Machine::here();
        let costs_us = Costs::measure(arguments.seed)?;
        return Ok(Report { schema: 1, command, machine, costs_us, rows: Vec::new() });
    };
    let text = std::fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let mut report: Report =
        serde_json::from_slice(&text).with_context(|| format!("{} is no report", path.display()))?;
    if arguments.json.as_ref() == Some(path) {
        report.command = format!("{} && {command}", report.command);
    } else {
        (report.command, report.rows) = (command, Vec::new());
    }
    Ok(report)
}

/// Plays scenarios until none is left, and adds what each comes to.
fn work(
    scenarios: &Mutex<VecDeque<Scenario>>,
    report: &Mutex<Report>,
    json: Option<&Path>,
) -> anyhow::Result<()> {
    let next = || scenarios.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let locked = || report.lock().unwrap_or_else(PoisonError::into_inner);
    let costs = locked().costs_us.clone();
    while let Some(scenario) = next() {
        let began = Instant::now();
        let told = |what: &str| {
            eprintln!("spindle-concentrator: {scenario}: {what} ({:.0} s)", began.elapsed().as_secs_f64());
        };
        let observed = world::play(&scenario, &costs, &told)?;
        let row = observed.row(&scenario).context("some peers are not back")?;
        told("all are back");
        let mut report = locked();
        report.add(row);
        // What is there is there, should a later one be interrupted.
        if let Some(path) = json {
            let text = serde_json::to_string_pretty(&*report)? + "\n";
            std::fs::write(path, text).with_context(|| format!("{} cannot be written", path.display()))?;
        }
    }
    Ok(())
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let report = Mutex::new(begin(arguments)?);
    let scenarios = Mutex::new(VecDeque::from(arguments.scenarios()));
    let json = arguments.json.as_deref();
    std::thread::scope(|scope| {
        let workers: Vec<_> =
            (0..arguments.jobs).map(|_| scope.spawn(|| work(&scenarios, &report, json))).collect();
        for worker in workers {
            worker.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        }
        anyhow::Ok(())
    })?;
    print!("{}", report.into_inner().unwrap_or_else(PoisonError::into_inner));
    Ok(())
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("spindle-concentrator: {error:#}");
            ExitCode::FAILURE
        }
    }
}
