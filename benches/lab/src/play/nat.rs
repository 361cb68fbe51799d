//! A NAT before gateway A that forgets its mapping, and maps A to another address and port.

use super::Played;
use crate::drill::{Drill, Step};
use spindle_testbed::{Crash, Result, SIDES, Side, Stage, now};
use std::time::Duration;

/// B's journal has an address at which nobody is any more.
pub(crate) fn moves_in_a_crash(drill: &Drill, stage: &mut Stage, step: Step<'_>) -> Result<Played> {
    stage.begin(&[Side::A], step)?;
    let killed = stage.kill(Side::B, step)?;
    step("the NAT maps gateway A elsewhere");
    let moved = now();
    stage.testbed().topology().move_mapping()?;
    let crash = stage.restart(Side::B, (killed, drill.down), step)?;
    let moments = vec![(moved, "the NAT maps gateway A elsewhere")];
    let mut played = Played { moments, ..Played::crash_of_b(crash, killed) };
    played.await_recovery(drill, stage, &[Side::A], step)?;
    Ok(played)
}

/// RFC 7296 section 2.23: B follows A by A's authenticated messages. Nobody has lost anything.
pub(crate) fn moves(drill: &Drill, stage: &mut Stage, step: Step<'_>) -> Result<Played> {
    stage.begin(&SIDES, step)?;
    let before = stage.ike_sas()?;
    step("the NAT maps gateway A elsewhere");
    let began = now();
    stage.testbed().topology().move_mapping()?;
    let ended = now();
    let nobody = Played::without_crash(drill, stage.address(Side::B), (began, ended));
    // What was on its way already is no sign of the new mapping.
    let later = ended + drill.round_trip.as_nanos() as u64 + 20_000_000;
    let mut played = Played {
        moments: vec![(began, "the NAT maps gateway A elsewhere")],
        from: Crash { started: later, ..nobody.from },
        // A's packets pass as before, and make the mapping; B sends to where A was.
        sender: Side::B,
        ..nobody
    };
    played.await_recovery(drill, stage, &SIDES, step)?;
    played.await_calm(stage, Duration::from_secs(3))?;
    played.demand_same(stage, &before)?;
    Ok(played)
}
