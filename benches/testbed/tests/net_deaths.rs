//! One process of a gateway dies alone, under traffic both ways: the other one and all SAs live on.

mod gateways;

use gateways::*;
use serde_json::Value;
use spindle_testbed::{
    Frame, Kind, Link, Options, Settings, Side, StreamLog, Testbed, now, number, wire_events,
};
use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_millis(5);
/// How long packets may be lost by one death.
const OUTAGE: Duration = Duration::from_secs(1);

/// Child SAs by IKE SA: all SPIs.
fn all_sas(testbed: &Testbed, side: Side) -> BTreeMap<String, Vec<String>> {
    let list = testbed.gateway(side).json("list-sas").expect("list-sas");
    let text = |value: &Value, names: [&str; 2]| {
        names.map(|name| value[name].as_str().expect("an SPI").to_owned()).join(" ")
    };
    let children = |ike: &Value| {
        let children = ike["children"].as_array().expect("Child SAs").iter();
        children.map(|child| text(child, ["spi_i", "spi_o"])).collect()
    };
    let ikes = list.as_array().expect("IKE SAs").iter();
    ikes.map(|ike| (text(ike, ["ike_spi_i", "ike_spi_r"]), children(ike))).collect()
}

/// Kills one of B's processes, and nothing else; when.
fn kill(testbed: &Testbed, process: &str) -> u64 {
    let status = testbed.gateway(Side::B).json("status").expect("status");
    let pid = status["pids"][process].as_i64().expect("a PID") as i32;
    let killed = now();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).expect("a PID"),
        rustix::process::Signal::KILL,
    )
    .expect("a kill");
    killed
}

/// The longest time without a delivery from shortly before a kill to the end of its outage.
fn outage(log: &StreamLog, killed: u64) -> Duration {
    let window = killed - 20_000_000..killed + 2 * OUTAGE.as_nanos() as u64;
    let times: Vec<u64> =
        log.deliveries.iter().map(|delivery| delivery.received).filter(|at| window.contains(at)).collect();
    let gaps = times.windows(2).map(|pair| pair[1].saturating_sub(pair[0]));
    Duration::from_nanos(gaps.max().unwrap_or(u64::MAX))
}

/// Sender's address, SPI and sequence number of each ESP packet without UDP.
fn esp_numbers(frames: &[Frame]) -> Vec<([u8; 4], u32, u32)> {
    let word = |o: &[u8], at: usize| u32::from_be_bytes([o[at], o[at + 1], o[at + 2], o[at + 3]]);
    let esp = |o: &&[u8]| o.len() >= 42 && o[12..14] == [8, 0] && o[14] == 0x45 && o[23] == 50;
    let of = |o: &[u8]| ([o[26], o[27], o[28], o[29]], word(o, 34), word(o, 38));
    frames.iter().map(|frame| &frame.octets[..]).filter(esp).map(of).collect()
}

