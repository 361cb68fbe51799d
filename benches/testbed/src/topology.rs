//! Host A – gateway A – delay box – gateway B – host B, as five network namespaces joined by veth pairs.
//!
//! ```text
//!  host-a          gateway-a            box            gateway-b          host-b
//!  a-host ══════ a-in   a-out ══════ box-a box-b ══════ b-out  b-in ══════ b-host
//!  10.1.0.2    10.1.0.1  192.0.2.1                   192.0.2.2  10.2.0.1   10.2.0.2
//! ```
//!
//! The delay box bridges, so the outer side is one subnet and ARP passes through it. Both gateways have
//! `ip_forward=1` and a route to the other side's inside network: a kernel that is let would forward cleartext, and
//! only the gateway's own care prevents that. No interface's offloads are touched.
//!
//! With IPv6 outside or inside ([`Versions`]) each of these addresses has another one beside it, [`ipv6`], and each route too.
//!
//! With [`Layout::Nat`] a NAT stands between gateway A and the box: A is 198.51.100.1 then, and B sees 192.0.2.1, until the
//! mapping moves to 192.0.2.5. What is called A's wire is the one before the NAT.
//!
//! With [`Layout::Vlans`] frames between the gateways, and between each and its host, have tags: the addresses are those of
//! devices `a-out.100` and so on, and the interfaces above have none.
//!
//! With [`Layout::Pair`] two gateways stand in B's place, each on a switch per side and with addresses of its own. Those
//! that B has above are nobody's until one of the two is given them, or takes them (keepalived does):
//!
//! ```text
//!                      ┌────────┐ b-out  gateway-b   b-in ┌────────┐
//!  box  box-b ═════════╡ switch ╞═ 192.0.2.3   10.2.0.3 ══╡ switch ╞═══════ b-host  host-b
//!                      │        │ b-out  gateway-b2  b-in │        │
//!                      └────────┴═ 192.0.2.4   10.2.0.4 ══┴────────┘
//! ```

use crate::cleanup::{self, unique_name};
use crate::error::{Context, Error, Result};
use crate::namespace::{Namespace, parse_mac};
use crate::vlan::{self, VlanDevice};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, Ordering};

/// An IPv4 network: an address and its prefix length in bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Network {
    /// The network's first address.
    pub address: Ipv4Addr,
    /// Bits of the prefix, 0 to 32.
    pub prefix: u8,
}

impl Network {
    /// The `number`th address of the network.
    pub fn host(self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.address) + number)
    }

    /// Whether an address lies in the network.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
        u32::from(address) & mask == u32::from(self.address) & mask
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// A version of IP.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Version {
    /// IPv4.
    #[default]
    V4,
    /// IPv6.
    V6,
}

impl Version {
    /// The address of this version that stands beside an IPv4 one, or is it.
    pub fn of(self, address: Ipv4Addr) -> IpAddr {
        match self {
            Version::V4 => address.into(),
            Version::V6 => ipv6(address).into(),
        }
    }

    /// The same of a network, as gateways' configurations write it.
    pub fn network(self, network: Network) -> String {
        let prefix = if self == Version::V4 { network.prefix } else { IPV6_PREFIX + network.prefix };
        format!("{}/{prefix}", self.of(network.address))
    }
}

/// Bits that all IPv6 addresses here have in common; behind them stands the IPv4 address beside which they are.
pub const IPV6_PREFIX: u8 = 96;

/// The IPv6 address that stands beside an IPv4 one: 2001:db8::10.1.0.2 beside 10.1.0.2.
pub fn ipv6(address: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from(0x2001_0db8 << 96 | u128::from(address.to_bits()))
}

/// What gateways speak with each other, and hosts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Versions {
    /// Between the gateways.
    pub outside: Version,
    /// Between the hosts.
    pub inside: Version,
}

/// The addresses of a topology. Gateways are `.1` inside, hosts `.2`; outside gateway A is `.1` and B `.2`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Addresses {
    /// Network of host A.
    pub inside_a: Network,
    /// Network of host B.
    pub inside_b: Network,
    /// The network between the gateways.
    pub outside: Network,
    /// The network between gateway A and its NAT, where there is one: A is `.1`, the NAT `.254`.
    pub behind_nat: Option<Network>,
    /// Which of them gateways and hosts use.
    pub versions: Versions,
}

