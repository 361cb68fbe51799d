//! Each kind of leak in a crafted frame, and what is none.

use super::*;
use crate::craft;
use rand::{RngCore, SeedableRng};
use std::net::Ipv4Addr;

const OUTER_A: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const OUTER_B: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const HOST_A: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
const HOST_B: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 2);
const MARKER: Marker = Marker(*b"marker of a test");

fn six(address: &str) -> Ipv6Addr {
    address.parse().expect("an address")
}

/// The kinds of leak in one frame, each once.
fn places(frame: Vec<u8>) -> Vec<Place> {
    let network = |a, b| InsideNetwork::V4(Network { address: Ipv4Addr::new(a, b, 0, 0), prefix: 24 });
    let inside = [network(10, 1), network(10, 2), InsideNetwork::V6(six("2001:db8:1::"), 64)];
    let mut places: Vec<Place> = leaks(&[Frame { at: 1, octets: frame }], &inside, MARKER)
        .into_iter()
        .map(|leak| leak.place)
        .collect();
    places.dedup();
    places
}

fn over_ipv4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    craft::ethernet([2; 6], [4; 6], 0x0800, &craft::ipv4(OUTER_A, OUTER_B, protocol, payload))
}

fn over_ipv6(protocol: u8, payload: &[u8]) -> Vec<u8> {
    craft::ethernet([2; 6], [4; 6], 0x86dd, &craft::ipv6(six("fe80::1"), six("fe80::2"), protocol, payload))
}

fn inner_packet() -> Vec<u8> {
    craft::ipv4(HOST_A, HOST_B, protocol::UDP, &craft::udp(1, 2, b"hello"))
}

fn inner_packet_6() -> Vec<u8> {
    craft::ipv6(six("2001:db8:1::2"), six("2001:db8:2::2"), protocol::UDP, &craft::udp(1, 2, b"hello"))
}

#[test]
fn an_inside_source_or_destination_is_a_leak() {
    for (source, destination) in [(HOST_A, OUTER_B), (OUTER_A, HOST_B)] {
        let packet = craft::ipv4(source, destination, 6, &[0; 20]);
        assert_eq!(places(craft::ethernet([2; 6], [4; 6], 0x0800, &packet)), [Place::IpHeader]);
    }
    assert_eq!(places(craft::ethernet([2; 6], [4; 6], 0x86dd, &inner_packet_6())), [Place::IpHeader]);
}

#[test]
fn an_inside_address_behind_a_vlan_tag_is_a_leak() {
    let tagged = [&[0, 7, 8, 0][..], &inner_packet()].concat();
    assert_eq!(places(craft::ethernet([2; 6], [4; 6], 0x8100, &tagged)), [Place::IpHeader]);
}

#[test]
fn a_later_fragment_with_an_inside_address_is_a_leak() {
    let mut packet = inner_packet();
    packet[7] = 9;
    assert_eq!(places(craft::ethernet([2; 6], [4; 6], 0x0800, &packet)), [Place::IpHeader]);
}

#[test]
fn an_inside_sender_or_target_in_arp_is_a_leak() {
    for (sender, target) in [(HOST_A, OUTER_B), (OUTER_A, HOST_B)] {
        let packet = craft::arp(1, ([4; 6], sender), ([0; 6], target));
        assert_eq!(places(craft::ethernet([255; 6], [4; 6], 0x0806, &packet)), [Place::Arp]);
    }
}

#[test]
fn an_inside_address_quoted_in_an_icmp_error_is_a_leak() {
    for kind in [3, 4, 11, 12] {
        let message = craft::icmp(kind, 1, 0, &inner_packet()[..28]);
        assert_eq!(places(over_ipv4(protocol::ICMP, &message)), [Place::Quote], "type {kind}");
    }
}

