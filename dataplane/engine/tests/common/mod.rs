//! Two gateways back to back in memory, and packets for them.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use proptest::prelude::*;
use proptest::sample::Index;
use spindle_abi::{
    Command, Event, KeyMaterial, Limits, Mode, PolicyAction, SaParameters, Selector, SelectorSet, Spi, Suite,
    Time,
};
use spindle_aead::{Algorithm, Provider};
use spindle_engine::{
    ArrayVec, BURST, DropReason, Engine, EngineConfig, Frame, MemoryFrame, NextHop, Origin, Output,
    PortConfig, PortId, SaRegion,
};
use spindle_wire::{ethernet, icmpv4, ipv4, protocol, tcp, udp};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub const HOST_A: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);
pub const HOST_B: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 20);
pub const OUTER_A: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const OUTER_B: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// Every gateway's inside, over IPv6.
pub const INSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 1);
pub const POLICY: u32 = 7;
pub const INSIDE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const OUTSIDE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
pub const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 3];
pub const SECOND: u64 = 1_000_000_000;

/// Everything that an engine gave out.
#[derive(Default)]
pub struct Collected {
    pub sent: Vec<(PortId, MemoryFrame)>,
    pub to_host: Vec<(u16, MemoryFrame)>,
    pub dropped: Vec<DropReason>,
    pub unresolved: Vec<(PortId, IpAddr, MemoryFrame)>,
    pub without_sa: Vec<(u32, MemoryFrame)>,
    pub handed: Vec<(u16, Origin, MemoryFrame)>,
    pub no_handover: bool,
    pub events: Vec<Event>,
    pub rings_full: bool,
    pub no_frames: bool,
}

impl Output<MemoryFrame> for Collected {
    fn transmit(&mut self, port: PortId, frame: MemoryFrame) {
        self.sent.push((port, frame));
    }
    fn to_host(&mut self, interface: u16, frame: MemoryFrame) {
        self.to_host.push((interface, frame));
    }
    fn discard(&mut self, _frame: MemoryFrame, reason: DropReason) {
        self.dropped.push(reason);
    }
    fn unresolved(&mut self, egress: PortId, destination: IpAddr, frame: MemoryFrame) {
        self.unresolved.push((egress, destination, frame));
    }
    fn without_sa(&mut self, policy: u32, hold: u16, frame: MemoryFrame) -> Option<MemoryFrame> {
        if self.without_sa.len() >= usize::from(hold) {
            return Some(frame);
        }
        self.without_sa.push((policy, frame));
        None
    }
    fn hand_over(&mut self, worker: u16, origin: Origin, frame: MemoryFrame) -> Result<(), MemoryFrame> {
        if self.no_handover {
            return Err(frame);
        }
        self.handed.push((worker, origin, frame));
        Ok(())
    }
    fn event(&mut self, event: Event) -> bool {
        if !self.rings_full {
            self.events.push(event);
        }
        !self.rings_full
    }
    fn allocate(&mut self, length: usize) -> Option<MemoryFrame> {
        (!self.no_frames).then(|| MemoryFrame::new(&vec![0xdd; length]))
    }
}

pub struct Gateway {
    pub engine: Engine,
    pub out: Collected,
    pub now: Time,
}

impl Gateway {
    pub fn new(inside: Ipv4Addr, outer: Ipv4Addr) -> Gateway {
        Gateway::with(inside, outer, None, (0, 1), 4)
    }

    /// One of so many workers.
    pub fn worker(inside: Ipv4Addr, outer: Ipv4Addr, worker: u16, workers: u16) -> Gateway {
        Gateway::with(inside, outer, None, (worker, workers), 4)
    }

    /// One whose SAs' hot state outlives it.
    pub fn over(inside: Ipv4Addr, outer: Ipv4Addr, region: SaRegion) -> Gateway {
        Gateway::with(inside, outer, Some(region), (0, 1), 4)
    }

    /// One that remembers so many flows; the others do four, so that these give way to one another.
    pub fn remembering(inside: Ipv4Addr, outer: Ipv4Addr, flows: usize) -> Gateway {
        Gateway::with(inside, outer, None, (0, 1), flows)
    }

