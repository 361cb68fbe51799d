//! What happens in a world, drawn from its seed.

use crate::network::Conditions;
use crate::random::Dice;
use spindle_abi::{Selector, SelectorSet, Time};
use spindle_ike::api::{
    ChildConfig, ConnectionConfig, Identity, Lifetime, Psk, Retransmission, StartAction, TransportMode,
};
use spindle_ike::wire::exchange;
use spindle_recovery::api::{Config, Limits, Method, SirLimits, TokenMethod};
use std::net::Ipv4Addr;
use std::time::Duration;

/// The one connection of each gateway, and its Child SA.
pub(crate) const CONNECTION: &str = "peer";
pub(crate) const CHILD: &str = "net";

/// Outer addresses.
pub(crate) const OUTSIDE: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];
/// Addresses of their own, of the two members of a cluster in the second gateway's place.
pub(crate) const MEMBERS: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 21), Ipv4Addr::new(192, 0, 2, 22)];
/// Outer address of the other gateway to which the second one may redirect its peer.
pub(crate) const OTHER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);
/// A host behind each gateway.
pub(crate) const HOSTS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 1, 0, 10), Ipv4Addr::new(10, 2, 0, 10)];

const NAMES: [&str; 2] = ["a", "b"];

/// How long gateways must stay agreed, usually.
pub(crate) const STEADY: Duration = Duration::from_secs(1);

/// How a gateway dies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Death {
    /// `kill -9`: the disk's cache survives.
    Kill,
    /// The machine loses power.
    Power,
    /// The machine loses power within one of its next writes.
    PowerInWrite,
}

/// One thing that happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    /// A gateway dies, and starts again after a while; with `again`, it dies again that long after that.
    Crash { side: usize, death: Death, down: Duration, again: Option<Duration> },
    /// It does so at its `skip`th message of this kind from now on, before that leaves or after.
    CrashAt {
        side: usize,
        exchange: u8,
        response: bool,
        skip: usize,
        before: bool,
        death: Death,
        down: Duration,
    },
    /// A gateway rekeys its IKE SA, or its Child SA.
    Rekey { side: usize, ike: bool },
    /// An operator's command.
    Initiate { side: usize },
    /// An operator's command.
    Terminate { side: usize },
    /// An operator's command: a new generation of the QCD secret.
    RotateSecret { side: usize },
    /// An operator's command: no IKE SA begins here any more, and the peer is told, or redirected to the other gateway. The
    /// gateway dies soon after.
    TakeDown { side: usize, redirect: bool },
    /// The second gateway is stopped and started again; it has taken leave, and the other gateway stands in its place now.
    HandOver,
    /// A gateway that is down loses its secret, or all that it has on disk; the operator has it make a new one.
    LoseSecret { side: usize, state: bool },
    /// The cluster's address leaves the member that has it, and comes to the other one; with `death`, because that dies.
    MoveAddress { death: Option<(Death, Duration)>, gap: Duration },
    /// The NAT before the first gateway, if there is one, maps it elsewhere.
    MoveMapping,
    /// A gateway loses its Child SA, or its IKE SA with that, and nothing else.
    Forget { side: usize, child: bool },
    /// Control dies alone, after so many outputs more, and starts again after a while.
    ControlDies { side: usize, after: u32, down: Duration },
    /// A dataplane dies alone, and another one is up after a while.
    DataplaneDies { side: usize, down: Duration },
    /// Nothing reaches a gateway for a while.
    CutOff { side: usize, for_: Duration },
}

/// All of it.
#[derive(Debug)]
pub(crate) struct Scenario {
    pub(crate) conditions: Conditions,
    pub(crate) configs: [Config; 2],
    /// Sorted by time.
    pub(crate) actions: Vec<(Time, Action)>,
    /// Between two packets of the host behind each gateway; `None`: it has nothing to send.
    pub(crate) traffic: [Option<Duration>; 2],
    /// Between two strikes of the attacker, on average.
    pub(crate) attack_interval: Duration,
    /// When the first one comes.
    pub(crate) attack_from: Duration,
    /// From when on nothing is disturbed any more.
    pub(crate) calm: Time,
    /// For how long the gateways must then stay agreed.
    pub(crate) steady: Duration,
    /// Is the second gateway a cluster of two?
    pub(crate) cluster: bool,
    /// Is there another gateway for the second one's side, at an address of its own?
    pub(crate) other: bool,
    /// So long after the kernel a member learns at most that the address has come or left.
    pub(crate) look_delay: Duration,
    /// Is a NAT before the first gateway?
    pub(crate) nat: bool,
    /// Between control and dataplane.
    pub(crate) ring_delay: Duration,
}

