//! What the rest of the control plane sees of IKEv2: configuration, identities of SAs, what comes out.

pub use crate::kept::{Adopted, Change, Key};
pub use crate::shared::Shared;
pub use crate::ticket::{OpenedTicket, TicketId, TicketKeeper};

use crate::kept::field::variants;
use spindle_abi::{Command, Limits, Mode, Resource, SelectorSet, Spi, Time};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use zeroize::Zeroizing;

/// One IKE SPI (RFC 7296 section 3.1). Never zero in an SA.
pub type IkeSpi = [u8; 8];

/// The pair that names an IKE SA: the original initiator's SPI, then the responder's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IkeSpis {
    /// SPIi.
    pub initiator: IkeSpi,
    /// SPIr; zero in an IKE_SA_INIT request.
    pub responder: IkeSpi,
}

impl std::fmt::Debug for IkeSpis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:016x}_i {:016x}_r",
            u64::from_be_bytes(self.initiator),
            u64::from_be_bytes(self.responder)
        )
    }
}

/// A local handle of an IKE SA; never used twice in an incarnation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct IkeSaId(pub u64);

/// A local handle of a Child SA (a pair of ESP SAs); never used twice in an incarnation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ChildSaId(pub u64);

/// An identity of IKE_AUTH (RFC 7296 section 3.5).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Identity {
    /// ID_IPV4_ADDR or ID_IPV6_ADDR.
    Address(IpAddr),
    /// ID_FQDN.
    Fqdn(String),
    /// ID_RFC822_ADDR.
    Email(String),
    /// ID_KEY_ID.
    KeyId(Vec<u8>),
}

variants!(Identity { 0 = Address(address), 1 = Fqdn(name), 2 = Email(name), 3 = KeyId(octets) });

impl Identity {
    /// What all identities that are the same have in common: domain names and mail addresses in lower case.
    pub(crate) fn in_one_case(&self) -> Identity {
        match self {
            Identity::Fqdn(name) => Identity::Fqdn(name.to_ascii_lowercase()),
            Identity::Email(name) => Identity::Email(name.to_ascii_lowercase()),
            other => other.clone(),
        }
    }

    /// Are both the same? Domain names and mail addresses know no case (RFC 4343, RFC 5280 section 7.5).
    pub fn is(&self, other: &Identity) -> bool {
        match (self, other) {
            (Identity::Fqdn(a), Identity::Fqdn(b)) | (Identity::Email(a), Identity::Email(b)) => {
                a.eq_ignore_ascii_case(b)
            }
            _ => self == other,
        }
    }
}

/// A pre-shared key. Redacted in Debug.
#[derive(Clone)]
pub struct Psk(pub Zeroizing<Vec<u8>>);

impl std::fmt::Debug for Psk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Psk(..)")
    }
}

/// How a request is retransmitted (RFC 7296 section 2.1, 2.4): `timeout`, `timeout × base`, … `tries` times.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Retransmission {
    /// Until the first retransmission.
    pub timeout: Duration,
    /// Growth, at least 1.
    pub base: f64,
    /// Retransmissions before the IKE SA is deemed failed (one more interval passes after the last).
    pub tries: u32,
}

/// What starts a connection or a Child SA.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum StartAction {
    /// The peer, or an operator.
    None,
    /// The first packet that matches its selectors.
    #[default]
    Trap,
    /// The start of the gateway; again whenever it was lost.
    Start,
}

/// One connection: a peer, and how to speak with it.
#[derive(Clone, Debug)]
pub struct ConnectionConfig {
    /// Unique.
    pub name: String,
    /// Our outer address.
    pub local: IpAddr,
    /// The peer's outer address; `None` is any (then it cannot be initiated).
    pub remote: Option<IpAddr>,
    /// The peer's IKE port, 500 as a rule.
    pub remote_port: u16,
    /// Who we say we are.
    pub local_id: Identity,
    /// Who the peer must say it is.
    pub remote_id: Identity,
    /// Authenticates both.
    pub psk: Psk,
    /// IKE proposals in strongSwan's notation, best first: `aes128gcm16-prfsha256-x25519`.
    pub proposals: Vec<String>,
    /// UDP encapsulation even without a NAT.
    pub force_encapsulation: bool,
    /// A liveness check after this long without authenticated traffic from the peer; zero is never.
    pub dpd_delay: Duration,
    /// Retransmission of requests.
    pub retransmission: Retransmission,
    /// Soft lifetime of the IKE SA; zero is never. Jittered downwards by up to a tenth.
    pub rekey_time: Duration,
    /// Tickets are asked for, granted and used (RFC 5723).
    pub resumption: bool,
    /// Further addresses of the peer, those of its other gateways: it may redirect us there, and nowhere else (RFC 5685).
    /// Empty: redirects are neither announced nor followed.
    pub redirect_to: Vec<IpAddr>,
    /// Starts the IKE SA.
    pub start_action: StartAction,
    /// The Child SAs, in order of policy.
    pub children: Vec<ChildConfig>,
}

