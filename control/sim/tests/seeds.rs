//! Many worlds. `SPINDLE_SIM_SEEDS=N` plays N of them instead of 1,000; `SPINDLE_SIM_SEED=n` plays one, and a
//! failure then tells all that happened before it.

use spindle_sim::{Summary, run};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The worlds are dealt to this many tests, which run at the same time.
const HANDS: u64 = 4;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// What is wrong with this seed's world, if anything.
fn fault(seed: u64) -> Result<Summary, String> {
    let again =
        format!("run it again: SPINDLE_SIM_SEED={seed} cargo test -p spindle-sim --test seeds one_seed");
    match catch_unwind(AssertUnwindSafe(|| run(seed, false))) {
        Ok(Ok(summary)) => Ok(summary),
        Ok(Err(failure)) => Err(format!("seed {seed} fails {failure}\n  {again}")),
        Err(_) => Err(format!("seed {seed} panics\n  {again}")),
    }
}

fn play(hand: u64) {
    let seeds = number("SPINDLE_SIM_SEEDS").unwrap_or(1000);
    let mut sum = Summary::default();
    let mut faults = Vec::new();
    for seed in (0..seeds).filter(|seed| seed % HANDS == hand) {
        match fault(seed) {
            Ok(summary) => sum.add(&summary),
            Err(text) => {
                // Said at once: the rest of a long run need not be waited for.
                eprintln!("{text}");
                faults.push(text);
            }
        }
        assert!(faults.len() < 10, "{}", faults.join("\n"));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    eprintln!("{sum:#?}");
    // The worlds must hold what they are made for, or they would prove nothing.
    if seeds >= 1000 {
        let shown = [
            sum.crashes,
            sum.control_deaths,
            sum.dataplane_deaths,
            sum.adoptions,
            sum.established,
            sum.ike_rekeys,
            sum.tokens_shown,
            sum.rotations,
            sum.generations_dropped,
            sum.tokens_acknowledged,
            sum.packets_delivered,
        ];
        assert!(shown.iter().all(|count| *count >= 50), "{sum:#?}");
        let moved = [sum.forgotten, sum.fail_overs, sum.standby_asked, sum.mappings_moved, sum.followed];
        assert!(moved.iter().all(|count| *count >= 5), "{sum:#?}");
        // Where the restarted side initiates by itself, it needs no proof; few worlds have tickets.
        assert!(sum.proofs >= 25 && sum.resumed >= 5, "{sum:#?}");
        assert!(sum.confirmations >= 10 && sum.take_downs >= 10, "{sum:#?}");
    }
}

#[test]
fn no_world_of_the_first_hand_breaks_a_rule() {
    play(0);
}

#[test]
fn no_world_of_the_second_hand_breaks_a_rule() {
    play(1);
}

#[test]
fn no_world_of_the_third_hand_breaks_a_rule() {
    play(2);
}

#[test]
fn no_world_of_the_fourth_hand_breaks_a_rule() {
    play(3);
}

#[test]
fn a_seed_gives_the_same_world_every_time() {
    for seed in 0..20 {
        let outcome = || run(seed, false).map_err(|failure| failure.to_string());
        assert_eq!(outcome(), outcome(), "seed {seed}");
    }
}

#[test]
fn one_seed() {
    let Some(seed) = number("SPINDLE_SIM_SEED") else { return };
    match run(seed, true) {
        Ok(summary) => eprintln!("{summary:#?}"),
        Err(failure) => panic!("{}\n{}\nseed {seed} fails {failure}", failure.scenario, failure.trace),
    }
}
