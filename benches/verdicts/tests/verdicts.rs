//! XDP and the engine agree on what a frame is (root is needed).

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};
use spindle_verdicts::fixtures::{self, Fixture, INSIDE_VLAN, OUTSIDE_VLAN, TPID};
use spindle_verdicts::{Judge, LENGTHS, Opinions, Side};

#[test]
fn every_fixture_is_what_it_is_for_both() {
    let judge = Judge::new().expect("these tests need root");
    are_what_they_are(&judge, fixtures::all());
}

#[test]
fn every_fixture_of_vlans_is_what_it_is_for_both() {
    let judge = Judge::of_vlans().expect("these tests need root");
    are_what_they_are(&judge, fixtures::of_vlans());
}

fn are_what_they_are(judge: &Judge, fixtures: Vec<Fixture>) {
    let mut wrong = Vec::new();
    for fixture in fixtures {
        let said = judge.ask(fixture.side, &fixture.frame).unwrap();
        let steer = said.steer.split_once("side_").map(|(_, decision)| decision);
        if (steer, said.engine) != (Some(fixture.steer), fixture.engine) || !said.agree() {
            wrong.push((fixture.name, fixture.steer, fixture.engine, said));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Octets changed, taken away and put in; and the checksum made right again, or most would end there. Where the sides are
/// VLANs, most have the right tag.
#[test]
fn near_every_fixture_both_agree() {
    let [plain, of_vlans] =
        [Judge::new, Judge::of_vlans].map(|judge| judge().expect("these tests need root"));
    let all = fixtures::all();
    let change = (any::<Index>(), any::<u8>(), 0..8u8);
    let tpid = prop_oneof![8 => Just(TPID), 1 => Just(0x88a8), 1 => any::<u16>()];
    let id = prop_oneof![4 => Just(OUTSIDE_VLAN), 4 => Just(INSIDE_VLAN), 1 => Just(0), 1 => 0..4096_u16];
    let tag = proptest::option::of((tpid, id, 0..16_u16));
    let cases = (any::<Index>(), proptest::collection::vec(change, 1..5), any::<bool>(), tag, any::<bool>());
    let mut runner =
        TestRunner::new(Config { cases: 20_000, failure_persistence: None, ..Config::default() });
    runner
        .run(&cases, |(which, changes, repaired, tag, vlans)| {
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
            if let Some((tpid, id, priority)) = tag {
                frame = fixtures::tagged(tpid, priority << 12 | id, &frame);
            }
            let judge = if vlans { &of_vlans } else { &plain };
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
