//! XDP and the engine agree on what a frame is (root is needed).

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};
use spindle_verdicts::{Judge, LENGTHS, Opinions, Side, fixtures};

#[test]
fn every_fixture_is_what_it_is_for_both() {
    let judge = Judge::new().expect("these tests need root");
    let mut wrong = Vec::new();
    for fixture in fixtures::all() {
        let said = judge.ask(fixture.side, &fixture.frame).unwrap();
        let steer = said.steer.split_once("side_").map(|(_, decision)| decision);
        if (steer, said.engine) != (Some(fixture.steer), fixture.engine) || !said.agree() {
            wrong.push((fixture.name, fixture.steer, fixture.engine, said));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Octets changed, taken away and put in; and the checksum made right again, or most would end there.
#[test]
fn near_every_fixture_both_agree() {
    let judge = Judge::new().expect("these tests need root");
    let all = fixtures::all();
    let change = (any::<Index>(), any::<u8>(), 0..8u8);
    let cases = (any::<Index>(), proptest::collection::vec(change, 1..5), any::<bool>());
    let mut runner =
        TestRunner::new(Config { cases: 20_000, failure_persistence: None, ..Config::default() });
    runner
        .run(&cases, |(which, changes, repaired)| {
            let fixture = which.get(&all);
            let mut frame = fixture.frame.clone();
            for (place, octet, kind) in changes {
                let place = place.index(frame.len());
                match kind {
                    0 => frame.truncate(place.max(*LENGTHS.start())),
                    1 => frame.insert(place, octet),
                    2 => frame[place] ^= 1 << (octet % 8),
                    _ => frame[place] = octet,
                }
            }
            let header = frame.get(14).map_or(0, |first| usize::from(first & 15) * 4);
            if repaired && header >= 20 && frame.len() >= 14 + header {
                fixtures::repair(&mut frame, header);
            }
            let said = judge.ask(fixture.side, &frame).unwrap();
            prop_assert!(said.agree(), "{}: {said:?} of {frame:02x?}", fixture.name);
            Ok(())
        })
        .unwrap();
}

#[test]
fn disagreement_is_seen() {
    let side = Side::Outside;
    for (steer, engine) in [
        ("xdp_outside_passed", "former_spi"),
        ("xdp_outside_passed", "unknown_spi"),
        ("xdp_outside_dropped_malformed", "unknown_spi"),
        ("xdp_outside_to_socket", "for_host"),
        ("xdp_outside_dropped_not_ours", "bypassed"),
        ("xdp_outside_passed", "cleartext_from_outside"),
    ] {
        assert!(!Opinions { side, is_group: false, steer, engine }.agree(), "{steer} and {engine}");
    }
}
