//! Where the engine's verdicts go: to the ports, back to the pool, into the hold, onto the rings.

use crate::held::{Held, Waiting};
use arrayvec::ArrayVec;
use spindle_abi::{Event, EventRecord, Time};
use spindle_engine::{BURST, DropReason, Engine, Output, PortId};
use spindle_port::{Pool, Port};
use spindle_ring::{Broken, Producer};
use std::net::IpAddr;
use tokio::sync::mpsc;

/// Frames for which one call of the engine may find the hold full: a burst, or what was held.
const SURPLUS: usize = BURST + Held::<()>::MAX;

/// One worker's outlet.
pub(crate) struct Outlet<P: Port> {
    pub(crate) ports: [P; 2],
    pub(crate) pool: Pool<P::Frame>,
    pub(crate) urgent: Producer<EventRecord>,
    pub(crate) noise: Producer<EventRecord>,
    pub(crate) held: Held<P::Frame>,
    /// Destinations to be resolved.
    pub(crate) requests: mpsc::Sender<IpAddr>,
    /// The time of this burst.
    pub(crate) now: Time,
    /// The attachment is over.
    pub(crate) broken: Option<Broken>,
    lost: [u64; 2],
    surplus: ArrayVec<P::Frame, SURPLUS>,
}

impl<P: Port> Outlet<P> {
    pub(crate) fn new(
        ports: [P; 2],
        pool: Pool<P::Frame>,
        urgent: Producer<EventRecord>,
        noise: Producer<EventRecord>,
        requests: mpsc::Sender<IpAddr>,
    ) -> Outlet<P> {
        Outlet {
            ports,
            pool,
            urgent,
            noise,
            held: Held::new(),
            requests,
            now: Time(0),
            broken: None,
            lost: [0; 2],
            surplus: ArrayVec::new(),
        }
    }

    /// After each burst: sends, takes memory back, shows events, and tells the engine what was lost here.
    pub(crate) fn finish(&mut self, engine: &mut Engine) {
        while let Some(frame) = self.surplus.pop() {
            engine.give_up(frame, self);
        }
        for (port, id) in [PortId::Inside, PortId::Outside].into_iter().enumerate() {
            self.ports[port].flush();
            self.ports[port].replenish(&mut self.pool);
            let lost = std::mem::take(&mut self.lost[port]);
            if lost > 0 {
                engine.lost_in_transmit(id, lost);
            }
        }
        self.urgent.publish();
        self.noise.publish();
    }

    /// Asks for a next hop. If too many are asked for already, a later frame asks again.
    pub(crate) fn ask(&mut self, destination: IpAddr) {
        let _ = self.requests.try_send(destination);
    }
}

impl<P: Port> Output<P::Frame> for Outlet<P> {
    fn transmit(&mut self, port: PortId, frame: P::Frame) {
        if let Err(frame) = self.ports[port as usize].transmit(frame) {
            self.lost[port as usize] += 1;
            self.pool.put(frame);
        }
    }

    fn discard(&mut self, frame: P::Frame, _reason: DropReason) {
        self.pool.put(frame);
    }

    fn unresolved(&mut self, egress: PortId, destination: IpAddr, frame: P::Frame) {
        let asked = self.held.waits_for(destination);
        let waiting = Waiting { egress, destination, since: self.now, frame };
        match self.held.hold(waiting) {
            Ok(()) if asked => {}
            Ok(()) => self.ask(destination),
            Err(frame) => {
                if !asked {
                    self.ask(destination);
                }
                self.surplus.push(frame);
            }
        }
    }

    fn event(&mut self, event: Event) -> bool {
        let ring = if event.is_urgent() { &mut self.urgent } else { &mut self.noise };
        ring.stage(&EventRecord::encode(&event)).unwrap_or_else(|broken| {
            self.broken = Some(broken);
            false
        })
    }

    fn allocate(&mut self, length: usize) -> Option<P::Frame> {
        P::fresh(&mut self.pool, length)
    }
}
