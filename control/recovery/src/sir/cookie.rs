//! Y's cookies (draft section 3.2.4): they show that an answer is to a query of ours, about that IKE SA and between
//! those addresses, not long ago.
//!
//! key id (1) | 0 (3) | seconds (4) | HMAC-SHA-256 (16 octets of it). The keys change; the one before is still accepted.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use spindle_abi::Time;
use spindle_ike::api::IkeSpis;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Octets of a cookie.
pub(crate) const LENGTH: usize = 24;
/// How long a cookie holds.
const LIFETIME: Duration = Duration::from_secs(10);
/// How long a key makes cookies; it is accepted for as long again.
const ROTATION: Duration = Duration::from_secs(60);

/// The present key and the one before it, each derived from a root that is random at each start.
pub(crate) struct CookieKeys {
    root: Zeroizing<[u8; 32]>,
    number: u64,
    /// By number: the present one, the one before.
    keys: [Hmac<Sha256>; 2],
}

impl std::fmt::Debug for CookieKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CookieKeys(number {})", self.number)
    }
}

/// What a cookie is bound to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Bound {
    pub(crate) spis: IkeSpis,
    /// Y's address and port.
    pub(crate) local: SocketAddr,
    /// X's.
    pub(crate) remote: SocketAddr,
}

fn hmac(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of any length")
}

fn derive(root: &[u8; 32], number: u64) -> Hmac<Sha256> {
    let mut mac = hmac(root);
    mac.update(b"sir cookie key");
    mac.update(&number.to_be_bytes());
    hmac(&Zeroizing::new(<[u8; 32]>::from(mac.finalize().into_bytes()))[..])
}

impl CookieKeys {
    pub(crate) fn new(root: Zeroizing<[u8; 32]>, now: Time) -> CookieKeys {
        let number = number(now);
        let keys = [derive(&root, number), derive(&root, number.wrapping_sub(1))];
        CookieKeys { root, number, keys }
    }

    fn rotate(&mut self, now: Time) {
        let number = number(now);
        if number > self.number {
            self.number = number;
            self.keys = [derive(&self.root, number), derive(&self.root, number.wrapping_sub(1))];
        }
    }

    /// A cookie for a query that is sent now.
    pub(crate) fn make(&mut self, now: Time, bound: &Bound) -> [u8; LENGTH] {
        self.rotate(now);
        cookie(&self.keys[0], self.number as u8, seconds(now), bound)
    }

    /// Is it one of ours, for this IKE SA between these addresses, and not too old? In constant time.
    pub(crate) fn verify(&mut self, now: Time, bound: &Bound, shown: &[u8]) -> bool {
        self.rotate(now);
        let Ok(&[id, 0, 0, 0, s0, s1, s2, s3, ..]) = <&[u8; LENGTH]>::try_from(shown) else { return false };
        let age = match self.number.wrapping_sub(u64::from(id)) as u8 {
            age @ 0..=1 => usize::from(age),
            _ => return false,
        };
        let made = u32::from_be_bytes([s0, s1, s2, s3]);
        let fresh = u64::from(seconds(now).wrapping_sub(made)) <= LIFETIME.as_secs();
        fresh && bool::from(cookie(&self.keys[age], id, made, bound).ct_eq(shown))
    }
}

fn number(now: Time) -> u64 {
    now.0 / ROTATION.as_nanos() as u64
}

fn seconds(now: Time) -> u32 {
    (now.0 / 1_000_000_000) as u32
}

/// All parts have fixed lengths once the families are known, so no two inputs are the same octets. Two zero parts stand
/// where the protocol and the SPI of an ESP SA would be, which is never asked about in clear.
fn cookie(key: &Hmac<Sha256>, id: u8, made: u32, bound: &Bound) -> [u8; LENGTH] {
    let mut mac = key.clone();
    mac.update(b"sir1");
    mac.update(&[id]);
    mac.update(&made.to_be_bytes());
    mac.update(&bound.spis.initiator);
    mac.update(&bound.spis.responder);
    mac.update(&[0; 5]);
    for end in [bound.local, bound.remote] {
        match end.ip() {
            IpAddr::V4(a) => {
                mac.update(&[4]);
                mac.update(&a.octets());
            }
            IpAddr::V6(a) => {
                mac.update(&[6]);
                mac.update(&a.octets());
            }
        }
        mac.update(&end.port().to_be_bytes());
    }
    let digest = mac.finalize().into_bytes();
    let mut out = [0; LENGTH];
    out[0] = id;
    out[4..8].copy_from_slice(&made.to_be_bytes());
    out[8..].copy_from_slice(&digest[..LENGTH - 8]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{pair, socket};

    fn at(seconds: u64) -> Time {
        Time(seconds * 1_000_000_000)
    }

    fn keys() -> CookieKeys {
        CookieKeys::new(Zeroizing::new([3; 32]), at(0))
    }

    fn bound() -> Bound {
        Bound { spis: pair(1), local: socket("192.0.2.2:500"), remote: socket("192.0.2.1:500") }
    }

    /// Section 3.2.4: bound to what was asked and to the addresses and ports of the query.
    #[test]
    fn a_cookie_holds_for_its_ike_sa_and_addresses_alone() {
        let mut keys = keys();
        let made = keys.make(at(5), &bound());
        assert!(keys.verify(at(5), &bound(), &made));
        let swapped = IkeSpis { initiator: pair(1).responder, responder: pair(1).initiator };
        let others = [
            Bound { spis: pair(2), ..bound() },
            Bound { spis: swapped, ..bound() },
            Bound { local: socket("192.0.2.3:500"), ..bound() },
            Bound { local: socket("192.0.2.2:4500"), ..bound() },
            Bound { remote: socket("192.0.2.9:500"), ..bound() },
            Bound { remote: socket("192.0.2.1:501"), ..bound() },
            Bound { local: bound().remote, remote: bound().local, ..bound() },
        ];
        for other in others {
            assert!(!keys.verify(at(5), &other, &made), "{other:?}");
        }
        for octet in 0..LENGTH {
            let mut changed = made;
            changed[octet] ^= 1;
            assert!(!keys.verify(at(5), &bound(), &changed), "octet {octet}");
        }
        for length in [0, 1, 23] {
            assert!(!keys.verify(at(5), &bound(), &made[..length]));
        }
        assert!(!keys.verify(at(5), &bound(), &[&made[..], &[0]].concat()));
        assert!(!CookieKeys::new(Zeroizing::new([4; 32]), at(0)).verify(at(5), &bound(), &made));
    }

    /// Section 3.2.4: a limited lifetime, and secrets that change.
    #[test]
    fn a_cookie_is_stale_after_ten_seconds_and_outlives_one_change_of_the_key() {
        let mut keys = keys();
        for made_at in [0, 5, 55, 59, 60, 61] {
            let made = keys.make(at(made_at), &bound());
            assert!(keys.verify(at(made_at + 10), &bound(), &made), "{made_at}");
            assert!(!keys.verify(at(made_at + 11), &bound(), &made), "{made_at}");
            keys = self::keys();
        }
        // Not before its time either, and not with the key after the next.
        let made = keys.make(at(50), &bound());
        let mut early = self::keys();
        assert!(!early.verify(at(49), &bound(), &made));
        let first = keys.make(at(50), &bound());
        let second = keys.make(at(70), &bound());
        assert_eq!((first[0], second[0]), (0, 1));
        assert_ne!(first[8..], second[8..]);
        // The key's id comes again after 256 changes; the time does not.
        assert!(!keys.verify(at(50 + 256 * 60), &bound(), &first));
    }
}
