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
