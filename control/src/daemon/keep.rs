//! What outlives this process: the region that the supervisor left to us, as the gateway's records. After our death the
//! next control process finds them here and goes on ([`Gateway::adopting`](spindle_recovery::Gateway)).

use spindle_ike::api::{Change, Key};
use spindle_recovery::Records;
use spindle_ring::{AttachError, Kept};

/// The region, and what finds no room in it.
pub(super) struct Keeper {
    region: Kept,
    full: u64,
}

impl Keeper {
    /// The region, and what an earlier process left in it; `None` where the supervisor has none for us.
    pub(super) fn from_environment() -> Result<Option<(Keeper, Records)>, AttachError> {
        let Some((region, records)) = Kept::from_environment()? else { return Ok(None) };
        let records = records.into_iter().filter_map(|(key, octets)| Some((Key::from_numbers(key)?, octets)));
        let records = Records(records.collect());
        Ok(Some((Keeper { region, full: 0 }, records)))
    }

    /// The configuration that an earlier process of this incarnation ran with: a file that was edited since counts when
    /// it is reloaded, not by a death.
    pub(super) fn configuration(records: &Records) -> Option<&str> {
        records.incarnation()?;
        let (_, text) = records.0.iter().find(|(key, _)| *key == Key::Configuration)?;
        std::str::from_utf8(text).ok()
    }

    /// What is there is nobody's.
    pub(super) fn clear(&mut self) {
        self.region.clear();
    }

    /// All of it, or none: what finds no room would be lost with this process, as by a crash of the whole gateway.
    pub(super) fn write(&mut self, changes: &[Change]) {
        let changes: Vec<_> = changes
            .iter()
            .map(|Change { key, record }| (key.numbers(), record.as_ref().map(|octets| octets.as_slice())))
            .collect();
        if self.region.write(&changes).is_err() {
            if self.full == 0 {
                tracing::error!("the memory for IKE SAs is full: what is new is lost if this process dies");
            }
            self.full += 1;
        }
    }

    /// Names and values for `stats`.
    pub(super) fn stats(&self) -> [(&'static str, u64); 2] {
        [("kept_records", self.region.len() as u64), ("kept_full", self.full)]
    }
}
