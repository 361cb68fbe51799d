//! What people and programs are shown: timelines, the table, JSON of schema 1.

use serde::Serialize;
use spindle_testbed::{Method, Plan, Run, moments};
use std::fmt::Write;

/// All runs of a plan.
pub(crate) struct Series {
    pub(crate) plan: Plan,
    pub(crate) runs: Vec<Run>,
}

/// Median, smallest and largest of some runs.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub(crate) struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    /// Of at least one value; of an even number of them the median is the mean of the middle two.
    fn of(values: impl Iterator<Item = f64>) -> Spread {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        // Rounded to the microsecond: what lies below is noise and arithmetic.
        let round = |value: f64| (value * 1e3).round() / 1e3;
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        let (half, last) = (values.len() / 2, values.len().saturating_sub(1));
        let odd = values.len() % 2 == 1;
        let median = if odd { at(half) } else { (at(half.saturating_sub(1)) + at(half)) / 2.0 };
        Spread { median: round(median), min: round(at(0)), max: round(at(last)) }
    }
}

impl Series {
    fn milliseconds(&self, nanoseconds: impl Fn(&Run) -> u64) -> Spread {
        Spread::of(self.runs.iter().map(|run| nanoseconds(run) as f64 / 1e6))
    }

    fn outage(&self) -> Spread {
        self.milliseconds(|run| run.outage.length())
    }

    fn start_to_ready(&self) -> Spread {
        self.milliseconds(Run::start_to_ready)
    }

    fn ready_to_recovered(&self) -> Spread {
        self.milliseconds(Run::ready_to_recovered)
    }

    fn packets_lost(&self) -> Spread {
        Spread::of(self.runs.iter().map(|run| run.outage.lost as f64))
    }

    fn round_trips(&self) -> Spread {
        Spread::of(self.runs.iter().map(|run| run.round_trips as f64))
    }

    /// The run in the middle by its time to recover.
    fn typical(&self) -> Option<&Run> {
        let mut runs: Vec<&Run> = self.runs.iter().collect();
        runs.sort_by_key(|run| run.ready_to_recovered());
        runs.get(runs.len().saturating_sub(1) / 2).copied()
    }
}

/// The timeline of each series' typical run, in microseconds from the moment at which B was ready.
pub(crate) fn timelines(series: &[Series]) -> String {
    let mut text = String::new();
    for one in series {
        if let Some(run) = one.typical() {
            // Writing to a string can't fail.
            let _ = writeln!(text, "\n{} (µs from B's ready)", one.plan);
            for moment in moments(&run.crash, Some(&run.outage), &run.timeline, &run.events) {
                let _ = writeln!(text, "{moment}");
            }
        }
    }
    text
}

const HEADINGS: [&str; 9] = [
    "method",
    "RTT ms",
    "down ms",
    "runs",
    "outage ms",
    "start→ready ms",
    "ready→recovered ms",
    "packets lost",
    "round trips",
];

/// The table with its foot.
pub(crate) fn table(series: &[Series]) -> String {
    let time = |spread: Spread| format!("{:.1} ({:.1}–{:.1})", spread.median, spread.min, spread.max);
    let count = |spread: Spread| {
        if spread.min == spread.max {
            format!("{}", spread.median)
        } else {
            format!("{} ({}–{})", spread.median, spread.min, spread.max)
        }
    };
    let mut rows = vec![HEADINGS.map(str::to_owned)];
    rows.extend(series.iter().map(|one| {
        [
            one.plan.method.to_string(),
            one.plan.round_trip.as_millis().to_string(),
            one.plan.down.as_millis().to_string(),
            one.runs.len().to_string(),
            time(one.outage()),
            time(one.start_to_ready()),
            time(one.ready_to_recovered()),
            count(one.packets_lost()),
            count(one.round_trips()),
        ]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEADINGS.len()).map(width).collect();
    let mut text = String::from("\nMedian (smallest–largest).\n");
    for row in &rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(
                |(column, (cell, &width))| {
                    if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
                },
            )
            .collect();
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
    }
    let short = Method::SHORT;
    let _ = writeln!(
        text,
        "\nliveness is made impatient for this demonstration: a silent peer is probed after {} s and given up {:.1} s\n\
         later ({} ms × {}^n, {} retransmissions). By strongSwan's defaults the crash would never be noticed by itself\n\
         (dpd_delay is 0, off); with it on, a probe is given up after 165 s (4 s × 1.8^n, 5 retransmissions). Measured\n\
         with strongSwan 5.9.8 and dpd_delay = 10s: an outage of 175 s.",
        Method::SHORT_DELAY.as_secs(),
        short.total().as_secs_f64(),
        short.timeout.as_millis(),
        short.base,
        short.tries
    );
    text
}

#[derive(Serialize)]
pub(crate) struct Report {
    schema: u32,
    machine: Machine,
    packet_interval_ms: u64,
    results: Vec<ReportRow>,
}

#[derive(Serialize)]
struct ReportRow {
    method: String,
    rtt_ms: u128,
    down_ms: u128,
    runs: usize,
    outage_ms: Spread,
    start_to_ready_ms: Spread,
    ready_to_recovered_ms: Spread,
    packets_lost: Spread,
    /// The median; with an even number of runs that differ, the larger of the middle two.
    round_trips: u64,
}

#[derive(Serialize)]
struct Machine {
    kernel: String,
    processor: String,
    cores: usize,
    memory_mb: u64,
}

impl Machine {
    fn this() -> Machine {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once(':'))
                .map(|(_, value)| value.trim().to_owned())
                .unwrap_or_default()
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        let kilobytes: u64 = memory.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0);
        Machine {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            processor: field(&read("/proc/cpuinfo"), "model name"),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_mb: kilobytes / 1024,
        }
    }
}

