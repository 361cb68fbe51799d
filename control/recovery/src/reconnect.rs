//! Connections to be initiated again after a proof: at once, then with growing pauses, and not all of them in the
//! same instant (RFC 6290 section 3: the taker may re-initiate at once).

use crate::limits::Total;
use spindle_abi::Time;
use std::collections::BTreeMap;
use std::time::Duration;

/// Initiations per second, all connections together, when many peers are lost at once.
const RATE: u32 = 200;
/// The first pause after a failed initiation; doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Initiations after one proof; then the next packet for the connection starts it.
const ATTEMPTS: u32 = 10;

#[derive(Debug)]
struct Wanted {
    children: Vec<String>,
    attempts: u32,
    /// When to initiate; `None` while an initiation is under way.
    at: Option<Time>,
    /// Until given up: never, for what is to be up always.
    always: bool,
}

/// What is to be initiated, and when.
#[derive(Debug)]
pub(crate) struct Reconnect {
    wanted: BTreeMap<String, Wanted>,
    rate: Total,
}

impl Reconnect {
    pub(crate) fn new() -> Reconnect {
        Reconnect { wanted: BTreeMap::new(), rate: Total::new(RATE) }
    }

    /// This connection was lost, and these children with it. `always`: it is to be up always.
    pub(crate) fn lost(&mut self, now: Time, connection: &str, children: Vec<String>, always: bool) {
        let wanted = Wanted { children, attempts: 0, at: Some(now), always };
        self.wanted.insert(connection.to_owned(), wanted);
    }

    /// The next connection to initiate now, and with which children; it counts as under way from here on.
    pub(crate) fn next_due(&mut self, now: Time) -> Option<(String, Vec<String>)> {
        if !self.rate.has_room(now) {
            return None;
        }
        let (name, wanted) = self.wanted.iter_mut().find(|(_, w)| w.at.is_some_and(|at| at <= now))?;
        self.rate.take(now);
        wanted.at = None;
        wanted.attempts += 1;
        Some((name.clone(), wanted.children.clone()))
    }

    /// An initiation of this connection failed.
    pub(crate) fn failed(&mut self, now: Time, connection: &str) {
        let Some(wanted) = self.wanted.get_mut(connection) else { return };
        if wanted.attempts >= ATTEMPTS && !wanted.always {
            self.wanted.remove(connection);
            return;
        }
        let pause =
            FIRST_PAUSE.saturating_mul(1 << wanted.attempts.saturating_sub(1).min(10)).min(LONGEST_PAUSE);
        wanted.at = Some(now.after(pause));
    }

    /// It stands, or can't be initiated from here.
    pub(crate) fn forget(&mut self, connection: &str) {
        self.wanted.remove(connection);
    }

    pub(crate) fn clear(&mut self) {
        self.wanted.clear();
    }

    pub(crate) fn is_wanted(&self, connection: &str) -> bool {
        self.wanted.contains_key(connection)
    }

    pub(crate) fn deadline(&self) -> Option<Time> {
        let due = self.wanted.values().filter_map(|w| w.at).min()?;
        Some(due.max(self.rate.room_at()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: Time = Time(1_000_000_000);

    #[test]
    fn a_lost_connection_is_initiated_at_once_with_all_its_children() {
        let mut r = Reconnect::new();
        let children = vec!["a".to_owned(), "b".into()];
        r.lost(T, "site", children.clone(), false);
        assert_eq!(r.deadline(), Some(T));
        assert_eq!(r.next_due(T), Some(("site".into(), children)));
        assert_eq!(r.next_due(T), None, "one initiation at a time");
        r.forget("site");
        assert_eq!(r.deadline(), None);
    }

    #[test]
    fn pauses_grow_to_two_seconds_and_end_unless_it_is_to_be_up_always() {
        for always in [false, true] {
            let mut r = Reconnect::new();
            r.lost(T, "site", Vec::new(), always);
            let (mut now, mut pauses) = (T, Vec::new());
            for _ in 0..20 {
                let Some(at) = r.deadline() else { break };
                pauses.push(at.since(now).as_millis());
                now = at;
                assert!(r.next_due(now).is_some());
                r.failed(now, "site");
            }
            assert_eq!(pauses[..7], [0, 100, 200, 400, 800, 1600, 2000]);
            assert_eq!(pauses.len(), if always { 20 } else { 10 });
            assert_eq!(pauses.iter().max(), Some(&2000));
        }
    }

    /// RFC 6290 section 3: many SAs that die at once must not flood the peers.
    #[test]
    fn ten_thousand_lost_connections_follow_the_rate() {
        let mut r = Reconnect::new();
        for n in 0..10_000 {
            r.lost(T, &format!("c{n}"), Vec::new(), false);
        }
        let mut begun = 0;
        let mut now = T;
        while now < T.after(Duration::from_secs(2)) {
            while r.next_due(now).is_some() {
                begun += 1;
            }
            let next = r.deadline().unwrap();
            assert!(next > now, "the deadline stands still");
            now = next;
        }
        assert!((400..=605).contains(&begun), "{begun} initiations in two seconds");
    }
}
