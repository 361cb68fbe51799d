//! DPDK's example ipsec-secgw as the engine's peer: from a capture file (net_pcap, again and again) to nowhere (net_null) on
//! one core, with one SA each way by crypto_aesni_gcm, and testpmd between the same ports for what those alone take.
//!
//! The source is Debian's (dpdk-doc), copied into a folder and built there for this processor. It demands a receive
//! offload that no port in software has, so the copy demands none ([`build`]). Programs run in mount, network and process
//! namespaces of their own and end with this one; huge pages are given back ([`HugePages`]).

mod output;
mod run;

pub use run::{Forwarder, Mode, nanoseconds};

use anyhow::{Context, ensure};
use spindle_abi::HUGE_PAGES;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where dpdk-doc puts the source.
const SOURCE: &str = "/usr/share/dpdk/examples/ipsec-secgw";
/// Tells the kernel how many there are to be.
const NUMBER: &str = "/proc/sys/vm/nr_hugepages";

/// Builds ipsec-secgw in this folder, if that was not done yet, and returns the program's path.
pub fn build(folder: &Path) -> anyhow::Result<PathBuf> {
    let source = folder.join("ipsec-secgw");
    let program = source.join("build/ipsec-secgw");
    if program.exists() {
        return Ok(program);
    }
    ensure!(Path::new(SOURCE).is_dir(), "{SOURCE} is not there: install Debian's package dpdk-doc");
    std::fs::create_dir_all(folder)?;
    run(Command::new("cp").args(["-rT", SOURCE]).arg(&source))?;
    edit(&source.join("ipsec-secgw.c"), ".offloads = RTE_ETH_RX_OFFLOAD_CHECKSUM,", ".offloads = 0,")?;
    // What Debian's pkg-config says, -march=corei7, is slower.
    edit(&source.join("Makefile"), "-DALLOW_EXPERIMENTAL_API", "-DALLOW_EXPERIMENTAL_API -march=native")?;
    run(Command::new("make").arg("shared").current_dir(&source))?;
    Ok(program)
}

fn edit(file: &Path, from: &str, to: &str) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    ensure!(text.matches(from).count() == 1, "{} is not what it was: `{from}`", file.display());
    Ok(std::fs::write(file, text.replace(from, to))?)
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Huge pages of 2 MiB for as long as this lives.
#[derive(Debug)]
pub struct HugePages {
    before: u64,
}

impl HugePages {
    /// So many more than there are.
    pub fn allocate(count: u64) -> anyhow::Result<HugePages> {
        let read = || -> anyhow::Result<u64> { Ok(std::fs::read_to_string(NUMBER)?.trim().parse()?) };
        let pages = HugePages { before: read()? };
        std::fs::write(NUMBER, (pages.before + count).to_string()).context(NUMBER)?;
        let there = read()?;
        ensure!(there >= pages.before + count, "the kernel has only {there} huge pages");
        Ok(pages)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = std::fs::write(NUMBER, self.before.to_string());
    }
}

/// A command in mount, network and process namespaces of its own, huge pages mounted, which is killed with its caller's
/// thread, and whose lines come as they are written.
pub fn alone(program: &Path) -> Command {
    const SHELL: &str =
        "ip link set lo up; mkdir -p /dev/hugepages && mount -t hugetlbfs none /dev/hugepages && exec \"$@\"";
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "unshare", "--mount", "--net", "--pid", "--fork", "--kill-child"]);
    command.args(["sh", "-c", SHELL, "sh", "stdbuf", "-oL"]).arg(program);
    // It has huge pages of its own.
    command.env_remove(HUGE_PAGES.0);
    command
}
