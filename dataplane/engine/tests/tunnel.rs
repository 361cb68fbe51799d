//! Packets through two engines back to back: A inside → A outside → B outside → B inside.

mod common;

use common::*;
use proptest::prelude::*;
use spindle_abi::{Command, Event, Limits, PolicyAction, Spi, SpiState, Suite, Time, Trigger};
use spindle_engine::{Counter, DropReason, Frame, MemoryFrame, PortId, Refused};
use spindle_wire::{icmpv4, ipv4, protocol, tcp, udp};
use std::net::Ipv4Addr;

/// Through both gateways; the packets that B gave inside.
fn through(a: &mut Gateway, b: &mut Gateway, packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    a.process(PortId::Inside, packets.iter().map(|p| frame(p)));
    b.process(PortId::Outside, a.take_sent(PortId::Outside));
    b.take_sent(PortId::Inside).iter().map(packet).collect()
}

proptest! {
    #[test]
    fn packets_arrive_as_they_were_sent(length in 1usize..=1400, suite in 0usize..4, udp: bool, kind in 0..3) {
        let suite = Suite::ALL[suite];
        let (mut a, mut b) = pair(suite, udp);
        let data = content(length);
        let sent = match kind {
            0 => datagram(HOST_A, HOST_B, &data),
            1 => segment(HOST_A, HOST_B, None, &data[..length.min(1300)]),
            _ => echo(HOST_A, HOST_B, &data),
        };
        let arrived = through(&mut a, &mut b, std::slice::from_ref(&sent));
        prop_assert_eq!(arrived, vec![after_two_hops(sent)]);
        prop_assert_eq!(a.engine.activity(1).unwrap().packets, 1);
        prop_assert_eq!(b.engine.activity(0).unwrap().packets, 1);
    }

    #[test]
    fn a_mutated_frame_is_counted_and_never_panics(mutation in mutations(60), udp: bool) {
        let (mut a, mut b) = pair(Suite::Aes128Gcm, udp);
        mutation.pass(&mut a, &mut b, frame(&datagram(HOST_A, HOST_B, &content(100))));
        prop_assert!(b.engine.counters().check().is_ok());
    }
}

#[test]
fn a_partial_checksum_arrives_complete() {
    let (mut a, mut b) = pair(Suite::Aes128Gcm, false);
    let right = datagram(HOST_A, HOST_B, b"a local stack left the sum to the device");
    let mut partial = right.clone();
    let length = (partial.len() - 20) as u16;
    let pseudo = spindle_wire::checksum::pseudo_header(HOST_A, HOST_B, protocol::UDP, length);
    partial[26..28].copy_from_slice(&spindle_wire::checksum::fold(pseudo).to_be_bytes());
    assert_eq!(through(&mut a, &mut b, &[partial]), [after_two_hops(right)]);
    assert_eq!(a.engine.counters().count(Counter::ChecksumsCompleted), 1);
}

#[test]
fn a_syn_is_clamped_so_that_full_segments_fit() {
    for (encapsulated, mss) in [(false, 1406), (true, 1398)] {
        let (mut a, mut b) = pair(Suite::Aes128Gcm, encapsulated);
        let arrived = through(&mut a, &mut b, &[segment(HOST_A, HOST_B, Some(1460), b"")]);
        let syn = tcp::Packet::new_checked(&arrived[0][20..]).unwrap();
        assert_eq!(syn.mss(), Some(mss));
        assert!(syn.verify_checksum(HOST_A, HOST_B));
        let full = segment(HOST_A, HOST_B, None, &content(usize::from(mss)));
        assert_eq!(through(&mut a, &mut b, std::slice::from_ref(&full)), [after_two_hops(full)]);
        let over = segment(HOST_A, HOST_B, None, &content(usize::from(mss) + 1));
        a.process(PortId::Inside, [frame(&over)]);
        assert_eq!(a.dropped(DropReason::TooBig), 1);
    }
}

