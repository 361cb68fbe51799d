//! PROTECT, BYPASS and DISCARD with protocols, ports, ICMP types and fragments, from inside and from outside (RFC 4301
//! section 4.4.1, 5 and 7).

mod common;

use common::*;
use spindle_abi::{Command, PolicyAction, Selector, SelectorSet, Suite};
use spindle_engine::{Counter, DropReason, PortId};
use spindle_wire::{ipv4, protocol};
use std::net::Ipv4Addr;

/// UDP from port 4000 to port 5000, as fragments of so many octets of payload.
fn fragments(source: Ipv4Addr, destination: Ipv4Addr, length: usize) -> [Vec<u8>; 2] {
    let whole = datagram(source, destination, &content(length));
    let (header, payload) = whole.split_at(ipv4::HEADER_LENGTH);
    let cut = payload.len() / 16 * 8;
    [(0, true, &payload[..cut]), (cut / 8, false, &payload[cut..])].map(|(offset, more_fragments, part)| {
        let repr = ipv4::Repr {
            traffic_class: 0,
            identification: 0x1234,
            dont_fragment: false,
            more_fragments,
            fragment_offset: offset as u16,
            ttl: 64,
            protocol: protocol::UDP,
            source,
            destination,
            payload_length: part.len() as u16,
        };
        let mut octets = header.to_vec();
        repr.emit(&mut octets);
        [&octets, part].concat()
    })
}

fn limited(set: SelectorSet, protocol: u8, local: (u16, u16), remote: (u16, u16)) -> SelectorSet {
    let side = |side: Vec<Selector>, (start_port, end_port)| {
        side.into_iter().map(|s| Selector { protocol, start_port, end_port, ..s }).collect()
    };
    SelectorSet { local: side(set.local, local), remote: side(set.remote, remote) }
}

const ANY: (u16, u16) = (0, 65535);
const OPAQUE: (u16, u16) = (65535, 0);

fn policy(id: u32, priority: u32, action: PolicyAction, selectors: SelectorSet) -> Command {
    Command::SetPolicy { id, priority, action, selectors, hold: 0 }
}

/// A and B with one pair of SAs of these selectors, as A has them.
fn pair_of(set: &SelectorSet) -> (Gateway, Gateway) {
    let (mut a, mut b) = pair(Suite::Aes128Gcm, false);
    let mirrored = SelectorSet { local: set.remote.clone(), remote: set.local.clone() };
    for (gateway, set, spi) in [(&mut a, set, TO_B), (&mut b, &mirrored, TO_A)] {
        gateway.apply(policy(POLICY, 10, PolicyAction::Protect, set.clone()));
        gateway.apply(Command::RemoveOutbound { index: 1 });
        let at_a = spi == TO_B;
        let outbound =
            spindle_abi::SaParameters { selectors: set.clone(), ..sa(spi, 1, at_a, Suite::Aes128Gcm, false) };
        gateway.apply(Command::InstallOutbound { sa: outbound });
    }
    let spi = spindle_abi::Spi(TO_B);
    b.apply(Command::SetSpiState { spi, state: spindle_abi::SpiState::Retired });
    let inbound_sa =
        spindle_abi::SaParameters { selectors: mirrored, ..sa(TO_B, 0, false, Suite::Aes128Gcm, false) };
    b.apply(Command::SetSpiState { spi, state: spindle_abi::SpiState::Unknown });
    b.apply(inbound(inbound_sa));
    (a, b)
}

/// From inside A to inside B.
fn cross(a: &mut Gateway, b: &mut Gateway, packet: &[u8]) -> usize {
    a.process(PortId::Inside, [frame(packet)]);
    let sent = a.take_sent(PortId::Outside);
    b.process(PortId::Outside, sent);
    b.take_sent(PortId::Inside).len()
}

