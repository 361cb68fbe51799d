//! What a gateway repairs in packets of local stacks, and in those that a NAT has changed.
//!
//! A stack that sends over veth (or virtio, or tun) leaves the TCP or UDP checksum to the device: the field holds
//! only the folded sum over the pseudo-header. Whoever takes the frame there must complete it. And a SYN's
//! maximum segment size is lowered so that full segments still fit once they are encapsulated.

use crate::{be16, checksum, ip, protocol, put16, tcp, udp};

/// Completes a partial TCP or UDP checksum of the IP packet with this head; `true` if it did.
///
/// Partial is a field that equals the folded sum over the pseudo-header. Anything else is left alone: right ones,
/// UDP's zero (none over IPv4; over IPv6 it is nobody's to mend), and wrong ones, for what is corrupt must stay so. Fragments carry no whole sum.
pub fn complete_checksum(head: &ip::Head, ip_packet: &mut [u8]) -> bool {
    let Some((at, length)) = checksummed(head, ip_packet) else { return false };
    let pseudo = checksum::pseudo_header(head.source, head.destination, head.protocol, length as u16);
    if be16(head.payload(ip_packet), at) != checksum::fold(pseudo) {
        return false;
    }
    fill_checksum(head, ip_packet, length);
    true
}

/// Makes the TCP or UDP checksum of the IP packet with this head anew, whose addresses a NAT has changed (RFC 3948 section
/// 3.1.2, 2.). Only where something else shows that the packet is as it was sent.
pub fn renew_checksum(head: &ip::Head, ip_packet: &mut [u8]) {
    if let Some((_, length)) = checksummed(head, ip_packet) {
        fill_checksum(head, ip_packet, length);
    }
}

/// Where in the upper layer the checksum of a whole TCP segment or UDP datagram stands, and how many octets it is over;
/// `None` where there is none.
fn checksummed(head: &ip::Head, ip_packet: &[u8]) -> Option<(usize, usize)> {
    let payload = head.payload(ip_packet);
    match head.protocol {
        _ if head.is_fragment() => None,
        protocol::TCP if payload.len() >= tcp::HEADER_LENGTH => Some((16, payload.len())),
        protocol::UDP if payload.len() >= udp::HEADER_LENGTH && be16(payload, 6) != 0 => {
            let length = usize::from(be16(payload, 4));
            (udp::HEADER_LENGTH..=payload.len()).contains(&length).then_some((6, length))
        }
        _ => None,
    }
}

fn fill_checksum(head: &ip::Head, ip_packet: &mut [u8], length: usize) {
    let payload = &mut head.payload_mut(ip_packet)[..length];
    match head.protocol {
        protocol::TCP => tcp::fill_checksum(payload, head.source, head.destination),
        _ => udp::fill_checksum(payload, head.source, head.destination),
    }
}

/// Is the IP packet with this head a TCP SYN, with or without ACK?
#[inline]
pub fn is_syn(head: &ip::Head, ip_packet: &[u8]) -> bool {
    head.protocol == protocol::TCP
        && !head.is_fragment()
        && tcp::Packet::new_checked(head.payload(ip_packet)).is_ok_and(|tcp| tcp.flags() & tcp::SYN != 0)
}

