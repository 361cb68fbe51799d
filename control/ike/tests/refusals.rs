//! What a peer may say no to, and what a stranger may keep from others.

mod world;

use spindle_ike::api::*;
use spindle_ike::crypto::{Group, PrivateKey, parse_ike};
use spindle_ike::random::Random;
use spindle_ike::wire::{Delete, Message, Payload, exchange, notify, payload_type};
use std::net::SocketAddr;
use std::time::Duration;
use world::peer::{CHILD_SPI, Peer};
use world::{A, B, World, config, connection, packet_from};

fn notification(kind: u16) -> Payload {
    Payload::Notify(Notify { kind, protocol: 0, spi: vec![], data: vec![] })
}

/// B, whose one connection is changed.
fn with_b(change: impl FnOnce(&mut ConnectionConfig)) -> World {
    let mut connection = connection(B);
    change(&mut connection);
    World::with(1, config(A), EndpointConfig::new(vec![connection]))
}

fn started(connection: &mut ConnectionConfig) {
    connection.start_action = StartAction::Start;
}

/// The IKE_SA_INIT requests that B has sent.
fn initiations(world: &World) -> usize {
    let init = |d: &Datagram| d.data[18] == exchange::IKE_SA_INIT && d.data[19] & 0x20 == 0;
    world.recorded.iter().filter(|(from, d)| *from == B && init(d)).count()
}

/// RFC 7296 section 2.5, 3.10.1: what is not known is skipped, however much of it there is.
#[test]
fn more_payloads_than_are_kept_end_no_ike_sa() {
    let mut world = World::new(1);
    let mut peer = Peer::established(&mut world);
    let many = vec![Payload::VendorId(vec![]); 500];
    assert_eq!(peer.request(&mut world, exchange::INFORMATIONAL, &many), []);
    let many = vec![notification(40960); 500];
    assert_eq!(peer.request(&mut world, exchange::INFORMATIONAL, &many), []);
    // A Delete of AH SAs counts none, one of an unknown protocol is for nobody.
    let chain =
        [&[payload_type::DELETE, 0, 0, 8, 2, 0, 0, 0][..], &[0, 0, 0, 12, 9, 4, 0, 1, 1, 2, 3, 4]].concat();
    let answer = peer.request_octets(&mut world, exchange::INFORMATIONAL, payload_type::DELETE, &chain);
    assert_eq!(answer, Some(vec![]));
    assert_eq!(world.sas(B)[0].children.len(), 1);
}

/// RFC 7296 section 2.25: the IKE SA is closed where the peer answers TEMPORARY_FAILURE for minutes on end, not where
/// it did so twice, an hour apart; and what is always to be up is made anew.
#[test]
fn temporary_failures_end_an_ike_sa_only_where_nothing_lies_between_them() {
    let mut world = with_b(started);
    let mut peer = Peer::established(&mut world);
    let rekey = |world: &mut World, peer: &mut Peer| {
        let child = world.sas(B)[0].children[0].id;
        world.at(B, |e, now| e.rekey_child(now, child)).unwrap();
        let (header, _) = peer.next_request(world).expect("the rekey");
        peer.respond(world, &header, &[notification(notify::TEMPORARY_FAILURE)]);
    };
    rekey(&mut world, &mut peer);
    // The peer closes the Child SA, which ends that wish, and makes another one.
    let delete = Payload::Delete(Delete::Esp(vec![spindle_abi::Spi(u32::from_be_bytes(CHILD_SPI))]));
    peer.request(&mut world, exchange::INFORMATIONAL, &[delete]);
    let payloads = peer.child_payloads([0x51; 4]);
    peer.request(&mut world, exchange::CREATE_CHILD_SA, &payloads);
    world.run(Duration::from_secs(600));
    rekey(&mut world, &mut peer);
    assert_eq!(world.sas(B)[0].state, "established");
    // And now for minutes on end.
    for _ in 0..400 {
        world.run(Duration::from_secs(1));
        let Some((header, payloads)) = peer.next_request(&world) else { continue };
        if payloads == [Payload::Delete(Delete::Ike)] {
            peer.respond(&mut world, &header, &[]);
            assert_eq!(initiations(&world), 1, "it is to be up always");
            return;
        }
        peer.respond(&mut world, &header, &[notification(notify::TEMPORARY_FAILURE)]);
    }
    panic!("the IKE SA is never closed");
}

