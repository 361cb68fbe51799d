//! What a recovery looked like on the wire of the gateway that was restarted: timeline, counts, round trips.
//!
//! # The rule for round trips
//!
//! A round trip is a request and the answer that it caused, both seen on the restarted gateway's outer interface
//! between the first ESP packet that reaches it when it is ready and the first one that it can deliver. Requests come
//! from the peer, answers from the restarted gateway:
//!
//! - an ESP packet on an SPI, and the clear INVALID_SPI that names this SPI (with a token or without); further
//!   packets on the same SPI ask nothing new;
//! - an IKE request, and the response with the same SPI of the initiator, exchange type and Message ID (clear or
//!   protected); a retransmission asks nothing new, an IKE_SA_INIT with a COOKIE or another key exchange does.
//!
//! A packet that the gateway answers reached it ready, even if it lay in a queue a moment before the gateway said so.
//!
//! The answer that leaves the gateway and the next request that comes in because of it are one round-trip time
//! apart at this interface. So only a request that comes at least that much later than the answer before it can have
//! been caused by it; what crossed it on the way ran beside it and is not counted again. The number of round trips
//! is the longest such chain.
//!
//! *The last half.* The first ESP packet's own way to the gateway lies before the interval, and the last answer's way
//! back together with the first delivered ESP packet's way in make the last round trip whole. Hence each counted pair
//! costs exactly one round-trip time between the two ESP packets: ESP → INVALID_SPI with token, IKE_SA_INIT,
//! IKE_AUTH are 3, delivered with the ESP packet that IKE_AUTH's response lets go; with a probe and its answer between
//! them they are 4.
//!
//! *Where the restarted gateway asks* ([`Recovery::initiated_by_the_gateway`]), requests come from it and answers from
//! the peer, and the interval begins with its start: each pair takes a round-trip time here by itself, and a request
//! that leaves after the answer before it may have been caused by it. IKE_SA_INIT and IKE_AUTH are 2, and right behind
//! the last answer comes the first ESP packet that can be delivered. One that a peer sends on the new SA before its
//! IKE_AUTH response comes to a gateway that has not this SA yet, and can't.

use crate::event::{Kind, Notify, WireEvent, number};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

/// A crash as the testbed knows it. Times are CLOCK_REALTIME in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Crash {
    /// Outer address of the gateway that crashed.
    pub gateway: IpAddr,
    /// When its processes were killed.
    pub killed: u64,
    /// When it was started again.
    pub started: u64,
    /// When it said that it was ready.
    pub ready: u64,
    /// Round-trip time of the link.
    pub round_trip: Duration,
}

/// Who asked what.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Question {
    /// An ESP packet on an SPI that the gateway did not know.
    UnknownSpi(u32),
    /// An IKE request.
    Ike {
        /// IKE SA Initiator's SPI.
        initiator_spi: u64,
        /// Exchange Type.
        exchange: u8,
        /// Message ID.
        message_id: u32,
        /// Tells requests in clear apart that share all of these (IKE_SA_INIT with a cookie); 0 for protected ones.
        digest: u64,
    },
}

impl Question {
    fn is_ike(&self) -> bool {
        matches!(self, Question::Ike { .. })
    }
}

/// A request and the answer that it caused. Times are CLOCK_REALTIME in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exchange {
    /// What was asked.
    pub question: Question,
    /// When the request arrived: its last transmission before the answer.
    pub request: u64,
    /// When the answer left.
    pub answer: u64,
    /// Whether the answer carried a token in clear.
    pub token: bool,
}

/// The moments of a recovery, CLOCK_REALTIME in nanoseconds; `None` for what did not happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Timeline {
    /// The first ESP packet that reached the gateway when it was ready.
    pub first_esp: Option<u64>,
    /// Its first INVALID_SPI in clear.
    pub invalid_spi: Option<u64>,
    /// The peer's first protected INFORMATIONAL request.
    pub probe: Option<u64>,
    /// The gateway's first message with a token in clear: with INVALID_SPI, or in the answer to the probe.
    pub token: Option<u64>,
    /// The first query whether an IKE SA is known, in clear (draft-detienne-ikev2-recovery-03).
    pub query: Option<u64>,
    /// The answer to it.
    pub query_answer: Option<u64>,
    /// Whether a ticket led to the new IKE SA: what follows is IKE_SESSION_RESUME where it says IKE_SA_INIT.
    pub resumed: bool,
    /// The IKE_SA_INIT request that led to the new IKE SA.
    pub ike_sa_init_request: Option<u64>,
    /// Its response.
    pub ike_sa_init_response: Option<u64>,
    /// The IKE_AUTH request.
    pub ike_auth_request: Option<u64>,
    /// Its response.
    pub ike_auth_response: Option<u64>,
    /// The first ESP packet on an SPI that no packet had used before the crash; where the gateway asks, the first
    /// behind the IKE_AUTH response.
    pub first_esp_on_new_sa: Option<u64>,
}

