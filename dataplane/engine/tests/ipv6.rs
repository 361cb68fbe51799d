//! IPv6 inside and outside, in every combination with IPv4, through two engines back to back.

mod common;

use common::*;
use proptest::prelude::*;
use spindle_abi::{Command, Event, PolicyAction, SaParameters, Selector, SelectorSet, Spi, SpiState, Suite};
use spindle_engine::{Counter, DropReason, Frame, MemoryFrame, NextHop, PortId};
use spindle_wire::ip::Head;
use spindle_wire::{checksum, ethernet, icmpv6, ipv6, protocol, tcp, udp};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

const HOST_A6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 10);
const HOST_B6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 20);
const OUTER_A6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const OUTER_B6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);

/// Selectors of both versions.
fn both(own: Ipv6Addr, other: Ipv6Addr) -> SelectorSet {
    let v4 = if own == HOST_A6 { selectors(HOST_A, HOST_B) } else { selectors(HOST_B, HOST_A) };
    let net = |host: Ipv6Addr| {
        let first = host.to_bits() >> 80 << 80;
        Selector::addresses(Ipv6Addr::from(first).into(), Ipv6Addr::from(first | u128::MAX >> 48).into())
    };
    SelectorSet { local: [v4.local, vec![net(own)]].concat(), remote: [v4.remote, vec![net(other)]].concat() }
}

fn of_six(sa: SaParameters, at_a: bool, outer_six: bool) -> SaParameters {
    let selectors = if at_a { both(HOST_A6, HOST_B6) } else { both(HOST_B6, HOST_A6) };
    let six = |address: SocketAddr| {
        let six = if address.ip() == IpAddr::V4(OUTER_A) { OUTER_A6 } else { OUTER_B6 };
        SocketAddr::new(if outer_six { six.into() } else { address.ip() }, address.port())
    };
    SaParameters { local: six(sa.local), remote: six(sa.remote), selectors, ..sa }
}

/// As [`pair`], whose tunnel carries both versions, over one of them.
fn pair_over(outer_six: bool, suite: Suite, encapsulated: bool) -> (Gateway, Gateway) {
    let mut a = Gateway::new([10, 1, 0, 1].into(), OUTER_A);
    let mut b = Gateway::new([10, 2, 0, 1].into(), OUTER_B);
    for (gateway, at_a) in [(&mut a, true), (&mut b, false)] {
        let (own, other) = if at_a { (HOST_A6, HOST_B6) } else { (HOST_B6, HOST_A6) };
        let (outer, outer6) = if at_a { (OUTER_A, OUTER_A6) } else { (OUTER_B, OUTER_B6) };
        gateway.engine.set_local_addresses(&[INSIDE6.into(), outer.into(), outer6.into()]);
        let (id, selectors) = (POLICY, both(own, other));
        gateway.apply(Command::SetPolicy {
            id,
            priority: 1,
            action: PolicyAction::Protect,
            selectors,
            hold: 0,
        });
        let (spi_in, spi_out) = if at_a { (TO_A, TO_B) } else { (TO_B, TO_A) };
        gateway.apply(inbound(of_six(sa(spi_in, 0, at_a, suite, encapsulated), at_a, outer_six)));
        let out = of_six(sa(spi_out, 1, at_a, suite, encapsulated), at_a, outer_six);
        gateway.apply(Command::InstallOutbound { sa: out });
        let peers: [IpAddr; 2] =
            if at_a { [OUTER_B.into(), OUTER_B6.into()] } else { [OUTER_A.into(), OUTER_A6.into()] };
        let hosts: [IpAddr; 2] = if at_a { [HOST_A.into(), own.into()] } else { [HOST_B.into(), own.into()] };
        for (to, port) in
            hosts.map(|to| (to, PortId::Inside)).into_iter().chain(peers.map(|to| (to, PortId::Outside)))
        {
            let hop = NextHop { port, source_mac: INSIDE_MAC, destination_mac: HOST_MAC, mtu: 1500 };
            gateway.engine.set_next_hop(to, Some(hop)).unwrap();
        }
    }
    (a, b)
}

