//! The instructions that the kernel is written in, at each width. A value of [`AesNi`], [`Vaes`] or [`Vaes512`] is the
//! evidence that this CPU has them: only `detect` makes one. So everything built on it is safe code.

use super::kernel::{self, Expanded, NONCE};
use std::arch::x86_64::*;

/// One width's instructions. A vector holds `LANES` blocks of 16 octets; what is said of blocks is done in each lane.
pub(super) trait Cpu: Copy + Send + Sync + 'static {
    /// So many blocks.
    type Vector: Copy;
    /// Blocks in a vector.
    const LANES: usize;

    /// The evidence, if this CPU (and its operating system) has the instructions.
    fn detect() -> Option<Self>;
    /// The evidence for single blocks.
    fn narrow(self) -> AesNi;

    fn zero(self) -> Self::Vector;
    /// `octets` are 16 for each lane.
    fn load(self, octets: &[u8]) -> Self::Vector;
    /// `octets` are 16 for each of the first lanes, at least one; zeros in the others.
    fn load_first(self, octets: &[u8]) -> Self::Vector;
    /// `octets` are 16 for each lane.
    fn store(self, vector: Self::Vector, octets: &mut [u8]);
    /// This block in every lane.
    fn broadcast(self, block: __m128i) -> Self::Vector;
    /// This block in every lane.
    fn broadcast_load(self, octets: &[u8; 16]) -> Self::Vector;
    /// This block in the first lane, zeros in the others.
    fn first(self, block: __m128i) -> Self::Vector;
    /// `octets` are whole blocks for all lanes but the last at most; `then` follows in the next lane, zeros after it.
    fn load_then(self, octets: &[u8], then: __m128i) -> Self::Vector;
    /// Stores what [`Cpu::load_then`] loads, and returns what belongs to `then`.
    fn store_until(self, vector: Self::Vector, octets: &mut [u8]) -> __m128i;
    /// Puts a block into one lane; the lanes after it become anything.
    fn with_lane(self, vector: Self::Vector, lane: usize, block: __m128i) -> Self::Vector;
    /// One lane's block.
    fn lane(self, vector: Self::Vector, lane: usize) -> __m128i;
    /// 0 in the first lane, 1 in the second, and so on.
    fn lane_numbers(self) -> Self::Vector;
    /// The exclusive-or of all lanes.
    fn fold(self, vector: Self::Vector) -> __m128i;

    fn xor(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// Adds the lowest 32 bits (and the others among themselves).
    fn add(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// The 16 octets backwards.
    fn reverse(self, a: Self::Vector) -> Self::Vector;
    /// The two 64-bit halves exchanged.
    fn swap(self, a: Self::Vector) -> Self::Vector;
    /// The carry-less product of two halves: bit 0 of `HALVES` chooses that of `a`, bit 4 that of `b`.
    fn multiply<const HALVES: i32>(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// A round of AES.
    fn round(self, a: Self::Vector, key: Self::Vector) -> Self::Vector;
    /// The last round of AES.
    fn last_round(self, a: Self::Vector, key: Self::Vector) -> Self::Vector;

    /// [`kernel::seal`], compiled for these instructions.
    fn seal<const KEYS: usize, const POWERS: usize, const N: usize>(
        self,
        key: &Expanded<KEYS, POWERS>,
        nonce: &[u8; NONCE],
        aad: &[u8],
        buffer: &mut [u8],
    ) -> __m128i;

    /// [`kernel::open`], compiled for these instructions.
    fn open<const KEYS: usize, const POWERS: usize, const N: usize>(
        self,
        key: &Expanded<KEYS, POWERS>,
        nonce: &[u8; NONCE],
        aad: &[u8],
        buffer: &mut [u8],
    ) -> __m128i;

    /// [`kernel::expand`], compiled for these instructions.
    fn expand<const KEYS: usize, const POWERS: usize, const N: usize>(
        self,
        key: &[u8],
        to: &mut Expanded<KEYS, POWERS>,
    );
}

/// AES-NI and PCLMULQDQ on 128 bits.
#[derive(Clone, Copy)]
pub(super) struct AesNi(());

/// VAES and VPCLMULQDQ on 256 bits, without AVX-512.
#[derive(Clone, Copy)]
pub(super) struct Vaes(());

/// Hides from the optimiser that this is the same reference as before, so that it loads round keys where they are
/// needed, rather than to keep them all through a loop, that is, to copy them onto the stack.
#[inline(always)]
#[expect(
    clippy::pointers_in_nomem_asm_block,
    reason = "there is no instruction, so nothing is read or written"
)]
pub(super) fn opaque<T>(value: &T) -> &T {
    let mut address: *const T = value;
    // SAFETY: no instruction at all: `address` stays what it was.
    unsafe { std::arch::asm!("/* {0} */", inout(reg) address, options(nomem, nostack, preserves_flags)) };
    // SAFETY: it was made of a reference just now, and the result lives no longer than that.
    unsafe { &*address }
}

