//! A peer that says what a test wants said, authenticated: the initiator of an IKE SA with [`B`], by hand.
//! Its place in the world is A's, whose endpoint does nothing.

use super::{A, B, Seeded, World, connection, selectors};
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::SeedableRng;
use spindle_ike::api::*;
use spindle_ike::crypto::{Group, IkeKeys, PrivateKey, parse_esp, parse_ike, psk_authentication, select_ike};
use spindle_ike::random::Random;
use spindle_ike::wire::{
    Id, Message, OpeningKey, Payload, SealingKey, View, authentication, exchange, seal, seal_chain,
};

pub const CHILD_SPI: [u8; 4] = [0x11, 0x22, 0x33, 0x44];

pub struct Peer {
    pub spis: IkeSpis,
    pub random: Seeded,
    sealing: SealingKey,
    opening: OpeningKey,
    next: u32,
    heard: usize,
}

fn nonce_of(payloads: &[Payload]) -> Vec<u8> {
    let nonce = payloads.iter().find_map(|p| match p {
        Payload::Nonce(nonce) => Some(nonce.clone()),
        _ => None,
    });
    nonce.expect("a nonce")
}

impl Peer {
    /// IKE_SA_INIT alone, with Curve25519: the IKE SA is half-open.
    pub fn half_open(world: &mut World) -> (Peer, Vec<Payload>) {
        Peer::half_open_saying(world, Vec::new())
    }

    /// With these payloads besides in IKE_SA_INIT.
    pub fn half_open_saying(world: &mut World, more: Vec<Payload>) -> (Peer, Vec<Payload>) {
        world.network = Box::new(|_, _, _| Some(vec![]));
        let mut random = Seeded(ChaCha12Rng::seed_from_u64(77));
        let proposal = parse_ike("aes128gcm16-prfsha256-x25519").unwrap();
        let key = PrivateKey::generate(Group::X25519, &mut random);
        let spis = IkeSpis { initiator: [0xaa; 8], responder: [0; 8] };
        let nonce = vec![7; 32];
        let header = Header {
            spis,
            next_payload: 0,
            exchange: exchange::IKE_SA_INIT,
            response: false,
            initiator: true,
            message_id: 0,
        };
        let mut payloads = vec![
            Payload::Sa(vec![proposal.to_wire(1, &[])]),
            Payload::KeyExchange { group: Group::X25519.id(), data: key.public().to_vec() },
            Payload::Nonce(nonce.clone()),
        ];
        payloads.extend(more);
        let request = Message { header, payloads }.emit();
        world.recorded.clear();
        send(world, request.clone());
        let response = Message::parse(&world.recorded[0].1.data).unwrap();
        let spis = response.header.spis;
        let theirs = response.payloads.iter().find_map(|p| match p {
            Payload::KeyExchange { data, .. } => Some(data.clone()),
            _ => None,
        });
        let offer = [proposal.to_wire(1, &[])];
        let (suite, _) = select_ike(&[proposal], &offer, None).unwrap();
        let shared = key.agree(&theirs.expect("a public value")).unwrap();
        let nonce_r = nonce_of(&response.payloads);
        let keys = IkeKeys::new(suite, &shared, &nonce, &nonce_r, spis);
        let config = connection(A);
        let id = Id::new(&config.local_id);
        let octets = keys.signed_octets(true, &request, &nonce_r, id.body());
        let data = psk_authentication(suite.prf, &config.psk.0, &octets).to_vec();
        let selectors = selectors([10, 1, 0, 0], [10, 2, 0, 0]);
        let authenticating = vec![
            Payload::IdInitiator(id),
            Payload::Authentication { method: authentication::SHARED_KEY, data },
            Payload::Sa(vec![parse_esp("aes128gcm16").unwrap().to_wire(1, CHILD_SPI, false)]),
            Payload::TsInitiator(selectors.local),
            Payload::TsResponder(selectors.remote),
        ];
        let (sealing, opening) = (keys.sealing(true), keys.opening(true));
        world.recorded.clear();
        (Peer { spis, random, sealing, opening, next: 1, heard: 0 }, authenticating)
    }

