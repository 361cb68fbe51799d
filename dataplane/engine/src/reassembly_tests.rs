//! Fragments in any order, lies among them, and bounds.

use super::*;
use proptest::prelude::*;

const NOW: Time = Time(7_000_000_000);

fn key(source: u8, identification: u32) -> Key {
    let source = IpAddr::from([192, 0, 2, source]);
    Key { source, destination: [198, 51, 100, 1].into(), protocol: Some(50), identification }
}

fn fragment(key: Key, offset: usize, more: bool, octets: &[u8]) -> Fragment<'_> {
    Fragment { key, offset, more, traffic_class: 0xb8, protocol: 50, octets }
}

fn content(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + at / 256) as u8).collect()
}

/// The fragments of `whole`, cut at these places.
fn cut(key: Key, whole: &[u8], mut places: Vec<usize>) -> Vec<Fragment<'_>> {
    places.retain(|place| (1..whole.len()).contains(place));
    places.extend([0, whole.len()]);
    places.sort_unstable();
    places.dedup();
    let pieces = places.windows(2).map(|ends| (ends[0], &whole[ends[0]..ends[1]]));
    pieces.map(|(at, octets)| fragment(key, at, at + octets.len() < whole.len(), octets)).collect()
}

proptest! {
    /// RFC 791 section 3.2: in whatever order, also doubled, and with another datagram's between them.
    #[test]
    fn fragments_in_any_order_make_the_whole_once(
        length in 1usize..=LONGEST, places in proptest::collection::vec(1usize..LONGEST / 8, 1..20),
        seed: u64, double: prop::sample::Index,
    ) {
        let (whole, other) = (content(length), content(400));
        let mut fragments = cut(key(1, 5), &whole, places.iter().map(|unit| unit * 8).collect());
        prop_assume!(fragments.len() > 1);
        let others = cut(key(1, 6), &other, vec![80, 200]);
        let mut state = seed | 1;
        for at in (1..fragments.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            fragments.swap(at, (state >> 33) as usize % (at + 1));
        }
        let last = fragments.pop().unwrap();
        if !fragments.is_empty() {
            fragments.push(fragments[double.index(fragments.len())]);
        }
        let mut reassembly = Reassembly::new(16);
        for fragment in &fragments {
            prop_assert_eq!(reassembly.take(NOW, fragment), Ok(None));
            prop_assert!(!matches!(reassembly.take(NOW, &others[0]), Ok(Some(_)) | Err(_)));
        }
        let made = reassembly.take(NOW, &last).unwrap().unwrap();
        prop_assert_eq!(made, Whole { key: key(1, 5), traffic_class: 0xb8, protocol: 50, octets: &whole });
        prop_assert_eq!(reassembly.used, 1);
    }

    /// Whatever comes: a packet that is made whole is made of octets that were sent for its places.
    #[test]
    fn any_fragments_are_taken_or_refused(
        sent in proptest::collection::vec((0u8..2, 0usize..12, 0usize..40, any::<bool>(), any::<u8>()), 0..40)
    ) {
        let mut reassembly = Reassembly::new(2);
        for (source, unit, length, more, octet) in sent {
            let octets = vec![octet; length];
            let fragment = fragment(key(source, 0), unit * 8, more, &octets);
            if let Ok(Some(whole)) = reassembly.take(NOW, &fragment) {
                prop_assert!(!whole.octets.is_empty() && whole.octets.len() <= 12 * 8 + 40);
                prop_assert_eq!(&whole.octets[unit * 8..][..length], &octets[..]);
            }
        }
        prop_assert_eq!(reassembly.used, reassembly.slots.iter().flatten().count());
    }
}

/// RFC 1858, RFC 5722 section 4: "the entire datagram, including those fragments not yet received, MUST be silently discarded".
#[test]
fn an_overlap_spoils_its_datagram_and_no_other() {
    let whole = content(240);
    let honest = cut(key(1, 5), &whole, vec![80, 160]);
    let lies = [
        fragment(key(1, 5), 72, true, &[0xee; 16]),
        fragment(key(1, 5), 0, true, &[0xee; 80]),
        fragment(key(1, 5), 80, false, &[0xee; 8]),
        fragment(key(1, 5), 160, true, &whole[160..]),
    ];
    for lie in lies {
        let mut reassembly = Reassembly::new(4);
        assert_eq!(reassembly.take(NOW, &honest[0]), Ok(None));
        assert_eq!(reassembly.take(NOW, &honest[2]), Ok(None));
        assert_eq!(reassembly.take(NOW, &lie), Err(DropReason::FragmentInvalid), "{lie:?}");
        assert_eq!(reassembly.take(NOW, &honest[1]), Err(DropReason::FragmentInvalid));
        for piece in &honest {
            let other = Fragment { key: key(1, 6), ..*piece };
            let complete = reassembly.take(NOW, &other).unwrap().is_some();
            assert_eq!(complete, !piece.more);
        }
    }
    // A last fragment that ends before others do.
    let mut reassembly = Reassembly::new(4);
    assert_eq!(reassembly.take(NOW, &honest[1]), Ok(None));
    let short = fragment(key(1, 5), 0, false, &[0; 40]);
    assert_eq!(reassembly.take(NOW, &short), Err(DropReason::FragmentInvalid));
}

