//! Traffic selectors with protocols and ports, in both roles (RFC 7296 section 2.9, 3.13.1).

mod world;

use spindle_abi::{Selector, SelectorSet, Trigger};
use spindle_ike::api::*;
use spindle_ike::crypto::parse_esp;
use spindle_ike::wire::{Payload, exchange, notify};
use std::time::Duration;
use world::peer::{CHILD_SPI, Peer};
use world::{A, B, World, child, connection, packet_from, selectors};

const TCP: u8 = 6;
const UDP: u8 = 17;

/// The nets behind a side and behind the other one.
fn nets(side: usize) -> (Selector, Selector) {
    let all = child("net", side, 0).selectors;
    (all.local[0], all.remote[0])
}

fn ports(selector: Selector, protocol: u8, port: Option<u16>) -> Selector {
    let (start_port, end_port) = port.map_or((0, 65535), |port| (port, port));
    Selector { protocol, start_port, end_port, ..selector }
}

/// Each side's children, with these selectors.
fn world_with(seed: u64, children: impl Fn(usize) -> Vec<SelectorSet>) -> World {
    let [a, b] = [A, B].map(|side| {
        let mut connection = connection(side);
        let children = children(side).into_iter().zip(0u8..);
        connection.children = children
            .map(|(selectors, n)| ChildConfig { selectors, ..child(&format!("child{n}"), side, n) })
            .collect();
        EndpointConfig::new(vec![connection])
    });
    World::with(seed, a, b)
}

/// Web servers behind B; and name servers, where `dns`.
fn services(side: usize, dns: bool) -> SelectorSet {
    let (local, remote) = nets(side);
    let servers = |net| {
        let dns = dns.then(|| ports(net, UDP, Some(53)));
        [ports(net, TCP, Some(443))].into_iter().chain(dns).collect::<Vec<_>>()
    };
    let clients = |net| {
        let dns = dns.then(|| ports(net, UDP, None));
        [ports(net, TCP, None)].into_iter().chain(dns).collect()
    };
    match side {
        A => SelectorSet { local: clients(local), remote: servers(remote) },
        _ => SelectorSet { local: servers(local), remote: clients(remote) },
    }
}

#[track_caller]
fn assert_selectors(world: &World, of_b: &SelectorSet) {
    let mirrored = SelectorSet { local: of_b.remote.clone(), remote: of_b.local.clone() };
    assert_eq!(&world.sas(B)[0].children[0].selectors, of_b);
    assert_eq!(world.sas(A)[0].children[0].selectors, mirrored);
    let installed = world.sides[B].plane.inbound.values().map(|(sa, _)| &sa.selectors);
    assert!(installed.chain(world.sides[B].plane.outbound.iter().map(|sa| &sa.selectors)).all(|s| s == of_b));
}

/// Two on each side, whoever begins; and after rekeys by both they are what they were.
#[test]
fn several_selectors_with_ports_are_agreed_on_and_survive_rekeys() {
    for first in [A, B] {
        let mut world = world_with(1, |side| vec![services(side, true)]);
        world.initiate(first);
        world.run(Duration::from_secs(1));
        world.assert_one_of_each();
        assert_selectors(&world, &services(B, true));
        for side in [A, B] {
            let sa = world.sas(side)[0].clone();
            world.at(side, |e, now| e.rekey_child(now, sa.children[0].id)).unwrap();
            world.run(Duration::from_secs(20));
            world.assert_one_of_each();
            assert_ne!(world.sas(side)[0].children[0].id, sa.children[0].id, "rekeyed");
            assert_selectors(&world, &services(B, true));
        }
        let sa = world.sas(A)[0].id;
        world.at(A, |e, now| e.rekey_ike(now, sa)).unwrap();
        world.run(Duration::from_secs(20));
        world.assert_one_of_each();
        assert_selectors(&world, &services(B, true));
    }
}

/// RFC 7296 section 2.9: one side's policy is the narrower one.
#[test]
fn the_narrower_policy_stands_whoever_begins() {
    for (first, wide) in [(A, A), (A, B), (B, A), (B, B)] {
        let whole = |side| child("net", side, 0).selectors;
        let mut world =
            world_with(2, |side| vec![if side == wide { whole(side) } else { services(side, true) }]);
        world.initiate(first);
        world.run(Duration::from_secs(2));
        if first == wide {
            world.assert_one_of_each();
            assert_selectors(&world, &services(B, true));
        } else {
            // The wider responder accepts all that is offered.
            world.assert_one_of_each();
            assert_selectors(&world, &services(B, true));
        }
    }
}

