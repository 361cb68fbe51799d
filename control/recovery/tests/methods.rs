//! The methods beside QCD, and their preference: INITIAL_CONTACT from the side that started, tokens shown unasked, one
//! lost Child SA told and made again.

mod common;

use common::world::{A, B, INTERVAL, Setup, World};
use spindle_abi::{Event, Selector, SelectorSet, Spi, SpiReport};
use spindle_ike::api::Identity;
use spindle_recovery::api::Config;
use spindle_recovery::api::Method::{InitialContact, Liveness, Qcd};
use std::time::Duration;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn restart(world: &mut World, side: usize, down: Duration) {
    world.crash(side);
    world.run(down);
    world.start(side);
}

fn recovery(world: &mut World, side: usize, limit: Duration) -> Duration {
    let before = world.sides[side].delivered.len();
    world.run_until(limit, |world| world.sides[side].delivered.len() > before)
}

fn bound(setup: &Setup, round_trips: u32) -> Duration {
    setup.delay * 2 * round_trips + INTERVAL + 10 * MS
}

/// Both hold the same single IKE SA with these Child SAs, each once.
fn agreed(world: &World, children: u8) -> bool {
    // Half-open ones of a side that crashed meanwhile end by themselves.
    let established = |side| {
        let sas = world.gateway(side).sas();
        sas.into_iter().filter(|sa| sa.state != "connecting").collect::<Vec<_>>()
    };
    let [a, b] = [A, B].map(established);
    let ([a], [b]) = (&a[..], &b[..]) else { return false };
    let mut ours: Vec<_> = a.children.iter().map(|c| (c.name.clone(), c.inbound, c.outbound)).collect();
    let mut theirs: Vec<_> = b.children.iter().map(|c| (c.name.clone(), c.outbound, c.inbound)).collect();
    ours.sort();
    theirs.sort();
    let mut names: Vec<_> = ours.iter().map(|child| child.0.clone()).collect();
    names.dedup();
    a.spis == b.spis && ours == theirs && names.len() == usize::from(children) && ours.len() == names.len()
}

fn deleted_by(world: &World, side: usize, authority: &str) -> usize {
    let told = &world.sides[side].told;
    told.iter().filter(|(_, told)| told.name == "ike-deleted" && told.detail == authority).count()
}

fn initial_contact() -> Setup {
    Setup { methods: vec![InitialContact, Liveness], ..Setup::default() }
}

/// RFC 7296 section 2.4: from ready on two round trips, and no packet of the peer is needed; what it still held ends by
/// INITIAL_CONTACT. With the journal or from the configuration alone.
#[test]
fn the_side_that_lost_its_sas_initiates_at_once_and_is_back_in_two_round_trips() {
    for journal in [true, false] {
        for delay in [Duration::ZERO, 10 * MS, 50 * MS] {
            let setup = Setup { journal, delay, ..initial_contact() };
            let mut world = World::up(setup.clone());
            world.run(5 * SECOND);
            restart(&mut world, B, SECOND);
            let took = recovery(&mut world, B, 20 * SECOND);
            assert!(took <= bound(&setup, 2), "{took:?} with {delay:?}: {:#?}", world.story());
            assert_eq!(world.told(A, "proof"), 0);
            assert!(!journal || world.stat(B, "tokens-sent") == 0);
            assert_eq!(world.stat(B, "initiated-after-start"), 1);
            world.run(5 * SECOND);
            assert_eq!(deleted_by(&world, A, "INITIAL_CONTACT"), 1, "{:#?}", world.story());
            assert!(agreed(&world, 1));
        }
    }
}

/// All Child SAs of the journal come back, with no traffic at all, whichever side had initiated.
#[test]
fn every_child_sa_of_the_journal_comes_back_without_traffic() {
    for initiator in [A, B] {
        let setup = Setup { children: 3, sending: [false; 2], ..initial_contact() };
        let mut world = World::new(setup);
        for name in ["net", "net1", "net2"] {
            world.wish(initiator, |gateway, now| gateway.initiate(now, "site", Some(name))).unwrap();
        }
        world.run(5 * SECOND);
        assert!(agreed(&world, 3), "{:#?}", world.story());
        restart(&mut world, B, SECOND);
        world.run(2 * SECOND);
        assert!(agreed(&world, 3), "{:#?}", world.story());
    }
}

