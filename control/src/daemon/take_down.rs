//! `take-down`: its callers wait until no IKE SA is left.

use super::{Daemon, now};
use crate::protocol::{Response, TakenDown};
use spindle_abi::Time;
use std::net::IpAddr;
use std::time::Duration;
use tokio::sync::oneshot;

/// Callers of `take-down`, each with the end of its patience.
#[derive(Default)]
pub(super) struct TakeDowns(Vec<(Time, oneshot::Sender<Response>)>);

impl TakeDowns {
    pub(super) fn deadline(&self) -> Option<Time> {
        self.0.iter().map(|(at, _)| *at).min()
    }
}

impl Daemon<'_> {
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
                self.take_downs.0.push((self.until(timeout_ms), answer));
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
        let Some(status) = self.gateway.take_down_status().filter(|_| !self.take_downs.0.is_empty()) else {
            return;
        };
        let (peers, redirected, deleted) = (status.peers, status.redirected, status.deleted);
        for (at, answer) in std::mem::take(&mut self.take_downs.0) {
            if status.left == 0 {
                let done = TakenDown { done: "taken down".into(), peers, redirected, deleted };
                let response = serde_json::to_value(done)
                    .map_or_else(|e| Response::Error(e.to_string()), Response::Result);
                let _ = answer.send(response);
            } else if at <= now() {
                let left = status.left;
                let text = format!(
                    "not in time: {left} IKE SAs are left, of {peers} told, {redirected} redirected and {deleted} \
                     deleted; it goes on"
                );
                let _ = answer.send(Response::Error(text));
            } else {
                self.take_downs.0.push((at, answer));
            }
        }
    }
}
