//! Both sides of two gateways are VLANs (IEEE 802.1Q): what has the tag is theirs, all else the kernel's and its guard's.

mod gateways;

use gateways::*;
use spindle_testbed::{
    Addresses, Frame, Gateway, Layout, Options, Settings, Side, Testbed, Verdict, Version, Versions, ipv6,
};
use std::net::UdpSocket;
use std::time::Duration;

const OUTSIDE: u16 = 100;
const INSIDE: u16 = 200;
const ESP: u8 = 50;
const ICMP: u8 = 1;
const UDP: u8 = 17;

fn options(more_connection: &str) -> Options {
    let settings = || Settings {
        more_gateway: format!("outside_vlan = {OUTSIDE}\ninside_vlan = {INSIDE}"),
        more_connection: more_connection.into(),
        ..quiet()
    };
    let layout = Layout::Vlans { outside: OUTSIDE, inside: INSIDE };
    Options { layout, a: settings(), b: settings(), ..Options::default() }
}

fn count(testbed: &Testbed, side: Side, name: &str) -> u64 {
    testbed.gateway(side).stats().expect("stats")["dataplane"][name].as_u64().expect("a counter")
}

/// Priority and VID of a frame with one tag; and the frame without it.
fn untagged(octets: &[u8]) -> (Option<u16>, Vec<u8>) {
    match octets.get(12..16) {
        Some([0x81, 0, high, low]) => {
            (Some(u16::from_be_bytes([*high, *low])), [&octets[..12], &octets[16..]].concat())
        }
        _ => (None, octets.to_vec()),
    }
}

/// The protocol of IPv4 in an untagged frame.
fn protocol(octets: &[u8]) -> Option<u8> {
    (octets.get(12..14) == Some(&[8, 0])).then(|| octets.get(23).copied())?
}

/// Tags of what IPv4 and ARP there was on a wire, by protocol; ARP is None.
fn tags(frames: &[Frame], of: Option<u8>) -> Vec<Option<u16>> {
    let frames = frames.iter().map(|frame| untagged(&frame.octets));
    let is_of = |octets: &[u8]| match of {
        None => octets.get(12..14) == Some(&[8, 6]),
        Some(_) => protocol(octets) == of,
    };
    frames.filter(|(_, octets)| is_of(octets)).map(|(tag, _)| tag).collect()
}

fn pings(testbed: &Testbed) {
    for side in [Side::A, Side::B] {
        assert_eq!(testbed.ping(side, 3).expect("ping").len(), 3, "from {side:?}");
    }
}

/// IKE, ARP, ESP of all sizes, in UDP and not, ICMP to the inside, a rekey, another dataplane.
#[test]
fn all_that_passes_between_the_gateways_has_the_vlan_s_tag() {
    for (more, carrier) in [("", ESP), ("encap = true", UDP)] {
        let mut testbed = connected(options(more), Side::A);
        pings(&testbed);
        for side in [Side::A, Side::B] {
            let transfer = testbed.tcp_transfer(side, 1_000_000, Duration::from_secs(20)).expect("TCP");
            assert!(transfer.is_intact(), "{transfer:?}");
            // Beyond the tunnel's limit the first ones are refused, until the host hears it and fragments (RFC 1191).
            let first = testbed.udp_sweep(side, 1360..=1472).expect("a sweep");
            let then = testbed.udp_sweep(side, 1360..=1472).expect("a sweep");
            assert!(!first.is_empty() && first.iter().all(|size| *size > 1390), "{first:?}");
            assert!(then.is_empty(), "{then:?}");
        }
        testbed.gateway(Side::A).spindle("rekey ab/net").expect("a rekey");
        let killed = kill(&testbed, &["dataplane"]);
        within(&testbed, "a new dataplane", || {
            let events = testbed.gateway(Side::B).events().expect("control lives");
            Gateway::event_since(&events, "dataplane-ready", killed).is_some()
        });
        pings(&testbed);
        every_packet_is_counted(&testbed);
        assert!(count(&testbed, Side::A, "xdp_outside_passed") > 0, "IKE and ARP are the kernel's");
        for side in [Side::A, Side::B] {
            assert_eq!(count(&testbed, side, "not_ip"), 0);
        }
        let wires = nothing_leaked(&mut testbed);
        for wire in [&wires.a, &wires.b] {
            for of in [Some(carrier), Some(UDP), None] {
                let tags = tags(wire, of);
                assert!(!tags.is_empty(), "{of:?}");
                assert!(tags.iter().all(|tag| *tag == Some(OUTSIDE)), "{of:?}: {tags:x?}");
            }
            assert!(tags(wire, Some(carrier)).len() > 1000);
        }
    }
}

