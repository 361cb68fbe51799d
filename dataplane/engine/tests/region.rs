//! The engine dies and another one goes on over the same region: no sequence number is used twice, no packet taken twice.

mod common;

use common::*;
use proptest::prelude::*;
use spindle_abi::{Command, Event, SaActivity, Suite, sa_slot};
use spindle_engine::{DropReason, Frame, Memory, MemoryFrame, PortId, SaRegion};
use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Room for few SAs, with windows of 128 packets at most.
fn memory() -> [Memory; 2] {
    [16 * sa_slot::WORDS, 16 * 4]
        .map(|words| -> Memory { Arc::new((0..words).map(|_| AtomicU64::new(0)).collect::<Vec<_>>()) })
}

fn region() -> SaRegion {
    let [slots, windows] = memory();
    SaRegion::new(slots, windows)
}

fn inbound(window: u32, report_first: bool) -> Command {
    let sa = sa(TO_B, 0, false, Suite::Aes128Gcm, false);
    Command::InstallInbound { sa, replay_window: window, report_first }
}

/// Gateway B as it begins its life over a region.
fn b(region: &SaRegion, window: u32) -> Gateway {
    let mut b = Gateway::over(Ipv4Addr::new(10, 2, 0, 1), OUTER_B, region.clone());
    b.apply(inbound(window, true));
    b.apply(Command::InstallOutbound { sa: sa(TO_A, 1, false, Suite::Aes128Gcm, false) });
    protect(&mut b);
    b.hop(HOST_B, PortId::Inside);
    b.hop(OUTER_A, PortId::Outside);
    b
}

/// What host B sends to host A is protected.
fn protect(gateway: &mut Gateway) {
    gateway.apply(Command::SetPolicy {
        id: POLICY,
        priority: 10,
        action: spindle_abi::PolicyAction::Protect,
        selectors: selectors(HOST_B, HOST_A),
        hold: 0,
    });
}

/// SPI and sequence number of an ESP packet without UDP.
fn number(frame: &MemoryFrame) -> (u32, u32) {
    let word = |at: usize| u32::from_be_bytes(frame.data()[at..at + 4].try_into().unwrap());
    (word(34), word(38))
}

fn numbered(n: u64) -> MemoryFrame {
    frame(&datagram(HOST_A, HOST_B, &n.to_be_bytes()))
}

proptest! {
    /// Killed after any packet, again and again; an attacker sends all of the past again to each new engine.
    #[test]
    fn whenever_it_dies_nothing_is_sent_or_taken_twice(
        lives in proptest::collection::vec(1usize..150, 1..8),
        window in prop_oneof![Just(32u32), Just(64), Just(128)],
        seed: u64,
    ) {
        let [slots, windows] = memory();
        let region = SaRegion::new(slots.clone(), windows);
        let (mut a, _) = pair(Suite::Aes128Gcm, false);
        let (mut used, mut delivered) = (HashSet::new(), HashSet::new());
        let (mut past, mut random): (Vec<MemoryFrame>, u64) = (Vec::new(), seed);
        for packets in lives {
            let mut b = b(&region, window);
            let arrive = |b: &mut Gateway, frame: &MemoryFrame| {
                b.process(PortId::Outside, [frame.clone()]);
                b.take_sent(PortId::Inside).len()
            };
            for frame in &past {
                if arrive(&mut b, frame) > 0 {
                    prop_assert!(delivered.insert(number(frame)), "taken again: {:?}", number(frame));
                }
            }
            for n in 0..packets {
                b.process(PortId::Inside, [frame(&datagram(HOST_B, HOST_A, b"x"))]);
                for sent in b.take_sent(PortId::Outside) {
                    prop_assert!(used.insert(number(&sent)), "used again: {:?}", number(&sent));
                }
                a.process(PortId::Inside, [numbered(n as u64)]);
                past.extend(a.take_sent(PortId::Outside));
                // Some arrive late, some twice, some never.
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let back = (random >> 60) as usize;
                let frame = past[past.len().saturating_sub(1 + back)].clone();
                let taken = arrive(&mut b, &frame);
                // No window is so small that it would be left of it.
                prop_assert_eq!(taken == 1, delivered.insert(number(&frame)), "{:?}", number(&frame));
            }
            // As the process does at its housekeeping, for the next engine to go on from.
            let activity = b.engine.activity(0).unwrap();
            prop_assert_eq!(activity.packets, delivered.len() as u64);
            for (word, value) in [(sa_slot::PACKETS, activity.packets), (sa_slot::BYTES, activity.bytes)] {
                (*slots).as_ref()[word].store(value, Ordering::Relaxed);
            }
        }
    }
}

