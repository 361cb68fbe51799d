//! Scripted worlds: one thing happens, at a fixed time, to gateways that are configured as one would; what is left open is
//! drawn from a seed. They bear the names of the drills with real gateways that they are the simulations of.

use crate::network::Conditions;
use crate::random::Dice;
use crate::scenario::{Action, Death, STEADY, Scenario, milliseconds};
use spindle_abi::Time;
use spindle_ike::api::StartAction;
use spindle_ike::wire::exchange;
use spindle_recovery::api::{Method, TokenMethod};
use std::time::Duration;

/// A way in which gateways lose each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Script {
    /// B is killed and started again.
    Crash,
    /// B is killed, and while it is down its secret is lost, or all its state.
    SecretLost,
    /// The same, and B initiates where its tokens do not help.
    SecretLostInitiates,
    /// B's secret was rotated twice before the crash.
    SecretRotated,
    /// Both gateways are killed and started again, and both have packets to send.
    BothCrash,
    /// The same anyhow: near each other or apart, by a kill or a power cut, over any network, by any methods.
    BothCrashAnyhow,
    /// B is killed again as its peer begins the recovery.
    CrashTwice,
    /// B is killed again within the recovery's IKE_AUTH.
    CrashInAuth,
    /// B is killed while it answers A's rekey of the Child SA.
    CrashInChildRekey,
    /// B is killed while it answers A's rekey of the IKE SA.
    CrashInIkeRekey,
    /// B is killed again while it answers a ticket.
    CrashInResumption,
    /// Nobody crashes; B loses a Child SA, and its IKE SA lives.
    ChildLost,
    /// Nobody crashes; B loses the IKE SA with its Child SA.
    IkeLost,
    /// Nobody crashes; what A sends is lost for a while, and forged messages come.
    OneWayLoss,
    /// B is killed; its peer knows no tokens.
    NoQcdPeer,
    /// B is killed among very many forged messages and packets on SPIs of all states.
    Storm,
    /// B is taken down as planned, and started again.
    TakeDown,
    /// B is taken down as planned, and redirects its peer to another gateway.
    TakeDownRedirect,
    /// B's machine dies, and another gateway takes its address over.
    HotStandby,
    /// The address goes to the standby and back, and nobody dies: so who loses it has SAs.
    AddressBack,
    /// The same, sooner than the one that loses it looks.
    AddressBackUnseen,
    /// B is killed and started again, its peer behind a NAT.
    BehindNat,
    /// The same, and meanwhile the NAT has mapped the peer elsewhere.
    NatMoved,
    /// Nobody crashes; the NAT maps the peer elsewhere.
    NatRebinds,
}

/// When it happens: both sides have an IKE SA, and A sends.
const THEN: Duration = Duration::from_secs(2);
/// How long a gateway is down.
const DOWN: Duration = Duration::from_millis(500);

/// Longer than whatever a gateway waits for, but cookies and tickets: nothing is to move what they agree on.
const LONG: Duration = Duration::from_secs(200);

impl Script {
    /// All of them.
    pub const ALL: [Script; 24] = [
        Script::Crash,
        Script::SecretLost,
        Script::SecretLostInitiates,
        Script::SecretRotated,
        Script::BothCrash,
        Script::BothCrashAnyhow,
        Script::CrashTwice,
        Script::CrashInAuth,
        Script::CrashInChildRekey,
        Script::CrashInIkeRekey,
        Script::CrashInResumption,
        Script::ChildLost,
        Script::IkeLost,
        Script::OneWayLoss,
        Script::NoQcdPeer,
        Script::Storm,
        Script::TakeDown,
        Script::TakeDownRedirect,
        Script::HotStandby,
        Script::AddressBack,
        Script::AddressBackUnseen,
        Script::BehindNat,
        Script::NatMoved,
        Script::NatRebinds,
    ];

