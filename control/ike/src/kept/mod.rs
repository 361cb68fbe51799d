//! What of an endpoint outlives its process: each IKE SA with its Child SAs and the exchange under way, SPIs that were
//! removed lately, tombstones. They are for memory that another process holds; keys are in them.
//!
//! ```text
//! handler → the IKE SA is marked as changed → [`Endpoint::take_changes`] → written, all or none → the messages leave
//! ```
//!
//! So whatever a peer has seen of us, the memory holds: no Message ID is used for two contents (RFC 7296 section 2.2),
//! no IV twice (RFC 5282 section 3.1), and a retransmitted request gets the very response that it got before (section
//! 2.1). An exchange under way goes on where it was: its request is sent again bit by bit. What is begun again is an
//! initiation in its first exchange, of which nothing lasts at the peer.

pub(crate) mod field;

use crate::api::*;
use crate::crypto::Secret;
use crate::endpoint::Endpoint;
use crate::exchange::{Outstanding, Purpose};
use crate::sa::{ChildSa, IkeSa, Nat, Origin, Setup, State};
use crate::tombstone::LastResponse;
use field::{Field, Reader, Writer};
use spindle_abi::{Command, Limits, MAX_SAS, SaActivity, Spi, SpiState, Time};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

/// Changes with what the fields mean; with their names the layout changes by itself.
const VERSION: u64 = 1;

/// Records of another layout are nobody's: they are not adopted.
pub const LAYOUT: u64 = {
    let parts = [
        VERSION,
        spindle_abi::LAYOUT_HASH,
        IkeSa::FIELDS,
        ChildSa::FIELDS,
        Outstanding::FIELDS,
        Setup::FIELDS,
        Origin::FIELDS,
        Nat::FIELDS,
        LastResponse::FIELDS,
        crate::create_child::ChildOffer::FIELDS,
        crate::rekey_ike::IkeOffer::FIELDS,
        crate::auth::Authenticating::FIELDS,
        crate::collision::ChildCollision::FIELDS,
        crate::collision::IkeCollision::FIELDS,
        crate::ticket::Ticket::FIELDS,
        crate::resume::Resumed::FIELDS,
    ];
    let (mut hash, mut i) = (0u64, 0);
    while i < parts.len() {
        hash = (hash.rotate_left(5) ^ parts[i]).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        i += 1;
    }
    hash
};

/// What a record is of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Key {
    /// Of which incarnation the records are; written and read by recovery.
    Incarnation,
    /// The gateway: is it taken down?
    Gateway,
    /// An IKE SA.
    Ike(IkeSaId),
    /// A Child SPI of ours that was removed: it still receives for a while, or is retired.
    Spi(Spi),
    /// A tombstone, by our own SPI.
    Tombstone(IkeSpi),
    /// The policies' ids; written and read by recovery.
    Policies,
    /// The configuration that runs; written and read by the daemon.
    Configuration,
}

impl Key {
    /// As two numbers: the kind, and which one.
    pub fn numbers(self) -> [u64; 2] {
        match self {
            Key::Incarnation => [0, 0],
            Key::Gateway => [1, 0],
            Key::Ike(id) => [2, id.0],
            Key::Spi(spi) => [3, spi.0.into()],
            Key::Tombstone(own) => [4, u64::from_be_bytes(own)],
            Key::Policies => [5, 0],
            Key::Configuration => [6, 0],
        }
    }

    /// The other way; `None` if these are no key's.
    pub fn from_numbers(numbers: [u64; 2]) -> Option<Key> {
        match numbers {
            [0, 0] => Some(Key::Incarnation),
            [1, 0] => Some(Key::Gateway),
            [2, id] => Some(Key::Ike(IkeSaId(id))),
            [3, spi] => Some(Key::Spi(Spi(spi.try_into().ok()?))),
            [4, own] => Some(Key::Tombstone(own.to_be_bytes())),
            [5, 0] => Some(Key::Policies),
            [6, 0] => Some(Key::Configuration),
            _ => None,
        }
    }
}

