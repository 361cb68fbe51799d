//! Scripted worlds, each from many seeds. `SPINDLE_SIM_SEEDS=N` plays N of each instead of 25 or as said; `SPINDLE_SIM_SEED=n` plays one, and
//! a failure then tells all that happened before it.

use spindle_sim::{Script, Summary, run_script};
use std::time::Duration;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// Plays the script, and holds what each world has seen against what it is to see: no longer a time without packets than
/// this, for one.
fn play(script: Script, gap_ms: u64, seen: impl Fn(&Summary) -> bool) {
    play_each(script, 25, gap_ms, seen);
}

/// The same with another number of seeds, where none is asked for. What have they seen?
fn play_each(script: Script, seeds: u64, gap_ms: u64, seen: impl Fn(&Summary) -> bool) -> Vec<Summary> {
    let one = number("SPINDLE_SIM_SEED");
    let seeds = one.map_or(0..number("SPINDLE_SIM_SEEDS").unwrap_or(seeds), |seed| seed..seed + 1);
    let mut worlds = Vec::new();
    for seed in seeds {
        let summary = run_script(script, seed, one.is_some()).unwrap_or_else(|failure| {
            panic!(
                "{}{}\n{} with seed {seed} fails {failure}",
                failure.trace,
                failure.scenario,
                script.name()
            )
        });
        assert!(
            summary.longest_gap <= Duration::from_millis(gap_ms) && seen(&summary),
            "{} with seed {seed}: {summary:#?}",
            script.name()
        );
        worlds.push(summary);
    }
    worlds
}

/// The IKE SA is that of the beginning.
fn kept(s: &Summary) -> bool {
    (s.crashes, s.established, s.proofs) == (0, 2, 0)
}

/// At the start and after each of two crashes each side makes one IKE SA at most, which is counted at both ends; and another
/// one where one came to nothing.
fn in_bounds(s: &Summary) -> bool {
    s.established <= 12 + 2 * s.given_up
}

/// The peer had proof as often, and a new IKE SA each time.
fn proved(s: &Summary, times: u64) -> bool {
    s.proofs >= times && s.tokens_shown >= times && s.established >= 2 + 2 * times
}

#[test]
fn a_crash() {
    play(Script::Crash, 900, |s| s.crashes == 1 && proved(s, 1));
}

#[test]
fn a_crash_after_the_secret_was_rotated_twice() {
    play(Script::SecretRotated, 900, |s| s.rotations == 2 && s.crashes == 1 && proved(s, 1));
}

/// A token of the new secret proves nothing; the peer goes by its liveness check.
#[test]
fn a_crash_after_which_the_secret_is_another_one() {
    play(Script::SecretLost, 9000, |s| {
        (s.crashes, s.proofs, s.established) == (1, 0, 4) && s.tokens_failed >= 1 && s.given_up >= 1
    });
}

/// And if the restarted side has INITIAL_CONTACT behind its tokens, by that.
#[test]
fn a_crash_after_which_the_secret_is_another_one_and_the_restarted_side_initiates() {
    play(Script::SecretLostInitiates, 3000, |s| {
        (s.crashes, s.proofs, s.established, s.given_up) == (1, 0, 4, 0) && s.tokens_failed >= 1
    });
}

#[test]
fn both_crash() {
    play(Script::BothCrash, 1500, |s| s.crashes == 2 && s.established >= 4 && in_bounds(s));
}

/// Whatever they know of each other and lose of it: at the end they hold one IKE SA, and stay with it.
#[test]
fn both_crash_anyhow() {
    let worlds = play_each(Script::BothCrashAnyhow, 1500, 60_000, |s| s.crashes == 2 && in_bounds(s));
    let count = |seen: fn(&Summary) -> bool| worlds.iter().filter(|world| seen(world)).count();
    let ways = [
        count(|s| s.superseded > 0 && s.resumed == 0),
        count(|s| s.proofs > 0),
        count(|s| s.confirmations > 0),
        count(|s| s.resumed > 0),
        count(|s| s.given_up > 0),
    ];
    eprintln!("{} worlds; both sides at once, QCD, SIR, tickets, liveness in {ways:?}", worlds.len());
    // Without all of these they would prove nothing.
    assert!(worlds.len() < 1000 || ways.iter().all(|count| *count >= 10), "{ways:?}");
}

