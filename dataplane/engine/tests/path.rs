//! The path between the gateways: narrower than the first hop, told by ICMP that may be forged; fragments on it.

mod common;

use common::*;
use proptest::prelude::*;
use spindle_abi::{Command, PolicyAction, Selector, SelectorSet, Spi, SpiState, Suite, Time};
use spindle_engine::{BURST, Counter, DropReason, Frame, MemoryFrame, NextHop, PortId};
use spindle_wire::{ethernet, icmpv4, icmpv6, ipv4, ipv6, protocol, tcp};
use std::net::Ipv6Addr;

/// The ESP that A sends around a datagram with so many octets of data.
fn esp(a: &mut Gateway, length: usize) -> Vec<u8> {
    a.process(PortId::Inside, [frame(&datagram(HOST_A, HOST_B, &content(length)))]);
    packet(&a.take_sent(PortId::Outside)[0])
}

/// What A tells HOST_A of a datagram that is too large for any path; the largest that it would take.
fn told(a: &mut Gateway) -> u16 {
    a.now.0 += SECOND;
    a.process(PortId::Inside, [frame(&datagram(HOST_A, HOST_B, &content(1472)))]);
    let error = packet(&a.take_sent(PortId::Inside)[0]);
    let icmp = icmpv4::Packet::new_checked(&error[20..]).unwrap();
    let Ok(icmpv4::Repr::FragmentationNeeded { mtu }) = icmpv4::Repr::parse(&icmp) else {
        panic!("{icmp:?}")
    };
    mtu
}

/// RFC 4301 section 8.2: what ICMP tells of the path counts for the SA, for hosts' packets, and for their segments.
#[test]
fn a_narrower_path_is_learned_and_passed_on() {
    // Without and with UDP: ESP and its trailer take 20 + 8 + 8 + 2 + 16 octets at least, and 8 more.
    for (encapsulated, quoted, limit) in [(false, 8, 1246), (true, 16, 1238)] {
        let (mut a, mut b) = pair(Suite::Aes128Gcm, encapsulated);
        let whole = esp(&mut a, 1400);
        assert_eq!(told(&mut a), limit + 200);
        a.process(PortId::Outside, [too_big(&whole, 1300, quoted)]);
        assert_eq!(a.out.dropped.pop(), Some(DropReason::IcmpAboutEsp));
        assert_eq!(told(&mut a), limit);
        // DF=1 of that length passes, DF=0 beyond it in fragments, each within the path.
        let fits = datagram(HOST_A, HOST_B, &content(usize::from(limit) - 28));
        let mut longer = datagram(HOST_A, HOST_B, &content(1472));
        ipv4::Packet::new_checked(&mut longer[..]).unwrap().set_fragment(false, false, 0);
        a.process(PortId::Inside, [frame(&fits), frame(&longer)]);
        let sent = a.take_sent(PortId::Outside);
        assert_eq!(sent.len(), 3);
        assert!(sent.iter().all(|frame| packet(frame).len() <= 1300));
        b.process(PortId::Outside, sent);
        assert_eq!(packet(&b.take_sent(PortId::Inside)[0]), after_two_hops(fits));
        // SYNs both ways.
        a.process(PortId::Inside, [frame(&segment(HOST_A, HOST_B, Some(1460), b""))]);
        let mss = |packet: &[u8]| tcp::Packet::new_checked(&packet[20..]).unwrap().mss();
        b.process(PortId::Outside, a.take_sent(PortId::Outside));
        assert_eq!(mss(&packet(&b.take_sent(PortId::Inside)[0])), Some(limit - 40));
        b.process(PortId::Inside, [frame(&segment(HOST_B, HOST_A, Some(1300), b""))]);
        a.process(PortId::Outside, b.take_sent(PortId::Outside));
        assert_eq!(mss(&packet(&a.take_sent(PortId::Inside)[0])), Some(limit - 40));
        assert_eq!(a.engine.counters().count(Counter::PathMtuLearned), 1);
    }
}

