//! Allocators: IKE SPIs, Child SPIs with their life (larval, current, retired, former), and slots for the dataplane.

use crate::api::{ChildSaId, IkeSpi};
use crate::random::Random;
use spindle_abi::{MAX_SAS, Spi, Time};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

/// A random IKE SPI that is not zero and not in use. (RFC 7296 section 3.1: unique and never zero; RFC 6290 section
/// 9.3: they MUST be unpredictable, since a token is bound to them.)
pub(crate) fn ike_spi(random: &mut dyn Random, in_use: impl Fn(&IkeSpi) -> bool) -> IkeSpi {
    loop {
        let mut spi = [0; 8];
        random.fill(&mut spi);
        if spi != [0; 8] && !in_use(&spi) {
            return spi;
        }
    }
}

/// What one of our Child SPIs is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Use {
    /// Offered in an exchange under way.
    Larval,
    /// Of an installed inbound SA.
    Current(ChildSaId),
    /// Removed; not allocated again until then.
    Retired(Time),
}

/// Our Child SPIs and the slots of all SAs in the dataplane.
#[derive(Default)]
pub(crate) struct ChildSpis {
    // Asked for each packet without an SA, and never gone through in order.
    uses: HashMap<Spi, Use>,
    /// Of earlier incarnations: a peer may still send on them under keys that are lost, so a new SA on one would be
    /// a black hole.
    former: HashSet<Spi>,
    /// When retired SPIs become unknown.
    expiries: VecDeque<(Time, Spi)>,
}

impl ChildSpis {
    /// Bounds the search for a free SPI; 2^32 SPIs and at most a few millions in use make a second try rare.
    const TRIES: usize = 64;

    /// A larval SPI: random, at least 256 (RFC 4303 section 2.1), neither in use nor retired nor former.
    pub(crate) fn allocate(&mut self, random: &mut dyn Random) -> Option<Spi> {
        for _ in 0..Self::TRIES {
            let mut octets = [0; 4];
            random.fill(&mut octets);
            let spi = Spi(u32::from_be_bytes(octets));
            if spi.0 >= 256 && !self.uses.contains_key(&spi) && !self.former.contains(&spi) {
                self.uses.insert(spi, Use::Larval);
                return Some(spi);
            }
        }
        None
    }

    /// A larval one of an earlier process's.
    pub(crate) fn reserve(&mut self, spi: Spi) {
        self.uses.insert(spi, Use::Larval);
    }

    /// Its inbound SA is installed.
    pub(crate) fn install(&mut self, spi: Spi, child: ChildSaId) {
        self.uses.insert(spi, Use::Current(child));
    }

    /// A larval SPI that came to nothing.
    pub(crate) fn release(&mut self, spi: Spi) {
        self.uses.remove(&spi);
    }

    /// Its inbound SA is removed; it becomes unknown at `until`, which never decreases from call to call.
    pub(crate) fn retire(&mut self, spi: Spi, until: Time) {
        self.uses.insert(spi, Use::Retired(until));
        self.expiries.push_back((until, spi));
    }

    /// It becomes unknown before its time.
    pub(crate) fn unretire(&mut self, spi: Spi) {
        self.uses.remove(&spi);
        self.expiries.retain(|(_, retired)| *retired != spi);
    }

    /// Retired SPIs whose time is over.
    pub(crate) fn expire(&mut self, now: Time) -> Option<Spi> {
        let (until, spi) = *self.expiries.front()?;
        if until > now {
            return None;
        }
        self.expiries.pop_front();
        self.uses.remove(&spi);
        Some(spi)
    }

    /// When the next retired SPI becomes unknown.
    pub(crate) fn deadline(&self) -> Option<Time> {
        self.expiries.front().map(|(until, _)| *until)
    }

    /// The Child SA whose inbound SPI this is.
    pub(crate) fn child(&self, spi: Spi) -> Option<ChildSaId> {
        match self.uses.get(&spi) {
            Some(Use::Current(child)) => Some(*child),
            _ => None,
        }
    }

    /// Larval, current or retired?
    pub(crate) fn knows(&self, spi: Spi) -> bool {
        self.uses.contains_key(&spi)
    }

    /// Never to be allocated.
    pub(crate) fn avoid(&mut self, spis: impl Iterator<Item = Spi>) {
        self.former.extend(spis);
    }

