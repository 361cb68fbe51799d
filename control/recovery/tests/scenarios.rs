//! Two whole control planes through crashes: by INVALID_SPI with a token, by a probe, by a probe that was
//! outstanding; after rekeys, twice, with tokens lost, doubled and from elsewhere.

mod common;

use common::Seeded;
use common::world::{A, B, INTERVAL, Interference, Setup, World, address};
use spindle_abi::{Event, Spi, SpiReport, SpiState};
use spindle_ike::api::Datagram;
use spindle_ike::wire::Payload;
use spindle_recovery::api::{Config, Method};
use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// Time from ready to the first packet delivered at `side` after it.
fn recovery(world: &mut World, side: usize, limit: Duration) -> Duration {
    let before = world.sides[side].delivered.len();
    world.run_until(limit, |world| world.sides[side].delivered.len() > before)
}

fn crash_and_restart(world: &mut World, side: usize, down: Duration) {
    world.crash(side);
    world.run(down);
    world.start(side);
}

/// The bound that holds in round trips, the interval between packets, and 10 ms.
fn bound(setup: &Setup, round_trips: u32) -> Duration {
    setup.delay * 2 * round_trips + INTERVAL + 10 * MS
}

fn one_ike_sa_each(world: &World) -> bool {
    let established = |side| {
        let sas = world.gateway(side).sas();
        let pairs: Vec<_> = sas.iter().filter(|sa| sa.state == "established").map(|sa| sa.spis).collect();
        pairs
    };
    established(A).len() == 1 && established(A) == established(B)
}

/// RFC 6290 section 3, 4.5 and 8.2: with the journal three round trips to the first packet, whichever side had
/// been the original initiator.
#[test]
fn a_lost_side_is_told_of_with_invalid_spi_and_its_token_in_three_round_trips() {
    for sender in [A, B] {
        for down in [100 * MS, 5 * SECOND, 30 * SECOND] {
            for delay in [Duration::ZERO, 10 * MS, 50 * MS] {
                let mut sending = [false, false];
                sending[sender] = true;
                let setup = Setup { sending, delay, ..Setup::default() };
                let mut world = World::up(setup.clone());
                let lost = 1 - sender;
                crash_and_restart(&mut world, lost, down);
                let took = recovery(&mut world, lost, 20 * SECOND);
                assert!(
                    took <= bound(&setup, 3),
                    "{took:?} with {delay:?} after {down:?}: {:#?}",
                    world.story()
                );
                assert_eq!(world.told(sender, "proof"), 1);
                assert_eq!(world.told(lost, "initiating"), 0, "the lost side has nothing to send");
                world.run(SECOND);
                assert!(one_ike_sa_each(&world));
            }
        }
    }
}

/// The sender had not initiated: here the receiver starts the tunnel.
#[test]
fn the_crashed_side_may_have_been_the_original_initiator() {
    for journal in [true, false] {
        let setup = Setup { journal, ..Setup::default() };
        let mut world = World::new(Setup { sending: [false, false], ..setup.clone() });
        world.wish(B, |gateway, now| gateway.initiate(now, "site", None)).unwrap();
        world.run(SECOND);
        assert!(world.gateway(B).sas()[0].initiator);
        world.setup.sending = [true, false];
        world.run(SECOND);
        crash_and_restart(&mut world, B, 5 * SECOND);
        let took = recovery(&mut world, B, 20 * SECOND);
        assert!(took <= bound(&setup, if journal { 3 } else { 4 }), "{took:?}: {:#?}", world.story());
        assert_eq!(world.told(A, "proof"), 1);
    }
}

