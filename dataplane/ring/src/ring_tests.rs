//! Model checks (cfg(loom)) and, without loom, properties of a ring under an honest and a lying other side.

use super::*;

/// A ring of 64-bit records on memory that both ends share.
fn pair(capacity: u64) -> (Producer<u64>, Consumer<u64>, Memory) {
    #[cfg(loom)]
    let memory: Memory =
        loom::sync::Arc::new((0..octets::<u64>(capacity) / 8).map(|_| AtomicU64::new(0)).collect::<Vec<_>>());
    #[cfg(not(loom))]
    let memory: Memory = {
        let octets = octets::<u64>(capacity);
        let fd = crate::memory::create_memfd("test", octets).unwrap();
        std::sync::Arc::new(crate::memory::Mapping::new(fd, octets, true).unwrap())
    };
    let producer = Producer::new(memory.clone(), capacity, None).unwrap();
    let consumer = Consumer::new(memory.clone(), capacity, None).unwrap();
    (producer, consumer, memory)
}

impl Record for u64 {
    const SECRET: bool = true;
}

#[cfg(loom)]
mod model {
    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicBool, Ordering as LoomOrdering};
    use loom::thread;

    #[test]
    fn records_arrive_once_whole_and_in_order_while_slots_are_reused() {
        loom::model(|| {
            let (mut producer, mut consumer, _) = pair(2);
            let writer = thread::spawn(move || {
                for value in 1..=3 {
                    while !producer.push(&value).unwrap() {
                        thread::yield_now();
                    }
                }
            });
            let mut next = 1;
            while next <= 3 {
                match consumer.pop().unwrap() {
                    Some(value) => {
                        assert_eq!(value, next);
                        next += 1;
                    }
                    None => thread::yield_now(),
                }
            }
            writer.join().unwrap();
            assert!(consumer.is_empty().unwrap());
        });
    }

    #[test]
    fn a_batch_shows_nothing_that_is_not_written() {
        loom::model(|| {
            let (mut producer, mut consumer, _) = pair(4);
            let writer = thread::spawn(move || {
                assert!(producer.stage(&7).unwrap() && producer.stage(&8).unwrap());
                producer.publish();
            });
            let mut seen = Vec::new();
            consumer.pop_batch(4, |value| seen.push(value)).unwrap();
            assert!(seen.is_empty() || seen == [7, 8]);
            writer.join().unwrap();
        });
    }

    #[test]
    fn a_consumer_that_announced_its_sleep_is_woken() {
        loom::model(|| {
            let (mut producer, mut consumer, _) = pair(2);
            let rung = Arc::new(AtomicBool::new(false));
            let bell = rung.clone();
            let writer = thread::spawn(move || {
                assert!(producer.stage(&5).unwrap());
                if producer.show() {
                    bell.store(true, LoomOrdering::Relaxed);
                }
            });
            let sleeps = consumer.announce_sleep().unwrap();
            writer.join().unwrap();
            // Whoever sleeps with a record in the ring must have been rung.
            assert!(!sleeps || rung.load(LoomOrdering::Relaxed));
            assert_eq!(consumer.pop().unwrap(), Some(5));
        });
    }
}

#[cfg(not(loom))]
mod properties {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn slots_of_secret_records_are_zero_after_reading() {
        let (mut producer, mut consumer, memory) = pair(4);
        producer.push(&0x5ec2e7).unwrap();
        assert_eq!(memory[HEADER_WORDS].load(Ordering::Relaxed), 0x5ec2e7);
        assert_eq!(consumer.pop().unwrap(), Some(0x5ec2e7));
        assert_eq!(memory[HEADER_WORDS].load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_used_ring_is_not_opened_again() {
        let (mut producer, mut consumer, memory) = pair(4);
        producer.push(&1).unwrap();
        assert!(Producer::<u64>::new(memory.clone(), 4, None).is_none());
        assert_eq!(consumer.pop().unwrap(), Some(1));
        assert!(Consumer::<u64>::new(memory, 4, None).is_none());
    }

    #[test]
    fn two_threads_pass_a_million_records_in_order() {
        let (mut producer, mut consumer, _) = pair(256);
        let writer = std::thread::spawn(move || {
            for value in 0..1_000_000 {
                while !producer.push(&value).unwrap() {
                    std::hint::spin_loop();
                }
            }
        });
        let mut next = 0;
        while next < 1_000_000 {
            consumer
                .pop_batch(64, |value| {
                    assert_eq!(value, next);
                    next += 1;
                })
                .unwrap();
        }
        writer.join().unwrap();
    }

    proptest! {
        #[test]
        fn it_behaves_as_a_bounded_queue(steps in proptest::collection::vec(0u8..10, 0..400)) {
            let (mut producer, mut consumer, _) = pair(8);
            let (mut model, mut staged, mut next) = (std::collections::VecDeque::new(), Vec::new(), 0);
            for step in steps {
                match step {
                    0..5 => {
                        let fits = model.len() + staged.len() < 8;
                        prop_assert_eq!(producer.stage(&next).unwrap(), fits);
                        if fits { staged.push(next) }
                        next += 1;
                    }
                    5..7 => {
                        producer.publish();
                        model.extend(staged.drain(..));
                    }
                    _ => prop_assert_eq!(consumer.pop().unwrap(), model.pop_front()),
                }
            }
        }

        #[test]
        fn an_impossible_index_is_an_error_and_never_a_wild_access(head: u64, tail: u64, pushes in 0u64..20) {
            let (mut producer, mut consumer, memory) = pair(8);
            for value in 0..pushes.min(8) {
                producer.push(&value).unwrap();
            }
            memory[HEAD].store(head, Ordering::Relaxed);
            memory[TAIL].store(tail, Ordering::Relaxed);
            if tail > 8 {
                prop_assert_eq!(consumer.pop(), Err(Broken { ours: 0, theirs: tail }));
            } else {
                prop_assert!(consumer.pop().is_ok());
            }
            memory[HEAD].store(head, Ordering::Relaxed);
            for value in 0..20 {
                if let Err(broken) = producer.stage(&value) {
                    prop_assert_eq!(broken.theirs, head);
                    prop_assert!(head > pushes.min(8));
                }
            }
        }
    }
}
