//! The comparison: each method in each scenario, many times, side by side.
//!
//! ```text
//! Request ─► plan: cells ─► drills ─► Outcomes ─► Cell (one row, schema 1) ─► JSON, Markdown, HTML
//!                                          └────► the runs' file, for distributions and timelines
//! ```
//!
//! A cell that stands in the JSON file with the same settings is not run again. Files are written after each cell.

mod cell;
mod html;
mod judgement;
mod markdown;

pub use cell::{Cell, Octets, Report, Spread};
pub use html::page;
pub use markdown::table;

use crate::{Drill, Outcome, Scenario, drill};
use anyhow::{Context, Result, bail};
use spindle_testbed::{Error, Method};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Runs of a cell that takes longer than [`LONG`] each.
const FEW: u32 = 3;
/// An outage from which on there are few runs.
const LONG: Duration = Duration::from_secs(60);
/// How often a drill is begun anew where the machine was too busy for a capture that is whole.
const ATTEMPTS: u32 = 3;

/// What is compared.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// Drills of each cell.
    pub runs: u32,
    /// Round-trip times in milliseconds.
    pub rtt_ms: Vec<u64>,
    /// These cells only; all if empty.
    pub only: Vec<Only>,
    /// How long the single IKE SA is watched where two might be.
    pub calm: Duration,
    /// After this long a cell has never recovered.
    pub patience: Duration,
    /// Where the cells stand.
    pub json: PathBuf,
}

/// Some cells: a method, a scenario, or both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Only {
    /// All if `None`.
    pub method: Option<Method>,
    /// All if `None`.
    pub scenario: Option<Scenario>,
}

impl std::str::FromStr for Only {
    type Err = String;

    /// `METHOD/SCENARIO`; either may be left out: `qcd/`, `/crash`.
    fn from_str(text: &str) -> std::result::Result<Only, String> {
        use clap::ValueEnum;
        let (method, scenario) = text
            .split_once('/')
            .ok_or_else(|| format!("{text}: write METHOD/SCENARIO, METHOD/ or /SCENARIO"))?;
        let named = |name: &str| Some(name).filter(|name| !name.is_empty()).map(str::to_owned);
        let method = named(method).map(|name| Method::from_str(&name, false)).transpose()?;
        let scenario = named(scenario).map(|name| Scenario::from_str(&name, false)).transpose()?;
        let nothing = method.zip(scenario).is_some_and(|(method, scenario)| !scenario.is_about(method));
        if nothing {
            return Err(format!("{text}: this scenario is not about this method; see `spindle-lab list`"));
        }
        Ok(Only { method, scenario })
    }
}

impl Request {
    /// The cells in their order.
    pub fn cells(&self) -> Vec<(Scenario, Method, u64)> {
        let wanted = |scenario: Scenario, method: Method| {
            scenario.is_about(method)
                && (self.only.is_empty()
                    || self.only.iter().any(|only| {
                        only.method.is_none_or(|it| it == method)
                            && only.scenario.is_none_or(|it| it == scenario)
                    }))
        };
        let mut cells = Vec::new();
        for &rtt in &self.rtt_ms {
            for scenario in Scenario::ALL {
                let methods = Method::ALL.into_iter().filter(|&method| wanted(scenario, method));
                cells.extend(methods.map(|method| (scenario, method, rtt)));
            }
        }
        cells
    }

    /// The file of single runs beside the cells' file.
    fn runs_file(&self) -> PathBuf {
        self.json.with_extension("runs.json")
    }
}

/// The outcomes of each cell, by its name.
pub type Runs = BTreeMap<String, Vec<Outcome>>;

/// A cell's name in [`Runs`].
pub fn name(method: &str, scenario: &str, rtt_ms: u64) -> String {
    format!("{method}/{scenario}/{rtt_ms}")
}

