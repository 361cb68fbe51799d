//! What an authenticated peer may get wrong, and what it may refuse.

mod world;

use spindle_ike::api::*;
use spindle_ike::crypto::{Group, PrivateKey, parse_ike};
use spindle_ike::wire::{Delete, Message, Payload, exchange, notify, payload_type, protocol};
use std::time::Duration;
use world::peer::{CHILD_SPI, Peer};
use world::{A, B, World, config, connection};

fn notification(kind: u16, data: Vec<u8>) -> Payload {
    Payload::Notify(Notify { kind, protocol: 0, spi: vec![], data })
}

fn rekeying(spi: [u8; 4]) -> Payload {
    Payload::Notify(Notify {
        kind: notify::REKEY_SA,
        protocol: protocol::ESP,
        spi: spi.to_vec(),
        data: vec![],
    })
}

fn kinds(payloads: &[Payload]) -> Vec<u16> {
    let kind = |p: &Payload| match p {
        Payload::Notify(notify) => notify.kind,
        other => panic!("{other:?}"),
    };
    payloads.iter().map(kind).collect()
}

fn deleted_by_error(world: &World) -> usize {
    let error = |r: &Report| matches!(r, Report::IkeDeleted { authority: Authority::ProtocolError(_), .. });
    world.reports(B, error)
}

/// B takes both groups in an IKE rekey.
fn two_groups() -> World {
    let mut connection = connection(B);
    connection.proposals = vec!["aes128gcm16-prfsha256-x25519-ecp256".into()];
    World::with(1, config(A), EndpointConfig::new(vec![connection]))
}

fn ike_rekey(peer: &mut Peer, proposal: &str, spi: [u8; 8], group: Group) -> Vec<Payload> {
    let key = PrivateKey::generate(group, &mut peer.random);
    vec![
        Payload::Sa(vec![parse_ike(proposal).unwrap().to_wire(1, &spi)]),
        peer.nonce(),
        Payload::KeyExchange { group: group.id(), data: key.public().to_vec() },
    ]
}

/// RFC 7296 section 2.25.1: the SPI that was not found is named.
#[test]
fn the_rekey_of_a_child_sa_that_is_not_there_is_answered_child_sa_not_found() {
    let mut world = World::new(1);
    let mut peer = Peer::established(&mut world);
    let mut payloads = vec![rekeying([9; 4])];
    payloads.extend(peer.child_payloads([0x55; 4]));
    let answer = peer.request(&mut world, exchange::CREATE_CHILD_SA, &payloads);
    let [Payload::Notify(error)] = &answer[..] else { panic!("{answer:?}") };
    assert_eq!((error.kind, error.protocol), (notify::CHILD_SA_NOT_FOUND, protocol::ESP));
    assert_eq!(error.spi, [9; 4]);
    assert_eq!(world.sas(B)[0].children.len(), 1);
}

/// RFC 7296 section 2.25: silently deleted, and made anew.
#[test]
fn a_child_sa_that_the_peer_does_not_find_is_deleted_silently_and_made_anew() {
    let mut world = World::new(2);
    let mut peer = Peer::established(&mut world);
    let old = world.sas(B)[0].children[0].clone();
    world.at(B, |e, now| e.rekey_child(now, old.id)).unwrap();
    let (header, payloads) = peer.next_request(&world).unwrap();
    assert_eq!(payloads[0], rekeying(old.inbound.0.to_be_bytes()));
    let spi = old.inbound.0.to_be_bytes().to_vec();
    let kind = notify::CHILD_SA_NOT_FOUND;
    let error = Payload::Notify(Notify { kind, protocol: protocol::ESP, spi, data: vec![] });
    peer.respond(&mut world, &header, &[error]);
    assert!(world.sas(B)[0].children.is_empty());
    let (header, payloads) = peer.next_request(&world).expect("a new one is asked for");
    assert_eq!(header.exchange, exchange::CREATE_CHILD_SA);
    assert!(matches!(payloads[0], Payload::Sa(_)), "it replaces none: {payloads:?}");
}

/// RFC 7296 section 2.21.3: an authenticated message that breaks the protocol ends the IKE SA at both ends.
#[test]
fn an_authenticated_request_with_invalid_syntax_is_told_so_and_ends_the_ike_sa() {
    let mut world = World::new(3);
    let mut peer = Peer::established(&mut world);
    // A nonce of three octets (RFC 7296 section 3.9: 16 at least).
    let answer = peer.request(&mut world, exchange::INFORMATIONAL, &[Payload::Nonce(vec![1; 3])]);
    assert_eq!(kinds(&answer), [notify::INVALID_SYNTAX]);
    assert!(world.sas(B).is_empty());
    assert_eq!(deleted_by_error(&world), 1);
    assert!(peer.next_request(&world).is_none(), "without a Delete");
    assert!(world.sides[B].plane.inbound.is_empty() && world.sides[B].plane.outbound.is_empty());
}

