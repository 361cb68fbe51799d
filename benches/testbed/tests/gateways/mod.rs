//! What the tests of two whole gateways share.
#![allow(dead_code)] // each test binary uses a part

use serde_json::Value;
use spindle_testbed::{
    Frame, Kind, Options, Settings, Side, StreamLog, Testbed, Wires, now, number, wire_events,
};
use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// For a gateway to become ready.
pub(crate) const READY: Duration = Duration::from_secs(15);

/// Two gateways that have an IKE SA and a Child SA, initiated by `initiator`.
pub(crate) fn connected(options: Options, initiator: Side) -> Testbed {
    let mut testbed = Testbed::two_gateways(options).expect("a testbed");
    testbed.start(READY).expect("both gateways ready");
    testbed.gateway(initiator).initiate().expect("an IKE SA");
    testbed
}

/// Rewrites a side's configuration, before it starts: between its own address and the peer's, as that is seen, in transport
/// mode.
pub(crate) fn use_transport_mode(testbed: &Testbed, side: Side, peer: IpAddr) {
    let addresses = testbed.topology().addresses;
    let own = addresses.outer(side);
    let file = testbed.gateway(side).config();
    let mut text = std::fs::read_to_string(&file).expect("a configuration");
    for (from, to) in [
        (format!("inside = [\"{}\"]", side.inside_interface()), "inside = \"tun\"".to_owned()),
        (format!("local_ts = [\"{}\"]", addresses.protected(side)), format!("local_ts = [\"{own}\"]")),
        (
            format!("remote_ts = [\"{}\"]", addresses.protected(side.other())),
            format!("remote_ts = [\"{peer}\"]\nmode = \"transport\""),
        ),
    ] {
        assert!(text.contains(&from), "{from}: {text}");
        text = text.replace(&from, &to);
    }
    std::fs::write(&file, text).expect("a configuration");
}

/// Settings whose Child SA waits for the operator or the peer, never for traffic.
pub(crate) fn quiet() -> Settings {
    Settings { start_action: "none".to_owned(), ..Settings::default() }
}

