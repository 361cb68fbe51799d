//! The comparison without gateways: what is planned, what stands in the files, what is run again.

use super::*;
use spindle_concentrator::checks::{Check, Side};
use spindle_testbed::{Method, Moment, Strongswan};

fn outcome(outage: Option<f64>) -> Outcome {
    Outcome {
        scenario: "crash".to_owned(),
        method: "qcd-journal".to_owned(),
        rtt_ms: 20,
        recovered: outage.is_some(),
        failure: outage.is_none().then(|| "no packet <arrived>".to_owned()),
        outage_ms: outage,
        ready_to_recovered_ms: outage.map(|outage| outage - 500.0),
        round_trips: outage.map(|_| 3),
        messages: outage.map(|_| 5),
        packets_lost: outage.map(|outage| outage as u64 / 10),
        ike_sas: [1, 1],
        tokens_shown: 1,
        token_octets: Some(32),
        ticket_octets: None,
        proofs: [Some(1), Some(0)],
        deleted: Default::default(),
        resumed: false,
        back_ms: None,
        timeline: [(-600_000, "testbed", "kill -9"), (70_000, "host B", "first <delivery>")]
            .map(|(at_us, who, what)| Moment { at_us, who: who.to_owned(), what: what.to_owned() })
            .to_vec(),
    }
}

fn cell_of(outages: &[Option<f64>]) -> Cell {
    let outcomes: Vec<Outcome> = outages.iter().map(|outage| outcome(*outage)).collect();
    Cell::of(&Drill::new(Scenario::Crash, Method::QcdJournal), &outcomes)
}

fn request(runs: u32, only: &[&str]) -> Request {
    Request {
        runs,
        rtt_ms: vec![20],
        only: only.iter().map(|text| text.parse().expect("cells")).collect(),
        jobs: 1,
        calm: Duration::ZERO,
        ike_sas: 2,
        patience: Duration::from_secs(600),
        json: PathBuf::from("f.json"),
    }
}

#[test]
fn a_cell_has_the_fields_of_schema_1_and_no_others() {
    let report =
        Report { cells: vec![cell_of(&[Some(900.0), Some(700.0), Some(800.0)])], ..Report::default() };
    let expected = serde_json::json!({"schema": 1, "cells": [{
        "method": "qcd-journal", "scenario": "crash", "rtt_ms": 20, "runs": 3, "recovered": 3,
        "outage_ms": {"median": 800.0, "p99": 900.0},
        "ready_to_recovered_ms": {"median": 300.0, "p99": 400.0},
        "round_trips": 3.0, "messages": 5.0, "packets_lost": 80.0,
        "bytes_per_sa": {"maker": 4 + 90 + "ab".len() + "net".len(), "taker": 32},
    }], "checks": []});
    assert_eq!(serde_json::to_value(&report).expect("JSON"), expected);
}

#[test]
fn what_was_not_measured_is_null() {
    let value = serde_json::to_value(cell_of(&[None])).expect("JSON");
    assert_eq!((&value["runs"], &value["recovered"]), (&1.into(), &0.into()));
    for field in ["outage_ms", "ready_to_recovered_ms", "round_trips", "messages", "packets_lost"] {
        assert!(value[field].is_null(), "{field}");
    }
    let mut silent = outcome(Some(3_000.0));
    silent.token_octets = None;
    let liveness = Cell::of(&Drill::new(Scenario::Crash, Method::Liveness), &[silent]);
    assert_eq!(liveness.bytes_per_sa, Octets::default());
}

#[test]
fn of_fewer_than_a_hundred_runs_p99_is_the_largest() {
    let spread = |count: u32| Spread::of((1..=count).map(f64::from)).expect("values");
    assert_eq!(spread(1), Spread { median: 1.0, p99: 1.0 });
    assert_eq!(spread(4), Spread { median: 2.5, p99: 4.0 });
    assert_eq!(spread(30), Spread { median: 15.5, p99: 30.0 });
    assert_eq!(spread(200), Spread { median: 100.5, p99: 198.0 });
    assert_eq!(Spread::of(std::iter::empty()), None);
}

#[test]
fn a_cell_is_run_again_until_it_has_its_runs_or_never_recovered_or_takes_long() {
    let three = [Some(700.0); 3];
    assert!(is_done(&cell_of(&three), 3) && !is_done(&cell_of(&three), 30));
    assert!(is_done(&cell_of(&[Some(700.0), None]), 30), "it never recovered");
    assert!(is_done(&cell_of(&[Some(165_000.0); 3]), 30), "three are enough where one takes over a minute");
    assert!(!is_done(&cell_of(&[Some(165_000.0); 2]), 30));
    let runs_of = |ike_sas, method| {
        Request { ike_sas, ..request(30, &[]) }.runs_of(Scenario::Many, Contender::Spindle(method))
    };
    assert_eq!([10_000, 1000].map(|ike_sas| runs_of(ike_sas, Method::Sir)), [3, 30]);
    assert_eq!(runs_of(10_000, Method::Qcd), 30);
}

