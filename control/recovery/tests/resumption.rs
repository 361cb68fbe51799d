//! Two whole control planes with session resumption (RFC 5723): tickets through crashes, and what is on disk of them.

mod common;

use common::world::{A, B, INTERVAL, Setup, World};
use common::{Disk, Seeded};
use spindle_abi::Time;
use spindle_ike::api::Datagram;
use spindle_recovery::api::{TokenMethod, UsedTicket};
use spindle_recovery::store::{SmallFile, Store};
use std::time::Duration;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn resuming() -> Setup {
    Setup { resumption: true, ..Setup::default() }
}

fn up(setup: &Setup) -> World {
    let mut world = World::up(setup.clone());
    // Time for a ticket that is asked for in an exchange of its own.
    world.run(2 * SECOND);
    world
}

fn crash_and_restart(world: &mut World, side: usize) {
    world.crash(side);
    world.run(5 * SECOND);
    world.start(side);
    world.sent.clear();
}

/// Until the first packet arrives after a crash.
fn recovery(world: &mut World, side: usize) -> Duration {
    let before = world.sides[side].delivered.len();
    world.run_until(20 * SECOND, |world| world.sides[side].delivered.len() > before)
}

fn exchanges(world: &World) -> Vec<u8> {
    world.sent.iter().map(|(_, _, d)| d.data.strip_prefix(&[0; 4]).unwrap_or(&d.data)[18]).collect()
}

fn resumed(world: &World) -> [usize; 2] {
    [A, B].map(|side| {
        let told = world.sides[side].told.iter();
        told.filter(|(_, r)| r.name == "ike-established" && r.detail.ends_with("resumed")).count()
    })
}

/// RFC 6290 section 7: the token tells, the ticket resumes. Round trips as without it: three with a journal, four
/// without; whichever side crashed had initiated.
#[test]
fn after_a_token_the_taker_resumes_in_as_many_round_trips_as_without() {
    for lost in [A, B] {
        for (journal, round_trips) in [(true, 3), (false, 4)] {
            let mut sending = [false; 2];
            sending[1 - lost] = true;
            let setup = Setup { journal, sending, ..resuming() };
            let mut world = up(&setup);
            crash_and_restart(&mut world, lost);
            let took = recovery(&mut world, lost);
            let bound = setup.delay * 2 * round_trips + INTERVAL + 10 * MS;
            assert!(took <= bound, "{took:?}: {:#?}", world.story());
            assert_eq!(resumed(&world), [1, 1], "{:#?}", world.story());
            assert_eq!(world.stat(lost, "tickets-accepted"), 1);
            assert!(!exchanges(&world).contains(&34), "no key exchange");
            assert_eq!(world.told(1 - lost, "proof"), 1);
            let sas = [A, B].map(|side| world.gateway(side).sas());
            assert!(sas.iter().all(|sas| sas.len() == 1 && sas[0].resumed && sas[0].children.len() == 1));
        }
    }
}

/// "Old keys stay": a ticket is good in the incarnation after the next one too.
#[test]
fn a_ticket_survives_a_second_crash() {
    let setup = resuming();
    let mut world = up(&setup);
    world.crash(B);
    world.run(SECOND);
    world.start(B);
    crash_and_restart(&mut world, B);
    recovery(&mut world, B);
    assert_eq!(resumed(&world), [1, 1], "{:#?}", world.story());
}

/// RFC 5723 section 4.3.1: used, and rejected from then on, across a crash too.
#[test]
fn a_used_ticket_is_refused_after_the_next_crash() {
    let setup = resuming();
    let mut world = up(&setup);
    crash_and_restart(&mut world, B);
    recovery(&mut world, B);
    let of_resume = |(_, from, d): &&(Time, usize, Datagram)| *from == A && d.data[18] == 38;
    let presented = world.sent.iter().find(of_resume).unwrap().2.clone();
    for crash in [false, true] {
        if crash {
            crash_and_restart(&mut world, B);
        }
        let before = world.stat(B, "tickets-used");
        // As another request: retransmissions are answered again.
        let mut data = presented.data.clone();
        data[0] ^= 1 + u8::from(crash);
        world.receive(B, Datagram { local: presented.remote, remote: presented.local, data });
        assert_eq!(world.stat(B, "tickets-used"), before + 1, "after a crash: {crash}");
    }
}

/// A state directory that was copied: its tickets may be used elsewhere, so they are void, and the regular exchange
/// follows.
#[test]
fn a_foreign_anchor_voids_all_tickets() {
    let setup = Setup { journal: false, ..resuming() };
    let mut world = up(&setup);
    world.crash(B);
    world.sides[B].disk.set_file(SmallFile::Anchor, None);
    world.start(B);
    world.run(30 * SECOND);
    assert_eq!(resumed(&world), [0, 0], "{:#?}", world.story());
    assert_eq!(world.stat(B, "tickets-accepted"), 0);
}

/// The operator ends the connection while it waits to be initiated again: RFC 5723 section 6.2.
#[test]
fn without_resumption_nothing_is_asked_for_nor_presented() {
    let mut world = up(&Setup::default());
    crash_and_restart(&mut world, B);
    recovery(&mut world, B);
    assert_eq!(resumed(&world), [0, 0]);
    assert!(exchanges(&world).contains(&34) && !exchanges(&world).contains(&38));
    assert_eq!(world.stat(B, "tickets-granted"), 0);
}

