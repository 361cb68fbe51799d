//! What the gateway hears that no SA here accounts for: ESP on former and unknown SPIs, requests for lost IKE SAs,
//! notifications in clear. As token maker it answers ([`crate::answer`]), as token taker it weighs
//! ([`crate::taker`]): a token that matches is proof, all else is a hint.

use super::Gateway;
use crate::answer::{Answer, Peers, Request, UnknownAnswer};
use crate::api::{Method, Output};
use crate::message::ENCAPSULATION_PORT;
use crate::stats::Counter;
use crate::taker::{Finding, IkeSas, MAX_PROBED, examine};
use spindle_abi::{Spi, SpiReport, Time};
use spindle_ike::api::{Authority, Header, IkeSaId, IkeSpis, Notify, StartAction, Unmatched};
use spindle_ike::wire::exchange;
use std::net::SocketAddr;

impl Gateway {
    pub(super) fn esp_without_sa(&mut self, now: Time, report: &SpiReport) {
        if self.is_elsewhere(report.destination.ip()) {
            return;
        }
        if self.journal.is_current(report.spi) {
            return;
        }
        if self.former.row(report.spi).is_some() {
            self.esp_on_former(now, report);
        } else if self.endpoint.knows_child_spi(report.spi) {
            // Late packets of an SA just removed, and early ones of one that is being made.
            self.stats.count(Counter::KnownSpi);
        } else {
            self.esp_on_unknown(now, report);
        }
    }

    /// It says that the peer still sends into what we lost. Where we initiate ourselves and that is preferred, this one
    /// goes to the head; else it is told, as soon as another handshake can be taken.
    fn esp_on_former(&mut self, now: Time, report: &SpiReport) {
        let Some(former) = self.former.row(report.spi) else { return };
        let (connection, parent) = (former.record.connection.clone(), former.record.parent);
        // There no token would leave: it is as any other packet that is not for us, and spends nothing that is for the peer's.
        if !self.answers.serves_connection(&connection, report.destination.ip()) {
            self.stats.count(Counter::WithheldAddress);
            return self.esp_on_unknown(now, report);
        }
        self.reconnect.hurry(&connection);
        if self.reconnect.is_preferred(&connection, now) {
            return self.stats.count(Counter::FormerInitiating);
        }
        if self.turns.line.contains(parent) {
            self.turns.line.put(parent, *report, true);
            return self.stats.count(Counter::FormerHeldBack);
        }
        let told = former.answered.is_some_and(|at| now.since(at) < self.config.limits.former_interval);
        if !told && (self.turns.line.any_with_traffic() || !self.pace.has_room(now)) {
            self.stats.count(Counter::FormerWaits);
            // A peer that is back already asks by chance, or is an attacker's echo.
            if !self.is_back(&connection) {
                self.turns.line.put(parent, *report, true);
            }
            return;
        }
        self.answer_former(now, report);
    }

    /// Has this connection an IKE SA that was made after the crash?
    pub(super) fn is_back(&self, connection: &str) -> bool {
        self.journal.of_connection(connection).next().is_some()
    }

    /// The peer of this former IKE SA is told: its handshake takes from the pace, once. One that is back makes none.
    pub(super) fn told(&mut self, now: Time, connection: &str, parent: IkeSpis) {
        if self.is_back(connection) {
            return;
        }
        if self.turns.tell(now, parent) {
            self.pace.take(now);
        }
        if !self.told.contains(connection) {
            self.told.insert(connection.to_owned());
        }
    }

    fn answer_former(&mut self, now: Time, report: &SpiReport) {
        let Some(former) = self.former.row(report.spi) else { return };
        let (connection, parent) = (former.record.connection.clone(), former.record.parent);
        let endpoint = &self.endpoint;
        let in_use = |spi| endpoint.spi_in_use(spi);
        let answers = self.answers.answer_former(now, report, former, &in_use, &mut self.stats);
        if answers.iter().any(|answer| answer.tokens > 0) {
            self.told(now, &connection, parent);
        }
        for answer in answers {
            self.answer(now, answer, Some(connection.clone()), parent, Some(report.spi));
        }
    }

