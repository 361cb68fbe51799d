//! `spindle reload` under traffic both ways: other connections come, change and go, policies come before the one that is used, and
//! nothing of it is lost.

mod gateways;

use gateways::*;
use serde_json::Value;
use spindle_testbed::{Link, Options, Settings, Side, Testbed};
use std::time::Duration;

const INTERVAL: Duration = Duration::from_millis(2);

/// Before the policy of `ab`: what no host here sends.
const POLICY: &str = r#"[policies.first]
mode = "drop"
local_ts = ["10.99.0.0/16"]
remote_ts = ["10.98.0.0/16"]
"#;

fn reload(testbed: &Testbed, line: &str) -> Value {
    testbed.gateway(Side::B).json(line).unwrap_or_else(|e| panic!("{line}: {e}"))
}

fn configure(testbed: &Testbed, settings: &Settings) {
    testbed.gateway(Side::B).configure(settings, &testbed.topology().addresses).expect("a configuration");
}

/// SPIs and packets of the connection with traffic.
fn of_ab(testbed: &Testbed) -> (Vec<String>, u64) {
    let list = testbed.gateway(Side::B).json("list-sas").expect("list-sas");
    let ab = list.as_array().expect("IKE SAs").iter().find(|ike| ike["connection"] == "ab").expect("ab");
    let child = &ab["children"][0];
    let spis = [&ab["ike_spi_i"], &ab["ike_spi_r"], &child["spi_i"], &child["spi_o"]];
    (spis.map(|spi| spi.to_string()).to_vec(), child["packets_i"].as_u64().expect("packets"))
}

#[test]
fn a_reload_loses_no_packet_of_what_did_not_change() {
    let usual = || Settings { start_action: "none".into(), ..Settings::default() };
    let settings = Settings { idle_connections: 3, ..usual() };
    let link = Link::with_round_trip(Duration::from_millis(2));
    let options = Options { link, a: settings.clone(), b: settings.clone(), ..Options::default() };
    let mut testbed = connected(options, Side::A);
    within(&testbed, "four IKE SAs", || sas(&testbed, Side::B) == (4, 4));
    assert_eq!(reload(&testbed, "reload --dry-run")["changed"], Value::Array(Vec::new()));
    let streams = [Side::A, Side::B].map(|from| testbed.stream(from, INTERVAL).expect("a stream"));
    std::thread::sleep(Duration::from_millis(200));
    let mut before = of_ab(&testbed);

    let more = Settings { idle_connections: 5, ..usual() };
    let fewer = Settings { idle_connections: 2, more_recovery: POLICY.into(), ..usual() };
    let plain = Settings { idle_connections: 2, ..usual() };
    let other = Settings { more_connection: "rekey_time = \"7h\"\n".into(), ..fewer.clone() };
    for (settings, added, removed, changed) in
        [(&more, 2, 0, 0), (&fewer, 0, 3, 0), (&other, 0, 0, 3), (&plain, 0, 0, 3)]
    {
        configure(&testbed, settings);
        let shown = reload(&testbed, "reload --dry-run");
        assert_eq!(of_ab(&testbed).0, before.0);
        let mut done = reload(&testbed, "load-all");
        let counts = ["added", "removed", "changed"].map(|key| done[key].as_array().expect("an array").len());
        assert_eq!(counts, [added, removed, changed], "{done:#}");
        assert_eq!((&shown["applied"], &done["applied"]), (&Value::Bool(false), &Value::Bool(true)));
        done["applied"] = Value::Bool(false);
        assert_eq!(shown, done, "what was shown is not what was done");
        let again = reload(&testbed, "reload --dry-run");
        for key in ["added", "removed", "changed", "restart", "secrets"] {
            assert_eq!(again[key], Value::Array(Vec::new()), "{again:#}");
        }
        for key in ["added", "removed", "changed", "moved"] {
            assert_eq!(again["policies"][key], Value::Array(Vec::new()), "{again:#}");
        }
        std::thread::sleep(Duration::from_millis(150));
        let now = of_ab(&testbed);
        assert!(now.0 == before.0 && now.1 > before.1, "{before:?} became {now:?}");
        before = now;
    }
    // The two that were there throughout, ab, and nothing of those taken out.
    within(&testbed, "the ends of what was taken out", || sas(&testbed, Side::B) == (3, 3));

    // What would need a restart, or is no configuration, changes nothing.
    configure(&testbed, &Settings { more_gateway: "workers = 2\n".into(), idle_connections: 1, ..usual() });
    let refused = testbed.gateway(Side::B).spindle("reload").expect_err("a restart").to_string();
    assert!(refused.contains("gateway.workers"), "{refused}");
    configure(&testbed, &Settings { more_gateway: "wokers = 2\n".into(), ..usual() });
    let refused =
        testbed.gateway(Side::B).spindle("reload --dry-run").expect_err("no configuration").to_string();
    assert!(refused.contains("did you mean `workers`"), "{refused}");
    // Nor does it when control dies: it goes on with what was loaded.
    let pid = |testbed: &Testbed| {
        testbed.gateway(Side::B).json("status").unwrap_or_default()["pids"]["control"].as_u64()
    };
    let old = pid(&testbed);
    kill(&testbed, &["control"]);
    within(&testbed, "another control", || {
        let status = testbed.gateway(Side::B).json("status").unwrap_or_default();
        status["ready"] == true && pid(&testbed) != old
    });
    assert_eq!(sas(&testbed, Side::B), (3, 3));
    configure(&testbed, &plain);
    assert_eq!(reload(&testbed, "reload --dry-run")["restart"], Value::Array(Vec::new()));

    for stream in streams {
        all_arrived(&stream.stop(Duration::from_millis(300)));
    }
    assert_eq!(of_ab(&testbed).0, before.0);
    every_packet_is_counted(&testbed);
    nothing_leaked(&mut testbed);
}
