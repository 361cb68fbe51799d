//! A peer: a whole gateway that knows one connection, and of its dataplane what matters here.

use crate::scenario::{Scenario, Traffic};
use spindle_abi::{Command, Event, SaActivity, Spi, Time};
use spindle_ike::api::{ActivityReader, Datagram};
use spindle_recovery::Gateway;
use spindle_recovery::api::{Boot, Input, Output, TicketRecords};
use spindle_sim::Dice;
use std::cell::Cell;
use std::net::IpAddr;
use std::rc::Rc;

/// What the peer's SAs carried follows from its traffic: each packet is answered while the concentrator has the SA.
pub(crate) struct Carried {
    clock: Rc<Cell<Time>>,
    traffic: Traffic,
    began: Time,
    /// Until when packets were answered; `None`: they are.
    cut: Cell<Option<Time>>,
    outbound: Cell<Option<u32>>,
}

impl Carried {
    /// The last packet that was sent up to `at`.
    fn last(&self, at: Time) -> Time {
        let first = self.began.after(self.traffic.phase);
        if at < first {
            return Time(0);
        }
        let period = self.traffic.period.as_nanos().max(1);
        Time(first.0 + (at.since(first).as_nanos() / period * period) as u64)
    }

    /// The first packet after `at`.
    pub(crate) fn next(&self, at: Time) -> Time {
        match self.last(at) {
            Time(0) => self.began.after(self.traffic.phase),
            last => last.after(self.traffic.period),
        }
    }

    pub(crate) fn cut(&self, at: Option<Time>) {
        self.cut.set(at);
    }
}

struct Reader(Rc<Carried>);

impl ActivityReader for Reader {
    fn activity(&self, index: u32) -> SaActivity {
        let now = self.0.clock.get();
        let until = match self.0.outbound.get() == Some(index) {
            true => now,
            false => self.0.cut.get().unwrap_or(now),
        };
        SaActivity { last: self.0.last(until), ..SaActivity::default() }
    }
}

/// One peer.
pub(crate) struct Peer {
    gateway: Gateway,
    pub(crate) carried: Rc<Carried>,
    /// The SPI and slot on which it sends.
    outbound: Option<(Spi, u32)>,
    /// When its next tick is scheduled.
    pub(crate) scheduled: Option<Time>,
    /// Is a packet of it scheduled?
    pub(crate) sending: bool,
}

impl Peer {
    /// It starts now, and initiates.
    pub(crate) fn start(scenario: &Scenario, number: u32, clock: &Rc<Cell<Time>>) -> Peer {
        let now = clock.get();
        let mut dice = Dice::new(scenario.seed, 1000 + u64::from(number));
        let traffic = Traffic::draw(&mut dice);
        let carried = Rc::new(Carried {
            clock: clock.clone(),
            traffic,
            began: now,
            cut: Cell::new(None),
            outbound: Cell::new(None),
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
        let reader = Box::new(Reader(carried.clone()));
        let mut gateway = Gateway::new(scenario.of_peer(number), boot, reader, Box::new(dice), now);
        gateway.handle(now, Input::Event(Event::Ready));
        Peer { gateway, carried, outbound: None, scheduled: None, sending: false }
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

    /// What it wants sent; the rest it does.
    pub(crate) fn poll(&mut self, now: Time) -> Option<Datagram> {
        while let Some(output) = self.gateway.poll() {
            match output {
                Output::Transmit(datagram) => return Some(datagram),
                Output::Command { sequence, command } => {
                    self.apply(command);
                    self.gateway.handle(now, Input::Event(Event::Acknowledged { sequence, done: true }));
                }
                Output::Journal(_) | Output::Secrets { .. } | Output::Persist(_) | Output::Report(_) => {}
            }
        }
        None
    }

    fn apply(&mut self, command: Command) {
        match command {
            Command::InstallOutbound { sa } => self.outbound = Some((sa.spi, sa.index)),
            Command::RemoveOutbound { index } => self.outbound.take_if(|(_, i)| *i == index).map_or((), drop),
            _ => return,
        }
        self.carried.outbound.set(self.outbound.map(|(_, index)| index));
    }

    /// On which SPI it sends.
    pub(crate) fn outbound(&self) -> Option<Spi> {
        self.outbound.map(|(spi, _)| spi)
    }

    /// A packet has no SA to leave by.
    pub(crate) fn acquire(&mut self, now: Time) {
        let inside = IpAddr::from([0, 0, 0, 0]);
        let event = Event::Acquire { policy: 1, source: inside, destination: inside };
        self.gateway.handle(now, Input::Event(event));
    }

    /// Nanoseconds between two of its packets.
    pub(crate) fn period(&self) -> u64 {
        self.carried.traffic.period.as_nanos() as u64
    }
}
