//! The methods that are compared, and what each means in the gateways' configurations.

use crate::gateway::{Retransmit, Settings};
use std::fmt;
use std::time::Duration;

/// How the peer of a crashed gateway learns of the crash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, clap::ValueEnum)]
pub enum Method {
    /// Probes that go unanswered (RFC 7296 section 2.4).
    Liveness,
    /// The restarted gateway initiates, with INITIAL_CONTACT (RFC 7296 section 2.4).
    InitialContact,
    /// A token in the answer to a probe (RFC 6290).
    Qcd,
    /// A token with INVALID_SPI (RFC 6290 section 8.2).
    QcdJournal,
    /// The same, and the peer presents a ticket instead of a key exchange (RFC 5723).
    QcdResumption,
    /// The same token, shown unasked after the start (RFC 6290 section 8.2).
    Proactive,
    /// A query that the restarted gateway answers with a NACK (draft-detienne-ikev2-recovery-03).
    Sir,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Method::Liveness => "liveness",
            Method::InitialContact => "initial-contact",
            Method::Qcd => "qcd",
            Method::QcdJournal => "qcd-journal",
            Method::QcdResumption => "qcd-resumption",
            Method::Proactive => "proactive",
            Method::Sir => "sir",
        })
    }
}

impl Method {
    /// Liveness is made impatient here, or a demonstration would take minutes.
    pub const SHORT: Retransmit = Retransmit { timeout: Duration::from_millis(300), base: 1.5, tries: 3 };
    /// How long a peer may be silent before liveness probes it here.
    pub const SHORT_DELAY: Duration = Duration::from_secs(1);
    /// All of them, each behind those that it builds on.
    pub const ALL: [Method; 7] = [
        Method::Liveness,
        Method::InitialContact,
        Method::Qcd,
        Method::QcdJournal,
        Method::QcdResumption,
        Method::Proactive,
        Method::Sir,
    ];

    /// Both gateways' configuration. Where tokens are in use, retransmissions are those of strongSwan's defaults and
    /// the peer is probed so seldom that the hints must do it.
    pub fn settings(self) -> Settings {
        const NO_TOKENS: &str = "token_maker = false\ntoken_taker = false";
        let usual = Settings { dpd_delay: Duration::from_secs(10), ..Settings::default() };
        let methods = |first: &str| vec![first.to_owned(), "liveness".to_owned()];
        match self {
            Method::Liveness => Settings {
                methods: vec!["liveness".to_owned()],
                journal: false,
                dpd_delay: Self::SHORT_DELAY,
                retransmit: Self::SHORT,
                more_recovery: NO_TOKENS.to_owned(),
                ..usual
            },
            Method::InitialContact => {
                Settings { methods: methods("initial-contact"), more_recovery: NO_TOKENS.to_owned(), ..usual }
            }
            Method::Qcd => Settings { journal: false, ..usual },
            Method::QcdJournal => usual,
            Method::QcdResumption => Settings { more_connection: "resumption = true".to_owned(), ..usual },
            Method::Proactive => Settings { more_recovery: "proactive = true".to_owned(), ..usual },
            // The draft's dampening of a new IKE SA would outlast a test.
            Method::Sir => Settings {
                methods: methods("sir"),
                more_recovery: format!("{NO_TOKENS}\n[recovery.sir]\ndampen_new = \"0s\""),
                ..usual
            },
        }
    }

    /// Does the restarted gateway initiate? Where its peer does, it must not.
    pub fn restarted_side_initiates(self) -> bool {
        self == Method::InitialContact
    }

    /// Does the peer learn of the crash by a token?
    pub fn shows_tokens(self) -> bool {
        !matches!(self, Method::Liveness | Method::InitialContact | Method::Sir)
    }

    /// Round trips from the first ESP packet at the ready gateway to the first delivered one, where promised; from ready
    /// on where the gateway initiates itself. A token shown unasked saves the way of an ESP packet, not a round trip.
    pub fn promised_round_trips(self) -> Option<u32> {
        match self {
            Method::Liveness => None,
            Method::InitialContact => Some(2),
            Method::Qcd => Some(4),
            Method::QcdJournal | Method::QcdResumption | Method::Proactive => Some(3),
            Method::Sir => Some(5),
        }
    }

    /// What passes besides the round trips: between SIR's NACK and the new IKE SA lie two round trips within 50 ms and 1 s
    /// (`wait_min`, `wait_max`), in which an ACK would cancel it.
    pub fn promised_wait(self, round_trip: Duration) -> Duration {
        match self {
            Method::Sir => (2 * round_trip).clamp(Duration::from_millis(50), Duration::from_secs(1)),
            _ => Duration::ZERO,
        }
    }

    /// From ready on until the first packet is delivered, in the median, where promised: the round trips, what passes besides,
    /// the time between two packets, and 10 ms of computing.
    pub fn promised(self, round_trip: Duration, interval: Duration) -> Option<Duration> {
        const COMPUTING: Duration = Duration::from_millis(10);
        let round_trips = self.promised_round_trips()? * round_trip;
        Some(round_trips + self.promised_wait(round_trip) + interval + COMPUTING)
    }

    /// How long recovery may take before the demonstration gives up.
    pub fn patience(self) -> Duration {
        match self {
            Method::Liveness => Self::SHORT_DELAY + 2 * Self::SHORT.total() + Duration::from_secs(10),
            _ => Duration::from_secs(15),
        }
    }
}
