//! The dataplane without I/O: a burst of frames in, verdicts out. No clock, no lock, no allocation per packet.
//!
//! [`Engine::process`] takes frames from one side. From *outside* (`inbound`): classify → SPI state → SA →
//! decapsulate in place → the inner packet must match the SA's selectors → [`Output::transmit`] to the inside.
//! From *inside* (`outbound`), and from the host by virtual interfaces (`interfaces`): ordered policies → the latest SA of the policy → encapsulate in place → outside.
//! An SPI that is not current is told to control: a former one by a pending mark that [`Engine::sweep`] turns
//! into an urgent event, an unknown one at once on the lossy ring. Here nothing is ever answered on that account.
//! What is for an SA of another worker's goes to that one ([`Output::hand_over`]), unchanged, and is judged there
//! ([`Engine::take_over`]).
//!
//! Control changes tables through [`Engine::apply`]; the process fills in next hops from the kernel. Every frame
//! gets exactly one verdict and one count ([`Counters::check`]). What no policy lets by is dropped, and cleartext
//! leaves on the outside by a BYPASS policy alone.

#![forbid(unsafe_code)]

mod arrivals;
mod buckets;
mod config;
mod counters;
mod doubts;
mod flows;
mod frame;
pub mod fuzz;
mod hot;
mod icmp_errors;
mod inbound;
mod index;
mod interfaces;
pub mod lookups;
mod next_hops;
mod others;
mod outbound;
mod outer_fragments;
mod passing;
mod path_mtu;
mod pieces;
mod policies;
mod reassembly;
mod sas;
mod selectors;
mod spi_table;

pub use arrayvec::ArrayVec;
pub use config::{EngineConfig, PortConfig, Refused};
pub use counters::{Counter, Counters, DropReason, Imbalance};
pub use frame::{BURST, Frame, MemoryFrame, Origin, Output, PortId, fetch_headers};
pub use hot::{Memory, SaRegion};

use doubts::Doubts;
use flows::Flows;
use hot::Direction;
use icmp_errors::IcmpBudget;
use interfaces::Interfaces;
use next_hops::NextHops;
use others::Others;
use passing::Passing;
use path_mtu::PathMtus;
use policies::{Policies, Rank};
use reassembly::Reassembly;
use sas::{Holder, Inbound, Limit, Outbound, Owed, Sas, Usage};
use selectors::Selectors;
use spi_table::SpiTable;
use spindle_abi::{Command, Event, Mode, SaActivity, SaParameters, SelectorSet, Spi, SpiState, Time};
use spindle_aead::Provider;
use spindle_esp::{Encapsulation, InboundSa, OutboundSa, Unusable, inner_limit};
use spindle_wire::{ethernet, ip};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Octets of the Ethernet header.
const ETHERNET: usize = ethernet::HEADER_LENGTH;

/// Urgent events that one sweep looks at.
const SWEEP: usize = 1024;
/// Reports on former SPIs in one sweep, of all workers together: some times as many as control can make handshakes of. Very
/// many peers that wait for their turn would take its time with more.
const REPORTS: u64 = 64;

/// How to reach a destination: from the kernel's routes and neighbours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NextHop {
    /// The port that leads there.
    pub port: PortId,
    /// Source of the Ethernet header.
    pub source_mac: [u8; 6],
    /// Destination of the Ethernet header.
    pub destination_mac: [u8; 6],
    /// Largest layer-3 packet on this way, in octets.
    pub mtu: u16,
}

impl NextHop {
    /// Writes the Ethernet header towards it to the front.
    #[inline]
    fn emit(&self, is_ipv6: bool, octets: &mut [u8]) {
        let ethertype = if is_ipv6 { ethernet::IPV6 } else { ethernet::IPV4 };
        let (destination, source) = (self.destination_mac, self.source_mac);
        ethernet::Repr { destination, source, ethertype }.emit(octets);
    }
}