    /// That of the drill, where there is one.
    pub fn name(self) -> &'static str {
        match self {
            Script::Crash => "crash",
            Script::SecretLost => "secret-lost",
            Script::SecretLostInitiates => "secret-lost-initiates",
            Script::SecretRotated => "secret-rotated",
            Script::BothCrash => "both-crash",
            Script::BothCrashAnyhow => "both-crash-anyhow",
            Script::CrashTwice => "crash-twice",
            Script::CrashInAuth => "crash-in-auth",
            Script::CrashInChildRekey => "crash-in-child-rekey",
            Script::CrashInIkeRekey => "crash-in-ike-rekey",
            Script::CrashInResumption => "crash-in-resumption",
            Script::ChildLost => "child-lost",
            Script::IkeLost => "ike-lost",
            Script::OneWayLoss => "one-way-loss",
            Script::NoQcdPeer => "no-qcd-peer",
            Script::Storm => "storm",
            Script::TakeDown => "take-down",
            Script::TakeDownRedirect => "take-down-redirect",
            Script::HotStandby => "hot-standby",
            Script::AddressBack => "address-back",
            Script::AddressBackUnseen => "address-back-unseen",
            Script::BehindNat => "behind-nat",
            Script::NatMoved => "nat-moved",
            Script::NatRebinds => "nat-rebinds",
        }
    }

    pub(crate) fn scenario(self, dice: &mut Dice) -> Scenario {
        if self == Script::BothCrashAnyhow {
            return both_crash_anyhow(dice);
        }
        let mut scenario = plain(dice);
        let crash = |side| Action::Crash { side, death: Death::Kill, down: DOWN, again: None };
        let crash_at = |exchange| Action::CrashAt {
            side: 1,
            exchange,
            response: true,
            skip: 0,
            before: true,
            death: Death::Kill,
            down: DOWN,
        };
        let move_address = |death, gap| Action::MoveAddress { death, gap: milliseconds(gap) };
        // How long after it the gateways are to agree.
        let mut within = milliseconds(2000);
        let mut then =
            |after: u64, action| scenario.actions.push((Time(0).after(THEN + milliseconds(after)), action));
        match self {
            Script::Crash | Script::BehindNat | Script::NoQcdPeer | Script::Storm => then(0, crash(1)),
            Script::SecretLost | Script::SecretLostInitiates => {
                then(0, crash(1));
                then(1, Action::LoseSecret { side: 1, state: dice.percent(50) });
            }
            Script::SecretRotated => {
                then(0, Action::RotateSecret { side: 1 });
                then(300, Action::RotateSecret { side: 1 });
                then(600, crash(1));
            }
            Script::BothCrashAnyhow => unreachable!("it is not plain"),
            Script::BothCrash => {
                then(0, crash(0));
                then(dice.below(100) as u64, crash(1));
            }
            Script::CrashTwice | Script::CrashInAuth | Script::CrashInResumption => {
                then(0, crash(1));
                then(
                    1,
                    crash_at(match self {
                        Script::CrashTwice => exchange::IKE_SA_INIT,
                        Script::CrashInAuth => exchange::IKE_AUTH,
                        _ => exchange::IKE_SESSION_RESUME,
                    }),
                );
            }
            Script::CrashInChildRekey | Script::CrashInIkeRekey => {
                then(0, crash_at(exchange::CREATE_CHILD_SA));
                then(1, Action::Rekey { side: 0, ike: self == Script::CrashInIkeRekey });
            }
            Script::ChildLost | Script::IkeLost => {
                then(0, Action::Forget { side: 1, child: self == Script::ChildLost });
            }
            Script::OneWayLoss => then(0, Action::CutOff { side: 1, for_: Duration::from_secs(1) }),
            Script::TakeDown => {
                then(0, Action::TakeDown { side: 1, redirect: false });
                then(500, crash(1));
            }
            Script::TakeDownRedirect => {
                then(0, Action::TakeDown { side: 1, redirect: true });
                // Longer than the peer has for it, and for a Delete of either side that is not answered.
                then(20_000, Action::HandOver);
            }
            Script::HotStandby => then(0, move_address(Some((Death::Power, Duration::from_secs(6))), 300)),
            Script::AddressBack => {
                then(0, move_address(None, 5));
                then(2000, move_address(None, 5));
            }
            Script::AddressBackUnseen => {
                then(0, move_address(None, 5));
                then(500, move_address(None, 5));
            }
            Script::NatMoved => {
                then(0, crash(1));
                then(200, Action::MoveMapping);
            }
            Script::NatRebinds => then(0, Action::MoveMapping),
        }
        match self {
            Script::BothCrash => {
                scenario.traffic = [Some(milliseconds(20)); 2];
                scenario.steady = LONG;
            }
            Script::HotStandby | Script::AddressBack | Script::AddressBackUnseen => scenario.become_cluster(),
            Script::BehindNat | Script::NatMoved | Script::NatRebinds => scenario.put_nat(),
            Script::CrashInResumption => {
                scenario.configs.iter_mut().for_each(|config| config.connections[0].resumption = true);
            }
            Script::SecretLostInitiates => {
                let methods = vec![Method::Qcd, Method::InitialContact, Method::Liveness];
                scenario.configs.iter_mut().for_each(|config| config.methods = methods.clone());
            }
            Script::TakeDownRedirect => {
                scenario.put_other();
                // So few that some message of each exchange comes through; and no liveness check adds exchanges.
                scenario.conditions.loss = dice.one(&[0, 0, 1, 3]);
                for config in &mut scenario.configs {
                    config.connections[0].dpd_delay = Duration::from_secs(30);
                }
                scenario.conditions.duplication = dice.one(&[0, 10]);
            }
            Script::NoQcdPeer => {
                (scenario.configs[0].token_maker, scenario.configs[0].token_taker) = (false, false);
                scenario.configs[0].methods = vec![Method::Liveness];
            }
            _ => {}
        }
        match self {
            Script::AddressBackUnseen => scenario.look_delay = milliseconds(1500),
            Script::Storm => scenario.attack_interval = milliseconds(1),
            // Nobody asks for tokens, which any gateway makes for whatever it has not.
            Script::TakeDownRedirect => scenario.attack_from = Duration::from_secs(3600),
            Script::HotStandby | Script::AddressBack | Script::OneWayLoss => {
                scenario.attack_interval = milliseconds(20);
            }
            _ => {}
        }
        // Where nothing but liveness is left.
        if matches!(self, Script::NoQcdPeer | Script::NatRebinds | Script::SecretLost) {
            within = milliseconds(8000);
        }
        let last = scenario.actions.iter().map(|(at, _)| *at).max().unwrap_or_default();
        scenario.calm = last.after(DOWN + within);
        scenario
    }
}