impl Default for Addresses {
    fn default() -> Self {
        let network = |a, b, c| Network { address: Ipv4Addr::new(a, b, c, 0), prefix: 24 };
        Addresses {
            inside_a: network(10, 1, 0),
            inside_b: network(10, 2, 0),
            outside: network(192, 0, 2),
            behind_nat: None,
            versions: Versions::default(),
        }
    }
}

/// What stands in the places of the two gateways.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Layout {
    /// A gateway in each.
    #[default]
    Plain,
    /// The same, with interfaces that have so many queues.
    Queues(u32),
    /// Two gateways in B's place.
    Pair,
    /// Gateway A behind a NAT.
    Nat,
    /// Plain, but that all frames have tags: with these VIDs of IEEE 802.1Q.
    Vlans {
        /// Between the gateways.
        outside: u16,
        /// Between each gateway and its host.
        inside: u16,
    },
}

/// One of the two gateways in B's place, where there are two.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Member {
    /// What is gateway B where there is but one.
    First,
    /// The other one.
    Second,
}

impl Member {
    /// Both.
    pub const BOTH: [Member; 2] = [Member::First, Member::Second];

    /// Its number in both networks: what hosts and gateways have goes before.
    fn number(self) -> u32 {
        match self {
            Member::First => 3,
            Member::Second => 4,
        }
    }
}

/// One of the two halves of the topology.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Side {
    /// Host A and gateway A.
    A,
    /// Host B and gateway B.
    B,
}

impl Side {
    /// The other side.
    pub fn other(self) -> Side {
        match self {
            Side::A => Side::B,
            Side::B => Side::A,
        }
    }

    /// `a` or `b`, as in the interfaces' names.
    pub fn letter(self) -> char {
        match self {
            Side::A => 'a',
            Side::B => 'b',
        }
    }

    /// The gateway's interface toward its host.
    pub fn inside_interface(self) -> String {
        format!("{}-in", self.letter())
    }

    /// The gateway's interface toward the delay box.
    pub fn outside_interface(self) -> String {
        format!("{}-out", self.letter())
    }

    /// The delay box's interface toward this side's gateway: the other end of [`Side::outside_interface`].
    pub fn box_interface(self) -> String {
        format!("box-{}", self.letter())
    }

    /// The host's interface.
    pub fn host_interface(self) -> String {
        format!("{}-host", self.letter())
    }
}

impl Addresses {
    /// The inside network of a side.
    pub fn inside(&self, side: Side) -> Network {
        match side {
            Side::A => self.inside_a,
            Side::B => self.inside_b,
        }
    }

    /// The host's address.
    pub fn host(&self, side: Side) -> Ipv4Addr {
        self.inside(side).host(2)
    }

    /// The gateway's address toward its host.
    pub fn gateway_inside(&self, side: Side) -> Ipv4Addr {
        self.inside(side).host(1)
    }

    /// What one of a pair has outside, whoever holds what is [`Addresses::gateway_outside`] of B.
    pub fn member_outside(&self, member: Member) -> Ipv4Addr {
        self.outside.host(member.number())
    }

    /// What one of a pair has inside.
    pub fn member_inside(&self, member: Member) -> Ipv4Addr {
        self.inside_b.host(member.number())
    }

    /// The gateway's outer address.
    pub fn gateway_outside(&self, side: Side) -> Ipv4Addr {
        match (side, self.behind_nat) {
            (Side::A, Some(network)) => network.host(1),
            (Side::A, None) => self.outside.host(1),
            (Side::B, _) => self.outside.host(2),
        }
    }

    /// The gateway's outer address of the version that is used.
    pub fn outer(&self, side: Side) -> IpAddr {
        self.versions.outside.of(self.gateway_outside(side))
    }

    /// The inside network of a side, of the version that is used.
    pub fn protected(&self, side: Side) -> String {
        self.versions.inside.network(self.inside(side))
    }

    /// Is IPv6 used anywhere?
    pub(crate) fn use_ipv6(&self) -> bool {
        let Versions { outside, inside } = self.versions;
        outside == Version::V6 || inside == Version::V6
    }

