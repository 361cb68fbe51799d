//! A planned take-down, and redirects of established IKE SAs (RFC 5685 section 5). Both roles, each message lost, doubled or
//! late.

mod world;

use spindle_ike::api::*;
use spindle_ike::wire::{Payload, exchange, notify};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use world::peer::Peer;
use world::redirects::*;
use world::{A, B, C, World, address, connection, packet_from};

/// RFC 5685 section 5: REDIRECT without a nonce, answered; then the IKE SA with the other gateway, and only when that
/// stands the Delete of the old one: no packet finds no SA.
#[test]
fn a_redirected_client_makes_its_new_ike_sa_before_it_deletes_the_old_one() {
    let mut world = established(1);
    world.traffic = Some(5 * MS);
    world.run(SECOND);
    take_down(&mut world, Some(address(C)));
    world.run(SECOND);
    assert_eq!((redirected(&world), followed(&world)), (1, 1));
    assert_eq!(exchanged(&world, A).len(), 1);
    assert!(matches!(exchanged(&world, A)[0], Authority::Superseded(_)), "by its own Delete");
    assert!(matches!(exchanged(&world, B)[..], [Authority::Delete(_)]));
    // B's own packets find no SA once the old one is gone, but none did before.
    let before = world.lost;
    world.traffic = None;
    world.run(10 * SECOND);
    assert_eq!(world.lost, before);
    assert_moved(&mut world);
    assert_eq!(refusals(&world), Vec::<String>::new());
    // Section 3: REDIRECTED_FROM names who redirected (section 9.3), and REDIRECT_SUPPORTED went to the first one.
    let from = notifies_sent(&world, A, notify::REDIRECTED_FROM);
    assert_eq!(from.len(), 1);
    assert_eq!(from[0].data, [1, 4, 192, 0, 2, 2]);
    let supported = notifies_sent(&world, A, notify::REDIRECT_SUPPORTED);
    assert_eq!(supported.len(), 1);
    assert_eq!((supported[0].protocol, supported[0].spi.len(), supported[0].data.len()), (0, 0, 0));
    assert_eq!(notifies_sent(&world, B, notify::REDIRECT), [], "protected alone");
}

/// Not a packet of the client's is lost in such a move.
#[test]
fn no_packet_of_the_client_is_lost_in_a_redirect() {
    for latency in [0, 10, 50] {
        let mut world = world(2);
        world.latency = latency * MS;
        let mut world = world.established_by_a();
        let mut sent = 0;
        for step in 0..400 {
            if step == 50 {
                take_down(&mut world, Some(address(C)));
            }
            world.send_esp(A);
            sent += 1;
            world.run(5 * MS);
        }
        world.run(SECOND);
        assert_eq!(world.lost, 0);
        let arrived = world.delivered[B] + world.delivered[C];
        // One packet was sent when the tunnel was looked at.
        assert_eq!(arrived, sent + 1, "{latency} ms");
        assert!(world.delivered[C] > 100);
    }
}

/// Each message lost, doubled or late: one IKE SA with the other gateway, none with the first.
#[test]
fn no_single_loss_or_copy_changes_the_end_of_a_redirect() {
    for position in 0..9 {
        for fate in [vec![], vec![10 * MS, 10 * MS], vec![10 * MS, 900 * MS], vec![1500 * MS]] {
            let mut world = established(3);
            let (first, chosen) = (world.sent, fate.clone());
            world.network =
                Box::new(move |_, number, _| (number == first + position).then(|| chosen.clone()));
            take_down(&mut world, Some(address(C)));
            world.run(40 * SECOND);
            assert_moved(&mut world);
            // Where the answer to REDIRECT is lost or late, the client's Delete comes first, which is as good.
            let acknowledged = position != 1 || fate.first() == Some(&(10 * MS));
            let counted = (redirected(&world), followed(&world));
            assert_eq!(counted, (usize::from(acknowledged), 1), "{position} {fate:?}");
        }
    }
}

/// The same where there is nowhere to go: the Delete is exchanged, and nothing begins again until there is traffic.
#[test]
fn without_another_gateway_the_peer_is_told_by_a_delete_whoever_initiated() {
    for initiator in [A, B] {
        for position in 0..2 {
            for fate in [vec![10 * MS], vec![], vec![10 * MS, 10 * MS], vec![1500 * MS]] {
                let mut world = world(4);
                world.initiate(initiator);
                world.run(SECOND);
                let spis = world.sas(B)[0].spis;
                let first = world.sent;
                world.network =
                    Box::new(move |_, number, _| (number == first + position).then(|| fate.clone()));
                take_down(&mut world, None);
                world.run(20 * SECOND);
                assert_eq!((world.sas(A), world.sas(B)), (vec![], vec![]));
                assert!([A, B].iter().all(|side| world.sides[*side].endpoint.ended_by_exchange(spis)));
                assert!(matches!(exchanged(&world, A)[..], [Authority::Delete(_)]));
                assert_eq!(redirected(&world), 0);
            }
        }
    }
}

