//! A ring of fixed-size records for one producer and one consumer that do not trust each other.
//!
//! Indices count up for ever; each side keeps its own index in private memory, publishes it, and caches the other's
//! (Lamport's queue with cached indices), so a full or empty check seldom touches the other's cache line. The producer
//! stages records, then publishes them together; the consumer copies records out, then releases them together.
//! A consumer that is about to sleep announces it; only then does publishing ring the [`Bell`].

use crate::sync::{AtomicU64, HEADER_WORDS, Memory, Ordering, fence};
use spindle_abi::{CommandRecord, EventRecord};
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Words of the header; 128 octets apart, for processors fetch cache lines in pairs.
const TAIL: usize = 16; // written by the producer
const HEAD: usize = 32; // written by the consumer
const SLEEPING: usize = 48; // set by the consumer, cleared by either

/// A fixed-size record whose size is a multiple of eight octets.
pub trait Record: FromBytes + IntoBytes + Immutable + KnownLayout + Default {
    /// May hold keys: the consumer zeroises each slot that it has copied.
    const SECRET: bool;
}

impl Record for CommandRecord {
    const SECRET: bool = true;
}

impl Record for EventRecord {
    const SECRET: bool = false;
}

/// The other process published an impossible index: the attachment is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Broken {
    /// Our index.
    pub ours: u64,
    /// What the other process says that its index is.
    pub theirs: u64,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the other process published the impossible ring index {} (ours is {})",
            self.theirs, self.ours
        )
    }
}

impl std::error::Error for Broken {}

impl From<Broken> for io::Error {
    fn from(broken: Broken) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, broken)
    }
}

/// An eventfd that wakes a sleeping consumer; non-blocking.
#[derive(Debug)]
pub struct Bell(OwnedFd);

impl Bell {
    /// From an eventfd.
    pub fn new(eventfd: OwnedFd) -> Bell {
        Bell(eventfd)
    }

