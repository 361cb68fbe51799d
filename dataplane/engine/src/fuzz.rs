//! An entry point for fuzzers that need no nightly compiler: any octets are a course of events for an engine.

use crate::{
    ArrayVec, BURST, DropReason, Engine, EngineConfig, Frame, MemoryFrame, NextHop, Output, PortConfig,
    PortId,
};
use spindle_abi::{
    Command, Event, KeyMaterial, Limits, Mode, PolicyAction, SaParameters, Selector, SelectorSet, Spi,
    SpiState, Suite, Time,
};
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};

const OUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// ESP that can be sent back.
const RECENT: usize = 16;

/// SPIs of SAs that face each other: in UDP, and without it for hosts of 10.1.
const IN_UDP: Spi = Spi(0x1234_5678);
const PLAIN: Spi = Spi(0x9abc_def0);

/// Plays the octets as frames and commands, and panics if a frame is lost, doubled, or leaves in clear outside, or if what
/// becomes of a burst is not what becomes of its frames one by one.
///
/// Each step is a kind, a length and so many octets: a frame from either side as it stands; one of inside's that
/// is first made IPv4 of a protected flow; one of the last ESP packets that the engine sent, with the octets laid over it
/// and sent back (its SAs face each other, so that it opens if nothing changed), the same cut to a first fragment, or quoted
/// by an ICMP error; SPI states; time. Frames from one side make one burst until another step comes, or one whose kind says
/// that it is the last.
pub fn run(data: &[u8]) {
    let mut courses = Courses::default();
    let (mut now, mut rest) = (Time(1_000_000_000), data);
    while let [kind, length, tail @ ..] = rest {
        let (octets, tail) = tail.split_at(usize::from(*length).min(tail.len()));
        rest = tail;
        let recent = || courses.recent(usize::from(kind / 8) % RECENT);
        let (ingress, frame) = match kind % 8 {
            0 => (PortId::Inside, octets.to_vec()),
            1 => (PortId::Outside, octets.to_vec()),
            2 => (PortId::Inside, protected(octets)),
            3 => (PortId::Outside, overlay(recent(), octets)),
            6 => (PortId::Outside, first_fragment(recent(), octets)),
            7 => (PortId::Outside, too_big(&recent(), octets)),
            4 => {
                courses.flush(now);
                let mut spi = [0; 4];
                spi.iter_mut().zip(octets).for_each(|(to, from)| *to = *from);
                let state = SpiState::from_u8(kind / 8 % 5).unwrap_or(SpiState::Unknown);
                let spi = Spi(u32::from_be_bytes(spi));
                for (engine, _) in [&mut courses.by_bursts, &mut courses.one_by_one] {
                    let _ = engine.apply(now, Command::SetSpiState { spi, state });
                }
                continue;
            }
            _ => {
                courses.flush(now);
                now = Time(now.0 + u64::from(*length) * 1_000_000);
                for (engine, out) in [&mut courses.by_bursts, &mut courses.one_by_one] {
                    engine.sweep(now, out);
                }
                continue;
            }
        };
        courses.push(now, ingress, MemoryFrame::new(&frame));
        if kind & 0x80 != 0 {
            courses.flush(now);
        }
    }
    courses.flush(now);
    let (engine, out) = &courses.by_bursts;
    let created = engine.counters().count(crate::Counter::Created);
    let errors = engine.counters().count(crate::Counter::IcmpErrorsSent);
    // An ICMP error takes its memory from the frame that caused it.
    assert_eq!(out.frames, courses.fed + created - errors, "each frame has exactly one verdict");
}

/// The same frames through two engines.
struct Courses {
    by_bursts: (Engine, Sink),
    one_by_one: (Engine, Sink),
    ingress: PortId,
    burst: ArrayVec<MemoryFrame, BURST>,
    fed: u64,
}

impl Default for Courses {
    fn default() -> Courses {
        let course = || (engine(), Sink::default());
        let (by_bursts, one_by_one) = (course(), course());
        Courses { by_bursts, one_by_one, ingress: PortId::Inside, burst: ArrayVec::new(), fed: 0 }
    }
}

impl Courses {
    /// An ESP packet that was sent; 0 is the last one.
    fn recent(&self, back: usize) -> Vec<u8> {
        let recent = &self.by_bursts.1.recent_esp;
        recent.iter().rev().nth(back).or(recent.back()).cloned().unwrap_or_default()
    }

    fn push(&mut self, now: Time, ingress: PortId, frame: MemoryFrame) {
        if ingress != self.ingress || self.burst.is_full() {
            self.flush(now);
        }
        self.ingress = ingress;
        self.burst.push(frame);
        self.fed += 1;
    }

