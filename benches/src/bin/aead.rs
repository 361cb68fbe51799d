//! `scripts/bench aead`: time per packet of every AEAD provider, and of intel-ipsec-mb where it is linked.
#![allow(clippy::print_stdout, reason = "a table for people")]

use clap::Parser;
use serde::Serialize;
use spindle_aead::{Algorithm, Provider};
use spindle_benches::aead::{Direction, Ratio, Subject, encrypted_length, measure, median};
use std::path::PathBuf;

/// Measures the AEAD providers beside each other.
#[derive(Parser)]
struct Arguments {
    /// Writes the result to this file, too.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Alternating rounds.
    #[arg(long, default_value_t = 21, value_parser = clap::value_parser!(u16).range(10..))]
    rounds: u16,
}

#[derive(Serialize)]
struct Row {
    what: String,
    size: usize,
    sas: u32,
    ours: f64,
    peer: String,
    theirs: f64,
    unit: &'static str,
    ratio: Ratio,
    rounds: u16,
}

#[derive(Serialize)]
struct Report {
    schema: u32,
    command: String,
    machine: String,
    versions: Vec<String>,
    rows: Vec<Row>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let mut rows = Vec::new();
    println!(
        "| what | inner octets | ns | peer | its ns | ratio (min–max) |\n| --- | --- | --- | --- | --- | --- |"
    );
    for (algorithm, name) in [
        (Algorithm::Aes128Gcm, "aes128gcm"),
        (Algorithm::Aes192Gcm, "aes192gcm"),
        (Algorithm::Aes256Gcm, "aes256gcm"),
        (Algorithm::ChaCha20Poly1305, "chacha20poly1305"),
    ] {
        for (direction, verb) in [(Direction::Seal, "seal"), (Direction::Open, "open")] {
            for size in [64, 512, 1408] {
                let secret = &[0x42; 32][..algorithm.key_length()];
                let mut subjects = Subject::all(algorithm, secret);
                let mut results =
                    measure(&mut subjects, direction, encrypted_length(size), arguments.rounds.into());
                let ratios: Vec<_> = results.iter().map(|theirs| Ratio::of(&results[0], theirs)).collect();
                let times: Vec<_> = results.iter_mut().map(|times| median(times)).collect();
                for (at, ratio) in ratios.into_iter().enumerate().skip(1) {
                    let what = format!("{name} {verb} ({})", subjects[0].name());
                    let (ours, theirs, peer) = (tenths(times[0]), tenths(times[at]), subjects[at].name());
                    println!(
                        "| {what} | {size} | {ours:.1} | {peer} | {theirs:.1} | {:.2} ({:.2}–{:.2}) |",
                        ratio.median, ratio.min, ratio.max
                    );
                    let ratio = Ratio {
                        median: thousandths(ratio.median),
                        min: thousandths(ratio.min),
                        max: thousandths(ratio.max),
                    };
                    let (unit, rounds) = ("ns", arguments.rounds);
                    rows.push(Row { what, size, sas: 1, ours, peer, theirs, unit, ratio, rounds });
                }
            }
        }
    }
    let report = Report {
        schema: 1,
        command: format!("scripts/bench aead --rounds {}", arguments.rounds),
        machine: machine(),
        versions: versions(),
        rows,
    };
    println!("\n{}; {}; medians of {} rounds.", report.machine, report.versions.join(", "), arguments.rounds);
    if let Some(file) = arguments.json {
        std::fs::write(file, serde_json::to_string_pretty(&report)? + "\n")?;
    }
    Ok(())
}

fn tenths(figure: f64) -> f64 {
    (figure * 10.0).round() / 10.0
}

fn thousandths(figure: f64) -> f64 {
    (figure * 1000.0).round() / 1000.0
}

fn machine() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':')).map_or("?", |(_, value)| value.trim()).to_owned()
    };
    let features = field("flags");
    let has = |feature: &str| features.split(' ').any(|f| f == feature);
    let widths = ["aes", "vaes", "vpclmulqdq", "avx512f"].into_iter().filter(|f| has(f)).collect::<Vec<_>>();
    format!(
        "{}, family {} model {} ({}), {} cores",
        field("model name"),
        field("cpu family"),
        field("model\t"),
        widths.join(", "),
        std::thread::available_parallelism().map_or(0, |n| n.get())
    )
}

fn versions() -> Vec<String> {
    let fastest = Provider::choose().map_or("none".into(), |choice| choice.provider.to_string());
    let peer = spindle_ipsec_mb::version().map(|version| format!("intel-ipsec-mb {version}"));
    [format!("chosen here: {fastest}")].into_iter().chain(peer).collect()
}
