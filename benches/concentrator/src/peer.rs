//! The peers: real gateways that know the concentrator alone, and of their dataplanes what matters here. Where peers are
//! very many, several share one gateway, each with a connection and an address of its own; so that each needs only what
//! a connection needs.

use crate::scenario::{Scenario, Traffic};
use spindle_abi::{Command, Event, SaActivity, Spi, Time, Trigger};
use spindle_ike::api::{ActivityReader, Datagram};
use spindle_recovery::Gateway;
use spindle_recovery::api::{Boot, Input, Output, TicketRecords};
use spindle_sim::Dice;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

/// One peer as its host and its dataplane know it. What its SAs carried follows from its packets, each of which is answered
/// while the concentrator has the SA.
#[derive(Default)]
struct Member {
    /// When its first packet leaves, and how long after a packet the next one does.
    first: Cell<Time>,
    period: Cell<Duration>,
    /// Until when packets were answered; `None`: they are.
    cut: Cell<Option<Time>>,
    /// The SPI and slot on which it sends.
    outbound: Cell<Option<(Spi, u32)>>,
    /// Is a packet of it scheduled?
    sending: Cell<bool>,
}

impl Member {
    /// The last packet that it sent up to `at`.
    fn last(&self, at: Time) -> Time {
        let first = self.first.get();
        if at < first {
            return Time(0);
        }
        let period = self.period.get().as_nanos().max(1);
        Time(first.0 + (at.since(first).as_nanos() / period * period) as u64)
    }
}

/// What is looked at with each packet, of all peers, close together.
pub(crate) struct Members {
    clock: Rc<Cell<Time>>,
    all: Vec<Member>,
}

impl Members {
    pub(crate) fn new(peers: u32, clock: &Rc<Cell<Time>>) -> Members {
        Members { clock: clock.clone(), all: (0..peers).map(|_| Member::default()).collect() }
    }

    fn of(&self, peer: u32) -> &Member {
        &self.all[peer as usize]
    }

    /// On which SPI a peer sends.
    pub(crate) fn outbound(&self, peer: u32) -> Option<Spi> {
        self.of(peer).outbound.get().map(|(spi, _)| spi)
    }

    /// Until when a peer's packets were answered; `None`: they are.
    pub(crate) fn cut(&self, peer: u32, at: Option<Time>) {
        self.of(peer).cut.set(at);
    }

    /// When a peer's host sends next, if that is not scheduled already.
    pub(crate) fn next_packet(&self, now: Time, peer: u32) -> Option<Time> {
        let member = self.of(peer);
        (!member.sending.replace(true)).then(|| match member.last(now) {
            Time(0) => member.first.get(),
            last => last.after(member.period.get()),
        })
    }

    /// What was scheduled happens.
    pub(crate) fn packet_left(&self, peer: u32) {
        self.of(peer).sending.set(false);
    }

    /// Nanoseconds between two packets of a peer.
    pub(crate) fn period(&self, peer: u32) -> u64 {
        self.of(peer).period.get().as_nanos() as u64
    }
}

/// Whose SA is in which slot of a gateway.
type Slots = Rc<RefCell<HashMap<u32, u32>>>;

struct Reader {
    members: Rc<Members>,
    slots: Slots,
}

impl ActivityReader for Reader {
    fn activity(&self, index: u32) -> SaActivity {
        let Some(member) = self.slots.borrow().get(&index).map(|peer| self.members.of(*peer)) else {
            return SaActivity::default();
        };
        let now = self.members.clock.get();
        let until = match member.outbound.get() {
            Some((_, slot)) if slot == index => now,
            _ => member.cut.get().unwrap_or(now),
        };
        SaActivity { last: member.last(until), ..SaActivity::default() }
    }
}

/// The peers of one gateway.
pub(crate) struct Herd {
    gateway: Gateway,
    /// The number of the first of them.
    first: u32,
    members: Rc<Members>,
    slots: Slots,
    /// When its next tick is scheduled.
    pub(crate) scheduled: Option<Time>,
    /// Those that send on another SA than before, or on none.
    changed: Vec<u32>,
}

