//! Our requests: what waits, what is outstanding, how it is sent, sent again, given up. The window is 1 (RFC 7296
//! section 2.3): one request at a time.

use crate::api::*;
use crate::auth::Authenticating;
use crate::create_child::ChildOffer;
use crate::endpoint::Endpoint;
use crate::init::Initiation;
use crate::kept::field::{fields, variants};
use crate::rekey_ike::IkeOffer;
use crate::resume::Resumption;
use crate::retransmit::{Due, Schedule};
use crate::sa::{IkeSa, State};
use crate::wire::{Delete, Payload, exchange};
use spindle_abi::{Spi, Time};
use std::net::IpAddr;
use std::time::Duration;

/// An exchange that waits for its turn.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Task {
    /// A Child SA of the child with this name.
    CreateChild(String),
    /// Child SAs for workers that have none, beside the first one of the child with this name (RFC 9611).
    CreateForWorkers(String),
    RekeyChild(ChildSaId),
    /// The peer has lost it: another one beside it, then its Delete.
    ReplaceChild(ChildSaId),
    DeleteChild(ChildSaId),
    /// Of a Child SA that the peer has and we have not.
    DeleteSpi(Spi),
    /// The peer sends on this SPI, which is unknown here.
    TellInvalidSpi(Spi),
    RekeyIke,
    DeleteIke,
    /// An empty INFORMATIONAL.
    Liveness,
    /// Our QCD token, after an IKE rekey that we initiated (RFC 6290 section 4.3), or in place of one that can be made
    /// no longer (section 4.4).
    SendToken,
    /// For a ticket (RFC 5723 section 4.1).
    RequestTicket,
    /// The peer is to go to another gateway (RFC 5685 section 5).
    Redirect,
}

variants!(Task {
    0 = CreateChild(name),
    1 = RekeyChild(child),
    2 = ReplaceChild(child),
    3 = DeleteChild(child),
    4 = DeleteSpi(spi),
    5 = TellInvalidSpi(spi),
    6 = RekeyIke,
    7 = DeleteIke,
    8 = Liveness,
    9 = SendToken,
    10 = RequestTicket,
    11 = Redirect,
    12 = CreateForWorkers(name),
});

/// What an outstanding request is for, and what its response needs.
pub(crate) enum Purpose {
    Init(Box<Initiation>),
    Resume(Box<Resumption>),
    Auth(Box<Authenticating>),
    CreateChild(Box<ChildOffer>),
    RekeyIke(Box<IkeOffer>),
    DeleteChildren(Vec<ChildSaId>),
    DeleteIke,
    /// Liveness or a notification: any response will do.
    Informational,
    /// Our QCD token: the response tells that it arrived.
    Token,
    /// REDIRECT: the response tells that it arrived.
    Redirect(IpAddr),
    /// The responder's AUTH is wrong; it is told (RFC 7296 section 2.21.2).
    RefuseResponder,
}

// An IKE SA in its first exchange has no keys yet, and is not kept.
variants!(Purpose {
    0 = Auth(auth),
    1 = CreateChild(offer),
    2 = RekeyIke(offer),
    3 = DeleteChildren(children),
    4 = DeleteIke,
    5 = Informational,
    6 = Token,
    7 = Redirect(to),
    8 = RefuseResponder,
} else Purpose::Init(_) | Purpose::Resume(_));

impl Purpose {
    /// The first exchange of an IKE SA: nothing of it is authenticated, nothing of it lasts at the peer.
    pub(crate) fn is_first(&self) -> bool {
        matches!(self, Purpose::Init(_) | Purpose::Resume(_))
    }
}

/// Our request that is not answered yet.
pub(crate) struct Outstanding {
    pub(crate) message_id: u32,
    /// From the IKE header on; sent again bit by bit (RFC 7296 section 2.1).
    pub(crate) octets: Vec<u8>,
    pub(crate) purpose: Purpose,
    pub(crate) schedule: Schedule,
}

fields!(Outstanding { message_id, octets, purpose, schedule });

/// RFC 7296 section 2.25: not at once, and after several minutes of it the IKE SA is closed.
const TEMPORARY: Duration = Duration::from_secs(180);
/// Refusals that lie further apart have nothing to do with each other.
const UNRELATED: Duration = Duration::from_secs(30);

impl Endpoint {
    /// Seals and sends a request; its response comes to `purpose`.
    pub(crate) fn request(
        &mut self,
        now: Time,
        sa: &mut IkeSa,
        exchange: u8,
        payloads: &[Payload],
        purpose: Purpose,
    ) {
        let message_id = sa.send_id;
        let Some(octets) = self.seal(sa, exchange, false, message_id, payloads) else {
            return sa.end(Authority::Local("no keys"), false);
        };
        // RFC 7296 section 2.2: Message IDs MUST NOT wrap; the SA is rekeyed or closed before.
        sa.send_id = sa.send_id.saturating_add(1);
        if sa.send_id > u32::MAX / 2 {
            sa.enqueue(now, Task::RekeyIke);
        }
        self.transmit(sa, &octets);
        let schedule = Schedule::new(sa.connection.retransmission, now);
        sa.outstanding = Some(Outstanding { message_id, octets, purpose, schedule });
    }

