//! From outside: frames become ESP packets, their SPIs' states decide, and what opens and is within its SA's
//! selectors goes inside. In steps over the burst, so that memory is fetched ahead of its use: what each packet is; then its
//! SPI's state, its SA and its plaintext, each a few packets ahead of the next; then all leave in the order in which they came.

use crate::arrivals::{Arrival, Kind, Onward, Opened, head, is_unicast, is_unicast_v4};
use crate::flows::{Key, Plain};
use crate::frame::fetch_payload;
use crate::interfaces::INSIDE;
use crate::policies::NO_SA;
use crate::sas::{Limit, Owed};
use crate::selectors::Flow;
use crate::spi_table::Known;
use crate::{ArrayVec, BURST, Counter, DropReason, ETHERNET, Engine, Frame, NextHop, Origin, Output, PortId};
use spindle_abi::{Event, PolicyAction, Spi, Time};
use spindle_esp::{Encapsulation, OpenFault, transport, tunnel};
use spindle_wire::ip::{self, Head};
use spindle_wire::{ipv4, protocol, repair, tcp};
use std::net::IpAddr;
use std::ops::Range;

/// So many packets before one's turn its SA is fetched, and once more as many before, what leads there.
const AHEAD: usize = 6;

/// A flow that an SA carries, seen from here. Nothing that decides it changes within a burst, so the next packet of it is
/// not asked again.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Admitted {
    index: u32,
    key: Key,
}

impl Admitted {
    /// On no SA.
    const NONE: Admitted = Admitted { index: NO_SA, key: Key::NONE };
}

/// The way to the latest destination inside.
struct WayInside {
    destination: IpAddr,
    hop: NextHop,
    /// Octets of the longest frame that fits.
    limit: usize,
}

impl Engine {
    pub(crate) fn process_outside<F: Frame>(
        &mut self,
        now: Time,
        burst: &mut ArrayVec<F, BURST>,
        out: &mut impl Output<F>,
    ) {
        // Of what is the same as of the packet before nothing is asked again: bursts are made of runs.
        let mut kinds: ArrayVec<Kind, BURST> = ArrayVec::new();
        let (mut ours, mut last) = (0, Spi(0));
        for frame in burst.iter() {
            let kind = self.classify(frame.data(), &mut ours);
            if let Kind::Esp(Arrival { spi, .. }, _) = kind
                && spi != last
            {
                self.spis.prefetch(spi);
                last = spi;
            }
            kinds.push(kind);
        }
        // While one is opened, the memory for those behind it is on its way.
        let (mut known_last, mut fetched_last) = ((Spi(0), Known::Unknown), None);
        let (mut frames, mut in_turn, mut admitted) = (burst.iter_mut(), false, Admitted::NONE);
        for at in 0..kinds.len() + 2 * AHEAD {
            if let Some(Kind::Esp(Arrival { spi, .. }, known)) = kinds.get_mut(at) {
                if *spi != known_last.0 {
                    known_last = (*spi, self.spis.lookup(*spi));
                    if let Known::Current(index) = known_last.1 {
                        self.sas.prefetch(index);
                        self.region.iter().for_each(|region| region.prefetch(index));
                    }
                }
                *known = known_last.1;
            }
            let Some(next) = at.checked_sub(AHEAD) else { continue };
            if let Some(Kind::Esp(arrival, Known::Current(index))) = kinds.get(next)
                && fetched_last != Some(*index)
            {
                self.sas.prefetch_behind_inbound(*index, arrival.sequence);
                fetched_last = Some(*index);
            }
            let Some(kind) = next.checked_sub(AHEAD).and_then(|now| kinds.get_mut(now)) else { continue };
            let Some(frame) = frames.next() else { break };
            // What comes after these is opened when its turn has come, for they may change what is found.
            in_turn |= matches!(kind, Kind::Fragment | Kind::Icmp);
            if let (false, Kind::Esp(arrival, Known::Current(index))) = (in_turn, &*kind) {
                frames.as_slice().first().into_iter().for_each(fetch_payload);
                *kind = self.open(now, *index, arrival, &mut admitted, frame.data_mut(), out);
            }
        }
        let (mut detected, mut lately) = (0, None);
        for (frame, kind) in burst.drain(..).zip(kinds) {
            match kind {
                Kind::Plain { start, length, destination } => {
                    self.pass_on((start, length), destination.into(), &mut lately, frame, out);
                }
                Kind::Fragment => {
                    let Some(whole) = self.reassemble(now, frame, out) else { continue };
                    out.made(Origin::Outside, &whole);
                    let mut kind = self.classify_any(whole.data());
                    if let Kind::Esp(arrival, known) = &mut kind {
                        *known = self.spis.lookup(arrival.spi);
                    }
                    self.judge(now, kind, whole, &mut detected, out);
                }
                kind => self.judge(now, kind, frame, &mut detected, out),
            }
        }
        self.counters.add(Counter::UnknownSpiDetected, detected);
        self.counters.drop(DropReason::UnknownSpi, detected);
    }

