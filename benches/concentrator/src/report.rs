//! The rows for people and as JSON.

use crate::costs::Costs;
use crate::scenario::{Method, Pacing};
use crate::summary::Row;
use serde::{Deserialize, Serialize};
use spindle_benches::Machine;
use std::fmt;

/// All of a run.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Report {
    /// 1.
    pub schema: u32,
    /// What was run.
    pub command: String,
    /// Where.
    pub machine: Machine,
    /// Microseconds of each kind of work.
    pub costs_us: Costs,
    /// One of each crash.
    pub rows: Vec<Row>,
}

impl Report {
    /// Adds a row, in the order in which they are shown; one of the same scenario goes.
    pub fn add(&mut self, row: Row) {
        let scenario = |row: &Row| {
            let method = Method::ALL.iter().position(|method| method.name() == row.method);
            (row.peers, method, row.pacing, row.handshakes_total, row.resumption, row.rtt_ms.to_bits())
        };
        self.rows.retain(|other| scenario(other) != scenario(&row));
        self.rows.push(row);
        self.rows.sort_by_key(scenario);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { cores, processor, kernel, load_average } = &self.machine;
        writeln!(f, "{cores} cores, {processor}, Linux {kernel}")?;
        if let Some(load) = load_average.filter(|load| *load > 0.5) {
            writeln!(f, "the machine was busy with something else (load {load}): the costs may be too high")?;
        }
        for (kind, us) in &self.costs_us.0 {
            writeln!(f, "  {:<16} {us:>8.1} µs", format!("{kind:?}"))?;
        }
        writeln!(
            f,
            "| peers | method | pacing | resumption | 50 % back s | 99 % | 100 % | peak handshakes/s | handshakes | resumed | \
             dropped | octets per peer |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
        )?;
        let switch = |on: Option<bool>| match on {
            Some(true) => "on",
            Some(false) => "off",
            None => "–",
        };
        for row in &self.rows {
            writeln!(
                f,
                "| {} | {} | {} | {} | {:.1} | {:.1} | {:.1} | {} | {} | {} | {} | {} |",
                row.peers,
                row.method,
                row.pacing.map_or("–", Pacing::name),
                switch(row.resumption),
                row.back_s.p50,
                row.back_s.p99,
                row.back_s.p100,
                row.peak_handshakes_per_s,
                row.handshakes,
                row.resumed,
                row.datagrams_dropped,
                row.memory_bytes_per_peer,
            )?;
        }
        Ok(())
    }
}
