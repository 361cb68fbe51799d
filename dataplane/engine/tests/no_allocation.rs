//! The workers' loop allocates nothing after its start: every kind of packet, every verdict, with memory that is
//! counted. (That it takes no lock is held by `dataplane/clippy.toml`: the types for it are not allowed.)

mod common;

use common::*;
use spindle_abi::{Command, Event, PolicyAction, Spi, SpiState, Suite};
use spindle_engine::{ArrayVec, BURST, Counter, DropReason, Frame, MemoryFrame, Output, PortId};
use spindle_wire::{ipv4, protocol};
use std::net::{IpAddr, Ipv4Addr};

/// Takes frames back as a port does, into memory that was there before.
struct Recycler {
    free: Vec<MemoryFrame>,
    waiting: ArrayVec<MemoryFrame, BURST>,
    sent: u64,
    events: u64,
    rings_full: bool,
}

const FRAMES: usize = 2 * BURST;
const OCTETS: [u8; 2048] = [0x5a; 2048];

impl Recycler {
    fn new() -> Recycler {
        let free = (0..FRAMES).map(|_| MemoryFrame::new(&OCTETS)).collect();
        Recycler { free, waiting: ArrayVec::new(), sent: 0, events: 0, rings_full: false }
    }

    fn frame(&mut self, octets: &[u8]) -> MemoryFrame {
        let mut frame = self.free.pop().expect("every frame came back");
        frame.refill(octets);
        frame
    }
}

impl Output<MemoryFrame> for Recycler {
    fn transmit(&mut self, _port: PortId, frame: MemoryFrame) {
        self.sent += 1;
        self.free.push(frame);
    }
    fn to_host(&mut self, _interface: u16, frame: MemoryFrame) {
        self.sent += 1;
        self.free.push(frame);
    }
    fn discard(&mut self, frame: MemoryFrame, _reason: DropReason) {
        self.free.push(frame);
    }
    fn unresolved(&mut self, _egress: PortId, _destination: IpAddr, frame: MemoryFrame) {
        self.waiting.push(frame);
    }
    fn event(&mut self, _event: Event) -> bool {
        self.events += u64::from(!self.rings_full);
        !self.rings_full
    }
    fn allocate(&mut self, length: usize) -> Option<MemoryFrame> {
        Some(self.frame(&OCTETS[..length]))
    }
}

