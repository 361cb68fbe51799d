//! Other programs are put in under traffic both ways: no SA is lost, and packets only while the dataplane is away; programs that
//! cannot go on are refused, or give way to those before.

mod gateways;

use gateways::*;
use serde_json::Value;
use spindle_testbed::{Link, Options, Settings, Side, Testbed, programs};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const INTERVAL: Duration = Duration::from_millis(5);
const NAMES: [&str; 2] = ["spindle-control", "spindle-dataplane"];

/// Copies of the programs, in a folder of their own.
fn copies(folder: &Path) -> PathBuf {
    std::fs::create_dir_all(folder).expect("a folder");
    for name in NAMES {
        std::fs::copy(programs().expect("programs").join(name), folder.join(name)).expect("a copy");
    }
    folder.to_owned()
}

/// A script in a program's place.
fn script(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    drop(std::fs::remove_file(&path));
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("a script");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("a script's mode");
}

fn status(testbed: &Testbed) -> Value {
    testbed.gateway(Side::B).json("status").expect("status")
}

fn refused(testbed: &Testbed, folder: &Path) -> String {
    let line = format!("upgrade --from {}", folder.display());
    testbed.gateway(Side::B).spindle(&line).expect_err("an upgrade by broken programs").to_string()
}

#[test]
fn new_programs_are_put_in_under_traffic_and_broken_ones_are_not() {
    let settings = Settings {
        idle_connections: 5,
        // What is lost in an outage is soon left of the window, so that its replay is void as well.
        more_child: "replay_window = 64".into(),
        ..Settings::default()
    };
    let link = Link::with_round_trip(Duration::from_millis(2));
    let options = Options { link, a: settings.clone(), b: settings, ..Options::default() };
    let mut testbed = connected(options, Side::A);
    within(&testbed, "six IKE SAs", || sas(&testbed, Side::B) == (6, 6));
    let streams = [Side::A, Side::B].map(|from| testbed.stream(from, INTERVAL).expect("a stream"));
    std::thread::sleep(Duration::from_millis(300));
    let before = (status(&testbed), all_sas(&testbed, Side::A), all_sas(&testbed, Side::B));
    let directory = testbed.gateway(Side::B).directory().to_owned();

    // Refused before anything is stopped.
    let broken = copies(&directory.join("broken"));
    script(&broken, NAMES[0], "exit 1");
    let why = refused(&testbed, &broken);
    assert!(why.contains("does not say what it is"), "{why}");
    let other = r#"echo '{"program":"spindle-dataplane","version":"9","layout":"00","kept":""}'"#;
    copies(&broken);
    script(&broken, NAMES[1], other);
    let why = refused(&testbed, &broken);
    assert!(why.contains("in another layout"), "{why}");
    copies(&broken);
    let real = programs().expect("programs");
    let control = real.join(NAMES[0]);
    script(
        &broken,
        NAMES[0],
        &format!("test $1 = --facts && exec {} --facts; echo no such key >&2; exit 2", control.display()),
    );
    let why = refused(&testbed, &broken);
    assert!(why.contains("no such key"), "{why}");
    assert_eq!(status(&testbed)["pids"], before.0["pids"], "something was replaced");

    // It can say all that it is asked, and does not run: the one before is put back.
    let talks = |program: &Path| {
        format!("case $1 in --facts|--check) exec {} \"$@\";; esac; exit 1", program.display())
    };
    copies(&broken);
    script(&broken, NAMES[0], &talks(&control));
    let why = refused(&testbed, &broken);
    assert!(why.contains("is put back"), "{why}");
    copies(&broken);
    script(&broken, NAMES[1], &talks(&real.join(NAMES[1])));
    let why = refused(&testbed, &broken);
    assert!(why.contains("spindle-dataplane") && why.contains("is put back"), "{why}");
    assert_eq!(
        (all_sas(&testbed, Side::A), all_sas(&testbed, Side::B)),
        (before.1.clone(), before.2.clone())
    );

    let new = copies(&directory.join("new"));
    let earlier = status(&testbed);
    let done =
        testbed.gateway(Side::B).json(&format!("upgrade --from {}", new.display())).expect("an upgrade");
    let processes: Vec<&str> = done["processes"]
        .as_array()
        .expect("processes")
        .iter()
        .filter_map(|p| p["process"].as_str())
        .collect();
    assert_eq!(processes, NAMES);
    let after = status(&testbed);
    for process in ["control", "dataplane"] {
        assert_ne!(after["pids"][process], earlier["pids"][process], "{process}");
        let running = std::fs::read_link(format!("/proc/{}/exe", after["pids"][process])).expect("a program");
        assert!(running.starts_with(&new), "{process} runs {}", running.display());
    }
    for process in done["processes"].as_array().expect("processes") {
        assert!(process["away_ms"].as_u64().expect("a time") < 1000, "{done:#}");
    }
    for key in ["incarnation", "started_us"] {
        assert_eq!(before.0[key], after[key], "{key}");
    }
    assert_eq!(before.0["pids"]["supervisor"], after["pids"]["supervisor"]);
    // Files that are replaced beneath it change nothing: what dies is started again as it was.
    NAMES.iter().for_each(|name| script(&new, name, "exit 1"));
    kill(&testbed, &["control"]);
    within(&testbed, "another control", || {
        let now = testbed.gateway(Side::B).json("status").unwrap_or_default();
        now["ready"] == true && now["pids"]["control"] != after["pids"]["control"]
    });
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(
        (all_sas(&testbed, Side::A), all_sas(&testbed, Side::B)),
        (before.1, before.2),
        "SAs have changed"
    );
    for stream in streams {
        let log = stream.stop(Duration::from_millis(300));
        let times: Vec<u64> = log.deliveries.iter().map(|delivery| delivery.received).collect();
        let longest = times.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).max().expect("deliveries");
        // For people: shown with --nocapture.
        eprintln!(
            "longest outage {} ms, {} of {} packets lost",
            longest / 1_000_000,
            log.lost(),
            log.sent.len()
        );
        assert!(longest < 1_000_000_000, "an outage of {longest} ns");
    }
    every_packet_is_counted(&testbed);
    let wires = nothing_leaked(&mut testbed);
    nothing_is_used_twice(&testbed, &wires, 200);
}
