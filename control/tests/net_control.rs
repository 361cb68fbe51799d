//! The control process in a namespace, with a dataplane played by the test: command line, state on disk, start.

mod journal;

use serde_json::Value;
use spindle_abi::{Event, EventRecord};
use spindle_control::daemon::wall_clock_us;
use spindle_ring::{AttachmentFds, Side as RingSide};
use spindle_testbed::{Options, Side, Testbed};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const CONTROL: &str = env!("CARGO_BIN_EXE_spindle-control");
const SPINDLE: &str = env!("CARGO_BIN_EXE_spindle");

/// `spindle-control` of gateway B. Killed when dropped.
struct Control {
    child: Child,
    played: Option<JoinHandle<u64>>,
    stop: Arc<AtomicBool>,
}

impl Control {
    fn start(testbed: &Testbed, arguments: &[&str]) -> Control {
        let fds = AttachmentFds::create(1).unwrap();
        let mut dataplane = fds.dataplane_side().unwrap().workers.remove(0);
        let mut command = testbed.topology().gateway(Side::B).command(CONTROL);
        command.arg("--config").arg(testbed.gateway(Side::B).config());
        command.args(["--dataplane-pid", "1", "--started-us", &wall_clock_us().to_string()]);
        command.args(arguments).stdout(Stdio::null()).stderr(Stdio::piped());
        fds.give(RingSide::Control, &mut command);
        let child = command.spawn().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        // A dataplane that is ready at once and carries out every command.
        let played = std::thread::spawn(move || {
            let mut commands = 0;
            assert!(dataplane.urgent.push(&EventRecord::encode(&Event::Ready)).unwrap());
            while !stopped.load(Ordering::Relaxed) {
                let Some(record) = dataplane.commands.pop().unwrap() else {
                    std::thread::sleep(Duration::from_micros(50));
                    continue;
                };
                let (sequence, command) = record.decode();
                command.unwrap();
                commands += 1;
                let acknowledged = EventRecord::encode(&Event::Acknowledged { sequence, done: true });
                while !dataplane.urgent.push(&acknowledged).unwrap() {
                    std::thread::yield_now();
                }
            }
            commands
        });
        Control { child, played: Some(played), stop }
    }

    /// Waits until it is ready, and says its status.
    fn ready(testbed: &Testbed, arguments: &[&str]) -> (Control, Value) {
        let control = Control::start(testbed, arguments);
        let patience = Instant::now() + Duration::from_secs(10);
        loop {
            let answer = spindle(testbed, &["status", "--json"]);
            if answer.status.success() {
                let status: Value = serde_json::from_slice(&answer.stdout).unwrap();
                if status["ready"] == true {
                    return (control, status);
                }
            }
            assert!(Instant::now() < patience, "not ready");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Its exit code and what it wrote, when it ends by itself.
    fn ended(mut self) -> (Option<i32>, String) {
        let stderr = self.child.stderr.take().unwrap();
        let text = std::io::read_to_string(stderr).unwrap();
        (self.child.wait().unwrap().code(), text)
    }

    fn terminate(self) -> (Option<i32>, String) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.ended()
    }

    /// As a crash would.
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.stop.store(true, Ordering::Relaxed);
        if let Some(played) = self.played.take() {
            let _ = played.join();
        }
    }
}

fn spindle(testbed: &Testbed, arguments: &[&str]) -> Output {
    let mut command = testbed.topology().gateway(Side::B).command(SPINDLE);
    command.args(arguments).arg("--config").arg(testbed.gateway(Side::B).config()).output().unwrap()
}

