//! An inbound SA: replay window and decapsulation.

use crate::{AdditionalData, ICV_LENGTH, IV_LENGTH, ReplayWindow, Unusable, nonce, split_keymat};
use spindle_abi::{SaParameters, Spi};
use spindle_aead::{Key, Provider};
use spindle_wire::esp;
use std::ops::Range;

/// Why a packet on an inbound SA is not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenFault {
    /// Too short for IV, trailer and ICV.
    Truncated,
    /// Seen already, or left of the window.
    Replayed,
    /// The ICV is wrong. Nothing of the plaintext is left.
    NotAuthentic,
    /// Authentic, but the padding is not 1, 2, 3 ... or longer than the packet: the peer's misbehaviour.
    Padding,
}

/// An authentic packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Opened {
    /// Where its payload lies in the octets, TFC padding included (RFC 4303 section 2.7).
    pub payload: Range<usize>,
    /// What the payload is: in tunnel mode 4 for IPv4, 41 for IPv6; 59 for dummies.
    pub next_header: u8,
    /// Its sequence number, all 64 bits of it where the SA has extended ones.
    pub sequence: u64,
}

/// An inbound SA's hot state, beside its key and the window's blocks.
#[derive(Debug)]
pub struct InboundSa {
    key: Key,
    window: ReplayWindow,
    spi: Spi,
    salt: [u8; 4],
}

const _: () = assert!(size_of::<InboundSa>() == 56);

impl InboundSa {
    /// The SA before its first packet.
    pub fn new(sa: &SaParameters, replay_window: u32, provider: Provider) -> Result<InboundSa, Unusable> {
        let (key, salt) = split_keymat(sa, provider)?;
        let window = ReplayWindow::new(replay_window).ok_or(Unusable::ReplayWindow)?;
        // RFC 4303 section 3.3.3: it takes the window to know the high-order bits.
        if sa.esn && replay_window == 0 {
            return Err(Unusable::ReplayWindow);
        }
        Ok(InboundSa { key, window: window.with_extended(sa.esn), spi: sa.spi, salt })
    }

    /// Its SPI.
    pub fn spi(&self) -> Spi {
        self.spi
    }

    /// The highest sequence number that was authenticated.
    pub fn sequence(&self) -> u64 {
        self.window.top()
    }

    /// Its replay window.
    #[inline]
    pub fn window(&self) -> &ReplayWindow {
        &self.window
    }

    /// Its replay window, for one that was known before.
    pub fn window_mut(&mut self) -> &mut ReplayWindow {
        &mut self.window
    }

    /// Asks for the memory that it points to ahead of its use, for a packet with this sequence number.
    #[inline]
    pub fn prefetch(&self, sequence: u32) {
        self.key.prefetch();
        self.window.prefetch(sequence);
    }

    /// Opens a packet in place. `octets` go from the SPI to the end of the ICV.
    ///
    /// "If the received packet falls within the window and is new, or if the packet is to the right of the window,
    /// [...] the receiver proceeds to ICV verification"; and "the receive window is updated only if the ICV
    /// verification succeeds" (RFC 4303 section 3.4.3).
    #[inline]
    pub fn open(&mut self, octets: &mut [u8]) -> Result<Opened, OpenFault> {
        const FRONT: usize = esp::HEADER_LENGTH + IV_LENGTH;
        if octets.len() < FRONT + 2 + ICV_LENGTH {
            return Err(OpenFault::Truncated);
        }
        let Some((head, tag)) = octets.split_last_chunk_mut::<ICV_LENGTH>() else {
            return Err(OpenFault::Truncated);
        };
        let Some((front, cipher)) = head.split_first_chunk_mut::<FRONT>() else {
            return Err(OpenFault::Truncated);
        };
        let [_, _, _, _, a, b, c, d, iv @ ..] = *front;
        let low = u32::from_be_bytes([a, b, c, d]);
        let Some(sequence) = self.window.number(low).filter(|number| self.window.check(*number)) else {
            return Err(OpenFault::Replayed);
        };
        let additional =
            AdditionalData::new(&front[..esp::HEADER_LENGTH], sequence, self.window.is_extended());
        let opened = self.key.open(&nonce(self.salt, iv), additional.octets(), cipher, tag);
        opened.map_err(|_| OpenFault::NotAuthentic)?;
        self.window.update(sequence);
        let Some(&[padding, next_header]) = cipher.last_chunk() else { return Err(OpenFault::Truncated) };
        let padding = usize::from(padding);
        let Some(length) = cipher.len().checked_sub(2 + padding) else { return Err(OpenFault::Padding) };
        // RFC 4303 section 2.4: the receiver should inspect the padding.
        let expected =
            cipher[length..length + padding].iter().zip(1u8..).all(|(octet, value)| *octet == value);
        if !expected {
            return Err(OpenFault::Padding);
        }
        Ok(Opened { payload: FRONT..FRONT + length, next_header, sequence })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Encapsulation, Exhausted, OutboundSa, back_length, front_length, inner_limit};
    use proptest::prelude::*;
    use spindle_abi::{KeyMaterial, Limits, Mode, SelectorSet, Suite};
    use spindle_wire::{ipv4, ipv6, protocol, udp};
    use std::net::{IpAddr, Ipv6Addr, SocketAddr};