/// RFC 7296 section 2.21.3: the other end.
#[test]
fn invalid_syntax_in_a_response_ends_the_ike_sa() {
    let mut world = World::new(4);
    let mut peer = Peer::established(&mut world);
    let id = world.sas(B)[0].id;
    world.at(B, |e, now| e.probe(now, id, Duration::ZERO));
    let (header, payloads) = peer.next_request(&world).unwrap();
    assert!(payloads.is_empty(), "RFC 7296 section 2.4: an empty INFORMATIONAL");
    peer.respond(&mut world, &header, &[notification(notify::INVALID_SYNTAX, vec![])]);
    assert!(world.sas(B).is_empty());
    assert_eq!(deleted_by_error(&world), 1);
}

/// RFC 7296 section 2.5: a critical payload of unknown type rejects its request, and names the type; one that is not
/// critical is skipped.
#[test]
fn an_unknown_critical_payload_rejects_its_request_alone() {
    let mut world = World::new(5);
    let mut peer = Peer::established(&mut world);
    let unknown = |critical: u8| [0, critical, 0, 8, 1, 2, 3, 4];
    let answer = peer.request_octets(&mut world, exchange::INFORMATIONAL, 200, &unknown(0x80)).unwrap();
    let expected = notification(notify::UNSUPPORTED_CRITICAL_PAYLOAD, vec![200]);
    assert_eq!(answer, [expected]);
    let answer = peer.request_octets(&mut world, exchange::INFORMATIONAL, 200, &unknown(0)).unwrap();
    assert_eq!(answer, []);
    assert_eq!(world.sas(B)[0].children.len(), 1);
}

/// RFC 7296 section 3.10.1: unknown status types and, in a request, unknown error types are ignored; section 3.12:
/// unknown Vendor IDs are.
#[test]
fn unknown_notifications_and_vendor_ids_are_ignored() {
    let mut world = World::new(6);
    let (mut peer, mut authenticating) = Peer::half_open(&mut world);
    let unknown = [
        notification(8191, vec![1]),
        notification(16383, vec![]),
        notification(40959, vec![2; 100]),
        Payload::VendorId(b"nobody knows".to_vec()),
    ];
    authenticating.extend(unknown.clone());
    let answer = peer.request(&mut world, exchange::IKE_AUTH, &authenticating);
    assert!(answer.iter().any(|p| matches!(p, Payload::TsResponder(_))), "{answer:?}");
    assert_eq!(peer.request(&mut world, exchange::INFORMATIONAL, &unknown), []);
    // An unknown error in a response fails its request alone.
    let child = world.sas(B)[0].children[0].clone();
    world.at(B, |e, now| e.rekey_child(now, child.id)).unwrap();
    let (header, _) = peer.next_request(&world).unwrap();
    peer.respond(&mut world, &header, &[notification(8191, vec![])]);
    assert_eq!(world.sas(B)[0].children[0].id, child.id);
    assert_eq!(world.sas(B)[0].children[0].state, "installed");
}

/// RFC 7296 section 1.4: an INFORMATIONAL only after the initial exchanges; section 2.3: nothing outside the window.
#[test]
fn an_informational_request_before_ike_auth_gets_no_answer() {
    let mut world = World::new(7);
    let (mut peer, authenticating) = Peer::half_open(&mut world);
    assert_eq!(peer.request_octets(&mut world, exchange::INFORMATIONAL, 0, &[]), None);
    assert_eq!(peer.request_octets(&mut world, exchange::CREATE_CHILD_SA, 0, &[]), None);
    assert!(!peer.request(&mut world, exchange::IKE_AUTH, &authenticating).is_empty());
    assert_eq!(peer.request_octets(&mut world, exchange::IKE_AUTH, 0, &[]), None, "once");
    assert_eq!(peer.request(&mut world, exchange::INFORMATIONAL, &[]), []);
}

/// RFC 7296 section 1.3: NO_ADDITIONAL_SAS where there are enough; the others stay.
#[test]
fn beyond_the_bound_of_child_sas_none_is_added() {
    let mut b = config(B);
    b.max_children = 2;
    let mut world = World::with(8, config(A), b);
    let mut peer = Peer::established(&mut world);
    for (spi, expected) in [([0x51; 4], None), ([0x52; 4], Some(notify::NO_ADDITIONAL_SAS))] {
        let payloads = peer.child_payloads(spi);
        let answer = peer.request(&mut world, exchange::CREATE_CHILD_SA, &payloads);
        match expected {
            None => assert!(matches!(answer[0], Payload::Sa(_)), "{answer:?}"),
            Some(kind) => assert_eq!(kinds(&answer), [kind]),
        }
    }
    assert_eq!(world.sas(B)[0].children.len(), 2);
}

