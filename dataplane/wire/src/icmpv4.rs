//! ICMP for IPv4 (RFC 792, RFC 1191).

use crate::{Malformed, be16, checksum, put16};

/// Octets of the header.
pub const HEADER_LENGTH: usize = 8;

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
    pub fn verify_checksum(&self) -> bool {
        checksum::internet(self.0.as_ref()) == 0
    }

    /// Is it an error, about which no further error may be sent (RFC 1122 section 3.2.2)?
    pub fn is_error(&self) -> bool {
        matches!(self.message_type(), 3 | 4 | 5 | 11 | 12)
    }
}

/// The messages that the gateway knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Repr {
    /// Type 8.
    EchoRequest {
        /// Whose.
        identifier: u16,
        /// Which.
        sequence: u16,
    },
    /// Type 0.
    EchoReply {
        /// Whose.
        identifier: u16,
        /// Which.
        sequence: u16,
    },
    /// Type 3 code 4, with the next hop's MTU (RFC 1191 section 4).
    FragmentationNeeded {
        /// Octets.
        mtu: u16,
    },
    /// Type 11 code 0.
    TimeExceeded,
}

impl Repr {
    /// What the message is, if the gateway knows it and its checksum is right.
    pub fn parse<T: AsRef<[u8]>>(packet: &Packet<T>) -> Result<Repr, Malformed> {
        if !packet.verify_checksum() {
            return Err(Malformed::Field("ICMP checksum"));
        }
        let o = packet.0.as_ref();
        let (first, second) = (be16(o, 4), be16(o, 6));
        Ok(match (packet.message_type(), packet.code()) {
            (8, 0) => Repr::EchoRequest { identifier: first, sequence: second },
            (0, 0) => Repr::EchoReply { identifier: first, sequence: second },
            (3, 4) => Repr::FragmentationNeeded { mtu: second },
            (11, 0) => Repr::TimeExceeded,
            _ => return Err(Malformed::Field("ICMP type")),
        })
    }

    /// Octets that [`Repr::emit`] writes at least.
    pub const fn buffer_length(&self) -> usize {
        HEADER_LENGTH
    }

    /// Writes the header to the front; the checksum is over all of `octets`, so the payload must be there.
    pub fn emit(&self, octets: &mut [u8]) {
        let (kind, code, first, second) = match *self {
            Repr::EchoRequest { identifier, sequence } => (8, 0, identifier, sequence),
            Repr::EchoReply { identifier, sequence } => (0, 0, identifier, sequence),
            Repr::FragmentationNeeded { mtu } => (3, 4, 0, mtu),
            Repr::TimeExceeded => (11, 0, 0, 0),
        };
        octets[0] = kind;
        octets[1] = code;
        put16(octets, 2, 0);
        put16(octets, 4, first);
        put16(octets, 6, second);
        let checksum = checksum::internet(octets);
        put16(octets, 2, checksum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_message_comes_back_as_it_was(a: u16, b: u16, which in 0..4,
                                          payload in proptest::collection::vec(any::<u8>(), 0..80)) {
            let repr = match which {
                0 => Repr::EchoRequest { identifier: a, sequence: b },
                1 => Repr::EchoReply { identifier: a, sequence: b },
                2 => Repr::FragmentationNeeded { mtu: a },
                _ => Repr::TimeExceeded,
            };
            let mut octets = vec![0; HEADER_LENGTH];
            octets.extend(&payload);
            repr.emit(&mut octets);
            let packet = Packet::new_checked(&octets).unwrap();
            prop_assert_eq!(Repr::parse(&packet).unwrap(), repr);
            prop_assert_eq!(packet.payload(), &payload[..]);
            prop_assert_eq!(packet.is_error(), which >= 2);
        }

        #[test]
        fn any_octets_parse_or_are_refused(octets in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(packet) = Packet::new_checked(&octets) {
                let _ = (Repr::parse(&packet), packet.is_error());
            }
        }
    }
}
