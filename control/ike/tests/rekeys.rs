//! Rekeys: alone, crossing, many in a row; under traffic, which must always pass.

mod world;

use proptest::prelude::*;
use spindle_ike::api::*;
use spindle_ike::wire::{View, exchange};
use std::time::Duration;
use world::{A, B, World};

const PACKETS: Duration = Duration::from_millis(7);

#[test]
fn a_hundred_child_rekeys_by_either_side_lose_no_packet() {
    for sides in [[A, A], [B, B], [A, B]] {
        let mut world = World::established(4);
        world.traffic = Some(PACKETS);
        for i in 0..100 {
            let side = sides[i % 2];
            let child = world.child(side);
            world.at(side, |e, now| e.rekey_child(now, child)).unwrap();
            world.run(Duration::from_millis(200));
            assert_eq!(world.lost, 0, "rekey {i}");
        }
        world.run(Duration::from_secs(10));
        assert_eq!(world.lost, 0);
        world.assert_one_of_each();
        world.traffic = None;
        world.run(Duration::from_secs(200));
        world.assert_planes(1, 1);
        assert!(world.sides.iter().all(|s| s.plane.states.len() == 1), "retired SPIs became unknown");
    }
}

#[test]
fn twenty_ike_rekeys_by_either_side_lose_no_packet() {
    for sides in [[A, A], [B, B], [A, B]] {
        let mut world = World::established(5);
        world.traffic = Some(PACKETS);
        let child = world.child(A);
        for i in 0..20 {
            let side = sides[i % 2];
            let ike = world.ike_sa(side);
            world.at(side, |e, now| e.rekey_ike(now, ike)).unwrap();
            world.run(Duration::from_millis(200));
            assert_eq!(world.lost, 0, "rekey {i}");
            assert!(world.sas(A)[0].token_held && world.sas(B)[0].token_held, "rekey {i}: tokens");
        }
        assert_eq!(world.child(A), child);
        world.assert_one_of_each();
    }
}

/// Runs `begin`, then expects exactly one SA of each kind after a while, and no packet lost.
fn crossing(
    seed: u64,
    network: impl FnMut(usize, u64, &mut Datagram) -> Option<world::Fate> + 'static,
    begin: impl Fn(&mut World),
) {
    let mut world = World::patient(seed);
    world.traffic = Some(PACKETS);
    world.network = Box::new(network);
    begin(&mut world);
    world.run(Duration::from_secs(200));
    assert_eq!(world.lost, 0, "seed {seed}");
    world.traffic = None;
    world.run(Duration::from_secs(1));
    world.assert_one_of_each();
    world.run(Duration::from_secs(10));
    world.assert_planes(1, 1);
}

fn both(world: &mut World, f: impl Fn(&mut World, usize)) {
    f(world, A);
    f(world, B);
}

fn rekey_child(world: &mut World, side: usize) {
    let child = world.child(side);
    world.at(side, |e, now| e.rekey_child(now, child)).unwrap();
}

fn rekey_ike(world: &mut World, side: usize) {
    let ike = world.ike_sa(side);
    world.at(side, |e, now| e.rekey_ike(now, ike)).unwrap();
}

/// RFC 7296 section 2.8.1.
#[test]
fn crossing_child_rekeys_leave_one_child_sa() {
    for seed in 0..40 {
        crossing(seed, |_, _, _| None, |w| both(w, rekey_child));
    }
}

/// RFC 7296 section 2.8.2.
#[test]
fn crossing_ike_rekeys_leave_one_ike_sa() {
    for seed in 0..40 {
        crossing(seed, |_, _, _| None, |w| both(w, rekey_ike));
    }
}

/// RFC 7296 section 2.25.2: a Delete of the old IKE SA that overtook the response to the rekey that crossed would make
/// its initiator forget it, and leave the redundant IKE SA at the other end.
#[test]
fn crossing_ike_rekeys_leave_nothing_where_a_response_is_overtaken() {
    for seed in 0..20 {
        for slow in [A, B] {
            let mut world = World::patient(seed);
            world.network = Box::new(move |from, _, datagram| {
                let header = View::parse(&datagram.data).ok()?.header();
                let overtaken =
                    from == slow && header.response && header.exchange == exchange::CREATE_CHILD_SA;
                overtaken.then(|| vec![Duration::from_millis(90)])
            });
            both(&mut world, rekey_ike);
            world.run(Duration::from_secs(2));
            world.assert_one_of_each();
        }
    }
}

/// RFC 7296 section 2.25.1: TEMPORARY_FAILURE for the one or the other, and it is tried again.
#[test]
fn an_ike_rekey_that_crosses_a_child_rekey_waits() {
    for seed in 0..10 {
        crossing(
            seed,
            |_, _, _| None,
            |w| {
                rekey_child(w, A);
                rekey_ike(w, B);
            },
        );
    }
}

