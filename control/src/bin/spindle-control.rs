//! The control process; started by `spindle up`.

use clap::Parser;
use spindle_control::daemon::{self, Failure, Start};
use spindle_control::programs::{CHECK, Facts};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Speaks IKEv2 for a gateway. Started by `spindle up`.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The configuration.
    #[arg(long)]
    config: PathBuf,
    /// The dataplane's process.
    #[arg(long)]
    dataplane_pid: u32,
    /// When this incarnation began, microseconds since 1970.
    #[arg(long)]
    started_us: u64,
    /// Make a new QCD secret.
    #[arg(long)]
    new_secret: bool,
}

fn main() -> ExitCode {
    if Facts::answered("spindle-control") {
        return ExitCode::SUCCESS;
    }
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|argument| argument == CHECK) {
        return match spindle_control::upgrade::check_configuration(&PathBuf::from(
            arguments.next().unwrap_or_default(),
        )) {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => {
                // Who asked reads it, or has gone.
                let _ = writeln!(std::io::stderr(), "{why}");
                ExitCode::from(2)
            }
        };
    }
    spindle_control::log_to_stderr();
    let arguments = Arguments::parse();
    let start = Start {
        supervisor: rustix::process::getppid().map_or(0, |p| p.as_raw_nonzero().get() as u32),
        dataplane: arguments.dataplane_pid,
        started_us: arguments.started_us,
        new_secret: arguments.new_secret,
    };
    match daemon::run(&arguments.config, start) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tracing::error!("{failure}");
            ExitCode::from(match failure {
                Failure::Refused(_) => 2,
                Failure::Failed(_) => 1,
            })
        }
    }
}
