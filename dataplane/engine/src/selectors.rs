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

/// One side's selector, its addresses as numbers.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Side<T> {
    first: T,
    last: T,
    start_port: u16,
    end_port: u16,
    protocol: u8,
    /// Does it match what shows no port: is it "any port", or OPAQUE (65535 to 0, which matches nothing else)?
    without_port: bool,
}

impl<T: Copy + PartialOrd> Side<T> {
    fn new(selector: &Selector, first: T, last: T) -> Side<T> {
        let Selector { start_port, end_port, protocol, .. } = *selector;
        let without_port = matches!((start_port, end_port), (0, 65535) | (65535, 0));
        Side { first, last, start_port, end_port, protocol, without_port }
    }

    // Without branches: each comparison is of one instruction or two.
    #[inline]
    fn matches_but_ports(&self, address: T, protocol: u8) -> bool {
        let may = (self.protocol == 0) | (self.protocol == protocol);
        (self.first <= address) & (address <= self.last) & may
    }

    #[inline]
    fn matches_port(&self, port: u16) -> bool {
        (self.start_port <= port) & (port <= self.end_port)
    }
}

/// One of each side.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Pair<T> {
    local: Side<T>,
    remote: Side<T>,
}

impl<T: Copy + PartialOrd> Pair<T> {
    #[inline(always)]
    fn matches(&self, source: T, destination: T, flow: &Flow) -> bool {
        let ports = match flow.ports {
            Some((source, destination)) => {
                self.local.matches_port(source) & self.remote.matches_port(destination)
            }
            None => self.local.without_port & self.remote.without_port,
        };
        ports & self.matches_but_ports(source, destination, flow)
    }

    #[inline(always)]
    fn matches_but_ports(&self, source: T, destination: T, flow: &Flow) -> bool {
        self.local.matches_but_ports(source, flow.protocol)
            & self.remote.matches_but_ports(destination, flow.protocol)
    }
}

/// A side's selector of either version.
#[derive(Clone, Copy, PartialEq, Debug)]
enum End {
    V4(Side<u32>),
    V6(Side<u128>),
}

impl End {
    /// `None` if the addresses are of two versions, which no packet can match.
    fn new(selector: &Selector) -> Option<End> {
        match (selector.addresses.start, selector.addresses.end) {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                Some(End::V4(Side::new(selector, first.to_bits(), last.to_bits())))
            }
            (IpAddr::V6(first), IpAddr::V6(last)) => {
                Some(End::V6(Side::new(selector, first.to_bits(), last.to_bits())))
            }
            _ => None,
        }
    }

    fn matches_but_ports(&self, address: IpAddr, protocol: u8) -> bool {
        match (self, address) {
            (End::V4(side), IpAddr::V4(address)) => side.matches_but_ports(address.to_bits(), protocol),
            (End::V6(side), IpAddr::V6(address)) => side.matches_but_ports(address.to_bits(), protocol),
            _ => false,
        }
    }

    fn matches(&self, address: IpAddr, protocol: u8, port: Option<u16>) -> bool {
        let ports = match self {
            End::V4(side) => port.map_or(side.without_port, |port| side.matches_port(port)),
            End::V6(side) => port.map_or(side.without_port, |port| side.matches_port(port)),
        };
        ports && self.matches_but_ports(address, protocol)
    }
}

/// Several of a side, or of two versions.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Lists {
    local: ArrayVec<End, { SelectorSet::MAX }>,
    remote: ArrayVec<End, { SelectorSet::MAX }>,
}

/// A [`SelectorSet`] without its indirections where it is one pair of IPv4 ranges, as nearly all are.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Selectors {
    V4(Pair<u32>),
    V6(Box<Pair<u128>>),
    Many(Box<Lists>),
}

const _: () = assert!(size_of::<Selectors>() == 32);

impl Selectors {
    /// `None` if there are more than [`SelectorSet::MAX`] on a side.
    pub(crate) fn new(set: &SelectorSet) -> Option<Selectors> {
        let compile = |side: &[Selector]| {
            (side.len() <= SelectorSet::MAX).then(|| side.iter().filter_map(End::new).collect())
        };
        let lists = Lists { local: compile(&set.local)?, remote: compile(&set.remote)? };
        Some(match (&lists.local[..], &lists.remote[..]) {
            (&[End::V4(local)], &[End::V4(remote)]) => Selectors::V4(Pair { local, remote }),
            (&[End::V6(local)], &[End::V6(remote)]) => Selectors::V6(Box::new(Pair { local, remote })),
            _ => Selectors::Many(Box::new(lists)),
        })
    }

    /// Does a packet that leaves us match? (One that comes is to be [`Flow::reversed`] first.)
    #[inline]
    pub(crate) fn matches(&self, flow: &Flow) -> bool {
        match (self, flow.source, flow.destination) {
            (Selectors::V4(pair), IpAddr::V4(source), IpAddr::V4(destination)) => {
                pair.matches(source.to_bits(), destination.to_bits(), flow)
            }
            (Selectors::V6(pair), IpAddr::V6(source), IpAddr::V6(destination)) => {
                pair.matches(source.to_bits(), destination.to_bits(), flow)
            }
            (Selectors::Many(lists), ..) => lists.matches(flow),
            _ => false,
        }
    }

    /// The same where nearly all packets and selectors are of IPv4.
    #[inline(always)]
    pub(crate) fn matches_v4(&self, flow: &Flow) -> bool {
        match (self, flow.source, flow.destination) {
            (Selectors::V4(pair), IpAddr::V4(source), IpAddr::V4(destination)) => {
                pair.matches(source.to_bits(), destination.to_bits(), flow)
            }
            _ => self.matches_any(flow),
        }
    }

    #[inline(never)]
    fn matches_any(&self, flow: &Flow) -> bool {
        self.matches(flow)
    }

    /// Would it match if its ports were such?
    pub(crate) fn matches_without_ports(&self, flow: &Flow) -> bool {
        match (self, flow.source, flow.destination) {
            (Selectors::V4(pair), IpAddr::V4(source), IpAddr::V4(destination)) => {
                pair.matches_but_ports(source.to_bits(), destination.to_bits(), flow)
            }
            (Selectors::V6(pair), IpAddr::V6(source), IpAddr::V6(destination)) => {
                pair.matches_but_ports(source.to_bits(), destination.to_bits(), flow)
            }
            (Selectors::Many(lists), ..) => lists.matches_without_ports(flow),
            _ => false,
        }
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

impl Lists {
    #[inline(never)]
    fn matches(&self, flow: &Flow) -> bool {
        let (source_port, destination_port) = (flow.ports.map(|p| p.0), flow.ports.map(|p| p.1));
        self.local.iter().any(|end| end.matches(flow.source, flow.protocol, source_port))
            && self.remote.iter().any(|end| end.matches(flow.destination, flow.protocol, destination_port))
    }

    fn matches_without_ports(&self, flow: &Flow) -> bool {
        self.local.iter().any(|end| end.matches_but_ports(flow.source, flow.protocol))
            && self.remote.iter().any(|end| end.matches_but_ports(flow.destination, flow.protocol))
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
