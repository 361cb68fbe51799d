//! From inside: the ordered policies decide, and what is to be protected goes into the latest SA of its policy.

use crate::arrivals::{head, is_unicast};
use crate::flows::{Decision as Known, Key, Plain};
use crate::frame::{fetch_end, fetch_payload};
use crate::icmp_errors::Complaint;
use crate::interfaces::INSIDE;
use crate::policies::{NO_SA, Sought};
use crate::sas::Limit;
use crate::selectors::Flow;
use crate::{ArrayVec, BURST, Counter, DropReason, ETHERNET, Engine, Frame, Origin, Output, PortId};
use spindle_abi::{Event, PolicyAction, Time};
use spindle_esp::{Begun, back_length};
use spindle_wire::ip::{self, Head};
use spindle_wire::{ethernet, ipv4, ipv6, repair};
use std::net::IpAddr;
use std::time::Duration;

/// ACQUIREs of one policy at most once in this time.
const ACQUIRE_INTERVAL: Duration = Duration::from_secs(1);
/// Fragments beside the first that a packet is split into at most.
pub(crate) const FRAGMENTS: usize = 7;

/// Of a flow that was not found, its place.
const NOWHERE: u32 = u32::MAX;

/// How a packet from inside goes on.
#[derive(Clone, Copy)]
enum Way {
    /// By this SA, over a path for packets of so many octets.
    Protect {
        index: u32,
        path: usize,
    },
    Bypass {
        destination: IpAddr,
    },
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
    /// Its SA belongs to this worker.
    Elsewhere(u16),
    /// Longer than this, and not to be fragmented.
    TooBig(usize),
}

impl From<DropReason> for Refusal {
    fn from(reason: DropReason) -> Refusal {
        Refusal::Drop(reason)
    }
}

/// A packet from inside: what its headers say, and the place of its policy.
struct Seen {
    head: Head,
    flow: Flow,
    place: Result<u32, DropReason>,
}

impl Engine {
    /// In steps over the burst, so that memory is fetched ahead of its use: headers, what was decided of their flows, SAs.
    /// What was decided is done for the packets at the front first: headers are written, then all are encrypted, then sent.
    /// From the first one on that needs a decision, one is done after the other, for it may change what the next one finds.
    pub(crate) fn process_inside<F: Frame>(
        &mut self,
        now: Time,
        interface: u16,
        burst: &mut ArrayVec<F, BURST>,
        out: &mut impl Output<F>,
    ) {
        let (mut keys, mut found) = ([None; BURST], [NOWHERE; BURST]);
        for ((frame, key), place) in burst.iter().zip(&mut keys).zip(&mut found) {
            *key = self.key_from_inside(interface, frame.data());
            key.iter().for_each(|key| *place = self.flows.prefetch(*key));
            fetch_end(frame);
        }
        let (mut all_known, mut last) = (true, NO_SA);
        for (key, place) in keys[..burst.len()].iter().zip(&mut found) {
            *place = key.and_then(|key| self.flows.find_from(key, *place)).unwrap_or(NOWHERE);
            if *place == NOWHERE {
                all_known = false;
                continue;
            }
            let index = self.flows.at(*place).index;
            if index != last {
                last = index;
                self.fetch_outbound(last);
            }
        }
        let seen = if all_known { ArrayVec::new() } else { self.see_others(interface, burst, &found) };
        let ready = self.begin_known(now, interface, &found, burst, out);
        let mut frames = burst.drain(..);
        for frame in frames.by_ref().take(ready) {
            out.transmit(PortId::Outside, frame);
        }
        for (at, frame) in (ready..).zip(frames) {
            let key = keys[at];
            // Another flow may have its place by now.
            let known = key.filter(|_| found[at] != NOWHERE).and_then(|key| self.flows.find(key).copied());
            match (known, seen.get(at)) {
                (Some(decision), _) => self.follow(now, interface, &decision, frame, out),
                (None, Some(seen)) if found[at] == NOWHERE => {
                    self.judge_inside(now, interface, key, seen, frame, out);
                }
                (None, _) => self.process_one(now, interface, key, frame, out),
            }
        }
    }

