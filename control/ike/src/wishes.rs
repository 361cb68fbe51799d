//! What the operator, the dataplane and recovery ask of the endpoint, and what they may see of it.

use crate::api::*;
use crate::endpoint::{Endpoint, NAT_PORT};
use crate::exchange::Task;
use crate::sa::{ChildState, IkeSa};
use spindle_abi::{Spi, Time};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::ops::Bound;
use std::time::Duration;

/// Between two Deletes of a gateway that ends.
const BETWEEN_DELETES: Duration = Duration::from_micros(200);
/// All of them are sent within this time.
const DELETES: Duration = Duration::from_secs(20);
/// IKE SAs between two ends that are told of an unknown SPI.
const BETWEEN_ENDS: usize = 8;

impl Endpoint {
    /// Starts an IKE SA of a connection with `child` (or the first one configured) in IKE_AUTH, or, where an IKE SA
    /// stands, the Child SA on it. `initial_contact`: INITIAL_CONTACT may be sent again in this incarnation (after
    /// a proof); it is sent only if no other IKE SA to that identity is known.
    pub fn initiate(
        &mut self,
        now: Time,
        connection: &str,
        child: Option<&str>,
        initial_contact: bool,
    ) -> Result<(), Refused> {
        let number = self.lookups.by_name.get(connection).copied();
        let number = number.ok_or_else(|| Refused::UnknownConnection(connection.into()))?;
        let profile = &self.connections[number].profile;
        let found = match child {
            Some(name) => profile.child(name),
            None => profile.children.first().cloned(),
        };
        let unknown = || Refused::UnknownChild(connection.into(), child.unwrap_or_default().into());
        let found = found.ok_or_else(unknown)?;
        self.want(now, number, BTreeSet::from([found.name.clone()]), initial_contact)
    }

    /// The configuration of the connection with this name.
    pub fn connection(&self, name: &str) -> Option<&ConnectionConfig> {
        Some(&self.connections[*self.lookups.by_name.get(name)?].profile)
    }

    /// Where the peer of a connection without a configured remote address was before a restart, our port first: it can
    /// be initiated to there until it is authenticated anew.
    pub fn peer_was_at(&mut self, connection: &str, port: u16, remote: SocketAddr) {
        if let Some(number) = self.lookups.by_name.get(connection) {
            self.connections[*number].last_seen = Some((port, remote));
        }
    }

    /// An IKE SA ends that the peer has lost, or does not answer on. Where the peer was, as it was last authenticated, it is
    /// initiated to, if the configuration does not know: its address may be any, or its port is a NAT's. Another address
    /// than the configured one may be of somebody who passed a message of the peer's on (RFC 7296 section 2.23).
    pub(crate) fn remember_ends(&mut self, sa: &IkeSa, authority: &Authority) {
        let lost = matches!(authority, Authority::Timeout(_) | Authority::Token(_));
        let elsewhere = match sa.connection.remote {
            Some(address) => sa.nat.there && sa.remote.ip() == address && sa.remote.port() != NAT_PORT,
            None => true,
        };
        let connection = &mut self.connections[sa.connection.number];
        let stands = connection.sas.iter().any(|id| self.sas.get(id).is_some_and(IkeSa::is_established));
        if lost && elsewhere && !stands && sa.established.is_some() && sa.redirected_from.is_none() {
            connection.last_seen = Some((sa.local.port(), sa.remote));
        }
    }

    /// The peer has lost the Child SA that sends on this SPI, of the child with this name: another one is made, beside
    /// what still stands of it, which is deleted then. `false` if no exchange follows: it is on its way out already.
    pub fn rebuild_child(&mut self, now: Time, ike: IkeSaId, spi: Spi, name: &str) -> bool {
        let rebuilt = self.with_sa(now, ike, |_, sa| {
            if !sa.is_established() {
                return false;
            }
            let task = match sa.child_by_outbound(spi) {
                Some(child) if child.state == ChildState::Installed => Task::ReplaceChild(child.id),
                Some(_) => return false,
                None => Task::CreateChild(name.into()),
            };
            // Its Delete was no refusal, so nothing is waited for.
            sa.backoff.remove(name);
            sa.queue.retain(|(_, waiting)| *waiting != task);
            sa.enqueue(now, task);
            true
        });
        rebuilt == Some(true)
    }

