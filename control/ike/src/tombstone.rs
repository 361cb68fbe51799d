//! What stands for a while where an IKE SA ended by an exchange: enough to answer the peer's last request again, if
//! our answer was lost, and to keep a late request from looking like one on an SA that a crash took.

use crate::api::{IkeSpi, IkeSpis};
use crate::kept::field::fields;
use sha2::{Digest, Sha256};
use spindle_abi::Time;
use std::collections::{BTreeMap, VecDeque};

/// Hash of a whole message; a retransmission is bit-identical (RFC 7296 section 2.1).
pub(crate) type MessageHash = [u8; 32];

/// Of a message from its IKE header on.
pub(crate) fn message_hash(message: &[u8]) -> MessageHash {
    Sha256::digest(message).into()
}

/// The last request of an IKE SA's peer and our response to it.
#[derive(Clone)]
pub(crate) struct LastResponse {
    /// Message ID of both.
    pub(crate) message_id: u32,
    /// The request.
    pub(crate) request: MessageHash,
    /// The response, from its IKE header on.
    pub(crate) response: Vec<u8>,
}

fields!(LastResponse { message_id, request, response });

struct Tombstone {
    spis: IkeSpis,
    last: Option<LastResponse>,
}

/// All tombstones, by each of their SPIs' own half.
#[derive(Default)]
pub(crate) struct Tombstones {
    by_own_spi: BTreeMap<IkeSpi, Tombstone>,
    expiries: VecDeque<(Time, IkeSpi)>,
}

impl Tombstones {
    /// Sets one up until `until` (which never decreases); the oldest go if there would be more than `most`, and are said.
    pub(crate) fn insert(
        &mut self,
        own: IkeSpi,
        spis: IkeSpis,
        last: Option<LastResponse>,
        until: Time,
        most: usize,
    ) -> Vec<IkeSpi> {
        let mut pushed_out = Vec::new();
        while self.expiries.len() >= most.max(1) {
            if let Some((_, oldest)) = self.expiries.pop_front() {
                self.by_own_spi.remove(&oldest);
                pushed_out.push(oldest);
            }
        }
        self.by_own_spi.insert(own, Tombstone { spis, last });
        self.expiries.push_back((until, own));
        pushed_out
    }

    /// Does one stand for this pair, in whichever position our own SPI is?
    pub(crate) fn stands(&self, spis: IkeSpis) -> bool {
        [spis.initiator, spis.responder]
            .iter()
            .any(|own| self.by_own_spi.get(own).is_some_and(|t| t.spis == spis))
    }

    /// The response to this very request, if it is the last one that was answered.
    pub(crate) fn replay(&self, own: IkeSpi, message_id: u32, request: &[u8]) -> Option<&[u8]> {
        let last = self.by_own_spi.get(&own)?.last.as_ref()?;
        (last.message_id == message_id && last.request == message_hash(request)).then_some(&last.response[..])
    }

    /// Removes one whose time is over.
    pub(crate) fn expire(&mut self, now: Time) -> Option<IkeSpi> {
        let (_, own) = self.expiries.pop_front_if(|(until, _)| *until <= now)?;
        self.by_own_spi.remove(&own);
        Some(own)
    }

    /// When the next one goes.
    pub(crate) fn deadline(&self) -> Option<Time> {
        self.expiries.front().map(|(until, _)| *until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tombstones_are_bounded_and_expire() {
        let mut stones = Tombstones::default();
        let pair = |n: u8| IkeSpis { initiator: [n; 8], responder: [n + 100; 8] };
        for n in 0..5 {
            let last = LastResponse { message_id: 3, request: message_hash(&[n]), response: vec![n] };
            stones.insert([n; 8], pair(n), Some(last), Time(u64::from(n)), 3);
        }
        assert!(!stones.stands(pair(1)) && stones.stands(pair(2)));
        assert_eq!(stones.replay([4; 8], 3, &[4]), Some(&[4][..]));
        assert_eq!(stones.replay([4; 8], 3, &[5]), None);
        assert_eq!(stones.replay([4; 8], 2, &[4]), None);
        while stones.expire(Time(3)).is_some() {}
        assert!(!stones.stands(pair(3)) && stones.stands(pair(4)));
    }
}
