//! ICMP errors to senders inside: made of the packet that they are about, in its own frame, within a budget.

use crate::arrivals::{head, is_unicast};
use crate::{Counter, DropReason, ETHERNET, Engine, Frame, Output, PortId};
use spindle_abi::Time;
use spindle_wire::ip::Head;
use spindle_wire::{ethernet, icmpv4, icmpv6, ipv4, ipv6, protocol};
use std::net::IpAddr;
use std::time::Duration;

/// ICMP errors: one each in this time on average, and so many at once (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4 f).
const ICMP_INTERVAL: Duration = Duration::from_millis(10);
const ICMP_BURST: u64 = 16;
/// Octets of the packet that an ICMP error quotes: the error is 576 octets at most (RFC 1812 section 4.3.2.3).
const ICMP_QUOTE: usize = 576 - ipv4::HEADER_LENGTH - icmpv4::HEADER_LENGTH;
/// And ICMPv6: as much as fits into every link's MTU (RFC 4443 section 2.4 c).
const ICMPV6_QUOTE: usize = ipv6::MINIMUM_MTU - ipv6::HEADER_LENGTH - icmpv6::HEADER_LENGTH;
/// Traffic class of ICMP errors: internetwork control (RFC 1812 section 4.3.2.5).
const ICMP_CLASS: u8 = 0xc0;

/// What a sender inside is told.
#[derive(Clone, Copy)]
pub(crate) enum Complaint {
    /// Longer than this.
    TooBig(usize),
    TimeExceeded,
}

impl Engine {
    /// Drops a packet and, where that is allowed, turns its frame into the ICMP error that says why.
    pub(crate) fn refuse<F: Frame>(
        &mut self,
        now: Time,
        interface: u16,
        complaint: Complaint,
        reason: DropReason,
        mut frame: F,
        out: &mut impl Output<F>,
    ) {
        if !self.icmp_budget.would_allow(now) || !self.make_error(interface, complaint, &mut frame) {
            return self.discard(frame, reason, out);
        }
        self.icmp_budget.take();
        self.counters.drop(reason, 1);
        out.answered(&frame, reason);
        self.counters.add(Counter::Created, 1);
        self.counters.add(Counter::IcmpErrorsSent, 1);
        if self.is_host(interface) {
            return self.send_to_host(interface, frame, out);
        }
        self.counters.add(Counter::DeliveredInside, 1);
        out.transmit(PortId::Inside, frame);
    }

    fn make_error<F: Frame>(&self, interface: u16, complaint: Complaint, frame: &mut F) -> bool {
        let Ok((head, packet)) = head(frame.data()) else { return false };
        // RFC 1122 section 3.2.2 and RFC 4443 section 2.4 e: never about ICMP errors, nor about fragments but the first.
        let payload = head.payload(packet);
        let about_error = match head.protocol {
            protocol::ICMP => icmpv4::Packet::new_checked(payload).map_or(true, |icmp| icmp.is_error()),
            protocol::ICMPV6 => icmpv6::Packet::new_checked(payload).map_or(true, |icmp| icmp.is_error()),
            _ => false,
        };
        if about_error || head.fragment_offset != 0 || !is_unicast(head.source) {
            return false;
        }
        let Ok(ethernet) = ethernet::Frame::new_checked(frame.data()) else { return false };
        let repr = ethernet::Repr {
            destination: ethernet.source(),
            source: self.inside_mac,
            ethertype: ethernet.ethertype(),
        };
        // The host takes nothing from its own addresses. So the destination seems to answer.
        let own = match self.is_host(interface) {
            true => Some(head.destination).filter(|to| is_unicast(*to)),
            false if head.source.is_ipv4() => self.inside_address.map(IpAddr::V4),
            false => self.inside_address_v6.map(IpAddr::V6),
        };
        let made = match head.source {
            IpAddr::V4(_) => make_icmpv4(own, complaint, &head, frame),
            IpAddr::V6(_) => make_icmpv6(own, complaint, &head, frame),
        };
        if made.is_some() {
            repr.emit(frame.data_mut());
        }
        made.is_some()
    }
}

fn make_icmpv4<F: Frame>(
    own: Option<IpAddr>,
    complaint: Complaint,
    about: &Head,
    frame: &mut F,
) -> Option<()> {
    let (Some(IpAddr::V4(source)), IpAddr::V4(destination)) = (own, about.source) else {
        return None;
    };
    let message = match complaint {
        // RFC 1191 section 4; no path is narrower than 68 octets.
        Complaint::TooBig(limit) => icmpv4::Repr::FragmentationNeeded { mtu: limit.clamp(68, 65_535) as u16 },
        Complaint::TimeExceeded => icmpv4::Repr::TimeExceeded,
    };
    let quoted = about.length.min(ICMP_QUOTE);
    let octets = quote(frame, quoted, ipv4::HEADER_LENGTH + icmpv4::HEADER_LENGTH)?;
    let repr = ipv4::Repr {
        traffic_class: ICMP_CLASS,
        identification: 0,
        dont_fragment: true,
        more_fragments: false,
        fragment_offset: 0,
        ttl: 64,
        protocol: protocol::ICMP,
        source,
        destination,
        payload_length: (icmpv4::HEADER_LENGTH + quoted) as u16,
    };
    repr.emit(octets);
    message.emit(&mut octets[ipv4::HEADER_LENGTH..]);
    Some(())
}

fn make_icmpv6<F: Frame>(
    own: Option<IpAddr>,
    complaint: Complaint,
    about: &Head,
    frame: &mut F,
) -> Option<()> {
    let (Some(IpAddr::V6(source)), IpAddr::V6(destination)) = (own, about.source) else {
        return None;
    };
    let message = match complaint {
        // RFC 4443 section 3.2; no path is narrower than the minimum MTU (RFC 8200 section 5).
        Complaint::TooBig(limit) => icmpv6::Repr::PacketTooBig { mtu: limit.max(ipv6::MINIMUM_MTU) as u32 },
        Complaint::TimeExceeded => icmpv6::Repr::TimeExceeded,
    };
    let quoted = about.length.min(ICMPV6_QUOTE);
    let octets = quote(frame, quoted, ipv6::HEADER_LENGTH + icmpv6::HEADER_LENGTH)?;
    let repr = ipv6::Repr {
        traffic_class: ICMP_CLASS,
        flow_label: 0,
        next_header: protocol::ICMPV6,
        hop_limit: 64,
        source,
        destination,
        payload_length: (icmpv6::HEADER_LENGTH + quoted) as u16,
    };
    repr.emit(octets);
    message.emit(&mut octets[ipv6::HEADER_LENGTH..], source, destination);
    Some(())
}

/// Cuts the frame's packet to so many octets and makes room for headers before it; the packet from these headers on.
fn quote<F: Frame>(frame: &mut F, quoted: usize, headers: usize) -> Option<&mut [u8]> {
    if !frame.grow_front(headers) {
        return None;
    }
    frame.truncate(ETHERNET + headers + quoted);
    frame.data_mut().get_mut(ETHERNET..)
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