/// One worker's dataplane: SAD, SPD, SPI states and next hops.
pub struct Engine {
    spis: SpiTable,
    sas: Sas,
    policies: Policies,
    interfaces: Interfaces,
    max_policies: u32,
    inside_is_host: bool,
    next_hops: NextHops,
    flows: Flows,
    counters: Counters,
    local_addresses: LocalAddresses,
    nat_port: u16,
    /// By [`PortId`].
    complete_checksums: [bool; 2],
    /// By [`PortId`].
    mtu: [u16; 2],
    clamp_mss: bool,
    inside_mac: [u8; 6],
    inside_address: Option<Ipv4Addr>,
    inside_address_v6: Option<Ipv6Addr>,
    icmp_budget: IcmpBudget,
    path_mtus: PathMtus,
    reassembly: Reassembly,
    passing: Passing,
    provider: Provider,
    /// Where the SAs' hot state outlives this engine.
    region: Option<SaRegion>,
    others: Others,
    doubts: Doubts,
}

impl Engine {
    /// An engine without SAs or policies: it drops everything.
    pub fn new(config: EngineConfig) -> Engine {
        let max_sas = config.max_sas.min(spindle_abi::MAX_SAS);
        let mut engine = Engine {
            spis: SpiTable::new(config.max_spis),
            sas: Sas::new(max_sas),
            policies: Policies::new(config.max_policies),
            interfaces: Interfaces::default(),
            max_policies: config.max_policies,
            inside_is_host: config.inside_is_host,
            next_hops: NextHops::new(config.max_next_hops),
            flows: Flows::new(config.max_flows),
            counters: Counters::new(),
            local_addresses: LocalAddresses::default(),
            nat_port: config.nat_port,
            complete_checksums: [config.inside.complete_checksums, config.outside.complete_checksums],
            mtu: [config.inside.mtu, config.outside.mtu],
            clamp_mss: config.clamp_mss,
            inside_mac: config.inside.mac,
            inside_address: config.inside.address,
            inside_address_v6: config.inside.address_v6,
            icmp_budget: IcmpBudget::new(),
            path_mtus: PathMtus::new(max_sas),
            reassembly: Reassembly::new(config.max_reassemblies),
            passing: Passing::new(config.max_reassemblies),
            provider: config.provider,
            region: config.region,
            others: Others::new(config.worker, config.workers, max_sas),
            doubts: Doubts::default(),
        };
        engine.set_local_addresses(&config.local_addresses);
        engine
    }

    /// Carries out a command; its cost is bounded by the tables' sizes. The process answers control with
    /// `Acknowledged`. Idempotent: an SA that is installed already keeps its sequence numbers and replay window.
    pub fn apply(&mut self, _now: Time, command: Command) -> Result<(), Refused> {
        self.flows.forget();
        self.dispel_doubts(&command);
        match command {
            Command::SetPolicy { id, priority, action, selectors, hold } => {
                self.policies_with(id).set(id, priority, action, selectors, hold)
            }
            Command::BindPolicy { id, interface } => self.bind_policy(id, interface),
            // RFC 4301 section 4.1: between gateways only for what they send and receive as hosts.
            Command::InstallInbound { sa, .. } | Command::InstallOutbound { sa }
                if sa.mode == Mode::Transport && !self.is_host(self.interfaces.of(sa.policy)) =>
            {
                Err(Refused::Impossible("mode"))
            }
            Command::RemovePolicy { id } => {
                self.policies_with(id).remove(id);
                Ok(())
            }
            Command::SetSpiState { spi, state } => self.set_spi_state(spi, state),
            Command::SetFormer { spis } => {
                let mut result = Ok(());
                // One that is refused keeps none of the others from it.
                for spi in spis {
                    result = result.and(self.set_spi_state(spi, SpiState::Former));
                }
                result
            }
            Command::InstallInbound { sa, replay_window, report_first } => {
                self.install_inbound(&sa, replay_window, report_first)
            }
            Command::InstallOutbound { sa } => self.install_outbound(&sa),
            Command::RemoveOutbound { index } => {
                self.remove_outbound(index);
                Ok(())
            }
            Command::Readdress { index, local, remote } => match self.sas.holder(index) {
                // What comes in on an SA is known by its SPI alone.
                Holder::Inbound(_) => Ok(()),
                Holder::Outbound(_) => {
                    let is_same = self.sas.outbound(index).is_some_and(|outbound| {
                        let in_udp = outbound.sa.encapsulation().in_udp;
                        let ports = in_udp.then_some((local.port(), remote.port()));
                        outbound.sa.is_path(local.ip(), remote.ip(), ports)
                    });
                    // Said again it changes nothing: what was learned of the path holds.
                    if !is_same {
                        self.sas.readdress(index, local, remote).ok_or(Refused::Missing)?.map_err(refused)?;
                        self.path_mtus.begin(index, None);
                    }
                    Ok(())
                }
                Holder::None if self.others.is_empty() => Err(Refused::Missing),
                Holder::None => {
                    self.others.readdress(index, local, remote);
                    Ok(())
                }
            },
            Command::Doubt => {
                self.doubt();
                Ok(())
            }
            Command::ConfirmInbound { spi, index } => match self.sas.holder(index) {
                Holder::Inbound(held) if held == spi => Ok(()),
                // An engine that is new has none to go on with.
                Holder::None => Ok(()),
                _ => Err(Refused::Impossible("index: another SA has it")),
            },
            Command::Sweep => {
                self.sweep_doubts();
                Ok(())
            }
        }
    }

