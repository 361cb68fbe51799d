//! Redirects and a planned take-down (RFC 5685): A is the client, B the gateway that is taken down, C its other one, with
//! the same identity and key. Both roles, each message lost, doubled or late.

mod world;

use spindle_ike::api::*;
use spindle_ike::wire::{Message, Payload, exchange, notify};
use std::cell::Cell;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;
use world::peer::Peer;
use world::{A, B, C, World, address, connection, packet_from};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
/// What B gives its peers to get to C.
const GRACE: Duration = Duration::from_secs(8);

/// C's: B's, at its own address.
fn other_gateway() -> ConnectionConfig {
    ConnectionConfig { local: address(C), ..connection(B) }
}

fn client(redirect_to: Vec<IpAddr>) -> ConnectionConfig {
    ConnectionConfig { redirect_to, ..connection(A) }
}

fn world_with(seed: u64, client: ConnectionConfig) -> World {
    let configs = [client, connection(B), other_gateway()];
    World::of(seed, configs.into_iter().map(|c| EndpointConfig::new(vec![c])).collect())
}

/// A may be redirected to C.
fn world(seed: u64) -> World {
    world_with(seed, client(vec![address(C)]))
}

fn established(seed: u64) -> World {
    world(seed).established_by_a()
}

/// B is taken down, and each of its IKE SAs dismissed.
fn take_down(world: &mut World, to: Option<IpAddr>) {
    world.at(B, |e, now| {
        e.take_down(now, to, GRACE);
        for sa in e.sas() {
            e.dismiss(now, sa.id);
        }
    });
}

fn exchanged(world: &World, side: usize) -> Vec<Authority> {
    let deleted = |r: &Report| match r {
        Report::IkeDeleted { authority, .. } => Some(authority.clone()),
        _ => None,
    };
    world.sides[side].reports.iter().filter_map(deleted).collect()
}

fn redirected(world: &World) -> usize {
    world.reports(B, |r| matches!(r, Report::Redirected { to, .. } if *to == address(C)))
}

fn followed(world: &World) -> usize {
    world.reports(A, |r| matches!(r, Report::RedirectFollowed { .. }))
}

fn refusals(world: &World) -> Vec<String> {
    let refused = |r: &Report| match r {
        Report::RedirectRefused { reason, .. } => Some(reason.clone()),
        _ => None,
    };
    world.sides[A].reports.iter().filter_map(refused).collect()
}

/// A and C hold the same single IKE SA with one Child SA, and B none.
#[track_caller]
fn assert_moved(world: &mut World) {
    let [a, c] = [A, C].map(|side| {
        let sas = world.sas(side);
        assert_eq!(sas.len(), 1, "IKE SAs of {side}: {sas:#?}");
        assert_eq!((sas[0].state, sas[0].children.len()), ("established", 1));
        sas[0].clone()
    });
    assert_eq!((a.spis, a.children[0].inbound), (c.spis, c.children[0].outbound));
    assert_eq!(a.remote, world.sides[C].address);
    assert_eq!(world.sas(B), []);
    let (before, lost) = (world.delivered, world.lost);
    world.send_esp(A);
    world.send_esp(C);
    world.run(world.latency * 2);
    assert_eq!(world.lost, lost);
    assert!(world.delivered[A] > before[A] && world.delivered[C] > before[C]);
}

/// In clear, of the messages that `from` sent: the notifications.
fn notifies_sent(world: &World, from: usize, kind: u16) -> Vec<Notify> {
    let sent = world.recorded.iter().filter(|(side, _)| *side == from);
    let payloads = sent.filter_map(|(_, d)| Message::parse(&d.data).ok()).flat_map(|m| m.payloads);
    let notifies = payloads.filter_map(|p| match p {
        Payload::Notify(n) if n.kind == kind => Some(n),
        _ => None,
    });
    notifies.collect()
}

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