fn json(testbed: &Testbed, verb: &str) -> Value {
    let output = spindle(testbed, &[verb, "--json"]);
    assert!(output.status.success(), "{verb}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn testbed() -> Testbed {
    Testbed::two_gateways(Options::default()).unwrap()
}

/// A file of gateway B.
fn file(testbed: &Testbed, path: &str) -> PathBuf {
    testbed.gateway(Side::B).directory().join(path)
}

#[test]
fn the_command_line_shows_a_gateway_and_tells_failure_from_misuse() {
    let testbed = testbed();
    let nobody = spindle(&testbed, &["status"]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("start it with `spindle up`"));

    let (control, status) = Control::ready(&testbed, &[]);
    assert_eq!((&status["name"], &status["incarnation"]), (&"b".into(), &1.into()));
    assert_eq!(status["maker_id"].as_str().unwrap().len(), 32);
    assert!(status["pids"]["control"].as_u64().unwrap() > 1);
    assert!(status["ready_us"].as_u64() > status["started_us"].as_u64());
    assert_eq!(json(&testbed, "list-sas"), Value::Array(vec![]));
    assert!(spindle(&testbed, &["list-sas", "--connection", "ab"]).status.success());
    let unknown = spindle(&testbed, &["list-sas", "--connection", "ba"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("no connection is named ba"));
    let connections = json(&testbed, "list-conns");
    // A tunnel that is configured but down is shown, not missing.
    assert_eq!((&connections[0]["name"], &connections[0]["state"]), (&"ab".into(), &"down".into()));
    assert_eq!(connections[0]["children"][0]["remote_ts"][0], "10.1.0.0/24");
    let stats = json(&testbed, "stats");
    assert_eq!(stats["packets"]["holds"], true);
    assert!(stats["control"]["commands_sent"].as_u64().unwrap() >= 1);
    let events = json(&testbed, "events");
    let names: Vec<_> = events.as_array().unwrap().iter().map(|e| e["event"].as_str().unwrap()).collect();
    assert_eq!((names[0], names.contains(&"ready")), ("start", true));
    for key in ["at_us", "event", "connection", "ike_spi_i", "ike_spi_r", "spi", "detail"] {
        assert!(events[0].get(key).is_some(), "events lack {key}");
    }
    for verb in ["status", "list-sas", "list-conns", "stats", "events"] {
        let table = spindle(&testbed, &[verb]);
        assert!(table.status.success() && !table.stdout.is_empty(), "{verb}");
    }

    let unknown = spindle(&testbed, &["terminate", "nobody", "--timeout", "1"]);
    assert_eq!(unknown.status.code(), Some(1), "{}", String::from_utf8_lossy(&unknown.stdout));
    let misuse = spindle(&testbed, &["initiate"]);
    assert_eq!(misuse.status.code(), Some(2));
    std::fs::write(file(&testbed, "bad.toml"), "[gateway]\nnam = 'x'\n").unwrap();
    let bad = std::process::Command::new(SPINDLE)
        .args(["status", "--config"])
        .arg(file(&testbed, "bad.toml"))
        .output();
    let bad = bad.unwrap();
    assert_eq!(bad.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&bad.stderr).contains("bad.toml:"));

    let (code, log) = control.terminate();
    assert_eq!(code, Some(0), "{log}");
}

#[test]
fn requests_that_are_none_are_answered_and_change_nothing() {
    use std::io::{BufRead, BufReader, Write};
    let testbed = testbed();
    let (_control, _) = Control::ready(&testbed, &[]);
    let socket = std::os::unix::net::UnixStream::connect(file(&testbed, "run/control.sock")).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut reader = BufReader::new(socket.try_clone().unwrap());
    for text in
        ["\n", "{}\n", "{\"command\":\"format-disk\"}\n", "{\"command\":\"initiate\"}\n", "\u{1}\u{2}\n"]
    {
        (&socket).write_all(text.as_bytes()).unwrap();
        let mut answer = String::new();
        reader.read_line(&mut answer).unwrap();
        assert!(answer.contains("\"error\""), "{text:?} was answered by {answer}");
    }
    (&socket).write_all(&vec![b'x'; 100_000]).unwrap_or(());
    let mode = std::fs::metadata(file(&testbed, "run/control.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(json(&testbed, "status")["ready"], true);
}

#[test]
fn an_incarnation_begins_only_with_a_state_that_can_be_trusted() {
    let testbed = testbed();
    let secret = file(&testbed, "state/qcd-secret");
    let (control, first) = Control::ready(&testbed, &[]);
    assert_eq!((&first["incarnation"], &first["tokens"]), (&1.into(), &true.into()));
    control.kill();
    let made = std::fs::read(&secret).unwrap();
    assert_eq!(std::fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600);
    let database = std::fs::metadata(file(&testbed, "state/state.redb")).unwrap();
    assert_eq!(database.permissions().mode() & 0o777, 0o600);

    // RFC 6290 section 5.1: the same secret after a crash, in a new incarnation.
    let (control, second) = Control::ready(&testbed, &[]);
    assert_eq!((&second["incarnation"], &second["maker_id"]), (&2.into(), &first["maker_id"]));
    assert_eq!(std::fs::read(&secret).unwrap(), made);
    control.kill();

    // Refusals, each with its reason and the way out, and exit code 2.
    let refused = |part: &str| {
        let (code, log) = Control::start(&testbed, &[]).ended();
        assert!(code == Some(2) && log.contains(part) && log.contains("qcd-secret"), "{code:?} {log}");
    };
    std::fs::remove_file(&secret).unwrap();
    refused("--new-secret");
    std::fs::write(&secret, &made[..made.len() / 2]).unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    refused("damaged");
    std::fs::write(&secret, &made).unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o644)).unwrap();
    refused("0600");
    std::fs::remove_file(&secret).unwrap();
    std::fs::create_dir(&secret).unwrap();
    refused("regular file");
    std::fs::remove_dir(&secret).unwrap();

    // A new secret when the operator says so.
    let (control, third) = Control::ready(&testbed, &["--new-secret"]);
    assert_eq!(third["tokens"], true);
    assert_ne!(std::fs::read(&secret).unwrap(), made);
    control.kill();

    // The state directory goes back in time: no tokens, another secret, one loud message, and the next start is whole.
    let (before, database) =
        (std::fs::read(&secret).unwrap(), std::fs::read(file(&testbed, "state/state.redb")).unwrap());
    for _ in 0..2 {
        let (control, _) = Control::ready(&testbed, &[]);
        control.kill();
    }
    std::fs::write(file(&testbed, "state/state.redb"), database).unwrap();
    let (control, rolled_back) = Control::ready(&testbed, &[]);
    assert_eq!(rolled_back["tokens"], false);
    assert_ne!(std::fs::read(&secret).unwrap(), before);
    let (_, log) = control.terminate();
    assert!(log.contains("rolled back") && log.contains("ERROR"), "{log}");
    let (_control, next) = Control::ready(&testbed, &[]);
    assert_eq!(next["tokens"], true);
    assert!(next["incarnation"].as_u64() > rolled_back["incarnation"].as_u64());
}

#[test]
fn with_100_000_journal_records_control_is_ready_and_knows_them_all() {
    let testbed = testbed();
    journal::fill(testbed.gateway(Side::B), 100_000);
    let (control, status) = Control::ready(&testbed, &[]);
    let took = status["ready_us"].as_u64().unwrap() - status["started_us"].as_u64().unwrap();
    assert_eq!(status["former_spis"], 100_000);
    drop(control.terminate());
    // For people: shown with --nocapture.
    eprintln!("ready {took} µs after the start, with 100,000 journal records");
}
