//! Child SAs in the dataplane: how they are installed, take over, are removed. Make-before-break: new inbound, then
//! outbound, then the old inbound after a while.

use crate::api::*;
use crate::connect::ChildProfile;
use crate::endpoint::{Endpoint, NAT_PORT};
use crate::resources::Share;
use crate::sa::{ChildSa, ChildState, IkeSa, jittered};
use spindle_abi::{
    Command, KeyMaterial, Limits, Mode, SaParameters, SelectorSet, Spi, SpiState, Suite, Time,
};
use std::net::SocketAddr;
use std::rc::Rc;

/// When a new Child SA begins to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sends {
    /// At once: a first Child SA, and the initiator of a rekey.
    AtOnce,
    /// The responder of a rekey: once a packet comes on it, or the Delete of the old one (RFC 7296 section 2.8: the
    /// initiator may not yet receive on it).
    OnceUsed,
    /// Never: it lost against a rekey that crossed it, and is about to be deleted.
    Never,
}

/// What an exchange agreed on.
pub(crate) struct Agreed {
    pub(crate) config: Rc<ChildProfile>,
    pub(crate) inbound: Spi,
    pub(crate) outbound: Spi,
    pub(crate) mode: Mode,
    pub(crate) selectors: SelectorSet,
    pub(crate) suite: Suite,
    pub(crate) esn: bool,
    pub(crate) proposal: String,
    pub(crate) inbound_keys: KeyMaterial,
    pub(crate) outbound_keys: KeyMaterial,
    pub(crate) replaces: Option<ChildSaId>,
    /// That of a Child SA which replaces none.
    pub(crate) share: Share,
}

/// An SA asks to be rekeyed after this many packets at the latest: well before 2^32 of them, or 2^64, where sequence
/// numbers end (RFC 4303 section 3.3.3).
const fn last_packets(esn: bool) -> u64 {
    if esn { 3 << 62 } else { 3 << 30 }
}

/// Removed outbound SPIs that an IKE SA remembers at most.
const RECENT_OUTBOUND: usize = 64;

impl Endpoint {
    /// A larval SPI; the dataplane knows of it before the message that carries it leaves.
    pub(crate) fn allocate_child_spi(&mut self) -> Option<Spi> {
        let spi = self.child_spis.allocate(&mut *self.random)?;
        self.dataplane(Command::SetSpiState { spi, state: SpiState::Larval });
        Some(spi)
    }

    /// A larval SPI came to nothing.
    pub(crate) fn release_child_spi(&mut self, spi: Spi) {
        self.child_spis.release(spi);
        self.dataplane(Command::SetSpiState { spi, state: SpiState::Unknown });
    }

    /// Installs what an exchange agreed on. `None`, and the SPI unknown again, if no slot is free.
    pub(crate) fn install_child(
        &mut self,
        now: Time,
        sa: &mut IkeSa,
        agreed: Agreed,
        sends: Sends,
    ) -> Option<ChildSaId> {
        let id = ChildSaId(self.next_id());
        let Some((inbound_index, outbound_index)) = self.indices.allocate_pair(id) else {
            self.release_child_spi(agreed.inbound);
            return None;
        };
        // RFC 7296 section 2.23: UDP encapsulation MUST NOT be done on port 500.
        let encapsulated = sa.nat.encapsulates() && sa.local.port() == NAT_PORT;
        let (local, remote) = esp_ends(sa, encapsulated);
        // RFC 9611 section 3: the rekeyed Child SA should be bound to the same resource.
        let replaced = agreed.replaces.and_then(|old| sa.child(old));
        let share = replaced.map_or(agreed.share, |old| old.share);
        let resource = share.resource(agreed.inbound);
        let parameters = |spi, index, keymat, soft| SaParameters {
            spi,
            index,
            policy: agreed.config.policy,
            resource,
            mode: agreed.mode,
            suite: agreed.suite,
            keymat,
            local,
            remote,
            encapsulated,
            selectors: agreed.selectors.clone(),
            esn: agreed.esn,
            soft,
            hard: agreed.config.lifetime.life,
        };
        let soft = soft_limits(agreed.config.lifetime.rekey, agreed.esn, self.random_u32());
        let outbound = parameters(agreed.outbound, outbound_index, agreed.outbound_keys, soft);
        let inbound = Command::InstallInbound {
            sa: parameters(agreed.inbound, inbound_index, agreed.inbound_keys, soft),
            replay_window: agreed.config.replay_window,
            report_first: sends == Sends::OnceUsed,
        };
        self.dataplane(inbound.clone());
        self.child_spis.install(agreed.inbound, id);
        sa.backoff.remove(&agreed.config.name);
        let rekey_at = jittered(now, agreed.config.rekey_time, self.random_u32());
        let child = ChildSa {
            id,
            inbound: agreed.inbound,
            outbound: agreed.outbound,
            inbound_index,
            outbound_index,
            mode: agreed.mode,
            proposal: agreed.proposal,
            selectors: agreed.selectors.clone(),
            state: ChildState::Installed,
            share,
            installed: now,
            rekey_at,
            expires: Some(agreed.config.lifetime.life_time).filter(|t| !t.is_zero()).map(|t| now.after(t)),
            encapsulated,
            inbound_command: Box::new(inbound),
            outbound_sa: Box::new(outbound),
            outbound_waits: sends != Sends::Never,
            outbound_installed: false,
            inbound_installed: true,
            replaces: agreed.replaces,
            lowest_nonce: Vec::new(),
            confirmed_by: None,
            config: agreed.config,
        };
        self.child_home.insert(id, sa.id);
        self.outbound.insert((child.outbound, id), sa.id);
        let installed = Report::ChildInstalled {
            ike: sa.id,
            child: id,
            connection: sa.connection.name.clone(),
            name: child.config.name.clone(),
            inbound: child.inbound,
            outbound: child.outbound,
            local: sa.local,
            remote: sa.remote,
            encapsulated,
            replaces: child.replaces,
        };
        // Most IKE SAs have one.
        sa.children.reserve_exact(1);
        sa.children.push(child);
        if sends == Sends::AtOnce {
            self.switch_outbound(sa, id);
        }
        self.report(installed);
        Some(id)
    }

