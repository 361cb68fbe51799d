//! Liveness, Deletes, tokens, hints, tombstones, what is unmatched; and mutated messages.

mod world;

use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use spindle_abi::{Spi, Time};
use spindle_ike::api::*;
use spindle_ike::wire::{Message, Payload, exchange, notify};
use std::time::Duration;
use world::{A, B, World, connection, packet_from, token};

fn ike(world: &World, side: usize) -> IkeSaStatus {
    world.sas(side)[0].clone()
}

fn deleted(world: &World, side: usize, which: impl Fn(&Authority) -> bool) -> usize {
    world.reports(side, |r| matches!(r, Report::IkeDeleted { authority, .. } if which(authority)))
}

fn with_dpd(seed: u64) -> World {
    let [a, b] = [A, B].map(|side| {
        let mut connection = connection(side);
        connection.dpd_delay = Duration::from_secs(10);
        EndpointConfig::new(vec![connection])
    });
    World::with(seed, a, b).established_by_a()
}

/// RFC 6290 section 4.2: each side's token comes with IKE_AUTH.
#[test]
fn both_sides_hold_the_others_token_after_ike_auth() {
    let world = World::established(1);
    for side in [A, B] {
        let sa = ike(&world, side);
        let e = &world.sides[side].endpoint;
        assert!(sa.token_held);
        assert!(matches!(e.verify_token(sa.id, &token(1 - side, sa.spis)), Some(Authority::Token(_))));
        assert!(e.verify_token(sa.id, &token(side, sa.spis)).is_none());
        assert!(e.verify_token(sa.id, &[]).is_none());
    }
}

/// RFC 6290 section 4.4: a token by itself, and the peer's acknowledgement of that very one, whatever is lost before.
#[test]
fn a_token_sent_on_wish_is_acknowledged_once_it_arrived() {
    let acknowledged = |world: &World| world.reports(B, |r| matches!(r, Report::TokenAcknowledged { .. }));
    let mut world = World::established(20);
    let sa = ike(&world, B);
    world.network = Box::new(|_, _, _| Some(vec![]));
    assert!(world.at(B, |e, now| e.send_token(now, sa.id) && e.send_token(now, sa.id)));
    world.run(Duration::from_millis(500));
    assert_eq!(acknowledged(&world), 0);
    world.network = Box::new(|_, _, _| None);
    world.run(Duration::from_secs(20));
    assert_eq!(acknowledged(&world), 2, "the second one waited for its turn");
    world.at(B, |e, now| e.probe(now, sa.id, Duration::ZERO));
    world.run(Duration::from_secs(1));
    assert_eq!(acknowledged(&world), 2, "a liveness check's answer acknowledges no token");

    // By a Delete that was exchanged, and only so, both know that the IKE SA is no more.
    assert!(!world.sides[B].endpoint.ended_by_exchange(sa.spis));
    world.at(A, |e, now| e.terminate_ike(now, ike_id(e)).unwrap());
    world.run(Duration::from_secs(1));
    assert!(world.sides[B].endpoint.ended_by_exchange(sa.spis));
    assert!(!world.at(B, |e, now| e.send_token(now, sa.id)));
}

fn ike_id(endpoint: &spindle_ike::Endpoint) -> IkeSaId {
    endpoint.sas()[0].id
}

/// RFC 6290 section 4.3: whoever rekeys the IKE SA, both hold the new one's token, and the old one's is void.
#[test]
fn both_sides_hold_the_new_ike_sas_token_after_a_rekey() {
    for rekeying in [A, B] {
        let mut world = World::established(2);
        let old = ike(&world, A).spis;
        let id = ike(&world, rekeying).id;
        world.at(rekeying, |e, now| e.rekey_ike(now, id)).unwrap();
        world.run(Duration::from_secs(2));
        for side in [A, B] {
            let sa = ike(&world, side);
            assert_ne!(sa.spis, old);
            let e = &world.sides[side].endpoint;
            assert!(e.verify_token(sa.id, &token(1 - side, sa.spis)).is_some());
            assert!(e.verify_token(sa.id, &token(1 - side, old)).is_none());
        }
    }
}

