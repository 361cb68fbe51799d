//! The SAs, by the index that control gave them: all of one that packets look at side by side, but for its key and its
//! replay window's blocks.

use crate::selectors::{Flow, Selectors};
use spindle_abi::{Event, Limits, SaActivity, SaParameters, Spi, Time};
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
    hard: Limits,
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
        Usage { activity: SaActivity::default(), next, hard }
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
        if self.has_reached(self.hard) {
            self.expire();
            return Limit::Hard;
        }
        self.next = self.hard;
        Limit::Soft
    }
}

/// An inbound SA.
#[derive(Debug)]
pub(crate) struct Inbound {
    pub(crate) sa: InboundSa,
    pub(crate) usage: Usage,
    pub(crate) selectors: Selectors,
    pub(crate) encapsulated: bool,
    pub(crate) in_transport: bool,
    /// The virtual interface of its policy.
    pub(crate) interface: u16,
    /// The first packet is still to be reported.
    pub(crate) report_first: bool,
    /// Its index waits among those whose activity changed.
    pub(crate) is_changed: bool,
}

/// An outbound SA.
#[derive(Debug)]
pub(crate) struct Outbound {
    pub(crate) sa: OutboundSa,
    pub(crate) usage: Usage,
    pub(crate) selectors: Selectors,
    pub(crate) policy: u32,
    /// Its index waits among those whose activity changed.
    pub(crate) is_changed: bool,
}

impl Outbound {
    /// May it carry this?
    #[inline]
    pub(crate) fn takes(&self, flow: &Flow) -> bool {
        self.selectors.matches(flow) && self.sa.joins(flow.source, flow.destination)
    }
}

/// One place of the table.
#[derive(Debug)]
#[repr(align(32))]
enum Slot {
    /// Its index may still wait among those whose activity changed.
    None {
        is_changed: bool,
    },
    Inbound(Inbound),
    Outbound(Outbound),
}

const _: () = assert!(size_of::<Slot>() <= 160);

/// What is still to be told of an SA, for which there was no room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Owed {
    /// The first packet on an inbound one.
    First = 1,
    Soft = 2,
    Hard = 4,
}

impl Owed {
    /// In this order.
    pub(crate) const ALL: [Owed; 3] = [Owed::First, Owed::Soft, Owed::Hard];
}

/// Beside them: its index waits among those that owe something.
const OWING: u8 = 8;

/// Who has an index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Holder {
    None,
    Inbound(Spi),
    Outbound(Spi),
}

pub(crate) struct Sas {
    slots: Vec<Slot>,
    /// Outbound SAs by SPI. Peers choose these, so several may have the same.
    outbound_spis: BTreeSet<(u32, u32)>,
    /// Between these addresses so many outbound SAs are in transport mode.
    in_transport: HashMap<(IpAddr, IpAddr), usize>,
    limit: usize,
    /// SAs whose activity changed since it was last reported; each at most once.
    changed: VecDeque<u32>,
    /// SAs of which something is still to be told; each at most once.
    owing: VecDeque<u32>,
    /// By index what that is: [`Owed`], as bits, and [`OWING`].
    owed: Vec<u8>,
}

impl Sas {
    pub(crate) fn new(limit: u32) -> Sas {
        let limit = limit as usize;
        // Capacity is address space only; pages come with use. So growing never copies.
        Sas {
            slots: Vec::with_capacity(limit),
            outbound_spis: BTreeSet::new(),
            in_transport: HashMap::new(),
            limit,
            changed: VecDeque::with_capacity(limit),
            owing: VecDeque::with_capacity(limit),
            owed: Vec::with_capacity(limit),
        }
    }

    /// Could an SA have this index?
    pub(crate) fn has_room(&self, index: u32) -> bool {
        (index as usize) < self.limit
    }

    pub(crate) fn holder(&self, index: u32) -> Holder {
        match self.slots.get(index as usize) {
            Some(Slot::Inbound(inbound)) => Holder::Inbound(inbound.sa.spi()),
            Some(Slot::Outbound(outbound)) => Holder::Outbound(outbound.sa.spi()),
            Some(Slot::None { .. }) | None => Holder::None,
        }
    }

    fn reach(&mut self, index: u32) -> usize {
        let at = index as usize;
        if self.slots.len() <= at {
            self.slots.resize_with(at + 1, || Slot::None { is_changed: false });
            self.owed.resize(at + 1, 0);
        }
        at
    }

    pub(crate) fn put_inbound(&mut self, index: u32, mut sa: Inbound) {
        let at = self.reach(index);
        sa.is_changed = self.is_changed(at);
        self.slots[at] = Slot::Inbound(sa);
    }

    fn is_changed(&self, at: usize) -> bool {
        match &self.slots[at] {
            Slot::None { is_changed } => *is_changed,
            Slot::Inbound(inbound) => inbound.is_changed,
            Slot::Outbound(outbound) => outbound.is_changed,
        }
    }

    pub(crate) fn put_outbound(&mut self, index: u32, mut sa: Outbound) {
        let at = self.reach(index);
        sa.is_changed = self.is_changed(at);
        self.outbound_spis.insert((sa.sa.spi().0, index));
        if sa.sa.is_in_transport() {
            *self.in_transport.entry(sa.sa.ends()).or_default() += 1;
        }
        self.slots[at] = Slot::Outbound(sa);
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
        if at >= self.slots.len() {
            return;
        }
        let is_changed = self.is_changed(at);
        if let Slot::Outbound(sa) = std::mem::replace(&mut self.slots[at], Slot::None { is_changed }) {
            self.outbound_spis.remove(&(sa.sa.spi().0, index));
            if sa.sa.is_in_transport() {
                self.leave_transport(sa.sa.ends());
            }
        }
        // The next one here owes nothing of it.
        self.owed[at] &= OWING;
    }

