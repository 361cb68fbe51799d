//! An outbound SA: sequence numbers and encapsulation.

use crate::{AdditionalData, ICV_LENGTH, IV_LENGTH, Unusable, nonce, split_keymat, tunnel};
use spindle_abi::{Mode, SaParameters, Spi};
use spindle_aead::{Key, Provider, prefetch};
use spindle_wire::{esp, ip, ipv4, ipv6, protocol, udp};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// What stands around ESP on an SA.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Encapsulation {
    /// Outer IPv6, else IPv4.
    pub is_ipv6: bool,
    /// ESP in UDP (RFC 3948).
    pub in_udp: bool,
    /// Transport mode: the packet's own IP header stays in front.
    pub in_transport: bool,
}

/// Octets before the inner packet, or in transport mode behind its headers: outer IP but in transport mode, UDP if
/// encapsulated, SPI, sequence number, IV.
#[inline]
pub const fn front_length(around: Encapsulation) -> usize {
    let outer = if around.in_transport { 0 } else { ip::header_length(around.is_ipv6) };
    let udp = if around.in_udp { udp::HEADER_LENGTH } else { 0 };
    outer + udp + esp::HEADER_LENGTH + IV_LENGTH
}

/// Octets of padding before the pad length, so that the next header ends on 4 octets (RFC 4303 section 2.4). Headers of
/// either version end on 4 octets, so it is the same for what stands behind them.
#[inline]
const fn pad_length(inner_length: usize) -> usize {
    (inner_length + 2).wrapping_neg() & 3
}

/// Octets behind the inner packet: padding, pad length, next header, ICV.
#[inline]
pub const fn back_length(inner_length: usize) -> usize {
    pad_length(inner_length) + 2 + ICV_LENGTH
}

/// Octets of outer IPv4, SPI, sequence number and IV.
const PLAIN: usize = ipv4::HEADER_LENGTH + esp::HEADER_LENGTH + IV_LENGTH;

/// RFC 4303 section 2.4: so many octets of padding, which are 1, 2, 3, and so on; the pad length; and room for the next
/// header.
const TRAILERS: [u64; 4] = [0x00_00, 0x01_01_00, 0x01_02_02_00, 0x01_02_03_03_00];

/// The longest inner packet that fits the path once encapsulated; 0 if none does.
#[inline]
pub const fn inner_limit(path_mtu: usize, around: Encapsulation) -> usize {
    limit_behind(front_length(around), path_mtu)
}

