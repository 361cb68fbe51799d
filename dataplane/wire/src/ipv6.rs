//! IPv6 (RFC 8200): the fixed header, and a bounded walk over extension headers to what they lead to.

use crate::{Malformed, be16, be32, protocol, put16, put32};
use std::net::Ipv6Addr;

/// Octets of the fixed header.
pub const HEADER_LENGTH: usize = 40;

/// Where the header has its hop limit.
pub(crate) const HOP_LIMIT: usize = 7;
/// Where the fixed header names what follows it.
const NEXT_HEADER: usize = 6;
/// Octets of a fragment header.
pub const FRAGMENT_LENGTH: usize = 8;
/// Every link carries packets of so many octets (RFC 8200 section 5).
pub const MINIMUM_MTU: usize = 1280;
/// Extension headers that are walked at most. RFC 8200 section 4.1 recommends one each, six in all.
pub const MAX_EXTENSIONS: usize = 8;

/// A packet's octets. What lies behind its payload length (Ethernet padding) is never shown.
#[derive(Clone, Copy, Debug)]
pub struct Packet<T>(T);

/// The upper layer: what follows the extension headers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Upper {
    /// Its protocol. Of a fragment but the first: what its fragment header names.
    pub protocol: u8,
    /// Where in the packet it begins.
    pub start: usize,
    /// Where in the packet the octet is that names its protocol.
    pub named: usize,
    /// What the fragment header says, if there is one.
    pub fragment: Option<Fragment>,
}

impl<T: AsRef<[u8]>> Packet<T> {
    /// Version 6, and payload length ≤ octets? Jumbograms (RFC 2675) come out empty.
    #[inline]
    pub fn new_checked(octets: T) -> Result<Packet<T>, Malformed> {
        let o = octets.as_ref();
        if o.len() < HEADER_LENGTH {
            return Err(Malformed::Truncated);
        }
        if o[0] >> 4 != 6 {
            return Err(Malformed::Field("IP version"));
        }
        if HEADER_LENGTH + usize::from(be16(o, 4)) > o.len() {
            return Err(Malformed::Truncated);
        }
        Ok(Packet(octets))
    }

    #[inline]
    fn octets(&self) -> &[u8] {
        self.0.as_ref()
    }

    /// Octets of the packet, the fixed header included.
    #[inline]
    pub fn total_length(&self) -> usize {
        HEADER_LENGTH + usize::from(be16(self.octets(), 4))
    }

    /// DSCP and ECN (RFC 2474, RFC 3168).
    #[inline]
    pub fn traffic_class(&self) -> u8 {
        (be16(self.octets(), 0) >> 4) as u8
    }

    /// The flow label (RFC 6437), 20 bits.
    #[inline]
    pub fn flow_label(&self) -> u32 {
        be32(self.octets(), 0) & 0xf_ffff
    }

    /// What follows the fixed header.
    #[inline]
    pub fn next_header(&self) -> u8 {
        self.octets()[6]
    }

    /// Hops that are left.
    #[inline]
    pub fn hop_limit(&self) -> u8 {
        self.octets()[7]
    }

    /// Whence.
    #[inline]
    pub fn source(&self) -> Ipv6Addr {
        address(&self.octets()[8..24])
    }

    /// Whereto.
    #[inline]
    pub fn destination(&self) -> Ipv6Addr {
        address(&self.octets()[24..40])
    }

