//! Cache lines of zeros that take no memory until they are used.
//!
//! An allocator gets such pages from the kernel. But for more than its usual alignment Rust's fills the memory with zeros by
//! hand, and so takes all of it at once. So it is asked for more at the usual one, and the lines begin within.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// One cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Line(pub [u32; 16]);

const SIZE: usize = size_of::<Line>();
const _: () = assert!(SIZE == 64 && align_of::<Line>() == 64);

/// Lines, zeros at first.
pub struct Lines {
    allocation: NonNull<u8>,
    layout: Layout,
    first: NonNull<Line>,
    count: usize,
}

// SAFETY: it owns plain memory, as a `Vec` does.
unsafe impl Send for Lines {}
// SAFETY: as above; shared references only read it.
unsafe impl Sync for Lines {}

impl Lines {
    /// So many, at most as many as an address space holds.
    ///
    /// # Panics
    /// If there are more.
    pub fn zeroed(count: usize) -> Lines {
        let octets = count.checked_mul(SIZE).and_then(|octets| octets.checked_add(SIZE)).expect("lines");
        let layout = Layout::array::<u128>(octets / size_of::<u128>()).expect("lines");
        // SAFETY: its size is a line at least.
        let allocation = unsafe { alloc_zeroed(layout) };
        let Some(allocation) = NonNull::new(allocation) else { handle_alloc_error(layout) };
        let before = allocation.as_ptr().align_offset(SIZE);
        assert!(before < SIZE);
        // SAFETY: less than a line into what has one more than `count`.
        let first = unsafe { allocation.add(before) }.cast();
        Lines { allocation, layout, first, count }
    }
}

impl Deref for Lines {
    type Target = [Line];
    #[inline]
    fn deref(&self) -> &[Line] {
        // SAFETY: `count` aligned lines of initialised memory lie there, borrowed as long as `self` is.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.count) }
    }
}

impl DerefMut for Lines {
    #[inline]
    fn deref_mut(&mut self) -> &mut [Line] {
        // SAFETY: as in `deref`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr(), self.count) }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        // SAFETY: it was allocated with this layout, and nobody borrows it any more.
        unsafe { dealloc(self.allocation.as_ptr(), self.layout) };
    }
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").field("count", &self.count).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_aligned_apart_and_zeros_at_first() {
        for count in [0, 1, 2, 3, 64, 4096] {
            let mut lines = Lines::zeroed(count);
            assert_eq!(lines.len(), count);
            assert!(lines.as_ptr().addr().is_multiple_of(SIZE));
            assert!(lines.iter().all(|line| line.0 == [0; 16]));
            for (number, line) in (0u32..).zip(lines.iter_mut()) {
                line.0 = [number; 16];
            }
            assert!((0u32..).zip(lines.iter()).all(|(number, line)| line.0 == [number; 16]));
        }
    }

    /// A page that nobody has touched is none of the process's.
    #[test]
    #[cfg(target_os = "linux")]
    fn unused_lines_take_no_memory() {
        let resident = || {
            let text = std::fs::read_to_string("/proc/self/statm").unwrap();
            text.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
        };
        let before = resident();
        let mut lines = Lines::zeroed((256 << 20) / SIZE);
        lines[7].0[0] = 1;
        assert!(resident() < before + (32 << 20));
    }
}
