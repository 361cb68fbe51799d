//! The comparison as a page of Markdown.

use super::cell::{Cell, Report, Spread};
use super::judgement::{ATTACKERS, Known, attackers, claims};
use crate::scenario::FEW_PACKETS;
use crate::{Contender, Drill, Scenario};
use spindle_concentrator::checks::{Check, Side};
use std::fmt::Write;
use std::time::Duration;

/// The report; `failures` says which cells could not be measured, and why.
pub fn table(report: &Report, failures: &[String]) -> String {
    let mut text = format!(
        "# Methods of recovery, side by side\n\n\
         Two gateways in network namespaces, host A sends a packet each 10 ms to host B; gateway B is killed and started again \
         half a second later, unless the scenario says otherwise (`spindle-lab list`). Median and 99th percentile, \
         milliseconds; of fewer than 100 runs that percentile is the largest. Round trips and messages are counted in \
         captures; those are medians of the runs in which they could be counted (none where no ESP came before the new SA). \
         \"–\" is what does not apply or was not measured. Promised is, where B alone crashes, k round trips, SIR's wait, the \
         time between two packets and 10 ms from ready on, k = 2 initial-contact, 4 qcd, 5 sir, 3 the others but liveness; it is \
         bold where the median missed it. Liveness is set impatient here: probed after 1 s of \
         silence, given up 2.4 s later; in secret-lost for all methods. AF_XDP rings have {FEW_PACKETS} descriptors, in storm and many \
         as many as usual.\n\n\
         | scenario | method | RTT ms | recovered | outage: median | p99 | ready → recovered: median | p99 | promised | \
         round trips | IKE messages | packets lost | octets per SA: maker | taker |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for cell in in_order(report) {
        let _ = writeln!(text, "| {} |", row(cell).join(" | "));
    }
    text.push_str(
        "\nOctets per SA: the maker's are a journal record's key and value on disk, by the gateway's own encoder, for each Child \
         SA; the taker's are a token and a ticket for each IKE SA, as long as they were seen on the wire. What a database, an \
         allocator or IKEv2 itself adds is not in them.\n",
    );
    if !failures.is_empty() {
        text.push_str("\n## Not measured\n\n");
        for failure in failures {
            let _ = writeln!(text, "- {}", failure.lines().next().unwrap_or_default());
        }
    }
    text.push_str(
        "\n## What a check costs\n\n\
         Microseconds of one core, medians: each call of the real control planes, timed while one gateway of two crashes again \
         and again in memory. What is forged costs as much each time it comes, as long as no limit stands before it. A token that does not match is \
         a hint all the same: where nothing else has led to a liveness check yet (qcd-journal), it begins one. The checks of \
         qcd-resumption and proactive are those of qcd-journal; strongSwan's were not measured.\n\n\
         | method | side | what came | µs |\n| --- | --- | --- | --- |\n",
    );
    for Check { method, side, what, us } in &report.checks {
        let side = if *side == Side::Maker { "maker" } else { "taker" };
        let _ = writeln!(text, "| {} | {side} | {what} | {us:.1} |", method.name());
    }
    text.push_str("\n## What an attacker can do\n\n| method | ");
    text.push_str(&ATTACKERS.join(" | "));
    text.push_str(" | claims (IPR) |\n| --- | --- | --- | --- | --- | --- |\n");
    for method in Contender::all().iter().map(Contender::to_string) {
        let entries = attackers(&method).map(|(what, known)| match known {
            Known::Run(tests) => format!("{what} (run: `{}`)", tests.join("`, `")),
            Known::Reasoned => format!("{what} (reasoned)"),
        });
        let _ = writeln!(text, "| {method} | {} | {} |", entries.join(" | "), claims(&method));
    }
    text
}

/// By round-trip time, then scenario, then method, each in the order of its list.
pub(crate) fn in_order(report: &Report) -> Vec<&Cell> {
    let scenario = |cell: &Cell| Scenario::ALL.iter().position(|it| it.name() == cell.scenario);
    let method = |cell: &Cell| Contender::all().iter().position(|it| it.to_string() == cell.method);
    let mut cells: Vec<&Cell> = report.cells.iter().collect();
    cells.sort_by_key(|cell| (cell.rtt_ms, scenario(cell), method(cell)));
    cells
}

fn row(cell: &Cell) -> Vec<String> {
    let recovered = if cell.recovered == cell.runs {
        format!("{} of {}", cell.recovered, cell.runs)
    } else {
        format!("{} of {}: the last one did not, and no other was begun", cell.recovered, cell.runs)
    };
    let mut row = vec![cell.scenario.clone(), cell.method.clone(), cell.rtt_ms.to_string(), recovered];
    for (spread, digits) in [(cell.outage_ms, 0), (cell.ready_to_recovered_ms, 1)] {
        let figures = [spread.map(|spread: Spread| spread.median), spread.map(|spread| spread.p99)];
        row.extend(figures.map(|figure| shown(figure.map(|figure| format!("{figure:.digits$}")))));
    }
    row.push(promised(cell).unwrap_or_else(|| shown(None::<f64>)));
    row.extend([cell.round_trips, cell.messages, cell.packets_lost].map(shown));
    row.extend([cell.bytes_per_sa.maker, cell.bytes_per_sa.taker].map(shown));
    row
}

/// How soon the median was to be there, in milliseconds; bold if it was not.
fn promised(cell: &Cell) -> Option<String> {
    let scenario = Scenario::ALL.into_iter().find(|it| it.name() == cell.scenario)?;
    let contender = Contender::all().iter().find(|it| it.to_string() == cell.method)?;
    let plan = Drill::new(scenario, *contender);
    let promised = contender.method()?.promised(Duration::from_millis(cell.rtt_ms), plan.interval)?;
    let promised = scenario.is_promised().then_some(promised.as_secs_f64() * 1e3)?;
    let missed = cell.ready_to_recovered_ms?.median > promised;
    Some(if missed { format!("**{promised}**") } else { promised.to_string() })
}

fn shown(figure: Option<impl ToString>) -> String {
    figure.map_or_else(|| "–".to_owned(), |figure| figure.to_string())
}
