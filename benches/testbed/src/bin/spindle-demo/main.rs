//! Crashes a gateway and shows how it comes back, by each method.
//!
//! Per method, round-trip time and downtime: a fresh testbed, both gateways up, a packet each few milliseconds from
//! host A to host B only; gateway B's process group is killed, started again, and recovery is waited for ([`crash`]).
//! What was captured and reported becomes a timeline, a table and a JSON file ([`report`]); the file is written again
//! after each method, round-trip time and downtime, so what was measured stays when a later run fails.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the terminal is where a demonstration goes")]

mod progress;
mod report;

use anyhow::{Context, Result, bail};
use clap::Parser;
use progress::Progress;
use report::Series;
use spindle_testbed::{Method, Plan, crash};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Crash a gateway and watch it come back: liveness alone, QCD (RFC 6290), and QCD with a journal of SPIs.
#[derive(Parser, Debug)]
#[command(name = "spindle-demo", version)]
struct Arguments {
    /// Write the results to this file (schema 1).
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Crashes per method, round-trip time and downtime.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Round-trip times between the gateways, in milliseconds.
    #[arg(long, value_delimiter = ',', default_value = "20", value_name = "MS,…")]
    rtt_ms: Vec<u64>,
    /// How long gateway B stays down, in milliseconds.
    #[arg(long, value_delimiter = ',', default_value = "500", value_name = "MS,…")]
    down_ms: Vec<u64>,
    /// Which methods.
    #[arg(long, value_delimiter = ',', value_enum, default_value = "liveness,qcd,qcd-journal")]
    methods: Vec<Method>,
    /// Time between two packets of the stream from host A to host B, in milliseconds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1000))]
    interval_ms: u64,
    /// All that is promised, measured: round-trip times of 0, 20 and 100 ms, gateway B down for 0.1, 5 and 30 s, ten
    /// crashes each by qcd and by qcd-journal, and --check. The downtimes alone are 35 minutes.
    #[arg(long, conflicts_with_all = ["runs", "rtt_ms", "down_ms", "methods", "interval_ms"])]
    matrix: bool,
    /// End with exit code 1 if a median of ready → recovered exceeds k × RTT + interval + 10 ms
    /// (k = 2 for initial-contact, 4 for qcd, 3 for the other methods with tokens, 5 for sir and its wait).
    #[arg(long)]
    check: bool,
    /// Copy captures, configurations and logs of every run into this folder.
    #[arg(long, value_name = "FOLDER")]
    keep: Option<PathBuf>,
}

impl Arguments {
    /// What `--matrix` stands for.
    fn complete(self) -> Arguments {
        if !self.matrix {
            return self;
        }
        Arguments {
            runs: 10,
            rtt_ms: vec![0, 20, 100],
            down_ms: vec![100, 5_000, 30_000],
            methods: vec![Method::Qcd, Method::QcdJournal],
            check: true,
            ..self
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse().complete();
    match demonstrate(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("spindle-demo: {error:#}");
            let misuse = matches!(
                error.downcast_ref::<spindle_testbed::Error>(),
                Some(spindle_testbed::Error::Machine(_))
            );
            ExitCode::from(if misuse { 2 } else { 1 })
        }
    }
}

/// Runs everything; false if `--check` found a recovery too slow.
fn demonstrate(arguments: &Arguments) -> Result<bool> {
    spindle_testbed::prepare()?;
    spindle_testbed::programs()?;
    let plans: Vec<Plan> = arguments
        .rtt_ms
        .iter()
        .flat_map(|&rtt| arguments.down_ms.iter().map(move |&down| (rtt, down)))
        .flat_map(|(rtt, down)| arguments.methods.iter().map(move |&method| (rtt, down, method)))
        .map(|(rtt, down, method)| Plan {
            method,
            round_trip: Duration::from_millis(rtt),
            down: Duration::from_millis(down),
            interval: Duration::from_millis(arguments.interval_ms),
        })
        .collect();
    let progress = Progress::new(plans.len() as u64 * u64::from(arguments.runs));
    let mut series = Vec::new();
    for plan in plans {
        let mut runs = Vec::new();
        for number in 1..=arguments.runs {
            progress.begin(format!("{plan}, run {number}/{}", arguments.runs));
            let keep = arguments.keep.as_ref().map(|folder| folder.join(plan.folder(number)));
            let run = crash(&plan, keep.as_deref(), &mut |step| progress.step(step))
                .with_context(|| format!("{plan}, run {number}"))?;
            progress.end(&format!(
                "recovered {:.1} ms after it was ready, {} packets lost",
                run.ready_to_recovered() as f64 / 1e6,
                run.outage.lost
            ));
            runs.push(run);
        }
        series.push(Series { plan, runs });
        if let Some(file) = &arguments.json {
            let text = serde_json::to_string_pretty(&report::json(&series, arguments.interval_ms))?;
            std::fs::write(file, text + "\n").with_context(|| format!("writing {}", file.display()))?;
        }
    }
    progress.finish();
    print!("{}", report::timelines(&series));
    print!("{}", report::table(&series));
    if !arguments.check {
        return Ok(true);
    }
    let slow = report::too_slow(&series);
    for line in &slow {
        eprintln!("spindle-demo: {line}");
    }
    if series.is_empty() {
        bail!("nothing was run");
    }
    Ok(slow.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_matrix_is_what_is_promised_and_stands_alone() {
        let matrix =
            Arguments::try_parse_from(["spindle-demo", "--matrix", "--json", "f"]).expect("it is known");
        let matrix = matrix.complete();
        assert_eq!((matrix.runs, &matrix.rtt_ms[..]), (10, &[0, 20, 100][..]));
        assert_eq!((&matrix.down_ms[..], matrix.check), (&[100, 5_000, 30_000][..], true));
        assert!(matrix.methods.iter().all(|method| method.promised_round_trips().is_some()));
        assert!(Arguments::try_parse_from(["spindle-demo", "--matrix", "--runs", "3"]).is_err());
    }
}
