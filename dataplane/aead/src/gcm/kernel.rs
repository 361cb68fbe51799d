//! AES-GCM (NIST SP 800-38D) at any width, safe code on top of [`Cpu`].
//!
//! A packet goes through in chunks of `N` vectors, one pass: the keystream of one chunk is made while the carry-less
//! products of another fill the gaps. What is left, at most a chunk, is finished together with the lengths and the
//! tag's own block, all of it at once: a short packet takes one passage of AES and one reduction.
//!
//! Blocks are hashed backwards (octet 15 first), as GHASH's bit order and the multiplier's then agree but for a
//! factor x, which is in the powers of H. Hashing m blocks at once needs H^m to H^1 and one reduction:
//! Y' = (Y + X1)·H^m + X2·H^(m-1) + ... + Xm·H.
//!
//! Neither branches nor addresses depend on anything but lengths.

use super::cpu::{AesNi, Cpu, opaque};
use super::partial;
use std::arch::x86_64::__m128i;

/// Octets of a nonce.
pub(super) const NONCE: usize = crate::NONCE_LENGTH;
/// Octets of a block.
const BLOCK: usize = 16;

/// Powers of H in a table: for `N` vectors, for the lengths and for the additional data.
pub(super) const fn powers(lanes: usize, n: usize) -> usize {
    lanes * n + 2
}

/// An expanded key. No more aligned than an allocator does anyway, which would waste memory for it.
#[repr(C, align(16))]
pub(super) struct Expanded<const KEYS: usize, const POWERS: usize> {
    /// H^(lanes·N + 2) down to H^1, each times x.
    powers: [[u8; BLOCK]; POWERS],
    /// Of the rounds of AES.
    rounds: [[u8; BLOCK]; KEYS],
}

impl<const KEYS: usize, const POWERS: usize> Expanded<KEYS, POWERS> {
    pub(super) const ZERO: Self = Expanded { powers: [[0; BLOCK]; POWERS], rounds: [[0; BLOCK]; KEYS] };

    /// Overwrites it with zeros.
    pub(super) fn wipe(&mut self) {
        use zeroize::Zeroize;
        self.powers.as_flattened_mut().zeroize();
        self.rounds.as_flattened_mut().zeroize();
    }
}

/// A sum of products, not yet reduced: Karatsuba's three parts.
struct Product<C: Cpu> {
    low: C::Vector,
    middle: C::Vector,
    high: C::Vector,
}

impl<C: Cpu> Product<C> {
    #[inline(always)]
    fn of(cpu: C, a: C::Vector, b: C::Vector) -> Self {
        Product {
            low: cpu.multiply::<0x00>(a, b),
            middle: cpu.multiply::<0x00>(cpu.xor(a, cpu.swap(a)), cpu.xor(b, cpu.swap(b))),
            high: cpu.multiply::<0x11>(a, b),
        }
    }

    #[inline(always)]
    fn plus(self, cpu: C, other: Self) -> Self {
        Product {
            low: cpu.xor(self.low, other.low),
            middle: cpu.xor(self.middle, other.middle),
            high: cpu.xor(self.high, other.high),
        }
    }

    /// The sum over all lanes modulo GCM's polynomial: twice the lowest half is multiplied away
    /// (Gueron, "AES-GCM for efficient authenticated encryption").
    #[inline(always)]
    fn reduce(self, cpu: C) -> __m128i {
        let polynomial = cpu.broadcast(cpu.narrow().block(0xc200_0000_0000_0000 << 64));
        let middle = cpu.xor(self.middle, cpu.xor(self.low, self.high));
        let middle = cpu.xor(cpu.xor(middle, cpu.swap(self.low)), cpu.multiply::<0x10>(self.low, polynomial));
        cpu.fold(cpu.xor(cpu.xor(self.high, cpu.swap(middle)), cpu.multiply::<0x10>(middle, polynomial)))
    }
}

