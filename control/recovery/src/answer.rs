//! The token maker's answers to what no SA here accounts for: IKE requests, and ESP on former and unknown SPIs.
//!
//! Each arriving packet causes at most one answer per address, within budgets (RFC 7296 section 2.21.4); whether
//! it carries tokens, [`may_present`] decides. An answer is a pure function of the packet, the budgets and what
//! the endpoint says of IKE SPIs.

use crate::api::{Boot, Config, JournalRecord, Limits};
use crate::journal::Former;
use crate::limits::{Budget, SourceHash, SourceKey};
use crate::message::{ENCAPSULATION_PORT, IKE_PORT, invalid_ike_spi, invalid_spi};
use crate::qcd::{Conditions, Control, MAX_TOKENS, Token, Tokens, Trigger, Withheld, may_present};
use crate::stats::{Counter, Stats};
use spindle_abi::{SpiReport, Time};
use spindle_ike::api::{Datagram, Header, IkeSaId, IkeSpi, IkeSpis};
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

/// One answer, and how many tokens it shows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Answer {
    pub(crate) datagram: Datagram,
    pub(crate) tokens: usize,
}

/// The answer to ESP on an unknown SPI.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum UnknownAnswer {
    /// In an exchange of this IKE SA.
    Protected(IkeSaId),
    /// As it stands.
    Clear(Datagram),
}

/// Answers for one gateway in one incarnation.
pub(crate) struct Answers {
    tokens: Rc<Tokens>,
    anchor_matches: bool,
    incarnation: u64,
    /// The address that serves each connection.
    serving: HashMap<String, IpAddr>,
    /// These addresses.
    locals: HashSet<IpAddr>,
    /// Addresses of configured peers and of those in the journal.
    known: HashSet<IpAddr>,
    /// IKE SAs of earlier incarnations.
    former_pairs: HashSet<IkeSpis>,
    hash: SourceHash,
    with_token: Budget,
    without_token: Budget,
    former_with_token: Budget,
    former_without_token: Budget,
    unknown_spi: Budget,
    former_other: Budget,
    limits: Limits,
}

impl Answers {
    pub(crate) fn new(config: &Config, boot: &Boot, tokens: Rc<Tokens>, hash: SourceHash) -> Answers {
        let limits = config.limits;
        let requests = || Budget::new(limits.invalid_ike_spi_per_source, limits.invalid_ike_spi_total);
        let configured = config.connections.iter().filter_map(|c| c.remote);
        let pairs = boot.former.iter().flat_map(|r| [Some(r.parent), r.earlier_parent]).flatten();
        Answers {
            tokens,
            anchor_matches: boot.anchor_matches,
            incarnation: boot.incarnation,
            serving: config.connections.iter().map(|c| (c.name.clone(), c.local)).collect(),
            locals: config.connections.iter().map(|c| c.local).collect(),
            known: configured.chain(boot.former.iter().map(|r| r.remote.ip())).collect(),
            former_pairs: pairs.collect(),
            hash,
            with_token: requests(),
            without_token: requests(),
            former_with_token: requests(),
            former_without_token: requests(),
            unknown_spi: Budget::new(limits.invalid_spi_per_source, limits.invalid_spi_total),
            former_other: Budget::new(limits.former_other_per_source, limits.former_other_total),
            limits,
        }
    }

    /// Whose budget a question about an IKE SA spends, and is it a peer that we know?
    pub(crate) fn source(&self, remote: IpAddr, spis: IkeSpis) -> (SourceKey, bool) {
        if self.former_pairs.contains(&spis) {
            (self.hash.source_and_pair(remote, spis), true)
        } else {
            (self.hash.source(remote), self.known.contains(&remote))
        }
    }

    /// Does this address of ours serve a connection?
    pub(crate) fn serves(&self, local: IpAddr) -> bool {
        self.locals.contains(&local)
    }