    /// An IKE SA with a Child SA.
    pub fn established(world: &mut World) -> Peer {
        let (mut peer, authenticating) = Peer::half_open(world);
        let answer = peer.request(world, exchange::IKE_AUTH, &authenticating);
        assert!(answer.iter().any(|p| matches!(p, Payload::TsResponder(_))), "{answer:?}");
        assert_eq!(world.sas(B)[0].children.len(), 1);
        peer
    }

    fn header(&self, exchange: u8, response: bool, message_id: u32) -> Header {
        Header { spis: self.spis, next_payload: 0, exchange, response, initiator: true, message_id }
    }

    /// Sends a request; the response's payloads.
    pub fn request(&mut self, world: &mut World, exchange: u8, payloads: &[Payload]) -> Vec<Payload> {
        let octets = seal(&self.header(exchange, false, self.next), payloads, &mut self.sealing);
        self.ask(world, octets).expect("a response")
    }

    /// The same, of octets whose first payload is of type `first`; `None` if nothing is answered.
    pub fn request_octets(
        &mut self,
        world: &mut World,
        exchange: u8,
        first: u8,
        chain: &[u8],
    ) -> Option<Vec<Payload>> {
        let octets = seal_chain(&self.header(exchange, false, self.next), first, chain, &mut self.sealing);
        self.ask(world, octets)
    }

    fn ask(&mut self, world: &mut World, octets: Vec<u8>) -> Option<Vec<Payload>> {
        let before = world.recorded.len();
        send(world, octets);
        let sent = world.recorded[before..].iter().find(|(_, d)| d.data[19] & 0x20 != 0)?.1.data.clone();
        let view = View::parse(&sent).unwrap();
        assert_eq!(view.header().message_id, self.next);
        self.next += 1;
        Some(view.open(&self.opening).unwrap())
    }

    /// The next request of B that has not been looked at.
    pub fn next_request(&mut self, world: &World) -> Option<(Header, Vec<Payload>)> {
        while let Some((from, datagram)) = world.recorded.get(self.heard) {
            self.heard += 1;
            if *from == B && datagram.data[19] & 0x20 == 0 {
                let view = View::parse(&datagram.data).unwrap();
                return Some((view.header(), view.open(&self.opening).unwrap()));
            }
        }
        None
    }

    /// Answers a request of B.
    pub fn respond(&mut self, world: &mut World, request: &Header, payloads: &[Payload]) {
        let header = self.header(request.exchange, true, request.message_id);
        let octets = seal(&header, payloads, &mut self.sealing);
        send(world, octets);
    }

    /// The next request has another Message ID.
    pub fn skip(&mut self, by: i32) {
        self.next = self.next.wrapping_add_signed(by);
    }

    /// Of 32 octets.
    pub fn nonce(&mut self) -> Payload {
        let mut nonce = vec![0; 32];
        self.random.fill(&mut nonce);
        Payload::Nonce(nonce)
    }

    /// What a CREATE_CHILD_SA request for a Child SA holds besides the SPI it replaces.
    pub fn child_payloads(&mut self, spi: [u8; 4]) -> Vec<Payload> {
        let selectors = selectors([10, 1, 0, 0], [10, 2, 0, 0]);
        vec![
            Payload::Sa(vec![parse_esp("aes128gcm16").unwrap().to_wire(1, spi, true)]),
            self.nonce(),
            Payload::TsInitiator(selectors.local),
            Payload::TsResponder(selectors.remote),
        ]
    }
}

fn send(world: &mut World, data: Vec<u8>) {
    let (local, remote) = (world.sides[B].address, world.sides[A].address);
    world.inject(B, Datagram { local, remote, data });
}
