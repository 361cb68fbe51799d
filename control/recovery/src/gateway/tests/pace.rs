//! How many handshakes begin, and when: the pace after crashes and at a start.

use super::*;

/// Where more peers ask than handshakes can be taken, their tokens leave at that pace and in the order of their
/// traffic; a peer that is not asking is told unasked when all who ask have been.
#[test]
fn a_herd_is_told_in_the_order_of_its_traffic_at_the_pace_of_handshakes() {
    let names: Vec<String> = (0..40).map(|n| format!("c{n}")).collect();
    let limits = crate::api::Limits { handshakes_total: 10, ..Default::default() };
    let connections = (0..).zip(&names).map(|(n, name)| {
        let mut connection = connection(name, Some(&format!("192.0.2.{}", 100 + n)));
        connection.children[0].policy = n;
        connection
    });
    let config =
        Config { connections: connections.map(Into::into).collect(), limits, proactive: true, ..config() };
    let records = (0..).zip(&names).map(|(n, name)| JournalRecord {
        connection: name.clone(),
        remote: socket(&format!("192.0.2.{}:500", 100 + n)),
        ..record(0x1000 + n, pair(n as u8 + 1))
    });
    let mut gateway = gateway(config, records.collect());
    gateway.handle(NOW, Input::Event(Event::Ready));
    // In an order of its own, every other one, several times.
    let order: Vec<u32> = (0..40).map(|n| n * 7 % 40).filter(|n| n % 2 == 0).collect();
    let mut told: Vec<u32> = Vec::new();
    let mut collect = |gateway: &mut Gateway| {
        for output in all(gateway) {
            match output {
                Output::Transmit(datagram) => {
                    let std::net::IpAddr::V4(to) = datagram.remote.ip() else { panic!("{datagram:?}") };
                    told.push(u32::from(to.octets()[3]) - 100);
                }
                Output::Command { sequence, .. } if !gateway.ready => acknowledge(gateway, sequence, true),
                _ => {}
            }
        }
        told.len()
    };
    for _ in 0..3 {
        for n in &order {
            let source = socket(&format!("192.0.2.{}:0", 100 + n));
            let report = SpiReport { source, ..esp(0x1000 + n) };
            gateway.handle(NOW, Input::Event(Event::FormerSpi(report)));
        }
    }
    assert_eq!(collect(&mut gateway), 10, "as many at once as in a second");
    assert_eq!(stat(&gateway, "former-spi-waits-for-its-turn"), 10);
    let mut now = NOW;
    while let Some(next) = gateway.deadline().filter(|next| *next <= NOW.after(Duration::from_secs(10))) {
        assert!(next > now, "the deadline stands still");
        now = next;
        gateway.tick(now);
        collect(&mut gateway);
    }
    assert_eq!(told[..20], order);
    assert_eq!(told.len(), 40, "each once");
    assert_eq!(stat(&gateway, "tokens-sent-unasked"), 20);
    assert!(now >= NOW.after(Duration::from_millis(2900)), "thirty at ten a second after the first ten");
}

/// After several crashes in a day the journal names IKE SAs that nobody has any more.
#[test]
fn unasked_those_of_the_last_incarnation_are_told_first() {
    let (mut config, mut records) = herd(20);
    config.proactive = true;
    config.limits.handshakes_total = 20;
    let of = |n: u64| [1, 3, 2][n as usize % 3];
    (0..).zip(&mut records).for_each(|(n, record)| record.incarnation = of(n));
    let remotes: Vec<SocketAddr> = records.iter().map(|record| record.remote).collect();
    let mut gateway = Gateway::new(
        config,
        Boot { incarnation: 4, ..boot(records) },
        Box::new(Idle),
        Box::new(Counting(0)),
        NOW,
    );
    let boot = commands(&all(&mut gateway));
    gateway.handle(NOW, Input::Event(Event::Ready));
    boot.iter().for_each(|(sequence, _)| acknowledge(&mut gateway, *sequence, true));
    let outputs = all_due(&mut gateway, NOW);
    let told = outputs.iter().filter_map(|output| match output {
        Output::Transmit(datagram) => remotes.iter().position(|remote| *remote == datagram.remote),
        _ => None,
    });
    let incarnations: Vec<u64> = told.map(|n| of(n as u64)).collect();
    assert_eq!(incarnations, [[3; 7].as_slice(), &[2; 6], &[1; 7]].concat());
}