/// RFC 7296 section 2.8: Child SAs with the same selectors stand side by side; none is deleted for that.
#[test]
fn a_second_child_sa_with_the_same_selectors_does_not_end_the_first() {
    let mut world = World::new(9);
    let mut peer = Peer::established(&mut world);
    let payloads = peer.child_payloads([0x51; 4]);
    peer.request(&mut world, exchange::CREATE_CHILD_SA, &payloads);
    world.run(Duration::from_secs(60));
    let children = world.sas(B)[0].children.clone();
    assert_eq!(children.len(), 2);
    assert_eq!(children[0].selectors, children[1].selectors);
    assert!(peer.next_request(&world).is_none());
}

/// RFC 7296 section 1.3: the group that the responder wants is named, and tried by the initiator if it offered it.
#[test]
fn an_ike_rekey_with_another_group_than_wanted_is_tried_again() {
    let mut world = two_groups();
    let mut peer = Peer::established(&mut world);
    // The offer has P-256 alone, the key exchange is Curve25519's.
    let payloads = ike_rekey(&mut peer, "aes128gcm16-prfsha256-ecp256", [3; 8], Group::X25519);
    let answer = peer.request(&mut world, exchange::CREATE_CHILD_SA, &payloads);
    let wanted = Group::P256.id().to_be_bytes().to_vec();
    assert_eq!(answer, [notification(notify::INVALID_KE_PAYLOAD, wanted.clone())]);
    assert_eq!(world.sas(B).len(), 1);
    // And the other way round.
    let id = world.sas(B)[0].id;
    world.at(B, |e, now| e.rekey_ike(now, id)).unwrap();
    let group = |payloads: &[Payload]| {
        payloads.iter().find_map(|p| match p {
            Payload::KeyExchange { group, .. } => Some(*group),
            _ => None,
        })
    };
    let (header, payloads) = peer.next_request(&world).unwrap();
    assert_eq!(group(&payloads), Some(Group::X25519.id()));
    peer.respond(&mut world, &header, &[notification(notify::INVALID_KE_PAYLOAD, wanted)]);
    let (header, payloads) = peer.next_request(&world).expect("another try");
    assert_eq!(group(&payloads), Some(Group::P256.id()));
    // A group that was not offered is not followed.
    peer.respond(&mut world, &header, &[notification(notify::INVALID_KE_PAYLOAD, vec![0, 14])]);
    let next = peer.next_request(&world).map(|(_, payloads)| group(&payloads));
    assert_eq!(next, None);
    assert_eq!(world.sas(B)[0].state, "established");
}

/// RFC 7296 section 3.1 and 3.3.1: the SPIs of a new IKE SA are eight octets and not zero, on either side.
#[test]
fn a_zero_spi_for_a_new_ike_sa_is_refused() {
    let mut world = World::new(11);
    let mut peer = Peer::established(&mut world);
    let payloads = ike_rekey(&mut peer, "aes128gcm16-prfsha256-x25519", [0; 8], Group::X25519);
    let answer = peer.request(&mut world, exchange::CREATE_CHILD_SA, &payloads);
    assert_eq!(kinds(&answer), [notify::NO_PROPOSAL_CHOSEN]);
    let id = world.sas(B)[0].id;
    world.at(B, |e, now| e.rekey_ike(now, id)).unwrap();
    let (header, _) = peer.next_request(&world).unwrap();
    let payloads = ike_rekey(&mut peer, "aes128gcm16-prfsha256-x25519", [0; 8], Group::X25519);
    peer.respond(&mut world, &header, &payloads);
    assert_eq!(world.reports(B, |r| matches!(r, Report::IkeRekeyed { .. })), 0);
    let (_, payloads) = peer.next_request(&world).expect("the peer breaks the protocol: a Delete");
    assert_eq!(payloads, [Payload::Delete(Delete::Ike)]);
}

