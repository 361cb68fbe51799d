//! An endpoint that dies between two of its outputs, and another one that adopts what it left.

use super::*;

impl World {
    /// Both endpoints keep what they need from here on.
    pub fn keep(&mut self) {
        self.sides.iter_mut().for_each(|side| side.endpoint.keep());
    }

    /// Has the endpoint come to its end? This output is not carried out then.
    pub(super) fn burns_down(&mut self, side: usize) -> bool {
        let fuse = &mut self.sides[side].fuse;
        let dies = *fuse == Some(0);
        *fuse = if dies { None } else { fuse.map(|left| left - 1) };
        dies
    }

    /// Writes what is to outlive the endpoint; `true` if it dies instead.
    pub(super) fn keep_changes(&mut self, side: usize) -> bool {
        let changes = self.sides[side].endpoint.take_changes();
        if changes.is_empty() {
            return false;
        }
        if self.burns_down(side) {
            return true;
        }
        for Change { key, record } in changes {
            match record {
                Some(record) => drop(self.sides[side].region.insert(key, record)),
                None => drop(self.sides[side].region.remove(&key)),
            }
        }
        false
    }

    /// Two that keep what they need, established, and do not give up soon.
    pub fn patient_with_memory(seed: u64) -> World {
        let mut world = World::patient_for_long(seed);
        world.keep();
        world.established_by_a()
    }

    /// An endpoint that adopts these records and does nothing.
    pub fn adopt_only(&mut self, number: usize, records: Vec<(Key, Zeroizing<Vec<u8>>)>) -> Adopted {
        let side = &self.sides[number];
        let mut endpoint = endpoint(side.config.clone(), number, side.seed, &side.activities);
        endpoint.adopt(self.now, records)
    }

    /// Another endpoint takes the place of the one that died.
    pub fn revive(&mut self, number: usize) {
        let side = &mut self.sides[number];
        side.deaths += 1;
        side.seed = side.seed.wrapping_add(1 << 32);
        side.endpoint = endpoint(side.config.clone(), number, side.seed, &side.activities);
        side.endpoint.keep();
        side.plane.doubt();
        let records = side.region.clone().into_iter().collect();
        assert_eq!(side.endpoint.adopt(self.now, records).lost, 0);
        self.collect(number);
        self.sides[number].plane.sweep();
    }
}

impl Plane {
    fn doubt(&mut self) {
        let outbound = self.outbound.iter().map(|sa| sa.index).collect();
        self.doubts = Some((self.states.keys().copied().collect(), outbound));
    }

    /// A command, unless what it installs is here already.
    pub(super) fn is_new(&mut self, command: Command) -> Option<Command> {
        let Some((spis, outbound)) = &mut self.doubts else { return Some(command) };
        match &command {
            Command::InstallInbound { sa, report_first, .. } => {
                spis.remove(&sa.spi);
                if let Some((held, report)) = self.inbound.get_mut(&sa.spi) {
                    assert_eq!((held.index, &held.keymat), (sa.index, &sa.keymat));
                    *report |= report_first;
                    return None;
                }
                self.states.insert(sa.spi, SpiState::Larval);
            }
            Command::InstallOutbound { sa } => {
                outbound.remove(&sa.index);
                if let Some(held) = self.outbound.iter().find(|held| held.index == sa.index) {
                    assert_eq!((held.spi, &held.keymat), (sa.spi, &sa.keymat));
                    return None;
                }
            }
            Command::SetSpiState { spi, state: SpiState::Retired } => {
                spis.remove(spi);
                if !self.inbound.contains_key(spi) {
                    self.states.insert(*spi, SpiState::Retired);
                    return None;
                }
            }
            Command::SetSpiState { spi, .. } => {
                spis.remove(spi);
            }
            Command::ConfirmInbound { spi, index } => {
                spis.remove(spi);
                assert_eq!(self.inbound.get(spi).map(|(sa, _)| sa.index), Some(*index));
                return None;
            }
            _ => {}
        }
        Some(command)
    }

    fn sweep(&mut self) {
        let Some((spis, outbound)) = self.doubts.take() else { return };
        for spi in spis {
            self.states.remove(&spi);
            self.inbound.remove(&spi);
        }
        self.outbound.retain(|sa| !outbound.contains(&sa.index));
    }
}