/// RFC 5685 section 3: the first request is answered with REDIRECT, the nonce and a zero SPI; it makes no IKE SA.
#[test]
fn a_first_request_is_redirected_in_clear() {
    let mut world = world(9);
    take_down(&mut world, Some(address(C)));
    world.initiate(A);
    world.run(SECOND);
    assert_eq!(followed(&world), 1);
    assert_moved(&mut world);
    assert_eq!(world.recorded.len(), 6, "three round trips");
    let request = Message::parse(&world.recorded[0].1.data).unwrap();
    let response = Message::parse(&world.recorded[1].1.data).unwrap();
    assert_eq!(response.header.spis.responder, [0; 8]);
    assert!(world.recorded[1].1.data.len() < world.recorded[0].1.data.len(), "no amplification");
    let nonce = request.payloads.iter().find_map(|p| match p {
        Payload::Nonce(nonce) => Some(nonce.clone()),
        _ => None,
    });
    let data = [&[1, 4, 192, 0, 2, 3][..], &nonce.unwrap()].concat();
    assert_eq!(notifies_sent(&world, B, notify::REDIRECT)[0].data, data);
    // Nothing of the first attempt is shown to the other gateway.
    let again = Message::parse(&world.recorded[2].1.data).unwrap();
    assert_ne!(again.header.spis.initiator, request.header.spis.initiator);
    assert!(again.payloads.iter().all(|p| !matches!(p, Payload::Nonce(n) if data.ends_with(n))));
}

#[test]
fn no_single_loss_or_copy_changes_the_end_of_a_redirect_in_clear() {
    for position in 0..6 {
        for fate in [vec![], vec![10 * MS, 10 * MS], vec![10 * MS, 900 * MS], vec![1500 * MS]] {
            let mut world = world(10);
            take_down(&mut world, Some(address(C)));
            world.network = Box::new(move |_, number, _| (number == position).then(|| fate.clone()));
            world.initiate(A);
            world.run(40 * SECOND);
            assert_moved(&mut world);
            assert_eq!(followed(&world), 1);
        }
    }
}

/// RFC 5685 section 3: silence to who did not say that it may be redirected, and to all where there is nowhere to go.
/// Such a peer is served as soon as the gateway is back.
#[test]
fn others_hear_nothing_of_a_gateway_that_is_taken_down() {
    for (config, to) in [(client(vec![]), Some(address(C))), (client(vec![address(C)]), None)] {
        let mut world = world_with(11, config);
        take_down(&mut world, to);
        world.initiate(A);
        world.run(5 * SECOND);
        assert!(world.recorded.iter().all(|(from, _)| *from == A));
        assert_eq!(world.sas(B), []);
    }
    // Nor does a stranger, whatever he says.
    let mut world = world(12);
    take_down(&mut world, Some(address(C)));
    world.initiate(A);
    let request = world.recorded[0].1.data.clone();
    let (before, remote) = (world.recorded.len(), "198.51.100.9:500".parse().unwrap());
    let local = world.sides[B].address;
    world.inject(B, Datagram { local, remote, data: request.clone() });
    assert_eq!(world.recorded.len(), before);
    let remote = world.sides[A].address;
    world.inject(B, Datagram { local, remote, data: request });
    assert_eq!(world.recorded.len(), before + 1, "the same request from A is answered");
}

/// A forged answer to A's first request, which B's true one follows.
fn forged(world: &mut World, payload: impl Fn(&[u8]) -> Notify) {
    world.initiate(A);
    let sent = &world.recorded.last().unwrap().1;
    let request = Message::parse(&sent.data).unwrap();
    let nonce = request.payloads.iter().find_map(|p| match p {
        Payload::Nonce(nonce) => Some(nonce.clone()),
        _ => None,
    });
    let header = Header { response: true, initiator: false, ..request.header };
    let data = Message { header, payloads: vec![Payload::Notify(payload(&nonce.unwrap()))] }.emit();
    let (local, remote) = (sent.local, sent.remote);
    for _ in 0..3 {
        world.inject(A, Datagram { local, remote, data: data.clone() });
    }
}

fn redirect(data: Vec<u8>) -> Notify {
    Notify { kind: notify::REDIRECT, protocol: 0, spi: Vec::new(), data }
}

