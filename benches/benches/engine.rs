//! The engine alone: packets on unknown SPIs, and a tunnel's two halves, in bursts of 32.
#![allow(missing_docs, clippy::print_stdout, reason = "a benchmark")]

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use spindle_abi::{
    Command, KeyMaterial, Limits, Mode, PolicyAction, SaParameters, Selector, SelectorSet, Spi, Suite, Time,
};
use spindle_benches::{OUTER, PEER, Recycle, Spis, engine, esp_frame, set_spi};
use spindle_engine::{ArrayVec, BURST, Counter, Engine, MemoryFrame, NextHop, PortId};
use spindle_wire::{ethernet, ipv4};

type Burst = ArrayVec<MemoryFrame, BURST>;

fn unknown_spi(c: &mut Criterion) {
    let mut group = c.benchmark_group("unknown SPI");
    group.throughput(Throughput::Elements(BURST as u64));
    for known in [0u32, 1_000_000] {
        let mut engine = engine();
        for spi in Spis::new(1).take(known as usize) {
            let state = spindle_abi::SpiState::Former;
            engine.apply(Time(1), Command::SetSpiState { spi: Spi(spi & !1), state }).unwrap();
        }
        let mut out = Recycle::default();
        out.frames.extend((0..BURST).map(|_| MemoryFrame::new(&esp_frame())));
        let mut spis = Spis::new(77);
        group.bench_function(BenchmarkId::new("burst of 32, SPIs known", known), |b| {
            b.iter(|| {
                let mut burst: Burst = out.frames.drain(..).collect();
                burst.iter_mut().zip(&mut spis).for_each(|(frame, spi)| set_spi(frame, spi | 1));
                engine.process(Time(2), PortId::Outside, &mut burst, &mut out);
            });
        });
        println!("ns per unknown SPI: {:.1}", spindle_benches::nanoseconds_per_unknown_spi(known, 200_000));
    }
}

fn inner(length: usize) -> Vec<u8> {
    let repr = ipv4::Repr {
        traffic_class: 0,
        identification: 0,
        dont_fragment: true,
        more_fragments: false,
        fragment_offset: 0,
        ttl: 64,
        protocol: 17,
        source: [10, 1, 0, 1].into(),
        destination: [10, 2, 0, 1].into(),
        payload_length: (length - 20) as u16,
    };
    let mut octets = vec![0; 14 + length];
    ethernet::Repr { destination: [2; 6], source: [4; 6], ethertype: ethernet::IPV4 }.emit(&mut octets);
    repr.emit(&mut octets[14..]);
    octets
}

/// An engine that sends to itself: its outbound SA has the same SPI and key as its inbound one.
fn looped(replay_window: u32) -> Engine {
    let mut engine = engine();
    engine.set_local_addresses(&[OUTER.into(), PEER.into()]);
    let any = || vec![Selector::addresses([10, 0, 0, 0].into(), [10, 255, 255, 255].into())];
    let selectors = SelectorSet { local: any(), remote: any() };
    let sa = |index| SaParameters {
        spi: Spi(0xc0ff_ee00),
        index,
        policy: 1,
        mode: Mode::Tunnel,
        suite: Suite::Aes128Gcm,
        keymat: KeyMaterial::new(&[7; 20]).unwrap(),
        local: (OUTER, 0).into(),
        remote: (PEER, 0).into(),
        encapsulated: false,
        selectors: selectors.clone(),
        esn: false,
        soft: Limits::default(),
        hard: Limits::default(),
    };
    let set = Command::SetPolicy {
        id: 1,
        priority: 1,
        action: PolicyAction::Protect,
        selectors: selectors.clone(),
        hold: 0,
    };
    let inbound = Command::InstallInbound { sa: sa(0), replay_window, report_first: false };
    for command in [set, inbound, Command::InstallOutbound { sa: sa(1) }] {
        engine.apply(Time(1), command).unwrap();
    }
    for (to, port) in [([10, 2, 0, 1].into(), PortId::Inside), (PEER.into(), PortId::Outside)] {
        let hop = NextHop { port, source_mac: [2; 6], destination_mac: [4; 6], mtu: 1500 };
        engine.set_next_hop(to, Some(hop)).unwrap();
    }
    engine
}

fn tunnel(c: &mut Criterion) {
    for (name, ingress) in [("encapsulate", PortId::Inside), ("decapsulate", PortId::Outside)] {
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Elements(BURST as u64));
        for length in [64usize, 512, 1400] {
            // Without a replay window, so that the same burst opens again and again.
            let mut engine = looped(0);
            let mut out = Recycle::default();
            let plain = inner(length);
            let burst: Burst = (0..BURST).map(|_| MemoryFrame::new(&plain)).collect();
            let mut template = burst.clone();
            if ingress == PortId::Outside {
                engine.process(Time(2), PortId::Inside, &mut template, &mut out);
                template = out.frames.drain(..).collect();
            }
            group.bench_function(BenchmarkId::new("burst of 32, octets", length), |b| {
                b.iter_batched_ref(
                    || template.clone(),
                    |burst| {
                        out.frames.clear();
                        engine.process(Time(2), ingress, burst, &mut out);
                    },
                    BatchSize::SmallInput,
                );
            });
            let counters = engine.counters();
            let moved = counters.count(Counter::DeliveredInside) + counters.count(Counter::DeliveredOutside);
            assert_eq!(moved, out.sent, "every packet passed");
            assert_eq!(
                moved,
                counters.count(Counter::ReceivedInside) + counters.count(Counter::ReceivedOutside)
            );
        }
    }
}

criterion_group!(benches, unknown_spi, tunnel);
criterion_main!(benches);
