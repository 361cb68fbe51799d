//! The part `scale` of `scripts/bench peers`: the engine with very many SAs, beside itself with one.
#![allow(clippy::print_stderr, reason = "progress")]

use clap::Parser;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Zipf};
use spindle_aead::Provider;
use spindle_benches::alone::{Alone, Way};
use spindle_benches::report::{Goal, Part, Report, Row, Run};
use std::path::PathBuf;
use std::time::Instant;

/// Octets of inner packets.
const SIZE: usize = 64;
/// Beside one.
const SAS: [u32; 3] = [10_000, 100_000, 1_000_000];
/// Octets of an SA with its keys and a window of 1,024.
const OCTETS: f64 = 640.0;
/// Passes of the store in a round.
const PASSES: usize = 1000;

/// Measures the engine with very many SAs.
#[derive(Parser)]
struct Arguments {
    /// Puts the result into this file, too.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Alternating rounds.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
}

/// How the SAs of packets are drawn.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Draw {
    Uniform,
    Zipf,
}

impl Draw {
    fn name(self) -> &'static str {
        match self {
            Draw::Uniform => "uniform",
            Draw::Zipf => "Zipf",
        }
    }

    /// Numbers of SAs below `sas`.
    fn numbers(self, sas: u32, seed: u64) -> anyhow::Result<Box<dyn FnMut() -> u32>> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        Ok(match self {
            Draw::Uniform => Box::new(move || random.random_range(0..sas)),
            Draw::Zipf => {
                let zipf = Zipf::new(f64::from(sas), 1.0)?;
                // Those that are drawn often do not stand side by side; the factor has no divisor of 10.
                Box::new(move || {
                    let rank = zipf.sample(&mut random) as u64 - 1;
                    (rank * 0x9e37_79b1 % u64::from(sas)) as u32
                })
            }
        })
    }
}

/// What a number of packets' passing must not exceed.
fn goal(way: Way, draw: Draw, sas: u32) -> Option<Goal> {
    match (way, draw, sas) {
        (Way::Decapsulate, Draw::Uniform, 10_000) => Some(Goal::RatioAtMost(1.5)),
        (Way::Decapsulate, Draw::Uniform, 1_000_000) => Some(Goal::MoreAtMost(150.0)),
        (Way::Decapsulate, Draw::Zipf, 1_000_000) => Some(Goal::RatioAtMost(2.0)),
        _ => None,
    }
}

fn main() -> anyhow::Result<()> {
    let Arguments { json, rounds } = Arguments::parse();
    let started = Instant::now();
    let provider = Provider::choose()?.provider;
    let (mut passing, mut others) = (Vec::new(), Vec::new());
    for way in [Way::Decapsulate, Way::Encapsulate] {
        // The largest first: what an earlier one gave back would not count as growth.
        let mut many: Vec<(u32, Alone)> =
            SAS.iter().rev().map(|sas| (*sas, Alone::new(provider, way, *sas, SIZE))).collect();
        many.reverse();
        eprintln!("spindle: SAs to {} are installed ({} s)", way.name(), started.elapsed().as_secs());
        others.extend(installed(way, &many));
        let mut one = Alone::new(provider, way, 1, SIZE);
        let mut figures = vec![(Vec::new(), Vec::new()); 2 * many.len()];
        for round in 0..rounds {
            let mut at = figures.iter_mut();
            for (sas, alone) in &mut many {
                for draw in [Draw::Uniform, Draw::Zipf] {
                    let (ours, theirs) = at.next().expect("one for each");
                    theirs.push(one.round(PASSES, || 0).engine);
                    ours.push(alone.round(PASSES, draw.numbers(*sas, round as u64)?).engine);
                }
            }
            eprintln!("spindle: round {} of {rounds} ({} s)", round + 1, started.elapsed().as_secs());
        }
        let cases = many.iter().flat_map(|(sas, _)| [Draw::Uniform, Draw::Zipf].map(|draw| (*sas, draw)));
        let mut rows: Vec<(Draw, Row)> = cases
            .zip(&figures)
            .map(|((sas, draw), (ours, theirs))| {
                let what = format!("{}, {}", way.name(), draw.name());
                let goal = goal(way, draw, sas);
                (draw, Row::of((Part::Scale, &what, "ns"), (SIZE, sas), ours, ("one SA", theirs), goal))
            })
            .collect();
        rows.sort_by_key(|(draw, _)| *draw == Draw::Zipf);
        passing.extend(rows.into_iter().map(|(_, row)| row));
    }
    let versions = vec![format!("AEAD provider chosen: {provider}")];
    let rows = passing.into_iter().chain(others).collect();
    Report::merge(json.as_ref(), Run::here(Part::Scale, rounds, started, versions), rows)
}

/// What installing took, and takes: the most beside the fewest.
fn installed(way: Way, many: &[(u32, Alone)]) -> Vec<Row> {
    let (Some((few, first)), Some((most, last))) = (many.first(), many.last()) else { return Vec::new() };
    let peer = format!("at {few} SAs");
    let mut rows = Vec::new();
    let mut row = |what: String, unit, ours: f64, theirs: f64, goal| {
        rows.push(Row::of((Part::Scale, &what, unit), (SIZE, *most), &[ours], (&peer, &[theirs]), goal));
    };
    let kind = if way == Way::Encapsulate { "outbound" } else { "inbound" };
    let (ours, theirs) = (last.installed, first.installed);
    row(format!("octets per {kind} SA"), "B", ours.sa_octets, theirs.sa_octets, Some(Goal::AtMost(OCTETS)));
    row(
        format!("command that installs an {kind} SA"),
        "ns",
        ours.sa_nanoseconds,
        theirs.sa_nanoseconds,
        None,
    );
    if way == Way::Encapsulate {
        row("octets per policy".into(), "B", ours.policy_octets, theirs.policy_octets, None);
        row(
            "command that sets a policy".into(),
            "ns",
            ours.policy_nanoseconds,
            theirs.policy_nanoseconds,
            None,
        );
    }
    rows
}