/// One instruction (or a few) of whose kind the evidence speaks.
macro_rules! instructions {
    ($($body:tt)*) => {
        // SAFETY: `self` exists, so the CPU has these instructions; they work on registers alone.
        unsafe { $($body)* }
    };
}

/// The three entries: functions for which the compiler may use the instructions.
macro_rules! entries {
    ($features:literal) => {
        fn seal<const KEYS: usize, const POWERS: usize, const N: usize>(
            self,
            key: &Expanded<KEYS, POWERS>,
            nonce: &[u8; NONCE],
            aad: &[u8],
            buffer: &mut [u8],
        ) -> __m128i {
            #[target_feature(enable = $features)]
            fn with_features<C: Cpu, const KEYS: usize, const POWERS: usize, const N: usize>(
                cpu: C,
                key: &Expanded<KEYS, POWERS>,
                nonce: &[u8; NONCE],
                aad: &[u8],
                buffer: &mut [u8],
            ) -> __m128i {
                kernel::seal::<C, KEYS, POWERS, N>(cpu, key, nonce, aad, buffer)
            }
            // SAFETY: `self` exists, so the CPU has these features.
            unsafe { with_features::<Self, KEYS, POWERS, N>(self, key, nonce, aad, buffer) }
        }

        fn open<const KEYS: usize, const POWERS: usize, const N: usize>(
            self,
            key: &Expanded<KEYS, POWERS>,
            nonce: &[u8; NONCE],
            aad: &[u8],
            buffer: &mut [u8],
        ) -> __m128i {
            #[target_feature(enable = $features)]
            fn with_features<C: Cpu, const KEYS: usize, const POWERS: usize, const N: usize>(
                cpu: C,
                key: &Expanded<KEYS, POWERS>,
                nonce: &[u8; NONCE],
                aad: &[u8],
                buffer: &mut [u8],
            ) -> __m128i {
                kernel::open::<C, KEYS, POWERS, N>(cpu, key, nonce, aad, buffer)
            }
            // SAFETY: `self` exists, so the CPU has these features.
            unsafe { with_features::<Self, KEYS, POWERS, N>(self, key, nonce, aad, buffer) }
        }

        fn expand<const KEYS: usize, const POWERS: usize, const N: usize>(
            self,
            key: &[u8],
            to: &mut Expanded<KEYS, POWERS>,
        ) {
            #[target_feature(enable = $features)]
            fn with_features<C: Cpu, const KEYS: usize, const POWERS: usize, const N: usize>(
                cpu: C,
                key: &[u8],
                to: &mut Expanded<KEYS, POWERS>,
            ) {
                kernel::expand::<C, KEYS, POWERS, N>(cpu, key, to)
            }
            // SAFETY: `self` exists, so the CPU has these features.
            unsafe { with_features::<Self, KEYS, POWERS, N>(self, key, to) }
        }
    };
}

mod wide;
pub(super) use wide::Vaes512;

impl AesNi {
    /// A block of these octets, the first of them the lowest.
    #[inline(always)]
    pub(super) fn block(self, octets: u128) -> __m128i {
        instructions!(_mm_set_epi64x((octets >> 64) as i64, octets as i64))
    }

    /// The octets of a block.
    #[inline(always)]
    pub(super) fn octets(self, block: __m128i) -> u128 {
        let (low, high) = instructions!((_mm_cvtsi128_si64(block), _mm_extract_epi64::<1>(block)));
        u128::from(high as u64) << 64 | u128::from(low as u64)
    }

    /// Are two blocks the same? Looks at all octets.
    #[inline(always)]
    pub(super) fn equal(self, a: __m128i, b: __m128i) -> bool {
        // In memory, for this is called where the compiler may use no more than every CPU has.
        let mut difference = [0; 16];
        self.store(self.xor(a, b), &mut difference);
        u128::from_ne_bytes(difference) == 0
    }

    /// The first `count` octets of a block (1 to 16), zeros after them.
    #[inline(always)]
    pub(super) fn keep(self, block: __m128i, count: usize) -> __m128i {
        const MASKS: [u8; 32] = {
            let mut masks = [0; 32];
            let (ones, _) = masks.split_at_mut(16);
            ones.copy_from_slice(&[0xff; 16]);
            masks
        };
        let mask = self.load(&MASKS[16 - count..][..16]);
        instructions!(_mm_and_si128(block, mask))
    }

