//! An outbound SA: sequence numbers and encapsulation.

use crate::{ICV_LENGTH, IV_LENGTH, Unusable, nonce, split_keymat, tunnel};
use spindle_abi::{SaParameters, Spi};
use spindle_aead::{Key, Provider};
use spindle_wire::{esp, ipv4, protocol, udp};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Octets before the inner packet: outer IPv4, UDP if encapsulated, SPI, sequence number, IV.
#[inline]
pub const fn front_length(encapsulated: bool) -> usize {
    ipv4::HEADER_LENGTH + if encapsulated { udp::HEADER_LENGTH } else { 0 } + esp::HEADER_LENGTH + IV_LENGTH
}

/// Octets of padding before the pad length, so that the next header ends on 4 octets (RFC 4303 section 2.4).
#[inline]
const fn pad_length(inner_length: usize) -> usize {
    (inner_length + 2).wrapping_neg() & 3
}

/// Octets behind the inner packet: padding, pad length, next header, ICV.
#[inline]
pub const fn back_length(inner_length: usize) -> usize {
    pad_length(inner_length) + 2 + ICV_LENGTH
}

/// The longest inner packet that fits the path once encapsulated; 0 if none does.
#[inline]
pub const fn inner_limit(path_mtu: usize, encapsulated: bool) -> usize {
    let ciphertext = path_mtu.saturating_sub(front_length(encapsulated) + ICV_LENGTH) & !3;
    ciphertext.saturating_sub(2)
}

/// The sequence numbers of this SA are used up (RFC 4303 section 3.3.3): it must be rekeyed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exhausted;

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the SA's sequence numbers are used up")
    }
}

impl std::error::Error for Exhausted {}

/// An outbound SA's hot state: one cache line.
#[derive(Debug)]
#[repr(align(64))]
pub struct OutboundSa {
    key: Key,
    /// The last number that was used; counted up before use.
    sequence: u64,
    spi: Spi,
    salt: [u8; 4],
    local: Ipv4Addr,
    remote: Ipv4Addr,
    local_port: u16,
    remote_port: u16,
    encapsulated: bool,
}

const _: () = assert!(size_of::<OutboundSa>() == 64);

impl OutboundSa {
    /// The SA before its first packet.
    pub fn new(sa: &SaParameters, provider: Provider) -> Result<OutboundSa, Unusable> {
        let (IpAddr::V4(local), IpAddr::V4(remote)) = (sa.local.ip(), sa.remote.ip()) else {
            return Err(Unusable::Ipv6);
        };
        let (key, salt) = split_keymat(sa, provider)?;
        Ok(OutboundSa {
            key,
            sequence: 0,
            spi: sa.spi,
            salt,
            local,
            remote,
            local_port: sa.local.port(),
            remote_port: sa.remote.port(),
            encapsulated: sa.encapsulated,
        })
    }

    /// Is ESP in UDP here?
    #[inline]
    pub fn is_encapsulated(&self) -> bool {
        self.encapsulated
    }

    /// The peer's outer address.
    #[inline]
    pub fn remote(&self) -> Ipv4Addr {
        self.remote
    }

    /// Its SPI.
    pub fn spi(&self) -> Spi {
        self.spi
    }

    /// The last sequence number that was used.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Goes on behind this number, never back: after a restart that may have lost the last few.
    pub fn skip_to(&mut self, sequence: u64) {
        self.sequence = self.sequence.max(sequence);
    }

    /// The outer addresses changed (RFC 7296 section 2.23).
    pub fn readdress(&mut self, local: SocketAddr, remote: SocketAddr) -> Result<(), Unusable> {
        let (IpAddr::V4(new_local), IpAddr::V4(new_remote)) = (local.ip(), remote.ip()) else {
            return Err(Unusable::Ipv6);
        };
        (self.local, self.remote) = (new_local, new_remote);
        (self.local_port, self.remote_port) = (local.port(), remote.port());
        Ok(())
    }

    /// Encapsulates in place. `octets` are [`front_length`], the inner IPv4 packet, [`back_length`]; and not more
    /// than 65,535. A length that does not fit is our own mistake and panics.
    ///
    /// "The sender increments the sequence number (or ESN) counter for this SA and inserts the low-order 32 bits"
    /// and "an attempt to transmit a packet that would result in sequence number overflow is an auditable event"
    /// (RFC 4303 section 3.3.3): so the counter goes up first and never wraps, with replay protection or without.
    #[inline]
    pub fn encapsulate(&mut self, octets: &mut [u8], inner_length: usize) -> Result<(), Exhausted> {
        let front = front_length(self.encapsulated);
        assert!(octets.len() == front + inner_length + back_length(inner_length));
        if self.sequence >= u64::from(u32::MAX) {
            return Err(Exhausted);
        }
        self.sequence += 1;
        let (outer, payload) = octets.split_at_mut(front);
        self.write_front(outer, payload);
        let padding = pad_length(inner_length);
        let (plain, icv) = payload.split_at_mut(inner_length + padding + 2);
        // RFC 4303 section 2.4: the padding is 1, 2, 3, and so on.
        for (octet, value) in plain[inner_length..inner_length + padding].iter_mut().zip(1..) {
            *octet = value;
        }
        plain[inner_length + padding] = padding as u8;
        plain[inner_length + padding + 1] = protocol::IPV4;
        // RFC 4106 section 3.1: the IV must never repeat under one key. The counter doesn't.
        let nonce = nonce(self.salt, self.sequence.to_be_bytes());
        // RFC 4106 section 5: SPI and sequence number are the additional authenticated data.
        let mut aad = [0; esp::HEADER_LENGTH];
        aad.copy_from_slice(&outer[front - IV_LENGTH - esp::HEADER_LENGTH..front - IV_LENGTH]);
        let mut tag = [0; ICV_LENGTH];
        self.key.seal(&nonce, &aad, plain, &mut tag);
        icv.copy_from_slice(&tag);
        Ok(())
    }

    #[inline]
    fn write_front(&self, outer: &mut [u8], payload: &[u8]) {
        let front = outer.len();
        // RFC 4301 section 5.1.2.1: DSCP and DF are copied. ECN as in RFC 6040 section 4.1.
        let inner_class = payload.get(1).copied().unwrap_or(0);
        let dont_fragment = payload.get(6).is_some_and(|flags| flags & 0x40 != 0);
        let repr = ipv4::Repr {
            traffic_class: tunnel::outer_traffic_class(inner_class),
            identification: self.sequence as u16,
            dont_fragment,
            more_fragments: false,
            fragment_offset: 0,
            ttl: tunnel::TTL,
            protocol: if self.encapsulated { protocol::UDP } else { protocol::ESP },
            source: self.local,
            destination: self.remote,
            payload_length: (front - ipv4::HEADER_LENGTH + payload.len()) as u16,
        };
        repr.emit(outer);
        let mut at = ipv4::HEADER_LENGTH;
        if self.encapsulated {
            // RFC 3948 section 2.1: the UDP checksum should be zero.
            let repr = udp::Repr {
                source_port: self.local_port,
                destination_port: self.remote_port,
                payload_length: (front - at - udp::HEADER_LENGTH + payload.len()) as u16,
            };
            repr.emit(&mut outer[at..]);
            at += udp::HEADER_LENGTH;
        }
        esp::Repr { spi: self.spi.0, sequence: self.sequence as u32 }.emit(&mut outer[at..]);
        outer[at + esp::HEADER_LENGTH..].copy_from_slice(&self.sequence.to_be_bytes());
    }
}
