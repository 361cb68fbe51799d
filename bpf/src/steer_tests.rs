//! Runs the loaded programs on single packets (BPF_PROG_TEST_RUN; root is needed).

use super::*;
use std::net::{Ipv4Addr, Ipv6Addr};

const US: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const THEM: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 99);
const US6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const THEM6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x99);
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;

fn steer() -> Steer {
    Steer::load(&[US.into(), US6.into()], NAT_PORT, 1024).expect("these tests need root")
}

/// Ethernet and IPv4 around a payload.
fn packet(to: Ipv4Addr, protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0];
    packet.extend((20 + payload.len() as u16).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0, 198, 51, 100, 1]);
    packet.extend(to.octets());
    packet.extend(payload);
    packet
}

fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
    let mut udp = vec![0x11, 0x94];
    udp.extend(port.to_be_bytes());
    udp.extend((8 + payload.len() as u16).to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    udp
}

/// Ethernet and IPv6 around extension headers and payload.
fn packet6(to: Ipv6Addr, next_header: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x86, 0xdd, 0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next_header, 64]);
    packet.extend(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1).octets());
    packet.extend(to.octets());
    packet.extend(payload);
    packet
}

/// The program's verdict, and which one count went up by one.
fn run(steer: &mut Steer, side: Side, packet: &[u8]) -> (u32, &'static str) {
    let (verdict, changed) = steer.test_run(side, packet).unwrap();
    let [(name, 1)] = changed[..] else { panic!("one count by one, not {changed:?}") };
    (verdict, name)
}

/// The frame with a tag behind the addresses: TPID 0x8100, then this (IEEE 802.1Q section 9.6).
fn tagged(control: u16, frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &[0x81, 0], &control.to_be_bytes(), &frame[12..]].concat()
}

