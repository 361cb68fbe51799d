//! What was decided lately of a flow's packets, so that the next one of it is not held against policies, selectors and routes
//! again.
//!
//! Only the plainest packets have a place here: whole IPv4 without options, TCP or UDP with its ports, in tunnel mode. All
//! others, and whatever is not found, take the long way, which decides everything and remembers what it has decided. A flow
//! has two places, which the latest ones take; so whoever sends on many flows costs look-ups on the long way, no more. What a
//! decision rests on are tables that only commands and the process change: with any such change all is forgotten
//! ([`Flows::forget`]). What depends on the packet or changes with packets (lengths, TTL, limits of an SA, learned path MTUs)
//! is not here.

use crate::selectors::Flow;
use crate::{Engine, NextHop, PortId};
use spindle_abi::Time;
use spindle_aead::prefetch;
use spindle_wire::{checksum, ipv4, protocol, tcp};
use std::net::Ipv4Addr;

/// A packet that can have a place here, as its headers say.
pub(crate) struct Plain {
    addresses: u64,
    ports: u32,
    is_udp: bool,
    pub(crate) length: usize,
    pub(crate) ttl: u8,
    pub(crate) traffic_class: u8,
}

impl Plain {
    /// Octets of IPv4 header and ports.
    const OCTETS: usize = ipv4::HEADER_LENGTH + 4;

    /// Reads the IP packet at the front, and checks what `ip::Head` would.
    #[inline(always)]
    pub(crate) fn read(packet: &[u8]) -> Option<Plain> {
        let octets: &[u8; Self::OCTETS] = packet.first_chunk()?;
        let (words, _) = octets.as_chunks::<8>();
        let &[front, middle, back] = words.first_chunk()?;
        let [front, middle, back] = [front, middle, back].map(u64::from_be_bytes);
        let length = usize::from((front >> 32) as u16);
        let protocol = (middle >> 48) as u8;
        let is_udp = protocol == protocol::UDP;
        let fits = (Self::OCTETS..=packet.len()).contains(&length);
        // Version and header length; neither more fragments nor an offset.
        let is_plain = front & 0xff00_0000_0000_3fff == 0x4500_0000_0000_0000;
        if !is_plain || !(is_udp || protocol == protocol::TCP) || !fits {
            return None;
        }
        let low = u64::from(u32::MAX);
        let sum = (front >> 32) + (front & low) + (middle >> 32) + (middle & low) + (back >> 32);
        let (addresses, ports) = (middle << 32 | back >> 32, back as u32);
        let (ttl, traffic_class) = ((middle >> 56) as u8, (front >> 48) as u8);
        (checksum::fold(sum) == 0xffff).then_some(Plain {
            addresses,
            ports,
            is_udp,
            length,
            ttl,
            traffic_class,
        })
    }

    /// Is it no SYN, whose MSS may be to be lowered? `packet` is what it was read from.
    #[inline]
    pub(crate) fn is_no_syn(&self, packet: &[u8]) -> bool {
        const FLAGS: usize = ipv4::HEADER_LENGTH + 13;
        self.is_udp || packet.get(FLAGS).is_some_and(|flags| flags & tcp::SYN == 0)
    }

    /// As it comes from inside by this interface.
    #[inline]
    pub(crate) fn of_inside(&self, interface: u16) -> Key {
        let rest = u64::from(self.ports) << 32 | u64::from(interface) << 1 | u64::from(self.is_udp);
        Key { addresses: self.addresses, rest }
    }

    /// Source and destination.
    #[inline(always)]
    pub(crate) fn ends(&self) -> (Ipv4Addr, Ipv4Addr) {
        let [a, b, c, d, e, f, g, h] = self.addresses.to_be_bytes();
        (Ipv4Addr::new(a, b, c, d), Ipv4Addr::new(e, f, g, h))
    }

    /// What selectors see of it from the other end.
    #[inline(always)]
    pub(crate) fn reversed_flow(&self) -> Flow {
        let (source, destination) = self.ends();
        let [s, t, u, v] = self.ports.to_be_bytes();
        Flow {
            source: destination.into(),
            destination: source.into(),
            protocol: if self.is_udp { protocol::UDP } else { protocol::TCP },
            ports: Some((u16::from_be_bytes([u, v]), u16::from_be_bytes([s, t]))),
            hidden: false,
        }
    }
}

/// A flow from inside, and by which interface it comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Key {
    addresses: u64,
    rest: u64,
}

impl Key {
    /// Of no packet.
    pub(crate) const NONE: Key = Key { addresses: 0, rest: 0 };
}

/// What is done with a flow's packets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decision {
    /// The outbound SA.
    pub(crate) index: u32,
    /// Octets of a packet that fits the path, at most.
    pub(crate) limit: u16,
    /// Where the ESP around them leaves.
    pub(crate) hop: NextHop,
}

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Place {
    key: Key,
    /// In which it was decided.
    generation: u64,
    decision: Decision,
}