/// One Child SA of a connection.
#[derive(Clone, Debug)]
pub struct ChildConfig {
    /// Unique within the connection.
    pub name: String,
    /// The id of its policy in the dataplane, unique in the gateway. The lower one is asked first.
    pub policy: u32,
    /// Its virtual interface, from 1; 0: it has none, and shares the inside with others.
    pub interface: u16,
    /// Its mode.
    pub transport: TransportMode,
    /// Selectors.
    pub selectors: SelectorSet,
    /// ESP proposals: `aes128gcm16`, `aes128gcm16-x25519` (with a key exchange at rekeys), `aes128gcm16-esn-noesn`
    /// (with Extended Sequence Numbers if the peer has them).
    pub proposals: Vec<String>,
    /// Soft lifetime; zero is never. Jittered downwards by up to a tenth.
    pub rekey_time: Duration,
    /// Its other limits.
    pub lifetime: Lifetime,
    /// Packets in the replay window; 0, which is none, does not go with Extended Sequence Numbers.
    pub replay_window: u32,
    /// Packets without an SA that the dataplane holds until there is one, at most; the others are dropped.
    pub hold_packets: u16,
    /// RFC 9611: workers here that get a Child SA each, beside the first one, if the peer takes more than one for the same
    /// selectors. 0: it is neither asked for nor granted.
    pub resources: u16,
    /// Starts the Child SA.
    pub start_action: StartAction,
}

/// When a Child SA is rekeyed or ends, beside the time at which it is rekeyed (RFC 4301 section 4.4.2.1). Of packets and
/// octets, each direction has as many.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Lifetime {
    /// Its end, whether it was rekeyed or not; zero is never.
    pub life_time: Duration,
    /// Soft limits; jittered downwards by up to a tenth.
    pub rekey: Limits,
    /// Hard limits: no packet passes beyond them.
    pub life: Limits,
}

/// Is a Child SA in transport mode (RFC 7296 section 1.3.1)?
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TransportMode {
    /// In tunnel mode.
    #[default]
    Never,
    /// If the peer agrees; else in tunnel mode.
    Preferred,
    /// If the peer declines or does not ask for it there is none.
    Required,
}

/// What may delete an IKE SA. Made only by this crate, from evidence; `Local` is the operator's.
/// (RFC 7296 section 2.4 forbids conclusions from unprotected messages; a QCD token is RFC 6290's exception.)
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Authority {
    /// A request went unanswered through its whole schedule.
    Timeout(Evidence),
    /// A QCD token that matches (RFC 6290 section 3).
    Token(Evidence),
    /// An authenticated INITIAL_CONTACT of the same identity.
    InitialContact(Evidence),
    /// The peer's Delete.
    Delete(Evidence),
    /// An authenticated IKE SA took its place: rekey, resumption, duplicate.
    Superseded(Evidence),
    /// An authenticated message that breaks the protocol beyond repair, or a failed authentication.
    ProtocolError(Evidence),
    /// The operator, or the end of the gateway.
    Local(&'static str),
}

/// Shows that an [`Authority`] was made inside this crate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Evidence(pub(crate) ());

/// A datagram of UDP port 500 or 4500, the non-ESP marker of port 4500 included (RFC 3948 section 2.2).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Datagram {
    /// Our address and port.
    pub local: SocketAddr,
    /// The peer's address and port.
    pub remote: SocketAddr,
    /// UDP payload.
    pub data: Vec<u8>,
}

/// A Notify payload without its generic header (RFC 7296 section 3.10).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Notify {
    /// Notify Message Type.
    pub kind: u16,
    /// Protocol ID: 0, 1 (IKE), 2 (AH), 3 (ESP).
    pub protocol: u8,
    /// SPI, empty for notifications about the IKE SA.
    pub spi: Vec<u8>,
    /// Notification Data.
    pub data: Vec<u8>,
}

/// The header of an IKE message (RFC 7296 section 3.1), as received.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// SPIi and SPIr.
    pub spis: IkeSpis,
    /// Type of the first payload.
    pub next_payload: u8,
    /// Exchange Type.
    pub exchange: u8,
    /// R flag.
    pub response: bool,
    /// I flag: the sender is the original initiator.
    pub initiator: bool,
    /// Message ID.
    pub message_id: u32,
}

