//! Two dataplane processes between two hosts with ordinary sockets; the test is their control, over the real rings.
//! Needs root: network namespaces, XDP.

use spindle_abi::{
    Command as Order, CommandRecord, Event, KeyMaterial, Limits, MAX_FORMER_AT_ONCE, Mode, PolicyAction,
    RING_SIZE, SaParameters, Selector, SelectorSet, Spi, SpiState, Suite,
};
use spindle_engine::Frame as _;
use spindle_port::{Pool, Port, WorkerPorts, XdpFrame, XdpPort, bind_workers};
use spindle_ring::{AttachmentFds, ControlSide};
use spindle_testbed::{
    Addresses, Capture, DelayBox, Host, InsideNetwork, Link, Marker, Namespace, Side, Topology, leaks, ping,
    tcp_transfer, udp_sweep,
};
use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

const POLICY: u32 = 1;
const PATIENCE: Duration = Duration::from_secs(5);

/// A dataplane process and the control side of its attachment.
struct Gateway {
    child: Child,
    control: ControlSide,
    sequence: u64,
    /// Events other than acknowledgements, as they came.
    events: Vec<Event>,
    started: Instant,
}

impl Gateway {
    fn start(topology: &Topology, side: Side) -> Gateway {
        let namespace = topology.gateway(side);
        // As the supervisor does: the kernel forwards nothing.
        let guard = "add table inet guard; \
                     add chain inet guard forward { type filter hook forward priority 0; policy drop; }";
        assert!(namespace.command("nft").arg(guard).status().unwrap().success());
        let fds = AttachmentFds::create(1).unwrap();
        let mut command = command(namespace, &side.inside_interface(), &side.outside_interface());
        let started = Instant::now();
        let child = fds.give(spindle_ring::Side::Dataplane, &mut command).spawn().unwrap();
        let control = fds.control_side().unwrap();
        let mut gateway = Gateway { child, control, sequence: 0, events: Vec::new(), started };
        gateway.wait_for(|event| (*event == Event::Ready).then_some(()));
        gateway
    }

    /// Sends commands in order and waits until each is acknowledged as done.
    fn order(&mut self, orders: impl IntoIterator<Item = Order>) {
        let mut acknowledged = self.sequence;
        for order in orders {
            self.sequence += 1;
            let record = CommandRecord::encode(self.sequence, &order).unwrap();
            while !self.control.workers[0].commands.push(&record).unwrap() {
                std::thread::sleep(Duration::from_micros(100));
                acknowledged = self.acknowledgements(acknowledged);
            }
        }
        let deadline = Instant::now() + PATIENCE;
        while acknowledged < self.sequence {
            acknowledged = self.acknowledgements(acknowledged);
            assert!(Instant::now() < deadline, "only {acknowledged} of {} acknowledged", self.sequence);
        }
    }

    /// Takes acknowledgements, which come in the commands' order, and says how far they are.
    fn acknowledgements(&mut self, mut last: u64) -> u64 {
        self.collect();
        self.events.retain(|event| match *event {
            Event::Acknowledged { sequence, done } => {
                last += 1;
                assert_eq!((sequence, done), (last, true));
                false
            }
            _ => true,
        });
        last
    }

    fn collect(&mut self) {
        let rings = &mut self.control.workers[0];
        for ring in [&mut rings.urgent, &mut rings.noise] {
            while let Some(record) = ring.pop().unwrap() {
                self.events.push(record.decode().unwrap());
            }
        }
    }

