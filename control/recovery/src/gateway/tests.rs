//! The gateway by itself: its start, what it answers, what it keeps to itself.

mod pace;

use super::*;
use crate::api::JournalRecord;
use crate::testing::*;
use spindle_abi::{Event, PolicyAction, SaActivity, SpiReport};
use spindle_ike::api::{Header, IkeSpis, Notify, Unmatched};
use std::net::SocketAddr;
use std::time::Duration;

struct Idle;

impl ActivityReader for Idle {
    fn activity(&self, _: u32) -> SaActivity {
        SaActivity::default()
    }
}

/// Counts up: enough for tests that need no secrets.
struct Counting(u32);

impl Random for Counting {
    fn fill(&mut self, octets: &mut [u8]) {
        for octet in octets {
            self.0 = self.0.wrapping_add(1);
            *octet = (self.0.wrapping_mul(0x9e37_79b9) >> 24) as u8;
        }
    }
}

fn gateway(config: Config, former: Vec<JournalRecord>) -> Gateway {
    Gateway::new(config, boot(former), Box::new(Idle), Box::new(Counting(0)), NOW)
}

fn all(gateway: &mut Gateway) -> Vec<Output> {
    std::iter::from_fn(|| gateway.poll()).collect()
}

/// The same, and of all that is due by then.
fn all_due(gateway: &mut Gateway, now: Time) -> Vec<Output> {
    let mut outputs = all(gateway);
    while gateway.deadline().is_some_and(|next| next <= now) {
        gateway.tick(now);
        outputs.extend(all(gateway));
    }
    outputs
}

fn commands(outputs: &[Output]) -> Vec<(u64, Command)> {
    let command = |output: &Output| match output {
        Output::Command { sequence, command } => Some((*sequence, command.clone())),
        _ => None,
    };
    outputs.iter().filter_map(command).collect()
}

fn sent(outputs: &[Output]) -> Vec<&[u8]> {
    fn data(output: &Output) -> Option<&[u8]> {
        match output {
            Output::Transmit(datagram) => Some(&datagram.data),
            _ => None,
        }
    }
    outputs.iter().filter_map(data).collect()
}

fn reports(outputs: &[Output]) -> Vec<&'static str> {
    let name = |output: &Output| match output {
        Output::Report(report) => Some(report.name),
        _ => None,
    };
    outputs.iter().filter_map(name).collect()
}

fn stat(gateway: &Gateway, name: &str) -> u64 {
    gateway.stats().iter().find(|(n, _)| *n == name).unwrap().1
}

fn acknowledge(gateway: &mut Gateway, sequence: u64, done: bool) {
    gateway.handle(NOW, Input::Event(Event::Acknowledged { sequence, done }));
}

fn esp(spi: u32) -> SpiReport {
    let (source, destination) = (socket("192.0.2.2:0"), socket("192.0.2.1:0"));
    SpiReport { spi: Spi(spi), sequence: 1, source, destination, at: NOW }
}

fn clear(gateway: &mut Gateway, now: Time, header: Header, notifies: Vec<Notify>, remote: SocketAddr) {
    gateway.unmatched(now, Unmatched::Clear { header, notifies, local: socket(LOCAL), remote });
    gateway.drain(now);
}

fn request(spis: IkeSpis) -> Header {
    Header { spis, next_payload: 46, exchange: 37, response: false, initiator: true, message_id: 1 }
}

