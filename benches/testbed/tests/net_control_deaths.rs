//! Control dies alone, at rest and inside exchanges of every kind, under traffic both ways: no packet and no SA is lost, and
//! nothing is said to anybody.

mod gateways;

use gateways::*;
use serde_json::Value;
use spindle_testbed::{Frame, Kind, Link, Options, Side, Stream, Testbed, Verdict, number, wire_events};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const INTERVAL: Duration = Duration::from_millis(2);

fn status(testbed: &Testbed) -> Value {
    testbed.gateway(Side::B).json("status").unwrap_or_default()
}

/// Waits for a control process that is ready after that of `before`; nothing else has changed.
fn another_control(testbed: &Testbed, before: &Value) {
    within(testbed, "another control", || {
        let now = status(testbed);
        now["pids"]["control"] != before["pids"]["control"] && now["ready"] == true
    });
    let after = status(testbed);
    for key in ["incarnation", "started_us"] {
        assert_eq!(before[key], after[key], "{key}");
    }
    for process in ["dataplane", "supervisor"] {
        assert_eq!(before["pids"][process], after["pids"][process], "{process}");
    }
    let stats = testbed.gateway(Side::B).stats().expect("stats");
    let count = |name: &str| stats["control"][name].as_u64().unwrap_or_else(|| panic!("{name} in {stats:#}"));
    assert!(count("ike-sas-adopted") >= 1);
    for none in ["adoption-records-lost", "kept_full", "commands-refused"] {
        assert_eq!(count(none), 0, "{none}");
    }
}

/// It says nothing of unknown SPIs or lost SAs; asked before each death, for the counters die with it.
fn has_said_nothing(testbed: &Testbed) {
    let stats = testbed.gateway(Side::B).stats().expect("stats");
    for none in ["tokens-sent", "invalid-spi-sent", "invalid-spi-sent-protected", "invalid-ike-spi-sent"] {
        assert_eq!(stats["control"][none], 0, "{none}");
    }
}

/// Kills B's control, and nothing else; waits for another one that is ready.
fn kill_control(testbed: &Testbed) {
    has_said_nothing(testbed);
    let before = status(testbed);
    kill(testbed, &["control"]);
    another_control(testbed, &before);
}

/// Kills B's control in the moment when, after `skipped` others, a protected IKE message from this side, or from any, is on the
/// wire: a request, or a response.
fn kill_control_at(
    testbed: &Testbed,
    from: Option<Side>,
    response: bool,
    mut skipped: u32,
) -> Arc<AtomicBool> {
    let pid = status(testbed)["pids"]["control"].as_i64().expect("a PID") as i32;
    let pid = rustix::process::Pid::from_raw(pid).expect("a PID");
    let killed = Arc::new(AtomicBool::new(false));
    let told = killed.clone();
    testbed.delay().set_filter(Some(Box::new(move |sender, frame| {
        if from.is_some_and(|from| from != sender) || told.load(Ordering::Relaxed) {
            return Verdict::Pass;
        }
        let frame = Frame { at: 0, octets: frame.to_vec() };
        let events = wire_events(std::slice::from_ref(&frame));
        let is_it = events
            .iter()
            .filter_map(|event| event.ike())
            .any(|message| message.protected && message.response == response);
        if is_it && skipped == 0 {
            told.store(
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).is_ok(),
                Ordering::Relaxed,
            );
        }
        skipped = skipped.saturating_sub(is_it.into());
        Verdict::Pass
    })));
    killed
}

fn one_of_each(testbed: &Testbed) {
    for side in [Side::A, Side::B] {
        within(testbed, "one IKE SA and one Child SA", || sas(testbed, side) == (1, 1));
    }
}

fn begin_streams(testbed: &Testbed) -> [Stream; 2] {
    [Side::A, Side::B].map(|from| testbed.stream(from, INTERVAL).expect("a stream"))
}

