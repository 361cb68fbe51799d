//! A cluster of two, of which one holds the address of the connection (RFC 6290 section 6): what a member does without
//! it, as it comes, and as it leaves.

mod common;

use common::world::{A, B, INTERVAL, Setup, World, address};
use spindle_ike::api::Datagram;
use spindle_recovery::api::Method::{InitialContact, Liveness};
use std::net::SocketAddr;
use std::time::Duration;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn cluster() -> Setup {
    Setup { cluster: Some("pair"), ..Setup::default() }
}

/// Datagrams that a side has sent.
fn sent(world: &World, side: usize) -> usize {
    world.sent.iter().filter(|(_, from, _)| *from == side).count()
}

/// RFC 6290 section 9.2: one gateway gives no token for an SA that is alive on another; section 6: the standby can make the
/// same tokens, and does as soon as it is the active one.
#[test]
fn a_standby_is_silent_until_the_address_comes_and_then_shows_the_token_of_an_sa_it_never_had() {
    let setup = cluster();
    let mut world = World::up(setup.clone());
    world.crash(B);
    let before = sent(&world, B);
    // It hears all that is meant for the active one: ESP, and A's liveness checks.
    world.start_standby(B, &[]);
    let ike = world.gateway(A).sas()[0].id;
    assert!(world.gateway(B).sas().is_empty());
    let request = world.sent.iter().rev().find(|(_, from, _)| *from == A).expect("A has sent").2.clone();
    for remote in [address(A).to_string() + ":500", "198.51.100.9:500".into()] {
        let (local, remote) = (SocketAddr::new(address(B), 500), remote.parse().expect("an address"));
        world.receive(B, Datagram { local, remote, data: request.data.clone() });
    }
    world.run(3 * SECOND);
    assert_eq!((sent(&world, B), world.stat(B, "tokens-sent")), (before, 0), "{:#?}", world.story());
    assert!(world.stat(B, "elsewhere") > 100);
    assert_eq!(world.gateway(A).sas()[0].id, ike, "A has lost nothing yet");

    let delivered = world.sides[B].delivered.len();
    world.addresses(B, &[address(B)]);
    let took = world.run_until(5 * SECOND, |world| world.sides[B].delivered.len() > delivered);
    assert_eq!((world.told(A, "proof"), world.stat(B, "tokens-sent")), (1, 1), "{:#?}", world.story());
    // ESP and INVALID_SPI, a probe and the token, IKE_SA_INIT, IKE_AUTH.
    let bound = setup.delay * 2 * 4 + INTERVAL + 10 * MS;
    assert!(took <= bound, "{took:?}: {:#?}", world.story());
    world.run(SECOND);
    let [a, b] = [A, B].map(|side| world.gateway(side).sas());
    assert!(a.len() == 1 && b.len() == 1 && a[0].spis == b[0].spis);
}

/// RFC 6290 section 9.2: another member may show their tokens from that moment on, so no SA stays.
#[test]
fn a_member_whose_address_leaves_holds_no_sa_and_says_no_word() {
    let mut world = World::up(cluster());
    let before = sent(&world, B);
    world.addresses(B, &[]);
    assert!(world.gateway(B).sas().is_empty());
    world.run(3 * SECOND);
    assert_eq!((sent(&world, B), world.stat(B, "tokens-sent")), (before, 0), "{:#?}", world.story());
    assert!(world.wish(B, |gateway, now| gateway.initiate(now, "site", None)).is_err());
    // It comes back, as where two took it from each other for a moment: what A holds is lost here too.
    world.addresses(B, &[address(B)]);
    let delivered = world.sides[B].delivered.len();
    world.run_until(60 * SECOND, |world| world.sides[B].delivered.len() > delivered);
    assert_eq!(world.told(A, "proof") + world.told(A, "ike-deleted"), 2, "{:#?}", world.story());
    world.check_tokens(B);
}

/// What begins by itself begins where the address is, when it is there.
#[test]
fn a_member_contacts_its_peers_when_the_address_comes_and_not_before() {
    let setup = Setup { methods: vec![InitialContact, Liveness], sending: [false; 2], ..cluster() };
    let mut world = World::new(setup);
    world.run(2 * SECOND);
    world.crash(B);
    world.start_standby(B, &[]);
    let before = sent(&world, B);
    world.run(5 * SECOND);
    assert_eq!(sent(&world, B), before, "{:#?}", world.story());
    world.addresses(B, &[address(B)]);
    world.run(SECOND);
    assert_eq!(world.stat(B, "initiated-after-start"), 1, "{:#?}", world.story());
    assert_eq!(world.gateway(B).sas().len(), 1);
    // Told again, it is no news.
    world.addresses(B, &[address(B)]);
    world.run(SECOND);
    assert_eq!((world.stat(B, "initiated-after-start"), world.gateway(B).sas().len()), (1, 1));
}