const ESP: [u8; 16] = [0x11, 0x22, 0x33, 0x44, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn esp_for_us_without_a_socket_is_dropped_and_never_passed() {
    let steer = &mut steer();
    let no_socket = (XDP_DROP, "xdp_outside_dropped_no_socket");
    assert_eq!(run(steer, Side::Outside, &packet(US, 50, 0, &ESP)), no_socket);
    assert_eq!(run(steer, Side::Outside, &packet(US, 17, 0, &udp(4500, &ESP))), no_socket);
    let inside = (XDP_DROP, "xdp_inside_dropped_no_socket");
    assert_eq!(run(steer, Side::Inside, &packet(THEM, 17, 0, &udp(53, &ESP))), inside);
}

#[test]
fn what_is_for_the_host_passes() {
    let steer = &mut steer();
    let passed = (XDP_PASS, "xdp_outside_passed");
    // IKE: port 500, and 4500 with the non-ESP marker (RFC 7296 section 3.1).
    assert_eq!(run(steer, Side::Outside, &packet(US, 17, 0, &udp(500, &[0; 28]))), passed);
    assert_eq!(run(steer, Side::Outside, &packet(US, 17, 0, &udp(4500, &[0; 32]))), passed);
    // ICMP, fragments of UDP, ARP, multicast.
    assert_eq!(run(steer, Side::Outside, &packet(US, 1, 0, &[8; 8])), passed);
    assert_eq!(run(steer, Side::Outside, &packet(US, 17, 0x2000, &udp(53, &ESP))), passed);
    assert_eq!(run(steer, Side::Outside, &packet(US, 17, 0x0010, &ESP)), passed);
    let mut arp = packet(US, 1, 0, &[0; 8]);
    arp[12..14].copy_from_slice(&[8, 6]);
    assert_eq!(run(steer, Side::Outside, &arp), passed);
    let group = Ipv4Addr::new(224, 0, 0, 5);
    assert_eq!(run(steer, Side::Outside, &packet(group, 89, 0, &[0; 8])), passed);
    assert_eq!(run(steer, Side::Inside, &arp), (XDP_PASS, "xdp_inside_passed"));
    assert_eq!(run(steer, Side::Inside, &packet(US, 1, 0, &[8; 8])), (XDP_PASS, "xdp_inside_passed"));
}

#[test]
fn the_rest_is_dropped_and_counted() {
    let steer = &mut steer();
    let mut drops = |packet: &[u8], name: &str| {
        let (verdict, counted) = run(steer, Side::Outside, packet);
        assert_eq!((verdict, counted), (XDP_DROP, name));
    };
    drops(&packet(THEM, 50, 0, &ESP), "xdp_outside_dropped_not_ours");
    drops(&packet(THEM, 6, 0, &[0; 20]), "xdp_outside_dropped_not_ours");
    // RFC 3948 section 2.3: one octet 0xff; frames are padded to their minimum.
    let mut keepalive = packet(US, 17, 0, &udp(4500, &[0xff]));
    drops(&keepalive, "xdp_outside_dropped_nat_keepalive");
    keepalive.extend([0; 17]);
    drops(&keepalive, "xdp_outside_dropped_nat_keepalive");
    drops(&packet(US, 17, 0, &udp(4500, &[1, 2, 3])), "xdp_outside_dropped_malformed");
    drops(&packet(US, 50, 0, &ESP[..7]), "xdp_outside_dropped_malformed");
    let mut short = packet(US, 50, 0, &ESP);
    short[14] = 0x44;
    drops(&short, "xdp_outside_dropped_malformed");
}

/// RFC 4301 section 5.2, step 3b: in clear comes what a BYPASS policy may let by; both ends must be its own.
#[test]
fn what_a_bypass_policy_names_goes_to_the_background() {
    let steer = &mut steer();
    let background = socket();
    steer.set_background(0, background.as_fd()).unwrap();
    let mut in_clear = steer.take_in_clear().unwrap().unwrap();
    let networks = |all: &[([u8; 4], u8)]| {
        all.iter().map(|(address, length)| ((*address).into(), *length)).collect::<Vec<_>>().into_iter()
    };
    let ours = || networks(&[([10, 2, 0, 0], 24)]);
    let any = || networks(&[([0; 4], 0)]);
    // The packets come from 198.51.100.1.
    let (to, other) = (Ipv4Addr::new(10, 2, 0, 7), Ipv4Addr::new(10, 2, 1, 7));
    let not_ours = (XDP_DROP, "xdp_outside_dropped_not_ours");
    assert_eq!(run(steer, Side::Outside, &packet(to, 17, 0, &[0; 8])), not_ours);
    in_clear.replace(ours(), networks(&[([198, 51, 100, 0], 31)])).unwrap();
    // No socket is bound to a queue here, so the redirection says no more than where it was to go.
    let (verdict, name) = run(steer, Side::Outside, &packet(to, 17, 0, &[0; 8]));
    assert!(matches!((verdict, name), (XDP_REDIRECT, "xdp_outside_in_clear")), "{verdict} {name}");
    assert_eq!(run(steer, Side::Outside, &packet(other, 17, 0, &[0; 8])), not_ours);
    let beside = networks(&[([198, 51, 100, 2], 31), ([198, 51, 100, 4], 30), ([198, 51, 100, 8], 31)]);
    in_clear.replace(ours(), beside).unwrap();
    assert_eq!(run(steer, Side::Outside, &packet(to, 17, 0, &[0; 8])), not_ours);
    // What is for us is nobody's to let by.
    in_clear.replace(any(), any()).unwrap();
    assert_eq!(run(steer, Side::Outside, &packet(US, 6, 0, &[0; 20])), (XDP_PASS, "xdp_outside_passed"));
    assert_eq!(run(steer, Side::Outside, &packet(other, 17, 0, &[0; 8])).1, "xdp_outside_in_clear");
}

/// RFC 4303 and RFC 3948 over IPv6, behind extension headers too (RFC 8200 section 4.1).
#[test]
fn esp_over_ipv6_goes_the_same_way() {
    let steer = &mut steer();
    let no_socket = (XDP_DROP, "xdp_outside_dropped_no_socket");
    assert_eq!(run(steer, Side::Outside, &packet6(US6, 50, &ESP)), no_socket);
    assert_eq!(run(steer, Side::Outside, &packet6(US6, 17, &udp(4500, &ESP))), no_socket);
    // Hop-by-hop options, destination options of 16 octets, an atomic fragment.
    let chain = [&[60, 0, 1, 4, 0, 0, 0, 0][..], &[44, 1, 1, 12], &[0; 12], &[50, 0, 0, 0, 0, 0, 0, 7], &ESP]
        .concat();
    assert_eq!(run(steer, Side::Outside, &packet6(US6, 0, &chain)), no_socket);
    let eight = [[60, 0, 1, 4, 0, 0, 0, 0].repeat(7), vec![50, 0, 1, 4, 0, 0, 0, 0], ESP.to_vec()].concat();
    assert_eq!(run(steer, Side::Outside, &packet6(US6, 60, &eight)), no_socket);

    let mut states = steer.take_spi_states().unwrap().unwrap();
    states.set(0x1122_3344, 2);
    states.flush().unwrap();
    let (first, background) = (socket(), socket());
    steer.set_socket(Side::Outside, 0, first.as_fd()).unwrap();
    steer.set_background(0, background.as_fd()).unwrap();
    let to_socket = (XDP_REDIRECT, "xdp_outside_to_socket");
    assert_eq!(run(steer, Side::Outside, &packet6(US6, 0, &chain)), to_socket);
    assert_eq!(run(steer, Side::Outside, &packet6(US6, 17, &udp(4500, &ESP))), to_socket);
    let unknown = [&[0x11, 0x22, 0x33, 0x45][..], &[0; 12]].concat();
    assert_eq!(run(steer, Side::Outside, &packet6(US6, 50, &unknown)).1, "xdp_outside_to_background");
}

/// RFC 4861 (neighbour discovery), RFC 4291 section 2.5.6 (link-local), IKE.
#[test]
fn what_is_for_the_host_over_ipv6_passes() {
    let steer = &mut steer();
    let passed = (XDP_PASS, "xdp_outside_passed");
    assert_eq!(run(steer, Side::Outside, &packet6(US6, 17, &udp(500, &[0; 28]))), passed);
    assert_eq!(run(steer, Side::Outside, &packet6(US6, 17, &udp(4500, &[0; 32]))), passed);
    assert_eq!(run(steer, Side::Outside, &packet6(US6, 58, &[128; 8])), passed);
    assert_eq!(run(steer, Side::Outside, &packet6(US6, 58, &[136; 24])), passed);
    let solicited = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 1);
    let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    for to in [solicited, link_local] {
        assert_eq!(run(steer, Side::Outside, &packet6(to, 58, &[135; 24])), passed);
        assert_eq!(run(steer, Side::Inside, &packet6(to, 58, &[135; 24])), (XDP_PASS, "xdp_inside_passed"));
    }
    assert_eq!(run(steer, Side::Inside, &packet6(US6, 58, &[128; 8])), (XDP_PASS, "xdp_inside_passed"));
    let no_socket = (XDP_DROP, "xdp_inside_dropped_no_socket");
    assert_eq!(run(steer, Side::Inside, &packet6(THEM6, 58, &[128; 8])), no_socket);
}

