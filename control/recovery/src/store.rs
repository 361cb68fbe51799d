//! What of the control plane survives on disk, and in which order it is written; the daemon gives real files, the
//! simulation a disk that loses power.
//!
//! Three things: the *database* (redb over any [`StorageBackend`]: id, incarnation, journal), the *secret* and the
//! *anchor* (two small files that are replaced as a whole). [`Store::boot`] begins an incarnation: secret, then
//! database, then anchor, each durable before the next, so that a power cut anywhere leaves a state that starts:
//!
//! 1. a secret, where one is to be made (RFC 6290 section 5.1: before its first token);
//! 2. the anchor at the incarnation before the new one, unless it stands there;
//! 3. the database: id, new incarnation, expired journal records removed, in one transaction;
//! 4. the anchor at the new incarnation.
//!
//! So a database that is one ahead of its anchor is a power cut between 3 and 4; anything else is another state
//! directory than the anchor's: a copy or a snapshot. Its secret is void then, for a clone may hold living SAs
//! whose tokens it could make (RFC 6290 section 9.2).

use crate::api::{
    Boot, Generation, JournalRecord, JournalWrite, Secret, TicketKey, TicketRecords, TokenMethod, UsedTicket,
};
use crate::record;
use crate::secrets::{
    Anchor, MAX_GENERATIONS, Malformed, decode_secrets, encode_secrets, new_generation, new_secret,
};
use redb::{Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};
use spindle_abi::{Spi, Time};
use spindle_ike::random::Random;
use zeroize::Zeroizing;

const META: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("meta");
const JOURNAL: TableDefinition<'static, u32, &[u8]> = TableDefinition::new("journal");

/// Keys of tickets, by the incarnation that sealed with them.
const TICKET_KEYS: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("ticket-keys");
/// Used tickets, in order of expiry.
const USED_TICKETS: TableDefinition<'static, &[u8; 32], ()> = TableDefinition::new("used-tickets");

/// Keys of tickets that are kept, whatever their tickets' expiry.
const MAX_TICKET_KEYS: usize = 64;

/// Octets of memory that the database may use as its cache.
const CACHE: usize = 64 << 20;

/// Journal records that are read at the start; those that expire last are kept.
pub const MAX_FORMER: usize = 1 << 20;

/// The files that are replaced as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum SmallFile {
    /// The QCD secret, mode 0600.
    Secret,
    /// The anchor, outside the state directory.
    Anchor,
}

/// Where the small files are.
pub trait SmallFiles {
    /// All of a file; `None` if there is none.
    fn read(&mut self, file: SmallFile) -> std::io::Result<Option<Zeroizing<Vec<u8>>>>;
    /// Replaces a file: when this returns the new content is durable, and a power cut before leaves the old
    /// content or the new one (temporary file, fsync, rename, fsync of the directory).
    fn replace(&mut self, file: SmallFile, content: &[u8]) -> std::io::Result<()>;
}

/// Why an incarnation cannot begin: the operator's or the disk's fault; says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be opened, read or written.
    #[error(
        "the state database cannot be used: {0}; restore the state directory, or begin with an empty one"
    )]
    Database(#[from] redb::Error),
    /// A value in the database is impossible.
    #[error("the state database holds an impossible {0}; begin with an empty state directory")]
    Corrupt(&'static str),
    /// A small file cannot be read or written.
    #[error("the file of the {0:?} cannot be used: {1}; make it readable and its directory writable")]
    File(SmallFile, std::io::Error),
    /// There is state, but no secret.
    #[error(
        "the QCD secret is missing beside other state; restore it, or start with --new-secret: then peers \
         cannot be told of this crash"
    )]
    SecretMissing,
    /// The secret's file is short, torn or something else.
    #[error(
        "the file of the QCD secret is damaged: {0}; restore it, or start with --new-secret: then peers cannot \
         be told of this crash"
    )]
    SecretMalformed(Malformed),
}

/// What the anchor said of the state directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AnchorVerdict {
    /// The state directory was empty.
    Fresh,
    /// The directory is the one that ran here last.
    Matches,
    /// No anchor stands beside a state that has one: copied to another machine, or the anchor was lost.
    Missing,
    /// The anchor cannot be read as one.
    Damaged,
    /// Another state's anchor: a copy.
    Foreign,
    /// The state is not where the anchor says that it came to: a snapshot was restored.
    RolledBack,
}

