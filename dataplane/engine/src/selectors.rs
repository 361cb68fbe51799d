//! Selectors in the form in which packets are held against them, and what of a packet they look at.

use crate::DropReason;
use arrayvec::ArrayVec;
use spindle_abi::{Selector, SelectorSet, Trigger};
use spindle_wire::ip::Head;
use spindle_wire::protocol;
use std::net::IpAddr;

/// What selectors see of a packet (RFC 4301 section 4.4.1.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Flow {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: u8,
    /// `None` where the packet shows none: fragments but the first, protocols without ports.
    pub(crate) ports: Option<(u16, u16)>,
    /// Its protocol has ports and they are not shown: a fragment but the first, or a first one that is too short for them.
    pub(crate) hidden: bool,
}

impl Flow {
    /// `packet` is what the head was read from.
    #[inline]
    pub(crate) fn of(head: &Head, packet: &[u8]) -> Flow {
        let payload = head.payload(packet);
        let word = |at: usize| payload.get(at..at + 2).map(|o| u16::from_be_bytes([o[0], o[1]]));
        let first = head.fragment_offset == 0;
        let (ports, hidden) = match head.protocol {
            protocol::TCP | protocol::UDP | protocol::SCTP => {
                let ports = word(0).zip(word(2)).filter(|_| first);
                (ports, ports.is_none())
            }
            // Type and code stand for the port on either side (RFC 7296 section 3.13.1).
            protocol::ICMP | protocol::ICMPV6 => {
                let types = word(0).map(|type_and_code| (type_and_code, type_and_code)).filter(|_| first);
                (types, types.is_none())
            }
            _ => (None, false),
        };
        Flow { source: head.source, destination: head.destination, protocol: head.protocol, ports, hidden }
    }

    /// The same for control.
    pub(crate) fn trigger(&self) -> Trigger {
        let Flow { source, destination, protocol, ports, .. } = *self;
        Trigger { source, destination, protocol, ports }
    }

    /// The same seen from the other end.
    pub(crate) fn reversed(self) -> Flow {
        Flow {
            source: self.destination,
            destination: self.source,
            protocol: self.protocol,
            ports: self.ports.map(|(source, destination)| (destination, source)),
            hidden: self.hidden,
        }
    }

    /// Has it ports that it does not show (RFC 4301 section 7)?
    #[inline]
    pub(crate) fn hides_ports(&self) -> bool {
        self.hidden
    }
}

/// Addresses as numbers.
#[derive(Clone, Copy, Debug)]
enum Range {
    V4(u32, u32),
    V6(u128, u128),
}

impl Range {
    /// `None` if the ends are of two versions, which no packet can match.
    fn new(start: IpAddr, end: IpAddr) -> Option<Range> {
        match (start, end) {
            (IpAddr::V4(start), IpAddr::V4(end)) => Some(Range::V4(start.to_bits(), end.to_bits())),
            (IpAddr::V6(start), IpAddr::V6(end)) => Some(Range::V6(start.to_bits(), end.to_bits())),
            _ => None,
        }
    }

    #[inline]
    fn contains(&self, address: IpAddr) -> bool {
        match (self, address) {
            (Range::V4(start, end), IpAddr::V4(address)) => (start..=end).contains(&&address.to_bits()),
            (Range::V6(start, end), IpAddr::V6(address)) => (start..=end).contains(&&address.to_bits()),
            _ => false,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct End {
    addresses: Range,
    start_port: u16,
    end_port: u16,
    protocol: u8,
}

impl End {
    fn new(selector: &Selector) -> Option<End> {
        Some(End {
            addresses: Range::new(selector.addresses.start, selector.addresses.end)?,
            start_port: selector.start_port,
            end_port: selector.end_port,
            protocol: selector.protocol,
        })
    }

    #[inline]
    fn matches_without_port(&self, address: IpAddr, protocol: u8) -> bool {
        self.addresses.contains(address) && (self.protocol == 0 || self.protocol == protocol)
    }

    #[inline]
    fn matches(&self, address: IpAddr, protocol: u8, port: Option<u16>) -> bool {
        let any_port = self.start_port == 0 && self.end_port == 65535;
        let opaque = self.start_port == 65535 && self.end_port == 0;
        self.matches_without_port(address, protocol)
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

    /// Would it match if its ports were such?
    #[inline]
    pub(crate) fn matches_without_ports(&self, flow: &Flow) -> bool {
        self.local.iter().any(|end| end.matches_without_port(flow.source, flow.protocol))
            && self.remote.iter().any(|end| end.matches_without_port(flow.destination, flow.protocol))
    }

    /// May an SA with these selectors carry a packet that leaves us?
    #[inline]
    pub(crate) fn carry(&self, flow: &Flow) -> Result<(), DropReason> {
        match self.matches(flow) {
            true => Ok(()),
            // RFC 4301 section 7.1: an SA whose ports are specific carries no fragments but first ones.
            false if flow.hides_ports() && self.matches_without_ports(flow) => {
                Err(DropReason::FragmentWithoutPorts)
            }
            false => Err(DropReason::SelectorMismatch),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use spindle_abi::AddressRange;

    /// Both versions with the same last octet, so that one is never taken for the other.
    fn address(six: bool, last: u8) -> IpAddr {
        if six {
            IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(last)])
        } else {
            [10, 0, 0, last].into()
        }
    }

    fn selector() -> impl Strategy<Value = Selector> {
        let ports = prop_oneof![Just((0, 65535)), Just((65535, 0)), (0u16..9, 0u16..9)];
        ((0u8..4, 0u8..4, any::<bool>()), 0u8..3, ports).prop_map(
            |((a, b, six), protocol, (start_port, end_port))| Selector {
                addresses: AddressRange { start: address(six, a.min(b)), end: address(six, a.max(b)) },
                protocol,
                start_port,
                end_port,
            },
        )
    }

    proptest! {
        #[test]
        fn the_compiled_form_matches_what_the_contract_s_does(
            local in proptest::collection::vec(selector(), 0..=4),
            remote in proptest::collection::vec(selector(), 0..=4),
            ends in (0u8..4, 0u8..4), six: bool, protocol in 0u8..3, ports: Option<(u8, u8)>,
        ) {
            let set = SelectorSet { local, remote };
            let ports = ports.map(|(a, b)| (u16::from(a % 9), u16::from(b % 9)));
            let flow = Flow {
                source: address(six, ends.0),
                destination: address(six, ends.1),
                protocol,
                ports,
                hidden: false,
            };
            let (a, b) = (flow.source, flow.destination);
            let expected = set.matches((a, ports.map(|p| p.0)), (b, ports.map(|p| p.1)), protocol);
            prop_assert_eq!(Selectors::new(&set).unwrap().matches(&flow), expected);
            prop_assert_eq!(flow.reversed().reversed(), flow);
        }
    }
}
