//! One machine: its disk, and while it is up the gateway's dataplane and its control plane on it, and the memories that
//! outlive either.

use crate::disk::{Disk, Handle};
use crate::network::{ipv4, udp};
use crate::random::{Dice, GatewayRandom};
use spindle_abi::{Command, Event, KeyMaterial, SaActivity, Spi, SpiState, Time, sa_slot};
use spindle_engine::{
    ArrayVec, DropReason, Engine, EngineConfig, Frame, Memory, MemoryFrame, NextHop, Output, PortConfig,
    PortId, SaRegion,
};
use spindle_ike::api::{ActivityReader, Change, Key};
use spindle_recovery::api::{Boot, Config, Generation, JournalWrite, TokenMethod, UsedTicket};
use spindle_recovery::store::{SmallFile, Store, StoreError, write_secrets};
use spindle_recovery::{Gateway, Left, Records};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use zeroize::Zeroizing;

/// Stands in every inside packet, so that it would be seen in clear outside.
pub(crate) const MARKER: &[u8; 16] = b"!inside packets!";

/// The maker id of all members.
const CLUSTER: &[u8] = b"cluster";

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const MTU: u16 = 1500;
const MAX_SAS: u32 = 1 << 8;

/// A gateway's machine.
pub(crate) struct Machine {
    /// Outer address.
    pub(crate) outside: Ipv4Addr,
    pub(crate) disk: Disk,
    pub(crate) config: Config,
    /// Is it a member of the cluster?
    member: bool,
    /// Does the operator want a new secret at the next start?
    renew_secret: bool,
    /// The control process.
    pub(crate) running: Option<Running>,
    pub(crate) dataplane: Option<Dataplane>,
    /// Counts the starts of control; what was under way to an earlier one never arrives at a later one.
    pub(crate) life: u64,
    /// Counts the starts of both together.
    pub(crate) whole_life: u64,
    /// Counts the starts of the dataplane; what was under way to or from an earlier one is lost.
    pub(crate) dataplane_life: u64,
    /// Control dies before this many outputs more are carried out, and is away so long.
    pub(crate) fuse: Option<(u32, Duration)>,
    /// What outlives control.
    region: BTreeMap<Key, Zeroizing<Vec<u8>>>,
    /// The SAs' slots, which outlive the dataplane.
    slots: Memory,
    random: Dice,
}

/// The dataplane's process.
pub(crate) struct Dataplane {
    engine: Engine,
    slots: Memory,
    /// When it receives packets and commands.
    pub(crate) up_at: Time,
    /// Of the latest outbound SA on each SPI; peers draw the same ones again.
    keys: BTreeMap<Spi, KeyMaterial>,
}

/// What the control process's death ends.
pub(crate) struct Running {
    pub(crate) gateway: Gateway,
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

struct Activity(Memory);

impl ActivityReader for Activity {
    fn activity(&self, index: u32) -> SaActivity {
        let slot = slot(&self.0, index);
        let word = |at: usize| slot[at].load(Relaxed);
        SaActivity {
            packets: word(sa_slot::PACKETS),
            bytes: word(sa_slot::BYTES),
            last: Time(word(sa_slot::LAST)),
        }
    }
}

fn slot(slots: &Memory, index: u32) -> &[AtomicU64] {
    let start = index as usize * sa_slot::WORDS;
    &(**slots).as_ref()[start..start + sa_slot::WORDS]
}

fn no_slots() -> Memory {
    Arc::new((0..MAX_SAS as usize * sa_slot::WORDS).map(|_| AtomicU64::new(0)).collect::<Vec<_>>())
}

impl Machine {
    pub(crate) fn new(outside: Ipv4Addr, config: Config, random: Dice) -> Machine {
        Machine {
            outside,
            disk: Disk::default(),
            config,
            member: false,
            renew_secret: false,
            running: None,
            dataplane: None,
            life: 0,
            whole_life: 0,
            dataplane_life: 0,
            fuse: None,
            region: BTreeMap::new(),
            slots: no_slots(),
            random,
        }
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
        self.whole_life += 1;
        let handle = self.disk.attach();
        let (mut random, secrets) = self.draw();
        let mut store = Store::open(handle.clone())?;
        store.set_ticket_lifetime(self.config.ticket_lifetime);
        if self.member {
            store.share_secret();
        }
        let mut booted = store.boot(
            &mut handle.clone(),
            &mut random,
            (wall_clock, now),
            std::mem::take(&mut self.renew_secret),
            self.config.token_method,
        )?;
        if self.member {
            booted.boot.maker_id = CLUSTER.into();
        }
        self.slots = no_slots();
        let activity = Box::new(Activity(self.slots.clone()));
        let config = self.config.clone();
        let gateway = Gateway::keeping(config, booted.boot.clone(), activity, Box::new(random), now);
        self.region.clear();
        self.start_dataplane(now);
        self.running = Some(Running { gateway, store, handle, random: secrets, pending: Vec::new() });
        Ok(booted.boot)
    }

    /// Starts control alone, from what it left in memory. What was not adopted?
    pub(crate) fn resume(&mut self, now: Time, wall_clock: u64) -> Result<Result<(), String>, StoreError> {
        let activity = Box::new(Activity(self.slots.clone()));
        self.life += 1;
        let handle = self.disk.attach();
        let (random, secrets) = self.draw();
        let mut store = Store::open(handle.clone())?;
        store.set_ticket_lifetime(self.config.ticket_lifetime);
        let records = Records(self.region.clone().into_iter().collect());
        let Some(incarnation) = records.incarnation() else { return Ok(Err("nothing was kept".into())) };
        let Some(resumed) = store.resume(&mut handle.clone(), (wall_clock, now), incarnation)? else {
            return Ok(Err("the disk is of another incarnation than the memory".into()));
        };
        let left = Left { records, journal: resumed.current };
        let (config, boot) = (self.config.clone(), resumed.booted.boot);
        let gateway = Gateway::adopting(config, boot, left, activity, Box::new(random), now);
        let lost = gateway.stats().into_iter().find(|(name, _)| *name == "adoption-records-lost");
        self.running = Some(Running { gateway, store, handle, random: secrets, pending: Vec::new() });
        Ok(match lost {
            Some((_, 0)) => Ok(()),
            other => Err(format!("does not adopt all: {other:?}")),
        })
    }