/// Waits up to ten seconds.
pub(crate) fn within(testbed: &Testbed, what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !check() {
        assert!(
            Instant::now() < deadline,
            "{what} did not come about within 10 s\nA:\n{}\nB:\n{}",
            testbed.gateway(Side::A).log(),
            testbed.gateway(Side::B).log()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Established IKE SAs and installed Child SAs.
pub(crate) fn sas(testbed: &Testbed, side: Side) -> (usize, usize) {
    let list = testbed.gateway(side).json("list-sas").expect("list-sas");
    let ikes = list.as_array().expect("an array of IKE SAs");
    let established = ikes.iter().filter(|ike| ike["state"] == "established");
    let children = established.clone().map(|ike| {
        let children = ike["children"].as_array().expect("an array of Child SAs");
        children.iter().filter(|child| child["state"] == "installed").count()
    });
    (established.clone().count(), children.sum())
}

/// received + created = delivered + drops + held, once traffic has ended: no packet is unaccounted for.
pub(crate) fn every_packet_is_counted(testbed: &Testbed) {
    let deadline = Instant::now() + Duration::from_secs(5);
    for side in [Side::A, Side::B] {
        let stats = || testbed.gateway(side).stats().expect("stats");
        while stats()["packets"]["holds"] != true {
            assert!(Instant::now() < deadline, "{side:?}'s packets don't add up: {:#}", stats());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Ends the captures and looks for inside addresses and payload on the outer wires.
pub(crate) fn nothing_leaked(testbed: &mut Testbed) -> Wires {
    let wires = testbed.finish().expect("captures");
    let leaks = testbed.leaks(&wires);
    assert!(leaks.is_empty(), "{} leaks, the first: {:?}", leaks.len(), leaks[0]);
    wires
}

/// Did every packet arrive?
pub(crate) fn all_arrived(log: &StreamLog) {
    assert!(!log.sent.is_empty(), "nothing was sent");
    assert_eq!(log.lost(), 0, "of {} packets {} were lost", log.sent.len(), log.lost());
}

/// The hardware address of a gateway's outer interface.
pub(crate) fn hardware_address(testbed: &Testbed, side: Side) -> [u8; 6] {
    testbed.topology().hardware_address(side).expect("an address")
}

/// Child SAs by IKE SA: all SPIs.
pub(crate) fn all_sas(testbed: &Testbed, side: Side) -> BTreeMap<String, Vec<String>> {
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

/// Kills these of B's processes, and nothing else; when.
pub(crate) fn kill(testbed: &Testbed, processes: &[&str]) -> u64 {
    let status = testbed.gateway(Side::B).json("status").expect("status");
    let pids: Vec<_> = processes
        .iter()
        .map(|process| status["pids"][process].as_i64().expect("a PID") as i32)
        .map(|pid| rustix::process::Pid::from_raw(pid).expect("a PID"))
        .collect();
    let killed = now();
    for pid in pids {
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("a kill");
    }
    killed
}

/// Sender's address, SPI and sequence number of each ESP packet without UDP.
pub(crate) fn esp_numbers(frames: &[Frame]) -> Vec<([u8; 4], u32, u32)> {
    let word = |o: &[u8], at: usize| u32::from_be_bytes([o[at], o[at + 1], o[at + 2], o[at + 3]]);
    let esp = |o: &&[u8]| o.len() >= 42 && o[12..14] == [8, 0] && o[14] == 0x45 && o[23] == 50;
    let of = |o: &[u8]| ([o[26], o[27], o[28], o[29]], word(o, 34), word(o, 38));
    frames.iter().map(|frame| &frame.octets[..]).filter(esp).map(of).collect()
}

/// RFC 4303 section 3.3.3 and 3.4.3, whoever has died: no sequence number was used twice, and nothing is taken twice, though
/// all that ever came to B comes again. And nobody was told that an SA is lost.
pub(crate) fn nothing_is_used_twice(testbed: &Testbed, wires: &Wires, least: usize) {
    let numbers = esp_numbers(&wires.b);
    assert!(numbers.len() > least, "only {} ESP packets were captured", numbers.len());
    let mut used = HashSet::new();
    for packet in &numbers {
        assert!(used.insert(packet), "{packet:x?} was sent twice");
    }
    for event in wire_events(&wires.b) {
        let Kind::Ike(message) = &event.kind else { continue };
        for kind in [number::QCD_TOKEN, number::INVALID_SPI, number::INVALID_IKE_SPI] {
            let clear = !message.protected && message.notify(kind).is_some();
            assert!(!clear, "a notification {kind} left in clear, and no SA was lost");
        }
    }
    let counted = || {
        let stats = testbed.gateway(Side::B).stats().expect("stats");
        let count = |name: &str| stats["dataplane"][name].as_u64().expect("a counter");
        (count("decapsulated"), count("replayed") + count("retired_spi") + count("unknown_spi"))
    };
    std::thread::sleep(Duration::from_millis(200));
    let first = counted();
    let mine = testbed.topology().addresses.gateway_outside(Side::B).octets();
    let to_me = |frame: &&Frame| {
        !esp_numbers(std::slice::from_ref(*frame)).is_empty() && frame.octets[30..34] == mine
    };
    let frames: Vec<&[u8]> = wires.b.iter().filter(to_me).map(|frame| &frame.octets[..]).collect();
    // No more at once than queues hold.
    let mut replayed = 0;
    for some in frames.chunks(256) {
        testbed.inject_all(Side::B, some.iter().copied()).expect("a replay");
        replayed += some.len() as u64;
        within(testbed, "all replayed packets", || counted().1 - first.1 >= replayed);
    }
    assert_eq!(counted().0, first.0, "replayed packets were delivered");
}
