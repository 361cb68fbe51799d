//! Virtual interfaces: what the host routes into one goes on that interface's SAs, and what comes on them goes there.

mod common;

use common::*;
use spindle_abi::{Command, PolicyAction, SaParameters, Selector, SelectorSet, Suite};
use spindle_engine::{
    ArrayVec, BURST, Counter, DropReason, Engine, EngineConfig, Frame, MemoryFrame, PortConfig, PortId,
};
use spindle_wire::{ipv4, protocol};
use std::net::Ipv4Addr;

const ANYWHERE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
/// OSPF's AllSPFRouters (RFC 2328 appendix A.1).
const ROUTERS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 5);

fn everything() -> SelectorSet {
    let all = || vec![Selector::addresses([0, 0, 0, 0].into(), [255, 255, 255, 255].into())];
    SelectorSet { local: all(), remote: all() }
}

fn policy(id: u32, selectors: SelectorSet) -> Command {
    Command::SetPolicy { id, priority: id, action: PolicyAction::Protect, selectors, hold: 1 }
}

/// An SA of this policy, for everything.
fn wide(spi: u32, index: u32, at_a: bool, policy: u32) -> SaParameters {
    SaParameters { policy, selectors: everything(), ..sa(spi, index, at_a, Suite::Aes128Gcm, false) }
}

fn from_host(gateway: &mut Gateway, interface: u16, packet: &[u8]) {
    let mut burst: ArrayVec<MemoryFrame, BURST> = ArrayVec::from_iter([frame(packet)]);
    gateway.engine.process_from_host(gateway.now, interface, &mut burst, &mut gateway.out);
    gateway.engine.counters().check().unwrap();
}

/// A has two interfaces, both for everything; the SAs of the first end with 1, those of the second with 2.
fn two_interfaces(at_a: bool) -> Gateway {
    let mut gateway = match at_a {
        true => Gateway::new(Ipv4Addr::new(10, 1, 0, 1), OUTER_A),
        false => Gateway::new(Ipv4Addr::new(10, 2, 0, 1), OUTER_B),
    };
    for interface in [1_u16, 2] {
        let number = u32::from(interface);
        gateway.apply(Command::BindPolicy { id: number, interface });
        gateway.apply(policy(number, everything()));
        let (inward, outward) = if at_a { (0xa000_0000, 0xb000_0000) } else { (0xb000_0000, 0xa000_0000) };
        gateway.apply(inbound(wide(inward + number, 2 * number, at_a, number)));
        gateway.apply(Command::InstallOutbound { sa: wide(outward + number, 2 * number + 1, at_a, number) });
    }
    gateway.hop(if at_a { OUTER_B } else { OUTER_A }, PortId::Outside);
    gateway
}

#[test]
fn the_interface_alone_chooses_among_policies_for_everything() {
    let (mut a, mut b) = (two_interfaces(true), two_interfaces(false));
    for interface in [2, 1] {
        for destination in [HOST_B, ANYWHERE, ROUTERS] {
            let sent = datagram(HOST_A, destination, b"by this one");
            from_host(&mut a, interface, &sent);
            let esp = a.take_sent(PortId::Outside).pop().unwrap();
            assert_eq!(esp.data()[34..38], (0xb000_0000 + u32::from(interface)).to_be_bytes());
            b.process(PortId::Outside, [esp]);
            let (by, arrived) = b.out.to_host.pop().unwrap();
            assert_eq!((by, &arrived.data()[14..]), (interface, &sent[..]), "unchanged, its TTL too");
        }
    }
    assert!(b.out.sent.is_empty() && b.out.dropped.is_empty());
    assert_eq!(b.engine.counters().count(Counter::DeliveredInside), 6);
}

#[test]
fn an_interface_s_policies_are_not_asked_about_others_packets() {
    let mut a = two_interfaces(true);
    let packet = datagram(HOST_A, HOST_B, b"");
    from_host(&mut a, 3, &packet);
    from_host(&mut a, 0, &packet);
    a.process(PortId::Inside, [frame(&packet)]);
    assert_eq!(a.dropped(DropReason::NoPolicy), 3);
    a.process(PortId::Outside, [frame(&datagram(ANYWHERE, HOST_A, b"in clear"))]);
    assert_eq!(a.dropped(DropReason::CleartextFromOutside), 1);
    assert!(a.out.sent.is_empty() && a.out.to_host.is_empty());
}

