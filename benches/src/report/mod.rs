//! What `scripts/bench peers` finds: rows that put ours beside a peer's, kept in one file by the part that measured them.
//!
//! A part's program measures, makes [`Row`]s of alternating rounds ([`Row::of`]), and hands them with a [`Run`] to
//! [`Report::merge`], which puts them into the file in place of what the part said before. From the file come the tables,
//! the plots and the text of `benches/README.md` ([`readme::render`], [`plot::all`]); nothing in there is written by hand but
//! `limits.toml` beside the file, which says what limits a row.
//!
//! A new part is a variant of [`Part`] and a program that is called `PROGRAM --json FILE [--rounds N]`.

pub mod plot;
pub mod readme;

use crate::Machine;
use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The result file that is committed.
pub const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/results/peers.json");

/// What is measured together, and can be alone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// AEADs, beside intel-ipsec-mb.
    Aead,
    /// The engine with memory ports, beside DPDK's ipsec-secgw.
    Engine,
    /// The engine with very many SAs, beside itself with one.
    Scale,
    /// A gateway over veth, beside others.
    Gateway,
}

impl Part {
    /// All, in the order in which they are measured and shown.
    pub const ALL: [Part; 4] = [Part::Aead, Part::Engine, Part::Scale, Part::Gateway];

    /// As on the command line and in the file.
    pub fn name(self) -> &'static str {
        match self {
            Part::Aead => "aead",
            Part::Engine => "engine",
            Part::Scale => "scale",
            Part::Gateway => "gateway",
        }
    }

    /// The program that measures it, which stands beside this one.
    pub fn program(self) -> &'static str {
        match self {
            Part::Aead => "spindle-bench-aead",
            Part::Engine => "spindle-bench-alone",
            Part::Scale => "spindle-bench-scale",
            Part::Gateway => "spindle-bench-gateway",
        }
    }
}

/// Ratios of alternating rounds.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Ratio {
    /// The middle one.
    pub median: f64,
    /// The smallest one.
    pub min: f64,
    /// The largest one.
    pub max: f64,
}

impl Ratio {
    /// Of ours to theirs, round by round.
    pub fn of(ours: &[f64], theirs: &[f64]) -> Ratio {
        let mut ratios: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
        let median = median(&mut ratios);
        Ratio { median, min: ratios[0], max: ratios[ratios.len() - 1] }
    }
}

/// The middle of some figures, which are sorted by it.
pub fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// What a row is to reach, judged by its medians.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// Ours is at most so many times theirs.
    RatioAtMost(f64),
    /// Ours is at least so many times theirs.
    RatioAtLeast(f64),
    /// Ours is at most theirs and so much more, in the row's unit.
    MoreAtMost(f64),
    /// Ours is at most so much, in the row's unit; whatever theirs is.
    AtMost(f64),
}

/// One figure of ours beside one of a peer's. The peer may be ourselves, at one SA.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Row {
    /// Which part measured it.
    pub part: Part,
    /// What was done, such as `encapsulate`.
    pub what: String,
    /// Octets of the inner IP packet.
    pub size: usize,
    /// SAs that are in use.
    pub sas: u32,
    /// The median of our rounds.
    pub ours: f64,
    /// Who is beside it.
    pub peer: String,
    /// The median of its rounds.
    pub theirs: f64,
    /// Of both figures, such as `ns` (per packet).
    pub unit: String,
    /// Ours to theirs.
    pub ratio: Ratio,
    /// Alternating rounds.
    pub rounds: usize,
    /// What is to be reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goal: Option<Goal>,
}

impl Row {
    /// Of figures that were taken in turns, one of each in each round.
    pub fn of(
        (part, what, unit): (Part, &str, &str),
        (size, sas): (usize, u32),
        ours: &[f64],
        (peer, theirs): (&str, &[f64]),
        goal: Option<Goal>,
    ) -> Row {
        assert_eq!(ours.len(), theirs.len(), "{what}: rounds");
        let ratio = Ratio::of(ours, theirs);
        let round = |figure: f64| (figure * 1000.0).round() / 1000.0;
        let middle = |figures: &[f64]| round(median(&mut figures.to_vec()));
        Row {
            part,
            what: what.to_owned(),
            size,
            sas,
            ours: middle(ours),
            peer: peer.to_owned(),
            theirs: middle(theirs),
            unit: unit.to_owned(),
            ratio: Ratio { median: round(ratio.median), min: round(ratio.min), max: round(ratio.max) },
            rounds: ours.len(),
            goal,
        }
    }

