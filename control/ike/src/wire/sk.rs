//! The SK payload (RFC 7296 section 3.14) with combined-mode ciphers (RFC 5282, RFC 7634).
//!
//! On the wire: header, generic header, 8-octet IV, ciphertext of payloads | padding | Pad Length, 16-octet ICV.
//! The nonce is salt | IV (RFC 5282 section 4), the additional data the message up to the IV (section 5.1).

use super::{Error, HEADER_LENGTH, Payload, header, payload};
use crate::api::Header;
use crate::crypto::Aead;
use spindle_abi::Suite;
use std::fmt;

const IV_LENGTH: usize = 8;
const ICV_LENGTH: usize = 16;

/// Seals messages of one direction. The IV counts up, so no nonce is used twice with this key.
pub struct SealingKey {
    aead: Aead,
    next_iv: u64,
}

/// Opens messages of one direction.
pub struct OpeningKey(Aead);

impl SealingKey {
    /// From SK_ei or SK_er: the key, then four octets of salt (RFC 5282 section 7.1). Wrong lengths are our own
    /// mistake and panic.
    pub fn new(suite: Suite, key: &[u8]) -> SealingKey {
        SealingKey { aead: Aead::new(suite, key), next_iv: 0 }
    }

    /// The IV of the next message, to be kept where a key outlives its process.
    pub fn next_iv(&self) -> u64 {
        self.next_iv
    }

    /// Passes over IVs below this one; never goes back.
    pub fn skip_to(&mut self, iv: u64) {
        self.next_iv = self.next_iv.max(iv);
    }
}

impl OpeningKey {
    /// As [`SealingKey::new`].
    pub fn new(suite: Suite, key: &[u8]) -> OpeningKey {
        OpeningKey(Aead::new(suite, key))
    }
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealingKey(..)")
    }
}

impl fmt::Debug for OpeningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OpeningKey(..)")
    }
}

/// A whole message (without non-ESP marker) whose only payload is SK, holding `payloads`. `header.next_payload` is
/// ignored. Padding is the least there is: none, and a Pad Length of 0 (RFC 7296 section 3.14).
pub fn seal(header: &Header, payloads: &[Payload], key: &mut SealingKey) -> Vec<u8> {
    let mut chain = Vec::new();
    payload::emit_chain(payloads, payload::NONE, &mut chain);
    seal_chain(header, payload::first_type(payloads), &chain, key)
}

/// The same of a chain that is octets already, whose first payload is of type `first`: what a peer may send that
/// [`Payload`] cannot say.
pub fn seal_chain(header: &Header, first: u8, chain: &[u8], key: &mut SealingKey) -> Vec<u8> {
    let mut octets = header::emit(header, payload::SK);
    octets.extend_from_slice(&[first, 0, 0, 0]);
    let iv = key.next_iv.to_be_bytes();
    key.next_iv = key.next_iv.checked_add(1).expect("2^64 messages are never sent");
    let start = octets.len();
    octets.extend_from_slice(&iv);
    octets.extend_from_slice(chain);
    octets.push(0);
    octets.resize(octets.len() + ICV_LENGTH, 0);
    let length = u16::try_from(octets.len() - HEADER_LENGTH).expect("a payload below 64 KiB");
    octets[start - 2..start].copy_from_slice(&length.to_be_bytes());
    header::set_length(&mut octets);
    let (additional, rest) = octets.split_at_mut(start);
    let (text, icv) = rest[IV_LENGTH..].split_last_chunk_mut::<ICV_LENGTH>().expect("an ICV");
    icv.copy_from_slice(&key.aead.seal(iv, additional, text));
    octets
}

/// The inner payloads of the SK payload at `at`, whose Next Payload field is `first`.
pub(super) fn open(datagram: &[u8], at: usize, first: u8, key: &OpeningKey) -> Result<Vec<Payload>, Error> {
    let start = at + payload::GENERIC_LENGTH;
    let (additional, body) = datagram.split_at(start);
    let (iv, rest) = body.split_first_chunk().ok_or(Error::Integrity)?;
    let (text, icv) = rest.split_last_chunk().ok_or(Error::Integrity)?;
    let mut text = zeroize::Zeroizing::new(text.to_vec());
    if !key.0.open(*iv, additional, &mut text, icv) {
        return Err(Error::Integrity);
    }
    let (pad_length, rest) = text.split_last().ok_or(Error::Malformed("no Pad Length"))?;
    let end = rest.len().checked_sub(usize::from(*pad_length)).ok_or(Error::Malformed("Pad Length"))?;
    payload::parse_chain(first, &rest[..end], payload::NONE)
}