/// A world like any other, but that each side has packets and crashes once, and nothing else happens. What ends an IKE SA
/// is a crash, then, and never a rekey.
fn both_crash_anyhow(dice: &mut Dice) -> Scenario {
    let mut scenario = Scenario::draw(dice);
    scenario.draw_sir(dice);
    let interval = milliseconds(dice.one(&[50, 100, 400]));
    (scenario.traffic, scenario.steady) = ([Some(interval); 2], LONG);
    for config in &mut scenario.configs {
        config.token_method = dice.one(&[TokenMethod::Spis, TokenMethod::SpisAndAddress]);
        let connection = &mut config.connections[0];
        (connection.rekey_time, connection.children[0].rekey_time) = (Duration::ZERO, Duration::ZERO);
    }
    let first = dice.below(2);
    let apart = milliseconds(dice.one(&[0, 1, 10, 60, 300, 1000, 4000]));
    let at = Time(0).after(THEN + dice.between(Duration::ZERO, THEN));
    let ats = [at, at.after(dice.between(Duration::ZERO, apart))];
    let crash = |dice: &mut Dice, side| Action::Crash {
        side,
        death: dice.one(&[Death::Kill, Death::Power, Death::PowerInWrite]),
        down: milliseconds(dice.one(&[0, 50, 300, 1000, 6000])),
        again: None,
    };
    scenario.actions = vec![(ats[0], crash(dice, first)), (ats[1], crash(dice, 1 - first))];
    // A power cut within a write comes a little later. Packets may be lost all the while until the calm.
    scenario.calm = ats[1].after(DOWN + dice.between(Duration::ZERO, milliseconds(10_000)));
    scenario
}

/// Nothing happens in it.
fn plain(dice: &mut Dice) -> Scenario {
    let conditions =
        Conditions { delay: milliseconds(10), jitter: Duration::from_micros(100), loss: 0, duplication: 0 };
    let mut configs = Scenario::draw_configs(dice);
    for config in &mut configs {
        config.methods = vec![Method::Qcd, Method::Liveness];
        (config.token_maker, config.token_taker, config.journal) = (true, true, true);
        config.cookie_threshold = 64;
        let connection = &mut config.connections[0];
        connection.proposals = vec!["aes128gcm16-prfsha256-x25519".into()];
        (connection.rekey_time, connection.resumption) = (Duration::ZERO, false);
        (connection.dpd_delay, connection.start_action) = (Duration::from_secs(1), StartAction::Trap);
        let child = &mut connection.children[0];
        (child.rekey_time, child.start_action) = (Duration::ZERO, StartAction::Trap);
    }
    Scenario {
        conditions,
        configs,
        actions: Vec::new(),
        traffic: [Some(milliseconds(20)), None],
        attack_interval: Duration::from_secs(3600),
        attack_from: THEN - DOWN,
        calm: Time(0),
        steady: STEADY,
        cluster: false,
        other: false,
        look_delay: milliseconds(20),
        nat: false,
        ring_delay: Duration::from_micros(20),
    }
}
