//! Session resumption (RFC 5723) between two endpoints: tickets asked for, granted, presented, refused.

mod world;

use spindle_ike::api::*;
use spindle_ike::wire::{Message, Payload, exchange, notify};
use std::time::Duration;
use world::peer::Peer;
use world::tickets::resuming;
use world::{A, B, World, connection, token};
use zeroize::Zeroizing;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// Two exchanges with a ticket, and with a regular one after a refusal.
const RESUMED: [u8; 4] = [38, 38, 35, 35];
const REFUSED: [u8; 6] = [38, 38, 34, 34, 35, 35];

fn held(world: &World) -> [bool; 2] {
    [A, B].map(|side| world.sas(side)[0].ticket_held)
}

fn resumed(world: &World) -> [bool; 2] {
    [A, B].map(|side| world.sas(side)[0].resumed)
}

fn notify_of(datagram: &Datagram, kind: u16) -> Option<Notify> {
    Message::parse(&datagram.data).ok()?.payloads.into_iter().find_map(|p| match p {
        Payload::Notify(n) if n.kind == kind => Some(n),
        _ => None,
    })
}

/// RFC 5723 section 4.3: IKE_SESSION_RESUME, then IKE_AUTH: as many messages as without a ticket, no key exchange; RFC
/// 6290 section 4.3: the resumed IKE SA's tokens go under its protection; section 4.3.3: a new ticket comes with it.
#[test]
fn after_a_crash_four_messages_resume_without_a_key_exchange() {
    let (mut world, keepers) = World::resuming(1);
    let old = world.sas(A)[0].clone();
    assert_eq!(held(&world), [true, true]);
    world.crash(B, &keepers[B], resuming(B));
    world.take_token(A);
    world.run(SECOND / 2);
    assert_eq!(world.exchanges(), RESUMED);
    world.assert_one_of_each();
    world.assert_planes(1, 1);
    let new = world.sas(A)[0].clone();
    assert_eq!(resumed(&world), [true, true]);
    assert!(new.ticket_held && new.token_held && world.sas(B)[0].token_held);
    assert_eq!((new.proposal, new.remote_id), (old.proposal, old.remote_id));
    assert!(new.spis.initiator != old.spis.initiator && new.spis.responder != old.spis.responder);
    for (_, datagram) in &world.recorded[..2] {
        let payloads = Message::parse(&datagram.data).unwrap().payloads;
        assert!(payloads.iter().any(|p| matches!(p, Payload::Nonce(_))));
        assert!(!payloads.iter().any(|p| matches!(p, Payload::KeyExchange { .. } | Payload::Sa(_))));
        assert_eq!(notify_of(datagram, notify::QUICK_CRASH_DETECTION), None, "never in clear");
        // RFC 5723 section 4.3.2: NAT detection anew.
        assert!(notify_of(datagram, notify::NAT_DETECTION_SOURCE_IP).is_some());
    }
    // Section 7: Protocol ID and SPI Size 0; the ticket alone.
    let shown = notify_of(&world.recorded[0].1, notify::TICKET_OPAQUE).unwrap();
    assert_eq!((shown.protocol, shown.spi.len(), shown.data.len()), (0, 0, 32));
    let header = Message::parse(&world.recorded[0].1.data).unwrap().header;
    assert_eq!((header.spis.responder, header.message_id), ([0; 8], 0));
    // The keys are new and the same at both ends: what is protected by them is understood.
    let ike = world.sas(A)[0].id;
    world.at(A, |e, now| e.rekey_ike(now, ike)).unwrap();
    world.run(3 * SECOND);
    world.assert_one_of_each();
}

/// Whoever took part in the first IKE_AUTH as its responder asks for its ticket in an exchange of its own.
#[test]
fn the_side_that_had_not_initiated_resumes_too() {
    let (mut world, keepers) = World::resuming(2);
    world.crash(A, &keepers[A], resuming(A));
    world.take_token(B);
    world.run(SECOND / 2);
    assert_eq!(world.exchanges(), RESUMED);
    world.assert_one_of_each();
    assert_eq!(resumed(&world), [true, true]);
    assert!(world.sas(B)[0].initiator, "RFC 5723 section 5: by the initiator of IKE_SESSION_RESUME");
}