/// Lowers the maximum segment size in the IP packet with this head if it is a TCP SYN, checksum included; `true` if it did.
pub fn clamp_mss(head: &ip::Head, ip_packet: &mut [u8], limit: u16) -> bool {
    if !is_syn(head, ip_packet) {
        return false;
    }
    let payload = head.payload_mut(ip_packet);
    let Ok(segment) = tcp::Packet::new_checked(&*payload) else { return false };
    let Some(at) = segment.mss_position() else { return false };
    let old = be16(payload, at);
    if old <= limit {
        return false;
    }
    // A value at an odd place lies across two words; sums of swapped octets are the swapped sums (RFC 1071
    // section 2, B).
    let (from, to) = if at % 2 == 0 { (old, limit) } else { (old.swap_bytes(), limit.swap_bytes()) };
    let updated = checksum::update(be16(payload, 16), from, to);
    put16(payload, at, limit);
    put16(payload, 16, updated);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ipv4, ipv6};
    use proptest::prelude::*;
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    const A: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 1));
    const B: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 2, 0, 2));
    const A6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1));
    const B6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 2));

    fn ends(six: bool) -> (IpAddr, IpAddr) {
        if six { (A6, B6) } else { (A, B) }
    }

    /// Over IPv6 behind a destination options header.
    fn packet(six: bool, protocol: u8, transport: &[u8]) -> Vec<u8> {
        let mut octets = match ends(six) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let repr = ipv4::Repr {
                    traffic_class: 0,
                    identification: 7,
                    dont_fragment: true,
                    more_fragments: false,
                    fragment_offset: 0,
                    ttl: 64,
                    protocol,
                    source,
                    destination,
                    payload_length: transport.len() as u16,
                };
                let mut octets = vec![0; ipv4::HEADER_LENGTH];
                repr.emit(&mut octets);
                octets
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let repr = ipv6::Repr {
                    traffic_class: 0,
                    flow_label: 0,
                    next_header: protocol::DESTINATION_OPTIONS,
                    hop_limit: 64,
                    source,
                    destination,
                    payload_length: 8 + transport.len() as u16,
                };
                let mut octets = vec![0; ipv6::HEADER_LENGTH];
                repr.emit(&mut octets);
                octets.extend([protocol, 0, 1, 4, 0, 0, 0, 0]);
                octets
            }
            _ => unreachable!("one version"),
        };
        octets.extend(transport);
        octets
    }

    fn head(octets: &[u8]) -> ip::Head {
        ip::Head::parse(octets).unwrap()
    }

    fn complete(octets: &mut [u8]) -> bool {
        complete_checksum(&head(octets), octets)
    }

    fn datagram(payload: &[u8]) -> Vec<u8> {
        let mut octets = vec![0; 8];
        octets.extend(payload);
        udp::Repr { source_port: 1, destination_port: 2, payload_length: payload.len() as u16 }
            .emit(&mut octets);
        octets
    }

    fn segment(options: &[u8], flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut octets = vec![0; 20];
        let repr = tcp::Repr {
            source_port: 80,
            destination_port: 4000,
            sequence: 1,
            acknowledgement: 2,
            flags,
            window: 512,
            mss: None,
        };
        repr.emit(&mut octets);
        octets[12] = ((20 + options.len()) as u8 / 4) << 4;
        octets.extend(options);
        octets.extend(payload);
        octets
    }

    fn partial(six: bool, transport: &mut [u8], protocol: u8, at: usize) {
        let (source, destination) = ends(six);
        let pseudo = checksum::pseudo_header(source, destination, protocol, transport.len() as u16);
        put16(transport, at, checksum::fold(pseudo));
    }

    proptest! {
        #[test]
        fn a_partial_checksum_becomes_a_right_one(
            six: bool, data in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let (source, destination) = ends(six);
            let mut udp = datagram(&data);
            partial(six, &mut udp, protocol::UDP, 6);
            let mut whole = packet(six, protocol::UDP, &udp);
            prop_assert!(complete(&mut whole));
            let completed = head(&whole).payload(&whole);
            prop_assert!(udp::Packet::new_checked(completed).unwrap().verify_checksum(source, destination));
            let mut tcp = segment(&[], 0x10, &data);
            partial(six, &mut tcp, protocol::TCP, 16);
            let mut whole = packet(six, protocol::TCP, &tcp);
            whole.extend([0; 6]); // Ethernet padding
            prop_assert!(complete(&mut whole));
            let completed = head(&whole).payload(&whole);
            prop_assert!(tcp::Packet::new_checked(completed).unwrap().verify_checksum(source, destination));
        }

        #[test]
        fn what_is_not_partial_is_left_alone(
            six: bool, data in proptest::collection::vec(any::<u8>(), 0..300), wrong: u16,
        ) {
            let (source, destination) = ends(six);
            let mut tcp = segment(&[], 0x10, &data);
            tcp::fill_checksum(&mut tcp, source, destination);
            let right = be16(&tcp, 16);
            let pseudo =
                checksum::fold(checksum::pseudo_header(source, destination, protocol::TCP, tcp.len() as u16));
            for field in [right, wrong] {
                prop_assume!(field != pseudo);
                put16(&mut tcp, 16, field);
                let mut whole = packet(six, protocol::TCP, &tcp);
                let before = whole.clone();
                prop_assert!(!complete(&mut whole));
                prop_assert_eq!(whole, before);
            }
        }

        #[test]
        fn a_syn_is_clamped_and_stays_right(six: bool, mss: u16, limit in 536u16..1500, odd: bool, syn: bool) {
            let (source, destination) = ends(six);
            let [high, low] = mss.to_be_bytes();
            let options = if odd { [1, 2, 4, high, low, 1, 1, 0] } else { [1, 1, 2, 4, high, low, 1, 1] };
            let mut tcp = segment(&options, if syn { 0x12 } else { 0x10 }, b"x");
            tcp::fill_checksum(&mut tcp, source, destination);
            let mut whole = packet(six, protocol::TCP, &tcp);
            let before = head(&whole);
            prop_assert_eq!(clamp_mss(&before, &mut whole, limit), syn && mss > limit);
            let after = tcp::Packet::new_checked(before.payload(&whole)).unwrap();
            prop_assert_eq!(after.mss().unwrap(), if syn { mss.min(limit) } else { mss });
            prop_assert!(after.verify_checksum(source, destination));
        }

        #[test]
        fn mutated_packets_never_panic(six: bool, at in 0usize..90, to: u8, cut in 0usize..100, tcp: bool) {
            let transport = if tcp { segment(&[2, 4, 5, 180], 2, b"payload") } else { datagram(b"payload") };
            let mut whole = packet(six, if tcp { 6 } else { 17 }, &transport);
            if let Some(octet) = whole.get_mut(at) {
                *octet = to;
            }
            whole.truncate(cut);
            if let Ok(head) = ip::Head::parse(&whole) {
                complete_checksum(&head, &mut whole);
                clamp_mss(&head, &mut whole, 1000);
            }
        }
    }

    #[test]
    fn fragments_and_udp_without_checksum_are_left_alone() {
        let mut udp = datagram(b"none");
        for six in [false, true] {
            assert!(!complete(&mut packet(six, protocol::UDP, &udp)));
        }
        partial(false, &mut udp, protocol::UDP, 6);
        let mut whole = packet(false, protocol::UDP, &udp);
        ipv4::Packet::new_checked(&mut whole[..]).unwrap().set_fragment(false, true, 0);
        assert!(!complete(&mut whole));
    }
}
