//! The engine alone: packets on unknown SPIs, and a tunnel's two halves, in bursts of 32.
#![allow(missing_docs, clippy::print_stdout, reason = "a benchmark")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use spindle_abi::{Command, Spi, Time};
use spindle_aead::Provider;
use spindle_benches::regression::{Work, burst};
use spindle_benches::tunnel::Tunnel;
use spindle_benches::{Recycle, Spis, engine, esp_frame, set_spi};
use spindle_engine::{ArrayVec, BURST, MemoryFrame, PortId};

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

fn tunnel(c: &mut Criterion) {
    let provider = Provider::choose().expect("a provider passes its self-test").provider;
    for what in [Work::Encapsulate, Work::Decapsulate] {
        let mut group = c.benchmark_group(format!("{what:?}"));
        group.throughput(Throughput::Elements(BURST as u64));
        for (size, sas) in [(64usize, 1), (512, 1), (1408, 1), (64, 10_000)] {
            let mut tunnel = Tunnel::new(provider, sas, size);
            let id = BenchmarkId::new("burst of 32", format!("{size} octets, {sas} SAs"));
            group.bench_function(id, |b| {
                b.iter_custom(|bursts| (0..bursts).map(|_| burst(what, &mut tunnel)).sum());
            });
        }
    }
}

criterion_group!(benches, unknown_spi, tunnel);
criterion_main!(benches);
