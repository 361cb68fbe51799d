//! TCP through every transform: suites, Extended Sequence Numbers, replay windows and ESP in UDP, so that every pair of
//! their values meets; with `SPINDLE_LONG` all combinations, and more octets.

mod gateways;

use gateways::*;
use serde_json::Value;
use spindle_testbed::{Host, Namespace, Options, Settings, Side, Testbed, tcp_transfer};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::Ipv4Addr;
use std::time::Duration;

const SUITES: [&str; 4] = ["aes128gcm16", "aes192gcm16", "aes256gcm16", "chacha20poly1305"];
const WINDOWS: [u32; 3] = [32, 1024, 65536];

/// A Child SA of its own, between networks of its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Transform {
    suite: &'static str,
    esn: bool,
    window: u32,
    encapsulated: bool,
}

/// All combinations, or a set in which each value meets each of every other kind.
fn transforms(all: bool) -> Vec<Transform> {
    let mut transforms = Vec::new();
    for (s, suite) in SUITES.into_iter().enumerate() {
        for (w, window) in WINDOWS.into_iter().enumerate() {
            for (esn, encapsulated) in [(false, false), (false, true), (true, false), (true, true)] {
                let chosen = (s + w) % 2 == usize::from(esn) && (s / 2 + w) % 2 == usize::from(encapsulated);
                if all || chosen {
                    transforms.push(Transform { suite, esn, window, encapsulated });
                }
            }
        }
    }
    transforms
}

impl Transform {
    fn proposal(&self) -> String {
        format!("{}{}", self.suite, if self.esn { "-esn" } else { "" })
    }
}

fn network(side: Side, number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 100 + side as u8, number as u8, 0)
}

fn host_address(side: Side, number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 100 + side as u8, number as u8, 1)
}

fn settings(side: Side, encapsulated: bool, transforms: &[Transform]) -> Settings {
    let mut more_child = String::new();
    for (number, transform) in transforms.iter().enumerate() {
        let (local, remote) = (network(side, number), network(side.other(), number));
        let start_action = if side == Side::A { "start" } else { "none" };
        let Transform { window, .. } = transform;
        let proposal = transform.proposal();
        write!(
            more_child,
            r#"
[connections.ab.children.c{number}]
local_ts = ["{local}/24"]
remote_ts = ["{remote}/24"]
esp_proposals = ["{proposal}"]
replay_window = {window}
start_action = "{start_action}"
"#
        )
        .expect("a string");
    }
    Settings { more_child, more_connection: format!("encap = {encapsulated}"), ..quiet() }
}

/// Each transform's networks behind the hosts; what a host sends there comes from its address in the one on its side.
fn give_addresses(testbed: &Testbed, transforms: usize) {
    let topology = testbed.topology();
    let ip = |namespace: &Namespace, line: String| drop(namespace.ip(&line).expect("ip"));
    for side in [Side::A, Side::B] {
        let host = topology.addresses.host(side);
        let gateway = topology.addresses.gateway_inside(side);
        for number in 0..transforms {
            let (own, other) = (host_address(side, number), network(side.other(), number));
            ip(topology.host(side), format!("addr add {own}/32 dev {}", side.host_interface()));
            ip(topology.host(side), format!("route add {other}/24 via {gateway} src {own}"));
            ip(topology.gateway(side), format!("route add {}/24 via {host}", network(side, number)));
        }
    }
}

/// RFC 4106, RFC 7634, RFC 4303 section 2.2.1 and 3.4.3, RFC 3948.
#[test]
fn tcp_passes_every_transform_each_way() {
    let long = std::env::var_os("SPINDLE_LONG").is_some();
    let octets = if long { 100_000_000 } else { 1_000_000 };
    let mut passed = 0;
    for encapsulated in [false, true] {
        let transforms: Vec<Transform> =
            transforms(long).into_iter().filter(|transform| transform.encapsulated == encapsulated).collect();
        let [a, b] = [Side::A, Side::B].map(|side| settings(side, encapsulated, &transforms));
        let mut testbed = Testbed::two_gateways(Options { a, b, ..Options::default() }).expect("a testbed");
        give_addresses(&testbed, transforms.len());
        testbed.start(READY).expect("both gateways ready");
        within(&testbed, "a Child SA for each transform", || {
            sas(&testbed, Side::A).1 >= transforms.len() && sas(&testbed, Side::B).1 >= transforms.len()
        });
        for (number, transform) in transforms.iter().enumerate() {
            for from in [Side::A, Side::B] {
                let host = |side| Host {
                    namespace: testbed.topology().host(side),
                    address: host_address(side, number).into(),
                };
                let patience = Duration::from_secs(60);
                let transfer =
                    tcp_transfer(host(from), host(from.other()), testbed.marker(), octets, patience);
                let transfer = transfer.unwrap_or_else(|error| panic!("{transform:?}: {error}"));
                assert_eq!(transfer.octets, octets, "{transform:?}");
                assert!(transfer.is_intact(), "{transform:?}");
                passed += 1;
            }
        }
        for side in [Side::A, Side::B] {
            used(&testbed, side, &transforms, octets as u64);
        }
        every_packet_is_counted(&testbed);
        nothing_leaked(&mut testbed);
    }
    assert_eq!(passed, if long { 2 * 48 } else { 2 * 12 });
}

/// `spindle list-sas` shows each child with its transform, and soon that it carried the octets in both directions: the
/// dataplane tells what SAs carried each millisecond.
fn used(testbed: &Testbed, side: Side, transforms: &[Transform], octets: u64) {
    let children = || -> Vec<Value> {
        let list = testbed.gateway(side).json("list-sas").expect("list-sas");
        let ikes = list.as_array().expect("IKE SAs").iter();
        ikes.flat_map(|ike| ike["children"].as_array().expect("Child SAs").clone()).collect()
    };
    let carried = |child: &Value| {
        ["bytes_i", "bytes_o"]
            .iter()
            .all(|bytes| child[bytes].as_u64().is_some_and(|carried| carried > octets))
    };
    within(testbed, "all octets in each child's counts", || children().iter().all(carried));
    let children = children();
    for (number, transform) in transforms.iter().enumerate() {
        let name = format!("c{number}");
        let child = children.iter().find(|child| child["name"] == name).expect("its Child SA");
        assert_eq!(child["proposal"], transform.proposal(), "{child}");
        assert_eq!(child["encapsulated"], transform.encapsulated, "{child}");
    }
}

#[test]
fn the_set_covers_every_pair_of_values() {
    let pairs = |transforms: &[Transform]| {
        let mut pairs = BTreeSet::new();
        for t in transforms {
            let values = [
                t.suite.to_owned(),
                format!("esn {}", t.esn),
                format!("window {}", t.window),
                format!("udp {}", t.encapsulated),
            ];
            for (i, one) in values.iter().enumerate() {
                pairs.extend(values[i + 1..].iter().map(|other| (one.clone(), other.clone())));
            }
        }
        pairs
    };
    let (set, all) = (transforms(false), transforms(true));
    assert_eq!((set.len(), all.len()), (12, 48));
    assert_eq!(pairs(&set), pairs(&all));
}
