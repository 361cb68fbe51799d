//! The four rings of an AF_XDP socket, as linux/if_xdp.h lays them out: 32-bit indices that wrap, a power of two of
//! descriptors. The kernel is trusted here: it owns the memory anyway.

use rustix::mm::{MapFlags, ProtFlags};
use rustix::net::xdp::XdpRingOffset;
use std::io;
use std::marker::PhantomData;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// `XDP_RING_NEED_WAKEUP`.
const NEED_WAKEUP: u32 = 1;

/// A mapped ring of descriptors `D`; which side we are on is the caller's knowledge.
struct Mapped<D> {
    start: NonNull<u8>,
    octets: usize,
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: Option<NonNull<AtomicU32>>,
    descriptors: NonNull<D>,
    size: u32,
}

// SAFETY: the mapping belongs to this value alone on our side; the indices are atomics.
unsafe impl<D: Send> Send for Mapped<D> {}

impl<D: Copy> Mapped<D> {
    fn new(socket: BorrowedFd<'_>, page: u64, offsets: &XdpRingOffset, size: u32) -> io::Result<Mapped<D>> {
        let octets = offsets.desc as usize + size as usize * size_of::<D>();
        // SAFETY: a fresh mapping of the socket's ring.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                octets,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::POPULATE,
                socket,
                page,
            )?
        };
        let start = NonNull::new(start.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: the kernel's offsets lie within the mapping that it sized, and are aligned for these types.
        let at = |offset: u64| unsafe { start.add(offset as usize) };
        Ok(Mapped {
            start,
            octets,
            producer: at(offsets.producer).cast(),
            consumer: at(offsets.consumer).cast(),
            flags: offsets.flags.map(|offset| at(offset).cast()),
            descriptors: at(offsets.desc).cast(),
            size,
        })
    }

    fn producer(&self) -> &AtomicU32 {
        // SAFETY: within the mapping, which lives as long as `self`.
        unsafe { self.producer.as_ref() }
    }

    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { self.consumer.as_ref() }
    }

    fn needs_wakeup(&self) -> bool {
        // SAFETY: as above.
        self.flags.is_none_or(|flags| unsafe { flags.as_ref() }.load(Ordering::Relaxed) & NEED_WAKEUP != 0)
    }

    fn slot(&self, index: u32) -> NonNull<D> {
        // SAFETY: masked, so within the ring; the size is a power of two.
        unsafe { self.descriptors.add((index & (self.size - 1)) as usize) }
    }
}

impl<D> Drop for Mapped<D> {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, unmapped once.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.octets) };
    }
}

/// A ring that we write: fill, transmit.
pub(crate) struct ToKernel<D> {
    ring: Mapped<D>,
    produced: u32,
    published: u32,
    consumed: u32,
    descriptor: PhantomData<D>,
}

impl<D: Copy> ToKernel<D> {
    pub(crate) fn new(s: BorrowedFd<'_>, page: u64, offsets: &XdpRingOffset, size: u32) -> io::Result<Self> {
        let ring = Mapped::new(s, page, offsets, size)?;
        Ok(ToKernel { ring, produced: 0, published: 0, consumed: 0, descriptor: PhantomData })
    }

    /// Descriptors that fit; looks at the kernel's index only if fewer than `wanted` are known to.
    pub(crate) fn room(&mut self, wanted: u32) -> u32 {
        let room = self.ring.size - self.produced.wrapping_sub(self.consumed);
        if room >= wanted {
            return room;
        }
        self.consumed = self.ring.consumer().load(Ordering::Acquire);
        self.ring.size - self.produced.wrapping_sub(self.consumed)
    }

    /// Stages a descriptor; the caller has asked for room.
    pub(crate) fn stage(&mut self, descriptor: D) {
        debug_assert!(self.produced.wrapping_sub(self.consumed) < self.ring.size);
        // SAFETY: the kernel reads this slot only after `publish`.
        unsafe { self.ring.slot(self.produced).write(descriptor) };
        self.produced = self.produced.wrapping_add(1);
    }

    /// Shows the staged descriptors to the kernel.
    pub(crate) fn publish(&mut self) {
        if self.produced != self.published {
            self.ring.producer().store(self.produced, Ordering::Release);
            self.published = self.produced;
        }
    }

    /// Descriptors that the kernel has not taken yet.
    pub(crate) fn outstanding(&mut self) -> u32 {
        self.consumed = self.ring.consumer().load(Ordering::Acquire);
        self.published.wrapping_sub(self.consumed)
    }

    pub(crate) fn needs_wakeup(&self) -> bool {
        self.ring.needs_wakeup()
    }
}

/// A ring that we read: receive, completion.
pub(crate) struct FromKernel<D> {
    ring: Mapped<D>,
    produced: u32,
    consumed: u32,
}

impl<D: Copy> FromKernel<D> {
    pub(crate) fn new(s: BorrowedFd<'_>, page: u64, offsets: &XdpRingOffset, size: u32) -> io::Result<Self> {
        Ok(FromKernel { ring: Mapped::new(s, page, offsets, size)?, produced: 0, consumed: 0 })
    }

    /// Descriptors that are there; looks at the kernel's index only if none are known.
    pub(crate) fn available(&mut self) -> u32 {
        if self.produced == self.consumed {
            self.produced = self.ring.producer().load(Ordering::Acquire);
        }
        self.produced.wrapping_sub(self.consumed)
    }

    /// The same, asking the kernel in any case.
    pub(crate) fn backlog(&mut self) -> u32 {
        self.produced = self.ring.producer().load(Ordering::Acquire);
        self.produced.wrapping_sub(self.consumed)
    }

    /// Copies the next descriptor; the caller has seen that it is available.
    pub(crate) fn next(&mut self) -> D {
        debug_assert_ne!(self.produced, self.consumed);
        // SAFETY: the kernel wrote it before it published, and doesn't write again before `release`.
        let descriptor = unsafe { self.ring.slot(self.consumed).read() };
        self.consumed = self.consumed.wrapping_add(1);
        descriptor
    }

    /// Gives the slots that were read back to the kernel.
    pub(crate) fn release(&mut self) {
        self.ring.consumer().store(self.consumed, Ordering::Release);
    }
}