/// A datagram that no IKE SA here accounts for; what to answer, if anything, is recovery's to decide.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Unmatched {
    /// A request with an SK payload (or the first fragment, SKF number 1) and IKE SPIs of no IKE SA here.
    ProtectedRequest {
        /// Its header.
        header: Header,
        /// The address it came to.
        local: SocketAddr,
        /// The address it came from.
        remote: SocketAddr,
        /// A tombstone stands: the SA ended here by an exchanged Delete or rekey, and this is not the
        /// retransmission that the tombstone has answered already.
        tombstone: bool,
    },
    /// A message in clear that carries notifications: INVALID_IKE_SPI, INVALID_SPI, QUICK_CRASH_DETECTION, or one of
    /// the exchange type of Safe IKE Recovery, where that is switched on. IKE_SA_INIT's own are not among these.
    Clear {
        /// Its header.
        header: Header,
        /// All its notifications, at most 16.
        notifies: Vec<Notify>,
        /// The address it came to.
        local: SocketAddr,
        /// The address it came from.
        remote: SocketAddr,
    },
}

/// What happened, for the journal, the log and those who wait.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Report {
    /// An IKE SA is authenticated.
    IkeEstablished {
        /// Its handle.
        ike: IkeSaId,
        /// Its SPIs.
        spis: IkeSpis,
        /// Connection's name.
        connection: String,
        /// Are we the original initiator?
        initiator: bool,
        /// By a ticket (RFC 5723)?
        resumed: bool,
    },
    /// An IKE SA took the place of another one by a rekey; its Child SAs moved.
    IkeRekeyed {
        /// The old one, about to be deleted.
        old: IkeSaId,
        /// The new one.
        new: IkeSaId,
        /// The new one's SPIs.
        spis: IkeSpis,
    },
    /// An IKE SA and its Child SAs are gone.
    IkeDeleted {
        /// Its handle.
        ike: IkeSaId,
        /// Its SPIs.
        spis: IkeSpis,
        /// Connection's name.
        connection: String,
        /// Why.
        authority: Authority,
    },
    /// An initiation ended without an IKE SA.
    InitiationFailed {
        /// Connection's name.
        connection: String,
        /// Why, for people.
        reason: String,
    },
    /// A Child SA is installed (by IKE_AUTH, CREATE_CHILD_SA, or a rekey).
    ChildInstalled {
        /// Its IKE SA.
        ike: IkeSaId,
        /// Its handle.
        child: ChildSaId,
        /// Connection's name.
        connection: String,
        /// Child's name.
        name: String,
        /// Our SPI.
        inbound: Spi,
        /// The peer's SPI.
        outbound: Spi,
        /// Our outer address and IKE port (500 or 4500).
        local: SocketAddr,
        /// The peer's outer address and IKE port.
        remote: SocketAddr,
        /// ESP in UDP?
        encapsulated: bool,
        /// The Child SA it replaces, if this was a rekey.
        replaces: Option<ChildSaId>,
    },
    /// A Child SA's parent is another IKE SA now (after an IKE rekey).
    ChildMoved {
        /// The Child SA.
        child: ChildSaId,
        /// Our SPI.
        inbound: Spi,
        /// The new parent.
        ike: IkeSaId,
    },
    /// A Child SA is gone.
    ChildDeleted {
        /// Its handle.
        child: ChildSaId,
        /// Our SPI.
        inbound: Spi,
        /// The peer's SPI.
        outbound: Spi,
    },
    /// The peer's QCD token for this IKE SA arrived and is stored (RFC 6290 section 3).
    TokenStored {
        /// The IKE SA that it is for.
        ike: IkeSaId,
    },
    /// The peer acknowledged our QCD token that an INFORMATIONAL exchange carried (RFC 6290 section 4.3, 4.4).
    TokenAcknowledged {
        /// The IKE SA, whose token it was.
        ike: IkeSaId,
        /// Its SPIs.
        spis: IkeSpis,
    },
    /// The peer of an authenticated IKE SA is at another address or port now (RFC 7296 section 2.23).
    PeerMoved {
        /// The IKE SA.
        ike: IkeSaId,
        /// Its SPIs.
        spis: IkeSpis,
        /// Where the peer is.
        remote: SocketAddr,
    },
    /// The peer received a packet of ours on an SPI that it does not know, and says so under the protection of this
    /// IKE SA (RFC 7296 section 1.5). By itself this changes no SA; a Delete beside it does.
    InvalidSpi {
        /// The IKE SA.
        ike: IkeSaId,
        /// The SPI on which we sent.
        spi: Spi,
        /// The name of the child that sent on it on this IKE SA, if one did when the message came.
        child: Option<String>,
    },
    /// The peer asked under the protection of this IKE SA whether an ESP SA is there on which it sends (SIR). No SA
    /// changes.
    SpiChecked {
        /// The IKE SA.
        ike: IkeSaId,
        /// The SPI, which would be one of ours.
        spi: Spi,
        /// Is it?
        known: bool,
    },
    /// The peer answered under the protection of this IKE SA whether an ESP SA is there on which we send (SIR). No
    /// SA changes.
    SpiAnswered {
        /// The IKE SA.
        ike: IkeSaId,
        /// The SPI on which we send.
        spi: Spi,
        /// Is it there?
        known: bool,
    },
    /// An IKE SA's peer failed to answer for the first time: the first retransmission.
    Suspected {
        /// The IKE SA.
        ike: IkeSaId,
    },
    /// We are taken down, and this IKE SA's peer was redirected: it has acknowledged that, or it was told in IKE_AUTH.
    Redirected {
        /// The IKE SA.
        ike: IkeSaId,
        /// The gateway to go to.
        to: IpAddr,
    },
    /// The peer redirected us, as the connection allows: an IKE SA with its other gateway is being initiated.
    RedirectFollowed {
        /// Connection's name.
        connection: String,
        /// Who redirected us.
        from: IpAddr,
        /// To whom.
        to: IpAddr,
    },
    /// A redirect that is not followed.
    RedirectRefused {
        /// Connection's name.
        connection: String,
        /// Why, for people.
        reason: String,
    },
}