    /// Deletes an IKE SA by an exchange.
    pub fn terminate_ike(&mut self, now: Time, ike: IkeSaId) -> Result<(), Refused> {
        let authority = Authority::Local("terminated by the operator");
        self.with_sa(now, ike, |e, sa| e.close(now, sa, authority)).ok_or(Refused::UnknownSa)
    }

    /// Deletes a Child SA by an exchange.
    pub fn terminate_child(&mut self, now: Time, child: ChildSaId) -> Result<(), Refused> {
        self.on_child(now, child, |_, sa, child| sa.enqueue(now, Task::DeleteChild(child)))
    }

    /// Rekeys an IKE SA.
    pub fn rekey_ike(&mut self, now: Time, ike: IkeSaId) -> Result<(), Refused> {
        let wish = self.with_sa(now, ike, |_, sa| {
            sa.is_established().then(|| sa.enqueue(now, Task::RekeyIke)).ok_or(Refused::UnknownSa)
        });
        wish.ok_or(Refused::UnknownSa)?
    }

    /// Rekeys a Child SA.
    pub fn rekey_child(&mut self, now: Time, child: ChildSaId) -> Result<(), Refused> {
        self.on_child(now, child, |e, sa, child| e.want_child_rekey(now, sa, child))
    }

    fn on_child(
        &mut self,
        now: Time,
        child: ChildSaId,
        wish: impl FnOnce(&mut Endpoint, &mut IkeSa, ChildSaId),
    ) -> Result<(), Refused> {
        let ike = self.child_home.get(&child).copied().ok_or(Refused::UnknownSa)?;
        let done = self.with_sa(now, ike, |e, sa| {
            let there =
                sa.is_established() && sa.child(child).is_some_and(|c| c.state == ChildState::Installed);
            there.then(|| wish(e, sa, child)).ok_or(Refused::UnknownSa)
        });
        done.ok_or(Refused::UnknownSa)?
    }

    /// A Child SA is to be rekeyed as soon as its turn comes.
    pub(crate) fn want_child_rekey(&mut self, now: Time, sa: &mut IkeSa, id: ChildSaId) {
        let Some(child) = sa.child(id) else { return };
        child.rekey_at = None;
        if child.state == ChildState::Rekeyed {
            return sa.enqueue(now, Task::DeleteChild(id));
        }
        if child.state == ChildState::Installed && !sa.rekeying_child(id) {
            sa.enqueue(now, Task::RekeyChild(id));
        }
    }

    /// A Child SA's life is over (RFC 4301 section 4.4.2.1: at the hard lifetime the SA is destroyed): both halves leave the
    /// dataplane, and the peer is told. One that starts by itself is made again.
    pub(crate) fn expire_child(&mut self, now: Time, sa: &mut IkeSa, id: ChildSaId) {
        let Some(child) = sa.child(id) else { return };
        (child.expires, child.rekey_at) = (None, None);
        let (name, state) = (child.config.name.clone(), child.state);
        self.stop_sending(child);
        self.stop_receiving(child);
        if state == ChildState::Deleting {
            return;
        }
        tracing::warn!(
            connection = sa.connection.name,
            name,
            "the Child SA's life ended before it was rekeyed"
        );
        sa.queue.retain(|(_, task)| *task != Task::RekeyChild(id));
        sa.enqueue(now, Task::DeleteChild(id));
        if state == ChildState::Installed && sa.connection.started().contains(&name) {
            sa.enqueue(now, Task::CreateChild(name));
        }
    }