/// RFC 7296 section 2.4: an entity that may be replicated MUST NOT send INITIAL_CONTACT. It initiates all the same.
#[test]
fn a_cluster_s_member_initiates_without_initial_contact() {
    let setup = Setup { replicated: true, ..initial_contact() };
    let mut world = World::up(setup.clone());
    world.run(5 * SECOND);
    restart(&mut world, B, SECOND);
    let took = recovery(&mut world, B, 20 * SECOND);
    assert!(took <= bound(&setup, 2), "{took:?}: {:#?}", world.story());
    world.run(5 * SECOND);
    assert_eq!(deleted_by(&world, A, "INITIAL_CONTACT"), 0);
}

#[test]
fn both_sides_crash_and_one_ike_sa_is_left() {
    for seed in 0..20 {
        for apart in [0, 3, 10, 25, 400] {
            let setup = Setup { seed, sending: [true, true], ..initial_contact() };
            let mut world = World::up(setup);
            world.run(2 * SECOND);
            world.crash(A);
            world.crash(B);
            world.run(SECOND);
            world.start(A);
            world.run(apart * MS);
            world.start(B);
            world.run(10 * SECOND);
            assert!(agreed(&world, 1), "seed {seed}, {apart} ms apart: {:#?}", world.story());
        }
    }
}

/// In order of preference: a token that works leaves our own initiation nothing to do; where the peer takes no
/// tokens, it comes two seconds later.
#[test]
fn a_preferred_token_comes_first_and_initiating_second() {
    let own = vec![Qcd, InitialContact, Liveness];
    for takes in [true, false] {
        let peers = if takes { own.clone() } else { vec![Liveness] };
        let setup = Setup { own_methods: [peers, own.clone()], ..Setup::default() };
        let mut world = World::up(setup.clone());
        world.run(5 * SECOND);
        restart(&mut world, B, SECOND);
        let took = recovery(&mut world, B, 20 * SECOND);
        world.run(5 * SECOND);
        let own = world.stat(B, "initiated-after-start");
        if takes {
            assert!(took <= bound(&setup, 3), "{took:?}: {:#?}", world.story());
            assert_eq!((world.told(A, "proof"), own), (1, 0));
        } else {
            assert!(took >= 2 * SECOND && took <= 2 * SECOND + bound(&setup, 2), "{took:?}");
            assert_eq!((world.told(A, "proof"), own), (0, 1));
            assert!(world.stat(A, "tokens-ignored") > 0);
        }
        assert!(agreed(&world, 1), "{:#?}", world.story());
    }
}

/// And the other way round: while our own initiation is under way no token leaves; where it does not get through, one
/// does after two seconds.
#[test]
fn where_initiating_is_preferred_tokens_wait_for_it() {
    for blocked in [false, true] {
        let setup = Setup { methods: vec![InitialContact, Qcd, Liveness], ..Setup::default() };
        let mut world = World::up(setup.clone());
        world.run(5 * SECOND);
        world.crash(B);
        world.run(SECOND);
        if blocked {
            // B's IKE_SA_INIT requests are lost; its answers are not.
            world.interference = Some(Box::new(|from, datagram| {
                let request = datagram.data[18] == 34 && datagram.data[19] & 0x20 == 0;
                if from == B && request { vec![] } else { vec![datagram] }
            }));
        }
        world.start(B);
        let took = recovery(&mut world, B, 20 * SECOND);
        if blocked {
            assert!(took >= 2 * SECOND && took <= 2 * SECOND + bound(&setup, 3), "{took:?}");
            assert_eq!(world.told(A, "proof"), 1);
        } else {
            assert!(took <= bound(&setup, 2), "{took:?}: {:#?}", world.story());
            assert_eq!(world.stat(B, "tokens-sent"), 0);
        }
        world.interference = None;
        world.run(10 * SECOND);
        assert!(agreed(&world, 1), "{:#?}", world.story());
    }
}

