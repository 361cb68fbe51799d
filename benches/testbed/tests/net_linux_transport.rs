//! Transport mode with a Linux kernel: gateway B is Spindle, in A's place a machine in qemu whose kernel does ESP, with
//! strongSwan for IKE. What each sends to the other one's own address is in ESP behind its own IP header.

mod gateways;

use gateways::*;
use sha2::{Digest, Sha256};
use spindle_testbed::strongswan::Peer;
use spindle_testbed::{Frame, Host, LinuxPeer, Options, Settings, Side, Testbed, ping};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

const PORT: u16 = 7777;
/// Octets each way.
const TCP: usize = 300_000;

/// Both ends' own addresses are the selectors.
fn pair(encapsulated: bool) -> (Testbed, LinuxPeer) {
    let more_connection = format!("encap = {encapsulated}");
    let settings = Settings { more_connection, ..quiet() };
    let options = Options { b: settings.clone(), ..Options::default() };
    let mut testbed = Testbed::two_gateways(options).expect("a testbed");
    let addresses = testbed.topology().addresses;
    let [linux_address, own] = [Side::A, Side::B].map(|side| addresses.outer(side).to_string());

    let directory = testbed.directory().join("linux");
    let mut linux = LinuxPeer::start(testbed.topology(), Side::A, &directory).expect("a Linux peer");
    linux.equip(&addresses, Side::A).expect("addresses");
    let of_peer = Peer::of(&addresses, Side::A, &settings);
    let (local_ts, remote_ts) = (linux_address.clone(), own.clone());
    let connection = Peer { encap: encapsulated, local_ts, remote_ts, ..of_peer }.connection();
    let connection =
        connection.replace("        esp_proposals", "        mode = transport\n        esp_proposals");
    assert!(connection.contains("mode = transport"));
    linux.start_charon(&connection).expect("charon");

    use_transport_mode(&testbed, Side::B, addresses.outer(Side::A));
    let spindle = testbed.gateway_mut(Side::B);
    spindle.start().expect("spindle up");
    spindle.wait_ready(READY).expect("ready");
    (testbed, linux)
}

/// The machine's one SA each way, as its kernel says.
fn states(linux: &mut LinuxPeer, encapsulated: bool) -> usize {
    let text = linux.run("ip xfrm state").expect("ip xfrm state");
    let states: Vec<&str> = text.split("src ").filter(|state| state.contains("proto esp")).collect();
    for state in &states {
        assert!(state.contains("mode transport"), "{state}");
        assert_eq!(state.contains("encap type espinudp"), encapsulated, "{state}");
    }
    states.len()
}

/// Echoes from either end; and TCP, in which the machine sends a file and keeps what comes.
fn traffic_passes(testbed: &Testbed, linux: &mut LinuxPeer) {
    let addresses = testbed.topology().addresses;
    let [linux_address, own] = [Side::A, Side::B].map(|side| addresses.outer(side));
    let end = Host { namespace: testbed.topology().gateway(Side::B), address: own };
    assert_eq!(ping(end, linux_address, 5, 56).expect("ping").len(), 5);
    // Beyond the path's MTU: fragments of ESP, which either side reassembles.
    assert_eq!(ping(end, linux_address, 3, 2500).expect("ping").len(), 3);
    let text = linux.run(&format!("ping -c 5 -w 10 {own}")).expect("the machine pings");
    assert!(text.contains("5 packets received"), "{text}");

    let serve = format!(
        "head -c {TCP} /dev/urandom >/run/sent; rm -f /run/received; \
         nc -l -p {PORT} </run/sent >/run/received & \
         i=0; until netstat -ltn | grep -q :{PORT} || [ $i = 100 ]; do sleep 0.1; i=$((i+1)); done; \
         sha256sum </run/sent"
    );
    let theirs = linux.run(&serve).expect("the machine serves");
    let (sent, received) = end
        .namespace
        .enter(|| -> std::io::Result<_> {
            let to = SocketAddr::from((linux_address, PORT));
            let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(10))?;
            stream.set_read_timeout(Some(Duration::from_secs(60)))?;
            let sent: Vec<u8> = (0..TCP).map(|n| (n * 7 + n / 251) as u8).collect();
            let mut reader = stream.try_clone()?;
            let reading = std::thread::spawn(move || {
                let mut received = Vec::new();
                reader.read_to_end(&mut received).map(|_| received)
            });
            stream.write_all(&sent)?;
            stream.shutdown(Shutdown::Write)?;
            let received = reading.join().map_err(|_| std::io::Error::other("the reader panicked"))??;
            Ok((sent, received))
        })
        .expect("a namespace")
        .expect("TCP");
    assert_eq!(received.len(), TCP);
    assert!(theirs.starts_with(&sha256(&received)), "{theirs}");
    let ours = sha256(&sent);
    // The end of a job that the machine's shell has begun would interrupt it as it reads the next line.
    std::thread::sleep(Duration::from_secs(2));
    let kept = linux.run("sha256sum </run/received").expect("what the machine received");
    assert!(kept.starts_with(&ours), "{kept} for {ours}");
}