#[test]
fn a_quote_within_a_quote_is_a_leak() {
    let error = craft::icmp(3, 1, 0, &inner_packet());
    let outer = craft::icmp(11, 0, 0, &craft::ipv4(OUTER_B, OUTER_A, protocol::ICMP, &error));
    assert_eq!(places(over_ipv4(protocol::ICMP, &outer)), [Place::Quote]);
}

#[test]
fn an_inside_gateway_in_a_redirect_is_a_leak() {
    let quote = craft::ipv4(OUTER_A, OUTER_B, protocol::UDP, &[0; 8]);
    let message = craft::icmp(5, 1, HOST_B.into(), &quote);
    assert_eq!(places(over_ipv4(protocol::ICMP, &message)), [Place::Redirect]);
}

#[test]
fn an_inside_address_in_a_route_option_is_a_leak() {
    for kind in [7, 131, 137] {
        let options = [&[1, kind, 7, 4][..], &HOST_B.octets()].concat();
        let mut packet = craft::ipv4(OUTER_A, OUTER_B, protocol::UDP, &[&options[..], &[0; 8]].concat());
        packet[0] = 0x47;
        assert_eq!(places(craft::ethernet([2; 6], [4; 6], 0x0800, &packet)), [Place::Route], "option {kind}");
    }
}

#[test]
fn an_inside_address_in_an_ipv6_routing_header_is_a_leak() {
    let header = [&[protocol::UDP, 2, 0, 1, 0, 0, 0, 0][..], &six("2001:db8:1::9").octets()].concat();
    assert_eq!(places(over_ipv6(protocol::ROUTING, &header)), [Place::Route]);
}

#[test]
fn an_inside_address_quoted_in_an_icmpv6_error_is_a_leak() {
    for kind in 1..=4 {
        let message = craft::icmpv6(kind, 0, 0, &inner_packet_6());
        assert_eq!(places(over_ipv6(protocol::ICMPV6, &message)), [Place::Quote], "type {kind}");
    }
    let behind_options =
        [&[protocol::ICMPV6, 0, 1, 4, 0, 0, 0, 0][..], &craft::icmpv6(1, 0, 0, &inner_packet_6())];
    assert_eq!(places(over_ipv6(protocol::HOP_BY_HOP, &behind_options.concat())), [Place::Quote]);
}

#[test]
fn an_inside_target_in_neighbour_discovery_is_a_leak() {
    for kind in [135, 136] {
        let message = craft::icmpv6(kind, 0, 0, &six("2001:db8:1::2").octets());
        assert_eq!(places(over_ipv6(protocol::ICMPV6, &message)), [Place::NeighbourDiscovery], "type {kind}");
    }
    let redirect = [six("2001:db8:1::1").octets(), six("2001:db8:9::1").octets()].concat();
    assert_eq!(places(over_ipv6(protocol::ICMPV6, &craft::icmpv6(137, 0, 0, &redirect))), [Place::Redirect]);
}

#[test]
fn an_inside_prefix_or_quote_in_an_option_of_neighbour_discovery_is_a_leak() {
    let prefix = [&[3, 4, 64, 0][..], &[0; 12], &six("2001:db8:1::").octets()].concat();
    let advertisement = craft::icmpv6(134, 0, 0, &[&[0; 8][..], &prefix].concat());
    assert_eq!(places(over_ipv6(protocol::ICMPV6, &advertisement)), [Place::NeighbourDiscovery]);
    let mut redirected = [&[4, 0][..], &[0; 6], &inner_packet_6()].concat();
    redirected.resize(redirected.len().next_multiple_of(8), 0);
    redirected[1] = (redirected.len() / 8) as u8;
    let redirect = craft::icmpv6(137, 0, 0, &[&[0xfe; 32][..], &redirected].concat());
    assert_eq!(places(over_ipv6(protocol::ICMPV6, &redirect)), [Place::Quote]);
}