fn frame6(packet: &[u8]) -> MemoryFrame {
    let mut octets = vec![0; 14];
    let repr = ethernet::Repr { destination: INSIDE_MAC, source: HOST_MAC, ethertype: ethernet::IPV6 };
    repr.emit(&mut octets);
    octets.extend(packet);
    octets.resize(octets.len().max(60), 0);
    MemoryFrame::new(&octets)
}

fn ip6(source: Ipv6Addr, destination: Ipv6Addr, next_header: u8, payload: &[u8]) -> Vec<u8> {
    let repr = ipv6::Repr {
        traffic_class: 0,
        flow_label: 0x12345,
        next_header,
        hop_limit: 64,
        source,
        destination,
        payload_length: payload.len() as u16,
    };
    let mut octets = vec![0; ipv6::HEADER_LENGTH];
    repr.emit(&mut octets);
    octets.extend(payload);
    octets
}

fn datagram6(source: Ipv6Addr, destination: Ipv6Addr, data: &[u8]) -> Vec<u8> {
    let mut octets = vec![0; 8];
    octets.extend(data);
    let repr = udp::Repr { source_port: 4000, destination_port: 5000, payload_length: data.len() as u16 };
    repr.emit(&mut octets);
    udp::fill_checksum(&mut octets, source, destination);
    ip6(source, destination, protocol::UDP, &octets)
}

fn segment6(mss: Option<u16>, data: &[u8]) -> Vec<u8> {
    let v4 = segment(HOST_A, HOST_B, mss, data);
    let mut octets = v4[20..].to_vec();
    tcp::fill_checksum(&mut octets, HOST_A6, HOST_B6);
    ip6(HOST_A6, HOST_B6, protocol::TCP, &octets)
}

fn echo6(data: &[u8]) -> Vec<u8> {
    let mut octets = vec![0; 8];
    octets.extend(data);
    icmpv6::Repr::EchoRequest { identifier: 1, sequence: 2 }.emit(&mut octets, HOST_A6, HOST_B6);
    ip6(HOST_A6, HOST_B6, protocol::ICMPV6, &octets)
}

/// The packet of either version in a frame, whose EtherType says which.
fn unwrapped(frame: &MemoryFrame) -> Vec<u8> {
    let view = ethernet::Frame::new_checked(frame.data()).unwrap();
    let head = Head::parse(view.payload()).unwrap();
    assert_eq!(view.ethertype(), if head.source.is_ipv6() { ethernet::IPV6 } else { ethernet::IPV4 });
    view.payload()[..head.length].to_vec()
}

fn through(a: &mut Gateway, b: &mut Gateway, frames: Vec<MemoryFrame>) -> Vec<Vec<u8>> {
    a.process(PortId::Inside, frames);
    b.process(PortId::Outside, a.take_sent(PortId::Outside));
    b.take_sent(PortId::Inside).iter().map(unwrapped).collect()
}

fn two_hops(mut octets: Vec<u8>) -> Vec<u8> {
    octets[7] -= 2;
    octets
}

fn dropped_by(b: &mut Gateway, frame: MemoryFrame) -> DropReason {
    b.out.dropped.clear();
    b.process(PortId::Outside, [frame]);
    assert!(b.out.sent.is_empty() && b.out.unresolved.is_empty());
    let [reason] = b.out.dropped[..] else { panic!("{:?}", b.out.dropped) };
    reason
}

fn sealed6(sequence: u32, plain: &[u8]) -> MemoryFrame {
    frame6(&ip6(OUTER_A6, OUTER_B6, protocol::ESP, &sealed(sequence, plain)))
}

