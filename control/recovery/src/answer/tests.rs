//! What each packet is answered with, within which budget, and with which tokens.

use super::*;
use crate::api::{Generation, TokenMethod};
use crate::testing::*;
use spindle_abi::Spi;
use spindle_ike::api::{ConnectionConfig, Notify};
use spindle_ike::wire::{Message, Payload, strip_non_esp_marker};

fn answers(config: &Config, former: Vec<JournalRecord>) -> Answers {
    with(config, boot(former))
}

fn with(config: &Config, boot: Boot) -> Answers {
    let tokens = Rc::new(Tokens::new(&boot.maker_id, config.token_maker));
    tokens.set((0..).zip(&boot.secrets));
    Answers::new(config, &boot, tokens, SourceHash::new(&[5; 32]))
}

fn request(spis: IkeSpis, message_id: u32) -> Header {
    Header { spis, next_payload: 46, exchange: 37, response: false, initiator: true, message_id }
}

fn asked(header: &Header, ends: (SocketAddr, SocketAddr)) -> Request<'_> {
    Request { header, ends, tombstone: false, paced: false }
}

fn ask(answers: &mut Answers, header: &Header, from: &str, stats: &mut Stats) -> Option<Answer> {
    let request = asked(header, (socket(LOCAL), socket(from)));
    answers.answer_request(NOW, &request, &|_| false, stats)
}

fn report(spi: u32, source: &str, destination: &str) -> SpiReport {
    let at = NOW;
    SpiReport { spi: Spi(spi), sequence: 9, source: socket(source), destination: socket(destination), at }
}

fn former_at(answers: &mut Answers, now: Time, row: &mut Former, report: &SpiReport) -> Vec<Answer> {
    answers.answer_former(now, report, row, &|_| false, &mut Stats::default())
}

fn unknown_at(answers: &mut Answers, now: Time, report: &SpiReport, stats: &mut Stats) -> Option<Answer> {
    match answers.answer_unknown(now, report, &Peers::default, stats)? {
        UnknownAnswer { clear: Some(datagram), .. } => Some(Answer { datagram, tokens: 0 }),
        UnknownAnswer { .. } => panic!("no IKE SA lives"),
    }
}

fn notifies(answer: &Answer) -> (Header, Vec<Notify>) {
    let data = &answer.datagram.data;
    let data = if answer.datagram.local.port() == 4500 { strip_non_esp_marker(data).unwrap() } else { data };
    let message = Message::parse(data).unwrap();
    let notify = |payload| match payload {
        Payload::Notify(notify) => notify,
        other => panic!("{other:?}"),
    };
    let notifies = message.payloads.into_iter().map(notify).collect();
    (message.header, notifies)
}

fn kinds(answer: &Answer) -> Vec<(u16, u8)> {
    notifies(answer).1.iter().map(|n| (n.kind, n.protocol)).collect()
}

/// What the peer was given, protected, while the IKE SA lived.
fn given(secret: u8, spis: IkeSpis) -> Vec<u8> {
    use crate::qcd::ProtectedTokens;
    use spindle_ike::api::TokenMaker;
    let tokens = Tokens::new(b"maker", true);
    tokens.set([(0, &generation(secret))].into_iter());
    ProtectedTokens(Rc::new(tokens)).token(spis, socket(REMOTE).ip()).unwrap()
}

/// RFC 6290 section 3 and 4.5: INVALID_IKE_SPI first, then the token that the peer holds; RFC 7296 section
/// 2.21.4: same SPIs, Message ID and exchange, Response flag, to where it came from.
#[test]
fn a_protected_request_for_a_lost_ike_sa_is_answered_with_its_token() {
    let mut stats = Stats::default();
    let header = Header { exchange: 36, ..request(pair(1), 42) };
    let answer = ask(&mut answers(&config(), vec![]), &header, "198.51.100.7:61000", &mut stats).unwrap();
    assert_eq!(kinds(&answer), [(4, 0), (16419, 1)]);
    let (sent, notifies) = notifies(&answer);
    assert_eq!(notifies[1].data, given(7, pair(1)));
    assert!(notifies[0].data.is_empty() && notifies[1].spi.is_empty());
    assert_eq!((sent.spis, sent.message_id, sent.exchange), (pair(1), 42, 36));
    assert!(sent.response && !sent.initiator);
    assert_eq!(answer.datagram.remote, socket("198.51.100.7:61000"));
    assert_eq!(answer.datagram.local, socket(LOCAL));
    assert_eq!(stats.of(Counter::TokensSent), 1);
}

