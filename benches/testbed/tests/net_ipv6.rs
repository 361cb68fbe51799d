//! IPv6 outside and inside, in every combination with IPv4 (both of IPv4 is what all other tests have).

mod gateways;

use gateways::*;
use spindle_testbed::{
    Addresses, Crash, Link, Options, Recovery, Settings, Side, Testbed, Version, Versions, wire_events,
};
use std::time::Duration;

const SIX: Versions = Versions { outside: Version::V6, inside: Version::V6 };

fn options(versions: Versions, settings: Settings) -> Options {
    Options {
        addresses: Addresses { versions, ..Addresses::default() },
        a: settings.clone(),
        b: settings,
        ..Options::default()
    }
}

/// Echoes, datagrams of all sizes about the limit, and TCP in both directions, the hosts' offloads untouched.
fn carries_all(testbed: &Testbed, versions: Versions) {
    for from in [Side::A, Side::B] {
        assert_eq!(testbed.ping(from, 5).expect("ping").len(), 5, "{versions:?}");
        let missing = testbed.udp_sweep(from, 1340..=1370).expect("a sweep");
        assert!(missing.is_empty(), "{versions:?}: {missing:?}");
        // RFC 8201: the first ones that are too big are answered with what fits; then the host cuts them itself.
        let _ = testbed.udp_sweep(from, 1420..=1440).expect("a sweep");
        let missing = testbed.udp_sweep(from, 1420..=1440).expect("a sweep");
        assert!(missing.is_empty(), "{versions:?}, too big for the path: {missing:?}");
        let transfer = testbed.tcp_transfer(from, 20_000_000, Duration::from_secs(30)).expect("TCP");
        assert!(transfer.is_intact(), "{versions:?}");
    }
}

/// RFC 4301 section 5.1.2 (tunnels of both versions in both), RFC 7296 section 2.8 (rekeys).
#[test]
fn packets_of_either_version_pass_tunnels_of_either_version() {
    let four_in_six = Versions { outside: Version::V6, inside: Version::V4 };
    let six_in_four = Versions { outside: Version::V4, inside: Version::V6 };
    for versions in [SIX, four_in_six, six_in_four] {
        let mut testbed = connected(options(versions, quiet()), Side::A);
        carries_all(&testbed, versions);
        let stream = testbed.stream(Side::B, Duration::from_millis(5)).expect("a stream");
        testbed.gateway(Side::B).spindle("rekey --child ab/net").expect("a Child SA's rekey");
        testbed.gateway(Side::A).spindle("rekey --ike ab").expect("an IKE SA's rekey");
        std::thread::sleep(Duration::from_millis(200));
        all_arrived(&stream.stop(Duration::from_millis(300)));
        within(&testbed, "one IKE SA and one Child SA", || sas(&testbed, Side::A) == (1, 1));
        every_packet_is_counted(&testbed);
        nothing_leaked(&mut testbed);
    }
}

/// RFC 3948 over IPv6, where the UDP checksum must be right (RFC 8200 section 8.1).
#[test]
fn esp_in_udp_over_ipv6_has_right_checksums() {
    let settings = Settings { more_connection: "encap = true".to_owned(), ..quiet() };
    let mut testbed = connected(options(SIX, settings), Side::B);
    carries_all(&testbed, SIX);
    every_packet_is_counted(&testbed);
    let wires = nothing_leaked(&mut testbed);
    let mut esp = 0;
    for frame in &wires.a {
        // IPv6, UDP without extension headers, port 4500, not the non-ESP marker.
        let octets = &frame.octets;
        let is_esp = octets.get(12..14) == Some(&[0x86, 0xdd])
            && octets.get(20) == Some(&17)
            && octets.get(56..58) == Some(&4500_u16.to_be_bytes())
            && octets.get(62..66).is_some_and(|marker| marker != [0; 4]);
        if !is_esp {
            continue;
        }
        esp += 1;
        let length = usize::from(u16::from_be_bytes([octets[58], octets[59]]));
        let mut summed = octets[22..54].to_vec();
        summed.extend((length as u32).to_be_bytes());
        summed.extend([0, 0, 0, 17]);
        summed.extend(&octets[54..54 + length]);
        let words =
            summed.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
        let mut sum: u32 = words.sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        assert_eq!(sum, 0xffff, "{octets:02x?}");
    }
    assert!(esp > 1000, "{esp} packets of ESP in UDP");
}

/// RFC 6290: the token comes over IPv6, from the journal, and the tunnel is back in three round trips.
#[test]
fn a_crash_is_recovered_by_qcd_over_ipv6() {
    let round_trip = Duration::from_millis(20);
    let link = Link::with_round_trip(round_trip);
    let mut testbed = connected(Options { link, ..options(SIX, Settings::default()) }, Side::A);
    let stream = testbed.stream(Side::A, Duration::from_millis(10)).expect("a stream");
    std::thread::sleep(Duration::from_millis(400));
    let killed = testbed.gateway_mut(Side::B).kill_group().expect("a kill");
    std::thread::sleep(Duration::from_millis(200));
    let started = testbed.gateway_mut(Side::B).start().expect("a start");
    let ready = testbed.gateway_mut(Side::B).wait_ready(READY).expect("ready again");
    let delivery = stream.wait_delivery_since(ready, Duration::from_secs(10));
    assert!(
        delivery.is_some(),
        "A:\n{}\nB:\n{}",
        testbed.gateway(Side::A).log(),
        testbed.gateway(Side::B).log()
    );
    let events = testbed.gateway(Side::A).events().expect("events");
    assert!(spindle_testbed::Gateway::event_since(&events, "proof", killed).is_some(), "without proof");
    stream.stop(Duration::from_millis(300));
    within(&testbed, "one IKE SA and one Child SA", || sas(&testbed, Side::B) == (1, 1));
    every_packet_is_counted(&testbed);
    let gateway = testbed.topology().addresses.outer(Side::B);
    let wires = nothing_leaked(&mut testbed);
    let events = wire_events(&wires.b);
    let recovery = Recovery::new(&events, Crash { gateway, killed, started, ready, round_trip });
    assert_eq!(recovery.round_trips(), Some(3), "{:?}", recovery.exchanges());
}

/// With both gateways down, and with one, nothing in clear leaves: headers, neighbour discovery, quotes of errors.
#[test]
fn no_inside_ipv6_address_shows_outside_while_gateways_are_down() {
    let mut testbed = connected(options(SIX, quiet()), Side::A);
    let stream = testbed.stream(Side::A, Duration::from_millis(10)).expect("a stream");
    let answers = testbed.stream(Side::B, Duration::from_millis(10)).expect("a stream");
    assert!(stream.wait_delivery_since(0, Duration::from_secs(5)).is_some());
    for side in [Side::B, Side::A] {
        testbed.gateway_mut(side).kill_group().expect("a kill");
        std::thread::sleep(Duration::from_millis(500));
        let to = testbed.host(side.other()).address;
        // The last hop would be a gateway: errors quote the packet.
        let _ = testbed.topology().host(side).run(&format!("ping -c 2 -i 0.2 -t 1 -W 1 {to}"));
        let _ = testbed.topology().gateway(side).run(&format!("ping -c 2 -i 0.2 -W 1 {to}"));
    }
    assert!(!stream.stop(Duration::from_millis(100)).deliveries.is_empty());
    answers.stop(Duration::from_millis(100));
    nothing_leaked(&mut testbed);
}
