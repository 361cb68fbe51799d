//! `spindle-lab`: ways to lose a peer, played with real gateways, and what came of it: one, or all side by side.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the terminal is where a drill goes")]

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use spindle_lab::compare::{Only, Request, compare};
use spindle_lab::{Contender, Drill, NEVER, Scenario, drill};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Drills the ways in which gateways lose each other, in network namespaces of its own.
#[derive(Parser, Debug)]
#[command(name = "spindle-lab", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Play one scenario; exit code 1 if the gateway did not come back
    Drill(DrillArguments),
    /// Play each scenario by each method, many times, and write one report: FILE, and .md and .html beside it
    Compare(CompareArguments),
    /// Name the scenarios, what each is, and the methods that it is about
    List,
}

#[derive(Args, Debug)]
struct DrillArguments {
    /// What happens (see `spindle-lab list`)
    #[arg(value_enum)]
    scenario: Scenario,
    /// How the peer learns of it; qcd-journal if not given (qcd-resumption for crash-in-resumption)
    #[arg(long, value_enum)]
    method: Option<Contender>,
    /// Round-trip time between the gateways, in milliseconds
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(0..=10_000))]
    rtt_ms: u64,
    /// IKE SAs between the gateways, where there are many
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    ike_sas: u32,
    /// Write the outcome to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Copy captures, configurations and logs into this folder
    #[arg(long, value_name = "FOLDER")]
    keep: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct CompareArguments {
    /// Three runs of each cell at 20 ms, instead of 30 runs at 0, 20 and 100 ms
    #[arg(long)]
    quick: bool,
    /// Drills at once; each mostly waits
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=64))]
    jobs: u8,
    /// These cells only: METHOD/SCENARIO, METHOD/ or /SCENARIO; at one round-trip time: METHOD/SCENARIO/MS
    #[arg(long, value_name = "METHOD/SCENARIO", value_delimiter = ',')]
    only: Vec<Only>,
    /// The report (schema 1); cells that it holds with as many runs are not run again
    #[arg(long, value_name = "FILE", default_value = "compare.json")]
    json: PathBuf,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Drill(arguments) => play(&arguments),
        Command::Compare(arguments) => side_by_side(arguments),
        Command::List => {
            print!("{}", list());
            Ok(ExitCode::SUCCESS)
        }
    };
    result.unwrap_or_else(|error| {
        eprintln!("spindle-lab: {error:#}");
        let machine = matches!(error.downcast_ref(), Some(spindle_testbed::Error::Machine(_)));
        ExitCode::from(if machine { 2 } else { 1 })
    })
}

fn play(arguments: &DrillArguments) -> Result<ExitCode> {
    let scenario = arguments.scenario;
    let method = arguments.method.unwrap_or(scenario.usual_method().into());
    if !method.meets(scenario) {
        eprintln!("spindle-lab: {scenario} is not about {method}; `spindle-lab list` names the methods");
        return Ok(ExitCode::from(2));
    }
    spindle_testbed::prepare()?;
    spindle_testbed::programs()?;
    let plan = Drill {
        round_trip: Duration::from_millis(arguments.rtt_ms),
        ike_sas: arguments.ike_sas,
        keep: arguments.keep.clone(),
        ..Drill::new(scenario, method)
    };
    let outcome = drill(&plan, &mut |step| eprintln!("  {step}"))?;
    print!("{outcome}");
    if let Some(file) = &arguments.json {
        let text = serde_json::to_string_pretty(&outcome)?;
        std::fs::write(file, text + "\n").with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(if outcome.recovered { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn side_by_side(arguments: CompareArguments) -> Result<ExitCode> {
    spindle_testbed::prepare()?;
    spindle_testbed::programs()?;
    let (runs, rtt_ms, calm, ike_sas) = match arguments.quick {
        true => (3, vec![20], 1, 100),
        false => (30, vec![0, 20, 100], 10, 10_000),
    };
    let request = Request {
        runs,
        rtt_ms,
        only: arguments.only,
        jobs: arguments.jobs.into(),
        calm: Duration::from_secs(calm),
        ike_sas,
        patience: NEVER,
        json: arguments.json,
    };
    let failures = compare(&request, &mut |text| eprintln!("{text}"))?;
    let file = request.json.display();
    println!("{file}, and beside it .md, .html and .runs.json");
    for failure in &failures {
        eprintln!("spindle-lab: {failure}");
    }
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The scenarios as a table.
fn list() -> String {
    let row = |scenario: &Scenario| {
        let about = Contender::all().iter().filter(|it| it.meets(*scenario)).map(|it| it.to_string());
        let about: Vec<String> = about.collect();
        let all = about.len() == Contender::all().len();
        let methods = if all { "every method".to_owned() } else { about.join(", ") };
        format!("{scenario:<21} {}\n{:21} {methods}\n", scenario.description(), "")
    };
    Scenario::ALL.iter().map(row).collect()
}
