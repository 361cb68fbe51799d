//! Stateless cookies (RFC 7296 section 2.6): version | HMAC(secret, Ni | IPi | port | SPIi).

use crate::api::IkeSpi;
use crate::crypto::{Prf, equal};
use crate::random::Random;
use spindle_abi::Time;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use zeroize::Zeroizing;

/// How long a secret makes cookies; it is accepted for as long again.
const LIFETIME: Duration = Duration::from_secs(60);

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
        let (v4, v6);
        let address: &[u8] = match remote.ip() {
            IpAddr::V4(a) => {
                v4 = a.octets();
                &v4
            }
            IpAddr::V6(a) => {
                v6 = a.octets();
                &v6
            }
        };
        let port = remote.port().to_be_bytes();
        let mac = Prf::HmacSha256.compute(&*self.octets, &[spi, &port, address, nonce]);
        [&[self.version], mac.as_slice()].concat()
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
}
