//! The testbed with plain kernel forwarding in place of the gateways: its own delay, throughput and honesty.

use spindle_testbed::*;
use std::time::Duration;

fn host(topology: &Topology, side: Side) -> Host<'_> {
    Host { namespace: topology.host(side), address: topology.addresses.host(side).into() }
}

fn topology() -> Topology {
    Topology::create(Addresses::default()).expect("root and network namespaces")
}

fn link(milliseconds: u64) -> Link {
    Link::with_round_trip(Duration::from_millis(milliseconds))
}

#[test]
fn a_stream_crosses_the_delay_box_with_half_the_round_trip_time_and_little_jitter() {
    let topology = topology();
    let delay = DelayBox::start(&topology, link(20)).expect("packet sockets");
    let (a, b) = (host(&topology, Side::A), host(&topology, Side::B));
    assert_eq!(ping(a, b.address, 3, 56).expect("ping runs").len(), 3);
    let stream = Stream::start(a, b, Marker::random(), Duration::from_millis(10), 100).expect("sockets");
    std::thread::sleep(Duration::from_secs(2));
    let log = stream.stop(Duration::from_millis(100));
    assert_eq!(log.lost(), 0);
    assert!(log.sent.len() > 150, "{} packets in 2 s", log.sent.len());
    let mut delays: Vec<u64> =
        log.deliveries.iter().map(|delivery| (delivery.received - delivery.sent) / 1_000).collect();
    delays.sort_unstable();
    let (shortest, middle, longest) = (delays[0], delays[delays.len() / 2], delays[delays.len() - 1]);
    eprintln!("one way in µs: {shortest} to {longest}, median {middle}; {:?}", delay.counters());
    assert!(shortest >= 10_000, "{shortest} µs");
    assert!(middle < 11_000, "{middle} µs");
}

#[test]
fn large_transfers_and_all_udp_sizes_pass_with_the_hosts_offloads_untouched() {
    let topology = topology();
    let delay = DelayBox::start(&topology, link(0)).expect("packet sockets");
    let (a, b) = (host(&topology, Side::A), host(&topology, Side::B));
    let marker = Marker::random();
    for (from, to) in [(a, b), (b, a)] {
        let transfer =
            tcp_transfer(from, to, marker, 100_000_000, Duration::from_secs(20)).expect("TCP connects");
        assert!(transfer.is_intact());
        assert_eq!(transfer.octets, 100_000_000);
        eprintln!("{:.2} Gb/s; {:?}", transfer.bits_per_second() / 1e9, delay.counters());
        let missing =
            udp_sweep(from, to, marker, 1..=1472, Duration::from_micros(100), Duration::from_secs(1));
        assert_eq!(missing.expect("sockets"), [0_usize; 0]);
    }
    assert_eq!(delay.counters().overflowed, 0);
}

#[test]
fn a_filter_picks_single_frames_and_shares_are_seeded() {
    let topology = topology();
    let delay = DelayBox::start(&topology, Link { loss: 0.2, seed: 7, ..link(2) }).expect("packet sockets");
    let (a, b) = (host(&topology, Side::A), host(&topology, Side::B));
    // ARP must not be among what is lost, or the kernel waits a second before it asks again.
    delay.set_link(link(2));
    ping(a, b.address, 1, 56).expect("ping runs");
    delay.set_link(Link { loss: 0.2, seed: 7, ..link(2) });
    let stream = Stream::start(a, b, Marker::random(), Duration::from_millis(1), 100).expect("sockets");
    std::thread::sleep(Duration::from_secs(1));
    let log = stream.stop(Duration::from_millis(100));
    let share = log.lost() as f64 / log.sent.len() as f64;
    assert!((0.1..0.3).contains(&share), "lost {share}");

    delay.set_link(link(2));
    delay.set_filter(Some(Box::new(
        |from, _| if from == Side::A { Verdict::Duplicate } else { Verdict::Pass },
    )));
    let stream = Stream::start(a, b, Marker::random(), Duration::from_millis(5), 100).expect("sockets");
    std::thread::sleep(Duration::from_millis(500));
    let log = stream.stop(Duration::from_millis(100));
    assert_eq!((log.lost(), log.deliveries.len()), (0, 2 * log.sent.len()));
}
