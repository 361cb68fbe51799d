//! The delay box: bridges two interfaces and holds each frame for half the round-trip time.
//!
//! One thread reads both packet sockets, puts each frame with its deadline on a bounded queue and sends it to the
//! other side when it is due. Offload metadata travels along, so GSO frames and partial checksums pass untouched.
//! Loss, duplicates and reordering come from a seeded generator; a filter can pick single frames (a token, say).

use crate::error::Result;
use crate::frame::internet_sum;
use crate::packet::{LARGEST_FRAME, OFFLOAD_HEADER, PacketSocket, Show, be_punctual};
use crate::topology::{Side, Topology};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What the link between the gateways does to frames. Shares are between 0 and 1, of the frames of both directions.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Link {
    /// Round-trip time; each direction takes half of it.
    pub round_trip: Duration,
    /// Share of frames that are lost.
    pub loss: f64,
    /// Share of frames that arrive twice.
    pub duplicate: f64,
    /// Share of frames that arrive [`Link::REORDER_BY`] later than they should, so later ones overtake them.
    pub reorder: f64,
    /// Seed of the three shares.
    pub seed: u64,
}

impl Link {
    /// How much later a reordered frame arrives.
    pub const REORDER_BY: Duration = Duration::from_millis(3);

    /// A link that only delays.
    pub fn with_round_trip(round_trip: Duration) -> Link {
        Link { round_trip, loss: 0.0, duplicate: 0.0, reorder: 0.0, seed: 1 }
    }
}

/// What a filter does with a frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Treat it like every other.
    Pass,
    /// Lose it.
    Drop,
    /// Deliver it twice.
    Duplicate,
    /// Lose it, and deliver these frames in its place.
    Instead {
        /// To where it was on its way.
        onward: Vec<Vec<u8>>,
        /// To whence it came.
        back: Vec<Vec<u8>>,
    },
}

/// Sees each frame (from its Ethernet header on) with the side that it comes from.
pub type Filter = Box<dyn FnMut(Side, &[u8]) -> Verdict + Send>;

/// What the delay box counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DelayCounters {
    /// Frames that arrived at the box.
    pub received: u64,
    /// Frames sent on.
    pub forwarded: u64,
    /// Lost on purpose: by share or filter.
    pub lost: u64,
    /// Added on purpose.
    pub duplicated: u64,
    /// Dropped because the queue was full. Not intended: a test that sees one has a wrong measure.
    pub overflowed: u64,
    /// The kernel would not take the frame (no buffer, interface down).
    pub refused: u64,
    /// Largest lateness of a frame beyond its deadline, in nanoseconds.
    pub latest: u64,
}

#[derive(Default)]
struct Counters {
    received: AtomicU64,
    forwarded: AtomicU64,
    lost: AtomicU64,
    duplicated: AtomicU64,
    overflowed: AtomicU64,
    refused: AtomicU64,
    latest: AtomicU64,
}

struct Shared {
    stop: AtomicBool,
    link: Mutex<Link>,
    filter: Mutex<Option<Filter>>,
    counters: Counters,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running delay box; stops when dropped.
pub struct DelayBox {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for DelayBox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DelayBox").field("link", &self.link()).field("counters", &self.counters()).finish()
    }
}

impl DelayBox {
    /// Octets that may wait in the box.
    const QUEUE_OCTETS: usize = 64 << 20;

    /// Bridges the two interfaces of the topology's delay box.
    pub fn start(topology: &Topology, link: Link) -> Result<DelayBox> {
        let open = |side: Side| {
            PacketSocket::open(topology.delay_box(), &side.box_interface(), Show::ArrivingWithOffloads)
        };
        let sockets = [open(Side::A)?, open(Side::B)?];
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            link: Mutex::new(link),
            filter: Mutex::new(None),
            counters: Counters::default(),
        });
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::spawn(move || Bridge::new(sockets, of_thread).run());
        Ok(DelayBox { shared, thread: Some(thread) })
    }

    /// The link as it is now.
    pub fn link(&self) -> Link {
        *lock(&self.shared.link)
    }

    /// Changes the link for frames that arrive from now on.
    pub fn set_link(&self, link: Link) {
        *lock(&self.shared.link) = link;
    }

    /// Shows every frame that arrives from now on to `filter`.
    pub fn set_filter(&self, filter: Option<Filter>) {
        *lock(&self.shared.filter) = filter;
    }

    /// What was counted so far.
    pub fn counters(&self) -> DelayCounters {
        let counters = &self.shared.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DelayCounters {
            received: read(&counters.received),
            forwarded: read(&counters.forwarded),
            lost: read(&counters.lost),
            duplicated: read(&counters.duplicated),
            overflowed: read(&counters.overflowed),
            refused: read(&counters.refused),
            latest: read(&counters.latest),
        }
    }
}

impl Drop for DelayBox {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// A frame on its way; the earliest deadline first, then the order of arrival.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    due: Instant,
    number: u64,
    to: usize,
    frame: Vec<u8>,
}