/// RFC 4301 section 4.4.1.1: protocol and ports are selectors, at both ends.
#[test]
fn an_sa_for_one_port_carries_nothing_else() {
    let (mut a, mut b) = pair_of(&limited(selectors(HOST_A, HOST_B), protocol::UDP, ANY, (5000, 5000)));
    assert_eq!(cross(&mut a, &mut b, &datagram(HOST_A, HOST_B, b"5000")), 1);
    let mut other = datagram(HOST_A, HOST_B, b"5001");
    other[22..24].copy_from_slice(&5001_u16.to_be_bytes());
    assert_eq!(cross(&mut a, &mut b, &other), 0);
    assert_eq!(cross(&mut a, &mut b, &segment(HOST_A, HOST_B, None, b"tcp")), 0);
    assert_eq!(cross(&mut a, &mut b, &echo(HOST_A, HOST_B, b"icmp")), 0);
    assert_eq!(cross(&mut a, &mut b, &ip(HOST_A, HOST_B, 47, &[0; 20])), 0);
    assert_eq!(a.dropped(DropReason::NoPolicy), 4);
    // A peer that sends them nevertheless: B's inbound SA does not let them in.
    let all = selectors(HOST_A, HOST_B);
    a.apply(policy(POLICY, 10, PolicyAction::Protect, all.clone()));
    a.apply(Command::RemoveOutbound { index: 1 });
    let wide = spindle_abi::SaParameters { selectors: all, ..sa(TO_B, 1, true, Suite::Aes128Gcm, false) };
    a.apply(Command::InstallOutbound { sa: wide });
    // The new outbound SA counts from 1 again; B has seen one packet.
    a.process(PortId::Inside, [frame(&datagram(HOST_A, HOST_B, b"counted"))]);
    a.take_sent(PortId::Outside);
    for packet in [other, segment(HOST_A, HOST_B, None, b"tcp"), ip(HOST_A, HOST_B, 47, &[0; 20])] {
        assert_eq!(cross(&mut a, &mut b, &packet), 0);
    }
    assert_eq!(b.dropped(DropReason::SelectorMismatch), 3);
    assert_eq!(cross(&mut a, &mut b, &datagram(HOST_A, HOST_B, b"5000")), 1);
}

/// RFC 7296 section 3.13.1: type and code in the port's place.
#[test]
fn icmp_is_told_by_type_and_code() {
    let mut a = Gateway::new(Ipv4Addr::new(10, 1, 0, 1), OUTER_A);
    a.hop(HOST_B, PortId::Outside);
    let requests = limited(selectors(HOST_A, HOST_B), protocol::ICMP, ANY, (0x800, 0x8ff));
    a.apply(policy(1, 1, PolicyAction::Bypass, requests));
    let mut reply = echo(HOST_A, HOST_B, b"");
    reply[20] = 0;
    a.process(PortId::Inside, [frame(&echo(HOST_A, HOST_B, b"")), frame(&reply)]);
    assert_eq!((a.take_sent(PortId::Outside).len(), a.dropped(DropReason::NoPolicy)), (1, 1));
}

/// RFC 4301 section 7.1: an SA without regard to ports carries fragments; one with ports does not, and section 7.2's for
/// OPAQUE carries those alone.
#[test]
fn fragments_go_where_ports_do_not_matter() {
    let whole = selectors(HOST_A, HOST_B);
    let [first, second] = fragments(HOST_A, HOST_B, 800);
    let (mut a, mut b) = pair_of(&whole);
    assert_eq!((cross(&mut a, &mut b, &first), cross(&mut a, &mut b, &second)), (1, 1));

    let (mut a, mut b) = pair_of(&limited(whole.clone(), protocol::UDP, ANY, ANY));
    assert_eq!((cross(&mut a, &mut b, &first), cross(&mut a, &mut b, &second)), (1, 1));

    let (mut a, mut b) = pair_of(&limited(whole.clone(), protocol::UDP, ANY, (5000, 5000)));
    assert_eq!((cross(&mut a, &mut b, &first), cross(&mut a, &mut b, &second)), (1, 0));
    assert_eq!((a.dropped(DropReason::FragmentWithoutPorts), a.dropped(DropReason::NoPolicy)), (1, 0));
    // Of another protocol it cannot be.
    let mut tcp = second.clone();
    tcp[9] = protocol::TCP;
    tcp[10..12].fill(0);
    let sum = spindle_wire::checksum::internet(&tcp[..20]);
    tcp[10..12].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(cross(&mut a, &mut b, &tcp), 0);
    assert_eq!((a.dropped(DropReason::FragmentWithoutPorts), a.dropped(DropReason::NoPolicy)), (1, 1));

    let (mut a, mut b) = pair_of(&limited(whole, protocol::UDP, OPAQUE, OPAQUE));
    assert_eq!((cross(&mut a, &mut b, &first), cross(&mut a, &mut b, &second)), (0, 1));
}

