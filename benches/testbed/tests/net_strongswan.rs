//! strongSwan, a peer that no one here wrote: gateway A is charon with userspace ESP, gateway B is Spindle.

use spindle_testbed::strongswan::{Charon, Peer};
use spindle_testbed::{Options, Settings, Side, Testbed};
use std::time::Duration;

const READY: Duration = Duration::from_secs(15);

struct Pair {
    testbed: Testbed,
    charon: Charon,
}

fn pair(settings: Settings, adjust: impl FnOnce(&mut Peer)) -> Pair {
    pair_with(settings, adjust, |text| text)
}

/// `edit` changes Spindle's configuration file.
fn pair_with(
    settings: Settings,
    adjust: impl FnOnce(&mut Peer),
    edit: impl FnOnce(String) -> String,
) -> Pair {
    let mut peer = Peer::of(&Default::default(), Side::A, &settings);
    adjust(&mut peer);
    let mut testbed =
        Testbed::two_gateways(Options { b: settings, ..Options::default() }).expect("a testbed");
    let namespace = testbed.topology().gateway(Side::A).name().to_owned();
    let directory = testbed.directory().join("charon");
    let charon = Charon::start(&namespace, &directory, &peer).expect("charon");
    let spindle = testbed.gateway_mut(Side::B);
    let file = spindle.config();
    let text = std::fs::read_to_string(&file).expect("a configuration");
    std::fs::write(&file, edit(text)).expect("a configuration");
    spindle.start().expect("spindle up");
    spindle.wait_ready(READY).expect("ready");
    Pair { testbed, charon }
}

impl Pair {
    fn traffic_passes(&self) {
        assert_eq!(self.testbed.ping(Side::A, 5).expect("ping from A").len(), 5);
        assert_eq!(self.testbed.ping(Side::B, 5).expect("ping from B").len(), 5);
    }

    fn tcp_passes(&self) {
        for from in [Side::A, Side::B] {
            let transfer =
                self.testbed.tcp_transfer(from, 5_000_000, Duration::from_secs(30)).expect("a transfer");
            assert!(transfer.is_intact(), "TCP from {from:?} arrived changed");
        }
    }

    /// Pairs of SPIs of charon's installed Child SAs.
    fn charon_children(&self) -> usize {
        self.charon.list_sas().expect("list-sas").matches("INSTALLED").count()
    }

