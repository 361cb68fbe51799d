//! Either version of IP: what a gateway looks at, read once.

use crate::{Malformed, be16, checksum, ipv4, ipv6, put16};
use std::net::{IpAddr, Ipv4Addr};

/// The version in the first octet, 4 or 6.
#[inline]
pub fn version(octets: &[u8]) -> Option<u8> {
    octets.first().map(|first| first >> 4).filter(|version| matches!(version, 4 | 6))
}

/// Octets of a packet's header without options and extension headers.
#[inline]
pub const fn header_length(is_ipv6: bool) -> usize {
    if is_ipv6 { ipv6::HEADER_LENGTH } else { ipv4::HEADER_LENGTH }
}

/// What the headers of a packet say, up to the upper layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    /// Whence.
    pub source: IpAddr,
    /// Whereto.
    pub destination: IpAddr,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// Time to live, or hop limit.
    pub hop_limit: u8,
    /// The upper layer's protocol. Of an IPv6 fragment but the first: what its fragment header names.
    pub protocol: u8,
    /// Must not be fragmented on its way? IPv6 never may.
    pub dont_fragment: bool,
    /// Is this not the last fragment?
    pub more_fragments: bool,
    /// Where this fragment belongs, in units of 8 octets.
    pub fragment_offset: u16,
    /// Where in the packet the upper layer begins.
    pub upper: usize,
    /// Where in the packet the octet is that names the upper layer's protocol.
    pub named: usize,
    /// Octets of the packet; what lies behind is padding.
    pub length: usize,
}

impl Head {
    /// Reads the headers of the packet at the front, and checks IPv4's checksum.
    #[inline]
    pub fn parse(octets: &[u8]) -> Result<Head, Malformed> {
        match octets.first_chunk() {
            // Nearly all packets: a header whose length the compiler knows.
            Some(header) if header[0] == ipv4::PLAIN => Head::of_plain_ipv4(header, octets.len()),
            _ => Head::parse_other(octets),
        }
    }

    #[inline]
    fn of_plain_ipv4(header: &[u8; ipv4::HEADER_LENGTH], octets: usize) -> Result<Head, Malformed> {
        let length = usize::from(be16(header, 2));
        if length < ipv4::HEADER_LENGTH {
            return Err(Malformed::Field("IPv4 length"));
        }
        if length > octets {
            return Err(Malformed::Truncated);
        }
        if !checksum::is_right(header) {
            return Err(Malformed::Field("IPv4 checksum"));
        }
        let [_, traffic_class, _, _, _, _, high, low, hop_limit, protocol, _, _, addresses @ ..] = *header;
        let [a, b, c, d, e, f, g, h] = addresses;
        Ok(Head {
            source: Ipv4Addr::new(a, b, c, d).into(),
            destination: Ipv4Addr::new(e, f, g, h).into(),
            traffic_class,
            hop_limit,
            protocol,
            dont_fragment: high & 0x40 != 0,
            more_fragments: high & 0x20 != 0,
            fragment_offset: u16::from_be_bytes([high & 0x1f, low]),
            upper: ipv4::HEADER_LENGTH,
            named: ipv4::PROTOCOL,
            length,
        })
    }

    #[inline(never)]
    fn parse_other(octets: &[u8]) -> Result<Head, Malformed> {
        if version(octets) == Some(6) {
            return Head::of_ipv6(&ipv6::Packet::new_checked(octets)?);
        }
        let packet = ipv4::Packet::new_checked(octets)?;
        if !packet.verify_checksum() {
            return Err(Malformed::Field("IPv4 checksum"));
        }
        Ok(Head {
            source: packet.source().into(),
            destination: packet.destination().into(),
            traffic_class: packet.traffic_class(),
            hop_limit: packet.ttl(),
            protocol: packet.protocol(),
            dont_fragment: packet.dont_fragment(),
            more_fragments: packet.more_fragments(),
            fragment_offset: packet.fragment_offset(),
            upper: packet.header_length(),
            named: ipv4::PROTOCOL,
            length: packet.total_length(),
        })
    }

    fn of_ipv6(packet: &ipv6::Packet<&[u8]>) -> Result<Head, Malformed> {
        let upper = packet.upper()?;
        Ok(Head {
            source: packet.source().into(),
            destination: packet.destination().into(),
            traffic_class: packet.traffic_class(),
            hop_limit: packet.hop_limit(),
            protocol: upper.protocol,
            dont_fragment: true,
            more_fragments: upper.fragment.is_some_and(|fragment| fragment.more),
            fragment_offset: upper.fragment.map_or(0, |fragment| fragment.offset),
            upper: upper.start,
            named: upper.named,
            length: packet.total_length(),
        })
    }

    /// Is it less than a whole packet?
    #[inline]
    pub fn is_fragment(&self) -> bool {
        self.more_fragments || self.fragment_offset != 0
    }

    /// One hop less for the packet that this was read from; `false`, and no change, if it has none to spare.
    #[inline]
    pub fn decrement_hop_limit(&self, octets: &mut [u8]) -> bool {
        if self.hop_limit <= 1 {
            return false;
        }
        match self.source {
            IpAddr::V4(_) => ipv4::decrement_ttl(octets),
            IpAddr::V6(_) => octets[ipv6::HOP_LIMIT] = self.hop_limit - 1,
        }
        true
    }

