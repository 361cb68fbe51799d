//! A router between the gateways whose next link takes smaller packets, as a filter of the delay box.

use crate::craft;
use crate::delay::Verdict;
use crate::frame::{internet_sum, ipv4_at, u16_at};
use crate::topology::Side;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Octets of the Ethernet header.
const ETHERNET: usize = 14;
/// The router's own addresses.
const ROUTER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 254);
const ROUTER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0xc633, 0x64fe);
const IPV6_HEADER: usize = 40;
const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;

/// Fragments IPv4 packets longer than `mtu` octets, or answers "fragmentation needed" if they must not be (RFC 791,
/// RFC 1191); to IPv6 ones answers Packet Too Big (RFC 4443 section 3.2).
pub fn narrow(mtu: u16) -> impl FnMut(Side, &[u8]) -> Verdict + Send {
    move |_, frame| {
        if is_longer_ipv6(frame, mtu) {
            Verdict::Instead { onward: Vec::new(), back: too_big_ipv6(frame, mtu).into_iter().collect() }
        } else if !is_longer(frame, mtu) {
            Verdict::Pass
        } else if u16_at(frame, ETHERNET + 6).is_some_and(|field| field & DONT_FRAGMENT != 0) {
            Verdict::Instead { onward: Vec::new(), back: too_big(frame, mtu).into_iter().collect() }
        } else {
            Verdict::Instead { onward: fragments(frame, mtu), back: Vec::new() }
        }
    }
}

/// Fragments IPv4 packets longer than `mtu` octets, whatever they say; and IPv6 ones, as their source might have.
pub fn shred(mtu: u16) -> impl FnMut(Side, &[u8]) -> Verdict + Send {
    let mut identification = 0;
    move |_, frame| {
        if is_longer_ipv6(frame, mtu) {
            identification += 1;
            let onward = fragments_ipv6(frame, mtu, identification);
            Verdict::Instead { onward, back: Vec::new() }
        } else if is_longer(frame, mtu) {
            Verdict::Instead { onward: fragments(frame, mtu), back: Vec::new() }
        } else {
            Verdict::Pass
        }
    }
}

fn is_longer_ipv6(frame: &[u8], mtu: u16) -> bool {
    let length = u16_at(frame, ETHERNET + 4).map(|payload| IPV6_HEADER + usize::from(payload));
    u16_at(frame, 12) == Some(0x86dd) && length.is_some_and(|length| length > usize::from(mtu))
}

/// The ICMPv6 error about a frame, back to whence it came.
fn too_big_ipv6(frame: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let packet = frame.get(ETHERNET..)?;
    let to = Ipv6Addr::from(*packet.get(8..24)?.first_chunk::<16>()?);
    let mut icmp = craft::icmpv6(2, 0, u32::from(mtu), packet.get(..packet.len().min(1232))?);
    // RFC 8200 section 8.1: with a pseudo-header.
    let length = (icmp.len() as u32).to_be_bytes();
    let summed = [&ROUTER6.octets()[..], &to.octets(), &length, &[0, 0, 0, 58], &icmp].concat();
    icmp[2..4].copy_from_slice(&(!internet_sum(&summed)).to_be_bytes());
    let answer = craft::ipv6(ROUTER6, to, 58, &icmp);
    let (destination, source) = (frame.get(6..12)?.try_into().ok()?, frame.get(..6)?.try_into().ok()?);
    Some(craft::ethernet(destination, source, 0x86dd, &answer))
}

/// The frame's IPv6 packet, which has no extension headers, in fragments of at most `mtu` octets (RFC 8200 section 4.5).
fn fragments_ipv6(frame: &[u8], mtu: u16, identification: u32) -> Vec<Vec<u8>> {
    let Some(length) = u16_at(frame, ETHERNET + 4) else { return Vec::new() };
    let (head, body) = frame.split_at(ETHERNET + IPV6_HEADER);
    let body = &body[..body.len().min(usize::from(length))];
    let size = (usize::from(mtu) - IPV6_HEADER - 8) & !7;
    let fragment = |(number, octets): (usize, &[u8])| {
        let more = (number + 1) * size < body.len();
        let field = ((number * size) as u16 | u16::from(more)).to_be_bytes();
        let header = [&[head[ETHERNET + 6], 0][..], &field, &identification.to_be_bytes()].concat();
        let mut fragment = [head, &header, octets].concat();
        fragment[ETHERNET + 6] = 44;
        fragment[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&(8 + octets.len() as u16).to_be_bytes());
        fragment
    };
    body.chunks(size).enumerate().map(fragment).collect()
}

fn is_longer(frame: &[u8], mtu: u16) -> bool {
    u16_at(frame, 12) == Some(0x0800) && u16_at(frame, ETHERNET + 2).is_some_and(|length| length > mtu)
}