/// RFC 5723 section 4.3.3: the ticket that comes with a resumption resumes again.
#[test]
fn one_crash_after_the_other_is_resumed_from() {
    let (mut world, keepers) = World::resuming(3);
    for _ in 0..4 {
        world.crash(B, &keepers[B], resuming(B));
        world.recorded.clear();
        world.take_token(A);
        world.run(SECOND / 2);
        assert_eq!(world.exchanges(), RESUMED);
        world.assert_one_of_each();
    }
    assert_eq!(keepers[B].0.borrow().used.len(), 4);
}

/// Each message of a resumption lost, doubled or late: one IKE SA in the end, the same at both sides.
#[test]
fn no_single_loss_or_copy_changes_the_end_of_a_resumption() {
    for position in 0..4 {
        for fate in [vec![], vec![10 * MS, 10 * MS], vec![10 * MS, 900 * MS], vec![1500 * MS]] {
            let (mut world, keepers) = World::resuming(4);
            world.crash(B, &keepers[B], resuming(B));
            let (first, chosen) = (world.sent, fate.clone());
            world.network =
                Box::new(move |_, number, _| (number == first + position).then(|| chosen.clone()));
            world.take_token(A);
            world.run(20 * SECOND);
            world.assert_one_of_each();
            assert_eq!(resumed(&world), [true, true], "{position} {fate:?}");
            world.run(15 * SECOND);
            world.assert_planes(1, 1);
            assert_eq!(world.sas(B).len(), 1, "{position} {fate:?}");
        }
    }
}

/// RFC 5723 section 4.3.2: TICKET_NACK, and the regular exchange follows: one round trip more.
#[test]
fn a_ticket_that_is_lost_expired_used_or_not_wanted_costs_one_round_trip() {
    type Spoil = fn(&mut World, &[world::tickets::Keeper; 2]) -> EndpointConfig;
    let reasons: [(&str, Spoil); 6] = [
        ("its key is lost", |_, keepers| {
            keepers[B].forget();
            resuming(B)
        }),
        ("used", |_, keepers| {
            let mut kept = keepers[B].0.borrow_mut();
            let names: Vec<[u8; 32]> = kept.granted().collect();
            kept.used.extend(names);
            resuming(B)
        }),
        ("no resumption any more", |_, _| EndpointConfig::new(vec![connection(B)])),
        ("another key", |_, _| {
            let mut config = resuming(B);
            // The client proves the old key only; the regular exchange fails with it, see below.
            config.connections[0].psk = Psk(Zeroizing::new(b"another".to_vec()));
            config
        }),
        ("another identity", |_, _| {
            let mut config = resuming(B);
            config.connections[0].remote_id = Identity::Fqdn("someone.else".into());
            config
        }),
        ("its algorithms are not allowed any more", |_, _| {
            let mut config = resuming(B);
            config.connections[0].proposals = vec!["aes256gcm16-prfsha256-x25519".into()];
            config
        }),
    ];
    for (reason, spoil) in reasons {
        let (mut world, keepers) = World::resuming(5);
        let config = spoil(&mut world, &keepers);
        let regular =
            !["another key", "another identity", "its algorithms are not allowed any more"].contains(&reason);
        world.crash(B, &keepers[B], config);
        world.take_token(A);
        world.run(SECOND / 2);
        if regular {
            assert_eq!(world.exchanges(), REFUSED, "{reason}");
            world.assert_one_of_each();
            assert_eq!(resumed(&world), [false, false]);
        } else {
            assert_eq!(world.exchanges()[..4], REFUSED[..4], "{reason}");
            assert_eq!(world.reports(B, |r| matches!(r, Report::IkeEstablished { .. })), 1, "{reason}");
        }
        let nack = notify_of(&world.recorded[1].1, notify::TICKET_NACK).unwrap();
        assert_eq!((nack.protocol, nack.spi.len(), nack.data.len()), (0, 0, 0));
    }
}

