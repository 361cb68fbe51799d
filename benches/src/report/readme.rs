//! `benches/README.md`, from the result file.

use super::{Goal, Limits, Part, Report, Row};
use std::fmt::Write;

/// What stands before the parts.
const HEAD: &str = "# Side by side

The ESP engine, and gateways made of it, beside the best peers that can be had from Debian's packages. This page is made from
[`peers.json`](FOLDER/peers.json) by `scripts/bench peers`; what limits a row is in
[`limits.toml`](FOLDER/limits.toml), from a profile.

Each ratio is of ours to the peer's in one round, both taken in turns; shown is the median of the rounds, and their minimum and maximum.
Figures are medians, too. Sizes are octets of the inner IP packet. A goal is judged by the medians.
";

impl Part {
    fn heading(self) -> &'static str {
        match self {
            Part::Aead => "AEADs alone",
            Part::Engine => "The engine alone",
            Part::Scale => "Many SAs",
            Part::Gateway => "Gateways over veth",
        }
    }

    fn explanation(self) -> &'static str {
        match self {
            Part::Aead => {
                "Packets of what ESP encrypts for an inner packet of that size, sealed and opened in place in the first cache. intel-ipsec-mb's \
                 functions are called directly; `open` includes the comparison of tags on both sides."
            }
            Part::Engine => {
                "One core, bursts of 32, one SA, AES-128-GCM in tunnel mode, with counters and a replay window of 1,024. Ours: a \
                 memory port copies each packet in; what the port takes alone is subtracted. DPDK's ipsec-secgw, built for this processor, with \
                 crypto_aesni_gcm, from net_pcap to net_null; what testpmd takes between the same ports is subtracted, and of its two modes \
                 (plain, and `-l` with cpu-crypto) the better one counts, by the processor time of its threads. Its decapsulation reads the same capture again and again, \
                 so it runs *without a replay check*; ours checks."
            }
            Part::Scale => {
                "Each burst's packets are on SAs drawn at random, uniformly or by Zipf's law (exponent 1). A memory port copies \
                 each packet in; what it takes alone is subtracted. Octets are the growth of the process; an SA's hold its keys and, inbound, \
                 a window of 1,024. Of commands it is said what half and what 99.9 % of them take at most; while packets flow, a worker carries out at \
                 most 64 commands a burst."
            }
            Part::Gateway => {
                "AF_XDP in copy mode over veth pairs, on two cores. *One gateway* has a core of its own, one SA, AES-128-GCM in tunnel mode. \
                 XDP live frames in one long call on the other core make plain packets of 64 flows at full rate, more than any \
                 gateway takes; an XDP program behind the outer interface counts and drops. On which core the kernel receives there decides \
                 what sending costs: on the generator's, in a thread, as if the next hop were another machine, or on the gateway's, \
                 within its own system call. testpmd only forwards. *Two gateways* stand between two hosts with an MTU of 1400; \
                 all share both cores; one TCP connection, payload per second. Ours with IKE and all defaults. ipsec-secgw cannot \
                 complete checksums, so for it alone the hosts' tx offloads are off."
            }
        }
    }
}

/// The page; `folder` leads from it to the file and its plots.
pub fn render(report: &Report, limits: &Limits, folder: &str) -> String {
    let mut page = HEAD.replace("FOLDER/", folder);
    let goals: Vec<f64> = report.rows.iter().filter_map(Row::missed_by).collect();
    let met = goals.iter().filter(|by| **by <= 0.0).count();
    let _ = writeln!(page, "\nOf {} goals {met} are met.", goals.len());
    for run in &report.runs {
        let part = run.part;
        let rows: Vec<Row> = report.rows.iter().filter(|row| row.part == part).cloned().collect();
        let _ = writeln!(page, "\n## {}\n\n{}\n", part.heading(), part.explanation());
        let machine = &run.machine;
        let load = machine.load_average.map_or_else(|| "?".to_owned(), |load| format!("{load:.1}"));
        let _ = writeln!(
            page,
            "`{}` on {}, {} cores, Linux {}; load average before it began {load}; {} UTC, {} s. {}.\n",
            run.command,
            machine.processor,
            machine.cores,
            machine.kernel,
            run.date,
            run.seconds,
            run.versions.join(", "),
        );
        page.push_str(&table(&rows));
        for (name, title) in super::plot::of_part(report, part) {
            let _ = writeln!(page, "\n![{title}]({folder}{name})");
        }
        let mut said = limits
            .limit
            .iter()
            .filter(|limit| limit.part == part && rows.iter().any(|row| row.what.starts_with(&limit.what)));
        if let Some(first) = said.next() {
            let _ = writeln!(page, "\nWhat limits:\n");
            for limit in std::iter::once(first).chain(said) {
                let _ = writeln!(page, "- *{}*: {}", limit.what, limit.text.trim().replace('\n', " "));
            }
        }
    }
    page
}

/// The rows as a table.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "| what | size | SAs | ours | peer | its | ratio (min–max) | rounds | goal | |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for row in rows {
        let Row { what, size, sas, ours, peer, theirs, unit, ratio, rounds, .. } = row;
        let verdict = match row.missed_by() {
            None => String::new(),
            Some(by) if by <= 0.0 => "met".into(),
            Some(by) => format!("**missed by {:.0} %**", (100.0 * by).max(1.0)),
        };
        let _ = writeln!(
            text,
            "| {what} | {size} | {sas} | {} {unit} | {peer} | {} {unit} | {:.2} ({:.2}–{:.2}) | {rounds} | {} | {verdict} |",
            figure(*ours),
            figure(*theirs),
            ratio.median,
            ratio.min,
            ratio.max,
            goal(row),
        );
    }
    text
}

/// With three digits or more.
fn figure(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.digits$}")
}

fn goal(row: &Row) -> String {
    match row.goal {
        None => String::new(),
        Some(Goal::RatioAtMost(most)) => format!("≤ {most:.2}×"),
        Some(Goal::RatioAtLeast(least)) => format!("≥ {least:.2}×"),
        Some(Goal::MoreAtMost(more)) => format!("≤ {} {} more", figure(more), row.unit),
        Some(Goal::AtMost(most)) => format!("≤ {} {}", figure(most), row.unit),
    }
}
