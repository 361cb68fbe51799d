//! The guard against the kernel, with no Spindle running: crafted packets from the inside host, from the wire and from
//! the gateway itself. Each round first shows that without the guard addresses leak and packets cross, so that
//! silence with it means something.

use spindle_testbed::{Frame, InsideNetwork, Leak, Marker, Options, Side, Testbed, craft, leaks};
use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;
use std::time::Duration;

/// What a round of crafted packets brought to light.
struct Round {
    /// In frames that gateway B sent on its outer wire.
    leaks: Vec<Leak>,
    /// Did a packet from the wire reach host B?
    crossed: bool,
    /// ICMP errors on the wire that tell of an unreachable protocol or port (RFC 792).
    unreachable: usize,
    /// Did the gateway answer an echo request to its own outer address?
    alive: bool,
}

fn spindle(testbed: &Testbed, verb: &str) -> std::process::Output {
    let mut command: Command = testbed.topology().gateway(Side::B).command(env!("CARGO_BIN_EXE_spindle"));
    command.arg(verb).arg("--config").arg(testbed.gateway(Side::B).config()).output().unwrap()
}

/// The MAC address of a gateway's interface.
fn mac(testbed: &Testbed, interface: &str) -> [u8; 6] {
    let text =
        testbed.topology().gateway(Side::B).run(&format!("cat /sys/class/net/{interface}/address")).unwrap();
    let octets: Vec<u8> = text.trim().split(':').map(|o| u8::from_str_radix(o, 16).unwrap()).collect();
    octets.try_into().unwrap()
}

