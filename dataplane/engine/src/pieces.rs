//! Tables that grow by pieces: what they hold never moves, and an entry more costs one piece at most, however many there
//! are.

/// Entries of a piece.
const PIECE: usize = 512;

/// Entries in a row.
pub(crate) struct Pieces<T> {
    /// All full but the last one.
    pieces: Vec<Vec<T>>,
    length: usize,
}

impl<T> Default for Pieces<T> {
    fn default() -> Pieces<T> {
        Pieces { pieces: Vec::new(), length: 0 }
    }
}

impl<T> Pieces<T> {
    /// The place of the entry, from 0.
    pub(crate) fn push(&mut self, entry: T) -> u32 {
        let place = self.length;
        if place / PIECE == self.pieces.len() {
            self.pieces.push(Vec::with_capacity(PIECE));
        }
        self.pieces[place / PIECE].push(entry);
        self.length += 1;
        place as u32
    }

    /// The last one.
    fn pop(&mut self) -> Option<T> {
        self.length = self.length.checked_sub(1)?;
        self.pieces[self.length / PIECE].pop()
    }

    /// There must be such an entry.
    #[inline]
    pub(crate) fn at(&self, place: u32) -> &T {
        &self.pieces[place as usize / PIECE][place as usize % PIECE]
    }

    /// There must be such an entry.
    #[inline]
    pub(crate) fn at_mut(&mut self, place: u32) -> &mut T {
        &mut self.pieces[place as usize / PIECE][place as usize % PIECE]
    }
}

/// Entries whose places others take when they are given back.
pub(crate) struct Slots<T> {
    entries: Pieces<T>,
    free: Pieces<u32>,
}

impl<T> Default for Slots<T> {
    fn default() -> Slots<T> {
        Slots { entries: Pieces::default(), free: Pieces::default() }
    }
}

impl<T> Slots<T> {
    /// The place of the entry.
    pub(crate) fn put(&mut self, entry: T) -> u32 {
        let Some(place) = self.free.pop() else { return self.entries.push(entry) };
        *self.entries.at_mut(place) = entry;
        place
    }

    /// The place is free; what is in it stays until another entry takes it.
    pub(crate) fn give_back(&mut self, place: u32) {
        self.free.push(place);
    }

    /// There must be such an entry.
    #[inline]
    pub(crate) fn at(&self, place: u32) -> &T {
        self.entries.at(place)
    }

    /// There must be such an entry.
    #[inline]
    pub(crate) fn at_mut(&mut self, place: u32) -> &mut T {
        self.entries.at_mut(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_used_again_and_entries_stay_where_they_are() {
        let mut slots = Slots::default();
        let count = 3 * PIECE as u32;
        assert!((0..count).all(|entry| slots.put(entry) == entry));
        let first: *const u32 = slots.at(0);
        (0..count).step_by(2).for_each(|place| slots.give_back(place));
        let mut places: Vec<u32> = (0..count / 2 + 1).map(|entry| slots.put(count + entry)).collect();
        assert!(std::ptr::eq(first, slots.at(0)));
        places.sort_unstable();
        assert_eq!(places, (0..count).step_by(2).chain([count]).collect::<Vec<_>>());
        assert!((0..count / 2).all(|entry| *slots.at(2 * entry + 1) == 2 * entry + 1));
    }
}