    /// The first packet came on this inbound SA, which a rekey of the peer's made: its outbound half is used from
    /// now on.
    pub fn first_inbound(&mut self, now: Time, spi: Spi) {
        let Some(child) = self.child_spis.child(spi) else { return };
        let Some(ike) = self.child_home.get(&child).copied() else { return };
        self.with_sa(now, ike, |e, sa| e.switch_outbound(sa, child));
    }

    /// The SA with this index came to a limit of packets or octets: it is rekeyed, even if it may carry no more.
    pub fn lifetime(&mut self, now: Time, index: u32, _hard: bool) {
        let Some(child) = self.indices.child(index) else { return };
        let Some(ike) = self.child_home.get(&child).copied() else { return };
        self.with_sa(now, ike, |e, sa| e.want_child_rekey(now, sa, child));
    }

    /// A hint: starts a liveness exchange, or sends the outstanding request again if `again_after` has passed since
    /// it was last sent (RFC 7296 section 2.4; rate limits are the caller's). Beside our half-open IKE SA in IKE_AUTH
    /// it starts a fresh attempt.
    pub fn probe(&mut self, now: Time, ike: IkeSaId, again_after: Duration) -> ProbeResult {
        if self.begin_beside(now, ike) {
            return ProbeResult::Started;
        }
        let usable =
            |sa: &IkeSa| sa.established.is_some() && (sa.outstanding.is_some() || sa.is_established());
        if !self.sas.get(&ike).is_some_and(usable) {
            return ProbeResult::NoSuchSa;
        }
        let result = self.with_sa(now, ike, |e, sa| e.send_again(now, sa, again_after));
        result.unwrap_or(ProbeResult::NoSuchSa)
    }

    /// Does this IKE SA, an authenticated one, await an answer?
    pub fn awaits_answer(&self, ike: IkeSaId) -> bool {
        self.sas.get(&ike).is_some_and(|sa| sa.established.is_some() && sa.outstanding.is_some())
    }

    /// For drills: loses an IKE SA with its Child SAs as by a fault: the peer is not told, and nothing of it is remembered.
    pub fn forget_ike(&mut self, now: Time, ike: IkeSaId) -> Result<(), Refused> {
        let spis = self.with_sa(now, ike, |_, sa| {
            sa.end(Authority::Local("forgotten by the operator"), false);
            sa.children.iter().map(|child| child.inbound).collect::<Vec<_>>()
        });
        spis.ok_or(Refused::UnknownSa)?.into_iter().for_each(|spi| self.forget_child_spi(spi));
        Ok(())
    }

    /// For drills: loses a Child SA as by a fault: the peer is not told, and nothing of it is remembered.
    pub fn forget_child(&mut self, now: Time, child: ChildSaId) -> Result<(), Refused> {
        let ike = self.child_home.get(&child).copied().ok_or(Refused::UnknownSa)?;
        let lost = self.with_sa(now, ike, |e, sa| {
            let spi = sa.child(child).map(|child| child.inbound);
            e.remove_child(now, sa, child, false);
            spi
        });
        lost.flatten().into_iter().for_each(|spi| self.forget_child_spi(spi));
        Ok(())
    }

    /// Sends our QCD token to an IKE SA's peer in place of an earlier one (RFC 6290 section 4.4), as soon as its turn
    /// comes; [`Report::TokenAcknowledged`] tells when it arrived. `false` if the IKE SA is not one in use.
    pub fn send_token(&mut self, now: Time, ike: IkeSaId) -> bool {
        let sent = self.with_sa(now, ike, |_, sa| {
            sa.is_established().then(|| sa.enqueue(now, Task::SendToken)).is_some()
        });
        sent == Some(true)
    }

    /// Did the IKE SA with these SPIs end lately by a Delete that was exchanged? Then its peer holds it no more.
    pub fn ended_by_exchange(&self, spis: IkeSpis) -> bool {
        self.tombstones.stands(spis)
    }

