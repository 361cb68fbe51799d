//! Where to look for a packet's policy: by its addresses, so that not every policy is looked at.
//!
//! A range of addresses lies in a smallest *block*, an aligned one of 2^n. A pair of selectors stands under the blocks of
//! its two ranges; a packet's addresses lie in one block of each length, so with few pairs of lengths, as configurations
//! have them, it takes a few look-ups, whatever the number of policies.
//!
//! The table of blocks grows by one bucket at a time (linear hashing), so that no change of it costs more with many policies
//! than with few. What does grow is a list of policies under one pair of blocks, which packets have to go through as well.

use crate::pieces::{Pieces, Slots};
use crate::selectors::Flow;
use arrayvec::ArrayVec;
use spindle_abi::{Block, SelectorSet};
use spindle_aead::prefetch;
use std::net::{IpAddr, Ipv6Addr};

/// As many are looked at one after the other: hashing would take longer.
const FEW: usize = 4;

/// Hashes in a bucket, which is a cache line.
const WIDTH: usize = 5;
/// Of these so many are taken on an average, so that few buckets overflow.
const TAKEN: usize = 2;
/// Of a free place; no pair of blocks has this hash.
const FREE: u64 = 0;
/// In the place of a policy's: this bit, and which list.
const LIST: u32 = 1 << 31;
/// No bucket.
const NONE: u32 = u32::MAX;

/// Of a pair's blocks.
type Lengths = [u8; 2];

/// The blocks of these lengths in which a packet's addresses lie, as a hash.
#[derive(Clone, Copy)]
struct Shape {
    lengths: Lengths,
    /// So many pairs of blocks have these.
    count: u32,
    /// Of the lengths.
    seed: u64,
    /// What the blocks' addresses have in common: local and remote address in one for IPv4, else apart.
    v4: u64,
    v6: [u128; 2],
}

impl Shape {
    fn new(lengths: Lengths) -> Shape {
        // Those of IPv4 addresses count from 96.
        let v6 = lengths.map(|length| u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0));
        let v4 = v6.map(|mask| u64::from(mask as u32));
        let seed = u64::from(u16::from_le_bytes(lengths)).wrapping_mul(ODD);
        Shape { lengths, count: 0, seed, v4: v4[0] << 32 | v4[1], v6 }
    }

    /// `None` if the addresses are of two versions.
    #[inline(always)]
    fn hash(&self, local: IpAddr, remote: IpAddr) -> Option<u64> {
        match (local, remote) {
            (IpAddr::V4(local), IpAddr::V4(remote)) => {
                let both = u64::from(local.to_bits()) << 32 | u64::from(remote.to_bits());
                Some(mix(self.seed ^ both & self.v4).max(FREE + 1))
            }
            (IpAddr::V6(local), IpAddr::V6(remote)) => Some(self.hash_v6(local, remote)),
            _ => None,
        }
    }

    #[inline(never)]
    fn hash_v6(&self, local: Ipv6Addr, remote: Ipv6Addr) -> u64 {
        let [local, remote] = [local.to_bits() & self.v6[0], remote.to_bits() & self.v6[1]];
        let halves = [local as u64, (local >> 64) as u64, remote as u64, (remote >> 64) as u64];
        halves.into_iter().fold(self.seed, |hash, half| mix(hash ^ half)).max(FREE + 1)
    }
}

/// Hashes of two blocks and their lengths. Blocks that share a hash share a place, whose policies are held against the packet
/// anyway.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Bucket {
    hashes: [u64; WIDTH],
    places: [u32; WIDTH],
    /// Where it overflows into.
    next: u32,
}

const _: () = assert!(size_of::<Bucket>() == 64);

impl Bucket {
    const EMPTY: Bucket = Bucket { hashes: [FREE; WIDTH], places: [0; WIDTH], next: NONE };
}

pub(crate) struct Index {
    buckets: Pieces<Bucket>,
    /// Those into which others overflow.
    overflows: Slots<Bucket>,
    /// So many buckets; homes are as if there were the next power of two, of which the missing ones share theirs.
    count: u32,
    /// That power of two less one.
    mask: u32,
    hashes: usize,
    /// Where several policies share a place: their places, in their order.
    lists: Slots<Vec<u32>>,
    /// By IP version: those that there are.
    shapes: [Vec<Shape>; 2],
    policies: usize,
    /// All policies, in their order, as long as there never were more.
    few: Option<ArrayVec<u32, FEW>>,
    /// What is taken out of a bucket that is split.
    moving: Vec<(u64, u32)>,
}

