//! A capture's rings: copies of frames on their way from the workers to whoever captures. Lossy.
//!
//! Each worker has one, on a sealed memfd of its own: records of different lengths, in words, for one writer and one
//! reader that do not trust each other. The algorithm is that of [`ring`](crate::ring), but nobody sleeps on a bell: the
//! reader looks again after a while, and so a writer never makes a system call. A record for which there is no room is
//! counted as lost, by side, where the reader sees it.
//!
//! Rings are made when a capture begins ([`create`]), and their descriptors go over the [`socket`](crate::capture_socket)
//! by which it was asked for.

use crate::ring::Broken;
use crate::sync::{AtomicU64, HEADER_WORDS, Memory, Ordering};
#[cfg(not(loom))]
use spindle_abi::LAYOUT_HASH;
use spindle_abi::{Spi, Time};

/// Words behind the header of each ring: 16 MiB, of which only what is used becomes memory.
const WORDS: u64 = if cfg!(loom) { 4 } else { 1 << 21 };
/// In the header; the first two words say what it is.
#[cfg(not(loom))]
const MAGIC: u64 = u64::from_be_bytes(*b"spindle\x02");
const TAIL: usize = 16; // written by the writer
const LOST: usize = 17; // by side, two words; written by the writer
const HEAD: usize = 32; // written by the reader
/// Words of a record before its octets.
const FRONT: u64 = 3;

/// The number of the outside interface in records; others are the engine's, 0 for the inside.
pub const OUTSIDE: u16 = u16::MAX;

/// What a record says of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Captured {
    /// When it came or left.
    pub at: Time,
    /// Where: a virtual interface's number, 0 for the inside, or [`OUTSIDE`].
    pub interface: u16,
    /// It left; else it came.
    pub left: bool,
    /// The number of the reason for which it was dropped.
    pub dropped: Option<u8>,
    /// Of the ESP that it was in, or was put into; 0 if none.
    pub spi: Spi,
    /// Its length, in octets, of which the record may hold fewer.
    pub length: u16,
}

impl Captured {
    /// 0: inside, 1: outside.
    fn side(&self) -> usize {
        usize::from(self.interface == OUTSIDE)
    }

    fn encode(&self, octets: usize) -> [u64; FRONT as usize] {
        let dropped = self.dropped.map_or(0, |reason| u64::from(reason) + 1);
        let first = octets as u64
            | u64::from(self.length) << 16
            | u64::from(self.interface) << 32
            | dropped << 48
            | u64::from(self.left) << 63;
        [first, self.at.0, u64::from(self.spi.0)]
    }

    /// And how many octets follow.
    fn decode([first, at, spi]: [u64; FRONT as usize]) -> (Captured, usize) {
        let dropped = (first >> 48) as u16 & 0x7fff;
        let captured = Captured {
            at: Time(at),
            interface: (first >> 32) as u16,
            left: first >> 63 != 0,
            dropped: dropped.checked_sub(1).map(|reason| reason as u8),
            spi: Spi(spi as u32),
            length: (first >> 16) as u16,
        };
        (captured, usize::from(first as u16))
    }
}

fn words_of(octets: usize) -> u64 {
    FRONT + octets.div_ceil(8) as u64
}

/// Octets of a ring's memfd.
#[cfg(not(loom))]
const OCTETS: usize = (HEADER_WORDS + WORDS as usize) * 8;

/// A fresh ring for each of so many workers: the writing ends, and the descriptors for the reader.
#[cfg(not(loom))]
pub fn create(workers: usize) -> std::io::Result<(Vec<CaptureWriter>, Vec<std::os::fd::OwnedFd>)> {
    let (mut writers, mut descriptors) = (Vec::new(), Vec::new());
    for _ in 0..workers {
        let fd = crate::memory::create_memfd("spindle-capture", OCTETS)?;
        let mapping = crate::memory::Mapping::new(&fd, OCTETS, true)?;
        mapping[0].store(MAGIC, Ordering::Relaxed);
        mapping[1].store(LAYOUT_HASH, Ordering::Relaxed);
        writers.push(CaptureWriter::new(std::sync::Arc::new(mapping)));
        descriptors.push(fd);
    }
    Ok((writers, descriptors))
}

fn word(memory: &Memory, index: u64) -> &AtomicU64 {
    &memory[HEADER_WORDS + (index & (WORDS - 1)) as usize]
}

/// The writing end.
pub struct CaptureWriter {
    memory: Memory,
    tail: u64,
    published: u64,
    head: u64,
    lost: [u64; 2],
}

