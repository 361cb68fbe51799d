//! Quick crash detection (RFC 6290), maker's side: how a token is made, and the one gate through which tokens
//! leave in clear.
//!
//! [`Tokens`] makes tokens for two uses. Protected by their IKE SA they go out by [`ProtectedTokens`], and it is noted
//! who got which ([`crate::given`]). In clear they go out by [`Tokens::present`], which demands a [`Permit`], which only
//! [`may_present`] makes: every condition is its argument, and what is missing is its answer.

use crate::api::{Generation, TokenMethod};
use crate::given::{Given, Made};
use crate::secrets::MAX_GENERATIONS;
use crate::stats::Counter;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use spindle_ike::api::{IkeSpi, IkeSpis, TokenMaker};
use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;

/// Octets of a token. (RFC 6290 section 5: MUST be 16 to 128.)
pub(crate) const TOKEN_LENGTH: usize = 32;

/// Tokens in one message at most (RFC 6290 section 4.5: up to four; takers MUST support at least four).
pub(crate) const MAX_TOKENS: usize = 4;

/// TOKEN_SECRET_DATA.
pub(crate) type Token = [u8; TOKEN_LENGTH];

/// Exchange types that are never answered with a token: IKE_SA_INIT and IKE_SESSION_RESUME.
const UNPROTECTED_EXCHANGES: [u8; 2] = [34, 38];

/// A generation, ready for use.
struct Key {
    mac: Hmac<Sha256>,
    method: TokenMethod,
    /// Counts up within an incarnation.
    number: u64,
}

/// Makes tokens from the generations of the secret, newest first.
pub(crate) struct Tokens {
    maker_id: Vec<u8>,
    keys: RefCell<Vec<Key>>,
    given: RefCell<Given>,
    maker: Cell<bool>,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokens({} generations)", self.keys.borrow().len())
    }
}

impl Tokens {
    /// With no generation yet. `maker`: is the role switched on (RFC 6290 section 8.1)?
    pub(crate) fn new(maker_id: &[u8], maker: bool) -> Tokens {
        Tokens {
            maker_id: maker_id.to_vec(),
            keys: RefCell::default(),
            given: RefCell::default(),
            maker: Cell::new(maker),
        }
    }