/// The ping of death, and what would not fit a frame.
#[test]
fn impossible_lengths_are_refused() {
    let mut reassembly = Reassembly::new(4);
    let mut refused = |offset, more, length| {
        let octets = vec![0; length];
        reassembly.take(NOW, &fragment(key(1, 5), offset, more, &octets)).unwrap_err()
    };
    assert_eq!(refused(65_528, false, 100), DropReason::FragmentInvalid);
    assert_eq!(refused(65_512, true, 8), DropReason::FragmentInvalid);
    assert_eq!(refused(0, true, 0), DropReason::FragmentInvalid);
    assert_eq!(refused(0, true, 100), DropReason::FragmentInvalid);
    assert_eq!(refused(8, false, 0), DropReason::FragmentInvalid);
    assert_eq!(refused(LONGEST, false, 1), DropReason::FragmentTooLong);
    assert_eq!(refused(65_496, false, 19), DropReason::FragmentTooLong);
    assert_eq!((reassembly.used, reassembly.take_abandoned()), (0, 0));
    // Nor does a datagram get larger bit by bit, and what it has so far is no longer waited for.
    let (head, tail) = (vec![0; LONGEST], [0; 8]);
    assert_eq!(reassembly.take(NOW, &fragment(key(1, 5), 0, true, &head)), Ok(None));
    let over = reassembly.take(NOW, &fragment(key(1, 5), LONGEST, false, &tail));
    assert_eq!(over, Err(DropReason::FragmentTooLong));
}

#[test]
fn slots_are_bounded_by_source_by_number_and_in_time() {
    let octets = [0; 8];
    let first = |source, identification| fragment(key(source, identification), 0, true, &octets);
    let last = |source, identification| fragment(key(source, identification), 8, false, &octets);
    let mut reassembly = Reassembly::new(16);
    // A share is two of sixteen: the third takes the first one's place.
    for identification in 1..=3 {
        let now = Time(NOW.0 + u64::from(identification));
        assert_eq!(reassembly.take(now, &first(1, identification)), Ok(None));
    }
    assert_eq!((reassembly.used, reassembly.take_abandoned()), (2, 1));
    assert!(reassembly.take(NOW, &last(1, 3)).unwrap().is_some());
    // A flood from everywhere takes the oldest slots; what came just before lives.
    for source in 2..=255 {
        let now = Time(NOW.0 + 1_000 + u64::from(source));
        assert_eq!(reassembly.take(now, &first(source, 9)), Ok(None));
    }
    assert_eq!((reassembly.used, reassembly.take_abandoned()), (16, 239));
    assert_eq!(reassembly.take(NOW, &last(2, 9)), Ok(None));
    assert!(reassembly.take(NOW, &last(250, 9)).unwrap().is_some());
    let over = Time(NOW.0 + 2_000 + PATIENCE.as_nanos() as u64);
    reassembly.expire(over);
    assert_eq!((reassembly.used, reassembly.take_abandoned()), (0, 16));
}

/// RFC 3168 section 5.3.
#[test]
fn congestion_of_one_fragment_is_that_of_the_whole() {
    let whole = content(24);
    let cases = [
        ([0, 0, 0], Ok(0)),
        ([2, 2, 2], Ok(2)),
        ([1, 1, 1], Ok(1)),
        ([2, 3, 2], Ok(3)),
        ([3, 3, 3], Ok(3)),
        ([1, 2, 3], Ok(3)),
        ([0, 3, 0], Err(DropReason::EcnMismatch)),
    ];
    for (fields, expected) in cases {
        let mut reassembly = Reassembly::new(1);
        let mut results = Vec::new();
        for (piece, ecn) in cut(key(1, 1), &whole, vec![8, 16]).iter().zip(fields) {
            let piece = Fragment { traffic_class: 0xb8 | ecn, ..*piece };
            results.push(reassembly.take(NOW, &piece).map(|made| made.map(|made| made.traffic_class)));
        }
        let whole = expected.map(|ecn| Some(0xb8 | ecn));
        assert_eq!(results, [Ok(None), Ok(None), whole], "{fields:?}");
    }
}
