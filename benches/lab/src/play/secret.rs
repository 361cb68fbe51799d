//! Crashes of B whose QCD secret has changed since its peer got its token.

use super::Played;
use crate::drill::{Drill, Step};
use spindle_testbed::{Error, Result, Side, Stage};

/// The file is gone; the operator says `--new-secret`. No token that B makes now is one that A holds.
pub(crate) fn lost(drill: &Drill, stage: &mut Stage, step: Step<'_>) -> Result<Played> {
    stage.begin(&[Side::A], step)?;
    let killed = stage.kill(Side::B, step)?;
    let secret = stage.testbed().gateway(Side::B).directory().join("state/qcd-secret");
    std::fs::remove_file(&secret)
        .map_err(|error| Error::Subject(format!("{} cannot be removed: {error}", secret.display())))?;
    let started = stage.start(Side::B, (killed, drill.down), &["--new-secret"], step)?;
    let crash = stage.wait_ready(Side::B, killed, started)?;
    let mut played = Played::crash_of_b(crash, killed);
    played.await_recovery(drill, stage, &[Side::A], step)?;
    Ok(played)
}

/// Two generations later B can still make the token that A holds.
pub(crate) fn rotated(drill: &Drill, stage: &mut Stage, step: Step<'_>) -> Result<Played> {
    stage.begin(&[Side::A], step)?;
    for _ in 0..2 {
        step("rotating gateway B's secret");
        stage.testbed().gateway(Side::B).spindle("rotate-secret")?;
    }
    let killed = stage.kill(Side::B, step)?;
    let crash = stage.restart(Side::B, (killed, drill.down), step)?;
    let mut played = Played::crash_of_b(crash, killed);
    played.await_recovery(drill, stage, &[Side::A], step)?;
    Ok(played)
}
