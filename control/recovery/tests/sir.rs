//! Safe IKE Recovery (draft-detienne-ikev2-recovery-03) between two whole control planes: crashes, and what else is
//! recovered from. "Y" has the IKE SA, here mostly A; "X" has lost it, here mostly B. What others may say is in `sir_forged`.

mod common;

use common::sir::*;
use common::world::{A, B, INTERVAL, Setup, World};
use spindle_ike::api::{Datagram, Header};
use spindle_ike::check_spi::{CheckSpi, Subtype};
use spindle_ike::wire::{Message, Payload};
use spindle_recovery::api::{Config, Method};
use std::net::SocketAddr;
use std::time::Duration;

/// Draft sections 3.4.2 and 3.2.2: five round trips and the wait, from the first ESP packet at the gateway that is ready
/// to the first one delivered; every message counted.
#[test]
fn a_crash_is_recovered_from_in_five_round_trips_and_the_wait() {
    for sender in [A, B] {
        for journal in [true, false] {
            for delay in [Duration::ZERO, 10 * MS, 50 * MS] {
                let mut sending = [false, false];
                sending[sender] = true;
                let setup = Setup { sending, journal, delay, ..setup() };
                let mut world = up(setup.clone());
                let (lost, old) = (1 - sender, established(&world, sender)[0]);
                crash_and_restart(&mut world, lost, 500 * MS);
                let ready = world.now;
                let took = recovery(&mut world, lost, 20 * SECOND);
                let wait = (setup.delay * 4).max(50 * MS);
                let most = setup.delay * 2 * 5 + wait + INTERVAL + 10 * MS;
                assert!(took <= most, "{took:?} of {most:?} with {delay:?}: {:#?}", world.story());
                assert!(took >= setup.delay * 2 * 5 + wait - INTERVAL, "{took:?}: it did not wait");
                // INVALID_SPI is said again to more packets, each 100 ms, and the unanswered check is sent again after
                // half a second; all else is sent once.
                let mut sent = messages(&world, ready);
                let invalid_spi = (lost, 37, false, false);
                assert_eq!(sent.remove(0), invalid_spi);
                let mut informational = Vec::new();
                sent.retain(|m| {
                    let again = informational.contains(m);
                    informational.extend((m.1 == 37).then_some(*m));
                    *m != invalid_spi && !again
                });
                let exchanges = [(37, false), (240, true), (34, true), (35, false)];
                let expected: Vec<_> = exchanges
                    .into_iter()
                    .flat_map(|(exchange, clear)| {
                        // Protected requests, but INVALID_IKE_SPI comes back in clear.
                        let answer = !clear && exchange != 37;
                        [(sender, exchange, false, !clear), (lost, exchange, true, answer)]
                    })
                    .collect();
                assert_eq!(sent, expected, "{:#?}", world.story());
                for name in ["query", "nack", "confirmation"] {
                    assert_eq!(world.told(sender, name), 1, "{name}: {:#?}", world.story());
                }
                assert_eq!(world.told(lost, "nack-sent"), 1);
                old_one_gave_way(&world, sender, old);
                world.run(SECOND);
                assert!(one_ike_sa_each(&world));
            }
        }
    }
}

/// RFC 3948: the same over UDP; and after a rekey of the IKE SA, which hands on that the peer speaks SIR.
#[test]
fn encapsulated_and_rekeyed_ike_sas_are_recovered_the_same() {
    for encapsulation in [false, true] {
        for rekeyer in [A, B] {
            let mut world = up(Setup { encapsulation, ..setup() });
            world.wish(rekeyer, |gateway, now| gateway.rekey(now, "site", None)).unwrap();
            world.run(12 * SECOND);
            assert_eq!(world.told(A, "ike-rekeyed"), 1);
            let old = established(&world, A)[0];
            crash_and_restart(&mut world, B, SECOND);
            let took = recovery(&mut world, B, 20 * SECOND);
            assert!(took <= 170 * MS + INTERVAL, "{took:?}: {:#?}", world.story());
            old_one_gave_way(&world, A, old);
            world.run(SECOND);
            assert!(one_ike_sa_each(&world));
        }
    }
}