/// RFC 4301 section 8.2 and RFC 5927 section 7: unless it quotes what the SA can have sent, it changes nothing.
#[test]
fn a_forged_icmp_error_changes_nothing() {
    let (mut a, _) = pair(Suite::Aes128Gcm, true);
    let whole = esp(&mut a, 1400);
    let widest = told(&mut a);
    let changed = |at: usize, to: &[u8]| {
        let mut packet = whole.clone();
        packet[at..at + to.len()].copy_from_slice(to);
        packet
    };
    // IPv4 20, UDP 8, then SPI and sequence number.
    let forged = [
        changed(28, &[0x12, 0x34, 0x56, 0x78]), // unknown
        changed(28, &TO_A.to_be_bytes()),       // inbound
        changed(32, &[0, 0, 0, 2]),             // not sent yet
        changed(32, &[0, 0, 0, 0]),
        changed(32, &[0xff; 4]),
        changed(16, &[192, 0, 2, 9]),
        changed(20, &[0x11, 0x95]),
        changed(22, &[0x11, 0x95]),
        changed(9, &[protocol::ESP]),
        changed(2, &[0x05, 0x14]), // 1,300 octets: that was not too big
        changed(6, &[0, 1]),       // a fragment, and not the first
    ];
    for packet in &forged {
        a.process(PortId::Outside, [too_big(packet, 1300, 64)]);
        assert_eq!(a.out.dropped.pop(), Some(DropReason::IcmpUnknownSa), "{:02x?}", &packet[..36]);
    }
    // From another address of ours, too little of it, a wrong checksum, other errors.
    let elsewhere = too_big(&changed(12, &[10, 1, 0, 1]), 1300, 64);
    let mut wrong = too_big(&whole, 1300, 64);
    wrong.data_mut()[50] ^= 1;
    let mut unreachable = too_big(&whole, 1300, 64);
    unreachable.data_mut()[35] = 1;
    unreachable.data_mut()[37] += 3;
    for frame in [elsewhere, too_big(&whole, 1300, 15), too_big(&whole, 1300, 0), wrong, unreachable] {
        a.process(PortId::Outside, [frame]);
        assert_eq!(a.out.dropped.pop(), Some(DropReason::IcmpUnknownSa));
    }
    assert_eq!((told(&mut a), a.engine.counters().count(Counter::PathMtuLearned)), (widest, 0));
    assert!(a.out.events.is_empty());
    a.process(PortId::Outside, [too_big(&whole, 1300, 64)]);
    assert_eq!(told(&mut a), widest - 200);
}

/// RFC 1191 sections 3 and 6.3: never raised by ICMP, forgotten after ten minutes, and not below the floor.
#[test]
fn a_path_mtu_only_falls_to_the_floor_and_is_forgotten_after_ten_minutes() {
    let (mut a, _) = pair(Suite::Aes128Gcm, false);
    let whole = esp(&mut a, 1400);
    let start = a.now.0;
    let tell = |a: &mut Gateway, mtu| a.process(PortId::Outside, [too_big(&whole, mtu, 8)]);
    tell(&mut a, 1300);
    tell(&mut a, 1400);
    assert_eq!(told(&mut a), 1246);
    a.now = Time(start + 599 * SECOND - 1);
    assert_eq!(told(&mut a), 1246);
    a.now = Time(start + 600 * SECOND);
    assert_eq!(told(&mut a), 1446);
    // A router of old does not tell the MTU (RFC 1191 section 5): the next plateau.
    tell(&mut a, 0);
    assert_eq!(told(&mut a), 950);
    for below in [500, 68, 1] {
        tell(&mut a, below);
        assert_eq!(told(&mut a), 576 - 54);
    }
}

/// What was learned is the path's, so a rekey keeps it; but not if the peer is reached elsewhere.
#[test]
fn a_path_mtu_outlives_a_rekey_and_not_a_new_path() {
    let (mut a, _) = pair(Suite::Aes128Gcm, true);
    let whole = esp(&mut a, 1400);
    a.process(PortId::Outside, [too_big(&whole, 1300, 16)]);
    a.apply(Command::InstallOutbound { sa: sa(0xb0b0, 5, true, Suite::Aes128Gcm, true) });
    a.apply(Command::RemoveOutbound { index: 1 });
    assert_eq!(told(&mut a), 1238);
    // The old SA is gone, and so is its voice.
    a.process(PortId::Outside, [too_big(&whole, 1000, 16)]);
    assert_eq!((told(&mut a), a.dropped(DropReason::IcmpUnknownSa)), (1238, 1));
    let (local, remote) = ((OUTER_A, 4500).into(), (OUTER_B, 61_000).into());
    a.apply(Command::Readdress { index: 5, local, remote });
    assert_eq!(told(&mut a), 1438);
    let whole = esp(&mut a, 1400);
    a.process(PortId::Outside, [too_big(&whole, 1300, 16)]);
    // The same address said again, as by a new control process, is not a new path.
    a.apply(Command::Readdress { index: 5, local, remote });
    assert_eq!(told(&mut a), 1238);
    let elsewhere = sa(0xb0b1, 6, true, Suite::Aes128Gcm, true);
    a.apply(Command::InstallOutbound { sa: elsewhere });
    assert_eq!(told(&mut a), 1438);
}

