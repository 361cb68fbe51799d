//! Very many IKE SAs between two gateways, packets on one of them: a crash takes all, and none waits for the others' turn.

mod common;

use common::world::{A, B, INTERVAL, POLICY, Setup, World};
use spindle_ike::api::{Identity, IkeSpis};
use spindle_recovery::api::{Config, Method};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const CONNECTIONS: usize = 300;
/// The connection with packets: neither the first nor the last.
const BUSY: usize = 217;

fn name(n: usize) -> String {
    format!("site{n}")
}

/// The peer takes as many half-open IKE SAs as begin at once, and asks nobody for a COOKIE.
fn many_and_no_cookie(config: &mut Config) {
    config.cookie_threshold = CONNECTIONS;
    many(config);
}

/// Each connection is a peer of its own, at the same address.
fn many(config: &mut Config) {
    let one = config.connections[0].clone();
    let own = |identity: &Identity, n: usize| match identity {
        Identity::Fqdn(name) => Identity::Fqdn(format!("{n}.{name}")),
        other => other.clone(),
    };
    config.connections = (0..CONNECTIONS)
        .map(|n| {
            let mut connection = one.clone();
            connection.name = name(n);
            connection.local_id = own(&one.local_id, n);
            connection.remote_id = own(&one.remote_id, n);
            connection.dpd_delay = 10 * SECOND;
            // The world's packets are for the policy `POLICY`.
            connection.children[0].policy = POLICY + ((n + CONNECTIONS - BUSY) % CONNECTIONS) as u32;
            connection
        })
        .collect();
}

/// Each connection's only IKE SA, which both sides hold with the same only Child SA.
fn agreed(world: &World) -> BTreeMap<String, IkeSpis> {
    let held = |side| {
        let mut held = BTreeMap::new();
        for sa in world.gateway(side).sas() {
            assert_eq!(sa.state, "established", "{side}: {sa:?}");
            let [child] = &sa.children[..] else { panic!("{side}: {sa:?}") };
            let ends =
                if side == A { (child.inbound, child.outbound) } else { (child.outbound, child.inbound) };
            let second = held.insert(sa.connection.clone(), (sa.spis, ends));
            assert_eq!(second, None, "{side} has two IKE SAs of {}", sa.connection);
        }
        held
    };
    let ours = held(A);
    assert_eq!(ours, held(B));
    assert_eq!(ours.len(), CONNECTIONS);
    ours.into_iter().map(|(name, (spis, _))| (name, spis)).collect()
}

#[test]
fn of_very_many_ike_sas_the_one_with_packets_is_back_first_and_each_is_back_once() {
    type Change = fn(&mut Config);
    // Where many begin at once they are more than the peer takes without a COOKIE (RFC 7296 section 2.6): one more. SIR
    // waits for two between the peer's NACK and the new IKE SA.
    let cases = [
        (Method::Qcd, true, many as Change, 3),
        (Method::Qcd, false, many_and_no_cookie, 4),
        (Method::Qcd, false, many, 5),
        (Method::Sir, false, many_and_no_cookie, 5 + 2),
        (Method::Sir, false, many, 6 + 2),
        (Method::InitialContact, true, many_and_no_cookie, 2),
        (Method::InitialContact, true, many, 3),
    ];
    for (method, journal, change, round_trips) in cases {
        let methods = vec![method, Method::Liveness];
        let delay = 50 * MS;
        let setup = Setup { methods, journal, delay, change: Some(change), ..Setup::default() };
        let mut world = World::new(setup);
        for n in 0..CONNECTIONS {
            world.wish(A, |gateway, now| gateway.initiate(now, &name(n), None)).unwrap();
        }
        // Whatever is half-open ends within half a minute.
        world.run(40 * SECOND);
        let before = agreed(&world);

        world.crash(B);
        world.run(SECOND);
        world.start(B);
        let delivered = world.sides[B].delivered.len();
        let took = world.run_until(20 * SECOND, |world| world.sides[B].delivered.len() > delivered);
        // From the first packet, which comes within an interval.
        assert!(took <= 2 * delay * round_trips + INTERVAL + 10 * MS, "{took:?} by {method:?}");

        let lost: BTreeSet<IkeSpis> = before.values().copied().collect();
        let all = world.run_until(120 * SECOND, |world| {
            [A, B].into_iter().all(|side| {
                let sas = world.gateway(side).sas();
                let back = sas.iter().filter(|sa| sa.state == "established" && !lost.contains(&sa.spis));
                back.count() == CONNECTIONS
            })
        });
        // Liveness alone would take longer to give one up.
        assert!(all <= 4 * SECOND, "{all:?} by {method:?}");
        world.run(40 * SECOND);
        let after = agreed(&world);
        for (connection, spis) in &after {
            assert_ne!(Some(spis), before.get(connection), "{connection} is the one that B lost");
        }
        // Nothing is made again.
        world.run(60 * SECOND);
        assert_eq!(agreed(&world), after);
    }
}
