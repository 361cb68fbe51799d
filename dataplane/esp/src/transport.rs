//! Transport mode: the packet that came around ESP is made again (RFC 4303 section 3.4, RFC 3948 section 3.3).

use spindle_wire::{Malformed, ip};
use std::ops::Range;

/// Puts the headers of the outer packet, which is at the front, before the payload that was opened in it, and makes them
/// lead to that. Where the packet lies now: nothing of UDP header, ESP and trailer is left in it. `payload` is not before
/// the end of the headers.
#[inline]
pub fn rebuild(octets: &mut [u8], payload: Range<usize>, next_header: u8) -> Result<Range<usize>, Malformed> {
    let head = ip::Head::parse(octets)?;
    let start = payload.start.checked_sub(head.upper).ok_or(Malformed::Truncated)?;
    let packet = start..payload.end;
    octets.copy_within(..head.upper, start);
    let octets = octets.get_mut(packet.clone()).ok_or(Malformed::Truncated)?;
    ip::set_upper(octets, head.upper, head.named, next_header, payload.len() + head.upper);
    Ok(packet)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{InboundSa, OutboundSa, back_length, front_length, inner_limit};
    use proptest::prelude::*;
    use spindle_abi::{KeyMaterial, Limits, Mode, SaParameters, SelectorSet, Spi, Suite};
    use spindle_aead::Provider;
    use spindle_wire::{checksum, ipv4, ipv6, protocol, udp};
    use std::net::SocketAddr;

    const PROVIDER: Provider = Provider::AwsLc;

    fn parameters(suite: Suite, in_udp: bool, six: bool) -> SaParameters {
        let port = if in_udp { 4500 } else { 0 };
        let [local, remote] = match six {
            false => ["192.0.2.1", "192.0.2.2"],
            true => ["2001:db8::1", "2001:db8::2"],
        };
        SaParameters {
            spi: Spi(0xc0ff_ee01),
            index: 1,
            policy: 1,
            resource: Default::default(),
            mode: Mode::Transport,
            suite,
            keymat: KeyMaterial::new(&[0x42; 36][..suite.keymat_length()]).unwrap(),
            local: SocketAddr::new(local.parse().unwrap(), port),
            remote: SocketAddr::new(remote.parse().unwrap(), port),
            encapsulated: in_udp,
            selectors: SelectorSet::default(),
            esn: false,
            soft: Limits::default(),
            hard: Limits::default(),
        }
    }

    /// IPv4 with so many words of options.
    fn four(words: usize, next: u8, payload: &[u8]) -> Vec<u8> {
        let repr = ipv4::Repr {
            traffic_class: 0xb9,
            identification: 7,
            dont_fragment: true,
            more_fragments: false,
            fragment_offset: 0,
            ttl: 9,
            protocol: next,
            source: [192, 0, 2, 1].into(),
            destination: [192, 0, 2, 2].into(),
            payload_length: (4 * words + payload.len()) as u16,
        };
        let mut octets = vec![0; ipv4::HEADER_LENGTH];
        repr.emit(&mut octets);
        octets[0] += words as u8;
        octets.resize(20 + 4 * words, 1);
        octets[10..12].fill(0);
        let sum = checksum::internet(&octets);
        octets[10..12].copy_from_slice(&sum.to_be_bytes());
        octets.extend(payload);
        octets
    }

    /// IPv6 with extension headers of these types, of eight octets each.
    fn six(extensions: &[u8], next: u8, payload: &[u8]) -> Vec<u8> {
        let order: Vec<u8> = extensions.iter().copied().chain([next]).collect();
        let repr = ipv6::Repr {
            traffic_class: 0xb9,
            flow_label: 0xabcde,
            next_header: order[0],
            hop_limit: 9,
            source: "2001:db8::1".parse().unwrap(),
            destination: "2001:db8::2".parse().unwrap(),
            payload_length: (8 * extensions.len() + payload.len()) as u16,
        };
        let mut octets = vec![0; ipv6::HEADER_LENGTH];
        repr.emit(&mut octets);
        for (kind, next) in extensions.iter().zip(&order[1..]) {
            // PadN, or no segments left.
            let rest = if *kind == protocol::ROUTING { [0; 6] } else { [1, 4, 0, 0, 0, 0] };
            octets.extend([*next, 0]);
            octets.extend(rest);
        }
        octets.extend(payload);
        octets
    }

    fn encapsulated(sa: &mut OutboundSa, packet: &[u8]) -> Vec<u8> {
        let mut octets = vec![0xee; front_length(sa.encapsulation())];
        octets.extend(packet);
        octets.resize(octets.len() + back_length(packet.len()), 0xee);
        sa.encapsulate(&mut octets, packet.len()).unwrap();
        octets
    }

    /// What the peer makes of a packet, and what its trailer named.
    fn opened(sa: &mut InboundSa, mut octets: Vec<u8>, in_udp: bool) -> (Vec<u8>, u8) {
        let head = ip::Head::parse(&octets).unwrap();
        assert_eq!((head.length, head.protocol), (octets.len(), if in_udp { 17 } else { 50 }));
        let start = head.upper + if in_udp { 8 } else { 0 };
        let opened = sa.open(&mut octets[start..]).unwrap();
        let payload = start + opened.payload.start..start + opened.payload.end;
        let packet = rebuild(&mut octets, payload, opened.next_header).unwrap();
        (octets[packet].to_vec(), opened.next_header)
    }

    /// RFC 4303 section 3.1.1: behind an IPv4 header with its options; behind those headers of IPv6 that others than the
    /// destination read, and before its destination options.
    #[test]
    fn esp_stands_where_the_rfc_puts_it() {
        use protocol::{DESTINATION_OPTIONS as DEST, FRAGMENT, HOP_BY_HOP as HBH, ROUTING as ROUTE, TCP};
        let data = [7; 24];
        let cases = [
            (four(0, TCP, &data), 20, 9, TCP),
            (four(3, TCP, &data), 32, 9, TCP),
            (four(0, protocol::IPV4, &data), 20, 9, protocol::IPV4),
            (six(&[], TCP, &data), 40, 6, TCP),
            (six(&[HBH], TCP, &data), 48, 40, TCP),
            (six(&[DEST], TCP, &data), 40, 6, DEST),
            (six(&[HBH, DEST], TCP, &data), 48, 40, DEST),
            (six(&[HBH, DEST, ROUTE, DEST], TCP, &data), 64, 56, DEST),
            (six(&[ROUTE], 47, &data), 48, 40, 47),
            // An atomic fragment (RFC 6946) is a whole packet.
            (six(&[FRAGMENT], TCP, &data), 48, 40, TCP),
        ];
        for (mut packet, upper, named, next) in cases {
            if packet[6] == FRAGMENT && packet[0] >> 4 == 6 {
                packet[41..48].fill(0);
            }
            for in_udp in [false, true] {
                let is_ipv6 = packet[0] >> 4 == 6;
                let sa = parameters(Suite::Aes128Gcm, in_udp, is_ipv6);
                let mut out = OutboundSa::new(&sa, PROVIDER).unwrap();
                let sent = encapsulated(&mut out, &packet);
                assert_eq!(sent[named], if in_udp { protocol::UDP } else { protocol::ESP });
                if in_udp {
                    let datagram = udp::Packet::new_checked(&sent[upper..]).unwrap();
                    assert_eq!((datagram.source_port(), datagram.destination_port()), (4500, 4500));
                    // RFC 3948 section 2.1, RFC 8200 section 8.1.
                    assert_eq!(datagram.checksum() != 0, is_ipv6);
                    assert!(!is_ipv6 || datagram.verify_checksum(sa.local.ip(), sa.remote.ip()));
                }
                let esp = upper + if in_udp { 8 } else { 0 };
                assert_eq!(sent[esp..esp + 8], [0xc0, 0xff, 0xee, 1, 0, 0, 0, 1]);
                // All but lengths, what is named and the checksum is the packet's own.
                let (mut before, mut after) = (packet[..upper].to_vec(), sent[..upper].to_vec());
                let changed = if is_ipv6 { vec![4, 5, named] } else { vec![2, 3, 9, 10, 11] };
                changed.into_iter().for_each(|at| (before[at], after[at]) = (0, 0));
                assert_eq!(before, after);
                let mut inbound = InboundSa::new(&sa, 64, PROVIDER).unwrap();
                assert_eq!(opened(&mut inbound, sent, in_udp), (packet.clone(), next));
            }
        }
    }

    /// Nothing is left between the headers and the payload, nor is anything before the headers taken for them.
    #[test]
    fn a_payload_before_the_end_of_the_headers_makes_no_packet() {
        let packet = four(0, protocol::ESP, &[0; 40]);
        for (range, made) in [(20..60, Ok(0..60)), (36..40, Ok(16..40)), (19..60, Err(Malformed::Truncated))]
        {
            assert_eq!(rebuild(&mut packet.clone(), range, 6), made);
        }
        assert!(rebuild(&mut [0; 20], 16..18, 6).is_err());
        assert_eq!(rebuild(&mut packet.clone(), 40..61, 6), Err(Malformed::Truncated));
    }

    proptest! {
        /// Every suite, in UDP and not, both versions; and the longest packet that fits a path does, no longer one.
        #[test]
        fn packets_come_back_as_they_were(
            length in 0usize..1400, suite in 0usize..4, in_udp: bool, is_ipv6: bool, esn: bool, more in 0usize..4, next: u8,
        ) {
            let suite = Suite::ALL[suite];
            let sa = SaParameters { esn, ..parameters(suite, in_udp, is_ipv6) };
            let payload: Vec<u8> = (0..length).map(|i| i as u8).collect();
            let packet = match is_ipv6 {
                true => six(&[protocol::HOP_BY_HOP, protocol::ROUTING, protocol::ROUTING][..more.min(3)], next, &payload),
                false => four(more, next, &payload),
            };
            // What is behind an IPv6 header that is followed by this would be read as one more.
            prop_assume!(!is_ipv6 || !matches!(next, 0 | 43 | 44 | 60));
            let mut out = OutboundSa::new(&sa, PROVIDER).unwrap();
            let mut inbound = InboundSa::new(&sa, 64, Provider::Portable).unwrap();
            let sent = encapsulated(&mut out, &packet);
            prop_assert!(inner_limit(sent.len(), out.encapsulation()) >= packet.len());
            prop_assert!(inner_limit(sent.len() - 1, out.encapsulation()) < packet.len());
            prop_assert_eq!(opened(&mut inbound, sent, in_udp), (packet, next));
        }
    }
}