    /// Gives a whole packet its verdict. Those on unknown SPIs are counted by the caller.
    #[inline]
    fn judge<F: Frame>(
        &mut self,
        now: Time,
        kind: Kind,
        mut frame: F,
        detected: &mut u64,
        out: &mut impl Output<F>,
    ) {
        match kind {
            Kind::Esp(arrival, Known::Current(index)) => {
                let opened = self.open_late(now, index, &arrival, frame.data_mut(), out);
                self.pass_on_late(opened, frame, out);
            }
            Kind::Plain { .. } | Kind::Opened(_) => self.pass_on_late(kind, frame, out),
            Kind::Esp(arrival, Known::Unknown) => {
                *detected += 1;
                if !out.event(Event::UnknownSpi(arrival.report(frame.data(), now))) {
                    self.counters.add(Counter::NoiseLost, 1);
                }
                out.discard(frame, DropReason::UnknownSpi);
            }
            Kind::Esp(arrival, Known::Former(slot)) => {
                let ends = arrival.ends(frame.data());
                self.spis.note(slot, arrival.sequence, ends, now);
                self.discard(frame, DropReason::FormerSpi, out);
            }
            Kind::Esp(_, Known::Larval) => self.discard(frame, DropReason::LarvalSpi, out),
            Kind::Esp(_, Known::Retired) => self.discard(frame, DropReason::RetiredSpi, out),
            Kind::Esp(_, Known::Elsewhere(worker)) => self.hand_over(worker, Origin::Outside, frame, out),
            Kind::Icmp => match self.hear_icmp(now, frame.data()) {
                Ok(reason) => self.discard(frame, reason, out),
                Err(worker) => self.hand_over(worker, Origin::Outside, frame, out),
            },
            Kind::Clear => self.clear_from_outside(now, frame, out),
            Kind::Drop(reason) => self.discard(frame, reason, out),
            // What was made whole is none.
            Kind::Fragment => self.discard(frame, DropReason::FragmentInvalid, out),
        }
    }

    /// As [`Engine::pass_on`], of anything that was opened.
    #[inline(never)]
    fn pass_on_late<F: Frame>(&mut self, kind: Kind, mut frame: F, out: &mut impl Output<F>) {
        match kind {
            Kind::Plain { start, length, destination } => {
                self.pass_on((start, length), destination.into(), &mut None, frame, out);
            }
            Kind::Opened(Opened { start, length, onward: Onward::To(destination) }) => {
                self.pass_on((start, length), destination, &mut None, frame, out);
            }
            Kind::Opened(Opened { start, length, onward: Onward::Host(interface) }) => {
                self.strip(start, length, &mut frame);
                self.send_to_host(interface, frame, out);
            }
            Kind::Drop(reason) => self.discard(frame, reason, out),
            _ => unreachable!("nothing that was opened"),
        }
    }

    /// Leaves what was in an ESP packet, behind an Ethernet header.
    #[inline(always)]
    fn strip<F: Frame>(&mut self, start: u16, length: u16, frame: &mut F) {
        frame.shrink_front(usize::from(start) - ETHERNET);
        frame.truncate(ETHERNET + usize::from(length));
        self.counters.add(Counter::Decapsulated, 1);
    }

    /// Sends what was in an ESP packet, and where, on its way inside. `lately` is the way that the latest one took.
    #[inline(always)]
    fn pass_on<F: Frame>(
        &mut self,
        (start, length): (u16, u16),
        destination: IpAddr,
        lately: &mut Option<WayInside>,
        mut frame: F,
        out: &mut impl Output<F>,
    ) {
        self.strip(start, length, &mut frame);
        if lately.as_ref().is_none_or(|way| way.destination != destination) {
            *lately = self.way_inside(destination);
        }
        match lately {
            Some(way) if frame.data().len() <= way.limit => {
                way.hop.emit(destination.is_ipv6(), frame.data_mut());
                self.counters.add(Counter::DeliveredInside, 1);
                out.transmit(PortId::Inside, frame);
            }
            _ => self.send(PortId::Inside, destination, frame, out),
        }
    }

