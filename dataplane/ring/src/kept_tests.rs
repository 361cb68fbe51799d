//! Records that stand, after a writer that died at any of its stores.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn record(key: u64, length: usize, fill: u8) -> (KeptKey, Vec<u8>) {
    ([2, key], (0..length).map(|i| fill ^ (i as u8)).collect())
}

fn write(kept: &mut Kept, records: &[(KeptKey, Vec<u8>)]) -> Result<(), Full> {
    kept.write(&records.iter().map(|(key, octets)| (*key, Some(&octets[..]))).collect::<Vec<_>>())
}

/// What the next process finds.
fn found(fd: &KeptFd) -> BTreeMap<KeptKey, Vec<u8>> {
    let (_, records) = fd.open().unwrap();
    records.into_iter().map(|(key, octets)| (key, octets.to_vec())).collect()
}

#[test]
fn records_come_back_as_they_were_and_what_is_void_is_wiped() {
    let fd = KeptFd::create(16).unwrap();
    let (mut kept, records) = fd.open().unwrap();
    assert!(records.is_empty() && kept.is_empty());
    let first = [record(1, 1, 3), record(2, PAYLOAD, 4), record(3, 3 * PAYLOAD + 17, 5)];
    write(&mut kept, &first).unwrap();
    assert_eq!(found(&fd), BTreeMap::from(first.clone()));
    let second = record(3, 40, 6);
    kept.write(&[(first[0].0, None), (second.0, Some(&second.1))]).unwrap();
    assert_eq!(found(&fd), BTreeMap::from([first[1].clone(), second.clone()]));
    kept.clear();
    assert!(found(&fd).is_empty() && kept.is_empty());
    let used = (0..kept.high).flat_map(|block| kept.block(block));
    assert!(used.map(|word| word.load(Ordering::Relaxed)).all(|word| word == 0), "secrets are left");
}

#[test]
fn what_finds_no_room_is_void_and_never_an_earlier_copy() {
    let fd = KeptFd::create(1).unwrap();
    let (mut kept, _) = fd.open().unwrap();
    let blocks = kept.blocks;
    write(&mut kept, &[record(1, 100, 1), record(2, (blocks - 3) * PAYLOAD, 2)]).unwrap();
    assert_eq!(write(&mut kept, &[record(1, 3 * PAYLOAD, 9)]), Err(Full));
    assert_eq!(found(&fd).into_keys().collect::<Vec<_>>(), [[2, 2]]);
    kept.write(&[([2, 2], None)]).unwrap();
    write(&mut kept, &[record(1, 3 * PAYLOAD, 9)]).unwrap();
    assert_eq!(found(&fd), BTreeMap::from([record(1, 3 * PAYLOAD, 9)]));
}

/// A damaged block costs its record, and no other one.
#[test]
fn damage_is_noticed() {
    let fd = KeptFd::create(16).unwrap();
    let (mut kept, _) = fd.open().unwrap();
    write(&mut kept, &[record(1, 2 * PAYLOAD, 1), record(2, 10, 2)]).unwrap();
    let place = kept.places[&[2, 1]][1];
    kept.block(place)[HEAD + 3].fetch_xor(1 << 17, Ordering::Relaxed);
    assert_eq!(found(&fd), BTreeMap::from([record(2, 10, 2)]));
}

/// The words of a region, as a process that was killed left them.
fn image(kept: &Kept) -> Vec<u64> {
    kept.words.iter().map(|word| word.load(Ordering::Relaxed)).collect()
}

/// A region with these words.
fn region(words: &[u64]) -> KeptFd {
    let fd = KeptFd::create(16).unwrap();
    let mapping = Mapping::new(&fd.0, words.len() * 8, true).unwrap();
    mapping.iter().zip(words).for_each(|(word, value)| word.store(*value, Ordering::Relaxed));
    fd
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    /// Killed at any store: the change is there as a whole, or not at all. The stores of a write are those words that
    /// differ, copies before the commit and wiping after it; each side in any order.
    #[test]
    fn a_kill_at_any_store_leaves_all_or_nothing(
        steps in proptest::collection::vec(
            proptest::collection::vec((0u64..5, 0usize..1500, any::<u8>()), 1..4), 1..6),
        cut in 0.0..1.0f64,
        backwards: bool,
    ) {
        let fd = KeptFd::create(16).unwrap();
        let (mut kept, _) = fd.open().unwrap();
        let mut model = BTreeMap::new();
        for step in steps {
            let (before, was) = (image(&kept), model.clone());
            let mut changes: BTreeMap<KeptKey, Option<Vec<u8>>> = BTreeMap::new();
            for (key, length, fill) in step {
                changes.insert([2, key], (length > 0).then(|| record(key, length, fill).1));
            }
            let places = kept.places.clone();
            kept.write(&changes.iter().map(|(k, v)| (*k, v.as_deref())).collect::<Vec<_>>()).unwrap();
            for (key, value) in changes {
                match value {
                    Some(octets) => drop(model.insert(key, octets)),
                    None => drop(model.remove(&key)),
                }
            }
            let after = image(&kept);
            let old: Vec<usize> = places.into_values().flatten().collect();
            let block_of = |word: usize| word.checked_sub(HEADER_WORDS).map(|at| at / BLOCK);
            // Blocks of void copies are written and wiped again: an image cannot show them; the old ones are wiped.
            let changed: Vec<usize> = (0..after.len()).filter(|i| after[*i] != before[*i] && *i != COMMITTED).collect();
            let (mut wiped, mut written): (Vec<usize>, Vec<usize>) =
                changed.into_iter().partition(|i| block_of(*i).is_some_and(|block| old.contains(&block)));
            if backwards {
                wiped.reverse();
                written.reverse();
            }
            // The mark of what was ever used comes before the blocks beyond it.
            written.sort_by_key(|i| *i != HIGH);
            let mut words = before.clone();
            let uncommitted = (written.len() as f64 * cut) as usize;
            written[..uncommitted].iter().for_each(|i| words[*i] = after[*i]);
            prop_assert_eq!(&found(&region(&words)), &was);
            written.iter().for_each(|i| words[*i] = after[*i]);
            words[COMMITTED] = after[COMMITTED];
            let is_void = was.keys().any(|key| !model.contains_key(key));
            wiped[..(wiped.len() as f64 * cut) as usize].iter().for_each(|i| words[*i] = after[*i]);
            if !is_void {
                prop_assert_eq!(found(&region(&words)), model.clone());
            }
            prop_assert_eq!(found(&fd), model.clone());
        }
    }
}
