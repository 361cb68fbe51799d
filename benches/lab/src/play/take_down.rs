//! Planned take-downs: the gateway tells its peers before it goes.

use super::Played;
use crate::drill::{Drill, Step};
use spindle_testbed::{Error, Result, Side, Stage, now};

/// B tells A by a Delete and is switched off; as soon as it is back A's traffic brings the tunnel up again. Nothing is left
/// to be recovered, so there is nothing to show a token for.
pub(crate) fn and_back(drill: &Drill, stage: &mut Stage, step: Step<'_>) -> Result<Played> {
    stage.begin(&[Side::A], step)?;
    step("taking gateway B down");
    let began = now();
    let report = stage.testbed().gateway(Side::B).json("take-down --timeout 10")?;
    let told = ["peers", "redirected", "deleted"].map(|count| report[count].as_u64());
    if told != [Some(1), Some(0), Some(1)] {
        return Err(Error::Subject(format!("gateway B did not take leave of its only peer: {report}")));
    }
    let killed = stage.kill(Side::B, step)?;
    let crash = stage.restart(Side::B, (killed, drill.down), step)?;
    let mut played = Played {
        // A has no SA to send on, so no ESP begins a round trip.
        has_round_trips: drill.method.restarted_side_initiates(),
        moments: vec![(began, "`spindle take-down` of gateway B")],
        ..Played::crash_of_b(crash, began)
    };
    played.await_recovery(drill, stage, &[Side::A], step)?;
    Ok(played)
}
