//! Frames of every kind that a gateway meets, each with its name and what XDP and the engine say of it. They are also
//! where fuzzers begin.

use crate::Side;
use spindle_abi::Spi;
use spindle_wire::checksum;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The gateway's outer addresses.
pub const US: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// See [`US`].
pub const US6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
/// Its inner address.
pub const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 1);
/// A host behind it; a BYPASS policy lets it speak with [`PEER`].
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 7);
/// Whence the frames from outside come.
pub const PEER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// See [`PEER`].
pub const PEER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
/// What XDP was told of [`PEER`], as a network.
pub const PEER_NETWORK: (IpAddr, u8) = (IpAddr::V4(PEER), 32);
/// Nobody's address.
pub const OTHER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 99);
/// See [`OTHER`].
pub const OTHER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x99);
/// The port of ESP in UDP (RFC 3948).
pub const PORT: u16 = 4500;
/// The VLANs (VIDs of IEEE 802.1Q), where the sides are some.
pub const OUTSIDE_VLAN: u16 = 100;
/// See [`OUTSIDE_VLAN`].
pub const INSIDE_VLAN: u16 = 200;
/// SPIs with a state.
pub const LARVAL: Spi = Spi(0x1122_3341);
/// See [`LARVAL`].
pub const RETIRED: Spi = Spi(0x1122_3343);
/// See [`LARVAL`].
pub const FORMER: Spi = Spi(0x1122_3344);
/// One without.
pub const UNKNOWN: Spi = Spi(0x1122_3345);

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ESP: u8 = 50;
const ICMPV6: u8 = 58;

/// A frame and what is said of it.
#[derive(Clone, Debug)]
pub struct Fixture {
    /// What it is.
    pub name: &'static str,
    /// Whence it comes.
    pub side: Side,
    /// From the Ethernet header on.
    pub frame: Vec<u8>,
    /// XDP's decision, without the side's name.
    pub steer: &'static str,
    /// The engine's counter.
    pub engine: &'static str,
}

/// All of them.
pub fn all() -> Vec<Fixture> {
    let mut all = Vec::new();
    let mut add = |side, name, frame, steer, engine| all.push(Fixture { name, side, frame, steer, engine });
    outside(|name, frame, steer, engine| add(Side::Outside, name, frame, steer, engine));
    outside6(|name, frame, steer, engine| add(Side::Outside, name, frame, steer, engine));
    inside(|name, frame, steer, engine| add(Side::Inside, name, frame, steer, engine));
    all
}

/// Those where both sides are VLANs: all of the others with the tag, of which the same is said, and frames of other networks.
pub fn of_vlans() -> Vec<Fixture> {
    let priority = 0xb000;
    let own = |side| if side == Side::Outside { OUTSIDE_VLAN } else { INSIDE_VLAN };
    let mut all = all();
    for fixture in &mut all {
        fixture.frame = tagged(TPID, priority | own(fixture.side), &fixture.frame);
    }
    for (side, plain) in [
        (Side::Outside, ipv4(PEER, US, ESP, 0, &esp(FORMER))),
        (Side::Inside, ipv4(HOST, PEER, TCP, 0, &[0; 20])),
    ] {
        let id = own(side);
        let with_tag = tagged(TPID, id, &plain);
        let others = [
            ("without a tag", plain.clone()),
            ("with another VLAN's", tagged(TPID, id + 1, &plain)),
            ("with a priority tag", tagged(TPID, priority, &plain)),
            ("of the same number in Q-in-Q's outer tag", tagged(0x88a8, id, &plain)),
            ("in Q-in-Q", tagged(0x88a8, id, &with_tag)),
            ("behind another tag", tagged(TPID, id + 1, &with_tag)),
            ("with the tag twice", tagged(TPID, id, &with_tag)),
            ("cut short within the tag", with_tag[..17].to_vec()),
        ];
        let passed = |(name, frame)| Fixture { name, side, frame, steer: "passed", engine: "not_ip" };
        all.extend(others.map(passed));
        let (steer, engine) = MALFORMED_IP;
        let frame = with_tag[..18].to_vec();
        all.push(Fixture { name: "cut short behind the tag", side, frame, steer, engine });
    }
    all
}

/// The TPID of IEEE 802.1Q.
pub const TPID: u16 = 0x8100;

/// A frame with a tag: this TPID, then priority and VID.
pub fn tagged(tpid: u16, control: u16, frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &tpid.to_be_bytes(), &control.to_be_bytes(), &frame[12..]].concat()
}

