//! The engine with a memory port and nothing else: the port copies each packet of a small store into a frame, the engine
//! passes bursts of 32, and the frames go back. What the port takes alone, and the AEAD alone on the same octets, is
//! measured by the same loop. Each SA is for one host of 10/8 behind the peer; all have one key, so that packets on any of
//! them are made without touching the engine's memory.

use crate::aead::encrypted_length;
use crate::report::median;
use crate::{OUTER, PEER, Recycle};
use spindle_abi::{
    Command, KeyMaterial, Limits, Mode, PolicyAction, SaParameters, Selector, SelectorSet, Spi, Suite, Time,
};
use spindle_aead::{Algorithm, Key, Provider};
use spindle_engine::{
    ArrayVec, BURST, Counter, Engine, EngineConfig, Frame, MemoryFrame, NextHop, PortConfig, PortId,
};
use spindle_wire::{checksum, esp, ethernet, ipv4};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// The first SA's SPI; the others follow.
pub const SPI: u32 = 0x1000;
/// Packets in the store: four bursts.
pub const STORE: usize = 4 * BURST;
/// The replay window, in packets.
const WINDOW: u32 = 1024;
/// KEYMAT of AES-128-GCM: the key, and four octets of salt.
const KEYMAT: [u8; 20] = [7; 20];
/// The host on the protected side.
const HOST: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
/// Octets of an Ethernet and an IPv4 header.
const OUTER_HEADERS: usize = ethernet::HEADER_LENGTH + 20;
/// SPI, sequence number and IV.
const ESP_HEADERS: usize = 16;

/// Which way packets go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// From inside to outside.
    Encapsulate,
    /// From outside to inside.
    Decapsulate,
}

impl Way {
    /// Both.
    pub const ALL: [Way; 2] = [Way::Encapsulate, Way::Decapsulate];

    /// As in tables.
    pub fn name(self) -> &'static str {
        match self {
            Way::Encapsulate => "encapsulate",
            Way::Decapsulate => "decapsulate",
        }
    }
}

/// Nanoseconds per packet of one round, each the median of many passes of the store.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Round {
    /// The engine, less the port.
    pub engine: f64,
    /// The AEAD alone on the same octets, less the port.
    pub aead: f64,
}

/// The engine, the port and packets.
pub struct Alone {
    engine: Engine,
    way: Way,
    out: Recycle,
    store: Vec<Vec<u8>>,
    key: Key,
    plain: Vec<u8>,
    /// The last sequence number of each SA.
    sequences: Vec<u32>,
    /// How many passed the engine.
    passed: u64,
    /// What they take.
    pub octets: Octets,
}

/// Octets by which the process grew for each that was installed.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Octets {
    /// SA.
    pub sa: f64,
    /// Policy (to encapsulate only).
    pub policy: f64,
}

impl Alone {
    /// With so many SAs (1 to 2^20) one way, and inner packets of so many octets (28 to 1,438).
    pub fn new(provider: Provider, way: Way, sas: u32, size: usize) -> Alone {
        let port = PortConfig {
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            complete_checksums: false,
            address: None,
            address_v6: None,
        };
        let mut config = EngineConfig::new(vec![OUTER.into()], port.clone(), port);
        config.provider = provider;
        config.max_sas = config.max_sas.max(sas);
        config.max_policies = config.max_policies.max(sas);
        let mut engine = Engine::new(config);
        let next_hop = |port| Some(NextHop { port, source_mac: [2; 6], destination_mac: [4; 6], mtu: 1500 });
        engine.set_next_hop(PEER.into(), next_hop(PortId::Outside)).expect("there is room");
        engine.set_next_hop(HOST.into(), next_hop(PortId::Inside)).expect("there is room");
        let mut octets = Octets::default();
        if way == Way::Encapsulate {
            octets.policy = install(&mut engine, sas, policy);
        }
        octets.sa = install(&mut engine, sas, |sa| install_sa(way, sa));
        let mut out = Recycle::default();
        out.frames.extend((0..BURST).map(|_| MemoryFrame::new(&vec![0; 100 + size])));
        Alone {
            engine,
            way,
            out,
            store: Vec::new(),
            key: provider.key(Algorithm::Aes128Gcm, &KEYMAT[..16]).expect("a provider that is available"),
            plain: plain(way, size),
            sequences: vec![0; sas as usize],
            passed: 0,
            octets,
        }
    }

    /// One round of so many passes of the store, each filled anew with packets on the SAs that are drawn (by their numbers
    /// from 0).
    pub fn round(&mut self, passes: usize, mut draw: impl FnMut() -> u32) -> Round {
        let (mut engine, mut port, mut aead) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..passes {
            self.fill(&mut draw);
            engine.push(nanoseconds(self.pass()));
            port.push(nanoseconds(self.port_alone()));
            aead.push(nanoseconds(self.aead_alone()));
        }
        let port = median(&mut port);
        Round { engine: median(&mut engine) - port, aead: median(&mut aead) - port }
    }

