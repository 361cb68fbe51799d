//! What the endpoint reports: the journal, the tokens and the recovery are kept in step with it, and people are told.

use super::Gateway;
use crate::api::{Output, Report};
use crate::journal::Installed;
use crate::stats::Counter;
use spindle_abi::{Spi, Time};
use spindle_ike::api::{Authority, IkeSaId, IkeSpis};

impl Gateway {
    pub(super) fn reported(&mut self, now: Time, report: spindle_ike::api::Report) {
        use spindle_ike::api::Report as Ike;
        match report {
            Ike::IkeEstablished { ike, spis, connection, initiator, resumed } => {
                self.capacity.handshake_ended();
                self.tokens.given().reported(spis);
                self.accepted = (!initiator).then_some(ike);
                let first = self.journal.ike_established(ike, spis, &connection, initiator);
                if first && !initiator {
                    self.peer_is_back(now, &connection);
                }
                self.taking_down.iter_mut().for_each(|taking_down| taking_down.told(ike));
                self.reconnect_established(now, &connection, initiator);
                self.sir.as_mut().into_iter().for_each(|sir| sir.created(now, &connection));
                let role = if initiator { "initiator" } else { "responder" };
                let detail = if resumed { format!("{role}, resumed") } else { role.into() };
                self.report("ike-established", Some(connection), Some(spis), None, detail);
                if !self.endpoint.serves_a_connection(ike) {
                    let _ = self.endpoint.terminate_ike(now, ike);
                }
            }
            Ike::IkeRekeyed { old, new, spis } => {
                self.tokens.given().reported(spis);
                let initiator = self.endpoint.spi_in_use(spis.initiator);
                self.journal.ike_rekeyed(old, new, spis, initiator);
                self.taking_down.iter_mut().for_each(|taking_down| taking_down.rekeyed(old, new));
                let connection = self.journal.ike_sa(new).map(|row| row.connection.clone());
                if let (Some(sir), Some(connection)) = (&mut self.sir, &connection) {
                    sir.forget(old);
                    sir.created(now, connection);
                }
                self.report("ike-rekeyed", connection, Some(spis), None, String::new());
            }
            Ike::IkeDeleted { ike, spis, connection, authority } => {
                self.hints.forget(ike);
                self.note_departure(ike, spis);
                self.token_holder_ended(now, spis, &authority);
                self.sir.as_mut().into_iter().for_each(|sir| sir.forget(ike));
                // By a timeout, or without the address from which to tell it.
                let untold =
                    matches!(authority, Authority::Timeout(_)) || !self.serves_connection(&connection);
                self.journal.ike_deleted(ike, untold);
                self.report("ike-deleted", Some(connection), Some(spis), None, reason(&authority));
            }
            Ike::InitiationFailed { connection, reason } => {
                self.reconnect.failed(now, &connection);
                self.sir.as_mut().into_iter().for_each(|sir| sir.failed(now, &connection));
                self.report("initiation-failed", Some(connection), None, None, reason);
            }
            Ike::ChildInstalled {
                ike,
                child,
                connection,
                name,
                inbound,
                outbound,
                local,
                remote,
                encapsulated,
                replaces,
            } => {
                let installed = Installed {
                    ike,
                    child,
                    connection: &connection,
                    name: &name,
                    inbound,
                    local,
                    remote,
                    encapsulated,
                };
                self.sir.as_mut().into_iter().for_each(|sir| sir.created(now, &connection));
                let wall = self.wall(now);
                self.journal.child_installed(wall, installed);
                let detail = format!(
                    "{name}: {inbound}_i {outbound}_o{}",
                    if replaces.is_some() { ", rekeyed" } else { "" }
                );
                self.report("installed", Some(connection), None, Some(inbound), detail);
                // Its exchange was under way when its configuration was changed.
                if !self.endpoint.is_configured(child) {
                    let _ = self.endpoint.terminate_child(now, child);
                }
            }
            Ike::ChildMoved { child, ike, .. } => self.journal.child_moved(child, ike),
            Ike::ChildDeleted { child, inbound, .. } => {
                self.journal.child_deleted(child);
                self.report("child-deleted", None, None, Some(inbound), String::new());
            }
            Ike::TokenStored { ike } => {
                self.report_ike("token-stored", ike, String::new());
                self.look_for_clone(ike);
            }
            Ike::TokenAcknowledged { ike, spis } => self.token_acknowledged(ike, spis),
            Ike::PeerMoved { ike, spis, remote } => {
                self.journal.moved(ike, remote);
                self.replace_stale_token(now, ike, spis, remote);
            }
            Ike::InvalidSpi { ike, spi, child } => self.invalid_spi(now, ike, spi, child),
            Ike::SpiChecked { ike, spi, known } => self.spi_checked(now, ike, spi, known),
            Ike::SpiAnswered { ike, spi, known } => self.spi_answered(now, ike, spi, known),
            Ike::Suspected { ike } => self.report_ike("suspected", ike, String::new()),
            Ike::Redirected { ike, to } => self.peer_redirected(ike, to),
            Ike::RedirectFollowed { connection, from, to } => {
                self.stats.count(Counter::RedirectsFollowed);
                self.report(
                    "redirect-followed",
                    Some(connection),
                    None,
                    None,
                    format!("from {from} to {to}"),
                );
            }
            Ike::RedirectRefused { connection, reason } => {
                self.stats.count(Counter::RedirectsRefused);
                self.report("redirect-refused", Some(connection), None, None, reason);
            }
        }
    }

    pub(super) fn report_ike(&mut self, name: &'static str, ike: IkeSaId, detail: String) {
        let row = self.journal.ike_sa(ike);
        let (connection, spis) = (row.map(|r| r.connection.clone()), row.map(|r| r.spis));
        self.report(name, connection, spis, None, detail);
    }

    pub(super) fn report(
        &mut self,
        name: &'static str,
        connection: Option<String>,
        spis: Option<IkeSpis>,
        spi: Option<Spi>,
        detail: String,
    ) {
        self.output.push_back(Output::Report(Report { name, connection, spis, spi, detail }));
    }
}

fn reason(authority: &Authority) -> String {
    match authority {
        Authority::Timeout(_) => "timeout".into(),
        Authority::Token(_) => "token".into(),
        Authority::InitialContact(_) => "INITIAL_CONTACT".into(),
        Authority::Delete(_) => "deleted by the peer".into(),
        Authority::Superseded(_) => "superseded".into(),
        Authority::ProtocolError(_) => "protocol error".into(),
        Authority::Local(why) => format!("local: {why}"),
    }
}
