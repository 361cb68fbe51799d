//! The state on disk through starts, refusals, copies and power cuts.

mod common;

use common::{Disk, Seeded};
use spindle_abi::{Spi, Time};
use spindle_ike::api::IkeSpis;
use spindle_recovery::api::{Generation, JournalRecord, JournalWrite, TokenMethod};
use spindle_recovery::secrets::decode_secrets;
use spindle_recovery::store::{AnchorVerdict, Booted, SmallFile, Store, StoreError, write_secrets};

const NOW: (u64, Time) = (1_000_000, Time(5));

fn boot(disk: &Disk, random: &mut Seeded) -> Result<(Store, Booted), StoreError> {
    boot_as(disk, random, false)
}

fn boot_as(disk: &Disk, random: &mut Seeded, new_secret: bool) -> Result<(Store, Booted), StoreError> {
    let mut store = Store::open(disk.clone())?;
    let booted = store.boot(&mut disk.clone(), random, NOW, new_secret, TokenMethod::Spis)?;
    Ok((store, booted))
}

fn record(spi: u32, hard_expiry: u64) -> JournalRecord {
    JournalRecord {
        spi: Spi(spi),
        parent: IkeSpis { initiator: u64::from(spi).to_be_bytes(), responder: [7; 8] },
        earlier_parent: None,
        initiator: true,
        child: "net".into(),
        connection: "site".into(),
        local: "192.0.2.1:500".parse().unwrap(),
        remote: "192.0.2.2:500".parse().unwrap(),
        encapsulated: false,
        incarnation: 1,
        hard_expiry,
    }
}

fn of(generations: &[Generation]) -> Vec<[u8; 32]> {
    generations.iter().map(|generation| *generation.secret.0).collect()
}

fn secrets(booted: &Booted) -> Vec<[u8; 32]> {
    of(&booted.boot.secrets)
}

/// RFC 6290 section 1.1 and 5.1: the same secret after every restart.
#[test]
fn an_incarnation_counts_up_and_keeps_the_secret() {
    let (disk, mut random) = (Disk::default(), Seeded::new(1));
    let (store, first) = boot(&disk, &mut random).unwrap();
    drop(store);
    let (store, second) = boot(&disk, &mut random).unwrap();
    drop(store);
    assert_eq!((first.anchor, second.anchor), (AnchorVerdict::Fresh, AnchorVerdict::Matches));
    assert_eq!((first.boot.incarnation, second.boot.incarnation), (1, 2));
    assert_eq!(secrets(&first), secrets(&second));
    assert_eq!(first.boot.maker_id, second.boot.maker_id);
    assert!(first.boot.anchor_matches && second.boot.anchor_matches);
}

#[test]
fn journal_records_come_back_until_they_expire_or_are_removed() {
    let (disk, mut random) = (Disk::default(), Seeded::new(2));
    let (mut store, _) = boot(&disk, &mut random).unwrap();
    let put = |spi, expiry| JournalWrite::Put(record(spi, expiry));
    store.commit(&[put(1, NOW.0 + 1), put(2, NOW.0), put(3, NOW.0 + 9), put(4, NOW.0 + 9)]).unwrap();
    store.commit(&[JournalWrite::Remove(Spi(3))]).unwrap();
    drop(store);
    let (store, booted) = boot(&disk, &mut random).unwrap();
    assert_eq!(booted.boot.former, [record(1, NOW.0 + 1), record(4, NOW.0 + 9)]);
    assert_eq!(store.journal().unwrap().0.len(), 2, "the expired record is still on disk");
}