impl AnchorVerdict {
    fn of(state: Option<Anchor>, anchor: Option<Result<Anchor, Malformed>>) -> AnchorVerdict {
        match (state, anchor) {
            (None, _) => AnchorVerdict::Fresh,
            (Some(_), None) => AnchorVerdict::Missing,
            (Some(_), Some(Err(_))) => AnchorVerdict::Damaged,
            (Some(state), Some(Ok(anchor))) if state.id != anchor.id => AnchorVerdict::Foreign,
            (Some(state), Some(Ok(anchor))) => match state.incarnation.checked_sub(anchor.incarnation) {
                Some(0 | 1) => AnchorVerdict::Matches,
                _ => AnchorVerdict::RolledBack,
            },
        }
    }

    /// May tokens leave in this incarnation?
    pub fn allows_tokens(self) -> bool {
        matches!(self, AnchorVerdict::Fresh | AnchorVerdict::Matches)
    }

    /// What to tell the operator, loudly; `None` if all is well. `shared`: is the secret a cluster's?
    pub fn warning(self, shared: bool) -> Option<String> {
        let what = match self {
            AnchorVerdict::Fresh | AnchorVerdict::Matches => return None,
            AnchorVerdict::Missing => {
                "the anchor file is missing beside an existing state directory: it was copied, or the anchor was lost"
            }
            AnchorVerdict::Damaged => "the anchor file is damaged",
            AnchorVerdict::Foreign => {
                "the state directory is a copy: the anchor file names another one. If another gateway runs with the \
                 original, each keeps its own directory from here on"
            }
            AnchorVerdict::RolledBack => {
                "the state directory was rolled back (a snapshot was restored): the anchor file has seen later \
                 incarnations"
            }
        };
        let secret = if shared { "the cluster's secret was left as it is" } else { "a new secret was made" };
        Some(format!(
            "{what}. No QCD token leaves until the next start; {secret}, and peers find this crash by liveness checks"
        ))
    }
}

/// What [`Store::boot`] found.
#[derive(Debug)]
pub struct Booted {
    /// For [`Gateway::new`](crate::Gateway::new).
    pub boot: Boot,
    /// What the anchor said.
    pub anchor: AnchorVerdict,
    /// Journal records that could not be read, or exceeded [`MAX_FORMER`].
    pub skipped: u64,
}

/// What [`Store::resume`] found.
#[derive(Debug)]
pub struct Resumed {
    /// As from [`Store::boot`], of the incarnation that goes on.
    pub booted: Booted,
    /// The journal records of this incarnation.
    pub current: Vec<JournalRecord>,
}

/// The database and its rules.
pub struct Store {
    database: Database,
    /// Of the tickets that are sealed from here on, in seconds.
    ticket_lifetime: u64,
    /// Is the secret a cluster's?
    secret_shared: bool,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Store")
    }
}

impl Store {
    /// Opens, repairs or makes the database.
    pub fn open(backend: impl StorageBackend) -> Result<Store, StoreError> {
        if half_made(&backend).map_err(redb::Error::Io)? {
            backend.set_len(0).map_err(redb::Error::Io)?;
        }
        let database = Database::builder().set_cache_size(CACHE).create_with_backend(backend);
        Ok(Store {
            database: database.map_err(redb::Error::from)?,
            ticket_lifetime: 3600,
            secret_shared: false,
        })
    }

    /// How long tickets live: their key stays as long after its incarnation. Call it before [`Store::boot`].
    pub fn set_ticket_lifetime(&mut self, lifetime: std::time::Duration) {
        self.ticket_lifetime = lifetime.as_secs();
    }

    /// The secret is a cluster's, brought here by the operator: it is never made nor replaced, whatever the anchor says,
    /// but where the operator asks for a new one. Call it before [`Store::boot`].
    pub fn share_secret(&mut self) {
        self.secret_shared = true;
    }

