//! What is asked over the control socket: shown at once, or begun and answered when it came true.

use super::keep::Keeper;
use super::server::Asked;
use super::wait::{Verdict, Waiter};
use super::{Daemon, now, show};
use crate::protocol::{Done, Request, Response, Stats, Status};
use spindle_abi::Time;
use std::time::Duration;

impl Daemon {
    pub(super) fn answer(&mut self, Asked { request, caller, lines, answer }: Asked) {
        let waiter = match request {
            Request::Initiate { connection, child, timeout_ms } => {
                let begun = self.gateway.initiate(now(), &connection, child.as_deref());
                begun.map(|()| Waiter::initiate(connection, child, self.until(timeout_ms)))
            }
            Request::Terminate { connection, child, timeout_ms } => {
                let before = self.gateway.sas_of(&connection);
                let begun = self.gateway.terminate(now(), &connection, child.as_deref());
                begun.map(|_| Waiter::terminate(connection, child, &before, self.until(timeout_ms)))
            }
            Request::Rekey { connection, child, timeout_ms } => {
                let before = self.gateway.sas_of(&connection);
                let begun = self.gateway.rekey(now(), &connection, child.as_deref());
                begun.map(|_| Waiter::rekey(connection, child, &before, self.until(timeout_ms)))
            }
            Request::Forget { connection, child } => {
                let name = child.as_ref().map_or(connection.clone(), |child| format!("{connection}/{child}"));
                let forgotten = self.gateway.forget(now(), &connection, child.as_deref());
                let response = match forgotten.map(|sas| Done { done: format!("{name}: forgotten"), sas }) {
                    Ok(done) => serde_json::to_value(done)
                        .map_or_else(|e| Response::Error(e.to_string()), Response::Result),
                    Err(refused) => Response::Error(refused.to_string()),
                };
                let _ = answer.send(response);
                return;
            }
            Request::WatchSas { connection, keys } => {
                return self.watch_sas(connection, keys, caller, lines, answer);
            }
            Request::CheckConfiguration { program } => return self.check_configuration(program, answer),
            Request::Reload { dry_run } => {
                // A caller that has gone needs no answer.
                let _ = answer.send(self.reload(dry_run));
                return;
            }
            Request::RotateSecret { timeout_ms } => return self.rotate_secret(timeout_ms, answer),
            Request::TakeDown { to, grace_ms, timeout_ms } => {
                return self.take_down(to, grace_ms, timeout_ms, answer);
            }
            simple => {
                // A caller that has gone needs no answer.
                let _ = answer.send(self.show(&simple));
                return;
            }
        };
        match waiter {
            Ok(waiter) => {
                self.waiters.push(waiter.answering(answer));
                self.settle();
            }
            Err(refused) => {
                let _ = answer.send(Response::Error(refused.to_string()));
            }
        }
    }

    pub(super) fn until(&self, timeout_ms: u64) -> Time {
        now().after(Duration::from_millis(timeout_ms.min(3_600_000)))
    }

    /// Answers those whose wish came true or cannot any more.
    pub(super) fn settle(&mut self) {
        let at = now();
        self.waiters.retain_mut(|waiter| {
            match waiter.verdict(&self.gateway.sas_of(waiter.connection()), at) {
                Verdict::Waiting => !waiter.is_abandoned(),
                Verdict::Settled(response) => {
                    waiter.settle(response);
                    false
                }
            }
        });
    }

    pub(super) fn show(&self, request: &Request) -> Response {
        let shown = match request {
            Request::Status => {
                let (ike_sas, child_sas) = self.gateway.count();
                serde_json::to_value(Status {
                    ike_sas,
                    child_sas,
                    tokens: self.status.tokens && self.gateway.is_token_maker(),
                    taken_down: self.gateway.take_down_status().is_some(),
                    ..self.status.clone()
                })
            }
            Request::ListSas { connection } => {
                let sas = match connection {
                    None => self.gateway.sas(),
                    Some(name) => match self.gateway.configured(name) {
                        Ok(_) => self.gateway.sas_of(name),
                        Err(refused) => return Response::Error(refused.to_string()),
                    },
                };
                let workers = self.settings.gateway.workers as u16;
                let show = |sa| show::ike_sa(sa, &*self.activity, now(), workers);
                let shown: Vec<_> = sas.iter().map(show).collect();
                serde_json::to_value(shown)
            }
            Request::ListConns => {
                // Both in the order of the configuration.
                let status = self.gateway.connections();
                let all = self.settings.connections.iter().zip(&status).map(|(c, s)| show::connection(c, s));
                serde_json::to_value(all.collect::<Vec<_>>())
            }
            Request::Events => serde_json::to_value(self.events.all()),
            Request::Secret => serde_json::to_value(show::secret(&self.gateway.secret())),
            _ => serde_json::to_value(self.stats()),
        };
        match shown {
            Ok(value) => Response::Result(value),
            Err(e) => Response::Error(e.to_string()),
        }
    }

    fn stats(&self) -> Stats {
        let owned = |(name, value): (&str, u64)| (name.to_owned(), value);
        let control = self.gateway.stats().into_iter().map(owned);
        let kept = self.keeper.iter().flat_map(Keeper::stats);
        let ours = self
            .sockets
            .stats()
            .chain(self.bridge.stats())
            .chain(self.journal.stats())
            .chain(kept)
            .map(owned);
        let dataplane = self.bridge.dataplane_counters().into_iter().collect();
        Stats { control: control.chain(ours).collect(), packets: show::equation(&dataplane), dataplane }
    }
}