    /// How packets for this destination leave inside. `None`: [`Engine::send`] says what becomes of them.
    #[inline]
    fn way_inside(&mut self, destination: IpAddr) -> Option<WayInside> {
        if self.inside_is_host || self.is_local(destination) {
            return None;
        }
        let hop = self.next_hops.find(destination).filter(|hop| hop.port == PortId::Inside)?;
        Some(WayInside { destination, hop, limit: self.longest_frame(PortId::Inside, hop) })
    }

    /// As [`Engine::open`], of a packet whose turn has come.
    #[inline(never)]
    fn open_late<F: Frame>(
        &mut self,
        now: Time,
        index: u32,
        arrival: &Arrival,
        octets: &mut [u8],
        out: &mut impl Output<F>,
    ) -> Kind {
        let mut admitted = Admitted::NONE;
        self.open(now, index, arrival, &mut admitted, octets, out)
    }

    /// Opens the packet and checks what is in it. RFC 4301 section 5.2 and RFC 4303 section 3.4: replay window, ICV, then
    /// everything that only an authentic packet can say. `admitted` is what the latest one was.
    #[inline(always)]
    fn open<F: Frame>(
        &mut self,
        now: Time,
        index: u32,
        arrival: &Arrival,
        admitted: &mut Admitted,
        octets: &mut [u8],
        out: &mut impl Output<F>,
    ) -> Kind {
        let esp_start = usize::from(arrival.start);
        let Some(esp_octets) = octets.get_mut(esp_start..usize::from(arrival.end)) else {
            return Kind::Drop(DropReason::MalformedEsp);
        };
        let Some(inbound) = self.sas.inbound(index) else { return Kind::Drop(DropReason::RetiredSpi) };
        if inbound.usage.is_expired() {
            return Kind::Drop(DropReason::InboundExpired);
        }
        let top = inbound.sa.sequence();
        let opened = match inbound.sa.open(esp_octets) {
            Ok(opened) => opened,
            Err(OpenFault::Truncated) => return Kind::Drop(DropReason::MalformedEsp),
            Err(OpenFault::Replayed) => return Kind::Drop(DropReason::Replayed),
            Err(OpenFault::NotAuthentic) => return Kind::Drop(DropReason::AuthenticationFailed),
            Err(OpenFault::Padding) => return Kind::Drop(DropReason::MalformedInner),
        };
        // The packet is authentic, and marked where that outlives us before it goes anywhere.
        if let Some(region) = &self.region {
            region.mark(index, inbound.sa.window(), top, opened.sequence);
        }
        // RFC 7296 section 2.23: both forms must be processed at all times.
        if arrival.encapsulated != inbound.encapsulated {
            self.counters.add(Counter::OtherEncapsulation, 1);
        }
        let first = std::mem::take(&mut inbound.report_first);
        let (interface, in_transport) = (inbound.interface, inbound.in_transport);
        let around = Encapsulation { is_ipv6: arrival.is_ipv6, in_udp: inbound.encapsulated, in_transport };
        let payload = esp_start + opened.payload.start..esp_start + opened.payload.end;
        // What most are, and nothing is wrong with: the others are looked at more closely.
        if opened.next_header == protocol::IPV4
            && !in_transport
            && interface == INSIDE
            && !self.inside_is_host
        {
            let packet = &mut octets[payload.clone()];
            let plain = Plain::read(packet).filter(|plain| !self.clamp_mss || plain.is_no_syn(packet));
            if let Some(plain) = plain {
                let of_this = Admitted { index, key: plain.of_inside(INSIDE) };
                let (source, destination) = plain.ends();
                if *admitted != of_this && is_unicast_v4(source) && is_unicast_v4(destination) {
                    let flow = plain.reversed_flow();
                    if inbound.selectors.matches_v4(&flow) && self.policies.admits(&flow).is_ok() {
                        *admitted = of_this;
                        self.next_hops.prefetch(destination.into());
                    }
                }
                let class = tunnel::inner_traffic_class(plain.traffic_class, arrival.outer_class);
                if plain.ttl > 1 && class == Some(plain.traffic_class) && *admitted == of_this {
                    ipv4::decrement_ttl(packet);
                    let limit = inbound.usage.count(now, plain.length);
                    let is_changed = inbound.is_changed;
                    self.tell_carried(index, arrival.spi, first, limit, out);
                    if !is_changed {
                        self.sas.mark_changed(index);
                    }
                    // Both are less than where ESP ends.
                    let (start, length) = (payload.start as u16, plain.length as u16);
                    return Kind::Plain { start, length, destination };
                }
            }
        }
        self.check_opened(now, index, arrival, (payload, opened.next_header, around), first, octets, out)
            .map_or_else(Kind::Drop, Kind::Opened)
    }

