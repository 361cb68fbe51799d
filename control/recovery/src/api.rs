//! What the daemon and the simulation see of the whole control plane: [`Gateway`](crate::Gateway) takes datagrams and the
//! dataplane's events, and gives datagrams, dataplane commands, journal writes and reports.

use spindle_abi::{Command, Event, PolicyAction, SelectorSet, Spi, Time};
use spindle_ike::api::{Change, ConnectionConfig, Datagram, IkeSpis, Shared};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use zeroize::Zeroizing;

/// One generation of the QCD secret: 32 random octets (RFC 6290 section 5.1). Redacted in Debug.
#[derive(Clone)]
pub struct Secret(pub Zeroizing<[u8; 32]>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Compared in constant time.
impl PartialEq for Secret {
    fn eq(&self, other: &Secret) -> bool {
        subtle::ConstantTimeEq::ct_eq(&self.0[..], &other.0[..]).into()
    }
}

impl Eq for Secret {}

/// What goes into a token beside the secret and the maker's id.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TokenMethod {
    /// The IKE SPIs (RFC 6290 section 5.1).
    #[default]
    Spis,
    /// The IKE SPIs and the taker's address (RFC 6290 section 5.2).
    SpisAndAddress,
}

/// One generation of the secret, as it stands on disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Generation {
    /// The secret.
    pub secret: Secret,
    /// How tokens are made with it, all its life long.
    pub method: TokenMethod,
    /// When it was made, seconds since 1970; 0 if that is not known.
    pub made: u64,
    /// Until when a peer may hold a token of it and no newer one, seconds since 1970. `None`: the gateway held IKE SAs
    /// with such tokens, or may have, when this was written.
    pub needed_until: Option<u64>,
}

/// How two gateways find together again after one of them lost its SAs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    /// The side that lost them initiates as soon as it is ready, with INITIAL_CONTACT (RFC 7296 section 2.4).
    InitialContact,
    /// RFC 6290.
    Qcd,
    /// Safe IKE Recovery (draft-detienne-ikev2-recovery-03) with private numbers: an experiment.
    Sir,
    /// RFC 7296 section 2.4 alone.
    Liveness,
}

/// Budgets; rates per second. Each has a counter of what it held back.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Limits {
    /// Answers on one former SPI to the recorded address: at least this long apart.
    pub former_interval: std::time::Duration,
    /// Answers on former SPIs to one other source prefix.
    pub former_other_per_source: u32,
    /// The same to all other sources.
    pub former_other_total: u32,
    /// INVALID_SPI on unknown SPIs, per source prefix.
    pub invalid_spi_per_source: u32,
    /// The same to all strangers; and to all peers of the configuration and the journal, or to as many of those as
    /// handshakes can be taken, if that is more. 0: to nobody.
    pub invalid_spi_total: u32,
    /// INVALID_IKE_SPI with token, per source prefix; beyond it as many without; then silence.
    pub invalid_ike_spi_per_source: u32,
    /// The same to all.
    pub invalid_ike_spi_total: u32,
    /// Handshakes after crashes, all peers together: initiations, tokens shown to IKE SAs of the journal, and peers that
    /// come back without a record. At once a hundred of them at most. The pace begins here, and grows and falls with what can be taken
    /// ([`Gateway::worked`](crate::Gateway::worked)), but not below this.
    pub handshakes_total: u32,
    /// It does not grow above this.
    pub handshakes_max: u32,
    /// New probes on hints, all IKE SAs together.
    pub probes_total: u32,
    /// Outstanding probes that are sent again on hints that name no SPI of ESP, all IKE SAs together.
    pub probes_again_total: u32,
    /// An outstanding probe is sent again on a hint at least this long apart.
    pub probe_again: std::time::Duration,
    /// Between two new probes of one IKE SA on hints.
    pub probe_interval: std::time::Duration,
    /// Logged failed token checks per source prefix.
    pub failed_tokens_logged_per_source: u32,
    /// The same in all.
    pub failed_tokens_logged_total: u32,
    /// Those of Safe IKE Recovery.
    pub sir: SirLimits,
}

/// Budgets and times of Safe IKE Recovery, none of which its draft names (section 4.3: all MUST be administrable); rates
/// per second.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct SirLimits {
    /// New queries about one IKE SA.
    pub queries_per_sa: u32,
    /// New queries about all.
    pub queries_total: u32,
    /// IKE SAs that are asked about or recovered at once.
    pub recovering_at_once: u32,
    /// Answers to one source prefix.
    pub answers_per_source: u32,
    /// Answers to all.
    pub answers_total: u32,
    /// Between a NACK and the new IKE SA: two round trips, at least this.
    pub wait_min: std::time::Duration,
    /// And at most this.
    pub wait_max: std::time::Duration,
    /// A peer is not asked so long after an SA was made or rekeyed.
    pub dampen_new: std::time::Duration,
    /// The same after it said that it has what it was asked about.
    pub dampen_denied: std::time::Duration,
    /// The same after a recovery, or one that failed; twice as long after each that follows soon.
    pub dampen_recovered: std::time::Duration,
    /// The longest of these.
    pub dampen_max: std::time::Duration,
}

