//! What the two processes say to each other: commands (control → dataplane) and events (dataplane → control).
//!
//! [`Command`] and [`Event`] are what the engine, the recovery logic and the simulation speak. On the rings they
//! travel as fixed-size records ([`CommandRecord`], [`EventRecord`]); a reader copies the record out once and
//! then decodes it, and decoding validates every field, since the other process is not trusted.
//! [`LAYOUT_HASH`] changes with every layout; both sides refuse an attachment whose hash differs.

#![forbid(unsafe_code)]

mod block;
mod record;
mod selector;

pub use block::Block;
pub use record::{COMMAND_SIZE, CommandRecord, DecodeError, EVENT_SIZE, EventRecord, LAYOUT_HASH};
pub use selector::{AddressRange, Selector, SelectorSet};

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use zeroize::Zeroize;

/// A Security Parameters Index of ESP (RFC 4303 section 2.1), in host order. 0 to 255 are reserved.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Spi(pub u32);

impl fmt::Debug for Spi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl fmt::Display for Spi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// Monotonic time in nanoseconds (CLOCK_MONOTONIC, common to all processes of a host). Always an argument.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Time(pub u64);

impl Time {
    /// This time plus a duration, saturating.
    pub fn after(self, duration: std::time::Duration) -> Time {
        Time(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// The duration since an earlier time; zero if `earlier` is later.
    pub fn since(self, earlier: Time) -> std::time::Duration {
        std::time::Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// What this gateway knows of an inbound SPI; everything not set is unknown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum SpiState {
    /// None of the others.
    Unknown = 0,
    /// Allocated in a handshake under way, not installed.
    Larval = 1,
    /// Installed.
    Current = 2,
    /// Removed in this incarnation.
    Retired = 3,
    /// In the journal, from an earlier incarnation.
    Former = 4,
}

impl SpiState {
    /// The state with this wire value.
    pub fn from_u8(value: u8) -> Option<SpiState> {
        Some(match value {
            0 => SpiState::Unknown,
            1 => SpiState::Larval,
            2 => SpiState::Current,
            3 => SpiState::Retired,
            4 => SpiState::Former,
            _ => return None,
        })
    }
}

/// An ESP transform with combined confidentiality and integrity, 16-octet ICV (RFC 4106, RFC 7634).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Suite {
    /// AES-GCM with a 128-bit key (RFC 4106).
    Aes128Gcm = 1,
    /// AES-GCM with a 256-bit key (RFC 4106).
    Aes256Gcm = 2,
    /// ChaCha20-Poly1305 (RFC 7634).
    ChaCha20Poly1305 = 3,
    /// AES-GCM with a 192-bit key (RFC 4106).
    Aes192Gcm = 4,
}

impl Suite {
    /// All of them.
    pub const ALL: [Suite; 4] =
        [Suite::Aes128Gcm, Suite::Aes192Gcm, Suite::Aes256Gcm, Suite::ChaCha20Poly1305];

    /// Octets of the key without its salt.
    pub const fn key_length(self) -> usize {
        match self {
            Suite::Aes128Gcm => 16,
            Suite::Aes192Gcm => 24,
            Suite::Aes256Gcm | Suite::ChaCha20Poly1305 => 32,
        }
    }

    /// Octets of the salt that follows the key in KEYMAT (RFC 4106 section 8.1, RFC 7634 section 2).
    pub const SALT_LENGTH: usize = 4;

    /// Octets that this suite takes from KEYMAT: key, then salt.
    pub const fn keymat_length(self) -> usize {
        self.key_length() + Self::SALT_LENGTH
    }

    fn from_u8(value: u8) -> Option<Suite> {
        Some(match value {
            1 => Suite::Aes128Gcm,
            2 => Suite::Aes256Gcm,
            3 => Suite::ChaCha20Poly1305,
            4 => Suite::Aes192Gcm,
            _ => return None,
        })
    }
}

/// What an SA carries (RFC 4301 section 4.1).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u8)]
pub enum Mode {
    /// Whole packets, behind outer headers.
    #[default]
    Tunnel = 1,
    /// What is behind the IP header of packets between the outer addresses.
    Transport = 2,
}

impl Mode {
    fn from_u8(value: u8) -> Option<Mode> {
        Some(match value {
            1 => Mode::Tunnel,
            2 => Mode::Transport,
            _ => return None,
        })
    }
}

/// KEYMAT of one SA: key, then salt. Zeroised on drop, redacted in Debug.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyMaterial {
    octets: [u8; 36],
    length: u8,
}

impl KeyMaterial {
    /// From key and salt together; `None` if longer than 36 octets.
    pub fn new(keymat: &[u8]) -> Option<KeyMaterial> {
        let mut octets = [0; 36];
        octets.get_mut(..keymat.len())?.copy_from_slice(keymat);
        Some(KeyMaterial { octets, length: keymat.len() as u8 })
    }