/// The results as schema 1 has them.
pub(crate) fn json(series: &[Series], packet_interval_ms: u64) -> Report {
    let results = series
        .iter()
        .map(|one| ReportRow {
            method: one.plan.method.to_string(),
            rtt_ms: one.plan.round_trip.as_millis(),
            down_ms: one.plan.down.as_millis(),
            runs: one.runs.len(),
            outage_ms: one.outage(),
            start_to_ready_ms: one.start_to_ready(),
            ready_to_recovered_ms: one.ready_to_recovered(),
            packets_lost: one.packets_lost(),
            round_trips: one.round_trips().median.ceil() as u64,
        })
        .collect();
    Report { schema: 1, machine: Machine::this(), packet_interval_ms, results }
}

/// The series whose median recovery took longer than promised, in words.
pub(crate) fn too_slow(series: &[Series]) -> Vec<String> {
    let judge = |one: &Series| {
        let promised = one.plan.method.promised(one.plan.round_trip, one.plan.interval)?;
        let allowed = promised.as_secs_f64() * 1e3;
        let median = one.ready_to_recovered().median;
        (median > allowed).then(|| {
            format!(
                "{}: ready → recovered took {median:.1} ms in the median, {allowed:.1} ms are allowed",
                one.plan
            )
        })
    };
    series.iter().filter_map(judge).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use spindle_testbed::{Counts, Crash, Delivery, Outage, Timeline};
    use std::time::Duration;

    const MILLISECOND: u64 = 1_000_000;

    /// Runs whose recoveries took these many milliseconds after ready.
    fn series(method: Method, recovered: &[u64]) -> Series {
        let plan = Plan {
            method,
            round_trip: Duration::from_millis(20),
            down: Duration::from_millis(500),
            interval: Duration::from_millis(10),
        };
        let delivery = |number, at: u64| Delivery { number, sent: 0, received: at * MILLISECOND };
        let run = |&recovered: &u64| Run {
            crash: Crash {
                gateway: std::net::Ipv4Addr::LOCALHOST.into(),
                killed: 1_000 * MILLISECOND,
                started: 1_500 * MILLISECOND,
                ready: 1_600 * MILLISECOND,
                round_trip: plan.round_trip,
            },
            outage: Outage {
                last_before: delivery(9, 995),
                first_after: delivery(70, 1_600 + recovered),
                lost: 60,
            },
            timeline: Timeline { first_esp: Some(1_601 * MILLISECOND), ..Timeline::default() },
            exchanges: Vec::new(),
            round_trips: 3,
            counts: Counts::default(),
            events: [Vec::new(), Vec::new()],
        };
        Series { plan, runs: recovered.iter().map(run).collect() }
    }

    #[test]
    fn the_report_has_the_fields_of_its_schema() {
        let report = json(&[series(Method::QcdJournal, &[61, 65, 90])], 10);
        let value = serde_json::to_value(report).expect("it serialises");
        assert_eq!(value["schema"], 1);
        assert_eq!(value["packet_interval_ms"], 10);
        let row = &value["results"][0];
        assert_eq!(
            (&row["method"], &row["rtt_ms"], &row["runs"]),
            (&"qcd-journal".into(), &20.into(), &3.into())
        );
        assert_eq!(
            row["ready_to_recovered_ms"],
            serde_json::json!({"median": 65.0, "min": 61.0, "max": 90.0})
        );
        assert_eq!(row["outage_ms"]["median"], 670.0);
        assert_eq!(row["start_to_ready_ms"]["max"], 100.0);
        assert_eq!((&row["packets_lost"]["min"], &row["round_trips"]), (&60.0.into(), &3.into()));
        assert!(value["machine"]["cores"].as_u64() > Some(0));
    }

    #[test]
    fn a_median_beyond_the_promise_is_too_slow_and_liveness_promises_nothing() {
        // 3 × 20 + 10 + 10 for the journal, 4 × 20 + 10 + 10 without.
        assert!(too_slow(&[series(Method::QcdJournal, &[60, 80, 500])]).is_empty());
        assert_eq!(too_slow(&[series(Method::QcdJournal, &[60, 81, 82])]).len(), 1);
        assert!(too_slow(&[series(Method::Qcd, &[100])]).is_empty());
        assert_eq!(too_slow(&[series(Method::Qcd, &[101])]).len(), 1);
        assert!(too_slow(&[series(Method::Liveness, &[9_000])]).is_empty());
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 9.0].into_iter()), Spread { median: 3.0, min: 1.0, max: 9.0 });
    }

    #[test]
    fn the_timeline_is_in_order_and_relative_to_ready() {
        let text = timelines(&[series(Method::Qcd, &[75])]);
        let times: Vec<i64> =
            text.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect();
        assert_eq!(times, [-605_000, -600_000, -100_000, 0, 1_000, 75_000]);
    }

    #[test]
    fn the_tables_foot_says_that_liveness_is_impatient_here() {
        let text = table(&[series(Method::Liveness, &[3_000])]);
        assert!(text.contains("165 s") && text.contains("given up 2.4 s"), "{text}");
    }
}
