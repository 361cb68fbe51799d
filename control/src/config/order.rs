//! Which policy stands behind another one that takes all of its packets.
//!
//! A range of addresses lies in a smallest *block*, an aligned one of 2^n. What holds a range lies in a block that holds its
//! block. So of all policies before one, those alone are compared whose blocks hold its own: with few lengths of
//! blocks, as configurations have them, that is a few lookups each, whatever their number.

use spindle_abi::{AddressRange, Selector, SelectorSet};
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

/// An aligned block of addresses: the bits that they have in common, and how many these are, of 128. IPv4 stands where RFC 4291
/// section 2.5.5.2 maps it.
type Block = (u128, u32);

/// The policies that were there so far, in their order.
#[derive(Default)]
pub(super) struct Earlier<'a> {
    all: Vec<(String, &'a SelectorSet)>,
    /// By blocks of `local_ts` and `remote_ts`.
    by_blocks: HashMap<[Block; 2], Vec<usize>>,
    lengths: BTreeSet<[u32; 2]>,
}

impl<'a> Earlier<'a> {
    /// The first policy that matches all packets of these selectors.
    pub(super) fn holds(&self, selectors: &SelectorSet) -> Option<&str> {
        let (local, remote) = (block(selectors.local.first()?), block(selectors.remote.first()?));
        let candidates = self.lengths.iter().filter_map(|&[of_local, of_remote]| {
            self.by_blocks.get(&[widen(local, of_local)?, widen(remote, of_remote)?])
        });
        let takes = |at: &&usize| {
            let (_, other) = &self.all[**at];
            covers(&other.local, &selectors.local) && covers(&other.remote, &selectors.remote)
        };
        let first = candidates.filter_map(|places| places.iter().find(takes)).min()?;
        Some(&self.all[*first].0)
    }

    /// The next policy.
    pub(super) fn push(&mut self, name: String, selectors: &'a SelectorSet) {
        for local in selectors.local.iter().map(block) {
            for remote in selectors.remote.iter().map(block) {
                self.lengths.insert([local.1, remote.1]);
                self.by_blocks.entry([local, remote]).or_default().push(self.all.len());
            }
        }
        self.all.push((name, selectors));
    }
}

/// Lies each of `these` within one of `those`?
fn covers(those: &[Selector], these: &[Selector]) -> bool {
    these.iter().map(|selector| selector.addresses).all(|this| {
        those.iter().any(|that| that.addresses.start <= this.start && this.end <= that.addresses.end)
    })
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn block(selector: &Selector) -> Block {
    let AddressRange { start, end } = selector.addresses;
    let length = (bits(start) ^ bits(end)).leading_zeros();
    (common(bits(start), length), length)
}

/// The block of this length that holds another; `None` if that is shorter.
fn widen((address, length): Block, to: u32) -> Option<Block> {
    (to <= length).then(|| (common(address, to), to))
}

/// The first bits of an address.
fn common(address: u128, length: u32) -> u128 {
    address & u128::MAX.checked_shl(128 - length).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(local: &[[u32; 2]], remote: &[[u32; 2]]) -> SelectorSet {
        let selectors = |ranges: &[[u32; 2]]| {
            let range = |[start, end]: &[u32; 2]| {
                Selector::addresses(IpAddr::V4((*start).into()), IpAddr::V4((*end).into()))
            };
            ranges.iter().map(range).collect()
        };
        SelectorSet { local: selectors(local), remote: selectors(remote) }
    }

    /// All pairs compared, as the definition says.
    fn plainly(sets: &[SelectorSet], at: usize) -> Option<usize> {
        let takes = |other: &&SelectorSet| {
            covers(&other.local, &sets[at].local) && covers(&other.remote, &sets[at].remote)
        };
        sets[..at].iter().position(|other| takes(&other))
    }

    #[test]
    fn what_is_found_is_what_all_comparisons_find() {
        let mut state = 7_u32;
        let mut random = move |below: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) % below
        };
        let mut found = 0;
        for _ in 0..200 {
            let mut ranges = || {
                let count = 1 + random(2);
                let mut range = || {
                    let start = random(48);
                    let most = 1 + random(24);
                    [start, start + random(most)]
                };
                (0..count).map(|_| range()).collect::<Vec<_>>()
            };
            let sets: Vec<_> = (0..24).map(|_| set(&ranges(), &ranges())).collect();
            let mut earlier = Earlier::default();
            for (at, selectors) in sets.iter().enumerate() {
                let expected = plainly(&sets, at).map(|at| at.to_string());
                assert_eq!(earlier.holds(selectors).map(str::to_owned), expected);
                found += usize::from(expected.is_some());
                earlier.push(at.to_string(), selectors);
            }
        }
        assert!(found > 100, "{found}");
    }

    #[test]
    fn everything_holds_everything() {
        let (all, host) = (set(&[[0, u32::MAX]], &[[0, u32::MAX]]), set(&[[7, 7]], &[[9, 9]]));
        let mut earlier = Earlier::default();
        assert_eq!(earlier.holds(&host), None);
        earlier.push("all".into(), &all);
        assert_eq!((earlier.holds(&host), earlier.holds(&all)), (Some("all"), Some("all")));
    }

    /// Compared are those alone that might hold it, or ten thousand policies would take minutes.
    #[test]
    fn of_many_hosts_each_is_compared_with_none() {
        let mut earlier = Earlier::default();
        let sets: Vec<_> = (0..10_000).map(|n| set(&[[n, n]], &[[n + 20_000, n + 20_000]])).collect();
        for selectors in &sets {
            assert_eq!(earlier.holds(selectors), None);
            earlier.push(String::new(), selectors);
        }
        assert_eq!(earlier.lengths.len(), 1);
        assert!(earlier.by_blocks.values().all(|places| places.len() == 1));
    }
}
