//! Measurements of the engine that both the criterion benches and other binaries use, and the machine that they were
//! taken on.

#![forbid(unsafe_code)]

pub mod aead;
pub mod alone;
mod machine;
pub mod regression;
pub mod report;
pub mod scale;
pub mod secgw;
pub mod tunnel;

pub use machine::{Machine, with_huge_pages};

use spindle_abi::{Command, Event, Spi, SpiState, Time};
use spindle_engine::{
    ArrayVec, BURST, DropReason, Engine, EngineConfig, Frame, MemoryFrame, Output, PortConfig, PortId,
};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

/// The outer address of the gateway that is measured.
pub const OUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The outer address of its peer.
pub const PEER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// Takes frames back, as a port would, and only looks at events.
#[derive(Default)]
pub struct Recycle {
    /// Frames to be used again.
    pub frames: Vec<MemoryFrame>,
    /// Events so far.
    pub events: u64,
    /// Frames that were sent.
    pub sent: u64,
}

impl Output<MemoryFrame> for Recycle {
    #[inline]
    fn transmit(&mut self, _port: PortId, frame: MemoryFrame) {
        self.sent += 1;
        self.frames.push(frame);
    }
    #[inline]
    fn to_host(&mut self, _interface: u16, frame: MemoryFrame) {
        self.sent += 1;
        self.frames.push(frame);
    }
    #[inline]
    fn discard(&mut self, frame: MemoryFrame, _reason: DropReason) {
        self.frames.push(frame);
    }
    #[inline]
    fn unresolved(&mut self, _egress: PortId, _destination: IpAddr, frame: MemoryFrame) {
        self.frames.push(frame);
    }
    #[inline]
    fn event(&mut self, event: Event) -> bool {
        std::hint::black_box(&event);
        self.events += 1;
        true
    }
}

/// An engine whose outer address is [`OUTER`], with the usual table sizes.
pub fn engine() -> Engine {
    let port = |mtu| PortConfig {
        mac: [2, 0, 0, 0, 0, 1],
        mtu,
        complete_checksums: false,
        address: None,
        address_v6: None,
    };
    Engine::new(EngineConfig::new(vec![OUTER.into()], port(1500), port(1500)))
}

/// A 64-octet Ethernet frame of ESP from [`PEER`] to [`OUTER`], SPI yet to be set by [`set_spi`].
pub fn esp_frame() -> Vec<u8> {
    let mut octets = vec![0; 64];
    octets[12..14].copy_from_slice(&[8, 0]);
    let header = &mut octets[14..34];
    header[..10].copy_from_slice(&[0x45, 0, 0, 50, 0, 0, 0x40, 0, 64, 50]);
    header[12..16].copy_from_slice(&PEER.octets());
    header[16..20].copy_from_slice(&OUTER.octets());
    let sum: u32 = header.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    octets
}

/// Sets the SPI of [`esp_frame`]'s frame.
#[inline]
pub fn set_spi(frame: &mut MemoryFrame, spi: u32) {
    frame.data_mut()[34..38].copy_from_slice(&spi.to_be_bytes());
}

/// A cheap sequence of SPIs that are never reserved (xorshift).
pub struct Spis(u32);

impl Spis {
    /// Begins anywhere but at zero.
    pub fn new(seed: u32) -> Spis {
        Spis(seed.max(1))
    }
}

impl Iterator for Spis {
    type Item = u32;
    #[inline]
    fn next(&mut self) -> Option<u32> {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        Some(self.0 | 0x100)
    }
}

/// Nanoseconds that the engine alone takes for a packet on an unknown SPI, in bursts of 32 with SPIs that do not
/// repeat, while its table holds `known` former SPIs: the median over rounds of 4,096 packets, `packets` in all
/// (at least 9 rounds). Rounds are shorter than a scheduler's slice, so that on a busy machine most of them run
/// undisturbed. What the loop itself takes (writing SPIs, moving frames) is measured alike and subtracted.
pub fn nanoseconds_per_unknown_spi(known: u32, packets: u32) -> f64 {
    let mut engine = engine();
    // Known ones are even, those that are sent odd, so that none of these is known.
    for spi in Spis::new(1).take(known as usize) {
        let _ = engine.apply(Time(1), Command::SetSpiState { spi: Spi(spi & !1), state: SpiState::Former });
    }
    let mut out = Recycle::default();
    out.frames.extend((0..BURST).map(|_| MemoryFrame::new(&esp_frame())));
    let mut spis = Spis::new(0x5eed_1234);
    const BURSTS: usize = 128;
    let rounds = (packets as usize).div_ceil(BURSTS * BURST).max(9);
    let mut round = |with_engine: bool| {
        let started = Instant::now();
        for _ in 0..BURSTS {
            let mut burst: ArrayVec<MemoryFrame, BURST> = out.frames.drain(..).collect();
            for (frame, spi) in burst.iter_mut().zip(&mut spis) {
                set_spi(frame, spi | 1);
            }
            match with_engine {
                true => engine.process(Time(2), PortId::Outside, &mut burst, &mut out),
                false => burst.drain(..).for_each(|frame| out.discard(frame, DropReason::UnknownSpi)),
            }
        }
        started.elapsed().as_nanos() as f64 / (BURSTS * BURST) as f64
    };
    let mut median = |with_engine: bool| {
        let mut times: Vec<f64> = (0..rounds).map(|_| round(with_engine)).collect();
        times.sort_by(f64::total_cmp);
        times[rounds / 2]
    };
    let nanoseconds = median(true) - median(false);
    let detected = engine.counters().count(spindle_engine::Counter::UnknownSpiDetected);
    assert_eq!(detected, (rounds * BURSTS * BURST) as u64, "every packet is on an unknown SPI");
    nanoseconds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_measured_are_unknown_spis() {
        assert!(nanoseconds_per_unknown_spi(1000, 4096) > 0.0);
    }
}