/// RFC 6290 section 3: silently; what was lost is made again when recovery says so.
#[test]
fn a_proof_deletes_silently_and_nothing_starts_by_itself() {
    let mut world = World::established(3);
    world.send_esp(A);
    let sa = ike(&world, A);
    let proof = world.sides[A].endpoint.verify_token(sa.id, &token(B, sa.spis)).unwrap();
    world.sides[B] = World::new(33).sides.swap_remove(B);
    world.recorded.clear();
    world.at(A, |e, now| e.delete_ike_sa(now, sa.id, proof));
    world.run(Duration::from_secs(10));
    assert_eq!(world.recorded, []);
    assert_eq!(deleted(&world, A, |a| matches!(a, Authority::Token(_))), 1);
    world.at(A, |e, now| e.initiate(now, "peer", Some("net"), true)).unwrap();
    world.run(Duration::from_secs(1));
    world.assert_one_of_each();
}

#[test]
fn a_taker_that_is_switched_off_holds_no_token() {
    let [mut a, b] = [world::config(A), world::config(B)];
    a.token_taker = false;
    let world = World::with(4, a, b).established_by_a();
    assert!(!ike(&world, A).token_held && ike(&world, B).token_held);
}

/// RFC 7296 section 2.4: liveness is asked for where nothing authenticated came, ESP included.
#[test]
fn liveness_is_checked_only_without_evidence() {
    let mut world = with_dpd(5);
    world.recorded.clear();
    world.traffic = Some(Duration::from_secs(1));
    world.run(Duration::from_secs(60));
    assert_eq!(world.recorded.len(), 0, "ESP is evidence");
    world.traffic = None;
    world.run(Duration::from_secs(60));
    assert!(!world.recorded.is_empty());
    world.assert_one_of_each();
    world.network = Box::new(|_, _, _| Some(vec![]));
    world.run(Duration::from_secs(60));
    assert_eq!(deleted(&world, A, |a| matches!(a, Authority::Timeout(_))), 1);
    assert_eq!(deleted(&world, B, |a| matches!(a, Authority::Timeout(_))), 1);
    world.assert_planes(0, 0);
}

/// RFC 7296 section 2.4: unauthenticated messages are no evidence of life; nor is the peer's last request, which was
/// authentic once and comes again, though it is answered again (section 2.1).
#[test]
fn forged_and_repeated_messages_do_not_put_off_a_liveness_check() {
    let mut world = with_dpd(6);
    world.recorded.clear();
    let at_b = ike(&world, B).id;
    world.at(B, |e, now| e.probe(now, at_b, Duration::ZERO));
    world.run(Duration::from_secs(1));
    let Datagram { local, remote, data } = world.recorded[0].1.clone();
    let repeated = Datagram { local: remote, remote: local, data };
    world.network = Box::new(|_, _, _| Some(vec![]));
    world.recorded.clear();
    let sa = ike(&world, A);
    for _ in 0..11 {
        world.run(Duration::from_secs(1));
        let header = Header {
            spis: sa.spis,
            next_payload: 0,
            exchange: exchange::INFORMATIONAL,
            response: true,
            initiator: false,
            message_id: 2,
        };
        let payload =
            Payload::Notify(Notify { kind: notify::INVALID_IKE_SPI, protocol: 0, spi: vec![], data: vec![] });
        let data = Message { header, payloads: vec![payload] }.emit();
        world.inject(A, Datagram { local: sa.local, remote: sa.remote, data });
        world.inject(A, repeated.clone());
    }
    let informational = |response: u8| {
        let of_a =
            world.recorded.iter().filter(|(from, d)| *from == A && d.data[18] == exchange::INFORMATIONAL);
        of_a.filter(|(_, d)| d.data[19] & 0x20 == response).count()
    };
    assert_eq!(informational(0x20), 11, "the repeated one is answered each time");
    assert!(informational(0) > 0, "and the check begins");
    assert!(world.sides[A].unmatched.iter().all(|u| matches!(u, Unmatched::Clear { .. })));
    assert_eq!(world.sides[A].unmatched.len(), 11);
}