/// Draft section 3.2.2: X's cookie MUST be reflected; it saves the round trip of RFC 7296 section 2.6.
#[test]
fn a_cookie_of_x_is_reflected_and_saves_its_round_trip() {
    let change: fn(&mut Config) = |config| {
        config.cookie_threshold = if config.name == GATEWAY_B { 0 } else { 64 };
    };
    let mut world = up(Setup { change: Some(change), ..setup() });
    crash_and_restart(&mut world, B, 500 * MS);
    let ready = world.now;
    let took = recovery(&mut world, B, 20 * SECOND);
    assert!(took <= 170 * MS + INTERVAL, "{took:?}: {:#?}", world.story());
    let cookie = |message: &Message| {
        message.payloads.iter().enumerate().find_map(|(at, p)| match p {
            Payload::Notify(n) if n.kind == 16390 => Some((at, n.data.clone())),
            _ => None,
        })
    };
    let of = |exchange| {
        let sent = world.sent.iter().filter(|(at, ..)| *at >= ready);
        sent.filter_map(|(.., d)| message(d))
            .filter(move |m| m.header.exchange == exchange)
            .collect::<Vec<_>>()
    };
    let nack = of(240).iter().find_map(cookie).expect("X gives one where it would ask for one");
    let inits = of(34);
    assert_eq!(inits.len(), 2, "one request, one response");
    assert_eq!(cookie(&inits[0]), Some((0, nack.1)), "first, and as it came");
}

/// Draft section 4.2: after a recovery the same peer is not asked for a minute; a crash within it is found by liveness.
#[test]
fn soon_after_a_recovery_the_peer_is_not_asked_and_liveness_finds_the_next_crash() {
    let mut world = up(setup());
    crash_and_restart(&mut world, B, 500 * MS);
    recovery(&mut world, B, 20 * SECOND);
    world.run(15 * SECOND);
    crash_and_restart(&mut world, B, 500 * MS);
    let took = recovery(&mut world, B, 40 * SECOND);
    assert!(took >= 3 * SECOND, "{took:?}");
    assert_eq!(world.told(A, "query"), 1);
    assert!(world.stat(A, "sir-hints-dampened") > 0);
    world.run(70 * SECOND);
    crash_and_restart(&mut world, B, 500 * MS);
    let took = recovery(&mut world, B, 40 * SECOND);
    assert!(took <= SECOND, "{took:?}: {:#?}", world.story());
    assert_eq!(world.told(A, "query"), 2);
    world.run(10 * SECOND);
    assert!(one_ike_sa_each(&world));
}

/// The cookie is bound to addresses (section 3.2.4). Y is behind a NAT that forgot its mapping; the query makes a new one, and
/// the answer comes back through that. An answer from another port of X than asked is none.
#[test]
fn a_nat_mapping_that_moved_does_not_hinder_the_query() {
    use std::cell::Cell;
    use std::rc::Rc;
    let port = Rc::new(Cell::new(40_001));
    let mapping = port.clone();
    let change: fn(&mut Config) = |config| {
        if config.name == GATEWAY_B {
            config.connections[0].remote = None;
        }
    };
    let mut world = World::new(Setup { encapsulation: true, change: Some(change), ..setup() });
    world.interference = Some(Box::new(move |from, mut datagram| {
        let outside = SocketAddr::new(socket("203.0.113.7:0").ip(), mapping.get());
        if from == A && datagram.local.port() == 4500 {
            datagram.local = outside;
        } else if from == B && datagram.remote.ip() == outside.ip() {
            if datagram.remote != outside {
                return vec![];
            }
            datagram.remote = socket("192.0.2.1:4500");
        }
        vec![datagram]
    }));
    world.run(12 * SECOND);
    assert_eq!(world.gateway(B).sas()[0].remote, socket("203.0.113.7:40001"));
    world.crash(B);
    port.set(40_002);
    world.run(500 * MS);
    world.start(B);
    let took = recovery(&mut world, B, 20 * SECOND);
    assert!(took <= SECOND, "{took:?}: {:#?}", world.story());
    assert_eq!(world.told(A, "confirmation"), 1, "{:#?}", world.story());
    assert_eq!(world.gateway(B).sas()[0].remote, socket("203.0.113.7:40002"));
}

