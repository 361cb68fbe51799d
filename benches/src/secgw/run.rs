//! One run of ipsec-secgw or testpmd: nanoseconds per packet, of processor time, so that what else the machine does is not
//! counted.

use super::output::{dropped_by_secgw, sent_by_secgw, sent_by_testpmd};
use crate::{OUTER, PEER};
use anyhow::{Context, bail, ensure};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// A run that says nothing for so long has failed.
const SILENCE: Duration = Duration::from_secs(15);
/// Between the first statistics that count and the last.
const WINDOW: Duration = Duration::from_millis(900);

/// How ipsec-secgw does its cryptography.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Its own code, with the crypto device's queue.
    Plain,
    /// `-l` with cpu-crypto: librte_ipsec, and the crypto device called directly.
    Library,
}

impl Mode {
    /// Both.
    pub const ALL: [Mode; 2] = [Mode::Plain, Mode::Library];

    /// As in tables.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Plain => "ipsec-secgw",
            Mode::Library => "ipsec-secgw -l, cpu-crypto",
        }
    }
}

/// Who forwards.
#[derive(Clone, Debug)]
pub enum Forwarder<'a> {
    /// ipsec-secgw encapsulates or decapsulates what is in the capture.
    Secgw {
        /// The program, as [`super::build`] made it.
        program: &'a Path,
        /// How.
        mode: Mode,
        /// From the protected side?
        encapsulates: bool,
    },
    /// testpmd only forwards it.
    Testpmd,
}

/// Its configuration: one SA each way, with the keys and addresses of [`crate::alone`]'s.
fn configuration(mode: Mode) -> String {
    let key = vec!["7"; 20].join(":");
    let kind = if mode == Mode::Library { " type cpu-crypto" } else { "" };
    let sa = |way: &str, spi: u32, from, to| {
        format!(
            "sa {way} {spi} aead_algo aes-128-gcm aead_key {key} mode ipv4-tunnel src {from} dst {to}{kind}\n"
        )
    };
    let policy = |way: &str, spi: u32| {
        format!("sp ipv4 {way} esp protect {spi} pri 1 dst 10.0.0.0/8 sport 0:65535 dport 0:65535\n")
    };
    [
        policy("out", crate::alone::SPI),
        policy("in", crate::alone::SPI),
        sa("out", crate::alone::SPI, OUTER, PEER),
        sa("in", crate::alone::SPI, PEER, OUTER),
        format!("rt ipv4 dst {PEER}/32 port 1\nrt ipv4 dst 10.0.0.0/8 port 1\n"),
    ]
    .concat()
}

/// Nanoseconds of processor time per packet of a second's forwarding what `capture` holds. Files that it needs it makes in `folder`.
pub fn nanoseconds(forwarder: &Forwarder<'_>, capture: &Path, folder: &Path) -> anyhow::Result<f64> {
    let program: PathBuf = match forwarder {
        Forwarder::Secgw { program, .. } => program.to_path_buf(),
        Forwarder::Testpmd => "dpdk-testpmd".into(),
    };
    let core = std::thread::available_parallelism()?.get() - 1;
    let cores = match forwarder {
        Forwarder::Secgw { .. } => format!("{core}"),
        Forwarder::Testpmd => format!("0,{core}"),
    };
    let mut command = super::alone(&program);
    command
        .args(["-l", &cores, "--in-memory", "--no-pci", "--no-telemetry", "--vdev"])
        .arg(format!("net_pcap0,rx_pcap={},infinite_rx=1", capture.display()))
        .args(["--vdev", "net_null1,no-rx=1"]);
    match forwarder {
        Forwarder::Secgw { mode, encapsulates, .. } => {
            let file = folder.join(format!("{mode:?}.cfg"));
            std::fs::write(&file, configuration(*mode))?;
            command.args(["--vdev", "crypto_aesni_gcm0", "--", "-p", "0x3", "-P", "-t", "1"]);
            command.args(["-u", if *encapsulates { "0x2" } else { "0x1" }]);
            command.args((*mode == Mode::Library).then_some("-l"));
            command.arg("-f").arg(&file).args(["--config", &format!("(0,0,{core}),(1,0,{core})")]);
        }
        Forwarder::Testpmd => {
            command.args(["--", "--forward-mode=io", "--auto-start", "--stats-period", "1"]);
            command.args(["--no-lsc-interrupt", "--total-num-mbufs=8192"]);
        }
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{command:?}"))?;
    let result = watch(forwarder, &mut child);
    let _ = child.kill();
    let _ = child.wait();
    result.with_context(|| format!("{} on {}", program.display(), capture.display()))
}

/// Reads its statistics until they span the window.
fn watch(forwarder: &Forwarder<'_>, child: &mut std::process::Child) -> anyhow::Result<f64> {
    let (sender, lines) = channel();
    let outputs: [Option<Box<dyn std::io::Read + Send>>; 2] =
        [child.stdout.take().map(|o| Box::new(o) as _), child.stderr.take().map(|o| Box::new(o) as _)];
    for output in outputs.into_iter().flatten() {
        let sender = sender.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                let _ = sender.send((Instant::now(), String::from_utf8_lossy(&line).into_owned()));
            }
        });
    }
    drop(sender);
    let mut said = Vec::new();
    let mut first: Option<(Instant, u64, u64)> = None;
    loop {
        let (at, line) = match lines.recv_timeout(SILENCE) {
            Ok(said) => said,
            Err(RecvTimeoutError::Timeout) => bail!("it says nothing any more:\n{}", tail(&said)),
            Err(RecvTimeoutError::Disconnected) => bail!("it ended:\n{}", tail(&said)),
        };
        if let Some(dropped) = dropped_by_secgw(&line) {
            ensure!(dropped == 0, "it dropped {dropped} packets");
        }
        let sent = match forwarder {
            Forwarder::Secgw { .. } => sent_by_secgw(&line),
            Forwarder::Testpmd => sent_by_testpmd(&line).filter(|sent| *sent > 0),
        };
        said.push(line);
        match (first, sent) {
            (_, None) => {}
            (None, Some(0)) => {}
            (None, Some(sent)) => first = Some((at, sent, processor_time(child.id())?)),
            (Some((since, before, used)), Some(sent)) if at - since >= WINDOW => {
                ensure!(sent > before, "it sends nothing");
                let used = processor_time(child.id())? - used;
                return Ok(used as f64 / (sent - before) as f64);
            }
            _ => {}
        }
    }
}

/// Nanoseconds that the threads of the process below this one (the program in its namespaces) have run.
fn processor_time(parent: u32) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
    let program = text.split_whitespace().next().context("it is gone")?;
    let mut nanoseconds = 0;
    for thread in std::fs::read_dir(format!("/proc/{program}/task"))? {
        let text = std::fs::read_to_string(thread?.path().join("schedstat"))?;
        nanoseconds += text.split(' ').next().context("no schedstat")?.parse::<u64>()?;
    }
    Ok(nanoseconds)
}

/// The last lines.
fn tail(lines: &[String]) -> String {
    lines[lines.len().saturating_sub(15)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_has_an_sa_and_a_policy_each_way() {
        let text = configuration(Mode::Library);
        assert_eq!(text.matches("type cpu-crypto\n").count(), 2);
        assert_eq!(text.lines().filter(|line| line.starts_with("sp ipv4 ")).count(), 2);
        assert!(text.contains(" mode ipv4-tunnel src 192.0.2.2 dst 192.0.2.1 type cpu-crypto\n"));
        assert!(!configuration(Mode::Plain).contains("cpu-crypto"));
    }
}