    /// Tells that an SA's first packet came, or that it came to a limit.
    #[inline]
    fn tell_carried<F: Frame>(
        &mut self,
        index: u32,
        spi: Spi,
        first: bool,
        limit: Option<Limit>,
        out: &mut impl Output<F>,
    ) {
        if first {
            self.tell(index, Owed::First, Event::FirstInbound { spi }, out);
        }
        if let Some(limit) = limit {
            self.tell_limit(index, limit, out);
        }
    }

    /// Checks what was in the packet, which is authentic.
    #[allow(clippy::too_many_arguments, reason = "what is known of one packet")]
    #[inline(never)]
    fn check_opened<F: Frame>(
        &mut self,
        now: Time,
        index: u32,
        arrival: &Arrival,
        (payload, next_header, around): (Range<usize>, u8, Encapsulation),
        first: bool,
        octets: &mut [u8],
        out: &mut impl Output<F>,
    ) -> Result<Opened, DropReason> {
        let Some(inbound) = self.sas.inbound(index) else { return Err(DropReason::RetiredSpi) };
        let (interface, in_transport) = (inbound.interface, inbound.in_transport);
        let found = find_inner(octets, payload, next_header, around);
        let checked = found.clone().and_then(|(inner, is_ipv6)| {
            let policies = Some(&self.policies).filter(|_| interface == INSIDE);
            let may_carry = |flow: &Flow| {
                inbound.selectors.carry(flow)?;
                // Those of virtual interfaces all protect.
                policies.map_or(Ok(()), |policies| policies.admits(flow))
            };
            check_inner(&mut octets[inner], is_ipv6, arrival.outer_class, interface != INSIDE, may_carry)
        });
        // RFC 4303 section 3.3.4: transport mode carries no fragments.
        let checked = match checked {
            Ok(head) if in_transport && head.is_fragment() => Err(DropReason::FragmentInTransport),
            checked => checked,
        };
        let passed = matches!(checked, Ok(_) | Err(DropReason::DummyPacket));
        let octets_passed = checked.map_or(0, |head| head.length);
        let limit = if passed { inbound.usage.count(now, octets_passed) } else { None };
        self.tell_carried(index, arrival.spi, first, limit, out);
        if passed {
            self.sas.mark_changed(index);
        }
        let (head, start) = (checked?, found?.0.start);
        // A NAT may have changed the addresses; that the rest is as it was sent, the ICV says.
        if in_transport && around.in_udp {
            repair::renew_checksum(&head, &mut octets[start..start + head.length]);
        }
        // The MSS in a SYN that came limits what goes back.
        let inner = &octets[start..start + head.length];
        let back = (self.clamp_mss && repair::is_syn(&head, inner))
            .then(|| self.flow_limit(now, interface, &Flow::of(&head, inner).reversed(), around));
        self.leave(interface, &head, &mut octets[start..start + head.length], back)?;
        let onward = match interface {
            INSIDE => {
                self.next_hops.prefetch(head.destination);
                Onward::To(head.destination)
            }
            interface => Onward::Host(interface),
        };
        // Both are less than where ESP ends.
        Ok(Opened { start: start as u16, length: head.length as u16, onward })
    }