/// RFC 5723 section 4.3.1: MUST NOT present a ticket that is known to have expired.
#[test]
fn an_expired_ticket_is_not_presented() {
    let configs = [A, B].map(|side| {
        let mut config = resuming(side);
        config.ticket_lifetime = 10 * SECOND;
        config
    });
    let [a, b] = configs.clone();
    let (mut world, keepers) = World::resuming_with(6, a, b);
    // No further ticket reaches A.
    world.network = Box::new(|_, _, _| Some(vec![]));
    world.run(7 * SECOND);
    world.crash(B, &keepers[B], configs[B].clone());
    world.network = Box::new(|_, _, _| None);
    world.recorded.clear();
    let sa = world.sas(A)[0].clone();
    world.at(A, |e, now| {
        let authority = e.verify_token(sa.id, &token(B, sa.spis)).unwrap();
        e.delete_ike_sa(now, sa.id, authority);
    });
    world.run(4 * SECOND);
    world.initiate(A);
    world.run(SECOND / 2);
    assert_eq!(world.exchanges(), [34, 34, 35, 35]);
}

/// RFC 5723 section 4.1: a new one before the lifetime ends.
#[test]
fn a_ticket_is_renewed_before_it_expires() {
    let configs = [A, B].map(|side| {
        let mut config = resuming(side);
        config.ticket_lifetime = 10 * SECOND;
        config
    });
    let [a, b] = configs.clone();
    let (mut world, keepers) = World::resuming_with(7, a, b);
    world.run(60 * SECOND);
    world.crash(B, &keepers[B], configs[B].clone());
    world.recorded.clear();
    world.take_token(A);
    world.run(SECOND / 2);
    assert_eq!(world.exchanges(), RESUMED);
}

/// RFC 5723 section 4.3.2, 9.3: COOKIE as in IKE_SA_INIT, before a ticket is looked at; all else unchanged.
#[test]
fn a_cookie_comes_between() {
    let mut b = resuming(B);
    b.cookie_threshold = 0;
    let (mut world, keepers) = World::resuming_with(8, resuming(A), b.clone());
    world.crash(B, &keepers[B], b);
    world.take_token(A);
    world.run(SECOND / 2);
    assert_eq!(world.exchanges(), [38, 38, 38, 38, 35, 35]);
    assert!(notify_of(&world.recorded[1].1, notify::COOKIE).is_some());
    let [first, second] = [0, 2].map(|n| Message::parse(&world.recorded[n].1.data).unwrap().payloads);
    assert!(matches!(&second[0], Payload::Notify(n) if n.kind == notify::COOKIE));
    assert_eq!(first[..], second[1..]);
    world.assert_one_of_each();
    assert_eq!(resumed(&world), [true, true]);
}

/// A peer that knows no tickets any more may not answer at all.
#[test]
fn silence_leads_to_the_regular_exchange_after_one_retransmission() {
    let (mut world, keepers) = World::resuming(9);
    world.crash(B, &keepers[B], resuming(B));
    world.network = Box::new(|_, _, d| (d.data[18] == 38).then(Vec::new));
    world.take_token(A);
    world.run(4 * SECOND);
    // The one that is on schedule, and those out of schedule, for packets wait after the crash.
    let exchanges = world.exchanges();
    let requests = exchanges.iter().take_while(|exchange| **exchange == 38).count();
    assert!((2..=6).contains(&requests), "{exchanges:?}");
    assert_eq!(exchanges[requests..][..4], [34, 34, 35, 35]);
    assert!(world.recorded[1..requests].iter().all(|sent| sent.1 == world.recorded[0].1), "retransmissions");
    world.assert_one_of_each();
}

/// What is not authenticated, forged or not, leads to the regular exchange at most.
#[test]
fn forged_answers_prevent_no_new_ike_sa() {
    let forgeries: [(u16, usize); 5] = [
        (notify::TICKET_NACK, 0),
        (notify::COOKIE, 20),
        (notify::INVALID_SYNTAX, 0),
        (notify::INVALID_IKE_SPI, 0),
        (notify::QUICK_CRASH_DETECTION, 32),
    ];
    for (kind, length) in forgeries {
        let (mut world, keepers) = World::resuming(10);
        world.crash(B, &keepers[B], resuming(B));
        world.take_token(A);
        let request = world.recorded[0].1.clone();
        let header = Message::parse(&request.data).unwrap().header;
        let header = Header { response: true, initiator: false, ..header };
        let notify = Notify { kind, protocol: 0, spi: vec![], data: vec![7; length] };
        let data = Message { header, payloads: vec![Payload::Notify(notify)] }.emit();
        for _ in 0..10 {
            let (local, remote) = (request.local, request.remote);
            world.inject(A, Datagram { local, remote, data: data.clone() });
        }
        world.run(3 * SECOND);
        // A forged COOKIE can spoil an attempt, as with IKE_SA_INIT: AUTH covers a request that the gateway has not
        // answered. The next attempt is regular.
        if kind == notify::COOKIE && world.sas(A).is_empty() {
            world.initiate(A);
            world.run(SECOND);
        }
        assert_eq!(world.sas(A).len(), 1, "{kind}");
        // What the answers that A no longer wanted left half-open at B.
        world.run(40 * SECOND);
        world.assert_one_of_each();
        world.assert_planes(1, 1);
    }
}

