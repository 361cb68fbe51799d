//! Two gateways in B's place share a secret and an address; the active one dies with its machine. While an IKE SA lives,
//! the other one is asked about it in every way that a forger has, and is silent about tokens (RFC 6290 section 9.2).

use super::{Played, living_spis};
use crate::drill::{Drill, Step};
use spindle_testbed::{Error, Member, Result, Side, Stage, craft, now, number};
use std::net::Ipv4Addr;
use std::time::Duration;

/// A host outside that is neither gateway, and its hardware address.
const STRANGER: u32 = 9;
const STRANGERS_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
/// Forged packets of each kind.
const ASKED: u64 = 5;
/// How long answers are waited for.
const ANSWERS: Duration = Duration::from_millis(300);

pub(crate) fn takes_over(drill: &Drill, stage: &mut Stage, step: Step<'_>) -> Result<Played> {
    stage.begin(&[Side::A], step)?;
    let began = now();
    ask(stage, Member::Second, step)?;
    let crash = stage.fail_over(step)?;
    let mut played = Played {
        // No gateway is started again: another one goes on.
        crashes: [None, None],
        silent: vec![(began, crash.killed)],
        moments: vec![
            (crash.killed, "the active gateway's machine dies"),
            (crash.ready, "the standby has its addresses"),
        ],
        ..Played::crash_of_b(crash, crash.killed)
    };
    played.await_recovery(drill, stage, &[Side::A], step)?;
    if played.failure.is_some() {
        return Ok(played);
    }
    // The inside address has moved as well: host B finds its way.
    stage.send(Side::B)?;

    let back = now();
    stage.come_back(step)?;
    played.moments.push((back, "the machine that died is back"));
    ask(stage, Member::First, step)?;
    played.await_calm(stage, drill.calm.min(Duration::from_secs(3)))?;
    if !stage.testbed().topology().holds_shared_addresses(Member::Second)? {
        played.failure = Some("the active one lost its addresses to the one that came back".to_owned());
    }
    played.silent.push((back, now()));
    Ok(played)
}

/// Asks a member that is not the active one about the IKE SA that A has: a protected request on its SPIs, and ESP on the
/// SPI on which A sends; from A's address and from a stranger's; at the member's own address and at the shared one.
fn ask(stage: &Stage, member: Member, step: Step<'_>) -> Result<()> {
    step("asking the one that is not active about the IKE SA that lives");
    let (testbed, topology) = (stage.testbed(), stage.testbed().topology());
    let (ike, outbound) = living_spis(stage)?;
    let addresses = topology.addresses;
    let stranger = addresses.outside.host(STRANGER);
    let [a, b, c, d, e, f] = STRANGERS_MAC;
    let mac = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
    // An answer to it must not fail for want of a neighbour.
    let interface = Side::B.outside_interface();
    topology
        .member(member)
        .ip(&format!("neigh replace {stranger} lladdr {mac} dev {interface} nud permanent"))?;
    let to = topology.member_hardware_address(member)?;
    let own = addresses.member_outside(member);
    let shared = addresses.gateway_outside(Side::B);
    let frame = |from: Ipv4Addr, at: Ipv4Addr, protocol: u8, payload: &[u8]| {
        craft::ethernet(to, STRANGERS_MAC, 0x0800, &craft::ipv4(from, at, protocol, payload))
    };
    let request = |message_id| {
        let sealed = craft::payload(0, &[0x5a; 60]);
        craft::ike(ike, 46, number::INFORMATIONAL, 0x08, message_id, &sealed)
    };
    let before = came(stage, member)?;
    for number in 0..ASKED {
        for from in [addresses.gateway_outside(Side::A), stranger] {
            for at in [own, shared] {
                let ike = craft::udp(500, 500, &request(1_000 + number as u32));
                testbed.inject(Side::B, &frame(from, at, 17, &ike))?;
                let esp = craft::esp(outbound, 1_000_000 + number as u32, &[0x5a; 64]);
                testbed.inject(Side::B, &frame(from, at, 50, &esp))?;
            }
        }
        std::thread::sleep(ANSWERS / ASKED as u32);
    }
    // Silence says something only of what was heard.
    match came(stage, member)? - before {
        heard if heard >= 8 * ASKED => Ok(()),
        heard => Err(Error::Subject(format!("of {} forged packets only {heard} came", 8 * ASKED))),
    }
}

/// Frames that have come to a member's outside interface.
fn came(stage: &Stage, member: Member) -> Result<u64> {
    let stats = stage.testbed().member(member).json("stats")?;
    let counters = stats["dataplane"].as_object().into_iter().flatten();
    let outside = counters.filter(|(name, _)| name.starts_with("xdp_outside_"));
    Ok(outside.filter_map(|(_, count)| count.as_u64()).sum())
}
