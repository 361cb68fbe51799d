//! A sealed memfd, mapped as a slice of atomic words.

use crate::sync::AtomicU64;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{Advice, MapFlags, ProtFlags};
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;

/// Without these the other process could shrink the file and so kill us with SIGBUS.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// A sealed memfd of this many octets, close-on-exec.
pub(crate) fn create_memfd(name: &str, octets: usize) -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&fd, octets as u64)?;
    rustix::fs::fcntl_add_seals(&fd, SEALS)?;
    Ok(fd)
}

/// A second, read-only description of the same file.
pub(crate) fn read_only(fd: &OwnedFd) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    Ok(File::open(format!("/proc/self/fd/{}", fd.as_raw_fd()))?.into())
}

/// Words shared with another process.
pub(crate) struct Mapping {
    start: NonNull<AtomicU64>,
    words: usize,
}

impl Mapping {
    /// Maps all of a memfd that must have this size and these seals.
    pub(crate) fn new(fd: impl AsFd, octets: usize, writable: bool) -> io::Result<Mapping> {
        let fd = fd.as_fd();
        let seals = rustix::fs::fcntl_get_seals(fd)?;
        let size = rustix::fs::fstat(fd)?.st_size;
        if !seals.contains(SEALS) || size != octets as i64 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "not a sealed memfd of the expected size",
            ));
        }
        let protection = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases no Rust object.
        let start =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), octets, protection, MapFlags::SHARED, fd, 0)? };
        // SAFETY: the range is the mapping just made. Keys must not reach a core file, so this must succeed.
        unsafe { rustix::mm::madvise(start, octets, Advice::LinuxDontDump)? };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Mapping { start, words: octets / 8 })
    }

    /// Keeps these pages out of the swap, as far as the limits allow.
    pub(crate) fn lock(&self) {
        // SAFETY: the range is this mapping. Failure leaves it unlocked, which is no worse than before.
        let _ = unsafe { rustix::mm::mlock(self.start.as_ptr().cast(), self.words * 8) };
    }

    /// The same of each page when it is first used, for a mapping that is sparse.
    pub(crate) fn lock_as_used(&self) {
        let (start, octets) = (self.start.as_ptr().cast(), self.words * 8);
        // SAFETY: as above.
        let _ = unsafe { rustix::mm::mlock_with(start, octets, rustix::mm::MlockFlags::ONFAULT) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by `new`, unmapped once, and every borrow of it has ended.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.words * 8) };
    }
}

// SAFETY: the words are atomics, so threads may share them.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Deref for Mapping {
    type Target = [AtomicU64];
    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: page-aligned, `words` long, mapped as long as `self` lives; the seals keep the file from shrinking.
        // Any bit pattern is a valid AtomicU64, and changes by the other process are atomic accesses or, at worst,
        // wrong values. Types that map read-only never store.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }
}
