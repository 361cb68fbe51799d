//! `spindle reload`: the file as it is now, held against the configuration that runs. What is shown beforehand and what is
//! done are one comparison ([`spindle_recovery::Changes`]); a change that needs a restart refuses all of it.

use super::{Daemon, now};
use crate::config::Settings;
use crate::guard::Guard;
use crate::protocol::{ChangedConnection, ChangedPolicies, Reload, Response};
use spindle_recovery::Changes;

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
            self.settings = new;
            self.keep_configuration();
            self.set_interfaces();
            plan.applied = true;
        }
        serde_json::to_value(plan).map_or_else(|e| Response::Error(e.to_string()), Response::Result)
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
