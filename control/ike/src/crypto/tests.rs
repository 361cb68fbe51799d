//! Known answers: from RFCs, and for prf+ and what is built on it, where RFCs have none, from an independent
//! implementation (Python's `hmac`).

use super::*;
use crate::api::IkeSpis;
use crate::random::Random;
use crate::wire::{Proposal, Transform, protocol, transform};
use spindle_abi::Suite;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|c| !c.is_ascii_whitespace()).collect();
    let digit = |c: u8| (c as char).to_digit(16).unwrap() as u8;
    digits.chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

/// Gives what it was given.
struct Fixed(Vec<u8>);

impl Random for Fixed {
    fn fill(&mut self, octets: &mut [u8]) {
        let rest = self.0.split_off(octets.len());
        octets.copy_from_slice(&std::mem::replace(&mut self.0, rest));
    }
}

fn spis() -> IkeSpis {
    let of = |start: u8| std::array::from_fn(|i| start + i as u8);
    IkeSpis { initiator: of(0xc0), responder: of(0xd0) }
}

fn octets(start: u8) -> Vec<u8> {
    (start..start + 32).collect()
}

const SMALL: IkeSuite = IkeSuite { encryption: Suite::Aes128Gcm, prf: Prf::HmacSha256, group: Group::X25519 };

fn keys() -> IkeKeys {
    IkeKeys::new(SMALL, &octets(64), &octets(0), &octets(32), spis())
}

/// RFC 4231 section 4.3.
#[test]
fn prfs_are_the_hmacs_of_rfc_4231() {
    let data: [&[u8]; 2] = [b"what do ya want ", b"for nothing?"];
    let wanted = [
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
        "af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47e42ec3736322445e8e2240ca5e69e2c78b3239ecfab21649",
        "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea2505549758bf75c05a994a6d034f65f8f0e6fd
         caeab1a34d4a6b4b636e070a38bce737",
    ];
    for (prf, wanted) in Prf::ALL.into_iter().zip(wanted) {
        assert_eq!(*prf.compute(b"Jefe", &data), hex(wanted));
        assert_eq!(prf.length(), hex(wanted).len());
    }
}

/// RFC 7296 section 2.13.
#[test]
fn prf_plus_chains_its_blocks_and_cuts_the_last_one() {
    let wanted = hex(
        "245b57f46db11477bf9cd2e6adbc6244448af40400d70a9203399a48756b7dbf53087f405e438cf9bbb7d38b34915f6b
         7dab328fb2580112db91d3da5c383d3c2a4de7974aa900251aced8106d3c00211e0cfff95994a7bb4bd1649b19443e95
         7964c1e1",
    );
    assert_eq!(*Prf::HmacSha384.expand(b"key", &[b"se", b"ed"], 100), wanted);
    assert_eq!(*Prf::HmacSha384.expand(b"key", &[b"seed"], 48), wanted[..48]);
    assert_eq!(Prf::HmacSha256.expand(b"key", &[b"seed"], 255 * 32).len(), 255 * 32);
}

