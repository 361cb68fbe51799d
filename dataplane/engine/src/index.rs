//! Where to look for a packet's policy: by its addresses, so that not every policy is looked at.
//!
//! A range of addresses lies in a smallest *block*, an aligned one of 2^n. A pair of selectors stands under the blocks of
//! its two ranges; a packet's addresses lie in one block of each length, so with few pairs of lengths, as configurations
//! have them, it takes a few look-ups, whatever the number of policies.

use crate::selectors::Flow;
use spindle_abi::{Block, SelectorSet};
use spindle_aead::prefetch;
use std::net::IpAddr;

/// As many are looked at one after the other: hashing would take longer.
const FEW: usize = 4;

/// Hashes in a bucket, which is a cache line.
const WIDTH: usize = 5;
/// Of a free place; no pair of blocks has this hash.
const FREE: u64 = 0;
/// In the place of a policy's: this bit, and which list.
const LIST: u32 = 1 << 31;

/// Of a pair's blocks.
type Lengths = [u8; 2];

/// Hashes of two blocks and their lengths. Blocks that share a hash share a place, whose policies are held against the packet
/// anyway.
#[derive(Clone)]
#[repr(align(64))]
struct Bucket {
    hashes: [u64; WIDTH],
    places: [u32; WIDTH],
}

const _: () = assert!(size_of::<Bucket>() == 64);

#[derive(Default)]
pub(crate) struct Index {
    /// A full bucket overflows into the next. Nothing is ever removed: after such a change all is made anew.
    buckets: Vec<Bucket>,
    hashes: usize,
    /// Where several policies share a place: their places, ascending.
    lists: Vec<Vec<u32>>,
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
            let ranges = [local.addresses, remote.addresses];
            let lengths = ranges.map(|range| Block::around(&range).length());
            let of_version = &mut self.lengths[usize::from(local.addresses.start.is_ipv6())];
            if !of_version.contains(&lengths) {
                of_version.push(lengths);
            }
            if let Some(hash) = hash(ranges[0].start, ranges[1].start, lengths) {
                self.enter(hash, place);
            }
        }
    }

    fn enter(&mut self, hash: u64, place: u32) {
        // At most half full, so this ends.
        if 2 * (self.hashes + 1) > self.buckets.len() * WIDTH {
            self.grow();
        }
        let (at, lane) = self.find(hash);
        let bucket = &mut self.buckets[at];
        if bucket.hashes[lane] == FREE {
            (bucket.hashes[lane], bucket.places[lane]) = (hash, place);
            self.hashes += 1;
            return;
        }
        let held = bucket.places[lane];
        if held & LIST != 0 {
            let list = &mut self.lists[(held & !LIST) as usize];
            if list.last() != Some(&place) {
                list.push(place);
            }
        } else if held != place {
            bucket.places[lane] = LIST | self.lists.len() as u32;
            self.lists.push(vec![held, place]);
        }
    }

    fn grow(&mut self) {
        let free = Bucket { hashes: [FREE; WIDTH], places: [0; WIDTH] };
        let more = vec![free; (2 * self.buckets.len()).max(2)];
        for bucket in std::mem::replace(&mut self.buckets, more) {
            for (hash, place) in
                bucket.hashes.into_iter().zip(bucket.places).filter(|(hash, _)| *hash != FREE)
            {
                let (at, lane) = self.find(hash);
                (self.buckets[at].hashes[lane], self.buckets[at].places[lane]) = (hash, place);
            }
        }
    }

    #[inline]
    fn home(&self, hash: u64) -> usize {
        (hash >> 32) as usize & (self.buckets.len() - 1)
    }

    /// Bucket and lane of this hash, or of a free place for it. There are buckets, and they are not full.
    #[inline]
    fn find(&self, hash: u64) -> (usize, usize) {
        let mut at = self.home(hash);
        loop {
            let hashes = &self.buckets[at].hashes;
            if let Some(lane) = hashes.iter().position(|held| *held == hash || *held == FREE) {
                return (at, lane);
            }
            at = (at + 1) & (self.buckets.len() - 1);
        }
    }

    /// Are these so few that each packet is held against all of them?
    #[inline]
    pub(crate) fn is_short(&self) -> bool {
        self.count <= FEW
    }

    /// Fetches what will be looked at ahead of [`Index::visit`].
    #[inline]
    pub(crate) fn prefetch(&self, flow: &Flow) {
        if self.is_short() || self.buckets.is_empty() {
            return;
        }
        for lengths in &self.lengths[usize::from(flow.source.is_ipv6())] {
            if let Some(hash) = hash(flow.source, flow.destination, *lengths) {
                prefetch(&self.buckets[self.home(hash)]);
            }
        }
    }

    /// Calls for the places of policies that may match, in ascending order within a pair of blocks, until they answer
    /// that no later one of these is of interest.
    #[inline]
    pub(crate) fn visit(&self, flow: &Flow, mut look: impl FnMut(usize) -> bool) {
        if self.is_short() {
            (0..self.count).all(look);
            return;
        }
        if self.buckets.is_empty() {
            return;
        }
        for lengths in &self.lengths[usize::from(flow.source.is_ipv6())] {
            let Some(hash) = hash(flow.source, flow.destination, *lengths) else { continue };
            let (at, lane) = self.find(hash);
            let bucket = &self.buckets[at];
            match bucket.places[lane] {
                _ if bucket.hashes[lane] == FREE => {}
                list if list & LIST != 0 => {
                    self.lists[(list & !LIST) as usize].iter().all(|place| look(*place as usize));
                }
                place => {
                    look(place as usize);
                }
            }
        }
    }
}

/// The hash of the pair of blocks of these lengths in which two addresses lie; `None` if they are of two versions.
#[inline]
fn hash(local: IpAddr, remote: IpAddr, lengths: Lengths) -> Option<u64> {
    let [of_local, of_remote] = lengths.map(|length| 128 - u32::from(length));
    let seed = u64::from(u16::from_le_bytes(lengths)).wrapping_mul(ODD);
    let hash = match (local, remote) {
        (IpAddr::V4(local), IpAddr::V4(remote)) => {
            let cut = |address: u32, bits: u32| u64::from(address) >> bits.min(32) << bits.min(32);
            mix(seed ^ cut(local.to_bits(), of_local) << 32 ^ cut(remote.to_bits(), of_remote))
        }
        (IpAddr::V6(local), IpAddr::V6(remote)) => {
            let cut = |address: u128, bits: u32| u128::MAX.checked_shl(bits).unwrap_or(0) & address;
            let [local, remote] = [cut(local.to_bits(), of_local), cut(remote.to_bits(), of_remote)];
            let halves = [local as u64, (local >> 64) as u64, remote as u64, (remote >> 64) as u64];
            halves.into_iter().fold(seed, |hash, half| mix(hash ^ half))
        }
        _ => return None,
    };
    Some(hash.max(FREE + 1))
}

const ODD: u64 = 0x9e37_79b9_7f4a_7c15;

#[inline]
fn mix(number: u64) -> u64 {
    let hash = number.wrapping_mul(ODD);
    let hash = (hash ^ hash >> 32).wrapping_mul(ODD);
    hash ^ hash >> 29
}
