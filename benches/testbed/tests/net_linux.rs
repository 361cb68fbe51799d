//! Foreign eyes: in gateway A's place a Linux kernel does ESP and forwards, with strongSwan for IKE; gateway B is Spindle.
//!
//! The machine is in qemu without KVM; `scripts/test --interop` makes it and runs these tests.

mod gateways;

use gateways::*;
use spindle_testbed::strongswan::Peer;
use spindle_testbed::{
    Addresses, Host, IPV6_PREFIX, LinuxPeer, Options, Settings, Side, StreamLog, Testbed, Version, Versions,
    ipv6, tcp_transfer,
};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// For what TCP moves; an emulated machine needs its time.
const PATIENCE: Duration = Duration::from_secs(60);

struct Pair {
    testbed: Testbed,
    linux: LinuxPeer,
}

/// Gateway B with these settings and the machine in A's place, with charon told of what `connections` says.
fn pair(b: Settings, versions: Versions, connections: impl FnOnce(&Addresses) -> String) -> Pair {
    let addresses = Addresses { versions, ..Addresses::default() };
    let options = Options { b, addresses, ..Options::default() };
    let mut testbed = Testbed::two_gateways(options).expect("a testbed");
    let directory = testbed.directory().join("linux");
    let mut linux = LinuxPeer::start(testbed.topology(), Side::A, &directory).expect("a Linux peer");
    linux.equip(&addresses, Side::A).expect("addresses");
    linux.start_charon(&connections(&addresses)).expect("charon");
    let spindle = testbed.gateway_mut(Side::B);
    spindle.start().expect("spindle up");
    spindle.wait_ready(READY).expect("ready");
    Pair { testbed, linux }
}

impl Pair {
    fn traffic_passes(&self) {
        for from in [Side::A, Side::B] {
            let (one, other) = (self.testbed.host(from), self.testbed.host(from.other()));
            assert_eq!(answered(one, other, 5), 5, "from {from:?}");
            let transfer = self.testbed.tcp_transfer(from, 2_000_000, PATIENCE).expect("TCP");
            assert!(transfer.is_intact(), "TCP from {from:?} arrived changed");
        }
    }

    fn charon_children(&mut self) -> usize {
        self.linux.swanctl("--list-sas").expect("list-sas").matches("INSTALLED").count()
    }