/// The ICMP error about a frame, back to whence it came.
fn too_big(frame: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let packet = frame.get(ETHERNET..)?;
    let quoted = packet.get(..packet.len().min(548))?;
    let icmp = craft::icmp(3, 4, u32::from(mtu), quoted);
    let answer = craft::ipv4(ROUTER, ipv4_at(packet, 12)?, 1, &icmp);
    let (destination, source) = (frame.get(6..12)?.try_into().ok()?, frame.get(..6)?.try_into().ok()?);
    Some(craft::ethernet(destination, source, 0x0800, &answer))
}

/// The frame's IPv4 packet, which has no options, in fragments of at most `mtu` octets.
fn fragments(frame: &[u8], mtu: u16) -> Vec<Vec<u8>> {
    let (Some(length), Some(flags)) = (u16_at(frame, ETHERNET + 2), u16_at(frame, ETHERNET + 6)) else {
        return Vec::new();
    };
    let (head, body) = (&frame[..ETHERNET + 20], &frame[ETHERNET + 20..]);
    let body = &body[..body.len().min(usize::from(length) - 20)];
    let size = (usize::from(mtu) - 20) & !7;
    let fragment = |(number, octets): (usize, &[u8])| {
        let mut fragment = [head, octets].concat();
        let last = (number + 1) * size >= body.len() && flags & MORE_FRAGMENTS == 0;
        let offset = (flags & OFFSET) + (number * size / 8) as u16;
        let field = offset | if last { 0 } else { MORE_FRAGMENTS };
        let header = &mut fragment[ETHERNET..ETHERNET + 20];
        header[2..4].copy_from_slice(&(20 + octets.len() as u16).to_be_bytes());
        header[6..8].copy_from_slice(&field.to_be_bytes());
        header[10..12].fill(0);
        let checksum = (!internet_sum(header)).to_be_bytes();
        header[10..12].copy_from_slice(&checksum);
        fragment
    };
    body.chunks(size).enumerate().map(fragment).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(length: usize, dont_fragment: bool) -> Vec<u8> {
        let data: Vec<u8> = (0..length).map(|at| at as u8).collect();
        let (from, to) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2));
        let mut packet = craft::ipv4(from, to, 50, &data);
        packet[6] = if dont_fragment { 0x40 } else { 0 };
        craft::ethernet([2; 6], [4; 6], 0x0800, &packet)
    }

    #[test]
    fn a_packet_beyond_the_mtu_is_fragmented_or_refused() {
        let mut router = narrow(600);
        assert_eq!(router(Side::A, &frame(580, true)), Verdict::Pass);
        let Verdict::Instead { onward, back } = router(Side::A, &frame(581, true)) else { panic!() };
        assert_eq!((onward.len(), back.len()), (0, 1));
        assert_eq!(back[0][..12], [[4; 6], [2; 6]].concat());
        assert_eq!(back[0][ETHERNET + 20..][..8].last_chunk(), Some(&600_u16.to_be_bytes()));
        let Verdict::Instead { onward, back } = router(Side::A, &frame(1400, false)) else { panic!() };
        assert_eq!((onward.len(), back.len()), (3, 0));
        let whole: Vec<u8> = onward.iter().flat_map(|piece| piece[ETHERNET + 20..].to_vec()).collect();
        assert_eq!(whole, frame(1400, false)[ETHERNET + 20..]);
        let fields: Vec<_> = onward.iter().filter_map(|piece| u16_at(piece, ETHERNET + 6)).collect();
        assert_eq!(fields, [0x2000, 0x2000 | 72, 144]);
        let Verdict::Instead { onward, .. } = shred(600)(Side::A, &frame(1400, true)) else { panic!() };
        assert_eq!(onward.len(), 3);
    }

    #[test]
    fn an_ipv6_packet_beyond_the_mtu_is_refused_or_comes_in_fragments() {
        let frame = |length: usize| {
            let data: Vec<u8> = (0..length).map(|at| at as u8).collect();
            let packet = craft::ipv6(ROUTER6, ROUTER6, 50, &data);
            craft::ethernet([2; 6], [4; 6], 0x86dd, &packet)
        };
        assert_eq!(narrow(1300)(Side::A, &frame(1260)), Verdict::Pass);
        let Verdict::Instead { onward, back } = narrow(1300)(Side::A, &frame(1261)) else { panic!() };
        assert_eq!((onward.len(), back.len()), (0, 1));
        let icmp = &back[0][ETHERNET + IPV6_HEADER..];
        assert_eq!((back[0][ETHERNET + 6], icmp[0], &icmp[4..8]), (58, 2, &1300_u32.to_be_bytes()[..]));
        assert_eq!(icmp[8..], frame(1261)[ETHERNET..][..1232]);
        let Verdict::Instead { onward, .. } = shred(600)(Side::A, &frame(1400)) else { panic!() };
        let whole: Vec<u8> = onward.iter().flat_map(|piece| piece[ETHERNET + 48..].to_vec()).collect();
        assert_eq!(whole, frame(1400)[ETHERNET + 40..]);
        let fields: Vec<_> = onward.iter().filter_map(|piece| u16_at(piece, ETHERNET + 42)).collect();
        assert_eq!(fields, [1, 552 | 1, 1104]);
    }
}
