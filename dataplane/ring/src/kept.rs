//! What control keeps for the control process after it: records by keys on a sealed memfd that the supervisor owns, with
//! IKE's keys in them. Never on disk, locked in memory, in no core file; the dataplane has no part in it.
//!
//! Several records change at once, all or none, whenever the process is killed:
//!
//! ```text
//! write the new copies into free blocks, marked with transaction n  →  committed = n  →  wipe the old copies
//! ```
//!
//! A copy of a transaction that was not committed is as if it were not there; of a record's committed copies the latest
//! counts. A record that is void has a copy without octets, which goes when the old ones are wiped. Each block has a
//! checksum, so what is damaged all the same is lost, never believed.

use crate::AttachError;
use crate::attachment::{inherit, inherited};
use crate::memory::{self, Mapping};
use crate::sync::{AtomicU64, HEADER_WORDS, Ordering, fence};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use zeroize::{Zeroize, Zeroizing};

/// The environment variable that names the region's descriptor, by its number.
pub const KEPT_ENVIRONMENT: &str = "SPINDLE_KEPT";

/// "spindlek" without its last letters, and the version of this layout.
const MAGIC: u64 = u64::from_be_bytes(*b"spindlK\x01");
/// The layout of this region: what was kept in another one cannot be read.
pub const KEPT_LAYOUT: u64 = MAGIC;
/// Words of one block: its head, then octets of a record.
const BLOCK: usize = 64;
const HEAD: usize = 6;
const PAYLOAD: usize = (BLOCK - HEAD) * 8;
/// Room for one IKE SA, as a rule: there are few with many Child SAs.
const BLOCKS_PER_RECORD: usize = 32;
/// Blocks for void records, whatever else is full.
const RESERVE: usize = 1;

/// The header's words beside the magic.
const COMMITTED: usize = 1;
/// Blocks that were ever used.
const HIGH: usize = 2;

/// A record's key.
pub type KeptKey = [u64; 2];

/// There is no room for these records: none stands of them from here on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

/// The supervisor's end: the memory itself.
#[derive(Clone, Debug)]
pub struct KeptFd(Arc<OwnedFd>);

impl KeptFd {
    /// Empty, with room for so many records; pages come with use.
    pub fn create(records: usize) -> io::Result<KeptFd> {
        let octets = (HEADER_WORDS + records.max(16) * BLOCKS_PER_RECORD * BLOCK) * 8;
        let fd = memory::create_memfd("spindle-kept", octets)?;
        Mapping::new(&fd, octets, true)?[0].store(MAGIC, Ordering::Relaxed);
        Ok(KeptFd(Arc::new(fd)))
    }

    /// Lets the child that `command` will start inherit it, and tells it which descriptor it is.
    pub fn give<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env(KEPT_ENVIRONMENT, self.0.as_raw_fd().to_string());
        inherit(command, vec![self.0.clone()])
    }

    /// The region in this process (tests).
    pub fn open(&self) -> Result<(Kept, Vec<KeptRecord>), AttachError> {
        Kept::open(&self.0)
    }
}

/// A record that an earlier process kept.
pub type KeptRecord = (KeptKey, Zeroizing<Vec<u8>>);

/// Control's end.
pub struct Kept {
    words: Mapping,
    /// The last transaction.
    committed: u64,
    /// Blocks that were ever used.
    high: usize,
    blocks: usize,
    free: Vec<usize>,
    /// Where each record's copy is.
    places: HashMap<KeptKey, Vec<usize>>,
}

/// A block's head.
struct Head {
    key: KeptKey,
    transaction: u64,
    part: u32,
    parts: u32,
    length: u64,
}