/// RFC 1191 section 4.
#[test]
fn too_big_with_df_is_told_to_the_sender_with_the_mtu_that_fits() {
    let (mut a, mut b) = pair(Suite::Aes128Gcm, true);
    let big = datagram(HOST_A, HOST_B, &content(1420));
    a.process(PortId::Inside, [frame(&big)]);
    let error = packet(&a.take_sent(PortId::Inside)[0]);
    let outer = ipv4::Packet::new_checked(&error).unwrap();
    assert_eq!((outer.source(), outer.destination()), (Ipv4Addr::new(10, 1, 0, 1), HOST_A));
    let icmp = icmpv4::Packet::new_checked(outer.payload()).unwrap();
    let Ok(icmpv4::Repr::FragmentationNeeded { mtu }) = icmpv4::Repr::parse(&icmp) else {
        panic!("{icmp:?}")
    };
    assert_eq!(icmp.payload(), &big[..548]);
    let fits = datagram(HOST_A, HOST_B, &content(usize::from(mtu) - 28));
    assert_eq!(through(&mut a, &mut b, std::slice::from_ref(&fits)), [after_two_hops(fits)]);
    // An error of its own about an error is never sent (RFC 1122 section 3.2.2), and the rate is limited.
    let mut about_error = error.clone();
    about_error.resize(1500, 0);
    let about_error = ip(HOST_A, HOST_B, protocol::ICMP, &about_error[20..]);
    let mut later_fragment = big.clone();
    ipv4::Packet::new_checked(&mut later_fragment[..]).unwrap().set_fragment(true, true, 100);
    a.process(PortId::Inside, [frame(&about_error), frame(&later_fragment)]);
    assert!(a.take_sent(PortId::Inside).is_empty());
    assert_eq!(a.dropped(DropReason::TooBig), 3);
    a.process(PortId::Inside, (0..100).map(|_| frame(&big)));
    assert_eq!(a.take_sent(PortId::Inside).len(), 15);
}

#[test]
fn too_big_without_df_is_fragmented_and_the_pieces_make_the_whole() {
    let (mut a, mut b) = pair(Suite::Aes128Gcm, false);
    let mut big = datagram(HOST_A, HOST_B, &content(1472));
    ipv4::Packet::new_checked(&mut big[..]).unwrap().set_fragment(false, false, 0);
    let pieces = through(&mut a, &mut b, std::slice::from_ref(&big));
    assert_eq!(pieces.len(), 2);
    let mut whole = vec![0; big.len() - 20];
    for (at, piece) in pieces.iter().enumerate() {
        let view = ipv4::Packet::new_checked(piece).unwrap();
        assert_eq!((view.more_fragments(), view.identification()), (at == 0, 0x1234));
        let start = usize::from(view.fragment_offset()) * 8;
        whole[start..start + view.payload().len()].copy_from_slice(view.payload());
    }
    assert_eq!(whole, big[20..]);
    a.out.no_frames = true;
    a.process(PortId::Inside, [frame(&big)]);
    assert_eq!(a.dropped(DropReason::TooBig), 1);
}

/// RFC 4303 section 3.4.3; and RFC 7296 section 2.4: what is replayed is no evidence that the peer lives.
#[test]
fn a_packet_is_accepted_once() {
    let (mut a, mut b) = pair(Suite::Aes128Gcm, false);
    a.process(PortId::Inside, (0..40).map(|_| frame(&echo(HOST_A, HOST_B, b"once"))));
    let esp = a.take_sent(PortId::Outside);
    b.process(PortId::Outside, esp.iter().rev().cloned());
    let before = b.engine.activity(0).unwrap();
    b.now = Time(5 * SECOND);
    b.process(PortId::Outside, esp);
    assert_eq!(b.engine.activity(0).unwrap(), before);
    assert_eq!((b.take_sent(PortId::Inside).len(), b.dropped(DropReason::Replayed)), (40, 40));
}

#[test]
fn a_wrong_icv_is_dropped_and_marks_no_activity() {
    let (mut a, mut b) = pair(Suite::Aes128Gcm, false);
    a.process(PortId::Inside, [frame(&echo(HOST_A, HOST_B, b"forged"))]);
    let mut esp = a.take_sent(PortId::Outside);
    *esp[0].data_mut().last_mut().unwrap() ^= 1;
    b.now = Time(5 * SECOND);
    b.process(PortId::Outside, esp);
    assert_eq!(b.dropped(DropReason::AuthenticationFailed), 1);
    assert_eq!((b.engine.activity(0).unwrap().last, b.out.events.len()), (Time(0), 0));
}

