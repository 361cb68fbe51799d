//! The SAs, by the index that control gave them: hot state in cache lines of its own, selectors behind a pointer.

use crate::selectors::{Flow, Selectors};
use spindle_abi::{Limits, SaActivity, SaParameters, Spi, Time};
use spindle_aead::prefetch;
use spindle_esp::{InboundSa, OutboundSa, Unusable};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

/// What an SA has carried and may carry.
#[derive(Debug)]
pub(crate) struct Usage {
    pub(crate) activity: SaActivity,
    /// The limits that are reached next: the soft ones, then the hard ones, then [`EXPIRED`]. `u64::MAX` is none.
    next: Limits,
    hard: Box<Limits>,
}

/// A limit that was just reached.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    Soft,
    Hard,
}

/// Beyond the hard limit, or the sequence numbers are used up: the SA is no longer used.
const EXPIRED: Limits = Limits { packets: 0, bytes: 0 };

impl Usage {
    pub(crate) fn new(sa: &SaParameters) -> Usage {
        let or_never = |limit| if limit == 0 { u64::MAX } else { limit };
        let limits = |l: Limits| Limits { packets: or_never(l.packets), bytes: or_never(l.bytes) };
        let (soft, hard) = (limits(sa.soft), limits(sa.hard));
        let next = Limits { packets: soft.packets.min(hard.packets), bytes: soft.bytes.min(hard.bytes) };
        Usage { activity: SaActivity::default(), next, hard: Box::new(hard) }
    }

    /// So many sequence numbers were skipped. They bring the end of the numbers nearer as packets would, so the soft limit
    /// comes sooner (RFC 4303 section 3.3.3: rekeyed before the numbers are used up).
    pub(crate) fn skip(&mut self, numbers: u64) {
        self.next.packets = self.next.packets.saturating_sub(numbers).max(1);
    }

    /// One more packet of so many inner octets. The one that reaches a limit still passes.
    #[inline]
    pub(crate) fn count(&mut self, now: Time, octets: usize) -> Option<Limit> {
        self.activity.packets += 1;
        self.activity.bytes += octets as u64;
        self.activity.last = now;
        if self.has_reached(self.next) { Some(self.reach()) } else { None }
    }

    #[inline]
    pub(crate) fn is_expired(&self) -> bool {
        self.next == EXPIRED
    }

    pub(crate) fn expire(&mut self) {
        self.next = EXPIRED;
    }

    #[inline]
    fn has_reached(&self, limits: Limits) -> bool {
        self.activity.packets >= limits.packets || self.activity.bytes >= limits.bytes
    }

    #[cold]
    fn reach(&mut self) -> Limit {
        if self.has_reached(*self.hard) {
            self.expire();
            return Limit::Hard;
        }
        self.next = *self.hard;
        Limit::Soft
    }
}

/// An inbound SA.
#[derive(Debug)]
pub(crate) struct Inbound {
    pub(crate) sa: InboundSa,
    pub(crate) usage: Usage,
    pub(crate) selectors: Box<Selectors>,
    pub(crate) encapsulated: bool,
    pub(crate) in_transport: bool,
    /// The virtual interface of its policy.
    pub(crate) interface: u16,
    /// The first packet is still to be reported.
    pub(crate) report_first: bool,
}

/// An outbound SA.
#[derive(Debug)]
pub(crate) struct Outbound {
    pub(crate) sa: OutboundSa,
    pub(crate) usage: Usage,
    pub(crate) selectors: Box<Selectors>,
    pub(crate) policy: u32,
}

impl Outbound {
    /// May it carry this?
    #[inline]
    pub(crate) fn takes(&self, flow: &Flow) -> bool {
        self.selectors.matches(flow) && self.sa.joins(flow.source, flow.destination)
    }
}

const _: () = assert!(size_of::<Option<Inbound>>() == 128);
const _: () = assert!(size_of::<Option<Outbound>>() == 128);

/// Who has an index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Holder {
    None,
    Inbound(Spi),
    Outbound(Spi),
}

pub(crate) struct Sas {
    inbound: Vec<Option<Inbound>>,
    outbound: Vec<Option<Outbound>>,
    /// Outbound SAs by SPI. Peers choose these, so several may have the same.
    outbound_spis: BTreeSet<(u32, u32)>,
    /// Between these addresses so many outbound SAs are in transport mode.
    in_transport: HashMap<(IpAddr, IpAddr), usize>,
    limit: usize,
    /// SAs whose activity changed since it was last reported; each at most once.
    changed: VecDeque<u32>,
    is_changed: Vec<bool>,
}

impl Sas {
    pub(crate) fn new(limit: u32) -> Sas {
        let limit = limit as usize;
        // Capacity is address space only; pages come with use. So growing never copies.
        Sas {
            inbound: Vec::with_capacity(limit),
            outbound: Vec::with_capacity(limit),
            outbound_spis: BTreeSet::new(),
            in_transport: HashMap::new(),
            limit,
            changed: VecDeque::with_capacity(limit),
            is_changed: Vec::with_capacity(limit),
        }
    }

    /// SAs at most.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Could an SA have this index?
    pub(crate) fn has_room(&self, index: u32) -> bool {
        (index as usize) < self.limit
    }

    pub(crate) fn holder(&self, index: u32) -> Holder {
        let at = index as usize;
        match (self.inbound.get(at), self.outbound.get(at)) {
            (Some(Some(inbound)), _) => Holder::Inbound(inbound.sa.spi()),
            (_, Some(Some(outbound))) => Holder::Outbound(outbound.sa.spi()),
            _ => Holder::None,
        }
    }

