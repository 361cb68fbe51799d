//! Fragments of ESP from outside, plain or in UDP, become whole packets before anything else looks at them (RFC 4303
//! section 3.4.1).
//!
//! A fragment's octets are copied into its datagram's slot, and its frame ends there; with the last one that was missing
//! the whole leaves in a fresh frame and is treated as if it had come so. Nothing of a fragment is authentic, so all is
//! bounded: slots are made at the start, each is given up after [`PATIENCE`], no source has more than its share, and who
//! needs a slot when none is free takes the oldest: fragments of one datagram come together, those of a flood stay.

use crate::arrivals::head;
use crate::{Counter, DropReason, ETHERNET, Engine, Frame, Output};
use spindle_abi::Time;
use spindle_esp::tunnel;
use spindle_wire::{ip, ipv4, ipv6};
use std::net::IpAddr;
use std::time::Duration;

/// Octets behind the IP header that a whole packet may have; so it fits a frame of 4,096 octets with its headroom. No
/// more than two fragments are needed where ESP around packets of 1,500 octets meets a path of as many.
pub(crate) const LONGEST: usize = 3776;
/// Fragments are cut on multiples of this (RFC 791 section 3.1).
const UNIT: usize = 8;
const WORDS: usize = LONGEST.div_ceil(UNIT).div_ceil(64);
/// How long a datagram waits for its missing fragments. Hosts wait for a minute (RFC 1122 section 3.3.2), but what we wait
/// for follows within a round trip, and slots are few.
const PATIENCE: Duration = Duration::from_secs(5);
/// A source has a share of the slots, at least one.
const SHARE: usize = 8;
/// An IPv4 packet ends here at the latest (RFC 791 section 3.1).
const END: usize = 65_535 - ipv4::HEADER_LENGTH;

/// Whose fragments belong together (RFC 791 section 3.2, RFC 8200 section 4.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Key {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// Of IPv4; of IPv6 only the first fragment tells it.
    pub(crate) protocol: Option<u8>,
    pub(crate) identification: u32,
}

impl Key {
    /// Of a packet that its head says is a fragment.
    pub(crate) fn of(head: &ip::Head, packet: &[u8]) -> Option<Key> {
        let (protocol, identification) = if head.source.is_ipv6() {
            let upper = ipv6::Packet::new_checked(packet).ok()?.upper().ok()?;
            (None, upper.fragment?.identification)
        } else {
            (Some(head.protocol), ipv4::Packet::new_checked(packet).ok()?.identification().into())
        };
        Some(Key { source: head.source, destination: head.destination, protocol, identification })
    }
}

/// Which of some places a new datagram takes: one of its source's if that has had its share, else a free one, else the
/// oldest. `held`: of each place, whose it is and since when.
pub(crate) fn place_for(
    source: IpAddr,
    held: impl ExactSizeIterator<Item = Option<(IpAddr, Time)>> + Clone,
) -> usize {
    let oldest = |among: &dyn Fn(IpAddr) -> bool| {
        let taken = held.clone().enumerate().filter_map(|(at, place)| Some((at, place?)));
        taken.filter(|(_, (of, _))| among(*of)).min_by_key(|(_, (_, since))| *since).map(|(at, _)| at)
    };
    let own = held.clone().flatten().filter(|(of, _)| *of == source).count();
    let at = if own >= (held.len() / SHARE).max(1) {
        oldest(&|of| of == source)
    } else {
        held.clone().position(|place| place.is_none()).or_else(|| oldest(&|_| true))
    };
    at.unwrap_or(0)
}

/// One fragment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fragment<'a> {
    pub(crate) key: Key,
    /// Where its octets belong, in octets.
    pub(crate) offset: usize,
    /// It is not the last one.
    pub(crate) more: bool,
    pub(crate) traffic_class: u8,
    pub(crate) protocol: u8,
    pub(crate) octets: &'a [u8],
}

impl<'a> Fragment<'a> {
    /// Of a packet that its head says is one.
    fn of(head: &ip::Head, packet: &'a [u8]) -> Option<Fragment<'a>> {
        Some(Fragment {
            key: Key::of(head, packet)?,
            offset: usize::from(head.fragment_offset) * UNIT,
            more: head.more_fragments,
            traffic_class: head.traffic_class,
            protocol: head.protocol,
            octets: head.payload(packet),
        })
    }
}

/// A packet that is whole: what its header says and what is behind it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Whole<'a> {
    pub(crate) key: Key,
    pub(crate) traffic_class: u8,
    pub(crate) protocol: u8,
    pub(crate) octets: &'a [u8],
}

