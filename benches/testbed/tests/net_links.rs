//! Links and neighbours change under traffic: it flows again within a second, and no process is started anew.

mod gateways;

use gateways::*;
use spindle_testbed::{Options, Side, Stream, Testbed, Verdict, craft, now};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(1);

/// A tunnel from A to B, and packets that flow by it.
fn flowing() -> (Testbed, Stream) {
    let testbed = connected(Options::default(), Side::A);
    let stream = testbed.stream(Side::A, Duration::from_millis(5)).expect("a stream");
    assert!(stream.wait_delivery_since(0, Duration::from_secs(5)).is_some(), "nothing arrives");
    (testbed, stream)
}

fn b(testbed: &Testbed, command: &str) {
    testbed.topology().gateway(Side::B).ip(command).unwrap_or_else(|error| panic!("{error}"));
}

/// Delivered within a second from now.
fn flows_again(testbed: &Testbed, stream: &Stream, what: &str) {
    let since = now();
    let logs = || [Side::A, Side::B].map(|side| testbed.gateway(side).log()).join("\n");
    assert!(stream.wait_delivery_since(since, SOON).is_some(), "not after {what}\n{}", logs());
}

/// The processes are those of before.
fn pids(testbed: &Testbed) -> [String; 2] {
    [Side::A, Side::B].map(|side| testbed.gateway(side).json("status").expect("status")["pids"].to_string())
}

#[test]
fn links_that_go_down_and_up_carry_packets_again() {
    let (mut testbed, stream) = flowing();
    let before = pids(&testbed);
    for link in ["b-out", "b-in"] {
        b(&testbed, &format!("link set {link} down"));
        std::thread::sleep(Duration::from_millis(100));
        let silent = now();
        std::thread::sleep(Duration::from_millis(100));
        assert!(stream.first_delivery_since(silent).is_none(), "{link} is down");
        b(&testbed, &format!("link set {link} up"));
        flows_again(&testbed, &stream, link);
    }
    assert_eq!(pids(&testbed), before);
    every_packet_is_counted(&testbed);
    nothing_leaked(&mut testbed);
}

/// Less, then as much as before: larger packets are refused and then pass again.
#[test]
fn a_changed_mtu_is_the_measure_at_once() {
    let (mut testbed, stream) = flowing();
    let before = pids(&testbed);
    let too_big =
        |testbed: &Testbed| testbed.gateway(Side::B).stats().expect("stats")["dataplane"]["too_big"].as_u64();
    let sweep = |testbed: &Testbed| testbed.udp_sweep(Side::B, 1372..=1372).expect("sockets");
    assert!(sweep(&testbed).is_empty());
    assert_eq!(too_big(&testbed), Some(0));
    b(&testbed, "link set b-out mtu 1300");
    flows_again(&testbed, &stream, "a smaller MTU");
    sweep(&testbed);
    within(&testbed, "a packet is refused", || too_big(&testbed) > Some(0));
    // By now the host knows, and fragments.
    assert!(sweep(&testbed).is_empty());
    b(&testbed, "link set b-out mtu 1500");
    flows_again(&testbed, &stream, "the MTU of before");
    testbed.topology().host(Side::B).ip("route flush cache").expect("the host forgets what it was told");
    let refused = too_big(&testbed);
    assert!(sweep(&testbed).is_empty());
    assert_eq!(too_big(&testbed), refused);
    assert_eq!(pids(&testbed), before);
    every_packet_is_counted(&testbed);
    nothing_leaked(&mut testbed);
}

/// A neighbour with another hardware address announces it (RFC 5227 section 3); and it is our own that changes.
#[test]
fn a_new_hardware_address_of_a_neighbour_is_followed() {
    let (mut testbed, stream) = flowing();
    let before = pids(&testbed);
    let old = hardware_address(&testbed, Side::B);
    // Nobody has the old address any more.
    testbed.delay().set_filter(Some(Box::new(move |_, frame| match frame.get(..6) == Some(&old[..]) {
        true => Verdict::Drop,
        false => Verdict::Pass,
    })));
    // The kernel heeds no announcement within a second of the last one (locktime).
    std::thread::sleep(SOON);
    b(&testbed, "link set b-out address 02:00:00:00:be:ef");
    let new = hardware_address(&testbed, Side::B);
    assert_ne!(new, old);
    let address = testbed.topology().addresses.gateway_outside(Side::B);
    let announcement =
        craft::ethernet([0xff; 6], new, 0x0806, &craft::arp(1, (new, address), ([0; 6], address)));
    testbed.inject(Side::A, &announcement).expect("the kernel sends it");
    flows_again(&testbed, &stream, "a new hardware address");
    assert_eq!(pids(&testbed), before);
    every_packet_is_counted(&testbed);
    nothing_leaked(&mut testbed);
}

/// Other neighbours are managed, so that the kernel asks for them; one that was set by hand nobody may answer for.
#[test]
fn a_neighbour_that_the_operator_has_set_stays() {
    let (mut testbed, stream) = flowing();
    let topology = testbed.topology();
    let (host, interface) = (topology.addresses.host(Side::B), Side::B.inside_interface());
    let file = format!("cat /sys/class/net/{}/address", Side::B.host_interface());
    let mac = topology.host(Side::B).run(&file).expect("an address");
    b(&testbed, &format!("neigh replace {host} lladdr {} dev {interface} nud permanent", mac.trim()));
    // All next hops are looked up again.
    b(&testbed, "route add 203.0.113.0/24 dev b-in");
    flows_again(&testbed, &stream, "a neighbour was set");
    let shown = testbed.topology().gateway(Side::B).ip(&format!("neigh show {host} dev {interface}"));
    assert!(shown.as_ref().is_ok_and(|text| text.contains("PERMANENT")), "{shown:?}");
    every_packet_is_counted(&testbed);
    nothing_leaked(&mut testbed);
}

#[test]
fn a_changed_route_is_followed() {
    let (mut testbed, stream) = flowing();
    let before = pids(&testbed);
    let addresses = testbed.topology().addresses;
    // A's way to B, and B's to its host.
    let routes = [(Side::A, addresses.gateway_outside(Side::B)), (Side::B, addresses.host(Side::B))];
    for (side, to) in routes {
        let ip = |command: &str| {
            let line = format!("route {command} blackhole {to}/32");
            testbed.topology().gateway(side).ip(&line).unwrap_or_else(|error| panic!("{error}"));
        };
        ip("add");
        std::thread::sleep(Duration::from_millis(100));
        let silent = now();
        std::thread::sleep(Duration::from_millis(100));
        assert!(stream.first_delivery_since(silent).is_none(), "{to} has no route");
        ip("del");
        flows_again(&testbed, &stream, "a changed route");
    }
    assert_eq!(pids(&testbed), before);
    every_packet_is_counted(&testbed);
    nothing_leaked(&mut testbed);
}
