//! AEADs for ESP behind one trait, from several providers, chosen at start and tested with known answers.
//!
//! [`Provider::choose`] tests the providers in the order of their speed on this CPU and takes the first that
//! answers right; [`Provider::key`] expands a key. A packet is sealed and opened in place. A failed open leaves
//! nothing of the plaintext behind. AES-GCM is our own (`gcm`) where the CPU has the instructions; AWS-LC and
//! RustCrypto's portable code do the rest.
//!
//! Here also are [`prefetch`] and [`Lines`], since the crates that need them forbid unsafe code.

mod aws_lc;
#[cfg(target_arch = "x86_64")]
mod gcm;
mod lines;
mod portable;
mod prefetch;
mod scrub;
mod self_test;

pub use lines::{Line, Lines};
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
    /// AES-GCM with a 192-bit key.
    Aes192Gcm,
    /// AES-GCM with a 256-bit key.
    Aes256Gcm,
    /// ChaCha20-Poly1305 (RFC 8439).
    ChaCha20Poly1305,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Algorithm; 4] =
        [Algorithm::Aes128Gcm, Algorithm::Aes192Gcm, Algorithm::Aes256Gcm, Algorithm::ChaCha20Poly1305];

    /// Octets of a key.
    pub const fn key_length(self) -> usize {
        match self {
            Algorithm::Aes128Gcm => 16,
            Algorithm::Aes192Gcm => 24,
            Algorithm::Aes256Gcm | Algorithm::ChaCha20Poly1305 => 32,
        }
    }
}

/// A name for a key: 64 bits of the SHA-256 of these parts, by which nothing can be learned of it.
pub fn fingerprint(parts: &[&[u8]]) -> u64 {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    parts.iter().for_each(|part| context.update(part));
    let digest = context.finish();
    let mut first = [0; 8];
    first.copy_from_slice(&digest.as_ref()[..8]);
    u64::from_be_bytes(first)
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

    /// Asks for all cache lines of the key ahead of its use.
    #[inline]
    pub fn prefetch(&self) {
        prefetch(&*self.0);
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
    /// Our own AES-GCM on 512-bit vectors (VAES, VPCLMULQDQ, AVX-512); ChaCha20-Poly1305 is AWS-LC's.
    Vaes512,
    /// Our own AES-GCM on 256-bit vectors (VAES, VPCLMULQDQ); ChaCha20-Poly1305 is AWS-LC's.
    Vaes,
    /// Our own AES-GCM on single blocks (AES-NI, PCLMULQDQ); ChaCha20-Poly1305 is AWS-LC's.
    AesNi,
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
    pub const ALL: [Provider; 5] =
        [Provider::Vaes512, Provider::Vaes, Provider::AesNi, Provider::AwsLc, Provider::Portable];

    /// Those that this CPU has the instructions for, the fastest first.
    pub fn available() -> impl Iterator<Item = Provider> {
        Self::ALL.into_iter().filter(|provider| provider.is_available())
    }

    /// Has this CPU the instructions for it?
    pub fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Provider::Vaes512 => gcm::is_available(gcm::Width::Four),
            #[cfg(target_arch = "x86_64")]
            Provider::Vaes => gcm::is_available(gcm::Width::Two),
            #[cfg(target_arch = "x86_64")]
            Provider::AesNi => gcm::is_available(gcm::Width::One),
            #[cfg(not(target_arch = "x86_64"))]
            Provider::Vaes512 | Provider::Vaes | Provider::AesNi => false,
            Provider::AwsLc | Provider::Portable => true,
        }
    }

    /// The fastest available provider that passes the self-test.
    pub fn choose() -> Result<Choice, NoProvider> {
        Self::choose_with(self_test::run)
    }

    fn choose_with(
        test: impl Fn(&dyn Fn(Algorithm, &[u8]) -> Option<Key>) -> Result<(), Algorithm>,
    ) -> Result<Choice, NoProvider> {
        let mut failed = Vec::new();
        for provider in Self::available() {
            match test(&|algorithm, key| provider.key(algorithm, key)) {
                Ok(()) => return Ok(Choice { provider, failed }),
                Err(algorithm) => failed.push((provider, algorithm)),
            }
        }
        Err(NoProvider)
    }

    /// Expands a key; `None` if its length is not the algorithm's, or this provider is not available.
    pub fn key(self, algorithm: Algorithm, key: &[u8]) -> Option<Key> {
        if key.len() != algorithm.key_length() {
            return None;
        }
        Some(Key(match (self, algorithm) {
            (provider, _) if !provider.is_available() => return None,
            (Provider::Portable, _) => portable::key(algorithm, key)?,
            (Provider::AwsLc, _) | (_, Algorithm::ChaCha20Poly1305) => aws_lc::key(algorithm, key)?,
            #[cfg(target_arch = "x86_64")]
            (Provider::Vaes512, _) => gcm::key(gcm::Width::Four, algorithm, key)?,
            #[cfg(target_arch = "x86_64")]
            (Provider::Vaes, _) => gcm::key(gcm::Width::Two, algorithm, key)?,
            #[cfg(target_arch = "x86_64")]
            (Provider::AesNi, _) => gcm::key(gcm::Width::One, algorithm, key)?,
            #[cfg(not(target_arch = "x86_64"))]
            (Provider::Vaes512 | Provider::Vaes | Provider::AesNi, _) => return None,
        }))
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Provider::Vaes512 => "vaes-512",
            Provider::Vaes => "vaes",
            Provider::AesNi => "aes-ni",
            Provider::AwsLc => "aws-lc",
            Provider::Portable => "portable",
        })
    }
}

#[cfg(test)]
mod tests;
