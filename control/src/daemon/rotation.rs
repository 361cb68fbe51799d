//! `rotate-secret`, and the writes of the secret's file while the gateway runs.

use super::{Daemon, SystemRandom, now, show};
use crate::protocol::{Request, Response};
use spindle_recovery::api::{Generation, Input, Report, TokenMethod};
use spindle_recovery::store::{SmallFile, write_secrets};
use tokio::sync::oneshot;

impl Daemon {
    /// Rare and small, so that the loop may wait for the disk.
    pub(super) fn write_secrets(&mut self, new: Option<(TokenMethod, u64)>, keep: Vec<Generation>) {
        let written = write_secrets(&mut self.files, &mut SystemRandom, new, keep).map_err(|e| {
            tracing::error!("{}: {e}", self.files.path(SmallFile::Secret).display());
        });
        self.gateway.handle(now(), Input::Secrets(written.ok()));
    }

    pub(super) fn rotate_secret(&mut self, timeout_ms: u64, answer: oneshot::Sender<Response>) {
        match self.gateway.rotate_secret(now()) {
            Ok(()) => self.rotations.add(self.until(timeout_ms), answer),
            Err(refused) => {
                // A caller that has gone needs no answer.
                let _ = answer.send(Response::Error(refused.to_string()));
            }
        }
    }

    /// The new generation is in use: that is what they waited for.
    pub(super) fn note_rotation(&mut self, report: &Report) {
        if report.name == "secret-rotated" && !self.rotations.is_empty() {
            let secret = self.show(&Request::Secret);
            self.rotations.answer_all(&secret);
        }
    }

    /// Tells those whose patience ends why the rotation takes longer.
    pub(super) fn end_rotations(&mut self) {
        self.rotations.answer_late(now(), || {
            let secret = show::secret(&self.gateway.secret());
            let why = match secret.generations.last() {
                Some(oldest) if oldest.ike_sas > 0 => {
                    format!("peers of {} IKE SAs have yet to acknowledge a newer token", oldest.ike_sas)
                }
                Some(oldest) if oldest.needed_until_us.is_some() => {
                    "peers of IKE SAs that ended without an exchange may need the oldest generation still; `spindle \
                     secret` says until when"
                        .into()
                }
                _ => "its file is yet to be written".into(),
            };
            format!("not in time: {why}; the rotation goes on")
        });
    }
}