/// An IKE SA that is half-open at X is there: its IKE_AUTH may be on its way.
#[test]
fn a_half_open_ike_sa_is_acknowledged() {
    let mut world = World::new(setup());
    world.run(15 * MS);
    let spis = world.gateway(B).sas()[0].spis;
    assert_eq!(world.gateway(B).sas()[0].state, "connecting");
    let header =
        Header { spis, next_payload: 0, exchange: 240, response: false, initiator: true, message_id: 0 };
    let query = CheckSpi { subtype: Subtype::Query, child: None, cookie: vec![1, 2, 3] };
    let payloads = vec![Payload::Notify(query.to_notify())];
    let data = Message { header, payloads }.emit();
    world.receive(B, Datagram { local: at(B), remote: at(A), data });
    let sent = world.sent.iter().rev().find_map(|(_, from, d)| check(d).filter(|_| *from == B));
    assert_eq!(sent.unwrap().1, CheckSpi { subtype: Subtype::Ack, ..query });
}

/// Draft section 5: only who announced it is asked, and nothing is announced where it is off, as it is by default.
#[test]
fn a_peer_that_did_not_announce_it_is_checked_for_liveness() {
    let change: fn(&mut Config) = |config| {
        if config.name == GATEWAY_B {
            config.methods = vec![Method::Liveness];
        }
    };
    let mut world = up(Setup { change: Some(change), ..setup() });
    crash_and_restart(&mut world, B, 500 * MS);
    let took = recovery(&mut world, B, 60 * SECOND);
    assert!(took >= 3 * SECOND, "{took:?}");
    assert!(queries(&world, A).is_empty());
    let vendor_ids = |world: &World, side: usize| {
        let announces = |m: Message| m.payloads.iter().any(|p| matches!(p, Payload::VendorId(_)));
        world.sent.iter().filter(|(_, from, d)| *from == side && message(d).is_some_and(announces)).count()
    };
    assert!(vendor_ids(&world, A) > 0 && vendor_ids(&world, B) == 0);
    let world = up(Setup::default());
    assert_eq!([vendor_ids(&world, A), vendor_ids(&world, B)], [0, 0]);
}

/// Each connection has it or not, whatever the gateway's other ones have.
#[test]
fn a_connection_may_have_it_alone_or_be_the_one_without() {
    let (with, without) = (vec![Method::Sir, Method::Liveness], vec![Method::Liveness]);
    let own_methods = [with.clone(), with.clone()];
    let mut world = up(Setup { methods: without.clone(), own_methods, ..Setup::default() });
    crash_and_restart(&mut world, B, 500 * MS);
    recovery(&mut world, B, 20 * SECOND);
    assert_eq!([world.told(A, "query"), world.told(A, "confirmation")], [1, 1], "{:#?}", world.story());
    let mut world = up(Setup { methods: with, own_methods: [without.clone(), without], ..Setup::default() });
    crash_and_restart(&mut world, B, 500 * MS);
    recovery(&mut world, B, 60 * SECOND);
    assert_eq!([world.told(A, "query"), world.told(B, "nack-sent")], [0, 0], "{:#?}", world.story());
}