/// Neighbour discovery, ESP, and datagrams in clear both ways, which a policy of each gateway lets by.
#[test]
fn ipv6_and_what_passes_in_clear_have_the_tag_too() {
    let versions = Versions { outside: Version::V6, inside: Version::V6 };
    let addresses = Addresses { versions, ..Addresses::default() };
    let hosts = [Side::A, Side::B].map(|side| ipv6(addresses.host(side)));
    let mut options = Options { addresses, ..options("") };
    for (settings, own, other) in [(&mut options.a, hosts[0], hosts[1]), (&mut options.b, hosts[1], hosts[0])]
    {
        settings.more_recovery = format!(
            "[policies.clear]\nmode = \"pass\"\nlocal_ts = [\"{own}[udp/9]\"]\nremote_ts = [\"{other}[udp/9]\"]\n"
        );
    }
    let mut testbed = connected(options, Side::A);
    pings(&testbed);
    for side in [Side::A, Side::B] {
        let transfer = testbed.tcp_transfer(side, 1_000_000, Duration::from_secs(20)).expect("TCP");
        assert!(transfer.is_intact(), "{transfer:?}");
    }
    let bound = |side: Side| {
        let bind = || UdpSocket::bind((hosts[side as usize], 9));
        let socket = testbed.topology().host(side).enter(bind).expect("a namespace").expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
        socket
    };
    let sockets = [bound(Side::A), bound(Side::B)];
    for (from, to) in [(0, 1), (1, 0)] {
        for number in 0..5_u8 {
            sockets[from].send_to(&[number; 9], (hosts[to], 9)).expect("sent");
            let mut octets = [0; 20];
            let (length, _) = sockets[to].recv_from(&mut octets).expect("it arrives");
            assert_eq!(octets[..length], [number; 9]);
        }
    }
    for side in [Side::A, Side::B] {
        assert_eq!(count(&testbed, side, "bypassed"), 10);
        assert_eq!(count(&testbed, side, "not_ip"), 0);
    }
    every_packet_is_counted(&testbed);
    let wires = testbed.finish().expect("captures");
    for wire in [&wires.a, &wires.b] {
        let mut seen = [0; 3];
        for frame in wire {
            let (tag, octets) = untagged(&frame.octets);
            // The interface below the VLAN says by itself which groups it listens to, from a link-local address, or none.
            if tag.is_none() && (octets[22..24] == [0xfe, 0x80] || octets[22..38] == [0; 16]) {
                continue;
            }
            assert_eq!(tag, Some(OUTSIDE), "{:02x?}", frame.octets);
            assert_eq!(octets[12..14], [0x86, 0xdd], "{:02x?}", frame.octets);
            seen[0] += usize::from(octets[20] == ESP);
            seen[1] += usize::from(octets[20] == 58);
            seen[2] += usize::from(octets[20] == UDP && octets[54..58] == [0, 9, 0, 9]);
        }
        assert!(seen[0] > 1000 && seen[1] > 0 && seen[2] == 10, "ESP, ICMPv6, in clear: {seen:?}");
    }
}

/// While the box changes each ESP frame towards B so, the kernel gets all, and nothing arrives.
fn is_passed_with(testbed: &Testbed, change: fn(Vec<u8>) -> Vec<Vec<u8>>) {
    let before = ["decapsulated", "xdp_outside_passed"].map(|name| count(testbed, Side::B, name));
    testbed.delay().set_filter(Some(Box::new(move |from, frame| {
        let (tag, plain) = untagged(frame);
        if from == Side::B || protocol(&plain) != Some(ESP) {
            return Verdict::Pass;
        }
        assert_eq!(tag, Some(OUTSIDE));
        Verdict::Instead { onward: change(plain), back: Vec::new() }
    })));
    let sent = nothing_arrives(testbed);
    testbed.delay().set_filter(None);
    assert_eq!(count(testbed, Side::B, "decapsulated"), before[0]);
    let passed = count(testbed, Side::B, "xdp_outside_passed") - before[1];
    assert!(passed >= sent, "{passed} of {sent}");
}

