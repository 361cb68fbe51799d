//! `take-down`: its callers wait until no IKE SA is left.

use super::{Daemon, now};
use crate::protocol::{Response, TakenDown};
use std::net::IpAddr;
use std::time::Duration;
use tokio::sync::oneshot;

impl Daemon {
    pub(super) fn take_down(
        &mut self,
        to: Option<IpAddr>,
        grace_ms: u64,
        timeout_ms: u64,
        answer: oneshot::Sender<Response>,
    ) {
        let grace = Duration::from_millis(grace_ms.min(3_600_000));
        match self.gateway.take_down(now(), to, grace) {
            Ok(()) => {
                self.take_downs.add(self.until(timeout_ms), answer);
                self.end_take_downs();
            }
            Err(refused) => {
                // A caller that has gone needs no answer.
                let _ = answer.send(Response::Error(refused.to_string()));
            }
        }
    }

    /// Answers those who wait, once all peers have gone; and those whose patience ends.
    pub(super) fn end_take_downs(&mut self) {
        let Some(status) = self.gateway.take_down_status().filter(|_| !self.take_downs.is_empty()) else {
            return;
        };
        let (peers, redirected, deleted) = (status.peers, status.redirected, status.deleted);
        if status.left == 0 {
            let done = TakenDown { done: "taken down".into(), peers, redirected, deleted };
            let response =
                serde_json::to_value(done).map_or_else(|e| Response::Error(e.to_string()), Response::Result);
            return self.take_downs.answer_all(&response);
        }
        let left = status.left;
        self.take_downs.answer_late(now(), || {
            format!(
                "not in time: {left} IKE SAs are left, of {peers} told, {redirected} redirected and {deleted} deleted; it \
                 goes on"
            )
        });
    }
}
