//! What it costs to check whether a peer has lost its SAs: the processor's time, on either side, for each method and
//! each message; forged ones too, for those can come in any number.
//!
//! A concentrator with a single peer crashes, again and again, each message goes across at once, and each call of the real
//! control plane is timed.

use crate::costs::{Costs, Kind, Samples, median};
use crate::peer::{Herd, Members};
use crate::scenario::{Method, Pacing, Scenario};
use crate::server::Server;
use crate::world::across;
use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use spindle_abi::{Spi, Time};
use spindle_ike::api::Datagram;
use spindle_ike::wire::{Message, Payload, View, exchange, notify};
use spindle_sim::Disk;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Crashes of each method.
const CRASHES: u64 = 100;
/// Longer than anything that holds a young SA back.
const SETTLING: Duration = Duration::from_secs(40);
/// Messages that may go across before the peer is back, or has to be found lost.
const MESSAGES: u32 = 100;

/// Who checks, or is asked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The gateway that lost its SAs.
    Maker,
    /// Its peer.
    Taker,
}

/// What one message costs.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// How the peer learns of the crash.
    pub method: Method,
    /// Whose time it is.
    pub side: Side,
    /// What came, and what it led to.
    pub what: String,
    /// Microseconds, the median.
    pub us: f64,
}

/// All of them, measured now.
///
/// # Errors
/// If a message does not lead where it has to.
pub fn checks(seed: u64) -> anyhow::Result<Vec<Check>> {
    let mut checks = Vec::new();
    for method in [Method::Liveness, Method::InitialContact, Method::Qcd, Method::QcdJournal, Method::Sir] {
        let mut took = Took::default();
        for crash in 0..CRASHES {
            let rtt = Duration::from_millis(20);
            let scenario = Scenario {
                peers: 1,
                method,
                pacing: Pacing::Off,
                handshakes_total: 0,
                resumption: false,
                rtt,
                seed: seed + crash,
                frugal: false,
            };
            Pair::new(&scenario)?
                .crash(&mut took)
                .with_context(|| format!("a crash, found by {}", method.name()))?;
        }
        let maker = took.of_maker.medians().0;
        let asked = [
            (Kind::EspAnswer, "ESP on a lost SA, answered"),
            (Kind::RequestAnswer, "a request in a lost IKE SA, answered"),
            (Kind::SirAnswer, "a query, answered"),
        ];
        let of_maker = asked.iter().filter_map(|(kind, what)| Some((*what, *maker.get(kind)?)));
        let of_maker = of_maker.map(|(what, us)| (Side::Maker, what, us));
        let of_taker = took.of_taker.iter_mut().map(|(what, took)| (Side::Taker, *what, median(took)));
        let of_both = of_maker.chain(of_taker);
        checks.extend(of_both.map(|(side, what, us)| Check { method, side, what: what.to_owned(), us }));
    }
    Ok(checks)
}

#[derive(Default)]
struct Took {
    of_maker: Samples,
    of_taker: BTreeMap<&'static str, Vec<Duration>>,
}

struct Pair {
    scenario: Scenario,
    now: Time,
    clock: Rc<Cell<Time>>,
    disk: Disk,
    server: Server,
    peer: Herd,
    members: Rc<Members>,
    /// On their way to the peer.
    to_peer: Vec<Datagram>,
}

impl Pair {
    /// Both begin, and the peer initiates.
    fn new(scenario: &Scenario) -> anyhow::Result<Pair> {
        let now = Time(1);
        let clock = Rc::new(Cell::new(now));
        let mut disk = Disk::default();
        let mut unseen = Samples::default();
        let (server, round) = Server::start(scenario, &mut disk, now, false, &Costs::default(), &mut unseen)?;
        let members = Rc::new(Members::new(1, &clock));
        let peer = Herd::start(scenario, 0, 1, &members);
        let mut pair = Pair {
            scenario: *scenario,
            now,
            clock,
            disk,
            server,
            peer,
            members,
            to_peer: round.transmits.into_iter().map(across).collect(),
        };
        pair.exchange()?;
        pair.members.outbound(0).context("no SA was made")?;
        Ok(pair)
    }

    /// All that both have to say to each other now.
    fn exchange(&mut self) -> anyhow::Result<()> {
        let mut unseen = Samples::default();
        for _ in 0..MESSAGES {
            self.sent_by_peer(&mut unseen)?;
            let Some(datagram) = self.to_peer.pop() else { return Ok(()) };
            self.peer.receive(self.now, datagram);
        }
        bail!("there is no end after {MESSAGES} messages")
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now.after(time);
        self.clock.set(self.now);
    }

