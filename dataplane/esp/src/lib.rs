//! ESP in tunnel and transport mode (RFC 4303) with combined-mode AEADs (RFC 4106, RFC 7634), in place and without I/O.
//!
//! Outbound: the caller makes room around an inner packet ([`front_length`], [`back_length`]), and
//! [`OutboundSa::begin`] takes the next sequence number, writes outer headers (in transport mode it moves the packet's
//! own to the front), IV and padding; [`OutboundSa::seal`] encrypts, after all packets of a burst were begun.
//! Inbound: [`InboundSa::open`] looks at the replay window, checks the ICV, only then moves the window, and says
//! where in the octets the payload lies: the inner packet, or what [`transport::rebuild`] puts the packet's own headers
//! before. [`tunnel`] has the outer header's DSCP and ECN.

#![forbid(unsafe_code)]

mod inbound;
mod outbound;
mod replay;
pub mod transport;
pub mod tunnel;

pub use inbound::{InboundSa, OpenFault, Opened};
pub use outbound::{Begun, Encapsulation, Exhausted, OutboundSa, back_length, front_length, inner_limit};
pub use replay::ReplayWindow;

use spindle_abi::{SaParameters, Suite};
use spindle_aead::{Algorithm, Key, Provider};
use spindle_wire::esp;
use std::fmt;

/// Octets of the explicit IV (RFC 4106 section 3.1, RFC 7634 section 2).
pub const IV_LENGTH: usize = 8;
/// Octets of the ICV.
pub const ICV_LENGTH: usize = spindle_aead::TAG_LENGTH;

/// Parameters of which no SA can be made: control's mistake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unusable {
    /// Key and salt are not as long as the suite demands.
    KeyLength,
    /// SPIs 0 to 255 are reserved (RFC 4303 section 2.1).
    ReservedSpi,
    /// The outer addresses are of two IP versions.
    IpVersions,
    /// The replay window is neither 0 nor a power of two from 32 to 65,536; or it is 0 on an SA with extended sequence
    /// numbers.
    ReplayWindow,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unusable::KeyLength => "key and salt are not as long as the suite demands",
            Unusable::ReservedSpi => "the SPI is reserved",
            Unusable::IpVersions => "the outer addresses are of two IP versions",
            Unusable::ReplayWindow => "impossible replay window",
        })
    }
}

impl std::error::Error for Unusable {}

/// Key and salt out of KEYMAT: the key first, then the salt (RFC 4106 section 8.1, RFC 7634 section 2).
fn split_keymat(sa: &SaParameters, provider: Provider) -> Result<(Key, [u8; 4]), Unusable> {
    if sa.spi.0 < 256 {
        return Err(Unusable::ReservedSpi);
    }
    let keymat = sa.keymat.as_bytes();
    if keymat.len() != sa.suite.keymat_length() {
        return Err(Unusable::KeyLength);
    }
    let (key, salt) = keymat.split_at(sa.suite.key_length());
    let algorithm = match sa.suite {
        Suite::Aes128Gcm => Algorithm::Aes128Gcm,
        Suite::Aes192Gcm => Algorithm::Aes192Gcm,
        Suite::Aes256Gcm => Algorithm::Aes256Gcm,
        Suite::ChaCha20Poly1305 => Algorithm::ChaCha20Poly1305,
    };
    let key = provider.key(algorithm, key).ok_or(Unusable::KeyLength)?;
    Ok((key, salt.try_into().map_err(|_| Unusable::KeyLength)?))
}

/// What is authenticated beside the ciphertext: SPI and sequence number, all 64 bits of an extended one (RFC 4106 section
/// 5, RFC 7634 section 2.1).
struct AdditionalData {
    octets: [u8; 12],
    length: usize,
}

impl AdditionalData {
    /// `header` is the packet's ESP header.
    #[inline]
    fn new(header: &[u8], sequence: u64, esn: bool) -> AdditionalData {
        let mut octets = [0; 12];
        octets[..esp::HEADER_LENGTH].copy_from_slice(header);
        if esn {
            octets[4..].copy_from_slice(&sequence.to_be_bytes());
        }
        AdditionalData { octets, length: if esn { 12 } else { esp::HEADER_LENGTH } }
    }

    #[inline]
    fn octets(&self) -> &[u8] {
        &self.octets[..self.length]
    }
}

/// Salt, then explicit IV (RFC 4106 section 4, RFC 7634 section 2).
#[inline]
fn nonce(salt: [u8; 4], iv: [u8; IV_LENGTH]) -> [u8; spindle_aead::NONCE_LENGTH] {
    let mut nonce = [0; spindle_aead::NONCE_LENGTH];
    nonce[..4].copy_from_slice(&salt);
    nonce[4..].copy_from_slice(&iv);
    nonce
}