/// Runs what is not there yet and writes the report; cells that could not be measured, and why.
///
/// # Errors
/// If a file can't be read or written.
pub fn compare(request: &Request, tell: &mut dyn FnMut(&str)) -> Result<Vec<String>> {
    let mut report: Report = read(&request.json)?.unwrap_or_default();
    if report.schema != Report::default().schema {
        bail!("{} is of schema {}, not 1", request.json.display(), report.schema);
    }
    let mut runs: Runs = read(&request.runs_file())?.unwrap_or_default();
    let mut failures = Vec::new();
    let cells = request.cells();
    for (number, &(scenario, method, rtt)) in cells.iter().enumerate() {
        let what = format!("{method}, {scenario}, RTT {rtt} ms");
        let is_it = |cell: &Cell| cell.is(&method.to_string(), &scenario.to_string(), rtt);
        if report.cells.iter().any(|cell| is_it(cell) && is_done(cell, request.runs)) {
            tell(&format!("[{}/{}] {what}: measured before", number + 1, cells.len()));
            continue;
        }
        tell(&format!("[{}/{}] {what}", number + 1, cells.len()));
        let plan = Drill {
            round_trip: Duration::from_millis(rtt),
            calm: request.calm,
            patience: request.patience,
            ..Drill::new(scenario, method)
        };
        match cell(&plan, request.runs, tell) {
            Ok(outcomes) => {
                report.cells.retain(|cell| !is_it(cell));
                report.cells.push(Cell::of(&plan, &outcomes));
                runs.insert(name(&method.to_string(), &scenario.to_string(), rtt), outcomes);
            }
            Err(error) => {
                tell(&format!("  {error}"));
                failures.push(format!("{what}: {error}"));
            }
        }
        write(&request.json, &report)?;
        write(&request.runs_file(), &runs)?;
        let text = |extension: &str, text: String| {
            let file = request.json.with_extension(extension);
            std::fs::write(&file, text).with_context(|| format!("writing {}", file.display()))
        };
        text("md", table(&report, &failures))?;
        text("html", page(&report, &runs))?;
    }
    Ok(failures)
}

/// Has a cell all the runs that it is to have: those asked for, few if they are long, up to the first that never ended?
fn is_done(cell: &Cell, runs: u32) -> bool {
    let long = cell.outage_ms.is_some_and(|outage| outage.median >= LONG.as_secs_f64() * 1e3);
    cell.runs >= runs || cell.recovered < cell.runs || (long && cell.runs >= FEW.min(runs))
}

/// The outcomes of a cell.
fn cell(plan: &Drill, runs: u32, tell: &mut dyn FnMut(&str)) -> Result<Vec<Outcome>, Error> {
    let mut outcomes: Vec<Outcome> = Vec::new();
    loop {
        let outcome = attempt(plan)?;
        let (number, outage) = (outcomes.len() + 1, outcome.outage_ms.unwrap_or_default());
        let recovered = outcome.recovered;
        tell(&match &outcome.failure {
            None => format!("  run {number}: outage {outage:.0} ms"),
            Some(why) => format!("  run {number}: not recovered: {why}"),
        });
        outcomes.push(outcome);
        let long = outage >= LONG.as_secs_f64() * 1e3;
        let enough = if long { FEW.min(runs) } else { runs };
        if !recovered || outcomes.len() >= enough as usize {
            return Ok(outcomes);
        }
    }
}

fn attempt(plan: &Drill) -> Result<Outcome, Error> {
    let mut attempt = 1;
    loop {
        match drill(plan, &mut |_| ()) {
            Err(Error::Capture(_)) if attempt < ATTEMPTS => attempt += 1,
            result => return result,
        }
    }
}

fn read<T: serde::de::DeserializeOwned>(file: &Path) -> Result<Option<T>> {
    match std::fs::read(file) {
        Ok(text) => {
            let value = serde_json::from_slice(&text);
            Ok(Some(value.with_context(|| format!("{} is not of this program", file.display()))?))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", file.display())),
    }
}

fn write(file: &Path, value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))
}

#[cfg(test)]
mod tests;