    /// By how much its goal is missed, as a share of the goal; 0 and below: it is met.
    pub fn missed_by(&self) -> Option<f64> {
        Some(match self.goal? {
            Goal::RatioAtMost(goal) => self.ratio.median / goal - 1.0,
            Goal::RatioAtLeast(goal) => 1.0 - self.ratio.median / goal,
            Goal::MoreAtMost(goal) => (self.ours - self.theirs) / goal - 1.0,
            Goal::AtMost(goal) => self.ours / goal - 1.0,
        })
    }
}

/// How a part was measured.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Run {
    /// Which.
    pub part: Part,
    /// What gives such rows again.
    pub command: String,
    /// Where.
    pub machine: Machine,
    /// Of ours and of all peers.
    pub versions: Vec<String>,
    /// When, in UTC.
    pub date: String,
    /// How long it took.
    pub seconds: u64,
}

impl Run {
    /// This one, which began at `started`. `versions` are those of the peers, and of what of ours was chosen.
    pub fn here(part: Part, rounds: usize, started: std::time::Instant, versions: Vec<String>) -> Run {
        let compiler = say("rustc", &["--version"]);
        Run {
            part,
            command: format!("scripts/bench peers --only {} --rounds {rounds}", part.name()),
            machine: Machine::here(),
            versions: commit().into_iter().chain(compiler).chain(versions).collect(),
            date: say("date", &["-u", "+%Y-%m-%d %H:%M"]).unwrap_or_default(),
            seconds: started.elapsed().as_secs(),
        }
    }
}

/// What a program says when asked so.
fn say(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

/// Which Spindle the sources in this folder are: the first of a run's versions.
pub fn commit() -> Option<String> {
    let folder = env!("CARGO_MANIFEST_DIR");
    // Results and the page are changed by measuring.
    let changed =
        say("git", &["-C", folder, "status", "--porcelain", "--", ":/", ":!results", ":!README.md"])?;
    let commit = say("git", &["-C", folder, "rev-parse", "--short", "HEAD"])?;
    Some(format!("Spindle {commit}{}", if changed.is_empty() { "" } else { " with changes" }))
}

/// A Debian package's name and version.
pub fn package(name: &str) -> Option<String> {
    say("dpkg-query", &["-W", "-f", "${Package} ${Version}", name])
}

/// The result file.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Report {
    /// 1.
    pub schema: u32,
    /// How each part was measured, in the order of [`Part::ALL`].
    pub runs: Vec<Run>,
    /// By part in the same order; within one as it was measured.
    pub rows: Vec<Row>,
}

impl Report {
    /// What the file holds; nothing, if it isn't there.
    pub fn load(file: &Path) -> anyhow::Result<Report> {
        match std::fs::read_to_string(file) {
            Ok(text) => serde_json::from_str(&text).with_context(|| file.display().to_string()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Ok(Report { schema: 1, runs: Vec::new(), rows: Vec::new() })
            }
            Err(error) => Err(error).with_context(|| file.display().to_string()),
        }
    }

    /// Puts these in place of what the part said before.
    pub fn replace(&mut self, run: Run, rows: Vec<Row>) {
        let part = run.part;
        self.runs.retain(|run| run.part != part);
        self.rows.retain(|row| row.part != part);
        self.runs.push(run);
        self.rows.extend(rows);
        self.runs.sort_by_key(|run| run.part);
        self.rows.sort_by_key(|row| row.part);
    }

    /// Writes the file, whole or not at all.
    pub fn save(&self, file: &Path) -> anyhow::Result<()> {
        let beside = file.with_extension("json.new");
        std::fs::write(&beside, serde_json::to_string_pretty(self)? + "\n")
            .and_then(|()| std::fs::rename(&beside, file))
            .with_context(|| file.display().to_string())
    }

    /// Prints the rows, and puts them into the file in place of what the part said before.
    #[allow(clippy::print_stdout, reason = "a table for people")]
    pub fn merge(file: Option<&PathBuf>, run: Run, rows: Vec<Row>) -> anyhow::Result<()> {
        println!("{}", readme::table(&rows));
        let Some(file) = file else { return Ok(()) };
        let mut report = Report::load(file)?;
        report.replace(run, rows);
        report.save(file)
    }
}

/// What limits a row, and how that is known: written by hand, after a look at a profile.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// The part.
    pub part: Part,
    /// Rows of which `what` begins so.
    pub what: String,
    /// A sentence or more.
    pub text: String,
}

/// `limits.toml`, `[[limit]]` tables.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// In the order of the file.
    #[serde(default)]
    pub limit: Vec<Limit>,
}

impl Limits {
    /// What the file holds; nothing, if it isn't there.
    pub fn load(file: &Path) -> anyhow::Result<Limits> {
        match std::fs::read_to_string(file) {
            Ok(text) => toml::from_str(&text).with_context(|| file.display().to_string()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Limits::default()),
            Err(error) => Err(error).with_context(|| file.display().to_string()),
        }
    }
}

#[cfg(test)]
mod tests;