    fn flush(&mut self, now: Time) {
        let (engine, out) = &mut self.one_by_one;
        for frame in &self.burst {
            let mut one = ArrayVec::from_iter([frame.clone()]);
            engine.process(now, self.ingress, &mut one, out);
        }
        let (engine, out) = &mut self.by_bursts;
        engine.process(now, self.ingress, &mut self.burst, out);
        let balance = engine.counters().check();
        assert!(balance.is_ok() && self.burst.is_empty(), "{balance:?}");
        let alone = &mut self.one_by_one;
        assert_eq!(out.take_sent(), alone.1.take_sent(), "frames in bursts and one by one");
        assert_eq!(engine.counters(), alone.0.counters(), "counts in bursts and one by one");
    }
}

fn engine() -> Engine {
    let port =
        |address| PortConfig { mac: [2; 6], mtu: 600, complete_checksums: true, address, address_v6: None };
    let inside = port(Some(Ipv4Addr::new(10, 0, 0, 1)));
    let mut config = EngineConfig::new(
        [OUTER, PEER, Ipv4Addr::new(10, 0, 0, 1)].map(IpAddr::V4).to_vec(),
        inside,
        port(None),
    );
    (config.max_spis, config.max_sas, config.max_policies, config.max_next_hops) = (64, 4, 4, 4);
    config.max_flows = 64;
    let mut engine = Engine::new(config);
    let keymat = KeyMaterial::new(&[7; 20]);
    for (number, second, spi) in [(0, 255, IN_UDP), (1, 1, PLAIN)] {
        let hosts = || vec![Selector::addresses([10, number, 0, 0].into(), [10, second, 255, 255].into())];
        let selectors = SelectorSet { local: hosts(), remote: hosts() };
        let port = if spi == IN_UDP { 4500 } else { 0 };
        let sa = |index| {
            Some(SaParameters {
                spi,
                index,
                policy: number.into(),
                resource: Default::default(),
                mode: Mode::Tunnel,
                suite: Suite::Aes128Gcm,
                keymat: keymat.clone()?,
                local: (OUTER, port).into(),
                remote: (PEER, port).into(),
                encapsulated: spi == IN_UDP,
                selectors: selectors.clone(),
                esn: false,
                soft: Limits { packets: 3, bytes: 0 },
                hard: Limits { packets: 200, bytes: 0 },
            })
        };
        let set = Command::SetPolicy {
            id: number.into(),
            // Theirs come first.
            priority: 1 - u32::from(number),
            action: PolicyAction::Protect,
            selectors: selectors.clone(),
            hold: 0,
        };
        let index = 2 * u32::from(number);
        let inbound =
            sa(index).map(|sa| Command::InstallInbound { sa, replay_window: 64, report_first: true });
        let outbound = sa(index + 1).map(|sa| Command::InstallOutbound { sa });
        for command in [Some(set), inbound, outbound].into_iter().flatten() {
            let _ = engine.apply(Time(1), command);
        }
    }
    let hosts = [[10, 0, 0, 2], [10, 1, 0, 2]].map(|host| (host.into(), PortId::Inside));
    for (to, port) in hosts.into_iter().chain([(PEER, PortId::Outside)]) {
        let hop = NextHop { port, source_mac: [2; 6], destination_mac: [4; 6], mtu: 600 };
        let _ = engine.set_next_hop(to.into(), Some(hop));
    }
    engine
}

/// An Ethernet frame from 10.0.0.3 to 10.0.0.2, or from 10.1.0.3 to 10.1.0.2, whose other octets are these.
fn protected(octets: &[u8]) -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend([8, 0]);
    frame.extend([0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 3, 10, 0, 0, 2]);
    frame.extend(octets.iter().skip(2));
    if let [flags, protocol, ..] = octets {
        (frame[20], frame[23]) = (flags & 0x60, *protocol);
        (frame[27], frame[31]) = (flags & 1, flags & 1);
    }
    corrected(frame)
}

/// The frame with the length and the checksum that its IPv4 header should have.
fn corrected(mut frame: Vec<u8>) -> Vec<u8> {
    let length = (frame.len() - 14) as u16;
    frame[16..18].copy_from_slice(&length.to_be_bytes());
    frame[24..26].fill(0);
    let checksum = spindle_wire::checksum::internet(&frame[14..34]);
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    frame
}

/// As much of the packet in this frame as the octets say, as its first fragment.
fn first_fragment(mut frame: Vec<u8>, octets: &[u8]) -> Vec<u8> {
    if frame.len() < 34 {
        return frame;
    }
    let units = octets.first().map_or(2, |units| usize::from(*units));
    frame.truncate(34 + 8 * units);
    frame[20] |= 0x20;
    corrected(frame)
}

