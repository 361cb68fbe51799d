//! One machine: its disk, and while it is up the gateway's control plane and dataplane on it.

use crate::disk::{Disk, Handle};
use crate::network::{ipv4, udp};
use crate::random::{Dice, GatewayRandom};
use spindle_abi::{Command, Event, SaActivity, Spi, SpiState, Time};
use spindle_engine::{
    ArrayVec, DropReason, Engine, EngineConfig, Frame, MemoryFrame, NextHop, Output, PortConfig, PortId,
};
use spindle_ike::api::ActivityReader;
use spindle_recovery::Gateway;
use spindle_recovery::api::{Boot, Config, Generation, JournalWrite, TokenMethod, UsedTicket};
use spindle_recovery::store::{Store, StoreError, write_secrets};
use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;

/// Stands in every inside packet, so that it would be seen in clear outside.
pub(crate) const MARKER: &[u8; 16] = b"!inside packets!";

/// The maker id of all members.
const CLUSTER: &[u8] = b"cluster";

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const MTU: u16 = 1500;

/// A gateway's machine.
pub(crate) struct Machine {
    /// Outer address.
    pub(crate) outside: Ipv4Addr,
    pub(crate) disk: Disk,
    pub(crate) config: Config,
    /// Is it a member of the cluster?
    member: bool,
    pub(crate) running: Option<Running>,
    /// Counts the starts; what was under way within an earlier life never arrives in a later one.
    pub(crate) life: u64,
    random: Dice,
}

/// What a process's death ends.
pub(crate) struct Running {
    pub(crate) gateway: Gateway,
    pub(crate) engine: Rc<RefCell<Engine>>,
    store: Store,
    handle: Handle,
    /// For new secrets.
    random: GatewayRandom,
    /// For the next group commit.
    pub(crate) pending: Vec<JournalWrite>,
}

/// What the dataplane did with a frame, or on a sweep.
#[derive(Default)]
pub(crate) struct Verdicts {
    /// Outer packets, to be sent.
    pub(crate) outside: Vec<Vec<u8>>,
    /// Inner packets, for hosts behind the gateway.
    pub(crate) inside: Vec<Vec<u8>>,
    /// For control.
    pub(crate) events: Vec<Event>,
    unresolved: Vec<(PortId, IpAddr, MemoryFrame)>,
}

impl Output<MemoryFrame> for Verdicts {
    fn transmit(&mut self, port: PortId, frame: MemoryFrame) {
        let packet = frame.data()[14..].to_vec();
        match port {
            PortId::Outside => self.outside.push(packet),
            PortId::Inside => self.inside.push(packet),
        }
    }
    fn to_host(&mut self, _interface: u16, frame: MemoryFrame) {
        self.inside.push(frame.data()[14..].to_vec());
    }
    fn discard(&mut self, _frame: MemoryFrame, _reason: DropReason) {}
    fn unresolved(&mut self, egress: PortId, destination: IpAddr, frame: MemoryFrame) {
        self.unresolved.push((egress, destination, frame));
    }
    fn event(&mut self, event: Event) -> bool {
        self.events.push(event);
        true
    }
    fn allocate(&mut self, length: usize) -> Option<MemoryFrame> {
        Some(MemoryFrame::new(&vec![0; length]))
    }
}

struct Activity(Rc<RefCell<Engine>>);

impl ActivityReader for Activity {
    fn activity(&self, index: u32) -> SaActivity {
        self.0.borrow().activity(index).unwrap_or_default()
    }
}

impl Machine {
    pub(crate) fn new(outside: Ipv4Addr, config: Config, random: Dice) -> Machine {
        Machine { outside, disk: Disk::default(), config, member: false, running: None, life: 0, random }
    }

    /// Makes it a member of the cluster, with the secret that all members draw from the same dice.
    pub(crate) fn join(mut self, dice: Dice, wall_clock: u64) -> Machine {
        self.member = true;
        let new = Some((self.config.token_method, wall_clock));
        write_secrets(&mut self.disk.attach(), &mut GatewayRandom(dice), new, Vec::new())
            .expect("the disk of a machine that is off has no fuse");
        self
    }