/// The peer's fragment on an SA whose ports are specific.
#[test]
fn a_fragment_does_not_come_in_on_an_sa_for_ports() {
    let narrow = limited(selectors(HOST_A, HOST_B), protocol::UDP, ANY, (5000, 5000));
    let (_, mut b) = pair_of(&narrow);
    let (mut a, _) = pair_of(&selectors(HOST_A, HOST_B));
    let [first, second] = fragments(HOST_A, HOST_B, 800);
    assert_eq!((cross(&mut a, &mut b, &first), cross(&mut a, &mut b, &second)), (1, 0));
    assert_eq!(
        (b.dropped(DropReason::FragmentWithoutPorts), b.dropped(DropReason::SelectorMismatch)),
        (1, 0)
    );
}

/// What belongs to a protected packet must not leave, or come, in clear, because it does not show so.
#[test]
fn a_fragment_of_what_is_protected_is_never_bypassed() {
    let whole = selectors(HOST_A, HOST_B);
    let (mut a, _) = pair_of(&limited(whole.clone(), protocol::UDP, ANY, (5000, 5000)));
    a.apply(policy(20, 20, PolicyAction::Bypass, whole.clone()));
    a.hop(HOST_B, PortId::Outside);
    let [_, second] = fragments(HOST_A, HOST_B, 800);
    a.process(PortId::Inside, [frame(&second)]);
    let [_, incoming] = fragments(HOST_B, HOST_A, 800);
    a.process(PortId::Outside, [frame(&incoming)]);
    assert_eq!(a.dropped(DropReason::FragmentWithoutPorts), 2);
    assert!(a.out.sent.is_empty());
    // Without such a policy before it a bypass for any port lets fragments by.
    a.apply(Command::RemovePolicy { id: POLICY });
    a.process(PortId::Inside, [frame(&second)]);
    assert_eq!(a.take_sent(PortId::Outside).len(), 1);
    a.process(PortId::Outside, [frame(&incoming)]);
    assert_eq!(a.take_sent(PortId::Inside).len(), 1);
    assert_eq!(a.engine.counters().count(Counter::Bypassed), 2);
    // DISCARD of a port does not stop the fragments of others.
    a.apply(policy(5, 5, PolicyAction::Discard, limited(whole.clone(), protocol::TCP, ANY, (25, 25))));
    a.process(PortId::Inside, [frame(&second)]);
    assert_eq!(a.take_sent(PortId::Outside).len(), 1);
}

/// RFC 4301 section 7.4: a later fragment goes the way of its first one, from either side, for a while; none comes before it.
#[test]
fn later_fragments_pass_where_their_first_one_was_bypassed() {
    let whole = selectors(HOST_A, HOST_B);
    let (mut a, _) = pair_of(&whole);
    let ports = (4000, 5000);
    let bypass = policy(5, 5, PolicyAction::Bypass, limited(whole.clone(), protocol::UDP, ports, ports));
    a.apply(Command::RemovePolicy { id: POLICY });
    a.apply(bypass.clone());
    a.hop(HOST_B, PortId::Outside);
    for (ingress, out, from, to) in
        [(PortId::Inside, PortId::Outside, HOST_A, HOST_B), (PortId::Outside, PortId::Inside, HOST_B, HOST_A)]
    {
        let [first, second] = fragments(from, to, 800);
        let sent = |a: &mut Gateway, octets: &[u8]| {
            a.process(ingress, [frame(octets)]);
            a.take_sent(out).len()
        };
        let before = a.dropped(DropReason::FragmentWithoutPorts);
        assert_eq!(sent(&mut a, &second), 0, "before its first one");
        assert_eq!((sent(&mut a, &first), sent(&mut a, &second), sent(&mut a, &second)), (1, 1, 1));
        a.now.0 += 5 * SECOND;
        assert_eq!(sent(&mut a, &second), 0, "long after it");
        assert_eq!(a.dropped(DropReason::FragmentWithoutPorts), before + 2);
    }
    // Where the rest is protected, fragments of what passes in clear pass in clear too; but not once nothing lets them by.
    a.apply(policy(POLICY, 10, PolicyAction::Protect, whole));
    let [first, second] = fragments(HOST_A, HOST_B, 800);
    let protocols = |a: &mut Gateway, packets: &[&[u8]]| {
        a.process(PortId::Inside, packets.iter().map(|octets| frame(octets)));
        a.take_sent(PortId::Outside).iter().map(|sent| packet(sent)[9]).collect::<Vec<_>>()
    };
    a.hop(OUTER_B, PortId::Outside);
    assert_eq!(protocols(&mut a, &[&first, &second]), [protocol::UDP; 2]);
    a.apply(Command::RemovePolicy { id: 5 });
    assert_eq!(protocols(&mut a, &[&first, &second]), [protocol::ESP; 2]);
    // What an SA carries is no first fragment that passed in clear.
    a.now.0 += 5 * SECOND;
    assert_eq!(protocols(&mut a, &[&first]), [protocol::ESP]);
    a.apply(bypass);
    assert_eq!(protocols(&mut a, &[&second]), [protocol::ESP]);
}

