//! How to reach each destination: a cache of the kernel's routes and neighbours, filled by the process.

use crate::{NextHop, Refused};
use spindle_aead::prefetch;
use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::BuildHasherDefault;
use std::net::IpAddr;

pub(crate) struct NextHops {
    hops: HashMap<IpAddr, NextHop, BuildHasherDefault<DefaultHasher>>,
    limit: usize,
    /// Those that were found lately, each at the one place that its destination has. Whoever sends to destinations that
    /// share a place costs look-ups above, no more. Twice as many places as there are hops, a power of two.
    lately: Vec<Option<(IpAddr, NextHop)>>,
}

impl NextHops {
    pub(crate) fn new(limit: u32) -> NextHops {
        NextHops { hops: HashMap::default(), limit: limit as usize, lately: vec![None; 2] }
    }

    pub(crate) fn set(&mut self, destination: IpAddr, hop: Option<NextHop>) -> Result<(), Refused> {
        match hop {
            None => drop(self.hops.remove(&destination)),
            Some(_) if self.hops.len() >= self.limit && !self.hops.contains_key(&destination) => {
                return Err(Refused::Full("next hops"));
            }
            Some(hop) => drop(self.hops.insert(destination, hop)),
        }
        if self.lately.len() < 2 * self.hops.len() {
            self.lately = vec![None; (2 * self.hops.len()).next_power_of_two()];
        } else {
            let place = self.place(destination);
            self.lately[place] = None;
        }
        Ok(())
    }

    pub(crate) fn clear(&mut self) {
        self.hops.clear();
        self.lately.fill(None);
    }

    #[inline]
    fn place(&self, destination: IpAddr) -> usize {
        let bits = match destination {
            IpAddr::V4(address) => address.to_bits().into(),
            IpAddr::V6(address) => {
                let bits = address.to_bits();
                (bits >> 64) as u64 ^ (bits as u64).rotate_left(32)
            }
        };
        (bits.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize & (self.lately.len() - 1)
    }

    /// Fetches what [`NextHops::find`] looks at first.
    #[inline]
    pub(crate) fn prefetch(&self, destination: IpAddr) {
        prefetch(&self.lately[self.place(destination)]);
    }

    #[inline]
    pub(crate) fn find(&mut self, destination: IpAddr) -> Option<NextHop> {
        let place = self.place(destination);
        match self.lately[place] {
            Some((last, hop)) if last == destination => Some(hop),
            _ => self.look_up(destination, place),
        }
    }

    #[inline(never)]
    fn look_up(&mut self, destination: IpAddr, place: usize) -> Option<NextHop> {
        let hop = *self.hops.get(&destination)?;
        self.lately[place] = Some((destination, hop));
        Some(hop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PortId;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Set(u8, Option<u8>),
        Find(u8),
        Clear,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0u8..40, proptest::option::weighted(0.8, any::<u8>())).prop_map(|(to, hop)| Step::Set(to, hop)),
            8 => (0u8..40).prop_map(Step::Find),
            1 => Just(Step::Clear),
        ]
    }

    proptest! {
        /// Nothing that was found lately outlives a change of it.
        #[test]
        fn what_is_found_is_what_was_set_last(steps in proptest::collection::vec(step(), 1..200)) {
            let destination = |n: u8| if n.is_multiple_of(2) { IpAddr::from([10, 0, 0, n]) } else { IpAddr::from([u16::from(n); 8]) };
            let hop = |last| NextHop { port: PortId::Inside, source_mac: [2; 6], destination_mac: [last; 6], mtu: 1500 };
            let (mut hops, mut plain) = (NextHops::new(64), HashMap::new());
            for step in steps {
                match step {
                    Step::Set(to, None) => {
                        plain.remove(&to);
                        hops.set(destination(to), None).unwrap();
                    }
                    Step::Set(to, Some(last)) => {
                        plain.insert(to, hop(last));
                        hops.set(destination(to), Some(hop(last))).unwrap();
                    }
                    Step::Find(to) => prop_assert_eq!(hops.find(destination(to)), plain.get(&to).copied()),
                    Step::Clear => {
                        plain.clear();
                        hops.clear();
                    }
                }
            }
        }
    }
}
