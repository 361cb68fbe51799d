//! Each exchange between two endpoints, each role.

mod world;

use std::time::Duration;
use world::{A, B, World};

/// RFC 7296 section 1.2: two exchanges make an IKE SA and its first Child SA.
#[test]
fn four_messages_make_an_ike_sa_and_a_child_sa() {
    let mut world = World::new(1);
    world.initiate(A);
    world.run(Duration::from_secs(1));
    assert_eq!(world.sent, 4);
    world.assert_one_of_each();
    world.assert_planes(1, 1);
    assert!(world.sas(A)[0].initiator && !world.sas(B)[0].initiator);
}

#[test]
fn a_child_sa_is_rekeyed_by_either_side() {
    for side in [A, B] {
        let mut world = World::established(2);
        let child = world.sas(side)[0].children[0].id;
        world.at(side, |e, now| e.rekey_child(now, child)).unwrap();
        world.run(Duration::from_secs(10));
        world.assert_one_of_each();
        world.assert_planes(1, 1);
        assert_ne!(world.sas(side)[0].children[0].id, child);
    }
}

#[test]
fn an_ike_sa_is_rekeyed_by_either_side_and_the_child_sa_moves() {
    for side in [A, B] {
        let mut world = World::established(3);
        let (ike, child) = (world.sas(side)[0].id, world.sas(side)[0].children[0].id);
        world.at(side, |e, now| e.rekey_ike(now, ike)).unwrap();
        world.run(Duration::from_secs(10));
        world.assert_one_of_each();
        assert_ne!(world.sas(side)[0].id, ike);
        assert_eq!(world.sas(side)[0].children[0].id, child);
    }
}

/// Each exchange by each side, with each single message of it lost, doubled or late: it ends as it would have.
#[test]
fn no_single_loss_or_copy_changes_the_end_of_an_exchange() {
    let ms = Duration::from_millis;
    type Start = fn(&mut World, usize);
    let exchanges: [Start; 3] = [
        |w, side| {
            let child = w.sas(side)[0].children[0].id;
            w.at(side, |e, now| e.rekey_child(now, child)).unwrap();
        },
        |w, side| {
            let ike = w.sas(side)[0].id;
            w.at(side, |e, now| e.rekey_ike(now, ike)).unwrap();
        },
        |w, side| {
            let ike = w.sas(side)[0].id;
            w.at(side, |e, now| e.probe(now, ike, Duration::ZERO));
        },
    ];
    for start in exchanges {
        for side in [A, B] {
            for position in 0..8 {
                for fate in [vec![], vec![ms(10), ms(10)], vec![ms(10), ms(900)], vec![ms(1500)]] {
                    let mut world = World::established(7);
                    world.traffic = Some(ms(20));
                    let first = world.sent;
                    let chosen = fate.clone();
                    world.network =
                        Box::new(move |_, number, _| (number == first + position).then(|| chosen.clone()));
                    start(&mut world, side);
                    world.run(Duration::from_secs(20));
                    assert_eq!(world.lost, 0, "{side} {position} {fate:?}");
                    world.traffic = None;
                    world.run(Duration::from_secs(1));
                    world.assert_one_of_each();
                    world.run(Duration::from_secs(10));
                    world.assert_planes(1, 1);
                }
            }
        }
    }
}

/// RFC 7296 section 2.25.1: the rekey of a Child SA that the peer is closing is answered TEMPORARY_FAILURE; the Delete,
/// whose first copy was lost, ends it at both sides.
#[test]
fn the_rekey_of_a_child_sa_that_the_peer_is_closing_comes_to_nothing() {
    let mut world = World::established(8);
    world.network = Box::new(|from, _, _| (from == B).then(Vec::new));
    let [ours, theirs] = [A, B].map(|side| world.sas(side)[0].children[0].id);
    world.at(B, |e, now| e.terminate_child(now, theirs)).unwrap();
    world.network = Box::new(|_, _, _| None);
    world.at(A, |e, now| e.rekey_child(now, ours)).unwrap();
    world.run(Duration::from_secs(30));
    for side in [A, B] {
        assert_eq!(world.sas(side).len(), 1);
        assert!(world.sas(side)[0].children.is_empty());
    }
    world.assert_planes(0, 0);
}