/// A first fragment that is too short for its ports is no better than a later one (RFC 1858).
#[test]
fn a_tiny_first_fragment_shows_no_ports() {
    let (mut a, mut b) = pair_of(&limited(selectors(HOST_A, HOST_B), protocol::TCP, ANY, (80, 80)));
    let tiny = ip(HOST_A, HOST_B, protocol::TCP, &[0x0f, 0xa0, 0]);
    assert_eq!(cross(&mut a, &mut b, &tiny), 0);
    assert_eq!(a.dropped(DropReason::FragmentWithoutPorts), 1);
}

/// RFC 4301 section 4.4.1: policies before the SA's cut out of its selectors what they match, inbound too.
#[test]
fn what_an_earlier_policy_takes_does_not_come_in_on_an_sa() {
    let whole = selectors(HOST_A, HOST_B);
    let (mut a, mut b) = pair_of(&whole);
    let mirrored = SelectorSet { local: whole.remote.clone(), remote: whole.local.clone() };
    b.apply(policy(1, 1, PolicyAction::Discard, limited(mirrored.clone(), protocol::UDP, (5000, 5000), ANY)));
    b.apply(policy(2, 2, PolicyAction::Bypass, limited(mirrored, protocol::ICMP, ANY, ANY)));
    assert_eq!(cross(&mut a, &mut b, &segment(HOST_A, HOST_B, None, b"tcp")), 1);
    assert_eq!(cross(&mut a, &mut b, &datagram(HOST_A, HOST_B, b"udp")), 0);
    assert_eq!(cross(&mut a, &mut b, &echo(HOST_A, HOST_B, b"icmp")), 0);
    assert_eq!((b.dropped(DropReason::PolicyDiscard), b.dropped(DropReason::SelectorMismatch)), (1, 1));
}

/// RFC 4301 section 5.2, step 3b: in clear comes what BYPASS names, nothing else, each with its reason.
#[test]
fn cleartext_from_outside_is_held_against_the_policies() {
    let (mut a, _) = pair_of(&limited(selectors(HOST_A, HOST_B), protocol::TCP, ANY, ANY));
    let udp = |ports| limited(selectors(HOST_A, HOST_B), protocol::UDP, ANY, ports);
    a.apply(policy(2, 2, PolicyAction::Bypass, udp((4000, 4000))));
    a.apply(policy(3, 3, PolicyAction::Discard, udp((4001, 4001))));
    let from = |port: u16| {
        let mut octets = datagram(HOST_B, HOST_A, b"in clear");
        octets[20..22].copy_from_slice(&port.to_be_bytes());
        octets
    };
    // BYPASS, DISCARD, none.
    a.process(PortId::Outside, [4000, 4001, 4002].map(|port| frame(&from(port))));
    assert_eq!((a.dropped(DropReason::PolicyDiscard), a.dropped(DropReason::CleartextFromOutside)), (1, 1));
    let [passed] = <[_; 1]>::try_from(a.take_sent(PortId::Inside)).map_err(|_| "one packet").unwrap();
    assert_eq!(packet(&passed)[20..], from(4000)[20..]);
    // PROTECT.
    a.process(PortId::Outside, [frame(&segment(HOST_B, HOST_A, None, b"clear"))]);
    assert_eq!(a.dropped(DropReason::CleartextFromOutside), 2);
    assert_eq!(a.engine.in_clear().count(), 1);
}
