//! AEADs for ESP behind one trait, from several providers, chosen at start and tested with known answers.
//!
//! [`Provider::choose`] tests the providers in the order of their speed on this CPU and takes the first that
//! answers right; [`Provider::key`] expands a key. A packet is sealed and opened in place. A failed open leaves
//! nothing of the plaintext behind. There is room here for a kernel of our own: one more variant of `Provider`,
//! one more `impl EspAead`.
//!
//! Here also is [`prefetch`], since the crates that need it forbid unsafe code.

mod aws_lc;
mod portable;
mod prefetch;
mod scrub;
mod self_test;

pub use prefetch::prefetch;

use std::fmt;

/// Octets of a nonce: salt and explicit IV (RFC 4106 section 4, RFC 7634 section 2).
pub const NONCE_LENGTH: usize = 12;
/// Octets of an ICV (RFC 4106 section 6 makes 16 the one that all support).
pub const TAG_LENGTH: usize = 16;

/// An AEAD algorithm.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Algorithm {
    /// AES-GCM with a 128-bit key.
    Aes128Gcm,
    /// AES-GCM with a 256-bit key.
    Aes256Gcm,
    /// ChaCha20-Poly1305 (RFC 8439).
    ChaCha20Poly1305,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Algorithm; 3] = [Algorithm::Aes128Gcm, Algorithm::Aes256Gcm, Algorithm::ChaCha20Poly1305];

    /// Octets of a key.
    pub const fn key_length(self) -> usize {
        match self {
            Algorithm::Aes128Gcm => 16,
            Algorithm::Aes256Gcm | Algorithm::ChaCha20Poly1305 => 32,
        }
    }
}

/// The tag does not match: the packet is not authentic.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotAuthentic;

impl fmt::Display for NotAuthentic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the packet is not authentic")
    }
}

impl std::error::Error for NotAuthentic {}

/// One expanded key of one provider.
pub trait EspAead: Send + Sync {
    /// Encrypts `buffer` in place and writes the tag. The nonce must never have been used with this key.
    fn seal(&self, nonce: &[u8; NONCE_LENGTH], aad: &[u8], buffer: &mut [u8], tag: &mut [u8; TAG_LENGTH]);

    /// Checks the tag in constant time and decrypts `buffer` in place; on failure `buffer` is all zeros.
    fn open(
        &self,
        nonce: &[u8; NONCE_LENGTH],
        aad: &[u8],
        buffer: &mut [u8],
        tag: &[u8; TAG_LENGTH],
    ) -> Result<(), NotAuthentic>;
}

/// An expanded key, ready for packets. Zeroised on drop, redacted in Debug.
pub struct Key(Box<dyn EspAead>);

impl Key {
    /// See [`EspAead::seal`].
    #[inline]
    pub fn seal(
        &self,
        nonce: &[u8; NONCE_LENGTH],
        aad: &[u8],
        buffer: &mut [u8],
        tag: &mut [u8; TAG_LENGTH],
    ) {
        self.0.seal(nonce, aad, buffer, tag);
    }

    /// See [`EspAead::open`].
    #[inline]
    pub fn open(
        &self,
        nonce: &[u8; NONCE_LENGTH],
        aad: &[u8],
        buffer: &mut [u8],
        tag: &[u8; TAG_LENGTH],
    ) -> Result<(), NotAuthentic> {
        self.0.open(nonce, aad, buffer, tag)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(redacted)")
    }
}

/// Who encrypts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Provider {
    /// AWS-LC, with the CPU's own instructions.
    #[default]
    AwsLc,
    /// RustCrypto's code, which runs everywhere.
    Portable,
}

/// What [`Provider::choose`] found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Choice {
    /// The provider to use.
    pub provider: Provider,
    /// Faster providers that answered wrongly, and with which algorithm. To be logged: something is amiss.
    pub failed: Vec<(Provider, Algorithm)>,
}

/// No provider passes its self-test: this machine cannot encrypt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoProvider;

impl fmt::Display for NoProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no AEAD provider passes its self-test on this machine")
    }
}

impl std::error::Error for NoProvider {}

