//! What the unit tests share: a gateway's configuration, what a crash left, and an endpoint that only knows SAs.

use crate::api::{
    Boot, Config, Generation, JournalRecord, Limits, Method, Secret, TicketRecords, TokenMethod,
};
use crate::taker::IkeSas;
use spindle_abi::{SelectorSet, Spi, Time};
use spindle_ike::api::{
    Authority, ChildConfig, ConnectionConfig, Identity, IkeSaId, IkeSpis, Lifetime, ProbeResult, Psk,
    Retransmission, StartAction, TransportMode,
};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use zeroize::Zeroizing;

pub(crate) const SECOND: u64 = 1_000_000_000;
pub(crate) const NOW: Time = Time(100 * SECOND);
pub(crate) const LOCAL: &str = "192.0.2.1:500";
pub(crate) const REMOTE: &str = "192.0.2.2:500";

pub(crate) fn socket(text: &str) -> SocketAddr {
    text.parse().expect("a test's address")
}

pub(crate) fn pair(n: u8) -> IkeSpis {
    IkeSpis { initiator: [n; 8], responder: [n ^ 0x80; 8] }
}

pub(crate) fn connection(name: &str, remote: Option<&str>) -> ConnectionConfig {
    let remote: Option<IpAddr> = remote.map(|text| text.parse().expect("a test's address"));
    ConnectionConfig {
        name: name.into(),
        local: socket(LOCAL).ip(),
        remote,
        remote_port: 500,
        local_id: Identity::Fqdn("us".into()),
        remote_id: Identity::Fqdn(name.into()),
        psk: Psk(Zeroizing::new(b"a test's key".to_vec())),
        proposals: vec!["aes128gcm16-prfsha256-x25519".into()],
        force_encapsulation: false,
        dpd_delay: Duration::from_secs(30),
        retransmission: Retransmission { timeout: Duration::from_millis(500), base: 1.8, tries: 5 },
        rekey_time: Duration::from_secs(4 * 3600),
        resumption: false,
        redirect_to: Vec::new(),
        start_action: StartAction::Trap,
        children: vec![ChildConfig {
            name: "net".into(),
            policy: 1,
            interface: 0,
            transport: TransportMode::Never,
            selectors: SelectorSet::default(),
            proposals: vec!["aes128gcm16".into()],
            rekey_time: Duration::from_secs(3600),
            lifetime: Lifetime::default(),
            replay_window: 64,
            hold_packets: 0,
            resources: 0,
            start_action: StartAction::Trap,
        }],
    }
}

pub(crate) fn config() -> Config {
    Config {
        name: "test".into(),
        connections: vec![connection("site", Some("192.0.2.2")).into()],
        policies: Vec::new(),
        methods: vec![Method::Qcd, Method::Liveness],
        connection_methods: Default::default(),
        proactive: false,
        replicated: false,
        token_maker: true,
        token_taker: true,
        token_method: TokenMethod::Spis,
        secret_rotation: Duration::ZERO,
        secret_shared: false,
        journal: true,
        limits: Limits::default(),
        cookie_threshold: 64,
        ticket_lifetime: Duration::from_secs(3600),
    }
}

pub(crate) fn generation(octet: u8) -> Generation {
    let secret = Secret(Zeroizing::new([octet; 32]));
    Generation { secret, method: TokenMethod::Spis, made: 1_000, needed_until: None }
}

/// The second incarnation, with these records of the first.
pub(crate) fn boot(former: Vec<JournalRecord>) -> Boot {
    Boot {
        incarnation: 2,
        maker_id: b"maker".to_vec(),
        secrets: vec![generation(7)],
        former,
        tickets: TicketRecords::default(),
        anchor_matches: true,
        wall_clock: (1_000_000, NOW),
    }
}

pub(crate) fn record(spi: u32, parent: IkeSpis) -> JournalRecord {
    JournalRecord {
        spi: Spi(spi),
        parent,
        earlier_parent: None,
        initiator: true,
        connection: "site".into(),
        child: "net".into(),
        local: socket(LOCAL),
        remote: socket(REMOTE),
        encapsulated: false,
        incarnation: 1,
        hard_expiry: 2_000_000,
    }
}

/// An endpoint that knows IKE SAs, their peers' tokens and outbound SPIs, and remembers what it was asked to do.
#[derive(Default)]
pub(crate) struct FakeSas {
    pub(crate) ike_sas: Vec<(IkeSaId, IkeSpis, Vec<Vec<u8>>)>,
    pub(crate) outbound: Vec<(Spi, IkeSaId)>,
    pub(crate) outstanding: bool,
    pub(crate) probed: Vec<IkeSaId>,
}

impl IkeSas for FakeSas {
    fn find_by_spis(&self, spis: IkeSpis) -> Option<IkeSaId> {
        self.ike_sas.iter().find(|sa| sa.1 == spis).map(|sa| sa.0)
    }
    fn find_by_outbound_spi(&self, spi: Spi) -> Vec<IkeSaId> {
        self.outbound.iter().filter(|o| o.0 == spi).map(|o| o.1).collect()
    }
    fn verify_token(&self, ike: IkeSaId, token: &[u8]) -> Option<Authority> {
        let sa = self.ike_sas.iter().find(|sa| sa.0 == ike)?;
        sa.2.iter().any(|t| t == token).then_some(Authority::Local("a token in a test"))
    }
    fn awaits_answer(&self, _: IkeSaId) -> bool {
        self.outstanding
    }
    fn probe(&mut self, _: Time, ike: IkeSaId, _: Duration) -> ProbeResult {
        if self.ike_sas.iter().all(|sa| sa.0 != ike) {
            return ProbeResult::NoSuchSa;
        }
        self.probed.push(ike);
        let outstanding = std::mem::replace(&mut self.outstanding, true);
        if outstanding { ProbeResult::SentAgain } else { ProbeResult::Started }
    }
}