type Texts = (&'static str, &'static str);
const MALFORMED_IP: Texts = ("dropped_malformed", "malformed_ip");
const MALFORMED_ESP: Texts = ("dropped_malformed", "malformed_esp");
const HOSTS: Texts = ("passed", "for_host");
const UNKNOWN_SPI: Texts = ("to_background", "unknown_spi");
const FRAGMENT: Texts = ("to_background", "fragment_kept");

fn outside(mut add: impl FnMut(&'static str, Vec<u8>, &'static str, &'static str)) {
    let mut add = |name, frame, (steer, engine): Texts| add(name, frame, steer, engine);
    let states = [
        ("a larval SPI", LARVAL, ("to_socket", "larval_spi")),
        ("a retired SPI", RETIRED, ("to_socket", "retired_spi")),
        ("a former SPI", FORMER, ("to_socket", "former_spi")),
        ("an unknown SPI", UNKNOWN, UNKNOWN_SPI),
        ("a reserved SPI", Spi(255), ("to_background", "malformed_esp")),
        ("SPI zero", Spi(0), ("to_background", "malformed_esp")),
    ];
    for (name, spi, said) in states {
        add(name, ipv4(PEER, US, ESP, 0, &esp(spi)), said);
    }
    for (name, spi, said) in &states[..4] {
        add(name, ipv4(PEER, US, UDP, 0, &udp(PORT, PORT, &esp(*spi))), *said);
    }
    add("ESP cut short", ipv4(PEER, US, ESP, 0, &esp(UNKNOWN)[..7]), MALFORMED_ESP);
    let mut padded = ipv4(PEER, US, ESP, 0, &esp(UNKNOWN)[..7]);
    padded.resize(60, 0);
    add("ESP cut short, and padded by the link", padded, ("to_background", "malformed_esp"));
    add(
        "a NAT keepalive",
        ipv4(PEER, US, UDP, 0, &udp(PORT, PORT, &[0xff])),
        ("dropped_nat_keepalive", "nat_keepalive"),
    );
    add(
        "three octets to the port of ESP in UDP",
        ipv4(PEER, US, UDP, 0, &udp(PORT, PORT, &[1, 2, 3])),
        MALFORMED_ESP,
    );
    add("IKE", ipv4(PEER, US, UDP, 0, &udp(500, 500, &[7; 28])), HOSTS);
    add("IKE on the port of ESP in UDP", ipv4(PEER, US, UDP, 0, &udp(PORT, PORT, &[0; 32])), HOSTS);
    add("a ping to us", ipv4(PEER, US, ICMP, 0, &[8, 0, 0xf7, 0xff, 0, 0, 0, 0]), HOSTS);
    add("TCP to us", ipv4(PEER, US, TCP, 0, &[0; 20]), HOSTS);
    add("ARP", ethernet(0x0806, &[0; 28]), ("passed", "not_ip"));
    let former = ipv4(PEER, US, ESP, 0, &esp(FORMER));
    add("a frame with an 802.1Q tag", tagged(TPID, 5, &former), ("passed", "not_ip"));
    add("one with a priority tag", tagged(TPID, 0xe000, &former), ("passed", "not_ip"));
    add("multicast", ipv4(PEER, Ipv4Addr::new(224, 0, 0, 5), 89, 0, &[0; 8]), ("passed", "not_unicast"));
    add(
        "broadcast",
        ipv4(PEER, Ipv4Addr::BROADCAST, UDP, 0, &udp(67, 68, &[0; 8])),
        ("passed", "not_unicast"),
    );
    add(
        "ESP from a group",
        ipv4(Ipv4Addr::new(224, 0, 0, 5), US, ESP, 0, &esp(UNKNOWN)),
        ("to_background", "not_unicast"),
    );
    add(
        "ESP to another host",
        ipv4(PEER, OTHER, ESP, 0, &esp(UNKNOWN)),
        ("dropped_not_ours", "cleartext_from_outside"),
    );
    add(
        "TCP to another host",
        ipv4(PEER, OTHER, TCP, 0, &[0; 20]),
        ("dropped_not_ours", "cleartext_from_outside"),
    );
    add("what a policy lets by", ipv4(PEER, HOST, UDP, 0, &udp(53, 53, &[0; 8])), ("in_clear", "bypassed"));
    add("the first fragment of ESP", ipv4(PEER, US, ESP, 0x2000, &esp(UNKNOWN)), FRAGMENT);
    add("a later fragment of ESP", ipv4(PEER, US, ESP, 2, &esp(UNKNOWN)), FRAGMENT);
    add(
        "a first fragment of ESP in UDP",
        ipv4(PEER, US, UDP, 0x2000, &udp(PORT, PORT, &esp(UNKNOWN))),
        FRAGMENT,
    );
    add("a later one", ipv4(PEER, US, UDP, 3, &[0; 16]), FRAGMENT);
    add(
        "a first fragment of IKE",
        ipv4(PEER, US, UDP, 0x2000, &udp(500, 500, &[0; 24])),
        ("passed", "fragment_kept"),
    );
    let about = ipv4(US, PEER, ESP, 0, &esp(UNKNOWN)).split_off(14);
    add(
        "an ICMP error about ESP",
        ipv4(PEER, US, ICMP, 0, &icmp(3, 4, &about)),
        ("to_background", "icmp_unknown_sa"),
    );
    add(
        "an ICMP error of another kind",
        ipv4(PEER, US, ICMP, 0, &icmp(3, 1, &about)),
        ("passed", "icmp_unknown_sa"),
    );
    let mut options = ipv4(PEER, US, ESP, 0, &[&[1; 4][..], &esp(FORMER)].concat());
    options[14] = 0x46;
    repair(&mut options, 24);
    add("ESP behind IP options", options.clone(), ("to_socket", "former_spi"));
    options[14] = 0x44;
    add("a header shorter than one", options, MALFORMED_IP);
    let mut version = ipv4(PEER, US, ESP, 0, &esp(FORMER));
    version[14] = 0x65;
    add("IPv6 that says it is IPv4", version, MALFORMED_IP);
    let mut checksum = ipv4(PEER, US, ESP, 0, &esp(FORMER));
    checksum[24] ^= 1;
    add("a wrong header checksum", checksum, ("to_socket", "malformed_ip"));
    add("half a header", ipv4(PEER, US, ESP, 0, &[])[..24].to_vec(), MALFORMED_IP);
}

fn outside6(mut add: impl FnMut(&'static str, Vec<u8>, &'static str, &'static str)) {
    let mut add = |name, frame, (steer, engine): Texts| add(name, frame, steer, engine);
    let ours = |next, payload: &[u8]| ipv6(PEER6, US6, next, payload);
    add("a former SPI over IPv6", ours(ESP, &esp(FORMER)), ("to_socket", "former_spi"));
    add("an unknown SPI over IPv6", ours(ESP, &esp(UNKNOWN)), UNKNOWN_SPI);
    add("in UDP over IPv6", ours(UDP, &udp(PORT, PORT, &esp(FORMER))), ("to_socket", "former_spi"));
    add("IKE over IPv6", ours(UDP, &udp(500, 500, &[7; 28])), HOSTS);
    add(
        "a NAT keepalive over IPv6",
        ours(UDP, &udp(PORT, PORT, &[0xff])),
        ("dropped_nat_keepalive", "nat_keepalive"),
    );
    add("ESP cut short over IPv6", ours(ESP, &esp(FORMER)[..7]), MALFORMED_ESP);
    add("an echo request to us over IPv6", ours(ICMPV6, &[128, 0, 0, 0, 0, 0, 0, 0]), HOSTS);
    let solicited = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 1);
    add("a neighbour solicitation", ipv6(PEER6, solicited, ICMPV6, &[135; 24]), ("passed", "not_unicast"));
    let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    add(
        "to a link-local address",
        ipv6(PEER6, link_local, UDP, &udp(53, 53, &[0; 8])),
        ("passed", "not_unicast"),
    );
    add(
        "ESP to another host over IPv6",
        ipv6(PEER6, OTHER6, ESP, &esp(FORMER)),
        ("dropped_not_ours", "cleartext_from_outside"),
    );
    let chain = |last: u8| [&[60, 0, 1, 4, 0, 0, 0, 0][..], &[last, 1, 1, 12], &[0; 12]].concat();
    add(
        "ESP behind extension headers",
        ours(0, &[chain(ESP), esp(FORMER)].concat()),
        ("to_socket", "former_spi"),
    );
    let atomic = [ESP, 0, 0, 0, 0, 0, 0, 7];
    add(
        "ESP in an atomic fragment",
        ours(44, &[&atomic[..], &esp(FORMER)].concat()),
        ("to_socket", "former_spi"),
    );
    let eight = [60, 0, 1, 4, 0, 0, 0, 0].repeat(8);
    let nine = [[60, 0, 1, 4, 0, 0, 0, 0].repeat(8), vec![ESP, 0, 1, 4, 0, 0, 0, 0], esp(FORMER)].concat();
    add("more extension headers than any needs", ours(60, &nine), MALFORMED_IP);
    add("extension headers without an end", ours(60, &eight), MALFORMED_IP);
    add("a header that is longer than the packet", ours(60, &[ESP, 200, 0, 0, 0, 0, 0, 0]), MALFORMED_IP);
    let late = [&[0, 0, 1, 4, 0, 0, 0, 0, ESP, 0, 1, 4, 0, 0, 0, 0][..], &esp(FORMER)].concat();
    add("hop-by-hop options that are not first", ours(60, &late), MALFORMED_IP);
    let twice = [44, 0, 0, 0, 0, 0, 0, 7, ESP, 0, 0, 0, 0, 0, 0, 7];
    add("two fragment headers", ours(44, &[&twice[..], &esp(FORMER)].concat()), MALFORMED_IP);
    for (name, fragment) in [("a first fragment of ESP over IPv6", 1u16), ("a later one over IPv6", 16)] {
        let header = [&[ESP, 0][..], &fragment.to_be_bytes(), &[0, 0, 0, 9]].concat();
        add(name, ours(44, &[header, esp(UNKNOWN)].concat()), FRAGMENT);
    }
    let fragment = |offset: u16, payload: &[u8]| {
        ours(44, &[&[UDP, 0][..], &offset.to_be_bytes(), &[0, 0, 0, 9], payload].concat())
    };
    let in_udp = udp(PORT, PORT, &esp(UNKNOWN));
    add("a first fragment of ESP in UDP over IPv6", fragment(1, &in_udp), FRAGMENT);
    add("a later one of ESP in UDP over IPv6", fragment(24, &[0; 16]), FRAGMENT);
    let about = ipv6(US6, PEER6, ESP, &esp(UNKNOWN)).split_off(14);
    for (name, kind, steer) in
        [("packet too big about ESP", 2, "to_background"), ("an ICMPv6 error of another kind", 1, "passed")]
    {
        let error = [&[kind, 0, 0, 0, 0, 0, 5, 0x14][..], &about].concat();
        add(name, ours(ICMPV6, &error), (steer, "icmp_unknown_sa"));
    }
}

fn inside(mut add: impl FnMut(&'static str, Vec<u8>, &'static str, &'static str)) {
    let mut add = |name, frame, (steer, engine): Texts| add(name, frame, steer, engine);
    add(
        "a host's packet that no policy names",
        ipv4(HOST, OTHER, UDP, 0, &udp(53, 53, &[0; 8])),
        ("to_socket", "no_policy"),
    );
    add(
        "a host's packet that may pass in clear",
        ipv4(HOST, PEER, UDP, 0, &udp(53, 53, &[0; 8])),
        ("to_socket", "bypassed"),
    );
    add("to the gateway itself", ipv4(HOST, INSIDE, UDP, 0, &udp(53, 53, &[0; 8])), HOSTS);
    add("to its outer address", ipv4(HOST, US, TCP, 0, &[0; 20]), HOSTS);
    add("ARP inside", ethernet(0x0806, &[0; 28]), ("passed", "not_ip"));
    add(
        "multicast inside",
        ipv4(HOST, Ipv4Addr::new(224, 0, 0, 5), 89, 0, &[0; 8]),
        ("passed", "not_unicast"),
    );
    add("half a header inside", ipv4(HOST, PEER, UDP, 0, &[])[..24].to_vec(), MALFORMED_IP);
}

/// ESP whose ICV is no one's.
fn esp(spi: Spi) -> Vec<u8> {
    [&spi.0.to_be_bytes()[..], &[0, 0, 0, 1], &[0; 32]].concat()
}

fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len()) as u16;
    [&from.to_be_bytes()[..], &to.to_be_bytes(), &length.to_be_bytes(), &[0, 0], payload].concat()
}

fn icmp(kind: u8, code: u8, quoted: &[u8]) -> Vec<u8> {
    let mut icmp = [&[kind, code, 0, 0, 0, 0, 5, 0x14], quoted].concat();
    let checksum = checksum::internet(&icmp);
    icmp[2..4].copy_from_slice(&checksum.to_be_bytes());
    icmp
}

fn ethernet(kind: u16, payload: &[u8]) -> Vec<u8> {
    [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2][..], &kind.to_be_bytes(), payload].concat()
}

/// `fragment`: the flags and the offset, as on the wire.
fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend((20 + payload.len() as u16).to_be_bytes());
    packet.extend([0, 9]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(payload);
    let mut frame = ethernet(0x0800, &packet);
    repair(&mut frame, 20);
    frame
}

/// Makes the checksum of an IPv4 header of so many octets right.
pub fn repair(frame: &mut [u8], header: usize) {
    frame[24..26].fill(0);
    let checksum = checksum::internet(&frame[14..14 + header]);
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
}

fn ipv6(from: Ipv6Addr, to: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, 64]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(payload);
    ethernet(0x86dd, &packet)
}
