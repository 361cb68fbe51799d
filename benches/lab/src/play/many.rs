//! A crash of B, with which A has very many IKE SAs; packets flow on one of them.

use super::Played;
use crate::drill::{Drill, Step};
use spindle_testbed::{Result, SIDES, Side, Stage, now};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How often the gateways are asked how many SAs they have.
const EACH: Duration = Duration::from_millis(500);

pub(crate) fn crash(drill: &Drill, stage: &mut Stage, step: Step<'_>) -> Result<Played> {
    let began = now();
    stage.begin(&[Side::A], step)?;
    step("waiting for all IKE SAs");
    if until(drill, || Ok(enough(drill, stage)?.then_some(())))?.is_none() {
        return Err(stage.subject(&format!("not all of {} IKE SAs were made", drill.ike_sas)));
    }
    let made = now();
    step(&format!("made in {:.1} s", (made - began) as f64 / 1e9));
    let mut traffic: BTreeSet<u64> = with_traffic(stage)?.into_iter().collect();
    let killed = stage.kill(Side::B, step)?;
    let crash = stage.restart(Side::B, (killed, drill.down), step)?;
    let mut played = Played {
        moments: vec![(began, "the first start"), (made, "all IKE SAs are made")],
        ..Played::crash_of_b(crash, killed)
    };
    step("waiting for recovery");
    if stage.wait_delivery(Side::A, crash.started, drill.patience).is_none() {
        played.failure = Some(format!("no packet arrived within {} s", drill.patience.as_secs()));
        return Ok(played);
    }
    traffic.extend(with_traffic(stage)?);
    played.traffic = traffic;
    step("waiting for all IKE SAs again");
    match until(drill, || all_stand(drill, stage))? {
        Some(back) => played.back = back,
        None => {
            let [a, b] = stage.ike_sas()?.map(|sas| sas.len());
            let patience = drill.patience.as_secs();
            played.failure =
                Some(format!("of {} IKE SAs A has {a} and B {b} after {patience} s", drill.ike_sas));
        }
    }
    Ok(played)
}

/// A's IKE SAs on which packets flow, by the initiator's SPI.
fn with_traffic(stage: &Stage) -> Result<Vec<u64>> {
    let list = stage.testbed().gateway(Side::A).json("list-sas --connection ab")?;
    let all = list.as_array().map_or(&[][..], Vec::as_slice);
    Ok(all.iter().filter_map(|ike| u64::from_str_radix(ike["ike_spi_i"].as_str()?, 16).ok()).collect())
}

/// Looks again and again; `None` if what is looked for isn't there in time.
fn until<T>(drill: &Drill, look: impl Fn() -> Result<Option<T>>) -> Result<Option<T>> {
    let deadline = Instant::now() + drill.patience;
    loop {
        let found = look()?;
        if found.is_some() || Instant::now() > deadline {
            return Ok(found);
        }
        std::thread::sleep(EACH);
    }
}

/// Do both gateways hold as many IKE SAs as there are to be, and as many Child SAs? Counted, not listed: a list of very many
/// costs both gateways seconds.
fn enough(drill: &Drill, stage: &Stage) -> Result<bool> {
    let wanted = u64::from(drill.ike_sas);
    for side in SIDES {
        let status = stage.testbed().gateway(side).json("status")?;
        if status["ike_sas"] != wanted || status["child_sas"] != wanted {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The initiators' SPIs if both gateways hold the same IKE SAs, as many as there are to be, with a Child SA each.
fn all_stand(drill: &Drill, stage: &Stage) -> Result<Option<BTreeSet<u64>>> {
    if !enough(drill, stage)? {
        return Ok(None);
    }
    let [mut a, mut b] = stage.ike_sas()?;
    a.sort();
    b.sort();
    let same = a == b && a.len() as u64 == u64::from(drill.ike_sas);
    let initiator = |spis: &str| u64::from_str_radix(spis.get(..16)?, 16).ok();
    let all = || a.iter().filter_map(|(spis, _)| initiator(spis)).collect();
    Ok((same && a.iter().all(|(_, children)| *children == 1)).then(all))
}
