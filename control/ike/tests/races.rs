//! Messages that are lost, late, or sent again from elsewhere, where the two ends must agree all the same.

mod world;

use spindle_ike::api::*;
use spindle_ike::wire::exchange;
use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use world::{A, B, World, address, connection};

const ELSEWHERE: &str = "198.51.100.66:500";

/// A's IKE_AUTH request, which is on its way, comes to B from elsewhere first. What goes there is lost.
fn ike_auth_from_elsewhere_first(mut world: World) -> World {
    let elsewhere: SocketAddr = ELSEWHERE.parse().unwrap();
    world.network = Box::new(move |_, _, datagram| (datagram.remote == elsewhere).then(Vec::new));
    world.initiate(A);
    let until = world.now.after(Duration::from_secs(1));
    let of_a = |world: &World| world.recorded.iter().filter(|(from, _)| *from == A).count();
    while of_a(&world) < 2 {
        assert!(world.step(until), "no IKE_AUTH request");
    }
    let request = world.recorded.last().unwrap().1.clone();
    world.inject(B, Datagram { local: request.remote, remote: elsewhere, data: request.data });
    assert_eq!(world.recorded.last().unwrap().1.remote, elsewhere, "answered to where it came from");
    world
}

/// RFC 7296 section 2.23: NAT detection says that the peer is where its IKE_SA_INIT request came from.
#[test]
fn ike_auth_sent_again_from_elsewhere_does_not_move_a_peer_that_is_behind_no_nat() {
    let mut world = ike_auth_from_elsewhere_first(World::new(70));
    assert_eq!(world.sas(B)[0].remote, SocketAddr::new(address(A), 500));
    assert_eq!(world.sides[B].plane.outbound[0].remote.ip(), address(A));
    world.run(Duration::from_secs(2));
    world.assert_one_of_each();
}

/// RFC 7296 section 2.23: a peer behind a NAT is followed; from the wrong place, too, without any request of its own,
/// for retransmissions go to wherever its messages came from.
#[test]
fn a_peer_behind_a_nat_is_found_again_after_its_ike_auth_came_from_elsewhere_first() {
    let [mut a, mut b] = [A, B].map(connection);
    a.local = "10.9.9.9".parse().unwrap();
    b.remote = None;
    b.dpd_delay = Duration::from_secs(10);
    let mut world = World::with(71, EndpointConfig::new(vec![a]), EndpointConfig::new(vec![b]));
    world.nat = Some("192.0.2.1:20000".parse().unwrap());
    let mut world = ike_auth_from_elsewhere_first(world);
    let id = world.sas(B)[0].id;
    assert_eq!(world.sas(B)[0].remote, ELSEWHERE.parse().unwrap());
    world.run(Duration::from_secs(15));
    let outer: SocketAddr = "192.0.2.1:24500".parse().unwrap();
    assert_eq!((world.sas(B)[0].id, world.sas(B)[0].remote), (id, outer));
    assert_eq!(world.sides[B].plane.outbound[0].remote, outer);
    world.assert_one_of_each();
}

/// RFC 7296 section 2.8.2: one side never sees that the rekeys cross, and deletes the old IKE SA at once; the other one
/// moves its Child SAs nevertheless.
#[test]
fn crossing_ike_rekeys_of_which_one_request_is_lost_keep_the_child_sa() {
    for losing in [A, B] {
        let mut world = World::patient(72);
        let child = world.sas(losing)[0].children[0].id;
        for side in [losing, 1 - losing] {
            let lost = side == losing;
            world.network = Box::new(move |_, _, _| lost.then(Vec::new));
            let ike = world.sas(side)[0].id;
            world.at(side, |e, now| e.rekey_ike(now, ike)).unwrap();
        }
        world.run(Duration::from_secs(60));
        world.assert_one_of_each();
        assert_eq!(world.sas(losing)[0].children[0].id, child);
    }
}

/// RFC 7296 section 2.25.1: the answer to A's CREATE_CHILD_SA is late, and B rekeys the new Child SA already.
#[test]
fn a_child_sa_that_its_initiator_has_not_heard_of_yet_is_not_rekeyed() {
    let mut world = World::established(73);
    for side in [A, B] {
        let child = world.sas(side)[0].children[0].id;
        let _ = world.at(side, |e, now| e.terminate_child(now, child));
    }
    world.run(Duration::from_secs(5));
    world.initiate(A);
    world.network = Box::new(|from, _, _| (from == B).then(|| vec![Duration::from_millis(300)]));
    let until = world.now.after(Duration::from_secs(1));
    while world.sas(B)[0].children.is_empty() {
        assert!(world.step(until));
    }
    world.network = Box::new(|_, _, _| None);
    let child = world.sas(B)[0].children[0].id;
    world.at(B, |e, now| e.rekey_child(now, child)).unwrap();
    assert!(world.sas(A)[0].children.is_empty());
    world.run(Duration::from_secs(60));
    world.assert_one_of_each();
    world.assert_planes(1, 1);
}

