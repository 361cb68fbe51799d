//! What a piece of the concentrator's work was, judged by what went in and what came out.

use serde::{Deserialize, Serialize};
use spindle_abi::Event;
use spindle_ike::api::{Datagram, Header, IkeSpi};
use spindle_ike::wire::{View, exchange};
use spindle_recovery::api::{Input, Output};
use std::collections::HashSet;

/// A kind of work, with a cost of its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// IKE_SA_INIT as responder: both key computations.
    Init,
    /// IKE_AUTH as responder, with a Child SA.
    Auth,
    /// IKE_SESSION_RESUME as gateway.
    Resume,
    /// IKE_AUTH after it.
    ResumedAuth,
    /// A request that is answered with COOKIE or an error.
    Cookie,
    /// IKE_SA_INIT as initiator: the request.
    Initiate,
    /// IKE_SA_INIT as initiator: the response, and the IKE_AUTH request.
    InitResponse,
    /// IKE_AUTH as initiator: the response, with a Child SA.
    AuthResponse,
    /// INVALID_SPI to ESP without an SA, with tokens or without.
    EspAnswer,
    /// ESP without an SA that is not answered, or not yet.
    EspSilence,
    /// INVALID_IKE_SPI to a request for a lost IKE SA, with a token or without.
    RequestAnswer,
    /// SIR's answer to a query.
    SirAnswer,
    /// A message that was sent or received before: no computation.
    Again,
    /// An event of the dataplane that causes no message.
    Event,
    /// A call when something was due, without what that was.
    Tick,
    /// Any other message, a liveness check's answer for one.
    Other,
    /// Used tickets go to disk, and the daemon waits.
    Persist,
}

/// What has been seen, to know what comes again.
#[derive(Default)]
pub(crate) struct Seen {
    /// Our SPIs in answers to first requests.
    answered: HashSet<IkeSpi>,
    /// Our SPIs in first requests.
    initiated: HashSet<IkeSpi>,
}

/// A message that left.
enum Sent {
    Initiation { again: bool },
    Answer { header: Header, again: bool },
    Clear(Header),
    Protected(Header),
}

fn header(datagram: &Datagram) -> Option<(Header, bool)> {
    let view = View::parse(&datagram.data).ok()?;
    Some((view.header(), view.protection().is_some()))
}

impl Seen {
    fn sent(&mut self, datagram: &Datagram) -> Option<Sent> {
        let (header, protected) = header(datagram)?;
        let first = matches!(header.exchange, exchange::IKE_SA_INIT | exchange::IKE_SESSION_RESUME);
        Some(match (first, header.response) {
            (true, false) => Sent::Initiation { again: !self.initiated.insert(header.spis.initiator) },
            // COOKIE and errors have no SPI of ours.
            (true, true) if header.spis.responder != [0; 8] => {
                Sent::Answer { header, again: !self.answered.insert(header.spis.responder) }
            }
            _ if protected => Sent::Protected(header),
            _ => Sent::Clear(header),
        })
    }

    /// The kinds, and how often each; `None` went in where something was due.
    pub(crate) fn work(&mut self, input: Option<&Input>, outputs: &[Output]) -> Vec<(Kind, u32)> {
        let established = outputs.iter().find_map(|output| match output {
            Output::Report(report) if report.name == "ike-established" => {
                Some(report.detail.ends_with("resumed"))
            }
            _ => None,
        });
        let sent: Vec<Sent> = outputs
            .iter()
            .filter_map(|output| match output {
                Output::Transmit(datagram) => self.sent(datagram),
                _ => None,
            })
            .collect();
        let clear = sent.iter().filter(|s| matches!(s, Sent::Clear(h) if !h.response)).count() as u32;
        let begun = sent.iter().filter(|s| matches!(s, Sent::Initiation { again: false })).count() as u32;
        let again = sent.iter().filter(|s| matches!(s, Sent::Initiation { again: true })).count() as u32;
        let (kind, own) = match input {
            None => (Kind::Tick, 0),
            Some(Input::Secrets(_) | Input::Addresses(_) | Input::NewDataplane) => (Kind::Other, 0),
            Some(Input::Event(Event::FormerSpi(_) | Event::UnknownSpi(_))) if clear > 0 => {
                (Kind::EspAnswer, 1)
            }
            Some(Input::Event(Event::FormerSpi(_) | Event::UnknownSpi(_))) => (Kind::EspSilence, 0),
            Some(Input::Event(_)) => (Kind::Event, 0),
            Some(Input::Datagram(datagram)) => (of_datagram(datagram, &sent, established), 0),
        };
        let mut kinds = vec![(kind, 1)];
        // What waited for its turn and has it now.
        kinds.extend([
            (Kind::Initiate, begun),
            (Kind::Again, if kind == Kind::Again { 0 } else { again }),
            (Kind::EspAnswer, clear - own),
        ]);
        kinds.retain(|(_, count)| *count > 0);
        kinds
    }
}

fn of_datagram(datagram: &Datagram, sent: &[Sent], established: Option<bool>) -> Kind {
    let Some((header, _)) = header(datagram) else { return Kind::Other };
    let answer = sent.iter().find_map(|s| match s {
        Sent::Answer { header, again } => Some((header.exchange, *again)),
        _ => None,
    });
    let clear_response = sent.iter().any(|s| matches!(s, Sent::Clear(h) if h.response));
    let authenticates = |s: &Sent| matches!(s, Sent::Protected(h) if h.exchange == exchange::IKE_AUTH);
    match (header.exchange, header.response) {
        (exchange::IKE_SA_INIT | exchange::IKE_SESSION_RESUME, false) => match answer {
            Some((exchange::IKE_SA_INIT, false)) => Kind::Init,
            Some((_, false)) => Kind::Resume,
            None if clear_response => Kind::Cookie,
            _ => Kind::Again,
        },
        (exchange::IKE_SA_INIT, true) if sent.iter().any(authenticates) => Kind::InitResponse,
        (exchange::IKE_AUTH, false) => match established {
            Some(true) => Kind::ResumedAuth,
            Some(false) => Kind::Auth,
            None => Kind::Again,
        },
        (exchange::IKE_AUTH, true) if established.is_some() => Kind::AuthResponse,
        (exchange::SIR, false) => Kind::SirAnswer,
        (_, false) if clear_response => Kind::RequestAnswer,
        _ => Kind::Other,
    }
}