/// RFC 6290 section 3: INVALID_SPI is the hint, the probe's answer the proof; four round trips, after a long
/// downtime too.
#[test]
fn without_a_journal_the_probe_is_answered_with_the_token_in_four_round_trips() {
    for down in [100 * MS, 5 * SECOND, 30 * SECOND] {
        for delay in [Duration::ZERO, 10 * MS, 50 * MS] {
            let setup = Setup { journal: false, delay, ..Setup::default() };
            let mut world = World::up(setup.clone());
            let old = world.gateway(A).sas()[0].spis;
            crash_and_restart(&mut world, B, down);
            let took = recovery(&mut world, B, 20 * SECOND);
            assert!(took <= bound(&setup, 4), "{took:?} with {delay:?} after {down:?}: {:#?}", world.story());
            assert_eq!(world.told(A, "proof"), 1);
            let tokens = world.tokens_of(B, old, "192.0.2.1".parse().unwrap());
            assert!(
                tokens.iter().all(|token| world.shown[B].contains(token)),
                "the old IKE SA's, made again"
            );
        }
    }
}

/// RFC 3948: the same over UDP.
#[test]
fn encapsulated_esp_recovers_the_same() {
    for journal in [true, false] {
        let setup = Setup { journal, encapsulation: true, ..Setup::default() };
        let mut world = World::up(setup.clone());
        crash_and_restart(&mut world, B, SECOND);
        let took = recovery(&mut world, B, 20 * SECOND);
        assert!(took <= bound(&setup, if journal { 3 } else { 4 }), "{took:?}: {:#?}", world.story());
    }
}

/// RFC 7296 section 2.4 alone: a message in clear ends nothing; the unanswered request does.
#[test]
fn liveness_alone_ignores_tokens_and_takes_its_time() {
    let setup = Setup { methods: vec![Method::Liveness], ..Setup::default() };
    let mut world = World::up(setup);
    crash_and_restart(&mut world, B, 100 * MS);
    let took = recovery(&mut world, B, 60 * SECOND);
    assert!(took >= 3 * SECOND, "{took:?}");
    assert_eq!(world.told(A, "proof"), 0);
}

#[test]
fn traffic_both_ways_ends_with_one_ike_sa() {
    for journal in [true, false] {
        for seed in 0..5 {
            let setup = Setup { journal, seed, sending: [true, true], ..Setup::default() };
            let mut world = World::up(setup);
            crash_and_restart(&mut world, B, SECOND);
            recovery(&mut world, B, 20 * SECOND);
            recovery(&mut world, A, 20 * SECOND);
            world.run(10 * SECOND);
            assert!(one_ike_sa_each(&world), "{:#?}", world.story());
            let before = [A, B].map(|side| world.sides[side].delivered.len());
            world.run(SECOND);
            for side in [A, B] {
                assert!(world.sides[side].delivered.len() >= before[side] + 99);
            }
        }
    }
}

/// RFC 6290 section 4.3: each IKE SA has its own token, whichever side rekeyed.
#[test]
fn after_an_ike_rekey_by_either_side_the_new_token_counts() {
    for journal in [true, false] {
        for rekeyer in [A, B] {
            let setup = Setup { journal, ..Setup::default() };
            let mut world = World::up(setup.clone());
            world.wish(rekeyer, |gateway, now| gateway.rekey(now, "site", None)).unwrap();
            world.run(2 * SECOND);
            assert_eq!(world.told(A, "ike-rekeyed"), 1);
            assert_eq!(world.gateway(A).sas().len(), 1);
            crash_and_restart(&mut world, B, SECOND);
            let took = recovery(&mut world, B, 20 * SECOND);
            assert!(took <= bound(&setup, if journal { 3 } else { 4 }), "{took:?}: {:#?}", world.story());
            assert_eq!(world.told(A, "proof"), 1);
        }
    }
}

/// At any moment of a rekey, each half round trip of it: it comes back, by a token or by the timeout.
#[test]
fn a_crash_at_any_moment_of_an_ike_rekey_is_recovered_from() {
    for rekeyer in [A, B] {
        for half_trips in 0..8 {
            let mut world = World::up(Setup::default());
            world.wish(rekeyer, |gateway, now| gateway.rekey(now, "site", None)).unwrap();
            world.run(Duration::from_millis(5 + 10 * half_trips));
            crash_and_restart(&mut world, B, 100 * MS);
            recovery(&mut world, B, 60 * SECOND);
            world.run(10 * SECOND);
            assert!(one_ike_sa_each(&world), "{rekeyer} {half_trips}: {:#?}", world.story());
        }
    }
}