/// Encrypts in place and returns the tag.
#[inline(always)]
pub(super) fn seal<C: Cpu, const KEYS: usize, const POWERS: usize, const N: usize>(
    cpu: C,
    key: &Expanded<KEYS, POWERS>,
    nonce: &[u8; NONCE],
    aad: &[u8],
    buffer: &mut [u8],
) -> __m128i {
    let chunk = N * C::LANES * BLOCK;
    let mut packet = Packet::<C, KEYS, POWERS, N>::begin(cpu, key, nonce, aad, buffer.len());
    let (chunks, rest) = buffer.split_at_mut(buffer.len() / chunk * chunk);
    let mut chunks = chunks.chunks_exact_mut(chunk);
    if let Some(first) = chunks.next() {
        let keystream = packet.keystream(None);
        let mut sealed = packet.apply(&keystream, first);
        for chunk in chunks {
            let keystream = packet.keystream(Some(&sealed));
            sealed = packet.apply(&keystream, chunk);
        }
        packet.hash(&sealed);
    }
    packet.finish::<true>(rest)
}

/// Decrypts in place and returns what the tag must be: the caller compares, and wipes if it is another.
#[inline(always)]
pub(super) fn open<C: Cpu, const KEYS: usize, const POWERS: usize, const N: usize>(
    cpu: C,
    key: &Expanded<KEYS, POWERS>,
    nonce: &[u8; NONCE],
    aad: &[u8],
    buffer: &mut [u8],
) -> __m128i {
    let chunk = N * C::LANES * BLOCK;
    let mut packet = Packet::<C, KEYS, POWERS, N>::begin(cpu, key, nonce, aad, buffer.len());
    let (chunks, rest) = buffer.split_at_mut(buffer.len() / chunk * chunk);
    for chunk in chunks.chunks_exact_mut(chunk) {
        let sealed = packet.read(chunk);
        let keystream = packet.keystream(Some(&sealed));
        packet.apply(&keystream, chunk);
    }
    packet.finish::<false>(rest)
}

/// One packet on its way.
struct Packet<'a, C: Cpu, const KEYS: usize, const POWERS: usize, const N: usize> {
    cpu: C,
    key: &'a Expanded<KEYS, POWERS>,
    /// Backwards, so that the 32-bit counter is lowest: the pre-counter block J0, and those of the next vector.
    before: __m128i,
    counters: C::Vector,
    /// GHASH so far.
    hash: __m128i,
    /// What is to be added at the next reduction: the additional data.
    pending: Product<C>,
    /// Octets of additional data and of the packet.
    lengths: [usize; 2],
}

impl<'a, C: Cpu, const KEYS: usize, const POWERS: usize, const N: usize> Packet<'a, C, KEYS, POWERS, N> {
    /// Octets of a vector.
    const WIDTH: usize = C::LANES * BLOCK;
    /// Octets of a chunk.
    const CHUNK: usize = N * Self::WIDTH;
    /// Blocks of a chunk.
    const BLOCKS: usize = N * C::LANES;

    #[inline(always)]
    fn begin(
        cpu: C,
        key: &'a Expanded<KEYS, POWERS>,
        nonce: &[u8; NONCE],
        aad: &[u8],
        length: usize,
    ) -> Self {
        const { assert!(POWERS == powers(C::LANES, N) && N < KEYS - 1 && N <= 8) };
        let one = cpu.narrow();
        let mut block = [0; BLOCK];
        block[..NONCE].copy_from_slice(nonce);
        block[BLOCK - 1] = 1;
        let before = one.reverse(one.block(u128::from_le_bytes(block)));
        let first = one.add(before, one.block(1));
        let counters = cpu.add(cpu.broadcast(first), cpu.lane_numbers());

        // ESP's additional data is one block (RFC 4106 section 5); what is longer is hashed block by block.
        let (whole, last) = aad.split_at(aad.len().saturating_sub(1) / BLOCK * BLOCK);
        let mut additional = one.zero();
        for block in whole.chunks_exact(BLOCK) {
            let sum = one.xor(additional, one.reverse(one.load(block)));
            additional = Product::of(one, sum, one.load(&key.powers[Self::BLOCKS + 1])).reduce(one);
        }
        additional = one.xor(additional, one.reverse(partial::load(one, last)));
        // It is as many blocks before the next reduction as there will be: a chunk, or all of a short packet.
        let following = if length >= Self::CHUNK { Self::BLOCKS } else { length.div_ceil(BLOCK) + 1 };
        let power = one.load(&key.powers[Self::BLOCKS + 1 - following]);
        let pending = Product::of(cpu, cpu.first(additional), cpu.first(power));
        Packet { cpu, key, before, counters, hash: one.zero(), pending, lengths: [aad.len(), length] }
    }

