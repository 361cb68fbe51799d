//! Whole gateways: `spindle up` on both sides, both processes and the kernel real.

mod journal;

use spindle_testbed::{Gateway, Options, Settings, Side, Testbed};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);

fn started() -> Testbed {
    let mut testbed = Testbed::two_gateways(Options::default()).unwrap();
    testbed.start(PATIENCE).unwrap_or_else(|e| panic!("{e}\n{}", logs(&testbed)));
    testbed
}

fn logs(testbed: &Testbed) -> String {
    let of = |side| testbed.gateway(side).log();
    format!("A:\n{}\nB:\n{}", of(Side::A), of(Side::B))
}

#[test]
fn a_tunnel_comes_up_by_command_and_comes_back_by_a_token_after_the_whole_group_was_killed() {
    let mut testbed = started();
    testbed.gateway(Side::A).spindle("initiate ab/net").unwrap_or_else(|e| panic!("{e}\n{}", logs(&testbed)));
    let answers = testbed.ping(Side::A, 5).unwrap();
    assert!(answers.len() >= 4, "{answers:?}\n{}", logs(&testbed));
    let sas = testbed.gateway(Side::A).json("list-sas").unwrap();
    assert_eq!(sas[0]["children"][0]["state"], "installed");
    assert!(sas[0]["children"][0]["packets_o"].as_u64() >= Some(4), "{sas}");
    testbed
        .gateway(Side::A)
        .spindle("rekey --child ab/net")
        .unwrap_or_else(|e| panic!("{e}\n{}", logs(&testbed)));
    testbed.gateway(Side::A).spindle("rekey --ike ab").unwrap_or_else(|e| panic!("{e}\n{}", logs(&testbed)));
    // The journal's group commit.
    std::thread::sleep(Duration::from_millis(300));

    let stream = testbed.stream(Side::A, Duration::from_millis(10)).unwrap();
    testbed.gateway_mut(Side::B).kill_group().unwrap();
    let restarted = testbed.gateway_mut(Side::B).start().unwrap();
    testbed.gateway_mut(Side::B).wait_ready(PATIENCE).unwrap_or_else(|e| panic!("{e}\n{}", logs(&testbed)));
    let back = stream.wait_delivery_since(restarted, PATIENCE);
    assert!(back.is_some(), "{}", logs(&testbed));
    let events = testbed.gateway(Side::A).events().unwrap();
    assert!(Gateway::event_since(&events, "proof", restarted).is_some(), "{events:?}");
    let events = testbed.gateway(Side::B).events().unwrap();
    assert!(Gateway::event_since(&events, "token-sent", restarted).is_some(), "{events:?}");
    let status = testbed.gateway(Side::B).json("status").unwrap();
    assert_eq!(status["incarnation"], 2);

    testbed.gateway(Side::A).spindle("terminate ab").unwrap_or_else(|e| panic!("{e}\n{}", logs(&testbed)));
    drop(stream);
    for side in [Side::A, Side::B] {
        let stats = testbed.gateway(side).stats().unwrap();
        assert!(stats["packets"]["received"].as_u64() > Some(0), "{stats}");
    }
    for side in [Side::A, Side::B] {
        testbed.gateway_mut(side).stop().unwrap_or_else(|e| panic!("{e}\n{}", logs(&testbed)));
    }
}

/// RFC 3948 section 2.1: ESP in UDP leaves from and comes to the port that IKE uses, whichever that is.
#[test]
fn esp_in_udp_follows_the_configured_port() {
    let encapsulated = Settings { more_connection: "encap = true".into(), ..Settings::default() };
    let a = Settings { more_gateway: "natt_port = 14500\n".into(), ..encapsulated.clone() };
    let mut testbed = Testbed::two_gateways(Options { a, b: encapsulated, ..Options::default() }).unwrap();
    testbed.start(PATIENCE).unwrap_or_else(|e| panic!("{e}\n{}", logs(&testbed)));
    testbed.gateway(Side::A).initiate().unwrap_or_else(|e| panic!("{e}\n{}", logs(&testbed)));
    assert_eq!(testbed.ping(Side::A, 3).unwrap().len(), 3, "{}", logs(&testbed));
    let wires = testbed.finish().unwrap();
    // UDP ports of what is neither IKE nor a keepalive: no four zero octets follow the UDP header.
    let ports = wires.a.iter().filter_map(|frame| match frame.octets.get(..46) {
        Some(o) if o[12..14] == [8, 0] && o[23] == 17 && o[42..46] != [0; 4] => {
            Some([34, 36].map(|at| u16::from_be_bytes([o[at], o[at + 1]])))
        }
        _ => None,
    });
    let esp: Vec<_> = ports.filter(|ports| !ports.contains(&500)).collect();
    assert!(esp.iter().filter(|ports| **ports == [14_500, 4500]).count() >= 3, "{esp:?}");
    assert!(esp.iter().filter(|ports| **ports == [4500, 14_500]).count() >= 3, "{esp:?}");
}

