//! What a run measured, for people and as JSON. Nothing here comes from elsewhere than a measurement.

use super::tunnel::Together;
use serde::Serialize;
use spindle_benches::Machine;
use std::collections::BTreeMap;
use std::fmt;

/// All figures. `None` where a step could not be measured; `notes` says why.
#[derive(Serialize, Clone, Debug)]
pub(crate) struct Report {
    schema: u32,
    /// What was run.
    command: String,
    pub(crate) machine: Machine,
    /// Frames per second that the generator makes into a sink.
    pub(crate) generator_pps: Option<f64>,
    /// Frames per second that the port receives when its worker only recycles them: median.
    pub(crate) recycle_only_pps: Option<f64>,
    /// Unknown SPIs per second that the gateway detects: median.
    pub(crate) detected_pps: Option<f64>,
    /// Packets sent in the rounds of detection.
    pub(crate) sent: Option<u64>,
    /// Of these, packets detected.
    pub(crate) detected: Option<u64>,
    /// Of the packets detected, those of which control could not be told: the ring for noise was full.
    pub(crate) noise_lost: Option<u64>,
    /// Of the packets sent, packets dropped before they could be detected, by reason.
    pub(crate) dropped: BTreeMap<String, u64>,
    /// The engine alone.
    pub(crate) engine_ns_per_unknown_spi: Option<f64>,
    /// Control's share of one core during a storm, 0 to 1.
    pub(crate) control_cpu_share: Option<f64>,
    /// Packets that the tunnel was given during the storm below the port's capacity.
    pub(crate) tunnel_packets_sent: Option<u64>,
    /// Of these, packets that did not arrive.
    pub(crate) tunnel_packets_lost: Option<u64>,
    /// All of the storm below the port's capacity.
    pub(crate) tunnel_below_capacity: Option<Together>,
    /// All of the storm above it.
    pub(crate) tunnel_above_capacity: Option<Together>,
    /// From ready to the first delivery, under a storm.
    pub(crate) recovery_under_storm_ms: Option<f64>,
    /// What could not be measured, and why.
    pub(crate) notes: Vec<String>,
}

/// A measured figure, what it should be, and whether it is.
struct Row {
    name: &'static str,
    measured: Option<String>,
    goal: Option<(&'static str, Option<bool>)>,
}

impl Report {
    pub(crate) fn new() -> Report {
        Report {
            schema: 1,
            command: format!(
                "scripts/bench storm {}",
                std::env::args().skip(2).collect::<Vec<_>>().join(" ")
            ),
            machine: Machine::here(),
            generator_pps: None,
            recycle_only_pps: None,
            detected_pps: None,
            sent: None,
            detected: None,
            noise_lost: None,
            dropped: BTreeMap::new(),
            engine_ns_per_unknown_spi: None,
            control_cpu_share: None,
            tunnel_packets_sent: None,
            tunnel_packets_lost: None,
            tunnel_below_capacity: None,
            tunnel_above_capacity: None,
            recovery_under_storm_ms: None,
            notes: Vec::new(),
        }
    }

    /// Detected in relation to received.
    fn ratio(&self) -> Option<f64> {
        Some(self.detected_pps? / self.recycle_only_pps?)
    }

    fn dropped_in_all(&self) -> u64 {
        self.dropped.values().sum()
    }

    fn rows(&self) -> Vec<Row> {
        let row = |name, measured| Row { name, measured, goal: None };
        let goal = |name, measured, text, met| Row { name, measured, goal: Some((text, met)) };
        let share = |share: f64| format!("{:.1} %", share * 100.0);
        let above = self.tunnel_above_capacity.as_ref();
        let rate = |pps: Option<f64>| pps.map(|pps| format!("{:.2} M/s", pps / 1e6));
        let count = |count: Option<u64>| count.map(|count| count.to_string());
        vec![
            row("generator, into a sink", rate(self.generator_pps)),
            row("port, worker only recycles", rate(self.recycle_only_pps)),
            row("engine detects", rate(self.detected_pps)),
            goal(
                "detects / recycles",
                self.ratio().map(|ratio| format!("{ratio:.3}")),
                "at least 0.9",
                self.ratio().map(|ratio| ratio >= 0.9),
            ),
            row("packets sent", count(self.sent)),
            row("packets detected", count(self.detected)),
            goal(
                "packets dropped before",
                self.sent.map(|_| self.dropped_in_all().to_string()),
                "sent = detected + dropped",
                self.sent.zip(self.detected).map(|(sent, detected)| sent == detected + self.dropped_in_all()),
            ),
            goal(
                "engine alone, an unknown SPI",
                self.engine_ns_per_unknown_spi.map(|ns| format!("{ns:.1} ns")),
                "at most 30 ns",
                self.engine_ns_per_unknown_spi.map(|ns| ns <= 30.0),
            ),
            row("control's share of a core", self.control_cpu_share.map(share)),
            row("storm below capacity", rate(self.tunnel_below_capacity.map(|below| below.storm_pps))),
            row("tunnel below capacity, sent", count(self.tunnel_packets_sent)),
            goal(
                "tunnel below capacity, lost",
                count(self.tunnel_packets_lost),
                "none",
                self.tunnel_packets_lost.map(|lost| lost == 0),
            ),
            row("storm above capacity", rate(above.map(|above| above.storm_pps))),
            row("storm above capacity, not detected", above.map(|above| share(above.storm_loss()))),
            goal(
                "tunnel above capacity, lost",
                above.map(|above| share(above.tunnel_loss())),
                "no larger a share than the storm",
                above.map(|above| above.tunnel_loss() <= above.storm_loss()),
            ),
            row(
                "crash in the storm, ready to recovered",
                self.recovery_under_storm_ms.map(|ms| format!("{ms:.1} ms")),
            ),
        ]
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { cores, processor, kernel, load_average } = &self.machine;
        writeln!(f, "{cores} cores, {processor}, Linux {kernel}")?;
        if let Some(load) = load_average.filter(|load| *load > 0.5) {
            writeln!(f, "the machine was busy with something else (load {load}): the figures are too low")?;
        }
        for row in self.rows() {
            let measured = row.measured.as_deref().unwrap_or("not measured");
            write!(f, "{:<40} {measured:>14}", row.name)?;
            match row.goal {
                Some((goal, Some(true))) => writeln!(f, "   goal: {goal} (met)")?,
                Some((goal, Some(false))) => writeln!(f, "   goal: {goal} (MISSED)")?,
                Some((goal, None)) => writeln!(f, "   goal: {goal}")?,
                None => writeln!(f)?,
            }
        }
        for (reason, count) in &self.dropped {
            writeln!(f, "  dropped, {reason}: {count}")?;
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        Ok(())
    }
}
