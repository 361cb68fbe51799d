//! B loses an SA without a crash: as by a fault, on the operator's word, and A is not told.

use super::Played;
use crate::drill::{Drill, Step};
use spindle_testbed::{Result, Side, Stage, now};

/// One Child SA: its IKE SA lives, and is the same afterwards.
pub(crate) fn child(drill: &Drill, stage: &mut Stage, step: Step<'_>) -> Result<Played> {
    // No answer in clear is asked for, so there is no chain of them to count.
    forget(drill, stage, "forget ab/net", true, step)
}

/// The IKE SA, with its Child SA.
pub(crate) fn ike(drill: &Drill, stage: &mut Stage, step: Step<'_>) -> Result<Played> {
    forget(drill, stage, "forget ab", false, step)
}

fn forget(
    drill: &Drill,
    stage: &mut Stage,
    command: &str,
    ike_sa_stays: bool,
    step: Step<'_>,
) -> Result<Played> {
    stage.begin(&[Side::A], step)?;
    let before = stage.ike_sas()?;
    step("gateway B loses it");
    let began = now();
    stage.testbed().gateway(Side::B).spindle(command)?;
    let lost = now();
    let mut played = Played {
        has_round_trips: !ike_sa_stays,
        moments: vec![(lost, "gateway B has lost it")],
        ..Played::without_crash(drill, stage.address(Side::B), (began, lost))
    };
    played.await_recovery(drill, stage, &[Side::A], step)?;
    let after = stage.ike_sas()?;
    let spis = |sas: &[Vec<(String, usize)>; 2]| {
        sas.clone().map(|sas| sas.into_iter().map(|(spis, _)| spis).collect::<Vec<_>>())
    };
    if played.failure.is_none() && (spis(&before) == spis(&after)) != ike_sa_stays {
        let what = if ike_sa_stays { "did not stay" } else { "was not made anew" };
        played.failure = Some(format!("the IKE SA {what}: {before:?}, then {after:?}"));
    }
    Ok(played)
}