#[test]
fn it_is_ready_when_the_dataplane_is_and_has_acknowledged_policies_and_former_spis() {
    let mut config = config();
    let second = connection("second", Some("192.0.2.3"));
    config.connections.push(second.into());
    config.connections[1].children[0].policy = 2;
    for ready_first in [true, false] {
        let former = vec![record(0x100, pair(1)), record(0x200, pair(2))];
        let mut gateway = gateway(config.clone(), former);
        let boot = commands(&all(&mut gateway));
        let policies: Vec<_> = boot
            .iter()
            .filter_map(|(_, command)| match command {
                Command::SetPolicy { id, priority, action, .. } => Some((*id, *priority, *action)),
                _ => None,
            })
            .collect();
        let [(1, first, PolicyAction::Protect), (2, second, PolicyAction::Protect)] = policies[..] else {
            panic!("{policies:?}")
        };
        assert!(first < second);
        let mut former: Vec<u32> = boot
            .iter()
            .filter_map(|(_, command)| match command {
                Command::SetFormer { spis } => Some(spis.iter().map(|spi| spi.0)),
                _ => None,
            })
            .flatten()
            .collect();
        former.sort();
        assert_eq!(former, [0x100, 0x200]);
        assert_eq!(boot.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [1, 2, 3]);
        if ready_first {
            gateway.handle(NOW, Input::Event(Event::Ready));
        }
        for (sequence, _) in &boot {
            assert!(!reports(&all(&mut gateway)).contains(&"ready"));
            acknowledge(&mut gateway, *sequence, true);
        }
        if !ready_first {
            assert!(!reports(&all(&mut gateway)).contains(&"ready"));
            gateway.handle(NOW, Input::Event(Event::Ready));
        }
        assert_eq!(reports(&all(&mut gateway)).iter().filter(|name| **name == "ready").count(), 1);
        acknowledge(&mut gateway, 1, true);
        assert!(all(&mut gateway).is_empty(), "an acknowledgement that nobody waits for");
    }
}

#[test]
fn a_refused_command_is_reported_and_does_not_hold_up_the_start() {
    let mut gateway = gateway(config(), vec![record(0x100, pair(1))]);
    gateway.handle(NOW, Input::Event(Event::Ready));
    let boot = commands(&all(&mut gateway));
    acknowledge(&mut gateway, boot[0].0, true);
    acknowledge(&mut gateway, boot[1].0, false);
    assert_eq!(reports(&all(&mut gateway))[..2], ["command-refused", "ready"]);
    assert_eq!(stat(&gateway, "commands-refused"), 1);
}

