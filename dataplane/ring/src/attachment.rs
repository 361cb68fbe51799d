//! All that the supervisor, the dataplane and control share, and how a child process comes by it.

use crate::memory::{self, Mapping};
use crate::region::{COUNTER_OCTETS, SA_OCTETS, WINDOW_OCTETS};
use crate::ring::{self, Bell, Broken, Consumer, Producer};
use crate::sync::Ordering;
use crate::{ActivityReader, ActivityWriter, CounterReader, CounterWriter, Words};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::FdFlags;
use spindle_abi::{CommandRecord, EventRecord, HUGE_PAGES, LAYOUT_HASH};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// The environment variable that names a child's descriptors, as `commands:5,urgent:6,…`.
pub const ENVIRONMENT: &str = "SPINDLE_ATTACHMENT";
/// Records in the ring of commands.
pub const COMMAND_SLOTS: u64 = 4096;
/// Records in each ring of events.
pub const EVENT_SLOTS: u64 = 16_384;
/// Workers of a dataplane at most: what one message can hand over.
pub const MAX_WORKERS: usize = 16;

/// "spindle" and the version of the header.
const MAGIC: u64 = u64::from_be_bytes(*b"spindle\x01");
/// The layout of what an attachment shares: the header's, and the records'.
pub const LAYOUT: [u64; 2] = [MAGIC, LAYOUT_HASH];

/// The two children.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// Moves packets.
    Dataplane,
    /// Speaks IKE.
    Control,
}

/// What is shared; the value goes into the header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Part {
    Commands = 1,
    Urgent,
    Noise,
    /// What is hot of each SA.
    Sas,
    /// Replay windows that are too large for that.
    Windows,
    Counters,
    CommandBell,
    EventBell,
}

/// How many there are with one worker.
const PARTS: usize = 8;
/// How many there are at most.
pub(crate) const MAX_PARTS: usize = PARTS + (MAX_WORKERS - 1) * Part::OF_WORKER.len();

/// A part, and whose it is; what all workers share is the first one's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place {
    part: Part,
    worker: usize,
}

impl Place {
    /// All, in the order of descriptors.
    fn all(workers: usize) -> impl Iterator<Item = Place> {
        let first = Part::ALL.into_iter().map(|part| Place { part, worker: 0 });
        let of = |worker| Part::OF_WORKER.into_iter().map(move |part| Place { part, worker });
        first.chain((1..workers).flat_map(of))
    }

    /// Its descriptor's place in that order.
    fn number(self) -> usize {
        match self.worker {
            0 => self.part as usize - 1,
            worker => {
                let own = Part::OF_WORKER.iter().position(|part| *part == self.part);
                PARTS + (worker - 1) * Part::OF_WORKER.len() + own.expect("of a worker")
            }
        }
    }

    fn name(self) -> String {
        match self.worker {
            0 => self.part.name().into(),
            worker => format!("{}-{worker}", self.part.name()),
        }
    }

    /// In the header, by which a part is known.
    fn tag(self) -> u64 {
        self.part as u64 | (self.worker as u64) << 8
    }
}

/// The workers of an attachment with so many parts.
fn workers_of(parts: usize) -> Option<usize> {
    let more = parts.checked_sub(PARTS)?;
    let whole = more % Part::OF_WORKER.len() == 0 && parts <= MAX_PARTS;
    whole.then_some(1 + more / Part::OF_WORKER.len())
}

impl Part {
    /// What each worker has of its own.
    const OF_WORKER: [Part; 4] = [Part::Commands, Part::Urgent, Part::Noise, Part::CommandBell];

    const ALL: [Part; PARTS] = [
        Part::Commands,
        Part::Urgent,
        Part::Noise,
        Part::Sas,
        Part::Windows,
        Part::Counters,
        Part::CommandBell,
        Part::EventBell,
    ];

