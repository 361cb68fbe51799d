//! From inside: the ordered policies decide, and what is to be protected goes into the latest SA of its policy.

use crate::inbound::is_unicast;
use crate::sas::Limit;
use crate::selectors::Flow;
use crate::{ArrayVec, BURST, Counter, DropReason, ETHERNET, Engine, Frame, Output, PortId};
use spindle_abi::{Event, PolicyAction, Time};
use spindle_esp::{back_length, front_length, inner_limit};
use spindle_wire::{ethernet, icmpv4, ipv4, protocol, repair};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

/// ACQUIREs of one policy at most once in this time.
const ACQUIRE_INTERVAL: Duration = Duration::from_secs(1);
/// ICMP errors: one each in this time on average, and so many at once (RFC 1812 section 4.3.2.8).
const ICMP_INTERVAL: Duration = Duration::from_millis(10);
const ICMP_BURST: u64 = 16;
/// Octets of the packet that an ICMP error quotes: the error is 576 octets at most (RFC 1812 section 4.3.2.3).
const ICMP_QUOTE: usize = 576 - ipv4::HEADER_LENGTH - icmpv4::HEADER_LENGTH;

/// Fragments beside the first that a packet is split into at most.
const FRAGMENTS: usize = 7;

/// How a packet from inside goes on.
#[derive(Clone, Copy)]
enum Way {
    Protect { index: u32 },
    Bypass { destination: Ipv4Addr },
}

/// A packet's way, its length, and how long a packet may be on that way.
struct Decision {
    way: Way,
    length: usize,
    limit: usize,
}

/// Why a packet from inside does not go on.
enum Refusal {
    Drop(DropReason),
    /// Its policy has no SA for it at present, and lets so many packets wait for one.
    Wait {
        policy: u32,
        hold: u16,
    },
    /// Longer than this, and not to be fragmented.
    TooBig(usize),
}

impl From<DropReason> for Refusal {
    fn from(reason: DropReason) -> Refusal {
        Refusal::Drop(reason)
    }
}

impl Engine {
    pub(crate) fn process_inside<F: Frame>(
        &mut self,
        now: Time,
        burst: &mut ArrayVec<F, BURST>,
        out: &mut impl Output<F>,
    ) {
        for frame in burst.drain(..) {
            self.process_one(now, frame, out);
        }
    }

    #[inline]
    pub(crate) fn process_one<F: Frame>(&mut self, now: Time, mut frame: F, out: &mut impl Output<F>) {
        match self.decide(now, frame.data_mut(), out) {
            Ok(decision) if decision.length <= decision.limit => {
                frame.truncate(ETHERNET + decision.length);
                self.go(now, decision.way, decision.length, frame, out);
            }
            Ok(decision) => self.fragment(now, decision, frame, out),
            Err(Refusal::TooBig(limit)) => {
                // RFC 1191 section 4; no path is narrower than 68 octets.
                let mtu = limit.clamp(68, 65_535) as u16;
                let message = icmpv4::Repr::FragmentationNeeded { mtu };
                self.refuse(now, message, DropReason::TooBig, frame, out);
            }
            Err(Refusal::Drop(DropReason::TtlExpired)) => {
                self.refuse(now, icmpv4::Repr::TimeExceeded, DropReason::TtlExpired, frame, out);
            }
            Err(Refusal::Drop(reason)) => self.discard(frame, reason, out),
            Err(Refusal::Wait { policy, hold }) => match out.without_sa(policy, hold, frame) {
                None => self.counters.add(Counter::Held, 1),
                Some(frame) => self.discard(frame, DropReason::NoSa, out),
            },
        }
    }