/// RFC 7296 section 2.21.4: a response is never answered; nor what isn't protected.
#[test]
fn a_response_an_initial_exchange_and_a_spi_in_use_are_never_answered() {
    let (mut answers, mut stats) = (answers(&config(), vec![]), Stats::default());
    for header in [
        Header { response: true, ..request(pair(1), 0) },
        Header { exchange: 34, ..request(pair(1), 0) },
        Header { exchange: 38, ..request(pair(1), 0) },
    ] {
        assert_eq!(ask(&mut answers, &header, REMOTE, &mut stats), None);
    }
    assert_eq!(stats.of(Counter::NeverAnswered), 3);
    // A half-open IKE SA of ours, or one of a rekey under way, named with any other SPI, under any I flag.
    let ends = (socket(LOCAL), socket(REMOTE));
    for initiator in [true, false] {
        for ours in [pair(1).initiator, pair(1).responder] {
            let header = Header { initiator, ..request(pair(1), 0) };
            let in_use = |spi: IkeSpi| spi == ours;
            let answer = answers.answer_request(NOW, &asked(&header, ends), &in_use, &mut stats);
            assert_eq!(answer, None);
        }
    }
    assert_eq!(stats.of(Counter::RequestsInUse), 4);
    assert_eq!(stats.of(Counter::TokensSent), 0);
}

#[test]
fn a_tombstone_a_foreign_anchor_and_a_switched_off_maker_answer_without_a_token() {
    let mut stats = Stats::default();
    let plain = |answer: Option<Answer>| assert_eq!(kinds(&answer.unwrap()), [(4, 0)]);
    let (header, ends) = (request(pair(1), 0), (socket(LOCAL), socket(REMOTE)));
    let mut one = answers(&config(), vec![]);
    let ended = Request { tombstone: true, ..asked(&header, ends) };
    plain(one.answer_request(NOW, &ended, &|_| false, &mut stats));
    let mut off = answers(&Config { token_maker: false, ..config() }, vec![]);
    plain(ask(&mut off, &header, REMOTE, &mut stats));
    let mut copy = with(&config(), Boot { anchor_matches: false, ..boot(vec![]) });
    plain(ask(&mut copy, &header, REMOTE, &mut stats));
    // An address that serves no connection.
    let elsewhere = (socket("192.0.2.99:500"), socket(REMOTE));
    plain(one.answer_request(NOW, &asked(&header, elsewhere), &|_| false, &mut stats));
    assert_eq!(stats.of(Counter::TokensSent), 0);
}

/// RFC 6290 section 8.1: beyond a rate without token, then silence; and one answer for one request.
#[test]
fn over_the_budget_answers_lose_the_token_and_then_end() {
    let (mut answers, mut stats) = (answers(&config(), vec![]), Stats::default());
    let sent: Vec<Option<usize>> = (0..30)
        .map(|n| ask(&mut answers, &request(pair(1), n), REMOTE, &mut stats).map(|a| a.tokens))
        .collect();
    let mut expected = vec![Some(1); 10];
    expected.extend(vec![Some(0); 10]);
    expected.extend(vec![None; 10]);
    assert_eq!(sent, expected);
    assert_eq!(stats.of(Counter::WithheldBudget), 20);
    assert_eq!(stats.of(Counter::RequestsUnanswered), 10);
}

