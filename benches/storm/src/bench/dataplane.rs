//! A real `spindle-dataplane` with real rings, this process in control's place: what it detects of a storm.
//!
//! Every packet is followed by counters that others keep: the generator's, the veth driver's, XDP's, the socket's, the
//! engine's. What was sent must be what was detected and what was dropped, each drop with its reason.

use super::field::{Bounds, Field, WORKER_CORE};
use crate::send::Sent;
use anyhow::{Context, Result, bail};
use serde::Serialize;
use spindle_abi::{Command, CommandRecord, Event, MAX_FORMER_AT_ONCE, Spi};
use spindle_engine::{Counter, DropReason};
use spindle_ring::{AttachmentFds, ControlSide, Side as AttachmentSide};
use spindle_testbed::{Flood, Side, craft};
use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What became of the storm's packets.
#[derive(Serialize, Clone, Debug, Default)]
pub(crate) struct Detection {
    /// Packets sent.
    pub(crate) sent: u64,
    /// Packets on which an unknown SPI was detected.
    pub(crate) detected: u64,
    /// Of these, packets of which control could not be told.
    pub(crate) noise_lost: u64,
    /// Packets that did not get that far, by reason; no zeroes.
    pub(crate) dropped: BTreeMap<String, u64>,
    /// Detected per second of the storm.
    pub(crate) pps: f64,
}

impl Detection {
    /// Of one storm, from all counters before and after it.
    pub(crate) fn of(sent: &Sent, before: &Counts, after: &Counts) -> Detection {
        let grown = |name: &str| {
            let value = |counts: &Counts| counts.get(name).copied().unwrap_or(0);
            value(after).saturating_sub(value(before))
        };
        let mut dropped = BTreeMap::new();
        let mut add = |name: &str, count: u64| {
            if count > 0 {
                dropped.insert(name.to_owned(), count);
            }
        };
        add("not_redirected", sent.refused_redirect);
        add("veth_ring_full", sent.refused_ring_full);
        for name in after.keys() {
            if name.starts_with("xdp_outside_dropped_")
                || name == "socket_outside_dropped"
                || name == "socket_outside_ring_full"
            {
                add(name, grown(name));
            }
        }
        for reason in DropReason::ALL.iter().filter(|reason| !reason.is_consumed()) {
            add(reason.name(), grown(reason.name()));
        }
        let detected = grown(Counter::UnknownSpiDetected.name());
        Detection {
            sent: sent.sent,
            detected,
            noise_lost: grown(Counter::NoiseLost.name()),
            dropped,
            pps: if sent.sent == 0 { 0.0 } else { detected as f64 / sent.sent as f64 * sent.pps },
        }
    }

    /// Both together; the rate is the first one's.
    pub(crate) fn add(&mut self, other: Detection) {
        self.sent += other.sent;
        self.detected += other.detected;
        self.noise_lost += other.noise_lost;
        for (reason, count) in other.dropped {
            *self.dropped.entry(reason).or_default() += count;
        }
    }

    /// Sent = detected + dropped?
    pub(crate) fn is_exact(&self) -> bool {
        self.sent == self.detected + self.dropped.values().sum::<u64>()
    }
}

/// All counters of a dataplane by name.
pub(crate) type Counts = BTreeMap<String, u64>;

/// A storm on a fresh dataplane.
pub(crate) fn detect(field: &Field, bounds: Bounds) -> Result<Detection> {
    let mut dataplane = Dataplane::start(field, false)?;
    let before = dataplane.counts();
    let (sent, told) = dataplane.drain_during(|| field.storm(bounds))?;
    let after = dataplane.settled()?;
    let detection = Detection::of(&sent, &before, &after);
    if !detection.is_exact() {
        bail!("the storm's packets don't add up: {detection:?}; all counters: {after:?}");
    }
    if detection.detected != told.unknown + detection.noise_lost {
        let events = told.unknown;
        bail!("{events} events came, but the engine tells {detection:?}");
    }
    Ok(detection)
}

