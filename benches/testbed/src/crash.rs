//! One crash and its recovery, from a fresh testbed to what was seen: what the demonstration and the tests of
//! recovery are made of.
//!
//! Host A sends a packet each few milliseconds to host B, which has nothing to send; so only the method under test can
//! bring the tunnel back. Whatever must never happen is an error here, in every run: an inside address or a payload
//! marker on the outer wire, an IKE_SA_INIT request from B (unless the method has B initiate), a counter of either gateway
//! that its wire contradicts.

use crate::compare::{Tally, disagreements};
use crate::delay::Link;
use crate::error::{Context, Error, Result};
use crate::event::{WireEvent, wire_events};
use crate::gateway::{Gateway, GatewayEvent};
use crate::method::Method;
use crate::packet::now;
use crate::testbed::{Options, Testbed};
use crate::timeline::{Counts, Crash, Exchange, Recovery, Timeline};
use crate::topology::Side;
use crate::traffic::{Outage, StreamLog};
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
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

/// How long a gateway may take to become ready.
const START_PATIENCE: Duration = Duration::from_secs(10);
/// How long traffic flows before the crash.
const BEFORE: Duration = Duration::from_secs(1);
/// How long it flows on after the recovery, and after both gateways were stopped.
const AFTER: Duration = Duration::from_millis(300);

/// Crashes gateway B once in a testbed of its own, telling each step; copies captures, configurations and logs to
/// `keep`. An error also if something happened that never must.
pub fn crash(plan: &Plan, keep: Option<&Path>, step: &mut dyn FnMut(&str)) -> Result<Run> {
    let settings = plan.method.settings();
    let mut testbed = Testbed::two_gateways(Options {
        link: Link::with_round_trip(plan.round_trip),
        a: settings.clone(),
        b: settings,
        ..Options::default()
    })?;
    let result = crash_in(&mut testbed, plan, step);
    if let Some(folder) = keep {
        keep_files(&testbed, folder)?;
    }
    result
}

fn crash_in(testbed: &mut Testbed, plan: &Plan, step: &mut dyn FnMut(&str)) -> Result<Run> {
    step("starting both gateways");
    testbed.start(START_PATIENCE)?;
    testbed.gateway(Side::A).initiate()?;
    let stream = testbed.stream(Side::A, plan.interval)?;
    if stream.wait_delivery_since(0, Duration::from_secs(5)).is_none() {
        return Err(subject(format!(
            "no packet of host A reached host B through the tunnel within 5 s{}",
            logs(testbed)
        )));
    }
    step("packets flow");
    std::thread::sleep(BEFORE);

    step("killing gateway B's process group");
    let killed = testbed.gateway_mut(Side::B).kill_group()?;
    let down_until = Duration::from_nanos(killed) + plan.down;
    std::thread::sleep(down_until.saturating_sub(Duration::from_nanos(now())));
    step("starting gateway B again");
    let started = testbed.gateway_mut(Side::B).start()?;
    let ready = testbed.gateway_mut(Side::B).wait_ready(START_PATIENCE)?;
    step("waiting for recovery");
    if stream.wait_delivery_since(started, plan.method.patience()).is_none() {
        let (patience, logs) = (plan.method.patience(), logs(testbed));
        let text =
            format!("no packet reached host B within {patience:?} after gateway B was ready again{logs}");
        return Err(subject(text));
    }
    std::thread::sleep(AFTER);
    // Counted when the wire is silent: what is under way has no certain place.
    let log = stream.stop(plan.round_trip + Duration::from_millis(50));
    let events = [testbed.gateway(Side::A).events()?, testbed.gateway(Side::B).events()?];
    let stats = [Account::take(testbed.gateway(Side::A))?, Account::take(testbed.gateway(Side::B))?];
    for (side, events) in [Side::A, Side::B].iter().zip(&events) {
        let file = testbed.gateway(*side).directory().join("events.json");
        let text = serde_json::to_string_pretty(events).unwrap_or_default();
        std::fs::write(&file, text).context(|| format!("writing {}", file.display()))?;
    }
    stop(testbed, plan)?;

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
        return Err(subject(format!("{} leaks on the outer wire; the first: {first}", leaks.len())));
    }
    if testbed.delay().counters().overflowed != 0 {
        return Err(Error::Capture("the delay box's queue overflowed".to_owned()));
    }
    let [wire_a, wire] = [wire_events(&wires.a), wire_events(&wires.b)];
    let mut recovery = Recovery::new(&wire, crash);
    if plan.method.restarted_side_initiates() {
        recovery = recovery.initiated_by_the_gateway();
    }
    let counts = recovery.counts(stats[1].after);
    if counts.ike_sa_init_requests_out != 0 && !plan.method.restarted_side_initiates() {
        let requests = counts.ike_sa_init_requests_out;
        let text = format!("gateway B, which has nothing to send, sent {requests} IKE_SA_INIT requests");
        return Err(subject(text));
    }
    let other = testbed.topology().addresses.gateway_outside(Side::A).into();
    let mut contradictions = stats[0].of_survivor(&wire_a, other);
    contradictions.extend(stats[1].of_restarted(&wire, &crash, &log));
    if !contradictions.is_empty() {
        return Err(subject(format!("a gateway and its wire disagree: {}", contradictions.join("; "))));
    }
    let missing = |what: &str| subject(format!("the capture or the stream holds no {what}"));
    Ok(Run {
        crash,
        outage: log.outage(started).ok_or_else(|| missing("delivery before the crash"))?,
        timeline: recovery.timeline(),
        exchanges: recovery.exchanges(),
        round_trips: recovery.round_trips().ok_or_else(|| missing("ESP packet on a new SA"))?,
        counts,
        events,
    })
}

