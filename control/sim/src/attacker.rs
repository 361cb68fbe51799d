//! An attacker who sees and keeps every outer packet, sends from any address, and is told every SPI; what it
//! lacks is keys.

use crate::network::{Packet, ipv4, udp};
use crate::random::Dice;
use spindle_ike::api::{Header, IkeSpis, Notify};
use spindle_ike::check_spi::{CheckSpi, Subtype};
use spindle_ike::wire::{
    Message, Payload, View, add_non_esp_marker, exchange, notify, payload_type, protocol,
};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Packets that are kept; then random ones go.
const KEPT: usize = 256;

/// The attacker's own address.
pub(crate) const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 66);

/// What it has gathered.
pub(crate) struct Attacker {
    dice: Dice,
    captured: Vec<Packet>,
    /// In the order in which they were first seen.
    pairs: Vec<IkeSpis>,
    tokens: Vec<Vec<u8>>,
    /// Is SIR spoken in this world?
    sir: bool,
    /// Cookies of CHECK_SPI, with the pair that they were seen with.
    cookies: Vec<(IkeSpis, Vec<u8>)>,
    /// By the gateway that chose them.
    child_spis: [Vec<u32>; 2],
    addresses: [Ipv4Addr; 2],
}

impl Attacker {
    /// `sir`: is SIR spoken in this world?
    pub(crate) fn new(dice: Dice, addresses: [Ipv4Addr; 2], sir: bool) -> Attacker {
        Attacker {
            dice,
            captured: Vec::new(),
            pairs: Vec::new(),
            tokens: Vec::new(),
            sir,
            cookies: Vec::new(),
            child_spis: Default::default(),
            addresses,
        }
    }

    /// It sees a packet; `true` if that shows an IKE SPI pair for the first time.
    pub(crate) fn sees(&mut self, packet: &Packet) -> bool {
        if self.captured.len() < KEPT {
            self.captured.push(packet.clone());
        } else {
            let at = self.dice.below(KEPT);
            self.captured[at] = packet.clone();
        }
        let Some(view) = packet.ike_message().and_then(|message| View::parse(message).ok()) else {
            return false;
        };
        if let Ok(message) = view.message() {
            for payload in message.payloads {
                match payload {
                    Payload::Notify(n)
                        if n.kind == notify::QUICK_CRASH_DETECTION && self.tokens.len() < 64 =>
                    {
                        self.tokens.push(n.data);
                    }
                    Payload::Notify(n) => {
                        if let Some(check) = CheckSpi::from_notify(&n)
                            && self.cookies.len() < 64
                        {
                            self.cookies.push((view.header().spis, check.cookie));
                        }
                    }
                    _ => {}
                }
            }
        }
        let spis = view.header().spis;
        let new = spis.initiator != [0; 8] && !self.pairs.contains(&spis);
        if new {
            self.pairs.push(spis);
        }
        new
    }

    /// It is told of a Child SPI.
    pub(crate) fn learns_spi(&mut self, side: usize, spi: u32) {
        if !self.child_spis[side].contains(&spi) {
            self.child_spis[side].push(spi);
        }
    }

    /// Something forged or replayed, for one of the gateways.
    pub(crate) fn strikes(&mut self) -> Packet {
        if self.sir && self.dice.percent(15) {
            return self.sir();
        }
        match self.dice.below(12) {
            0 | 1 => self.replays(),
            2..=5 => self.protected(false),
            6 => self.protected(true),
            7 | 8 => self.hints(),
            9 | 10 => self.esp(),
            _ => self.junk(),
        }
    }

    /// A forged protected request that names the latest pair, half-open as it may be.
    pub(crate) fn names_latest_pair(&mut self) -> Packet {
        let spis = *self.pairs.last().expect("called when a pair was seen");
        self.protected_for(spis, false)
    }

    fn victim(&mut self) -> usize {
        self.dice.below(2)
    }

    /// Mostly a recent one.
    fn pair(&mut self) -> IkeSpis {
        let random = IkeSpis { initiator: self.spi(), responder: self.spi() };
        let recent = self.pairs.len().saturating_sub(4);
        match self.dice.below(10) {
            _ if self.pairs.is_empty() => random,
            0 => random,
            1..=6 => {
                let at = recent + self.dice.below(self.pairs.len() - recent);
                self.pairs[at]
            }
            7 => {
                let IkeSpis { initiator, responder } = self.dice.one(&self.pairs);
                IkeSpis { initiator: responder, responder: initiator }
            }
            8 => {
                let (a, b) = (self.dice.one(&self.pairs), self.dice.one(&self.pairs));
                IkeSpis { initiator: a.initiator, responder: b.responder }
            }
            _ => self.dice.one(&self.pairs),
        }
    }