/// RFC 7296 section 4: an implementation MUST be capable of deleting the old SA and creating a new one.
#[test]
fn a_child_sa_that_may_not_be_rekeyed_is_deleted_and_made_anew() {
    let mut world = World::new(2);
    let mut peer = Peer::established(&mut world);
    let child = world.sas(B)[0].children[0].clone();
    world.at(B, |e, now| e.rekey_child(now, child.id)).unwrap();
    let (header, _) = peer.next_request(&world).unwrap();
    peer.respond(&mut world, &header, &[notification(notify::NO_ADDITIONAL_SAS)]);
    let (header, payloads) = peer.next_request(&world).expect("a Delete");
    assert_eq!(payloads, [Payload::Delete(Delete::Esp(vec![child.inbound]))]);
    let spi = spindle_abi::Spi(u32::from_be_bytes(CHILD_SPI));
    peer.respond(&mut world, &header, &[Payload::Delete(Delete::Esp(vec![spi]))]);
    let (header, payloads) = peer.next_request(&world).expect("a new one");
    assert_eq!(header.exchange, exchange::CREATE_CHILD_SA);
    assert!(matches!(payloads[0], Payload::Sa(_)), "it replaces none: {payloads:?}");
    // Not even that: another IKE SA, then, for what is wanted always.
    peer.respond(&mut world, &header, &[notification(notify::NO_ADDITIONAL_SAS)]);
    let (_, payloads) = peer.next_request(&world).expect("a Delete");
    assert_eq!(payloads, [Payload::Delete(Delete::Ike)]);
}

/// RFC 7296 section 4: the same for the IKE SA.
#[test]
fn an_ike_sa_that_may_not_be_rekeyed_is_deleted_and_made_anew() {
    let mut world = with_b(started);
    let mut peer = Peer::established(&mut world);
    let ike = world.sas(B)[0].id;
    world.at(B, |e, now| e.rekey_ike(now, ike)).unwrap();
    let (header, _) = peer.next_request(&world).unwrap();
    peer.respond(&mut world, &header, &[notification(notify::NO_ADDITIONAL_SAS)]);
    let (header, payloads) = peer.next_request(&world).expect("a Delete");
    assert_eq!(payloads, [Payload::Delete(Delete::Ike)]);
    peer.respond(&mut world, &header, &[]);
    assert_eq!(initiations(&world), 1);
}

/// A rekey that cannot be done as the peer wants is tried again in time.
#[test]
fn a_rekey_with_a_group_that_is_not_ours_is_tried_again_in_time() {
    let mut world = with_b(|c| c.rekey_time = Duration::from_secs(1000));
    let mut peer = Peer::established(&mut world);
    let ike = world.sas(B)[0].id;
    world.at(B, |e, now| e.rekey_ike(now, ike)).unwrap();
    let (header, _) = peer.next_request(&world).unwrap();
    let wanted = Notify { kind: notify::INVALID_KE_PAYLOAD, protocol: 0, spi: vec![], data: vec![0, 14] };
    peer.respond(&mut world, &header, &[Payload::Notify(wanted)]);
    assert!(peer.next_request(&world).is_none());
    world.run(Duration::from_secs(105));
    let (header, _) = peer.next_request(&world).expect("another try");
    assert_eq!(header.exchange, exchange::CREATE_CHILD_SA);
}

