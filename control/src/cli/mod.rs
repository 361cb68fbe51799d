//! The `spindle` command line. Exit codes: 0 done, 1 failed, 2 usage or configuration.

mod capture;
mod client;
mod tables;

use crate::config::{RUN_DIR, Settings};
use crate::guard::Guard;
use crate::protocol::{Done, Reload, Request};
use crate::supervisor;
use clap::{Args, Parser, Subcommand};
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// An IPsec gateway that comes back from a crash within a few round trips.
#[derive(Parser)]
#[command(name = "spindle", version)]
struct CommandLine {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Starts the gateway and stays with it.
    Up {
        /// The configuration.
        #[arg(long)]
        config: PathBuf,
        /// Begin with a new QCD secret: peers cannot be told of an earlier crash.
        #[arg(long)]
        new_secret: bool,
    },
    /// Sets the guard alone, without starting: the kernel carries nothing between the two sides.
    Close {
        /// The configuration.
        #[arg(long)]
        config: PathBuf,
    },
    /// Takes the guard away, which a stop or a crash leaves in place: from then on the kernel forwards what it is told to.
    Open {
        /// The configuration.
        #[arg(long)]
        config: PathBuf,
    },
    /// Follows the configuration as the file has it now: connections, their secrets and policies. No packet is lost of what
    /// did not change.
    #[command(visible_alias = "load-all")]
    Reload {
        /// Say what would change, and change nothing.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        ask: Ask,
    },
    /// Puts other programs in the place of those that run, control first, then the dataplane; no SA is lost.
    Upgrade {
        /// The folder of the new programs; without it, where the running ones were.
        #[arg(long, value_name = "DIR")]
        from: Option<PathBuf>,
        #[command(flatten)]
        ask: Ask,
    },
    /// Shows how the gateway is.
    Status(Ask),
    /// Lists IKE SAs and their Child SAs.
    ListSas {
        /// Those of this connection alone.
        #[arg(long)]
        connection: Option<String>,
        #[command(flatten)]
        ask: Ask,
    },
    /// Lists the configured connections, and how they stand.
    ListConns(Ask),
    /// Shows all counters, and whether every packet has its place.
    Stats(Ask),
    /// Shows what happened lately, the last 4096 events.
    Events(Ask),
    /// Captures frames as pcapng, each with the reason if it was dropped; tshark and Wireshark read it.
    Capture(capture::Capture),
    /// Shows the generations of the QCD secret, and which of them are relied on.
    Secret(Ask),
    /// Rotates the QCD secret (RFC 6290 section 5.1): no peer's token becomes void; waits until the new one is in use.
    RotateSecret(Wait),
    /// Establishes a connection, or one of its children, and waits for it.
    Initiate {
        /// CONNECTION or CONNECTION/CHILD.
        name: Name,
        #[command(flatten)]
        wait: Wait,
    },
    /// Deletes the IKE SAs of a connection, or the Child SAs of one of its children, and waits for it.
    Terminate {
        /// CONNECTION or CONNECTION/CHILD.
        name: Name,
        #[command(flatten)]
        wait: Wait,
    },
    /// Takes the gateway down for maintenance: no IKE SA begins here until it is started again, and every peer is sent to
    /// another gateway (RFC 5685), where it lets itself be, or told to go by a Delete; waits until all have gone.
    TakeDown {
        /// The gateway to go to, which has our identity and key.
        #[arg(long, value_name = "ADDRESS")]
        to: Option<std::net::IpAddr>,
        /// How long a redirected peer may take to get there, in seconds; then its IKE SA is deleted all the same.
        #[arg(long, default_value_t = 10.0, value_parser = seconds)]
        grace: f64,
        #[command(flatten)]
        wait: Wait,
    },
    /// Rekeys the IKE SAs of a connection, or the Child SAs of one of its children, and waits for it.
    Rekey {
        /// CONNECTION or CONNECTION/CHILD.
        #[arg(required_unless_present_any = ["ike", "child"])]
        name: Option<Name>,
        /// The connection whose IKE SAs are rekeyed.
        #[arg(long, value_name = "CONNECTION", conflicts_with_all = ["name", "child"])]
        ike: Option<String>,
        /// The Child SAs that are rekeyed.
        #[arg(long, value_name = "CONNECTION/CHILD", conflicts_with = "name")]
        child: Option<Name>,
        #[command(flatten)]
        wait: Wait,
    },
    /// For drills: loses the IKE SAs of a connection, or the Child SAs of one of its children, as by a fault.
    ///
    /// The peer is not told, and has to find out; traffic is lost until then.
    #[command(hide = true)]
    Forget {
        /// CONNECTION or CONNECTION/CHILD.
        name: Name,
        #[command(flatten)]
        ask: Ask,
    },
    /// Becomes a program that dies with its parent; used by `spindle up`.
    #[command(hide = true)]
    Child {
        parent: u32,
        program: PathBuf,
        #[arg(allow_hyphen_values = true, trailing_var_arg = true)]
        arguments: Vec<String>,
    },
}

