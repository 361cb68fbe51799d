//! Aligned blocks of addresses: by the smallest one around it a range is found among many, and as networks it is written
//! where only these are known.

use crate::AddressRange;
use std::net::IpAddr;

/// An aligned block of 2^n addresses. IPv4 stands where RFC 4291 section 2.5.5.2 maps it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Block {
    first: u128,
    length: u8,
}

impl Block {
    /// One address.
    #[inline]
    pub fn of(address: IpAddr) -> Block {
        let first = match address {
            IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
            IpAddr::V6(address) => address.to_bits(),
        };
        Block { first, length: 128 }
    }

    /// The smallest one that holds a range.
    pub fn around(range: &AddressRange) -> Block {
        let (start, end) = (Block::of(range.start), Block::of(range.end));
        start.cut((start.first ^ end.first).leading_zeros() as u8)
    }

    /// Its first address, as a number.
    #[inline]
    pub fn first(self) -> u128 {
        self.first
    }

    /// Bits that its addresses have in common, 0 to 128.
    #[inline]
    pub fn length(self) -> u8 {
        self.length
    }

    /// The one of this length that holds it; `None` if that is smaller.
    #[inline]
    pub fn widened(self, length: u8) -> Option<Block> {
        (length <= self.length).then(|| self.cut(length))
    }

    #[inline]
    fn cut(self, length: u8) -> Block {
        let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
        Block { first: self.first & mask, length }
    }
}

impl AddressRange {
    /// The fewest networks that make it up, in order: first addresses and prefix lengths in bits. At most two for each bit of
    /// an address; none if the range is of two versions or ends before it begins.
    pub fn networks(&self) -> Vec<(IpAddr, u8)> {
        let (mut start, end, bits) = match (self.start, self.end) {
            (IpAddr::V4(start), IpAddr::V4(end)) => (start.to_bits().into(), end.to_bits().into(), 32),
            (IpAddr::V6(start), IpAddr::V6(end)) => (start.to_bits(), end.to_bits(), 128),
            _ => return Vec::new(),
        };
        let address = |number: u128| match self.start {
            IpAddr::V4(_) => IpAddr::V4((number as u32).into()),
            IpAddr::V6(_) => IpAddr::V6(number.into()),
        };
        let mut networks = Vec::new();
        while start <= end {
            // The largest that begins here and does not end beyond.
            let mut size = start.trailing_zeros().min(bits);
            while size > 0 && last(start, size) > end {
                size -= 1;
            }
            networks.push((address(start), (bits - size) as u8));
            match last(start, size).checked_add(1) {
                Some(next) => start = next,
                None => break,
            }
        }
        networks
    }
}

/// The last address of a network of 2^size.
fn last(start: u128, size: u32) -> u128 {
    start | 1_u128.checked_shl(size).map_or(u128::MAX, |above| above - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: &str, end: &str) -> AddressRange {
        AddressRange { start: start.parse().unwrap(), end: end.parse().unwrap() }
    }

    fn networks(start: &str, end: &str) -> Vec<String> {
        range(start, end).networks().into_iter().map(|(a, length)| format!("{a}/{length}")).collect()
    }

    #[test]
    fn a_range_is_cut_into_the_fewest_networks() {
        assert_eq!(networks("0.0.0.0", "255.255.255.255"), ["0.0.0.0/0"]);
        assert_eq!(networks("10.2.0.0", "10.2.0.255"), ["10.2.0.0/24"]);
        let some = ["10.2.0.1/32", "10.2.0.2/31", "10.2.0.4/31", "10.2.0.6/32"];
        assert_eq!(networks("10.2.0.1", "10.2.0.6"), some);
        assert_eq!(networks("10.0.0.3", "10.0.0.9"), ["10.0.0.3/32", "10.0.0.4/30", "10.0.0.8/31"]);
        assert_eq!(networks("255.255.255.254", "255.255.255.255"), ["255.255.255.254/31"]);
        assert_eq!(networks("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), ["::/0"]);
        assert_eq!(networks("2001:db8::", "2001:db8::ffff"), ["2001:db8::/112"]);
        assert!(networks("10.0.0.9", "10.0.0.3").is_empty());
        assert!(networks("10.0.0.1", "2001:db8::").is_empty(), "of two versions");
    }

    #[test]
    fn a_block_is_the_smallest_around_a_range_and_lies_in_those_that_are_wider() {
        let around = |start, end| Block::around(&range(start, end));
        assert_eq!(around("10.0.0.7", "10.0.0.7"), Block::of("10.0.0.7".parse().unwrap()));
        let block = around("10.0.0.3", "10.0.0.9");
        assert_eq!((block.first(), block.length()), (0xffff_0a00_0000, 124));
        assert_eq!(block.widened(124), Some(block));
        assert_eq!(block.widened(120), Some(around("10.0.0.0", "10.0.0.255")));
        assert_eq!(block.widened(125), None);
        let all = around("::", "ffff::");
        assert_eq!((all.first(), all.length(), block.widened(0)), (0, 0, Some(all)));
    }
}
