//! How large packets on the way to a peer may be: what the first hop allows, and what ICMP tells of the path behind it
//! (RFC 4301 section 8.2, RFC 1191).
//!
//! An ICMP error is nobody's word. It counts for an outbound SA only if it quotes what that SA could have sent lately:
//! outer addresses and ports, SPI, a sequence number of the last million. It can lower the path's MTU, never below a
//! floor, and what it lowered is forgotten after ten minutes. Inner packets are then fragmented, refused with an ICMP
//! error, or their MSS clamped, by the new measure.

use crate::arrivals::head;
use crate::selectors::Flow;
use crate::{Counter, DropReason, Engine, PortId};
use spindle_abi::Time;
use spindle_esp::{Encapsulation, inner_limit};
use spindle_wire::{icmpv4, icmpv6, ipv6, quote};
use std::net::IpAddr;
use std::time::Duration;

/// The least path MTU that is believed of outer IPv4, in octets: what every host must take (RFC 791 section 3.1).
const FLOOR_IPV4: u16 = 576;
/// And of outer IPv6: what tells of less is discarded (RFC 8201 section 4).
const FLOOR_IPV6: u16 = ipv6::MINIMUM_MTU as u16;
/// What was learned is forgotten after this time, and larger packets are tried again (RFC 1191 section 6.3).
const AGE: Duration = Duration::from_secs(600);
/// A quoted sequence number lies so far behind the SA's own at most: some round trips, at any rate.
const LATELY: u32 = 1 << 20;
/// What routers that don't tell the next hop's MTU are likely to mean (RFC 1191 section 7.1).
const PLATEAUS: [u16; 8] = [17_914, 8_166, 4_352, 2_002, 1_492, 1_006, 508, 296];

#[derive(Clone, Copy)]
struct Learned {
    until: Time,
    mtu: u16,
}

/// What was learned of the paths of outbound SAs, by the SAs' indexes.
pub(crate) struct PathMtus {
    learned: Vec<Option<Learned>>,
    /// None of them holds longer than this.
    until: Time,
}

impl PathMtus {
    /// For so many SAs. Capacity is address space only; pages come with use.
    pub(crate) fn new(sas: u32) -> PathMtus {
        PathMtus { learned: Vec::with_capacity(sas as usize), until: Time(0) }
    }

    /// The path MTU of an SA, if one was learned that holds still.
    #[inline]
    pub(crate) fn of(&self, index: u32, now: Time) -> Option<u16> {
        if now >= self.until {
            return None;
        }
        let learned = (*self.learned.get(index as usize)?)?;
        (now < learned.until).then_some(learned.mtu)
    }

    /// Does anything hold still?
    #[inline]
    pub(crate) fn hold_any(&self, now: Time) -> bool {
        now < self.until
    }

    fn learn(&mut self, index: u32, mtu: u16, now: Time) {
        let until = Time(now.0 + AGE.as_nanos() as u64);
        self.set(index, Some(Learned { until, mtu }));
        self.until = self.until.max(until);
    }

    /// A new SA has this index; its path is that of the one which it follows, if there is such a one.
    pub(crate) fn begin(&mut self, index: u32, follows: Option<u32>) {
        let learned = follows.and_then(|other| self.learned.get(other as usize).copied().flatten());
        self.set(index, learned);
    }

    fn set(&mut self, index: u32, learned: Option<Learned>) {
        let at = index as usize;
        if self.learned.len() <= at && learned.is_some() {
            self.learned.resize(at + 1, None);
        }
        if let Some(slot) = self.learned.get_mut(at) {
            *slot = learned;
        }
    }
}

/// The path of an outbound SA.
pub(crate) struct TunnelPath {
    /// Octets of a packet on it at most.
    pub(crate) mtu: usize,
    /// Octets of an inner packet that fits it, at most.
    pub(crate) limit: usize,
    pub(crate) in_transport: bool,
}

impl Engine {
    /// The path of this outbound SA; `None` if there is no such SA.
    #[inline]
    pub(crate) fn tunnel_path(&mut self, now: Time, index: u32) -> Option<TunnelPath> {
        let sa = &self.sas.outbound_at(index)?.sa;
        let (remote, in_transport) = (sa.remote(), sa.is_in_transport());
        let own = self.mtu[PortId::Outside as usize];
        let mtu = self.next_hops.find(remote).map_or(own, |hop| hop.mtu.min(own));
        let mtu = self.path_mtus.of(index, now).map_or(mtu, |learned| mtu.min(learned)).into();
        Some(TunnelPath { mtu, limit: sa.inner_limit(mtu), in_transport })
    }

