//! Several workers, each with a queue of both interfaces: packets come to any of them, and each SA is one worker's.

mod gateways;

use gateways::*;
use spindle_testbed::{Frame, Layout, Link, Options, Settings, Side, Testbed, now};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
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
    for what in ["rekey ab/net", "rekey --ike ab"] {
        testbed.gateway(Side::A).spindle(what).expect("a rekey");
    }
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

/// Those that `list-sas` shows for the Child SAs.
fn workers(testbed: &Testbed, side: Side) -> BTreeSet<u64> {
    let list = testbed.gateway(side).json("list-sas").expect("list-sas");
    let children = list.as_array().expect("IKE SAs").iter().flat_map(|ike| ike["children"].as_array());
    children.flatten().map(|child| child["worker"].as_u64().expect("a worker")).collect()
}

/// How many Child SAs have sent more than a few packets.
fn sending(testbed: &Testbed, side: Side) -> usize {
    let list = testbed.gateway(side).json("list-sas").expect("list-sas");
    let children = list.as_array().expect("IKE SAs").iter().flat_map(|ike| ike["children"].as_array());
    children.flatten().filter(|child| child["packets_o"].as_u64().expect("a count") > 20).count()
}

/// SPIs of ESP without UDP by how many packets each way bore them.
fn spis(frames: &[Frame], from: Ipv4Addr) -> BTreeMap<[u8; 4], usize> {
    let mut spis = BTreeMap::new();
    for octets in frames.iter().map(|frame| &frame.octets) {
        if octets.len() > 42
            && octets[12..15] == [8, 0, 0x45]
            && octets[23] == 50
            && octets[26..30] == from.octets()
        {
            *spis.entry(octets[34..38].try_into().expect("four octets")).or_default() += 1;
        }
    }
    spis
}

/// RFC 9611: one peer uses all workers.
#[test]
fn with_a_child_sa_for_each_worker_both_workers_encapsulate() {
    let settings = || Settings { more_child: "per_cpu_sas = true".into(), ..settings() };
    let mut testbed = connected(options(settings(), settings()), Side::A);
    let three = |testbed: &Testbed| [Side::A, Side::B].into_iter().all(|side| sas(testbed, side) == (1, 3));
    within(&testbed, "a Child SA for each worker", || three(&testbed));
    for side in [Side::A, Side::B] {
        assert_eq!(workers(&testbed, side), [0, 1].into(), "{side:?}");
    }
    flows(&testbed, || [Side::A, Side::B].into_iter().all(|side| sending(&testbed, side) >= 2));
    testbed.gateway(Side::A).spindle("rekey ab/net").expect("rekeys");
    within(&testbed, "the successors alone", || three(&testbed));
    flows(&testbed, || [Side::A, Side::B].into_iter().all(|side| sending(&testbed, side) >= 2));
    every_packet_is_counted(&testbed);
    let wires = nothing_leaked(&mut testbed);
    for side in [Side::A, Side::B] {
        let spis = spis(&wires.b, testbed.topology().addresses.gateway_outside(side));
        let used = spis.values().filter(|packets| **packets > 20).count();
        assert!(used >= 4, "before and after the rekey two each: {spis:x?}");
    }
}