impl Whole<'_> {
    /// Its header, without options or extension headers.
    fn write_header(&self, hop_limit: u8, octets: &mut [u8]) {
        let (traffic_class, payload_length) = (self.traffic_class, self.octets.len() as u16);
        match (self.key.source, self.key.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let repr = ipv4::Repr {
                    traffic_class,
                    identification: self.key.identification as u16,
                    dont_fragment: false,
                    more_fragments: false,
                    fragment_offset: 0,
                    ttl: hop_limit,
                    protocol: self.protocol,
                    source,
                    destination,
                    payload_length,
                };
                repr.emit(octets);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let next_header = self.protocol;
                let repr = ipv6::Repr {
                    traffic_class,
                    flow_label: 0,
                    next_header,
                    hop_limit,
                    source,
                    destination,
                    payload_length,
                };
                repr.emit(octets);
            }
            // A packet has addresses of one version.
            _ => octets.fill(0),
        }
    }
}

#[derive(Clone, Copy)]
struct Slot {
    key: Key,
    since: Time,
    /// Octets that have come; no two fragments overlap, so it is whole when they are as many as there are.
    held: usize,
    /// Octets that there are, once the last fragment has come.
    total: Option<usize>,
    /// Of the first fragment, as the next one.
    traffic_class: u8,
    protocol: u8,
    /// The ECN fields that were seen, a bit for each.
    ecn: u8,
    /// A fragment contradicted another; what still comes is dropped too (RFC 5722 section 4).
    spoiled: bool,
    /// Which units have come.
    units: [u64; WORDS],
}

/// The datagrams that are not whole yet.
pub(crate) struct Reassembly {
    slots: Vec<Option<Slot>>,
    /// [`LONGEST`] octets for each slot.
    octets: Vec<u8>,
    used: usize,
    /// Datagrams that did not become whole in time, or gave way to others; to be collected.
    abandoned: u64,
}

impl Reassembly {
    /// So many datagrams at a time; at least one.
    pub(crate) fn new(slots: usize) -> Reassembly {
        let slots = slots.max(1);
        Reassembly { slots: vec![None; slots], octets: vec![0; slots * LONGEST], used: 0, abandoned: 0 }
    }

    /// Takes a fragment's octets; the whole packet if no other was missing.
    pub(crate) fn take(
        &mut self,
        now: Time,
        fragment: &Fragment<'_>,
    ) -> Result<Option<Whole<'_>>, DropReason> {
        let (start, end) = (fragment.offset, fragment.offset + fragment.octets.len());
        // RFC 791 section 3.2; the length beyond which a packet would end is the ping of death.
        let cut_wrongly = fragment.more && !fragment.octets.len().is_multiple_of(UNIT);
        if fragment.octets.is_empty() || cut_wrongly || end > END {
            return Err(DropReason::FragmentInvalid);
        }
        self.expire(now);
        let at = match self.find(&fragment.key) {
            Some(at) => at,
            None if end > LONGEST => return Err(DropReason::FragmentTooLong),
            None => self.open(now, fragment.key),
        };
        let room = &mut self.octets[at * LONGEST..(at + 1) * LONGEST];
        let Some(slot) = &mut self.slots[at] else { return Err(DropReason::FragmentInvalid) };
        slot.put(room, start..end, fragment)?;
        if slot.total != Some(slot.held) {
            return Ok(None);
        }
        let (key, total, protocol, whole_class) = (slot.key, slot.held, slot.protocol, slot.whole_class());
        self.close(at);
        let traffic_class = whole_class.ok_or(DropReason::EcnMismatch)?;
        let octets = &self.octets[at * LONGEST..][..total];
        Ok(Some(Whole { key, traffic_class, protocol, octets }))
    }

    /// Gives up what has waited for too long. Costs nothing while nothing waits.
    pub(crate) fn expire(&mut self, now: Time) {
        if self.used == 0 {
            return;
        }
        for at in 0..self.slots.len() {
            if self.slots[at].is_some_and(|slot| now.since(slot.since) >= PATIENCE) {
                self.close(at);
                self.abandoned += 1;
            }
        }
    }

    /// How many datagrams were given up since this was last asked.
    pub(crate) fn take_abandoned(&mut self) -> u64 {
        std::mem::take(&mut self.abandoned)
    }

    fn find(&self, key: &Key) -> Option<usize> {
        self.slots.iter().position(|slot| slot.as_ref().is_some_and(|slot| slot.key == *key))
    }

    /// A slot for a new datagram.
    fn open(&mut self, now: Time, key: Key) -> usize {
        let held = self.slots.iter().map(|slot| slot.as_ref().map(|slot| (slot.key.source, slot.since)));
        let at = place_for(key.source, held);
        if self.slots[at].is_some() {
            self.close(at);
            self.abandoned += 1;
        }
        self.slots[at] = Some(Slot {
            key,
            since: now,
            held: 0,
            total: None,
            traffic_class: 0,
            protocol: 0,
            ecn: 0,
            spoiled: false,
            units: [0; WORDS],
        });
        self.used += 1;
        at
    }

    fn close(&mut self, at: usize) {
        if self.slots[at].take().is_some() {
            self.used -= 1;
        }
    }
}