    /// The upper layer in the packet that this was read from.
    #[inline]
    pub fn payload<'a>(&self, octets: &'a [u8]) -> &'a [u8] {
        octets.get(self.upper..self.length).unwrap_or_default()
    }

    /// The upper layer, to be changed.
    #[inline]
    pub fn payload_mut<'a>(&self, octets: &'a mut [u8]) -> &'a mut [u8] {
        octets.get_mut(self.upper..self.length).unwrap_or_default()
    }
}

/// Sets DSCP and ECN of the packet at the front.
#[inline]
pub fn set_traffic_class(octets: &mut [u8], class: u8) -> Result<(), Malformed> {
    if version(octets) == Some(6) {
        ipv6::Packet::new_checked(octets)?.set_traffic_class(class);
    } else {
        ipv4::Packet::new_checked(octets)?.set_traffic_class(class);
    }
    Ok(())
}

/// Where ESP goes in the whole packet at the front in transport mode (RFC 4303 section 3.1.1), and where the octet is that
/// will name it.
#[inline]
pub fn place_of_esp(octets: &[u8]) -> Result<(usize, usize), Malformed> {
    if version(octets) == Some(6) {
        return Ok(ipv6::Packet::new_checked(octets)?.place_of_esp());
    }
    Ok((ipv4::Packet::new_checked(octets)?.header_length(), ipv4::PROTOCOL))
}

/// What is behind the headers at the front changed: these are `upper` octets, and now lead to `protocol`, named at `named`,
/// in a packet of so many octets. What they led to before.
#[inline]
pub fn set_upper(octets: &mut [u8], upper: usize, named: usize, protocol: u8, length: usize) -> u8 {
    let before = std::mem::replace(&mut octets[named], protocol);
    if version(octets) == Some(6) {
        put16(octets, 4, (length - ipv6::HEADER_LENGTH) as u16);
    } else {
        put16(octets, 2, length as u16);
        ipv4::fill_checksum(&mut octets[..upper]);
    }
    before
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packets() -> [Vec<u8>; 2] {
        let four = ipv4::Repr {
            traffic_class: 0xb9,
            identification: 1,
            dont_fragment: false,
            more_fragments: true,
            fragment_offset: 3,
            ttl: 7,
            protocol: 17,
            source: [10, 0, 0, 1].into(),
            destination: [10, 0, 0, 2].into(),
            payload_length: 12,
        };
        let six = ipv6::Repr {
            traffic_class: 0xb9,
            flow_label: 5,
            next_header: 44,
            hop_limit: 7,
            source: "2001:db8::1".parse().unwrap(),
            destination: "2001:db8::2".parse().unwrap(),
            payload_length: 20,
        };
        let mut octets = [vec![0; 20 + 12], vec![0; 40 + 20]];
        four.emit(&mut octets[0]);
        six.emit(&mut octets[1]);
        ipv6::Fragment { offset: 3, more: true, identification: 1 }.emit(17, &mut octets[1][40..]);
        octets
    }

    #[test]
    fn both_versions_say_the_same_in_the_same_words() {
        for mut octets in packets() {
            octets.extend([0; 5]); // Ethernet padding
            let head = Head::parse(&octets).unwrap();
            assert_eq!((head.protocol, head.traffic_class, head.hop_limit), (17, 0xb9, 7));
            assert_eq!((head.is_fragment(), head.more_fragments, head.fragment_offset), (true, true, 3));
            assert_eq!((head.payload(&octets).len(), head.length), (12, octets.len() - 5));
            assert_eq!(head.dont_fragment, head.source.is_ipv6());
            set_traffic_class(&mut octets, 1).unwrap();
            for left in (1..7).rev() {
                let before = Head::parse(&octets).unwrap();
                assert!(before.decrement_hop_limit(&mut octets));
                let after = Head { traffic_class: 1, hop_limit: left, ..head };
                assert_eq!(Head::parse(&octets), Ok(after));
            }
            assert!(!Head::parse(&octets).unwrap().decrement_hop_limit(&mut octets));
            assert_eq!(Head::parse(&octets).unwrap().hop_limit, 1);
        }
    }

    proptest! {
        #[test]
        fn mutated_packets_are_read_or_refused(six: bool, at in 0usize..60, to: u8, cut in 0usize..70) {
            let [four, other] = packets();
            let mut octets = if six { other } else { four };
            if let Some(octet) = octets.get_mut(at) {
                *octet = to;
            }
            octets.truncate(cut);
            if let Ok(head) = Head::parse(&octets) {
                prop_assert!(head.upper <= head.length && head.length <= octets.len());
                let mut less = octets.clone();
                let alive = head.decrement_hop_limit(&mut less);
                let hop_limit = head.hop_limit - u8::from(alive);
                prop_assert_eq!((Head::parse(&less), alive), (Ok(Head { hop_limit, ..head }), head.hop_limit > 1));
            }
            let _ = set_traffic_class(&mut octets, to);
        }

        /// What is read of a header whose length is known beforehand is what is read of any.
        #[test]
        fn a_plain_header_is_read_as_any(at in 0usize..20, to: u8, right: bool, cut in 20usize..70) {
            let [mut octets, _] = packets();
            octets[at] = to;
            octets.truncate(cut);
            if right {
                ipv4::fill_checksum(&mut octets[..20]);
            }
            let (read, any) = (Head::parse(&octets), Head::parse_other(&octets));
            // Of two faults either may be told.
            prop_assert_eq!(read.map_err(drop), any.map_err(drop));
        }
    }
}