    /// Makes ESP of the packets at the front of whose flows it was decided: how many these are. They are counted as sent.
    #[inline]
    fn begin_known<F: Frame>(
        &mut self,
        now: Time,
        interface: u16,
        found: &[u32; BURST],
        burst: &mut ArrayVec<F, BURST>,
        out: &mut impl Output<F>,
    ) -> usize {
        let is_host = self.is_host(interface);
        let mut begun: ArrayVec<(u32, Begun), BURST> = ArrayVec::new();
        let mut last = NO_SA;
        for (frame, place) in burst.iter_mut().zip(found) {
            if *place == NOWHERE {
                break;
            }
            // No packet from inside changes what it rests on, and none was remembered yet.
            let decision = *self.flows.at(*place);
            // While headers are written, keys are on their way.
            if decision.index != last {
                last = decision.index;
                self.sas.outbound_at(last).iter().for_each(|outbound| outbound.sa.prefetch());
            }
            let Some(one) = self.begin(now, is_host, &decision, frame, out) else { break };
            begun.push((decision.index, one));
        }
        let mut frames = burst.iter_mut();
        for (index, begun) in &begun {
            let Some(frame) = frames.next() else { break };
            frames.as_slice().first().into_iter().for_each(fetch_payload);
            self.seal(*index, frame, *begun);
        }
        self.count_sent(begun.len() as u64);
        begun.len()
    }

    /// The flow of a packet of which it may be remembered what to do.
    #[inline(always)]
    fn key_from_inside(&self, interface: u16, octets: &[u8]) -> Option<Key> {
        let (ethernet, packet) = octets.split_first_chunk::<ETHERNET>()?;
        let [.., a, b] = *ethernet;
        if u16::from_be_bytes([a, b]) != ethernet::IPV4 {
            return None;
        }
        let plain = Plain::read(packet)?;
        (!self.clamp_mss || plain.is_no_syn(packet)).then(|| plain.of_inside(interface))
    }

    #[inline]
    fn fetch_outbound(&self, index: u32) {
        self.sas.prefetch(index);
        self.region.iter().for_each(|region| region.prefetch(index));
    }

    /// Reads those of a burst of whose flows nothing was found, and fetches what they need.
    #[inline(never)]
    fn see_others<F: Frame>(
        &self,
        interface: u16,
        burst: &ArrayVec<F, BURST>,
        found: &[u32; BURST],
    ) -> ArrayVec<Result<Seen, DropReason>, BURST> {
        let mut all: ArrayVec<Result<Seen, DropReason>, BURST> = ArrayVec::new();
        let policies = self.policies_of(interface);
        let mut sought = [Sought::Anywhere; BURST];
        for ((frame, place), sought) in burst.iter().zip(found).zip(&mut sought) {
            let seen = if *place == NOWHERE { see(frame.data()) } else { Err(DropReason::NoPolicy) };
            if let (Some(policies), Ok(seen)) = (policies, &seen) {
                *sought = policies.seek(&seen.flow);
            }
            all.push(seen);
        }
        let Some(policies) = policies else { return all };
        for (seen, sought) in all.iter().zip(&mut sought) {
            seen.iter().for_each(|seen| *sought = policies.approach(&seen.flow, *sought));
        }
        for (seen, sought) in all.iter_mut().zip(sought) {
            let Ok(seen) = seen else { continue };
            seen.place = policies.reach(&seen.flow, sought);
            if let Ok(place) = seen.place {
                self.fetch_outbound(policies.at(place).latest);
            }
        }
        for seen in all.iter().flatten() {
            if let Ok(place) = seen.place {
                self.sas.prefetch_behind_outbound(policies.at(place).latest);
            }
        }
        all
    }

