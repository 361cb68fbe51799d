//! Every transform, raw and in UDP; tunnels that the first packet brings up.

mod gateways;

use gateways::*;
use spindle_testbed::{Link, Options, Settings, Side};
use std::time::Duration;

/// RFC 7634, RFC 4106, RFC 3948: the other transforms, encapsulated.
#[test]
fn every_suite_passes_packets_raw_and_in_udp() {
    let suites = [
        ("chacha20poly1305-prfsha256-x25519", "chacha20poly1305", true),
        ("aes256gcm16-prfsha384-ecp256", "aes256gcm16", true),
        ("aes256gcm16-prfsha384-ecp256", "chacha20poly1305", false),
    ];
    for (proposal, esp_proposal, encap) in suites {
        let settings = Settings {
            proposal: proposal.to_owned(),
            esp_proposal: esp_proposal.to_owned(),
            more_connection: format!("encap = {encap}"),
            ..Settings::default()
        };
        let options = Options { a: settings.clone(), b: settings, ..Options::default() };
        let mut testbed = connected(options, Side::B);
        for from in [Side::A, Side::B] {
            assert_eq!(testbed.ping(from, 5).expect("ping").len(), 5, "{proposal} {esp_proposal}");
            let missing = testbed.udp_sweep(from, 1300..=1372).expect("a sweep");
            assert!(missing.is_empty(), "{proposal} {esp_proposal}: {missing:?}");
            let transfer = testbed.tcp_transfer(from, 2_000_000, Duration::from_secs(30)).expect("TCP");
            assert!(transfer.is_intact());
        }
        every_packet_is_counted(&testbed);
        nothing_leaked(&mut testbed);
    }
}

/// RFC 4301 section 4.4.1: the first packet that matches brings up the SA.
#[test]
fn the_first_packet_brings_up_the_tunnel() {
    let mut testbed = spindle_testbed::Testbed::two_gateways(Options::default()).expect("a testbed");
    testbed.start(READY).expect("both gateways ready");
    let stream = testbed.stream(Side::A, Duration::from_millis(20)).expect("a stream");
    assert!(stream.wait_delivery_since(0, Duration::from_secs(5)).is_some(), "nothing arrived within 5 s");
    stream.stop(Duration::from_millis(200));
    within(&testbed, "one Child SA on each side", || {
        sas(&testbed, Side::A) == (1, 1) && sas(&testbed, Side::B) == (1, 1)
    });
    every_packet_is_counted(&testbed);
    nothing_leaked(&mut testbed);
}

/// What comes before the tunnel waits for it where that is configured: nothing is lost, and it leaves in its order.
#[test]
fn the_first_packets_wait_for_the_tunnel() {
    let settings = Settings { more_child: "hold_packets = 64".to_owned(), ..Settings::default() };
    let link = Link::with_round_trip(Duration::from_millis(100));
    let options = Options { a: settings.clone(), b: settings, link, ..Options::default() };
    let mut testbed = spindle_testbed::Testbed::two_gateways(options).expect("a testbed");
    testbed.start(READY).expect("both gateways ready");
    let stream = testbed.stream(Side::A, Duration::from_millis(20)).expect("a stream");
    assert!(stream.wait_delivery_since(0, Duration::from_secs(5)).is_some(), "nothing arrived within 5 s");
    let log = stream.stop(Duration::from_millis(500));
    // Two round trips of packets, at least.
    let waited = log.deliveries[0].received - log.sent[0];
    assert!(waited >= 200_000_000, "{waited} ns");
    let arrived: Vec<u64> = log.deliveries.iter().map(|delivery| delivery.number).collect();
    assert_eq!(arrived, (0..log.sent.len() as u64).collect::<Vec<_>>());
    every_packet_is_counted(&testbed);
    nothing_leaked(&mut testbed);
}
