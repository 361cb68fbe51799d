//! Tickets by value (RFC 5723 section 6, 9.5), gateway's side: sealed under a key of this incarnation, opened under
//! those of earlier ones too, each used once.
//!
//! ```text
//! version 1 | key identity 8 | nonce 24 | expiry 8, state (encrypted) | tag 16
//! ```
//!
//! A key is on disk before its first ticket, made anew in each incarnation, and stays until its last ticket has expired
//! ([`Store`](crate::store::Store)). Used tickets are on disk before the answer that makes them used leaves
//! ([`Output::Persist`](crate::api::Output)); where they cannot be remembered none is taken, which costs a client one
//! round trip. A nonce of 192 random bits never comes twice, whatever was cloned or rolled back.

use crate::api::{TicketKey, TicketRecords, UsedTicket};
use crate::stats::{Counter, Stats};
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{Tag, XChaCha20Poly1305, XNonce};
use spindle_abi::Time;
use spindle_ike::api::{OpenedTicket, TicketId, TicketKeeper};
use spindle_ike::random::Random;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;
use zeroize::Zeroizing;

const VERSION: u8 = 1;
const HEAD: usize = 1 + 8;
const NONCE: usize = 24;
const TAG: usize = 16;
/// Octets of state in a ticket at most.
const MAX_STATE: usize = 2048;

/// Used tickets that are remembered at most; beyond it none is taken until some have expired.
pub(crate) const MAX_USED: usize = 1 << 20;

/// Seals, opens and remembers.
pub(crate) struct Tickets {
    wall_clock: (u64, Time),
    /// Newest first; that one seals.
    keys: Vec<(TicketKey, XChaCha20Poly1305)>,
    /// By expiry, until then.
    used: BTreeSet<UsedTicket>,
    /// Used, and not on disk yet.
    fresh: Vec<UsedTicket>,
    /// The disk failed.
    forgetful: bool,
    counts: Vec<Counter>,
}

impl Tickets {
    pub(crate) fn new(records: TicketRecords, wall_clock: (u64, Time)) -> Tickets {
        let cipher = |key: &TicketKey| XChaCha20Poly1305::new((&*key.key.0).into());
        Tickets {
            wall_clock,
            keys: records.keys.into_iter().map(|key| (key.clone(), cipher(&key))).collect(),
            used: records.used.into_iter().collect(),
            fresh: Vec::new(),
            forgetful: false,
            counts: Vec::new(),
        }
    }

    /// Used tickets that must be on disk before anything else leaves.
    pub(crate) fn take_fresh(&mut self) -> Vec<UsedTicket> {
        std::mem::take(&mut self.fresh)
    }

    /// Are there any?
    pub(crate) fn has_fresh(&self) -> bool {
        !self.fresh.is_empty()
    }

    /// The disk did not take them: no ticket is accepted any more.
    pub(crate) fn cannot_remember(&mut self) {
        self.forgetful = true;
    }

    /// Adds what was counted since the last call.
    pub(crate) fn count_into(&mut self, stats: &mut Stats) {
        self.counts.drain(..).for_each(|counter| stats.count(counter));
    }

    /// Seconds since 1970.
    fn wall(&self, now: Time) -> u64 {
        self.wall_clock.0.saturating_add(now.since(self.wall_clock.1).as_secs())
    }

    fn seal(
        &mut self,
        now: Time,
        lifetime: Duration,
        state: &[u8],
        random: &mut dyn Random,
    ) -> Option<Vec<u8>> {
        let expiry = self.wall(now).saturating_add(lifetime.as_secs());
        let (key, cipher) = self.keys.first().filter(|_| state.len() <= MAX_STATE)?;
        let mut nonce = [0; NONCE];
        random.fill(&mut nonce);
        let head = [&[VERSION][..], &key.id].concat();
        let mut text = Zeroizing::new(Vec::with_capacity(8 + state.len()));
        text.extend(expiry.to_be_bytes());
        text.extend(state);
        let sealed = cipher.encrypt_inout_detached(&XNonce::from(nonce), &head, text.as_mut_slice().into());
        let tag = sealed.ok()?;
        self.counts.push(Counter::TicketsGranted);
        Some([&head, &nonce[..], &text, &tag].concat())
    }