#[test]
fn the_rest_over_ipv6_is_dropped_and_counted() {
    let steer = &mut steer();
    let mut drops = |packet: &[u8], name: &str| {
        assert_eq!(run(steer, Side::Outside, packet), (XDP_DROP, name), "{packet:02x?}");
    };
    drops(&packet6(THEM6, 50, &ESP), "xdp_outside_dropped_not_ours");
    drops(&packet6(THEM6, 58, &[128; 8]), "xdp_outside_dropped_not_ours");
    for (offset, next) in [(1u16, 50), (8, 50), (9, 50)] {
        let fragment = [&[next, 0][..], &offset.to_be_bytes(), &[0, 0, 0, 7], &ESP].concat();
        drops(&packet6(US6, 44, &fragment), "xdp_outside_dropped_no_socket");
    }
    drops(&packet6(US6, 17, &udp(4500, &[0xff])), "xdp_outside_dropped_nat_keepalive");
    drops(&packet6(US6, 50, &ESP[..7]), "xdp_outside_dropped_malformed");
    let nine = [60, 0, 1, 4, 0, 0, 0, 0].repeat(9);
    let late = [60, 0, 1, 4, 0, 0, 0, 0, 0, 0, 1, 4, 0, 0, 0, 0];
    let twice = [44, 0, 0, 0, 0, 0, 0, 7, 50, 0, 0, 0, 0, 0, 0, 7];
    for (next, chain) in
        [(60, &nine[..]), (60, &late[..8]), (60, &late), (44, &twice), (60, &[50, 200, 0, 0, 0, 0, 0, 0])]
    {
        drops(&packet6(US6, next, chain), "xdp_outside_dropped_malformed");
    }
    let mut version = packet6(US6, 50, &ESP);
    version[14] = 0x40;
    drops(&version, "xdp_outside_dropped_malformed");
}