    /// Does with a packet what was decided of its flow, unless there is something about the packet or the SA that wants to be
    /// looked at.
    #[inline]
    fn follow<F: Frame>(
        &mut self,
        now: Time,
        interface: u16,
        decision: &Known,
        mut frame: F,
        out: &mut impl Output<F>,
    ) {
        match self.begin(now, self.is_host(interface), decision, &mut frame, out) {
            Some(begun) => {
                self.seal(decision.index, &mut frame, begun);
                self.count_sent(1);
                out.transmit(PortId::Outside, frame);
            }
            None => self.process_one(now, interface, None, frame, out),
        }
    }

    /// Writes all that stands around a packet. `None`, and the packet is as it was: it is too long, or has no hop to spare,
    /// or its frame no room, or the SA is used up.
    #[inline(always)]
    fn begin<F: Frame>(
        &mut self,
        now: Time,
        is_host: bool,
        decision: &Known,
        frame: &mut F,
        out: &mut impl Output<F>,
    ) -> Option<Begun> {
        let header: &[u8; ETHERNET + ipv4::HEADER_LENGTH] = frame.data().first_chunk()?;
        let length = usize::from(u16::from_be_bytes([header[ETHERNET + 2], header[ETHERNET + 3]]));
        let has_hop = is_host || header[ETHERNET + 8] > 1;
        let index = decision.index;
        let outbound = self.sas.outbound(index)?;
        let may_send = !outbound.usage.is_expired() && !outbound.sa.is_exhausted();
        if length > usize::from(decision.limit) || !has_hop || !may_send {
            return None;
        }
        let front = outbound.sa.front_length();
        frame.truncate(ETHERNET + length);
        if !frame.grow_back(back_length(length)) {
            return None;
        }
        if !frame.grow_front(front) {
            frame.truncate(ETHERNET + length);
            return None;
        }
        let octets = frame.data_mut();
        if !is_host {
            let packet = &mut octets[ETHERNET + front..][..length];
            if self.complete_checksums[PortId::Inside as usize] && complete(packet) {
                self.counters.add(Counter::ChecksumsCompleted, 1);
            }
            ipv4::decrement_ttl(packet);
        }
        // Before the number is used.
        if let Some(region) = &self.region {
            region.reserve(index, outbound.sa.sequence());
        }
        let begun = outbound.sa.begin(&mut octets[ETHERNET..], length).ok()?;
        decision.hop.emit(outbound.sa.encapsulation().is_ipv6, octets);
        let limit = outbound.usage.count(now, length);
        if !outbound.is_changed {
            self.sas.mark_changed(index);
        }
        if let Some(limit) = limit {
            self.tell_limit(index, limit, out);
        }
        Some(begun)
    }

    /// Encrypts what was begun.
    #[inline]
    fn seal<F: Frame>(&self, index: u32, frame: &mut F, begun: Begun) {
        let outbound = self.sas.outbound_at(index).expect("the packet was begun on it");
        outbound.sa.seal(&mut frame.data_mut()[ETHERNET..], begun);
    }

    #[inline]
    fn count_sent(&mut self, count: u64) {
        self.counters.add(Counter::Encapsulated, count);
        self.counters.add(Counter::DeliveredOutside, count);
    }

    /// A packet that is not part of a burst. Of its flow may be remembered what is decided.
    #[inline(never)]
    pub(crate) fn process_one<F: Frame>(
        &mut self,
        now: Time,
        interface: u16,
        key: Option<Key>,
        frame: F,
        out: &mut impl Output<F>,
    ) {
        let seen = self.see_one(interface, frame.data());
        self.judge_inside(now, interface, key, &seen, frame, out);
    }

    fn see_one(&self, interface: u16, octets: &[u8]) -> Result<Seen, DropReason> {
        let mut seen = see(octets)?;
        if let Some(policies) = self.policies_of(interface) {
            seen.place = policies.place(&seen.flow);
        }
        Ok(seen)
    }