    /// Where the other gateway may see it: its outer address, or those of its NAT, the first one first.
    pub fn seen_at(&self, side: Side) -> Vec<Ipv4Addr> {
        match (side, self.behind_nat) {
            (Side::A, Some(_)) => vec![self.outside.host(1), self.outside.host(5)],
            _ => vec![self.gateway_outside(side)],
        }
    }

    /// The network of a gateway's outer interface.
    fn outside_of(&self, side: Side) -> Network {
        self.behind_nat.filter(|_| side == Side::A).unwrap_or(self.outside)
    }
}

/// The namespaces; all are removed on drop.
#[derive(Debug)]
pub struct Topology {
    /// The number of this topology in this process; part of every name.
    pub number: u32,
    /// The addresses in use.
    pub addresses: Addresses,
    hosts: [Namespace; 2],
    gateways: [Namespace; 2],
    delay_box: Namespace,
    queues: u32,
    pair: Option<Pair>,
    nat: Option<Namespace>,
    vlans: Option<Vlans>,
}

/// What VLANs have besides.
#[derive(Debug)]
struct Vlans {
    outside: u16,
    inside: u16,
    devices: Vec<VlanDevice>,
    /// Where the devices' far ends are.
    far: Namespace,
}

/// What a pair has besides.
#[derive(Debug)]
struct Pair {
    second: Namespace,
    switch: Namespace,
}

impl Topology {
    /// Makes the namespaces, links, addresses and routes. Nothing passes the delay box before one is started.
    pub fn create(addresses: Addresses) -> Result<Topology> {
        Topology::with_layout(addresses, Layout::Plain)
    }

    /// The same in another layout.
    pub fn with_layout(addresses: Addresses, layout: Layout) -> Result<Topology> {
        let mut addresses = addresses;
        if layout == Layout::Nat {
            addresses.behind_nat = Some(Network { address: Ipv4Addr::new(198, 51, 100, 0), prefix: 24 });
        }
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        cleanup::prepare()?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let namespace = |what: &str| Namespace::create(&unique_name(number, what));
        let mut topology = Topology {
            number,
            addresses,
            hosts: [namespace("host-a")?, namespace("host-b")?],
            gateways: [namespace("gateway-a")?, namespace("gateway-b")?],
            delay_box: namespace("box")?,
            queues: if let Layout::Queues(queues) = layout { queues } else { 1 },
            pair: match layout {
                Layout::Plain | Layout::Queues(_) | Layout::Nat | Layout::Vlans { .. } => None,
                Layout::Pair => Some(Pair { second: namespace("gateway-b2")?, switch: namespace("switch")? }),
            },
            nat: if layout == Layout::Nat { Some(namespace("nat")?) } else { None },
            vlans: match layout {
                Layout::Vlans { outside, inside } => {
                    let far = namespace("vlans")?;
                    far.sysctl("ipv6/conf/default/disable_ipv6", "1")?;
                    Some(Vlans { outside, inside, devices: Vec::new(), far })
                }
                _ => None,
            },
        };
        topology.delay_box.sysctl("ipv6/conf/default/disable_ipv6", "1")?;
        if topology.addresses.use_ipv6() {
            // Addresses serve at once, not only when no one else was heard to have them.
            for namespace in topology.hosts.iter().chain(&topology.gateways) {
                namespace.sysctl("ipv6/conf/default/accept_dad", "0")?;
            }
        }
        topology.connect(Side::A)?;
        topology.connect_nat()?;
        match &topology.pair {
            Some(pair) => topology.connect_pair(pair)?,
            None => topology.connect(Side::B)?,
        }
        Ok(topology)
    }

    fn connect(&mut self, side: Side) -> Result<()> {
        self.join_interfaces(side)?;
        self.make_vlans(side)?;
        let (gateway, addresses) = (self.gateway(side), &self.addresses);
        self.give_host_its_address(side)?;
        self.equip(gateway, side, addresses.gateway_outside(side), addresses.gateway_inside(side))
    }

    fn make_vlans(&mut self, side: Side) -> Result<()> {
        let Some(vlans) = &mut self.vlans else { return Ok(()) };
        let (host, gateway) = (&self.hosts[side as usize], &self.gateways[side as usize]);
        for (namespace, interface, id) in [
            (host, side.host_interface(), vlans.inside),
            (gateway, side.inside_interface(), vlans.inside),
            (gateway, side.outside_interface(), vlans.outside),
        ] {
            vlans.devices.push(VlanDevice::create(namespace, &interface, id, &vlans.far)?);
        }
        Ok(())
    }