/// What comes out of the endpoint; carry these out in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// Send it.
    Transmit(Datagram),
    /// For the dataplane: SPI states, SAs.
    Dataplane(Command),
    /// Recovery decides.
    Unmatched(Unmatched),
    /// What happened.
    Report(Report),
}

/// Makes and knows this gateway's QCD tokens; implemented by recovery. Called when a message that carries a
/// token is built, always protected (RFC 6290 section 4.2 to 4.4).
pub trait TokenMaker {
    /// The token of the newest secret for an IKE SA whose peer, the token taker, is at this address; `None` if we are
    /// no token maker. It is sent at once.
    fn token(&self, spis: IkeSpis, taker: IpAddr) -> Option<Vec<u8>>;

    /// The peer has acknowledged the last token made for this IKE SA, which went to it in an exchange of its own. Said
    /// before the next one is made.
    fn acknowledged(&self, _spis: IkeSpis) {}
}

/// When an authenticated packet last passed an SA, as the dataplane tells. (RFC 7296 section 2.4: ESP counts.)
pub trait ActivityReader {
    /// Of the SA with this index.
    fn activity(&self, index: u32) -> spindle_abi::SaActivity;
}

/// What an [`Endpoint`](crate::Endpoint) needs to know beforehand.
#[derive(Clone, Debug)]
pub struct EndpointConfig {
    /// The connections; names and the policies of their children are unique.
    pub connections: Vec<Shared<ConnectionConfig>>,
    /// Do we store and check the peers' QCD tokens (RFC 6290 section 8.1: switchable)?
    pub token_taker: bool,
    /// May another machine speak for our identities too? Then INITIAL_CONTACT is never sent (RFC 7296 section 2.4).
    pub replicated: bool,
    /// The connections that announce and speak Safe IKE Recovery, an experiment.
    pub sir: BTreeSet<String>,
    /// Half-open IKE SAs (as responder) from which on IKE_SA_INIT is answered with COOKIE (RFC 7296 section 2.6).
    pub cookie_threshold: usize,
    /// Half-open IKE SAs (as responder) at most; beyond it IKE_SA_INIT is ignored.
    pub max_half_open: usize,
    /// A half-open IKE SA (as responder) ends after this long without IKE_AUTH.
    pub half_open_timeout: Duration,
    /// IKE SAs at most.
    pub max_ike_sas: usize,
    /// Child SAs of one IKE SA at most; beyond it NO_ADDITIONAL_SAS.
    pub max_children: usize,
    /// Tombstones at most; the oldest goes first.
    pub max_tombstones: usize,
    /// How long a tombstone stands.
    pub tombstone_lifetime: Duration,
    /// Lifetime of the tickets that we grant, if that of the IKE SA is no shorter (RFC 5723 section 6.2).
    pub ticket_lifetime: Duration,
    /// Connections are started again when whoever drives the endpoint says so ([`Endpoint::start_due`](crate::Endpoint::start_due)),
    /// not by [`Endpoint::tick`](crate::Endpoint::tick).
    pub paced: bool,
    /// How long an old inbound SA still receives after its successor took over.
    pub linger: Duration,
    /// How long a removed SPI stays retired before it may be allocated again.
    pub retired_lifetime: Duration,
}

