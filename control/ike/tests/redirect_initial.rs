//! Redirects before an IKE SA stands: in the answer to a first request, forged too, in IKE_AUTH, and to a ticket (RFC 5685
//! sections 3, 6 and 7). Both roles, each message lost, doubled or late.

mod world;

use spindle_ike::api::*;
use spindle_ike::wire::{Message, Payload, exchange, notify};
use std::time::Duration;
use world::peer::Peer;
use world::redirects::*;
use world::{A, B, C, World, address, connection};

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
