//! The replay window (RFC 4303 section 3.4.3) as a ring of 64-bit blocks (the method of RFC 6479): moving it
//! clears the numbers that were passed over and shifts nothing. The ring is as long as the window: a number takes the place
//! of the one that leaves. Numbers have 64 bits, of which packets carry the low 32; where the SA has no extended sequence
//! numbers the others are 0.

use spindle_aead::prefetch;

/// Which sequence numbers have been received: the highest, and which of the `size` up to it.
#[derive(Clone, Debug)]
pub struct ReplayWindow {
    /// The highest sequence number that was authenticated; 0 before the first.
    top: u64,
    /// Numbers in the window; 0 is off.
    size: u32,
    /// Packets carry half of each number.
    extended: bool,
    /// As many as the window fills: a power of two. Of no number up to the highest that was not received is a bit set here.
    blocks: Box<[u64]>,
}

impl ReplayWindow {
    /// An empty window of 0 (off) or 32 to 65,536 numbers, a power of two; else `None`.
    pub fn new(size: u32) -> Option<ReplayWindow> {
        let blocks = match size {
            0 => 0,
            32..=65536 if size.is_power_of_two() => size.div_ceil(64) as usize,
            _ => return None,
        };
        Some(ReplayWindow { top: 0, size, extended: false, blocks: vec![0; blocks].into_boxed_slice() })
    }

    /// The same for an SA with extended sequence numbers, or without.
    pub fn with_extended(self, extended: bool) -> ReplayWindow {
        ReplayWindow { extended, ..self }
    }

    /// Are the sequence numbers extended ones?
    #[inline]
    pub fn is_extended(&self) -> bool {
        self.extended
    }

    /// The 64-bit number of a packet that carries these low 32 bits (RFC 4303 appendix A2.2): of the 2^32 numbers from
    /// the window's left end on, the one that ends in them. `None` if that lies before the SA's first number or beyond
    /// its last.
    #[inline]
    pub fn extend(&self, low: u32) -> Option<u64> {
        // Wraps where the window reaches further back than the SA; the number must then have wrapped again.
        let left = self.top.wrapping_sub(self.size.saturating_sub(1).into());
        let sequence = left.wrapping_add(low.wrapping_sub(left as u32).into());
        ((sequence < left) == (self.top < left)).then_some(sequence)
    }

    /// The number of a packet that carries these low 32 bits: they themselves, if the SA has no extended ones.
    #[inline]
    pub fn number(&self, low: u32) -> Option<u64> {
        if self.extended { self.extend(low) } else { Some(low.into()) }
    }

    #[inline]
    fn place(&self, sequence: u64) -> (usize, u64) {
        ((sequence >> 6) as usize & (self.blocks.len() - 1), 1 << (sequence & 63))
    }

    /// Asks for the block of the number with these low bits ahead of its use.
    #[inline]
    pub fn prefetch(&self, low: u32) {
        if let Some(block) = self.blocks.get((low >> 6) as usize & self.blocks.len().wrapping_sub(1)) {
            prefetch(block);
        }
    }

    /// May a packet with this number be new? Left of the window and seen ones are not; nor is 0, for the first
    /// number of an SA is 1 (RFC 4303 section 3.3.3). Changes nothing: the ICV is not checked yet.
    #[inline]
    pub fn check(&self, sequence: u64) -> bool {
        if self.size == 0 {
            return true;
        }
        if sequence > self.top {
            return true;
        }
        if sequence == 0 || self.top - sequence >= u64::from(self.size) {
            return false;
        }
        let (block, bit) = self.place(sequence);
        self.blocks[block] & bit == 0
    }

    /// Marks a number that `check` let by and whose packet is authentic.
    #[inline]
    pub fn update(&mut self, sequence: u64) {
        if self.size == 0 {
            self.top = self.top.max(sequence);
            return;
        }
        if sequence > self.top {
            if sequence - self.top > 1 {
                self.pass_over(sequence);
            }
            self.top = sequence;
        }
        let (block, bit) = self.place(sequence);
        self.blocks[block] |= bit;
    }

    /// Clears the numbers between the highest and this one, which is higher.
    fn pass_over(&mut self, sequence: u64) {
        if sequence - self.top >= 64 * self.blocks.len() as u64 {
            return self.blocks.fill(0);
        }
        let ((first, top), (last, bit)) = (self.place(self.top), self.place(sequence));
        // Up to the highest, and from the new one on.
        let (before, after) = (top | (top - 1), !(bit - 1));
        if self.top >> 6 == sequence >> 6 {
            self.blocks[first] &= before | after;
            return;
        }
        self.blocks[first] &= before;
        let mask = self.blocks.len() - 1;
        let mut between = (first + 1) & mask;
        while between != last {
            self.blocks[between] = 0;
            between = (between + 1) & mask;
        }
        self.blocks[last] &= after;
    }

    /// Its blocks of 64 numbers: number n is in block n / 64, modulo their count, as bit n modulo 64.
    #[inline]
    pub fn blocks(&self) -> &[u64] {
        &self.blocks
    }

    /// Goes on as a window that had this highest number and these blocks.
    pub fn restore(&mut self, top: u64, block: impl Fn(usize) -> u64) {
        self.top = top;
        for (at, word) in self.blocks.iter_mut().enumerate() {
            *word = block(at);
        }
    }

