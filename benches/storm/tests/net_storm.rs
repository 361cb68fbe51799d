//! Bounded storms in network namespaces: what is sent is what arrives, and every SPI is unique.

use serde_json::Value;
use spindle_testbed::{Addresses, Side, Topology};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

const STORM: &str = env!("CARGO_BIN_EXE_spindle-storm");

/// A sink on gateway B's outer interface that remembers SPIs; ended by a signal.
fn sink(topology: &Topology) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = topology
        .gateway(Side::B)
        .command(STORM)
        .args(["sink", "--json", "--record", "300000", "--seconds", "60"])
        .args(["--interface", &Side::B.outside_interface()])
        .stdout(Stdio::piped())
        .spawn()
        .expect("a sink");
    let mut output = BufReader::new(child.stdout.take().expect("its output"));
    let mut line = String::new();
    output.read_line(&mut line).expect("its first line");
    assert!(line.contains("ready"), "the sink says: {line}");
    (child, output)
}

fn finish((mut child, mut output): (Child, BufReader<std::process::ChildStdout>)) -> Value {
    std::thread::sleep(Duration::from_millis(100));
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("the sink lives");
    let mut text = String::new();
    output.read_to_string(&mut text).expect("its last line");
    child.wait().expect("its end");
    serde_json::from_str(&text).expect("JSON")
}

fn send(topology: &Topology, arguments: &[&str]) -> Value {
    let mac = topology.gateway(Side::B).run("cat /sys/class/net/b-out/address").expect("an address");
    let output = topology
        .delay_box()
        .command(STORM)
        .args(["send", "--json", "--interface", &Side::B.box_interface(), "--destination-mac", mac.trim()])
        .args(["--destination", &topology.addresses.gateway_outside(Side::B).to_string()])
        .args(arguments)
        .output()
        .expect("a storm");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn number(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap_or_else(|| panic!("{name} in {value}"))
}

#[test]
fn a_bounded_storm_arrives_whole_and_every_spi_is_unique() {
    let topology = Topology::create(Addresses::default()).expect("namespaces");
    let sink = sink(&topology);
    let began = Instant::now();
    let sent = send(
        &topology,
        &["--source", "198.18.0.0/15", "--count", "200000", "--pps", "100000", "--seconds", "30"],
    );
    let took = began.elapsed();
    let sunk = finish(sink);
    assert_eq!(number(&sent, "sent"), 200_000);
    assert_eq!(number(&sent, "accepted"), 200_000);
    assert_eq!(number(&sunk, "esp"), 200_000);
    for fault in ["bad_checksums", "reserved", "duplicates", "unrecorded"] {
        assert_eq!(number(&sunk, fault), 0, "{fault}");
    }
    // 200,000 at 100,000 a second; a storm that is held up may catch up by 256 frames, no more.
    assert!(took >= Duration::from_millis(1990), "the rate was not kept: {took:?}");
}

/// `spindle-storm detect` with a real dataplane; what became of the packets.
fn detect(arguments: &[&str]) -> (u64, u64, u64) {
    let output = std::process::Command::new(STORM)
        .args(["detect", "--json"])
        .args(arguments)
        .output()
        .expect("a storm at a dataplane");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let value: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let dropped = value["dropped"].as_object().expect("reasons");
    let dropped = dropped.values().map(|count| count.as_u64().expect("a count")).sum();
    (number(&value, "sent"), number(&value, "detected"), dropped)
}

#[test]
fn every_packet_of_a_bounded_storm_is_detected_or_dropped_for_a_reason() {
    let (sent, detected, dropped) = detect(&["--count", "200000", "--pps", "100000", "--seconds", "30"]);
    assert_eq!(sent, 200_000);
    assert_eq!(sent, detected + dropped);
    assert!(detected > 0, "nothing was detected");
}

#[test]
fn every_packet_of_a_storm_beyond_the_ports_capacity_is_accounted_for_too() {
    let (sent, detected, dropped) = detect(&["--count", "2000000", "--pps", "0", "--seconds", "30"]);
    assert_eq!(sent, detected + dropped);
    assert!(detected > 0, "nothing was detected");
}

/// How many of 200 packets on former SPIs control was told of, in a storm of which the port loses a large part.
fn former_told(arguments: &[&str]) -> u64 {
    let output = std::process::Command::new(STORM)
        .args(["former", "--spis", "200", "--seconds", "3"])
        .args(arguments)
        .output()
        .expect("a storm at a dataplane");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let value: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    eprintln!("{value}");
    let (storm_sent, storm_detected) = (number(&value, "storm_sent"), number(&value, "storm_detected"));
    assert!(storm_detected < storm_sent / 4 * 3, "the port took most of the storm: {value}");
    assert_eq!(number(&value, "sent"), 200);
    number(&value, "told")
}

/// A real crash is found in a storm too, for former SPIs have their own way; and that is what does it.
#[test]
fn former_spis_are_told_in_a_storm_beyond_the_ports_capacity_and_not_where_they_share_its_way() {
    let (own, shared) = (former_told(&[]), former_told(&["--one-socket"]));
    let (lost, lost_without) = (200 - own, 200 - shared);
    assert!(lost <= 20, "{lost} of 200 were not told");
    // What is lost on the way to the port is lost in both.
    assert!(
        lost_without >= 2 * lost.max(10),
        "{lost_without} of 200 were not told where unknown SPIs have no socket of their own, {lost} where they have"
    );
}

#[test]
fn storms_in_udp_and_with_the_same_key_repeat_their_spis() {
    let topology = Topology::create(Addresses::default()).expect("namespaces");
    let sink = sink(&topology);
    let plain = ["--source", "198.51.100.7", "--count", "1000", "--key", "7", "--seconds", "10"];
    let first = send(&topology, &plain);
    let second = send(&topology, &[&plain[..], &["--encapsulated", "--size", "1400"]].concat());
    let sunk = finish(sink);
    assert_eq!((number(&first, "sent"), number(&second, "sent")), (1000, 1000));
    assert_eq!(number(&sunk, "esp"), 2000);
    assert_eq!(number(&sunk, "duplicates"), 1000);
    assert_eq!(number(&sunk, "bad_checksums"), 0);
}

#[test]
fn a_storm_without_a_receiver_is_refused_and_counted() {
    let topology = Topology::create(Addresses::default()).expect("namespaces");
    let sent = send(&topology, &["--source", "198.51.100.7", "--count", "1000", "--seconds", "10"]);
    assert_eq!(number(&sent, "sent"), 1000);
    assert_eq!(number(&sent, "accepted"), 0);
    assert_eq!(number(&sent, "refused_redirect"), 1000);
}