/// Behind one address there may be a gateway with many connections, or a NAT with many peers: each has what one alone has.
#[test]
fn an_address_has_the_budget_of_each_peer_that_is_known_there() {
    let mut config = config();
    let mut connection = (*config.connections[0]).clone();
    connection.remote = Some("192.0.2.77".parse().unwrap());
    let more = |name: &str| ConnectionConfig { name: name.into(), ..connection.clone() }.into();
    config.connections.extend(["one", "two"].map(more));
    let behind_nat = |n: u8| {
        let remote = SocketAddr::from(([203, 0, 113, 5], 40_000 + u16::from(n)));
        // Two Child SAs of each IKE SA.
        JournalRecord { remote, ..record(900 + u32::from(n), pair(n / 2 + 1)) }
    };
    let mut answers = answers(&config, (0..8).map(behind_nat).collect());
    let tokens = |answers: &mut Answers, from: &str| {
        let ask = |n: &u32| {
            let mut spis = pair(9);
            spis.initiator[..4].copy_from_slice(&n.to_be_bytes());
            let answer = ask(answers, &request(spis, *n), from, &mut Stats::default());
            answer.is_some_and(|answer| answer.tokens > 0)
        };
        (0..1000).filter(ask).count()
    };
    // One at once, and the others of a second: 9 of each peer's 10.
    assert_eq!(tokens(&mut answers, "192.0.2.78:500"), 10, "a stranger");
    assert_eq!(tokens(&mut answers, "192.0.2.77:500"), 1 + 2 * 9);
    assert_eq!(tokens(&mut answers, "203.0.113.5:41000"), 1 + 4 * 9);
    config.connections.push(more("three"));
    answers.reconfigure(&config);
    let later = NOW.after(std::time::Duration::from_secs(2));
    let allowed = (0..1000).filter(|_| {
        let source = answers.address("192.0.2.77".parse().unwrap());
        answers.with_token.allow(later, source)
    });
    assert_eq!(allowed.count(), 1 + 3 * 9);
}

/// 100,000 forged requests, from random sources and from the peer's own address: the peer's own request for
/// the SA in the journal is answered with its token.
#[test]
fn a_flood_of_forged_requests_does_not_keep_the_token_from_the_true_peer() {
    let (mut answers, mut stats) = (answers(&config(), vec![record(900, pair(1))]), Stats::default());
    let mut sent = 0;
    for n in 0..100_000u32 {
        let mut forged = pair(2);
        forged.initiator[..4].copy_from_slice(&n.to_be_bytes());
        let from = if n % 2 == 0 { socket(REMOTE) } else { SocketAddr::from((n.to_be_bytes(), 500)) };
        let header = request(forged, n);
        let ends = (socket(LOCAL), from);
        let answer = answers.answer_request(NOW, &asked(&header, ends), &|_| false, &mut stats);
        sent += usize::from(answer.is_some());
    }
    assert!(sent <= 2 * (5000 + 10), "{sent} answers in no time");
    let answer = ask(&mut answers, &request(pair(1), 3), REMOTE, &mut stats).unwrap();
    assert_eq!(notifies(&answer).1[1].data, given(7, pair(1)));
}

/// The same from a thousand addresses that are all known.
#[test]
fn a_flood_from_the_addresses_of_all_peers_does_not_keep_the_token_from_one_of_them() {
    let address = |n: u32| SocketAddr::from(((0x0a00_0000 + n).to_be_bytes(), 500));
    let of_peer = |n: u32| JournalRecord { remote: address(n), ..record(900 + n, pair(1)) };
    let mut answers = answers(&config(), (0..1000).map(of_peer).collect());
    let (mut stats, mut sent) = (Stats::default(), 0);
    for n in 0..40_000u32 {
        let mut forged = pair(2);
        forged.initiator[..4].copy_from_slice(&n.to_be_bytes());
        let ends = (socket(LOCAL), address(n % 1000));
        let header = request(forged, n);
        let answer = answers.answer_request(NOW, &asked(&header, ends), &|_| false, &mut stats);
        sent += usize::from(answer.is_some());
    }
    assert!((10_000..=10_020).contains(&sent), "{sent} answers: both budgets of known addresses are spent");
    let ends = (socket(LOCAL), address(7));
    let header = request(pair(1), 3);
    let answer = answers.answer_request(NOW, &asked(&header, ends), &|_| false, &mut stats);
    assert_eq!(notifies(&answer.unwrap()).1[1].data, given(7, pair(1)));
}

