//! Payloads (RFC 7296 section 3.2 to 3.16): the chain and each one's body.

use super::constants::identification;
pub(super) use super::constants::payload_type::*;
use super::{Error, Proposal, sa, ts};
use crate::api::{Identity, Notify};
use spindle_abi::{Selector, Spi};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Payloads that are kept of one chain; further ones are walked over, for RFC 7296 sets no bound.
pub const MAX_PAYLOADS: usize = 128;
/// Notify payloads that are kept of one chain.
pub const MAX_NOTIFIES: usize = 64;
pub(super) const GENERIC_LENGTH: usize = 4;
const CRITICAL: u8 = 0x80;

/// One payload.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Payload {
    /// SA (section 3.3).
    Sa(Vec<Proposal>),
    /// KE (section 3.4).
    KeyExchange {
        /// The key exchange method's transform ID.
        group: u16,
        /// The public value.
        data: Vec<u8>,
    },
    /// IDi (section 3.5).
    IdInitiator(Id),
    /// IDr (section 3.5).
    IdResponder(Id),
    /// CERT (section 3.6), opaque.
    Certificate(Vec<u8>),
    /// CERTREQ (section 3.7), opaque.
    CertificateRequest(Vec<u8>),
    /// AUTH (section 3.8).
    Authentication {
        /// Auth Method.
        method: u8,
        /// Authentication Data.
        data: Vec<u8>,
    },
    /// Nonce (section 3.9), 16 to 256 octets.
    Nonce(Vec<u8>),
    /// Notify (section 3.10).
    Notify(Notify),
    /// Delete (section 3.11).
    Delete(Delete),
    /// Vendor ID (section 3.12).
    VendorId(Vec<u8>),
    /// TSi (section 3.13), the selectors that are understood.
    TsInitiator(Vec<Selector>),
    /// TSr (section 3.13), the selectors that are understood.
    TsResponder(Vec<Selector>),
    /// CP (section 3.15), opaque.
    Configuration(Vec<u8>),
    /// EAP (section 3.16), opaque.
    Eap(Vec<u8>),
    /// A type that is not known and not critical, or a Delete of nothing that is known; to be ignored (section 2.5).
    Unknown {
        /// Its type.
        kind: u8,
        /// Its body.
        body: Vec<u8>,
    },
}

/// Body of an ID payload, kept as it is on the wire, since AUTH covers it, RESERVED included (section 2.15).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Id(Vec<u8>);

impl Id {
    /// Of an identity.
    pub fn new(identity: &Identity) -> Id {
        let (kind, data): (u8, &[u8]) = match identity {
            Identity::Address(std::net::IpAddr::V4(a)) => (identification::IPV4_ADDR, &a.octets()),
            Identity::Address(std::net::IpAddr::V6(a)) => (identification::IPV6_ADDR, &a.octets()),
            Identity::Fqdn(name) => (identification::FQDN, name.as_bytes()),
            Identity::Email(name) => (identification::RFC822_ADDR, name.as_bytes()),
            Identity::KeyId(octets) => (identification::KEY_ID, octets),
        };
        Id([&[kind, 0, 0, 0], data].concat())
    }

    /// ID Type.
    pub fn kind(&self) -> u8 {
        self.0[0]
    }

    /// RestOfInitIDPayload: ID Type, RESERVED, Identification Data (RFC 7296 section 2.15).
    pub fn body(&self) -> &[u8] {
        &self.0
    }

    /// The identity; `None` if the type is not known or the data does not fit it.
    pub fn identity(&self) -> Option<Identity> {
        let data = &self.0[4..];
        let text = || std::str::from_utf8(data).ok().map(str::to_owned);
        Some(match self.kind() {
            identification::IPV4_ADDR => {
                Identity::Address(Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?).into())
            }
            identification::IPV6_ADDR => {
                Identity::Address(Ipv6Addr::from(<[u8; 16]>::try_from(data).ok()?).into())
            }
            identification::FQDN => Identity::Fqdn(text()?),
            identification::RFC822_ADDR => Identity::Email(text()?),
            identification::KEY_ID => Identity::KeyId(data.to_vec()),
            _ => return None,
        })
    }
}

/// A Delete payload (section 3.11).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Delete {
    /// The IKE SA that carries it.
    Ike,
    /// Inbound ESP SAs of the sender.
    Esp(Vec<Spi>),
    /// Inbound AH SAs of the sender; we have none.
    Ah(Vec<Spi>),
}

/// The type of the first payload, NONE if there is none.
pub(super) fn first_type(payloads: &[Payload]) -> u8 {
    payloads.first().map_or(NONE, Payload::kind)
}

