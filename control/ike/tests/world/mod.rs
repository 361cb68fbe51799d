//! Two gateways, a network between them, and a model of each one's dataplane. Time jumps to whatever comes next.
#![allow(dead_code, unreachable_pub)]

pub mod death;
pub mod peer;
pub mod redirects;
pub mod tickets;

use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use spindle_abi::{
    Command, Mode, SaActivity, SaParameters, Selector, SelectorSet, Spi, SpiState, Time, Trigger,
};
use spindle_ike::Endpoint;
use spindle_ike::api::*;
use spindle_ike::random::Random;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;
use zeroize::Zeroizing;

pub const A: usize = 0;
pub const B: usize = 1;
/// A third gateway, in the worlds that have one.
pub const C: usize = 2;

pub struct Seeded(pub ChaCha12Rng);

impl Random for Seeded {
    fn fill(&mut self, octets: &mut [u8]) {
        self.0.fill_bytes(octets);
    }
}

/// Tokens that are as good as random for a test: the SPIs and the maker.
pub fn token(maker: usize, spis: IkeSpis) -> Vec<u8> {
    [&spis.initiator[..], &spis.responder[..], &[maker as u8; 16]].concat()
}

struct Maker(usize);

impl TokenMaker for Maker {
    fn token(&self, spis: IkeSpis, _: IpAddr) -> Option<Vec<u8>> {
        Some(token(self.0, spis))
    }
}

type Activities = Rc<RefCell<BTreeMap<u32, SaActivity>>>;

struct Activity(Activities);

impl ActivityReader for Activity {
    fn activity(&self, index: u32) -> SaActivity {
        self.0.borrow().get(&index).copied().unwrap_or_default()
    }
}

/// What the dataplane of one side holds.
#[derive(Default)]
pub struct Plane {
    pub inbound: BTreeMap<Spi, (SaParameters, bool)>,
    /// In order of installation.
    pub outbound: Vec<SaParameters>,
    pub states: BTreeMap<Spi, SpiState>,
    /// What a control process that begins anew has not said again; none is at work.
    doubts: Option<(BTreeSet<Spi>, BTreeSet<u32>)>,
}

impl Plane {
    fn apply(&mut self, command: Command) {
        let Some(command) = self.is_new(command) else { return };
        match command {
            Command::SetSpiState { spi, state } => {
                if state == SpiState::Retired {
                    assert!(self.inbound.remove(&spi).is_some(), "retired without having been current");
                }
                assert!(!self.inbound.contains_key(&spi), "{state:?} for a current SPI");
                match state {
                    SpiState::Unknown => drop(self.states.remove(&spi)),
                    state => drop(self.states.insert(spi, state)),
                }
            }
            Command::InstallInbound { sa, report_first, .. } => {
                assert_eq!(self.states.get(&sa.spi), Some(&SpiState::Larval), "installed without larval");
                assert!(self.indices().all(|i| i != sa.index), "index used twice");
                self.states.insert(sa.spi, SpiState::Current);
                self.inbound.insert(sa.spi, (sa, report_first));
            }
            Command::InstallOutbound { sa } => {
                assert!(self.indices().all(|i| i != sa.index), "index used twice");
                self.outbound.push(sa);
            }
            Command::RemoveOutbound { index } => {
                let before = self.outbound.len();
                self.outbound.retain(|sa| sa.index != index);
                assert_eq!(self.outbound.len() + 1, before, "removed what was not there");
            }
            Command::Readdress { index, local, remote } => {
                let inbound = self.inbound.values_mut().map(|(sa, _)| sa);
                let sa = inbound.chain(&mut self.outbound).find(|sa| sa.index == index).expect("an SA");
                (sa.local, sa.remote) = (local, remote);
            }
            other => panic!("{other:?}"),
        }
    }

    fn indices(&self) -> impl Iterator<Item = u32> {
        self.inbound.values().map(|(sa, _)| sa.index).chain(self.outbound.iter().map(|sa| sa.index))
    }
}

pub struct Side {
    pub endpoint: Endpoint,
    pub plane: Plane,
    pub activities: Activities,
    config: EndpointConfig,
    seed: u64,
    /// What outlives the endpoint.
    pub region: BTreeMap<Key, Zeroizing<Vec<u8>>>,
    /// After so many outputs, writes among them, the endpoint dies.
    pub fuse: Option<u32>,
    pub deaths: u32,
    pub reports: Vec<Report>,
    pub unmatched: Vec<Unmatched>,
    pub address: SocketAddr,
}

enum Flight {
    Ike(Datagram),
    Esp(Box<SaParameters>),
}

/// What the network does with a datagram: the delays of its copies; none is a loss.
pub type Fate = Vec<Duration>;
/// Decides on each datagram; `None` is the usual delay.
pub type Network = Box<dyn FnMut(usize, u64, &mut Datagram) -> Option<Fate>>;

