//! Stateless cookies (RFC 7296 section 2.6): version | HMAC(secret, Ni | IPi | port | SPIi).

use crate::api::{IkeSpi, IkeSpis};
use crate::crypto::{Prf, equal};
use crate::random::Random;
use spindle_abi::Time;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use zeroize::Zeroizing;

/// How long a secret makes cookies; it is accepted for as long again.
const LIFETIME: Duration = Duration::from_secs(60);

/// How long a cookie holds that was given before the request.
const EARLY_LIFETIME: Duration = Duration::from_secs(10);

/// The secret in use and the one before it.
#[derive(Default)]
pub(crate) struct CookieSecrets {
    current: Option<Secret>,
    previous: Option<Secret>,
}

struct Secret {
    version: u8,
    octets: Zeroizing<[u8; 32]>,
    since: Time,
}

impl Secret {
    fn cookie(&self, remote: SocketAddr, spi: &IkeSpi, nonce: &[u8]) -> Vec<u8> {
        let port = remote.port().to_be_bytes();
        let mac = Prf::HmacSha256.compute(&*self.octets, &[spi, &port, &address(remote), nonce]);
        [&[self.version], mac.as_slice()].concat()
    }

    /// version | seconds | SPIi | SPIr | HMAC(another secret, these | port | IP).
    fn early(&self, remote: SocketAddr, seconds: [u8; 4], spis: [u8; 16]) -> Vec<u8> {
        let secret = Prf::HmacSha256.compute(&*self.octets, &[b"early cookies"]);
        let open = [&[self.version], &seconds[..], &spis].concat();
        let port = remote.port().to_be_bytes();
        let mac = Prf::HmacSha256.compute(&secret, &[&open, &port, &address(remote)]);
        [&open, mac.as_slice()].concat()
    }
}

