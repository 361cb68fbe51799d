//! A worker's part in a capture: copies of frames as they came and as they leave, with their verdicts, onto a ring.
//!
//! A frame is copied when it comes, before anything is done to it in place, and known again by the place of its memory when
//! it gets its verdict. Then both copies are written: as it came, with the reason if it was dropped, and as it left. What
//! waits for a next hop or an SA keeps its copy meanwhile. All room is made when the capture begins, by main; the worker
//! allocates nothing, and what finds no room, here or on the ring, is counted as lost.

use crate::held::{UNRESOLVED, WITHOUT_SA};
use arrayvec::ArrayVec;
use spindle_abi::{Spi, Time};
use spindle_engine::{BURST, DropReason, Frame};
use spindle_ring::capture::{CaptureWriter, Captured, OUTSIDE};
use spindle_ring::capture_socket::{MAX_SNAPLEN, MAX_SPIS, Request};
use spindle_wire::{esp, ethernet, ip, protocol, udp};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// Frames that have come and have no verdict yet, at most: those that wait, those for which there was no room to wait, and a
/// burst.
const SLOTS: usize = 2 * (UNRESOLVED + WITHOUT_SA) + BURST;

/// The SPIs that are wanted; main may change them while the workers look.
pub(crate) struct Wanted {
    count: AtomicUsize,
    spis: [AtomicU32; MAX_SPIS],
}

/// All of them.
const ANY: usize = usize::MAX;

impl Wanted {
    pub(crate) fn new(spis: Option<&[u32]>) -> Wanted {
        let wanted = Wanted { count: AtomicUsize::new(0), spis: [const { AtomicU32::new(0) }; MAX_SPIS] };
        wanted.replace(spis);
        wanted
    }

    pub(crate) fn replace(&self, spis: Option<&[u32]>) {
        let Some(spis) = spis else { return self.count.store(ANY, Ordering::Release) };
        for (place, spi) in self.spis.iter().zip(spis) {
            place.store(*spi, Ordering::Relaxed);
        }
        self.count.store(spis.len().min(MAX_SPIS), Ordering::Release);
    }

    fn has(&self, spi: Spi) -> bool {
        match self.count.load(Ordering::Acquire) {
            ANY => true,
            count => self.spis.iter().take(count).any(|wanted| wanted.load(Ordering::Relaxed) == spi.0),
        }
    }
}

/// A copy of a frame.
#[derive(Clone, Copy)]
struct Copy {
    of: Captured,
    slot: u16,
    octets: u16,
}

/// A frame that has come and has no verdict yet.
#[derive(Clone, Copy)]
struct Arrival {
    place: usize,
    copy: Copy,
    /// It did not come so, but was put together.
    made: bool,
}

/// A frame that is about to leave.
struct Departure {
    place: usize,
    copy: Copy,
}

/// What one worker captures.
pub(crate) struct Capture {
    writer: CaptureWriter,
    wanted: Arc<Wanted>,
    sides: [bool; 2],
    only_dropped: bool,
    snaplen: usize,
    nat_port: u16,
    /// The reader broke the ring: nothing is written any more.
    broken: bool,
    /// Slots of `snaplen` octets; the last one is for what leaves.
    octets: Box<[u8]>,
    free: ArrayVec<u16, SLOTS>,
    /// Oldest first.
    arrivals: ArrayVec<Arrival, SLOTS>,
    departure: Option<Departure>,
}

impl Capture {
    /// Begins, with all the room that it will need.
    pub(crate) fn new(
        writer: CaptureWriter,
        request: &Request,
        wanted: Arc<Wanted>,
        nat_port: u16,
    ) -> Capture {
        let snaplen = usize::from(request.snaplen.min(MAX_SNAPLEN));
        Capture {
            writer,
            wanted,
            sides: request.sides,
            only_dropped: request.dropped,
            snaplen,
            nat_port,
            broken: false,
            octets: vec![0; (SLOTS + 1) * snaplen].into(),
            free: (0..SLOTS as u16).collect(),
            arrivals: ArrayVec::new(),
            departure: None,
        }
    }

    /// These frames came by this interface.
    pub(crate) fn came<F: Frame>(&mut self, at: Time, interface: u16, frames: &[F]) {
        for frame in frames {
            self.arrive(at, interface, frame, false);
        }
    }

    /// This frame was put together of some that came by this interface.
    pub(crate) fn made<F: Frame>(&mut self, at: Time, interface: u16, frame: &F) {
        self.arrive(at, interface, frame, true);
    }

    fn arrive<F: Frame>(&mut self, at: Time, interface: u16, frame: &F, made: bool) {
        self.forget(frame.place());
        let of = self.describe(at, interface, false, frame.data());
        match self.free.pop() {
            Some(slot) => {
                let copy = self.copy(of, slot, frame.data());
                self.arrivals.push(Arrival { place: frame.place(), copy, made });
            }
            None => self.writer.lose(&of),
        }
    }