impl Default for Index {
    fn default() -> Index {
        let mut buckets = Pieces::default();
        buckets.push(Bucket::EMPTY);
        Index {
            buckets,
            overflows: Slots::default(),
            count: 1,
            mask: 0,
            hashes: 0,
            lists: Slots::default(),
            shapes: Default::default(),
            policies: 0,
            few: Some(ArrayVec::new()),
            moving: Vec::new(),
        }
    }
}

impl Index {
    /// A policy that is to be found. `is_before`: does the first one come before the second one?
    pub(crate) fn insert(&mut self, place: u32, set: &SelectorSet, is_before: impl Fn(u32, u32) -> bool) {
        self.policies += 1;
        self.few = self.few.take().filter(|few| !few.is_full());
        if let Some(few) = &mut self.few {
            few.insert(few.partition_point(|other| is_before(*other, place)), place);
        }
        for (hash, shape, is_ipv6) in hashes(set) {
            let of_version = &mut self.shapes[usize::from(is_ipv6)];
            match of_version.iter_mut().find(|held| held.lengths == shape.lengths) {
                Some(held) => held.count += 1,
                None => of_version.push(Shape { count: 1, ..shape }),
            }
            self.enter(hash, place, &is_before);
        }
    }

    /// It is found no more.
    pub(crate) fn remove(&mut self, place: u32, set: &SelectorSet) {
        self.policies -= 1;
        match &mut self.few {
            Some(few) => few.retain(|other| *other != place),
            None if self.policies == 0 => self.few = Some(ArrayVec::new()),
            None => {}
        }
        for (hash, shape, is_ipv6) in hashes(set) {
            let of_version = &mut self.shapes[usize::from(is_ipv6)];
            if let Some(at) = of_version.iter().position(|held| held.lengths == shape.lengths) {
                of_version[at].count -= 1;
                if of_version[at].count == 0 {
                    of_version.swap_remove(at);
                }
            }
            self.leave(hash, place);
        }
    }

    fn enter(&mut self, hash: u64, place: u32, is_before: impl Fn(u32, u32) -> bool) {
        let Some(held) = self.value_mut(hash).copied() else {
            if self.hashes >= TAKEN * self.count as usize {
                self.split();
            }
            self.hashes += 1;
            return self.fill(hash, place);
        };
        if held & LIST != 0 {
            let list = self.lists.at_mut(held & !LIST);
            let at = list.partition_point(|other| is_before(*other, place));
            if list.get(at) != Some(&place) {
                list.insert(at, place);
            }
        } else if held != place {
            let both = if is_before(held, place) { vec![held, place] } else { vec![place, held] };
            let list = LIST | self.lists.put(both);
            if let Some(held) = self.value_mut(hash) {
                *held = list;
            }
        }
    }

    fn leave(&mut self, hash: u64, place: u32) {
        let Some(held) = self.value_mut(hash).copied() else { return };
        if held & LIST == 0 {
            if held == place {
                self.forget(hash);
            }
            return;
        }
        let list = self.lists.at_mut(held & !LIST);
        list.retain(|other| *other != place);
        if let [last] = list[..] {
            *list = Vec::new();
            self.lists.give_back(held & !LIST);
            if let Some(held) = self.value_mut(hash) {
                *held = last;
            }
        }
    }

    #[inline]
    fn home(&self, hash: u64) -> u32 {
        let at = (hash >> 32) as u32 & self.mask;
        if at < self.count { at } else { at & self.mask >> 1 }
    }

    /// What stands under this hash.
    #[inline(always)]
    fn value(&self, hash: u64) -> Option<u32> {
        let mut bucket = self.buckets.at(self.home(hash));
        loop {
            // Without a branch per lane, for which of them it is cannot be foreseen.
            let (mut found, mut place) = (false, 0);
            for (held, value) in bucket.hashes.iter().zip(&bucket.places) {
                let is_it = *held == hash;
                found |= is_it;
                place |= if is_it { *value } else { 0 };
            }
            if found {
                return Some(place);
            }
            if bucket.next == NONE {
                return None;
            }
            bucket = self.overflows.at(bucket.next);
        }
    }

    /// The lane that holds this hash, or [`FREE`]: its bucket, whether that is an overflow, and which lane.
    fn lane(&self, home: u32, hash: u64) -> Option<(u32, bool, usize)> {
        let (mut at, mut is_overflow) = (home, false);
        loop {
            let bucket = if is_overflow { self.overflows.at(at) } else { self.buckets.at(at) };
            if let Some(lane) = bucket.hashes.iter().position(|held| *held == hash) {
                return Some((at, is_overflow, lane));
            }
            if bucket.next == NONE {
                return None;
            }
            (at, is_overflow) = (bucket.next, true);
        }
    }

    fn bucket_mut(&mut self, at: u32, is_overflow: bool) -> &mut Bucket {
        if is_overflow { self.overflows.at_mut(at) } else { self.buckets.at_mut(at) }
    }

