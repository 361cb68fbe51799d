//! The machine that something was measured on, and how the dataplane's memory is laid out there.

use serde::{Deserialize, Serialize};
use spindle_abi::HUGE_PAGES;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// What of a machine a measurement depends on.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// Processors that may be used at the same time.
    pub cores: usize,
    /// The processor's model.
    pub processor: String,
    /// The kernel's release.
    pub kernel: String,
    /// Of the last minute, before the run began: what else the machine was busy with.
    pub load_average: Option<f64>,
}

impl Machine {
    /// This one, now.
    pub fn here() -> Machine {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let information = read("/proc/cpuinfo");
        let model = information.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Machine {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            processor: model.map_or_else(String::new, |(_, name)| name.to_owned()),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load_average: read("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()),
        }
    }
}

/// Begins this program again in the environment of the dataplane's, unless it is there already. To be called first.
///
/// # Errors
/// If it can't.
pub fn with_huge_pages() -> std::io::Result<()> {
    let (name, value) = HUGE_PAGES;
    if std::env::var_os(name).is_some() {
        return Ok(());
    }
    let mut again = Command::new(std::env::current_exe()?);
    Err(again.args(std::env::args_os().skip(1)).env(name, value).exec())
}
