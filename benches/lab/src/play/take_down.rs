//! Planned take-downs: the gateway tells its peers before it goes.

use super::Played;
use crate::drill::{Drill, Step};
use spindle_testbed::{Error, Member, Result, Side, Stage, now};
use std::time::Duration;

/// B tells A by a Delete and is switched off; as soon as it is back A's traffic brings the tunnel up again. Nothing is left
/// to be recovered, so there is nothing to show a token for.
pub(crate) fn and_back(drill: &Drill, stage: &mut Stage, step: Step<'_>) -> Result<Played> {
    stage.begin(&[Side::A], step)?;
    step("taking gateway B down");
    let began = now();
    take_leave(stage, "take-down --timeout 10", 0)?;
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

/// B sends A to another gateway, make before break: not a packet is lost, and B can be stopped.
pub(crate) fn and_elsewhere(drill: &Drill, stage: &mut Stage, step: Step<'_>) -> Result<Played> {
    stage.begin(&[Side::A], step)?;
    let other = stage.testbed().topology().addresses.member_outside(Member::Second);
    step("taking gateway B down, and its peer to the other one");
    let began = now();
    take_leave(stage, &format!("take-down --to {other} --timeout 20"), 1)?;
    let gone = now();
    stage.go_on_with_other()?;
    let mut played = Played {
        silent: vec![(began, gone)],
        moments: vec![
            (began, "`spindle take-down --to` of gateway B"),
            (gone, "gateway B has no IKE SA left, and is stopped"),
        ],
        ..Played::without_crash(drill, other.into(), (began, gone))
    };
    played.await_recovery(drill, stage, &[Side::A], step)?;
    played.await_calm(stage, Duration::from_secs(1))?;
    Ok(played)
}

/// B takes leave of its only peer, by a redirect before the Delete or without one.
fn take_leave(stage: &Stage, command: &str, redirected: u64) -> Result<()> {
    let report = stage.testbed().gateway(Side::B).json(command)?;
    let told = ["peers", "redirected", "deleted"].map(|count| report[count].as_u64());
    if told != [Some(1), Some(redirected), Some(1)] {
        return Err(Error::Subject(format!("gateway B did not take leave of its only peer: {report}")));
    }
    Ok(())
}
