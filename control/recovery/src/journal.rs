//! The journal: which inbound SPIs are ours and of which IKE SA, kept in step on disk (RFC 6290 section 8.2), and
//! what an earlier incarnation left there.
//!
//! The endpoint's reports come in, writes go out. A record is put when a Child SA is installed, rewritten when an
//! IKE rekey moves it to another parent, and removed when the Child SA is gone on both sides. After a timeout it
//! stays: the peer may still send on that SPI, and the next incarnation should tell it.

use crate::api::{Config, JournalRecord, JournalWrite};
use spindle_abi::{Spi, Time};
use spindle_ike::api::{ChildSaId, ConnectionConfig, IkeSaId, IkeSaStatus, IkeSpis, Shared};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Records outlive their SA's soft lifetime by this factor…
const LIFETIMES: u64 = 2;
/// … and live at least this long (the peer's lifetimes may be longer than ours).
const SHORTEST: u64 = 24 * 3600;
/// Between two Child SAs of one IKE SA that are made again.
const REBUILD: Duration = Duration::from_secs(1);
/// Where no lifetime is configured.
const UNLIMITED: u64 = 30 * 24 * 3600;

/// An IKE SA as the journal needs it.
#[derive(Clone, Debug)]
pub(crate) struct IkeRow {
    pub(crate) spis: IkeSpis,
    pub(crate) connection: String,
    pub(crate) initiator: bool,
    pub(crate) children: Vec<ChildSaId>,
    /// When a Child SA that the peer had lost was last made again on it.
    pub(crate) rebuilt: Option<Time>,
}

/// A Child SA.
#[derive(Clone, Debug)]
pub(crate) struct ChildRow {
    pub(crate) ike: IkeSaId,
    pub(crate) record: JournalRecord,
}

/// The SAs that live, as they stand in the journal.
pub(crate) struct Journal {
    incarnation: u64,
    /// How long a record lives, by connection and child, in seconds.
    lifetimes: HashMap<String, HashMap<String, u64>>,
    ike_sas: HashMap<IkeSaId, IkeRow>,
    by_connection: HashMap<String, BTreeSet<IkeSaId>>,
    children: HashMap<ChildSaId, ChildRow>,
    by_spi: HashMap<Spi, ChildSaId>,
    /// Child SAs that are gone; what becomes of their records is clear once all reports of this moment are in.
    gone: Vec<ChildRow>,
    /// IKE SAs that timed out just now.
    timed_out: Vec<IkeSaId>,
    writes: Vec<JournalWrite>,
}

/// What the endpoint reports of a new Child SA.
pub(crate) struct Installed<'a> {
    pub(crate) ike: IkeSaId,
    pub(crate) child: ChildSaId,
    pub(crate) connection: &'a str,
    pub(crate) name: &'a str,
    pub(crate) inbound: Spi,
    /// Outer address and IKE port.
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) encapsulated: bool,
}

impl Journal {
    pub(crate) fn new(config: &Config, incarnation: u64) -> Journal {
        Journal {
            incarnation,
            lifetimes: lifetimes(config),
            ike_sas: HashMap::new(),
            by_connection: HashMap::new(),
            children: HashMap::new(),
            by_spi: HashMap::new(),
            gone: Vec::new(),
            timed_out: Vec::new(),
            writes: Vec::new(),
        }
    }

    /// Records are of this configuration from here on.
    pub(crate) fn reconfigure(&mut self, config: &Config) {
        self.lifetimes = lifetimes(config);
    }

    /// The SAs of an earlier process of this incarnation, and what came to the disk of them. `now`: seconds since 1970.
    pub(crate) fn adopt(&mut self, now: u64, sas: &[IkeSaStatus], on_disk: &[JournalRecord]) {
        let mut on_disk: BTreeMap<Spi, &JournalRecord> =
            on_disk.iter().map(|record| (record.spi, record)).collect();
        for sa in sas.iter().filter(|sa| sa.established.is_some()) {
            self.ike_established(sa.id, sa.spis, &sa.connection, sa.initiator);
            for child in &sa.children {
                let installed = Installed {
                    ike: sa.id,
                    child: child.id,
                    connection: &sa.connection,
                    name: &child.name,
                    inbound: child.inbound,
                    local: sa.local,
                    remote: sa.remote,
                    encapsulated: child.encapsulated,
                };
                self.child_installed(now, installed);
                let Some(row) = self.children.get_mut(&child.id) else { continue };
                let before = on_disk.remove(&child.inbound).filter(|before| before.child == row.record.child);
                let Some(before) = before else { continue };
                row.record.hard_expiry = before.hard_expiry;
                // A rekey whose write was lost has made another parent of it.
                row.record.earlier_parent = match before.parent == row.record.parent {
                    true => before.earlier_parent,
                    false => Some(before.parent),
                };
                self.writes.pop();
                if row.record != *before {
                    self.writes.push(JournalWrite::Put(row.record.clone()));
                }
            }
        }
        // Their Child SAs had gone, and that did not come to the disk.
        self.writes.extend(on_disk.into_keys().map(JournalWrite::Remove));
    }

