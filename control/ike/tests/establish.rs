//! Setting up: cookies, key exchange groups, NAT, refusals, losses, forgeries, simultaneous starts.

mod world;

use spindle_abi::Selector;
use spindle_ike::api::*;
use spindle_ike::wire::{Message, Payload, exchange, notify};
use std::net::IpAddr;
use std::time::Duration;
use world::{A, B, World, config, connection};
use zeroize::Zeroizing;

const MARKER: [u8; 4] = [0; 4];

fn with(change: impl Fn(usize, &mut ConnectionConfig)) -> [EndpointConfig; 2] {
    [A, B].map(|side| {
        let mut connection = connection(side);
        change(side, &mut connection);
        EndpointConfig::new(vec![connection])
    })
}

fn world_with(seed: u64, change: impl Fn(usize, &mut ConnectionConfig)) -> World {
    let [a, b] = with(change);
    World::with(seed, a, b)
}

fn clear(datagram: &Datagram) -> Option<Message> {
    let data = datagram.data.strip_prefix(&MARKER[..]).unwrap_or(&datagram.data);
    Message::parse(data).ok()
}

fn has_notify(datagram: &Datagram, kind: u16) -> bool {
    clear(datagram)
        .is_some_and(|m| m.payloads.iter().any(|p| matches!(p, Payload::Notify(n) if n.kind == kind)))
}

fn answer(request: &Datagram, payloads: Vec<Payload>) -> Datagram {
    let header = clear(request).unwrap().header;
    let header = Header { response: true, initiator: !header.initiator, ..header };
    Datagram { local: request.local, remote: request.remote, data: Message { header, payloads }.emit() }
}

fn error(kind: u16, data: Vec<u8>) -> Vec<Payload> {
    vec![Payload::Notify(Notify { kind, protocol: 0, spi: vec![], data })]
}

/// RFC 7296 section 2.6: one round trip more, and the cookie comes first.
#[test]
fn a_responder_with_many_half_open_ike_sas_asks_for_a_cookie() {
    let [a, mut b] = [config(A), config(B)];
    b.cookie_threshold = 0;
    let mut world = World::with(1, a, b);
    world.initiate(A);
    world.run(Duration::from_secs(1));
    assert_eq!(world.sent, 6);
    assert!(has_notify(&world.recorded[1].1, notify::COOKIE));
    let second = clear(&world.recorded[2].1).unwrap();
    assert!(matches!(&second.payloads[0], Payload::Notify(n) if n.kind == notify::COOKIE));
    let first = clear(&world.recorded[0].1).unwrap();
    assert_eq!(first.payloads[..], second.payloads[1..], "all else unchanged");
    assert_eq!((first.header.message_id, second.header.message_id), (0, 0));
    world.assert_one_of_each();
}

/// RFC 7296 section 2.6: processed as if none were there.
#[test]
fn a_wrong_cookie_is_answered_by_another_cookie() {
    let [a, mut b] = [config(A), config(B)];
    b.cookie_threshold = 0;
    let mut world = World::with(2, a, b);
    world.initiate(A);
    let request = world.recorded[0].1.clone();
    let forged = answer(&request, error(notify::COOKIE, vec![9; 20]));
    world.inject(A, forged);
    world.run(Duration::from_secs(1));
    world.assert_one_of_each();
}

#[test]
fn forged_cookies_do_not_go_on_for_ever() {
    let mut world = World::new(3);
    world.network = Box::new(|_, _, _| Some(vec![]));
    world.initiate(A);
    let request = world.recorded[0].1.clone();
    for i in 0..100u8 {
        world.inject(A, answer(&request, error(notify::COOKIE, vec![i; 20])));
    }
    assert!(world.sent <= 8, "{}", world.sent);
}

/// RFC 7296 section 1.2, 2.6.1.
#[test]
fn another_group_is_tried_when_the_responder_asks_for_it() {
    for cookies in [false, true] {
        let [a, mut b] = with(|side, c| {
            c.proposals =
                vec![["aes256gcm16-prfsha384-x25519-ecp256", "aes256gcm16-prfsha384-ecp256"][side].into()];
        });
        b.cookie_threshold = if cookies { 0 } else { 64 };
        let mut world = World::with(4, a, b);
        world.initiate(A);
        world.run(Duration::from_secs(1));
        assert!(world.recorded.iter().any(|(_, d)| has_notify(d, notify::INVALID_KE_PAYLOAD)));
        world.assert_one_of_each();
        assert_eq!(world.sas(A)[0].proposal, "aes256gcm16-prfsha384-ecp256");
    }
}

