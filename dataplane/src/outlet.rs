//! Where the engine's verdicts go: to the ports, back to the pool, into the hold, to other workers, onto the rings.

use crate::capture::Capture;
use crate::handover::Neighbours;
use crate::held::{Held, Towards, UNRESOLVED, WITHOUT_SA};
use arrayvec::ArrayVec;
use spindle_abi::{Event, EventRecord, Time};
use spindle_engine::{BURST, DropReason, Engine, Frame, Origin, Output, PortId};
use spindle_port::{Pool, Port, Tuns};
use spindle_ring::capture::OUTSIDE;
use spindle_ring::{Broken, Producer};
use std::net::IpAddr;
use std::time::Duration;
use tokio::sync::mpsc;

/// Frames for which one call of the engine may find the hold full: a burst, or what was held.
const SURPLUS: usize = BURST + UNRESOLVED + WITHOUT_SA;

/// How long a frame waits for its next hop.
const RESOLVING: Duration = Duration::from_secs(1);
/// How long a frame waits for an SA: longer than a handshake with a retransmission, shorter than hosts' own patience.
const ESTABLISHING: Duration = Duration::from_secs(2);

/// Unknown SPIs told between two housekeepings (a millisecond); the others are counted. Control answers far fewer,
/// and a storm must not cost it a core.
const NOISE: usize = 64;

/// One worker's outlet.
pub(crate) struct Outlet<P: Port> {
    pub(crate) ports: [P; 2],
    /// The host's own stack.
    pub(crate) tuns: Tuns<P::Frame>,
    pub(crate) pool: Pool<P::Frame>,
    pub(crate) neighbours: Neighbours<P::Frame>,
    pub(crate) urgent: Producer<EventRecord>,
    pub(crate) noise: Producer<EventRecord>,
    /// What waits for a next hop.
    pub(crate) held: Held<Towards, P::Frame, UNRESOLVED>,
    /// What waits for an SA, by policy.
    pub(crate) without_sa: Held<u32, P::Frame, WITHOUT_SA>,
    /// While somebody captures.
    pub(crate) capture: Option<Box<Capture>>,
    /// Destinations to be resolved.
    pub(crate) requests: mpsc::Sender<Towards>,
    /// The time of this burst.
    pub(crate) now: Time,
    /// The attachment is over.
    pub(crate) broken: Option<Broken>,
    lost: [u64; 2],
    /// Unknown SPIs that may still be told.
    noise_left: usize,
    surplus: ArrayVec<P::Frame, SURPLUS>,
}

impl<P: Port> Outlet<P> {
    pub(crate) fn new(
        ports: [P; 2],
        pool: Pool<P::Frame>,
        neighbours: Neighbours<P::Frame>,
        (urgent, noise): (Producer<EventRecord>, Producer<EventRecord>),
        requests: mpsc::Sender<Towards>,
    ) -> Outlet<P> {
        Outlet {
            ports,
            tuns: Tuns::default(),
            pool,
            neighbours,
            urgent,
            noise,
            held: Held::new(RESOLVING),
            without_sa: Held::new(ESTABLISHING),
            capture: None,
            requests,
            now: Time(0),
            broken: None,
            lost: [0; 2],
            noise_left: NOISE,
            surplus: ArrayVec::new(),
        }
    }

    /// After each burst: sends, takes memory back, shows events, and tells the engine what was lost here.
    pub(crate) fn finish(&mut self, engine: &mut Engine) {
        while let Some(frame) = self.surplus.pop() {
            engine.give_up(frame, DropReason::NoNextHop, self);
        }
        self.lost[PortId::Inside as usize] += self.tuns.flush();
        self.neighbours.settle(&mut self.pool);
        self.tuns.replenish::<P>(&mut self.pool);
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
        if let Some(capture) = &mut self.capture {
            capture.publish();
        }
    }

    /// These frames are processed next.
    #[inline]
    pub(crate) fn came(&mut self, origin: Origin, frames: &[P::Frame]) {
        if let Some(capture) = &mut self.capture {
            capture.came(self.now, interface(origin), frames);
        }
    }

    /// Lets unknown SPIs be told again; at each housekeeping.
    pub(crate) fn allow_noise(&mut self) {
        self.noise_left = NOISE;
    }

