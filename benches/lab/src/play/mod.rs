//! The plays: what is done to the gateways in each scenario, and what must be known of it to judge what was seen.

pub(crate) mod both;
pub(crate) mod crash;
pub(crate) mod link;
pub(crate) mod lost;
pub(crate) mod many;
pub(crate) mod nat;
pub(crate) mod secret;
pub(crate) mod standby;
pub(crate) mod take_down;
pub(crate) mod twice;

use crate::drill::{Drill, Step};
use crate::watch::Awaited;
use spindle_testbed::{Crash, Error, Result, Side, Stage};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

/// What was played. Times are CLOCK_REALTIME in nanoseconds.
#[derive(Clone, Debug)]
pub(crate) struct Played {
    /// Each gateway's last crash, A's and B's.
    pub(crate) crashes: [Option<Crash>; 2],
    /// What recovery is measured from: B's last crash. Where nobody crashed, loss in the place of death.
    pub(crate) from: Crash,
    /// Whose packets' outage counts.
    pub(crate) sender: Side,
    /// When the first thing happened.
    pub(crate) began: u64,
    /// Can round trips be counted from `from`, by the rule for crashes?
    pub(crate) has_round_trips: bool,
    /// Within which exchange B was killed.
    pub(crate) within: Option<Awaited>,
    /// When that exchange began to be waited for.
    pub(crate) watched: u64,
    /// From when to when no token may be in clear on B's wire, for the IKE SA is alive.
    pub(crate) silent: Vec<(u64, u64)>,
    /// Where many IKE SAs were lost: those of after, by the initiator's SPI.
    pub(crate) back: BTreeSet<u64>,
    /// And by the same of the connection with traffic, before and after: round trips are its own.
    pub(crate) traffic: BTreeSet<u64>,
    /// More moments for the timeline.
    pub(crate) moments: Vec<(u64, &'static str)>,
    /// Why it is no recovery.
    pub(crate) failure: Option<String>,
}

/// How long the gateways may take to agree on a single IKE SA when packets pass again.
const AGREEMENT: Duration = Duration::from_secs(15);

impl Played {
    /// B crashed, A lived on and sends.
    fn crash_of_b(crash: Crash, began: u64) -> Played {
        Played {
            crashes: [None, Some(crash)],
            from: crash,
            sender: Side::A,
            began,
            has_round_trips: true,
            within: None,
            watched: began,
            silent: Vec::new(),
            back: BTreeSet::new(),
            traffic: BTreeSet::new(),
            moments: Vec::new(),
            failure: None,
        }
    }

    /// Nobody crashed: `gateway` was not itself between two times, and recovery is measured from the second one.
    fn without_crash(drill: &Drill, gateway: IpAddr, (began, ended): (u64, u64)) -> Played {
        let round_trip = drill.round_trip;
        let from = Crash { gateway, killed: began, started: ended, ready: ended, round_trip };
        Played { crashes: [None, None], has_round_trips: false, ..Played::crash_of_b(from, began) }
    }

    /// Nobody has lost anything: the IKE SAs are those of before.
    fn demand_same(&mut self, stage: &Stage, before: &[Vec<(String, usize)>; 2]) -> Result<()> {
        let after = stage.ike_sas()?;
        if self.failure.is_none() && *before != after {
            self.failure = Some(format!("the IKE SA of before is gone: {before:?}, then {after:?}"));
        }
        Ok(())
    }

    /// Waits until packets of these hosts pass, and both gateways hold the same single IKE SA with one Child SA.
    fn await_recovery(
        &mut self,
        drill: &Drill,
        stage: &Stage,
        senders: &[Side],
        step: Step<'_>,
    ) -> Result<()> {
        step("waiting for recovery");
        for &from in senders {
            if stage.wait_delivery(from, self.from.started, drill.patience).is_none() {
                let host = from.letter().to_ascii_uppercase();
                let patience = drill.patience.as_secs();
                self.failure = Some(format!("no packet of host {host} arrived within {patience} s"));
                return Ok(());
            }
        }
        if stage.wait_agreed(AGREEMENT)?.is_none() {
            let [a, b] = stage.ike_sas()?;
            self.failure = Some(format!("not the same single IKE SA: A has {a:?}, B {b:?}"));
        }
        Ok(())
    }

    /// Watches both gateways for a while: they keep the IKE SA that they have.
    fn await_calm(&mut self, stage: &Stage, lasting: Duration) -> Result<()> {
        const EACH: Duration = Duration::from_millis(500);
        let first = stage.ike_sas()?;
        let mut watched = Duration::ZERO;
        while self.failure.is_none() && watched < lasting {
            std::thread::sleep(EACH);
            watched += EACH;
            let now = stage.ike_sas()?;
            if now != first {
                self.failure = Some(format!("the IKE SAs did not stay: {first:?}, then {now:?}"));
            }
        }
        Ok(())
    }
}

/// The SPIs of the IKE SA that A has, and the one on which A sends ESP.
fn living_spis(stage: &Stage) -> Result<((u64, u64), u32)> {
    let list = stage.testbed().gateway(Side::A).json("list-sas")?;
    let spi = |value: &serde_json::Value| u64::from_str_radix(value.as_str().unwrap_or_default(), 16);
    let (ike, child) = (&list[0], &list[0]["children"][0]);
    match (spi(&ike["ike_spi_i"]), spi(&ike["ike_spi_r"]), spi(&child["spi_o"])) {
        (Ok(initiator), Ok(responder), Ok(outbound)) => Ok(((initiator, responder), outbound as u32)),
        _ => Err(Error::Subject(format!("gateway A lists no SPIs: {list}"))),
    }
}