    fn parameters(suite: Suite, encapsulated: bool) -> SaParameters {
        let port = if encapsulated { 4500 } else { 0 };
        SaParameters {
            spi: Spi(0xc0ff_ee01),
            index: 1,
            policy: 1,
            resource: Default::default(),
            mode: Mode::Tunnel,
            suite,
            keymat: KeyMaterial::new(&[0x42; 36][..suite.keymat_length()]).unwrap(),
            local: ([192, 0, 2, 1], port).into(),
            remote: ([192, 0, 2, 2], port).into(),
            encapsulated,
            selectors: SelectorSet::default(),
            esn: false,
            soft: Limits::default(),
            hard: Limits::default(),
        }
    }

    fn inner(length: usize, class: u8, dont_fragment: bool) -> Vec<u8> {
        let repr = ipv4::Repr {
            traffic_class: class,
            identification: 1,
            dont_fragment,
            more_fragments: false,
            fragment_offset: 0,
            ttl: 9,
            protocol: 17,
            source: [10, 0, 0, 1].into(),
            destination: [10, 0, 1, 1].into(),
            payload_length: (length - 20) as u16,
        };
        let mut octets: Vec<u8> = (0..length).map(|i| i as u8).collect();
        repr.emit(&mut octets);
        octets
    }

    fn encapsulated(sa: &mut OutboundSa, inner: &[u8]) -> Vec<u8> {
        let mut octets = vec![0xee; front_length(sa.encapsulation())];
        octets.extend(inner);
        octets.resize(octets.len() + back_length(inner.len()), 0xee);
        sa.encapsulate(&mut octets, inner.len()).unwrap();
        octets
    }

    const PROVIDER: Provider = Provider::AwsLc;

    /// The layout written out by hand from RFC 4303 section 2 and RFC 4106, sealed by the other provider.
    #[test]
    fn the_packet_is_as_the_rfcs_draw_it() {
        let sa = parameters(Suite::Aes128Gcm, true);
        let mut out = OutboundSa::new(&sa, PROVIDER).unwrap();
        let inner = inner(41, 0xb8, true);
        encapsulated(&mut out, &inner);
        let packet = encapsulated(&mut out, &inner);
        let outer = ipv4::Packet::new_checked(&packet).unwrap();
        assert!(outer.verify_checksum() && outer.dont_fragment() && outer.total_length() == packet.len());
        assert_eq!((outer.ttl(), outer.traffic_class(), outer.protocol()), (64, 0xb8, protocol::UDP));
        let datagram = udp::Packet::new_checked(outer.payload()).unwrap();
        assert_eq!(
            (datagram.source_port(), datagram.destination_port(), datagram.checksum()),
            (4500, 4500, 0)
        );
        let esp = datagram.payload();
        assert_eq!(&esp[..16], [0xc0, 0xff, 0xee, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 2]);
        let mut expected = inner;
        expected.extend([1, 1, protocol::IPV4]);
        let key = Provider::Portable.key(spindle_aead::Algorithm::Aes128Gcm, &[0x42; 16]).unwrap();
        let mut icv = [0; 16];
        key.seal(&[0x42, 0x42, 0x42, 0x42, 0, 0, 0, 0, 0, 0, 0, 2], &esp[..8], &mut expected, &mut icv);
        assert_eq!((&esp[16..60], &esp[60..]), (&expected[..], &icv[..]));
    }