/// RFC 5723 section 9.1: a ticket that was seen is of no use without the key in it, and is not used up by it.
#[test]
fn a_stolen_ticket_resumes_nothing_and_does_not_spoil_it_for_its_owner() {
    let (mut world, keepers) = World::resuming(11);
    world.crash(B, &keepers[B], resuming(B));
    world.network = Box::new(|_, _, _| Some(vec![]));
    world.take_token(A);
    let request = world.recorded[0].1.clone();
    let thief =
        Datagram { local: request.remote, remote: ([198, 51, 100, 66], 500).into(), ..request.clone() };
    for n in 0..3 {
        let mut stolen = thief.clone();
        stolen.data[0] ^= n;
        // From the owner's address, for this connection takes no other.
        stolen.remote = request.local;
        world.inject(B, stolen);
    }
    assert_eq!(world.sas(B).len(), 3, "half-open");
    assert_eq!(world.reports(B, |r| matches!(r, Report::IkeEstablished { .. })), 1, "but for the first one");
    assert!(keepers[B].0.borrow().used.is_empty());
    world.network = Box::new(|_, _, _| None);
    world.run(2 * SECOND);
    assert_eq!(resumed(&world), [true, true]);
    world.run(40 * SECOND);
    world.assert_one_of_each();
}

/// RFC 5723 section 4.3.1: a client that presents its ticket twice gets one IKE SA of it.
#[test]
fn of_two_resumptions_with_one_ticket_one_is_refused() {
    let (mut world, keepers) = World::resuming(12);
    world.crash(B, &keepers[B], resuming(B));
    world.network = Box::new(|_, _, _| Some(vec![]));
    world.take_token(A);
    // Half-open before the ticket is used.
    let mut other = world.recorded[0].1.clone();
    other.data[0] ^= 1;
    (other.local, other.remote) = (other.remote, other.local);
    world.inject(B, other.clone());
    world.network = Box::new(|_, _, _| None);
    world.run(2 * SECOND);
    assert_eq!(keepers[B].0.borrow().used.len(), 1);
    // And afterwards.
    other.data[1] ^= 1;
    world.recorded.clear();
    world.inject(B, other);
    assert!(notify_of(&world.recorded[0].1, notify::TICKET_NACK).is_some());
    world.run(40 * SECOND);
    world.assert_one_of_each();
}

/// RFC 5723 section 4.3.4: the client was wrong, its IKE SA lives at the gateway; that one goes silently.
#[test]
fn an_ike_sa_that_lives_is_silently_replaced() {
    let (mut world, _) = World::resuming(13);
    let old = world.sas(B)[0].clone();
    world.network = Box::new(|_, _, _| Some(vec![]));
    let ike = world.sas(A)[0].id;
    world.at(A, |e, now| e.probe(now, ike, Duration::ZERO));
    world.run(14 * SECOND);
    assert!(world.sas(A).is_empty(), "timed out");
    world.network = Box::new(|_, _, _| None);
    world.recorded.clear();
    world.initiate(A);
    world.run(SECOND / 2);
    assert_eq!(world.exchanges(), RESUMED, "and no Delete");
    world.assert_one_of_each();
    assert_ne!(world.sas(B)[0].spis, old.spis);
    let superseded = |r: &Report| matches!(r, Report::IkeDeleted { spis, authority: Authority::Superseded(_), .. } if *spis == old.spis);
    assert_eq!(world.reports(B, superseded), 1);
    world.assert_planes(1, 1);
}

