//! Two gateways and the wire between them, with a dataplane that only knows which SPI is in which state: packets
//! are SPIs that arrive or do not.

use super::{Disk, Seeded};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use spindle_abi::{Command, Event, Selector, SelectorSet, Spi, SpiReport, SpiState, Time, Trigger};
use spindle_abi::{SaActivity, SaParameters};
use spindle_ike::api::*;
use spindle_ike::wire::{Message, Payload, strip_non_esp_marker};
use spindle_recovery::Gateway;
use spindle_recovery::api::{Config, Generation, Input, Limits, Method, Output, Report as Told, TokenMethod};
use spindle_recovery::secrets::{Anchor, decode_secrets};
use spindle_recovery::store::{SmallFile, Store, write_secrets};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;
use zeroize::Zeroizing;

pub const INTERVAL: Duration = Duration::from_millis(10);
pub const A: usize = 0;
pub const B: usize = 1;

type Activity = Rc<RefCell<HashMap<u32, SaActivity>>>;

struct Reader(Activity);

impl ActivityReader for Reader {
    fn activity(&self, index: u32) -> SaActivity {
        self.0.borrow().get(&index).copied().unwrap_or_default()
    }
}

/// What a test wants different from the usual.
#[derive(Clone)]
pub struct Setup {
    pub journal: bool,
    pub methods: Vec<Method>,
    /// Of each side's connection; empty: as above.
    pub own_methods: [Vec<Method>; 2],
    pub proactive: bool,
    pub replicated: bool,
    /// The maker id of both members of a cluster that each side then is, with a secret that is shared.
    pub cluster: Option<&'static str>,
    /// Child SAs, `net` first, then `net1` and so on.
    pub children: u8,
    /// One way.
    pub delay: Duration,
    pub encapsulation: bool,
    /// Which sides send a packet each 10 ms.
    pub sending: [bool; 2],
    pub token_method: TokenMethod,
    pub secret_rotation: Duration,
    /// Whatever else.
    pub change: Option<fn(&mut Config)>,
    pub seed: u64,
    pub resumption: bool,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            journal: true,
            methods: vec![Method::Qcd, Method::Liveness],
            own_methods: Default::default(),
            proactive: false,
            replicated: false,
            cluster: None,
            children: 1,
            delay: Duration::from_millis(10),
            encapsulation: false,
            sending: [true, false],
            token_method: TokenMethod::Spis,
            secret_rotation: Duration::ZERO,
            change: None,
            seed: 1,
            resumption: false,
        }
    }
}

/// A gateway that runs, with its dataplane.
pub struct Running {
    pub gateway: Gateway,
    store: Store,
    states: HashMap<Spi, SpiState>,
    inbound: HashMap<Spi, (SaParameters, bool)>,
    outbound: Vec<SaParameters>,
    activity: Activity,
    /// What the dataplane was told, in this order.
    pub commands: Vec<Command>,
    acquired: Option<Time>,
}

/// A place where a gateway runs, or does not.
pub struct Side {
    pub disk: Disk,
    pub running: Option<Running>,
    /// What it told, with the time.
    pub told: Vec<(Time, Told)>,
    /// Packets that were delivered to it.
    pub delivered: Vec<Time>,
    next_packet: Time,
}

enum Flying {
    Ike(Datagram),
    Esp { spi: Spi, source: SocketAddr, destination: SocketAddr },
}

/// A datagram on its way may be changed, dropped or multiplied: sender, datagram → datagrams.
pub type Interference = Box<dyn FnMut(usize, Datagram) -> Vec<Datagram>>;

pub struct World {
    pub setup: Setup,
    pub now: Time,
    pub sides: [Side; 2],
    flying: Vec<(Time, u64, usize, Flying)>,
    number: u64,
    pub interference: Option<Interference>,
    /// IKE messages in clear that left, with their sender.
    pub clear: Vec<(Time, usize, Message)>,
    /// Tokens that each side has shown in clear.
    pub shown: [HashSet<Vec<u8>>; 2],
    /// All IKE datagrams that left.
    pub sent: Vec<(Time, usize, Datagram)>,
    random: Seeded,
}