pub(crate) fn milliseconds(count: u64) -> Duration {
    Duration::from_millis(count)
}

impl Scenario {
    /// The scenario of this seed. What came later is drawn from dice of its own, so that all else is as before.
    pub(crate) fn of_seed(seed: u64) -> Scenario {
        let mut scenario = Scenario::draw(&mut Dice::new(seed, 0));
        scenario.draw_rotations(&mut Dice::new(seed, 4));
        scenario.draw_take_downs(&mut Dice::new(seed, 7));
        scenario.draw_sir(&mut Dice::new(seed, 6));
        scenario.draw_nat(&mut Dice::new(seed, 8));
        scenario.draw_cluster(&mut Dice::new(seed, 14));
        scenario.draw_forgotten(&mut Dice::new(seed, 17));
        scenario.draw_control_deaths(&mut Dice::new(seed, 18));
        scenario.draw_dataplane_deaths(&mut Dice::new(seed, 19));
        scenario
    }

    /// Does a gateway rekey an SA by itself?
    pub(crate) fn rekeys(&self) -> bool {
        let connections = self.configs.iter().flat_map(|config| &config.connections);
        let mut times = connections.flat_map(|c| [c.rekey_time, c.children[0].rekey_time]);
        times.any(|time| !time.is_zero())
    }

    /// Does the network lose messages, or lead them astray?
    pub(crate) fn loses(&self) -> bool {
        let cut_off = self.actions.iter().any(|(_, action)| matches!(action, Action::CutOff { .. }));
        self.conditions.loss > 0 || self.nat || cut_off
    }

    /// Has a gateway SIR?
    pub(crate) fn speaks_sir(&self) -> bool {
        self.configs.iter().any(|config| config.methods_of(CONNECTION).contains(&Method::Sir))
    }

    pub(crate) fn draw(dice: &mut Dice) -> Scenario {
        let delay = milliseconds(dice.one(&[0, 1, 10, 10, 50]));
        let conditions = Conditions {
            delay: delay + Duration::from_micros(50),
            jitter: dice.one(&[Duration::ZERO, delay / 10, delay * 2]),
            loss: dice.one(&[0, 0, 2, 10, 25]),
            duplication: dice.one(&[0, 0, 5, 20]),
        };
        let calm = Time(0).after(dice.between(milliseconds(4_000), milliseconds(16_000)));
        let mut actions = Vec::new();
        for _ in 0..1 + dice.below(5) {
            let at = Time(0).after(dice.between(Duration::ZERO, calm.since(Time(0))));
            Self::draw_action(dice, at, &mut actions);
        }
        actions.sort_by_key(|(at, _)| *at);
        let interval = milliseconds(dice.one(&[20, 100, 400]));
        let traffic = dice.one(&[
            [Some(interval), None],
            [None, Some(interval)],
            [Some(interval); 2],
            [Some(interval); 2],
        ]);
        let mut scenario = Scenario {
            conditions,
            configs: Self::draw_configs(dice),
            actions,
            traffic,
            attack_interval: milliseconds(dice.one(&[20, 100, 1000])),
            attack_from: Duration::ZERO,
            calm,
            steady: STEADY,
            cluster: false,
            other: false,
            look_delay: milliseconds(20),
            nat: false,
            ring_delay: Duration::from_micros(dice.one(&[0, 20, 500])),
        };
        scenario.configs.iter_mut().for_each(|config| Self::draw_methods(dice, config));
        scenario
    }

    /// SAs that are lost without a crash.
    fn draw_forgotten(&mut self, dice: &mut Dice) {
        for _ in 0..dice.one(&[0, 0, 0, 1, 2]) {
            let at = Time(0).after(dice.between(Duration::ZERO, self.calm.since(Time(0))));
            self.actions.push((at, Action::Forget { side: dice.below(2), child: dice.percent(50) }));
        }
        self.actions.sort_by_key(|(at, _)| *at);
    }

    /// Each side may prefer another method for its connection, and tell unasked.
    fn draw_methods(dice: &mut Dice, config: &mut Config) {
        use Method::{InitialContact, Liveness, Qcd};
        config.proactive = dice.percent(20);
        let own = dice.one(&[
            &[][..],
            &[],
            &[InitialContact, Liveness],
            &[InitialContact, Qcd, Liveness],
            &[Qcd, InitialContact, Liveness],
        ]);
        if !own.is_empty() {
            config.connection_methods.insert(CONNECTION.into(), own.to_vec());
        }
    }