/// RFC 5723 section 6.2: when the IKE SA is deleted by the client or the gateway, the ticket MUST be deleted.
#[test]
fn a_ticket_ends_with_an_ike_sa_that_is_deleted() {
    for by in [A, B] {
        let (mut world, _) = World::resuming(14);
        let ike = world.sas(by)[0].id;
        world.at(by, |e, now| e.terminate_ike(now, ike)).unwrap();
        world.run(SECOND);
        assert!(world.sas(A).is_empty());
        world.recorded.clear();
        world.initiate(A);
        world.run(SECOND / 2);
        assert_eq!(world.exchanges(), [34, 34, 35, 35]);
    }
}

/// RFC 5723 section 6.2: as when a user logs out.
#[test]
fn the_operators_end_of_a_connection_ends_a_ticket_that_waits() {
    let (mut world, keepers) = World::resuming(15);
    world.crash(B, &keepers[B], resuming(B));
    let sa = world.sas(A)[0].clone();
    world.at(A, |e, now| {
        let authority = e.verify_token(sa.id, &token(B, sa.spis)).unwrap();
        e.delete_ike_sa(now, sa.id, authority);
        e.forget_ticket("peer");
    });
    world.initiate(A);
    world.run(SECOND / 2);
    assert_eq!(world.exchanges(), [34, 34, 35, 35]);
}

/// RFC 5723 section 6.2: a rekey of the IKE SA voids its ticket; the client SHOULD ask for a new one.
#[test]
fn after_a_rekey_both_hold_new_tickets_that_resume() {
    for by in [A, B] {
        let (mut world, keepers) = World::resuming(16);
        let ike = world.sas(by)[0].id;
        world.at(by, |e, now| e.rekey_ike(now, ike)).unwrap();
        world.run(5 * SECOND);
        assert_eq!(held(&world), [true, true]);
        world.crash(B, &keepers[B], resuming(B));
        world.recorded.clear();
        world.take_token(A);
        world.run(SECOND / 2);
        assert_eq!(world.exchanges(), RESUMED);
        world.assert_one_of_each();
    }
}

/// RFC 5723 section 4.1: a client may ask in its IKE rekey; here it is told to ask later, on the new IKE SA.
#[test]
fn a_request_in_an_ike_rekey_is_deferred() {
    use spindle_ike::crypto::{Group, PrivateKey, parse_ike};
    for (on, expected) in [(true, notify::TICKET_ACK), (false, notify::TICKET_NACK)] {
        let config = EndpointConfig::new(vec![ConnectionConfig { resumption: on, ..connection(B) }]);
        let mut world = World::with(21, resuming(A), config);
        world.sides[B].endpoint.set_tickets(Box::new(world::tickets::Keeper::default()));
        let mut peer = Peer::established(&mut world);
        let key = PrivateKey::generate(Group::X25519, &mut peer.random);
        let proposal = parse_ike("aes128gcm16-prfsha256-x25519").unwrap().to_wire(1, &[0xee; 8]);
        let request = Notify { kind: notify::TICKET_REQUEST, protocol: 0, spi: vec![], data: vec![] };
        let payloads = [
            Payload::Sa(vec![proposal]),
            peer.nonce(),
            Payload::KeyExchange { group: Group::X25519.id(), data: key.public().to_vec() },
            Payload::Notify(request),
        ];
        let answer = peer.request(&mut world, exchange::CREATE_CHILD_SA, &payloads);
        let of = |kind| answer.iter().any(|p| matches!(p, Payload::Notify(n) if n.kind == kind));
        assert!(of(expected) && !of(notify::TICKET_LT_OPAQUE), "{answer:?}");
    }
}

/// RFC 5723 section 5, Note 6: all Child SAs are made anew, the first in IKE_AUTH, with their selectors.
#[test]
fn all_child_sas_come_back_with_their_selectors() {
    let [a, b] = [A, B].map(|side| {
        let mut config = resuming(side);
        config.connections[0].children.push(world::child("second", side, 1));
        config
    });
    let (mut world, keepers) = World::resuming_with(22, a, b.clone());
    world.at(A, |e, now| e.initiate(now, "peer", Some("second"), false)).unwrap();
    world.run(SECOND);
    let selectors = |world: &World| {
        let mut all: Vec<_> =
            world.sas(A)[0].children.iter().map(|c| (c.name.clone(), c.selectors.clone())).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    };
    let before = selectors(&world);
    assert_eq!(before.len(), 2);
    world.crash(B, &keepers[B], b);
    world.recorded.clear();
    world.take_token(A);
    world.at(A, |e, now| e.initiate(now, "peer", Some("second"), true)).unwrap();
    world.run(SECOND / 2);
    assert_eq!(world.exchanges(), [38, 38, 35, 35, 36, 36]);
    assert_eq!(selectors(&world), before);
    world.assert_planes(2, 2);
}

