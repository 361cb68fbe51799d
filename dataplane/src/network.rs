//! The kernel's routes, neighbours, links and addresses, over rtnetlink.
//!
//! A destination that a worker cannot reach yet is looked up: route → gateway or on-link → neighbour. The neighbour is
//! made a *managed* one, which the kernel keeps resolved although it never sees our packets; where the kernel knows
//! none (before 5.16) it is asked to resolve once. Notifications keep what was told to the workers true.

use crate::held::Towards;
use crate::worker::{Shared, Update};
use anyhow::{Context, Result, bail};
use futures_util::{StreamExt, TryStreamExt};
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::{LinkAttribute, LinkLayerType, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::Handle;
use spindle_engine::{NextHop, PortConfig, PortId};
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Destinations that are followed at most; beyond, all are forgotten and asked for again.
const MAX_DESTINATIONS: usize = 1 << 16;

/// One of our two interfaces, as the kernel's tables know it.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) name: String,
    pub(crate) index: u32,
    pub(crate) mac: [u8; 6],
    pub(crate) mtu: u16,
    /// Its frames may carry a checksum that is yet to be completed.
    pub(crate) complete_checksums: bool,
}

impl Link {
    /// What the kernel says of an interface.
    pub(crate) fn of(name: &str, message: &LinkMessage) -> Result<Link> {
        let no_ethernet = || format!("{name} is no Ethernet interface, and AF_XDP frames need one");
        if message.header.link_layer_type != LinkLayerType::Ether {
            bail!(no_ethernet());
        }
        let index = message.header.index;
        let mut link = Link { name: name.into(), index, mac: [0; 6], mtu: 1500, complete_checksums: false };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::Address(address) => {
                    link.mac = address.as_slice().try_into().ok().with_context(no_ethernet)?;
                }
                LinkAttribute::Mtu(mtu) => link.mtu = u16::try_from(*mtu).unwrap_or(u16::MAX),
                _ => {}
            }
        }
        Ok(link)
    }
}

/// All addresses of this host, with their interfaces.
pub(crate) async fn local_addresses(handle: &Handle) -> Result<Vec<(u32, IpAddr)>> {
    let mut all = Vec::new();
    let mut messages = handle.address().get().execute();
    while let Some(message) = messages.try_next().await.context("cannot read the host's addresses")? {
        // IFA_LOCAL is the host's own address, where there is one; on a point-to-point link IFA_ADDRESS is the other end's.
        let mut own = None;
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(a) => own = Some(*a),
                AddressAttribute::Address(a) => own = own.or(Some(*a)),
                _ => {}
            }
        }
        all.extend(own.map(|a| (message.header.index, a)));
    }
    Ok(all)
}

/// Where a destination's packets go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Way {
    interface: u32,
    neighbour: IpAddr,
    mtu: u16,
}

/// What was told to the workers, and what it was told from.
pub(crate) struct Network {
    handle: Handle,
    /// The inside may be none of ours.
    links: Vec<(PortId, Link)>,
    /// Routes outside are looked up among those by the outside interface alone: others may lead into our own virtual
    /// interfaces.
    by_interface: bool,
    workers: Vec<Arc<Shared>>,
    ways: HashMap<IpAddr, Way>,
    neighbours: HashMap<(u32, IpAddr), [u8; 6]>,
    /// Those of them that the operator has set, and that the kernel asks nobody for.
    set_by_hand: HashSet<(u32, IpAddr)>,
}

/// What a notification means for the rest of the process.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Changed {
    /// Nothing.
    Nothing,
    /// This host's addresses.
    Addresses,
    /// The hardware address or the MTU of one of our interfaces.
    Link,
    /// One of our interfaces is gone.
    InterfaceGone(String),
}

impl Network {
    /// What is outside is looked up `by_interface` where the host has virtual interfaces of ours.
    pub(crate) async fn new(
        handle: Handle,
        links: Vec<(PortId, Link)>,
        by_interface: bool,
        workers: Vec<Arc<Shared>>,
    ) -> Result<Network> {
        let mut network = Network {
            handle,
            links,
            by_interface,
            workers,
            ways: HashMap::new(),
            neighbours: HashMap::new(),
            set_by_hand: HashSet::new(),
        };
        let mut messages = network.handle.neighbours().get().execute();
        while let Some(message) = messages.try_next().await.context("cannot read the neighbours")? {
            network.note(&message);
        }
        Ok(network)
    }