    /// Installs the outbound SA, if it waits.
    fn begin_to_send(&mut self, child: &mut ChildSa) {
        if std::mem::take(&mut child.outbound_waits) {
            self.dataplane(Command::InstallOutbound { sa: (*child.outbound_sa).clone() });
            child.outbound_installed = true;
        }
    }

    /// The peer receives on this Child SA: send on it, and no more on the one that it replaces.
    pub(crate) fn switch_outbound(&mut self, sa: &mut IkeSa, id: ChildSaId) {
        let Some(child) = sa.children.iter_mut().find(|c| c.id == id) else { return };
        self.begin_to_send(child);
        let replaced = child.replaces;
        if let Some(old) = replaced.and_then(|old| sa.child(old)) {
            self.stop_sending(old);
        }
    }

    /// Removes the outbound SA, if it is installed.
    pub(crate) fn stop_sending(&mut self, child: &mut ChildSa) {
        child.outbound_waits = false;
        if std::mem::take(&mut child.outbound_installed) {
            self.dataplane(Command::RemoveOutbound { index: child.outbound_index });
        }
    }

    /// Removes the inbound SA, if it is installed; its SPI and its slot stay the Child SA's own.
    pub(crate) fn stop_receiving(&mut self, child: &mut ChildSa) {
        if std::mem::take(&mut child.inbound_installed) {
            self.dataplane(Command::SetSpiState { spi: child.inbound, state: SpiState::Retired });
        }
    }

    /// Removes a Child SA. Its inbound half receives for `linger` more if something took its place (packets may be on
    /// their way), and its SPI is retired afterwards. Successors that waited for this begin to send.
    pub(crate) fn remove_child(&mut self, now: Time, sa: &mut IkeSa, id: ChildSaId, linger: bool) {
        let Some(position) = sa.children.iter().position(|c| c.id == id) else { return };
        let waiting: Vec<ChildSaId> =
            sa.children.iter().filter(|c| c.replaces == Some(id) && c.outbound_waits).map(|c| c.id).collect();
        for successor in waiting {
            self.switch_outbound(sa, successor);
        }
        let child = sa.children.remove(position);
        // A hint about its outbound SPI still leads here for a while.
        let remembered = now.after(self.config.retired_lifetime);
        self.recent_outbound.push_back((remembered, child.outbound, child.id));
        if sa.recent_outbound.len() == RECENT_OUTBOUND {
            let oldest = sa.recent_outbound.remove(0);
            self.outbound.remove(&oldest);
        }
        sa.recent_outbound.push((child.outbound, child.id));
        self.discard_child(now, child, linger);
    }

    /// An SPI that was retired becomes unknown at once, here and in the dataplane.
    pub(crate) fn forget_child_spi(&mut self, spi: Spi) {
        self.child_spis.unretire(spi);
        self.keep_spi_no_more(spi);
        self.dataplane(Command::SetSpiState { spi, state: SpiState::Unknown });
    }