/// A control process that died alone begins no incarnation: what is on disk is read, and nothing is written.
#[test]
fn an_incarnation_is_resumed_as_it_stands_or_not_at_all() {
    let (disk, mut random) = (Disk::default(), Seeded::new(4));
    let (mut store, _) = boot(&disk, &mut random).unwrap();
    store.commit(&[JournalWrite::Put(record(1, NOW.0 + 9))]).unwrap();
    drop(store);
    let (mut store, second) = boot(&disk, &mut random).unwrap();
    let current = JournalRecord { incarnation: 2, ..record(2, NOW.0 + 9) };
    store.commit(&[JournalWrite::Put(current.clone())]).unwrap();
    drop(store);
    let resume = |incarnation| {
        let mut store = Store::open(disk.clone()).unwrap();
        store.resume(&mut disk.clone(), NOW, incarnation).unwrap()
    };
    for _ in 0..2 {
        let resumed = resume(2).expect("the incarnation that stands");
        let boot = &resumed.booted.boot;
        assert_eq!((boot.incarnation, &boot.maker_id), (2, &second.boot.maker_id));
        assert_eq!(secrets(&resumed.booted), secrets(&second));
        assert_eq!(boot.former, [record(1, NOW.0 + 9)]);
        assert_eq!(resumed.current, std::slice::from_ref(&current));
        let keys = |booted: &Booted| booted.boot.tickets.keys.iter().map(|key| key.id).collect::<Vec<_>>();
        assert_eq!(keys(&resumed.booted), keys(&second));
    }
    assert!(resume(1).is_none() && resume(3).is_none(), "another one than the memory's");
    disk.set_file(SmallFile::Anchor, None);
    assert!(resume(2).is_none(), "the disk is not as it was");
}

/// RFC 6290 section 5.1: a maker that cannot make its old tokens must not look like one.
#[test]
fn a_missing_or_damaged_secret_is_a_refusal_until_a_new_one_is_asked_for() {
    let (disk, mut random) = (Disk::default(), Seeded::new(3));
    let (_, first) = boot(&disk, &mut random).unwrap();
    let whole = disk.file(SmallFile::Secret).unwrap();
    disk.set_file(SmallFile::Secret, Some(&whole[..whole.len() / 2]));
    assert!(matches!(boot(&disk, &mut random), Err(StoreError::SecretMalformed(_))));
    disk.set_file(SmallFile::Secret, None);
    assert!(matches!(boot(&disk, &mut random), Err(StoreError::SecretMissing)));
    let (_, renewed) = boot_as(&disk, &mut random, true).unwrap();
    assert_ne!(secrets(&first), secrets(&renewed));
}

#[test]
fn a_directory_on_which_nothing_can_be_written_is_a_refusal() {
    let disk = Disk::default();
    disk.cut_after(0);
    assert!(boot(&disk, &mut Seeded::new(4)).is_err());
}

/// RFC 6290 section 9.2: the original may hold the living SAs whose tokens a copy could make.
#[test]
fn a_copied_or_rolled_back_state_yields_no_token_and_a_new_secret() {
    let (disk, mut random) = (Disk::default(), Seeded::new(5));
    drop(boot(&disk, &mut random).unwrap());
    let copy = disk.snapshot();
    let old_anchor = disk.file(SmallFile::Anchor);
    drop(boot(&disk, &mut random).unwrap());
    let (_, third) = boot(&disk, &mut random).unwrap();

    // On another machine, without an anchor.
    let (store, elsewhere) = boot(&copy.snapshot(), &mut random).unwrap();
    drop(store);
    assert_eq!(elsewhere.anchor, AnchorVerdict::Missing);
    assert!(!elsewhere.boot.anchor_matches && elsewhere.anchor.warning(false).is_some());
    assert_ne!(secrets(&elsewhere), secrets(&third));

    // Restored here, where the anchor has seen more.
    let restored = copy.snapshot();
    restored.set_file(SmallFile::Anchor, disk.file(SmallFile::Anchor).as_deref());
    let (store, rolled_back) = boot(&restored, &mut random).unwrap();
    drop(store);
    assert_eq!(rolled_back.anchor, AnchorVerdict::RolledBack);
    assert!(!rolled_back.boot.anchor_matches);
    assert!(rolled_back.boot.incarnation > third.boot.incarnation, "an incarnation came twice");
    assert_ne!(secrets(&rolled_back), secrets(&third));
    let (_, after) = boot(&restored, &mut random).unwrap();
    assert_eq!(after.anchor, AnchorVerdict::Matches);
    assert_eq!(secrets(&after), secrets(&rolled_back));

    // A state that has run elsewhere and came back.
    disk.set_file(SmallFile::Anchor, old_anchor.as_deref());
    assert_eq!(boot(&disk, &mut random).unwrap().1.anchor, AnchorVerdict::RolledBack);
}