    /// The kernel's devices of a gateway, inside and outside, and of its host: those with addresses.
    fn devices(&self, side: Side) -> (String, String, String) {
        let (inside, outside, host) =
            (side.inside_interface(), side.outside_interface(), side.host_interface());
        match &self.vlans {
            None => (inside, outside, host),
            Some(vlans) => {
                let inside = vlan::device(&inside, vlans.inside);
                (inside, vlan::device(&outside, vlans.outside), vlan::device(&host, vlans.inside))
            }
        }
    }

    fn join_interfaces(&self, side: Side) -> Result<()> {
        let (host, gateway) = (self.host(side), self.gateway(side));
        let (on_host, inside) = (side.host_interface(), side.inside_interface());
        let (outside, on_box) = (side.outside_interface(), side.box_interface());
        join_queues(self.queues, (host, &on_host), (gateway, &inside))?;
        match &self.nat {
            Some(nat) if side == Side::A => {
                join((gateway, &outside), (nat, NAT_INSIDE))?;
                join((nat, NAT_OUTSIDE), (&self.delay_box, &on_box))?;
            }
            _ => join_queues(self.queues, (gateway, &outside), (&self.delay_box, &on_box))?,
        }
        Ok(())
    }

    /// The same for B's side with two gateways: a switch (of two bridges) instead of each veth pair.
    fn connect_pair(&self, pair: &Pair) -> Result<()> {
        let (side, switch) = (Side::B, &pair.switch);
        switch.sysctl("ipv6/conf/default/disable_ipv6", "1")?;
        for bridge in ["outside", "inside"] {
            switch.ip(&format!("link add {bridge} type bridge"))?;
            switch.ip(&format!("link set {bridge} up"))?;
        }
        let plug = |port: (&Namespace, &str), plug: &str, bridge: &str| {
            join(port, (switch, plug))?;
            switch.ip(&format!("link set {plug} master {bridge}")).map(drop)
        };
        plug((&self.delay_box, &side.box_interface()), "out-box", "outside")?;
        plug((self.host(side), &side.host_interface()), "in-host", "inside")?;
        self.give_host_its_address(side)?;
        for (number, member) in Member::BOTH.into_iter().enumerate() {
            let gateway = self.member(member);
            plug((gateway, &side.outside_interface()), &format!("out-{number}"), "outside")?;
            plug((gateway, &side.inside_interface()), &format!("in-{number}"), "inside")?;
            let (outside, inside) =
                (self.addresses.member_outside(member), self.addresses.member_inside(member));
            self.equip(gateway, side, outside, inside)?;
        }
        Ok(())
    }

    fn give_host_its_address(&self, side: Side) -> Result<()> {
        let (host, addresses) = (self.host(side), &self.addresses);
        let ((_, _, on_host), prefix) = (self.devices(side), addresses.inside(side).prefix);
        self.give(host, addresses.host(side), prefix, &on_host)?;
        host.ip(&format!("route add default via {}", addresses.gateway_inside(side)))?;
        if addresses.use_ipv6() {
            host.ip(&format!("-6 route add default via {}", ipv6(addresses.gateway_inside(side))))?;
        }
        Ok(())
    }

    /// Gives an interface an address, and if IPv6 is used the one beside it.
    fn give(&self, to: &Namespace, address: Ipv4Addr, prefix: u8, interface: &str) -> Result<()> {
        to.ip(&format!("addr add {address}/{prefix} dev {interface}"))?;
        if self.addresses.use_ipv6() {
            to.ip(&format!("addr add {}/{} dev {interface}", ipv6(address), IPV6_PREFIX + prefix))?;
        }
        Ok(())
    }