#[test]
fn a_second_crash_as_the_recovery_begins() {
    play(Script::CrashTwice, 2000, |s| s.crashes == 2 && proved(s, 1));
}

#[test]
fn a_second_crash_within_ike_auth() {
    play(Script::CrashInAuth, 2000, |s| s.crashes == 2 && proved(s, 1));
}

#[test]
fn a_crash_within_either_rekey() {
    play(Script::CrashInChildRekey, 900, |s| s.crashes == 1 && proved(s, 1));
    play(Script::CrashInIkeRekey, 900, |s| s.crashes == 1 && proved(s, 1));
}

#[test]
fn a_second_crash_within_a_resumption() {
    play(Script::CrashInResumption, 2000, |s| s.crashes == 2 && proved(s, 1));
}

/// The Child SA alone is made again.
#[test]
fn a_child_sa_is_lost() {
    play(Script::ChildLost, 900, |s| s.forgotten == 1 && kept(s));
}

#[test]
fn an_ike_sa_is_lost() {
    play(Script::IkeLost, 900, |s| s.forgotten == 1 && s.crashes == 0 && proved(s, 1));
}

/// RFC 7296 section 2.4: what is forged meanwhile ends nothing.
#[test]
fn one_direction_is_lost() {
    play(Script::OneWayLoss, 1200, |s| s.strikes >= 20 && (s.crashes, s.established, s.proofs) == (0, 2, 0));
}

#[test]
fn a_crash_beside_a_peer_without_qcd() {
    play(Script::NoQcdPeer, 9000, |s| s.crashes == 1 && s.proofs == 0 && s.established >= 4);
}

#[test]
fn a_crash_in_a_storm() {
    play(Script::Storm, 1200, |s| s.strikes >= 1000 && s.crashes == 1 && proved(s, 1));
}

/// The IKE SA ends by an exchange: there is nothing to be proved.
#[test]
fn a_planned_take_down() {
    play(Script::TakeDown, 2100, |s| s.take_downs == 1 && s.proofs == 0 && s.established >= 4);
}

/// RFC 5685 section 5: the peer makes its IKE SA with the other gateway before it ends the one that it has, and all goes on.
#[test]
fn a_planned_take_down_to_another_gateway() {
    play(Script::TakeDownRedirect, 600, |s| {
        (s.take_downs, s.redirects_followed, s.crashes) == (1, 1, 1)
            && (s.established, s.tokens_shown, s.proofs, s.given_up) == (4, 0, 0, 0)
    });
}

/// RFC 6290 section 6: the standby shows the token of an IKE SA that it never had.
#[test]
fn a_standby_takes_over() {
    play(Script::HotStandby, 1700, |s| {
        (s.fail_overs, s.crashes) == (1, 1) && s.standby_asked >= 5 && proved(s, 1)
    });
}

/// RFC 6290 section 9.2: who loses the address loses its SAs with it, for the other one shows their tokens.
#[test]
fn the_address_goes_to_the_standby_and_back() {
    play(Script::AddressBack, 1500, |s| {
        (s.fail_overs, s.crashes) == (2, 0) && s.standby_asked >= 5 && proved(s, 2)
    });
}

/// The same where the first one has not looked in between: it may not take its SAs for living.
#[test]
fn an_address_that_was_away_unseen_has_been_away_all_the_same() {
    play(Script::AddressBackUnseen, 1700, |s| (s.fail_overs, s.crashes) == (2, 0) && proved(s, 1));
}

#[test]
fn a_crash_beside_a_peer_behind_a_nat() {
    play(Script::BehindNat, 900, |s| s.crashes == 1 && proved(s, 1));
}

/// The journal has an address at which nobody is any more; the peer asks from where it is now.
#[test]
fn a_mapping_moves_in_a_crash() {
    play(Script::NatMoved, 900, |s| (s.crashes, s.mappings_moved) == (1, 1) && proved(s, 1));
}

/// RFC 7296 section 2.23: the peer is followed by its next authenticated message.
#[test]
fn a_mapping_moves() {
    play(Script::NatRebinds, 400, |s| s.mappings_moved == 1 && s.followed == 1 && kept(s));
}