/// RFC 6290 section 6: the secret is the other members' too, so no state of this one's is a reason to replace it. No token
/// leaves while the anchor does not match.
#[test]
fn a_cluster_s_secret_is_never_written_whatever_the_anchor_says() {
    let (disk, mut random) = (Disk::default(), Seeded::new(7));
    drop(boot(&disk, &mut random).unwrap());
    let shared = disk.file(SmallFile::Secret).unwrap();
    let (own, other) = (disk.file(SmallFile::Anchor).unwrap(), Disk::default());
    drop(boot(&other, &mut random).unwrap());
    let foreign = other.file(SmallFile::Anchor).unwrap();
    let start = |disk: &Disk, random: &mut Seeded| {
        let mut store = Store::open(disk.clone())?;
        store.share_secret();
        store.boot(&mut disk.clone(), random, NOW, false, TokenMethod::Spis)
    };
    drop(start(&disk, &mut random).unwrap());
    for (anchor, verdict) in [
        (None, AnchorVerdict::Missing),
        (Some(&foreign[..]), AnchorVerdict::Foreign),
        (Some(&b"torn"[..]), AnchorVerdict::Damaged),
    ] {
        disk.set_file(SmallFile::Anchor, anchor);
        let booted = start(&disk, &mut random).unwrap();
        assert_eq!(booted.anchor, verdict);
        assert!(!booted.boot.anchor_matches, "{verdict:?}");
        assert!(
            booted.anchor.warning(true).is_some_and(|text| text.contains("left as it is")),
            "{verdict:?}"
        );
        assert!(disk.file(SmallFile::Secret).as_ref() == Some(&shared), "{verdict:?}: it was written");
        assert!(start(&disk, &mut random).unwrap().boot.anchor_matches, "the next start is its own again");
    }
    disk.set_file(SmallFile::Anchor, Some(&own));
    assert_eq!(start(&disk, &mut random).unwrap().anchor, AnchorVerdict::Foreign);
    assert!(disk.file(SmallFile::Secret).as_ref() == Some(&shared), "it was written");
    // Nor is one made where it is missing, in an empty directory either.
    for disk in [&disk, &Disk::default()] {
        disk.set_file(SmallFile::Secret, None);
        assert!(matches!(start(disk, &mut random), Err(StoreError::SecretMissing)));
    }
}

/// RFC 6290 section 5.1: a new secret, and up to three earlier ones.
#[test]
fn a_rotated_secret_stands_before_three_earlier_ones() {
    let (disk, mut random) = (Disk::default(), Seeded::new(6));
    let (_, booted) = boot(&disk, &mut random).unwrap();
    let mut generations = booted.boot.secrets;
    let oldest = *generations[0].secret.0;
    for n in 2..=5 {
        let new = Some((TokenMethod::SpisAndAddress, NOW.0 + n as u64));
        generations = write_secrets(&mut disk.clone(), &mut random, new, generations).unwrap();
        assert_eq!(generations.len(), n.min(4));
        assert_eq!(generations.iter().any(|g| *g.secret.0 == oldest), n < 5);
        assert_eq!(
            (generations[0].method, generations[0].made),
            (TokenMethod::SpisAndAddress, NOW.0 + n as u64)
        );
    }
    let (_, again) = boot(&disk, &mut random).unwrap();
    assert_eq!(secrets(&again), of(&generations));
}