/// Peers choose outbound SPIs, so two may have the same.
#[test]
fn of_two_sas_with_one_spi_the_quoted_addresses_tell_which() {
    let (mut a, _) = pair(Suite::Aes128Gcm, false);
    let mut other = sa(TO_B, 9, true, Suite::Aes128Gcm, false);
    (other.remote, other.policy) = (([203, 0, 113, 9], 0).into(), 99);
    a.apply(Command::InstallOutbound { sa: other });
    let whole = esp(&mut a, 1400);
    a.process(PortId::Outside, [too_big(&whole, 1300, 8)]);
    assert_eq!(told(&mut a), 1246);
    a.apply(Command::RemoveOutbound { index: 9 });
    a.process(PortId::Outside, [too_big(&whole, 1200, 8)]);
    assert_eq!(told(&mut a), 1146);
}

/// What stands behind an ICMP error or a fragment in a burst is opened after it, and as well as what stands before.
#[test]
fn a_burst_passes_whole_wherever_something_else_stands_in_it() {
    let error = too_big(&ip(OUTER_B, OUTER_A, protocol::ESP, &[9; 64]), 1400, 64);
    let part = fragments(&ip(OUTER_A, OUTER_B, protocol::ESP, &[9; 64]), 32).remove(0);
    for (other, reason) in [(error, DropReason::IcmpUnknownSa), (part, DropReason::FragmentKept)] {
        for at in 0..BURST {
            let (mut a, mut b) = pair(Suite::Aes128Gcm, false);
            let sent = (1..BURST).map(|n| datagram(HOST_A, HOST_B, &content(n)));
            a.process(PortId::Inside, sent.clone().map(|packet| frame(&packet)));
            let mut burst = a.take_sent(PortId::Outside);
            burst.insert(at, other.clone());
            b.process(PortId::Outside, burst);
            let arrived: Vec<_> = b.take_sent(PortId::Inside).iter().map(packet).collect();
            assert!(arrived.into_iter().eq(sent.map(after_two_hops)), "{reason:?} at {at}");
            assert_eq!(b.dropped(reason), 1);
        }
    }
}

