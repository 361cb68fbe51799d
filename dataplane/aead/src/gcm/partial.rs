//! A packet's last block, which may be short: by loads and stores that overlap, chosen by its length alone.

use super::cpu::{AesNi, Cpu};
use std::arch::x86_64::__m128i;

/// 0 to 16 octets, and zeros after them.
#[inline(always)]
pub(super) fn load(one: AesNi, octets: &[u8]) -> __m128i {
    let length = octets.len();
    if length == 16 {
        return one.load(octets);
    }
    let value = if let (Some(front), Some(back)) = (octets.first_chunk(), octets.last_chunk()) {
        let (front, back) = (u64::from_le_bytes(*front), u64::from_le_bytes(*back));
        u128::from(front) | u128::from(back) << (8 * (length - 8))
    } else if let (Some(front), Some(back)) = (octets.first_chunk(), octets.last_chunk()) {
        let (front, back) = (u32::from_le_bytes(*front), u32::from_le_bytes(*back));
        u128::from(u64::from(front) | u64::from(back) << (8 * (length - 4)))
    } else if let [front, .., back] = octets {
        let middle = u32::from(octets[length / 2]) << (8 * (length / 2));
        u128::from(u32::from(*front) | middle | u32::from(*back) << (8 * (length - 1)))
    } else {
        octets.first().copied().unwrap_or(0).into()
    };
    one.block(value)
}

/// The first 0 to 16 octets of a block.
#[inline(always)]
pub(super) fn store(one: AesNi, block: __m128i, octets: &mut [u8]) {
    let length = octets.len();
    if length == 16 {
        return one.store(block, octets);
    }
    let value = one.octets(block);
    if length >= 8 {
        octets[..8].copy_from_slice(&(value as u64).to_le_bytes());
        octets[length - 8..].copy_from_slice(&((value >> (8 * (length - 8))) as u64).to_le_bytes());
    } else if length >= 4 {
        octets[..4].copy_from_slice(&(value as u32).to_le_bytes());
        octets[length - 4..].copy_from_slice(&((value >> (8 * (length - 4))) as u32).to_le_bytes());
    } else {
        for (octet, value) in octets.iter_mut().zip(value.to_le_bytes()) {
            *octet = value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_comes_back_and_nothing_else_is_touched() {
        let Some(one) = AesNi::detect() else { return };
        for length in 0..=16 {
            let octets: Vec<u8> = (1..=length as u8).collect();
            let block = load(one, &octets);
            let mut whole = [0; 16];
            whole[..length].copy_from_slice(&octets);
            assert_eq!(one.octets(block), u128::from_le_bytes(whole));
            let mut stored = [0xee; 16];
            store(one, block, &mut stored[..length]);
            assert_eq!((&stored[..length], &stored[length..]), (&octets[..], &[0xee; 16][length..]));
        }
    }
}