/// RFC 5723 section 9.4: what is not authenticated does not lead to a resumption.
#[test]
fn liveness_alone_presents_the_ticket_after_the_timeout_and_not_before() {
    use spindle_recovery::api::Method;
    let setup = Setup { methods: vec![Method::Liveness], ..resuming() };
    let mut world = up(&setup);
    crash_and_restart(&mut world, B);
    world.run(2 * SECOND);
    assert_ne!(world.told(A, "hint"), 0, "a hint came");
    assert!(!exchanges(&world).contains(&38));
    world.run(30 * SECOND);
    assert_eq!(resumed(&world), [1, 1], "{:#?}", world.story());
}

fn boot(disk: &Disk, seed: u64, now: u64) -> (Store, spindle_recovery::api::TicketRecords) {
    let mut store = Store::open(disk.clone()).unwrap();
    store.set_ticket_lifetime(Duration::from_secs(100));
    let booted = store
        .boot(&mut disk.clone(), &mut Seeded::new(seed), (now, Time(1)), false, TokenMethod::Spis)
        .unwrap();
    (store, booted.boot.tickets)
}

/// RFC 5723 section 6.1, 9.5: each incarnation has a key of its own, on disk before its first ticket; an earlier one
/// stays until its last ticket has expired.
#[test]
fn a_key_stays_until_its_last_ticket_has_expired() {
    let disk = Disk::default();
    let ids = |tickets: &spindle_recovery::api::TicketRecords| -> Vec<_> {
        tickets.keys.iter().map(|key| key.id).collect()
    };
    let (store, first) = boot(&disk, 1, 1000);
    drop(store);
    let (store, second) = boot(&disk, 2, 5000);
    drop(store);
    assert_eq!((first.keys.len(), second.keys.len()), (1, 2));
    assert_eq!(ids(&second)[1..], ids(&first), "newest first; it sealed until 5000 at most");
    assert_eq!(*second.keys[1].key.0, *first.keys[0].key.0);
    let (store, third) = boot(&disk, 3, 5050);
    drop(store);
    assert_eq!(ids(&third)[1..], ids(&second));
    let (_, fourth) = boot(&disk, 4, 5101);
    assert_eq!(ids(&fourth)[1..], ids(&third)[..2], "the first one's last ticket expired at 5100");
}

#[test]
fn used_tickets_are_remembered_until_they_expire() {
    let disk = Disk::default();
    let used = |expiry, n| UsedTicket { expiry, nonce: [n; 24] };
    let (mut store, _) = boot(&disk, 1, 1000);
    store.remember(&[used(1050, 1), used(1090, 2)], 1000).unwrap();
    store.remember(&[used(1020, 3)], 1000).unwrap();
    drop(store);
    let (mut store, tickets) = boot(&disk, 2, 1020);
    assert_eq!(tickets.used, [used(1050, 1), used(1090, 2)]);
    store.remember(&[used(1100, 4)], 1050).unwrap();
    drop(store);
    let (_, tickets) = boot(&disk, 3, 1021);
    assert_eq!(tickets.used, [used(1090, 2), used(1100, 4)], "forgotten with a later write");
}

/// A copy's tickets may be used elsewhere; what a snapshot remembers is not all.
#[test]
fn a_copied_state_directory_has_no_tickets_of_before() {
    let disk = Disk::default();
    let (mut store, first) = boot(&disk, 1, 1000);
    store.remember(&[UsedTicket { expiry: 1090, nonce: [1; 24] }], 1000).unwrap();
    drop(store);
    let (_, copied) = boot(&disk.snapshot(), 2, 1000);
    assert_eq!((copied.keys.len(), copied.used.len()), (1, 0));
    assert_ne!(copied.keys[0].id, first.keys[0].id);
}

/// Whatever write the power goes at: keys and used tickets that were on disk stay.
#[test]
fn no_power_cut_loses_a_key_or_a_used_ticket() {
    let mut random = Seeded::new(9);
    let mut cuts = 0;
    for steps in 0..60 {
        let disk = Disk::default();
        let (mut store, first) = boot(&disk, 1, 1000);
        let kept = UsedTicket { expiry: 1090, nonce: [1; 24] };
        store.remember(&[kept], 1000).unwrap();
        disk.cut_after(steps);
        let late = UsedTicket { expiry: 1091, nonce: [2; 24] };
        let remembered = store.remember(&[late], 1000).is_ok();
        drop(store);
        let booting = || {
            let mut store = Store::open(disk.clone())?;
            store.set_ticket_lifetime(Duration::from_secs(100));
            store.boot(&mut disk.clone(), &mut Seeded::new(5), (1001, Time(1)), false, TokenMethod::Spis)
        };
        let _ = booting();
        cuts += u32::from(disk.power_up(&mut random));
        let (_, tickets) = boot(&disk, 7, 1002);
        assert!(tickets.used.contains(&kept), "after {steps} steps");
        assert!(!remembered || tickets.used.contains(&late), "after {steps} steps");
        assert!(tickets.keys.iter().any(|key| key.id == first.keys[0].id), "after {steps} steps");
    }
    assert!(cuts > 10, "{cuts} power cuts");
}