    /// To an IKE message with a protected payload and IKE SPIs of no IKE SA here: INVALID_IKE_SPI with tokens;
    /// beyond that budget, or where the SA ended by an exchange, without; beyond that one silence.
    /// (RFC 6290 section 3, 4.5 and 8.1; RFC 7296 section 2.21.4.)
    pub(crate) fn answer_request(
        &mut self,
        now: Time,
        header: &Header,
        (local, remote): (SocketAddr, SocketAddr),
        tombstone: bool,
        in_use: &dyn Fn(IkeSpi) -> bool,
        stats: &mut Stats,
    ) -> Option<Answer> {
        let (source, known) = self.source(remote.ip(), header.spis);
        let address_serves = self.serves(local.ip());
        // Whoever names what we have lost has a budget of its own: no flood, from whatever addresses, can spend it
        // without knowing such pairs.
        let (with_token, without_token) = match self.former_pairs.contains(&header.spis) {
            true => (&mut self.former_with_token, &mut self.former_without_token),
            false => (&mut self.with_token, &mut self.without_token),
        };
        let permit = may_present(&Conditions {
            maker: self.tokens.is_maker(),
            control: Control::Authoritative,
            trigger: Trigger::Message { exchange: header.exchange, response: header.response, tombstone },
            spis: header.spis,
            in_use,
            address_serves,
            anchor_matches: self.anchor_matches,
            within_budget: with_token.has_room(now, source, known),
        });
        let tokens: Vec<Token> = match permit {
            Ok(permit) => {
                with_token.allow(now, source, known);
                self.tokens.present(permit, remote.ip())
            }
            Err(reason) => {
                stats.count(reason.counter());
                if let Some(silence) = never_answered(reason, header, in_use) {
                    stats.count(silence);
                    return None;
                }
                if !without_token.allow(now, source, known) {
                    stats.count(Counter::RequestsUnanswered);
                    return None;
                }
                Vec::new()
            }
        };
        stats.count(Counter::InvalidIkeSpiSent);
        stats.add(Counter::TokensSent, tokens.len() as u64);
        Some(Answer { datagram: invalid_ike_spi(header, local, remote, &tokens), tokens: tokens.len() })
    }

    /// To ESP on a former SPI: INVALID_SPI with the tokens of the parent IKE SA and of the one before it, to the
    /// address in the journal; and to the packet's own, if it is another one, within a small budget.
    /// (RFC 6290 section 4.5 and 8.2.)
    pub(crate) fn answer_former(
        &mut self,
        now: Time,
        report: &SpiReport,
        former: &mut Former,
        in_use: &dyn Fn(IkeSpi) -> bool,
        stats: &mut Stats,
    ) -> Vec<Answer> {
        stats.count(Counter::FormerSpi);
        let record = &former.record;
        let here = report.destination.ip();
        let recorded = (SocketAddr::new(here, record.local.port()), record.remote);
        let arrived = esp_answer_addresses(report);
        let mut to = Vec::new();

        let due = former.answered.is_none_or(|last| now.since(last) >= self.limits.former_interval);
        if due {
            former.answered = Some(now);
            to.push(recorded);
        } else {
            stats.count(Counter::FormerHeldBack);
        }
        let same = if report.source.port() == 0 {
            arrived.1.ip() == record.remote.ip()
        } else {
            arrived.1 == record.remote
        };
        if !same {
            let known = self.known.contains(&arrived.1.ip());
            if self.former_other.allow(now, self.hash.source(arrived.1.ip()), known) {
                to.push(arrived);
            } else {
                stats.count(Counter::FormerOtherHeldBack);
            }
        }
        if to.is_empty() {
            return Vec::new();
        }

        let trigger = Trigger::FormerSpi { written: record.incarnation, now: self.incarnation };
        let mut answers = Vec::new();
        for (local, remote) in to {
            let tokens = self.parents_tokens(record, here, remote.ip(), trigger, in_use, stats);
            let chunks: Vec<&[Token]> =
                if tokens.is_empty() { vec![&[]] } else { tokens.chunks(MAX_TOKENS).collect() };
            for tokens in chunks {
                stats.count(Counter::InvalidSpiSent);
                stats.add(Counter::TokensSent, tokens.len() as u64);
                let datagram = invalid_spi(report.spi, local, remote, tokens);
                answers.push(Answer { datagram, tokens: tokens.len() });
            }
        }
        answers
    }

    /// To a peer of the journal after a start, unasked: what ESP on this SPI would be told, if there is a token to
    /// tell (RFC 6290 section 8.2).
    pub(crate) fn unasked(
        &self,
        record: &JournalRecord,
        in_use: &dyn Fn(IkeSpi) -> bool,
        stats: &mut Stats,
    ) -> Option<Answer> {
        let trigger = Trigger::JournalPeer { written: record.incarnation, now: self.incarnation };
        let mut tokens =
            self.parents_tokens(record, record.local.ip(), record.remote.ip(), trigger, in_use, stats);
        tokens.truncate(MAX_TOKENS);
        if tokens.is_empty() {
            return None;
        }
        stats.count(Counter::InvalidSpiSent);
        stats.add(Counter::TokensSent, tokens.len() as u64);
        stats.add(Counter::TokensUnasked, tokens.len() as u64);
        let datagram = invalid_spi(record.spi, record.local, record.remote, &tokens);
        Some(Answer { datagram, tokens: tokens.len() })
    }