    /// Finds the packet's way (RFC 4301 section 5.1), and makes it ready to leave.
    fn decide<F: Frame>(
        &mut self,
        now: Time,
        octets: &mut [u8],
        out: &mut impl Output<F>,
    ) -> Result<Decision, Refusal> {
        let frame = ethernet::Frame::new_checked(&*octets).map_err(|_| DropReason::NotIpv4)?;
        if frame.ethertype() != ethernet::IPV4 {
            return Err(DropReason::NotIpv4.into());
        }
        let packet = ipv4::Packet::new_checked(&octets[ETHERNET..]).map_err(|_| DropReason::MalformedIpv4)?;
        if !packet.verify_checksum() {
            return Err(DropReason::MalformedIpv4.into());
        }
        let (length, destination) = (packet.total_length(), packet.destination());
        if self.is_local(destination) {
            return Err(DropReason::ForHost.into());
        }
        if !is_unicast(destination) || !is_unicast(packet.source()) {
            return Err(DropReason::NotUnicast.into());
        }
        let dont_fragment = packet.dont_fragment();
        let way = self.find_way(now, &Flow::of(&packet), out)?;
        let (limit, encapsulated) = match way {
            Way::Bypass { destination } => (self.path_mtu(destination), false),
            Way::Protect { index } => {
                let outbound = self.sas.outbound(index).ok_or(DropReason::NoSa)?;
                let (remote, encapsulated) = (outbound.sa.remote(), outbound.sa.is_encapsulated());
                (inner_limit(self.path_mtu(remote), encapsulated), encapsulated)
            }
        };
        if length > limit && dont_fragment {
            return Err(Refusal::TooBig(limit));
        }
        let inner = &mut octets[ETHERNET..ETHERNET + length];
        if self.complete_checksums[PortId::Inside as usize] && repair::complete_checksum(inner) {
            self.counters.add(Counter::ChecksumsCompleted, 1);
        }
        self.leave(inner, matches!(way, Way::Protect { .. }).then_some(encapsulated))?;
        Ok(Decision { way, length, limit })
    }

    #[inline]
    fn find_way<F: Frame>(
        &mut self,
        now: Time,
        flow: &Flow,
        out: &mut impl Output<F>,
    ) -> Result<Way, Refusal> {
        let policy = self.policies.find(flow).ok_or(DropReason::NoPolicy)?;
        match policy.action {
            PolicyAction::Discard => return Err(DropReason::PolicyDiscard.into()),
            PolicyAction::Bypass => return Ok(Way::Bypass { destination: flow.destination }),
            PolicyAction::Protect => {}
        }
        let sas = &mut self.sas;
        let fits = |index: &u32| sas.outbound(*index).is_some_and(|sa| sa.selectors.matches(flow));
        if let Some(index) = policy.sas.iter().rev().copied().find(fits) {
            return Ok(Way::Protect { index });
        }
        let due = policy.acquired.is_none_or(|last| now.since(last) >= ACQUIRE_INTERVAL);
        let (source, destination) = (IpAddr::V4(flow.source), IpAddr::V4(flow.destination));
        if due && out.event(Event::Acquire { policy: policy.id, source, destination }) {
            policy.acquired = Some(now);
        }
        Err(Refusal::Wait { policy: policy.id, hold: policy.hold })
    }

    /// Sends a packet on its way; the frame is exactly Ethernet header and packet.
    #[inline]
    fn go<F: Frame>(&mut self, now: Time, way: Way, length: usize, mut frame: F, out: &mut impl Output<F>) {
        match way {
            Way::Bypass { destination } => {
                self.counters.add(Counter::Bypassed, 1);
                self.send(PortId::Outside, destination, frame, out);
            }
            Way::Protect { index } => match self.protect(now, index, length, &mut frame, out) {
                Ok(remote) => self.send(PortId::Outside, remote, frame, out),
                Err(reason) => self.discard(frame, reason, out),
            },
        }
    }