/// RFC 4301 section 5.2, step 4: what one SA carries another one need not, in one burst and of one flow.
#[test]
fn each_packet_of_a_burst_is_held_against_the_selectors_of_its_own_sa() {
    const ANOTHER: u32 = 0xb000_0002;
    let ((mut a, mut b), (mut other, _)) = (pair(Suite::Aes128Gcm, false), pair(Suite::Aes128Gcm, false));
    other.apply(Command::RemoveOutbound { index: 1 });
    other.apply(Command::InstallOutbound { sa: sa(ANOTHER, 1, true, Suite::Aes128Gcm, false) });
    let mut narrow = sa(ANOTHER, 2, false, Suite::Aes128Gcm, false);
    let neighbour = [10, 1, 0, 11].into();
    narrow.selectors.remote = vec![Selector::addresses(neighbour, neighbour)];
    b.apply(inbound(narrow));
    let sent: Vec<_> = (1..=3).map(|n| datagram(HOST_A, HOST_B, &content(n))).collect();
    for gateway in [&mut a, &mut other] {
        gateway.process(PortId::Inside, sent.iter().map(|packet| frame(packet)));
    }
    let turns = a.take_sent(PortId::Outside).into_iter().zip(other.take_sent(PortId::Outside));
    b.process(PortId::Outside, turns.flat_map(|(one, two)| [one, two]));
    let arrived: Vec<_> = b.take_sent(PortId::Inside).iter().map(packet).collect();
    assert!(arrived.into_iter().eq(sent.into_iter().map(after_two_hops)));
    assert_eq!(b.dropped(DropReason::SelectorMismatch), 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// RFC 4303 section 3.4.1: reassembly first. ESP cut on the way arrives as if it had not been, in any order.
    #[test]
    fn esp_that_was_fragmented_on_the_way_arrives(
        length in 1usize..1400, size in 1usize..100, encapsulated: bool, backwards: bool
    ) {
        let (mut a, mut b) = pair(Suite::Aes128Gcm, encapsulated);
        let sent = datagram(HOST_A, HOST_B, &content(length));
        a.process(PortId::Inside, [frame(&sent)]);
        let whole = packet(&a.take_sent(PortId::Outside)[0]);
        let mut pieces = fragments(&whole, size * 8);
        prop_assume!(pieces.len() > 1);
        if backwards {
            pieces.reverse();
        }
        let count = pieces.len() as u64;
        b.process(PortId::Outside, pieces);
        let arrived: Vec<_> = b.take_sent(PortId::Inside).iter().map(packet).collect();
        prop_assert_eq!(arrived, [after_two_hops(sent)]);
        prop_assert_eq!(b.dropped(DropReason::FragmentKept), count);
        prop_assert_eq!(b.engine.counters().count(Counter::Reassembled), 1);
    }
}

/// A larger ESP packet than any that we send ourselves, from a peer that fragments after it has encapsulated.
#[test]
fn what_fits_a_frame_is_reassembled_and_more_is_refused() {
    let (mut a, mut b) = pair(Suite::Aes128Gcm, false);
    b.hop(HOST_B, PortId::Inside);
    for (length, arrives) in [(3680, true), (3776, false)] {
        let mut esp = [TO_B.to_be_bytes(), 1u32.to_be_bytes()].concat();
        esp.resize(length + 8, 0x55);
        let pieces = fragments(&ip(OUTER_A, OUTER_B, protocol::ESP, &esp), 1480);
        b.process(PortId::Outside, pieces);
        // It is whole if it gets as far as to fail authentication.
        let failed = b.dropped(DropReason::AuthenticationFailed);
        assert_eq!(failed == 1, arrives);
        assert_eq!(b.dropped(DropReason::FragmentTooLong) == 1, !arrives);
        b = pair(Suite::Aes128Gcm, false).1;
    }
    // Without an empty frame for the whole, it is dropped.
    let whole = esp(&mut a, 1000);
    b.out.no_frames = true;
    b.process(PortId::Outside, fragments(&whole, 800));
    assert_eq!((b.dropped(DropReason::NoRoom), b.dropped(DropReason::FragmentKept)), (1, 1));
}

/// A whole packet has the verdicts that it would have had in one piece.
#[test]
fn fragments_of_other_spis_and_for_others_go_their_way() {
    let (_, mut b) = pair(Suite::Aes128Gcm, false);
    b.apply(Command::SetSpiState { spi: Spi(0x1003), state: SpiState::Former });
    for (spi, reason) in [(0x1000, DropReason::UnknownSpi), (0x1003, DropReason::FormerSpi)] {
        for encapsulated in [false, true] {
            b.process(PortId::Outside, fragments(&packet(&esp_to_b(spi, 9, encapsulated)), 32));
            assert_eq!(std::mem::take(&mut b.out.dropped).last(), Some(&reason));
        }
    }
    assert_eq!((b.out.events.len(), b.dropped(DropReason::FragmentKept)), (2, 12));
    // IKE in fragments is the kernel's.
    let ike = content(300);
    let mut octets = vec![0x11, 0x94, 1, 244, 1, 52, 0, 0];
    octets.extend(&ike);
    b.process(PortId::Outside, fragments(&ip(OUTER_A, OUTER_B, protocol::UDP, &octets), 160));
    assert_eq!(b.dropped(DropReason::ForHost), 1);
    // What is not for us is no ESP of ours, whole or not.
    let clear = echo(OUTER_A, HOST_B, &content(200));
    b.process(PortId::Outside, fragments(&clear, 104));
    assert_eq!(b.dropped(DropReason::CleartextFromOutside), 2);
}

#[test]
fn fragments_that_wait_in_vain_are_given_up_and_counted() {
    let (mut a, mut b) = pair(Suite::Aes128Gcm, false);
    let whole = esp(&mut a, 1000);
    let mut pieces = fragments(&whole, 800);
    let second = pieces.pop();
    b.process(PortId::Outside, pieces);
    b.now.0 += 10 * SECOND;
    b.sweep();
    assert_eq!(b.engine.counters().count(Counter::ReassemblyAbandoned), 1);
    b.process(PortId::Outside, second);
    assert!(b.out.sent.is_empty());
    // Its sequence number was not used up by that.
    b.process(PortId::Outside, [frame(&whole)]);
    assert_eq!(b.take_sent(PortId::Inside).len(), 1);
}

const A6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 1);
const B6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 2, 0, 0, 0, 2);