    /// A frame has left by this side, unless its port refused it.
    #[inline]
    fn left(&mut self, port: PortId, refused: Option<P::Frame>) {
        if let Some(capture) = &mut self.capture {
            if refused.is_some() { capture.lost() } else { capture.left() }
        }
        if let Some(frame) = refused {
            self.lost[port as usize] += 1;
            self.pool.put(frame);
        }
    }

    /// Asks for a next hop. If too many are asked for already, a later frame asks again.
    pub(crate) fn ask(&mut self, towards: Towards) {
        let _ = self.requests.try_send(towards);
    }
}

/// By which number a capture knows where a frame came from.
fn interface(origin: Origin) -> u16 {
    match origin {
        Origin::Inside(interface) => interface,
        Origin::Outside => OUTSIDE,
    }
}

impl<P: Port> Output<P::Frame> for Outlet<P> {
    fn transmit(&mut self, port: PortId, frame: P::Frame) {
        if let Some(capture) = &mut self.capture {
            let interface = if port == PortId::Outside { OUTSIDE } else { 0 };
            capture.leaving(self.now, interface, &frame);
        }
        let refused = self.ports[port as usize].transmit(frame).err();
        self.left(port, refused);
    }

    fn to_host(&mut self, interface: u16, frame: P::Frame) {
        if let Some(capture) = &mut self.capture {
            capture.leaving(self.now, interface, &frame);
        }
        let refused = self.tuns.transmit(interface, frame).err();
        self.left(PortId::Inside, refused);
    }

    fn discard(&mut self, frame: P::Frame, reason: DropReason) {
        if let Some(capture) = &mut self.capture {
            capture.dropped(&frame, reason);
        }
        self.pool.put(frame);
    }

    fn made(&mut self, origin: Origin, frame: &P::Frame) {
        if let Some(capture) = &mut self.capture {
            capture.made(self.now, interface(origin), frame);
        }
    }

    fn answered(&mut self, frame: &P::Frame, reason: DropReason) {
        if let Some(capture) = &mut self.capture {
            capture.dropped(frame, reason);
        }
    }

    fn unresolved(&mut self, egress: PortId, destination: IpAddr, frame: P::Frame) {
        let asked = self.held.count(|(_, to)| to == destination) > 0;
        match self.held.hold((egress, destination), self.now, frame) {
            Ok(()) if asked => {}
            Ok(()) => self.ask((egress, destination)),
            Err(frame) => {
                if !asked {
                    self.ask((egress, destination));
                }
                self.surplus.push(frame);
            }
        }
    }

    fn without_sa(&mut self, policy: u32, hold: u16, frame: P::Frame) -> Option<P::Frame> {
        let room = !self.without_sa.is_full() && self.without_sa.count(|of| of == policy) < usize::from(hold);
        if !room {
            return Some(frame);
        }
        self.without_sa.hold(policy, self.now, frame).err()
    }

    fn hand_over(&mut self, worker: u16, origin: Origin, frame: P::Frame) -> Result<(), P::Frame> {
        let place = frame.place();
        self.neighbours.give(worker, origin, frame)?;
        // It is captured where it goes.
        if let Some(capture) = &mut self.capture {
            capture.forget(place);
        }
        Ok(())
    }

    fn event(&mut self, event: Event) -> bool {
        let ring = if event.is_urgent() {
            &mut self.urgent
        } else if let Some(left) = self.noise_left.checked_sub(1) {
            self.noise_left = left;
            &mut self.noise
        } else {
            return false;
        };
        ring.stage(&EventRecord::encode(&event)).unwrap_or_else(|broken| {
            self.broken = Some(broken);
            false
        })
    }