    fn remove_outbound(&mut self, index: u32) {
        if let Some(policy) = self.others.forget(index) {
            self.policies_with(policy).remove_sa(policy, index);
        } else if let Some(policy) = self.sas.outbound(index).map(|outbound| outbound.policy) {
            self.policies_with(policy).remove_sa(policy, index);
            self.sas.remove(index);
        }
    }

    fn set_spi_state(&mut self, spi: Spi, state: SpiState) -> Result<(), Refused> {
        match (self.spis.lookup(spi), state) {
            (_, SpiState::Current) => Err(Refused::Impossible("SPI state")),
            (spi_table::Known::Current(index), SpiState::Retired) => {
                self.spis.set(spi, state, 0)?;
                self.sas.remove(index);
                Ok(())
            }
            (spi_table::Known::Elsewhere(_), SpiState::Retired) => self.spis.set(spi, state, 0),
            (spi_table::Known::Current(_) | spi_table::Known::Elsewhere(_), _) => {
                Err(Refused::Impossible("state of a current SPI"))
            }
            _ => self.spis.set(spi, state, 0),
        }
    }

    /// `Ok(true)`: go on; `Ok(false)`: this very SA is installed already.
    fn may_install(&self, sa: &SaParameters, same: Holder) -> Result<bool, Refused> {
        match self.sas.holder(sa.index) {
            holder if holder == same => Ok(false),
            Holder::None if self.sas.has_room(sa.index) => Ok(true),
            Holder::None => Err(Refused::Full("SAs")),
            _ => Err(Refused::Impossible("index: another SA has it")),
        }
    }

    fn install_inbound(&mut self, sa: &SaParameters, window: u32, report_first: bool) -> Result<(), Refused> {
        if let Some(worker) = self.others.owner(sa) {
            return self.note_inbound(sa.spi, worker);
        }
        if !self.may_install(sa, Holder::Inbound(sa.spi))? {
            // Whoever says it again has not heard of a first packet; the next one is reported then.
            if let Some(inbound) = self.sas.inbound(sa.index) {
                inbound.report_first |= report_first;
            }
            return Ok(());
        }
        if self.spis.state(sa.spi) == SpiState::Current {
            return Err(Refused::Impossible("SPI: another SA has it"));
        }
        let mut inbound = Inbound {
            sa: InboundSa::new(sa, window, self.provider).map_err(refused)?,
            usage: Usage::new(sa),
            selectors: compile(&sa.selectors)?,
            encapsulated: sa.encapsulated,
            in_transport: sa.mode == Mode::Transport,
            interface: self.interfaces.of(sa.policy),
            report_first,
            is_changed: false,
        };
        self.spis.set(sa.spi, SpiState::Current, sa.index)?;
        if let Some(region) = &self.region {
            let identity = hot::identity(sa, Direction::Inbound);
            let carried = region.adopt_inbound(sa.index, identity, inbound.sa.window_mut());
            inbound.usage.activity = carried.unwrap_or_default();
        }
        self.sas.put_inbound(sa.index, inbound);
        Ok(())
    }

