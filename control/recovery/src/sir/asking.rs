//! Y's side: which IKE SAs are being asked about, and what came of it (draft sections 3.2.2 and 3.2.3).
//!
//! ```text
//!           ask                 NACK                    the wait is over
//!   (none) ----->  [`Asked`]  -------->  [`Waiting`]  ------------------>  [`Recovering`]  --> authenticated or failed
//!            again, twice |  ACK              | ACK
//!                 given up, denied        contradicted
//! ```
//!
//! A record is made on a hint, within budgets, for an IKE SA that is there already; an answer counts only while there is
//! one and with a cookie of ours.

use crate::api::SirLimits;
use crate::limits::{BySource, SourceKey, Total};
use crate::line::Line;
use spindle_abi::Time;
use spindle_ike::api::IkeSaId;
use spindle_ike::check_spi::Subtype;
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

/// Until a query is sent again, until once more, until it is given up.
const AGAIN: [Duration; 3] = [Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2)];

#[derive(Clone, PartialEq, Eq, Debug)]
enum Stage {
    /// A query is on its way, and was sent so many times.
    Asked(usize),
    /// X says that the IKE SA is not there; who denies it must do so now. With X's cookie.
    Waiting(Option<Vec<u8>>),
    /// An IKE SA that is to take its place is being made.
    Recovering,
}

#[derive(Debug)]
struct Record {
    connection: String,
    stage: Stage,
    /// When the first query left.
    asked: Time,
    /// When the last one did.
    sent: Time,
    /// When something is due.
    due: Option<Time>,
    /// Do packets leave on it?
    traffic: bool,
}

/// What came of a hint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ask {
    /// Send a query.
    Send,
    /// It is being asked about already: send the query again.
    SendAgain,
    /// It is being asked about already, or recovered.
    UnderWay,
    /// Over a budget, or too many at once.
    OverBudget,
}

/// What an answer with a valid cookie amounts to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Answered {
    /// Nothing was asked, or it says nothing new.
    Unexpected,
    /// NACK: wait, should an ACK come too.
    Wait,
    /// ACK: the hint was wrong.
    Denied,
    /// ACK after a NACK: one of the two is forged.
    Contradicted,
}

/// What is due.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Due {
    /// Send the query again.
    Again(IkeSaId),
    /// It was not answered.
    GiveUp(IkeSaId),
    /// It is confirmed: X's cookie, and when the first query left.
    Confirmed { ike: IkeSaId, cookie: Option<Vec<u8>>, asked: Time },
}

/// All IKE SAs that are being asked about or recovered.
#[derive(Debug)]
pub(crate) struct Asking {
    limits: SirLimits,
    records: HashMap<IkeSaId, Record>,
    due: BTreeSet<(Time, IkeSaId)>,
    /// Those of [`Stage::Waiting`] whose wait is over; a new IKE SA waits for the pace.
    ready: Line<IkeSaId, ()>,
    queries: BySource,
}

impl Asking {
    pub(crate) fn new(limits: &SirLimits) -> Asking {
        Asking {
            limits: *limits,
            records: HashMap::new(),
            due: BTreeSet::new(),
            ready: Line::default(),
            queries: BySource::new(limits.queries_per_sa, limits.queries_total),
        }
    }

    /// A hint about this IKE SA. `source`: it and its peer's address, for the budget. `again_after`: an outstanding query
    /// may be sent again so long after it was last sent, as the outstanding request of a liveness check is. `traffic`: do
    /// packets leave on it?
    pub(crate) fn ask(
        &mut self,
        now: Time,
        (ike, traffic): (IkeSaId, bool),
        connection: &str,
        source: SourceKey,
        again_after: Duration,
    ) -> Ask {
        if let Some(record) = self.records.get_mut(&ike) {
            return match record.stage {
                Stage::Asked(_) if now.since(record.sent) >= again_after => {
                    record.sent = now;
                    Ask::SendAgain
                }
                _ => Ask::UnderWay,
            };
        }
        if self.records.len() >= self.limits.recovering_at_once as usize || !self.queries.allow(now, source) {
            return Ask::OverBudget;
        }
        let stage = Stage::Asked(1);
        let record =
            Record { connection: connection.to_owned(), stage, asked: now, sent: now, due: None, traffic };
        self.records.insert(ike, record);
        self.schedule(ike, Some(now.after(AGAIN[0])));
        Ask::Send
    }