/// An ICMP error about the packet in this frame, of which it quotes the front: too long for this path MTU.
fn too_big(frame: &[u8], mtu: &[u8]) -> Vec<u8> {
    let mut error = vec![2; 12];
    error.extend([8, 0]);
    error.extend([0x45, 0, 0, 0, 0, 0, 0, 0, 64, 1, 0, 0, 192, 0, 2, 2, 192, 0, 2, 1]);
    error.extend([3, 4, 0, 0, 0, 0]);
    error.extend([mtu.first().copied().unwrap_or(2), mtu.get(1).copied().unwrap_or(0)]);
    error.extend(frame.iter().skip(14).take(64));
    let checksum = spindle_wire::checksum::internet(&error[34..]);
    error[36..38].copy_from_slice(&checksum.to_be_bytes());
    corrected(error)
}

/// The frame with octets changed in pairs of place and difference.
fn overlay(mut frame: Vec<u8>, changes: &[u8]) -> Vec<u8> {
    for change in changes.chunks_exact(2) {
        if let Some(octet) = frame.get_mut(usize::from(change[0])) {
            *octet ^= change[1];
        }
    }
    frame
}

#[derive(Default)]
struct Sink {
    frames: u64,
    /// Urgent events and others.
    events: [u64; 2],
    recent_esp: VecDeque<Vec<u8>>,
    /// By [`PortId`].
    sent: [Vec<MemoryFrame>; 2],
}

impl Sink {
    fn take_sent(&mut self) -> [Vec<MemoryFrame>; 2] {
        std::mem::take(&mut self.sent)
    }
}

impl Output<MemoryFrame> for Sink {
    fn transmit(&mut self, port: PortId, frame: MemoryFrame) {
        self.frames += 1;
        if port == PortId::Outside {
            let is_of = |spi: Spi, at: usize| frame.data().get(at..at + 4) == Some(&spi.0.to_be_bytes()[..]);
            assert!(is_of(IN_UDP, 42) || is_of(PLAIN, 34), "cleartext left outside");
            if self.recent_esp.len() == RECENT {
                self.recent_esp.pop_front();
            }
            self.recent_esp.push_back(frame.data().to_vec());
        }
        self.sent[port as usize].push(frame);
    }
    fn to_host(&mut self, _interface: u16, _frame: MemoryFrame) {
        self.frames += 1;
    }
    fn discard(&mut self, _frame: MemoryFrame, _reason: DropReason) {
        self.frames += 1;
    }
    fn unresolved(&mut self, egress: PortId, _destination: IpAddr, _frame: MemoryFrame) {
        assert_eq!(egress, PortId::Inside, "the way outside is known");
        self.frames += 1;
    }
    fn event(&mut self, event: Event) -> bool {
        let events = &mut self.events[usize::from(event.is_urgent())];
        *events += 1;
        !events.is_multiple_of(3)
    }
    fn allocate(&mut self, length: usize) -> Option<MemoryFrame> {
        Some(MemoryFrame::new(&vec![0; length]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_harness_reaches_both_directions() {
        let (mut engine, mut out) = (engine(), Sink::default());
        for (network, opened) in [(0, 1), (1, 2)] {
            let mut send = |ingress, frame: &[u8]| {
                let mut burst = ArrayVec::from_iter([MemoryFrame::new(frame)]);
                engine.process(Time(1), ingress, &mut burst, &mut out);
                out.recent_esp.back().cloned().unwrap_or_default()
            };
            let esp = send(PortId::Inside, &protected(&[network, 17, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]));
            send(PortId::Outside, &first_fragment(esp.clone(), &[]));
            send(PortId::Outside, &too_big(&esp, &[0, 60]));
            send(PortId::Outside, &overlay(esp, &[]));
            let counters = engine.counters();
            assert_eq!(counters.count(crate::Counter::Decapsulated), opened);
            assert_eq!(counters.count(crate::Counter::DeliveredInside), opened);
            assert_eq!(counters.dropped(DropReason::FragmentKept), opened);
            assert_eq!(counters.dropped(DropReason::IcmpAboutEsp), opened);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn any_course_of_events_is_survived(
            steps in proptest::collection::vec((any::<u8>(), proptest::collection::vec(any::<u8>(), 0..90)), 0..40)
        ) {
            let mut data = Vec::new();
            for (kind, octets) in steps {
                data.extend([kind, octets.len() as u8]);
                data.extend(octets);
            }
            run(&data);
        }

        #[test]
        fn any_octets_are_survived(data in proptest::collection::vec(any::<u8>(), 0..600)) {
            run(&data);
        }
    }
}
