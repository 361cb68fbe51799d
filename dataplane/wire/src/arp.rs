//! ARP for IPv4 over Ethernet (RFC 826), parsed only: the kernel speaks it.

use crate::{Malformed, be16};
use std::net::Ipv4Addr;

/// Octets of a packet.
pub const LENGTH: usize = 28;

/// What a packet says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Repr {
    /// 1 is a request, 2 a reply.
    pub operation: u16,
    /// The sender's MAC address.
    pub sender_mac: [u8; 6],
    /// The sender's IPv4 address.
    pub sender: Ipv4Addr,
    /// The target's MAC address; zero in requests.
    pub target_mac: [u8; 6],
    /// The target's IPv4 address.
    pub target: Ipv4Addr,
}

impl Repr {
    /// Reads a packet; octets behind it are padding.
    pub fn parse(octets: &[u8]) -> Result<Repr, Malformed> {
        let o: &[u8; LENGTH] = octets.first_chunk().ok_or(Malformed::Truncated)?;
        if (be16(o, 0), be16(o, 2), o[4], o[5]) != (1, 0x0800, 6, 4) {
            return Err(Malformed::Field("ARP hardware or protocol"));
        }
        let mac = |at: usize| [o[at], o[at + 1], o[at + 2], o[at + 3], o[at + 4], o[at + 5]];
        let address = |at: usize| Ipv4Addr::new(o[at], o[at + 1], o[at + 2], o[at + 3]);
        Ok(Repr {
            operation: be16(o, 6),
            sender_mac: mac(8),
            sender: address(14),
            target_mac: mac(18),
            target: address(24),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_request_is_read() {
        let mut o = vec![0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 7, 10, 0, 0, 1];
        o.extend([0; 6]);
        o.extend([10, 0, 0, 2]);
        let repr = Repr::parse(&o).unwrap();
        assert_eq!((repr.operation, repr.sender_mac), (1, [2, 0, 0, 0, 0, 7]));
        assert_eq!((repr.sender, repr.target), (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)));
        assert_eq!(Repr::parse(&o[..27]), Err(Malformed::Truncated));
        o[0] = 9;
        assert!(Repr::parse(&o).is_err());
    }

    proptest! {
        #[test]
        fn any_octets_parse_or_are_refused(octets in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = Repr::parse(&octets);
        }
    }
}