/// What is to be up always comes back after the peer deleted or refused it, ever more seldom.
#[test]
fn a_child_sa_that_is_to_be_up_always_is_asked_for_again() {
    let mut world = with_b(started);
    let mut peer = Peer::established(&mut world);
    let delete = Payload::Delete(Delete::Esp(vec![spindle_abi::Spi(u32::from_be_bytes(CHILD_SPI))]));
    peer.request(&mut world, exchange::INFORMATIONAL, &[delete]);
    assert!(world.sas(B)[0].children.is_empty() && peer.next_request(&world).is_none());
    let mut asked = Vec::new();
    for second in 0..200 {
        world.run(Duration::from_secs(1));
        // Packets that want it don't hasten it.
        world.at(B, |e, now| e.acquire(now, 1, packet_from(B)));
        let Some((header, payloads)) = peer.next_request(&world) else { continue };
        assert_eq!(header.exchange, exchange::CREATE_CHILD_SA, "{payloads:?}");
        asked.push(second);
        peer.respond(&mut world, &header, &[notification(notify::TS_UNACCEPTABLE)]);
    }
    let gaps: Vec<i32> = asked.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!((5..10).contains(&asked.len()) && gaps.is_sorted(), "{asked:?}");
    assert_eq!(world.sas(B)[0].state, "established");
}

/// RFC 7296 section 2.16: an initiator without AUTH wants EAP.
#[test]
fn an_initiator_that_wants_eap_is_told_that_it_fails() {
    let mut world = World::new(3);
    let (mut peer, mut authenticating) = Peer::half_open(&mut world);
    authenticating.retain(|p| !matches!(p, Payload::Authentication { .. }));
    let answer = peer.request(&mut world, exchange::IKE_AUTH, &authenticating);
    assert_eq!(answer, [notification(notify::AUTHENTICATION_FAILED)]);
}

/// RFC 4343: names know no case.
#[test]
fn a_domain_name_is_the_same_in_capitals() {
    let mut world = with_b(|c| c.remote_id = Identity::Fqdn("GW0.Example".into()));
    world.initiate(A);
    world.run(Duration::from_secs(1));
    world.assert_one_of_each();
}

/// RFC 7296 section 2.23: UDP encapsulation MUST NOT be done on port 500; it is forced only on peers that know it.
#[test]
fn esp_never_goes_in_udp_on_port_500() {
    let mut world = with_b(|c| c.force_encapsulation = true);
    // The handmade peer says nothing of NAT detection, and stays on port 500.
    let _ = Peer::established(&mut world);
    let sas = world.sas(B);
    assert_eq!(sas[0].remote.port(), 500);
    assert!(!sas[0].children[0].encapsulated);
    assert!(world.sides[B].plane.outbound.iter().all(|sa| !sa.encapsulated && sa.remote.port() == 0));
}

/// RFC 7296 section 2.4: as long as nobody has heard INITIAL_CONTACT it is said again.
#[test]
fn initial_contact_is_said_until_somebody_hears_it() {
    let mut world = World::new(4);
    world.network = Box::new(|from, _, d| (from == A && d.data[18] == exchange::IKE_AUTH).then(Vec::new));
    world.initiate(A);
    world.run(Duration::from_secs(60));
    assert!(world.sas(A).is_empty());
    world.network = Box::new(|_, _, _| None);
    // B knows an IKE SA that A has lost.
    let mut old = World::established(5);
    std::mem::swap(&mut old.sides[A], &mut world.sides[A]);
    old.now = old.now.max(world.now);
    old.initiate(A);
    old.run(Duration::from_secs(5));
    old.assert_one_of_each();
    assert_eq!(
        old.reports(B, |r| matches!(r, Report::IkeDeleted { authority: Authority::InitialContact(_), .. })),
        1
    );
}

