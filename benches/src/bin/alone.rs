//! The part `engine` of `scripts/bench peers`: the engine alone beside DPDK's ipsec-secgw, and beside its own AEAD.
#![allow(clippy::print_stderr, reason = "progress")]

use anyhow::Context;
use clap::Parser;
use spindle_aead::Provider;
use spindle_benches::alone::{Alone, Way, capture};
use spindle_benches::report::{Goal, Part, Report, Row, Run, median, package};
use spindle_benches::secgw::{self, Forwarder, HugePages, Mode};
use spindle_benches::with_huge_pages;
use std::path::PathBuf;
use std::time::Instant;

/// Octets of inner packets, and what share of the peer's time ours may take.
const SIZES: [(usize, f64); 3] = [(64, 0.40), (512, 0.50), (1408, 0.60)];
/// What ESP may take beyond the AEAD at the smallest size, in nanoseconds.
const BEYOND_AEAD: f64 = 30.0;
/// Passes of the store in a round of ours.
const PASSES: usize = 1500;
/// 2 MiB each: DPDK's programs need about half of it.
const HUGE_PAGES: u64 = 192;

/// Measures the engine alone beside DPDK's ipsec-secgw.
#[derive(Parser)]
struct Arguments {
    /// Puts the result into this file, too.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Alternating rounds.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Where the peer is built, and its files are.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/peers"))]
    folder: PathBuf,
}

/// What a size and a way took, a figure for each round.
#[derive(Default)]
struct Figures {
    ours: Vec<f64>,
    aead: Vec<f64>,
    /// By [`Mode::ALL`], less testpmd.
    theirs: [Vec<f64>; 2],
}

fn main() -> anyhow::Result<()> {
    with_huge_pages()?;
    let Arguments { json, rounds, folder } = Arguments::parse();
    let started = Instant::now();
    std::fs::create_dir_all(&folder)?;
    let folder = folder.canonicalize()?;
    let program = secgw::build(&folder).context("building ipsec-secgw")?;
    let provider = Provider::choose()?.provider;
    let cases: Vec<(usize, f64, Way)> =
        SIZES.iter().flat_map(|(size, goal)| Way::ALL.map(|way| (*size, *goal, way))).collect();
    let mut figures: Vec<Figures> = cases.iter().map(|_| Figures::default()).collect();
    let pages = HugePages::allocate(HUGE_PAGES)?;
    for round in 1..=rounds {
        for ((size, _, way), figures) in cases.iter().zip(&mut figures) {
            let mut alone = Alone::new(provider, *way, 1, *size);
            let ours = alone.round(PASSES, || 0);
            figures.ours.push(ours.engine);
            figures.aead.push(ours.aead);
            let file = folder.join(format!("{}-{size}.pcap", way.name()));
            std::fs::write(&file, capture(alone.store()))?;
            let ports = secgw::nanoseconds(&Forwarder::Testpmd, &file, &folder)?;
            for (mode, theirs) in Mode::ALL.into_iter().zip(&mut figures.theirs) {
                let encapsulates = *way == Way::Encapsulate;
                let forwarder = Forwarder::Secgw { program: &program, mode, encapsulates };
                theirs.push(secgw::nanoseconds(&forwarder, &file, &folder)? - ports);
            }
        }
        eprintln!("spindle: round {round} of {rounds} ({} s)", started.elapsed().as_secs());
    }
    drop(pages);
    let mut rows = Vec::new();
    for ((size, goal, way), figures) in cases.iter().zip(&figures) {
        let [plain, library] = [0, 1].map(|mode| median(&mut figures.theirs[mode].clone()));
        let better = if library < plain { 1 } else { 0 };
        rows.push(Row::of(
            (Part::Engine, way.name(), "ns"),
            (*size, 1),
            &figures.ours,
            (Mode::ALL[better].name(), &figures.theirs[better]),
            Some(Goal::RatioAtMost(*goal)),
        ));
    }
    for ((size, _, way), figures) in cases.iter().zip(&figures) {
        let beyond: Vec<f64> = figures.ours.iter().zip(&figures.aead).map(|(all, aead)| all - aead).collect();
        rows.push(Row::of(
            (Part::Engine, &format!("ESP beyond the AEAD, {}", way.name()), "ns"),
            (*size, 1),
            &beyond,
            ("the AEAD alone", &figures.aead),
            (*size == SIZES[0].0).then_some(Goal::AtMost(BEYOND_AEAD)),
        ));
    }
    let versions = ["dpdk", "libipsec-mb1"].into_iter().filter_map(package);
    let versions = [format!("AEAD provider chosen: {provider}")].into_iter().chain(versions).collect();
    Report::merge(json.as_ref(), Run::here(Part::Engine, rounds, started, versions), rows)
}
