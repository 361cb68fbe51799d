//! The AEADs of the SK payload: AES-GCM with a 16-octet ICV (RFC 5282) and ChaCha20-Poly1305 (RFC 7634).

use aes_gcm::aead::consts::U12;
use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::aes::Aes192;
use aes_gcm::{Aes128Gcm, Aes256Gcm, AesGcm};
use chacha20poly1305::ChaCha20Poly1305;
use spindle_abi::Suite;
use zeroize::Zeroizing;

/// A key of an AEAD and its salt. It is expanded for each message: an expanded one of AES-128-GCM is 500 octets, and of IKE SAs,
/// which have two, there may be very many with few messages each.
pub(crate) struct Aead {
    suite: Suite,
    key: Zeroizing<[u8; 32]>,
    salt: Zeroizing<[u8; 4]>,
}

type Aes192Gcm = AesGcm<Aes192, U12>;

impl Aead {
    /// Key, then salt, as they come out of prf+.
    pub(crate) fn new(suite: Suite, keymat: &[u8]) -> Aead {
        let (octets, salt) = keymat.split_last_chunk().expect("a salt");
        let mut key = Zeroizing::new([0; 32]);
        key[..suite.key_length()].copy_from_slice(octets);
        Aead { suite, key, salt: Zeroizing::new(*salt) }
    }

    fn expand<C: KeyInit>(&self) -> C {
        C::new_from_slice(&self.key[..self.suite.key_length()]).expect("a key of the suite's length")
    }

    /// The nonce of RFC 5282 section 4: salt, then IV.
    fn nonce(&self, iv: [u8; 8]) -> [u8; 12] {
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(&*self.salt);
        nonce[4..].copy_from_slice(&iv);
        nonce
    }

    /// Encrypts `text` in place; the ICV.
    pub(crate) fn seal(&self, iv: [u8; 8], additional: &[u8], text: &mut [u8]) -> [u8; 16] {
        let nonce = self.nonce(iv).into();
        let text = text.into();
        match self.suite {
            Suite::Aes128Gcm => self.expand::<Aes128Gcm>().encrypt_inout_detached(&nonce, additional, text),
            Suite::Aes192Gcm => self.expand::<Aes192Gcm>().encrypt_inout_detached(&nonce, additional, text),
            Suite::Aes256Gcm => self.expand::<Aes256Gcm>().encrypt_inout_detached(&nonce, additional, text),
            Suite::ChaCha20Poly1305 => {
                self.expand::<ChaCha20Poly1305>().encrypt_inout_detached(&nonce, additional, text)
            }
        }
        .expect("a text below the AEAD's limit")
        .into()
    }

    /// Decrypts `text` in place if the ICV is right.
    #[must_use]
    pub(crate) fn open(&self, iv: [u8; 8], additional: &[u8], text: &mut [u8], icv: &[u8; 16]) -> bool {
        let nonce = self.nonce(iv).into();
        let (text, icv) = (text.into(), &(*icv).into());
        match self.suite {
            Suite::Aes128Gcm => {
                self.expand::<Aes128Gcm>().decrypt_inout_detached(&nonce, additional, text, icv)
            }
            Suite::Aes192Gcm => {
                self.expand::<Aes192Gcm>().decrypt_inout_detached(&nonce, additional, text, icv)
            }
            Suite::Aes256Gcm => {
                self.expand::<Aes256Gcm>().decrypt_inout_detached(&nonce, additional, text, icv)
            }
            Suite::ChaCha20Poly1305 => {
                self.expand::<ChaCha20Poly1305>().decrypt_inout_detached(&nonce, additional, text, icv)
            }
        }
        .is_ok()
    }
}
