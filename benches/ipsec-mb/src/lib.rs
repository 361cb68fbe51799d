//! intel-ipsec-mb's AES-GCM, called directly, to be measured beside Spindle's. For benches only; it is linked only
//! with the feature `link`, and without it [`Gcm::new`] gives nothing.

#[cfg(feature = "link")]
mod linked;
#[cfg(feature = "link")]
pub use linked::{Gcm, version};

/// A key.
#[cfg(not(feature = "link"))]
#[derive(Debug)]
pub enum Gcm {}

/// The library's version; `None` if it isn't linked.
#[cfg(not(feature = "link"))]
pub fn version() -> Option<String> {
    None
}

#[cfg(not(feature = "link"))]
impl Gcm {
    /// Expands a key of 16, 24 or 32 octets.
    pub fn new(_key: &[u8]) -> Option<Gcm> {
        None
    }

    /// Encrypts in place and writes the tag.
    pub fn seal(&mut self, _nonce: &[u8; 12], _aad: &[u8], _buffer: &mut [u8], _tag: &mut [u8; 16]) {
        match *self {}
    }

    /// Decrypts in place and compares the tag, as the library leaves to its caller.
    pub fn open(&mut self, _nonce: &[u8; 12], _aad: &[u8], _buffer: &mut [u8], _tag: &[u8; 16]) -> bool {
        match *self {}
    }
}
