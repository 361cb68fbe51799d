//! Between which addresses packets may come in clear from outside: those of BYPASS policies, as the program knows them.
//! What it does not know it drops at once; the rest the dataplane holds against its policies.

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{MapData, MapError};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// A network: its first address and the prefix length in bits.
type Network = (IpAddr, u8);

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

    /// Replaces what is known: the networks behind us, and those of the others. In between both are.
    pub fn replace(
        &mut self,
        local: impl Iterator<Item = Network>,
        remote: impl Iterator<Item = Network>,
    ) -> Result<(), MapError> {
        let local = local.map(|network| prefix(End::Local, network));
        let wanted: BTreeSet<Prefix> =
            local.chain(remote.map(|network| prefix(End::Remote, network))).collect();
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

fn prefix(end: End, (address, length): Network) -> Prefix {
    let (octets, length) = match address {
        IpAddr::V4(address) => (address.to_ipv6_mapped().octets(), 96 + length),
        IpAddr::V6(address) => (address.octets(), length),
    };
    let mut data = [0; 20];
    data[..4].copy_from_slice(&(end as u32).to_be_bytes());
    data[4..].copy_from_slice(&octets);
    (32 + u32::from(length), data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_and_the_address_are_one_prefix() {
        let (length, data) = prefix(End::Remote, ([10, 2, 0, 0].into(), 24));
        assert_eq!((length, &data[..4]), (32 + 96 + 24, &[0, 0, 0, 1][..]));
        assert_eq!(data[4..], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 2, 0, 0]);
        let (length, data) = prefix(End::Local, ("2001:db8::".parse().unwrap(), 112));
        assert_eq!((length, &data[..8]), (32 + 112, &[0, 0, 0, 0, 0x20, 1, 0x0d, 0xb8][..]));
    }
}
