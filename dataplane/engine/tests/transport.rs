//! Transport mode between two hosts, each of which is a gateway's own machine.

mod common;

use common::*;
use proptest::prelude::*;
use spindle_abi::{Command, Mode, PolicyAction, SaParameters, Selector, SelectorSet, Suite};
use spindle_aead::{Algorithm, Provider};
use spindle_engine::{
    ArrayVec, BURST, Counter, DropReason, Engine, EngineConfig, Frame, MemoryFrame, NextHop, PortConfig,
    PortId, Refused,
};
use spindle_wire::ip::Head;
use spindle_wire::{checksum, ethernet, icmpv6, ipv4, ipv6, protocol, tcp, udp};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What A's NAT shows of it.
const NAT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

fn outer(at_a: bool, six: bool) -> IpAddr {
    match (six, if at_a { OUTER_A } else { OUTER_B }) {
        (false, address) => address.into(),
        (true, address) => Ipv6Addr::from(0x2001_0db8 << 96 | u128::from(address.to_bits())).into(),
    }
}

fn between(local: IpAddr, remote: IpAddr) -> SelectorSet {
    SelectorSet {
        local: vec![Selector::addresses(local, local)],
        remote: vec![Selector::addresses(remote, remote)],
    }
}

/// An SA from one end to the other as A or B sees it.
fn transport(sa: SaParameters, local: IpAddr, remote: IpAddr) -> SaParameters {
    let end = |address, of: SocketAddr| SocketAddr::new(address, of.port());
    let (local_end, remote_end) = (end(local, sa.local), end(remote, sa.remote));
    SaParameters {
        mode: Mode::Transport,
        local: local_end,
        remote: remote_end,
        selectors: between(local, remote),
        ..sa
    }
}

fn host(ends: (IpAddr, IpAddr), at_a: bool, suite: Suite, in_udp: bool) -> Gateway {
    let (local, remote) = ends;
    let port = PortConfig {
        mac: OUTSIDE_MAC,
        mtu: 1500,
        complete_checksums: false,
        address: None,
        address_v6: None,
    };
    let config = EngineConfig::new(vec![local], port.clone(), port);
    let engine = Engine::new(EngineConfig { inside_is_host: true, max_sas: 64, max_spis: 64, ..config });
    let mut gateway = Gateway { engine, ..Gateway::new(OUTER_A, OUTER_B) };
    let (id, action) = (POLICY, PolicyAction::Protect);
    gateway.apply(Command::SetPolicy { id, priority: 1, action, selectors: between(local, remote), hold: 0 });
    let (spi_in, spi_out) = if at_a { (TO_A, TO_B) } else { (TO_B, TO_A) };
    gateway.apply(inbound(transport(sa(spi_in, 0, at_a, suite, in_udp), local, remote)));
    let out = transport(sa(spi_out, 1, at_a, suite, in_udp), local, remote);
    gateway.apply(Command::InstallOutbound { sa: out });
    let port = PortId::Outside;
    let hop = NextHop { port, source_mac: OUTSIDE_MAC, destination_mac: HOST_MAC, mtu: 1500 };
    gateway.engine.set_next_hop(remote, Some(hop)).unwrap();
    gateway
}

fn hosts(six: bool, suite: Suite, in_udp: bool) -> (Gateway, Gateway) {
    let (a, b) = (outer(true, six), outer(false, six));
    (host((a, b), true, suite, in_udp), host((b, a), false, suite, in_udp))
}

fn framed(packet: &[u8]) -> MemoryFrame {
    let ethertype = if packet[0] >> 4 == 6 { ethernet::IPV6 } else { ethernet::IPV4 };
    let mut octets = vec![0; 14];
    ethernet::Repr { destination: INSIDE_MAC, source: HOST_MAC, ethertype }.emit(&mut octets);
    octets.extend(packet);
    octets.resize(octets.len().max(60), 0);
    MemoryFrame::new(&octets)
}