    fn describe(&self, at: Time, interface: u16, left: bool, octets: &[u8]) -> Captured {
        let spi = if interface == OUTSIDE { spi_of(octets, self.nat_port) } else { None };
        let length = octets.len().min(usize::from(u16::MAX)) as u16;
        Captured { at, interface, left, dropped: None, spi: spi.unwrap_or(Spi(0)), length }
    }

    fn copy(&mut self, of: Captured, slot: u16, octets: &[u8]) -> Copy {
        let count = octets.len().min(self.snaplen);
        let start = usize::from(slot) * self.snaplen;
        self.octets[start..start + count].copy_from_slice(&octets[..count]);
        Copy { of, slot, octets: count as u16 }
    }

    /// Gives out the copy of the frame that is there; its slot is free, and as it was until the next frame comes.
    fn take(&mut self, place: usize) -> Option<Arrival> {
        // The latest ones have their verdicts first.
        let at = self.arrivals.iter().rposition(|arrival| arrival.place == place)?;
        let arrival = self.arrivals.remove(at);
        self.free.push(arrival.copy.slot);
        Some(arrival)
    }

    /// Nothing is said of the frame that is there: another worker has it.
    pub(crate) fn forget(&mut self, place: usize) {
        let _ = self.take(place);
    }

    /// The frame's way ends here.
    pub(crate) fn dropped<F: Frame>(&mut self, frame: &F, reason: DropReason) {
        // What has no copy was here before the capture began, or never came.
        if let Some(Arrival { mut copy, .. }) = self.take(frame.place()) {
            copy.of.dropped = Some(reason as u8);
            self.write(&copy);
        }
    }

    /// The frame is about to leave by this interface; [`Capture::left`] or [`Capture::lost`] says how it went.
    pub(crate) fn leaving<F: Frame>(&mut self, at: Time, interface: u16, frame: &F) {
        let of = self.describe(at, interface, true, frame.data());
        let copy = self.copy(of, SLOTS as u16, frame.data());
        self.departure = Some(Departure { place: frame.place(), copy });
    }

    /// The frame has left.
    pub(crate) fn left(&mut self) {
        let Some(Departure { place, mut copy }) = self.departure.take() else { return };
        if let Some(mut arrival) = self.take(place) {
            // One of both is the outside's and shows the SPI, or neither.
            let spi = Spi(copy.of.spi.0.max(arrival.copy.of.spi.0));
            (copy.of.spi, arrival.copy.of.spi) = (spi, spi);
            if !arrival.made {
                self.write(&arrival.copy);
            }
        }
        self.write(&copy);
    }

    /// The frame could not leave.
    pub(crate) fn lost(&mut self) {
        let Some(Departure { place, mut copy }) = self.departure.take() else { return };
        if let Some(arrival) = self.take(place) {
            copy = arrival.copy;
        }
        copy.of.dropped = Some(DropReason::TransmitFailed as u8);
        self.write(&copy);
    }

    fn write(&mut self, copy: &Copy) {
        let Copy { of, slot, octets } = copy;
        let side = usize::from(of.interface == OUTSIDE);
        let is_wanted =
            self.sides[side] && (of.dropped.is_some() || !self.only_dropped) && self.wanted.has(of.spi);
        if !is_wanted || self.broken {
            return;
        }
        let start = usize::from(*slot) * self.snaplen;
        self.broken = self.writer.write(of, &self.octets[start..start + usize::from(*octets)]).is_err();
    }

    /// Shows what was written; after each turn.
    pub(crate) fn publish(&mut self) {
        self.writer.publish();
    }
}

/// The SPI of the ESP in this frame, plain or in UDP.
fn spi_of(octets: &[u8], nat_port: u16) -> Option<Spi> {
    let packet = octets.get(ethernet::HEADER_LENGTH..)?;
    let head = ip::Head::parse(packet).ok().filter(|head| head.fragment_offset == 0)?;
    let payload = head.payload(packet);
    let payload = match head.protocol {
        protocol::ESP => payload,
        protocol::UDP => {
            let ports = payload.first_chunk::<4>()?;
            let nat_port = nat_port.to_be_bytes();
            let is_ours = ports[..2] == nat_port || ports[2..] == nat_port;
            let esp = payload.get(udp::HEADER_LENGTH..).filter(|_| is_ours)?;
            matches!(esp::InUdp::of(esp), esp::InUdp::Esp).then_some(esp)?
        }
        _ => return None,
    };
    payload.first_chunk().map(|spi| Spi(u32::from_be_bytes(*spi)))
}

#[cfg(test)]
#[path = "capture_tests.rs"]
mod tests;