    /// Both have one Child SA; the kernel holds its two SAs and no other.
    fn one_child(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let installed = self.charon_children();
            let states = self.linux.run("ip xfrm state").expect("ip xfrm state");
            let held = states.lines().filter(|line| line.starts_with("src ")).count();
            let ours = sas(&self.testbed, Side::B);
            if (installed, held, ours) == (1, 2, (1, 1)) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "charon {installed}, kernel {held}, Spindle {ours:?}\n{states}"
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// No packet was dropped by the kernel's XFRM, each of ours has its place, and nothing left in clear.
    fn clean(mut self) -> Testbed {
        let drops = self.linux.xfrm_drops().expect("counters");
        assert!(drops.is_empty(), "{drops:?}");
        ours_are_counted(&self.testbed);
        nothing_leaked(&mut self.testbed);
        self.testbed
    }
}

/// How many of so many echo requests are answered, each within two seconds.
fn answered(from: Host<'_>, to: Host<'_>, count: u32) -> usize {
    spindle_testbed::ping(from, to.address, count, 56).expect("ping").len()
}

fn ours_are_counted(testbed: &Testbed) {
    let deadline = Instant::now() + Duration::from_secs(5);
    let stats = || testbed.gateway(Side::B).stats().expect("stats");
    while stats()["packets"]["holds"] != true {
        assert!(Instant::now() < deadline, "packets don't add up: {:#}", stats());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// One connection with one child; both sides by the same settings.
fn plain(settings: &Settings) -> impl FnOnce(&Addresses) -> String {
    let settings = settings.clone();
    move |addresses| Peer { encap: false, ..Peer::of(addresses, Side::A, &settings) }.connection()
}

/// RFC 7296 sections 1.2, 2.8; RFC 4303: raw ESP, whoever begins, and rekeys of both kinds by either side under traffic.
#[test]
#[ignore = "needs a Linux peer: scripts/test --interop"]
fn a_linux_kernel_and_spindle_carry_traffic_through_the_rekeys_of_either_side() {
    let settings = quiet();
    let mut pair = pair(settings.clone(), Versions::default(), plain(&settings));
    pair.linux.swanctl("--initiate --child net --timeout 20").expect("charon initiates");
    pair.one_child();
    pair.traffic_passes();

    let interval = Duration::from_millis(10);
    let streams = [Side::A, Side::B].map(|from| pair.testbed.stream(from, interval).expect("a stream"));
    for rekey in ["--child net", "--ike ab"] {
        pair.linux.swanctl(&format!("--rekey {rekey}")).expect("charon rekeys");
        // Rekeys are only begun by this command; the next one must not collide.
        std::thread::sleep(Duration::from_secs(2));
        pair.one_child();
    }
    let spindle = pair.testbed.gateway(Side::B);
    for rekey in ["rekey --child ab/net", "rekey --ike ab"] {
        spindle.spindle(rekey).expect("Spindle rekeys");
    }
    pair.one_child();
    for stream in streams {
        all_arrived(&stream.stop(Duration::from_secs(1)));
    }
    let events = pair.testbed.gateway(Side::B).events().expect("events");
    let count = |name: &str| events.iter().filter(|event| event.event == name).count();
    assert_eq!((count("ike-rekeyed"), count("installed")), (2, 3));

    pair.testbed.gateway(Side::B).spindle("terminate ab").expect("Spindle deletes");
    let states = pair.linux.run("sleep 1; ip xfrm state").expect("ip xfrm state");
    assert_eq!(states, "", "after Spindle's Delete");
    pair.testbed.gateway(Side::B).initiate().expect("Spindle initiates");
    pair.one_child();
    pair.traffic_passes();
    pair.clean();
}

/// RFC 4303 section 3.4.3: what either side received once, it takes no second time.
#[test]
#[ignore = "needs a Linux peer: scripts/test --interop"]
fn captured_packets_are_taken_a_second_time_by_neither_side() {
    let settings = quiet();
    let mut pair = pair(settings.clone(), Versions::default(), plain(&settings));
    pair.testbed.gateway(Side::B).initiate().expect("Spindle initiates");
    let interval = Duration::from_millis(10);
    let streams = [Side::A, Side::B].map(|from| pair.testbed.stream(from, interval).expect("a stream"));
    std::thread::sleep(Duration::from_secs(1));
    let wires = pair.testbed.finish().expect("captures");
    let replayed = || pair.testbed.gateway(Side::B).stats().expect("stats")["dataplane"]["replayed"].as_u64();
    assert_eq!(replayed(), Some(0));
    let mut again = [0_u64; 2];
    for frame in &wires.b {
        // IPv4, protocol ESP: to whom the last octet of its destination says.
        if frame.octets.get(12..14) == Some(&[8, 0]) && frame.octets.get(23) == Some(&50) {
            let toward = if frame.octets.get(33) == Some(&1) { Side::A } else { Side::B };
            pair.testbed.inject(toward, &frame.octets).expect("a frame");
            again[toward as usize] += 1;
        }
    }
    assert!(again.iter().all(|&packets| packets > 50), "{again:?}");
    for stream in streams {
        let log = stream.stop(Duration::from_secs(1));
        all_arrived(&log);
        assert_eq!(log.deliveries.len(), each_once(&log), "delivered twice");
    }
    assert_eq!(replayed(), Some(again[Side::B as usize]));
    let drops = pair.linux.xfrm_drops().expect("counters");
    assert_eq!(drops, [("XfrmInStateSeqError".to_owned(), again[Side::A as usize])].into());
    ours_are_counted(&pair.testbed);
}

fn each_once(log: &StreamLog) -> usize {
    log.deliveries.iter().map(|delivery| delivery.number).collect::<BTreeSet<_>>().len()
}

const SUITES: [&str; 4] = ["aes128gcm16", "aes192gcm16", "aes256gcm16", "chacha20poly1305"];
/// What the kernel calls them: algorithm, bits of key and salt.
const KERNEL: [&str; 4] = [
    "rfc4106(gcm(aes)) 160",
    "rfc4106(gcm(aes)) 224",
    "rfc4106(gcm(aes)) 288",
    "rfc7539esp(chacha20,poly1305) 288",
];
/// Ours and the kernel's, whose greatest is 4,096.
const WINDOWS: [(u32, u32); 4] = [(65536, 32), (32, 128), (1024, 1024), (4096, 4096)];

/// A Child SA of its own, between networks of its own.
#[derive(Clone, Copy, Debug)]
struct Transform {
    outside: Version,
    encapsulated: bool,
    suite: usize,
    inside: Version,
    esn: bool,
    windows: (u32, u32),
}

/// An orthogonal array: in 16 rows each pair of values of two kinds.
fn transforms() -> Vec<Transform> {
    let version = |six: usize| if six == 1 { Version::V6 } else { Version::V4 };
    let rows = (0..16).map(|row: usize| {
        let [o, e, s, t] = [row >> 3 & 1, row >> 2 & 1, row >> 1 & 1, row & 1];
        Transform {
            outside: version(o),
            encapsulated: e == 1,
            suite: 2 * s + t,
            inside: version(o ^ e ^ s),
            esn: e ^ t == 1,
            windows: WINDOWS[2 * (o ^ s) + (e ^ s ^ t)],
        }
    });
    rows.collect()
}

#[test]
fn the_set_covers_every_pair_of_values() {
    let transforms = transforms();
    let mut pairs = BTreeSet::new();
    for t in &transforms {
        let values = [
            format!("outside {:?}", t.outside),
            format!("udp {}", t.encapsulated),
            format!("suite {}", t.suite),
            format!("inside {:?}", t.inside),
            format!("esn {}", t.esn),
            format!("windows {:?}", t.windows),
        ];
        for (i, one) in values.iter().enumerate() {
            pairs.extend(values[i + 1..].iter().map(|other| (one.clone(), other.clone())));
        }
    }
    // Four kinds of two values, two of four: 6 pairs of the former, 8 mixed, 1 of the latter.
    assert_eq!((transforms.len(), pairs.len()), (16, 6 * 4 + 8 * 8 + 16));
}

impl Transform {
    fn proposal(&self) -> String {
        format!("{}{}", SUITES[self.suite], if self.esn { "-esn" } else { "" })
    }
}

fn network(side: Side, number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 100 + side as u8, number as u8, 0)
}

fn host_address(side: Side, number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 100 + side as u8, number as u8, 1)
}

/// The network of a transform's side as configurations write it.
fn selector(side: Side, number: usize, version: Version) -> String {
    let bits = if version == Version::V4 { 24 } else { IPV6_PREFIX + 24 };
    format!("{}/{bits}", version.of(network(side, number)))
}

/// Four connections, m0 to m3, each with four of the children.
fn spindle_settings(transforms: &[Transform]) -> Settings {
    let (mut text, addresses) = (String::new(), Addresses::default());
    for (number, t) in transforms.iter().enumerate() {
        let connection = number / 4;
        if number % 4 == 0 {
            let outer = |side| t.outside.of(addresses.gateway_outside(side));
            let encapsulated = t.encapsulated;
            write!(
                text,
                "
[connections.m{connection}]
local = {{ address = \"{}\", id = \"b{connection}.example\", psk = \"a secret of the testbed alone\" }}
remote = {{ address = \"{}\", id = \"a{connection}.example\" }}
proposals = [\"aes128gcm16-prfsha256-x25519\"]
encap = {encapsulated}
",
                outer(Side::B),
                outer(Side::A)
            )
            .expect("a string");
        }
        let (local, remote) = (selector(Side::B, number, t.inside), selector(Side::A, number, t.inside));
        let (proposal, window) = (t.proposal(), t.windows.0);
        write!(
            text,
            "
[connections.m{connection}.children.c{number}]
local_ts = [\"{local}\"]
remote_ts = [\"{remote}\"]
esp_proposals = [\"{proposal}\"]
replay_window = {window}
start_action = \"none\"
"
        )
        .expect("a string");
    }
    Settings { more_child: text, ..quiet() }
}

/// The same for charon.
fn charon_connections(transforms: &[Transform], addresses: &Addresses) -> String {
    let (mut connections, mut secrets) = (String::new(), String::new());
    for (connection, group) in transforms.chunks(4).enumerate() {
        let t = group[0];
        let outer = |side| t.outside.of(addresses.gateway_outside(side));
        let encap = if t.encapsulated { "yes" } else { "no" };
        let mut children = String::new();
        for (place, t) in group.iter().enumerate() {
            let number = 4 * connection + place;
            let (local, remote) = (selector(Side::A, number, t.inside), selector(Side::B, number, t.inside));
            let (proposal, window) = (t.proposal(), t.windows.1);
            write!(
                children,
                "      c{number} {{
        local_ts = {local}
        remote_ts = {remote}
        esp_proposals = {proposal}
        replay_window = {window}
      }}
"
            )
            .expect("a string");
        }
        write!(
            connections,
            "  m{connection} {{
    version = 2
    local_addrs = {}
    remote_addrs = {}
    proposals = aes128gcm16-prfsha256-x25519
    encap = {encap}
    local {{
      auth = psk
      id = a{connection}.example
    }}
    remote {{
      auth = psk
      id = b{connection}.example
    }}
    children {{
{children}    }}
  }}
",
            outer(Side::A),
            outer(Side::B)
        )
        .expect("a string");
        write!(
            secrets,
            "  ike-{connection} {{
    id-a = a{connection}.example
    id-b = b{connection}.example
    secret = \"a secret of the testbed alone\"
  }}
"
        )
        .expect("a string");
    }
    format!("connections {{\n{connections}}}\nsecrets {{\n{secrets}}}\n")
}

/// Each transform's networks behind the hosts; what a host sends there comes from its address in the one on its side.
fn give_addresses(pair: &mut Pair, transforms: &[Transform]) {
    let topology = pair.testbed.topology();
    let both = |address: Ipv4Addr, bits: u8| {
        [format!("{address}/{bits}"), format!("{}/{}", ipv6(address), IPV6_PREFIX + bits)]
    };
    for side in [Side::A, Side::B] {
        let (host, gateway) = (topology.addresses.host(side), topology.addresses.gateway_inside(side));
        for number in 0..transforms.len() {
            let (own, other) = (host_address(side, number), network(side.other(), number));
            let vias = [IpAddr::from(gateway), ipv6(gateway).into()];
            let backs = [IpAddr::from(host), ipv6(host).into()];
            let sources = [IpAddr::from(own), ipv6(own).into()];
            for version in 0..2 {
                let namespace = topology.host(side);
                let (address, interface) = (&both(own, 32)[version], side.host_interface());
                namespace.ip(&format!("addr add {address} dev {interface} nodad")).expect("an address");
                let (to, via, source) = (&both(other, 24)[version], vias[version], sources[version]);
                namespace.ip(&format!("route add {to} via {via} src {source}")).expect("a route");
                let back =
                    format!("route add {} via {}", both(network(side, number), 24)[version], backs[version]);
                match side {
                    Side::A => drop(pair.linux.run(&format!("ip {back}")).expect("a route")),
                    Side::B => drop(topology.gateway(side).ip(&back).expect("a route")),
                }
            }
        }
    }
}

/// RFC 4106, RFC 7634, RFC 4303 sections 2.2.1 and 3.4.3, RFC 3948; IPv4 and IPv6 in IPv4 and IPv6.
#[test]
#[ignore = "needs a Linux peer: scripts/test --interop"]
fn a_linux_kernel_takes_every_transform_and_ping_and_tcp_pass_each_way() {
    let transforms = transforms();
    let versions = Versions { outside: Version::V4, inside: Version::V6 };
    let connections = |addresses: &Addresses| charon_connections(&transforms, addresses);
    let mut pair = pair(spindle_settings(&transforms), versions, connections);
    give_addresses(&mut pair, &transforms);
    for (number, t) in transforms.iter().enumerate() {
        let connection = number / 4;
        let spindle_begins = number % 3 == 0;
        if spindle_begins {
            let line = format!("initiate m{connection}/c{number}");
            pair.testbed.gateway(Side::B).spindle(&line).unwrap_or_else(|error| panic!("{t:?}: {error}"));
        } else {
            let line = format!("--initiate --child c{number} --timeout 20");
            pair.linux.swanctl(&line).unwrap_or_else(|error| panic!("{t:?}: {error}"));
        }
        for from in [Side::A, Side::B] {
            let host = |side: Side| Host {
                namespace: pair.testbed.topology().host(side),
                address: t.inside.of(host_address(side, number)),
            };
            let (one, other) = (host(from), host(from.other()));
            assert_eq!(answered(one, other, 3), 3, "{t:?} from {from:?}");
            let transfer = tcp_transfer(one, other, pair.testbed.marker(), 300_000, PATIENCE);
            let transfer = transfer.unwrap_or_else(|error| panic!("{t:?} from {from:?}: {error}"));
            assert!(transfer.is_intact(), "{t:?} from {from:?}");
        }
    }
    as_the_kernel_sees(&mut pair, &transforms);
    let states = pair.linux.run("ip xfrm state").expect("ip xfrm state");
    let testbed = pair.clean();
    as_tshark_sees(&testbed.directory().join("outer-b.pcap"), &states, &transforms);
}

/// What `ip xfrm state` says of each SA is what was meant, and it has carried the octets.
fn as_the_kernel_sees(pair: &mut Pair, transforms: &[Transform]) {
    let text = pair.linux.run("ip -s xfrm state").expect("ip xfrm state");
    let states: Vec<&str> = text.split("src ").filter(|state| state.contains("proto esp")).collect();
    assert_eq!(states.len(), 2 * transforms.len());
    let list = pair.testbed.gateway(Side::B).json("list-sas").expect("list-sas");
    let ikes = list.as_array().expect("IKE SAs");
    assert_eq!(ikes.len(), 4);
    let children = || ikes.iter().flat_map(|ike| ike["children"].as_array().expect("Child SAs"));
    for (number, t) in transforms.iter().enumerate() {
        let name = format!("c{number}");
        let child = children().find(|child| child["name"] == name).expect("its Child SA");
        for (spi, bytes) in [("spi_i", "bytes_i"), ("spi_o", "bytes_o")] {
            let spi = child[spi].as_str().expect("an SPI");
            let state =
                states.iter().find(|state| state.contains(&format!("spi 0x{spi}"))).expect("its state");
            let (algorithm, bits) = KERNEL[t.suite].split_once(' ').expect("two words");
            assert!(state.contains(&format!("aead {algorithm} ")), "{t:?}: {state}");
            assert!(state.contains(&format!("({bits} bits) 128")), "{t:?}: {state}");
            assert!(state.contains("mode tunnel"), "{t:?}: {state}");
            assert_eq!(state.contains("encap type espinudp"), t.encapsulated, "{t:?}: {state}");
            assert_eq!(flags(state).contains(" esn "), t.esn, "{t:?}: {state}");
            assert!(state.starts_with(&t.outside.of(Ipv4Addr::new(192, 0, 2, 0)).to_string()[..6]), "{t:?}");
            assert!(child[bytes].as_u64().is_some_and(|carried| carried > 300_000), "{t:?}: {child}");
        }
        let inbound = child["spi_o"].as_str().expect("an SPI");
        let state =
            states.iter().find(|state| state.contains(&format!("spi 0x{inbound}"))).expect("its state");
        // Windows of more than 32 packets stand in a context of their own.
        let window = [format!("replay-window {} ", t.windows.1), format!("replay_window {},", t.windows.1)];
        assert!(window.iter().any(|window| state.contains(window)), "{t:?}: {state}");
    }
}

/// tshark opens the capture with the keys of the kernel's SAs, but for ChaCha20-Poly1305, which it doesn't know: all echo
/// requests and answers of each transform are in it.
fn as_tshark_sees(capture: &Path, states: &str, transforms: &[Transform]) {
    let mut command = Command::new("tshark");
    command.arg("-r").arg(capture).args(["-o", "esp.enable_encryption_decode:TRUE"]);
    command.args(["-T", "fields", "-e", "esp.spi", "-e", "ip.addr", "-e", "ipv6.addr"]);
    command.args([
        "-Y",
        "esp && (icmp.type == 0 || icmp.type == 8 || icmpv6.type == 128 || icmpv6.type == 129)",
    ]);
    let mut known = 0;
    for state in states.split("src ").filter(|state| state.contains("rfc4106")) {
        let words: Vec<&str> = state.split_whitespace().collect();
        let after = |word: &str| {
            let at = words.iter().position(|&found| found == word).expect("a word");
            words[at + 1].split('(').next().expect("a value")
        };
        let version = if words[0].contains(':') { "IPv6" } else { "IPv4" };
        let (source, destination, spi, key) =
            (words[0], after("dst"), after("spi"), after("rfc4106(gcm(aes))"));
        let form = "AES-GCM with 16 octet ICV [RFC4106]";
        command.arg("-o").arg(format!(
            "uat:esp_sa:\"{version}\",\"{source}\",\"{destination}\",\"{spi}\",\"{form}\",\"{key}\",\"NULL\",\"\""
        ));
        known += 1;
    }
    assert_eq!(known, 2 * 12);
    let output = command.output().expect("tshark");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    for (number, t) in transforms.iter().enumerate().filter(|(_, t)| t.suite != 3) {
        let [a, b] = [Side::A, Side::B].map(|side| t.inside.of(host_address(side, number)).to_string());
        let addresses =
            |line: &str| [&a, &b].into_iter().all(|address| line.split([',', '\t']).any(|at| at == address));
        let echoes = text.lines().filter(|line| addresses(line)).count();
        assert_eq!(echoes, 2 * 2 * 3, "{t:?}:\n{text}");
    }
}

/// The line of a state that has its flags.
fn flags<'a>(state: &&'a str) -> &'a str {
    state.lines().find(|line| line.contains(" flag ")).expect("flags")
}
