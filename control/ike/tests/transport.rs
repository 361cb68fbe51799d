//! Transport mode in both roles: accepted, declined, refused, rekeyed, through a NAT (RFC 7296 section 1.3.1, 2.23.1).

mod world;

use spindle_abi::{Mode, Selector, SelectorSet};
use spindle_ike::api::TransportMode::{Never, Preferred, Required};
use spindle_ike::api::*;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use world::{A, B, World, address, child, connection};

const NAT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 9));

fn between(local: IpAddr, remote: IpAddr) -> SelectorSet {
    let one = |end| vec![Selector::addresses(end, end)];
    SelectorSet { local: one(local), remote: one(remote) }
}

/// Two with these modes; the first one's address is seen by the other as that.
fn world(seed: u64, modes: [TransportMode; 2], seen: IpAddr) -> World {
    let [a, b] = [A, B].map(|side| {
        let mut connection = connection(side);
        if side == B {
            connection.remote = Some(seen);
        }
        let selectors = between(connection.local, connection.remote.unwrap());
        connection.children =
            vec![ChildConfig { transport: modes[side], selectors, ..child("net", side, 0) }];
        EndpointConfig::new(vec![connection])
    });
    World::with(seed, a, b)
}

fn beside(seed: u64, modes: [TransportMode; 2]) -> World {
    let mut world = world(seed, modes, address(A));
    world.initiate(A);
    world.run(Duration::from_secs(1));
    world
}

/// Every SA in both dataplanes, and what is told of it.
#[track_caller]
fn assert_mode(world: &World, mode: Mode) {
    for (side, all) in world.sides.iter().enumerate() {
        let sas: Vec<_> = all.plane.inbound.values().map(|(sa, _)| sa).chain(&all.plane.outbound).collect();
        assert!(sas.len() >= 2 && sas.iter().all(|sa| sa.mode == mode), "{side}: {sas:?}");
        assert!(world.sas(side)[0].children.iter().all(|child| child.mode == mode));
    }
}

fn rekey(world: &mut World, side: usize, ike: bool) {
    let sas = world.sas(side);
    let (id, child) = (sas[0].id, sas[0].children[0].id);
    world.at(side, |e, now| if ike { e.rekey_ike(now, id) } else { e.rekey_child(now, child) }).unwrap();
    world.run(Duration::from_secs(10));
    world.assert_one_of_each();
}

#[test]
fn what_both_want_is_agreed_on_and_kept_at_rekeys() {
    for modes in [[Required, Required], [Required, Preferred], [Preferred, Required]] {
        let mut world = beside(1, modes);
        world.assert_one_of_each();
        assert_mode(&world, Mode::Transport);
        for (side, ike) in [(A, false), (B, false), (A, true), (B, true), (B, false)] {
            rekey(&mut world, side, ike);
            assert_mode(&world, Mode::Transport);
        }
    }
}

/// "If the responder declines the request, the Child SA will be established in tunnel mode."
#[test]
fn tunnel_mode_is_what_one_of_them_does_not_ask_for_or_declines() {
    for modes in [[Preferred, Never], [Never, Preferred], [Never, Never]] {
        let mut world = beside(2, modes);
        world.assert_one_of_each();
        assert_mode(&world, Mode::Tunnel);
        for side in [A, B] {
            rekey(&mut world, side, false);
            assert_mode(&world, Mode::Tunnel);
        }
    }
}

/// "If this is unacceptable to the initiator, the initiator MUST delete the SA."
#[test]
fn an_initiator_deletes_the_tunnel_that_it_does_not_want() {
    let mut world = beside(3, [Required, Never]);
    for side in [A, B] {
        assert_eq!(world.sas(side)[0].state, "established");
        assert_eq!(world.sas(side)[0].children.len(), 0, "{side}");
    }
    world.assert_planes(0, 0);
    assert!(world.reports(B, |r| matches!(r, Report::ChildInstalled { .. })) >= 1);
    assert_eq!(world.reports(A, |r| matches!(r, Report::ChildInstalled { .. })), 0);
    // It asks anew now and then, no more.
    let sent = world.sent;
    world.run(Duration::from_secs(60));
    assert!(world.sent - sent < 60, "{}", world.sent - sent);
}

/// RFC 7296 section 3.10.1: NO_PROPOSAL_CHOSEN is also for a USE_TRANSPORT_MODE that is not as it should be.
#[test]
fn a_responder_refuses_the_tunnel_that_it_does_not_want() {
    let world = beside(4, [Never, Required]);
    for side in [A, B] {
        assert_eq!((world.sas(side)[0].state, world.sas(side)[0].children.len()), ("established", 0));
        assert_eq!(world.reports(side, |r| matches!(r, Report::ChildInstalled { .. })), 0);
    }
    world.assert_planes(0, 0);
}

/// RFC 4301 section 4.1: not for what hosts behind a gateway send.
#[test]
fn networks_have_no_transport_mode() {
    for (modes, children) in [([Preferred, Preferred], 1), ([Required, Required], 0)] {
        let [a, b] = [A, B].map(|side| {
            let mut connection = connection(side);
            connection.children = vec![ChildConfig { transport: modes[side], ..child("net", side, 0) }];
            EndpointConfig::new(vec![connection])
        });
        let mut world = World::with(5, a, b);
        world.initiate(A);
        world.run(Duration::from_secs(1));
        assert_eq!([A, B].map(|side| world.sas(side)[0].children.len()), [children; 2]);
        if children == 1 {
            assert_mode(&world, Mode::Tunnel);
        }
    }
}

/// RFC 7296 section 2.23.1: each side has selectors with the addresses that it sees.
#[test]
fn behind_a_nat_each_side_puts_in_the_addresses_that_it_sees() {
    let mut world = world(6, [Required, Required], NAT);
    world.nat = Some(SocketAddr::new(NAT, 20_000));
    world.initiate(A);
    world.run(Duration::from_secs(1));
    world.assert_one_of_each();
    let check = |world: &World| {
        assert_mode(world, Mode::Transport);
        assert_eq!(world.sas(A)[0].children[0].selectors, between(address(A), address(B)));
        assert_eq!(world.sas(B)[0].children[0].selectors, between(address(B), NAT));
        for side in &world.sides {
            for (sa, _) in side.plane.inbound.values() {
                assert_eq!((sa.encapsulated, &sa.selectors), (true, &between(sa.local.ip(), sa.remote.ip())));
            }
        }
    };
    check(&world);
    for (side, ike) in [(A, false), (B, false), (B, true), (A, false)] {
        rekey(&mut world, side, ike);
        check(&world);
    }
}