fn socket() -> OwnedFd {
    use rustix::net::{AddressFamily, SocketType};
    rustix::net::socket(AddressFamily::XDP, SocketType::RAW, None).expect("AF_XDP")
}

#[test]
fn unknown_spis_go_to_the_background_and_all_others_to_the_first_socket() {
    let steer = &mut steer();
    let mut states = steer.take_spi_states().unwrap().unwrap();
    for (spi, state) in [(0x1122_3341, 1), (0x1122_3342, 2), (0x1122_3343, 3), (0x1122_3344, 4)] {
        states.set(spi, state);
    }
    states.flush().unwrap();
    let esp = |last: u8| [&[0x11, 0x22, 0x33, last][..], &[0; 12]].concat();
    let (first, background) = (socket(), socket());

    steer.set_background(0, background.as_fd()).unwrap();
    let no_socket = (XDP_DROP, "xdp_outside_dropped_no_socket");
    assert_eq!(run(steer, Side::Outside, &packet(US, 50, 0, &esp(0x44))), no_socket);
    let to_background = (XDP_REDIRECT, "xdp_outside_to_background");
    assert_eq!(run(steer, Side::Outside, &packet(US, 50, 0, &esp(0x45))), to_background);

    steer.set_socket(Side::Outside, 0, first.as_fd()).unwrap();
    for last in 0x41..=0x44 {
        let to_socket = (XDP_REDIRECT, "xdp_outside_to_socket");
        assert_eq!(run(steer, Side::Outside, &packet(US, 50, 0, &esp(last))), to_socket);
        assert_eq!(run(steer, Side::Outside, &packet(US, 17, 0, &udp(4500, &esp(last)))), to_socket);
    }
    assert_eq!(run(steer, Side::Outside, &packet(US, 17, 0, &udp(4500, &esp(0x45)))), to_background);
    // An SPI that is forgotten is unknown.
    states.set(0x1122_3344, 0);
    states.flush().unwrap();
    assert_eq!(run(steer, Side::Outside, &packet(US, 50, 0, &esp(0x44))), to_background);
}

#[test]
fn the_last_state_that_was_noted_counts() {
    let mut states = steer().take_spi_states().unwrap().unwrap();
    for (spi, noted) in
        [(0x1001, [0, 4].as_slice()), (0x1002, &[4, 0]), (0x1003, &[1, 0, 2]), (0x1004, &[3, 0, 0])]
    {
        noted.iter().for_each(|state| states.set(spi, *state));
    }
    states.flush().unwrap();
    assert_eq!([0x1001, 0x1002, 0x1003, 0x1004].map(|spi| states.state(spi)), [4, 0, 2, 0]);
    assert!(states.map.get(&0x1002_u32.to_be(), 0).is_err(), "an unknown SPI takes no memory");
}

#[test]
fn a_hundred_thousand_spis_are_written_a_thousand_at_a_time() {
    let mut steer = Steer::load(&[US.into(), US6.into()], NAT_PORT, MAX_SPIS).unwrap();
    let mut states = steer.take_spi_states().unwrap().unwrap();
    for spi in 0..100_000_u32 {
        states.set(spi.wrapping_mul(0x9e37_79b9), 4);
        if spi % 1000 == 999 {
            states.flush().unwrap();
        }
    }
    assert_eq!(states.map.keys().count(), 100_000);
    assert!((0..100_000_u32).all(|spi| states.state(spi.wrapping_mul(0x9e37_79b9)) == 4));
    states.set(0x9e37_79b9, 0);
    states.flush().unwrap();
    assert_eq!(states.state(0x9e37_79b9), 0);
}