    /// Rotations of the secrets, and how tokens are made; drawn from dice of their own, so that all else is as without.
    fn draw_rotations(&mut self, dice: &mut Dice) {
        for config in &mut self.configs {
            config.token_method =
                dice.one(&[TokenMethod::Spis, TokenMethod::Spis, TokenMethod::SpisAndAddress]);
            config.secret_rotation = milliseconds(dice.one(&[0, 0, 0, 1_000, 3_000]));
        }
        for _ in 0..dice.one(&[0, 0, 1, 2]) {
            let side = dice.below(2);
            let mut at = Time(0).after(dice.between(Duration::ZERO, self.calm.since(Time(0))));
            let apart = milliseconds(dice.one(&[0, 5, 100, 800]));
            for _ in 0..dice.one(&[1, 3, 6, 9]) {
                self.actions.push((at, Action::RotateSecret { side }));
                at = at.after(dice.between(Duration::ZERO, apart));
            }
        }
        self.actions.sort_by_key(|(at, _)| *at);
    }

    /// A gateway is taken down, and a while later dies to start again; drawn from dice of their own too.
    fn draw_take_downs(&mut self, dice: &mut Dice) {
        for _ in 0..dice.one(&[0, 0, 0, 0, 0, 0, 0, 1]) {
            let side = dice.below(2);
            let at = Time(0).after(dice.between(Duration::ZERO, self.calm.since(Time(0))));
            let dies = at.after(milliseconds(dice.one(&[1, 30, 200, 1500])));
            // Before the calm, or it would stay down.
            if dies < self.calm {
                let (death, down) = (Death::Kill, milliseconds(dice.one(&[0, 300, 2000])));
                self.actions.push((at, Action::TakeDown { side, redirect: false }));
                self.actions.push((dies, Action::Crash { side, death, down, again: None }));
            }
        }
        self.actions.sort_by_key(|(at, _)| *at);
    }

    /// Deaths of control alone, some in the middle of a rekey; drawn from dice of their own too.
    fn draw_control_deaths(&mut self, dice: &mut Dice) {
        for _ in 0..dice.one(&[0, 0, 0, 1, 1, 2, 3]) {
            let side = dice.below(2);
            let at = Time(0).after(dice.between(Duration::ZERO, self.calm.since(Time(0))));
            let after = dice.one(&[0, 0, 1, 2, 3, 4, 5, 6, 8, 10, 13, 20]);
            let down = milliseconds(dice.one(&[5, 5, 50, 300, 2000]));
            self.actions.push((at, Action::ControlDies { side, after, down }));
            if dice.percent(60) {
                let (by, ike) = (dice.below(2), dice.percent(50));
                self.actions.push((at.after(Duration::from_micros(1)), Action::Rekey { side: by, ike }));
            }
        }
        self.actions.sort_by_key(|(at, _)| *at);
    }

    /// Deaths of the dataplane, some of them together with control's; drawn from dice of their own too.
    fn draw_dataplane_deaths(&mut self, dice: &mut Dice) {
        for _ in 0..dice.one(&[0, 0, 0, 1, 2, 5]) {
            let side = dice.below(2);
            let at = Time(0).after(dice.between(Duration::ZERO, self.calm.since(Time(0))));
            let down = milliseconds(dice.one(&[0, 1, 30, 300]));
            self.actions.push((at, Action::DataplaneDies { side, down }));
            if dice.percent(40) {
                let gap = Duration::from_micros(dice.one(&[0, 1, 300, 5_000, 100_000]));
                let (after, down) = (dice.one(&[0, 0, 3, 10]), milliseconds(dice.one(&[5, 50, 300])));
                self.actions.push((at.after(gap), Action::ControlDies { side, after, down }));
            }
            if dice.percent(30) {
                let (by, ike) = (dice.below(2), dice.percent(50));
                self.actions.push((at.after(Duration::from_micros(1)), Action::Rekey { side: by, ike }));
            }
        }
        self.actions.sort_by_key(|(at, _)| *at);
    }

    /// SIR, beside the other methods or in their place, on both sides or on one; drawn from dice of their own too. Less
    /// dampened than by default, or a short scenario would see it seldom.
    pub(crate) fn draw_sir(&mut self, dice: &mut Dice) {
        let limits = SirLimits {
            dampen_new: milliseconds(dice.one(&[0, 0, 0, 0, 300, 10_000])),
            dampen_recovered: milliseconds(dice.one(&[0, 1000, 60_000])),
            ..SirLimits::default()
        };
        let (first, alone) = (dice.percent(50), dice.percent(75));
        let sides = dice.one(&[&[][..], &[], &[], &[], &[0, 1], &[0, 1], &[0, 1], &[0, 1], &[0], &[1]]);
        for side in sides {
            let config = &mut self.configs[*side];
            let mut methods = config.methods_of(CONNECTION).to_vec();
            methods.retain(|method| !alone || *method == Method::Liveness);
            methods.insert(if first { 0 } else { methods.len() - 1 }, Method::Sir);
            config.connection_methods.insert(CONNECTION.into(), methods);
            config.limits.sir = limits;
        }
    }