fn from_host(gateway: &mut Gateway, packet: &[u8]) {
    let mut burst: ArrayVec<MemoryFrame, BURST> = ArrayVec::from_iter([framed(packet)]);
    gateway.engine.process_from_host(gateway.now, 0, &mut burst, &mut gateway.out);
    gateway.engine.counters().check().unwrap();
}

/// A packet from A to B of either version.
fn packet_of(six: bool, class: u8, next: u8, payload: &[u8]) -> Vec<u8> {
    let payload_length = payload.len() as u16;
    let mut octets = match (outer(true, six), outer(false, six)) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let repr = ipv4::Repr {
                traffic_class: class,
                identification: 77,
                dont_fragment: false,
                more_fragments: false,
                fragment_offset: 0,
                ttl: 1,
                protocol: next,
                source,
                destination,
                payload_length,
            };
            let mut octets = vec![0; ipv4::HEADER_LENGTH];
            repr.emit(&mut octets);
            octets
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let repr = ipv6::Repr {
                traffic_class: class,
                flow_label: 5,
                next_header: next,
                hop_limit: 1,
                source,
                destination,
                payload_length,
            };
            let mut octets = vec![0; ipv6::HEADER_LENGTH];
            repr.emit(&mut octets);
            octets
        }
        _ => unreachable!("one version"),
    };
    octets.extend(payload);
    octets
}

fn udp_payload(six: bool, data: &[u8]) -> Vec<u8> {
    let mut octets = vec![0; 8];
    octets.extend(data);
    udp::Repr { source_port: 4000, destination_port: 5000, payload_length: data.len() as u16 }
        .emit(&mut octets);
    udp::fill_checksum(&mut octets, outer(true, six), outer(false, six));
    octets
}

/// What B's host is given of what A has sent.
fn arrived(a: &mut Gateway, b: &mut Gateway) -> Option<Vec<u8>> {
    b.process(PortId::Outside, a.take_sent(PortId::Outside));
    let (interface, frame) = b.out.to_host.pop()?;
    assert_eq!(interface, 0);
    let packet = &frame.data()[14..];
    assert_eq!(Head::parse(packet).unwrap().length, packet.len(), "no padding, no trailer");
    Some(packet.to_vec())
}

/// RFC 4303 section 3.1.1, 3.4, RFC 3948 section 3.2, 3.3: every suite, both versions, in UDP and not; TCP, UDP, ICMP, and
/// what RFC 4301 section 4.1 has transport mode for between gateways: IP in IP and GRE. DSCP, ECN and TTL are the packet's own.
#[test]
fn packets_come_back_as_they_were() {
    for case in 0..Suite::ALL.len() << 2 {
        let (six, in_udp, suite) = (case & 1 == 1, case & 2 == 2, Suite::ALL[case >> 2]);
        let (mut a, mut b) = hosts(six, suite, in_udp);
        let inner = datagram(HOST_A, HOST_B, b"in a tunnel of the kernel's");
        let gre = [&[0, 0, 8, 0][..], &inner].concat();
        let options = [protocol::UDP, 0, 1, 4, 0, 0, 0, 0];
        let behind_options = [&options[..], &udp_payload(six, b"for the destination")].concat();
        let mut payloads = vec![(protocol::IPV4, inner), (47, gre), (132, vec![9; 40])];
        payloads.push((protocol::UDP, udp_payload(six, b"datagram")));
        payloads.push((if six { protocol::ICMPV6 } else { protocol::ICMP }, vec![128, 0, 1, 2, 3, 4, 5, 6]));
        if six {
            payloads.push((protocol::DESTINATION_OPTIONS, behind_options));
        }
        for (sequence, (next, payload)) in (1u32..).zip(payloads) {
            let sent = packet_of(six, 0xb8 | 1, next, &payload);
            from_host(&mut a, &sent);
            let mut esp = a.out.sent.pop().unwrap().1;
            let headers = ip_header(six);
            let at = 14 + headers + if in_udp { 8 } else { 0 };
            assert_eq!(esp.data()[at..at + 4], TO_B.to_be_bytes());
            assert_eq!(esp.data()[at + 4..at + 8], sequence.to_be_bytes());
            let text: Vec<u8> = payload.iter().copied().take(8).collect();
            assert!(!esp.data().windows(8).any(|w| w == text), "in clear: {next}");
            // Congestion on the way is told to the host (RFC 3168).
            set_class(esp.data_mut(), 0xb8 | 3);
            a.out.sent.push((PortId::Outside, esp));
            let got = arrived(&mut a, &mut b).unwrap_or_else(|| panic!("{next}: {:?}", b.out.dropped));
            let mut expected = framed(&packet_of(six, 0xb8 | 3, next, &payload)).data()[14..].to_vec();
            expected.truncate(got.len());
            assert_eq!(got, expected, "{next}");
        }
        assert!(a.out.dropped.is_empty() && b.out.dropped.is_empty());
        let carried = a.engine.activity(1).unwrap();
        assert_eq!((carried.packets, carried.bytes), {
            let got = b.engine.activity(0).unwrap();
            (got.packets, got.bytes)
        });
    }
}