    fn allocate(&mut self, length: usize) -> Option<P::Frame> {
        P::fresh(&mut self.pool, length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spindle_abi::{Spi, SpiReport};
    use spindle_engine::{EngineConfig, MemoryFrame, PortConfig};
    use spindle_port::MemoryPort;
    use spindle_ring::{AttachmentFds, ControlSide};
    use std::net::SocketAddr;

    fn outlet() -> (Outlet<MemoryPort>, ControlSide, mpsc::Receiver<Towards>) {
        let fds = AttachmentFds::create(1).unwrap();
        let (mut side, control) = (fds.dataplane_side().unwrap(), fds.control_side().unwrap());
        let rings = side.workers.remove(0);
        let (requests, asked) = mpsc::channel(8);
        let mut ports = [MemoryPort::default(), MemoryPort::default()];
        ports[0].limit = 1;
        let (pool, alone) = (Pool::with_capacity(256), Neighbours::default());
        (Outlet::new(ports, pool, alone, (rings.urgent, rings.noise), requests), control, asked)
    }

    fn engine() -> Engine {
        let port = || PortConfig {
            mac: [2; 6],
            mtu: 1500,
            complete_checksums: false,
            address: None,
            address_v6: None,
        };
        Engine::new(EngineConfig::new(Vec::new(), port(), port()))
    }

    #[test]
    fn a_frame_that_the_port_refuses_goes_back_to_the_pool() {
        let (mut outlet, _control, _asked) = outlet();
        for octet in [1, 2] {
            outlet.transmit(PortId::Inside, MemoryFrame::new(&[octet]));
        }
        assert_eq!((outlet.lost, outlet.pool.len()), ([1, 0], 1));
        outlet.finish(&mut engine());
        assert_eq!((outlet.lost, outlet.ports[0].outgoing.len()), ([0, 0], 1));
    }

    #[test]
    fn a_destination_is_asked_for_once_while_frames_wait_for_it() {
        let (mut outlet, _control, mut asked) = outlet();
        let destination = IpAddr::from([10, 0, 0, 1]);
        for _ in 0..UNRESOLVED + 3 {
            outlet.unresolved(PortId::Inside, destination, MemoryFrame::new(&[0; 64]));
        }
        assert_eq!(asked.try_recv(), Ok((PortId::Inside, destination)));
        assert!(asked.try_recv().is_err());
        outlet.finish(&mut engine());
        assert_eq!(outlet.pool.len(), 3); // those for which there was no room
    }

    #[test]
    fn so_many_frames_wait_for_an_sa_as_their_policy_lets_and_there_is_room_for() {
        let (mut outlet, _control, _asked) = outlet();
        let mut kept = |policy, hold, frames| {
            let frames = (0..frames).map(|_| MemoryFrame::new(&[0; 64]));
            frames.filter_map(|frame| outlet.without_sa(policy, hold, frame).is_none().then_some(())).count()
        };
        assert_eq!((kept(1, 0, 3), kept(1, 2, 3), kept(2, 256, 300)), (0, 2, WITHOUT_SA - 2));
        assert_eq!(kept(3, 1, 1), 0, "others may have all the room");
    }

    #[test]
    fn events_go_to_the_ring_of_their_kind() {
        let (mut outlet, mut control, _asked) = outlet();
        let end = SocketAddr::from(([192, 0, 2, 1], 0));
        let report = SpiReport { spi: Spi(300), sequence: 1, source: end, destination: end, at: Time(5) };
        assert!(outlet.event(Event::FormerSpi(report)) && outlet.event(Event::UnknownSpi(report)));
        outlet.finish(&mut engine());
        assert_eq!(control.workers[0].urgent.pop().unwrap().unwrap().decode(), Ok(Event::FormerSpi(report)));
        assert_eq!(control.workers[0].noise.pop().unwrap().unwrap().decode(), Ok(Event::UnknownSpi(report)));
    }

    #[test]
    fn a_storm_of_unknown_spis_is_told_in_part_and_leaves_urgent_events_alone() {
        let (mut outlet, mut control, _asked) = outlet();
        let end = SocketAddr::from(([192, 0, 2, 1], 0));
        let report = SpiReport { spi: Spi(300), sequence: 1, source: end, destination: end, at: Time(5) };
        for _ in 0..2 {
            let told = (0..10 * NOISE).filter(|_| outlet.event(Event::UnknownSpi(report))).count();
            assert_eq!(told, NOISE);
            assert!(outlet.event(Event::FormerSpi(report)));
            outlet.allow_noise();
        }
        outlet.finish(&mut engine());
        let mut events = 0;
        while control.workers[0].noise.pop().unwrap().is_some() {
            events += 1;
        }
        assert_eq!(events, 2 * NOISE);
    }
}