#[test]
fn a_group_that_was_not_offered_is_not_used() {
    let mut world = World::new(5);
    world.initiate(A);
    let request = world.recorded[0].1.clone();
    world.inject(A, answer(&request, error(notify::INVALID_KE_PAYLOAD, 19u16.to_be_bytes().to_vec())));
    world.run(Duration::from_secs(1));
    world.assert_one_of_each();
    assert_eq!(world.sas(A)[0].proposal, "aes128gcm16-prfsha256-x25519");
}

#[test]
fn every_transform_that_is_offered_works() {
    let ike =
        ["aes128gcm16-prfsha256-x25519", "aes256gcm16-prfsha384-ecp256", "chacha20poly1305-prfsha256-x25519"];
    for (i, ike) in ike.iter().enumerate() {
        for esp in ["aes128gcm16", "aes256gcm16", "chacha20poly1305", "aes128gcm16-x25519"] {
            let mut world = world_with(i as u64, |_, c| {
                c.proposals = vec![(*ike).into()];
                c.children[0].proposals = vec![esp.into()];
            });
            world.initiate(A);
            world.run(Duration::from_secs(1));
            world.assert_one_of_each();
            for side in [A, B] {
                let child = world.sas(side)[0].children[0].id;
                world.at(side, |e, now| e.rekey_child(now, child)).unwrap();
                world.run(Duration::from_secs(6));
                world.assert_one_of_each();
                assert_eq!(world.sas(side)[0].children[0].proposal, esp);
            }
        }
    }
}

#[test]
fn without_a_proposal_in_common_the_initiation_fails_after_further_tries() {
    let mut world = world_with(6, |side, c| {
        c.proposals = vec![["aes128gcm16-prfsha256-x25519", "aes256gcm16-prfsha256-x25519"][side].into()];
    });
    world.initiate(A);
    world.run(Duration::from_secs(60));
    assert!(world.recorded.iter().any(|(_, d)| has_notify(d, notify::NO_PROPOSAL_CHOSEN)));
    // RFC 7296 section 2.21.1: not at once.
    assert!(world.recorded.iter().filter(|(from, _)| *from == A).count() == 3);
    assert_eq!(world.reports(A, |r| matches!(r, Report::InitiationFailed { .. })), 1);
    assert!(world.sas(A).is_empty() && world.sas(B).is_empty());
}

/// RFC 7296 section 2.21.1: errors in clear may be forged.
#[test]
fn a_forged_error_does_not_end_an_initiation() {
    for kind in [notify::NO_PROPOSAL_CHOSEN, notify::INVALID_SYNTAX, notify::INVALID_MAJOR_VERSION, 24] {
        let mut world = World::new(7);
        world.initiate(A);
        let request = world.recorded[0].1.clone();
        world.inject(A, answer(&request, error(kind, vec![])));
        world.run(Duration::from_secs(1));
        world.assert_one_of_each();
    }
}

/// RFC 7296 section 2.15, 2.21.2.
#[test]
fn a_wrong_key_or_identity_fails_on_both_sides() {
    let changes: [fn(usize, &mut ConnectionConfig); 3] = [
        |side, c| c.psk = Psk(Zeroizing::new(vec![side as u8; 16])),
        |side, c| {
            if side == A {
                c.local_id = Identity::Fqdn("someone.else".into());
            }
        },
        |side, c| {
            if side == A {
                c.remote_id = Identity::Fqdn("someone.else".into());
            }
        },
    ];
    for (i, change) in changes.iter().enumerate() {
        let mut world = world_with(8 + i as u64, change);
        world.initiate(A);
        world.run(Duration::from_secs(60));
        assert!(world.sas(A).is_empty() && world.sas(B).is_empty());
        for side in [A, B] {
            assert_eq!(world.reports(side, |r| matches!(r, Report::IkeEstablished { .. })), 0);
            assert_eq!(world.reports(side, |r| matches!(r, Report::ChildInstalled { .. })), 0);
        }
        assert_eq!(world.reports(A, |r| matches!(r, Report::InitiationFailed { .. })), 1);
        world.assert_planes(0, 0);
        assert!(world.sides.iter().all(|s| s.plane.states.is_empty()), "larval SPIs are unknown again");
    }
}