    /// May be allocated again.
    pub(crate) fn forget(&mut self, spi: Spi) {
        self.former.remove(&spi);
    }
}

/// Slots of SAs in the dataplane, unique among the installed ones. Freed slots are used again in order of freeing, so
/// as late as possible.
#[derive(Default)]
pub(crate) struct Indices {
    next: u32,
    free: VecDeque<u32>,
    used: BTreeMap<u32, ChildSaId>,
}

impl Indices {
    /// Freed slots wait until so many are free, for the counters of an SA to be read after its end.
    const RESERVE: usize = 64;

    /// Two slots: inbound, outbound. `None` if all [`MAX_SAS`] are in use.
    pub(crate) fn allocate_pair(&mut self, child: ChildSaId) -> Option<(u32, u32)> {
        let inbound = self.allocate(child)?;
        match self.allocate(child) {
            Some(outbound) => Some((inbound, outbound)),
            None => {
                self.release(inbound);
                None
            }
        }
    }

    fn allocate(&mut self, child: ChildSaId) -> Option<u32> {
        let index = if self.free.len() > Self::RESERVE || self.next >= MAX_SAS {
            self.free.pop_front()?
        } else {
            self.next += 1;
            self.next - 1
        };
        self.used.insert(index, child);
        Some(index)
    }

    /// An earlier process gave this slot to a Child SA.
    pub(crate) fn occupy(&mut self, index: u32, child: ChildSaId) {
        self.next = self.next.max(index.saturating_add(1));
        self.used.insert(index, child);
    }

    /// After all of these: the others are free.
    pub(crate) fn free_others(&mut self) {
        self.free = (0..self.next).filter(|index| !self.used.contains_key(index)).collect();
    }

    /// The slot is free.
    pub(crate) fn release(&mut self, index: u32) {
        if self.used.remove(&index).is_some() {
            self.free.push_back(index);
        }
    }

    /// The Child SA that has this slot.
    pub(crate) fn child(&self, index: u32) -> Option<ChildSaId> {
        self.used.get(&index).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Script(Vec<u32>);

    impl Random for Script {
        fn fill(&mut self, octets: &mut [u8]) {
            let value = self.0.remove(0).to_be_bytes();
            for (i, o) in octets.iter_mut().enumerate() {
                *o = value[i % 4];
            }
        }
    }

    /// RFC 4303 section 2.1: 1 to 255 are reserved, 0 MUST NOT be sent on the wire.
    #[test]
    fn reserved_former_used_and_retired_spis_are_not_allocated() {
        let mut spis = ChildSpis::default();
        spis.avoid([Spi(1000)].into_iter());
        let mut random = Script(vec![0, 255, 1000, 300]);
        assert_eq!(spis.allocate(&mut random), Some(Spi(300)));
        spis.install(Spi(300), ChildSaId(1));
        random.0 = vec![300, 301];
        assert_eq!(spis.allocate(&mut random), Some(Spi(301)));
        spis.retire(Spi(300), Time(50));
        random.0 = vec![300, 301, 302];
        assert_eq!(spis.allocate(&mut random), Some(Spi(302)));
        assert_eq!(spis.expire(Time(49)), None);
        assert_eq!(spis.expire(Time(50)), Some(Spi(300)));
        spis.forget(Spi(1000));
        random.0 = vec![300, 1000];
        assert_eq!(spis.allocate(&mut random), Some(Spi(300)));
        assert_eq!(spis.allocate(&mut random), Some(Spi(1000)));
    }

    #[test]
    fn slots_are_unique_and_come_back() {
        let mut indices = Indices::default();
        let mut seen = HashSet::new();
        for i in 0..1000 {
            let (a, b) = indices.allocate_pair(ChildSaId(i)).unwrap();
            assert!(a != b);
            seen.extend([a, b]);
            indices.release(a);
            indices.release(b);
            assert_eq!(indices.child(a), None);
        }
        assert!(seen.len() < 80, "{} slots for one pair at a time", seen.len());
    }

    #[test]
    fn an_ike_spi_is_neither_zero_nor_in_use() {
        let mut random = Script(vec![0, 7, 8]);
        let spi = ike_spi(&mut random, |s| *s == [0, 0, 0, 7, 0, 0, 0, 7]);
        assert_eq!(spi, [0, 0, 0, 8, 0, 0, 0, 8]);
    }
}
