//! Safe IKE Recovery (draft-detienne-ikev2-recovery-03) between two whole control planes: crashes, forged, replayed,
//! contradicting and missing answers, dampening, floods. "Y" has the IKE SA, here mostly A; "X" has lost it, here mostly
//! B. Whatever comes in clear, no IKE SA ends before another one is authenticated in its place.

mod common;

use common::Seeded;
use common::world::{A, B, INTERVAL, Setup, World};
use spindle_ike::api::{Datagram, Header, IkeSaStatus, IkeSpis, Notify};
use spindle_ike::check_spi::{CheckSpi, Subtype};
use spindle_ike::wire::{Message, Payload, Protection, View, add_non_esp_marker, strip_non_esp_marker};
use spindle_recovery::api::{Config, Method};
use std::net::SocketAddr;
use std::time::Duration;

const MS: Duration = Duration::from_millis(1);
/// The name of B.
const GATEWAY_B: &str = "gateway1";
const SECOND: Duration = Duration::from_secs(1);

fn setup() -> Setup {
    Setup { methods: vec![Method::Sir, Method::Liveness], ..Setup::default() }
}

/// The tunnel is up, and not too new to be asked about.
fn up(setup: Setup) -> World {
    let mut world = World::up(setup);
    world.run(10 * SECOND);
    world
}

fn crash_and_restart(world: &mut World, side: usize, down: Duration) {
    world.crash(side);
    world.run(down);
    world.start(side);
}

/// Time until the next packet is delivered at `side`.
fn recovery(world: &mut World, side: usize, limit: Duration) -> Duration {
    let before = world.sides[side].delivered.len();
    world.run_until(limit, |world| world.sides[side].delivered.len() > before)
}

fn established(world: &World, side: usize) -> Vec<IkeSpis> {
    let sas: Vec<IkeSaStatus> = world.gateway(side).sas();
    sas.iter().filter(|sa| sa.state == "established").map(|sa| sa.spis).collect()
}

fn one_ike_sa_each(world: &World) -> bool {
    established(world, A).len() == 1 && established(world, A) == established(world, B)
}

fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn at(side: usize) -> SocketAddr {
    socket(["192.0.2.1:500", "192.0.2.2:500"][side])
}

fn octets(datagram: &Datagram) -> &[u8] {
    match datagram.local.port() {
        4500 => strip_non_esp_marker(&datagram.data).unwrap_or(&[]),
        _ => &datagram.data,
    }
}

fn message(datagram: &Datagram) -> Option<Message> {
    View::parse(octets(datagram)).ok().filter(|view| view.protection().is_none())?.message().ok()
}

fn check(datagram: &Datagram) -> Option<(Header, CheckSpi)> {
    let message = message(datagram).filter(|message| message.header.exchange == 240)?;
    let check = message.payloads.iter().find_map(|p| match p {
        Payload::Notify(notify) => CheckSpi::from_notify(notify),
        _ => None,
    });
    Some((message.header, check?))
}

/// The queries that a side sent.
fn queries(world: &World, side: usize) -> Vec<Datagram> {
    let sent =
        world.sent.iter().filter(|(_, from, d)| *from == side && check(d).is_some_and(|(h, _)| !h.response));
    sent.map(|(.., datagram)| datagram.clone()).collect()
}

/// INVALID_IKE_SPI in clear about the IKE SA that both have, as if the other side had said it.
fn hint_by_pair(world: &mut World, to: usize) {
    let spis = established(world, to)[0];
    let header =
        Header { spis, next_payload: 0, exchange: 37, response: true, initiator: false, message_id: 3 };
    let payloads = vec![Payload::Notify(Notify { kind: 4, protocol: 0, spi: vec![], data: vec![] })];
    let data = Message { header, payloads }.emit();
    world.receive(to, Datagram { local: at(to), remote: at(1 - to), data });
}

/// An answer to a query, as X would make it.
fn answer(query: &Datagram, subtype: Subtype) -> Datagram {
    let (header, check) = check(query).unwrap();
    let header = Header { response: true, initiator: !header.initiator, ..header };
    let payloads = vec![Payload::Notify(CheckSpi { subtype, ..check }.to_notify())];
    let data = Message { header, payloads }.emit();
    let data = if query.local.port() == 4500 { add_non_esp_marker(&data) } else { data };
    Datagram { local: query.local, remote: query.remote, data }
}

