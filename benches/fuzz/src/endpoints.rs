//! Two IKE endpoints that have an IKE SA, made deterministically, and what they sent.

use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use spindle_abi::{SaActivity, Selector, SelectorSet, Time};
use spindle_ike::Endpoint;
use spindle_ike::api::*;
use spindle_ike::random::Random;
use std::net::IpAddr;
use std::time::Duration;

/// Randomness from a seed.
pub struct Seeded(ChaCha12Rng);

impl Seeded {
    /// The same octets for the same seed.
    pub fn new(seed: u64) -> Seeded {
        Seeded(ChaCha12Rng::seed_from_u64(seed))
    }
}

impl Random for Seeded {
    fn fill(&mut self, octets: &mut [u8]) {
        self.0.fill_bytes(octets);
    }
}

struct NoTokens;

impl TokenMaker for NoTokens {
    fn token(&self, spis: IkeSpis, _: std::net::IpAddr) -> Option<Vec<u8>> {
        Some([spis.initiator, spis.responder].concat())
    }
}

/// A dataplane without packets.
pub struct Idle;

impl ActivityReader for Idle {
    fn activity(&self, _: u32) -> SaActivity {
        SaActivity::default()
    }
}

/// When the fuzzing begins.
pub const NOW: Time = Time(2_000_000_000);

/// The outer address of side 0 or 1.
pub fn address(side: usize) -> IpAddr {
    IpAddr::from([192, 0, 2, 1 + side as u8])
}

/// The connection of side 0 or 1 with the other one.
pub fn connection(side: usize) -> ConnectionConfig {
    let id = |side: usize| Identity::Fqdn(format!("gateway{side}.example"));
    let behind = |side: usize| {
        let net = 10 + side as u8;
        Selector::addresses(IpAddr::from([net, 0, 0, 0]), IpAddr::from([net, 0, 0, 255]))
    };
    ConnectionConfig {
        name: "peer".into(),
        local: address(side),
        remote: Some(address(1 - side)),
        remote_port: 500,
        local_id: id(side),
        remote_id: id(1 - side),
        psk: Psk(zeroize::Zeroizing::new(b"only for fuzzing".to_vec())),
        proposals: vec!["aes128gcm16-prfsha256-x25519".into()],
        force_encapsulation: false,
        dpd_delay: Duration::ZERO,
        retransmission: Retransmission { timeout: Duration::from_secs(1), base: 1.5, tries: 4 },
        rekey_time: Duration::ZERO,
        resumption: true,
        redirect_to: vec![address(side + 2)],
        start_action: StartAction::None,
        children: vec![ChildConfig {
            name: "net".into(),
            policy: 1,
            interface: 0,
            transport: TransportMode::Never,
            selectors: SelectorSet { local: vec![behind(side)], remote: vec![behind(1 - side)] },
            proposals: vec!["aes128gcm16".into()],
            rekey_time: Duration::ZERO,
            lifetime: Lifetime::default(),
            replay_window: 64,
            hold_packets: 0,
            resources: 0,
            start_action: StartAction::None,
        }],
    }
}

/// Two of them, and what they sent, with the receiver.
pub struct Endpoints {
    sides: [Endpoint; 2],
    /// Receiver and datagram, as received.
    pub session: Vec<(usize, Datagram)>,
}

impl Endpoints {
    /// After IKE_SA_INIT, IKE_AUTH and a liveness check by each.
    pub fn established() -> Endpoints {
        let side = |side: usize| {
            let config = EndpointConfig::new(vec![connection(side)]);
            Endpoint::new(config, Box::new(NoTokens), Box::new(Idle), Box::new(Seeded::new(side as u64)))
        };
        let mut this = Endpoints { sides: [side(0), side(1)], session: Vec::new() };
        this.sides[0].initiate(NOW, "peer", None, false).expect("it is configured");
        this.exchange();
        for side in 0..2 {
            let id = this.sides[side].sas()[0].id;
            this.sides[side].probe(NOW, id, Duration::ZERO);
            this.exchange();
        }
        assert!(this.sas().iter().all(|sas| sas.len() == 1 && sas[0].children.len() == 1));
        this
    }

    /// All IKE SAs of both.
    pub fn sas(&self) -> [Vec<IkeSaStatus>; 2] {
        [self.sides[0].sas(), self.sides[1].sas()]
    }

    /// One datagram arrives; what is answered is lost.
    pub fn deliver(&mut self, to: usize, datagram: Datagram) {
        self.sides[to].handle(NOW, datagram);
        while self.sides[to].poll().is_some() {}
    }

    fn exchange(&mut self) {
        loop {
            let mut quiet = true;
            for from in 0..2 {
                while let Some(output) = self.sides[from].poll() {
                    if let Output::Transmit(Datagram { local, remote, data }) = output {
                        let received = Datagram { local: remote, remote: local, data };
                        self.session.push((1 - from, received.clone()));
                        self.sides[1 - from].handle(NOW, received);
                        quiet = false;
                    }
                }
            }
            if quiet {
                return;
            }
        }
    }
}

/// The datagram with these octets in place of its own from `place` on, longer if need be.
pub fn laid_over(datagram: &Datagram, place: usize, octets: &[u8]) -> Datagram {
    let mut changed = datagram.clone();
    let place = place.min(changed.data.len());
    let end = (place + octets.len()).max(changed.data.len());
    changed.data.resize(end, 0);
    changed.data[place..place + octets.len()].copy_from_slice(octets);
    changed
}