/// A record is to be written, or is void. Redacted in Debug.
#[derive(Clone, PartialEq, Eq)]
pub struct Change {
    /// What of.
    pub key: Key,
    /// Its octets, with secrets; `None`: none stands from here on.
    pub record: Option<Secret>,
}

impl std::fmt::Debug for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Change({:?}, {:?} octets)", self.key, self.record.as_ref().map(|record| record.len()))
    }
}

/// What was adopted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Adopted {
    /// IKE SAs, half-open ones included.
    pub ike_sas: usize,
    /// Records that could not be read, or whose connection or child is configured no more: these SAs are lost.
    pub lost: usize,
    /// The take-down that was under way: to another gateway or none, and the peers' time for it.
    pub taken_down: Option<(Option<IpAddr>, Duration)>,
}

/// What is to be written.
#[derive(Default)]
pub(crate) struct Kept {
    changed: BTreeSet<IkeSaId>,
    others: BTreeMap<Key, Option<Secret>>,
}

impl Kept {
    /// This IKE SA changed, or ended.
    pub(crate) fn changed(&mut self, id: IkeSaId) {
        self.changed.insert(id);
    }
}

fn encode(value: &impl Field) -> Secret {
    let mut out = Writer::new();
    LAYOUT.put(&mut out);
    value.put(&mut out);
    out.finish()
}

impl Endpoint {
    /// From here on [`Endpoint::take_changes`] says what is to be kept.
    pub fn keep(&mut self) {
        self.kept.get_or_insert_default();
    }

    /// Is it kept what this endpoint needs to go on?
    pub fn keeps(&self) -> bool {
        self.kept.is_some()
    }

    /// What has changed since the last call: to be written as a whole before any output that was polled since, or is
    /// polled from here on, is carried out.
    pub fn take_changes(&mut self) -> Vec<Change> {
        let Some(kept) = &mut self.kept else { return Vec::new() };
        let changed = std::mem::take(&mut kept.changed);
        let others = std::mem::take(&mut kept.others);
        let of_ike = changed.into_iter().map(|id| {
            let sa = self.sas.get(&id).filter(|sa| is_kept(sa));
            Change { key: Key::Ike(id), record: sa.map(encode) }
        });
        let others = others.into_iter().map(|(key, record)| Change { key, record });
        of_ike.chain(others).collect()
    }

    pub(crate) fn note_changed(&mut self, id: IkeSaId) {
        self.kept.iter_mut().for_each(|kept| kept.changed(id));
    }

    fn keep_other(&mut self, key: Key, record: impl FnOnce() -> Option<Secret>) {
        if let Some(kept) = &mut self.kept {
            kept.others.insert(key, record());
        }
    }

    /// A removed SPI: until when it receives, or is retired.
    pub(crate) fn keep_spi(&mut self, spi: Spi, until: Time, receives: Option<u32>) {
        self.keep_other(Key::Spi(spi), || Some(encode(&(until, receives))));
    }

    pub(crate) fn keep_spi_no_more(&mut self, spi: Spi) {
        self.keep_other(Key::Spi(spi), || None);
    }

    pub(crate) fn keep_tombstone(
        &mut self,
        own: IkeSpi,
        spis: IkeSpis,
        last: &Option<LastResponse>,
        until: Time,
    ) {
        self.keep_other(Key::Tombstone(own), || {
            let mut out = Writer::new();
            LAYOUT.put(&mut out);
            (spis, until).put(&mut out);
            last.put(&mut out);
            Some(out.finish())
        });
    }

    pub(crate) fn keep_tombstone_no_more(&mut self, own: IkeSpi) {
        self.keep_other(Key::Tombstone(own), || None);
    }

    pub(crate) fn keep_taken_down(&mut self, to: Option<IpAddr>, grace: Duration) {
        self.keep_other(Key::Gateway, || Some(encode(&(to, grace))));
    }

