//! Round trips, mutations, and what RFC 7296 names for each fault.

use super::*;
use crate::api::{Identity, IkeSpis};
use proptest::prelude::*;
use spindle_abi::{AddressRange, Selector, Spi, Suite};
use std::net::IpAddr;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|c| !c.is_ascii_whitespace()).collect();
    let digit = |c: u8| (c as char).to_digit(16).unwrap() as u8;
    digits.chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

fn octets(range: std::ops::RangeInclusive<usize>) -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), range)
}

fn header() -> impl Strategy<Value = Header> {
    (any::<([u8; 8], [u8; 8], u8, bool, bool, u32)>()).prop_map(
        |(initiator, responder, exchange, response, initiated, message_id)| Header {
            spis: IkeSpis { initiator: initiator.map(|o| o | 1), responder },
            next_payload: 0,
            exchange,
            response,
            initiator: initiated,
            message_id,
        },
    )
}

fn transform() -> impl Strategy<Value = Transform> {
    let unknown = prop_oneof![
        4 => Just(vec![]),
        1 => any::<[u8; 2]>().prop_map(|v| [&[0x80, 9], v.as_slice()].concat()),
        1 => octets(0..=9).prop_map(|v| [&[0, 9, 0, v.len() as u8], v.as_slice()].concat()),
    ];
    (any::<(u8, u16, Option<u16>)>(), unknown).prop_map(|((kind, id, key_length), unknown)| Transform {
        kind,
        id,
        key_length,
        unknown,
    })
}

fn proposal() -> impl Strategy<Value = Proposal> {
    (any::<(u8, u8)>(), octets(0..=8), proptest::collection::vec(transform(), 0..=8))
        .prop_map(|((number, protocol), spi, transforms)| Proposal { number, protocol, spi, transforms })
}

fn selector() -> impl Strategy<Value = Selector> {
    let range = prop_oneof![
        any::<([u8; 4], [u8; 4])>().prop_map(|(a, b)| (IpAddr::from(a.min(b)), IpAddr::from(a.max(b)))),
        any::<([u8; 16], [u8; 16])>().prop_map(|(a, b)| (IpAddr::from(a.min(b)), IpAddr::from(a.max(b)))),
    ];
    let ports = prop_oneof![any::<(u16, u16)>().prop_map(|(a, b)| (a.min(b), a.max(b))), Just((65535, 0)),];
    (range, any::<u8>(), ports).prop_map(|((start, end), protocol, (start_port, end_port))| Selector {
        addresses: AddressRange { start, end },
        protocol,
        start_port,
        end_port,
    })
}

fn identity() -> impl Strategy<Value = Identity> {
    prop_oneof![
        any::<[u8; 4]>().prop_map(|a| Identity::Address(a.into())),
        any::<[u8; 16]>().prop_map(|a| Identity::Address(a.into())),
        "[a-zä.]{0,20}".prop_map(Identity::Fqdn),
        "[a-z@]{0,20}".prop_map(Identity::Email),
        octets(0..=20).prop_map(Identity::KeyId),
    ]
}

fn payload() -> impl Strategy<Value = Payload> {
    let spis = || proptest::collection::vec(any::<u32>().prop_map(Spi), 0..=5);
    prop_oneof![
        proptest::collection::vec(proposal(), 1..=5).prop_map(Payload::Sa),
        (any::<u16>(), octets(0..=64)).prop_map(|(group, data)| Payload::KeyExchange { group, data }),
        identity().prop_map(|id| Payload::IdInitiator(Id::new(&id))),
        identity().prop_map(|id| Payload::IdResponder(Id::new(&id))),
        octets(0..=40).prop_map(Payload::Certificate),
        octets(0..=40).prop_map(Payload::CertificateRequest),
        (any::<u8>(), octets(0..=40)).prop_map(|(method, data)| Payload::Authentication { method, data }),
        octets(16..=256).prop_map(Payload::Nonce),
        (any::<(u16, u8)>(), octets(0..=8), octets(0..=40))
            .prop_map(|((kind, protocol), spi, data)| Payload::Notify(Notify { kind, protocol, spi, data })),
        prop_oneof![Just(Delete::Ike), spis().prop_map(Delete::Esp), spis().prop_map(Delete::Ah)]
            .prop_map(Payload::Delete),
        octets(0..=40).prop_map(Payload::VendorId),
        proptest::collection::vec(selector(), 0..=5).prop_map(Payload::TsInitiator),
        proptest::collection::vec(selector(), 0..=5).prop_map(Payload::TsResponder),
        octets(0..=40).prop_map(Payload::Configuration),
        octets(0..=40).prop_map(Payload::Eap),
        (128..=255u8, octets(0..=40)).prop_map(|(kind, body)| Payload::Unknown { kind, body }),
    ]
}

