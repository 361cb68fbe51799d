//! What the gateway begins by itself to have its peers back: after a start of its own, and after a proof of theirs.
//!
//! *After a start* the journal says whom we had. Where a connection's methods say so, we initiate, and INITIAL_CONTACT
//! ends what the peer still holds (RFC 7296 section 2.4); else, if the operator wants it, the peers are told their tokens
//! unasked (RFC 6290 section 8.2). All of it goes at the pace of handshakes, whoever's traffic comes first.

use super::Gateway;
use crate::api::{JournalRecord, Method};
use crate::reconnect::{Due, Why};
use crate::stats::Counter;
use spindle_abi::{Time, Trigger};
use spindle_ike::api::{ConnectionConfig, StartAction};
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

/// So long a method that is preferred to initiating ourselves has to bring the peer back.
const PATIENCE: Duration = Duration::from_secs(2);
/// Handshakes that nothing had allowed hold others back so long at most.
const DEBT: Duration = Duration::from_secs(10);
/// A peer that has initiated first makes its Child SAs within this time; then we make what is missing.
const PEERS_TURN: Duration = Duration::from_secs(1);
/// So many handshakes may begin at once, or a second's if that's fewer. Right after a start the next hop's address is not
/// known, and the kernel keeps somewhat more than this for it; what it has no room for is lost.
const AT_ONCE: u32 = 100;
/// At a pace that has grown, handshakes of one of so many parts of a second.
const AT_ONCE_SHARE: u32 = 20;
/// What starts with the gateway goes evenly: at once only what is due within one of so many parts of a second, as a
/// driver's timer may be late by a millisecond or two each time.
const EVENLY_SHARE: u32 = 200;

/// How many handshakes may begin at once at a pace of so many a second, and so many at first.
pub(super) fn at_once(first: u32, pace: u32) -> u32 {
    first.min(AT_ONCE).max(pace / AT_ONCE_SHARE)
}

/// The same for those that are to go evenly.
pub(super) fn evenly(pace: u32) -> u32 {
    (pace / EVENLY_SHARE).max(1)
}

impl Gateway {
    /// The driver has worked so long in all, since it began: not asleep, whatever it worked at, but for waits that serve
    /// all that come meanwhile. To be told after each
    /// round of work, so that the pace of handshakes follows what can be taken; for who never tells it stays
    /// [`Limits::handshakes_total`](crate::api::Limits::handshakes_total).
    pub fn worked(&mut self, now: Time, in_all: Duration) {
        self.capacity.answered(self.endpoint.take_answers());
        let Some(pace) = self.capacity.worked(now, in_all) else { return };
        self.pace.set(now, pace, at_once(self.config.limits.handshakes_total, pace));
        self.start_pace.set(now, pace, evenly(pace));
        self.answers.set_pace(now, pace);
    }

    /// We have just become ready, or these addresses of ours have come to this machine.
    pub(super) fn contact_peers(&mut self, now: Time, at: impl Fn(IpAddr) -> bool) {
        let mut lost: BTreeMap<&str, Vec<&JournalRecord>> = BTreeMap::new();
        for record in self.former.records() {
            lost.entry(&record.connection).or_default().push(record);
        }
        // Those adopted stand already.
        let stands = |name: &str| self.journal.of_connection(name).next().is_some();
        for connection in self.config.connections.iter().filter(|c| at(c.local) && !stands(&c.name)) {
            let methods = self.config.methods_of(&connection.name);
            let Some(place) = methods.iter().position(|m| *m == Method::InitialContact) else { continue };
            let records = lost.get(connection.name.as_str()).map_or(&[][..], Vec::as_slice);
            // What the journal lost, or never held, was up if traffic or the start may have brought it up.
            let children = match children_of(connection, records) {
                recorded if !recorded.is_empty() => recorded,
                _ => connection
                    .children
                    .iter()
                    .filter(|c| starts(connection, c.start_action))
                    .map(|c| c.name.clone())
                    .collect(),
            };
            let newest = records.iter().max_by_key(|record| (record.incarnation, record.hard_expiry));
            if let (None, Some(record)) = (connection.remote, newest) {
                self.endpoint.peer_was_at(&connection.name, record.local.port(), record.remote);
            } else if connection.remote.is_none() {
                continue;
            }
            if !children.is_empty() {
                let preferred = !methods[..place].iter().any(|m| matches!(m, Method::Qcd | Method::Sir));
                let at = if preferred { now } else { now.after(PATIENCE) };
                self.reconnect.started(at, &connection.name, children, preferred);
            }
        }
        // Once in an incarnation.
        if self.config.proactive && !self.has_adopted {
            let mut told = HashSet::new();
            let mut records: Vec<_> = self.former.records().filter(|record| at(record.local.ip())).collect();
            // What was lost before that, most peers know already. What names two parents shows the tokens of both.
            records.sort_unstable_by_key(|record| {
                (Reverse(record.incarnation), record.earlier_parent.is_none(), record.spi)
            });
            for record in records {
                if told.insert(record.parent) {
                    told.extend(record.earlier_parent);
                    self.unasked.push_back(record.spi);
                }
            }
        }
    }

    /// Connections at these addresses of ours are to start, where they are configured so.
    pub(super) fn start_connections(&mut self, at: impl Fn(IpAddr) -> bool) {
        let here = self.config.connections.iter().enumerate().filter(|(_, connection)| at(connection.local));
        self.starting.extend(here.map(|(number, _)| number));
    }