    fn spi(&mut self) -> [u8; 8] {
        self.dice.octets(8).try_into().expect("8 octets")
    }

    fn header(&mut self, spis: IkeSpis, response: bool) -> Header {
        let exchanges = [
            exchange::IKE_AUTH,
            exchange::CREATE_CHILD_SA,
            exchange::INFORMATIONAL,
            exchange::IKE_SA_INIT,
            exchange::IKE_SESSION_RESUME,
            43,
            240,
        ];
        Header {
            spis,
            next_payload: 0,
            exchange: self.dice.one(&exchanges),
            response,
            initiator: self.dice.percent(50),
            message_id: self.dice.below(4) as u32,
        }
    }

    fn protected(&mut self, response: bool) -> Packet {
        let spis = self.pair();
        self.protected_for(spis, response)
    }

    /// Its SK payload holds random octets: to one without the SA's keys it looks like any other.
    fn protected_for(&mut self, spis: IkeSpis, response: bool) -> Packet {
        let mut header = self.header(spis, response);
        if header.exchange == exchange::IKE_SA_INIT && self.dice.percent(80) {
            header.exchange = exchange::INFORMATIONAL;
        }
        let length = 24 + self.dice.below(64);
        let mut body = self.dice.octets(length);
        let kind = if self.dice.percent(80) { payload_type::SK } else { payload_type::SKF };
        if kind == payload_type::SKF {
            let number = self.dice.below(3) as u8;
            body[..4].copy_from_slice(&[0, number, 0, 2]);
        }
        let mut message = Message { header, payloads: vec![Payload::Unknown { kind, body }] }.emit();
        message[28] = self.dice.one(&[0, payload_type::NOTIFY, payload_type::DELETE, payload_type::SA]);
        let victim = self.victim();
        self.ike(victim, message)
    }

    /// INVALID_IKE_SPI or INVALID_SPI in clear, with or without a token that it once saw, or made up.
    fn hints(&mut self) -> Packet {
        let victim = self.victim();
        let of = |kind, protocol, data| Payload::Notify(Notify { kind, protocol, spi: vec![], data });
        let spis = self.pair();
        let (mut header, first) = if self.dice.percent(50) {
            (self.header(spis, true), of(notify::INVALID_IKE_SPI, 0, vec![]))
        } else {
            let mut header = self.header(spis, false);
            if self.dice.percent(70) {
                header.spis = IkeSpis { initiator: [0; 8], responder: [0; 8] };
            }
            // The peer of the victim chose what the victim sends on.
            let spi = self.child_spi(1 - victim);
            (header, of(notify::INVALID_SPI, 0, spi.to_be_bytes().to_vec()))
        };
        header.exchange = exchange::INFORMATIONAL;
        let mut payloads = vec![first];
        for _ in 0..self.dice.below(6) {
            let token = if self.tokens.is_empty() || self.dice.percent(30) {
                let length = self.dice.one(&[0, 15, 16, 32, 128, 129]);
                self.dice.octets(length)
            } else {
                self.dice.one(&self.tokens)
            };
            payloads.push(of(notify::QUICK_CRASH_DETECTION, protocol::IKE, token));
        }
        self.ike(victim, Message { header, payloads }.emit())
    }

    /// The answer to a query that it has just seen, before the true one: it reads and injects, but cannot block.
    pub(crate) fn races(&mut self, packet: &Packet) -> Option<Packet> {
        let Packet::Ike { source, destination, data } = packet else { return None };
        let message = Message::parse(packet.ike_message()?).ok()?;
        let [Payload::Notify(notify)] = &message.payloads[..] else { return None };
        let check = CheckSpi::from_notify(notify).filter(|check| check.subtype == Subtype::Query)?;
        let subtype = self.dice.one(&[Subtype::Nack, Subtype::Nack, Subtype::Ack]);
        let Header { initiator, .. } = message.header;
        let header = Header { response: true, initiator: !initiator, ..message.header };
        let payloads = vec![Payload::Notify(CheckSpi { subtype, ..check }.to_notify())];
        let answer = Message { header, payloads }.emit();
        let marked = data.starts_with(&[0; 4]);
        let data = if marked { add_non_esp_marker(&answer) } else { answer };
        Some(Packet::Ike { source: *destination, destination: *source, data })
    }

