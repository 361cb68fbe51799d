//! The endpoint dies between any two of its outputs, and another one goes on from what it left.

mod world;

use spindle_ike::api::*;
use spindle_ike::wire::{Protection, View, strip_non_esp_marker};
use std::collections::HashMap;
use std::time::Duration;
use world::{A, B, World};

const PACKETS: Duration = Duration::from_millis(7);

/// RFC 7296 section 2.2: a Message ID names one request and one response; RFC 5282 section 3.1: an IV one message.
fn assert_nothing_is_used_twice(world: &World, what: &str) {
    let (mut messages, mut ivs) = (HashMap::new(), HashMap::new());
    for (from, datagram) in &world.recorded {
        let message = strip_non_esp_marker(&datagram.data).unwrap_or(&datagram.data);
        let view = View::parse(message).expect("a message");
        let header = view.header();
        if view.protection() != Some(Protection::Sk) {
            continue;
        }
        let id = (*from, header.spis, header.response, header.message_id);
        assert_eq!(*messages.entry(id).or_insert(message), message, "{what}: {id:?} is two messages");
        let iv = (*from, header.spis, message[32..40].to_vec());
        assert_eq!(*ivs.entry(iv).or_insert(message), message, "{what}: one IV for two messages");
    }
}

/// Messages that no IKE SA accounts for and for which a token could leave: not those on what ended by an exchange, nor
/// those that name an SPI in use, as of an IKE rekey whose response is yet to come again.
fn unmatched(world: &World) -> usize {
    let counts = |side: &world::Side| {
        let could = |unmatched: &&Unmatched| match unmatched {
            Unmatched::ProtectedRequest { header, tombstone, .. } => {
                let in_use = |spi| side.endpoint.spi_in_use(spi);
                !tombstone && !in_use(header.spis.initiator) && !in_use(header.spis.responder)
            }
            Unmatched::Clear { .. } => true,
        };
        side.unmatched.iter().filter(could).count()
    };
    world.sides.iter().map(counts).sum()
}

/// What is done in a world in which one IKE SA with one Child SA stands.
type Play = fn(&mut World, usize);

fn rekey_child(world: &mut World, side: usize) {
    let child = world.child(side);
    world.at(side, |e, now| e.rekey_child(now, child)).unwrap();
}

fn rekey_ike(world: &mut World, side: usize) {
    let ike = world.ike_sa(side);
    world.at(side, |e, now| e.rekey_ike(now, ike)).unwrap();
}

fn check(world: &mut World, side: usize) {
    let ike = world.ike_sa(side);
    world.at(side, |e, now| e.probe(now, ike, Duration::ZERO));
}

const PLAYS: [(&str, Play); 6] = [
    ("a Child SA is rekeyed", rekey_child),
    ("an IKE SA is rekeyed", rekey_ike),
    ("a liveness check", check),
    ("both rekey the Child SA", |world, _| {
        rekey_child(world, A);
        rekey_child(world, B);
    }),
    ("both rekey the IKE SA", |world, _| {
        rekey_ike(world, A);
        rekey_ike(world, B);
    }),
    ("one rekeys the IKE SA, the other one the Child SA", |world, side| {
        rekey_ike(world, side);
        rekey_child(world, 1 - side);
    }),
];

/// Plays it with a death of `dying` after each number of outputs; no packet may be lost, no SA, nothing used twice.
fn die_everywhere(dying: usize, acting: usize) {
    for (what, play) in PLAYS {
        let mut after = 0;
        loop {
            let what = format!("{what} by {acting}, {dying} dies after {after}");
            let mut world = World::patient_with_memory(100 + u64::from(after));
            world.traffic = Some(PACKETS);
            world.sides[dying].fuse = Some(after);
            play(&mut world, acting);
            world.run(Duration::from_secs(40));
            world.traffic = None;
            world.run(Duration::from_secs(1));
            assert_eq!(world.lost, 0, "{what}: packets were lost");
            assert_nothing_is_used_twice(&world, &what);
            assert_eq!(unmatched(&world), 0, "{what}");
            world.assert_one_of_each();
            // All that was removed becomes unknown in time, as without a death.
            world.run(Duration::from_secs(200));
            world.assert_planes(1, 1);
            assert!(world.sides.iter().all(|s| s.plane.states.len() == 1), "{what}: SPIs stay");
            // And nothing that went with the endpoint is missed. No death from here on: exchanges that it held up would
            // cross, and be refused for a while (RFC 7296 section 2.25).
            world.sides[dying].fuse = None;
            world.traffic = Some(PACKETS);
            for side in [A, B] {
                rekey_ike(&mut world, side);
                world.run(Duration::from_secs(1));
                rekey_child(&mut world, side);
                world.run(Duration::from_secs(1));
            }
            world.traffic = None;
            world.run(Duration::from_secs(1));
            assert_eq!(world.lost, 0, "{what}: packets were lost later on");
            world.assert_one_of_each();
            assert_nothing_is_used_twice(&world, &what);
            if world.sides[dying].deaths == 0 {
                break;
            }
            after += 1;
        }
        assert!(after > 1, "{what}: {after} outputs only");
    }
}

