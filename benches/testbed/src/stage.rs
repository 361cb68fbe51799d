//! A stage: two gateways with a tunnel and traffic, on which something is made to happen, and what was seen of it.
//!
//! ```text
//! new ─► begin ─► kill, start, filters, frames of one's own … ─► end ─► Seen
//! ```
//!
//! What must never happen is an error at the end, whatever was played: an inside address or a payload marker on an outer
//! wire, a counter of a gateway that its wire contradicts. [`crate::crash()`] is the simplest play.

use crate::compare::{Tally, disagreements};
use crate::delay::Link;
use crate::error::{Context, Error, Result};
use crate::event::{WireEvent, wire_events};
use crate::gateway::{Gateway, GatewayEvent, Settings};
use crate::leak::Leak;
use crate::namespace::Namespace;
use crate::packet::now;
use crate::pcap::Frame;
use crate::strongswan::{Charon, Peer, Strongswan};
use crate::testbed::{Options, Testbed, Wires};
use crate::timeline::Crash;
use crate::topology::{Addresses, Layout, Member, Side};
use crate::traffic::{Delivery, Stream, StreamLog};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a gateway may take to become ready.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// How long it may take to read what has come.
const READING_PATIENCE: Duration = Duration::from_secs(10);
/// How long traffic flows before anything happens.
const BEFORE: Duration = Duration::from_secs(1);
/// How long it flows on after the recovery, and after both gateways were stopped.
const AFTER: Duration = Duration::from_millis(300);

/// The file with the secret of a pair, in the testbed's folder.
const SHARED_SECRET: &str = "pair-secret";

/// Both sides, in the order of every array of two here.
pub const SIDES: [Side; 2] = [Side::A, Side::B];

/// Two gateways in a testbed of their own, and the traffic through them.
#[derive(Debug)]
pub struct Stage {
    testbed: Testbed,
    interval: Duration,
    round_trip: Duration,
    streams: [Option<Stream>; 2],
    /// What stands in the gateways' places, if anything: as it is to be, and as it runs since it was ready.
    strongswan: [Option<Peer>; 2],
    charon: [Option<(Charon, u64)>; 2],
    /// Who of a pair with keepalived stands for gateway B; the first one until it fell.
    active: Member,
    keepalived: bool,
    /// Whether what the gateways count is held against their wires at the end, by side.
    counted: [bool; 2],
}

/// What was seen, by side. Times are CLOCK_REALTIME in nanoseconds.
#[derive(Clone, Debug)]
pub struct Seen {
    /// What was sent by each host, and arrived at the other one.
    pub logs: [StreamLog; 2],
    /// Each gateway's outer wire.
    pub wires: [Vec<WireEvent>; 2],
    /// What each gateway reported in its last life.
    pub events: [Vec<GatewayEvent>; 2],
    /// What each gateway counted in its last life.
    pub stats: [serde_json::Value; 2],
    /// When each gateway had said what it counted.
    pub counted_until: [u64; 2],
}

impl Stage {
    /// A stage with these configurations, A's and B's; nothing runs yet. The hosts send each `interval`.
    pub fn new(settings: [Settings; 2], round_trip: Duration, interval: Duration) -> Result<Stage> {
        let [a, b] = settings;
        Stage::with(Options { a, b, ..Options::default() }, round_trip, interval)
    }

    /// A stage with two gateways of the same configuration in B's place, between which keepalived moves the addresses.
    /// Who takes over has not seen what its wire saw before, so B's counters are not held against that.
    pub fn with_standby(settings: [Settings; 2], round_trip: Duration, interval: Duration) -> Result<Stage> {
        let [a, b] = settings;
        let b = Settings {
            more_gateway: format!("{}\ncluster = \"pair\"", b.more_gateway),
            // Beside the folders of both.
            more_recovery: format!("secret_file = \"../{SHARED_SECRET}\"\n{}", b.more_recovery),
            ..b
        };
        let options = Options { a, second: b.clone(), b, layout: Layout::Pair, ..Options::default() };
        let stage = Stage::with(options, round_trip, interval)?;
        write_shared_secret(&stage.testbed.directory().join(SHARED_SECRET))?;
        Ok(Stage { keepalived: true, counted: [true, false], ..stage })
    }

