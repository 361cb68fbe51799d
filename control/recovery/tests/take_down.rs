//! A planned take-down: peers are told, nothing begins, and no token is shown for what ended by an exchange.

mod common;

use common::world::{A, B, Setup, World};
use spindle_abi::{SpiState, Time};
use spindle_ike::api::Identity;
use spindle_recovery::api::{Config, Method};
use spindle_recovery::{TakeDownRefused, TakeDownStatus};
use std::net::IpAddr;
use std::time::Duration;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const GRACE: Duration = Duration::from_secs(3);
/// A gateway that no world here has.
const ELSEWHERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 9));

fn take_down(world: &mut World, to: Option<IpAddr>) -> Result<(), TakeDownRefused> {
    world.wish(B, |gateway, now| gateway.take_down(now, to, GRACE))
}

fn status(world: &World) -> TakeDownStatus {
    world.gateway(B).take_down_status().expect("it is taken down")
}

fn established(world: &World, side: usize) -> usize {
    world.gateway(side).sas().iter().filter(|sa| sa.state == "established").count()
}

/// What ended by a Delete has no record, so after the start its SPIs are unknown, as any other, and no token is made for
/// it: RFC 6290 section 3 has tokens for SAs that were lost. The peer's traffic makes a new IKE SA as soon as it can.
#[test]
fn after_a_take_down_no_token_is_shown_and_traffic_begins_anew() {
    for methods in [vec![Method::Qcd, Method::Liveness], vec![Method::InitialContact, Method::Liveness]] {
        for proactive in [false, true] {
            let mut world = World::up(Setup { methods: methods.clone(), proactive, ..Setup::default() });
            let spis = world.spis(B, SpiState::Current);
            assert_eq!(spis.len(), 1);
            take_down(&mut world, None).unwrap();
            world.run(SECOND);
            assert_eq!(status(&world), TakeDownStatus { peers: 1, redirected: 0, deleted: 1, left: 0 });
            assert_eq!((established(&world, A), established(&world, B)), (0, 0));
            // Said again, it changes nothing and tells the same.
            take_down(&mut world, None).unwrap();
            assert_eq!(status(&world), TakeDownStatus { peers: 1, redirected: 0, deleted: 1, left: 0 });

            world.crash(B);
            world.run(2 * SECOND);
            world.start(B);
            assert_eq!(world.spis(B, SpiState::Former), [], "no record is left");
            // What may still have been under way to the old SA.
            let (a, b) = ("192.0.2.1:0".parse().unwrap(), "192.0.2.2:0".parse().unwrap());
            world.esp(B, spis[0], a, b);
            world.run(5 * SECOND);
            assert_eq!((world.stat(B, "tokens-sent"), world.stat(B, "tokens-sent-unasked")), (0, 0));
            assert!(world.stat(B, "invalid-spi-sent") > 0, "the plain truth is told");
            assert!(world.shown[B].is_empty());
            assert_eq!(world.told(A, "proof"), 0);
            assert_eq!((established(&world, A), established(&world, B)), (1, 1), "{:#?}", world.story());
        }
    }
}

/// Whoever does not hear the Delete still holds the IKE SA: that one is lost by the stop, and its token tells so.
#[test]
fn a_peer_that_answered_nothing_is_told_by_its_token_after_the_start() {
    let mut world = World::up(Setup::default());
    world.interference = Some(Box::new(|_, _| Vec::new()));
    take_down(&mut world, None).unwrap();
    world.run(SECOND);
    assert_eq!(status(&world), TakeDownStatus { peers: 1, redirected: 0, deleted: 0, left: 1 });
    world.crash(B);
    world.interference = None;
    world.run(SECOND);
    world.start(B);
    world.run(3 * SECOND);
    assert_eq!(world.told(A, "proof"), 1, "{:#?}", world.story());
    assert_eq!((established(&world, A), established(&world, B)), (1, 1));
}