#[test]
fn every_method_meets_every_scenario_that_is_about_it_and_only_narrows() {
    let all = request(3, &[]).cells();
    let about = |scenario: Scenario| Contender::all().iter().filter(|it| it.meets(scenario)).count();
    assert_eq!(all.len(), Scenario::ALL.into_iter().map(about).sum::<usize>());
    assert_eq!(request(3, &["qcd/crash"]).cells(), [(Scenario::Crash, Method::Qcd.into(), 20)]);
    assert_eq!(request(3, &["/crash"]).cells().len(), Method::ALL.len() + Strongswan::ALL.len());
    assert!(request(3, &["sir/", "qcd/crash"]).cells().contains(&(Scenario::Storm, Method::Sir.into(), 20)));
    let everywhere = |only: &str| Request { rtt_ms: vec![0, 20, 100], ..request(3, &[only]) }.cells();
    assert_eq!(everywhere("qcd/crash").len(), 3);
    assert_eq!(everywhere("qcd/crash/100"), [(Scenario::Crash, Method::Qcd.into(), 100)]);
    assert_eq!(everywhere("//0").len(), all.len());
    let wrong =
        ["qcd", "qcd/weather", "hope/crash", "liveness/secret-lost", "strongswan-start/storm", "/crash/now"];
    for wrong in wrong {
        assert!(wrong.parse::<Only>().is_err(), "{wrong}");
    }
}

#[test]
fn the_pages_show_every_cell_and_say_which_never_recovered() {
    let (good, bad) = (cell_of(&[Some(700.0), Some(800.0)]), Cell { rtt_ms: 100, ..cell_of(&[None]) });
    let check = Check {
        method: spindle_concentrator::scenario::Method::Qcd,
        side: Side::Taker,
        what: "a hint".to_owned(),
        us: 2.34,
    };
    let report = Report { schema: 1, cells: vec![bad, good], checks: vec![check] };
    let runs = Runs::from([
        (name("qcd-journal", "crash", 20), vec![outcome(Some(700.0)), outcome(Some(800.0))]),
        (name("qcd-journal", "crash", 100), vec![outcome(None)]),
    ]);
    let text = table(&report, &["qcd, storm, RTT 20 ms: no\nlog".to_owned()]);
    assert!(
        text.contains(
            "| crash | qcd-journal | 20 | 2 of 2 | 750 | 800 | 250.0 | 300.0 | **80** | 3 | 5 | 75 |"
        ),
        "{text}"
    );
    assert!(text.contains("0 of 1: the last one did not, and no other was begun | – | –"), "{text}");
    assert!(text.contains("- qcd, storm, RTT 20 ms: no\n") && !text.contains("log"), "{text}");
    assert!(text.contains("(run: `no_token_leaves_for_a_living_sa`)") && text.contains("(reasoned)"));
    assert!(text.contains("| qcd | taker | a hint | 2.3 |"), "{text}");
    let html = page(&report, &runs);
    assert_eq!(html.matches("class=\"run\"").count(), 2, "a dot for each run");
    assert_eq!(
        html.matches("<details>").count(),
        2,
        "a timeline where there are runs, also of one that failed"
    );
    assert!(html.contains("not recovered") && html.contains("first &lt;delivery&gt;"), "{html}");
    assert!(!html.contains("http"), "it needs nothing else");
}

#[test]
fn timelines_are_kept_of_the_run_in_the_middle_and_of_failures() {
    let runs = kept([Some(900.0), None, Some(700.0), Some(800.0)].map(outcome).to_vec());
    assert_eq!(
        runs.iter().map(|run| !run.timeline.is_empty()).collect::<Vec<_>>(),
        [false, true, false, true]
    );
    assert_eq!(middle(&runs), Some(3));
    let text = serde_json::to_string(&runs).expect("JSON");
    assert_eq!(serde_json::from_str::<Vec<Outcome>>(&text).expect("outcomes"), runs);
}

#[test]
fn what_stands_in_the_file_is_not_run_again() {
    let folder = std::env::temp_dir().join(format!("spindle-{}-compare", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let json = folder.join("cells.json");
    let report = Report { cells: vec![cell_of(&[Some(700.0); 3])], ..Report::default() };
    write(&json, &report).expect("a file");
    let mut told = Vec::new();
    let request = Request { json: json.clone(), ..request(3, &["qcd-journal/crash"]) };
    let failures = compare(&request, &mut |text| told.push(text.to_owned())).expect("nothing to run");
    let after: Report = read(&json).expect("a file").expect("a report");
    assert_eq!(told, ["1 of 1 cells: measured before"]);
    assert!(failures.is_empty() && after == report);
    std::fs::write(&json, "{\"schema\": 7, \"cells\": []}").expect("a file");
    assert!(compare(&request, &mut |_| ()).is_err(), "a schema of another time");
    drop(std::fs::remove_dir_all(&folder));
}