    /// Carries all that the peer wants sent to the concentrator, and works there; did it initiate?
    fn sent_by_peer(&mut self, samples: &mut Samples) -> anyhow::Result<bool> {
        let mut initiates = false;
        loop {
            while let Some(datagram) = self.peer.poll(self.now) {
                initiates |= is_initiation(&datagram.data);
                self.server.receive(across(datagram));
            }
            if self.peer.deadline().is_none_or(|at| at > self.now) {
                break;
            }
            self.peer.tick(self.now);
        }
        self.work(samples)?;
        Ok(initiates)
    }

    fn work(&mut self, samples: &mut Samples) -> anyhow::Result<()> {
        while self.server.next_round(self.now).is_some_and(|at| at <= self.now) {
            let round = self.server.round(self.now, &Costs::default(), samples)?;
            self.to_peer.extend(round.transmits.into_iter().map(across));
        }
        Ok(())
    }

    /// The concentrator crashes and is ready again; the peer sends a packet, and each message goes across until the peer
    /// initiates.
    fn crash(mut self, took: &mut Took) -> anyhow::Result<()> {
        self.pass(SETTLING);
        self.exchange()?;
        let spi = self.members.outbound(0).context("no SA")?;
        self.server.commit()?;
        self.disk.kill();
        self.members.cut(0, Some(self.now));
        let (server, round) = Server::start(
            &self.scenario,
            &mut self.disk,
            self.now,
            true,
            &Costs::default(),
            &mut took.of_maker,
        )?;
        self.server = server;
        self.to_peer = round.transmits.into_iter().map(across).collect();
        let mut esp = Some(spi).filter(|_| self.scenario.method != Method::Liveness);
        for _ in 0..MESSAGES {
            self.work(&mut took.of_maker)?;
            if let Some(datagram) = self.to_peer.pop() {
                if self.receive(datagram, took)? {
                    return Ok(());
                }
            } else if let Some(spi) = esp.take() {
                self.esp(spi);
            } else if let Some(at) =
                self.server.next_round(self.now).filter(|at| Some(*at) < self.peer.deadline())
            {
                self.pass(at.since(self.now));
            } else if self.tick(took)? {
                return Ok(());
            }
        }
        bail!("the peer has not found out after {MESSAGES} messages")
    }

    /// Nothing is under way: what the peer waits for, it does. Is that all that is to be seen?
    fn tick(&mut self, took: &mut Took) -> anyhow::Result<bool> {
        let deadline = self.peer.deadline().context("the peer waits for nothing")?;
        self.pass(deadline.since(self.now));
        let began = Instant::now();
        self.peer.tick(self.now);
        let waited = began.elapsed();
        let Some(datagram) = self.peer.poll(self.now) else { return Ok(false) };
        if self.scenario.method == Method::Liveness {
            took.of_taker.entry("a liveness check, sent").or_default().push(waited);
            return Ok(true);
        }
        let initiates = is_initiation(&datagram.data);
        self.server.receive(across(datagram));
        Ok(self.sent_by_peer(&mut took.of_maker)? || initiates)
    }

    fn esp(&mut self, spi: Spi) {
        let end = |ip| SocketAddr::new(ip, 0);
        self.server.esp(self.now, spi, end(Scenario::address(0)), end(Scenario::concentrator()));
    }

    /// A message comes to the peer, a forged one of its kind before it; was that enough?
    fn receive(&mut self, datagram: Datagram, took: &mut Took) -> anyhow::Result<bool> {
        let Some(Seen { what, forged, last }) = Seen::of(&datagram.data) else {
            self.peer.receive(self.now, datagram);
            return self.sent_by_peer(&mut took.of_maker);
        };
        if let Some((what, data)) = forged {
            let forged = Datagram { data, ..datagram.clone() };
            took.of_taker.entry(what).or_default().push(self.timed(forged));
            if self.sent_by_peer(&mut took.of_maker)? {
                bail!("{what}: it was believed");
            }
        }
        took.of_taker.entry(what).or_default().push(self.timed(datagram));
        Ok(self.sent_by_peer(&mut took.of_maker)? || last)
    }

