//! `bench`: one run that measures what a storm is, what it costs, and what survives it.
//!
//! All steps use one topology of the testbed: the storm leaves the delay box towards gateway B's outer interface, so
//! that each step meets the same veth, and only what stands at its far end differs. The generator has the first core
//! (the kernel runs the receiving veth's NAPI there too, in the generator's own system call), the worker the second.

mod field;
mod report;

use anyhow::{Context, Result};
use clap::Args;
use field::Field;
use report::Report;
use std::path::PathBuf;

#[derive(Args)]
pub(crate) struct BenchArguments {
    /// Write the result to this file as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Seconds of each storm
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Rounds of those measurements that are compared; the median counts
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

/// Measures everything, prints the table, writes the JSON.
pub(crate) fn bench(arguments: &BenchArguments) -> Result<()> {
    let field = Field::create()?;
    let mut report = Report::new();
    eprintln!("the generator's ceiling, into a sink ...");
    report.generator_pps = Some(field.ceiling(arguments.seconds)?);
    println!("{report}");
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}