/// RFC 7296 section 2.25.1: the Delete is answered as usual, the rekey comes to nothing.
#[test]
fn a_child_delete_that_crosses_its_rekey_wins() {
    for seed in 0..10 {
        let mut world = World::established(seed);
        rekey_child(&mut world, A);
        let child = world.child(B);
        world.at(B, |e, now| e.terminate_child(now, child)).unwrap();
        world.run(Duration::from_secs(60));
        let left = [A, B].map(|s| world.sas(s)[0].children.len());
        assert_eq!(left[0], left[1], "both sides agree");
        world.run(Duration::from_secs(10));
        world.assert_planes(left[0], left[0]);
    }
}

/// RFC 7296 section 1.4.1: both close the pair, neither answer names it.
#[test]
fn both_sides_delete_a_child_sa_at_once() {
    let mut world = World::established(6);
    both(&mut world, |w, side| {
        let child = w.child(side);
        w.at(side, |e, now| e.terminate_child(now, child)).unwrap();
    });
    world.run(Duration::from_secs(10));
    for side in [A, B] {
        assert_eq!(world.sas(side).len(), 1);
        assert!(world.sas(side)[0].children.is_empty());
    }
    world.assert_planes(0, 0);
}

#[test]
fn both_sides_delete_an_ike_sa_at_once() {
    let mut world = World::established(7);
    both(&mut world, |w, side| {
        let ike = w.ike_sa(side);
        w.at(side, |e, now| e.terminate_ike(now, ike)).unwrap();
    });
    world.run(Duration::from_secs(10));
    assert!(world.sas(A).is_empty() && world.sas(B).is_empty());
    world.assert_planes(0, 0);
}

/// RFC 7296 section 2.25.2: the Delete is answered, the rekey forgotten.
#[test]
fn an_ike_delete_that_crosses_its_rekey_wins() {
    let mut world = World::established(8);
    rekey_ike(&mut world, A);
    let ike = world.ike_sa(B);
    world.at(B, |e, now| e.terminate_ike(now, ike)).unwrap();
    world.run(Duration::from_secs(120));
    assert!(world.sas(A).is_empty() && world.sas(B).is_empty(), "{:?} {:?}", world.sas(A), world.sas(B));
    world.assert_planes(0, 0);
}

#[derive(Clone, Debug)]
enum Act {
    RekeyChild(usize),
    RekeyIke(usize),
    Wait(u16),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        (0usize..2).prop_map(Act::RekeyChild),
        (0usize..2).prop_map(Act::RekeyIke),
        (0u16..60).prop_map(Act::Wait),
    ];
    proptest::collection::vec(act, 1..12)
}

proptest! {
    // The same cases every time; with SPINDLE_LONG more, and other ones.
    #![proptest_config(match std::env::var_os("SPINDLE_LONG") {
        None => ProptestConfig {
            rng_seed: proptest::test_runner::RngSeed::Fixed(7296),
            failure_persistence: None,
            ..ProptestConfig::with_cases(256)
        },
        Some(_) => ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(10_000) },
    })]

    /// Whatever crosses, is lost, doubled or overtaken: in the end there is one of each, and no packet was lost.
    #[test]
    fn rekeys_in_any_order_over_a_bad_network_leave_one_of_each(
        seed in 0u64..1_000_000, acts in acts(), network in proptest::collection::vec((0u8..10, 0u64..60), 64),
    ) {
        let mut sent = 0;
        crossing(seed, move |_, _, _| {
            sent += 1;
            let (kind, delay) = network[sent % network.len()];
            let delay = Duration::from_millis(delay);
            // The network heals in the end, or a request might be given up.
            Some(match kind {
                _ if sent > 200 => vec![Duration::from_millis(10)],
                8.. => vec![],
                7 => vec![delay, delay * 2],
                _ => vec![delay],
            })
        }, |world| {
            for act in &acts {
                match act {
                    Act::RekeyChild(side) => {
                        let sas = world.sas(*side);
                        let child = sas.iter().flat_map(|s| &s.children).find(|c| c.state == "installed");
                        if let Some(id) = child.map(|c| c.id) {
                            let _ = world.at(*side, |e, now| e.rekey_child(now, id));
                        }
                    }
                    Act::RekeyIke(side) => {
                        let sas = world.sas(*side);
                        if let Some(id) = sas.iter().find(|s| s.state == "established").map(|s| s.id) {
                            let _ = world.at(*side, |e, now| e.rekey_ike(now, id));
                        }
                    }
                    Act::Wait(ms) => world.run(Duration::from_millis(u64::from(*ms))),
                }
            }
        });
    }
}
