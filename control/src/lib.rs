//! The control process and the `spindle` command line.
//!
//! [`config`] reads the file that all parts share. `spindle up` ([`supervisor`]) sets the [`guard`], makes the
//! rings and starts `spindle-dataplane` and `spindle-control`; the latter ([`daemon`]) carries datagrams and events
//! between sockets, rings and [`spindle_recovery::Gateway`], and keeps on disk what must survive. The other
//! subcommands ([`cli`]) ask it over a socket, in the words of [`protocol`]; `spindle capture` asks the dataplane, too.

#![forbid(unsafe_code)]

mod capture;
pub mod cli;
pub mod config;
mod control_socket;
pub mod daemon;
pub mod guard;
mod interfaces;
pub mod machine;
pub mod programs;
pub mod protocol;
pub mod supervisor;
pub mod upgrade;

/// Starts logging to standard error; `SPINDLE_LOG` chooses what (`info` without it).
pub fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("SPINDLE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    log.with_ansi(colours).with_target(false).init();
}