    /// In this order: is it one of ours, not expired, not used?
    fn open(&mut self, now: Time, ticket: &[u8]) -> Result<OpenedTicket, Counter> {
        let foreign = Counter::TicketsForeign;
        if !(HEAD + NONCE + 8 + TAG..=HEAD + NONCE + 8 + MAX_STATE + TAG).contains(&ticket.len()) {
            return Err(foreign);
        }
        let (head, rest) = ticket.split_at(HEAD);
        let (nonce, rest) = rest.split_first_chunk::<NONCE>().ok_or(foreign)?;
        let (text, tag) = rest.split_last_chunk::<TAG>().ok_or(foreign)?;
        let known = |(key, _): &&(TicketKey, XChaCha20Poly1305)| head[0] == VERSION && head[1..] == key.id;
        let (_, cipher) = self.keys.iter().find(known).ok_or(foreign)?;
        let mut text = Zeroizing::new(text.to_vec());
        let (nonce_, tag) = (XNonce::from(*nonce), Tag::from(*tag));
        cipher
            .decrypt_inout_detached(&nonce_, head, text.as_mut_slice().into(), &tag)
            .map_err(|_| foreign)?;
        let (expiry, state) = text.split_first_chunk::<8>().ok_or(foreign)?;
        let used = UsedTicket { expiry: u64::from_be_bytes(*expiry), nonce: *nonce };
        // RFC 5723 section 6.1: the protected expiry counts.
        if used.expiry <= self.wall(now) {
            return Err(Counter::TicketsExpired);
        }
        if self.forgetful || self.used.contains(&used) || !self.has_room(now) {
            return Err(Counter::TicketsUsed);
        }
        Ok(OpenedTicket { id: TicketId(used.to_octets()), state: Zeroizing::new(state.to_vec()) })
    }

    fn has_room(&mut self, now: Time) -> bool {
        let wall = self.wall(now);
        while self.used.first().is_some_and(|used| used.expiry <= wall) {
            self.used.pop_first();
        }
        self.used.len() < MAX_USED
    }

    /// RFC 5723 section 4.3.1: a reused ticket SHOULD be rejected.
    fn spend(&mut self, now: Time, ticket: TicketId) -> bool {
        let used = UsedTicket::from_octets(&ticket.0);
        let spent = !self.forgetful && self.has_room(now) && self.used.insert(used);
        if spent {
            self.fresh.push(used);
        }
        self.counts.push(if spent { Counter::TicketsAccepted } else { Counter::TicketsUsed });
        spent
    }
}

/// The endpoint's and the gateway's.
#[derive(Clone)]
pub(crate) struct SharedTickets(pub(crate) Rc<RefCell<Tickets>>);

impl TicketKeeper for SharedTickets {
    fn seal(
        &mut self,
        now: Time,
        lifetime: Duration,
        state: &[u8],
        random: &mut dyn Random,
    ) -> Option<Vec<u8>> {
        self.0.borrow_mut().seal(now, lifetime, state, random)
    }

    fn open(&mut self, now: Time, ticket: &[u8]) -> Option<OpenedTicket> {
        let mut tickets = self.0.borrow_mut();
        match tickets.open(now, ticket) {
            Ok(opened) => Some(opened),
            Err(why) => {
                tickets.counts.push(why);
                None
            }
        }
    }