pub fn address(side: usize) -> IpAddr {
    IpAddr::from([192, 0, 2, 1 + side as u8])
}

fn behind(side: usize, n: u8) -> Selector {
    let net = 10 + side as u8;
    Selector::addresses(IpAddr::from([net, 0, n, 0]), IpAddr::from([net, 0, n, 255]))
}

/// The policy of the child `net`, which packets are for.
pub const POLICY: u32 = 7;

fn config(setup: &Setup, side: usize) -> Config {
    let id = |side: usize| Identity::Fqdn(format!("gateway{side}.example"));
    let child = |n: u8| ChildConfig {
        name: if n == 0 { "net".into() } else { format!("net{n}") },
        policy: POLICY + u32::from(n),
        interface: 0,
        transport: TransportMode::Never,
        selectors: SelectorSet { local: vec![behind(side, n)], remote: vec![behind(1 - side, n)] },
        proposals: vec!["aes128gcm16".into()],
        rekey_time: Duration::ZERO,
        lifetime: Lifetime::default(),
        replay_window: 64,
        hold_packets: 0,
        resources: 0,
        start_action: StartAction::Trap,
    };
    let connection = ConnectionConfig {
        name: "site".into(),
        local: address(side),
        remote: Some(address(1 - side)),
        remote_port: 500,
        local_id: id(side),
        remote_id: id(1 - side),
        psk: Psk(Zeroizing::new(b"only for tests".to_vec())),
        proposals: vec!["aes128gcm16-prfsha256-x25519".into()],
        force_encapsulation: setup.encapsulation,
        dpd_delay: Duration::from_secs(30),
        retransmission: Retransmission { timeout: Duration::from_millis(500), base: 1.5, tries: 4 },
        rekey_time: Duration::ZERO,
        resumption: setup.resumption,
        redirect_to: Vec::new(),
        start_action: StartAction::Trap,
        children: (0..setup.children).map(child).collect(),
    };
    let own = Some(setup.own_methods[side].clone()).filter(|methods| !methods.is_empty());
    let mut config = Config {
        name: format!("gateway{side}"),
        connections: vec![connection.into()],
        policies: Vec::new(),
        methods: setup.methods.clone(),
        connection_methods: own.into_iter().map(|methods| ("site".into(), methods)).collect(),
        proactive: setup.proactive,
        replicated: setup.replicated || setup.cluster.is_some(),
        token_maker: true,
        token_taker: true,
        token_method: setup.token_method,
        secret_rotation: setup.secret_rotation,
        secret_shared: setup.cluster.is_some(),
        journal: setup.journal,
        limits: Limits::default(),
        cookie_threshold: 64,
        ticket_lifetime: Duration::from_secs(3600),
    };
    if let Some(change) = setup.change {
        change(&mut config);
    }
    config
}

impl World {
    /// Both gateways run.
    pub fn new(setup: Setup) -> World {
        let side = || Side {
            disk: Disk::default(),
            running: None,
            told: Vec::new(),
            delivered: Vec::new(),
            next_packet: Time(0),
        };
        let mut world = World {
            random: Seeded::new(setup.seed),
            setup,
            now: Time(1_000_000_000),
            sides: [side(), side()],
            flying: Vec::new(),
            number: 0,
            interference: None,
            clear: Vec::new(),
            shown: Default::default(),
            sent: Vec::new(),
        };
        world.start(A);
        world.start(B);
        world
    }

    /// Both, and the tunnel up with packets delivered to wherever packets are sent.
    pub fn up(setup: Setup) -> World {
        let mut world = World::new(setup);
        world.run(Duration::from_secs(2));
        let sending = world.setup.sending;
        for side in [A, B] {
            if sending[1 - side] {
                assert!(!world.sides[side].delivered.is_empty(), "the tunnel is not up");
            }
        }
        world
    }

