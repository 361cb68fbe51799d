//! Wire formats of IKEv2 (RFC 7296 section 3).
//!
//! A datagram becomes a [`View`]: its header is valid and its payload chain within bounds, nothing is copied.
//! From the view come the representations: [`View::message`] for what is in clear, [`View::open`] for what an SK
//! payload protects. The other way, [`Message::emit`] writes a message in clear and [`seal`] a protected one.
//! Whatever the octets are, parsing ends with a value or with an [`Error`] that says whose fault it is.

mod constants;
mod header;
mod payload;
mod sa;
mod sk;
mod ts;

pub use constants::*;
pub use header::{HEADER_LENGTH, Protection, View, add_non_esp_marker, strip_non_esp_marker};
pub use payload::{Delete, Id, MAX_NOTIFIES, MAX_PAYLOADS, Payload};
pub use sa::{MAX_PROPOSALS, Proposal, Transform};
pub use sk::{OpeningKey, SealingKey, seal, seal_chain};

use crate::api::{Header, Notify};

/// A message in clear, or the representation of one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// The header; `next_payload` is ignored by [`Message::emit`], which writes the first payload's type.
    pub header: Header,
    /// The payloads, in order.
    pub payloads: Vec<Payload>,
}

impl Message {
    /// Parses a datagram (without the non-ESP marker) whose payloads are in clear.
    pub fn parse(datagram: &[u8]) -> Result<Message, Error> {
        View::parse(datagram)?.message()
    }

    /// The message's octets. RESERVED fields and flags are zero, the version is 2.0.
    pub fn emit(&self) -> Vec<u8> {
        let mut octets = header::emit(&self.header, payload::first_type(&self.payloads));
        payload::emit_chain(&self.payloads, payload::NONE, &mut octets);
        header::set_length(&mut octets);
        octets
    }
}

/// Why a message was not understood.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// The peer's (or a forger's) mistake: the octets break RFC 7296 section 3.
    #[error("malformed: {0}")]
    Malformed(&'static str),
    /// The sender speaks a later IKE (RFC 7296 section 2.5). The header's fields are as received.
    #[error("major version {version} is not spoken here")]
    MajorVersion {
        /// What the header said, for the answer.
        header: Header,
        /// Its major version.
        version: u8,
    },
    /// A payload of unknown type with the critical flag (RFC 7296 section 2.5).
    #[error("payload type {0} is unknown and critical")]
    CriticalPayload(u8),
    /// Not made with our key: forged, damaged, or for another SA. Never answered.
    #[error("the integrity check failed")]
    Integrity,
    /// There is no SK payload where one was looked for, or it is a fragment, which we did not announce.
    #[error("not a protected message")]
    Unprotected,
}

impl Error {
    /// The notification that RFC 7296 names for this error (section 2.5, 2.21), if any. Whether it may be sent is
    /// the exchange's matter: never in answer to a response, INVALID_SYNTAX only where the message was
    /// authenticated or within IKE_SA_INIT.
    pub fn notify(&self) -> Option<Notify> {
        let (kind, data) = match self {
            Error::Malformed(_) => (notify::INVALID_SYNTAX, vec![]),
            Error::MajorVersion { .. } => (notify::INVALID_MAJOR_VERSION, vec![]),
            Error::CriticalPayload(kind) => (notify::UNSUPPORTED_CRITICAL_PAYLOAD, vec![*kind]),
            Error::Integrity | Error::Unprotected => return None,
        };
        Some(Notify { kind, protocol: 0, spi: vec![], data })
    }
}

/// Parses `data` in every way there is and checks that what was understood survives a round trip. For fuzzers.
pub fn fuzz(data: &[u8]) {
    let _ = strip_non_esp_marker(data);
    for kind in 0..=255 {
        if let Ok(payloads) = payload::parse_chain(kind, data, payload::NONE) {
            let mut octets = Vec::new();
            payload::emit_chain(&payloads, payload::NONE, &mut octets);
            let again = payload::parse_chain(payload::first_type(&payloads), &octets, payload::NONE);
            assert_eq!(again.as_ref(), Ok(&payloads));
        }
    }
    if let Ok(view) = View::parse(data) {
        let _ = view.protection();
        let _ = view.open(&OpeningKey::new(spindle_abi::Suite::Aes128Gcm, &[0; 20]));
        if let Ok(message) = view.message() {
            assert_eq!(Message::parse(&message.emit()).map(|m| m.payloads), Ok(message.payloads));
        }
    }
}

#[cfg(test)]
mod tests;
