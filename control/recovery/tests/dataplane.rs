//! The dataplane dies alone: the one that is started in its place is told all that the dead one knew.

mod common;

use common::world::{A, B, POLICY, Setup, World};
use spindle_abi::{Command, SpiState};
use std::time::Duration;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn ike_sas(world: &World) -> Vec<String> {
    [A, B].iter().flat_map(|side| world.gateway(*side).sas()).map(|sa| format!("{:?}", sa.spis)).collect()
}

/// Installed, retired, larval and former: at any moment of a rekey, and again and again.
#[test]
fn a_new_dataplane_comes_to_know_all_that_the_dead_one_knew() {
    for side in [A, B] {
        let mut world = World::up(Setup { children: 3, sending: [true, true], ..Setup::default() });
        // A crash, so that some are former.
        world.crash(side);
        world.start(side);
        world.run(5 * SECOND);
        world.wish(side, |gateway, now| gateway.initiate(now, "site", Some("net2"))).unwrap();
        world.run(SECOND);
        let mut states = [0; 5];
        for round in 0..60 {
            if round == 10 {
                world.wish(side, |gateway, now| gateway.rekey(now, "site", Some("net"))).unwrap();
            }
            if round == 30 {
                world.wish(side, |gateway, now| gateway.rekey(now, "site", None)).unwrap();
            }
            let before = (world.known(side), ike_sas(&world), world.told(side, "installed"));
            for state in before.0.0.values() {
                states[usize::from(*state)] += 1;
            }
            assert!(!before.0.1.is_empty() && !before.0.2.is_empty());
            world.restart_dataplane(side);
            let after = (world.known(side), ike_sas(&world), world.told(side, "installed"));
            assert_eq!(before, after, "round {round}");
            world.run(if round % 2 == 0 { 3 * MS } else { 400 * MS });
        }
        for state in [SpiState::Larval, SpiState::Current, SpiState::Retired, SpiState::Former] {
            assert!(states[state as usize] > 0, "never one that is {state:?}");
        }
        assert_eq!(world.told(side, "dataplane-restarted"), 60);
        assert_eq!(world.told(side, "dataplane-ready"), 60);
        assert_eq!(world.told(side, "ready"), 2, "an incarnation each, and no more");
        let delivered = world.sides[side].delivered.len();
        world.run(SECOND);
        assert!(world.sides[side].delivered.len() > delivered + 50);
        for side in [A, B] {
            world.check_tokens(side);
        }
    }
}

/// SAs with traffic before the policies, by which their packets pass again, and all others after.
#[test]
fn sas_with_traffic_are_installed_before_all_others() {
    let mut world = World::up(Setup { children: 3, ..Setup::default() });
    for child in ["net1", "net2"] {
        world.wish(A, |gateway, now| gateway.initiate(now, "site", Some(child))).unwrap();
        world.run(SECOND);
    }
    // Of the policy's SAs the latest sends.
    world.wish(A, |gateway, now| gateway.rekey(now, "site", Some("net"))).unwrap();
    world.run(SECOND);
    for side in [A, B] {
        world.restart_dataplane(side);
        let mut kinds = String::new();
        for command in &world.sides[side].running.as_ref().unwrap().commands {
            kinds.push(match command {
                Command::InstallInbound { sa, .. } | Command::InstallOutbound { sa }
                    if sa.policy == POLICY =>
                {
                    's'
                }
                Command::InstallInbound { .. } | Command::InstallOutbound { .. } => 'o',
                Command::SetPolicy { .. } => 'p',
                _ => continue,
            });
        }
        let kinds = kinds.trim_start_matches('s').trim_start_matches('p');
        assert_eq!(kinds, "oooo", "{side}");
    }
}

/// The responder of a rekey sends on the new SA once a packet came on it (RFC 7296 section 2.8): that is reported by
/// whichever dataplane receives it.
#[test]
fn the_first_packet_is_awaited_by_the_new_dataplane_as_by_the_dead_one() {
    let mut world = World::up(Setup { sending: [true, false], delay: 50 * MS, ..Setup::default() });
    world.wish(A, |gateway, now| gateway.rekey(now, "site", Some("net"))).unwrap();
    let before = world.told(B, "installed");
    world.run_until(SECOND, |world| world.told(B, "installed") > before);
    world.restart_dataplane(B);
    world.run(SECOND);
    let (_, _, ours) = world.known(B);
    let (_, theirs, _) = world.known(A);
    let latest = ours.last().unwrap();
    assert!(theirs.contains_key(&latest.spi) && latest.index != ours[0].index || ours.len() == 1);
    assert_eq!(world.gateway(A).count(), world.gateway(B).count());
}