    fn install_outbound(&mut self, sa: &SaParameters) -> Result<(), Refused> {
        if let Some(worker) = self.others.owner(sa) {
            return self.note_outbound(sa, worker);
        }
        if !self.may_install(sa, Holder::Outbound(sa.spi))? {
            return Ok(());
        }
        let mut outbound = Outbound {
            sa: OutboundSa::new(sa, self.provider).map_err(refused)?,
            usage: Usage::new(sa),
            selectors: compile(&sa.selectors)?,
            policy: sa.policy,
            is_changed: false,
        };
        // A rekey changes the keys, not the path.
        let latest = self.policies_with(sa.policy).latest_sa(sa.policy);
        let same_path =
            |index: &u32| self.sas.outbound(*index).is_some_and(|latest| latest.sa.has_path_of(&outbound.sa));
        self.path_mtus.begin(sa.index, latest.filter(same_path));
        if let Some(region) = &self.region
            && let Some((carried, last)) =
                region.adopt_outbound(sa.index, hot::identity(sa, Direction::Outbound))
        {
            outbound.sa.skip_to(last);
            outbound.usage.skip(last.saturating_sub(carried.packets));
            outbound.usage.activity = carried;
        }
        self.sas.put_outbound(sa.index, outbound);
        let rank = if sa.resource.dedicated { Rank::Own } else { Rank::Common };
        self.policies_with(sa.policy).add_sa(sa.policy, sa.index, rank);
        Ok(())
    }

    /// Takes every frame of the burst and gives each exactly one verdict.
    pub fn process<F: Frame>(
        &mut self,
        now: Time,
        ingress: PortId,
        burst: &mut ArrayVec<F, BURST>,
        out: &mut impl Output<F>,
    ) {
        match ingress {
            PortId::Inside => {
                self.counters.add(Counter::ReceivedInside, burst.len() as u64);
                self.process_inside(now, interfaces::INSIDE, burst, out);
            }
            PortId::Outside => {
                self.counters.add(Counter::ReceivedOutside, burst.len() as u64);
                self.process_outside(now, burst, out);
            }
        }
    }

    /// Sends urgent events that are due (former SPIs, each at most once in 100 ms and so many at a time; and those for which
    /// there was no room), and gives up fragments that wait in vain. Bounded; call it every millisecond.
    pub fn sweep<F: Frame>(&mut self, now: Time, out: &mut impl Output<F>) {
        self.reassembly.expire(now);
        self.count_abandoned();
        if !self.sas.pay(SWEEP, |event| out.event(event)) {
            return;
        }
        let reports = (REPORTS / u64::from(self.others.workers())).max(1);
        let told = self.spis.sweep(now, SWEEP, reports, |report| out.event(Event::FormerSpi(report)));
        self.counters.add(Counter::FormerSpiReported, told);
    }

    /// Tells control something of an SA that must arrive.
    fn tell<F: Frame>(&mut self, index: u32, what: Owed, event: Event, out: &mut impl Output<F>) {
        if self.sas.owes() || !out.event(event) {
            self.sas.owe(index, what);
        }
    }

    fn tell_limit<F: Frame>(&mut self, index: u32, limit: Limit, out: &mut impl Output<F>) {
        let hard = limit == Limit::Hard;
        let what = if hard { Owed::Hard } else { Owed::Soft };
        self.tell(index, what, Event::Lifetime { index, hard }, out);
    }

    #[inline]
    fn discard<F: Frame>(&mut self, frame: F, reason: DropReason, out: &mut impl Output<F>) {
        self.counters.drop(reason, 1);
        out.discard(frame, reason);
    }

