//! Every scenario once, with real gateways: what it must end in, and what it costs in round trips and tokens. Each drill
//! fails by itself on a leak, on a counter that contradicts the wire, and on a kill that missed its exchange.

use spindle_lab::{Contender, Drill, Outcome, Scenario, drill};
use spindle_testbed::{Method, Strongswan};
use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

fn run(scenario: Scenario, method: impl Into<Contender>) -> Outcome {
    run_as(Drill { patience: Duration::from_secs(60), ..Drill::new(scenario, method) })
}

/// Recovers.
fn play(plan: &Drill) -> Outcome {
    let what = format!("{}, {}", plan.scenario, plan.method);
    let outcome = drill(plan, &mut |step| eprintln!("{what}: {step}"));
    let outcome = outcome.unwrap_or_else(|error| panic!("{what}: {error}"));
    eprintln!("{outcome}");
    assert!(outcome.recovered, "{what}: {:?}", outcome.failure);
    outcome
}

/// Recovers, to one IKE SA on each side, from an outage in which packets were lost.
fn run_as(plan: Drill) -> Outcome {
    let what = format!("{}, {}", plan.scenario, plan.method);
    let outcome = play(&plan);
    assert_eq!(outcome.ike_sas, [1, 1], "{what}");
    assert!(outcome.outage_ms > Some(0.0) && outcome.packets_lost > Some(0), "{what}");
    outcome
}

/// IKE SAs of A that ended for this reason, where none ended for another.
fn ended(outcome: &Outcome, why: &str) -> u64 {
    let ended = outcome.deleted[0].as_ref().expect("few enough events");
    assert!(ended.keys().all(|known| known == why), "{ended:?}, not only {why}");
    ended.get(why).copied().unwrap_or(0)
}

/// No IKE SA ended, at either gateway.
fn nothing_ended() -> [Option<BTreeMap<String, u64>>; 2] {
    [Some(BTreeMap::new()), Some(BTreeMap::new())]
}

/// Tokens that matched at A and at B.
fn proofs(outcome: &Outcome) -> [u64; 2] {
    outcome.proofs.map(|proofs| proofs.expect("few enough events"))
}

/// RFC 6290 section 8.2: ESP and INVALID_SPI with a token, IKE_SA_INIT, IKE_AUTH.
#[test]
fn a_crash_costs_three_round_trips_and_five_messages() {
    let outcome = run(Scenario::Crash, Method::QcdJournal);
    assert_eq!((outcome.round_trips, outcome.messages), (Some(3), Some(5)));
    assert_eq!((ended(&outcome, "token"), proofs(&outcome)[0], outcome.token_octets), (1, 1, Some(32)));
}

/// RFC 6290 section 5.1: without its secret a maker is no maker. Its tokens prove nothing; liveness decides.
#[test]
fn with_a_lost_secret_no_token_is_accepted_and_liveness_brings_the_tunnel_back() {
    let outcome = run(Scenario::SecretLost, Method::QcdJournal);
    assert_eq!((ended(&outcome, "timeout"), proofs(&outcome)), (1, [0, 0]));
    assert!(outcome.tokens_shown > 0, "tokens were shown, and none matched");
    assert!(outcome.ready_to_recovered_ms > Some(300.0), "liveness takes longer than a token");
}

/// RFC 6290 section 4.4.
#[test]
fn two_rotations_before_the_crash_cost_nothing() {
    let outcome = run(Scenario::SecretRotated, Method::QcdJournal);
    assert_eq!((outcome.round_trips, ended(&outcome, "token"), proofs(&outcome)[0]), (Some(3), 1, 1));
    // One of each generation in the message that counted, at least.
    assert!(outcome.tokens_shown >= 3, "{} tokens", outcome.tokens_shown);
}

/// Nobody has a token to check; of two IKE SAs that both begin one is left, for good.
#[test]
fn both_crash_and_both_initiate_and_one_ike_sa_is_left_for_ten_seconds() {
    let outcome = run(Scenario::BothCrash, Method::InitialContact);
    assert_eq!((outcome.tokens_shown, proofs(&outcome)), (0, [0, 0]));
}

#[test]
fn both_crash_and_the_traffic_of_both_brings_one_ike_sa() {
    let plan = Drill::new(Scenario::BothCrash, Method::QcdJournal);
    let outcome = run_as(Drill { calm: Duration::from_secs(3), patience: Duration::from_secs(60), ..plan });
    assert_eq!(proofs(&outcome), [0, 0]);
}

