//! `spindle-bench-gateway`: gateways over veth beside each other, the part `gateway` of `scripts/bench peers`.
//!
//! ```text
//! field, single   one gateway between a generator and a sink: packets per second
//! pair, tcp       two gateways between two hosts: one TCP connection's bits per second
//! subject         what stands in a gateway's place: ours, DPDK's, boringtun (strongSwan is the testbed's)
//! rounds          subjects take turns
//! ```
//!
//! Each measurement has namespaces of its own, which are removed with all that runs in them.

#![forbid(unsafe_code)]
#![allow(clippy::print_stderr, reason = "progress")]

mod field;
mod pair;
mod process;
mod rounds;
mod single;
mod subject;
mod tcp;

use anyhow::{Context, Result, bail};
use clap::Parser;
use field::Napi;
use pair::Gateways;
use rounds::Figures;
use single::Subject;
use spindle_benches::report::{Goal, Part, Report, Row, Run, package};
use spindle_benches::secgw;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;
use subject::{HugePages, Programs};

/// Measures gateways over veth beside each other.
#[derive(Parser)]
struct Arguments {
    /// Puts the result into this file, too
    #[arg(long)]
    json: Option<PathBuf>,
    /// Alternating rounds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=99))]
    rounds: u8,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Leave out what is not one gateway, or not two
    #[arg(long)]
    only: Option<Half>,
    /// Where our programs lie, if not beside this one
    #[arg(long)]
    programs: Option<PathBuf>,
    /// Where ipsec-secgw is built and boringtun-cli lies, if not in the folder `peers` beside that of this program
    #[arg(long)]
    peers: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Half {
    Single,
    Pair,
}

/// Inner packets, in octets.
const SIZES: [u16; 2] = [64, 1400];

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("spindle-bench-gateway: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let started = Instant::now();
    let _pages = HugePages::allow(2)?;
    let folder = match &arguments.programs {
        Some(folder) => folder.clone(),
        None => std::env::current_exe()?.parent().context("this program's folder")?.to_owned(),
    };
    let peers = match &arguments.peers {
        Some(peers) => peers.clone(),
        None => folder.parent().context("a folder for peers")?.join("peers"),
    };
    let (ipsec_secgw, boringtun) = (secgw::build(&peers)?, peers.join("bin/boringtun-cli"));
    if !boringtun.exists() {
        bail!("{} is not there: scripts/install-packages peers builds it", boringtun.display());
    }
    let programs = Programs { spindle: &folder, ipsec_secgw: &ipsec_secgw, boringtun: &boringtun };
    let (mut rows, mut failed) = (Vec::new(), Vec::new());
    let mut keep = |what: String, measured: Result<Vec<Row>>| match measured {
        Ok(measured) => rows.extend(measured),
        Err(error) => failed.push(format!("{what}: {error:#}")),
    };
    if arguments.only != Some(Half::Pair) {
        for napi in [Napi::Threaded, Napi::Softirq] {
            for size in SIZES {
                eprintln!("one gateway, {size} octets, {}", napi.name());
                keep(format!("{size} octets, {}", napi.name()), one(arguments, &programs, napi, size));
            }
        }
    }
    if arguments.only != Some(Half::Single) {
        eprintln!("two gateways, TCP, Gb/s");
        keep("two gateways".to_owned(), two(arguments, &programs));
    }
    let peers = ["dpdk", "strongswan-libcharon", "libcharon-extra-plugins"].into_iter().filter_map(package);
    let versions = peers.chain(["boringtun-cli 0.7.1".to_owned()]).collect();
    Report::merge(
        arguments.json.as_ref(),
        Run::here(Part::Gateway, arguments.rounds.into(), started, versions),
        rows,
    )?;
    if !failed.is_empty() {
        bail!("not everything could be measured: {}", failed.join("; "));
    }
    Ok(())
}

/// Rows of one gateway, in millions of packets per second.
fn one(arguments: &Arguments, programs: &Programs<'_>, napi: Napi, size: u16) -> Result<Vec<Row>> {
    let all = [Subject::Spindle, Subject::IpsecSecgw, Subject::Testpmd];
    let figures = Figures::take(&all, arguments.rounds.into(), |subject| {
        Ok(single::measure(subject, size, arguments.seconds, napi, programs)? / 1e6)
    })?;
    let what = format!("one gateway encapsulates, {}", napi.name());
    let row = |peer: &str, subject, goal| {
        let ours = figures.of(Subject::Spindle);
        let about = (Part::Gateway, what.as_str(), "M packets/s");
        Row::of(about, (size.into(), 1), ours, (peer, figures.of(subject)), Some(Goal::RatioAtLeast(goal)))
    };
    Ok(vec![
        row("ipsec-secgw, net_af_xdp", Subject::IpsecSecgw, 1.25),
        row("testpmd, net_af_xdp (forwards only)", Subject::Testpmd, 1.0),
    ])
}

/// Rows of two gateways, in gigabits of TCP payload per second.
fn two(arguments: &Arguments, programs: &Programs<'_>) -> Result<Vec<Row>> {
    let all = [Gateways::Spindle, Gateways::IpsecSecgw, Gateways::Strongswan, Gateways::Boringtun];
    let figures = Figures::take(&all, arguments.rounds.into(), |kind| {
        Ok(pair::measure(kind, programs, arguments.seconds)? / 1e9)
    })?;
    let row = |peer: &str, kind, goal: Option<f64>| {
        let about = (Part::Gateway, "two gateways on two cores, TCP", "Gb/s");
        let ours = figures.of(Gateways::Spindle);
        Row::of(about, (pair::MTU.into(), 1), ours, (peer, figures.of(kind)), goal.map(Goal::RatioAtLeast))
    };
    Ok(vec![
        row("ipsec-secgw, net_af_xdp (hosts' tx offloads off)", Gateways::IpsecSecgw, Some(1.0)),
        row("strongSwan, kernel-libipsec", Gateways::Strongswan, Some(6.0)),
        row("boringtun", Gateways::Boringtun, None),
    ])
}