    pub(crate) fn outbound_indexes(&self) -> impl Iterator<Item = u32> {
        let is_outbound = |slot: &Slot| matches!(slot, Slot::Outbound(_));
        (0..).zip(&self.slots).filter_map(move |(index, slot)| is_outbound(slot).then_some(index))
    }

    /// Fetches an SA ahead of its use.
    #[inline]
    pub(crate) fn prefetch(&self, index: u32) {
        if let Some(slot) = self.slots.get(index as usize) {
            prefetch(slot);
        }
    }

    /// And then what an inbound one points to, for a packet with this sequence number.
    #[inline]
    pub(crate) fn prefetch_behind_inbound(&self, index: u32, sequence: u32) {
        if let Some(Slot::Inbound(inbound)) = self.slots.get(index as usize) {
            inbound.sa.prefetch(sequence);
        }
    }

    /// And then what an outbound one points to.
    #[inline]
    pub(crate) fn prefetch_behind_outbound(&self, index: u32) {
        if let Some(Slot::Outbound(outbound)) = self.slots.get(index as usize) {
            outbound.sa.prefetch();
        }
    }

    #[inline]
    pub(crate) fn inbound(&mut self, index: u32) -> Option<&mut Inbound> {
        match self.slots.get_mut(index as usize) {
            Some(Slot::Inbound(inbound)) => Some(inbound),
            _ => None,
        }
    }

    #[inline]
    pub(crate) fn outbound(&mut self, index: u32) -> Option<&mut Outbound> {
        match self.slots.get_mut(index as usize) {
            Some(Slot::Outbound(outbound)) => Some(outbound),
            _ => None,
        }
    }

    #[inline]
    pub(crate) fn outbound_at(&self, index: u32) -> Option<&Outbound> {
        match self.slots.get(index as usize) {
            Some(Slot::Outbound(outbound)) => Some(outbound),
            _ => None,
        }
    }

    /// The outbound SAs with this SPI, with their indexes.
    pub(crate) fn outbound_with(&self, spi: u32) -> impl Iterator<Item = (u32, &Outbound)> {
        let indexes = self.outbound_spis.range((spi, 0)..=(spi, u32::MAX)).map(|(_, index)| *index);
        indexes.filter_map(|index| Some((index, self.outbound_at(index)?)))
    }

    pub(crate) fn activity(&self, index: u32) -> Option<SaActivity> {
        match self.slots.get(index as usize)? {
            Slot::None { .. } => None,
            Slot::Inbound(inbound) => Some(inbound.usage.activity),
            Slot::Outbound(outbound) => Some(outbound.usage.activity),
        }
    }

    #[inline]
    pub(crate) fn mark_changed(&mut self, index: u32) {
        let is_changed = match self.slots.get_mut(index as usize) {
            Some(Slot::Inbound(inbound)) => &mut inbound.is_changed,
            Some(Slot::Outbound(outbound)) => &mut outbound.is_changed,
            Some(Slot::None { .. }) | None => return,
        };
        if !std::mem::replace(is_changed, true) {
            self.changed.push_back(index);
        }
    }

    pub(crate) fn drain_changed(&mut self, limit: usize, mut report: impl FnMut(u32, SaActivity)) {
        for _ in 0..limit {
            let Some(index) = self.changed.pop_front() else { return };
            let is_changed = match &mut self.slots[index as usize] {
                Slot::None { is_changed } => is_changed,
                Slot::Inbound(inbound) => &mut inbound.is_changed,
                Slot::Outbound(outbound) => &mut outbound.is_changed,
            };
            *is_changed = false;
            if let Some(activity) = self.activity(index) {
                report(index, activity);
            }
        }
    }

    /// Is anything still to be told?
    #[inline]
    pub(crate) fn owes(&self) -> bool {
        !self.owing.is_empty()
    }

    /// There was no room to tell this.
    pub(crate) fn owe(&mut self, index: u32, what: Owed) {
        let Some(owed) = self.owed.get_mut(index as usize) else { return };
        if *owed & OWING == 0 {
            self.owing.push_back(index);
        }
        *owed |= what as u8 | OWING;
    }

    /// Offers what is owed of at most `limit` SAs; `tell` says whether there was room. `false`: there was none, and what is not
    /// told stays.
    pub(crate) fn pay(&mut self, limit: usize, mut tell: impl FnMut(Event) -> bool) -> bool {
        for _ in 0..limit {
            let Some(index) = self.owing.front().copied() else { break };
            let at = index as usize;
            for what in Owed::ALL {
                if self.owed[at] & what as u8 == 0 {
                    continue;
                }
                let event = match (what, self.holder(index)) {
                    (Owed::First, Holder::Inbound(spi)) => Event::FirstInbound { spi },
                    (what, _) => Event::Lifetime { index, hard: what == Owed::Hard },
                };
                if !tell(event) {
                    return false;
                }
                self.owed[at] &= !(what as u8);
            }
            self.owed[at] = 0;
            self.owing.pop_front();
        }
        true
    }
}
