//! Both gateways crash: neither has anything to show to the other, and both may begin.

use super::Played;
use crate::drill::{Drill, Step};
use spindle_testbed::{Crash, Result, SIDES, Side, Stage};

pub(crate) fn crash(drill: &Drill, stage: &mut Stage, step: Step<'_>) -> Result<Played> {
    stage.begin(&SIDES, step)?;
    let killed = [stage.kill(Side::A, step)?, stage.kill(Side::B, step)?];
    let mut started = [0; 2];
    for side in SIDES {
        started[side as usize] = stage.start(side, (killed[1], drill.down), &[], step)?;
    }
    let a = stage.wait_ready(Side::A, killed[0], started[0])?;
    let b = stage.wait_ready(Side::B, killed[1], started[1])?;
    let mut played = Played {
        crashes: [Some(a), Some(b)],
        // Nothing passes before both are ready.
        from: Crash { ready: a.ready.max(b.ready), ..b },
        has_round_trips: false,
        moments: vec![(killed[0], "kill -9 to gateway A's process group"), (a.ready, "gateway A is ready")],
        ..Played::crash_of_b(b, killed[0])
    };
    played.await_recovery(drill, stage, &SIDES, step)?;
    step("watching the IKE SA that is left");
    played.await_calm(stage, drill.calm)?;
    Ok(played)
}