/// What comes to B in one round, from which side; the ESP in it is new.
fn round(a: &mut Gateway, number: u32) -> Vec<(PortId, Vec<u8>)> {
    let mut packets = Vec::new();
    for data in [&content(0), &content(64), &content(500), &content(1372)] {
        a.process(PortId::Inside, [frame(&datagram(HOST_A, HOST_B, data))]);
    }
    let mut congested = frame(&echo(HOST_A, HOST_B, b"not ECN-capable"));
    a.process(PortId::Inside, [congested.clone()]);
    a.process(PortId::Inside, (0..3).map(|_| frame(&datagram(HOST_A, HOST_B, &content(1300)))));
    let esp = a.take_sent(PortId::Outside);
    congested.clone_from(&esp[4]);
    ipv4::Packet::new_checked(&mut congested.data_mut()[14..]).unwrap().set_traffic_class(3);
    let mut forged = esp[2].clone();
    *forged.data_mut().last_mut().unwrap() ^= 1;
    let cut = MemoryFrame::new(&esp[0].data()[..40]);
    let outside =
        [forged, congested, cut].into_iter().chain(esp[..4].iter().cloned()).chain([esp[3].clone()]);
    // In fragments: one that arrives, one with an overlap, one that stays without its second half.
    let pieces: Vec<_> = esp[5..8].iter().map(|whole| fragments(&packet(whole), 600)).collect();
    let overlap = fragments(&packet(&esp[6]), 1200);
    let from_b = |spi: u32| {
        let head = [spi.to_be_bytes(), 1u32.to_be_bytes()].concat();
        ip(OUTER_B, OUTER_A, protocol::ESP, &[&head[..], &content(1450)].concat())
    };
    let outside = outside
        .chain([TO_A, 0x1234_5678].map(|spi| too_big(&from_b(spi), 1450, 8)))
        .chain(pieces[0].iter().rev().cloned())
        .chain([pieces[1][0].clone(), overlap[0].clone(), pieces[2][0].clone()]);
    let spis = [0xdead_0000 + number, 0x1001, 0x1002, 0x1003];
    let outside = outside.chain(spis.map(|spi| esp_to_b(spi, number, number.is_multiple_of(2)))).chain([
        frame(&echo(OUTER_A, HOST_B, b"in clear")),
        frame(&echo(OUTER_A, OUTER_B, b"for the host")),
        frame(&echo(OUTER_A, Ipv4Addr::new(224, 0, 0, 1), b"multicast")),
    ]);
    packets.extend(outside.map(|frame| (PortId::Outside, frame.data().to_vec())));

    let mut last_hop = echo(HOST_B, HOST_A, b"traceroute");
    (last_hop[8], last_hop[10], last_hop[11]) = (1, 0, 0);
    let sum = spindle_wire::checksum::internet(&last_hop[..20]);
    last_hop[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut whole = datagram(HOST_B, HOST_A, &content(1472));
    ipv4::Packet::new_checked(&mut whole[..]).unwrap().set_fragment(false, false, 0);
    let mut broken = echo(HOST_B, HOST_A, b"");
    broken[10] ^= 1;
    let inside = [
        echo(HOST_B, HOST_A, b"protected"),
        segment(HOST_B, HOST_A, Some(1460), b""),
        segment(HOST_B, HOST_A, None, &content(1300)),
        whole,
        datagram(HOST_B, HOST_A, &content(1472)),
        last_hop,
        broken,
        echo(HOST_B, Ipv4Addr::new(10, 9, 9, 9), b"no policy"),
        echo(HOST_B, Ipv4Addr::new(10, 8, 0, 1), b"to be discarded"),
        echo(HOST_B, Ipv4Addr::new(10, 7, 0, 1), b"bypassed, next hop unknown"),
        echo(HOST_B, Ipv4Addr::new(10, 6, 0, 1), b"a policy without an SA"),
    ];
    packets.extend(inside.iter().map(|packet| (PortId::Inside, frame(packet).data().to_vec())));
    for side in [PortId::Inside, PortId::Outside] {
        packets.push((side, vec![0; 5]));
        packets.push((side, vec![0xff; 60]));
    }
    packets
}

/// What a worker does with them.
fn work(b: &mut Gateway, out: &mut Recycler, packets: &[(PortId, Vec<u8>)]) {
    b.now.0 += SECOND;
    for (full, ingress) in [(false, PortId::Outside), (false, PortId::Inside), (true, PortId::Outside)] {
        out.rings_full = full;
        let mut of_side = packets.iter().filter(|(side, _)| *side == ingress).peekable();
        while of_side.peek().is_some() {
            let mut burst: ArrayVec<MemoryFrame, BURST> =
                of_side.by_ref().take(BURST).map(|(_, octets)| out.frame(octets)).collect();
            b.engine.process(b.now, ingress, &mut burst, out);
            while let Some(frame) = out.waiting.pop() {
                b.engine.give_up(frame, DropReason::NoNextHop, out);
            }
        }
        b.engine.lost_in_transmit(PortId::Inside, 1);
        b.engine.sweep(b.now, out);
    }
    out.rings_full = false;
    b.engine.sweep(b.now, out);
    // What waits in vain is given up.
    b.now.0 += 10 * SECOND;
    b.engine.sweep(b.now, out);
    b.engine.changed_activity(64, |_, _| {});
}

#[test]
fn no_packet_and_no_verdict_allocates() {
    let (mut a, mut b) = pair(Suite::Aes128Gcm, false);
    let [larval, retired] = [SpiState::Larval, SpiState::Retired];
    b.apply(Command::SetSpiState { spi: Spi(0x1001), state: larval });
    b.apply(Command::SetSpiState { spi: Spi(0x1002), state: retired });
    b.apply(Command::SetFormer { spis: vec![Spi(0x1003)] });
    let actions = [(8, PolicyAction::Discard), (7, PolicyAction::Bypass), (6, PolicyAction::Protect)];
    for (net, action) in actions {
        let selectors = selectors(HOST_B, Ipv4Addr::new(10, net, 0, 1));
        b.apply(Command::SetPolicy { id: 100 + u32::from(net), priority: 5, action, selectors, hold: 0 });
    }
    let rounds: Vec<_> = (1..=5).map(|number| round(&mut a, number)).collect();
    let mut out = Recycler::new();
    work(&mut b, &mut out, &rounds[0]);
    let before = b.engine.counters().clone();
    let sent = out.sent;

    let allocated = allocation_counter::measure(|| {
        for packets in &rounds[1..] {
            work(&mut b, &mut out, packets);
        }
    });
    assert_eq!(allocated.count_total, 0, "{allocated:?}");

    // All that the engine can do was done while it was counted.
    assert_eq!((out.free.len(), b.engine.counters().check()), (FRAMES, Ok(())));
    assert!(out.sent > sent && out.events > 0);
    let counters = b.engine.counters();
    for counter in [
        Counter::Decapsulated,
        Counter::Encapsulated,
        Counter::UnknownSpiDetected,
        Counter::NoiseLost,
        Counter::FormerSpiReported,
        Counter::MssClamped,
        Counter::IcmpErrorsSent,
        Counter::Fragmented,
        Counter::Reassembled,
        Counter::ReassemblyAbandoned,
        Counter::PathMtuLearned,
    ] {
        assert!(counters.count(counter) > before.count(counter), "{counter}");
    }
    use DropReason::*;
    for reason in [
        UnknownSpi,
        FormerSpi,
        FragmentKept,
        IcmpAboutEsp,
        FragmentInvalid,
        IcmpUnknownSa,
        NotIp,
        MalformedIp,
        ForHost,
        NotUnicast,
        CleartextFromOutside,
        LarvalSpi,
        RetiredSpi,
        Replayed,
        AuthenticationFailed,
        EcnMismatch,
        NoPolicy,
        PolicyDiscard,
        NoSa,
        TtlExpired,
        TooBig,
        NoNextHop,
        TransmitFailed,
    ] {
        assert!(counters.dropped(reason) > before.dropped(reason), "{reason}");
    }
}

/// The counter counts.
#[test]
fn an_allocation_would_be_noticed() {
    let allocated = allocation_counter::measure(|| {
        std::hint::black_box(vec![1u8, 2]);
    });
    assert_eq!(allocated.count_total, 1);
}