    /// Key and salt.
    pub fn as_bytes(&self) -> &[u8] {
        &self.octets[..usize::from(self.length)]
    }
}

impl Drop for KeyMaterial {
    fn drop(&mut self) {
        self.octets.zeroize();
    }
}

impl fmt::Debug for KeyMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyMaterial({} octets)", self.length)
    }
}

/// Which worker an SA belongs to: that one alone knows its keys and counts its packets. Both SAs of a pair belong to one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Resource {
    /// The worker; the remainder, if there are fewer.
    pub worker: u16,
    /// For packets that come to this worker, where the others have SAs too (RFC 9611 section 3); else for all packets.
    pub dedicated: bool,
}

impl Resource {
    /// The worker among so many.
    pub fn owner(self, workers: u16) -> u16 {
        self.worker % workers.max(1)
    }
}

/// How much an SA may carry (RFC 4301 section 4.4.2.1); 0 is no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Limits {
    /// Packets.
    pub packets: u64,
    /// Inner octets.
    pub bytes: u64,
}

/// What both directions of an SA have in common.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SaParameters {
    /// The SPI in the packet: ours for an inbound SA, the peer's for an outbound one.
    pub spi: Spi,
    /// Chosen by control, unique among the SAs that are installed (inbound and outbound together); the slot
    /// in the activity region. Below [`MAX_SAS`].
    pub index: u32,
    /// The policy that this SA serves.
    pub policy: u32,
    /// The worker that it belongs to.
    pub resource: Resource,
    /// What it carries.
    pub mode: Mode,
    /// The transform.
    pub suite: Suite,
    /// Key and salt.
    pub keymat: KeyMaterial,
    /// Our outer address, and the UDP port if encapsulated (4500 as a rule), else port 0.
    pub local: SocketAddr,
    /// The peer's outer address, and the UDP port if encapsulated, else port 0.
    pub remote: SocketAddr,
    /// ESP in UDP (RFC 3948)?
    pub encapsulated: bool,
    /// Selectors of this SA, seen from here: `local` is behind us in both directions (RFC 4301 section 4.4.1).
    pub selectors: SelectorSet,
    /// Sequence numbers of 64 bits (RFC 4303 section 2.2.1)? An inbound SA must then have a replay window.
    pub esn: bool,
    /// [`Event::Lifetime`] with `hard: false` when the first of these is reached.
    pub soft: Limits,
    /// The SA stops, with an event, when the first of these is reached, and at the end of its sequence numbers in any
    /// case.
    pub hard: Limits,
}

/// Descriptors of each AF_XDP ring, where nobody asks for others.
pub const RING_SIZE: u32 = 2048;
/// The least and the most of them; they are a power of two.
pub const RING_SIZES: RangeInclusive<u32> = 64..=16_384;

/// What stands in the environment of a program with an engine when it starts, so that what it allocates is in huge pages: with
/// very many SAs fewer of a packet's accesses miss the TLB. glibc's allocator looks there (glibc manual, "Memory
/// Allocation Tunables"), and has one heap for all threads then; others ignore it. The kernel gives huge pages unless
/// `/sys/kernel/mm/transparent_hugepage/enabled` says `never`.
pub const HUGE_PAGES: (&str, &str) = ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1");

