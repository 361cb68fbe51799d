//! The secret is rotated while IKE SAs live, and takers move: whatever happens, the peer holds a token that can be made
//! after a crash (RFC 6290 section 4.4, 5.1, 5.2).

mod common;

use common::world::{A, B, Setup, World};
use spindle_ike::api::Datagram;
use spindle_recovery::RotationRefused;
use spindle_recovery::api::{Config, TokenMethod};
use spindle_recovery::secrets::decode_secrets;
use spindle_recovery::store::SmallFile;
use std::cell::Cell;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn secrets_of(world: &World, side: usize) -> Vec<[u8; 32]> {
    let octets = world.sides[side].disk.file(SmallFile::Secret).unwrap();
    decode_secrets(&octets).unwrap().iter().map(|generation| *generation.secret.0).collect()
}

fn rotate(world: &mut World, side: usize) {
    world.wish(side, |gateway, now| gateway.rotate_secret(now)).unwrap();
}

/// Both crash tests: B loses everything, A must learn of it by a token.
fn recovers_by_token(world: &mut World) {
    let proofs = world.told(A, "proof");
    world.crash(B);
    world.run(SECOND);
    world.start(B);
    world.run_until(20 * SECOND, |world| world.told(A, "proof") > proofs);
    world.run(5 * SECOND);
    let sas = [A, B].map(|side| world.gateway(side).sas());
    assert!(sas.iter().all(|sas| sas.len() == 1) && sas[0][0].spis == sas[1][0].spis, "{sas:?}");
}

/// RFC 6290 section 4.4: each living IKE SA gets a token of a later generation before its own is dropped, not before
/// that, and has acknowledged it.
#[test]
fn a_generation_is_dropped_when_no_living_ike_sa_relies_on_it() {
    for journal in [true, false] {
        let mut world = World::up(Setup { journal, ..Setup::default() });
        let first = secrets_of(&world, B)[0];
        let stored = world.told(A, "token-stored");
        for n in 2..=4 {
            rotate(&mut world, B);
            world.run(SECOND);
            assert_eq!((secrets_of(&world, B).len(), world.told(B, "secret-rotated")), (n, n - 1));
        }
        assert_eq!(world.told(A, "token-stored"), stored, "no token is sent while the old one can be made");
        assert_eq!(world.gateway(B).secret().generations[3].relying, 1);

        rotate(&mut world, B);
        assert_eq!(secrets_of(&world, B)[3], first, "the peer has not acknowledged yet");
        world.run(SECOND);
        assert_eq!((world.told(A, "token-stored"), world.told(B, "token-acknowledged")), (stored + 1, 1));
        assert_eq!((secrets_of(&world, B).len(), world.told(B, "secret-rotated")), (4, 4));
        assert!(!secrets_of(&world, B).contains(&first));
        let sa = &world.gateway(A).sas()[0];
        let held = world.tokens_of(B, sa.spis, "192.0.2.1".parse().unwrap());
        let held: Vec<bool> = held.iter().map(|token| world.gateway(A).holds_token(sa.spis, token)).collect();
        assert_eq!(held, [false, true, false, false], "of the generation that was the newest then");

        rotate(&mut world, B);
        world.run(SECOND);
        assert_eq!(world.told(B, "secret-rotated"), 5);
        assert_eq!(world.told(A, "token-stored"), stored + 1, "one was enough");
        recovers_by_token(&mut world);
        let shown =
            world.clear.iter().filter(|(_, from, _)| *from == B).map(|(.., m)| m.payloads.len()).max();
        assert_eq!(shown, Some(5), "the error and four tokens");
    }
}

/// The drop waits for the acknowledgement, through losses; the SA's own end serves as well.
#[test]
fn a_generation_stays_until_the_replacement_is_acknowledged() {
    let mut world = World::up(Setup::default());
    (0..3).for_each(|_| rotate(&mut world, B));
    world.run(SECOND);
    let four = secrets_of(&world, B);
    let lose = Rc::new(Cell::new(true));
    let losing = lose.clone();
    world.interference = Some(Box::new(move |from, datagram| match from == A && losing.get() {
        true => Vec::new(),
        false => vec![datagram],
    }));
    rotate(&mut world, B);
    world.run(Duration::from_millis(1500));
    assert_eq!(secrets_of(&world, B), four);
    assert!(world.gateway(B).secret().rotating);
    lose.set(false);
    world.run(3 * SECOND);
    assert_eq!(world.told(B, "secret-rotated"), 4);
    assert!(!world.gateway(B).secret().rotating);

    // Those of the next ones whose IKE SA ends by a Delete need nothing.
    (0..2).for_each(|_| rotate(&mut world, B));
    world.run(SECOND);
    world.setup.sending = [false, false];
    lose.set(true);
    rotate(&mut world, B);
    world.run(SECOND);
    assert!(world.gateway(B).secret().rotating);
    lose.set(false);
    world.wish(A, |gateway, now| gateway.terminate(now, "site", None)).unwrap();
    world.run(10 * SECOND);
    assert_eq!(world.told(B, "secret-rotated"), 7);
}

