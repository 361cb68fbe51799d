//! A path between the gateways that is narrower than its first hop: packets of all lengths arrive, ICMP is believed
//! where it quotes our ESP, and what the path fragments is put together.

mod gateways;

use gateways::*;
use spindle_testbed::{
    Addresses, Options, Settings, Side, Testbed, Verdict, Version, Versions, craft, narrow, shred,
};
use std::time::Duration;

/// Of the dataplane.
fn count(testbed: &Testbed, side: Side, name: &str) -> u64 {
    let stats = testbed.gateway(side).stats().expect("stats");
    stats["dataplane"][name].as_u64().unwrap_or_else(|| panic!("no counter {name}: {stats:#}"))
}

/// These lengths of UDP payloads arrive intact, both ways.
fn all_arrive(testbed: &Testbed, lengths: &[usize]) {
    for side in [Side::A, Side::B] {
        for length in lengths {
            let missing = testbed.udp_sweep(side, *length..=*length).expect("sockets");
            assert!(missing.is_empty(), "{length} octets from {side:?}");
        }
    }
}

/// In UDP (RFC 3948) or not.
fn options(encapsulated: bool) -> Options {
    let more_connection = format!("encap = {encapsulated}");
    let settings = Settings { more_connection, ..Settings::default() };
    Options { a: settings.clone(), b: settings, ..Options::default() }
}

/// RFC 4301 section 8.1: what may be fragmented is, before it is encapsulated.
#[test]
fn udp_of_all_lengths_arrives_on_wide_and_on_narrow_paths() {
    for encapsulated in [false, true] {
        let mut testbed = connected(options(encapsulated), Side::A);
        all_arrive(&testbed, &[1, 1372, 1500, 8000]);
        testbed.delay().set_filter(Some(Box::new(narrow(1300))));
        // From the host, 1,372 octets go with DF; the first is refused, and the host's kernel learns.
        for side in [Side::A, Side::B] {
            testbed.udp_sweep(side, 1372..=1372).expect("sockets");
        }
        within(&testbed, "both know the path", || {
            [Side::A, Side::B].iter().all(|side| count(&testbed, *side, "path_mtu_learned") > 0)
        });
        for side in [Side::A, Side::B] {
            // And so does the host, by its next packet.
            testbed.udp_sweep(side, 1372..=1372).expect("sockets");
        }
        all_arrive(&testbed, &[1, 1372, 1500, 8000]);
        for side in [Side::A, Side::B] {
            assert!(count(&testbed, side, "icmp_about_esp") > 0);
            assert_eq!(count(&testbed, side, "icmp_unknown_sa"), 0);
        }
        every_packet_is_counted(&testbed);
        nothing_leaked(&mut testbed);
    }
}

/// RFC 4301 section 8.2.1, RFC 1191: the path's MTU falls under a transfer; it flows again within three seconds.
#[test]
fn tcp_flows_on_when_the_path_becomes_narrower() {
    let mut testbed = connected(options(false), Side::A);
    let (mut router, mut full) = (narrow(1300), 0);
    testbed.delay().set_filter(Some(Box::new(move |from, frame| {
        // The path changes once the transfer is under way.
        full += u32::from(from == Side::A && frame.len() > 1400);
        if full > 1000 { router(from, frame) } else { Verdict::Pass }
    })));
    // Whoever waits longer than that gives up.
    let transfer = testbed.tcp_transfer(Side::A, 20_000_000, Duration::from_secs(3));
    let transfer = transfer.unwrap_or_else(|error| panic!("{error}"));
    assert!(transfer.is_intact() && transfer.octets == 20_000_000);
    assert!(count(&testbed, Side::A, "path_mtu_learned") > 0);
    assert!(count(&testbed, Side::A, "icmp_errors_sent") > 0);
    // The next connection begins with segments that fit.
    let refused = count(&testbed, Side::A, "too_big");
    let transfer = testbed.tcp_transfer(Side::B, 1_000_000, Duration::from_secs(3)).expect("TCP");
    assert!(transfer.is_intact());
    assert_eq!(count(&testbed, Side::A, "too_big"), refused);
    every_packet_is_counted(&testbed);
    nothing_leaked(&mut testbed);
}

/// RFC 4301 section 8.2: an ICMP error that quotes no SA of ours changes nothing.
#[test]
fn a_forged_icmp_error_changes_nothing() {
    let mut testbed = connected(options(false), Side::A);
    all_arrive(&testbed, &[1372]);
    let (addresses, to) = (testbed.topology().addresses, hardware_address(&testbed, Side::A));
    let (own, peer) = (addresses.gateway_outside(Side::A), addresses.gateway_outside(Side::B));
    for spi in 0x1000..0x1064_u32 {
        let mut quoted = craft::ipv4(own, peer, 50, &craft::esp(spi, 1, &[0; 20]));
        quoted[2..4].copy_from_slice(&1500_u16.to_be_bytes());
        let error = craft::ipv4(peer, own, 1, &craft::icmp(3, 4, 600, &quoted));
        let frame = craft::ethernet(to, [2, 0, 0, 0, 0, 1], 0x0800, &error);
        testbed.inject(Side::A, &frame).expect("the kernel sends it");
    }
    within(&testbed, "all were heard", || count(&testbed, Side::A, "icmp_unknown_sa") == 100);
    assert_eq!(count(&testbed, Side::A, "path_mtu_learned"), 0);
    all_arrive(&testbed, &[1372]);
    assert_eq!(count(&testbed, Side::A, "too_big"), 0);
    every_packet_is_counted(&testbed);
    nothing_leaked(&mut testbed);
}