/// RFC 4301 section 5.2, step 4; and the outbound half, section 5.1.
#[test]
fn packets_outside_their_sa_s_selectors_are_dropped_in_both_directions() {
    let (mut a, mut b) = pair(Suite::Aes128Gcm, false);
    let stranger = Ipv4Addr::new(10, 3, 0, 1);
    // A's policy and SA are wider than B's: B must drop what is not within its own.
    let mut wide = sa(TO_B, 2, true, Suite::Aes128Gcm, false);
    wide.selectors.remote = selectors(HOST_A, stranger).remote;
    let selectors = wide.selectors.clone();
    a.apply(Command::SetPolicy { id: 8, priority: 5, action: PolicyAction::Protect, selectors, hold: 0 });
    wide.policy = 8;
    a.apply(Command::InstallOutbound { sa: wide });
    a.process(PortId::Inside, [frame(&echo(HOST_A, stranger, b"not yours"))]);
    b.process(PortId::Outside, a.take_sent(PortId::Outside));
    assert_eq!(b.dropped(DropReason::SelectorMismatch), 1);
    assert!(b.out.sent.is_empty() && b.engine.activity(0).unwrap().packets == 0);
    // Outbound: the policy matches, its SA does not.
    a.apply(Command::RemoveOutbound { index: 2 });
    let mut narrow = sa(TO_B, 2, true, Suite::Aes128Gcm, false);
    narrow.policy = 8;
    a.apply(Command::InstallOutbound { sa: narrow });
    a.process(PortId::Inside, [frame(&echo(HOST_A, stranger, b"no SA"))]);
    assert_eq!(a.dropped(DropReason::NoSa), 1);
}

#[test]
fn every_spi_state_has_its_verdict() {
    let (_, mut b) = pair(Suite::Aes128Gcm, false);
    for (spi, state) in [(0x1001, SpiState::Larval), (0x1002, SpiState::Retired), (0x1003, SpiState::Former)]
    {
        b.apply(Command::SetSpiState { spi: Spi(spi), state });
    }
    for encapsulated in [false, true] {
        b.process(PortId::Outside, (0x1000..0x1004).map(|spi| esp_to_b(spi, 9, encapsulated)));
    }
    use DropReason::*;
    let reasons = [UnknownSpi, LarvalSpi, RetiredSpi, FormerSpi];
    assert_eq!(b.out.dropped, [reasons, reasons].concat());
    let [Event::UnknownSpi(plain), Event::UnknownSpi(in_udp)] = b.out.events[..] else { panic!() };
    assert_eq!((plain.spi, plain.sequence, plain.at), (Spi(0x1000), 9, b.now));
    assert_eq!((plain.source, plain.destination), ((OUTER_A, 0).into(), (OUTER_B, 0).into()));
    assert_eq!((in_udp.source, in_udp.destination), ((OUTER_A, 1024).into(), (OUTER_B, 4500).into()));
    b.out.events.clear();
    b.sweep();
    b.sweep();
    let [Event::FormerSpi(former)] = b.out.events[..] else { panic!("{:?}", b.out.events) };
    assert_eq!((former.spi, former.source), (Spi(0x1003), (OUTER_A, 1024).into()));
}

#[test]
fn a_full_ring_loses_noise_counted_and_keeps_what_is_urgent() {
    let (_, mut b) = pair(Suite::Aes128Gcm, false);
    b.apply(Command::SetFormer { spis: vec![Spi(0x1003)] });
    b.out.rings_full = true;
    b.process(PortId::Outside, (0x2000..0x2100).map(|spi| esp_to_b(spi, 1, false)));
    b.process(PortId::Outside, [esp_to_b(0x1003, 1, false)]);
    b.process(PortId::Inside, [frame(&echo(HOST_B, Ipv4Addr::new(10, 9, 9, 9), b""))]);
    b.sweep();
    let counters = b.engine.counters();
    assert_eq!(counters.count(Counter::UnknownSpiDetected), 256);
    assert_eq!(counters.count(Counter::NoiseLost), 256);
    b.out.rings_full = false;
    b.sweep();
    assert!(matches!(b.out.events[..], [Event::FormerSpi(_)]));
}