    fn spend(&mut self, now: Time, ticket: TicketId) -> bool {
        self.0.borrow_mut().spend(now, ticket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Secret;
    use crate::testing::{NOW, SECOND};

    struct Counting(u8);

    impl Random for Counting {
        fn fill(&mut self, octets: &mut [u8]) {
            self.0 += 1;
            octets.fill(self.0);
        }
    }

    fn key(n: u8) -> TicketKey {
        TicketKey { id: [n; 8], key: Secret(Zeroizing::new([n; 32])) }
    }

    fn tickets(keys: &[u8]) -> Tickets {
        let records = TicketRecords { keys: keys.iter().map(|n| key(*n)).collect(), used: Vec::new() };
        Tickets::new(records, (1_000_000, NOW))
    }

    const HOUR: Duration = Duration::from_secs(3600);

    fn later(seconds: u64) -> Time {
        Time(NOW.0 + seconds * SECOND)
    }

    /// RFC 5723 section 6.1: encrypted, integrity protected, with a key identity; section 9.10: nothing of its content
    /// shows.
    #[test]
    fn a_ticket_opens_with_its_own_key_only_and_no_octet_may_change() {
        let mut ours = tickets(&[2, 1]);
        let state = b"the state of an IKE SA".to_vec();
        let ticket = ours.seal(NOW, HOUR, &state, &mut Counting(0)).unwrap();
        assert_eq!(ticket.len(), 1 + 8 + 24 + 8 + state.len() + 16);
        assert_eq!(ticket[1..9], [2; 8], "the newest key seals");
        assert!(ticket.windows(4).all(|w| !state.windows(4).any(|s| s == w)));
        assert_eq!(*ours.open(NOW, &ticket).ok().unwrap().state, state);
        assert!(tickets(&[3, 2]).open(NOW, &ticket).is_ok(), "an older key still opens");
        assert_eq!(tickets(&[3, 1]).open(NOW, &ticket).err(), Some(Counter::TicketsForeign));
        for at in 0..ticket.len() {
            let mut changed = ticket.clone();
            changed[at] ^= 1;
            assert_eq!(ours.open(NOW, &changed).err(), Some(Counter::TicketsForeign), "octet {at}");
            assert_eq!(ours.open(NOW, &ticket[..at]).err(), Some(Counter::TicketsForeign), "{at} octets");
        }
        let other = ours.seal(NOW, HOUR, &state, &mut Counting(7)).unwrap();
        assert_ne!(ticket[9..], other[9..], "two tickets of one state cannot be linked");
    }

    /// RFC 5723 section 6.1: a protected, absolute expiry.
    #[test]
    fn a_ticket_expires_to_the_second() {
        let mut ours = tickets(&[1]);
        let ticket = ours.seal(later(10), HOUR, b"x", &mut Counting(0)).unwrap();
        assert!(ours.open(later(10 + 3599), &ticket).is_ok());
        assert_eq!(ours.open(later(10 + 3600), &ticket).err(), Some(Counter::TicketsExpired));
    }

    /// RFC 5723 section 4.3.1: used once an IKE SA stands by it, and then rejected; what was used is to be on disk.
    #[test]
    fn a_ticket_is_used_once_and_remembered_until_it_expires() {
        let mut ours = tickets(&[1]);
        let ticket = ours.seal(NOW, HOUR, b"x", &mut Counting(0)).unwrap();
        let id = ours.open(NOW, &ticket).ok().unwrap().id;
        assert!(ours.open(NOW, &ticket).is_ok(), "opening is not using");
        assert!(ours.spend(NOW, id) && !ours.spend(NOW, id));
        assert_eq!(ours.open(NOW, &ticket).err(), Some(Counter::TicketsUsed));
        assert!(ours.has_fresh());
        let fresh = ours.take_fresh();
        assert_eq!((fresh.len(), ours.take_fresh().len()), (1, 0));
        assert!(!ours.has_fresh());
        let mut again =
            Tickets::new(TicketRecords { keys: vec![key(1)], used: fresh }, (1_000_010, later(10)));
        assert_eq!(again.open(later(10), &ticket).err(), Some(Counter::TicketsUsed), "after a crash too");
        assert!(again.has_room(later(3600)) && again.used.is_empty(), "forgotten when it has expired");
    }

    #[test]
    fn what_cannot_be_remembered_is_not_taken() {
        let mut ours = tickets(&[1]);
        let ticket = ours.seal(NOW, HOUR, b"x", &mut Counting(0)).unwrap();
        let id = ours.open(NOW, &ticket).ok().unwrap().id;
        ours.cannot_remember();
        assert!(ours.open(NOW, &ticket).is_err() && !ours.spend(NOW, id));
    }

    #[test]
    fn debug_shows_no_key() {
        let text = format!("{:?}", key(0x5a));
        assert!(
            text.contains("Secret(..)") && !text.contains("90, 90, 90, 90, 90, 90, 90, 90, 90"),
            "{text}"
        );
    }
}