    /// A NAT before the first gateway, whose mapping moves at any time; drawn from dice of their own too. The other gateway
    /// does not know where its peer is until that has come.
    fn draw_nat(&mut self, dice: &mut Dice) {
        if !dice.percent(12) {
            return;
        }
        self.put_nat();
        for _ in 0..dice.below(4) {
            let at = Time(0).after(dice.between(Duration::ZERO, self.calm.since(Time(0))));
            self.actions.push((at, Action::MoveMapping));
            // As the gateway dies or starts, when it is told least.
            if dice.percent(40) {
                let (side, death) = (dice.below(2), dice.one(&[Death::Kill, Death::Power]));
                let gap = milliseconds(dice.one(&[0, 20, 200, 1000]));
                let down = milliseconds(dice.one(&[0, 50, 300, 1000]));
                self.actions.push((at.after(gap), Action::Crash { side, death, down, again: None }));
            }
        }
        self.actions.sort_by_key(|(at, _)| *at);
    }

    /// Two members in the second gateway's place, with one maker id and one secret, between which the address moves (RFC
    /// 6290 section 6); drawn from dice of their own too.
    fn draw_cluster(&mut self, dice: &mut Dice) {
        if !dice.percent(12) {
            return;
        }
        self.become_cluster();
        self.look_delay = milliseconds(dice.one(&[1, 20, 20, 100, 2000]));
        for _ in 0..1 + dice.below(4) {
            let mut at = Time(0).after(dice.between(Duration::ZERO, self.calm.since(Time(0))));
            // Alone, or there and back.
            for _ in 0..dice.one(&[1, 1, 2, 3]) {
                let down = milliseconds(dice.one(&[0, 50, 300, 1000, 6000]));
                let death =
                    dice.one(&[Some(Death::Kill), Some(Death::Power), Some(Death::PowerInWrite), None, None]);
                let gap = milliseconds(dice.one(&[0, 5, 50, 500, 3000]));
                self.actions.push((at, Action::MoveAddress { death: death.map(|death| (death, down)), gap }));
                at = at.after(gap + milliseconds(dice.one(&[1, 30, 200, 1000])));
            }
        }
        self.actions.sort_by_key(|(at, _)| *at);
    }

    /// A NAT before the first gateway, so that the other one cannot be configured to know where that is.
    pub(crate) fn put_nat(&mut self) {
        self.nat = true;
        let connection = &mut self.configs[1].connections[0];
        connection.remote = None;
        connection.start_action = StartAction::Trap;
        connection.children[0].start_action = StartAction::Trap;
    }

    /// Another gateway with the second one's identity, where the first one lets itself be redirected (RFC 5685).
    pub(crate) fn put_other(&mut self) {
        self.other = true;
        self.configs[0].connections[0].redirect_to = vec![OTHER.into()];
    }

    /// RFC 7296 section 2.4: none of its members sends INITIAL_CONTACT.
    pub(crate) fn become_cluster(&mut self) {
        self.cluster = true;
        self.configs[1].replicated = true;
        self.configs[1].secret_shared = true;
        self.configs[1].secret_rotation = Duration::ZERO;
    }

