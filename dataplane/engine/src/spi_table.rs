//! What is known of each inbound SPI, and what waits to be told about former ones.
//!
//! Open addressing over buckets of 8 SPIs and what is known of them, one cache line each: an SPI costs one line, known or
//! unknown as in a storm, which the caller prefetches a burst ahead. A full bucket overflows into the next; each bucket
//! counts what passed it by, so that removals can clean up behind themselves.

use crate::Refused;
use crate::buckets::{Buckets, EMPTY, Place, WIDTH};
use spindle_abi::{Spi, SpiReport, SpiState, Time};
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

/// A lane of which the SPI is gone, while others that had no room are looked for beyond it. SPIs 0 to 255 are reserved
/// (RFC 4303 section 2.1), so that neither this nor [`EMPTY`] is anyone's.
const REMOVED: u32 = 1;

/// In the place of a state: current, and another worker's.
const ELSEWHERE: u8 = 5;

/// Bits of a value that say the state; the others say which.
const STATE_BITS: u32 = 4;
/// More SPIs than this have no place in a value.
const MOST: u32 = 1 << 27;
const _: () = assert!(spindle_abi::MAX_SAS <= 1 << (32 - STATE_BITS));

/// Reports on one former SPI at most once in this time.
const REPORT_INTERVAL: Duration = Duration::from_millis(100);

/// What is known of an SPI.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Known {
    Unknown,
    Larval,
    /// With its SA's index.
    Current(u32),
    /// With the worker that its SA belongs to.
    Elsewhere(u16),
    Retired,
    /// With its place among the former ones.
    Former(u32),
}

/// Address and port: shorter than a `SocketAddr`.
pub(crate) type End = (IpAddr, u16);

/// A former SPI and the latest packet on it.
#[derive(Clone, Copy)]
struct Former {
    at: Time,
    reported: Option<Time>,
    spi: Spi,
    sequence: u32,
    source: End,
    destination: End,
    queued: bool,
    removed: bool,
}

const _: () = assert!(size_of::<Former>() == 80);

impl Former {
    fn report(&self) -> SpiReport {
        let (source, destination) = (SocketAddr::from(self.source), SocketAddr::from(self.destination));
        SpiReport { spi: self.spi, sequence: self.sequence, source, destination, at: self.at }
    }
}

pub(crate) struct SpiTable {
    buckets: Buckets,
    /// For each bucket, the SPIs that live further on because it was full.
    passed: Vec<u32>,
    shift: u32,
    count: usize,
    limit: usize,
    formers: Vec<Former>,
    free_formers: Vec<u32>,
    /// Former SPIs that have something to tell; each at most once, and there is room for all.
    queue: VecDeque<u32>,
}

impl SpiTable {
    pub(crate) fn new(limit: u32) -> SpiTable {
        let limit = limit.clamp(1, MOST) as usize;
        // At most half full: then hardly any bucket overflows.
        let buckets = (limit * 2).div_ceil(WIDTH).next_power_of_two().max(2);
        SpiTable {
            buckets: Buckets::new(buckets),
            passed: vec![0; buckets],
            shift: 32 - buckets.trailing_zeros(),
            count: 0,
            limit,
            // Address space only: pages come with use, and growing never copies.
            formers: Vec::with_capacity(limit),
            free_formers: Vec::new(),
            queue: VecDeque::new(),
        }
    }

    /// SPIs are random numbers of our own choice, or a stranger's who can at worst make us read a full bucket.
    #[inline]
    fn home(&self, spi: Spi) -> usize {
        (spi.0.wrapping_mul(0x9e37_79b1) >> self.shift) as usize & (self.buckets.len() - 1)
    }

    #[inline]
    pub(crate) fn prefetch(&self, spi: Spi) {
        self.buckets.prefetch(self.home(spi));
    }

    #[inline]
    fn find(&self, spi: Spi) -> Option<Place> {
        if spi.0 <= REMOVED {
            return None;
        }
        let mut at = self.home(spi);
        for _ in 0..self.buckets.len() {
            match self.buckets.lane(at, spi) {
                (Some(lane), _) => return Some((at, lane)),
                (None, true) => return None,
                (None, false) => at = (at + 1) & (self.buckets.len() - 1),
            }
        }
        None
    }