    fn with(
        inside: Ipv4Addr,
        outer: Ipv4Addr,
        region: Option<SaRegion>,
        (worker, workers): (u16, u16),
        flows: usize,
    ) -> Gateway {
        let port = |mac, address, complete_checksums| PortConfig {
            mac,
            mtu: 1500,
            complete_checksums,
            address: Some(address),
            address_v6: Some(INSIDE6),
        };
        let mut config = EngineConfig::new(
            vec![inside.into(), outer.into()],
            port(INSIDE_MAC, inside, true),
            port(OUTSIDE_MAC, outer, false),
        );
        (config.max_spis, config.max_sas, config.max_flows) = (4096, 4096, flows);
        (config.region, config.worker, config.workers) = (region, worker, workers);
        Gateway { engine: Engine::new(config), out: Collected::default(), now: Time(SECOND) }
    }

    pub fn apply(&mut self, command: Command) {
        self.engine.apply(self.now, command).unwrap();
    }

    pub fn process(&mut self, ingress: PortId, frames: impl IntoIterator<Item = MemoryFrame>) {
        let mut frames = frames.into_iter().peekable();
        while frames.peek().is_some() {
            let mut burst: ArrayVec<MemoryFrame, BURST> = frames.by_ref().take(BURST).collect();
            self.engine.process(self.now, ingress, &mut burst, &mut self.out);
            assert!(burst.is_empty());
            self.engine.counters().check().unwrap();
        }
    }

    pub fn sweep(&mut self) {
        self.engine.sweep(self.now, &mut self.out);
    }

    pub fn hop(&mut self, to: Ipv4Addr, port: PortId) {
        let (source_mac, destination_mac) = match port {
            PortId::Inside => (INSIDE_MAC, HOST_MAC),
            PortId::Outside => (OUTSIDE_MAC, HOST_MAC),
        };
        let hop = NextHop { port, source_mac, destination_mac, mtu: 1500 };
        self.engine.set_next_hop(to.into(), Some(hop)).unwrap();
    }

    pub fn take_sent(&mut self, port: PortId) -> Vec<MemoryFrame> {
        assert!(self.out.sent.iter().all(|(p, _)| *p == port), "a frame left on the wrong side");
        self.out.sent.drain(..).map(|(_, frame)| frame).collect()
    }

    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.engine.counters().dropped(reason)
    }
}

pub fn selectors(local: Ipv4Addr, remote: Ipv4Addr) -> SelectorSet {
    let net = |host: Ipv4Addr| {
        let [a, b, ..] = host.octets();
        vec![Selector::addresses([a, b, 0, 0].into(), [a, b, 255, 255].into())]
    };
    SelectorSet { local: net(local), remote: net(remote) }
}

/// SA parameters as A (`from_a`) or B sees them; both ends derive the key from the SPI.
pub fn sa(spi: u32, index: u32, at_a: bool, suite: Suite, encapsulated: bool) -> SaParameters {
    let port = if encapsulated { 4500 } else { 0 };
    let keymat: Vec<u8> = (0..36u8).map(|i| i ^ spi as u8).collect();
    let (local, remote, set) = match at_a {
        true => (OUTER_A, OUTER_B, selectors(HOST_A, HOST_B)),
        false => (OUTER_B, OUTER_A, selectors(HOST_B, HOST_A)),
    };
    SaParameters {
        spi: Spi(spi),
        index,
        policy: POLICY,
        resource: Default::default(),
        mode: Mode::Tunnel,
        suite,
        keymat: KeyMaterial::new(&keymat[..suite.keymat_length()]).unwrap(),
        local: (local, port).into(),
        remote: (remote, port).into(),
        encapsulated,
        selectors: set,
        esn: false,
        soft: Limits::default(),
        hard: Limits::default(),
    }
}

pub fn inbound(sa: SaParameters) -> Command {
    Command::InstallInbound { sa, replay_window: 1024, report_first: false }
}

pub const TO_B: u32 = 0xb000_0001;
pub const TO_A: u32 = 0xa000_0001;