    /// AES's S-box on four octets (FIPS 197 section 5.2).
    #[inline(always)]
    pub(super) fn substitute(self, word: u32) -> u32 {
        instructions!({
            let words = _mm_set1_epi32(word as i32);
            _mm_cvtsi128_si32(_mm_aeskeygenassist_si128::<0>(words)) as u32
        })
    }
}

impl Cpu for AesNi {
    type Vector = __m128i;
    const LANES: usize = 1;

    fn detect() -> Option<AesNi> {
        let has = is_x86_feature_detected!("aes")
            && is_x86_feature_detected!("pclmulqdq")
            && is_x86_feature_detected!("ssse3")
            && is_x86_feature_detected!("sse4.1")
            && is_x86_feature_detected!("avx");
        has.then_some(AesNi(()))
    }

    #[inline(always)]
    fn narrow(self) -> AesNi {
        self
    }

    #[inline(always)]
    fn zero(self) -> __m128i {
        instructions!(_mm_setzero_si128())
    }

    #[inline(always)]
    fn load(self, octets: &[u8]) -> __m128i {
        let octets: &[u8; 16] = octets.try_into().expect("16 octets");
        // SAFETY: `octets` are 16, and the load needs no alignment.
        unsafe { _mm_loadu_si128(octets.as_ptr().cast()) }
    }

    #[inline(always)]
    fn load_first(self, octets: &[u8]) -> __m128i {
        self.load(octets)
    }

    #[inline(always)]
    fn store(self, vector: __m128i, octets: &mut [u8]) {
        let octets: &mut [u8; 16] = octets.try_into().expect("16 octets");
        // SAFETY: `octets` are 16 of our own, and the store needs no alignment.
        unsafe { _mm_storeu_si128(octets.as_mut_ptr().cast(), vector) }
    }

    #[inline(always)]
    fn broadcast(self, block: __m128i) -> __m128i {
        block
    }

    #[inline(always)]
    fn broadcast_load(self, octets: &[u8; 16]) -> __m128i {
        self.load(octets)
    }

    #[inline(always)]
    fn first(self, block: __m128i) -> __m128i {
        block
    }

    #[inline(always)]
    fn load_then(self, _octets: &[u8], then: __m128i) -> __m128i {
        then
    }

    #[inline(always)]
    fn store_until(self, vector: __m128i, _octets: &mut [u8]) -> __m128i {
        vector
    }

    #[inline(always)]
    fn with_lane(self, _vector: __m128i, _lane: usize, block: __m128i) -> __m128i {
        block
    }

    #[inline(always)]
    fn lane(self, vector: __m128i, _lane: usize) -> __m128i {
        vector
    }

    #[inline(always)]
    fn lane_numbers(self) -> __m128i {
        self.zero()
    }

    #[inline(always)]
    fn fold(self, vector: __m128i) -> __m128i {
        vector
    }

    #[inline(always)]
    fn xor(self, a: __m128i, b: __m128i) -> __m128i {
        instructions!(_mm_xor_si128(a, b))
    }

    #[inline(always)]
    fn add(self, a: __m128i, b: __m128i) -> __m128i {
        instructions!(_mm_add_epi32(a, b))
    }

    #[inline(always)]
    fn reverse(self, a: __m128i) -> __m128i {
        instructions!(_mm_shuffle_epi8(a, _mm_set_epi64x(0x0001_0203_0405_0607, 0x0809_0a0b_0c0d_0e0f)))
    }

    #[inline(always)]
    fn swap(self, a: __m128i) -> __m128i {
        instructions!(_mm_shuffle_epi32::<0x4e>(a))
    }

    #[inline(always)]
    fn multiply<const HALVES: i32>(self, a: __m128i, b: __m128i) -> __m128i {
        instructions!(_mm_clmulepi64_si128::<HALVES>(a, b))
    }

    #[inline(always)]
    fn round(self, a: __m128i, key: __m128i) -> __m128i {
        instructions!(_mm_aesenc_si128(a, key))
    }

    #[inline(always)]
    fn last_round(self, a: __m128i, key: __m128i) -> __m128i {
        instructions!(_mm_aesenclast_si128(a, key))
    }

    entries!("aes,pclmulqdq,ssse3,sse4.1,avx");
}

impl Cpu for Vaes {
    type Vector = __m256i;
    const LANES: usize = 2;

    fn detect() -> Option<Vaes> {
        let has = is_x86_feature_detected!("vaes")
            && is_x86_feature_detected!("vpclmulqdq")
            && is_x86_feature_detected!("avx2");
        AesNi::detect().filter(|_| has).map(|_| Vaes(()))
    }

    #[inline(always)]
    fn narrow(self) -> AesNi {
        AesNi(())
    }

