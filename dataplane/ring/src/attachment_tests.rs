use super::*;
use spindle_abi::{Command as Order, Event, MAX_SAS, SaActivity, Spi, SpiState, Time};
use std::os::fd::AsFd;

fn order(spi: u32) -> Order {
    Order::SetSpiState { spi: Spi(spi), state: SpiState::Former }
}

#[test]
fn commands_and_events_cross_the_attachment() {
    let fds = AttachmentFds::create(7).unwrap();
    let (mut dataplane, mut control) = (fds.dataplane_side().unwrap(), fds.control_side().unwrap());
    assert_eq!((dataplane.generation, control.generation), (7, 7));

    let records: Vec<_> =
        (0..10).map(|n| CommandRecord::encode(n, &order(256 + n as u32)).unwrap()).collect();
    assert_eq!(control.workers[0].commands.push_batch(&records).unwrap(), 10);
    for n in 0..10 {
        let (sequence, decoded) = dataplane.workers[0].commands.pop().unwrap().unwrap().decode();
        assert_eq!((sequence, decoded.unwrap()), (n, order(256 + n as u32)));
    }
    assert!(dataplane.workers[0].commands.pop().unwrap().is_none());
    assert!(control.workers[0].commands.is_drained());

    assert!(control.announce_sleep().unwrap());
    assert!(!readable(control.bell()));
    assert!(dataplane.workers[0].urgent.push(&EventRecord::encode(&Event::Ready)).unwrap());
    assert!(readable(control.bell()));
    control.awake();
    assert!(!readable(control.bell()));
    assert_eq!(control.workers[0].urgent.pop().unwrap().unwrap().decode(), Ok(Event::Ready));
    // Nobody sleeps: nobody is rung.
    assert!(dataplane.workers[0].noise.push(&EventRecord::encode(&Event::Ready)).unwrap());
    assert!(!readable(control.bell()));
    assert!(!control.announce_sleep().unwrap());
}

#[test]
fn each_worker_has_rings_of_its_own_and_all_wake_control() {
    let fds = AttachmentFds::for_workers(7, 3).unwrap();
    let (mut dataplane, mut control) = (fds.dataplane_side().unwrap(), fds.control_side().unwrap());
    assert_eq!((dataplane.workers.len(), control.workers.len()), (3, 3));
    for (worker, rings) in control.workers.iter_mut().enumerate() {
        let record = CommandRecord::encode(worker as u64, &order(256)).unwrap();
        assert!(rings.commands.push(&record).unwrap());
    }
    assert!(control.announce_sleep().unwrap());
    for (worker, rings) in dataplane.workers.iter_mut().enumerate() {
        assert_eq!(rings.commands.pop().unwrap().unwrap().decode().0, worker as u64);
        assert!(rings.commands.pop().unwrap().is_none());
    }
    assert!(!readable(control.bell()));
    assert!(dataplane.workers[2].urgent.push(&EventRecord::encode(&Event::Ready)).unwrap());
    assert!(readable(control.bell()) && !control.announce_sleep().unwrap());
    control.awake();
    let mut ready = |worker: usize| control.workers[worker].urgent.pop().unwrap().is_some();
    assert_eq!([ready(0), ready(1), ready(2)], [false, false, true]);
    let next = fds.successor(Side::Dataplane).unwrap();
    assert_eq!(next.dataplane_side().unwrap().workers.len(), 3);
}

#[test]
fn a_full_ring_refuses_and_loses_nothing() {
    let fds = AttachmentFds::create(1).unwrap();
    let (mut dataplane, mut control) = (fds.dataplane_side().unwrap(), fds.control_side().unwrap());
    let event = EventRecord::encode(&Event::FirstInbound { spi: Spi(1) });
    for _ in 0..EVENT_SLOTS {
        assert!(dataplane.workers[0].noise.stage(&event).unwrap());
    }
    assert!(!dataplane.workers[0].noise.stage(&event).unwrap());
    dataplane.workers[0].noise.publish();
    let mut count = 0;
    while control.workers[0].noise.pop_batch(1000, |_| count += 1).unwrap() > 0 {}
    assert_eq!(count, EVENT_SLOTS);
    assert!(dataplane.workers[0].noise.stage(&event).unwrap());
}

#[test]
fn activity_and_counters_are_seen_by_control() {
    let fds = AttachmentFds::create(1).unwrap();
    let (mut dataplane, control) = (fds.dataplane_side().unwrap(), fds.control_side().unwrap());
    let activity = SaActivity { packets: 3, bytes: 4000, last: Time(5) };
    dataplane.activity.store(MAX_SAS - 1, activity);
    dataplane.activity.store(MAX_SAS, activity); // out of range: ignored
    assert_eq!(control.activity.load(MAX_SAS - 1), activity);
    assert_eq!(control.activity.load(0), SaActivity::default());
    assert_eq!(control.activity.load(MAX_SAS), SaActivity::default());

    let received = dataplane.counters.define("received_inside").unwrap();
    let long = dataplane.counters.define(&"x".repeat(60)).unwrap();
    dataplane.counters.store(received, 42);
    dataplane.counters.store(long, 43);
    let all: Vec<_> = control.counters.iter().collect();
    assert_eq!(all, [("received_inside".to_string(), 42), ("x".repeat(48), 43)]);
    assert_eq!(control.counters.value("received_inside"), Some(42));
    let another = dataplane.counters.define("received_inside").unwrap();
    dataplane.counters.store(another, 8);
    assert_eq!(control.counters.value("received_inside"), Some(50), "of two workers");
    for _ in 3..crate::MAX_COUNTERS {
        assert!(dataplane.counters.define("more").is_some());
    }
    assert!(dataplane.counters.define("too many").is_none());
}