/// RFC 5685 section 3: a response with another nonce MUST be discarded silently; then the true one may come. The PAD:
/// a forger who knows the nonce cannot send us where the configuration does not allow, nor to a name.
#[test]
fn a_forged_redirect_in_clear_leads_nowhere() {
    let to_c = [1, 4, 192, 0, 2, 3];
    type Forged = Box<dyn Fn(&[u8]) -> Notify>;
    let forgeries: [(Forged, usize); 8] = [
        (Box::new(move |_| redirect([&to_c[..], &[9; 32]].concat())), 0),
        (Box::new(move |_| redirect(to_c.to_vec())), 0),
        (Box::new(move |nonce| redirect([&to_c[..], &nonce[1..]].concat())), 0),
        (Box::new(|nonce| redirect([&[1, 3, 192, 0, 2], nonce].concat())), 0),
        (Box::new(move |nonce| Notify { spi: vec![1], ..redirect([&to_c[..], nonce].concat()) }), 0),
        (Box::new(|nonce| redirect([&[1, 4, 198, 51, 100, 1], nonce].concat())), 1),
        (Box::new(|nonce| redirect([&[1, 4, 192, 0, 2, 2], nonce].concat())), 1),
        (Box::new(|nonce| redirect([b"\x03\x0bgw.evil.net", nonce].concat())), 1),
    ];
    for (number, (forgery, told)) in forgeries.into_iter().enumerate() {
        let mut world = world(13);
        forged(&mut world, forgery);
        world.run(SECOND);
        assert_eq!(refusals(&world).len(), told, "{number}: once, though it came three times");
        assert_eq!(followed(&world), 0, "{number}");
        world.assert_one_of_each();
        assert!(world.recorded.iter().all(|(_, d)| d.remote.ip() != address(C)), "{number}");
        assert_eq!(world.sas(A)[0].remote, world.sides[B].address);
    }
    // Who has not announced it follows none at all, and tells nobody.
    let mut world = world_with(14, client(vec![]));
    forged(&mut world, move |nonce| redirect([&to_c[..], nonce].concat()));
    world.run(SECOND);
    assert_eq!((followed(&world), refusals(&world).len()), (0, 0));
    world.assert_one_of_each();
}

/// RFC 5685 section 3: the new gateway is authenticated as the connection's peer, or it is none.
#[test]
fn another_gateway_that_cannot_prove_the_identity_gets_nothing() {
    let imposter =
        ConnectionConfig { psk: Psk(zeroize::Zeroizing::new(b"not the key".to_vec())), ..other_gateway() };
    let stranger = ConnectionConfig { local_id: Identity::Fqdn("other.example".into()), ..other_gateway() };
    for c in [imposter, stranger] {
        let configs = [client(vec![address(C)]), connection(B), c];
        let mut world = World::of(15, configs.into_iter().map(|c| EndpointConfig::new(vec![c])).collect());
        world.initiate(A);
        world.run(SECOND);
        take_down(&mut world, Some(address(C)));
        world.run(SECOND);
        assert_eq!(followed(&world), 1);
        assert_eq!(world.sas(A).len(), 1, "the old one stays: {:#?}", world.sas(A));
        assert_eq!(world.sas(A)[0].remote, world.sides[B].address);
        assert!(world.sas(C).iter().all(|sa| sa.state == "connecting"));
        world.assert_passes();
    }
}

/// RFC 5685 section 7: two gateways that redirect to each other. Five redirects are followed, then none for 300 s.
#[test]
fn a_loop_of_redirects_ends_after_five() {
    let mut world = world(16);
    take_down(&mut world, Some(address(C)));
    world.at(C, |e, now| e.take_down(now, Some(address(B)), GRACE));
    world.initiate(A);
    world.run(20 * SECOND);
    assert_eq!(followed(&world), 5);
    assert_eq!(refusals(&world).len(), 1);
    assert!(refusals(&world)[0].contains("5 redirects"), "{:?}", refusals(&world));
    assert_eq!(world.sas(A), [], "given up");
    let failed =
        |r: &Report| matches!(r, Report::InitiationFailed { reason, .. } if reason.contains("5 redirects"));
    assert_eq!(world.reports(A, failed), 1);
    world.initiate(A);
    world.run(20 * SECOND);
    assert_eq!(followed(&world), 5, "nor by another try");
    world.run(Duration::from_secs(300));
    world.initiate(A);
    world.run(20 * SECOND);
    assert_eq!(followed(&world), 10);
}

/// RFC 5685 section 6: taken down between IKE_SA_INIT and IKE_AUTH, the gateway redirects in the IKE_AUTH response, without
/// a Child SA, after both AUTH payloads are verified; the client deletes that IKE SA.
#[test]
fn a_half_open_ike_sa_is_redirected_in_ike_auth() {
    for position in 0..6 {
        for fate in [None, Some(vec![]), Some(vec![10 * MS, 10 * MS]), Some(vec![1500 * MS])] {
            let mut world = world(17);
            world.initiate(A);
            world.run(15 * MS);
            assert_eq!(world.sas(B)[0].state, "connecting");
            take_down(&mut world, Some(address(C)));
            let (first, chosen) = (world.sent, fate.clone());
            world.network =
                Box::new(move |_, number, _| chosen.clone().filter(|_| number == first + position));
            world.run(30 * SECOND);
            assert_moved(&mut world);
            assert_eq!((redirected(&world), followed(&world)), (1, 1), "{position} {fate:?}");
            assert_eq!(world.sides[B].plane.inbound.len(), 0, "no Child SA was made");
        }
    }
    // The client deletes it at once, though it does not get to the other gateway.
    let mut world = world(27);
    world.initiate(A);
    world.run(15 * MS);
    take_down(&mut world, Some(address(C)));
    world.network = Box::new(|_, _, d| (d.remote.ip() == address(C)).then(Vec::new));
    world.run(SECOND);
    assert_eq!(world.sas(B), []);
    assert!(matches!(exchanged(&world, B)[..], [Authority::Delete(_)]));
    // Where it cannot be redirected it is made, and deleted at once.
    let mut world = world_with(18, client(vec![]));
    world.initiate(A);
    world.run(15 * MS);
    take_down(&mut world, Some(address(C)));
    world.run(SECOND);
    assert_eq!((world.sas(A), world.sas(B)), (vec![], vec![]));
    assert!(matches!(exchanged(&world, A)[..], [Authority::Delete(_)]));
}

