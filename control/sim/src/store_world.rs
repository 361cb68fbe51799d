//! A world of one disk and one store: power cuts and kills at any write, far denser than in a whole world.

use crate::disk::{Disk, Handle};
use crate::random::{Dice, GatewayRandom};
use spindle_abi::{Spi, Time};
use spindle_ike::api::IkeSpis;
use spindle_recovery::api::{Boot, Generation, JournalRecord, JournalWrite, TokenMethod};
use spindle_recovery::store::{Store, StoreError, write_secrets};
use std::collections::BTreeMap;

/// Seconds since 1970 in this world; no record expires.
const NOW: u64 = 1_700_000_000;

/// What the disk must hold, and may hold: of a commit that was cut off, all or nothing.
#[derive(Default)]
struct Expected {
    durable: BTreeMap<Spi, JournalRecord>,
    perhaps: Option<BTreeMap<Spi, JournalRecord>>,
    before: Option<Boot>,
    /// Generations that are kept by a rotation that was cut off.
    keeping: Option<Vec<[u8; 32]>>,
}

fn of(generations: &[Generation]) -> Vec<[u8; 32]> {
    generations.iter().map(|generation| *generation.secret.0).collect()
}

impl Expected {
    fn check(&mut self, boot: Boot) -> Result<(), String> {
        let found: BTreeMap<Spi, JournalRecord> = boot.former.iter().map(|r| (r.spi, r.clone())).collect();
        if found != self.durable && self.perhaps.take().is_none_or(|perhaps| found != perhaps) {
            return Err(format!("the journal holds {:?}, of {:?}", found.keys(), self.durable.keys()));
        }
        if let Some(before) = &self.before {
            let (found, known) = (of(&boot.secrets), of(&before.secrets));
            let rotated = |keep: Vec<_>| found.len() == keep.len() + 1 && found.ends_with(&keep);
            let secrets = found == known || self.keeping.take().is_some_and(rotated);
            if !secrets || boot.maker_id != before.maker_id || !boot.anchor_matches {
                return Err("tokens cannot be made again".into());
            }
            if boot.incarnation <= before.incarnation {
                return Err(format!("incarnation {} after {}", boot.incarnation, before.incarnation));
            }
        }
        self.durable = found;
        self.perhaps = None;
        self.keeping = None;
        self.before = Some(boot);
        Ok(())
    }
}

fn start(handle: &Handle, dice: &mut Dice) -> Result<(Store, Boot), StoreError> {
    let mut store = Store::open(handle.clone())?;
    let mut random = GatewayRandom(Dice::new(u64::from(dice.number()), 0));
    let booted = store.boot(&mut handle.clone(), &mut random, (NOW, Time(1)), false, TokenMethod::Spis)?;
    Ok((store, booted.boot))
}

fn writes(dice: &mut Dice, incarnation: u64) -> Vec<JournalWrite> {
    let count = 1 + dice.below(20);
    let one = |dice: &mut Dice| {
        let spi = Spi(256 + dice.number() % 64);
        if dice.percent(30) {
            return JournalWrite::Remove(spi);
        }
        let mut ike_spi = || dice.octets(8).try_into().expect("8 octets");
        let parent = IkeSpis { initiator: ike_spi(), responder: ike_spi() };
        JournalWrite::Put(JournalRecord {
            spi,
            parent,
            earlier_parent: None,
            initiator: true,
            connection: "peer".into(),
            child: "net".into(),
            local: "192.0.2.1:500".parse().expect("an address"),
            remote: "192.0.2.2:500".parse().expect("an address"),
            encapsulated: false,
            incarnation,
            hard_expiry: NOW + 1000,
        })
    };
    (0..count).map(|_| one(dice)).collect()
}

/// Plays the store's world of this seed; how often the power went.
pub fn run_store(seed: u64) -> Result<u64, String> {
    let mut dice = Dice::new(seed, 3);
    let mut disk = Disk::default();
    let mut expected = Expected::default();
    let mut cuts = 0;
    for _ in 0..30 {
        let handle = disk.attach();
        if dice.percent(50) {
            disk.light_fuse(dice.below(40) as u64);
        }
        match start(&handle, &mut dice) {
            Ok((mut store, boot)) => {
                let incarnation = boot.incarnation;
                expected.check(boot)?;
                let rotations = dice.one(&[0, 0, 1, 3]);
                for _ in 0..rotations {
                    let known = &mut expected.before.as_mut().expect("it booted").secrets;
                    let keep: Vec<Generation> = known.iter().take(3).cloned().collect();
                    let mut random = GatewayRandom(Dice::new(u64::from(dice.number()), 0));
                    let new = Some((TokenMethod::Spis, NOW));
                    match write_secrets(&mut handle.clone(), &mut random, new, keep.clone()) {
                        Ok(generations) => *known = generations,
                        Err(_) => {
                            expected.keeping = Some(of(&keep));
                            break;
                        }
                    }
                }
                for _ in 0..dice.below(6) {
                    let writes = writes(&mut dice, incarnation);
                    let mut after = expected.durable.clone();
                    for write in &writes {
                        match write {
                            JournalWrite::Put(record) => drop(after.insert(record.spi, record.clone())),
                            JournalWrite::Remove(spi) => drop(after.remove(spi)),
                        }
                    }
                    if store.commit(&writes).is_err() {
                        expected.perhaps = Some(after);
                        break;
                    }
                    expected.durable = after;
                }
                if dice.percent(40) && !disk.is_dark() {
                    disk.kill();
                } else {
                    disk.cut_power(&mut dice);
                    cuts += 1;
                }
            }
            Err(_) if disk.is_dark() => {
                disk.cut_power(&mut dice);
                cuts += 1;
            }
            Err(error) => return Err(format!("the store does not open after {cuts} power cuts: {error}")),
        }
    }
    Ok(cuts)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_store_loses_nothing_committed_in_thousands_of_power_cuts() {
        let mut cuts = 0;
        for seed in 0..200 {
            cuts += super::run_store(seed).unwrap_or_else(|what| panic!("seed {seed}: {what}"));
        }
        assert!(cuts > 2000, "{cuts} power cuts");
    }
}