/// Connections `c0` … with peers at 192.0.2.100 …, a record of each in the journal, and ten handshakes a second.
fn herd(many: u32) -> (Config, Vec<JournalRecord>) {
    let remote = |n: u32| format!("192.0.2.{}", 100 + n);
    let limits = crate::api::Limits { handshakes_total: 10, ..Default::default() };
    let connections = (0..many).map(|n| {
        let mut connection = connection(&format!("c{n}"), Some(&remote(n)));
        connection.children[0].policy = n;
        connection
    });
    let config = Config { connections: connections.map(Into::into).collect(), limits, ..config() };
    let records = (0..many).map(|n| JournalRecord {
        connection: format!("c{n}"),
        remote: socket(&(remote(n) + ":500")),
        ..record(0x1000 + n, pair(n as u8 + 1))
    });
    (config, records.collect())
}

fn ask(gateway: &mut Gateway, now: Time, spis: IkeSpis, remote: SocketAddr) -> usize {
    let (header, local) = (request(spis), socket(LOCAL));
    gateway.unmatched(now, Unmatched::ProtectedRequest { header, local, remote, tombstone: false });
    gateway.drain(now);
    sent(&all(gateway)).len()
}

fn back(gateway: &mut Gateway, now: Time, n: u32, connection: &str) {
    let spi = (1 << 32 | u64::from(n)).to_be_bytes();
    let (ike, spis) = (IkeSaId(1000 + u64::from(n)), IkeSpis { initiator: spi, responder: [9; 8] });
    gateway.reported(
        now,
        spindle_ike::api::Report::IkeEstablished {
            ike,
            spis,
            connection: connection.into(),
            initiator: false,
            resumed: false,
        },
    );
    all(gateway);
}

/// A peer whose request met the pace's silence need not wait for its own retransmission: the journal says where it is.
/// One that was told is told again at once, for its token may be lost; that costs the others nothing.
#[test]
fn who_asks_beyond_the_pace_is_told_once_when_its_turn_comes() {
    let (config, records) = herd(40);
    let remotes: Vec<SocketAddr> = records.iter().map(|record| record.remote).collect();
    let mut gateway = gateway(config, records);
    all(&mut gateway);
    let mut answered = 0;
    for _ in 0..3 {
        for (n, remote) in (1..).zip(&remotes) {
            answered += ask(&mut gateway, NOW, pair(n), *remote);
        }
    }
    assert_eq!(answered, 30, "as many at once as in a second, three times");
    assert_eq!(stat(&gateway, "requests-over-handshakes"), 90);
    back(&mut gateway, NOW, 0, "c20");
    let (mut now, mut told) = (NOW, Vec::new());
    while let Some(next) = gateway.deadline().filter(|next| *next <= NOW.after(Duration::from_secs(9))) {
        assert!(next > now, "the deadline stands still");
        now = next;
        gateway.tick(now);
        told.extend(all(&mut gateway).into_iter().filter_map(|output| match output {
            Output::Transmit(datagram) => Some(datagram.remote),
            _ => None,
        }));
    }
    let waited: Vec<SocketAddr> = remotes[10..].iter().filter(|r| **r != remotes[20]).copied().collect();
    assert_eq!(told, waited, "in the order in which they asked, but for the one that is back");
    assert!(now >= NOW.after(Duration::from_millis(2800)), "{:?}: ten a second", now.since(NOW));
}

