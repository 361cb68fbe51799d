//! PROTECT, BYPASS and DISCARD between real gateways: what must pass passes, what must not is counted under its reason, and
//! nothing shows outside in clear but what a policy lets by.

mod gateways;

use gateways::*;
use spindle_testbed::{
    Addresses, IPV6_PREFIX, InsideNetwork, Options, Place, Side, Testbed, Version, Versions, craft, ipv6,
    leaks,
};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

/// A host outside, in the delay box: gateway A's hosts may ask it for echoes, in clear.
const THIRD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);

/// Web servers of host B are for host A; no packets to UDP port 9; echoes to and from the third host pass in clear.
fn with_policies() -> Testbed {
    let mut options = Options::default();
    options.a.more_recovery = format!(
        "[policies.blocked]\nmode = \"drop\"\nlocal_ts = [\"10.1.0.2\"]\nremote_ts = [\"10.2.0.0/24[udp/9]\"]\n\
         [policies.echoes]\nmode = \"pass\"\nlocal_ts = [\"10.1.0.2[icmp]\"]\nremote_ts = [\"{THIRD}[icmp]\"]\n"
    );
    let mut testbed = Testbed::two_gateways(options).expect("a testbed");
    for side in [Side::A, Side::B] {
        let file = testbed.gateway(side).config();
        let text = std::fs::read_to_string(&file).expect("a configuration");
        let (clients, servers) = ("[\"10.1.0.0/24[tcp]\"]", "[\"10.2.0.0/24[tcp/443]\"]");
        let text = text.replace("[\"10.1.0.0/24\"]\nremote_ts", &format!("{clients}\nremote_ts"));
        let text = text.replace("remote_ts = [\"10.1.0.0/24\"]", &format!("remote_ts = {clients}"));
        let text = match side {
            Side::A => text.replace("remote_ts = [\"10.2.0.0/24\"]", &format!("remote_ts = {servers}")),
            Side::B => text.replace("local_ts = [\"10.2.0.0/24\"]", &format!("local_ts = {servers}")),
        };
        std::fs::write(&file, text).expect("a configuration");
    }
    let third = testbed.topology().delay_box();
    third.ip(&format!("addr add {THIRD}/24 dev {}", Side::A.box_interface())).expect("an address");
    third.ip("route add 10.1.0.0/24 via 192.0.2.1").expect("a route");
    testbed.start(READY).expect("both gateways ready");
    testbed.gateway(Side::A).initiate().expect("an IKE SA");
    testbed
}

fn counter(testbed: &Testbed, side: Side, name: &str) -> u64 {
    let stats = testbed.gateway(side).stats().expect("stats");
    stats["dataplane"][name].as_u64().unwrap_or_else(|| panic!("{name} among {stats:#}"))
}

fn listen(testbed: &Testbed, port: u16) -> TcpListener {
    let address = testbed.host(Side::B).address;
    let bind = || TcpListener::bind((address, port));
    testbed.topology().host(Side::B).enter(bind).expect("a namespace").expect("a listener")
}

/// From host A.
fn connect(testbed: &Testbed, port: u16) -> io::Result<TcpStream> {
    let to = SocketAddr::from((testbed.host(Side::B).address, port));
    let connect = || TcpStream::connect_timeout(&to, Duration::from_secs(2));
    testbed.topology().host(Side::A).enter(connect).expect("a namespace")
}

fn send(from: &spindle_testbed::Namespace, to: (Ipv4Addr, u16), payload: &[u8]) {
    let send = || UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.send_to(payload, to));
    from.enter(send).expect("a namespace").expect("the kernel sends it");
}

