//! How often hints may cause liveness checks (RFC 7296 section 2.4: MUST be limited).
//!
//! For each IKE SA one at a time; a new one no sooner after the last than `probe_interval`, and the outstanding one again
//! no sooner than `probe_again`: shorter, since whoever floods us with hints while the peer is down would else decide
//! how long after its return it is asked. A hint that comes too soon counts when that time is over, so that it is
//! delayed and never lost. For all together so many new ones a second, and so many sent again; who finds no room waits in
//! a line. Only where the hint names an SPI on which we send is the outstanding one sent again without waiting: a peer
//! that lost very many IKE SAs says so of each whenever it is asked, but packets go on few. Hints are limited by rate
//! only: a packet older than the hint says nothing against it.

use crate::api::Limits;
use crate::limits::Total;
use crate::taker::IkeSas;
use spindle_abi::Time;
use spindle_ike::api::{IkeSaId, ProbeResult};
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

/// When each IKE SA was last checked on a hint. Bounded: what is too old to matter is dropped whenever there is twice as
/// much as what was not.
#[derive(Debug)]
pub(crate) struct Hints {
    interval: Duration,
    again_after: Duration,
    new: Line,
    again: Line,
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
    /// A hint named an SPI since.
    traffic: bool,
}

/// Times, and places in a line, that are kept without asking whether they still matter.
const LEAST: usize = 64;

impl Hints {
    pub(crate) fn new(limits: &Limits) -> Hints {
        Hints {
            interval: limits.probe_interval,
            again_after: limits.probe_again,
            new: Line::new(limits.probes_total),
            again: Line::new(limits.probes_again_total),
            last: HashMap::new(),
            most: LEAST,
            deferred: BTreeSet::new(),
        }
    }

    /// When this IKE SA may be checked next.
    fn earliest(&self, ike: IkeSaId, sas: &dyn IkeSas) -> Option<Time> {
        let last = self.last.get(&ike)?;
        let again = last.sent.after(self.again_after);
        Some(if sas.awaits_answer(ike) { again } else { again.max(last.began.after(self.interval)) })
    }

    /// Is it too soon for this IKE SA? Then it is due later.
    fn defer(&mut self, now: Time, ike: IkeSaId, sas: &dyn IkeSas) -> bool {
        let earliest = self.earliest(ike, sas).filter(|earliest| now < *earliest);
        self.deferred.extend(earliest.map(|earliest| (earliest, ike)));
        earliest.is_some()
    }

    /// In which line a check of this IKE SA may have to wait.
    fn line(&mut self, ike: IkeSaId, traffic: bool, sas: &dyn IkeSas) -> Option<&mut Line> {
        if !sas.awaits_answer(ike) {
            return Some(&mut self.new);
        }
        let traffic = traffic || self.last.get(&ike).is_some_and(|last| last.traffic);
        (!traffic).then_some(&mut self.again)
    }

    /// May a hint have this IKE SA checked now? If it's too soon, for it or for all, it will be [`Hints::next_due`].
    /// `traffic`: the hint names an SPI on which we send.
    pub(crate) fn allow(&mut self, now: Time, ike: IkeSaId, traffic: bool, sas: &dyn IkeSas) -> bool {
        if let Some(last) = self.last.get_mut(&ike) {
            last.traffic |= traffic;
        }
        !self.defer(now, ike, sas) && self.line(ike, traffic, sas).is_none_or(|line| line.enter(now, ike))
    }