#[test]
fn esp_in_udp_is_told_by_the_port_that_was_chosen() {
    let steer = &mut Steer::load(&[US.into(), US6.into()], 14_500, 1024).unwrap();
    let verdict = |steer: &mut Steer, port| run(steer, Side::Outside, &packet(US, 17, 0, &udp(port, &ESP)));
    assert_eq!(verdict(steer, 14_500), (XDP_DROP, "xdp_outside_dropped_no_socket"));
    assert_eq!(verdict(steer, 4500), (XDP_PASS, "xdp_outside_passed"));
}

/// A fragment: identification, and the offset in octets with the flag for more.
fn fragment(
    to: Ipv4Addr,
    protocol: u8,
    identification: u16,
    (offset, more): (u16, bool),
    payload: &[u8],
) -> Vec<u8> {
    let mut packet = packet(to, protocol, (u16::from(more) << 13) | (offset / 8), payload);
    packet[18..20].copy_from_slice(&identification.to_be_bytes());
    packet
}

const TO_BACKGROUND: (u32, &str) = (XDP_REDIRECT, "xdp_outside_to_background");
const PASSED: (u32, &str) = (XDP_PASS, "xdp_outside_passed");

/// RFC 4303 section 3.4.1: the dataplane puts ESP together; the kernel, IKE (RFC 7296 section 2).
#[test]
fn fragments_go_where_their_first_one_belongs() {
    let steer = &mut steer();
    let background = socket();
    steer.set_background(0, background.as_fd()).unwrap();
    let mut run = |packet: &[u8]| run(steer, Side::Outside, packet);
    let (head, tail) = ((0, true), (16, false));
    // ESP says so in every fragment.
    assert_eq!(run(&fragment(US, 50, 1, tail, &ESP)), TO_BACKGROUND);
    assert_eq!(run(&fragment(US, 50, 1, head, &ESP)), TO_BACKGROUND);
    // UDP in the first one only.
    assert_eq!(run(&fragment(US, 17, 7, tail, &ESP)), PASSED);
    assert_eq!(run(&fragment(US, 17, 7, head, &udp(4500, &ESP))), TO_BACKGROUND);
    assert_eq!(run(&fragment(US, 17, 7, tail, &ESP)), TO_BACKGROUND);
    assert_eq!(run(&fragment(US, 17, 7, (24, true), &[0; 16])), TO_BACKGROUND);
    for ike in [udp(500, &ESP), udp(4500, &[0; 24]), udp(4500, &[])] {
        assert_eq!(run(&fragment(US, 17, 8, head, &ike)), PASSED);
        assert_eq!(run(&fragment(US, 17, 8, tail, &ESP)), PASSED);
        // Another datagram with an identification that was used before.
        assert_eq!(run(&fragment(US, 17, 7, head, &ike)), PASSED);
        assert_eq!(run(&fragment(US, 17, 7, tail, &ESP)), PASSED);
        assert_eq!(run(&fragment(US, 17, 7, head, &udp(4500, &ESP))), TO_BACKGROUND);
    }
    assert_eq!(run(&fragment(THEM, 50, 1, tail, &ESP)), (XDP_DROP, "xdp_outside_dropped_not_ours"));
}

/// RFC 4301 section 8.2: the dataplane hears of the paths of its ESP, the kernel of all others.
#[test]
fn icmp_errors_about_esp_are_told_to_the_dataplane() {
    let steer = &mut steer();
    let background = socket();
    steer.set_background(0, background.as_fd()).unwrap();
    let mut run = |kind: [u8; 2], source: Ipv4Addr, protocol: u8, quoted: &[u8], cut: usize| {
        let mut quote = packet(THEM, protocol, 0, quoted).split_off(14);
        quote[12..16].copy_from_slice(&source.octets());
        let icmp = [&[kind[0], kind[1], 0, 0, 0, 0, 5, 0x14][..], &quote[..quote.len() - cut]].concat();
        run(steer, Side::Outside, &packet(US, 1, 0, &icmp))
    };
    let (too_big, unreachable) = ([3, 4], [3, 1]);
    // From port 4500, as all of them.
    let from_4500 = |payload: &[u8]| udp(1024, payload);
    let mut from_another = udp(4500, &ESP);
    from_another[0] = 0x12;
    assert_eq!(run(too_big, US, 50, &ESP, 8), TO_BACKGROUND);
    assert_eq!(run(too_big, US, 17, &from_4500(&ESP), 0), TO_BACKGROUND);
    assert_eq!(run(too_big, US, 17, &from_4500(&ESP), 12), TO_BACKGROUND);
    // IKE, what shows no SPI, other errors, other hosts' packets, other protocols.
    assert_eq!(run(too_big, US, 17, &from_4500(&[0; 16]), 0), PASSED);
    assert_eq!(run(too_big, US, 17, &from_another, 0), PASSED);
    assert_eq!(run(too_big, US, 17, &from_4500(&ESP), 13), PASSED);
    assert_eq!(run(unreachable, US, 50, &ESP, 0), PASSED);
    assert_eq!(run(too_big, THEM, 50, &ESP, 0), PASSED);
    assert_eq!(run(too_big, US, 6, &ESP, 0), PASSED);
    assert_eq!(run(too_big, US, 50, &ESP, 17), PASSED);
}