/// An IKE_SA_INIT request with this key exchange, perhaps with a COOKIE.
fn init_request(
    world: &mut World,
    from: SocketAddr,
    spi: u64,
    group: Group,
    cookie: Option<Vec<u8>>,
) -> Vec<Payload> {
    let mut random = world::Seeded(rand_chacha::rand_core::SeedableRng::seed_from_u64(spi));
    let key = PrivateKey::generate(group, &mut random);
    let mut nonce = vec![0; 32];
    random.fill(&mut nonce);
    let header = Header {
        spis: IkeSpis { initiator: spi.to_be_bytes(), responder: [0; 8] },
        next_payload: 0,
        exchange: exchange::IKE_SA_INIT,
        response: false,
        initiator: true,
        message_id: 0,
    };
    let cookie =
        cookie.map(|data| Payload::Notify(Notify { kind: notify::COOKIE, protocol: 0, spi: vec![], data }));
    let offer = parse_ike("aes128gcm16-prfsha256-x25519-ecp256").unwrap().to_wire(1, &[]);
    let mut payloads = Vec::from_iter(cookie);
    payloads.extend([
        Payload::Sa(vec![offer]),
        Payload::KeyExchange { group: group.id(), data: key.public().to_vec() },
        Payload::Nonce(nonce),
    ]);
    let data = Message { header, payloads }.emit();
    let before = world.recorded.len();
    let local = world.sides[B].address;
    world.inject(B, Datagram { local, remote: from, data });
    let answer = world.recorded.get(before).map(|(_, d)| Message::parse(&d.data).unwrap().payloads);
    answer.unwrap_or_default()
}

fn cookie_of(answer: &[Payload]) -> Option<Vec<u8>> {
    match answer {
        [Payload::Notify(n)] if n.kind == notify::COOKIE => Some(n.data.clone()),
        _ => None,
    }
}

fn kind_of(answer: &[Payload]) -> Option<u16> {
    match answer {
        [Payload::Notify(n)] => Some(n.kind),
        _ => None,
    }
}

/// B, that any address may initiate to.
fn open_to_all(change: impl FnOnce(&mut EndpointConfig)) -> World {
    let mut any = connection(B);
    any.remote = None;
    any.remote_id = Identity::Fqdn("anybody.example".into());
    any.name = "any".into();
    any.children = vec![world::child("any", B, 7)];
    let mut b = EndpointConfig::new(vec![connection(B), any]);
    change(&mut b);
    let mut world = World::with(6, config(A), b);
    world.network = Box::new(|_, _, _| Some(vec![]));
    world
}

/// RFC 7296 section 2.6, 2.21.4: requests of forged sources use up what may be said in clear; who shows that it is
/// where it says, is answered all the same.
#[test]
fn a_flood_that_draws_errors_keeps_no_honest_peer_from_its_answer() {
    let mut world = open_to_all(|_| {});
    let mut told = 0;
    for n in 0..300 {
        let from = SocketAddr::from(([198, 51, (n >> 8) as u8, n as u8], 500));
        let answer = init_request(&mut world, from, 1000 + n, Group::P256, None);
        told += usize::from(kind_of(&answer) == Some(notify::INVALID_KE_PAYLOAD));
    }
    assert_eq!(told, 100, "errors in clear in one second");
    let honest = SocketAddr::new(world::address(A), 500);
    let cookie = cookie_of(&init_request(&mut world, honest, 7, Group::P256, None));
    let answer = init_request(&mut world, honest, 7, Group::P256, Some(cookie.expect("a COOKIE")));
    assert_eq!(kind_of(&answer), Some(notify::INVALID_KE_PAYLOAD));
    world.run(Duration::from_secs(2));
    let answer = init_request(&mut world, honest, 8, Group::X25519, None);
    assert!(matches!(answer[0], Payload::Sa(_)), "{answer:?}");
}

/// How many half-open IKE SAs this address gets by so many requests, with the COOKIE that it is asked for.
fn taken(world: &mut World, from: SocketAddr, spi: &mut u64, tries: usize) -> usize {
    let tried = (0..tries).filter(|_| {
        *spi += 1;
        let mut answer = init_request(world, from, *spi, Group::X25519, None);
        if let Some(cookie) = cookie_of(&answer) {
            answer = init_request(world, from, *spi, Group::X25519, Some(cookie));
        }
        matches!(answer.first(), Some(Payload::Sa(_)))
    });
    tried.count()
}

