//! The dataplane dies alone, or both processes of a gateway, under traffic both ways: all SAs live on.

mod gateways;

use gateways::*;
use spindle_testbed::{Link, Options, Settings, Side, StreamLog, Testbed, now};
use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_millis(5);
/// How long packets may be lost by one death.
const OUTAGE: Duration = Duration::from_secs(1);

/// The longest time without a delivery from shortly before a kill to the end of its outage.
fn outage(log: &StreamLog, killed: u64) -> Duration {
    let window = killed - 20_000_000..killed + 2 * OUTAGE.as_nanos() as u64;
    let times: Vec<u64> =
        log.deliveries.iter().map(|delivery| delivery.received).filter(|at| window.contains(at)).collect();
    let gaps = times.windows(2).map(|pair| pair[1].saturating_sub(pair[0]));
    Duration::from_nanos(gaps.max().unwrap_or(u64::MAX))
}

#[test]
fn the_dataplane_dies_alone_and_every_sa_lives_on() {
    every_sa_lives_on(&["dataplane"]);
}

/// While the supervisor lives its memory does.
#[test]
fn both_processes_die_and_every_sa_lives_on() {
    every_sa_lives_on(&["control", "dataplane"]);
    every_sa_lives_on(&["dataplane", "control"]);
}

fn every_sa_lives_on(dying: &[&str]) {
    let long = std::env::var_os("SPINDLE_LONG").is_some();
    let (kills, idle) = if long { (200, 9_999) } else { (5 / dying.len(), 50) };
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
        let alive = status();
        let killed = kill(&testbed, dying);
        within(&testbed, "new processes", || {
            let status = testbed.gateway(Side::B).json("status").unwrap_or_default();
            let is_new = |process: &&str| status["pids"][process] != alive["pids"][process];
            status["ready"] == true && dying.iter().all(is_new)
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
    for key in ["incarnation", "started_us", "ready"] {
        assert_eq!(before.0[key], after.0[key], "{key}");
    }
    assert_eq!(after.0["ready"], true);
    for process in ["supervisor", "control", "dataplane"] {
        let is_same = before.0["pids"][process] == after.0["pids"][process];
        assert_ne!(is_same, dying.contains(&process), "{process}");
    }

    let outages = streams.map(|stream| {
        let log = stream.stop(Duration::from_millis(300));
        deaths.iter().map(|killed| outage(&log, *killed)).collect::<Vec<_>>()
    });
    // For people: shown with --nocapture.
    eprintln!("outages {outages:?}");
    assert!(outages.iter().flatten().all(|outage| *outage < OUTAGE), "{outages:?}");
    every_packet_is_counted(&testbed);

    let wires = nothing_leaked(&mut testbed);
    nothing_is_used_twice(&testbed, &wires, 200 * kills);
}