#[test]
fn a_probe_starts_one_exchange_and_sends_it_again_on_further_hints() {
    let mut world = World::established(7);
    world.network = Box::new(|_, _, _| Some(vec![]));
    let id = ike(&world, A).id;
    let second = Duration::from_secs(1);
    world.recorded.clear();
    let probe = |world: &mut World| world.at(A, |e, now| e.probe(now, id, second));
    assert_eq!(probe(&mut world), ProbeResult::Started);
    assert_eq!(world.recorded.len(), 1);
    assert_eq!(probe(&mut world), ProbeResult::TooSoon);
    world.now = world.now.after(second);
    assert_eq!(probe(&mut world), ProbeResult::SentAgain);
    assert_eq!(world.recorded.len(), 2);
    assert_eq!(world.recorded[0].1, world.recorded[1].1);
    assert_eq!(world.at(A, |e, now| e.probe(now, IkeSaId(999), second)), ProbeResult::NoSuchSa);
}

/// RFC 7296 section 1.4.1.
#[test]
fn an_ike_sa_is_deleted_by_either_side_and_a_tombstone_stands() {
    for side in [A, B] {
        let mut world = World::established(8);
        let sa = ike(&world, side);
        world.recorded.clear();
        world.at(side, |e, now| e.terminate_ike(now, sa.id)).unwrap();
        world.run(Duration::from_secs(1));
        assert!(world.sas(A).is_empty() && world.sas(B).is_empty());
        assert_eq!(deleted(&world, 1 - side, |a| matches!(a, Authority::Delete(_))), 1);
        world.assert_planes(0, 0);
        // The answer was lost, the Delete comes again: the same answer.
        let (request, response) = (world.recorded[0].1.clone(), world.recorded[1].1.clone());
        let again = Datagram { local: request.remote, remote: request.local, data: request.data.clone() };
        world.recorded.clear();
        world.inject(1 - side, again.clone());
        assert_eq!(world.recorded[0].1, response);
        // Another request is recovery's to judge, and the tombstone is told; later there is none.
        let mut other = again.clone();
        other.data[23] += 1;
        world.inject(1 - side, other.clone());
        let tombstone = |u: &Unmatched| matches!(u, Unmatched::ProtectedRequest { tombstone: true, .. });
        assert!(world.sides[1 - side].unmatched.last().is_some_and(tombstone));
        world.run(Duration::from_secs(130));
        world.inject(1 - side, other);
        assert!(!world.sides[1 - side].unmatched.last().is_some_and(tombstone));
    }
}

/// RFC 7296 section 2.21.4: a response outside any IKE SA is never answered.
#[test]
fn requests_to_unknown_spis_are_unmatched_and_responses_are_silence() {
    let mut world = World::established(9);
    let sa = ike(&world, A);
    world.recorded.clear();
    world.at(A, |e, now| e.probe(now, sa.id, Duration::ZERO));
    let mut data = world.recorded[0].1.data.clone();
    data[8..16].fill(7);
    let datagram = Datagram { local: sa.remote, remote: sa.local, data };
    world.inject(B, datagram.clone());
    assert!(matches!(world.sides[B].unmatched[..], [Unmatched::ProtectedRequest { tombstone: false, .. }]));
    let mut response = datagram;
    response.data[19] |= 0x20;
    world.inject(B, response);
    assert_eq!(world.sides[B].unmatched.len(), 1);
}