    /// An INFORMATIONAL request.
    pub(crate) fn inform(&mut self, now: Time, sa: &mut IkeSa, payloads: &[Payload], purpose: Purpose) {
        self.request(now, sa, exchange::INFORMATIONAL, payloads, purpose);
    }

    /// Starts the next exchange that is due, if none is outstanding.
    pub(crate) fn start_next(&mut self, now: Time, sa: &mut IkeSa) {
        while sa.outstanding.is_none() && sa.ended.is_none() {
            let due = |(at, task): &(Time, Task)| *at <= now && sa.may_start(task);
            let first = sa.queue.iter().position(|t| t.1 == Task::DeleteIke && due(t));
            let Some(position) = first.or_else(|| sa.queue.iter().position(due)) else { return };
            let (_, task) = sa.queue.remove(position);
            match task {
                Task::CreateChild(name) => self.create_child(now, sa, &name),
                Task::CreateForWorkers(name) => self.create_for_workers(now, sa, &name),
                Task::RekeyChild(child) => self.begin_child_rekey(now, sa, child),
                Task::ReplaceChild(child) => self.begin_child_replacement(now, sa, child),
                Task::DeleteChild(child) => self.begin_child_delete(now, sa, child),
                Task::DeleteSpi(spi) => {
                    let delete = [Payload::Delete(Delete::Esp(vec![spi]))];
                    self.inform(now, sa, &delete, Purpose::Informational);
                }
                Task::TellInvalidSpi(spi) => self.tell_invalid_spi(now, sa, spi),
                Task::RekeyIke => self.begin_ike_rekey(now, sa),
                Task::DeleteIke => self.begin_ike_delete(now, sa),
                Task::Liveness => {
                    let payloads = self.liveness_payloads(sa);
                    self.inform(now, sa, &payloads, Purpose::Informational);
                }
                Task::RequestTicket => self.request_ticket(now, sa),
                Task::Redirect => self.redirect_peer(now, sa),
                Task::SendToken => {
                    if let Some(token) = self.own_token(sa.spis, sa.remote) {
                        self.inform(now, sa, &[token], Purpose::Token);
                    }
                }
            }
        }
    }

    /// Retransmissions and giving up. RFC 7296 section 2.1: the requester retransmits until it is answered or the
    /// IKE SA is deemed to have failed; then all state of it is discarded.
    pub(crate) fn tick_outstanding(&mut self, now: Time, sa: &mut IkeSa) {
        let Some(outstanding) = &mut sa.outstanding else { return };
        match outstanding.schedule.due(now) {
            Due::Nothing => {}
            Due::Retransmit { first } => {
                let octets = outstanding.octets.clone();
                self.transmit(sa, &octets);
                if let Some(elsewhere) = sa.elsewhere {
                    self.send(sa.local, elsewhere, &octets);
                }
                if first && sa.established.is_some() {
                    self.report(Report::Suspected { ike: sa.id });
                }
            }
            // A peer that knows no tickets may say nothing at all.
            Due::Failed if matches!(outstanding.purpose, Purpose::Resume(_)) => {
                self.begin_init(now, sa, None);
            }
            Due::Failed => {
                let authority = match &sa.state {
                    State::Deleting(authority) => authority.clone(),
                    State::Rekeyed => Authority::Superseded(Evidence(())),
                    _ => Authority::Timeout(Evidence(())),
                };
                sa.end(authority, false);
            }
        }
    }

    /// Sends the outstanding request again at once, on a hint.
    pub(crate) fn send_again(&mut self, now: Time, sa: &mut IkeSa, again_after: Duration) -> ProbeResult {
        let Some(outstanding) = &mut sa.outstanding else {
            sa.queue.insert(0, (now, Task::Liveness));
            return ProbeResult::Started;
        };
        if now.since(outstanding.schedule.sent()) < again_after {
            return ProbeResult::TooSoon;
        }
        outstanding.schedule.sent_again(now);
        let octets = outstanding.octets.clone();
        self.transmit(sa, &octets);
        ProbeResult::SentAgain
    }

    /// The peer answered TEMPORARY_FAILURE: `task` is tried again after some seconds, with jitter, for some minutes.
    pub(crate) fn try_later(&mut self, now: Time, sa: &mut IkeSa, task: Task) {
        let since = match sa.refused {
            Some((since, last)) if now.since(last) < UNRELATED => since,
            _ => now,
        };
        sa.refused = Some((since, now));
        if now.since(since) > TEMPORARY {
            tracing::warn!(connection = sa.connection.name, "the peer answers TEMPORARY_FAILURE for minutes");
            return self.close(now, sa, Authority::ProtocolError(Evidence(())));
        }
        let jitter = Duration::from_millis(u64::from(self.random_u32() % 2000));
        sa.enqueue(now.after(Duration::from_secs(1) + jitter), task);
    }

    /// Closes an IKE SA by a Delete exchange.
    pub(crate) fn close(&mut self, now: Time, sa: &mut IkeSa, authority: Authority) {
        if matches!(sa.state, State::Deleting(_)) {
            return;
        }
        if matches!(sa.state, State::Connecting | State::Refused) {
            return sa.end(authority, false);
        }
        if sa.state == State::Established {
            sa.state = State::Deleting(authority);
        }
        sa.expires = None;
        sa.enqueue(now, Task::DeleteIke);
    }
}