#[test]
fn a_second_crash_as_the_recovery_begins_is_recovered_too() {
    let outcome = run(Scenario::CrashTwice, Method::QcdJournal);
    // The first crash's; of the IKE SA that the second one cut off A had nothing yet.
    assert_eq!((ended(&outcome, "token"), proofs(&outcome)[0]), (1, 1));
}

/// B has an IKE SA that A has not: no token of it can be checked.
#[test]
fn a_crash_within_ike_auth_is_recovered() {
    let outcome = run(Scenario::CrashInAuth, Method::QcdJournal);
    assert_eq!((ended(&outcome, "token"), proofs(&outcome)[0]), (1, 1));
}

/// RFC 6290 section 4.3: A holds the IKE SA of before and its token, whatever B had made already.
#[test]
fn a_crash_within_either_rekey_is_recovered_by_the_old_ike_sas_token() {
    for scenario in [Scenario::CrashInChildRekey, Scenario::CrashInIkeRekey] {
        let outcome = run(scenario, Method::QcdJournal);
        assert_eq!(outcome.round_trips, Some(3), "{scenario}");
        assert_eq!((ended(&outcome, "token"), proofs(&outcome)[0]), (1, 1), "{scenario}");
    }
}

/// RFC 5723 section 4.3.1.
#[test]
fn a_crash_within_a_resumption_is_recovered() {
    let outcome = run(Scenario::CrashInResumption, Method::QcdResumption);
    assert_eq!((ended(&outcome, "token"), proofs(&outcome)[0]), (1, 1));
    assert!(outcome.ticket_octets > Some(0));
}

/// RFC 7296 section 2.4: no action on what is not authenticated. The drill itself demands the IKE SA of before.
#[test]
fn loss_in_one_direction_and_forged_notifications_end_no_ike_sa() {
    for method in [Method::QcdJournal, Method::Liveness] {
        let outcome = run(Scenario::OneWayLoss, method);
        assert_eq!(outcome.deleted, nothing_ended(), "{method}");
        assert_eq!((proofs(&outcome), outcome.tokens_shown), ([0, 0], 0), "{method}");
        assert!(outcome.outage_ms >= Some(900.0), "{method}: the loss was there");
    }
}

/// A pair of strongSwan's gateways, killed and started like ours: nothing tells the peer but its own checks, or the
/// restarted side's initiation.
#[test]
fn a_pair_of_strongswan_comes_back_by_liveness_or_by_initiating() {
    let outcome = run(Scenario::Crash, Contender::Strongswan(Strongswan::Fastest));
    // After it has given up there are IKE_SA_INIT and IKE_AUTH.
    assert_eq!((outcome.round_trips, outcome.tokens_shown), (Some(2), 0));
    assert!(outcome.ready_to_recovered_ms > Some(1_000.0), "liveness decided: {outcome}");
    let outcome = run(Scenario::Crash, Contender::Strongswan(Strongswan::Start));
    assert_eq!((outcome.round_trips, outcome.tokens_shown), (Some(2), 0));
}

/// RFC 7296 section 2.21.4 and 1.4.1: INVALID_SPI and Delete under the IKE SA, whose answer comes with another Child SA.
#[test]
fn a_lost_child_sa_is_told_under_its_ike_sa_and_made_again_on_it() {
    for method in [Method::Qcd, Method::QcdJournal, Method::Liveness] {
        let outcome = run(Scenario::ChildLost, method);
        assert_eq!(outcome.deleted, nothing_ended(), "{method}");
        // INFORMATIONAL with its answer, CREATE_CHILD_SA with its; the first may leave before the command has said that it
        // did it.
        assert!(matches!(outcome.messages, Some(3 | 4)), "{method}: {:?} messages", outcome.messages);
        assert_eq!(outcome.tokens_shown, 0, "{method}");
    }
}

/// RFC 6290 section 3 and 9.2: a maker that has truly lost an IKE SA says so when it is asked under it. Its journal's record
/// is of this incarnation, so ESP alone draws no token: one round trip more than after a crash.
#[test]
fn a_lost_ike_sa_is_told_by_the_token_in_the_answer_to_a_probe() {
    for method in [Method::Qcd, Method::QcdJournal] {
        let outcome = run(Scenario::IkeLost, method);
        assert_eq!((outcome.round_trips, proofs(&outcome)[0]), (Some(4), 1), "{method}");
        assert_eq!(ended(&outcome, "token"), 1, "{method}");
    }
}