/// RFC 5685 section 3: who did not say that it may be redirected MUST NOT be; section 10: nor may an original responder.
#[test]
fn only_an_original_initiator_that_said_so_is_redirected() {
    for (config, initiator) in [(client(vec![]), A), (client(vec![address(C)]), B)] {
        let mut world = world_with(5, config);
        world.initiate(initiator);
        world.run(SECOND);
        let ike = world.sas(B)[0].id;
        world.recorded.clear();
        take_down(&mut world, Some(address(C)));
        assert!(!world.sides[B].endpoint.may_redirect(ike));
        world.run(SECOND);
        assert_eq!((redirected(&world), followed(&world)), (0, 0));
        assert!(matches!(exchanged(&world, A)[..], [Authority::Delete(_)]));
        assert_eq!(world.recorded.len(), 2, "a Delete and its answer");
    }
    // Nor where the original responder would go where it is sent, and has said so before.
    let willing = |c| EndpointConfig::new(vec![ConnectionConfig { redirect_to: vec![address(C)], ..c }]);
    let configs = [connection(A), connection(B), other_gateway()].map(willing);
    let mut world = World::of(26, configs.into_iter().collect());
    world.initiate(B);
    world.run(SECOND);
    take_down(&mut world, Some(address(C)));
    world.run(SECOND);
    assert_eq!((redirected(&world), followed(&world)), (0, 0));
    assert!(matches!(exchanged(&world, A)[..], [Authority::Delete(_)]));
    assert_eq!(notifies_sent(&world, B, notify::REDIRECT_SUPPORTED).len(), 1);
}

/// The right to redirect goes with the IKE SA through rekeys, whoever makes them.
#[test]
fn a_rekeyed_ike_sa_s_peer_is_redirected_all_the_same() {
    for side in [A, B] {
        let mut world = established(6);
        let ike = world.sas(side)[0].id;
        world.at(side, |e, now| e.rekey_ike(now, ike)).unwrap();
        world.run(3 * SECOND);
        take_down(&mut world, Some(address(C)));
        world.run(20 * SECOND);
        assert_eq!(redirected(&world), 1);
        assert_moved(&mut world);
    }
    // And the rekey that is under way when REDIRECT comes: the successor is left behind.
    for side in [A, B] {
        let mut world = established(7);
        let ike = world.sas(side)[0].id;
        world.at(side, |e, now| e.rekey_ike(now, ike)).unwrap();
        take_down(&mut world, Some(address(C)));
        world.run(40 * SECOND);
        assert_moved(&mut world);
    }
}

/// RFC 5685 section 5: the gateway deletes what the client does not, after a while; a client that cannot reach the other
/// gateway has lost nothing until then, and comes to the first one again.
#[test]
fn a_client_that_does_not_get_there_is_deleted_after_the_grace() {
    let mut world = established(8);
    world.network = Box::new(|from, _, d| (from == C || d.remote.ip() == address(C)).then(Vec::new));
    take_down(&mut world, Some(address(C)));
    world.run(GRACE - SECOND);
    assert_eq!((world.sas(B).len(), redirected(&world)), (1, 1));
    world.assert_passes();
    world.run(2 * SECOND);
    assert_eq!(world.sas(B), []);
    assert!(matches!(exchanged(&world, B)[..], [Authority::Local(_)]));
    world.run(30 * SECOND);
    assert_eq!(world.sas(A), [], "the initiation was given up");
    world.network = Box::new(|_, _, _| None);
    world.initiate(A);
    world.run(SECOND);
    assert_moved(&mut world);
}

/// The same where the IKE SA is rekeyed within the grace: its successor is deleted when that one was to be.
#[test]
fn a_rekey_within_the_grace_does_not_put_off_the_delete() {
    for side in [A, B] {
        let mut world = established(22);
        world.network = Box::new(|from, _, d| (from == C || d.remote.ip() == address(C)).then(Vec::new));
        take_down(&mut world, Some(address(C)));
        world.run(GRACE / 2);
        let ike = world.sas(side).into_iter().find(|sa| sa.state == "established").unwrap().id;
        world.at(side, |e, now| e.rekey_ike(now, ike)).unwrap();
        world.run(GRACE / 2 - SECOND);
        let rekeyed = world.reports(B, |r| matches!(r, Report::IkeRekeyed { .. }));
        assert_eq!((rekeyed, world.sas(B).len()), (1, 1));
        world.run(2 * SECOND);
        assert_eq!(world.sas(B), [], "rekeyed by {side}");
    }
}

