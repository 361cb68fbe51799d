//! The machine itself on the protected side: TUN devices, chosen by addresses or by routes.

mod gateways;

use gateways::*;
use spindle_testbed::{
    Addresses, Gateway, Host, Layout, Marker, Options, Settings, Side, Testbed, Version, Versions, ping,
    tcp_transfer,
};
use std::collections::BTreeSet;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);

/// Two gateways whose configurations are changed before they start.
fn configured(change: impl Fn(Side, String) -> String) -> Testbed {
    configured_as(Options::default(), change)
}

fn configured_as(options: Options, change: impl Fn(Side, String) -> String) -> Testbed {
    let mut testbed = Testbed::two_gateways(options).expect("a testbed");
    for side in [Side::A, Side::B] {
        let file = testbed.gateway(side).config();
        let text = std::fs::read_to_string(&file).expect("a configuration");
        std::fs::write(&file, change(side, text)).expect("a configuration");
    }
    testbed.start(READY).expect("both gateways ready");
    testbed
}

/// `inside = "tun"` on this side.
fn as_host(side: Side, text: String) -> String {
    let inside = format!("inside = [\"{}\"]", side.inside_interface());
    assert!(text.contains(&inside), "{text}");
    text.replace(&inside, "inside = \"tun\"")
}

/// The gateway's own inside address.
fn own(testbed: &Testbed, side: Side) -> Host<'_> {
    let topology = testbed.topology();
    Host { namespace: topology.gateway(side), address: topology.addresses.gateway_inside(side).into() }
}

fn pings(testbed: &Testbed, from: Host<'_>, to: Host<'_>, what: &str) {
    let answers = ping(from, to.address, 4, 56).unwrap_or_default();
    let log = |side| testbed.gateway(side).log();
    assert!(answers.len() >= 3, "{what}: {answers:?}\nA:\n{}\nB:\n{}", log(Side::A), log(Side::B));
}

fn devices(testbed: &Testbed, side: Side) -> String {
    testbed.topology().gateway(side).ip("-o link show type tun").expect("ip link")
}

/// Own traffic of both gateways and of the hosts behind them, over routes that lead outside but for ours; then all of B
/// is killed, and comes back by a token.
#[test]
fn the_machine_s_own_traffic_goes_through_the_tunnel_and_comes_back_after_a_crash() {
    let mut testbed = configured(as_host);
    testbed.gateway(Side::A).initiate().expect("an IKE SA");
    let (a, b) = (own(&testbed, Side::A), own(&testbed, Side::B));
    within(&testbed, "routes", || devices(&testbed, Side::A).contains("spindle0"));
    pings(&testbed, a, b, "gateway to gateway");
    pings(&testbed, b, a, "and back");
    pings(&testbed, a, testbed.host(Side::B), "gateway to the host behind the other");
    pings(&testbed, testbed.host(Side::A), testbed.host(Side::B), "host to host");
    let marker: Marker = testbed.marker();
    for (from, to) in [(a, b), (b, a), (testbed.host(Side::B), a)] {
        let transfer = tcp_transfer(from, to, marker, 1_000_000, PATIENCE).expect("TCP");
        assert!(transfer.is_intact());
    }
    let missing = testbed.udp_sweep(Side::A, 1300..=1372).expect("a sweep");
    assert!(missing.is_empty(), "{missing:?}");
    every_packet_is_counted(&testbed);
    // The journal's group commit.
    std::thread::sleep(Duration::from_millis(300));

    testbed.gateway_mut(Side::B).kill_group().expect("killed");
    assert!(devices(&testbed, Side::B).contains("spindle0"), "it outlives the processes");
    let answers = ping(own(&testbed, Side::B), own(&testbed, Side::A).address, 2, 56).unwrap_or_default();
    assert!(answers.is_empty(), "no one carries it: {answers:?}");
    let restarted = testbed.gateway_mut(Side::B).start().expect("started");
    testbed.gateway_mut(Side::B).wait_ready(READY).expect("ready");
    let (a, b) = (own(&testbed, Side::A), own(&testbed, Side::B));
    within(&testbed, "the tunnel again", || !ping(a, b.address, 1, 56).unwrap_or_default().is_empty());
    let events = testbed.gateway(Side::A).events().expect("events");
    assert!(Gateway::event_since(&events, "proof", restarted).is_some(), "{events:?}");
    every_packet_is_counted(&testbed);

    testbed.gateway_mut(Side::A).stop().expect("stopped");
    assert_eq!(devices(&testbed, Side::A), "", "taken away at the end");
    assert!(!testbed.topology().gateway(Side::A).ip("rule").expect("rules").contains("210:"));
    let a = own(&testbed, Side::A);
    let sent = ping(a, own(&testbed, Side::B).address, 2, 56).unwrap_or_default();
    assert!(sent.is_empty(), "the guard stays: {sent:?}");
    nothing_leaked(&mut testbed);
}

