//! Safe IKE Recovery at work ([`crate::sir`]): hints become queries, queries answers, a confirmation an IKE SA beside
//! the old one. Nothing here deletes.

use super::Gateway;
use crate::api::{Config, Method, Output};
use crate::limits::Total;
use crate::qcd::Control;
use crate::sir::asked::{Asked, Situation};
use crate::sir::asking::{Answered, Ask, Asking, Due};
use crate::sir::cookie::{Bound, CookieKeys};
use crate::sir::dampening::Dampening;
use crate::sir::message;
use crate::stats::Counter;
use spindle_abi::{Spi, Time};
use spindle_ike::SirPeer;
use spindle_ike::api::{Header, IkeSaId, IkeSpis, Notify};
use spindle_ike::check_spi::{CheckSpi, Subtype};
use spindle_ike::random::Random;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use zeroize::Zeroizing;

/// Reports of what anybody may cause, per second; all is counted.
const REPORTS: u32 = 10;

/// The connections that have the method: on their IKE SAs alone it is announced, and heard.
pub(super) fn speakers(config: &Config) -> BTreeSet<String> {
    let names = config.connections.iter().map(|connection| &connection.name);
    names.filter(|name| config.methods_of(name).contains(&Method::Sir)).cloned().collect()
}

/// Both roles' state; none of it where no connection has the method.
pub(super) struct Sir {
    asked: Asked,
    asking: Asking,
    dampening: Dampening,
    cookies: CookieKeys,
    reports: Total,
}

impl Sir {
    /// Nothing is drawn where nothing is made.
    pub(super) fn new(config: &Config, random: &mut dyn Random, now: Time) -> Option<Sir> {
        let limits = &config.limits.sir;
        (!speakers(config).is_empty()).then(|| {
            let mut root = Zeroizing::new([0; 32]);
            random.fill(&mut *root);
            Sir {
                asked: Asked::new(limits),
                asking: Asking::new(limits),
                dampening: Dampening::new(limits),
                cookies: CookieKeys::new(root, now),
                reports: Total::new(REPORTS),
            }
        })
    }

    pub(super) fn deadline(&self, pace: &Total) -> Option<Time> {
        self.asking.deadline(pace)
    }

    /// SAs of this connection were made or rekeyed.
    pub(super) fn created(&mut self, now: Time, connection: &str) {
        self.dampening.created(now, connection);
    }

    /// The IKE SA is gone.
    pub(super) fn forget(&mut self, ike: IkeSaId) {
        self.asking.forget(ike);
    }

    /// An initiation of this connection failed.
    pub(super) fn failed(&mut self, now: Time, connection: &str) {
        if self.asking.failed(connection) {
            self.dampening.failed(now, connection);
        }
    }
}

impl Gateway {
    /// A hint in clear about an IKE SA whose peer may speak SIR, by its pair, or by an SPI on which we send. `true` if
    /// that is all to be done about it; if not, it is a hint as any other.
    pub(super) fn sir_hint(&mut self, now: Time, ike: IkeSaId, spi: Option<Spi>) -> bool {
        let Some(sir) = &mut self.sir else { return false };
        let (Some(peer), Some(row)) = (self.endpoint.sir_peer(ike), self.journal.ike_sa(ike)) else {
            return false;
        };
        let connection = row.connection.clone();
        let again_after = self.config.limits.probe_again;
        // Before that the answer is on its way.
        let again_after = again_after.max(2 * peer.round_trip.unwrap_or_default());
        // A recovery is under way, and the peer is back after another crash, perhaps: it is to have our request.
        if sir.asking.is_recovering(ike) {
            self.endpoint.hasten_beside(now, ike, again_after);
        }
        // Draft section 4.2: ignored. But a liveness check harms nobody (RFC 7296 section 2.4).
        if sir.dampening.is_dampened(now, &connection) {
            self.stats.count(Counter::SirDampened);
            return false;
        }
        // Section 3.4.2: INVALID_SPI leads to a protected CHECK_SPI, as which the liveness check goes; that one's
        // answer, INVALID_IKE_SPI, leads here.
        if let Some(spi) = spi {
            sir.asking.hurry(ike);
            self.endpoint.ask_about(ike, spi);
            return false;
        }
        let source = self.hash.source_and_pair(peer.remote.ip(), peer.spis);
        let traffic = self.endpoint.has_traffic(now, ike);
        match sir.asking.ask(now, (ike, traffic), &connection, source, again_after) {
            Ask::Send => {
                if sir.reports.allow(now) {
                    let detail = format!("to {}", peer.remote);
                    self.report("query", Some(connection), Some(peer.spis), None, detail);
                }
                self.send_query(now, &peer);
            }
            Ask::SendAgain => self.send_query(now, &peer),
            Ask::UnderWay => self.stats.count(Counter::HintsTooSoon),
            Ask::OverBudget => {
                self.stats.count(Counter::SirQueriesOverBudget);
                return false;
            }
        }
        true
    }