/// One of very many: it is back as fast as one alone; the others follow at the pace of handshakes.
#[test]
fn of_many_ike_sas_the_one_with_traffic_is_back_as_fast_as_one_alone_and_all_follow() {
    let plan = Drill::new(Scenario::Many, Method::QcdJournal);
    let plan = Drill { ike_sas: 300, patience: Duration::from_secs(120), ..plan };
    let outcome = play(&plan);
    assert_eq!((outcome.round_trips, outcome.ike_sas), (Some(3), [300, 300]));
    assert_eq!((ended(&outcome, "token"), proofs(&outcome)[0]), (300, 300));
    let back = outcome.back_ms.expect("all IKE_AUTH responses");
    assert!(0.0 < back.p50 && back.p50 <= back.p99 && back.p99 <= back.p100);
    assert!(outcome.ready_to_recovered_ms < Some(back.p50), "the one with traffic was not first");
}

/// strongSwan: what is left where the peer takes no tokens. It ends the old IKE SA on INITIAL_CONTACT, or by liveness.
#[test]
fn beside_a_peer_that_knows_no_tokens_initial_contact_takes_two_round_trips_and_tokens_do_no_harm() {
    let outcome = run(Scenario::NoQcdPeer, Method::InitialContact);
    assert_eq!(outcome.round_trips, Some(2));
    let outcome = run(Scenario::NoQcdPeer, Method::QcdJournal);
    assert!(outcome.tokens_shown > 0 && outcome.ready_to_recovered_ms > Some(300.0), "liveness decided");
}

/// A token is checked before anything is limited; forged notifications too have A ask, so ESP is not what tells first.
#[test]
fn a_crash_in_a_storm_of_spis_and_forged_notifications_is_recovered_by_its_token() {
    let outcome = run(Scenario::Storm, Method::QcdJournal);
    assert_eq!((ended(&outcome, "token"), proofs(&outcome)[0]), (1, 1));
}

/// The operator's way: the peer knows at once, and nobody shows a token, before or after.
#[test]
fn a_planned_take_down_shows_no_token_and_the_tunnel_is_back_with_the_gateway() {
    for method in [Method::QcdJournal, Method::InitialContact] {
        let outcome = run(Scenario::TakeDown, method);
        assert_eq!(ended(&outcome, "deleted by the peer"), 1, "{method}");
        assert_eq!(
            (outcome.tokens_shown, outcome.token_octets, proofs(&outcome)),
            (0, None, [0, 0]),
            "{method}"
        );
        let expected = (method == Method::InitialContact).then_some(2);
        assert_eq!(outcome.round_trips, expected, "{method}");
    }
}

/// RFC 5685 section 5: the IKE SA with the other gateway stands before the old one ends.
#[test]
fn a_planned_take_down_to_another_gateway_loses_no_packet() {
    let plan = Drill {
        patience: Duration::from_secs(60),
        ..Drill::new(Scenario::TakeDownRedirect, Method::QcdJournal)
    };
    let outcome = play(&plan);
    assert_eq!((outcome.ike_sas, ended(&outcome, "superseded")), ([1, 1], 1));
    assert_eq!((outcome.packets_lost, outcome.tokens_shown), (Some(0), 0));
}

/// RFC 6290 section 6: the standby makes the same tokens, of an IKE SA that it never had. Section 9.2: asked about one that is
/// alive on the other it is silent; the drill itself demands that, before the fail-over and after the return.
#[test]
fn a_standby_brings_the_tunnel_back_by_the_token_of_the_one_that_died() {
    let outcome = run(Scenario::HotStandby, Method::Qcd);
    assert_eq!((outcome.round_trips, outcome.messages), (Some(4), Some(7)));
    assert_eq!((ended(&outcome, "token"), proofs(&outcome)[0], outcome.tokens_shown), (1, 1, 1));
}

/// Without tokens the standby is no help: A's own liveness check has to time out.
#[test]
fn behind_a_standby_without_tokens_liveness_decides() {
    let outcome = run(Scenario::HotStandby, Method::Liveness);
    assert_eq!((ended(&outcome, "timeout"), outcome.tokens_shown), (1, 0));
}