    /// A hop on a packet's way: one less to live; and if its connection runs through a tunnel, which takes packets of
    /// so many octets, SYNs clamped. Where the host is the router, the hop is counted there, and none for what is its own
    /// (RFC 4301 section 5.1.2.1, note 3).
    #[inline]
    pub(crate) fn leave(
        &mut self,
        interface: u16,
        head: &Head,
        inner: &mut [u8],
        fits: Option<usize>,
    ) -> Result<(), DropReason> {
        if !self.is_host(interface) && !head.decrement_hop_limit(inner) {
            return Err(DropReason::TtlExpired);
        }
        if self.clamp_mss
            && let Some(fits) = fits
        {
            let headers = ip::header_length(head.source.is_ipv6()) + tcp::HEADER_LENGTH;
            if repair::clamp_mss(head, inner, fits.saturating_sub(headers) as u16) {
                self.counters.add(Counter::MssClamped, 1);
            }
        }
        Ok(())
    }

    /// In clear and not to us: only by a BYPASS policy (RFC 4301 section 5.2, step 3b).
    fn clear_from_outside<F: Frame>(&mut self, now: Time, mut frame: F, out: &mut impl Output<F>) {
        match self.bypass_from_outside(now, frame.data_mut()) {
            Err(reason) => self.discard(frame, reason, out),
            Ok((length, destination)) => {
                frame.truncate(ETHERNET + length);
                self.counters.add(Counter::Bypassed, 1);
                self.send(PortId::Inside, destination, frame, out);
            }
        }
    }

    fn bypass_from_outside(&mut self, now: Time, octets: &mut [u8]) -> Result<(usize, IpAddr), DropReason> {
        let (head, packet) = head(octets)?;
        let place = self.policies.find(&self.flow(now, PortId::Outside, &head, packet))?;
        match place.map(|place| self.policies.action(place)) {
            Some(PolicyAction::Bypass) => self.note_passing(now, &head, packet),
            Some(PolicyAction::Discard) => return Err(DropReason::PolicyDiscard),
            Some(PolicyAction::Protect) | None => return Err(DropReason::CleartextFromOutside),
        }
        let inner = &mut octets[ETHERNET..ETHERNET + head.length];
        if self.complete_checksums[PortId::Outside as usize] && repair::complete_checksum(&head, inner) {
            self.counters.add(Counter::ChecksumsCompleted, 1);
        }
        self.leave(INSIDE, &head, inner, None)?;
        Ok((head.length, head.destination))
    }
}

/// Where in the frame the packet that was in ESP lies, in transport mode made again; and whether it must be IPv6.
#[inline]
fn find_inner(
    octets: &mut [u8],
    payload: Range<usize>,
    next_header: u8,
    around: Encapsulation,
) -> Result<(Range<usize>, bool), DropReason> {
    match next_header {
        // RFC 4303 section 2.6: dummies are discarded without prejudice.
        protocol::NONE => Err(DropReason::DummyPacket),
        _ if around.in_transport => {
            let payload = payload.start - ETHERNET..payload.end - ETHERNET;
            let packet = transport::rebuild(&mut octets[ETHERNET..], payload, next_header)
                .map_err(|_| DropReason::MalformedInner)?;
            Ok((ETHERNET + packet.start..ETHERNET + packet.end, around.is_ipv6))
        }
        protocol::IPV4 | protocol::IPV6 => Ok((payload, next_header == protocol::IPV6)),
        _ => Err(DropReason::MalformedInner),
    }
}

/// Is the decrypted payload a packet of the version that the trailer says (RFC 4303 section 2.6), and one that its SA
/// may carry? Multicast is for virtual interfaces alone.
#[inline]
fn check_inner(
    payload: &mut [u8],
    is_ipv6: bool,
    outer_class: u8,
    multicast: bool,
    may_carry: impl Fn(&Flow) -> Result<(), DropReason>,
) -> Result<Head, DropReason> {
    let head = match Head::parse(payload) {
        Ok(head) if head.source.is_ipv6() == is_ipv6 => head,
        _ => return Err(DropReason::MalformedInner),
    };
    // RFC 4301 section 5.2, step 4: the packet must match the selectors of the SA on which it came.
    may_carry(&Flow::of(&head, payload).reversed())?;
    let to_many = multicast && head.destination.is_multicast();
    if !is_unicast(head.source) || !(is_unicast(head.destination) || to_many) {
        return Err(DropReason::NotUnicast);
    }
    let class = head.traffic_class;
    let new = tunnel::inner_traffic_class(class, outer_class).ok_or(DropReason::EcnMismatch)?;
    if new != class {
        ip::set_traffic_class(payload, new).map_err(|_| DropReason::MalformedInner)?;
    }
    Ok(head)
}
