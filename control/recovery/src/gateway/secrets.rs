//! The token maker's secret while the gateway runs: rotation ([`crate::rotation`]), tokens that replace others (RFC
//! 6290 section 4.4), and the end of the role where another gateway turns out to have the same secret (section 8.1).

use super::Gateway;
use crate::api::{Generation, Output};
use crate::rotation::{Due, Refused, SecretStatus, Written};
use crate::stats::Counter;
use spindle_abi::Time;
use spindle_ike::api::{Authority, IkeSaId, IkeSpis};
use std::net::SocketAddr;
use std::time::Duration;

/// IKE SAs that ended without a report are looked for this often.
const SWEEP: Duration = Duration::from_secs(10);

impl Gateway {
    /// Begins a rotation of the secret, unless one is under way. The report `secret-rotated` says when the new
    /// generation is in use: at once, or where four generations stand, when nobody needs the oldest one any more.
    pub fn rotate_secret(&mut self, now: Time) -> Result<(), Refused> {
        if !self.tokens.is_maker() {
            return Err(Refused::NotAMaker);
        }
        self.rotation.want()?;
        self.drain(now);
        Ok(())
    }

    /// The secret's generations, and who relies on them.
    pub fn secret(&self) -> SecretStatus {
        self.rotation.status(&self.tokens.given())
    }

    /// Is the token maker's role on?
    pub fn is_token_maker(&self) -> bool {
        self.tokens.is_maker()
    }

    /// Would this token prove that the peer lost the IKE SA with these SPIs? For those who judge, and for tests.
    pub fn holds_token(&self, spis: IkeSpis, token: &[u8]) -> bool {
        let ike = self.endpoint.find_by_spis(spis);
        ike.is_some_and(|ike| self.endpoint.verify_token(ike, token).is_some())
    }

    /// Does what is due of a rotation; was the endpoint asked for something?
    pub(super) fn advance_rotation(&mut self, now: Time) -> bool {
        if self.stopping || !self.tokens.is_maker() {
            return false;
        }
        if now.since(self.swept) >= SWEEP {
            self.swept = now;
            self.sweep(now);
        }
        let wall = self.wall(now);
        let due = self.rotation.due(now, wall, &self.tokens.given());
        match due {
            Due::Nothing => false,
            Due::Write { new, keep } => {
                self.output.push_back(Output::Secrets { new, keep });
                false
            }
            Due::Replace(pairs) => {
                let mut asked = false;
                for spis in pairs {
                    let ike = self.endpoint.find_by_spis(spis);
                    if ike.is_some_and(|ike| self.endpoint.send_token(now, ike)) {
                        self.stats.count(Counter::TokensReplaced);
                        self.rotation.replacing(spis);
                        asked = true;
                    }
                }
                asked
            }
        }
    }

    /// Of [`Output::Secrets`].
    pub(super) fn secrets_written(&mut self, now: Time, generations: Option<Vec<Generation>>) {
        match self.rotation.written(now, generations) {
            Written::Noted => {}
            Written::Rotated => {
                self.tokens.set(self.rotation.generations());
                self.stats.count(Counter::SecretsRotated);
                let detail = format!("{} generations", self.rotation.generations().count());
                self.report("secret-rotated", None, None, None, detail);
            }
            Written::Failed => {
                let detail = "its file could not be written; tried again in a minute".into();
                self.report("secret-rotation-failed", None, None, None, detail);
            }
        }
    }

    pub(super) fn rotation_deadline(&self) -> Option<Time> {
        if self.stopping || !self.tokens.is_maker() {
            return None;
        }
        let at = |second: u64| {
            self.wall_clock.1.after(Duration::from_secs(second.saturating_sub(self.wall_clock.0)))
        };
        self.rotation.deadline(&self.tokens.given(), at)
    }

    /// Half-open IKE SAs whose token went out may end without a report; their peers may have made them.
    fn sweep(&mut self, now: Time) {
        let gone = |spis: &IkeSpis| self.endpoint.find_by_spis(*spis).is_none();
        let gone: Vec<IkeSpis> = self.tokens.given().unreported().filter(gone).collect();
        for spis in gone {
            self.ended(now, spis, true);
        }
    }

    /// An IKE SA ended. Its peer holds it no more if that was exchanged, or if the peer said so.
    pub(super) fn token_holder_ended(&mut self, now: Time, spis: IkeSpis, authority: &Authority) {
        let known =
            matches!(authority, Authority::Delete(_) | Authority::InitialContact(_) | Authority::Token(_));
        let peer_may_hold_it = !known && !self.endpoint.ended_by_exchange(spis);
        self.ended(now, spis, peer_may_hold_it);
    }

    fn ended(&mut self, now: Time, spis: IkeSpis, peer_may_hold_it: bool) {
        let relied = self.tokens.given().ended(spis);
        self.rotation.ended(self.wall(now), spis, relied, peer_may_hold_it);
    }

    pub(super) fn token_acknowledged(&mut self, ike: IkeSaId, spis: IkeSpis) {
        self.rotation.acknowledged(spis);
        self.report_ike("token-acknowledged", ike, String::new());
    }

    /// RFC 6290 section 4.4, 5.2: the taker moved, and its token has the former address in it.
    pub(super) fn replace_stale_token(&mut self, now: Time, ike: IkeSaId, spis: IkeSpis, remote: SocketAddr) {
        if self.tokens.is_stale(spis, remote.ip()) && self.endpoint.send_token(now, ike) {
            self.stats.count(Counter::TokensReplaced);
        }
    }

    /// RFC 6290 section 8.1, 9.2: a peer that gives us in its IKE_AUTH request the very token that we are about to give
    /// it has our secret and our maker id, and is alive. What either of us has lost the other may hold, so neither may
    /// show tokens. (Later on, or as responder, any peer could send our own token back.)
    pub(super) fn look_for_clone(&mut self, ike: IkeSaId) {
        if self.accepted != Some(ike) || !self.tokens.is_maker() {
            return;
        }
        let Some(row) = self.journal.ike_sa(ike) else { return };
        let local = self.endpoint.connection(&row.connection).map(|c| c.local);
        let holds = |token: &[u8]| self.endpoint.verify_token(ike, token).is_some();
        if local.is_some_and(|local| self.tokens.any_is(row.spis, local, holds)) {
            let (connection, spis) = (row.connection.clone(), row.spis);
            self.tokens.switch_off();
            self.note_life_if_kept();
            let detail = "the peer makes the same tokens: one of the two gateways is a copy of the other. No token leaves \
                          here any more; give this gateway a secret of its own by `spindle up --new-secret`"
                .into();
            self.report("maker-off", Some(connection), Some(spis), None, detail);
        }
    }
}
