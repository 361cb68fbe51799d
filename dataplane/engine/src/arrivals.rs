//! Frames from outside, and what of each is known so far: whether it is ESP for us, then what was in it. Nothing here
//! changes a frame or a table.

use crate::spi_table::{End, Known};
use crate::{DropReason, ETHERNET, Engine};
use spindle_abi::{Spi, SpiReport, Time};
use spindle_wire::ip::{self, Head};
use spindle_wire::{checksum, esp, ethernet, icmpv4, icmpv6, ipv4, ipv6, protocol, udp};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// An ESP packet for us, and where it is in its frame.
#[derive(Clone, Copy)]
pub(crate) struct Arrival {
    pub(crate) spi: Spi,
    pub(crate) sequence: u32,
    pub(crate) start: u16,
    pub(crate) end: u16,
    pub(crate) encapsulated: bool,
    pub(crate) is_ipv6: bool,
    pub(crate) outer_class: u8,
}

impl Arrival {
    /// Whence and whereto: `octets` are its frame's, as they came.
    pub(crate) fn ends(&self, octets: &[u8]) -> (End, End) {
        let packet = &octets[ETHERNET..];
        let nobody = || (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into());
        let (source, destination) = match self.is_ipv6 {
            true => ipv6::Packet::new_checked(packet)
                .map_or_else(|_| nobody(), |packet| (packet.source().into(), packet.destination().into())),
            false => ipv4::Packet::new_checked(packet)
                .map_or_else(|_| nobody(), |packet| (packet.source().into(), packet.destination().into())),
        };
        let ports = match udp::Packet::new_checked(&octets[usize::from(self.start) - udp::HEADER_LENGTH..]) {
            Ok(datagram) if self.encapsulated => (datagram.source_port(), datagram.destination_port()),
            _ => (0, 0),
        };
        ((source, ports.0), (destination, ports.1))
    }

    pub(crate) fn report(&self, octets: &[u8], at: Time) -> SpiReport {
        let (source, destination) = self.ends(octets);
        let (source, destination) = (SocketAddr::from(source), SocketAddr::from(destination));
        SpiReport { spi: self.spi, sequence: self.sequence, source, destination, at }
    }
}

/// What was in an ESP packet: where it starts in the frame, its length, and where it goes.
#[derive(Clone, Copy)]
pub(crate) struct Opened {
    pub(crate) start: u16,
    pub(crate) length: u16,
    pub(crate) onward: Onward,
}

#[derive(Clone, Copy)]
pub(crate) enum Onward {
    To(IpAddr),
    Host(u16),
}

/// What a frame from outside is.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Esp(Arrival, Known),
    /// It was ESP; in it is nothing that wants to be looked at.
    Plain {
        start: u16,
        length: u16,
        destination: Ipv4Addr,
    },
    /// It was ESP.
    Opened(Opened),
    /// To be made whole first.
    Fragment,
    /// An ICMP error to us.
    Icmp,
    /// In clear, to somebody else.
    Clear,
    Drop(DropReason),
}

// A burst of them is read and written once a step.
const _: () = assert!(size_of::<Kind>() <= 32);

impl Engine {
    /// What most frames are: ESP without UDP around it, over IPv4 without options, to us. `None`: see [`Engine::classify_any`].
    /// `ours` are the addresses of the latest one, or 0.
    #[inline(always)]
    fn classify_plain(&self, octets: &[u8], ours: &mut u64) -> Option<Arrival> {
        const START: usize = ETHERNET + ipv4::HEADER_LENGTH;
        let front: &[u8; START + esp::HEADER_LENGTH] = octets.first_chunk()?;
        let (ethernet, packet) = front.split_first_chunk::<ETHERNET>()?;
        let (header, esp) = packet.split_first_chunk::<{ ipv4::HEADER_LENGTH }>()?;
        let [.., high, low] = *ethernet;
        let [first, outer_class, l, m, _, _, f, g, _, protocol, _, _, addresses @ ..] = *header;
        let end = ETHERNET + usize::from(u16::from_be_bytes([l, m]));
        let is_whole = u16::from_be_bytes([f, g]) & 0x3fff == 0;
        let is_plain = u16::from_be_bytes([high, low]) == ethernet::IPV4 && first == 0x45 && is_whole;
        let fits = (front.len()..=octets.len().min(usize::from(u16::MAX))).contains(&end);
        if !is_plain || protocol != protocol::ESP || !fits || !checksum::is_right(header) {
            return None;
        }
        if u64::from_ne_bytes(addresses) != *ours {
            let [a, b, c, d, s, t, u, v] = addresses;
            let (source, destination) = (Ipv4Addr::new(a, b, c, d).into(), Ipv4Addr::new(s, t, u, v).into());
            if !is_unicast(source) || !is_unicast(destination) || !self.is_local(destination) {
                return None;
            }
            *ours = u64::from_ne_bytes(addresses);
        }
        let [a, b, c, d, e, f, g, h] = *esp.first_chunk()?;
        let (spi, sequence) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
        let (start, end) = (START as u16, end as u16);
        let arrival =
            Arrival { spi: Spi(spi), sequence, start, end, encapsulated: false, is_ipv6: false, outer_class };
        (spi >= 256).then_some(arrival)
    }

