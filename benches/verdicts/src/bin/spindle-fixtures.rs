//! `spindle-fixtures TARGET DIRECTORY`: writes the fixtures as a fuzz target's first inputs: `verdicts` or `engine`.

use spindle_verdicts::{Side, fixtures};
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [target, directory] = &arguments[..] else { return usage() };
    let plain = fixtures::all().into_iter().map(|fixture| (false, fixture));
    let of_vlans = fixtures::of_vlans().into_iter().map(|fixture| (true, fixture));
    for (number, (of_vlans, fixture)) in plain.chain(of_vlans).enumerate() {
        let is_outside = fixture.side == Side::Outside;
        let head = match target.as_str() {
            "verdicts" => vec![u8::from(is_outside) | u8::from(of_vlans) << 1],
            // A step of `spindle_engine::fuzz`: from inside 0, from outside 1; then the length.
            "engine" => vec![u8::from(is_outside), fixture.frame.len() as u8],
            _ => return usage(),
        };
        let path = format!("{directory}/fixture-{number:03}");
        if let Err(error) = std::fs::write(&path, [head, fixture.frame].concat()) {
            eprintln!("cannot write {path}: {error}");
            return ExitCode::from(1);
        }
    }
    ExitCode::SUCCESS
}

fn usage() -> ExitCode {
    eprintln!("usage: spindle-fixtures verdicts|engine DIRECTORY");
    ExitCode::from(2)
}