/// The pace limits those: whoever names one IKE SA of the journal, from ever other addresses, spends what is for more than
/// one answer about each.
#[test]
fn a_flood_on_one_former_ike_sa_does_not_keep_the_first_token_of_another_one_back() {
    let mut answers = answers(&config(), vec![record(900, pair(1)), record(901, pair(2))]);
    let (mut stats, mut sent) = (Stats::default(), 0);
    for n in 0..40_000u32 {
        let header = request(pair(1), n);
        let ends = (socket(LOCAL), SocketAddr::from(((n << 8).to_be_bytes(), 500)));
        let answer = answers.answer_request(NOW, &asked(&header, ends), &|_| false, &mut stats);
        sent += answer.map_or(0, |answer| answer.tokens);
    }
    assert_eq!(sent, 5000);
    assert_eq!(ask(&mut answers, &request(pair(2), 3), REMOTE, &mut stats), None, "all is spent");
    let header = request(pair(2), 3);
    let first = Request { paced: true, ..asked(&header, (socket(LOCAL), socket(REMOTE))) };
    let answer = answers.answer_request(NOW, &first, &|_| false, &mut stats).unwrap();
    assert_eq!(notifies(&answer).1[1].data, given(7, pair(2)));
}

/// RFC 6290 section 8.2 and 4.5, RFC 7296 section 1.5: INVALID_SPI with the SPI, tokens of the parent and of
/// the one before, to the recorded address.
#[test]
fn esp_on_a_former_spi_is_answered_with_both_parents_tokens() {
    let record = JournalRecord { earlier_parent: Some(pair(2)), ..record(0x1234, pair(1)) };
    let mut answers = answers(&config(), vec![record.clone()]);
    let mut row = Former { record, answered: None };
    let sent = former_at(&mut answers, NOW, &mut row, &report(0x1234, "192.0.2.2:0", "192.0.2.1:0"));
    assert_eq!(sent.len(), 1);
    let (header, notifies) = notifies(&sent[0]);
    assert_eq!((header.spis.initiator, header.spis.responder), ([0; 8], [0; 8]));
    assert_eq!((header.exchange, header.message_id), (37, 0));
    assert!(header.initiator && !header.response);
    assert_eq!(notifies[0].kind, 11);
    assert_eq!(notifies[0].data, [0, 0, 0x12, 0x34]);
    let tokens: Vec<_> = notifies[1..].iter().map(|n| n.data.clone()).collect();
    assert_eq!(tokens, [given(7, pair(1)), given(7, pair(2))]);
    assert_eq!((sent[0].datagram.local, sent[0].datagram.remote), (socket(LOCAL), socket(REMOTE)));
}

/// RFC 6290 section 4.5: at most four tokens in a packet; four generations of two parents take two.
#[test]
fn eight_tokens_go_in_two_messages_newest_first() {
    let record = JournalRecord { earlier_parent: Some(pair(2)), ..record(7, pair(1)) };
    let mut boot = boot(vec![record.clone()]);
    boot.secrets = (1..=4).map(generation).collect();
    let mut answers = with(&config(), boot);
    let mut row = Former { record, answered: None };
    let sent = former_at(&mut answers, NOW, &mut row, &report(7, "192.0.2.2:0", "192.0.2.1:0"));
    assert_eq!(sent.iter().map(|a| a.tokens).collect::<Vec<_>>(), [4, 4]);
    let first: Vec<_> = notifies(&sent[0]).1[1..].iter().map(|n| n.data.clone()).collect();
    let expected = [given(1, pair(1)), given(1, pair(2)), given(2, pair(1)), given(2, pair(2))];
    assert_eq!(first, expected);
}

/// RFC 6290 section 4.5: as many tokens as there are generations, newest first.
#[test]
fn a_request_is_answered_with_a_token_of_each_generation() {
    let secrets = (1..=4).map(generation).collect();
    let mut answers = with(&config(), Boot { secrets, ..boot(vec![]) });
    let answer = ask(&mut answers, &request(pair(1), 1), REMOTE, &mut Stats::default()).unwrap();
    let shown: Vec<_> = notifies(&answer).1[1..].iter().map(|n| n.data.clone()).collect();
    assert_eq!(shown, [1, 2, 3, 4].map(|n| given(n, pair(1))));
    assert_eq!(answer.tokens, 4);
}