    /// Takes up what an earlier process left, before anything else. The dataplane holds these SAs already, or it does
    /// not: the commands say again all that there is. What it holds beyond that is the caller's to have swept.
    pub fn adopt(&mut self, now: Time, records: Vec<(Key, Secret)>) -> Adopted {
        let mut adopted = Adopted::default();
        let mut ike_sas: Vec<Box<IkeSa>> = Vec::new();
        let (mut spis, mut tombstones) = (Vec::new(), Vec::new());
        for (key, record) in &records {
            let read = match key {
                Key::Incarnation | Key::Policies | Key::Configuration => Some(()),
                Key::Gateway => self.read(record).map(|taken_down| adopted.taken_down = Some(taken_down)),
                Key::Ike(id) => {
                    self.read::<Box<IkeSa>>(record).filter(|sa| is_sound(*id, sa)).map(|sa| ike_sas.push(sa))
                }
                Key::Spi(spi) => self
                    .read(record)
                    .filter(|(_, index): &(Time, Option<u32>)| index.is_none_or(|index| index < MAX_SAS))
                    .map(|(until, index)| spis.push((until, *spi, index))),
                Key::Tombstone(own) => {
                    self.read(record).map(|(head, last)| tombstones.push((head, last, *own)))
                }
            };
            adopted.lost += usize::from(read.is_none());
        }
        // Handles are given in order; an earlier one may be named by a later one only.
        ike_sas.sort_by_key(|sa| sa.id);
        adopted.ike_sas = ike_sas.len();
        for sa in &mut ike_sas {
            self.adopt_ike(now, sa);
        }
        spis.sort();
        for (until, spi, index) in spis {
            self.adopt_removed(spi, until, index);
        }
        self.indices.free_others();
        tombstones.sort_by_key(|((_, until), ..): &((IkeSpis, Time), Option<LastResponse>, IkeSpi)| *until);
        for ((spis, until), last, own) in tombstones {
            self.tombstones.insert(own, spis, last, until, self.config.max_tombstones);
        }
        // All that is taken is known now, and exchanges may begin.
        for mut sa in ike_sas {
            let children: Vec<ChildSaId> = sa.children.iter().map(|child| child.id).collect();
            for id in children {
                self.catch_up(now, &mut sa, id);
            }
            self.insert_sa(now, sa);
        }
        adopted
    }

    fn read<T: Field>(&self, record: &[u8]) -> Option<T> {
        let find = |name: &str| Some(self.connections[*self.lookups.by_name.get(name)?].profile.clone());
        let mut from = Reader::new(record, &find);
        let layout = u64::take(&mut from)?;
        let value = T::take(&mut from).filter(|_| layout == LAYOUT)?;
        from.is_at_end().then_some(value)
    }

    fn adopt_ike(&mut self, now: Time, sa: &mut IkeSa) {
        self.next_id = self.next_id.max(sa.id.0 + 1);
        if sa.established.is_some() {
            self.contacted.insert(crate::auth::peer(&sa.connection));
        }
        if let Some(source) = sa.half_open {
            self.half_open.enter(source);
        }
        if let Some(hash) = sa.init_hash {
            self.by_init.insert(hash, sa.id);
        }
        if let Some(outstanding) = &mut sa.outstanding {
            outstanding.schedule.missed(now);
        }
        let offered = match sa.outstanding.as_ref().map(|outstanding| &outstanding.purpose) {
            Some(Purpose::Auth(auth)) => Some(auth.child.inbound),
            Some(Purpose::CreateChild(offer)) => Some(offer.inbound),
            Some(Purpose::RekeyIke(offer)) => {
                self.reserve_spi(offer.spi, sa.id);
                None
            }
            _ => None,
        };
        if let Some(spi) = offered {
            self.child_spis.reserve(spi);
            self.dataplane(Command::SetSpiState { spi, state: SpiState::Larval });
        }
        for child in &sa.children {
            self.adopt_child(sa.id, child);
        }
        let remembered = now.after(self.config.retired_lifetime);
        for (spi, child) in &sa.recent_outbound {
            self.recent_outbound.push_back((remembered, *spi, *child));
            self.outbound.insert((*spi, *child), sa.id);
            self.next_id = self.next_id.max(child.0 + 1);
        }
    }

