//! A planned take-down: no IKE SA begins here any more, and each peer is sent to another gateway (RFC 5685) or told by a
//! Delete that this one goes. What ends by an exchange leaves no journal record, so nobody is shown a token for it,
//! neither now nor after the next start. A peer that answers nothing keeps its IKE SA, and so its record and its right to
//! be told the truth after that start.
//!
//! Those that are redirected all make a handshake with the other gateway, of which we don't know what it can take: they
//! leave at `handshakes_total` a second; the others at once.

use super::Gateway;
use crate::limits::Total;
use crate::stats::Counter;
use spindle_abi::Time;
use spindle_ike::api::{IkeSaId, IkeSpis};
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

/// How a take-down stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TakeDownStatus {
    /// IKE SAs whose peers were told since it began, one way or the other.
    pub peers: usize,
    /// Of these, redirected to another gateway, and it was acknowledged.
    pub redirected: usize,
    /// Of these, ended by a Delete that was exchanged, by whomever.
    pub deleted: usize,
    /// IKE SAs that are left.
    pub left: usize,
}

/// Why a gateway is not taken down.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TakeDownRefused {
    /// Peers would come back here.
    #[error("{0} is an address of this gateway; name another gateway, or none")]
    OwnAddress(IpAddr),
}

/// A take-down under way, or over.
#[derive(Debug)]
pub(super) struct TakingDown {
    to: Option<IpAddr>,
    /// What the other gateway can take is not known here.
    pace: Total,
    /// To be dismissed as soon as it can take another handshake.
    waiting: VecDeque<IkeSaId>,
    /// Those dismissed that have not ended: was it redirected?
    dismissed: HashMap<IkeSaId, bool>,
    /// Of those dismissed that were rekeyed then: the answer to a REDIRECT may come on the old one still.
    successors: HashMap<IkeSaId, IkeSaId>,
    peers: usize,
    redirected: usize,
    deleted: usize,
}

impl TakingDown {
    /// When the next one is to be dismissed.
    pub(super) fn deadline(&self) -> Option<Time> {
        (!self.waiting.is_empty()).then(|| self.pace.room_at())
    }

    /// The peer of this IKE SA is being told.
    pub(super) fn told(&mut self, ike: IkeSaId) {
        self.dismissed.entry(ike).or_insert_with(|| {
            self.peers += 1;
            false
        });
    }

    /// What is under way on one IKE SA goes on on its successor.
    pub(super) fn rekeyed(&mut self, old: IkeSaId, new: IkeSaId) {
        if let Some(redirected) = self.dismissed.remove(&old) {
            self.dismissed.insert(new, redirected);
            self.successors.insert(old, new);
        }
        self.waiting.iter_mut().filter(|ike| **ike == old).for_each(|ike| *ike = new);
    }
}

impl Gateway {
    /// Takes this gateway down: its peers go to the one at `to`, where they can be redirected, and have `grace` for that.
    /// Drive the gateway until nothing is [left](TakeDownStatus::left) or patience ends. Said again, it goes on as before,
    /// but for what is said differently.
    pub fn take_down(
        &mut self,
        now: Time,
        to: Option<IpAddr>,
        grace: Duration,
    ) -> Result<(), TakeDownRefused> {
        if let Some(to) = to.filter(|to| self.config.connections.iter().any(|c| c.local == *to)) {
            return Err(TakeDownRefused::OwnAddress(to));
        }
        self.reconnect.clear();
        self.starting.clear();
        self.endpoint.take_down(now, to, grace);
        let before = self.taking_down.take();
        let again = before.as_ref().is_some_and(|before| before.to == to);
        let mut taking_down = before.unwrap_or_else(|| TakingDown {
            to,
            pace: Total::new(self.config.limits.handshakes_total),
            waiting: VecDeque::new(),
            dismissed: HashMap::new(),
            successors: HashMap::new(),
            peers: 0,
            redirected: 0,
            deleted: 0,
        });
        taking_down.to = to;
        taking_down.waiting.clear();
        for ike in self.journal.all() {
            if again && taking_down.dismissed.contains_key(&ike) {
                continue;
            }
            if self.endpoint.may_redirect(ike) {
                taking_down.waiting.push_back(ike);
            } else {
                taking_down.told(ike);
                self.endpoint.dismiss(now, ike);
            }
        }
        self.taking_down = Some(taking_down);
        let whereto = to.map_or_else(|| "peers are told by Delete".into(), |to| format!("peers go to {to}"));
        self.report("taken-down", None, None, None, whereto);
        self.drain(now);
        Ok(())
    }

    /// How the take-down stands; `None` if there is none.
    pub fn take_down_status(&self) -> Option<TakeDownStatus> {
        let TakingDown { peers, redirected, deleted, .. } = *self.taking_down.as_ref()?;
        Some(TakeDownStatus { peers, redirected, deleted, left: self.journal.len() })
    }

    /// Redirects the next peer, if the other gateway can take another handshake.
    pub(super) fn dismiss_next(&mut self, now: Time) -> bool {
        let Some(taking_down) = &mut self.taking_down else { return false };
        if !taking_down.pace.has_room(now) {
            return false;
        }
        let Some(ike) = taking_down.waiting.pop_front() else { return false };
        if self.journal.ike_sa(ike).is_some() {
            taking_down.pace.take(now);
            taking_down.told(ike);
            self.endpoint.dismiss(now, ike);
        }
        true
    }

    /// This IKE SA's peer knows where to go.
    pub(super) fn peer_redirected(&mut self, ike: IkeSaId, to: IpAddr) {
        self.stats.count(Counter::PeersRedirected);
        let mut ike = ike;
        if let Some(taking_down) = &mut self.taking_down {
            ike = taking_down.successors.get(&ike).copied().unwrap_or(ike);
            taking_down.told(ike);
            let before = taking_down.dismissed.insert(ike, true);
            taking_down.redirected += usize::from(before != Some(true));
        }
        let row = self.journal.ike_sa(ike);
        let (connection, spis) = (row.map(|r| r.connection.clone()), row.map(|r| r.spis));
        self.report("redirected", connection, spis, None, format!("to {to}"));
    }

    /// An IKE SA ended.
    pub(super) fn note_departure(&mut self, ike: IkeSaId, spis: IkeSpis) {
        let Some(taking_down) = &mut self.taking_down else { return };
        taking_down.successors.remove(&ike);
        if taking_down.dismissed.remove(&ike).is_some() && self.endpoint.ended_by_exchange(spis) {
            taking_down.deleted += 1;
        }
    }
}