    /// The tokens of a record's parents, as far as they may leave: the newest generation of both first, so that the most
    /// probable ones are in the first message. `here`: our address that speaks, to `taker`.
    fn parents_tokens(
        &self,
        record: &JournalRecord,
        here: IpAddr,
        taker: IpAddr,
        trigger: Trigger,
        in_use: &dyn Fn(IkeSpi) -> bool,
        stats: &mut Stats,
    ) -> Vec<Token> {
        let mut by_parent: Vec<Vec<Token>> = Vec::new();
        for spis in [Some(record.parent), record.earlier_parent].into_iter().flatten() {
            let permit = may_present(&Conditions {
                maker: self.tokens.is_maker(),
                control: Control::Authoritative,
                trigger,
                spis,
                in_use,
                address_serves: self.serving.get(&record.connection) == Some(&here),
                anchor_matches: self.anchor_matches,
                within_budget: true,
            });
            match permit {
                Ok(permit) => by_parent.push(self.tokens.present(permit, taker)),
                Err(reason) => stats.count(reason.counter()),
            }
        }
        let most = by_parent.iter().map(Vec::len).max().unwrap_or(0);
        (0..most).flat_map(|n| by_parent.iter().filter_map(move |t| t.get(n))).copied().collect()
    }

    /// Does this pair name an IKE SA of an earlier incarnation?
    pub(crate) fn is_former(&self, spis: IkeSpis) -> bool {
        self.former_pairs.contains(&spis)
    }

    /// To ESP on an unknown SPI: INVALID_SPI, protected where an IKE SA with the source lives (`peer`), else in clear
    /// to the source (RFC 7296 section 1.5 and 2.21.4). Never with a token.
    pub(crate) fn answer_unknown(
        &mut self,
        now: Time,
        report: &SpiReport,
        peer: Option<IkeSaId>,
        stats: &mut Stats,
    ) -> Option<UnknownAnswer> {
        stats.count(Counter::UnknownSpi);
        let (local, remote) = esp_answer_addresses(report);
        let source = remote.ip();
        let known = peer.is_some() || self.known.contains(&source);
        if !self.unknown_spi.allow(now, self.hash.source(source), known) {
            stats.count(Counter::UnknownHeldBack);
            return None;
        }
        if let Some(ike) = peer {
            return Some(UnknownAnswer::Protected(ike));
        }
        stats.count(Counter::InvalidSpiSent);
        Some(UnknownAnswer::Clear(invalid_spi(report.spi, local, remote, &[])))
    }
}

/// What gets no answer at all: what isn't a protected request (RFC 7296 section 2.21.4), and what names an IKE SPI
/// in use, for the exchange that it belongs to may be under way.
fn never_answered(reason: Withheld, header: &Header, in_use: &dyn Fn(IkeSpi) -> bool) -> Option<Counter> {
    if header.response || matches!(header.exchange, 34 | 38) || reason == Withheld::Trigger {
        Some(Counter::NeverAnswered)
    } else if in_use(header.spis.initiator) || in_use(header.spis.responder) {
        Some(Counter::RequestsInUse)
    } else {
        None
    }
}