    /// What follows the fixed header, within the payload length.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        &self.octets()[HEADER_LENGTH..self.total_length()]
    }

    /// Walks the extension headers. Refused: a header that is cut off (in a first fragment too, RFC 7112 section 5), a
    /// hop-by-hop header that is not the first (RFC 8200 section 4.1), two fragment headers, and too many headers.
    #[inline]
    pub fn upper(&self) -> Result<Upper, Malformed> {
        let octets = &self.octets()[..self.total_length()];
        let mut upper =
            Upper { protocol: self.next_header(), start: HEADER_LENGTH, named: NEXT_HEADER, fragment: None };
        for _ in 0..=MAX_EXTENSIONS {
            let first = upper.start == HEADER_LENGTH;
            let length = match upper.protocol {
                protocol::HOP_BY_HOP if !first => return Err(Malformed::Field("order of IPv6 headers")),
                protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION_OPTIONS => {
                    let length = octets.get(upper.start + 1).ok_or(Malformed::Truncated)?;
                    (usize::from(*length) + 1) * 8
                }
                protocol::FRAGMENT if upper.fragment.is_some() => {
                    return Err(Malformed::Field("order of IPv6 headers"));
                }
                protocol::FRAGMENT => {
                    let header = octets.get(upper.start..upper.start + FRAGMENT_LENGTH);
                    upper.fragment = Some(Fragment::parse(header.ok_or(Malformed::Truncated)?));
                    FRAGMENT_LENGTH
                }
                _ => return Ok(upper),
            };
            if octets.len() < upper.start + length {
                return Err(Malformed::Truncated);
            }
            (upper.protocol, upper.named) = (octets[upper.start], upper.start);
            upper.start += length;
            if upper.fragment.is_some_and(|fragment| fragment.offset != 0) {
                return Ok(upper);
            }
        }
        Err(Malformed::Field("number of IPv6 headers"))
    }

    /// Where ESP goes in transport mode, and where the octet is that will name it: behind hop-by-hop options, routing and
    /// fragment header, and what stands before these; but destination options behind them are for the destination
    /// alone, and better protected (RFC 4303 section 3.1.1).
    pub fn place_of_esp(&self) -> (usize, usize) {
        let octets = &self.octets()[..self.total_length()];
        let (mut place, mut next, mut start) =
            ((HEADER_LENGTH, NEXT_HEADER), self.next_header(), HEADER_LENGTH);
        for _ in 0..=MAX_EXTENSIONS {
            let length = match (next, octets.get(start + 1)) {
                (protocol::FRAGMENT, _) => FRAGMENT_LENGTH,
                (protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION_OPTIONS, Some(length)) => {
                    (usize::from(*length) + 1) * 8
                }
                _ => break,
            };
            if octets.len() < start + length {
                break;
            }
            if next != protocol::DESTINATION_OPTIONS {
                place = (start + length, start);
            }
            (next, start) = (octets[start], start + length);
        }
        place
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Packet<T> {
    /// One hop less. At 0 it stays.
    #[inline]
    pub fn decrement_hop_limit(&mut self) {
        let octets = self.0.as_mut();
        octets[HOP_LIMIT] = octets[HOP_LIMIT].saturating_sub(1);
    }

    /// Sets DSCP and ECN.
    #[inline]
    pub fn set_traffic_class(&mut self, class: u8) {
        let octets = self.0.as_mut();
        let word = be16(octets, 0) & 0xf00f | u16::from(class) << 4;
        put16(octets, 0, word);
    }
}

#[inline]
fn address(octets: &[u8]) -> Ipv6Addr {
    Ipv6Addr::from(octets.first_chunk::<16>().copied().unwrap_or_default())
}

/// A fragment header (RFC 8200 section 4.5), without the next header that it names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fragment {
    /// Where this fragment belongs, in units of 8 octets, below 8192.
    pub offset: u16,
    /// Is this not the last fragment?
    pub more: bool,
    /// Identification of the fragments of one packet.
    pub identification: u32,
}

impl Fragment {
    #[inline]
    fn parse(header: &[u8]) -> Fragment {
        let word = be16(header, 2);
        Fragment { offset: word >> 3, more: word & 1 != 0, identification: be32(header, 4) }
    }

    /// Writes the header to the front.
    pub fn emit(&self, next_header: u8, octets: &mut [u8]) {
        (octets[0], octets[1]) = (next_header, 0);
        put16(octets, 2, self.offset << 3 | u16::from(self.more));
        put32(octets, 4, self.identification);
    }
}

/// A fixed header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Repr {
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// The flow label, 20 bits.
    pub flow_label: u32,
    /// What follows.
    pub next_header: u8,
    /// Hops that are left.
    pub hop_limit: u8,
    /// Whence.
    pub source: Ipv6Addr,
    /// Whereto.
    pub destination: Ipv6Addr,
    /// Octets behind the fixed header.
    pub payload_length: u16,
}

impl Repr {
    /// What the fixed header says.
    pub fn parse<T: AsRef<[u8]>>(packet: &Packet<T>) -> Repr {
        Repr {
            traffic_class: packet.traffic_class(),
            flow_label: packet.flow_label(),
            next_header: packet.next_header(),
            hop_limit: packet.hop_limit(),
            source: packet.source(),
            destination: packet.destination(),
            payload_length: packet.payload().len() as u16,
        }
    }

    /// Octets that [`Repr::emit`] writes.
    pub const fn buffer_length(&self) -> usize {
        HEADER_LENGTH
    }

