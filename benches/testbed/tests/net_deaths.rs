//! The dataplane dies alone, or both processes of a gateway, under traffic both ways: all SAs live on.

mod gateways;

use gateways::*;
use spindle_testbed::{Link, Options, Settings, Side, StreamLog, Testbed, now};
use std::collections::HashSet;
use std::ops::Range;
use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_millis(5);
/// How long packets may be lost by one death of a dataplane. With ten thousand SAs, which a control process that died too
/// reads first, that is a goal of release builds; here there must be an end.
const OUTAGE: Duration = Duration::from_secs(1);
const OUTAGE_OF_MANY: Duration = Duration::from_secs(10);

/// The longest time without a delivery from shortly before a kill to the next one.
fn outage(log: &StreamLog, killed: Range<u64>) -> Duration {
    let window = killed.start - 20_000_000..killed.end;
    let times = log.deliveries.iter().map(|delivery| delivery.received).filter(|at| window.contains(at));
    let mut times: Vec<u64> = times.collect();
    // If nothing came any more, it lasted at least until then.
    times.push(window.end);
    let gaps = times.windows(2).map(|pair| pair[1].saturating_sub(pair[0]));
    Duration::from_nanos(gaps.max().unwrap_or(u64::MAX))
}

/// How many of the packets sent in a time never arrived.
fn lost(log: &StreamLog, sent: Range<u64>) -> usize {
    let arrived: HashSet<u64> = log.deliveries.iter().map(|delivery| delivery.number).collect();
    let numbers = log.sent.iter().zip(0..).filter(|(at, _)| sent.contains(at));
    numbers.filter(|(_, number)| !arrived.contains(number)).count()
}

#[test]
fn the_dataplane_dies_alone_and_every_sa_lives_on() {
    every_sa_lives_on(50, 5, &[&["dataplane"]]);
}

/// While the supervisor lives its memory does.
#[test]
fn both_processes_die_and_every_sa_lives_on() {
    every_sa_lives_on(50, 4, &[&["control", "dataplane"], &["dataplane", "control"]]);
}

/// A concentrator: each process dies so often, alone and with the other one; with `SPINDLE_LONG` ten times as often.
#[test]
fn of_ten_thousand_ike_sas_none_is_lost_whichever_process_dies() {
    let kills = if std::env::var_os("SPINDLE_LONG").is_some() { 300 } else { 30 };
    every_sa_lives_on(9_999, kills, &[&["control"], &["dataplane"], &["control", "dataplane"]]);
}

/// With so many more connections, one of `deaths` after the other, `kills` in all.
fn every_sa_lives_on(idle: u32, kills: usize, deaths: &[&[&str]]) {
    let settings = Settings {
        idle_connections: idle,
        // So that what is lost by a death is soon left of the window, and its replay as void as that of all others.
        more_child: "replay_window = 64".into(),
        more_recovery: "limits.handshakes_total = 1000".into(),
        // What ten thousand ask each other is not what is looked at here.
        dpd_delay: Duration::from_secs(3_600),
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
    let patience = Instant::now() + Duration::from_secs(20 + u64::from(idle) / 20);
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
    let mut died = Vec::new();
    for dying in deaths.iter().cycle().take(kills) {
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
        died.push((*dying, killed));
    }
    let after = (status(), all_sas(&testbed, Side::B), all_sas(&testbed, Side::A));
    assert_eq!((&before.1, &before.2), (&after.1, &after.2), "SAs have changed");
    for key in ["incarnation", "started_us", "ready"] {
        assert_eq!(before.0[key], after.0[key], "{key}");
    }
    assert_eq!(after.0["ready"], true);
    for process in ["supervisor", "control", "dataplane"] {
        let is_same = before.0["pids"][process] == after.0["pids"][process];
        assert_ne!(is_same, deaths.iter().any(|dying| dying.contains(&process)), "{process}");
    }

    let end = now();
    let logs = streams.map(|stream| stream.stop(Duration::from_millis(300)));
    // What is on its way at the next death is that one's.
    let ends = died.iter().skip(1).map(|(_, killed)| killed - 50_000_000).chain([end]);
    for ((dying, killed), end) in died.iter().zip(ends) {
        for log in &logs {
            if dying.contains(&"dataplane") {
                let outage = outage(log, *killed..end);
                // For people: shown with --nocapture.
                eprintln!("{dying:?}: outage {outage:?}");
                let bound = if idle > 100 { OUTAGE_OF_MANY } else { OUTAGE };
                assert!(outage < bound, "{outage:?} after the death of {dying:?}");
            } else {
                assert_eq!(lost(log, *killed..end), 0, "packets lost by the death of {dying:?}");
            }
        }
    }
    every_packet_is_counted(&testbed);

    let wires = nothing_leaked(&mut testbed);
    nothing_is_used_twice(&testbed, &wires, 200 * kills);
}
