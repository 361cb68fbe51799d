//! One crash of B: plain, or within an exchange that A has begun.

use super::Played;
use crate::drill::{Drill, Step};
use crate::watch::{Awaited, Watch};
use spindle_testbed::{Result, Side, Stage, now, number};
use std::time::Duration;

pub(crate) fn once(drill: &Drill, stage: &mut Stage, step: Step<'_>) -> Result<Played> {
    stage.begin(&[Side::A], step)?;
    let killed = stage.kill(Side::B, step)?;
    let crash = stage.restart(Side::B, (killed, drill.down), step)?;
    let mut played = Played::crash_of_b(crash, killed);
    played.await_recovery(drill, stage, &[Side::A], step)?;
    Ok(played)
}

/// B has answered A's CREATE_CHILD_SA request, and dies before the answer arrives: it holds an SA that A does not.
pub(crate) fn in_rekey(drill: &Drill, stage: &mut Stage, rekey: &str, step: Step<'_>) -> Result<Played> {
    stage.begin(&[Side::A], step)?;
    let within = Awaited { exchanges: &[number::CREATE_CHILD_SA], response: true };
    let watched = now();
    let watch = Watch::begin(stage.testbed(), within);
    step("gateway A begins a rekey");
    let _rekey = stage.testbed().gateway(Side::A).begin(rekey)?;
    let answered = watch.wait(Duration::from_secs(10))?;
    let killed = stage.kill(Side::B, step)?;
    watch.end(stage.testbed());
    let crash = stage.restart(Side::B, (killed, drill.down), step)?;
    let mut played = Played {
        within: Some(within),
        watched,
        moments: vec![(answered, "the answer to A's rekey is lost")],
        ..Played::crash_of_b(crash, killed)
    };
    played.await_recovery(drill, stage, &[Side::A], step)?;
    Ok(played)
}
