//! Who is drilled: Spindle by one of its methods, or a pair of strongSwan's gateways, which have liveness and
//! INITIAL_CONTACT alone.

use crate::Scenario;
use clap::ValueEnum;
use clap::builder::PossibleValue;
use spindle_testbed::{Method, Strongswan};
use std::fmt;
use std::sync::LazyLock;

/// Two gateways of one make, and how the peer of a crashed one learns of the crash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Contender {
    /// Spindle, by this method.
    Spindle(Method),
    /// strongSwan, with this configuration.
    Strongswan(Strongswan),
}

/// Spindle's methods first.
static ALL: LazyLock<Vec<Contender>> = LazyLock::new(|| {
    let spindle = Method::ALL.into_iter().map(Contender::Spindle);
    spindle.chain(Strongswan::ALL.into_iter().map(Contender::Strongswan)).collect()
});

impl Contender {
    /// All of them.
    pub fn all() -> &'static [Contender] {
        &ALL
    }

    /// Spindle's method, of Spindle.
    pub fn method(self) -> Option<Method> {
        match self {
            Contender::Spindle(method) => Some(method),
            Contender::Strongswan(_) => None,
        }
    }

    /// Does a scenario say anything about it? About strongSwan's pair only a plain crash is asked.
    pub fn meets(self, scenario: Scenario) -> bool {
        match self {
            Contender::Spindle(method) => scenario.is_about(method),
            Contender::Strongswan(_) => scenario == Scenario::Crash,
        }
    }

    /// Does the restarted gateway initiate?
    pub fn restarted_side_initiates(self) -> bool {
        match self {
            Contender::Spindle(method) => method.restarted_side_initiates(),
            Contender::Strongswan(strongswan) => strongswan.restarted_side_initiates(),
        }
    }
}

impl From<Method> for Contender {
    fn from(method: Method) -> Contender {
        Contender::Spindle(method)
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Contender::Spindle(method) => method.fmt(f),
            Contender::Strongswan(strongswan) => strongswan.fmt(f),
        }
    }
}

/// By their names.
impl ValueEnum for Contender {
    fn value_variants<'a>() -> &'a [Contender] {
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        match self {
            Contender::Spindle(method) => method.to_possible_value(),
            Contender::Strongswan(strongswan) => strongswan.to_possible_value(),
        }
    }
}