/// RFC 7296 section 2.4, 2.21.4: the responder crashes between IKE_SA_INIT and IKE_AUTH. What the one that came after
/// says is a hint; a fresh attempt begins beside the one that waits, which goes through its whole schedule.
#[test]
fn a_responder_that_crashed_between_the_initial_exchanges_does_not_hold_up_the_initiator() {
    let setup = Setup::default();
    let mut world = World::new(setup.clone());
    world.run(25 * MS);
    assert_eq!(world.gateway(A).sas().len(), 1);
    crash_and_restart(&mut world, B, 100 * MS);
    // IKE_AUTH is sent again half a second after the first time; then three round trips.
    let took = recovery(&mut world, B, 20 * SECOND);
    assert!(took <= 500 * MS + bound(&setup, 3), "{took:?}: {:#?}", world.story());
    assert_eq!(world.told(A, "initiation-failed"), 0);
    world.run(30 * SECOND);
    assert!(one_ike_sa_each(&world));
    assert_eq!(world.gateway(A).sas().len(), 1);
}

/// The same with patient retransmissions: while packets wait IKE_AUTH is sent again in intervals that double, so the
/// crash is noticed by the time in which the outage has doubled.
#[test]
fn a_crash_within_ike_auth_costs_no_patient_retransmission_while_packets_wait() {
    fn patient(config: &mut Config) {
        for connection in &mut config.connections {
            connection.retransmission.timeout = 4 * SECOND;
        }
    }
    for down in [100 * MS, 300 * MS, 1500 * MS] {
        let setup = Setup { change: Some(patient), ..Setup::default() };
        let mut world = World::new(setup.clone());
        world.run(25 * MS);
        assert_eq!(world.gateway(A).sas().len(), 1);
        crash_and_restart(&mut world, B, down);
        let took = recovery(&mut world, B, 20 * SECOND);
        let most = down + 200 * MS + bound(&setup, 3);
        assert!(took <= most, "{down:?}: {took:?} of {most:?}: {:#?}", world.story());
        // The first attempt goes on patiently; nobody answers it.
        world.run(30 * SECOND);
        assert!(one_ike_sa_each(&world));
    }
}

/// RFC 7296 section 2.1: the first request of a recovery meets another crash. Packets wait, so it is sent again in intervals
/// that double from 200 ms on, not after seconds; and only in the first exchange of an attempt, which ends no sooner.
#[test]
fn the_first_request_of_a_recovery_that_is_lost_is_sent_again_soon() {
    fn patient(config: &mut Config) {
        for connection in &mut config.connections {
            connection.retransmission.timeout = 4 * SECOND;
        }
    }
    for resumption in [false, true] {
        for down in [100 * MS, 300 * MS, 700 * MS] {
            let setup = Setup { change: Some(patient), resumption, ..Setup::default() };
            let mut world = World::up(setup.clone());
            world.run(SECOND);
            crash_and_restart(&mut world, B, 500 * MS);
            let first = |world: &World| {
                let is_first = |exchange: u8| [34, 38].contains(&exchange);
                let since = world.now.0.saturating_sub(10_000_000);
                world.sent.iter().any(|(at, from, d)| at.0 >= since && *from == A && is_first(d.data[18]))
            };
            world.run_until(SECOND, first);
            crash_and_restart(&mut world, B, down);
            let took = recovery(&mut world, B, 20 * SECOND);
            let most = down + 200 * MS + bound(&setup, 3);
            assert!(took <= most, "{down:?}: {took:?} of {most:?}: {:#?}", world.story());
            assert_eq!(world.told(A, "initiation-failed"), 0);
            world.run(30 * SECOND);
            assert!(one_ike_sa_each(&world));
        }
    }
}

