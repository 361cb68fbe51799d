//! The scenarios by name: what each is, which methods it is about, and which play it is.

use crate::drill::{Drill, Step};
use crate::play::{Played, both, crash, link, lost, many, nat, secret, standby, take_down, twice};
use spindle_testbed::{Method, Result, Settings, Stage, number};
use std::fmt;
use std::time::Duration;

/// Descriptors of AF_XDP rings where hosts send a packet each 10 ms.
pub(crate) const FEW_PACKETS: u32 = 256;

/// A way in which gateways lose each other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, clap::ValueEnum)]
pub enum Scenario {
    /// B is killed and started again.
    Crash,
    /// While B is down its secret is lost.
    SecretLost,
    /// B's secret was rotated twice before the crash.
    SecretRotated,
    /// Both gateways are killed and started again.
    BothCrash,
    /// B is killed again as its peer begins the recovery.
    CrashTwice,
    /// B is killed again within the recovery's IKE_AUTH.
    CrashInAuth,
    /// B is killed while it answers A's rekey of the Child SA.
    CrashInChildRekey,
    /// B is killed while it answers A's rekey of the IKE SA.
    CrashInIkeRekey,
    /// B is killed again while it answers a ticket.
    CrashInResumption,
    /// Nobody crashes; B loses a Child SA, and its IKE SA lives.
    ChildLost,
    /// Nobody crashes; B loses the IKE SA with its Child SA.
    IkeLost,
    /// Nobody crashes; what A sends is lost for a while, and forged notifications come.
    OneWayLoss,
    /// B is killed beside strongSwan.
    NoQcdPeer,
    /// B is killed in a storm of unknown SPIs and forged notifications.
    Storm,
    /// B is taken down as planned, and started again.
    TakeDown,
    /// B is taken down as planned, and sends its peer to another gateway.
    TakeDownRedirect,
    /// B's machine dies, and another gateway takes its address over.
    HotStandby,
    /// B is killed and started again, its peer behind a NAT.
    BehindNat,
    /// The same, and meanwhile the NAT has mapped the peer elsewhere.
    NatMoved,
    /// Nobody crashes; the NAT maps the peer elsewhere.
    NatRebinds,
    /// B is killed while it has very many IKE SAs with A.
    Many,
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Scenario {
    /// All of them, the simplest first.
    pub const ALL: [Scenario; 21] = [
        Scenario::Crash,
        Scenario::SecretLost,
        Scenario::SecretRotated,
        Scenario::BothCrash,
        Scenario::CrashTwice,
        Scenario::CrashInAuth,
        Scenario::CrashInChildRekey,
        Scenario::CrashInIkeRekey,
        Scenario::CrashInResumption,
        Scenario::ChildLost,
        Scenario::IkeLost,
        Scenario::OneWayLoss,
        Scenario::NoQcdPeer,
        Scenario::Storm,
        Scenario::TakeDown,
        Scenario::TakeDownRedirect,
        Scenario::HotStandby,
        Scenario::BehindNat,
        Scenario::NatMoved,
        Scenario::NatRebinds,
        Scenario::Many,
    ];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Scenario::Crash => "crash",
            Scenario::SecretLost => "secret-lost",
            Scenario::SecretRotated => "secret-rotated",
            Scenario::BothCrash => "both-crash",
            Scenario::CrashTwice => "crash-twice",
            Scenario::CrashInAuth => "crash-in-auth",
            Scenario::CrashInChildRekey => "crash-in-child-rekey",
            Scenario::CrashInIkeRekey => "crash-in-ike-rekey",
            Scenario::CrashInResumption => "crash-in-resumption",
            Scenario::ChildLost => "child-lost",
            Scenario::IkeLost => "ike-lost",
            Scenario::OneWayLoss => "one-way-loss",
            Scenario::NoQcdPeer => "no-qcd-peer",
            Scenario::Storm => "storm",
            Scenario::TakeDown => "take-down",
            Scenario::TakeDownRedirect => "take-down-redirect",
            Scenario::HotStandby => "hot-standby",
            Scenario::BehindNat => "behind-nat",
            Scenario::NatMoved => "nat-moved",
            Scenario::NatRebinds => "nat-rebinds",
            Scenario::Many => "many",
        }
    }

    /// In a sentence.
    pub fn description(self) -> &'static str {
        match self {
            Scenario::Crash => "B is killed and started again",
            Scenario::SecretLost => {
                "B's secret is lost while it is down, and `--new-secret` makes another: impatient liveness is what remains"
            }
            Scenario::SecretRotated => "B's secret is rotated twice before the crash: every token stays good",
            Scenario::BothCrash => {
                "both are killed and started again, both hosts send: one IKE SA, and no flapping"
            }
            Scenario::CrashTwice => "B is killed again when the first request of the recovery is under way",
            Scenario::CrashInAuth => "B is killed again within the recovery's IKE_AUTH, whose answer is lost",
            Scenario::CrashInChildRekey => "B is killed within A's rekey of the Child SA; the answer is lost",
            Scenario::CrashInIkeRekey => "B is killed within A's rekey of the IKE SA; the answer is lost",
            Scenario::CrashInResumption => {
                "B is killed again when it has taken A's ticket; the answer is lost"
            }
            Scenario::ChildLost => {
                "no crash: B loses a Child SA (`spindle forget`), and its IKE SA lives: it is the same afterwards"
            }
            Scenario::IkeLost => {
                "no crash: B loses the IKE SA with its Child SA; what the journal says of them is none of a former life"
            }
            Scenario::OneWayLoss => {
                "no crash: what A sends is lost for 1 s, and forged notifications say that B lost its SAs"
            }
            Scenario::NoQcdPeer => {
                "B's peer is strongSwan, which knows no tokens; it is set as impatient as liveness is here"
            }
            Scenario::Storm => {
                "B is killed while unknown SPIs come to it, and 10,000 forged notifications a second to A"
            }
            Scenario::TakeDown => {
                "B is taken down as planned: its peer is told by a Delete; then B is started again"
            }
            Scenario::TakeDownRedirect => {
                "B is taken down as planned: it redirects its peer to another gateway, and is stopped"
            }
            Scenario::HotStandby => {
                "B's machine dies, keepalived gives its addresses to a standby with the same secret; forgers ask about what lives"
            }
            Scenario::BehindNat => "B is killed and started again, and A is behind a NAT",
            Scenario::NatMoved => {
                "B is killed, and meanwhile the NAT maps A to another address and port: what B's journal has is stale"
            }
            Scenario::NatRebinds => {
                "no crash: the NAT maps A to another address and port, both hosts send; the IKE SA stays"
            }
            Scenario::Many => {
                "B is killed while it has very many IKE SAs with A (`--ike-sas`), which keeps them up; packets flow on one"
            }
        }
    }

    /// Whether it says anything about a method.
    pub fn is_about(self, method: Method) -> bool {
        match self {
            Scenario::SecretLost | Scenario::SecretRotated => method.shows_tokens(),
            Scenario::CrashInResumption => method == Method::QcdResumption,
            // Who is there all the time initiates nothing by itself.
            Scenario::IkeLost => method != Method::InitialContact,
            Scenario::NoQcdPeer => {
                matches!(method, Method::Liveness | Method::InitialContact | Method::QcdJournal)
            }
            // Nothing is lost that a token or SIR could tell of.
            Scenario::TakeDown => matches!(method, Method::InitialContact | Method::QcdJournal),
            // Nor here, and nobody starts.
            Scenario::TakeDownRedirect => method == Method::QcdJournal,
            // A standby has no journal of what the other one held, and no ticket of its making; nor may it send
            // INITIAL_CONTACT (RFC 7296 section 2.4).
            Scenario::HotStandby => matches!(method, Method::Liveness | Method::Qcd | Method::Sir),
            // Nobody can initiate to where a NAT has no mapping any more, nor tell it unasked.
            Scenario::NatMoved => !matches!(method, Method::InitialContact | Method::Proactive),
            // It says nothing of crashes; what brings B's way back is A's liveness check.
            Scenario::NatRebinds => method == Method::Liveness,
            _ => true,
        }
    }

    /// Is it a crash of B alone of which each method tells, so that what a method promises holds?
    pub(crate) fn is_promised(self) -> bool {
        match self {
            Scenario::Crash
            | Scenario::SecretRotated
            | Scenario::CrashTwice
            | Scenario::CrashInAuth
            | Scenario::CrashInChildRekey
            | Scenario::CrashInIkeRekey
            | Scenario::CrashInResumption
            | Scenario::Storm
            | Scenario::HotStandby
            | Scenario::BehindNat
            | Scenario::NatMoved
            | Scenario::Many => true,
            Scenario::SecretLost
            | Scenario::BothCrash
            | Scenario::ChildLost
            | Scenario::IkeLost
            | Scenario::OneWayLoss
            | Scenario::NoQcdPeer
            | Scenario::TakeDown
            | Scenario::TakeDownRedirect
            | Scenario::NatRebinds => false,
        }
    }

    /// The method that is drilled where none is named.
    pub fn usual_method(self) -> Method {
        match self {
            Scenario::CrashInResumption => Method::QcdResumption,
            Scenario::HotStandby => Method::Qcd,
            Scenario::NatRebinds => Method::Liveness,
            _ => Method::QcdJournal,
        }
    }

    /// Both gateways' configuration.
    pub(crate) fn settings(self, method: Method) -> Settings {
        // Few packets pass, and memory that a start need not take is not a part of recovery.
        let ring_size = (!self.needs_the_machine()).then_some(FEW_PACKETS);
        let settings = Settings { ring_size, ..method.settings() };
        match self {
            Scenario::SecretLost => {
                Settings { dpd_delay: Method::SHORT_DELAY, retransmit: Method::SHORT, ..settings }
            }
            // Or all that A did would be probing.
            Scenario::Many => Settings { dpd_delay: Duration::from_secs(10), ..settings },
            _ => settings,
        }
    }

    /// Is strongSwan in gateway A's place?
    pub(crate) fn has_strongswan(self) -> bool {
        self == Scenario::NoQcdPeer
    }

    /// Does it load the machine, so that nothing else may be measured beside it?
    pub(crate) fn needs_the_machine(self) -> bool {
        matches!(self, Scenario::Storm | Scenario::Many)
    }

    /// Makes the stage for it, both gateways with these settings.
    pub(crate) fn stage(self, settings: [Settings; 2], drill: &Drill) -> Result<Stage> {
        let stage = match self {
            Scenario::HotStandby => Stage::with_standby,
            Scenario::TakeDownRedirect => Stage::with_other,
            Scenario::BehindNat | Scenario::NatMoved | Scenario::NatRebinds => Stage::behind_nat,
            _ => Stage::new,
        };
        stage(settings, drill.round_trip, drill.interval)
    }

    /// Does it send a gateway what no capture shows, so that counters cannot be held against the wire?
    pub(crate) fn is_uncounted(self) -> bool {
        self == Scenario::Storm
    }

    /// Plays it.
    pub(crate) fn play(self, drill: &Drill, stage: &mut Stage, step: Step<'_>) -> Result<Played> {
        match self {
            Scenario::Crash | Scenario::NoQcdPeer => crash::once(drill, stage, step),
            Scenario::SecretLost => secret::lost(drill, stage, step),
            Scenario::SecretRotated => secret::rotated(drill, stage, step),
            Scenario::BothCrash => both::crash(drill, stage, step),
            Scenario::CrashTwice => twice::as_recovery_begins(drill, stage, step),
            Scenario::CrashInAuth => twice::in_exchange(drill, stage, number::IKE_AUTH, step),
            Scenario::CrashInChildRekey => crash::in_rekey(drill, stage, "rekey --child ab/net", step),
            Scenario::CrashInIkeRekey => crash::in_rekey(drill, stage, "rekey --ike ab", step),
            Scenario::CrashInResumption => twice::in_exchange(drill, stage, number::IKE_SESSION_RESUME, step),
            Scenario::ChildLost => lost::child(drill, stage, step),
            Scenario::IkeLost => lost::ike(drill, stage, step),
            Scenario::OneWayLoss => link::one_way_loss(drill, stage, step),
            Scenario::Storm => link::in_storm(drill, stage, step),
            Scenario::TakeDown => take_down::and_back(drill, stage, step),
            Scenario::TakeDownRedirect => take_down::and_elsewhere(drill, stage, step),
            Scenario::HotStandby => standby::takes_over(drill, stage, step),
            Scenario::BehindNat => crash::once(drill, stage, step),
            Scenario::NatMoved => nat::moves_in_a_crash(drill, stage, step),
            Scenario::NatRebinds => nat::moves(drill, stage, step),
            Scenario::Many => many::crash(drill, stage, step),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spindle_sim::Script;
    use std::path::Path;

    /// Where a scenario's simulation is, if it is no script of the simulated world: that has one connection.
    fn elsewhere(scenario: Scenario) -> Option<(&'static str, &'static str)> {
        match scenario {
            Scenario::Many => Some((
                "control/recovery/tests/many.rs",
                "of_very_many_ike_sas_the_one_with_packets_is_back_first_and_each_is_back_once",
            )),
            _ => None,
        }
    }

    /// A file's test functions: name and body.
    fn tests_of(file: &str) -> impl Iterator<Item = (&str, &str)> {
        file.split("\n#[test]\nfn ").skip(1).filter_map(|rest| {
            let (name, rest) = rest.split_once("() {\n")?;
            Some((name, rest.split_once("\n}\n")?.0))
        })
    }

    #[test]
    fn every_scenario_is_simulated_and_drilled_with_real_gateways() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let text = |file: &str| std::fs::read_to_string(root.join(file)).expect(file);
        let (drills, simulations) =
            (text("benches/lab/tests/net_lab.rs"), text("control/sim/tests/scripts.rs"));
        for scenario in Scenario::ALL {
            let variant = format!("{scenario:?}");
            let names = |rest: &str| {
                rest.strip_prefix(variant.as_str())
                    .is_some_and(|rest| !rest.starts_with(char::is_alphanumeric))
            };
            assert!(drills.split("Scenario::").skip(1).any(names), "{scenario}: no drill in a test");
            let script = Script::ALL.into_iter().find(|script| script.name() == scenario.name());
            match (script, elsewhere(scenario)) {
                (Some(script), None) => {
                    let played = format!("play(Script::{script:?},");
                    let plays = |(_, body): (&str, &str)| body.contains(&played);
                    assert!(tests_of(&simulations).any(plays), "{scenario}: no test plays its script");
                }
                (None, Some((file, test))) => {
                    let is_it = |(name, _): (&str, &str)| name == test;
                    assert!(tests_of(&text(file)).any(is_it), "{scenario}: no test {test} in {file}");
                }
                _ => panic!("{scenario} has no simulation, or two"),
            }
        }
    }
}