    /// Checks it: a liveness exchange, or the outstanding request once more. `None`: too many at present.
    pub(crate) fn probe(
        &mut self,
        now: Time,
        ike: IkeSaId,
        traffic: bool,
        sas: &mut dyn IkeSas,
    ) -> Option<ProbeResult> {
        // An answer may have come since a hint was deferred: then it is a new check that it asks for.
        if self.defer(now, ike, sas) {
            return Some(ProbeResult::TooSoon);
        }
        let line = self.line(ike, traffic, sas);
        let counts = line.is_some();
        if line.is_some_and(|line| !line.has_room(now, ike)) {
            return None;
        }
        // How often hints send a request again is limited here; its own retransmissions don't count, or one that
        // left shortly before the peer came back would delay the hint.
        let result = sas.probe(now, ike, Duration::ZERO);
        match result {
            ProbeResult::Started => self.new.total.take(now),
            ProbeResult::SentAgain if counts => self.again.total.take(now),
            ProbeResult::SentAgain | ProbeResult::TooSoon => {}
            ProbeResult::NoSuchSa => {
                self.forget(ike);
                return Some(result);
            }
        }
        let last = self.last.entry(ike).or_insert(Last { began: now, sent: now, traffic: false });
        (last.sent, last.traffic) = (now, false);
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

    /// An IKE SA whose hint came too soon, for it or for all, and is due now.
    pub(crate) fn next_due(&mut self, now: Time, sas: &dyn IkeSas) -> Option<IkeSaId> {
        while let Some((at, ike)) = self.deferred.first().copied().filter(|(at, _)| *at <= now) {
            self.deferred.remove(&(at, ike));
            if self.allow(now, ike, false, sas) {
                return Some(ike);
            }
        }
        self.new.next(now).or_else(|| self.again.next(now))
    }

    pub(crate) fn deadline(&self) -> Option<Time> {
        let deferred = self.deferred.first().map(|(at, _)| *at);
        [deferred, self.new.deadline(), self.again.deadline()].into_iter().flatten().min()
    }

    /// The IKE SA is gone.
    pub(crate) fn forget(&mut self, ike: IkeSaId) {
        self.new.leave(ike);
        self.again.leave(ike);
        if let Some(last) = self.last.remove(&ike) {
            let (again, new) = (last.sent.after(self.again_after), last.began.after(self.interval));
            for at in [again, new.max(again)] {
                self.deferred.remove(&(at, ike));
            }
        }
    }
}

/// Those for whom there was no room, each once, in the order of their coming.
#[derive(Debug)]
struct Line {
    total: Total,
    queue: VecDeque<IkeSaId>,
    /// Who in the queue has not left it.
    waiting: HashSet<IkeSaId>,
}

impl Line {
    fn new(per_second: u32) -> Line {
        Line { total: Total::new(per_second), queue: VecDeque::new(), waiting: HashSet::new() }
    }

    /// Is there room, and nobody waits for it? If not, it waits behind them.
    fn enter(&mut self, now: Time, ike: IkeSaId) -> bool {
        if self.waiting.is_empty() {
            return self.has_room(now, ike);
        }
        self.wait(ike);
        false
    }

    /// Is there room? If not, it waits; where there never is any, it does not.
    fn has_room(&mut self, now: Time, ike: IkeSaId) -> bool {
        let room = self.total.has_room(now);
        if !room && self.total.room_at() > now {
            self.wait(ike);
        }
        room
    }

    fn wait(&mut self, ike: IkeSaId) {
        if self.waiting.insert(ike) {
            self.queue.push_back(ike);
        }
    }

    /// Who is next, if there is room.
    fn next(&mut self, now: Time) -> Option<IkeSaId> {
        if !self.total.has_room(now) {
            return None;
        }
        loop {
            let ike = self.queue.pop_front()?;
            if self.waiting.remove(&ike) {
                return Some(ike);
            }
        }
    }

    fn deadline(&self) -> Option<Time> {
        (!self.waiting.is_empty()).then(|| self.total.room_at())
    }