#[test]
fn an_inside_group_source_in_a_multicast_report_is_a_leak() {
    let record = [&[1, 0, 0, 1][..], &six("ff02::1").octets(), &six("2001:db8:1::2").octets()].concat();
    let report = craft::icmpv6(143, 0, 1, &record);
    assert_eq!(places(over_ipv6(protocol::ICMPV6, &report)), [Place::NeighbourDiscovery]);
}

#[test]
fn a_packet_in_a_cleartext_tunnel_is_a_leak() {
    assert_eq!(places(over_ipv4(protocol::IPV4, &inner_packet())), [Place::Tunnelled]);
    assert_eq!(places(over_ipv4(protocol::IPV6, &inner_packet_6())), [Place::Tunnelled]);
    let gre = [&[0x20, 0, 8, 0, 0, 0, 0, 1][..], &inner_packet()].concat();
    assert_eq!(places(over_ipv4(protocol::GRE, &gre)), [Place::Tunnelled]);
}

#[test]
fn a_packet_behind_an_esp_header_that_encrypts_nothing_is_a_leak() {
    for vector in [0, 8, 16] {
        let esp = craft::esp(0x1234_5678, 1, &[vec![7; vector], inner_packet()].concat());
        assert_eq!(places(over_ipv4(protocol::ESP, &esp)), [Place::Tunnelled], "vector of {vector}");
        let encapsulated = craft::udp_frame((OUTER_A, 4500), (OUTER_B, 4500), &esp);
        assert_eq!(places(encapsulated), [Place::Tunnelled], "vector of {vector}");
    }
}

#[test]
fn the_marker_is_a_leak_anywhere_in_any_frame() {
    for before in [0, 14, 33, 700] {
        let frame = [vec![0xaa; before], MARKER.0.to_vec(), vec![1; 3]].concat();
        assert_eq!(places(frame), [Place::Marker], "behind {before} octets");
    }
    assert_eq!(places(craft::udp_frame((OUTER_A, 9), (OUTER_B, 9), &MARKER.0)), [Place::Marker]);
}

#[test]
fn what_two_gateways_say_to_each_other_is_no_leak() {
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(3);
    let mut ciphertext = [0; 1400];
    for _ in 0..2_000 {
        random.fill_bytes(&mut ciphertext);
        let esp = craft::esp(0x1234_5678, 1, &ciphertext);
        assert_eq!(places(over_ipv4(protocol::ESP, &esp)), []);
        assert_eq!(places(craft::udp_frame((OUTER_A, 4500), (OUTER_B, 4500), &esp)), []);
    }
    let arp = craft::arp(1, ([4; 6], OUTER_A), ([0; 6], OUTER_B));
    assert_eq!(places(craft::ethernet([255; 6], [4; 6], 0x0806, &arp)), []);
    let quote = craft::icmp(3, 3, 0, &craft::ipv4(OUTER_B, OUTER_A, protocol::ESP, &craft::esp(1, 1, &[])));
    assert_eq!(places(over_ipv4(protocol::ICMP, &quote)), []);
}

#[test]
fn no_frame_however_broken_stops_the_check() {
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(4);
    let whole = [
        over_ipv4(protocol::ICMP, &craft::icmp(3, 1, 0, &inner_packet())),
        over_ipv6(protocol::ICMPV6, &craft::icmpv6(143, 0, 1, &[1, 0, 0, 9])),
        over_ipv6(protocol::ROUTING, &[0; 60]),
        craft::ethernet([2; 6], [4; 6], 0x0806, &craft::arp(1, ([4; 6], OUTER_A), ([0; 6], OUTER_B))),
    ];
    for frame in &whole {
        (0..=frame.len()).for_each(|length| drop(places(frame[..length].to_vec())));
        for _ in 0..5_000 {
            let mut frame = frame.clone();
            for _ in 0..3 {
                let at = random.next_u32() as usize % frame.len();
                frame[at] = random.next_u32() as u8;
            }
            drop(places(frame));
        }
    }
}
