//! `spindle capture` between two real gateways: what became of each packet, as tshark reads it, and what it decrypts with the
//! keys that were asked for.

mod gateways;

use gateways::*;
use spindle_testbed::{Options, Settings, Side, Testbed, craft};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const UNKNOWN: u32 = 0x1234_5678;

/// B's captures may have keys, A's may not.
fn pair(proposal: &str) -> Testbed {
    let settings = Settings { esp_proposal: proposal.to_owned(), ..quiet() };
    let b = Settings { more_gateway: "capture_keys = true".to_owned(), ..settings.clone() };
    connected(Options { a: settings, b, ..Options::default() }, Side::A)
}

fn echoes(testbed: &Testbed, count: u32) {
    assert_eq!(testbed.ping(Side::A, count).expect("ping").len(), count as usize);
}

fn counted(testbed: &Testbed, name: &str) -> u64 {
    testbed.gateway(Side::B).stats().expect("stats")["dataplane"][name].as_u64().expect("a counter")
}

/// A frame to B's outer address.
fn to_b(testbed: &Testbed, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let addresses = testbed.topology().addresses;
    let [from, to] = [Side::A, Side::B].map(|side| addresses.gateway_outside(side));
    let packet = craft::ipv4(from, to, protocol, payload);
    craft::ethernet(hardware_address(testbed, Side::B), [2, 0, 0, 0, 0, 1], 0x0800, &packet)
}

/// Waits until `count` captures have begun since the gateway was started.
fn begun(testbed: &Testbed, side: Side, count: usize) {
    within(testbed, "the capture's begin", || {
        testbed.gateway(side).log().matches("a capture begins").count() >= count
    });
}

/// What tshark shows of these fields in frames that match, a line each; with the keys in `keys`, if any.
fn tshark(capture: &Path, keys: Option<&Path>, filter: &str, fields: &[&str]) -> Vec<Vec<String>> {
    let directory = tempfile::tempdir().expect("a directory");
    if let Some(keys) = keys {
        std::fs::copy(keys, directory.path().join("esp_sa")).expect("a copy of the keys");
    }
    let mut command = Command::new("tshark");
    command.env("WIRESHARK_CONFIG_DIR", directory.path());
    command.arg("-r").arg(capture).args([
        "-o",
        "esp.enable_encryption_decode:TRUE",
        "-Y",
        filter,
        "-T",
        "fields",
    ]);
    for field in fields {
        command.args(["-e", field]);
    }
    let output = command.output().expect("tshark; scripts/install-packages test has it");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !errors.contains("Error loading"), "{errors}");
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect()
}

fn lines(capture: &Path, keys: Option<&Path>, filter: &str) -> usize {
    tshark(capture, keys, filter, &["frame.number"]).len()
}

fn files(testbed: &Testbed) -> (PathBuf, PathBuf) {
    let name = |name: &str| testbed.directory().join(name);
    (name("capture.pcapng"), name("esp_sa"))
}

#[test]
fn each_packet_is_captured_with_its_end_and_tshark_decrypts_with_the_keys() {
    let mut testbed = pair("aes256gcm16-esn");
    // Of before the capture.
    echoes(&testbed, 2);
    let (capture, keys) = files(&testbed);
    let line = format!("capture --out {} --keys {}", capture.display(), keys.display());
    let running = testbed.gateway(Side::B).begin(&line).expect("spindle capture");
    begun(&testbed, Side::B, 1);
    echoes(&testbed, 3);
    testbed.gateway(Side::B).spindle("rekey --child ab/net").expect("a rekey");
    echoes(&testbed, 3);

    let wires = testbed.finish().expect("captures");
    let mine = testbed.topology().addresses.gateway_outside(Side::B);
    let came = |octets: &[u8]| octets.get(23) == Some(&50) && octets.get(30..34) == Some(&mine.octets()[..]);
    let last = wires.b.iter().rfind(|frame| came(&frame.octets)).expect("ESP to B");
    let unknown = to_b(&testbed, 50, &craft::esp(UNKNOWN, 7, &[0x55; 60]));
    for frame in [&last.octets, &unknown, &unknown] {
        testbed.inject(Side::B, frame).expect("a frame");
    }
    within(&testbed, "both drops", || {
        counted(&testbed, "replayed") == 1 && counted(&testbed, "unknown_spi") == 2
    });
    assert!(running.interrupt().expect("an end"), "{}", testbed.gateway(Side::B).log());

    let mut reasons: BTreeMap<String, u64> = BTreeMap::new();
    let dropped = "frame.comment contains \"dropped\"";
    for frame in tshark(&capture, None, dropped, &["frame.comment", "frame.interface_description", "esp.spi"])
    {
        *reasons.entry(frame[0].clone()).or_default() += 1;
        assert_eq!(frame[1], "outside");
        if frame[0] == "dropped: unknown_spi" {
            assert_eq!(frame[2], format!("0x{UNKNOWN:08x}"));
        }
    }
    let expected =
        [("dropped: replayed", 1), ("dropped: unknown_spi", 2)].map(|(name, n)| (name.to_owned(), n));
    assert_eq!(reasons, BTreeMap::from(expected));
    // The replayed one is the very frame.
    let replayed =
        tshark(&capture, None, "frame.comment == \"dropped: replayed\"", &["frame.len", "esp.sequence"]);
    assert_eq!(replayed[0][0], last.octets.len().to_string());

    // Echo requests and answers, inside as they are, and outside only with the keys: six of each, of two SAs each way.
    assert_eq!(lines(&capture, None, "icmp && !esp"), 12);
    assert_eq!(lines(&capture, None, "esp && icmp"), 0, "decrypted without keys");
    let echoes = "esp && icmp && !(frame.comment contains \"dropped\")";
    let open =
        tshark(&capture, Some(&keys), echoes, &["esp.spi", "icmp.type", "frame.packet_flags_direction"]);
    let mut kinds: BTreeMap<&[String], u64> = BTreeMap::new();
    open.iter().for_each(|frame| *kinds.entry(&frame[1..]).or_default() += 1);
    assert_eq!(kinds.values().copied().collect::<Vec<_>>(), [6, 6], "{kinds:?}");
    assert_eq!(open.iter().map(|frame| &frame[0]).collect::<std::collections::BTreeSet<_>>().len(), 4);
    // A comment inside names the SA by which a packet came or goes.
    let inside = tshark(&capture, None, "icmp && !esp", &["frame.comment"]);
    assert!(inside.iter().all(|frame| frame[0].starts_with("spi: ")), "{inside:?}");

    secrets_stay_in_their_file(&testbed, &keys);
}