    /// Puts packets into the store.
    pub fn fill(&mut self, mut draw: impl FnMut() -> u32) {
        self.store.resize(STORE, Vec::new());
        for at in 0..STORE {
            let sa = draw();
            let mut packet = std::mem::take(&mut self.store[at]);
            self.make(sa, &mut packet);
            self.store[at] = packet;
        }
    }

    /// The packets of the store, for a peer's capture file.
    pub fn store(&self) -> &[Vec<u8>] {
        &self.store
    }

    fn make(&mut self, sa: u32, packet: &mut Vec<u8>) {
        packet.clear();
        let inner = &mut self.plain[ethernet::HEADER_LENGTH..];
        let host = if self.way == Way::Encapsulate { 16..20 } else { 12..16 };
        inner[host].copy_from_slice(&remote(sa).octets());
        inner[10..12].fill(0);
        let sum = checksum::internet(&inner[..20]);
        inner[10..12].copy_from_slice(&sum.to_be_bytes());
        if self.way == Way::Encapsulate {
            packet.extend(&self.plain);
            return;
        }
        let inner = &self.plain[ethernet::HEADER_LENGTH..];
        let sequence = &mut self.sequences[sa as usize];
        *sequence += 1;
        let encrypted = encrypted_length(inner.len());
        packet.resize(OUTER_HEADERS + ESP_HEADERS + encrypted + 16, 0);
        ip_headers((PEER, OUTER), 50, packet);
        let payload = &mut packet[OUTER_HEADERS..];
        esp::Repr { spi: SPI + sa, sequence: *sequence }.emit(payload);
        payload[12..16].copy_from_slice(&sequence.to_be_bytes());
        let (headers, rest) = payload.split_at_mut(ESP_HEADERS);
        let (text, tag) = rest.split_at_mut(encrypted);
        text[..inner.len()].copy_from_slice(inner);
        // RFC 4303 section 2.4: padding counts from 1; then its length and the next header, IPv4.
        let padding = encrypted - inner.len() - 2;
        for at in 0..padding {
            text[inner.len() + at] = 1 + at as u8;
        }
        text[encrypted - 2..].copy_from_slice(&[padding as u8, 4]);
        let tag = tag.try_into().expect("16 octets");
        self.key.seal(&nonce(headers), &headers[..8], text, tag);
    }

    /// The port copies the store's packets in, and the engine passes them.
    pub fn pass(&mut self) -> Duration {
        let ingress = if self.way == Way::Encapsulate { PortId::Inside } else { PortId::Outside };
        let Alone { engine, out, store, .. } = self;
        let started = Instant::now();
        for packets in store.chunks_exact(BURST) {
            let mut burst = receive(out, packets);
            engine.process(Time(2), ingress, &mut burst, out);
        }
        let spent = started.elapsed();
        self.passed += STORE as u64;
        let delivered = match self.way {
            Way::Encapsulate => Counter::DeliveredOutside,
            Way::Decapsulate => Counter::DeliveredInside,
        };
        assert_eq!(self.engine.counters().count(delivered), self.passed, "every packet passes");
        spent
    }

    /// The port copies them in, and they go back.
    fn port_alone(&mut self) -> Duration {
        let Alone { out, store, .. } = self;
        let started = Instant::now();
        for packets in store.chunks_exact(BURST) {
            let mut burst = receive(out, packets);
            std::hint::black_box(&mut burst);
            out.frames.extend(burst);
        }
        started.elapsed()
    }

    /// The port copies them in, and the AEAD seals or opens as many octets of each as the engine does.
    fn aead_alone(&mut self) -> Duration {
        let encrypted = encrypted_length(self.plain.len() - ethernet::HEADER_LENGTH);
        let Alone { out, store, key, way, .. } = self;
        let mut authentic = true;
        let started = Instant::now();
        for packets in store.chunks_exact(BURST) {
            let mut burst = receive(out, packets);
            for frame in &mut burst {
                match way {
                    Way::Encapsulate => {
                        let mut tag = [0; 16];
                        key.seal(&[1; 12], &[2; 8], &mut frame.data_mut()[..encrypted], &mut tag);
                        std::hint::black_box(tag);
                    }
                    Way::Decapsulate => {
                        let payload = &mut frame.data_mut()[OUTER_HEADERS..];
                        let (headers, rest) = payload.split_at_mut(ESP_HEADERS);
                        let (text, tag) = rest.split_at_mut(encrypted);
                        let tag: &[u8; 16] = (&*tag).try_into().expect("16 octets");
                        authentic &= key.open(&nonce(headers), &headers[..8], text, tag).is_ok();
                    }
                }
            }
            out.frames.extend(burst);
        }
        let spent = started.elapsed();
        assert!(authentic, "the AEAD opens what was made");
        spent
    }
}

fn nanoseconds(pass: Duration) -> f64 {
    pass.as_nanos() as f64 / STORE as f64
}

/// What the memory port does.
#[inline]
fn receive(out: &mut Recycle, packets: &[Vec<u8>]) -> ArrayVec<MemoryFrame, BURST> {
    let mut burst: ArrayVec<MemoryFrame, BURST> = out.frames.drain(..).collect();
    for (frame, packet) in burst.iter_mut().zip(packets) {
        frame.refill(packet);
    }
    burst
}

