//! All providers against each other, and what happens to one that is wrong.

use super::*;
use proptest::prelude::*;
use std::cell::Cell;

#[test]
fn every_provider_passes_the_self_test() {
    for provider in Provider::available() {
        assert_eq!(self_test::run(&|algorithm, key| provider.key(algorithm, key)), Ok(()), "{provider}");
    }
    let fastest = Provider::available().next().unwrap();
    assert_eq!(Provider::choose(), Ok(Choice { provider: fastest, failed: vec![] }));
}

#[test]
fn providers_that_answer_wrongly_are_passed_over_and_named() {
    let all: Vec<_> = Provider::available().collect();
    let calls = Cell::new(0);
    let choice = Provider::choose_with(|_| {
        calls.set(calls.get() + 1);
        if calls.get() < all.len() { Err(Algorithm::Aes256Gcm) } else { Ok(()) }
    });
    let failed = all[..all.len() - 1].iter().map(|provider| (*provider, Algorithm::Aes256Gcm)).collect();
    assert_eq!(choice, Ok(Choice { provider: Provider::Portable, failed }));
    assert_eq!(Provider::choose_with(|_| Err(Algorithm::Aes128Gcm)), Err(NoProvider));
}

#[test]
fn the_self_test_notices_a_wrong_key() {
    let broken = |algorithm: Algorithm, key: &[u8]| {
        let mut key = key.to_vec();
        key[0] ^= 1;
        Provider::Portable.key(algorithm, &key)
    };
    assert_eq!(self_test::run(&broken), Err(Algorithm::Aes128Gcm));
}

/// A provider that is right about short packets and wrong about long ones.
struct WrongFrom(usize, Key);

impl EspAead for WrongFrom {
    fn seal(&self, nonce: &[u8; NONCE_LENGTH], aad: &[u8], buffer: &mut [u8], tag: &mut [u8; TAG_LENGTH]) {
        self.1.seal(nonce, aad, buffer, tag);
        if buffer.len() >= self.0 {
            tag[0] ^= 1;
        }
    }
    fn open(
        &self,
        nonce: &[u8; NONCE_LENGTH],
        aad: &[u8],
        buffer: &mut [u8],
        tag: &[u8; TAG_LENGTH],
    ) -> Result<(), NotAuthentic> {
        let mut tag = *tag;
        if buffer.len() >= self.0 {
            tag[0] ^= 1;
        }
        self.1.open(nonce, aad, buffer, &tag)
    }
}

#[test]
fn the_self_test_notices_what_is_wrong_only_with_long_packets() {
    for limit in [129, 257, 2048] {
        let broken = |algorithm: Algorithm, key: &[u8]| {
            Some(Key(Box::new(WrongFrom(limit, Provider::Portable.key(algorithm, key)?))))
        };
        assert_eq!(self_test::run(&broken), Err(Algorithm::Aes128Gcm), "{limit}");
    }
}

#[test]
fn keys_of_another_length_are_refused_and_never_shown() {
    for provider in Provider::available() {
        assert!(provider.key(Algorithm::Aes128Gcm, &[0; 32]).is_none());
        assert!(provider.key(Algorithm::Aes256Gcm, &[0; 16]).is_none());
        let key = provider.key(Algorithm::ChaCha20Poly1305, &[7; 32]).unwrap();
        assert_eq!(format!("{key:?}"), "Key(redacted)");
    }
}

/// ESP's additional data are 8 octets, with extended sequence numbers 12 (RFC 4106 section 5).
#[test]
fn every_length_seals_as_the_portable_provider_does_and_comes_back() {
    let plain: Vec<u8> = (0..2048u32).map(|i| (i * 167 + 13) as u8).collect();
    for algorithm in Algorithm::ALL {
        let secret: Vec<u8> = (0..algorithm.key_length() as u8).map(|i| i * 7 + 1).collect();
        let oracle = Provider::Portable.key(algorithm, &secret).unwrap();
        let keys: Vec<_> = Provider::available().map(|p| (p, p.key(algorithm, &secret).unwrap())).collect();
        let (mut expected, mut buffer) = (Vec::new(), Vec::new());
        for length in 0..=plain.len() {
            for aad in [8, 12] {
                let (mut nonce, mut expected_tag, mut tag) = ([aad; 12], [0; 16], [0; 16]);
                nonce[4..8].copy_from_slice(&(length as u32).to_be_bytes());
                let aad = &plain[length / 2..][..usize::from(aad)];
                expected.clear();
                expected.extend_from_slice(&plain[..length]);
                oracle.seal(&nonce, aad, &mut expected, &mut expected_tag);
                for (provider, key) in &keys {
                    buffer.clear();
                    buffer.extend_from_slice(&plain[..length]);
                    key.seal(&nonce, aad, &mut buffer, &mut tag);
                    assert!(buffer == expected && tag == expected_tag, "{provider} {algorithm:?} {length}");
                    let opened = key.open(&nonce, aad, &mut buffer, &tag);
                    assert!(opened.is_ok() && buffer == plain[..length], "{provider} {algorithm:?} {length}");
                }
            }
        }
    }
}

