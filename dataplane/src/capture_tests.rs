//! A worker's outlet between an engine and ports in memory, captured: what is written is what happened, and nothing else
//! happens than without.

use super::*;
use crate::handover::Neighbours;
use crate::outlet::Outlet;
use spindle_abi::{
    Command, KeyMaterial, Limits, Mode, PolicyAction, SaParameters, Selector, SelectorSet, Suite,
};
use spindle_engine::{Engine, EngineConfig, MemoryFrame, NextHop, Origin, PortConfig, PortId};
use spindle_port::{MemoryPort, Pool};
use spindle_ring::capture::{CaptureReader, create};
use spindle_ring::{AttachmentFds, ControlSide};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use tokio::sync::mpsc;

const HOSTS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 1, 0, 10), Ipv4Addr::new(10, 2, 0, 20)];
const OUTER: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];
/// Each gateway's inbound SPI.
const SPIS: [u32; 2] = [0xa000_0001, 0xb000_0001];
const POLICY: u32 = 7;
const NAT_PORT: u16 = 4500;

fn everything() -> Request {
    Request { snaplen: MAX_SNAPLEN, sides: [true; 2], dropped: false, spis: None }
}

/// One of two gateways with a tunnel between them: 0 or 1.
struct Gateway {
    engine: Engine,
    outlet: Outlet<MemoryPort>,
    reader: Option<CaptureReader>,
    wanted: Option<Arc<Wanted>>,
    now: Time,
    _rest: (ControlSide, mpsc::Receiver<crate::held::Towards>),
}

fn sa(spi: u32, index: u32, me: usize) -> SaParameters {
    let net = |host: Ipv4Addr| vec![Selector::addresses(host.into(), host.into())];
    let keymat: Vec<u8> = (0..20_u8).map(|i| i ^ spi as u8).collect();
    SaParameters {
        spi: Spi(spi),
        index,
        policy: POLICY,
        resource: Default::default(),
        mode: Mode::Tunnel,
        suite: Suite::Aes128Gcm,
        keymat: KeyMaterial::new(&keymat).unwrap(),
        local: (OUTER[me], 0).into(),
        remote: (OUTER[1 - me], 0).into(),
        encapsulated: false,
        selectors: SelectorSet { local: net(HOSTS[me]), remote: net(HOSTS[1 - me]) },
        esn: false,
        soft: Limits::default(),
        hard: Limits::default(),
    }
}

impl Gateway {
    fn new(me: usize, captured: Option<&Request>) -> Gateway {
        let fds = AttachmentFds::create(1).unwrap();
        let (mut side, control) = (fds.dataplane_side().unwrap(), fds.control_side().unwrap());
        let rings = side.workers.remove(0);
        let (requests, asked) = mpsc::channel(8);
        let ports = [MemoryPort::default(), MemoryPort::default()];
        let (pool, alone) = (Pool::with_capacity(4096), Neighbours::default());
        let mut outlet = Outlet::new(ports, pool, alone, (rings.urgent, rings.noise), requests);
        let port = |address| PortConfig {
            mac: [2; 6],
            mtu: 1500,
            complete_checksums: false,
            address: Some(address),
            address_v6: None,
        };
        let inside = Ipv4Addr::new(10, me as u8 + 1, 0, 1);
        let local = vec![IpAddr::from(inside), OUTER[me].into()];
        let mut engine = Engine::new(EngineConfig::new(local, port(inside), port(OUTER[me])));
        let now = Time(1_000_000_000);
        let selectors = sa(SPIS[me], 0, me).selectors;
        let action = PolicyAction::Protect;
        let commands = [
            Command::SetPolicy { id: POLICY, priority: 10, action, selectors, hold: 0 },
            Command::InstallInbound { sa: sa(SPIS[me], 0, me), replay_window: 64, report_first: false },
            Command::InstallOutbound { sa: sa(SPIS[1 - me], 1, me) },
        ];
        commands.into_iter().for_each(|command| engine.apply(now, command).unwrap());
        for (to, port) in [(HOSTS[me], PortId::Inside), (OUTER[1 - me], PortId::Outside)] {
            let hop = NextHop { port, source_mac: [2; 6], destination_mac: [4; 6], mtu: 1500 };
            engine.set_next_hop(to.into(), Some(hop)).unwrap();
        }
        let (mut reader, mut wanted) = (None, None);
        if let Some(request) = captured {
            let (mut writers, rings) = create(1).unwrap();
            reader = Some(CaptureReader::open(&rings[0]).unwrap());
            let spis = Arc::new(Wanted::new(request.spis.as_deref()));
            wanted = Some(spis.clone());
            outlet.capture = Some(Box::new(Capture::new(writers.remove(0), request, spis, NAT_PORT)));
        }
        Gateway { engine, outlet, reader, wanted, now, _rest: (control, asked) }
    }

