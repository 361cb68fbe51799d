//! A cell of the comparison: one method in one scenario at one round-trip time, as schema 1 has it.

use crate::{Contender, Drill, Outcome};
use serde::{Deserialize, Serialize};
use spindle_concentrator::checks::Check;

/// All cells.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// 1.
    pub schema: u32,
    /// In the order in which they were measured.
    pub cells: Vec<Cell>,
    /// What a check costs the processor, of both sides' control planes; none until it was measured.
    #[serde(default)]
    pub checks: Vec<Check>,
}

impl Default for Report {
    fn default() -> Self {
        Report { schema: 1, cells: Vec::new(), checks: Vec::new() }
    }
}

/// One method in one scenario. What could not be measured is absent, never 0.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cell {
    /// How the peer learns of it.
    pub method: String,
    /// What happens.
    pub scenario: String,
    /// Round-trip time between the gateways, in milliseconds.
    pub rtt_ms: u64,
    /// Drills.
    pub runs: u32,
    /// Of these, recovered: if fewer, the last one did not (where no packet came, it was ended after ten minutes), and no other
    /// was begun.
    pub recovered: u32,
    /// Of those that recovered.
    pub outage_ms: Option<Spread>,
    /// Of those that recovered.
    pub ready_to_recovered_ms: Option<Spread>,
    /// The median of those that recovered.
    pub round_trips: Option<f64>,
    /// The median of those that recovered.
    pub messages: Option<f64>,
    /// The median of those that recovered.
    pub packets_lost: Option<f64>,
    /// What is kept for the method per SA.
    pub bytes_per_sa: Octets,
}

/// Of some runs.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spread {
    /// The mean of the middle two, of an even number.
    pub median: f64,
    /// The smallest value that 99 of 100 do not exceed: the largest of fewer than 100.
    pub p99: f64,
}

/// Octets that are kept per SA.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Octets {
    /// By the side that may lose its SAs, on disk for each Child SA: a journal record's key and value.
    pub maker: Option<u64>,
    /// By its peer, in memory for each IKE SA: a token and a ticket, as long as they were seen on the wire.
    pub taker: Option<u64>,
}

impl Spread {
    /// Of at least one value.
    pub(crate) fn of(values: impl Iterator<Item = f64>) -> Option<Spread> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let last = values.len().checked_sub(1)?;
        let rank = (values.len() * 99).div_ceil(100).max(1) - 1;
        // Rounded to the microsecond: what lies below is noise and arithmetic.
        let round = |value: f64| (value * 1e3).round() / 1e3;
        let median = (values[last / 2] + values[last.div_ceil(2)]) / 2.0;
        Some(Spread { median: round(median), p99: round(values[rank]) })
    }
}

impl Cell {
    /// Is this its place?
    pub(crate) fn is(&self, method: &str, scenario: &str, rtt_ms: u64) -> bool {
        (&*self.method, &*self.scenario, self.rtt_ms) == (method, scenario, rtt_ms)
    }

    /// Of the outcomes of a drill.
    pub(crate) fn of(plan: &Drill, outcomes: &[Outcome]) -> Cell {
        let recovered = || outcomes.iter().filter(|outcome| outcome.recovered);
        let spread = |value: fn(&Outcome) -> Option<f64>| Spread::of(recovered().filter_map(value));
        let median = |value: fn(&Outcome) -> Option<u64>| {
            let values = recovered().filter_map(value).map(|value| value as f64);
            Spread::of(values).map(|spread| spread.median)
        };
        Cell {
            method: plan.method.to_string(),
            scenario: plan.scenario.to_string(),
            rtt_ms: plan.round_trip.as_millis() as u64,
            runs: outcomes.len() as u32,
            recovered: recovered().count() as u32,
            outage_ms: spread(|outcome| outcome.outage_ms),
            ready_to_recovered_ms: spread(|outcome| outcome.ready_to_recovered_ms),
            round_trips: median(|outcome| outcome.round_trips),
            messages: median(|outcome| outcome.messages),
            packets_lost: median(|outcome| outcome.packets_lost),
            bytes_per_sa: Octets { maker: kept_by_maker(plan.method), taker: kept_by_taker(outcomes) },
        }
    }
}

fn kept_by_taker(outcomes: &[Outcome]) -> Option<u64> {
    let most = |octets: fn(&Outcome) -> Option<u64>| outcomes.iter().filter_map(octets).max();
    let (token, ticket) = (most(|outcome| outcome.token_octets), most(|outcome| outcome.ticket_octets));
    token.map_or(ticket, |token| Some(token + ticket.unwrap_or(0)))
}

/// Of the testbed's connection and child, whose names stand in the record.
fn kept_by_maker(method: Contender) -> Option<u64> {
    method.method()?.settings().journal.then(|| crate::journal::octets("ab", "net"))
}