    #[inline(always)]
    fn zero(self) -> __m256i {
        instructions!(_mm256_setzero_si256())
    }

    #[inline(always)]
    fn load(self, octets: &[u8]) -> __m256i {
        let octets: &[u8; 32] = octets.try_into().expect("32 octets");
        // SAFETY: `octets` are 32, and the load needs no alignment.
        unsafe { _mm256_loadu_si256(octets.as_ptr().cast()) }
    }

    #[inline(always)]
    fn load_first(self, octets: &[u8]) -> __m256i {
        assert!(matches!(octets.len(), 16 | 32), "one block or two");
        let loaded = instructions!(_mm256_cmpgt_epi64(
            _mm256_set1_epi64x(octets.len() as i64 / 8),
            _mm256_setr_epi64x(0, 1, 2, 3),
        ));
        // SAFETY: a masked load touches only what its mask takes, here `octets`; it needs no alignment.
        unsafe { _mm256_maskload_epi64(octets.as_ptr().cast(), loaded) }
    }

    #[inline(always)]
    fn store(self, vector: __m256i, octets: &mut [u8]) {
        let octets: &mut [u8; 32] = octets.try_into().expect("32 octets");
        // SAFETY: `octets` are 32 of our own, and the store needs no alignment.
        unsafe { _mm256_storeu_si256(octets.as_mut_ptr().cast(), vector) }
    }

    #[inline(always)]
    fn broadcast(self, block: __m128i) -> __m256i {
        instructions!(_mm256_broadcastsi128_si256(block))
    }

    #[inline(always)]
    fn broadcast_load(self, octets: &[u8; 16]) -> __m256i {
        self.broadcast(self.narrow().load(octets))
    }

    #[inline(always)]
    fn first(self, block: __m128i) -> __m256i {
        instructions!(_mm256_zextsi128_si256(block))
    }

    #[inline(always)]
    fn load_then(self, octets: &[u8], then: __m128i) -> __m256i {
        match octets {
            [] => self.first(then),
            one => {
                let one = self.narrow().load(one);
                instructions!(_mm256_set_m128i(then, one))
            }
        }
    }

    #[inline(always)]
    fn store_until(self, vector: __m256i, octets: &mut [u8]) -> __m128i {
        match octets {
            [] => self.lane(vector, 0),
            one => {
                self.narrow().store(self.lane(vector, 0), one);
                self.lane(vector, 1)
            }
        }
    }

    #[inline(always)]
    fn with_lane(self, vector: __m256i, lane: usize, block: __m128i) -> __m256i {
        match lane {
            0 => self.first(block),
            _ => instructions!(_mm256_inserti128_si256::<1>(vector, block)),
        }
    }

    #[inline(always)]
    fn lane(self, vector: __m256i, lane: usize) -> __m128i {
        match lane {
            0 => instructions!(_mm256_castsi256_si128(vector)),
            _ => instructions!(_mm256_extracti128_si256::<1>(vector)),
        }
    }

    #[inline(always)]
    fn lane_numbers(self) -> __m256i {
        instructions!(_mm256_set_epi64x(0, 1, 0, 0))
    }

    #[inline(always)]
    fn fold(self, vector: __m256i) -> __m128i {
        self.narrow().xor(self.lane(vector, 0), self.lane(vector, 1))
    }

    #[inline(always)]
    fn xor(self, a: __m256i, b: __m256i) -> __m256i {
        instructions!(_mm256_xor_si256(a, b))
    }

    #[inline(always)]
    fn add(self, a: __m256i, b: __m256i) -> __m256i {
        instructions!(_mm256_add_epi32(a, b))
    }

    #[inline(always)]
    fn reverse(self, a: __m256i) -> __m256i {
        let order = self.broadcast(self.narrow().block(0x0001_0203_0405_0607_0809_0a0b_0c0d_0e0f));
        instructions!(_mm256_shuffle_epi8(a, order))
    }

    #[inline(always)]
    fn swap(self, a: __m256i) -> __m256i {
        instructions!(_mm256_shuffle_epi32::<0x4e>(a))
    }

    #[inline(always)]
    fn multiply<const HALVES: i32>(self, a: __m256i, b: __m256i) -> __m256i {
        instructions!(_mm256_clmulepi64_epi128::<HALVES>(a, b))
    }

    #[inline(always)]
    fn round(self, a: __m256i, key: __m256i) -> __m256i {
        instructions!(_mm256_aesenc_epi128(a, key))
    }

    #[inline(always)]
    fn last_round(self, a: __m256i, key: __m256i) -> __m256i {
        instructions!(_mm256_aesenclast_epi128(a, key))
    }

    entries!("aes,pclmulqdq,ssse3,sse4.1,avx,avx2,vaes,vpclmulqdq");
}
