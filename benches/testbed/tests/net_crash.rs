//! Crashes, and how the peer learns of them by QCD (RFC 6290). Liveness is set so long that it can't be the cause.

mod gateways;

use gateways::*;
use spindle_testbed::{
    Crash, Kind, Link, Options, Recovery, Settings, Side, Stream, Testbed, Verdict, number, wire_events,
};
use std::net::IpAddr;
use std::time::Duration;

const ROUND_TRIP: Duration = Duration::from_millis(20);

fn options(journal: bool) -> Options {
    let settings = Settings { journal, ..Settings::default() };
    Options {
        link: Link::with_round_trip(ROUND_TRIP),
        a: settings.clone(),
        b: settings,
        ..Options::default()
    }
}

/// Kills a gateway's process group, starts it again and waits for the stream to arrive.
fn crash(testbed: &mut Testbed, side: Side, stream: &Stream) -> Crash {
    let killed = testbed.gateway_mut(side).kill_group().expect("a kill");
    std::thread::sleep(Duration::from_millis(200));
    let started = testbed.gateway_mut(side).start().expect("a start");
    let ready = testbed.gateway_mut(side).wait_ready(READY).expect("ready again");
    let delivery = stream.wait_delivery_since(ready, Duration::from_secs(10));
    assert!(
        delivery.is_some(),
        "nothing arrived within 10 s of ready\nA:\n{}\nB:\n{}",
        testbed.gateway(Side::A).log(),
        testbed.gateway(Side::B).log()
    );
    let gateway = IpAddr::V4(testbed.topology().addresses.gateway_outside(side));
    Crash { gateway, killed, started, ready, round_trip: ROUND_TRIP }
}

/// What the survivor reported after the crash.
fn survivor_had_proof(testbed: &Testbed, survivor: Side, crash: &Crash) -> bool {
    let events = testbed.gateway(survivor).events().expect("events");
    spindle_testbed::Gateway::event_since(&events, "proof", crash.killed).is_some()
}

/// Who initiated, who rekeyed the IKE SA before the crash of B, and whether B has a journal.
#[derive(Clone, Copy, Debug)]
struct Case {
    initiator: Side,
    rekeyed_by: Option<Side>,
    journal: bool,
}

fn recovers(case: Case) {
    let mut testbed = connected(options(case.journal), case.initiator);
    if let Some(side) = case.rekeyed_by {
        testbed.gateway(side).spindle("rekey --ike ab").expect("an IKE SA's rekey");
        // The new token's INFORMATIONAL exchange ends, and so does the journal's group commit.
        std::thread::sleep(Duration::from_millis(400));
    }
    let stream = testbed.stream(Side::A, Duration::from_millis(10)).expect("a stream");
    std::thread::sleep(Duration::from_millis(400));
    let crash = crash(&mut testbed, Side::B, &stream);
    assert!(survivor_had_proof(&testbed, Side::A, &crash), "{case:?}: A recovered without proof");
    stream.stop(Duration::from_millis(300));
    within(&testbed, "one IKE SA and one Child SA", || {
        sas(&testbed, Side::A) == (1, 1) && sas(&testbed, Side::B) == (1, 1)
    });
    every_packet_is_counted(&testbed);
    let wires = nothing_leaked(&mut testbed);
    let events = wire_events(&wires.b);
    let recovery = Recovery::new(&events, crash);
    let expected = if case.journal { 3 } else { 4 };
    assert_eq!(recovery.round_trips(), Some(expected), "{case:?}: {:?}", recovery.exchanges());
    let counts = recovery.counts(u64::MAX);
    assert_eq!(counts.ike_sa_init_requests_out, 0, "{case:?}: B has nothing to send, so A must have begun");
}

/// RFC 6290 sections 3, 4.5, 8.2: token maker was the original responder.
#[test]
fn the_crashed_side_was_the_responder() {
    recovers(Case { initiator: Side::A, rekeyed_by: None, journal: true });
    recovers(Case { initiator: Side::A, rekeyed_by: None, journal: false });
}

/// RFC 6290 section 4.2: the original initiator makes tokens as well.
#[test]
fn the_crashed_side_was_the_initiator() {
    recovers(Case { initiator: Side::B, rekeyed_by: None, journal: true });
    recovers(Case { initiator: Side::B, rekeyed_by: None, journal: false });
}