    /// Tells the peer whose turn it is, if another handshake can be taken.
    pub(super) fn answer_waiting(&mut self, now: Time) -> bool {
        if !self.pace.has_room(now) {
            return false;
        }
        let Some((_, report)) = self.turns.line.next() else { return false };
        let connection = self.former.row(report.spi).map(|former| former.record.connection.clone());
        if connection.is_some_and(|connection| !self.is_back(&connection)) {
            self.answer_former(now, &report);
        }
        true
    }

    /// RFC 6290 section 3: a request for an IKE SA that we have not. Where the journal has it, the peer is told as those
    /// are whose ESP comes, within the pace and in its turn among them; again, as often as it asks, within the limits of
    /// its source alone.
    fn request_without_sa(
        &mut self,
        now: Time,
        header: &Header,
        ends: (SocketAddr, SocketAddr),
        tombstone: bool,
    ) {
        let spi = self.answers.former_spi(header.spis);
        let former = spi.and_then(|spi| self.former.row(spi)).map(|former| &former.record);
        let former = former.map(|record| (record.spi, record.connection.clone(), record.parent));
        if former.as_ref().is_some_and(|(_, connection, _)| self.reconnect.is_preferred(connection, now)) {
            return self.stats.count(Counter::FormerInitiating);
        }
        let told = former.as_ref().is_some_and(|(_, _, parent)| self.turns.is_told(now, *parent));
        let back = former.as_ref().is_some_and(|(_, connection, _)| self.is_back(connection));
        let others_wait = former.is_some() && !self.turns.line.is_empty();
        // RFC 6290 section 8.1: silence under excess. The peer asks again, or is told where the journal has it.
        if self.tokens.is_maker() && !told && (others_wait || !self.pace.has_room(now)) {
            let serves = |name: &str| self.answers.serves_connection(name, ends.0.ip());
            if let Some((spi, _, parent)) = former.filter(|(_, connection, _)| !back && serves(connection)) {
                self.former_asks(now, (spi, parent), ends);
            }
            return self.stats.count(Counter::RequestsPaced);
        }
        let paced = former.is_some() && !told && !back;
        let endpoint = &self.endpoint;
        let in_use = |spi| endpoint.spi_in_use(spi);
        let request = Request { header, ends, tombstone, paced };
        let answer = self.answers.answer_request(now, &request, &in_use, &mut self.stats);
        let Some(answer) = answer else { return };
        if let Some((_, connection, parent)) = former.filter(|_| answer.tokens > 0) {
            self.told(now, &connection, parent);
        }
        self.answer(now, answer, None, header.spis, None);
    }

    /// It is told when its turn comes, as if ESP had come from where it asks, but behind those whose ESP came.
    fn former_asks(
        &mut self,
        now: Time,
        (spi, parent): (Spi, IkeSpis),
        (local, remote): (SocketAddr, SocketAddr),
    ) {
        let encapsulated = local.port() == ENCAPSULATION_PORT;
        let end = |end: SocketAddr| if encapsulated { end } else { SocketAddr::new(end.ip(), 0) };
        let report = SpiReport { spi, sequence: 0, source: end(remote), destination: end(local), at: now };
        self.turns.line.put(parent, report, false);
    }

    fn esp_on_unknown(&mut self, now: Time, report: &SpiReport) {
        let endpoint = &self.endpoint;
        let find_peers = || {
            let (local, remote) = (report.destination, report.source);
            let ike_sas = endpoint.find_by_esp_ends(local, remote);
            let all_stand = endpoint.serve_all_between(&ike_sas, local.ip(), remote.ip());
            Peers { ike_sas, all_stand }
        };
        let answer = self.answers.answer_unknown(now, report, &find_peers, &mut self.stats);
        let Some(UnknownAnswer { protected, clear }) = answer else { return };
        self.output.extend(clear.map(Output::Transmit));
        for ike in protected {
            let told = self.endpoint.notify_invalid_spi(now, ike, report.spi);
            self.stats.count(match told {
                true => Counter::InvalidSpiProtected,
                false => Counter::InvalidSpiWindow,
            });
        }
    }

