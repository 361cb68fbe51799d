//! All randomness of a world comes from its seed, in streams that don't disturb each other.

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use spindle_ike::random::Random;

/// A stream of the world's randomness.
pub(crate) struct Dice(ChaCha8Rng);

impl Dice {
    /// Stream `stream` of the world with this seed.
    pub(crate) fn new(seed: u64, stream: u64) -> Dice {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        Dice(rng)
    }

    /// In [0, 1).
    pub(crate) fn share(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

impl Random for Dice {
    fn fill(&mut self, octets: &mut [u8]) {
        self.0.fill_bytes(octets);
    }
}
