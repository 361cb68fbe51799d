//! Worlds for redirects (RFC 5685): A is the client, B the gateway that is taken down, C its other one, with the same identity
//! and key.

use super::{A, B, C, World, address, connection};
use spindle_ike::api::*;
use spindle_ike::wire::{Message, Payload, notify};
use std::net::IpAddr;
use std::time::Duration;

pub const MS: Duration = Duration::from_millis(1);
pub const SECOND: Duration = Duration::from_secs(1);
/// What B gives its peers to get to C.
pub const GRACE: Duration = Duration::from_secs(8);

/// C's: B's, at its own address.
pub fn other_gateway() -> ConnectionConfig {
    ConnectionConfig { local: address(C), ..connection(B) }
}

pub fn client(redirect_to: Vec<IpAddr>) -> ConnectionConfig {
    ConnectionConfig { redirect_to, ..connection(A) }
}

pub fn world_with(seed: u64, client: ConnectionConfig) -> World {
    let configs = [client, connection(B), other_gateway()];
    World::of(seed, configs.into_iter().map(|c| EndpointConfig::new(vec![c])).collect())
}

/// A may be redirected to C.
pub fn world(seed: u64) -> World {
    world_with(seed, client(vec![address(C)]))
}

pub fn established(seed: u64) -> World {
    world(seed).established_by_a()
}

/// B is taken down, and each of its IKE SAs dismissed.
pub fn take_down(world: &mut World, to: Option<IpAddr>) {
    world.at(B, |e, now| {
        e.take_down(now, to, GRACE);
        for sa in e.sas() {
            e.dismiss(now, sa.id);
        }
    });
}

pub fn exchanged(world: &World, side: usize) -> Vec<Authority> {
    let deleted = |r: &Report| match r {
        Report::IkeDeleted { authority, .. } => Some(authority.clone()),
        _ => None,
    };
    world.sides[side].reports.iter().filter_map(deleted).collect()
}

pub fn redirected(world: &World) -> usize {
    world.reports(B, |r| matches!(r, Report::Redirected { to, .. } if *to == address(C)))
}

pub fn followed(world: &World) -> usize {
    world.reports(A, |r| matches!(r, Report::RedirectFollowed { .. }))
}

pub fn refusals(world: &World) -> Vec<String> {
    let refused = |r: &Report| match r {
        Report::RedirectRefused { reason, .. } => Some(reason.clone()),
        _ => None,
    };
    world.sides[A].reports.iter().filter_map(refused).collect()
}

/// A and C hold the same single IKE SA with one Child SA, and B none.
#[track_caller]
pub fn assert_moved(world: &mut World) {
    let [a, c] = [A, C].map(|side| {
        let sas = world.sas(side);
        assert_eq!(sas.len(), 1, "IKE SAs of {side}: {sas:#?}");
        assert_eq!((sas[0].state, sas[0].children.len()), ("established", 1));
        sas[0].clone()
    });
    assert_eq!((a.spis, a.children[0].inbound), (c.spis, c.children[0].outbound));
    assert_eq!(a.remote, world.sides[C].address);
    assert_eq!(world.sas(B), []);
    let (before, lost) = (world.delivered, world.lost);
    world.send_esp(A);
    world.send_esp(C);
    world.run(world.latency * 2);
    assert_eq!(world.lost, lost);
    assert!(world.delivered[A] > before[A] && world.delivered[C] > before[C]);
}

/// In clear, of the messages that `from` sent: the notifications.
pub fn notifies_sent(world: &World, from: usize, kind: u16) -> Vec<Notify> {
    let sent = world.recorded.iter().filter(|(side, _)| *side == from);
    let payloads = sent.filter_map(|(_, d)| Message::parse(&d.data).ok()).flat_map(|m| m.payloads);
    let notifies = payloads.filter_map(|p| match p {
        Payload::Notify(n) if n.kind == kind => Some(n),
        _ => None,
    });
    notifies.collect()
}

pub fn redirect(data: Vec<u8>) -> Notify {
    Notify { kind: notify::REDIRECT, protocol: 0, spi: Vec::new(), data }
}

pub fn redirect_supported() -> Payload {
    Payload::Notify(Notify {
        kind: notify::REDIRECT_SUPPORTED,
        protocol: 0,
        spi: Vec::new(),
        data: Vec::new(),
    })
}
