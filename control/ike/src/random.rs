//! Randomness is an argument.

/// A source of random octets, unpredictable outside of tests.
pub trait Random {
    /// Fills all of `octets`.
    fn fill(&mut self, octets: &mut [u8]);
}