/// Each IKE message that left after `since`: by whom, its exchange type, is it a response, is it protected?
fn messages(world: &World, since: spindle_abi::Time) -> Vec<(usize, u8, bool, bool)> {
    let sent = world.sent.iter().filter(|(at, ..)| *at >= since);
    sent.filter_map(|(_, from, datagram)| {
        let view = View::parse(octets(datagram)).ok()?;
        let header = view.header();
        Some((*from, header.exchange, header.response, view.protection() == Some(Protection::Sk)))
    })
    .collect()
}

/// The old IKE SA of `side` ended because another one was authenticated, and not before.
fn old_one_gave_way(world: &World, side: usize, old: IkeSpis) {
    let told = &world.sides[side].told;
    let deleted = told.iter().position(|(_, t)| t.name == "ike-deleted" && t.spis == Some(old)).unwrap();
    assert_eq!(told[deleted].1.detail, "superseded", "{:#?}", world.story());
    let made = told[..deleted].iter().rposition(|(_, t)| t.name == "ike-established" && t.spis != Some(old));
    let confirmed = told[..deleted].iter().rposition(|(_, t)| t.name == "confirmation");
    assert!(made > confirmed && confirmed.is_some(), "{:#?}", world.story());
}

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

/// Draft section 3.2.2: the hint was forged, X has the IKE SA: an ACK, which is logged; section 4.2: dampening.
#[test]
fn an_ack_ends_it_and_the_peer_is_not_asked_again_for_a_while() {
    let mut world = up(setup());
    let before = [A, B].map(|side| world.gateway(side).sas());
    hint_by_pair(&mut world, A);
    world.run(100 * MS);
    assert_eq!([world.told(A, "query"), world.told(A, "ack"), world.told(B, "ack-sent")], [1, 1, 1]);
    for _ in 0..8 {
        hint_by_pair(&mut world, A);
        world.run(100 * MS);
    }
    assert_eq!(world.told(A, "query"), 1, "dampened");
    assert_eq!(world.stat(A, "sir-hints-dampened"), 8);
    assert!(world.stat(A, "probes-started") > 0, "it is still checked for liveness");
    world.run(SECOND);
    hint_by_pair(&mut world, A);
    world.run(SECOND);
    assert_eq!(world.told(A, "query"), 2, "no more");
    assert_eq!([A, B].map(|side| world.gateway(side).sas()), before);
    assert_eq!(world.told(A, "initiating"), 0);
}

/// Draft section 3.2.3: the attacker reads and injects, but cannot block: its NACK comes first, X's ACK within the wait.
#[test]
fn a_forged_nack_before_the_ack_does_nothing() {
    let mut world = up(setup());
    let before = [A, B].map(|side| world.gateway(side).sas());
    hint_by_pair(&mut world, A);
    let query = queries(&world, A).pop().unwrap();
    world.run(MS);
    world.receive(A, answer(&query, Subtype::Nack));
    assert_eq!(world.told(A, "nack"), 1);
    world.run(5 * SECOND);
    assert_eq!([world.told(A, "ack"), world.stat(A, "sir-contradicted") as usize], [1, 1]);
    // The other way round the NACK is one to nothing asked.
    world.run(60 * SECOND);
    hint_by_pair(&mut world, A);
    let query = queries(&world, A).pop().unwrap();
    world.run(SECOND);
    world.receive(A, answer(&query, Subtype::Nack));
    world.run(5 * SECOND);
    assert_eq!(world.stat(A, "sir-answers-unexpected"), 1);
    assert_eq!([world.told(A, "confirmation"), world.told(A, "initiating")], [0, 0]);
    assert_eq!([A, B].map(|side| world.gateway(side).sas()), before);
}