#[test]
fn sequence_numbers_end_with_an_event_and_silence() {
    let (mut a, mut b) = pair(Suite::Aes128Gcm, false);
    let mut limited = sa(TO_B, 2, true, Suite::Aes128Gcm, false);
    (limited.soft.packets, limited.hard.packets) = (3, 5);
    a.apply(Command::InstallOutbound { sa: limited });
    a.out.rings_full = true;
    a.process(PortId::Inside, (0..9).map(|_| frame(&echo(HOST_A, HOST_B, b""))));
    a.out.rings_full = false;
    a.sweep();
    let expected = [Event::Lifetime { index: 2, hard: false }, Event::Lifetime { index: 2, hard: true }];
    assert_eq!(a.out.events, expected);
    assert_eq!(a.dropped(DropReason::SequenceExhausted), 4);
    b.process(PortId::Outside, a.take_sent(PortId::Outside));
    assert_eq!(b.take_sent(PortId::Inside).len(), 5);
}

/// RFC 4301 section 4.4.2.1: a lifetime in octets, soft and hard; with both kinds of limits the first one counts.
#[test]
fn an_sa_stops_at_its_limit_in_octets_whatever_its_limit_in_packets() {
    let (mut a, mut b) = pair(Suite::Aes128Gcm, false);
    let mut limited = sa(TO_B, 2, true, Suite::Aes128Gcm, false);
    let length = echo(HOST_A, HOST_B, b"").len() as u64;
    // Two packets and a bit, four and a bit.
    (limited.soft, limited.hard) =
        (Limits { packets: 5, bytes: 2 * length + 1 }, Limits { packets: 7, bytes: 4 * length + 1 });
    a.apply(Command::InstallOutbound { sa: limited });
    let mut lifetimes = Vec::new();
    for _ in 0..9 {
        a.process(PortId::Inside, [frame(&echo(HOST_A, HOST_B, b""))]);
        lifetimes.push(a.out.events.drain(..).collect::<Vec<_>>());
    }
    let at = |n: usize| lifetimes[n - 1].clone();
    assert_eq!(at(3), [Event::Lifetime { index: 2, hard: false }]);
    assert_eq!(at(5), [Event::Lifetime { index: 2, hard: true }]);
    assert_eq!(lifetimes.concat().len(), 2);
    assert_eq!(a.dropped(DropReason::SequenceExhausted), 4);
    let mut limited = sa(TO_B + 1, 3, false, Suite::Aes128Gcm, false);
    limited.hard = Limits { packets: 0, bytes: length };
    b.apply(inbound(limited));
    a.apply(Command::InstallOutbound { sa: sa(TO_B + 1, 3, true, Suite::Aes128Gcm, false) });
    a.process(PortId::Inside, (0..3).map(|_| frame(&echo(HOST_A, HOST_B, b""))));
    b.process(PortId::Outside, a.take_sent(PortId::Outside));
    // Five on the SA that stopped at A, and one on that which stops at B.
    assert_eq!(b.take_sent(PortId::Inside).len(), 6);
    assert_eq!(b.dropped(DropReason::InboundExpired), 2);
}

/// RFC 7296 section 2.8: the new SA takes over without a lost packet, and the old one still receives.
#[test]
fn a_rekey_make_before_break_loses_nothing() {
    let (mut a, mut b) = pair(Suite::Aes128Gcm, false);
    let mut arrived = 0;
    for generation in 1..=20u32 {
        let (spi, index) = (TO_B + generation, 10 + generation);
        let send = |a: &mut Gateway| {
            a.process(PortId::Inside, (0..5).map(|_| frame(&echo(HOST_A, HOST_B, b"rekey"))));
            a.take_sent(PortId::Outside)
        };
        let before = send(&mut a);
        b.apply(inbound(sa(spi, index, false, Suite::Aes256Gcm, false)));
        a.apply(Command::InstallOutbound { sa: sa(spi, index, true, Suite::Aes256Gcm, false) });
        let after = send(&mut a);
        b.process(PortId::Outside, after);
        b.process(PortId::Outside, before);
        arrived += b.take_sent(PortId::Inside).len();
        a.apply(Command::RemoveOutbound { index: if generation == 1 { 1 } else { index - 1 } });
        b.apply(Command::SetSpiState { spi: Spi(spi - 1), state: SpiState::Retired });
    }
    assert_eq!((arrived, b.engine.counters().dropped(DropReason::RetiredSpi)), (200, 0));
    assert_eq!(b.engine.spi_state(Spi(TO_B)), SpiState::Retired);
}