    /// Packets leave on it.
    pub(crate) fn hurry(&mut self, ike: IkeSaId) {
        let Some(record) = self.records.get_mut(&ike) else { return };
        record.traffic = true;
        if self.ready.contains(ike) {
            self.ready.put(ike, (), true);
        }
    }

    /// May an answer about this IKE SA count? Asked before its cookie is checked, which costs more.
    pub(crate) fn is_asked(&self, ike: IkeSaId) -> bool {
        self.records.get(&ike).is_some_and(|record| record.stage != Stage::Recovering)
    }

    /// Is an IKE SA that is to take its place being made?
    pub(crate) fn is_recovering(&self, ike: IkeSaId) -> bool {
        self.records.get(&ike).is_some_and(|record| record.stage == Stage::Recovering)
    }

    /// An answer, whose cookie was checked. `round_trip`: what is known of it.
    pub(crate) fn answered(
        &mut self,
        now: Time,
        ike: IkeSaId,
        subtype: Subtype,
        cookie: Option<Vec<u8>>,
        round_trip: Option<Duration>,
    ) -> Answered {
        let Some(record) = self.records.get_mut(&ike) else { return Answered::Unexpected };
        match (&record.stage, subtype) {
            (Stage::Recovering, _) | (_, Subtype::Query) | (Stage::Waiting(_), Subtype::Nack) => {
                Answered::Unexpected
            }
            (Stage::Asked(_), Subtype::Nack) => {
                record.stage = Stage::Waiting(cookie);
                let until = now.after(self.wait(round_trip));
                self.schedule(ike, Some(until));
                Answered::Wait
            }
            (Stage::Asked(_), Subtype::Ack) => {
                self.forget(ike);
                Answered::Denied
            }
            (Stage::Waiting(_), Subtype::Ack) => {
                self.forget(ike);
                Answered::Contradicted
            }
        }
    }

    /// Section 3.2.3: ideally a whole round trip, so that the ACK of a living X arrives; twice that, to be safe, and
    /// within bounds.
    fn wait(&self, round_trip: Option<Duration>) -> Duration {
        let SirLimits { wait_min, wait_max, .. } = self.limits;
        round_trip.map_or(wait_min, |rtt| rtt.saturating_mul(2)).max(wait_min).min(wait_max)
    }

    /// The next one that is due, if any. Each confirmation takes from the pace of handshakes.
    pub(crate) fn next_due(&mut self, now: Time, pace: &mut Total) -> Option<Due> {
        while let Some((_, ike)) = self.due.first().filter(|(at, _)| *at <= now).copied() {
            if let Some(due) = self.advance(now, ike) {
                return Some(due);
            }
        }
        self.next_ready(now, pace)
    }

    fn next_ready(&mut self, now: Time, pace: &mut Total) -> Option<Due> {
        if !pace.has_room(now) {
            return None;
        }
        let (ike, ()) = self.ready.next()?;
        let record = self.records.get_mut(&ike)?;
        let Stage::Waiting(cookie) = std::mem::replace(&mut record.stage, Stage::Recovering) else {
            return None;
        };
        pace.take(now);
        Some(Due::Confirmed { ike, cookie, asked: record.asked })
    }

    fn advance(&mut self, now: Time, ike: IkeSaId) -> Option<Due> {
        let record = self.records.get_mut(&ike)?;
        match &mut record.stage {
            Stage::Asked(sent) if *sent < AGAIN.len() => {
                *sent += 1;
                record.sent = now;
                let next = now.after(AGAIN[*sent - 1]);
                self.schedule(ike, Some(next));
                Some(Due::Again(ike))
            }
            Stage::Asked(_) => {
                self.forget(ike);
                Some(Due::GiveUp(ike))
            }
            Stage::Waiting(_) => {
                self.ready.put(ike, (), record.traffic);
                self.schedule(ike, None);
                None
            }
            Stage::Recovering => {
                self.schedule(ike, None);
                None
            }
        }
    }