fn address(remote: SocketAddr) -> Vec<u8> {
    match remote.ip() {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

impl CookieSecrets {
    /// RFC 7296 section 2.6: the secret changes often, and the previous one is accepted for a short time.
    fn rotate(&mut self, now: Time, random: &mut dyn Random) {
        if self.current.as_ref().is_some_and(|s| now.since(s.since) < LIFETIME) {
            return;
        }
        let version = self.current.as_ref().map_or(0, |s| s.version.wrapping_add(1));
        let mut octets = Zeroizing::new([0; 32]);
        random.fill(&mut *octets);
        let old = self.current.replace(Secret { version, octets, since: now });
        self.previous = old.filter(|s| now.since(s.since) < 2 * LIFETIME);
    }

    /// A cookie for this request.
    pub(crate) fn make(
        &mut self,
        now: Time,
        random: &mut dyn Random,
        remote: SocketAddr,
        spi: &IkeSpi,
        nonce: &[u8],
    ) -> Vec<u8> {
        self.rotate(now, random);
        self.current.as_ref().map_or_else(Vec::new, |s| s.cookie(remote, spi, nonce))
    }

    /// Is it one of ours for this very request? In constant time.
    pub(crate) fn verify(
        &mut self,
        now: Time,
        random: &mut dyn Random,
        remote: SocketAddr,
        spi: &IkeSpi,
        nonce: &[u8],
        cookie: &[u8],
    ) -> bool {
        self.rotate(now, random);
        [&self.current, &self.previous]
            .into_iter()
            .flatten()
            .any(|s| cookie.first() == Some(&s.version) && equal(&s.cookie(remote, spi, nonce), cookie))
    }

    /// A cookie for whatever request this peer sends next: it shows no more than that the peer receives there, which
    /// is all that a cookie is to show. `spis`: of the IKE SA that the peer asked about.
    pub(crate) fn make_early(
        &mut self,
        now: Time,
        random: &mut dyn Random,
        remote: SocketAddr,
        spis: IkeSpis,
    ) -> Vec<u8> {
        self.rotate(now, random);
        let mut pair = [0; 16];
        pair[..8].copy_from_slice(&spis.initiator);
        pair[8..].copy_from_slice(&spis.responder);
        self.current.as_ref().map_or_else(Vec::new, |s| s.early(remote, seconds(now).to_be_bytes(), pair))
    }

    /// Is it one of [`CookieSecrets::make_early`]'s for this peer, not too old? In constant time.
    pub(crate) fn verify_early(
        &mut self,
        now: Time,
        random: &mut dyn Random,
        remote: SocketAddr,
        cookie: &[u8],
    ) -> bool {
        self.rotate(now, random);
        let Some(([version, s0, s1, s2, s3], rest)) = cookie.split_first_chunk() else { return false };
        let Some((pair, _)) = rest.split_first_chunk() else { return false };
        let made = [*s0, *s1, *s2, *s3];
        let fresh =
            u64::from(seconds(now).wrapping_sub(u32::from_be_bytes(made))) <= EARLY_LIFETIME.as_secs();
        let secrets = [&self.current, &self.previous].into_iter().flatten();
        fresh
            && secrets
                .into_iter()
                .any(|s| s.version == *version && equal(&s.early(remote, made, *pair), cookie))
    }
}

fn seconds(now: Time) -> u32 {
    (now.0 / 1_000_000_000) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Counter(u8);

    impl Random for Counter {
        fn fill(&mut self, octets: &mut [u8]) {
            self.0 += 1;
            octets.fill(self.0);
        }
    }

    #[test]
    fn a_cookie_holds_for_its_request_and_a_short_time() {
        let (mut secrets, mut random) = (CookieSecrets::default(), Counter(0));
        let remote: SocketAddr = "192.0.2.1:500".parse().unwrap();
        let other: SocketAddr = "192.0.2.2:500".parse().unwrap();
        let second = |s: u64| Time(s * 1_000_000_000);
        let cookie = secrets.make(second(1), &mut random, remote, &[1; 8], &[2; 32]);
        // RFC 7296 section 2.6: between 1 and 64 octets.
        assert!((1..=64).contains(&cookie.len()));
        let mut verify = |at, remote, spi: &IkeSpi, nonce: &[u8]| {
            secrets.verify(at, &mut random, remote, spi, nonce, &cookie)
        };
        assert!(verify(second(2), remote, &[1; 8], &[2; 32]));
        assert!(!verify(second(2), other, &[1; 8], &[2; 32]));
        assert!(!verify(second(2), remote, &[2; 8], &[2; 32]));
        assert!(!verify(second(2), remote, &[1; 8], &[3; 32]));
        assert!(verify(second(65), remote, &[1; 8], &[2; 32]));
        assert!(!verify(second(130), remote, &[1; 8], &[2; 32]));
    }

    #[test]
    fn an_early_cookie_holds_for_its_peer_and_ten_seconds_and_is_no_other_cookie() {
        let (mut secrets, mut random) = (CookieSecrets::default(), Counter(0));
        let remote: SocketAddr = "192.0.2.1:500".parse().unwrap();
        let second = |s: u64| Time(s * 1_000_000_000);
        let spis = IkeSpis { initiator: [1; 8], responder: [2; 8] };
        let cookie = secrets.make_early(second(5), &mut random, remote, spis);
        // RFC 7296 section 2.6: between 1 and 64 octets.
        assert!((1..=64).contains(&cookie.len()));
        let usual = secrets.make(second(5), &mut random, remote, &[1; 8], &[2; 32]);
        let mut verify = |at, remote: &str, cookie: &[u8]| {
            secrets.verify_early(at, &mut random, remote.parse().unwrap(), cookie)
        };
        assert!(verify(second(5), "192.0.2.1:500", &cookie));
        assert!(verify(second(15), "192.0.2.1:500", &cookie));
        assert!(!verify(second(16), "192.0.2.1:500", &cookie));
        assert!(!verify(second(4), "192.0.2.1:500", &cookie));
        assert!(!verify(second(5), "192.0.2.1:501", &cookie));
        assert!(!verify(second(5), "192.0.2.2:500", &cookie));
        for at in 0..cookie.len() {
            let mut changed = cookie.clone();
            changed[at] ^= 1;
            assert!(!verify(second(5), "192.0.2.1:500", &changed), "octet {at}");
        }
        assert!(!verify(second(5), "192.0.2.1:500", &usual));
        assert!(!verify(second(5), "192.0.2.1:500", &[]));
        assert!(!secrets.verify(second(5), &mut random, remote, &[1; 8], &[2; 32], &cookie));
    }
}