    fn adopt_child(&mut self, ike: IkeSaId, child: &ChildSa) {
        self.next_id = self.next_id.max(child.id.0 + 1);
        self.child_spis.install(child.inbound, child.id);
        self.indices.occupy(child.inbound_index, child.id);
        self.indices.occupy(child.outbound_index, child.id);
        self.child_home.insert(child.id, ike);
        self.outbound.insert((child.outbound, child.id), ike);
        let mut inbound = (*child.inbound_command).clone();
        if let Command::InstallInbound { report_first, .. } = &mut inbound {
            *report_first &= child.outbound_waits;
        }
        let retired = Command::SetSpiState { spi: child.inbound, state: SpiState::Retired };
        self.dataplane(if child.inbound_installed { inbound } else { retired });
        if child.outbound_installed {
            self.dataplane(Command::InstallOutbound { sa: (*child.outbound_sa).clone() });
            let (index, local, remote) =
                (child.outbound_index, child.outbound_sa.local, child.outbound_sa.remote);
            self.dataplane(Command::Readdress { index, local, remote });
        }
    }

    /// What the dataplane may have told while nobody listened.
    fn catch_up(&mut self, now: Time, sa: &mut IkeSa, id: ChildSaId) {
        let Some(child) = sa.child(id) else { return };
        let installed = child.installed;
        // What is older is of another SA that had this slot.
        let carried = |index| Some(self.activity.activity(index)).filter(|a| a.last >= installed);
        let (received, sent) = (carried(child.inbound_index), carried(child.outbound_index));
        let used = child.outbound_waits && received.is_some_and(|received| received.packets > 0);
        let soft = child.outbound_sa.soft;
        let worn = [received, sent].into_iter().flatten().any(|carried| has_reached(carried, soft));
        if used {
            self.switch_outbound(sa, id);
        }
        if worn {
            self.want_child_rekey(now, sa, id);
        }
    }

    fn adopt_removed(&mut self, spi: Spi, until: Time, index: Option<u32>) {
        match index {
            Some(index) => {
                // Of no Child SA any more; the slot is taken until it goes.
                self.indices.occupy(index, ChildSaId(0));
                self.child_spis.install(spi, ChildSaId(0));
                self.lingering.push_back((until, spi, index));
                self.dataplane(Command::ConfirmInbound { spi, index });
            }
            None => {
                self.child_spis.retire(spi, until);
                self.dataplane(Command::SetSpiState { spi, state: SpiState::Retired });
            }
        }
    }
}

/// Zero is no limit. Both directions have the same.
fn has_reached(carried: SaActivity, limits: Limits) -> bool {
    limits.packets > 0 && carried.packets >= limits.packets
        || limits.bytes > 0 && carried.bytes >= limits.bytes
}

/// From the end of its first exchange on.
fn is_kept(sa: &IkeSa) -> bool {
    let first = sa.outstanding.as_ref().is_some_and(|outstanding| outstanding.purpose.is_first());
    sa.keys.is_some() && !first && sa.ended.is_none()
}

/// Does what was read make an IKE SA?
fn is_sound(id: IkeSaId, sa: &IkeSa) -> bool {
    let children = |child: &ChildSa| match &*child.inbound_command {
        Command::InstallInbound { sa, .. } => {
            let outbound = &child.outbound_sa;
            (sa.spi, sa.index) == (child.inbound, child.inbound_index)
                && (outbound.spi, outbound.index) == (child.outbound, child.outbound_index)
        }
        _ => false,
    };
    sa.id == id
        && sa.keys.is_some()
        && sa.spis.initiator != [0; 8]
        && sa.spis.responder != [0; 8]
        && sa.established.is_some() != matches!(sa.state, State::Connecting | State::Refused)
        && sa.children.iter().all(children)
}
