//! Safe IKE Recovery among forged, replayed, contradicting and missing answers, and floods. Whatever comes in clear, no IKE SA
//! ends before another one is authenticated in its place.

mod common;

use common::Seeded;
use common::sir::*;
use common::world::{A, B, Setup};
use spindle_ike::api::{Datagram, Header, IkeSpis, Notify};
use spindle_ike::check_spi::{CheckSpi, Subtype};
use spindle_ike::wire::{Message, Payload, View};
use spindle_recovery::api::Config;
use std::net::SocketAddr;

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
