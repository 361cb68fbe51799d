//! Who wants to know of the Child SAs' two SAs, those that there are and those that come: `spindle capture`, by connection and,
//! where the operator's configuration lets root have them, with keys.

use super::server::{Caller, Line};
use super::{Daemon, wall_clock_us};
use crate::protocol::{Response, WatchedSa};
use spindle_abi::{Command, SaParameters, Suite};
use spindle_recovery::api::Report;
use std::borrow::Cow;
use std::fmt::Write;
use tokio::sync::{mpsc, oneshot};
use zeroize::Zeroizing;

/// Octets of one SA's line at most, so that no copy of a key stays behind where a buffer grew.
const LONGEST: usize = 512;

/// All of them.
#[derive(Default)]
pub(super) struct Watchers(Vec<Watcher>);

struct Watcher {
    connection: Option<String>,
    keys: bool,
    lines: mpsc::Sender<Line>,
}

/// As in proposals.
fn name(suite: Suite) -> &'static str {
    match suite {
        Suite::Aes128Gcm => "aes128gcm16",
        Suite::Aes192Gcm => "aes192gcm16",
        Suite::Aes256Gcm => "aes256gcm16",
        Suite::ChaCha20Poly1305 => "chacha20poly1305",
    }
}

impl Watcher {
    /// These SAs, each of a connection, as a line.
    fn line<'s>(&self, sas: impl Iterator<Item = (bool, &'s SaParameters, &'s str)>) -> Option<Line> {
        let sas: Vec<_> =
            sas.filter(|(.., of)| self.connection.as_deref().is_none_or(|c| c == *of)).collect();
        let mut line = Zeroizing::new(Vec::with_capacity(4 + sas.len() * LONGEST));
        line.push(b'[');
        for (number, (inbound, sa, connection)) in sas.iter().enumerate() {
            let key = self.keys.then(|| {
                let keymat = sa.keymat.as_bytes();
                let mut digits = Zeroizing::new(String::with_capacity(2 * keymat.len()));
                for octet in keymat {
                    // Writing to a String cannot fail.
                    let _ = write!(digits, "{octet:02x}");
                }
                digits
            });
            let (local, remote) = (sa.local.ip(), sa.remote.ip());
            let (source, destination) = if *inbound { (remote, local) } else { (local, remote) };
            let watched = WatchedSa {
                connection: Cow::Borrowed(connection),
                spi: sa.spi.0,
                source,
                destination,
                suite: name(sa.suite).into(),
                key: key.as_deref().map(String::as_str),
            };
            if number > 0 {
                line.push(b',');
            }
            serde_json::to_writer(&mut *line, &watched).ok()?;
        }
        line.extend(b"]\n");
        Some(line)
    }
}

impl Daemon {
    /// Tells who asks of the SAs that there are, and from now on of those that come.
    pub(super) fn watch_sas(
        &mut self,
        connection: Option<String>,
        keys: bool,
        caller: Caller,
        lines: Option<mpsc::Sender<Line>>,
        answer: oneshot::Sender<Response>,
    ) {
        let response = match (self.may_watch(connection.as_deref(), keys, caller), lines) {
            (Ok(()), Some(lines)) => {
                let watcher = Watcher { connection, keys, lines };
                let all = self.gateway.installed();
                let sas = all
                    .filter_map(|(inbound, sa)| Some((inbound, sa, self.gateway.connection_of(sa.policy)?)));
                if let Some(line) = watcher.line(sas) {
                    let _ = watcher.lines.try_send(line);
                }
                self.watchers.0.push(watcher);
                Response::Result(serde_json::Value::Null)
            }
            (Ok(()), None) => Response::Error("nothing to be watched by".into()),
            (Err(why), _) => Response::Error(why),
        };
        // A caller that has gone needs no answer.
        let _ = answer.send(response);
    }

    /// Keys are for root alone, and only where the configuration says so: a command alone must not let them out. Whoever
    /// asks for them, it is logged.
    fn may_watch(&mut self, connection: Option<&str>, keys: bool, caller: Caller) -> Result<(), String> {
        if let Some(name) = connection {
            self.gateway.configured(name).map_err(|refused| refused.to_string())?;
        }
        if !keys {
            return Ok(());
        }
        let Caller { uid, pid } = caller;
        let refusal = if uid != 0 {
            Some("only root may have keys".to_owned())
        } else if !self.settings.gateway.capture_keys {
            let problem =
                "is not true, so no key leaves the gateway; write `capture_keys = true` and start it anew";
            Some(self.settings.error("gateway.capture_keys", problem).to_string())
        } else {
            None
        };
        let of = connection.unwrap_or("all connections");
        let what = match refusal {
            Some(_) => "were refused to",
            None => "go, now and as they come, to",
        };
        let detail = format!("the keys of Child SAs of {of} {what} process {pid} of user {uid}");
        let connection = connection.map(str::to_owned);
        let report = Report { name: "capture-keys", connection, spis: None, spi: None, detail };
        self.note(wall_clock_us(), &report);
        refusal.map_or(Ok(()), Err)
    }

    /// Tells who watches of an SA that this command makes or changes.
    pub(super) fn tell_watchers(&mut self, command: &Command) {
        if self.watchers.0.is_empty() {
            return;
        }
        let (inbound, sa) = match command {
            Command::InstallInbound { sa, .. } => (true, sa),
            Command::InstallOutbound { sa } => (false, sa),
            Command::Readdress { index, .. } => {
                let Some(sa) = self.gateway.installed().find(|(_, sa)| sa.index == *index) else { return };
                sa
            }
            _ => return,
        };
        let Some(connection) = self.gateway.connection_of(sa.policy) else { return };
        let mut gone = Vec::new();
        for (number, watcher) in self.watchers.0.iter().enumerate() {
            let line = watcher.line([(inbound, sa, connection)].into_iter());
            // One that doesn't read is told no more.
            if line.is_none_or(|line| watcher.lines.try_send(line).is_err()) {
                gone.push(number);
            }
        }
        gone.into_iter().rev().for_each(|number| drop(self.watchers.0.remove(number)));
    }
}
