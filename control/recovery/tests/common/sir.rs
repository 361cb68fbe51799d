//! What the tests of Safe IKE Recovery share: worlds that use it, queries, answers and what left.

use super::world::{A, B, Setup, World};
use spindle_ike::api::{Datagram, Header, IkeSaStatus, IkeSpis, Notify};
use spindle_ike::check_spi::{CheckSpi, Subtype};
use spindle_ike::wire::{Message, Payload, Protection, View, add_non_esp_marker, strip_non_esp_marker};
use spindle_recovery::api::Method;
use std::net::SocketAddr;
use std::time::Duration;

pub const MS: Duration = Duration::from_millis(1);
/// The name of B.
pub const GATEWAY_B: &str = "gateway1";
pub const SECOND: Duration = Duration::from_secs(1);

pub fn setup() -> Setup {
    Setup { methods: vec![Method::Sir, Method::Liveness], ..Setup::default() }
}

/// The tunnel is up, and not too new to be asked about.
pub fn up(setup: Setup) -> World {
    let mut world = World::up(setup);
    world.run(10 * SECOND);
    world
}

pub fn crash_and_restart(world: &mut World, side: usize, down: Duration) {
    world.crash(side);
    world.run(down);
    world.start(side);
}

/// Time until the next packet is delivered at `side`.
pub fn recovery(world: &mut World, side: usize, limit: Duration) -> Duration {
    let before = world.sides[side].delivered.len();
    world.run_until(limit, |world| world.sides[side].delivered.len() > before)
}

pub fn established(world: &World, side: usize) -> Vec<IkeSpis> {
    let sas: Vec<IkeSaStatus> = world.gateway(side).sas();
    sas.iter().filter(|sa| sa.state == "established").map(|sa| sa.spis).collect()
}

pub fn one_ike_sa_each(world: &World) -> bool {
    established(world, A).len() == 1 && established(world, A) == established(world, B)
}

pub fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub fn at(side: usize) -> SocketAddr {
    socket(["192.0.2.1:500", "192.0.2.2:500"][side])
}

pub fn octets(datagram: &Datagram) -> &[u8] {
    match datagram.local.port() {
        4500 => strip_non_esp_marker(&datagram.data).unwrap_or(&[]),
        _ => &datagram.data,
    }
}

pub fn message(datagram: &Datagram) -> Option<Message> {
    View::parse(octets(datagram)).ok().filter(|view| view.protection().is_none())?.message().ok()
}

pub fn check(datagram: &Datagram) -> Option<(Header, CheckSpi)> {
    let message = message(datagram).filter(|message| message.header.exchange == 240)?;
    let check = message.payloads.iter().find_map(|p| match p {
        Payload::Notify(notify) => CheckSpi::from_notify(notify),
        _ => None,
    });
    Some((message.header, check?))
}

/// The queries that a side sent.
pub fn queries(world: &World, side: usize) -> Vec<Datagram> {
    let sent =
        world.sent.iter().filter(|(_, from, d)| *from == side && check(d).is_some_and(|(h, _)| !h.response));
    sent.map(|(.., datagram)| datagram.clone()).collect()
}

/// INVALID_IKE_SPI in clear about the IKE SA that both have, as if the other side had said it.
pub fn hint_by_pair(world: &mut World, to: usize) {
    let spis = established(world, to)[0];
    let header =
        Header { spis, next_payload: 0, exchange: 37, response: true, initiator: false, message_id: 3 };
    let payloads = vec![Payload::Notify(Notify { kind: 4, protocol: 0, spi: vec![], data: vec![] })];
    let data = Message { header, payloads }.emit();
    world.receive(to, Datagram { local: at(to), remote: at(1 - to), data });
}

/// An answer to a query, as X would make it.
pub fn answer(query: &Datagram, subtype: Subtype) -> Datagram {
    let (header, check) = check(query).unwrap();
    let header = Header { response: true, initiator: !header.initiator, ..header };
    let payloads = vec![Payload::Notify(CheckSpi { subtype, ..check }.to_notify())];
    let data = Message { header, payloads }.emit();
    let data = if query.local.port() == 4500 { add_non_esp_marker(&data) } else { data };
    Datagram { local: query.local, remote: query.remote, data }
}

/// Each IKE message that left after `since`: by whom, its exchange type, is it a response, is it protected?
pub fn messages(world: &World, since: spindle_abi::Time) -> Vec<(usize, u8, bool, bool)> {
    let sent = world.sent.iter().filter(|(at, ..)| *at >= since);
    sent.filter_map(|(_, from, datagram)| {
        let view = View::parse(octets(datagram)).ok()?;
        let header = view.header();
        Some((*from, header.exchange, header.response, view.protection() == Some(Protection::Sk)))
    })
    .collect()
}

/// The old IKE SA of `side` ended because another one was authenticated, and not before.
pub fn old_one_gave_way(world: &World, side: usize, old: IkeSpis) {
    let told = &world.sides[side].told;
    let deleted = told.iter().position(|(_, t)| t.name == "ike-deleted" && t.spis == Some(old)).unwrap();
    assert_eq!(told[deleted].1.detail, "superseded", "{:#?}", world.story());
    let made = told[..deleted].iter().rposition(|(_, t)| t.name == "ike-established" && t.spis != Some(old));
    let confirmed = told[..deleted].iter().rposition(|(_, t)| t.name == "confirmation");
    assert!(made > confirmed && confirmed.is_some(), "{:#?}", world.story());
}