/// A and B with a pair of SAs between them, policies and next hops.
pub fn pair(suite: Suite, encapsulated: bool) -> (Gateway, Gateway) {
    let mut a = Gateway::new(Ipv4Addr::new(10, 1, 0, 1), OUTER_A);
    let mut b = Gateway::new(Ipv4Addr::new(10, 2, 0, 1), OUTER_B);
    for (gateway, at_a) in [(&mut a, true), (&mut b, false)] {
        let (own, other, outer) = if at_a { (HOST_A, HOST_B, OUTER_B) } else { (HOST_B, HOST_A, OUTER_A) };
        gateway.apply(Command::SetPolicy {
            id: POLICY,
            priority: 10,
            action: PolicyAction::Protect,
            selectors: selectors(own, other),
            hold: 0,
        });
        let (spi_in, spi_out) = if at_a { (TO_A, TO_B) } else { (TO_B, TO_A) };
        gateway.apply(inbound(sa(spi_in, 0, at_a, suite, encapsulated)));
        gateway.apply(Command::InstallOutbound { sa: sa(spi_out, 1, at_a, suite, encapsulated) });
        gateway.hop(own, PortId::Inside);
        gateway.hop(outer, PortId::Outside);
    }
    (a, b)
}

pub fn frame(packet: &[u8]) -> MemoryFrame {
    let mut octets = vec![0; 14];
    let repr = ethernet::Repr { destination: INSIDE_MAC, source: HOST_MAC, ethertype: ethernet::IPV4 };
    repr.emit(&mut octets);
    octets.extend(packet);
    octets.resize(octets.len().max(60), 0); // Ethernet's padding
    MemoryFrame::new(&octets)
}

pub fn ip(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let repr = ipv4::Repr {
        traffic_class: 0,
        identification: 0x1234,
        dont_fragment: true,
        more_fragments: false,
        fragment_offset: 0,
        ttl: 64,
        protocol,
        source,
        destination,
        payload_length: payload.len() as u16,
    };
    let mut octets = vec![0; ipv4::HEADER_LENGTH];
    repr.emit(&mut octets);
    octets.extend(payload);
    octets
}

pub fn content(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 7 + length) as u8).collect()
}

pub fn datagram(source: Ipv4Addr, destination: Ipv4Addr, data: &[u8]) -> Vec<u8> {
    let mut octets = vec![0; 8];
    octets.extend(data);
    let repr = udp::Repr { source_port: 4000, destination_port: 5000, payload_length: data.len() as u16 };
    repr.emit(&mut octets);
    udp::fill_checksum(&mut octets, source, destination);
    ip(source, destination, protocol::UDP, &octets)
}

pub fn segment(source: Ipv4Addr, destination: Ipv4Addr, mss: Option<u16>, data: &[u8]) -> Vec<u8> {
    let repr = tcp::Repr {
        source_port: 4000,
        destination_port: 80,
        sequence: 5,
        acknowledgement: 6,
        flags: if mss.is_some() { tcp::SYN } else { 0x10 },
        window: 1000,
        mss,
    };
    let mut octets = vec![0; repr.buffer_length()];
    repr.emit(&mut octets);
    octets.extend(data);
    tcp::fill_checksum(&mut octets, source, destination);
    ip(source, destination, protocol::TCP, &octets)
}

pub fn echo(source: Ipv4Addr, destination: Ipv4Addr, data: &[u8]) -> Vec<u8> {
    let mut octets = vec![0; 8];
    octets.extend(data);
    icmpv4::Repr::EchoRequest { identifier: 1, sequence: 2 }.emit(&mut octets);
    ip(source, destination, protocol::ICMP, &octets)
}

/// The IPv4 packet in a frame, without padding.
pub fn packet(frame: &MemoryFrame) -> Vec<u8> {
    let view = ethernet::Frame::new_checked(frame.data()).unwrap();
    assert_eq!(view.ethertype(), ethernet::IPV4);
    let packet = ipv4::Packet::new_checked(view.payload()).unwrap();
    assert!(packet.verify_checksum());
    view.payload()[..packet.total_length()].to_vec()
}

/// The packet after two hops: both gateways have decremented its TTL.
pub fn after_two_hops(mut octets: Vec<u8>) -> Vec<u8> {
    let mut packet = ipv4::Packet::new_checked(&mut octets[..]).unwrap();
    packet.decrement_ttl();
    packet.decrement_ttl();
    octets
}

