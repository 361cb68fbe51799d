//! `scripts/bench peers`: measures the parts one after the other, each by a program of its own, into one file, and makes
//! the page and the plots of what the file holds.
#![allow(clippy::print_stderr, reason = "progress")]

use anyhow::Context;
use clap::Parser;
use spindle_benches::report::{COMMITTED, Limits, Part, Report, plot, readme};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

/// Measures Spindle beside its peers.
#[derive(Parser)]
struct Arguments {
    /// The result file; parts in it that are not measured now stay. The page goes beside it, that of the committed file to
    /// benches/README.md.
    #[arg(long, default_value = COMMITTED)]
    json: PathBuf,
    /// This part alone; may be said again.
    #[arg(long)]
    only: Vec<Part>,
    /// Measures nothing: makes the page and the plots anew.
    #[arg(long, conflicts_with = "only")]
    page_only: bool,
    /// Leaves out parts that the file holds from this very commit.
    #[arg(long)]
    resume: bool,
    /// Alternating rounds in place of each part's own number (21 for AEADs, 5 or more elsewhere), for a quick look.
    #[arg(long)]
    rounds: Option<usize>,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let started = Instant::now();
    let parts = match (arguments.page_only, arguments.only.is_empty()) {
        (true, _) => Vec::new(),
        (false, true) => {
            Part::ALL.into_iter().filter(|part| program(*part).is_ok_and(|p| p.exists())).collect()
        }
        (false, false) => arguments.only.clone(),
    };
    let mut failed = Vec::new();
    for part in parts {
        if arguments.resume && holds(&arguments.json, part)? {
            eprintln!("spindle: {} is measured already", part.name());
            continue;
        }
        eprintln!("spindle: measuring {} ({} s so far)", part.name(), started.elapsed().as_secs());
        if let Err(error) = measure(part, &arguments) {
            eprintln!("spindle: {}: {error:#}", part.name());
            failed.push(part.name());
        }
    }
    let page = publish(&arguments)?;
    eprintln!("spindle: {} s in all; see {}", started.elapsed().as_secs(), page.display());
    if !failed.is_empty() {
        eprintln!("spindle: could not measure {}", failed.join(", "));
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// Has the file this part, measured by what is built now?
fn holds(file: &Path, part: Part) -> anyhow::Result<bool> {
    let commit = spindle_benches::report::commit();
    let report = Report::load(file)?;
    Ok(report
        .runs
        .iter()
        .any(|run| run.part == part && commit.is_some() && run.versions.first() == commit.as_ref()))
}

fn program(part: Part) -> std::io::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name(part.program()))
}

fn measure(part: Part, arguments: &Arguments) -> anyhow::Result<()> {
    let program = program(part)?;
    let mut command = Command::new(&program);
    command.arg("--json").arg(&arguments.json);
    if let Some(rounds) = arguments.rounds {
        command.args(["--rounds", &rounds.to_string()]);
    }
    let status = command.status().with_context(|| program.display().to_string())?;
    anyhow::ensure!(status.success(), "{} ended with {status}", part.program());
    Ok(())
}

fn publish(arguments: &Arguments) -> anyhow::Result<PathBuf> {
    let file = &arguments.json;
    let report = Report::load(file)?;
    let limits = Limits::load(&file.with_file_name("limits.toml"))?;
    for (name, plot) in plot::all(&report)? {
        std::fs::write(file.with_file_name(name), plot)?;
    }
    let is_committed = file.canonicalize().ok() == Path::new(COMMITTED).canonicalize().ok();
    let (page, folder) = match is_committed {
        true => (PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")), "results/"),
        false => (file.with_extension("md"), ""),
    };
    std::fs::write(&page, readme::render(&report, &limits, folder))
        .with_context(|| page.display().to_string())?;
    Ok(page)
}