    pub(crate) fn ike_sa(&self, ike: IkeSaId) -> Option<&IkeRow> {
        self.ike_sas.get(&ike)
    }

    /// May a Child SA be made again on this IKE SA now, after the peer lost it? Once a second: a peer that reports
    /// every new SA as unknown keeps us busy no further.
    pub(crate) fn may_rebuild(&mut self, now: Time, ike: IkeSaId) -> bool {
        let Some(row) = self.ike_sas.get_mut(&ike) else { return false };
        let may = row.rebuilt.is_none_or(|last| now.since(last) >= REBUILD);
        if may {
            row.rebuilt = Some(now);
        }
        may
    }

    /// All IKE SAs, in the order of their making.
    pub(crate) fn all(&self) -> Vec<IkeSaId> {
        let mut all: Vec<IkeSaId> = self.ike_sas.keys().copied().collect();
        all.sort_unstable();
        all
    }

    /// How many IKE SAs there are.
    pub(crate) fn len(&self) -> usize {
        self.ike_sas.len()
    }

    /// The IKE SAs of a connection.
    pub(crate) fn of_connection(&self, connection: &str) -> impl Iterator<Item = (IkeSaId, &IkeRow)> {
        let ids = self.by_connection.get(connection).into_iter().flatten();
        ids.filter_map(|id| Some((*id, self.ike_sas.get(id)?)))
    }

    /// `true` if it is the connection's first one in this incarnation.
    pub(crate) fn ike_established(
        &mut self,
        ike: IkeSaId,
        spis: IkeSpis,
        connection: &str,
        initiator: bool,
    ) -> bool {
        let first = !self.by_connection.contains_key(connection);
        self.by_connection.entry(connection.to_owned()).or_default().insert(ike);
        let connection = connection.to_owned();
        self.ike_sas.insert(ike, IkeRow { spis, connection, initiator, children: Vec::new(), rebuilt: None });
        first
    }

    pub(crate) fn ike_rekeyed(&mut self, old: IkeSaId, new: IkeSaId, spis: IkeSpis, initiator: bool) {
        let Some(connection) = self.ike_sas.get(&old).map(|row| row.connection.clone()) else { return };
        let children = self.ike_sas.get(&new).map_or_else(Vec::new, |row| row.children.clone());
        self.by_connection.entry(connection.clone()).or_default().insert(new);
        self.ike_sas.insert(new, IkeRow { spis, connection, initiator, children, rebuilt: None });
    }

    /// `untold`: the peer was not told and did not tell.
    pub(crate) fn ike_deleted(&mut self, ike: IkeSaId, untold: bool) {
        if untold {
            self.timed_out.push(ike);
        }
        let Some(row) = self.ike_sas.remove(&ike) else { return };
        if let Some(ids) = self.by_connection.get_mut(&row.connection) {
            ids.remove(&ike);
        }
    }

    /// `now`: seconds since 1970.
    pub(crate) fn child_installed(&mut self, now: u64, new: Installed<'_>) {
        let Some(ike) = self.ike_sas.get_mut(&new.ike) else { return };
        ike.children.push(new.child);
        let lifetime = self.lifetimes.get(new.connection).and_then(|children| children.get(new.name));
        let lifetime = lifetime.copied().unwrap_or(UNLIMITED);
        let record = JournalRecord {
            spi: new.inbound,
            parent: ike.spis,
            earlier_parent: None,
            initiator: ike.initiator,
            connection: new.connection.to_owned(),
            child: new.name.to_owned(),
            local: new.local,
            remote: new.remote,
            encapsulated: new.encapsulated,
            incarnation: self.incarnation,
            hard_expiry: now.saturating_add(lifetime),
        };
        self.by_spi.insert(new.inbound, new.child);
        self.writes.push(JournalWrite::Put(record.clone()));
        self.children.insert(new.child, ChildRow { ike: new.ike, record });
    }

