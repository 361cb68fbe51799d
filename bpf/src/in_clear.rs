//! Between which addresses packets may come in clear from outside: those of BYPASS policies, as the program knows them.
//! What it does not know it drops at once; the rest the dataplane holds against its policies.

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{MapData, MapError};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Addresses from the first to the last.
pub(crate) type Range = (IpAddr, IpAddr);

/// The end of a packet, then an address; IPv4 stands where RFC 4291 section 2.5.5.2 maps it.
type Data = [u8; 20];

/// Bits in common, of `Data`.
type Prefix = (u32, Data);

/// The ends of packets from outside, as in steer.bpf.c.
#[derive(Clone, Copy)]
enum End {
    Local = 0,
    Remote = 1,
}

/// The map of such addresses.
pub struct InClear {
    map: LpmTrie<MapData, Data, u8>,
    known: BTreeSet<Prefix>,
}

impl InClear {
    pub(crate) fn new(map: LpmTrie<MapData, Data, u8>) -> InClear {
        InClear { map, known: BTreeSet::new() }
    }

    /// Replaces what is known: the ranges behind us, and those of the others. In between both are.
    pub fn replace(
        &mut self,
        local: impl Iterator<Item = Range>,
        remote: impl Iterator<Item = Range>,
    ) -> Result<(), MapError> {
        let local = local.flat_map(|range| prefixes(End::Local, range));
        let wanted: BTreeSet<Prefix> =
            local.chain(remote.flat_map(|range| prefixes(End::Remote, range))).collect();
        for (length, data) in wanted.difference(&self.known).copied().collect::<Vec<_>>() {
            self.map.insert(&Key::new(length, data), 1, 0)?;
            self.known.insert((length, data));
        }
        for (length, data) in self.known.difference(&wanted).copied().collect::<Vec<_>>() {
            self.map.remove(&Key::new(length, data))?;
            self.known.remove(&(length, data));
        }
        Ok(())
    }
}

/// The aligned blocks that make up a range; none if its ends are of two versions.
fn prefixes(end: End, (first, last): Range) -> Vec<Prefix> {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    };
    let mut all = Vec::new();
    if first.is_ipv4() != last.is_ipv4() {
        return all;
    }
    let (mut at, last) = (bits(first), bits(last));
    while at <= last {
        // The largest block that begins here and ends in the range.
        let mut free = at.trailing_zeros();
        while free > 0 && (free == 128 || last - at < (1 << free) - 1) {
            free -= 1;
        }
        let mut data = [0; 20];
        data[..4].copy_from_slice(&(end as u32).to_be_bytes());
        data[4..].copy_from_slice(&at.to_be_bytes());
        all.push((32 + 128 - free, data));
        match at.checked_add(1 << free) {
            Some(next) => at = next,
            None => break,
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(first: &str, last: &str) -> Vec<(u32, IpAddr)> {
        let all = prefixes(End::Remote, (first.parse().unwrap(), last.parse().unwrap()));
        let address = |data: Data| IpAddr::from(<[u8; 16]>::try_from(&data[4..]).unwrap()).to_canonical();
        all.into_iter().map(|(length, data)| (length - 32, address(data))).collect()
    }

    #[test]
    fn a_range_becomes_its_blocks() {
        let four = |length: u32, address: [u8; 4]| (96 + length, IpAddr::from(address));
        assert_eq!(blocks("10.2.0.0", "10.2.0.255"), [four(24, [10, 2, 0, 0])]);
        assert_eq!(blocks("0.0.0.0", "255.255.255.255"), [four(0, [0; 4])]);
        let some = [four(32, [10, 0, 0, 3]), four(30, [10, 0, 0, 4]), four(31, [10, 0, 0, 8])];
        assert_eq!(blocks("10.0.0.3", "10.0.0.9"), some);
        assert_eq!(blocks("10.0.0.9", "10.0.0.3"), []);
        assert_eq!(blocks("2001:db8::", "2001:db8::ffff"), [(112, "2001:db8::".parse().unwrap())]);
        assert_eq!(blocks("10.0.0.1", "2001:db8::"), [], "of two versions");
    }
}
