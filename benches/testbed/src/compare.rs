//! Compares what the wire shows with what a gateway says of itself. Whoever counts an event that was not sent, or
//! sends one that is not counted, is found here.

use crate::event::{Kind, WireEvent, number};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

/// How the gateway names the exchanges.
const EXCHANGES: [(u8, &str); 5] = [
    (number::IKE_SA_INIT, "ike_sa_init"),
    (number::IKE_AUTH, "ike_auth"),
    (number::CREATE_CHILD_SA, "create_child_sa"),
    (number::INFORMATIONAL, "informational"),
    (number::IKE_SESSION_RESUME, "ike_session_resume"),
];
const OTHER: &str = "other_exchange";

/// How many events of each kind a gateway's outer wire shows in a span of time. A kind's name is where `spindle stats
/// --json` counts it: the part, a slash, and the counter, or those (with `+` between) of which exactly one counts it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tally(BTreeMap<String, u64>);

impl Tally {
    /// Of the gateway with this outer address; times are CLOCK_REALTIME in nanoseconds.
    pub fn of(events: &[WireEvent], gateway: IpAddr, span: RangeInclusive<u64>) -> Tally {
        let mut tally = Tally::none();
        for event in events.iter().filter(|event| span.contains(&event.at)) {
            if event.source == Some(gateway) {
                tally.sent(event);
            } else if event.destination == Some(gateway) {
                tally.received(event);
            }
        }
        tally
    }

    /// Every kind that is compared, so that a counter that is missing differs.
    fn none() -> Tally {
        let mut tally = Tally(BTreeMap::new());
        for way in ["sent", "received"] {
            tally.add(datagrams(way), 0);
            for exchange in EXCHANGES.map(|(_, name)| name).into_iter().chain([OTHER]) {
                for what in ["requests", "responses"] {
                    tally.add(&format!("control/{exchange}_{what}_{way}"), 0);
                }
            }
        }
        for name in [
            "control/tokens-sent",
            "control/invalid-spi-sent",
            "control/invalid-ike-spi-sent",
            "control/hints+proofs",
            "dataplane/delivered_outside",
            "dataplane/received_outside",
        ] {
            tally.add(name, 0);
        }
        tally
    }

    fn add(&mut self, name: &str, count: usize) {
        *self.0.entry(name.to_owned()).or_default() += count as u64;
    }

    fn sent(&mut self, event: &WireEvent) {
        match &event.kind {
            Kind::Esp { .. } => self.add("dataplane/delivered_outside", 1),
            Kind::Ike(message) => {
                self.ike(event, "sent");
                let clear = |kind| {
                    let all = message.notifies.iter().filter(|_| !message.protected);
                    all.filter(|notify| notify.kind == kind).count()
                };
                self.add("control/tokens-sent", clear(number::QCD_TOKEN));
                self.add("control/invalid-spi-sent", clear(number::INVALID_SPI).min(1));
                self.add("control/invalid-ike-spi-sent", clear(number::INVALID_IKE_SPI).min(1));
            }
            _ => {}
        }
    }

    fn received(&mut self, event: &WireEvent) {
        match &event.kind {
            Kind::Esp { .. } => self.add("dataplane/received_outside", 1),
            Kind::Ike(message) => {
                self.ike(event, "received");
                // A message in clear that tells of an unknown SPI is proof, by its token, or else a hint.
                let tells = |kind| message.notify(kind).is_some();
                let unknown = tells(number::INVALID_SPI) || tells(number::INVALID_IKE_SPI);
                self.add("control/hints+proofs", usize::from(!message.protected && unknown));
            }
            _ => {}
        }
    }

    fn ike(&mut self, event: &WireEvent, way: &str) {
        let Some(message) = event.ike() else { return };
        let exchange = EXCHANGES.iter().find(|(number, _)| *number == message.exchange);
        let exchange = exchange.map_or(OTHER, |(_, name)| name);
        let what = if message.response { "responses" } else { "requests" };
        self.add(datagrams(way), 1);
        self.add(&format!("control/{exchange}_{what}_{way}"), 1);
    }

    /// With a kind more that somebody else has counted.
    #[must_use]
    pub fn with(mut self, name: &str, count: usize) -> Tally {
        self.0.insert(name.to_owned(), count as u64);
        self
    }