#[test]
fn removing_the_latest_sa_falls_back_to_the_one_before() {
    let (mut a, mut b) = pair(Suite::Aes128Gcm, false);
    a.apply(Command::InstallOutbound { sa: sa(0xb0b0, 5, true, Suite::Aes128Gcm, false) });
    a.process(PortId::Inside, [frame(&echo(HOST_A, HOST_B, b""))]);
    assert_eq!(packet(&a.take_sent(PortId::Outside)[0])[20..24], 0xb0b0u32.to_be_bytes());
    a.apply(Command::RemoveOutbound { index: 5 });
    assert_eq!(through(&mut a, &mut b, &[echo(HOST_A, HOST_B, b"")]).len(), 1);
}

/// A second installation of the same SA must not start its sequence numbers again: nonces would repeat.
#[test]
fn installing_twice_repeats_no_sequence_number_and_no_packet() {
    let (mut a, mut b) = pair(Suite::Aes128Gcm, false);
    a.process(PortId::Inside, [frame(&echo(HOST_A, HOST_B, b"first"))]);
    let first = a.take_sent(PortId::Outside);
    b.process(PortId::Outside, first.clone());
    a.apply(Command::InstallOutbound { sa: sa(TO_B, 1, true, Suite::Aes128Gcm, false) });
    b.apply(inbound(sa(TO_B, 0, false, Suite::Aes128Gcm, false)));
    a.process(PortId::Inside, [frame(&echo(HOST_A, HOST_B, b"second"))]);
    assert_eq!(packet(&a.take_sent(PortId::Outside)[0])[24..28], [0, 0, 0, 2]);
    b.process(PortId::Outside, first);
    assert_eq!(b.dropped(DropReason::Replayed), 1);
}

#[test]
fn what_no_sa_or_policy_covers_is_dropped_and_acquired_once_a_second() {
    let (mut a, _) = pair(Suite::Aes128Gcm, false);
    a.apply(Command::RemoveOutbound { index: 1 });
    for step in 0..30u64 {
        a.now = Time(10 * SECOND + step * SECOND / 10);
        a.process(PortId::Inside, [frame(&echo(HOST_A, HOST_B, b""))]);
    }
    let (source, destination) = (HOST_A.into(), HOST_B.into());
    // An echo request: type 8, code 0.
    let packet = Trigger { source, destination, protocol: 1, ports: Some((0x800, 0x800)) };
    let acquire = Event::Acquire { policy: POLICY, packet };
    assert_eq!(a.out.events, [acquire; 3]);
    a.process(PortId::Inside, [frame(&echo(HOST_A, Ipv4Addr::new(8, 8, 8, 8), b""))]);
    assert_eq!((a.dropped(DropReason::NoSa), a.dropped(DropReason::NoPolicy)), (30, 1));
    assert!(a.out.sent.is_empty() && a.out.unresolved.is_empty());
}

/// Where the policy wants it, packets wait for an SA, unchanged and counted as held; one is acquired all the same.
#[test]
fn packets_wait_for_an_sa_and_leave_in_their_order() {
    let (mut a, mut b) = pair(Suite::Aes128Gcm, false);
    a.apply(Command::RemoveOutbound { index: 1 });
    a.apply(Command::SetPolicy {
        id: POLICY,
        priority: 1,
        action: PolicyAction::Protect,
        selectors: selectors(HOST_A, HOST_B),
        hold: 2,
    });
    let sent: Vec<_> = (0..4).map(|n| frame(&echo(HOST_A, HOST_B, &[n; 9]))).collect();
    a.process(PortId::Inside, sent);
    assert_eq!((a.engine.counters().count(Counter::Held), a.dropped(DropReason::NoSa)), (2, 2));
    assert!(a.out.sent.is_empty());
    assert_eq!(a.out.events.len(), 1);

    a.apply(Command::InstallOutbound { sa: sa(TO_B, 1, true, Suite::Aes128Gcm, false) });
    for (policy, frame) in std::mem::take(&mut a.out.without_sa) {
        assert_eq!(policy, POLICY);
        a.engine.take_up(a.now, policy, frame, &mut a.out);
    }
    a.engine.counters().check().unwrap();
    assert_eq!(a.engine.counters().count(Counter::Held), 0);
    let frames = a.take_sent(PortId::Outside);
    b.process(PortId::Outside, frames);
    let arrived: Vec<u8> = b.take_sent(PortId::Inside).iter().map(|frame| packet(frame)[28]).collect();
    assert_eq!(arrived, [0, 1]);
}