pub struct World {
    pub now: Time,
    pub sides: Vec<Side>,
    flights: VecDeque<(Time, u64, usize, Flight)>,
    sequence: u64,
    pub latency: Duration,
    /// Sees every IKE datagram (sender, number from 0, datagram, without marker).
    pub network: Network,
    pub sent: u64,
    pub recorded: Vec<(usize, Datagram)>,
    /// An ESP packet each way this often.
    pub traffic: Option<Duration>,
    /// NAT keepalives: when, by whom.
    pub keepalives: Vec<(Time, usize)>,
    next_packet: Time,
    pub delivered: [u64; 3],
    pub lost: u64,
    /// A NAT in front of A: its outer address.
    pub nat: Option<SocketAddr>,
    /// The address behind the NAT that a packet to it goes to, by NAT port.
    mappings: BTreeMap<u16, SocketAddr>,
}

pub fn selectors(local: [u8; 4], remote: [u8; 4]) -> SelectorSet {
    let net = |a: [u8; 4]| {
        Selector::addresses(IpAddr::from([a[0], a[1], a[2], 0]), IpAddr::from([a[0], a[1], a[2], 255]))
    };
    SelectorSet { local: vec![net(local)], remote: vec![net(remote)] }
}

/// From the net behind one side to the other's.
pub fn packet_from(side: usize) -> Trigger {
    let host = |side: usize| IpAddr::from([10, 1 + side as u8, 0, 7]);
    Trigger { source: host(side), destination: host(1 - side), protocol: 6, ports: Some((40_000, 443)) }
}

pub fn child(name: &str, side: usize, number: u8) -> ChildConfig {
    let nets = [[10, 1, number, 0], [10, 2, number, 0]];
    ChildConfig {
        name: name.into(),
        policy: u32::from(number) + 1,
        interface: 0,
        transport: TransportMode::Never,
        selectors: selectors(nets[side], nets[1 - side]),
        proposals: vec!["aes128gcm16".into()],
        rekey_time: Duration::ZERO,
        lifetime: Lifetime::default(),
        replay_window: 1024,
        hold_packets: 0,
        resources: 0,
        start_action: StartAction::Trap,
    }
}

pub fn address(side: usize) -> IpAddr {
    IpAddr::from([192, 0, 2, 1 + side as u8])
}

pub fn connection(side: usize) -> ConnectionConfig {
    let id = |side: usize| Identity::Fqdn(format!("gw{side}.example"));
    ConnectionConfig {
        name: "peer".into(),
        local: address(side),
        remote: Some(address(1 - side)),
        remote_port: 500,
        local_id: id(side),
        remote_id: id(1 - side),
        psk: Psk(Zeroizing::new(b"a secret between two".to_vec())),
        proposals: vec!["aes128gcm16-prfsha256-x25519".into()],
        force_encapsulation: false,
        dpd_delay: Duration::ZERO,
        retransmission: Retransmission { timeout: Duration::from_secs(1), base: 1.5, tries: 4 },
        rekey_time: Duration::ZERO,
        resumption: false,
        redirect_to: Vec::new(),
        start_action: StartAction::Trap,
        children: vec![child("net", side, 0)],
    }
}

pub fn config(side: usize) -> EndpointConfig {
    EndpointConfig::new(vec![connection(side)])
}

fn endpoint(config: EndpointConfig, number: usize, seed: u64, activities: &Activities) -> Endpoint {
    let activity = Box::new(Activity(activities.clone()));
    let random = Box::new(Seeded(ChaCha12Rng::seed_from_u64(seed)));
    Endpoint::new(config, Box::new(Maker(number)), activity, random)
}

impl World {
    pub fn new(seed: u64) -> World {
        World::with(seed, config(A), config(B))
    }

    pub fn with(seed: u64, a: EndpointConfig, b: EndpointConfig) -> World {
        World::of(seed, vec![a, b])
    }

    pub fn of(seed: u64, configs: Vec<EndpointConfig>) -> World {
        let mut number = 0;
        let sides = configs.into_iter().map(|config| {
            let activities = Activities::default();
            let seed = seed.wrapping_mul(2).wrapping_add(number as u64);
            let side = Side {
                endpoint: endpoint(config.clone(), number, seed, &activities),
                config,
                seed,
                region: BTreeMap::new(),
                fuse: None,
                deaths: 0,
                plane: Plane::default(),
                activities,
                reports: Vec::new(),
                unmatched: Vec::new(),
                address: SocketAddr::new(address(number), 500),
            };
            number += 1;
            side
        });
        World {
            now: Time(1_000_000_000),
            sides: sides.collect(),
            flights: VecDeque::new(),
            sequence: 0,
            latency: Duration::from_millis(10),
            network: Box::new(|_, _, _| None),
            sent: 0,
            recorded: Vec::new(),
            traffic: None,
            keepalives: Vec::new(),
            next_packet: Time(0),
            delivered: [0; 3],
            lost: 0,
            nat: None,
            mappings: BTreeMap::new(),
        }
    }