    /// Addresses, routes and settings of a gateway whose interfaces are there.
    fn equip(
        &self,
        gateway: &Namespace,
        side: Side,
        outside_address: Ipv4Addr,
        inside_address: Ipv4Addr,
    ) -> Result<()> {
        let addresses = &self.addresses;
        let (here, there) = (addresses.inside(side), addresses.inside(side.other()));
        let (inside, outside, _) = self.devices(side);
        self.give(gateway, inside_address, here.prefix, &inside)?;
        self.give(gateway, outside_address, addresses.outside_of(side).prefix, &outside)?;
        let next = match addresses.behind_nat.filter(|_| side == Side::A) {
            Some(network) => {
                let nat = network.host(NAT_HOST);
                gateway.ip(&format!("route add {} via {nat}", addresses.outside))?;
                nat
            }
            None => addresses.seen_at(side.other())[0],
        };
        gateway.ip(&format!("route add {there} via {next}"))?;
        if addresses.use_ipv6() {
            let there = Version::V6.network(there);
            gateway.ip(&format!("-6 route add {there} via {}", ipv6(next)))?;
            gateway.sysctl("ipv6/conf/all/forwarding", "1")?;
        }
        // As open as a router can be: what the gateway lets through by mistake must become visible.
        for (setting, value) in
            [("ip_forward", "1"), ("conf/all/rp_filter", "0"), ("conf/default/rp_filter", "0")]
        {
            gateway.sysctl(&format!("ipv4/{setting}"), value)?;
        }
        for interface in [&inside, &outside] {
            gateway.sysctl(&format!("ipv4/conf/{interface}/rp_filter"), "0")?;
        }
        Ok(())
    }

    /// The namespace of a host.
    pub fn host(&self, side: Side) -> &Namespace {
        &self.hosts[side as usize]
    }

    /// The namespace of a gateway.
    pub fn gateway(&self, side: Side) -> &Namespace {
        &self.gateways[side as usize]
    }

    /// The namespace of one of the two gateways in B's place; without a pair there is but the first.
    pub fn member(&self, member: Member) -> &Namespace {
        match (&self.pair, member) {
            (Some(pair), Member::Second) => &pair.second,
            _ => self.gateway(Side::B),
        }
    }

    /// Gives one of a pair the addresses that both may have, outside and inside; the other one must not hold them.
    pub fn give_shared_addresses(&self, member: Member) -> Result<()> {
        let (side, gateway, addresses) = (Side::B, self.member(member), &self.addresses);
        let inside = (addresses.gateway_inside(side), side.inside_interface());
        let outside = (addresses.gateway_outside(side), side.outside_interface());
        for (address, interface) in [inside, outside] {
            gateway.ip(&format!("addr add {address}/32 dev {interface}"))?;
        }
        Ok(())
    }

    /// Does one of a pair hold the shared addresses, both of them?
    pub fn holds_shared_addresses(&self, member: Member) -> Result<bool> {
        let (side, addresses) = (Side::B, self.member(member).ip("-brief address show")?);
        let holds = |address: Ipv4Addr| addresses.contains(&format!(" {address}/"));
        Ok(holds(self.addresses.gateway_inside(side)) && holds(self.addresses.gateway_outside(side)))
    }

    /// Takes one of a pair off both its wires.
    pub fn cut_off(&self, member: Member) -> Result<()> {
        for interface in [Side::B.inside_interface(), Side::B.outside_interface()] {
            self.member(member).ip(&format!("link set {interface} down"))?;
        }
        Ok(())
    }

    /// Takes the shared addresses from one of a pair, if it holds them.
    pub fn take_shared_addresses(&self, member: Member) {
        let (side, gateway, addresses) = (Side::B, self.member(member), &self.addresses);
        let inside = (addresses.gateway_inside(side), side.inside_interface());
        let outside = (addresses.gateway_outside(side), side.outside_interface());
        for (address, interface) in [inside, outside] {
            drop(gateway.ip(&format!("addr del {address}/32 dev {interface}")));
        }
    }

    /// Puts it back on them, with its own addresses alone.
    pub fn join_again(&self, member: Member) -> Result<()> {
        let (side, gateway) = (Side::B, self.member(member));
        for interface in [side.inside_interface(), side.outside_interface()] {
            gateway.ip(&format!("link set {interface} up"))?;
        }
        // Routes went with the links.
        let (there, via) =
            (self.addresses.inside(side.other()), self.addresses.gateway_outside(side.other()));
        gateway.ip(&format!("route replace {there} via {via}")).map(drop)
    }