/// RFC 4106 section 4: salt and IV.
fn nonce(headers: &[u8]) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[..4].copy_from_slice(&KEYMAT[16..]);
    nonce[4..].copy_from_slice(&headers[8..ESP_HEADERS]);
    nonce
}

/// The host behind the peer that an SA is for.
fn remote(sa: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 64, 0, 0)) + sa)
}

/// Gives the engine so many commands: by how many octets the process grew for each.
fn install(engine: &mut Engine, count: u32, command: impl Fn(u32) -> Command) -> f64 {
    let before = resident();
    for number in 0..count {
        engine.apply(Time(1), command(number)).expect("there is room");
    }
    (resident() - before) / f64::from(count)
}

/// Octets of this process in memory.
fn resident() -> f64 {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:"));
    let kilo = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok());
    1024.0 * kilo.unwrap_or(f64::NAN)
}

fn selectors(number: u32) -> SelectorSet {
    let host = |address: Ipv4Addr| vec![Selector::addresses(address.into(), address.into())];
    SelectorSet { local: host(HOST), remote: host(remote(number)) }
}

fn policy(number: u32) -> Command {
    Command::SetPolicy {
        id: number,
        priority: number,
        action: PolicyAction::Protect,
        selectors: selectors(number),
        hold: 0,
    }
}

fn install_sa(way: Way, number: u32) -> Command {
    let sa = SaParameters {
        spi: Spi(SPI + number),
        index: number,
        policy: number,
        resource: Default::default(),
        mode: Mode::Tunnel,
        suite: Suite::Aes128Gcm,
        keymat: KeyMaterial::new(&KEYMAT).expect("the length of AES-128-GCM's"),
        local: (OUTER, 0).into(),
        remote: (PEER, 0).into(),
        encapsulated: false,
        selectors: selectors(number),
        esn: false,
        soft: Limits::default(),
        hard: Limits::default(),
    };
    match way {
        Way::Encapsulate => Command::InstallOutbound { sa },
        Way::Decapsulate => Command::InstallInbound { sa, replay_window: WINDOW, report_first: false },
    }
}

/// An Ethernet frame with a UDP datagram between the host and the one behind the peer, who is filled in later.
fn plain(way: Way, size: usize) -> Vec<u8> {
    let mut octets = vec![0; ethernet::HEADER_LENGTH + size];
    let addresses = if way == Way::Encapsulate { (HOST, HOST) } else { (remote(0), HOST) };
    ip_headers(addresses, 17, &mut octets);
    let datagram = &mut octets[OUTER_HEADERS..];
    datagram[..4].copy_from_slice(&[0x03, 0xe8, 0x07, 0xd0]);
    let length = datagram.len() as u16;
    datagram[4..6].copy_from_slice(&length.to_be_bytes());
    octets
}

/// Writes the headers of a frame of this length.
fn ip_headers((source, destination): (Ipv4Addr, Ipv4Addr), protocol: u8, frame: &mut [u8]) {
    let repr = ipv4::Repr {
        traffic_class: 0,
        identification: 0,
        dont_fragment: true,
        more_fragments: false,
        fragment_offset: 0,
        ttl: 64,
        protocol,
        source,
        destination,
        payload_length: (frame.len() - OUTER_HEADERS) as u16,
    };
    ethernet::Repr { destination: [2; 6], source: [4; 6], ethertype: ethernet::IPV4 }.emit(frame);
    repr.emit(&mut frame[ethernet::HEADER_LENGTH..]);
}

/// The packets of the store as a capture file (pcap, Ethernet).
pub fn capture(packets: &[Vec<u8>]) -> Vec<u8> {
    let mut file = Vec::new();
    let words = |file: &mut Vec<u8>, words: &[u32]| file.extend(words.iter().flat_map(|w| w.to_le_bytes()));
    // Magic number, version 2.4, no zone, no accuracy, longest frame, Ethernet.
    words(&mut file, &[0xa1b2_c3d4, 0x0004_0002, 0, 0, 65_535, 1]);
    for packet in packets {
        let length = packet.len() as u32;
        words(&mut file, &[0, 0, length, length]);
        file.extend(packet);
    }
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_packet_passes_both_ways_on_any_sa() {
        for way in Way::ALL {
            for (sas, size) in [(1, 64), (1, 1408), (1000, 64), (1000, 65)] {
                let mut alone = Alone::new(Provider::Portable, way, sas, size);
                let mut turn = 0;
                let round = alone.round(5, || {
                    turn += 7;
                    turn % sas
                });
                assert!(round.aead > 0.0, "{round:?}");
                assert_eq!(alone.passed, 5 * STORE as u64, "{way:?}, {sas} SAs, {size} octets");
            }
        }
    }

    /// 24 octets of header, then 16 before each frame.
    #[test]
    fn a_capture_holds_each_packet() {
        let file = capture(&[vec![1; 60], vec![2; 61]]);
        assert_eq!(file.len(), 24 + 16 + 60 + 16 + 61);
        assert_eq!(file[24 + 8..24 + 16], [60, 0, 0, 0, 60, 0, 0, 0]);
    }
}
