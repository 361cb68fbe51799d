//! What an engine remembers of flows changes no verdict: beside one that remembers nothing it does the same, whatever
//! changes between packets.

mod common;

use common::*;
use proptest::prelude::*;
use spindle_abi::{Command, PolicyAction, SaParameters, Selector, SelectorSet, Spi, SpiState, Suite};
use spindle_engine::{Frame, MemoryFrame, NextHop, PortConfig, PortId};
use spindle_wire::{checksum, ipv4};
use std::net::Ipv4Addr;

const SUITE: Suite = Suite::Aes128Gcm;
const SECOND_TO_B: u32 = 0xb000_0002;

#[derive(Clone, Debug)]
enum Step {
    /// Packets, of these numbers, sizes and kinds.
    Inside(Vec<(u8, usize, u8)>),
    /// The same in ESP, on the one SA or the other, and with congestion marked outside or not.
    Outside(Vec<(u8, usize, u8)>, bool, bool),
    /// A policy with this priority for one flow, or all.
    Policy(u32, PolicyAction, Option<u8>),
    RemovePolicy,
    /// The outbound SA's successor, for one flow or all.
    Rekey(Option<u8>),
    RemoveOutbound,
    /// The inbound SA goes, and another one with its index comes: for one flow, or all.
    Replace(Option<u8>),
    Readdress,
    Hop(u8, bool, u16),
    ClearHops,
    LocalAddress(Option<u8>),
    Mtu(bool, u16),
    /// ICMP tells of a narrow path, about the latest ESP.
    Narrow,
    Wait,
}

/// Hosts beyond.
fn remote(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 1, 0, 2 + number % 3)
}

fn own(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 2, 0, 2 + number % 2)
}

fn port(number: u8) -> u16 {
    53 + u16::from(number / 3 % 2)
}

/// A packet of one of six flows: TCP or UDP, a SYN, one with DF, or with its last hop.
fn plain(source: Ipv4Addr, destination: Ipv4Addr, (number, size, kind): (u8, usize, u8)) -> Vec<u8> {
    let mut octets = match kind {
        0 => segment(source, destination, Some(1460), b""),
        1 => segment(source, destination, None, &content(size)),
        _ => datagram(source, destination, &content(size)),
    };
    octets[22..24].copy_from_slice(&port(number).to_be_bytes());
    let flags = if kind == 2 { 0 } else { 0x40 };
    (octets[6], octets[8]) = (flags, if kind == 3 { 1 } else { 64 });
    octets[10..12].fill(0);
    let sum = checksum::internet(&octets[..20]);
    octets[10..12].copy_from_slice(&sum.to_be_bytes());
    octets
}

fn packets() -> impl Strategy<Value = Vec<(u8, usize, u8)>> {
    let size = prop_oneof![4 => 0usize..300, 1 => 1200usize..1460];
    proptest::collection::vec((0u8..6, size, 0u8..8), 1..5)
}

fn step() -> impl Strategy<Value = Step> {
    let action =
        prop_oneof![Just(PolicyAction::Protect), Just(PolicyAction::Bypass), Just(PolicyAction::Discard)];
    let flow = || proptest::option::of(0u8..6);
    prop_oneof![
        12 => packets().prop_map(Step::Inside),
        12 => (packets(), any::<bool>(), proptest::bool::weighted(0.1)).prop_map(|(p, first, ce)| Step::Outside(p, first, ce)),
        2 => (prop_oneof![Just(5u32), Just(20)], action, flow()).prop_map(|(p, action, flow)| Step::Policy(p, action, flow)),
        1 => Just(Step::RemovePolicy),
        1 => flow().prop_map(Step::Rekey),
        1 => Just(Step::RemoveOutbound),
        1 => flow().prop_map(Step::Replace),
        1 => Just(Step::Readdress),
        2 => (0u8..6, any::<bool>(), prop_oneof![Just(0u16), Just(1000), Just(1500)]).prop_map(|(n, side, mtu)| Step::Hop(n, side, mtu)),
        1 => Just(Step::ClearHops),
        1 => proptest::option::of(0u8..6).prop_map(Step::LocalAddress),
        1 => (any::<bool>(), prop_oneof![Just(900u16), Just(1500)]).prop_map(|(side, mtu)| Step::Mtu(side, mtu)),
        1 => Just(Step::Narrow),
        1 => Just(Step::Wait),
    ]
}

