//! Scripted worlds, each from many seeds. `SPINDLE_SIM_SEEDS=N` plays N of each instead of 25; `SPINDLE_SIM_SEED=n` plays one, and
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
    let one = number("SPINDLE_SIM_SEED");
    let seeds = one.map_or(0..number("SPINDLE_SIM_SEEDS").unwrap_or(25), |seed| seed..seed + 1);
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
    }
}

/// The IKE SA is that of the beginning.
fn kept(s: &Summary) -> bool {
    (s.crashes, s.established, s.proofs) == (0, 2, 0)
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

#[test]
fn both_crash() {
    play(Script::BothCrash, 1500, |s| s.crashes == 2 && s.established >= 4);
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
    play(Script::AddressBackUnseen, 1500, |s| (s.fail_overs, s.crashes) == (2, 0) && proved(s, 1));
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