    /// Randomness of a life, each from another part of the machine's stream; and for its secrets from yet another part.
    fn draw(&mut self) -> (GatewayRandom, GatewayRandom) {
        let random = GatewayRandom(self.random.clone());
        self.random = Dice::new(u64::from(self.random.number()), self.life);
        let secrets = GatewayRandom(Dice::new(u64::from(self.random.clone().number()), self.life));
        (random, secrets)
    }

    /// Writes what is to outlive control: all of it, or control died before.
    pub(crate) fn keep(&mut self, changes: Vec<Change>) {
        for Change { key, record } in changes {
            match record {
                Some(record) => self.region.insert(key, record),
                None => self.region.remove(&key),
            };
        }
    }

    /// One that knows nothing but what the slots hold. It is up at this time.
    pub(crate) fn start_dataplane(&mut self, up_at: Time) {
        self.dataplane_life += 1;
        let (engine, slots) = (self.engine(), self.slots.clone());
        self.dataplane = Some(Dataplane { engine, slots, up_at, keys: BTreeMap::new() });
    }

    /// The dataplane, if it is up.
    pub(crate) fn dataplane_at(&mut self, now: Time) -> Option<&mut Dataplane> {
        self.dataplane.as_mut().filter(|dataplane| dataplane.up_at <= now)
    }

    fn engine(&self) -> Engine {
        let port =
            || PortConfig { mac: MAC, mtu: MTU, complete_checksums: false, address: None, address_v6: None };
        let mut config = EngineConfig::new(vec![self.outside.into()], port(), port());
        config.max_sas = MAX_SAS;
        // Windows of 64 packets are in the slots.
        config.region = Some(SaRegion::new(self.slots.clone(), Arc::new(Vec::new())));
        config.max_spis = 1 << 10;
        config.max_policies = 16;
        (config.max_next_hops, config.max_flows) = (64, 1 << 10);
        Engine::new(config)
    }

    /// `kill -9` of the whole gateway.
    pub(crate) fn kill(&mut self) {
        self.kill_control();
        self.dataplane = None;
    }

    /// `kill -9` of control alone.
    pub(crate) fn kill_control(&mut self) {
        self.disk.kill();
        self.running = None;
        self.fuse = None;
    }

    /// While it is off its secret is lost, or all that is on its disk.
    pub(crate) fn lose_secret(&mut self, state: bool) {
        match state {
            true => self.disk = Disk::default(),
            false => self.disk.remove(SmallFile::Secret),
        }
        self.renew_secret = !state;
    }

    /// The machine loses power.
    pub(crate) fn lose_power(&mut self, dice: &mut Dice) {
        self.disk.cut_power(dice);
        self.running = None;
        self.dataplane = None;
        self.fuse = None;
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
}

impl Dataplane {
    /// Carries a command out; was it done?
    pub(crate) fn apply(&mut self, now: Time, command: Command) -> bool {
        if let Command::InstallOutbound { sa } = &command {
            self.keys.insert(sa.spi, sa.keymat.clone());
        }
        self.engine.apply(now, command).is_ok()
    }

    /// The key under which it sends on an SPI.
    pub(crate) fn key(&self, spi: Spi) -> Option<&KeyMaterial> {
        self.keys.get(&spi)
    }

    /// Hands an IPv4 packet to the dataplane.
    pub(crate) fn process(&mut self, now: Time, ingress: PortId, packet: &[u8]) -> Verdicts {
        let mut frame = [MAC, MAC].concat();
        frame.extend_from_slice(&[8, 0]);
        frame.extend_from_slice(packet);
        let mut burst = ArrayVec::new();
        burst.push(MemoryFrame::new(&frame));
        let mut verdicts = Verdicts::default();
        let engine = &mut self.engine;
        engine.process(now, ingress, &mut burst, &mut verdicts);
        for (port, destination, frame) in std::mem::take(&mut verdicts.unresolved) {
            let hop = NextHop { port, source_mac: MAC, destination_mac: MAC, mtu: MTU };
            // A full table gives the frame up below.
            let _ = engine.set_next_hop(destination, Some(hop));
            engine.forward(now, port, destination, frame, &mut verdicts);
        }
        self.note_activity();
        verdicts
    }

    /// Lets the dataplane tell what it owes.
    pub(crate) fn sweep(&mut self, now: Time) -> Verdicts {
        let mut verdicts = Verdicts::default();
        self.engine.sweep::<MemoryFrame>(now, &mut verdicts);
        self.note_activity();
        verdicts
    }

    fn note_activity(&mut self) {
        let slots = &self.slots;
        self.engine.changed_activity(usize::MAX, |index, activity| {
            let slot = slot(slots, index);
            slot[sa_slot::PACKETS].store(activity.packets, Relaxed);
            slot[sa_slot::BYTES].store(activity.bytes, Relaxed);
            slot[sa_slot::LAST].store(activity.last.0, Relaxed);
        });
    }

    /// The dataplane's view of an SPI.
    pub(crate) fn spi_state(&self, spi: Spi) -> SpiState {
        self.engine.spi_state(spi)
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
