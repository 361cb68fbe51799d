//! A disk in memory, which a crash of the process leaves as it is.

use redb::StorageBackend;
use spindle_recovery::store::{SmallFile, SmallFiles};
use std::collections::BTreeMap;
use std::io::{Error, Result};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use zeroize::Zeroizing;

#[derive(Debug, Default)]
struct Platter {
    octets: Vec<u8>,
    files: BTreeMap<SmallFile, Vec<u8>>,
}

/// A handle; all of them are of one disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk(Arc<Mutex<Platter>>);

impl Disk {
    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> Result<u64> {
        Ok(self.platter().octets.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let start = offset as usize;
        let platter = self.platter();
        let octets = platter.octets.get(start..start + out.len());
        out.copy_from_slice(octets.ok_or_else(|| Error::other("read beyond the end"))?);
        Ok(())
    }

    fn set_len(&self, length: u64) -> Result<()> {
        self.platter().octets.resize(length as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let start = offset as usize;
        let mut platter = self.platter();
        let place = platter.octets.get_mut(start..start + data.len());
        place.ok_or_else(|| Error::other("written beyond the end"))?.copy_from_slice(data);
        Ok(())
    }
}

impl SmallFiles for Disk {
    fn read(&mut self, file: SmallFile) -> Result<Option<Zeroizing<Vec<u8>>>> {
        Ok(self.platter().files.get(&file).cloned().map(Zeroizing::new))
    }

    fn replace(&mut self, file: SmallFile, content: &[u8]) -> Result<()> {
        self.platter().files.insert(file, content.to_vec());
        Ok(())
    }
}
