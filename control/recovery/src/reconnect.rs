//! Connections to be initiated: after a proof that the peer lost its SAs (RFC 6290 section 3: the taker may re-initiate
//! at once), and after a start of our own, which lost ours (RFC 7296 section 2.4).
//!
//! At once, then with growing pauses; not faster than handshakes can be taken (`handshakes_total`); and
//! those first whose traffic came, in its order.

use crate::limits::Total;
use spindle_abi::Time;
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

/// The first pause after a failed initiation; doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Initiations after one proof or start; then the next packet for the connection starts it.
const ATTEMPTS: u32 = 10;
/// So long our own initiation after a start is preferred to what else may bring the peer back.
const PREFERRED: Duration = Duration::from_secs(2);

/// Why a connection is initiated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Why {
    /// A token matched: the peer lost its SAs.
    Proof,
    /// We started. `preferred`: the connection prefers this to our token.
    Start {
        /// Is our token to wait for it?
        preferred: bool,
    },
}

#[derive(Debug)]
struct Wanted {
    why: Why,
    children: Vec<String>,
    attempts: u32,
    /// When to initiate, and its place in the queue; `None` while an initiation is under way.
    place: Option<Place>,
    /// Did traffic ask for it?
    traffic: bool,
    /// When the first initiation began.
    began: Option<Time>,
    /// Until given up: never, for what is to be up always.
    always: bool,
}

/// Those with traffic first, each by time, then by order.
type Place = (Time, u64);

/// One initiation that is due.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Due {
    pub(crate) connection: String,
    /// Empty: the first one that is configured.
    pub(crate) children: Vec<String>,
    pub(crate) why: Why,
}

/// What is to be initiated, and when.
#[derive(Debug, Default)]
pub(crate) struct Reconnect {
    wanted: HashMap<String, Wanted>,
    with_traffic: BTreeSet<(Place, String)>,
    without: BTreeSet<(Place, String)>,
    order: u64,
}

impl Reconnect {
    /// This connection was lost, and these children with it. `always`: it is to be up always.
    pub(crate) fn lost(&mut self, now: Time, connection: &str, children: Vec<String>, always: bool) {
        self.want(now, connection, Why::Proof, children, always);
    }

    /// We started, and had these children with this connection's peer, or may have had.
    pub(crate) fn started(&mut self, at: Time, connection: &str, children: Vec<String>, preferred: bool) {
        self.want(at, connection, Why::Start { preferred }, children, false);
    }

    fn want(&mut self, at: Time, connection: &str, why: Why, children: Vec<String>, always: bool) {
        self.forget(connection);
        let (place, attempts) = (None, 0);
        let wanted = Wanted { why, children, attempts, place, traffic: false, began: None, always };
        self.wanted.insert(connection.to_owned(), wanted);
        self.put(connection, at);
    }

    /// Traffic came that needs it: to the head, behind those with earlier traffic.
    pub(crate) fn hurry(&mut self, connection: &str) {
        let Some(wanted) = self.wanted.get_mut(connection).filter(|w| !w.traffic) else { return };
        if let Some(place) = wanted.place {
            self.without.remove(&(place, connection.to_owned()));
        }
        wanted.traffic = true;
        if let Some((at, _)) = wanted.place {
            self.put(connection, at);
        }
    }

    /// Into the queue, behind what is due at the same time.
    fn put(&mut self, connection: &str, at: Time) {
        let Some(wanted) = self.wanted.get_mut(connection) else { return };
        self.order += 1;
        let place = (at, self.order);
        wanted.place = Some(place);
        let queue = if wanted.traffic { &mut self.with_traffic } else { &mut self.without };
        queue.insert((place, connection.to_owned()));
    }

    /// The next connection to initiate now; it counts as under way from here on.
    pub(crate) fn next_due(&mut self, now: Time, pace: &mut Total) -> Option<Due> {
        if !pace.has_room(now) {
            return None;
        }
        let due = |((at, _), _): &&(Place, String)| *at <= now;
        let queues = [&self.with_traffic, &self.without];
        let first = queues.into_iter().find_map(|queue| queue.first().filter(due)).cloned()?;
        pace.take(now);
        self.with_traffic.remove(&first);
        self.without.remove(&first);
        let connection = first.1;
        let wanted = self.wanted.get_mut(&connection)?;
        wanted.place = None;
        wanted.attempts += 1;
        wanted.began.get_or_insert(now);
        Some(Due { connection, children: wanted.children.clone(), why: wanted.why })
    }

    /// An initiation of this connection failed.
    pub(crate) fn failed(&mut self, now: Time, connection: &str) {
        let Some(wanted) = self.wanted.get(connection) else { return };
        if wanted.attempts >= ATTEMPTS && !wanted.always {
            return self.forget(connection);
        }
        let doublings = wanted.attempts.saturating_sub(1).min(10);
        self.postpone(connection, now.after(FIRST_PAUSE.saturating_mul(1 << doublings).min(LONGEST_PAUSE)));
    }

    /// Not before then.
    pub(crate) fn postpone(&mut self, connection: &str, at: Time) {
        self.unqueue(connection);
        self.put(connection, at);
    }

    /// It stands, or can't be initiated from here.
    pub(crate) fn forget(&mut self, connection: &str) {
        self.unqueue(connection);
        self.wanted.remove(connection);
    }

    fn unqueue(&mut self, connection: &str) {
        let Some(place) = self.wanted.get_mut(connection).and_then(|w| w.place.take()) else { return };
        let entry = (place, connection.to_owned());
        self.with_traffic.remove(&entry);
        self.without.remove(&entry);
    }