#[test]
fn control_cannot_write_what_is_the_dataplanes_alone() {
    let fds = AttachmentFds::create(1).unwrap();
    for part in [Part::Sas, Part::Windows, Part::Counters] {
        let fd = fds.fd(Side::Control, Place { part, worker: 0 });
        assert!(Mapping::new(fd.as_fd(), part.octets().unwrap(), true).is_err());
        assert!(Mapping::new(fd.as_fd(), part.octets().unwrap(), false).is_ok());
    }
}

#[test]
fn an_attachment_is_used_once() {
    let fds = AttachmentFds::create(1).unwrap();
    let mut control = fds.control_side().unwrap();
    control.workers[0].commands.push(&CommandRecord::encode(0, &order(256)).unwrap()).unwrap();
    assert!(matches!(fds.control_side(), Err(AttachError::Stale("commands"))));
}

#[test]
fn another_layout_generation_or_size_is_refused() {
    let fds = AttachmentFds::create(1).unwrap();
    let octets = Part::Urgent.octets().unwrap();
    let words =
        Mapping::new(fds.fd(Side::Dataplane, Place { part: Part::Urgent, worker: 0 }).as_fd(), octets, true)
            .unwrap();
    words[1].store(LAYOUT_HASH + 1, Ordering::Relaxed);
    assert!(matches!(fds.control_side(), Err(AttachError::Layout("urgent"))));
    words[1].store(LAYOUT_HASH, Ordering::Relaxed);
    words[2].store(2, Ordering::Relaxed);
    assert!(matches!(fds.dataplane_side(), Err(AttachError::Stale("urgent"))));
    assert!(
        Mapping::new(
            fds.fd(Side::Dataplane, Place { part: Part::Urgent, worker: 0 }).as_fd(),
            octets * 2,
            true
        )
        .is_err()
    );
}

#[test]
fn the_files_cannot_change_their_size() {
    let fds = AttachmentFds::create(1).unwrap();
    let fd = fds.fd(Side::Dataplane, Place { part: Part::Noise, worker: 0 });
    assert!(rustix::fs::ftruncate(fd, 0).is_err());
    assert!(rustix::fs::ftruncate(fd, 1 << 30).is_err());
}

#[test]
fn descriptors_are_named_completely_and_once() {
    let good = "commands:5,urgent:6,noise:7,sas:8,windows:9,counters:10,command-bell:11,event-bell:12";
    assert_eq!(parse(good), Some(vec![5, 6, 7, 8, 9, 10, 11, 12]));
    let two = format!("noise-1:15,{good},commands-1:13,urgent-1:14,command-bell-1:16");
    assert_eq!(parse(&two), Some((5..=16).collect()));
    for bad in [
        "",
        "commands:5",
        "commands:5,urgent:5,noise:7,sas:8,windows:9,counters:10,command-bell:11,event-bell:12",
        "commands:-1,urgent:6,noise:7,sas:8,windows:9,counters:10,command-bell:11,event-bell:12",
        "commands:5,commands:6,noise:7,sas:8,windows:9,counters:10,command-bell:11,event-bell:12",
        "commands:5,urgent:6,noise:7,sas:8,windows:9,counters:10,command-bell:11,event-bell:12,more:12",
        &two.replace("noise-1", "noise-2"),
        &two.replace(",command-bell-1:16", ""),
    ] {
        assert_eq!(parse(bad), None, "{bad}");
    }
}

#[test]
fn a_child_inherits_its_side_and_nothing_else() {
    let fds = AttachmentFds::create(1).unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "echo $SPINDLE_ATTACHMENT; ls -l /proc/self/fd | sed -n 's/.*-> //p'"]);
    let output = fds.give(Side::Control, &mut command).output().unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    assert!(parse(output.lines().next().unwrap()).is_some());
    let memfds = output.lines().filter(|l| l.contains("memfd:spindle-")).count();
    assert_eq!(memfds, 6, "{output}");
}

/// Only where the program starts can its allocator be told.
#[test]
fn the_dataplane_begins_with_huge_pages() {
    let fds = AttachmentFds::create(1).unwrap();
    let (name, value) = spindle_abi::HUGE_PAGES;
    let shown = |side| {
        let mut command = Command::new("sh");
        command.env_remove(name).args(["-c", &format!("echo ${name}")]);
        String::from_utf8(fds.give(side, &mut command).output().unwrap().stdout).unwrap()
    };
    assert_eq!(shown(Side::Dataplane).trim(), value);
    assert_eq!(shown(Side::Control).trim(), "");
}

fn readable(fd: BorrowedFd<'_>) -> bool {
    let mut poll = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut poll, Some(&rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
}