fn message() -> impl Strategy<Value = Message> {
    (header(), proptest::collection::vec(payload(), 0..=8)).prop_map(|(mut header, payloads)| {
        header.next_payload = payload::first_type(&payloads);
        Message { header, payloads }
    })
}

fn suite() -> impl Strategy<Value = Suite> {
    prop::sample::select(&Suite::ALL[..])
}

fn keys(suite: Suite) -> (SealingKey, OpeningKey) {
    let key: Vec<u8> = (0..suite.keymat_length() as u8).collect();
    (SealingKey::new(suite, &key), OpeningKey::new(suite, &key))
}

proptest! {
    #[test]
    fn a_message_in_clear_parses_to_what_was_emitted(message in message()) {
        let octets = message.emit();
        prop_assert_eq!(Message::parse(&octets), Ok(message));
    }

    #[test]
    fn a_sealed_message_opens_to_what_was_sealed(message in message(), suite in suite()) {
        let (mut sealing, opening) = keys(suite);
        let first = seal(&message.header, &message.payloads, &mut sealing);
        let second = seal(&message.header, &message.payloads, &mut sealing);
        // No IV is used twice.
        prop_assert_ne!(&first[32..40], &second[32..40]);
        for octets in [first, second] {
            let view = View::parse(&octets).unwrap();
            prop_assert_eq!(view.protection(), Some(Protection::Sk));
            prop_assert_eq!(view.header().next_payload, payload_type::SK);
            prop_assert_eq!(&view.message().unwrap().payloads, &[]);
            prop_assert_eq!(view.open(&opening), Ok(message.payloads.clone()));
        }
    }

    #[test]
    fn a_sealed_message_with_any_octet_changed_is_not_opened(
        message in message(), suite in suite(), at in any::<prop::sample::Index>(), flip in 1..=255u8,
    ) {
        let (mut sealing, opening) = keys(suite);
        let mut octets = seal(&message.header, &message.payloads, &mut sealing);
        let at = at.index(octets.len());
        octets[at] ^= flip;
        if let Ok(view) = View::parse(&octets) {
            prop_assert!(matches!(view.open(&opening), Err(Error::Integrity | Error::Unprotected)));
        }
    }

    #[test]
    fn nothing_panics_and_what_parses_survives_a_round_trip(
        message in message(), flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(), cuts in any::<bool>(),
    ) {
        let mut octets = message.emit();
        for (at, value) in flips {
            let at = at.index(octets.len());
            octets[at] = value;
        }
        if cuts {
            octets.truncate(cut.index(octets.len()).max(HEADER_LENGTH));
        }
        fuzz(&octets[HEADER_LENGTH..]);
        octets.resize(octets.len().max(HEADER_LENGTH), 0);
        header::set_length(&mut octets);
        fuzz(&octets);
    }

    #[test]
    fn arbitrary_octets_do_no_harm(octets in octets(0..=300)) {
        fuzz(&octets);
    }

    #[test]
    fn an_identity_comes_back_from_its_payload(identity in identity()) {
        prop_assert_eq!(Id::new(&identity).identity(), Some(identity));
    }
}

fn empty(exchange: u8) -> Message {
    let header = Header {
        spis: IkeSpis { initiator: [1; 8], responder: [2; 8] },
        next_payload: 0,
        exchange,
        response: false,
        initiator: true,
        message_id: 7,
    };
    Message { header, payloads: vec![] }
}