    /// To the address where the IKE SA has the peer, never to the hint's source: else whoever forged the hint could
    /// answer the query too.
    fn send_query(&mut self, now: Time, peer: &SirPeer) {
        let Some(sir) = &mut self.sir else { return };
        let bound = Bound { spis: peer.spis, local: peer.local, remote: peer.remote };
        let cookie = sir.cookies.make(now, &bound).to_vec();
        let check = CheckSpi { subtype: Subtype::Query, child: None, cookie };
        let query = message::query(peer.spis, peer.initiator, &check, (peer.local, peer.remote));
        self.stats.count(Counter::SirQueriesSent);
        self.output.push_back(Output::Transmit(query));
    }

    /// A message of SIR's exchange type.
    pub(super) fn sir_message(
        &mut self,
        now: Time,
        header: &Header,
        notifies: &[Notify],
        ends: (SocketAddr, SocketAddr),
    ) {
        match message::parse(header, notifies) {
            Some((check, _)) if !header.response => self.sir_query(now, header, &check, ends),
            Some((check, cookie)) if check.subtype != Subtype::Query => {
                self.sir_answer(now, header, &check, cookie, ends);
            }
            _ => self.stats.count(Counter::SirMalformed),
        }
    }

    /// X: draft section 3.2.2.
    fn sir_query(&mut self, now: Time, header: &Header, query: &CheckSpi, ends: (SocketAddr, SocketAddr)) {
        let Some(sir) = &mut self.sir else { return };
        let (local, remote) = ends;
        self.stats.count(Counter::SirQueriesReceived);
        let IkeSpis { initiator, responder } = header.spis;
        let source = self.answers.source(remote.ip(), header.spis);
        let situation = Situation {
            control: if self.ready { Control::Authoritative } else { Control::Starting },
            address_serves: self.answers.serves(local.ip()),
            in_use: self.endpoint.spi_in_use(initiator) || self.endpoint.spi_in_use(responder),
            source,
        };
        let answer = match sir.asked.answer(now, header, query, &situation) {
            Ok(answer) => answer,
            Err(why) => return self.stats.count(why),
        };
        // A NACK leads to a handshake: beyond the pace silence, and Y asks again.
        if answer.subtype == Subtype::Nack && !self.pace.has_room(now) {
            return self.stats.count(Counter::RequestsPaced);
        }
        let (counter, name, cookie) = match answer.subtype {
            Subtype::Nack => {
                let cookie = self.endpoint.early_cookie(now, remote, header.spis);
                (Counter::SirNacksSent, "nack-sent", cookie)
            }
            _ => (Counter::SirAcksSent, "ack-sent", None),
        };
        self.stats.count(counter);
        self.output.push_back(Output::Transmit(message::answer(header, &answer, cookie, ends)));
        self.sir_report(now, name, header.spis, format!("to {remote}"));
    }

    /// Y: draft section 3.2.2. Only to a query of ours, from where it was sent to, with its cookie.
    fn sir_answer(
        &mut self,
        now: Time,
        header: &Header,
        check: &CheckSpi,
        cookie: Option<Vec<u8>>,
        (local, remote): (SocketAddr, SocketAddr),
    ) {
        let Some(sir) = &mut self.sir else { return };
        let ike = self.endpoint.find_by_spis(header.spis).filter(|ike| sir.asking.is_asked(*ike));
        let peer = ike.and_then(|ike| Some((ike, self.endpoint.sir_peer(ike)?)));
        let Some((ike, peer)) = peer.filter(|(_, peer)| header.initiator != peer.initiator) else {
            return self.stats.count(Counter::SirUnexpected);
        };
        let bound = Bound { spis: header.spis, local, remote };
        if !sir.cookies.verify(now, &bound, &check.cookie) {
            self.stats.count(Counter::SirCookiesInvalid);
            return self.sir_report(now, "cookie-invalid", header.spis, format!("from {remote}"));
        }
        let connection = self.journal.ike_sa(ike).map(|row| row.connection.clone());
        let answered = sir.asking.answered(now, ike, check.subtype, cookie, peer.round_trip);
        let (counter, name, detail) = match answered {
            Answered::Unexpected => return self.stats.count(Counter::SirUnexpected),
            Answered::Wait => (Counter::SirNacks, "nack", "the peer has lost the IKE SA, it says"),
            Answered::Denied => {
                (Counter::SirAcks, "ack", "the peer has the IKE SA; the hint was late, or forged")
            }
            Answered::Contradicted => {
                (Counter::SirContradicted, "ack", "after a NACK: one of both is forged, the IKE SA stays")
            }
        };
        match (answered, &connection) {
            (Answered::Denied, Some(connection)) => sir.dampening.denied(now, connection),
            (Answered::Contradicted, Some(connection)) => sir.dampening.failed(now, connection),
            _ => {}
        }
        self.stats.count(counter);
        self.report(name, connection, Some(header.spis), None, format!("{detail} ({remote})"));
    }