impl Timeline {
    /// The moments with their names, in the order of a recovery. A token that came with INVALID_SPI is one moment.
    pub fn moments(&self) -> Vec<(&'static str, u64)> {
        let together = self.token.is_some() && self.token == self.invalid_spi;
        let invalid_spi = if together { "INVALID_SPI with token" } else { "INVALID_SPI" };
        let [request, response] = if self.resumed {
            ["IKE_SESSION_RESUME request", "IKE_SESSION_RESUME response"]
        } else {
            ["IKE_SA_INIT request", "IKE_SA_INIT response"]
        };
        let moments = [
            ("first ESP at ready B", self.first_esp),
            (invalid_spi, self.invalid_spi),
            ("probe", self.probe),
            ("answer with token", self.token.filter(|_| !together)),
            ("query in clear", self.query),
            ("its answer", self.query_answer),
            (request, self.ike_sa_init_request),
            (response, self.ike_sa_init_response),
            ("IKE_AUTH request", self.ike_auth_request),
            ("IKE_AUTH response", self.ike_auth_response),
            ("first ESP on the new SA", self.first_esp_on_new_sa),
        ];
        moments.into_iter().filter_map(|(what, at)| Some((what, at?))).collect()
    }
}

/// How many messages of each kind crossed the gateway's outer interface in a span of time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct Counts {
    /// ESP packets to the gateway.
    pub esp_in: usize,
    /// ESP packets from the gateway.
    pub esp_out: usize,
    /// INVALID_SPI in clear from the gateway.
    pub invalid_spi: usize,
    /// INVALID_IKE_SPI in clear from the gateway.
    pub invalid_ike_spi: usize,
    /// Tokens in clear from the gateway; a message can hold several.
    pub tokens: usize,
    /// Protected INFORMATIONAL requests to the gateway, retransmissions included.
    pub informational_requests: usize,
    /// IKE_SA_INIT requests to the gateway.
    pub ike_sa_init_requests: usize,
    /// IKE_SA_INIT requests from the gateway.
    pub ike_sa_init_requests_out: usize,
    /// IKE_AUTH requests to the gateway.
    pub ike_auth_requests: usize,
    /// IKE messages to the gateway, all of them.
    pub ike_in: usize,
    /// IKE messages from the gateway, all of them.
    pub ike_out: usize,
}

/// What one crash and its recovery looked like on the wire.
#[derive(Debug)]
pub struct Recovery<'a> {
    crash: Crash,
    events: &'a [WireEvent],
    /// Does the gateway ask, and the peer answer?
    asks: bool,
}

impl<'a> Recovery<'a> {
    /// Looks at a capture on the gateway's outer interface that began before the crash.
    pub fn new(events: &'a [WireEvent], crash: Crash) -> Recovery<'a> {
        Recovery { crash, events, asks: false }
    }

    /// The same where the restarted gateway is the one that initiates.
    pub fn initiated_by_the_gateway(self) -> Recovery<'a> {
        Recovery { asks: true, ..self }
    }

    fn is_request(&self, event: &WireEvent) -> bool {
        if self.asks { self.is_out(event) } else { self.is_in(event) }
    }

    fn is_answer(&self, event: &WireEvent) -> bool {
        if self.asks { self.is_in(event) } else { self.is_out(event) }
    }

    fn is_in(&self, event: &WireEvent) -> bool {
        event.destination == Some(self.crash.gateway)
    }

    fn is_out(&self, event: &WireEvent) -> bool {
        event.source == Some(self.crash.gateway)
    }

