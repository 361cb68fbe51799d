//! Selectors in the form in which packets are held against them, and what of a packet they look at.

use arrayvec::ArrayVec;
use spindle_abi::{Selector, SelectorSet};
use spindle_wire::{ipv4, protocol};
use std::net::{IpAddr, Ipv4Addr};

/// What selectors see of a packet (RFC 4301 section 4.4.1.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Flow {
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
    pub(crate) protocol: u8,
    /// `None` where the packet shows none: fragments but the first, protocols without ports.
    pub(crate) ports: Option<(u16, u16)>,
}

impl Flow {
    #[inline]
    pub(crate) fn of<T: AsRef<[u8]>>(packet: &ipv4::Packet<T>) -> Flow {
        let payload = packet.payload();
        let word = |at: usize| payload.get(at..at + 2).map(|o| u16::from_be_bytes([o[0], o[1]]));
        let ports = match packet.protocol() {
            _ if packet.fragment_offset() != 0 => None,
            protocol::TCP | protocol::UDP | protocol::SCTP => word(0).zip(word(2)),
            // Type and code stand for the port on either side (RFC 7296 section 3.13.1).
            protocol::ICMP => word(0).map(|type_and_code| (type_and_code, type_and_code)),
            _ => None,
        };
        let (source, destination) = (packet.source(), packet.destination());
        Flow { source, destination, protocol: packet.protocol(), ports }
    }

    /// The same seen from the other end.
    pub(crate) fn reversed(self) -> Flow {
        Flow {
            source: self.destination,
            destination: self.source,
            protocol: self.protocol,
            ports: self.ports.map(|(source, destination)| (destination, source)),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct End {
    start: u32,
    end: u32,
    start_port: u16,
    end_port: u16,
    protocol: u8,
}

impl End {
    /// `None` for IPv6, which no packet here can match.
    fn new(selector: &Selector) -> Option<End> {
        let (IpAddr::V4(start), IpAddr::V4(end)) = (selector.addresses.start, selector.addresses.end) else {
            return None;
        };
        Some(End {
            start: start.to_bits(),
            end: end.to_bits(),
            start_port: selector.start_port,
            end_port: selector.end_port,
            protocol: selector.protocol,
        })
    }

    #[inline]
    fn matches(&self, address: Ipv4Addr, protocol: u8, port: Option<u16>) -> bool {
        let any_port = self.start_port == 0 && self.end_port == 65535;
        let opaque = self.start_port == 65535 && self.end_port == 0;
        (self.start..=self.end).contains(&address.to_bits())
            && (self.protocol == 0 || self.protocol == protocol)
            && (any_port || port.map_or(opaque, |port| (self.start_port..=self.end_port).contains(&port)))
    }
}

/// A [`SelectorSet`] without its indirections.
#[derive(Clone, Debug)]
pub(crate) struct Selectors {
    local: ArrayVec<End, { SelectorSet::MAX }>,
    remote: ArrayVec<End, { SelectorSet::MAX }>,
}

impl Selectors {
    /// `None` if there are more than [`SelectorSet::MAX`] on a side.
    pub(crate) fn new(set: &SelectorSet) -> Option<Selectors> {
        let compile = |side: &[Selector]| {
            (side.len() <= SelectorSet::MAX).then(|| side.iter().filter_map(End::new).collect())
        };
        Some(Selectors { local: compile(&set.local)?, remote: compile(&set.remote)? })
    }

    /// Does a packet that leaves us match? (One that comes is to be [`Flow::reversed`] first.)
    #[inline]
    pub(crate) fn matches(&self, flow: &Flow) -> bool {
        let (source_port, destination_port) = (flow.ports.map(|p| p.0), flow.ports.map(|p| p.1));
        self.local.iter().any(|end| end.matches(flow.source, flow.protocol, source_port))
            && self.remote.iter().any(|end| end.matches(flow.destination, flow.protocol, destination_port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use spindle_abi::AddressRange;

    fn selector() -> impl Strategy<Value = Selector> {
        let ports = prop_oneof![Just((0, 65535)), Just((65535, 0)), (0u16..9, 0u16..9)];
        ((0u8..4, 0u8..4), 0u8..3, ports).prop_map(|((a, b), protocol, (start_port, end_port))| Selector {
            addresses: AddressRange {
                start: IpAddr::from([10, 0, 0, a.min(b)]),
                end: IpAddr::from([10, 0, 0, a.max(b)]),
            },
            protocol,
            start_port,
            end_port,
        })
    }

    proptest! {
        #[test]
        fn the_compiled_form_matches_what_the_contract_s_does(
            local in proptest::collection::vec(selector(), 0..=4),
            remote in proptest::collection::vec(selector(), 0..=4),
            ends in (0u8..4, 0u8..4), protocol in 0u8..3, ports: Option<(u8, u8)>,
        ) {
            let set = SelectorSet { local, remote };
            let ports = ports.map(|(a, b)| (u16::from(a % 9), u16::from(b % 9)));
            let flow = Flow {
                source: [10, 0, 0, ends.0].into(),
                destination: [10, 0, 0, ends.1].into(),
                protocol,
                ports,
            };
            let (a, b) = (IpAddr::V4(flow.source), IpAddr::V4(flow.destination));
            let expected = set.matches((a, ports.map(|p| p.0)), (b, ports.map(|p| p.1)), protocol);
            prop_assert_eq!(Selectors::new(&set).unwrap().matches(&flow), expected);
            prop_assert_eq!(flow.reversed().reversed(), flow);
        }
    }
}