    /// A stage with two gateways in B's place that share nothing but identity and key, each at its own address; A begins
    /// with the first one, which may redirect it to the second.
    pub fn with_other(settings: [Settings; 2], round_trip: Duration, interval: Duration) -> Result<Stage> {
        let [first, second] = Member::BOTH.map(|member| Addresses::default().member_outside(member));
        let [a, b] = settings;
        let a = Settings {
            remote: Some(first.to_string()),
            more_connection: format!("redirect_to = [\"{second}\"]\n{}", a.more_connection),
            ..a
        };
        let second = Settings { local: Some(second), ..b.clone() };
        let b = Settings { local: Some(first), ..b };
        let options = Options { a, b, second, layout: Layout::Pair, ..Options::default() };
        Ok(Stage { counted: [true, false], ..Stage::with(options, round_trip, interval)? })
    }

    /// A stage with gateway A behind a NAT, so that B awaits it at any address.
    pub fn behind_nat(settings: [Settings; 2], round_trip: Duration, interval: Duration) -> Result<Stage> {
        let [a, b] = settings;
        let b = Settings { remote: Some("%any".to_owned()), ..b };
        Stage::with(Options { a, b, layout: Layout::Nat, ..Options::default() }, round_trip, interval)
    }

    fn with(options: Options, round_trip: Duration, interval: Duration) -> Result<Stage> {
        let testbed = Testbed::two_gateways(Options { link: Link::with_round_trip(round_trip), ..options })?;
        Ok(Stage {
            testbed,
            interval,
            round_trip,
            streams: [None, None],
            strongswan: [None, None],
            charon: [None, None],
            active: Member::First,
            keepalived: false,
            counted: [true; 2],
        })
    }

    /// For plays in which a gateway is sent what no capture shows.
    #[must_use]
    pub fn uncounted(self) -> Stage {
        Stage { counted: [false; 2], ..self }
    }

    /// With strongSwan in gateway A's place, with a gateway B of these settings, as impatient as liveness is here.
    #[must_use]
    pub fn beside_strongswan(self, settings: &Settings) -> Stage {
        let peer = Peer::of(&self.testbed.topology().addresses, Side::A, settings).impatient();
        Stage { strongswan: [Some(peer), None], ..self }
    }

    /// With strongSwan in both gateways' places, with the proposals of these settings.
    ///
    /// # Errors
    /// If the machine can't: where strongSwan has no SA its kernel must not forward between the two sides.
    pub fn of_strongswan(self, strongswan: Strongswan, settings: &Settings) -> Result<Stage> {
        let topology = self.testbed.topology();
        for side in SIDES {
            // What comes out of a tunnel comes in by its TUN device.
            for interface in [side.outside_interface(), side.inside_interface()] {
                let forwarding = format!("ipv4/conf/{interface}/forwarding");
                let from_inside = interface == side.inside_interface();
                topology.gateway(side).sysctl(&forwarding, if from_inside { "1" } else { "0" })?;
            }
        }
        let peer = |side| strongswan.peer(side, Peer::of(&topology.addresses, side, settings));
        let strongswan = SIDES.map(|side| Some(peer(side)));
        Ok(Stage { strongswan, ..self })
    }

    /// Starts both gateways, has A initiate, and lets these hosts send until packets of each have arrived.
    pub fn begin(&mut self, senders: &[Side], step: &mut dyn FnMut(&str)) -> Result<()> {
        step("starting both gateways");
        if self.strongswan[0].is_none() {
            self.testbed.start(START_PATIENCE)?;
            if self.keepalived {
                step("starting keepalived beside both of the pair");
                self.testbed.start_keepalived(Member::First)?;
                self.testbed.wait_active(Member::First, START_PATIENCE)?;
                self.testbed.start_keepalived(Member::Second)?;
            }
            self.testbed.gateway(Side::A).initiate()?;
        } else {
            match &self.strongswan[1] {
                Some(_) => drop(self.start_charon(Side::B)?),
                None => {
                    self.testbed.gateway_mut(Side::B).start()?;
                    self.testbed.gateway_mut(Side::B).wait_ready(START_PATIENCE)?;
                }
            }
            self.start_charon(Side::A)?;
            let a = self.charon[0].as_ref().map_or(Ok(()), |(charon, _)| charon.initiate());
            a.map_err(strange)?;
        }
        senders.iter().try_for_each(|&from| self.send(from))?;
        step("packets flow");
        std::thread::sleep(BEFORE);
        Ok(())
    }

