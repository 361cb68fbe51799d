//! One crash: from a fresh testbed to what was seen of the recovery.

use crate::method::Method;
use crate::progress::Progress;
use anyhow::{Context, Result, bail, ensure};
use spindle_testbed::{
    Crash, Gateway, GatewayEvent, Link, Options, Outage, Recovery, Side, Stream, Testbed, Timeline,
    wire_events,
};
use std::fmt;
use std::path::Path;
use std::time::Duration;

/// What a run is about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) method: Method,
    pub(crate) round_trip: Duration,
    pub(crate) down: Duration,
    pub(crate) interval: Duration,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rtt, down) = (self.round_trip.as_millis(), self.down.as_millis());
        write!(f, "{}, RTT {rtt} ms, B down for {down} ms", self.method)
    }
}

impl Plan {
    /// A folder's name for what is kept of a run.
    pub(crate) fn folder(&self, number: u32) -> String {
        format!("{}-rtt{}-down{}-{number}", self.method, self.round_trip.as_millis(), self.down.as_millis())
    }
}

/// What was seen. Times are CLOCK_REALTIME in nanoseconds.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) crash: Crash,
    pub(crate) outage: Outage,
    pub(crate) timeline: Timeline,
    pub(crate) round_trips: usize,
    pub(crate) events: [Vec<GatewayEvent>; 2],
}

impl Run {
    /// Nanoseconds from the start of B's new life until it said that it was ready.
    pub(crate) fn start_to_ready(&self) -> u64 {
        self.crash.ready.saturating_sub(self.crash.started)
    }

    /// Nanoseconds from ready to the first packet delivered.
    pub(crate) fn ready_to_recovered(&self) -> u64 {
        self.outage.first_after.received.saturating_sub(self.crash.ready)
    }
}

/// How long a gateway may take to become ready.
const START_PATIENCE: Duration = Duration::from_secs(10);
/// How long traffic flows before the crash.
const BEFORE: Duration = Duration::from_secs(1);
/// How long it flows on after the recovery, and after both gateways were stopped.
const AFTER: Duration = Duration::from_millis(300);

/// Crashes gateway B once.
pub(crate) fn crash(plan: &Plan, keep: Option<&Path>, progress: &Progress) -> Result<Run> {
    let settings = plan.method.settings();
    let mut testbed = Testbed::two_gateways(Options {
        link: Link::with_round_trip(plan.round_trip),
        a: settings.clone(),
        b: settings,
        ..Options::default()
    })?;
    let result = crash_in(&mut testbed, plan, progress);
    if let Some(folder) = keep {
        keep_files(&testbed, folder)?;
    }
    result
}

fn crash_in(testbed: &mut Testbed, plan: &Plan, progress: &Progress) -> Result<Run> {
    progress.step("starting both gateways");
    testbed.start(START_PATIENCE)?;
    testbed.gateway(Side::A).initiate().context("bringing up the tunnel from gateway A")?;
    let stream = testbed.stream(Side::A, plan.interval)?;
    if stream.wait_delivery_since(0, Duration::from_secs(5)).is_none() {
        bail!("no packet of host A reached host B through the tunnel within 5 s{}", logs(testbed));
    }
    progress.step("packets flow");
    std::thread::sleep(BEFORE);

    progress.step("killing gateway B's process group");
    let killed = testbed.gateway_mut(Side::B).kill_group()?;
    let down_until = Duration::from_nanos(killed) + plan.down;
    std::thread::sleep(down_until.saturating_sub(Duration::from_nanos(spindle_testbed::now())));
    progress.step("starting gateway B again");
    let started = testbed.gateway_mut(Side::B).start()?;
    let ready = testbed.gateway_mut(Side::B).wait_ready(START_PATIENCE)?;
    progress.step("waiting for recovery");
    if stream.wait_delivery_since(started, plan.method.patience()).is_none() {
        bail!(
            "no packet reached host B within {:?} after gateway B was ready again{}",
            plan.method.patience(),
            logs(testbed)
        );
    }
    std::thread::sleep(AFTER);
    let events = [testbed.gateway(Side::A).events()?, testbed.gateway(Side::B).events()?];
    let stats = testbed.gateway(Side::B).stats()?;
    let counted = spindle_testbed::now();
    let log = stop(testbed, stream, plan)?;

    let crash = Crash {
        gateway: testbed.topology().addresses.gateway_outside(Side::B).into(),
        killed,
        started,
        ready,
        round_trip: plan.round_trip,
    };
    let wires = testbed.finish()?;
    let leaks = testbed.leaks(&wires);
    if let Some(first) = leaks.first() {
        bail!("{} leaks on the outer wire; the first: {first}", leaks.len());
    }
    ensure!(testbed.delay().counters().overflowed == 0, "the delay box's queue overflowed");
    let wire = wire_events(&wires.b);
    let recovery = Recovery::new(&wire, crash);
    let counts = recovery.counts(counted);
    ensure!(
        counts.ike_sa_init_requests_out == 0,
        "gateway B, which has nothing to send, sent {} IKE_SA_INIT requests",
        counts.ike_sa_init_requests_out
    );
    let disagreements = spindle_testbed::disagreements(&counts, &stats);
    ensure!(disagreements.is_empty(), "gateway B and its wire disagree: {}", disagreements.join("; "));
    Ok(Run {
        crash,
        outage: log.outage(started).context("no delivery before the crash")?,
        timeline: recovery.timeline(),
        round_trips: recovery.round_trips().context("the capture holds no ESP packet on a new SA")?,
        events,
    })
}

/// Stops both gateways while host A still sends, since nothing may pass in clear then either.
fn stop(testbed: &mut Testbed, stream: Stream, plan: &Plan) -> Result<spindle_testbed::StreamLog> {
    for side in [Side::A, Side::B] {
        testbed.gateway_mut(side).stop()?;
    }
    std::thread::sleep(AFTER);
    Ok(stream.stop(plan.round_trip + Duration::from_millis(20)))
}

fn logs(testbed: &Testbed) -> String {
    let log = |side: Side| {
        let text = testbed.gateway(side).log();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    };
    format!("\ngateway A's log ends:\n{}\ngateway B's log ends:\n{}", log(Side::A), log(Side::B))
}

fn keep_files(testbed: &Testbed, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let keep = |from: &Path, name: &str| -> Result<()> {
        if from.exists() {
            std::fs::copy(from, folder.join(name)).with_context(|| format!("keeping {name}"))?;
        }
        Ok(())
    };
    for side in [Side::A, Side::B] {
        let (gateway, letter): (&Gateway, char) = (testbed.gateway(side), side.letter());
        let capture = format!("outer-{letter}.pcap");
        keep(&testbed.directory().join(&capture), &capture)?;
        keep(&gateway.config(), &format!("{letter}.toml"))?;
        keep(&gateway.directory().join("log"), &format!("{letter}.log"))?;
    }
    Ok(())
}
