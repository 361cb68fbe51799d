//! The rows for people and as JSON.

use crate::costs::Costs;
use crate::scenario::Method;
use crate::summary::Row;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The machine whose costs these are.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Machine {
    cores: usize,
    processor: String,
    kernel: String,
    /// Of the last minute, before the run began: what else the machine was busy with.
    load_average: Option<f64>,
}

impl Machine {
    /// This one.
    pub fn here() -> Machine {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let information = read("/proc/cpuinfo");
        let model = information.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Machine {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            processor: model.map_or_else(String::new, |(_, name)| name.to_owned()),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load_average: read("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()),
        }
    }
}

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
            (row.peers, method, row.handshakes_total, row.resumption, row.rtt_ms.to_bits())
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
                switch(row.pacing),
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
