//! The memory of AF_XDP frames, and the tokens that own its chunks.

use rustix::mm::{Advice, MapFlags, ProtFlags};
use spindle_engine::Frame;
use std::fmt;
use std::io;
use std::ptr::NonNull;

/// Octets of a chunk; a frame never leaves its chunk.
pub const CHUNK: usize = 4096;
/// Octets in front of a received frame (XDP_PACKET_HEADROOM), and of a fresh one.
pub const HEADROOM: usize = 256;
/// Octets of a huge page: fewer faults at the start, and fewer misses of the TLB for each packet.
const HUGE_PAGE: usize = 2 << 20;

/// Memory that the kernel and the workers share; it lives as long as the process, so that a frame needs no reference
/// count.
#[derive(Debug)]
pub struct Umem {
    start: NonNull<u8>,
    octets: usize,
}

// SAFETY: the memory itself is only reached through frames, of which each chunk has one.
unsafe impl Send for Umem {}
// SAFETY: as above; `Umem` itself only tells addresses.
unsafe impl Sync for Umem {}

impl Umem {
    /// Memory for `chunks` frames, all of them in the pool.
    pub fn create(chunks: usize) -> io::Result<(&'static Umem, Pool<XdpFrame>)> {
        let (umem, mut pools) = Umem::divided(chunks, 1)?;
        Ok((umem, pools.remove(0)))
    }

    /// Memory for so many pools with `chunks` frames each. Any pool has room for all frames, so that these may move from one to
    /// another.
    pub(crate) fn divided(chunks: usize, pools: usize) -> io::Result<(&'static Umem, Vec<Pool<XdpFrame>>)> {
        let all = chunks * pools;
        let (umem, chunk) = (Umem::map(all)?, |n: usize| (n * CHUNK) as u64);
        let fill = |first: usize| {
            let mut pool = Pool::with_capacity(all);
            let own = first * chunks..(first + 1) * chunks;
            own.for_each(|n| pool.put(umem.token(chunk(n), HEADROOM as u16, HEADROOM as u16)));
            pool
        };
        Ok((umem, (0..pools).map(fill).collect()))
    }

    fn map(chunks: usize) -> io::Result<&'static Umem> {
        let octets = chunks * CHUNK;
        // SAFETY: a fresh anonymous mapping aliases nothing; it is never unmapped.
        let mapping = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                octets + HUGE_PAGE,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )?
        };
        let mapping = mapping.cast::<u8>();
        let start = mapping.wrapping_add(mapping.align_offset(HUGE_PAGE));
        // SAFETY: within the mapping, for the alignment takes less than what it has more; neither advice changes what
        // is in it. Without either the pages come small, or when they are first used.
        unsafe {
            let _ = rustix::mm::madvise(start.cast(), octets, Advice::LinuxHugepage);
            let _ = rustix::mm::madvise(start.cast(), octets, Advice::LinuxPopulateWrite);
        }
        let start = NonNull::new(start).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Box::leak(Box::new(Umem { start, octets })))
    }

    pub(crate) fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    pub(crate) fn octets(&self) -> u64 {
        self.octets as u64
    }

    fn token(&self, chunk: u64, start: u16, end: u16) -> XdpFrame {
        // SAFETY: both callers have checked that the chunk lies within the mapping.
        let chunk = unsafe { self.start.add(chunk as usize) };
        XdpFrame { chunk, start, end }
    }

    /// The frame that the kernel has given back at this address with this length: the chunk's one token again.
    /// `None` if the address or the length is impossible.
    pub(crate) fn frame_from_kernel(&self, address: u64, length: u32) -> Option<XdpFrame> {
        let start = (address % CHUNK as u64) as usize;
        let end = start.checked_add(length as usize).filter(|end| *end <= CHUNK)?;
        (address < self.octets as u64).then(|| self.token(address - start as u64, start as u16, end as u16))
    }

    /// The frame's first octet as an offset into this memory, its length, and so its token's end; `Err` if the frame
    /// belongs to other memory.
    pub(crate) fn give_to_kernel(&self, frame: XdpFrame) -> Result<(u64, u32), XdpFrame> {
        let offset = (frame.chunk.as_ptr() as usize).wrapping_sub(self.start.as_ptr() as usize);
        if offset >= self.octets {
            return Err(frame);
        }
        Ok((offset as u64 + u64::from(frame.start), u32::from(frame.end - frame.start)))
    }
}

/// One frame and the sole right to its chunk. Handing it to the kernel consumes it.
#[must_use = "a frame that is dropped is lost to the pool"]
pub struct XdpFrame {
    chunk: NonNull<u8>,
    start: u16,
    end: u16,
}

// SAFETY: the token is the only way to its chunk.
unsafe impl Send for XdpFrame {}

impl XdpFrame {
    /// Makes this an uninitialised frame of this length; `false` if it doesn't fit.
    pub fn reset(&mut self, length: usize) -> bool {
        let fits = HEADROOM + length <= CHUNK;
        if fits {
            self.start = HEADROOM as u16;
            self.end = (HEADROOM + length) as u16;
        }
        fits
    }
}