    /// From now on with these generations, newest first, each with its number.
    pub(crate) fn set<'a>(&self, generations: impl Iterator<Item = (u64, &'a Generation)>) {
        let key = |(number, generation): (u64, &Generation)| Key {
            mac: Hmac::new_from_slice(generation.secret.0.as_slice()).expect("HMAC takes keys of any length"),
            method: generation.method,
            number,
        };
        *self.keys.borrow_mut() = generations.take(MAX_GENERATIONS).map(key).collect();
    }

    /// Is the maker's role switched on, and is there a secret?
    pub(crate) fn is_maker(&self) -> bool {
        self.maker.get() && !self.keys.borrow().is_empty()
    }

    /// Is the role off?
    pub(crate) fn is_switched_off(&self) -> bool {
        !self.maker.get()
    }

    /// Makes no token any more.
    pub(crate) fn switch_off(&self) {
        self.maker.set(false);
    }

    /// Who got which token.
    pub(crate) fn given(&self) -> std::cell::RefMut<'_, Given> {
        self.given.borrow_mut()
    }

    /// The tokens of a permitted pair, newest generation first, for a message in clear to this address (RFC 6290
    /// section 4.5). What depends on the taker's address is made with this one: nobody is shown another taker's token.
    pub(crate) fn present(&self, permit: Permit, taker: IpAddr) -> Vec<Token> {
        self.all(permit.spis, taker)
    }

    /// The token for a protected message; the peer relies on it from now on.
    fn give(&self, spis: IkeSpis, taker: IpAddr) -> Option<Token> {
        let keys = self.keys.borrow();
        let newest = keys.first().filter(|_| self.maker.get())?;
        self.given().sent(spis, Made { generation: newest.number, taker });
        Some(self.make(newest, spis, taker))
    }

    /// Does the peer, now at this address, hold a token that could not be made for it any more after a crash? (RFC 6290
    /// section 4.4, 5.2: the taker's address changed.)
    pub(crate) fn is_stale(&self, spis: IkeSpis, taker: IpAddr) -> bool {
        let Some(made) = self.given().relied(spis) else { return false };
        let keys = self.keys.borrow();
        let key = keys.iter().find(|key| key.number == made.generation);
        let addressed = key.is_none_or(|key| key.method == TokenMethod::SpisAndAddress);
        self.is_maker() && addressed && made.taker.to_canonical() != taker.to_canonical()
    }

    /// Is one of these tokens the one that we would make (of any generation) for a pair and a taker at this address?
    pub(crate) fn any_is(&self, spis: IkeSpis, taker: IpAddr, is: impl Fn(&[u8]) -> bool) -> bool {
        self.all(spis, taker).iter().any(|token| is(token))
    }

    fn all(&self, spis: IkeSpis, taker: IpAddr) -> Vec<Token> {
        self.keys.borrow().iter().map(|key| self.make(key, spis, taker)).collect()
    }

    /// RFC 6290 section 5: the same token for the same pair after a reboot, nothing but the pair (and who makes
    /// it) in it, indistinguishable from random, no help in guessing another one; by section 5.2's method the taker's
    /// address too, its family first. The maker's id is preceded by its length, the SPIs have fixed lengths and an
    /// address has that of its family: no two inputs are the same octets.
    fn make(&self, key: &Key, spis: IkeSpis, taker: IpAddr) -> Token {
        let mut mac = key.mac.clone();
        mac.update(b"qcd1");
        mac.update(&(self.maker_id.len() as u64).to_be_bytes());
        mac.update(&self.maker_id);
        mac.update(&spis.initiator);
        mac.update(&spis.responder);
        match (key.method, taker.to_canonical()) {
            (TokenMethod::Spis, _) => {}
            (TokenMethod::SpisAndAddress, IpAddr::V4(address)) => {
                mac.update(&[4]);
                mac.update(&address.octets());
            }
            (TokenMethod::SpisAndAddress, IpAddr::V6(address)) => {
                mac.update(&[6]);
                mac.update(&address.octets());
            }
        }
        mac.finalize().into_bytes().into()
    }
}

/// Gives the endpoint the tokens that it sends protected (RFC 6290 section 4.2 to 4.4).
pub(crate) struct ProtectedTokens(pub(crate) Rc<Tokens>);

impl TokenMaker for ProtectedTokens {
    fn token(&self, spis: IkeSpis, taker: IpAddr) -> Option<Vec<u8>> {
        Some(self.0.give(spis, taker)?.to_vec())
    }

    fn acknowledged(&self, spis: IkeSpis) {
        self.0.given().acknowledged(spis);
    }
}

/// Leave to show the tokens of one IKE SPI pair in clear, once. Only [`may_present`] makes it.
#[derive(Debug)]
pub(crate) struct Permit {
    spis: IkeSpis,
}

/// (a) Does this process know of all SAs that live here?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Control {
    /// The journal is read, what was to be adopted is adopted.
    Authoritative,
    /// Still starting.
    Starting,
}

/// (b) and (d): what asks for the token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Trigger {
    /// An IKE message with a protected payload that no IKE SA here accounts for.
    Message {
        /// Exchange Type.
        exchange: u8,
        /// R flag.
        response: bool,
        /// Did the IKE SA end here by an exchanged Delete or rekey?
        tombstone: bool,
    },
    /// ESP on a former SPI.
    FormerSpi {
        /// The incarnation that wrote its record.
        written: u64,
        /// This incarnation.
        now: u64,
    },
    /// A peer in the journal, at its recorded address, after a start; where the operator wants it so (RFC 6290
    /// section 8.2).
    JournalPeer {
        /// The incarnation that wrote its record.
        written: u64,
        /// This incarnation.
        now: u64,
    },
}