    fn leave(&mut self, ike: IkeSaId) {
        if self.waiting.remove(&ike) && self.queue.len() > LEAST.max(2 * self.waiting.len()) {
            self.queue.retain(|ike| self.waiting.contains(ike));
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
        let allowed = hints.allow(now, IkeSaId(ike), false, sas);
        if allowed { hints.probe(now, IkeSaId(ike), false, sas) } else { None }
    }

    /// A new check each second, the outstanding one again each 100 ms, 200 new ones a second in all and 1000 again.
    fn hints() -> Hints {
        Hints::new(&Limits::default())
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
        assert_eq!(hints.next_due(ms(99), &sas), None);
        assert_eq!(hints.next_due(ms(100), &sas), Some(IkeSaId(0)));
        assert_eq!(hints.probe(ms(100), IkeSaId(0), false, &mut sas), Some(ProbeResult::SentAgain));
        assert_eq!(hints.next_due(ms(5000), &sas), None, "many early hints count as one");
        assert_eq!(sas.probed.len(), 2);
    }

    /// A peer that answers each check at once is checked once a second, whatever is forged.
    #[test]
    fn hints_cause_one_new_check_a_second() {
        let (mut hints, mut sas) = (hints(), sas(1));
        for n in 0..3000 {
            hint(&mut hints, ms(n), 0, &mut sas);
            sas.outstanding = false;
            while let Some(ike) = hints.next_due(ms(n), &sas) {
                hints.probe(ms(n), ike, false, &mut sas);
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
        assert_eq!(hints.deadline(), Some(ms(100)));
        sas.outstanding = false;
        assert_eq!(hints.next_due(ms(100), &sas), None);
        assert_eq!(hints.deadline(), Some(ms(1000)));
        assert_eq!(hints.next_due(ms(1000), &sas), Some(IkeSaId(0)));
        assert_eq!(hints.probe(ms(1000), IkeSaId(0), false, &mut sas), Some(ProbeResult::Started));
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
        assert!((0..1000).all(|n| !hints.allow(NOW, IkeSaId(n), false, &sas)));
        let mut now = NOW;
        while let Some(at) = hints.deadline() {
            now = now.max(at);
            while let Some(ike) = hints.next_due(now, &sas) {
                sas.outstanding = false;
                hints.probe(now, ike, false, &mut sas);
            }
        }
        let probed: std::collections::BTreeSet<_> = sas.probed.iter().collect();
        assert_eq!(probed.len(), 1000);
        assert!(now.since(NOW) >= Duration::from_millis(3900), "{:?}: 200 a second", now.since(NOW));
    }

    /// The peer lost ten thousand IKE SAs, and says so of each whenever it is asked.
    #[test]
    fn all_ike_sas_together_have_a_budget_of_checks_sent_again_and_each_has_its_turn() {
        const MANY: u64 = 10_000;
        let (mut hints, mut sas) = (hints(), sas(MANY));
        sas.outstanding = true;
        for n in 0..MANY {
            hint(&mut hints, NOW, n, &mut sas);
        }
        assert_eq!(sas.probed.len(), 1000);
        (0..1000).for_each(|n| assert!(!hints.allow(NOW, IkeSaId(n), false, &sas)));
        for n in 0..20_000 {
            while let Some(ike) = hints.next_due(ms(n), &sas) {
                assert_eq!(hints.probe(ms(n), ike, false, &mut sas), Some(ProbeResult::SentAgain));
                hints.allow(ms(n), ike, false, &sas);
            }
        }
        assert!((20_000..=21_000).contains(&sas.probed.len()), "{}", sas.probed.len());
        let mut times = vec![0; MANY as usize];
        sas.probed.iter().for_each(|ike| times[ike.0 as usize] += 1);
        assert!(times.iter().all(|times| (2..=3).contains(times)), "each in its turn");
        assert!(hints.again.queue.len() <= MANY as usize);
    }

    #[test]
    fn a_hint_that_names_an_spi_waits_for_no_other_one() {
        let (mut hints, mut sas) = (hints(), sas(2000));
        sas.outstanding = true;
        let mut named = 0;
        for now in (0..2000).map(ms) {
            for n in 0..1999 {
                hint(&mut hints, now, n, &mut sas);
            }
            let ike = IkeSaId(1999);
            if hints.allow(now, ike, true, &sas) {
                hints.probe(now, ike, true, &mut sas);
            }
            while let Some(ike) = hints.next_due(now, &sas) {
                hints.probe(now, ike, false, &mut sas);
            }
            named = sas.probed.iter().filter(|probed| **probed == ike).count();
        }
        assert_eq!(named, 20, "each 100 ms");
        assert!(sas.probed.len() <= 20 + 1000 + 2000, "the others at their rate");
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
