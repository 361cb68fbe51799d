//! `scripts/bench --check`: is the engine slower than the committed result says, or than another commit's?
#![allow(clippy::print_stdout, reason = "a table for people")]

use anyhow::{Context, bail, ensure};
use clap::{Parser, Subcommand};
use serde::{Deserialize, Serialize};
use spindle_aead::Provider;
use spindle_benches::regression::{Subject, Work};
use spindle_benches::{scale, with_huge_pages};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// More instructions than before by this share fail.
const MORE_INSTRUCTIONS: f64 = 0.03;
/// More time than the other commit's program by this share fails.
const MORE_TIME: f64 = 0.10;
/// Bursts in the shorter of the two runs of which the difference is taken: so many, and four packets more for each SA,
/// for the first one of an SA costs more.
const BURSTS: u32 = 64;

/// Measures the engine alone.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Counts instructions (valgrind is needed) and writes them to a file.
    Count {
        /// The result.
        #[arg(long)]
        json: PathBuf,
    },
    /// Compares: fails over 3 % more instructions than in the file, or 10 % more time than the other program.
    Check {
        /// The committed result.
        #[arg(long)]
        against: PathBuf,
        /// This program, built from another commit.
        #[arg(long)]
        other: Option<PathBuf>,
        /// Turns that the two programs take, up to three times as many where one seems slower.
        #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(5..))]
        rounds: u16,
    },
    /// Works, for a counter of instructions to watch.
    Work {
        /// On what.
        #[arg(long)]
        what: Work,
        /// Octets of the inner packets.
        #[arg(long)]
        size: usize,
        /// Pairs of SAs.
        #[arg(long)]
        sas: u32,
        /// Bursts of 32 packets.
        #[arg(long)]
        bursts: u32,
    },
    /// Prints the nanoseconds per packet of every subject as JSON, by the fastest provider.
    Time,
    /// Installs SAs, and prints as JSON what each kind of command cost, in nanoseconds.
    Install {
        /// Half of them inbound, each pair with a policy.
        #[arg(long, value_parser = clap::value_parser!(u32).range(2..=1 << 21))]
        sas: u32,
    },
    /// Prints the nanoseconds that it takes to find a packet's policy, in bursts.
    Lookup {
        /// Among so many, for one host each.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
        policies: u32,
        /// Rounds of 4,096 packets, of which the median counts.
        #[arg(long, default_value_t = 101)]
        rounds: u32,
    },
}

#[derive(Serialize, Deserialize)]
struct Counted {
    #[serde(flatten)]
    subject: Subject,
    instructions: f64,
}

#[derive(Serialize, Deserialize)]
struct Report {
    schema: u32,
    command: String,
    provider: String,
    rows: Vec<Counted>,
}

#[derive(Serialize, Deserialize)]
struct Timed {
    #[serde(flatten)]
    subject: Subject,
    nanoseconds: f64,
}

