//! The token maker's answers to what no SA here accounts for: IKE requests, and ESP on former and unknown SPIs.
//!
//! Each arriving packet causes at most one answer per address, within budgets (RFC 7296 section 2.21.4); whether
//! it carries tokens, [`may_present`] decides. An answer is a pure function of the packet, the budgets and what
//! the endpoint says of IKE SPIs.

use crate::api::{Boot, Config, JournalRecord, Limits};
use crate::journal::Former;
use crate::limits::{Budget, Source, SourceHash};
use crate::message::{ENCAPSULATION_PORT, IKE_PORT, invalid_ike_spi, invalid_spi};
use crate::qcd::{Conditions, Control, MAX_TOKENS, Token, Tokens, Trigger, Withheld, may_present};
use crate::stats::{Counter, Stats};
use spindle_abi::{Spi, SpiReport, Time};
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

/// An IKE message with a protected payload and IKE SPIs of no IKE SA here.
pub(crate) struct Request<'a> {
    pub(crate) header: &'a Header,
    /// Our address, and whose message it is.
    pub(crate) ends: (SocketAddr, SocketAddr),
    /// Did the IKE SA end by an exchange?
    pub(crate) tombstone: bool,
    /// Will its token take from the pace? Then that limits it, and no flood that spends the budget keeps it back.
    pub(crate) paced: bool,
}

/// The answer to ESP on an unknown SPI.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct UnknownAnswer {
    /// In an exchange of each of these IKE SAs.
    pub(crate) protected: Vec<IkeSaId>,
    /// As it stands.
    pub(crate) clear: Option<Datagram>,
}

/// The IKE SAs between an ESP packet's ends.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Peers {
    pub(crate) ike_sas: Vec<IkeSaId>,
    /// Has each connection between these ends one of them?
    pub(crate) all_stand: bool,
}