    /// Encapsulates; the peer's outer address.
    #[inline]
    fn protect<F: Frame>(
        &mut self,
        now: Time,
        index: u32,
        length: usize,
        frame: &mut F,
        out: &mut impl Output<F>,
    ) -> Result<Ipv4Addr, DropReason> {
        let outbound = self.sas.outbound(index).ok_or(DropReason::NoSa)?;
        if outbound.usage.expired {
            return Err(DropReason::SequenceExhausted);
        }
        let room = frame.grow_front(front_length(outbound.sa.is_encapsulated()))
            && frame.grow_back(back_length(length));
        if !room {
            return Err(DropReason::NoRoom);
        }
        if outbound.sa.encapsulate(&mut frame.data_mut()[ETHERNET..], length).is_err() {
            outbound.usage.expired = true;
            self.tell_limit(index, Limit::Hard, out);
            return Err(DropReason::SequenceExhausted);
        }
        let remote = outbound.sa.remote();
        if let Some(limit) = outbound.usage.count(now, length) {
            self.tell_limit(index, limit, out);
        }
        self.sas.mark_changed(index);
        self.counters.add(Counter::Encapsulated, 1);
        Ok(remote)
    }

    /// Splits a packet that may be (RFC 791 section 3.2) before it is encapsulated, so that the peer need not
    /// reassemble ESP.
    fn fragment<F: Frame>(&mut self, now: Time, decision: Decision, mut frame: F, out: &mut impl Output<F>) {
        let Decision { way, length, limit } = decision;
        let Some(mut rest) = self.split(length, limit, &mut frame, out) else {
            return self.discard(frame, DropReason::TooBig, out);
        };
        self.counters.add(Counter::Fragmented, 1);
        self.counters.add(Counter::Created, rest.len() as u64);
        let first = frame.data().len() - ETHERNET;
        self.go(now, way, first, frame, out);
        for piece in rest.drain(..) {
            let length = piece.data().len() - ETHERNET;
            self.go(now, way, length, piece, out);
        }
    }

    /// Makes the frame the first fragment and returns the others; `None`, and nothing changed, if there are no
    /// frames for them, or if it is itself a fragment that would end beyond the longest packet.
    fn split<F: Frame>(
        &mut self,
        length: usize,
        limit: usize,
        frame: &mut F,
        out: &mut impl Output<F>,
    ) -> Option<ArrayVec<F, FRAGMENTS>> {
        let packet = ipv4::Packet::new_checked(&frame.data()[ETHERNET..]).ok()?;
        let (header, last, offset) =
            (packet.header_length(), !packet.more_fragments(), packet.fragment_offset());
        let (options, options_length) = ipv4::copied_options(packet.options());
        let step = limit.checked_sub(header)? & !7;
        let payload = length - header;
        let too_long = usize::from(offset) * 8 + length > usize::from(u16::MAX);
        if too_long || step == 0 || payload.div_ceil(step) > FRAGMENTS + 1 {
            return None;
        }
        let (front, later) = (ETHERNET + header, ipv4::HEADER_LENGTH + options_length);
        let mut pieces: ArrayVec<F, FRAGMENTS> = ArrayVec::new();
        for start in (step..payload).step_by(step) {
            let size = ETHERNET + later + step.min(payload - start);
            let Some(piece) = out.allocate(size).filter(|piece| piece.data().len() == size) else {
                // Frames of ours that no one received: they count as created and dropped.
                self.counters.add(Counter::Created, pieces.len() as u64);
                pieces.drain(..).for_each(|piece| self.discard(piece, DropReason::TooBig, out));
                return None;
            };
            pieces.push(piece);
        }
        for (piece, start) in pieces.iter_mut().zip((step..payload).step_by(step)) {
            let size = step.min(payload - start);
            let (ethernet, octets) = piece.data_mut().split_at_mut(ETHERNET);
            let (head, body) = octets.split_at_mut(later);
            ethernet.copy_from_slice(&frame.data()[..ETHERNET]);
            head[..ipv4::HEADER_LENGTH].copy_from_slice(&frame.data()[ETHERNET..][..ipv4::HEADER_LENGTH]);
            head[ipv4::HEADER_LENGTH..].copy_from_slice(&options[..options_length]);
            body.copy_from_slice(&frame.data()[front + start..front + start + size]);
            let more = !last || start + size < payload;
            ipv4::rewrite_as_fragment(octets, later, more, offset + (start / 8) as u16);
        }
        frame.truncate(front + step);
        ipv4::rewrite_as_fragment(&mut frame.data_mut()[ETHERNET..], header, true, offset);
        Some(pieces)
    }

