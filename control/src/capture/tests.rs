//! A capture from a dataplane of which there are only the socket and the rings.

use super::*;
use spindle_abi::Time;
use spindle_ring::capture::{CaptureWriter, create};
use spindle_ring::capture_socket::{Asked, CaptureListener, CaptureServer};
use std::thread::JoinHandle;

fn options(directory: &Path) -> Options {
    Options {
        run_dir: directory.into(),
        out: Some(directory.join("out.pcapng")),
        inside: true,
        outside: true,
        count: None,
        duration: None,
        dropped: false,
        spi: None,
        connection: None,
        snaplen: 4096,
        keys: None,
    }
}

fn captured(at: u64, interface: u16, dropped: Option<u8>) -> Captured {
    Captured { at: Time(at), interface, left: false, dropped, spi: Spi(0), length: 60 }
}

/// A dataplane with two workers that write what `play` says; it ends when the client does, or at once.
fn dataplane(
    directory: &Path,
    play: impl FnOnce(&mut [CaptureWriter]) + Send + 'static,
    stays: bool,
) -> JoinHandle<Wish> {
    let listener = CaptureListener::bind(directory).unwrap();
    let until = |mut done: Box<dyn FnMut() -> bool>| {
        while !done() {
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    std::thread::spawn(move || {
        let server: CaptureServer = loop {
            if let Some((server, _)) = listener.accept().unwrap() {
                break server;
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        let wish = loop {
            match server.asked() {
                Asked::Request(wish) => break wish,
                asked => assert_eq!(asked, Asked::Nothing),
            }
        };
        let interface = |number, raw, name: &str| Interface { number, raw, name: name.into() };
        let interfaces = vec![interface(0, true, "spindle0"), interface(OUTSIDE, false, "eth0")];
        let begun = Begun { interfaces, reasons: vec!["not_ip".into(), "replayed".into()] };
        let (mut writers, rings) = create(2).unwrap();
        server.begun(&begun, &rings).unwrap();
        play(&mut writers);
        writers.iter_mut().for_each(CaptureWriter::publish);
        if stays {
            until(Box::new(move || server.asked() == Asked::End));
        }
        wish
    })
}

/// Times and comments of the packets in a file, in its order, by their blocks.
fn packets(file: &Path) -> Vec<(u64, u32, Vec<u8>)> {
    let octets = std::fs::read(file).unwrap();
    let word = |at: usize| u32::from_le_bytes(octets[at..at + 4].try_into().unwrap());
    let (mut at, mut packets) = (0, Vec::new());
    while at < octets.len() {
        if word(at) == 6 {
            let time = u64::from(word(at + 12)) << 32 | u64::from(word(at + 16));
            let options = at + 28 + (word(at + 20) as usize).next_multiple_of(4);
            packets.push((time, word(at + 8), octets[options..at + word(at + 4) as usize - 4].to_vec()));
        }
        at += word(at + 4) as usize;
    }
    packets
}

fn has(octets: &[u8], text: &str) -> bool {
    octets.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn frames_of_all_workers_come_in_the_order_of_time_with_their_reasons() {
    let directory = tempfile::tempdir().unwrap();
    let play = |writers: &mut [CaptureWriter]| {
        for at in [10, 30, 50] {
            writers[0].write(&captured(at, OUTSIDE, Some(1)), &[1; 60]).unwrap();
        }
        for at in [20, 40] {
            writers[1].write(&Captured { spi: Spi(0x100), ..captured(at, 0, None) }, &[2; 60]).unwrap();
        }
        writers[1].lose(&captured(60, OUTSIDE, None));
    };
    let dataplane = dataplane(directory.path(), play, true);
    let options =
        Options { count: Some(5), dropped: true, spi: Some(Spi(0x100)), ..options(directory.path()) };
    run(&options).unwrap();
    let wish = dataplane.join().unwrap();
    assert_eq!(wish, Wish { snaplen: 4096, sides: [true; 2], dropped: true, spis: Some(vec![0x100]) });
    let packets = packets(options.out.as_ref().unwrap());
    let since: Vec<u64> = packets.iter().map(|(at, ..)| at - packets[0].0).collect();
    assert_eq!(since, [0, 10, 20, 30, 40]);
    for (number, (_, interface, said)) in packets.iter().enumerate() {
        let outside = number % 2 == 0;
        assert_eq!(*interface, u32::from(outside));
        assert!(has(said, if outside { "dropped: replayed" } else { "spi: 00000100" }), "{said:?}");
    }
}

#[test]
fn a_dataplane_that_ends_leaves_what_it_wrote_and_the_capture_has_failed() {
    let directory = tempfile::tempdir().unwrap();
    let play = |writers: &mut [CaptureWriter]| writers[1].write(&captured(1, 0, None), &[3; 60]).unwrap();
    let dataplane = dataplane(directory.path(), play, false);
    let options = options(directory.path());
    let error = run(&options).unwrap_err();
    assert!(error.contains("the dataplane has ended"), "{error}");
    dataplane.join().unwrap();
    assert_eq!(packets(options.out.as_ref().unwrap()).len(), 1);
}

#[test]
fn it_ends_after_its_time() {
    let directory = tempfile::tempdir().unwrap();
    let play = |writers: &mut [CaptureWriter]| writers[0].write(&captured(1, 0, None), &[3; 60]).unwrap();
    let dataplane = dataplane(directory.path(), play, true);
    run(&Options { duration: Some(Duration::from_millis(50)), ..options(directory.path()) }).unwrap();
    dataplane.join().unwrap();
    assert_eq!(packets(&directory.path().join("out.pcapng")).len(), 1);
}

#[test]
fn what_cannot_be_is_said_with_its_cause() {
    let directory = tempfile::tempdir().unwrap();
    let error = run(&options(directory.path())).unwrap_err();
    assert!(error.contains("no gateway runs there"), "{error}");
    assert!(!directory.path().join("out.pcapng").exists());
    let _listener = CaptureListener::bind(directory.path()).unwrap();
    std::fs::write(directory.path().join("out.pcapng"), "precious").unwrap();
    let error = run(&options(directory.path())).unwrap_err();
    assert!(error.contains("is there already"), "{error}");
}