    /// Begins an incarnation, all that must be on disk before its first message included. `wall_clock`: seconds
    /// since 1970, and the monotonic time of that reading. `renew_secret`: the operator wants a new one. `method` is
    /// that of a secret that is made here.
    pub fn boot(
        &mut self,
        files: &mut dyn SmallFiles,
        random: &mut dyn Random,
        wall_clock: (u64, Time),
        renew_secret: bool,
        method: TokenMethod,
    ) -> Result<Booted, StoreError> {
        let state = self.state()?;
        let read = |files: &mut dyn SmallFiles, file| files.read(file).map_err(|e| StoreError::File(file, e));
        let anchor = read(files, SmallFile::Anchor)?.map(|octets| Anchor::decode(&octets));
        let verdict = AnchorVerdict::of(state, anchor);

        // 1. The secret. A copied one may be another gateway's too: never used again here. A cluster's is the other
        // members' too: no token leaves in this incarnation, and the file stays as it is.
        let stays = verdict.allows_tokens() || self.secret_shared;
        let secrets = match read(files, SmallFile::Secret)? {
            Some(octets) if stays && !renew_secret => {
                decode_secrets(&octets).map_err(StoreError::SecretMalformed)?
            }
            None if (state.is_some() || self.secret_shared) && !renew_secret => {
                return Err(StoreError::SecretMissing);
            }
            _ => write_secrets(files, random, Some((method, wall_clock.0)), Vec::new())?,
        };

        // 2. to 4. The incarnation. One that the anchor has seen is not used again.
        let seen = anchor.and_then(Result::ok).map_or(0, |a| a.incarnation);
        let next = match (state, verdict) {
            (Some(state), AnchorVerdict::Matches) => Anchor { incarnation: state.incarnation + 1, ..state },
            _ => {
                let mut id = [0; 16];
                random.fill(&mut id);
                Anchor { id, incarnation: state.map_or(0, |s| s.incarnation).max(seen).saturating_add(1) }
            }
        };
        // A copy's tickets may be used elsewhere, and what a snapshot remembers of their use is not all.
        let mut id = [0; 8];
        random.fill(&mut id);
        let key = TicketKey { id, key: new_secret(random) };
        let tickets = NewTickets { key, keep_old: verdict.allows_tokens() && !renew_secret };
        let before = Anchor { incarnation: next.incarnation - 1, ..next };
        if anchor != Some(Ok(before)) {
            replace(files, SmallFile::Anchor, &before.encode())?;
        }
        let (former, skipped) = self.begin(next, wall_clock.0, tickets)?;
        replace(files, SmallFile::Anchor, &next.encode())?;
        let tickets = self.tickets()?;

        let boot = Boot {
            incarnation: next.incarnation,
            maker_id: next.id.to_vec(),
            secrets,
            former,
            tickets,
            anchor_matches: verdict.allows_tokens(),
            wall_clock,
        };
        Ok(Booted { boot, anchor: verdict, skipped })
    }

    /// Goes on with the incarnation that stands on disk, whose control process died alone; nothing is written. `None` if it
    /// is not this one, or the disk is not as it was left: then what lives is not to be adopted.
    pub fn resume(
        &mut self,
        files: &mut dyn SmallFiles,
        wall_clock: (u64, Time),
        incarnation: u64,
    ) -> Result<Option<Resumed>, StoreError> {
        let state = self.state()?.filter(|state| state.incarnation == incarnation);
        let mut read = |file| files.read(file).map_err(|e| StoreError::File(file, e));
        let anchor = read(SmallFile::Anchor)?.and_then(|octets| Anchor::decode(&octets).ok());
        let Some(state) = state.filter(|state| anchor == Some(*state)) else { return Ok(None) };
        let secrets = read(SmallFile::Secret)?.ok_or(StoreError::SecretMissing)?;
        let secrets = decode_secrets(&secrets).map_err(StoreError::SecretMalformed)?;
        let (mut records, skipped) = self.try_journal()?;
        records.retain(|record| record.hard_expiry > wall_clock.0);
        let (current, mut former): (Vec<_>, Vec<_>) =
            records.into_iter().partition(|record| record.incarnation == incarnation);
        former.truncate(MAX_FORMER);
        let boot = Boot {
            incarnation,
            maker_id: state.id.to_vec(),
            secrets,
            former,
            tickets: self.tickets()?,
            anchor_matches: true,
            wall_clock,
        };
        let booted = Booted { boot, anchor: AnchorVerdict::Matches, skipped };
        Ok(Some(Resumed { booted, current }))
    }

    /// Carries out writes to the journal, durable when this returns: one transaction for all of them.
    pub fn commit(&mut self, writes: &[JournalWrite]) -> Result<(), StoreError> {
        Ok(self.try_commit(writes)?)
    }

    /// Remembers used tickets, durable when this returns; forgets those that have expired at `now`, seconds since 1970.
    pub fn remember(&mut self, used: &[UsedTicket], now: u64) -> Result<(), StoreError> {
        Ok(self.try_remember(used, now)?)
    }