#[test]
fn a_packet_for_which_no_sa_came_is_dropped_for_want_of_one() {
    let (mut a, _) = pair(Suite::Aes128Gcm, false);
    a.apply(Command::RemoveOutbound { index: 1 });
    let (id, selectors) = (POLICY, selectors(HOST_A, HOST_B));
    a.apply(Command::SetPolicy { id, priority: 1, action: PolicyAction::Protect, selectors, hold: 1 });
    a.process(PortId::Inside, [frame(&echo(HOST_A, HOST_B, b""))]);
    let (_, waiting) = a.out.without_sa.pop().unwrap();
    a.engine.give_up(waiting, DropReason::NoSa, &mut a.out);
    a.engine.counters().check().unwrap();
    assert_eq!((a.engine.counters().count(Counter::Held), a.dropped(DropReason::NoSa)), (0, 1));
}

#[test]
fn the_first_policy_that_matches_decides() {
    let (mut a, _) = pair(Suite::Aes128Gcm, false);
    for (id, priority, action) in [(20, 3, PolicyAction::Discard), (21, 1, PolicyAction::Bypass)] {
        let mut set = selectors(HOST_A, HOST_B);
        (set.remote[0].protocol, set.remote[0].start_port, set.remote[0].end_port) = (17, 5000, 5000);
        if action == PolicyAction::Discard {
            set.remote[0].protocol = 6;
            (set.remote[0].start_port, set.remote[0].end_port) = (0, 65535);
        }
        a.apply(Command::SetPolicy { id, priority, action, selectors: set, hold: 0 });
    }
    a.hop(HOST_B, PortId::Outside);
    a.process(PortId::Inside, [frame(&segment(HOST_A, HOST_B, None, b""))]);
    assert_eq!(a.dropped(DropReason::PolicyDiscard), 1);
    a.process(PortId::Inside, [frame(&datagram(HOST_A, HOST_B, b"clear"))]);
    assert_eq!(packet(&a.take_sent(PortId::Outside)[0])[9], protocol::UDP);
    a.process(PortId::Inside, [frame(&echo(HOST_A, HOST_B, b""))]);
    assert_eq!(packet(&a.take_sent(PortId::Outside)[0])[9], protocol::ESP);
    // And the answers of bypassed flows, but nothing else, come in in clear.
    let answer = {
        let mut octets = datagram(HOST_B, HOST_A, b"answer");
        octets[20..22].copy_from_slice(&5000u16.to_be_bytes());
        octets
    };
    a.process(PortId::Outside, [frame(&answer), frame(&datagram(HOST_B, HOST_A, b"stray"))]);
    assert_eq!(a.take_sent(PortId::Inside).len(), 1);
    assert_eq!(a.dropped(DropReason::CleartextFromOutside), 1);
    a.apply(Command::RemovePolicy { id: 21 });
    a.process(PortId::Outside, [frame(&answer)]);
    assert_eq!(a.dropped(DropReason::CleartextFromOutside), 2);
}

#[test]
fn nothing_leaves_on_the_wrong_side() {
    let (mut a, mut b) = pair(Suite::Aes128Gcm, false);
    b.hop(HOST_B, PortId::Outside); // a route that would send decapsulated packets back out
    assert!(through(&mut a, &mut b, &[echo(HOST_A, HOST_B, b"inside only")]).is_empty());
    assert_eq!(b.dropped(DropReason::WrongSide), 1);
    a.hop(OUTER_B, PortId::Inside);
    a.process(PortId::Inside, [frame(&echo(HOST_A, HOST_B, b""))]);
    assert_eq!(a.dropped(DropReason::WrongSide), 1);
}

