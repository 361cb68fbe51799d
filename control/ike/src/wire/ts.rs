//! The TS payloads' body (RFC 7296 section 3.13).

use super::Error;
use spindle_abi::{AddressRange, Selector};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const IPV4_RANGE: u8 = 7;
const IPV6_RANGE: u8 = 8;

/// The selectors that are understood. One of unknown type is skipped (RFC 7296 section 3.13.1 leaves room for more),
/// so the result may be empty.
pub(super) fn parse(body: &[u8]) -> Result<Vec<Selector>, Error> {
    let ([count, _, _, _], mut rest) =
        body.split_first_chunk().ok_or(Error::Malformed("short TS payload"))?;
    let mut selectors = Vec::with_capacity(usize::from(*count));
    for _ in 0..*count {
        let [kind, protocol, l0, l1] =
            *rest.first_chunk().ok_or(Error::Malformed("short traffic selector"))?;
        let length = usize::from(u16::from_be_bytes([l0, l1]));
        let body = rest.get(4..length).ok_or(Error::Malformed("traffic selector length"))?;
        rest = &rest[length..];
        let octets: &[u8] = match kind {
            IPV4_RANGE if body.len() == 12 => &body[4..],
            IPV6_RANGE if body.len() == 36 => &body[4..],
            IPV4_RANGE | IPV6_RANGE => return Err(Error::Malformed("traffic selector length")),
            _ => continue,
        };
        let (start, end) = octets.split_at(octets.len() / 2);
        let (start, end) = (address(start), address(end));
        if start > end {
            return Err(Error::Malformed("traffic selector range"));
        }
        let (start_port, end_port) =
            (u16::from_be_bytes([body[0], body[1]]), u16::from_be_bytes([body[2], body[3]]));
        // RFC 7296 section 3.13.1: 65535 to 0 is OPAQUE; no other range runs backwards.
        if start_port > end_port && (start_port, end_port) != (65535, 0) {
            return Err(Error::Malformed("traffic selector ports"));
        }
        selectors.push(Selector { addresses: AddressRange { start, end }, protocol, start_port, end_port });
    }
    if rest.is_empty() { Ok(selectors) } else { Err(Error::Malformed("octets after the traffic selectors")) }
}

fn address(octets: &[u8]) -> IpAddr {
    match <[u8; 4]>::try_from(octets) {
        Ok(octets) => Ipv4Addr::from(octets).into(),
        Err(_) => Ipv6Addr::from(<[u8; 16]>::try_from(octets).expect("4 or 16 octets")).into(),
    }
}

/// `selectors` are at most 255, each with addresses of one IP version.
pub(super) fn emit(selectors: &[Selector], octets: &mut Vec<u8>) {
    octets.extend_from_slice(&[u8::try_from(selectors.len()).expect("below 256 selectors"), 0, 0, 0]);
    for selector in selectors {
        let (kind, length) =
            if selector.addresses.start.is_ipv4() { (IPV4_RANGE, 16) } else { (IPV6_RANGE, 40) };
        octets.extend_from_slice(&[kind, selector.protocol, 0, length]);
        octets.extend_from_slice(&selector.start_port.to_be_bytes());
        octets.extend_from_slice(&selector.end_port.to_be_bytes());
        for address in [selector.addresses.start, selector.addresses.end] {
            match address {
                IpAddr::V4(a) => octets.extend_from_slice(&a.octets()),
                IpAddr::V6(a) => octets.extend_from_slice(&a.octets()),
            }
        }
    }
}
