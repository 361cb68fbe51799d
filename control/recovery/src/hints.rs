//! How often hints may cause liveness checks (RFC 7296 section 2.4: MUST be limited).
//!
//! For each IKE SA one at a time; a new one no sooner after the last than `probe_interval`, and the outstanding one again
//! no sooner than `probe_again`: shorter, since whoever floods us with hints while the peer is down would else decide
//! how long after its return it is asked. A hint that comes too soon counts when that time is over, so that it is
//! delayed and never lost. For all together so many new ones a second. Hints are limited by rate only: a packet older
//! than the hint says nothing against it.

use crate::limits::Total;
use crate::taker::IkeSas;
use spindle_abi::Time;
use spindle_ike::api::{IkeSaId, ProbeResult};
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

/// When each IKE SA was last checked on a hint. Bounded: what is too old to matter is dropped whenever there is twice as
/// much as what was not.
#[derive(Debug)]
pub(crate) struct Hints {
    interval: Duration,
    again_after: Duration,
    total: Total,
    last: HashMap<IkeSaId, Last>,
    most: usize,
    deferred: BTreeSet<(Time, IkeSaId)>,
}

/// An IKE SA's last check on a hint.
#[derive(Clone, Copy, Debug)]
struct Last {
    /// When it began; or when a request of before was first sent again.
    began: Time,
    /// When it was last sent.
    sent: Time,
}

/// Times that are kept without asking whether they are too old.
const LEAST: usize = 64;

impl Hints {
    pub(crate) fn new(interval: Duration, again_after: Duration, total: u32) -> Hints {
        let (last, deferred) = (HashMap::new(), BTreeSet::new());
        Hints { interval, again_after, total: Total::new(total), last, most: LEAST, deferred }
    }

    /// When this IKE SA may be checked next.
    fn earliest(&self, ike: IkeSaId, sas: &dyn IkeSas) -> Option<Time> {
        let last = self.last.get(&ike)?;
        let again = last.sent.after(self.again_after);
        Some(if sas.awaits_answer(ike) { again } else { again.max(last.began.after(self.interval)) })
    }

    /// May a hint have this IKE SA checked now? If it's too soon, for it or for all, it will be
    /// [`Hints::next_deferred`].
    pub(crate) fn allow(&mut self, now: Time, ike: IkeSaId, sas: &dyn IkeSas) -> bool {
        if !self.total.has_room(now) {
            self.wait_for_room(now, ike);
            return false;
        }
        match self.earliest(ike, sas) {
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
        // An answer may have come since a hint was deferred: then it is a new check that it asks for.
        if let Some(earliest) = self.earliest(ike, sas).filter(|earliest| now < *earliest) {
            self.deferred.insert((earliest, ike));
            return Some(ProbeResult::TooSoon);
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
        let last = self.last.entry(ike).or_insert(Last { began: now, sent: now });
        last.sent = now;
        if result == ProbeResult::Started {
            last.began = now;
        }
        if self.last.len() > self.most {
            let longest = self.interval.max(self.again_after);
            self.last.retain(|_, last| last.sent.after(longest) > now);
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
            let (again, new) = (last.sent.after(self.again_after), last.began.after(self.interval));
            for at in [again, new.max(again)] {
                self.deferred.remove(&(at, ike));
            }
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
        if hints.allow(now, IkeSaId(ike), sas) { hints.probe(now, IkeSaId(ike), sas) } else { None }
    }

    /// A new check each second, the outstanding one again each 100 ms, 200 new ones a second in all.
    fn hints() -> Hints {
        Hints::new(Duration::from_secs(1), Duration::from_millis(100), 200)
    }

    /// RFC 7296 section 2.4: limited; but a hint is delayed, not lost.
    #[test]
    fn the_outstanding_check_is_sent_again_at_once_and_then_at_its_rate() {
        let (mut hints, mut sas) = (hints(), sas(1));
        sas.outstanding = true;
        assert_eq!(hint(&mut hints, NOW, 0, &mut sas), Some(ProbeResult::SentAgain));
        for n in 1..100 {
            assert_eq!(hint(&mut hints, ms(n), 0, &mut sas), None);
        }
        assert_eq!(hints.deadline(), Some(ms(100)));
        assert_eq!(hints.next_deferred(ms(99)), None);
        assert_eq!(hints.next_deferred(ms(100)), Some(IkeSaId(0)));
        assert_eq!(hints.probe(ms(100), IkeSaId(0), &mut sas), Some(ProbeResult::SentAgain));
        assert_eq!(hints.next_deferred(ms(5000)), None, "many early hints count as one");
        assert_eq!(sas.probed.len(), 2);
    }

    /// A peer that answers each check at once is checked once a second, whatever is forged.
    #[test]
    fn hints_cause_one_new_check_a_second() {
        let (mut hints, mut sas) = (hints(), sas(1));
        for n in 0..3000 {
            hint(&mut hints, ms(n), 0, &mut sas);
            sas.outstanding = false;
            while let Some(ike) = hints.next_deferred(ms(n)) {
                hints.probe(ms(n), ike, &mut sas);
                sas.outstanding = false;
            }
        }
        assert_eq!(sas.probed.len(), 3);
    }

    /// The hint came while a check was outstanding, which is answered before its turn comes.
    #[test]
    fn a_deferred_hint_starts_no_new_check_before_its_time() {
        let (mut hints, mut sas) = (hints(), sas(1));
        assert_eq!(hint(&mut hints, NOW, 0, &mut sas), Some(ProbeResult::Started));
        assert_eq!(hint(&mut hints, ms(1), 0, &mut sas), None);
        sas.outstanding = false;
        assert_eq!(hints.next_deferred(ms(100)), Some(IkeSaId(0)));
        assert_eq!(hints.probe(ms(100), IkeSaId(0), &mut sas), Some(ProbeResult::TooSoon));
        assert_eq!(hints.deadline(), Some(ms(1000)));
        assert_eq!(hints.probe(ms(1000), IkeSaId(0), &mut sas), Some(ProbeResult::Started));
    }

    #[test]
    fn all_ike_sas_together_have_a_budget_of_new_checks() {
        let (mut hints, mut sas) = (hints(), sas(1000));
        for n in 0..1000 {
            sas.outstanding = false;
            hint(&mut hints, NOW, n, &mut sas);
        }
        assert_eq!(sas.probed.len(), 200);
        // Those over the budget are not lost; and no second hint is taken up for any of them meanwhile.
        assert!((0..1000).all(|n| !hints.allow(NOW, IkeSaId(n), &sas)));
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
        let (mut hints, mut sas) = (hints(), sas(100_000));
        for n in 0..100_000 {
            sas.outstanding = false;
            hint(&mut hints, ms(n * 10), n, &mut sas);
        }
        assert_eq!(sas.probed.len(), 100_000);
        assert!(hints.last.len() <= 300, "{}", hints.last.len());
    }

    #[test]
    fn an_ike_sa_that_is_gone_leaves_nothing_behind() {
        let (mut hints, mut sas) = (hints(), sas(1));
        hint(&mut hints, NOW, 0, &mut sas);
        hint(&mut hints, ms(1), 0, &mut sas);
        hints.forget(IkeSaId(0));
        assert_eq!((hints.deadline(), hints.last.len()), (None, 0));
        assert_eq!(hint(&mut hints, ms(2), 9, &mut sas), Some(ProbeResult::NoSuchSa));
        assert_eq!(hints.last.len(), 0);
    }
}