    /// Finds the next hop towards a destination and tells the workers now, or as soon as it is known.
    pub(crate) async fn resolve(&mut self, (egress, destination): Towards) {
        if self.ways.len() >= MAX_DESTINATIONS {
            self.forget();
        }
        let Some(way) = self.route(egress, destination).await else {
            self.ways.remove(&destination);
            return self.tell(destination, None);
        };
        self.ways.insert(destination, way);
        let neighbour = (way.interface, way.neighbour);
        let known = self.neighbours.contains_key(&neighbour);
        if known {
            self.tell_way(destination, way);
        }
        // To manage it would put in its place one that is asked for.
        if self.set_by_hand.contains(&neighbour) {
            return;
        }
        if let Err(error) = self.manage(way).await {
            tracing::warn!(neighbour = %way.neighbour, %error, "cannot resolve");
            if !known {
                self.tell(destination, None);
            }
        }
    }

    /// RTM_GETROUTE for one destination.
    async fn route(&self, egress: PortId, destination: IpAddr) -> Option<Way> {
        let mut question = RouteMessage::default();
        let (family, length, address) = match destination {
            IpAddr::V4(address) => (AddressFamily::Inet, 32, RouteAddress::Inet(address)),
            IpAddr::V6(address) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(address)),
        };
        question.header.address_family = family;
        question.header.destination_prefix_length = length;
        question.attributes.push(RouteAttribute::Destination(address));
        if self.by_interface && egress == PortId::Outside {
            let (_, outside) = self.links.iter().find(|(port, _)| *port == PortId::Outside)?;
            question.attributes.push(RouteAttribute::Oif(outside.index));
        }
        let answer = self.handle.route().get(question).execute().next().await?.ok()?;
        if answer.header.kind != RouteType::Unicast {
            return None;
        }
        let (mut interface, mut neighbour, mut mtu) = (None, destination, u32::MAX);
        for attribute in answer.attributes {
            match attribute {
                RouteAttribute::Oif(index) => interface = Some(index),
                RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => neighbour = gateway.into(),
                RouteAttribute::Gateway(RouteAddress::Inet6(gateway)) => neighbour = gateway.into(),
                // RFC 5549: an IPv4 destination behind an IPv6 router.
                RouteAttribute::Via(RouteVia::Inet(gateway)) => neighbour = gateway.into(),
                RouteAttribute::Via(RouteVia::Inet6(gateway)) => neighbour = gateway.into(),
                RouteAttribute::Metrics(metrics) => {
                    for metric in metrics {
                        if let RouteMetric::Mtu(value) = metric {
                            mtu = value;
                        }
                    }
                }
                _ => {}
            }
        }
        let link = self.links.iter().map(|(_, link)| link).find(|link| Some(link.index) == interface)?;
        let mtu = mtu.min(u32::from(link.mtu)) as u16;
        Some(Way { interface: link.index, neighbour, mtu })
    }

    /// Has the kernel resolve a neighbour and, if it can, keep it resolved.
    async fn manage(&self, way: Way) -> Result<(), rtnetlink::Error> {
        let request = || {
            let neighbours = self.handle.neighbours();
            neighbours.add(way.interface, way.neighbour).replace().state(NeighbourState::None)
        };
        let mut managed = request();
        managed.message_mut().attributes.push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
        if managed.execute().await.is_ok() {
            return Ok(());
        }
        request().flags(NeighbourFlags::Use).execute().await
    }

    /// Takes a notification in.
    pub(crate) fn notice(&mut self, message: &RouteNetlinkMessage) -> Changed {
        match message {
            RouteNetlinkMessage::NewNeighbour(m) => {
                if let Some((key, change)) = self.note(m) {
                    self.spread(key, change);
                }
            }
            RouteNetlinkMessage::DelNeighbour(m) => {
                if let Some((interface, neighbour)) = key(m) {
                    self.neighbours.remove(&(interface, neighbour));
                    self.set_by_hand.remove(&(interface, neighbour));
                    self.spread((interface, neighbour), Change::Lost);
                }
            }
            RouteNetlinkMessage::NewRoute(_) | RouteNetlinkMessage::DelRoute(_) => self.forget(),
            RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_) => {
                return Changed::Addresses;
            }
            RouteNetlinkMessage::NewLink(m) => {
                let Some(link) =
                    self.links.iter_mut().map(|(_, link)| link).find(|l| l.index == m.header.index)
                else {
                    return Changed::Nothing;
                };
                let before = (link.mtu, link.mac);
                for attribute in &m.attributes {
                    match attribute {
                        LinkAttribute::Mtu(mtu) => link.mtu = u16::try_from(*mtu).unwrap_or(u16::MAX),
                        LinkAttribute::Address(a) => link.mac = a.as_slice().try_into().unwrap_or(link.mac),
                        _ => {}
                    }
                }
                let changed = (link.mtu, link.mac) != before;
                self.forget();
                if changed {
                    return Changed::Link;
                }
            }
            RouteNetlinkMessage::DelLink(m) => {
                if let Some(link) =
                    self.links.iter().map(|(_, link)| link).find(|l| l.index == m.header.index)
                {
                    return Changed::InterfaceGone(link.name.clone());
                }
            }
            _ => {}
        }
        Changed::Nothing
    }

    /// Our interfaces as they are now.
    pub(crate) fn links(&self) -> &[(PortId, Link)] {
        &self.links
    }

    /// Tells what a port is now.
    pub(crate) fn tell_port(&self, port: PortId, config: PortConfig) {
        self.send(Update::Port(port, config));
    }

    /// Replaces this host's addresses.
    pub(crate) fn tell_addresses(&self, addresses: Vec<IpAddr>) {
        self.send(Update::LocalAddresses(addresses));
    }

    fn note(&mut self, message: &NeighbourMessage) -> Option<((u32, IpAddr), Change)> {
        let key = key(message)?;
        let mac = message.attributes.iter().find_map(|a| match a {
            NeighbourAttribute::LinkLayerAddress(mac) => <[u8; 6]>::try_from(mac.as_slice()).ok(),
            _ => None,
        });
        use NeighbourState::{Delay, Failed, Noarp, Permanent, Probe, Reachable, Stale};
        if message.header.state == Permanent {
            self.set_by_hand.insert(key);
        } else {
            self.set_by_hand.remove(&key);
        }
        let change = match (message.header.state, mac) {
            (Reachable | Stale | Delay | Probe | Permanent | Noarp, Some(mac)) => {
                if self.neighbours.insert(key, mac) == Some(mac) { Change::Same } else { Change::Found }
            }
            (Failed, _) => {
                self.neighbours.remove(&key);
                Change::Lost
            }
            _ => Change::Same,
        };
        Some((key, change))
    }

    /// Tells the workers of all destinations behind a neighbour.
    fn spread(&mut self, key: (u32, IpAddr), change: Change) {
        let behind = |way: &Way| (way.interface, way.neighbour) == key;
        match change {
            Change::Same => {}
            Change::Found => {
                for (destination, way) in self.ways.iter().filter(|(_, way)| behind(way)) {
                    self.tell_way(*destination, *way);
                }
            }
            Change::Lost => {
                let lost: Vec<_> = self.ways.extract_if(|_, way| behind(way)).collect();
                for (destination, _) in lost {
                    self.tell(destination, None);
                }
            }
        }
    }

    fn forget(&mut self) {
        self.ways.clear();
        self.send(Update::ForgetNextHops);
    }

    fn tell_way(&self, destination: IpAddr, way: Way) {
        let mac = self.neighbours.get(&(way.interface, way.neighbour));
        let link = self.links.iter().find(|(_, link)| link.index == way.interface);
        let next_hop = mac.zip(link).map(|(mac, (port, link))| NextHop {
            port: *port,
            source_mac: link.mac,
            destination_mac: *mac,
            mtu: way.mtu,
        });
        self.tell(destination, next_hop);
    }

    fn tell(&self, destination: IpAddr, next_hop: Option<NextHop>) {
        self.send(Update::NextHop(destination, next_hop));
    }

    fn send(&self, update: Update) {
        // A worker takes updates at every turn. If it is as far behind as this, the oldest one gives way; its frame
        // ends with its patience, and the next one asks again.
        for worker in &self.workers {
            worker.updates.force_push(update.clone());
            worker.sleeper.wake();
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Change {
    Same,
    Found,
    Lost,
}

fn key(message: &NeighbourMessage) -> Option<(u32, IpAddr)> {
    message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => {
            Some((message.header.ifindex, IpAddr::from(*address)))
        }
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => {
            Some((message.header.ifindex, IpAddr::from(*address)))
        }
        _ => None,
    })
}
