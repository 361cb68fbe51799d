//! RFC 9611: several Child SAs with the same selectors, one for each worker.

mod world;

use spindle_abi::Resource;
use spindle_ike::api::*;
use spindle_ike::wire::{Payload, exchange, notify};
use std::time::Duration;
use world::peer::Peer;
use world::{A, B, World, config};

fn with(a: u16, b: u16, change: impl Fn(&mut EndpointConfig)) -> World {
    let of = |side, resources| {
        let mut config = config(side);
        config.connections[0].children[0].resources = resources;
        change(&mut config);
        config
    };
    World::with(1, of(A, a), of(B, b))
}

fn connected(a: u16, b: u16) -> World {
    let mut world = with(a, b, |_| {});
    world.initiate(A);
    world.run(Duration::from_secs(5));
    world
}

/// Of each worker how many outbound SAs are for it alone, and how many are for all.
fn shares(world: &World, side: usize) -> (Vec<usize>, usize) {
    let outbound = &world.sides[side].plane.outbound;
    let of =
        |worker| outbound.iter().filter(|sa| sa.resource == Resource { worker, dedicated: true }).count();
    ((0..4).map(of).collect(), outbound.iter().filter(|sa| !sa.resource.dedicated).count())
}

/// Both SAs of a pair are of one worker, and every one of them passes packets.
fn assert_pairs(world: &mut World) {
    for side in [A, B] {
        let plane = &world.sides[side].plane;
        for child in &world.sas(side)[0].children {
            let outbound = plane.outbound.iter().find(|sa| sa.index == child.outbound_index).unwrap();
            assert_eq!(plane.inbound[&child.inbound].0.resource, outbound.resource);
            assert_eq!(plane.inbound[&child.inbound].0.selectors, outbound.selectors);
        }
    }
    world.assert_passes();
}

/// RFC 9611 section 3.
#[test]
fn each_worker_gets_a_child_sa_beside_the_first_one() {
    let mut world = connected(2, 2);
    for side in [A, B] {
        assert_eq!(shares(&world, side), (vec![1, 1, 0, 0], 1), "{side}");
    }
    world.assert_planes(3, 3);
    assert_pairs(&mut world);
    // There it rests.
    let sent = world.sent;
    world.run(Duration::from_secs(60));
    assert_eq!(world.sent, sent);
}

/// RFC 9611 section 4: a responder installs them on the CPU with the least of them. Whoever has more workers makes the
/// rest itself.
#[test]
fn sides_with_different_numbers_of_workers_serve_all_of_them() {
    for (a, b) in [(2, 4), (4, 2)] {
        let mut world = connected(a, b);
        let (two, four) = if a == 2 { (A, B) } else { (B, A) };
        assert_eq!(shares(&world, four), (vec![1, 1, 1, 1], 1));
        assert_eq!(shares(&world, two), (vec![2, 2, 0, 0], 1));
        assert_pairs(&mut world);
    }
}

/// RFC 9611 section 3: only a responder that is willing answers with SA_RESOURCE_INFO; a peer that never heard of it
/// ignores the notification.
#[test]
fn a_peer_that_takes_no_more_gets_one() {
    for (a, b) in [(2, 0), (0, 2)] {
        let mut world = connected(a, b);
        world.assert_one_of_each();
        world.assert_planes(1, 1);
        assert_eq!(shares(&world, A).1, 1);
    }
}

/// RFC 9611 section 3: a rekeyed Child SA is bound to the same resource, whether or not the notification comes with it.
#[test]
fn a_rekey_by_either_side_stays_at_its_worker() {
    for side in [A, B] {
        let mut world = connected(2, 2);
        for child in world.sas(side)[0].children.clone() {
            world.at(side, |e, now| e.rekey_child(now, child.id)).unwrap();
        }
        world.traffic = Some(Duration::from_millis(7));
        world.run(Duration::from_secs(30));
        world.traffic = None;
        assert_eq!(world.lost, 0);
        // The responder's outbound SAs follow at the Delete of the old ones.
        for side in [A, B] {
            assert_eq!(shares(&world, side), (vec![1, 1, 0, 0], 1));
        }
        world.assert_planes(3, 3);
        assert_pairs(&mut world);
    }
}

/// RFC 9611 section 6: to bring it up again at once might never end.
#[test]
fn one_that_the_peer_deletes_stays_away_until_it_is_wanted() {
    let mut world = connected(2, 2);
    let index = world.sides[B].plane.outbound.iter().find(|sa| sa.resource.dedicated).unwrap().index;
    let child = world.sas(B)[0].children.iter().find(|c| c.outbound_index == index).unwrap().id;
    world.at(B, |e, now| e.terminate_child(now, child)).unwrap();
    world.run(Duration::from_secs(60));
    world.assert_planes(2, 2);
    assert_pairs(&mut world);
    world.initiate(A);
    world.run(Duration::from_secs(5));
    assert_eq!(shares(&world, A), (vec![1, 1, 0, 0], 1));
}

#[test]
fn an_ike_rekey_takes_them_along() {
    let mut world = connected(2, 2);
    let ike = world.sas(A)[0].id;
    world.at(A, |e, now| e.rekey_ike(now, ike)).unwrap();
    world.run(Duration::from_secs(10));
    world.assert_planes(3, 3);
    assert_pairs(&mut world);
}

/// RFC 9611 section 6: TS_MAX_QUEUE, never NO_ADDITIONAL_SAS, which would be about all selectors.
#[test]
fn beyond_what_is_granted_the_answer_is_ts_max_queue() {
    let mut world = with(0, 2, |config| config.max_children = 4);
    let (mut peer, mut authenticating) = Peer::half_open(&mut world);
    let info = || {
        Payload::Notify(Notify {
            kind: notify::SA_RESOURCE_INFO,
            protocol: 0,
            spi: Vec::new(),
            data: vec![1],
        })
    };
    authenticating.push(info());
    let kinds = |answer: &[Payload]| -> Vec<u16> {
        let kind = |payload: &Payload| match payload {
            Payload::Notify(notify) => Some(notify.kind),
            _ => None,
        };
        answer.iter().filter_map(kind).collect()
    };
    let answer = peer.request(&mut world, exchange::IKE_AUTH, &authenticating);
    assert!(kinds(&answer).contains(&notify::SA_RESOURCE_INFO), "{answer:?}");
    let mut ask = |world: &mut World, number: u8, with_info: bool| {
        let mut payloads = peer.child_payloads([number, 1, 1, 1]);
        payloads.extend(with_info.then(info));
        kinds(&peer.request(world, exchange::CREATE_CHILD_SA, &payloads))
    };
    for number in 1..4 {
        assert_eq!(ask(&mut world, number, true), [notify::SA_RESOURCE_INFO]);
    }
    assert_eq!(shares(&world, B), (vec![2, 1, 0, 0], 1));
    assert_eq!(ask(&mut world, 4, true), [notify::TS_MAX_QUEUE]);
    assert_eq!(ask(&mut world, 5, false), [notify::NO_ADDITIONAL_SAS]);
}

/// RFC 9611 section 7: there is a limit, by which we abide as initiator too.
#[test]
fn a_peer_that_has_enough_is_not_asked_again() {
    let mut world = with(4, 4, |config| config.max_children = 3);
    world.initiate(A);
    world.run(Duration::from_secs(10));
    world.assert_planes(3, 3);
    assert_pairs(&mut world);
    let sent = world.sent;
    world.run(Duration::from_secs(600));
    assert_eq!(world.sent, sent);
    assert_eq!(world.sas(A).len(), 1);
}