impl fmt::Debug for XdpFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "XdpFrame({}..{})", self.start, self.end)
    }
}

impl Frame for XdpFrame {
    #[inline]
    fn data(&self) -> &[u8] {
        let length = usize::from(self.end - self.start);
        // SAFETY: start <= end <= CHUNK, the memory is initialised and lives for ever, and this token alone reaches it.
        unsafe { std::slice::from_raw_parts(self.chunk.add(self.start.into()).as_ptr(), length) }
    }

    #[inline]
    fn data_mut(&mut self) -> &mut [u8] {
        let length = usize::from(self.end - self.start);
        // SAFETY: as in `data`, and the token is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.chunk.add(self.start.into()).as_ptr(), length) }
    }

    #[inline]
    fn grow_front(&mut self, count: usize) -> bool {
        let fits = count <= usize::from(self.start);
        if fits {
            self.start -= count as u16;
        }
        fits
    }

    #[inline]
    fn shrink_front(&mut self, count: usize) {
        self.start += count.min(usize::from(self.end - self.start)) as u16;
    }

    #[inline]
    fn grow_back(&mut self, count: usize) -> bool {
        let fits = count <= CHUNK - usize::from(self.end);
        if fits {
            self.end += count as u16;
        }
        fits
    }

    #[inline]
    fn truncate(&mut self, length: usize) {
        if length < usize::from(self.end - self.start) {
            self.end = self.start + length as u16;
        }
    }

    #[inline]
    fn place(&self) -> usize {
        self.chunk.addr().get()
    }
}

/// Frames that nobody uses, of one worker. Never allocates after it was made.
#[derive(Debug)]
pub struct Pool<F> {
    free: Vec<F>,
}

impl<F> Pool<F> {
    /// An empty pool with room for this many.
    pub fn with_capacity(frames: usize) -> Pool<F> {
        Pool { free: Vec::with_capacity(frames) }
    }

    /// Takes a frame in.
    #[inline]
    pub fn put(&mut self, frame: F) {
        self.free.push(frame);
    }

    /// Gives a frame out.
    #[inline]
    pub fn take(&mut self) -> Option<F> {
        self.free.pop()
    }

    /// Frames in it.
    pub fn len(&self) -> usize {
        self.free.len()
    }

    /// Is it exhausted?
    pub fn is_empty(&self) -> bool {
        self.free.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_keeps_within_its_chunk() {
        let (umem, mut pool) = Umem::create(2).unwrap();
        let mut frame = pool.take().unwrap();
        assert!(frame.reset(1500));
        assert_eq!(frame.data().len(), 1500);
        frame.data_mut().fill(7);
        assert!(!frame.grow_front(HEADROOM + 1));
        assert!(frame.grow_front(HEADROOM));
        assert!(!frame.grow_back(CHUNK - HEADROOM - 1500 + 1));
        assert!(frame.grow_back(CHUNK - HEADROOM - 1500));
        assert_eq!(frame.data().len(), CHUNK);
        frame.shrink_front(HEADROOM);
        frame.truncate(1500);
        assert_eq!(frame.data(), [7; 1500]);
        frame.shrink_front(2000);
        assert_eq!(frame.data().len(), 0);
        assert!(!frame.reset(CHUNK));
        assert!(umem.give_to_kernel(frame).is_ok());
    }

    #[test]
    fn a_chunk_comes_back_from_the_kernel_as_the_same_frame() {
        let (umem, mut pool) = Umem::create(2).unwrap();
        let mut frame = pool.take().unwrap();
        assert!(frame.reset(100));
        frame.data_mut().fill(9);
        let (address, length) = umem.give_to_kernel(frame).unwrap();
        assert_eq!(umem.frame_from_kernel(address, length).unwrap().data(), [9; 100]);
    }

    #[test]
    fn divided_memory_gives_each_pool_its_own_chunks() {
        let (umem, mut pools) = Umem::divided(2, 3).unwrap();
        let mut offsets = Vec::new();
        for pool in &mut pools {
            assert_eq!(pool.len(), 2);
            while let Some(frame) = pool.take() {
                offsets.push(umem.give_to_kernel(frame).unwrap().0 / CHUNK as u64);
            }
        }
        offsets.sort_unstable();
        assert_eq!(offsets, [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn impossible_addresses_and_the_frames_of_others_are_refused() {
        let (umem, _pool) = Umem::create(2).unwrap();
        let (_other, mut others) = Umem::create(1).unwrap();
        assert!(umem.frame_from_kernel(2 * CHUNK as u64, 0).is_none());
        assert!(umem.frame_from_kernel(CHUNK as u64 + 4000, 97).is_none());
        assert!(umem.frame_from_kernel(CHUNK as u64 + 4000, 96).is_some());
        assert!(umem.give_to_kernel(others.take().unwrap()).is_err());
    }
}