/// Splits the first payload off: its Next Payload field and its body.
pub(super) fn generic(octets: &[u8]) -> Result<(u8, &[u8]), Error> {
    let [next, _, l0, l1] = *octets.first_chunk().ok_or(Error::Malformed("short payload header"))?;
    let length = usize::from(u16::from_be_bytes([l0, l1]));
    let body = octets.get(GENERIC_LENGTH..length).ok_or(Error::Malformed("payload length"))?;
    Ok((next, body))
}

/// Parses a whole chain, up to the payload of type `until`, which is where `octets` must end.
pub(super) fn parse_chain(first: u8, octets: &[u8], until: u8) -> Result<Vec<Payload>, Error> {
    let (mut kind, mut rest) = (first, octets);
    let (mut payloads, mut notifies) = (Vec::new(), 0);
    while kind != until {
        let (next, body) = generic(rest)?;
        let critical = rest[1] & CRITICAL != 0;
        let payload = Payload::parse(kind, critical, body)?;
        let is_notify = matches!(payload, Payload::Notify(_));
        notifies += usize::from(is_notify);
        if payloads.len() < MAX_PAYLOADS && (!is_notify || notifies <= MAX_NOTIFIES) {
            payloads.push(payload);
        }
        rest = &rest[GENERIC_LENGTH + body.len()..];
        kind = next;
    }
    if rest.is_empty() { Ok(payloads) } else { Err(Error::Malformed("octets after the payloads")) }
}

/// Appends a chain; `after` is the last one's Next Payload field.
pub(super) fn emit_chain(payloads: &[Payload], after: u8, octets: &mut Vec<u8>) {
    for (i, payload) in payloads.iter().enumerate() {
        let start = octets.len();
        let next = payloads.get(i + 1).map_or(after, Payload::kind);
        octets.extend_from_slice(&[next, 0, 0, 0]);
        payload.emit_body(octets);
        let length = u16::try_from(octets.len() - start).expect("a payload below 64 KiB");
        octets[start + 2..start + 4].copy_from_slice(&length.to_be_bytes());
    }
}

impl Payload {
    /// Its type.
    pub fn kind(&self) -> u8 {
        match self {
            Payload::Sa(_) => SA,
            Payload::KeyExchange { .. } => KE,
            Payload::IdInitiator(_) => ID_INITIATOR,
            Payload::IdResponder(_) => ID_RESPONDER,
            Payload::Certificate(_) => CERT,
            Payload::CertificateRequest(_) => CERTREQ,
            Payload::Authentication { .. } => AUTH,
            Payload::Nonce(_) => NONCE,
            Payload::Notify(_) => NOTIFY,
            Payload::Delete(_) => DELETE,
            Payload::VendorId(_) => VENDOR_ID,
            Payload::TsInitiator(_) => TS_INITIATOR,
            Payload::TsResponder(_) => TS_RESPONDER,
            Payload::Configuration(_) => CP,
            Payload::Eap(_) => EAP,
            Payload::Unknown { kind, .. } => *kind,
        }
    }

    /// RFC 7296 section 2.5: the critical flag counts only for types that are not known.
    fn parse(kind: u8, critical: bool, body: &[u8]) -> Result<Payload, Error> {
        Ok(match kind {
            SA => Payload::Sa(sa::parse(body)?),
            KE => {
                let ([g0, g1, _, _], data) = split(body, "short KE payload")?;
                Payload::KeyExchange { group: u16::from_be_bytes([g0, g1]), data: data.to_vec() }
            }
            ID_INITIATOR => Payload::IdInitiator(parse_id(body)?),
            ID_RESPONDER => Payload::IdResponder(parse_id(body)?),
            CERT => Payload::Certificate(body.to_vec()),
            CERTREQ => Payload::CertificateRequest(body.to_vec()),
            AUTH => {
                let ([method, _, _, _], data) = split(body, "short AUTH payload")?;
                Payload::Authentication { method, data: data.to_vec() }
            }
            // RFC 7296 section 3.9: 16 to 256 octets.
            NONCE if (16..=256).contains(&body.len()) => Payload::Nonce(body.to_vec()),
            NONCE => return Err(Error::Malformed("nonce length")),
            NOTIFY => Payload::Notify(parse_notify(body)?),
            DELETE => match parse_delete(body)? {
                Some(delete) => Payload::Delete(delete),
                None => Payload::Unknown { kind, body: body.to_vec() },
            },
            VENDOR_ID => Payload::VendorId(body.to_vec()),
            TS_INITIATOR => Payload::TsInitiator(ts::parse(body)?),
            TS_RESPONDER => Payload::TsResponder(ts::parse(body)?),
            CP => Payload::Configuration(body.to_vec()),
            EAP => Payload::Eap(body.to_vec()),
            NONE | SK | SKF => return Err(Error::Malformed("a payload type that cannot be here")),
            _ if critical => return Err(Error::CriticalPayload(kind)),
            _ => Payload::Unknown { kind, body: body.to_vec() },
        })
    }