impl Herd {
    /// These peers start now, and initiate.
    pub(crate) fn start(scenario: &Scenario, first: u32, many: u32, members: &Rc<Members>) -> Herd {
        let now = members.clock.get();
        let dice = |peer: u32| Dice::new(scenario.seed, 1000 + u64::from(peer));
        let mut own = dice(first);
        for peer in first..first + many {
            let traffic = match peer == first {
                true => Traffic::draw(&mut own),
                false => Traffic::draw(&mut dice(peer)),
            };
            let member = members.of(peer);
            member.first.set(now.after(traffic.phase));
            member.period.set(traffic.period);
        }
        let boot = Boot {
            incarnation: 1,
            maker_id: Vec::new(),
            secrets: Vec::new(),
            former: Vec::new(),
            tickets: TicketRecords::default(),
            anchor_matches: true,
            wall_clock: (crate::world::EPOCH, Time(0)),
        };
        let slots = Slots::default();
        let reader = Box::new(Reader { members: members.clone(), slots: slots.clone() });
        let config = scenario.of_peers(first..first + many);
        let mut gateway = Gateway::new(config, boot, reader, Box::new(own), now);
        gateway.handle(now, Input::Event(Event::Ready));
        Herd { gateway, first, members: members.clone(), slots, scheduled: None, changed: Vec::new() }
    }

    pub(crate) fn receive(&mut self, now: Time, datagram: Datagram) {
        self.gateway.handle(now, Input::Datagram(datagram));
    }

    pub(crate) fn tick(&mut self, now: Time) {
        if self.gateway.deadline().is_some_and(|at| at <= now) {
            self.gateway.tick(now);
        }
    }

    pub(crate) fn deadline(&self) -> Option<Time> {
        self.gateway.deadline()
    }

    /// What they want sent; the rest they do.
    pub(crate) fn poll(&mut self, now: Time) -> Option<Datagram> {
        while let Some(output) = self.gateway.poll() {
            match output {
                Output::Transmit(datagram) => return Some(datagram),
                Output::Command { sequence, command } => {
                    self.apply(command);
                    self.gateway.handle(now, Input::Event(Event::Acknowledged { sequence, done: true }));
                }
                Output::Journal(_)
                | Output::Secrets { .. }
                | Output::Persist(_)
                | Output::Keep(_)
                | Output::Report(_) => {}
            }
        }
        None
    }

    fn apply(&mut self, command: Command) {
        let mut slots = self.slots.borrow_mut();
        let peer = |policy| self.first + Scenario::place_of(policy) as u32;
        match command {
            Command::InstallInbound { sa, .. } => {
                slots.insert(sa.index, peer(sa.policy));
            }
            Command::InstallOutbound { sa } => {
                let peer = peer(sa.policy);
                slots.insert(sa.index, peer);
                self.members.of(peer).outbound.set(Some((sa.spi, sa.index)));
                self.changed.push(peer);
            }
            Command::RemoveOutbound { index } => {
                let Some(peer) = slots.remove(&index) else { return };
                let outbound = &self.members.of(peer).outbound;
                if outbound.get().is_some_and(|(_, slot)| slot == index) {
                    outbound.set(None);
                    self.changed.push(peer);
                }
            }
            _ => {}
        }
    }

    /// Those that send on another SA than when they were last asked for, or on none.
    pub(crate) fn take_changed(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.changed)
    }

    /// A packet of a peer has no SA to leave by.
    pub(crate) fn acquire(&mut self, now: Time, peer: u32) {
        let inside = IpAddr::from([0, 0, 0, 0]);
        let policy = Scenario::policy_at((peer - self.first) as usize);
        let packet = Trigger { source: inside, destination: inside, protocol: 17, ports: None };
        let event = Event::Acquire { policy, packet };
        self.gateway.handle(now, Input::Event(event));
    }

    /// A peer is back, and nothing more of it matters: its SAs go without a word.
    pub(crate) fn leave(&mut self, now: Time, peer: u32) {
        // It has one, for it is back.
        let _ = self.gateway.forget(now, &Scenario::name(peer), None);
    }
}