/// An attacker who also blocks X's ACK: while authenticated packets come, a NACK is not believed.
#[test]
fn a_forged_nack_is_not_believed_while_authenticated_packets_come() {
    let mut world = up(Setup { sending: [true, true], ..setup() });
    let before = [A, B].map(|side| world.gateway(side).sas());
    world.interference =
        Some(Box::new(|_, datagram| if check(&datagram).is_some() { vec![] } else { vec![datagram] }));
    hint_by_pair(&mut world, A);
    let query = queries(&world, A).pop().unwrap();
    world.run(MS);
    world.receive(A, answer(&query, Subtype::Nack));
    world.run(5 * SECOND);
    assert_eq!([world.told(A, "nack"), world.told(A, "contradicted")], [1, 1]);
    assert_eq!(world.told(A, "initiating"), 0);
    assert_eq!([A, B].map(|side| world.gateway(side).sas()), before);
}

/// Draft sections 8 and 4.2: who blocks all of X's packets can have an IKE SA made anew, once in the dampening's time;
/// the old one stays until the new one is authenticated, and not a packet is lost.
#[test]
fn whoever_stands_in_between_can_at_most_have_an_ike_sa_made_anew() {
    let mut world = up(setup());
    let old = established(&world, A)[0];
    let delivered = world.sides[B].delivered.len();
    world.interference =
        Some(Box::new(|_, datagram| if check(&datagram).is_some() { vec![] } else { vec![datagram] }));
    for _ in 0..50 {
        if !established(&world, A).is_empty() {
            hint_by_pair(&mut world, A);
        }
        if let Some(query) = queries(&world, A).pop() {
            world.receive(A, answer(&query, Subtype::Nack));
        }
        world.run(SECOND);
    }
    assert_eq!([world.told(A, "confirmation"), world.told(A, "initiating")], [1, 1], "{:#?}", world.story());
    old_one_gave_way(&world, A, old);
    let arrived = world.sides[B].delivered.len() - delivered;
    assert!(arrived >= 4999, "{arrived} of 5000 packets");
    world.interference = None;
    world.run(60 * SECOND);
    assert!(one_ike_sa_each(&world), "{:#?}", world.story());
}

/// Nor where the old IKE SA is rekeyed while the new one is being initiated, by either side.
#[test]
fn a_rekey_beside_a_forged_confirmation_ends_with_one_ike_sa() {
    for rekeyer in [A, B] {
        let mut world = up(setup());
        let old = established(&world, A)[0];
        // The new IKE SA's first messages are lost until the rekey is done.
        world.interference = Some(Box::new(|_, datagram| {
            let header = View::parse(octets(&datagram)).map(|view| view.header());
            let lost = check(&datagram).is_some() || header.is_ok_and(|header| header.exchange == 34);
            if lost { vec![] } else { vec![datagram] }
        }));
        hint_by_pair(&mut world, A);
        let query = queries(&world, A).pop().unwrap();
        world.receive(A, answer(&query, Subtype::Nack));
        world.run(100 * MS);
        assert_eq!(world.told(A, "initiating"), 1, "{:#?}", world.story());
        world.wish(rekeyer, |gateway, now| gateway.rekey(now, "site", None)).unwrap();
        world.run(200 * MS);
        assert_eq!(world.told(A, "ike-rekeyed"), 1, "{:#?}", world.story());
        world.interference = None;
        world.run(20 * SECOND);
        assert!(one_ike_sa_each(&world), "{rekeyer}: {:#?}", world.story());
        assert_ne!(established(&world, A)[0], old);
        assert_eq!(world.told(A, "ike-established"), 2, "{:#?}", world.story());
    }
}

