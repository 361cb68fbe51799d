//! TCP (RFC 9293), as far as a gateway looks at it: ports, flags, options.

use crate::{Malformed, be16, be32, checksum, protocol, put16, put32};
use std::net::IpAddr;

/// Octets of a header without options.
pub const HEADER_LENGTH: usize = 20;
/// The SYN flag.
pub const SYN: u8 = 0x02;

const OPTION_END: u8 = 0;
const OPTION_NO_OPERATION: u8 = 1;
const OPTION_MSS: u8 = 2;

/// A segment's octets.
#[derive(Clone, Copy, Debug)]
pub struct Packet<T>(T);

impl<T: AsRef<[u8]>> Packet<T> {
    /// Is the data offset at least the header's and within the octets?
    #[inline]
    pub fn new_checked(octets: T) -> Result<Packet<T>, Malformed> {
        let o = octets.as_ref();
        if o.len() < HEADER_LENGTH {
            return Err(Malformed::Truncated);
        }
        match usize::from(o[12] >> 4) * 4 {
            header if header < HEADER_LENGTH => Err(Malformed::Field("TCP data offset")),
            header if header > o.len() => Err(Malformed::Truncated),
            _ => Ok(Packet(octets)),
        }
    }

    /// Octets of the header, options included.
    #[inline]
    pub fn header_length(&self) -> usize {
        usize::from(self.0.as_ref()[12] >> 4) * 4
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

    /// CWR to FIN.
    #[inline]
    pub fn flags(&self) -> u8 {
        self.0.as_ref()[13]
    }

    /// The checksum.
    pub fn checksum(&self) -> u16 {
        be16(self.0.as_ref(), 16)
    }

    /// What follows the header.
    pub fn payload(&self) -> &[u8] {
        &self.0.as_ref()[self.header_length()..]
    }

    /// Where in the segment the value of the maximum segment size option stands, if there is a whole one.
    pub fn mss_position(&self) -> Option<usize> {
        let o = self.0.as_ref();
        let end = self.header_length();
        let mut at = HEADER_LENGTH;
        while at < end {
            match o[at] {
                OPTION_END => return None,
                OPTION_NO_OPERATION => at += 1,
                kind => {
                    let length = usize::from(*o[..end].get(at + 1)?);
                    if length < 2 || at + length > end {
                        return None;
                    }
                    if kind == OPTION_MSS && length == 4 {
                        return Some(at + 2);
                    }
                    at += length;
                }
            }
        }
        None
    }

    /// The maximum segment size option.
    pub fn mss(&self) -> Option<u16> {
        self.mss_position().map(|at| be16(self.0.as_ref(), at))
    }

    /// Is the checksum right?
    pub fn verify_checksum(&self, source: impl Into<IpAddr>, destination: impl Into<IpAddr>) -> bool {
        let octets = self.0.as_ref();
        let pseudo = checksum::pseudo_header(source, destination, protocol::TCP, octets.len() as u16);
        checksum::fold(pseudo + checksum::sum(octets)) == 0xffff
    }
}

/// A header with at most a maximum segment size option.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Repr {
    /// The sender's port.
    pub source_port: u16,
    /// The receiver's port.
    pub destination_port: u16,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgement: u32,
    /// CWR to FIN.
    pub flags: u8,
    /// Window, unscaled.
    pub window: u16,
    /// Maximum segment size.
    pub mss: Option<u16>,
}

impl Repr {
    /// What the header says; its other options are left out.
    pub fn parse<T: AsRef<[u8]>>(packet: &Packet<T>) -> Repr {
        let o = packet.0.as_ref();
        Repr {
            source_port: packet.source_port(),
            destination_port: packet.destination_port(),
            sequence: be32(o, 4),
            acknowledgement: be32(o, 8),
            flags: packet.flags(),
            window: be16(o, 14),
            mss: packet.mss(),
        }
    }

    /// Octets that [`Repr::emit`] writes.
    pub const fn buffer_length(&self) -> usize {
        if self.mss.is_some() { HEADER_LENGTH + 4 } else { HEADER_LENGTH }
    }

    /// Writes the header to the front, with a checksum of zero.
    pub fn emit(&self, octets: &mut [u8]) {
        put16(octets, 0, self.source_port);
        put16(octets, 2, self.destination_port);
        put32(octets, 4, self.sequence);
        put32(octets, 8, self.acknowledgement);
        octets[12] = (self.buffer_length() as u8 / 4) << 4;
        octets[13] = self.flags;
        put16(octets, 14, self.window);
        put32(octets, 16, 0);
        if let Some(mss) = self.mss {
            octets[20..22].copy_from_slice(&[OPTION_MSS, 4]);
            put16(octets, 22, mss);
        }
    }
}

/// Computes and writes the checksum of this segment (header and payload).
pub fn fill_checksum(segment: &mut [u8], source: impl Into<IpAddr>, destination: impl Into<IpAddr>) {
    if segment.len() < HEADER_LENGTH {
        return;
    }
    put16(segment, 16, 0);
    let pseudo = checksum::pseudo_header(source, destination, protocol::TCP, segment.len() as u16);
    let checksum = !checksum::fold(pseudo + checksum::sum(segment));
    put16(segment, 16, checksum);
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
        fn a_segment_comes_back_as_it_was(ports: (u16, u16), numbers: (u32, u32), flags: u8, window: u16,
                                          mss: Option<u16>,
                                          payload in proptest::collection::vec(any::<u8>(), 0..80)) {
            let repr = Repr {
                source_port: ports.0, destination_port: ports.1,
                sequence: numbers.0, acknowledgement: numbers.1, flags, window, mss,
            };
            let mut octets = vec![0; repr.buffer_length()];
            repr.emit(&mut octets);
            octets.extend(&payload);
            fill_checksum(&mut octets, A, B);
            let packet = Packet::new_checked(&octets).unwrap();
            prop_assert_eq!(Repr::parse(&packet), repr);
            prop_assert_eq!(packet.payload(), &payload[..]);
            prop_assert!(packet.verify_checksum(A, B));
        }

        #[test]
        fn any_octets_parse_or_are_refused(mut octets in proptest::collection::vec(any::<u8>(), 0..80),
                                           offset in 5u8..16) {
            if let Some(o) = octets.get_mut(12) {
                *o = offset << 4;
            }
            if let Ok(packet) = Packet::new_checked(&octets) {
                let _ = Repr::parse(&packet);
                prop_assert!(packet.mss_position().is_none_or(|at| at + 2 <= packet.header_length()));
            }
        }
    }
}
