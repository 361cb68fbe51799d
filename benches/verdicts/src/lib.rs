//! Two programs look at every frame from the wire: XDP's, which chooses who takes it, and the engine, which reads it
//! again. Here a frame goes through both, and what they say is held against each other: tests do so with the fixtures
//! and with frames near them, a fuzzer with any octets.
//!
//! frame → `Steer::test_run` → its decision ┐
//! frame → `Engine::process` → its counter  ┴→ [`Opinions`] → [`Opinions::agree`]
//!
//! Where the sides are VLANs, the engine sees a frame as a port gives it, without the tag.

pub mod fixtures;

use fixtures::{
    FORMER, HOST, INSIDE, INSIDE_VLAN, LARVAL, OUTSIDE_VLAN, PEER, PEER_NETWORK, PORT, RETIRED, US, US6,
};
use rustix::net::{AddressFamily, SocketType};
use spindle_abi::{Command, Event, PolicyAction, Selector, SelectorSet, Spi, SpiState, Time};
use spindle_bpf::steer::{InClear, Steer, SteerError};
use spindle_engine::{
    ArrayVec, BURST, Counters, DropReason, Engine, EngineConfig, MemoryFrame, Output, PortConfig, PortId,
};
use spindle_port::Vlan;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

pub use spindle_bpf::steer::Side;

/// Octets of a frame that can be judged: the kernel runs a program on no shorter ones, the engine's frames are no longer.
pub const LENGTHS: std::ops::RangeInclusive<usize> = 14..=2048;

/// What both are told of SPIs.
const STATES: [(Spi, SpiState); 3] =
    [(LARVAL, SpiState::Larval), (RETIRED, SpiState::Retired), (FORMER, SpiState::Former)];

/// A gateway's XDP programs and its engine, told the same: two addresses, an SPI of each state without an SA, and one
/// BYPASS policy.
pub struct Judge {
    steer: Steer,
    /// By [`Side`].
    vlans: [Option<Vlan>; 2],
    _in_clear: InClear,
    _sockets: Vec<OwnedFd>,
}

/// What both said of one frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Opinions {
    /// Whence it came.
    pub side: Side,
    /// To a group by its MAC address? The kernel, which XDP gives these, does not forward them (RFC 1812 section 5.3.4).
    pub is_group: bool,
    /// XDP's decision, as its counter is named.
    pub steer: &'static str,
    /// How the engine's way with it ended, as its counters are named: why it was dropped, `bypassed`, `delivered_outside`.
    pub engine: &'static str,
}

impl Judge {
    /// Loads the programs (root is needed); attaches nothing.
    pub fn new() -> Result<Judge, SteerError> {
        let mut steer = Steer::load(&[US.into(), US6.into(), INSIDE.into()], PORT, 64)?;
        let mut states = steer.take_spi_states()?.expect("not taken before");
        for (spi, state) in STATES {
            states.set(spi.0, state as u8);
        }
        states.flush()?;
        let mut in_clear = steer.take_in_clear()?.expect("not taken before");
        in_clear.replace([(HOST.into(), 32)].into_iter(), [PEER_NETWORK].into_iter())?;
        let mut sockets = Vec::new();
        for _ in 0..3 {
            let socket = rustix::net::socket(AddressFamily::XDP, SocketType::RAW, None);
            sockets.push(socket.map_err(std::io::Error::from)?);
        }
        steer.set_socket(Side::Outside, 0, sockets[0].as_fd())?;
        steer.set_background(0, sockets[1].as_fd())?;
        steer.set_socket(Side::Inside, 0, sockets[2].as_fd())?;
        Ok(Judge { steer, vlans: [None; 2], _in_clear: in_clear, _sockets: sockets })
    }

    /// The same where both sides are VLANs.
    pub fn of_vlans() -> Result<Judge, SteerError> {
        let mut judge = Judge::new()?;
        for (side, id) in [(Side::Outside, OUTSIDE_VLAN), (Side::Inside, INSIDE_VLAN)] {
            judge.steer.set_vlan(side, id)?;
            judge.vlans[side as usize] = Vlan::new(id);
        }
        Ok(judge)
    }

    /// Asks both of them about a frame of [`LENGTHS`].
    pub fn ask(&self, side: Side, frame: &[u8]) -> Result<Opinions, SteerError> {
        let (_, decisions) = self.steer.test_run(side, frame)?;
        let steer = decisions.first().map_or("none", |(name, _)| name);
        let mut received = MemoryFrame::new(frame);
        if let Some(vlan) = self.vlans[side as usize] {
            vlan.strip(&mut received);
        }
        let engine = engines(side, received);
        Ok(Opinions { side, is_group: frame[0] & 1 == 1, steer, engine })
    }
}

