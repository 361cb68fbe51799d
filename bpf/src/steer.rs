//! Loads and attaches `steer.bpf.c`, and holds its maps: sockets, local addresses, SPI states, counts.
//!
//! A program stays attached as long as [`Steer`] lives: the attachment is a link's descriptor, so that even the
//! death of the process ends it. [`SpiStates`] is a handle of its own, for the worker.

pub use crate::in_clear::InClear;
pub use crate::object::{LoadError, Mode};

use crate::object::{Link, Loaded, Program};
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, XskMap};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/steer.bpf.o"));

/// SPI states that the map holds at most.
pub const MAX_SPIS: u32 = 1 << 21;
/// The usual UDP port of IKE and ESP behind NATs (RFC 3948 section 2.1).
pub const NAT_PORT: u16 = 4500;
/// Octets of a VLAN's tag.
const TAG: u32 = 4;
/// Decisions that the program has room to count.
const DECISIONS: usize = 16;

/// The gateway's two sides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// Unprotected: ESP.
    Outside = 0,
    /// Protected: cleartext.
    Inside = 1,
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Side::Outside => "outside",
            Side::Inside => "inside",
        }
    }
}

/// What the programs decide, with the names of their counters: outside, inside. The order is that of `enum decision`.
const NAMES: [(&str, &str); 8] = [
    ("xdp_outside_to_socket", "xdp_inside_to_socket"),
    ("xdp_outside_passed", "xdp_inside_passed"),
    ("xdp_outside_dropped_no_socket", "xdp_inside_dropped_no_socket"),
    ("xdp_outside_dropped_not_ours", "xdp_inside_dropped_not_ours"),
    ("xdp_outside_to_background", "xdp_inside_to_background"),
    ("xdp_outside_dropped_nat_keepalive", "xdp_inside_dropped_nat_keepalive"),
    ("xdp_outside_dropped_malformed", "xdp_inside_dropped_malformed"),
    ("xdp_outside_in_clear", "xdp_inside_in_clear"),
];