/// What comes just as another handshake can be taken is not before those that wait for it; but ESP is before requests,
/// of which a peer that lost many IKE SAs sends one for each.
#[test]
fn requests_and_esp_wait_in_one_line_and_esp_comes_first() {
    let (config, records) = herd(30);
    let remotes: Vec<SocketAddr> = records.iter().map(|record| record.remote).collect();
    let mut gateway = gateway(config, records);
    all(&mut gateway);
    let by_esp = |gateway: &mut Gateway, now, n: u32| {
        let source = SocketAddr::new(remotes[n as usize].ip(), 0);
        gateway.handle(now, Input::Event(Event::FormerSpi(SpiReport { source, ..esp(0x1000 + n) })));
    };
    (0..12).for_each(|n| by_esp(&mut gateway, NOW, n));
    assert_eq!(sent(&all(&mut gateway)).len(), 10);
    let now = NOW.after(Duration::from_millis(100));
    for n in 20..24u8 {
        let header = request(pair(n + 1));
        let (local, remote) = (socket(LOCAL), remotes[usize::from(n)]);
        gateway.unmatched(now, Unmatched::ProtectedRequest { header, local, remote, tombstone: false });
        gateway.drain(now);
    }
    by_esp(&mut gateway, now, 25);
    by_esp(&mut gateway, now, 22);
    let mut told = Vec::new();
    for outputs in [all(&mut gateway), all_due(&mut gateway, now.after(Duration::from_secs(1)))] {
        told.extend(outputs.into_iter().filter_map(|output| match output {
            Output::Transmit(datagram) => Some(datagram.remote),
            _ => None,
        }));
    }
    assert_eq!(told, [10, 11, 25, 22, 20, 21, 23].map(|n| remotes[n]));
}

/// A token leaves from the address alone that serves the connection. Whoever sends what he saw to another one of ours takes
/// nothing from the peer by that: neither its turn, nor the answer to its next packet.
#[test]
fn what_comes_to_another_address_of_ours_keeps_no_token_from_the_peer() {
    let (mut config, records) = herd(12);
    let mut elsewhere = connection("elsewhere", Some("203.0.113.9"));
    elsewhere.local = socket("192.0.2.99:0").ip();
    elsewhere.children[0].policy = 99;
    config.connections.push(elsewhere.into());
    let remotes: Vec<SocketAddr> = records.iter().map(|record| record.remote).collect();
    let mut gateway = gateway(config, records);
    all(&mut gateway);
    let esp = |gateway: &mut Gateway, n: usize, destination: &str| {
        let (source, destination) = (SocketAddr::new(remotes[n].ip(), 0), socket(destination));
        let report = SpiReport { source, destination, ..esp(0x1000 + n as u32) };
        gateway.handle(NOW, Input::Event(Event::FormerSpi(report)));
        sent(&all(gateway)).iter().map(|message| message.len()).collect::<Vec<_>>()
    };
    let (plain, with_token) = (28 + 12, 28 + 12 + 40);
    assert_eq!(esp(&mut gateway, 0, "192.0.2.99:0"), [plain], "as on an unknown SPI");
    assert_eq!(esp(&mut gateway, 0, "192.0.2.1:0"), [with_token]);
    (1..10).for_each(|n| assert_eq!(esp(&mut gateway, n, "192.0.2.1:0"), [with_token]));
    // No other handshake can be taken.
    assert_eq!(esp(&mut gateway, 10, "192.0.2.1:0"), [0; 0]);
    assert_eq!(esp(&mut gateway, 10, "192.0.2.99:0"), [plain]);
    for header in [request(pair(11)), request(pair(12))] {
        let (local, remote) = (socket("192.0.2.99:500"), remotes[11]);
        gateway.unmatched(NOW, Unmatched::ProtectedRequest { header, local, remote, tombstone: false });
    }
    assert_eq!(esp(&mut gateway, 11, "192.0.2.1:0"), [0; 0]);
    let outputs = all_due(&mut gateway, NOW.after(Duration::from_millis(200)));
    let told: Vec<_> = sent(&outputs).iter().map(|message| message.len()).collect();
    assert_eq!(told, [with_token; 2]);
    assert_eq!(stat(&gateway, "token-withheld-address"), 2);
}