/// RFC 6290 section 8.2's message, unasked, once: the peer has its proof although it sends nothing.
#[test]
fn a_restarted_maker_tells_its_peers_unasked_where_the_operator_wants_it() {
    for proactive in [true, false] {
        let setup = Setup { proactive, sending: [false; 2], children: 2, ..Setup::default() };
        let mut world = World::new(setup);
        for name in ["net", "net1"] {
            world.wish(A, |gateway, now| gateway.initiate(now, "site", Some(name))).unwrap();
        }
        world.run(SECOND);
        restart(&mut world, B, SECOND);
        world.run(2 * SECOND);
        assert_eq!(world.told(A, "proof"), usize::from(proactive));
        assert_eq!(world.stat(B, "tokens-sent-unasked"), u64::from(proactive), "one for both Child SAs");
        assert_eq!(agreed(&world, 2), proactive, "{:#?}", world.story());
    }
}

/// RFC 6290 section 9.2 for the unasked ones too: another start tells again, and no token of a living IKE SA leaves
/// (which the world checks after each).
#[test]
fn a_second_restart_tells_again_and_never_of_what_lives() {
    let setup = Setup { proactive: true, sending: [true, true], ..Setup::default() };
    let mut world = World::up(setup);
    for half_trips in 0..8 {
        restart(&mut world, B, 100 * MS);
        world.run(Duration::from_millis(10 * half_trips + 1));
        world.check_tokens(B);
    }
    world.run(20 * SECOND);
    assert!(agreed(&world, 1), "{:#?}", world.story());
    world.check_tokens(B);
}

/// RFC 7296 section 1.4.1, 1.5: one side has lost a Child SA alone. It says so under the IKE SA, with the Delete of what the
/// other side may still send on; both end with one that works, whoever sends, and the IKE SA stays.
#[test]
fn a_lost_child_sa_is_told_under_the_ike_sa_and_made_again_once() {
    for sending in [[true, false], [true, true], [false, true]] {
        for encapsulation in [false, true] {
            for seed in 0..6 {
                let setup = Setup { sending, encapsulation, seed, ..Setup::default() };
                let mut world = World::up(setup.clone());
                let before = world.gateway(A).sas()[0].spis;
                world.wish(B, |gateway, now| drop(gateway.forget(now, "site", Some("net"))));
                for side in [A, B].into_iter().filter(|side| sending[1 - side]) {
                    // Told at once; or the loser's own traffic makes it anew.
                    let took = recovery(&mut world, side, 5 * SECOND);
                    assert!(took <= SECOND + bound(&setup, 3), "{took:?}: {:#?}", world.story());
                }
                world.run(10 * SECOND);
                if sending[A] {
                    assert!(agreed(&world, 1), "{sending:?} {seed}: {:#?}", world.story());
                }
                // A side that sends nothing learns of it when it rekeys (RFC 7296 section 2.25).
                let lost: Vec<_> = world.gateway(A).sas()[0].children.iter().map(|c| c.id).collect();
                if lost.len() > 1 {
                    world.wish(A, |gateway, now| gateway.rekey(now, "site", Some("net"))).unwrap();
                    world.run(10 * SECOND);
                    assert!(agreed(&world, 1), "{sending:?} {seed}: {:#?}", world.story());
                }
                assert_eq!(world.gateway(A).sas()[0].spis, before);
                assert!(world.told(A, "rebuilding") <= 1 && world.told(B, "rebuilding") == 0);
                assert!(world.stat(B, "invalid-spi-sent-protected") <= 2);
                assert!(world.clear.is_empty());
            }
        }
    }
}

