//! VAES and VPCLMULQDQ on 512 bits.

use super::super::kernel::{self, Expanded, NONCE};
use super::{AesNi, Cpu, Vaes};
use std::arch::x86_64::*;

/// VAES and VPCLMULQDQ on 512 bits, with AVX-512 (F and BW).
#[derive(Clone, Copy)]
pub(in crate::gcm) struct Vaes512(());

impl Vaes512 {
    /// Octets of a block.
    const BLOCK: usize = 16;

    /// This block in one lane, the others as they are.
    #[inline(always)]
    fn insert(self, vector: __m512i, lane: usize, block: __m128i) -> __m512i {
        match lane {
            0 => instructions!(_mm512_inserti32x4::<0>(vector, block)),
            1 => instructions!(_mm512_inserti32x4::<1>(vector, block)),
            2 => instructions!(_mm512_inserti32x4::<2>(vector, block)),
            _ => instructions!(_mm512_inserti32x4::<3>(vector, block)),
        }
    }
}

impl Cpu for Vaes512 {
    type Vector = __m512i;
    const LANES: usize = 4;

    fn detect() -> Option<Vaes512> {
        let has = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
        Vaes::detect().filter(|_| has).map(|_| Vaes512(()))
    }

    #[inline(always)]
    fn narrow(self) -> AesNi {
        AesNi(())
    }

    #[inline(always)]
    fn zero(self) -> __m512i {
        instructions!(_mm512_setzero_si512())
    }

    #[inline(always)]
    fn load(self, octets: &[u8]) -> __m512i {
        let octets: &[u8; 64] = octets.try_into().expect("64 octets");
        // SAFETY: `octets` are 64, the load needs no alignment, and `self` exists.
        unsafe { _mm512_loadu_si512(octets.as_ptr().cast()) }
    }

    #[inline(always)]
    fn load_first(self, octets: &[u8]) -> __m512i {
        assert!(matches!(octets.len(), 16 | 32 | 48 | 64), "one to four blocks");
        let loaded = ((1_u16 << (octets.len() / 8)) - 1) as __mmask8;
        // SAFETY: a masked load touches only what its mask takes, here `octets`; it needs no alignment, and `self` exists.
        unsafe { _mm512_maskz_loadu_epi64(loaded, octets.as_ptr().cast()) }
    }

    #[inline(always)]
    fn store(self, vector: __m512i, octets: &mut [u8]) {
        let octets: &mut [u8; 64] = octets.try_into().expect("64 octets");
        // SAFETY: `octets` are 64 of our own, the store needs no alignment, and `self` exists.
        unsafe { _mm512_storeu_si512(octets.as_mut_ptr().cast(), vector) }
    }

    #[inline(always)]
    fn broadcast(self, block: __m128i) -> __m512i {
        instructions!(_mm512_broadcast_i32x4(block))
    }

    #[inline(always)]
    fn broadcast_load(self, octets: &[u8; 16]) -> __m512i {
        self.broadcast(self.narrow().load(octets))
    }

    #[inline(always)]
    fn first(self, block: __m128i) -> __m512i {
        self.insert(self.zero(), 0, block)
    }

    #[inline(always)]
    fn load_then(self, octets: &[u8], then: __m128i) -> __m512i {
        let mut vector = self.zero();
        for (lane, block) in octets.chunks_exact(Self::BLOCK).enumerate() {
            vector = self.insert(vector, lane, self.narrow().load(block));
        }
        self.insert(vector, octets.len() / Self::BLOCK, then)
    }

    #[inline(always)]
    fn store_until(self, vector: __m512i, octets: &mut [u8]) -> __m128i {
        for (lane, block) in octets.chunks_exact_mut(Self::BLOCK).enumerate() {
            self.narrow().store(self.lane(vector, lane), block);
        }
        self.lane(vector, octets.len() / Self::BLOCK)
    }

    #[inline(always)]
    fn with_lane(self, vector: __m512i, lane: usize, block: __m128i) -> __m512i {
        self.insert(vector, lane, block)
    }

    #[inline(always)]
    fn lane(self, vector: __m512i, lane: usize) -> __m128i {
        match lane {
            0 => instructions!(_mm512_extracti32x4_epi32::<0>(vector)),
            1 => instructions!(_mm512_extracti32x4_epi32::<1>(vector)),
            2 => instructions!(_mm512_extracti32x4_epi32::<2>(vector)),
            _ => instructions!(_mm512_extracti32x4_epi32::<3>(vector)),
        }
    }

    #[inline(always)]
    fn lane_numbers(self) -> __m512i {
        instructions!(_mm512_set_epi64(0, 3, 0, 2, 0, 1, 0, 0))
    }

    #[inline(always)]
    fn fold(self, vector: __m512i) -> __m128i {
        // No closures, which the compiler would call: they have not the instructions of what surrounds them.
        let low = instructions!(_mm512_castsi512_si256(vector));
        let high = instructions!(_mm512_extracti64x4_epi64::<1>(vector));
        let half = Vaes(());
        half.fold(half.xor(low, high))
    }

    #[inline(always)]
    fn xor(self, a: __m512i, b: __m512i) -> __m512i {
        instructions!(_mm512_xor_si512(a, b))
    }

    #[inline(always)]
    fn add(self, a: __m512i, b: __m512i) -> __m512i {
        instructions!(_mm512_add_epi32(a, b))
    }

    #[inline(always)]
    fn reverse(self, a: __m512i) -> __m512i {
        let order = self.broadcast(self.narrow().block(0x0001_0203_0405_0607_0809_0a0b_0c0d_0e0f));
        instructions!(_mm512_shuffle_epi8(a, order))
    }

    #[inline(always)]
    fn swap(self, a: __m512i) -> __m512i {
        instructions!(_mm512_shuffle_epi32::<0x4e>(a))
    }

    #[inline(always)]
    fn multiply<const HALVES: i32>(self, a: __m512i, b: __m512i) -> __m512i {
        instructions!(_mm512_clmulepi64_epi128::<HALVES>(a, b))
    }

    #[inline(always)]
    fn round(self, a: __m512i, key: __m512i) -> __m512i {
        instructions!(_mm512_aesenc_epi128(a, key))
    }

    #[inline(always)]
    fn last_round(self, a: __m512i, key: __m512i) -> __m512i {
        instructions!(_mm512_aesenclast_epi128(a, key))
    }

    entries!("aes,pclmulqdq,ssse3,sse4.1,avx,avx2,avx512f,avx512bw,vaes,vpclmulqdq");
}