/// Both ends initiate; the request of one is late. It is not made once the other's IKE SA stands.
#[test]
fn an_initiation_that_the_peers_overtakes_before_ike_auth_is_dropped() {
    let mut world = World::new(74);
    world.network =
        Box::new(|from, number, _| (from == A && number == 0).then(|| vec![Duration::from_millis(200)]));
    world.initiate(A);
    world.initiate(B);
    world.run(Duration::from_secs(60));
    world.assert_one_of_each();
    assert!(world.sas(B)[0].initiator);
    assert_eq!(world.reports(A, |r| matches!(r, Report::InitiationFailed { .. })), 0);
}

/// RFC 7296 section 2.8.2: A knows not yet which of two crossing rekeys stands when it is told to rekey the IKE SA that
/// B's made. That waits, for the Child SA is not moved yet.
#[test]
fn a_successor_is_not_rekeyed_before_it_is_settled_that_it_stands() {
    let mut world = World::patient(75);
    world.traffic = Some(Duration::from_millis(7));
    let (child, spis) = (world.sas(A)[0].children[0].id, world.sas(A)[0].spis);
    // On the old IKE SA A's own rekey is lost at first, and B's Delete.
    let bad = Rc::new(Cell::new(true));
    let of_old = move |octets: &[u8]| octets[..8] == spis.initiator && octets[8..16] == spis.responder;
    let network = bad.clone();
    world.network = Box::new(move |from, _, datagram| {
        let (exchange, response) = (datagram.data[18], datagram.data[19] & 0x20 != 0);
        let lost = if from == A { exchange::CREATE_CHILD_SA } else { exchange::INFORMATIONAL };
        (network.get() && of_old(&datagram.data) && !response && exchange == lost).then(Vec::new)
    });
    for side in [A, B] {
        let ike = world.sas(side)[0].id;
        world.at(side, |e, now| e.rekey_ike(now, ike)).unwrap();
    }
    world.run(Duration::from_millis(15));
    let of_a = world.sas(A);
    assert_eq!(of_a.iter().map(|sa| sa.state).collect::<Vec<_>>(), ["rekeying", "established"]);
    world.at(A, |e, now| e.rekey_ike(now, of_a[1].id)).unwrap();
    world.run(Duration::from_secs(3));
    bad.set(false);
    world.run(Duration::from_secs(60));
    world.assert_one_of_each();
    assert_eq!((world.sas(A)[0].children[0].id, world.lost), (child, 0));
}

/// The IKE SA is terminated while its rekey is under way: its successor is.
#[test]
fn an_ike_sa_that_is_terminated_while_it_is_rekeyed_ends() {
    let mut world = World::established(76);
    let ike = world.sas(A)[0].id;
    world.at(A, |e, now| e.rekey_ike(now, ike)).unwrap();
    world.at(A, |e, now| e.terminate_ike(now, ike)).unwrap();
    world.run(Duration::from_secs(10));
    assert!(world.sas(A).is_empty() && world.sas(B).is_empty(), "{:#?}", world.sas(A));
    world.assert_planes(0, 0);
}

/// Both sides initiate at once, each for another child: one IKE SA stays and serves both.
#[test]
fn of_two_ike_sas_one_by_each_side_one_stays_and_serves_the_children_of_both() {
    for seed in 77..97 {
        let [a, b] = [A, B].map(|side| {
            let mut connection = connection(side);
            connection.children.push(world::child("other", side, 1));
            EndpointConfig::new(vec![connection])
        });
        let mut world = World::with(seed, a, b);
        for (side, child) in [(A, "net"), (B, "other")] {
            world.at(side, |e, now| e.initiate(now, "peer", Some(child), false)).unwrap();
        }
        world.run(Duration::from_secs(10));
        for side in [A, B] {
            let sas = world.sas(side);
            let mut names: Vec<_> = sas.iter().flat_map(|sa| &sa.children).map(|c| &c.name[..]).collect();
            names.sort_unstable();
            assert_eq!((sas.len(), &names[..]), (1, &["net", "other"][..]), "seed {seed}, side {side}");
        }
        assert_eq!(world.sas(A)[0].spis, world.sas(B)[0].spis, "seed {seed}");
        world.assert_planes(2, 2);
    }
}