/// All that decides whether a token may leave in clear.
pub(crate) struct Conditions<'a> {
    /// Are we a token maker (RFC 6290 section 8.1: switchable), and have we a secret?
    pub(crate) maker: bool,
    /// (a)
    pub(crate) control: Control,
    /// (b) and (d)
    pub(crate) trigger: Trigger,
    /// The pair whose token it would be.
    pub(crate) spis: IkeSpis,
    /// (c) Is this IKE SPI in use here: half-open, being rekeyed, established, being deleted?
    pub(crate) in_use: &'a dyn Fn(IkeSpi) -> bool,
    /// (e) Did the packet come to an address that is ours now and serves the connection?
    pub(crate) address_serves: bool,
    /// (f) Is the state directory the anchor's?
    pub(crate) anchor_matches: bool,
    /// (g) Does the budget allow it?
    pub(crate) within_budget: bool,
}

/// Why a token stays here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Withheld {
    SwitchedOff,
    NotAuthoritative,
    Trigger,
    Tombstone,
    SpiInUse,
    ZeroSpi,
    SameIncarnation,
    Address,
    Anchor,
    Budget,
}

impl Withheld {
    pub(crate) fn counter(self) -> Counter {
        match self {
            Withheld::SwitchedOff => Counter::WithheldSwitchedOff,
            Withheld::NotAuthoritative => Counter::WithheldNotAuthoritative,
            Withheld::Trigger => Counter::WithheldTrigger,
            Withheld::Tombstone => Counter::WithheldTombstone,
            Withheld::SpiInUse => Counter::WithheldSpiInUse,
            Withheld::ZeroSpi => Counter::WithheldZeroSpi,
            Withheld::SameIncarnation => Counter::WithheldSameIncarnation,
            Withheld::Address => Counter::WithheldAddress,
            Withheld::Anchor => Counter::WithheldAnchor,
            Withheld::Budget => Counter::WithheldBudget,
        }
    }
}