/// RFC 7296 section 2.9.
#[test]
fn selectors_are_narrowed_by_the_responder() {
    let wide = |a: [u8; 4], b: [u8; 4]| Selector::addresses(IpAddr::from(a), IpAddr::from(b));
    let mut world = world_with(11, |side, c| {
        if side == A {
            c.children[0].selectors.remote = vec![wide([10, 0, 0, 0], [10, 255, 255, 255])];
        }
    });
    world.initiate(A);
    world.run(Duration::from_secs(1));
    world.assert_one_of_each();
    let narrowed = wide([10, 2, 0, 0], [10, 2, 0, 255]);
    assert_eq!(world.sas(A)[0].children[0].selectors.remote, [narrowed]);
}

/// RFC 7296 section 1.2, 2.21.2: a failed Child SA leaves the IKE SA up.
#[test]
fn without_selectors_in_common_the_ike_sa_stands_alone() {
    let mut world = world_with(12, |side, c| {
        if side == B {
            c.children[0].selectors = world::selectors([10, 7, 0, 0], [10, 8, 0, 0]);
        }
    });
    world.initiate(A);
    world.run(Duration::from_secs(30));
    for side in [A, B] {
        assert_eq!(world.sas(side)[0].state, "established");
        assert!(world.sas(side)[0].children.is_empty());
    }
    world.assert_planes(0, 0);
}

#[test]
fn several_children_come_to_be_one_after_another() {
    let mut world = world_with(13, |side, c| {
        c.start_action = StartAction::Start;
        c.children = (0..4).map(|i| world::child(&format!("net{i}"), side, i)).collect();
        c.children.iter_mut().for_each(|c| c.start_action = StartAction::Start);
    });
    assert!(world.at(A, |e, now| e.start_connection(now, 0)));
    world.run(Duration::from_secs(2));
    for side in [A, B] {
        assert_eq!(world.sas(side).len(), 1);
        assert_eq!(world.sas(side)[0].children.len(), 4);
    }
    world.assert_planes(4, 4);
}

/// RFC 7296 section 2.23: a NAT moves all to port 4500 and ESP into UDP.
#[test]
fn a_nat_in_between_means_port_4500_and_udp_encapsulation() {
    let mut world = World::new(14);
    let outer: std::net::SocketAddr = "192.0.2.1:20000".parse().unwrap();
    world.nat = Some(outer);
    world.sides[A].address.set_ip("10.9.9.9".parse().unwrap());
    let [mut a, mut b] = with(|_, _| {});
    a.connections[0].local = "10.9.9.9".parse().unwrap();
    b.connections[0].remote = None;
    let nat = world.nat;
    world = World::with(14, a, b);
    world.nat = nat;
    world.initiate(A);
    world.run(Duration::from_secs(1));
    world.assert_one_of_each();
    assert_eq!(world.sas(A)[0].local.port(), 4500);
    assert_eq!(world.sas(A)[0].remote.port(), 4500);
    assert_eq!(world.sas(B)[0].remote.port(), 24500);
    assert!(world.sas(A)[0].children[0].encapsulated && world.sas(B)[0].children[0].encapsulated);
    assert_eq!(world.sides[B].plane.outbound[0].remote.port(), 24500);
    // The NAT's mapping changes: B follows after the next authenticated packet, and not before.
    world.nat = Some("192.0.2.1:30000".parse().unwrap());
    let child = world.sas(A)[0].children[0].id;
    assert_eq!(world.sides[B].plane.outbound[0].remote.port(), 24500);
    world.at(A, |e, now| e.rekey_child(now, child)).unwrap();
    world.run(Duration::from_secs(6));
    assert_eq!(world.sas(B)[0].remote.port(), 34500);
    assert_eq!(world.sides[B].plane.outbound[0].remote.port(), 34500);
    world.assert_one_of_each();
}

/// RFC 3948 section 4: every 20 seconds, by the side that is behind the NAT alone.
#[test]
fn the_side_behind_a_nat_keeps_its_mapping_alive() {
    let [mut a, mut b] = with(|_, _| {});
    a.connections[0].local = "10.9.9.9".parse().unwrap();
    b.connections[0].remote = None;
    let mut world = World::with(27, a, b);
    world.nat = Some("192.0.2.1:20000".parse().unwrap());
    world.initiate(A);
    let start = world.now;
    world.run(Duration::from_secs(101));
    world.assert_one_of_each();
    let after: Vec<u64> = world.keepalives.iter().map(|(at, _)| at.since(start).as_secs()).collect();
    assert_eq!(after, [20, 40, 60, 80, 100]);
    assert!(world.keepalives.iter().all(|(_, side)| *side == A));
    let mut world = World::established(28);
    world.run(Duration::from_secs(101));
    assert!(world.keepalives.is_empty(), "there is no NAT");
}

