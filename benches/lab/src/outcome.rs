//! What came of a drill, from the hosts, the captures and the gateways' own reports.

use crate::drill::Drill;
use crate::play::Played;
use crate::watch::Awaited;
use serde::{Deserialize, Serialize};
use spindle_testbed::{
    Crash, Error, GatewayEvent, Moment, Outage, Recovery, Result, Seen, WireEvent, moments, number,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

/// So many events `spindle events` shows at most.
const EVENTS: usize = 4096;

/// What came of a drill.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// What happened.
    pub scenario: String,
    /// How the peer learns of it.
    pub method: String,
    /// Round-trip time between the gateways, in milliseconds.
    pub rtt_ms: u64,
    /// Are packets delivered again, and do both gateways hold the same single IKE SA?
    pub recovered: bool,
    /// Why not.
    pub failure: Option<String>,
    /// Between the last packet delivered before and the first one after, in milliseconds.
    pub outage_ms: Option<f64>,
    /// From ready (where nobody crashed: the end of the loss) to the first packet delivered, in milliseconds.
    pub ready_to_recovered_ms: Option<f64>,
    /// By the rule of [`Recovery::round_trips`]; none where it does not apply.
    pub round_trips: Option<u64>,
    /// IKE messages between the gateways from the last start to the first packet delivered, on B's wire.
    pub messages: Option<u64>,
    /// Packets sent in the outage that never arrived.
    pub packets_lost: Option<u64>,
    /// Established IKE SAs at the end, A's and B's.
    pub ike_sas: [usize; 2],
    /// Tokens in clear on B's wire, from its last start on.
    pub tokens_shown: u64,
    /// Octets of a token, where one was shown.
    pub token_octets: Option<u64>,
    /// Octets of a ticket, where one was presented.
    pub ticket_octets: Option<u64>,
    /// Tokens that matched, by the reports of A's and B's last lives; `None` if a gateway has no longer all of them.
    pub proofs: [Option<u64>; 2],
    /// Why IKE SAs ended, and how many, from the first thing that happened on, by the same reports.
    pub deleted: [Option<BTreeMap<String, u64>>; 2],
    /// Whether a ticket made the new IKE SA.
    pub resumed: bool,
    /// Where many IKE SAs were lost: when half of them stood again on both sides, 99 of a hundred, and all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub back_ms: Option<Back>,
    /// What happened when; empty where a file does not keep it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub timeline: Vec<Moment>,
}

/// Milliseconds from ready on, until so many of all IKE SAs stood on both sides.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Back {
    /// Half of them.
    pub p50: f64,
    /// 99 of a hundred.
    pub p99: f64,
    /// All.
    pub p100: f64,
}

impl Back {
    /// An IKE SA stands on both sides once the IKE_AUTH response is with its initiator. `None` if some response was not seen.
    fn of(
        wires: &[Vec<WireEvent>; 2],
        addresses: [IpAddr; 2],
        initiators: &BTreeSet<u64>,
        since: Crash,
    ) -> Option<Back> {
        let mut arrived = BTreeMap::new();
        for (wire, address) in wires.iter().zip(addresses) {
            let here =
                wire.iter().filter(|event| event.destination == Some(address) && event.at >= since.started);
            for (at, message) in here.filter_map(|event| Some((event.at, event.ike()?))) {
                let is_it = message.exchange == number::IKE_AUTH && message.response && message.protected;
                if is_it && initiators.contains(&message.initiator_spi) {
                    arrived.entry(message.initiator_spi).or_insert(at);
                }
            }
        }
        let mut times: Vec<u64> = arrived.into_values().collect();
        times.sort_unstable();
        if times.is_empty() || times.len() < initiators.len() {
            return None;
        }
        let after = |percent: usize| {
            let at = times[(times.len() * percent).div_ceil(100) - 1];
            (at as f64 - since.ready as f64) / 1e6
        };
        Some(Back { p50: after(50), p99: after(99), p100: after(100) })
    }
}