/// RFC 6290 section 9.2: a valid token MUST NOT be sent in clear for an IKE SA that exists. Each condition is
/// sufficient to withhold it; the budget comes last, so that it is spent only on what would leave.
pub(crate) fn may_present(conditions: &Conditions<'_>) -> Result<Permit, Withheld> {
    let Conditions { spis, trigger, in_use, .. } = conditions;
    let check = |holds: bool, otherwise: Withheld| if holds { Ok(()) } else { Err(otherwise) };
    check(conditions.maker, Withheld::SwitchedOff)?;
    check(conditions.control == Control::Authoritative, Withheld::NotAuthoritative)?;
    match *trigger {
        // RFC 6290 section 3: on a protected IKE *request*. RFC 7296 section 2.21.4: never to a response.
        Trigger::Message { exchange, response, tombstone } => {
            check(!response && !UNPROTECTED_EXCHANGES.contains(&exchange), Withheld::Trigger)?;
            check(!tombstone, Withheld::Tombstone)?;
        }
        Trigger::FormerSpi { written, now } | Trigger::JournalPeer { written, now } => {
            check(written < now, Withheld::SameIncarnation)?;
        }
    }
    check(spis.initiator != [0; 8] && spis.responder != [0; 8], Withheld::ZeroSpi)?;
    // Each SPI by itself, whatever the I flag says: the answer to an exchange of ours may be on its way.
    check(!in_use(spis.initiator) && !in_use(spis.responder), Withheld::SpiInUse)?;
    check(conditions.address_serves, Withheld::Address)?;
    check(conditions.anchor_matches, Withheld::Anchor)?;
    check(conditions.within_budget, Withheld::Budget)?;
    Ok(Permit { spis: *spis })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: IkeSpi = [1; 8];
    const B: IkeSpi = [2; 8];
    const PAIR: IkeSpis = IkeSpis { initiator: A, responder: B };
    const REQUEST: Trigger = Trigger::Message { exchange: 37, response: false, tombstone: false };

    const TAKER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    fn made_with(secrets: &[u8], method: TokenMethod, id: &[u8]) -> Tokens {
        let generations: Vec<Generation> =
            secrets.iter().map(|s| Generation { method, ..crate::testing::generation(*s) }).collect();
        let tokens = Tokens::new(id, true);
        tokens.set((0..).zip(&generations));
        tokens
    }

    fn all_hold<'a>(trigger: Trigger) -> Conditions<'a> {
        Conditions {
            maker: true,
            control: Control::Authoritative,
            trigger,
            spis: PAIR,
            in_use: &|_| false,
            address_serves: true,
            anchor_matches: true,
            within_budget: true,
        }
    }

    fn tokens(secrets: &[u8], id: &[u8], spis: IkeSpis) -> Vec<Token> {
        made_with(secrets, TokenMethod::Spis, id).present(Permit { spis }, TAKER)
    }

    /// RFC 6290 section 1.1 and 5: the same input gives the same token, after a reboot too.
    #[test]
    fn the_same_secret_and_pair_give_the_same_token() {
        assert_eq!(tokens(&[9], b"gw", PAIR), tokens(&[9], b"gw", PAIR));
        assert_eq!(tokens(&[9], b"gw", PAIR)[0].len(), 32);
    }

    /// RFC 6290 section 5: different pairs, swapped ones included, have different tokens.
    #[test]
    fn another_pair_maker_or_secret_gives_another_token() {
        let token = tokens(&[9], b"gw", PAIR);
        let swapped = IkeSpis { initiator: B, responder: A };
        assert_ne!(token, tokens(&[9], b"gw", swapped));
        assert_ne!(token, tokens(&[9], b"gx", PAIR));
        assert_ne!(token, tokens(&[8], b"gw", PAIR));
        // The id cannot take octets from the SPIs.
        let shifted = IkeSpis { initiator: [1, 1, 1, 1, 1, 1, 1, 2], responder: B };
        assert_ne!(tokens(&[9], &[1], PAIR), tokens(&[9], &[], shifted));
    }

    /// RFC 6290 section 4.5 and 5.1: up to four generations, newest first.
    #[test]
    fn as_many_tokens_as_generations_and_never_more_than_four() {
        for n in 0..6u8 {
            let secrets: Vec<u8> = (0..n).collect();
            let made = tokens(&secrets, b"gw", PAIR);
            assert_eq!(made.len(), usize::from(n).min(4));
            for (token, secret) in made.iter().zip(&secrets) {
                assert_eq!([*token], tokens(&[*secret], b"gw", PAIR)[..]);
            }
        }
    }

    /// RFC 6290 section 5.2: the taker's address makes another token of the same SPIs; in either form of it.
    #[test]
    fn with_the_takers_address_every_address_has_its_own_token() {
        let tokens = made_with(&[9], TokenMethod::SpisAndAddress, b"gw");
        let of = |address: &str| tokens.present(Permit { spis: PAIR }, address.parse().unwrap());
        assert_ne!(of("192.0.2.2"), of("192.0.2.3"));
        assert_ne!(of("2001:db8::1"), of("2001:db8::2"));
        assert_ne!(of("192.0.2.2"), of("::c000:202"), "the family is in it");
        assert_eq!(of("192.0.2.2"), of("::ffff:192.0.2.2"));
        let plain = made_with(&[9], TokenMethod::Spis, b"gw");
        assert_ne!(of("192.0.2.2"), plain.present(Permit { spis: PAIR }, TAKER));
        let elsewhere = plain.present(Permit { spis: PAIR }, "192.0.2.3".parse().unwrap());
        assert_eq!(elsewhere, plain.present(Permit { spis: PAIR }, TAKER), "section 5.1: any address");
    }

    /// RFC 6290 section 4.4 and 5.2: a token that has the taker's address in it is void when the taker moves.
    #[test]
    fn a_token_is_stale_when_its_taker_moved_and_its_address_counts() {
        for (method, stale) in [(TokenMethod::Spis, false), (TokenMethod::SpisAndAddress, true)] {
            let tokens = Rc::new(made_with(&[9], method, b"gw"));
            let elsewhere = "192.0.2.77".parse().unwrap();
            assert!(!tokens.is_stale(PAIR, elsewhere), "none was given");
            ProtectedTokens(tokens.clone()).token(PAIR, TAKER).unwrap();
            assert_eq!((tokens.is_stale(PAIR, TAKER), tokens.is_stale(PAIR, elsewhere)), (false, stale));
            ProtectedTokens(tokens.clone()).token(PAIR, elsewhere).unwrap();
            assert_eq!(tokens.is_stale(PAIR, elsewhere), stale, "sent is not acknowledged");
            tokens.given().acknowledged(PAIR);
            assert!(!tokens.is_stale(PAIR, elsewhere));
        }
    }

    /// RFC 6290 section 8.1: the user can switch the maker off.
    #[test]
    fn protected_tokens_are_the_newest_or_none_when_switched_off() {
        let all = Rc::new(made_with(&[1, 2], TokenMethod::Spis, b"gw"));
        let maker = ProtectedTokens(all.clone());
        assert_eq!(maker.token(PAIR, TAKER).unwrap(), tokens(&[1], b"gw", PAIR)[0]);
        assert!(all.is_maker());
        all.switch_off();
        assert_eq!((maker.token(PAIR, TAKER), all.is_maker()), (None, false));
        let without = Rc::new(Tokens::new(b"gw", true));
        assert_eq!((ProtectedTokens(without.clone()).token(PAIR, TAKER), without.is_maker()), (None, false));
    }

    #[test]
    fn a_permit_is_for_the_pair_that_was_asked_about() {
        for trigger in [REQUEST, Trigger::FormerSpi { written: 1, now: 2 }] {
            assert_eq!(may_present(&all_hold(trigger)).unwrap().spis, PAIR);
        }
    }

    /// RFC 6290 section 9.2: whatever one condition is missing, no token leaves.
    #[test]
    fn each_missing_condition_withholds_the_token() {
        let former = |written| Trigger::FormerSpi { written, now: 2 };
        let message = |exchange, response, tombstone| Trigger::Message { exchange, response, tombstone };
        let cases: Vec<(Withheld, Conditions<'_>)> = vec![
            (Withheld::SwitchedOff, Conditions { maker: false, ..all_hold(REQUEST) }),
            (Withheld::NotAuthoritative, Conditions { control: Control::Starting, ..all_hold(REQUEST) }),
            (Withheld::Trigger, all_hold(message(37, true, false))),
            (Withheld::Trigger, all_hold(message(34, false, false))),
            (Withheld::Trigger, all_hold(message(38, false, false))),
            (Withheld::Tombstone, all_hold(message(37, false, true))),
            (Withheld::SameIncarnation, all_hold(former(2))),
            (Withheld::SameIncarnation, all_hold(former(3))),
            (Withheld::SpiInUse, Conditions { in_use: &|spi| spi == A, ..all_hold(REQUEST) }),
            (Withheld::SpiInUse, Conditions { in_use: &|spi| spi == B, ..all_hold(former(1)) }),
            (
                Withheld::ZeroSpi,
                Conditions { spis: IkeSpis { responder: [0; 8], ..PAIR }, ..all_hold(REQUEST) },
            ),
            (
                Withheld::ZeroSpi,
                Conditions { spis: IkeSpis { initiator: [0; 8], ..PAIR }, ..all_hold(former(1)) },
            ),
            (Withheld::Address, Conditions { address_serves: false, ..all_hold(REQUEST) }),
            (Withheld::Anchor, Conditions { anchor_matches: false, ..all_hold(former(1)) }),
            (Withheld::Budget, Conditions { within_budget: false, ..all_hold(REQUEST) }),
        ];
        for (reason, conditions) in cases {
            assert_eq!(may_present(&conditions).unwrap_err(), reason);
        }
    }

    proptest! {
        #[test]
        fn tokens_of_two_pairs_differ(a: ([u8; 8], [u8; 8]), b: ([u8; 8], [u8; 8])) {
            prop_assume!(a != b);
            let pair = |(initiator, responder)| IkeSpis { initiator, responder };
            prop_assert_ne!(tokens(&[1], b"gw", pair(a)), tokens(&[1], b"gw", pair(b)));
        }
    }
}