    fn try_remember(&mut self, used: &[UsedTicket], now: u64) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut table = transaction.open_table(USED_TICKETS)?;
            table.retain_in::<&[u8; 32], _>(..=&last_in(now), |_, ()| false)?;
            for ticket in used {
                table.insert(&ticket.to_octets(), ())?;
            }
        }
        transaction.commit()?;
        Ok(())
    }

    /// After [`Store::begin`], which made the tables.
    fn tickets(&self) -> Result<TicketRecords, redb::Error> {
        let transaction = self.database.begin_read()?;
        let mut records = TicketRecords::default();
        for entry in transaction.open_table(TICKET_KEYS)?.iter()?.rev() {
            records.keys.extend(KeyRow::decode(entry?.1.value()).map(|row| row.key));
        }
        for entry in transaction.open_table(USED_TICKETS)?.iter()? {
            records.used.push(UsedTicket::from_octets(entry?.0.value()));
        }
        Ok(records)
    }

    /// All journal records, and how many could not be read.
    pub fn journal(&self) -> Result<(Vec<JournalRecord>, u64), StoreError> {
        Ok(self.try_journal()?)
    }

    fn state(&self) -> Result<Option<Anchor>, StoreError> {
        let read = || -> Result<_, redb::Error> {
            let transaction = self.database.begin_read()?;
            let meta = match transaction.open_table(META) {
                Ok(meta) => meta,
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
                Err(e) => return Err(e.into()),
            };
            let (id, incarnation) = (meta.get("id")?, meta.get("incarnation")?);
            Ok(Some((id.map(|v| v.value().to_vec()), incarnation.map(|v| v.value().to_vec()))))
        };
        let Some((id, incarnation)) = read()? else { return Ok(None) };
        let id = id.and_then(|v| v.try_into().ok()).ok_or(StoreError::Corrupt("id"))?;
        let incarnation = incarnation.and_then(|v| v.try_into().ok()).map(u64::from_be_bytes);
        let incarnation = incarnation.filter(|&n| n < u64::MAX).ok_or(StoreError::Corrupt("incarnation"))?;
        Ok(Some(Anchor { id, incarnation }))
    }

    fn begin(
        &mut self,
        next: Anchor,
        now: u64,
        tickets: NewTickets,
    ) -> Result<(Vec<JournalRecord>, u64), redb::Error> {
        let (mut records, mut skipped) = self.try_journal()?;
        let mut gone: Vec<Spi> = records.iter().filter(|r| r.hard_expiry <= now).map(|r| r.spi).collect();
        records.retain(|r| r.hard_expiry > now);
        if records.len() > MAX_FORMER {
            records.sort_by_key(|r| std::cmp::Reverse((r.hard_expiry, r.spi)));
            gone.extend(records.drain(MAX_FORMER..).map(|r| r.spi));
            skipped += gone.len() as u64;
        }
        let mut transaction = self.database.begin_write()?;
        // An incarnation must never come twice, whatever a torn write may look like.
        transaction.set_two_phase_commit(true);
        {
            let mut meta = transaction.open_table(META)?;
            meta.insert("id", next.id.as_slice())?;
            meta.insert("incarnation", next.incarnation.to_be_bytes().as_slice())?;
            let mut journal = transaction.open_table(JOURNAL)?;
            for spi in gone {
                journal.remove(spi.0)?;
            }
            let mut used = transaction.open_table(USED_TICKETS)?;
            used.retain_in::<&[u8; 32], _>(..=&last_in(now), |_, ()| false)?;
            used.retain(|_, ()| tickets.keep_old)?;
            let mut keys = transaction.open_table(TICKET_KEYS)?;
            let mut old = Vec::new();
            for entry in keys.iter()? {
                let (incarnation, row) = entry?;
                old.push((incarnation.value(), KeyRow::decode(row.value())));
            }
            let first = old.len().saturating_sub(MAX_TICKET_KEYS - 1);
            for (at, (incarnation, row)) in old.into_iter().enumerate() {
                // The last ticket of an incarnation that ended was sealed before now.
                let ended =
                    row.map(|row| KeyRow { until: row.until.min(now.saturating_add(row.lifetime)), ..row });
                let kept = ended.filter(|row| row.until > now && tickets.keep_old && at >= first);
                match kept {
                    Some(row) => keys.insert(incarnation, row.encode().as_slice())?,
                    None => keys.remove(incarnation)?,
                };
            }
            let row = KeyRow { key: tickets.key, lifetime: self.ticket_lifetime, until: u64::MAX };
            keys.insert(next.incarnation, row.encode().as_slice())?;
        }
        transaction.commit()?;
        Ok((records, skipped))
    }

    fn try_commit(&mut self, writes: &[JournalWrite]) -> Result<(), redb::Error> {
        if writes.is_empty() {
            return Ok(());
        }
        let transaction = self.database.begin_write()?;
        {
            let mut journal = transaction.open_table(JOURNAL)?;
            for write in writes {
                match write {
                    JournalWrite::Put(r) => journal.insert(r.spi.0, record::encode(r).as_slice())?,
                    JournalWrite::Remove(spi) => journal.remove(spi.0)?,
                };
            }
        }
        transaction.commit()?;
        Ok(())
    }

    fn try_journal(&self) -> Result<(Vec<JournalRecord>, u64), redb::Error> {
        let transaction = self.database.begin_read()?;
        let journal = match transaction.open_table(JOURNAL) {
            Ok(journal) => journal,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok((Vec::new(), 0)),
            Err(e) => return Err(e.into()),
        };
        let (mut records, mut unreadable) = (Vec::new(), 0);
        for entry in journal.iter()? {
            let (spi, value) = entry?;
            match record::decode(Spi(spi.value()), value.value()) {
                Some(record) => records.push(record),
                None => unreadable += 1,
            }
        }
        Ok((records, unreadable))
    }
}