/// Of host B's side: one flow's, or all.
fn set(flow: Option<u8>) -> SelectorSet {
    let Some(number) = flow else { return selectors(HOST_B, HOST_A) };
    let remote =
        Selector { protocol: 17, start_port: port(number), end_port: port(number), ..host(remote(number)) };
    SelectorSet { local: selectors(HOST_B, HOST_A).local, remote: vec![remote] }
}

fn host(address: Ipv4Addr) -> Selector {
    Selector::addresses(address.into(), address.into())
}

fn of(spi: u32, index: u32, flow: Option<u8>) -> SaParameters {
    SaParameters { selectors: set(flow), ..sa(spi, index, false, SUITE, false) }
}

/// Gateway B twice, one of which remembers flows; and who sends to it on either SPI.
struct Both {
    gateways: [Gateway; 2],
    senders: [Gateway; 2],
    /// The inbound SA's SPI, and the outbound SA's index.
    current: (u32, u32),
    installed: u32,
    esp: Option<Vec<u8>>,
}

impl Both {
    fn new() -> Both {
        let outer = OUTER_B;
        let gateways = [0, 8].map(|flows| {
            let mut b = Gateway::remembering(Ipv4Addr::new(10, 2, 0, 1), outer, flows);
            b.apply(Command::SetPolicy {
                id: POLICY,
                priority: 10,
                action: PolicyAction::Protect,
                selectors: set(None),
                hold: 0,
            });
            b.apply(inbound(of(TO_B, 0, None)));
            b.apply(Command::InstallOutbound { sa: of(TO_A, 1, None) });
            (0..2).for_each(|number| b.hop(own(number), PortId::Inside));
            b.hop(OUTER_A, PortId::Outside);
            b
        });
        let senders = [TO_B, SECOND_TO_B].map(|spi| {
            let mut a = Gateway::new(Ipv4Addr::new(10, 1, 0, 1), OUTER_A);
            let selectors = selectors(HOST_A, HOST_B);
            let action = PolicyAction::Protect;
            a.apply(Command::SetPolicy { id: POLICY, priority: 10, action, selectors, hold: 0 });
            a.apply(Command::InstallOutbound { sa: sa(spi, 1, true, SUITE, false) });
            a.hop(OUTER_B, PortId::Outside);
            a
        });
        Both { gateways, senders, current: (TO_B, 1), installed: 1, esp: None }
    }

