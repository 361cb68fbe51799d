//! From outside: frames become ESP packets, their SPIs' states decide, and what opens and is within its SA's
//! selectors goes inside. In three steps over the burst, so that memory is fetched ahead of its use.

use crate::selectors::Flow;
use crate::spi_table::Known;
use crate::{ArrayVec, BURST, Counter, DropReason, ETHERNET, Engine, Frame, Output, PortId};
use spindle_abi::{Event, PolicyAction, Spi, SpiReport, Time};
use spindle_esp::{OpenFault, tunnel};
use spindle_wire::{esp, ethernet, ipv4, protocol, repair, udp};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

/// An ESP packet for us, and where it is in its frame.
#[derive(Clone, Copy)]
struct Arrival {
    spi: Spi,
    sequence: u32,
    source: SocketAddrV4,
    destination: SocketAddrV4,
    start: u16,
    end: u16,
    encapsulated: bool,
    outer_class: u8,
}

impl Arrival {
    fn report(&self, at: Time) -> SpiReport {
        let (source, destination) = (SocketAddr::V4(self.source), SocketAddr::V4(self.destination));
        SpiReport { spi: self.spi, sequence: self.sequence, source, destination, at }
    }
}

/// What a frame from outside is.
#[derive(Clone, Copy)]
enum Kind {
    Esp(Arrival, Known),
    /// In clear, to somebody else.
    Clear,
    Drop(DropReason),
}

impl Engine {
    pub(crate) fn process_outside<F: Frame>(
        &mut self,
        now: Time,
        burst: &mut ArrayVec<F, BURST>,
        out: &mut impl Output<F>,
    ) {
        let mut kinds: ArrayVec<Kind, BURST> = ArrayVec::new();
        for frame in burst.iter() {
            let kind = self.classify(frame.data());
            if let Kind::Esp(arrival, _) = kind {
                self.spis.prefetch(arrival.spi);
            }
            kinds.push(kind);
        }
        for kind in &mut kinds {
            if let Kind::Esp(arrival, known) = kind {
                *known = self.spis.lookup(arrival.spi);
                if let Known::Current(index) = *known {
                    self.sas.prefetch_inbound(index);
                }
            }
        }
        let mut detected = 0;
        for (frame, kind) in burst.drain(..).zip(kinds) {
            match kind {
                Kind::Esp(arrival, Known::Current(index)) => {
                    self.decapsulate(now, index, arrival, frame, out)
                }
                Kind::Esp(arrival, Known::Unknown) => {
                    detected += 1;
                    if !out.event(Event::UnknownSpi(arrival.report(now))) {
                        self.counters.add(Counter::NoiseLost, 1);
                    }
                    out.discard(frame, DropReason::UnknownSpi);
                }
                Kind::Esp(arrival, Known::Former(slot)) => {
                    let ends = (arrival.source, arrival.destination);
                    self.spis.note(slot, arrival.sequence, ends, now);
                    self.discard(frame, DropReason::FormerSpi, out);
                }
                Kind::Esp(_, Known::Larval) => self.discard(frame, DropReason::LarvalSpi, out),
                Kind::Esp(_, Known::Retired) => self.discard(frame, DropReason::RetiredSpi, out),
                Kind::Clear => self.clear_from_outside(frame, out),
                Kind::Drop(reason) => self.discard(frame, reason, out),
            }
        }
        self.counters.add(Counter::UnknownSpiDetected, detected);
        self.counters.drop(DropReason::UnknownSpi, detected);
    }