/// Requests without a record may be anybody's: they cost the pace nothing, so that no flooder starves a peer. The
/// handshake of a peer that comes back does, once.
#[test]
fn a_request_without_a_record_takes_from_the_pace_when_its_peer_is_back_and_not_before() {
    let (config, _) = herd(40);
    let mut gateway = gateway(config, Vec::new());
    all(&mut gateway);
    for n in 0..1000u32 {
        let spis = IkeSpis { initiator: u64::from(n + 1).to_be_bytes(), responder: [9; 8] };
        assert_eq!(ask(&mut gateway, NOW, spis, SocketAddr::from(((n << 8).to_be_bytes(), 500))), 1);
    }
    for n in 0..10 {
        assert_eq!(ask(&mut gateway, NOW, pair(1), socket("192.0.2.150:500")), 1, "{n} are back");
        back(&mut gateway, NOW, n, &format!("c{n}"));
        // Another one of the same peer is its own affair.
        back(&mut gateway, NOW, 100 + n, &format!("c{n}"));
    }
    let later = NOW.after(Duration::from_millis(99));
    assert_eq!(ask(&mut gateway, later, pair(1), socket("192.0.2.151:500")), 0);
    assert_eq!(stat(&gateway, "requests-over-handshakes"), 1);
    assert_eq!(ask(&mut gateway, NOW.after(Duration::from_millis(100)), pair(1), socket(REMOTE)), 1);
    // Very many at once hold recovery back for some seconds, not for as long as they would have taken.
    for n in 10..40 {
        back(&mut gateway, NOW, n, &format!("c{n}"));
    }
    assert_eq!(gateway.pace.room_at(), NOW.after(Duration::from_millis(3100)));
    for n in 0..1000 {
        back(&mut gateway, NOW, n, &format!("unknown{n}"));
    }
    assert_eq!(gateway.pace.room_at(), NOW.after(Duration::from_secs(10)));
}

#[test]
fn the_pace_follows_what_ends_and_how_busy_the_driver_was() {
    let (config, records) = herd(40);
    let mut gateway = gateway(config, records);
    all(&mut gateway);
    let told = |gateway: &mut Gateway, now| {
        let report =
            |n: u32| SpiReport { source: socket(&format!("192.0.2.{}:0", 100 + n)), ..esp(0x1000 + n) };
        (0..40).for_each(|n| gateway.handle(now, Input::Event(Event::FormerSpi(report(n)))));
        sent(&all(gateway)).len()
    };
    gateway.worked(NOW, Duration::from_secs(7));
    assert_eq!((told(&mut gateway, NOW), stat(&gateway, "handshakes-pace")), (10, 10));
    (0..10).for_each(|n| back(&mut gateway, NOW, n, &format!("c{n}")));
    // Ten within a tenth of a second, hardly busy: twice as fast from now on, and those already told count for less.
    let now = NOW.after(Duration::from_millis(100));
    gateway.worked(now, Duration::from_millis(7001));
    assert_eq!(stat(&gateway, "handshakes-pace"), 200);
    let now = now.after(Duration::from_millis(25));
    gateway.tick(now);
    let after = sent(&all(&mut gateway)).len();
    assert!((5..=10).contains(&after), "{after} more are told");
    // Busy with something else.
    let now = now.after(Duration::from_millis(100));
    gateway.worked(now, Duration::from_millis(7101));
    assert_eq!(stat(&gateway, "handshakes-pace"), 10);
}

/// A peer without a record asks only once it is told INVALID_SPI: at the pace of handshakes, where that is more than
/// `invalid_spi_total`.
#[test]
fn unknown_spis_are_told_as_fast_as_handshakes_are_taken() {
    let (mut config, _) = herd(40);
    config.limits.invalid_spi_total = 5;
    let mut gateway = gateway(config, Vec::new());
    all(&mut gateway);
    // Each of ten peers once, one each 5 ms.
    let told = |gateway: &mut Gateway, first: u32, from: Time| {
        for n in first..first + 10 {
            let now = from.after(Duration::from_millis(u64::from(5 * (n - first))));
            let source = socket(&format!("192.0.2.{}:0", 100 + n));
            gateway.handle(now, Input::Event(Event::UnknownSpi(SpiReport { source, ..esp(0x1000 + n) })));
        }
        sent(&all(gateway)).len()
    };
    gateway.worked(NOW, Duration::from_secs(7));
    assert_eq!(told(&mut gateway, 0, NOW), 5);
    (0..10).for_each(|n| back(&mut gateway, NOW, n, &format!("c{n}")));
    let now = NOW.after(Duration::from_millis(100));
    gateway.worked(now, Duration::from_millis(7001));
    assert_eq!(stat(&gateway, "handshakes-pace"), 200);
    assert_eq!(told(&mut gateway, 10, now), 10);
}

