//! What the engine works on and whom it tells: frames, the two sides, and where verdicts go.

use crate::DropReason;
use spindle_abi::Event;
use spindle_aead::prefetch;
use std::fmt;
use std::net::IpAddr;

/// Frames in one call of [`crate::Engine::process`] at most.
pub const BURST: usize = 32;

/// One layer-2 frame that its holder owns alone. Growing gives octets of unspecified content.
pub trait Frame {
    /// The octets, from the Ethernet header on, without FCS.
    fn data(&self) -> &[u8];
    /// The octets, to be changed.
    fn data_mut(&mut self) -> &mut [u8];
    /// Puts `count` octets before the first; `false` (and no change) if there is no room.
    fn grow_front(&mut self, count: usize) -> bool;
    /// Takes `count` octets off the front; all of them if there are fewer.
    fn shrink_front(&mut self, count: usize);
    /// Puts `count` octets after the last; `false` (and no change) if there is no room.
    fn grow_back(&mut self, count: usize) -> bool;
    /// Keeps the first `length` octets; does nothing if there are fewer.
    fn truncate(&mut self, length: usize);
    /// Where its memory is: of no other frame at this time, and the same for all of this one's way.
    fn place(&self) -> usize;
}

/// Octets of a frame that come with its headers, or soon after. One that is no longer is not worth more.
const HEADERS: usize = 192;

/// Fetches the line in which a frame's headers begin, ahead of their use. In copy mode another core has just written it;
/// so those of a whole burst are on their way at once.
#[inline(always)]
pub fn fetch_headers(frame: &impl Frame) {
    frame.data().first().into_iter().for_each(prefetch);
}

/// Fetches what stands behind the headers, ahead of its use.
#[inline(always)]
pub(crate) fn fetch_payload(frame: &impl Frame) {
    if let Some(behind) = frame.data().get(HEADERS..) {
        prefetch(behind);
    }
}

/// Fetches the line in which a packet ends, where its trailer is written.
#[inline(always)]
pub(crate) fn fetch_end(frame: &impl Frame) {
    if let Some([.., last]) = frame.data().get(HEADERS..) {
        prefetch(last);
    }
}

/// The gateway's two sides (RFC 4301: protected and unprotected).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum PortId {
    /// Cleartext.
    Inside = 0,
    /// ESP.
    Outside = 1,
}

/// Where a frame that is handed from worker to worker came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// From inside, or from the host by the virtual interface with this number; 0 is the inside.
    Inside(u16),
    /// From outside.
    Outside,
}

/// Where the engine's verdicts go. Each frame goes to exactly one of `transmit`, `to_host`, `discard`, `unresolved` and, if they
/// keep it, `without_sa` and `hand_over`.
pub trait Output<F: Frame> {
    /// A complete layer-2 frame to be sent. If it cannot be, tell [`crate::Engine::lost_in_transmit`].
    fn transmit(&mut self, port: PortId, frame: F);

    /// A packet, behind 14 octets for an Ethernet header, for the host by a virtual interface; 0 is the inside, which is
    /// one then. Where there are none, it is never called. If it cannot be sent, tell [`crate::Engine::lost_in_transmit`]
    /// of the inside.
    fn to_host(&mut self, interface: u16, frame: F);

    /// The frame's way ends here. It is counted already; take its memory back.
    fn discard(&mut self, frame: F, reason: DropReason);

    /// The next hop towards `destination` is not known. The frame holds its IP packet behind 14 octets for the
    /// Ethernet header; `egress` is the only port it may leave by. Hold a bounded number of these, resolve, call
    /// [`crate::Engine::set_next_hop`], and then hand each back to [`crate::Engine::forward`], or to
    /// [`crate::Engine::give_up`].
    fn unresolved(&mut self, egress: PortId, destination: IpAddr, frame: F);

    /// `policy` has no SA for this packet yet; `hold` packets of it may wait. Keep it and hand it to
    /// [`crate::Engine::take_up`] once an SA of the policy is installed, or after a while to [`crate::Engine::give_up`]; or
    /// give it back, and it is dropped.
    #[must_use]
    fn without_sa(&mut self, _policy: u32, _hold: u16, frame: F) -> Option<F> {
        Some(frame)
    }

    /// The frame is of an SA of another worker's, which is to give it to its [`crate::Engine::take_over`]. `Err`: there is
    /// no room.
    fn hand_over(&mut self, _worker: u16, _origin: Origin, frame: F) -> Result<(), F> {
        Err(frame)
    }

    /// A packet has been put together in this frame. It is judged next, as if it had come so.
    fn made(&mut self, _origin: Origin, _frame: &F) {}

    /// The packet that came in this frame was dropped, and counted; what is in it now, and leaves next, tells its sender why.
    fn answered(&mut self, _frame: &F, _reason: DropReason) {}

    /// Something for control. `false`: the ring ([`Event::is_urgent`] says which) is full. The engine keeps
    /// urgent events and offers them again; noise is counted as lost.
    #[must_use]
    fn event(&mut self, event: Event) -> bool;

    /// A fresh frame of this length, if there is one: for the second half of a packet that must be fragmented.
    fn allocate(&mut self, _length: usize) -> Option<F> {
        None
    }
}

/// A frame in ordinary memory, for tests, benches and the simulation.
#[derive(Clone)]
pub struct MemoryFrame {
    octets: Vec<u8>,
    start: usize,
    end: usize,
}

impl MemoryFrame {
    /// Octets before the frame that [`Frame::grow_front`] can take.
    pub const HEADROOM: usize = 128;
    /// Octets behind the frame that [`Frame::grow_back`] can take.
    pub const TAILROOM: usize = 128;

    /// A frame with these octets.
    pub fn new(frame: &[u8]) -> MemoryFrame {
        let mut made = MemoryFrame { octets: Vec::new(), start: 0, end: 0 };
        made.refill(frame);
        made
    }

    /// Makes this the frame with these octets again, without allocating if it fits.
    pub fn refill(&mut self, frame: &[u8]) {
        (self.start, self.end) = (Self::HEADROOM, Self::HEADROOM + frame.len());
        if self.octets.len() < self.end + Self::TAILROOM {
            self.octets.resize(self.end + Self::TAILROOM, 0);
        }
        self.octets[self.start..self.end].copy_from_slice(frame);
    }
}

impl Frame for MemoryFrame {
    #[inline]
    fn data(&self) -> &[u8] {
        &self.octets[self.start..self.end]
    }
    #[inline]
    fn data_mut(&mut self) -> &mut [u8] {
        &mut self.octets[self.start..self.end]
    }
    #[inline]
    fn grow_front(&mut self, count: usize) -> bool {
        let Some(start) = self.start.checked_sub(count) else { return false };
        self.start = start;
        true
    }
    #[inline]
    fn shrink_front(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
    }
    #[inline]
    fn grow_back(&mut self, count: usize) -> bool {
        let room = self.octets.len() - self.end >= count;
        if room {
            self.end += count;
        }
        room
    }
    #[inline]
    fn truncate(&mut self, length: usize) {
        self.end = self.end.min(self.start + length);
    }
    fn place(&self) -> usize {
        self.octets.as_ptr().addr()
    }
}

/// By their octets.
impl PartialEq for MemoryFrame {
    fn eq(&self, other: &MemoryFrame) -> bool {
        self.data() == other.data()
    }
}

impl Eq for MemoryFrame {}

impl fmt::Debug for MemoryFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MemoryFrame").field(&self.data()).finish()
    }
}