    /// A query or an answer of SIR: with a cookie that it once saw, perhaps of another IKE SA, or made up.
    fn sir(&mut self) -> Packet {
        let (spis, cookie) = if self.cookies.is_empty() || self.dice.percent(20) {
            let length = self.dice.one(&[0, 23, 24, 24, 255]);
            (self.pair(), self.dice.octets(length))
        } else {
            let recent = self.cookies.len().saturating_sub(3);
            let at = recent + self.dice.below(self.cookies.len() - recent);
            self.cookies[at].clone()
        };
        let spis = if self.dice.percent(70) { spis } else { self.pair() };
        let subtype = self.dice.one(&[Subtype::Query, Subtype::Ack, Subtype::Nack, Subtype::Nack]);
        let check = CheckSpi { subtype, child: None, cookie };
        let response = (subtype != Subtype::Query) != self.dice.percent(10);
        let mut header = self.header(spis, response);
        if self.dice.percent(90) {
            (header.exchange, header.message_id) = (exchange::SIR, 0);
        }
        let mut payloads = vec![Payload::Notify(check.to_notify())];
        if self.dice.percent(20) {
            let (length, kind) = (self.dice.one(&[1, 53, 64, 65]), notify::COOKIE);
            let data = self.dice.octets(length);
            payloads.push(Payload::Notify(Notify { kind, protocol: 0, spi: vec![], data }));
        }
        let victim = self.victim();
        self.ike(victim, Message { header, payloads }.emit())
    }

    fn child_spi(&mut self, side: usize) -> u32 {
        if self.child_spis[side].is_empty() || self.dice.percent(10) {
            return 256 + self.dice.number() % 512;
        }
        let spis = &self.child_spis[side];
        let recent = if self.dice.percent(70) { spis.len().saturating_sub(4) } else { 0 };
        spis[recent + self.dice.below(spis.len() - recent)]
    }

    /// ESP on larval, current, retired, former and unknown SPIs.
    fn esp(&mut self) -> Packet {
        let victim = self.victim();
        let spi = self.child_spi(victim);
        let sequence = self.dice.one(&[0, 1, 1000, u32::MAX]);
        let mut payload = [spi.to_be_bytes(), sequence.to_be_bytes()].concat();
        payload.extend(self.dice.octets(52));
        let source = self.source(victim);
        let IpAddr::V4(source) = source else { unreachable!("addresses here are IPv4") };
        let destination = self.addresses[victim];
        Packet::Esp(if self.dice.percent(70) {
            ipv4(source, destination, 50, &payload)
        } else {
            ipv4(source, destination, 17, &udp(4500, 4500, &payload))
        })
    }

    fn source(&mut self, victim: usize) -> IpAddr {
        if self.dice.percent(70) { self.addresses[1 - victim].into() } else { ELSEWHERE.into() }
    }

    fn ike(&mut self, victim: usize, message: Vec<u8>) -> Packet {
        let port = self.dice.one(&[500, 500, 4500]);
        let source = self.source(victim);
        let source_port =
            if source == IpAddr::from(ELSEWHERE) { 10_000 + self.dice.below(50_000) as u16 } else { port };
        let data = if port == 4500 { add_non_esp_marker(&message) } else { message };
        Packet::Ike {
            source: SocketAddr::new(source, source_port),
            destination: SocketAddr::new(self.addresses[victim].into(), port),
            data,
        }
    }

    /// As it was, or from elsewhere, or back to its sender.
    fn replays(&mut self) -> Packet {
        if self.captured.is_empty() {
            return self.junk();
        }
        let mut packet = self.dice.one(&self.captured);
        if let Packet::Ike { source, destination, .. } = &mut packet {
            match self.dice.below(6) {
                0 | 1 => source.set_ip(ELSEWHERE.into()),
                2 => std::mem::swap(source, destination),
                _ => {}
            }
        }
        packet
    }

    /// A captured message with octets changed, or nothing like a message.
    fn junk(&mut self) -> Packet {
        let victim = self.victim();
        let ike: Vec<Vec<u8>> =
            self.captured.iter().filter_map(|p| p.ike_message().map(<[u8]>::to_vec)).collect();
        if ike.is_empty() || self.dice.percent(20) {
            let length = self.dice.below(100);
            let octets = self.dice.octets(length);
            return self.ike(victim, octets);
        }
        let mut message = self.dice.one(&ike);
        for _ in 0..=self.dice.below(3) {
            let at = self.dice.below(message.len());
            message[at] = self.dice.number() as u8;
        }
        self.ike(victim, message)
    }
}
