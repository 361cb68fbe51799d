//! How often hints may cause liveness checks (RFC 7296 section 2.4: MUST be limited).
//!
//! For each IKE SA one at a time and no sooner after the last than `probe_again`; a hint that comes too soon
//! counts when that time is over, so that it is delayed and never lost. For all together so many new ones a
//! second. Hints are limited by rate only: a packet older than the hint says nothing against it.

use crate::limits::Total;
use crate::taker::IkeSas;
use spindle_abi::Time;
use spindle_ike::api::{IkeSaId, ProbeResult};
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

/// When each IKE SA was last checked on a hint; bounded by the IKE SAs there are.
#[derive(Debug)]
pub(crate) struct Hints {
    again_after: Duration,
    total: Total,
    last: HashMap<IkeSaId, Time>,
    deferred: BTreeSet<(Time, IkeSaId)>,
}

impl Hints {
    pub(crate) fn new(again_after: Duration, total: u32) -> Hints {
        Hints { again_after, total: Total::new(total), last: HashMap::new(), deferred: BTreeSet::new() }
    }

    /// May a hint have this IKE SA checked now? If it's too soon, it will be [`Hints::next_deferred`].
    pub(crate) fn allow(&mut self, now: Time, ike: IkeSaId) -> bool {
        match self.last.get(&ike).map(|last| last.after(self.again_after)) {
            Some(earliest) if now < earliest => {
                self.deferred.insert((earliest, ike));
                false
            }
            _ => true,
        }
    }

    /// Checks it: a liveness exchange, or the outstanding request once more. `None`: too many at present.
    pub(crate) fn probe(&mut self, now: Time, ike: IkeSaId, sas: &mut dyn IkeSas) -> Option<ProbeResult> {
        if !self.total.has_room(now) {
            return None;
        }
        // How often hints send a request again is limited here; its own retransmissions don't count, or one that
        // left shortly before the peer came back would delay the hint.
        let result = sas.probe(now, ike, Duration::ZERO);
        match result {
            ProbeResult::Started => self.total.take(now),
            ProbeResult::SentAgain | ProbeResult::TooSoon => {}
            ProbeResult::NoSuchSa => {
                self.forget(ike);
                return Some(result);
            }
        }
        self.last.insert(ike, now);
        Some(result)
    }

    /// An IKE SA whose hint came too soon and is due now.
    pub(crate) fn next_deferred(&mut self, now: Time) -> Option<IkeSaId> {
        let first = self.deferred.first().filter(|(at, _)| *at <= now).copied()?;
        self.deferred.remove(&first);
        Some(first.1)
    }

    pub(crate) fn deadline(&self) -> Option<Time> {
        self.deferred.first().map(|(at, _)| *at)
    }

    /// The IKE SA is gone.
    pub(crate) fn forget(&mut self, ike: IkeSaId) {
        if let Some(last) = self.last.remove(&ike) {
            self.deferred.remove(&(last.after(self.again_after), ike));
        }
    }
}