impl EndpointConfig {
    /// These connections and the usual bounds.
    pub fn new<C: Into<Shared<ConnectionConfig>>>(
        connections: impl IntoIterator<Item = C>,
    ) -> EndpointConfig {
        EndpointConfig {
            connections: connections.into_iter().map(Into::into).collect(),
            token_taker: true,
            replicated: false,
            sir: BTreeSet::new(),
            cookie_threshold: 64,
            max_half_open: 4096,
            half_open_timeout: Duration::from_secs(30),
            max_ike_sas: 1 << 20,
            max_children: 256,
            max_tombstones: 4096,
            tombstone_lifetime: Duration::from_secs(60),
            ticket_lifetime: Duration::from_secs(3600),
            paced: false,
            linger: Duration::from_secs(5),
            retired_lifetime: Duration::from_secs(120),
        }
    }
}

/// Answers to our requests of initial exchanges (IKE_SA_INIT, IKE_SESSION_RESUME, IKE_AUTH).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct InitialAnswers {
    /// All of them.
    pub all: u32,
    /// Of these, to requests that had been sent more than once: they were lost, or the peer was slow.
    pub late: u32,
}

/// What came of [`Endpoint::probe`](crate::Endpoint::probe).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProbeResult {
    /// A liveness exchange began.
    Started,
    /// A request was outstanding and was sent again at once.
    SentAgain,
    /// A request is outstanding that was sent less than `again_after` ago.
    TooSoon,
    /// No established IKE SA has this handle.
    NoSuchSa,
}

/// Why the operator's wish cannot be followed: all are our misuse.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    /// No connection has this name.
    #[error("no connection is named {0}")]
    UnknownConnection(String),
    /// No child of the connection has this name.
    #[error("connection {0} has no child named {1}")]
    UnknownChild(String, String),
    /// No such SA, or one that is being deleted.
    #[error("no such SA")]
    UnknownSa,
    /// `remote` is not set.
    #[error("connection {0} has no remote address to initiate to")]
    NoRemote(String),
    /// A limit of [`EndpointConfig`] is reached.
    #[error("too many SAs")]
    TooMany,
    /// After [`Endpoint::take_down`](crate::Endpoint::take_down).
    #[error("the gateway is taken down; start it again to have new SAs")]
    TakenDown,
    /// Our address is on another machine, or on none.
    #[error("{0} is not on this machine now")]
    Absent(IpAddr),
}

/// One IKE SA as shown to people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IkeSaStatus {
    /// Its handle.
    pub id: IkeSaId,
    /// Connection's name.
    pub connection: String,
    /// Its SPIs.
    pub spis: IkeSpis,
    /// `connecting`, `established`, `rekeying`, `deleting`.
    pub state: &'static str,
    /// Are we the original initiator?
    pub initiator: bool,
    /// Addresses in use.
    pub local: SocketAddr,
    /// The peer's.
    pub remote: SocketAddr,
    /// The peer's identity, once authenticated.
    pub remote_id: Option<Identity>,
    /// The proposal in use, in strongSwan's notation.
    pub proposal: String,
    /// When it was established.
    pub established: Option<Time>,
    /// Do we hold the peer's QCD token?
    pub token_held: bool,
    /// Do we hold a ticket of the peer's?
    pub ticket_held: bool,
    /// Was it made by a ticket, ours or the peer's?
    pub resumed: bool,
    /// Its Child SAs.
    pub children: Vec<ChildSaStatus>,
}

/// One Child SA as shown to people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChildSaStatus {
    /// Its handle.
    pub id: ChildSaId,
    /// Child's name.
    pub name: String,
    /// Its policy.
    pub policy: u32,
    /// Our SPI.
    pub inbound: Spi,
    /// The peer's SPI.
    pub outbound: Spi,
    /// Slot of the inbound SA in the activity region.
    pub inbound_index: u32,
    /// Slot of the outbound SA.
    pub outbound_index: u32,
    /// Whose it is among the dataplane's workers.
    pub resource: Resource,
    /// Its mode.
    pub mode: Mode,
    /// The transform, in strongSwan's notation.
    pub proposal: String,
    /// Narrowed selectors.
    pub selectors: SelectorSet,
    /// `installed`, `rekeying`, `rekeyed` (its successor is installed), `deleting`.
    pub state: &'static str,
    /// When it was installed.
    pub installed: Time,
    /// ESP in UDP?
    pub encapsulated: bool,
}