    fn name(self) -> &'static str {
        match self {
            Part::Commands => "commands",
            Part::Urgent => "urgent",
            Part::Noise => "noise",
            Part::Sas => "sas",
            Part::Windows => "windows",
            Part::Counters => "counters",
            Part::CommandBell => "command-bell",
            Part::EventBell => "event-bell",
        }
    }

    /// Octets of its memfd; a bell has none.
    fn octets(self) -> Option<usize> {
        Some(match self {
            Part::Commands => ring::octets::<CommandRecord>(COMMAND_SLOTS),
            Part::Urgent | Part::Noise => ring::octets::<EventRecord>(EVENT_SLOTS),
            Part::Sas => SA_OCTETS,
            Part::Windows => WINDOW_OCTETS,
            Part::Counters => COUNTER_OCTETS,
            Part::CommandBell | Part::EventBell => return None,
        })
    }

    /// Control gets these by a descriptor that cannot write.
    fn dataplane_writes_alone(self) -> bool {
        matches!(self, Part::Sas | Part::Windows | Part::Counters)
    }

    /// A region outlives deaths; rings and bells are new at each attachment.
    fn outlives(self, died: Side) -> bool {
        match self {
            Part::Sas | Part::Windows => true,
            // A dataplane counts from its own start.
            Part::Counters => died == Side::Control,
            _ => false,
        }
    }
}

/// Why a process cannot attach: it was not started by the supervisor, or by one of another version.
#[derive(Debug)]
pub enum AttachError {
    /// The environment does not name all the descriptors.
    Environment,
    /// This process has attached before.
    Twice,
    /// The named part is not what it should be.
    Part(&'static str, io::Error),
    /// The named part was made by another version of the program.
    Layout(&'static str),
    /// The named part belongs to an attachment that was used, or to another one.
    Stale(&'static str),
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AttachError::Environment => {
                write!(f, "{ENVIRONMENT} does not name the shared memory: start this process by `spindle up`")
            }
            AttachError::Twice => f.write_str("this process has attached before"),
            AttachError::Part(part, e) => write!(f, "cannot attach the {part}: {e}"),
            AttachError::Layout(part) => {
                write!(f, "the {part} have another layout: install spindle's programs from one build")
            }
            AttachError::Stale(part) => write!(f, "the {part} are of another attachment"),
        }
    }
}

impl std::error::Error for AttachError {}

/// The descriptors of one attachment, as the supervisor holds them.
#[derive(Clone)]
pub struct AttachmentFds {
    generation: u64,
    /// In the order of `Place::all`.
    fds: Vec<Arc<OwnedFd>>,
    /// The regions, for control.
    read_only: [Arc<OwnedFd>; 3],
}

impl AttachmentFds {
    /// Fresh, empty rings and regions for one worker. `generation` counts the attachments of a supervisor.
    pub fn create(generation: u64) -> io::Result<AttachmentFds> {
        AttachmentFds::for_workers(generation, 1)
    }

    /// The same for so many workers, 1 to [`MAX_WORKERS`].
    pub fn for_workers(generation: u64, workers: usize) -> io::Result<AttachmentFds> {
        AttachmentFds::with(generation, workers.clamp(1, MAX_WORKERS), |_| None)
    }

    /// The attachment after this one, when a child has died: fresh rings, and the regions that outlive it. Where both
    /// have died, the dataplane is the one to name.
    pub fn successor(&self, died: Side) -> io::Result<AttachmentFds> {
        let kept = |place: Place| place.part.outlives(died).then(|| self.fds[place.number()].clone());
        let workers = workers_of(self.fds.len()).unwrap_or(1);
        AttachmentFds::with(self.generation + 1, workers, kept)
    }

    fn with(
        generation: u64,
        workers: usize,
        kept: impl Fn(Place) -> Option<Arc<OwnedFd>>,
    ) -> io::Result<AttachmentFds> {
        let mut fds = Vec::with_capacity(MAX_PARTS);
        for place in Place::all(workers) {
            if let Some(kept) = kept(place) {
                fds.push(kept);
                continue;
            }
            fds.push(Arc::new(match place.part.octets() {
                Some(octets) => {
                    let fd = memory::create_memfd(&format!("spindle-{}", place.name()), octets)?;
                    write_header(&fd, place, octets, generation)?;
                    fd
                }
                None => eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            }));
        }
        let read_only = [
            Arc::new(memory::read_only(&fds[Part::Sas as usize - 1])?),
            Arc::new(memory::read_only(&fds[Part::Windows as usize - 1])?),
            Arc::new(memory::read_only(&fds[Part::Counters as usize - 1])?),
        ];
        Ok(AttachmentFds { generation, fds, read_only })
    }