    /// Lets a host send until packets of it have arrived, and from then on.
    pub fn send(&mut self, from: Side) -> Result<()> {
        let stream = self.testbed.stream(from, self.interval)?;
        let arrived = stream.wait_delivery_since(0, Duration::from_secs(5)).is_some();
        self.streams[from as usize] = Some(stream);
        if arrived {
            return Ok(());
        }
        let what = format!("no packet of host {} passed the tunnel within 5 s", upper(from));
        Err(self.subject(&what))
    }

    /// The active one of the pair dies with its machine, and its keepalived; the other one takes over. The death and the
    /// moment at which the other gateway found the address on its machine, as a crash and its end.
    pub fn fail_over(&mut self, step: &mut dyn FnMut(&str)) -> Result<Crash> {
        step("the active gateway's machine dies");
        let killed = self.testbed.power_off(Member::First)?;
        self.active = Member::Second;
        self.testbed.wait_active(Member::Second, START_PATIENCE)?;
        let ready = self.testbed.member_mut(Member::Second).wait_event("address-came", START_PATIENCE)?;
        step("the other one has the address");
        Ok(Crash {
            gateway: self.address(Side::B),
            killed,
            started: ready,
            ready,
            round_trip: self.round_trip,
        })
    }

    /// The one that died comes back, with nothing but its disk.
    pub fn come_back(&mut self, step: &mut dyn FnMut(&str)) -> Result<()> {
        step("the machine that died is back");
        self.testbed.topology().join_again(Member::First)?;
        self.testbed.member_mut(Member::First).start()?;
        self.testbed.member_mut(Member::First).wait_ready(START_PATIENCE)?;
        self.testbed.start_keepalived(Member::First)
    }

    /// The gateway that stands for a side.
    fn gateway(&self, side: Side) -> &Gateway {
        match side {
            Side::A => self.testbed.gateway(Side::A),
            Side::B => self.testbed.member(self.active),
        }
    }

    /// The testbed.
    pub fn testbed(&self) -> &Testbed {
        &self.testbed
    }

    /// The testbed, to have a gateway begin or end.
    pub fn testbed_mut(&mut self) -> &mut Testbed {
        &mut self.testbed
    }

    /// Kills a gateway's process group; when.
    pub fn kill(&mut self, side: Side, step: &mut dyn FnMut(&str)) -> Result<u64> {
        step(&format!("killing gateway {}'s process group", upper(side)));
        if self.strongswan[side as usize].is_some() {
            let killed = now();
            // It is killed as it drops.
            self.charon[side as usize] = None;
            return Ok(killed);
        }
        self.testbed.gateway_mut(side).kill_group()
    }

    /// Starts a gateway again with these further arguments, `down` after it was killed; when.
    pub fn start(
        &mut self,
        side: Side,
        (killed, down): (u64, Duration),
        arguments: &[&str],
        step: &mut dyn FnMut(&str),
    ) -> Result<u64> {
        let until = Duration::from_nanos(killed) + down;
        std::thread::sleep(until.saturating_sub(Duration::from_nanos(now())));
        step(&format!("starting gateway {} again", upper(side)));
        if self.strongswan[side as usize].is_some() {
            return self.start_charon(side);
        }
        self.testbed.gateway_mut(side).start_with(arguments)
    }

    /// Waits until a gateway that was killed and started again is ready.
    pub fn wait_ready(&mut self, side: Side, killed: u64, started: u64) -> Result<Crash> {
        let ready = match &self.charon[side as usize] {
            Some((_, ready)) => *ready,
            None => self.testbed.gateway_mut(side).wait_ready(START_PATIENCE)?,
        };
        Ok(Crash { gateway: self.address(side), killed, started, ready, round_trip: self.round_trip })
    }

    /// Starts a gateway again, `down` after it was killed, and waits until it is ready.
    pub fn restart(
        &mut self,
        side: Side,
        (killed, down): (u64, Duration),
        step: &mut dyn FnMut(&str),
    ) -> Result<Crash> {
        let started = self.start(side, (killed, down), &[], step)?;
        self.wait_ready(side, killed, started)
    }

    /// From here on the second of a pair stands for gateway B; the first one is stopped.
    pub fn go_on_with_other(&mut self) -> Result<()> {
        self.active = Member::Second;
        self.testbed.member_mut(Member::First).stop()
    }

    /// All addresses by which the wires know the gateways.
    pub fn ends(&self) -> Vec<Ipv4Addr> {
        let addresses = self.testbed.topology().addresses;
        // Where keepalived moves one address, the wires know that one; without a pair nobody has these.
        let members = Member::BOTH.into_iter().filter(|_| !self.keepalived);
        let own = members.map(|member| addresses.member_outside(member));
        SIDES.map(|side| addresses.seen_at(side)).concat().into_iter().chain(own).collect()
    }