    fn emit_body(&self, octets: &mut Vec<u8>) {
        match self {
            Payload::Sa(proposals) => sa::emit(proposals, octets),
            Payload::KeyExchange { group, data } => {
                octets.extend_from_slice(&group.to_be_bytes());
                octets.extend_from_slice(&[0, 0]);
                octets.extend_from_slice(data);
            }
            Payload::IdInitiator(id) | Payload::IdResponder(id) => octets.extend_from_slice(&id.0),
            Payload::Authentication { method, data } => {
                octets.extend_from_slice(&[*method, 0, 0, 0]);
                octets.extend_from_slice(data);
            }
            Payload::Notify(notify) => {
                let size = u8::try_from(notify.spi.len()).expect("an SPI below 256 octets");
                octets.extend_from_slice(&[notify.protocol, size]);
                octets.extend_from_slice(&notify.kind.to_be_bytes());
                octets.extend_from_slice(&notify.spi);
                octets.extend_from_slice(&notify.data);
            }
            Payload::Delete(delete) => emit_delete(delete, octets),
            Payload::TsInitiator(selectors) | Payload::TsResponder(selectors) => ts::emit(selectors, octets),
            Payload::Certificate(body)
            | Payload::CertificateRequest(body)
            | Payload::Nonce(body)
            | Payload::VendorId(body)
            | Payload::Configuration(body)
            | Payload::Eap(body)
            | Payload::Unknown { body, .. } => octets.extend_from_slice(body),
        }
    }
}

fn split<'a, const N: usize>(body: &'a [u8], what: &'static str) -> Result<([u8; N], &'a [u8]), Error> {
    body.split_first_chunk().map(|(fixed, rest)| (*fixed, rest)).ok_or(Error::Malformed(what))
}

fn parse_id(body: &[u8]) -> Result<Id, Error> {
    if body.len() < 4 { Err(Error::Malformed("short ID payload")) } else { Ok(Id(body.to_vec())) }
}

fn parse_notify(body: &[u8]) -> Result<Notify, Error> {
    let ([protocol, size, k0, k1], rest) = split(body, "short Notify payload")?;
    let (spi, data) = rest.split_at_checked(usize::from(size)).ok_or(Error::Malformed("Notify SPI size"))?;
    Ok(Notify { kind: u16::from_be_bytes([k0, k1]), protocol, spi: spi.to_vec(), data: data.to_vec() })
}

/// `None` if it names no SA, or those of a protocol that is not known here.
fn parse_delete(body: &[u8]) -> Result<Option<Delete>, Error> {
    use super::constants::protocol;
    let ([kind, size, n0, n1], rest) = split(body, "short Delete payload")?;
    let count = usize::from(u16::from_be_bytes([n0, n1]));
    let spis = || {
        let (spis, []) = rest.as_chunks() else { return Err(Error::Malformed("Delete length")) };
        if size != 4 || spis.len() != count {
            return Err(Error::Malformed("Delete SPI count"));
        }
        Ok(spis.iter().map(|spi| Spi(u32::from_be_bytes(*spi))).collect())
    };
    match kind {
        // RFC 7296 section 3.11: for IKE no SPI is named, the message's own SA is meant.
        protocol::IKE if size == 0 && count == 0 && rest.is_empty() => Ok(Some(Delete::Ike)),
        protocol::IKE => Err(Error::Malformed("Delete of an IKE SA by its SPI")),
        protocol::ESP | protocol::AH if size != 4 && count == 0 && rest.is_empty() => Ok(None),
        protocol::ESP => Ok(Some(Delete::Esp(spis()?))),
        protocol::AH => Ok(Some(Delete::Ah(spis()?))),
        _ => Ok(None),
    }
}

fn emit_delete(delete: &Delete, octets: &mut Vec<u8>) {
    use super::constants::protocol;
    let (kind, size, spis): (u8, u8, &[Spi]) = match delete {
        Delete::Ike => (protocol::IKE, 0, &[]),
        Delete::Esp(spis) => (protocol::ESP, 4, spis),
        Delete::Ah(spis) => (protocol::AH, 4, spis),
    };
    octets.extend_from_slice(&[kind, size]);
    octets.extend_from_slice(&u16::try_from(spis.len()).expect("below 65536 SPIs").to_be_bytes());
    for spi in spis {
        octets.extend_from_slice(&spi.0.to_be_bytes());
    }
}