    pub(super) fn answer(
        &mut self,
        now: Time,
        answer: Answer,
        connection: Option<String>,
        spis: IkeSpis,
        spi: Option<Spi>,
    ) {
        if answer.tokens > 0 && self.token_reports.allow(now) {
            let detail = format!("{} to {}", answer.tokens, answer.datagram.remote);
            self.report("token-sent", connection, Some(spis), spi, detail);
        }
        self.output.push_back(Output::Transmit(answer.datagram));
    }

    pub(super) fn unmatched(&mut self, now: Time, unmatched: Unmatched) {
        match unmatched {
            Unmatched::ProtectedRequest { header, local, remote, tombstone } => {
                self.request_without_sa(now, &header, (local, remote), tombstone);
            }
            Unmatched::Clear { header, notifies, local, remote }
                if self.sir.is_some() && header.exchange == exchange::SIR =>
            {
                self.sir_message(now, &header, &notifies, (local, remote));
            }
            Unmatched::Clear { header, notifies, remote, .. } => self.clear(now, &header, &notifies, remote),
        }
    }

    /// RFC 6290 section 3 and 4.5: a token that matches ends the IKE SA silently; one that fails is counted,
    /// logged within limits and never answered.
    fn clear(&mut self, now: Time, header: &Header, notifies: &[Notify], remote: SocketAddr) {
        let at_source = |ike| self.journal.is_at(ike, remote.ip());
        let sas = &self.endpoint as &dyn IkeSas;
        let mut finding = examine(sas, self.takes_tokens, header, notifies, &at_source);
        if let Some((ike, authority)) = finding.proof.take() {
            let row = self.journal.ike_sa(ike);
            if row.is_none_or(|row| self.config.methods_of(&row.connection).contains(&Method::Qcd)) {
                return self.proof(now, ike, authority, remote);
            }
            finding.token_ignored = true;
        }
        if finding.token_ignored {
            self.stats.count(Counter::TokensIgnored);
        }
        if finding.token_failed {
            self.token_failed(now, header, &finding, remote);
        }
        if finding.hint {
            self.stats.count(Counter::Hints);
            if finding.candidates.is_empty() {
                self.stats.count(Counter::HintsUnknown);
            }
        }
        for ike in finding.to_probe() {
            if !self.sir_hint(now, ike, finding.spi) {
                self.hint(now, ike, finding.spi.is_some(), format!("from {remote}"));
            }
        }
    }

    fn proof(&mut self, now: Time, ike: IkeSaId, authority: Authority, remote: SocketAddr) {
        self.stats.count(Counter::Proofs);
        let children = self.journal.child_names(ike);
        let traffic = self.endpoint.has_traffic(now, ike);
        let row = self.journal.ike_sa(ike).cloned();
        let spis = row.as_ref().map(|row| row.spis);
        let connection = row.map(|row| row.connection);
        self.report("proof", connection.clone(), spis, None, format!("token from {remote}"));
        self.endpoint.delete_ike_sa(now, ike, authority);
        let Some(connection) = connection else { return };
        if self.stopping {
            return;
        }
        let stands = self.journal.of_connection(&connection).any(|(id, _)| id != ike);
        if stands {
            // On the other IKE SA, where they are not there already.
            for child in &children {
                let _ = self.endpoint.initiate(now, &connection, Some(child), false);
            }
        } else {
            let configured = self.endpoint.connection(&connection);
            let always = configured.is_some_and(|c| c.start_action == StartAction::Start);
            self.reconnect.lost(now, &connection, children, always);
            if traffic {
                self.reconnect.hurry(&connection);
            }
        }
    }