/// Draft section 5 for IKE_SESSION_RESUME, whose messages are the first two of an IKE SA too.
#[test]
fn it_is_announced_when_a_session_is_resumed() {
    let methods = vec![Method::Qcd, Method::Sir, Method::Liveness];
    let mut world = up(Setup { methods, resumption: true, ..Setup::default() });
    crash_and_restart(&mut world, B, 500 * MS);
    recovery(&mut world, B, 20 * SECOND);
    let made = world.sides[A].told.iter().rfind(|(_, told)| told.name == "ike-established").unwrap();
    assert!(made.1.detail.ends_with("resumed"), "{:#?}", world.story());
    world.run(11 * SECOND);
    hint_by_pair(&mut world, A);
    world.run(SECOND);
    assert_eq!([world.told(A, "query"), world.told(A, "ack"), world.told(B, "ack-sent")], [1, 1, 1]);
}

/// RFC 5723 section 9.4: untrusted messages MUST NOT be relied upon to decide on a resumption. A NACK is one, so a
/// confirmation leads to IKE_SA_INIT, whatever ticket the old IKE SA has.
#[test]
fn a_confirmation_presents_no_ticket() {
    let mut world = up(Setup { resumption: true, ..setup() });
    assert!(world.gateway(A).sas()[0].ticket_held);
    crash_and_restart(&mut world, B, 500 * MS);
    let ready = world.now;
    recovery(&mut world, B, 20 * SECOND);
    assert_eq!(world.told(A, "confirmation"), 1);
    let exchanges: Vec<u8> = messages(&world, ready).into_iter().map(|(_, exchange, ..)| exchange).collect();
    assert!(exchanges.contains(&34) && !exchanges.contains(&38), "{exchanges:?}");
}

/// A token that matches is proof; nobody needs to be asked, and no dampening applies to it.
#[test]
fn a_token_comes_first_always() {
    let methods = vec![Method::Qcd, Method::Sir, Method::Liveness];
    let mut world = World::up(Setup { methods, ..Setup::default() });
    for _ in 0..3 {
        crash_and_restart(&mut world, B, 500 * MS);
        let took = recovery(&mut world, B, 20 * SECOND);
        assert!(took <= 60 * MS + INTERVAL + 10 * MS, "{took:?}: {:#?}", world.story());
    }
    assert_eq!(world.told(A, "proof"), 3);
    assert!(queries(&world, A).is_empty());
}

/// X crashes again at each half round trip of the recovery.
#[test]
fn a_second_crash_before_the_recovery_ended_is_recovered_from() {
    for half_trips in 0..14 {
        let mut world = up(setup());
        crash_and_restart(&mut world, B, SECOND);
        world.run(Duration::from_millis(10 * half_trips + 1));
        crash_and_restart(&mut world, B, SECOND);
        let took = recovery(&mut world, B, 60 * SECOND);
        // Once the new IKE SA is authenticated a crash is another one, and comes too soon to be asked about. Until then
        // hints, which a peer that is back gives at once, have the outstanding request sent again.
        let again = 10 * half_trips < 130;
        assert!(!again || took <= 170 * MS + INTERVAL, "{half_trips}: {took:?}: {:#?}", world.story());
        world.run(30 * SECOND);
        assert!(one_ike_sa_each(&world), "{half_trips}: {:#?}", world.story());
    }
}

/// Both sides have something to send: both may begin, and one IKE SA stays.
#[test]
fn traffic_both_ways_ends_with_one_ike_sa() {
    for seed in 0..5 {
        let mut world = up(Setup { seed, sending: [true, true], ..setup() });
        crash_and_restart(&mut world, B, SECOND);
        recovery(&mut world, B, 20 * SECOND);
        recovery(&mut world, A, 20 * SECOND);
        world.run(60 * SECOND);
        assert!(one_ike_sa_each(&world), "{seed}: {:#?}", world.story());
        let before = [A, B].map(|side| world.sides[side].delivered.len());
        world.run(SECOND);
        for side in [A, B] {
            assert!(world.sides[side].delivered.len() >= before[side] + 99);
        }
    }
}
