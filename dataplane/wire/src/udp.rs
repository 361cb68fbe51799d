//! UDP (RFC 768).

use crate::{Malformed, be16, checksum, protocol, put16};
use std::net::IpAddr;

/// Octets of the header.
pub const HEADER_LENGTH: usize = 8;

/// A datagram's octets.
#[derive(Clone, Copy, Debug)]
pub struct Packet<T>(T);

impl<T: AsRef<[u8]>> Packet<T> {
    /// Is the length at least the header's and within the octets?
    #[inline]
    pub fn new_checked(octets: T) -> Result<Packet<T>, Malformed> {
        let o = octets.as_ref();
        if o.len() < HEADER_LENGTH {
            return Err(Malformed::Truncated);
        }
        match usize::from(be16(o, 4)) {
            length if length < HEADER_LENGTH => Err(Malformed::Field("UDP length")),
            length if length > o.len() => Err(Malformed::Truncated),
            _ => Ok(Packet(octets)),
        }
    }

    /// The sender's port.
    #[inline]
    pub fn source_port(&self) -> u16 {
        be16(self.0.as_ref(), 0)
    }

    /// The receiver's port.
    #[inline]
    pub fn destination_port(&self) -> u16 {
        be16(self.0.as_ref(), 2)
    }

    /// Octets of header and payload.
    #[inline]
    pub fn length(&self) -> u16 {
        be16(self.0.as_ref(), 4)
    }

    /// The checksum; 0 is none.
    #[inline]
    pub fn checksum(&self) -> u16 {
        be16(self.0.as_ref(), 6)
    }

    /// What follows the header, within the length.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        &self.0.as_ref()[HEADER_LENGTH..usize::from(self.length())]
    }

    /// Is the checksum right, or none?
    pub fn verify_checksum(&self, source: impl Into<IpAddr>, destination: impl Into<IpAddr>) -> bool {
        let length = self.length();
        let pseudo = checksum::pseudo_header(source, destination, protocol::UDP, length);
        self.checksum() == 0
            || checksum::fold(pseudo + checksum::sum(&self.0.as_ref()[..usize::from(length)])) == 0xffff
    }
}

/// A UDP header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Repr {
    /// The sender's port.
    pub source_port: u16,
    /// The receiver's port.
    pub destination_port: u16,
    /// Octets behind the header, at most 65,507 over IPv4.
    pub payload_length: u16,
}

impl Repr {
    /// What the header says.
    pub fn parse<T: AsRef<[u8]>>(packet: &Packet<T>) -> Repr {
        Repr {
            source_port: packet.source_port(),
            destination_port: packet.destination_port(),
            payload_length: packet.payload().len() as u16,
        }
    }

    /// Octets that [`Repr::emit`] writes.
    pub const fn buffer_length(&self) -> usize {
        HEADER_LENGTH
    }

    /// Writes the header, without a checksum, to the front.
    #[inline]
    pub fn emit(&self, octets: &mut [u8]) {
        put16(octets, 0, self.source_port);
        put16(octets, 2, self.destination_port);
        put16(octets, 4, self.payload_length.saturating_add(HEADER_LENGTH as u16));
        put16(octets, 6, 0);
    }
}

/// Computes and writes the checksum of this datagram (header and payload).
pub fn fill_checksum(datagram: &mut [u8], source: impl Into<IpAddr>, destination: impl Into<IpAddr>) {
    if datagram.len() < HEADER_LENGTH {
        return;
    }
    put16(datagram, 6, 0);
    let pseudo = checksum::pseudo_header(source, destination, protocol::UDP, datagram.len() as u16);
    let checksum = match !checksum::fold(pseudo + checksum::sum(datagram)) {
        0 => 0xffff, // zero would mean none (RFC 768)
        checksum => checksum,
    };
    put16(datagram, 6, checksum);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    const A: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
    const B: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

    proptest! {
        #[test]
        fn a_datagram_comes_back_as_it_was(source_port: u16, destination_port: u16,
                                           payload in proptest::collection::vec(any::<u8>(), 0..100)) {
            let repr = Repr { source_port, destination_port, payload_length: payload.len() as u16 };
            let mut octets = vec![0; HEADER_LENGTH];
            octets.extend(&payload);
            repr.emit(&mut octets);
            fill_checksum(&mut octets, A, B);
            let packet = Packet::new_checked(&octets).unwrap();
            prop_assert_eq!(Repr::parse(&packet), repr);
            prop_assert_eq!(packet.payload(), &payload[..]);
            prop_assert!(packet.checksum() != 0 && packet.verify_checksum(A, B));
            octets[0] ^= 0x40;
            prop_assert!(!Packet::new_checked(&octets).unwrap().verify_checksum(A, B));
        }

        #[test]
        fn any_octets_parse_or_are_refused(octets in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(packet) = Packet::new_checked(&octets) {
                let _ = packet.verify_checksum(A, B);
                prop_assert!(packet.payload().len() + HEADER_LENGTH <= octets.len());
            }
        }
    }
}
