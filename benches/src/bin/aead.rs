//! `scripts/bench aead`: time per packet of every AEAD provider, and of intel-ipsec-mb where it is linked.

use clap::Parser;
use spindle_aead::{Algorithm, Provider};
use spindle_benches::aead::{Direction, Subject, encrypted_length, measure};
use spindle_benches::report::{Goal, Part, Report, Row, Run};
use std::path::PathBuf;
use std::time::Instant;

/// Measures the AEAD providers beside each other.
#[derive(Parser)]
struct Arguments {
    /// Puts the result into this file, too.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Alternating rounds.
    #[arg(long, default_value_t = 21)]
    rounds: usize,
}

fn main() -> anyhow::Result<()> {
    let Arguments { json, rounds } = Arguments::parse();
    let started = Instant::now();
    let mut rows = Vec::new();
    for (algorithm, name) in [
        (Algorithm::Aes128Gcm, "aes128gcm"),
        (Algorithm::Aes192Gcm, "aes192gcm"),
        (Algorithm::Aes256Gcm, "aes256gcm"),
        (Algorithm::ChaCha20Poly1305, "chacha20poly1305"),
    ] {
        for (direction, verb) in [(Direction::Seal, "seal"), (Direction::Open, "open")] {
            for size in [64, 512, 1408] {
                let secret = &[0x42; 32][..algorithm.key_length()];
                let mut subjects = Subject::all(algorithm, secret);
                let results = measure(&mut subjects, direction, encrypted_length(size), rounds);
                for (peer, theirs) in subjects.iter().zip(&results).skip(1) {
                    let what = format!("{name} {verb} ({})", subjects[0].name());
                    let goal = matches!(peer, Subject::IpsecMb(_)).then_some(Goal::RatioAtMost(1.05));
                    let peer = peer.name();
                    rows.push(Row::of(
                        (Part::Aead, &what, "ns"),
                        (size, 1),
                        &results[0],
                        (&peer, theirs),
                        goal,
                    ));
                }
            }
        }
    }
    Report::merge(json.as_ref(), Run::here(Part::Aead, rounds, started, versions()), rows)
}

fn versions() -> Vec<String> {
    let fastest = Provider::choose().map_or("none".into(), |choice| choice.provider.to_string());
    let peer = spindle_ipsec_mb::version().map(|version| format!("intel-ipsec-mb {version}"));
    [format!("AEAD provider chosen: {fastest}")].into_iter().chain(peer).collect()
}