    /// As a worker does.
    fn process(&mut self, from: PortId, frames: &[Vec<u8>]) {
        for frames in frames.chunks(BURST) {
            self.now.0 += 1000;
            self.outlet.now = self.now;
            let mut burst: ArrayVec<MemoryFrame, BURST> =
                frames.iter().map(|f| MemoryFrame::new(f)).collect();
            let origin = if from == PortId::Inside { Origin::Inside(0) } else { Origin::Outside };
            self.outlet.came(origin, &burst);
            self.engine.process(self.now, from, &mut burst, &mut self.outlet);
            self.outlet.finish(&mut self.engine);
        }
        self.engine.counters().check().unwrap();
    }

    fn sent(&mut self, port: PortId) -> Vec<Vec<u8>> {
        self.outlet.ports[port as usize].outgoing.drain(..).map(|frame| frame.data().to_vec()).collect()
    }

    /// All that was captured since the last time.
    fn captured(&mut self) -> Vec<(Captured, Vec<u8>)> {
        let reader = self.reader.as_mut().expect("a capture");
        let (mut all, mut octets) = (Vec::new(), Vec::new());
        while let Some(captured) = reader.read(&mut octets).unwrap() {
            all.push((captured, octets.clone()));
        }
        all
    }
}

fn frame(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, payload: &[u8], ttl: u8) -> Vec<u8> {
    let mut octets = vec![0; ethernet::HEADER_LENGTH + 20];
    ethernet::Repr { destination: [2; 6], source: [4; 6], ethertype: ethernet::IPV4 }.emit(&mut octets);
    let repr = spindle_wire::ipv4::Repr {
        traffic_class: 0,
        identification: 1,
        dont_fragment: true,
        more_fragments: false,
        fragment_offset: 0,
        ttl,
        protocol,
        source,
        destination,
        payload_length: payload.len() as u16,
    };
    repr.emit(&mut octets[ethernet::HEADER_LENGTH..]);
    octets.extend(payload);
    octets.resize(octets.len().max(60), 0);
    octets
}

/// From the host behind gateway 0 to the one behind gateway 1.
fn packet(number: u8) -> Vec<u8> {
    frame(HOSTS[0], HOSTS[1], protocol::UDP, &[number; 100], 64)
}

fn esp(spi: u32, sequence: u32) -> Vec<u8> {
    let payload = [&spi.to_be_bytes()[..], &sequence.to_be_bytes(), &[0x55; 60]].concat();
    frame(OUTER[0], OUTER[1], protocol::ESP, &payload, 64)
}

/// Traffic at gateway 1 with most kinds of ends.
fn mixture() -> Vec<(PortId, Vec<u8>)> {
    let mut sender = Gateway::new(0, None);
    sender.process(PortId::Inside, &(0..40).map(packet).collect::<Vec<_>>());
    let sealed = sender.sent(PortId::Outside);
    assert_eq!(sealed.len(), 40);
    let mut forged = sealed[39].clone();
    *forged.last_mut().unwrap() ^= 1;
    let mut all: Vec<_> = sealed[..39].iter().map(|frame| (PortId::Outside, frame.clone())).collect();
    let outside = [
        sealed[3].clone(),                                                 // replayed
        forged,                                                            // not authentic
        esp(0x1234_5678, 1),                                               // unknown
        esp(0x1234_5678, 2),                                               // the same
        frame(OUTER[0], HOSTS[1], protocol::UDP, &[0; 8], 64),             // in clear
        vec![0; 60],                                                       // no IP
        frame(OUTER[0], OUTER[1], protocol::UDP, &[1, 2, 0x11, 0x94], 64), // cut off
    ];
    all.extend(outside.map(|frame| (PortId::Outside, frame)));
    let inside = [
        frame(HOSTS[1], HOSTS[0], protocol::UDP, &[9; 100], 64),
        frame(HOSTS[1], HOSTS[0], protocol::UDP, &[9; 100], 1), // answered with an ICMP error
        frame(HOSTS[1], HOSTS[0], protocol::UDP, &[9; 1490], 64), // too big, and so is this
        frame(HOSTS[1], Ipv4Addr::new(203, 0, 113, 1), protocol::UDP, &[9; 100], 64), // no policy
    ];
    all.extend(inside.map(|frame| (PortId::Inside, frame)));
    all
}