    /// Events from the moment on at which the gateway was ready.
    fn since_ready(&self) -> impl Iterator<Item = &'a WireEvent> {
        let ready = self.crash.ready;
        self.events.iter().filter(move |event| event.at >= ready)
    }

    /// Events from the moment on at which the gateway was started again.
    fn since_started(&self) -> impl Iterator<Item = &'a WireEvent> {
        let started = self.crash.started;
        self.events.iter().filter(move |event| event.at >= started)
    }

    /// The moments of the recovery. The control process can answer before the gateway is ready, so IKE messages are
    /// looked for from its start on, ESP packets from ready on.
    pub fn timeline(&self) -> Timeline {
        let first = |wanted: &dyn Fn(&WireEvent) -> bool| {
            self.since_started().find(|event| wanted(event)).map(|event| event.at)
        };
        let clear = |event: &WireEvent, kind| self.is_out(event) && is_clear_notification(event, kind);
        let first_from = |since: Option<u64>, exchanges: &[u8], response: bool| {
            let since = since?;
            first(&|event| {
                let right_way = if response { self.is_answer(event) } else { self.is_request(event) };
                event.at >= since
                    && right_way
                    && event.ike().is_some_and(|message| {
                        exchanges.contains(&message.exchange)
                            && message.response == response
                            && message.notify(number::TICKET_NACK).is_none()
                            && message.notify(number::COOKIE).is_none_or(|_| !response)
                            && message.notify(number::INVALID_KE_PAYLOAD).is_none()
                    })
            })
        };
        // Each step is looked for after the one before it.
        const FIRST: [u8; 2] = [number::IKE_SA_INIT, number::IKE_SESSION_RESUME];
        let init_response = first_from(Some(self.crash.started), &FIRST, true);
        let init = init_response.and_then(|response| {
            let is_init = |event: &&WireEvent| {
                event.at <= response
                    && self.is_request(event)
                    && event
                        .ike()
                        .is_some_and(|message| FIRST.contains(&message.exchange) && !message.response)
            };
            self.since_started().filter(is_init).last()
        });
        let init_request = init.map(|event| event.at);
        let auth_request = first_from(init_response, &[number::IKE_AUTH], false);
        let auth_response = first_from(auth_request, &[number::IKE_AUTH], true);
        let query = first_from(Some(self.crash.started), &[number::SIR], false);
        Timeline {
            first_esp: self.first_esp(),
            invalid_spi: first(&|event| clear(event, number::INVALID_SPI)),
            // A later one asks on the new SA.
            probe: first(&|event| self.is_in(event) && is_probe(event))
                .filter(|at| init_request.is_none_or(|init| *at < init)),
            token: first(&|event| clear(event, number::QCD_TOKEN)),
            query,
            query_answer: first_from(query, &[number::SIR], true),
            resumed: init
                .and_then(WireEvent::ike)
                .is_some_and(|message| message.exchange == number::IKE_SESSION_RESUME),
            ike_sa_init_request: init_request,
            ike_sa_init_response: init_response,
            ike_auth_request: auth_request,
            ike_auth_response: auth_response,
            first_esp_on_new_sa: self.first_esp_on_new_sa(auth_response.filter(|_| self.asks)),
        }
    }

    /// The first ESP packet that reached the gateway when it was ready. One that it answers with INVALID_SPI reached it
    /// ready, even if it lay in the queue while the gateway was still about to say so.
    fn first_esp(&self) -> Option<u64> {
        let is_esp = |event: &&WireEvent| self.is_in(event) && event.esp().is_some();
        let first = self.since_ready().find(is_esp).map(|event| event.at);
        [first, self.first_unknown()].into_iter().flatten().min()
    }

    /// The ESP packet that the gateway's first INVALID_SPI since its start answers.
    pub fn first_unknown(&self) -> Option<u64> {
        let mut answers = self.since_started().filter(|event| self.is_out(event));
        let (answered, spi) = answers.find_map(|event| Some((event.at, unknown_spi(event)?)))?;
        let asked = |event: &&WireEvent| self.is_in(event) && event.esp() == Some(spi);
        self.since_started()
            .filter(asked)
            .take_while(|event| event.at <= answered)
            .last()
            .map(|event| event.at)
    }

    /// The first ESP packet to the ready gateway on an SPI that nobody used before it was started again, behind the
    /// answer that it takes: its control process can make an SA before its dataplane is ready.
    fn first_esp_on_new_sa(&self, answered: Option<u64>) -> Option<u64> {
        let old: BTreeSet<u32> = self
            .events
            .iter()
            .filter(|event| event.at < self.crash.started && self.is_in(event))
            .filter_map(WireEvent::esp)
            .collect();
        let is_new =
            |event: &&WireEvent| self.is_in(event) && event.esp().is_some_and(|spi| !old.contains(&spi));
        let asked: BTreeSet<u32> = self.since_ready().filter_map(unknown_spi).collect();
        self.since_ready()
            .filter(is_new)
            .filter(|event| answered.is_none_or(|answered| event.at >= answered))
            .find(|event| event.esp().is_some_and(|spi| !asked.contains(&spi)))
            .map(|event| event.at)
    }

    /// Messages since the gateway was started again, until a time.
    pub fn counts(&self, until: u64) -> Counts {
        let mut counts = Counts::default();
        for event in self.events.iter().filter(|event| (self.crash.started..=until).contains(&event.at)) {
            match (&event.kind, self.is_in(event), self.is_out(event)) {
                (Kind::Esp { .. }, true, _) => counts.esp_in += 1,
                (Kind::Esp { .. }, _, true) => counts.esp_out += 1,
                (Kind::Ike(message), true, _) => {
                    counts.ike_in += 1;
                    counts.informational_requests += usize::from(is_probe(event));
                    let request = |exchange| usize::from(message.exchange == exchange && !message.response);
                    counts.ike_sa_init_requests += request(number::IKE_SA_INIT);
                    counts.ike_auth_requests += request(number::IKE_AUTH);
                }
                (Kind::Ike(message), _, true) => {
                    counts.ike_out += 1;
                    let clear = |kind| usize::from(is_clear_notification(event, kind));
                    counts.invalid_spi += clear(number::INVALID_SPI);
                    counts.invalid_ike_spi += clear(number::INVALID_IKE_SPI);
                    counts.tokens += tokens_in_clear(event);
                    counts.ike_sa_init_requests_out +=
                        usize::from(message.exchange == number::IKE_SA_INIT && !message.response);
                }
                _ => {}
            }
        }
        counts
    }

    /// Requests and the answers that they caused, each once, from the first ESP packet at the ready gateway until the
    /// first on the new SA (or the capture's end), by the time of the answer.
    pub fn exchanges(&self) -> Vec<Exchange> {
        let timeline = self.timeline();
        let first = if self.asks { Some(self.crash.started) } else { timeline.first_esp };
        let Some(first) = first else { return Vec::new() };
        let last = timeline.first_esp_on_new_sa.unwrap_or(u64::MAX);
        let mut asked: Vec<(Question, u64)> = Vec::new();
        let mut exchanges: Vec<Exchange> = Vec::new();
        for event in self.events.iter().filter(|event| (first..=last).contains(&event.at)) {
            if self.is_request(event)
                && let Some(question) = question(event).filter(|question| !self.asks || question.is_ike())
            {
                match asked.iter_mut().find(|(known, _)| *known == question) {
                    Some((_, at)) => *at = event.at,
                    None => asked.push((question, event.at)),
                }
            } else if self.is_answer(event) {
                let answered = asked.iter().rev().find(|(question, _)| answers(event, question));
                if let Some(&(question, request)) = answered
                    && exchanges.iter().all(|exchange| exchange.question != question)
                {
                    let token = is_clear_notification(event, number::QCD_TOKEN);
                    exchanges.push(Exchange { question, request, answer: event.at, token });
                }
            }
        }
        exchanges
    }

    /// The number of round trips by the rule of this module; `None` if no ESP packet came on a new SA.
    pub fn round_trips(&self) -> Option<usize> {
        self.timeline().first_esp_on_new_sa?;
        let round_trip = if self.asks { Duration::ZERO } else { self.crash.round_trip };
        let round_trip = u64::try_from(round_trip.as_nanos()).unwrap_or(u64::MAX);
        // By the time of their answers, each that can follow the one before: that makes the longest chain.
        let mut last_answer = None;
        let mut count = 0;
        for exchange in self.exchanges() {
            if last_answer.is_none_or(|answer: u64| exchange.request >= answer.saturating_add(round_trip)) {
                last_answer = Some(exchange.answer);
                count += 1;
            }
        }
        Some(count)
    }
}

