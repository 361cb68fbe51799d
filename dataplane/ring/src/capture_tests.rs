//! Model checks (cfg(loom)) and, without loom, round trips, losses and a lying reader.

use super::*;

fn captured(n: u64) -> Captured {
    Captured { at: Time(n), interface: 0, left: false, dropped: None, spi: Spi(0), length: n as u16 }
}

#[cfg(loom)]
mod model {
    use super::*;
    use loom::thread;

    #[test]
    fn records_arrive_whole_and_in_order_or_are_counted_as_lost() {
        loom::model(|| {
            let words = (0..HEADER_WORDS + WORDS as usize).map(|_| AtomicU64::new(0)).collect::<Vec<_>>();
            let memory: Memory = loom::sync::Arc::new(words);
            let mut writer = CaptureWriter::new(memory.clone());
            let mut reader = CaptureReader { memory, head: 0, tail: 0 };
            // One of three words fits into four, and the next one goes round the end.
            let writing = thread::spawn(move || {
                for n in 1..=2 {
                    writer.write(&captured(n), &[]).unwrap();
                    writer.publish();
                }
            });
            let (mut octets, mut last, mut count) = (Vec::new(), 0, 0);
            let mut take = |reader: &mut CaptureReader| {
                while let Some(record) = reader.read(&mut octets).unwrap() {
                    assert!(record.at.0 > last);
                    assert_eq!(record, captured(record.at.0));
                    last = record.at.0;
                    count += 1;
                }
                count
            };
            take(&mut reader);
            writing.join().unwrap();
            assert_eq!(take(&mut reader) + reader.lost()[0], 2);
        });
    }
}

#[cfg(not(loom))]
mod one_side_alone {
    use super::*;
    use proptest::prelude::*;

    fn pair() -> (CaptureWriter, CaptureReader) {
        let (mut writers, fds) = create(1).unwrap();
        (writers.remove(0), CaptureReader::open(&fds[0]).unwrap())
    }

    fn any_record() -> impl Strategy<Value = (Captured, Vec<u8>)> {
        let numbers = (any::<u64>(), any::<u16>(), any::<u32>(), any::<u16>());
        let octets = prop::collection::vec(any::<u8>(), 0..200);
        (numbers, any::<bool>(), prop::option::of(any::<u8>()), octets).prop_map(
            |((at, interface, spi, length), left, dropped, octets)| {
                let (at, spi) = (Time(at), Spi(spi));
                (Captured { at, interface, left, dropped, spi, length }, octets)
            },
        )
    }

    proptest! {
        #[test]
        fn every_record_comes_out_as_it_went_in(records in prop::collection::vec(any_record(), 1..20)) {
            let (mut writer, mut reader) = pair();
            let mut octets = vec![7];
            for (captured, of) in &records {
                writer.write(captured, of).unwrap();
            }
            prop_assert_eq!(reader.read(&mut octets).unwrap(), None, "nothing is shown before it is published");
            writer.publish();
            for (captured, of) in &records {
                let read = reader.read(&mut octets).unwrap();
                prop_assert_eq!(read.as_ref(), Some(captured));
                prop_assert_eq!(&octets, of);
            }
            prop_assert_eq!(reader.read(&mut octets).unwrap(), None);
        }
    }

    #[test]
    fn what_finds_no_room_is_counted_by_side_and_later_records_find_it_again() {
        let (mut writer, mut reader) = pair();
        let (inside, outside) = (captured(1), Captured { interface: OUTSIDE, ..captured(2) });
        let frame = [0; 4000];
        let fit = WORDS / words_of(frame.len());
        for round in 1..=3 {
            (0..fit + 2).for_each(|_| writer.write(&inside, &frame).unwrap());
            (0..3).for_each(|_| writer.write(&outside, &frame).unwrap());
            writer.publish();
            assert_eq!(reader.lost(), [2 * round, 3 * round]);
            let mut octets = Vec::new();
            let taken = std::iter::from_fn(|| reader.read(&mut octets).unwrap()).count() as u64;
            assert_eq!(taken, fit);
        }
    }

    #[test]
    fn a_reader_that_publishes_an_impossible_index_is_written_for_no_more() {
        let (mut writer, reader) = pair();
        reader.memory[HEAD].store(5, Ordering::Relaxed);
        let frame = [0; 4000];
        let result = (0..=WORDS / words_of(frame.len())).try_for_each(|_| writer.write(&captured(1), &frame));
        assert!(result.is_err());
    }

    #[test]
    fn a_reader_takes_no_impossible_index_or_length() {
        let (mut writer, mut reader) = pair();
        writer.write(&captured(1), &[0; 8]).unwrap();
        writer.publish();
        let first = word(&writer.memory, 0);
        first.store(first.load(Ordering::Relaxed) | 0xffff, Ordering::Relaxed);
        assert!(reader.read(&mut Vec::new()).is_err(), "longer than what is there");
        writer.memory[TAIL].store(WORDS + 1, Ordering::Relaxed);
        reader.tail = 0;
        assert!(reader.read(&mut Vec::new()).is_err(), "more than the ring holds");
    }

    #[test]
    fn a_ring_of_another_layout_is_refused() {
        let (writers, fds) = create(1).unwrap();
        writers[0].memory[1].store(LAYOUT_HASH ^ 1, Ordering::Relaxed);
        assert!(CaptureReader::open(&fds[0]).is_err());
    }
}
