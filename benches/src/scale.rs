//! What large tables cost: a policy's look-up among many, and each command while many SAs are installed.

use crate::tunnel;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use spindle_abi::Time;
use spindle_aead::Provider;
use spindle_engine::BURST;
use spindle_engine::lookups::Lookups;
use std::time::Instant;

/// Nanoseconds to find the policy of a packet, in bursts of 32 to hosts at random, among so many policies for one host
/// each: the median of as many rounds of 4,096 packets, less what making the packets takes.
pub fn nanoseconds_per_lookup(policies: u32, rounds: u32) -> f64 {
    const BURSTS: usize = 128;
    let mut lookups = Lookups::new(policies);
    let mut median = |whole: bool| {
        let mut times: Vec<f64> = (0..rounds.max(1))
            .map(|_| {
                let started = Instant::now();
                let found: usize = (0..BURSTS).map(|_| lookups.burst(whole)).sum();
                let spent = started.elapsed();
                assert_eq!(found, BURSTS * BURST, "every packet finds its own policy");
                spent.as_nanos() as f64 / (BURSTS * BURST) as f64
            })
            .collect();
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    // The caches are warm with what is measured.
    median(true);
    median(true) - median(false)
}

/// Nanoseconds that the processor has spent on this thread: what other processes take of it does not count.
fn processor_time() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// What one kind of command cost, in nanoseconds of the processor's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cost {
    /// Which.
    pub command: &'static str,
    /// How many.
    pub count: usize,
    /// Half of them cost less.
    pub median: u32,
    /// All but one in a thousand cost less.
    pub p999: u32,
    /// The most that one of them cost. Interrupts that came meanwhile are in it.
    pub maximum: u32,
}

/// Installs so many SAs, half of them inbound, each pair with a policy of its own: what each kind of command cost.
pub fn install(provider: Provider, sas: u32) -> Vec<Cost> {
    let mut engine = tunnel::empty_engine(provider, sas.max(2));
    let mut times: [Vec<u32>; 3] = std::array::from_fn(|_| Vec::with_capacity(sas as usize / 2));
    // What reading the clock takes.
    let clock =
        (0..1001).map(|_| processor_time()).map(|started| processor_time() - started).min().unwrap_or(0);
    for number in 0..sas / 2 {
        for (command, times) in tunnel::commands(number).into_iter().zip(&mut times) {
            let started = processor_time();
            engine.apply(Time(1), command).expect("there is room");
            let spent = (processor_time() - started).saturating_sub(clock);
            times.push(u32::try_from(spent).unwrap_or(u32::MAX));
        }
    }
    let names = ["set-policy", "install-inbound", "install-outbound"];
    let costs = names.into_iter().zip(times).filter(|(_, times)| !times.is_empty());
    let costs = costs.map(|(command, mut times)| {
        times.sort_unstable();
        let count = times.len();
        let (median, p999) = (times[count / 2], times[count - 1 - count / 1000]);
        Cost { command, count, median, p999, maximum: times[count - 1] }
    });
    costs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::Tunnel;

    #[test]
    fn what_is_measured_is_installed_and_found() {
        let costs = install(Provider::Portable, 100);
        assert_eq!(costs.iter().map(|cost| cost.count).collect::<Vec<_>>(), [50, 50, 50]);
        assert!(costs.iter().all(|cost| 0 < cost.median && cost.median <= cost.maximum));
        nanoseconds_per_lookup(1000, 1);
    }

    /// With more SAs than addresses in 10.2.0.0/16.
    #[test]
    fn a_tunnel_of_many_is_installed_whole() {
        let mut tunnel = Tunnel::new(Provider::Portable, 70_000, 64);
        for _ in 0..20 {
            tunnel.refill();
            tunnel.encapsulate();
        }
        assert_eq!(tunnel.passed().0, 20 * BURST as u64);
    }
}