/// Sends the whole repertoire and looks at the wire.
fn round() -> (Testbed, impl Fn(&mut Testbed, &str) -> Round) {
    let testbed = Testbed::two_gateways(Options::default()).unwrap();
    // Answers at once, not after a second.
    testbed.topology().gateway(Side::B).sysctl("ipv4/icmp_ratelimit", "0").unwrap();
    let run = |testbed: &mut Testbed, name: &str| {
        let addresses = testbed.topology().addresses;
        let (host_a, host_b) = (addresses.host(Side::A), addresses.host(Side::B));
        let (outer_a, outer_b) = (addresses.gateway_outside(Side::A), addresses.gateway_outside(Side::B));
        let inner_b = addresses.gateway_inside(Side::B);
        let (to, from) = (mac(testbed, "b-out"), [2, 0, 0, 0, 0, 9]);
        let marker = Marker::random();

        // Before anything else: what arrives at host B from the wire.
        let port = 7777;
        let receiver =
            testbed.topology().host(Side::B).enter(|| UdpSocket::bind((host_b, port)).unwrap()).unwrap();
        receiver.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let path = testbed.directory().join(format!("{name}.pcap"));
        let capture =
            spindle_testbed::Capture::start(testbed.topology().delay_box(), &Side::B.box_interface(), &path)
                .unwrap();

        let udp = |port| craft::udp(9999, port, &marker.0);
        let inject = |packet: Vec<u8>| {
            testbed.inject(Side::B, &craft::ethernet(to, from, 0x0800, &packet)).unwrap();
        };
        let closed = 9;
        for ttl in [64, 1] {
            for source in [host_a, outer_a] {
                for destination in [host_b, inner_b, Ipv4Addr::new(10, 2, 0, 77)] {
                    inject(craft::with_ttl(craft::ipv4(source, destination, 17, &udp(port)), ttl));
                    inject(craft::with_ttl(craft::ipv4(source, destination, 17, &udp(closed)), ttl));
                    inject(craft::with_ttl(
                        craft::ipv4(source, destination, 1, &craft::icmp(8, 0, 1, &marker.0)),
                        ttl,
                    ));
                }
            }
            // In clear, with a protected source, to the gateway itself: an answer would name the source.
            inject(craft::with_ttl(craft::ipv4(host_a, outer_b, 17, &udp(closed)), ttl));
            inject(craft::with_ttl(craft::ipv4(host_a, outer_b, 1, &craft::icmp(8, 0, 1, b"echo")), ttl));
        }
        // To a gateway that is down for the moment: an answer would tell the peer that nobody is here.
        for (protocol, payload) in [(50, marker.0.to_vec()), (17, udp(4500)), (17, udp(500))] {
            inject(craft::ipv4(outer_a, outer_b, protocol, &payload));
        }
        for asked in [inner_b, host_b] {
            let request = craft::arp(1, (from, outer_a), ([0; 6], asked));
            testbed.inject(Side::B, &craft::ethernet([0xff; 6], from, 0x0806, &request)).unwrap();
        }
        let request = craft::arp(1, (from, host_a), ([0; 6], outer_b));
        testbed.inject(Side::B, &craft::ethernet([0xff; 6], from, 0x0806, &request)).unwrap();

        // From inside, and from the gateway itself.
        let host = testbed.topology().host(Side::B);
        for line in [
            format!("ping -q -c 1 -W 1 {host_a}"),
            format!("ping -q -c 1 -W 1 -t 1 {host_a}"),
            format!("ping -q -c 1 -W 1 {outer_a}"),
            format!("ping -q -c 1 -W 1 -t 2 {outer_a}"),
        ] {
            let _ = host.run(&line);
        }
        let gateway = testbed.topology().gateway(Side::B);
        for line in
            [format!("ping -q -c 1 -W 1 {host_a}"), format!("ping -q -c 1 -W 1 -I {inner_b} {outer_a}")]
        {
            let _ = gateway.run(&line);
        }
        // A sender that reaches the gateway the honest way is answered.
        let alive = testbed.topology().gateway(Side::A).run(&format!("ping -q -c 1 -W 1 {outer_b}")).is_ok();

        let mut buffer = [0; 2048];
        let crossed = receiver.recv(&mut buffer).is_ok();
        let sent_by_b = |frame: &Frame| frame.octets.get(6..12) == Some(&to[..]);
        let frames: Vec<Frame> = capture.stop().unwrap().into_iter().filter(sent_by_b).collect();
        assert!(!frames.is_empty(), "{name}: gateway B sent nothing at all");
        let inside = [InsideNetwork::V4(addresses.inside_a), InsideNetwork::V4(addresses.inside_b)];
        let tells = |frame: &&Frame| {
            let ip = frame.octets.get(14..).unwrap_or_default();
            let error = ip.get(20..22).unwrap_or_default();
            ip.get(9) == Some(&1) && (error == [3, 2] || error == [3, 3])
        };
        let unreachable = frames.iter().filter(tells).count();
        Round { leaks: leaks(&frames, &inside, marker), crossed, unreachable, alive }
    };
    (testbed, run)
}

#[test]
fn with_the_guard_nothing_crosses_and_no_inside_address_shows_until_the_operator_opens() {
    let (mut testbed, run) = round();
    let without = run(&mut testbed, "without");
    assert!(without.crossed, "the test's own packets do not reach host B, so it shows nothing");
    for place in ["Arp", "Quote", "Header"] {
        let seen = without.leaks.iter().any(|leak| format!("{:?}", leak.place).contains(place));
        assert!(seen, "no leak at {place} without the guard, so the test shows nothing: {:?}", without.leaks);
    }

    assert!(without.unreachable >= 3, "the kernel does not tell, so the test shows nothing");

    let closed = spindle(&testbed, "close");
    assert!(closed.status.success(), "{}", String::from_utf8_lossy(&closed.stderr));
    let with = run(&mut testbed, "with");
    assert!(!with.crossed, "a packet in clear reached host B");
    assert_eq!(with.leaks, [], "inside addresses on the wire");
    assert_eq!(with.unreachable, 0, "the kernel says that nobody is here");
    assert!(with.alive, "the gateway no longer answers at its own address");

    // Setting it again replaces it; opening it takes it away, sysctls included.
    assert!(spindle(&testbed, "close").status.success());
    assert!(spindle(&testbed, "open").status.success());
    let opened = run(&mut testbed, "opened");
    assert!(opened.crossed && !opened.leaks.is_empty(), "open did not open");
    let ignore =
        testbed.topology().gateway(Side::B).run("cat /proc/sys/net/ipv4/conf/b-out/arp_ignore").unwrap();
    assert_eq!(ignore.trim(), "0");
}

