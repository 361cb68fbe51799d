//! A crash in a storm of unknown SPIs that the port cannot take, and nobody who forges hints, so ESP on former SPIs is all
//! that tells: it does, for former SPIs have a path of their own. Where they have none the same crash goes by unheard.

use spindle_testbed::{Method, Options, Settings, Side, Testbed, absorb_answers, craft, programs, storm};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// As many as may be told at once: the pace of handshakes is not what is tested.
const IKE_SAS: u32 = 100;
/// Of these packets so many may be lost on the way to the port.
const LOST: u64 = 10;
/// On which the worker of gateway B and the storm share the time, so that the port takes only a part.
const CORE: &str = "1";
const PATIENCE: Duration = Duration::from_secs(60);

/// The gateway's programs, but its dataplane leaves unknown SPIs to the socket of all others.
fn one_socket(folder: &Path) -> PathBuf {
    let programs = programs().expect("the gateway's programs");
    std::fs::create_dir(folder).expect("a folder");
    for name in ["spindle", "spindle-control"] {
        let (from, to) = (programs.join(name), folder.join(name));
        std::fs::copy(from, to).expect(name);
    }
    let path = folder.join("spindle-dataplane");
    let real = programs.join("spindle-dataplane");
    let text = format!("#!/bin/sh\nexec '{}' \"$@\" --one-socket\n", real.display());
    std::fs::write(&path, text).expect("a script");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("its mode");
    folder.to_owned()
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// ESP on SPIs that nobody knows, as fast as the kernel makes it.
fn begin_storm(testbed: &Testbed) -> Running {
    let program = programs().expect("programs").join("spindle-storm");
    let mut command = storm(testbed.topology(), Side::B, &program).expect("a storm");
    command.args(["--seconds", "120", "--core", CORE]).stdin(Stdio::null()).stdout(Stdio::null());
    Running(command.spawn().expect("`cargo build --workspace --bins` makes spindle-storm"))
}

fn count(testbed: &Testbed, side: Side, what: &str) -> u64 {
    let status = testbed.gateway(side).json("status").expect("its status");
    status[what].as_u64().unwrap_or_else(|| panic!("{what} in {status}"))
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Gateway B crashes under all its IKE SAs and comes back within the storm; then one packet comes on each of its former SPIs.
/// How many of the IKE SAs A knows to be lost: by tokens, for it asks nobody by itself.
fn found(programs: Option<PathBuf>) -> u64 {
    let settings = Settings {
        idle_connections: IKE_SAS - 1,
        dpd_delay: Duration::from_secs(3600),
        ..Method::QcdJournal.settings()
    };
    let b = Settings {
        // Full as soon as the storm has the core.
        ring_size: Some(64),
        more_gateway: format!("core = {CORE}\npolling = \"busy\""),
        ..settings.clone()
    };
    let options = Options { a: settings, b, programs, ..Options::default() };
    let mut testbed = Testbed::two_gateways(options).expect("a testbed");
    absorb_answers(testbed.topology(), Side::B).expect("nobody to answer to");
    testbed.start(PATIENCE).expect("both gateways");
    testbed.gateway(Side::A).initiate().expect("the first IKE SA");
    wait_until("all IKE SAs", || {
        [Side::A, Side::B].iter().all(|side| count(&testbed, *side, "child_sas") == u64::from(IKE_SAS))
    });
    let list = testbed.gateway(Side::A).json("list-sas").expect("A's IKE SAs");
    let spi = |ike: &serde_json::Value| {
        u32::from_str_radix(ike["children"][0]["spi_o"].as_str().expect("an SPI"), 16).expect("hexadecimal")
    };
    let spis: Vec<u32> = list.as_array().expect("a list").iter().map(spi).collect();
    assert_eq!(spis.len(), IKE_SAS as usize);

    let storm = begin_storm(&testbed);
    std::thread::sleep(Duration::from_millis(500));
    testbed.gateway_mut(Side::B).kill_group().expect("B's death");
    testbed.gateway_mut(Side::B).start().expect("B's next life");
    testbed.gateway_mut(Side::B).wait_ready(PATIENCE).expect("B");

    let addresses = testbed.topology().addresses;
    let [from, to] = [Side::A, Side::B].map(|side| addresses.gateway_outside(side));
    let mac = testbed.topology().hardware_address(Side::B).expect("B's address");
    let frame = move |number: u64| {
        let esp = craft::esp(spis[number as usize % spis.len()], 1_000, &[0x5a; 64]);
        craft::ethernet(mac, [4; 6], 0x0800, &craft::ipv4(from, to, 50, &esp))
    };
    let packets = testbed.flood(Side::B, 50, frame).expect("packets");
    while packets.sent() < u64::from(IKE_SAS) {
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(packets);
    // Whoever is found is found within a round trip.
    std::thread::sleep(Duration::from_secs(2));
    drop(storm);
    let stats = testbed.gateway(Side::B).json("stats").expect("what B counts");
    let detected = stats["dataplane"]["unknown_spi_detected"].as_u64().expect("a count");
    assert!(detected > 10_000, "there was no storm: {detected} packets");
    let events = testbed.gateway(Side::A).events().expect("A's events");
    let found = events.iter().filter(|event| event.event == "proof").count() as u64;
    wait_until("an IKE SA for each that was lost", || count(&testbed, Side::B, "child_sas") >= found);
    found
}

#[test]
fn a_crash_in_a_storm_beyond_the_ports_capacity_is_found_by_esp_alone_and_not_where_its_path_is_shared() {
    let own = found(None);
    let folder = std::env::temp_dir().join(format!("spindle-one-socket-{}", std::process::id()));
    let shared = std::panic::catch_unwind(|| found(Some(one_socket(&folder))));
    drop(std::fs::remove_dir_all(&folder));
    let shared = shared.expect("the same with one socket");
    eprintln!("found {own}, with one socket {shared}");
    let lost = u64::from(IKE_SAS).checked_sub(own).expect("no IKE SA is lost twice");
    assert!(lost <= LOST, "{lost} of {IKE_SAS} were not found");
    assert!(shared + 2 * LOST <= own, "{shared} were found without a path of their own, {own} with it");
}
