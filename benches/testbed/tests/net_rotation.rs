//! The QCD secret is rotated while SAs live (RFC 6290 section 4.4, 5.1), tokens are made with the taker's address (5.2), and
//! the maker is switched off where it would be unsafe (8.1).

mod gateways;

use gateways::*;
use spindle_testbed::{Gateway, Link, Options, Settings, Side, Testbed, number, wire_events};
use std::time::Duration;

const ROUND_TRIP: Duration = Duration::from_millis(20);

fn options(more_recovery: &str) -> Options {
    let settings = Settings { more_recovery: more_recovery.to_owned(), ..Settings::default() };
    Options {
        link: Link::with_round_trip(ROUND_TRIP),
        a: settings.clone(),
        b: settings,
        ..Options::default()
    }
}

fn times(testbed: &Testbed, side: Side, event: &str) -> Vec<u64> {
    let events = testbed.gateway(side).events().expect("events");
    events.iter().filter(|e| e.event == event).map(|e| e.at_us).collect()
}

/// The secrets in B's file, newest first.
fn secrets(testbed: &Testbed) -> Vec<String> {
    let path = testbed.gateway(Side::B).directory().join("state/qcd-secret");
    let text = std::fs::read_to_string(path).expect("the secret's file");
    text.lines().skip(1).map(|line| line.split(' ').next().unwrap_or_default().to_owned()).collect()
}

/// Kills B and starts it again; A must have proof.
fn recovers_by_token(testbed: &mut Testbed) {
    let stream = testbed.stream(Side::A, Duration::from_millis(10)).expect("a stream");
    // The journal's group commit.
    std::thread::sleep(Duration::from_millis(400));
    let killed = testbed.gateway_mut(Side::B).kill_group().expect("a kill");
    testbed.gateway_mut(Side::B).start().expect("a start");
    let ready = testbed.gateway_mut(Side::B).wait_ready(READY).expect("ready again");
    let delivery = stream.wait_delivery_since(ready, Duration::from_secs(10));
    let log = || testbed.gateway(Side::A).log();
    assert!(delivery.is_some(), "nothing arrived within 10 s of ready: {}", log());
    let events = testbed.gateway(Side::A).events().expect("events");
    assert!(Gateway::event_since(&events, "proof", killed).is_some(), "A recovered without proof: {}", log());
    stream.stop(Duration::from_millis(300));
}

/// RFC 6290 section 4.4: five rotations; before the first generation goes, the living IKE SA has a newer token. Section
/// 4.5: after a crash B shows a token of each generation, at most four in a message.
#[test]
fn rotations_void_no_token_and_a_crash_after_them_is_proved() {
    let mut testbed = connected(options(""), Side::A);
    let first = secrets(&testbed);
    let stored = times(&testbed, Side::A, "token-stored").len();
    for n in 1..=3 {
        testbed.gateway(Side::B).spindle("rotate-secret").expect("a rotation");
        assert_eq!(secrets(&testbed).len(), n + 1);
    }
    assert_eq!(times(&testbed, Side::A, "token-stored").len(), stored, "none while the old one can be made");
    for _ in 4..=5 {
        let shown = testbed.gateway(Side::B).json("rotate-secret").expect("a rotation");
        let generations = shown["generations"].as_array().expect("generations");
        assert_eq!((generations.len(), &shown["rotating"]), (4, &false.into()), "{shown}");
        let relied_on: u64 = generations.iter().filter_map(|g| g["ike_sas"].as_u64()).sum();
        assert_eq!(relied_on, 1, "{shown}");
    }
    assert!(!secrets(&testbed).contains(&first[0]), "the first generation is gone");
    let (acknowledged, rotated) =
        (times(&testbed, Side::B, "token-acknowledged"), times(&testbed, Side::B, "secret-rotated"));
    assert_eq!((acknowledged.len(), rotated.len()), (1, 5));
    assert!(rotated[2] <= acknowledged[0] && acknowledged[0] <= rotated[3], "{acknowledged:?} {rotated:?}");
    let table = testbed.gateway(Side::B).spindle("secret").expect("a table");
    assert!(table.contains("newest") && table.contains("3 before") && !table.contains(&first[0]), "{table}");

    recovers_by_token(&mut testbed);
    every_packet_is_counted(&testbed);
    let wires = nothing_leaked(&mut testbed);
    let tokens = |event: &spindle_testbed::WireEvent| {
        event
            .ike()
            .filter(|ike| !ike.protected)
            .map_or(0, |ike| ike.notifies.iter().filter(|notify| notify.kind == number::QCD_TOKEN).count())
    };
    let most = wire_events(&wires.b).iter().map(tokens).max();
    assert_eq!(most, Some(4), "one of each generation");
}

/// RFC 6290 section 5.2, and a rotation by age in the midst of it.
#[test]
fn tokens_with_the_takers_address_prove_a_crash_too() {
    let mut testbed =
        connected(options("token_method = \"spis-and-address\"\nsecret_rotation = \"2s\""), Side::B);
    within(&testbed, "a rotation by age", || times(&testbed, Side::B, "secret-rotated").len() >= 2);
    let shown = testbed.gateway(Side::B).json("secret").expect("the secret");
    assert_eq!(shown["generations"][0]["method"], "spis-and-address");
    recovers_by_token(&mut testbed);
    nothing_leaked(&mut testbed);
}

/// RFC 6290 section 8.1: half a cluster is noticed, and no token leaves.
#[test]
fn half_a_cluster_switches_the_token_maker_off() {
    let mut options = options("");
    options.b.more_gateway = "cluster = \"pair\"".to_owned();
    let testbed = connected(options, Side::A);
    let status = |side| testbed.gateway(side).json("status").expect("a status");
    assert_eq!((&status(Side::A)["tokens"], &status(Side::B)["tokens"]), (&true.into(), &false.into()));
    assert_eq!(times(&testbed, Side::B, "maker-off").len(), 1);
    let log = testbed.gateway(Side::B).log();
    assert!(log.contains("ERROR") && log.contains("recovery.secret_file"), "{log}");
    let refused = testbed.gateway(Side::B).spindle("rotate-secret").expect_err("there is no maker");
    assert!(refused.to_string().contains("makes no tokens"), "{refused}");
    let held = testbed.gateway(Side::A).json("list-sas").expect("list-sas")[0]["token_held"].clone();
    assert_eq!(held, false, "A was given none");
}
