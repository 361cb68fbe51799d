//! Budgets for what unauthenticated packets make us do (RFC 7296 section 2.4: MUST be limited).
//!
//! Sources are counted by prefix in a fixed array of buckets, found by a keyed hash: an attacker can neither make
//! us allocate more nor push anybody's count out, and cannot compute whose bucket a source shares. A total stands over
//! all sources. Peers that we know are counted apart from strangers, so that a flood from random sources, which
//! fills every stranger's bucket and total, costs a known peer nothing. An address at which there are many peers has the
//! rate of each of them, up to a quarter of the total: whoever forges it cannot take the rest from the others.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use spindle_abi::Time;
use spindle_ike::api::IkeSpis;
use spindle_ike::prefix;
use std::net::IpAddr;
use std::time::Duration;

/// Buckets of one array at least and at most; powers of two.
const BUCKETS: usize = 4096;
const MOST_BUCKETS: usize = 1 << 18;

/// So many at once and so many a second; a bucket is the time at which it would be full (GCRA).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    interval: u64,
    tolerance: u64,
}

impl Rate {
    pub(crate) fn per_second(n: u32) -> Rate {
        Rate::new(n, n)
    }

    fn new(per_second: u32, at_once: u32) -> Rate {
        let interval = 1_000_000_000_u64.checked_div(u64::from(per_second)).unwrap_or(u64::MAX);
        Rate { interval, tolerance: interval.saturating_mul(u64::from(at_once).saturating_sub(1)) }
    }

    fn has_room(&self, bucket: Time, now: Time) -> bool {
        self.interval != u64::MAX && bucket.0 <= now.0.saturating_add(self.tolerance)
    }

    fn take(&self, bucket: &mut Time, now: Time) {
        self.take_part(bucket, now, 1);
    }

    /// Of so many rates that share the bucket.
    fn take_part(&self, bucket: &mut Time, now: Time, parts: u32) {
        bucket.0 = bucket.0.max(now.0).saturating_add(self.interval / u64::from(parts));
    }
}

/// One rate for all.
#[derive(Clone, Debug)]
pub(crate) struct Total {
    rate: Rate,
    bucket: Time,
}

impl Total {
    pub(crate) fn new(per_second: u32) -> Total {
        Total { rate: Rate::per_second(per_second), bucket: Time(0) }
    }

    /// The same rate, but only so many at once.
    pub(crate) fn at_once(per_second: u32, at_once: u32) -> Total {
        Total { rate: Rate::new(per_second, at_once), bucket: Time(0) }
    }

    /// From now on this rate, with so many at once; both at least 1. Those that have been taken still count, each for as
    /// long as the next ones do.
    pub(crate) fn set(&mut self, now: Time, per_second: u32, at_once: u32) {
        let next = Rate::new(per_second, at_once);
        let ahead = u128::from(self.bucket.0.saturating_sub(now.0));
        let ahead = ahead * u128::from(next.interval) / u128::from(self.rate.interval.max(1));
        self.bucket = Time(now.0.saturating_add(u64::try_from(ahead).unwrap_or(u64::MAX)));
        self.rate = next;
    }

    pub(crate) fn has_room(&self, now: Time) -> bool {
        self.rate.has_room(self.bucket, now)
    }

    /// From when on it has room.
    pub(crate) fn room_at(&self) -> Time {
        Time(self.bucket.0.saturating_sub(self.rate.tolerance))
    }

    pub(crate) fn take(&mut self, now: Time) {
        self.rate.take(&mut self.bucket, now);
    }

    pub(crate) fn allow(&mut self, now: Time) -> bool {
        let room = self.has_room(now);
        if room {
            self.take(now);
        }
        room
    }

    /// What happened without having been allowed counts too, so that others wait for it; but never longer than for
    /// `most`.
    pub(crate) fn owe(&mut self, now: Time, most: Duration) {
        self.take(now);
        let bound = now.after(most).0.saturating_add(self.rate.tolerance);
        self.bucket.0 = self.bucket.0.min(bound);
    }
}

/// A rate per source and one for all sources together.
#[derive(Clone, Debug)]
pub(crate) struct BySource {
    rate: Rate,
    /// So many peers at one source count at most; at least 1.
    most_peers: u32,
    /// A power of two.
    count: usize,
    /// Made as a whole when the first source is counted: most gateways never need most of these budgets.
    buckets: Option<Box<[Time]>>,
    total: Total,
}

impl BySource {
    pub(crate) fn new(per_source: u32, total: u32) -> BySource {
        let rate = Rate::per_second(per_source);
        let most_peers = (total / 4).checked_div(per_source).unwrap_or(1).max(1);
        BySource { rate, most_peers, count: BUCKETS, buckets: None, total: Total::new(total) }
    }