/// A message of one payload with this body, its generic header's flags as given.
fn single(kind: u8, flags: u8, body: &[u8]) -> Vec<u8> {
    let mut octets = header::emit(&empty(exchange::INFORMATIONAL).header, kind);
    octets.extend_from_slice(&[0, flags, 0, 4 + u8::try_from(body.len()).unwrap()]);
    octets.extend_from_slice(body);
    header::set_length(&mut octets);
    octets
}

/// RFC 7634 appendix B; RFC 5282 section 5.1.
#[test]
fn the_ikev2_example_of_rfc_7634_opens_and_seals_alike() {
    let datagram = hex("c0c1c2c3c4c5c6c7d0d1d2d3d4d5d6d72e20250000000009000000452900002910111213141516176103
         94701f8d017f7c129248896b71bfe25236efd7cdc67066906315b2");
    let key: Vec<u8> = (0x80..=0xa3).collect();
    let notify = Notify { kind: notify::SET_WINDOW_SIZE, protocol: 0, spi: vec![], data: vec![0, 0, 0, 10] };
    let view = View::parse(&datagram).unwrap();
    assert_eq!(view.header().message_id, 9);
    let opened = view.open(&OpeningKey::new(Suite::ChaCha20Poly1305, &key)).unwrap();
    assert_eq!(opened, [Payload::Notify(notify)]);
    let mut sealing = SealingKey::new(Suite::ChaCha20Poly1305, &key);
    sealing.skip_to(0x1011_1213_1415_1617);
    // The example has no I flag.
    assert_eq!(seal(&view.header(), &opened, &mut sealing), datagram);
}

/// RFC 7296 section 2.5.
#[test]
fn minor_versions_are_accepted_and_major_ones_answered() {
    let mut octets = empty(exchange::INFORMATIONAL).emit();
    octets[17] = 0x2f;
    assert!(Message::parse(&octets).is_ok());
    octets[17] = 0x30;
    let error = Message::parse(&octets).unwrap_err();
    assert!(matches!(error, Error::MajorVersion { version: 3, header } if header.message_id == 7));
    let answer = error.notify().unwrap();
    assert_eq!((answer.kind, answer.data), (notify::INVALID_MAJOR_VERSION, vec![]));
    octets[17] = 0x10;
    assert!(matches!(Message::parse(&octets), Err(Error::Malformed(_))));
}

/// RFC 7296 section 3.1.
#[test]
fn a_length_other_than_the_datagrams_is_malformed() {
    let mut octets = empty(exchange::INFORMATIONAL).emit();
    octets.push(0);
    assert_eq!(Message::parse(&octets), Err(Error::Malformed("length")));
    assert_eq!(Message::parse(&octets[..27]), Err(Error::Malformed("short header")));
}

/// RFC 7296 section 2.5: RESERVED and flags are ignored on receipt and zero when sent; C counts for unknown types only.
#[test]
fn reserved_fields_are_ignored_and_only_unknown_payloads_can_be_critical() {
    for flags in [0, 0x7f, 0xff] {
        let mut octets = single(payload_type::VENDOR_ID, flags, b"x");
        octets[19] |= 0xd7;
        let message = Message::parse(&octets).unwrap();
        assert_eq!(message.payloads, [Payload::VendorId(b"x".to_vec())]);
        let emitted = message.emit();
        assert_eq!((emitted[19], emitted[29]), (0x08, 0));
    }
    let unknown = Payload::Unknown { kind: 200, body: b"x".to_vec() };
    assert_eq!(Message::parse(&single(200, 0x7f, b"x")).unwrap().payloads, [unknown]);
    let error = Message::parse(&single(200, 0x80, b"x")).unwrap_err();
    let answer = error.notify().unwrap();
    assert_eq!((answer.kind, answer.data), (notify::UNSUPPORTED_CRITICAL_PAYLOAD, vec![200]));
}

#[test]
fn each_malformed_payload_is_invalid_syntax() {
    let ts = |body: &[u8]| [&[1, 0, 0, 0], body].concat();
    let cases: [(u8, Vec<u8>); 18] = [
        (payload_type::NONCE, vec![0; 15]),
        (payload_type::NONCE, vec![0; 257 - 256]),
        (payload_type::KE, vec![0; 3]),
        (payload_type::ID_INITIATOR, vec![1, 0, 0]),
        (payload_type::AUTH, vec![2]),
        (payload_type::NOTIFY, vec![0, 0, 0]),
        (payload_type::NOTIFY, vec![3, 4, 0, 11, 0, 0, 0]),
        (payload_type::DELETE, vec![3, 4, 0, 2, 0, 0, 1, 0]),
        (payload_type::DELETE, vec![3, 8, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0]),
        (payload_type::DELETE, vec![1, 8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1]),
        (payload_type::SA, vec![]),
        (payload_type::SA, vec![2, 0, 0, 8, 1, 1, 0, 0]),
        (payload_type::SA, vec![0, 0, 0, 8, 1, 1, 0, 1]),
        (payload_type::SA, vec![0, 0, 0, 7, 1, 1, 0, 0]),
        (payload_type::TS_INITIATOR, ts(&[7, 0, 0, 15, 0, 0, 255, 255, 1, 1, 1, 1, 1, 1, 1])),
        (payload_type::TS_INITIATOR, ts(&[7, 0, 0, 16, 0, 0, 255, 255, 1, 1, 1, 2, 1, 1, 1, 1])),
        (payload_type::TS_INITIATOR, ts(&[7, 0, 0, 16, 0, 9, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1])),
        (payload_type::TS_RESPONDER, vec![65, 0, 0, 0]),
    ];
    for (kind, body) in cases {
        let error = Message::parse(&single(kind, 0, &body)).unwrap_err();
        assert_eq!(error.notify().map(|n| n.kind), Some(notify::INVALID_SYNTAX), "{kind} {body:?}: {error}");
    }
    let mut cut = single(payload_type::VENDOR_ID, 0, b"xy");
    cut[31] = 3;
    assert!(matches!(Message::parse(&cut), Err(Error::Malformed(_))));
}

/// RFC 7296 sets no bound to any of these: what exceeds ours is walked over, and the message stands.
#[test]
fn bounds_hold_on_what_is_kept_of_a_message_and_refuse_none() {
    let with = |payloads| Message { payloads, ..empty(exchange::INFORMATIONAL) }.emit();
    let kept = |payloads| Message::parse(&with(payloads)).unwrap().payloads;
    let vendor = Payload::VendorId(vec![]);
    assert_eq!(kept(vec![vendor.clone(); 33]).len(), 33);
    assert_eq!(kept(vec![vendor; 1000]).len(), MAX_PAYLOADS);
    let notify = Payload::Notify(Notify { kind: 16430, protocol: 0, spi: vec![], data: vec![] });
    let nonce = Payload::Nonce(vec![7; 16]);
    let mixed = kept([vec![notify; 100], vec![nonce.clone()]].concat());
    assert_eq!((mixed.len(), mixed.last()), (MAX_NOTIFIES + 1, Some(&nonce)));
    let transform = Transform { kind: 1, id: 1, key_length: None, unknown: vec![] };
    let of =
        |count| Proposal { number: 1, protocol: 1, spi: vec![], transforms: vec![transform.clone(); count] };
    assert_eq!(kept(vec![Payload::Sa(vec![of(255)])]), [Payload::Sa(vec![of(255)])]);
    let Payload::Sa(proposals) = &kept(vec![Payload::Sa(vec![of(0); 300])])[0] else { panic!() };
    assert_eq!(proposals.len(), MAX_PROPOSALS);
    let any = Selector::addresses([0, 0, 0, 0].into(), [255; 4].into());
    let selectors = Payload::TsInitiator(vec![any; 255]);
    assert_eq!(kept(vec![selectors.clone()]), [selectors]);
}

/// RFC 7296 section 3.11: of a protocol that is not known here there is nothing to delete.
#[test]
fn a_delete_of_nothing_that_is_known_is_ignored() {
    for body in [vec![9, 4, 0, 1, 1, 2, 3, 4], vec![9, 0, 0, 0], vec![3, 0, 0, 0], vec![2, 8, 0, 0]] {
        let payloads = Message::parse(&single(payload_type::DELETE, 0, &body)).unwrap().payloads;
        assert!(matches!(payloads[..], [Payload::Unknown { .. }]), "{body:?}: {payloads:?}");
    }
}

/// RFC 7296 section 2.9: a selector of unknown type is passed over, the others count.
#[test]
fn traffic_selectors_of_unknown_type_are_skipped() {
    let known = [7, 17, 0, 16, 0, 53, 0, 53, 10, 0, 0, 0, 10, 0, 0, 255];
    let body = [&[2, 0, 0, 0, 9, 0, 0, 8, 1, 2, 3, 4], known.as_slice()].concat();
    let payloads = Message::parse(&single(payload_type::TS_INITIATOR, 0, &body)).unwrap().payloads;
    let [Payload::TsInitiator(selectors)] = payloads.as_slice() else { panic!("{payloads:?}") };
    assert_eq!(selectors.len(), 1);
    assert!(selectors[0].matches("10.0.0.9".parse().unwrap(), 17, Some(53)));
}

/// RFC 7296 section 3.14: SK is the last payload. RFC 7383 section 2.5: fragments are numbered from 1.
#[test]
fn sk_is_last_and_fragments_are_recognised() {
    let mut after = single(payload_type::SK, 0, &[0; 24]);
    after.extend_from_slice(&[0, 0, 0, 4]);
    header::set_length(&mut after);
    assert_eq!(View::parse(&after).unwrap_err(), Error::Malformed("octets after the SK payload"));
    let fragment = |number: u8, total: u8| {
        let datagram = single(payload_type::SKF, 0, &[&[0, number, 0, total], [0; 24].as_slice()].concat());
        View::parse(&datagram).map(|view| {
            assert_eq!(view.open(&keys(Suite::Aes128Gcm).1), Err(Error::Unprotected));
            view.protection()
        })
    };
    assert_eq!(fragment(1, 2), Ok(Some(Protection::Fragment { number: 1, total: 2 })));
    assert!(fragment(0, 2).is_err() && fragment(3, 2).is_err());
}

/// RFC 7296 section 3.14: any padding is accepted; one that is longer than the text is not.
#[test]
fn padding_of_any_content_is_accepted_up_to_the_text() {
    let key: Vec<u8> = (0..20).collect();
    let opened = |text: &[u8]| {
        let mut datagram = single(payload_type::SK, 0, &[&[0; 8], text, &[0; 16]].concat());
        datagram[28] = payload_type::VENDOR_ID;
        let (additional, rest) = datagram.split_at_mut(32);
        let (text, icv) = rest[8..].split_last_chunk_mut::<16>().unwrap();
        *icv = crate::crypto::Aead::new(Suite::Aes128Gcm, &key).seal([0; 8], additional, text);
        View::parse(&datagram).unwrap().open(&OpeningKey::new(Suite::Aes128Gcm, &key))
    };
    let vendor = vec![Payload::VendorId(b"x".to_vec())];
    assert_eq!(opened(&[0, 0, 0, 5, b'x', 0]), Ok(vendor.clone()));
    assert_eq!(opened(&[0, 0, 0, 5, b'x', 7, 8, 9, 3]), Ok(vendor));
    assert_eq!(opened(&[0, 0, 0, 5, b'x', 6]), Err(Error::Malformed("Pad Length")));
    assert_eq!(opened(&[]), Err(Error::Malformed("no Pad Length")));
}

/// RFC 3948 section 2.2.
#[test]
fn the_non_esp_marker_tells_ike_from_esp() {
    assert_eq!(strip_non_esp_marker(&add_non_esp_marker(b"message")), Some(b"message".as_slice()));
    assert_eq!(strip_non_esp_marker(&[0, 0, 1, 0, 9]), None);
    assert_eq!(strip_non_esp_marker(&[0xff]), None);
}