fn main() -> anyhow::Result<ExitCode> {
    // What is started from here has the same.
    with_huge_pages()?;
    match Arguments::parse().verb {
        Verb::Count { json } => {
            let report = Report {
                schema: 1,
                command: "scripts/bench instructions".into(),
                provider: Provider::Portable.to_string(),
                rows: count_all()?,
            };
            for row in &report.rows {
                println!("{}: {:.0} instructions per packet", name(row.subject), row.instructions);
            }
            std::fs::write(json, serde_json::to_string_pretty(&report)? + "\n")?;
        }
        Verb::Check { against, other, rounds } => {
            let slower =
                check_instructions(&against)? + other.map_or(Ok(0), |other| check_time(&other, rounds))?;
            if slower > 0 {
                println!("{slower} subjects are slower than they may be");
                return Ok(ExitCode::FAILURE);
            }
        }
        Verb::Work { what, size, sas, bursts } => {
            Subject { what, size, sas }.work(Provider::Portable, bursts)
        }
        Verb::Time => {
            let provider = Provider::choose().context("no provider passes its self-test")?.provider;
            let time = |subject: Subject| Timed { subject, nanoseconds: subject.time(provider, 400) };
            println!("{}", serde_json::to_string(&Subject::all().into_iter().map(time).collect::<Vec<_>>())?);
        }
        Verb::Install { sas } => {
            let provider = Provider::choose().context("no provider passes its self-test")?.provider;
            println!("{}", serde_json::to_string_pretty(&scale::install(provider, sas))?);
        }
        Verb::Lookup { policies, rounds } => {
            println!("{:.1}", scale::nanoseconds_per_lookup(policies, rounds));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn name(subject: Subject) -> String {
    let Subject { what, size, sas } = subject;
    format!(
        "{}, {size} octets, {sas} SAs",
        serde_json::to_value(what).ok().and_then(|v| v.as_str().map(String::from)).unwrap_or_default()
    )
}

fn check_instructions(against: &Path) -> anyhow::Result<u32> {
    let text = std::fs::read_to_string(against).with_context(|| against.display().to_string())?;
    let before: Report = serde_json::from_str(&text)?;
    let mut more = 0;
    for now in count_all()? {
        let Some(before) = before.rows.iter().find(|row| row.subject == now.subject) else {
            bail!("{} says nothing of {}: write it anew", against.display(), name(now.subject));
        };
        let change = now.instructions / before.instructions - 1.0;
        more += u32::from(change > MORE_INSTRUCTIONS);
        let (name, was, is) = (name(now.subject), before.instructions, now.instructions);
        println!("{name}: {was:.0} → {is:.0} instructions per packet ({:+.1} %)", 100.0 * change);
    }
    Ok(more)
}

fn check_time(other: &Path, rounds: u16) -> anyhow::Result<u32> {
    let this = std::env::current_exe()?;
    let mut ratios: Vec<Vec<f64>> = Vec::new();
    let (mut subjects, mut last) = (Vec::new(), Vec::new());
    // What seems to be slower is measured for longer, so that other load on the machine fails nothing.
    for round in 0..3 * rounds {
        if round > 0 && round % rounds == 0 && !ratios.iter().any(|ratios| is_slower(ratios)) {
            break;
        }
        // Who begins takes turns, too.
        let pair = match round % 2 {
            0 => (time(&this)?, time(other)?),
            _ => {
                let theirs = time(other)?;
                (time(&this)?, theirs)
            }
        };
        ensure!(pair.0.len() == pair.1.len(), "the two programs measure different things");
        ratios.resize(pair.0.len(), Vec::new());
        subjects = pair.0.iter().map(|timed| timed.subject).collect();
        last = pair.0.iter().map(|timed| timed.nanoseconds).collect();
        for (ratios, (ours, theirs)) in ratios.iter_mut().zip(pair.0.iter().zip(&pair.1)) {
            ensure!(ours.subject == theirs.subject, "the two programs measure different things");
            ratios.push(ours.nanoseconds / theirs.nanoseconds);
        }
    }
    let mut more = 0;
    for ((subject, ratios), nanoseconds) in subjects.into_iter().zip(&mut ratios).zip(last) {
        ratios.sort_by(f64::total_cmp);
        let (least, median, most) = (ratios[0], ratios[ratios.len() / 2], ratios[ratios.len() - 1]);
        more += u32::from(is_slower(ratios));
        println!(
            "{}: {nanoseconds:.0} ns, {median:.2} ({least:.2}–{most:.2}) of the other's time",
            name(subject)
        );
    }
    Ok(more)
}

/// By the median of the ratios.
fn is_slower(ratios: &[f64]) -> bool {
    spindle_benches::report::median(&mut ratios.to_vec()) > 1.0 + MORE_TIME
}

fn time(program: &Path) -> anyhow::Result<Vec<Timed>> {
    let output = Command::new(program).arg("time").output().with_context(|| program.display().to_string())?;
    ensure!(
        output.status.success(),
        "{} time: {}",
        program.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn count_all() -> anyhow::Result<Vec<Counted>> {
    Subject::all().into_iter().map(|subject| Ok(Counted { subject, instructions: count(subject)? })).collect()
}

/// Instructions per packet of what counts: two runs of different length differ by the loop alone, and of that goes
/// what the work before takes.
fn count(subject: Subject) -> anyhow::Result<f64> {
    let per_packet = |subject: Subject| -> anyhow::Result<f64> {
        let bursts = BURSTS + subject.sas / 8;
        let (short, long) = (callgrind(subject, bursts)?, callgrind(subject, 3 * bursts)?);
        Ok((long - short) / f64::from(2 * bursts * 32))
    };
    let before = subject.what.before().map_or(Ok(0.0), |what| per_packet(Subject { what, ..subject }))?;
    Ok(per_packet(subject)? - before)
}

fn callgrind(subject: Subject, bursts: u32) -> anyhow::Result<f64> {
    let what = serde_json::to_value(subject.what)?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .args(["work", "--what", what.as_str().unwrap_or_default()])
        .args(["--size", &subject.size.to_string(), "--sas", &subject.sas.to_string()])
        .args(["--bursts", &bursts.to_string()])
        .output()
        .context("valgrind does not start: install Debian's package valgrind")?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "valgrind: {text}");
    let collected = text.lines().find_map(|line| line.split_once("Collected : ")).context("no count")?;
    Ok(collected.1.trim().parse()?)
}