fn subject(text: String) -> Error {
    Error::Subject(text)
}

/// What a gateway says that it has counted, and between which two moments it said so.
struct Account {
    stats: serde_json::Value,
    before: u64,
    after: u64,
}

impl Account {
    fn take(gateway: &Gateway) -> Result<Account> {
        let before = now();
        let stats = gateway.stats()?;
        Ok(Account { stats, before, after: now() })
    }

    /// Against the wire of a gateway that lived through it all.
    fn of_survivor(&self, wire: &[WireEvent], gateway: IpAddr) -> Vec<String> {
        let tally = |until| Tally::of(wire, gateway, 0..=until);
        self.against("A", tally(self.before), tally(self.after))
    }

    /// Against the wire and the deliveries since a gateway was started again. Nobody knows which of the packets that
    /// came before it was ready found a socket already.
    fn of_restarted(&self, wire: &[WireEvent], crash: &Crash, log: &StreamLog) -> Vec<String> {
        let former: BTreeSet<u32> =
            wire.iter().filter(|event| event.at < crash.started).filter_map(WireEvent::esp).collect();
        let on_new = wire.iter().filter(|event| {
            event.destination == Some(crash.gateway) && event.esp().is_some_and(|spi| !former.contains(&spi))
        });
        let on_new = on_new.filter(|event| (crash.started..=self.before).contains(&event.at)).count();
        let delivered = log.deliveries.iter().filter(|delivery| delivery.received >= crash.started).count();
        let tally = |since, until| {
            let tally = Tally::of(wire, crash.gateway, since..=until);
            tally.with("dataplane/decapsulated", on_new).with("dataplane/delivered_inside", delivered)
        };
        self.against("B", tally(crash.ready, self.before), tally(crash.started, self.after))
    }

    fn against(&self, name: &str, at_least: Tally, at_most: Tally) -> Vec<String> {
        // A probe is an INFORMATIONAL request, but such a request need not be a probe on a hint.
        let probes = "control/probes-started+probes-sent-again";
        let requests = at_most.count("control/informational_requests_sent") as usize;
        let found = disagreements(&at_least.with(probes, 0), &at_most.with(probes, requests), &self.stats);
        found.into_iter().map(|text| format!("{name}: {text}")).collect()
    }
}

/// Stops both gateways while host A sends, since nothing may pass in clear then either.
fn stop(testbed: &mut Testbed, plan: &Plan) -> Result<()> {
    let stream = testbed.stream(Side::A, plan.interval)?;
    for side in [Side::A, Side::B] {
        testbed.gateway_mut(side).stop()?;
    }
    std::thread::sleep(AFTER);
    stream.stop(plan.round_trip + Duration::from_millis(20));
    Ok(())
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
    std::fs::create_dir_all(folder).context(|| format!("making {}", folder.display()))?;
    let keep = |from: &Path, name: &str| -> Result<()> {
        if from.exists() {
            std::fs::copy(from, folder.join(name)).context(|| format!("keeping {name}"))?;
        }
        Ok(())
    };
    for side in [Side::A, Side::B] {
        let (gateway, letter): (&Gateway, char) = (testbed.gateway(side), side.letter());
        let capture = format!("outer-{letter}.pcap");
        keep(&testbed.directory().join(&capture), &capture)?;
        keep(&gateway.config(), &format!("{letter}.toml"))?;
        keep(&gateway.directory().join("log"), &format!("{letter}.log"))?;
        keep(&gateway.directory().join("events.json"), &format!("{letter}.events.json"))?;
    }
    Ok(())
}