/// Whom to ask, and how to show the answer.
#[derive(Args)]
struct Ask {
    /// The gateway's configuration, which names its run_dir.
    #[arg(long)]
    config: Option<PathBuf>,
    /// The gateway's run_dir; without this and --config, the default one.
    #[arg(long, conflicts_with = "config")]
    run_dir: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Wait {
    #[command(flatten)]
    ask: Ask,
    /// How long to wait, in seconds.
    #[arg(long, default_value_t = 30.0, value_parser = seconds)]
    timeout: f64,
}

impl Wait {
    fn timeout_ms(&self) -> u64 {
        milliseconds(self.timeout)
    }
}

fn milliseconds(seconds: f64) -> u64 {
    (seconds * 1000.0) as u64
}

fn seconds(text: &str) -> Result<f64, String> {
    let valid = text.parse().ok().filter(|s: &f64| (0.001..=3600.0).contains(s));
    valid.ok_or_else(|| "write seconds from 0.001 to 3600".into())
}

/// CONNECTION or CONNECTION/CHILD.
#[derive(Clone)]
struct Name {
    connection: String,
    child: Option<String>,
}

impl std::str::FromStr for Name {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Name, &'static str> {
        let (connection, child) = match text.split_once('/') {
            Some((connection, child)) => (connection, Some(child)),
            None => (text, None),
        };
        if connection.is_empty() || child == Some("") {
            return Err("write CONNECTION or CONNECTION/CHILD");
        }
        Ok(Name { connection: connection.into(), child: child.map(str::to_owned) })
    }
}

/// Why a command did not succeed, and with which exit code.
struct Unsuccessful {
    code: u8,
    reason: String,
}

impl Unsuccessful {
    fn usage(reason: impl fmt::Display) -> Unsuccessful {
        Unsuccessful { code: 2, reason: reason.to_string() }
    }

    fn failed(reason: impl fmt::Display) -> Unsuccessful {
        Unsuccessful { code: 1, reason: reason.to_string() }
    }
}

/// Runs what the command line says.
pub fn main() -> ExitCode {
    match run(CommandLine::parse().verb) {
        Ok(code) => ExitCode::from(code),
        Err(Unsuccessful { code, reason }) => {
            // Nothing is left to do if standard error is closed.
            let _ = writeln!(std::io::stderr(), "spindle: {reason}");
            ExitCode::from(code)
        }
    }
}