    /// Where the link has dropped so many of the frames that the gateway sent, before anybody saw them.
    #[must_use]
    pub fn and_unseen(mut self, frames: u64) -> Tally {
        let sent = |name: &str| name.ends_with("sent") || name == "dataplane/delivered_outside";
        self.0.iter_mut().filter(|(name, _)| sent(name)).for_each(|(_, count)| *count += frames);
        self
    }

    /// Where the link has dropped so many of the frames that were seen on their way to the gateway.
    #[must_use]
    pub fn less_dropped(mut self, frames: u64) -> Tally {
        let frames_of = [datagrams("received"), "dataplane/received_outside", "dataplane/decapsulated"];
        let received = |name: &str| is_of_received_ike(name) || frames_of.contains(&name);
        let all = self.0.iter_mut().filter(|(name, _)| received(name));
        all.for_each(|(_, count)| *count = count.saturating_sub(frames));
        self
    }

    /// Events of a kind.
    pub fn count(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }
}

/// Is it a kind of IKE message that was received, whichever?
fn is_of_received_ike(kind: &str) -> bool {
    kind.ends_with("_received") || kind == "control/hints+proofs"
}

/// What the kernel dropped, its queue being full, had come too.
fn datagrams(way: &str) -> &'static str {
    match way {
        "sent" => "control/datagrams_sent",
        _ => "control/datagrams_received+datagrams_lost",
    }
}

