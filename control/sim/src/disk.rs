//! A disk that loses power: what was written and not synced may be kept, lost or torn, in any combination.

use crate::random::Dice;
use redb::StorageBackend;
use spindle_recovery::store::{SmallFile, SmallFiles};
use std::collections::BTreeMap;
use std::io::{Error, Result};
use std::sync::{Arc, Mutex};
use zeroize::Zeroizing;

/// What a power cut keeps or loses as a whole.
const SECTOR: usize = 512;

/// The disk of one gateway. It outlives processes and power cuts; a [`Handle`] does not.
#[derive(Debug, Default)]
pub struct Disk(Arc<Mutex<Platter>>);

/// One process's view of the disk: dead with the process, whatever its destructors may try.
#[derive(Clone, Debug)]
pub struct Handle {
    platter: Arc<Mutex<Platter>>,
    life: u64,
}

#[derive(Default)]
struct Platter {
    /// What the process and the page cache see of the database.
    seen: Vec<u8>,
    /// What is on the medium for sure.
    durable: Vec<u8>,
    /// Changes since the last sync, in order.
    unsynced: Vec<Change>,
    files: BTreeMap<SmallFile, Vec<u8>>,
    /// The process that may use the disk.
    life: u64,
    /// Changes until the power goes.
    fuse: Option<u64>,
    /// The power went within a change.
    dark: bool,
    /// A replacement of a small file that the power cut interrupted.
    torn: Option<(SmallFile, Vec<u8>)>,
}

impl std::fmt::Debug for Platter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Platter({} octets, {} unsynced changes)", self.seen.len(), self.unsynced.len())
    }
}

enum Change {
    Length(u64),
    Write(u64, Vec<u8>),
}

impl Change {
    fn apply(&self, image: &mut Vec<u8>) {
        match self {
            Change::Length(length) => image.resize(*length as usize, 0),
            Change::Write(offset, octets) => overwrite(image, *offset as usize, octets),
        }
    }
}

fn overwrite(image: &mut Vec<u8>, start: usize, octets: &[u8]) {
    let end = start + octets.len();
    if image.len() < end {
        image.resize(end, 0);
    }
    image[start..end].copy_from_slice(octets);
}

impl Platter {
    fn sync(&mut self) {
        for change in std::mem::take(&mut self.unsynced) {
            change.apply(&mut self.durable);
        }
    }

    fn cut(&mut self, dice: &mut Dice) {
        // Now and then all of it, or nothing, is lost.
        let kept = dice.one(&[0, 50, 50, 50, 90, 100]);
        for change in std::mem::take(&mut self.unsynced) {
            match &change {
                Change::Length(_) if dice.percent(kept) => change.apply(&mut self.durable),
                Change::Length(_) => {}
                Change::Write(offset, octets) => {
                    let mut start = *offset as usize;
                    let mut rest = octets.as_slice();
                    while !rest.is_empty() {
                        let sector = (SECTOR - start % SECTOR).min(rest.len());
                        let (piece, after) = rest.split_at(sector);
                        if dice.percent(kept) {
                            overwrite(&mut self.durable, start, piece);
                        }
                        (start, rest) = (start + sector, after);
                    }
                }
            }
        }
        self.seen = self.durable.clone();
        if let Some((file, content)) = self.torn.take()
            && dice.percent(50)
        {
            self.files.insert(file, content);
        }
        self.fuse = None;
        self.dark = false;
    }
}

impl Disk {
    /// For a new process; handles of earlier ones are dead from here on.
    pub fn attach(&mut self) -> Handle {
        let mut platter = self.0.lock().expect("one thread");
        platter.life += 1;
        Handle { platter: Arc::clone(&self.0), life: platter.life }
    }

    /// The process is killed: its handle is dead, the page cache lives on.
    pub fn kill(&mut self) {
        self.0.lock().expect("one thread").life += 1;
    }

    /// The power goes; also ends what [`Disk::light_fuse`] began.
    pub(crate) fn cut_power(&mut self, dice: &mut Dice) {
        let mut platter = self.0.lock().expect("one thread");
        platter.life += 1;
        platter.cut(dice);
    }

    /// A small file is lost.
    pub(crate) fn remove(&mut self, file: SmallFile) {
        self.0.lock().expect("one thread").files.remove(&file);
    }

    /// The power is to go within the change after `changes` more.
    pub(crate) fn light_fuse(&mut self, changes: u64) {
        self.0.lock().expect("one thread").fuse = Some(changes);
    }

    /// The power stays.
    pub(crate) fn put_fuse_out(&mut self) {
        self.0.lock().expect("one thread").fuse = None;
    }

    /// Has the fuse burnt down? Then [`Disk::cut_power`] is due.
    pub(crate) fn is_dark(&self) -> bool {
        self.0.lock().expect("one thread").dark
    }
}

