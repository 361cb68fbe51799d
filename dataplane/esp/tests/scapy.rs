//! scapy's ESP layer, which shares no code with ours, opens what we send and makes what we receive: every suite, with and
//! without Extended Sequence Numbers and ESP in UDP, either version of IP outside and inside, tunnel and transport mode.
//!
//! `benches/peers/scapy_esp.py` does it, in the Python environment that `scripts/install-packages test` makes.

use spindle_abi::{KeyMaterial, Limits, Mode, SaParameters, SelectorSet, Spi, Suite};
use spindle_aead::Provider;
use spindle_esp::{InboundSa, OpenFault, OutboundSa, back_length, front_length, transport};
use spindle_wire::{checksum, ip, ipv4, ipv6, protocol, udp};
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
const SPI: Spi = Spi(0xc0ff_ee01);
const SUITES: [(&str, Suite); 4] = [
    ("aes128gcm16", Suite::Aes128Gcm),
    ("aes192gcm16", Suite::Aes192Gcm),
    ("aes256gcm16", Suite::Aes256Gcm),
    ("chacha20poly1305", Suite::ChaCha20Poly1305),
];

/// The peer: one order, one answer.
struct Scapy {
    process: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Scapy {
    fn start() -> Scapy {
        let mut process = Command::new(format!("{ROOT}/target/python/bin/python3"))
            .arg(format!("{ROOT}/benches/peers/scapy_esp.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("target/python, which scripts/install-packages test makes");
        let (orders, answers) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        Scapy { process, orders, answers: BufReader::new(answers) }
    }

    fn ask(&mut self, order: &str) -> String {
        writeln!(self.orders, "{order}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        assert!(!answer.is_empty(), "scapy died of {order}");
        answer.trim_end().to_owned()
    }

    fn set_sa(&mut self, name: &str, sa: &SaParameters) {
        let keymat = to_hex(sa.keymat.as_bytes());
        let esn = if sa.esn { "esn" } else { "noesn" };
        let (local, remote) = (sa.local.ip(), sa.remote.ip());
        let mode = if sa.mode == Mode::Transport { "transport" } else { "tunnel" };
        let order = format!("sa {name} {keymat} {SPI} {esn} {local} {remote} {} {mode}", sa.local.port());
        assert_eq!(self.ask(&order), "ok");
    }

    /// The inner packet; `None` if scapy finds it not authentic.
    fn open(&mut self, packet: &[u8], sequence: u64) -> Option<Vec<u8>> {
        let answer = self.ask(&format!("open {} {}", sequence >> 32, to_hex(packet)));
        (answer != "refused").then(|| from_hex(&answer))
    }

    fn make(&mut self, inner: &[u8], sequence: u64) -> Vec<u8> {
        from_hex(&self.ask(&format!("make {sequence} {}", to_hex(inner))))
    }
}

impl Drop for Scapy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn to_hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

fn from_hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn parameters(suite: Suite, esn: bool, in_udp: bool, outer_six: bool) -> SaParameters {
    let ends: [IpAddr; 2] = match outer_six {
        false => [[192, 0, 2, 1].into(), [192, 0, 2, 2].into()],
        true => ["2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap()],
    };
    let [local, remote] = ends.map(|end| SocketAddr::new(end, if in_udp { 4500 } else { 0 }));
    let keymat: Vec<u8> = (0..suite.keymat_length() as u8).map(|i| i.wrapping_mul(29) ^ 0x5a).collect();
    SaParameters {
        spi: SPI,
        index: 0,
        policy: 1,
        resource: Default::default(),
        mode: Mode::Tunnel,
        suite,
        keymat: KeyMaterial::new(&keymat).unwrap(),
        local,
        remote,
        encapsulated: in_udp,
        selectors: SelectorSet::default(),
        esn,
        soft: Limits::default(),
        hard: Limits::default(),
    }
}

/// A UDP datagram of this many octets, in either version of IP.
fn inner(six: bool, length: usize) -> Vec<u8> {
    let mut octets: Vec<u8> = (0..length).map(|i| (i * 7 + length) as u8).collect();
    let headers = if six { ipv6::HEADER_LENGTH } else { ipv4::HEADER_LENGTH };
    let payload_length = (length - headers) as u16;
    if six {
        let repr = ipv6::Repr {
            traffic_class: 0xb8,
            flow_label: 0x12345,
            next_header: protocol::UDP,
            hop_limit: 9,
            source: "2001:db8:1::1".parse().unwrap(),
            destination: "2001:db8:2::1".parse().unwrap(),
            payload_length,
        };
        repr.emit(&mut octets);
    } else {
        let repr = ipv4::Repr {
            traffic_class: 0xb8,
            identification: 7,
            dont_fragment: true,
            more_fragments: false,
            fragment_offset: 0,
            ttl: 9,
            protocol: protocol::UDP,
            source: [10, 1, 0, 1].into(),
            destination: [10, 2, 0, 1].into(),
            payload_length,
        };
        repr.emit(&mut octets);
    }
    let payload_length = payload_length - udp::HEADER_LENGTH as u16;
    udp::Repr { source_port: 5000, destination_port: 5001, payload_length }.emit(&mut octets[headers..]);
    octets
}

/// The ESP packet within an outer one.
fn esp_of(packet: &[u8], in_udp: bool) -> Vec<u8> {
    let (protocol, payload) = match packet[0] >> 4 {
        6 => {
            let packet = ipv6::Packet::new_checked(packet).unwrap();
            (packet.next_header(), packet.payload().to_vec())
        }
        _ => {
            let packet = ipv4::Packet::new_checked(packet).unwrap();
            assert!(packet.verify_checksum());
            (packet.protocol(), packet.payload().to_vec())
        }
    };
    assert_eq!(protocol, if in_udp { protocol::UDP } else { protocol::ESP });
    match in_udp {
        true => udp::Packet::new_checked(&payload[..]).unwrap().payload().to_vec(),
        false => payload,
    }
}

/// First ones, and those about the end of 32 bits.
fn sequences(esn: bool) -> Vec<u64> {
    const RUN: u64 = 1 << 32;
    match esn {
        false => vec![1, 2, 70, RUN - 2, RUN - 1],
        true => vec![1, 2, RUN / 2, RUN - 1, RUN, RUN + 1, RUN + RUN / 2, 2 * RUN + 5],
    }
}

/// RFC 4303 section 2, RFC 4106 section 5, RFC 7634 section 2.1, RFC 3948 section 2.1.
#[test]
fn scapy_opens_what_we_send_and_makes_what_we_receive() {
    let mut scapy = Scapy::start();
    let mut packets = 0;
    let lengths = [48, 61, 62, 63, 576, 1400];
    for case in 0..SUITES.len() << 4 {
        let [esn, in_udp, outer_six, inner_six] = [0, 1, 2, 3].map(|bit| case >> bit & 1 == 1);
        let (name, suite) = SUITES[case >> 4];
        let sa = parameters(suite, esn, in_udp, outer_six);
        scapy.set_sa(name, &sa);
        let mut out = OutboundSa::new(&sa, Provider::choose().unwrap().provider).unwrap();
        let mut inbound = InboundSa::new(&sa, 64, Provider::choose().unwrap().provider).unwrap();
        for (sequence, length) in sequences(esn).into_iter().zip(lengths.into_iter().cycle()) {
            let at = format!("{name} esn {esn} udp {in_udp} six {outer_six} {inner_six}: {sequence}");
            let inner = inner(inner_six, length);
            out.skip_to(sequence - 1);
            let around = out.encapsulation();
            let mut sent = vec![0; front_length(around)];
            sent.extend(&inner);
            sent.resize(sent.len() + back_length(length), 0);
            out.encapsulate(&mut sent, length).unwrap();
            assert_eq!(scapy.open(&sent, sequence).as_ref(), Some(&inner), "sent, {at}");
            // With other high-order bits than those that were authenticated it is not authentic.
            let other = scapy.open(&sent, sequence ^ (1 << 40));
            assert_eq!(other.is_none(), esn, "sent, with other bits, {at}");

            let mut received = esp_of(&scapy.make(&inner, sequence), in_udp);
            let mut again = received.clone();
            let opened =
                inbound.open(&mut received).unwrap_or_else(|fault| panic!("received, {at}: {fault:?}"));
            assert_eq!(
                (opened.sequence, &received[opened.payload]),
                (sequence, &inner[..]),
                "received, {at}"
            );
            assert_eq!(opened.next_header, if inner_six { protocol::IPV6 } else { protocol::IPV4 });
            assert_eq!(inbound.open(&mut again), Err(OpenFault::Replayed), "{at}");
            packets += 2;
        }
    }
    assert_eq!(packets, 2 * 4 * 8 * (5 + 8));
}

/// A whole packet between the SA's ends; of IPv4 with options, of IPv6 with hop-by-hop options before ESP's place and
/// destination options behind it.
fn between_the_ends(sa: &SaParameters, length: usize) -> Vec<u8> {
    let data: Vec<u8> = (0..length).map(|i| (i * 7 + length) as u8).collect();
    let mut datagram = vec![0; udp::HEADER_LENGTH];
    datagram.extend(&data);
    let repr = udp::Repr { source_port: 5000, destination_port: 5001, payload_length: length as u16 };
    repr.emit(&mut datagram);
    udp::fill_checksum(&mut datagram, sa.local.ip(), sa.remote.ip());
    match (sa.local.ip(), sa.remote.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let repr = ipv4::Repr {
                traffic_class: 0xb8,
                identification: 7,
                dont_fragment: true,
                more_fragments: false,
                fragment_offset: 0,
                ttl: 9,
                protocol: protocol::UDP,
                source,
                destination,
                payload_length: (4 + datagram.len()) as u16,
            };
            let mut octets = vec![0; ipv4::HEADER_LENGTH];
            repr.emit(&mut octets);
            // Router alert (RFC 2113).
            octets.extend([0x94, 4, 0, 0]);
            octets[0] += 1;
            octets[10..12].fill(0);
            let sum = checksum::internet(&octets);
            octets[10..12].copy_from_slice(&sum.to_be_bytes());
            octets.extend(datagram);
            octets
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            // scapy loses its way among them where ESP is in UDP.
            let options: &[u8] = match sa.encapsulated {
                true => &[],
                false => {
                    &[protocol::DESTINATION_OPTIONS, 0, 1, 4, 0, 0, 0, 0, protocol::UDP, 0, 1, 4, 0, 0, 0, 0]
                }
            };
            let repr = ipv6::Repr {
                traffic_class: 0xb8,
                flow_label: 0x12345,
                next_header: if sa.encapsulated { protocol::UDP } else { protocol::HOP_BY_HOP },
                hop_limit: 9,
                source,
                destination,
                payload_length: (options.len() + datagram.len()) as u16,
            };
            let mut octets = vec![0; ipv6::HEADER_LENGTH];
            repr.emit(&mut octets);
            octets.extend(options);
            octets.extend(datagram);
            octets
        }
        _ => unreachable!("one version"),
    }
}

/// RFC 4303 section 3.1.1, RFC 3948 section 3.2.
#[test]
fn scapy_takes_and_makes_transport_mode_as_we_do() {
    let mut scapy = Scapy::start();
    let mut packets = 0;
    for case in 0..SUITES.len() << 3 {
        let [esn, in_udp, six] = [0, 1, 2].map(|bit| case >> bit & 1 == 1);
        let (name, suite) = SUITES[case >> 3];
        let sa = SaParameters { mode: Mode::Transport, ..parameters(suite, esn, in_udp, six) };
        scapy.set_sa(name, &sa);
        let mut out = OutboundSa::new(&sa, Provider::choose().unwrap().provider).unwrap();
        let mut inbound = InboundSa::new(&sa, 64, Provider::choose().unwrap().provider).unwrap();
        for (sequence, length) in (1..).zip([0, 1, 2, 3, 4, 576, 1300]) {
            let at = format!("{name} esn {esn} udp {in_udp} six {six}: {length}");
            let packet = between_the_ends(&sa, length);
            let mut sent = vec![0; front_length(out.encapsulation())];
            sent.extend(&packet);
            sent.resize(sent.len() + back_length(packet.len()), 0);
            out.encapsulate(&mut sent, packet.len()).unwrap();
            assert_eq!(scapy.open(&sent, sequence).as_ref(), Some(&packet), "sent, {at}");

            let mut made = scapy.make(&packet, sequence);
            let head = ip::Head::parse(&made).unwrap();
            assert_eq!(head.protocol, if in_udp { protocol::UDP } else { protocol::ESP }, "{at}");
            let start = head.upper + if in_udp { udp::HEADER_LENGTH } else { 0 };
            let opened = inbound.open(&mut made[start..]).unwrap_or_else(|fault| panic!("{at}: {fault:?}"));
            let payload = start + opened.payload.start..start + opened.payload.end;
            let rebuilt = transport::rebuild(&mut made, payload, opened.next_header).unwrap();
            assert_eq!((&made[rebuilt], opened.sequence), (&packet[..], sequence), "received, {at}");
            packets += 2;
        }
    }
    assert_eq!(packets, 2 * 32 * 7);
}