/// The pair, with an SA from A to B over outer IPv6.
fn pair_over_ipv6() -> (Gateway, Gateway) {
    let (mut a, mut b) = pair(Suite::Aes128Gcm, false);
    for (gateway, own, other) in [(&mut a, A6, B6), (&mut b, B6, A6)] {
        gateway.engine.set_local_addresses(&[own.into()]);
        let (source_mac, destination_mac) = (OUTSIDE_MAC, HOST_MAC);
        let hop = NextHop { port: PortId::Outside, source_mac, destination_mac, mtu: 1500 };
        gateway.engine.set_next_hop(other.into(), Some(hop)).unwrap();
    }
    for at_a in [true, false] {
        let (local, remote) = if at_a { (A6, B6) } else { (B6, A6) };
        let mut sa = sa(0xb0b0, 5, at_a, Suite::Aes128Gcm, false);
        (sa.local, sa.remote) = ((local, 0).into(), (remote, 0).into());
        match at_a {
            true => a.apply(Command::InstallOutbound { sa }),
            false => b.apply(inbound(sa)),
        }
    }
    (a, b)
}

/// An IPv6 packet in a frame.
fn frame_v6(source: Ipv6Addr, destination: Ipv6Addr, next_header: u8, payload: &[u8]) -> MemoryFrame {
    let mut octets = vec![0; 14 + ipv6::HEADER_LENGTH];
    let (destination_mac, ethertype) = (OUTSIDE_MAC, ethernet::IPV6);
    ethernet::Repr { destination: destination_mac, source: HOST_MAC, ethertype }.emit(&mut octets);
    let repr = ipv6::Repr {
        traffic_class: 0,
        flow_label: 0,
        next_header,
        hop_limit: 60,
        source,
        destination,
        payload_length: payload.len() as u16,
    };
    repr.emit(&mut octets[14..]);
    octets.extend(payload);
    MemoryFrame::new(&octets)
}

/// RFC 8201 section 4: as over IPv4, but less than 1,280 octets is no IPv6 link's MTU.
#[test]
fn over_ipv6_packet_too_big_is_believed_down_to_1280() {
    let (mut a, _) = pair_over_ipv6();
    a.process(PortId::Inside, [frame(&datagram(HOST_A, HOST_B, &content(1380)))]);
    let esp = a.take_sent(PortId::Outside).remove(0).data()[14..].to_vec();
    assert_eq!(told(&mut a), 1500 - 74);
    let tell = |a: &mut Gateway, mtu, quoted: &[u8]| {
        let router = Ipv6Addr::new(0x2001, 0xdb8, 0, 9, 0, 0, 0, 9);
        let mut octets = vec![0; 8];
        octets.extend(quoted);
        icmpv6::Repr::PacketTooBig { mtu }.emit(&mut octets, router, A6);
        a.process(PortId::Outside, [frame_v6(router, A6, protocol::ICMPV6, &octets)]);
        a.out.dropped.pop().unwrap()
    };
    let mut forged = esp.clone();
    forged[43] ^= 1;
    for (mtu, quoted) in [(1300, &forged), (1279, &esp), (0, &esp), (1500, &esp)] {
        assert_eq!(tell(&mut a, mtu, quoted), DropReason::IcmpUnknownSa, "{mtu}");
    }
    assert_eq!(told(&mut a), 1500 - 74);
    assert_eq!(tell(&mut a, 1280, &esp[..48]), DropReason::IcmpAboutEsp);
    assert_eq!(told(&mut a), 1280 - 74);
}