proptest! {
    /// RFC 4301 section 5.1.2: tunnels of either version carry packets of either version.
    #[test]
    fn packets_arrive_as_they_were_sent(
        length in 1usize..=1370, outer_six: bool, inner_six: bool, udp: bool, kind in 0..3,
    ) {
        let (mut a, mut b) = pair_over(outer_six, Suite::Aes128Gcm, udp);
        let data = content(length);
        let (sent, expected) = if inner_six {
            let sent = match kind {
                0 => datagram6(HOST_A6, HOST_B6, &data),
                1 => segment6(None, &data[..length.min(1300)]),
                _ => echo6(&data),
            };
            (frame6(&sent), two_hops(sent))
        } else {
            let sent = echo(HOST_A, HOST_B, &data);
            (frame(&sent), after_two_hops(sent))
        };
        prop_assert_eq!(through(&mut a, &mut b, vec![sent]), vec![expected]);
        prop_assert_eq!(b.engine.activity(0).unwrap().packets, 1);
    }

    #[test]
    fn a_mutated_frame_is_counted_and_never_panics(mutation in mutations(80), udp: bool) {
        let (mut a, mut b) = pair_over(true, Suite::Aes128Gcm, udp);
        mutation.pass(&mut a, &mut b, frame6(&datagram6(HOST_A6, HOST_B6, &content(100))));
        prop_assert!(b.engine.counters().check().is_ok());
    }
}

#[test]
fn a_partial_checksum_arrives_complete_and_a_syn_clamped() {
    for (outer_six, udp, mss) in
        [(true, false, 1366), (true, true, 1358), (false, false, 1386), (false, true, 1378)]
    {
        let (mut a, mut b) = pair_over(outer_six, Suite::Aes128Gcm, udp);
        let right = datagram6(HOST_A6, HOST_B6, b"a local stack left the sum to the device");
        let mut partial = right.clone();
        let length = (partial.len() - 40) as u16;
        let pseudo = checksum::pseudo_header(HOST_A6, HOST_B6, protocol::UDP, length);
        partial[46..48].copy_from_slice(&checksum::fold(pseudo).to_be_bytes());
        assert_eq!(through(&mut a, &mut b, vec![frame6(&partial)]), [two_hops(right)]);
        assert_eq!(a.engine.counters().count(Counter::ChecksumsCompleted), 1);

        let arrived = through(&mut a, &mut b, vec![frame6(&segment6(Some(1440), b""))]);
        let syn = tcp::Packet::new_checked(&arrived[0][40..]).unwrap();
        assert_eq!(syn.mss(), Some(mss), "outer IPv6 {outer_six}, in UDP {udp}");
        assert!(syn.verify_checksum(HOST_A6, HOST_B6));
        let full = segment6(None, &content(usize::from(mss)));
        assert_eq!(through(&mut a, &mut b, vec![frame6(&full)]), [two_hops(full)]);
        a.process(PortId::Inside, [frame6(&segment6(None, &content(usize::from(mss) + 1)))]);
        assert_eq!(a.dropped(DropReason::TooBig), 1);
    }
}

/// RFC 4443 section 3.2, and section 2.4 e and f.
#[test]
fn too_big_is_told_to_the_sender_with_the_mtu_that_fits_and_never_cut() {
    for outer_six in [false, true] {
        let (mut a, mut b) = pair_over(outer_six, Suite::Aes128Gcm, true);
        let big = datagram6(HOST_A6, HOST_B6, &content(1440));
        a.process(PortId::Inside, [frame6(&big)]);
        let error = unwrapped(&a.take_sent(PortId::Inside)[0]);
        let outer = ipv6::Packet::new_checked(&error[..]).unwrap();
        assert_eq!((outer.source(), outer.destination(), outer.total_length()), (INSIDE6, HOST_A6, 1280));
        let icmp = icmpv6::Packet::new_checked(outer.payload()).unwrap();
        let message = icmpv6::Repr::parse(&icmp, outer.source(), outer.destination());
        let Ok(icmpv6::Repr::PacketTooBig { mtu }) = message else { panic!("{message:?}") };
        assert_eq!(icmp.payload(), &big[..1232]);
        let fits = datagram6(HOST_A6, HOST_B6, &content(mtu as usize - 48));
        assert_eq!(through(&mut a, &mut b, vec![frame6(&fits)]), [two_hops(fits)]);
        let over = datagram6(HOST_A6, HOST_B6, &content(mtu as usize - 47));
        // None about an error, nor about a fragment but the first; and not too many.
        let mut about_error = error.clone();
        about_error.resize(1500, 0);
        let about_error = ip6(HOST_A6, HOST_B6, protocol::ICMPV6, &about_error[40..]);
        let mut fragment = vec![0; 8];
        ipv6::Fragment { offset: 100, more: false, identification: 1 }.emit(protocol::UDP, &mut fragment);
        let later = ip6(HOST_A6, HOST_B6, protocol::FRAGMENT, &[fragment, content(1440)].concat());
        a.process(PortId::Inside, [frame6(&about_error), frame6(&later)]);
        assert!(a.take_sent(PortId::Inside).is_empty());
        a.process(PortId::Inside, (0..100).map(|_| frame6(&over)));
        assert_eq!(a.take_sent(PortId::Inside).len(), 15);
        assert_eq!((a.dropped(DropReason::TooBig), a.engine.counters().count(Counter::Fragmented)), (103, 0));
    }
}