    #[inline(never)]
    fn judge_inside<F: Frame>(
        &mut self,
        now: Time,
        interface: u16,
        key: Option<Key>,
        seen: &Result<Seen, DropReason>,
        frame: F,
        out: &mut impl Output<F>,
    ) {
        let seen = match seen {
            Ok(seen) => seen,
            Err(reason) => return self.discard(frame, *reason, out),
        };
        // RFC 4303 section 3.3.4: only whole packets go into transport mode.
        match self.for_transport(&seen.head) {
            Ok(false) => self.go_on(now, interface, key, false, seen, frame, out),
            Ok(true) => {
                let Some(whole) = self.reassemble(now, frame, out) else { return };
                out.made(Origin::Inside(interface), &whole);
                match self.see_one(interface, whole.data()) {
                    Ok(seen) => self.go_on(now, interface, None, true, &seen, whole, out),
                    Err(reason) => self.discard(whole, reason, out),
                }
            }
            Err(reason) => self.discard(frame, reason, out),
        }
    }

    /// `whole`: it came in fragments.
    #[allow(clippy::too_many_arguments, reason = "what is known of one packet")]
    #[inline]
    fn go_on<F: Frame>(
        &mut self,
        now: Time,
        interface: u16,
        key: Option<Key>,
        whole: bool,
        seen: &Seen,
        mut frame: F,
        out: &mut impl Output<F>,
    ) {
        match self.decide(now, interface, whole, seen, frame.data_mut(), out) {
            Ok(decision) => {
                if let (Some(key), Way::Protect { index, .. }) = (key, decision.way) {
                    self.remember_outbound(now, key, index, decision.limit);
                }
                if decision.length > decision.limit {
                    return self.fragment(now, decision, frame, out);
                }
                frame.truncate(ETHERNET + decision.length);
                self.go(now, decision.way, decision.length, frame, out);
            }
            Err(refusal) => self.turn_down(now, interface, refusal, frame, out),
        }
    }

    #[inline(never)]
    fn turn_down<F: Frame>(
        &mut self,
        now: Time,
        interface: u16,
        refusal: Refusal,
        frame: F,
        out: &mut impl Output<F>,
    ) {
        match refusal {
            Refusal::TooBig(limit) => {
                self.refuse(now, interface, Complaint::TooBig(limit), DropReason::TooBig, frame, out);
            }
            Refusal::Drop(DropReason::TtlExpired) => {
                self.refuse(now, interface, Complaint::TimeExceeded, DropReason::TtlExpired, frame, out);
            }
            Refusal::Drop(reason) => self.discard(frame, reason, out),
            // Nothing of it was changed yet.
            Refusal::Elsewhere(worker) => {
                self.hand_over(worker, Origin::Inside(interface), frame, out);
            }
            Refusal::Wait { policy, hold } => match out.without_sa(policy, hold, frame) {
                None => self.counters.add(Counter::Held, 1),
                Some(frame) => self.discard(frame, DropReason::NoSa, out),
            },
        }
    }

    /// Is this a fragment of a packet between the ends of an SA in transport mode, which is to be made whole first?
    #[inline]
    fn for_transport(&self, head: &Head) -> Result<bool, DropReason> {
        if !head.is_fragment() || !self.sas.has_transports() {
            return Ok(false);
        }
        if !self.sas.has_transport(head.source, head.destination) {
            return Ok(false);
        }
        let is_ipv6 = head.source.is_ipv6();
        let plain = ip::header_length(is_ipv6) + if is_ipv6 { ipv6::FRAGMENT_LENGTH } else { 0 };
        if head.upper == plain { Ok(true) } else { Err(DropReason::FragmentInTransport) }
    }

