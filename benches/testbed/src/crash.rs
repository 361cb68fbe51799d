//! One crash and its recovery, from a fresh testbed to what was seen: what the demonstration and the tests of
//! recovery are made of.
//!
//! Host A sends a packet each few milliseconds to host B, which has nothing to send; so only the method under test can
//! bring the tunnel back. Whatever must never happen is an error here, in every run: what [`Stage::end`] names, and an
//! IKE_SA_INIT request from B (unless the method has B initiate).

use crate::error::{Error, Result};
use crate::gateway::GatewayEvent;
use crate::method::Method;
use crate::stage::{Seen, Stage};
use crate::timeline::{Counts, Crash, Exchange, Recovery, Timeline};
use crate::topology::Side;
use crate::traffic::Outage;
use std::fmt;
use std::path::Path;
use std::time::Duration;

/// What a run is about.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How A learns of the crash.
    pub method: Method,
    /// Round-trip time between the gateways.
    pub round_trip: Duration,
    /// How long B stays down.
    pub down: Duration,
    /// Time between two packets of the stream.
    pub interval: Duration,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rtt, down) = (self.round_trip.as_millis(), self.down.as_millis());
        write!(f, "{}, RTT {rtt} ms, B down for {down} ms", self.method)
    }
}

impl Plan {
    /// A folder's name for what is kept of a run.
    pub fn folder(&self, number: u32) -> String {
        format!("{}-rtt{}-down{}-{number}", self.method, self.round_trip.as_millis(), self.down.as_millis())
    }
}

/// What was seen. Times are CLOCK_REALTIME in nanoseconds.
#[derive(Clone, Debug)]
pub struct Run {
    /// When B was killed, started and ready.
    pub crash: Crash,
    /// The gap in the stream.
    pub outage: Outage,
    /// What the capture on B's outer interface shows.
    pub timeline: Timeline,
    /// Requests and the answers that they caused, in the same capture.
    pub exchanges: Vec<Exchange>,
    /// By the rule of [`Recovery::round_trips`].
    pub round_trips: usize,
    /// Messages in the same capture since B was started again.
    pub counts: Counts,
    /// What the gateways reported, A's and B's.
    pub events: [Vec<GatewayEvent>; 2],
}

impl Run {
    /// Nanoseconds from the start of B's new life until it said that it was ready.
    pub fn start_to_ready(&self) -> u64 {
        self.crash.ready.saturating_sub(self.crash.started)
    }

    /// Nanoseconds from ready to the first packet delivered.
    pub fn ready_to_recovered(&self) -> u64 {
        self.outage.first_after.received.saturating_sub(self.crash.ready)
    }
}

/// Crashes gateway B once in a testbed of its own, telling each step; copies captures, configurations and logs to
/// `keep`. An error also if something happened that never must.
pub fn crash(plan: &Plan, keep: Option<&Path>, step: &mut dyn FnMut(&str)) -> Result<Run> {
    let settings = plan.method.settings();
    let mut stage = Stage::new([settings.clone(), settings], plan.round_trip, plan.interval)?;
    let result = crash_on(&mut stage, plan, step);
    if let Some(folder) = keep {
        stage.keep_files(folder)?;
    }
    result
}

fn crash_on(stage: &mut Stage, plan: &Plan, step: &mut dyn FnMut(&str)) -> Result<Run> {
    stage.begin(&[Side::A], step)?;
    let killed = stage.kill(Side::B, step)?;
    let crash = stage.restart(Side::B, (killed, plan.down), step)?;
    step("waiting for recovery");
    let patience = plan.method.patience();
    if stage.wait_delivery(Side::A, crash.started, patience).is_none() {
        let what = format!("no packet reached host B within {patience:?} after gateway B was ready again");
        return Err(stage.subject(&what));
    }
    let seen = stage.end([None, Some(crash)])?;
    let run = Run::of(plan.method, crash, seen)?;
    let requests = run.counts.ike_sa_init_requests_out;
    if requests != 0 && !plan.method.restarted_side_initiates() {
        let text = format!("gateway B, which has nothing to send, sent {requests} IKE_SA_INIT requests");
        return Err(Error::Subject(text));
    }
    Ok(run)
}

impl Run {
    /// From what was seen of a crash of B, while A lived on and sent. An error if B did not come back.
    pub fn of(method: Method, crash: Crash, seen: Seen) -> Result<Run> {
        let mut recovery = Recovery::new(&seen.wires[1], crash);
        if method.restarted_side_initiates() {
            recovery = recovery.initiated_by_the_gateway();
        }
        let missing = |what: &str| Error::Subject(format!("the capture or the stream holds no {what}"));
        Ok(Run {
            crash,
            outage: seen.logs[0].outage(crash.started).ok_or_else(|| missing("delivery before the crash"))?,
            timeline: recovery.timeline(),
            exchanges: recovery.exchanges(),
            round_trips: recovery.round_trips().ok_or_else(|| missing("ESP packet on a new SA"))?,
            counts: recovery.counts(seen.counted_until[1]),
            events: seen.events,
        })
    }
}