/// RFC 7296 section 2.23: the token goes to where the question came from, through the NAT's mapping.
#[test]
fn a_crash_is_told_through_a_nat_as_without_one() {
    for method in [Method::Qcd, Method::QcdJournal, Method::Proactive, Method::InitialContact] {
        let outcome = run(Scenario::BehindNat, method);
        let tokens = u64::from(method.shows_tokens());
        assert_eq!(
            (outcome.round_trips, proofs(&outcome)[0]),
            (method.promised_round_trips().map(u64::from), tokens)
        );
    }
}

/// RFC 6290 section 8.2 with an address in the journal at which nobody is any more: ESP on a former SPI from elsewhere is
/// answered there too, within its budget.
#[test]
fn a_taker_that_its_nat_has_moved_since_the_crash_is_told_where_it_is() {
    for method in [Method::Qcd, Method::QcdJournal] {
        let outcome = run(Scenario::NatMoved, method);
        assert_eq!((ended(&outcome, "token"), proofs(&outcome)[0]), (1, 1), "{method}");
        assert_eq!(outcome.round_trips, method.promised_round_trips().map(u64::from), "{method}");
    }
}

/// RFC 7296 section 2.23: a peer behind a NAT is followed by its authenticated messages. The drill demands the IKE SA of
/// before.
#[test]
fn a_mapping_that_moves_under_traffic_ends_no_ike_sa_and_packets_pass_again_both_ways() {
    let plan =
        Drill { patience: Duration::from_secs(60), ..Drill::new(Scenario::NatRebinds, Method::Liveness) };
    let outcome = run_as(plan);
    assert_eq!(outcome.deleted, nothing_ended());
    // By A's liveness check, which a silence of a second starts; sooner, the mapping would not have moved.
    assert!(outcome.outage_ms > Some(500.0), "{outcome}");
}

/// Without a journal too: the outstanding probe is sent again on the forged hints, often enough that the restarted gateway
/// is asked soon, and no more often. So are SIR's queries.
#[test]
fn in_a_storm_of_forged_notifications_a_gateway_that_is_down_is_asked_within_limits() {
    for (method, why) in [(Method::Qcd, "token"), (Method::Sir, "superseded")] {
        let outcome = run(Scenario::Storm, method);
        assert_eq!(ended(&outcome, why), 1, "{method}");
        // No more round trips than in the calm, of which each request is at most one, and one a tenth of a second on
        // top of that, of two kinds, while the gateway was down and starting.
        let promised = method.promised_round_trips().map_or(0, u64::from);
        assert!(outcome.round_trips.is_some_and(|count| count <= promised), "{method}");
        let dead = outcome.outage_ms.unwrap_or_default() as u64 / 100;
        let messages = outcome.messages.unwrap_or_default();
        assert!(
            messages <= 16 + 2 * dead,
            "{method}: {messages} messages in an outage of {dead} tenths of a second"
        );
    }
}

fn lab(arguments: &[&str]) -> (Option<i32>, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_spindle-lab")).args(arguments).output().expect("spindle-lab");
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn the_command_line_knows_every_scenario_and_refuses_what_makes_no_sense() {
    let (code, text) = lab(&["list"]);
    assert_eq!(code, Some(0));
    for scenario in Scenario::ALL {
        assert!(text.lines().any(|line| line.starts_with(&format!("{scenario} "))), "{scenario}: {text}");
    }
    for bad in [&["drill"][..], &["drill", "weather"], &["drill", "crash", "--method", "hope"], &["fly"]] {
        assert_eq!(lab(bad).0, Some(2), "{bad:?}");
    }
    assert_eq!(lab(&["drill", "crash-in-resumption", "--method", "qcd"]).0, Some(2));
}

#[test]
fn a_drill_on_the_command_line_writes_its_outcome_and_ends_with_0() {
    let file = std::env::temp_dir().join(format!("spindle-{}-drill.json", std::process::id()));
    let path = file.to_str().expect("a path");
    let (code, text) =
        lab(&["drill", "crash", "--method", "initial-contact", "--rtt-ms", "0", "--json", path]);
    let written = std::fs::read_to_string(&file).expect("the outcome");
    drop(std::fs::remove_file(&file));
    let outcome: Outcome = serde_json::from_str(&written).expect("an outcome");
    assert_eq!((code, outcome.round_trips, outcome.rtt_ms), (Some(0), Some(2), 0), "{text}");
    assert!(text.contains("first delivery") && text.contains("recovered"), "{text}");
}