/// In a file for root alone; the log says that they went, and neither log nor events have any of them.
fn secrets_stay_in_their_file(testbed: &Testbed, keys: &Path) {
    assert_eq!(std::fs::metadata(keys).expect("the keys").permissions().mode() & 0o777, 0o600);
    let rows = std::fs::read_to_string(keys).expect("the keys");
    assert_eq!(rows.lines().count(), 4, "two Child SAs");
    let gateway = testbed.gateway(Side::B);
    let said = gateway.log() + &gateway.spindle("events --json").expect("events");
    assert!(said.contains("WARN") && said.contains("capture-keys"));
    for row in rows.lines() {
        let key = row.split(',').nth(5).expect("a key").trim_matches('"').trim_start_matches("0x");
        assert_eq!(key.len(), 2 * 36, "key and salt of AES-256-GCM");
        assert!(!said.contains(&key[..16]), "a key was logged");
    }
}

#[test]
fn a_killed_client_ends_its_capture_and_keys_need_the_operators_consent() {
    let testbed = pair("aes128gcm16");
    let (capture, keys) = files(&testbed);
    let other = capture.with_extension("other");
    let line = |file: &Path, rest: &str| format!("capture --out {} {rest}", file.display());
    let running = testbed.gateway(Side::B).begin(&line(&capture, "")).expect("spindle capture");
    begun(&testbed, Side::B, 1);
    let second = testbed.gateway(Side::B).spindle(&line(&other, "--seconds 1")).expect_err("a second one");
    assert!(second.to_string().contains("a capture runs already"), "{second}");
    std::fs::remove_file(&other).expect("its file");
    echoes(&testbed, 1);
    drop(running); // by SIGKILL
    within(&testbed, "the capture's end", || testbed.gateway(Side::B).log().contains("the capture ends"));

    // By connection, with a limit; and what came before the limit is there.
    let mut next = None;
    within(&testbed, "another capture", || {
        let _ = std::fs::remove_file(&other);
        next =
            Some(testbed.gateway(Side::B).begin(&line(&other, "--connection ab --side outside --count 4")));
        std::thread::sleep(std::time::Duration::from_millis(200));
        testbed.gateway(Side::B).log().matches("a capture begins").count() == 2
    });
    let unknown = to_b(&testbed, 50, &craft::esp(UNKNOWN, 7, &[0x55; 60]));
    testbed.inject(Side::B, &unknown).expect("a frame");
    echoes(&testbed, 3);
    assert!(
        next.expect("begun").expect("begun").wait().expect("an end"),
        "{}",
        testbed.gateway(Side::B).log()
    );
    let spis = tshark(&other, None, "esp", &["esp.spi"]);
    assert_eq!((lines(&other, None, "frame"), spis.len()), (4, 4));
    assert!(!spis.contains(&vec![format!("0x{UNKNOWN:08x}")]));

    // A's configuration doesn't let keys out, and a name is not one of its connections.
    let refused = |rest: &str| {
        let file = capture.with_extension("refused");
        let error = testbed
            .gateway(Side::A)
            .spindle(&line(&file, &format!("--seconds 1 {rest}")))
            .expect_err("a refusal");
        assert!(!file.exists(), "{rest}");
        error.to_string()
    };
    let error = refused(&format!("--keys {}", keys.display()));
    assert!(error.contains("gateway.capture_keys: is not true"), "{error}");
    assert!(!keys.exists());
    assert!(testbed.gateway(Side::A).log().contains("were refused to process"));
    let error = refused("--connection nobody");
    assert!(error.contains("no connection is named nobody"), "{error}");
    every_packet_is_counted(&testbed);
}