/// RFC 7296 section 1.5: to the packet's source; to its UDP port if it was encapsulated, else to IKE's.
fn esp_answer_addresses(report: &SpiReport) -> (SocketAddr, SocketAddr) {
    if report.source.port() == 0 {
        let ike = |address: SocketAddr| SocketAddr::new(address.ip(), IKE_PORT);
        (ike(report.destination), ike(report.source))
    } else {
        (SocketAddr::new(report.destination.ip(), ENCAPSULATION_PORT), report.source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Generation, TokenMethod};
    use crate::testing::*;
    use spindle_abi::Spi;
    use spindle_ike::api::Notify;
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

    fn ask(answers: &mut Answers, header: &Header, from: &str, stats: &mut Stats) -> Option<Answer> {
        answers.answer_request(NOW, header, (socket(LOCAL), socket(from)), false, &|_| false, stats)
    }

    fn report(spi: u32, source: &str, destination: &str) -> SpiReport {
        let at = NOW;
        SpiReport { spi: Spi(spi), sequence: 9, source: socket(source), destination: socket(destination), at }
    }

    fn former_at(answers: &mut Answers, now: Time, row: &mut Former, report: &SpiReport) -> Vec<Answer> {
        answers.answer_former(now, report, row, &|_| false, &mut Stats::default())
    }

    fn unknown_at(answers: &mut Answers, now: Time, report: &SpiReport, stats: &mut Stats) -> Option<Answer> {
        match answers.answer_unknown(now, report, None, stats)? {
            UnknownAnswer::Clear(datagram) => Some(Answer { datagram, tokens: 0 }),
            UnknownAnswer::Protected(_) => panic!("no IKE SA lives"),
        }
    }

    fn notifies(answer: &Answer) -> (Header, Vec<Notify>) {
        let data = &answer.datagram.data;
        let data =
            if answer.datagram.local.port() == 4500 { strip_non_esp_marker(data).unwrap() } else { data };
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
                let answer = answers.answer_request(NOW, &header, ends, false, &in_use, &mut stats);
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
        plain(one.answer_request(NOW, &header, ends, true, &|_| false, &mut stats));
        let mut off = answers(&Config { token_maker: false, ..config() }, vec![]);
        plain(ask(&mut off, &header, REMOTE, &mut stats));
        let mut copy = with(&config(), Boot { anchor_matches: false, ..boot(vec![]) });
        plain(ask(&mut copy, &header, REMOTE, &mut stats));
        // An address that serves no connection.
        let elsewhere = (socket("192.0.2.99:500"), socket(REMOTE));
        plain(one.answer_request(NOW, &header, elsewhere, false, &|_| false, &mut stats));
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
            sent += usize::from(
                answers.answer_request(NOW, &header, ends, false, &|_| false, &mut stats).is_some(),
            );
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
            sent += usize::from(
                answers.answer_request(NOW, &header, ends, false, &|_| false, &mut stats).is_some(),
            );
        }
        assert!(
            (10_000..=10_020).contains(&sent),
            "{sent} answers: both budgets of known addresses are spent"
        );
        let ends = (socket(LOCAL), address(7));
        let answer = answers.answer_request(NOW, &request(pair(1), 3), ends, false, &|_| false, &mut stats);
        assert_eq!(notifies(&answer.unwrap()).1[1].data, given(7, pair(1)));
    }

    /// RFC 6290 section 8.2 and 4.5, RFC 7296 section 1.5: INVALID_SPI with the SPI, tokens of the parent and of
    /// the one before, to the recorded address.
    #[test]
    fn esp_on_a_former_spi_is_answered_with_both_parents_tokens() {
        let record = JournalRecord { earlier_parent: Some(pair(2)), ..record(0x1234, pair(1)) };
        let mut answers = answers(&config(), vec![record.clone()]);
        let mut row = Former { record, answered: None, waits: false };
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
        let mut row = Former { record, answered: None, waits: false };
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
        let mut row = Former { record: record(7, pair(1)), answered: None, waits: false };
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
        let mut row = Former { record: record(7, pair(1)), answered: None, waits: false };
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
        let mut row = Former { record, answered: None, waits: false };
        // The peer's NAT gave it another port: the recorded one and the new one are told.
        let moved = report(7, "192.0.2.2:31000", "192.0.2.1:4500");
        let sent = former_at(&mut answers, NOW, &mut row, &moved);
        let to: Vec<_> = sent.iter().map(|a| (a.datagram.local.port(), a.datagram.remote.port())).collect();
        assert_eq!(to, [(4500, 4500), (4500, 31000)]);
        for answer in &sent {
            assert_eq!(answer.datagram.data[..4], [0; 4]);
            assert_eq!(kinds(answer), [(11, 0), (16419, 1)]);
        }
        let unknown = unknown_at(
            &mut answers,
            NOW,
            &report(8, "203.0.113.5:9", "192.0.2.1:4500"),
            &mut Stats::default(),
        );
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
            let mut row = Former { record: bad, answered: None, waits: false };
            let sent = former_at(&mut answers, NOW, &mut row, &from_peer);
            assert_eq!(kinds(&sent[0]), [(11, 0)]);
        }
        let mut answers = answers(&config(), vec![good.clone()]);
        let mut row = Former { record: good, answered: None, waits: false };
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
        assert_eq!(answers.answer_unknown(later, &from_peer, Some(IkeSaId(3)), &mut stats), None);
        let later = later.after(std::time::Duration::from_secs(1));
        let protected = answers.answer_unknown(later, &from_peer, Some(IkeSaId(3)), &mut stats);
        assert_eq!(protected, Some(UnknownAnswer::Protected(IkeSaId(3))));
    }
}