impl Default for SirLimits {
    fn default() -> SirLimits {
        use std::time::Duration;
        SirLimits {
            queries_per_sa: 1,
            queries_total: 200,
            recovering_at_once: 1024,
            answers_per_source: 2,
            answers_total: 5000,
            wait_min: Duration::from_millis(50),
            wait_max: Duration::from_secs(1),
            dampen_new: Duration::from_secs(10),
            dampen_denied: Duration::from_secs(1),
            dampen_recovered: Duration::from_secs(60),
            dampen_max: Duration::from_secs(600),
        }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            former_interval: std::time::Duration::from_millis(100),
            former_other_per_source: 1,
            former_other_total: 1000,
            invalid_spi_per_source: 1,
            invalid_spi_total: 1000,
            invalid_ike_spi_per_source: 10,
            invalid_ike_spi_total: 5000,
            handshakes_total: 200,
            handshakes_max: 1_000_000,
            probes_total: 200,
            probes_again_total: 1000,
            probe_again: std::time::Duration::from_millis(100),
            probe_interval: std::time::Duration::from_secs(1),
            failed_tokens_logged_per_source: 1,
            failed_tokens_logged_total: 10,
            sir: SirLimits::default(),
        }
    }
}

/// A key under which tickets are sealed (RFC 5723 section 9.5).
#[derive(Clone, Debug)]
pub struct TicketKey {
    /// Stands in clear in its tickets.
    pub id: [u8; 8],
    /// The key.
    pub key: Secret,
}

/// A ticket that was used, to be remembered until it expires.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct UsedTicket {
    /// Seconds since 1970.
    pub expiry: u64,
    /// Its nonce, which no other ticket has.
    pub nonce: [u8; 24],
}

impl UsedTicket {
    /// As on disk; in order of expiry.
    pub fn to_octets(self) -> [u8; 32] {
        let mut octets = [0; 32];
        octets[..8].copy_from_slice(&self.expiry.to_be_bytes());
        octets[8..].copy_from_slice(&self.nonce);
        octets
    }

    /// The other way.
    pub fn from_octets(octets: &[u8; 32]) -> UsedTicket {
        let (mut expiry, mut nonce) = ([0; 8], [0; 24]);
        expiry.copy_from_slice(&octets[..8]);
        nonce.copy_from_slice(&octets[8..]);
        UsedTicket { expiry: u64::from_be_bytes(expiry), nonce }
    }
}

/// What is on disk about tickets.
#[derive(Clone, Debug, Default)]
pub struct TicketRecords {
    /// This incarnation's first; then those of earlier ones whose tickets have not expired.
    pub keys: Vec<TicketKey>,
    /// Those used that have not expired.
    pub used: Vec<UsedTicket>,
}

/// A policy that needs no SA: BYPASS or DISCARD (RFC 4301 section 4.4.1).
#[derive(Clone, Debug)]
pub struct Policy {
    /// Shown to people.
    pub name: String,
    /// Its id, unique among these policies and those of Child SAs. The lower one is asked first.
    pub id: u32,
    /// What it does.
    pub action: PolicyAction,
    /// What it matches.
    pub selectors: SelectorSet,
}

/// The gateway's configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Shown to people.
    pub name: String,
    /// The connections.
    pub connections: Vec<Shared<ConnectionConfig>>,
    /// The policies besides those of the connections' Child SAs.
    pub policies: Vec<Policy>,
    /// In order of preference, for connections that have no list of their own.
    pub methods: Vec<Method>,
    /// Lists of connections' own.
    pub connection_methods: BTreeMap<String, Vec<Method>>,
    /// Does a restarted token maker show its journal's peers their tokens unasked?
    pub proactive: bool,
    /// May another machine speak for our identities too? Then INITIAL_CONTACT is never sent (RFC 7296 section 2.4).
    pub replicated: bool,
    /// Do we make tokens (RFC 6290 section 8.1: switchable)?
    pub token_maker: bool,
    /// Do we store and check tokens?
    pub token_taker: bool,
    /// How tokens are made (RFC 6290 section 5.1, 5.2). Another method than the newest generation's begins a new one.
    pub token_method: TokenMethod,
    /// The age at which the newest generation of the secret gets a successor (RFC 6290 section 5.1); zero is never.
    pub secret_rotation: std::time::Duration,
    /// Is the secret a cluster's? Then it is the operator's to rotate, never this gateway's.
    pub secret_shared: bool,
    /// Is the map Child SPI → IKE SPIs persistent (RFC 6290 section 8.2)?
    pub journal: bool,
    /// Budgets.
    pub limits: Limits,
    /// Half-open IKE SAs from which on IKE_SA_INIT is answered with COOKIE (RFC 7296 section 2.6).
    pub cookie_threshold: usize,
    /// Lifetime of tickets at most (RFC 5723 section 6.2).
    pub ticket_lifetime: std::time::Duration,
}