/// As the machine's `sha256sum` writes it.
fn sha256(octets: &[u8]) -> String {
    Sha256::digest(octets).iter().map(|octet| format!("{octet:02x}")).collect()
}

/// Nothing but ESP and IKE was on the wire between the two.
fn only_esp_and_ike(frames: &[Frame], encapsulated: bool) {
    let mut esp = 0;
    for octets in
        frames.iter().map(|frame| &frame.octets).filter(|octets| octets.get(12..14) == Some(&[8, 0]))
    {
        let fragment = u16::from_be_bytes([octets[20], octets[21]]) & 0x1fff;
        match octets[23] {
            50 if !encapsulated => esp += 1,
            17 if fragment == 0 => {
                let port = u16::from_be_bytes([octets[36], octets[37]]);
                assert!([500, 4500].contains(&port), "{octets:02x?}");
                esp += usize::from(encapsulated && octets[42..46] != [0; 4]);
            }
            17 if encapsulated => {}
            other => panic!("protocol {other}: {octets:02x?}"),
        }
    }
    assert!(esp > 400, "{esp} packets of ESP");
}

fn play(encapsulated: bool) {
    let (mut testbed, mut linux) = pair(encapsulated);
    linux.swanctl("--initiate --child net --timeout 20").expect("charon initiates");
    assert_eq!(states(&mut linux, encapsulated), 2);
    traffic_passes(&testbed, &mut linux);
    linux.swanctl("--rekey --child net").expect("charon rekeys");
    within(&testbed, "the old SAs gone", || states(&mut linux, encapsulated) == 2);
    testbed.gateway(Side::B).spindle("rekey --child ab/net").expect("Spindle rekeys");
    std::thread::sleep(Duration::from_secs(2));
    within(&testbed, "the old SAs gone", || states(&mut linux, encapsulated) == 2);
    traffic_passes(&testbed, &mut linux);
    let list = testbed.gateway(Side::B).json("list-sas").expect("list-sas");
    let child = &list[0]["children"][0];
    assert_eq!((&child["mode"], &child["encapsulated"]), (&"transport".into(), &encapsulated.into()));
    let drops = linux.xfrm_drops().expect("counters");
    assert!(drops.is_empty(), "{drops:?}");
    let wires = nothing_leaked(&mut testbed);
    only_esp_and_ike(&wires.b, encapsulated);
}

/// RFC 4303 section 3.1.1.
#[test]
#[ignore = "needs a Linux peer: scripts/test --interop"]
fn a_linux_kernel_and_spindle_talk_in_transport_mode() {
    play(false);
}

/// RFC 3948 section 2.1.
#[test]
#[ignore = "needs a Linux peer: scripts/test --interop"]
fn so_they_do_in_udp() {
    play(true);
}
