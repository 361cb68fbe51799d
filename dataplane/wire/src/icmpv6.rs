//! ICMP for IPv6 (RFC 4443).

use crate::{Malformed, be16, be32, checksum, protocol, put16, put32};
use std::net::Ipv6Addr;

/// Octets of the header.
pub const HEADER_LENGTH: usize = 8;

/// The redirect message's type (RFC 4861 section 4.5): no error, and yet none is sent about it.
const REDIRECT: u8 = 137;

/// A message's octets.
#[derive(Clone, Copy, Debug)]
pub struct Packet<T>(T);

impl<T: AsRef<[u8]>> Packet<T> {
    /// At least a header?
    #[inline]
    pub fn new_checked(octets: T) -> Result<Packet<T>, Malformed> {
        if octets.as_ref().len() < HEADER_LENGTH { Err(Malformed::Truncated) } else { Ok(Packet(octets)) }
    }

    /// The message's type.
    pub fn message_type(&self) -> u8 {
        self.0.as_ref()[0]
    }

    /// The message's code.
    pub fn code(&self) -> u8 {
        self.0.as_ref()[1]
    }

    /// What follows the header: for errors the head of the packet that caused it.
    pub fn payload(&self) -> &[u8] {
        &self.0.as_ref()[HEADER_LENGTH..]
    }

    /// Is the checksum right?
    pub fn verify_checksum(&self, source: Ipv6Addr, destination: Ipv6Addr) -> bool {
        let octets = self.0.as_ref();
        let pseudo = checksum::pseudo_header(source, destination, protocol::ICMPV6, octets.len() as u16);
        checksum::fold(pseudo + checksum::sum(octets)) == 0xffff
    }

    /// Is it one about which no error may be sent (RFC 4443 section 2.4, e.1 and e.2)?
    pub fn is_error(&self) -> bool {
        self.message_type() < 128 || self.message_type() == REDIRECT
    }
}

/// The messages that the gateway knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Repr {
    /// Type 128.
    EchoRequest {
        /// Whose.
        identifier: u16,
        /// Which.
        sequence: u16,
    },
    /// Type 129.
    EchoReply {
        /// Whose.
        identifier: u16,
        /// Which.
        sequence: u16,
    },
    /// Type 2, with the next hop's MTU (RFC 4443 section 3.2).
    PacketTooBig {
        /// Octets.
        mtu: u32,
    },
    /// Type 3 code 0.
    TimeExceeded,
}

impl Repr {
    /// What the message between these two is, if the gateway knows it and its checksum is right.
    pub fn parse<T: AsRef<[u8]>>(
        packet: &Packet<T>,
        source: Ipv6Addr,
        destination: Ipv6Addr,
    ) -> Result<Repr, Malformed> {
        if !packet.verify_checksum(source, destination) {
            return Err(Malformed::Field("ICMPv6 checksum"));
        }
        let o = packet.0.as_ref();
        let (identifier, sequence) = (be16(o, 4), be16(o, 6));
        Ok(match (packet.message_type(), packet.code()) {
            (128, 0) => Repr::EchoRequest { identifier, sequence },
            (129, 0) => Repr::EchoReply { identifier, sequence },
            // RFC 4443 section 3.2: the code is ignored by the receiver.
            (2, _) => Repr::PacketTooBig { mtu: be32(o, 4) },
            (3, 0) => Repr::TimeExceeded,
            _ => return Err(Malformed::Field("ICMPv6 type")),
        })
    }

    /// Octets that [`Repr::emit`] writes at least.
    pub const fn buffer_length(&self) -> usize {
        HEADER_LENGTH
    }

    /// Writes the header to the front; the checksum is over all of `octets`, so the payload must be there.
    pub fn emit(&self, octets: &mut [u8], source: Ipv6Addr, destination: Ipv6Addr) {
        let both = |first: u16, second: u16| u32::from(first) << 16 | u32::from(second);
        let (kind, word) = match *self {
            Repr::EchoRequest { identifier, sequence } => (128, both(identifier, sequence)),
            Repr::EchoReply { identifier, sequence } => (129, both(identifier, sequence)),
            Repr::PacketTooBig { mtu } => (2, mtu),
            Repr::TimeExceeded => (3, 0),
        };
        (octets[0], octets[1]) = (kind, 0);
        put16(octets, 2, 0);
        put32(octets, 4, word);
        let pseudo = checksum::pseudo_header(source, destination, protocol::ICMPV6, octets.len() as u16);
        let checksum = !checksum::fold(pseudo + checksum::sum(octets));
        put16(octets, 2, checksum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    const B: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);

    proptest! {
        #[test]
        fn a_message_comes_back_as_it_was(a: u16, b: u16, which in 0..4,
                                          payload in proptest::collection::vec(any::<u8>(), 0..80)) {
            let repr = match which {
                0 => Repr::EchoRequest { identifier: a, sequence: b },
                1 => Repr::EchoReply { identifier: a, sequence: b },
                2 => Repr::PacketTooBig { mtu: u32::from(a) << 8 | u32::from(b) },
                _ => Repr::TimeExceeded,
            };
            let mut octets = vec![0; HEADER_LENGTH];
            octets.extend(&payload);
            repr.emit(&mut octets, A, B);
            let packet = Packet::new_checked(&octets).unwrap();
            prop_assert_eq!(Repr::parse(&packet, A, B).unwrap(), repr);
            prop_assert!(Repr::parse(&packet, A, A).is_err(), "the addresses are part of the sum");
            prop_assert_eq!(packet.payload(), &payload[..]);
            prop_assert_eq!(packet.is_error(), which >= 2);
        }

        #[test]
        fn any_octets_parse_or_are_refused(octets in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(packet) = Packet::new_checked(&octets) {
                let _ = (Repr::parse(&packet, A, B), packet.is_error());
            }
        }
    }
}