    pub fn start(&mut self, side: usize) {
        self.start_with(side, None);
    }

    /// Another member of the cluster, which never had an SA, starts in the place of a side that is down: a disk of its
    /// own, the secret of the one before, and these addresses.
    pub fn start_standby(&mut self, side: usize, here: &[IpAddr]) {
        let disk = Disk::default();
        disk.set_file(SmallFile::Secret, self.sides[side].disk.file(SmallFile::Secret).as_deref());
        self.sides[side].disk = disk;
        self.start_with(side, Some(here));
    }

    /// Addresses came or left.
    pub fn addresses(&mut self, side: usize, here: &[IpAddr]) {
        self.input(side, Input::Addresses(here.to_vec()));
    }

    fn start_with(&mut self, side: usize, here: Option<&[IpAddr]>) {
        let mut store = Store::open(self.sides[side].disk.clone()).unwrap();
        let wall = (self.wall(), self.now);
        let mut random = Seeded::new(self.random.next());
        let method = self.setup.token_method;
        let disk = &mut self.sides[side].disk.clone();
        // The first member's start makes the secret, as an operator would.
        if self.setup.cluster.is_some() && disk.file(SmallFile::Secret).is_some() {
            store.share_secret();
        }
        let mut booted = store.boot(disk, &mut random, wall, false, method).unwrap();
        if let Some(cluster) = self.setup.cluster {
            booted.boot.maker_id = cluster.into();
        }
        let activity = Activity::default();
        let reader = Box::new(Reader(activity.clone()));
        let config = config(&self.setup, side);
        let gateway = Gateway::new(config, booted.boot, reader, Box::new(random), self.now);
        let (states, inbound, outbound, commands) = Default::default();
        let running =
            Running { gateway, store, states, inbound, outbound, activity, commands, acquired: None };
        self.sides[side].running = Some(running);
        here.into_iter().for_each(|here| self.addresses(side, here));
        self.tell(side, Event::Ready);
    }

    /// Seconds since 1970.
    fn wall(&self) -> u64 {
        1_700_000_000 + self.now.0 / 1_000_000_000
    }

    /// The whole gateway dies; its disk stays.
    pub fn crash(&mut self, side: usize) {
        self.sides[side].running = None;
    }

    /// A side's dataplane dies alone, and a new one stands in its place that knows nothing. What waited for the dead one is
    /// lost.
    pub fn restart_dataplane(&mut self, side: usize) {
        let running = self.sides[side].running.as_mut().unwrap();
        (running.states, running.inbound, running.outbound, running.commands) = Default::default();
        self.input(side, Input::NewDataplane);
        self.tell(side, Event::Ready);
    }

    /// What a side's dataplane knows: SPIs with their states, inbound SAs, each policy's outbound SAs in their order.
    pub fn known(&self, side: usize) -> (BTreeMap<Spi, u8>, BTreeMap<Spi, SaParameters>, Vec<SaParameters>) {
        let running = self.sides[side].running.as_ref().unwrap();
        let states = running.states.iter().filter(|(_, state)| **state != SpiState::Unknown);
        let mut outbound = running.outbound.clone();
        outbound.sort_by_key(|sa| sa.policy);
        (
            states.map(|(spi, state)| (*spi, *state as u8)).collect(),
            running.inbound.iter().map(|(spi, (sa, _))| (*spi, sa.clone())).collect(),
            outbound,
        )
    }

    /// Something happens in the dataplane.
    pub fn tell(&mut self, side: usize, event: Event) {
        self.input(side, Input::Event(event));
    }

    /// A datagram arrives, from wherever.
    pub fn receive(&mut self, side: usize, datagram: Datagram) {
        self.input(side, Input::Datagram(datagram));
    }