/// An IPv6 fragment: identification, and the offset in octets with the flag for more (RFC 8200 section 4.5).
fn fragment6(
    to: Ipv6Addr,
    protocol: u8,
    identification: u32,
    (offset, more): (u16, bool),
    payload: &[u8],
) -> Vec<u8> {
    let field = (offset | u16::from(more)).to_be_bytes();
    packet6(to, 44, &[&[protocol, 0][..], &field, &identification.to_be_bytes(), payload].concat())
}

/// The same over IPv6.
#[test]
fn ipv6_fragments_go_where_their_first_one_belongs() {
    let steer = &mut steer();
    let background = socket();
    steer.set_background(0, background.as_fd()).unwrap();
    let mut run = |packet: &[u8]| run(steer, Side::Outside, packet);
    let (head, tail) = ((0, true), (16, false));
    assert_eq!(run(&fragment6(US6, 50, 1, tail, &ESP)), TO_BACKGROUND);
    assert_eq!(run(&fragment6(US6, 50, 1, head, &ESP)), TO_BACKGROUND);
    assert_eq!(run(&fragment6(US6, 17, 7, tail, &ESP)), PASSED);
    assert_eq!(run(&fragment6(US6, 17, 7, head, &udp(4500, &ESP))), TO_BACKGROUND);
    assert_eq!(run(&fragment6(US6, 17, 7, tail, &ESP)), TO_BACKGROUND);
    assert_eq!(run(&fragment6(US6, 17, 7, (24, true), &[0; 16])), TO_BACKGROUND);
    // Of other datagrams: another identification, in any of its octets, and another source.
    assert_eq!(run(&fragment6(US6, 17, 0x0100_0007, tail, &ESP)), PASSED);
    let mut other = fragment6(US6, 17, 7, tail, &ESP);
    other[37] ^= 1;
    assert_eq!(run(&other), PASSED);
    for ike in [udp(500, &ESP), udp(4500, &[0; 24]), udp(4500, &[])] {
        assert_eq!(run(&fragment6(US6, 17, 8, head, &ike)), PASSED);
        assert_eq!(run(&fragment6(US6, 17, 8, tail, &ESP)), PASSED);
        assert_eq!(run(&fragment6(US6, 17, 7, head, &ike)), PASSED);
        assert_eq!(run(&fragment6(US6, 17, 7, tail, &ESP)), PASSED);
        assert_eq!(run(&fragment6(US6, 17, 7, head, &udp(4500, &ESP))), TO_BACKGROUND);
    }
    assert_eq!(run(&fragment6(THEM6, 50, 1, tail, &ESP)), (XDP_DROP, "xdp_outside_dropped_not_ours"));
    // An atomic fragment is whole (RFC 6946).
    let unknown = fragment6(US6, 17, 7, (0, false), &udp(4500, &ESP));
    assert_eq!(run(&unknown), TO_BACKGROUND);
    let ike = fragment6(US6, 17, 7, (0, false), &udp(4500, &[0; 24]));
    assert_eq!(run(&ike), PASSED);
}