#[inline]
const fn limit_behind(front: usize, path_mtu: usize) -> usize {
    let ciphertext = path_mtu.saturating_sub(front + ICV_LENGTH) & !3;
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

/// A packet that [`OutboundSa::begin`] has begun: octets of the IP header before ESP, or UDP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "what is in the packet is in clear until it is sealed"]
pub struct Begun(u16);

/// The outer addresses, in IPv4 what else of the outer header stays. Those of IPv6 stand apart, so that the SA stays one
/// cache line.
#[derive(Debug)]
enum Ends {
    V4(ipv4::Outer),
    V6(Box<(Ipv6Addr, Ipv6Addr)>),
}

impl Ends {
    fn new(local: IpAddr, remote: IpAddr, in_udp: bool) -> Result<Ends, Unusable> {
        let next = if in_udp { protocol::UDP } else { protocol::ESP };
        match (local, remote) {
            (IpAddr::V4(local), IpAddr::V4(remote)) => {
                Ok(Ends::V4(ipv4::Outer::new(local, remote, tunnel::TTL, next)))
            }
            (IpAddr::V6(local), IpAddr::V6(remote)) => Ok(Ends::V6(Box::new((local, remote)))),
            _ => Err(Unusable::IpVersions),
        }
    }
}

/// An outbound SA's hot state: one cache line, and with outer IPv6 a second one.
#[derive(Debug)]
pub struct OutboundSa {
    key: Key,
    /// The last number that was used; counted up before use.
    sequence: u64,
    spi: Spi,
    salt: [u8; 4],
    ends: Ends,
    local_port: u16,
    remote_port: u16,
    in_udp: bool,
    in_transport: bool,
    esn: bool,
    /// [`front_length`].
    front: u8,
}

const _: () = assert!(size_of::<OutboundSa>() <= 64);

impl OutboundSa {
    /// The SA before its first packet.
    pub fn new(sa: &SaParameters, provider: Provider) -> Result<OutboundSa, Unusable> {
        let ends = Ends::new(sa.local.ip(), sa.remote.ip(), sa.encapsulated)?;
        let (key, salt) = split_keymat(sa, provider)?;
        let mut made = OutboundSa {
            key,
            sequence: 0,
            spi: sa.spi,
            salt,
            ends,
            local_port: sa.local.port(),
            remote_port: sa.remote.port(),
            in_udp: sa.encapsulated,
            in_transport: sa.mode == Mode::Transport,
            esn: sa.esn,
            front: 0,
        };
        made.front = front_length(made.encapsulation()) as u8;
        Ok(made)
    }

    /// What stands around ESP here.
    #[inline]
    pub fn encapsulation(&self) -> Encapsulation {
        let is_ipv6 = matches!(self.ends, Ends::V6(_));
        Encapsulation { is_ipv6, in_udp: self.in_udp, in_transport: self.in_transport }
    }

    /// Octets of what stands before the packet: [`front_length`].
    #[inline]
    pub fn front_length(&self) -> usize {
        self.front.into()
    }

    /// The longest inner packet that fits the path once encapsulated: [`inner_limit`].
    #[inline]
    pub fn inner_limit(&self, path_mtu: usize) -> usize {
        limit_behind(self.front_length(), path_mtu)
    }

    /// Asks for the memory that it points to ahead of its use.
    #[inline]
    pub fn prefetch(&self) {
        self.key.prefetch();
        if let Ends::V6(ends) = &self.ends {
            prefetch(&**ends);
        }
    }

    /// May it carry a packet with these addresses? In transport mode the SA's own alone (RFC 4301 section 4.1).
    #[inline]
    pub fn joins(&self, source: IpAddr, destination: IpAddr) -> bool {
        !self.in_transport || self.ends() == (source, destination)
    }

    /// The peer's outer address.
    #[inline]
    pub fn remote(&self) -> IpAddr {
        match &self.ends {
            Ends::V4(outer) => outer.destination().into(),
            Ends::V6(ends) => ends.1.into(),
        }
    }

    /// Our outer address and the peer's.
    #[inline]
    pub fn ends(&self) -> (IpAddr, IpAddr) {
        match &self.ends {
            Ends::V4(outer) => (outer.source().into(), outer.destination().into()),
            Ends::V6(ends) => (ends.0.into(), ends.1.into()),
        }
    }

    /// Is it in transport mode?
    #[inline]
    pub fn is_in_transport(&self) -> bool {
        self.in_transport
    }

    /// The outer addresses; and around ESP in UDP, the source and destination port.
    fn path(&self) -> (IpAddr, IpAddr, Option<(u16, u16)>) {
        let (local, remote) = self.ends();
        (local, remote, self.in_udp.then_some((self.local_port, self.remote_port)))
    }

    /// Are these the outer addresses, and around ESP in UDP these the source and destination port?
    pub fn is_path(&self, local: IpAddr, remote: IpAddr, ports: Option<(u16, u16)>) -> bool {
        self.path() == (local, remote, ports)
    }

    /// Do its packets take the same path as the other's?
    pub fn has_path_of(&self, other: &OutboundSa) -> bool {
        self.path() == other.path()
    }

    /// Its SPI.
    pub fn spi(&self) -> Spi {
        self.spi
    }

    /// The last sequence number that was used.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The last one that there is.
    #[inline]
    fn last_sequence(&self) -> u64 {
        if self.esn { u64::MAX } else { u32::MAX.into() }
    }

    /// Goes on behind this number, never back: after a restart that may have lost the last few.
    pub fn skip_to(&mut self, sequence: u64) {
        self.sequence = self.sequence.max(sequence);
    }

    /// The outer addresses changed (RFC 7296 section 2.23).
    pub fn readdress(&mut self, local: SocketAddr, remote: SocketAddr) -> Result<(), Unusable> {
        self.ends = Ends::new(local.ip(), remote.ip(), self.in_udp)?;
        (self.local_port, self.remote_port) = (local.port(), remote.port());
        self.front = front_length(self.encapsulation()) as u8;
        Ok(())
    }

    /// Encapsulates in place: [`OutboundSa::begin`], then [`OutboundSa::seal`].
    #[inline]
    pub fn encapsulate(&mut self, octets: &mut [u8], inner_length: usize) -> Result<(), Exhausted> {
        let begun = self.begin(octets, inner_length)?;
        self.seal(octets, begun);
        Ok(())
    }

    /// Writes all that stands around a packet, which is in clear still: it must be sealed before it goes anywhere.
    /// `octets` are [`front_length`], the inner packet (IPv4 or IPv6), [`back_length`]; and not more than 65,535. A length
    /// that does not fit is our own mistake and panics. In transport mode the packet is whole (RFC 4303 section 3.3.4), and
    /// from one of the SA's ends to the other.
    ///
    /// "The sender increments the sequence number (or ESN) counter for this SA and inserts the low-order 32 bits"
    /// and "an attempt to transmit a packet that would result in sequence number overflow is an auditable event"
    /// (RFC 4303 section 3.3.3): so the counter goes up first and never wraps, with replay protection or without.
    #[inline]
    pub fn begin(&mut self, octets: &mut [u8], inner_length: usize) -> Result<Begun, Exhausted> {
        let front = self.front_length();
        assert!(octets.len() == front + inner_length + back_length(inner_length));
        if self.is_exhausted() {
            return Err(Exhausted);
        }
        self.sequence += 1;
        if let (Ends::V4(outer), false, false) = (&self.ends, self.in_udp, self.in_transport)
            && let Some(begin) = octets.first_chunk_mut()
        {
            let payload_length =
                (inner_length + back_length(inner_length) + PLAIN - ipv4::HEADER_LENGTH) as u16;
            let next_header = self.write_plain(outer, payload_length, begin);
            write_trailer(octets, pad_length(inner_length), next_header);
            return Ok(Begun(ipv4::HEADER_LENGTH as u16));
        }
        let (at, next_header) = if self.in_transport {
            self.keep_headers(octets, front)
        } else {
            let (outer, inner) = octets.split_at_mut(front);
            self.write_headers(outer, inner);
            let is_ipv6 = ip::version(inner) == Some(6);
            let next_header = if is_ipv6 { protocol::IPV6 } else { protocol::IPV4 };
            (ip::header_length(matches!(self.ends, Ends::V6(_))), next_header)
        };
        self.write_esp(&mut octets[at..]);
        write_trailer(octets, pad_length(inner_length), next_header);
        Ok(Begun(at as u16))
    }

    /// What most packets get: an outer IPv4 header and ESP's, in a length that the compiler knows. The next header.
    #[inline]
    fn write_plain(&self, outer: &ipv4::Outer, payload_length: u16, octets: &mut [u8; PLAIN + 8]) -> u8 {
        let (front, inner) = octets.split_at_mut(PLAIN);
        let is_ipv6 = inner[0] >> 4 == 6;
        let inner = tunnel::Inner::of(inner);
        let class = tunnel::outer_traffic_class(inner.traffic_class);
        let identification = self.sequence as u16;
        outer.emit(class, identification, inner.dont_fragment, payload_length, front);
        let front = &mut front[ipv4::HEADER_LENGTH..];
        esp::Repr { spi: self.spi.0, sequence: self.sequence as u32 }.emit(front);
        front[esp::HEADER_LENGTH..].copy_from_slice(&self.sequence.to_be_bytes());
        if is_ipv6 { protocol::IPV6 } else { protocol::IPV4 }
    }

    /// Are all sequence numbers used?
    #[inline]
    pub fn is_exhausted(&self) -> bool {
        self.sequence >= self.last_sequence()
    }

    /// Writes what is behind the IP header: UDP header if encapsulated, SPI, sequence number and IV.
    #[inline]
    fn write_esp(&self, octets: &mut [u8]) {
        let udp = if self.in_udp { udp::HEADER_LENGTH } else { 0 };
        if self.in_udp {
            // RFC 3948 section 2.1: over IPv4 the UDP checksum should be zero.
            let repr = udp::Repr {
                source_port: self.local_port,
                destination_port: self.remote_port,
                payload_length: (octets.len() - udp) as u16,
            };
            repr.emit(octets);
        }
        let (header, rest) = octets[udp..].split_at_mut(esp::HEADER_LENGTH);
        esp::Repr { spi: self.spi.0, sequence: self.sequence as u32 }.emit(header);
        rest[..IV_LENGTH].copy_from_slice(&self.sequence.to_be_bytes());
    }

    /// Encrypts what was begun on this SA, in the same octets, and writes the ICV.
    #[inline]
    pub fn seal(&self, octets: &mut [u8], Begun(at): Begun) {
        let at = usize::from(at);
        let udp = if self.in_udp { udp::HEADER_LENGTH } else { 0 };
        let (header, rest) = octets[at + udp..].split_at_mut(esp::HEADER_LENGTH);
        let (iv, rest) = rest.split_first_chunk_mut::<IV_LENGTH>().expect("as it was begun");
        let (plain, icv) = rest.split_last_chunk_mut::<ICV_LENGTH>().expect("as it was begun");
        // RFC 4106 section 3.1: the IV must never repeat under one key. The counter, which it is, doesn't.
        let nonce = nonce(self.salt, *iv);
        if self.esn {
            let additional = AdditionalData::new(header, u64::from_be_bytes(*iv), true);
            self.key.seal(&nonce, additional.octets(), plain, icv);
        } else {
            self.key.seal(&nonce, header, plain, icv);
        }
        self.fill_checksum(octets, at);
    }

    /// Moves the packet's own headers to the front, and makes them lead to ESP (RFC 4303 section 3.1.1, RFC 3948 section
    /// 3.2): how many octets they are, and what they led to. All else in them, as DSCP, ECN and TTL, is the packet's own.
    #[inline]
    fn keep_headers(&self, octets: &mut [u8], front: usize) -> (usize, u8) {
        let length = octets.len();
        // Whoever chose the SA has read the headers.
        let Ok((upper, named)) = ip::place_of_esp(&octets[front..]) else { return (0, protocol::NONE) };
        octets.copy_within(front..front + upper, 0);
        let next = if self.in_udp { protocol::UDP } else { protocol::ESP };
        (upper, ip::set_upper(octets, upper, named, next, length))
    }

    /// The outer IP header around an inner packet.
    #[inline]
    fn write_headers(&self, outer: &mut [u8], payload: &[u8]) {
        let front = outer.len();
        let inner = tunnel::Inner::of(payload);
        let at = ip::header_length(matches!(self.ends, Ends::V6(_)));
        let payload_length = (front - at + payload.len()) as u16;
        match &self.ends {
            Ends::V4(fixed) => fixed.emit(
                tunnel::outer_traffic_class(inner.traffic_class),
                self.sequence as u16,
                inner.dont_fragment,
                payload_length,
                outer,
            ),
            Ends::V6(ends) => {
                let repr = ipv6::Repr {
                    traffic_class: tunnel::outer_traffic_class(inner.traffic_class),
                    flow_label: tunnel::flow_label(self.spi),
                    next_header: if self.in_udp { protocol::UDP } else { protocol::ESP },
                    hop_limit: tunnel::TTL,
                    source: ends.0,
                    destination: ends.1,
                    payload_length,
                };
                repr.emit(outer);
            }
        }
    }

    /// RFC 8200 section 8.1: over IPv6 the UDP checksum is not optional. (RFC 6935 would let a tunnel leave it out, but
    /// the peer need not know that.)
    #[inline]
    fn fill_checksum(&self, octets: &mut [u8], at: usize) {
        if let Ends::V6(ends) = &self.ends
            && self.in_udp
        {
            udp::fill_checksum(&mut octets[at..], ends.0, ends.1);
        }
    }
}

/// Writes padding, pad length and next header before the ICV.
#[inline]
fn write_trailer(octets: &mut [u8], padding: usize, next_header: u8) {
    let Some((plain, _)) = octets.split_last_chunk_mut::<ICV_LENGTH>() else { return };
    // There are at least 8 octets, of the IV if of nothing else. Without a branch, for lengths vary.
    let Some(last) = plain.last_chunk_mut() else { return };
    let kept = u64::from_be_bytes(*last) & u64::MAX << (8 * (padding + 2));
    *last = (kept | TRAILERS[padding & 3] | u64::from(next_header)).to_be_bytes();
}