    /// Finds the packet's way (RFC 4301 section 5.1), and makes it ready to leave. `whole`: it came in fragments.
    #[inline]
    fn decide<F: Frame>(
        &mut self,
        now: Time,
        interface: u16,
        whole: bool,
        seen: &Seen,
        octets: &mut [u8],
        out: &mut impl Output<F>,
    ) -> Result<Decision, Refusal> {
        let head = &seen.head;
        let (length, destination) = (head.length, head.destination);
        if self.is_local(destination) {
            return Err(DropReason::ForHost.into());
        }
        let multicast = interface != INSIDE && destination.is_multicast();
        if !(is_unicast(destination) || multicast) || !is_unicast(head.source) {
            return Err(DropReason::NotUnicast.into());
        }
        let way = if interface == INSIDE && seen.flow.hides_ports() && head.fragment_offset != 0 {
            let flow = self.flow(now, PortId::Inside, head, &octets[ETHERNET..]);
            let place = self.policies.place(&flow);
            self.find_way(now, interface, &flow, place?, out)?
        } else {
            self.find_way(now, interface, &seen.flow, seen.place?, out)?
        };
        let dont_fragment = head.dont_fragment && !whole;
        let (way, limit, fits) = match way {
            Way::Bypass { destination } => {
                self.note_passing(now, head, &octets[ETHERNET..]);
                (way, self.path_mtu(destination), None)
            }
            Way::Protect { index, .. } => {
                let path = self.tunnel_path(now, index).ok_or(DropReason::NoSa)?;
                let way = Way::Protect { index, path: path.mtu };
                if path.in_transport && !dont_fragment {
                    // RFC 4303 section 3.3.4: fragmented is what ESP has been put into.
                    (way, length, Some(path.limit))
                } else {
                    let fits = path.limit.min(usize::from(self.mtu[PortId::Inside as usize]));
                    // Every link of IPv6 carries so much (RFC 8200 section 5), a tunnel too.
                    let is_ipv6 = head.source.is_ipv6();
                    let limit = if is_ipv6 { path.limit.max(ipv6::MINIMUM_MTU) } else { path.limit };
                    (way, limit, Some(fits))
                }
            }
        };
        if length > limit && dont_fragment {
            return Err(Refusal::TooBig(limit));
        }
        let inner = &mut octets[ETHERNET..ETHERNET + length];
        // A TUN device completes them itself.
        let partial = self.complete_checksums[PortId::Inside as usize] && !self.is_host(interface);
        if partial && repair::complete_checksum(head, inner) {
            self.counters.add(Counter::ChecksumsCompleted, 1);
        }
        self.leave(interface, head, inner, fits)?;
        Ok(Decision { way, length, limit })
    }

    /// By the policy at this place.
    #[inline]
    fn find_way<F: Frame>(
        &mut self,
        now: Time,
        interface: u16,
        flow: &Flow,
        place: u32,
        out: &mut impl Output<F>,
    ) -> Result<Way, Refusal> {
        let policies = self.policies_of(interface).ok_or(DropReason::NoPolicy)?;
        let policy = policies.at(place);
        match policy.action {
            PolicyAction::Discard => return Err(DropReason::PolicyDiscard.into()),
            PolicyAction::Bypass => return Ok(Way::Bypass { destination: flow.destination }),
            PolicyAction::Protect => {}
        }
        if self.sas.outbound_at(policy.latest).is_some_and(|outbound| outbound.takes(flow)) {
            return Ok(Way::Protect { index: policy.latest, path: usize::MAX });
        }
        self.find_another(now, interface, flow, place, out)
    }