    /// The end of a Child SA that no IKE SA has any more.
    pub(crate) fn discard_child(&mut self, now: Time, mut child: ChildSa, linger: bool) {
        self.stop_sending(&mut child);
        self.child_home.remove(&child.id);
        self.indices.release(child.outbound_index);
        self.report(Report::ChildDeleted {
            child: child.id,
            inbound: child.inbound,
            outbound: child.outbound,
        });
        if linger && child.inbound_installed {
            let until = now.after(self.config.linger);
            self.lingering.push_back((until, child.inbound, child.inbound_index));
            self.keep_spi(child.inbound, until, Some(child.inbound_index));
        } else {
            self.stop_receiving(&mut child);
            self.retire_inbound(now, child.inbound, child.inbound_index);
        }
    }

    /// The SPI and the slot of an inbound SA that the dataplane has no more.
    fn retire_inbound(&mut self, now: Time, spi: Spi, index: u32) {
        self.indices.release(index);
        let until = now.after(self.config.retired_lifetime);
        self.child_spis.retire(spi, until);
        self.keep_spi(spi, until, None);
    }

    /// What is due of removed Child SAs.
    pub(crate) fn tick_removed(&mut self, now: Time) {
        while self.lingering.front().is_some_and(|(at, ..)| *at <= now) {
            if let Some((_, spi, index)) = self.lingering.pop_front() {
                self.dataplane(Command::SetSpiState { spi, state: SpiState::Retired });
                self.retire_inbound(now, spi, index);
            }
        }
        while let Some(spi) = self.child_spis.expire(now) {
            self.keep_spi_no_more(spi);
            self.dataplane(Command::SetSpiState { spi, state: SpiState::Unknown });
        }
        while self.recent_outbound.front().is_some_and(|(at, ..)| *at <= now) {
            if let Some((_, spi, child)) = self.recent_outbound.pop_front() {
                self.outbound.remove(&(spi, child));
            }
        }
    }

    /// When [`Endpoint::tick_removed`] has something to do.
    pub(crate) fn removed_deadline(&self) -> Option<Time> {
        let lingering = self.lingering.front().map(|(at, ..)| *at);
        let recent = self.recent_outbound.front().map(|(at, ..)| *at);
        [lingering, recent, self.child_spis.deadline()].into_iter().flatten().min()
    }

    /// All Child SAs go from one IKE SA to its successor (RFC 7296 section 2.8: the new IKE SA inherits them).
    pub(crate) fn move_children(&mut self, from: &mut IkeSa, to: &mut IkeSa) {
        for key in from.recent_outbound.drain(..) {
            if let Some(home) = self.outbound.get_mut(&key) {
                *home = to.id;
                to.recent_outbound.push(key);
            }
        }
        for child in &from.children {
            self.child_home.insert(child.id, to.id);
            self.outbound.insert((child.outbound, child.id), to.id);
            self.report(Report::ChildMoved { child: child.id, inbound: child.inbound, ike: to.id });
        }
        let moved = !from.children.is_empty() && (from.local, from.remote) != (to.local, to.remote);
        to.children.append(&mut from.children);
        // An IKE rekey waits until the exchanges of Child SAs are over (RFC 7296 section 2.25.1).
        to.children.iter_mut().for_each(|child| child.confirmed_by = None);
        if moved {
            self.readdress(to);
        }
    }

    /// The peer's address changed (RFC 7296 section 2.23): its Child SAs follow.
    pub(crate) fn readdress(&mut self, sa: &mut IkeSa) {
        let (local, remote) = esp_ends(sa, true);
        for child in sa.children.iter_mut().filter(|c| c.encapsulated) {
            if child.inbound_installed {
                self.dataplane(Command::Readdress { index: child.inbound_index, local, remote });
            }
            if child.outbound_installed {
                self.dataplane(Command::Readdress { index: child.outbound_index, local, remote });
            }
            (child.outbound_sa.local, child.outbound_sa.remote) = (local, remote);
            if let Command::InstallInbound { sa, .. } = &mut *child.inbound_command {
                (sa.local, sa.remote) = (local, remote);
            }
        }
    }
}

/// The limits at which an SA is to be rekeyed. `random` is any number.
fn soft_limits(rekey: Limits, esn: bool, random: u32) -> Limits {
    let share = u128::from(random);
    let jittered = |limit: u64| limit - ((u128::from(limit / 10) * share) >> 32) as u64;
    let last = last_packets(esn);
    let packets = if rekey.packets == 0 { last } else { rekey.packets.min(last) };
    Limits { packets: jittered(packets), bytes: jittered(rekey.bytes) }
}

/// The outer ends of ESP: IKE's own, with ports only in UDP (RFC 3948: the same ports as IKE's).
fn esp_ends(sa: &IkeSa, encapsulated: bool) -> (SocketAddr, SocketAddr) {
    if encapsulated {
        return (sa.local, sa.remote);
    }
    (SocketAddr::new(sa.local.ip(), 0), SocketAddr::new(sa.remote.ip(), 0))
}