/// Skipped numbers are few, and the peer's window takes what comes behind them.
#[test]
fn the_next_engine_skips_less_than_a_batch_beyond_what_was_reserved() {
    let region = region();
    let mut last = 0;
    for _ in 0..10 {
        let mut b = b(&region, 64);
        b.process(PortId::Inside, [frame(&datagram(HOST_B, HOST_A, b"x"))]);
        let (_, sequence) = number(&b.take_sent(PortId::Outside)[0]);
        assert!(sequence > last && sequence - last <= 64, "{last} then {sequence}");
        last = sequence;
    }
}

/// RFC 4303 section 3.3.3: an SA is to be rekeyed before its sequence numbers are used up, those skipped included.
#[test]
fn skipped_numbers_bring_the_soft_limit_nearer() {
    let [slots, windows] = memory();
    let region = SaRegion::new(slots.clone(), windows);
    let outbound = |b: &mut Gateway| {
        let mut sa = sa(TO_A, 1, false, Suite::Aes128Gcm, false);
        sa.soft.packets = 300;
        b.apply(Command::InstallOutbound { sa });
    };
    let limits = |b: &Gateway| {
        let soft = |e: &&Event| matches!(e, Event::Lifetime { hard: false, .. });
        b.out.events.iter().filter(soft).count()
    };
    let (mut sent, mut last) = (0, 0);
    for life in 1..=4 {
        let mut b = Gateway::over(Ipv4Addr::new(10, 2, 0, 1), OUTER_B, region.clone());
        outbound(&mut b);
        protect(&mut b);
        b.hop(OUTER_A, PortId::Outside);
        while sent < life * 10 || life == 4 && limits(&b) == 0 {
            b.process(PortId::Inside, [frame(&datagram(HOST_B, HOST_A, b"x"))]);
            last = number(&b.take_sent(PortId::Outside)[0]).1;
            sent += 1;
            assert!(last <= 300, "the soft limit did not come");
        }
        (*slots).as_ref()[sa_slot::WORDS + sa_slot::PACKETS].store(sent, Ordering::Relaxed);
    }
    assert_eq!((last, sent), (300, 300 - 3 * 64 + 30), "as many numbers as packets");
}

/// A control that was started anew installs everything again: the engine that lived on keeps all of it.
#[test]
fn an_sa_that_is_installed_again_in_a_living_engine_goes_on() {
    let region = region();
    let (mut a, _) = pair(Suite::Aes128Gcm, false);
    let mut b = b(&region, 64);
    a.process(PortId::Inside, [numbered(0)]);
    let sent = a.take_sent(PortId::Outside);
    b.process(PortId::Outside, sent.clone());
    assert_eq!(b.take_sent(PortId::Inside).len(), 1);
    assert_eq!(b.out.events.len(), 1);
    b.apply(inbound(64, true));
    b.process(PortId::Outside, sent);
    assert_eq!((b.take_sent(PortId::Inside).len(), b.dropped(DropReason::Replayed)), (0, 1));
    a.process(PortId::Inside, [numbered(1)]);
    b.process(PortId::Outside, a.take_sent(PortId::Outside));
    assert_eq!(b.take_sent(PortId::Inside).len(), 1);
    assert_eq!(b.out.events.len(), 2, "the new control hears of a packet too");
}

/// The region tells SAs apart by their keys: a rekeyed SA in a slot that was another's begins at 1.
#[test]
fn another_sa_in_the_same_slot_begins_anew() {
    let region = region();
    let mut first = b(&region, 64);
    first.process(PortId::Inside, (0..100).map(|_| frame(&datagram(HOST_B, HOST_A, b"x"))));
    drop(first);
    let mut next = Gateway::over(Ipv4Addr::new(10, 2, 0, 1), OUTER_B, region.clone());
    next.apply(Command::InstallOutbound { sa: sa(TO_A + 1, 1, false, Suite::Aes128Gcm, false) });
    protect(&mut next);
    next.hop(OUTER_A, PortId::Outside);
    next.process(PortId::Inside, [frame(&datagram(HOST_B, HOST_A, b"x"))]);
    assert_eq!(number(&next.take_sent(PortId::Outside)[0]), (TO_A + 1, 1));
    assert_eq!(next.engine.activity(1).map(|SaActivity { packets, .. }| packets), Some(1));
}
