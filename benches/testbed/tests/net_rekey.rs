//! Rekeys under traffic lose nothing, whichever side starts them.

mod gateways;

use gateways::*;
use spindle_testbed::{Link, Options, Side};
use std::time::Duration;

/// RFC 7296 section 2.8: make before break. A thousand packets a second each way at 20 ms of round-trip time.
#[test]
fn a_hundred_child_rekeys_and_twenty_ike_rekeys_lose_no_packet() {
    let link = Link::with_round_trip(Duration::from_millis(20));
    let options = Options { link, a: quiet(), b: quiet(), ..Options::default() };
    let mut testbed = connected(options, Side::A);
    let streams =
        [Side::A, Side::B].map(|from| testbed.stream(from, Duration::from_millis(1)).expect("a stream"));
    for round in 0..20 {
        let side = if round % 2 == 0 { Side::A } else { Side::B };
        for child in 0..5 {
            let side = if child % 2 == 0 { side } else { side.other() };
            testbed.gateway(side).spindle("rekey --child ab/net").expect("a Child SA's rekey");
        }
        testbed.gateway(side).spindle("rekey --ike ab").expect("an IKE SA's rekey");
    }
    for stream in streams {
        all_arrived(&stream.stop(Duration::from_secs(1)));
    }
    for side in [Side::A, Side::B] {
        within(&testbed, "one IKE SA and one Child SA", || sas(&testbed, side) == (1, 1));
        let events = testbed.gateway(side).events().expect("events");
        let rekeyed = events.iter().filter(|event| event.event == "ike-rekeyed").count();
        assert_eq!(rekeyed, 20, "IKE rekeys that {side:?} saw");
        let installed = events.iter().filter(|event| event.event == "installed").count();
        assert_eq!(installed, 101, "Child SAs that {side:?} installed");
    }
    every_packet_is_counted(&testbed);
    nothing_leaked(&mut testbed);
}

/// RFC 7296 section 2.8.1: both start at once; exactly one Child SA remains and nothing is lost.
#[test]
fn simultaneous_rekeys_by_both_sides_lose_no_packet() {
    let link = Link::with_round_trip(Duration::from_millis(20));
    let options = Options { link, a: quiet(), b: quiet(), ..Options::default() };
    let mut testbed = connected(options, Side::B);
    let streams =
        [Side::A, Side::B].map(|from| testbed.stream(from, Duration::from_millis(1)).expect("a stream"));
    for what in ["rekey --child ab/net", "rekey --child ab/net", "rekey --ike ab", "rekey --child ab/net"] {
        std::thread::scope(|scope| {
            for side in [Side::A, Side::B] {
                let gateway = testbed.gateway(side);
                scope.spawn(move || gateway.spindle(what));
            }
        });
        std::thread::sleep(Duration::from_millis(200));
    }
    for stream in streams {
        all_arrived(&stream.stop(Duration::from_secs(1)));
    }
    for side in [Side::A, Side::B] {
        within(&testbed, "one IKE SA and one Child SA", || sas(&testbed, side) == (1, 1));
    }
    every_packet_is_counted(&testbed);
    nothing_leaked(&mut testbed);
}