#[test]
fn what_waits_for_an_sa_goes_on_by_the_interface_it_came_from() {
    let mut a = two_interfaces(true);
    a.apply(Command::RemoveOutbound { index: 5 });
    from_host(&mut a, 2, &datagram(HOST_A, ANYWHERE, b"waits"));
    let (policy, frame) = a.out.without_sa.pop().unwrap();
    assert_eq!(policy, 2);
    a.apply(Command::InstallOutbound { sa: wide(0xb000_0002, 5, true, 2) });
    a.engine.take_up(a.now, policy, frame, &mut a.out);
    let esp = a.take_sent(PortId::Outside).pop().unwrap();
    assert_eq!(esp.data()[34..38], [0xb0, 0, 0, 2]);
    a.engine.counters().check().unwrap();
}

#[test]
fn a_policy_keeps_its_interface() {
    let mut a = two_interfaces(true);
    assert!(a.engine.apply(a.now, Command::BindPolicy { id: 1, interface: 2 }).is_err());
    assert!(a.engine.apply(a.now, Command::BindPolicy { id: 1, interface: 1 }).is_ok());
    from_host(&mut a, 1, &datagram(HOST_A, ANYWHERE, b""));
    assert_eq!(a.take_sent(PortId::Outside).len(), 1);
}

/// A gateway whose inside is its own host.
fn host_gateway() -> Gateway {
    let (own, port) = (Ipv4Addr::new(10, 1, 0, 1), |mtu| PortConfig {
        mac: OUTSIDE_MAC,
        mtu,
        complete_checksums: false,
        address: None,
        address_v6: None,
    });
    let config = EngineConfig::new(vec![own.into(), HOST_A.into(), OUTER_A.into()], port(1500), port(1500));
    let engine = Engine::new(EngineConfig { inside_is_host: true, ..config });
    let mut a = Gateway { engine, ..Gateway::new(own, OUTER_A) };
    a.apply(policy(POLICY, selectors(HOST_A, HOST_B)));
    a.apply(inbound(sa(TO_A, 0, true, Suite::Aes128Gcm, false)));
    a.apply(Command::InstallOutbound { sa: sa(TO_B, 1, true, Suite::Aes128Gcm, false) });
    a.hop(OUTER_B, PortId::Outside);
    a
}

/// RFC 4301 section 5.1.2.1, note 3: the TTL of what is the host's own is not decremented.
#[test]
fn the_host_itself_is_the_protected_side() {
    let (mut a, mut b) = (host_gateway(), pair(Suite::Aes128Gcm, false).1);
    let sent = echo(HOST_A, HOST_B, b"my own");
    from_host(&mut a, 0, &sent);
    b.process(PortId::Outside, a.take_sent(PortId::Outside));
    let arrived = b.take_sent(PortId::Inside).pop().unwrap();
    assert_eq!(packet(&arrived)[8], sent[8] - 1, "B is a router, A is none");

    let answer = echo(HOST_B, HOST_A, b"for an address of this host");
    b.process(PortId::Inside, [frame(&answer)]);
    a.process(PortId::Outside, b.take_sent(PortId::Outside));
    let (interface, arrived) = a.out.to_host.pop().unwrap();
    assert_eq!((interface, arrived.data()[14 + 8]), (0, answer[8] - 1), "B's hop");
    assert!(a.out.dropped.is_empty() && a.out.unresolved.is_empty());
}

/// RFC 1191 section 4. A host drops what seems to come from itself, so the error comes from where the packet was to go.
#[test]
fn the_host_hears_of_packets_that_are_too_long() {
    let mut a = host_gateway();
    let mut long = datagram(HOST_A, HOST_B, &content(1472));
    long[6] |= 0x40;
    (long[10], long[11]) = (0, 0);
    let sum = spindle_wire::checksum::internet(&long[..20]);
    long[10..12].copy_from_slice(&sum.to_be_bytes());
    from_host(&mut a, 0, &long);
    let (interface, error) = a.out.to_host.pop().unwrap();
    let error = ipv4::Packet::new_checked(&error.data()[14..]).unwrap();
    assert_eq!((interface, error.protocol()), (0, protocol::ICMP));
    assert_eq!((error.source(), error.destination()), (HOST_B, HOST_A));
    assert_eq!(error.payload()[..2], [3, 4]);
}
