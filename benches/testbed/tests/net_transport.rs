//! Transport mode between two machines that are gateways of themselves: all that they send to each other's outer address,
//! IKE excepted, is in ESP behind its own IP header (RFC 4301 section 4.1).

mod gateways;

use gateways::*;
use spindle_testbed::{
    Addresses, Gateway, Host, Layout, Options, Settings, Side, Testbed, Version, Versions, ping,
    tcp_transfer, udp_sweep,
};
use std::net::IpAddr;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);

/// Where a side is seen by the other one.
fn seen(testbed: &Testbed, side: Side) -> IpAddr {
    let addresses = testbed.topology().addresses;
    addresses.versions.outside.of(addresses.seen_at(side)[0])
}

/// Both gateways' own addresses are the two ends, and the peer's is where it is seen.
fn in_transport(options: Options) -> Testbed {
    let mut testbed = Testbed::two_gateways(options).expect("a testbed");
    for side in [Side::A, Side::B] {
        use_transport_mode(&testbed, side, seen(&testbed, side.other()));
    }
    testbed.start(READY).expect("both gateways ready");
    testbed
}

fn own(testbed: &Testbed, side: Side) -> Host<'_> {
    let topology = testbed.topology();
    Host { namespace: topology.gateway(side), address: topology.addresses.outer(side) }
}

fn pings(testbed: &Testbed, from: Side, size: usize, what: &str) {
    let answers = ping(own(testbed, from), seen(testbed, from.other()), 4, size).unwrap_or_default();
    let log = |side| testbed.gateway(side).log();
    assert!(answers.len() >= 3, "{what}: {answers:?}\nA:\n{}\nB:\n{}", log(Side::A), log(Side::B));
}

/// The Child SAs of a side.
fn children(gateway: &Gateway) -> Vec<serde_json::Value> {
    let list = gateway.json("list-sas").expect("list-sas");
    let of = |ike: &serde_json::Value| ike["children"].as_array().expect("Child SAs").clone();
    list.as_array().expect("IKE SAs").iter().flat_map(of).collect()
}

/// Ends the captures: what passed between the outer addresses, by IP protocol; ESP, and UDP on IKE's ports, alone, and
/// neighbour discovery.
fn only_esp_and_ike(testbed: &mut Testbed, in_udp: bool) {
    let wires = nothing_leaked(testbed);
    let mut esp = 0;
    for frame in wires.a.iter().chain(&wires.b) {
        let octets = &frame.octets;
        let (protocol, fragment, upper) = match octets.get(12..14) {
            Some([0x08, 0x00]) => (octets[23], u16::from_be_bytes([octets[20], octets[21]]) & 0x1fff, 34),
            Some([0x86, 0xdd]) if octets[20] == 44 => (octets[54], octets[57].into(), 62),
            Some([0x86, 0xdd]) => (octets[20], 0, 54),
            _ => continue,
        };
        match protocol {
            50 => esp += usize::from(!in_udp),
            // Later fragments show no ports; the first one of theirs has been looked at.
            17 if fragment == 0 => {
                let port = |at: usize| u16::from_be_bytes([octets[upper + at], octets[upper + at + 1]]);
                assert!([500, 4500].contains(&port(0)) || [500, 4500].contains(&port(2)), "{octets:02x?}");
                esp += usize::from(in_udp && octets[upper + 8..upper + 12] != [0; 4]);
            }
            17 => {}
            58 if (133..=136).contains(&octets[upper]) || octets[upper] == 143 => {}
            // Multicast listeners' reports stand behind a router alert (RFC 3810 section 5).
            0 if octets[12] == 0x86 && octets[upper] == 58 => {}
            other => panic!("protocol {other} in clear: {octets:02x?}"),
        }
    }
    assert!(esp > 500, "{esp} packets of ESP");
}

fn play(options: Options, in_udp: bool) {
    let behind_nat = options.layout == Layout::Nat;
    let mut testbed = in_transport(options);
    let to = seen(&testbed, Side::B);
    // The first packet brings up the SA.
    within(&testbed, "the SA", || !ping(own(&testbed, Side::A), to, 1, 56).unwrap_or_default().is_empty());
    for side in [Side::A, Side::B] {
        pings(&testbed, side, 56, "one to the other");
        let all = children(testbed.gateway(side));
        assert_eq!(
            (all.len(), &all[0]["mode"], &all[0]["encapsulated"]),
            (1, &"transport".into(), &in_udp.into())
        );
    }
    let marker = testbed.marker();
    let (a, b) = (own(&testbed, Side::A), own(&testbed, Side::B));
    assert!(tcp_transfer(a, b, marker, 1_000_000, PATIENCE).expect("TCP").is_intact());
    // A NAT lets no one connect to A at the address that A has.
    if !behind_nat {
        assert!(tcp_transfer(b, a, marker, 1_000_000, PATIENCE).expect("TCP").is_intact());
        // What the host has fragmented goes whole into ESP, and that in fragments.
        let interval = Duration::from_millis(5);
        for sizes in [1360..=1395, 2990..=3000] {
            let missing = udp_sweep(a, b, marker, sizes, interval, Duration::from_secs(2)).expect("a sweep");
            assert!(missing.is_empty(), "{missing:?}");
        }
    }
    for side in [Side::A, Side::B] {
        let before = children(testbed.gateway(side))[0]["spi_i"].clone();
        testbed.gateway(side).spindle("rekey --child ab/net").expect("a rekey");
        within(&testbed, "one Child SA", || children(testbed.gateway(side)).len() == 1);
        let all = children(testbed.gateway(side));
        assert_eq!(&all[0]["mode"], "transport");
        assert_ne!(all[0]["spi_i"], before);
        pings(&testbed, side, 56, "after a rekey");
    }
    every_packet_is_counted(&testbed);
    only_esp_and_ike(&mut testbed, in_udp);
}

#[test]
fn what_two_machines_send_each_other_is_in_esp() {
    play(Options::default(), false);
}

/// RFC 3948 section 2.1.
#[test]
fn so_it_is_in_udp() {
    let settings = Settings { more_connection: "encap = true".to_owned(), ..Settings::default() };
    play(Options { a: settings.clone(), b: settings, ..Options::default() }, true);
}

#[test]
fn so_it_is_over_ipv6() {
    let versions = Versions { outside: Version::V6, inside: Version::V6 };
    let addresses = Addresses { versions, ..Addresses::default() };
    play(Options { addresses, ..Options::default() }, false);
}

/// RFC 7296 section 2.23.1, RFC 3948 section 3.1.2: each side knows A by another address, and checksums are right none the
/// less.
#[test]
fn so_it_is_through_a_nat() {
    let remote = Some(Addresses::default().seen_at(Side::A)[0].to_string());
    let b = Settings { remote, ..quiet() };
    play(Options { b, layout: Layout::Nat, ..Options::default() }, true);
}