/// Draft section 3.2.4: without our cookie, with one of another IKE SA, query or time, from another address or port,
/// under other flags: dropped. And the true one then still counts.
#[test]
fn a_nack_that_does_not_answer_our_query_does_nothing() {
    let mut world = up(setup());
    let old = established(&world, A)[0];
    world.crash(B);
    hint_by_pair(&mut world, A);
    let first = queries(&world, A).pop().unwrap();
    let good = answer(&first, Subtype::Nack);
    let (header, check) = check(&good).unwrap();
    let emit = |header: Header, check: CheckSpi| Datagram {
        data: Message { header, payloads: vec![Payload::Notify(check.to_notify())] }.emit(),
        ..good.clone()
    };
    let with = |cookie: &[u8]| emit(header, CheckSpi { cookie: cookie.to_vec(), ..check.clone() });
    let mut other_key = check.cookie.clone();
    other_key[0] ^= 1;
    let mut random = Seeded::new(9);
    let random: Vec<u8> = (0..24).map(|_| random.next() as u8).collect();
    let swapped = IkeSpis { initiator: old.responder, responder: old.initiator };
    let forged = [
        with(&[]),
        with(&[0; 24]),
        with(&random),
        with(&other_key),
        with(&check.cookie[..23]),
        emit(Header { spis: swapped, ..header }, check.clone()),
        emit(Header { spis: IkeSpis { initiator: [9; 8], ..old }, ..header }, check.clone()),
        emit(Header { spis: IkeSpis { responder: [9; 8], ..old }, ..header }, check.clone()),
        emit(Header { initiator: !header.initiator, ..header }, check.clone()),
        emit(Header { exchange: 37, ..header }, check.clone()),
        emit(Header { message_id: 1, ..header }, check.clone()),
        Datagram { remote: socket("192.0.2.2:501"), ..good.clone() },
        Datagram { remote: socket("203.0.113.9:500"), ..good.clone() },
        // Our own query, reflected; and it as a response.
        Datagram { remote: first.remote, local: first.local, data: first.data.clone() },
        emit(header, CheckSpi { subtype: Subtype::Query, ..check.clone() }),
    ];
    for datagram in &forged {
        world.receive(A, datagram.clone());
    }
    assert_eq!(world.told(A, "nack"), 0, "{:#?}", world.story());
    assert!(world.stat(A, "sir-cookies-invalid") >= 7 && world.told(A, "cookie-invalid") <= 10);
    // Given up; eleven seconds later its cookie is stale, though the same IKE SA is asked about again.
    let settled = world.gateway(A).sas();
    world.run(3600 * MS);
    assert_eq!(world.stat(A, "sir-queries-sent"), 3);
    assert_eq!(world.stat(A, "sir-queries-unanswered"), 1);
    world.run(1500 * MS);
    assert_eq!(established(&world, A), [old], "nothing ended it");
    assert_eq!(world.gateway(A).sas()[0].children, settled[0].children);
    let unexpected = world.stat(A, "sir-answers-unexpected");
    world.receive(A, good.clone());
    assert_eq!(world.stat(A, "sir-answers-unexpected"), unexpected + 1, "to nothing asked any more");
    assert_eq!(world.told(A, "nack"), 0);
}