    /// Makes the descriptor readable.
    pub fn ring(&self) {
        // EAGAIN means that the counter is at its end, so the descriptor is readable; nothing else can happen.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Makes the descriptor unreadable until the next ring.
    pub fn silence(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

struct Slots<T> {
    memory: Memory,
    /// A power of two.
    capacity: u64,
    record: PhantomData<T>,
}

impl<T: Record> Slots<T> {
    const WORDS: usize = {
        assert!(size_of::<T>().is_multiple_of(8));
        size_of::<T>() / 8
    };

    fn new(memory: Memory, capacity: u64) -> Slots<T> {
        assert!(capacity.is_power_of_two());
        assert!(memory.len() >= HEADER_WORDS + capacity as usize * Self::WORDS);
        Slots { memory, capacity, record: PhantomData }
    }

    fn slot(&self, index: u64) -> &[AtomicU64] {
        let start = HEADER_WORDS + (index & (self.capacity - 1)) as usize * Self::WORDS;
        &self.memory[start..start + Self::WORDS]
    }

    fn index(&self, which: usize) -> &AtomicU64 {
        &self.memory[which]
    }
}

/// Octets of a ring's memfd.
pub(crate) const fn octets<T: Record>(capacity: u64) -> usize {
    HEADER_WORDS * 8 + capacity as usize * size_of::<T>()
}

/// The writing end.
pub struct Producer<T> {
    slots: Slots<T>,
    /// The next record goes here.
    tail: u64,
    published: u64,
    head: u64,
    bell: Option<Bell>,
}

impl<T: Record> Producer<T> {
    /// The writing end of a fresh ring. `None` if it was written before.
    pub(crate) fn new(memory: Memory, capacity: u64, bell: Option<Bell>) -> Option<Producer<T>> {
        let slots = Slots::new(memory, capacity);
        let fresh = slots.index(TAIL).load(Ordering::Relaxed) == 0;
        fresh.then_some(Producer { slots, tail: 0, published: 0, head: 0, bell })
    }

    /// Records that fit now; looks at the other side only if fewer than `wanted` are known to.
    pub fn room(&mut self, wanted: usize) -> Result<usize, Broken> {
        if self.known_room() < wanted as u64 {
            self.look()?;
        }
        Ok(self.known_room() as usize)
    }

    fn known_room(&self) -> u64 {
        self.slots.capacity - (self.tail - self.head)
    }

    fn look(&mut self) -> Result<(), Broken> {
        let head = self.slots.index(HEAD).load(Ordering::Acquire);
        // The consumer's index never goes back and never passes what was published.
        if head < self.head || head > self.published {
            return Err(Broken { ours: self.tail, theirs: head });
        }
        self.head = head;
        Ok(())
    }

    /// Writes a record that [`Producer::publish`] will show. `Ok(false)`: the ring is full.
    pub fn stage(&mut self, record: &T) -> Result<bool, Broken> {
        if self.room(1)? == 0 {
            return Ok(false);
        }
        for (word, octets) in self.slots.slot(self.tail).iter().zip(record.as_bytes().chunks_exact(8)) {
            word.store(u64::from_ne_bytes(octets.try_into().expect("eight octets")), Ordering::Relaxed);
        }
        self.tail += 1;
        Ok(true)
    }

    /// Shows the staged records to the consumer and wakes it if it sleeps. Cheap if there are none.
    pub fn publish(&mut self) {
        if self.show()
            && let Some(bell) = &self.bell
        {
            bell.ring();
        }
    }

    /// Must the consumer be woken?
    fn show(&mut self) -> bool {
        if self.tail == self.published {
            return false;
        }
        self.slots.index(TAIL).store(self.tail, Ordering::Release);
        self.published = self.tail;
        // Either this load sees the consumer's announcement, or the consumer's look at the tail sees our store.
        fence(Ordering::SeqCst);
        let sleeping = self.slots.index(SLEEPING);
        sleeping.load(Ordering::Relaxed) != 0 && sleeping.swap(0, Ordering::Relaxed) != 0
    }

    /// Stages and publishes one record. `Ok(false)`: the ring is full.
    pub fn push(&mut self, record: &T) -> Result<bool, Broken> {
        let room = self.stage(record)?;
        self.publish();
        Ok(room)
    }

    /// Stages as many of these records as fit, publishes them, and says how many.
    pub fn push_batch<'a>(&mut self, records: impl IntoIterator<Item = &'a T>) -> Result<usize, Broken>
    where
        T: 'a,
    {
        let mut count = 0;
        for record in records {
            if !self.stage(record)? {
                break;
            }
            count += 1;
        }
        self.publish();
        Ok(count)
    }

    /// Has the consumer taken everything that was published?
    pub fn is_drained(&self) -> bool {
        self.slots.index(HEAD).load(Ordering::Acquire) == self.published
    }
}

/// The reading end.
pub struct Consumer<T> {
    slots: Slots<T>,
    /// The next record is here.
    head: u64,
    tail: u64,
    bell: Option<Bell>,
}

impl<T: Record> Consumer<T> {
    /// The reading end of a fresh ring. `None` if it was read before.
    pub(crate) fn new(memory: Memory, capacity: u64, bell: Option<Bell>) -> Option<Consumer<T>> {
        let slots = Slots::new(memory, capacity);
        let fresh = slots.index(HEAD).load(Ordering::Relaxed) == 0;
        fresh.then_some(Consumer { slots, head: 0, tail: 0, bell })
    }

    /// The next record, if there is one; its slot is free again.
    pub fn pop(&mut self) -> Result<Option<T>, Broken> {
        let mut record = None;
        self.pop_batch(1, |r| record = Some(r))?;
        Ok(record)
    }

    /// Takes up to `limit` records, says how many, and frees their slots together.
    pub fn pop_batch(&mut self, limit: usize, mut take: impl FnMut(T)) -> Result<usize, Broken> {
        if self.head == self.tail {
            self.look()?;
        }
        let count = (self.tail - self.head).min(limit as u64);
        for _ in 0..count {
            take(self.copy(self.head));
            self.head += 1;
        }
        if count > 0 {
            self.slots.index(HEAD).store(self.head, Ordering::Release);
        }
        Ok(count as usize)
    }

    /// Copied once, so that the other process cannot change it between check and use.
    fn copy(&self, index: u64) -> T {
        let mut record = T::default();
        for (word, octets) in self.slots.slot(index).iter().zip(record.as_mut_bytes().chunks_exact_mut(8)) {
            octets.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
            if T::SECRET {
                word.store(0, Ordering::Relaxed);
            }
        }
        record
    }

    fn look(&mut self) -> Result<(), Broken> {
        let tail = self.slots.index(TAIL).load(Ordering::Acquire);
        if tail < self.tail || tail - self.head > self.slots.capacity {
            return Err(Broken { ours: self.head, theirs: tail });
        }
        self.tail = tail;
        Ok(())
    }

    /// Are there records?
    pub fn is_empty(&mut self) -> Result<bool, Broken> {
        if self.head == self.tail {
            self.look()?;
        }
        Ok(self.head == self.tail)
    }

    /// Announces that the consumer will sleep on its bell. `Ok(false)`: records are here, don't sleep.
    pub fn announce_sleep(&mut self) -> Result<bool, Broken> {
        self.slots.index(SLEEPING).store(1, Ordering::Relaxed);
        // See `show`.
        fence(Ordering::SeqCst);
        let empty = self.is_empty()?;
        if !empty {
            self.slots.index(SLEEPING).store(0, Ordering::Relaxed);
        }
        Ok(empty)
    }

    /// Takes the announcement back after waking, and silences the bell.
    pub fn awake(&mut self) {
        self.slots.index(SLEEPING).store(0, Ordering::Relaxed);
        if let Some(bell) = &self.bell {
            bell.silence();
        }
    }

    /// What becomes readable when a record comes while this consumer sleeps.
    pub fn bell(&self) -> Option<&Bell> {
        self.bell.as_ref()
    }
}

impl<T> fmt::Debug for Producer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("tail", &self.tail).field("head", &self.head).finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for Consumer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("head", &self.head).field("tail", &self.tail).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
