//! What was seen of one crash, and what it comes to.

use crate::costs::Costs;
use crate::scenario::{Pacing, Scenario};
use serde::{Deserialize, Serialize};
use spindle_abi::Time;

/// What the world saw after the crash.
#[derive(Clone, PartialEq, Debug)]
pub struct Observed {
    /// When the concentrator was ready again.
    pub ready: Option<Time>,
    /// When each peer was back: the SA on which it sends stands on both sides.
    pub back: Vec<Option<Time>>,
    /// When the concentrator's IKE SAs were authenticated, in order.
    pub handshakes: Vec<Time>,
    /// Of these, by a ticket.
    pub resumed: u64,
    /// Datagrams and events that found a queue full.
    pub dropped: u64,
    /// Octets on the heap that the concentrator's control plane holds in the end.
    pub memory: i64,
    /// Nanoseconds between two packets of each peer.
    pub periods: Vec<u64>,
    /// What calls of the control plane really took with so many peers, where nothing waited for it. Not used here.
    pub seen: Costs,
}

/// Seconds from ready until this part of the peers was back.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Back {
    /// Half of them.
    pub p50: f64,
    /// 99 of 100.
    pub p99: f64,
    /// All.
    pub p100: f64,
}

/// One crash.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Row {
    /// How many.
    pub peers: u32,
    /// As on the command line.
    pub method: String,
    /// `None` where it changes nothing.
    pub pacing: Option<Pacing>,
    /// Were there tickets? `None` where none could be used.
    pub resumption: Option<bool>,
    /// Of every peer.
    pub rtt_ms: f64,
    /// Of a pace, if there is one.
    pub handshakes_total: u32,
    /// Did peers share gateways, and take no further part once they were back?
    #[serde(default)]
    pub frugal: bool,
    /// When they were back.
    pub back_s: Back,
    /// IKE SAs authenticated in the busiest second.
    pub peak_handshakes_per_s: u32,
    /// IKE SAs authenticated until all were back.
    pub handshakes: u64,
    /// Of these, by a ticket.
    pub resumed: u64,
    /// Datagrams and events that found a queue full.
    pub datagrams_dropped: u64,
    /// Octets on the heap that the concentrator's control plane holds when all are back, per peer.
    pub memory_bytes_per_peer: u64,
    /// Microseconds that each kind of work really took in this run, median: beside the costs, it shows whether work takes
    /// longer with more peers. No other figure depends on it.
    pub seen_us: Costs,
}

impl Observed {
    pub(crate) fn new(peers: usize) -> Observed {
        Observed {
            ready: None,
            back: vec![None; peers],
            handshakes: Vec::new(),
            resumed: 0,
            dropped: 0,
            memory: 0,
            periods: vec![0; peers],
            seen: Costs::default(),
        }
    }

    /// IKE SAs authenticated in the busiest second, wherever it begins.
    pub fn peak(&self) -> u32 {
        let (mut first, mut most) = (0, 0);
        for (last, at) in self.handshakes.iter().enumerate() {
            while at.since(self.handshakes[first]).as_secs() >= 1 {
                first += 1;
            }
            most = most.max(last + 1 - first);
        }
        most as u32
    }

    /// What it comes to; `None` if not all came back.
    pub fn row(&self, scenario: &Scenario) -> Option<Row> {
        let ready = self.ready?;
        let back: Option<Vec<Time>> = self.back.iter().copied().collect();
        let mut back = back?;
        back.sort_unstable();
        let part = |percent: usize| {
            let place = (back.len() * percent).div_ceil(100).max(1) - 1;
            back.get(place).map(|at| (at.since(ready).as_secs_f64() * 1000.0).round() / 1000.0)
        };
        let method = scenario.method;
        Some(Row {
            peers: scenario.peers,
            method: method.name().into(),
            pacing: method.is_paced().then_some(scenario.pacing),
            resumption: method.may_resume().then_some(scenario.resumption),
            rtt_ms: scenario.rtt.as_secs_f64() * 1000.0,
            handshakes_total: scenario.handshakes_total,
            frugal: scenario.frugal,
            back_s: Back { p50: part(50)?, p99: part(99)?, p100: part(100)? },
            peak_handshakes_per_s: self.peak(),
            handshakes: self.handshakes.len() as u64,
            resumed: self.resumed,
            datagrams_dropped: self.dropped,
            memory_bytes_per_peer: u64::try_from(self.memory).unwrap_or(0) / u64::from(scenario.peers.max(1)),
            seen_us: self.seen.clone(),
        })
    }
}
