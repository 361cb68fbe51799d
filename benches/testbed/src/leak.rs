//! The leak check: no inside address and no payload marker on the outer wire.
//!
//! Every header of a frame that can hold an address is visited: ARP, IPv4 with its source routes and recorded
//! routes, IPv6 with its routing header, the quotes of ICMP and ICMPv6 errors and redirects (quotes within quotes
//! too), neighbour discovery with its options, MLD groups, and packets carried in cleartext tunnels (IP in IP, GRE, or
//! behind an ESP header that encrypts nothing, raw or over UDP). Encrypted payloads can hold any octets by chance,
//! so addresses are only looked for in headers; the 16-octet marker is looked for everywhere.

use crate::frame::{Ip, ethernet, internet_sum, ipv4_at, ipv6_at, protocol, u16_at};
use crate::pcap::Frame;
use crate::topology::Network;
use crate::traffic::Marker;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// An inside network of either version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InsideNetwork {
    /// IPv4.
    V4(Network),
    /// IPv6: an address and its prefix length in bits.
    V6(Ipv6Addr, u8),
}

impl InsideNetwork {
    /// Whether an address lies in the network; an IPv4-mapped one counts as what it maps.
    fn contains(self, address: IpAddr) -> bool {
        match (self, address.to_canonical()) {
            (InsideNetwork::V4(network), IpAddr::V4(address)) => network.contains(address),
            (InsideNetwork::V6(network, prefix), IpAddr::V6(address)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                u128::from(address) & mask == u128::from(network) & mask
            }
            _ => false,
        }
    }
}

/// Where a leak was seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// Sender or target of an ARP packet.
    Arp,
    /// Source or destination of an IP packet.
    IpHeader,
    /// A source route or recorded route: an IPv4 option or IPv6 routing header.
    Route,
    /// A packet quoted in an ICMP or ICMPv6 error or redirect.
    Quote,
    /// The new gateway of a redirect.
    Redirect,
    /// Target or option of neighbour discovery, or a multicast listener's group.
    NeighbourDiscovery,
    /// A packet inside another: IP in IP, GRE, or behind an ESP header in cleartext.
    Tunnelled,
    /// The payload marker.
    Marker,
}

/// One leak.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leak {
    /// The frame's number in the capture, from 1 as in Wireshark.
    pub frame: usize,
    /// The frame's time, CLOCK_REALTIME in nanoseconds.
    pub at: u64,
    /// Where in the frame.
    pub place: Place,
    /// The inside address; `None` for the marker.
    pub address: Option<IpAddr>,
}

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "frame {}: {:?}", self.frame, self.place)?;
        self.address.map_or(Ok(()), |address| write!(f, " {address}"))
    }
}

/// All leaks of a capture of the outer wire.
pub fn leaks(frames: &[Frame], inside: &[InsideNetwork], marker: Marker) -> Vec<Leak> {
    let mut found = Vec::new();
    for (number, frame) in frames.iter().enumerate() {
        let mut leak = |place, address| found.push(Leak { frame: number + 1, at: frame.at, place, address });
        if frame.octets.windows(marker.0.len()).any(|window| window == marker.0) {
            leak(Place::Marker, None);
        }
        visit_frame(&frame.octets, &mut |place, address| {
            if inside.iter().any(|network| network.contains(address)) {
                leak(place, Some(address));
            }
        });
    }
    found
}

type Visitor<'a> = dyn FnMut(Place, IpAddr) + 'a;

/// How many packets may lie within each other: more than any header chain that a router makes.
const DEPTH: u8 = 6;

fn visit_frame(frame: &[u8], visit: &mut Visitor<'_>) {
    match ethernet(frame) {
        // ARP and RARP.
        Some((0x0806 | 0x8035, packet)) => visit_arp(packet, visit),
        Some((0x0800 | 0x86dd, packet)) => visit_ip(packet, Place::IpHeader, DEPTH, visit),
        _ => {}
    }
}

/// RFC 826: the lengths of hardware and protocol addresses stand in the packet.
fn visit_arp(packet: &[u8], visit: &mut Visitor<'_>) {
    let (Some(&hardware), Some(&[_, _, 4])) = (packet.get(4), packet.get(3..6)) else { return };
    let hardware = usize::from(hardware);
    for at in [8 + hardware, 8 + 2 * hardware + 4] {
        if let Some(address) = ipv4_at(packet, at) {
            visit(Place::Arp, address.into());
        }
    }
}

fn visit_ip(packet: &[u8], place: Place, depth: u8, visit: &mut Visitor<'_>) {
    let Some(depth) = depth.checked_sub(1) else { return };
    let Some(ip) = Ip::parse(packet) else { return };
    visit(place, ip.source);
    visit(place, ip.destination);
    visit_routes(packet, visit);
    let payload = ip.payload;
    match ip.protocol {
        protocol::ICMP => visit_icmp(payload, depth, visit),
        protocol::ICMPV6 => visit_icmpv6(payload, depth, visit),
        protocol::IPV4 | protocol::IPV6 => visit_ip(payload, inner(place), depth, visit),
        protocol::GRE => {
            // RFC 2784 and RFC 2890: checksum, key and sequence number are each there if their flag is.
            if let (Some(&flags), Some(0x0800 | 0x86dd)) = (payload.first(), u16_at(payload, 2)) {
                let options = [0x80, 0x20, 0x10].iter().filter(|&flag| flags & flag != 0).count();
                visit_ip(payload.get(4 + 4 * options..).unwrap_or(&[]), inner(place), depth, visit);
            }
        }
        protocol::ESP => visit_esp(payload, inner(place), depth, visit),
        protocol::UDP => {
            if let Some((_, 4500, payload) | (4500, _, payload)) = ip.udp() {
                visit_esp(payload, inner(place), depth, visit);
            }
        }
        _ => {}
    }
}