    /// The longest inner packet that fits the inside and the tunnel by which a flow's packets leave; without an SA, the
    /// tunnel of one with this around it on the widest path.
    pub(crate) fn flow_limit(
        &mut self,
        now: Time,
        interface: u16,
        flow: &Flow,
        around: Encapsulation,
    ) -> usize {
        let latest = self.policies_of(interface).and_then(|policies| {
            let place = policies.find(flow).ok()??;
            policies.behind(place).sas.last().map(|sa| sa.index)
        });
        let limit = latest.and_then(|index| self.tunnel_path(now, index)).map(|path| path.limit);
        let [inside, outside] = self.mtu.map(usize::from);
        limit.unwrap_or_else(|| inner_limit(outside, around)).min(inside)
    }

    /// Takes an ICMP error in that came to us from outside: why its frame ends, or `Err`: the worker that it is for.
    pub(crate) fn hear_icmp(&mut self, now: Time, octets: &[u8]) -> Result<DropReason, u16> {
        let Some(error) = Error::read(octets) else { return Ok(DropReason::IcmpUnknownSa) };
        match self.quoted_sa(&error) {
            None => match self.others.sends_on(error.quoted.spi) {
                Some(worker) => Err(worker),
                None => Ok(DropReason::IcmpUnknownSa),
            },
            Some(index) => {
                let told = error.told;
                // RFC 1191 section 3: never raised on such a message.
                if self.path_mtus.of(index, now).is_none_or(|known| told <= known) {
                    self.path_mtus.learn(index, told, now);
                    self.flows.forget();
                    self.counters.add(Counter::PathMtuLearned, 1);
                }
                Ok(DropReason::IcmpAboutEsp)
            }
        }
    }

    /// The outbound SA of ours that an ICMP error quotes.
    fn quoted_sa(&self, Error { quoted, .. }: &Error) -> Option<u32> {
        let index = self.sas.outbound_with(quoted.spi).find(|(_, outbound)| {
            let sa = &outbound.sa;
            let behind = (sa.sequence() as u32).wrapping_sub(quoted.sequence);
            sa.is_path(quoted.source, quoted.destination, quoted.ports)
                && behind < LATELY
                && u64::from(behind) < sa.sequence()
        });
        Some(index?.0)
    }
}

/// An ICMP error that tells of a path's MTU.
struct Error {
    /// Not below the floor.
    told: u16,
    quoted: quote::Esp,
}

impl Error {
    fn read(octets: &[u8]) -> Option<Error> {
        let (head, packet) = head(octets).ok()?;
        let payload = head.payload(packet);
        let (told, floor, quoted) = match (head.source, head.destination) {
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let icmp = icmpv6::Packet::new_checked(payload).ok()?;
                let message = icmpv6::Repr::parse(&icmp, source, destination);
                let Ok(icmpv6::Repr::PacketTooBig { mtu }) = message else { return None };
                let told = u16::try_from(mtu).ok().filter(|mtu| *mtu >= FLOOR_IPV6)?;
                (told, FLOOR_IPV6, quote::Esp::in_ipv6(icmp.payload())?)
            }
            _ => {
                let icmp = icmpv4::Packet::new_checked(payload).ok()?;
                let message = icmpv4::Repr::parse(&icmp);
                let Ok(icmpv4::Repr::FragmentationNeeded { mtu }) = message else { return None };
                let quoted = quote::Esp::in_ipv4(icmp.payload())?;
                // RFC 1191 section 5: routers of old do not tell it.
                let plateau = || PLATEAUS.into_iter().find(|mtu| usize::from(*mtu) < quoted.length);
                (if mtu == 0 { plateau()? } else { mtu }, FLOOR_IPV4, quoted)
            }
        };
        // A packet that fits is not too big.
        if quoted.source != head.destination || usize::from(told) >= quoted.length {
            return None;
        }
        Some(Error { told: told.max(floor), quoted })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_learned_is_forgotten_and_handed_on() {
        let mut paths = PathMtus::new(8);
        let (start, age) = (Time(1_000), AGE.as_nanos() as u64);
        assert_eq!(paths.of(3, start), None);
        paths.learn(3, 1300, start);
        paths.begin(4, Some(3));
        paths.begin(5, None);
        let later = Time(start.0 + age - 1);
        assert_eq!([3, 4, 5, 6].map(|index| paths.of(index, later)), [Some(1300), Some(1300), None, None]);
        paths.learn(4, 1200, later);
        let over = Time(start.0 + age);
        assert_eq!([3, 4].map(|index| paths.of(index, over)), [None, Some(1200)]);
        paths.begin(4, None);
        assert_eq!(paths.of(4, over), None);
    }
}