    pub(crate) fn has_room(&self, now: Time, source: SourceKey) -> bool {
        let bucket = self.buckets.as_ref().map_or(Time(0), |buckets| buckets[source.bucket(self.count)]);
        self.rate.has_room(bucket, now) && self.total.has_room(now)
    }

    /// Only what is allowed is counted: a flooder spends its own budget alone, and not the total.
    pub(crate) fn allow(&mut self, now: Time, source: SourceKey) -> bool {
        self.allow_peers(now, source, 1)
    }

    /// The same for a source at which there are so many peers; at least 1.
    fn allow_peers(&mut self, now: Time, source: SourceKey, peers: u32) -> bool {
        let room = self.has_room(now, source);
        if room {
            let buckets = self.buckets.get_or_insert_with(|| vec![Time(0); self.count].into());
            let bucket = &mut buckets[source.bucket(self.count)];
            self.rate.take_part(bucket, now, peers.min(self.most_peers));
            self.total.take(now);
        }
        room
    }
}

/// The same budget twice: for peers we know, and for strangers.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    known: BySource,
    strangers: BySource,
}

impl Budget {
    pub(crate) fn new(per_source: u32, total: u32) -> Budget {
        Budget { known: BySource::new(per_source, total), strangers: BySource::new(per_source, total) }
    }

    /// With room for so many known sources that most have a bucket of their own.
    pub(crate) fn for_known(self, sources: usize) -> Budget {
        let count = sources.saturating_mul(2).clamp(BUCKETS, MOST_BUCKETS).next_power_of_two();
        Budget { known: BySource { count, ..self.known }, ..self }
    }

    /// All known sources together have this rate from now on, with so many at once; both at least 1.
    pub(crate) fn set_known_total(&mut self, now: Time, per_second: u32, at_once: u32) {
        self.known.total.set(now, per_second, at_once);
    }

    pub(crate) fn has_room(&self, now: Time, source: Source) -> bool {
        let Source { key, peers } = source;
        if peers > 0 { self.known.has_room(now, key) } else { self.strangers.has_room(now, key) }
    }

    pub(crate) fn allow(&mut self, now: Time, source: Source) -> bool {
        match source {
            Source { key, peers: 0 } => self.strangers.allow(now, key),
            Source { key, peers } => self.known.allow_peers(now, key, peers),
        }
    }
}

/// Whose budget is spent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source {
    pub(crate) key: SourceKey,
    /// So many peers that we know are there; 0: a stranger.
    pub(crate) peers: u32,
}

/// A source as the buckets see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SourceKey(u64);

impl SourceKey {
    fn bucket(self, count: usize) -> usize {
        self.0 as usize & (count - 1)
    }
}

/// Hashes sources with a random key.
#[derive(Clone)]
pub(crate) struct SourceHash(Hmac<Sha256>);

impl std::fmt::Debug for SourceHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SourceHash(..)")
    }
}

impl SourceHash {
    pub(crate) fn new(key: &[u8; 32]) -> SourceHash {
        SourceHash(Hmac::new_from_slice(key).expect("HMAC takes keys of any length"))
    }

    /// By [`prefix`].
    pub(crate) fn source(&self, source: IpAddr) -> SourceKey {
        self.of(source, &[])
    }

    /// By prefix and IKE SA: for pairs that the journal names, so that a forger who uses a peer's address but
    /// does not know its SPIs spends another budget.
    pub(crate) fn source_and_pair(&self, source: IpAddr, spis: IkeSpis) -> SourceKey {
        self.of(source, &[&spis.initiator, &spis.responder])
    }