/// Completes the checksum that a frame's sender has left to its device (`struct virtio_net_hdr`), unless it is one to be
/// segmented too: a filter may take the frame apart.
fn complete_checksum(frame: &mut [u8]) {
    const NEEDS_CHECKSUM: u8 = 1;
    let (header, ethernet) = frame.split_at_mut(OFFLOAD_HEADER);
    let word = |at: usize| usize::from(u16::from_ne_bytes([header[at], header[at + 1]]));
    let (start, at) = (word(6), word(6) + word(8));
    if header[0] & NEEDS_CHECKSUM == 0 || header[1] != 0 || ethernet.len() < at + 2 {
        return;
    }
    let checksum = match !internet_sum(&ethernet[start..]) {
        0 => 0xffff,
        checksum => checksum,
    };
    ethernet[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    header.fill(0);
}

struct Bridge {
    sockets: [PacketSocket; 2],
    shared: Arc<Shared>,
    random: ChaCha8Rng,
    seed: u64,
    waiting: BinaryHeap<Reverse<Waiting>>,
    octets: usize,
    number: u64,
}

impl Bridge {
    /// Frames read from one side before the other side and the deadlines have their turn.
    const BURST: usize = 64;
    /// A deadline this near is waited for by spinning: a sleep would overshoot it.
    const SPIN: Duration = Duration::from_micros(20);
    /// How often the thread looks whether it should stop.
    const PATIENCE: Duration = Duration::from_millis(20);

    fn new(sockets: [PacketSocket; 2], shared: Arc<Shared>) -> Bridge {
        let seed = lock(&shared.link).seed;
        let random = ChaCha8Rng::seed_from_u64(seed);
        Bridge { sockets, shared, random, seed, waiting: BinaryHeap::new(), octets: 0, number: 0 }
    }

    fn run(mut self) {
        be_punctual();
        let mut frame = vec![0; LARGEST_FRAME];
        while !self.shared.stop.load(Ordering::Relaxed) {
            let arrived = self.receive(0, &mut frame) + self.receive(1, &mut frame);
            let next = self.send_due();
            if arrived == 0 {
                self.sleep(next);
            }
        }
    }

    /// Reads a burst from one side; the number of frames.
    fn receive(&mut self, from: usize, frame: &mut [u8]) -> usize {
        let link = *lock(&self.shared.link);
        if link.seed != self.seed {
            self.seed = link.seed;
            self.random = ChaCha8Rng::seed_from_u64(link.seed);
        }
        let mut arrived = 0;
        while arrived < Self::BURST {
            let Ok(Some(received)) = self.sockets[from].receive(frame) else { break };
            arrived += 1;
            self.take(from, &mut frame[..received.length], &link);
        }
        self.shared.counters.received.fetch_add(arrived as u64, Ordering::Relaxed);
        arrived
    }

    fn take(&mut self, from: usize, frame: &mut [u8], link: &Link) {
        let side = if from == 0 { Side::A } else { Side::B };
        let verdict = match lock(&self.shared.filter).as_mut() {
            Some(filter) if frame.len() > OFFLOAD_HEADER => {
                complete_checksum(frame);
                filter(side, &frame[OFFLOAD_HEADER..])
            }
            _ => Verdict::Pass,
        };
        let chance = |random: &mut ChaCha8Rng, share: f64| share > 0.0 && random.random_bool(share.min(1.0));
        let counters = &self.shared.counters;
        if verdict == Verdict::Drop || chance(&mut self.random, link.loss) {
            counters.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let twice = verdict == Verdict::Duplicate || chance(&mut self.random, link.duplicate);
        let late = chance(&mut self.random, link.reorder);
        if twice {
            counters.duplicated.fetch_add(1, Ordering::Relaxed);
        }
        let hold = link.round_trip / 2 + if late { Link::REORDER_BY } else { Duration::ZERO };
        for _ in 0..=usize::from(twice) {
            match &verdict {
                Verdict::Instead { onward, back } => {
                    for (to, frames) in [(1 - from, onward), (from, back)] {
                        let frames = frames.iter().map(|frame| [&[0; OFFLOAD_HEADER][..], frame].concat());
                        frames.for_each(|frame| self.pass(to, hold, &frame));
                    }
                }
                _ => self.pass(1 - from, hold, frame),
            }
        }
    }

    /// Sends a frame, at once or when it is due.
    fn pass(&mut self, to: usize, hold: Duration, frame: &[u8]) {
        if hold.is_zero() && self.waiting.is_empty() {
            self.send(to, frame);
        } else if self.octets + frame.len() > DelayBox::QUEUE_OCTETS {
            self.shared.counters.overflowed.fetch_add(1, Ordering::Relaxed);
        } else {
            self.octets += frame.len();
            self.number += 1;
            let (due, number) = (Instant::now() + hold, self.number);
            self.waiting.push(Reverse(Waiting { due, number, to, frame: frame.to_vec() }));
        }
    }

    fn send(&self, to: usize, frame: &[u8]) {
        let sent = self.sockets[to].send(frame);
        let counters = &self.shared.counters;
        if sent { &counters.forwarded } else { &counters.refused }.fetch_add(1, Ordering::Relaxed);
    }

    /// Sends what is due; the next deadline.
    fn send_due(&mut self) -> Option<Instant> {
        while let Some(Reverse(first)) = self.waiting.peek() {
            let now = Instant::now();
            if first.due > now {
                return Some(first.due);
            }
            let lateness = u64::try_from((now - first.due).as_nanos()).unwrap_or(u64::MAX);
            self.shared.counters.latest.fetch_max(lateness, Ordering::Relaxed);
            if let Some(Reverse(first)) = self.waiting.pop() {
                self.octets -= first.frame.len();
                self.send(first.to, &first.frame);
            }
        }
        None
    }

    /// Sleeps until a frame arrives or shortly before the deadline.
    fn sleep(&self, next: Option<Instant>) {
        let left = next.map_or(Self::PATIENCE, |due| due.saturating_duration_since(Instant::now()));
        let Some(timeout) = left.min(Self::PATIENCE).checked_sub(Self::SPIN) else {
            std::hint::spin_loop();
            return;
        };
        let mut descriptors =
            self.sockets.each_ref().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN));
        let _ = ppoll(&mut descriptors, Some(TimeSpec::from_duration(timeout)), None);
    }
}
