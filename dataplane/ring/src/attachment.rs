//! All that the supervisor, the dataplane and control share, and how a child process comes by it.

use crate::memory::{self, Mapping};
use crate::region::{COUNTER_OCTETS, SA_OCTETS, WINDOW_OCTETS};
use crate::ring::{self, Bell, Broken, Consumer, Producer};
use crate::sync::Ordering;
use crate::{ActivityReader, ActivityWriter, CounterReader, CounterWriter, Words};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::FdFlags;
use spindle_abi::{CommandRecord, EventRecord, LAYOUT_HASH};
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

/// "spindle" and the version of the header.
const MAGIC: u64 = u64::from_be_bytes(*b"spindle\x01");

/// The two children.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// Moves packets.
    Dataplane,
    /// Speaks IKE.
    Control,
}

/// What is shared. The order is that of `AttachmentFds::fds`; the value goes into the header.
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

/// How many there are.
pub(crate) const PARTS: usize = 8;

impl Part {
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
    fds: [Arc<OwnedFd>; PARTS],
    /// The regions, for control.
    read_only: [Arc<OwnedFd>; 3],
}

impl AttachmentFds {
    /// Fresh, empty rings and regions. `generation` counts the attachments of a supervisor.
    pub fn create(generation: u64) -> io::Result<AttachmentFds> {
        AttachmentFds::with(generation, |_| None)
    }

    /// The attachment after this one, when a child has died: fresh rings, and the regions that outlive it. Where both
    /// have died, the dataplane is the one to name.
    pub fn successor(&self, died: Side) -> io::Result<AttachmentFds> {
        let kept = |part: Part| part.outlives(died).then(|| self.fds[part as usize - 1].clone());
        AttachmentFds::with(self.generation + 1, kept)
    }

    fn with(generation: u64, kept: impl Fn(Part) -> Option<Arc<OwnedFd>>) -> io::Result<AttachmentFds> {
        let mut fds = Vec::with_capacity(Part::ALL.len());
        for part in Part::ALL {
            if let Some(kept) = kept(part) {
                fds.push(kept);
                continue;
            }
            fds.push(Arc::new(match part.octets() {
                Some(octets) => {
                    let fd = memory::create_memfd(&format!("spindle-{}", part.name()), octets)?;
                    write_header(&fd, part, octets, generation)?;
                    fd
                }
                None => eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            }));
        }
        let fds: [Arc<OwnedFd>; PARTS] = fds.try_into().expect("one for each part");
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
    pub(crate) fn of(&self, side: Side) -> [&Arc<OwnedFd>; PARTS] {
        Part::ALL.map(|part| self.fd(side, part))
    }

    fn fd(&self, side: Side, part: Part) -> &Arc<OwnedFd> {
        match (side, part) {
            (Side::Control, Part::Sas) => &self.read_only[0],
            (Side::Control, Part::Windows) => &self.read_only[1],
            (Side::Control, Part::Counters) => &self.read_only[2],
            _ => &self.fds[part as usize - 1],
        }
    }

    /// Lets the child that `command` will start inherit its side's descriptors, and tells it which they are.
    pub fn give<'a>(&self, side: Side, command: &'a mut Command) -> &'a mut Command {
        let fds = self.of(side).map(Arc::clone);
        let named: Vec<String> = Part::ALL
            .iter()
            .zip(&fds)
            .map(|(part, fd)| format!("{}:{}", part.name(), fd.as_raw_fd()))
            .collect();
        command.env(ENVIRONMENT, named.join(","));
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
        for part in Part::ALL {
            fds.push(self.fd(side, part).try_clone().map_err(|e| AttachError::Part(part.name(), e))?);
        }
        Ok(Inherited(fds.try_into().expect("one for each part")))
    }
}

/// Lets the child that `command` will start inherit these descriptors.
pub(crate) fn inherit<const N: usize>(command: &mut Command, fds: [Arc<OwnedFd>; N]) -> &mut Command {
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

fn write_header(fd: &OwnedFd, part: Part, octets: usize, generation: u64) -> io::Result<()> {
    let words = Mapping::new(fd, octets, true)?;
    for (word, value) in words.iter().zip([MAGIC, LAYOUT_HASH, generation, part as u64]) {
        word.store(value, Ordering::Relaxed);
    }
    Ok(())
}

/// One side's descriptors.
pub(crate) struct Inherited(pub(crate) [OwnedFd; PARTS]);

impl Inherited {
    fn from_environment() -> Result<Inherited, AttachError> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        let names = std::env::var(ENVIRONMENT).map_err(|_| AttachError::Environment)?;
        let numbers = parse(&names).ok_or(AttachError::Environment)?;
        if TAKEN.swap(true, Ordering::Relaxed) {
            return Err(AttachError::Twice);
        }
        let mut fds = Vec::new();
        for (part, number) in Part::ALL.iter().zip(numbers) {
            fds.push(inherited(number).map_err(|e| AttachError::Part(part.name(), e))?);
        }
        Ok(Inherited(fds.try_into().expect("one for each part")))
    }

    fn bell(&self, part: Part) -> Result<Bell, AttachError> {
        let fd = self.0[part as usize - 1].try_clone().map_err(|e| AttachError::Part(part.name(), e))?;
        Ok(Bell::new(fd))
    }

    /// Maps a part after checking its header.
    fn map(&self, part: Part, side: Side) -> Result<Mapping, AttachError> {
        let octets = part.octets().unwrap_or(0);
        let writable = side == Side::Dataplane || !part.dataplane_writes_alone();
        let mapping = Mapping::new(self.0[part as usize - 1].as_fd(), octets, writable)
            .map_err(|e| AttachError::Part(part.name(), e))?;
        let word = |i: usize| mapping[i].load(Ordering::Relaxed);
        if (word(0), word(1), word(3)) != (MAGIC, LAYOUT_HASH, part as u64) {
            return Err(AttachError::Layout(part.name()));
        }
        // A region may be of an earlier attachment.
        if !part.dataplane_writes_alone() && word(2) != self.generation()? {
            return Err(AttachError::Stale(part.name()));
        }
        Ok(mapping)
    }

    /// The number in the ring of commands, which the other parts must bear too.
    fn generation(&self) -> Result<u64, AttachError> {
        let part = Part::Commands;
        let mapping = Mapping::new(self.0[0].as_fd(), part.octets().unwrap_or(0), true)
            .map_err(|e| AttachError::Part(part.name(), e))?;
        Ok(mapping[2].load(Ordering::Relaxed))
    }

    fn ring(&self, part: Part, side: Side) -> Result<Arc<Mapping>, AttachError> {
        let mapping = self.map(part, side)?;
        mapping.lock(); // commands may hold keys, and a page fault costs a burst
        Ok(Arc::new(mapping))
    }
}

