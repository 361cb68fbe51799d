//! The AEADs of the SK payload: AES-GCM with a 16-octet ICV (RFC 5282) and ChaCha20-Poly1305 (RFC 7634).

use aes_gcm::aead::consts::U12;
use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::aes::Aes192;
use aes_gcm::{Aes128Gcm, Aes256Gcm, AesGcm};
use chacha20poly1305::ChaCha20Poly1305;
use spindle_abi::Suite;
use zeroize::Zeroizing;

/// A keyed AEAD with its salt.
pub(crate) struct Aead {
    cipher: Cipher,
    salt: Zeroizing<[u8; 4]>,
}

type Aes192Gcm = AesGcm<Aes192, U12>;

enum Cipher {
    Aes128Gcm(Box<Aes128Gcm>),
    Aes192Gcm(Box<Aes192Gcm>),
    Aes256Gcm(Box<Aes256Gcm>),
    ChaCha20Poly1305(Box<ChaCha20Poly1305>),
}

impl Aead {
    /// Key, then salt, as they come out of prf+.
    pub(crate) fn new(suite: Suite, keymat: &[u8]) -> Aead {
        let (key, salt) = keymat.split_last_chunk().expect("a salt");
        let cipher = match suite {
            Suite::Aes128Gcm => {
                Cipher::Aes128Gcm(Box::new(Aes128Gcm::new_from_slice(key).expect("16 octets")))
            }
            Suite::Aes192Gcm => {
                Cipher::Aes192Gcm(Box::new(Aes192Gcm::new_from_slice(key).expect("24 octets")))
            }
            Suite::Aes256Gcm => {
                Cipher::Aes256Gcm(Box::new(Aes256Gcm::new_from_slice(key).expect("32 octets")))
            }
            Suite::ChaCha20Poly1305 => {
                Cipher::ChaCha20Poly1305(Box::new(ChaCha20Poly1305::new_from_slice(key).expect("32 octets")))
            }
        };
        Aead { cipher, salt: Zeroizing::new(*salt) }
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
        match &self.cipher {
            Cipher::Aes128Gcm(c) => c.encrypt_inout_detached(&nonce, additional, text.into()),
            Cipher::Aes192Gcm(c) => c.encrypt_inout_detached(&nonce, additional, text.into()),
            Cipher::Aes256Gcm(c) => c.encrypt_inout_detached(&nonce, additional, text.into()),
            Cipher::ChaCha20Poly1305(c) => c.encrypt_inout_detached(&nonce, additional, text.into()),
        }
        .expect("a text below the AEAD's limit")
        .into()
    }

    /// Decrypts `text` in place if the ICV is right.
    #[must_use]
    pub(crate) fn open(&self, iv: [u8; 8], additional: &[u8], text: &mut [u8], icv: &[u8; 16]) -> bool {
        let nonce = self.nonce(iv).into();
        let icv = &(*icv).into();
        match &self.cipher {
            Cipher::Aes128Gcm(c) => c.decrypt_inout_detached(&nonce, additional, text.into(), icv),
            Cipher::Aes192Gcm(c) => c.decrypt_inout_detached(&nonce, additional, text.into(), icv),
            Cipher::Aes256Gcm(c) => c.decrypt_inout_detached(&nonce, additional, text.into(), icv),
            Cipher::ChaCha20Poly1305(c) => c.decrypt_inout_detached(&nonce, additional, text.into(), icv),
        }
        .is_ok()
    }
}