/// What became of packets on former SPIs in a storm that the port cannot take.
#[derive(Serialize, Clone, Debug)]
pub(crate) struct FormerTold {
    /// Former SPIs, on each of which one packet was sent.
    pub(crate) sent: u64,
    /// Of these, told to control.
    pub(crate) told: u64,
    /// The storm's packets.
    pub(crate) storm_sent: u64,
    /// Of these, detected.
    pub(crate) storm_detected: u64,
}

/// A storm on a fresh dataplane from the worker's own core, while a packet on each of so many former SPIs comes.
pub(crate) fn former(field: &Field, bounds: Bounds, former: u32, one_socket: bool) -> Result<FormerTold> {
    let mut dataplane = Dataplane::start(field, one_socket)?;
    let spis: Vec<Spi> = (0..former).map(|number| Spi(0x1000_0000 + number)).collect();
    for (sequence, spis) in (1..).zip(spis.chunks(MAX_FORMER_AT_ONCE)) {
        dataplane.order(sequence, &Command::SetFormer { spis: spis.to_vec() })?;
    }
    let before = dataplane.counts();
    let topology = &field.topology;
    let (a, b) = (topology.addresses.gateway_outside(Side::A), topology.addresses.gateway_outside(Side::B));
    let (to, from) = (topology.hardware_address(Side::B)?, topology.hardware_address(Side::A)?);
    let frame = move |number: u64| {
        let esp = craft::esp(0x1000_0000 + number as u32 % former, 1, &[0x5a; 64]);
        craft::ethernet(to, from, 0x0800, &craft::ipv4(a, b, 50, &esp))
    };
    let (sent, told) = dataplane.drain_during(|| {
        let storm = field.begin_storm(bounds, WORKER_CORE)?;
        // Within the storm, from its first tenth on.
        std::thread::sleep(Duration::from_secs_f64(bounds.seconds / 10.0));
        let rate = f64::from(former) / (bounds.seconds * 0.8);
        let flood = Flood::start(topology.delay_box(), &Side::B.box_interface(), rate.ceil() as u32, frame)?;
        while flood.sent() < u64::from(former) {
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(flood);
        storm.finish()
    })?;
    let detection = Detection::of(&sent, &before, &dataplane.settled()?);
    let (storm_sent, storm_detected) = (sent.sent, detection.detected);
    Ok(FormerTold { sent: former.into(), told: told.former.len() as u64, storm_sent, storm_detected })
}

/// What control was told.
#[derive(Default)]
struct Told {
    /// Unknown SPIs, each time.
    unknown: u64,
    /// Former SPIs.
    former: BTreeSet<u32>,
}

/// The process and control's side of its rings; ended if dropped.
struct Dataplane {
    child: Child,
    control: ControlSide,
}

impl Dataplane {
    fn start(field: &Field, one_socket: bool) -> Result<Dataplane> {
        let attachment = AttachmentFds::create(1)?;
        let program = std::env::current_exe()?.with_file_name("spindle-dataplane");
        let mut command = field.topology.gateway(Side::B).command(program);
        command
            .args(["--inside", &Side::B.inside_interface(), "--outside", &Side::B.outside_interface()])
            .args(["--polling", "busy", "--core", &WORKER_CORE.to_string()])
            .args(one_socket.then_some("--one-socket"))
            .stdin(Stdio::null())
            .stdout(std::io::stderr()); // its log
        attachment.give(AttachmentSide::Dataplane, &mut command);
        let control = attachment.control_side()?;
        let child = command.spawn().context("starting spindle-dataplane")?;
        let mut dataplane = Dataplane { child, control };
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            while let Some(record) = dataplane.control.workers[0].urgent.pop()? {
                if record.decode()? == Event::Ready {
                    return Ok(dataplane);
                }
            }
            if let Some(status) = dataplane.child.try_wait()? {
                bail!("spindle-dataplane ended before it was ready: {status}");
            }
            if Instant::now() > deadline {
                bail!("spindle-dataplane was not ready within ten seconds");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn counts(&self) -> Counts {
        self.control.counters.iter().collect()
    }

    /// Has the dataplane carry out a command.
    fn order(&mut self, sequence: u64, command: &Command) -> Result<()> {
        self.control.workers[0]
            .commands
            .push(&CommandRecord::encode(sequence, command).context("a command that no record holds")?)?;
        let deadline = Instant::now() + Duration::from_secs(2);
        while Instant::now() < deadline {
            while let Some(record) = self.control.workers[0].urgent.pop()? {
                if record.decode()? == (Event::Acknowledged { sequence, done: true }) {
                    return Ok(());
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        bail!("the dataplane did not carry out {command:?} within two seconds")
    }

    /// Takes events off the rings while `work` goes on, and then until there are none; what they told.
    fn drain_during<T>(&mut self, work: impl FnOnce() -> Result<T>) -> Result<(T, Told)> {
        let done = AtomicBool::new(false);
        let control = &mut self.control;
        std::thread::scope(|scope| {
            let drain = scope.spawn(|| -> Result<Told> {
                let mut told = Told::default();
                loop {
                    // Read first: what comes after this look is looked for once more.
                    let last = done.load(Ordering::Acquire);
                    let mut wrong = None;
                    let mut count = |record: spindle_abi::EventRecord| match record.decode() {
                        Ok(Event::UnknownSpi(_)) => told.unknown += 1,
                        Ok(Event::FormerSpi(report)) => {
                            told.former.insert(report.spi.0);
                        }
                        Ok(_) => {}
                        Err(error) => wrong = Some(error),
                    };
                    let rings = &mut control.workers[0];
                    let taken =
                        rings.noise.pop_batch(4096, &mut count)? + rings.urgent.pop_batch(64, &mut count)?;
                    if let Some(error) = wrong {
                        return Err(error.into());
                    }
                    if taken == 0 {
                        if last {
                            return Ok(told);
                        }
                        std::thread::sleep(Duration::from_micros(500));
                    }
                }
            });
            let result = work();
            // What is in the socket's ring and the engine now is told within a moment.
            std::thread::sleep(Duration::from_millis(200));
            done.store(true, Ordering::Release);
            let told = drain.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok((result?, told?))
        })
    }

    /// The counters once they no longer change.
    fn settled(&self) -> Result<Counts> {
        let mut before = self.counts();
        for _ in 0..50 {
            std::thread::sleep(Duration::from_millis(100));
            let now = self.counts();
            if now == before {
                return Ok(now);
            }
            before = now;
        }
        bail!("the dataplane's counters do not come to rest")
    }
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(of: &[(&str, u64)]) -> Counts {
        of.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    }

    #[test]
    fn every_packet_is_detected_or_has_a_reason() {
        let sent = Sent {
            sent: 100,
            accepted: 90,
            refused_ring_full: 4,
            refused_redirect: 6,
            pps: 1e6,
            ..Sent::default()
        };
        let before = counts(&[("unknown_spi_detected", 5), ("xdp_outside_dropped_malformed", 1)]);
        let after = counts(&[
            ("unknown_spi_detected", 75),
            ("unknown_spi", 75),
            ("noise_lost", 3),
            ("xdp_outside_dropped_malformed", 11),
            ("xdp_outside_to_background", 80),
            ("socket_outside_dropped", 8),
            ("malformed_esp", 2),
        ]);
        let detection = Detection::of(&sent, &before, &after);
        assert_eq!((detection.detected, detection.noise_lost), (70, 3));
        assert_eq!(detection.dropped.len(), 5);
        assert!(detection.is_exact());
        assert_eq!(detection.pps, 0.7e6);
        let lost = counts(&[("unknown_spi_detected", 74)]);
        assert!(!Detection::of(&sent, &before, &lost).is_exact());
    }
}