impl Outcome {
    /// `addresses` are the gateways' own, `ends` all by which B's wire knows them.
    ///
    /// # Errors
    /// If B was not killed within the exchange that it was to be killed in, or if a token left while its IKE SA was alive.
    pub(crate) fn of(
        drill: &Drill,
        played: Played,
        seen: Seen,
        (addresses, ends): ([IpAddr; 2], &[Ipv4Addr]),
        ike_sas: [usize; 2],
    ) -> Result<Outcome> {
        if let Some(awaited) = played.within {
            interrupted(&awaited, &played, &seen, addresses).map_err(Error::Subject)?;
        }
        if let Some(token) = broken_silence(&played.silent, &seen.wires[1]) {
            let text = format!("a token of a living IKE SA left gateway B's side: {token:?}");
            return Err(Error::Subject(text));
        }
        let between = |event: &&WireEvent| {
            let ours = |at: Option<IpAddr>| ends.iter().any(|end| at == Some((*end).into()));
            ours(event.source) && ours(event.destination)
        };
        let wire: Vec<WireEvent> = seen.wires[1].iter().filter(between).cloned().collect();
        let crash = shown_by_answer(&wire, &played);
        let played = Played { from: crash, ..played };
        let of_traffic = |event: &&WireEvent| {
            let pair = event.ike().map_or(0, |message| message.initiator_spi);
            pair == 0 || played.traffic.is_empty() || played.traffic.contains(&pair)
        };
        let of_traffic: Vec<WireEvent> = wire.iter().filter(of_traffic).cloned().collect();
        let all = Recovery::new(&wire, crash);
        let mut recovery = Recovery::new(&of_traffic, crash);
        if drill.method.restarted_side_initiates() {
            recovery = recovery.initiated_by_the_gateway();
        }
        let timeline = recovery.timeline();
        // A packet that passed the gateway before it died can still arrive; none that was sent before can after.
        let outage = seen.logs[played.sender as usize].outage(crash.started);
        let outage = outage.filter(|_| played.failure.is_none());
        let milliseconds = |time: u64| time as f64 / 1e6;
        let until = outage.map_or(u64::MAX, |outage| outage.first_after.received);
        let counts = all.counts(until);
        let all = all.counts(u64::MAX);
        let octets = |kind: u16| {
            let clear = wire.iter().filter_map(WireEvent::ike).filter(|message| !message.protected);
            clear.filter_map(|message| Some(message.notify(kind)?.len() as u64)).max()
        };
        let events = &seen.events;
        let lately = events.each_ref().map(|events| all_since(events, played.began / 1_000));
        Ok(Outcome {
            scenario: drill.scenario.to_string(),
            method: drill.method.to_string(),
            rtt_ms: drill.round_trip.as_millis() as u64,
            recovered: played.failure.is_none(),
            outage_ms: outage.map(|outage| milliseconds(outage.length())),
            ready_to_recovered_ms: outage
                .map(|outage| milliseconds(outage.first_after.received.saturating_sub(crash.ready))),
            round_trips: outage
                .filter(|_| played.has_round_trips)
                .and_then(|_| recovery.round_trips())
                // None if A had nothing to send on, so that no ESP packet came before the new SA.
                .filter(|count| *count != 0)
                .map(|count| count as u64),
            messages: outage.map(|_| (counts.ike_in + counts.ike_out) as u64),
            packets_lost: outage.map(|outage: Outage| outage.lost),
            ike_sas,
            tokens_shown: all.tokens as u64,
            token_octets: octets(number::QCD_TOKEN),
            ticket_octets: octets(number::TICKET_OPAQUE),
            proofs: lately.map(|events| Some(named(events?, "proof").count() as u64)),
            deleted: lately.map(|events| Some(deleted(events?))),
            resumed: timeline.resumed,
            back_ms: Back::of(&seen.wires, addresses, &played.back, crash),
            timeline: complete(&played, moments(&crash, outage.as_ref(), &timeline, events)),
            failure: played.failure,
        })
    }
}

/// What recovery is measured from. Where round trips are counted from a loss on the operator's word, a packet that the
/// gateway did not know came after the loss, even if the command had not said yet that it was done.
fn shown_by_answer(wire: &[WireEvent], played: &Played) -> Crash {
    let said = played.from;
    if played.crashes[1].is_some() || !played.has_round_trips {
        return said;
    }
    let unknown = Recovery::new(wire, Crash { started: played.began, ..said }).first_unknown();
    let at = unknown.map_or(said.ready, |unknown| unknown.min(said.ready));
    Crash { started: at, ready: at, ..said }
}

/// A gateway's events since a time in microseconds; `None` if it may have forgotten some.
fn all_since(events: &[GatewayEvent], since: u64) -> Option<&[GatewayEvent]> {
    let first = events.partition_point(|event| event.at_us < since);
    (first > 0 || events.len() < EVENTS).then(|| &events[first..])
}

fn named<'a>(events: &'a [GatewayEvent], name: &'a str) -> impl Iterator<Item = &'a GatewayEvent> {
    events.iter().filter(move |event| event.event == name)
}

/// Why IKE SAs ended.
fn deleted(events: &[GatewayEvent]) -> BTreeMap<String, u64> {
    let mut deleted = BTreeMap::new();
    for event in named(events, "ike-deleted") {
        let why = event.more.get("detail").and_then(|why| why.as_str()).unwrap_or_default();
        *deleted.entry(why.to_owned()).or_default() += 1;
    }
    deleted
}

