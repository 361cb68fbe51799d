//! Small concentrators crash, by every method.

use spindle_concentrator::costs::{Costs, Kind};
use spindle_concentrator::scenario::{Method, Pacing, Scenario};
use spindle_concentrator::summary::{Observed, Row};
use spindle_concentrator::world;
use std::time::Duration;

const PEERS: u32 = 300;
const PACE: u32 = 30;

/// Some, not measured: what is asserted does not depend on them.
fn costs() -> Costs {
    let all = [(Kind::Init, 150.0), (Kind::Auth, 100.0), (Kind::Initiate, 50.0), (Kind::Event, 1.0)];
    Costs(all.into_iter().chain([(Kind::Tick, 1.0), (Kind::Persist, 1000.0), (Kind::Other, 20.0)]).collect())
}

fn scenario(method: Method) -> Scenario {
    let rtt = Duration::from_millis(20);
    let (pacing, handshakes_total) = (Pacing::Fixed, PACE);
    Scenario {
        peers: PEERS,
        method,
        pacing,
        handshakes_total,
        resumption: false,
        rtt,
        seed: 1,
        frugal: false,
    }
}

fn play(scenario: &Scenario) -> (Observed, Row) {
    let observed = world::play(scenario, &costs(), &|_| {}).expect("the world ends");
    let row = observed.row(scenario).expect("all are back");
    (observed, row)
}

#[test]
fn all_peers_come_back_by_each_method_with_and_without_tickets() {
    for method in Method::ALL {
        for resumption in [false, true] {
            let (observed, row) = play(&Scenario { resumption, ..scenario(method) });
            let name = method.name();
            assert!(observed.back.iter().all(Option::is_some), "{name}");
            assert!(row.handshakes >= u64::from(PEERS), "{name}: {} handshakes", row.handshakes);
            assert!(row.back_s.p50 <= row.back_s.p99 && row.back_s.p99 <= row.back_s.p100, "{row:?}");
            let by_ticket = if resumption && method.may_resume() { row.handshakes } else { 0 };
            assert_eq!(row.resumed, by_ticket, "{name}: {row:?}");
            assert!(row.memory_bytes_per_peer > 1000, "{name}: {row:?}");
        }
    }
}

/// A burst of one second's handshakes, and then their rate; some of a second's may be late and fall into the next one.
#[test]
fn the_pace_bounds_the_busiest_second_and_without_it_there_is_no_bound() {
    for method in Method::ALL.into_iter().filter(|method| method.is_paced()) {
        let (_, paced) = play(&scenario(method));
        let name = method.name();
        // Without a record nothing is counted before a peer is back, so those under way come on top.
        let under_way = if matches!(method, Method::Qcd | Method::Sir) { PACE } else { PACE / 5 };
        assert!(paced.peak_handshakes_per_s <= 2 * PACE + under_way, "{name}: {paced:?}");
        assert!(paced.back_s.p100 >= f64::from((PEERS - PACE) / PACE) * 0.9, "{name}: {paced:?}");
        let (_, unpaced) = play(&Scenario { pacing: Pacing::Off, ..scenario(method) });
        assert!(unpaced.peak_handshakes_per_s > 2 * PACE + PACE / 5, "{name}: {unpaced:?}");
        assert!(unpaced.back_s.p50 < paced.back_s.p50, "{name}: {unpaced:?} {paced:?}");
    }
}

/// It begins at 30 a second; 4000 handshakes keep the concentrator busy for a second at most.
#[test]
fn a_measured_pace_brings_a_herd_back_nearly_as_fast_as_it_can_be_taken_and_loses_nothing() {
    for method in [Method::InitialContact, Method::Proactive] {
        let scenario = Scenario { peers: 4000, pacing: Pacing::Measured, ..scenario(method) };
        let (_, row) = play(&scenario);
        let name = method.name();
        assert_eq!((row.datagrams_dropped, row.handshakes), (0, 4000), "{name}: {row:?}");
        assert!(row.back_s.p100 < 3.0, "{name}: {row:?}");
        // Ten times the work, a tenth of the pace.
        let slow = Costs(costs().0.into_iter().map(|(kind, us)| (kind, us * 10.0)).collect());
        let observed = world::play(&scenario, &slow, &|_| {}).expect("the world ends");
        let row = observed.row(&scenario).expect("all are back");
        assert_eq!((row.datagrams_dropped, row.handshakes), (0, 4000), "{name}: {row:?}");
        assert!(row.back_s.p100 < 20.0, "{name}: {row:?}");
    }
}