/// An acknowledgement counts for the token that it answers, not for the one that leaves at the same moment.
#[test]
fn at_every_moment_the_peer_holds_a_token_that_can_be_made() {
    let mut world = World::up(Setup::default());
    let lose = Rc::new(Cell::new(true));
    let losing = lose.clone();
    world.interference = Some(Box::new(move |from, datagram| match from == A && losing.get() {
        true => Vec::new(),
        false => vec![datagram],
    }));
    lose.set(false);
    world.wish(B, |gateway, now| gateway.rekey(now, "site", None)).unwrap();
    world.run_until(SECOND, |world| world.told(B, "ike-rekeyed") == 1);
    lose.set(true);
    let spis = world.gateway(B).sas().iter().find(|sa| sa.state == "established").unwrap().spis;
    for _ in 0..4 {
        rotate(&mut world, B);
        world.run(Duration::from_millis(20));
    }
    lose.set(false);
    let before = world.told(B, "secret-rotated");
    assert_eq!((before, world.told(B, "token-acknowledged")), (3, 0), "{:#?}", world.story());
    world.run_until(5 * SECOND, |world| {
        let held = world.tokens_of(B, spis, "192.0.2.1".parse().unwrap());
        assert!(held.iter().any(|token| world.gateway(A).holds_token(spis, token)), "{:#?}", world.story());
        world.told(B, "secret-rotated") > before
    });
    assert_eq!(world.told(B, "token-acknowledged"), 2, "{:#?}", world.story());
}

/// A peer that fell silent may hold its token still, and so may the peers of an earlier incarnation: what they rely on is
/// kept for as long as an SA lives.
#[test]
fn what_a_silent_peer_or_an_earlier_incarnation_relies_on_is_kept() {
    for restart in [true, false] {
        let mut world = World::up(Setup::default());
        (0..3).for_each(|_| rotate(&mut world, B));
        world.run(SECOND);
        let four = secrets_of(&world, B);
        if restart {
            world.crash(B);
            world.start(B);
        } else {
            world.crash(A);
        }
        world.run(SECOND);
        rotate(&mut world, B);
        world.run(120 * SECOND);
        assert_eq!(secrets_of(&world, B), four, "restart {restart}");
        let oldest = world.gateway(B).secret().generations.last().cloned().unwrap();
        let now = 1_700_000_000 + world.now.0 / 1_000_000_000;
        assert!(oldest.relying == 0 && oldest.needed_until > now + 29 * 86_400, "{oldest:?}");
    }
}

/// RFC 6290 section 5.1: by age, as configured.
#[test]
fn the_secret_is_rotated_when_it_is_old() {
    let mut world = World::up(Setup { secret_rotation: 10 * SECOND, ..Setup::default() });
    world.run(65 * SECOND);
    assert_eq!((world.told(A, "secret-rotated"), world.told(B, "secret-rotated")), (6, 6));
    assert!(world.told(A, "token-acknowledged") >= 1);
    recovers_by_token(&mut world);
}

/// Another method begins a new generation; tokens made before are honoured.
#[test]
fn a_change_of_method_voids_no_token() {
    for (before, after) in
        [(TokenMethod::Spis, TokenMethod::SpisAndAddress), (TokenMethod::SpisAndAddress, TokenMethod::Spis)]
    {
        let mut world = World::up(Setup { token_method: before, ..Setup::default() });
        world.setup.token_method = after;
        recovers_by_token(&mut world);
        let generations = world.gateway(B).secret().generations;
        assert_eq!(generations.iter().map(|g| g.method).collect::<Vec<_>>(), [after, before]);
        recovers_by_token(&mut world);
    }
}

/// A NAT in front of A's IKE, which shows this address outside. (ESP in this world keeps its source.)
fn behind_nat(shown: &Rc<Cell<IpAddr>>) -> common::world::Interference {
    let shown = shown.clone();
    let inside = IpAddr::from([192, 0, 2, 1]);
    Box::new(move |from, datagram| {
        let Datagram { mut local, mut remote, data } = datagram;
        if from == A {
            local.set_ip(shown.get());
        } else if remote.ip() == shown.get() {
            remote.set_ip(inside);
        } else if remote.ip() != inside {
            return Vec::new();
        }
        vec![Datagram { local, remote, data }]
    })
}