    pub(crate) fn deadline(&self, pace: &Total) -> Option<Time> {
        let ready = (!self.ready.is_empty()).then(|| pace.room_at());
        [self.due.first().map(|(at, _)| *at), ready].into_iter().flatten().min()
    }

    /// The IKE SA is gone, or asked about no more.
    pub(crate) fn forget(&mut self, ike: IkeSaId) {
        self.schedule(ike, None);
        self.ready.remove(ike);
        self.records.remove(&ike);
    }

    /// An IKE SA of this connection was not made; were some of it to be recovered by that?
    pub(crate) fn failed(&mut self, connection: &str) -> bool {
        let before = self.records.len();
        self.records.retain(|_, r| r.connection != connection || r.stage != Stage::Recovering);
        self.records.len() < before
    }

    fn schedule(&mut self, ike: IkeSaId, at: Option<Time>) {
        let Some(record) = self.records.get_mut(&ike) else { return };
        if let Some(old) = std::mem::replace(&mut record.due, at) {
            self.due.remove(&(old, ike));
        }
        self.due.extend(at.map(|at| (at, ike)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::SourceHash;
    use crate::testing::{NOW, pair, socket};

    const SA: IkeSaId = IkeSaId(1);
    const AGAIN_AFTER: Duration = Duration::from_millis(100);
    const RTT: Option<Duration> = Some(Duration::from_millis(100));

    fn ms(n: u64) -> Time {
        NOW.after(Duration::from_millis(n))
    }

    /// One that has room for all.
    fn pace() -> Total {
        Total::new(1_000_000)
    }

    impl Asking {
        fn due_at(&mut self, now: Time) -> Option<Due> {
            self.next_due(now, &mut pace())
        }
    }

    fn asking() -> Asking {
        Asking::new(&SirLimits::default())
    }

    fn source(n: u8) -> SourceKey {
        SourceHash::new(&[1; 32]).source_and_pair(socket("192.0.2.1:500").ip(), pair(n))
    }

    fn ask(asking: &mut Asking, now: Time) -> Ask {
        asking.ask(now, (SA, false), "site", source(1), AGAIN_AFTER)
    }

    fn nack(asking: &mut Asking, now: Time) -> Answered {
        asking.answered(now, SA, Subtype::Nack, None, RTT)
    }

    fn ack(asking: &mut Asking, now: Time) -> Answered {
        asking.answered(now, SA, Subtype::Ack, None, RTT)
    }

    /// Section 3.2.3: the wait is two round trips, 50 ms at least, a second at most.
    #[test]
    fn a_nack_confirms_once_the_wait_is_over() {
        let cases = [
            (None, 50),
            (Some(1), 50),
            (Some(25), 50),
            (Some(100), 200),
            (Some(500), 1000),
            (Some(9000), 1000),
        ];
        for (round_trip, wait) in cases {
            let mut asking = asking();
            assert_eq!(ask(&mut asking, NOW), Ask::Send);
            let round_trip = round_trip.map(Duration::from_millis);
            let answered = asking.answered(ms(10), SA, Subtype::Nack, Some(vec![7]), round_trip);
            assert_eq!(answered, Answered::Wait);
            // Another one neither shortens the wait nor changes the cookie.
            assert_eq!(asking.answered(ms(11), SA, Subtype::Nack, None, round_trip), Answered::Unexpected);
            assert_eq!(asking.deadline(&pace()), Some(ms(10 + wait)));
            assert_eq!(asking.due_at(ms(9 + wait)), None);
            let confirmed = Due::Confirmed { ike: SA, cookie: Some(vec![7]), asked: NOW };
            assert_eq!(asking.due_at(ms(10 + wait)), Some(confirmed));
            assert_eq!((asking.due_at(ms(99_999)), asking.deadline(&pace())), (None, None));
            assert_eq!(ask(&mut asking, ms(99_999)), Ask::UnderWay);
            assert!(asking.is_recovering(SA));
            assert_eq!(ack(&mut asking, ms(99_999)), Answered::Unexpected, "too late");
        }
    }

    /// Section 3.2.2: an ACK is logged and nothing else; section 3.2.3: both stop the recovery.
    #[test]
    fn an_ack_ends_it_before_and_after_a_nack() {
        let mut asking = asking();
        ask(&mut asking, NOW);
        assert_eq!(ack(&mut asking, ms(10)), Answered::Denied);
        assert_eq!(nack(&mut asking, ms(11)), Answered::Unexpected, "the forger came second");
        assert_eq!(asking.deadline(&pace()), None);
        ask(&mut asking, ms(5000));
        assert_eq!(nack(&mut asking, ms(5010)), Answered::Wait);
        assert_eq!(ack(&mut asking, ms(5100)), Answered::Contradicted);
        assert_eq!((asking.due_at(ms(99_999)), asking.deadline(&pace())), (None, None));
    }

    #[test]
    fn an_answer_to_nothing_asked_is_nothing() {
        let mut asking = asking();
        assert!(!asking.is_asked(SA));
        assert_eq!([nack(&mut asking, NOW), ack(&mut asking, NOW)], [Answered::Unexpected; 2]);
        ask(&mut asking, NOW);
        assert!(asking.is_asked(SA) && !asking.is_asked(IkeSaId(2)));
        assert_eq!(asking.answered(ms(1), SA, Subtype::Query, None, RTT), Answered::Unexpected);
        assert_eq!(asking.answered(ms(1), IkeSaId(2), Subtype::Nack, None, RTT), Answered::Unexpected);
    }

    #[test]
    fn a_query_is_sent_three_times_and_then_given_up() {
        let mut asking = asking();
        assert_eq!(ask(&mut asking, NOW), Ask::Send);
        assert_eq!(ask(&mut asking, ms(2)), Ask::UnderWay);
        for (at, due) in [(500, Due::Again(SA)), (1500, Due::Again(SA)), (3500, Due::GiveUp(SA))] {
            assert_eq!(asking.deadline(&pace()), Some(ms(at)));
            assert_eq!(asking.due_at(ms(at - 1)), None);
            assert_eq!(asking.due_at(ms(at)), Some(due));
        }
        assert_eq!(asking.deadline(&pace()), None);
        assert_eq!(ask(&mut asking, ms(3501)), Ask::Send);
    }

    /// While X is down a flood of hints must not decide how long after its return it is asked.
    #[test]
    fn a_hint_sends_the_outstanding_query_again_within_its_rate_and_leaves_the_schedule_alone() {
        let mut asking = asking();
        assert_eq!(ask(&mut asking, NOW), Ask::Send);
        let again = (1..=400).filter(|n| ask(&mut asking, ms(*n)) == Ask::SendAgain).collect::<Vec<_>>();
        assert_eq!(again, [100, 200, 300, 400]);
        assert_eq!(asking.due_at(ms(500)), Some(Due::Again(SA)));
        assert_eq!(ask(&mut asking, ms(599)), Ask::UnderWay);
        assert_eq!(nack(&mut asking, ms(600)), Answered::Wait);
        assert_eq!(ask(&mut asking, ms(999)), Ask::UnderWay, "it is answered");
    }

    /// Section 3.2.2: MUST be rate limited per peer; here per IKE SA, and in all; and so many at once.
    #[test]
    fn queries_are_limited_per_ike_sa_and_in_all_and_at_once() {
        let mut one = asking();
        let mut sent = 0;
        for n in 0..1000 {
            sent += usize::from(ask(&mut one, ms(n)) == Ask::Send);
            ack(&mut one, ms(n));
        }
        assert_eq!(sent, 1);
        assert_eq!(ask(&mut one, ms(1000)), Ask::Send);

        let mut many = asking();
        let mut each = |now, most: u64| {
            let ask = |n: &u64| {
                many.ask(now, (IkeSaId(*n), false), "site", source(*n as u8), AGAIN_AFTER) == Ask::Send
            };
            (0..most).filter(ask).count()
        };
        // More than the total allows, for a few share a bucket.
        assert_eq!(each(NOW, 250), 200);
        assert_eq!(each(NOW, 250), 0);
        let mut full = Asking::new(&SirLimits {
            queries_total: 1_000_000,
            queries_per_sa: 1_000_000,
            ..SirLimits::default()
        });
        let ask = |n: &u64| full.ask(NOW, (IkeSaId(*n), false), "site", source(1), AGAIN_AFTER) == Ask::Send;
        assert_eq!((0..2000).filter(ask).count(), 1024);
    }

    #[test]
    fn what_is_gone_or_failed_leaves_nothing_behind() {
        let mut asking = asking();
        ask(&mut asking, NOW);
        assert!(!asking.failed("site"), "another attempt of the connection");
        asking.forget(SA);
        assert_eq!((asking.deadline(&pace()), asking.records.len()), (None, 0));
        ask(&mut asking, ms(2000));
        nack(&mut asking, ms(2001));
        assert!(asking.due_at(ms(3000)).is_some());
        assert!(!asking.failed("other"));
        assert!(asking.failed("site"));
        assert_eq!((asking.deadline(&pace()), asking.records.len(), asking.due.len()), (None, 0, 0));
    }

    /// The IKE SAs whose recoveries begin now.
    fn ready(asking: &mut Asking, pace: &mut Total, now: Time) -> Vec<u64> {
        let due = std::iter::from_fn(|| asking.next_due(now, pace));
        due.map(|due| match due {
            Due::Confirmed { ike, .. } => ike.0,
            other => panic!("{other:?}"),
        })
        .collect()
    }

    #[test]
    fn those_with_traffic_are_recovered_first() {
        let (mut asking, mut pace) = (asking(), Total::new(1));
        for n in 1..=6 {
            let sa = (IkeSaId(n.into()), n == 4);
            assert_eq!(asking.ask(NOW, sa, "site", source(n), AGAIN_AFTER), Ask::Send);
            asking.answered(ms(10), sa.0, Subtype::Nack, None, RTT);
        }
        asking.hurry(IkeSaId(2));
        assert_eq!(ready(&mut asking, &mut pace, ms(210)), [2]);
        // While it waits for the pace.
        asking.hurry(IkeSaId(6));
        let in_turn: Vec<u64> =
            (1..=6).flat_map(|n| ready(&mut asking, &mut pace, ms(210 + 1000 * n))).collect();
        assert_eq!(in_turn, [4, 6, 1, 3, 5]);
        assert_eq!(asking.deadline(&pace), None);
    }

    /// New IKE SAs share the pace of handshakes, in the order of their confirmations; an ACK still counts meanwhile.
    #[test]
    fn confirmations_wait_for_the_pace_of_handshakes() {
        let (mut asking, mut pace) = (asking(), Total::new(2));
        let source = SourceHash::new(&[1; 32]);
        for n in 1..=4 {
            let key = source.source_and_pair(socket("192.0.2.2:500").ip(), pair(n));
            assert_eq!(asking.ask(NOW, (IkeSaId(n.into()), false), "site", key, AGAIN_AFTER), Ask::Send);
            asking.answered(ms(10), IkeSaId(n.into()), Subtype::Nack, None, RTT);
        }
        assert_eq!(ready(&mut asking, &mut pace, ms(210)), [1, 2]);
        assert_eq!(asking.deadline(&pace), Some(ms(710)));
        assert_eq!(asking.answered(ms(300), IkeSaId(3), Subtype::Ack, None, RTT), Answered::Contradicted);
        assert_eq!(ready(&mut asking, &mut pace, ms(709)), [0; 0]);
        assert_eq!(ready(&mut asking, &mut pace, ms(710)), [4]);
        assert_eq!(asking.deadline(&pace), None);
    }
}
