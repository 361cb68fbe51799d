//! An engine that sends to itself: each outbound SA has the SPI and the key of an inbound one. Plain frames become ESP,
//! and the same frames are opened again. Each packet is from a host to itself, so that its selectors are right both ways.

use crate::{OUTER, PEER, Recycle};
use spindle_abi::{
    Command, KeyMaterial, Limits, Mode, PolicyAction, SaParameters, Selector, SelectorSet, Spi, Suite, Time,
};
use spindle_aead::Provider;
use spindle_engine::{
    ArrayVec, BURST, Counter, Engine, EngineConfig, MemoryFrame, NextHop, PortConfig, PortId,
};
use spindle_wire::{ethernet, ipv4};
use std::net::Ipv4Addr;

/// The replay window, in packets.
const WINDOW: u32 = 1024;

/// The engine, and a burst on its way through.
pub struct Tunnel {
    engine: Engine,
    out: Recycle,
    plain: Vec<u8>,
    sas: u32,
    turn: u32,
}

impl Tunnel {
    /// One with so many pairs of SAs (at most 2^20), each for one host, and inner packets of so many octets (20 to 1,438).
    pub fn new(provider: Provider, sas: u32, size: usize) -> Tunnel {
        let mut engine = empty_engine(provider, 2 * sas);
        for command in (0..sas).flat_map(commands) {
            engine.apply(Time(1), command).expect("there is room");
        }
        let next_hop = |port| Some(NextHop { port, source_mac: [2; 6], destination_mac: [4; 6], mtu: 1500 });
        engine.set_next_hop(PEER.into(), next_hop(PortId::Outside)).expect("there is room");
        for sa in 0..sas {
            engine.set_next_hop(host(sa).into(), next_hop(PortId::Inside)).expect("there is room");
        }
        let mut out = Recycle::default();
        out.frames.extend((0..BURST).map(|_| MemoryFrame::new(&vec![0; 14 + size])));
        Tunnel { engine, out, plain: packet(size), sas, turn: 1 }
    }

    /// Puts plain packets into the frames, each for another host.
    pub fn refill(&mut self) {
        for frame in &mut self.out.frames {
            self.turn = self.turn.wrapping_mul(0x9e37_79b1).wrapping_add(1);
            let host = host((self.turn >> 8) % self.sas).octets();
            let header = &mut self.plain[14..34];
            header[12..16].copy_from_slice(&host);
            header[16..20].copy_from_slice(&host);
            header[10..12].fill(0);
            let checksum = spindle_wire::checksum::internet(header);
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
            frame.refill(&self.plain);
        }
    }

    /// Makes ESP of a refilled burst.
    pub fn encapsulate(&mut self) {
        self.pass(PortId::Inside);
    }

    /// Opens what was encapsulated.
    pub fn decapsulate(&mut self) {
        self.pass(PortId::Outside);
    }

    #[inline]
    fn pass(&mut self, ingress: PortId) {
        let mut burst: ArrayVec<MemoryFrame, BURST> = self.out.frames.drain(..).collect();
        self.engine.process(Time(2), ingress, &mut burst, &mut self.out);
    }

    /// Packets that became ESP, and that were opened.
    pub fn passed(&self) -> (u64, u64) {
        let count = |counter| self.engine.counters().count(counter);
        (count(Counter::DeliveredOutside), count(Counter::DeliveredInside))
    }
}

/// An engine with room for so many SAs (at most 2^21).
pub(crate) fn empty_engine(provider: Provider, sas: u32) -> Engine {
    let port = PortConfig {
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 1500,
        complete_checksums: false,
        address: None,
        address_v6: None,
    };
    let mut config = EngineConfig::new(vec![OUTER.into(), PEER.into()], port.clone(), port);
    config.provider = provider;
    config.max_sas = config.max_sas.max(sas);
    config.max_next_hops = config.max_next_hops.max(sas);
    Engine::new(config)
}

fn host(sa: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 2, 0, 0)) + sa)
}

/// A policy, and its two SAs.
pub(crate) fn commands(number: u32) -> [Command; 3] {
    let host = || vec![Selector::addresses(host(number).into(), host(number).into())];
    let selectors = SelectorSet { local: host(), remote: host() };
    let sa = |index| SaParameters {
        spi: Spi(0x1000_0000 + number),
        index,
        policy: number,
        resource: Default::default(),
        mode: Mode::Tunnel,
        suite: Suite::Aes128Gcm,
        keymat: KeyMaterial::new(&[7; 20]).expect("the length of AES-128-GCM's"),
        local: (OUTER, 0).into(),
        remote: (PEER, 0).into(),
        encapsulated: false,
        selectors: selectors.clone(),
        esn: false,
        soft: Limits::default(),
        hard: Limits::default(),
    };
    let policy = Command::SetPolicy {
        id: number,
        priority: number,
        action: PolicyAction::Protect,
        selectors: selectors.clone(),
        hold: 0,
    };
    let inbound = Command::InstallInbound { sa: sa(2 * number), replay_window: WINDOW, report_first: false };
    [policy, inbound, Command::InstallOutbound { sa: sa(2 * number + 1) }]
}

fn packet(size: usize) -> Vec<u8> {
    let repr = ipv4::Repr {
        traffic_class: 0,
        identification: 0,
        dont_fragment: true,
        more_fragments: false,
        fragment_offset: 0,
        ttl: 64,
        protocol: 17,
        source: host(0),
        destination: host(0),
        payload_length: (size - 20) as u16,
    };
    let mut octets = vec![0; 14 + size];
    ethernet::Repr { destination: [2; 6], source: [4; 6], ethertype: ethernet::IPV4 }.emit(&mut octets);
    repr.emit(&mut octets[14..]);
    octets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_packet_passes_both_ways() {
        for (sas, size) in [(1, 64), (1, 1408), (100, 64)] {
            let mut tunnel = Tunnel::new(Provider::Portable, sas, size);
            for _ in 0..50 {
                tunnel.refill();
                tunnel.encapsulate();
                tunnel.decapsulate();
            }
            assert_eq!(tunnel.passed(), (50 * BURST as u64, 50 * BURST as u64), "{sas} SAs, {size} octets");
        }
    }
}
