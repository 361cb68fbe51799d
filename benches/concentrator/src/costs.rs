//! What each kind of the concentrator's work costs on this machine: the median of many repetitions in a small world of
//! the same kind, where every call of the real control plane is timed.

use crate::scenario::{Method, Pacing, Scenario};
pub use crate::work::Kind;
use crate::world;
use anyhow::Context;
use redb::backends::FileBackend;
use serde::{Deserialize, Serialize};
use spindle_recovery::api::UsedTicket;
use spindle_recovery::store::Store;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Peers of the small worlds.
const PEERS: u32 = 256;
/// `handshakes_total` at which few calls of the control plane initiate twice.
const ONE_BY_ONE: u32 = 50;
/// Calls of a kind that are timed, the first ones.
const SAMPLES: usize = 100_000;
/// Commits that are timed.
const COMMITS: u64 = 101;

/// Microseconds of each kind of work.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Costs(pub BTreeMap<Kind, f64>);

impl Costs {
    /// Of so many pieces of work. What was never seen costs as any other message.
    pub(crate) fn of(&self, work: &[(Kind, u32)]) -> Duration {
        let one = |kind| self.0.get(&kind).or(self.0.get(&Kind::Other)).copied().unwrap_or(0.0);
        let us: f64 = work.iter().map(|(kind, count)| one(*kind) * f64::from(*count)).sum();
        Duration::from_nanos((us * 1000.0) as u64)
    }

    /// Measured now; in a fraction of a minute.
    pub fn measure(seed: u64) -> anyhow::Result<Costs> {
        let mut samples = Samples::default();
        // All at once by each method; and initiations one by one.
        let unpaced = Method::ALL.map(|method| (method, Pacing::Off));
        let handshakes_total = ONE_BY_ONE;
        for (method, pacing) in unpaced.into_iter().chain([(Method::InitialContact, Pacing::Fixed)]) {
            for resumption in [false, true] {
                let rtt = Duration::from_millis(20);
                let frugal = false;
                let scenario = Scenario {
                    peers: PEERS,
                    method,
                    pacing,
                    handshakes_total,
                    resumption,
                    rtt,
                    seed,
                    frugal,
                };
                samples.add(world::time(&scenario).with_context(|| format!("measuring {}", method.name()))?);
            }
        }
        let mut costs = samples.medians();
        costs.0.insert(Kind::Persist, persist().context("measuring how long a commit takes")?);
        Ok(costs)
    }
}

/// Microseconds that a used ticket takes to be durable, in the directory for temporary files.
fn persist() -> anyhow::Result<f64> {
    let file = tempfile::tempfile()?;
    let mut store = Store::open(FileBackend::new(file)?)?;
    let mut took = Vec::new();
    for n in 0..COMMITS {
        let mut nonce = [0; 24];
        nonce[..8].copy_from_slice(&n.to_be_bytes());
        let began = Instant::now();
        store.remember(&[UsedTicket { expiry: u64::MAX, nonce }], 0)?;
        took.push(began.elapsed());
    }
    Ok(median(&mut took))
}

pub(crate) fn median(took: &mut [Duration]) -> f64 {
    took.sort_unstable();
    took.get(took.len() / 2).map_or(0.0, |t| (t.as_secs_f64() * 1e7).round() / 10.0)
}

/// How long calls took, by what they did.
#[derive(Default)]
pub(crate) struct Samples(BTreeMap<Kind, Vec<Duration>>);

impl Samples {
    /// Calls that did one thing, or only one thing more than once.
    pub(crate) fn note(&mut self, work: &[(Kind, u32)], took: Duration) {
        let (kind, count) = match work {
            [(kind, count)] => (*kind, *count),
            [(Kind::Tick, 1), (kind, count)] => (*kind, *count),
            _ => return,
        };
        let samples = self.0.entry(kind).or_default();
        if samples.len() < SAMPLES {
            samples.push(took / count.max(1));
        }
    }

    pub(crate) fn add(&mut self, other: Samples) {
        for (kind, took) in other.0 {
            self.0.entry(kind).or_default().extend(took);
        }
    }

    pub(crate) fn medians(&mut self) -> Costs {
        Costs(self.0.iter_mut().map(|(kind, took)| (*kind, median(took))).collect())
    }
}
