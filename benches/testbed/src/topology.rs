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

use crate::cleanup::{self, unique_name};
use crate::error::{Error, Result};
use crate::namespace::Namespace;
use std::fmt;
use std::net::Ipv4Addr;
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

/// The addresses of a topology. Gateways are `.1` inside, hosts `.2`; outside gateway A is `.1` and B `.2`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Addresses {
    /// Network of host A.
    pub inside_a: Network,
    /// Network of host B.
    pub inside_b: Network,
    /// The network between the gateways.
    pub outside: Network,
}

impl Default for Addresses {
    fn default() -> Self {
        let network = |a, b, c| Network { address: Ipv4Addr::new(a, b, c, 0), prefix: 24 };
        Addresses { inside_a: network(10, 1, 0), inside_b: network(10, 2, 0), outside: network(192, 0, 2) }
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

    /// The gateway's outer address.
    pub fn gateway_outside(&self, side: Side) -> Ipv4Addr {
        self.outside.host(match side {
            Side::A => 1,
            Side::B => 2,
        })
    }
}

/// The five namespaces; all are removed on drop.
#[derive(Debug)]
pub struct Topology {
    /// The number of this topology in this process; part of every name.
    pub number: u32,
    /// The addresses in use.
    pub addresses: Addresses,
    hosts: [Namespace; 2],
    gateways: [Namespace; 2],
    delay_box: Namespace,
}

impl Topology {
    /// Makes the namespaces, links, addresses and routes. Nothing passes the delay box before one is started.
    pub fn create(addresses: Addresses) -> Result<Topology> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        cleanup::prepare()?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let namespace = |what: &str| Namespace::create(&unique_name(number, what));
        let topology = Topology {
            number,
            addresses,
            hosts: [namespace("host-a")?, namespace("host-b")?],
            gateways: [namespace("gateway-a")?, namespace("gateway-b")?],
            delay_box: namespace("box")?,
        };
        topology.delay_box.sysctl("ipv6/conf/default/disable_ipv6", "1")?;
        topology.connect(Side::A)?;
        topology.connect(Side::B)?;
        Ok(topology)
    }

    fn connect(&self, side: Side) -> Result<()> {
        let (host, gateway, delay_box) = (self.host(side), self.gateway(side), &self.delay_box);
        let (on_host, inside) = (side.host_interface(), side.inside_interface());
        let (outside, on_box) = (side.outside_interface(), side.box_interface());
        let addresses = &self.addresses;
        let (here, there) = (addresses.inside(side), addresses.inside(side.other()));

        host.ip(&format!("link add {on_host} type veth peer name {inside} netns {}", gateway.name()))?;
        gateway.ip(&format!("link add {outside} type veth peer name {on_box} netns {}", delay_box.name()))?;
        host.ip(&format!("addr add {}/{} dev {on_host}", addresses.host(side), here.prefix))?;
        gateway.ip(&format!("addr add {}/{} dev {inside}", addresses.gateway_inside(side), here.prefix))?;
        gateway.ip(&format!(
            "addr add {}/{} dev {outside}",
            addresses.gateway_outside(side),
            addresses.outside.prefix
        ))?;
        for (namespace, interface) in
            [(host, &on_host), (gateway, &inside), (gateway, &outside), (delay_box, &on_box)]
        {
            namespace.ip(&format!("link set {interface} up"))?;
        }
        host.ip(&format!("route add default via {}", addresses.gateway_inside(side)))?;
        gateway.ip(&format!("route add {there} via {}", addresses.gateway_outside(side.other())))?;
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

    /// The hardware address of a gateway's outer interface.
    pub fn hardware_address(&self, side: Side) -> Result<[u8; 6]> {
        let text =
            self.gateway(side).run(&format!("cat /sys/class/net/{}/address", side.outside_interface()))?;
        let octets = text.trim().split(':').map_while(|octet| u8::from_str_radix(octet, 16).ok());
        octets
            .collect::<Vec<_>>()
            .try_into()
            .map_err(|_| Error::Machine(format!("`{}` is no hardware address", text.trim())))
    }

    /// The namespace of the delay box.
    pub fn delay_box(&self) -> &Namespace {
        &self.delay_box
    }
}