/// A protected INFORMATIONAL request: a liveness check, as far as can be seen.
fn is_probe(event: &WireEvent) -> bool {
    event.ike().is_some_and(|message| {
        message.exchange == number::INFORMATIONAL && message.protected && !message.response
    })
}

fn is_clear_notification(event: &WireEvent, kind: u16) -> bool {
    event.ike().is_some_and(|message| !message.protected && message.notify(kind).is_some())
}

fn tokens_in_clear(event: &WireEvent) -> usize {
    let message = event.ike().filter(|message| !message.protected);
    let is_token = |notify: &&Notify| notify.kind == number::QCD_TOKEN;
    message.map_or(0, |message| message.notifies.iter().filter(is_token).count())
}

/// The SPI that a clear INVALID_SPI names.
fn unknown_spi(event: &WireEvent) -> Option<u32> {
    let message = event.ike().filter(|message| !message.protected)?;
    let data = message.notify(number::INVALID_SPI)?;
    data.try_into().ok().map(u32::from_be_bytes)
}

fn question(event: &WireEvent) -> Option<Question> {
    match &event.kind {
        Kind::Esp { spi, .. } => Some(Question::UnknownSpi(*spi)),
        Kind::Ike(message) if !message.response && (message.protected || message.initiator_spi != 0) => {
            Some(Question::Ike {
                initiator_spi: message.initiator_spi,
                exchange: message.exchange,
                message_id: message.message_id,
                digest: if message.protected { 0 } else { message.digest },
            })
        }
        _ => None,
    }
}

fn answers(event: &WireEvent, question: &Question) -> bool {
    match *question {
        Question::UnknownSpi(spi) => unknown_spi(event) == Some(spi),
        Question::Ike { initiator_spi, exchange, message_id, .. } => event.ike().is_some_and(|message| {
            message.response
                && (message.initiator_spi, message.exchange, message.message_id)
                    == (initiator_spi, exchange, message_id)
        }),
    }
}

#[cfg(test)]
#[path = "timeline_tests.rs"]
mod tests;