/// The kernel keeps somewhat more than a hundred datagrams for a next hop whose address it does not know yet.
#[test]
fn no_more_than_a_hundred_handshakes_begin_at_once_after_a_start() {
    let connections = (0..150).map(|n| {
        let mut connection = connection(&format!("c{n}"), Some("192.0.2.2"));
        connection.children[0].policy = n;
        connection
    });
    let methods = vec![Method::InitialContact, Method::Liveness];
    let config = Config { connections: connections.map(Into::into).collect(), methods, ..config() };
    let records = (0..150).map(|n| {
        let spis = IkeSpis { initiator: u64::from(n + 1).to_be_bytes(), responder: [9; 8] };
        JournalRecord { connection: format!("c{n}"), ..record(0x1000 + n, spis) }
    });
    let mut gateway = gateway(config, records.collect());
    let boot = commands(&all(&mut gateway));
    gateway.handle(NOW, Input::Event(Event::Ready));
    boot.iter().for_each(|(sequence, _)| acknowledge(&mut gateway, *sequence, true));
    assert_eq!(sent(&all_due(&mut gateway, NOW)).len(), 100);
    let later = NOW.after(Duration::from_millis(100));
    assert_eq!(sent(&all_due(&mut gateway, later)).len(), 20, "two hundred a second");
}

/// Else the handshake that began first would wait for the key exchanges of all that may begin with it.
#[test]
fn what_answers_leaves_before_all_handshakes_are_begun_that_may_be() {
    let (mut config, records) = herd(40);
    config.methods = vec![Method::InitialContact, Method::Qcd, Method::Liveness];
    config.limits.handshakes_total = 200;
    let mut gateway = gateway(config, records);
    let boot = commands(&all(&mut gateway));
    gateway.handle(NOW, Input::Event(Event::Ready));
    boot.iter().for_each(|(sequence, _)| acknowledge(&mut gateway, *sequence, true));
    assert_eq!(sent(&all(&mut gateway)).len(), 0);
    let (mut begun, mut rounds) = (0, 0);
    while begun < 40 {
        assert!(gateway.deadline().is_some_and(|next| next <= NOW), "{begun} are begun");
        gateway.tick(NOW);
        let outputs = all(&mut gateway);
        assert!(sent(&outputs).len() <= BEGUN_AT_ONCE, "{} at once", sent(&outputs).len());
        begun += sent(&outputs).len();
        rounds += 1;
        // A datagram between them is answered, and begins none.
        let remote = SocketAddr::from(([192, 0, 2, 250], 500));
        assert_eq!(ask(&mut gateway, NOW, pair(0xff), remote), 1);
    }
    assert_eq!(rounds, 40usize.div_ceil(BEGUN_AT_ONCE));
}

/// The peer would delete what it has and initiate as well, and both handshakes would cross.
#[test]
fn a_request_has_no_token_while_our_own_initiation_is_preferred() {
    for preferred in [true, false] {
        let (mut config, records) = herd(1);
        let remote = records[0].remote;
        let own = [Method::InitialContact, Method::Qcd, Method::Liveness];
        config.methods = own.into_iter().skip(usize::from(!preferred)).collect();
        let mut gateway = gateway(config, records);
        let boot = commands(&all(&mut gateway));
        gateway.handle(NOW, Input::Event(Event::Ready));
        boot.iter().for_each(|(sequence, _)| acknowledge(&mut gateway, *sequence, true));
        let answered = usize::from(!preferred);
        assert_eq!(ask(&mut gateway, NOW, pair(1), remote), answered, "it is to come");
        assert_eq!(sent(&all_due(&mut gateway, NOW)).len(), usize::from(preferred));
        let soon = NOW.after(Duration::from_millis(1900));
        assert_eq!(ask(&mut gateway, soon, pair(1), remote), answered, "it is under way");
        assert_eq!(stat(&gateway, "former-spi-own-initiation"), 2 * u64::from(preferred));
        let later = NOW.after(Duration::from_secs(2));
        assert_eq!(ask(&mut gateway, later, pair(1), remote), 1, "it takes too long");
    }
}