/// RFC 7296 section 2.25: not at once, but after a while; and for some minutes only.
#[test]
fn after_temporary_failure_the_request_comes_again_a_little_later() {
    let mut world = World::new(12);
    let mut peer = Peer::established(&mut world);
    let id = world.sas(B)[0].id;
    world.at(B, |e, now| e.rekey_ike(now, id)).unwrap();
    let start = world.now;
    let mut tries = 0;
    while !world.sas(B).is_empty() && world.now.since(start) < Duration::from_secs(600) {
        match peer.next_request(&world) {
            Some((header, _)) => {
                tries += 1;
                peer.respond(&mut world, &header, &[notification(notify::TEMPORARY_FAILURE, vec![])]);
                if let Some((header, payloads)) = peer.next_request(&world) {
                    assert_eq!(payloads, [Payload::Delete(Delete::Ike)], "not at once");
                    peer.respond(&mut world, &header, &[]);
                    break;
                }
                world.run(Duration::from_millis(900));
                assert!(peer.next_request(&world).is_none(), "nor soon");
            }
            None => world.run(Duration::from_millis(100)),
        }
    }
    assert!(world.sas(B).is_empty());
    assert!((40..200).contains(&tries), "{tries} tries");
    assert!(world.now.since(start) > Duration::from_secs(170));
}

/// RFC 7296 section 1.4.1: the Delete of one half closes the pair, and the answer names the other half.
#[test]
fn the_delete_of_one_half_closes_the_pair() {
    let mut world = World::new(13);
    let mut peer = Peer::established(&mut world);
    let child = world.sas(B)[0].children[0].clone();
    assert_eq!(child.outbound.0.to_be_bytes(), CHILD_SPI);
    let delete = |spi| [Payload::Delete(Delete::Esp(vec![spi]))];
    let answer = peer.request(&mut world, exchange::INFORMATIONAL, &delete(child.outbound));
    assert_eq!(answer, delete(child.inbound));
    assert!(world.sas(B)[0].children.is_empty());
    // Once more, it is of no SA: an empty answer.
    assert_eq!(peer.request(&mut world, exchange::INFORMATIONAL, &delete(child.outbound)), []);
}

/// RFC 7296 section 2.3: what is outside the window is dropped; INVALID_MESSAGE_ID is never a response.
#[test]
fn a_request_outside_the_window_is_dropped_without_an_answer() {
    let mut world = World::new(14);
    let mut peer = Peer::established(&mut world);
    peer.skip(5);
    assert_eq!(peer.request_octets(&mut world, exchange::INFORMATIONAL, payload_type::NONE, &[]), None);
    peer.skip(-5);
    assert_eq!(peer.request(&mut world, exchange::INFORMATIONAL, &[]), []);
}

/// RFC 6290 section 4.4: tokens of a peer are taken in any protected exchange; four are kept (section 4.5).
#[test]
fn gratuitous_tokens_are_stored_and_the_newest_four_verify() {
    let mut world = World::new(15);
    let mut peer = Peer::established(&mut world);
    let id = world.sas(B)[0].id;
    let token = |octet: u8| vec![octet; 32];
    for octet in 1..=6 {
        let payload = Payload::Notify(Notify {
            kind: notify::QUICK_CRASH_DETECTION,
            protocol: protocol::IKE,
            spi: vec![],
            data: token(octet),
        });
        assert_eq!(peer.request(&mut world, exchange::INFORMATIONAL, &[payload]), []);
    }
    let held: Vec<u8> =
        (1..=6).filter(|n| world.sides[B].endpoint.verify_token(id, &token(*n)).is_some()).collect();
    assert_eq!(held, [3, 4, 5, 6]);
}

/// RFC 6290 section 9.1: what is shown and what is written of an IKE SA holds no token.
#[test]
fn no_token_shows_in_what_people_see() {
    let world = World::established(16);
    let token = world::token(B, world.sas(A)[0].spis);
    let shown = format!("{:?} {:?}", world.sas(A), world.sides[A].reports);
    assert!(world.sas(A)[0].token_held);
    assert!(!shown.contains(&format!("{token:?}")[1..20]), "{shown}");
}

/// RFC 7296 section 2.21: IKE_SA_INIT's own errors aside, what comes in clear is never answered.
#[test]
fn errors_in_clear_get_no_answer() {
    let mut world = World::new(17);
    let peer = Peer::established(&mut world);
    world.recorded.clear();
    for (kind, response) in [(4, true), (4, false), (11, false), (7, false), (16419, true), (16384, false)] {
        let header = Header {
            spis: peer.spis,
            next_payload: 0,
            exchange: exchange::INFORMATIONAL,
            response,
            initiator: true,
            message_id: 0,
        };
        let data = Message { header, payloads: vec![notification(kind, vec![1; 4])] }.emit();
        let (local, remote) = (world.sides[B].address, world.sides[A].address);
        world.inject(B, Datagram { local, remote, data });
    }
    assert!(world.recorded.is_empty());
    assert_eq!(world.sas(B)[0].children.len(), 1);
}