/// RFC 7296 section 1.5: INVALID_SPI under protection, with the SPI; section 1.4.1: and the Delete of what may still send
/// on it. Where nothing does, no SA changes.
#[test]
fn an_unknown_spi_is_told_under_protection_one_at_a_time() {
    let mut world = World::established(16);
    let [sa, at_b] = [A, B].map(|side| ike(&world, side));
    let e = &world.sides[A].endpoint;
    let plain = |address: std::net::SocketAddr| std::net::SocketAddr::new(address.ip(), 0);
    assert_eq!(e.find_by_esp_ends(plain(sa.local), plain(sa.remote)), [sa.id]);
    assert_eq!(e.find_by_esp_ends(sa.local, sa.remote), [sa.id]);
    let elsewhere = "192.0.2.2:4501".parse().unwrap();
    assert_eq!(e.find_by_esp_ends(sa.local, elsewhere), [], "another port of UDP");
    assert_eq!(e.find_by_esp_ends(plain(sa.remote), plain(sa.remote)), [], "not our address there");
    world.recorded.clear();
    let spi = Spi(0xdead_beef);
    assert!(world.at(A, |e, now| e.notify_invalid_spi(now, sa.id, spi)));
    let other = Spi(0xbeef_dead);
    assert!(world.at(A, |e, now| e.notify_invalid_spi(now, sa.id, other)), "told after the one under way");
    assert!(!world.at(A, |e, now| e.notify_invalid_spi(now, sa.id, spi)), "one waits already");
    assert_eq!(world.recorded.len(), 1);
    // Header, SK header, IV, Notify with four octets of data, Delete, pad length, ICV: there is no room for a token.
    assert_eq!(world.recorded[0].1.data.len(), 28 + 4 + 8 + 12 + 12 + 1 + 16);
    world.run(Duration::from_secs(10));
    assert_eq!(world.recorded.len(), 4, "two requests and their responses");
    let told = |r: &Report| *r == Report::InvalidSpi { ike: at_b.id, spi, child: None };
    assert_eq!(world.reports(B, told), 1);
    // One that is in use here is no unknown one.
    assert!(!world.at(A, |e, now| e.notify_invalid_spi(now, sa.id, at_b.children[0].outbound)));
    world.run(Duration::from_secs(10));
    assert_eq!((ike(&world, A), ike(&world, B)), (sa.clone(), at_b));
    world.assert_one_of_each();
    world.at(A, |e, now| e.terminate_ike(now, sa.id)).unwrap();
    assert!(!world.at(A, |e, now| e.notify_invalid_spi(now, sa.id, spi)), "it is being closed");
    world.run(Duration::from_secs(10));
    assert_eq!(world.sides[A].endpoint.find_by_esp_ends(plain(sa.local), plain(sa.remote)), []);
}

/// The peer lost a Child SA and tells, by INVALID_SPI and Delete or by the notification alone; at the same time it may
/// make the Child SA anew itself. RFC 7296 section 2.8.1: of two that crossed, the one with the lowest nonce goes.
#[test]
fn a_child_sa_that_the_peer_lost_is_made_again_once_whatever_crosses() {
    let told = |r: &Report| matches!(r, Report::InvalidSpi { child: Some(name), .. } if name == "net");
    for (seed, by_delete) in (0..24).map(|n| (n, n % 2 == 0)) {
        for peers_wish in [None, Some(1), Some(9), Some(19), Some(29), Some(41)] {
            for slow in [10, 35] {
                let mut world = World::established(seed);
                let latencies = [Duration::from_millis(10), Duration::from_millis(slow)];
                world.network = Box::new(move |from, _, _| Some(vec![latencies[from]]));
                let [sa, at_b] = [A, B].map(|side| ike(&world, side));
                let lost = at_b.children[0].clone();
                world.at(B, |e, now| e.forget_child(now, lost.id)).unwrap();
                let mut wishes: Vec<(u64, bool)> = peers_wish.map(|at| (at, true)).into_iter().collect();
                wishes.push((if by_delete { slow + 1 } else { 20 }, false));
                wishes.sort();
                if by_delete {
                    assert!(world.at(B, |e, now| e.notify_invalid_spi(now, at_b.id, lost.inbound)));
                }
                let start = world.now;
                for (at, peers) in wishes {
                    world.run(start.after(Duration::from_millis(at)).since(world.now));
                    if peers {
                        world.at(B, |e, now| e.initiate(now, "peer", Some("net"), false)).unwrap();
                    } else {
                        assert_eq!(world.reports(A, told), usize::from(by_delete));
                        world.at(A, |e, now| e.rebuild_child(now, sa.id, lost.inbound, "net"));
                    }
                }
                world.run(Duration::from_secs(20));
                world.assert_one_of_each();
                assert_ne!(ike(&world, B).children[0].inbound, lost.inbound);
            }
        }
    }
}