/// Its token has taken from the pace already.
#[test]
fn a_peer_that_was_told_takes_from_the_pace_once() {
    let (config, records) = herd(2);
    let remote = records[1].remote;
    let mut gateway = gateway(config, records);
    all(&mut gateway);
    let source = SocketAddr::new(socket("192.0.2.100:0").ip(), 0);
    gateway.handle(NOW, Input::Event(Event::FormerSpi(SpiReport { source, ..esp(0x1000) })));
    assert_eq!((sent(&all(&mut gateway)).len(), ask(&mut gateway, NOW, pair(2), remote)), (1, 1));
    let before = gateway.pace.room_at();
    back(&mut gateway, NOW, 0, "c0");
    back(&mut gateway, NOW, 1, "c1");
    assert_eq!(gateway.pace.room_at(), before);
}

/// SIR: what a NACK causes is a handshake too; an ACK causes none.
#[test]
fn nacks_follow_the_pace_of_handshakes() {
    use spindle_ike::check_spi::{CheckSpi, Subtype};
    let query = CheckSpi { subtype: Subtype::Query, child: None, cookie: vec![7; 24] }.to_notify();
    let (mut config, _) = herd(40);
    config.methods = vec![Method::Sir, Method::Liveness];
    let mut gateway = gateway(config, Vec::new());
    let boot = commands(&all(&mut gateway));
    gateway.handle(NOW, Input::Event(Event::Ready));
    boot.iter().for_each(|(sequence, _)| acknowledge(&mut gateway, *sequence, true));
    all(&mut gateway);
    let ask = |gateway: &mut Gateway, n: u8| {
        let header = Header { exchange: 240, message_id: 0, next_payload: 41, ..request(pair(n)) };
        clear(gateway, NOW, header, vec![query.clone()], SocketAddr::from(([192, 0, 2, 100 + n], 500)));
        sent(&all(gateway)).len()
    };
    for n in 1..=10 {
        assert_eq!(ask(&mut gateway, n), 1);
        back(&mut gateway, NOW, n.into(), &format!("c{n}"));
    }
    assert_eq!(ask(&mut gateway, 20), 0);
    assert_eq!([stat(&gateway, "sir-nacks-sent"), stat(&gateway, "requests-over-handshakes")], [10, 1]);
}

/// A gateway whose connections all start with it, and that has just become ready.
fn starting(connections: u32, handshakes_total: u32) -> Gateway {
    let connections = (0..connections).map(|n| {
        let mut connection = connection(&format!("c{n}"), Some("192.0.2.2"));
        connection.children[0].policy = n;
        connection.children[0].start_action = spindle_ike::api::StartAction::Start;
        connection
    });
    let limits = crate::api::Limits { handshakes_total, ..Default::default() };
    let mut gateway =
        gateway(Config { connections: connections.map(Into::into).collect(), limits, ..config() }, vec![]);
    gateway.handle(NOW, Input::Event(Event::Ready));
    for (sequence, _) in commands(&all(&mut gateway)) {
        acknowledge(&mut gateway, sequence, true);
    }
    gateway
}

/// At once they would be lost on the way, and come again only seconds later.
#[test]
fn what_starts_with_the_gateway_goes_evenly_at_the_pace_of_handshakes() {
    let mut gateway = starting(30, 10);
    let mut begun = sent(&all_due(&mut gateway, NOW)).len();
    assert_eq!(begun, 1);
    // Before the first is sent again.
    for tenth in 1..=4 {
        let now = NOW.after(Duration::from_millis(100 * tenth));
        assert!(gateway.deadline().is_some_and(|next| next <= now));
        gateway.tick(now);
        let more = sent(&all(&mut gateway)).len();
        assert_eq!(more, 1, "after {tenth} tenths of a second");
        begun += more;
    }
    assert_eq!(begun, 5);
}

/// A timer of milliseconds that is late each time: the pace is kept, and still nothing goes in one go.
#[test]
fn what_starts_with_the_gateway_keeps_a_pace_beyond_its_drivers_timer() {
    let mut gateway = starting(100, 1000);
    let (mut begun, mut most) = (0, 0);
    for milliseconds in (0..=40).step_by(2) {
        let more = sent(&all_due(&mut gateway, NOW.after(Duration::from_millis(milliseconds)))).len();
        (begun, most) = (begun + more, most.max(more));
    }
    assert!((40..=46).contains(&begun), "{begun} in 40 ms at 1000 a second");
    assert!(most <= 6, "{most} in one go");
}

