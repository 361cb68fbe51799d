//! Headers of captured frames. Input is arbitrary (and quotes in ICMP errors are cut off), so every view gives what
//! is there and `None` for what is not; nothing is verified but lengths.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IP protocol numbers that the analysis knows.
pub(crate) mod protocol {
    pub(crate) const HOP_BY_HOP: u8 = 0;
    pub(crate) const ICMP: u8 = 1;
    pub(crate) const IPV4: u8 = 4;
    pub(crate) const UDP: u8 = 17;
    pub(crate) const IPV6: u8 = 41;
    pub(crate) const ROUTING: u8 = 43;
    pub(crate) const FRAGMENT: u8 = 44;
    pub(crate) const GRE: u8 = 47;
    pub(crate) const ESP: u8 = 50;
    pub(crate) const ICMPV6: u8 = 58;
    pub(crate) const DESTINATION_OPTIONS: u8 = 60;
}

pub(crate) fn u16_at(octets: &[u8], at: usize) -> Option<u16> {
    octets.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes)
}

pub(crate) fn u32_at(octets: &[u8], at: usize) -> Option<u32> {
    octets.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes)
}

pub(crate) fn u64_at(octets: &[u8], at: usize) -> Option<u64> {
    octets.get(at..at + 8)?.try_into().ok().map(u64::from_be_bytes)
}

pub(crate) fn ipv4_at(octets: &[u8], at: usize) -> Option<Ipv4Addr> {
    u32_at(octets, at).map(Ipv4Addr::from)
}

pub(crate) fn ipv6_at(octets: &[u8], at: usize) -> Option<Ipv6Addr> {
    octets.get(at..at + 16)?.try_into().ok().map(|octets: [u8; 16]| Ipv6Addr::from(octets))
}

/// What an Ethernet frame carries: its EtherType and what follows, behind up to two VLAN tags.
pub(crate) fn ethernet(frame: &[u8]) -> Option<(u16, &[u8])> {
    let mut at = 12;
    for _ in 0..2 {
        if !matches!(u16_at(frame, at)?, 0x8100 | 0x88a8) {
            break;
        }
        at += 4;
    }
    Some((u16_at(frame, at)?, frame.get(at + 2..)?))
}

/// An IP packet, whole or the beginning of one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ip<'a> {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// The upper-layer protocol, behind extension headers.
    pub(crate) protocol: u8,
    /// What follows the headers, cut to the packet's length; empty in all fragments but the first.
    pub(crate) payload: &'a [u8],
}

impl<'a> Ip<'a> {
    /// A packet of either version.
    pub(crate) fn parse(packet: &'a [u8]) -> Option<Ip<'a>> {
        match packet.first()? >> 4 {
            4 => Self::version_4(packet),
            6 => Self::version_6(packet),
            _ => None,
        }
    }

    /// RFC 791 section 3.1.
    fn version_4(packet: &'a [u8]) -> Option<Ip<'a>> {
        let header = usize::from(packet[0] & 0x0f) * 4;
        if header < 20 {
            return None;
        }
        let later_fragment = u16_at(packet, 6)? & 0x1fff != 0;
        let end = packet.len().min(usize::from(u16_at(packet, 2)?));
        // A total length of 0 is how captures show packets that await segmentation.
        let end = if end == 0 { packet.len() } else { end };
        let payload = if later_fragment { &[] } else { packet.get(header..end).unwrap_or(&[]) };
        Some(Ip {
            source: IpAddr::V4(ipv4_at(packet, 12)?),
            destination: IpAddr::V4(ipv4_at(packet, 16)?),
            protocol: *packet.get(9)?,
            payload,
        })
    }

    /// RFC 8200 sections 3 and 4.
    fn version_6(packet: &'a [u8]) -> Option<Ip<'a>> {
        let source = IpAddr::V6(ipv6_at(packet, 8)?);
        let destination = IpAddr::V6(ipv6_at(packet, 24)?);
        let mut protocol = packet[6];
        let mut payload = packet.get(40..)?;
        while matches!(
            protocol,
            protocol::HOP_BY_HOP | protocol::ROUTING | protocol::FRAGMENT | protocol::DESTINATION_OPTIONS
        ) {
            let Some(&[next, length]) = payload.first_chunk::<2>() else { break };
            let fragment = protocol == protocol::FRAGMENT;
            let size = if fragment { 8 } else { (usize::from(length) + 1) * 8 };
            let later_fragment = fragment && u16_at(payload, 2).is_some_and(|field| field & 0xfff8 != 0);
            protocol = next;
            payload = if later_fragment { &[] } else { payload.get(size..).unwrap_or(&[]) };
        }
        Some(Ip { source, destination, protocol, payload })
    }

    /// Source port, destination port and payload, if it is UDP.
    pub(crate) fn udp(&self) -> Option<(u16, u16, &'a [u8])> {
        if self.protocol != protocol::UDP {
            return None;
        }
        Some((u16_at(self.payload, 0)?, u16_at(self.payload, 2)?, self.payload.get(8..)?))
    }
}

/// The sum of RFC 1071 over 16-bit words, folded; 0xffff over a header with a right checksum.
pub(crate) fn internet_sum(octets: &[u8]) -> u16 {
    let words = octets.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum = words.fold(0_u32, |sum, word| sum.wrapping_add(word));
    let folded = (sum >> 16) + (sum & 0xffff);
    ((folded >> 16) + (folded & 0xffff)) as u16
}