    /// Starts the gateway from what is on disk. The boot record is for the oracle.
    pub(crate) fn boot(&mut self, now: Time, wall_clock: u64) -> Result<Boot, StoreError> {
        self.life += 1;
        let handle = self.disk.attach();
        // Every life draws from another part of the machine's stream.
        let mut random = GatewayRandom(self.random.clone());
        self.random = Dice::new(u64::from(self.random.number()), self.life);
        let mut store = Store::open(handle.clone())?;
        store.set_ticket_lifetime(self.config.ticket_lifetime);
        if self.member {
            store.share_secret();
        }
        let mut booted = store.boot(
            &mut handle.clone(),
            &mut random,
            (wall_clock, now),
            false,
            self.config.token_method,
        )?;
        if self.member {
            booted.boot.maker_id = CLUSTER.into();
        }
        let engine = Rc::new(RefCell::new(self.engine()));
        let activity = Box::new(Activity(Rc::clone(&engine)));
        // Secrets come from yet another part.
        let secrets = GatewayRandom(Dice::new(u64::from(self.random.clone().number()), self.life));
        let gateway = Gateway::new(self.config.clone(), booted.boot.clone(), activity, Box::new(random), now);
        self.running = Some(Running { gateway, engine, store, handle, random: secrets, pending: Vec::new() });
        Ok(booted.boot)
    }

    fn engine(&self) -> Engine {
        let port =
            || PortConfig { mac: MAC, mtu: MTU, complete_checksums: false, address: None, address_v6: None };
        let mut config = EngineConfig::new(vec![self.outside.into()], port(), port());
        config.max_sas = 1 << 8;
        config.max_spis = 1 << 10;
        config.max_policies = 16;
        config.max_next_hops = 64;
        Engine::new(config)
    }

    /// `kill -9` of the whole gateway.
    pub(crate) fn kill(&mut self) {
        self.disk.kill();
        self.running = None;
    }

    /// The machine loses power.
    pub(crate) fn lose_power(&mut self, dice: &mut Dice) {
        self.disk.cut_power(dice);
        self.running = None;
    }
}

impl Running {
    /// Commits what the journal is to hold; `false` if the disk failed.
    pub(crate) fn commit(&mut self) -> bool {
        let writes = std::mem::take(&mut self.pending);
        self.store.commit(&writes).is_ok()
    }

    /// Writes the secret's file; `None` if the disk failed.
    pub(crate) fn write_secrets(
        &mut self,
        new: Option<(TokenMethod, u64)>,
        keep: Vec<Generation>,
    ) -> Option<Vec<Generation>> {
        write_secrets(&mut self.handle, &mut self.random, new, keep).ok()
    }

    /// Remembers used tickets, at once; `false` if the disk failed.
    pub(crate) fn remember(&mut self, used: &[UsedTicket], wall_clock: u64) -> bool {
        self.store.remember(used, wall_clock).is_ok()
    }

    /// Carries a command out; was it done?
    pub(crate) fn apply(&mut self, now: Time, command: Command) -> bool {
        self.engine.borrow_mut().apply(now, command).is_ok()
    }

    /// Hands an IPv4 packet to the dataplane.
    pub(crate) fn process(&mut self, now: Time, ingress: PortId, packet: &[u8]) -> Verdicts {
        let mut frame = [MAC, MAC].concat();
        frame.extend_from_slice(&[8, 0]);
        frame.extend_from_slice(packet);
        let mut burst = ArrayVec::new();
        burst.push(MemoryFrame::new(&frame));
        let mut verdicts = Verdicts::default();
        let mut engine = self.engine.borrow_mut();
        engine.process(now, ingress, &mut burst, &mut verdicts);
        for (port, destination, frame) in std::mem::take(&mut verdicts.unresolved) {
            let hop = NextHop { port, source_mac: MAC, destination_mac: MAC, mtu: MTU };
            // A full table gives the frame up below.
            let _ = engine.set_next_hop(destination, Some(hop));
            engine.forward(now, port, destination, frame, &mut verdicts);
        }
        verdicts
    }

    /// Lets the dataplane tell what it owes.
    pub(crate) fn sweep(&mut self, now: Time) -> Verdicts {
        let mut verdicts = Verdicts::default();
        self.engine.borrow_mut().sweep::<MemoryFrame>(now, &mut verdicts);
        verdicts
    }

    /// The dataplane's view of an SPI.
    pub(crate) fn spi_state(&self, spi: Spi) -> SpiState {
        self.engine.borrow().spi_state(spi)
    }
}

/// A packet from host to host with a number of its own.
pub(crate) fn inside_packet(source: Ipv4Addr, destination: Ipv4Addr, number: u64) -> Vec<u8> {
    let payload = [MARKER.as_slice(), &number.to_be_bytes()].concat();
    ipv4(source, destination, 17, &udp(40000, 50000, &payload))
}

/// The number of a packet that [`inside_packet`] made.
pub(crate) fn inside_number(packet: &[u8]) -> Option<u64> {
    let payload = packet.get(28..)?;
    let number = payload.strip_prefix(MARKER)?;
    Some(u64::from_be_bytes(number.try_into().ok()?))
}