/// B takes A from wherever it comes.
fn from_anywhere(config: &mut Config) {
    if config.name == "gateway1" {
        config.connections[0].remote = None;
    }
}

/// RFC 6290 section 4.4, 5.2: the taker's address changed, so it gets the token of the new one, and a crash is told to it
/// there. By section 5.1's method it needs none.
#[test]
fn a_taker_that_moved_gets_a_token_for_its_new_address() {
    for (method, journal) in
        [(TokenMethod::SpisAndAddress, true), (TokenMethod::SpisAndAddress, false), (TokenMethod::Spis, true)]
    {
        let change: Option<fn(&mut Config)> = Some(from_anywhere);
        let setup = Setup { token_method: method, journal, change, ..Setup::default() };
        let mut world = World::new(setup);
        let shown = Rc::new(Cell::new(IpAddr::from([198, 51, 100, 1])));
        world.interference = Some(behind_nat(&shown));
        world.run(3 * SECOND);
        assert_eq!(world.gateway(B).sas()[0].remote.ip(), shown.get());
        let stored = world.told(A, "token-stored");
        shown.set(IpAddr::from([198, 51, 100, 2]));
        world.wish(A, |gateway, now| gateway.rekey(now, "site", Some("net"))).unwrap();
        world.run(5 * SECOND);
        assert_eq!(world.gateway(B).sas()[0].remote.ip(), shown.get(), "B follows");
        let replaced = usize::from(method == TokenMethod::SpisAndAddress);
        assert_eq!(world.told(A, "token-stored"), stored + replaced);
        assert_eq!(world.told(B, "token-acknowledged"), replaced);
        recovers_by_token(&mut world);
    }
}

/// RFC 6290 section 5.2: moved, and the maker crashed before the replacement: no token fits, liveness finds the crash.
#[test]
fn a_taker_that_moved_unnoticed_is_left_to_liveness() {
    let change: Option<fn(&mut Config)> = Some(from_anywhere);
    let mut world =
        World::new(Setup { token_method: TokenMethod::SpisAndAddress, change, ..Setup::default() });
    let shown = Rc::new(Cell::new(IpAddr::from([198, 51, 100, 1])));
    world.interference = Some(behind_nat(&shown));
    world.run(3 * SECOND);
    world.crash(B);
    shown.set(IpAddr::from([198, 51, 100, 2]));
    world.start(B);
    world.run(60 * SECOND);
    assert_eq!(world.told(A, "proof"), 0);
    assert_eq!(world.gateway(A).sas().len(), 1, "a new IKE SA after the timeout");
    assert_eq!(world.gateway(A).sas()[0].spis, world.gateway(B).sas()[0].spis);
}

/// RFC 6290 section 8.1, 9.2: a peer that makes our tokens is a copy of us, and alive.
#[test]
fn a_peer_with_the_same_secret_ends_the_makers_role() {
    let mut world = World::new(Setup { sending: [false, false], ..Setup::default() });
    world.crash(A);
    world.crash(B);
    let copy = world.sides[A].disk.snapshot();
    copy.set_file(SmallFile::Anchor, world.sides[A].disk.file(SmallFile::Anchor).as_deref());
    world.sides[B].disk = copy;
    world.start(A);
    world.start(B);
    world.wish(A, |gateway, now| gateway.initiate(now, "site", None)).unwrap();
    world.run(SECOND);
    assert_eq!(world.told(B, "maker-off"), 1, "the responder sees it");
    assert!(!world.gateway(B).is_token_maker());
    assert_eq!(world.wish(B, |gateway, now| gateway.rotate_secret(now)), Err(RotationRefused::NotAMaker));
    world.setup.sending = [true, false];
    world.crash(B);
    world.run(SECOND);
    assert_eq!(world.told(A, "maker-off"), 0);
}

/// A cluster's secret is the operator's.
#[test]
fn a_shared_secret_is_not_rotated() {
    let mut world = World::new(Setup::default());
    let shared = |config: &mut Config| config.secret_shared = true;
    world.setup.change = Some(shared);
    world.setup.secret_rotation = SECOND;
    world.crash(B);
    world.start(B);
    let before = secrets_of(&world, B);
    world.run(10 * SECOND);
    assert_eq!(world.wish(B, |gateway, now| gateway.rotate_secret(now)), Err(RotationRefused::Shared));
    assert_eq!(secrets_of(&world, B), before);
}
