//! What the tests of two whole gateways share.
#![allow(dead_code)] // each test binary uses a part

use spindle_testbed::{Options, Settings, Side, StreamLog, Testbed, Wires};
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
