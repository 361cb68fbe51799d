//! The SA payload's body: proposals and transforms (RFC 7296 section 3.3).

use super::Error;

/// Proposals that are kept of one SA payload; their numbers are octets, so there should be no more.
pub const MAX_PROPOSALS: usize = 255;

const MORE_PROPOSALS: u8 = 2;
const MORE_TRANSFORMS: u8 = 3;
/// The Key Length attribute in its short form (AF bit, type 14).
const KEY_LENGTH: u16 = 0x8000 | 14;

/// A proposal (section 3.3.1).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proposal {
    /// Proposal Num, from 1.
    pub number: u8,
    /// Protocol ID.
    pub protocol: u8,
    /// The sender's SPI: empty, 4 (ESP) or 8 octets (rekeyed IKE SA).
    pub spi: Vec<u8>,
    /// Its transforms; several of a type are alternatives.
    pub transforms: Vec<Transform>,
}

/// A transform (section 3.3.2).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Transform {
    /// Transform Type.
    pub kind: u8,
    /// Transform ID.
    pub id: u16,
    /// The Key Length attribute, in bits (section 3.3.5).
    pub key_length: Option<u16>,
    /// Attributes that are not known, as on the wire; unless empty, the transform must not be chosen
    /// (section 3.3.6).
    pub unknown: Vec<u8>,
}

pub(super) fn parse(body: &[u8]) -> Result<Vec<Proposal>, Error> {
    let mut proposals = Vec::new();
    let mut rest = body;
    loop {
        let (last, proposal, after) = substructure(rest, MORE_PROPOSALS)?;
        let proposal = parse_proposal(proposal)?;
        if proposals.len() < MAX_PROPOSALS {
            proposals.push(proposal);
        }
        match (last, after.is_empty()) {
            (true, true) => return Ok(proposals),
            (false, false) => rest = after,
            _ => return Err(Error::Malformed("Last Substruc of a proposal")),
        }
    }
}

/// Splits a proposal or transform off: is it the last one, its body, and what follows.
fn substructure(octets: &[u8], more: u8) -> Result<(bool, &[u8], &[u8]), Error> {
    let [last, _, l0, l1] = *octets.first_chunk().ok_or(Error::Malformed("short substructure"))?;
    if last != 0 && last != more {
        return Err(Error::Malformed("Last Substruc"));
    }
    let length = usize::from(u16::from_be_bytes([l0, l1]));
    let body = octets.get(4..length).ok_or(Error::Malformed("substructure length"))?;
    Ok((last == 0, body, &octets[length..]))
}

fn parse_proposal(body: &[u8]) -> Result<Proposal, Error> {
    let ([number, protocol, spi_size, count], rest) =
        body.split_first_chunk().ok_or(Error::Malformed("short proposal"))?;
    let (spi, mut rest) =
        rest.split_at_checked(usize::from(*spi_size)).ok_or(Error::Malformed("proposal SPI size"))?;
    let count = usize::from(*count);
    let mut transforms = Vec::with_capacity(count);
    for i in 1..=count {
        let (last, transform, after) = substructure(rest, MORE_TRANSFORMS)?;
        if last != (i == count) {
            return Err(Error::Malformed("Last Substruc of a transform"));
        }
        transforms.push(parse_transform(transform)?);
        rest = after;
    }
    if !rest.is_empty() {
        return Err(Error::Malformed("octets after the transforms"));
    }
    Ok(Proposal { number: *number, protocol: *protocol, spi: spi.to_vec(), transforms })
}

fn parse_transform(body: &[u8]) -> Result<Transform, Error> {
    let ([kind, _, i0, i1], mut rest) =
        body.split_first_chunk().ok_or(Error::Malformed("short transform"))?;
    let mut transform =
        Transform { kind: *kind, id: u16::from_be_bytes([*i0, *i1]), key_length: None, unknown: Vec::new() };
    while !rest.is_empty() {
        let [t0, t1, v0, v1] = rest.first_chunk().ok_or(Error::Malformed("short transform attribute"))?;
        let (attribute, value) = (u16::from_be_bytes([*t0, *t1]), u16::from_be_bytes([*v0, *v1]));
        // Section 3.3.5: the short form holds its value, the long one its value's length.
        let length = 4 + if attribute & 0x8000 != 0 { 0 } else { usize::from(value) };
        let (whole, after) =
            rest.split_at_checked(length).ok_or(Error::Malformed("transform attribute length"))?;
        if attribute == KEY_LENGTH && transform.key_length.is_none() {
            transform.key_length = Some(value);
        } else {
            transform.unknown.extend_from_slice(whole);
        }
        rest = after;
    }
    Ok(transform)
}

pub(super) fn emit(proposals: &[Proposal], octets: &mut Vec<u8>) {
    for (i, proposal) in proposals.iter().enumerate() {
        let start = octets.len();
        let more = if i + 1 < proposals.len() { MORE_PROPOSALS } else { 0 };
        let count = u8::try_from(proposal.transforms.len()).expect("below 256 transforms");
        let spi_size = u8::try_from(proposal.spi.len()).expect("an SPI below 256 octets");
        octets.extend_from_slice(&[more, 0, 0, 0, proposal.number, proposal.protocol, spi_size, count]);
        octets.extend_from_slice(&proposal.spi);
        for (i, transform) in proposal.transforms.iter().enumerate() {
            let more = if i + 1 < proposal.transforms.len() { MORE_TRANSFORMS } else { 0 };
            let length = 8 + if transform.key_length.is_some() { 4 } else { 0 } + transform.unknown.len();
            octets.extend_from_slice(&[more, 0]);
            octets.extend_from_slice(&u16::try_from(length).expect("a transform below 64 KiB").to_be_bytes());
            octets.extend_from_slice(&[transform.kind, 0]);
            octets.extend_from_slice(&transform.id.to_be_bytes());
            if let Some(bits) = transform.key_length {
                octets.extend_from_slice(&KEY_LENGTH.to_be_bytes());
                octets.extend_from_slice(&bits.to_be_bytes());
            }
            octets.extend_from_slice(&transform.unknown);
        }
        let length = u16::try_from(octets.len() - start).expect("a proposal below 64 KiB");
        octets[start + 2..start + 4].copy_from_slice(&length.to_be_bytes());
    }
}
