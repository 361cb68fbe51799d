//! AES-GCM of our own: [`cpu`] has the instructions at each width, [`kernel`] the algorithm, safe code for all widths,
//! [`partial`] a packet's last octets. A key's evidence that the CPU has the instructions is in the key.

mod cpu;
mod kernel;
mod partial;

use crate::{Algorithm, EspAead, NONCE_LENGTH, NotAuthentic, TAG_LENGTH};
use cpu::{AesNi, Cpu, Vaes, Vaes512};
use kernel::{Expanded, powers};

/// How wide the vectors are.
#[derive(Clone, Copy)]
pub(crate) enum Width {
    /// 128 bits: AES-NI and PCLMULQDQ.
    One,
    /// 256 bits: VAES and VPCLMULQDQ.
    Two,
    /// 512 bits: the same with AVX-512.
    Four,
}

/// Does this CPU have the instructions?
pub(crate) fn is_available(width: Width) -> bool {
    match width {
        Width::One => AesNi::detect().is_some(),
        Width::Two => Vaes::detect().is_some(),
        Width::Four => Vaes512::detect().is_some(),
    }
}

/// Expands a key of the algorithm's length. `None`: the CPU lacks the instructions, or this is not AES-GCM.
pub(crate) fn key(width: Width, algorithm: Algorithm, key: &[u8]) -> Option<Box<dyn EspAead>> {
    match width {
        Width::One => expand::<AesNi, { powers(AesNi::LANES, 8) }, 8>(AesNi::detect()?, algorithm, key),
        Width::Two => expand::<Vaes, { powers(Vaes::LANES, 4) }, 4>(Vaes::detect()?, algorithm, key),
        // As many blocks at once as with 256 bits, so that a key is hardly larger.
        Width::Four => {
            expand::<Vaes512, { powers(Vaes512::LANES, 2) }, 2>(Vaes512::detect()?, algorithm, key)
        }
    }
}

fn expand<C: Cpu, const POWERS: usize, const N: usize>(
    cpu: C,
    algorithm: Algorithm,
    key: &[u8],
) -> Option<Box<dyn EspAead>> {
    Some(match algorithm {
        Algorithm::Aes128Gcm => Gcm::<C, 11, POWERS, N>::boxed(cpu, key),
        Algorithm::Aes192Gcm => Gcm::<C, 13, POWERS, N>::boxed(cpu, key),
        Algorithm::Aes256Gcm => Gcm::<C, 15, POWERS, N>::boxed(cpu, key),
        Algorithm::ChaCha20Poly1305 => return None,
    })
}

/// More octets than one nonce may encrypt (SP 800-38D section 5.2.1.1): 2^39 - 256 bits.
const LIMIT: u64 = (1 << 36) - 32;

/// A key: `KEYS` of the rounds, `POWERS` of H, for chunks of `N` vectors.
struct Gcm<C, const KEYS: usize, const POWERS: usize, const N: usize> {
    expanded: Expanded<KEYS, POWERS>,
    cpu: C,
}

impl<C: Cpu, const KEYS: usize, const POWERS: usize, const N: usize> Gcm<C, KEYS, POWERS, N> {
    fn boxed(cpu: C, key: &[u8]) -> Box<dyn EspAead> {
        // Expanded where it stays, so that no copy is left elsewhere.
        let mut gcm = Box::new(Self { expanded: Expanded::ZERO, cpu });
        cpu.expand::<KEYS, POWERS, N>(key, &mut gcm.expanded);
        gcm
    }
}

impl<C, const KEYS: usize, const POWERS: usize, const N: usize> Drop for Gcm<C, KEYS, POWERS, N> {
    fn drop(&mut self) {
        self.expanded.wipe();
    }
}

impl<C: Cpu, const KEYS: usize, const POWERS: usize, const N: usize> EspAead for Gcm<C, KEYS, POWERS, N> {
    fn seal(&self, nonce: &[u8; NONCE_LENGTH], aad: &[u8], buffer: &mut [u8], tag: &mut [u8; TAG_LENGTH]) {
        if buffer.len() as u64 > LIMIT {
            buffer.fill(0);
            return tag.fill(0);
        }
        let computed = self.cpu.seal::<KEYS, POWERS, N>(&self.expanded, nonce, aad, buffer);
        self.cpu.narrow().store(computed, tag);
    }

    fn open(
        &self,
        nonce: &[u8; NONCE_LENGTH],
        aad: &[u8],
        buffer: &mut [u8],
        tag: &[u8; TAG_LENGTH],
    ) -> Result<(), NotAuthentic> {
        if buffer.len() as u64 <= LIMIT {
            let computed = self.cpu.open::<KEYS, POWERS, N>(&self.expanded, nonce, aad, buffer);
            if self.cpu.narrow().equal(computed, self.cpu.narrow().load(tag)) {
                return Ok(());
            }
        }
        buffer.fill(0);
        Err(NotAuthentic)
    }
}

#[cfg(test)]
mod tests;