    /// After a crash the peer may hold either parent's token only: the new one's may still have been on its way.
    pub(crate) fn child_moved(&mut self, child: ChildSaId, ike: IkeSaId) {
        let Some(row) = self.children.get_mut(&child) else { return };
        let Some(parent) = self.ike_sas.get_mut(&ike) else { return };
        if row.ike == ike {
            return;
        }
        parent.children.push(child);
        let old = std::mem::replace(&mut row.ike, ike);
        row.record.earlier_parent = Some(std::mem::replace(&mut row.record.parent, parent.spis));
        row.record.initiator = parent.initiator;
        self.writes.push(JournalWrite::Put(row.record.clone()));
        if let Some(old) = self.ike_sas.get_mut(&old) {
            old.children.retain(|c| *c != child);
        }
    }

    /// Has this IKE SA its peer at this address? `false` for one without Child SAs.
    pub(crate) fn is_at(&self, ike: IkeSaId, remote: IpAddr) -> bool {
        let child = self.ike_sas.get(&ike).and_then(|row| self.children.get(row.children.first()?));
        child.is_some_and(|child| child.record.remote.ip() == remote)
    }

    /// The peer is elsewhere: a crash is told to it there.
    pub(crate) fn moved(&mut self, ike: IkeSaId, remote: SocketAddr) {
        let Some(row) = self.ike_sas.get(&ike) else { return };
        for child in &row.children {
            if let Some(child) = self.children.get_mut(child) {
                child.record.remote = remote;
                self.writes.push(JournalWrite::Put(child.record.clone()));
            }
        }
    }

    pub(crate) fn child_deleted(&mut self, child: ChildSaId) {
        let Some(row) = self.children.remove(&child) else { return };
        if self.by_spi.get(&row.record.spi) == Some(&child) {
            self.by_spi.remove(&row.record.spi);
        }
        if let Some(ike) = self.ike_sas.get_mut(&row.ike) {
            ike.children.retain(|c| *c != child);
        }
        self.gone.push(row);
    }

    /// Is it the SPI of a Child SA that lives?
    pub(crate) fn is_current(&self, spi: Spi) -> bool {
        self.by_spi.contains_key(&spi)
    }

    /// Names of the Child SAs of an IKE SA, each once.
    pub(crate) fn child_names(&self, ike: IkeSaId) -> Vec<String> {
        let Some(ike) = self.ike_sas.get(&ike) else { return Vec::new() };
        let mut names: Vec<String> = Vec::new();
        for row in ike.children.iter().filter_map(|child| self.children.get(child)) {
            if !names.contains(&row.record.child) {
                names.push(row.record.child.clone());
            }
        }
        names
    }

    /// The writes of this moment, in order. Call it when the endpoint has reported all.
    pub(crate) fn take_writes(&mut self) -> Vec<JournalWrite> {
        let timed_out = std::mem::take(&mut self.timed_out);
        for row in std::mem::take(&mut self.gone) {
            let again = self.by_spi.contains_key(&row.record.spi);
            if !again && !timed_out.contains(&row.ike) {
                self.writes.push(JournalWrite::Remove(row.record.spi));
            }
        }
        std::mem::take(&mut self.writes)
    }
}

/// Seconds that a peer may hold an SA of any connection at most, in which nothing is heard of it here.
pub(crate) fn longest_lifetime(config: &Config) -> u64 {
    let of = |c: &Shared<ConnectionConfig>| {
        c.children.iter().map(|child| lifetime(c.rekey_time, child.rekey_time)).max().unwrap_or(UNLIMITED)
    };
    config.connections.iter().map(of).max().unwrap_or(SHORTEST)
}

/// Seconds that the records of each child live, by connection.
fn lifetimes(config: &Config) -> HashMap<String, HashMap<String, u64>> {
    let of = |c: &Shared<ConnectionConfig>| {
        let children = c.children.iter();
        children.map(|child| (child.name.clone(), lifetime(c.rekey_time, child.rekey_time))).collect()
    };
    config.connections.iter().map(|c| (c.name.clone(), of(c))).collect()
}

/// Seconds that a record lives: the peer may hold the SA as long.
fn lifetime(ike: Duration, child: Duration) -> u64 {
    if ike.is_zero() || child.is_zero() {
        UNLIMITED
    } else {
        ike.max(child).as_secs().saturating_mul(LIFETIMES).max(SHORTEST)
    }
}

