//! The look-up of outbound policies alone, in bursts as the engine does it, for whoever measures it.

use crate::BURST;
use crate::policies::{Policies, Sought};
use crate::selectors::Flow;
use spindle_abi::{PolicyAction, Selector, SelectorSet};
use std::net::{IpAddr, Ipv4Addr};

/// Policies from one network to one host each.
pub struct Lookups {
    policies: Policies,
    count: u32,
    seed: u64,
}

impl Lookups {
    /// So many policies, from 1 to 2^24.
    pub fn new(count: u32) -> Lookups {
        let mut policies = Policies::new(count);
        let local = vec![Selector::addresses([10, 0, 0, 0].into(), [10, 255, 255, 255].into())];
        for number in 0..count {
            let remote = vec![Selector::addresses(host(number), host(number))];
            let set = SelectorSet { local: local.clone(), remote };
            policies.set(number, number, PolicyAction::Protect, set, 0).expect("there is room");
        }
        Lookups { policies, count, seed: 0x9e37_79b9_7f4a_7c15 }
    }

    /// Looks up the policies of a burst of packets to hosts at random: so many were the right ones. Without `whole`, all is
    /// done but the look-up.
    pub fn burst(&mut self, whole: bool) -> usize {
        let mut numbers = [0; BURST];
        let flows: [Flow; BURST] = std::array::from_fn(|at| {
            self.seed = self.seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            numbers[at] = (((self.seed >> 32) * u64::from(self.count)) >> 32) as u32;
            let source = Ipv4Addr::new(10, 0, 0, 1).into();
            Flow { source, destination: host(numbers[at]), protocol: 17, ports: Some((1, 2)), hidden: false }
        });
        if !whole {
            return std::hint::black_box(&flows).len();
        }
        let mut sought = [Sought::Anywhere; BURST];
        for (flow, sought) in flows.iter().zip(&mut sought) {
            *sought = self.policies.seek(flow);
        }
        for (flow, sought) in flows.iter().zip(&mut sought) {
            *sought = self.policies.approach(flow, *sought);
        }
        let is_right = |((flow, sought), number): ((&Flow, Sought), u32)| {
            self.policies.reach(flow, sought).is_ok_and(|place| self.policies.at(place).id == number)
        };
        flows.iter().zip(sought).zip(numbers).filter(|one| is_right(*one)).count()
    }
}

fn host(number: u32) -> IpAddr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(11, 0, 0, 0)) + number).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_packet_s_own_policy_is_found() {
        for count in [1, 4, 5, 1000] {
            let mut lookups = Lookups::new(count);
            assert!((0..20).all(|_| lookups.burst(true) == BURST), "{count}");
        }
    }
}