/// What nobody sends on is told of and changes nothing: at most once a second, and no message causes another one.
#[test]
fn esp_on_made_up_spis_makes_nobody_rebuild() {
    let mut world = World::up(Setup::default());
    let before = [A, B].map(|side| world.gateway(side).sas());
    let [source, destination] = ["192.0.2.1:0", "192.0.2.2:0"].map(|text| text.parse().unwrap());
    let sent = world.sent.len();
    for n in 0..100 {
        let report = SpiReport { spi: Spi(0x7777_0000 + n), sequence: 1, source, destination, at: world.now };
        world.tell(B, Event::UnknownSpi(report));
        world.run(100 * MS);
    }
    let told = world.stat(B, "invalid-spi-sent-protected");
    assert!((9..=11).contains(&told), "{told} in ten seconds");
    assert_eq!(world.sent.len() - sent, 2 * told as usize, "a request and its answer each");
    assert_eq!([A, B].map(|side| world.gateway(side).sas()), before);
    assert_eq!(world.told(A, "rebuilding") + world.told(A, "hint"), 0);
}

/// Another connection between the same addresses, under identities of its own, for other packets.
fn two_connections(config: &mut Config) {
    let mut other = config.connections[0].clone();
    other.name = "other".into();
    let id = |id: &Identity| match id {
        Identity::Fqdn(name) => Identity::Fqdn(format!("other.{name}")),
        other => panic!("{other:?}"),
    };
    (other.local_id, other.remote_id) = (id(&other.local_id), id(&other.remote_id));
    let both = |first: [u8; 4], last: [u8; 4]| Selector::addresses(first.into(), last.into());
    let one = both([10, 20, 0, 0], [10, 21, 255, 255]);
    let child = other.children.first_mut().unwrap();
    child.policy += 100;
    child.selectors = SelectorSet { local: vec![one], remote: vec![one] };
    config.connections.push(other);
}

/// Both connections are up, `site` longer; its peer sends.
fn two_up(setup: &Setup) -> World {
    let mut world = World::up(Setup { change: Some(two_connections), ..setup.clone() });
    world.wish(B, |gateway, now| gateway.initiate(now, "other", None)).unwrap();
    world.run(5 * SECOND);
    let [site, other] = ["site", "other"].map(|name| world.gateway(B).sas_of(name)[0].id);
    assert!(site < other);
    world
}

/// RFC 7296 section 1.5: of which of its IKE SAs with the peer an unknown SPI was, the loser does not know. It is told under
/// each of them, and changes something under the one whose it is.
#[test]
fn a_lost_child_sa_is_made_again_though_another_connection_is_between_the_same_addresses() {
    for encapsulation in [false, true] {
        let setup = Setup { encapsulation, ..Setup::default() };
        let mut world = two_up(&setup);
        let before = [A, B].map(|side| world.gateway(side).sas_of("other"));
        world.wish(B, |gateway, now| drop(gateway.forget(now, "site", Some("net"))));
        let took = recovery(&mut world, B, 5 * SECOND);
        assert!(took <= SECOND + bound(&setup, 3), "{took:?}: {:#?}", world.story());
        world.run(5 * SECOND);
        assert_eq!(world.told(A, "rebuilding"), 1);
        assert_eq!([A, B].map(|side| world.gateway(side).sas_of("other")), before);
        assert_eq!(world.gateway(B).sas_of("site")[0].children.len(), 1);
        assert!(world.clear.is_empty(), "both connections stand: {:?}", world.clear);
    }
}

/// Where a connection has no IKE SA the packets may be that one's: so its peer is given a hint in clear, asks, and is shown
/// the token, long before it would have asked by itself.
#[test]
fn a_lost_ike_sa_is_found_though_another_connection_is_between_the_same_addresses() {
    for encapsulation in [false, true] {
        let setup = Setup { encapsulation, journal: false, ..Setup::default() };
        let mut world = two_up(&setup);
        let before = [A, B].map(|side| world.gateway(side).sas_of("other"));
        world.wish(B, |gateway, now| gateway.forget(now, "site", None)).unwrap();
        let took = recovery(&mut world, B, 60 * SECOND);
        assert!(took <= bound(&setup, 4), "{took:?}: {:#?}", world.story());
        assert_eq!((world.told(A, "hint"), world.told(A, "proof")), (1, 1), "{:#?}", world.story());
        world.run(5 * SECOND);
        assert_eq!([A, B].map(|side| world.gateway(side).sas_of("other")), before);
    }
}
