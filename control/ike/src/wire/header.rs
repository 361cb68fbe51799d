//! The IKE header (RFC 7296 section 3.1) and the first look at a datagram.

use super::{Error, Message, OpeningKey, Payload, payload};
use crate::api::{Header, IkeSpis};

/// Octets of the IKE header.
pub const HEADER_LENGTH: usize = 28;

const INITIATOR: u8 = 0x08;
const RESPONSE: u8 = 0x20;
const VERSION: u8 = 0x20;

/// A datagram whose header is valid and whose generic payload headers are within bounds; nothing is copied.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    datagram: &'a [u8],
    header: Header,
    protected: Option<Protected>,
}

/// Where the SK or SKF payload lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Protected {
    /// Offset of its generic header.
    pub(super) at: usize,
    /// Type of the first inner payload.
    pub(super) first: u8,
    kind: Protection,
}

/// How a message is protected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protection {
    /// By an SK payload.
    Sk,
    /// By an SKF payload, one fragment of a message (RFC 7383 section 2.5).
    Fragment {
        /// Fragment Number, from 1.
        number: u16,
        /// Total Fragments.
        total: u16,
    },
}

impl<'a> View<'a> {
    /// Looks at a datagram without its non-ESP marker.
    ///
    /// RFC 7296 section 2.5: a higher minor version is accepted, a higher major version is
    /// [`Error::MajorVersion`]. The Length field must be the datagram's length.
    pub fn parse(datagram: &'a [u8]) -> Result<View<'a>, Error> {
        let fixed: &[u8; HEADER_LENGTH] = datagram.first_chunk().ok_or(Error::Malformed("short header"))?;
        let [spis @ .., next_payload, version, exchange, flags, m0, m1, m2, m3, l0, l1, l2, l3] = fixed;
        let (initiator, responder) = spis.split_at(8);
        let header = Header {
            spis: IkeSpis {
                initiator: initiator.try_into().expect("8 octets"),
                responder: responder.try_into().expect("8 octets"),
            },
            next_payload: *next_payload,
            exchange: *exchange,
            response: flags & RESPONSE != 0,
            initiator: flags & INITIATOR != 0,
            message_id: u32::from_be_bytes([*m0, *m1, *m2, *m3]),
        };
        match version >> 4 {
            2 => {}
            version @ 3.. => return Err(Error::MajorVersion { header, version }),
            _ => return Err(Error::Malformed("an earlier IKE")),
        }
        if usize::try_from(u32::from_be_bytes([*l0, *l1, *l2, *l3])) != Ok(datagram.len()) {
            return Err(Error::Malformed("length"));
        }
        let first = [super::exchange::IKE_SA_INIT, super::exchange::IKE_SESSION_RESUME];
        if header.spis.initiator == [0; 8] && first.contains(&header.exchange) {
            return Err(Error::Malformed("SPIi is zero"));
        }
        let protected = find_protected(&header, datagram)?;
        Ok(View { datagram, header, protected })
    }

    /// The header.
    pub fn header(&self) -> Header {
        self.header
    }

    /// How the message is protected, if at all.
    pub fn protection(&self) -> Option<Protection> {
        self.protected.map(|p| p.kind)
    }

    /// The payloads in clear. Those that an SK payload holds are not among them, nor is the SK payload.
    pub fn message(&self) -> Result<Message, Error> {
        let (end, until) = match self.protected {
            None => (self.datagram.len(), payload::NONE),
            Some(Protected { at, kind: Protection::Sk, .. }) => (at, payload::SK),
            Some(Protected { at, kind: Protection::Fragment { .. }, .. }) => (at, payload::SKF),
        };
        let octets = &self.datagram[HEADER_LENGTH..end];
        let payloads = payload::parse_chain(self.header.next_payload, octets, until)?;
        Ok(Message { header: self.header, payloads })
    }

    /// Checks and decrypts the SK payload; its inner payloads. [`Error::Integrity`] says nothing about the sender,
    /// every other error than [`Error::Unprotected`] is the authenticated peer's.
    pub fn open(&self, key: &OpeningKey) -> Result<Vec<Payload>, Error> {
        match self.protected {
            Some(Protected { at, first, kind: Protection::Sk }) => {
                super::sk::open(self.datagram, at, first, key)
            }
            _ => Err(Error::Unprotected),
        }
    }
}

/// Walks the generic headers. RFC 7296 section 3.14: SK, if present, is the last payload, and its Next Payload
/// field is the type of the first inner one.
fn find_protected(header: &Header, datagram: &[u8]) -> Result<Option<Protected>, Error> {
    let (mut kind, mut at) = (header.next_payload, HEADER_LENGTH);
    // Each payload is at least as long as its header, so the datagram's length bounds the walk.
    loop {
        if kind == payload::NONE {
            return if at == datagram.len() {
                Ok(None)
            } else {
                Err(Error::Malformed("octets after the payloads"))
            };
        }
        let (next, body) = payload::generic(&datagram[at..])?;
        let end = at + payload::GENERIC_LENGTH + body.len();
        let protection = match kind {
            payload::SK => Some(Protection::Sk),
            payload::SKF => {
                let [n0, n1, t0, t1] = *body.first_chunk().ok_or(Error::Malformed("short SKF payload"))?;
                let (number, total) = (u16::from_be_bytes([n0, n1]), u16::from_be_bytes([t0, t1]));
                // RFC 7383 section 2.5: both are at least 1, and the number is not above the total.
                if number == 0 || number > total {
                    return Err(Error::Malformed("fragment number"));
                }
                Some(Protection::Fragment { number, total })
            }
            _ => None,
        };
        if let Some(kind) = protection {
            if end != datagram.len() {
                return Err(Error::Malformed("octets after the SK payload"));
            }
            return Ok(Some(Protected { at, first: next, kind }));
        }
        (kind, at) = (next, end);
    }
}

/// The header with a Length of zero; [`set_length`] writes it once the payloads stand.
pub(super) fn emit(header: &Header, first: u8) -> Vec<u8> {
    let mut octets = Vec::with_capacity(512);
    octets.extend_from_slice(&header.spis.initiator);
    octets.extend_from_slice(&header.spis.responder);
    let flags = if header.response { RESPONSE } else { 0 } | if header.initiator { INITIATOR } else { 0 };
    octets.extend_from_slice(&[first, VERSION, header.exchange, flags]);
    octets.extend_from_slice(&header.message_id.to_be_bytes());
    octets.extend_from_slice(&[0; 4]);
    octets
}

pub(super) fn set_length(octets: &mut [u8]) {
    let length = u32::try_from(octets.len()).expect("a message below 4 GiB");
    octets[24..HEADER_LENGTH].copy_from_slice(&length.to_be_bytes());
}

/// The IKE message in a UDP payload of port 4500, which starts with four zero octets (RFC 3948 section 2.2);
/// `None` if it is ESP or a NAT-keepalive.
pub fn strip_non_esp_marker(payload: &[u8]) -> Option<&[u8]> {
    payload.strip_prefix(&[0; 4])
}

/// A message as it travels on port 4500.
pub fn add_non_esp_marker(message: &[u8]) -> Vec<u8> {
    [&[0; 4], message].concat()
}