#[test]
fn own_spis_are_in_use_while_half_open_rekeyed_or_established() {
    let mut world = World::new(10);
    world.initiate(A);
    let half_open = ike(&world, A).spis.initiator;
    assert!(world.sides[A].endpoint.spi_in_use(half_open));
    world.run(Duration::from_secs(1));
    let sa = ike(&world, A);
    assert!(world.sides[B].endpoint.spi_in_use(sa.spis.responder));
    assert_eq!(world.sides[A].endpoint.find_by_spis(sa.spis), Some(sa.id));
    let outbound = sa.children[0].outbound;
    assert_eq!(world.sides[A].endpoint.find_by_outbound_spi(outbound), [sa.id]);
    // The new SPI is in use from the request on.
    world.recorded.clear();
    let before = world.sent;
    world.network = Box::new(|_, _, _| Some(vec![]));
    world.at(A, |e, now| e.rekey_ike(now, sa.id)).unwrap();
    assert_eq!(world.sent, before + 1);
    world.run(Duration::from_secs(60));
    assert!(world.sas(A).is_empty());
    assert!(!world.sides[A].endpoint.spi_in_use(sa.spis.initiator));
}

#[test]
fn recently_removed_outbound_spis_still_lead_to_the_ike_sa() {
    let mut world = World::established(11);
    let sa = ike(&world, A);
    let old = sa.children[0].outbound;
    world.at(A, |e, now| e.rekey_child(now, sa.children[0].id)).unwrap();
    world.run(Duration::from_secs(10));
    let id = ike(&world, A).id;
    world.at(A, |e, now| e.rekey_ike(now, id)).unwrap();
    world.run(Duration::from_secs(10));
    let id = ike(&world, A).id;
    assert_eq!(world.sides[A].endpoint.find_by_outbound_spi(old), [id]);
    world.run(Duration::from_secs(120));
    assert!(world.sides[A].endpoint.find_by_outbound_spi(old).is_empty());
}

/// A recorded session, every message of it mutated: no panic, and no SA goes.
#[test]
fn mutated_messages_never_panic_nor_delete_an_sa() {
    let mut world = World::established(12);
    for side in [A, B] {
        let sa = ike(&world, side);
        world.at(side, |e, now| e.rekey_child(now, sa.children[0].id)).unwrap();
        world.run(Duration::from_secs(6));
        world.at(side, |e, now| e.rekey_ike(now, sa.id)).unwrap();
        world.run(Duration::from_secs(6));
    }
    world.run(Duration::from_secs(200));
    let (a, b) = (ike(&world, A).spis, ike(&world, B).spis);
    let session = std::mem::take(&mut world.recorded);
    assert!(session.len() > 20);
    world.network = Box::new(|_, _, _| Some(vec![]));
    let mut rng = ChaCha12Rng::seed_from_u64(1);
    for (from, sent) in &session {
        for _ in 0..300 {
            let mut data = sent.data.clone();
            for _ in 0..1 + rng.next_u32() % 3 {
                let at = rng.next_u32() as usize % data.len();
                match rng.next_u32() % 8 {
                    0 => data.truncate(at.max(1)),
                    1 => data.insert(at, rng.next_u32() as u8),
                    // The SPIs of a living IKE SA.
                    2 if data.len() >= 16 => {
                        data[..8].copy_from_slice(&a.initiator);
                        data[8..16].copy_from_slice(&a.responder);
                    }
                    _ => data[at] ^= 1 << (rng.next_u32() % 8),
                }
            }
            let to = 1 - from;
            world.inject(to, Datagram { local: sent.remote, remote: sent.local, data });
        }
        world.recorded.clear();
    }
    world.network = Box::new(|_, _, _| None);
    world.run(Duration::from_secs(120));
    assert_eq!((ike(&world, A).spis, ike(&world, B).spis), (a, b));
    world.assert_one_of_each();
}