/// What an incarnation begins with.
struct NewTickets {
    key: TicketKey,
    /// Do keys and used tickets of earlier incarnations still count?
    keep_old: bool,
}

/// A key of tickets on disk.
struct KeyRow {
    key: TicketKey,
    /// Of its tickets, in seconds.
    lifetime: u64,
    /// When its last ticket expires, seconds since 1970; the greatest number while it seals.
    until: u64,
}

impl KeyRow {
    fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut out = Zeroizing::new(Vec::with_capacity(56));
        out.extend(self.key.id);
        out.extend(*self.key.key.0);
        out.extend(self.lifetime.to_be_bytes());
        out.extend(self.until.to_be_bytes());
        out
    }

    fn decode(octets: &[u8]) -> Option<KeyRow> {
        let (id, rest) = octets.split_first_chunk()?;
        let (key, rest) = rest.split_first_chunk()?;
        let (lifetime, rest) = rest.split_first_chunk()?;
        Some(KeyRow {
            key: TicketKey { id: *id, key: Secret(Zeroizing::new(*key)) },
            lifetime: u64::from_be_bytes(*lifetime),
            until: u64::from_be_bytes(rest.try_into().ok()?),
        })
    }
}

/// The last key of [`USED_TICKETS`] that has expired at `now`.
fn last_in(now: u64) -> [u8; 32] {
    UsedTicket { expiry: now, nonce: [0xff; 24] }.to_octets()
}

/// Was power lost while the database was first made? redb writes its magic number last and syncs it, so without
/// the whole of it nothing was ever committed; it does not open such a file itself.
fn half_made(backend: &impl StorageBackend) -> std::io::Result<bool> {
    const MAGIC: [u8; 9] = *b"redb\x1a\x0a\xa9\x0d\x0a";
    let length = backend.len()?;
    if length == 0 {
        return Ok(false);
    }
    let mut head = [0; 9];
    backend.read(0, &mut head[..length.min(9) as usize])?;
    let written = head.iter().zip(MAGIC).take_while(|(a, b)| *a == b).count();
    Ok(written < MAGIC.len() && head[written..].iter().all(|octet| *octet == 0))
}

/// Replaces the secret's file; what it returns is on disk, so that tokens may be made with it. `new`: a new generation
/// is made, by this method at this second since 1970, and stands before those that are kept (RFC 6290 section 5.1: three
/// at most). In one write, so that a power cut leaves the generations before it or these.
pub fn write_secrets(
    files: &mut dyn SmallFiles,
    random: &mut dyn Random,
    new: Option<(TokenMethod, u64)>,
    keep: Vec<Generation>,
) -> Result<Vec<Generation>, StoreError> {
    let new = new.map(|(method, made)| new_generation(random, method, made));
    let mut generations: Vec<Generation> = new.into_iter().chain(keep).collect();
    generations.truncate(MAX_GENERATIONS);
    replace(files, SmallFile::Secret, &encode_secrets(&generations))?;
    Ok(generations)
}

fn replace(files: &mut dyn SmallFiles, file: SmallFile, content: &[u8]) -> Result<(), StoreError> {
    files.replace(file, content).map_err(|e| StoreError::File(file, e))
}