/// RFC 6290 section 1.1, 5.1: power goes at any write of a start or of a rotation. What a rotation returned (then tokens
/// of it may be out) is there at every later start, and so are the generations that it kept.
#[test]
fn power_cuts_at_any_write_lose_no_generation_that_was_in_use() {
    let mut rotated = 0;
    for cut in 0..40 {
        for seed in 0..3 {
            let (disk, mut random) = (Disk::default(), Seeded::new(cut * 1000 + seed));
            let mut in_use: Vec<Generation> = Vec::new();
            for life in 0..6 {
                disk.cut_after((cut + life * 7) % 40);
                if let Ok((_, booted)) = boot(&disk, &mut random) {
                    let kept = in_use.is_empty() || of(&booted.boot.secrets) == of(&in_use);
                    assert!(booted.boot.anchor_matches && kept, "cut {cut} seed {seed} life {life}");
                    in_use = booted.boot.secrets;
                    for n in 0..3 {
                        let new = (n < 2).then_some((TokenMethod::Spis, NOW.0));
                        match write_secrets(&mut disk.clone(), &mut random, new, in_use.clone()) {
                            Ok(generations) => {
                                rotated += 1;
                                in_use = generations;
                            }
                            Err(_) => break,
                        }
                    }
                }
                disk.power_up(&mut random);
                if let Some(octets) = disk.file(SmallFile::Secret) {
                    assert!(decode_secrets(&octets).is_ok(), "cut {cut} seed {seed}: torn");
                }
            }
        }
    }
    assert!(rotated > 100, "{rotated} rotations");
}

/// Power goes at every write of a start and of commits: the store opens again, no incarnation comes twice, the
/// secret that a start returned is there at the next one, and what was committed is there.
#[test]
fn power_cuts_at_any_write_leave_a_state_that_starts() {
    for cut in 0..120 {
        for seed in 0..3 {
            let (disk, mut random) = (Disk::default(), Seeded::new(cut * 1000 + seed));
            let (mut incarnation, mut secret, mut committed) = (0, None, Vec::new());
            for life in 0..4u32 {
                disk.cut_after(cut + u64::from(life));
                if let Ok((mut store, booted)) = boot(&disk, &mut random) {
                    assert!(booted.boot.anchor_matches, "cut {cut} seed {seed}: {:?}", booted.anchor);
                    assert!(booted.boot.incarnation > incarnation, "cut {cut} seed {seed}");
                    incarnation = booted.boot.incarnation;
                    assert_eq!(*secret.get_or_insert(secrets(&booted)), secrets(&booted));
                    let spis: Vec<u32> = booted.boot.former.iter().map(|r| r.spi.0).collect();
                    for spi in &committed {
                        assert!(spis.contains(spi), "cut {cut} seed {seed}: record {spi} was lost");
                    }
                    for n in 0..20 {
                        let spi = 1000 + life * 100 + n;
                        if store.commit(&[JournalWrite::Put(record(spi, u64::MAX))]).is_ok() {
                            committed.push(spi);
                        }
                    }
                }
                disk.power_up(&mut random);
            }
            let (_, last) = boot(&disk, &mut random).unwrap();
            assert!(last.boot.anchor_matches);
        }
    }
}

#[test]
fn a_hundred_thousand_records_are_read_in_well_under_200_ms() {
    let (disk, mut random) = (Disk::default(), Seeded::new(7));
    let (mut store, _) = boot(&disk, &mut random).unwrap();
    let writes: Vec<_> = (0..100_000).map(|n| JournalWrite::Put(record(256 + n, u64::MAX))).collect();
    store.commit(&writes).unwrap();
    drop(store);
    // Time on the processor, the best of several: other work on the machine is not what is measured.
    let on_processor = || -> u64 {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        text.split(' ').next().unwrap().parse().unwrap()
    };
    let took = (0..5).map(|_| {
        let start = on_processor();
        let (_, booted) = boot(&disk, &mut random).unwrap();
        let took = on_processor() - start;
        assert_eq!(booted.boot.former.len(), 100_000);
        took
    });
    let best = took.min().unwrap();
    assert!((1..200_000_000).contains(&best), "{best} ns");
}
