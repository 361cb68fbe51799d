//! The testbed without gateways: the kernels of both gateways' namespaces forward cleartext. So the captures and the
//! leak check must see it all, and nothing may be left behind.

use spindle_testbed::*;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn testbed() -> Testbed {
    Testbed::two_gateways(Options::default()).expect("root and network namespaces")
}

#[test]
fn the_leak_check_sees_what_the_kernel_forwards_in_clear() {
    let mut testbed = testbed();
    let count = testbed.ping(Side::A, 3).expect("ping runs").len();
    assert_eq!(count, 3);
    let stream = testbed.stream(Side::A, Duration::from_millis(5)).expect("sockets");
    std::thread::sleep(Duration::from_millis(300));
    let log = stream.stop(Duration::from_millis(50));
    assert_eq!(log.lost(), 0);
    let wires = testbed.finish().expect("whole captures");
    let found = testbed.leaks(&wires);
    let markers = found.iter().filter(|leak| leak.place == Place::Marker).count();
    assert_eq!(markers, 2 * log.sent.len(), "each packet on both wires");
    let headers = found.iter().filter(|leak| leak.place == Place::IpHeader).count();
    // Each frame leaks its source and its destination; six frames of ping and those of the stream, on both wires.
    assert_eq!(headers, 2 * 2 * (6 + log.sent.len()));
}

#[test]
fn captures_hold_every_frame_of_a_large_transfer_in_both_directions() {
    let mut testbed = testbed();
    let transfer = testbed.tcp_transfer(Side::B, 20_000_000, Duration::from_secs(10)).expect("TCP connects");
    assert!(transfer.is_intact());
    let wires = testbed.finish().expect("whole captures");
    let octets = |frames: &[Frame]| frames.iter().map(|frame| frame.octets.len()).sum::<usize>();
    assert!(octets(&wires.a) > 20_000_000 && octets(&wires.b) > 20_000_000);
    // The box adds and loses nothing, so both wires carried the same frames.
    let sorted = |frames: &[Frame]| {
        let mut frames: Vec<Vec<u8>> = frames.iter().map(|frame| frame.octets.clone()).collect();
        frames.retain(|frame| frame.get(12..14) == Some(&[8, 0]));
        frames.sort_unstable();
        frames
    };
    assert!(sorted(&wires.a) == sorted(&wires.b));
}

#[test]
fn an_injected_frame_reaches_the_gateway_and_its_capture() {
    let mut testbed = testbed();
    let addresses = testbed.topology().addresses;
    let (from, to) = (addresses.gateway_outside(Side::A), addresses.gateway_outside(Side::B));
    // To all stations, since the gateway's hardware address is not known here.
    let echo = craft::ipv4(from, to, 1, &craft::icmp(8, 0, 7 << 16, b"hello"));
    let frame = craft::ethernet([0xff; 6], [2, 0, 0, 0, 0, 1], 0x0800, &echo);
    testbed.inject(Side::B, &frame).expect("the kernel sends it");
    std::thread::sleep(Duration::from_millis(100));
    let wires = testbed.finish().expect("whole captures");
    assert!(wires.b.iter().any(|captured| captured.octets == frame));
    assert!(!wires.a.iter().any(|captured| captured.octets == frame));
}

#[test]
fn two_testbeds_run_side_by_side() {
    let (first, second) = (testbed(), testbed());
    for testbed in [&first, &second] {
        assert_eq!(testbed.ping(Side::B, 1).expect("ping runs").len(), 1);
    }
}

/// Not a test of its own: the process that the next test interrupts.
#[test]
fn stays_until_it_is_interrupted() {
    if std::env::var_os("SPINDLE_TESTBED_STAY").is_some() {
        let _testbed = testbed();
        std::thread::sleep(Duration::from_secs(60));
        panic!("nobody interrupted it");
    }
}

#[test]
fn an_interrupted_testbed_leaves_nothing_behind_and_a_killed_one_goes_at_the_next_start() {
    let names = |pid: u32| -> Vec<String> {
        ["/run/netns".into(), std::env::temp_dir()]
            .iter()
            .flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten().flatten())
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.starts_with(&format!("{PREFIX}-{pid}-")))
            .collect()
    };
    let wait = |pid: u32, wanted: usize| {
        let deadline = Instant::now() + Duration::from_secs(20);
        while names(pid).len() != wanted {
            assert!(Instant::now() < deadline, "{:?}", names(pid));
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    for signal in ["INT", "TERM", "KILL"] {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "stays_until_it_is_interrupted"])
            .env("SPINDLE_TESTBED_STAY", "1")
            .stdout(Stdio::null())
            .spawn()
            .expect("this program starts");
        let pid = child.id();
        wait(pid, 6);
        let status = Command::new("kill").args(["-s", signal, &pid.to_string()]).status().expect("kill runs");
        assert!(status.success());
        assert!(!child.wait().expect("it ends").success());
        if signal != "KILL" {
            assert_eq!(names(pid), [""; 0], "after SIG{signal}");
        } else {
            // Its remains go when another process prepares.
            let mut next = Command::new(std::env::current_exe().expect("this program"))
                .args(["--exact", "stays_until_it_is_interrupted"])
                .env("SPINDLE_TESTBED_STAY", "1")
                .stdout(Stdio::null())
                .spawn()
                .expect("this program starts");
            wait(next.id(), 6);
            wait(pid, 0);
            let status = Command::new("kill").arg(next.id().to_string()).status().expect("kill runs");
            assert!(status.success());
            drop(next.wait());
        }
    }
}

#[test]
fn whoever_of_a_pair_is_given_the_shared_addresses_is_on_the_way() {
    for member in Member::BOTH {
        let options = Options { layout: Layout::Pair, ..Options::default() };
        let mut testbed = Testbed::two_gateways(options).expect("root and network namespaces");
        testbed.topology().give_shared_addresses(member).expect("the addresses are free");
        assert_eq!(testbed.ping(Side::A, 3).expect("ping runs").len(), 3, "{member:?}");
        let wires = testbed.finish().expect("whole captures");
        let mac = testbed.topology().member_hardware_address(member).expect("it has one");
        let inside = testbed.topology().addresses.inside_b;
        let clear = wires.b.iter().filter(|frame| frame.octets.get(12..14) == Some(&[8, 0]));
        let source = |octets: &[u8]| octets[26..30].try_into().map(std::net::Ipv4Addr::from_octets);
        let answers = clear.filter(|frame| source(&frame.octets).is_ok_and(|from| inside.contains(from)));
        let macs: Vec<&[u8]> = answers.map(|frame| &frame.octets[6..12]).collect();
        assert_eq!(macs, [&mac[..]; 3], "{member:?}");
    }
}