fn play(gateway: &mut Gateway) {
    for (from, frame) in mixture() {
        gateway.process(from, &[frame]);
    }
}

#[test]
fn a_capture_changes_nothing_of_what_happens() {
    let (mut with, mut without) = (Gateway::new(1, Some(&everything())), Gateway::new(1, None));
    for gateway in [&mut with, &mut without] {
        play(gateway);
    }
    assert_eq!(with.engine.counters(), without.engine.counters());
    assert_eq!(with.outlet.pool.len(), without.outlet.pool.len());
    for port in [PortId::Inside, PortId::Outside] {
        assert_eq!(with.sent(port), without.sent(port), "{port:?}");
    }
}

#[test]
fn every_frame_is_captured_as_it_came_with_the_reason_that_is_counted() {
    let mut gateway = Gateway::new(1, Some(&everything()));
    play(&mut gateway);
    let captured = gateway.captured();
    let came = mixture();
    let arrived: Vec<_> = captured.iter().filter(|(of, _)| !of.left).collect();
    assert_eq!(arrived.len(), came.len());
    for ((of, octets), (from, frame)) in arrived.iter().zip(&came) {
        assert_eq!(of.interface == OUTSIDE, *from == PortId::Outside);
        assert_eq!((octets, usize::from(of.length)), (frame, frame.len()), "not as it came: {of:?}");
    }
    let mut reasons: BTreeMap<&str, u64> = BTreeMap::new();
    for reason in captured.iter().filter_map(|(of, _)| of.dropped) {
        *reasons.entry(DropReason::ALL[usize::from(reason)].name()).or_default() += 1;
    }
    let counters = gateway.engine.counters();
    let counted = DropReason::ALL.iter().map(|reason| (reason.name(), counters.dropped(*reason)));
    let counted: BTreeMap<&str, u64> = counted.filter(|(_, count)| *count > 0).collect();
    assert_eq!(reasons, counted);
    let expected =
        ["authentication_failed", "replayed", "unknown_spi", "ttl_expired", "too_big", "no_policy"];
    assert!(expected.iter().all(|reason| reasons.contains_key(reason)), "{reasons:?}");
    let left: Vec<&Vec<u8>> = captured.iter().filter(|(of, _)| of.left).map(|(_, octets)| octets).collect();
    let sent = [gateway.sent(PortId::Inside), gateway.sent(PortId::Outside)].concat();
    assert_eq!(left.len(), sent.len());
    assert!(left.iter().all(|octets| sent.contains(octets)), "not as it left");
}

#[test]
fn a_packet_is_captured_inside_and_outside_with_the_spi_of_its_sa() {
    let mut gateway = Gateway::new(0, Some(&everything()));
    gateway.process(PortId::Inside, &[packet(1)]);
    let captured = gateway.captured();
    let said =
        |(of, octets): &(Captured, Vec<u8>)| (of.interface, of.left, of.dropped, of.spi, octets.clone());
    let sent = gateway.sent(PortId::Outside).remove(0);
    let expected = [(0, false, None, Spi(SPIS[1]), packet(1)), (OUTSIDE, true, None, Spi(SPIS[1]), sent)];
    assert_eq!(captured.iter().map(said).collect::<Vec<_>>(), expected);
    assert!(captured.iter().all(|(of, _)| of.at == gateway.now));
}

#[test]
fn what_waited_in_vain_is_captured_once_as_it_came() {
    let mut gateway = Gateway::new(0, Some(&everything()));
    gateway.engine.clear_next_hops();
    gateway.process(PortId::Inside, &[packet(1), packet(2)]);
    assert_eq!(gateway.captured(), [], "they wait");
    let when_they_came = gateway.now;
    gateway.now.0 += 5_000_000_000;
    while let Some(waiting) = gateway.outlet.held.take_expired(gateway.now) {
        gateway.engine.give_up(waiting.frame, DropReason::NoNextHop, &mut gateway.outlet);
    }
    gateway.outlet.finish(&mut gateway.engine);
    let captured = gateway.captured();
    assert_eq!(captured.len(), 2);
    for ((of, octets), number) in captured.iter().zip(1..) {
        assert_eq!((octets, of.at), (&packet(number), when_they_came));
        assert_eq!(of.dropped, Some(DropReason::NoNextHop as u8));
    }
}

