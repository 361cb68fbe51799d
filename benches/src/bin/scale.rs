//! The part `scale` of `scripts/bench peers`: the engine with very many SAs, beside itself with one.
#![allow(clippy::print_stderr, reason = "progress")]

use clap::Parser;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Zipf};
use spindle_aead::Provider;
use spindle_benches::alone::{Alone, Way};
use spindle_benches::report::{Goal, Part, Report, Row, Run};
use spindle_benches::{scale, with_huge_pages};
use std::path::PathBuf;
use std::time::Instant;

/// Octets of inner packets.
const SIZE: usize = 64;
/// Beside one.
const SAS: [u32; 3] = [10_000, 100_000, 1_000_000];
/// Octets of an SA with its keys and a window of 1,024.
const OCTETS: f64 = 640.0;
/// What finding a packet's policy may take, in nanoseconds.
const LOOK_UP: f64 = 40.0;
/// Bursts of 4,096 packets in a round of look-ups.
const LOOK_UPS: u32 = 101;
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
    with_huge_pages()?;
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
        others.extend(octets(way, &many));
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
    others.extend(look_up(rounds));
    others.extend(commands(provider));
    let versions = vec![format!("AEAD provider chosen: {provider}")];
    let rows = passing.into_iter().chain(others).collect();
    Report::merge(json.as_ref(), Run::here(Part::Scale, rounds, started, versions), rows)
}

/// What SAs and policies take: for the most beside the fewest of them.
fn octets(way: Way, many: &[(u32, Alone)]) -> Vec<Row> {
    let (Some((few, first)), Some((most, last))) = (many.first(), many.last()) else { return Vec::new() };
    let peer = format!("at {few}");
    let row = |what: &str, ours, theirs, goal| {
        Row::of((Part::Scale, what, "B"), (SIZE, *most), &[ours], (&peer, &[theirs]), goal)
    };
    let (ours, theirs, goal) = (last.octets, first.octets, Some(Goal::AtMost(OCTETS)));
    match way {
        Way::Decapsulate => vec![row("octets per inbound SA", ours.sa, theirs.sa, goal)],
        Way::Encapsulate => vec![
            row("octets per outbound SA", ours.sa, theirs.sa, goal),
            row("octets per policy", ours.policy, theirs.policy, None),
        ],
    }
}

/// Finding a packet's policy among very many for one host each, in bursts.
fn look_up(rounds: usize) -> Vec<Row> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        theirs.push(scale::nanoseconds_per_lookup(1, LOOK_UPS));
        ours.push(scale::nanoseconds_per_lookup(SAS[2], LOOK_UPS));
    }
    let goal = Some(Goal::AtMost(LOOK_UP));
    vec![Row::of(
        (Part::Scale, "policy look-up, uniform", "ns"),
        (SIZE, SAS[2]),
        &ours,
        ("one policy", &theirs),
        goal,
    )]
}

/// What each kind of command costs, once very many SAs are installed and while few are.
fn commands(provider: Provider) -> Vec<Row> {
    let (few, many) = (scale::install(provider, SAS[0]), scale::install(provider, SAS[2]));
    let peer = format!("at {}", SAS[0]);
    let mut rows = Vec::new();
    for (few, many) in few.iter().zip(&many) {
        for (which, of) in [("half", [many.median, few.median]), ("99.9 %", [many.p999, few.p999])] {
            let what = format!("{}: {which} take at most", many.command);
            let [ours, theirs] = of.map(f64::from);
            rows.push(Row::of((Part::Scale, &what, "ns"), (SIZE, SAS[2]), &[ours], (&peer, &[theirs]), None));
        }
    }
    rows
}
