//! Nothing leaks: not while a gateway runs, is killed, is down or was stopped, until the operator opens it.

mod gateways;

use gateways::*;
use spindle_testbed::{Options, Side, craft};
use std::time::Duration;

/// RFC 4301 section 5: no cleartext crosses, in any state of the gateway.
#[test]
fn no_inside_address_and_no_payload_shows_outside_in_any_state() {
    let mut testbed = connected(Options::default(), Side::A);
    let streams =
        [Side::A, Side::B].map(|from| testbed.stream(from, Duration::from_millis(2)).expect("a stream"));
    std::thread::sleep(Duration::from_millis(500));
    testbed.gateway_mut(Side::B).kill_group().expect("a kill");
    std::thread::sleep(Duration::from_millis(500));
    testbed.gateway_mut(Side::B).start().expect("a start");
    testbed.gateway_mut(Side::B).wait_ready(READY).expect("ready");
    std::thread::sleep(Duration::from_millis(500));
    testbed.gateway_mut(Side::A).kill_group().expect("a kill");
    testbed.gateway_mut(Side::B).stop().expect("a stop");
    std::thread::sleep(Duration::from_millis(500));
    // Dying packets, whose time ends at the gateway: its kernel must not quote them outside.
    for from in [Side::A, Side::B] {
        let to = testbed.host(from.other()).address;
        let _ = testbed.topology().host(from).run(&format!("ping -c 3 -i 0.2 -t 1 -W 1 {to}"));
    }
    for stream in streams {
        stream.stop(Duration::from_millis(200));
    }
    nothing_leaked(&mut testbed);
}

#[test]
fn cleartext_from_outside_never_arrives_inside() {
    let mut testbed = connected(Options::default(), Side::A);
    let addresses = testbed.topology().addresses;
    let (host_a, host_b) = (addresses.host(Side::A), addresses.host(Side::B));
    let mac = hardware_address(&testbed, Side::B);
    let path = testbed.directory().join("host-b.pcap");
    let capture =
        spindle_testbed::Capture::start(testbed.topology().host(Side::B), "b-host", &path).expect("capture");
    let marker = testbed.marker();
    // Packets whose time ends at the gateway, and packets that would live on.
    let strike = |testbed: &spindle_testbed::Testbed| {
        for time_to_live in [1, 64].repeat(20) {
            let packet = craft::ipv4(host_a, host_b, 17, &craft::udp(4000, 7001, &marker.0));
            let packet = craft::with_ttl(packet, time_to_live);
            testbed.inject(Side::B, &craft::ethernet(mac, [4; 6], 0x0800, &packet)).expect("inject");
        }
    };
    strike(&testbed);
    std::thread::sleep(Duration::from_millis(200));
    testbed.gateway_mut(Side::B).kill_group().expect("a kill");
    strike(&testbed);
    std::thread::sleep(Duration::from_millis(200));
    testbed.gateway_mut(Side::B).start().expect("a start");
    testbed.gateway_mut(Side::B).wait_ready(READY).expect("ready");
    testbed.gateway_mut(Side::B).stop().expect("a stop");
    strike(&testbed);
    std::thread::sleep(Duration::from_millis(200));
    let frames = capture.stop().expect("frames");
    let arrived =
        frames.iter().filter(|frame| frame.octets.windows(16).any(|window| window == marker.0)).count();
    assert_eq!(arrived, 0, "cleartext from outside arrived at host B");
    // What the crafted packets held is theirs; the gateways' own frames must show nothing of the inside.
    let wires = testbed.finish().expect("captures");
    for frame in wires.b.iter().filter(|frame| frame.octets.get(6..12) == Some(&mac[..])) {
        let found = spindle_testbed::leaks(
            std::slice::from_ref(frame),
            &[
                spindle_testbed::InsideNetwork::V4(addresses.inside_a),
                spindle_testbed::InsideNetwork::V4(addresses.inside_b),
            ],
            marker,
        );
        assert!(found.is_empty(), "{found:?}");
    }
}