/// RFC 4301 section 5.1 and 5.2.
#[test]
fn each_packet_goes_the_way_of_its_policy() {
    let mut testbed = with_policies();
    let marker = testbed.marker();
    let host_b = testbed.topology().addresses.host(Side::B);
    let namespace = |side| testbed.topology().host(side);

    // PROTECT: TCP to port 443, and its answers.
    let (web, other) = (listen(&testbed, 443), listen(&testbed, 80));
    let mut client = connect(&testbed, 443).expect("port 443 is open");
    let (mut server, _) = web.accept().expect("a connection");
    client.write_all(&marker.0).expect("sent");
    let mut octets = [0; 16];
    server.read_exact(&mut octets).expect("received");
    server.write_all(&octets).expect("sent");
    client.read_exact(&mut octets).expect("received");
    assert_eq!(octets, marker.0);
    // No policy: another port, another protocol.
    connect(&testbed, 80).expect_err("port 80 is not for host A");
    other.set_nonblocking(true).expect("a socket");
    assert_eq!(other.accept().expect_err("nothing came").kind(), io::ErrorKind::WouldBlock);
    let unknown = counter(&testbed, Side::A, "no_policy");
    assert!(unknown >= 1, "the SYN to port 80");
    for _ in 0..5 {
        send(namespace(Side::A), (host_b, 443), &marker.0);
    }
    within(&testbed, "UDP is counted", || counter(&testbed, Side::A, "no_policy") >= unknown + 5);
    // DISCARD.
    for _ in 0..7 {
        send(namespace(Side::A), (host_b, 9), &marker.0);
    }
    within(&testbed, "DISCARD is counted", || counter(&testbed, Side::A, "policy_discard") == 7);
    assert_eq!(counter(&testbed, Side::A, "no_sa"), 0);

    // BYPASS, in both directions: each side asks, and is answered.
    let echoes = namespace(Side::A).run(&format!("ping -c 3 -i 0.2 -W 2 {THIRD}")).expect("echoes");
    assert!(echoes.contains(" 3 received"), "{echoes}");
    let third = testbed.topology().delay_box();
    let echoes = third.run("ping -c 3 -i 0.2 -W 2 10.1.0.2").expect("echoes");
    assert!(echoes.contains(" 3 received"), "{echoes}");
    assert_eq!(counter(&testbed, Side::A, "bypassed"), 12, "three each way, and their answers");

    // In clear from outside: between the ends of BYPASS another protocol, which it does not name; and what policy
    // protects, which XDP drops.
    assert_eq!(counter(&testbed, Side::A, "cleartext_from_outside"), 0);
    for _ in 0..4 {
        send(third, (Ipv4Addr::new(10, 1, 0, 2), 7), &[]);
    }
    within(&testbed, "cleartext is counted", || counter(&testbed, Side::A, "cleartext_from_outside") == 4);
    let not_ours = counter(&testbed, Side::B, "xdp_outside_dropped_not_ours");
    let segment = [&[0x9c, 0x40, 0x01, 0xbb][..], &[0; 8], &[0x50, 0x02], &[0; 6]].concat();
    let forged = craft::ipv4(Ipv4Addr::new(10, 1, 0, 2), host_b, 6, &segment);
    let frame = craft::ethernet(hardware_address(&testbed, Side::B), [4; 6], 0x0800, &forged);
    for _ in 0..6 {
        testbed.inject(Side::B, &frame).expect("inject");
    }
    let dropped = || counter(&testbed, Side::B, "xdp_outside_dropped_not_ours");
    within(&testbed, "the forged segments are counted", || dropped() >= not_ours + 6);
    assert_eq!(counter(&testbed, Side::B, "bypassed"), 0);

    every_packet_is_counted(&testbed);
    let wires = testbed.finish().expect("captures");
    // On A's wire the third host's packets alone show an inside address, and nothing shows payload.
    let leaks = spindle_testbed::leaks(
        &wires.a,
        &[testbed.topology().addresses.inside_a, testbed.topology().addresses.inside_b]
            .map(spindle_testbed::InsideNetwork::V4),
        marker,
    );
    let ends = |octets: &[u8]| [26, 30].map(|at| <[u8; 4]>::try_from(&octets[at..at + 4]).expect("4 octets"));
    for leak in &leaks {
        assert_ne!(leak.place, Place::Marker, "{leak}");
        let ends = ends(&wires.a[leak.frame - 1].octets);
        assert!(ends.contains(&THIRD.octets()) && ends.contains(&[10, 1, 0, 2]), "{leak} between {ends:?}");
    }
    assert!(leaks.len() >= 16, "the echoes were seen: {}", leaks.len());
}