    /// A gateway's outer address.
    pub fn address(&self, side: Side) -> IpAddr {
        self.testbed.topology().addresses.gateway_outside(side).into()
    }

    /// Waits for the first delivery of what a host sends, at or after a time.
    pub fn wait_delivery(&self, from: Side, since: u64, patience: Duration) -> Option<Delivery> {
        self.streams[from as usize].as_ref()?.wait_delivery_since(since, patience)
    }

    /// Each gateway's established IKE SAs, by their SPIs and with the number of installed Child SAs.
    pub fn ike_sas(&self) -> Result<[Vec<(String, usize)>; 2]> {
        let of = |side| -> Result<Vec<(String, usize)>> {
            let list = self.gateway(side).json("list-sas")?;
            let is = |value: &serde_json::Value, state: &str| value["state"] == state;
            let all = list.as_array().map_or(&[][..], Vec::as_slice);
            let established = all.iter().filter(|ike| is(ike, "established")).map(|ike| {
                let children = ike["children"].as_array().map_or(&[][..], Vec::as_slice);
                let spi = |name: &str| ike[name].as_str().unwrap_or_default().to_owned();
                let installed = children.iter().filter(|child| is(child, "installed")).count();
                (spi("ike_spi_i") + &spi("ike_spi_r"), installed)
            });
            Ok(established.collect())
        };
        let of_either = |side: Side| match &self.charon[side as usize] {
            Some((charon, _)) => charon.ike_sas().map_err(strange),
            None => of(side),
        };
        Ok([of_either(Side::A)?, of_either(Side::B)?])
    }

    /// Starts charon in a gateway's place, until it has read its configuration; when it was started.
    fn start_charon(&mut self, side: Side) -> Result<u64> {
        let Some(peer) = &self.strongswan[side as usize] else {
            return Err(Error::Subject(format!("there is no strongSwan in gateway {}'s place", upper(side))));
        };
        let namespace = self.testbed.topology().gateway(side).name();
        let directory = self.testbed.directory().join(format!("charon-{}", side.letter()));
        let started = now();
        let charon = Charon::start(namespace, &directory, peer).map_err(strange)?;
        self.charon[side as usize] = Some((charon, now()));
        Ok(started)
    }

