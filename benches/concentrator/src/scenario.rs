//! What is played: how many peers, which method, which limits; and both sides' configurations.

use serde::{Deserialize, Serialize};
use spindle_abi::{Selector, SelectorSet};
use spindle_ike::api::{
    ChildConfig, ConnectionConfig, Identity, Lifetime, Psk, Retransmission, StartAction, TransportMode,
};
use spindle_recovery::api::{Config, Limits, Method as Preference, TokenMethod};
use spindle_sim::Dice;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;
use std::time::Duration;
use zeroize::Zeroizing;

/// The most that the configuration takes as `handshakes_total` and `handshakes_max`: no bound.
const UNPACED: u32 = 1_000_000;
/// A peer checks liveness after this long without authenticated traffic: the configuration's default.
pub const DPD: Duration = Duration::from_secs(30);
/// Shortest time between two packets of a peer, in seconds; the scale of the distribution.
pub const SHORTEST: f64 = 1.0;
/// Longest time between two packets of a peer, in seconds.
pub const LONGEST: f64 = 600.0;
/// The distribution's exponent.
pub const EXPONENT: f64 = 1.2;

/// More peers than these are played frugally.
pub const MANY: u32 = 10_000;
/// Peers of one gateway there.
const TOGETHER: u32 = 32;

/// The first address of the peers: 10.0.0.1, the next one 10.0.0.2, and so on.
const PEERS: u32 = 0x0a00_0001;

/// How the peers come back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// The peers' liveness checks alone.
    Liveness,
    /// The restarted side initiates.
    InitialContact,
    /// The token in the answer to a probe; no journal.
    Qcd,
    /// The token in the answer to ESP on a former SPI.
    QcdJournal,
    /// As qcd-journal, and the restarted side shows its tokens unasked.
    Proactive,
    /// Safe IKE Recovery: no token; a NACK.
    Sir,
}

impl Method {
    /// All of them.
    pub const ALL: [Method; 6] = [
        Method::Liveness,
        Method::InitialContact,
        Method::Qcd,
        Method::QcdJournal,
        Method::Proactive,
        Method::Sir,
    ];

    /// Does the concentrator's pace change anything?
    pub fn is_paced(self) -> bool {
        self != Method::Liveness
    }

    /// May a peer come back by its ticket? Not where the concentrator initiates, for it has lost its own, nor beside an
    /// old IKE SA, on a message in clear (RFC 5723 section 9.4).
    pub fn may_resume(self) -> bool {
        !matches!(self, Method::InitialContact | Method::Sir)
    }

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Method::Liveness => "liveness",
            Method::InitialContact => "initial-contact",
            Method::Qcd => "qcd",
            Method::QcdJournal => "qcd-journal",
            Method::Proactive => "proactive",
            Method::Sir => "sir",
        }
    }
}

/// Which pace the restarted concentrator keeps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Pacing {
    /// None: `handshakes_total` is no bound.
    Off,
    /// Always `handshakes_total`: `handshakes_max` is the same.
    Fixed,
    /// `handshakes_total` at first, and then what is measured.
    Measured,
}

impl Pacing {
    /// All of them.
    pub const ALL: [Pacing; 3] = [Pacing::Measured, Pacing::Fixed, Pacing::Off];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Pacing::Off => "off",
            Pacing::Fixed => "fixed",
            Pacing::Measured => "measured",
        }
    }
}

/// One crash to be played.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Scenario {
    /// How many peers, at most 2^20 (`MAX_FORMER` of the store).
    pub peers: u32,
    /// How they come back.
    pub method: Method,
    /// Of the restarted concentrator.
    pub pacing: Pacing,
    /// Its `handshakes_total`, unless pacing is off.
    pub handshakes_total: u32,
    /// Tickets are granted and taken.
    pub resumption: bool,
    /// Of every peer.
    pub rtt: Duration,
    /// Of all randomness.
    pub seed: u64,
    /// With less memory: several peers share a gateway, one that is back takes no further part, and before the crash
    /// the concentrator forgets whom it has in the journal.
    pub frugal: bool,
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tickets = if self.resumption { "with" } else { "without" };
        let (peers, method, pacing) = (self.peers, self.method.name(), self.pacing.name());
        write!(f, "{peers} peers, {method}, pacing {pacing}, {tickets} tickets")
    }
}

impl Scenario {
    /// The concentrator's address.
    pub(crate) fn concentrator() -> IpAddr {
        Ipv4Addr::new(192, 0, 2, 1).into()
    }

    /// The address of a peer.
    pub(crate) fn address(peer: u32) -> IpAddr {
        Ipv4Addr::from(PEERS + peer).into()
    }

    /// The peer with this address.
    pub(crate) fn peer_at(address: IpAddr) -> Option<u32> {
        match address {
            IpAddr::V4(address) => u32::from(address).checked_sub(PEERS),
            IpAddr::V6(_) => None,
        }
    }

    /// How many peers share a gateway.
    pub(crate) fn herd(&self) -> u32 {
        if self.frugal { TOGETHER } else { 1 }
    }

    /// The policy of the peer with this place in its gateway.
    pub(crate) fn policy_at(place: usize) -> u32 {
        1 + place as u32
    }

    /// The place of the peer with this policy.
    pub(crate) fn place_of(policy: u32) -> usize {
        policy as usize - 1
    }

    /// The name of a peer's connection, on both sides.
    pub(crate) fn name(peer: u32) -> String {
        format!("peer{peer}")
    }

    /// The peer of a connection of the concentrator's.
    pub(crate) fn peer_named(connection: &str) -> Option<u32> {
        connection.strip_prefix("peer")?.parse().ok()
    }