    fn apply(&mut self, command: Command) {
        let results = self.gateways.each_mut().map(|b| b.engine.apply(b.now, command.clone()));
        assert_eq!(results[0], results[1], "{command:?}");
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Inside(packets) => {
                let frames: Vec<_> =
                    packets.iter().map(|p| frame(&plain(own(p.0), remote(p.0), *p))).collect();
                self.gateways.iter_mut().for_each(|b| b.process(PortId::Inside, frames.iter().cloned()));
            }
            Step::Outside(packets, first, congested) => {
                let sender = &mut self.senders[usize::from(first)];
                sender.process(
                    PortId::Inside,
                    packets.iter().map(|p| frame(&plain(remote(p.0), own(p.0), (p.0, p.1, p.2.max(1))))),
                );
                let mut frames: Vec<MemoryFrame> = sender
                    .out
                    .sent
                    .drain(..)
                    .filter(|(port, _)| *port == PortId::Outside)
                    .map(|(_, f)| f)
                    .collect();
                if congested {
                    for frame in &mut frames {
                        ipv4::Packet::new_checked(&mut frame.data_mut()[14..]).unwrap().set_traffic_class(3);
                    }
                }
                self.gateways.iter_mut().for_each(|b| b.process(PortId::Outside, frames.iter().cloned()));
            }
            Step::Policy(priority, action, flow) => {
                self.apply(Command::SetPolicy { id: 99, priority, action, selectors: set(flow), hold: 0 });
            }
            Step::RemovePolicy => self.apply(Command::RemovePolicy { id: 99 }),
            Step::Rekey(flow) => {
                self.installed += 1;
                self.current.1 = self.installed;
                self.apply(Command::InstallOutbound { sa: of(TO_A + self.installed, self.installed, flow) });
            }
            Step::RemoveOutbound => self.apply(Command::RemoveOutbound { index: self.current.1 }),
            Step::Replace(flow) => {
                self.apply(Command::SetSpiState { spi: Spi(self.current.0), state: SpiState::Retired });
                self.apply(Command::SetSpiState { spi: Spi(self.current.0), state: SpiState::Unknown });
                self.current.0 ^= TO_B ^ SECOND_TO_B;
                self.apply(inbound(of(self.current.0, 0, flow)));
            }
            Step::Readdress => {
                let (local, remote) = ((OUTER_B, 0).into(), (Ipv4Addr::new(192, 0, 2, 77), 0).into());
                self.apply(Command::Readdress { index: self.current.1, local, remote });
            }
            Step::Hop(number, inside, mtu) => {
                let to = if inside { own(number) } else { OUTER_A };
                let port = if number == 5 { PortId::Inside } else { PortId::Outside };
                let port = if inside && number != 4 { PortId::Inside } else { port };
                let mac = [number; 6];
                let hop = NextHop { port, source_mac: mac, destination_mac: mac, mtu };
                let hop = (mtu > 0).then_some(hop);
                self.gateways.iter_mut().for_each(|b| b.engine.set_next_hop(to.into(), hop).unwrap());
            }
            Step::ClearHops => self.gateways.iter_mut().for_each(|b| {
                b.engine.clear_next_hops();
                b.hop(OUTER_A, PortId::Outside);
                b.hop(own(1), PortId::Inside);
            }),
            Step::LocalAddress(number) => {
                let more = number.map(|n| if n < 3 { own(n) } else { remote(n) });
                let all: Vec<_> = [OUTER_B].into_iter().chain(more).map(Into::into).collect();
                self.gateways.iter_mut().for_each(|b| b.engine.set_local_addresses(&all));
            }
            Step::Mtu(inside, mtu) => {
                let side = if inside { PortId::Inside } else { PortId::Outside };
                let config = PortConfig {
                    mac: [2; 6],
                    mtu,
                    complete_checksums: mtu == 900,
                    address: Some(Ipv4Addr::new(10, 2, 0, 1)),
                    address_v6: None,
                };
                self.gateways.iter_mut().for_each(|b| b.engine.set_port(side, &config));
            }
            Step::Narrow => {
                if let Some(esp) = &self.esp {
                    let error = too_big(esp, 600, 64);
                    self.gateways.iter_mut().for_each(|b| b.process(PortId::Outside, [error.clone()]));
                }
            }
            Step::Wait => self.gateways.iter_mut().for_each(|b| b.now.0 += 400 * SECOND),
        }
    }

    /// All that can be seen of either is the same.
    fn compare(&mut self) -> Result<(), TestCaseError> {
        let [plain, remembering] = &mut self.gateways;
        prop_assert_eq!(plain.engine.counters(), remembering.engine.counters());
        for (one, other) in plain.out.sent.iter().zip(&remembering.out.sent) {
            prop_assert_eq!(one, other);
        }
        for index in 0..=self.installed {
            prop_assert_eq!(plain.engine.activity(index), remembering.engine.activity(index));
        }
        let esp =
            plain.out.sent.iter().rev().find(|(port, f)| *port == PortId::Outside && f.data()[23] == 50);
        self.esp = esp.map(|(_, frame)| packet(frame)).or(self.esp.take());
        for gateway in &mut self.gateways {
            gateway.out.sent.clear();
            gateway.out.events.clear();
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn what_is_remembered_changes_no_verdict(steps in proptest::collection::vec(step(), 1..60)) {
        let mut both = Both::new();
        for step in steps {
            both.take(step.clone());
            prop_assert!(both.compare().is_ok(), "{step:?}: {:?}", both.gateways.each_ref().map(|b| b.engine.counters().clone()));
        }
    }
}