/// What lies inside a quoted packet is still a quote.
fn inner(place: Place) -> Place {
    if place == Place::Quote { Place::Quote } else { Place::Tunnelled }
}

/// ESP that encrypts nothing shows an inner packet behind its header, with or without an initialisation vector. By
/// chance, ciphertext looks like that once in 2^30 packets or so: version, length and checksum must all be right.
fn visit_esp(payload: &[u8], place: Place, depth: u8, visit: &mut Visitor<'_>) {
    for at in [8, 16, 24] {
        let Some(packet) = payload.get(at..) else { return };
        let header = packet.get(..20).filter(|header| header[0] == 0x45 && internet_sum(header) == 0xffff);
        let fits = u16_at(packet, 2).is_some_and(|length| usize::from(length) <= packet.len());
        if header.is_some() && fits {
            visit_ip(packet, place, depth, visit);
        }
    }
}

/// IPv4 options 7, 131 and 137 (RFC 791 section 3.1); IPv6 routing header (RFC 8200 section 4.4).
fn visit_routes(packet: &[u8], visit: &mut Visitor<'_>) {
    match packet.first().map(|octet| octet >> 4) {
        Some(4) => {
            let end = usize::from(packet[0] & 0x0f) * 4;
            let mut options = packet.get(20..end).unwrap_or(&[]);
            while let Some(&kind) = options.first() {
                let length = match kind {
                    0 => return,
                    1 => 1,
                    _ => usize::from(*options.get(1).unwrap_or(&0)).max(2),
                };
                if matches!(kind, 7 | 131 | 137) {
                    let slots = options.get(3..length).unwrap_or(&[]);
                    slots.chunks_exact(4).filter_map(|slot| ipv4_at(slot, 0)).for_each(|address| {
                        visit(Place::Route, address.into());
                    });
                }
                options = options.get(length..).unwrap_or(&[]);
            }
        }
        Some(6) => {
            let (mut next, mut rest) = (packet.get(6).copied(), packet.get(40..).unwrap_or(&[]));
            while let Some(
                kind @ (protocol::HOP_BY_HOP
                | protocol::ROUTING
                | protocol::FRAGMENT
                | protocol::DESTINATION_OPTIONS),
            ) = next
            {
                let Some(&[following, length]) = rest.first_chunk::<2>() else { return };
                let size = if kind == protocol::FRAGMENT { 8 } else { (usize::from(length) + 1) * 8 };
                if kind == protocol::ROUTING {
                    let slots = rest.get(8..size).unwrap_or(&[]);
                    slots.chunks_exact(16).filter_map(|slot| ipv6_at(slot, 0)).for_each(|address| {
                        visit(Place::Route, address.into());
                    });
                }
                next = Some(following);
                rest = rest.get(size..).unwrap_or(&[]);
            }
        }
        _ => {}
    }
}

/// RFC 792: errors quote the packet behind eight octets; a redirect names a gateway before it.
fn visit_icmp(message: &[u8], depth: u8, visit: &mut Visitor<'_>) {
    let kind = message.first();
    if kind == Some(&5)
        && let Some(gateway) = ipv4_at(message, 4)
    {
        visit(Place::Redirect, gateway.into());
    }
    if let (Some(3 | 4 | 5 | 11 | 12), Some(quote)) = (kind, message.get(8..)) {
        visit_ip(quote, Place::Quote, depth, visit);
    }
}

/// RFC 4443 (errors), RFC 4861 (neighbour discovery), RFC 2710 and RFC 3810 (multicast listeners).
fn visit_icmpv6(message: &[u8], depth: u8, visit: &mut Visitor<'_>) {
    let mut at = |offset, place| {
        if let Some(address) = ipv6_at(message, offset) {
            visit(place, address.into());
        }
    };
    let options = match message.first() {
        Some(1..=4) => {
            visit_ip(message.get(8..).unwrap_or(&[]), Place::Quote, depth, visit);
            return;
        }
        Some(130..=132) => return at(8, Place::NeighbourDiscovery),
        Some(143) => {
            // Multicast address records: type, auxiliary length in words, count of sources, group, sources.
            let mut record = 8;
            while let (Some(&auxiliary), Some(sources)) =
                (message.get(record + 1), u16_at(message, record + 2))
            {
                (0..=usize::from(sources))
                    .for_each(|slot| at(record + 4 + 16 * slot, Place::NeighbourDiscovery));
                record += 20 + 16 * usize::from(sources) + 4 * usize::from(auxiliary);
            }
            return;
        }
        Some(133) => 8,
        Some(134) => 16,
        Some(135 | 136) => {
            at(8, Place::NeighbourDiscovery);
            24
        }
        Some(137) => {
            at(8, Place::Redirect);
            at(24, Place::Redirect);
            40
        }
        _ => return,
    };
    let mut options = message.get(options..).unwrap_or(&[]);
    while let Some(&[kind, length]) = options.first_chunk::<2>() {
        let size = usize::from(length) * 8;
        let option = options.get(..size).unwrap_or(options);
        match kind {
            3 => ipv6_at(option, 16)
                .into_iter()
                .for_each(|prefix| visit(Place::NeighbourDiscovery, prefix.into())),
            4 => visit_ip(option.get(8..).unwrap_or(&[]), Place::Quote, depth, visit),
            _ => {}
        }
        if size == 0 {
            return;
        }
        options = options.get(size..).unwrap_or(&[]);
    }
}

#[cfg(test)]
#[path = "leak_tests.rs"]
mod tests;