    fn within(&self, what: &str, check: impl Fn() -> bool) {
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while !check() {
            assert!(
                std::time::Instant::now() < deadline,
                "{what} did not come about within 10 s; charon:\n{}\nlog:\n{}",
                self.charon.list_sas().unwrap_or_default(),
                self.charon.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// RFC 7296 sections 1.2, 2.17, 2.23; RFC 3948.
#[test]
fn strongswan_initiates_and_packets_pass_and_both_rekeys_pass() {
    let pair = pair(Settings { start_action: "none".to_owned(), ..Settings::default() }, |_| {});
    pair.charon.initiate().expect("charon initiates");
    pair.traffic_passes();
    pair.tcp_passes();

    pair.charon.rekey(false).expect("charon rekeys the Child SA");
    pair.within("one Child SA after its rekey", || pair.charon_children() == 1);
    pair.traffic_passes();
    pair.charon.rekey(true).expect("charon rekeys the IKE SA");
    pair.traffic_passes();

    let spindle = pair.testbed.gateway(Side::B);
    spindle.spindle("rekey --child ab/net").expect("Spindle rekeys the Child SA");
    pair.within("one Child SA after its rekey", || pair.charon_children() == 1);
    pair.traffic_passes();
    spindle.spindle("rekey --ike ab").expect("Spindle rekeys the IKE SA");
    pair.traffic_passes();

    pair.charon.terminate().expect("charon deletes");
    pair.within("no SA after charon's Delete", || {
        let sas = spindle.json("list-sas").expect("list-sas");
        sas.as_array().expect("an array").is_empty()
    });
}

/// RFC 7296 sections 1.2, 1.3.2, 1.3.3.
#[test]
fn spindle_initiates_to_strongswan_and_packets_pass_and_both_rekeys_pass() {
    let settings = Settings {
        start_action: "none".to_owned(),
        proposal: "aes256gcm16-prfsha384-ecp256".to_owned(),
        esp_proposal: "aes256gcm16".to_owned(),
        ..Settings::default()
    };
    let pair = pair(settings, |_| {});
    let spindle = pair.testbed.gateway(Side::B);
    spindle.initiate().expect("Spindle initiates");
    pair.traffic_passes();
    pair.tcp_passes();
    spindle.spindle("rekey --child ab/net").expect("Spindle rekeys the Child SA");
    pair.within("one Child SA after its rekey", || pair.charon_children() == 1);
    spindle.spindle("rekey --ike ab").expect("Spindle rekeys the IKE SA");
    pair.traffic_passes();
    pair.charon.rekey(false).expect("charon rekeys the Child SA");
    pair.within("one Child SA after its rekey", || pair.charon_children() == 1);
    pair.charon.rekey(true).expect("charon rekeys the IKE SA");
    pair.traffic_passes();

    spindle.spindle("terminate ab").expect("Spindle deletes");
    pair.within("no SA after Spindle's Delete", || pair.charon_children() == 0);
}

/// RFC 7296 section 2.4: the peer's liveness checks are answered.
#[test]
fn strongswans_liveness_checks_are_answered() {
    let pair =
        pair(Settings { start_action: "none".to_owned(), ..Settings::default() }, |peer| peer.dpd_delay = 1);
    pair.charon.initiate().expect("charon initiates");
    pair.within("three liveness checks", || pair.charon.log().matches("sending DPD request").count() >= 3);
    assert_eq!(pair.charon.log().matches("retransmit").count(), 0, "a check went unanswered");
    assert_eq!(pair.charon_children(), 1);
}

/// RFC 7296 section 2.9, 3.13.1: traffic selectors with protocol and port, in both roles and at rekeys.
#[test]
fn selectors_with_ports_are_agreed_on_with_strongswan_whoever_begins() {
    let (clients, servers) = ("10.1.0.0/24[tcp]", "10.2.0.0/24[tcp/443]");
    let pair = pair_with(
        Settings { start_action: "none".to_owned(), ..Settings::default() },
        |peer| (peer.local_ts, peer.remote_ts) = (clients.into(), servers.into()),
        |text| text.replace("10.2.0.0/24", servers).replace("10.1.0.0/24", clients),
    );
    let spindle = pair.testbed.gateway(Side::B);
    let agreed = |who: &str| {
        let list = spindle.json("list-sas").expect("list-sas");
        let children = &list[0]["children"];
        assert_eq!(children.as_array().map(Vec::len), Some(1), "{who}: {list:#}");
        assert_eq!(children[0]["local_ts"][0], servers, "{who}");
        assert_eq!(children[0]["remote_ts"][0], clients, "{who}");
        let theirs = pair.charon.list_sas().expect("list-sas");
        assert!(
            theirs.contains("10.2.0.0/24[tcp/443]") || theirs.contains("10.2.0.0/24[tcp/https]"),
            "{who}: {theirs}"
        );
    };
    pair.charon.initiate().expect("charon initiates");
    agreed("charon");
    pair.charon.rekey(false).expect("charon rekeys the Child SA");
    pair.within("one Child SA after its rekey", || pair.charon_children() == 1);
    agreed("charon's rekey");
    pair.charon.terminate().expect("charon deletes");
    pair.within("no SA after charon's Delete", || {
        spindle.json("list-sas").expect("list-sas").as_array().expect("an array").is_empty()
    });
    spindle.initiate().expect("Spindle initiates");
    agreed("Spindle");
    spindle.spindle("rekey --child ab/net").expect("Spindle rekeys the Child SA");
    pair.within("one Child SA after its rekey", || pair.charon_children() == 1);
    agreed("Spindle's rekey");
}
