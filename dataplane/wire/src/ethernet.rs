//! Ethernet II.

use crate::{Malformed, be16, put16};

/// Octets of the header.
pub const HEADER_LENGTH: usize = 14;
/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;

/// A frame's octets, without FCS.
#[derive(Clone, Copy, Debug)]
pub struct Frame<T>(T);

impl<T: AsRef<[u8]>> Frame<T> {
    /// At least a header?
    #[inline]
    pub fn new_checked(octets: T) -> Result<Frame<T>, Malformed> {
        if octets.as_ref().len() < HEADER_LENGTH { Err(Malformed::Truncated) } else { Ok(Frame(octets)) }
    }

    /// To which station.
    #[inline]
    pub fn destination(&self) -> [u8; 6] {
        self.0.as_ref()[0..6].try_into().unwrap_or([0; 6])
    }

    /// From which station.
    #[inline]
    pub fn source(&self) -> [u8; 6] {
        self.0.as_ref()[6..12].try_into().unwrap_or([0; 6])
    }

    /// What the payload is.
    #[inline]
    pub fn ethertype(&self) -> u16 {
        be16(self.0.as_ref(), 12)
    }

    /// What follows the header, padding included.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        &self.0.as_ref()[HEADER_LENGTH..]
    }
}

/// An Ethernet header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Repr {
    /// To which station.
    pub destination: [u8; 6],
    /// From which station.
    pub source: [u8; 6],
    /// What the payload is.
    pub ethertype: u16,
}

impl Repr {
    /// What the header says.
    pub fn parse<T: AsRef<[u8]>>(frame: &Frame<T>) -> Repr {
        Repr { destination: frame.destination(), source: frame.source(), ethertype: frame.ethertype() }
    }

    /// Octets that [`Repr::emit`] writes.
    pub const fn buffer_length(&self) -> usize {
        HEADER_LENGTH
    }

    /// Writes the header to the front.
    #[inline]
    pub fn emit(&self, octets: &mut [u8]) {
        let octets = &mut octets[..HEADER_LENGTH];
        octets[0..6].copy_from_slice(&self.destination);
        octets[6..12].copy_from_slice(&self.source);
        put16(octets, 12, self.ethertype);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_header_comes_back_as_it_was(destination: [u8; 6], source: [u8; 6], ethertype: u16) {
            let repr = Repr { destination, source, ethertype };
            let mut octets = [0; HEADER_LENGTH];
            repr.emit(&mut octets);
            prop_assert_eq!(Repr::parse(&Frame::new_checked(octets).unwrap()), repr);
        }

        #[test]
        fn any_octets_parse_or_are_refused(octets in proptest::collection::vec(any::<u8>(), 0..40)) {
            match Frame::new_checked(&octets) {
                Ok(frame) => prop_assert_eq!(frame.payload().len() + HEADER_LENGTH, octets.len()),
                Err(fault) => prop_assert!(octets.len() < HEADER_LENGTH && fault == Malformed::Truncated),
            }
        }
    }
}
