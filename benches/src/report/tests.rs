//! The file's form, its merging, what is judged, and that the committed page is what its file makes.

use super::*;
use std::time::Instant;

fn row(part: Part, what: &str, goal: Option<Goal>) -> Row {
    Row::of((part, what, "ns"), (64, 1), &[10.0, 40.0, 30.0], ("peer", &[20.0, 20.0, 30.0]), goal)
}

#[test]
fn ratios_are_taken_round_by_round() {
    let ratio = Ratio::of(&[1.0, 4.0, 3.0], &[2.0, 2.0, 3.0]);
    assert_eq!(ratio, Ratio { median: 1.0, min: 0.5, max: 2.0 });
}

#[test]
fn a_row_has_the_promised_form() {
    let row = serde_json::to_value(row(Part::Engine, "encapsulate", Some(Goal::RatioAtMost(0.4)))).unwrap();
    let promised = serde_json::json!({
        "part": "engine", "what": "encapsulate", "size": 64, "sas": 1, "ours": 30.0, "peer": "peer", "theirs": 20.0,
        "unit": "ns", "ratio": {"median": 1.0, "min": 0.5, "max": 2.0}, "rounds": 3, "goal": {"ratio_at_most": 0.4},
    });
    assert_eq!(row, promised);
}

#[test]
fn a_goal_is_judged_by_the_medians() {
    let missed = |goal| row(Part::Engine, "encapsulate", Some(goal)).missed_by().unwrap();
    assert_eq!(missed(Goal::RatioAtMost(0.5)), 1.0);
    assert_eq!(missed(Goal::RatioAtMost(1.0)), 0.0);
    assert_eq!(missed(Goal::RatioAtLeast(1.25)), 1.0 - 1.0 / 1.25);
    assert_eq!(missed(Goal::MoreAtMost(8.0)), 0.25);
    assert_eq!(missed(Goal::AtMost(40.0)), -0.25);
    assert_eq!(row(Part::Engine, "encapsulate", None).missed_by(), None);
}

#[test]
fn a_part_replaces_what_it_said_before_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("peers.json");
    let run = |part| Run::here(part, 3, Instant::now(), vec!["peer 1.0".into()]);
    Report::merge(Some(&file), run(Part::Scale), vec![row(Part::Scale, "one", None)]).unwrap();
    Report::merge(Some(&file), run(Part::Aead), vec![row(Part::Aead, "two", None)]).unwrap();
    let again = vec![row(Part::Scale, "three", None), row(Part::Scale, "four", None)];
    Report::merge(Some(&file), run(Part::Scale), again).unwrap();
    let report = Report::load(&file).unwrap();
    let whats: Vec<&str> = report.rows.iter().map(|row| row.what.as_str()).collect();
    assert_eq!(whats, ["two", "three", "four"]);
    assert_eq!(report.runs.iter().map(|run| run.part).collect::<Vec<_>>(), [Part::Aead, Part::Scale]);
    assert_eq!(report.schema, 1);
}

#[test]
fn the_page_says_by_how_much_a_goal_is_missed_and_what_limits() {
    let mut report = Report { schema: 1, runs: Vec::new(), rows: Vec::new() };
    let run = Run::here(Part::Engine, 3, Instant::now(), vec!["peer 1.0".into()]);
    let rows = vec![
        row(Part::Engine, "encapsulate", Some(Goal::RatioAtMost(0.8))),
        row(Part::Engine, "decapsulate", Some(Goal::RatioAtMost(1.0))),
    ];
    report.replace(run, rows);
    let limits: Limits = toml::from_str(
        "[[limit]]\npart = \"engine\"\nwhat = \"encapsulate\"\ntext = \"\"\"\nthe AEAD takes\nhalf\"\"\"\n\
         [[limit]]\npart = \"engine\"\nwhat = \"no such row\"\ntext = \"nothing\"\n",
    )
    .unwrap();
    let page = readme::render(&report, &limits, "results/");
    for expected in [
        "Of 2 goals 1 are met.",
        "| encapsulate | 64 | 1 | 30.0 ns | peer | 20.0 ns | 1.00 (0.50–2.00) | 3 | ≤ 0.80× | **missed by 25 %** |",
        "| decapsulate | 64 | 1 | 30.0 ns | peer | 20.0 ns | 1.00 (0.50–2.00) | 3 | ≤ 1.00× | met |",
        "`scripts/bench peers --only engine --rounds 3`",
        "peer 1.0",
        "![ns per packet over size](results/peers-size.svg)",
        "- *encapsulate*: the AEAD takes half",
    ] {
        assert!(page.contains(expected), "{expected} is missing in:\n{page}");
    }
    assert!(!page.contains("nothing"), "a limit of no row");
    let plots = plot::all(&report).unwrap();
    assert_eq!(plots.len(), 1);
    assert!(plots[0].1.contains("encapsulate, Spindle") && plots[0].1.contains("decapsulate, peer"));
}

/// Nobody changes the page, or a plot, by hand, or forgets to make them anew.
#[test]
fn the_committed_page_is_what_the_committed_file_makes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let results = folder.join("results");
    let report = Report::load(Path::new(COMMITTED)).unwrap();
    assert!(!report.rows.is_empty(), "nothing is measured");
    let limits = Limits::load(&results.join("limits.toml")).unwrap();
    let page = std::fs::read_to_string(folder.join("README.md")).unwrap();
    assert_eq!(page, readme::render(&report, &limits, "results/"), "say scripts/bench peers --page-only");
    for (name, plot) in plot::all(&report).unwrap() {
        assert_eq!(std::fs::read_to_string(results.join(name)).unwrap(), plot, "{name}");
    }
}