/// RFC 4301 section 8.2 and RFC 8201 section 4: Packet Too Big about ESP of ours, and nothing else of ICMPv6.
#[test]
fn icmpv6_errors_about_esp_are_told_to_the_dataplane() {
    let steer = &mut steer();
    let background = socket();
    steer.set_background(0, background.as_fd()).unwrap();
    let mut run = |kind: u8, source: Ipv6Addr, protocol: u8, quoted: &[u8], cut: usize| {
        let mut quote = packet6(THEM6, protocol, quoted).split_off(14);
        quote[8..24].copy_from_slice(&source.octets());
        let icmp = [&[kind, 0, 0, 0, 0, 0, 5, 0x14][..], &quote[..quote.len() - cut]].concat();
        run(steer, Side::Outside, &packet6(US6, 58, &icmp))
    };
    let (too_big, unreachable) = (2, 1);
    let from_4500 = |payload: &[u8]| udp(1024, payload);
    let mut from_another = udp(4500, &ESP);
    from_another[0] = 0x12;
    assert_eq!(run(too_big, US6, 50, &ESP, 8), TO_BACKGROUND);
    assert_eq!(run(too_big, US6, 17, &from_4500(&ESP), 0), TO_BACKGROUND);
    assert_eq!(run(too_big, US6, 17, &from_4500(&ESP), 12), TO_BACKGROUND);
    assert_eq!(run(too_big, US6, 17, &from_4500(&[0; 16]), 0), PASSED);
    assert_eq!(run(too_big, US6, 17, &from_another, 0), PASSED);
    assert_eq!(run(too_big, US6, 17, &from_4500(&ESP), 13), PASSED);
    assert_eq!(run(unreachable, US6, 50, &ESP, 0), PASSED);
    assert_eq!(run(too_big, THEM6, 50, &ESP, 0), PASSED);
    assert_eq!(run(too_big, US6, 6, &ESP, 0), PASSED);
    assert_eq!(run(too_big, US6, 50, &ESP, 17), PASSED);
}

/// RFC 4301 section 5.2, step 3b, for IPv6: both ends must be a BYPASS policy's own.
#[test]
fn what_a_bypass_policy_names_of_ipv6_goes_to_the_background() {
    let steer = &mut steer();
    let background = socket();
    steer.set_background(0, background.as_fd()).unwrap();
    let mut in_clear = steer.take_in_clear().unwrap().unwrap();
    let network = |text: &str, length: u8| std::iter::once((text.parse().unwrap(), length));
    let address = |text: &str| text.parse::<Ipv6Addr>().unwrap();
    // The packets come from 2001:db8:1::1.
    let (to, other) = (address("2001:db8:2::7"), address("2001:db8:3::7"));
    let not_ours = (XDP_DROP, "xdp_outside_dropped_not_ours");
    assert_eq!(run(steer, Side::Outside, &packet6(to, 58, &[128; 8])), not_ours);
    in_clear.replace(network("2001:db8:2::", 64), network("2001:db8:1::", 127)).unwrap();
    let let_in = (XDP_REDIRECT, "xdp_outside_in_clear");
    assert_eq!(run(steer, Side::Outside, &packet6(to, 58, &[128; 8])), let_in);
    assert_eq!(run(steer, Side::Outside, &packet6(other, 58, &[128; 8])), not_ours);
    in_clear.replace(network("2001:db8:2::", 64), network("2001:db8:1::2", 127)).unwrap();
    assert_eq!(run(steer, Side::Outside, &packet6(to, 58, &[128; 8])), not_ours);
    // What is for us is nobody's to let by, and IPv4's addresses are none of IPv6's.
    in_clear.replace(network("::", 0), network("::", 0)).unwrap();
    assert_eq!(run(steer, Side::Outside, &packet6(US6, 6, &[0; 20])), PASSED);
    assert_eq!(run(steer, Side::Outside, &packet6(other, 58, &[128; 8])), let_in);
}

#[test]
fn local_addresses_are_replaced() {
    let steer = &mut steer();
    let to_them = packet(THEM, 1, 0, &[8; 8]);
    assert_eq!(run(steer, Side::Outside, &to_them).1, "xdp_outside_dropped_not_ours");
    steer.set_local_addresses(&[THEM.into(), THEM6.into()]).unwrap();
    assert_eq!(run(steer, Side::Outside, &to_them).1, "xdp_outside_passed");
    let to_us = packet(US, 1, 0, &[8; 8]);
    assert_eq!(run(steer, Side::Outside, &to_us).1, "xdp_outside_dropped_not_ours");
    assert_eq!(run(steer, Side::Outside, &packet6(THEM6, 58, &[128; 8])).1, "xdp_outside_passed");
    assert_eq!(run(steer, Side::Outside, &packet6(US6, 58, &[128; 8])).1, "xdp_outside_dropped_not_ours");
}