/// RFC 4443 section 3.3.
#[test]
fn a_packet_at_its_last_hop_is_answered_with_time_exceeded() {
    let (mut a, _) = pair_over(true, Suite::Aes128Gcm, false);
    for hop_limit in [0, 1] {
        let mut last = echo6(b"traceroute");
        last[7] = hop_limit;
        a.process(PortId::Inside, [frame6(&last)]);
        let error = unwrapped(&a.take_sent(PortId::Inside)[0]);
        assert_eq!((error[40], &error[48..]), (3, &last[..]));
    }
    assert_eq!(a.dropped(DropReason::TtlExpired), 2);
}

/// RFC 8200 section 4.1, RFC 4301 section 4.4.1.1: selectors see the upper layer behind extension headers.
#[test]
fn policies_see_ports_behind_extension_headers() {
    let (mut a, mut b) = pair_over(true, Suite::Aes128Gcm, false);
    let mut selectors = both(HOST_A6, HOST_B6);
    for selector in &mut selectors.remote {
        (selector.protocol, selector.start_port, selector.end_port) = (17, 5000, 5000);
    }
    a.apply(Command::SetPolicy { id: 9, priority: 0, action: PolicyAction::Discard, selectors, hold: 0 });
    let whole = datagram6(HOST_A6, HOST_B6, b"behind options");
    let behind = |next: u8, header: &[u8]| ip6(HOST_A6, HOST_B6, next, &[header, &whole[40..]].concat());
    let options = behind(protocol::DESTINATION_OPTIONS, &[17, 0, 1, 4, 0, 0, 0, 0]);
    let hop_by_hop = behind(protocol::HOP_BY_HOP, &[17, 0, 1, 4, 0, 0, 0, 0]);
    let atomic = behind(protocol::FRAGMENT, &[17, 0, 0, 0, 0, 0, 0, 9]);
    let first = behind(protocol::FRAGMENT, &[17, 0, 0, 1, 0, 0, 0, 9]);
    for packet in [&whole, &options, &hop_by_hop, &atomic, &first] {
        a.process(PortId::Inside, [frame6(packet)]);
    }
    assert_eq!(a.dropped(DropReason::PolicyDiscard), 5);
    // A later fragment shows no ports.
    let later = behind(protocol::FRAGMENT, &[17, 0, 0, 16, 0, 0, 0, 9]);
    assert_eq!(through(&mut a, &mut b, vec![frame6(&later)]), [two_hops(later)]);
    let malformed = behind(protocol::DESTINATION_OPTIONS, &[0, 0, 1, 4, 0, 0, 0, 0]);
    a.process(PortId::Inside, [frame6(&malformed)]);
    assert_eq!(a.dropped(DropReason::MalformedIp), 1);
}

