//! Which generation of the secret the token is of that each IKE SA's peer holds (RFC 6290 section 4.4).
//!
//! Written when a token is made for a protected message, moved on when the peer acknowledges a later one, struck out
//! when the IKE SA ends. A generation that somebody here relies on is not dropped ([`crate::rotation`]).

use spindle_ike::api::IkeSpis;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

/// What a token was made of, beside the pair and the maker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Made {
    /// Number of the generation.
    pub(crate) generation: u64,
    /// The taker's address then.
    pub(crate) taker: IpAddr,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// The oldest token that the peer may have to show the loss by: the latest one that it certainly has, or the first
    /// one, without which it has no IKE SA or no token at all.
    relied: Made,
    /// The latest one that was sent.
    sent: Made,
}

/// Of all IKE SAs, half-open ones included.
#[derive(Debug, Default)]
pub(crate) struct Given {
    entries: HashMap<IkeSpis, Entry>,
    relying: BTreeSet<(u64, IkeSpis)>,
    /// Of no IKE SA that the endpoint has reported yet. It may end without a report.
    unreported: BTreeSet<IkeSpis>,
}

impl Given {
    /// A token goes out to the peer.
    pub(crate) fn sent(&mut self, spis: IkeSpis, made: Made) {
        let (relying, unreported) = (&mut self.relying, &mut self.unreported);
        let entry = self.entries.entry(spis).or_insert_with(|| {
            relying.insert((made.generation, spis));
            unreported.insert(spis);
            Entry { relied: made, sent: made }
        });
        entry.sent = made;
    }

    /// The peer has the latest one.
    pub(crate) fn acknowledged(&mut self, spis: IkeSpis) {
        let Some(entry) = self.entries.get_mut(&spis) else { return };
        self.relying.remove(&(entry.relied.generation, spis));
        entry.relied = entry.sent;
        self.relying.insert((entry.relied.generation, spis));
    }

    /// The endpoint has reported the IKE SA, and will report its end.
    pub(crate) fn reported(&mut self, spis: IkeSpis) {
        self.unreported.remove(&spis);
    }

    /// The IKE SA is over here; the number of the generation that its peer relied on.
    pub(crate) fn ended(&mut self, spis: IkeSpis) -> Option<u64> {
        let relied = self.entries.remove(&spis)?.relied.generation;
        self.relying.remove(&(relied, spis));
        self.unreported.remove(&spis);
        Some(relied)
    }

    /// Those of which the endpoint has reported nothing yet.
    pub(crate) fn unreported(&self) -> impl Iterator<Item = IkeSpis> + '_ {
        self.unreported.iter().copied()
    }

    /// Of what the token is made that the peer relies on.
    pub(crate) fn relied(&self, spis: IkeSpis) -> Option<Made> {
        self.entries.get(&spis).map(|entry| entry.relied)
    }

    /// The IKE SAs whose peers rely on a generation.
    pub(crate) fn relying(&self, generation: u64) -> impl Iterator<Item = IkeSpis> + '_ {
        let lowest = IkeSpis { initiator: [0; 8], responder: [0; 8] };
        let highest = IkeSpis { initiator: [0xff; 8], responder: [0xff; 8] };
        self.relying.range((generation, lowest)..=(generation, highest)).map(|(_, spis)| *spis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pair;

    fn made(generation: u64) -> Made {
        Made { generation, taker: [192, 0, 2, 2].into() }
    }

    /// RFC 6290 section 4.4: a token counts as replaced when the peer has the new one, not when it was sent.
    #[test]
    fn a_peer_relies_on_its_first_token_until_it_acknowledges_another_one() {
        let mut given = Given::default();
        given.sent(pair(1), made(0));
        given.sent(pair(2), made(0));
        given.sent(pair(1), made(2));
        assert_eq!(given.relying(0).collect::<Vec<_>>(), [pair(1), pair(2)]);
        assert_eq!(given.relied(pair(1)), Some(made(0)));
        given.acknowledged(pair(1));
        assert_eq!(given.relying(0).collect::<Vec<_>>(), [pair(2)]);
        assert_eq!(given.relying(2).collect::<Vec<_>>(), [pair(1)]);
        assert_eq!((given.ended(pair(1)), given.ended(pair(1))), (Some(2), None));
        assert_eq!(given.ended(pair(2)), Some(0));
        assert_eq!([0, 1, 2].map(|n| given.relying(n).count()), [0; 3]);
        given.acknowledged(pair(2));
        assert!(given.entries.is_empty() && given.relying.is_empty() && given.unreported.is_empty());
    }

    #[test]
    fn what_the_endpoint_has_not_reported_is_known() {
        let mut given = Given::default();
        for n in 1..=3 {
            given.sent(pair(n), made(0));
        }
        given.reported(pair(2));
        given.ended(pair(3));
        assert_eq!(given.unreported().collect::<Vec<_>>(), [pair(1)]);
        given.sent(pair(2), made(1));
        assert_eq!(given.unreported().count(), 1, "reported once is enough");
    }
}