#[test]
fn either_process_may_die_alone_in_one_incarnation() {
    let mut testbed = started();
    for victim in ["dataplane", "control", "dataplane"] {
        let before = testbed.gateway(Side::B).json("status").unwrap();
        let pid = before["pids"][victim].as_i64().unwrap();
        let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        let patience = std::time::Instant::now() + PATIENCE;
        let after = loop {
            match testbed.gateway(Side::B).json("status") {
                Ok(status) if status["ready"] == true && status["pids"][victim] != before["pids"][victim] => {
                    break status;
                }
                _ => {
                    assert!(std::time::Instant::now() < patience, "it does not come back\n{}", logs(&testbed))
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        assert_eq!(after["incarnation"], 1);
        for process in ["dataplane", "control", "supervisor"] {
            let lives = before["pids"][process] == after["pids"][process];
            assert_eq!(lives, process != victim, "{process} when {victim} dies");
        }
    }

    // A second one with the same run_dir refuses, and leaves the first alone.
    let gateway = testbed.gateway(Side::B);
    let mut command = testbed.topology().gateway(Side::B).command(env!("CARGO_BIN_EXE_spindle"));
    let second = command.args(["up", "--config"]).arg(gateway.config()).output().unwrap();
    assert_eq!(second.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another `spindle up`"));
    assert_eq!(gateway.json("status").unwrap()["ready"], true);
    testbed.gateway_mut(Side::B).stop().unwrap();
    let namespace = testbed.topology().gateway(Side::B);
    assert!(namespace.processes().is_empty(), "processes outlived the supervisor");
    // The guard stays until the operator opens it.
    assert!(namespace.run("nft list tables").unwrap().contains("spindle-b"));
}

#[test]
fn the_children_die_with_the_supervisor() {
    let mut testbed = started();
    let pid = testbed.gateway(Side::B).pid().unwrap();
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let namespace = testbed.topology().gateway(Side::B);
    let gone = |id: &i32| {
        // A zombie waits for the test to reap it, no more.
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    };
    let patience = std::time::Instant::now() + Duration::from_secs(3);
    while !namespace.processes().iter().all(gone) {
        assert!(std::time::Instant::now() < patience, "processes outlived the supervisor");
        std::thread::sleep(Duration::from_millis(10));
    }
    // Started again at once: the locks of the dead are free.
    testbed.gateway_mut(Side::B).kill_group().unwrap();
    testbed.gateway_mut(Side::B).start().unwrap();
    testbed.gateway_mut(Side::B).wait_ready(PATIENCE).unwrap_or_else(|e| panic!("{e}\n{}", logs(&testbed)));
}

#[test]
fn what_the_machine_lacks_is_one_message_with_the_fix_and_exit_code_2() {
    let testbed = Testbed::two_gateways(Options::default()).unwrap();
    let config = testbed.gateway(Side::B).config();
    let text = std::fs::read_to_string(&config).unwrap();
    let up = |text: &str| {
        std::fs::write(&config, text).unwrap();
        let mut command = testbed.topology().gateway(Side::B).command(env!("CARGO_BIN_EXE_spindle"));
        let output = command.args(["up", "--config"]).arg(&config).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    let interface = up(&text.replace("[\"b-in\"]", "[\"eth99\"]"));
    assert!(interface.contains("gateway.inside: this machine has no interface eth99"), "{interface}");
    assert_eq!(interface.lines().count(), 1, "{interface}");
    let address = up(&text.replace("address = \"192.0.2.2\"", "address = \"192.0.2.99\""));
    assert!(address.contains("192.0.2.99 is not an address of this machine"), "{address}");

    // Another daemon on port 500.
    let taken = testbed
        .topology()
        .gateway(Side::B)
        .enter(|| std::net::UdpSocket::bind("192.0.2.2:500").unwrap())
        .unwrap();
    let port = up(&text);
    assert!(port.contains("192.0.2.2:500") && port.contains("another IKE daemon"), "{port}");
    drop(taken);

    // Without privileges.
    std::fs::write(&config, &text).unwrap();
    let output = std::process::Command::new("setpriv")
        .args(["--bounding-set=-all", "--inh-caps=-all", env!("CARGO_BIN_EXE_spindle"), "up", "--config"])
        .arg(&config)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(2) && stderr.contains("CAP_NET_ADMIN") && stderr.contains("as root"),
        "{stderr}"
    );
}

#[test]
fn with_100_000_journal_records_a_whole_gateway_is_ready_and_knows_them_all() {
    let mut testbed = Testbed::two_gateways(Options::default()).unwrap();
    journal::fill(testbed.gateway(Side::B), 100_000);
    let gateway = testbed.gateway_mut(Side::B);
    gateway.start().unwrap();
    gateway.wait_ready(PATIENCE).unwrap_or_else(|e| panic!("{e}\n{}", gateway.log()));
    let status = gateway.json("status").unwrap();
    assert_eq!((&status["incarnation"], &status["former_spis"]), (&2.into(), &100_000.into()));
    let took = status["ready_us"].as_u64().unwrap() - status["started_us"].as_u64().unwrap();
    // For people: shown with --nocapture.
    eprintln!("ready {took} µs after the start, with 100,000 journal records");
}