/// RFC 4303 section 2.6 and RFC 4301 section 5.2, step 4.
#[test]
fn an_authentic_packet_that_lies_inside_is_dropped() {
    use DropReason::*;
    let (_, mut b) = pair_over(true, Suite::Aes128Gcm, false);
    let good = echo6(b"within");
    let trailed = |packet: &[u8], next_header: u8| [packet, &[0, next_header]].concat();
    let changed = |at: usize, octets: &[u8]| {
        let mut packet = good.clone();
        packet[at..at + octets.len()].copy_from_slice(octets);
        trailed(&packet, protocol::IPV6)
    };
    let with_options = |good: &[u8]| {
        let mut packet = good.to_vec();
        (packet[6], packet[41]) = (protocol::DESTINATION_OPTIONS, 200);
        trailed(&packet, protocol::IPV6)
    };
    let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1).octets();
    let cases = [
        (trailed(&good, protocol::IPV4), MalformedInner),
        (trailed(&echo(HOST_A, HOST_B, b"4"), protocol::IPV6), MalformedInner),
        (trailed(&good[..39], protocol::IPV6), MalformedInner),
        (changed(4, &[0xff, 0xff]), MalformedInner),
        // Destination options as long as two packets.
        (with_options(&good), MalformedInner),
        (changed(7, &[1]), TtlExpired),
        (changed(8, &OUTER_A6.octets()), SelectorMismatch),
        (changed(8, &link_local), SelectorMismatch),
        (changed(24, &INSIDE6.octets()), SelectorMismatch),
        (changed(24, &Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).octets()), SelectorMismatch),
    ];
    for (sequence, (plain, expected)) in (1..).zip(cases) {
        assert_eq!(dropped_by(&mut b, sealed6(sequence, &plain)), expected, "case {sequence}");
    }
    b.process(PortId::Outside, [sealed6(1000, &trailed(&good, protocol::IPV6))]);
    assert_eq!(b.take_sent(PortId::Inside).len(), 1);
}

/// RFC 4291 section 2.5.6: link-local and multicast never pass, whatever a policy says.
#[test]
fn what_no_router_forwards_is_dropped_on_both_sides() {
    let (mut a, mut b) = pair_over(true, Suite::Aes128Gcm, false);
    let any = || vec![Selector::addresses(Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::from(u128::MAX).into())];
    let selectors = SelectorSet { local: any(), remote: any() };
    a.apply(Command::SetPolicy { id: 9, priority: 0, action: PolicyAction::Bypass, selectors, hold: 0 });
    for address in ["fe80::1", "ff02::1", "ff05::2", "::", "::1", "::ffff:10.0.0.1"] {
        let address: Ipv6Addr = address.parse().unwrap();
        a.process(
            PortId::Inside,
            [frame6(&ip6(address, HOST_B6, 17, &[0; 8])), frame6(&ip6(HOST_A6, address, 17, &[0; 8]))],
        );
        assert_eq!(dropped_by(&mut b, frame6(&ip6(address, OUTER_B6, 50, &[9; 40]))), DropReason::NotUnicast);
    }
    assert_eq!((a.dropped(DropReason::NotUnicast), a.out.sent.len()), (12, 0));
}