    #[inline(always)]
    pub(crate) fn classify(&self, octets: &[u8], ours: &mut u64) -> Kind {
        match self.classify_plain(octets, ours) {
            Some(arrival) => Kind::Esp(arrival, Known::Unknown),
            None => self.classify_any(octets),
        }
    }

    #[inline(never)]
    pub(crate) fn classify_any(&self, octets: &[u8]) -> Kind {
        let (head, packet) = match head(octets) {
            Ok(read) => read,
            Err(reason) => return Kind::Drop(reason),
        };
        if !is_unicast(head.source) || !is_unicast(head.destination) {
            return Kind::Drop(DropReason::NotUnicast);
        }
        if !self.is_local(head.destination) {
            return Kind::Clear;
        }
        let mut start = ETHERNET + head.upper;
        let mut payload = head.payload(packet);
        let encapsulated = head.protocol == protocol::UDP;
        let datagram;
        match head.protocol {
            // Reassembly comes before ESP (RFC 4303 section 3.4.1).
            protocol::ESP | protocol::UDP if head.is_fragment() => return Kind::Fragment,
            protocol::ICMP | protocol::ICMPV6 if is_icmp_error(&head, payload) => return Kind::Icmp,
            protocol::ESP => {}
            protocol::UDP => {
                // Its checksum is not looked at: the ICV says more. RFC 3948 section 2.1 wants zero to be taken over IPv4,
                // RFC 6935 section 5 lets a tunnel's port take it over IPv6.
                let Ok(checked) = udp::Packet::new_checked(payload) else {
                    return Kind::Drop(DropReason::MalformedEsp);
                };
                datagram = checked;
                if datagram.destination_port() != self.nat_port {
                    return Kind::Drop(DropReason::ForHost);
                }
                payload = datagram.payload();
                start += udp::HEADER_LENGTH;
                match esp::InUdp::of(payload) {
                    esp::InUdp::Esp => {}
                    esp::InUdp::NatKeepalive => return Kind::Drop(DropReason::NatKeepalive),
                    esp::InUdp::Ike => return Kind::Drop(DropReason::ForHost),
                    esp::InUdp::Other => return Kind::Drop(DropReason::MalformedEsp),
                }
            }
            _ => return Kind::Drop(DropReason::ForHost),
        }
        let header = match esp::Packet::new_checked(payload) {
            // SPIs 1 to 255 are reserved, 0 is local use (RFC 4303 section 2.1).
            Ok(header) if header.spi() >= 256 => header,
            _ => return Kind::Drop(DropReason::MalformedEsp),
        };
        let arrival = Arrival {
            spi: Spi(header.spi()),
            sequence: header.sequence(),
            start: start as u16,
            end: (start + payload.len()).min(usize::from(u16::MAX)) as u16,
            encapsulated,
            is_ipv6: head.source.is_ipv6(),
            outer_class: head.traffic_class,
        };
        Kind::Esp(arrival, Known::Unknown)
    }
}

/// The IP packet in a frame, and what its headers say.
#[inline]
pub(crate) fn head(octets: &[u8]) -> Result<(Head, &[u8]), DropReason> {
    let frame = ethernet::Frame::new_checked(octets).map_err(|_| DropReason::NotIp)?;
    let version = match frame.ethertype() {
        ethernet::IPV4 => 4,
        ethernet::IPV6 => 6,
        _ => return Err(DropReason::NotIp),
    };
    let packet = &octets[ETHERNET..];
    match Head::parse(packet) {
        Ok(head) if ip::version(packet) == Some(version) => Ok((head, packet)),
        _ => Err(DropReason::MalformedIp),
    }
}

/// An ICMP message of either version that tells of an error?
fn is_icmp_error(head: &Head, payload: &[u8]) -> bool {
    match head.protocol {
        protocol::ICMP => icmpv4::Packet::new_checked(payload).is_ok_and(|icmp| icmp.is_error()),
        // Those below 128 are errors (RFC 4443 section 2.1).
        _ => icmpv6::Packet::new_checked(payload).is_ok_and(|icmp| icmp.message_type() < 128),
    }
}

/// One host's address on a network: neither multicast, nor broadcast, "this network" or loopback (RFC 1122 section
/// 3.2.1.3); nor, of IPv6, unspecified, link-local or IPv4-mapped, which no router forwards (RFC 4291 section 2.5).
#[inline]
pub(crate) fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_unicast_v4(address),
        IpAddr::V6(address) => {
            let not_forwarded = address == Ipv6Addr::UNSPECIFIED || address == Ipv6Addr::LOCALHOST;
            !not_forwarded
                && !address.is_multicast()
                && !address.is_unicast_link_local()
                && address.to_ipv4_mapped().is_none()
        }
    }
}

#[inline(always)]
pub(crate) fn is_unicast_v4(address: Ipv4Addr) -> bool {
    // Without branches.
    let [first, ..] = address.octets();
    !address.is_multicast() & !address.is_broadcast() & (first != 0) & (first != 127)
}