    fn input(&mut self, side: usize, input: Input) {
        let now = self.now;
        if let Some(running) = &mut self.sides[side].running {
            running.gateway.handle(now, input);
        }
        self.carry_out(side);
    }

    /// Carries out what the gateway wants.
    pub fn carry_out(&mut self, side: usize) {
        while let Some(output) = self.sides[side].running.as_mut().and_then(|r| r.gateway.poll()) {
            match output {
                Output::Transmit(datagram) => self.transmit(side, datagram),
                Output::Command { sequence, command } => {
                    let running = self.sides[side].running.as_mut().unwrap();
                    running.commands.push(command.clone());
                    running.apply(command);
                    running
                        .gateway
                        .handle(self.now, Input::Event(Event::Acknowledged { sequence, done: true }));
                }
                Output::Journal(write) => {
                    self.sides[side].running.as_mut().unwrap().store.commit(&[write]).unwrap();
                }
                Output::Secrets { new, keep } => {
                    let mut random = Seeded::new(self.random.next());
                    let disk = &mut self.sides[side].disk.clone();
                    let written = write_secrets(disk, &mut random, new, keep).ok();
                    let running = self.sides[side].running.as_mut().unwrap();
                    running.gateway.handle(self.now, Input::Secrets(written));
                }
                Output::Persist(used) => {
                    let now = self.wall();
                    self.sides[side].running.as_mut().unwrap().store.remember(&used, now).unwrap();
                }
                Output::Keep(_) => {}
                Output::Report(report) => self.sides[side].told.push((self.now, report)),
            }
        }
    }

    fn transmit(&mut self, from: usize, datagram: Datagram) {
        assert_eq!(datagram.local.ip(), address(from));
        self.sent.push((self.now, from, datagram.clone()));
        let message = match datagram.local.port() {
            4500 => strip_non_esp_marker(&datagram.data),
            _ => Some(&datagram.data[..]),
        };
        if let Some(Ok(message)) = message.map(Message::parse) {
            let clear =
                |p: &Payload| matches!(p, Payload::Notify(n) if [4, 11, 16419, 40970].contains(&n.kind));
            if message.payloads.iter().any(clear) {
                self.check_clear(from, &message);
                self.clear.push((self.now, from, message));
            }
        }
        let out = match &mut self.interference {
            Some(interfere) => interfere(from, datagram),
            None => vec![datagram],
        };
        for datagram in out {
            self.fly(1 - from, Flying::Ike(datagram));
        }
    }

    /// RFC 6290 section 9.2, after every step: no token in clear for an IKE SA that its maker holds.
    fn check_clear(&mut self, from: usize, message: &Message) {
        for payload in &message.payloads {
            if let Payload::Notify(notify) = payload
                && notify.kind == 16419
            {
                self.shown[from].insert(notify.data.clone());
            }
        }
        self.check_tokens(from);
    }

    /// No token that a side ever showed belongs to an IKE SA that it holds, or has come to hold since.
    pub fn check_tokens(&self, side: usize) {
        let Some(running) = &self.sides[side].running else { return };
        for sa in running.gateway.sas() {
            for token in self.tokens_of(side, sa.spis, sa.remote.ip()) {
                assert!(!self.shown[side].contains(&token), "the token of a living IKE SA left: {sa:?}");
            }
        }
    }