/// RFC 7748 section 6.1, RFC 8031 section 3.
#[test]
fn x25519_agrees_as_in_rfc_7748() {
    let a = hex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a");
    let b = hex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb");
    let (a, b) = (
        PrivateKey::generate(Group::X25519, &mut Fixed(a)),
        PrivateKey::generate(Group::X25519, &mut Fixed(b)),
    );
    assert_eq!(a.public(), hex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"));
    assert_eq!(b.public(), hex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"));
    let shared = hex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742");
    assert_eq!(*a.agree(b.public()).unwrap(), shared);
    assert_eq!(*b.agree(a.public()).unwrap(), shared);
}

/// RFC 5903 section 8.1.
#[test]
fn p256_agrees_as_in_rfc_5903() {
    let i = hex("C88F01F5 10D9AC3F 70A292DA A2316DE5 44E9AAB8 AFE84049 C62A9C57 862D1433");
    let r = hex("C6EF9C5D 78AE012A 011164AC B397CE20 88685D8F 06BF9BE0 B283AB46 476BEE53");
    let (i, r) =
        (PrivateKey::generate(Group::P256, &mut Fixed(i)), PrivateKey::generate(Group::P256, &mut Fixed(r)));
    let public = "DAD0B653 94221CF9 B051E1FE CA5787D0 98DFE637 FC90B9EF 945D0C37 72581180
                  5271A046 1CDB8252 D61F1C45 6FA3E59A B1F45B33 ACCF5F58 389E0577 B8990BB3";
    assert_eq!(i.public(), hex(public));
    let public = "D12DFB52 89C8D4F8 1208B702 70398C34 2296970A 0BCCB74C 736FC755 4494BF63
                  56FBF3CA 366CC23E 8157854C 13C58D6A AC23F046 ADA30F83 53E74F33 039872AB";
    assert_eq!(r.public(), hex(public));
    let shared = hex("D6840F6B 42F6EDAF D13116E0 E1256520 2FEF8E9E CE7DCE03 812464D0 4B9442DE");
    assert_eq!(*i.agree(r.public()).unwrap(), shared);
    assert_eq!(*r.agree(i.public()).unwrap(), shared);
}

/// RFC 8031 section 2.3 with RFC 7748 section 6.1; RFC 6989 section 2.3.
#[test]
fn public_values_that_a_group_forbids_are_refused() {
    let key = PrivateKey::generate(Group::X25519, &mut Fixed(octets(1)));
    for small_order in [[0; 32], std::array::from_fn(|i| u8::from(i == 0))] {
        assert_eq!(key.agree(&small_order), Err(ExchangeError));
    }
    assert_eq!(key.agree(&octets(1)[..31]), Err(ExchangeError));
    let key = PrivateKey::generate(Group::P256, &mut Fixed(octets(1)));
    let mut off_the_curve = key.public().to_vec();
    off_the_curve[63] ^= 1;
    for bad in [off_the_curve, vec![0; 64], vec![0xff; 64], key.public()[..32].to_vec(), vec![]] {
        assert_eq!(key.agree(&bad), Err(ExchangeError));
    }
}

#[test]
fn a_private_key_outside_the_order_is_drawn_again() {
    let key =
        PrivateKey::generate(Group::P256, &mut Fixed([vec![0; 32], vec![0xff; 32], octets(7)].concat()));
    let same = PrivateKey::generate(Group::P256, &mut Fixed(octets(7)));
    assert_eq!(key.public(), same.public());
}

/// The test cases 4 and 16 of the GCM specification (McGrew and Viega), which RFC 5282 builds on.
#[test]
fn aes_gcm_seals_as_its_specification_says() {
    let key = hex("feffe9928665731c6d6a8f9467308308");
    let text = "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72
                1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39";
    let cases = [
        (
            Suite::Aes128Gcm,
            key.clone(),
            "42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e
             21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e091",
            "5bc94fbc3221a5db94fae95ae7121a47",
        ),
        (
            Suite::Aes256Gcm,
            [key.clone(), key].concat(),
            "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa
             8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662",
            "76fc6ece0f4e1768cddf8853bb2d551b",
        ),
    ];
    let additional = hex("feedfacedeadbeeffeedfacedeadbeefabaddad2");
    for (suite, key, sealed, icv) in cases {
        let aead = Aead::new(suite, &[key, hex("cafebabe")].concat());
        let mut octets = hex(text);
        let iv = hex("facedbaddecaf888").try_into().unwrap();
        let made = aead.seal(iv, &additional, &mut octets);
        assert_eq!((octets.clone(), made.to_vec()), (hex(sealed), hex(icv)));
        assert!(aead.open(iv, &additional, &mut octets, &made));
        assert_eq!(octets, hex(text));
        assert!(!aead.open(iv, &additional[1..], &mut hex(sealed), &made));
    }
}

/// RFC 7296 section 2.14 and 2.17: both directions' keys come in the order that the RFC gives.
#[test]
fn keys_of_a_first_ike_sa_and_its_children_are_derived_in_order() {
    let keys = keys();
    let child = keys.child(Suite::ChaCha20Poly1305, None, &octets(0), &octets(32));
    let keymat = hex("275ec228a13999ad4dc601681707fdb7940b17a61f1405de30fb7905da56b71235b9f10e
         90182a294f387e19d6a6f8ad159acc6dea7c319eb31c83c10bfcf8ba1a2d0225fcac3dfb");
    assert_eq!(child.initiator.as_bytes(), &keymat[..36]);
    assert_eq!(child.responder.as_bytes(), &keymat[36..]);
    let child = keys.child(Suite::ChaCha20Poly1305, Some(&octets(64)), &octets(0), &octets(32));
    let keymat = hex("0c2ca7a1367e658fe95167fa028a4a0b8cb40afe6810bf29ff2a2b682f32454787c83e4e
         7420484bec6c77f7c6a42f102e7b03e281764adfafb744dab86b747842ad13ec4406341e");
    assert_eq!([child.initiator.as_bytes(), child.responder.as_bytes()].concat(), keymat);
}

/// RFC 7296 section 2.15.
#[test]
fn auth_with_a_shared_key_covers_message_nonce_and_identity() {
    let id = [&[2, 0, 0, 0], b"a.example".as_slice()].concat();
    let signed = keys().signed_octets(true, b"message", &octets(32), &id);
    let auth = psk_authentication(Prf::HmacSha256, b"secret", &signed);
    assert_eq!(*auth, hex("8b9b1a5d8231a1e2c4bfdb7b999c08b21a4a893cd723494fce7ec6e6bff4738a"));
    assert_ne!(signed, keys().signed_octets(false, b"message", &octets(32), &id));
    assert!(equal(&auth, &auth.clone()) && !equal(&auth, &auth[1..]) && !equal(&auth, &[0; 32]));
}

/// RFC 7296 section 2.18: SKEYSEED with the old prf and SK_d, the keys with the new prf and SPIs.
#[test]
fn a_rekeyed_ike_sa_takes_its_seed_from_the_old_one() {
    let suite = IkeSuite { encryption: Suite::Aes256Gcm, prf: Prf::HmacSha384, group: Group::P256 };
    let IkeSpis { initiator, responder } = spis();
    let swapped = IkeSpis { initiator: responder, responder: initiator };
    let new = keys().rekey(suite, &octets(64), &octets(0), &octets(32), swapped);
    assert_eq!(new.suite(), suite);
    // SK_d and SK_pr stand at both ends of what prf+ gave; they show by what they make.
    let sk_d = hex(
        "986252fce3d3144a53ccfe0117be38eb891d0506dc067a53d23d57fd56cc17de0fd3d12298b853dc6f40bd2b47d9d307",
    );
    let sk_pr = hex(
        "b3c16f45fa6bfd153ee33824a37e2c2941e82a1db929cd08d2daa580cadc38a996d6084be6cc8885cba3932997253c25",
    );
    let child = new.child(Suite::Aes128Gcm, None, b"i", b"r");
    assert_eq!(child.initiator.as_bytes(), &Prf::HmacSha384.expand(&sk_d, &[b"i", b"r"], 40)[..20]);
    assert_eq!(*new.signed_octets(false, b"", b"", b"id"), *Prf::HmacSha384.compute(&sk_pr, &[b"id"]));
}

/// RFC 5723 section 5.1, 4.3.3: SKEYSEED = prf(SK_d (old), "Resumption" | Ni | Nr), AUTH = prf(SK_p, octets).
#[test]
fn a_resumed_ike_sa_takes_its_seed_from_the_old_one_and_authenticates_by_its_own() {
    let keys = IkeKeys::resume(SMALL, &octets(96), &octets(0), &octets(32), spis());
    let child = keys.child(Suite::Aes128Gcm, None, &octets(0), &octets(32));
    let keymat = hex("2424479db88fefcb89eabbe159aceb33fb8f8230d62b7b6b64d082cda93e1b2db7f853060698bd02");
    assert_eq!([child.initiator.as_bytes(), child.responder.as_bytes()].concat(), keymat);
    let auth = [true, false].map(|initiator| keys.resumed_authentication(initiator, b"octets"));
    assert_eq!(*auth[0], hex("cedfb66a1964d4ca49295ca72138296a1103dcde83e3890e818afa46dce910d2"));
    assert_eq!(*auth[1], hex("9872d95ba835438408d4bdde84a28650b28948dbdb5775744190bf05a4843f6d"));
}

/// RFC 7296 section 2.23.
#[test]
fn nat_detection_hashes_spis_address_and_port() {
    let spis = IkeSpis { responder: [0; 8], ..spis() };
    let hash = nat_detection_hash(spis, "192.0.2.1:500".parse().unwrap());
    assert_eq!(hash.to_vec(), hex("85da37dca25da799c64cb789eaff08e0fb72c5b9"));
    assert_ne!(hash, nat_detection_hash(spis, "192.0.2.1:4500".parse().unwrap()));
}

#[test]
fn no_secret_shows_in_debug() {
    let text = format!("{:?} {:?}", keys(), PrivateKey::generate(Group::P256, &mut Fixed(octets(7))));
    assert!(text.starts_with("IkeKeys(IkeSuite") && text.ends_with("PrivateKey(P256)"), "{text}");
    let text = format!("{:?} {:?}", keys().sealing(true), keys().opening(true));
    assert_eq!(text, "SealingKey(..) OpeningKey(..)");
}

#[test]
fn proposals_print_as_they_parse() {
    for text in [
        "aes128gcm16-prfsha256-x25519",
        "aes256gcm16-prfsha384-ecp256",
        "chacha20poly1305-prfsha256-x25519",
        "aes128gcm16-aes256gcm16-prfsha256-prfsha512-x25519-ecp256",
    ] {
        assert_eq!(parse_ike(text).unwrap().to_string(), text);
    }
    for text in [
        "aes128gcm16",
        "aes256gcm16-x25519-esn",
        "chacha20poly1305-noesn-esn",
        "aes128gcm16-aes192gcm16-ecp256-x25519-esn-noesn",
    ] {
        assert_eq!(parse_esp(text).unwrap().to_string(), text);
    }
    assert_eq!(parse_esp("AES128GCM128-noesn-curve25519").unwrap().to_string(), "aes128gcm16-x25519");
}

#[test]
fn a_bad_proposal_names_the_fault_and_what_is_known() {
    let say = |text| parse_ike(text).unwrap_err().to_string();
    assert_eq!(
        say("aes128-prfsha256-x25519"),
        "proposal \"aes128-prfsha256-x25519\": \"aes128\" is not known; known are aes128gcm16, aes192gcm16, aes256gcm16, \
         chacha20poly1305, prfsha256, prfsha384, prfsha512, x25519, ecp256"
    );
    assert!(say("aes128gcm16-x25519").contains("names no pseudorandom function; known are prfsha256"));
    assert!(say("prfsha256-x25519").contains("names no encryption"));
    assert!(say("aes128gcm16-prfsha256").contains("names no key exchange"));
    assert!(say("").contains("\"\" is not known"));
    assert!(
        parse_ike("aes128gcm16-prfsha256-x25519-esn")
            .unwrap_err()
            .to_string()
            .contains("\"esn\" is not known")
    );
    assert!(parse_esp("x25519").unwrap_err().to_string().contains("names no encryption"));
    let text = parse_esp("aes128gcm16-prfsha256").unwrap_err().to_string();
    assert!(
        text.ends_with(
            "known are aes128gcm16, aes192gcm16, aes256gcm16, chacha20poly1305, esn, noesn, x25519, ecp256"
        ),
        "{text}"
    );
}

fn ike(text: &str) -> IkeProposal {
    parse_ike(text).unwrap()
}

/// RFC 7296 section 2.7, 3.3.
#[test]
fn the_responder_takes_its_own_first_choice_and_the_offers_number() {
    let offered = [
        ike("aes128gcm16-prfsha256-ecp256").to_wire(1, &[]),
        ike("aes128gcm16-aes256gcm16-prfsha256-prfsha384-x25519-ecp256").to_wire(2, &[]),
    ];
    let select = |ours: &[&str], preferred| {
        let ours: Vec<_> = ours.iter().map(|text| ike(text)).collect();
        select_ike(&ours, &offered, preferred).map(|(suite, offer)| (suite.to_string(), offer.number))
    };
    let all = "aes256gcm16-aes128gcm16-prfsha384-prfsha256-x25519-ecp256";
    assert_eq!(select(&[all], None).unwrap(), ("aes128gcm16-prfsha256-ecp256".into(), 1));
    let without_first = "aes256gcm16-prfsha512-prfsha384-prfsha256-x25519-ecp256";
    assert_eq!(select(&[without_first], None).unwrap(), ("aes256gcm16-prfsha384-x25519".into(), 2));
    // The group of the KE payload saves a round trip.
    let preferred = select(&[without_first], Some(Group::P256)).unwrap();
    assert_eq!(preferred, ("aes256gcm16-prfsha384-ecp256".into(), 2));
    let two = ["chacha20poly1305-prfsha256-x25519", "aes128gcm16-prfsha256-ecp256"];
    assert_eq!(select(&two, None).unwrap(), ("aes128gcm16-prfsha256-ecp256".into(), 1));
    assert_eq!(select(&["aes128gcm16-prfsha512-x25519"], None), Err(SelectionError));
    // What goes back is one transform of each type.
    let (suite, offer) = select_ike(&[ike(all)], &offered, None).unwrap();
    let back = IkeProposal::from(suite).to_wire(offer.number, &[]);
    assert_eq!(back.transforms.iter().map(|t| t.kind).collect::<Vec<_>>(), [1, 2, 4]);
}

/// RFC 7296 section 3.3.3, 3.3.5, 3.3.6.
#[test]
fn transforms_that_differ_in_an_attribute_or_type_are_not_taken() {
    let ours = [ike("aes128gcm16-prfsha256-x25519")];
    let taken = |change: &dyn Fn(&mut Proposal)| {
        let mut offer = ours[0].to_wire(1, &[]);
        change(&mut offer);
        select_ike(&ours, &[offer], None).is_ok()
    };
    let add = |kind, id| {
        move |p: &mut Proposal| p.transforms.push(Transform { kind, id, key_length: None, unknown: vec![] })
    };
    assert!(taken(&|_| ()));
    assert!(!taken(&|p| p.transforms[0].key_length = None));
    assert!(!taken(&|p| p.transforms[0].key_length = Some(192)));
    assert!(!taken(&|p| p.transforms[0].unknown = vec![0x80, 1, 0, 1]));
    assert!(!taken(&|p| p.protocol = protocol::ESP));
    assert!(taken(&add(transform::INTEGRITY, transform::INTEGRITY_NONE)));
    assert!(!taken(&add(transform::INTEGRITY, 12)));
    assert!(!taken(&add(6, 35)));
}

/// RFC 7296 section 3.3.2, 3.3.3: Extended Sequence Numbers are a transform like others; an offer without the type has none.
#[test]
fn extended_sequence_numbers_are_chosen_by_our_order_from_what_is_offered() {
    let esp = |text: &str| parse_esp(text).unwrap();
    let select = |ours: &str, offer: &Proposal| {
        select_esp(&[esp(ours)], std::slice::from_ref(offer), None, true).map(|(suite, _)| suite.to_string())
    };
    let both = esp("aes128gcm16-esn-noesn").to_wire(1, [0, 0, 1, 0], true);
    let ids = |p: &Proposal| {
        let types = p.transforms.iter().filter(|t| t.kind == transform::SEQUENCE_NUMBERS);
        types.map(|t| t.id).collect::<Vec<_>>()
    };
    assert_eq!(ids(&both), [transform::ESN, transform::NO_ESN]);
    assert_eq!(select("aes128gcm16-esn", &both).unwrap(), "aes128gcm16-esn");
    assert_eq!(select("aes128gcm16", &both).unwrap(), "aes128gcm16");
    assert_eq!(select("aes128gcm16-noesn-esn", &both).unwrap(), "aes128gcm16");
    let with = esp("aes128gcm16-esn").to_wire(1, [0, 0, 1, 0], true);
    assert_eq!(select("aes128gcm16-noesn-esn", &with).unwrap(), "aes128gcm16-esn");
    assert_eq!(select("aes128gcm16", &with), Err(SelectionError));
    let mut without = esp("aes128gcm16").to_wire(1, [0, 0, 1, 0], true);
    without.transforms.retain(|t| t.kind != transform::SEQUENCE_NUMBERS);
    assert_eq!(select("aes128gcm16-esn-noesn", &without).unwrap(), "aes128gcm16");
    assert_eq!(select("aes128gcm16-esn", &without), Err(SelectionError));
    // What goes back names the choice alone.
    let (suite, _) = select_esp(&[esp("aes128gcm16-esn")], &[both], None, true).unwrap();
    assert_eq!(ids(&EspProposal::from(suite).to_wire(1, [0, 0, 1, 0], true)), [transform::ESN]);
}

/// RFC 7296 section 1.2, 1.3.3, 3.3.2.
#[test]
fn a_child_sa_has_a_key_exchange_only_where_both_want_it() {
    let esp = |text: &str| parse_esp(text).unwrap();
    let select = |ours, offer: &str, key_exchange| {
        let offered = [esp(offer).to_wire(1, [0, 0, 1, 0], key_exchange)];
        select_esp(&[esp(ours)], &offered, None, key_exchange).map(|(suite, _)| suite.to_string())
    };
    assert_eq!(select("aes128gcm16", "aes256gcm16-aes128gcm16", true).unwrap(), "aes128gcm16");
    assert_eq!(select("aes128gcm16-x25519", "aes128gcm16-x25519", false).unwrap(), "aes128gcm16");
    assert_eq!(
        select("aes128gcm16-x25519", "aes128gcm16-ecp256-x25519", true).unwrap(),
        "aes128gcm16-x25519"
    );
    assert_eq!(select("aes128gcm16-x25519", "aes128gcm16", true), Err(SelectionError));
    assert_eq!(select("aes128gcm16", "aes128gcm16-x25519", true), Err(SelectionError));
    assert_eq!(select("chacha20poly1305", "aes128gcm16", false), Err(SelectionError));
    let none = |kind| {
        let mut offer = esp("aes128gcm16").to_wire(1, [0, 0, 1, 0], true);
        offer.transforms.last_mut().unwrap().id = transform::ESN;
        offer.transforms.push(Transform { kind, id: 0, key_length: None, unknown: vec![] });
        select_esp(&[esp("aes128gcm16")], &[offer], None, true).is_ok()
    };
    // Extended Sequence Numbers alone are not taken, as an alternative they are passed over.
    assert!(none(transform::SEQUENCE_NUMBERS) && !none(transform::KEY_EXCHANGE));
}