impl Handle {
    fn with<T>(&self, f: impl FnOnce(&mut Platter) -> T) -> Result<T> {
        let mut platter = self.platter.lock().expect("one thread");
        if platter.life != self.life || platter.dark {
            return Err(Error::other("the process that held this file is dead"));
        }
        Ok(f(&mut platter))
    }

    /// For changes: these burn the fuse. `last` is what remains of the change within which the power goes.
    fn change<T>(&self, last: impl FnOnce(&mut Platter), f: impl FnOnce(&mut Platter) -> T) -> Result<T> {
        self.with(|platter| match &mut platter.fuse {
            Some(0) => {
                platter.dark = true;
                last(platter);
                Err(Error::other("the power is gone"))
            }
            fuse => {
                if let Some(left) = fuse {
                    *left -= 1;
                }
                Ok(f(platter))
            }
        })?
    }
}

impl StorageBackend for Handle {
    fn len(&self) -> Result<u64> {
        self.with(|platter| platter.seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.with(|platter| {
            let start = offset as usize;
            let octets = platter.seen.get(start..start + out.len());
            out.copy_from_slice(octets.ok_or_else(|| Error::other("read beyond the end"))?);
            Ok(())
        })?
    }

    fn set_len(&self, length: u64) -> Result<()> {
        let change = |platter: &mut Platter| platter.unsynced.push(Change::Length(length));
        self.change(change, |platter| {
            platter.seen.resize(length as usize, 0);
            change(platter);
        })
    }

    fn sync_data(&self) -> Result<()> {
        self.change(|_| {}, Platter::sync)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let change = |platter: &mut Platter| platter.unsynced.push(Change::Write(offset, data.to_vec()));
        self.change(change, |platter| {
            overwrite(&mut platter.seen, offset as usize, data);
            change(platter);
        })
    }
}

impl SmallFiles for Handle {
    fn read(&mut self, file: SmallFile) -> Result<Option<Zeroizing<Vec<u8>>>> {
        self.with(|platter| platter.files.get(&file).cloned().map(Zeroizing::new))
    }

    fn replace(&mut self, file: SmallFile, content: &[u8]) -> Result<()> {
        let torn = |platter: &mut Platter| platter.torn = Some((file, content.to_vec()));
        self.change(torn, |platter| {
            platter.files.insert(file, content.to_vec());
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_synced_survives_every_power_cut_and_the_rest_may_be_torn() {
        let (mut torn, mut lost, mut kept) = (0, 0, 0);
        for seed in 0..200 {
            let mut disk = Disk::default();
            let handle = disk.attach();
            handle.set_len(4096).unwrap();
            handle.write(0, &[1; 4096]).unwrap();
            handle.sync_data().unwrap();
            handle.write(1024, &[2; 2048]).unwrap();
            disk.cut_power(&mut Dice::new(seed, 0));
            assert!(handle.len().is_err(), "a dead process's handle");
            let mut image = [0; 4096];
            StorageBackend::read(&disk.attach(), 0, &mut image).unwrap();
            assert!(image[..1024].iter().chain(&image[3072..]).all(|o| *o == 1));
            match image[1024..3072].iter().filter(|o| **o == 2).count() {
                0 => lost += 1,
                2048 => kept += 1,
                _ => torn += 1,
            }
        }
        assert!(torn > 20 && lost > 20 && kept > 20, "{torn} torn, {lost} lost, {kept} kept");
    }

    #[test]
    fn a_kill_keeps_the_page_cache_and_ends_the_process() {
        let mut disk = Disk::default();
        let handle = disk.attach();
        handle.write(0, b"unsynced").unwrap();
        disk.kill();
        assert!(handle.write(0, b"from the grave").is_err());
        let mut image = [0; 8];
        StorageBackend::read(&disk.attach(), 0, &mut image).unwrap();
        assert_eq!(&image, b"unsynced");
    }

    #[test]
    fn a_fuse_cuts_the_power_within_a_change_and_small_files_stay_whole() {
        let mut contents = std::collections::BTreeSet::new();
        for seed in 0..50 {
            let mut disk = Disk::default();
            let mut handle = disk.attach();
            handle.replace(SmallFile::Secret, b"old").unwrap();
            disk.light_fuse(1);
            handle.write(0, b"x").unwrap();
            assert!(!disk.is_dark());
            assert!(handle.replace(SmallFile::Secret, b"new").is_err());
            assert!(disk.is_dark());
            disk.cut_power(&mut Dice::new(seed, 0));
            contents
                .insert(SmallFiles::read(&mut disk.attach(), SmallFile::Secret).unwrap().unwrap().to_vec());
        }
        assert_eq!(contents.into_iter().collect::<Vec<_>>(), [b"new".to_vec(), b"old".to_vec()]);
    }
}