/// Where peers share gateways, and go when they are back, the figures are those of peers that do not.
#[test]
fn played_frugally_a_crash_comes_to_the_same() {
    let near = |a: f64, b: f64, by: f64| (a - b).abs() <= by * a.max(b) + 0.05;
    for method in Method::ALL {
        for resumption in [false, true].into_iter().filter(|resumption| !resumption || method.may_resume()) {
            let scenario = Scenario { resumption, ..scenario(method) };
            let (_, alone) = play(&scenario);
            let (_, together) = play(&Scenario { frugal: true, ..scenario });
            let both = format!("{}: {alone:?} {together:?}", method.name());
            assert!(near(alone.back_s.p50, together.back_s.p50, 0.15), "{both}");
            assert!(near(alone.back_s.p99, together.back_s.p99, 0.15), "{both}");
            assert!(near(alone.back_s.p100, together.back_s.p100, 0.15), "{both}");
            let peaks = [&alone, &together].map(|row| f64::from(row.peak_handshakes_per_s));
            // Without a record the busiest second is a matter of chance.
            let by = if matches!(method, Method::Qcd | Method::Sir) { 0.4 } else { 0.15 };
            assert!(near(peaks[0], peaks[1], by), "{both}");
            assert_eq!((alone.handshakes, alone.resumed), (together.handshakes, together.resumed), "{both}");
        }
    }
}

#[test]
fn those_with_the_most_traffic_come_back_first() {
    let (observed, _) = play(&scenario(Method::QcdJournal));
    let mut by_return: Vec<usize> = (0..PEERS as usize).collect();
    by_return.sort_by_key(|peer| observed.back[*peer]);
    let mut ranks = vec![0; PEERS as usize];
    by_return.iter().enumerate().for_each(|(rank, peer)| ranks[*peer] = rank);
    let mut by_traffic: Vec<usize> = (0..PEERS as usize).collect();
    by_traffic.sort_by_key(|peer| observed.periods[*peer]);
    let median = |peers: &[usize]| {
        let mut ranks: Vec<usize> = peers.iter().map(|peer| ranks[*peer]).collect();
        ranks.sort_unstable();
        ranks[ranks.len() / 2]
    };
    let third = by_traffic.len() / 3;
    let (busy, idle) = (median(&by_traffic[..third]), median(&by_traffic[2 * third..]));
    assert!(busy + third / 2 < idle, "median rank {busy} of the busiest third, {idle} of the idlest");
}

#[test]
fn the_same_seed_and_costs_give_the_same_rows_and_another_seed_others() {
    for method in [Method::QcdJournal, Method::Qcd] {
        let scenario = Scenario { resumption: true, ..scenario(method) };
        let (once, row) = play(&scenario);
        let (again, same) = play(&scenario);
        assert_eq!((&once.back, &once.handshakes), (&again.back, &again.handshakes), "{}", method.name());
        // Hash tables differ a little from run to run, and so does the machine.
        let measured_aside =
            |row: &Row| Row { memory_bytes_per_peer: 0, seen_us: Costs::default(), ..row.clone() };
        assert_eq!(measured_aside(&row), measured_aside(&same));
        let (other, _) = play(&Scenario { seed: 2, ..scenario });
        assert_ne!(once.back, other.back);
    }
}

/// Nobody is back before the work for the half of them is done.
#[test]
fn work_takes_the_time_that_it_costs() {
    let scenario = Scenario { pacing: Pacing::Off, ..scenario(Method::InitialContact) };
    let (_, fast) = play(&scenario);
    let slow = Costs(costs().0.into_iter().map(|(kind, us)| (kind, us * 100.0)).collect());
    let observed = world::play(&scenario, &slow, &|_| {}).expect("the world ends");
    let slow = observed.row(&scenario).expect("all are back");
    let initiations = f64::from(PEERS) * 50.0 * 100.0 / 1e6;
    assert!(slow.back_s.p50 > initiations && fast.back_s.p100 < initiations, "{slow:?} {fast:?}");
}