/// One address that shows cookies has its share of the half-open IKE SAs, with its prefix; all that no connection names
/// have half.
#[test]
fn strangers_cannot_fill_the_table_of_half_open_ike_sas() {
    let mut world = open_to_all(|b| {
        b.max_half_open = 256;
        b.cookie_threshold = 0;
    });
    let mut spi = 1;
    let mut taken = |world: &mut World, from, tries| taken(world, from, &mut spi, tries);
    let of = |n: u8| SocketAddr::from(([198, 51, 100, n], 500));
    assert_eq!(taken(&mut world, of(1), 20), 4, "one address has a 64th");
    let all: usize = (2..100).map(|n| taken(&mut world, of(n), 8)).sum();
    assert_eq!(all + 4, 128, "all strangers have half");
    let named = SocketAddr::new(world::address(A), 500);
    assert_eq!(taken(&mut world, named, 200), 4 + 16, "the rest is for those whom the configuration names");
    // It passes.
    world.run(Duration::from_secs(40));
    assert_eq!(taken(&mut world, of(1), 1), 1);
}

/// A host has all addresses of its /64 (RFC 4291 section 2.5.1). One that the configuration names is counted by itself.
#[test]
fn a_prefix_of_ipv6_has_the_share_of_one_address() {
    let ours: SocketAddr = "[2001:db8::1]:500".parse().unwrap();
    let of = |net: u16, host: u16| SocketAddr::from(([0x2001, 0xdb8, 0, net, 0, 0, 0, host], 500));
    let mut world = open_to_all(|b| {
        b.max_half_open = 256;
        b.cookie_threshold = 0;
        for connection in &mut b.connections {
            connection.local = ours.ip();
        }
        b.connections[0].remote = Some(of(7, 1).ip());
    });
    world.sides[B].address = ours;
    let mut spi = 1;
    let mut taken = |world: &mut World, from, tries| taken(world, from, &mut spi, tries);
    assert_eq!((2..20).map(|host| taken(&mut world, of(7, host), 2)).sum::<usize>(), 4, "one /64");
    assert_eq!(taken(&mut world, of(8, 2), 8), 4, "another one");
    assert_eq!(taken(&mut world, of(7, 1), 40), 4 + 16, "named");
}

/// Up to the threshold anybody may take places in the name of any address. Whoever shows that it is there has room still.
#[test]
fn forged_requests_without_a_cookie_use_up_nobody_s_share() {
    for named in [true, false] {
        let mut world = open_to_all(|b| (b.max_half_open, b.cookie_threshold) = (1024, 64));
        let address = if named { world::address(A) } else { "198.51.100.1".parse().unwrap() };
        let from = SocketAddr::new(address, 500);
        for spi in 0..200 {
            init_request(&mut world, from, 1000 + spi, Group::X25519, None);
        }
        assert_eq!(world.sas(B).len(), 64);
        let left = 16 + if named { 16 } else { 0 };
        assert_eq!(taken(&mut world, from, &mut 1, 50), left);
    }
}

/// RFC 7296 section 2.5: told by the header of the answer; the notification has no data.
#[test]
fn a_later_version_is_told_ours() {
    let mut world = World::new(8);
    let mut data = vec![1; 28];
    data[8..16].fill(0);
    (data[16], data[17], data[18], data[19]) = (0, 0x30, exchange::IKE_SA_INIT, 8);
    data[20..24].fill(0);
    data[24..28].copy_from_slice(&28_u32.to_be_bytes());
    let (local, remote) = (world.sides[B].address, world.sides[A].address);
    world.inject(B, Datagram { local, remote, data });
    let answer = Message::parse(&world.recorded[0].1.data).unwrap();
    assert_eq!(answer.payloads, [notification(notify::INVALID_MAJOR_VERSION)]);
}