    /// Writes the header to the front.
    #[inline]
    pub fn emit(&self, octets: &mut [u8]) {
        put32(octets, 0, 6 << 28 | u32::from(self.traffic_class) << 20 | self.flow_label & 0xf_ffff);
        put16(octets, 4, self.payload_length);
        (octets[6], octets[7]) = (self.next_header, self.hop_limit);
        octets[8..24].copy_from_slice(&self.source.octets());
        octets[24..40].copy_from_slice(&self.destination.octets());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn repr() -> impl Strategy<Value = Repr> {
        (any::<(u8, u8, u8)>(), 0u32..1 << 20, any::<([u8; 16], [u8; 16])>(), 0u16..100).prop_map(
            |((traffic_class, next_header, hop_limit), flow_label, (source, destination), payload_length)| {
                let (source, destination) = (source.into(), destination.into());
                Repr {
                    traffic_class,
                    flow_label,
                    next_header,
                    hop_limit,
                    source,
                    destination,
                    payload_length,
                }
            },
        )
    }

    fn packet(next_header: u8, payload: &[u8]) -> Vec<u8> {
        let repr = Repr {
            traffic_class: 0,
            flow_label: 0,
            next_header,
            hop_limit: 64,
            source: Ipv6Addr::LOCALHOST,
            destination: Ipv6Addr::LOCALHOST,
            payload_length: payload.len() as u16,
        };
        let mut octets = vec![0; HEADER_LENGTH];
        repr.emit(&mut octets);
        octets.extend(payload);
        octets
    }

    /// An extension header of `words` times 8 octets.
    fn extension(next_header: u8, words: u8) -> Vec<u8> {
        let mut octets = vec![0; usize::from(words) * 8];
        (octets[0], octets[1]) = (next_header, words - 1);
        octets
    }

    fn fragment(next_header: u8, offset: u16, more: bool) -> Vec<u8> {
        let mut octets = vec![0; FRAGMENT_LENGTH];
        Fragment { offset, more, identification: 7 }.emit(next_header, &mut octets);
        octets
    }

    proptest! {
        #[test]
        fn a_header_comes_back_as_it_was(repr in repr()) {
            let mut octets = vec![0xa5; HEADER_LENGTH + usize::from(repr.payload_length) + 7];
            repr.emit(&mut octets);
            let packet = Packet::new_checked(&octets).unwrap();
            prop_assert_eq!(Repr::parse(&packet), repr);
            prop_assert_eq!(packet.payload().len(), usize::from(repr.payload_length));
        }

        #[test]
        fn setters_change_their_field_alone(repr in repr(), class: u8) {
            let mut octets = vec![0; HEADER_LENGTH + usize::from(repr.payload_length)];
            repr.emit(&mut octets);
            let mut packet = Packet::new_checked(&mut octets[..]).unwrap();
            packet.decrement_hop_limit();
            packet.set_traffic_class(class);
            let hop_limit = repr.hop_limit.saturating_sub(1);
            prop_assert_eq!(Repr::parse(&packet), Repr { traffic_class: class, hop_limit, ..repr });
        }

        #[test]
        fn a_fragment_header_comes_back_as_it_was(offset in 0u16..8192, more: bool, identification: u32) {
            let fragment = Fragment { offset, more, identification };
            let mut octets = [0; FRAGMENT_LENGTH];
            fragment.emit(17, &mut octets);
            prop_assert_eq!((Fragment::parse(&octets), octets[0]), (fragment, 17));
        }

        #[test]
        fn any_octets_are_walked_or_refused(
            first in prop_oneof![Just(0u8), Just(43), Just(44), Just(60), any::<u8>()],
            payload in proptest::collection::vec(prop_oneof![0u8..4, Just(43), Just(44), Just(60), any::<u8>()], 0..90),
            cut in 0usize..140,
        ) {
            let mut octets = packet(first, &payload);
            octets.truncate(cut);
            if let Ok(packet) = Packet::new_checked(&octets) && let Ok(upper) = packet.upper() {
                prop_assert!(upper.start <= packet.total_length());
            }
        }
    }

    /// RFC 8200 section 4.1.
    #[test]
    fn extension_headers_lead_to_the_upper_layer() {
        let chain =
            [extension(60, 2), extension(43, 1), extension(44, 3), fragment(60, 0, true), extension(17, 1)];
        let mut octets = packet(0, &chain.concat());
        octets.extend(b"datagram");
        let length = (octets.len() - HEADER_LENGTH) as u16;
        put16(&mut octets, 4, length);
        let upper = Packet::new_checked(&octets).unwrap().upper().unwrap();
        assert_eq!((upper.protocol, upper.start), (17, octets.len() - 8));
        assert_eq!(upper.fragment, Some(Fragment { offset: 0, more: true, identification: 7 }));
    }

    #[test]
    fn a_fragment_but_the_first_shows_no_more_headers() {
        let octets = packet(44, &[fragment(60, 9, false), vec![0xff; 5]].concat());
        let upper = Packet::new_checked(&octets).unwrap().upper().unwrap();
        assert_eq!((upper.protocol, upper.start), (60, 48));
    }

    #[test]
    fn impossible_chains_are_refused() {
        let order = Err(Malformed::Field("order of IPv6 headers"));
        let cases = [
            (packet(60, &[extension(0, 1), extension(17, 1)].concat()), order),
            (packet(44, &[fragment(44, 0, false), fragment(17, 0, false)].concat()), order),
            (packet(0, &[]), Err(Malformed::Truncated)),
            (packet(60, &extension(17, 2)[..15]), Err(Malformed::Truncated)),
            (packet(44, &[0; 7]), Err(Malformed::Truncated)),
            // RFC 7112 section 5: the chain of a first fragment goes on in the next one.
            (packet(44, &fragment(60, 0, true)), Err(Malformed::Truncated)),
            (packet(60, &extension(60, 1).repeat(9)), Err(Malformed::Field("number of IPv6 headers"))),
        ];
        for (octets, expected) in cases {
            assert_eq!(Packet::new_checked(&octets).unwrap().upper(), expected, "{octets:02x?}");
        }
        let eight = [extension(60, 1).repeat(7), extension(17, 1)].concat();
        assert_eq!(Packet::new_checked(packet(60, &eight)).unwrap().upper().unwrap().protocol, 17);
    }
}