    /// The next vector of counter blocks.
    #[inline(always)]
    fn count(&mut self) -> C::Vector {
        let (cpu, one) = (self.cpu, self.cpu.narrow());
        let counters = self.counters;
        self.counters = cpu.add(counters, cpu.broadcast(one.block(C::LANES as u128)));
        counters
    }

    /// A chunk's keystream; in its gaps `sealed` is hashed, a chunk of ciphertext.
    #[inline(always)]
    fn keystream(&mut self, sealed: Option<&[C::Vector; N]>) -> [C::Vector; N] {
        let cpu = self.cpu;
        let key = opaque(self.key);
        let mut blocks = [cpu.zero(); N];
        let round = cpu.broadcast_load(&key.rounds[0]);
        for block in &mut blocks {
            *block = cpu.xor(cpu.reverse(self.count()), round);
        }
        for number in 1..KEYS - 1 {
            let round = cpu.broadcast_load(&key.rounds[number]);
            for block in &mut blocks {
                *block = cpu.round(*block, round);
            }
            if let Some(sealed) = sealed
                && number <= N
            {
                self.multiply(number - 1, sealed);
            }
        }
        if sealed.is_some() {
            self.reduce();
        }
        let round = cpu.broadcast_load(&key.rounds[KEYS - 1]);
        for block in &mut blocks {
            *block = cpu.last_round(*block, round);
        }
        blocks
    }

    /// Hashes a chunk of ciphertext.
    #[inline(always)]
    fn hash(&mut self, sealed: &[C::Vector; N]) {
        for number in 0..N {
            self.multiply(number, sealed);
        }
        self.reduce();
    }

    /// One vector's share of a chunk's hash.
    #[inline(always)]
    fn multiply(&mut self, number: usize, sealed: &[C::Vector; N]) {
        let cpu = self.cpu;
        let mut vector = sealed[number];
        if number == 0 {
            vector = cpu.xor(vector, cpu.first(self.hash));
        }
        let powers =
            cpu.load(&self.key.powers.as_flattened()[2 * BLOCK + number * Self::WIDTH..][..Self::WIDTH]);
        self.add(Product::of(cpu, vector, powers));
    }

    #[inline(always)]
    fn add(&mut self, product: Product<C>) {
        let zero = self.cpu.zero();
        let pending = std::mem::replace(&mut self.pending, Product { low: zero, middle: zero, high: zero });
        self.pending = pending.plus(self.cpu, product);
    }

    #[inline(always)]
    fn reduce(&mut self) {
        let zero = self.cpu.zero();
        let pending = std::mem::replace(&mut self.pending, Product { low: zero, middle: zero, high: zero });
        self.hash = pending.reduce(self.cpu);
    }

    /// A chunk, backwards, as it is hashed.
    #[inline(always)]
    fn read(&self, chunk: &[u8]) -> [C::Vector; N] {
        let mut vectors = [self.cpu.zero(); N];
        for (vector, octets) in vectors.iter_mut().zip(chunk.chunks_exact(Self::WIDTH)) {
            *vector = self.cpu.reverse(self.cpu.load(octets));
        }
        vectors
    }