/// An ESP packet with this SPI from A's outer address to B's, with nothing authentic in it.
pub fn esp_to_b(spi: u32, sequence: u32, encapsulated: bool) -> MemoryFrame {
    let mut esp = spi.to_be_bytes().to_vec();
    esp.extend(sequence.to_be_bytes());
    esp.extend([0x55; 60]);
    if !encapsulated {
        return frame(&ip(OUTER_A, OUTER_B, protocol::ESP, &esp));
    }
    let mut octets = vec![0; 8];
    octets.extend(&esp);
    udp::Repr { source_port: 1024, destination_port: 4500, payload_length: esp.len() as u16 }
        .emit(&mut octets);
    frame(&ip(OUTER_A, OUTER_B, protocol::UDP, &octets))
}

/// The packet in fragments of so many octets behind the header, which has no options.
pub fn fragments(whole: &[u8], size: usize) -> Vec<MemoryFrame> {
    let pieces = whole[20..].chunks(size).enumerate().map(|(n, octets)| {
        let mut piece = [&whole[..20], octets].concat();
        let more = (n + 1) * size < whole.len() - 20;
        ipv4::rewrite_as_fragment(&mut piece, 20, more, (n * size / 8) as u16);
        frame(&piece)
    });
    pieces.collect()
}

/// An ICMP error "fragmentation needed" about this packet, of which so many octets behind the header are quoted.
pub fn too_big(about: &[u8], mtu: u16, quoted: usize) -> MemoryFrame {
    let sender = Ipv4Addr::new(about[12], about[13], about[14], about[15]);
    let mut octets = vec![0; 8];
    octets.extend(&about[..about.len().min(20 + quoted)]);
    icmpv4::Repr::FragmentationNeeded { mtu }.emit(&mut octets);
    frame(&ip(Ipv4Addr::new(198, 51, 100, 7), sender, protocol::ICMP, &octets))
}

/// What A's peer would send on the SA to B with this plaintext (payload, padding, pad length, next header), sealed by
/// its true key.
pub fn sealed(sequence: u32, plain: &[u8]) -> Vec<u8> {
    let sa = sa(TO_B, 0, true, Suite::Aes128Gcm, false);
    let (key, salt) = sa.keymat.as_bytes().split_at(16);
    let key = Provider::Portable.key(Algorithm::Aes128Gcm, key).unwrap();
    let mut esp = [TO_B.to_be_bytes(), sequence.to_be_bytes()].concat();
    let iv = u64::from(sequence).to_be_bytes();
    let mut nonce = [0; 12];
    nonce[..4].copy_from_slice(salt);
    nonce[4..].copy_from_slice(&iv);
    let (mut cipher, mut icv) = (plain.to_vec(), [0; 16]);
    key.seal(&nonce, &esp, &mut cipher, &mut icv);
    esp.extend(iv);
    esp.extend(cipher);
    esp.extend(icv);
    esp
}

/// A frame changed in one octet, and perhaps cut off.
#[derive(Clone, Debug)]
pub struct Mutation {
    at: Index,
    /// That octet is among so many; `None`: among all.
    head: Option<usize>,
    to: u8,
    cut: Option<Index>,
}

/// A third of them are in the headers, which are so long.
pub fn mutations(head: usize) -> impl Strategy<Value = Mutation> {
    (any::<Index>(), any::<u8>(), any::<Index>(), 0..3).prop_map(move |(at, to, cut, part)| Mutation {
        at,
        head: (part == 0).then_some(head),
        to,
        cut: (part == 2).then_some(cut),
    })
}

impl Mutation {
    fn of(&self, frame: &MemoryFrame) -> MemoryFrame {
        let mut octets = frame.data().to_vec();
        let at = self.at.index(self.head.unwrap_or(octets.len()));
        octets[at] = self.to;
        if let Some(cut) = self.cut {
            octets.truncate(cut.index(octets.len() + 1));
        }
        MemoryFrame::new(&octets)
    }

    /// Sends a packet from A, mutated at A's inside, at B's outside and at B's inside.
    pub fn pass(&self, a: &mut Gateway, b: &mut Gateway, sent: MemoryFrame) {
        a.process(PortId::Inside, [self.of(&sent)]);
        a.out.sent.clear();
        a.process(PortId::Inside, [sent]);
        let esp = a.take_sent(PortId::Outside);
        b.process(PortId::Outside, [self.of(&esp[0])]);
        b.process(PortId::Inside, [self.of(&esp[0])]);
    }
}