/// The descriptors' numbers in the order of `Part::ALL`, each once.
fn parse(names: &str) -> Option<[RawFd; PARTS]> {
    let mut numbers = [None; PARTS];
    for entry in names.split(',') {
        let (name, number) = entry.split_once(':')?;
        let at = Part::ALL.iter().position(|p| p.name() == name)?;
        let number: RawFd = number.parse().ok().filter(|n| *n > 2)?;
        if numbers.contains(&Some(number)) || numbers[at].replace(number).is_some() {
            return None;
        }
    }
    let mut all = [0; PARTS];
    for (to, number) in all.iter_mut().zip(numbers) {
        *to = number?;
    }
    Some(all)
}

/// The dataplane's side of an attachment.
pub struct DataplaneSide {
    /// Which attachment this is.
    pub generation: u64,
    /// From control.
    pub commands: Consumer<CommandRecord>,
    /// Events that must arrive.
    pub urgent: Producer<EventRecord>,
    /// Events that may be lost.
    pub noise: Producer<EventRecord>,
    /// What is hot of each SA, for the engine.
    pub sas: Words,
    /// Large replay windows, for the engine.
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
        let ring = |part| fds.ring(part, side);
        let sas = Arc::new(fds.map(Part::Sas, side)?);
        Ok(DataplaneSide {
            generation: fds.generation()?,
            commands: Consumer::new(ring(Part::Commands)?, COMMAND_SLOTS, Some(fds.bell(Part::CommandBell)?))
                .ok_or_else(stale(Part::Commands))?,
            urgent: Producer::new(ring(Part::Urgent)?, EVENT_SLOTS, Some(fds.bell(Part::EventBell)?))
                .ok_or_else(stale(Part::Urgent))?,
            noise: Producer::new(ring(Part::Noise)?, EVENT_SLOTS, Some(fds.bell(Part::EventBell)?))
                .ok_or_else(stale(Part::Noise))?,
            sas: Words(sas.clone()),
            windows: Words(Arc::new(fds.map(Part::Windows, side)?)),
            activity: ActivityWriter(sas),
            counters: CounterWriter(fds.map(Part::Counters, side)?),
        })
    }
}

/// Control's side of an attachment.
pub struct ControlSide {
    /// Which attachment this is.
    pub generation: u64,
    /// To the dataplane.
    pub commands: Producer<CommandRecord>,
    /// Events that must arrive.
    pub urgent: Consumer<EventRecord>,
    /// Events that may be lost.
    pub noise: Consumer<EventRecord>,
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
        let ring = |part| fds.ring(part, side);
        Ok(ControlSide {
            generation: fds.generation()?,
            commands: Producer::new(ring(Part::Commands)?, COMMAND_SLOTS, Some(fds.bell(Part::CommandBell)?))
                .ok_or_else(stale(Part::Commands))?,
            urgent: Consumer::new(ring(Part::Urgent)?, EVENT_SLOTS, None).ok_or_else(stale(Part::Urgent))?,
            noise: Consumer::new(ring(Part::Noise)?, EVENT_SLOTS, None).ok_or_else(stale(Part::Noise))?,
            activity: ActivityReader(fds.map(Part::Sas, side)?),
            counters: CounterReader(fds.map(Part::Counters, side)?),
            bell: fds.bell(Part::EventBell)?,
        })
    }

    /// What becomes readable when an event comes while control sleeps (see [`ControlSide::announce_sleep`]).
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Announces that control will sleep until its bell rings. `Ok(false)`: events are here, don't sleep.
    pub fn announce_sleep(&mut self) -> Result<bool, Broken> {
        // Both, not one after the other's refusal: an announcement that stays costs one needless ring at most.
        let urgent = self.urgent.announce_sleep()?;
        let noise = self.noise.announce_sleep()?;
        Ok(urgent && noise)
    }

    /// Takes the announcements back and silences the bell; before looking at the rings.
    pub fn awake(&mut self) {
        self.urgent.awake();
        self.noise.awake();
        self.bell.silence();
    }
}

#[cfg(test)]
#[path = "attachment_tests.rs"]
mod tests;