    /// Encrypts or decrypts a chunk, and returns the result backwards.
    #[inline(always)]
    fn apply(&self, keystream: &[C::Vector; N], chunk: &mut [u8]) -> [C::Vector; N] {
        let cpu = self.cpu;
        let mut vectors = [cpu.zero(); N];
        for (number, octets) in chunk.chunks_exact_mut(Self::WIDTH).enumerate() {
            let result = cpu.xor(cpu.load(octets), keystream[number]);
            cpu.store(result, octets);
            vectors[number] = cpu.reverse(result);
        }
        vectors
    }

    /// What is left, the lengths and the tag.
    #[inline(always)]
    fn finish<const SEAL: bool>(self, rest: &mut [u8]) -> __m128i {
        // The blocks that are left and that of the lengths, in vectors.
        match rest.len().div_ceil(BLOCK) / C::LANES + 1 {
            1 => self.finish_vectors::<1, SEAL>(rest),
            2 => self.finish_vectors::<2, SEAL>(rest),
            3 if N >= 2 => self.finish_vectors::<3, SEAL>(rest),
            4 if N >= 3 => self.finish_vectors::<4, SEAL>(rest),
            5 if N >= 4 => self.finish_vectors::<5, SEAL>(rest),
            6 if N >= 5 => self.finish_vectors::<6, SEAL>(rest),
            7 if N >= 6 => self.finish_vectors::<7, SEAL>(rest),
            8 if N >= 7 => self.finish_vectors::<8, SEAL>(rest),
            9 if N >= 8 => self.finish_vectors::<9, SEAL>(rest),
            _ => unreachable!("less than a chunk is left"),
        }
    }

    /// `V` vectors: whole ones; then one that ends with the packet's last block, which may be short; then, or in the
    /// lane after it, the block that is the lengths to the hash and J0 to the cipher.
    #[inline(always)]
    fn finish_vectors<const V: usize, const SEAL: bool>(mut self, rest: &mut [u8]) -> __m128i {
        let (cpu, one, key) = (self.cpu, self.cpu.narrow(), self.key);
        let blocks = rest.len().div_ceil(BLOCK);
        let lane = blocks % C::LANES;

        let mut stream = [cpu.zero(); V];
        for vector in &mut stream {
            *vector = self.count();
        }
        stream[V - 1] = cpu.with_lane(stream[V - 1], lane, self.before);
        let round = cpu.broadcast_load(&key.rounds[0]);
        for vector in &mut stream {
            *vector = cpu.xor(cpu.reverse(*vector), round);
        }
        for round in &key.rounds[1..KEYS - 1] {
            let round = cpu.broadcast_load(round);
            for vector in &mut stream {
                *vector = cpu.round(*vector, round);
            }
        }
        let round = cpu.broadcast_load(&key.rounds[KEYS - 1]);
        for vector in &mut stream {
            *vector = cpu.last_round(*vector, round);
        }

        let powers = &key.powers.as_flattened()[(Self::BLOCKS + 1 - blocks) * BLOCK..];
        let power = |number: usize| cpu.load(&powers[number * Self::WIDTH..][..Self::WIDTH]);
        let mut hash = cpu.first(self.hash);
        // Whole vectors, but for the one that may be and the one that never is.
        for number in 0..V.saturating_sub(2) {
            let data =
                whole::<C, SEAL>(cpu, stream[number], &mut rest[number * Self::WIDTH..][..Self::WIDTH]);
            self.add(Product::of(cpu, cpu.xor(data, hash), power(number)));
            hash = cpu.zero();
        }
        let lengths =
            one.block(u128::from(8 * self.lengths[0] as u64) << 64 | u128::from(8 * self.lengths[1] as u64));
        let at = V.saturating_sub(2) * Self::WIDTH;
        let mut data = cpu.zero();
        if V > 1 {
            let last = if lane == 0 {
                short::<C, SEAL>(cpu, stream[V - 2], &mut rest[at..], C::LANES - 1)
            } else {
                let last = whole::<C, SEAL>(cpu, stream[V - 2], &mut rest[at..][..Self::WIDTH]);
                data = short::<C, SEAL>(cpu, stream[V - 1], &mut rest[at + Self::WIDTH..], lane - 1);
                last
            };
            self.add(Product::of(cpu, cpu.xor(last, hash), power(V - 2)));
            hash = cpu.zero();
        } else if lane > 0 {
            data = short::<C, SEAL>(cpu, stream[V - 1], rest, lane - 1);
        }
        let data = cpu.with_lane(data, lane, lengths);
        // Zeros for whatever is in the lanes after that of the lengths.
        let last = cpu.load_first(&powers[(V - 1) * Self::WIDTH..]);
        self.add(Product::of(cpu, cpu.xor(data, hash), last));
        self.reduce();
        one.xor(one.reverse(self.hash), cpu.lane(stream[V - 1], lane))
    }
}