/// RFC 6290 section 4.3: the token of the new IKE SA comes in an INFORMATIONAL after the rekey.
#[test]
fn the_crashed_side_had_rekeyed_the_ike_sa() {
    recovers(Case { initiator: Side::A, rekeyed_by: Some(Side::B), journal: true });
    recovers(Case { initiator: Side::A, rekeyed_by: Some(Side::B), journal: false });
}

/// RFC 6290 section 4.3: the token of the new IKE SA comes in the CREATE_CHILD_SA response.
#[test]
fn the_other_side_had_rekeyed_the_ike_sa() {
    recovers(Case { initiator: Side::A, rekeyed_by: Some(Side::A), journal: true });
    recovers(Case { initiator: Side::B, rekeyed_by: Some(Side::A), journal: false });
}

#[test]
fn a_second_crash_before_the_recovery_ended_is_recovered_too() {
    let mut testbed = connected(options(true), Side::A);
    let stream = testbed.stream(Side::A, Duration::from_millis(10)).expect("a stream");
    std::thread::sleep(Duration::from_millis(400));
    for _ in 0..2 {
        // Each time as soon as it is ready: in the middle of what A begins.
        testbed.gateway_mut(Side::B).kill_group().expect("a kill");
        testbed.gateway_mut(Side::B).start().expect("a start");
        testbed.gateway_mut(Side::B).wait_ready(READY).expect("ready");
        std::thread::sleep(Duration::from_millis(50));
    }
    crash(&mut testbed, Side::B, &stream);
    stream.stop(Duration::from_millis(300));
    within(&testbed, "one Child SA on each side", || {
        sas(&testbed, Side::A) == (1, 1) && sas(&testbed, Side::B) == (1, 1)
    });
    nothing_leaked(&mut testbed);
}

/// The first two tokens are lost, then each arrives twice (RFC 6290 section 4.5: a used one has no effect).
#[test]
fn lost_and_doubled_tokens_do_no_harm() {
    let mut testbed = connected(options(true), Side::A);
    let mut tokens = 0;
    testbed.delay().set_filter(Some(Box::new(move |from, frame| {
        let frame = spindle_testbed::Frame { at: 0, octets: frame.to_vec() };
        let events = wire_events(std::slice::from_ref(&frame));
        let token = events.iter().any(|event| {
            event.ike().is_some_and(|ike| !ike.protected && ike.notify(number::QCD_TOKEN).is_some())
        });
        if !(token && from == Side::B) {
            return Verdict::Pass;
        }
        tokens += 1;
        if tokens <= 2 { Verdict::Drop } else { Verdict::Duplicate }
    })));
    let stream = testbed.stream(Side::A, Duration::from_millis(10)).expect("a stream");
    std::thread::sleep(Duration::from_millis(400));
    let crash = crash(&mut testbed, Side::B, &stream);
    assert!(survivor_had_proof(&testbed, Side::A, &crash));
    assert_eq!(testbed.delay().counters().lost, 2, "tokens lost on purpose");
    let proofs = testbed.gateway(Side::A).events().expect("events");
    assert_eq!(proofs.iter().filter(|event| event.event == "proof").count(), 1);
    stream.stop(Duration::from_millis(300));
    nothing_leaked(&mut testbed);
}

#[test]
fn traffic_in_both_directions_recovers_to_one_ike_sa() {
    let mut testbed = connected(options(true), Side::B);
    let streams =
        [Side::A, Side::B].map(|from| testbed.stream(from, Duration::from_millis(10)).expect("a stream"));
    std::thread::sleep(Duration::from_millis(400));
    let crash = crash(&mut testbed, Side::B, &streams[0]);
    assert!(streams[1].wait_delivery_since(crash.ready, Duration::from_secs(10)).is_some());
    for stream in streams {
        stream.stop(Duration::from_millis(300));
    }
    within(&testbed, "one IKE SA on each side", || {
        sas(&testbed, Side::A).0 == 1 && sas(&testbed, Side::B).0 == 1
    });
    every_packet_is_counted(&testbed);
    nothing_leaked(&mut testbed);
}