    fn value_mut(&mut self, hash: u64) -> Option<&mut u32> {
        let (at, is_overflow, lane) = self.lane(self.home(hash), hash)?;
        Some(&mut self.bucket_mut(at, is_overflow).places[lane])
    }

    fn forget(&mut self, hash: u64) {
        if let Some((at, is_overflow, lane)) = self.lane(self.home(hash), hash) {
            self.bucket_mut(at, is_overflow).hashes[lane] = FREE;
            self.hashes -= 1;
        }
    }

    /// Takes a free lane.
    fn fill(&mut self, hash: u64, value: u32) {
        let home = self.home(hash);
        let (at, is_overflow, lane) = match self.lane(home, FREE) {
            Some(free) => free,
            None => {
                // Behind the home, before its other overflows.
                let next = self.buckets.at(home).next;
                let more = self.overflows.put(Bucket { next, ..Bucket::EMPTY });
                self.buckets.at_mut(home).next = more;
                (more, true, 0)
            }
        };
        let bucket = self.bucket_mut(at, is_overflow);
        (bucket.hashes[lane], bucket.places[lane]) = (hash, value);
    }

    /// One more bucket, which takes its share of another one's.
    fn split(&mut self) {
        let new = self.buckets.push(Bucket::EMPTY);
        self.count = new + 1;
        self.mask = self.count.next_power_of_two() - 1;
        let other = new & !(1 << new.ilog2());
        let mut moving = std::mem::take(&mut self.moving);
        let mut bucket = std::mem::replace(self.buckets.at_mut(other), Bucket::EMPTY);
        loop {
            let lanes = bucket.hashes.into_iter().zip(bucket.places);
            moving.extend(lanes.filter(|(hash, _)| *hash != FREE));
            if bucket.next == NONE {
                break;
            }
            self.overflows.give_back(bucket.next);
            bucket = *self.overflows.at(bucket.next);
        }
        moving.drain(..).for_each(|(hash, value)| self.fill(hash, value));
        self.moving = moving;
    }

    /// Are these so few that each packet is held against all of them?
    #[inline]
    pub(crate) fn is_short(&self) -> bool {
        self.few.is_some()
    }

    /// Fetches what will be looked at ahead of [`Index::visit`]. If all that may match this packet stands under one hash, that
    /// one, for [`Index::only`].
    #[inline]
    pub(crate) fn prefetch(&self, flow: &Flow) -> Option<u64> {
        if self.is_short() {
            return None;
        }
        let near = |shape: &Shape| {
            let hash = shape.hash(flow.source, flow.destination);
            hash.iter().for_each(|hash| prefetch(self.buckets.at(self.home(*hash))));
            hash
        };
        match &self.shapes[usize::from(flow.source.is_ipv6())][..] {
            [only] => near(only),
            several => {
                for shape in several {
                    near(shape);
                }
                None
            }
        }
    }

    /// The place of the policy that stands under this hash, if it is one.
    #[inline]
    pub(crate) fn only(&self, hash: u64) -> Option<u32> {
        self.value(hash).filter(|value| value & LIST == 0)
    }

    /// Calls for the places of policies that may match, in their order within a pair of blocks, until they answer
    /// that no later one of these is of interest.
    #[inline]
    pub(crate) fn visit(&self, flow: &Flow, mut look: impl FnMut(u32) -> bool) {
        if let Some(few) = &self.few {
            few.iter().all(|place| look(*place));
            return;
        }
        for shape in &self.shapes[usize::from(flow.source.is_ipv6())] {
            let Some(hash) = shape.hash(flow.source, flow.destination) else { continue };
            match self.value(hash) {
                None => {}
                Some(list) if list & LIST != 0 => {
                    self.lists.at(list & !LIST).iter().all(|place| look(*place));
                }
                Some(place) => {
                    look(place);
                }
            }
        }
    }
}

/// What these selectors stand under: hash, shape, and whether it is of IPv6.
fn hashes(set: &SelectorSet) -> impl Iterator<Item = (u64, Shape, bool)> {
    set.pairs().filter_map(|(local, remote)| {
        let ranges = [local.addresses, remote.addresses];
        let shape = Shape::new(ranges.map(|range| Block::around(&range).length()));
        let hash = shape.hash(ranges[0].start, ranges[1].start)?;
        Some((hash, shape, ranges[0].start.is_ipv6()))
    })
}

const ODD: u64 = 0x9e37_79b9_7f4a_7c15;

#[inline]
fn mix(number: u64) -> u64 {
    let hash = number.wrapping_mul(ODD);
    let hash = (hash ^ hash >> 32).wrapping_mul(ODD);
    hash ^ hash >> 29
}