/// The client remembers through a rekey that it was sent away: once the IKE SA with the other gateway stands, it deletes
/// the successor by an exchange, and does not wait for the grace to end. (Nothing was heard on it since that one began.)
#[test]
fn a_rekeyed_ike_sa_is_left_by_a_delete_as_soon_as_the_other_gateway_is_reached() {
    let mut world = established(23);
    // The first attempt never comes to its end.
    let first = Rc::new(Cell::new([0; 8]));
    let lost = first.clone();
    world.network = Box::new(move |from, _, d| {
        let at_c = from == A && d.remote.ip() == address(C);
        let is_auth = d.data[18] == exchange::IKE_AUTH && [[0; 8], lost.get()].contains(&spi_i(d));
        let at_first = is_auth || lost.get() == spi_i(d);
        if at_c && lost.get() == [0; 8] {
            lost.set(spi_i(d));
        }
        (at_c && at_first).then(Vec::new)
    });
    take_down(&mut world, Some(address(C)));
    world.run(SECOND);
    let of = |world: &World, state: &str| world.sas(A).into_iter().find(|sa| sa.state == state).unwrap();
    let (old, attempt) = (of(&world, "established"), of(&world, "connecting"));
    assert_eq!(attempt.spis.initiator, first.get());
    world.at(A, |e, now| e.rekey_ike(now, old.id)).unwrap();
    world.run(SECOND);
    assert_eq!(world.reports(A, |r| matches!(r, Report::IkeRekeyed { .. })), 1);
    // A hint that the other gateway lost that attempt: another one begins beside it.
    assert_eq!(world.at(A, |e, now| e.probe(now, attempt.id, Duration::ZERO)), ProbeResult::Started);
    world.run(SECOND);
    assert_eq!(world.sas(B), [], "it is deleted at once");
    assert!(matches!(exchanged(&world, B).last(), Some(Authority::Delete(_))));
}

fn spi_i(datagram: &Datagram) -> [u8; 8] {
    *datagram.data.first_chunk().unwrap()
}

/// RFC 5685 section 10: only the original responder redirects, whatever the original initiator has announced.
#[test]
fn an_original_initiator_s_redirect_is_not_followed() {
    let willing = ConnectionConfig { redirect_to: vec![address(C)], ..connection(B) };
    let mut world = World::with(24, world::config(A), EndpointConfig::new(vec![willing]));
    let (mut peer, authenticating) = Peer::half_open_saying(&mut world, vec![redirect_supported()]);
    peer.request(&mut world, exchange::IKE_AUTH, &authenticating);
    assert_eq!(world.sas(B)[0].state, "established");
    let sent = world.recorded.len();
    let answer = peer.request(
        &mut world,
        exchange::INFORMATIONAL,
        &[Payload::Notify(redirect(vec![1, 4, 192, 0, 2, 3]))],
    );
    assert_eq!(answer, []);
    world.run(SECOND);
    assert_eq!(world.recorded.len(), sent + 1, "the answer and nothing else");
    assert_eq!(world.reports(B, |r| matches!(r, Report::RedirectFollowed { .. })), 0);
    assert_eq!(world.sas(B).len(), 1);
}

/// Our own initiations end with the take-down, or as soon as they stand; none begins.
#[test]
fn a_gateway_that_is_taken_down_begins_nothing() {
    for delay in [0, 5, 25, 35] {
        let mut world = world(19);
        world.initiate(B);
        world.run(delay * MS);
        take_down(&mut world, None);
        assert_eq!(world.sas(B).is_empty(), delay < 20, "nothing authenticated is lost by it");
        world.run(60 * SECOND);
        assert_eq!((world.sas(A), world.sas(B)), (vec![], vec![]), "{delay}");
        let refused = world.at(B, |e, now| e.initiate(now, "peer", None, false));
        assert_eq!(refused, Err(Refused::TakenDown));
        let sent = world.sent;
        world.at(B, |e, now| e.acquire(now, 1, packet_from(B)));
        world.run(SECOND);
        assert_eq!(world.sent, sent);
    }
}

/// The other gateway crashes, and shows its token: the next attempt goes there again, not to the one taken down. One that
/// it does not answer any more goes back to the configuration's.
#[test]
fn after_a_token_of_the_other_gateway_the_client_begins_there_again() {
    let mut world = established(20);
    take_down(&mut world, Some(address(C)));
    world.run(SECOND);
    assert_moved(&mut world);
    let sa = world.sas(A)[0].clone();
    world.recorded.clear();
    world.at(A, |e, now| {
        let authority = e.verify_token(sa.id, &world::token(C, sa.spis)).expect("C's token");
        e.delete_ike_sa(now, sa.id, authority);
        e.initiate(now, "peer", None, true).unwrap();
    });
    assert_eq!(world.recorded[0].1.remote.ip(), address(C));
    world.run(SECOND);
    let spis = world.sas(A)[0].spis;
    assert_ne!(spis, sa.spis);
    assert!(world.sas(C).iter().any(|sa| sa.spis == spis));
    // Told by a Delete, it has no reason to go there.
    world.recorded.clear();
    let ike = world.sas(A)[0].id;
    world.at(A, |e, now| e.terminate_ike(now, ike)).unwrap();
    world.run(SECOND);
    world.recorded.clear();
    world.initiate(A);
    assert_eq!(world.recorded[0].1.remote.ip(), address(B));
}

/// `redirect_to` names gateways of the peer: one of them may begin an IKE SA as well.
#[test]
fn the_other_gateway_may_initiate_too() {
    for (redirect_to, made) in [(vec![address(C)], 1), (vec![], 0)] {
        let mut world = world_with(21, client(redirect_to));
        world.initiate(C);
        world.run(SECOND);
        assert_eq!(world.sas(A).len(), made);
    }
}