#[test]
fn a_hundred_thousand_former_spis_are_told_to_the_dataplane_in_no_time() {
    let records = (0..100_000).map(|n| record(0x1000 + n, pair(n as u8))).collect();
    let start = std::time::Instant::now();
    let mut gateway = gateway(config(), records);
    gateway.handle(NOW, Input::Event(Event::Ready));
    let mut told = 0;
    while let Some(output) = gateway.poll() {
        if let Output::Command { sequence, command } = output {
            if let Command::SetFormer { spis } = command {
                told += spis.len();
            }
            acknowledge(&mut gateway, sequence, true);
        }
    }
    assert_eq!(told, 100_000);
    assert!(gateway.ready);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

/// RFC 6290 section 8.2. An event that left the dataplane before it knew the SPI as former counts the same.
#[test]
fn esp_on_a_former_spi_is_told_at_once_with_a_token() {
    for event in [Event::FormerSpi, Event::UnknownSpi] {
        let mut gateway = gateway(config(), vec![record(0x100, pair(1))]);
        all(&mut gateway);
        gateway.handle(NOW, Input::Event(event(esp(0x100))));
        let outputs = all(&mut gateway);
        assert_eq!(sent(&outputs).len(), 1);
        assert_eq!(sent(&outputs)[0].len(), 28 + 12 + 40);
        assert_eq!(reports(&outputs), ["token-sent"]);
        assert_eq!(stat(&gateway, "tokens-sent"), 1);
    }
}

#[test]
fn without_the_journal_no_spi_is_former() {
    let mut gateway = gateway(Config { journal: false, ..config() }, vec![record(0x100, pair(1))]);
    assert_eq!(commands(&all(&mut gateway)).len(), 1, "its policy alone");
    gateway.handle(NOW, Input::Event(Event::UnknownSpi(esp(0x100))));
    assert_eq!(sent(&all(&mut gateway))[0].len(), 28 + 12, "INVALID_SPI without a token");
}

#[test]
fn a_former_spi_expires_into_unknown_and_leaves_the_journal() {
    let one = JournalRecord { hard_expiry: 1_000_010, ..record(0x100, pair(1)) };
    let mut gateway = gateway(config(), vec![one, record(0x200, pair(2))]);
    all(&mut gateway);
    let due = NOW.after(Duration::from_secs(10));
    assert!(gateway.deadline().is_some_and(|deadline| deadline <= due));
    gateway.tick(NOW.after(Duration::from_secs(9)));
    assert!(commands(&all(&mut gateway)).is_empty());
    gateway.tick(due);
    let outputs = all(&mut gateway);
    assert!(outputs.contains(&Output::Journal(JournalWrite::Remove(Spi(0x100)))));
    let unknown = Command::SetSpiState { spi: Spi(0x100), state: SpiState::Unknown };
    assert_eq!(commands(&outputs).into_iter().map(|(_, c)| c).collect::<Vec<_>>(), [unknown]);
    gateway.handle(due, Input::Event(Event::FormerSpi(esp(0x100))));
    assert_eq!(sent(&all(&mut gateway))[0].len(), 28 + 12, "no token any more");
}

/// RFC 6290 section 9.2: not more than once for one arriving request, and one request at a time.
#[test]
fn one_request_has_one_answer() {
    let mut gateway = gateway(config(), vec![]);
    all(&mut gateway);
    let (local, remote) = (socket(LOCAL), socket(REMOTE));
    let unmatched =
        |tombstone| Unmatched::ProtectedRequest { header: request(pair(1)), local, remote, tombstone };
    gateway.unmatched(NOW, unmatched(false));
    let outputs = all(&mut gateway);
    assert_eq!((sent(&outputs).len(), sent(&outputs)[0].len()), (1, 28 + 8 + 40));
    assert_eq!(reports(&outputs), ["token-sent"]);
    gateway.unmatched(NOW, unmatched(true));
    assert_eq!(sent(&all(&mut gateway))[0].len(), 28 + 8, "a tombstone: without a token");
}

/// RFC 6290 section 3 (logged), 4.5 (no response), 8.2 (no evidence of an attack); RFC 7296 section 1.5 and
/// 2.21.4 (no response to a notification in clear, no change of any SA).
#[test]
fn failed_tokens_are_counted_all_and_logged_within_limits() {
    let mut gateway = gateway(config(), vec![]);
    all(&mut gateway);
    let header = Header { response: true, ..request(pair(1)) };
    let notify = |kind, data: &[u8]| Notify { kind, protocol: 0, spi: vec![], data: data.to_vec() };
    for n in 0..1000u32 {
        let bad = vec![notify(4, &[]), notify(16419, &[1; 32])];
        let spi = vec![notify(11, &n.to_be_bytes()), notify(16419, &[2; 32])];
        clear(&mut gateway, NOW, header, bad, socket(REMOTE));
        clear(&mut gateway, NOW, header, spi, SocketAddr::from((n.to_be_bytes(), 500)));
    }
    let outputs = all(&mut gateway);
    assert_eq!(reports(&outputs), ["token-failed"; 10], "ten a second at most");
    assert_eq!(outputs.len(), 10, "nothing but reports");
    assert_eq!(stat(&gateway, "token-checks-failed"), 2000);
    assert_eq!(stat(&gateway, "token-checks-failed-not-logged"), 1990);
    assert_eq!(stat(&gateway, "hints-unknown-sa"), 2000);
}

#[test]
fn a_gateway_with_other_methods_takes_no_tokens() {
    let config = Config { methods: vec![Method::Liveness], ..config() };
    let mut gateway = gateway(config, vec![]);
    all(&mut gateway);
    let token = Notify { kind: 16419, protocol: 1, spi: vec![], data: vec![1; 32] };
    clear(&mut gateway, NOW, request(pair(1)), vec![token], socket(REMOTE));
    assert!(all(&mut gateway).is_empty());
    assert_eq!(stat(&gateway, "tokens-ignored"), 1);
}

#[test]
fn connections_that_are_down_are_shown_too() {
    let gateway = gateway(config(), vec![]);
    let expected = ConnectionStatus { name: "site".into(), ike_sas: 0, child_sas: 0, initiating: false };
    assert_eq!(gateway.connections(), [expected]);
}

#[test]
fn wishes_about_what_is_not_configured_are_refused() {
    let mut gateway = gateway(config(), vec![]);
    let unknown = |name: &str| Refused::UnknownConnection(name.into());
    assert_eq!(gateway.terminate(NOW, "nowhere", None), Err(unknown("nowhere")));
    assert_eq!(gateway.rekey(NOW, "nowhere", None), Err(unknown("nowhere")));
    let child = Err(Refused::UnknownChild("site".into(), "nothing".into()));
    assert_eq!(gateway.rekey(NOW, "site", Some("nothing")), child);
    assert_eq!(gateway.terminate(NOW, "site", None), Err(Refused::UnknownSa));
}

/// RFC 6290 section 8.2: once each. A Child SA that an IKE rekey moved names the parent of another one, too.
#[test]
fn the_tokens_of_a_rekeyed_ike_sa_are_shown_unasked_once() {
    for spis in [[0x1000, 0x1001], [0x1001, 0x1000]] {
        let moved = JournalRecord { earlier_parent: Some(pair(1)), ..record(spis[0], pair(2)) };
        let left_behind = record(spis[1], pair(1));
        let mut gateway = gateway(Config { proactive: true, ..config() }, vec![left_behind, moved]);
        gateway.handle(NOW, Input::Event(Event::Ready));
        let outputs = all(&mut gateway);
        for (sequence, _) in commands(&outputs) {
            acknowledge(&mut gateway, sequence, true);
        }
        let shown = sent(&outputs).len() + sent(&all_due(&mut gateway, NOW)).len();
        assert_eq!((shown, stat(&gateway, "tokens-sent-unasked")), (1, 2), "one message, {spis:x?}");
    }
}

/// SIR: who does not know yet what lives here denies nothing; and where the method is off, nobody is answered.
#[test]
fn a_query_is_answered_once_it_is_ready_and_only_where_sir_is_on() {
    use spindle_ike::check_spi::{CheckSpi, Subtype};
    let query = CheckSpi { subtype: Subtype::Query, child: None, cookie: vec![7; 24] }.to_notify();
    let header = Header { exchange: 240, message_id: 0, next_payload: 41, ..request(pair(1)) };
    let sir = Config { methods: vec![crate::api::Method::Sir, crate::api::Method::Liveness], ..config() };
    let mut gateway = gateway(sir, vec![]);
    let boot = commands(&all(&mut gateway));
    let ask = |gateway: &mut Gateway| {
        clear(gateway, NOW, header, vec![query.clone()], socket(REMOTE));
        sent(&all(gateway)).len()
    };
    assert_eq!(ask(&mut gateway), 0);
    assert_eq!(stat(&gateway, "sir-answers-withheld"), 1);
    gateway.handle(NOW, Input::Event(Event::Ready));
    for (sequence, _) in boot {
        acknowledge(&mut gateway, sequence, true);
    }
    assert_eq!(ask(&mut gateway), 1);
    assert_eq!(stat(&gateway, "sir-nacks-sent"), 1);
    let mut off = self::gateway(config(), vec![]);
    all(&mut off);
    off.handle(NOW, Input::Event(Event::Ready));
    assert_eq!(ask(&mut off), 0);
    assert_eq!(stat(&off, "sir-queries-received"), 0);
}

/// What a gateway has kept so far.
fn kept(outputs: &[Output]) -> Records {
    let mut records = std::collections::BTreeMap::new();
    for output in outputs {
        let Output::Keep(changes) = output else { continue };
        for change in changes.clone() {
            match change.record {
                Some(record) => drop(records.insert(change.key, record)),
                None => drop(records.remove(&change.key)),
            }
        }
    }
    Records(records.into_iter().collect())
}

fn keeping(boot: Boot) -> Gateway {
    Gateway::keeping(config(), boot, Box::new(Idle), Box::new(Counting(0)), NOW)
}

fn adopting(boot: Boot, records: Records) -> Gateway {
    let left = Left { records, journal: Vec::new() };
    Gateway::adopting(config(), boot, left, Box::new(Idle), Box::new(Counting(9)), NOW)
}

/// The dataplane is told what is in doubt first and what goes last, former SPIs included; being ready waits for all.
#[test]
fn a_start_beside_a_dataplane_that_lives_says_all_again() {
    let record = record(1000, pair(1));
    let first = all(&mut keeping(boot(vec![record.clone()])));
    assert_eq!(kept(&first).incarnation(), Some(2));
    let mut gateway = adopting(boot(vec![record]), kept(&first));
    let outputs = all(&mut gateway);
    let commands = commands(&outputs);
    assert!(matches!(commands.first(), Some((_, Command::Doubt))));
    assert!(matches!(commands[commands.len() - 2], (_, Command::SetFormer { .. })));
    assert!(matches!(commands.last(), Some((_, Command::Sweep))));
    gateway.handle(NOW, Input::Event(Event::Ready));
    let (last, others) = commands.split_last().unwrap();
    others.iter().for_each(|(sequence, _)| acknowledge(&mut gateway, *sequence, true));
    assert!(!reports(&all(&mut gateway)).contains(&"ready"));
    acknowledge(&mut gateway, last.0, true);
    assert!(reports(&all(&mut gateway)).contains(&"ready"));
}

/// Whatever the first process of an incarnation found or was told counts for the next one.
#[test]
fn an_incarnation_goes_on_as_it_was_begun() {
    let mut gateway = keeping(Boot { anchor_matches: false, ..boot(Vec::new()) });
    gateway.take_down(NOW, None, Duration::from_secs(1)).unwrap();
    gateway.tokens.switch_off();
    gateway.note_life_if_kept();
    let records = kept(&all(&mut gateway));
    let gateway = adopting(boot(Vec::new()), records.clone());
    assert!(
        !gateway.answers.anchor_matches(),
        "a copied state directory shows no tokens until the next start"
    );
    assert!(!gateway.is_token_maker());
    assert!(gateway.take_down_status().is_some());
    // And so for the one after that.
    let mut gateway = adopting(boot(Vec::new()), records);
    let again = adopting(boot(Vec::new()), kept(&all(&mut gateway)));
    assert!(!again.answers.anchor_matches() && !again.is_token_maker());
    assert!(Records::default().incarnation().is_none(), "nothing is to be adopted");
}

/// A journal's record goes on with its expiry, and a parent that a lost write did not tell is the earlier one.
#[test]
fn the_journal_is_put_in_step_with_what_was_adopted() {
    let mut journal = Journal::new(&config(), 2);
    let child = spindle_ike::api::ChildSaStatus {
        id: spindle_ike::api::ChildSaId(7),
        name: "net".into(),
        policy: 1,
        inbound: Spi(1000),
        outbound: Spi(2000),
        inbound_index: 0,
        outbound_index: 1,
        proposal: String::new(),
        resource: spindle_abi::Resource::default(),
        mode: spindle_abi::Mode::Tunnel,
        selectors: Default::default(),
        state: "installed",
        installed: NOW,
        encapsulated: false,
    };
    let sa = IkeSaStatus {
        id: IkeSaId(3),
        connection: "site".into(),
        spis: pair(2),
        state: "established",
        initiator: true,
        local: socket(LOCAL),
        remote: socket(REMOTE),
        remote_id: None,
        proposal: String::new(),
        established: Some(NOW),
        token_held: true,
        ticket_held: false,
        resumed: false,
        children: vec![child],
    };
    let before = JournalRecord { incarnation: 2, ..record(1000, pair(1)) };
    journal.adopt(1_000_000, std::slice::from_ref(&sa), std::slice::from_ref(&before));
    let moved = JournalRecord { parent: pair(2), earlier_parent: Some(pair(1)), ..before };
    assert_eq!(journal.take_writes(), [JournalWrite::Put(moved.clone())]);
    assert!(journal.is_current(Spi(1000)));
    let mut journal = Journal::new(&config(), 2);
    journal.adopt(1_000_000, std::slice::from_ref(&sa), std::slice::from_ref(&moved));
    assert_eq!(journal.take_writes(), [], "it is on disk already");
    // Its Child SA went with the earlier process, before that came to the disk.
    let gone = JournalRecord { incarnation: 2, ..record(999, pair(1)) };
    let mut journal = Journal::new(&config(), 2);
    journal.adopt(1_000_000, std::slice::from_ref(&sa), &[gone, moved]);
    assert_eq!(journal.take_writes(), [JournalWrite::Remove(Spi(999))]);
    let mut journal = Journal::new(&config(), 2);
    journal.adopt(1_000_000, &[sa], &[]);
    assert!(matches!(&journal.take_writes()[..], [JournalWrite::Put(record)] if record.parent == pair(2)));
}
