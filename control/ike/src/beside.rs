//! An IKE SA begun beside one that the peer is confirmed, but not proven, to have lost (SIR,
//! draft-detienne-ikev2-recovery-03 section 3.2.2): what was confirmed came in clear, so the old one stays until the new
//! one is authenticated, and only then gives way to it (RFC 7296 section 2.4).

use crate::api::*;
use crate::connect::Beginning;
use crate::endpoint::Endpoint;
use crate::exchange::Task;
use crate::sa::{ChildState, IkeSa};
use spindle_abi::{Spi, Time};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

/// What recovery needs to know of an established IKE SA whose peer announced SIR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SirPeer {
    /// Its SPIs.
    pub spis: IkeSpis,
    /// Are we the original initiator?
    pub initiator: bool,
    /// Addresses in use.
    pub local: SocketAddr,
    /// The peer's.
    pub remote: SocketAddr,
    /// How long an exchange with the peer takes, as last measured.
    pub round_trip: Option<Duration>,
    /// When an authenticated packet of the peer last came, ESP included.
    pub heard: Time,
}

impl Endpoint {
    /// An established IKE SA whose peer announced SIR.
    pub fn sir_peer(&self, ike: IkeSaId) -> Option<SirPeer> {
        let sa = self.sas.get(&ike).filter(|sa| sa.sir && sa.is_established())?;
        let heard = self.last_heard(sa);
        let IkeSa { spis, initiator, local, remote, round_trip, .. } = *sa;
        Some(SirPeer { spis, initiator, local, remote, round_trip, heard })
    }

    /// The next liveness check of this IKE SA asks about the ESP SA on which we send with this SPI; not if a request is
    /// outstanding, which asks enough.
    pub fn ask_about(&mut self, ike: IkeSaId, spi: Spi) {
        if let Some(sa) = self.sas.get_mut(&ike).filter(|sa| sa.sir && sa.outstanding.is_none()) {
            sa.check = Some(spi);
        }
    }

    /// Begins an IKE SA that is to take the place of `old`, which stays until it is authenticated: to the same peer at
    /// the same addresses, with the same children. `cookie` is the peer's, for the first message (section 3.2.2:
    /// MUST be reflected; RFC 7296 section 2.6).
    pub fn initiate_beside(
        &mut self,
        now: Time,
        old: IkeSaId,
        cookie: Option<Vec<u8>>,
    ) -> Result<(), Refused> {
        let sa = self.sas.get(&old).filter(|sa| sa.is_established()).ok_or(Refused::UnknownSa)?;
        let (number, names) = (sa.connection.number, installed(sa));
        let mut others = self.connections[number].sas.iter().copied();
        let under_way = others.find(|id| self.sas.get(id).is_some_and(IkeSa::is_initiation));
        if let Some(id) = under_way {
            self.with_sa(now, id, |_, sa| {
                sa.wanted.extend(names);
                sa.supersedes = sa.supersedes.or(Some(old));
            });
            return Ok(());
        }
        let ends = Some((sa.local, sa.remote));
        let redirected_from = sa.redirected_from;
        let beginning =
            Beginning { ends, cookie, supersedes: Some(old), redirected_from, ..Beginning::default() };
        self.start_ike(now, number, names, beginning)
    }

    /// A hint came while the IKE SA that is to take the place of `old` is being initiated: its outstanding request is
    /// sent again once, no sooner than `again_after` after it was last sent. That counts as no try, so hints, which anybody
    /// may forge, bring no initiation to its end.
    pub fn hasten_beside(&mut self, now: Time, old: IkeSaId, again_after: Duration) {
        let Some(number) = self.sas.get(&old).map(|sa| sa.connection.number) else { return };
        let mut others = self.connections[number].sas.iter().copied();
        let beside = |sa: &IkeSa| sa.supersedes == Some(old) && sa.is_initiation();
        let Some(id) = others.find(|id| self.sas.get(id).is_some_and(beside)) else { return };
        self.with_sa(now, id, |_, sa| {
            if let Some(outstanding) = &mut sa.outstanding {
                outstanding.schedule.ask_again(now, again_after);
            }
        });
    }

    /// `old` was rekeyed while an IKE SA that is to take its place was being initiated: `new` gives way instead.
    pub(crate) fn supersede_successor(&mut self, old: &IkeSa, new: &IkeSa) {
        for id in &self.connections[old.connection.number].sas {
            if let Some(beside) = self.sas.get_mut(id).filter(|beside| beside.supersedes == Some(old.id)) {
                beside.supersedes = Some(new.id);
                if let Some(kept) = &mut self.kept {
                    kept.changed(*id);
                }
            }
        }
    }

    /// `sa` is authenticated: the IKE SA whose place it takes ends. Without a word, for its peer has lost it; or by a
    /// Delete, where the peer was heard on it meanwhile and so has not, or has redirected us to another gateway.
    pub(crate) fn end_superseded(&mut self, now: Time, sa: &mut IkeSa) {
        let Some(old) = sa.supersedes.take() else { return };
        self.with_sa(now, old, |e, old| {
            for name in old.child_names() {
                sa.enqueue(now, Task::CreateChild(name));
            }
            let superseded = Authority::Superseded(Evidence(()));
            match old.redirected || e.last_heard(old) > sa.created {
                true => e.close(now, old, superseded),
                false => old.end(superseded, false),
            }
        });
    }

    /// A COOKIE that an IKE_SA_INIT request of this peer may carry without having been asked for it: where one would
    /// be asked for at present (section 3.2.2: saves a round trip; RFC 7296 section 2.6). `spis`: of the IKE SA that
    /// was lost.
    pub fn early_cookie(&mut self, now: Time, remote: SocketAddr, spis: IkeSpis) -> Option<Vec<u8>> {
        let wanted = self.hears_sir() && self.asks_for_cookies(now);
        wanted.then(|| self.cookies.make_early(now, &mut *self.random, remote, spis))
    }
}

/// The children that have an SA in use.
fn installed(sa: &IkeSa) -> BTreeSet<String> {
    let children = sa.children.iter().filter(|c| c.state == ChildState::Installed);
    children.map(|c| c.config.name.clone()).collect()
}
