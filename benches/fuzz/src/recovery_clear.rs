//! Two gateways with an IKE SA; then any notifications in clear to one of them: without the true token nothing but
//! liveness checks comes of them, and no token leaves.

use crate::endpoints::{Idle, NOW, Seeded, connection};
use spindle_abi::Event;
use spindle_ike::api::{Datagram, Header, IkeSpis, Notify};
use spindle_ike::wire::{Message, Payload};
use spindle_recovery::Gateway;
use spindle_recovery::api::{
    Boot, Config, Generation, Input, Limits, Method, Output, Secret, TicketKey, TicketRecords, TokenMethod,
};

fn gateway(side: usize) -> Gateway {
    let config = Config {
        name: format!("gateway{side}"),
        connections: vec![connection(side).into()],
        policies: Vec::new(),
        methods: vec![Method::Qcd, Method::Liveness],
        connection_methods: Default::default(),
        proactive: false,
        replicated: false,
        token_maker: true,
        token_taker: true,
        token_method: TokenMethod::Spis,
        secret_rotation: std::time::Duration::ZERO,
        secret_shared: false,
        journal: true,
        limits: Limits::default(),
        cookie_threshold: 64,
        ticket_lifetime: std::time::Duration::from_secs(3600),
    };
    let secret = |octet: u8| Secret(zeroize::Zeroizing::new([octet; 32]));
    let key = TicketKey { id: [side as u8; 8], key: secret(side as u8 + 9) };
    let boot = Boot {
        incarnation: 1,
        maker_id: vec![side as u8; 16],
        secrets: vec![Generation {
            secret: secret(side as u8 + 7),
            method: TokenMethod::Spis,
            made: 1_700_000_000,
            needed_until: Some(0),
        }],
        former: Vec::new(),
        tickets: TicketRecords { keys: vec![key], used: Vec::new() },
        anchor_matches: true,
        wall_clock: (1_700_000_000, NOW),
    };
    Gateway::new(config, boot, Box::new(Idle), Box::new(Seeded::new(side as u64)), NOW)
}

/// What a gateway sends, with its commands acknowledged.
fn sent(gateway: &mut Gateway) -> Vec<Datagram> {
    let mut datagrams = Vec::new();
    while let Some(output) = gateway.poll() {
        match output {
            Output::Transmit(datagram) => datagrams.push(datagram),
            Output::Command { sequence, .. } => {
                gateway.handle(NOW, Input::Event(Event::Acknowledged { sequence, done: true }));
            }
            Output::Journal(_)
            | Output::Persist(_)
            | Output::Secrets { .. }
            | Output::Keep(_)
            | Output::Report(_) => {}
        }
    }
    datagrams
}

fn established() -> [Gateway; 2] {
    let mut gateways = [gateway(0), gateway(1)];
    for gateway in &mut gateways {
        gateway.handle(NOW, Input::Event(Event::Ready));
    }
    gateways[0].initiate(NOW, "peer", None).expect("it is configured");
    for turn in 0..8 {
        let from = turn % 2;
        for Datagram { local, remote, data } in sent(&mut gateways[from]) {
            let received = Datagram { local: remote, remote: local, data };
            gateways[1 - from].handle(NOW, Input::Datagram(received));
        }
    }
    assert!(gateways.iter().all(|g| g.sas().len() == 1 && g.sas()[0].children.len() == 1));
    gateways
}

/// Each step is a header's shape, a count of notifications, and these: a kind, a length and so many octets.
pub fn run(data: &[u8]) {
    let [mut gateway, _] = established();
    let sa = gateway.sas().remove(0);
    let outbound = sa.children[0].outbound.0.to_be_bytes();
    let mut rest = data;
    while let [shape, count, tail @ ..] = rest {
        rest = tail;
        let zero = IkeSpis { initiator: [0; 8], responder: [0; 8] };
        let header = Header {
            spis: if shape & 1 == 0 { sa.spis } else { zero },
            next_payload: 0,
            exchange: 34 + (shape >> 1 & 7),
            response: shape & 16 != 0,
            initiator: shape & 32 != 0,
            message_id: u32::from(shape >> 6),
        };
        let mut payloads = Vec::new();
        for _ in 0..count % 8 {
            let [which, length, tail @ ..] = rest else { break };
            let (octets, tail) = tail.split_at(usize::from(*length).min(tail.len()));
            rest = tail;
            let (kind, data) = match which % 5 {
                0 => (4, octets),
                1 => (11, &outbound[..]),
                2 => (11, octets),
                3 => (16419, octets),
                _ => (u16::from(*which) << 6, octets),
            };
            let (protocol, spi) = (which >> 4, if which & 8 == 0 { Vec::new() } else { vec![*which; 4] });
            payloads.push(Payload::Notify(Notify { kind, protocol, spi, data: data.to_vec() }));
        }
        let (local, remote) = (sa.local, sa.remote);
        let data = Message { header, payloads }.emit();
        gateway.handle(NOW, Input::Datagram(Datagram { local, remote, data }));
        for datagram in sent(&mut gateway) {
            // An SK payload: the liveness check. IKE_SA_INIT that cannot be parsed is told so.
            assert!(datagram.data[16] == 46 || datagram.data[18] == 34, "{datagram:02x?}");
        }
        assert_eq!(gateway.sas().len(), 1);
    }
    assert_eq!(gateway.sas(), [sa]);
    let proofs = gateway.stats().into_iter().find(|(name, _)| *name == "proofs");
    assert_eq!(proofs, Some(("proofs", 0)));
}