    /// The hardware address of a gateway's outer interface; of a pair's first one.
    pub fn hardware_address(&self, side: Side) -> Result<[u8; 6]> {
        hardware_address(self.gateway(side), side)
    }

    /// The hardware address of the outer interface of one of a pair.
    pub fn member_hardware_address(&self, member: Member) -> Result<[u8; 6]> {
        hardware_address(self.member(member), Side::B)
    }

    /// The end, in another namespace, of the wire on a gateway's outer interface.
    pub fn wire(&self, side: Side) -> (&Namespace, String) {
        match &self.nat {
            Some(nat) if side == Side::A => (nat, NAT_INSIDE.to_owned()),
            _ => (&self.delay_box, side.box_interface()),
        }
    }

    fn connect_nat(&self) -> Result<()> {
        let (Some(nat), Some(inner)) = (&self.nat, self.addresses.behind_nat) else { return Ok(()) };
        nat.sysctl("ipv4/ip_forward", "1")?;
        nat.ip(&format!("addr add {}/{} dev {NAT_INSIDE}", inner.host(NAT_HOST), inner.prefix))?;
        for address in self.addresses.seen_at(Side::A) {
            nat.ip(&format!("addr add {address}/{} dev {NAT_OUTSIDE}", self.addresses.outside.prefix))?;
        }
        self.map(self.addresses.seen_at(Side::A)[0], None)
    }

    /// The NAT forgets what it has mapped, and maps gateway A to another address and other ports from now on. What comes to
    /// the former ones is dropped.
    pub fn move_mapping(&self) -> Result<()> {
        let Some(nat) = &self.nat else {
            return Err(Error::Machine("this testbed has no NAT".to_owned()));
        };
        self.map(self.addresses.seen_at(Side::A)[1], Some("20000-29999"))?;
        nat.run("conntrack -F").map(drop)
    }

    fn map(&self, to: Ipv4Addr, ports: Option<&str>) -> Result<()> {
        let Some(nat) = &self.nat else { return Ok(()) };
        let ports = ports.map_or_else(String::new, |ports| format!(":{ports}"));
        let rules = format!(
            "table ip nat\ndelete table ip nat\ntable ip nat {{\n\tchain mapped {{\n\t\ttype nat hook postrouting priority 100\n\
             \t\toifname \"{NAT_OUTSIDE}\" meta l4proto udp snat to {to}{ports}\n\t}}\n\
             \tchain unmapped {{\n\t\ttype filter hook input priority 0\n\t\tiifname \"{NAT_OUTSIDE}\" meta l4proto udp drop\n\t}}\n}}\n"
        );
        let file = std::env::temp_dir().join(unique_name(self.number, "nat"));
        std::fs::write(&file, rules).context(|| format!("writing {}", file.display()))?;
        let done = nat.run(&format!("nft -f {}", file.display()));
        drop(std::fs::remove_file(&file));
        done.map(drop)
    }

    /// The namespace of the delay box.
    pub fn delay_box(&self) -> &Namespace {
        &self.delay_box
    }
}

/// The NAT's interfaces, and its number behind it.
const NAT_INSIDE: &str = "nat-in";
const NAT_OUTSIDE: &str = "nat-out";
const NAT_HOST: u32 = 254;

/// Joins two namespaces by a veth pair, both ends up.
fn join(one: (&Namespace, &str), other: (&Namespace, &str)) -> Result<()> {
    join_queues(1, one, other)
}

/// What is sent by a queue of one end is received on the queue of that number at the other.
fn join_queues(queues: u32, one: (&Namespace, &str), other: (&Namespace, &str)) -> Result<()> {
    let ((namespace, name), (peer, peers_name)) = (one, other);
    let queues = format!("numtxqueues {queues} numrxqueues {queues}");
    let peers_end = format!("name {peers_name} {queues} netns {}", peer.name());
    namespace.ip(&format!("link add {name} {queues} type veth peer {peers_end}"))?;
    namespace.ip(&format!("link set {name} up"))?;
    peer.ip(&format!("link set {peers_name} up")).map(drop)
}

fn hardware_address(gateway: &Namespace, side: Side) -> Result<[u8; 6]> {
    parse_mac(&gateway.mac(&side.outside_interface())?)
}