    /// The concentrator's configuration; before the crash without a pace.
    pub(crate) fn of_concentrator(&self, restarted: bool) -> Config {
        let pacing = if restarted { self.pacing } else { Pacing::Off };
        let journal = matches!(self.method, Method::InitialContact | Method::QcdJournal | Method::Proactive);
        let first = match self.method {
            Method::Liveness => None,
            Method::InitialContact => Some(Preference::InitialContact),
            Method::Qcd | Method::QcdJournal | Method::Proactive => Some(Preference::Qcd),
            Method::Sir => Some(Preference::Sir),
        };
        let connection = |peer: u32| ConnectionConfig {
            // The peers check; so many checks of ours would only be load.
            dpd_delay: Duration::ZERO,
            ..self.connection(peer, false, 1 + peer)
        };
        Config {
            connections: (0..self.peers).map(connection).map(Into::into).collect(),
            methods: first.into_iter().chain([Preference::Liveness]).collect(),
            proactive: self.method == Method::Proactive,
            token_maker: first == Some(Preference::Qcd),
            journal,
            ..config("concentrator", pacing, self.handshakes_total)
        }
    }

    /// The configuration of the gateway of these peers: they take whatever the concentrator offers. What limits all
    /// connections of a gateway together is as much as if each had a gateway of its own.
    pub(crate) fn of_peers(&self, peers: Range<u32>) -> Config {
        let many = peers.len() as u32;
        let mut config = config("peer", Pacing::Fixed, Limits::default().handshakes_total * many);
        config.limits.probes_total *= many;
        config.limits.probes_again_total *= many;
        config.limits.sir.queries_total *= many;
        config.cookie_threshold *= many as usize;
        let connection = |(place, peer)| ConnectionConfig {
            start_action: StartAction::Start,
            ..self.connection(peer, true, Scenario::policy_at(place))
        };
        Config {
            connections: peers.enumerate().map(connection).map(Into::into).collect(),
            methods: vec![Preference::Qcd, Preference::Sir, Preference::Liveness],
            ..config
        }
    }

    fn connection(&self, peer: u32, of_peer: bool, policy: u32) -> ConnectionConfig {
        let (local, remote) = ends(of_peer, Scenario::concentrator(), Scenario::address(peer));
        let (local_id, remote_id) =
            ends(of_peer, "concentrator.example".into(), format!("peer{peer}.example"));
        let one = |address: IpAddr| vec![Selector::addresses(address, address)];
        let behind = Ipv4Addr::new(198, 51, 100, 1).into();
        let inside = Ipv4Addr::from(0x6440_0000 + peer).into();
        let (ours, theirs) = ends(of_peer, behind, inside);
        ConnectionConfig {
            name: Scenario::name(peer),
            local,
            remote: Some(remote),
            remote_port: 500,
            local_id: Identity::Fqdn(local_id),
            remote_id: Identity::Fqdn(remote_id),
            psk: Psk(Zeroizing::new(format!("key of peer {peer}, for simulations").into_bytes())),
            proposals: vec!["aes128gcm16-prfsha256-x25519".into()],
            force_encapsulation: false,
            dpd_delay: DPD,
            retransmission: Retransmission { timeout: Duration::from_secs(4), base: 1.8, tries: 5 },
            rekey_time: Duration::ZERO,
            resumption: self.resumption,
            redirect_to: Vec::new(),
            start_action: StartAction::None,
            children: vec![ChildConfig {
                name: "net".into(),
                policy,
                interface: 0,
                transport: TransportMode::Never,
                selectors: SelectorSet { local: one(ours), remote: one(theirs) },
                proposals: vec!["aes128gcm16".into()],
                rekey_time: Duration::ZERO,
                lifetime: Lifetime::default(),
                replay_window: 64,
                hold_packets: 0,
                resources: 0,
                start_action: StartAction::Trap,
            }],
        }
    }
}

/// Our end and the other one, of the concentrator's and the peer's.
fn ends<T>(of_peer: bool, concentrator: T, peer: T) -> (T, T) {
    if of_peer { (peer, concentrator) } else { (concentrator, peer) }
}

fn config(name: &str, pacing: Pacing, handshakes_total: u32) -> Config {
    let handshakes_total = if pacing == Pacing::Off { UNPACED } else { handshakes_total };
    let handshakes_max = if pacing == Pacing::Measured { UNPACED } else { handshakes_total };
    Config {
        name: name.into(),
        connections: Vec::new(),
        policies: Vec::new(),
        methods: Vec::new(),
        connection_methods: Default::default(),
        proactive: false,
        replicated: false,
        token_maker: false,
        token_taker: true,
        token_method: TokenMethod::Spis,
        secret_rotation: Duration::ZERO,
        secret_shared: false,
        journal: false,
        limits: Limits { handshakes_total, handshakes_max, ..Limits::default() },
        cookie_threshold: 64,
        ticket_lifetime: Duration::from_secs(3600),
    }
}

/// When a peer sends: every `period`, first after `phase`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Traffic {
    pub(crate) period: Duration,
    pub(crate) phase: Duration,
}

impl Traffic {
    /// A few peers send much and most send little: the period is Pareto's, at least [`SHORTEST`], cut at [`LONGEST`].
    pub(crate) fn draw(dice: &mut Dice) -> Traffic {
        let period = SHORTEST / (1.0 - dice.share()).powf(1.0 / EXPONENT);
        let period = period.min(LONGEST);
        Traffic {
            period: Duration::from_secs_f64(period),
            phase: Duration::from_secs_f64(period * dice.share()),
        }
    }
}