/// RFC 7296 section 2.9: no packet that both allow.
#[test]
fn other_protocols_or_ports_are_unacceptable() {
    for (protocol, port) in [(TCP, Some(80)), (UDP, Some(443)), (132, None)] {
        let mut world = world_with(3, |side| {
            let (local, remote) = nets(side);
            let server = |net| ports(net, protocol, port);
            let other = match side {
                A => SelectorSet { local: vec![local], remote: vec![server(remote)] },
                _ => services(B, false),
            };
            vec![other]
        });
        world.initiate(A);
        world.run(Duration::from_secs(5));
        assert!([A, B].iter().all(|side| world.sas(*side)[0].children.is_empty()), "{protocol} {port:?}");
        world.assert_planes(0, 0);
    }
}

/// RFC 7296 section 2.9: the packet that triggered the exchange is named first, so the responder finds the policy that
/// takes it.
#[test]
fn the_packet_that_waits_decides_which_policy_answers() {
    for (port, expected) in [(22, 0), (443, 1), (8443, 2)] {
        let mut world = world_with(4, |side| {
            let (local, remote) = nets(side);
            match side {
                A => vec![SelectorSet { local: vec![local], remote: vec![remote] }],
                _ => [22, 443, 8443]
                    .map(|port| SelectorSet {
                        local: vec![ports(local, TCP, Some(port))],
                        remote: vec![remote],
                    })
                    .to_vec(),
            }
        });
        let packet = Trigger { ports: Some((40_000, port)), ..packet_from(A) };
        world.at(A, |e, now| e.acquire(now, 1, packet));
        world.run(Duration::from_secs(2));
        world.assert_one_of_each();
        assert_eq!(world.sas(B)[0].children[0].name, format!("child{expected}"));
        let (server, client) = (ports(nets(B).0, TCP, Some(port)), ports(nets(B).1, TCP, None));
        let of_b = world.sas(B)[0].children[0].selectors.clone();
        assert!(of_b.matches((packet.destination, Some(port)), (packet.source, Some(40_000)), TCP));
        assert_eq!(of_b.local, [server]);
        assert!(
            of_b.remote.iter().all(|r| nets(B).1.holds(r)) && of_b.remote.iter().any(|r| r.holds(&client))
        );
    }
}

/// A dataplane that names a packet outside of the policy is not believed.
#[test]
fn a_packet_outside_of_the_policy_is_not_named() {
    let mut world = world_with(5, |side| vec![services(side, false)]);
    world.at(A, |e, now| e.acquire(now, 1, Trigger { protocol: UDP, ..packet_from(A) }));
    world.run(Duration::from_secs(2));
    world.assert_one_of_each();
    assert_selectors(&world, &services(B, false));
}

fn traffic_selectors(payloads: &[Payload]) -> Option<(Vec<Selector>, Vec<Selector>)> {
    let initiator = payloads.iter().find_map(|p| match p {
        Payload::TsInitiator(s) => Some(s.clone()),
        _ => None,
    });
    let responder = payloads.iter().find_map(|p| match p {
        Payload::TsResponder(s) => Some(s.clone()),
        _ => None,
    });
    initiator.zip(responder)
}

/// What a peer that is not us offers by hand, with the answer as it stands on the wire.
#[test]
fn an_answer_holds_what_was_narrowed_or_says_unacceptable() {
    let mut world = world_with(6, |side| vec![services(side, false)]);
    let mut peer = {
        let (mut peer, mut authenticating) = Peer::half_open(&mut world);
        authenticating.retain(|p| !matches!(p, Payload::TsInitiator(_) | Payload::TsResponder(_)));
        let (b, a) = nets(B);
        authenticating.push(Payload::TsInitiator(vec![a]));
        authenticating.push(Payload::TsResponder(vec![ports(b, UDP, None), ports(b, TCP, None)]));
        let answer = peer.request(&mut world, exchange::IKE_AUTH, &authenticating);
        let policy = services(B, false);
        assert_eq!(traffic_selectors(&answer), Some((policy.remote, policy.local)));
        peer
    };
    let (b, a) = nets(B);
    for (ts_initiator, ts_responder) in [
        (vec![a], vec![ports(b, TCP, Some(80))]),
        (vec![a], vec![Selector { start_port: 65535, end_port: 0, ..ports(b, TCP, None) }]),
        (vec![ports(a, UDP, None)], vec![b]),
        (vec![], vec![b]),
    ] {
        let mut payloads = vec![
            Payload::Sa(vec![parse_esp("aes128gcm16").unwrap().to_wire(1, CHILD_SPI, true)]),
            peer.nonce(),
        ];
        payloads.push(Payload::TsInitiator(ts_initiator));
        payloads.push(Payload::TsResponder(ts_responder));
        let answer = peer.request(&mut world, exchange::CREATE_CHILD_SA, &payloads);
        let refused = |p: &Payload| matches!(p, Payload::Notify(n) if n.kind == notify::TS_UNACCEPTABLE);
        assert!(answer.iter().any(refused), "{answer:?}");
    }
    assert_eq!(world.sas(B)[0].children.len(), 1);
    assert_eq!(selectors([10, 2, 0, 0], [10, 1, 0, 0]).local, [b], "the nets are those of the world");
}
