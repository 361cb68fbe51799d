//! ESP's clear header (RFC 4303 section 2) and its encapsulation in UDP (RFC 3948).

use crate::{Malformed, be32, put32};

/// Octets of SPI and sequence number.
pub const HEADER_LENGTH: usize = 8;
/// The UDP port of IKE and ESP behind NATs (RFC 3948 section 2.1).
pub const UDP_PORT: u16 = 4500;

/// An ESP packet's octets, from the SPI on.
#[derive(Clone, Copy, Debug)]
pub struct Packet<T>(T);

impl<T: AsRef<[u8]>> Packet<T> {
    /// At least SPI and sequence number?
    #[inline]
    pub fn new_checked(octets: T) -> Result<Packet<T>, Malformed> {
        if octets.as_ref().len() < HEADER_LENGTH { Err(Malformed::Truncated) } else { Ok(Packet(octets)) }
    }

    /// The Security Parameters Index; 0 to 255 are reserved.
    #[inline]
    pub fn spi(&self) -> u32 {
        be32(self.0.as_ref(), 0)
    }

    /// The sequence number's low 32 bits.
    #[inline]
    pub fn sequence(&self) -> u32 {
        be32(self.0.as_ref(), 4)
    }

    /// IV, ciphertext and ICV.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        &self.0.as_ref()[HEADER_LENGTH..]
    }
}

/// SPI and sequence number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Repr {
    /// The Security Parameters Index.
    pub spi: u32,
    /// The sequence number's low 32 bits.
    pub sequence: u32,
}

impl Repr {
    /// What the header says.
    pub fn parse<T: AsRef<[u8]>>(packet: &Packet<T>) -> Repr {
        Repr { spi: packet.spi(), sequence: packet.sequence() }
    }

    /// Octets that [`Repr::emit`] writes.
    pub const fn buffer_length(&self) -> usize {
        HEADER_LENGTH
    }

    /// Writes the header to the front.
    #[inline]
    pub fn emit(&self, octets: &mut [u8]) {
        put32(octets, 0, self.spi);
        put32(octets, 4, self.sequence);
    }
}

/// What the payload of a datagram on port 4500 is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InUdp {
    /// ESP (RFC 3948 section 2.1): the SPI is not zero.
    Esp,
    /// IKE behind the Non-ESP Marker (section 2.2).
    Ike,
    /// A NAT keepalive: one octet 0xFF (section 2.3).
    NatKeepalive,
    /// None of these.
    Other,
}

impl InUdp {
    /// Looks at a datagram's payload.
    #[inline]
    pub fn of(payload: &[u8]) -> InUdp {
        match payload {
            [0xff] => InUdp::NatKeepalive,
            [0, 0, 0, 0, ..] => InUdp::Ike,
            _ if payload.len() >= HEADER_LENGTH => InUdp::Esp,
            _ => InUdp::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 3948 section 2.
    #[test]
    fn port_4500_tells_esp_from_ike_from_keepalives() {
        assert_eq!(InUdp::of(&[0xff]), InUdp::NatKeepalive);
        assert_eq!(InUdp::of(&[0, 0, 0, 0]), InUdp::Ike);
        assert_eq!(InUdp::of(&[0, 0, 0, 0, 9, 9, 9, 9, 9]), InUdp::Ike);
        assert_eq!(InUdp::of(&[0, 0, 1, 0, 0, 0, 0, 1]), InUdp::Esp);
        for other in [&[][..], &[0xfe], &[0xff, 0xff], &[1, 2, 3, 4, 5, 6, 7]] {
            assert_eq!(InUdp::of(other), InUdp::Other);
        }
    }

    proptest! {
        #[test]
        fn a_header_comes_back_as_it_was(spi: u32, sequence: u32) {
            let repr = Repr { spi, sequence };
            let mut octets = [0; HEADER_LENGTH];
            repr.emit(&mut octets);
            prop_assert_eq!(Repr::parse(&Packet::new_checked(octets).unwrap()), repr);
        }

        #[test]
        fn any_octets_parse_or_are_refused(octets in proptest::collection::vec(any::<u8>(), 0..40)) {
            if InUdp::of(&octets) == InUdp::Esp {
                prop_assert!(Packet::new_checked(&octets).unwrap().spi() != 0);
            }
        }
    }
}
