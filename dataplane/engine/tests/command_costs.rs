//! A command costs as much with many SAs as with few: it may allocate what its own SA and policy need and a piece of each
//! table, no more; and packets, sweeps and reports between commands allocate nothing.

mod common;

use common::*;
use spindle_abi::{
    Command, Event, KeyMaterial, Mode, PolicyAction, SaParameters, Selector, SelectorSet, Spi, SpiState,
    Suite, Time,
};
use spindle_engine::{
    ArrayVec, BURST, Counter, DropReason, Engine, EngineConfig, MemoryFrame, NextHop, Output, PortConfig,
    PortId,
};
use std::net::{IpAddr, Ipv4Addr};

/// Octets that one command allocates at most.
const COMMAND: u64 = 160 << 10;
/// Pairs of SAs, each with a policy.
const PAIRS: u32 = 4_000;

/// Takes frames back.
struct Recycler(ArrayVec<MemoryFrame, BURST>);

impl Output<MemoryFrame> for Recycler {
    fn transmit(&mut self, _port: PortId, frame: MemoryFrame) {
        self.0.push(frame);
    }
    fn to_host(&mut self, _interface: u16, frame: MemoryFrame) {
        self.0.push(frame);
    }
    fn discard(&mut self, frame: MemoryFrame, _reason: DropReason) {
        self.0.push(frame);
    }
    fn unresolved(&mut self, _egress: PortId, _destination: IpAddr, frame: MemoryFrame) {
        self.0.push(frame);
    }
    fn event(&mut self, _event: Event) -> bool {
        true
    }
}

fn host(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 32, 0, 0)) + number)
}

fn engine() -> Engine {
    let port = |address| PortConfig {
        mac: INSIDE_MAC,
        mtu: 1500,
        complete_checksums: true,
        address: Some(address),
        address_v6: None,
    };
    let (inside, outside) = (port(Ipv4Addr::new(10, 1, 0, 1)), port(OUTER_A));
    let mut engine = Engine::new(EngineConfig::new(vec![OUTER_A.into()], inside, outside));
    let hop =
        NextHop { port: PortId::Outside, source_mac: OUTSIDE_MAC, destination_mac: HOST_MAC, mtu: 1500 };
    engine.set_next_hop(OUTER_B.into(), Some(hop)).unwrap();
    engine
}

fn sa(spi: u32, index: u32, policy: u32) -> SaParameters {
    let end = |address: Ipv4Addr| vec![Selector::addresses(address.into(), address.into())];
    SaParameters {
        spi: Spi(spi),
        index,
        policy,
        resource: Default::default(),
        mode: Mode::Tunnel,
        suite: Suite::Aes128Gcm,
        keymat: KeyMaterial::new(&[7; 20]).unwrap(),
        local: (OUTER_A, 0).into(),
        remote: (OUTER_B, 0).into(),
        encapsulated: false,
        selectors: SelectorSet { local: end(HOST_A), remote: end(host(policy)) },
        esn: false,
        soft: Default::default(),
        hard: Default::default(),
    }
}

/// A policy with its SAs, which are of this generation.
fn install(number: u32, generation: u32) -> [Command; 3] {
    let inbound = 4 * number + 2 * (generation & 1);
    let spi = 0x1000_0000 + (generation << 26) + number;
    let outbound = Command::InstallOutbound { sa: sa(spi, inbound + 1, number) };
    let inbound =
        Command::InstallInbound { sa: sa(spi, inbound, number), replay_window: 1024, report_first: true };
    let selectors = sa(spi, 0, number).selectors;
    // Last, first, and in between.
    let priority = number.wrapping_mul(0x9e37_79b1);
    let action = PolicyAction::Protect;
    [Command::SetPolicy { id: number, priority, action, selectors, hold: 0 }, inbound, outbound]
}

fn remove(number: u32, generation: u32) -> [Command; 3] {
    let spi = Spi(0x1000_0000 + (generation << 26) + number);
    [
        Command::RemoveOutbound { index: 4 * number + 2 * (generation & 1) + 1 },
        Command::SetSpiState { spi, state: SpiState::Retired },
        Command::SetSpiState { spi, state: SpiState::Unknown },
    ]
}

/// Carries a command out, and counts what it allocates.
fn apply(engine: &mut Engine, command: Command, most: &mut u64) {
    let kind = std::mem::discriminant(&command);
    let mut done = Ok(());
    let allocated = allocation_counter::measure(|| done = engine.apply(Time(SECOND), command));
    assert_eq!(done, Ok(()), "{kind:?}");
    assert!(allocated.bytes_total <= COMMAND, "{allocated:?}: {kind:?}");
    *most = allocated.bytes_total.max(*most);
}

/// A burst to some of the hosts that have SAs, twice, so that the flows are known, and what a worker does beside.
fn pass(engine: &mut Engine, out: &mut Recycler, seed: u32, pairs: u32) {
    let number = |at: u32| (seed + at).wrapping_mul(0x9e37_79b1) % pairs;
    let packets: Vec<_> =
        (0..BURST as u32).map(|at| frame(&datagram(HOST_A, host(number(at)), b"packet"))).collect();
    for round in 0..2 {
        let mut burst: ArrayVec<MemoryFrame, BURST> = packets.iter().cloned().collect();
        let now = Time(SECOND + u64::from(seed));
        let allocated = allocation_counter::measure(|| {
            engine.process(now, PortId::Inside, &mut burst, out);
            engine.sweep(now, out);
            engine.changed_activity(BURST, |_, _| {});
        });
        assert_eq!(allocated.count_total, 0, "round {round} after {seed}: {allocated:?}");
        out.0.clear();
    }
}

#[test]
fn a_command_allocates_what_is_its_own_and_packets_in_between_nothing() {
    let (mut engine, mut out, mut most) = (engine(), Recycler(ArrayVec::new()), 0);
    let mut bursts = 0;
    // Installed, rekeyed twice, each time the old SAs go, and then all.
    for generation in 0..3 {
        for number in 0..PAIRS {
            for command in install(number, generation) {
                apply(&mut engine, command, &mut most);
            }
            if generation > 0 {
                for command in remove(number, generation - 1) {
                    apply(&mut engine, command, &mut most);
                }
            }
            if number % 500 == 499 {
                bursts += 2;
                pass(&mut engine, &mut out, number, if generation > 0 { PAIRS } else { number + 1 });
            }
        }
    }
    assert_eq!(engine.counters().count(Counter::Encapsulated), bursts * BURST as u64);
    for number in 0..PAIRS {
        for command in remove(number, 2).into_iter().chain([Command::RemovePolicy { id: number }]) {
            apply(&mut engine, command, &mut most);
        }
    }
    // It is not held by far too much.
    assert!(most > COMMAND / 4, "{most}");
    assert_eq!(engine.counters().check(), Ok(()));
}