#[test]
fn encapsulation_can_be_forced_by_either_side() {
    for forcing in [A, B] {
        for initiator in [A, B] {
            let mut world = world_with(15, |side, c| c.force_encapsulation = side == forcing);
            world.initiate(initiator);
            world.run(Duration::from_secs(1));
            world.assert_one_of_each();
            for side in [A, B] {
                let sa = &world.sas(side)[0];
                assert_eq!((sa.local.port(), sa.remote.port()), (4500, 4500));
                assert!(sa.children[0].encapsulated);
            }
        }
    }
}

#[test]
fn the_loss_of_any_message_is_made_up_for() {
    for lost in 0..4 {
        let mut world = World::new(16);
        world.network = Box::new(move |_, number, _| (number == lost).then(Vec::new));
        world.initiate(A);
        world.run(Duration::from_secs(5));
        world.network = Box::new(|_, _, _| None);
        world.assert_one_of_each();
        assert_eq!(world.reports(B, |r| matches!(r, Report::IkeEstablished { .. })), 1);
    }
}

#[test]
fn doubled_and_late_messages_change_nothing() {
    let mut world = World::new(17);
    let ms = Duration::from_millis;
    world.network = Box::new(move |_, _, _| Some(vec![ms(10), ms(11), ms(400), ms(2500)]));
    world.initiate(A);
    world.run(Duration::from_secs(10));
    world.assert_one_of_each();
    for side in [A, B] {
        assert_eq!(world.reports(side, |r| matches!(r, Report::IkeEstablished { .. })), 1);
        assert_eq!(world.reports(side, |r| matches!(r, Report::ChildInstalled { .. })), 1);
    }
}

/// RFC 7296 section 2.1: bit-identical from the IKE header on.
#[test]
fn retransmissions_are_identical_and_end() {
    let mut world = World::established(18);
    let ike = world.sas(A)[0].id;
    world.network = Box::new(|_, _, _| Some(vec![]));
    world.recorded.clear();
    world.at(A, |e, now| e.probe(now, ike, Duration::from_secs(1)));
    world.run(Duration::from_secs(60));
    assert_eq!(world.recorded.len(), 5);
    assert!(world.recorded.iter().all(|(_, d)| *d == world.recorded[0].1));
    assert_eq!(world.reports(A, |r| matches!(r, Report::Suspected { .. })), 1);
    let timeout = |r: &Report| matches!(r, Report::IkeDeleted { authority: Authority::Timeout(_), .. });
    assert_eq!(world.reports(A, timeout), 1);
}

/// What is to be up always begins anew when the peer was given up: at once, or in its turn where the driver keeps a pace.
#[test]
fn what_was_given_up_begins_anew_at_once_or_in_its_turn() {
    for paced in [false, true] {
        let connection = ConnectionConfig { start_action: StartAction::Start, ..world::connection(A) };
        let a = EndpointConfig { paced, ..EndpointConfig::new(vec![connection]) };
        let mut world = World::with(31, a, world::config(B)).established_by_a();
        let ike = world.sas(A)[0].id;
        world.network = Box::new(|_, _, _| Some(vec![]));
        world.recorded.clear();
        world.at(A, |e, now| e.probe(now, ike, Duration::from_secs(1)));
        world.run(Duration::from_secs(60));
        let began =
            |world: &World| world.recorded.iter().filter(|(_, sent)| sent.data[18..20] == [34, 8]).count();
        if !paced {
            assert!(began(&world) > 0);
            continue;
        }
        assert_eq!(began(&world), 0);
        assert!(world.at(A, |e, now| e.start_due_at().is_some_and(|at| at <= now)));
        world.network = Box::new(|_, _, _| None);
        assert!(world.at(A, |e, now| e.start_due(now)));
        assert!(!world.at(A, |e, now| e.start_due(now)), "one connection");
        world.run(Duration::from_secs(5));
        assert_eq!((began(&world), world.sas(A).len()), (1, 1));
    }
}

/// Two sides that start at once end with exactly one IKE SA.
#[test]
fn a_simultaneous_start_ends_with_one_of_each() {
    for seed in 0..40 {
        let mut world = World::new(seed);
        world.initiate(A);
        world.run(Duration::from_millis(seed % 20));
        world.initiate(B);
        // What the other side dropped before IKE_AUTH stays half-open here for 30 s.
        world.run(Duration::from_secs(35));
        world.assert_one_of_each();
        world.run(Duration::from_secs(10));
        world.assert_planes(1, 1);
    }
}

