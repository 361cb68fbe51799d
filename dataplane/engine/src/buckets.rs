//! The memory of the table of SPIs: zeroed buckets, a cache line each.

use spindle_abi::Spi;
use spindle_aead::{Line, Lines, prefetch};

/// SPIs in a bucket.
pub(crate) const WIDTH: usize = 8;
/// A lane that was never used. A new bucket is zeros.
pub(crate) const EMPTY: u32 = 0;

/// Bucket and lane of an SPI.
pub(crate) type Place = (usize, usize);

/// Eight SPIs, then what is known of each.
pub(crate) struct Buckets(Lines);

impl Buckets {
    /// So many, empty.
    pub(crate) fn new(count: usize) -> Buckets {
        Buckets(Lines::zeroed(count))
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Fetches a bucket ahead of its use.
    #[inline]
    pub(crate) fn prefetch(&self, bucket: usize) {
        prefetch(&self.0[bucket]);
    }

    /// The lane of an SPI, and whether there is none because some lane is empty. Without a branch per lane, so that it
    /// becomes a few vector instructions.
    #[inline]
    pub(crate) fn lane(&self, bucket: usize, spi: Spi) -> (Option<usize>, bool) {
        let (mut here, mut empty) = (0u32, 0u32);
        for (number, held) in (1u32..).zip(self.spis(bucket)) {
            here |= if *held == spi.0 { number } else { 0 };
            empty |= u32::from(*held == EMPTY);
        }
        ((here as usize).checked_sub(1), empty != 0)
    }

    #[inline]
    pub(crate) fn spis(&self, bucket: usize) -> &[u32; WIDTH] {
        let Line([spis @ .., _, _, _, _, _, _, _, _]) = &self.0[bucket];
        spis
    }

    #[inline]
    pub(crate) fn spis_mut(&mut self, bucket: usize) -> &mut [u32; WIDTH] {
        let Line([spis @ .., _, _, _, _, _, _, _, _]) = &mut self.0[bucket];
        spis
    }

    /// State in the low bits, slot above.
    #[inline]
    pub(crate) fn value(&self, (bucket, lane): Place) -> u32 {
        self.0[bucket].0[WIDTH + lane]
    }

    #[inline]
    pub(crate) fn set_value(&mut self, (bucket, lane): Place, value: u32) {
        self.0[bucket].0[WIDTH + lane] = value;
    }
}
