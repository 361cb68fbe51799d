//! Frames made by hand, for tests: what a leak, a forger or a peer would send.

use crate::frame::{internet_sum, protocol};
use std::net::{Ipv4Addr, Ipv6Addr};

/// An Ethernet frame with this EtherType.
pub fn ethernet(destination: [u8; 6], source: [u8; 6], ether_type: u16, payload: &[u8]) -> Vec<u8> {
    [&destination[..], &source[..], &ether_type.to_be_bytes()[..], payload].concat()
}

/// An IPv4 packet without options, with its checksum.
pub fn ipv4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).unwrap_or(u16::MAX).to_be_bytes();
    let mut header = vec![0x45, 0, length[0], length[1], 0, 0, 0x40, 0, 64, protocol, 0, 0];
    header.extend(source.octets());
    header.extend(destination.octets());
    let checksum = (!internet_sum(&header)).to_be_bytes();
    header[10..12].copy_from_slice(&checksum);
    [header, payload.to_vec()].concat()
}

/// The same IPv4 packet with another Time to Live, its checksum right.
pub fn with_ttl(mut packet: Vec<u8>, ttl: u8) -> Vec<u8> {
    packet[8] = ttl;
    packet[10..12].fill(0);
    let checksum = (!internet_sum(&packet[..20])).to_be_bytes();
    packet[10..12].copy_from_slice(&checksum);
    packet
}

/// An IPv6 packet.
pub fn ipv6(source: Ipv6Addr, destination: Ipv6Addr, next_header: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap_or(u16::MAX).to_be_bytes();
    let header = [0x60, 0, 0, 0, length[0], length[1], next_header, 64];
    [&header[..], &source.octets(), &destination.octets(), payload].concat()
}

/// A UDP datagram; over IPv4 a checksum of 0 says that there is none (RFC 768).
pub fn udp(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap_or(u16::MAX);
    let header = [source, destination, length, 0].map(u16::to_be_bytes).concat();
    [&header[..], payload].concat()
}

/// An ICMP message with its checksum: type, code, the second word, then data (RFC 792).
pub fn icmp(kind: u8, code: u8, word: u32, data: &[u8]) -> Vec<u8> {
    let mut message = [&[kind, code, 0, 0], &word.to_be_bytes()[..], data].concat();
    let checksum = (!internet_sum(&message)).to_be_bytes();
    message[2..4].copy_from_slice(&checksum);
    message
}

/// An ICMPv6 message without a checksum: type, code, the second word, then data (RFC 4443).
pub fn icmpv6(kind: u8, code: u8, word: u32, data: &[u8]) -> Vec<u8> {
    [&[kind, code, 0, 0], &word.to_be_bytes()[..], data].concat()
}

/// An ARP packet (RFC 826): 1 asks, 2 answers.
pub fn arp(operation: u16, sender: ([u8; 6], Ipv4Addr), target: ([u8; 6], Ipv4Addr)) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4];
    packet.extend(operation.to_be_bytes());
    for (hardware, address) in [sender, target] {
        packet.extend(hardware);
        packet.extend(address.octets());
    }
    packet
}

/// An ESP packet's visible fields and some octets.
pub fn esp(spi: u32, sequence: u32, rest: &[u8]) -> Vec<u8> {
    [&spi.to_be_bytes()[..], &sequence.to_be_bytes(), rest].concat()
}

/// An IKE message (RFC 7296 section 3.1): the SPIs, the first payload's type, exchange type, flags, Message ID and
/// the payloads' octets.
pub fn ike(
    spis: (u64, u64),
    first_payload: u8,
    exchange: u8,
    flags: u8,
    message_id: u32,
    payloads: &[u8],
) -> Vec<u8> {
    let length = u32::try_from(28 + payloads.len()).unwrap_or(u32::MAX);
    let mut message = [spis.0.to_be_bytes(), spis.1.to_be_bytes()].concat();
    message.extend([first_payload, 0x20, exchange, flags]);
    message.extend(message_id.to_be_bytes());
    message.extend(length.to_be_bytes());
    message.extend(payloads);
    message
}

/// A payload with its generic header (RFC 7296 section 3.2).
pub fn payload(next: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + body.len()).unwrap_or(u16::MAX).to_be_bytes();
    [&[next, 0, length[0], length[1]], body].concat()
}

/// A Notify payload without an SPI (RFC 7296 section 3.10).
pub fn notify(next: u8, kind: u16, data: &[u8]) -> Vec<u8> {
    let kind = kind.to_be_bytes();
    payload(next, &[&[0, 0, kind[0], kind[1]], data].concat())
}

/// An Ethernet frame of a UDP datagram over IPv4, between unspecified hardware addresses.
pub fn udp_frame(source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16), payload: &[u8]) -> Vec<u8> {
    let datagram = udp(source.1, destination.1, payload);
    ethernet([2; 6], [4; 6], 0x0800, &ipv4(source.0, destination.0, protocol::UDP, &datagram))
}