    /// By another SA of the policy than its latest one, another worker's too.
    #[inline(never)]
    fn find_another<F: Frame>(
        &mut self,
        now: Time,
        interface: u16,
        flow: &Flow,
        place: u32,
        out: &mut impl Output<F>,
    ) -> Result<Way, Refusal> {
        let policies = match interface {
            INSIDE => &mut self.policies,
            interface => self.interfaces.policies_mut(interface).ok_or(DropReason::NoPolicy)?,
        };
        let (id, hold) = (policies.at(place).id, policies.at(place).hold);
        let policy = policies.behind_mut(place);
        let (sas, others) = (&self.sas, &self.others);
        let indexes = policy.sas.iter().rev().map(|sa| sa.index);
        let fits = |index: &u32| match sas.outbound_at(*index) {
            Some(outbound) => outbound.takes(flow),
            None => others.takes(*index, flow),
        };
        if let Some(index) = indexes.clone().find(fits) {
            return match others.sends(index) {
                Some(worker) => Err(Refusal::Elsewhere(worker)),
                None => Ok(Way::Protect { index, path: usize::MAX }),
            };
        }
        // RFC 4301 section 7.1: another SA would carry it no more than these.
        let selectors = |index| match sas.outbound_at(index) {
            Some(sa) => Some(&sa.selectors),
            None => others.selectors(index),
        };
        let mut carried = indexes.filter_map(|index| Some(selectors(index)?.carry(flow)));
        if carried.any(|carried| carried == Err(DropReason::FragmentWithoutPorts)) {
            return Err(DropReason::FragmentWithoutPorts.into());
        }
        let due = policy.acquired.is_none_or(|last| now.since(last) >= ACQUIRE_INTERVAL);
        if due && out.event(Event::Acquire { policy: id, packet: flow.trigger() }) {
            policy.acquired = Some(now);
        }
        Err(Refusal::Wait { policy: id, hold })
    }

    /// Sends a packet on its way; the frame is exactly Ethernet header and packet.
    #[inline]
    fn go<F: Frame>(&mut self, now: Time, way: Way, length: usize, mut frame: F, out: &mut impl Output<F>) {
        match way {
            Way::Bypass { destination } => {
                self.counters.add(Counter::Bypassed, 1);
                self.send(PortId::Outside, destination, frame, out);
            }
            Way::Protect { index, path } => match self.protect(now, index, length, &mut frame, out) {
                Ok(remote) if frame.data().len() > ETHERNET.saturating_add(path) => {
                    self.send_in_fragments(remote, path, frame, out);
                }
                Ok(remote) => self.send(PortId::Outside, remote, frame, out),
                Err(reason) => self.discard(frame, reason, out),
            },
        }
    }

    /// Encapsulates; the peer's outer address.
    #[inline(always)]
    fn protect<F: Frame>(
        &mut self,
        now: Time,
        index: u32,
        length: usize,
        frame: &mut F,
        out: &mut impl Output<F>,
    ) -> Result<IpAddr, DropReason> {
        let outbound = self.sas.outbound(index).ok_or(DropReason::NoSa)?;
        if outbound.usage.is_expired() {
            return Err(DropReason::SequenceExhausted);
        }
        let room = frame.grow_front(outbound.sa.front_length()) && frame.grow_back(back_length(length));
        if !room {
            return Err(DropReason::NoRoom);
        }
        if let Some(region) = &self.region {
            region.reserve(index, outbound.sa.sequence());
        }
        if outbound.sa.encapsulate(&mut frame.data_mut()[ETHERNET..], length).is_err() {
            outbound.usage.expire();
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

    /// Splits an IPv4 packet that may be (RFC 791 section 3.2) before it is encapsulated, so that the peer need not
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
    pub(crate) fn split<F: Frame>(
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
        if too_long || step == 0 {
            return None;
        }
        let (front, later) = (ETHERNET + header, ipv4::HEADER_LENGTH + options_length);
        let mut pieces = self.pieces(ETHERNET + later, step, payload, out)?;
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
}

/// Completes the checksum of a packet that was read already; `true` if it did.
#[inline(never)]
fn complete(packet: &mut [u8]) -> bool {
    Head::parse(packet).is_ok_and(|head| repair::complete_checksum(&head, packet))
}

/// Reads the headers of a packet from inside.
#[inline]
fn see(octets: &[u8]) -> Result<Seen, DropReason> {
    let (head, packet) = head(octets)?;
    Ok(Seen { flow: Flow::of(&head, packet), head, place: Err(DropReason::NoPolicy) })
}
