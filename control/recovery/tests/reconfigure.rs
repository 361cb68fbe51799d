//! Another configuration while the gateway runs: what it does not name goes on, what it says is what it does.

mod common;

use common::world::{A, B, Setup, World};
use spindle_abi::{PolicyAction, Selector, SelectorSet};
use spindle_recovery::api::{Config, Policy};
use std::net::IpAddr;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn set(net: u8) -> SelectorSet {
    let one = |last: u8| {
        let address: IpAddr = [172, 16, net, last].into();
        vec![Selector::addresses(address, address)]
    };
    SelectorSet { local: one(1), remote: one(2) }
}

/// The connection of the world, and this many others that nobody answers; a policy before all if `blocked`.
fn with(world: &World, side: usize, others: u8, blocked: bool) -> Config {
    let mut config = world.gateway(side).configuration().clone();
    config.connections.truncate(1);
    let policies = if blocked { 1 } else { 0 };
    for (place, child) in config.connections[0].children.iter_mut().enumerate() {
        child.policy = 1 + policies + place as u32;
    }
    let next = 1 + policies + config.connections[0].children.len() as u32;
    for n in 0..others {
        let mut other = config.connections[0].clone();
        other.name = format!("other{n}");
        other.remote = Some([198, 51, 100, n].into());
        other.children.truncate(1);
        other.children[0].policy = next + u32::from(n);
        other.children[0].selectors = set(n);
        config.connections.push(other);
    }
    config.policies = (0..policies)
        .map(|_| Policy { name: "block".into(), id: 1, action: PolicyAction::Discard, selectors: set(99) })
        .collect();
    config
}

fn names(config: &Config) -> Vec<&str> {
    config.connections.iter().map(|c| c.name.as_str()).collect()
}

#[test]
fn what_did_not_change_goes_on_and_what_was_shown_is_done() {
    let mut world = World::up(Setup { children: 2, sending: [true, true], ..Setup::default() });
    world.wish(A, |gateway, now| gateway.initiate(now, "site", Some("net1"))).unwrap();
    world.run(SECOND);
    let before = (world.known(B), world.gateway(B).sas(), world.sides[B].delivered.len());
    let deleted = world.told(B, "ike-deleted");
    for (others, blocked) in [(2, false), (3, true), (1, true), (0, false), (2, true)] {
        let config = with(&world, B, others, blocked);
        let shown = world.gateway(B).changes(&config);
        assert!(
            !shown.is_empty(),
            "{others} {blocked}: {:?} to {:?}",
            names(world.gateway(B).configuration()),
            names(&config)
        );
        let done = world.wish(B, |gateway, now| gateway.reconfigure(now, config.clone()));
        assert_eq!(shown, done);
        assert!(world.gateway(B).changes(&config).is_empty(), "it says that there is more to do");
        world.run(SECOND);
        assert_eq!(world.known(B), before.0, "SAs or SPIs have changed");
        let gateway = world.gateway(B);
        let mut installed = gateway.installed().map(|(_, sa)| gateway.connection_of(sa.policy));
        assert!(installed.all(|of| of == Some("site")), "an SA is taken for another connection's");
    }
    let after = world.gateway(B).sas();
    let spis = |sas: &[spindle_ike::api::IkeSaStatus]| {
        sas.iter()
            .flat_map(|sa| sa.children.iter().map(|c| (c.inbound, c.outbound, c.policy)))
            .collect::<Vec<_>>()
    };
    assert_eq!(spis(&before.1), spis(&after));
    assert!(world.sides[B].delivered.len() >= before.2 + 490, "packets were lost");
    assert_eq!(world.told(B, "ike-deleted"), deleted);
}

#[test]
fn a_connection_that_is_gone_is_deleted_at_the_peer_and_begins_no_more() {
    let mut world = World::up(Setup { sending: [false; 2], ..Setup::default() });
    world.wish(A, |gateway, now| gateway.initiate(now, "site", None)).unwrap();
    world.run(SECOND);
    let mut config = with(&world, A, 1, false);
    config.connections.remove(0);
    config.connections[0].children[0].policy = 1;
    let done = world.wish(A, |gateway, now| gateway.reconfigure(now, config));
    assert_eq!((&done.removed[..], &done.added[..]), (&["site".into()][..], &["other0".into()][..]));
    world.run(5 * SECOND);
    for side in [A, B] {
        assert!(world.gateway(side).sas().iter().all(|sa| sa.connection != "site"), "{side}");
        assert_eq!(world.told(side, "ike-deleted"), 1);
        world.check_tokens(side);
    }
    let refused = world.wish(A, |gateway, now| gateway.initiate(now, "site", None));
    assert!(refused.is_err());
}

/// With other selectors the Child SA is made again, under the same IKE SA; with another key the IKE SA goes on.
#[test]
fn what_is_agreed_on_otherwise_is_agreed_on_again() {
    let mut world = World::up(Setup { sending: [false; 2], ..Setup::default() });
    world.wish(A, |gateway, now| gateway.initiate(now, "site", None)).unwrap();
    world.run(SECOND);
    let before = world.gateway(A).sas();
    let mut config = world.gateway(A).configuration().clone();
    config.connections[0].rekey_time = 7 * SECOND * 3600;
    let done = world.wish(A, |gateway, now| gateway.reconfigure(now, config));
    assert_eq!(done.changed[0].keys, ["rekey_time"]);
    world.run(SECOND);
    let after = world.gateway(A).sas();
    assert_eq!(before[0].children[0].inbound, after[0].children[0].inbound);

    let mut config = world.gateway(A).configuration().clone();
    let selectors = &mut config.connections[0].children[0].selectors;
    let more = selectors.local[0];
    selectors.local.push(Selector { start_port: 7, end_port: 7, protocol: 17, ..more });
    let done = world.wish(A, |gateway, now| gateway.reconfigure(now, config));
    assert_eq!(done.changed[0].children_ended, ["net"]);
    world.run(SECOND);
    assert!(world.gateway(A).sas()[0].children.is_empty());
    world.wish(A, |gateway, now| gateway.initiate(now, "site", None)).unwrap();
    world.run(SECOND);
    let again = world.gateway(A).sas();
    assert_eq!(again[0].spis, before[0].spis, "the IKE SA stays");
    let [child] = &again[0].children[..] else { panic!("{again:?}") };
    assert_ne!(child.inbound, before[0].children[0].inbound);
    assert_ne!(child.policy, before[0].children[0].policy, "none of the old one's SAs is the new policy's");
    assert_eq!(world.told(A, "ike-deleted"), 0);
}