#[test]
fn a_stale_nack_does_nothing_and_a_fresh_one_counts() {
    let change: fn(&mut Config) = |config| {
        config.connections[0].retransmission.tries = 9;
    };
    let mut world = up(Setup { change: Some(change), ..setup() });
    let old = established(&world, A)[0];
    world.crash(B);
    hint_by_pair(&mut world, A);
    let stale = answer(&queries(&world, A).pop().unwrap(), Subtype::Nack);
    world.run(11 * SECOND);
    hint_by_pair(&mut world, A);
    let fresh = answer(&queries(&world, A).pop().unwrap(), Subtype::Nack);
    world.receive(A, stale);
    assert_eq!([world.stat(A, "sir-cookies-invalid"), world.stat(A, "sir-nacks")], [1, 0]);
    world.receive(A, fresh.clone());
    world.receive(A, fresh);
    assert_eq!([world.stat(A, "sir-nacks"), world.stat(A, "sir-answers-unexpected")], [1, 1]);
    world.run(SECOND);
    assert_eq!([world.told(A, "confirmation"), world.told(A, "initiating")], [1, 1]);
    assert_eq!(established(&world, A), [old], "a NACK deletes nothing");
    assert_eq!(world.gateway(A).sas().len(), 2, "the new one is being made beside it");
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

/// X's NAT gives it another port between query and answer: the cookie is bound to where the query went (section 3.2.4), so
/// the answer is dropped and the query sent again.
#[test]
fn an_answer_from_another_port_is_dropped_and_the_query_sent_again() {
    let mut world = up(setup());
    let mut moved = 1;
    world.crash(B);
    world.interference = Some(Box::new(move |from, mut datagram| {
        if from == B && moved > 0 && check(&datagram).is_some() {
            moved -= 1;
            datagram.local.set_port(31_000);
        }
        vec![datagram]
    }));
    world.run(100 * MS);
    world.start(B);
    let took = recovery(&mut world, B, 20 * SECOND);
    assert!((100 * MS..SECOND).contains(&took), "{took:?}: {:#?}", world.story());
    assert_eq!([world.stat(A, "sir-cookies-invalid"), world.stat(A, "sir-queries-sent")], [1, 2]);
}

/// Draft section 3.2.2 and 4: MUST be limited, on both sides; and what is forged costs the true peer nothing.
#[test]
fn floods_cause_few_messages_and_do_not_hide_the_truth() {
    let mut world = up(setup());
    let old = established(&world, A)[0];
    world.crash(B);
    let before = world.sent.len();
    for _ in 0..10_000 {
        hint_by_pair(&mut world, A);
    }
    let forged = answer(&queries(&world, A).pop().unwrap(), Subtype::Nack);
    for n in 0..10_000u32 {
        let mut datagram = forged.clone();
        let end = datagram.data.len();
        datagram.data[end - 4..].copy_from_slice(&n.to_be_bytes());
        world.receive(A, datagram);
    }
    assert_eq!(world.sent.len() - before, 1, "one query");
    assert_eq!(world.stat(A, "sir-cookies-invalid"), 10_000);
    assert!(world.told(A, "cookie-invalid") <= 10);
    assert_eq!(established(&world, A), [old]);

    world.start(B);
    let before = world.sent.len();
    let header =
        Header { spis: old, next_payload: 0, exchange: 240, response: false, initiator: true, message_id: 0 };
    for n in 0..50_000u32 {
        let mut spis = old;
        spis.initiator[..4].copy_from_slice(&n.to_be_bytes());
        let query = CheckSpi { subtype: Subtype::Query, child: None, cookie: vec![7; 24] };
        let payloads = vec![Payload::Notify(query.to_notify())];
        let data = Message { header: Header { spis, ..header }, payloads }.emit();
        // From random addresses, and from the true peer's.
        let remote = if n % 2 == 0 { at(A) } else { SocketAddr::from((n.to_be_bytes(), 500)) };
        world.receive(B, Datagram { local: at(B), remote, data });
    }
    let answers = world.sent.len() - before;
    assert!((1..=5010).contains(&answers), "{answers} answers in no time");
    assert!(world.told(B, "nack-sent") <= 10);
    let took = recovery(&mut world, B, 20 * SECOND);
    assert!(took <= SECOND, "{took:?}: {:#?}", world.story());
    assert_eq!(world.told(A, "confirmation"), 1, "{:#?}", world.story());
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

/// Draft section 3.4.2: INVALID_SPI was forged. The protected CHECK_SPI is answered under protection, and both say so.
#[test]
fn a_forged_invalid_spi_is_asked_about_under_protection_and_changes_nothing() {
    let mut world = up(setup());
    let before = [A, B].map(|side| world.gateway(side).sas());
    let spi = before[A][0].children[0].outbound;
    let header = Header {
        spis: IkeSpis { initiator: [0; 8], responder: [0; 8] },
        next_payload: 0,
        exchange: 37,
        response: false,
        initiator: true,
        message_id: 0,
    };
    let data = spi.0.to_be_bytes().to_vec();
    let payloads = vec![Payload::Notify(Notify { kind: 11, protocol: 0, spi: vec![], data })];
    let data = Message { header, payloads }.emit();
    world.receive(A, Datagram { local: at(A), remote: at(B), data });
    world.run(SECOND);
    assert_eq!([world.told(A, "probe"), world.told(A, "query")], [1, 0]);
    assert_eq!([world.stat(B, "sir-protected-queries"), world.stat(A, "sir-protected-acks")], [1, 1]);
    assert_eq!([world.told(B, "spi-checked"), world.told(A, "spi-answered")], [1, 1]);
    assert_eq!([A, B].map(|side| world.gateway(side).sas()), before);
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
        recovery(&mut world, B, 60 * SECOND);
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