/// RFC 7296 section 1.5 and 2.21.4: while an IKE SA with the source lives, ESP on an unknown SPI is told of under its
/// protection, once a second; to others in clear; what control knows as retired, not at all. No SA changes.
#[test]
fn an_unknown_spi_is_told_under_protection_where_an_ike_sa_with_the_source_lives() {
    for encapsulation in [false, true] {
        let setup = Setup { sending: [false, false], encapsulation, ..Setup::default() };
        let mut world = World::up(setup);
        world.wish(A, |gateway, now| gateway.initiate(now, "site", None)).unwrap();
        world.run(SECOND);
        let retired = world.gateway(B).sas()[0].children[0].inbound;
        world.wish(A, |gateway, now| gateway.rekey(now, "site", Some("net"))).unwrap();
        world.run(20 * SECOND);
        assert_eq!(world.spis(B, SpiState::Retired), [retired]);
        let before = [A, B].map(|side| world.gateway(side).sas());
        let port = if encapsulation { 4500 } else { 0 };
        let socket = |address: &str, port: u16| SocketAddr::new(address.parse().unwrap(), port);
        let at = world.now;
        let esp = |spi, source| {
            let destination = socket("192.0.2.2", port);
            Event::UnknownSpi(SpiReport { spi, sequence: 1, source, destination, at })
        };
        for n in 0..10 {
            world.tell(B, esp(retired, socket("192.0.2.1", port)));
            world.tell(B, esp(Spi(0x7777_0000 + n), socket("192.0.2.1", port)));
            world.run(500 * MS);
        }
        assert_eq!(world.stat(B, "invalid-spi-sent-protected"), 5);
        assert_eq!(world.stat(A, "invalid-spi-received-protected"), 5);
        assert_eq!(world.stat(B, "unknown-spi-over-budget"), 5);
        assert_eq!(world.stat(B, "known-spi-events"), 10);
        assert!(world.clear.is_empty(), "{:?}", world.clear);
        // Another source, and behind a NAT another port, is a stranger.
        world.tell(B, esp(Spi(0x7777_7777), socket("203.0.113.1", port)));
        assert_eq!(world.clear.len(), 1);
        if encapsulation {
            world.run(2 * SECOND);
            world.tell(B, esp(Spi(0x7777_7777), socket("192.0.2.1", 4501)));
            assert_eq!(world.clear.len(), 2);
        }
        world.run(2 * SECOND);
        assert_eq!([A, B].map(|side| world.gateway(side).sas()), before);
        assert_eq!(world.told(A, "hint"), 0);
    }
}

/// Former SPIs of older incarnations stay: a second crash, before the recovery began and while it is under way.
#[test]
fn a_second_crash_before_the_recovery_ended_is_recovered_from() {
    for journal in [true, false] {
        for half_trips in 0..9 {
            let setup = Setup { journal, ..Setup::default() };
            let mut world = World::up(setup);
            crash_and_restart(&mut world, B, SECOND);
            world.run(Duration::from_millis(10 * half_trips + 1));
            crash_and_restart(&mut world, B, SECOND);
            let took = recovery(&mut world, B, 20 * SECOND);
            if half_trips == 0 {
                // The initiation that met the second crash goes on, its pause capped while traffic waits.
                let most = 2 * SECOND + bound(&world.setup, 4);
                assert!(took <= most, "{took:?}: {:#?}", world.story());
            }
            world.run(10 * SECOND);
            assert!(one_ike_sa_each(&world), "{journal} {half_trips}: {:#?}", world.story());
        }
    }
}

#[test]
fn no_spi_of_an_earlier_incarnation_is_given_out_while_it_is_in_the_journal() {
    let mut world = World::up(Setup::default());
    let mut earlier: Vec<Spi> = world.spis(B, SpiState::Current);
    for _ in 0..5 {
        crash_and_restart(&mut world, B, 100 * MS);
        let former = world.spis(B, SpiState::Former);
        assert!(earlier.iter().all(|spi| former.contains(spi)), "{earlier:?} {former:?}");
        recovery(&mut world, B, 20 * SECOND);
        let current = world.spis(B, SpiState::Current);
        assert!(current.iter().all(|spi| !earlier.contains(spi)));
        earlier.extend(current);
    }
}

