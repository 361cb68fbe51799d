//! A state directory that is not what ran here last: rolled back, or copied to another machine. The anchor beside it
//! tells, no token leaves, one message says what happened and what to do; and the next crash is recovered by a token again.

mod gateways;

use gateways::*;
use spindle_testbed::{IkeMessage, Options, Side, Testbed, Wires, now, wire_events};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The Notify Message Type of RFC 6290 section 4.1.
const QUICK_CRASH_DETECTION: u16 = 16419;

fn path(testbed: &Testbed, file: &str) -> PathBuf {
    testbed.gateway(Side::B).directory().join(file)
}

/// Replaces a directory of files by a copy of another one.
fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    std::fs::create_dir(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
    }
}

fn count(testbed: &Testbed, side: Side, name: &str) -> u64 {
    testbed.gateway(side).stats().expect("stats")["control"][name].as_u64().unwrap_or(0)
}

/// B dies and is started again, `meanwhile` in between.
fn crash(testbed: &mut Testbed, meanwhile: impl FnOnce(&Testbed)) {
    // The journal's group commit.
    std::thread::sleep(Duration::from_millis(300));
    testbed.gateway_mut(Side::B).kill_group().expect("a kill");
    meanwhile(testbed);
    testbed.gateway_mut(Side::B).start().expect("a start");
    testbed.gateway_mut(Side::B).wait_ready(READY).expect("ready again");
}

/// Host A's packets, and a protected request of A's about its IKE SA, get no token; then there are new SAs. Since when.
fn no_token_leaves(testbed: &Testbed, proofs: u64) -> Range<u64> {
    let began = now();
    let stream = testbed.stream(Side::A, Duration::from_millis(10)).expect("a stream");
    within(testbed, "tokens withheld", || {
        count(testbed, Side::B, "token-withheld-anchor") > 0 && count(testbed, Side::A, "hints") > 0
    });
    std::thread::sleep(Duration::from_millis(300));
    stream.stop(Duration::from_millis(100));
    assert_eq!((count(testbed, Side::B, "tokens-sent"), count(testbed, Side::A, "proofs")), (0, proofs));
    let status = testbed.gateway(Side::B).json("status").expect("status");
    assert_eq!(status["tokens"], false, "{status}");
    // INITIAL_CONTACT ends what A still holds.
    testbed.gateway(Side::B).initiate().expect("an IKE SA");
    within(testbed, "one IKE SA and one Child SA", || sas(testbed, Side::A) == (1, 1));
    began..now()
}

/// The lines that tell of the state directory, and what each must say.
fn told(testbed: &Testbed) -> Vec<String> {
    let log = testbed.gateway(Side::B).log();
    log.lines().filter(|line| line.contains("No QCD token leaves")).map(str::to_owned).collect()
}

/// When B sent QCD tokens in clear.
fn tokens_in_clear(wires: &Wires, testbed: &Testbed) -> Vec<u64> {
    let b = testbed.topology().addresses.outer(Side::B);
    let events = wire_events(&wires.b);
    let shows = |message: &IkeMessage| message.notifies.iter().any(|n| n.kind == QUICK_CRASH_DETECTION);
    let of_b = events.iter().filter(|event| event.source == Some(b));
    of_b.filter(|event| event.ike().is_some_and(shows)).map(|event| event.at).collect()
}

/// RFC 6290 section 9.2: the original may hold living SAs whose tokens a copy could make.
#[test]
fn a_state_directory_that_was_rolled_back_or_copied_shows_no_token() {
    let mut testbed = connected(Options::default(), Side::A);
    let (state, snapshot, anchor) =
        (path(&testbed, "state"), path(&testbed, "snapshot"), path(&testbed, "anchor"));
    crash(&mut testbed, |_| copy(&state, &snapshot));
    // As it should be.
    let proven = |testbed: &Testbed, proofs: u64| {
        let stream = testbed.stream(Side::A, Duration::from_millis(10)).expect("a stream");
        within(testbed, "a proof", || count(testbed, Side::A, "proofs") == proofs);
        within(testbed, "one IKE SA and one Child SA", || sas(testbed, Side::A) == (1, 1));
        stream.stop(Duration::from_millis(100));
    };
    proven(&testbed, 1);
    assert_eq!(told(&testbed), [""; 0]);

    crash(&mut testbed, |_| copy(&snapshot, &state));
    let mut silent = vec![no_token_leaves(&testbed, 1)];
    let all = told(&testbed);
    assert_eq!(all.len(), 1, "{all:#?}");
    let says = |line: &str, what: &[&str]| {
        for text in what {
            assert!(line.contains(text), "no {text:?} in {line}");
        }
    };
    says(&all[0], &[&anchor.display().to_string(), "was rolled back", "next start", "new secret"]);

    // Another machine, to which the directory was copied, has no anchor of it.
    crash(&mut testbed, |_| std::fs::remove_file(&anchor).expect("an anchor"));
    silent.push(no_token_leaves(&testbed, 1));
    let all = told(&testbed);
    assert_eq!(all.len(), 2, "{all:#?}");
    says(&all[1], &[&anchor.display().to_string(), "it was copied", "next start", "new secret"]);

    // From here on the directory is this machine's own.
    crash(&mut testbed, |_| ());
    proven(&testbed, 2);
    assert_eq!(told(&testbed).len(), 2);
    let wires = nothing_leaked(&mut testbed);
    let shown = tokens_in_clear(&wires, &testbed);
    assert!(shown.len() >= 2, "those of both proofs: {shown:?}");
    assert!(!shown.iter().any(|at| silent.iter().any(|times| times.contains(at))), "{shown:?} in {silent:?}");
}