    /// The number given to [`AttachmentFds::create`].
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// One side's descriptors, in their order.
    pub(crate) fn of(&self, side: Side) -> Vec<&Arc<OwnedFd>> {
        self.places().map(|place| self.fd(side, place)).collect()
    }

    fn places(&self) -> impl Iterator<Item = Place> + use<> {
        Place::all(workers_of(self.fds.len()).unwrap_or(1))
    }

    fn fd(&self, side: Side, place: Place) -> &Arc<OwnedFd> {
        match (side, place.part) {
            (Side::Control, Part::Sas) => &self.read_only[0],
            (Side::Control, Part::Windows) => &self.read_only[1],
            (Side::Control, Part::Counters) => &self.read_only[2],
            _ => &self.fds[place.number()],
        }
    }

    /// Lets the child that `command` will start inherit its side's descriptors, and tells it which they are. The dataplane's
    /// tables will be in huge pages ([`HUGE_PAGES`]).
    pub fn give<'a>(&self, side: Side, command: &'a mut Command) -> &'a mut Command {
        let fds: Vec<_> = self.of(side).into_iter().cloned().collect();
        let named: Vec<String> = self
            .places()
            .zip(&fds)
            .map(|(place, fd)| format!("{}:{}", place.name(), fd.as_raw_fd()))
            .collect();
        command.env(ENVIRONMENT, named.join(","));
        if side == Side::Dataplane {
            command.envs([HUGE_PAGES]);
        }
        inherit(command, fds)
    }

    /// The dataplane's side in this process (tests, simulations).
    pub fn dataplane_side(&self) -> Result<DataplaneSide, AttachError> {
        DataplaneSide::open(&self.duplicate(Side::Dataplane)?)
    }

    /// Control's side in this process (tests, simulations).
    pub fn control_side(&self) -> Result<ControlSide, AttachError> {
        ControlSide::open(&self.duplicate(Side::Control)?)
    }

    fn duplicate(&self, side: Side) -> Result<Inherited, AttachError> {
        let mut fds = Vec::new();
        for place in self.places() {
            let fd = self.fd(side, place).try_clone();
            fds.push(fd.map_err(|e| AttachError::Part(place.part.name(), e))?);
        }
        Ok(Inherited(fds))
    }
}

/// Lets the child that `command` will start inherit these descriptors.
pub(crate) fn inherit(command: &mut Command, fds: Vec<Arc<OwnedFd>>) -> &mut Command {
    // SAFETY: between fork and exec the closure only calls fcntl, which is async-signal-safe, on descriptors that it
    // keeps open; it allocates nothing.
    unsafe {
        command.pre_exec(move || {
            for fd in &fds {
                rustix::io::fcntl_setfd(fd, FdFlags::empty())?;
            }
            Ok(())
        })
    }
}

/// Takes a descriptor that the supervisor left to this process under this number. Call it once for each number.
pub(crate) fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: only looked at to learn whether the number is an open descriptor at all.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC)?;
    // SAFETY: open, and left to this process by the supervisor for this purpose alone; the caller sees to it that it gets
    // one owner.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn write_header(fd: &OwnedFd, place: Place, octets: usize, generation: u64) -> io::Result<()> {
    let words = Mapping::new(fd, octets, true)?;
    for (word, value) in words.iter().zip([MAGIC, LAYOUT_HASH, generation, place.tag()]) {
        word.store(value, Ordering::Relaxed);
    }
    Ok(())
}

/// One side's descriptors, in the order of `Place::all`.
pub(crate) struct Inherited(Vec<OwnedFd>);

impl Inherited {
    /// `None`: no attachment has so many.
    pub(crate) fn new(fds: Vec<OwnedFd>) -> Option<Inherited> {
        workers_of(fds.len()).map(|_| Inherited(fds))
    }

    fn workers(&self) -> usize {
        workers_of(self.0.len()).unwrap_or(1)
    }