/// The token is sent once for each packet that asks (RFC 7296 section 2.1), and the next packet asks again.
#[test]
fn a_lost_token_is_sent_again_on_the_next_packet() {
    for journal in [true, false] {
        let mut world = World::up(Setup { journal, ..Setup::default() });
        let mut left = 3;
        world.crash(B);
        world.run(SECOND);
        world.interference = Some(Box::new(move |from, datagram| {
            let clear = from == B && datagram.data.len() > 70 && datagram.data.len() < 200 && left > 0;
            left -= i32::from(clear);
            if clear { vec![] } else { vec![datagram] }
        }));
        world.start(B);
        recovery(&mut world, B, 20 * SECOND);
        assert_eq!(world.told(A, "proof"), 1, "{:#?}", world.story());
    }
}

/// RFC 6290 section 3: the token MUST be accepted from any source IP address and port; doubled, it finds nothing
/// more to delete, and the new IKE SA lives.
#[test]
fn a_token_from_another_address_and_doubled_is_proof_once() {
    for journal in [true, false] {
        let mut world = World::up(Setup { journal, ..Setup::default() });
        world.interference = Some(Box::new(|from, datagram| {
            if from != B || datagram.data.len() < 70 || datagram.data[16] != 41 {
                return vec![datagram];
            }
            let local = "203.0.113.77:4711".parse().unwrap();
            vec![Datagram { local, ..datagram.clone() }, Datagram { local, ..datagram }]
        }));
        crash_and_restart(&mut world, B, SECOND);
        let took = recovery(&mut world, B, 20 * SECOND);
        assert!(took <= bound(&world.setup, if journal { 3 } else { 4 }), "{took:?}: {:#?}", world.story());
        assert_eq!(world.told(A, "proof"), 1);
        world.run(5 * SECOND);
        assert!(one_ike_sa_each(&world));
    }
}

/// RFC 6290 section 4.4: no gratuitous tokens.
#[test]
fn no_token_is_sent_anew_while_the_old_one_can_be_made() {
    let mut world = World::up(Setup { sending: [true, true], ..Setup::default() });
    let stored = [A, B].map(|side| world.told(side, "token-stored"));
    world.wish(A, |gateway, now| gateway.rekey(now, "site", Some("net"))).unwrap();
    world.run(60 * SECOND);
    world.setup.sending = [false, false];
    world.run(600 * SECOND);
    assert_eq!([A, B].map(|side| world.told(side, "token-stored")), stored);
    assert!(one_ike_sa_each(&world), "liveness checks alone");
}

/// RFC 6290 section 3: silently: the old IKE SA sends nothing after the proof.
#[test]
fn after_a_proof_nothing_leaves_on_the_old_ike_sa() {
    let mut world = World::up(Setup::default());
    let old = world.gateway(A).sas()[0].spis;
    crash_and_restart(&mut world, B, SECOND);
    recovery(&mut world, B, 20 * SECOND);
    let proof = world.sides[A].told.iter().find(|(_, told)| told.name == "proof").unwrap().0;
    world.run(10 * SECOND);
    let on_old = world
        .sent
        .iter()
        .filter(|(at, from, d)| *from == A && *at >= proof && d.data.starts_with(&old.initiator));
    assert_eq!(on_old.count(), 0);
    assert!(world.spis(A, SpiState::Current).len() == 1, "the old inbound SA is gone");
}