    /// The tokens of a pair, computed anew from what is on a side's disk.
    pub fn tokens_of(&self, side: usize, spis: IkeSpis, taker: IpAddr) -> Vec<Vec<u8>> {
        let file = |file| self.sides[side].disk.file(file).unwrap();
        let own = || Anchor::decode(&file(SmallFile::Anchor)).unwrap().id.to_vec();
        let id = self.setup.cluster.map_or_else(own, Vec::from);
        let token = |generation: &Generation| {
            let mut mac: Hmac<Sha256> = Hmac::new_from_slice(generation.secret.0.as_slice()).unwrap();
            let length = (id.len() as u64).to_be_bytes();
            for part in [&b"qcd1"[..], &length, &id, &spis.initiator, &spis.responder] {
                mac.update(part);
            }
            if generation.method == TokenMethod::SpisAndAddress {
                let IpAddr::V4(taker) = taker else { panic!("addresses here are IPv4") };
                mac.update(&[4]);
                mac.update(&taker.octets());
            }
            mac.finalize().into_bytes().to_vec()
        };
        decode_secrets(&file(SmallFile::Secret)).unwrap().iter().map(token).collect()
    }

    fn fly(&mut self, to: usize, what: Flying) {
        self.number += 1;
        // Nothing happens at the same instant twice.
        let arrival = self.now.after(self.setup.delay + Duration::from_nanos(self.number % 1000));
        self.flying.push((arrival, self.number, to, what));
    }

    /// Lets time pass.
    pub fn run(&mut self, duration: Duration) {
        let end = self.now.after(duration);
        while self.step(end) {}
        self.now = end;
    }

    /// Lets time pass until it holds; fails after `limit`. How long it took.
    pub fn run_until(&mut self, limit: Duration, holds: impl Fn(&World) -> bool) -> Duration {
        let (start, end) = (self.now, self.now.after(limit));
        while !holds(self) {
            assert!(self.step(end), "it did not come to pass in {limit:?}; told: {:#?}", self.story());
        }
        self.now.since(start)
    }

    /// What the gateways told, in short.
    pub fn story(&self) -> Vec<String> {
        let mut all: Vec<(Time, String)> = Vec::new();
        for (n, side) in self.sides.iter().enumerate() {
            let line = |(at, told): &(Time, Told)| {
                (*at, format!("{:?} {n} {} {}", at.0 / 1000, told.name, told.detail))
            };
            all.extend(side.told.iter().map(line));
        }
        all.sort();
        all.into_iter().map(|(_, line)| line).collect()
    }

    pub fn told(&self, side: usize, name: &str) -> usize {
        self.sides[side].told.iter().filter(|(_, told)| told.name == name).count()
    }

    pub fn stat(&self, side: usize, name: &str) -> u64 {
        let stats = self.gateway(side).stats();
        stats.iter().find(|(n, _)| *n == name).unwrap().1
    }

    pub fn gateway(&self, side: usize) -> &Gateway {
        &self.sides[side].running.as_ref().unwrap().gateway
    }

    /// Asks something of a gateway, and carries out what follows.
    pub fn wish<R>(&mut self, side: usize, wish: impl FnOnce(&mut Gateway, Time) -> R) -> R {
        let now = self.now;
        let result = wish(&mut self.sides[side].running.as_mut().unwrap().gateway, now);
        self.carry_out(side);
        result
    }

    fn step(&mut self, end: Time) -> bool {
        let deadline = |side: &Side| side.running.as_ref().and_then(|r| r.gateway.deadline());
        let flying = self.flying.iter().map(|(at, n, ..)| (*at, *n)).min();
        let deadlines = self.sides.iter().filter_map(deadline).min();
        let packets = (0..2).filter(|n| self.setup.sending[*n]).map(|n| self.sides[n].next_packet).min();
        let next = [flying.map(|f| f.0), deadlines, packets].into_iter().flatten().min();
        let Some(next) = next.map(|next| next.max(self.now)).filter(|next| *next <= end) else {
            return false;
        };
        self.now = next;
        if let Some(first) = flying.filter(|first| first.0 <= next) {
            let place = self.flying.iter().position(|(_, n, ..)| *n == first.1).unwrap();
            let (_, _, to, what) = self.flying.swap_remove(place);
            match what {
                Flying::Ike(datagram) => {
                    let data = datagram.data;
                    self.receive(to, Datagram { local: datagram.remote, remote: datagram.local, data });
                }
                Flying::Esp { spi, source, destination } => self.esp(to, spi, source, destination),
            }
            return true;
        }
        for side in [A, B] {
            if self.sides[side]
                .running
                .as_ref()
                .and_then(|r| r.gateway.deadline())
                .is_some_and(|at| at <= next)
            {
                self.wish(side, |gateway, now| gateway.tick(now));
            }
            if self.setup.sending[side] && self.sides[side].next_packet <= next {
                self.sides[side].next_packet = next.after(INTERVAL);
                self.send_packet(side);
            }
        }
        true
    }