impl Slot {
    fn put(
        &mut self,
        room: &mut [u8],
        range: std::ops::Range<usize>,
        fragment: &Fragment<'_>,
    ) -> Result<(), DropReason> {
        let result = self.check(room, range.clone(), fragment);
        match result {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(reason) => {
                self.spoiled = true;
                return Err(reason);
            }
        }
        room[range.clone()].copy_from_slice(fragment.octets);
        for unit in units(&range) {
            self.units[unit / 64] |= 1 << (unit % 64);
        }
        self.held += fragment.octets.len();
        if !fragment.more {
            self.total = Some(range.end);
        }
        if range.start == 0 {
            (self.traffic_class, self.protocol) = (fragment.traffic_class, fragment.protocol);
        }
        self.ecn |= 1 << (fragment.traffic_class & 3);
        Ok(())
    }

    /// May it be put here? `Ok(false)`: it is here already, octet for octet.
    fn check(
        &self,
        room: &[u8],
        range: std::ops::Range<usize>,
        fragment: &Fragment<'_>,
    ) -> Result<bool, DropReason> {
        if self.spoiled {
            return Err(DropReason::FragmentInvalid);
        }
        if range.end > LONGEST {
            return Err(DropReason::FragmentTooLong);
        }
        let here = |unit: usize| self.units[unit / 64] & 1 << (unit % 64) != 0;
        if units(&range).any(here) {
            // A network may double a fragment; but one that overlaps another is an attack (RFC 1858, RFC 5722).
            let same = units(&range).all(here)
                && room[range.clone()] == *fragment.octets
                && fragment.more != (self.total == Some(range.end));
            return if same { Ok(false) } else { Err(DropReason::FragmentInvalid) };
        }
        let ends_well = match (self.total, fragment.more) {
            (Some(total), true) => range.end < total,
            (Some(_), false) => false,
            (None, true) => true,
            (None, false) => !(range.end.div_ceil(UNIT)..LONGEST / UNIT).any(here),
        };
        if ends_well { Ok(true) } else { Err(DropReason::FragmentInvalid) }
    }

    /// RFC 3168 section 5.3: congestion that one fragment met is the whole packet's, unless one of them cannot show it.
    fn whole_class(&self) -> Option<u8> {
        let seen = |ecn: u8| self.ecn & 1 << ecn != 0;
        match (seen(tunnel::CE), seen(tunnel::NOT_ECT)) {
            (false, _) => Some(self.traffic_class),
            (true, false) => Some(self.traffic_class | tunnel::CE),
            (true, true) => None,
        }
    }
}

fn units(range: &std::ops::Range<usize>) -> std::ops::Range<usize> {
    range.start / UNIT..range.end.div_ceil(UNIT)
}

impl Engine {
    /// Takes a fragment; the whole packet, if no other was missing.
    pub(crate) fn reassemble<F: Frame>(
        &mut self,
        now: Time,
        frame: F,
        out: &mut impl Output<F>,
    ) -> Option<F> {
        let made = self.whole(now, frame.data(), out);
        self.count_abandoned();
        match made {
            Err(reason) => {
                self.discard(frame, reason, out);
                None
            }
            Ok(whole) => {
                self.discard(frame, DropReason::FragmentKept, out);
                let count = u64::from(whole.is_some());
                self.counters.add(Counter::Reassembled, count);
                self.counters.add(Counter::Created, count);
                whole
            }
        }
    }

    pub(crate) fn count_abandoned(&mut self) {
        let abandoned = self.reassembly.take_abandoned();
        self.counters.add(Counter::ReassemblyAbandoned, abandoned);
    }

    fn whole<F: Frame>(
        &mut self,
        now: Time,
        octets: &[u8],
        out: &mut impl Output<F>,
    ) -> Result<Option<F>, DropReason> {
        let (head, packet) = head(octets)?;
        let fragment = Fragment::of(&head, packet).ok_or(DropReason::FragmentInvalid)?;
        let Some(whole) = self.reassembly.take(now, &fragment)? else { return Ok(None) };
        let header = ip::header_length(head.source.is_ipv6());
        let size = ETHERNET + header + whole.octets.len();
        let fresh = out.allocate(size).filter(|frame| frame.data().len() == size);
        let mut fresh = fresh.ok_or(DropReason::NoRoom)?;
        let (front, body) = fresh.data_mut().split_at_mut(ETHERNET + header);
        front[..ETHERNET].copy_from_slice(&octets[..ETHERNET]);
        body.copy_from_slice(whole.octets);
        whole.write_header(head.hop_limit, &mut front[ETHERNET..]);
        Ok(Some(fresh))
    }
}

#[cfg(test)]
#[path = "reassembly_tests.rs"]
mod tests;