    fn from_environment() -> Result<Inherited, AttachError> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        let names = std::env::var(ENVIRONMENT).map_err(|_| AttachError::Environment)?;
        let numbers = parse(&names).ok_or(AttachError::Environment)?;
        if TAKEN.swap(true, Ordering::Relaxed) {
            return Err(AttachError::Twice);
        }
        let mut fds = Vec::new();
        let workers = workers_of(numbers.len()).ok_or(AttachError::Environment)?;
        for (place, number) in Place::all(workers).zip(numbers) {
            fds.push(inherited(number).map_err(|e| AttachError::Part(place.part.name(), e))?);
        }
        Ok(Inherited(fds))
    }

    fn bell(&self, place: Place) -> Result<Bell, AttachError> {
        let fd = self.0[place.number()].try_clone().map_err(|e| AttachError::Part(place.part.name(), e))?;
        Ok(Bell::new(fd))
    }

    /// What all workers share.
    fn common(&self, part: Part, side: Side) -> Result<Mapping, AttachError> {
        self.map(Place { part, worker: 0 }, side)
    }

    /// Maps a part after checking its header.
    fn map(&self, place: Place, side: Side) -> Result<Mapping, AttachError> {
        let part = place.part;
        let octets = part.octets().unwrap_or(0);
        let writable = side == Side::Dataplane || !part.dataplane_writes_alone();
        let mapping = Mapping::new(self.0[place.number()].as_fd(), octets, writable)
            .map_err(|e| AttachError::Part(part.name(), e))?;
        let word = |i: usize| mapping[i].load(Ordering::Relaxed);
        if (word(0), word(1), word(3)) != (MAGIC, LAYOUT_HASH, place.tag()) {
            return Err(AttachError::Layout(part.name()));
        }
        // A region may be of an earlier attachment.
        if !part.dataplane_writes_alone() && word(2) != self.generation()? {
            return Err(AttachError::Stale(part.name()));
        }
        Ok(mapping)
    }

    /// The number in the first ring of commands, which the other parts must bear too.
    fn generation(&self) -> Result<u64, AttachError> {
        let part = Part::Commands;
        let mapping = Mapping::new(self.0[0].as_fd(), part.octets().unwrap_or(0), true)
            .map_err(|e| AttachError::Part(part.name(), e))?;
        Ok(mapping[2].load(Ordering::Relaxed))
    }

    fn ring(&self, place: Place, side: Side) -> Result<Arc<Mapping>, AttachError> {
        let mapping = self.map(place, side)?;
        mapping.lock(); // commands may hold keys, and a page fault costs a burst
        Ok(Arc::new(mapping))
    }
}

/// The descriptors' numbers in the order of `Place::all`, each once.
fn parse(names: &str) -> Option<Vec<RawFd>> {
    let entries: Vec<&str> = names.split(',').collect();
    let places: Vec<Place> = Place::all(workers_of(entries.len())?).collect();
    let mut numbers = vec![None; places.len()];
    for entry in entries {
        let (name, number) = entry.split_once(':')?;
        let at = places.iter().position(|place| place.name() == name)?;
        let number: RawFd = number.parse().ok().filter(|n| *n > 2)?;
        if numbers.contains(&Some(number)) || numbers[at].replace(number).is_some() {
            return None;
        }
    }
    numbers.into_iter().collect()
}

/// A worker's ends of its rings.
pub struct WorkerRings {
    /// From control.
    pub commands: Consumer<CommandRecord>,
    /// Events that must arrive.
    pub urgent: Producer<EventRecord>,
    /// Events that may be lost.
    pub noise: Producer<EventRecord>,
}

/// Control's ends of a worker's rings.
pub struct ControlRings {
    /// To the worker.
    pub commands: Producer<CommandRecord>,
    /// Events that must arrive.
    pub urgent: Consumer<EventRecord>,
    /// Events that may be lost.
    pub noise: Consumer<EventRecord>,
}

/// The dataplane's side of an attachment.
pub struct DataplaneSide {
    /// Which attachment this is.
    pub generation: u64,
    /// Each worker's rings.
    pub workers: Vec<WorkerRings>,
    /// What is hot of each SA, for the engines.
    pub sas: Words,
    /// Large replay windows, for the engines.
    pub windows: Words,
    /// What each SA carried, for control.
    pub activity: ActivityWriter,
    /// All counters.
    pub counters: CounterWriter,
}

impl DataplaneSide {
    /// Takes the descriptors that the supervisor left to this process; once.
    pub fn from_environment() -> Result<DataplaneSide, AttachError> {
        DataplaneSide::open(&Inherited::from_environment()?)
    }