impl Config {
    /// The methods of a connection, in order of preference.
    pub fn methods_of(&self, connection: &str) -> &[Method] {
        self.connection_methods.get(connection).unwrap_or(&self.methods)
    }
}

/// What survived on disk, read and written before the first message of an incarnation.
#[derive(Clone, Debug)]
pub struct Boot {
    /// This incarnation, at least 1, on disk already.
    pub incarnation: u64,
    /// The cluster's name or this gateway's random id.
    pub maker_id: Vec<u8>,
    /// Generations of the secret, newest first, at most four; empty: we cannot make tokens.
    pub secrets: Vec<Generation>,
    /// Journal records of earlier incarnations that have not expired.
    pub former: Vec<JournalRecord>,
    /// Keys and used ones of tickets.
    pub tickets: TicketRecords,
    /// Does the state directory match the anchor? If not, no token leaves.
    pub anchor_matches: bool,
    /// Wall-clock seconds since 1970 at `now` = the monotonic time given; for hard expiries in the journal.
    pub wall_clock: (u64, Time),
}

/// One inbound Child SPI on disk (RFC 6290 section 8.2).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JournalRecord {
    /// Our SPI.
    pub spi: Spi,
    /// Its IKE SA.
    pub parent: IkeSpis,
    /// The parent's parent, if an IKE rekey moved the Child SA: its token is offered too.
    pub earlier_parent: Option<IkeSpis>,
    /// Were we the parent's original initiator?
    pub initiator: bool,
    /// Connection's name.
    pub connection: String,
    /// Child's name.
    pub child: String,
    /// Our outer IKE address and port.
    pub local: SocketAddr,
    /// The peer's outer IKE address and port (500 or 4500).
    pub remote: SocketAddr,
    /// ESP in UDP?
    pub encapsulated: bool,
    /// The incarnation in which it was written.
    pub incarnation: u64,
    /// Wall-clock seconds since 1970 after which it is void.
    pub hard_expiry: u64,
}

/// A write to the journal; group-committed within 100 ms, nothing waits for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum JournalWrite {
    /// Insert or replace.
    Put(JournalRecord),
    /// Remove.
    Remove(Spi),
}

/// What the gateway is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// From a UDP socket.
    Datagram(Datagram),
    /// From a ring.
    Event(Event),
    /// The dataplane has died and another one has been started: it knows nothing yet, and will say when it is ready. Events
    /// of the dead one come before this, or never.
    NewDataplane,
    /// Which addresses are on this machine, where a cluster moves them; without such word all of the connections' are.
    /// Due whenever that changes, and before anything else.
    Addresses(Vec<IpAddr>),
    /// Of [`Output::Secrets`]: the generations that are on disk now, newest first; `None` if it could not be written.
    Secrets(Option<Vec<Generation>>),
}

/// What the gateway wants done, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// Send it.
    Transmit(Datagram),
    /// To the command ring, with this number.
    Command {
        /// Comes back in the acknowledgement.
        sequence: u64,
        /// What.
        command: Command,
    },
    /// To the journal.
    Journal(JournalWrite),
    /// To the secret's file, by [`write_secrets`](crate::store::write_secrets); then [`Input::Secrets`] is due.
    Secrets {
        /// A new generation is to be made with this method, at this second since 1970, and stands first.
        new: Option<(TokenMethod, u64)>,
        /// These stay, newest first.
        keep: Vec<Generation>,
    },
    /// Tickets that are used from here on: to be on disk before anything that comes after this leaves. Should the disk
    /// fail, say so by [`Gateway::cannot_remember`](crate::Gateway::cannot_remember).
    Persist(Vec<UsedTicket>),
    /// What is to outlive this process, where it is kept: written as a whole before anything that comes after this is
    /// carried out.
    Keep(Vec<Change>),
    /// For the log and `spindle events`.
    Report(Report),
}

/// One thing that happened, for people and for timelines. `name` is one of: `ready`, `adopted`, `hint`, `probe`, `proof`,
/// `token-sent`, `token-failed`, `ike-established`, `ike-rekeyed`, `ike-deleted`, `installed`, `child-deleted`,
/// `initiating`, `initiation-failed`, `suspected`, `redirected`, `redirect-followed`, `redirect-refused`, `taken-down`,
/// `secret-rotated`, `maker-off`, of SIR `query`, `ack`, `nack`,
/// `confirmation`, …
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// What.
    pub name: &'static str,
    /// Connection, if one is concerned.
    pub connection: Option<String>,
    /// IKE SA, if one is concerned.
    pub spis: Option<IkeSpis>,
    /// Child SPI, if one is concerned.
    pub spi: Option<Spi>,
    /// More, for people.
    pub detail: String,
}
