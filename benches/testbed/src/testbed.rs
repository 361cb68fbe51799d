//! The whole testbed in one value: what integration tests and the demo are written on.
//!
//! ```no_run
//! # fn main() -> spindle_testbed::Result<()> {
//! use spindle_testbed::{Options, Side, Testbed};
//! use std::time::{Duration, Instant};
//!
//! let mut testbed = Testbed::two_gateways(Options::default())?;
//! testbed.start(Duration::from_secs(10))?;
//! testbed.gateway(Side::A).initiate()?;
//! assert_eq!(testbed.ping(Side::A, 5)?.len(), 5);
//! testbed.gateway_mut(Side::B).kill_group()?;
//! let wires = testbed.finish()?;
//! assert!(testbed.leaks(&wires).is_empty());
//! # Ok(())
//! # }
//! ```

use crate::capture::Capture;
use crate::cleanup::{self, Guard, unique_name};
use crate::delay::{DelayBox, Link};
use crate::error::{Context, Error, Result};
use crate::flood::Flood;
use crate::gateway::{Gateway, Settings, program_folder};
use crate::keepalived::Keepalived;
use crate::leak::{InsideNetwork, Leak, leaks};
use crate::packet::{OFFLOAD_HEADER, PacketSocket, Show, now};
use crate::pcap::Frame;
use crate::topology::{Addresses, IPV6_PREFIX, Layout, Member, Network, Side, Topology, ipv6};
use crate::traffic::{self, Host, Marker, Stream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What a testbed is made with.
#[derive(Clone, PartialEq, Debug)]
pub struct Options {
    /// Addresses.
    pub addresses: Addresses,
    /// The link between the gateways.
    pub link: Link,
    /// Gateway A's configuration.
    pub a: Settings,
    /// Gateway B's configuration.
    pub b: Settings,
    /// What stands in the gateways' places.
    pub layout: Layout,
    /// The configuration of a pair's second gateway.
    pub second: Settings,
    /// The folder of the gateways' programs; if `None`, that of this program, or `SPINDLE_BIN_DIR`.
    pub programs: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            addresses: Addresses::default(),
            link: Link::with_round_trip(Duration::ZERO),
            a: Settings::default(),
            b: Settings::default(),
            layout: Layout::Plain,
            second: Settings::default(),
            programs: None,
        }
    }
}

/// The frames of both outer wires, from before the gateways were first started.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wires {
    /// On gateway A's outer interface.
    pub a: Vec<Frame>,
    /// On gateway B's outer interface.
    pub b: Vec<Frame>,
}

/// Two hosts, two gateways, a delay box and captures on both outer wires. Dropping it removes all.
#[derive(Debug)]
pub struct Testbed {
    // In this order they are dropped: processes, captures, delay box, namespaces, files.
    keepaliveds: [Option<Keepalived>; 2],
    gateways: [Gateway; 2],
    second: Option<Gateway>,
    captures: Option<[Capture; 2]>,
    delay: DelayBox,
    topology: Topology,
    marker: Marker,
    directory: PathBuf,
    _guard: Guard,
}

impl Testbed {
    /// Makes everything and starts the captures; the gateways are configured but not started.
    pub fn two_gateways(options: Options) -> Result<Testbed> {
        cleanup::prepare()?;
        let topology = Topology::with_layout(options.addresses, options.layout)?;
        let directory = std::env::temp_dir().join(unique_name(topology.number, "files"));
        let guard = Guard::directory(&directory);
        std::fs::create_dir_all(&directory).context(|| format!("making {}", directory.display()))?;
        let capture = |side: Side| {
            let path = directory.join(format!("outer-{}.pcap", side.letter()));
            let (namespace, interface) = topology.wire(side);
            Capture::start(namespace, &interface, &path)
        };
        let captures = Some([capture(Side::A)?, capture(Side::B)?]);
        let delay = DelayBox::start(&topology, options.link)?;
        let programs = options.programs.map_or_else(program_folder, Ok)?;
        let gateway = |side: Side, namespace, name: &str, settings| {
            let directory = directory.join(name);
            let gateway = Gateway::new(side, &topology.addresses, namespace, &directory, &programs)?;
            gateway.configure(settings, &topology.addresses)?;
            Ok(gateway)
        };
        let gateways = [
            gateway(Side::A, topology.gateway(Side::A), "a", &options.a)?,
            gateway(Side::B, topology.gateway(Side::B), "b", &options.b)?,
        ];
        let second = match options.layout {
            Layout::Plain | Layout::Queues(_) | Layout::Nat | Layout::Vlans { .. } => None,
            Layout::Pair => Some(gateway(Side::B, topology.member(Member::Second), "b2", &options.second)?),
        };
        Ok(Testbed {
            keepaliveds: [None, None],
            gateways,
            second,
            captures,
            delay,
            topology,
            marker: Marker::random(),
            directory,
            _guard: guard,
        })
    }

    /// Starts both gateways, or all three, and waits until they are ready.
    pub fn start(&mut self, patience: Duration) -> Result<()> {
        for gateway in self.gateways.iter_mut().chain(&mut self.second) {
            gateway.start()?;
        }
        for gateway in self.gateways.iter_mut().chain(&mut self.second) {
            gateway.wait_ready(patience)?;
        }
        Ok(())
    }

    /// A gateway.
    pub fn gateway(&self, side: Side) -> &Gateway {
        &self.gateways[side as usize]
    }

    /// A gateway, to start, kill or stop it.
    pub fn gateway_mut(&mut self, side: Side) -> &mut Gateway {
        &mut self.gateways[side as usize]
    }

