//! Packets of ordinary sockets through a tunnel of real gateways, the hosts' offloads untouched; nothing leaks, and
//! every packet has its place in the dataplane's equation.

mod gateways;

use gateways::hardware_address;
use spindle_testbed::{Options, Place, Side, Testbed, craft};
use std::time::Duration;

fn up() -> Testbed {
    let mut testbed = Testbed::two_gateways(Options::default()).unwrap_or_else(|error| panic!("{error}"));
    testbed.start(Duration::from_secs(20)).unwrap_or_else(|error| panic!("{error}"));
    testbed.gateway(Side::A).initiate().unwrap_or_else(|error| panic!("{error}"));
    testbed
}

/// No inside address and no marker on the wire, and received + created = delivered + dropped + held on both sides.
fn settle(mut testbed: Testbed) {
    std::thread::sleep(Duration::from_millis(200));
    for side in [Side::A, Side::B] {
        let stats = testbed.gateway(side).stats().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(stats["packets"]["holds"], true, "{side:?}: {}", stats["packets"]);
        testbed.gateway_mut(side).stop().unwrap_or_else(|error| panic!("{error}"));
    }
    let wires = testbed.finish().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(testbed.leaks(&wires), []);
}

#[test]
fn echoes_and_udp_of_all_sizes_pass_the_tunnel() {
    let testbed = up();
    for side in [Side::A, Side::B] {
        assert_eq!(testbed.ping(side, 5).expect("ping runs").len(), 5, "{side:?}");
        assert_eq!(testbed.udp_sweep(side, 1..=1372).expect("sockets"), [0_usize; 0], "{side:?}");
    }
    settle(testbed);
}

#[test]
fn a_hundred_megabytes_pass_the_tunnel_by_tcp_each_way() {
    let testbed = up();
    for side in [Side::A, Side::B] {
        let transfer = testbed.tcp_transfer(side, 100_000_000, Duration::from_secs(60));
        let transfer = transfer.unwrap_or_else(|error| panic!("{error}"));
        eprintln!("from {side:?}: {:.3} Gb/s", transfer.bits_per_second() / 1e9);
        assert_eq!(transfer.octets, 100_000_000);
        assert!(transfer.is_intact());
    }
    settle(testbed);
}

#[test]
fn a_cleartext_packet_from_outside_never_reaches_a_host() {
    let mut testbed = up();
    let stream = testbed.stream(Side::A, Duration::from_millis(10)).expect("sockets");
    assert!(stream.wait_delivery_since(0, Duration::from_secs(5)).is_some());
    let addresses = testbed.topology().addresses;
    // As the stream's packets look, but in clear and with a number that the stream does not reach.
    let mut payload = testbed.marker().0.to_vec();
    payload.extend(u64::MAX.to_be_bytes());
    payload.extend(0_u64.to_be_bytes());
    let datagram = craft::udp(9, spindle_testbed::Stream::PORT, &payload);
    let packet = craft::ipv4(addresses.host(Side::A), addresses.host(Side::B), 17, &datagram);
    let frame = craft::ethernet(hardware_address(&testbed, Side::B), [2, 0, 0, 0, 0, 1], 0x0800, &packet);
    for _ in 0..20 {
        testbed.inject(Side::B, &frame).expect("the kernel sends it");
    }
    std::thread::sleep(Duration::from_millis(300));
    testbed.gateway_mut(Side::B).kill_group().unwrap_or_else(|error| panic!("{error}"));
    for _ in 0..20 {
        testbed.inject(Side::B, &frame).expect("the kernel sends it");
    }
    let log = stream.stop(Duration::from_millis(200));
    assert!(log.deliveries.iter().all(|delivery| delivery.number != u64::MAX), "cleartext got through");
    assert!(!log.deliveries.is_empty());
    testbed.gateway_mut(Side::A).stop().unwrap_or_else(|error| panic!("{error}"));
    // On B's wire our own frames are leaks, 40 of them; nothing else is, and A's wire has none.
    let wires = testbed.finish().unwrap_or_else(|error| panic!("{error}"));
    let markers = testbed.leaks(&wires).iter().filter(|leak| leak.place == Place::Marker).count();
    assert_eq!(markers, 40);
}