    /// RFC 6290 section 3: SHOULD be logged, unknown SPIs too; section 8.2: no evidence of an attack.
    fn token_failed(&mut self, now: Time, header: &Header, finding: &Finding, remote: SocketAddr) {
        self.stats.count(Counter::TokensFailed);
        if self.failed_tokens.allow(now, self.hash.source(remote.ip())) {
            let which = if finding.candidates.is_empty() { "of no IKE SA here" } else { "does not match" };
            let detail = format!("from {remote}: {which}");
            self.report("token-failed", None, Some(header.spis), None, detail);
        } else {
            self.stats.count(Counter::TokensFailedUnlogged);
        }
    }

    /// `traffic`: it names an SPI on which we send.
    fn hint(&mut self, now: Time, ike: IkeSaId, traffic: bool, detail: String) {
        if !self.hints.allow(now, ike, traffic, &self.endpoint) {
            self.stats.count(Counter::HintsTooSoon);
            return;
        }
        if self.hint_reports.allow(now) {
            self.report_ike("hint", ike, detail);
        }
        self.probe(now, ike, traffic);
    }

    /// The peer does not know an SPI on which we send. The IKE SA that carried this lives, as the peer has just shown;
    /// another one with the same peer may be lost there.
    /// Where it is a Child SA of this IKE SA, the peer has lost that one alone: it is made again. (RFC 7296 section
    /// 2.21.4 has the notification change nothing: so the new one comes first, unless the peer deleted the old one.)
    pub(super) fn invalid_spi(&mut self, now: Time, ike: IkeSaId, spi: Spi, child: Option<String>) {
        self.stats.count(Counter::InvalidSpiReceived);
        if let Some(child) = child {
            return self.rebuild_child(now, ike, spi, &child);
        }
        let connection = |ike| self.journal.ike_sa(ike).map(|row| &row.connection);
        let others = self.endpoint.find_by_outbound_spi(spi);
        let lost = |other: &IkeSaId| *other != ike && connection(*other) == connection(ike);
        for other in others.into_iter().filter(lost).take(MAX_PROBED).collect::<Vec<_>>() {
            self.hint(now, other, true, format!("on another IKE SA, of {spi}_o"));
        }
    }

    fn rebuild_child(&mut self, now: Time, ike: IkeSaId, spi: Spi, child: &str) {
        if self.stopping {
            return;
        }
        if !self.journal.may_rebuild(now, ike) {
            return self.stats.count(Counter::RebuiltTooSoon);
        }
        if self.endpoint.rebuild_child(now, ike, spi, child) {
            self.stats.count(Counter::Rebuilt);
            let row = self.journal.ike_sa(ike);
            let (connection, spis) = (row.map(|r| r.connection.clone()), row.map(|r| r.spis));
            self.report("rebuilding", connection, spis, Some(spi), format!("{child}: the peer lost it"));
        }
    }

    /// RFC 7296 section 2.4: a hint may start one liveness check, limited.
    pub(super) fn probe(&mut self, now: Time, ike: IkeSaId, traffic: bool) {
        let (counter, name) = match self.hints.probe(now, ike, traffic, &mut self.endpoint) {
            None => return self.stats.count(Counter::HintsOverBudget),
            Some(spindle_ike::api::ProbeResult::Started) => (Counter::ProbesStarted, "started"),
            Some(spindle_ike::api::ProbeResult::SentAgain) => (Counter::ProbesSentAgain, "sent again"),
            Some(spindle_ike::api::ProbeResult::TooSoon) => return self.stats.count(Counter::HintsTooSoon),
            Some(spindle_ike::api::ProbeResult::NoSuchSa) => return,
        };
        self.stats.count(counter);
        if self.probe_reports.allow(now) {
            self.report_ike("probe", ike, name.into());
        }
    }
}