/// The side that initiated can be redirected; it cannot get there in this world, so the Delete comes after the grace.
#[test]
fn a_peer_that_may_be_redirected_is_and_has_its_grace() {
    let redirect_to: fn(&mut Config) = |config| config.connections[0].redirect_to = vec![ELSEWHERE];
    let mut world = World::up(Setup { change: Some(redirect_to), ..Setup::default() });
    take_down(&mut world, Some(ELSEWHERE)).unwrap();
    world.run(100 * MS);
    assert_eq!(status(&world), TakeDownStatus { peers: 1, redirected: 1, deleted: 0, left: 1 });
    assert_eq!((world.told(B, "redirected"), world.told(A, "redirect-followed")), (1, 1));
    assert_eq!((world.stat(B, "peers-redirected"), world.stat(A, "redirects-followed")), (1, 1));
    let delivered = world.sides[B].delivered.len();
    world.run(GRACE - 500 * MS);
    assert_eq!(status(&world).left, 1);
    assert!(world.sides[B].delivered.len() > delivered + 100, "packets pass meanwhile");
    world.run(SECOND);
    assert_eq!(status(&world), TakeDownStatus { peers: 1, redirected: 1, deleted: 1, left: 0 });
    assert_eq!(
        take_down(&mut world, Some("192.0.2.2".parse().unwrap())),
        Err(TakeDownRefused::OwnAddress("192.0.2.2".parse().unwrap()))
    );
}

/// A rekey of the IKE SA within the grace: what was done for the old one counts for its successor.
#[test]
fn a_peer_whose_ike_sa_is_rekeyed_meanwhile_is_counted_once() {
    let redirect_to: fn(&mut Config) = |config| config.connections[0].redirect_to = vec![ELSEWHERE];
    for rekeyer in [A, B] {
        let mut world = World::up(Setup { change: Some(redirect_to), ..Setup::default() });
        take_down(&mut world, Some(ELSEWHERE)).unwrap();
        world.run(100 * MS);
        world.wish(rekeyer, |gateway, now| gateway.rekey(now, "site", None)).unwrap();
        world.run(SECOND);
        assert_eq!(world.told(B, "ike-rekeyed"), 1, "{:#?}", world.story());
        // Said again, nobody is told again.
        take_down(&mut world, Some(ELSEWHERE)).unwrap();
        assert_eq!(status(&world), TakeDownStatus { peers: 1, redirected: 1, deleted: 0, left: 1 });
        world.run(GRACE);
        assert_eq!(status(&world), TakeDownStatus { peers: 1, redirected: 1, deleted: 1, left: 0 });
    }
}

/// Each redirected peer makes a handshake elsewhere, so they leave at the pace of handshakes.
#[test]
fn redirected_peers_leave_at_the_pace_of_handshakes_and_the_others_at_once() {
    const PEERS: usize = 9;
    fn many(config: &mut Config, redirect_to: Vec<IpAddr>) {
        let one = config.connections[0].clone();
        let id = |id: &Identity, n: usize| match id {
            Identity::Fqdn(name) => Identity::Fqdn(format!("{n}.{name}")),
            other => other.clone(),
        };
        config.connections = (0..PEERS)
            .map(|n| {
                let mut connection = one.clone();
                connection.name = format!("site{n}");
                connection.remote_id = id(&one.remote_id, n);
                connection.local_id = id(&one.local_id, n);
                connection.redirect_to = redirect_to.clone();
                connection.children[0].policy += n as u32;
                connection
            })
            .collect();
        config.limits.handshakes_total = 2;
    }
    let redirectable: fn(&mut Config) = |config| many(config, vec![ELSEWHERE]);
    let not: fn(&mut Config) = |config| many(config, Vec::new());
    for (change, at_once) in [(redirectable, false), (not, true)] {
        let mut world = World::new(Setup { change: Some(change), sending: [false; 2], ..Setup::default() });
        for n in 0..PEERS {
            world.wish(A, |gateway, now| gateway.initiate(now, &format!("site{n}"), None)).unwrap();
        }
        world.run(5 * SECOND);
        assert_eq!(established(&world, B), PEERS, "{:#?}", world.story());
        take_down(&mut world, Some(ELSEWHERE)).unwrap();
        assert_eq!(status(&world).peers, if at_once { PEERS } else { 2 });
        if at_once {
            world.run(SECOND);
            assert_eq!(status(&world).deleted, PEERS);
            continue;
        }
        let began = world.now;
        // Those that wait are rekeyed, and wait on.
        for n in 0..PEERS {
            world.wish(A, |gateway, now| gateway.rekey(now, &format!("site{n}"), None)).unwrap();
        }
        let mut peers = 2;
        while peers < PEERS {
            world.run_until(SECOND, |world| status(world).peers > peers);
            peers = status(&world).peers;
            let least = Time(began.0 + (peers as u64 - 2) * 450_000_000);
            assert!(world.now >= least, "{peers} after {:?}", world.now.since(began));
        }
        world.run(2 * GRACE);
        let all = TakeDownStatus { peers: PEERS, redirected: PEERS, deleted: PEERS, left: 0 };
        assert_eq!(status(&world), all);
    }
}