/// RFC 6290 section 9.2: no token in clear for an SA that lives, whatever is asked.
#[test]
fn no_token_leaves_for_a_living_sa() {
    use spindle_testbed::craft;
    let mut testbed = connected(options(true), Side::A);
    let first = testbed.gateway(Side::B).json("list-sas").expect("list-sas");
    testbed.gateway(Side::A).spindle("rekey --child ab/net").expect("a rekey");
    let spi = |value: &serde_json::Value| {
        u64::from_str_radix(value.as_str().expect("an SPI").trim_end_matches(['_', 'i', 'r', 'o']), 16)
            .expect("hex")
    };
    let ike = &first[0];
    let (initiator, responder) = (spi(&ike["ike_spi_i"]), spi(&ike["ike_spi_r"]));
    let retired = spi(&ike["children"][0]["spi_i"]) as u32;
    let addresses = testbed.topology().addresses;
    let (a, b) = (addresses.gateway_outside(Side::A), addresses.gateway_outside(Side::B));
    let mac = hardware_address(&testbed, Side::B);
    let sk = craft::payload(0, &[0x5a; 48]);
    let forged = 0x0102_0304_0506_0708;
    for pair in [(initiator, responder), (initiator, forged), (forged, responder), (responder, initiator)] {
        for exchange in [number::IKE_AUTH, number::CREATE_CHILD_SA, number::INFORMATIONAL] {
            for flags in [0x00, 0x08, 0x20, 0x28] {
                let message = craft::ike(pair, 46, exchange, flags, 7, &sk);
                let packet = craft::ipv4(a, b, 17, &craft::udp(500, 500, &message));
                testbed.inject(Side::B, &craft::ethernet(mac, [4; 6], 0x0800, &packet)).expect("inject");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
    // The Child SPI that was just rekeyed away, and one that nobody ever gave out.
    for spi in [retired, 0x0bad_cafe] {
        let packet = craft::ipv4(a, b, 50, &craft::esp(spi, 9, &[0; 40]));
        testbed.inject(Side::B, &craft::ethernet(mac, [4; 6], 0x0800, &packet)).expect("inject");
    }
    std::thread::sleep(Duration::from_secs(6)); // by now the rekeyed SA is retired
    let packet = craft::ipv4(a, b, 50, &craft::esp(retired, 1_000_000, &[0; 40]));
    testbed.inject(Side::B, &craft::ethernet(mac, [4; 6], 0x0800, &packet)).expect("inject");
    // For an IKE SA that does not exist a token is right: the forger's own pair shows that the path works.
    let message = craft::ike((forged, forged), 46, number::INFORMATIONAL, 0x08, 0, &sk);
    let packet = craft::ipv4(a, b, 17, &craft::udp(500, 500, &message));
    testbed.inject(Side::B, &craft::ethernet(mac, [4; 6], 0x0800, &packet)).expect("inject");
    std::thread::sleep(Duration::from_millis(300));

    assert_eq!(testbed.ping(Side::A, 3).expect("ping").len(), 3, "the tunnel lives");
    // RFC 7296 section 1.5: A is told of the made-up SPI under the IKE SA, and has nothing to make again.
    let count =
        |side: Side, name: &str| testbed.gateway(side).stats().expect("stats")["control"][name].clone();
    assert_eq!(count(Side::B, "invalid-spi-sent-protected"), 1);
    assert_eq!(count(Side::A, "invalid-spi-received-protected"), 1);
    assert_eq!((count(Side::A, "child-sas-rebuilt"), sas(&testbed, Side::A)), (0.into(), (1, 1)));
    every_packet_is_counted(&testbed);
    let wires = nothing_leaked(&mut testbed);
    let mut for_nobody = 0;
    for event in wire_events(&wires.b) {
        let Kind::Ike(message) = &event.kind else { continue };
        if message.protected || message.notify(number::QCD_TOKEN).is_none() {
            continue;
        }
        // B's own SPI in either place may be that of an exchange under way; the peer's alone names no SA of B.
        let pair = (message.initiator_spi, message.responder_spi);
        assert!(pair.0 != responder && pair.1 != responder, "a token on the SPI of a living SA: {pair:x?}");
        for_nobody += u32::from(pair == (forged, forged));
    }
    assert_eq!(for_nobody, 1, "answers to the request on SPIs of no SA");
}