/// Packets of the machine itself come to one worker, and go to the one whose SA they need; rekeys give each its turn.
#[test]
fn the_machine_s_own_traffic_is_handed_to_the_worker_of_its_sa() {
    let settings = || Settings { more_gateway: "workers = 2".into(), ..Settings::default() };
    let options = Options { layout: Layout::Queues(2), a: settings(), b: settings(), ..Options::default() };
    let mut testbed = configured_as(options, as_host);
    testbed.gateway(Side::A).initiate().expect("an IKE SA");
    let (a, b) = (own(&testbed, Side::A), own(&testbed, Side::B));
    within(&testbed, "routes", || devices(&testbed, Side::A).contains("spindle0"));
    let worker = |side| {
        let list = testbed.gateway(side).json("list-sas").expect("list-sas");
        list[0]["children"][0]["worker"].as_u64().expect("a worker")
    };
    let mut owners = [BTreeSet::new(), BTreeSet::new()];
    for _ in 0..20 {
        for (from, to) in [(a, b), (b, a)] {
            let transfer = tcp_transfer(from, to, testbed.marker(), 300_000, PATIENCE).expect("TCP");
            assert!(transfer.is_intact());
        }
        for (side, owners) in [Side::A, Side::B].into_iter().zip(&mut owners) {
            owners.insert(worker(side));
        }
        if owners.iter().all(|owners| owners.len() == 2) {
            break;
        }
        testbed.gateway(Side::A).spindle("rekey ab/net").expect("a rekey");
    }
    assert_eq!(owners, [(); 2].map(|()| BTreeSet::from([0, 1])), "twenty SAs and never another worker's");
    every_packet_is_counted(&testbed);
    for side in [Side::A, Side::B] {
        let stats = testbed.gateway(side).stats().expect("stats");
        let count = |name: &str| stats["dataplane"][name].as_u64().expect("a counter");
        assert!(count("handed_over") > 0, "{side:?}");
        assert_eq!((count("handed_over"), count("handover_full")), (count("taken_over"), 0), "{side:?}");
    }
    nothing_leaked(&mut testbed);
}

/// One side has hosts behind an interface, the other is a host.
#[test]
fn a_host_reaches_the_network_behind_a_gateway() {
    let mut testbed = configured(|side, text| if side == Side::A { as_host(side, text) } else { text });
    // The first packet brings up the tunnel.
    let to = testbed.host(Side::B).address;
    within(&testbed, "the tunnel", || {
        !ping(own(&testbed, Side::A), to, 1, 56).unwrap_or_default().is_empty()
    });
    pings(&testbed, testbed.host(Side::B), own(&testbed, Side::A), "from behind the gateway");
    let (a, host) = (own(&testbed, Side::A), testbed.host(Side::B));
    assert!(tcp_transfer(host, a, testbed.marker(), 1_000_000, PATIENCE).expect("TCP").is_intact());
    every_packet_is_counted(&testbed);
    nothing_leaked(&mut testbed);
}

/// The gateways' own traffic, of each version, in a tunnel over IPv6.
#[test]
fn the_machine_s_own_traffic_goes_through_a_tunnel_over_ipv6() {
    for inside in [Version::V4, Version::V6] {
        let versions = Versions { outside: Version::V6, inside };
        let addresses = Addresses { versions, ..Addresses::default() };
        let mut testbed = configured_as(Options { addresses, ..Options::default() }, as_host);
        testbed.gateway(Side::A).initiate().expect("an IKE SA");
        within(&testbed, "routes", || devices(&testbed, Side::A).contains("spindle0"));
        let own = |side: Side| Host {
            namespace: testbed.topology().gateway(side),
            address: inside.of(addresses.gateway_inside(side)),
        };
        let (a, b) = (own(Side::A), own(Side::B));
        pings(&testbed, a, b, "gateway to gateway");
        pings(&testbed, b, testbed.host(Side::A), "gateway to the host behind the other");
        let transfer = tcp_transfer(a, b, testbed.marker(), 1_000_000, PATIENCE).expect("TCP");
        assert!(transfer.is_intact(), "{inside:?}");
        let missing = testbed.udp_sweep(Side::A, 1340..=1350).expect("a sweep");
        assert!(missing.is_empty(), "{missing:?}");
        every_packet_is_counted(&testbed);
        nothing_leaked(&mut testbed);
    }
}