    /// The highest number that was authenticated.
    pub fn top(&self) -> u64 {
        self.top
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    /// The window as RFC 4303 section 3.4.3 words it: everything seen, and nothing left of the window.
    struct Oracle {
        seen: HashSet<u64>,
        top: u64,
        size: u32,
    }

    impl Oracle {
        fn accept(&mut self, sequence: u64) -> bool {
            let left = u128::from(sequence) + u128::from(self.size) <= u128::from(self.top);
            if sequence == 0 || left || !self.seen.insert(sequence) {
                return false;
            }
            self.top = self.top.max(sequence);
            true
        }
    }

    /// A window whose right end is `top`.
    fn window(size: u32, top: u64) -> ReplayWindow {
        let mut window = ReplayWindow::new(size).unwrap();
        window.update(top);
        window
    }

    #[test]
    fn only_powers_of_two_from_32_to_65536_are_windows() {
        for size in [0, 32, 64, 128, 1024, 65536] {
            assert!(ReplayWindow::new(size).is_some(), "{size}");
        }
        for size in [1, 16, 33, 96, 131_072] {
            assert!(ReplayWindow::new(size).is_none(), "{size}");
        }
    }

    #[test]
    fn the_last_sequence_number_is_accepted_once() {
        for last in [u64::from(u32::MAX), u64::MAX] {
            let mut window = ReplayWindow::new(64).unwrap();
            for sequence in [last - 63, last] {
                assert!(window.check(sequence));
                window.update(sequence);
                assert!(!window.check(sequence));
            }
            assert!(!window.check(last - 64) && window.check(last - 1));
        }
    }

    /// RFC 4303 section 3.4.3: every number within the window is remembered, wherever in a block its right end stands.
    #[test]
    fn nothing_in_the_window_is_accepted_again_as_it_moves_on_one_by_one() {
        for size in [32, 64, 128, 1024] {
            let mut window = ReplayWindow::new(size).unwrap();
            for top in 1..u64::from(3 * size + 200) {
                assert!(window.check(top));
                window.update(top);
                for sequence in top.saturating_sub(u64::from(size) + 70)..=top {
                    assert!(!window.check(sequence), "{sequence} again below {top}, window {size}");
                }
            }
        }
    }

    /// RFC 4303 appendix A2.1, its two cases by the numbers: the window within one run of the low 32 bits, and across
    /// the end of one.
    #[test]
    fn the_high_bits_are_those_that_appendix_a_infers() {
        const RUN: u64 = 1 << 32;
        // Case A: what is left of the window in this run is the next run's.
        let a = window(64, 5 * RUN + 1000);
        assert_eq!(a.extend(1000 - 63), Some(5 * RUN + 937));
        assert_eq!(a.extend(1000 - 64), Some(6 * RUN + 936));
        assert_eq!(a.extend(u32::MAX), Some(5 * RUN + 0xffff_ffff));
        // Case B: the window's left part is the run's before.
        let b = window(64, 5 * RUN + 10);
        assert_eq!(b.extend(10), Some(5 * RUN + 10));
        assert_eq!(b.extend(0u32.wrapping_sub(53)), Some(5 * RUN - 53));
        assert_eq!(b.extend(0u32.wrapping_sub(54)), Some(6 * RUN - 54));
        // Before the first number and beyond the last there is nothing.
        let first = window(64, 10);
        assert_eq!((first.extend(11), first.extend(0u32.wrapping_sub(53))), (Some(11), None));
        assert_eq!(first.extend(0u32.wrapping_sub(54)), Some(RUN - 54));
        let last = window(64, u64::MAX - 3);
        assert_eq!((last.extend(u32::MAX), last.extend(7)), (Some(u64::MAX), None));
    }

    proptest! {
        /// RFC 4303 section 3.4.3, against its own words.
        #[test]
        fn the_ring_accepts_what_the_rfc_accepts(
            exponent in 5u32..=12,
            start in prop_oneof![Just(0u64), any::<u32>().prop_map(u64::from), any::<u64>()],
            steps in proptest::collection::vec((-9000i64..9000, 0u8..8), 1..300),
        ) {
            let size = 1 << exponent;
            let mut window = ReplayWindow::new(size).unwrap();
            let mut oracle = Oracle { seen: HashSet::new(), top: 0, size };
            let mut sequence = start;
            for (step, scale) in steps {
                sequence = sequence.saturating_add_signed(step >> scale);
                let accepted = window.check(sequence);
                prop_assert_eq!(accepted, oracle.accept(sequence), "{}", sequence);
                if accepted {
                    window.update(sequence);
                }
                prop_assert_eq!(window.top(), oracle.top);
            }
        }

        /// RFC 4303 appendix A2.2: whatever is in the window, or less than 2^32 minus the window ahead of it, is known
        /// by its low 32 bits.
        #[test]
        fn numbers_near_the_window_are_known_by_their_low_bits(
            exponent in 5u32..=16,
            top in prop_oneof![1u64..100_000, (0u64..100_000).prop_map(|n| (7 << 32) - 50_000 + n), any::<u64>()],
            offset: u32,
        ) {
            let size = 1u32 << exponent;
            let left = u128::from(top) + 1 + u128::from(offset);
            let Some(sequence) = left.checked_sub(size.into()).and_then(|n| u64::try_from(n).ok()) else {
                return Ok(());
            };
            prop_assert_eq!(window(size, top).extend(sequence as u32), Some(sequence));
        }
    }
}