    fn parameters_over_ipv6(suite: Suite, encapsulated: bool) -> SaParameters {
        let sa = parameters(suite, encapsulated);
        let [local, remote] = [1, 2].map(|n| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n));
        SaParameters {
            local: (local, sa.local.port()).into(),
            remote: (remote, sa.remote.port()).into(),
            ..sa
        }
    }

    fn inner_ipv6(length: usize, traffic_class: u8) -> Vec<u8> {
        let repr = ipv6::Repr {
            traffic_class,
            flow_label: 0xabcde,
            next_header: 17,
            hop_limit: 9,
            source: "2001:db8:1::1".parse().unwrap(),
            destination: "2001:db8:2::1".parse().unwrap(),
            payload_length: (length - 40) as u16,
        };
        let mut octets: Vec<u8> = (0..length).map(|i| i as u8).collect();
        repr.emit(&mut octets);
        octets
    }

    /// RFC 8200 section 8.1 (the UDP checksum is right), RFC 6040 section 4.1 and RFC 4301 section 5.1.2 (what is copied).
    #[test]
    fn outer_ipv6_has_the_inner_class_and_a_right_udp_checksum() {
        for inner in [inner(61, 0xb9, false), inner_ipv6(61, 0xb9)] {
            let sa = parameters_over_ipv6(Suite::Aes128Gcm, true);
            let mut out = OutboundSa::new(&sa, PROVIDER).unwrap();
            let packets = [encapsulated(&mut out, &inner), encapsulated(&mut out, &inner)];
            let labels = packets.each_ref().map(|octets| {
                let outer = ipv6::Packet::new_checked(octets).unwrap();
                assert_eq!((outer.total_length(), outer.next_header()), (octets.len(), protocol::UDP));
                assert_eq!((outer.hop_limit(), outer.traffic_class()), (64, 0xb9));
                assert_eq!((outer.source(), outer.destination()), (sa_ip(sa.local), sa_ip(sa.remote)));
                let datagram = udp::Packet::new_checked(outer.payload()).unwrap();
                assert_eq!((datagram.source_port(), datagram.destination_port()), (4500, 4500));
                assert_eq!(usize::from(datagram.length()), outer.payload().len());
                assert!(datagram.checksum() != 0);
                assert!(datagram.verify_checksum(outer.source(), outer.destination()));
                assert_eq!(datagram.payload()[..4], [0xc0, 0xff, 0xee, 1]);
                outer.flow_label()
            });
            // RFC 6437 section 3: one flow, one label; and it is not zero.
            assert!(labels[0] == labels[1] && labels[0] != 0);
            let plain = parameters_over_ipv6(Suite::Aes128Gcm, false);
            let octets = encapsulated(&mut OutboundSa::new(&plain, PROVIDER).unwrap(), &inner);
            let outer = ipv6::Packet::new_checked(&octets).unwrap();
            assert_eq!(
                (outer.next_header(), &outer.payload()[..4]),
                (protocol::ESP, &[0xc0, 0xff, 0xee, 1][..])
            );
        }
    }

    fn sa_ip(address: SocketAddr) -> Ipv6Addr {
        let IpAddr::V6(address) = address.ip() else { panic!("{address} is not IPv6") };
        address
    }

    /// RFC 4301 section 5.1.2: inner IPv6 may not be fragmented, nor may the outer packet around it.
    #[test]
    fn ipv6_in_ipv4_sets_df() {
        let mut out = OutboundSa::new(&parameters(Suite::Aes128Gcm, false), PROVIDER).unwrap();
        let octets = encapsulated(&mut out, &inner_ipv6(48, 0x2e));
        let outer = ipv4::Packet::new_checked(&octets).unwrap();
        assert!(outer.dont_fragment() && outer.traffic_class() == 0x2e && outer.verify_checksum());
    }

    /// RFC 4303 section 3.3.3.
    #[test]
    fn the_last_sequence_number_is_used_and_then_nothing_is_sent() {
        let sa = parameters(Suite::Aes128Gcm, false);
        let mut out = OutboundSa::new(&sa, PROVIDER).unwrap();
        out.skip_to(u64::from(u32::MAX) - 1);
        let packet = encapsulated(&mut out, &inner(40, 0, false));
        assert_eq!(packet[24..28], [0xff; 4]);
        let mut again = packet.clone();
        assert_eq!(out.encapsulate(&mut again, 40), Err(Exhausted));
        assert_eq!((out.sequence(), again), (u64::from(u32::MAX), packet));
        out.skip_to(5);
        assert_eq!(out.sequence(), u64::from(u32::MAX));
    }

    /// RFC 4303 section 2.2.1: of the 64 bits the low-order ones are transmitted; RFC 4106 section 5, RFC 7634 section 2.1:
    /// all of them are authenticated, between the SPI and the ciphertext.
    #[test]
    fn extended_sequence_numbers_go_on_beyond_32_bits() {
        for suite in Suite::ALL {
            let sa = SaParameters { esn: true, ..parameters(suite, false) };
            let mut out = OutboundSa::new(&sa, PROVIDER).unwrap();
            let mut inbound = InboundSa::new(&sa, 32, PROVIDER).unwrap();
            let inner = inner(40, 0, false);
            // By less than 2^32 at once, which the receiver can follow, to the end of the low-order bits' first run.
            out.skip_to(1 << 31);
            inbound.open(&mut encapsulated(&mut out, &inner)[20..]).unwrap();
            out.skip_to(u64::from(u32::MAX) - 3);
            for expected in (1u64 << 32) - 3..(1 << 32) + 3 {
                let packet = encapsulated(&mut out, &inner);
                assert_eq!(packet[24..28], (expected as u32).to_be_bytes());
                assert_eq!(packet[28..36], expected.to_be_bytes());
                let (mut cipher, icv) = (packet[36..80].to_vec(), packet[80..].try_into().unwrap());
                let algorithm = match suite {
                    Suite::Aes128Gcm => spindle_aead::Algorithm::Aes128Gcm,
                    Suite::Aes192Gcm => spindle_aead::Algorithm::Aes192Gcm,
                    Suite::Aes256Gcm => spindle_aead::Algorithm::Aes256Gcm,
                    Suite::ChaCha20Poly1305 => spindle_aead::Algorithm::ChaCha20Poly1305,
                };
                let key = Provider::Portable.key(algorithm, &[0x42; 32][..suite.key_length()]).unwrap();
                let (mut nonce, mut aad) = ([0x42; 12], [0xc0, 0xff, 0xee, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
                nonce[4..].copy_from_slice(&expected.to_be_bytes());
                aad[4..].copy_from_slice(&expected.to_be_bytes());
                assert_eq!(key.open(&nonce, &aad, &mut cipher, &icv), Ok(()));
                assert_eq!(cipher[..40], inner);
                let opened = inbound.open(&mut packet[20..].to_vec()).unwrap();
                assert_eq!(opened.sequence, expected);
                assert_eq!(inbound.open(&mut packet[20..].to_vec()), Err(OpenFault::Replayed));
            }
            assert_eq!(inbound.sequence(), (1 << 32) + 2);
        }
    }

    /// RFC 4303 section 3.3.3: neither 32 bits nor 64 ever wrap.
    #[test]
    fn extended_sequence_numbers_end_too() {
        let sa = SaParameters { esn: true, ..parameters(Suite::Aes128Gcm, false) };
        let mut out = OutboundSa::new(&sa, PROVIDER).unwrap();
        out.skip_to(u64::MAX - 1);
        encapsulated(&mut out, &inner(40, 0, false));
        let mut octets = vec![0; front_length(out.encapsulation()) + 40 + back_length(40)];
        assert_eq!((out.encapsulate(&mut octets, 40), out.sequence()), (Err(Exhausted), u64::MAX));
    }

    /// RFC 4303 section 2.4 and 3.4.3: sealed by the peer's key, with another padding.
    #[test]
    fn padding_other_than_1_2_3_is_refused_though_authentic() {
        let sa = parameters(Suite::Aes128Gcm, false);
        let key = PROVIDER.key(spindle_aead::Algorithm::Aes128Gcm, &[0x42; 16]).unwrap();
        let mut inbound = InboundSa::new(&sa, 64, PROVIDER).unwrap();
        type Case<'a> = (&'a [u8], Result<Range<usize>, OpenFault>);
        let cases: [Case<'_>; 5] = [
            (&[9, 9, 1, 2, 2, 4], Ok(16..18)),
            (&[9, 9, 9, 9, 0, 59], Ok(16..20)),
            (&[9, 9, 1, 3, 2, 4], Err(OpenFault::Padding)),
            (&[1, 2, 3, 4, 5, 4], Err(OpenFault::Padding)),
            (&[0, 4], Ok(16..16)),
        ];
        for (sequence, (plain, expected)) in (1u8..).zip(cases) {
            let mut octets = vec![0xc0, 0xff, 0xee, 1, 0, 0, 0, sequence, 0, 0, 0, 0, 0, 0, 7, sequence];
            let mut cipher = plain.to_vec();
            let mut icv = [0; 16];
            let nonce = [0x42, 0x42, 0x42, 0x42, 0, 0, 0, 0, 0, 0, 7, sequence];
            key.seal(&nonce, &octets[..8], &mut cipher, &mut icv);
            octets.extend(cipher);
            octets.extend(icv);
            assert_eq!(inbound.open(&mut octets.clone()).map(|o| o.payload), expected);
            assert_eq!(inbound.open(&mut octets), Err(OpenFault::Replayed));
        }
    }

    #[test]
    fn unusable_parameters_are_refused() {
        let mut sa = parameters(Suite::Aes128Gcm, false);
        assert_eq!(InboundSa::new(&sa, 48, PROVIDER).unwrap_err(), Unusable::ReplayWindow);
        sa.esn = true;
        assert_eq!(InboundSa::new(&sa, 0, PROVIDER).unwrap_err(), Unusable::ReplayWindow);
        sa.suite = Suite::Aes256Gcm;
        assert_eq!(OutboundSa::new(&sa, PROVIDER).unwrap_err(), Unusable::KeyLength);
        sa.spi = Spi(255);
        assert_eq!(InboundSa::new(&sa, 64, PROVIDER).unwrap_err(), Unusable::ReservedSpi);
        sa.remote = "[2001:db8::1]:0".parse().unwrap();
        assert_eq!(OutboundSa::new(&sa, PROVIDER).unwrap_err(), Unusable::IpVersions);
    }

    proptest! {
        #[test]
        fn packets_come_back_as_they_were(
            length in 40usize..1500, suite in 0usize..4, udp: bool, class: u8, outer_six: bool, inner_six: bool, esn: bool,
        ) {
            let suite = Suite::ALL[suite];
            let sa = if outer_six { parameters_over_ipv6(suite, udp) } else { parameters(suite, udp) };
            let sa = SaParameters { esn, ..sa };
            let mut out = OutboundSa::new(&sa, PROVIDER).unwrap();
            let around = out.encapsulation();
            prop_assert_eq!(around, Encapsulation { is_ipv6: outer_six, in_udp: udp, in_transport: false });
            let mut inbound = InboundSa::new(&sa, 64, Provider::Portable).unwrap();
            let inner = if inner_six { inner_ipv6(length, class) } else { inner(length, class, false) };
            let next_header = if inner_six { protocol::IPV6 } else { protocol::IPV4 };
            for expected in 1..4 {
                let mut packet = encapsulated(&mut out, &inner);
                prop_assert!(inner_limit(packet.len(), around) >= length);
                prop_assert!(inner_limit(packet.len() - 1, around) < length);
                let esp = &mut packet[front_length(around) - 16..];
                let mut plain = esp.to_vec();
                let opened = inbound.open(&mut plain).unwrap();
                prop_assert_eq!(&plain[opened.payload], &inner[..]);
                prop_assert_eq!((opened.next_header, opened.sequence), (next_header, expected));
                let mut octets = esp.to_vec();
                prop_assert_eq!(inbound.open(&mut octets), Err(OpenFault::Replayed));
            }
        }

        /// RFC 4303 section 3.4.3: a forged packet moves no window.
        #[test]
        fn a_mutated_packet_is_refused_and_the_true_one_still_taken(
            at in any::<prop::sample::Index>(), bit in 0u8..8, cut in 0usize..120,
        ) {
            let sa = parameters(Suite::Aes128Gcm, false);
            let mut out = OutboundSa::new(&sa, PROVIDER).unwrap();
            let mut inbound = InboundSa::new(&sa, 32, PROVIDER).unwrap();
            let packet = encapsulated(&mut out, &inner(60, 0, false));
            let mut forged = packet[20..].to_vec();
            let at = 4 + at.index(forged.len() - 4);
            forged[at] ^= 1 << bit;
            prop_assert!(inbound.open(&mut forged).is_err());
            let mut short = packet[20..].to_vec();
            short.truncate(cut.min(packet.len() - 21));
            prop_assert!(inbound.open(&mut short).is_err());
            prop_assert!(inbound.open(&mut packet[20..].to_vec()).is_ok());
        }
    }
}
