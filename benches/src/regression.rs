//! Is the engine slower than it was? Twice asked: by the instructions that callgrind counts, which no other load on the
//! machine changes, against a committed file; and by time, in turns with a program built from another commit.

use crate::tunnel::Tunnel;
use crate::{Recycle, Spis, engine, esp_frame, set_spi};
use serde::{Deserialize, Serialize};
use spindle_abi::Time;
use spindle_aead::Provider;
use spindle_engine::{ArrayVec, BURST, Engine, MemoryFrame, PortId};
use std::time::{Duration, Instant};

/// What is measured: some work on bursts, of which the last part counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// Frames are refilled.
    Refill,
    /// And encapsulated.
    Encapsulate,
    /// And decapsulated.
    Decapsulate,
    /// ESP on unknown SPIs comes.
    UnknownSpi,
}

impl Work {
    /// The work that goes before, which does not count.
    pub fn before(self) -> Option<Work> {
        match self {
            Work::Decapsulate => Some(Work::Encapsulate),
            Work::Encapsulate => Some(Work::Refill),
            Work::Refill | Work::UnknownSpi => None,
        }
    }
}

/// A kind of work on packets of a size, with so many SAs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Subject {
    /// Which.
    pub what: Work,
    /// The inner IP packet's octets.
    pub size: usize,
    /// Pairs of SAs.
    pub sas: u32,
}

impl Subject {
    /// All that are watched.
    pub fn all() -> Vec<Subject> {
        let mut all = vec![Subject { what: Work::UnknownSpi, size: 64, sas: 0 }];
        for what in [Work::Encapsulate, Work::Decapsulate] {
            all.extend([64, 512, 1408].map(|size| Subject { what, size, sas: 1 }));
            all.push(Subject { what, size: 64, sas: 10_000 });
        }
        all
    }

    /// Does it on so many bursts of 32, and checks that all packets passed.
    pub fn work(self, provider: Provider, bursts: u32) {
        Bench::new(self, provider).round(bursts);
    }

    /// Nanoseconds per packet: the lowest tenth of many short rounds, so that other load matters little.
    pub fn time(self, provider: Provider, rounds: u32) -> f64 {
        let mut work = Bench::new(self, provider);
        let mut times: Vec<f64> = (0..rounds).map(|_| work.round(16)).collect();
        times.sort_by(f64::total_cmp);
        times[times.len() / 10]
    }
}

/// A subject made ready.
enum Bench {
    Tunnel(Work, Box<Tunnel>),
    UnknownSpi(Box<Engine>, Recycle, Spis),
}

impl Bench {
    fn new(subject: Subject, provider: Provider) -> Bench {
        if subject.what != Work::UnknownSpi {
            return Bench::Tunnel(subject.what, Box::new(Tunnel::new(provider, subject.sas, subject.size)));
        }
        let mut out = Recycle::default();
        out.frames.extend((0..BURST).map(|_| MemoryFrame::new(&esp_frame())));
        Bench::UnknownSpi(Box::new(engine()), out, Spis::new(7))
    }

    /// Works on so many bursts: nanoseconds of each packet.
    fn round(&mut self, bursts: u32) -> f64 {
        let mut spent = Duration::ZERO;
        for _ in 0..bursts {
            spent += match self {
                Bench::Tunnel(what, tunnel) => burst(*what, tunnel),
                Bench::UnknownSpi(engine, out, spis) => {
                    let mut burst: ArrayVec<MemoryFrame, BURST> = out.frames.drain(..).collect();
                    burst.iter_mut().zip(spis).for_each(|(frame, spi)| set_spi(frame, spi));
                    let started = Instant::now();
                    engine.process(Time(2), PortId::Outside, &mut burst, out);
                    started.elapsed()
                }
            };
        }
        spent.as_nanos() as f64 / (f64::from(bursts) * BURST as f64)
    }
}

/// Passes one burst, and returns the time of what counts of it.
pub fn burst(what: Work, tunnel: &mut Tunnel) -> Duration {
    let passed = tunnel.passed();
    let started = Instant::now();
    tunnel.refill();
    if what == Work::Refill {
        return started.elapsed();
    }
    let started = Instant::now();
    tunnel.encapsulate();
    let mut spent = started.elapsed();
    if what == Work::Decapsulate {
        let started = Instant::now();
        tunnel.decapsulate();
        spent = started.elapsed();
    }
    let opened = if what == Work::Decapsulate { BURST as u64 } else { 0 };
    assert_eq!(tunnel.passed(), (passed.0 + BURST as u64, passed.1 + opened), "every packet passes");
    spent
}