    /// What is known of an SPI.
    #[inline]
    pub(crate) fn lookup(&self, spi: Spi) -> Known {
        self.find(spi).map_or(Known::Unknown, |place| self.known_at(place))
    }

    #[inline]
    fn known_at(&self, place: Place) -> Known {
        let value = self.buckets.value(place);
        let slot = value >> STATE_BITS;
        match value & ((1 << STATE_BITS) - 1) {
            1 => Known::Larval,
            2 => Known::Current(slot),
            3 => Known::Retired,
            5 => Known::Elsewhere(slot as u16),
            _ => Known::Former(slot),
        }
    }

    pub(crate) fn state(&self, spi: Spi) -> SpiState {
        match self.lookup(spi) {
            Known::Unknown => SpiState::Unknown,
            Known::Larval => SpiState::Larval,
            Known::Current(_) | Known::Elsewhere(_) => SpiState::Current,
            Known::Retired => SpiState::Retired,
            Known::Former(_) => SpiState::Former,
        }
    }

    /// Sets what is known, whatever it was.
    pub(crate) fn set(&mut self, spi: Spi, state: SpiState, index: u32) -> Result<(), Refused> {
        if spi.0 < 256 {
            return Err(Refused::Impossible("SPI"));
        }
        let known = self.lookup(spi);
        match (known, state) {
            (Known::Former(_), SpiState::Former) | (Known::Unknown, SpiState::Unknown) => return Ok(()),
            (_, SpiState::Unknown) => {
                self.remove(spi);
                return Ok(());
            }
            _ => {}
        }
        let place = self.place(spi, known)?;
        let slot = if state == SpiState::Former { self.new_former(spi) } else { index };
        self.note_at(place, slot, state as u8);
        Ok(())
    }

    /// The SPI is current, and this worker has its SA.
    pub(crate) fn set_elsewhere(&mut self, spi: Spi, worker: u16) -> Result<(), Refused> {
        let place = self.place(spi, self.lookup(spi))?;
        self.note_at(place, worker.into(), ELSEWHERE);
        Ok(())
    }

    fn note_at(&mut self, place: Place, slot: u32, state: u8) {
        self.buckets.set_value(place, slot << STATE_BITS | u32::from(state));
    }

    /// Where something else will be known of an SPI.
    fn place(&mut self, spi: Spi, known: Known) -> Result<Place, Refused> {
        if spi.0 < 256 {
            return Err(Refused::Impossible("SPI"));
        }
        let at = match self.find(spi) {
            Some(place) => place,
            None => self.insert(spi)?,
        };
        if let Known::Former(slot) = known {
            self.release(slot);
        }
        Ok(at)
    }

    fn insert(&mut self, spi: Spi) -> Result<Place, Refused> {
        if self.count >= self.limit {
            return Err(Refused::Full("SPIs"));
        }
        let mask = self.buckets.len() - 1;
        let home = self.home(spi);
        // The limit leaves room, so this ends.
        for step in 0..self.buckets.len() {
            let at = (home + step) & mask;
            let spis = self.buckets.spis_mut(at);
            if let Some(lane) = spis.iter().position(|held| *held <= REMOVED) {
                spis[lane] = spi.0;
                (0..step).for_each(|back| self.passed[(home + back) & mask] += 1);
                self.count += 1;
                return Ok((at, lane));
            }
        }
        Err(Refused::Full("SPIs"))
    }

    fn remove(&mut self, spi: Spi) {
        let Some((bucket, lane)) = self.find(spi) else { return };
        if let Known::Former(slot) = self.known_at((bucket, lane)) {
            self.release(slot);
        }
        let (mask, home) = (self.buckets.len() - 1, self.home(spi));
        self.buckets.spis_mut(bucket)[lane] = if self.passed[bucket] == 0 { EMPTY } else { REMOVED };
        self.count -= 1;
        let mut at = home;
        while at != bucket {
            self.passed[at] -= 1;
            if self.passed[at] == 0 {
                let spis = self.buckets.spis_mut(at).iter_mut();
                spis.filter(|held| **held == REMOVED).for_each(|held| *held = EMPTY);
            }
            at = (at + 1) & mask;
        }
    }

