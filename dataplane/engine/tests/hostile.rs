//! Packets that lie: lengths, options, trailers, fragments, sources. Each is a counted drop or passes as the RFCs say, and
//! the SA goes on as if nothing had been.

mod common;

use common::*;
use spindle_abi::{Command, Spi, SpiState, Suite};
use spindle_engine::{Counter, DropReason, Frame, MemoryFrame, PortId};
use spindle_wire::{checksum, icmpv4, ipv4, protocol, udp};
use std::net::Ipv4Addr;

/// With a trailer: no padding, this next header.
fn trailed(payload: &[u8], next_header: u8) -> Vec<u8> {
    [payload, &[0, next_header]].concat()
}

fn plain_esp(esp: &[u8]) -> MemoryFrame {
    frame(&ip(OUTER_A, OUTER_B, protocol::ESP, esp))
}

/// The header changed by `change`, its checksum made right again.
fn with_header(mut packet: Vec<u8>, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    change(&mut packet);
    let header = usize::from(packet[0] & 15) * 4;
    packet[10..12].fill(0);
    let sum = checksum::internet(&packet[..header]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// The same packet with these options, whose length is a multiple of four.
fn with_options(packet: &[u8], options: &[u8]) -> Vec<u8> {
    let whole = [&packet[..20], options, &packet[20..]].concat();
    with_header(whole, |p| {
        p[0] = 0x45 + (options.len() / 4) as u8;
        let length = p.len() as u16;
        p[2..4].copy_from_slice(&length.to_be_bytes());
    })
}

/// The one reason for which B drops this frame from outside; nothing leaves.
fn dropped_by(b: &mut Gateway, frame: MemoryFrame) -> DropReason {
    b.out.dropped.clear();
    b.process(PortId::Outside, [frame]);
    assert!(b.out.sent.is_empty() && b.out.unresolved.is_empty());
    let [reason] = b.out.dropped[..] else { panic!("{:?}", b.out.dropped) };
    reason
}

/// RFC 4303 sections 2.4 to 2.7 and RFC 4301 section 5.2, step 4: authentic, and still not to be believed.
#[test]
fn an_authentic_packet_that_lies_inside_is_dropped_and_the_sa_goes_on() {
    lies_inside(echo(HOST_A, HOST_B, b"within"));
    lies_inside(datagram(HOST_A, HOST_B, b"within"));
    lies_inside(segment(HOST_A, HOST_B, None, b"within"));
}

fn lies_inside(good: Vec<u8>) {
    use DropReason::*;
    let (_, mut b) = pair(Suite::Aes128Gcm, false);
    let inner = |change: fn(&mut [u8])| trailed(&with_header(good.clone(), change), protocol::IPV4);
    let to = |destination: [u8; 4]| {
        trailed(&with_header(good.clone(), |p| p[16..20].copy_from_slice(&destination)), protocol::IPV4)
    };
    let backwards = |address: std::net::Ipv4Addr| {
        let [a, b, c, d] = address.octets();
        [d, c, b, a]
    };
    let mirrored = with_header(good.clone(), |p| {
        p[12..16].copy_from_slice(&backwards(HOST_B));
        p[16..20].copy_from_slice(&backwards(HOST_A));
    });
    let mut wrong_sum = trailed(&good, protocol::IPV4);
    wrong_sum[10] ^= 1;
    let cases: Vec<(Vec<u8>, DropReason)> = vec![
        (trailed(&[], protocol::IPV4), MalformedInner),
        (trailed(&good[..19], protocol::IPV4), MalformedInner),
        (vec![255, protocol::IPV4], MalformedInner),
        ([&good[..], &[7, 7, 7, 3, protocol::IPV4]].concat(), MalformedInner),
        ([&good[..], &[1, 2, 200, protocol::IPV4]].concat(), MalformedInner),
        (trailed(&good, protocol::IPV6), MalformedInner),
        (trailed(&good, protocol::UDP), MalformedInner),
        (trailed(&good, 0), MalformedInner),
        (trailed(&good, protocol::NONE), DummyPacket),
        (trailed(&[0xa5; 700], protocol::NONE), DummyPacket),
        (wrong_sum, MalformedInner),
        (inner(|p| p[0] = 0x65), MalformedInner),
        (inner(|p| p[3] += 1), MalformedInner),
        (inner(|p| p[2..4].copy_from_slice(&19u16.to_be_bytes())), MalformedInner),
        (inner(|p| p[8] = 0), TtlExpired),
        (inner(|p| p[8] = 1), TtlExpired),
        (inner(|p| p[12] = 11), SelectorMismatch),
        (to([10, 2, 0, 1]), ForHost),
        (to([10, 3, 0, 1]), SelectorMismatch),
        (trailed(&mirrored, protocol::IPV4), SelectorMismatch),
        (to([224, 0, 0, 5]), SelectorMismatch),
        (to([192, 0, 2, 2]), SelectorMismatch),
    ];
    for (sequence, (plain, expected)) in (1..).zip(cases) {
        let esp = sealed(sequence, &plain);
        assert_eq!(dropped_by(&mut b, plain_esp(&esp)), expected, "case {sequence}: {plain:02x?}");
        assert_eq!(dropped_by(&mut b, plain_esp(&esp)), Replayed, "case {sequence} again");
    }
    // TFC padding (RFC 4303 section 2.7), and options of the inner packet.
    let padded = [&good[..], &[0xcc; 333]].concat();
    let optioned = with_options(&good, &[7, 7, 4, 0, 0, 0, 0, 0]);
    b.process(
        PortId::Outside,
        [
            plain_esp(&sealed(1000, &trailed(&padded, protocol::IPV4))),
            plain_esp(&sealed(1001, &trailed(&optioned, protocol::IPV4))),
        ],
    );
    let arrived: Vec<_> = b.take_sent(PortId::Inside).iter().map(packet).collect();
    let one_hop = |packet: &[u8]| with_header(packet.to_vec(), |p| p[8] -= 1);
    assert_eq!(arrived, [one_hop(&good), one_hop(&optioned)]);
}

/// RFC 791: what lies behind the total length is no part of the packet; what is missing makes it malformed.
#[test]
fn outer_lengths_and_options_are_taken_at_their_word() {
    use DropReason::*;
    let (_, mut b) = pair(Suite::Aes128Gcm, false);
    let good = echo(HOST_A, HOST_B, b"lengths");
    let esp = sealed(1, &trailed(&good, protocol::IPV4));
    let outer = ip(OUTER_A, OUTER_B, protocol::ESP, &esp);
    let length = |by: i16| {
        with_header(outer.clone(), |p| {
            let length = (p.len() as i16 + by) as u16;
            p[2..4].copy_from_slice(&length.to_be_bytes());
        })
    };
    for (packet, expected) in [
        (length(1000), MalformedIp),
        (length(-1), AuthenticationFailed),
        (length(-(esp.len() as i16)), MalformedEsp),
        (length(-(esp.len() as i16) + 7), MalformedEsp),
        (length(-(esp.len() as i16) + 8), MalformedEsp),
        (length(-(esp.len() as i16) - 1), MalformedIp),
        (with_header(outer.clone(), |p| p[0] = 0x44), MalformedIp),
        (with_header(outer.clone(), |p| p[0] = 0x55), MalformedIp),
        (with_header(outer.clone(), |p| p[6..8].copy_from_slice(&[0x20, 0])), FragmentInvalid),
        (with_header(outer.clone(), |p| p[6..8].copy_from_slice(&[0, 1])), FragmentKept),
    ] {
        assert_eq!(dropped_by(&mut b, frame(&packet)), expected, "{packet:02x?}");
    }
    for (packet, sequence) in [(with_options(&outer, &[1; 40]), 1), (outer.clone(), 2)] {
        let octets = match sequence {
            1 => packet,
            _ => ip(OUTER_A, OUTER_B, protocol::ESP, &sealed(2, &trailed(&good, protocol::IPV4))),
        };
        let mut ethernet = frame(&octets).data().to_vec();
        ethernet.extend([0xee; 30]);
        b.process(PortId::Outside, [MemoryFrame::new(&ethernet)]);
        assert_eq!(b.take_sent(PortId::Inside).len(), 1, "sequence {sequence}");
    }
    for spi in [0u32, 1, 255] {
        let esp = [&spi.to_be_bytes()[..], &[0; 60]].concat();
        assert_eq!(dropped_by(&mut b, plain_esp(&esp)), MalformedEsp);
    }
    assert!(b.out.events.is_empty());
}

/// RFC 3948 section 2: the UDP length bounds the ESP packet; its checksum is not looked at.
#[test]
fn udp_around_esp_may_lie_about_its_length_to_nobodys_harm() {
    use DropReason::*;
    let (_, mut b) = pair(Suite::Aes128Gcm, true);
    let esp = |sequence| sealed(sequence, &trailed(&echo(HOST_A, HOST_B, b"in UDP"), protocol::IPV4));
    let in_udp = |esp: &[u8], length: usize, sum: u16| {
        let mut octets = vec![0; 8];
        octets.extend(esp);
        udp::Repr { source_port: 61_000, destination_port: 4500, payload_length: 0 }.emit(&mut octets);
        octets[4..6].copy_from_slice(&(length as u16).to_be_bytes());
        octets[6..8].copy_from_slice(&sum.to_be_bytes());
        frame(&ip(OUTER_A, OUTER_B, protocol::UDP, &octets))
    };
    let one = esp(1);
    for (length, expected) in [
        (one.len() + 7, AuthenticationFailed),
        (8 + 16, MalformedEsp),
        (8 + 7, MalformedEsp),
        (8, MalformedEsp),
        (7, MalformedEsp),
        (0, MalformedEsp),
        (one.len() + 9, MalformedEsp),
        (65_535, MalformedEsp),
    ] {
        assert_eq!(dropped_by(&mut b, in_udp(&one, length, 0)), expected, "UDP length {length}");
    }
    for (sequence, sum) in [(1, 0xdead), (2, 0), (3, 1)] {
        let esp = esp(sequence);
        let trailing = [&esp[..], &[0xee; 5]].concat();
        b.process(PortId::Outside, [in_udp(&trailing, esp.len() + 8, sum)]);
        assert_eq!(b.take_sent(PortId::Inside).len(), 1, "checksum {sum}");
    }
    assert!(b.out.events.is_empty());
}

/// RFC 1122 section 3.2.1.3: a source that nobody can have is no sender, and nobody is told of its SPI.
#[test]
fn esp_from_an_impossible_source_is_dropped_unheard() {
    let (_, mut b) = pair(Suite::Aes128Gcm, false);
    b.apply(Command::SetSpiState { spi: Spi(0x1003), state: SpiState::Former });
    for source in [[224, 0, 0, 1], [255, 255, 255, 255], [0, 0, 0, 0], [127, 0, 0, 1]] {
        for spi in [0x1002u32, 0x1003, TO_B] {
            let esp = [&spi.to_be_bytes()[..], &[0; 60]].concat();
            let packet = ip(source.into(), OUTER_B, protocol::ESP, &esp);
            assert_eq!(dropped_by(&mut b, frame(&packet)), DropReason::NotUnicast, "{source:?}");
        }
    }
    b.sweep();
    assert_eq!((b.out.events.len(), b.engine.counters().count(Counter::UnknownSpiDetected)), (0, 0));
}

/// A fragment that would end beyond 65,535 octets is no part of a packet (RFC 791 section 3.1): split, its pieces'
/// offsets would begin anew at 0.
#[test]
fn a_fragment_beyond_the_longest_packet_is_not_split() {
    let (mut a, _) = pair(Suite::Aes128Gcm, false);
    let fragment = |offset: u16| {
        let whole = datagram(HOST_A, HOST_B, &content(1472));
        with_header(whole, |p| p[6..8].copy_from_slice(&(0x2000 | offset).to_be_bytes()))
    };
    a.process(PortId::Inside, [frame(&fragment(8191)), frame(&fragment(8100))]);
    assert_eq!((a.dropped(DropReason::TooBig), a.take_sent(PortId::Outside).len()), (2, 0));
    a.process(PortId::Inside, [frame(&fragment(8000))]);
    assert_eq!(a.take_sent(PortId::Outside).len(), 2);
}

/// RFC 791 section 3.1: the options that say so are copied into each fragment, the others stay in the first.
#[test]
fn a_packet_with_options_is_fragmented_too() {
    let (mut a, mut b) = pair(Suite::Aes128Gcm, false);
    // Record route (not copied), then router alert (copied), then the end.
    let options = [7, 7, 4, 0, 0, 0, 0, 148, 4, 0, 0, 0];
    let whole = with_options(&datagram(HOST_A, HOST_B, &content(1452)), &options);
    let whole = with_header(whole, |p| p[6] = 0);
    a.process(PortId::Inside, [frame(&whole)]);
    b.process(PortId::Outside, a.take_sent(PortId::Outside));
    let pieces: Vec<_> = b.take_sent(PortId::Inside).iter().map(packet).collect();
    assert_eq!(pieces.len(), 2);
    let views = [0, 1].map(|n| ipv4::Packet::new_checked(&pieces[n][..]).unwrap());
    assert_eq!((views[0].options(), views[1].options()), (&options[..], &[148, 4, 0, 0][..]));
    assert_eq!((views[0].more_fragments(), views[1].more_fragments()), (true, false));
    assert_eq!(usize::from(views[1].fragment_offset()) * 8, views[0].payload().len());
    assert_eq!([views[0].payload(), views[1].payload()].concat(), whole[32..]);
}

/// RFC 1812 section 4.3.2: the error goes inside, to the sender, and quotes what it sent.
#[test]
fn an_icmp_error_quotes_the_packet_as_it_came_and_stays_inside() {
    let (mut a, _) = pair(Suite::Aes128Gcm, false);
    for ttl in [0, 1] {
        let sent = with_header(with_options(&echo(HOST_A, HOST_B, &content(900)), &[1; 8]), |p| p[8] = ttl);
        a.process(PortId::Inside, [frame(&sent)]);
        let error = packet(&a.take_sent(PortId::Inside)[0]);
        let outer = ipv4::Packet::new_checked(&error[..]).unwrap();
        assert_eq!((outer.destination(), outer.total_length()), (HOST_A, 576));
        let icmp = icmpv4::Packet::new_checked(outer.payload()).unwrap();
        assert_eq!(icmpv4::Repr::parse(&icmp), Ok(icmpv4::Repr::TimeExceeded));
        assert_eq!(icmp.payload(), &sent[..548]);
    }
    // None about a packet from or to nobody (RFC 1122 section 3.2.2).
    let none = [Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, Ipv4Addr::new(224, 0, 0, 9)];
    for address in none {
        let pairs = [(address, HOST_B), (HOST_A, address)];
        let dying = pairs.map(|(from, to)| frame(&with_header(echo(from, to, b"x"), |p| p[8] = 1)));
        a.process(PortId::Inside, dying);
    }
    assert!(a.out.sent.is_empty());
    assert_eq!(a.dropped(DropReason::NotUnicast), 6);
}