    fn draw_action(dice: &mut Dice, at: Time, actions: &mut Vec<(Time, Action)>) {
        let side = dice.below(2);
        let death = dice.one(&[Death::Kill, Death::Power, Death::PowerInWrite]);
        let down = milliseconds(dice.one(&[0, 50, 300, 1000, 6000]));
        match dice.below(12) {
            0..=2 => {
                let again = dice.one(&[None, None, Some(5), Some(60), Some(400)]).map(milliseconds);
                actions.push((at, Action::Crash { side, death, down, again }));
            }
            3..=5 => {
                let exchange = dice.one(&[
                    exchange::IKE_SA_INIT,
                    exchange::IKE_AUTH,
                    exchange::IKE_SESSION_RESUME,
                    exchange::CREATE_CHILD_SA,
                    exchange::CREATE_CHILD_SA,
                    exchange::INFORMATIONAL,
                ]);
                let (response, before) = (dice.percent(50), dice.percent(50));
                let skip = dice.one(&[0, 0, 0, 1, 2]);
                actions.push((at, Action::CrashAt { side, exchange, response, skip, before, death, down }));
                if exchange == exchange::CREATE_CHILD_SA {
                    let by = dice.below(2);
                    actions
                        .push((at.after(milliseconds(1)), Action::Rekey { side: by, ike: dice.percent(60) }));
                }
            }
            6 | 7 => actions.push((at, Action::Rekey { side, ike: dice.percent(50) })),
            8 | 9 => {
                // Both at once, or nearly so.
                let apart = milliseconds(dice.one(&[1, 20]));
                let gap = dice.between(Duration::ZERO, apart);
                let (first, second) = (dice.percent(50), dice.percent(50));
                actions.push((at, Action::Rekey { side, ike: first }));
                actions.push((at.after(gap), Action::Rekey { side: 1 - side, ike: second }));
            }
            10 => {
                let for_ = dice.between(milliseconds(10), milliseconds(5000));
                actions.push((at, Action::CutOff { side, for_ }));
                if dice.percent(50) {
                    actions.push((at, Action::CutOff { side: 1 - side, for_ }));
                }
            }
            _ if dice.percent(50) => actions.push((at, Action::Terminate { side })),
            _ => {
                actions.push((at, Action::Initiate { side }));
                actions.push((at, Action::Initiate { side: 1 - side }));
            }
        }
    }

    pub(crate) fn draw_configs(dice: &mut Dice) -> [Config; 2] {
        let ike = dice.one(&[
            "chacha20poly1305-prfsha256-x25519",
            "aes128gcm16-prfsha256-x25519",
            "aes128gcm16-prfsha256-x25519",
            "aes256gcm16-prfsha384-ecp256",
        ]);
        let esp = dice.one(&["aes128gcm16", "chacha20poly1305", "aes256gcm16-x25519"]);
        let force_encapsulation = dice.percent(30);
        let soft = |dice: &mut Dice| milliseconds(dice.one(&[0, 0, 0, 4000, 9000]));
        let starts = dice.one(&[
            [StartAction::Trap, StartAction::Trap],
            [StartAction::Start, StartAction::Trap],
            [StartAction::Trap, StartAction::Start],
            [StartAction::Start, StartAction::Start],
        ]);
        let journal = dice.percent(70);
        let methods =
            if dice.percent(80) { vec![Method::Qcd, Method::Liveness] } else { vec![Method::Liveness] };
        let resumption = dice.one(&[[true; 2], [true; 2], [false; 2], [true, false]]);
        let ticket_lifetime = milliseconds(dice.one(&[3_000, 60_000, 3_600_000]));
        std::array::from_fn(|side| {
            let identity = |side: usize| Identity::Fqdn(format!("{}.example", NAMES[side]));
            let network = |side: usize| {
                let [a, b, c, _] = HOSTS[side].octets();
                vec![Selector::addresses(
                    Ipv4Addr::from([a, b, c, 0]).into(),
                    Ipv4Addr::from([a, b, c, 255]).into(),
                )]
            };
            let child = ChildConfig {
                name: CHILD.into(),
                policy: 1,
                interface: 0,
                transport: TransportMode::Never,
                selectors: SelectorSet { local: network(side), remote: network(1 - side) },
                proposals: vec![esp.into()],
                rekey_time: soft(dice),
                lifetime: Lifetime::default(),
                replay_window: 64,
                hold_packets: 0,
                resources: 0,
                start_action: starts[side],
            };
            let connection = ConnectionConfig {
                name: CONNECTION.into(),
                local: OUTSIDE[side].into(),
                remote: Some(OUTSIDE[1 - side].into()),
                remote_port: 500,
                local_id: identity(side),
                remote_id: identity(1 - side),
                psk: Psk(b"simulated".to_vec().into()),
                proposals: vec![ike.into()],
                force_encapsulation,
                dpd_delay: milliseconds(dice.one(&[1000, 5000])),
                retransmission: Retransmission { timeout: milliseconds(300), base: 1.5, tries: 5 },
                rekey_time: soft(dice),
                resumption: resumption[side],
                redirect_to: Vec::new(),
                start_action: starts[side],
                children: vec![child],
            };
            Config {
                name: NAMES[side].into(),
                connections: vec![connection.into()],
                policies: Vec::new(),
                methods: methods.clone(),
                connection_methods: Default::default(),
                proactive: false,
                replicated: false,
                token_maker: dice.percent(90),
                token_taker: dice.percent(90),
                token_method: TokenMethod::Spis,
                secret_rotation: Duration::ZERO,
                secret_shared: false,
                journal,
                limits: Limits::default(),
                cookie_threshold: dice.one(&[0, 4, 64]),
                ticket_lifetime,
            }
        })
    }
}
