//! Whose IKE_SA_INIT request is taken up. Nobody is authenticated yet, so what a flood may take from others is bounded
//! here: under load an address must show a COOKIE (RFC 7296 section 2.6) before anything is spent on it, and then it
//! has a share of the half-open IKE SAs, not all of them: one that the configuration names by itself, any other one with
//! its prefix.

use crate::api::*;
use crate::endpoint::{Endpoint, find_notify, notification};
use crate::sa::IkeSa;
use crate::wire::Message;
use spindle_abi::Time;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

/// IKE_SA_INIT requests that are longer are ignored: they would be kept until IKE_AUTH.
pub(crate) const MAX_REQUEST: usize = 8192;
/// Errors told in clear per second to addresses that have shown nothing.
const CLEAR_ERRORS: u32 = 100;
/// An address has this part of the half-open IKE SAs, beside those that need no COOKIE, which anybody may take from it.
const SHARE: usize = 64;
/// And so many for each connection that names it: more than a peer that crashes over and over leaves behind.
const OF_CONNECTION: usize = 16;

/// What an address is counted under where a source is limited: itself, or its /64 of IPv6, for a host may have all of
/// that.
pub fn prefix(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

/// The half-open IKE SAs of peers that initiated, by their addresses or prefixes.
#[derive(Default)]
pub(crate) struct HalfOpen {
    count: usize,
    by_source: BTreeMap<IpAddr, usize>,
}

impl HalfOpen {
    /// One more.
    pub(crate) fn enter(&mut self, source: IpAddr) {
        self.count += 1;
        *self.by_source.entry(source).or_default() += 1;
    }

    fn leave(&mut self, source: IpAddr) {
        if let Some(count) = self.by_source.get_mut(&source) {
            self.count -= 1;
            *count -= 1;
            if *count == 0 {
                self.by_source.remove(&source);
            }
        }
    }

    fn of(&self, source: IpAddr) -> usize {
        self.by_source.get(&source).copied().unwrap_or(0)
    }
}

/// What is left of this second's errors in clear.
#[derive(Default)]
pub(crate) struct ClearErrors {
    since: Time,
    sent: u32,
}

impl ClearErrors {
    fn are_spent(&mut self, now: Time) -> bool {
        if now.since(self.since) >= Duration::from_secs(1) {
            *self = ClearErrors { since: now, sent: 0 };
        }
        self.sent >= CLEAR_ERRORS
    }
}

impl Endpoint {
    /// May this address have one more half-open IKE SA? At least half of all are kept for addresses that the
    /// configuration names.
    pub(crate) fn has_room_for(&self, remote: IpAddr) -> bool {
        let max = self.config.max_half_open;
        let share = self.config.cookie_threshold + (max / SHARE).max(1);
        let (source, share, all) = match self.connections_naming(remote) {
            0 => (prefix(remote), share, max.div_ceil(2)),
            named => (remote, share + named * OF_CONNECTION, max),
        };
        let room = self.half_open.count < all && self.half_open.of(source) < share;
        self.sas.len() < self.config.max_ike_sas && room
    }

    /// How many connections have a peer at this very address.
    fn connections_naming(&self, remote: IpAddr) -> usize {
        let first = (Some(remote), IpAddr::from([0, 0, 0, 0]));
        let from = self.lookups.by_addresses.range(first..);
        from.take_while(|((r, _), _)| *r == Some(remote)).map(|(_, numbers)| numbers.len()).sum()
    }

    /// It becomes half-open.
    pub(crate) fn enter_half_open(&mut self, sa: &mut IkeSa) {
        let remote = sa.remote.ip();
        let source = if self.connections_naming(remote) > 0 { remote } else { prefix(remote) };
        sa.half_open = Some(source);
        self.half_open.enter(source);
    }

    /// It is half-open no more. A late copy of its IKE_SA_INIT request is still known as such.
    pub(crate) fn leave_half_open(&mut self, sa: &mut IkeSa) {
        if let Some(source) = sa.half_open.take() {
            self.half_open.leave(source);
        }
    }

    /// Is it so busy here that a COOKIE is asked for?
    pub(crate) fn asks_for_cookies(&mut self, now: Time) -> bool {
        self.half_open.count >= self.config.cookie_threshold || self.clear_errors.are_spent(now)
    }

    /// Has the sender shown that it receives at its address? Under load a request that does not is answered with a
    /// COOKIE, and with nothing else: many IKE SAs are half-open, or so many errors were told that an honest one's
    /// would have no room.
    pub(crate) fn proves_address(
        &mut self,
        now: Time,
        datagram: &Datagram,
        request: &Message,
        nonce: &[u8],
    ) -> Result<bool, Option<Notify>> {
        if !self.asks_for_cookies(now) {
            return Ok(false);
        }
        let (remote, spi) = (datagram.remote, &request.header.spis.initiator);
        let shown = find_notify(&request.payloads, crate::wire::notify::COOKIE);
        let early = self.hears_sir();
        let random = &mut *self.random;
        let valid = shown.is_some_and(|c| {
            self.cookies.verify(now, random, remote, spi, nonce, &c.data)
                || early && self.cookies.verify_early(now, random, remote, &c.data)
        });
        // RFC 7296 section 2.6: a wrong cookie is as none.
        if valid {
            return Ok(true);
        }
        let cookie = self.cookies.make(now, &mut *self.random, remote, spi, nonce);
        let cookie = notification(crate::wire::notify::COOKIE, cookie);
        self.answer_in_clear(datagram, &request.header, vec![cookie]);
        Err(None)
    }

    /// RFC 7296 section 2.21.4: the rate of answers to unprotected messages is limited.
    pub(crate) fn may_answer_in_clear(&mut self, now: Time) -> bool {
        let may = !self.clear_errors.are_spent(now);
        self.clear_errors.sent += u32::from(may);
        may
    }
}
