//! Two crashes of B, the second one before the recovery from the first has ended.

use super::Played;
use crate::drill::{Drill, Step};
use crate::watch::{Awaited, Watch};
use spindle_testbed::{Result, Side, Stage, number};

/// The recovery's first request is under way, whoever sends it.
pub(crate) fn as_recovery_begins(drill: &Drill, stage: &mut Stage, step: Step<'_>) -> Result<Played> {
    let first = Awaited { exchanges: &[number::IKE_SA_INIT, number::IKE_SESSION_RESUME], response: false };
    twice(drill, stage, first, "the recovery's first request is lost", step)
}

/// The answer in one of the recovery's exchanges is under way.
pub(crate) fn in_exchange(drill: &Drill, stage: &mut Stage, exchange: u8, step: Step<'_>) -> Result<Played> {
    let (exchanges, what): (&[u8], _) = match exchange {
        number::IKE_SESSION_RESUME => (&[number::IKE_SESSION_RESUME], "the answer to A's ticket is lost"),
        _ => (&[number::IKE_AUTH], "the answer of the recovery's IKE_AUTH is lost"),
    };
    twice(drill, stage, Awaited { exchanges, response: true }, what, step)
}

fn twice(
    drill: &Drill,
    stage: &mut Stage,
    within: Awaited,
    what: &'static str,
    step: Step<'_>,
) -> Result<Played> {
    stage.begin(&[Side::A], step)?;
    let first = stage.kill(Side::B, step)?;
    let watch = Watch::begin(stage.testbed(), within);
    let started = stage.start(Side::B, (first, drill.down), &[], step)?;
    let lost = watch.wait(drill.patience)?;
    let second = stage.kill(Side::B, step)?;
    watch.end(stage.testbed());
    let crash = stage.restart(Side::B, (second, drill.down), step)?;
    let mut played = Played {
        within: Some(within),
        moments: vec![
            (first, "kill -9 to gateway B's process group, the first one"),
            (started, "gateway B is started for the second time"),
            (lost, what),
        ],
        ..Played::crash_of_b(crash, first)
    };
    played.await_recovery(drill, stage, &[Side::A], step)?;
    Ok(played)
}
