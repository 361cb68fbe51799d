//! The regions that the dataplane writes: what is hot of each SA (control reads its activity there), its replay window if
//! that is large, and counters that name themselves (for control).

use crate::memory::Mapping;
use crate::sync::{AtomicU64, HEADER_WORDS, Ordering};
use spindle_abi::{MAX_SAS, SaActivity, Time, sa_slot};
use std::collections::HashMap;
use std::sync::Arc;

/// Counters at most: some hundred for each worker.
pub const MAX_COUNTERS: usize = 4096;
/// Octets of a counter's name at most.
pub const NAME_LENGTH: usize = 48;
/// Words of one counter: its name, its value, nothing.
const COUNTER_WORDS: usize = NAME_LENGTH / 8 + 2;
/// The header's word that counts the counters.
const COUNT: usize = 16;

/// Octets of the SA region's memfd; sparse.
pub(crate) const SA_OCTETS: usize = (HEADER_WORDS + MAX_SAS as usize * sa_slot::WORDS) * 8;
/// Octets of the memfd of large replay windows, each SA's place for each size from twice of what a slot holds; very sparse.
pub(crate) const WINDOW_OCTETS: usize =
    (HEADER_WORDS + MAX_SAS as usize * 2 * (sa_slot::MAX_BLOCKS - sa_slot::BLOCKS)) * 8;
/// Octets of the counter region's memfd.
pub(crate) const COUNTER_OCTETS: usize = (HEADER_WORDS + MAX_COUNTERS * COUNTER_WORDS) * 8;

fn slot(words: &[AtomicU64], index: u32) -> Option<&[AtomicU64]> {
    let start = HEADER_WORDS + index as usize * sa_slot::WORDS;
    words.get(start..start + sa_slot::WORDS)
}

fn counter_slot(words: &[AtomicU64], index: usize) -> &[AtomicU64] {
    let start = HEADER_WORDS + index * COUNTER_WORDS;
    &words[start..start + COUNTER_WORDS]
}

/// The words of a region that outlives the dataplane, for its engine; all of them are the engine's to lay out.
pub struct Words(pub(crate) Arc<Mapping>);

impl AsRef<[AtomicU64]> for Words {
    #[inline]
    fn as_ref(&self) -> &[AtomicU64] {
        &self.0[HEADER_WORDS..]
    }
}

/// The dataplane's end of the SA region, for what control is to see.
#[derive(Clone)]
pub struct ActivityWriter(pub(crate) Arc<Mapping>);

impl ActivityWriter {
    /// Says what the SA with this index (below [`MAX_SAS`]) has carried.
    pub fn store(&self, index: u32, activity: SaActivity) {
        let Some(slot) = slot(&self.0, index) else { return };
        slot[sa_slot::PACKETS].store(activity.packets, Ordering::Relaxed);
        slot[sa_slot::BYTES].store(activity.bytes, Ordering::Relaxed);
        slot[sa_slot::LAST].store(activity.last.0, Ordering::Relaxed);
    }
}

/// Control's end of the SA region.
pub struct ActivityReader(pub(crate) Mapping);

impl ActivityReader {
    /// What the SA with this index has carried; all zero beyond [`MAX_SAS`]. The three values may be of two moments
    /// a burst apart.
    pub fn load(&self, index: u32) -> SaActivity {
        let Some(slot) = slot(&self.0, index) else { return SaActivity::default() };
        SaActivity {
            packets: slot[sa_slot::PACKETS].load(Ordering::Relaxed),
            bytes: slot[sa_slot::BYTES].load(Ordering::Relaxed),
            last: Time(slot[sa_slot::LAST].load(Ordering::Relaxed)),
        }
    }
}

/// The dataplane's end of the counter region.
pub struct CounterWriter(pub(crate) Mapping);

impl CounterWriter {
    /// Adds a counter of this name (cut to [`NAME_LENGTH`] octets) and says its number; `None` if there is no room. Of one
    /// name there may be several, a worker's each: control sees their sum.
    pub fn define(&mut self, name: &str) -> Option<usize> {
        let number = self.0[COUNT].load(Ordering::Relaxed) as usize;
        if number >= MAX_COUNTERS {
            return None;
        }
        let mut octets = [0; NAME_LENGTH];
        let length = name.len().min(NAME_LENGTH);
        octets[..length].copy_from_slice(&name.as_bytes()[..length]);
        for (word, octets) in counter_slot(&self.0, number).iter().zip(octets.chunks_exact(8)) {
            word.store(u64::from_ne_bytes(octets.try_into().expect("eight octets")), Ordering::Relaxed);
        }
        self.0[COUNT].store(number as u64 + 1, Ordering::Release);
        Some(number)
    }

    /// Sets the value of a counter that [`CounterWriter::define`] gave.
    pub fn store(&self, number: usize, value: u64) {
        counter_slot(&self.0, number)[NAME_LENGTH / 8].store(value, Ordering::Relaxed);
    }
}

/// Control's end of the counter region.
pub struct CounterReader(pub(crate) Mapping);

impl CounterReader {
    /// All counters that are defined, in their order; those of one name together, in the place of the first. Octets of a
    /// name that are no UTF-8 are replaced.
    pub fn iter(&self) -> impl Iterator<Item = (String, u64)> {
        let (mut sums, mut places) = (Vec::<(String, u64)>::new(), HashMap::new());
        for (name, value) in self.each() {
            let place = *places.entry(name.clone()).or_insert(sums.len());
            match sums.get_mut(place) {
                Some((_, sum)) => *sum = sum.wrapping_add(value),
                None => sums.push((name, value)),
            }
        }
        sums.into_iter()
    }

    fn each(&self) -> impl Iterator<Item = (String, u64)> + '_ {
        let count = (self.0[COUNT].load(Ordering::Acquire) as usize).min(MAX_COUNTERS);
        (0..count).map(|number| {
            let slot = counter_slot(&self.0, number);
            let (name, rest) = slot.split_at(NAME_LENGTH / 8);
            let octets: Vec<u8> =
                name.iter().flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes()).collect();
            let end = octets.iter().position(|o| *o == 0).unwrap_or(octets.len());
            (String::from_utf8_lossy(&octets[..end]).into_owned(), rest[0].load(Ordering::Relaxed))
        })
    }

    /// The value of the counters with this name.
    pub fn value(&self, name: &str) -> Option<u64> {
        self.iter().find(|(n, _)| n == name).map(|(_, sum)| sum)
    }
}