impl Provider {
    /// All of them, the fastest first.
    pub const ALL: [Provider; 2] = [Provider::AwsLc, Provider::Portable];

    /// The fastest provider that passes the self-test.
    pub fn choose() -> Result<Choice, NoProvider> {
        Self::choose_with(self_test::run)
    }

    fn choose_with(
        test: impl Fn(&dyn Fn(Algorithm, &[u8]) -> Option<Key>) -> Result<(), Algorithm>,
    ) -> Result<Choice, NoProvider> {
        let mut failed = Vec::new();
        for provider in Self::ALL {
            match test(&|algorithm, key| provider.key(algorithm, key)) {
                Ok(()) => return Ok(Choice { provider, failed }),
                Err(algorithm) => failed.push((provider, algorithm)),
            }
        }
        Err(NoProvider)
    }

    /// Expands a key; `None` if its length is not the algorithm's.
    pub fn key(self, algorithm: Algorithm, key: &[u8]) -> Option<Key> {
        if key.len() != algorithm.key_length() {
            return None;
        }
        Some(Key(match self {
            Provider::AwsLc => aws_lc::key(algorithm, key)?,
            Provider::Portable => portable::key(algorithm, key)?,
        }))
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Provider::AwsLc => "aws-lc",
            Provider::Portable => "portable",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cell::Cell;

    #[test]
    fn every_provider_passes_the_self_test() {
        for provider in Provider::ALL {
            assert_eq!(self_test::run(&|algorithm, key| provider.key(algorithm, key)), Ok(()), "{provider}");
        }
        assert_eq!(Provider::choose(), Ok(Choice { provider: Provider::AwsLc, failed: vec![] }));
    }

    #[test]
    fn a_provider_that_answers_wrongly_is_passed_over_and_named() {
        let calls = Cell::new(0);
        let choice = Provider::choose_with(|_| {
            calls.set(calls.get() + 1);
            if calls.get() == 1 { Err(Algorithm::Aes256Gcm) } else { Ok(()) }
        });
        let failed = vec![(Provider::AwsLc, Algorithm::Aes256Gcm)];
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

    #[test]
    fn keys_of_another_length_are_refused_and_never_shown() {
        for provider in Provider::ALL {
            assert!(provider.key(Algorithm::Aes128Gcm, &[0; 32]).is_none());
            assert!(provider.key(Algorithm::Aes256Gcm, &[0; 16]).is_none());
            let key = provider.key(Algorithm::ChaCha20Poly1305, &[7; 32]).unwrap();
            assert_eq!(format!("{key:?}"), "Key(redacted)");
        }
    }

    proptest! {
        #[test]
        fn providers_seal_alike_and_open_each_others(
            key: [u8; 32], nonce: [u8; 12], long_aad: bool, length in 0usize..=2048, seed: u8,
        ) {
            let aad = &[0xa1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12][..if long_aad { 12 } else { 8 }];
            let plain: Vec<u8> = (0..length).map(|i| (i as u8).wrapping_mul(31) ^ seed).collect();
            for algorithm in Algorithm::ALL {
                let keys = Provider::ALL.map(|p| p.key(algorithm, &key[..algorithm.key_length()]).unwrap());
                let sealed = keys.each_ref().map(|key| {
                    let (mut buffer, mut tag) = (plain.clone(), [0; 16]);
                    key.seal(&nonce, aad, &mut buffer, &mut tag);
                    (buffer, tag)
                });
                prop_assert_eq!(&sealed[0], &sealed[1]);
                for key in &keys {
                    let (mut buffer, tag) = sealed[0].clone();
                    prop_assert_eq!(key.open(&nonce, aad, &mut buffer, &tag), Ok(()));
                    prop_assert_eq!(&buffer, &plain);
                }
            }
        }

        #[test]
        fn what_was_changed_does_not_open_and_releases_nothing(
            key: [u8; 32], length in 1usize..=600, at in any::<prop::sample::Index>(), bit in 0u8..8, part in 0..3,
        ) {
            for (algorithm, provider) in
                Algorithm::ALL.into_iter().flat_map(|a| Provider::ALL.map(|p| (a, p)))
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
}