    /// Drops a packet and, where that is allowed, turns its frame into the ICMP error that says why.
    fn refuse<F: Frame>(
        &mut self,
        now: Time,
        message: icmpv4::Repr,
        reason: DropReason,
        mut frame: F,
        out: &mut impl Output<F>,
    ) {
        if !self.icmp_budget.would_allow(now) || !self.make_error(message, &mut frame) {
            return self.discard(frame, reason, out);
        }
        self.icmp_budget.take();
        self.counters.drop(reason, 1);
        self.counters.add(Counter::Created, 1);
        self.counters.add(Counter::IcmpErrorsSent, 1);
        self.counters.add(Counter::DeliveredInside, 1);
        out.transmit(PortId::Inside, frame);
    }

    fn make_error<F: Frame>(&self, message: icmpv4::Repr, frame: &mut F) -> bool {
        const HEADERS: usize = ipv4::HEADER_LENGTH + icmpv4::HEADER_LENGTH;
        let Some(address) = self.inside_address else { return false };
        let Ok(ethernet) = ethernet::Frame::new_checked(frame.data()) else { return false };
        let station = ethernet.source();
        let Ok(packet) = ipv4::Packet::new_checked(ethernet.payload()) else { return false };
        // RFC 1122 section 3.2.2: never about ICMP errors, nor about fragments but the first.
        let about_error = packet.protocol() == protocol::ICMP
            && icmpv4::Packet::new_checked(packet.payload()).map_or(true, |icmp| icmp.is_error());
        if about_error || packet.fragment_offset() != 0 || !is_unicast(packet.source()) {
            return false;
        }
        let (source, quoted) = (packet.source(), packet.total_length().min(ICMP_QUOTE));
        if !frame.grow_front(HEADERS) {
            return false;
        }
        frame.truncate(ETHERNET + HEADERS + quoted);
        let octets = frame.data_mut();
        let repr =
            ethernet::Repr { destination: station, source: self.inside_mac, ethertype: ethernet::IPV4 };
        repr.emit(octets);
        let repr = ipv4::Repr {
            traffic_class: 0xc0, // internetwork control (RFC 1812 section 4.3.2.5)
            identification: 0,
            dont_fragment: true,
            more_fragments: false,
            fragment_offset: 0,
            ttl: 64,
            protocol: protocol::ICMP,
            source: address,
            destination: source,
            payload_length: (icmpv4::HEADER_LENGTH + quoted) as u16,
        };
        repr.emit(&mut octets[ETHERNET..]);
        message.emit(&mut octets[ETHERNET + ipv4::HEADER_LENGTH..]);
        true
    }
}

/// How many ICMP errors may be sent: a bucket that fills with time.
pub(crate) struct IcmpBudget {
    tokens: u64,
    filled: Time,
}

impl IcmpBudget {
    pub(crate) fn new() -> IcmpBudget {
        IcmpBudget { tokens: ICMP_BURST, filled: Time(0) }
    }

    fn would_allow(&mut self, now: Time) -> bool {
        let interval = ICMP_INTERVAL.as_nanos() as u64;
        let more = now.0.saturating_sub(self.filled.0) / interval;
        if more > 0 {
            self.tokens = (self.tokens + more.min(ICMP_BURST)).min(ICMP_BURST);
            self.filled = now;
        }
        self.tokens > 0
    }

    fn take(&mut self) {
        self.tokens = self.tokens.saturating_sub(1);
    }
}
