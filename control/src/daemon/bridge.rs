//! Our end of the rings: events in, commands out, to every worker. Commands that find a ring full wait in order, up to a bound at
//! which the daemon stops asking the gateway for more.

use super::merge::Merge;
use spindle_abi::{Command, CommandRecord, Event, SaActivity, SaParameters};
use spindle_ike::api::ActivityReader;
use spindle_ring::{Broken, ControlSide};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;

/// Commands waiting at most beside the ring; what the gateway sends meanwhile is not held up for long.
const WAITING: usize = 1024;
/// Events taken from one ring at a time, so that sockets get their turn.
const PORTION: usize = 1024;

/// The rings, and what waits for them.
pub(super) struct Bridge {
    /// Our UDP port for ESP, which the IKE side knows as 4500 whatever it really is.
    nat_port: u16,
    side: Rc<RefCell<ControlSide>>,
    merge: Merge,
    waiting: VecDeque<(u64, Command)>,
    /// The record for which not all rings had room, encoded already.
    refused: Option<CommandRecord>,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    urgent: u64,
    noise: u64,
    impossible: u64,
    commands: u64,
    refused: u64,
}

/// What each SA carried, for liveness (RFC 7296 section 2.4) and for people.
pub(super) struct Activity(Rc<RefCell<ControlSide>>);

impl ActivityReader for Activity {
    fn activity(&self, index: u32) -> SaActivity {
        self.0.borrow().activity.load(index)
    }
}

impl Bridge {
    pub(super) fn new(side: ControlSide, nat_port: u16) -> Bridge {
        Bridge {
            nat_port,
            merge: Merge::of(side.workers.len()),
            side: Rc::new(RefCell::new(side)),
            waiting: VecDeque::new(),
            refused: None,
            counts: Counts::default(),
        }
    }

    /// Becomes readable when events come while we sleep.
    pub(super) fn bell(&self) -> std::io::Result<OwnedFd> {
        self.side.borrow().bell().try_clone_to_owned()
    }

    /// Goes on with the rings of a dataplane that was started anew. What waited for the dead one's is forgotten: the gateway
    /// gives it out again.
    pub(super) fn attach(&mut self, side: ControlSide) {
        self.merge = Merge::of(side.workers.len());
        *self.side.borrow_mut() = side;
        self.waiting.clear();
        self.refused = None;
    }

    pub(super) fn activity(&self) -> Activity {
        Activity(self.side.clone())
    }

    /// Takes events from all rings, a worker's urgent ones first. Are more waiting?
    pub(super) fn events(&mut self, take: &mut Vec<Event>) -> Result<bool, Broken> {
        let side = &mut *self.side.borrow_mut();
        side.awake();
        let counts = &mut self.counts;
        let (mut impossible, mut refused, mut more) = (0, 0, false);
        for (worker, rings) in side.workers.iter_mut().enumerate() {
            let mut push = |record: spindle_abi::EventRecord| match record.decode() {
                Ok(event) => {
                    let event = self.merge.event(worker, event);
                    refused += u64::from(matches!(event, Some(Event::Acknowledged { done: false, .. })));
                    take.extend(event);
                }
                Err(e) => {
                    impossible += 1;
                    tracing::error!("{e}");
                }
            };
            let urgent = rings.urgent.pop_batch(PORTION, &mut push)?;
            let noise = rings.noise.pop_batch(PORTION, &mut push)?;
            counts.urgent += urgent as u64;
            counts.noise += noise as u64;
            more |= urgent == PORTION || noise == PORTION;
        }
        counts.impossible += impossible;
        counts.refused += refused;
        Ok(more)
    }