/// The same for IPv6: a policy lets echoes by, both ways, and nothing else comes in from outside or shows there.
#[test]
fn echoes_of_ipv6_pass_in_clear_where_a_policy_says_so() {
    let versions = Versions { outside: Version::V6, inside: Version::V6 };
    let addresses = Addresses { versions, ..Addresses::default() };
    let (host, third) = (ipv6(addresses.host(Side::A)), ipv6(THIRD));
    let mut options = Options { addresses, ..Options::default() };
    options.a.more_recovery = format!(
        "[policies.echoes]\nmode = \"pass\"\nlocal_ts = [\"{host}[icmpv6]\"]\nremote_ts = [\"{third}[icmpv6]\"]\n"
    );
    let mut testbed = connected(options, Side::A);
    let marker = testbed.marker();
    let outside = testbed.topology().delay_box();
    let interface = Side::A.box_interface();
    outside.run(&format!("sysctl -qw net.ipv6.conf.{interface}.disable_ipv6=0")).expect("IPv6");
    outside.ip(&format!("addr add {third}/120 dev {interface} nodad")).expect("an address");
    let gateway = ipv6(addresses.gateway_outside(Side::A));
    outside.ip(&format!("route add {} via {gateway}", addresses.protected(Side::A))).expect("a route");
    let ping = |from: &spindle_testbed::Namespace, to: Ipv6Addr| {
        from.run(&format!("ping -6 -c 3 -i 0.2 -W 2 {to}")).unwrap_or_else(|error| error.to_string())
    };
    let echoes = ping(testbed.topology().host(Side::A), third);
    assert!(echoes.contains(" 3 received"), "{echoes}\n{}", testbed.gateway(Side::A).log());
    let echoes = ping(outside, host);
    assert!(echoes.contains(" 3 received"), "{echoes}");
    assert_eq!(counter(&testbed, Side::A, "bypassed"), 12, "three each way, and their answers");
    // Between the same ends another protocol; and to who no policy names.
    assert_eq!(counter(&testbed, Side::A, "cleartext_from_outside"), 0);
    let send = |to: Ipv6Addr| {
        let send = || UdpSocket::bind("[::]:0").and_then(|socket| socket.send_to(&[], (to, 7)));
        outside.enter(send).expect("a namespace").expect("the kernel sends it");
    };
    for _ in 0..4 {
        send(host);
    }
    within(&testbed, "cleartext is counted", || counter(&testbed, Side::A, "cleartext_from_outside") == 4);
    let not_ours = || counter(&testbed, Side::A, "xdp_outside_dropped_not_ours");
    let before = not_ours();
    for _ in 0..5 {
        send(ipv6(addresses.inside_a.host(9)));
    }
    within(&testbed, "what no policy names is dropped", || not_ours() == before + 5);
    assert_eq!(counter(&testbed, Side::B, "bypassed"), 0);
    every_packet_is_counted(&testbed);
    let wires = testbed.finish().expect("captures");
    let inside = [addresses.inside_a, addresses.inside_b]
        .map(|network| InsideNetwork::V6(ipv6(network.address), IPV6_PREFIX + network.prefix));
    let found = leaks(&wires.a, &inside, marker);
    let ends = |octets: &[u8]| [22, 38].map(|at| octets[at..at + 16].to_vec());
    for leak in &found {
        assert_ne!(leak.place, Place::Marker, "{leak}");
        let octets = &wires.a[leak.frame - 1].octets;
        let ends = ends(octets);
        let of_third = ends.contains(&third.octets().to_vec());
        // What came from outside to who no policy names was let in by nobody, and answered by nobody.
        assert!(of_third, "{leak} between {ends:02x?}");
    }
    assert!(found.len() >= 12, "the echoes were seen: {}", found.len());
}
