//! What the integration tests share: seeded randomness, and a disk that loses power.
#![allow(dead_code, unreachable_pub)]

pub mod sir;
pub mod world;

use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use redb::StorageBackend;
use spindle_ike::random::Random;
use spindle_recovery::store::{SmallFile, SmallFiles};
use std::collections::BTreeMap;
use std::io::{Error, Result};
use std::sync::{Arc, Mutex};
use zeroize::Zeroizing;

/// Randomness from a seed.
pub struct Seeded(ChaCha12Rng);

impl Seeded {
    pub fn new(seed: u64) -> Seeded {
        Seeded(ChaCha12Rng::seed_from_u64(seed))
    }
    pub fn next(&mut self) -> u64 {
        self.0.next_u64()
    }
}

impl Random for Seeded {
    fn fill(&mut self, octets: &mut [u8]) {
        self.0.fill_bytes(octets);
    }
}

#[derive(Debug, Default)]
struct Platter {
    durable: Vec<u8>,
    seen: Vec<u8>,
    /// Writes since the last sync: offset and content.
    unsynced: Vec<(u64, Vec<u8>)>,
    files: BTreeMap<SmallFile, Vec<u8>>,
    /// Writes and syncs until the power goes; `None` is never.
    power: Option<u64>,
}

impl Platter {
    fn step(&mut self) -> Result<()> {
        match &mut self.power {
            Some(0) => Err(Error::other("no power")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// A disk: what was synced stays, of the rest each write may stay, be torn or be lost.
#[derive(Clone, Debug, Default)]
pub struct Disk(Arc<Mutex<Platter>>);

impl Disk {
    /// Power goes after this many writes and syncs.
    pub fn cut_after(&self, steps: u64) {
        self.0.lock().unwrap().power = Some(steps);
    }

    /// The power comes back; says whether it had gone.
    pub fn power_up(&self, random: &mut Seeded) -> bool {
        let mut platter = self.0.lock().unwrap();
        let gone = platter.power.take() == Some(0);
        let mut image = platter.durable.clone();
        let mut unsynced = std::mem::take(&mut platter.unsynced);
        // Reordered: any write may reach the platter before any other one.
        while !unsynced.is_empty() {
            let pick = random.next() as usize % unsynced.len();
            let (offset, mut data) = unsynced.swap_remove(pick);
            match random.next() % 3 {
                0 => continue,
                1 => data.truncate(random.next() as usize % (data.len() + 1)),
                _ => {}
            }
            let end = offset as usize + data.len();
            image.resize(image.len().max(end), 0);
            image[offset as usize..end].copy_from_slice(&data);
        }
        platter.durable = image.clone();
        platter.seen = image;
        gone
    }

    pub fn file(&self, file: SmallFile) -> Option<Vec<u8>> {
        self.0.lock().unwrap().files.get(&file).cloned()
    }

    pub fn set_file(&self, file: SmallFile, content: Option<&[u8]>) {
        let files = &mut self.0.lock().unwrap().files;
        match content {
            Some(content) => files.insert(file, content.to_vec()),
            None => files.remove(&file),
        };
    }

    /// A snapshot of all of it but the anchor.
    pub fn snapshot(&self) -> Disk {
        let platter = self.0.lock().unwrap();
        let mut files = platter.files.clone();
        files.remove(&SmallFile::Anchor);
        let (durable, seen) = (platter.durable.clone(), platter.seen.clone());
        Disk(Arc::new(Mutex::new(Platter { durable, seen, files, ..Platter::default() })))
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> Result<u64> {
        Ok(self.0.lock().unwrap().seen.len() as u64)
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let platter = self.0.lock().unwrap();
        let start = offset as usize;
        let data =
            platter.seen.get(start..start + out.len()).ok_or_else(|| Error::other("beyond the end"))?;
        out.copy_from_slice(data);
        Ok(())
    }
    fn set_len(&self, len: u64) -> Result<()> {
        let mut platter = self.0.lock().unwrap();
        platter.step()?;
        platter.seen.resize(len as usize, 0);
        platter.durable.resize(len as usize, 0);
        Ok(())
    }
    fn sync_data(&self) -> Result<()> {
        let mut platter = self.0.lock().unwrap();
        platter.step()?;
        for (offset, data) in std::mem::take(&mut platter.unsynced) {
            let start = offset as usize;
            // A write beyond what was cut off since is gone.
            if let Some(place) = platter.durable.get_mut(start..start + data.len()) {
                place.copy_from_slice(&data);
            }
        }
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let mut platter = self.0.lock().unwrap();
        platter.step()?;
        let start = offset as usize;
        platter.seen[start..start + data.len()].copy_from_slice(data);
        platter.unsynced.push((offset, data.to_vec()));
        Ok(())
    }
}

impl SmallFiles for Disk {
    fn read(&mut self, file: SmallFile) -> Result<Option<Zeroizing<Vec<u8>>>> {
        Ok(self.file(file).map(Zeroizing::new))
    }
    fn replace(&mut self, file: SmallFile, content: &[u8]) -> Result<()> {
        let mut platter = self.0.lock().unwrap();
        platter.step()?;
        platter.files.insert(file, content.to_vec());
        Ok(())
    }
}