    /// Something is done to one side's endpoint.
    pub fn at<R>(&mut self, side: usize, f: impl FnOnce(&mut Endpoint, Time) -> R) -> R {
        let result = f(&mut self.sides[side].endpoint, self.now);
        self.collect(side);
        result
    }

    pub fn initiate(&mut self, side: usize) {
        self.at(side, |e, now| e.initiate(now, "peer", None, false)).unwrap();
    }

    fn collect(&mut self, side: usize) {
        if self.keep_changes(side) {
            return self.revive(side);
        }
        while let Some(output) = self.sides[side].endpoint.poll() {
            if self.burns_down(side) {
                return self.revive(side);
            }
            match output {
                Output::Transmit(datagram) => self.transmit(side, datagram),
                Output::Dataplane(command) => self.sides[side].plane.apply(command),
                Output::Report(report) => self.sides[side].reports.push(report),
                Output::Unmatched(unmatched) => self.sides[side].unmatched.push(unmatched),
            }
        }
    }

    fn transmit(&mut self, from: usize, mut datagram: Datagram) {
        if datagram.data == [0xff] {
            self.keepalives.push((self.now, from));
            return;
        }
        let number = self.sent;
        self.sent += 1;
        self.recorded.push((from, datagram.clone()));
        let fate = (self.network)(from, number, &mut datagram).unwrap_or_else(|| vec![self.latency]);
        for delay in fate {
            if let Some(received) = self.translate(from, &datagram) {
                let to = self.side_at(received.local.ip(), from);
                self.fly(to, delay, Flight::Ike(received));
            }
        }
    }

    /// As the other side receives it.
    fn translate(&mut self, from: usize, sent: &Datagram) -> Option<Datagram> {
        let (mut source, mut destination) = (sent.local, sent.remote);
        if let Some(nat) = self.nat {
            if from == A {
                let outer = SocketAddr::new(nat.ip(), nat.port().wrapping_add(source.port()));
                self.mappings.insert(outer.port(), source);
                source = outer;
            } else if destination.ip() == nat.ip() {
                destination = *self.mappings.get(&destination.port())?;
            }
        }
        Some(Datagram { local: destination, remote: source, data: sent.data.clone() })
    }

    /// Who has this address; in a world of two, the other one.
    fn side_at(&self, address: IpAddr, from: usize) -> usize {
        match self.sides.len() {
            2 => 1 - from,
            _ => self.sides.iter().position(|side| side.address.ip() == address).expect("an address here"),
        }
    }

    fn fly(&mut self, to: usize, delay: Duration, flight: Flight) {
        self.sequence += 1;
        let at = self.now.after(delay);
        let position = self.flights.partition_point(|f| (f.0, f.1) < (at, self.sequence));
        self.flights.insert(position, (at, self.sequence, to, flight));
    }

    /// A datagram out of nowhere.
    pub fn inject(&mut self, to: usize, datagram: Datagram) {
        self.at(to, |e, now| e.handle(now, datagram));
    }

    /// Goes to the next event; `false` if there is none before `until`.
    pub fn step(&mut self, until: Time) -> bool {
        let flight = self.flights.front().map(|f| f.0);
        let deadlines = self.sides.iter().filter_map(|s| s.endpoint.deadline());
        let packet = self.traffic.map(|_| self.next_packet.max(self.now));
        let Some(at) = deadlines.chain(flight).chain(packet).min().filter(|at| *at <= until) else {
            self.now = self.now.max(until);
            return false;
        };
        self.now = self.now.max(at);
        if let Some((_, _, to, flight)) = self.flights.pop_front_if(|f| f.0 <= self.now) {
            match flight {
                Flight::Ike(datagram) => self.at(to, |e, now| e.handle(now, datagram)),
                Flight::Esp(sa) => self.receive_esp(to, &sa),
            }
        } else if let Some(interval) = self.traffic.filter(|_| self.next_packet <= self.now) {
            self.next_packet = self.now.after(interval);
            self.send_esp(A);
            self.send_esp(B);
        } else {
            for side in 0..self.sides.len() {
                if self.sides[side].endpoint.deadline().is_some_and(|d| d <= self.now) {
                    self.at(side, |e, now| e.tick(now));
                }
            }
        }
        true
    }

    pub fn run(&mut self, duration: Duration) {
        let until = self.now.after(duration);
        let mut steps = 0;
        while self.step(until) {
            steps += 1;
            assert!(steps < 2_000_000, "no progress");
        }
    }