/// RFC 6290 section 9.2: a living gateway shows no token, whatever it is sent: its own past, in both directions,
/// with every flag; ESP on retired SPIs of living IKE SAs and on larval ones.
#[test]
fn a_living_gateway_shows_no_token() {
    let mut world = World::up(Setup { sending: [true, true], ..Setup::default() });
    for side in [A, B] {
        world.wish(side, |gateway, now| gateway.rekey(now, "site", Some("net"))).unwrap();
        world.run(20 * SECOND);
    }
    assert!(!world.spis(B, SpiState::Retired).is_empty());
    let mut random = Seeded::new(3);
    // While an IKE rekey is under way too.
    for round in 0..6 {
        world.wish(round % 2, |gateway, now| gateway.rekey(now, "site", None)).unwrap();
        for _ in 0..5 {
            world.run(7 * MS);
            let past: Vec<_> = world.sent.iter().rev().take(40).cloned().collect();
            for (_, from, datagram) in past {
                let mut data = datagram.data.clone();
                if data.len() < 28 || data[18] == 34 {
                    continue;
                }
                data[19] = (random.next() as u8) & 0x28;
                let half = [0, 8][random.next() as usize % 2];
                if random.next().is_multiple_of(2) {
                    data[half..half + 8].fill(0x99);
                }
                let (to, back) = (1 - from, from);
                let forged = Datagram { local: datagram.remote, remote: datagram.local, data };
                let reflected =
                    Datagram { local: datagram.local, remote: datagram.remote, data: forged.data.clone() };
                world.receive(to, forged);
                world.receive(back, reflected);
            }
            for side in [A, B] {
                for state in [SpiState::Retired, SpiState::Larval, SpiState::Unknown] {
                    for spi in world.spis(side, state) {
                        let ends = ["192.0.2.9:0", "192.0.2.1:0"].map(|text| text.parse().unwrap());
                        world.esp(side, spi, ends[0], ends[1]);
                    }
                }
            }
        }
        world.run(SECOND);
    }
    // A pair with one half replaced names no IKE SA: its token is nobody's. All others were withheld.
    for (_, _, message) in &world.clear {
        let spis = message.header.spis;
        let invented = [spis.initiator, spis.responder].contains(&[0x99; 8]);
        let token = |p: &Payload| matches!(p, Payload::Notify(n) if n.kind == 16419);
        assert!(invented || !message.payloads.iter().any(token), "{spis:?}");
    }
    world.check_tokens(A);
    world.check_tokens(B);
    assert!(world.stat(A, "token-withheld-spi-in-use") + world.stat(B, "token-withheld-spi-in-use") > 0);
    assert_eq!([A, B].map(|side| world.told(side, "proof")), [0, 0]);
}

/// What anybody may cause leaves room in the log for what happens.
#[test]
fn hints_and_probes_are_counted_all_and_logged_within_limits() {
    let soon = |config: &mut Config| config.limits.probe_again = MS;
    let mut world = World::up(Setup { change: Some(soon), ..Setup::default() });
    let spi = world.gateway(A).sas()[0].children[0].outbound;
    world.crash(B);
    let mut forged = vec![0; 16];
    forged.extend([41, 0x20, 37, 0x08, 0, 0, 0, 0, 0, 0, 0, 40]);
    forged.extend([0, 0, 0, 12, 0, 0, 0, 11]);
    forged.extend(spi.0.to_be_bytes());
    let told = |world: &World| ["hint", "probe"].map(|name| world.told(A, name));
    let [local, remote] = ["192.0.2.1:500", "192.0.2.2:500"].map(|text| text.parse().unwrap());
    for n in 0..3000 {
        if n == 50 {
            assert_eq!(told(&world), [50; 2], "all, where they are few");
        }
        world.receive(A, Datagram { local, remote, data: forged.clone() });
        world.run(MS);
    }
    assert!(world.stat(A, "probes-sent-again") > 2000);
    let told = told(&world);
    assert!(
        told.iter().all(|told| (120..=131).contains(told)),
        "{told:?}: at first a hundred, then ten a second"
    );
}

/// RFC 7296 section 2.4: 100,000 forged hints and bad tokens later the SA lives, few probes left, and a true token
/// still works at once.
#[test]
fn a_flood_of_forged_notifications_neither_harms_nor_hides_the_truth() {
    let mut world = World::up(Setup::default());
    let old = world.gateway(A).sas()[0].clone();
    let spi = old.children[0].outbound;
    world.crash(B);
    world.run(100 * MS);
    let sent = world.sent.len();
    let mut forged = vec![0; 16];
    forged.extend([41, 0x20, 37, 0x08, 0, 0, 0, 0, 0, 0, 0, 80]);
    forged.extend([41, 0, 0, 12, 0, 0, 0, 11]);
    forged.extend(spi.0.to_be_bytes());
    forged.extend([0, 0, 0, 40, 1, 0, 0x40, 0x23]);
    forged.extend([0x5a; 32]);
    for n in 0..100_000u32 {
        let remote = std::net::SocketAddr::from((n.to_be_bytes(), 500));
        let local = "192.0.2.1:500".parse().unwrap();
        world.receive(A, Datagram { local, remote, data: forged.clone() });
    }
    assert!(world.sent.len() <= sent + 1, "one probe at most");
    assert_eq!(world.stat(A, "token-checks-failed"), 100_000);
    assert!(world.told(A, "token-failed") <= 10);
    assert_eq!(world.gateway(A).sas().len(), 1, "nothing in clear ends an SA");
    world.start(B);
    let took = recovery(&mut world, B, 20 * SECOND);
    assert!(took <= bound(&world.setup, 3), "{took:?}: {:#?}", world.story());
    assert_eq!(world.told(A, "proof"), 1);
}

