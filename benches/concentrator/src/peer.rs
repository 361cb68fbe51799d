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

/// One peer as its host and its dataplane know it.
struct Member {
    /// What its SAs carried follows from its traffic: each packet is answered while the concentrator has the SA.
    traffic: Traffic,
    /// Until when packets were answered; `None`: they are.
    cut: Cell<Option<Time>>,
    /// The SPI and slot on which it sends.
    outbound: Cell<Option<(Spi, u32)>>,
    /// Is a packet of it scheduled?
    sending: Cell<bool>,
}

/// The dataplanes of the peers of one gateway.
struct Members {
    clock: Rc<Cell<Time>>,
    began: Time,
    all: Vec<Member>,
    /// Whose SA is in which slot.
    slots: RefCell<HashMap<u32, usize>>,
}

impl Members {
    /// The last packet that a peer sent up to `at`.
    fn last(&self, member: &Member, at: Time) -> Time {
        let first = self.began.after(member.traffic.phase);
        if at < first {
            return Time(0);
        }
        let period = member.traffic.period.as_nanos().max(1);
        Time(first.0 + (at.since(first).as_nanos() / period * period) as u64)
    }
}

struct Reader(Rc<Members>);

impl ActivityReader for Reader {
    fn activity(&self, index: u32) -> SaActivity {
        let member = self.0.slots.borrow().get(&index).and_then(|place| self.0.all.get(*place));
        let Some(member) = member else { return SaActivity::default() };
        let now = self.0.clock.get();
        let until = match member.outbound.get() {
            Some((_, slot)) if slot == index => now,
            _ => member.cut.get().unwrap_or(now),
        };
        SaActivity { last: self.0.last(member, until), ..SaActivity::default() }
    }
}

/// The peers of one gateway.
pub(crate) struct Herd {
    gateway: Gateway,
    /// The number of the first of them.
    first: u32,
    members: Rc<Members>,
    /// When its next tick is scheduled.
    pub(crate) scheduled: Option<Time>,
    /// Those that send on another SA than before, or on none.
    changed: Vec<u32>,
}

impl Herd {
    /// These peers start now, and initiate.
    pub(crate) fn start(scenario: &Scenario, first: u32, many: u32, clock: &Rc<Cell<Time>>) -> Herd {
        let now = clock.get();
        let dice = |peer: u32| Dice::new(scenario.seed, 1000 + u64::from(peer));
        let mut own = dice(first);
        let member = |peer: u32| {
            let traffic = match peer == first {
                true => Traffic::draw(&mut own),
                false => Traffic::draw(&mut dice(peer)),
            };
            Member { traffic, cut: Cell::default(), outbound: Cell::default(), sending: Cell::default() }
        };
        let members = Rc::new(Members {
            clock: clock.clone(),
            began: now,
            all: (first..first + many).map(member).collect(),
            slots: RefCell::default(),
        });
        let boot = Boot {
            incarnation: 1,
            maker_id: Vec::new(),
            secrets: Vec::new(),
            former: Vec::new(),
            tickets: TicketRecords::default(),
            anchor_matches: true,
            wall_clock: (crate::world::EPOCH, Time(0)),
        };
        let reader = Box::new(Reader(members.clone()));
        let config = scenario.of_peers(first..first + many);
        let mut gateway = Gateway::new(config, boot, reader, Box::new(own), now);
        gateway.handle(now, Input::Event(Event::Ready));
        Herd { gateway, first, members, scheduled: None, changed: Vec::new() }
    }

    fn member(&self, peer: u32) -> &Member {
        &self.members.all[(peer - self.first) as usize]
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
        let mut slots = self.members.slots.borrow_mut();
        match command {
            Command::InstallInbound { sa, .. } => {
                slots.insert(sa.index, Scenario::place_of(sa.policy));
            }
            Command::InstallOutbound { sa } => {
                let place = Scenario::place_of(sa.policy);
                slots.insert(sa.index, place);
                if let Some(member) = self.members.all.get(place) {
                    member.outbound.set(Some((sa.spi, sa.index)));
                    self.changed.push(self.first + place as u32);
                }
            }
            Command::RemoveOutbound { index } => {
                let Some(place) = slots.remove(&index) else { return };
                let member = &self.members.all[place];
                if member.outbound.get().is_some_and(|(_, slot)| slot == index) {
                    member.outbound.set(None);
                    self.changed.push(self.first + place as u32);
                }
            }
            _ => {}
        }
    }

    /// Those that send on another SA than when they were last asked for, or on none.
    pub(crate) fn take_changed(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.changed)
    }

    /// On which SPI a peer sends.
    pub(crate) fn outbound(&self, peer: u32) -> Option<Spi> {
        self.member(peer).outbound.get().map(|(spi, _)| spi)
    }

    /// Until when a peer's packets were answered; `None`: they are.
    pub(crate) fn cut(&self, peer: u32, at: Option<Time>) {
        self.member(peer).cut.set(at);
    }

    /// A packet of a peer has no SA to leave by.
    pub(crate) fn acquire(&mut self, now: Time, peer: u32) {
        let inside = IpAddr::from([0, 0, 0, 0]);
        let policy = Scenario::policy_at((peer - self.first) as usize);
        let packet = Trigger { source: inside, destination: inside, protocol: 17, ports: None };
        let event = Event::Acquire { policy, packet };
        self.gateway.handle(now, Input::Event(event));
    }

    /// When a peer's host sends next, if that is not scheduled already.
    pub(crate) fn next_packet(&self, now: Time, peer: u32) -> Option<Time> {
        let member = self.member(peer);
        (!member.sending.replace(true)).then(|| match self.members.last(member, now) {
            Time(0) => self.members.began.after(member.traffic.phase),
            last => last.after(member.traffic.period),
        })
    }

    /// What was scheduled happens.
    pub(crate) fn packet_left(&self, peer: u32) {
        self.member(peer).sending.set(false);
    }

    /// A peer is back, and nothing more of it matters: its SAs go without a word.
    pub(crate) fn leave(&mut self, now: Time, peer: u32) {
        // It has one, for it is back.
        let _ = self.gateway.forget(now, &Scenario::name(peer), None);
    }

    /// Nanoseconds between two packets of a peer.
    pub(crate) fn period(&self, peer: u32) -> u64 {
        self.member(peer).traffic.period.as_nanos() as u64
    }
}