/// RFC 6290 section 5.2: the taker's token is made with its address; whoever asks from elsewhere is shown another.
#[test]
fn with_the_takers_address_only_the_taker_is_shown_its_token() {
    let secrets = vec![Generation { method: TokenMethod::SpisAndAddress, ..generation(7) }];
    let mut row = Former { record: record(7, pair(1)), answered: None };
    let boot = Boot { secrets, ..boot(vec![row.record.clone()]) };
    let mut answers = with(&config(), boot);
    let mut shown = |from| {
        let answer = ask(&mut answers, &request(pair(1), 1), from, &mut Stats::default()).unwrap();
        notifies(&answer).1[1].data.clone()
    };
    let (taker, other) = (shown(REMOTE), shown("198.51.100.7:500"));
    assert_eq!(shown("192.0.2.2:61000"), taker, "the port does not count");
    assert_ne!(taker, other);
    // To the recorded address, and to where the packet came from.
    let sent = former_at(&mut answers, NOW, &mut row, &report(7, "198.51.100.7:0", "192.0.2.1:0"));
    let tokens: Vec<_> = sent.iter().map(|answer| notifies(answer).1[1].data.clone()).collect();
    assert_eq!(tokens, [taker, other]);
}

#[test]
fn a_former_spi_is_answered_each_100_ms_and_other_sources_within_their_own_budget() {
    let mut answers = answers(&config(), vec![record(7, pair(1))]);
    let mut row = Former { record: record(7, pair(1)), answered: None };
    let from_peer = report(7, "192.0.2.2:0", "192.0.2.1:0");
    let mut sent = 0;
    for ms in 0..1000 {
        let now = NOW.after(std::time::Duration::from_millis(ms));
        sent += former_at(&mut answers, now, &mut row, &from_peer).len();
    }
    assert_eq!(sent, 10);
    // Forged sources get their own answers, and never the peer's.
    let (mut recorded, mut others) = (0, 0);
    let later = NOW.after(std::time::Duration::from_secs(10));
    for n in 0..100_000u32 {
        let source = SocketAddr::from(((n | 0x0a00_0000).to_be_bytes(), 0));
        let forged = SpiReport { source, ..from_peer };
        for answer in former_at(&mut answers, later, &mut row, &forged) {
            if answer.datagram.remote == socket(REMOTE) { recorded += 1 } else { others += 1 }
        }
    }
    assert_eq!(recorded, 1);
    assert_eq!(others, 1000);
    let after = later.after(std::time::Duration::from_millis(100));
    assert_eq!(former_at(&mut answers, after, &mut row, &from_peer)[0].tokens, 1);
}

/// RFC 7296 section 1.5 and 3.1: to the UDP port that the packet came from, with the non-ESP marker.
#[test]
fn encapsulated_esp_is_answered_from_port_4500() {
    let record = JournalRecord {
        local: socket("192.0.2.1:4500"),
        remote: socket("192.0.2.2:4500"),
        encapsulated: true,
        ..record(7, pair(1))
    };
    let mut answers = answers(&config(), vec![record.clone()]);
    let mut row = Former { record, answered: None };
    // The peer's NAT gave it another port: the recorded one and the new one are told.
    let moved = report(7, "192.0.2.2:31000", "192.0.2.1:4500");
    let sent = former_at(&mut answers, NOW, &mut row, &moved);
    let to: Vec<_> = sent.iter().map(|a| (a.datagram.local.port(), a.datagram.remote.port())).collect();
    assert_eq!(to, [(4500, 4500), (4500, 31000)]);
    for answer in &sent {
        assert_eq!(answer.datagram.data[..4], [0; 4]);
        assert_eq!(kinds(answer), [(11, 0), (16419, 1)]);
    }
    let unknown =
        unknown_at(&mut answers, NOW, &report(8, "203.0.113.5:9", "192.0.2.1:4500"), &mut Stats::default());
    let unknown = unknown.unwrap();
    assert_eq!((unknown.datagram.local.port(), unknown.datagram.remote), (4500, socket("203.0.113.5:9")));
    assert_eq!(kinds(&unknown), [(11, 0)]);
}

/// RFC 6290 section 9.2: a record of this incarnation, a parent in use, an address that no longer serves the
/// connection: the SPI is still told as invalid, without a token.
#[test]
fn a_former_spi_without_leave_is_answered_without_a_token() {
    let good = record(7, pair(1));
    let from_peer = report(7, "192.0.2.2:0", "192.0.2.1:0");
    for bad in [
        JournalRecord { incarnation: 2, ..good.clone() },
        JournalRecord { connection: "removed".into(), ..good.clone() },
    ] {
        let mut answers = answers(&config(), vec![bad.clone()]);
        let mut row = Former { record: bad, answered: None };
        let sent = former_at(&mut answers, NOW, &mut row, &from_peer);
        assert_eq!(kinds(&sent[0]), [(11, 0)]);
    }
    let mut answers = answers(&config(), vec![good.clone()]);
    let mut row = Former { record: good, answered: None };
    let in_use = |spi: IkeSpi| spi == pair(1).responder;
    let sent = answers.answer_former(NOW, &from_peer, &mut row, &in_use, &mut Stats::default());
    assert_eq!(kinds(&sent[0]), [(11, 0)]);
}

