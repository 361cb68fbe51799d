use super::*;
use proptest::prelude::*;
use std::collections::HashSet;

fn memory(words: usize) -> Memory {
    Arc::new((0..words).map(|_| AtomicU64::new(0)).collect::<Vec<_>>())
}

fn region() -> SaRegion {
    // Windows of 4 blocks for all SAs would be much; none of a larger size is kept here.
    SaRegion::new(memory(4 * sa_slot::WORDS), memory(4 * 4))
}

/// An SA and its place.
const SA: u64 = 77;

fn window(size: u32) -> ReplayWindow {
    ReplayWindow::new(size).unwrap()
}

#[test]
fn a_new_engine_goes_on_behind_every_number_that_may_have_been_used() {
    let region = region();
    assert!(region.adopt_outbound(0, SA).is_none());
    let mut next = 0;
    for life in 0..5 {
        // Killed after so many packets.
        for last in next..next + 50 * life {
            region.reserve(0, last);
            let (_, behind) = region.adopt_outbound(0, SA).unwrap();
            assert!(behind > last, "{} would be used twice", last + 1);
        }
        let used = next + 50 * life;
        let (_, behind) = region.adopt_outbound(0, SA).unwrap();
        assert!(behind >= used && behind - used <= BATCH && behind.is_multiple_of(BATCH));
        next = behind;
    }
}

#[test]
fn the_last_numbers_are_reserved_and_none_beyond() {
    let region = region();
    region.adopt_outbound(0, SA);
    region.reserve(0, u64::MAX - BATCH + 1);
    assert_eq!(region.adopt_outbound(0, SA).unwrap().1, u64::MAX);
}

#[test]
fn a_slot_never_serves_another_sa() {
    let region = region();
    region.adopt_outbound(0, SA);
    region.reserve(0, 0);
    for (index, other) in [(0, SA + 1), (1, SA)] {
        assert!(region.adopt_outbound(index, other).is_none(), "{index} {other}");
        assert_eq!(region.adopt_outbound(index, other).unwrap().1, 0);
    }
    let mut first = window(64);
    assert!(region.adopt_inbound(0, SA, &mut first).is_none());
    first.update(7);
    region.mark(0, &first, 0, 7);
    assert!(region.adopt_outbound(0, SA + 2).is_none());
    let mut again = window(64);
    assert!(region.adopt_inbound(0, SA, &mut again).is_none(), "it was taken away meanwhile");
    assert!(again.check(7));
}

#[test]
fn what_finds_no_room_is_not_kept() {
    let region = region();
    assert!(region.adopt_outbound(4, SA).is_none());
    assert!(region.adopt_outbound(4, SA).is_none());
    region.reserve(4, 0);
    region.mark(4, &window(64), 0, 1);
}

#[test]
fn a_window_of_another_size_takes_nothing_up_to_the_highest() {
    let region = region();
    let mut first = window(64);
    region.adopt_inbound(0, SA, &mut first);
    first.update(100);
    region.mark(0, &first, 0, 100);
    for size in [128, 128, 32] {
        let mut other = window(size);
        assert!(region.adopt_inbound(0, SA, &mut other).is_some());
        assert!((1..=100).all(|sequence| !other.check(sequence)) && other.check(101));
    }
}

/// The memory of one window, and what a new engine makes of it.
#[derive(Clone)]
struct Image {
    top: u64,
    blocks: Vec<u64>,
}

impl Image {
    fn apply(&mut self, store: Store) {
        match store {
            Store::Top(top) => self.top = top,
            Store::Block(block, value) => self.blocks[block] = value,
        }
    }

    fn restored(&self, size: u32) -> ReplayWindow {
        let mut restored = window(size);
        restored.restore(self.top, |block| self.blocks[block]);
        restored
    }
}

proptest! {
    /// RFC 4303 section 3.4.3 across deaths: killed before, between and after any of the stores, no packet that was handed
    /// on is taken again; and once all are made, the window is as it was.
    #[test]
    fn a_kill_at_any_store_lets_no_packet_be_taken_twice(
        exponent in 5u32..=12,
        start in prop_oneof![Just(1u64), (1u64 << 32) - 300..(1u64 << 32) + 300],
        steps in proptest::collection::vec((-6000i64..9000, 0u8..9), 1..80),
    ) {
        let size = 1u32 << exponent;
        let mut living = window(size);
        let mut image = Image { top: 0, blocks: vec![0; living.blocks().len()] };
        let mut handed_on = HashSet::new();
        let mut sequence = start;
        for (step, scale) in steps {
            sequence = sequence.saturating_add_signed(step >> scale).max(1);
            if !living.check(sequence) {
                continue;
            }
            let top = living.top();
            living.update(sequence);
            let mut all = Vec::new();
            stores(&living, top, sequence, |store| all.push(store));
            for store in all {
                let killed = image.restored(size);
                for taken in &handed_on {
                    prop_assert!(!killed.check(*taken), "{} again, killed before {:?}", taken, store);
                }
                image.apply(store);
            }
            handed_on.insert(sequence);
            let whole = image.restored(size);
            prop_assert_eq!(whole.top(), living.top());
            for near in living.top().saturating_sub(9000)..=living.top() + 2 {
                prop_assert_eq!(whole.check(near), living.check(near), "{}", near);
            }
        }
    }
}
