//! `spindle-storm`: ESP packets on SPIs that nobody knows, as fast as the kernel makes them, and what they cost.
//!
//! `send` makes a storm on a veth, `sink` counts one at the far end, `bench` builds namespaces and measures.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout)] // what the program is for

mod bench;
mod interface;
mod recycle;
mod send;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Send ESP with unique, random-looking SPIs from XDP live frames out of a veth; always bounded
    Send(send::SendArguments),
    /// Count what arrives at a veth, and drop it
    Sink(send::SinkArguments),
    /// Receive as a gateway does, and only give the frames back
    Recycle(recycle::RecycleArguments),
    /// Send one storm at a fresh dataplane in namespaces of its own, and account for every packet
    Detect(bench::DetectArguments),
    /// Send a storm beyond the port's capacity at a fresh dataplane, and see who of its former SPIs is told of
    Former(bench::FormerArguments),
    /// Measure what a storm is, what it costs, and what survives it
    Bench(bench::BenchArguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Send(arguments) => send::send(&arguments),
        Command::Sink(arguments) => send::sink(&arguments),
        Command::Recycle(arguments) => recycle::recycle(&arguments),
        Command::Detect(arguments) => bench::detect(&arguments),
        Command::Former(arguments) => bench::former(&arguments),
        Command::Bench(arguments) => bench::bench(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("spindle-storm: {error:#}");
            ExitCode::FAILURE
        }
    }
}