/// RFC 4303 section 3.3.3 and 3.4.3 across the dataplane's deaths: no sequence number is used twice, no packet taken twice.
#[test]
fn the_dataplane_dies_alone_and_every_sa_lives_on() {
    let long = std::env::var_os("SPINDLE_LONG").is_some();
    let (kills, idle) = if long { (200, 9_999) } else { (5, 50) };
    let settings = Settings {
        idle_connections: idle,
        // So that what is lost by a death is soon left of the window, and its replay as void as that of all others.
        more_child: "replay_window = 64".into(),
        more_recovery: "limits.handshakes_total = 1000".into(),
        ..Settings::default()
    };
    let mut testbed = Testbed::two_gateways(Options {
        link: Link::with_round_trip(Duration::from_millis(2)),
        a: settings.clone(),
        b: settings,
        ..Options::default()
    })
    .expect("a testbed");
    testbed.start(READY).expect("both gateways ready");
    testbed.gateway(Side::A).initiate().expect("an IKE SA");
    let wanted = idle as usize + 1;
    let patience = Instant::now() + Duration::from_secs(if long { 600 } else { 20 });
    loop {
        let [a, b] = [Side::A, Side::B].map(|side| all_sas(&testbed, side));
        if a.len() == wanted && a.len() == b.len() && b.values().all(|children| children.len() == 1) {
            break;
        }
        assert!(Instant::now() < patience, "{} and {} of {wanted} IKE SAs", a.len(), b.len());
        std::thread::sleep(Duration::from_millis(100));
    }
    let streams = [Side::A, Side::B].map(|from| testbed.stream(from, INTERVAL).expect("a stream"));
    std::thread::sleep(Duration::from_millis(300));
    let status = || testbed.gateway(Side::B).json("status").expect("status");
    let before = (status(), all_sas(&testbed, Side::B), all_sas(&testbed, Side::A));
    let mut deaths = Vec::new();
    for _ in 0..kills {
        let killed = kill(&testbed, "dataplane");
        within(&testbed, "a new dataplane", || {
            let events = testbed.gateway(Side::B).events().expect("control lives");
            spindle_testbed::Gateway::event_since(&events, "dataplane-ready", killed).is_some()
        });
        for stream in &streams {
            let delivery = stream.wait_delivery_since(now(), Duration::from_secs(5));
            assert!(delivery.is_some(), "no packet passes the new dataplane");
        }
        std::thread::sleep(INTERVAL * 100);
        deaths.push(killed);
    }
    let after = (status(), all_sas(&testbed, Side::B), all_sas(&testbed, Side::A));
    assert_eq!((&before.1, &before.2), (&after.1, &after.2), "SAs have changed");
    for key in ["incarnation", "started_us", "ready_us", "ready"] {
        assert_eq!(before.0[key], after.0[key], "{key}");
    }
    assert_eq!(after.0["ready"], true);
    let pids = |process: &str| (&before.0["pids"][process], &after.0["pids"][process]);
    assert_eq!(pids("control").0, pids("control").1);
    assert_eq!(pids("supervisor").0, pids("supervisor").1);
    assert_ne!(pids("dataplane").0, pids("dataplane").1);

    let outages = streams.map(|stream| {
        let log = stream.stop(Duration::from_millis(300));
        deaths.iter().map(|killed| outage(&log, *killed)).collect::<Vec<_>>()
    });
    // For people: shown with --nocapture.
    eprintln!("outages {outages:?}");
    assert!(outages.iter().flatten().all(|outage| *outage < OUTAGE), "{outages:?}");
    every_packet_is_counted(&testbed);

    let wires = nothing_leaked(&mut testbed);
    let numbers = esp_numbers(&wires.b);
    assert!(numbers.len() > 200 * kills, "only {} ESP packets were captured", numbers.len());
    let mut used = HashSet::new();
    for packet in &numbers {
        assert!(used.insert(packet), "{packet:x?} was sent twice");
    }
    for event in wire_events(&wires.b) {
        let Kind::Ike(message) = &event.kind else { continue };
        let clear = !message.protected && message.notify(number::QCD_TOKEN).is_some();
        assert!(!clear, "a token left, and no SA was lost");
    }
    // Everything that ever came to B comes again.
    let decapsulated = || {
        let stats = testbed.gateway(Side::B).stats().expect("stats");
        let count = |name: &str| stats["dataplane"][name].as_u64().expect("a counter");
        (count("decapsulated"), count("replayed"))
    };
    std::thread::sleep(Duration::from_millis(200));
    let first = decapsulated();
    let mine = testbed.topology().addresses.gateway_outside(Side::B).octets();
    let mut replayed = 0;
    for frame in wires
        .b
        .iter()
        .filter(|frame| !esp_numbers(std::slice::from_ref(*frame)).is_empty() && frame.octets[30..34] == mine)
    {
        testbed.inject(Side::B, &frame.octets).expect("a replay");
        replayed += 1;
    }
    within(&testbed, "all replayed packets", || decapsulated().1 - first.1 >= replayed);
    assert_eq!(decapsulated().0, first.0, "replayed packets were delivered");
}