const _: () = assert!(size_of::<Place>() == 64);

pub(crate) struct Flows {
    /// None, or a power of two of them.
    places: Vec<Place>,
    /// Never that of a place which is free.
    generation: u64,
}

impl Flows {
    /// With so many places, rounded up to a power of two from 2.
    pub(crate) fn new(places: usize) -> Flows {
        let hop = NextHop { port: PortId::Outside, source_mac: [0; 6], destination_mac: [0; 6], mtu: 0 };
        let free = Place { key: Key::NONE, generation: 0, decision: Decision { index: 0, limit: 0, hop } };
        let places = if places == 0 { 0 } else { places.next_power_of_two().max(2) };
        Flows { places: vec![free; places], generation: 1 }
    }

    /// Something changed on which decisions rest.
    #[inline]
    pub(crate) fn forget(&mut self) {
        self.generation += 1;
    }

    /// The place that a flow has first; its other one is the neighbour.
    #[inline]
    fn place(&self, key: Key) -> usize {
        let hash = (key.addresses ^ key.rest.rotate_left(17)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (hash ^ key.rest.wrapping_mul(0xd6e8_feb8_6659_fd93)) as usize >> 32
            & self.places.len().wrapping_sub(1)
    }

    /// Fetches the place that a flow has first, and says which that is: for [`Flows::find_from`].
    #[inline]
    pub(crate) fn prefetch(&self, key: Key) -> u32 {
        let at = self.place(key);
        if let Some(place) = self.places.get(at) {
            prefetch(place);
        }
        at as u32
    }

    #[inline]
    fn holds(&self, at: usize, key: Key) -> bool {
        self.places.get(at).is_some_and(|place| place.key == key && place.generation == self.generation)
    }

    /// The place of the flow, whose first one is this.
    #[inline]
    pub(crate) fn find_from(&self, key: Key, first: u32) -> Option<u32> {
        let first = first as usize;
        if self.holds(first, key) {
            return Some(first as u32);
        }
        self.holds(first ^ 1, key).then_some((first ^ 1) as u32)
    }

    /// What was decided of the flow that was found at this place, and has it still.
    #[inline]
    pub(crate) fn at(&self, place: u32) -> &Decision {
        &self.places[place as usize].decision
    }

    #[inline]
    pub(crate) fn find(&self, key: Key) -> Option<&Decision> {
        Some(self.at(self.find_from(key, self.place(key) as u32)?))
    }

    fn put(&mut self, key: Key, decision: Decision) {
        let (at, generation) = (self.place(key), self.generation);
        let Some(held) = self.places.get(at).copied() else { return };
        // Who had this place takes the neighbour's.
        if held.generation == generation && held.key != key {
            self.places[at ^ 1] = held;
        }
        self.places[at] = Place { key, generation, decision };
    }
}

impl Engine {
    /// A packet from inside goes by this SA, in tunnel mode, over a path that takes packets of so many octets.
    pub(crate) fn remember_outbound(&mut self, now: Time, key: Key, index: u32, limit: usize) {
        // What ICMP told of a path holds for a time.
        if self.path_mtus.hold_any(now) {
            return;
        }
        let Some(outbound) = self.sas.outbound_at(index).filter(|outbound| !outbound.sa.is_in_transport())
        else {
            return;
        };
        if let Some(hop) = self.next_hops.find(outbound.sa.remote()).filter(|hop| hop.port == PortId::Outside)
        {
            self.flows.put(key, Decision { index, limit: limit.min(usize::from(u16::MAX)) as u16, hop });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::IpAddr;

    proptest! {
        #[test]
        fn a_plain_packet_is_read_as_its_octets_say(
            source: [u8; 4], destination: [u8; 4], ports: (u16, u16), is_udp: bool, ttl: u8, traffic_class: u8
        ) {
            let protocol = if is_udp { protocol::UDP } else { protocol::TCP };
            let repr = ipv4::Repr {
                traffic_class,
                identification: 7,
                dont_fragment: true,
                more_fragments: false,
                fragment_offset: 0,
                ttl,
                protocol,
                source: source.into(),
                destination: destination.into(),
                payload_length: 20,
            };
            let mut packet = [0; 40];
            repr.emit(&mut packet);
            packet[20..22].copy_from_slice(&ports.0.to_be_bytes());
            packet[22..24].copy_from_slice(&ports.1.to_be_bytes());
            let plain = Plain::read(&packet).expect("a plain packet");
            prop_assert_eq!(plain.ends(), (source.into(), destination.into()));
            prop_assert_eq!((plain.length, plain.ttl, plain.traffic_class), (40, ttl, traffic_class));
            let flow = plain.reversed_flow();
            prop_assert_eq!((flow.source, flow.destination), (IpAddr::from(destination), IpAddr::from(source)));
            prop_assert_eq!((flow.protocol, flow.ports), (protocol, Some((ports.1, ports.0))));
        }
    }
}