    /// Starts the next connection again whose IKE SA was given up, or whose initiation failed, if another handshake can be
    /// taken.
    pub(super) fn start_again(&mut self, now: Time) -> bool {
        let starts = self.pace.has_room(now) && self.endpoint.start_due(now);
        if starts {
            self.pace.take(now);
        }
        starts
    }

    /// Starts the next connection that is configured to start, if another handshake can be taken; evenly, for many at once
    /// would be lost on the way, the first ones already while the kernel looks for the next hop.
    pub(super) fn start_next(&mut self, now: Time) -> bool {
        while self.pace.has_room(now) && self.start_pace.has_room(now) {
            let Some(number) = self.starting.pop_front() else { return false };
            if self.endpoint.start_connection(now, number) {
                self.pace.take(now);
                self.start_pace.take(now);
                return true;
            }
        }
        false
    }

    /// Tells the next peer its token unasked, if another handshake can be taken: one that has not been told, is not back
    /// and that we don't initiate to.
    pub(super) fn tell_unasked(&mut self, now: Time) -> bool {
        if !self.pace.has_room(now) {
            return false;
        }
        let Some(spi) = self.unasked.pop_front() else { return false };
        let Some(former) = self.former.row(spi) else { return true };
        let record = &former.record;
        let back = self.journal.of_connection(&record.connection).next().is_some();
        if former.answered.is_some()
            || self.turns.line.contains(record.parent)
            || back
            || self.reconnect.is_preferred(&record.connection, now)
        {
            return true;
        }
        let endpoint = &self.endpoint;
        let answer = self.answers.unasked(record, &|spi| endpoint.spi_in_use(spi), &mut self.stats);
        if let Some(answer) = answer {
            former.answered = Some(now);
            let (connection, parent) = (former.record.connection.clone(), former.record.parent);
            self.told(now, &connection, parent);
            self.answer(now, answer, Some(connection), parent, Some(spi));
        }
        true
    }

    /// All children are asked for before the first answer can come, so they join one IKE SA. Those that stand, by the
    /// peer's doing, are not made again.
    pub(super) fn initiate_due(&mut self, now: Time, due: &Due) {
        let connection = due.connection.as_str();
        let standing: Vec<_> = self.journal.of_connection(connection).map(|(id, _)| id).collect();
        let made: HashSet<String> = standing.iter().flat_map(|ike| self.journal.child_names(*ike)).collect();
        let mut names: Vec<Option<&str>> = due
            .children
            .iter()
            .filter(|name| !made.contains(*name))
            .map(|name| Some(name.as_str()))
            .collect();
        if !standing.is_empty() {
            self.reconnect.forget(connection);
            if names.is_empty() {
                return;
            }
        }
        if names.is_empty() {
            names.push(None);
        }
        let (counter, why) = match due.why {
            Why::Proof => (Counter::Reinitiated, "after a proof"),
            Why::Start { .. } => (Counter::InitiatedAfterStart, "after the start"),
        };
        self.stats.count(counter);
        self.report("initiating", Some(connection.to_owned()), None, None, why.into());
        for child in names {
            if let Err(refused) = self.endpoint.initiate(now, connection, child, true) {
                let detail = refused.to_string();
                self.report("initiation-failed", Some(connection.to_owned()), None, None, detail);
                self.reconnect.forget(connection);
            }
        }
    }

    /// An IKE SA of this connection is authenticated. If it is the one initiated here, the children are under way on it.
    pub(super) fn reconnect_established(&mut self, now: Time, connection: &str, initiator: bool) {
        if initiator && self.reconnect.is_under_way(connection) {
            self.reconnect.forget(connection);
        } else {
            self.reconnect.postpone(connection, now.after(PEERS_TURN));
        }
    }

    /// A peer made its first IKE SA in this incarnation. If nothing that was paced brought it here, it takes from the pace
    /// now: so what is answered without a record of the peer – anybody's requests, which cost nothing until somebody is
    /// authenticated – ends in no more handshakes than the rest.
    pub(super) fn peer_is_back(&mut self, now: Time, connection: &str) {
        if !self.told.remove(connection) && !self.reconnect.is_under_way(connection) {
            self.pace.owe(now, DEBT);
        }
    }

    /// A packet waits for this policy's SA. Where its connection is about to be initiated, it goes to the head there.
    pub(super) fn acquire(&mut self, now: Time, policy: u32, packet: Trigger) {
        let connection = self.policies.get(&policy);
        if let Some(connection) = connection.filter(|connection| self.reconnect.is_due(connection, now)) {
            return self.reconnect.hurry(connection);
        }
        self.endpoint.acquire(now, policy, packet);
    }
}

/// The children in the journal that are still configured, in their order.
fn children_of(connection: &ConnectionConfig, records: &[&JournalRecord]) -> Vec<String> {
    let names = connection.children.iter().map(|child| &child.name);
    names.filter(|name| records.iter().any(|record| record.child == **name)).cloned().collect()
}

/// Does a child come up without an operator, by traffic or at the start?
fn starts(connection: &ConnectionConfig, child: StartAction) -> bool {
    child != StartAction::None || connection.start_action == StartAction::Start
}