/// DESIGN: of a death of control alone, no ESP packet is lost. RFC 7296 section 2.2: exchanges go on under their Message IDs.
#[test]
fn control_dies_alone_and_nothing_is_lost() {
    let mut settings = quiet();
    settings.dpd_delay = Duration::from_secs(1);
    settings.retransmit.timeout = Duration::from_millis(300);
    // What was refused while the other side's exchange waited is tried again soon.
    settings.retransmit.base = 1.2;
    settings.retransmit.tries = 12;
    let link = Link::with_round_trip(Duration::from_millis(20));
    let options = Options { link, a: settings.clone(), b: settings, ..Options::default() };
    let mut testbed = connected(options, Side::A);
    let streams = begin_streams(&testbed);
    std::thread::sleep(Duration::from_millis(200));
    // At rest: the very same SAs.
    for _ in 0..2 {
        let before = [Side::A, Side::B].map(|side| all_sas(&testbed, side));
        kill_control(&testbed);
        assert_eq!(before, [Side::A, Side::B].map(|side| all_sas(&testbed, side)), "SAs have changed");
    }
    // Inside rekeys by either side: at the request, at the response, and at what follows the rekey of an IKE SA.
    for (by, what, from, response, skipped) in [
        (Side::A, "rekey --child ab/net", Side::A, false, 0),
        (Side::A, "rekey --child ab/net", Side::B, true, 0),
        (Side::B, "rekey --child ab/net", Side::B, false, 0),
        (Side::B, "rekey --child ab/net", Side::A, true, 0),
        (Side::A, "rekey --ike ab", Side::A, false, 0),
        (Side::A, "rekey --ike ab", Side::B, true, 0),
        (Side::B, "rekey --ike ab", Side::B, false, 0),
        (Side::B, "rekey --ike ab", Side::A, true, 0),
        (Side::B, "rekey --ike ab", Side::B, false, 1),
    ] {
        // What the one before has left to do.
        std::thread::sleep(Duration::from_millis(150));
        let at = format!("{what} by {by:?}, {from:?}'s response {response}, {skipped} before it");
        has_said_nothing(&testbed);
        let before = status(&testbed);
        let old = all_sas(&testbed, Side::B);
        let killed = kill_control_at(&testbed, Some(from), response, skipped);
        let wish = testbed.gateway(by).begin(what).expect("a wish");
        within(&testbed, &at, || killed.load(Ordering::Relaxed));
        testbed.delay().set_filter(None);
        another_control(&testbed, &before);
        within(&testbed, &format!("the end of {at}"), || {
            let new = all_sas(&testbed, Side::B);
            new != old && new == all_sas(&testbed, Side::B) && sas(&testbed, Side::A) == (1, 1)
        });
        one_of_each(&testbed);
        drop(wish);
    }
    for stream in streams {
        all_arrived(&stream.stop(Duration::from_secs(1)));
    }
    // Nobody hears from the other one any more, and asks; inside that too.
    for response in [false, true, false, true] {
        has_said_nothing(&testbed);
        let before = (status(&testbed), all_sas(&testbed, Side::B));
        let killed = kill_control_at(&testbed, None, response, 0);
        within(&testbed, "a liveness check", || killed.load(Ordering::Relaxed));
        testbed.delay().set_filter(None);
        another_control(&testbed, &before.0);
        assert_eq!(before.1, all_sas(&testbed, Side::B), "SAs have changed");
    }
    // All goes on as ever: liveness checks, rekeys by either side under traffic, and in the end a Delete.
    std::thread::sleep(Duration::from_millis(1500));
    let streams = begin_streams(&testbed);
    for by in [Side::A, Side::B] {
        testbed.gateway(by).spindle("rekey --child ab/net").expect("a Child SA's rekey");
        testbed.gateway(by).spindle("rekey --ike ab").expect("an IKE SA's rekey");
    }
    for stream in streams {
        all_arrived(&stream.stop(Duration::from_secs(1)));
    }
    one_of_each(&testbed);
    has_said_nothing(&testbed);
    every_packet_is_counted(&testbed);
    testbed.gateway(Side::B).spindle("terminate ab").expect("a Delete");
    within(&testbed, "no SA", || sas(&testbed, Side::A) == (0, 0) && sas(&testbed, Side::B) == (0, 0));

    let wires = nothing_leaked(&mut testbed);
    let informational = |event: &spindle_testbed::WireEvent| match &event.kind {
        Kind::Ike(message) => message.exchange == number::INFORMATIONAL && !message.response,
        _ => false,
    };
    let checks = wire_events(&wires.b).iter().filter(|event| informational(event)).count();
    assert!(checks > 9, "{checks} INFORMATIONAL requests");
    nothing_is_used_twice(&testbed, &wires, 1000);
}
