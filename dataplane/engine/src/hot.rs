//! The SAs' hot state where it outlives this process: sequence numbers and replay windows, in memory that is only ever
//! touched as atomic words and that the supervisor keeps.
//!
//! A killed engine may stop between any two stores. So each store leaves the memory such that the next engine can do no harm:
//! - *outbound*, numbers are reserved [`BATCH`] at a time before the first of them is used; the next engine goes on
//!   behind all that are reserved;
//! - *inbound*, a packet's number is marked before the packet is handed on. As the window moves, its right end is stored
//!   first: what a half-made move leaves behind in it refuses packets, or is of numbers that no packet was handed on with.
//!
//! A slot is known by its SA's keys ([`identity`]), so the same keys never begin at 1 again, and no other SA takes the slot
//! for its own.

use spindle_abi::{MAX_SAS, SaActivity, SaParameters, Time, sa_slot};
use spindle_aead::{fingerprint, prefetch};
use spindle_esp::ReplayWindow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Outbound sequence numbers that are reserved at a time: so many are skipped at most when a new engine takes over.
pub(crate) const BATCH: u64 = 64;

/// Words that outlive the engine.
pub type Memory = Arc<dyn AsRef<[AtomicU64]> + Send + Sync>;

/// Where the hot state of SAs is kept. One engine at a time writes it.
#[derive(Clone)]
pub struct SaRegion {
    /// A slot of [`sa_slot::WORDS`] for each SA.
    slots: Memory,
    /// Replay windows that are too large for their slots, those of one size side by side.
    windows: Memory,
}

impl fmt::Debug for SaRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SaRegion").finish_non_exhaustive()
    }
}

impl SaRegion {
    /// On memory for [`MAX_SAS`] SAs or, with fewer words, for those with the lower indexes: what finds no room here is not
    /// kept.
    pub fn new(slots: Memory, windows: Memory) -> SaRegion {
        SaRegion { slots, windows }
    }

    #[inline]
    fn slot(&self, index: u32) -> Option<&[AtomicU64]> {
        let start = index as usize * sa_slot::WORDS;
        (*self.slots).as_ref().get(start..start + sa_slot::WORDS)
    }

    /// The blocks of a window, in its SA's slot if they are few.
    #[inline]
    fn window<'a>(&'a self, index: u32, slot: &'a [AtomicU64], blocks: usize) -> Option<&'a [AtomicU64]> {
        if blocks <= sa_slot::BLOCKS {
            return slot.get(sa_slot::WINDOW..sa_slot::WINDOW + blocks);
        }
        // Windows of all smaller sizes come first: 4, 8, … blocks for each SA.
        let start = MAX_SAS as usize * (blocks - 2 * sa_slot::BLOCKS) + index as usize * blocks;
        (*self.windows).as_ref().get(start..start + blocks)
    }

    /// Fetches a slot ahead of its use.
    #[inline]
    pub(crate) fn prefetch(&self, index: u32) {
        if let Some(slot) = self.slot(index) {
            prefetch(&slot[0]);
        }
    }

    /// For an outbound SA that is installed: what it has carried under an earlier engine, and the sequence number to go on
    /// behind. An SA that is new here gets an empty slot.
    pub(crate) fn adopt_outbound(&self, index: u32, identity: u64) -> Option<(SaActivity, u64)> {
        let slot = self.slot(index)?;
        if slot[sa_slot::IDENTITY].load(Ordering::Relaxed) == identity {
            return Some((activity(slot), slot[sa_slot::SEQUENCE].load(Ordering::Relaxed)));
        }
        self.begin(slot, index, 0, identity);
        None
    }

