//! Where to look for a packet's policy: by its addresses, so that not every policy is looked at.
//!
//! A range of addresses lies in a smallest *block*, an aligned one of 2^n. A pair of selectors stands under the blocks of
//! its two ranges; a packet's addresses lie in one block of each length, so with few pairs of lengths, as configurations
//! have them, it takes a few look-ups, whatever the number of policies.

use crate::selectors::Flow;
use spindle_abi::{Block, SelectorSet};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// As many are looked at one after the other: hashing would take longer.
const FEW: usize = 4;

/// Of a pair's blocks.
type Lengths = [u8; 2];

#[derive(Default)]
pub(crate) struct Index {
    /// Places of policies, ascending, by the hash of two blocks and their lengths. Blocks that share a hash share a list,
    /// whose policies are held against the packet anyway.
    places: HashMap<u64, Vec<u32>, BuildHasherDefault<AsIs>>,
    /// By IP version: the lengths that there are.
    lengths: [Vec<Lengths>; 2],
    count: usize,
}

impl Index {
    /// The next policy.
    pub(crate) fn push(&mut self, place: usize, set: &SelectorSet) {
        self.count = place + 1;
        let place = place as u32;
        for (local, remote) in set.pairs() {
            let blocks = [Block::around(&local.addresses), Block::around(&remote.addresses)];
            let lengths = blocks.map(Block::length);
            let of_version = &mut self.lengths[usize::from(local.addresses.start.is_ipv6())];
            if !of_version.contains(&lengths) {
                of_version.push(lengths);
            }
            let places = self.places.entry(key(blocks)).or_default();
            if places.last() != Some(&place) {
                places.push(place);
            }
        }
    }

    /// Calls for the places of policies that may match, in ascending order within a pair of blocks, until they answer
    /// that no later one of these is of interest.
    #[inline]
    pub(crate) fn visit(&self, flow: &Flow, mut look: impl FnMut(usize) -> bool) {
        if self.count <= FEW {
            (0..self.count).all(look);
            return;
        }
        let (local, remote) = (Block::of(flow.source), Block::of(flow.destination));
        for &[of_local, of_remote] in &self.lengths[usize::from(flow.source.is_ipv6())] {
            // No block is longer than that of an address.
            let (Some(local), Some(remote)) = (local.widened(of_local), remote.widened(of_remote)) else {
                continue;
            };
            if let Some(places) = self.places.get(&key([local, remote])) {
                places.iter().all(|place| look(*place as usize));
            }
        }
    }
}

/// The hash of a pair of blocks.
#[inline]
fn key(blocks: [Block; 2]) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut hash = u64::from(u16::from_le_bytes(blocks.map(Block::length)));
    for first in blocks.map(Block::first) {
        for half in [first as u64, (first >> 64) as u64] {
            hash = (hash ^ half).wrapping_mul(ODD);
            hash ^= hash >> 29;
        }
    }
    hash
}

/// The key is a hash already.
#[derive(Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, octets: &[u8]) {
        octets.iter().for_each(|octet| self.0 = (self.0 << 8) | u64::from(*octet));
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}