fn ip_header(six: bool) -> usize {
    if six { 40 } else { 20 }
}

fn set_class(frame: &mut [u8], class: u8) {
    spindle_wire::ip::set_traffic_class(&mut frame[14..], class).unwrap();
}

/// In fragments of so many octets, as a host cuts what is longer than its interface takes.
fn cut(whole: &[u8], six: bool, size: usize) -> Vec<Vec<u8>> {
    let header = ip_header(six);
    let payload = &whole[header..];
    let pieces = payload.chunks(size).enumerate().map(|(n, octets)| {
        let more = (n + 1) * size < payload.len();
        if !six {
            let mut piece = [&whole[..header], octets].concat();
            ipv4::rewrite_as_fragment(&mut piece, header, more, (n * size / 8) as u16);
            return piece;
        }
        let mut fragment = [0; 8];
        ipv6::Fragment { offset: (n * size / 8) as u16, more, identification: 5 }
            .emit(whole[6], &mut fragment);
        let mut piece = [&whole[..header], &fragment, octets].concat();
        piece[4..6].copy_from_slice(&(8 + octets.len() as u16).to_be_bytes());
        piece[6] = protocol::FRAGMENT;
        piece
    });
    pieces.collect()
}

/// RFC 4303 section 3.3.4: "transport mode ESP is applied only to whole IP datagrams". What the host has cut is put
/// together, and what comes of it is fragmented behind ESP; the peer puts that together.
#[test]
fn what_the_host_has_fragmented_goes_whole() {
    for (six, in_udp, length) in
        [(false, false, 2000), (false, true, 3700), (true, false, 2000), (true, true, 3600)]
    {
        let (mut a, mut b) = hosts(six, Suite::Aes128Gcm, in_udp);
        let mut sent = packet_of(six, 0, protocol::UDP, &udp_payload(six, &content(length)));
        for piece in cut(&sent, six, 1352) {
            assert!(a.out.sent.is_empty());
            from_host(&mut a, &piece);
        }
        let esp = &a.out.sent;
        assert_eq!(esp.len(), (length + 100).div_ceil(1480), "{:?}", a.out.dropped);
        for (_, frame) in esp {
            let head = Head::parse(&frame.data()[14..]).unwrap();
            assert!(head.is_fragment() && head.length <= 1500);
            assert_eq!(head.protocol, if in_udp { protocol::UDP } else { protocol::ESP });
        }
        let got = arrived(&mut a, &mut b).unwrap_or_else(|| panic!("{:?}", b.out.dropped));
        if six {
            // A fragment header has taken the flow label's place in what was put together.
            sent[1..4].fill(0);
        }
        assert_eq!(got, sent);
        let counters = a.engine.counters();
        assert_eq!(
            (counters.count(Counter::Reassembled), counters.count(Counter::FragmentedOutside)),
            (1, 1)
        );
        assert_eq!(counters.dropped(DropReason::FragmentKept), length.div_ceil(1352) as u64);
    }
}