/// A stream from host A to host B: how much was sent of it, of which nothing arrived.
fn nothing_arrives(testbed: &Testbed) -> u64 {
    let stream = testbed.stream(Side::A, Duration::from_millis(10)).expect("a stream");
    std::thread::sleep(Duration::from_millis(300));
    let log = stream.stop(Duration::from_millis(100));
    assert!(log.sent.len() > 10 && log.deliveries.is_empty(), "{log:?}");
    log.sent.len() as u64
}

fn with_tag(tpid: u16, control: u16, plain: &[u8]) -> Vec<u8> {
    [&plain[..12], &tpid.to_be_bytes(), &control.to_be_bytes(), &plain[12..]].concat()
}

/// ESP that is right but for its tag: the dataplane never sees it, and the kernel answers nothing, whether the address is
/// its own by the interface or by the VLAN's device, and whether or not a gateway runs.
#[test]
fn esp_without_the_tag_or_with_another_one_goes_to_the_kernel_where_the_guard_drops_it() {
    let mut testbed = connected(options(""), Side::A);
    pings(&testbed);
    let b = testbed.topology().gateway(Side::B);
    // An answer is sent at once, and counted.
    b.sysctl("ipv4/icmp_ratelimit", "0").expect("a setting");
    for change in [
        (|plain| vec![plain]) as fn(Vec<u8>) -> Vec<Vec<u8>>,
        |plain| vec![with_tag(0x8100, OUTSIDE + 1, &plain)],
        |plain| vec![with_tag(0x8100, 0xe000, &plain)],
        |plain| vec![with_tag(0x88a8, OUTSIDE, &plain)],
        |plain| vec![with_tag(0x8100, OUTSIDE, &with_tag(0x8100, OUTSIDE, &plain))],
    ] {
        is_passed_with(&testbed, change);
    }
    let own = testbed.topology().addresses.gateway_outside(Side::B);
    b.ip(&format!("address add {own}/32 dev b-out")).expect("the same address below");
    is_passed_with(&testbed, |plain| vec![plain]);
    b.ip(&format!("address del {own}/32 dev b-out")).expect("and away");
    pings(&testbed);

    // Nobody but the kernel is there: ESP with the tag goes to its device.
    testbed.gateway_mut(Side::B).kill_group().expect("killed");
    nothing_arrives(&testbed);
    testbed.gateway_mut(Side::A).stop().expect("stopped");
    let wires = nothing_leaked(&mut testbed);
    assert!(tags(&wires.b, Some(ESP)).len() > 20);
    assert_eq!(tags(&wires.b, Some(ICMP)), [], "an ICMP error tells of a gateway that knows no ESP");
}

/// Where tags cannot be told, or the kernel has no device for the VLAN, nothing starts, and it is said what helps.
#[test]
fn a_gateway_that_could_not_see_tags_does_not_start() {
    let mut testbed = Testbed::two_gateways(options("")).expect("a testbed");
    let b = testbed.topology().gateway(Side::B);
    b.run("ethtool -K b-out rxvlan on").expect("ethtool");
    let refused = |testbed: &mut Testbed, fix: &str| {
        testbed.gateway_mut(Side::B).start().expect("started");
        let error = testbed.gateway_mut(Side::B).wait_ready(READY).expect_err(fix).to_string();
        assert!(error.contains("exit status: 2"), "{error}");
        assert!(testbed.gateway(Side::B).log().contains(fix), "{error}");
    };
    refused(&mut testbed, "`ethtool -K b-out rxvlan off`");
    let file = testbed.gateway(Side::B).config();
    let text = std::fs::read_to_string(&file).expect("a configuration");
    std::fs::write(&file, text.replace("outside_vlan = 100", "outside_vlan = 300")).expect("a configuration");
    refused(&mut testbed, "`ip link add link b-out name b-out.300 type vlan id 300`");
}