#[test]
fn a_refused_attachment_says_what_helps() {
    let steer = &mut steer();
    let error = steer.attach(Side::Outside, 1, Mode::Native).expect_err("loopback's driver knows no XDP");
    assert!(error.to_string().contains("xdp_mode = \"generic\""), "{error}");
    let error =
        steer.attach(Side::Outside, u32::MAX >> 1, Mode::Native).expect_err("there is no such interface");
    assert!(error.to_string().contains("does the interface exist"), "{error}");
}

/// IEEE 802.1Q: what has the VLAN's tag is judged by what is behind it, whatever its priority; all else is another
/// network's.
#[test]
fn of_a_vlan_frames_with_its_tag_alone_are_looked_at() {
    let steer = &mut steer();
    steer.set_vlan(Side::Outside, 100).unwrap();
    let ours = packet(US, 50, 0, &ESP);
    let ours6 = packet6(US6, 50, &ESP);
    for frame in [&ours, &ours6] {
        for control in [100, 0xe000 | 100, 0x1000 | 100] {
            assert_eq!(
                run(steer, Side::Outside, &tagged(control, frame)),
                (XDP_DROP, "xdp_outside_dropped_no_socket")
            );
        }
        for other in [tagged(101, frame), tagged(0, frame), tagged(0xfff, frame), frame.clone()] {
            assert_eq!(run(steer, Side::Outside, &other), (XDP_PASS, "xdp_outside_passed"));
        }
        let mut service = tagged(100, &tagged(100, frame));
        assert_eq!(run(steer, Side::Outside, &service), (XDP_PASS, "xdp_outside_passed"), "two tags");
        service[12..14].copy_from_slice(&[0x88, 0xa8]);
        assert_eq!(run(steer, Side::Outside, &service), (XDP_PASS, "xdp_outside_passed"), "Q-in-Q");
    }
    for passed in [packet(US, 17, 0, &udp(500, &[0; 28])), packet(US, 6, 0, &[0; 20])] {
        assert_eq!(run(steer, Side::Outside, &tagged(100, &passed)), (XDP_PASS, "xdp_outside_passed"));
    }
    let mut arp = packet(US, 1, 0, &[0; 8]);
    arp[12..14].copy_from_slice(&[8, 6]);
    assert_eq!(run(steer, Side::Outside, &tagged(100, &arp)), (XDP_PASS, "xdp_outside_passed"));
    assert_eq!(
        run(steer, Side::Outside, &tagged(100, &packet(THEM, 50, 0, &ESP))),
        (XDP_DROP, "xdp_outside_dropped_not_ours")
    );
    // Cut short at any octet, and without a tag on the other side.
    let whole = tagged(100, &ours);
    for length in 14..whole.len() - 8 {
        let said = run(steer, Side::Outside, &whole[..length]);
        let has_tag = length >= 18;
        let expected = if has_tag { "xdp_outside_dropped_malformed" } else { "xdp_outside_passed" };
        assert_eq!(said.1, expected, "{length}");
    }
    assert_eq!(run(steer, Side::Inside, &packet(THEM, 6, 0, &[0; 20])).1, "xdp_inside_dropped_no_socket");
    assert_eq!(run(steer, Side::Inside, &whole), (XDP_PASS, "xdp_inside_passed"));
    steer.set_vlan(Side::Inside, 100).unwrap();
    assert_eq!(
        run(steer, Side::Inside, &tagged(100, &packet(THEM, 6, 0, &[0; 20]))).1,
        "xdp_inside_dropped_no_socket"
    );
    assert_eq!(
        run(steer, Side::Inside, &tagged(100, &packet6(THEM6, 6, &[0; 20]))).1,
        "xdp_inside_dropped_no_socket"
    );
    assert_eq!(run(steer, Side::Inside, &packet(THEM, 6, 0, &[0; 20])).1, "xdp_inside_passed");
}