/// Each kind of event of which a gateway's `stats` (from `spindle stats --json`) count fewer or more than its wire
/// shows, in words. The two tallies differ by what nobody can know: an event on the wire of a gateway that is not yet
/// ready may be one that it saw.
pub fn disagreements(at_least: &Tally, at_most: &Tally, stats: &serde_json::Value) -> Vec<String> {
    let counted = |kind: &str| {
        let (part, counters) = kind.split_once('/')?;
        counters.split('+').map(|counter| stats[part][counter].as_u64()).sum::<Option<u64>>()
    };
    // Of which kind they were, nobody knows.
    let lost = counted("control/datagrams_lost").unwrap_or(0);
    let judge = |(kind, most): (&String, &u64)| {
        let least = at_least.count(kind).saturating_sub(if is_of_received_ike(kind) { lost } else { 0 });
        let seen = if least == *most { format!("{most}") } else { format!("{least} to {most}") };
        match counted(kind) {
            Some(said) if (least..=*most).contains(&said) => None,
            Some(said) => Some(format!("{kind}: the gateway counts {said}, the wire shows {seen}")),
            None => Some(format!("{kind}: the gateway does not count it, the wire shows {seen}")),
        }
    };
    at_most.0.iter().filter_map(judge).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::craft;
    use crate::event::wire_events;
    use crate::pcap::Frame;
    use serde_json::{Value, json};
    use std::net::Ipv4Addr;

    const A: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const B: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

    /// One of each that B can send or receive.
    fn wire() -> Vec<WireEvent> {
        let mut frames = Vec::new();
        let mut frame = |from, payload: &[u8]| {
            let (to, at) = (if from == A { B } else { A }, frames.len() as u64);
            frames.push(Frame { at, octets: craft::udp_frame((from, 500), (to, 500), payload) });
        };
        let sk = craft::payload(0, &[3; 40]);
        let told =
            [craft::notify(41, number::INVALID_SPI, &[9; 4]), craft::notify(0, number::QCD_TOKEN, &[7; 32])];
        let unknown = craft::notify(0, number::INVALID_IKE_SPI, &[]);
        for side in [A, B] {
            for exchange in [34, 35, 36, 37, 38, 43] {
                for flags in [0x08, 0x20] {
                    frame(side, &craft::ike((1, 2), 46, exchange, flags, 5, &sk));
                }
            }
            frame(side, &craft::ike((0, 0), 41, number::INFORMATIONAL, 0x08, 0, &told.concat()));
            frame(side, &craft::ike((1, 2), 41, number::INFORMATIONAL, 0x20, 0, &unknown));
        }
        for (from, to) in [(A, B), (B, A)] {
            let at = frames.len() as u64;
            let esp = craft::ipv4(from, to, 50, &craft::esp(0xc000_0001, 1, &[0; 40]));
            frames.push(Frame { at, octets: craft::ethernet([2; 6], [4; 6], 0x0800, &esp) });
        }
        wire_events(&frames)
    }

    /// A gateway that counts right.
    fn honest(tally: &Tally) -> Value {
        let mut stats = json!({"control": {}, "dataplane": {}});
        for (kind, count) in &tally.0 {
            let (part, counters) = kind.split_once('/').expect("a part");
            for (place, counter) in counters.split('+').enumerate() {
                stats[part][counter] = json!(if place == 0 { *count } else { 0 });
            }
        }
        stats
    }

    #[test]
    fn a_difference_of_one_event_is_found_in_every_kind_either_way() {
        let tally = Tally::of(&wire(), B.into(), 0..=u64::MAX);
        assert_eq!(tally.0.len(), 2 + 6 * 4 + 6);
        let more_than_once =
            ["control/datagrams_sent", "control/datagrams_received+datagrams_lost", "control/hints+proofs"];
        for (kind, count) in &tally.0 {
            let expected = if kind.contains("informational_") { 2 } else { 1 };
            assert!(*count == expected || more_than_once.contains(&kind.as_str()), "{kind}: {count}");
        }
        assert_eq!((tally.count("control/datagrams_sent"), tally.count("control/hints+proofs")), (14, 2));
        let stats = honest(&tally);
        assert_eq!(disagreements(&tally, &tally, &stats), [""; 0]);
        for (kind, count) in &tally.0 {
            let (part, counters) = kind.split_once('/').expect("a part");
            let counter = counters.split('+').next().expect("a counter");
            for wrong in [json!(count + 1), json!(count - 1), Value::Null] {
                let mut stats = stats.clone();
                stats[part][counter] = wrong;
                let found = disagreements(&tally, &tally, &stats);
                assert!(found.len() == 1 && found[0].starts_with(kind), "{found:?}");
            }
        }
    }

    /// The kernel does not say which ones it dropped.
    #[test]
    fn a_datagram_that_the_kernel_dropped_is_missing_under_one_kind() {
        let tally = Tally::of(&wire(), B.into(), 0..=u64::MAX);
        let (all, kind) = ("datagrams_received", "informational_requests_received");
        for (missing, found) in [(0, 0), (1, 0), (2, 1)] {
            let mut stats = honest(&tally);
            let count = |name: &str| stats["control"][name].as_u64().expect("a count");
            let (all_seen, kind_seen) = (count(all) - 1, count(kind) - missing);
            stats["control"]["datagrams_lost"] = json!(1);
            stats["control"][all] = json!(all_seen);
            stats["control"][kind] = json!(kind_seen);
            assert_eq!(disagreements(&tally, &tally, &stats).len(), found, "{missing}");
        }
    }

    #[test]
    fn frames_that_a_link_dropped_were_sent_unseen_or_seen_in_vain() {
        let mut tally = Tally::of(&wire(), B.into(), 0..=u64::MAX);
        tally.0.values_mut().for_each(|count| *count += 1);
        let least = tally.clone().less_dropped(1);
        let most = tally.clone().and_unseen(1);
        for (kind, count) in &tally.0 {
            let (part, counters) = kind.split_once('/').expect("a part");
            let counter = counters.split('+').next().expect("a counter");
            let sent = kind.ends_with("sent") || counter == "delivered_outside";
            for (said, found) in [(count + 1, !sent), (count - 1, sent), (count + 2, true), (count - 2, true)]
            {
                let mut stats = honest(&tally);
                stats[part][counter] = json!(said);
                assert_eq!(disagreements(&least, &most, &stats).len(), usize::from(found), "{kind}: {said}");
            }
        }
    }

    #[test]
    fn what_nobody_can_know_is_no_disagreement() {
        let (least, most) =
            (Tally::of(&wire(), B.into(), 5..=u64::MAX), Tally::of(&wire(), B.into(), 0..=u64::MAX));
        assert_eq!(disagreements(&least, &most, &honest(&least)), [""; 0]);
        assert_eq!(disagreements(&least, &most, &honest(&most)), [""; 0]);
        let mut stats = honest(&most);
        stats["control"]["datagrams_received"] =
            json!(most.count("control/datagrams_received+datagrams_lost") + 1);
        assert_eq!(disagreements(&least, &most, &stats).len(), 1);
    }
}