/// RFC 8200 section 4.5, RFC 5722 section 4.
#[test]
fn esp_in_fragments_of_ipv6_is_reassembled_and_an_overlap_spoils_it() {
    let (mut a, mut b) = pair_over_ipv6();
    let sent = datagram(HOST_A, HOST_B, &content(1200));
    let mut fragments = |identification: u32| {
        a.process(PortId::Inside, [frame(&sent)]);
        let esp = a.take_sent(PortId::Outside).remove(0).data()[14 + 40..].to_vec();
        let pieces = esp.chunks(512).enumerate().map(|(n, octets)| {
            let mut payload = vec![0; 8];
            let more = (n + 1) * 512 < esp.len();
            ipv6::Fragment { offset: (n * 64) as u16, more, identification }
                .emit(protocol::ESP, &mut payload);
            payload.extend(octets);
            frame_v6(A6, B6, protocol::FRAGMENT, &payload)
        });
        pieces.collect::<Vec<_>>()
    };
    let (mut first, second) = (fragments(0x0001_0000), fragments(0x0002_0000));
    first.reverse();
    // Their identifications differ in the upper half only.
    b.process(PortId::Outside, first.into_iter().zip(second).flat_map(|(one, two)| [one, two]));
    let arrived: Vec<_> = b.take_sent(PortId::Inside).iter().map(packet).collect();
    assert_eq!(arrived, [after_two_hops(sent.clone()), after_two_hops(sent.clone())]);
    let mut third = fragments(3);
    let at = 14 + ipv6::HEADER_LENGTH + 2;
    let mut lie = third[1].clone();
    lie.data_mut()[at..at + 2].copy_from_slice(&((63 << 3) | 1_u16).to_be_bytes());
    third.insert(1, lie);
    b.process(PortId::Outside, third);
    assert_eq!((b.take_sent(PortId::Inside).len(), b.dropped(DropReason::FragmentInvalid)), (0, 3));
}

/// RFC 8200 section 5, RFC 2473 section 7.1: IPv6 of 1,280 octets passes whatever the path, if need be in fragments outside;
/// more is refused.
#[test]
fn ipv6_of_1280_octets_passes_narrow_paths() {
    let (host_a, host_b) = ("2001:db8:a::1".parse().unwrap(), "2001:db8:b::1".parse::<Ipv6Addr>().unwrap());
    for over_ipv6 in [false, true] {
        let (mut a, mut b) = if over_ipv6 { pair_over_ipv6() } else { pair(Suite::Aes128Gcm, false) };
        let any = || vec![Selector::addresses(Ipv6Addr::UNSPECIFIED.into(), [0xff; 16].into())];
        let selectors = || SelectorSet { local: any(), remote: any() };
        let action = PolicyAction::Protect;
        a.apply(Command::SetPolicy { id: 9, priority: 1, action, selectors: selectors(), hold: 0 });
        for at_a in [true, false] {
            let mut sa = sa(0xb6b6, 8, at_a, Suite::Aes128Gcm, false);
            (sa.policy, sa.selectors) = (9, selectors());
            if over_ipv6 {
                let (local, remote) = if at_a { (A6, B6) } else { (B6, A6) };
                (sa.local, sa.remote) = ((local, 0).into(), (remote, 0).into());
            }
            match at_a {
                true => a.apply(Command::InstallOutbound { sa }),
                false => b.apply(inbound(sa)),
            }
        }
        let (source_mac, destination_mac) = (INSIDE_MAC, HOST_MAC);
        let hop = NextHop { port: PortId::Inside, source_mac, destination_mac, mtu: 1500 };
        b.engine.set_next_hop(host_b.into(), Some(hop)).unwrap();
        let outside = NextHop { port: PortId::Outside, mtu: 1280, ..hop };
        let peer = if over_ipv6 { B6.into() } else { OUTER_B.into() };
        a.engine.set_next_hop(peer, Some(outside)).unwrap();

        let sent = frame_v6(host_a, host_b, protocol::UDP, &content(1240));
        a.process(PortId::Inside, [sent.clone()]);
        let pieces = a.take_sent(PortId::Outside);
        assert_eq!(pieces.len(), 2);
        assert!(pieces.iter().all(|piece| piece.data().len() <= 14 + 1280));
        assert_eq!(a.engine.counters().count(Counter::FragmentedOutside), 1);
        b.process(PortId::Outside, pieces);
        let arrived = b.take_sent(PortId::Inside);
        assert_eq!(arrived[0].data()[14 + 40..], sent.data()[14 + 40..]);
        a.process(PortId::Inside, [frame_v6(host_a, host_b, protocol::UDP, &content(1241))]);
        // The sender is told (RFC 4443 section 3.2).
        assert_eq!(a.take_sent(PortId::Inside).len(), 1);
        assert_eq!((a.out.sent.len(), a.dropped(DropReason::TooBig)), (0, 1));
        a.out.no_frames = true;
        a.process(PortId::Inside, [sent]);
        assert_eq!((a.out.sent.len(), a.dropped(DropReason::TooBig)), (0, 2));
    }
}