#[test]
fn a_packet_waits_for_its_next_hop_and_is_then_forwarded_or_given_up() {
    let (mut a, mut b) = pair(Suite::Aes128Gcm, false);
    b.engine.clear_next_hops();
    assert!(through(&mut a, &mut b, &[echo(HOST_A, HOST_B, b"1"), echo(HOST_A, HOST_B, b"2")]).is_empty());
    assert_eq!(b.engine.counters().count(Counter::Held), 2);
    b.hop(HOST_B, PortId::Inside);
    let held: Vec<_> = b.out.unresolved.drain(..).collect();
    for (at, (egress, destination, frame)) in held.into_iter().enumerate() {
        match at {
            0 => b.engine.forward(b.now, egress, destination, frame, &mut b.out),
            _ => b.engine.give_up(frame, DropReason::NoNextHop, &mut b.out),
        }
    }
    assert_eq!(packet(&b.take_sent(PortId::Inside)[0]), after_two_hops(echo(HOST_A, HOST_B, b"1")));
    assert_eq!((b.dropped(DropReason::NoNextHop), b.engine.counters().count(Counter::Held)), (1, 0));
    b.engine.lost_in_transmit(PortId::Inside, 1);
    assert_eq!(b.dropped(DropReason::TransmitFailed), 1);
    b.engine.counters().check().unwrap();
}

/// RFC 7296 section 2.23: both forms are processed, whichever the SA is.
#[test]
fn both_forms_of_encapsulation_are_accepted_on_one_sa() {
    for sender in [false, true] {
        let (mut a, _) = pair(Suite::Aes128Gcm, sender);
        let (_, mut b) = pair(Suite::Aes128Gcm, !sender);
        assert_eq!(through(&mut a, &mut b, &[echo(HOST_A, HOST_B, b"NAT?")]).len(), 1);
        assert_eq!(b.engine.counters().count(Counter::OtherEncapsulation), 1);
    }
}

#[test]
fn keepalives_ike_and_strangers_have_reasons_of_their_own() {
    let (_, mut b) = pair(Suite::Aes128Gcm, true);
    let on_4500 = |payload: &[u8]| {
        let mut octets = vec![0; 8];
        octets.extend(payload);
        let repr =
            udp::Repr { source_port: 4500, destination_port: 4500, payload_length: payload.len() as u16 };
        repr.emit(&mut octets);
        frame(&ip(OUTER_A, OUTER_B, protocol::UDP, &octets))
    };
    let mut fragment = ip(OUTER_A, OUTER_B, protocol::ESP, &content(80));
    ipv4::Packet::new_checked(&mut fragment[..]).unwrap().set_fragment(false, true, 0);
    let mut arp = frame(&[0; 28]);
    arp.data_mut()[12..14].copy_from_slice(&[8, 6]);
    b.process(
        PortId::Outside,
        [
            on_4500(&[0xff]),
            on_4500(&[0; 40]),
            on_4500(&[1, 2, 3]),
            esp_to_b(255, 1, false),
            frame(&fragment),
            frame(&echo(OUTER_A, OUTER_B, b"ping")),
            frame(&echo(OUTER_A, Ipv4Addr::new(224, 0, 0, 1), b"")),
            frame(&echo(OUTER_A, HOST_B, b"in clear")),
            arp,
            MemoryFrame::new(&[0; 5]),
        ],
    );
    use DropReason::*;
    let expected = [
        NatKeepalive,
        ForHost,
        MalformedEsp,
        MalformedEsp,
        FragmentKept,
        ForHost,
        NotUnicast,
        CleartextFromOutside,
        NotIp,
        NotIp,
    ];
    assert_eq!(b.out.dropped, expected);
    assert!(b.out.sent.is_empty() && b.out.events.is_empty());
}