    fn new_former(&mut self, spi: Spi) -> u32 {
        let nowhere = (IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        let former = Former {
            at: Time(0),
            reported: None,
            spi,
            sequence: 0,
            source: nowhere,
            destination: nowhere,
            queued: false,
            removed: false,
        };
        let slot = match self.free_formers.pop() {
            Some(slot) => {
                self.formers[slot as usize] = former;
                slot
            }
            None => {
                self.formers.push(former);
                (self.formers.len() - 1) as u32
            }
        };
        // Room for all of them, so that no packet ever allocates.
        self.queue.reserve(self.formers.len() - self.queue.len());
        slot
    }

    /// Frees a former SPI's place; one in the queue only when it comes up there.
    fn release(&mut self, slot: u32) {
        let former = &mut self.formers[slot as usize];
        if former.queued {
            former.removed = true;
        } else {
            self.free_formers.push(slot);
        }
    }

    /// ESP came on a former SPI: the latest one is told at the next sweep.
    #[inline]
    pub(crate) fn note(&mut self, slot: u32, sequence: u32, (source, destination): (End, End), at: Time) {
        let Some(former) = self.formers.get_mut(slot as usize) else { return };
        (former.sequence, former.at) = (sequence, at);
        (former.source, former.destination) = (source, destination);
        if !former.queued {
            former.queued = true;
            self.queue.push_back(slot);
        }
    }

    /// Looks at `limit` former SPIs at most that have something to tell, and offers `most` due reports of theirs at most; `tell`
    /// says whether there was room. What is not told stays.
    pub(crate) fn sweep(
        &mut self,
        now: Time,
        limit: usize,
        most: u64,
        mut tell: impl FnMut(SpiReport) -> bool,
    ) -> u64 {
        let mut told = 0;
        for _ in 0..limit.min(self.queue.len()) {
            if told == most {
                break;
            }
            let Some(slot) = self.queue.pop_front() else { break };
            let former = &mut self.formers[slot as usize];
            if former.removed {
                (former.removed, former.queued) = (false, false);
                self.free_formers.push(slot);
                continue;
            }
            let due = former.reported.is_none_or(|last| now.since(last) >= REPORT_INTERVAL);
            if !due {
                self.queue.push_back(slot);
                continue;
            }
            if !tell(former.report()) {
                self.queue.push_front(slot);
                break;
            }
            (former.reported, former.queued) = (Some(now), false);
            told += 1;
        }
        told
    }

    /// All SPIs that have a state.
    pub(crate) fn all(&self) -> impl Iterator<Item = Spi> {
        let held = (0..self.buckets.len()).flat_map(|bucket| self.buckets.spis(bucket));
        held.filter(|held| **held > REMOVED).map(|held| Spi(*held))
    }

    pub(crate) fn len(&self) -> usize {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn note(table: &mut SpiTable, spi: u32, sequence: u32) {
        let end = (IpAddr::from([192, 0, 2, 1]), 0);
        let slot = slot(table, spi);
        table.note(slot, sequence, (end, end), Time(1));
    }

    fn slot(table: &SpiTable, spi: u32) -> u32 {
        match table.lookup(Spi(spi)) {
            Known::Former(slot) => slot,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_former_spi_is_told_once_in_100_ms_with_its_latest_packet() {
        let mut table = SpiTable::new(100);
        table.set(Spi(1000), SpiState::Former, 0).unwrap();
        let mut told = Vec::new();
        for millisecond in 0..=250u64 {
            note(&mut table, 1000, millisecond as u32);
            table.sweep(Time(millisecond * 1_000_000), 10, 10, |r| {
                told.push(r.sequence);
                true
            });
        }
        assert_eq!(told, [0, 100, 200]);
    }

    #[test]
    fn what_finds_no_room_stays_and_is_told_later() {
        let mut table = SpiTable::new(100);
        for spi in 1000..1050 {
            table.set(Spi(spi), SpiState::Former, 0).unwrap();
            note(&mut table, spi, 1);
        }
        table.set(Spi(1001), SpiState::Unknown, 0).unwrap();
        table.set(Spi(1002), SpiState::Current, 7).unwrap();
        assert_eq!(table.sweep(Time(1), 1000, 1000, |_| false), 0);
        let mut told = Vec::new();
        for now in 2..20 {
            let mut room = 5;
            table.sweep(Time(now), 1000, 1000, |r| {
                room -= 1;
                if room >= 0 {
                    told.push(r.spi.0);
                }
                room >= 0
            });
        }
        assert_eq!(told, (1000..1050).filter(|s| *s != 1001 && *s != 1002).collect::<Vec<_>>());
        assert_eq!(table.free_formers.len(), 2);
    }

    /// Each has its turn, however many send and however often one does.
    #[test]
    fn those_beyond_what_is_told_at_once_are_told_next_in_the_order_of_their_traffic() {
        let mut table = SpiTable::new(100);
        (1000..1050).for_each(|spi| table.set(Spi(spi), SpiState::Former, 0).unwrap());
        let mut told = Vec::new();
        for round in 0..10u64 {
            (1000..1050).for_each(|spi| note(&mut table, spi, round as u32));
            let now = Time(round * REPORT_INTERVAL.as_nanos() as u64);
            assert_eq!(
                table.sweep(now, 1000, 20, |r| {
                    told.push((r.spi.0, r.sequence));
                    true
                }),
                20
            );
        }
        assert_eq!(
            told[..50].iter().map(|told| told.0).collect::<Vec<_>>(),
            (1000..1050).collect::<Vec<_>>()
        );
        for spi in 1000..1050 {
            let times = told.iter().filter(|told| told.0 == spi).count();
            assert!((3..=5).contains(&times), "{spi} was told {times} times");
        }
        assert!(told[..50].iter().zip(0..).all(|(told, n)| told.1 == n / 20), "not its latest packet");
    }

    #[test]
    fn the_limit_and_reserved_spis_are_refused() {
        let mut table = SpiTable::new(40);
        for spi in 300..340 {
            table.set(Spi(spi), SpiState::Retired, 0).unwrap();
        }
        assert_eq!(table.set(Spi(999), SpiState::Larval, 0), Err(Refused::Full("SPIs")));
        assert_eq!(table.set(Spi(255), SpiState::Larval, 0), Err(Refused::Impossible("SPI")));
        table.set(Spi(339), SpiState::Unknown, 0).unwrap();
        assert_eq!(table.set(Spi(999), SpiState::Larval, 0), Ok(()));
    }

    proptest! {
        /// Few buckets and many SPIs of one home, so that buckets overflow and are cleaned up again.
        #[test]
        fn the_table_is_a_map(steps in proptest::collection::vec((0u32..80, 0u8..5), 1..600), crowd: bool) {
            let mut table = SpiTable::new(70);
            let mut oracle: HashMap<u32, SpiState> = HashMap::new();
            let crowded: Vec<u32> = (256u32..).filter(|s| !crowd || table.home(Spi(*s)) == 1).take(80).collect();
            for (which, state) in steps {
                let (spi, state) = (crowded[which as usize], SpiState::from_u8(state).unwrap());
                let full = oracle.len() == 70 && !oracle.contains_key(&spi) && state != SpiState::Unknown;
                prop_assert_eq!(table.set(Spi(spi), state, which).is_err(), full);
                match state {
                    _ if full => {}
                    SpiState::Unknown => drop(oracle.remove(&spi)),
                    state => drop(oracle.insert(spi, state)),
                }
                prop_assert_eq!(table.len(), oracle.len());
            }
            for spi in crowded {
                let expected = oracle.get(&spi).copied().unwrap_or(SpiState::Unknown);
                prop_assert_eq!(table.state(Spi(spi)), expected);
            }
            for (bucket, passed) in table.passed.iter().enumerate() {
                prop_assert!(*passed != 0 || !table.buckets.spis(bucket).contains(&REMOVED));
            }
        }
    }
}