/// With what only the play knows; and where nobody was killed, nothing of killing.
fn complete(played: &Played, mut timeline: Vec<Moment>) -> Vec<Moment> {
    if played.crashes[1].is_none() {
        timeline.retain(|moment| !matches!(moment.who.as_str(), "testbed" | "gateway B"));
    }
    let relative = |at: u64| (at as i64 - played.from.ready as i64) / 1_000;
    let more = played.moments.iter().map(|&(at, what)| Moment {
        at_us: relative(at),
        who: "testbed".to_owned(),
        what: what.to_owned(),
    });
    timeline.extend(more);
    timeline.sort_by_key(|moment| moment.at_us);
    timeline
}

/// The first token in clear, to whomever, in these spans of time.
fn broken_silence<'a>(spans: &[(u64, u64)], wire: &'a [WireEvent]) -> Option<&'a WireEvent> {
    let within = |event: &&WireEvent| spans.iter().any(|(from, until)| (*from..*until).contains(&event.at));
    let shows = |event: &&WireEvent| {
        event.ike().is_some_and(|message| !message.protected && message.notify(number::QCD_TOKEN).is_some())
    };
    wire.iter().filter(within).find(shows)
}

/// B was killed within an exchange if its message was sent before, and reached nobody until B was started again.
fn interrupted(
    awaited: &Awaited,
    played: &Played,
    seen: &Seen,
    addresses: [IpAddr; 2],
) -> std::result::Result<(), String> {
    let Some(crash) = played.crashes[1] else { return Err("B was not killed".to_owned()) };
    // The watch began after the tunnel was there: earlier messages of the kind are of its making. A request is sent again
    // to the dead; an answer of the dead must arrive never.
    let alive = played.watched..=if awaited.response { crash.started } else { crash.killed };
    let times = |of: fn(&WireEvent) -> Option<IpAddr>| {
        let both = seen.wires.iter().zip(addresses);
        let found = both.flat_map(move |(wire, address)| {
            let here = move |event: &&WireEvent| of(event) == Some(address);
            wire.iter().filter(here).filter(|event| event.ike().is_some_and(|message| awaited.is(message)))
        });
        found.map(|event| event.at).filter(|at| alive.contains(at)).collect::<Vec<_>>()
    };
    let (sent, arrived) = (times(|event| event.source), times(|event| event.destination));
    match sent.iter().min() {
        Some(&first) if first < crash.killed && arrived.is_empty() => Ok(()),
        _ => Err(format!(
            "B was not killed within the exchange: {awaited:?}: sent at {sent:?}, arrived at {arrived:?}, killed at {}",
            crash.killed
        )),
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, {}, RTT {} ms (µs from B's ready)", self.scenario, self.method, self.rtt_ms)?;
        for moment in &self.timeline {
            writeln!(f, "{moment}")?;
        }
        match &self.failure {
            Some(why) => writeln!(f, "not recovered: {why}")?,
            None => writeln!(f, "recovered")?,
        }
        let time = |time: Option<f64>| time.map_or("–".to_owned(), |time| format!("{time:.1} ms"));
        let count = |count: Option<u64>| count.map_or("–".to_owned(), |count| count.to_string());
        writeln!(
            f,
            "outage {}, ready → recovered {}",
            time(self.outage_ms),
            time(self.ready_to_recovered_ms)
        )?;
        let (round_trips, messages) = (count(self.round_trips), count(self.messages));
        let lost = count(self.packets_lost);
        writeln!(f, "round trips {round_trips}, IKE messages {messages}, packets lost {lost}")?;
        if let Some(Back { p50, p99, p100 }) = self.back_ms {
            writeln!(
                f,
                "of all IKE SAs 50 % were back after {p50:.0} ms, 99 % after {p99:.0} ms, 100 % after {p100:.0} ms"
            )?;
        }
        let reasons = match &self.deleted[0] {
            None => "more than it remembers".to_owned(),
            Some(none) if none.is_empty() => "none".to_owned(),
            Some(reasons) => {
                let reasons = reasons.iter().map(|(why, count)| format!("{count} by {why}"));
                reasons.collect::<Vec<_>>().join(", ")
            }
        };
        writeln!(f, "IKE SAs that ended at A: {reasons}; tokens that B showed: {}", self.tokens_shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_gateway_may_have_forgotten_is_not_counted() {
        let event = |at_us: u64| {
            let event = serde_json::json!({ "at_us": at_us, "event": "proof" });
            serde_json::from_value::<GatewayEvent>(event).expect("an event")
        };
        let events = |from: u64, count: usize| (from..).take(count).map(event).collect::<Vec<_>>();
        let known = |events: Vec<GatewayEvent>, since| all_since(&events, since).map(<[_]>::len);
        assert_eq!(known(events(10, EVENTS - 1), 5), Some(EVENTS - 1));
        assert_eq!(known(events(10, EVENTS), 10), None);
        assert_eq!(known(events(10, EVENTS), 11), Some(EVENTS - 1));
        assert_eq!(known(Vec::new(), 0), Some(0));
    }
}