/// RFC 7296 section 2.21.4 lets a hint end nothing; but another attempt may begin beside the one that waits.
#[test]
fn a_responder_that_crashed_before_ike_auth_is_reached_by_another_attempt() {
    let mut world = World::new(23);
    world.initiate(A);
    world.run(Duration::from_millis(25));
    world.sides[B] = World::new(24).sides.swap_remove(B);
    world.run(Duration::from_millis(10));
    let waiting = world.sas(A)[0].id;
    assert!(matches!(world.sides[B].unmatched[..], [Unmatched::ProtectedRequest { .. }]));
    let hint = |world: &mut World| world.at(A, |e, now| e.probe(now, waiting, Duration::ZERO));
    assert_eq!(hint(&mut world), ProbeResult::Started);
    assert_eq!(hint(&mut world), ProbeResult::NoSuchSa, "one at a time");
    assert_eq!(world.sas(A).len(), 2, "the first one is not ended");
    world.run(Duration::from_millis(50));
    assert_eq!(world.sas(B).len(), 1);
    assert_eq!(world.sas(B)[0].children.len(), 1);
    world.run(Duration::from_secs(30));
    world.assert_one_of_each();
    assert_eq!(world.reports(A, |r| matches!(r, Report::InitiationFailed { .. })), 0);
    world.assert_planes(1, 1);
}

/// The hint was forged: whenever it comes and whichever attempt is answered first, both sides agree on one IKE SA.
#[test]
fn a_forged_hint_in_ike_auth_ends_with_one_of_each() {
    let ms = Duration::from_millis;
    for late in [10, 30, 45, 60, 200, 1500] {
        for at in [21, 35, 60, 1100] {
            for lose_first in [false, true] {
                let mut world = World::new(25);
                world.network = Box::new(move |_, number, _| match number {
                    2 if lose_first => Some(vec![]),
                    3 => Some(vec![ms(late)]),
                    _ => None,
                });
                world.initiate(A);
                world.run(ms(at));
                let waiting = world.sas(A)[0].id;
                world.at(A, |e, now| e.probe(now, waiting, Duration::ZERO));
                world.run(Duration::from_secs(60));
                world.assert_one_of_each();
                world.assert_planes(1, 1);
                assert_eq!(world.reports(A, |r| matches!(r, Report::InitiationFailed { .. })), 0);
            }
        }
    }
}

/// Neither attempt is answered: the failure is told once.
#[test]
fn two_attempts_side_by_side_fail_as_one() {
    let mut world = World::new(26);
    world.network = Box::new(|_, number, _| (number > 1).then(Vec::new));
    world.initiate(A);
    world.run(Duration::from_millis(25));
    let waiting = world.sas(A)[0].id;
    assert_eq!(world.at(A, |e, now| e.probe(now, waiting, Duration::ZERO)), ProbeResult::Started);
    world.run(Duration::from_secs(60));
    assert!(world.sas(A).is_empty());
    assert_eq!(world.reports(A, |r| matches!(r, Report::InitiationFailed { .. })), 1);
    assert!(world.sides[A].plane.states.is_empty(), "larval SPIs are unknown again");
}

/// The other side's start falls into the very instant of a message of ours, before it is read.
#[test]
fn a_start_in_the_same_instant_as_a_message_ends_with_one_of_each() {
    for messages in 0..5 {
        for seed in 0..20 {
            let mut world = World::new(seed);
            world.initiate(A);
            if messages > 0 {
                world.run(world.latency * messages - Duration::from_nanos(1));
                world.now = world.now.after(Duration::from_nanos(1));
            }
            world.initiate(B);
            // What the other side dropped before IKE_AUTH stays half-open here for 30 s.
            world.run(Duration::from_secs(35));
            world.assert_one_of_each();
            world.run(Duration::from_secs(10));
            world.assert_planes(1, 1);
        }
    }
}