/// Octets beside the buffer stay as they are, wherever it begins.
#[test]
fn nothing_outside_the_buffer_is_touched() {
    for provider in Provider::available() {
        let key = provider.key(Algorithm::Aes128Gcm, &[3; 16]).unwrap();
        for length in (0..=300).chain([1411, 1412, 1413]) {
            let start = 1 + length % 16;
            let (mut memory, mut tag) = (vec![0xee; start + length + 32], [0; 16]);
            key.seal(&[1; 12], &[2; 8], &mut memory[start..start + length], &mut tag);
            tag[15] ^= u8::from(length % 2 == 0);
            let opened = key.open(&[1; 12], &[2; 8], &mut memory[start..start + length], &tag);
            let content = if length % 2 == 0 { 0 } else { 0xee };
            assert_eq!(opened.is_err(), length % 2 == 0);
            assert!(memory[start..start + length].iter().all(|octet| *octet == content));
            assert!(memory[..start].iter().chain(&memory[start + length..]).all(|octet| *octet == 0xee));
        }
    }
}

proptest! {
    #[test]
    fn providers_seal_alike_and_open_each_others(
        key: [u8; 32], nonce: [u8; 12], aad in prop::collection::vec(any::<u8>(), 0..70), length in 0usize..=2048,
        seed: u8,
    ) {
        let plain: Vec<u8> = (0..length).map(|i| (i as u8).wrapping_mul(31) ^ seed).collect();
        for algorithm in Algorithm::ALL {
            let keys: Vec<_> =
                Provider::available().map(|p| p.key(algorithm, &key[..algorithm.key_length()]).unwrap()).collect();
            let sealed: Vec<_> = keys.iter().map(|key| {
                let (mut buffer, mut tag) = (plain.clone(), [0; 16]);
                key.seal(&nonce, &aad, &mut buffer, &mut tag);
                (buffer, tag)
            }).collect();
            for other in &sealed {
                prop_assert_eq!(&sealed[0], other);
            }
            for key in &keys {
                let (mut buffer, tag) = sealed[0].clone();
                prop_assert_eq!(key.open(&nonce, &aad, &mut buffer, &tag), Ok(()));
                prop_assert_eq!(&buffer, &plain);
            }
        }
    }

    #[test]
    fn what_was_changed_does_not_open_and_releases_nothing(
        key: [u8; 32], length in 1usize..=600, at in any::<prop::sample::Index>(), bit in 0u8..8, part in 0..3,
    ) {
        for (algorithm, provider) in
            Algorithm::ALL.into_iter().flat_map(|a| Provider::available().map(move |p| (a, p)))
        {
            let key = provider.key(algorithm, &key[..algorithm.key_length()]).unwrap();
            let (mut buffer, mut tag, mut aad) = (vec![0x5a; length], [0; 16], [9u8; 8]);
            key.seal(&[1; 12], &aad, &mut buffer, &mut tag);
            let flipped: &mut [u8] = match part { 0 => &mut buffer, 1 => &mut tag, _ => &mut aad };
            let at = at.index(flipped.len());
            flipped[at] ^= 1 << bit;
            prop_assert_eq!(key.open(&[1; 12], &aad, &mut buffer, &tag), Err(NotAuthentic));
            prop_assert!(buffer.iter().all(|octet| *octet == 0));
        }
    }
}

/// FIPS 180-2 appendix B.1: SHA-256 of "abc".
#[test]
fn a_fingerprint_is_the_beginning_of_the_hash_of_all_parts() {
    assert_eq!(crate::fingerprint(&[b"a", b"", b"bc"]), 0xba78_16bf_8f01_cfea);
}