    /// Waits for an event that `choose` picks, and takes it out.
    fn wait_for<T>(&mut self, choose: impl Fn(&Event) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.collect();
            if let Some(at) = self.events.iter().position(|event| choose(event).is_some()) {
                return choose(&self.events.remove(at)).unwrap();
            }
            assert!(Instant::now() < deadline, "no such event; there are {:?}", self.events);
            assert!(self.child.try_wait().unwrap().is_none(), "the dataplane has ended");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    fn counters(&self) -> HashMap<String, u64> {
        self.control.counters.iter().collect()
    }

    /// Every frame that XDP gave to a socket was received by the engine or dropped by the socket, and every frame that
    /// the engine received or made was delivered, dropped or consumed.
    fn assert_balance(&self) {
        std::thread::sleep(Duration::from_millis(150)); // counters are copied each 20 ms
        let counters = self.counters();
        let count = |name: &str| *counters.get(name).unwrap_or_else(|| panic!("no counter {name}"));
        for side in ["inside", "outside"] {
            let given = count(&format!("xdp_{side}_to_socket")) + count(&format!("xdp_{side}_to_background"));
            let received = count(&format!("received_{side}"));
            let lost = count(&format!("socket_{side}_dropped")) + count(&format!("socket_{side}_ring_full"));
            assert_eq!(given, received + lost, "{side}: {counters:?}");
        }
        let came = count("received_inside") + count("received_outside") + count("created");
        let went: u64 = count("delivered_inside")
            + count("delivered_outside")
            + spindle_engine::DropReason::ALL.iter().map(|reason| count(reason.name())).sum::<u64>();
        assert_eq!(count("held"), 0);
        assert_eq!(came, went, "{counters:?}");
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(namespace: &Namespace, inside: &str, outside: &str) -> Command {
    let mut command = namespace.command(env!("CARGO_BIN_EXE_spindle-dataplane"));
    command.args(["--inside", inside, "--outside", outside]);
    command
}

fn network(topology: &Topology, side: Side) -> Selector {
    let network = topology.addresses.inside(side);
    Selector::addresses(network.host(0).into(), network.host(255).into())
}

/// The SPI that a side receives on.
fn spi(side: Side) -> Spi {
    Spi(0x5b1d_0000 + side as u32)
}

/// What one side must be told for a tunnel to the other one.
fn tunnel(topology: &Topology, side: Side, suite: Suite, encapsulated: bool) -> [Order; 3] {
    let other = side.other();
    let port = if encapsulated { 4500 } else { 0 };
    let address = |side| SocketAddr::new(topology.addresses.gateway_outside(side).into(), port);
    let selectors =
        SelectorSet { local: vec![network(topology, side)], remote: vec![network(topology, other)] };
    let sa = |receiver: Side, index| SaParameters {
        spi: spi(receiver),
        index,
        policy: POLICY,
        resource: Default::default(),
        mode: Mode::Tunnel,
        suite,
        keymat: KeyMaterial::new(&vec![0x40 + receiver as u8; suite.keymat_length()]).unwrap(),
        local: address(side),
        remote: address(other),
        encapsulated,
        selectors: selectors.clone(),
        esn: false,
        soft: Limits::default(),
        hard: Limits::default(),
    };
    let action = PolicyAction::Protect;
    [
        Order::SetPolicy { id: POLICY, priority: 1, action, selectors: selectors.clone(), hold: 0 },
        Order::InstallInbound { sa: sa(side, 0), replay_window: 4096, report_first: true },
        Order::InstallOutbound { sa: sa(other, 1) },
    ]
}

fn topology() -> (Topology, DelayBox) {
    let topology = Topology::create(Addresses::default()).expect("these tests need root");
    let delay_box = DelayBox::start(&topology, Link::with_round_trip(Duration::ZERO)).unwrap();
    (topology, delay_box)
}

fn host(topology: &Topology, side: Side) -> Host<'_> {
    Host { namespace: topology.host(side), address: topology.addresses.host(side).into() }
}

/// Ping, UDP of every size and TCP both ways between the hosts; afterwards no leak outside, and balanced counters.
fn carry_everything(suite: Suite, encapsulated: bool, octets: usize) {
    let (topology, _delay_box) = topology();
    let directory = tempfile::tempdir().unwrap();
    let marker = Marker::random();
    let mut a = Gateway::start(&topology, Side::A);
    let mut b = Gateway::start(&topology, Side::B);
    let file = directory.path().join("outside.pcap");
    let capture = Capture::start(topology.delay_box(), "box-a", &file).unwrap();
    a.order(tunnel(&topology, Side::A, suite, encapsulated));
    b.order(tunnel(&topology, Side::B, suite, encapsulated));

    let (host_a, host_b) = (host(&topology, Side::A), host(&topology, Side::B));
    assert_eq!(ping(host_a, host_b.address, 5, 56).unwrap().len(), 5);
    assert_eq!(ping(host_b, host_a.address, 5, 1372).unwrap().len(), 5);
    b.wait_for(|event| (*event == Event::FirstInbound { spi: spi(Side::B) }).then_some(()));
    let (interval, settle) = (Duration::from_micros(200), Duration::from_millis(300));
    for (from, to) in [(host_a, host_b), (host_b, host_a)] {
        let missing = udp_sweep(from, to, marker, 1..=1372, interval, settle).unwrap();
        assert!(missing.is_empty(), "UDP payloads that did not arrive: {missing:?}");
    }
    // The capture must keep up, so it ends before the bulk.
    let frames = capture.stop().unwrap();
    let inside = [Side::A, Side::B].map(|side| InsideNetwork::V4(topology.addresses.inside(side)));
    assert!(frames.len() > 2 * 1372);
    let leaks = leaks(&frames, &inside, marker);
    assert!(leaks.is_empty(), "{} leaks, the first: {}", leaks.len(), leaks[0]);

    for (from, to) in [(host_a, host_b), (host_b, host_a)] {
        let transfer = tcp_transfer(from, to, marker, octets, Duration::from_secs(60)).unwrap();
        assert!(transfer.is_intact());
        assert_eq!(transfer.octets, octets);
        eprintln!("TCP {octets} octets: {:.0} Mb/s", transfer.bits_per_second() / 1e6);
    }

    for (gateway, other) in [(&a, &b), (&b, &a)] {
        gateway.assert_balance();
        let counters = gateway.counters();
        assert!(counters["checksums_completed"] > 0, "{counters:?}");
        assert_eq!(counters["authentication_failed"], 0);
        assert_eq!(counters["decapsulated"], gateway.control.activity.load(0).packets);
        assert!(counters["decapsulated"] <= other.counters()["encapsulated"]);
    }

    // SIGTERM detaches XDP and ends with 0.
    let pid = rustix::process::Pid::from_child(&a.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(a.child.wait().unwrap().success());
    assert!(!topology.gateway(Side::A).ip("link show a-out").unwrap().contains("xdp"));
}

#[test]
fn hosts_reach_each_other_through_aes_gcm_in_plain_esp() {
    carry_everything(Suite::Aes128Gcm, false, 100_000_000);
}

#[test]
fn hosts_reach_each_other_through_chacha20_poly1305_in_udp() {
    carry_everything(Suite::ChaCha20Poly1305, true, 10_000_000);
}

#[test]
fn unknown_spis_come_on_the_noise_ring_and_former_ones_on_the_urgent_ring() {
    let (topology, _delay_box) = topology();
    let mut b = Gateway::start(&topology, Side::B);
    let (former, unknown) = (Spi(0x0f0f_0f0f), Spi(0x1234_5678));
    b.order([Order::SetSpiState { spi: former, state: SpiState::Former }]);
    let source = SocketAddr::from((topology.addresses.gateway_outside(Side::A), 4500));
    let destination = SocketAddr::from((topology.addresses.gateway_outside(Side::B), 4500));
    let sender = topology.gateway(Side::A).enter(|| UdpSocket::bind(source).unwrap()).unwrap();
    for spi in [former, unknown] {
        let mut packet = [0; 60];
        packet[..4].copy_from_slice(&spi.0.to_be_bytes());
        packet[7] = 9;
        sender.send_to(&packet, destination).unwrap();
    }
    let report = b.wait_for(|event| match event {
        Event::FormerSpi(report) => Some(*report),
        _ => None,
    });
    assert_eq!((report.spi, report.sequence), (former, 9));
    assert_eq!((report.source, report.destination), (source, destination));
    let report = b.wait_for(|event| match event {
        Event::UnknownSpi(report) => Some(*report),
        _ => None,
    });
    assert_eq!((report.spi, report.sequence), (unknown, 9));
    b.assert_balance();
    let counters = b.counters();
    assert_eq!((counters["unknown_spi_detected"], counters["former_spi_reported"]), (1, 1));
}

#[test]
fn a_hundred_thousand_former_spis_are_known() {
    let (topology, _delay_box) = topology();
    let mut gateway = Gateway::start(&topology, Side::B);
    let spis: Vec<_> = (1000..101_000).map(|n: u32| Spi(n.wrapping_mul(0x9e37_79b1).max(256))).collect();
    gateway.order(spis.chunks(MAX_FORMER_AT_ONCE).map(|spis| Order::SetFormer { spis: spis.to_vec() }));
    let destination = SocketAddr::from((topology.addresses.gateway_outside(Side::B), 4500));
    let sender = topology.gateway(Side::A).enter(|| UdpSocket::bind("0.0.0.0:4500").unwrap()).unwrap();
    for spi in spis.iter().step_by(9_999) {
        let mut packet = [0; 60];
        packet[..4].copy_from_slice(&spi.0.to_be_bytes());
        sender.send_to(&packet, destination).unwrap();
        gateway.wait_for(|event| match event {
            Event::FormerSpi(report) if report.spi == *spi => Some(()),
            _ => None,
        });
    }
    assert_eq!(gateway.counters()["unknown_spi_detected"], 0);
}

#[test]
fn a_killed_dataplane_leaves_nothing_behind_and_has_a_successor() {
    let (topology, _delay_box) = topology();
    let attached = || topology.gateway(Side::A).ip("link show a-out").unwrap().contains("xdp");
    for _ in 0..3 {
        let mut gateway = Gateway::start(&topology, Side::A);
        eprintln!("start to ready: {:?}", gateway.started.elapsed());
        assert!(attached());
        gateway.child.kill().unwrap();
        gateway.child.wait().unwrap();
    }
    let deadline = Instant::now() + PATIENCE;
    while attached() {
        assert!(Instant::now() < deadline, "XDP is still attached");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_a_link_that_is_down_keeps_lets_the_worker_sleep_and_is_sent_when_it_is_up() {
    let (topology, _delay_box) = topology();
    let namespace = topology.gateway(Side::A);
    let interface = |name: &str| {
        let index = namespace.run(&format!("cat /sys/class/net/{name}/ifindex")).unwrap();
        index.trim().parse::<u32>().unwrap()
    };
    let (inside, outside) = (interface("a-in"), interface("a-out"));
    let mut bound = namespace.enter(|| bind_workers(Some(inside), outside, 1, RING_SIZE)).unwrap().unwrap();
    let WorkerPorts { inside, outside: _outside, mut pool } = bound.remove(0);
    let mut port = inside.unwrap();
    let frames = pool.len();
    let send = |port: &mut XdpPort, pool: &mut Pool<XdpFrame>| {
        let mut frame = XdpPort::fresh(pool, 60).unwrap();
        frame.data_mut().fill(0);
        assert!(port.transmit(frame).is_ok());
        port.flush();
    };
    namespace.ip("link set a-in down").unwrap();
    send(&mut port, &mut pool);
    assert!(port.is_idle());
    namespace.ip("link set a-in up").unwrap();
    send(&mut port, &mut pool);
    let deadline = Instant::now() + PATIENCE;
    while pool.len() < frames {
        assert!(Instant::now() < deadline, "{} of {frames} frames are back", pool.len());
        port.flush();
        port.replenish(&mut pool);
    }
}

#[test]
fn what_cannot_start_says_why_and_exits_with_2() {
    let (topology, _delay_box) = topology();
    let namespace = topology.gateway(Side::A);
    let run = |inside: &str, outside: &str, attached: bool| -> Output {
        let mut command = command(namespace, inside, outside);
        let fds = AttachmentFds::create(1).unwrap();
        if attached {
            fds.give(spindle_ring::Side::Dataplane, &mut command);
        }
        command.output().unwrap()
    };
    for (output, words) in [
        (run("a-in", "a-out", false), "start this process by `spindle up`"),
        (run("a-in", "nowhere", true), "there is no interface nowhere"),
        (run("a-in", "a-in", true), "must be two"),
        (run("lo", "a-out", true), "lo is no Ethernet interface"),
    ] {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(words), "{said}");
    }
}
