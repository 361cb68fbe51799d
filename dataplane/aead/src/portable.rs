//! RustCrypto's AEADs: they run everywhere, and are the oracle for the others.

use crate::scrub::Scrubbed;
use crate::{Algorithm, EspAead, NONCE_LENGTH, NotAuthentic, TAG_LENGTH};
use aes_gcm::aead::consts::{U12, U16};
use aes_gcm::aes::Aes192;
use aes_gcm::{AeadCore, AeadInOut, Aes128Gcm, Aes256Gcm, AesGcm, KeyInit};
use chacha20poly1305::ChaCha20Poly1305;

pub(crate) fn key(algorithm: Algorithm, key: &[u8]) -> Option<Box<dyn EspAead>> {
    Some(match algorithm {
        Algorithm::Aes128Gcm => Box::new(Portable(Scrubbed::new(Aes128Gcm::new_from_slice(key).ok()?))),
        Algorithm::Aes192Gcm => {
            Box::new(Portable(Scrubbed::new(AesGcm::<Aes192, U12>::new_from_slice(key).ok()?)))
        }
        Algorithm::Aes256Gcm => Box::new(Portable(Scrubbed::new(Aes256Gcm::new_from_slice(key).ok()?))),
        Algorithm::ChaCha20Poly1305 => {
            Box::new(Portable(Scrubbed::new(ChaCha20Poly1305::new_from_slice(key).ok()?)))
        }
    })
}

struct Portable<A>(Scrubbed<A>);

impl<A> EspAead for Portable<A>
where
    A: AeadInOut + AeadCore<NonceSize = U12, TagSize = U16> + Send + Sync,
{
    fn seal(&self, nonce: &[u8; NONCE_LENGTH], aad: &[u8], buffer: &mut [u8], tag: &mut [u8; TAG_LENGTH]) {
        match self.0.encrypt_inout_detached(&(*nonce).into(), aad, (&mut *buffer).into()) {
            Ok(sealed) => tag.copy_from_slice(&sealed),
            // Only for lengths beyond 2^36 octets. Send nothing in clear even so.
            Err(_) => {
                buffer.fill(0);
                tag.fill(0);
            }
        }
    }

    fn open(
        &self,
        nonce: &[u8; NONCE_LENGTH],
        aad: &[u8],
        buffer: &mut [u8],
        tag: &[u8; TAG_LENGTH],
    ) -> Result<(), NotAuthentic> {
        let (nonce, tag) = ((*nonce).into(), (*tag).into());
        if self.0.decrypt_inout_detached(&nonce, aad, (&mut *buffer).into(), &tag).is_ok() {
            return Ok(());
        }
        buffer.fill(0);
        Err(NotAuthentic)
    }
}