/// RFC 7296 section 2.4: sent once, received it ends the older IKE SAs of that identity.
#[test]
fn initial_contact_ends_the_ike_sa_of_an_earlier_life() {
    let mut world = World::established(19);
    let old = world.sas(B)[0].id;
    let mut fresh = World::new(20);
    // A crashed and starts anew, B has not noticed.
    world.sides[A] = fresh.sides.swap_remove(A);
    world.initiate(A);
    world.run(Duration::from_secs(1));
    world.assert_one_of_each();
    let contact = |r: &Report| matches!(r, Report::IkeDeleted { ike, authority: Authority::InitialContact(_), .. } if *ike == old);
    assert_eq!(world.reports(B, contact), 1);
}

/// An IKE_SA_INIT request may be anybody's: that one came from the peer's address says nothing about who is active.
#[test]
fn a_forged_ike_sa_init_request_keeps_nobody_from_saying_initial_contact() {
    let mut other = World::new(20);
    other.network = Box::new(|_, _, _| Some(vec![]));
    other.initiate(B);
    let sent = other.recorded[0].1.clone();
    let mut world = World::established(19);
    world.sides[A] = World::new(21).sides.swap_remove(A);
    world.inject(A, Datagram { local: sent.remote, remote: sent.local, data: sent.data });
    assert_eq!(world.sas(A).len(), 1, "it is half-open");
    world.initiate(A);
    world.run(Duration::from_secs(1));
    let contact =
        |r: &Report| matches!(r, Report::IkeDeleted { authority: Authority::InitialContact(_), .. });
    assert_eq!(world.reports(B, contact), 1);
    world.run(Duration::from_secs(60));
    world.assert_one_of_each();
}

/// RFC 7296 section 2.4: of two IKE SAs between the same identities that are initiated at once, the first to come to
/// IKE_AUTH is the only one then; the second is not.
#[test]
fn of_two_initiations_to_one_identity_one_says_initial_contact() {
    let with_second = |side: usize| {
        let mut second = connection(side);
        second.name = "second".into();
        second.proposals = vec!["aes256gcm16-prfsha256-x25519".into()];
        second.children = vec![world::child("net2", side, 2)];
        EndpointConfig::new(vec![connection(side), second])
    };
    let both = |world: &mut World| {
        world.initiate(A);
        world.at(A, |e, now| e.initiate(now, "second", None, false)).unwrap();
        world.run(Duration::from_secs(1));
        assert_eq!(world.sas(B).iter().filter(|sa| sa.state == "established").count(), 2);
    };
    let mut world = World::with(22, with_second(A), with_second(B));
    both(&mut world);
    world.sides[A] = World::with(23, with_second(A), with_second(B)).sides.swap_remove(A);
    world.recorded.clear();
    both(&mut world);
    let contact =
        |r: &Report| matches!(r, Report::IkeDeleted { authority: Authority::InitialContact(_), .. });
    assert_eq!(world.reports(B, contact), 2, "both of its earlier life");
    // An empty notification has 8 octets.
    let auth = |(from, d): &&(usize, Datagram)| *from == A && d.data[18] == exchange::IKE_AUTH;
    let sizes: Vec<usize> = world.recorded.iter().filter(auth).map(|(_, d)| d.data.len()).collect();
    assert_eq!((sizes.len(), sizes[0]), (2, sizes[1] + 8));
}

#[test]
fn ike_sa_init_requests_beyond_the_bound_are_ignored() {
    let [a, mut b] = [config(A), config(B)];
    b.max_half_open = 3;
    let mut world = World::with(21, a, b);
    world.network = Box::new(|_, _, _| Some(vec![]));
    world.initiate(A);
    let first = world.recorded[0].1.clone();
    let (local, remote) = (first.remote, first.local);
    world.recorded.clear();
    for i in 1..20u8 {
        let mut data = first.data.clone();
        data[..8].fill(i);
        world.inject(B, Datagram { local, remote, data });
    }
    assert_eq!(world.recorded.len(), 3);
    assert_eq!(world.sas(B).len(), 3);
    world.run(Duration::from_secs(60));
    assert!(world.sas(B).is_empty());
}

/// RFC 7296 section 2.5.
#[test]
fn a_higher_major_version_is_told_ours() {
    let mut world = World::new(22);
    world.network = Box::new(|_, _, _| Some(vec![]));
    world.initiate(A);
    let first = world.recorded[0].1.clone();
    let mut data = first.data.clone();
    data[17] = 0x30;
    world.recorded.clear();
    world.inject(B, Datagram { local: first.remote, remote: first.local, data });
    assert!(has_notify(&world.recorded[0].1, notify::INVALID_MAJOR_VERSION));
    assert_eq!(clear(&world.recorded[0].1).unwrap().header.exchange, exchange::IKE_SA_INIT);
}