    fn reach(&mut self, index: u32) -> usize {
        let at = index as usize;
        if self.inbound.len() <= at {
            self.inbound.resize_with(at + 1, || None);
            self.outbound.resize_with(at + 1, || None);
            self.is_changed.resize(at + 1, false);
        }
        at
    }

    pub(crate) fn put_inbound(&mut self, index: u32, sa: Inbound) {
        let at = self.reach(index);
        self.inbound[at] = Some(sa);
    }

    pub(crate) fn put_outbound(&mut self, index: u32, sa: Outbound) {
        let at = self.reach(index);
        self.outbound_spis.insert((sa.sa.spi().0, index));
        if sa.sa.is_in_transport() {
            *self.in_transport.entry(sa.sa.ends()).or_default() += 1;
        }
        self.outbound[at] = Some(sa);
    }

    /// The outbound SA's outer addresses change. `None`: there is no such SA.
    pub(crate) fn readdress(
        &mut self,
        index: u32,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Option<Result<(), Unusable>> {
        let sa = &mut self.outbound(index)?.sa;
        let before = sa.ends();
        let changed = sa.readdress(local, remote);
        let (after, in_transport) = (sa.ends(), sa.is_in_transport());
        if in_transport {
            self.leave_transport(before);
            *self.in_transport.entry(after).or_default() += 1;
        }
        Some(changed)
    }

    fn leave_transport(&mut self, ends: (IpAddr, IpAddr)) {
        if let Some(count) = self.in_transport.get_mut(&ends) {
            *count -= 1;
            if *count == 0 {
                self.in_transport.remove(&ends);
            }
        }
    }

    /// Is any outbound SA in transport mode?
    #[inline]
    pub(crate) fn has_transports(&self) -> bool {
        !self.in_transport.is_empty()
    }

    /// Is one between these addresses?
    #[inline]
    pub(crate) fn has_transport(&self, source: IpAddr, destination: IpAddr) -> bool {
        self.in_transport.contains_key(&(source, destination))
    }

    pub(crate) fn remove(&mut self, index: u32) {
        let at = index as usize;
        if at < self.inbound.len() {
            self.inbound[at] = None;
            if let Some(sa) = self.outbound[at].take() {
                self.outbound_spis.remove(&(sa.sa.spi().0, index));
                if sa.sa.is_in_transport() {
                    self.leave_transport(sa.sa.ends());
                }
            }
        }
    }

    pub(crate) fn outbound_indexes(&self) -> impl Iterator<Item = u32> {
        (0..).zip(&self.outbound).filter_map(|(index, sa)| sa.as_ref().map(|_| index))
    }

    /// Fetches an inbound SA ahead of its use.
    #[inline]
    pub(crate) fn prefetch_inbound(&self, index: u32) {
        if let Some(slot) = self.inbound.get(index as usize) {
            prefetch(slot);
        }
    }

    /// And then what it points to, for a packet with this sequence number.
    #[inline]
    pub(crate) fn prefetch_behind_inbound(&self, index: u32, sequence: u32) {
        if let Some(Some(inbound)) = self.inbound.get(index as usize) {
            inbound.sa.prefetch(sequence);
            prefetch(&*inbound.selectors);
        }
    }

    /// Fetches an outbound SA ahead of its use.
    #[inline]
    pub(crate) fn prefetch_outbound(&self, index: u32) {
        if let Some(slot) = self.outbound.get(index as usize) {
            prefetch(slot);
        }
    }

    /// And then what it points to.
    #[inline]
    pub(crate) fn prefetch_behind_outbound(&self, index: u32) {
        if let Some(Some(outbound)) = self.outbound.get(index as usize) {
            outbound.sa.prefetch();
            prefetch(&*outbound.selectors);
        }
    }

    #[inline]
    pub(crate) fn inbound(&mut self, index: u32) -> Option<&mut Inbound> {
        self.inbound.get_mut(index as usize)?.as_mut()
    }

    #[inline]
    pub(crate) fn outbound(&mut self, index: u32) -> Option<&mut Outbound> {
        self.outbound.get_mut(index as usize)?.as_mut()
    }

    #[inline]
    pub(crate) fn outbound_at(&self, index: u32) -> Option<&Outbound> {
        self.outbound.get(index as usize)?.as_ref()
    }

    /// The outbound SAs with this SPI, with their indexes.
    pub(crate) fn outbound_with(&self, spi: u32) -> impl Iterator<Item = (u32, &Outbound)> {
        let indexes = self.outbound_spis.range((spi, 0)..=(spi, u32::MAX)).map(|(_, index)| *index);
        indexes.filter_map(|index| Some((index, self.outbound.get(index as usize)?.as_ref()?)))
    }

    pub(crate) fn activity(&self, index: u32) -> Option<SaActivity> {
        let at = index as usize;
        let inbound = self.inbound.get(at)?.as_ref().map(|sa| sa.usage.activity);
        inbound.or_else(|| self.outbound.get(at)?.as_ref().map(|sa| sa.usage.activity))
    }

    #[inline]
    pub(crate) fn mark_changed(&mut self, index: u32) {
        if let Some(changed) = self.is_changed.get_mut(index as usize)
            && !*changed
        {
            *changed = true;
            self.changed.push_back(index);
        }
    }

    pub(crate) fn drain_changed(&mut self, limit: usize, mut report: impl FnMut(u32, SaActivity)) {
        for _ in 0..limit {
            let Some(index) = self.changed.pop_front() else { return };
            self.is_changed[index as usize] = false;
            if let Some(activity) = self.activity(index) {
                report(index, activity);
            }
        }
    }
}