    fn of(&self, source: IpAddr, more: &[&[u8; 8]]) -> SourceKey {
        let mut mac = self.0.clone();
        match prefix(source) {
            IpAddr::V4(a) => mac.update(&a.octets()),
            IpAddr::V6(a) => mac.update(&a.octets()),
        }
        for octets in more {
            mac.update(*octets);
        }
        let digest = mac.finalize().into_bytes();
        let (head, _) = digest.split_first_chunk::<8>().expect("a SHA-256 digest has 32 octets");
        SourceKey(u64::from_be_bytes(*head))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn v4(n: u32) -> IpAddr {
        IpAddr::from(n.to_be_bytes())
    }

    #[test]
    fn a_rate_allows_a_burst_of_one_second_and_then_its_pace() {
        let mut total = Total::new(10);
        let at = |total: &mut Total, t| (0..100).filter(|_| total.allow(Time(t))).count();
        assert_eq!(at(&mut total, 5 * SECOND), 10);
        assert_eq!(at(&mut total, 5 * SECOND + SECOND / 10), 1);
        assert_eq!(at(&mut total, 6 * SECOND + SECOND / 10), 10);
        assert_eq!(at(&mut Total::new(0), SECOND), 0);
        let mut even = Total::at_once(10, 1);
        assert_eq!(at(&mut even, 5 * SECOND), 1);
        assert_eq!(even.room_at(), Time(5 * SECOND + SECOND / 10));
        assert_eq!(at(&mut even, 6 * SECOND), 1);
    }

    #[test]
    fn a_new_rate_counts_what_has_been_taken() {
        let mut total = Total::new(10);
        let at = |total: &mut Total, t| (0..100).filter(|_| total.allow(Time(t))).count();
        assert_eq!(at(&mut total, 5 * SECOND), 10);
        total.set(Time(5 * SECOND), 100, 20);
        assert_eq!(at(&mut total, 5 * SECOND), 10, "of twenty at once");
        assert_eq!(at(&mut total, 5 * SECOND + SECOND / 20), 5);
        total.set(Time(6 * SECOND), 10, 10);
        assert_eq!(at(&mut total, 6 * SECOND), 10, "what is past counts no more");
        assert_eq!(at(&mut total, 6 * SECOND + SECOND / 10), 1);
        total.set(Time(6 * SECOND + SECOND / 10), 1, 1);
        assert_eq!(total.room_at(), Time(16 * SECOND + SECOND / 10));
    }

    #[test]
    fn one_flooder_spends_its_own_budget_alone() {
        let hash = SourceHash::new(&[1; 32]);
        let mut limit = BySource::new(10, 1000);
        let flooder = hash.source(v4(1));
        let allowed = (0..100_000).filter(|_| limit.allow(Time(SECOND), flooder)).count();
        assert_eq!(allowed, 10);
        assert!(limit.allow(Time(SECOND), hash.source(v4(2))));
    }

    #[test]
    fn a_flood_from_random_sources_costs_a_known_peer_nothing() {
        let hash = SourceHash::new(&[2; 32]);
        let mut budget = Budget::new(10, 5000);
        let source = |n, peers| Source { key: hash.source(v4(n)), peers };
        let allowed = (0..100_000).filter(|n| budget.allow(Time(SECOND), source(*n, 0))).count();
        assert_eq!(allowed, 5000);
        assert!(!budget.allow(Time(SECOND), source(77, 0)));
        assert!(budget.allow(Time(SECOND), source(77, 1)));
    }

    #[test]
    fn many_peers_at_one_address_have_the_rate_of_each_and_leave_the_others_theirs() {
        let hash = SourceHash::new(&[2; 32]);
        let mut budget = Budget::new(10, 5000);
        let source = |n, peers| Source { key: hash.source(v4(n)), peers };
        let mut in_a_second = |at: u64, n, peers| {
            let moments = (0..100_000).map(|i| Time((at * 100_000 + i) * (SECOND / 100_000)));
            moments.filter(|now| budget.allow(*now, source(n, peers))).count()
        };
        // What may come at once has been taken before.
        in_a_second(9, 1, 1);
        assert_eq!(in_a_second(10, 1, 1), 10);
        in_a_second(19, 2, 40);
        assert_eq!(in_a_second(20, 2, 40), 400);
        in_a_second(29, 3, 10_000);
        assert_eq!(in_a_second(30, 3, 10_000), 1250, "a quarter of the total");
        assert_eq!(in_a_second(31, 4, 1), 19, "others have theirs");
    }

    #[test]
    fn of_many_known_sources_most_have_a_bucket_of_their_own() {
        let hash = SourceHash::new(&[2; 32]);
        let mut budget = Budget::new(1, 1_000_000).for_known(100_000);
        let mut allowed = |peers| {
            let source = |n| Source { key: hash.source(v4(n)), peers };
            (0..100_000).filter(|n| budget.allow(Time(SECOND), source(*n))).count()
        };
        assert!(allowed(1) > 80_000);
        assert_eq!(allowed(0), BUCKETS, "however many strangers");
    }

    #[test]
    fn sources_of_one_prefix_share_a_bucket_and_the_key_decides_which() {
        let hash = SourceHash::new(&[3; 32]);
        let v6 = |s: &str| hash.source(s.parse().unwrap());
        assert_eq!(v6("2001:db8::1"), v6("2001:db8::ffff:1"));
        assert_ne!(v6("2001:db8::1"), v6("2001:db8:0:1::1"));
        assert_ne!(hash.source(v4(1)), SourceHash::new(&[4; 32]).source(v4(1)));
    }
}