/// IKE SPIs are in clear: whoever read a pair may name it from as many addresses as he likes, and send again the ESP that he
/// saw. All others are told, and initiated to, about as fast as without him.
#[test]
fn a_flood_on_one_former_ike_sa_takes_one_handshake_from_the_others() {
    let (mut config, records) = herd(60);
    // Forty are told, the others we initiate to.
    for n in 40..60 {
        let own = vec![Method::InitialContact, Method::Qcd, Method::Liveness];
        config.connection_methods.insert(format!("c{n}"), own);
    }
    let remotes: Vec<SocketAddr> = records.iter().map(|record| record.remote).collect();
    let mut gateway = gateway(config, records);
    let boot = commands(&all(&mut gateway));
    gateway.handle(NOW, Input::Event(Event::Ready));
    boot.iter().for_each(|(sequence, _)| acknowledge(&mut gateway, *sequence, true));
    let (mut forged, mut told) = (0u32, Vec::new());
    let mut flood = |gateway: &mut Gateway, now| {
        forged += 1;
        let from = (forged << 8 | 0x0a00_0001).to_be_bytes();
        let (header, local) = (request(pair(1)), socket(LOCAL));
        let remote = SocketAddr::from((from, 500));
        gateway.unmatched(now, Unmatched::ProtectedRequest { header, local, remote, tombstone: false });
        gateway.drain(now);
        let report = SpiReport { source: SocketAddr::from((from, 0)), ..esp(0x1000) };
        gateway.handle(now, Input::Event(Event::FormerSpi(report)));
    };
    // The flood is there before all others, which ask once: half of them by ESP.
    flood(&mut gateway, NOW);
    for n in 1..40 {
        if n % 2 == 0 {
            let (header, local) = (request(pair(n as u8 + 1)), socket(LOCAL));
            let remote = remotes[n as usize];
            gateway.unmatched(NOW, Unmatched::ProtectedRequest { header, local, remote, tombstone: false });
            gateway.drain(NOW);
        } else {
            let source = SocketAddr::new(remotes[n as usize].ip(), 0);
            let report = SpiReport { source, ..esp(0x1000 + n) };
            gateway.handle(NOW, Input::Event(Event::FormerSpi(report)));
        }
    }
    // Four thousand a second, for one and a half of what the pace needs for sixty: ten at first, then ten a second.
    for quarter in 0..4 * 7500 {
        let now = NOW.after(Duration::from_micros(250 * quarter));
        flood(&mut gateway, now);
        while gateway.deadline().is_some_and(|next| next <= now) {
            gateway.tick(now);
        }
        told.extend(all(&mut gateway).into_iter().filter_map(|output| match output {
            Output::Transmit(datagram) => Some(datagram.remote),
            _ => None,
        }));
    }
    let missing: Vec<_> = remotes.iter().filter(|remote| !told.contains(remote)).collect();
    assert!(missing.is_empty(), "{} wait: {missing:?}", missing.len());
}

/// What of a peer that is back still arrives, or is sent again by who saw it, leads to no handshake.
#[test]
fn nothing_that_names_what_a_peer_has_lost_takes_from_the_pace_once_it_is_back() {
    let (config, records) = herd(1);
    let remote = records[0].remote;
    let mut gateway = gateway(config, records);
    all(&mut gateway);
    back(&mut gateway, NOW, 0, "c0");
    let before = gateway.pace.room_at();
    for n in 0..20 {
        let now = NOW.after(Duration::from_millis(1000 + 100 * n));
        assert_eq!(ask(&mut gateway, now, pair(1), remote), 1);
        let report = SpiReport { source: SocketAddr::new(remote.ip(), 0), ..esp(0x1000) };
        gateway.handle(now, Input::Event(Event::FormerSpi(report)));
        assert_eq!(sent(&all(&mut gateway)).len(), 1);
    }
    assert_eq!(gateway.pace.room_at(), before);
}
