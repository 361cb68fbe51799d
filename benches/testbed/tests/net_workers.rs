//! Several workers, each with a queue of both interfaces: packets come to any of them, and each SA is one worker's.

mod gateways;

use gateways::*;
use spindle_testbed::{Layout, Link, Options, Settings, Side, Testbed, now};
use std::time::Duration;

/// Flows at most until some have come to the wrong queue: hosts choose a queue for each at random.
const FLOWS: usize = 24;

fn settings() -> Settings {
    Settings { more_gateway: "workers = 2".into(), ..quiet() }
}

fn options(a: Settings, b: Settings) -> Options {
    let link = Link::with_round_trip(Duration::ZERO);
    Options { layout: Layout::Queues(2), link, a, b, ..Options::default() }
}

fn count(testbed: &Testbed, side: Side, name: &str) -> u64 {
    testbed.gateway(side).stats().expect("stats")["dataplane"][name].as_u64().expect("a counter")
}

/// TCP connections one after the other, in turn from either side, until it is enough.
fn flows(testbed: &Testbed, enough: impl Fn() -> bool) {
    for flow in 0..FLOWS {
        let from = if flow % 2 == 0 { Side::A } else { Side::B };
        let transfer = testbed.tcp_transfer(from, 100_000, Duration::from_secs(20)).expect("a transfer");
        assert!(transfer.is_intact(), "{transfer:?}");
        if flow > 2 && enough() {
            return;
        }
    }
    panic!("not enough after {FLOWS} flows");
}

#[test]
fn packets_at_the_wrong_worker_are_handed_over_across_rekeys_and_deaths() {
    let mut testbed = connected(options(settings(), settings()), Side::A);
    let handed = |side| count(&testbed, side, "handed_over");
    assert_eq!(testbed.ping(Side::A, 3).expect("ping").len(), 3);
    flows(&testbed, || [Side::A, Side::B].into_iter().all(|side| handed(side) > 0));
    let before = [Side::A, Side::B].map(handed);
    testbed.gateway(Side::A).spindle("rekey ab").expect("rekeys");
    flows(&testbed, || [Side::A, Side::B].map(handed).iter().zip(before).all(|(now, before)| *now > before));
    assert_eq!(sas(&testbed, Side::A), (1, 1));

    // The SAs go on at the same workers of another dataplane.
    let status = testbed.gateway(Side::B).json("status").expect("status");
    let pid = rustix::process::Pid::from_raw(status["pids"]["dataplane"].as_i64().expect("a PID") as i32);
    let killed = now();
    rustix::process::kill_process(pid.expect("a PID"), rustix::process::Signal::KILL).expect("a kill");
    within(&testbed, "a new dataplane", || {
        let events = testbed.gateway(Side::B).events().expect("control lives");
        spindle_testbed::Gateway::event_since(&events, "dataplane-ready", killed).is_some()
    });
    flows(&testbed, || handed(Side::B) > 0);
    every_packet_is_counted(&testbed);
    for side in [Side::A, Side::B] {
        let [given, taken] = ["handed_over", "taken_over"].map(|name| count(&testbed, side, name));
        assert_eq!(given, taken, "{side:?}");
        assert_eq!(count(&testbed, side, "handover_full"), 0, "{side:?}");
    }
    nothing_leaked(&mut testbed);
}
