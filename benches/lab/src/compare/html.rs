//! The comparison as one page with plots, which needs nothing else: outages with their distribution, and the timeline of
//! each cell's median run.

use super::cell::{Cell, Report};
use super::markdown::in_order;
use super::{Runs, middle, name};
use crate::{Outcome, Scenario};
use std::fmt::Write;

/// Width of a plot, of the names before it and of what it shows, in pixels.
const WIDTH: f64 = 960.0;
const NAMES: f64 = 220.0;
const PLOT: f64 = WIDTH - NAMES - 20.0;
/// Height of a row.
const ROW: f64 = 22.0;

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color:#222}\
svg text{font:12px system-ui,sans-serif;fill:#333}svg .grid{stroke:#ddd}svg .bar{fill:#c9dcee}svg .run{fill:#1f5f99;fill-opacity:.55}\
svg .median{stroke:#12395c;stroke-width:2}svg .line{stroke:#999}svg .wire{fill:#1f5f99}svg .a{fill:#b5651d}svg .b{fill:#2a7d4f}\
svg .other{fill:#a11}details{margin:.3em 0}td{padding:0 .8em 0 0;vertical-align:top}";

/// The page.
pub fn page(report: &Report, runs: &Runs) -> String {
    let mut text = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Methods of recovery, side by side</title>\n\
         <style>{STYLE}</style></head><body>\n<h1>Methods of recovery, side by side</h1>\n\
         <p>Outage in milliseconds, on a logarithmic scale: a bar to the median, a dot for each run. In the timelines blue is the wire, orange gateway A, green gateway B, red the hosts and the testbed; 0 is \
         B's ready.</p>\n"
    );
    let cells = in_order(report);
    for scenario in Scenario::ALL {
        let of_it: Vec<&Cell> =
            cells.iter().copied().filter(|cell| cell.scenario == scenario.name()).collect();
        if of_it.is_empty() {
            continue;
        }
        let _ = writeln!(text, "<h2>{scenario}</h2>\n<p>{}.</p>", escape(scenario.description()));
        text.push_str(&outages(&of_it, runs));
        for cell in of_it {
            text.push_str(&median_run(cell, runs));
        }
    }
    text.push_str("</body></html>\n");
    text
}

fn outcomes<'a>(cell: &Cell, runs: &'a Runs) -> &'a [Outcome] {
    runs.get(&name(&cell.method, &cell.scenario, cell.rtt_ms)).map_or(&[], Vec::as_slice)
}

/// A logarithmic axis over whole decades.
struct Axis {
    from: i32,
    to: i32,
}

impl Axis {
    fn of(values: impl Iterator<Item = f64>) -> Axis {
        let (mut least, mut most) = (f64::MAX, f64::MIN);
        for value in values.filter(|value| *value > 0.0) {
            (least, most) = (least.min(value), most.max(value));
        }
        if most <= 0.0 {
            return Axis { from: 0, to: 3 };
        }
        let from = least.log10().floor() as i32;
        Axis { from, to: (most.log10().ceil() as i32).max(from + 1) }
    }

    fn x(&self, value: f64) -> f64 {
        let share = (value.max(1e-3).log10() - f64::from(self.from)) / f64::from(self.to - self.from);
        NAMES + share.clamp(0.0, 1.0) * PLOT
    }
}

fn outages(cells: &[&Cell], runs: &Runs) -> String {
    let all = cells.iter().flat_map(|cell| {
        let medians = cell.outage_ms.iter().flat_map(|outage| [outage.median, outage.p99]);
        medians.chain(outcomes(cell, runs).iter().filter_map(|outcome| outcome.outage_ms))
    });
    let axis = Axis::of(all);
    let height = ROW * (cells.len() as f64 + 1.5);
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n");
    for decade in axis.from..=axis.to {
        let value = 10_f64.powi(decade);
        let (x, bottom) = (axis.x(value), height - ROW);
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"0\" y2=\"{bottom:.1}\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{value}</text>",
            bottom + 14.0
        );
    }
    for (number, cell) in cells.iter().enumerate() {
        let y = ROW * (number as f64 + 0.5);
        let label = format!("{}, RTT {} ms", cell.method, cell.rtt_ms);
        let _ = writeln!(svg, "<text x=\"0\" y=\"{:.1}\">{label}</text>", y + 4.0);
        let Some(outage) = cell.outage_ms else {
            let _ = writeln!(svg, "<text x=\"{NAMES}\" y=\"{:.1}\">not recovered</text>", y + 4.0);
            continue;
        };
        let (left, x) = (axis.x(0.0), axis.x(outage.median));
        let (top, bar) = (y - 7.0, x - left);
        let _ = writeln!(
            svg,
            "<rect class=\"bar\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{bar:.1}\" height=\"14\"/>\
             <line class=\"median\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{:.1}\">\
             <title>median {:.0} ms, p99 {:.0} ms</title></line>",
            y - 9.0,
            y + 9.0,
            outage.median,
            outage.p99
        );
        for outage in outcomes(cell, runs).iter().filter_map(|outcome| outcome.outage_ms) {
            let x = axis.x(outage);
            let _ = writeln!(
                svg,
                "<circle class=\"run\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"><title>{outage:.0} ms</title></circle>"
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}

fn median_run(cell: &Cell, runs: &Runs) -> String {
    let outcomes = outcomes(cell, runs);
    let shown = middle(outcomes).map(|at| &outcomes[at]);
    let Some(outcome) = shown.or(outcomes.first()) else { return String::new() };
    let which = match outcome.outage_ms {
        Some(outage) => format!("the median run, {outage:.0} ms"),
        None => "a run that did not recover".to_owned(),
    };
    let times = || outcome.timeline.iter().map(|moment| moment.at_us as f64);
    let (first, last) = (times().fold(f64::MAX, f64::min), times().fold(f64::MIN, f64::max));
    let x = |at: i64| 10.0 + (at as f64 - first) / (last - first).max(1.0) * (WIDTH - 20.0);
    let mut text = format!(
        "<details><summary>{}, RTT {} ms: {which}</summary>\n<svg viewBox=\"0 0 {WIDTH} 40\" role=\"img\">\
         <line class=\"line\" x1=\"10\" x2=\"{}\" y1=\"20\" y2=\"20\"/>\n",
        cell.method,
        cell.rtt_ms,
        WIDTH - 10.0
    );
    let mut rows = String::new();
    for moment in &outcome.timeline {
        let class = match moment.who.as_str() {
            "wire" => "wire",
            "gateway A" => "a",
            "gateway B" => "b",
            _ => "other",
        };
        let (x, milliseconds) = (x(moment.at_us), moment.at_us as f64 / 1e3);
        let what = escape(&moment.what);
        let _ = writeln!(
            text,
            "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"20\" r=\"5\"><title>{milliseconds:.3} ms, {}: {what}</title></circle>",
            moment.who
        );
        let _ =
            writeln!(rows, "<tr><td>{milliseconds:.3} ms</td><td>{}</td><td>{what}</td></tr>", moment.who);
    }
    let _ = writeln!(text, "</svg><table>{rows}</table></details>");
    text
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