#[test]
fn a_fragment_with_options_is_dropped() {
    let (mut a, _) = hosts(false, Suite::Aes128Gcm, false);
    let mut piece = cut(&packet_of(false, 0, protocol::UDP, &content(1600)), false, 800).remove(0);
    piece.splice(20..20, [1, 1, 1, 0]);
    piece[0] = 0x46;
    ipv4::rewrite_as_fragment(&mut piece, 24, true, 0);
    from_host(&mut a, &piece);
    assert_eq!((a.dropped(DropReason::FragmentInTransport), a.out.sent.len()), (1, 0));
}

/// RFC 4301 section 8.2: a packet that must not be fragmented and is too long once it is protected is refused, and its
/// sender told how long it may be; one of that length fits.
#[test]
fn the_sender_is_told_what_is_too_long() {
    for (six, in_udp) in [(false, false), (false, true), (true, false), (true, true)] {
        let (mut a, mut b) = hosts(six, Suite::Aes128Gcm, in_udp);
        let packet = |length: usize| {
            let mut octets = packet_of(six, 0, protocol::UDP, &content(length - ip_header(six)));
            if !six {
                octets[6] = 0x40;
                octets[10..12].fill(0);
                let sum = checksum::internet(&octets[..20]);
                octets[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            octets
        };
        from_host(&mut a, &packet(1500));
        let (_, error) = a.out.to_host.pop().unwrap();
        let octets = &error.data()[14..];
        let head = Head::parse(octets).unwrap();
        assert_eq!((head.source, head.destination), (outer(false, six), outer(true, six)));
        let payload = head.payload(octets);
        let told = match six {
            true => {
                let icmp = icmpv6::Packet::new_checked(payload).unwrap();
                let (IpAddr::V6(source), IpAddr::V6(destination)) = (head.source, head.destination) else {
                    panic!()
                };
                match icmpv6::Repr::parse(&icmp, source, destination).unwrap() {
                    icmpv6::Repr::PacketTooBig { mtu } => mtu as usize,
                    other => panic!("{other:?}"),
                }
            }
            false => usize::from(u16::from_be_bytes([payload[6], payload[7]])),
        };
        // SPI, sequence number, IV, pad length, next header, ICV: 34; and the end of the padding on four octets.
        assert_eq!(told, (1500 - 16 - 16 - if in_udp { 8 } else { 0 }) / 4 * 4 - 2);
        from_host(&mut a, &packet(told));
        assert!(arrived(&mut a, &mut b).is_some());
        from_host(&mut a, &packet(told + 1));
        assert_eq!(a.dropped(DropReason::TooBig), 2);
    }
}

/// RFC 3948 section 3.1.2, RFC 7296 section 2.23.1: A is behind a NAT, so the addresses that A's TCP and UDP have summed up
/// are not those that B sees. B's SA has the substituted selectors.
#[test]
fn checksums_are_right_behind_a_nat() {
    let (a_own, b_own) = (IpAddr::from(OUTER_A), IpAddr::from(OUTER_B));
    let mut a = host((a_own, b_own), true, Suite::Aes128Gcm, true);
    let mut b = host((b_own, NAT.into()), false, Suite::Aes128Gcm, true);
    let translate = |frame: &mut MemoryFrame, at: usize, to: Ipv4Addr| {
        let octets = &mut frame.data_mut()[14..];
        octets[at..at + 4].copy_from_slice(&to.octets());
        octets[10..12].fill(0);
        let sum = checksum::internet(&octets[..20]);
        octets[10..12].copy_from_slice(&sum.to_be_bytes());
    };
    let mut no_checksum = datagram(OUTER_A, OUTER_B, b"none");
    no_checksum[26..28].fill(0);
    for sent in [
        datagram(OUTER_A, OUTER_B, b"odd"),
        segment(OUTER_A, OUTER_B, None, &content(1000)),
        segment(OUTER_A, OUTER_B, Some(1200), b""),
        no_checksum,
    ] {
        from_host(&mut a, &sent);
        translate(&mut a.out.sent[0].1, 12, NAT);
        let got = arrived(&mut a, &mut b).unwrap_or_else(|| panic!("{:?}", b.out.dropped));
        let view = ipv4::Packet::new_checked(&got).unwrap();
        assert_eq!((view.source(), view.destination()), (NAT, OUTER_B));
        match view.protocol() {
            protocol::TCP => {
                assert!(tcp::Packet::new_checked(view.payload()).unwrap().verify_checksum(NAT, OUTER_B))
            }
            _ => {
                let datagram = udp::Packet::new_checked(view.payload()).unwrap();
                let none = sent[26..28] == [0, 0];
                assert_eq!(datagram.checksum() == 0, none);
                assert!(none || datagram.verify_checksum(NAT, OUTER_B));
            }
        }
        let at = if view.protocol() == protocol::TCP { 40 } else { 28 };
        assert_eq!(got[at..], sent[at..], "the data");
        // And back, to the NAT's address.
        let answer = datagram(OUTER_B, NAT, b"an answer");
        from_host(&mut b, &answer);
        translate(&mut b.out.sent[0].1, 16, OUTER_A);
        a.process(PortId::Outside, b.take_sent(PortId::Outside));
        let (_, frame) = a.out.to_host.pop().unwrap();
        let view = ipv4::Packet::new_checked(&frame.data()[14..]).unwrap();
        assert!(udp::Packet::new_checked(view.payload()).unwrap().verify_checksum(OUTER_B, OUTER_A));
    }
}

/// RFC 4301 section 5.2, step 4. The addresses of the outer header are nobody's word; the SA's selectors are.
#[test]
fn only_packets_between_the_ends_are_carried() {
    let (mut a, mut b) = hosts(false, Suite::Aes128Gcm, false);
    from_host(&mut a, &datagram(OUTER_A, OUTER_B, b"mine"));
    let mut esp = a.take_sent(PortId::Outside).pop().unwrap();
    let octets = &mut esp.data_mut()[14..];
    octets[12..16].copy_from_slice(&NAT.octets());
    octets[10..12].fill(0);
    let sum = checksum::internet(&octets[..20]);
    octets[10..12].copy_from_slice(&sum.to_be_bytes());
    b.process(PortId::Outside, [esp]);
    assert_eq!((b.dropped(DropReason::SelectorMismatch), b.out.to_host.len()), (1, 0));

    // An SA whose selectors are wider than its ends carries no more than what is between these.
    let everything = || vec![Selector::addresses([0, 0, 0, 0].into(), [255, 255, 255, 255].into())];
    let selectors = SelectorSet { local: everything(), remote: everything() };
    let (id, action) = (POLICY, PolicyAction::Protect);
    a.apply(Command::SetPolicy { id, priority: 1, action, selectors: selectors.clone(), hold: 0 });
    a.apply(Command::RemoveOutbound { index: 1 });
    let sa = transport(sa(TO_B, 1, true, Suite::Aes128Gcm, false), OUTER_A.into(), OUTER_B.into());
    a.apply(Command::InstallOutbound { sa: SaParameters { selectors, ..sa } });
    from_host(&mut a, &datagram(OUTER_A, HOST_B, b"to somebody else"));
    from_host(&mut a, &datagram(HOST_A, OUTER_B, b"from somebody else"));
    assert_eq!((a.dropped(DropReason::NoSa), a.out.sent.len()), (2, 0));
    from_host(&mut a, &datagram(OUTER_A, OUTER_B, b"between the ends"));
    assert_eq!(a.out.sent.len(), 1);
}

/// RFC 4301 section 4.1: a gateway uses it only as a host.
#[test]
fn hosts_behind_a_gateway_have_no_transport_mode() {
    let (mut a, _) = pair(Suite::Aes128Gcm, false);
    let sa = |index| SaParameters {
        mode: Mode::Transport,
        ..sa(0xc000_0001, index, true, Suite::Aes128Gcm, false)
    };
    for command in [inbound(sa(5)), Command::InstallOutbound { sa: sa(6) }] {
        assert_eq!(a.engine.apply(a.now, command), Err(Refused::Impossible("mode")));
    }
    a.apply(Command::BindPolicy { id: 9, interface: 1 });
    a.apply(inbound(SaParameters { policy: 9, ..sa(5) }));
}

/// What A's peer would put into ESP on the SA to B, over IPv6.
fn sealed_to_b(sequence: u32, next_header: u8, payload: &[u8]) -> MemoryFrame {
    let keys = sa(TO_B, 0, true, Suite::Aes128Gcm, false);
    let (key, salt) = keys.keymat.as_bytes().split_at(16);
    let key = Provider::Portable.key(Algorithm::Aes128Gcm, key).unwrap();
    let mut esp = [TO_B.to_be_bytes(), sequence.to_be_bytes()].concat();
    let mut nonce = [0; 12];
    nonce[..4].copy_from_slice(salt);
    nonce[8..].copy_from_slice(&sequence.to_be_bytes());
    let (mut cipher, mut icv) = ([payload, &[0, next_header]].concat(), [0; 16]);
    key.seal(&nonce, &esp, &mut cipher, &mut icv);
    esp.extend(&nonce[4..]);
    esp.extend(cipher);
    esp.extend(icv);
    framed(&packet_of(true, 0, protocol::ESP, &esp))
}

/// RFC 4303 section 2.6 (dummies), 3.3.4 (no fragments in ESP); and what makes no packet.
#[test]
fn what_the_trailer_names_must_make_a_packet() {
    let (_, mut b) = hosts(true, Suite::Aes128Gcm, false);
    let fragment = |more: bool, offset: u16| {
        let mut octets = vec![0; 8 + 18];
        ipv6::Fragment { offset, more, identification: 1 }.emit(protocol::UDP, &mut octets);
        octets
    };
    let cases = [
        (protocol::NONE, vec![7; 26], DropReason::DummyPacket),
        (protocol::FRAGMENT, fragment(true, 0), DropReason::FragmentInTransport),
        (protocol::FRAGMENT, fragment(false, 9), DropReason::FragmentInTransport),
        (protocol::DESTINATION_OPTIONS, vec![6, 200], DropReason::MalformedInner),
    ];
    for (sequence, (next, payload, reason)) in (1..).zip(cases) {
        b.process(PortId::Outside, [sealed_to_b(sequence, next, &payload)]);
        assert_eq!(b.out.dropped.pop(), Some(reason), "{next}");
    }
    // An empty payload is a packet of its header alone.
    b.process(PortId::Outside, [sealed_to_b(9, 6, &[7, 7])]);
    assert!(b.out.to_host.pop().is_some_and(|(_, frame)| frame.data().len() == 14 + 40 + 2));
}

proptest! {
    #[test]
    fn mutated_frames_never_panic(mutation in mutations(90), six: bool, in_udp: bool, more: bool) {
        let (mut a, mut b) = hosts(six, Suite::Aes128Gcm, in_udp);
        let mut sent = packet_of(six, 0, protocol::UDP, &udp_payload(six, &content(200)));
        if six && more {
            sent.splice(40..40, [sent[6], 0, 1, 4, 0, 0, 0, 0]);
            (sent[6], sent[5]) = (protocol::HOP_BY_HOP, sent[5] + 8);
        }
        mutation.pass(&mut a, &mut b, framed(&sent));
        b.engine.counters().check().unwrap();
    }
}