/// RFC 6040 section 4.2; DSCP stays the inner one (RFC 4301 section 5.1.2).
#[test]
fn congestion_on_the_way_is_shown_to_the_inner_packet() {
    let (mut a, mut b) = pair(Suite::Aes128Gcm, false);
    for (inner_class, outer_ecn, expected) in
        [(0xb8 | 2, 3, Some(0xb8 | 3)), (0xb8, 3, None), (2, 1, Some(1))]
    {
        let mut sent = echo(HOST_A, HOST_B, b"ECN");
        ipv4::Packet::new_checked(&mut sent[..]).unwrap().set_traffic_class(inner_class);
        a.process(PortId::Inside, [frame(&sent)]);
        let mut esp = a.take_sent(PortId::Outside);
        let mut outer = ipv4::Packet::new_checked(&mut esp[0].data_mut()[14..]).unwrap();
        assert_eq!(outer.traffic_class(), inner_class);
        outer.set_traffic_class(outer_ecn);
        b.process(PortId::Outside, esp);
        let arrived = b.take_sent(PortId::Inside);
        assert_eq!(arrived.first().map(|f| packet(f)[1]), expected);
    }
    assert_eq!(b.dropped(DropReason::EcnMismatch), 1);
}

#[test]
fn a_packet_at_its_last_hop_is_answered_with_time_exceeded() {
    let (mut a, _) = pair(Suite::Aes128Gcm, false);
    let mut last = echo(HOST_A, HOST_B, b"traceroute");
    (last[8], last[10], last[11]) = (1, 0, 0);
    let sum = spindle_wire::checksum::internet(&last[..20]);
    last[10..12].copy_from_slice(&sum.to_be_bytes());
    a.process(PortId::Inside, [frame(&last)]);
    assert_eq!(packet(&a.take_sent(PortId::Inside)[0])[20], 11);
    assert_eq!(a.dropped(DropReason::TtlExpired), 1);
}

#[test]
fn the_first_authentic_packet_is_reported_once_and_activity_is_reported_when_it_changes() {
    let (mut a, mut b) = pair(Suite::Aes128Gcm, false);
    let new = sa(0xb0b0, 3, false, Suite::Aes128Gcm, false);
    b.apply(Command::InstallInbound { sa: new, replay_window: 32, report_first: true });
    a.apply(Command::InstallOutbound { sa: sa(0xb0b0, 3, true, Suite::Aes128Gcm, false) });
    b.process(PortId::Outside, [esp_to_b(0xb0b0, 1, false)]);
    assert_eq!((b.out.events.len(), b.dropped(DropReason::AuthenticationFailed)), (0, 1));
    assert_eq!(through(&mut a, &mut b, &[echo(HOST_A, HOST_B, b"1"), echo(HOST_A, HOST_B, b"2")]).len(), 2);
    assert_eq!(b.out.events, [Event::FirstInbound { spi: Spi(0xb0b0) }]);
    let mut changed = Vec::new();
    for _ in 0..2 {
        b.engine
            .changed_activity(10, |index, activity| changed.push((index, activity.packets, activity.bytes)));
    }
    assert_eq!(changed, [(3, 2, 58)]);
}

#[test]
fn impossible_commands_are_refused_and_change_nothing() {
    let (_, mut b) = pair(Suite::Aes128Gcm, false);
    let mut refuse = |command| b.engine.apply(b.now, command).unwrap_err();
    let other = |spi, index| inbound(sa(spi, index, false, Suite::Aes128Gcm, false));
    assert!(matches!(refuse(other(TO_B, 9)), Refused::Impossible(_)));
    assert!(matches!(refuse(other(0x9999, 0)), Refused::Impossible(_)));
    assert_eq!(refuse(other(0x9999, 4096)), Refused::Full("SAs"));
    for state in [SpiState::Larval, SpiState::Former, SpiState::Unknown, SpiState::Current] {
        assert!(matches!(refuse(Command::SetSpiState { spi: Spi(TO_B), state }), Refused::Impossible(_)));
    }
    let readdress =
        |index| Command::Readdress { index, local: (OUTER_B, 0).into(), remote: (OUTER_A, 0).into() };
    assert_eq!(refuse(readdress(77)), Refused::Missing);
    assert_eq!(b.engine.spi_state(Spi(TO_B)), SpiState::Current);
    assert_eq!(b.engine.spi_state(Spi(0x9999)), SpiState::Unknown);
}