/// Decisions by name, and how often each was taken.
pub type Counts = Vec<(&'static str, u64)>;

/// Why packets cannot be steered.
#[derive(Debug, thiserror::Error)]
pub enum SteerError {
    /// The kernel refused the programs.
    #[error(
        "cannot load the XDP programs (start as root or with CAP_BPF, CAP_NET_ADMIN and CAP_NET_RAW): {0}"
    )]
    Load(#[from] LoadError),
    /// An interface refused a program.
    #[error("cannot attach XDP ({fix}): {error}")]
    Attach {
        /// What the operator can do.
        fix: &'static str,
        /// The kernel's word.
        error: io::Error,
    },
    /// A map refused.
    #[error("cannot use the XDP program's maps: {0}")]
    Map(#[from] MapError),
    /// A system call on a map failed.
    #[error("cannot use the XDP program's maps: {0}")]
    Io(#[from] io::Error),
}

/// The programs and what they are told.
pub struct Steer {
    object: Loaded,
    links: Vec<Link>,
    counts: PerCpuArray<MapData, [u64; DECISIONS]>,
    addresses: HashMap<MapData, u32, u8>,
    addresses_v6: HashMap<MapData, [u8; 16], u8>,
    vlans: Array<MapData, [u32; 2]>,
}

impl Steer {
    /// Loads both programs; attaches nothing. ESP in UDP comes to `nat_port`. At most `max_spis` SPIs have a state.
    pub fn load(local: &[IpAddr], nat_port: u16, max_spis: u32) -> Result<Steer, SteerError> {
        let mut object = Loaded::new(OBJECT, &[("spi_states", max_spis)])?;
        let mut ports = Array::try_from(object.take_map("nat_port").expect("in the object"))?;
        ports.set(0, u32::from(nat_port), 0)?;
        let counts = PerCpuArray::try_from(object.take_map("steer_counts").expect("in the object"))?;
        let addresses = HashMap::try_from(object.take_map("local_addresses").expect("in the object"))?;
        let addresses_v6 = HashMap::try_from(object.take_map("local_addresses6").expect("in the object"))?;
        let vlans = Array::try_from(object.take_map("vlans").expect("in the object"))?;
        let mut steer = Steer { object, links: Vec::new(), counts, addresses, addresses_v6, vlans };
        steer.set_local_addresses(local)?;
        Ok(steer)
    }

    /// Replaces this host's addresses.
    pub fn set_local_addresses(&mut self, local: &[IpAddr]) -> Result<(), SteerError> {
        let (mut four, mut six) = (Vec::new(), Vec::new());
        for address in local {
            match address {
                IpAddr::V4(address) => four.push(u32::from_ne_bytes(address.octets())),
                IpAddr::V6(address) => six.push(address.octets()),
            }
        }
        replace(&mut self.addresses, &four)?;
        replace(&mut self.addresses_v6, &six)
    }

    /// Of a side only frames with the tag of this VLAN are the gateway's (IEEE 802.1Q; `id` 1 to 4094); to be said before
    /// it is attached.
    pub fn set_vlan(&mut self, side: Side, id: u16) -> Result<(), SteerError> {
        Ok(self.vlans.set(side as u32, [u32::from(id), TAG], 0)?)
    }

    /// Attaches one side's program to an interface. The kernel may hold the link of a killed process for some
    /// milliseconds, so a busy interface is tried again for a second.
    pub fn attach(&mut self, side: Side, interface: u32, mode: Mode) -> Result<(), SteerError> {
        let started = Instant::now();
        loop {
            match self.program(side).attach(interface, mode) {
                Ok(link) => {
                    self.links.push(link);
                    return Ok(());
                }
                Err(error) => {
                    let errno = error.raw_os_error();
                    let busy = matches!(errno, Some(libc::EBUSY | libc::EEXIST));
                    if busy && started.elapsed() < Duration::from_secs(1) {
                        std::thread::sleep(Duration::from_millis(1));
                        continue;
                    }
                    let fix = match errno {
                        _ if busy => "another XDP program is attached: `ip link set dev NAME xdp off`",
                        Some(libc::EOPNOTSUPP) => "its driver has no native XDP: set xdp_mode = \"generic\"",
                        Some(libc::EPERM | libc::EACCES) => "root or CAP_NET_ADMIN is needed",
                        Some(libc::ERANGE) => "its MTU may be too large for XDP: at most 3,498",
                        _ => "does the interface exist, with an MTU of at most 3,498?",
                    };
                    return Err(SteerError::Attach { fix, error });
                }
            }
        }
    }

    fn program(&self, side: Side) -> &Program {
        self.object.program(side.name()).expect("in the object")
    }

    /// Gives a queue's packets to an AF_XDP socket.
    pub fn set_socket(&mut self, side: Side, queue: u32, socket: BorrowedFd<'_>) -> Result<(), SteerError> {
        let name = if side == Side::Outside { "outside_sockets" } else { "inside_sockets" };
        self.put_socket(name, queue, socket)
    }

    /// Gives a queue's packets on unknown SPIs, fragments of ESP and ICMP errors about ESP to an AF_XDP socket; without
    /// one they are dropped.
    pub fn set_background(&mut self, queue: u32, socket: BorrowedFd<'_>) -> Result<(), SteerError> {
        self.put_socket("background_sockets", queue, socket)
    }

    fn put_socket(&mut self, map: &str, queue: u32, socket: BorrowedFd<'_>) -> Result<(), SteerError> {
        let mut sockets = XskMap::try_from(self.object.map_mut(map).expect("in the object"))?;
        Ok(sockets.set(queue, socket.as_raw_fd(), 0)?)
    }

    /// The states of SPIs, once.
    pub fn take_spi_states(&mut self) -> Result<Option<SpiStates>, SteerError> {
        let Some(map) = self.object.take_map("spi_states") else { return Ok(None) };
        let fd = descriptor(&map)?;
        Ok(Some(SpiStates { map: HashMap::try_from(map)?, fd, keys: Vec::new(), values: Vec::new() }))
    }

    /// The addresses of BYPASS policies, once.
    pub fn take_in_clear(&mut self) -> Result<Option<InClear>, SteerError> {
        let Some(map) = self.object.take_map("in_clear") else { return Ok(None) };
        Ok(Some(InClear::new(LpmTrie::try_from(map)?)))
    }

    /// Every decision's name and how often it was taken.
    pub fn counts(&self) -> Result<Counts, SteerError> {
        let mut all = Vec::with_capacity(2 * NAMES.len());
        for side in [Side::Outside, Side::Inside] {
            let per_cpu = self.counts.get(&(side as u32), 0)?;
            for (decision, (outside, inside)) in NAMES.into_iter().enumerate() {
                let name = if side == Side::Outside { outside } else { inside };
                all.push((name, per_cpu.iter().map(|counts| counts[decision]).sum()));
            }
        }
        Ok(all)
    }

    /// Runs one side's program on a frame that came by queue 0, as tests and fuzzers do: its verdict, and which of
    /// [`Steer::counts`] grew by how much. The frame has at least 14 octets, and goes nowhere.
    pub fn test_run(&self, side: Side, frame: &[u8]) -> Result<(u32, Counts), SteerError> {
        let before = self.counts()?;
        let verdict = self.program(side).test_run(frame)?;
        let grown = before.iter().zip(self.counts()?).map(|(before, after)| (after.0, after.1 - before.1));
        Ok((verdict, grown.filter(|(_, by)| *by > 0).collect()))
    }
}

/// Makes the keys of a map these; at no time is one missing that stays.
fn replace<K: aya::Pod + PartialEq>(map: &mut HashMap<MapData, K, u8>, keys: &[K]) -> Result<(), SteerError> {
    for key in keys {
        map.insert(key, 1, 0)?;
    }
    let present: Vec<K> = map.keys().filter_map(Result::ok).collect();
    for key in present.into_iter().filter(|key| !keys.contains(key)) {
        map.remove(&key)?;
    }
    Ok(())
}

/// A descriptor of the map's own, for what aya has no call for.
fn descriptor(map: &Map) -> io::Result<OwnedFd> {
    match map {
        Map::HashMap(data) | Map::Array(data) => data.fd().as_fd().try_clone_to_owned(),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// The states of inbound SPIs as the program sees them. Changes are collected, then written together.
pub struct SpiStates {
    map: HashMap<MapData, u32, u8>,
    fd: OwnedFd,
    keys: Vec<u32>,
    values: Vec<u8>,
}

impl SpiStates {
    /// Notes an SPI's new state (a value of `SpiState`; 0, unknown, is kept as such until [`SpiStates::flush`]).
    pub fn set(&mut self, spi: u32, state: u8) {
        self.keys.push(spi.to_be());
        self.values.push(state);
    }

    /// Writes what was noted, with one system call; unknown SPIs are taken out.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.keys.is_empty() {
            return Ok(());
        }
        let result = self.update();
        for (key, value) in self.keys.iter().zip(&self.values) {
            // One that has got a state since it became unknown stays; one may be absent already.
            if *value == 0 && matches!(self.map.get(key, 0), Ok(0)) {
                let _ = self.map.remove(key);
            }
        }
        self.keys.clear();
        self.values.clear();
        result
    }

    fn update(&self) -> io::Result<()> {
        /// The `batch` member of `union bpf_attr`.
        #[repr(C)]
        #[derive(Default)]
        struct Batch {
            in_batch: u64,
            out_batch: u64,
            keys: u64,
            values: u64,
            count: u32,
            map_fd: u32,
            elem_flags: u64,
            flags: u64,
        }
        const BPF_MAP_UPDATE_BATCH: libc::c_int = 26;
        let mut batch = Batch {
            keys: self.keys.as_ptr() as u64,
            values: self.values.as_ptr() as u64,
            count: self.keys.len() as u32,
            map_fd: self.fd.as_raw_fd() as u32,
            ..Batch::default()
        };
        // SAFETY: the kernel reads `count` keys of four octets and values of one, which both vectors hold, and writes
        // only `count`.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_MAP_UPDATE_BATCH, &mut batch, size_of::<Batch>() as u32)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// The state that the program sees.
    pub fn state(&self, spi: u32) -> u8 {
        self.map.get(&spi.to_be(), 0).unwrap_or(0)
    }
}

#[cfg(test)]
#[path = "steer_tests.rs"]
mod tests;
