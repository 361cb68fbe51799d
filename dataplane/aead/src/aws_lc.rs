//! AWS-LC's AEADs.

use crate::scrub::Scrubbed;
use crate::{Algorithm, EspAead, NONCE_LENGTH, NotAuthentic, TAG_LENGTH};
use aws_lc_rs::aead::{
    AES_128_GCM, AES_192_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, MAX_TAG_LEN, Nonce,
    UnboundKey,
};

const _: () = assert!(MAX_TAG_LEN == TAG_LENGTH);

pub(crate) fn key(algorithm: Algorithm, key: &[u8]) -> Option<Box<dyn EspAead>> {
    let algorithm = match algorithm {
        Algorithm::Aes128Gcm => &AES_128_GCM,
        Algorithm::Aes192Gcm => &AES_192_GCM,
        Algorithm::Aes256Gcm => &AES_256_GCM,
        Algorithm::ChaCha20Poly1305 => &CHACHA20_POLY1305,
    };
    let key = UnboundKey::new(algorithm, key).ok()?;
    Some(Box::new(AwsLc(Scrubbed::new(LessSafeKey::new(key)))))
}

struct AwsLc(Scrubbed<LessSafeKey>);

impl EspAead for AwsLc {
    #[inline]
    fn seal(&self, nonce: &[u8; NONCE_LENGTH], aad: &[u8], buffer: &mut [u8], tag: &mut [u8; TAG_LENGTH]) {
        let nonce = Nonce::assume_unique_for_key(*nonce);
        match self.0.seal_in_place_separate_tag(nonce, Aad::from(aad), buffer) {
            Ok(sealed) => tag.copy_from_slice(sealed.as_ref()),
            // Only for lengths beyond 2^36 octets. Send nothing in clear even so.
            Err(_) => {
                buffer.fill(0);
                tag.fill(0);
            }
        }
    }

    #[inline]
    fn open(
        &self,
        nonce: &[u8; NONCE_LENGTH],
        aad: &[u8],
        buffer: &mut [u8],
        tag: &[u8; TAG_LENGTH],
    ) -> Result<(), NotAuthentic> {
        let nonce = Nonce::assume_unique_for_key(*nonce);
        if self.0.open_in_place_separate_tag(nonce, Aad::from(aad), tag, buffer).is_ok() {
            return Ok(());
        }
        buffer.fill(0);
        Err(NotAuthentic)
    }
}