/// One SPI of an earlier incarnation.
#[derive(Clone, Debug)]
pub(crate) struct Former {
    pub(crate) record: JournalRecord,
    /// When its recorded address was last told.
    pub(crate) answered: Option<Time>,
}

/// The SPIs of earlier incarnations that have not expired.
#[derive(Default)]
pub(crate) struct FormerTable {
    /// In ascending order, as the journal has them: a start need not sort what it reads. By themselves, for they are
    /// searched: a million of them fill 4 MB.
    spis: Vec<Spi>,
    /// At the same places. `None` has expired.
    rows: Vec<Option<Former>>,
    expiries: BinaryHeap<Reverse<(u64, Spi)>>,
}

impl FormerTable {
    pub(crate) fn new(mut records: Vec<JournalRecord>) -> FormerTable {
        if !records.is_sorted_by_key(|record| record.spi) {
            records.sort_by_key(|record| record.spi);
        }
        let expiries = records.iter().map(|record| Reverse((record.hard_expiry, record.spi))).collect();
        let spis = records.iter().map(|record| record.spi).collect();
        let former = |record| Some(Former { record, answered: None });
        let rows = records.into_iter().map(former).collect();
        FormerTable { spis, rows, expiries }
    }

    /// In ascending order.
    pub(crate) fn spis(&self) -> impl Iterator<Item = Spi> + '_ {
        self.records().map(|record| record.spi)
    }

    pub(crate) fn records(&self) -> impl Iterator<Item = &JournalRecord> {
        self.rows.iter().filter_map(|row| Some(&row.as_ref()?.record))
    }

    pub(crate) fn row(&mut self, spi: Spi) -> Option<&mut Former> {
        self.place(spi)?.as_mut()
    }

    fn place(&mut self, spi: Spi) -> Option<&mut Option<Former>> {
        let at = self.spis.binary_search(&spi).ok()?;
        Some(&mut self.rows[at])
    }

    /// The wall-clock second in which the next one expires.
    pub(crate) fn next_expiry(&self) -> Option<u64> {
        self.expiries.peek().map(|Reverse((expiry, _))| *expiry)
    }

    /// Takes out one that has expired.
    pub(crate) fn expire(&mut self, now: u64) -> Option<Spi> {
        while self.next_expiry()? <= now {
            let Reverse((_, spi)) = self.expiries.pop()?;
            if self.place(spi).is_some_and(|row| row.take().is_some()) {
                return Some(spi);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{config, pair, record, socket};

    const OLD: IkeSaId = IkeSaId(1);
    const NEW: IkeSaId = IkeSaId(2);
    const CHILD: ChildSaId = ChildSaId(10);
    const WALL: u64 = 1_000_000;

    fn installed(ike: IkeSaId, child: ChildSaId, spi: u32, encapsulated: bool) -> Installed<'static> {
        let (local, remote) = if encapsulated { (4500, 40_000) } else { (500, 500) };
        Installed {
            ike,
            child,
            connection: "site",
            name: "net",
            inbound: Spi(spi),
            local: SocketAddr::new(socket("192.0.2.1:0").ip(), local),
            remote: SocketAddr::new(socket("192.0.2.2:0").ip(), remote),
            encapsulated,
        }
    }

    fn with_child() -> Journal {
        let mut journal = Journal::new(&config(), 3);
        journal.ike_established(OLD, pair(1), "site", true);
        journal.child_installed(WALL, installed(OLD, CHILD, 0x100, false));
        journal
    }

    fn put(journal: &mut Journal) -> JournalRecord {
        match journal.take_writes().as_slice() {
            [JournalWrite::Put(record)] => record.clone(),
            other => panic!("{other:?}"),
        }
    }

    /// RFC 6290 section 8.2: Child SPI to IKE SPIs, and where the peer's IKE is.
    #[test]
    fn an_installed_child_sa_is_put_with_its_parent_and_ike_addresses() {
        let record = put(&mut with_child());
        assert_eq!((record.spi, record.parent, record.earlier_parent), (Spi(0x100), pair(1), None));
        assert_eq!((record.local, record.remote), (socket("192.0.2.1:500"), socket("192.0.2.2:500")));
        assert_eq!((record.incarnation, record.initiator), (3, true));
        let journal = with_child();
        let at = |ike, address: &str| journal.is_at(ike, address.parse().unwrap());
        assert_eq!([at(OLD, "192.0.2.2"), at(OLD, "192.0.2.1"), at(NEW, "192.0.2.2")], [true, false, false]);
        assert_eq!(record.hard_expiry, WALL + 24 * 3600);

        let mut journal = Journal::new(&config(), 3);
        journal.ike_established(OLD, pair(1), "site", false);
        journal.child_installed(WALL, installed(OLD, CHILD, 0x100, true));
        let record = put(&mut journal);
        assert_eq!((record.local, record.remote), (socket("192.0.2.1:4500"), socket("192.0.2.2:40000")));
        assert!(record.encapsulated && !record.initiator);
    }

    #[test]
    fn records_live_twice_the_longest_lifetime_or_thirty_days_without_one() {
        for (child, ike, expected) in
            [(3600, 14_400, 86_400), (60_000, 90_000, 180_000), (0, 90_000, 2_592_000)]
        {
            let mut config = config();
            config.connections[0].rekey_time = std::time::Duration::from_secs(ike);
            config.connections[0].children[0].rekey_time = std::time::Duration::from_secs(child);
            let mut journal = Journal::new(&config, 3);
            journal.ike_established(OLD, pair(1), "site", true);
            journal.child_installed(WALL, installed(OLD, CHILD, 0x100, false));
            assert_eq!(put(&mut journal).hard_expiry, WALL + expected);
        }
    }

    /// RFC 7296 section 2.8: the new IKE SA inherits the Child SAs; the peer may hold either one's token.
    #[test]
    fn an_ike_rekey_rewrites_the_parent_and_keeps_the_earlier_one() {
        let mut journal = with_child();
        put(&mut journal);
        journal.ike_rekeyed(OLD, NEW, pair(2), false);
        journal.child_moved(CHILD, NEW);
        journal.ike_deleted(OLD, false);
        let record = put(&mut journal);
        assert_eq!((record.parent, record.earlier_parent), (pair(2), Some(pair(1))));
        assert!(!record.initiator, "the rekey's initiator is the new IKE SA's");
        assert_eq!(journal.child_names(NEW), ["net"]);
        journal.child_deleted(CHILD);
        assert_eq!(journal.take_writes(), [JournalWrite::Remove(Spi(0x100))]);
    }

    #[test]
    fn a_child_rekey_puts_the_new_spi_and_removes_the_old_one_when_it_is_gone() {
        let mut journal = with_child();
        put(&mut journal);
        journal.child_installed(WALL, installed(OLD, ChildSaId(11), 0x200, false));
        assert_eq!(put(&mut journal).spi, Spi(0x200));
        assert!(journal.is_current(Spi(0x100)) && journal.is_current(Spi(0x200)));
        journal.child_deleted(CHILD);
        assert_eq!(journal.take_writes(), [JournalWrite::Remove(Spi(0x100))]);
        assert_eq!(journal.child_names(OLD), ["net"]);
    }

    /// After a timeout the peer may still send; in either order of the endpoint's reports.
    #[test]
    fn records_outlive_an_ike_sa_that_timed_out_but_not_one_that_ended_otherwise() {
        for (timed_out, ike_first) in [(true, true), (true, false), (false, true), (false, false)] {
            let mut journal = with_child();
            put(&mut journal);
            if ike_first {
                journal.ike_deleted(OLD, timed_out);
                journal.child_deleted(CHILD);
            } else {
                journal.child_deleted(CHILD);
                journal.ike_deleted(OLD, timed_out);
            }
            let removed = journal.take_writes() == [JournalWrite::Remove(Spi(0x100))];
            assert_eq!(removed, !timed_out);
            assert!(!journal.is_current(Spi(0x100)) && journal.of_connection("site").next().is_none());
        }
    }

    #[test]
    fn former_spis_expire_in_their_order() {
        let at = |spi, hard_expiry| JournalRecord { hard_expiry, ..record(spi, pair(1)) };
        let mut table = FormerTable::new(vec![at(1, 30), at(2, 10), at(3, 20)]);
        assert_eq!(table.next_expiry(), Some(10));
        assert_eq!(
            [table.expire(20), table.expire(20), table.expire(20)],
            [Some(Spi(2)), Some(Spi(3)), None]
        );
        assert!(table.row(Spi(1)).is_some() && table.row(Spi(2)).is_none());
    }
}