#[test]
fn what_a_port_refuses_is_captured_as_dropped() {
    let mut gateway = Gateway::new(0, Some(&everything()));
    gateway.outlet.ports[PortId::Outside as usize].limit = 1;
    gateway.process(PortId::Inside, &[packet(1), packet(2)]);
    let captured = gateway.captured();
    let dropped: Vec<_> = captured.iter().filter(|(of, _)| of.dropped.is_some()).collect();
    assert_eq!((captured.len(), dropped.len()), (3, 1));
    assert_eq!((dropped[0].0.dropped, &dropped[0].1), (Some(DropReason::TransmitFailed as u8), &packet(2)));
    assert!(!dropped[0].0.left);
}

#[test]
fn only_what_is_wanted_is_written() {
    let count = |request: &Request| {
        let mut gateway = Gateway::new(1, Some(request));
        play(&mut gateway);
        let captured = gateway.captured();
        assert!(captured.iter().all(|(_, octets)| octets.len() <= usize::from(request.snaplen)));
        (captured, gateway)
    };
    let all = count(&everything()).0;
    let dropped = count(&Request { dropped: true, ..everything() }).0;
    assert!(!dropped.is_empty() && dropped.len() < all.len());
    assert!(dropped.iter().all(|(of, _)| of.dropped.is_some()));
    let outside = count(&Request { sides: [false, true], ..everything() }).0;
    let inside = count(&Request { sides: [true, false], ..everything() }).0;
    assert!(outside.iter().all(|(of, _)| of.interface == OUTSIDE));
    assert_eq!(outside.len() + inside.len(), all.len());
    let short = count(&Request { snaplen: 40, ..everything() }).0;
    assert!(short.iter().all(|(of, octets)| octets.len() == 40 && of.length >= 60));

    let (unknown, mut gateway) = count(&Request { spis: Some(vec![0x1234_5678]), ..everything() });
    assert_eq!(unknown.len(), 2);
    gateway.wanted.take().unwrap().replace(Some(&[SPIS[1]]));
    play(&mut gateway);
    let of_sa = gateway.captured();
    assert!(!of_sa.is_empty() && of_sa.iter().all(|(of, _)| of.spi.0 == SPIS[1]));
}

#[test]
fn frames_beyond_the_room_are_counted_as_lost_and_never_stop_the_traffic() {
    let mut gateway = Gateway::new(0, Some(&everything()));
    gateway.reader.as_ref().unwrap();
    let rounds = 2000;
    for round in 0..rounds {
        gateway.process(PortId::Inside, &(0..32).map(|n| packet(n ^ round as u8)).collect::<Vec<_>>());
    }
    let sent = gateway.sent(PortId::Outside).len();
    assert_eq!(sent, rounds * 32);
    let [inside, outside] = gateway.reader.as_ref().unwrap().lost();
    assert!(inside > 0 && outside > 0);
    assert_eq!(gateway.captured().len() as u64 + inside + outside, 2 * sent as u64);
}

#[test]
fn the_spi_is_found_in_esp_plain_and_in_udp() {
    let spi = 0x0102_0304_u32;
    assert_eq!(spi_of(&esp(spi, 1), NAT_PORT), Some(Spi(spi)));
    let in_udp = |source: u16, destination: u16, first: u32| {
        let payload = [
            &source.to_be_bytes()[..],
            &destination.to_be_bytes(),
            &[0, 20, 0, 0],
            &first.to_be_bytes(),
            &[0, 0, 0, 1, 5, 5, 5, 5],
        ];
        spi_of(&frame(OUTER[0], OUTER[1], protocol::UDP, &payload.concat(), 64), NAT_PORT)
    };
    assert_eq!(in_udp(1024, NAT_PORT, spi), Some(Spi(spi)));
    assert_eq!(in_udp(NAT_PORT, 1024, spi), Some(Spi(spi)));
    assert_eq!(in_udp(53, 1024, spi), None, "another port");
    assert_eq!(in_udp(NAT_PORT, NAT_PORT, 0), None, "IKE");
    assert_eq!(spi_of(&[0; 60], NAT_PORT), None);
}
