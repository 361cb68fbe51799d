//! The memory of the table of SPIs: zeroed buckets, a cache line each, that cost nothing until they are used.
//!
//! An allocator is asked at its usual alignment, for it fills memory of a larger one with zeros by hand and so takes all of it
//! at once; the first line begins within.

use spindle_abi::Spi;
use std::ops::{Index, IndexMut};
use zerocopy::{FromBytes, Immutable, IntoBytes, transmute_mut, transmute_ref};

/// SPIs in a bucket.
pub(crate) const WIDTH: usize = 8;
/// A lane that was never used. A new bucket is zeros.
pub(crate) const EMPTY: u32 = 0;

const LINE: usize = 64;
/// What allocators align large memory to, at least.
type Quarter = [u32; 4];
const QUARTERS: usize = LINE / size_of::<Quarter>();

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct Bucket {
    pub(crate) spis: [u32; WIDTH],
    /// State in the low bits, slot above.
    pub(crate) values: [u32; WIDTH],
}

const _: () = assert!(size_of::<Bucket>() == LINE);

impl Bucket {
    /// The lane of an SPI, and whether there is none because some lane is empty. Without a branch per lane, so that it
    /// becomes a few vector instructions.
    #[inline]
    pub(crate) fn lane(&self, spi: Spi) -> (Option<usize>, bool) {
        let (mut here, mut empty) = (0u32, 0u32);
        for (number, held) in (1u32..).zip(&self.spis) {
            here |= if *held == spi.0 { number } else { 0 };
            empty |= u32::from(*held == EMPTY);
        }
        ((here as usize).checked_sub(1), empty != 0)
    }
}

pub(crate) struct Buckets {
    quarters: Vec<Quarter>,
    /// Where the first line begins.
    first: usize,
    count: usize,
}

impl Buckets {
    /// So many, empty.
    pub(crate) fn new(count: usize) -> Buckets {
        let quarters = vec![[0; 4]; count * QUARTERS + QUARTERS - 1];
        let first = quarters.as_ptr().addr().wrapping_neg() % LINE / size_of::<Quarter>();
        Buckets { quarters, first, count }
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Bucket> {
        (0..self.count).map(|at| &self[at])
    }
}

impl Index<usize> for Buckets {
    type Output = Bucket;

    /// # Panics
    /// If there are not so many.
    #[inline]
    fn index(&self, at: usize) -> &Bucket {
        let quarters = self.quarters[self.first + at * QUARTERS..].first_chunk::<QUARTERS>();
        transmute_ref!(quarters.expect("a bucket of the table"))
    }
}

impl IndexMut<usize> for Buckets {
    #[inline]
    fn index_mut(&mut self, at: usize) -> &mut Bucket {
        let quarters = self.quarters[self.first + at * QUARTERS..].first_chunk_mut::<QUARTERS>();
        transmute_mut!(quarters.expect("a bucket of the table"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bucket_is_a_line_of_its_own() {
        for count in [1, 2, 3, 64, 4096] {
            let mut buckets = Buckets::new(count);
            for at in 0..count {
                assert_eq!(std::ptr::from_ref(&buckets[at]).addr() % LINE, 0, "{at} of {count}");
                buckets[at].spis.fill(at as u32);
                buckets[at].values.fill(!(at as u32));
            }
            assert!(
                buckets
                    .iter()
                    .zip(0u32..)
                    .all(|(bucket, at)| { bucket.spis == [at; WIDTH] && bucket.values == [!at; WIDTH] })
            );
        }
    }
}
