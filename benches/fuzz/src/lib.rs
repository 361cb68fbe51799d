//! What is fuzzed: each target is a function of any octets that panics where something does not hold. `guided/` lets
//! libFuzzer look for such octets; `corpus/` keeps those that reach everything found so far, and a test runs them all.

#![forbid(unsafe_code)]

pub mod decapsulation;
pub mod endpoints;
pub mod ike_endpoint;
pub mod records;
pub mod recovery_clear;
pub mod verdicts;

/// The targets' names.
pub const TARGETS: [&str; 7] =
    ["decapsulation", "engine", "ike_endpoint", "ike_message", "records", "recovery_clear", "verdicts"];

/// Runs a target on these octets.
///
/// # Panics
///
/// If something does not hold, or there is no such target.
pub fn run(target: &str, data: &[u8]) {
    match target {
        "decapsulation" => decapsulation::run(data),
        // Any course of frames, commands and time: the engine loses, doubles and leaks nothing.
        "engine" => spindle_engine::fuzz::run(data),
        "ike_endpoint" => ike_endpoint::run(data),
        // Any octets parse as an IKE message or are refused, and what parses survives a round trip.
        "ike_message" => spindle_ike::wire::fuzz(data),
        "records" => records::run(data),
        "recovery_clear" => recovery_clear::run(data),
        "verdicts" => verdicts::run(data),
        _ => panic!("there is no target {target}"),
    }
}