fn run(verb: Verb) -> Result<u8, Unsuccessful> {
    let ask = |ask: &Ask, request, show: fn(serde_json::Value) -> serde_json::Result<String>| {
        let result = client::ask(&run_dir(ask)?, &request)?;
        let text = if ask.json { serde_json::to_string_pretty(&result) } else { show(result) };
        print(&text.map_err(|e| Unsuccessful::failed(format!("an answer of another version: {e}")))?);
        Ok(0)
    };
    let done = |result| serde_json::from_value::<Done>(result).map(|d| d.done);
    match verb {
        Verb::Up { config, new_secret } => {
            let settings = Settings::load(&config).map_err(Unsuccessful::usage)?;
            crate::log_to_stderr();
            supervisor::up(&settings, new_secret).map_err(|refused| Unsuccessful::usage(refused.0))
        }
        Verb::Close { config } => {
            let settings = Settings::load(&config).map_err(Unsuccessful::usage)?;
            let run_dir = &settings.gateway.run_dir;
            crate::daemon::disk::private_directory(run_dir)
                .map_err(|e| format!("{} cannot be made: {e}; name another directory", run_dir.display()))
                .map_err(|problem| Unsuccessful::usage(settings.error("gateway.run_dir", problem)))?;
            Guard::new(&settings).close().map_err(Unsuccessful::usage)?;
            Ok(0)
        }
        Verb::Open { config } => {
            let settings = Settings::load(&config).map_err(Unsuccessful::usage)?;
            if settings.gateway.run_dir.exists() {
                supervisor::lock(&settings).map_err(|e| {
                    Unsuccessful::failed(format!("the guard stays while the gateway runs: {}", e.0))
                })?;
            }
            Guard::new(&settings).open().map_err(Unsuccessful::failed)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(Unsuccessful::failed)?;
            runtime.block_on(crate::interfaces::remove(&settings)).map_err(Unsuccessful::failed)?;
            Ok(0)
        }
        Verb::Reload { dry_run, ask: whom } => {
            // Of the gateway as it runs: its file may be what is wrong.
            let result = client::ask(&run_dir(&whom)?, &Request::Reload { dry_run })?;
            let reload: Reload = serde_json::from_value(result.clone())
                .map_err(|e| Unsuccessful::failed(format!("an answer of another version: {e}")))?;
            let json = || serde_json::to_string_pretty(&result).map_err(Unsuccessful::failed);
            print(&if whom.json { json()? } else { tables::reload(&reload, dry_run) });
            if reload.restart.is_empty() {
                return Ok(0);
            }
            let keys = reload.restart.join(", ");
            Err(Unsuccessful::failed(format!(
                "nothing was changed: {keys} can only be changed by a restart; stop the gateway and start it again, or \
                 change them back and reload"
            )))
        }
        Verb::Upgrade { from, ask: whom } => {
            let from = from.map(std::path::absolute).transpose().map_err(Unsuccessful::usage)?;
            ask(&whom, Request::Upgrade { from }, tables::upgraded)
        }
        Verb::Status(a) => ask(&a, Request::Status, tables::status),
        Verb::ListSas { connection, ask: whom } => ask(&whom, Request::ListSas { connection }, tables::sas),
        Verb::ListConns(a) => ask(&a, Request::ListConns, tables::connections),
        Verb::Stats(a) => ask(&a, Request::Stats, tables::stats),
        Verb::Events(a) => ask(&a, Request::Events, tables::events),
        Verb::Capture(arguments) => capture::run(arguments),
        Verb::Secret(a) => ask(&a, Request::Secret, tables::secret),
        Verb::RotateSecret(wait) => {
            ask(&wait.ask, Request::RotateSecret { timeout_ms: wait.timeout_ms() }, tables::secret)
        }
        Verb::Initiate { name: Name { connection, child }, wait } => {
            let timeout_ms = wait.timeout_ms();
            ask(&wait.ask, Request::Initiate { connection, child, timeout_ms }, done)
        }
        Verb::Forget { name: Name { connection, child }, ask: whom } => {
            ask(&whom, Request::Forget { connection, child }, done)
        }
        Verb::Terminate { name: Name { connection, child }, wait } => {
            let timeout_ms = wait.timeout_ms();
            ask(&wait.ask, Request::Terminate { connection, child, timeout_ms }, done)
        }
        Verb::TakeDown { to, grace, wait } => {
            let (grace_ms, timeout_ms) = (milliseconds(grace), wait.timeout_ms());
            ask(&wait.ask, Request::TakeDown { to, grace_ms, timeout_ms }, tables::taken_down)
        }
        Verb::Rekey { name, ike, child, wait } => {
            let timeout_ms = wait.timeout_ms();
            let ike = ike.map(|connection| Name { connection, child: None });
            let Some(Name { connection, child }) = name.or(ike).or(child) else {
                return Err(Unsuccessful::usage("name a CONNECTION or CONNECTION/CHILD to rekey"));
            };
            ask(&wait.ask, Request::Rekey { connection, child, timeout_ms }, done)
        }
        Verb::Child { parent, program, arguments } => {
            Err(Unsuccessful::failed(supervisor::become_child(parent, &program, &arguments)))
        }
    }
}

fn run_dir(ask: &Ask) -> Result<PathBuf, Unsuccessful> {
    named_run_dir(ask.run_dir.as_ref(), ask.config.as_deref())
}

fn named_run_dir(run_dir: Option<&PathBuf>, config: Option<&Path>) -> Result<PathBuf, Unsuccessful> {
    match (run_dir, config) {
        (Some(run_dir), _) => Ok(run_dir.clone()),
        (None, Some(config)) => {
            Settings::load(config).map(|s| s.gateway.run_dir).map_err(Unsuccessful::usage)
        }
        (None, None) => Ok(PathBuf::from(RUN_DIR)),
    }
}

/// To standard output; a reader that has gone (a pipe to `head`) is no failure.
fn print(text: &str) {
    let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
}
