//! What an engine is told at its start, and how it refuses.

use crate::SaRegion;
use spindle_aead::Provider;
use spindle_wire::esp;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// One side's port.
#[derive(Clone, Debug)]
pub struct PortConfig {
    /// Its MAC address; frames to other unicast addresses are still taken (XDP has already chosen).
    pub mac: [u8; 6],
    /// Largest layer-3 packet that leaves by it, in octets.
    pub mtu: u16,
    /// Complete partial TCP and UDP checksums of packets received here (veth, virtio, tun).
    pub complete_checksums: bool,
    /// The source of ICMP errors sent by it; without one none are sent.
    pub address: Option<Ipv4Addr>,
    /// The same for ICMPv6.
    pub address_v6: Option<Ipv6Addr>,
}

/// An engine's configuration. Sizes are limits; memory follows what is installed, but for the tables of SPIs and flows.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// All addresses of this host; ESP to one of them is ours.
    pub local_addresses: Vec<IpAddr>,
    /// The UDP port on which ESP comes in UDP (RFC 3948 section 2.1).
    pub nat_port: u16,
    /// The protected side.
    pub inside: PortConfig,
    /// The unprotected side.
    pub outside: PortConfig,
    /// The inside is a virtual interface (a TUN device): the host is its router, and no frame passes `inside`.
    pub inside_is_host: bool,
    /// Lower the MSS of SYNs, both ways, so that encapsulated segments fit the outer MTU.
    pub clamp_mss: bool,
    /// SAs at most, both directions together.
    pub max_sas: u32,
    /// SPIs with a state at most (larval, current, retired, former).
    pub max_spis: u32,
    /// Policies at most.
    pub max_policies: u32,
    /// Next hops at most.
    pub max_next_hops: u32,
    /// Flows of which it is remembered what was decided, at most (rounded up to a power of two): 64 octets each.
    pub max_flows: usize,
    /// Datagrams from outside that are put together from fragments at a time, at most.
    pub max_reassemblies: usize,
    /// Who encrypts.
    pub provider: Provider,
    /// Which worker's engine this is, from 0.
    pub worker: u16,
    /// Of how many.
    pub workers: u16,
    /// Where sequence numbers and replay windows outlive the engine; `None`: nowhere.
    pub region: Option<SaRegion>,
}

impl EngineConfig {
    /// Usual sizes: 131,072 SAs, 2^21 SPIs, 2^20 policies, 65,536 next hops, 65,536 flows, MSS clamped, 256
    /// datagrams in fragments.
    pub fn new(local_addresses: Vec<IpAddr>, inside: PortConfig, outside: PortConfig) -> EngineConfig {
        EngineConfig {
            local_addresses,
            nat_port: esp::UDP_PORT,
            inside,
            outside,
            inside_is_host: false,
            clamp_mss: true,
            max_sas: 1 << 17,
            max_spis: 1 << 21,
            max_policies: 1 << 20,
            max_next_hops: 1 << 16,
            max_flows: 1 << 16,
            max_reassemblies: 256,
            provider: Provider::default(),
            worker: 0,
            workers: 1,
            region: None,
        }
    }
}

/// Why a command was not carried out: our misuse, or a limit of the configuration. Nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// The named table is full.
    Full(&'static str),
    /// The named field has an impossible value.
    Impossible(&'static str),
    /// There is no such SA or policy.
    Missing,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Full(table) => write!(f, "refused: the table of {table} is full; raise its limit"),
            Refused::Impossible(field) => write!(f, "refused: control sent an impossible {field}"),
            Refused::Missing => f.write_str("refused: control named an SA or policy that does not exist"),
        }
    }
}

impl std::error::Error for Refused {}
