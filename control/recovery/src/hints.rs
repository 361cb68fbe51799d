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

/// When each IKE SA was last checked on a hint. Bounded: what is older than `again_after` is dropped whenever there
/// is twice as much as what was not.
#[derive(Debug)]
pub(crate) struct Hints {
    again_after: Duration,
    total: Total,
    last: HashMap<IkeSaId, Time>,
    most: usize,
    deferred: BTreeSet<(Time, IkeSaId)>,
}

/// Times that are kept without asking whether they are too old.
const LEAST: usize = 64;

impl Hints {
    pub(crate) fn new(again_after: Duration, total: u32) -> Hints {
        let (last, deferred) = (HashMap::new(), BTreeSet::new());
        Hints { again_after, total: Total::new(total), last, most: LEAST, deferred }
    }

    /// May a hint have this IKE SA checked now? If it's too soon, for it or for all, it will be
    /// [`Hints::next_deferred`].
    pub(crate) fn allow(&mut self, now: Time, ike: IkeSaId) -> bool {
        if !self.total.has_room(now) {
            self.wait_for_room(now, ike);
            return false;
        }
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
            self.wait_for_room(now, ike);
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
        if self.last.len() > self.most {
            self.last.retain(|_, last| last.after(self.again_after) > now);
            self.most = LEAST.max(2 * self.last.len());
        }
        Some(result)
    }

    /// It is checked once there is room; where there never is any, never.
    fn wait_for_room(&mut self, now: Time, ike: IkeSaId) {
        let at = self.total.room_at();
        if at > now {
            self.deferred.insert((at, ike));
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{FakeSas, NOW, pair};

    fn ms(n: u64) -> Time {
        NOW.after(Duration::from_millis(n))
    }

    fn sas(n: u64) -> FakeSas {
        FakeSas {
            ike_sas: (0..n).map(|n| (IkeSaId(n), pair(n as u8), vec![])).collect(),
            ..FakeSas::default()
        }
    }

    fn hint(hints: &mut Hints, now: Time, ike: u64, sas: &mut FakeSas) -> Option<ProbeResult> {
        if hints.allow(now, IkeSaId(ike)) { hints.probe(now, IkeSaId(ike), sas) } else { None }
    }

    /// RFC 7296 section 2.4: limited; but a hint is delayed, not lost.
    #[test]
    fn hints_cause_one_check_a_second_and_the_outstanding_one_is_sent_again_at_once() {
        let (mut hints, mut sas) = (Hints::new(Duration::from_secs(1), 200), sas(1));
        sas.outstanding = true;
        assert_eq!(hint(&mut hints, NOW, 0, &mut sas), Some(ProbeResult::SentAgain));
        for n in 1..1000 {
            assert_eq!(hint(&mut hints, ms(n), 0, &mut sas), None);
        }
        assert_eq!(hints.deadline(), Some(ms(1000)));
        assert_eq!(hints.next_deferred(ms(999)), None);
        assert_eq!(hints.next_deferred(ms(1000)), Some(IkeSaId(0)));
        assert_eq!(hints.probe(ms(1000), IkeSaId(0), &mut sas), Some(ProbeResult::SentAgain));
        assert_eq!(hints.next_deferred(ms(5000)), None, "many early hints count as one");
        assert_eq!(sas.probed.len(), 2);
    }

    #[test]
    fn all_ike_sas_together_have_a_budget_of_new_checks() {
        let (mut hints, mut sas) = (Hints::new(Duration::from_secs(1), 200), sas(1000));
        for n in 0..1000 {
            sas.outstanding = false;
            hint(&mut hints, NOW, n, &mut sas);
        }
        assert_eq!(sas.probed.len(), 200);
        // Those over the budget are not lost; and no second hint is taken up for any of them meanwhile.
        assert!((0..1000).all(|n| !hints.allow(NOW, IkeSaId(n))));
        let mut now = NOW;
        while let Some(at) = hints.deadline() {
            now = now.max(at);
            while let Some(ike) = hints.next_deferred(now) {
                sas.outstanding = false;
                hints.probe(now, ike, &mut sas);
            }
        }
        let probed: std::collections::BTreeSet<_> = sas.probed.iter().collect();
        assert_eq!(probed.len(), 1000);
        assert!(now.since(NOW) >= Duration::from_millis(3900), "{:?}: 200 a second", now.since(NOW));
    }

    /// Half-open IKE SAs end without a word.
    #[test]
    fn times_too_old_to_matter_are_dropped() {
        let (mut hints, mut sas) = (Hints::new(Duration::from_secs(1), 200), sas(100_000));
        for n in 0..100_000 {
            sas.outstanding = false;
            hint(&mut hints, ms(n * 10), n, &mut sas);
        }
        assert_eq!(sas.probed.len(), 100_000);
        assert!(hints.last.len() <= 300, "{}", hints.last.len());
    }

    #[test]
    fn an_ike_sa_that_is_gone_leaves_nothing_behind() {
        let (mut hints, mut sas) = (Hints::new(Duration::from_secs(1), 200), sas(1));
        hint(&mut hints, NOW, 0, &mut sas);
        hint(&mut hints, ms(1), 0, &mut sas);
        hints.forget(IkeSaId(0));
        assert_eq!((hints.deadline(), hints.last.len()), (None, 0));
        assert_eq!(hint(&mut hints, ms(2), 9, &mut sas), Some(ProbeResult::NoSuchSa));
        assert_eq!(hints.last.len(), 0);
    }
}