    /// Sends a frame (14 octets for the Ethernet header, then the packet) by its next hop, which must lie on the
    /// side that is demanded: cleartext that was decapsulated never leaves outside, nor ESP inside.
    #[inline]
    fn send<F: Frame>(&mut self, egress: PortId, to: IpAddr, frame: F, out: &mut impl Output<F>) {
        if egress == PortId::Inside && self.inside_is_host {
            return self.send_to_host(interfaces::INSIDE, frame, out);
        }
        if egress == PortId::Inside && self.is_local(to) {
            return self.discard(frame, DropReason::ForHost, out);
        }
        match self.next_hops.find(to) {
            Some(hop) => self.transmit(egress, hop, frame, out),
            None => {
                self.counters.add(Counter::Held, 1);
                out.unresolved(egress, to, frame);
            }
        }
    }

    /// Octets of the longest frame that may leave towards this hop.
    #[inline]
    fn longest_frame(&self, egress: PortId, hop: NextHop) -> usize {
        ETHERNET + usize::from(hop.mtu.min(self.mtu[egress as usize]))
    }

    #[inline]
    fn transmit<F: Frame>(&mut self, egress: PortId, hop: NextHop, mut frame: F, out: &mut impl Output<F>) {
        let octets = frame.data_mut();
        if hop.port != egress {
            return self.discard(frame, DropReason::WrongSide, out);
        }
        if octets.len() > self.longest_frame(egress, hop) {
            return self.discard(frame, DropReason::TooBig, out);
        }
        let Some(version) = octets.get(ETHERNET..).and_then(ip::version) else {
            return self.discard(frame, DropReason::NotIp, out);
        };
        hop.emit(version == 6, octets);
        let delivered = match egress {
            PortId::Inside => Counter::DeliveredInside,
            PortId::Outside => Counter::DeliveredOutside,
        };
        self.counters.add(delivered, 1);
        out.transmit(egress, frame);
    }

    /// Sends a frame that [`Output::unresolved`] gave out, now that its next hop is known; if it still is not,
    /// drops it.
    pub fn forward<F: Frame>(
        &mut self,
        _now: Time,
        egress: PortId,
        destination: IpAddr,
        frame: F,
        out: &mut impl Output<F>,
    ) {
        match self.next_hops.find(destination) {
            Some(hop) => {
                self.counters.subtract(Counter::Held, 1);
                self.transmit(egress, hop, frame, out);
            }
            None => self.give_up(frame, DropReason::NoNextHop, out),
        }
    }

    /// Drops a frame that was held: [`DropReason::NoNextHop`] one that [`Output::unresolved`] gave out,
    /// [`DropReason::NoSa`] one that [`Output::without_sa`] did.
    pub fn give_up<F: Frame>(&mut self, frame: F, reason: DropReason, out: &mut impl Output<F>) {
        self.counters.subtract(Counter::Held, 1);
        self.discard(frame, reason, out);
    }

    /// Takes a frame that [`Output::without_sa`] kept, now that its policy has a new SA.
    pub fn take_up<F: Frame>(&mut self, now: Time, policy: u32, frame: F, out: &mut impl Output<F>) {
        self.counters.subtract(Counter::Held, 1);
        self.process_one(now, self.interfaces.of(policy), None, frame, out);
    }

    /// Sets or removes the next hop towards one destination (the packet's own destination address, not the
    /// router's). Refused if the table is full.
    pub fn set_next_hop(&mut self, destination: IpAddr, next_hop: Option<NextHop>) -> Result<(), Refused> {
        self.flows.forget();
        self.next_hops.set(destination, next_hop)
    }

    /// Forgets all next hops (after a route changed).
    pub fn clear_next_hops(&mut self) {
        self.flows.forget();
        self.next_hops.clear();
    }

    /// The largest packet on the way out to this address, in octets.
    #[inline]
    fn path_mtu(&mut self, destination: IpAddr) -> usize {
        let own = self.mtu[PortId::Outside as usize];
        usize::from(self.next_hops.find(destination).map_or(own, |hop| hop.mtu.min(own)))
    }

