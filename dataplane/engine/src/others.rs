//! What belongs to other workers. An SA has one owner, which alone has its keys, its sequence number and its replay window; of
//! the others' SAs an engine knows whose they are, and of outbound ones which packets they take. What comes for one of
//! them is handed over as it came. It is handed over once: one that is still not at the right place, since
//! commands reach workers at different times, is dropped.

use crate::policies::Rank;
use crate::selectors::{Flow, Selectors};
use crate::spi_table::Known;
use crate::{ArrayVec, BURST, Counter, DropReason, Engine, Frame, Origin, Output, Refused, compile};
use spindle_abi::{Mode, SaParameters, Spi, Time};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

/// An outbound SA of another worker's.
struct Foreign {
    worker: u16,
    spi: Spi,
    policy: u32,
    selectors: Selectors,
    /// In transport mode: its own addresses, between which alone it carries packets (RFC 4301 section 4.1).
    ends: Option<(IpAddr, IpAddr)>,
}

/// The other workers' SAs.
pub(crate) struct Others {
    me: u16,
    workers: u16,
    /// By index; empty with one worker.
    outbound: Vec<Option<Box<Foreign>>>,
    /// With their indexes, for several may have the same.
    outbound_spis: BTreeSet<(u32, u32)>,
    /// What is looked at has been handed over to this worker.
    taken_over: bool,
}

impl Others {
    /// With room for so many SAs: address space only.
    pub(crate) fn new(me: u16, workers: u16, sas: u32) -> Others {
        let outbound = if workers > 1 { Vec::with_capacity(sas as usize) } else { Vec::new() };
        Others { me, workers, outbound, outbound_spis: BTreeSet::new(), taken_over: false }
    }

    /// How many workers there are, this one included.
    pub(crate) fn workers(&self) -> u16 {
        self.workers
    }

    /// Are there no others?
    pub(crate) fn is_empty(&self) -> bool {
        self.workers <= 1
    }

    /// The worker that an SA belongs to, if that is another one.
    pub(crate) fn owner(&self, sa: &SaParameters) -> Option<u16> {
        Some(sa.resource.owner(self.workers)).filter(|worker| *worker != self.me)
    }

    #[inline]
    fn foreign(&self, index: u32) -> Option<&Foreign> {
        self.outbound.get(index as usize)?.as_deref()
    }

    /// Who sends on the outbound SA with this index, if that is another one.
    #[inline]
    pub(crate) fn sends(&self, index: u32) -> Option<u16> {
        self.foreign(index).map(|foreign| foreign.worker)
    }

    /// May it carry this?
    #[inline]
    pub(crate) fn takes(&self, index: u32, flow: &Flow) -> bool {
        self.foreign(index).is_some_and(|foreign| {
            let joins = foreign.ends.is_none_or(|ends| ends == (flow.source, flow.destination));
            joins && foreign.selectors.matches(flow)
        })
    }

    /// The SPI of an outbound SA, if it is another one's.
    pub(crate) fn spi(&self, index: u32) -> Option<Spi> {
        self.foreign(index).map(|foreign| foreign.spi)
    }

    pub(crate) fn outbound_indexes(&self) -> impl Iterator<Item = u32> {
        (0..).zip(&self.outbound).filter_map(|(index, sa)| sa.as_ref().map(|_| index))
    }

    pub(crate) fn selectors(&self, index: u32) -> Option<&Selectors> {
        self.foreign(index).map(|foreign| &foreign.selectors)
    }

    /// Who sends on an outbound SPI, if that is another one.
    pub(crate) fn sends_on(&self, spi: u32) -> Option<u16> {
        let (_, index) = self.outbound_spis.range((spi, 0)..=(spi, u32::MAX)).next()?;
        self.sends(*index)
    }

    /// The policy of a foreign SA that is no more.
    pub(crate) fn forget(&mut self, index: u32) -> Option<u32> {
        let foreign = self.outbound.get_mut(index as usize)?.take()?;
        self.outbound_spis.remove(&(foreign.spi.0, index));
        Some(foreign.policy)
    }

    /// Its outer addresses change, if it is an outbound one.
    pub(crate) fn readdress(&mut self, index: u32, local: SocketAddr, remote: SocketAddr) {
        if let Some(ends) = self.outbound.get_mut(index as usize).and_then(|f| f.as_mut()?.ends.as_mut()) {
            *ends = (local.ip(), remote.ip());
        }
    }

    fn put(&mut self, index: u32, foreign: Foreign) {
        let at = index as usize;
        if self.outbound.len() <= at {
            self.outbound.resize_with(at + 1, || None);
        }
        self.outbound_spis.insert((foreign.spi.0, index));
        self.outbound[at] = Some(Box::new(foreign));
    }
}

impl Engine {
    /// Another worker has an inbound SA with this SPI.
    pub(crate) fn note_inbound(&mut self, spi: Spi, worker: u16) -> Result<(), Refused> {
        match self.spis.lookup(spi) {
            Known::Current(_) => Err(Refused::Impossible("SPI: another SA has it")),
            _ => self.spis.set_elsewhere(spi, worker),
        }
    }

    /// Another worker has this outbound SA.
    pub(crate) fn note_outbound(&mut self, sa: &SaParameters, worker: u16) -> Result<(), Refused> {
        if !self.sas.has_room(sa.index) {
            return Err(Refused::Full("SAs"));
        }
        match self.others.foreign(sa.index) {
            Some(same) if same.spi == sa.spi => return Ok(()),
            Some(_) => return Err(Refused::Impossible("index: another SA has it")),
            None => {}
        }
        let selectors = compile(&sa.selectors)?;
        let ends = (sa.mode == Mode::Transport).then(|| (sa.local.ip(), sa.remote.ip()));
        self.others.put(sa.index, Foreign { worker, spi: sa.spi, policy: sa.policy, selectors, ends });
        let rank = if sa.resource.dedicated { Rank::Foreign } else { Rank::Common };
        self.policies_with(sa.policy).add_sa(sa.policy, sa.index, rank);
        Ok(())
    }

    /// The frame is another worker's.
    pub(crate) fn hand_over<F: Frame>(
        &mut self,
        worker: u16,
        origin: Origin,
        frame: F,
        out: &mut impl Output<F>,
    ) {
        if self.others.taken_over {
            return self.discard(frame, DropReason::WrongWorker, out);
        }
        match out.hand_over(worker, origin, frame) {
            Ok(()) => self.counters.add(Counter::HandedOver, 1),
            Err(frame) => self.discard(frame, DropReason::HandoverFull, out),
        }
    }

    /// As [`Engine::process`], for frames that other workers handed over.
    pub fn take_over<F: Frame>(
        &mut self,
        now: Time,
        origin: Origin,
        burst: &mut ArrayVec<F, BURST>,
        out: &mut impl Output<F>,
    ) {
        self.counters.add(Counter::TakenOver, burst.len() as u64);
        self.others.taken_over = true;
        match origin {
            Origin::Outside => self.process_outside(now, burst, out),
            Origin::Inside(interface) => self.process_inside(now, interface, burst, out),
        }
        self.others.taken_over = false;
    }
}