impl Kept {
    /// Takes the region that the supervisor left to this process, and what an earlier one kept in it; `None` where there
    /// is no such region.
    pub fn from_environment() -> Result<Option<(Kept, Vec<KeptRecord>)>, AttachError> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        let Ok(number) = std::env::var(KEPT_ENVIRONMENT) else { return Ok(None) };
        let number = number.parse().ok().filter(|n: &RawFd| *n > 2).ok_or(AttachError::Environment)?;
        if TAKEN.swap(true, Ordering::Relaxed) {
            return Err(AttachError::Twice);
        }
        let fd = inherited(number).map_err(|e| AttachError::Part("kept records", e))?;
        Kept::open(&fd).map(Some)
    }

    fn open(fd: &OwnedFd) -> Result<(Kept, Vec<KeptRecord>), AttachError> {
        let failed = |e: io::Error| AttachError::Part("kept records", e);
        let octets = rustix::fs::fstat(fd).map_err(|e| failed(e.into()))?.st_size as usize;
        let words = Mapping::new(fd, octets, true).map_err(failed)?;
        if octets < (HEADER_WORDS + BLOCK) * 8 || words[0].load(Ordering::Relaxed) != MAGIC {
            return Err(AttachError::Layout("kept records"));
        }
        words.lock_as_used();
        let blocks = (words.len() - HEADER_WORDS) / BLOCK;
        let committed = words[COMMITTED].load(Ordering::Acquire);
        let high = (words[HIGH].load(Ordering::Relaxed) as usize).min(blocks);
        let mut kept = Kept { words, committed, high, blocks, free: Vec::new(), places: HashMap::new() };
        let records = kept.recover();
        Ok((kept, records))
    }

    /// Reads what stands, and wipes what does not.
    fn recover(&mut self) -> Vec<KeptRecord> {
        let mut latest: HashMap<KeptKey, (Head, Vec<(u32, usize)>)> = HashMap::new();
        for block in 0..self.high {
            let Some(head) = self.head(block).filter(|head| head.transaction <= self.committed) else {
                continue;
            };
            let place = (head.part, block);
            match latest.get_mut(&head.key) {
                Some((known, _)) if known.transaction > head.transaction => {}
                Some((known, places)) if known.transaction == head.transaction => places.push(place),
                _ => drop(latest.insert(head.key, (head, vec![place]))),
            }
        }
        let mut records = Vec::new();
        let mut used = vec![false; self.high];
        for (key, (head, mut places)) in latest {
            places.sort_unstable();
            let whole = places.len() == head.parts as usize
                && places.iter().zip(0..).all(|((part, _), expected)| *part == expected);
            if !whole || head.length == 0 {
                continue;
            }
            let places: Vec<usize> = places.into_iter().map(|(_, block)| block).collect();
            records.push((key, self.read(&places, head.length as usize)));
            places.iter().for_each(|block| used[*block] = true);
            self.places.insert(key, places);
        }
        for block in (0..self.high).filter(|block| !used[*block]) {
            self.wipe(block);
            self.free.push(block);
        }
        records.sort_by_key(|(key, _)| *key);
        records
    }

    /// Writes these records, or makes them void, all at once. An error makes all of them void: what stood before must not
    /// be taken for what stands.
    pub fn write(&mut self, changes: &[(KeptKey, Option<&[u8]>)]) -> Result<(), Full> {
        let parts = |record: &Option<&[u8]>| record.map_or(1, |octets| octets.len().div_ceil(PAYLOAD).max(1));
        let needed: usize = changes.iter().map(|(_, record)| parts(record)).sum();
        if needed + RESERVE <= self.room() {
            self.commit(changes);
            return Ok(());
        }
        for (key, _) in changes {
            self.commit(&[(*key, None)]);
        }
        Err(Full)
    }

    fn room(&self) -> usize {
        self.free.len() + self.blocks - self.high
    }

    /// How many records stand.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Does none?
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Makes all records void.
    pub fn clear(&mut self) {
        let keys: Vec<KeptKey> = self.places.keys().copied().collect();
        keys.into_iter().for_each(|key| self.commit(&[(key, None)]));
    }

    fn commit(&mut self, changes: &[(KeptKey, Option<&[u8]>)]) {
        let transaction = self.committed + 1;
        let (mut old, mut void) = (Vec::new(), Vec::new());
        for (key, record) in changes {
            let Some(octets) = record else {
                if self.places.contains_key(key) {
                    void.extend(self.put(*key, transaction, &[]));
                    old.extend(self.places.remove(key).into_iter().flatten());
                }
                continue;
            };
            let places = self.put(*key, transaction, octets);
            old.extend(self.places.insert(*key, places).into_iter().flatten());
        }
        // Nothing from before moves behind this, nor from behind it to before.
        self.words[COMMITTED].store(transaction, Ordering::Release);
        fence(Ordering::SeqCst);
        self.committed = transaction;
        // The void copies last: while an old one is left it must not come back.
        for block in old.into_iter().chain(void) {
            self.wipe(block);
            fence(Ordering::SeqCst);
            self.free.push(block);
        }
    }

    /// Writes one record's copy into free blocks.
    fn put(&mut self, key: KeptKey, transaction: u64, octets: &[u8]) -> Vec<usize> {
        let parts = octets.len().div_ceil(PAYLOAD).max(1);
        (0..parts)
            .map(|part| {
                let block = self.free.pop().unwrap_or_else(|| {
                    self.high += 1;
                    self.words[HIGH].store(self.high as u64, Ordering::Relaxed);
                    fence(Ordering::Release);
                    self.high - 1
                });
                let head = Head {
                    key,
                    transaction,
                    part: part as u32,
                    parts: parts as u32,
                    length: octets.len() as u64,
                };
                self.fill(block, &head, &octets[part * PAYLOAD..octets.len().min((part + 1) * PAYLOAD)]);
                block
            })
            .collect()
    }

    fn block(&self, block: usize) -> &[AtomicU64] {
        &self.words[HEADER_WORDS + block * BLOCK..][..BLOCK]
    }

    fn fill(&self, block: usize, head: &Head, octets: &[u8]) {
        let words = self.block(block);
        for (word, octets) in words[HEAD..].iter().zip(octets.chunks(8)) {
            let mut value = [0; 8];
            value[..octets.len()].copy_from_slice(octets);
            word.store(u64::from_ne_bytes(value), Ordering::Relaxed);
            value.zeroize();
        }
        let parts = u64::from(head.part) << 32 | u64::from(head.parts);
        let values = [head.key[0], head.key[1], head.transaction, parts, head.length];
        for (word, value) in words.iter().zip(values) {
            word.store(value, Ordering::Relaxed);
        }
        words[HEAD - 1].store(checksum(words), Ordering::Relaxed);
    }

    /// `None`: a free block, or a damaged one.
    fn head(&self, block: usize) -> Option<Head> {
        let words = self.block(block);
        let word = |i: usize| words[i].load(Ordering::Relaxed);
        let (part, parts) = ((word(3) >> 32) as u32, word(3) as u32);
        let head = Head { key: [word(0), word(1)], transaction: word(2), part, parts, length: word(4) };
        let fits = head.length.div_ceil(PAYLOAD as u64).max(1) == u64::from(parts) && part < parts;
        (head.transaction != 0 && fits && word(HEAD - 1) == checksum(words)).then_some(head)
    }

    fn read(&self, places: &[usize], length: usize) -> Zeroizing<Vec<u8>> {
        let mut octets = Zeroizing::new(Vec::with_capacity(places.len() * PAYLOAD));
        for block in places {
            for word in &self.block(*block)[HEAD..] {
                octets.extend_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
            }
        }
        octets.truncate(length);
        octets
    }

    fn wipe(&self, block: usize) {
        self.block(block).iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }
}

/// FNV-1a by words, over all but the checksum itself.
fn checksum(words: &[AtomicU64]) -> u64 {
    let covered = words[..HEAD - 1].iter().chain(&words[HEAD..]);
    covered.fold(0xcbf2_9ce4_8422_2325, |hash, word| {
        (hash ^ word.load(Ordering::Relaxed)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
#[path = "kept_tests.rs"]
mod tests;