fn redirect_supported() -> Payload {
    Payload::Notify(Notify {
        kind: notify::REDIRECT_SUPPORTED,
        protocol: 0,
        spi: Vec::new(),
        data: Vec::new(),
    })
}

fn is_redirect(payload: &Payload) -> bool {
    matches!(payload, Payload::Notify(n) if n.kind == notify::REDIRECT)
}

/// RFC 5685 section 6: the gateway MUST verify the client's AUTH before it redirects in the IKE_AUTH response.
#[test]
fn who_is_not_authenticated_is_not_redirected_in_ike_auth() {
    for authentic in [true, false] {
        let mut world = World::new(23);
        let (mut peer, mut authenticating) = Peer::half_open_saying(&mut world, vec![redirect_supported()]);
        take_down(&mut world, Some(address(C)));
        for payload in &mut authenticating {
            if let Payload::Authentication { data, .. } = payload
                && !authentic
            {
                data[0] ^= 1;
            }
        }
        let answer = peer.request(&mut world, exchange::IKE_AUTH, &authenticating);
        assert_eq!(answer.iter().any(is_redirect), authentic, "{answer:?}");
        assert!(!answer.iter().any(|p| matches!(p, Payload::Sa(_))), "no Child SA");
        assert_eq!(redirected(&world), usize::from(authentic));
        let holds =
            |p: &Payload| matches!(p, Payload::Notify(n) if n.kind == notify::REDIRECT && n.data.len() == 6);
        assert_eq!(answer.iter().any(holds), authentic, "without a nonce");
    }
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

/// RFC 5685 section 9.2: the nonce MUST have 16 to 256 octets.
#[test]
fn a_first_request_with_a_short_nonce_is_not_answered() {
    for (octets, answered) in [(8, false), (15, false), (16, true), (256, true)] {
        let mut world = world(25);
        take_down(&mut world, Some(address(C)));
        let header = Header {
            spis: IkeSpis { initiator: [7; 8], responder: [0; 8] },
            next_payload: 0,
            exchange: exchange::IKE_SA_INIT,
            response: false,
            initiator: true,
            message_id: 0,
        };
        let payloads = vec![Payload::Nonce(vec![9; octets]), redirect_supported()];
        let data = Message { header, payloads }.emit();
        let (local, remote) = (world.sides[B].address, world.sides[A].address);
        world.inject(B, Datagram { local, remote, data });
        assert_eq!(world.recorded.len(), usize::from(answered), "{octets}");
    }
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

/// RFC 5723 section 5: the support of redirects is negotiated anew; a resumption is redirected as IKE_SA_INIT is.
#[test]
fn a_resumption_is_redirected_too() {
    let resuming = |c: ConnectionConfig| ConnectionConfig { resumption: true, ..c };
    let configs = [client(vec![address(C)]), connection(B), other_gateway()];
    let configs = configs.map(|c| EndpointConfig::new(vec![resuming(c)])).into_iter().collect();
    let mut world = World::of(22, configs);
    let keepers = [world::tickets::Keeper::default(), world::tickets::Keeper::default()];
    for (side, keeper) in world.sides.iter_mut().zip(&keepers) {
        side.endpoint.set_tickets(Box::new(keeper.clone()));
    }
    let mut world = world.established_by_a();
    world.run(3 * SECOND);
    world.crash(B, &keepers[B], EndpointConfig::new(vec![resuming(connection(B))]));
    take_down(&mut world, Some(address(C)));
    world.recorded.clear();
    world.take_token(A);
    world.run(SECOND);
    assert_eq!(world.exchanges(), [38, 38, 34, 34, 35, 35]);
    assert_moved(&mut world);
}
