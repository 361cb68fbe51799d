//! `spindle reload`: the file as it is now, held against the configuration that runs. What is shown beforehand and what is
//! done are one comparison ([`spindle_recovery::Changes`]); a change that needs a restart refuses all of it.

use super::{Daemon, now};
use crate::config::Settings;
use crate::guard::Guard;
use crate::programs::CHECK;
use crate::protocol::{ChangedConnection, ChangedPolicies, Reload, Response};
use spindle_recovery::Changes;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::oneshot;

/// For another program to look at a configuration.
const PATIENCE: Duration = Duration::from_secs(5);

impl Daemon {
    /// The file is read anew, and followed unless this is a `dry_run`.
    pub(super) fn reload(&mut self, dry_run: bool) -> Response {
        let new = match Settings::load(&self.settings.file) {
            Ok(new) => new,
            Err(e) => return Response::Refused(e.to_string()),
        };
        let config = self.config(&new);
        let changes = self.gateway.changes(&config);
        let mut plan = plan(&self.settings, &new, changes);
        if !dry_run && plan.restart.is_empty() {
            // What may fail comes before anything has changed.
            if let Err(problem) = self.prepare(&new) {
                return Response::Error(problem);
            }
            self.gateway.reconfigure(now(), config);
            self.settings = Arc::new(new);
            self.keep_configuration();
            self.set_interfaces();
            plan.applied = true;
        }
        serde_json::to_value(plan).map_or_else(|e| Response::Error(e.to_string()), Response::Result)
    }

    /// Has another program look at the configuration that runs, on its standard input.
    pub(super) fn check_configuration(&self, program: PathBuf, answer: oneshot::Sender<Response>) {
        let (text, file) = (self.settings.source().clone(), self.settings.file.clone());
        tokio::spawn(async move {
            let checked = tokio::time::timeout(PATIENCE, check(&program, &file, &text)).await;
            let response = match checked {
                Ok(Ok(())) => Response::Result(serde_json::Value::Null),
                Ok(Err(why)) => {
                    Response::Error(format!("the new program refuses the configuration that runs: {why}"))
                }
                Err(_) => {
                    Response::Error("the new program does not say whether it takes the configuration".into())
                }
            };
            // A caller that has gone needs no answer.
            let _ = answer.send(response);
        });
    }

    /// Sockets for addresses of ours that are new, and the guard around what is protected from here on.
    fn prepare(&mut self, new: &Settings) -> Result<(), String> {
        self.sockets.add(&new.local_addresses()).map_err(|(socket, e)| {
            format!(
                "UDP {socket} cannot be bound: {e}; give this machine the address, or correct local.address"
            )
        })?;
        Guard::new(new).close().map_err(|e| e.to_string())
    }
}

async fn check(program: &Path, file: &Path, text: &str) -> Result<(), String> {
    let mut command = Command::new(program);
    command.arg(CHECK).arg(file).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| format!("it cannot be started: {e}"))?;
    if let Some(mut input) = child.stdin.take() {
        // One that reads nothing says why by its end.
        let _ = input.write_all(text.as_bytes()).await;
    }
    let output = child.wait_with_output().await.map_err(|e| e.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{} ({})", said.trim(), output.status))
}

fn plan(old: &Settings, new: &Settings, changes: Changes) -> Reload {
    let secrets = changes.changed.iter().filter(|change| change.secret).map(|change| change.name.clone());
    let mut restart = old.needs_restart(new);
    restart.extend(changes.restart);
    Reload {
        applied: false,
        added: changes.added,
        removed: changes.removed,
        secrets: secrets.collect(),
        changed: changes
            .changed
            .into_iter()
            .map(|change| ChangedConnection {
                name: change.name,
                keys: change.keys,
                ike_sas_end: change.ends,
                child_sas_end: change.children_ended,
            })
            .collect(),
        policies: ChangedPolicies {
            added: changes.policies.added,
            removed: changes.policies.removed,
            moved: changes.policies.moved,
            changed: changes.policies.changed,
        },
        restart,
    }
}