/// SAs in one dataplane at most, inbound and outbound.
pub const MAX_SAS: u32 = 1 << 21;

/// The words (64 bits) of an SA's slot in the region that outlives the dataplane: one cache line. The dataplane alone writes.
pub mod sa_slot {
    /// Words of a slot.
    pub const WORDS: usize = 8;
    /// Of [`SaActivity`](super::SaActivity).
    pub const PACKETS: usize = 0;
    /// Of [`SaActivity`](super::SaActivity).
    pub const BYTES: usize = 1;
    /// Of [`SaActivity`](super::SaActivity).
    pub const LAST: usize = 2;
    /// Whose slot it is; 0 is nobody's.
    pub const IDENTITY: usize = 3;
    /// Outbound: every sequence number up to it may have been used. Inbound: the highest that was authenticated.
    pub const SEQUENCE: usize = 4;
    /// Blocks of 64 numbers in the replay window.
    pub const SIZE: usize = 5;
    /// The first block, of windows with [`BLOCKS`] at most; the others have a place of their own.
    pub const WINDOW: usize = 6;
    /// Blocks that a slot has room for.
    pub const BLOCKS: usize = 2;
    /// Blocks of the largest replay window.
    pub const MAX_BLOCKS: usize = 1024;
}

/// Virtual interfaces at most.
pub const MAX_INTERFACES: u16 = 256;

/// SPIs in one [`Command::SetFormer`] at most: what a record holds.
pub const MAX_FORMER_AT_ONCE: usize = 120;

/// What happens to packets that a policy matches (RFC 4301 section 4.4.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum PolicyAction {
    /// Into an SA of this policy; without one: held or dropped, and [`Event::Acquire`].
    Protect = 1,
    /// Forwarded in clear by the dataplane.
    Bypass = 2,
    /// Dropped.
    Discard = 3,
}

/// From control to every worker: an SA is installed by the one that it belongs to, of which the others take note. Commands
/// are idempotent; each is answered by [`Event::Acknowledged`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// A policy of the outbound direction. Lower `priority` first. Replaces the policy with the same id.
    SetPolicy {
        /// Chosen by control.
        id: u32,
        /// Order among policies.
        priority: u32,
        /// What it does.
        action: PolicyAction,
        /// What it matches.
        selectors: SelectorSet,
        /// Of a `Protect` policy: packets without an SA that wait for one, at most; the others are dropped. The worker
        /// has a bound of its own for all policies together.
        hold: u16,
    },
    /// A policy is of one virtual interface: what the host routes into it is held against such policies alone, and what
    /// comes on their SAs goes there. Before [`Command::SetPolicy`] and the policy's SAs, and for good.
    BindPolicy {
        /// The policy.
        id: u32,
        /// Which interface, from 1, at most [`MAX_INTERFACES`].
        interface: u16,
    },
    /// Removes a policy; its SAs stay until removed.
    RemovePolicy {
        /// The policy.
        id: u32,
    },
    /// Larval, former, retired or unknown. Never touches an SPI that is current, except `Retired`, which also
    /// removes its inbound SA.
    SetSpiState {
        /// Our SPI.
        spi: Spi,
        /// Its new state; `Current` is refused (it comes with `InstallInbound`).
        state: SpiState,
    },
    /// Makes many SPIs former, as [`Command::SetSpiState`] would each of them; for the start.
    SetFormer {
        /// Our SPIs, at most [`MAX_FORMER_AT_ONCE`].
        spis: Vec<Spi>,
    },
    /// Installs an inbound SA; its SPI becomes current.
    InstallInbound {
        /// The SA.
        sa: SaParameters,
        /// Packets in the replay window: 32 to 65,536, a power of two; 0 is off (RFC 4303 section 3.4.3).
        replay_window: u32,
        /// Send [`Event::FirstInbound`] when the first packet authenticates.
        report_first: bool,
    },
    /// Installs an outbound SA. The latest one that is installed for a policy and whose selectors match a packet
    /// takes it.
    InstallOutbound {
        /// The SA.
        sa: SaParameters,
    },
    /// Removes an outbound SA.
    RemoveOutbound {
        /// Its `index`.
        index: u32,
    },
    /// An SA's outer addresses changed (RFC 7296 section 2.23).
    Readdress {
        /// The SA's `index`.
        index: u32,
        /// New local address and port.
        local: SocketAddr,
        /// New remote address and port.
        remote: SocketAddr,
    },
    /// Control begins anew and knows which SAs there are, not which of them are here: all SAs, SPIs and policies are in
    /// doubt from here on, and in use as before. Whatever is set or installed again is in doubt no more.
    Doubt,
    /// An inbound SA, where it is here, is not in doubt, and control has no keys of it any more: it only receives for a while
    /// yet.
    ConfirmInbound {
        /// Its SPI.
        spi: Spi,
        /// Its `index`.
        index: u32,
    },
    /// What is still in doubt goes: SAs and policies are removed, SPIs unknown.
    Sweep,
}