#[test]
fn who_acts_may_die_after_any_output() {
    die_everywhere(A, A);
    die_everywhere(B, B);
}

#[test]
fn who_answers_may_die_after_any_output() {
    die_everywhere(A, B);
    die_everywhere(B, A);
}

/// An initiation that has come to IKE_AUTH goes on; one that has not is begun again.
#[test]
fn either_side_may_die_while_the_first_sas_are_made() {
    for dying in [A, B] {
        let mut after = 0;
        loop {
            let mut world = World::patient_for_long(after.into());
            world.keep();
            world.sides[dying].fuse = Some(after);
            world.initiate(A);
            world.run(Duration::from_secs(3));
            if world.sas(A).is_empty() {
                world.initiate(A);
            }
            world.run(Duration::from_secs(60));
            assert_nothing_is_used_twice(&world, &format!("{dying} dies after {after}"));
            world.assert_one_of_each();
            if world.sides[dying].deaths == 0 {
                break;
            }
            after += 1;
        }
        assert!(after > 5, "{after} outputs only");
    }
}

/// A Delete that is repeated after our death gets the answer that it got, or was about to get (RFC 7296 section 2.1).
#[test]
fn either_side_may_die_while_the_sas_are_deleted() {
    for (dying, by) in [(A, A), (A, B), (B, A), (B, B)] {
        for after in 0..12 {
            let mut world = World::patient_with_memory(after.into());
            world.sides[dying].fuse = Some(after);
            let ike = world.ike_sa(by);
            world.at(by, |e, now| e.terminate_ike(now, ike)).unwrap();
            world.run(Duration::from_secs(40));
            // A wish that died before it was kept is none.
            if after == 0 && !world.sas(by).is_empty() {
                world.assert_one_of_each();
                let ike = world.ike_sa(by);
                world.at(by, |e, now| e.terminate_ike(now, ike)).unwrap();
            }
            world.run(Duration::from_secs(40));
            assert_nothing_is_used_twice(&world, &format!("{dying} dies after {after}"));
            assert_eq!(unmatched(&world), 0, "{dying} {after}");
            world.run(Duration::from_secs(200));
            assert!(world.sas(A).is_empty() && world.sas(B).is_empty());
            world.assert_planes(0, 0);
            assert!(world.sides.iter().all(|s| s.plane.states.is_empty() && s.region.is_empty()));
        }
    }
}

/// Damaged records are lost, each alone; whatever the octets are, nothing panics.
#[test]
fn damaged_records_are_not_adopted() {
    let mut world = World::patient_with_memory(1);
    rekey_child(&mut world, A);
    world.run(Duration::from_secs(1));
    let records: Vec<_> = world.sides[A].region.clone().into_iter().collect();
    assert!(records.len() >= 2, "an IKE SA and an SPI");
    for (at, (_, record)) in records.iter().enumerate() {
        for cut in 0..record.len() {
            let mut damaged = records.clone();
            damaged[at].1.truncate(cut);
            assert_eq!(world.adopt_only(A, damaged).lost, 1, "cut to {cut}");
        }
        for position in 0..record.len() {
            let mut damaged = records.clone();
            damaged[at].1[position] ^= 0x41;
            // It may be another key; that is for the memory's checksum to find.
            world.adopt_only(A, damaged);
        }
        let mut longer = records.clone();
        longer[at].1.push(0);
        assert_eq!(world.adopt_only(A, longer).lost, 1);
    }
}
