//! Trouble on the way between the gateways: loss in one direction, forgers, a storm.

use super::{Played, living_spis};
use crate::drill::{Drill, Step};
use spindle_testbed::{
    Error, Flood, Result, SIDES, Side, Stage, Verdict, absorb_answers, craft, now, number, programs, storm,
};
use std::process::{Child, Stdio};
use std::time::Duration;

/// How long packets of A are lost: less than the most impatient liveness check waits for its last answer.
const LOSS: Duration = Duration::from_secs(1);
/// Forged notifications a second while they are.
const FEW: u32 = 50;
/// Forged notifications a second in a storm.
const MANY: u32 = 10_000;

/// Packets on unknown SPIs that a gateway must have detected since its start, if there was a storm.
const LEAST_DETECTED: u64 = 1_000;

/// Nobody has lost anything, whatever is forged meanwhile: the IKE SA of before is the IKE SA of after.
pub(crate) fn one_way_loss(drill: &Drill, stage: &mut Stage, step: Step<'_>) -> Result<Played> {
    stage.begin(&SIDES, step)?;
    let before = stage.ike_sas()?;
    step("losing what A sends, and forging notifications to it");
    let began = now();
    stage.testbed().delay().set_filter(Some(Box::new(|from, _| match from {
        Side::A => Verdict::Drop,
        Side::B => Verdict::Pass,
    })));
    let forged = forge(stage, FEW)?;
    std::thread::sleep(LOSS);
    drop(forged);
    stage.testbed().delay().set_filter(None);
    let ended = now();
    let mut played = Played::without_crash(drill, stage.address(Side::B), (began, ended));
    played.await_recovery(drill, stage, &SIDES, step)?;
    played.await_calm(stage, Duration::from_secs(3))?;
    played.demand_same(stage, &before)?;
    Ok(played)
}

/// B crashes while its port is stormed at its full rate, and A is told in clear all the time that B has lost everything.
pub(crate) fn in_storm(drill: &Drill, stage: &mut Stage, step: Step<'_>) -> Result<Played> {
    stage.begin(&[Side::A], step)?;
    step("the storm begins");
    let forged = forge(stage, MANY)?;
    let unknown = Unknown::begin(stage)?;
    std::thread::sleep(Duration::from_millis(500));
    let killed = stage.kill(Side::B, step)?;
    let crash = stage.restart(Side::B, (killed, drill.down), step)?;
    let mut played = Played::crash_of_b(crash, killed);
    played.await_recovery(drill, stage, &[Side::A], step)?;
    let sent = forged.sent();
    let stats = stage.testbed().gateway(Side::B).json("stats")?;
    drop((forged, unknown));
    let least = u64::from(MANY) / 2 * (now() - killed) / 1_000_000_000;
    if sent < least {
        return Err(Error::Subject(format!("only {sent} notifications were forged, not even {least}")));
    }
    let detected = stats["dataplane"]["unknown_spi_detected"].as_u64().unwrap_or(0);
    if detected < LEAST_DETECTED {
        return Err(Error::Subject(format!("only {detected} packets on unknown SPIs came to B's next life")));
    }
    step("the storm is over");
    std::thread::sleep(Duration::from_millis(500));
    Ok(played)
}

/// Notifications in clear from B's address that name A's living SAs, the worst that somebody who reads all can make:
/// INVALID_IKE_SPI and INVALID_SPI in turn, each with a token that is none.
fn forge(stage: &Stage, per_second: u32) -> Result<Flood> {
    let testbed = stage.testbed();
    let (ike, outbound) = living_spis(stage)?;
    let addresses = testbed.topology().addresses;
    let [a, b] = SIDES.map(|side| addresses.gateway_outside(side));
    let mac = testbed.topology().hardware_address(Side::A)?;
    testbed.flood(Side::A, per_second, move |number| {
        let token = craft::notify(0, number::QCD_TOKEN, &[number as u8; 32]);
        let message = if number % 2 == 0 {
            let unknown = craft::notify(41, number::INVALID_IKE_SPI, &[]);
            let payloads = [unknown, token].concat();
            craft::ike(ike, 41, number::INFORMATIONAL, 0x20, 0, &payloads)
        } else {
            let unknown = craft::notify(41, number::INVALID_SPI, &outbound.to_be_bytes());
            craft::ike((0, 0), 41, number::INFORMATIONAL, 0x08, 0, &[unknown, token].concat())
        };
        let packet = craft::ipv4(b, a, 17, &craft::udp(500, 500, &message));
        craft::ethernet(mac, [4; 6], 0x0800, &packet)
    })
}

/// `spindle-storm` beside us: ESP on unknown SPIs to gateway B; ended when dropped.
struct Unknown(Child);

impl Unknown {
    fn begin(stage: &Stage) -> Result<Unknown> {
        let program = programs()?.join("spindle-storm");
        let topology = stage.testbed().topology();
        absorb_answers(topology, Side::B)?;
        let mut command = storm(topology, Side::B, &program)?;
        // As fast as the port takes them.
        command.args(["--seconds", "600"]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let missing = |error| {
            Error::Machine(format!(
                "{} does not start: {error}; build it with `cargo build --workspace --bins`",
                program.display()
            ))
        };
        Ok(Unknown(child.map_err(missing)?))
    }
}

impl Drop for Unknown {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