impl Opinions {
    /// May the engine have ended so with a frame of which XDP decided so? It may be stricter, for it alone looks at
    /// lengths and checksums; but what it takes must reach it, and what is the host's must not.
    pub fn agree(&self) -> bool {
        let is_any = |names: &[&str]| names.contains(&self.engine);
        let is_malformed = is_any(&["malformed_ip", "malformed_esp", "not_unicast"]);
        let is_host = is_any(&["for_host", "not_ip"]);
        let is_fragment = is_any(&["fragment_kept", "fragment_invalid", "fragment_too_long"]);
        let is_icmp = is_any(&["icmp_about_esp", "icmp_unknown_sa"]);
        match self.steer {
            "xdp_outside_to_socket" => is_malformed || is_any(&["larval_spi", "retired_spi", "former_spi"]),
            "xdp_outside_to_background" => is_malformed || is_fragment || is_icmp || is_any(&["unknown_spi"]),
            // Of UDP in fragments the engine takes those that it is given.
            "xdp_outside_passed" | "xdp_inside_passed" if self.is_group => true,
            "xdp_outside_passed" => is_malformed || is_host || is_fragment || is_icmp,
            "xdp_outside_dropped_nat_keepalive" => is_malformed || is_any(&["nat_keepalive"]),
            "xdp_outside_dropped_malformed" => is_malformed,
            "xdp_outside_dropped_not_ours" => {
                is_malformed || is_any(&["cleartext_from_outside", "no_policy"])
            }
            "xdp_outside_in_clear" => {
                is_malformed || is_any(&["bypassed", "cleartext_from_outside", "no_policy", "ttl_expired"])
            }
            "xdp_inside_passed" => is_malformed || is_host,
            "xdp_inside_dropped_malformed" => is_malformed,
            "xdp_inside_to_socket" => !is_host,
            _ => false,
        }
    }
}

/// What an engine says of a frame, the first that it sees.
fn engines(side: Side, frame: MemoryFrame) -> &'static str {
    let mut engine = engine();
    let mut burst: ArrayVec<MemoryFrame, BURST> = ArrayVec::new();
    burst.push(frame);
    let ingress = if side == Side::Outside { PortId::Outside } else { PortId::Inside };
    let mut end = End(None);
    engine.process(Time(1), ingress, &mut burst, &mut end);
    assert!(engine.counters().check().is_ok(), "{:?}", engine.counters());
    end.0.unwrap_or_else(|| went_on(engine.counters()))
}

fn went_on(counters: &Counters) -> &'static str {
    let ways = ["bypassed", "encapsulated", "decapsulated"];
    counters
        .iter()
        .find(|(name, count)| *count > 0 && ways.contains(name))
        .map_or("nothing", |(name, _)| name)
}

fn engine() -> Engine {
    let port = |address: Option<std::net::Ipv4Addr>| PortConfig {
        mac: [2; 6],
        mtu: 1500,
        complete_checksums: false,
        address,
        address_v6: None,
    };
    let locals = vec![US.into(), US6.into(), INSIDE.into()];
    let mut config = EngineConfig::new(locals, port(Some(INSIDE)), port(Some(US)));
    (config.nat_port, config.max_spis, config.max_sas) = (PORT, 8, 2);
    (config.max_policies, config.max_next_hops, config.max_reassemblies) = (2, 2, 1);
    let mut engine = Engine::new(config);
    for (spi, state) in STATES {
        engine.apply(Time(1), Command::SetSpiState { spi, state }).expect("there is room");
    }
    let selectors = SelectorSet {
        local: vec![Selector::addresses(HOST.into(), HOST.into())],
        remote: vec![Selector::addresses(PEER.into(), PEER.into())],
    };
    let policy = Command::SetPolicy { id: 1, priority: 1, action: PolicyAction::Bypass, selectors, hold: 0 };
    engine.apply(Time(1), policy).expect("there is room");
    engine
}

/// The first frame's end; `None` if it went on.
struct End(Option<&'static str>);

impl Output<MemoryFrame> for End {
    fn transmit(&mut self, _: PortId, _: MemoryFrame) {}
    fn to_host(&mut self, _: u16, _: MemoryFrame) {}
    fn discard(&mut self, _: MemoryFrame, reason: DropReason) {
        self.0 = Some(reason.name());
    }
    fn unresolved(&mut self, _: PortId, _: IpAddr, _: MemoryFrame) {}
    fn event(&mut self, _: Event) -> bool {
        true
    }
    fn allocate(&mut self, _: usize) -> Option<MemoryFrame> {
        None
    }
}