    /// Waits until both gateways hold the same single IKE SA with one Child SA; its SPIs. `None` if they don't in time.
    pub fn wait_agreed(&self, patience: Duration) -> Result<Option<String>> {
        let deadline = Instant::now() + patience;
        loop {
            let [a, b] = self.ike_sas()?;
            match (&a[..], &b[..]) {
                ([(a, 1)], [(b, 1)]) if a == b => return Ok(Some(a.clone())),
                _ if Instant::now() > deadline => return Ok(None),
                _ => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Ends traffic, gateways and captures; what was seen. Whoever crashed says when its last life began.
    pub fn end(&mut self, crashes: [Option<Crash>; 2]) -> Result<Seen> {
        std::thread::sleep(AFTER);
        // Counted when the wire is silent: what is under way has no certain place.
        let settle = self.round_trip + Duration::from_millis(200);
        let logs = self.streams.each_mut().map(Option::take);
        let logs = logs.map(|stream| stream.map_or_else(StreamLog::default, |stream| stream.stop(settle)));
        let mut events = [Vec::new(), Vec::new()];
        let mut accounts = [None, None];
        for side in self.gateways() {
            let gateway = self.gateway(side);
            events[side as usize] = gateway.events()?;
            accounts[side as usize] = Some(self.account(side)?);
            let file = gateway.directory().join("events.json");
            let text = serde_json::to_string_pretty(&events[side as usize]).unwrap_or_default();
            std::fs::write(&file, text).context(|| format!("writing {}", file.display()))?;
        }
        self.stop_gateways()?;

        let wires = self.testbed.finish()?;
        let leaks = self.leaks(&wires)?;
        if let Some(first) = leaks.first() {
            let text = format!("{} leaks on the outer wire; the first: {first}", leaks.len());
            return Err(Error::Subject(text));
        }
        if self.testbed.delay().counters().overflowed != 0 {
            return Err(Error::Capture("the delay box's queue overflowed".to_owned()));
        }
        let wires = [wire_events(&wires.a), wire_events(&wires.b)];
        let mut contradictions = Vec::new();
        for side in SIDES.into_iter().filter(|side| self.counted[*side as usize]) {
            let (at, name) = (side as usize, upper(side));
            let Some(account) = &accounts[at] else { continue };
            let received = &logs[side.other() as usize];
            contradictions.extend(match &crashes[at] {
                Some(crash) => account.of_restarted(name, &wires[at], crash, received),
                None => account.of_survivor(name, &wires[at], self.address(side)),
            });
        }
        if !contradictions.is_empty() {
            let text = format!("a gateway and its wire disagree: {}", contradictions.join("; "));
            return Err(Error::Subject(text));
        }
        let counted_until = accounts.each_ref().map(|account| account.as_ref().map_or(0, |it| it.after));
        let stats = accounts.map(|account| account.map_or(serde_json::Value::Null, |account| account.stats));
        Ok(Seen { logs, wires, events, stats, counted_until })
    }

    /// What a gateway says of itself, as soon as it has read what had come by now: one under load is behind its wire.
    fn account(&self, side: Side) -> Result<Account> {
        let (gateway, before) = (self.gateway(side), now());
        gateway.wait_read(READING_PATIENCE)?;
        let stats = gateway.stats()?;
        let after = now();
        let ready = gateway.json("status")?["ready_us"].as_u64().map_or(0, |us| us * 1000);
        Ok(Account { stats, ready, before, after, dropped: self.dropped(side)? })
    }

    /// Frames that the link at a gateway has dropped, of what came from it and of what went to it: an end of a veth pair
    /// counts what the other one had no room for. The wire is seen at the far end.
    fn dropped(&self, side: Side) -> Result<[u64; 2]> {
        let topology = self.testbed.topology();
        let of = |namespace: &Namespace, interface: &str| {
            let text = namespace.run(&format!("cat /sys/class/net/{interface}/statistics/tx_dropped"))?;
            text.trim().parse().map_err(|_| Error::Machine(format!("{interface} has dropped {text:?}")))
        };
        let (wire, far_end) = topology.wire(side);
        Ok([of(topology.gateway(side), &side.outside_interface())?, of(wire, &far_end)?])
    }

    /// The sides where a gateway of ours is.
    fn gateways(&self) -> impl Iterator<Item = Side> {
        SIDES.into_iter().filter(|side| self.strongswan[*side as usize].is_none())
    }

    /// Leaks of our gateways. What strongSwan's kernel lets through while it has no SA is its own affair.
    fn leaks(&self, wires: &Wires) -> Result<Vec<Leak>> {
        if self.strongswan.iter().all(Option::is_none) {
            return Ok(self.testbed.leaks(wires));
        }
        let topology = self.testbed.topology();
        let ours = self.gateways().map(|side| topology.hardware_address(side));
        let ours = ours.collect::<Result<Vec<_>>>()?;
        let from_us =
            |frame: &Frame| ours.iter().any(|address| frame.octets.get(6..12) == Some(&address[..]));
        let of = |frames: &[Frame]| frames.iter().filter(|frame| from_us(frame)).cloned().collect();
        Ok(self.testbed.leaks(&Wires { a: of(&wires.a), b: of(&wires.b) }))
    }

    /// Stops both gateways while host A sends, since nothing may pass in clear then either.
    fn stop_gateways(&mut self) -> Result<()> {
        let stream = self.testbed.stream(Side::A, self.interval)?;
        self.testbed.end_keepaliveds();
        for side in SIDES {
            self.testbed.gateway_mut(side).stop()?;
        }
        self.testbed.member_mut(Member::Second).stop()?;
        self.charon = [None, None];
        std::thread::sleep(AFTER);
        stream.stop(self.round_trip + Duration::from_millis(20));
        Ok(())
    }

    /// What went wrong, with the ends of both logs.
    pub fn subject(&self, what: &str) -> Error {
        let log = |side: Side| {
            let text = self.gateway(side).log();
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(12)..].join("\n")
        };
        let (a, b) = (log(Side::A), log(Side::B));
        Error::Subject(format!("{what}\ngateway A's log ends:\n{a}\ngateway B's log ends:\n{b}"))
    }

    /// Copies captures, configurations, logs and reports into a folder.
    pub fn keep_files(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder).context(|| format!("making {}", folder.display()))?;
        let keep = |from: &Path, name: &str| -> Result<()> {
            if from.exists() {
                std::fs::copy(from, folder.join(name)).context(|| format!("keeping {name}"))?;
            }
            Ok(())
        };
        for side in SIDES {
            let (gateway, letter): (&Gateway, char) = (self.gateway(side), side.letter());
            let capture = format!("outer-{letter}.pcap");
            keep(&self.testbed.directory().join(&capture), &capture)?;
            keep(&gateway.config(), &format!("{letter}.toml"))?;
            keep(&gateway.directory().join("log"), &format!("{letter}.log"))?;
            keep(&gateway.directory().join("events.json"), &format!("{letter}.events.json"))?;
            let charon = self.testbed.directory().join(format!("charon-{letter}/log"));
            keep(&charon, &format!("{letter}.charon.log"))?;
        }
        Ok(())
    }
}

/// What an operator brings to both members of a cluster.
fn write_shared_secret(file: &Path) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let what = || format!("writing {}", file.display());
    let secret: String = rand::random::<[u8; 32]>().iter().map(|octet| format!("{octet:02x}")).collect();
    let mut opened =
        std::fs::File::options().create_new(true).write(true).mode(0o600).open(file).context(what)?;
    writeln!(opened, "spindle-qcd-secret 2\n{secret} spis 0 -").context(what)
}