const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));

/// A NAT in front of A, with ports of its own; it lets pass what comes to one of which something has left.
fn nat() -> Interference {
    let mut mapped = HashSet::new();
    Box::new(move |from, datagram| {
        let Datagram { mut local, mut remote, data } = datagram;
        if from == A {
            local = SocketAddr::new(OUTSIDE, 20_000 + local.port());
            mapped.insert(local);
        } else if mapped.contains(&remote) {
            remote = SocketAddr::new(address(A), remote.port() - 20_000);
        } else {
            return Vec::new();
        }
        vec![Datagram { local, remote, data }]
    })
}

fn to_where(world: &World) -> Vec<SocketAddr> {
    let mut to: Vec<_> = world.sent.iter().filter(|sent| sent.1 == B).map(|sent| sent.2.remote).collect();
    to.dedup();
    to
}

/// A peer that is behind a NAT, or at any address, has lost its SAs, and shows its token through the NAT's mapping: it is
/// initiated to where it was, for the configuration does not say where that is.
#[test]
fn after_a_proof_a_peer_is_initiated_to_where_it_was() {
    fn anywhere(config: &mut Config) {
        if config.name == "gateway1" {
            config.connections[0].remote = None;
        }
    }
    fn outside(config: &mut Config) {
        if config.name == "gateway1" {
            config.connections[0].remote = Some(OUTSIDE);
        }
    }
    let [behind, configured] = [24_500, 500].map(|port| SocketAddr::new(OUTSIDE, port));
    for change in [anywhere as fn(&mut Config), outside] {
        let setup = Setup { change: Some(change), sending: [false; 2], ..Setup::default() };
        let mut world = World::new(setup.clone());
        world.interference = Some(nat());
        world.wish(A, |gateway, now| gateway.initiate(now, "site", None)).unwrap();
        world.run(SECOND);
        assert_eq!(world.gateway(B).sas()[0].remote, behind);
        crash_and_restart(&mut world, A, SECOND);
        world.wish(B, |gateway, now| gateway.rekey(now, "site", Some("net"))).unwrap();
        let back = |world: &World| world.told(B, "proof") == 1 && one_ike_sa_each(world);
        let took = world.run_until(60 * SECOND, back);
        assert!(took <= bound(&setup, 3), "{took:?}: {:#?}", world.story());
        let sa = &world.gateway(B).sas()[0];
        assert_eq!((sa.initiator, sa.remote), (true, behind));

        // The mapping is gone. What is configured is tried next; else it is given up in the end.
        world.interference = Some(Box::new(|_, _| Vec::new()));
        world.wish(B, |gateway, now| gateway.rekey(now, "site", Some("net"))).unwrap();
        world.run_until(60 * SECOND, |world| world.gateway(B).sas().is_empty());
        world.sent.clear();
        let any = world.gateway(B).configured("site").unwrap().remote.is_none();
        let mut fail = || {
            let begun = world.wish(B, |gateway, now| gateway.initiate(now, "site", None));
            world.run_until(60 * SECOND, |world| world.gateway(B).sas().is_empty());
            begun
        };
        let tries = if any { 12 } else { 2 };
        let begun = (0..tries).map(|_| fail()).take_while(Result::is_ok).count();
        let expected = if any { (10, vec![behind]) } else { (2, vec![behind, configured]) };
        assert_eq!((begun, to_where(&world)), expected);
    }
}