/// What an ESP packet on an SPI that is not current looked like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SpiReport {
    /// The SPI.
    pub spi: Spi,
    /// The packet's sequence number.
    pub sequence: u32,
    /// Whence; port 0 if not encapsulated.
    pub source: SocketAddr,
    /// Whereto; port 0 if not encapsulated.
    pub destination: SocketAddr,
    /// When it was received.
    pub at: Time,
}

/// What selectors see of a packet from inside that wants an SA.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trigger {
    /// Its source.
    pub source: IpAddr,
    /// Its destination.
    pub destination: IpAddr,
    /// Its IP protocol.
    pub protocol: u8,
    /// Source and destination port, where it shows them.
    pub ports: Option<(u16, u16)>,
}

impl Trigger {
    /// The "very specific" selectors of RFC 7296 section 2.9: `local` and `remote`. An answer to ICMP is of another
    /// type, so none is named.
    pub fn selectors(&self) -> (Selector, Selector) {
        const ICMP: [u8; 2] = [1, 58];
        let ports = self.ports.filter(|_| !ICMP.contains(&self.protocol));
        let end = |address, port| Selector::of_packet(address, self.protocol, port);
        (end(self.source, ports.map(|p| p.0)), end(self.destination, ports.map(|p| p.1)))
    }
}

/// From a worker to control.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// XDP is attached and the sockets are bound: packets are received. Urgent.
    Ready,
    /// A command was carried out or refused. Urgent.
    Acknowledged {
        /// Its number.
        sequence: u64,
        /// `false`: refused (impossible values, tables full).
        done: bool,
    },
    /// ESP on a former SPI (swept from the SPI table, so coalesced, never lost). Urgent.
    FormerSpi(SpiReport),
    /// ESP on an unknown SPI. Noise: lossy, and the losses counted.
    UnknownSpi(SpiReport),
    /// A packet matched a PROTECT policy that has no SA. At most one a second per policy. Urgent.
    Acquire {
        /// The policy.
        policy: u32,
        /// The packet.
        packet: Trigger,
    },
    /// The first packet authenticated on an inbound SA that was installed with `report_first`. Urgent.
    FirstInbound {
        /// Our SPI.
        spi: Spi,
    },
    /// An SA came to a limit. Urgent.
    Lifetime {
        /// The SA's `index`.
        index: u32,
        /// The hard limit: the SA is no longer used.
        hard: bool,
    },
}

impl Event {
    /// Must this event arrive? (The urgent ring, else the noise ring.)
    pub fn is_urgent(&self) -> bool {
        !matches!(self, Event::UnknownSpi(_))
    }
}

/// What an SA has carried, as control sees it. Written by the dataplane only.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SaActivity {
    /// Packets that passed all checks (inbound) or were sent (outbound).
    pub packets: u64,
    /// Inner octets of these packets.
    pub bytes: u64,
    /// When the last of them passed; `Time(0)` if none.
    pub last: Time,
}