/// RFC 7296 section 2.21.4: limited; a known peer is told also while strangers flood.
#[test]
fn esp_on_unknown_spis_is_answered_once_a_second_per_source() {
    let (mut answers, mut stats) = (answers(&config(), vec![]), Stats::default());
    let mut sent = 0;
    for n in 0..100_000u32 {
        let source = SocketAddr::from((n.to_be_bytes(), 0));
        let packet = SpiReport { source, ..report(n, "192.0.2.9:0", "192.0.2.1:0") };
        sent += usize::from(unknown_at(&mut answers, NOW, &packet, &mut stats).is_some());
    }
    assert_eq!(sent, 1000);
    let from_peer = report(5, "192.0.2.2:0", "192.0.2.1:0");
    let answer = unknown_at(&mut answers, NOW, &from_peer, &mut stats).unwrap();
    assert_eq!((answer.datagram.local, answer.datagram.remote), (socket(LOCAL), socket(REMOTE)));
    assert_eq!(unknown_at(&mut answers, NOW, &from_peer, &mut stats), None);
    let later = NOW.after(std::time::Duration::from_secs(1));
    assert!(unknown_at(&mut answers, later, &from_peer, &mut stats).is_some());
    // The same budget, where an IKE SA with the peer carries it.
    let both = vec![IkeSaId(4), IkeSaId(3)];
    let peers = |all_stand| Peers { ike_sas: both.clone(), all_stand };
    assert_eq!(answers.answer_unknown(later, &from_peer, &|| peers(true), &mut stats), None);
    let later = later.after(std::time::Duration::from_secs(1));
    let protected = answers.answer_unknown(later, &from_peer, &|| peers(true), &mut stats);
    assert_eq!(protected, Some(UnknownAnswer { protected: both.clone(), clear: None }));
    // Where the IKE SA of a connection may be lost, in clear as well.
    let later = later.after(std::time::Duration::from_secs(1));
    let lost = answers.answer_unknown(later, &from_peer, &|| peers(false), &mut stats).unwrap();
    assert_eq!((lost.protected, lost.clear), (both.clone(), Some(answer.datagram)));
}

/// A herd that comes back without a journal: each of its peers has to hear INVALID_SPI before it asks for its token.
#[test]
fn of_their_unknown_spis_known_peers_are_told_at_the_pace_of_handshakes_and_strangers_are_not() {
    let peers = (0..5000u32).map(|n| connection(&format!("c{n}"), Some(&address(n).to_string())));
    let config = Config { connections: peers.map(Into::into).collect(), ..config() };
    // Each asks once within a second.
    let told = |answers: &mut Answers, first: u32| {
        let ask = |n: &u32| {
            let now = NOW.after(std::time::Duration::from_micros(200 * u64::from(*n)));
            let source = SocketAddr::from((address(first + n), 0));
            let packet = SpiReport { source, ..report(*n, "192.0.2.9:0", "192.0.2.1:0") };
            unknown_at(answers, now, &packet, &mut Stats::default()).is_some()
        };
        (0..5000).filter(ask).count()
    };
    assert!(
        (1950..=2000).contains(&told(&mut answers(&config, vec![]), 0)),
        "a thousand at once, and in a second"
    );
    let mut paced = answers(&config, vec![]);
    paced.set_pace(NOW, 4000);
    assert!(told(&mut paced, 0) > 4000);
    assert!(told(&mut paced, 1_000_000) <= 2000);

    let limits = Limits { invalid_spi_total: 0, ..Limits::default() };
    let mut silent = answers(&Config { limits, ..config }, vec![]);
    silent.set_pace(NOW, 4000);
    assert_eq!(told(&mut silent, 0), 0, "switched off");
}

fn address(n: u32) -> std::net::Ipv4Addr {
    (0x0a00_0000 + n).into()
}