/// Two connections between the same gateways, both for everything.
fn by_routes(side: Side, text: String) -> String {
    let text = as_host(side, text);
    let (gateway, _) = text.split_once("[connections").expect("connections");
    let (here, there) = match side {
        Side::A => ("192.0.2.1", "192.0.2.2"),
        Side::B => ("192.0.2.2", "192.0.2.1"),
    };
    let (own, peer) = (side.letter(), side.other().letter());
    let networks =
        if side == Side::A { ["10.2.0.0/24", "10.22.0.1/32"] } else { ["10.1.0.0/24", "10.11.0.1/32"] };
    let mut all = gateway.to_owned();
    for (n, network) in (1..).zip(networks) {
        let host = 1 + side as u8;
        all += &format!(
            "[gateway.interfaces.ipsec{n}]\naddresses = [\"169.254.{n}.{host}/30\"]\nroutes = [\"{network}\"]\n\
             [connections.c{n}]\n\
             local = {{ address = \"{here}\", id = \"{own}{n}.example\", psk = \"a secret of the testbed alone\" }}\n\
             remote = {{ address = \"{there}\", id = \"{peer}{n}.example\" }}\n\
             [connections.c{n}.children.all]\ninterface = \"ipsec{n}\"\n\
             local_ts = [\"0.0.0.0/0\"]\nremote_ts = [\"0.0.0.0/0\"]\n"
        );
    }
    all
}

/// What a connection's Child SA has sent.
fn sent(testbed: &Testbed, connection: &str) -> u64 {
    let list = testbed.gateway(Side::A).json("list-sas").expect("list-sas");
    let ikes = list.as_array().expect("IKE SAs").iter();
    let of = ikes.filter(|ike| ike["connection"] == connection);
    of.map(|ike| ike["children"][0]["packets_o"].as_u64().expect("a count")).sum()
}

#[test]
fn routes_choose_among_tunnels_for_everything() {
    let mut testbed = configured(by_routes);
    for (side, address) in [(Side::A, "10.11.0.1/32"), (Side::B, "10.22.0.1/32")] {
        let gateway = testbed.topology().gateway(side);
        gateway.ip(&format!("address add {address} dev lo")).expect("an address");
        // The testbed's own way outside for what is behind the peer.
        let behind = testbed.topology().addresses.inside(side.other());
        let _ = gateway.ip(&format!(
            "route del {behind} via {}",
            testbed.topology().addresses.gateway_outside(side.other())
        ));
    }
    for connection in ["c1", "c2"] {
        testbed.gateway(Side::A).spindle(&format!("initiate {connection}/all")).expect("a Child SA");
    }
    let a = testbed.topology().gateway(Side::A);
    within(&testbed, "routes", || a.ip("route").is_ok_and(|all| all.contains("10.22.0.1 dev ipsec2")));
    let before = [sent(&testbed, "c1"), sent(&testbed, "c2")];
    pings(&testbed, testbed.host(Side::A), testbed.host(Side::B), "host to host by the first");
    within(&testbed, "packets of the first", || sent(&testbed, "c1") >= before[0] + 3);
    let other = Host { namespace: a, address: "10.11.0.1".parse().expect("an address") };
    let far = Host {
        namespace: testbed.topology().gateway(Side::B),
        address: "10.22.0.1".parse().expect("an address"),
    };
    let first = sent(&testbed, "c1");
    pings(&testbed, other, far, "by the second");
    within(&testbed, "packets of the second", || sent(&testbed, "c2") >= before[1] + 3);
    assert!(sent(&testbed, "c1") <= first + 1, "not by the first");

    // A routing protocol would do this.
    let second = sent(&testbed, "c2");
    a.ip("route replace 10.2.0.0/24 dev ipsec2").expect("another route");
    testbed.topology().gateway(Side::B).ip("route replace 10.1.0.0/24 dev ipsec2").expect("another route");
    pings(&testbed, testbed.host(Side::A), testbed.host(Side::B), "host to host by the second");
    within(&testbed, "packets of the second", || sent(&testbed, "c2") >= second + 3);
    every_packet_is_counted(&testbed);
    nothing_leaked(&mut testbed);
}