    pub fn send_esp(&mut self, from: usize) {
        match self.sides[from].plane.outbound.last().cloned() {
            Some(sa) => {
                let mut activities = self.sides[from].activities.borrow_mut();
                let activity = activities.entry(sa.index).or_default();
                activity.packets += 1;
                activity.last = self.now;
                drop(activities);
                let to = self.side_at(sa.remote.ip(), from);
                self.fly(to, self.latency, Flight::Esp(Box::new(sa)));
            }
            None => self.lost += 1,
        }
    }

    fn receive_esp(&mut self, to: usize, sent: &SaParameters) {
        let now = self.now;
        let side = &mut self.sides[to];
        let Some((sa, report)) = side.plane.inbound.get_mut(&sent.spi) else {
            self.lost += 1;
            return;
        };
        // Equal keys and mirrored selectors, or the packet would not be accepted.
        assert_eq!(sa.keymat, sent.keymat);
        assert_eq!((sa.mode, sa.suite), (sent.mode, sent.suite));
        if sa.mode == Mode::Tunnel || self.nat.is_none() {
            assert_eq!(&sa.selectors.local, &sent.selectors.remote);
        }
        let mut activities = side.activities.borrow_mut();
        let activity = activities.entry(sa.index).or_default();
        activity.packets += 1;
        activity.last = now;
        drop(activities);
        self.delivered[to] += 1;
        if std::mem::take(report) {
            let spi = sent.spi;
            self.at(to, |e, now| e.first_inbound(now, spi));
        }
    }

    pub fn sas(&self, side: usize) -> Vec<IkeSaStatus> {
        self.sides[side].endpoint.sas()
    }

    /// A side's Child SA; of several, the first that is installed.
    pub fn child(&self, side: usize) -> ChildSaId {
        let sas = self.sas(side);
        let installed = sas.iter().flat_map(|sa| &sa.children).find(|c| c.state == "installed");
        installed.expect("an installed Child SA").id
    }

    /// A side's IKE SA; of several, the first that is established.
    pub fn ike_sa(&self, side: usize) -> IkeSaId {
        self.sas(side).iter().find(|sa| sa.state == "established").expect("an IKE SA").id
    }

    /// Exactly one IKE SA with exactly one Child SA, the same at both ends; packets pass both ways.
    #[track_caller]
    pub fn assert_one_of_each(&mut self) {
        let [a, b] = [A, B].map(|side| {
            let sas = self.sas(side);
            assert_eq!(sas.len(), 1, "IKE SAs of {side}: {sas:#?}");
            assert_eq!(sas[0].state, "established");
            assert_eq!(sas[0].children.len(), 1, "Child SAs of {side}: {sas:#?}");
            assert_eq!(sas[0].children[0].state, "installed");
            sas[0].clone()
        });
        assert_eq!(a.spis, b.spis);
        assert_ne!(a.initiator, b.initiator);
        let (ca, cb) = (&a.children[0], &b.children[0]);
        assert_eq!((ca.inbound, ca.outbound), (cb.outbound, cb.inbound));
        self.assert_passes();
    }

    /// A packet passes each way now.
    #[track_caller]
    pub fn assert_passes(&mut self) {
        let (before, lost) = (self.delivered, self.lost);
        self.send_esp(A);
        self.send_esp(B);
        self.run(self.latency * 2);
        assert_eq!(self.lost, lost, "a packet was lost");
        assert!(self.delivered[A] > before[A] && self.delivered[B] > before[B]);
    }

    /// Nothing but what lives is left in the dataplanes.
    #[track_caller]
    pub fn assert_planes(&self, inbound: usize, outbound: usize) {
        for side in &self.sides {
            assert_eq!(side.plane.inbound.len(), inbound, "inbound {:?}", side.plane.inbound);
            assert_eq!(side.plane.outbound.len(), outbound, "outbound {:?}", side.plane.outbound);
        }
    }

    /// Two that do not give up soon.
    pub fn patient(seed: u64) -> World {
        World::patient_for_long(seed).established_by_a()
    }

    /// The same before anything is established.
    pub fn patient_for_long(seed: u64) -> World {
        let configs = [A, B].map(|side| {
            let mut connection = connection(side);
            connection.retransmission.base = 1.05;
            connection.retransmission.tries = 40;
            EndpointConfig::new(vec![connection])
        });
        let [a, b] = configs;
        World::with(seed, a, b)
    }

    pub fn established(seed: u64) -> World {
        World::new(seed).established_by_a()
    }

    pub fn established_by_a(self) -> World {
        let mut world = self;
        world.initiate(A);
        world.run(Duration::from_secs(1));
        world.assert_one_of_each();
        world
    }

    pub fn reports(&self, side: usize, which: impl Fn(&Report) -> bool) -> usize {
        self.sides[side].reports.iter().filter(|r| which(r)).count()
    }
}