impl CaptureWriter {
    fn new(memory: Memory) -> CaptureWriter {
        CaptureWriter { memory, tail: 0, published: 0, head: 0, lost: [0; 2] }
    }

    /// Writes a record with these octets, which [`CaptureWriter::publish`] will show, or counts it as lost. An error: the
    /// reader published an impossible index, and is not to be written for any more.
    pub fn write(&mut self, captured: &Captured, octets: &[u8]) -> Result<(), Broken> {
        let octets = &octets[..octets.len().min(usize::from(u16::MAX))];
        let needed = words_of(octets.len());
        if WORDS - (self.tail - self.head) < needed {
            self.look()?;
            if WORDS - (self.tail - self.head) < needed {
                self.lose(captured);
                return Ok(());
            }
        }
        for value in captured.encode(octets.len()) {
            self.push(value);
        }
        let mut chunks = octets.chunks_exact(8);
        for chunk in &mut chunks {
            self.push(u64::from_le_bytes(chunk.try_into().expect("eight octets")));
        }
        let rest = chunks.remainder();
        if !rest.is_empty() {
            let mut last = [0; 8];
            last[..rest.len()].copy_from_slice(rest);
            self.push(u64::from_le_bytes(last));
        }
        Ok(())
    }

    /// Counts a frame of which there is no copy.
    pub fn lose(&mut self, captured: &Captured) {
        let side = captured.side();
        self.lost[side] += 1;
        self.memory[LOST + side].store(self.lost[side], Ordering::Relaxed);
    }

    fn push(&mut self, value: u64) {
        word(&self.memory, self.tail).store(value, Ordering::Relaxed);
        self.tail += 1;
    }

    fn look(&mut self) -> Result<(), Broken> {
        let head = self.memory[HEAD].load(Ordering::Acquire);
        if head < self.head || head > self.published {
            return Err(Broken { ours: self.tail, theirs: head });
        }
        self.head = head;
        Ok(())
    }

    /// Shows what was written. Cheap if nothing was.
    pub fn publish(&mut self) {
        if self.tail != self.published {
            self.memory[TAIL].store(self.tail, Ordering::Release);
            self.published = self.tail;
        }
    }
}

/// The reading end.
pub struct CaptureReader {
    memory: Memory,
    head: u64,
    tail: u64,
}

impl CaptureReader {
    /// Maps a ring by its descriptor. An error: it is none, or one of another version's.
    #[cfg(not(loom))]
    pub fn open(fd: impl std::os::fd::AsFd) -> std::io::Result<CaptureReader> {
        let mapping = crate::memory::Mapping::new(fd, OCTETS, true)?;
        let word = |at: usize| mapping[at].load(Ordering::Relaxed);
        if (word(0), word(1)) != (MAGIC, LAYOUT_HASH) {
            let kind = std::io::ErrorKind::InvalidData;
            return Err(std::io::Error::new(kind, "the capture's ring has another layout"));
        }
        Ok(CaptureReader { memory: std::sync::Arc::new(mapping), head: 0, tail: 0 })
    }

    /// The next record, if there is one, and its octets in place of what `octets` held.
    pub fn read(&mut self, octets: &mut Vec<u8>) -> Result<Option<Captured>, Broken> {
        if self.head == self.tail {
            let tail = self.memory[TAIL].load(Ordering::Acquire);
            if tail < self.tail || tail - self.head > WORDS {
                return Err(Broken { ours: self.head, theirs: tail });
            }
            self.tail = tail;
        }
        let there = self.tail - self.head;
        if there == 0 {
            return Ok(None);
        }
        let broken = Broken { ours: self.head, theirs: self.tail };
        let at = |offset: u64| word(&self.memory, self.head + offset).load(Ordering::Relaxed);
        if there < FRONT {
            return Err(broken);
        }
        let (captured, count) = Captured::decode([at(0), at(1), at(2)]);
        let words = words_of(count);
        if there < words {
            return Err(broken);
        }
        octets.clear();
        (FRONT..words).for_each(|offset| octets.extend_from_slice(&at(offset).to_le_bytes()));
        octets.truncate(count);
        self.head += words;
        self.memory[HEAD].store(self.head, Ordering::Release);
        Ok(Some(captured))
    }

    /// Frames that were not captured for want of room, inside and outside.
    pub fn lost(&self) -> [u64; 2] {
        [0, 1].map(|side| self.memory[LOST + side].load(Ordering::Relaxed))
    }
}

#[cfg(test)]
#[path = "capture_tests.rs"]
mod tests;
