//! The kernel at a width of four blocks, on any CPU with AES-NI: vectors are arrays of single blocks here. So all that
//! depends on the number of lanes is tested where there is no AVX-512, but for the 512-bit instructions themselves.

use super::cpu::{AesNi, Cpu};
use super::kernel::{self, Expanded, NONCE};
use super::*;
use crate::Provider;
use std::arch::x86_64::__m128i;

#[derive(Clone, Copy)]
struct Four(AesNi);

type Lanes = [__m128i; 4];

impl Four {
    fn each(self, a: Lanes, change: impl Fn(__m128i) -> __m128i) -> Lanes {
        a.map(change)
    }

    fn both(self, a: Lanes, b: Lanes, change: impl Fn(__m128i, __m128i) -> __m128i) -> Lanes {
        std::array::from_fn(|lane| change(a[lane], b[lane]))
    }
}

impl Cpu for Four {
    type Vector = Lanes;
    const LANES: usize = 4;

    fn detect() -> Option<Four> {
        AesNi::detect().map(Four)
    }
    fn narrow(self) -> AesNi {
        self.0
    }
    fn zero(self) -> Lanes {
        [self.0.zero(); 4]
    }
    fn load(self, octets: &[u8]) -> Lanes {
        assert_eq!(octets.len(), 64);
        std::array::from_fn(|lane| self.0.load(&octets[16 * lane..][..16]))
    }
    fn load_first(self, octets: &[u8]) -> Lanes {
        let mut blocks = octets.chunks_exact(16).map(|block| self.0.load(block));
        std::array::from_fn(|_| blocks.next().unwrap_or(self.0.zero()))
    }
    fn store(self, vector: Lanes, octets: &mut [u8]) {
        assert_eq!(octets.len(), 64);
        for (block, octets) in vector.into_iter().zip(octets.chunks_exact_mut(16)) {
            self.0.store(block, octets);
        }
    }
    fn broadcast(self, block: __m128i) -> Lanes {
        [block; 4]
    }
    fn broadcast_load(self, octets: &[u8; 16]) -> Lanes {
        self.broadcast(self.0.load(octets))
    }
    fn first(self, block: __m128i) -> Lanes {
        [block, self.0.zero(), self.0.zero(), self.0.zero()]
    }
    fn load_then(self, octets: &[u8], then: __m128i) -> Lanes {
        let mut vector = self.zero();
        for (lane, block) in octets.chunks_exact(16).enumerate() {
            vector[lane] = self.0.load(block);
        }
        vector[octets.len() / 16] = then;
        vector
    }
    fn store_until(self, vector: Lanes, octets: &mut [u8]) -> __m128i {
        for (block, octets) in vector.into_iter().zip(octets.chunks_exact_mut(16)) {
            self.0.store(block, octets);
        }
        vector[octets.len() / 16]
    }
    fn with_lane(self, mut vector: Lanes, lane: usize, block: __m128i) -> Lanes {
        // The lanes after it become anything.
        vector[lane + 1..].fill(self.0.block(u128::MAX));
        vector[lane] = block;
        vector
    }
    fn lane(self, vector: Lanes, lane: usize) -> __m128i {
        vector[lane]
    }
    fn lane_numbers(self) -> Lanes {
        [0, 1, 2, 3].map(|number| self.0.block(number))
    }
    fn fold(self, vector: Lanes) -> __m128i {
        vector.into_iter().fold(self.0.zero(), |a, b| self.0.xor(a, b))
    }
    fn xor(self, a: Lanes, b: Lanes) -> Lanes {
        self.both(a, b, |a, b| self.0.xor(a, b))
    }
    fn add(self, a: Lanes, b: Lanes) -> Lanes {
        self.both(a, b, |a, b| self.0.add(a, b))
    }
    fn reverse(self, a: Lanes) -> Lanes {
        self.each(a, |a| self.0.reverse(a))
    }
    fn swap(self, a: Lanes) -> Lanes {
        self.each(a, |a| self.0.swap(a))
    }
    fn multiply<const HALVES: i32>(self, a: Lanes, b: Lanes) -> Lanes {
        self.both(a, b, |a, b| self.0.multiply::<HALVES>(a, b))
    }
    fn round(self, a: Lanes, key: Lanes) -> Lanes {
        self.both(a, key, |a, key| self.0.round(a, key))
    }
    fn last_round(self, a: Lanes, key: Lanes) -> Lanes {
        self.both(a, key, |a, key| self.0.last_round(a, key))
    }
    fn seal<const KEYS: usize, const POWERS: usize, const N: usize>(
        self,
        key: &Expanded<KEYS, POWERS>,
        nonce: &[u8; NONCE],
        aad: &[u8],
        buffer: &mut [u8],
    ) -> __m128i {
        kernel::seal::<Self, KEYS, POWERS, N>(self, key, nonce, aad, buffer)
    }
    fn open<const KEYS: usize, const POWERS: usize, const N: usize>(
        self,
        key: &Expanded<KEYS, POWERS>,
        nonce: &[u8; NONCE],
        aad: &[u8],
        buffer: &mut [u8],
    ) -> __m128i {
        kernel::open::<Self, KEYS, POWERS, N>(self, key, nonce, aad, buffer)
    }
    fn expand<const KEYS: usize, const POWERS: usize, const N: usize>(
        self,
        key: &[u8],
        to: &mut Expanded<KEYS, POWERS>,
    ) {
        kernel::expand::<Self, KEYS, POWERS, N>(self, key, to);
    }
}

#[test]
fn four_lanes_do_as_the_portable_code_does_at_every_length() {
    let Some(cpu) = Four::detect() else { return };
    let secret: [u8; 32] = std::array::from_fn(|at| 3 * at as u8 + 1);
    for algorithm in [Algorithm::Aes128Gcm, Algorithm::Aes192Gcm, Algorithm::Aes256Gcm] {
        let secret = &secret[..algorithm.key_length()];
        let four = expand::<Four, { powers(Four::LANES, 2) }, 2>(cpu, algorithm, secret).unwrap();
        let portable = Provider::Portable.key(algorithm, secret).unwrap();
        for length in 0..=600 {
            let plain: Vec<u8> = (0..length).map(|at| at as u8).collect();
            let (nonce, aad) = ([length as u8; 12], [7; 12]);
            let (mut ours, mut theirs) = (plain.clone(), plain.clone());
            let (mut tag, mut expected) = ([0; 16], [0; 16]);
            four.seal(&nonce, &aad, &mut ours, &mut tag);
            portable.seal(&nonce, &aad, &mut theirs, &mut expected);
            assert_eq!((&ours, tag), (&theirs, expected), "{algorithm:?}, {length}");
            assert_eq!(four.open(&nonce, &aad, &mut ours, &tag), Ok(()));
            assert_eq!(ours, plain);
        }
    }
}