/// An error of strongSwan's.
fn strange(error: anyhow::Error) -> Error {
    Error::Subject(format!("strongSwan: {error:#}"))
}

fn upper(side: Side) -> char {
    side.letter().to_ascii_uppercase()
}

/// What a gateway says that it has counted, and between which two moments it said so.
struct Account {
    stats: serde_json::Value,
    /// When it became ready.
    ready: u64,
    before: u64,
    after: u64,
    /// As of [`Stage::dropped`].
    dropped: [u64; 2],
}

impl Account {
    /// Against the wire of a gateway that lived through it all. The peer may have been ready before it, and nobody knows which
    /// of the packets that came then found a socket already.
    fn of_survivor(&self, name: char, wire: &[WireEvent], gateway: IpAddr) -> Vec<String> {
        let tally = |since, until| Tally::of(wire, gateway, since..=until);
        self.against(name, tally(self.ready, self.before), tally(0, self.after))
    }

    /// Against the wire and the deliveries since a gateway was started again. Nobody knows which of the packets that
    /// came before it was ready found a socket already.
    fn of_restarted(&self, name: char, wire: &[WireEvent], crash: &Crash, log: &StreamLog) -> Vec<String> {
        let former: BTreeSet<u32> =
            wire.iter().filter(|event| event.at < crash.started).filter_map(WireEvent::esp).collect();
        let received = wire.iter().filter(|event| event.destination == Some(crash.gateway));
        let received = received.filter(|event| (crash.started..=self.before).contains(&event.at));
        let on_new: Vec<u32> =
            received.filter_map(WireEvent::esp).filter(|spi| !former.contains(spi)).collect();
        // Of two SAs that both sides had begun one ends; what is under way on it then is dropped.
        let on_last = on_new.iter().filter(|spi| on_new.last() == Some(spi)).count();
        // The peer sends as soon as it has answered, and here the answer comes to control first.
        let early = self.stats["dataplane"]["larval_spi"].as_u64().unwrap_or(0) as usize;
        let on_last = on_last.saturating_sub(early);
        let delivered = log.deliveries.iter().filter(|delivery| delivery.received >= crash.started).count();
        let tally = |since, until, decapsulated| {
            let tally = Tally::of(wire, crash.gateway, since..=until);
            tally.with("dataplane/decapsulated", decapsulated).with("dataplane/delivered_inside", delivered)
        };
        let at_least = tally(crash.ready, self.before, on_last);
        self.against(name, at_least, tally(crash.started, self.after, on_new.len()))
    }

    fn against(&self, name: char, at_least: Tally, at_most: Tally) -> Vec<String> {
        let [sent, received] = self.dropped;
        let (at_least, at_most) = (at_least.less_dropped(received), at_most.and_unseen(sent));
        // A hint sends the outstanding request again, a new INFORMATIONAL one or any other under way; but such a request
        // need not be due to a hint.
        let probes = "control/probes-started+probes-sent-again";
        let requests = ["informational", "create_child_sa", "ike_auth"];
        let sent = requests.map(|exchange| at_most.count(&format!("control/{exchange}_requests_sent")));
        let requests = sent.iter().sum::<u64>() as usize;
        let found = disagreements(&at_least.with(probes, 0), &at_most.with(probes, requests), &self.stats);
        found.into_iter().map(|text| format!("{name}: {text}")).collect()
    }
}
