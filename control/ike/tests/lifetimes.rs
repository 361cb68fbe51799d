//! Extended Sequence Numbers as both sides agree on them, and the limits of a Child SA's life.

mod world;

use spindle_abi::{Limits, SaParameters, SpiState};
use spindle_ike::api::*;
use std::time::Duration;
use world::{A, B, World, config};

/// A world in which both sides' children are as `change` makes them.
fn with(seed: u64, change: impl Fn(usize, &mut ChildConfig)) -> World {
    let [a, b] = [A, B].map(|side| {
        let mut config = config(side);
        change(side, &mut config.connections[0].children[0]);
        config
    });
    let mut world = World::with(seed, a, b);
    world.initiate(A);
    world.run(Duration::from_secs(2));
    world
}

/// All SAs in both dataplanes.
fn installed(world: &World) -> Vec<&SaParameters> {
    let of = |side: usize| {
        let plane = &world.sides[side].plane;
        plane.inbound.values().map(|(sa, _)| sa).chain(&plane.outbound)
    };
    of(A).chain(of(B)).collect()
}

/// RFC 7296 section 3.3.2: the responder chooses by its own order, in IKE_AUTH and at rekeys in either direction.
#[test]
fn both_sides_use_extended_sequence_numbers_where_both_want_them() {
    let cases = [
        ("aes128gcm16-esn-noesn", "aes128gcm16-noesn-esn", false),
        ("aes128gcm16-noesn-esn", "aes128gcm16-esn-noesn", true),
        ("aes192gcm16-x25519-esn", "aes192gcm16-x25519-esn-noesn", true),
        ("aes128gcm16-esn-noesn", "aes128gcm16", false),
    ];
    for (a, b, esn) in cases {
        let mut world = with(1, |side, child| child.proposals = vec![[a, b][side].into()]);
        let shown = |world: &World| world.sas(A)[0].children[0].proposal.ends_with("-esn");
        assert_eq!((installed(&world).len(), shown(&world)), (4, esn), "{a} {b}");
        assert!(installed(&world).iter().all(|sa| sa.esn == esn), "{a} {b}");
        let child = world.sas(A)[0].children[0].id;
        world.at(A, |e, now| e.rekey_child(now, child)).unwrap();
        world.run(Duration::from_secs(10));
        assert_ne!(world.sas(A)[0].children[0].id, child);
        assert!(installed(&world).iter().all(|sa| sa.esn == esn), "{a} {b}, rekeyed");
    }
    let refused =
        with(1, |side, child| child.proposals = vec![["aes128gcm16-esn", "aes128gcm16"][side].into()]);
    assert_eq!(installed(&refused).len(), 0);
}

/// RFC 4301 section 4.4.2.1, and RFC 4303 section 3.3.3 for the end of the sequence numbers: well before it at the latest.
#[test]
fn soft_limits_are_jittered_and_come_well_before_the_end_of_the_sequence_numbers() {
    let limits = |packets, bytes| Limits { packets, bytes };
    let configured = Lifetime {
        life_time: Duration::ZERO,
        rekey: limits(1_000_000, 500 << 20),
        life: limits(1_100_000, 550 << 20),
    };
    for seed in 0..20 {
        let world = with(seed, |_, child| child.lifetime = configured);
        for sa in installed(&world) {
            assert_eq!(sa.hard, configured.life);
            assert!((900_000..=1_000_000).contains(&sa.soft.packets), "{sa:?}");
            assert!((450 << 20..=500 << 20).contains(&sa.soft.bytes), "{sa:?}");
        }
        for (proposal, end) in [("aes128gcm16", 1u128 << 32), ("aes128gcm16-esn", 1 << 64)] {
            let endless = with(seed, |_, child| child.proposals = vec![proposal.into()]);
            for sa in installed(&endless) {
                let packets = u128::from(sa.soft.packets);
                assert!(packets > end / 2 && packets < end / 10 * 8, "{sa:?}");
                assert_eq!((sa.soft.bytes, sa.hard), (0, Limits::default()));
            }
        }
    }
}

/// RFC 4301 section 4.4.2.1: at the hard limit in time the SA ends, rekeyed or not, though the peer be silent.
#[test]
fn a_child_sa_that_could_not_be_rekeyed_ends_with_its_life() {
    let life_time = Duration::from_secs(110);
    let short = |start| {
        with(3, move |side, child| {
            if side == A {
                child.rekey_time = Duration::from_secs(100);
                child.lifetime.life_time = life_time;
                child.start_action = start;
            }
        })
    };
    // Rekeyed in time it never comes to its end.
    let mut world = short(StartAction::Trap);
    world.run(Duration::from_secs(1000));
    assert_eq!(world.sas(A)[0].children.len(), 1);
    assert!(world.reports(A, |r| matches!(r, Report::ChildInstalled { replaces: Some(_), .. })) >= 9);
    assert_eq!(world.reports(A, |r| matches!(r, Report::ChildInstalled { replaces: None, .. })), 1);
    // B answers nothing any more: A stops to send when the life is over.
    let mut world = short(StartAction::Trap);
    let (first, installed_at) = (world.sides[A].plane.outbound[0].spi, world.now);
    world.network = Box::new(|_, _, _| Some(Vec::new()));
    let end = installed_at.after(life_time);
    let mut stopped = None;
    while world.now < end.after(Duration::from_secs(5)) && stopped.is_none() {
        world.run(Duration::from_secs(1));
        if world.sides[A].plane.outbound.iter().all(|sa| sa.spi != first) {
            stopped = Some(world.now);
        }
    }
    assert!(stopped.is_some_and(|at| at <= end.after(Duration::from_secs(1))), "{stopped:?}");
}

/// RFC 4301 section 4.4.2.1: at the hard limit the SA is destroyed, both its halves, though the peer has not answered the
/// Delete yet.
#[test]
fn a_child_sa_whose_life_is_over_receives_no_more_before_the_delete_is_answered() {
    let life_time = Duration::from_secs(110);
    let mut world = with(4, |side, child| {
        child.rekey_time = Duration::ZERO;
        if side == A {
            child.lifetime.life_time = life_time;
        }
    });
    let inbound = world.sas(A)[0].children[0].inbound;
    world.run(life_time - Duration::from_secs(3));
    world.assert_passes();
    world.network = Box::new(|_, _, _| Some(Vec::new()));
    world.run(Duration::from_secs(2));
    assert_eq!(world.sas(A)[0].children.len(), 1, "it is remembered until then");
    let plane = &world.sides[A].plane;
    assert!(plane.inbound.is_empty() && plane.outbound.is_empty());
    assert_eq!(plane.states.get(&inbound), Some(&SpiState::Retired));
    world.network = Box::new(|_, _, _| None);
    world.run(Duration::from_secs(60));
    assert!(world.sas(A)[0].children.is_empty(), "{:#?}", world.sas(A));
    assert!(world.sides[B].plane.inbound.is_empty() && world.sides[B].plane.outbound.is_empty());
}