    /// One of the two gateways in B's place; without a pair there is but the first.
    pub fn member(&self, member: Member) -> &Gateway {
        match (&self.second, member) {
            (Some(second), Member::Second) => second,
            _ => self.gateway(Side::B),
        }
    }

    /// The same, to start or stop it.
    pub fn member_mut(&mut self, member: Member) -> &mut Gateway {
        match (&mut self.second, member) {
            (Some(second), Member::Second) => second,
            _ => &mut self.gateways[Side::B as usize],
        }
    }

    /// Starts keepalived beside one of a pair.
    pub fn start_keepalived(&mut self, member: Member) -> Result<()> {
        let keepalived = Keepalived::start(&self.topology, member, self.member(member).directory())?;
        self.keepaliveds[member as usize] = Some(keepalived);
        Ok(())
    }

    /// Waits until one of a pair holds the shared addresses.
    pub fn wait_active(&self, member: Member, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        while !self.topology.holds_shared_addresses(member)? {
            if Instant::now() > deadline {
                let log = self.member(member).directory().join("keepalived.log");
                let log = std::fs::read_to_string(log).unwrap_or_default();
                let text = format!("{member:?} is not the active one after {patience:?}; keepalived:\n{log}");
                return Err(Error::Subject(text));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// One of a pair dies with its machine: off the wires, then its processes; when, CLOCK_REALTIME in nanoseconds.
    pub fn power_off(&mut self, member: Member) -> Result<u64> {
        let killed = now();
        self.topology.cut_off(member)?;
        self.keepaliveds[member as usize] = None;
        self.member_mut(member).kill_group()?;
        // Its kernel, which lives on here, would bring them up again with the links.
        self.topology.take_shared_addresses(member);
        Ok(killed)
    }

    /// Ends both keepaliveds without a word; whoever holds the shared addresses keeps them.
    pub fn end_keepaliveds(&mut self) {
        self.keepaliveds = [None, None];
    }

    /// A host.
    pub fn host(&self, side: Side) -> Host<'_> {
        let addresses = &self.topology.addresses;
        Host {
            namespace: self.topology.host(side),
            address: addresses.versions.inside.of(addresses.host(side)),
        }
    }

    /// The namespaces and addresses.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The delay box: round-trip time, losses, filters, counters.
    pub fn delay(&self) -> &DelayBox {
        &self.delay
    }

    /// What begins every payload of this testbed.
    pub fn marker(&self) -> Marker {
        self.marker
    }

    /// Where the gateways' files and the captures lie.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Sends a packet of 100 octets each `interval` from one host to the other.
    pub fn stream(&self, from: Side, interval: Duration) -> Result<Stream> {
        Stream::start(self.host(from), self.host(from.other()), self.marker, interval, 100)
    }

    /// The times in milliseconds of the answers to `count` echo requests from one host to the other.
    pub fn ping(&self, from: Side, count: u32) -> Result<Vec<f64>> {
        traffic::ping(self.host(from), self.host(from.other()).address, count, 56)
    }

    /// Moves octets over TCP from one host to the other.
    pub fn tcp_transfer(&self, from: Side, octets: usize, patience: Duration) -> Result<traffic::Transfer> {
        traffic::tcp_transfer(self.host(from), self.host(from.other()), self.marker, octets, patience)
    }

    /// The sizes of UDP payloads that do not arrive whole.
    pub fn udp_sweep(&self, from: Side, sizes: std::ops::RangeInclusive<usize>) -> Result<Vec<usize>> {
        let (from, to) = (self.host(from), self.host(from.other()));
        let (interval, settle) = (Duration::from_micros(200), Duration::from_secs(1));
        traffic::udp_sweep(from, to, self.marker, sizes, interval, settle)
    }

    /// Puts a frame of one's own on the outer wire toward a gateway, as if the delay box had it from the other side.
    pub fn inject(&self, toward: Side, frame: &[u8]) -> Result<()> {
        self.inject_all(toward, [frame])
    }

    /// The same with many, one after the other as fast as they go.
    pub fn inject_all<'a>(&self, toward: Side, frames: impl IntoIterator<Item = &'a [u8]>) -> Result<()> {
        let socket = PacketSocket::open(
            self.topology.delay_box(),
            &toward.box_interface(),
            Show::ArrivingWithOffloads,
        )?;
        for frame in frames {
            if !socket.send(&[&[0; OFFLOAD_HEADER][..], frame].concat()) {
                let length = frame.len();
                return Err(Error::Machine(format!("the kernel would not send a frame of {length} octets")));
            }
        }
        Ok(())
    }

    /// The same with many frames, at a rate, until the flood is dropped.
    pub fn flood(
        &self,
        toward: Side,
        per_second: u32,
        frame: impl FnMut(u64) -> Vec<u8> + Send + 'static,
    ) -> Result<Flood> {
        Flood::start(self.topology.delay_box(), &toward.box_interface(), per_second, frame)
    }

    /// Ends the captures; what both saw. Gateways go on.
    pub fn finish(&mut self) -> Result<Wires> {
        let Some([a, b]) = self.captures.take() else {
            return Err(Error::Capture("it was ended before".to_owned()));
        };
        Ok(Wires { a: a.stop()?, b: b.stop()? })
    }

    /// Inside addresses and payload markers on the outer wires.
    pub fn leaks(&self, wires: &Wires) -> Vec<Leak> {
        let addresses = &self.topology.addresses;
        let both = |network: Network| {
            [
                InsideNetwork::V4(network),
                InsideNetwork::V6(ipv6(network.address), IPV6_PREFIX + network.prefix),
            ]
        };
        let inside = [both(addresses.inside_a), both(addresses.inside_b)].concat();
        let mut found = leaks(&wires.a, &inside, self.marker);
        found.extend(leaks(&wires.b, &inside, self.marker));
        found
    }
}
