//! What fuzzing has found worth keeping still holds.
#![allow(clippy::print_stdout, reason = "names the input that panics, in a failed test's output")]

use std::path::Path;

fn replay(target: &str) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let mut inputs = 0;
    for entry in std::fs::read_dir(&directory).expect("there is a corpus") {
        let path = entry.expect("it can be read").path();
        let data = std::fs::read(&path).expect("it can be read");
        // What panics is named in the test's output.
        println!("{}", path.display());
        spindle_fuzz::run(target, &data);
        inputs += 1;
    }
    assert!(inputs > 10, "{target} has {inputs} inputs");
}

macro_rules! targets {
    ($($target:ident),*) => {
        $(#[test]
        fn $target() {
            replay(stringify!($target));
        })*

        #[test]
        fn every_target_has_a_corpus_that_is_run() {
            assert_eq!([$(stringify!($target)),*], spindle_fuzz::TARGETS);
        }
    };
}

targets!(decapsulation, engine, ike_endpoint, ike_message, records, recovery_clear, verdicts);