/// Where a selector is too wide to be forbidden, the gateway must not be a mirror either: what it would answer to a forged
/// source inside, with the payload that came in clear, must not arrive there.
#[test]
fn nothing_from_outside_is_mirrored_to_a_host_inside_however_wide_the_selectors() {
    let testbed = Testbed::two_gateways(Options::default()).unwrap();
    let config = testbed.gateway(Side::B).config();
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("local_ts = [\"10.2.0.0/24\"]", "local_ts = [\"0.0.0.0/0\"]"))
        .unwrap();
    let (host_b, outer_b) =
        (testbed.topology().addresses.host(Side::B), testbed.topology().addresses.gateway_outside(Side::B));
    let marker = Marker::random();
    let mirrored = |name: &str| {
        let path = testbed.directory().join(format!("{name}.pcap"));
        let host = testbed.topology().host(Side::B);
        let capture = spindle_testbed::Capture::start(host, &Side::B.host_interface(), &path).unwrap();
        let echo = craft::ipv4(host_b, outer_b, 1, &craft::icmp(8, 0, 1, &marker.0));
        for _ in 0..5 {
            let frame = craft::ethernet(mac(&testbed, "b-out"), [2, 0, 0, 0, 0, 9], 0x0800, &echo);
            testbed.inject(Side::B, &frame).unwrap();
        }
        std::thread::sleep(Duration::from_millis(300));
        let frames = capture.stop().unwrap();
        frames.iter().filter(|f| f.octets.windows(16).any(|window| window == marker.0)).count()
    };
    assert!(mirrored("open") > 0, "the kernel does not answer, so the test shows nothing");
    assert!(spindle(&testbed, "close").status.success());
    assert_eq!(mirrored("closed"), 0);
}

#[test]
fn ipv6_is_not_forwarded_and_neighbour_discovery_still_works() {
    let testbed = Testbed::two_gateways(Options::default()).unwrap();
    let (gateway, other) = (testbed.topology().gateway(Side::B), testbed.topology().gateway(Side::A));
    let host = testbed.topology().host(Side::B);
    gateway.sysctl("ipv6/conf/all/forwarding", "1").unwrap();
    gateway.ip("addr add 2001:db8:2::1/64 dev b-in nodad").unwrap();
    gateway.ip("addr add 2001:db8:f::2/64 dev b-out nodad").unwrap();
    other.ip("addr add 2001:db8:f::1/64 dev a-out nodad").unwrap();
    other.ip("route add 2001:db8:2::/64 via 2001:db8:f::2").unwrap();
    host.ip(&format!("addr add 2001:db8:2::2/64 dev {} nodad", Side::B.host_interface())).unwrap();
    host.ip("route add default via 2001:db8:2::1").unwrap();
    let ping = |to: &str| other.run(&format!("ping -q -c 1 -W 2 {to}")).is_ok();
    // Link-local addresses are tentative for a second or two.
    assert!(
        (0..5).any(|_| ping("2001:db8:2::2")),
        "the topology forwards no IPv6, so the test shows nothing"
    );

    assert!(spindle(&testbed, "close").status.success());
    assert!(!ping("2001:db8:2::2"), "IPv6 was forwarded");
    assert!(!ping("2001:db8:2::1"), "the gateway answered outside for its inside address");
    other.ip("neigh flush all").unwrap();
    gateway.ip("neigh flush all").unwrap();
    assert!(ping("2001:db8:f::2"), "the gateway no longer answers at its own address");
}
