//! One scenario, once: a testbed of its own, the play, and what came of it.

use crate::contender::Contender;
use crate::outcome::Outcome;
use crate::scenario::Scenario;
use spindle_testbed::{Result, Settings, Side, Stage};
use std::path::PathBuf;
use std::time::Duration;

/// Is told each step.
pub type Step<'a> = &'a mut dyn FnMut(&str);

/// A gateway that is not back after this long has never recovered.
pub const NEVER: Duration = Duration::from_secs(600);

/// What is drilled.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Drill {
    /// What happens.
    pub scenario: Scenario,
    /// Who plays it, and how the peer learns of it.
    pub method: Contender,
    /// Round-trip time between the gateways.
    pub round_trip: Duration,
    /// How long a killed gateway stays down.
    pub down: Duration,
    /// Time between two packets of a host.
    pub interval: Duration,
    /// IKE SAs between the gateways, where there are many.
    pub ike_sas: u32,
    /// How long what is left is watched, where two might be.
    pub calm: Duration,
    /// After this long without a packet the gateway counts as not recovered.
    pub patience: Duration,
    /// Where captures, configurations and logs are kept, if anywhere.
    pub keep: Option<PathBuf>,
}

impl Drill {
    /// With a packet each 10 ms, half a second down, 20 ms between the gateways and ten minutes' patience; 300 IKE SAs where
    /// there are many.
    pub fn new(scenario: Scenario, method: impl Into<Contender>) -> Drill {
        Drill {
            scenario,
            method: method.into(),
            round_trip: Duration::from_millis(20),
            down: Duration::from_millis(500),
            interval: Duration::from_millis(10),
            ike_sas: 300,
            calm: Duration::from_secs(10),
            patience: NEVER,
            keep: None,
        }
    }
}

/// Drills. A gateway that does not come back is an outcome.
///
/// # Errors
/// If the machine can't, or if something happened that never must: a leak, a counter that contradicts the wire, a kill that
/// missed the exchange that it was meant for.
pub fn drill(drill: &Drill, step: Step<'_>) -> Result<Outcome> {
    let mut settings = match drill.method {
        Contender::Spindle(method) => drill.scenario.settings(method),
        Contender::Strongswan(_) => Settings::default(),
    };
    if drill.scenario == Scenario::Many {
        settings.idle_connections = drill.ike_sas.saturating_sub(1);
    }
    let mut stage = drill.scenario.stage([settings.clone(), settings.clone()], drill)?;
    if drill.scenario.is_uncounted() {
        stage = stage.uncounted();
    }
    if let Contender::Strongswan(strongswan) = drill.method {
        stage = stage.of_strongswan(strongswan, &settings)?;
    } else if drill.scenario.has_strongswan() {
        stage = stage.beside_strongswan(&settings);
    }
    let result = on(drill, &mut stage, step);
    if let Some(folder) = &drill.keep {
        stage.keep_files(folder)?;
    }
    result
}

fn on(drill: &Drill, stage: &mut Stage, step: Step<'_>) -> Result<Outcome> {
    let played = drill.scenario.play(drill, stage, step)?;
    let ike_sas = match played.back.len() {
        0 => stage.ike_sas()?.map(|sas| sas.len()),
        // Listed already, and the same at both gateways.
        many => [many; 2],
    };
    let addresses = [stage.address(Side::A), stage.address(Side::B)];
    let ends = stage.ends();
    let seen = stage.end(played.crashes)?;
    Outcome::of(drill, played, seen, (addresses, &ends), ike_sas)
}
