//! What an ICMP error quotes of an ESP packet that we are said to have sent (RFC 792, RFC 1812 section 4.3.2.3).
//!
//! A quote is the head of a packet: of its payload eight octets at least, often more, hardly ever all. So its lengths
//! say what was sent, not what is here.

use crate::{be16, be32, esp, ipv4, ipv6, protocol, udp};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An ESP packet, as far as a quote shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Esp {
    /// Whence it was sent.
    pub source: IpAddr,
    /// Whereto.
    pub destination: IpAddr,
    /// Source and destination port of the UDP around it (RFC 3948 section 2.1), if it was in UDP.
    pub ports: Option<(u16, u16)>,
    /// The Security Parameters Index.
    pub spi: u32,
    /// The sequence number's low 32 bits.
    pub sequence: u32,
    /// Octets of the whole packet, IP header included.
    pub length: usize,
}

impl Esp {
    /// Of a quoted IPv4 packet. `None` if it was no ESP, a fragment but the first, or if too little is quoted: where
    /// ESP was in UDP, a router that quotes eight octets shows no SPI.
    pub fn in_ipv4(quoted: &[u8]) -> Option<Esp> {
        let header = usize::from(quoted.first()? & 15) * 4;
        let is_ipv4 = quoted[0] >> 4 == 4 && header >= ipv4::HEADER_LENGTH && quoted.len() >= header;
        if !is_ipv4 || be16(quoted, 6) & 0x1fff != 0 {
            return None;
        }
        let address = |at| IpAddr::V4(Ipv4Addr::from_bits(be32(quoted, at)));
        let length = usize::from(be16(quoted, 2));
        Esp::behind(address(12), address(16), quoted[9], &quoted[header..], length)
    }

    /// Of a quoted IPv6 packet, which has no extension headers.
    pub fn in_ipv6(quoted: &[u8]) -> Option<Esp> {
        let (header, payload) = quoted.split_at_checked(ipv6::HEADER_LENGTH)?;
        let address =
            |octets: &[u8]| octets.first_chunk::<16>().map(|o| IpAddr::V6(Ipv6Addr::from_octets(*o)));
        let length = ipv6::HEADER_LENGTH + usize::from(be16(header, 4));
        if header[0] >> 4 != 6 {
            return None;
        }
        Esp::behind(address(&header[8..])?, address(&header[24..])?, header[6], payload, length)
    }

    fn behind(source: IpAddr, destination: IpAddr, next: u8, payload: &[u8], length: usize) -> Option<Esp> {
        let (ports, payload) = match next {
            protocol::ESP => (None, payload),
            protocol::UDP if payload.len() >= udp::HEADER_LENGTH => {
                (Some((be16(payload, 0), be16(payload, 2))), &payload[udp::HEADER_LENGTH..])
            }
            _ => return None,
        };
        let header = esp::Packet::new_checked(payload).ok()?;
        let (spi, sequence) = (header.spi(), header.sequence());
        // Four zero octets in UDP are the Non-ESP Marker (RFC 3948 section 2.2).
        (spi != 0).then_some(Esp { source, destination, ports, spi, sequence, length })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packet(protocol: u8, options: usize, fragment: u16, payload: &[u8]) -> Vec<u8> {
        let mut octets = vec![0; ipv4::HEADER_LENGTH];
        let repr = ipv4::Repr {
            traffic_class: 0,
            identification: 1,
            dont_fragment: true,
            more_fragments: fragment & 0x2000 != 0,
            fragment_offset: fragment & 0x1fff,
            ttl: 3,
            protocol,
            source: [192, 0, 2, 1].into(),
            destination: [192, 0, 2, 2].into(),
            payload_length: 1480,
        };
        repr.emit(&mut octets);
        octets[0] += (options / 4) as u8;
        octets.resize(octets.len() + options, 1);
        octets.extend(payload);
        octets
    }

    #[test]
    fn a_quote_shows_spi_sequence_number_and_ports() {
        let esp = [0x11, 0x22, 0x33, 0x44, 0, 0, 0, 9];
        let udp = [&[0x11, 0x94, 0x04, 0x00, 5, 0xc8, 0, 0][..], &esp].concat();
        for options in [0, 8] {
            let plain = Esp::in_ipv4(&packet(protocol::ESP, options, 0, &esp)).unwrap();
            assert_eq!((plain.spi, plain.sequence, plain.ports, plain.length), (0x1122_3344, 9, None, 1500));
            assert_eq!(plain.source, IpAddr::from([192, 0, 2, 1]));
            assert_eq!(plain.destination, IpAddr::from([192, 0, 2, 2]));
            let in_udp = Esp::in_ipv4(&packet(protocol::UDP, options, 0x2000, &udp)).unwrap();
            assert_eq!(in_udp, Esp { ports: Some((4500, 1024)), ..plain });
        }
        let none = [
            packet(protocol::ESP, 0, 0, &esp[..7]),
            packet(protocol::UDP, 0, 0, &udp[..15]),
            packet(protocol::UDP, 0, 0, &[&udp[..8], &[0; 28]].concat()),
            packet(protocol::ESP, 0, 1, &esp),
            packet(protocol::TCP, 0, 0, &esp),
        ];
        assert_eq!(none.map(|quote| Esp::in_ipv4(&quote)), [None; 5]);
    }

    #[test]
    fn over_ipv6_a_quote_shows_the_same() {
        let (source, destination): (Ipv6Addr, Ipv6Addr) =
            ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap());
        let mut octets = vec![0; ipv6::HEADER_LENGTH];
        let repr = ipv6::Repr {
            traffic_class: 0,
            flow_label: 0,
            next_header: protocol::ESP,
            hop_limit: 3,
            source,
            destination,
            payload_length: 1460,
        };
        repr.emit(&mut octets);
        octets.extend([0x11, 0x22, 0x33, 0x44, 0, 0, 0, 9]);
        let esp = Esp::in_ipv6(&octets).unwrap();
        assert_eq!((esp.source, esp.destination), (source.into(), destination.into()));
        assert_eq!((esp.spi, esp.sequence, esp.ports, esp.length), (0x1122_3344, 9, None, 1500));
        assert_eq!(Esp::in_ipv6(&octets[..47]), None);
        assert_eq!(Esp::in_ipv4(&octets), None);
    }

    proptest! {
        #[test]
        fn any_octets_are_a_quote_or_none(mut octets in proptest::collection::vec(any::<u8>(), 0..80), length in 4u8..16) {
            if let Some(first) = octets.first_mut() {
                *first = 0x40 | length;
            }
            if let Some(esp) = Esp::in_ipv4(&octets) {
                prop_assert!(esp.spi != 0 && octets.len() >= 28);
            }
            if let Some(first) = octets.first_mut() {
                *first = 0x60 | length;
            }
            if let Some(esp) = Esp::in_ipv6(&octets) {
                prop_assert!(esp.spi != 0 && octets.len() >= 48);
            }
        }
    }
}