    /// For an inbound SA that is installed: what it has carried under an earlier engine, whose replay window goes on in
    /// `window`. An SA that is new here gets an empty slot.
    pub(crate) fn adopt_inbound(
        &self,
        index: u32,
        identity: u64,
        window: &mut ReplayWindow,
    ) -> Option<SaActivity> {
        let slot = self.slot(index)?;
        let blocks = window.blocks().len();
        if slot[sa_slot::IDENTITY].load(Ordering::Relaxed) != identity {
            self.begin(slot, index, blocks, identity);
            return None;
        }
        let top = slot[sa_slot::SEQUENCE].load(Ordering::Relaxed);
        let same = slot[sa_slot::SIZE].load(Ordering::Relaxed) == blocks as u64;
        let words = self.window(index, slot, blocks);
        // A window of another size says nothing of single numbers: then none of those up to the highest is taken.
        window.restore(top, |block| match words {
            Some(words) if same => words[block].load(Ordering::Relaxed),
            _ => u64::MAX,
        });
        if !same {
            slot[sa_slot::SIZE].store(blocks as u64, Ordering::Relaxed);
            for (word, block) in words.into_iter().flatten().zip(window.blocks()) {
                word.store(*block, Ordering::Relaxed);
            }
        }
        Some(activity(slot))
    }

    /// Nobody's, then empty, then this SA's.
    fn begin(&self, slot: &[AtomicU64], index: u32, blocks: usize, identity: u64) {
        slot[sa_slot::IDENTITY].store(0, Ordering::Relaxed);
        for word in slot.iter().chain(self.window(index, slot, blocks).into_iter().flatten()) {
            word.store(0, Ordering::Relaxed);
        }
        slot[sa_slot::SIZE].store(blocks as u64, Ordering::Relaxed);
        slot[sa_slot::IDENTITY].store(identity, Ordering::Release);
    }

    /// Before a packet is encapsulated: `last` is the number that was used last.
    #[inline]
    pub(crate) fn reserve(&self, index: u32, last: u64) {
        if last.is_multiple_of(BATCH)
            && let Some(slot) = self.slot(index)
        {
            slot[sa_slot::SEQUENCE].store(last.saturating_add(BATCH), Ordering::Relaxed);
        }
    }

    /// Before a packet is handed on that was opened: `window` has just marked its number; `top` was its right end before.
    #[inline]
    pub(crate) fn mark(&self, index: u32, window: &ReplayWindow, top: u64, sequence: u64) {
        let Some(slot) = self.slot(index) else { return };
        let Some(words) = self.window(index, slot, window.blocks().len()) else { return };
        stores(window, top, sequence, |store| match store {
            Store::Top(top) => slot[sa_slot::SEQUENCE].store(top, Ordering::Relaxed),
            Store::Block(block, value) => words[block].store(value, Ordering::Relaxed),
        });
    }
}

fn activity(slot: &[AtomicU64]) -> SaActivity {
    let word = |at: usize| slot[at].load(Ordering::Relaxed);
    SaActivity {
        packets: word(sa_slot::PACKETS),
        bytes: word(sa_slot::BYTES),
        last: Time(word(sa_slot::LAST)),
    }
}

/// One store into the memory of a replay window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Store {
    Top(u64),
    Block(usize, u64),
}

/// The stores that bring the memory to what `window` is after it has marked `sequence`, in their order. Relaxed: they come
/// before the release by which the packet is handed on, and a kill takes none of them back.
#[inline]
fn stores(window: &ReplayWindow, top: u64, sequence: u64, mut store: impl FnMut(Store)) {
    let (blocks, new) = (window.blocks(), window.top());
    if new > top {
        // First, so that what makes room below is left of the window already.
        store(Store::Top(new));
        let mask = blocks.len().wrapping_sub(1);
        // The block of the last one follows below.
        let moved = ((new >> 6) - (top >> 6)).min(blocks.len() as u64);
        for step in 0..moved {
            let block = ((top >> 6).wrapping_add(step)) as usize & mask;
            store(Store::Block(block, blocks[block]));
        }
    }
    if !blocks.is_empty() {
        let block = (sequence >> 6) as usize & (blocks.len() - 1);
        store(Store::Block(block, blocks[block]));
    }
}

/// Which way an SA goes.
#[derive(Clone, Copy)]
pub(crate) enum Direction {
    Inbound = 1,
    Outbound = 2,
}

/// By its keys, which no other SA has (RFC 7296 section 2.17): so nothing but these decides whether a sequence number was
/// used. Never 0, which is nobody's.
pub(crate) fn identity(sa: &SaParameters, direction: Direction) -> u64 {
    let spi = sa.spi.0.to_be_bytes();
    fingerprint(&[sa.keymat.as_bytes(), &spi, &[direction as u8]]).max(1)
}

#[cfg(test)]
#[path = "hot_tests.rs"]
mod tests;