/// Off: nothing is asked for; at one side only: TICKET_NACK, and no further request.
#[test]
fn where_one_side_does_not_resume_no_ticket_is_held() {
    for on in [[false, false], [true, false], [false, true]] {
        let [a, b] = [A, B].map(|side| {
            EndpointConfig::new(vec![ConnectionConfig { resumption: on[side], ..connection(side) }])
        });
        let (mut world, _) = World::resuming_with(17, a, b);
        assert_eq!(held(&world), [false, false]);
        world.run(100 * SECOND);
        assert!(world.exchanges().is_empty(), "{:?}", world.exchanges());
    }
}

/// RFC 5723 section 4.1: TICKET_ACK where IKE_AUTH is long already; the ticket comes in an INFORMATIONAL exchange.
#[test]
fn a_long_ticket_is_granted_later() {
    let mut world = World::with(18, resuming(A), resuming(B));
    let keepers = [(); 2].map(|()| world::tickets::Keeper::default());
    for (side, keeper) in world.sides.iter_mut().zip(&keepers) {
        side.endpoint.set_tickets(Box::new(keeper.clone()));
    }
    keepers[B].0.borrow_mut().padding = 600;
    world.initiate(A);
    world.run(SECOND / 2);
    assert!(!world.sas(A)[0].ticket_held);
    world.run(2 * SECOND);
    assert!(world.sas(A)[0].ticket_held);
    world.crash(B, &keepers[B], resuming(B));
    world.recorded.clear();
    world.take_token(A);
    world.run(SECOND / 2);
    assert_eq!(world.exchanges(), RESUMED);
}

/// RFC 5723 section 7.1: lifetime in seconds, then the ticket; Protocol ID and SPI Size 0. Section 6.2: no longer than
/// an IKE SA lives.
#[test]
fn the_announced_lifetime_is_the_shorter_of_ticket_and_ike_sa() {
    for (rekey, lifetime, expected) in [(0, 3600, 3600), (600, 3600, 600), (7200, 3600, 3600)] {
        let mut config = resuming(B);
        config.connections[0].rekey_time = Duration::from_secs(rekey);
        config.ticket_lifetime = Duration::from_secs(lifetime);
        let mut world = World::with(19, resuming(A), config);
        world.sides[B].endpoint.set_tickets(Box::new(world::tickets::Keeper::default()));
        let mut peer = Peer::established(&mut world);
        let request = Notify { kind: notify::TICKET_REQUEST, protocol: 0, spi: vec![], data: vec![] };
        let answer = peer.request(&mut world, exchange::INFORMATIONAL, &[Payload::Notify(request)]);
        let [Payload::Notify(granted)] = &answer[..] else { panic!("{answer:?}") };
        assert_eq!((granted.kind, granted.protocol, granted.spi.len()), (notify::TICKET_LT_OPAQUE, 0, 0));
        assert_eq!(granted.data[..4], u32::to_be_bytes(expected));
        assert_eq!(granted.data.len(), 4 + 32);
    }
}

/// A NAT is found anew (RFC 5723 section 4.3.2), and the client may come from any address where the connection allows it.
#[test]
fn a_client_behind_a_nat_resumes_from_another_address() {
    let [a, mut b] = [resuming(A), resuming(B)];
    b.connections[0].remote = None;
    let (mut world, keepers) = World::resuming_with(20, a, b.clone());
    world.crash(B, &keepers[B], b);
    world.nat = Some(([203, 0, 113, 9], 20_000).into());
    world.take_token(A);
    world.run(SECOND / 2);
    world.assert_one_of_each();
    assert_eq!(resumed(&world), [true, true]);
    assert!(world.sas(B)[0].children[0].encapsulated);
    assert_eq!(world.sas(B)[0].remote.ip(), std::net::IpAddr::from([203, 0, 113, 9]));
}