    pub(crate) fn open(fds: &Inherited) -> Result<DataplaneSide, AttachError> {
        let side = Side::Dataplane;
        let stale = |part: Part| move || AttachError::Stale(part.name());
        let rings = |worker| {
            let ring = |part| fds.ring(Place { part, worker }, side);
            let command_bell = fds.bell(Place { part: Part::CommandBell, worker })?;
            let event_bell = || fds.bell(Place { part: Part::EventBell, worker: 0 });
            Ok(WorkerRings {
                commands: Consumer::new(ring(Part::Commands)?, COMMAND_SLOTS, Some(command_bell))
                    .ok_or_else(stale(Part::Commands))?,
                urgent: Producer::new(ring(Part::Urgent)?, EVENT_SLOTS, Some(event_bell()?))
                    .ok_or_else(stale(Part::Urgent))?,
                noise: Producer::new(ring(Part::Noise)?, EVENT_SLOTS, Some(event_bell()?))
                    .ok_or_else(stale(Part::Noise))?,
            })
        };
        let sas = Arc::new(fds.common(Part::Sas, side)?);
        Ok(DataplaneSide {
            generation: fds.generation()?,
            workers: (0..fds.workers()).map(rings).collect::<Result<_, AttachError>>()?,
            sas: Words(sas.clone()),
            windows: Words(Arc::new(fds.common(Part::Windows, side)?)),
            activity: ActivityWriter(sas),
            counters: CounterWriter(fds.common(Part::Counters, side)?),
        })
    }
}

/// Control's side of an attachment.
pub struct ControlSide {
    /// Which attachment this is.
    pub generation: u64,
    /// Each worker's rings.
    pub workers: Vec<ControlRings>,
    /// What each SA carried.
    pub activity: ActivityReader,
    /// All the dataplane's counters.
    pub counters: CounterReader,
    bell: Bell,
}

impl ControlSide {
    /// Takes the descriptors that the supervisor left to this process; once.
    pub fn from_environment() -> Result<ControlSide, AttachError> {
        ControlSide::open(&Inherited::from_environment()?)
    }

    pub(crate) fn open(fds: &Inherited) -> Result<ControlSide, AttachError> {
        let side = Side::Control;
        let stale = |part: Part| move || AttachError::Stale(part.name());
        let rings = |worker| {
            let ring = |part| fds.ring(Place { part, worker }, side);
            let bell = fds.bell(Place { part: Part::CommandBell, worker })?;
            Ok(ControlRings {
                commands: Producer::new(ring(Part::Commands)?, COMMAND_SLOTS, Some(bell))
                    .ok_or_else(stale(Part::Commands))?,
                urgent: Consumer::new(ring(Part::Urgent)?, EVENT_SLOTS, None)
                    .ok_or_else(stale(Part::Urgent))?,
                noise: Consumer::new(ring(Part::Noise)?, EVENT_SLOTS, None).ok_or_else(stale(Part::Noise))?,
            })
        };
        Ok(ControlSide {
            generation: fds.generation()?,
            workers: (0..fds.workers()).map(rings).collect::<Result<_, AttachError>>()?,
            activity: ActivityReader(fds.common(Part::Sas, side)?),
            counters: CounterReader(fds.common(Part::Counters, side)?),
            bell: fds.bell(Place { part: Part::EventBell, worker: 0 })?,
        })
    }

    /// What becomes readable when an event comes while control sleeps (see [`ControlSide::announce_sleep`]).
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Announces that control will sleep until its bell rings. `Ok(false)`: events are here, don't sleep.
    pub fn announce_sleep(&mut self) -> Result<bool, Broken> {
        // All, not one after the other's refusal: an announcement that stays costs one needless ring at most.
        let mut quiet = true;
        for rings in &mut self.workers {
            quiet &= rings.urgent.announce_sleep()?;
            quiet &= rings.noise.announce_sleep()?;
        }
        Ok(quiet)
    }

    /// Takes the announcements back and silences the bell; before looking at the rings.
    pub fn awake(&mut self) {
        for rings in &mut self.workers {
            rings.urgent.awake();
            rings.noise.awake();
        }
        self.bell.silence();
    }
}

#[cfg(test)]
#[path = "attachment_tests.rs"]
mod tests;