    /// What is due.
    pub(super) fn tick_sir(&mut self, now: Time) {
        while let Some(due) = self.sir.as_mut().and_then(|sir| sir.asking.next_due(now, &mut self.pace)) {
            match due {
                Due::Again(ike) => {
                    if let Some(peer) = self.endpoint.sir_peer(ike) {
                        self.send_query(now, &peer);
                    }
                }
                // No answer is no evidence; the liveness check decides.
                Due::GiveUp(ike) => {
                    self.stats.count(Counter::SirQueriesUnanswered);
                    self.probe(now, ike, false);
                }
                Due::Confirmed { ike, cookie, asked } => self.confirmed(now, ike, cookie, asked),
            }
        }
    }

    /// Section 3.2.2: a new IKE SA is initiated; the old one is deleted after that is made, and by that.
    fn confirmed(&mut self, now: Time, ike: IkeSaId, cookie: Option<Vec<u8>>, asked: Time) {
        let Some(sir) = &mut self.sir else { return };
        let (Some(peer), Some(row)) = (self.endpoint.sir_peer(ike), self.journal.ike_sa(ike)) else {
            return sir.forget(ike);
        };
        let connection = row.connection.clone();
        // An authenticated packet since then says more than all NACKs.
        if peer.heard > asked {
            sir.forget(ike);
            sir.dampening.failed(now, &connection);
            self.stats.count(Counter::SirContradicted);
            let detail = "the peer was heard since: the NACK was forged, the IKE SA stays";
            return self.report("contradicted", Some(connection), Some(peer.spis), None, detail.into());
        }
        sir.dampening.recovered(now, &connection);
        self.stats.count(Counter::SirConfirmations);
        self.report("confirmation", Some(connection.clone()), Some(peer.spis), None, String::new());
        // Where another IKE SA stands there is nothing to recover; the liveness check ends the old one.
        let stands = self.journal.of_connection(&connection).any(|(id, _)| id != ike);
        if stands || self.stopping {
            self.sir.as_mut().into_iter().for_each(|sir| sir.forget(ike));
            return self.probe(now, ike, false);
        }
        self.report("initiating", Some(connection.clone()), None, None, "after a confirmation".into());
        if let Err(refused) = self.endpoint.initiate_beside(now, ike, cookie) {
            self.report("initiation-failed", Some(connection), None, None, refused.to_string());
            self.sir.as_mut().into_iter().for_each(|sir| sir.forget(ike));
        }
    }

    /// Section 3.4.2: X can read a protected query, so it has not lost the IKE SA: a possible security alert.
    pub(super) fn spi_checked(&mut self, now: Time, ike: IkeSaId, spi: Spi, known: bool) {
        self.stats.count(Counter::SirProtectedQueries);
        let Some(spis) = self.journal.ike_sa(ike).map(|row| row.spis) else { return };
        let detail = match known {
            true => format!("{spi}_i is here: INVALID_SPI was forged, or crossed an exchange"),
            false => format!("{spi}_i is not here, though its IKE SA is"),
        };
        self.sir_report(now, "spi-checked", spis, detail);
    }

    /// The peer's protected answer to our question about an ESP SA.
    pub(super) fn spi_answered(&mut self, now: Time, ike: IkeSaId, spi: Spi, known: bool) {
        let Some(spis) = self.journal.ike_sa(ike).map(|row| row.spis) else { return };
        let detail = match known {
            true => {
                self.stats.count(Counter::SirProtectedAcks);
                format!("the peer has {spi}_o: INVALID_SPI was forged, or crossed an exchange")
            }
            false => {
                self.stats.count(Counter::SirProtectedNacks);
                format!("the peer has lost {spi}_o alone")
            }
        };
        self.sir_report(now, "spi-answered", spis, detail);
    }

    fn sir_report(&mut self, now: Time, name: &'static str, spis: IkeSpis, detail: String) {
        if self.sir.as_mut().is_some_and(|sir| sir.reports.allow(now)) {
            self.report(name, None, Some(spis), None, detail);
        }
    }
}