    /// SPIs of earlier incarnations, never allocated.
    pub fn avoid_spis(&mut self, spis: impl Iterator<Item = Spi>) {
        self.child_spis.avoid(spis);
    }

    /// An SPI of an earlier incarnation expired.
    pub fn release_spi(&mut self, spi: Spi) {
        self.child_spis.forget(spi);
    }

    /// Is this one of our own IKE SPIs: half-open, of a rekey under way, established or being deleted?
    pub fn spi_in_use(&self, spi: IkeSpi) -> bool {
        self.by_own_spi(&spi).is_some()
    }

    /// The IKE SA with these SPIs.
    pub fn find_by_spis(&self, spis: IkeSpis) -> Option<IkeSaId> {
        let known = [spis.initiator, spis.responder].into_iter().filter_map(|spi| self.by_own_spi(&spi));
        known.into_iter().find(|id| self.sas.get(id).is_some_and(|sa| sa.spis == spis))
    }

    /// The IKE SAs that have, or recently had, an outbound SA with this SPI (several peers may choose the same).
    pub fn find_by_outbound_spi(&self, spi: Spi) -> Vec<IkeSaId> {
        let range = (spi, ChildSaId(0))..=(spi, ChildSaId(u64::MAX));
        let mut found: Vec<IkeSaId> = self.outbound.range(range).map(|(_, ike)| *ike).collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// The established IKE SAs between an ESP packet's ends, the newest first, 8 at most: by addresses, and by ports too if
    /// it came in UDP. A port of 0 says that it did not.
    pub fn find_by_esp_ends(&self, local: SocketAddr, remote: SocketAddr) -> Vec<IkeSaId> {
        let (first, last) = match remote.port() {
            0 => (remote, SocketAddr::new(remote.ip(), u16::MAX)),
            _ => (remote, remote),
        };
        let serves = |sa: &IkeSa| sa.is_established() && sa.local.ip() == local.ip();
        // Of each port the newest: a peer may have very many IKE SAs at one.
        let (mut newest, mut end) = (Vec::new(), Bound::Included((last, IkeSaId(u64::MAX))));
        let begin = Bound::Included((first, IkeSaId(0)));
        while let Some((at, _)) = self.by_remote.range((begin, end)).next_back().copied() {
            let there = self.by_remote.range((at, IkeSaId(0))..=(at, IkeSaId(u64::MAX)));
            let ids = there.rev().map(|(_, id)| *id);
            newest.extend(ids.filter(|id| self.sas.get(id).is_some_and(serves)).take(BETWEEN_ENDS));
            newest.sort_unstable_by(|one, other| other.cmp(one));
            newest.truncate(BETWEEN_ENDS);
            end = Bound::Excluded((at, IkeSaId(0)));
        }
        newest
    }

    /// Has every connection that may be between these addresses one of these IKE SAs? Else that of one may be lost.
    pub fn serve_all_between(&self, ike_sas: &[IkeSaId], local: IpAddr, remote: IpAddr) -> bool {
        let serves = |id: &IkeSaId, number| self.sas.get(id).is_some_and(|sa| sa.connection.number == number);
        self.candidates(local, remote).all(|c| ike_sas.iter().any(|id| serves(id, c.number)))
    }

    /// Is this Child SPI of ours larval, current or retired? Then a packet on it is no news.
    pub fn knows_child_spi(&self, spi: Spi) -> bool {
        self.child_spis.knows(spi)
    }

    /// Compares with the tokens stored for an IKE SA, in constant time (RFC 6290 section 5, at most four).
    pub fn verify_token(&self, ike: IkeSaId, token: &[u8]) -> Option<Authority> {
        let sa = self.sas.get(&ike).filter(|_| self.config.token_taker)?;
        sa.holds_token(token).then_some(Authority::Token(Evidence(())))
    }

    /// Ends an IKE SA and its Child SAs: silently, but for [`Authority::Local`], which is an exchange.
    pub fn delete_ike_sa(&mut self, now: Time, ike: IkeSaId, authority: Authority) {
        self.with_sa(now, ike, |e, sa| match authority {
            Authority::Local(_) => e.close(now, sa, authority),
            authority => sa.end(authority, false),
        });
    }

    /// An address of ours is on another machine from now on: what stands at it ends without a word, for nothing could be
    /// said from there, and nothing begins until [`Endpoint::address_came`].
    pub fn address_left(&mut self, now: Time, address: IpAddr) {
        self.absent.insert(address);
        let at_it = |sa: &&IkeSa| sa.local.ip() == address;
        let ids: Vec<IkeSaId> = self.sas.values().filter(at_it).map(|sa| sa.id).collect();
        for id in ids {
            self.with_sa(now, id, |_, sa| sa.end(Authority::Local("its address left this machine"), false));
        }
    }

    /// An address of ours is on this machine again.
    pub fn address_came(&mut self, address: IpAddr) {
        self.absent.remove(&address);
    }

    /// All IKE SAs, for people.
    pub fn sas(&self) -> Vec<IkeSaStatus> {
        self.sas.values().map(status).collect()
    }

    /// Those of one connection.
    pub fn sas_of(&self, connection: &str) -> Vec<IkeSaStatus> {
        let number = self.lookups.by_name.get(connection);
        let ids = number.into_iter().flat_map(|number| &self.connections[*number].sas);
        ids.filter_map(|id| self.sas.get(id)).map(status).collect()
    }

    /// How many IKE SAs there are, and how many Child SAs.
    pub fn count(&self) -> (usize, usize) {
        (self.sas.len(), self.child_home.len())
    }

    /// Sends a Delete for every IKE SA, one after the other so that links and sockets have room for them and for the
    /// answers, and starts none any more. When the last one is sent: 20 seconds from now at most.
    pub fn shut_down(&mut self, now: Time) -> Time {
        self.shutting_down = true;
        let all: Vec<IkeSaId> = self.sas.keys().copied().collect();
        let between = BETWEEN_DELETES.min(DELETES / (all.len() as u32).max(1));
        let mut turn = now;
        for id in all {
            self.with_sa(now, id, |e, sa| e.close(turn, sa, Authority::Local("the gateway ends")));
            turn = turn.after(between);
        }
        turn
    }
}

fn status(sa: &IkeSa) -> IkeSaStatus {
    let children = sa.children.iter().map(|c| ChildSaStatus {
        id: c.id,
        name: c.config.name.clone(),
        policy: c.config.policy,
        inbound: c.inbound,
        outbound: c.outbound,
        inbound_index: c.inbound_index,
        outbound_index: c.outbound_index,
        resource: c.share.resource(c.inbound),
        mode: c.mode,
        proposal: c.proposal.clone(),
        selectors: c.selectors.clone(),
        state: match c.state {
            ChildState::Installed if sa.rekeying_child(c.id) => "rekeying",
            ChildState::Installed => "installed",
            ChildState::Rekeyed => "rekeyed",
            ChildState::Deleting => "deleting",
        },
        installed: c.installed,
        encapsulated: c.encapsulated,
    });
    IkeSaStatus {
        id: sa.id,
        connection: sa.connection.name.clone(),
        spis: sa.spis,
        state: sa.state_name(),
        initiator: sa.initiator,
        local: sa.local,
        remote: sa.remote,
        remote_id: sa.remote_id.clone(),
        proposal: sa.keys.as_ref().map_or_else(String::new, |k| k.ike.suite().to_string()),
        established: sa.established,
        token_held: !sa.tokens.is_empty(),
        ticket_held: sa.ticket.is_some(),
        resumed: sa.resumed.is_some(),
        children: children.collect(),
    }
}
