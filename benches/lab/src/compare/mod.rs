//! The comparison: each method in each scenario, many times, side by side.
//!
//! ```text
//! Request ─► plan: cells ─► drills ─► Outcomes ─► Cell (one row, schema 1) ─► JSON, Markdown, HTML
//!            (some at once)                └────► the runs' file, for distributions and timelines
//! ```
//!
//! A cell that stands in the JSON file with the same settings is not run again. Files are written after each cell.
//! Drills mostly wait, so several go at once, each in namespaces of its own; what loads the machine goes alone.

mod cell;
mod html;
mod judgement;
mod markdown;

pub use cell::{Cell, Octets, Report, Spread};
pub use html::page;
pub use markdown::table;

use crate::{Contender, Drill, Outcome, Scenario, drill};
use anyhow::{Context, Result, bail};
use spindle_concentrator::checks::checks;
use spindle_testbed::{Error, Method};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

/// Runs of a cell that takes longer than [`LONG`] each.
const FEW: u32 = 3;
/// An outage from which on there are few runs.
const LONG: Duration = Duration::from_secs(60);
/// So many IKE SAs take about as long by SIR, which asks about 200 in a second (`queries_total`).
const LONG_BY_SIR: u32 = 10_000;
/// How often a drill is begun anew where the machine was too busy for a capture that is whole.
const ATTEMPTS: u32 = 3;
/// The extension of the file of single runs.
const RUNS: &str = "runs.json";
/// Of what is random in a check: any number.
const SEED: u64 = 1;

/// What is compared.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// Drills of each cell.
    pub runs: u32,
    /// Round-trip times in milliseconds.
    pub rtt_ms: Vec<u64>,
    /// These cells only; all if empty.
    pub only: Vec<Only>,
    /// Drills at once, 1 or more.
    pub jobs: usize,
    /// How long the single IKE SA is watched where two might be.
    pub calm: Duration,
    /// IKE SAs of the pair where they are to be very many.
    pub ike_sas: u32,
    /// After this long a cell has never recovered.
    pub patience: Duration,
    /// Where the cells stand.
    pub json: PathBuf,
}

/// Some cells: of a method, a scenario, a round-trip time, or several of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Only {
    /// All if `None`.
    pub method: Option<Contender>,
    /// All if `None`.
    pub scenario: Option<Scenario>,
    /// All if `None`. In milliseconds.
    pub rtt_ms: Option<u64>,
}

impl std::str::FromStr for Only {
    type Err = String;

    /// `METHOD/SCENARIO` or `METHOD/SCENARIO/RTT`; each may be left out: `qcd/`, `/crash`, `//20`.
    fn from_str(text: &str) -> std::result::Result<Only, String> {
        use clap::ValueEnum;
        let (method, rest) = text
            .split_once('/')
            .ok_or_else(|| format!("{text}: write METHOD/SCENARIO, METHOD/ or /SCENARIO"))?;
        let (scenario, rtt) =
            rest.split_once('/').map_or((rest, None), |(scenario, rtt)| (scenario, Some(rtt)));
        let milliseconds =
            |rtt: &str| rtt.parse().map_err(|_| format!("{text}: {rtt:?} is no round-trip time in ms"));
        let rtt_ms = rtt.map(milliseconds).transpose()?;
        let named = |name: &str| Some(name).filter(|name| !name.is_empty()).map(str::to_owned);
        let method = named(method).map(|name| Contender::from_str(&name, false)).transpose()?;
        let scenario = named(scenario).map(|name| Scenario::from_str(&name, false)).transpose()?;
        let nothing = method.zip(scenario).is_some_and(|(method, scenario)| !method.meets(scenario));
        if nothing {
            return Err(format!("{text}: this scenario is not about this method; see `spindle-lab list`"));
        }
        Ok(Only { method, scenario, rtt_ms })
    }
}

impl Request {
    /// The cells in their order.
    pub fn cells(&self) -> Vec<(Scenario, Contender, u64)> {
        let wanted = |scenario: Scenario, method: Contender, rtt: u64| {
            method.meets(scenario)
                && (self.only.is_empty()
                    || self.only.iter().any(|only| {
                        only.method.is_none_or(|it| it == method)
                            && only.scenario.is_none_or(|it| it == scenario)
                            && only.rtt_ms.is_none_or(|it| it == rtt)
                    }))
        };
        let mut cells = Vec::new();
        for &rtt in &self.rtt_ms {
            for scenario in Scenario::ALL {
                let methods =
                    Contender::all().iter().copied().filter(|&method| wanted(scenario, method, rtt));
                cells.extend(methods.map(|method| (scenario, method, rtt)));
            }
        }
        cells
    }

    /// So many drills a cell is to have, if none takes long.
    fn runs_of(&self, scenario: Scenario, method: Contender) -> u32 {
        let by_sir = method == Contender::Spindle(Method::Sir) && scenario == Scenario::Many;
        if by_sir && self.ike_sas >= LONG_BY_SIR { FEW.min(self.runs) } else { self.runs }
    }