    pub(crate) fn clear(&mut self) {
        *self = Reconnect::default();
    }

    pub(crate) fn is_wanted(&self, connection: &str) -> bool {
        self.wanted.contains_key(connection)
    }

    /// Has its initiation begun?
    pub(crate) fn is_under_way(&self, connection: &str) -> bool {
        self.wanted.get(connection).is_some_and(|wanted| wanted.place.is_none())
    }

    /// Does it wait for nothing but the pace?
    pub(crate) fn is_due(&self, connection: &str, now: Time) -> bool {
        self.wanted.get(connection).and_then(|w| w.place).is_some_and(|(at, _)| at <= now)
    }

    /// Is our own initiation after a start, which this connection prefers, still to come, or young?
    pub(crate) fn is_preferred(&self, connection: &str, now: Time) -> bool {
        self.wanted.get(connection).is_some_and(|wanted| {
            wanted.why == Why::Start { preferred: true }
                && wanted.began.is_none_or(|began| now.since(began) < PREFERRED)
        })
    }

    pub(crate) fn deadline(&self, pace: &Total) -> Option<Time> {
        let firsts = [self.with_traffic.first(), self.without.first()];
        let due = firsts.into_iter().flatten().map(|((at, _), _)| *at).min()?;
        Some(due.max(pace.room_at()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: Time = Time(1_000_000_000);

    fn pace() -> Total {
        Total::new(200)
    }

    fn next(r: &mut Reconnect, now: Time, pace: &mut Total) -> Option<String> {
        r.next_due(now, pace).map(|due| due.connection)
    }

    #[test]
    fn a_lost_connection_is_initiated_at_once_with_all_its_children() {
        let (mut r, mut pace) = (Reconnect::default(), pace());
        let children = vec!["a".to_owned(), "b".into()];
        r.lost(T, "site", children.clone(), false);
        assert_eq!(r.deadline(&pace), Some(T));
        let due = Due { connection: "site".into(), children, why: Why::Proof };
        assert_eq!(r.next_due(T, &mut pace), Some(due));
        assert_eq!(r.next_due(T, &mut pace), None, "one initiation at a time");
        r.forget("site");
        assert_eq!(r.deadline(&pace), None);
    }

    #[test]
    fn pauses_grow_to_two_seconds_and_end_unless_it_is_to_be_up_always() {
        for always in [false, true] {
            let (mut r, mut pace) = (Reconnect::default(), pace());
            r.lost(T, "site", Vec::new(), always);
            let (mut now, mut pauses) = (T, Vec::new());
            for _ in 0..20 {
                let Some(at) = r.deadline(&pace) else { break };
                pauses.push(at.since(now).as_millis());
                now = at;
                assert!(r.next_due(now, &mut pace).is_some());
                r.failed(now, "site");
            }
            assert_eq!(pauses[..7], [0, 100, 200, 400, 800, 1600, 2000]);
            assert_eq!(pauses.len(), if always { 20 } else { 10 });
            assert_eq!(pauses.iter().max(), Some(&2000));
        }
    }

    /// RFC 6290 section 3: many SAs that die at once must not flood the peers.
    #[test]
    fn a_hundred_thousand_lost_connections_follow_the_rate() {
        let (mut r, mut pace) = (Reconnect::default(), pace());
        for n in 0..100_000 {
            r.started(T, &format!("c{n}"), Vec::new(), true);
        }
        let mut begun = 0;
        let mut now = T;
        while now < T.after(Duration::from_secs(2)) {
            while r.next_due(now, &mut pace).is_some() {
                begun += 1;
            }
            let next = r.deadline(&pace).unwrap();
            assert!(next > now, "the deadline stands still");
            now = next;
        }
        assert!((400..=605).contains(&begun), "{begun} initiations in two seconds");
    }

    #[test]
    fn traffic_moves_a_connection_to_the_head_in_its_order() {
        let (mut r, mut pace) = (Reconnect::default(), pace());
        for name in ["a", "b", "c", "d"] {
            r.started(T, name, Vec::new(), true);
        }
        r.hurry("d");
        r.hurry("c");
        r.hurry("d");
        let order: Vec<_> = std::iter::from_fn(|| next(&mut r, T, &mut pace)).collect();
        assert_eq!(order, ["d", "c", "a", "b"]);
        // After a failure it keeps its right, and its pause.
        for name in ["a", "d"] {
            r.failed(T, name);
        }
        let later = T.after(FIRST_PAUSE);
        assert_eq!(r.deadline(&pace), Some(later));
        assert_eq!(next(&mut r, later, &mut pace), Some("d".into()));
        assert_eq!(next(&mut r, later, &mut pace), Some("a".into()));
    }

    #[test]
    fn our_own_initiation_is_preferred_until_it_took_too_long() {
        let (mut r, mut pace) = (Reconnect::default(), pace());
        r.started(T, "first", Vec::new(), true);
        r.started(T, "second", Vec::new(), false);
        r.lost(T, "proven", Vec::new(), false);
        let preferred = |r: &Reconnect, now| ["first", "second", "proven"].map(|c| r.is_preferred(c, now));
        assert_eq!(preferred(&r, T.after(Duration::from_secs(60))), [true, false, false], "still to come");
        while r.next_due(T, &mut pace).is_some() {}
        assert_eq!(preferred(&r, T.after(Duration::from_secs(1))), [true, false, false]);
        assert_eq!(preferred(&r, T.after(PREFERRED)), [false; 3]);
    }
}