    /// A port has changed: its MTU, or its addresses.
    pub fn set_port(&mut self, port: PortId, config: &PortConfig) {
        self.flows.forget();
        self.mtu[port as usize] = config.mtu;
        self.complete_checksums[port as usize] = config.complete_checksums;
        if port == PortId::Inside {
            self.inside_mac = config.mac;
            (self.inside_address, self.inside_address_v6) = (config.address, config.address_v6);
        }
    }

    /// Replaces this host's addresses.
    pub fn set_local_addresses(&mut self, addresses: &[IpAddr]) {
        self.flows.forget();
        self.local_addresses = LocalAddresses::new(addresses);
    }

    #[inline]
    fn is_local(&self, address: IpAddr) -> bool {
        self.local_addresses.hold(address)
    }

    /// The port lost `count` frames that it was given to transmit: they count as dropped instead.
    pub fn lost_in_transmit(&mut self, port: PortId, count: u64) {
        let delivered = match port {
            PortId::Inside => Counter::DeliveredInside,
            PortId::Outside => Counter::DeliveredOutside,
        };
        let count = count.min(self.counters.count(delivered));
        self.counters.subtract(delivered, count);
        self.counters.drop(DropReason::TransmitFailed, count);
    }

    /// The state of an inbound SPI.
    pub fn spi_state(&self, spi: Spi) -> SpiState {
        self.spis.state(spi)
    }

    /// SPIs that have a state.
    pub fn spi_count(&self) -> usize {
        self.spis.len()
    }

    /// What the SA with this index has carried.
    pub fn activity(&self, index: u32) -> Option<SaActivity> {
        self.sas.activity(index)
    }

    /// Calls `report` for SAs whose activity changed since it was last reported, at most `limit` of them.
    pub fn changed_activity(&mut self, limit: usize, report: impl FnMut(u32, SaActivity)) {
        self.sas.drain_changed(limit, report);
    }

    /// The selectors of what passes in clear (BYPASS), from inside and from outside.
    pub fn in_clear(&self) -> impl Iterator<Item = &SelectorSet> {
        self.policies.in_clear()
    }

    /// All counts.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}

/// This host's addresses, sorted.
#[derive(Default)]
struct LocalAddresses {
    v4: Vec<u32>,
    v6: Vec<u128>,
}

impl LocalAddresses {
    fn new(addresses: &[IpAddr]) -> LocalAddresses {
        let mut local = LocalAddresses::default();
        for address in addresses {
            match address {
                IpAddr::V4(address) => local.v4.push(address.to_bits()),
                IpAddr::V6(address) => local.v6.push(address.to_bits()),
            }
        }
        local.v4.sort_unstable();
        local.v6.sort_unstable();
        local
    }

    #[inline]
    fn hold(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => is_among(&self.v4, &address.to_bits()),
            IpAddr::V6(address) => is_among(&self.v6, &address.to_bits()),
        }
    }
}

#[inline]
fn is_among<T: Ord>(sorted: &[T], one: &T) -> bool {
    if sorted.len() <= 8 { sorted.contains(one) } else { sorted.binary_search(one).is_ok() }
}

/// The longest packet that a tunnel over an outside with this MTU carries whole, whatever is around it; in octets.
pub fn tunnel_limit(outside_mtu: u16) -> usize {
    let around = Encapsulation { is_ipv6: true, in_udp: true, in_transport: false };
    inner_limit(usize::from(outside_mtu), around)
}

fn compile(selectors: &SelectorSet) -> Result<Selectors, Refused> {
    Selectors::new(selectors).ok_or(Refused::Full("selectors"))
}

fn refused(fault: Unusable) -> Refused {
    match fault {
        Unusable::KeyLength => Refused::Impossible("key length"),
        Unusable::ReservedSpi => Refused::Impossible("SPI"),
        Unusable::ReplayWindow => Refused::Impossible("replay window"),
        Unusable::IpVersions => Refused::Impossible("pair of outer addresses"),
    }
}