/// RFC 4303 section 3.4.1: what the path fragments is put together, ESP by the dataplane and IKE by the kernel.
#[test]
fn a_tunnel_comes_up_and_works_where_the_path_fragments_everything() {
    for encapsulated in [false, true] {
        let mut testbed = Testbed::two_gateways(options(encapsulated)).expect("a testbed");
        testbed.delay().set_filter(Some(Box::new(shred(200))));
        testbed.start(READY).expect("both gateways ready");
        testbed.gateway(Side::A).initiate().expect("an IKE SA");
        all_arrive(&testbed, &[1, 1372, 1500, 8000]);
        let transfer = testbed.tcp_transfer(Side::B, 500_000, Duration::from_secs(10)).expect("TCP");
        assert!(transfer.is_intact());
        for side in [Side::A, Side::B] {
            assert!(count(&testbed, side, "reassembled") > 0);
            assert_eq!(count(&testbed, side, "fragment_invalid"), 0);
        }
        every_packet_is_counted(&testbed);
        let wires = nothing_leaked(&mut testbed);
        let longest = |frames: &[spindle_testbed::Frame]| {
            frames.iter().filter(|frame| frame.octets[23] == 17).map(|frame| frame.octets.len()).max()
        };
        // IKE is longer than a fragment.
        assert!(longest(&wires.a) > Some(214), "{:?}", longest(&wires.a));
    }
}

/// Hosts of one version behind gateways that speak IPv6.
fn over_ipv6(inside: Version, encapsulated: bool) -> Options {
    let versions = Versions { outside: Version::V6, inside };
    let addresses = Addresses { versions, ..Addresses::default() };
    Options { addresses, ..options(encapsulated) }
}

/// RFC 4301 section 8.2.1, RFC 8201: Packet Too Big that quotes our ESP is believed. A path below 1,280 octets is none of
/// IPv6's, so what needs more than that leaves in fragments, and they are put together.
#[test]
fn over_ipv6_a_narrower_path_is_learned() {
    for (inside, encapsulated) in [(Version::V4, true), (Version::V6, false)] {
        let mut testbed = connected(over_ipv6(inside, encapsulated), Side::A);
        // What hosts learn by, for routers cut no IPv6.
        let learn = |length: usize| {
            for side in [Side::A, Side::B] {
                testbed.udp_sweep(side, length..=length).expect("sockets");
            }
        };
        learn(8000);
        all_arrive(&testbed, &[1, 1340, 8000]);
        testbed.delay().set_filter(Some(Box::new(narrow(1290))));
        learn(1340);
        within(&testbed, "both know the path", || {
            [Side::A, Side::B].iter().all(|side| count(&testbed, *side, "path_mtu_learned") > 0)
        });
        // And so does the host, by its next packet.
        learn(1340);
        learn(8000);
        all_arrive(&testbed, &[1, 1340, 8000]);
        if inside == Version::V6 {
            // 1,232 octets of data make the least packet that every IPv6 link takes, and it is never refused.
            all_arrive(&testbed, &[1232]);
        }
        for side in [Side::A, Side::B] {
            assert!(count(&testbed, side, "icmp_about_esp") > 0);
            assert_eq!(count(&testbed, side, "icmp_unknown_sa"), 0);
            assert_eq!(count(&testbed, side, "reassembled") > 0, inside == Version::V6);
        }
        every_packet_is_counted(&testbed);
        nothing_leaked(&mut testbed);
    }
}

/// RFC 8200 section 4.5: ESP in fragments is put together by the dataplane, in UDP or not, IKE in fragments by the kernel.
#[test]
fn a_tunnel_over_ipv6_comes_up_and_works_where_all_comes_in_fragments() {
    for encapsulated in [false, true] {
        let mut testbed = Testbed::two_gateways(over_ipv6(Version::V4, encapsulated)).expect("a testbed");
        testbed.delay().set_filter(Some(Box::new(shred(240))));
        testbed.start(READY).expect("both gateways ready");
        testbed.gateway(Side::A).initiate().expect("an IKE SA");
        all_arrive(&testbed, &[1, 1340, 8000]);
        for side in [Side::A, Side::B] {
            assert!(count(&testbed, side, "reassembled") > 0);
            assert_eq!(count(&testbed, side, "fragment_invalid"), 0);
        }
        every_packet_is_counted(&testbed);
        nothing_leaked(&mut testbed);
    }
}
