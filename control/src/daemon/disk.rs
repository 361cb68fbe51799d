//! The state on real disks: the database, the two small files, and the thread that commits journal writes.

use crate::config::Settings;
use redb::backends::FileBackend;
use rustix::fs::{Mode, OFlags};
use spindle_recovery::api::{JournalWrite, UsedTicket};
use spindle_recovery::store::{SmallFile, SmallFiles, Store, StoreError};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// A small file longer than this is none of ours.
const MAX_SMALL_FILE: u64 = 64 << 10;
/// How long a write may wait for others to share its commit; a commit itself takes some milliseconds at most.
const GROUP: Duration = Duration::from_millis(20);
/// Writes in one commit at most, and waiting for one at most.
const BATCH: usize = 4096;
const WAITING: usize = 65_536;

/// Makes a directory that others cannot look into, with its parents.
pub fn private_directory(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Opens the database of a state directory. One that a dying process still holds is waited for.
pub fn open_store(state_dir: &Path) -> Result<Store, StoreError> {
    let patience = Instant::now() + Duration::from_secs(2);
    loop {
        let file = open_database(state_dir).map_err(redb::Error::Io)?;
        let backend = FileBackend::new(file).map_err(redb::Error::from)?;
        match Store::open(backend) {
            Err(StoreError::Database(redb::Error::DatabaseAlreadyOpen)) if Instant::now() < patience => {
                std::thread::sleep(Duration::from_millis(2));
            }
            opened => return opened,
        }
    }
}

fn open_database(state_dir: &Path) -> io::Result<File> {
    let path = state_dir.join("state.redb");
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    // A new file's name must be durable too.
    File::open(state_dir)?.sync_all()?;
    Ok(file)
}

/// The small files at their configured places.
pub struct Files {
    secret: PathBuf,
    anchor: PathBuf,
}

impl Files {
    /// Where the settings say.
    pub fn new(settings: &Settings) -> Files {
        let own = || settings.gateway.state_dir.join("qcd-secret");
        Files {
            secret: settings.recovery.secret_file.clone().unwrap_or_else(own),
            anchor: settings.gateway.anchor.clone(),
        }
    }

    /// Where this file is.
    pub fn path(&self, file: SmallFile) -> &Path {
        match file {
            SmallFile::Secret => &self.secret,
            SmallFile::Anchor => &self.anchor,
        }
    }
}

impl SmallFiles for Files {
    fn read(&mut self, file: SmallFile) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
        let mut opened = match File::open(self.path(file)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let metadata = opened.metadata()?;
        if !metadata.is_file() || metadata.len() > MAX_SMALL_FILE {
            return Err(io::Error::other("it is not a small regular file"));
        }
        if file == SmallFile::Secret && metadata.permissions().mode() & 0o077 != 0 {
            return Err(io::Error::other("others than its owner may read it; change its mode to 0600"));
        }
        let mut content = Zeroizing::new(Vec::with_capacity(metadata.len() as usize + 1));
        opened.read_to_end(&mut content)?;
        Ok(Some(content))
    }

    fn replace(&mut self, file: SmallFile, content: &[u8]) -> io::Result<()> {
        let path = self.path(file);
        let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".new");
        let temporary = PathBuf::from(temporary);
        // One that a power cut left behind may have any mode.
        match std::fs::remove_file(&temporary) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mut new = File::from(rustix::fs::open(&temporary, flags, Mode::RUSR | Mode::WUSR)?);
        new.write_all(content)?;
        new.sync_all()?;
        std::fs::rename(&temporary, path)?;
        File::open(directory)?.sync_all()
    }
}

/// Commits journal writes in groups on a thread of its own: nothing waits for the disk.
pub struct Journal {
    sender: Option<SyncSender<Work>>,
    thread: Option<JoinHandle<()>>,
    counts: Arc<Counts>,
}

/// For the thread.
enum Work {
    Write(JournalWrite),
    /// Used tickets, and where to say whether they are on disk.
    Remember(Vec<UsedTicket>, SyncSender<bool>),
}

#[derive(Default)]
struct Counts {
    written: AtomicU64,
    lost: AtomicU64,
    commits: AtomicU64,
}

impl Journal {
    /// Takes the store over.
    pub fn start(store: Store) -> io::Result<Journal> {
        let (sender, receiver) = sync_channel(WAITING);
        let counts = Arc::new(Counts::default());
        let thread = {
            let counts = counts.clone();
            std::thread::Builder::new()
                .name("journal".into())
                .spawn(move || commit_all(store, &receiver, &counts))?
        };
        Ok(Journal { sender: Some(sender), thread: Some(thread), counts })
    }

    /// Hands a write over. One that finds no room is counted as lost: it costs a recovery one round trip.
    pub fn write(&self, write: JournalWrite) {
        if self.sender.as_ref().is_none_or(|s| s.try_send(Work::Write(write)).is_err()) {
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until used tickets are on disk: all those of one round of the control loop in one commit. `false` if they
    /// are not.
    pub fn remember(&self, used: Vec<UsedTicket>) -> bool {
        let (done, on_disk) = sync_channel(1);
        let sent = self.sender.as_ref().is_some_and(|s| s.send(Work::Remember(used, done)).is_ok());
        sent && on_disk.recv().unwrap_or(false)
    }

    /// Names and values for `stats`.
    pub fn stats(&self) -> [(&'static str, u64); 3] {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [
            ("journal_written", value(&self.counts.written)),
            ("journal_lost", value(&self.counts.lost)),
            ("journal_commits", value(&self.counts.commits)),
        ]
    }
}

impl Drop for Journal {
    /// Commits what is left.
    fn drop(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn commit_all(mut store: Store, receiver: &Receiver<Work>, counts: &Counts) {
    let mut batch = Vec::new();
    // What somebody waits for goes before what may wait.
    let remember = |store: &mut Store, used: Vec<UsedTicket>, done: SyncSender<bool>| {
        let result = store.remember(&used, super::wall_clock_us() / 1_000_000);
        if let Err(e) = &result {
            tracing::error!(
                "used tickets could not be written, no ticket is taken until the next start: {e}"
            );
        }
        let _ = done.send(result.is_ok());
    };
    while let Ok(first) = receiver.recv() {
        match first {
            Work::Write(write) => batch.push(write),
            Work::Remember(used, done) => {
                remember(&mut store, used, done);
                continue;
            }
        }
        let end = Instant::now() + GROUP;
        while batch.len() < BATCH {
            match receiver.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(Work::Write(write)) => batch.push(write),
                Ok(Work::Remember(used, done)) => remember(&mut store, used, done),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        match store.commit(&batch) {
            Ok(()) => {
                counts.written.fetch_add(batch.len() as u64, Ordering::Relaxed);
                counts.commits.fetch_add(1, Ordering::Relaxed);
            }
            Err(e) => {
                counts.lost.fetch_add(batch.len() as u64, Ordering::Relaxed);
                tracing::error!(
                    "the journal could not be written, peers may learn of a crash a round trip later: {e}"
                );
            }
        }
        batch.clear();
    }
}
