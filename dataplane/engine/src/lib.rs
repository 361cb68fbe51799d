//! The dataplane without I/O: a burst of frames in, verdicts out.

#![forbid(unsafe_code)]

mod config;
mod counters;
mod frame;

pub use arrayvec::ArrayVec;
pub use config::{EngineConfig, PortConfig, Refused};
pub use counters::{Counter, Counters, DropReason, Imbalance};
pub use frame::{BURST, Frame, MemoryFrame, Output, PortId};

use spindle_abi::{Command, SaActivity, Spi, SpiState, Time};
use std::net::{IpAddr, Ipv4Addr};

/// How to reach a destination: from the kernel's routes and neighbours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NextHop {
    /// The port that leads there.
    pub port: PortId,
    /// Source of the Ethernet header.
    pub source_mac: [u8; 6],
    /// Destination of the Ethernet header.
    pub destination_mac: [u8; 6],
    /// Largest layer-3 packet on this way, in octets.
    pub mtu: u16,
}

/// One worker's dataplane: SAD, SPD, SPI states and next hops. No I/O, no clock, no allocation per packet.
pub struct Engine {
    counters: Counters,
}

impl Engine {
    /// An engine without SAs or policies: it drops everything.
    pub fn new(_config: EngineConfig) -> Engine {
        Engine { counters: Counters::new() }
    }

    /// Carries out a command; bounded cost. The process answers control with `Acknowledged`. Idempotent.
    pub fn apply(&mut self, _now: Time, _command: Command) -> Result<(), Refused> {
        Ok(())
    }

    /// Takes every frame of the burst and gives each exactly one verdict.
    pub fn process<F: Frame>(
        &mut self,
        _now: Time,
        _ingress: PortId,
        burst: &mut ArrayVec<F, BURST>,
        out: &mut impl Output<F>,
    ) {
        for frame in burst.drain(..) {
            out.discard(frame, DropReason::NoPolicy);
        }
    }

    /// Sends urgent events that are due (former SPIs, each at most once in 100 ms; and those for which there was
    /// no room). Bounded; call it every few milliseconds.
    pub fn sweep<F: Frame>(&mut self, _now: Time, _out: &mut impl Output<F>) {}

    /// Sends a frame that [`Output::unresolved`] gave out, now that its next hop is known; if it still is not,
    /// drops it.
    pub fn forward<F: Frame>(
        &mut self,
        _now: Time,
        _egress: PortId,
        _destination: IpAddr,
        frame: F,
        out: &mut impl Output<F>,
    ) {
        self.give_up(frame, out);
    }

    /// Drops a frame that [`Output::unresolved`] gave out.
    pub fn give_up<F: Frame>(&mut self, frame: F, out: &mut impl Output<F>) {
        out.discard(frame, DropReason::NoNextHop);
    }

    /// Sets or removes the next hop towards one destination (the packet's own destination address, not the
    /// router's). Refused if the table is full or the address is not IPv4.
    pub fn set_next_hop(&mut self, _destination: IpAddr, _next_hop: Option<NextHop>) -> Result<(), Refused> {
        Ok(())
    }

    /// Forgets all next hops (after a route changed).
    pub fn clear_next_hops(&mut self) {}

    /// Replaces this host's addresses.
    pub fn set_local_addresses(&mut self, _addresses: &[Ipv4Addr]) {}

    /// The port lost `count` frames that it was given to transmit.
    pub fn lost_in_transmit(&mut self, _port: PortId, _count: u64) {}

    /// The state of an inbound SPI.
    pub fn spi_state(&self, _spi: Spi) -> SpiState {
        SpiState::Unknown
    }

    /// What the SA with this index has carried.
    pub fn activity(&self, _index: u32) -> Option<SaActivity> {
        None
    }

    /// Calls `report` for SAs whose activity changed since it was last reported, at most `limit` of them.
    pub fn changed_activity(&mut self, _limit: usize, _report: impl FnMut(u32, SaActivity)) {}

    /// All counts.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}