/// Encrypts or decrypts a whole vector in place and returns the ciphertext, backwards.
#[inline(always)]
fn whole<C: Cpu, const SEAL: bool>(cpu: C, stream: C::Vector, octets: &mut [u8]) -> C::Vector {
    let given = cpu.load(octets);
    let result = cpu.xor(given, stream);
    cpu.store(result, octets);
    cpu.reverse(if SEAL { result } else { given })
}

/// The same for `before` whole blocks and one that may be short; all is zero after it.
#[inline(always)]
fn short<C: Cpu, const SEAL: bool>(cpu: C, stream: C::Vector, octets: &mut [u8], before: usize) -> C::Vector {
    let (whole, last) = octets.split_at_mut(before * BLOCK);
    let one = cpu.narrow();
    let given = cpu.load_then(whole, partial::load(one, last));
    let result = cpu.xor(given, stream);
    let sealed = one.keep(cpu.store_until(result, whole), last.len());
    partial::store(one, sealed, last);
    let sealed = if SEAL { cpu.with_lane(result, before, sealed) } else { given };
    cpu.reverse(sealed)
}

/// The rounds' keys (FIPS 197 section 5.2), and the powers of H.
#[inline(always)]
pub(super) fn expand<C: Cpu, const KEYS: usize, const POWERS: usize, const N: usize>(
    cpu: C,
    key: &[u8],
    to: &mut Expanded<KEYS, POWERS>,
) {
    let one = cpu.narrow();
    schedule(one, key, &mut to.rounds);
    let mut h = one.load(&to.rounds[0]);
    for round in &to.rounds[1..KEYS - 1] {
        h = one.round(h, one.load(round));
    }
    let h = one.octets(one.reverse(one.last_round(h, one.load(&to.rounds[KEYS - 1]))));
    // Times x, modulo the polynomial.
    let carry = 0u128.wrapping_sub(h >> 127);
    let h = one.block(h << 1 ^ carry & (0xc200_0000_0000_0000 << 64 | 1));
    let mut power = h;
    for place in to.powers.iter_mut().rev() {
        one.store(power, place);
        power = Product::of(one, power, h).reduce(one);
    }
}

#[inline(always)]
fn schedule<const KEYS: usize>(one: AesNi, key: &[u8], rounds: &mut [[u8; BLOCK]; KEYS]) {
    const WORD: usize = 4;
    let length = key.len() / WORD;
    let octets = rounds.as_flattened_mut();
    octets[..key.len()].copy_from_slice(key);
    let mut constant = 1;
    for number in length..KEYS * BLOCK / WORD {
        let word = |number: usize| {
            let octets = &octets[number * WORD..][..WORD];
            u32::from_le_bytes([octets[0], octets[1], octets[2], octets[3]])
        };
        let mut last = word(number - 1);
        if number % length == 0 {
            last = one.substitute(last).rotate_right(8) ^ constant;
            // x^8 = x^4 + x^3 + x + 1.
            constant = if constant == 0x80 { 0x1b } else { constant << 1 };
        } else if length > 6 && number % length == 4 {
            last = one.substitute(last);
        }
        let next = word(number - length) ^ last;
        octets[number * WORD..][..WORD].copy_from_slice(&next.to_le_bytes());
    }
}
