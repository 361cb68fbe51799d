//! Headers: first a *view* over octets, then a *representation* of what they mean. No I/O.
//!
//! A view (`Packet`, `Frame`, ... over any octets) is made by `new_checked` only, which checks that every length
//! in the header lies within the octets; after that its accessors read and write in place. A representation
//! (`Repr`) is made from a view by `parse` and written by `emit`; parsing what was emitted gives the same again.
//!
//! **Panics**: nothing here panics on octets from outside. `emit` panics if the buffer is shorter than
//! `buffer_length()` says, which is our own mistake.
//!
//! Beside the headers: the Internet checksum ([`checksum`]), and the two repairs that a gateway makes on packets
//! of local stacks ([`repair`]): completing partial checksums, and lowering a SYN's maximum segment size.

#![forbid(unsafe_code)]

pub mod arp;
pub mod checksum;
pub mod esp;
pub mod ethernet;
pub mod icmpv4;
pub mod icmpv6;
pub mod ip;
pub mod ipv4;
pub mod ipv6;
pub mod quote;
pub mod repair;
pub mod tcp;
pub mod udp;

use std::fmt;

/// Octets that are no such header: the sender's fault, or the wire's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Malformed {
    /// Shorter than the header, or than the header says.
    Truncated,
    /// A field has a value that the format does not allow.
    Field(&'static str),
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Malformed::Truncated => f.write_str("malformed: the packet is truncated"),
            Malformed::Field(name) => write!(f, "malformed: impossible {name}"),
        }
    }
}

impl std::error::Error for Malformed {}

/// IP protocol numbers that the gateway knows.
pub mod protocol {
    /// IPv6 hop-by-hop options (RFC 8200 section 4.3).
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP (RFC 792).
    pub const ICMP: u8 = 1;
    /// IPv4 in IP: the next header of tunnel mode (RFC 4303 section 2.6).
    pub const IPV4: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 in IP.
    pub const IPV6: u8 = 41;
    /// IPv6 routing header (RFC 8200 section 4.4).
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header (RFC 8200 section 4.5).
    pub const FRAGMENT: u8 = 44;
    /// ESP (RFC 4303).
    pub const ESP: u8 = 50;
    /// ICMP for IPv6 (RFC 4443).
    pub const ICMPV6: u8 = 58;
    /// No next header: a dummy packet inside ESP (RFC 4303 section 2.6).
    pub const NONE: u8 = 59;
    /// IPv6 destination options (RFC 8200 section 4.6).
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

#[inline]
fn be16(octets: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([octets[at], octets[at + 1]])
}

#[inline]
fn be32(octets: &[u8], at: usize) -> u32 {
    let four: [u8; 4] = octets[at..at + 4].try_into().expect("four octets");
    u32::from_be_bytes(four)
}

#[inline]
fn put16(octets: &mut [u8], at: usize, value: u16) {
    octets[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

#[inline]
fn put32(octets: &mut [u8], at: usize, value: u32) {
    octets[at..at + 4].copy_from_slice(&value.to_be_bytes());
}