    fn send_packet(&mut self, side: usize) {
        let now = self.now;
        let Some(running) = &mut self.sides[side].running else { return };
        if let Some(sa) = running.outbound.iter().rfind(|sa| sa.policy == POLICY) {
            running.activity.borrow_mut().entry(sa.index).or_default().last = now;
            let (spi, source, destination) = (sa.spi, sa.local, sa.remote);
            self.fly(1 - side, Flying::Esp { spi, source, destination });
        } else if running.acquired.is_none_or(|at| now.since(at) >= Duration::from_secs(1)) {
            running.acquired = Some(now);
            let inside = |n: usize| IpAddr::from([10 + n as u8, 0, 0, 1]);
            let (source, destination) = (inside(side), inside(1 - side));
            let packet = Trigger { source, destination, protocol: 17, ports: Some((7000, 7001)) };
            self.tell(side, Event::Acquire { policy: POLICY, packet });
        }
    }

    /// ESP arrives.
    pub fn esp(&mut self, side: usize, spi: Spi, source: SocketAddr, destination: SocketAddr) {
        let now = self.now;
        let Some(running) = &mut self.sides[side].running else { return };
        let report = SpiReport { spi, sequence: 1, source, destination, at: now };
        match running.states.get(&spi).copied().unwrap_or(SpiState::Unknown) {
            SpiState::Current => {
                let (sa, report_first) = running.inbound.get_mut(&spi).unwrap();
                running.activity.borrow_mut().entry(sa.index).or_default().last = now;
                let first = std::mem::take(report_first);
                self.sides[side].delivered.push(now);
                if first {
                    self.tell(side, Event::FirstInbound { spi });
                }
            }
            SpiState::Former => self.tell(side, Event::FormerSpi(report)),
            SpiState::Unknown => self.tell(side, Event::UnknownSpi(report)),
            SpiState::Larval | SpiState::Retired => {}
        }
    }

    /// SPIs in this state.
    pub fn spis(&self, side: usize, state: SpiState) -> Vec<Spi> {
        let running = self.sides[side].running.as_ref().unwrap();
        running.states.iter().filter(|(_, s)| **s == state).map(|(spi, _)| *spi).collect()
    }
}

impl Running {
    fn apply(&mut self, command: Command) {
        match command {
            Command::SetSpiState { spi, state } => {
                if self.states.get(&spi) != Some(&SpiState::Current) || state == SpiState::Retired {
                    self.states.insert(spi, state);
                    self.inbound.remove(&spi);
                }
            }
            Command::SetFormer { spis } => {
                for spi in spis {
                    self.apply(Command::SetSpiState { spi, state: SpiState::Former });
                }
            }
            Command::InstallInbound { sa, report_first, .. } => {
                self.states.insert(sa.spi, SpiState::Current);
                self.inbound.insert(sa.spi, (sa, report_first));
            }
            Command::InstallOutbound { sa } => self.outbound.push(sa),
            Command::RemoveOutbound { index } => self.outbound.retain(|sa| sa.index != index),
            Command::SetPolicy { .. }
            | Command::BindPolicy { .. }
            | Command::RemovePolicy { .. }
            | Command::Readdress { .. } => {}
            // In these worlds nothing outlives a control process.
            Command::Doubt | Command::ConfirmInbound { .. } | Command::Sweep => {}
        }
    }
}
