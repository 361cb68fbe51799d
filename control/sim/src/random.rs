//! All randomness of a world comes from its seed, in streams that don't disturb each other.

use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use spindle_ike::random::Random;
use std::time::Duration;

/// A stream of the world's randomness.
#[derive(Clone, Debug)]
pub struct Dice(ChaCha8Rng);

impl Dice {
    /// Stream `stream` of the world with this seed.
    pub fn new(seed: u64, stream: u64) -> Dice {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        Dice(rng)
    }

    /// True with this probability, in percent.
    pub(crate) fn percent(&mut self, percent: u32) -> bool {
        self.0.random_range(0..100) < percent
    }

    /// Below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0.random_range(0..bound)
    }

    /// From `low` up to, not including, `high`.
    pub(crate) fn between(&mut self, low: Duration, high: Duration) -> Duration {
        if low >= high { low } else { self.0.random_range(low..high) }
    }

    /// One of these.
    pub(crate) fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    /// Random octets.
    pub(crate) fn octets(&mut self, length: usize) -> Vec<u8> {
        let mut octets = vec![0; length];
        self.0.fill_bytes(&mut octets);
        octets
    }

    /// In [0, 1).
    pub fn share(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// One of the first 2^32 numbers.
    pub(crate) fn number(&mut self) -> u32 {
        self.0.next_u32()
    }
}

impl Random for Dice {
    fn fill(&mut self, octets: &mut [u8]) {
        self.0.fill_bytes(octets);
    }
}

/// A gateway's randomness. Draws of four octets, which are Child SPIs, come from 256 values only: with 2^32 no
/// simulation would ever see a gateway take an SPI twice.
pub(crate) struct GatewayRandom(pub(crate) Dice);

impl Random for GatewayRandom {
    fn fill(&mut self, octets: &mut [u8]) {
        self.0.fill(octets);
        if octets.len() == 4 {
            octets[..3].copy_from_slice(&[0, 0, 1]);
        }
    }
}
