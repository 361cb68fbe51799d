//! The replay window (RFC 4303 section 3.4.3) as a ring of 64-bit blocks (the method of RFC 6479): moving it
//! clears whole blocks and shifts nothing.

/// Which sequence numbers have been received: the highest, and which of the `size` up to it.
#[derive(Clone, Debug)]
pub struct ReplayWindow {
    /// The highest sequence number that was authenticated; 0 before the first.
    top: u32,
    /// Numbers in the window; 0 is off.
    size: u32,
    /// At least one block more than the window fills, so that its left end is whole wherever its right end stands in
    /// a block. A power of two.
    blocks: Box<[u64]>,
}

impl ReplayWindow {
    /// An empty window of 0 (off) or 32 to 65,536 numbers, a power of two; else `None`.
    pub fn new(size: u32) -> Option<ReplayWindow> {
        let blocks = match size {
            0 => 0,
            32..=65536 if size.is_power_of_two() => (size.div_ceil(64) + 1).next_power_of_two() as usize,
            _ => return None,
        };
        Some(ReplayWindow { top: 0, size, blocks: vec![0; blocks].into_boxed_slice() })
    }

    #[inline]
    fn place(&self, sequence: u32) -> (usize, u64) {
        ((sequence >> 6) as usize & (self.blocks.len() - 1), 1 << (sequence & 63))
    }

    /// May a packet with this number be new? Left of the window and seen ones are not; nor is 0, for the first
    /// number of an SA is 1 (RFC 4303 section 3.3.3). Changes nothing: the ICV is not checked yet.
    #[inline]
    pub fn check(&self, sequence: u32) -> bool {
        if self.size == 0 {
            return true;
        }
        if sequence > self.top {
            return true;
        }
        if sequence == 0 || self.top - sequence >= self.size {
            return false;
        }
        let (block, bit) = self.place(sequence);
        self.blocks[block] & bit == 0
    }

    /// Marks a number that `check` let by and whose packet is authentic.
    #[inline]
    pub fn update(&mut self, sequence: u32) {
        if self.size == 0 {
            self.top = self.top.max(sequence);
            return;
        }
        if sequence > self.top {
            let (old, new) = (self.top >> 6, sequence >> 6);
            let mask = self.blocks.len() - 1;
            let moved = ((new - old) as usize).min(self.blocks.len());
            for step in 1..=moved {
                self.blocks[(old as usize + step) & mask] = 0;
            }
            self.top = sequence;
        }
        let (block, bit) = self.place(sequence);
        self.blocks[block] |= bit;
    }

    /// The highest number that was authenticated.
    pub fn top(&self) -> u32 {
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
        seen: HashSet<u32>,
        top: u32,
        size: u32,
    }

    impl Oracle {
        fn accept(&mut self, sequence: u32) -> bool {
            let left = u64::from(sequence) + u64::from(self.size) <= u64::from(self.top);
            if sequence == 0 || left || !self.seen.insert(sequence) {
                return false;
            }
            self.top = self.top.max(sequence);
            true
        }
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
        let mut window = ReplayWindow::new(64).unwrap();
        for sequence in [u32::MAX - 63, u32::MAX] {
            assert!(window.check(sequence));
            window.update(sequence);
            assert!(!window.check(sequence));
        }
        assert!(!window.check(u32::MAX - 64) && window.check(u32::MAX - 1));
    }

    /// RFC 4303 section 3.4.3: every number within the window is remembered, wherever in a block its right end stands.
    #[test]
    fn nothing_in_the_window_is_accepted_again_as_it_moves_on_one_by_one() {
        for size in [32, 64, 128, 1024] {
            let mut window = ReplayWindow::new(size).unwrap();
            for top in 1..3 * size + 200 {
                assert!(window.check(top));
                window.update(top);
                for sequence in top.saturating_sub(size + 70)..=top {
                    assert!(!window.check(sequence), "{sequence} again below {top}, window {size}");
                }
            }
        }
    }

    proptest! {
        /// RFC 4303 section 3.4.3, against its own words.
        #[test]
        fn the_ring_accepts_what_the_rfc_accepts(
            exponent in 5u32..=12,
            start in prop_oneof![Just(0u32), any::<u32>()],
            steps in proptest::collection::vec((-9000i64..9000, 0u8..8), 1..300),
        ) {
            let size = 1 << exponent;
            let mut window = ReplayWindow::new(size).unwrap();
            let mut oracle = Oracle { seen: HashSet::new(), top: 0, size };
            let mut at = i64::from(start);
            for (step, scale) in steps {
                at = (at + (step >> scale)).clamp(0, i64::from(u32::MAX));
                let sequence = at as u32;
                let accepted = window.check(sequence);
                prop_assert_eq!(accepted, oracle.accept(sequence), "{}", sequence);
                if accepted {
                    window.update(sequence);
                }
                prop_assert_eq!(window.top(), oracle.top);
            }
        }
    }
}
