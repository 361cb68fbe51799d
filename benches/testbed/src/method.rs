//! The methods that are compared, and what each means in the gateways' configurations.

use crate::gateway::{Retransmit, Settings};
use std::fmt;
use std::time::Duration;

/// How the peer of a crashed gateway learns of the crash.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Method {
    /// Probes that go unanswered (RFC 7296 section 2.4).
    Liveness,
    /// A token in the answer to a probe (RFC 6290).
    Qcd,
    /// A token with INVALID_SPI (RFC 6290 section 8.2).
    QcdJournal,
    /// The restarted gateway initiates, with INITIAL_CONTACT (RFC 7296 section 2.4).
    InitialContact,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Method::Liveness => "liveness",
            Method::Qcd => "qcd",
            Method::QcdJournal => "qcd-journal",
            Method::InitialContact => "initial-contact",
        })
    }
}

impl Method {
    /// Liveness is made impatient here, or a demonstration would take minutes.
    pub const SHORT: Retransmit = Retransmit { timeout: Duration::from_millis(300), base: 1.5, tries: 3 };
    /// How long a peer may be silent before liveness probes it here.
    pub const SHORT_DELAY: Duration = Duration::from_secs(1);

    /// Both gateways' configuration. Where tokens are in use, retransmissions are those of strongSwan's defaults and
    /// the peer is probed so seldom that the hints must do it.
    pub fn settings(self) -> Settings {
        let usual = Settings { dpd_delay: Duration::from_secs(10), ..Settings::default() };
        match self {
            Method::Liveness => Settings {
                methods: vec!["liveness".to_owned()],
                journal: false,
                dpd_delay: Self::SHORT_DELAY,
                retransmit: Self::SHORT,
                more_recovery: "token_maker = false\ntoken_taker = false".to_owned(),
                ..usual
            },
            Method::Qcd => Settings { journal: false, ..usual },
            Method::QcdJournal => usual,
            Method::InitialContact => Settings {
                methods: vec!["initial-contact".to_owned(), "liveness".to_owned()],
                more_recovery: "token_maker = false\ntoken_taker = false".to_owned(),
                ..usual
            },
        }
    }

    /// Does the restarted gateway initiate? Where its peer does, it must not.
    pub fn restarted_side_initiates(self) -> bool {
        self == Method::InitialContact
    }

    /// Round trips from the first ESP packet at the ready gateway to the first delivered one, where promised; from ready
    /// on where the gateway initiates itself.
    pub fn promised_round_trips(self) -> Option<u32> {
        match self {
            Method::Liveness => None,
            Method::Qcd => Some(4),
            Method::QcdJournal => Some(3),
            Method::InitialContact => Some(2),
        }
    }

    /// How long recovery may take before the demonstration gives up.
    pub fn patience(self) -> Duration {
        match self {
            Method::Liveness => Self::SHORT_DELAY + 2 * Self::SHORT.total() + Duration::from_secs(10),
            Method::Qcd | Method::QcdJournal | Method::InitialContact => Duration::from_secs(15),
        }
    }
}
