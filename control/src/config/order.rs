//! Which policy stands behind others that take all of its packets.
//!
//! What a policy matches are *pairs*: a selector of `local_ts` and one of `remote_ts` that a packet can have at its ends.
//! Nothing comes to a policy each of whose pairs lies within one of an earlier policy.
//!
//! A range of addresses lies in a smallest *block*, an aligned one of 2^n. What holds a range lies in a block that holds its
//! block. So of all pairs before one, those alone are compared whose blocks hold its own: with few lengths of
//! blocks, as configurations have them, that is a few lookups each, whatever their number.

use spindle_abi::{Block, Selector, SelectorSet};
use std::collections::{BTreeSet, HashMap};

type Pair = (Selector, Selector);

/// The policies that were there so far, in their order.
#[derive(Default)]
pub(super) struct Earlier {
    names: Vec<String>,
    /// By blocks of both selectors; each with its policy's place.
    by_blocks: HashMap<[Block; 2], Vec<(usize, Pair)>>,
    lengths: BTreeSet<[u8; 2]>,
}

impl Earlier {
    /// The policies that together match all packets of these selectors, in their order; `None` if some packet is left.
    pub(super) fn holding(&self, selectors: &SelectorSet) -> Option<Vec<&str>> {
        let first: Option<BTreeSet<usize>> = selectors.pairs().map(|pair| self.first(&pair)).collect();
        Some(first?.into_iter().map(|place| self.names[place].as_str()).collect())
    }

    /// The first policy that holds a pair.
    fn first(&self, (local, remote): &Pair) -> Option<usize> {
        let candidates = self.lengths.iter().filter_map(|&[of_local, of_remote]| {
            self.by_blocks.get(&[block(local).widened(of_local)?, block(remote).widened(of_remote)?])
        });
        let holds = |(_, (l, r)): &&(usize, Pair)| l.holds(local) && r.holds(remote);
        candidates.filter_map(|pairs| pairs.iter().find(holds)).map(|(place, _)| *place).min()
    }

    /// The next policy.
    pub(super) fn push(&mut self, name: String, selectors: &SelectorSet) {
        for (local, remote) in selectors.pairs() {
            let blocks = [block(&local), block(&remote)];
            self.lengths.insert(blocks.map(Block::length));
            self.by_blocks.entry(blocks).or_default().push((self.names.len(), (local, remote)));
        }
        self.names.push(name);
    }
}

fn block(selector: &Selector) -> Block {
    Block::around(&selector.addresses)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    const TCP: u8 = 6;
    const UDP: u8 = 17;

    fn range([start, end]: [u32; 2]) -> Selector {
        Selector::addresses(IpAddr::V4(start.into()), IpAddr::V4(end.into()))
    }

    fn ports(addresses: [u32; 2], protocol: u8, [start_port, end_port]: [u16; 2]) -> Selector {
        Selector { protocol, start_port, end_port, ..range(addresses) }
    }

    fn set(local: &[Selector], remote: &[Selector]) -> SelectorSet {
        SelectorSet { local: local.to_vec(), remote: remote.to_vec() }
    }

    /// All pairs compared, as the definition says.
    fn plainly(sets: &[SelectorSet], at: usize) -> Option<Vec<String>> {
        let first = |(local, remote): Pair| {
            sets[..at].iter().position(|set| set.pairs().any(|(l, r)| l.holds(&local) && r.holds(&remote)))
        };
        let first: Option<BTreeSet<usize>> = sets[at].pairs().map(first).collect();
        Some(first?.into_iter().map(|place| place.to_string()).collect())
    }

    #[test]
    fn what_is_found_is_what_all_comparisons_find() {
        let mut state = 7_u32;
        let mut random = move |below: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) % below
        };
        let mut found = [0, 0];
        for _ in 0..500 {
            let mut side = || {
                let count = 1 + random(2);
                let mut selector = || {
                    let start = random(48);
                    let most = 1 + random(24);
                    let range = [start, start + random(most)];
                    let first = random(3) as u16;
                    match random(6) {
                        0 => ports(range, TCP, [0, 65535]),
                        1 => ports(range, UDP, [first, first + random(3) as u16]),
                        2 => ports(range, TCP, [65535, 0]),
                        _ => self::range(range),
                    }
                };
                (0..count).map(|_| selector()).collect::<Vec<_>>()
            };
            let sets: Vec<_> = (0..24).map(|_| set(&side(), &side())).collect();
            let mut earlier = Earlier::default();
            for (at, selectors) in sets.iter().enumerate() {
                let expected = plainly(&sets, at);
                let holding = earlier.holding(selectors);
                assert_eq!(holding, expected.as_ref().map(|all| all.iter().map(String::as_str).collect()));
                match expected.map_or(0, |all| all.len()) {
                    0 => {}
                    1 => found[0] += 1,
                    _ => found[1] += 1,
                }
                earlier.push(at.to_string(), selectors);
            }
        }
        assert!(found[0] > 100 && found[1] > 10, "{found:?}");
    }

    #[test]
    fn everything_holds_everything() {
        let all = [0, u32::MAX];
        let (all, host) = (set(&[range(all)], &[range(all)]), set(&[range([7, 7])], &[range([9, 9])]));
        let mut earlier = Earlier::default();
        assert_eq!(earlier.holding(&host), None);
        earlier.push("all".into(), &all);
        assert_eq!((earlier.holding(&host), earlier.holding(&all)), (Some(vec!["all"]), Some(vec!["all"])));
    }

    /// RFC 4301 section 4.4.1.1: protocol and ports are selectors as addresses are.
    #[test]
    fn a_policy_for_some_ports_leaves_the_others() {
        let (here, there) = ([1, 9], range([20, 29]));
        let https = set(&[ports(here, TCP, [443, 443])], &[there]);
        let tcp = set(&[range(here)], &[ports([20, 29], TCP, [0, 65535])]);
        let web = set(&[ports(here, TCP, [80, 80]), ports(here, TCP, [443, 443])], &[there]);
        let mut earlier = Earlier::default();
        earlier.push("https".into(), &https);
        assert_eq!((earlier.holding(&tcp), earlier.holding(&web)), (None, None));
        assert_eq!(earlier.holding(&set(&[range(here)], &[there])), None);
        assert_eq!(earlier.holding(&https), Some(vec!["https"]));
        // The other part of it stands elsewhere.
        earlier.push("http".into(), &set(&[ports(here, TCP, [80, 80])], &[there]));
        assert_eq!(earlier.holding(&web), Some(vec!["https", "http"]));
        // TCP is named on one side here, on the other there.
        earlier.push("tcp".into(), &tcp);
        assert_eq!(earlier.holding(&set(&[ports(here, TCP, [22, 22])], &[there])), Some(vec!["tcp"]));
        assert_eq!(earlier.holding(&set(&[ports(here, UDP, [22, 22])], &[there])), None);
    }

    /// Compared are those alone that might hold it, or ten thousand policies would take minutes.
    #[test]
    fn of_many_hosts_each_is_compared_with_none() {
        let mut earlier = Earlier::default();
        let host = |n: u32| set(&[range([n, n])], &[range([n + 20_000, n + 20_000])]);
        for n in 0..10_000 {
            assert_eq!(earlier.holding(&host(n)), None);
            earlier.push(String::new(), &host(n));
        }
        assert_eq!(earlier.lengths.len(), 1);
        assert!(earlier.by_blocks.values().all(|pairs| pairs.len() == 1));
    }
}