    /// Is there room for another command?
    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() < WAITING
    }

    pub(super) fn command(&mut self, sequence: u64, mut command: Command) {
        if let Command::InstallOutbound { sa: SaParameters { local, .. } } | Command::Readdress { local, .. } =
            &mut command
            && local.port() != 0
        {
            local.set_port(self.nat_port);
        }
        self.waiting.push_back((sequence, command));
    }

    /// Moves waiting commands onto the rings, as far as all of them have room.
    pub(super) fn flush(&mut self) -> Result<(), Broken> {
        let workers = &mut self.side.borrow_mut().workers;
        'commands: loop {
            let record = match self.refused.take() {
                Some(record) => record,
                None => match self.waiting.pop_front() {
                    Some((sequence, command)) => match CommandRecord::encode(sequence, &command) {
                        Some(record) => record,
                        None => {
                            tracing::error!("a command does not fit its record: {command:?}");
                            continue;
                        }
                    },
                    None => break,
                },
            };
            for rings in workers.iter_mut() {
                if rings.commands.room(1)? == 0 {
                    self.refused = Some(record);
                    break 'commands;
                }
            }
            for rings in workers.iter_mut() {
                rings.commands.stage(&record)?;
            }
            self.merge.sent(record.sequence());
            self.counts.commands += 1;
        }
        workers.iter_mut().for_each(|rings| rings.commands.publish());
        Ok(())
    }

    /// May we sleep until the bell rings?
    pub(super) fn announce_sleep(&mut self) -> Result<bool, Broken> {
        self.side.borrow_mut().announce_sleep()
    }

    /// The dataplane's counters.
    pub(super) fn dataplane_counters(&self) -> Vec<(String, u64)> {
        self.side.borrow().counters.iter().collect()
    }

    /// Names and values for `stats`.
    pub(super) fn stats(&self) -> [(&'static str, u64); 6] {
        [
            ("events_urgent", self.counts.urgent),
            ("events_noise", self.counts.noise),
            ("events_impossible", self.counts.impossible),
            ("commands_sent", self.counts.commands),
            ("commands_refused", self.counts.refused),
            ("commands_waiting", self.waiting.len() as u64 + u64::from(self.refused.is_some())),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spindle_abi::{EventRecord, Spi, SpiState};
    use spindle_ring::AttachmentFds;

    #[test]
    fn commands_beyond_the_rings_room_wait_and_arrive_in_order() {
        let fds = AttachmentFds::create(1).unwrap();
        let mut bridge = Bridge::new(fds.control_side().unwrap(), 14_500);
        let mut dataplane = fds.dataplane_side().unwrap();
        let total = 10_000u64;
        for n in 0..total {
            bridge.command(n, Command::SetSpiState { spi: Spi(n as u32 + 256), state: SpiState::Former });
        }
        let mut seen = 0;
        while seen < total {
            bridge.flush().unwrap();
            let before = seen;
            while let Some(record) = dataplane.workers[0].commands.pop().unwrap() {
                let (sequence, command) = record.decode();
                assert_eq!(sequence, seen);
                assert!(
                    matches!(command.unwrap(), Command::SetSpiState { spi, .. } if spi.0 == seen as u32 + 256)
                );
                seen += 1;
            }
            assert!(seen > before, "no progress at {seen}");
        }
        assert_eq!(bridge.stats()[3], ("commands_sent", total));
    }

    #[test]
    fn a_new_dataplane_gets_nothing_that_was_meant_for_the_dead_one() {
        let fds = AttachmentFds::create(1).unwrap();
        let mut bridge = Bridge::new(fds.control_side().unwrap(), 14_500);
        let state = |spi: u64| Command::SetSpiState { spi: Spi(spi as u32), state: SpiState::Former };
        // Fills the ring, and some wait beside it.
        (0..5_000).for_each(|n| bridge.command(n, state(n + 256)));
        bridge.flush().unwrap();
        let next = fds.successor(spindle_ring::Side::Dataplane).unwrap();
        let mut dataplane = next.dataplane_side().unwrap();
        bridge.attach(next.control_side().unwrap());
        bridge.command(5_000, state(300));
        bridge.flush().unwrap();
        assert_eq!(dataplane.workers[0].commands.pop().unwrap().unwrap().decode().0, 5_000);
        assert!(dataplane.workers[0].commands.pop().unwrap().is_none());
    }

    #[test]
    fn every_worker_gets_every_command_and_the_slowest_one_is_waited_for() {
        let fds = AttachmentFds::for_workers(1, 2).unwrap();
        let mut bridge = Bridge::new(fds.control_side().unwrap(), 4500);
        let mut dataplane = fds.dataplane_side().unwrap();
        let total = 5_000u64;
        for n in 0..total {
            bridge.command(n, Command::SetSpiState { spi: Spi(n as u32 + 256), state: SpiState::Former });
        }
        bridge.flush().unwrap();
        let mut take = |worker: usize| {
            let mut sequences = Vec::new();
            while let Some(record) = dataplane.workers[worker].commands.pop().unwrap() {
                sequences.push(record.decode().0);
            }
            sequences
        };
        let first = take(0);
        bridge.flush().unwrap();
        assert!(take(0).is_empty(), "the other one has no room");
        let mut second = take(1);
        assert_eq!(first, second);
        bridge.flush().unwrap();
        second.extend(take(1));
        assert_eq!(second, (0..total).collect::<Vec<_>>());
        assert_eq!(take(0).len() + first.len(), total as usize);
        let mut events = Vec::new();
        let acknowledged = Event::Acknowledged { sequence: 0, done: true };
        for (worker, heard) in [(1, 0), (0, 1)] {
            assert!(dataplane.workers[worker].urgent.push(&EventRecord::encode(&acknowledged)).unwrap());
            bridge.events(&mut events).unwrap();
            assert_eq!(events.len(), heard);
        }
        assert_eq!(events, [acknowledged]);
    }

    /// RFC 3948 section 2.1: ESP in UDP leaves from the port that IKE uses.
    #[test]
    fn esp_in_udp_leaves_from_our_own_port() {
        let fds = AttachmentFds::create(1).unwrap();
        let mut bridge = Bridge::new(fds.control_side().unwrap(), 14_500);
        let mut dataplane = fds.dataplane_side().unwrap();
        let remote = "192.0.2.2:4500".parse().unwrap();
        for (port, expected) in [(4500, 14_500), (0, 0)] {
            let local = ([192, 0, 2, 1], port).into();
            bridge.command(1, Command::Readdress { index: 1, local, remote });
            bridge.flush().unwrap();
            let (_, command) = dataplane.workers[0].commands.pop().unwrap().unwrap().decode();
            let local = ([192, 0, 2, 1], expected).into();
            assert_eq!(command.unwrap(), Command::Readdress { index: 1, local, remote });
        }
    }

    #[test]
    fn urgent_events_come_before_noise_and_both_are_counted() {
        let fds = AttachmentFds::create(1).unwrap();
        let mut bridge = Bridge::new(fds.control_side().unwrap(), 14_500);
        let mut dataplane = fds.dataplane_side().unwrap();
        let report = spindle_abi::SpiReport {
            spi: Spi(300),
            sequence: 1,
            source: "192.0.2.1:0".parse().unwrap(),
            destination: "192.0.2.2:0".parse().unwrap(),
            at: spindle_abi::Time(1),
        };
        assert!(dataplane.workers[0].noise.push(&EventRecord::encode(&Event::UnknownSpi(report))).unwrap());
        assert!(dataplane.workers[0].urgent.push(&EventRecord::encode(&Event::Ready)).unwrap());
        let mut events = Vec::new();
        assert!(!bridge.events(&mut events).unwrap());
        assert_eq!(events, [Event::Ready, Event::UnknownSpi(report)]);
        assert!(bridge.announce_sleep().unwrap());
        assert!(dataplane.workers[0].urgent.push(&EventRecord::encode(&Event::Ready)).unwrap());
        assert!(!bridge.announce_sleep().unwrap());
    }
}
