//! When a peer is not asked (draft section 4.2): for a while after its SAs were made or rekeyed, after a recovery,
//! after one that failed, and after answers of which one must be forged. After a mere denial it is no longer than between
//! two queries: that the peer was alive says nothing against the next hint. What comes in clear from it then starts no
//! query; an authenticated packet and a QCD token count as always.

use crate::api::SirLimits;
use spindle_abi::Time;
use std::collections::HashMap;
use std::time::Duration;

#[derive(Clone, Copy, Debug)]
struct Dampened {
    until: Time,
    /// How long the last recovery dampens, and until when another one counts as its repetition.
    recovery: Duration,
    repeated_until: Time,
}

/// By connection, each of which has one peer; so it is bounded by the configuration.
#[derive(Debug)]
pub(crate) struct Dampening {
    new: Duration,
    denied: Duration,
    recovered: Duration,
    most: Duration,
    peers: HashMap<String, Dampened>,
}

impl Dampening {
    pub(crate) fn new(limits: &SirLimits) -> Dampening {
        let SirLimits { dampen_new: new, dampen_denied: denied, .. } = *limits;
        let SirLimits { dampen_recovered: recovered, dampen_max: most, .. } = *limits;
        Dampening { new, denied, recovered, most, peers: HashMap::new() }
    }

    pub(crate) fn is_dampened(&self, now: Time, connection: &str) -> bool {
        self.peers.get(connection).is_some_and(|d| now < d.until)
    }

    /// An SA with this peer was made or rekeyed.
    pub(crate) fn created(&mut self, now: Time, connection: &str) {
        self.until(now.after(self.new), connection);
    }

    /// The peer has what was asked about.
    pub(crate) fn denied(&mut self, now: Time, connection: &str) {
        self.until(now.after(self.denied), connection);
    }

    fn until(&mut self, until: Time, connection: &str) {
        let peer = self.peer(connection);
        peer.until = peer.until.max(until);
    }

    /// A recovery begins. One that follows soon on the last dampens twice as long.
    pub(crate) fn recovered(&mut self, now: Time, connection: &str) {
        let (first, most) = (self.recovered, self.most);
        let peer = self.peer(connection);
        let repeated = now < peer.repeated_until;
        peer.recovery = if repeated { (peer.recovery * 2).min(most) } else { first };
        peer.until = peer.until.max(now.after(peer.recovery));
        peer.repeated_until = peer.until.after(most);
    }

    /// It failed, or was contradicted.
    pub(crate) fn failed(&mut self, now: Time, connection: &str) {
        let first = self.recovered;
        let peer = self.peer(connection);
        let until = now.after(if now < peer.repeated_until { peer.recovery } else { first });
        peer.until = peer.until.max(until);
    }

    fn peer(&mut self, connection: &str) -> &mut Dampened {
        let none = Dampened { until: Time(0), recovery: Duration::ZERO, repeated_until: Time(0) };
        self.peers.entry(connection.to_owned()).or_insert(none)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time(seconds * 1_000_000_000)
    }

    fn until(dampening: &Dampening, from: u64) -> u64 {
        (from..from + 10_000).find(|s| !dampening.is_dampened(at(*s), "site")).unwrap()
    }

    /// Section 4.2: creation and rekey.
    #[test]
    fn a_new_sa_dampens_its_peer_alone() {
        let mut dampening = Dampening::new(&SirLimits::default());
        assert!(!dampening.is_dampened(at(100), "site"));
        dampening.created(at(100), "site");
        assert_eq!(until(&dampening, 100), 110);
        assert!(!dampening.is_dampened(at(100), "other"));
        dampening.created(at(105), "site");
        assert_eq!(until(&dampening, 105), 115);
    }

    /// Section 4.2: the peer may crash at any time after it said that it is alive.
    #[test]
    fn a_denial_dampens_for_a_second() {
        let mut dampening = Dampening::new(&SirLimits::default());
        dampening.denied(at(100), "site");
        assert!(dampening.is_dampened(at(100), "site"));
        assert_eq!(until(&dampening, 100), 101);
        dampening.recovered(at(200), "site");
        dampening.denied(at(201), "site");
        assert_eq!(until(&dampening, 201), 260, "a recovery's is not shortened");
    }

    /// Section 4.2: recoveries, successful or not; each repetition twice as long, ten minutes at most.
    #[test]
    fn repeated_recoveries_dampen_ever_longer_until_there_was_a_pause() {
        let mut dampening = Dampening::new(&SirLimits::default());
        let (mut now, mut lasted) = (1000, Vec::new());
        for _ in 0..6 {
            dampening.recovered(at(now), "site");
            lasted.push(until(&dampening, now) - now);
            now += lasted.last().unwrap();
        }
        assert_eq!(lasted, [60, 120, 240, 480, 600, 600]);
        dampening.failed(at(now), "site");
        assert_eq!(until(&dampening, now), now + 600);
        now += 600 + 600 + 1;
        dampening.recovered(at(now), "site");
        assert_eq!(until(&dampening, now), now + 60);
        // A new SA does not shorten it.
        dampening.created(at(now + 1), "site");
        assert_eq!(until(&dampening, now + 1), now + 60);
        now += 10_000;
        dampening.failed(at(now), "site");
        assert_eq!(until(&dampening, now), now + 60);
    }
}
