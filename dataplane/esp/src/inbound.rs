//! An inbound SA: replay window and decapsulation.

use crate::{ICV_LENGTH, IV_LENGTH, ReplayWindow, Unusable, nonce, split_keymat};
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
    /// What the payload is: 4 for IPv4, 59 for dummies.
    pub next_header: u8,
    /// Its sequence number.
    pub sequence: u32,
}

/// An inbound SA's hot state: one cache line beside the window's blocks.
#[derive(Debug)]
#[repr(align(64))]
pub struct InboundSa {
    key: Key,
    window: ReplayWindow,
    spi: Spi,
    salt: [u8; 4],
}

const _: () = assert!(size_of::<InboundSa>() == 64);

impl InboundSa {
    /// The SA before its first packet.
    pub fn new(sa: &SaParameters, replay_window: u32, provider: Provider) -> Result<InboundSa, Unusable> {
        let (key, salt) = split_keymat(sa, provider)?;
        let window = ReplayWindow::new(replay_window).ok_or(Unusable::ReplayWindow)?;
        Ok(InboundSa { key, window, spi: sa.spi, salt })
    }

    /// Its SPI.
    pub fn spi(&self) -> Spi {
        self.spi
    }

    /// The highest sequence number that was authenticated.
    pub fn sequence(&self) -> u32 {
        self.window.top()
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
        let end = octets.len() - ICV_LENGTH;
        let (head, icv) = octets.split_at_mut(end);
        let (front, cipher) = head.split_at_mut(FRONT);
        let sequence = u32::from_be_bytes([front[4], front[5], front[6], front[7]]);
        if !self.window.check(sequence) {
            return Err(OpenFault::Replayed);
        }
        let (mut iv, mut tag) = ([0; IV_LENGTH], [0; ICV_LENGTH]);
        iv.copy_from_slice(&front[esp::HEADER_LENGTH..]);
        tag.copy_from_slice(icv);
        let opened = self.key.open(&nonce(self.salt, iv), &front[..esp::HEADER_LENGTH], cipher, &tag);
        opened.map_err(|_| OpenFault::NotAuthentic)?;
        self.window.update(sequence);
        let next_header = cipher[cipher.len() - 1];
        let padding = usize::from(cipher[cipher.len() - 2]);
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
    use crate::{Exhausted, OutboundSa, back_length, front_length, inner_limit};
    use proptest::prelude::*;
    use spindle_abi::{KeyMaterial, Mode, SelectorSet, Suite};
    use spindle_wire::{ipv4, protocol, udp};

    fn parameters(suite: Suite, encapsulated: bool) -> SaParameters {
        let port = if encapsulated { 4500 } else { 0 };
        SaParameters {
            spi: Spi(0xc0ff_ee01),
            index: 1,
            policy: 1,
            mode: Mode::Tunnel,
            suite,
            keymat: KeyMaterial::new(&[0x42; 36][..suite.keymat_length()]).unwrap(),
            local: ([192, 0, 2, 1], port).into(),
            remote: ([192, 0, 2, 2], port).into(),
            encapsulated,
            selectors: SelectorSet::default(),
            soft_packets: 0,
            hard_packets: 0,
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
        let mut octets = vec![0xee; front_length(sa.is_encapsulated())];
        octets.extend(inner);
        octets.resize(octets.len() + back_length(inner.len()), 0xee);
        sa.encapsulate(&mut octets, inner.len()).unwrap();
        octets
    }

    const SUITES: [Suite; 3] = [Suite::Aes128Gcm, Suite::Aes256Gcm, Suite::ChaCha20Poly1305];
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
        sa.suite = Suite::Aes256Gcm;
        assert_eq!(OutboundSa::new(&sa, PROVIDER).unwrap_err(), Unusable::KeyLength);
        sa.spi = Spi(255);
        assert_eq!(InboundSa::new(&sa, 64, PROVIDER).unwrap_err(), Unusable::ReservedSpi);
        sa.remote = "[2001:db8::1]:0".parse().unwrap();
        assert_eq!(OutboundSa::new(&sa, PROVIDER).unwrap_err(), Unusable::Ipv6);
    }

    proptest! {
        #[test]
        fn packets_come_back_as_they_were(length in 20usize..1500, suite in 0usize..3, udp: bool, class: u8) {
            let sa = parameters(SUITES[suite], udp);
            let mut out = OutboundSa::new(&sa, PROVIDER).unwrap();
            let mut inbound = InboundSa::new(&sa, 64, Provider::Portable).unwrap();
            let inner = inner(length, class, false);
            for expected in 1..4 {
                let mut packet = encapsulated(&mut out, &inner);
                prop_assert!(inner_limit(packet.len(), udp) >= length && inner_limit(packet.len() - 1, udp) < length);
                let esp = &mut packet[front_length(udp) - 16..];
                let mut plain = esp.to_vec();
                let opened = inbound.open(&mut plain).unwrap();
                prop_assert_eq!(&plain[opened.payload], &inner[..]);
                prop_assert_eq!((opened.next_header, opened.sequence), (protocol::IPV4, expected));
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