/// Answers for one gateway in one incarnation.
pub(crate) struct Answers {
    tokens: Rc<Tokens>,
    /// Does this process know of all SAs that live here?
    control: Control,
    anchor_matches: bool,
    incarnation: u64,
    /// The address that serves each connection.
    serving: HashMap<String, IpAddr>,
    /// Those of these addresses that are on this machine.
    here: HashSet<IpAddr>,
    /// How many peers there are at the addresses of the configuration and of the journal.
    peers: HashMap<IpAddr, u32>,
    /// IKE SAs of earlier incarnations, each with an SPI of one of its Child SAs.
    former_pairs: HashMap<IkeSpis, Spi>,
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
        let pairs =
            |r: &JournalRecord| [Some(r.parent), r.earlier_parent].map(|pair| pair.map(|p| (p, r.spi)));
        let pairs = boot.former.iter().flat_map(pairs).flatten();
        let former: HashSet<_> = boot.former.iter().map(|r| (r.remote.ip(), r.parent)).collect();
        let mut peers = count(former.into_iter().map(|(address, _)| address));
        add(&mut peers, configured(config));
        let unknown_spi = Budget::new(limits.invalid_spi_per_source, limits.invalid_spi_total);
        let mut answers = Answers {
            tokens,
            control: Control::Authoritative,
            anchor_matches: boot.anchor_matches,
            incarnation: boot.incarnation,
            serving: config.connections.iter().map(|c| (c.name.clone(), c.local)).collect(),
            here: config.connections.iter().map(|c| c.local).collect(),
            unknown_spi: unknown_spi.for_known(peers.len()),
            peers,
            former_pairs: pairs.collect(),
            hash,
            with_token: requests(),
            without_token: requests(),
            former_with_token: requests(),
            former_without_token: requests(),
            former_other: Budget::new(limits.former_other_per_source, limits.former_other_total),
            limits,
        };
        answers.set_pace(Time(0), limits.handshakes_total);
        answers
    }

    /// So many handshakes can be taken a second. As many peers that we know are told of their unknown SPIs, if that is
    /// more than `invalid_spi_total`: each asks for its token then, and begins a handshake.
    pub(crate) fn set_pace(&mut self, now: Time, handshakes: u32) {
        let total = self.limits.invalid_spi_total;
        if total > 0 {
            self.unknown_spi.set_known_total(now, total.max(handshakes), total);
        }
    }

    /// Another configuration. What was served stays so until the next start: SAs there may be ending.
    pub(crate) fn reconfigure(&mut self, config: &Config) {
        for connection in &config.connections {
            let is_new = !self.serving.values().any(|address| *address == connection.local);
            if is_new {
                self.here.insert(connection.local);
            }
        }
        self.serving = config.connections.iter().map(|c| (c.name.clone(), c.local)).collect();
        add(&mut self.peers, configured(config));
    }

    /// While what lives is adopted it is not known.
    pub(crate) fn set_control(&mut self, control: Control) {
        self.control = control;
    }

    /// Does the state directory match its anchor?
    pub(crate) fn anchor_matches(&self) -> bool {
        self.anchor_matches
    }

    /// Whose budget a question about an IKE SA spends.
    pub(crate) fn source(&self, remote: IpAddr, spis: IkeSpis) -> Source {
        if self.is_former(spis) {
            Source { key: self.hash.source_and_pair(remote, spis), peers: 1 }
        } else {
            self.address(remote)
        }
    }

    fn address(&self, remote: IpAddr) -> Source {
        let peers = self.peers.get(&remote).copied().unwrap_or(0);
        Source { key: self.hash.source(remote), peers }
    }

    /// Does this address serve a connection, and is it on this machine?
    pub(crate) fn serves(&self, local: IpAddr) -> bool {
        self.here.contains(&local)
    }

    /// Is it the one that serves this connection, and on this machine?
    pub(crate) fn serves_connection(&self, connection: &str, local: IpAddr) -> bool {
        self.serves(local) && self.serving.get(connection) == Some(&local)
    }

    /// All such addresses.
    pub(crate) fn addresses(&self) -> HashSet<IpAddr> {
        self.here.clone()
    }

    /// An address that serves a connection came to this machine, or left it.
    pub(crate) fn serve(&mut self, local: IpAddr, here: bool) {
        if here {
            self.here.insert(local);
        } else {
            self.here.remove(&local);
        }
    }

    /// To a request for an IKE SA that is not here: INVALID_IKE_SPI with tokens; beyond that budget, or where the SA ended
    /// by an exchange, without; beyond that one silence. (RFC 6290 section 3, 4.5 and 8.1; RFC 7296 section 2.21.4.)
    pub(crate) fn answer_request(
        &mut self,
        now: Time,
        request: &Request<'_>,
        in_use: &dyn Fn(IkeSpi) -> bool,
        stats: &mut Stats,
    ) -> Option<Answer> {
        let Request { header, ends: (local, remote), tombstone, paced } = *request;
        let source = self.source(remote.ip(), header.spis);
        let address_serves = self.serves(local.ip());
        // Whoever names what we have lost has a budget of its own: no flood, from whatever addresses, can spend it
        // without knowing such pairs.
        let (with_token, without_token) = match self.is_former(header.spis) {
            true => (&mut self.former_with_token, &mut self.former_without_token),
            false => (&mut self.with_token, &mut self.without_token),
        };
        let permit = may_present(&Conditions {
            maker: self.tokens.is_maker(),
            control: self.control,
            trigger: Trigger::Message { exchange: header.exchange, response: header.response, tombstone },
            spis: header.spis,
            in_use,
            address_serves,
            anchor_matches: self.anchor_matches,
            within_budget: paced || with_token.has_room(now, source),
        });
        let tokens: Vec<Token> = match permit {
            Ok(permit) => {
                if !paced {
                    with_token.allow(now, source);
                }
                self.tokens.present(permit, remote.ip())
            }
            Err(reason) => {
                stats.count(reason.counter());
                if let Some(silence) = never_answered(reason, header, in_use) {
                    stats.count(silence);
                    return None;
                }
                if !without_token.allow(now, source) {
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
            let source = self.address(arrived.1.ip());
            if self.former_other.allow(now, source) {
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
                control: self.control,
                trigger,
                spis,
                in_use,
                address_serves: self.serves_connection(&record.connection, here),
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
        self.former_pairs.contains_key(&spis)
    }

    /// The SPI of a Child SA of this IKE SA of an earlier incarnation.
    pub(crate) fn former_spi(&self, spis: IkeSpis) -> Option<Spi> {
        self.former_pairs.get(&spis).copied()
    }

    /// To ESP on an unknown SPI: INVALID_SPI, protected under each IKE SA between its ends (`find_peers`), for of which one
    /// the SPI was nobody knows any more. In clear, to the source, where none is; and where a connection has none, as then
    /// it may be that one's, whose peer heeds no other's IKE SA. (RFC 7296 section 1.5 and 2.21.4.) Never with a token.
    pub(crate) fn answer_unknown(
        &mut self,
        now: Time,
        report: &SpiReport,
        find_peers: &dyn Fn() -> Peers,
        stats: &mut Stats,
    ) -> Option<UnknownAnswer> {
        stats.count(Counter::UnknownSpi);
        let (local, remote) = esp_answer_addresses(report);
        let mut source = self.address(remote.ip());
        // Of a configured peer's packets most are held back: for those no IKE SA is looked for.
        let mut peers = None;
        if source.peers == 0 {
            source.peers = peers.insert(find_peers()).ike_sas.len() as u32;
        }
        if !self.unknown_spi.allow(now, source) {
            stats.count(Counter::UnknownHeldBack);
            return None;
        }
        let Peers { ike_sas, all_stand } = peers.unwrap_or_else(find_peers);
        let in_clear = ike_sas.is_empty() || !all_stand;
        stats.add(Counter::InvalidSpiSent, in_clear.into());
        let clear = in_clear.then(|| invalid_spi(report.spi, local, remote, &[]));
        Some(UnknownAnswer { protected: ike_sas, clear })
    }
}

/// Where a configuration's connections have peers, each as often as it is said.
fn configured(config: &Config) -> HashMap<IpAddr, u32> {
    count(config.connections.iter().flat_map(|c| c.remote.iter().chain(&c.redirect_to).copied()))
}

fn count(addresses: impl Iterator<Item = IpAddr>) -> HashMap<IpAddr, u32> {
    let mut count = HashMap::new();
    addresses.for_each(|address| *count.entry(address).or_default() += 1);
    count
}

/// At an address there are as many peers as one of both says at least.
fn add(peers: &mut HashMap<IpAddr, u32>, more: HashMap<IpAddr, u32>) {
    for (address, count) in more {
        let peers = peers.entry(address).or_default();
        *peers = count.max(*peers);
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
mod tests;