/// RFC 4303 section 3.4.1 (ESP in fragments is put together first), RFC 6935 section 5 (a tunnel's UDP checksum may be zero).
#[test]
fn outer_headers_are_taken_at_their_word() {
    use DropReason::*;
    let (mut a, mut b) = pair_over(true, Suite::Aes128Gcm, true);
    a.process(PortId::Inside, (0..3).map(|_| frame6(&echo6(b"in UDP"))));
    let sent = a.take_sent(PortId::Outside);
    let packet = unwrapped(&sent[0]);
    let with = |next: u8, header: &[u8]| {
        let mut whole = [&packet[..40], header, &packet[40..]].concat();
        whole[6] = next;
        let length = (whole.len() - 40) as u16;
        whole[4..6].copy_from_slice(&length.to_be_bytes());
        frame6(&whole)
    };
    for (frame, expected) in [
        (with(protocol::FRAGMENT, &[17, 0, 0, 1, 0, 0, 0, 9]), FragmentKept),
        (with(protocol::DESTINATION_OPTIONS, &[17, 200, 0, 0, 0, 0, 0, 0]), MalformedIp),
        (with(protocol::DESTINATION_OPTIONS, &[60, 0, 1, 4, 0, 0, 0, 0].repeat(9)), MalformedIp),
        (frame6(&ip6(OUTER_A6, HOST_B6, 17, &[0; 8])), CleartextFromOutside),
        (frame6(&ip6(OUTER_A6, OUTER_B6, 58, &[128; 8])), ForHost),
        (frame6(&ip6(OUTER_A6, OUTER_B6, 59, &[])), ForHost),
        (frame(&packet), MalformedIp),
    ] {
        assert_eq!(dropped_by(&mut b, frame), expected);
    }
    // Behind options, in an atomic fragment, and without a checksum.
    let mut unsummed = unwrapped(&sent[1]);
    assert_ne!(unsummed[46..48], [0, 0]);
    unsummed[46..48].fill(0);
    b.process(
        PortId::Outside,
        [with(protocol::DESTINATION_OPTIONS, &[17, 0, 1, 4, 0, 0, 0, 0]), frame6(&unsummed)],
    );
    let mut atomic = unwrapped(&sent[2]);
    atomic.splice(40..40, [17, 0, 0, 0, 0, 0, 0, 9]);
    (atomic[6], atomic[5]) = (protocol::FRAGMENT, atomic[5] + 8);
    b.process(PortId::Outside, [frame6(&atomic)]);
    assert_eq!(b.take_sent(PortId::Inside).len(), 3);
}

/// RFC 6290 section 5.1: who sent on a former or unknown SPI is told, whatever its version.
#[test]
fn former_and_unknown_spis_are_told_with_their_ipv6_addresses() {
    let (_, mut b) = pair_over(true, Suite::Aes128Gcm, false);
    b.apply(Command::SetSpiState { spi: Spi(0x1003), state: SpiState::Former });
    let esp = |spi: u32| [&spi.to_be_bytes()[..], &[0, 0, 0, 9], &[0; 40]].concat();
    let mut in_udp = vec![0; 8];
    in_udp.extend(esp(0x1002));
    let repr = udp::Repr { source_port: 1024, destination_port: 4500, payload_length: 48 };
    repr.emit(&mut in_udp);
    b.process(
        PortId::Outside,
        [
            frame6(&ip6(OUTER_A6, OUTER_B6, protocol::UDP, &in_udp)),
            frame6(&ip6(OUTER_A6, OUTER_B6, protocol::ESP, &esp(0x1003))),
        ],
    );
    b.sweep();
    let [Event::UnknownSpi(unknown), Event::FormerSpi(former)] = b.out.events[..] else {
        panic!("{:?}", b.out.events)
    };
    assert_eq!((unknown.source, unknown.destination), ((OUTER_A6, 1024).into(), (OUTER_B6, 4500).into()));
    assert_eq!((former.source, former.destination), ((OUTER_A6, 0).into(), (OUTER_B6, 0).into()));
}

/// RFC 6040 section 4.2, across versions.
#[test]
fn congestion_on_the_way_is_shown_to_the_inner_packet() {
    for outer_six in [false, true] {
        let (mut a, mut b) = pair_over(outer_six, Suite::Aes128Gcm, false);
        let mut sent = echo6(b"ECN");
        ipv6::Packet::new_checked(&mut sent[..]).unwrap().set_traffic_class(0xb8 | 2);
        a.process(PortId::Inside, [frame6(&sent)]);
        let mut esp = a.take_sent(PortId::Outside);
        let outer = &mut esp[0].data_mut()[14..];
        assert_eq!(Head::parse(outer).unwrap().traffic_class, 0xb8 | 2);
        spindle_wire::ip::set_traffic_class(outer, 3).unwrap();
        b.process(PortId::Outside, esp);
        let arrived = unwrapped(&b.take_sent(PortId::Inside)[0]);
        assert_eq!(Head::parse(&arrived).unwrap().traffic_class, 0xb8 | 3);
    }
}
