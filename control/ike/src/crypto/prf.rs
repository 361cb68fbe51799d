//! Pseudorandom functions (RFC 7296 section 2.13, RFC 4868).

use super::Secret;
use crate::wire::transform;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Sha256, Sha384, Sha512};
use zeroize::Zeroizing;

/// A negotiated prf. Its keys may have any length; the preferred one is its output's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Prf {
    /// PRF_HMAC_SHA2_256.
    HmacSha256,
    /// PRF_HMAC_SHA2_384.
    HmacSha384,
    /// PRF_HMAC_SHA2_512.
    HmacSha512,
}

impl Prf {
    /// All of them.
    pub const ALL: [Prf; 3] = [Prf::HmacSha256, Prf::HmacSha384, Prf::HmacSha512];

    /// Its Transform ID.
    pub fn id(self) -> u16 {
        match self {
            Prf::HmacSha256 => transform::PRF_HMAC_SHA2_256,
            Prf::HmacSha384 => transform::PRF_HMAC_SHA2_384,
            Prf::HmacSha512 => transform::PRF_HMAC_SHA2_512,
        }
    }

    /// Octets of its output, and of the keys that are made for it.
    pub fn length(self) -> usize {
        match self {
            Prf::HmacSha256 => 32,
            Prf::HmacSha384 => 48,
            Prf::HmacSha512 => 64,
        }
    }

    /// prf(key, data), where data is the concatenation of its parts.
    pub fn compute(self, key: &[u8], data: &[&[u8]]) -> Secret {
        fn run<M: Mac + KeyInit>(key: &[u8], data: &[&[u8]]) -> Secret {
            let mut mac = <M as KeyInit>::new_from_slice(key).expect("HMAC takes keys of any length");
            data.iter().for_each(|part| mac.update(part));
            Zeroizing::new(mac.finalize().into_bytes().to_vec())
        }
        match self {
            Prf::HmacSha256 => run::<Hmac<Sha256>>(key, data),
            Prf::HmacSha384 => run::<Hmac<Sha384>>(key, data),
            Prf::HmacSha512 => run::<Hmac<Sha512>>(key, data),
        }
    }

    /// The first `length` octets of prf+(key, seed) (RFC 7296 section 2.13). More than 255 blocks, which prf+ does
    /// not define and nothing here asks for, panic.
    pub fn expand(self, key: &[u8], seed: &[&[u8]], length: usize) -> Secret {
        let mut octets = Secret::new(Vec::with_capacity(length + self.length()));
        let mut block = Secret::default();
        let mut counter = 1u8;
        loop {
            let number = [counter];
            let parts = [&[block.as_slice()], seed, &[number.as_slice()]].concat();
            block = self.compute(key, &parts);
            octets.extend_from_slice(&block);
            if octets.len() >= length {
                octets.truncate(length);
                return octets;
            }
            counter = counter.checked_add(1).expect("prf+ has at most 255 blocks");
        }
    }
}