    /// The time that the peer takes for a message and what it begins for it.
    fn timed(&mut self, datagram: Datagram) -> Duration {
        let began = Instant::now();
        self.peer.receive(self.now, datagram);
        self.peer.tick(self.now);
        began.elapsed()
    }
}

fn is_initiation(data: &[u8]) -> bool {
    let first = |view: View<'_>| view.header().exchange == exchange::IKE_SA_INIT && !view.header().response;
    View::parse(data).is_ok_and(first)
}

/// What comes to the peer, and something forged that looks like it.
struct Seen {
    what: &'static str,
    forged: Option<(&'static str, Vec<u8>)>,
    /// Nothing after it says more about the crash.
    last: bool,
}

impl Seen {
    /// `None`: it says nothing of a crash.
    fn of(data: &[u8]) -> Option<Seen> {
        let header = View::parse(data).ok()?.header();
        let seen = |what| Some(Seen { what, forged: None, last: false });
        match (header.exchange, header.response) {
            (exchange::IKE_AUTH, false) => {
                let what = "IKE_AUTH with INITIAL_CONTACT: authenticated";
                return Some(Seen { what, forged: None, last: true });
            }
            (exchange::IKE_SA_INIT, false) => return seen("IKE_SA_INIT of the restarted side: answered"),
            _ => {}
        }
        let message = Message::parse(data).ok()?;
        let forged = |kind| Some(changed(&message, kind)?.emit());
        if let Some(data) = forged(notify::QUICK_CRASH_DETECTION) {
            let forged = Some(("a token that does not match", data));
            return Some(Seen { what: "a token that matches: initiated anew", forged, last: false });
        }
        if header.response
            && let Some(data) = forged(notify::SIR_CHECK_SPI)
        {
            let forged = Some(("a NACK without our cookie", data));
            return Some(Seen { what: "a NACK with our cookie", forged, last: false });
        }
        let is_hint = [notify::INVALID_SPI, notify::INVALID_IKE_SPI];
        let kinds = message.payloads.iter().filter_map(kind);
        if kinds.into_iter().any(|kind| is_hint.contains(&kind)) { seen("a hint: asked") } else { None }
    }
}

fn kind(payload: &Payload) -> Option<u16> {
    match payload {
        Payload::Notify(notify) => Some(notify.kind),
        _ => None,
    }
}

/// The message with another last octet in its first notification of a kind.
fn changed(message: &Message, wanted: u16) -> Option<Message> {
    let mut changed = message.clone();
    let found = changed.payloads.iter_mut().find_map(|payload| match payload {
        Payload::Notify(notify) if notify.kind == wanted => notify.data.last_mut(),
        _ => None,
    });
    *found? ^= 1;
    Some(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The figures are the machine's; what was seen is not.
    #[test]
    fn each_methods_messages_are_seen_on_both_sides_and_no_forged_one_is_believed() {
        let checks = checks(7).expect("every crash is found");
        let of = |method: Method, side: Side| -> Vec<&str> {
            let of_it = checks.iter().filter(|check| (check.method, check.side) == (method, side));
            of_it.map(|check| &*check.what).collect()
        };
        let tokens = ["a token that does not match", "a token that matches: initiated anew"];
        assert_eq!(of(Method::QcdJournal, Side::Taker), tokens);
        // A token that does not match is a hint still, and has the peer ask.
        let both = ["ESP on a lost SA, answered", "a request in a lost IKE SA, answered"];
        assert_eq!(of(Method::QcdJournal, Side::Maker), both);
        assert_eq!(of(Method::Qcd, Side::Taker), ["a hint: asked", tokens[0], tokens[1]]);
        assert_eq!(of(Method::Qcd, Side::Maker), both);
        let nacks = ["a NACK with our cookie", "a NACK without our cookie", "a hint: asked"];
        assert_eq!(of(Method::Sir, Side::Taker), nacks);
        // Where SIR cannot tell, liveness does: a hint has the peer ask in both ways.
        assert_eq!(of(Method::Sir, Side::Maker), [both[0], both[1], "a query, answered"]);
        assert_eq!(of(Method::Liveness, Side::Taker), ["a liveness check, sent"]);
        assert_eq!(
            of(Method::InitialContact, Side::Taker),
            ["IKE_AUTH with INITIAL_CONTACT: authenticated", "IKE_SA_INIT of the restarted side: answered"]
        );
        assert!(checks.iter().all(|check| check.us > 0.0), "{checks:?}");
    }
}