    /// The file of single runs beside the cells' file.
    fn runs_file(&self) -> PathBuf {
        self.json.with_extension(RUNS)
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
    let is_there = |&(scenario, method, rtt): &(Scenario, Contender, u64)| {
        let is_it = |cell: &&Cell| cell.is(&method.to_string(), &scenario.to_string(), rtt);
        report.cells.iter().find(is_it).is_some_and(|cell| is_done(cell, request.runs_of(scenario, method)))
    };
    let (there, missing): (Vec<_>, Vec<_>) = request.cells().into_iter().partition(is_there);
    let total = there.len() + missing.len();
    if !there.is_empty() {
        tell(&format!("{} of {total} cells: measured before", there.len()));
    }
    if report.checks.is_empty() && !missing.is_empty() {
        tell("measuring what a check costs");
        report.checks = checks(SEED)?;
    }
    let mut done = there.len();
    let plans = missing.into_iter().map(|(scenario, method, rtt)| Drill {
        round_trip: Duration::from_millis(rtt),
        calm: request.calm,
        patience: request.patience,
        ike_sas: request.ike_sas,
        ..Drill::new(scenario, method)
    });
    measure(plans.collect(), request, &mut |plan, outcomes| {
        done += 1;
        let what = what(plan);
        match outcomes {
            Ok(outcomes) => {
                let cell = Cell::of(plan, &outcomes);
                tell(&format!("[{done}/{total}] {what}: {}", in_short(&cell)));
                report.cells.retain(|it| !it.is(&cell.method, &cell.scenario, cell.rtt_ms));
                runs.insert(name(&cell.method, &cell.scenario, cell.rtt_ms), kept(outcomes));
                report.cells.push(cell);
            }
            Err(error) => {
                tell(&format!("[{done}/{total}] {what}: {error}"));
                failures.push(format!("{what}: {error}"));
            }
        }
        write(&request.json, &report)?;
        let text = |extension: &str, text: String| {
            let file = request.json.with_extension(extension);
            std::fs::write(&file, text).with_context(|| format!("writing {}", file.display()))
        };
        // For programs alone, and long.
        text(RUNS, serde_json::to_string(&runs)? + "\n")?;
        text("md", table(&report, &failures))?;
        text("html", page(&report, &runs))
    })?;
    Ok(failures)
}

/// The number of the run in the middle by its outage; none if no run recovered.
fn middle(outcomes: &[Outcome]) -> Option<usize> {
    let recovered = outcomes.iter().enumerate();
    let mut recovered: Vec<(f64, usize)> =
        recovered.filter_map(|(number, outcome)| Some((outcome.outage_ms?, number))).collect();
    recovered.sort_by(|a, b| a.0.total_cmp(&b.0));
    recovered.get(recovered.len().saturating_sub(1) / 2).map(|(_, number)| *number)
}

/// What the runs' file keeps of a cell: each outcome, and the timeline of the run in the middle and of each that failed.
fn kept(mut outcomes: Vec<Outcome>) -> Vec<Outcome> {
    let middle = middle(&outcomes);
    for (number, outcome) in outcomes.iter_mut().enumerate() {
        if outcome.recovered && Some(number) != middle {
            outcome.timeline = Vec::new();
        }
    }
    outcomes
}

fn what(plan: &Drill) -> String {
    format!("{}, {}, RTT {} ms", plan.method, plan.scenario, plan.round_trip.as_millis())
}

fn in_short(cell: &Cell) -> String {
    match cell.outage_ms {
        Some(outage) => format!("{} of {}, outage {:.0} ms", cell.recovered, cell.runs, outage.median),
        None => format!("{} of {}", cell.recovered, cell.runs),
    }
}

/// Is told a cell and its outcomes.
type Done<'a> = &'a mut dyn FnMut(&Drill, Result<Vec<Outcome>, Error>) -> Result<()>;

/// Measures these cells: first what needs the machine for itself, then the others, the slowest first.
fn measure(plans: Vec<Drill>, request: &Request, done: Done<'_>) -> Result<()> {
    let (alone, mut others): (Vec<_>, Vec<_>) =
        plans.into_iter().partition(|plan| plan.scenario.needs_the_machine());
    for plan in &alone {
        done(plan, cell(plan, request.runs_of(plan.scenario, plan.method)))?;
    }
    // strongSwan waits for minutes.
    others.sort_by_key(|plan| plan.method.method().is_some());
    let next = Mutex::new(others.into_iter());
    std::thread::scope(|scope| {
        let (told, news) = mpsc::channel();
        for _ in 0..request.jobs {
            let (told, next) = (told.clone(), &next);
            scope.spawn(move || {
                loop {
                    let plan = next.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).next();
                    let Some(plan) = plan else { return };
                    let outcomes = cell(&plan, request.runs_of(plan.scenario, plan.method));
                    // Nobody listens once a file could not be written.
                    if told.send((plan, outcomes)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(told);
        news.into_iter().try_for_each(|(plan, outcomes)| done(&plan, outcomes))
    })
}

/// Has a cell all the runs that it is to have: those asked for, few if they are long, up to the first that never ended?
fn is_done(cell: &Cell, runs: u32) -> bool {
    let outage = cell.outage_ms.map_or(0.0, |outage| outage.median);
    cell.runs >= enough(outage, runs) || cell.recovered < cell.runs
}

/// So many of the runs that are asked for are enough where one takes this long, in milliseconds.
fn enough(outage: f64, runs: u32) -> u32 {
    if outage >= LONG.as_secs_f64() * 1e3 { FEW.min(runs) } else { runs }
}

/// The outcomes of a cell.
fn cell(plan: &Drill, runs: u32) -> Result<Vec<Outcome>, Error> {
    let mut outcomes: Vec<Outcome> = Vec::new();
    loop {
        let outcome = attempt(plan)?;
        let outage = outcome.outage_ms.unwrap_or_default();
        let recovered = outcome.recovered;
        outcomes.push(outcome);
        if !recovered || outcomes.len() >= enough(outage, runs) as usize {
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