#[test]
fn soft_lifetimes_rekey_by_themselves() {
    let [a, b] = [A, B].map(|side| {
        let mut connection = connection(side);
        connection.rekey_time = Duration::from_secs(100);
        connection.children[0].rekey_time = Duration::from_secs(30);
        EndpointConfig::new(vec![connection])
    });
    let mut world = World::with(13, a, b).established_by_a();
    world.traffic = Some(Duration::from_millis(50));
    let (first, child) = (ike(&world, A).id, ike(&world, A).children[0].id);
    world.run(Duration::from_secs(400));
    assert_eq!(world.lost, 0);
    let rekeyed = world.reports(A, |r| matches!(r, Report::IkeRekeyed { .. }));
    assert!((3..=8).contains(&rekeyed), "{rekeyed} IKE rekeys in 400 s");
    assert_ne!((ike(&world, A).id, ike(&world, A).children[0].id), (first, child));
}

#[test]
fn a_shut_down_takes_leave_of_every_peer() {
    let mut world = World::established(14);
    world.at(B, |e, now| e.shut_down(now));
    world.run(Duration::from_secs(1));
    assert!(world.sas(A).is_empty() && world.sas(B).is_empty());
    world.assert_planes(0, 0);
    world.initiate(A);
    world.run(Duration::from_secs(1));
    assert!(world.sas(B).is_empty());
    assert!(world.now > Time(0));
}

/// With ten thousand peers a burst of as many Deletes would be more than links and sockets have room for.
#[test]
fn a_shut_down_takes_leave_of_many_peers_one_after_the_other() {
    const PEERS: usize = 100;
    let [a, b] = [A, B].map(|side| {
        let of_peer = |n: usize| {
            let id = |at: usize| Identity::Fqdn(format!("gw{n}.{at}.example"));
            let (name, local_id, remote_id) = (format!("peer{n}"), id(side), id(1 - side));
            let mut child = world::child("net", side, 0);
            child.policy = n as u32 + 1;
            ConnectionConfig { name, local_id, remote_id, children: vec![child], ..connection(side) }
        };
        EndpointConfig::new((0..PEERS).map(of_peer).collect::<Vec<_>>())
    });
    let mut world = World::with(16, a, b);
    for n in 0..PEERS {
        world.at(A, |e, now| e.initiate(now, &format!("peer{n}"), None, false)).unwrap();
        world.run(Duration::from_millis(100));
    }
    assert_eq!([A, B].map(|side| world.sas(side).len()), [PEERS; 2]);
    let (began, sent) = (world.now, world.sent);
    let last = world.at(B, |e, now| e.shut_down(now));
    assert_eq!(last.since(began), Duration::from_millis(20));
    assert_eq!(world.sent - sent, 1);
    world.run(Duration::from_millis(10));
    assert!((40..110).contains(&(world.sent - sent)), "{}", world.sent - sent);
    world.run(Duration::from_millis(200));
    assert_eq!(world.sent - sent, 2 * PEERS as u64);
    assert_eq!([A, B].map(|side| world.sas(side).len()), [0; 2]);
}

#[test]
fn traffic_that_waits_initiates_and_shortens_the_back_off() {
    let mut world = World::new(15);
    world.network = Box::new(|_, _, _| Some(vec![]));
    world.at(A, |e, now| e.acquire(now, 1, packet_from(A)));
    for _ in 0..60 {
        world.run(Duration::from_secs(1));
        world.at(A, |e, now| e.acquire(now, 1, packet_from(A)));
    }
    world.network = Box::new(|_, _, _| None);
    let start = world.now;
    while world.sas(A).iter().all(|sa| sa.children.is_empty()) {
        world.run(Duration::from_millis(100));
        world.at(A, |e, now| e.acquire(now, 1, packet_from(A)));
        assert!(world.now.since(start) < Duration::from_millis(2500), "{:?}", world.sas(A));
    }
    world.run(Duration::from_secs(1));
    world.assert_one_of_each();
}
