//! Shows how far the demonstration is: a bar on a terminal, plain lines elsewhere.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::Duration;

pub(crate) struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Of this many runs.
    pub(crate) fn new(runs: u64) -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(runs);
            let style = ProgressStyle::with_template("{spinner} [{bar:12}] {pos}/{len} {wide_msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Progress { bar }
    }

    /// A run begins.
    pub(crate) fn begin(&self, what: String) {
        match &self.bar {
            Some(bar) => {
                bar.set_prefix(what.clone());
                bar.set_message(what);
            }
            None => eprintln!("{what}"),
        }
    }

    /// What happens within the run.
    pub(crate) fn step(&self, what: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(format!("{}: {what}", bar.prefix())),
            None => eprintln!("  {what}"),
        }
    }

    /// A run ended.
    pub(crate) fn end(&self, what: &str) {
        match &self.bar {
            Some(bar) => {
                bar.println(format!("{}: {what}", bar.prefix()));
                bar.inc(1);
            }
            None => eprintln!("  {what}"),
        }
    }

    /// All ended.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