    #[inline]
    fn classify(&self, octets: &[u8]) -> Kind {
        let Ok(frame) = ethernet::Frame::new_checked(octets) else { return Kind::Drop(DropReason::NotIpv4) };
        if frame.ethertype() != ethernet::IPV4 {
            return Kind::Drop(DropReason::NotIpv4);
        }
        let packet = match ipv4::Packet::new_checked(frame.payload()) {
            Ok(packet) if packet.verify_checksum() => packet,
            _ => return Kind::Drop(DropReason::MalformedIpv4),
        };
        let (source, destination) = (packet.source(), packet.destination());
        if !is_unicast(source) || !is_unicast(destination) {
            return Kind::Drop(DropReason::NotUnicast);
        }
        if !self.is_local(destination) {
            return Kind::Clear;
        }
        let (mut source_port, mut destination_port) = (0, 0);
        let mut start = ETHERNET + packet.header_length();
        let mut payload = packet.payload();
        let encapsulated = packet.protocol() == protocol::UDP;
        let datagram;
        match packet.protocol() {
            protocol::ESP | protocol::UDP if packet.is_fragment() => {
                // Reassembly comes before ESP (RFC 4303 section 3.4.1), and there is none yet.
                return Kind::Drop(match packet.protocol() {
                    protocol::ESP => DropReason::EspFragment,
                    _ => DropReason::ForHost,
                });
            }
            protocol::ESP => {}
            protocol::UDP => {
                let Ok(checked) = udp::Packet::new_checked(payload) else {
                    return Kind::Drop(DropReason::MalformedEsp);
                };
                datagram = checked;
                (source_port, destination_port) = (datagram.source_port(), datagram.destination_port());
                if destination_port != self.nat_port {
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
            source: SocketAddrV4::new(source, source_port),
            destination: SocketAddrV4::new(destination, destination_port),
            start: start as u16,
            end: (start + payload.len()).min(usize::from(u16::MAX)) as u16,
            encapsulated,
            outer_class: packet.traffic_class(),
        };
        Kind::Esp(arrival, Known::Unknown)
    }

    /// RFC 4301 section 5.2 and RFC 4303 section 3.4: replay window, ICV, then everything that only an authentic
    /// packet can say.
    #[inline]
    fn decapsulate<F: Frame>(
        &mut self,
        now: Time,
        index: u32,
        arrival: Arrival,
        mut frame: F,
        out: &mut impl Output<F>,
    ) {
        match self.open(now, index, &arrival, frame.data_mut(), out) {
            Err(reason) => self.discard(frame, reason, out),
            Ok((start, length, destination)) => {
                frame.shrink_front(start - ETHERNET);
                frame.truncate(ETHERNET + length);
                self.counters.add(Counter::Decapsulated, 1);
                self.send(PortId::Inside, destination, frame, out);
            }
        }
    }

    /// Opens the packet and checks what is in it: where the inner packet starts, its length and destination.
    fn open<F: Frame>(
        &mut self,
        now: Time,
        index: u32,
        arrival: &Arrival,
        octets: &mut [u8],
        out: &mut impl Output<F>,
    ) -> Result<(usize, usize, Ipv4Addr), DropReason> {
        let esp_start = usize::from(arrival.start);
        let esp_octets =
            octets.get_mut(esp_start..usize::from(arrival.end)).ok_or(DropReason::MalformedEsp)?;
        let Some(inbound) = self.sas.inbound(index) else { return Err(DropReason::RetiredSpi) };
        if inbound.usage.expired {
            return Err(DropReason::InboundExpired);
        }
        let opened = inbound.sa.open(esp_octets).map_err(|fault| match fault {
            OpenFault::Truncated => DropReason::MalformedEsp,
            OpenFault::Replayed => DropReason::Replayed,
            OpenFault::NotAuthentic => DropReason::AuthenticationFailed,
            OpenFault::Padding => DropReason::MalformedInner,
        })?;
        // The packet is authentic. RFC 7296 section 2.23: both forms must be processed at all times.
        if arrival.encapsulated != inbound.encapsulated {
            self.counters.add(Counter::OtherEncapsulation, 1);
        }
        let first = std::mem::take(&mut inbound.report_first);
        let checked = match opened.next_header {
            protocol::IPV4 => {
                let payload = &mut esp_octets[opened.payload.clone()];
                check_inner(payload, arrival.outer_class, |flow| inbound.selectors.matches(flow))
            }
            // RFC 4303 section 2.6: dummies are discarded without prejudice.
            protocol::NONE => Err(DropReason::DummyPacket),
            _ => Err(DropReason::MalformedInner),
        };
        let encapsulated = inbound.encapsulated;
        let passed = matches!(checked, Ok(_) | Err(DropReason::DummyPacket));
        let octets_passed = checked.map_or(0, |(length, _)| length);
        let limit = if passed { inbound.usage.count(now, octets_passed) } else { None };
        if first {
            self.tell(Event::FirstInbound { spi: arrival.spi }, out);
        }
        if let Some(limit) = limit {
            self.tell_limit(index, limit, out);
        }
        if passed {
            self.sas.mark_changed(index);
        }
        let (length, destination) = checked?;
        let start = esp_start + opened.payload.start;
        let inner = &mut octets[start..start + length];
        self.leave(inner, Some(encapsulated))?;
        Ok((start, length, destination))
    }

    /// A hop on a packet's way: one less to live; and if its connection runs through a tunnel, SYNs clamped.
    #[inline]
    pub(crate) fn leave(&mut self, inner: &mut [u8], encapsulated: Option<bool>) -> Result<(), DropReason> {
        let mut packet = ipv4::Packet::new_checked(&mut *inner).map_err(|_| DropReason::MalformedInner)?;
        if packet.ttl() <= 1 {
            return Err(DropReason::TtlExpired);
        }
        packet.decrement_ttl();
        if self.clamp_mss
            && let Some(encapsulated) = encapsulated
            && repair::clamp_mss(inner, self.mss[usize::from(encapsulated)])
        {
            self.counters.add(Counter::MssClamped, 1);
        }
        Ok(())
    }

    /// In clear and not to us: only by a BYPASS policy (RFC 4301 section 5.2, step 3b).
    fn clear_from_outside<F: Frame>(&mut self, mut frame: F, out: &mut impl Output<F>) {
        match self.bypass_from_outside(frame.data_mut()) {
            Err(reason) => self.discard(frame, reason, out),
            Ok((length, destination)) => {
                frame.truncate(ETHERNET + length);
                self.counters.add(Counter::Bypassed, 1);
                self.send(PortId::Inside, destination, frame, out);
            }
        }
    }

    fn bypass_from_outside(&mut self, octets: &mut [u8]) -> Result<(usize, Ipv4Addr), DropReason> {
        let packet = ipv4::Packet::new_checked(&octets[ETHERNET..]).map_err(|_| DropReason::MalformedIpv4)?;
        let policy = self.policies.find(&Flow::of(&packet).reversed());
        if policy.is_none_or(|policy| policy.action != PolicyAction::Bypass) {
            return Err(DropReason::CleartextFromOutside);
        }
        let (length, destination) = (packet.total_length(), packet.destination());
        let inner = &mut octets[ETHERNET..ETHERNET + length];
        if self.complete_checksums[PortId::Outside as usize] && repair::complete_checksum(inner) {
            self.counters.add(Counter::ChecksumsCompleted, 1);
        }
        self.leave(inner, None)?;
        Ok((length, destination))
    }
}

/// Is the decrypted payload an IPv4 packet that its SA may carry? Its length and destination.
#[inline]
fn check_inner(
    payload: &mut [u8],
    outer_class: u8,
    may_carry: impl Fn(&Flow) -> bool,
) -> Result<(usize, Ipv4Addr), DropReason> {
    let mut packet = match ipv4::Packet::new_checked(payload) {
        Ok(packet) if packet.verify_checksum() => packet,
        _ => return Err(DropReason::MalformedInner),
    };
    // RFC 4301 section 5.2, step 4: the packet must match the selectors of the SA on which it came.
    if !may_carry(&Flow::of(&packet).reversed()) {
        return Err(DropReason::SelectorMismatch);
    }
    if !is_unicast(packet.destination()) {
        return Err(DropReason::NotUnicast);
    }
    let class = packet.traffic_class();
    let new = tunnel::inner_traffic_class(class, outer_class).ok_or(DropReason::EcnMismatch)?;
    if new != class {
        packet.set_traffic_class(new);
    }
    Ok((packet.total_length(), packet.destination()))
}

/// One host's address on a network: neither multicast, nor broadcast, "this network" or loopback (RFC 1122 section
/// 3.2.1.3).
#[inline]
pub(crate) fn is_unicast(address: Ipv4Addr) -> bool {
    !address.is_multicast() && !address.is_broadcast() && !matches!(address.octets()[0], 0 | 127)
}
