//! Cryptography of IKEv2: pseudorandom functions, keys, key exchange, AEAD, proposals.
//!
//! Randomness comes in as [`Random`](crate::random::Random), nothing is drawn from elsewhere. Secrets are zeroised on
//! drop and redacted in Debug; what is compared with something secret is compared in constant time.

mod aead;
mod exchange;
mod keys;
mod prf;
mod proposal;

pub(crate) use aead::Aead;
pub use exchange::{ExchangeError, Group, PrivateKey};
pub use keys::{ChildKeys, IkeKeys, equal, nat_detection_hash, psk_authentication};
pub use prf::Prf;
pub use proposal::{
    EspProposal, EspSuite, IkeProposal, IkeSuite, NotationError, SelectionError, parse_esp, parse_ike,
    select_esp, select_ike,
};

/// Octets that are zeroised on drop.
pub type Secret = zeroize::Zeroizing<Vec<u8>>;

#[cfg(test)]
mod tests;
