//! The gateway's state in the words of [`crate::protocol`].

use super::events::ike_spi;
use crate::config::ports;
use crate::protocol::{Child, ChildSa, Connection, Equation, Generation, IkeSa, Secret};
use spindle_abi::{Mode, Selector, Time};
use spindle_ike::api::{ActivityReader, ConnectionConfig, Identity, IkeSaStatus, StartAction};
use spindle_recovery::secrets::method_name;
use spindle_recovery::{ConnectionStatus, SecretStatus};
use std::collections::BTreeMap;
use std::net::IpAddr;

pub(super) fn ike_sa(sa: &IkeSaStatus, activity: &dyn ActivityReader, now: Time, workers: u16) -> IkeSa {
    let children = sa.children.iter().map(|child| {
        let inbound = activity.activity(child.inbound_index);
        let outbound = activity.activity(child.outbound_index);
        ChildSa {
            id: child.id.0,
            name: child.name.clone(),
            state: child.state.into(),
            spi_i: child.inbound.to_string(),
            spi_o: child.outbound.to_string(),
            proposal: child.proposal.clone(),
            mode: if child.mode == Mode::Transport { "transport" } else { "tunnel" }.into(),
            encapsulated: child.encapsulated,
            worker: (workers > 1).then(|| child.resource.owner(workers)),
            local_ts: child.selectors.local.iter().map(selector).collect(),
            remote_ts: child.selectors.remote.iter().map(selector).collect(),
            installed_s: now.since(child.installed).as_secs(),
            packets_i: inbound.packets,
            bytes_i: inbound.bytes,
            packets_o: outbound.packets,
            bytes_o: outbound.bytes,
        }
    });
    IkeSa {
        id: sa.id.0,
        connection: sa.connection.clone(),
        state: sa.state.into(),
        role: if sa.initiator { "initiator" } else { "responder" }.into(),
        ike_spi_i: ike_spi(sa.spis.initiator),
        ike_spi_r: ike_spi(sa.spis.responder),
        local: sa.local.to_string(),
        remote: sa.remote.to_string(),
        remote_id: sa.remote_id.as_ref().map(identity),
        proposal: sa.proposal.clone(),
        established_s: sa.established.map(|t| now.since(t).as_secs()),
        token_held: sa.token_held,
        ticket_held: sa.ticket_held,
        resumed: sa.resumed,
        children: children.collect(),
    }
}

pub(super) fn connection(config: &ConnectionConfig, status: &ConnectionStatus) -> Connection {
    let ConnectionStatus { ike_sas, child_sas, initiating, .. } = *status;
    let state = match (child_sas, initiating) {
        (1.., _) => "up",
        (0, true) => "initiating",
        (0, false) => "down",
    };
    let children = config.children.iter().map(|child| Child {
        name: child.name.clone(),
        local_ts: child.selectors.local.iter().map(selector).collect(),
        remote_ts: child.selectors.remote.iter().map(selector).collect(),
        start_action: match child.start_action {
            StartAction::None => "none",
            StartAction::Trap => "trap",
            StartAction::Start => "start",
        }
        .into(),
    });
    Connection {
        name: config.name.clone(),
        state: state.into(),
        local: config.local.to_string(),
        remote: config.remote.map_or("%any".into(), |a| a.to_string()),
        local_id: identity(&config.local_id),
        remote_id: identity(&config.remote_id),
        ike_sas,
        child_sas,
        children: children.collect(),
    }
}

pub(super) fn secret(status: &SecretStatus) -> Secret {
    let time = |second: u64| (second > 0).then(|| second.saturating_mul(1_000_000));
    let generations = status.generations.iter().map(|generation| Generation {
        method: method_name(generation.method).into(),
        made_us: time(generation.made),
        ike_sas: generation.relying,
        needed_until_us: time(generation.needed_until),
    });
    Secret { generations: generations.collect(), rotating: status.rotating }
}

fn identity(identity: &Identity) -> String {
    match identity {
        Identity::Address(address) => address.to_string(),
        Identity::Fqdn(name) | Identity::Email(name) => name.clone(),
        Identity::KeyId(octets) => {
            octets.iter().fold("keyid:".into(), |text, octet| format!("{text}{octet:02x}"))
        }
    }
}

/// As people write it: a subnet where it is one, then protocol and ports where they are limited.
fn selector(selector: &Selector) -> String {
    let (start, end) = (selector.addresses.start, selector.addresses.end);
    let (width, first, last) = match (start, end) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (32, u128::from(a.to_bits()), u128::from(b.to_bits())),
        (IpAddr::V6(a), IpAddr::V6(b)) => (128, a.to_bits(), b.to_bits()),
        _ => (0, 1, 0), // no range at all
    };
    // A subnet's ends differ in its host bits, all of them.
    let host = first ^ last;
    let is_subnet = first & host == 0 && host & host.wrapping_add(1) == 0;
    let mut text =
        if is_subnet { format!("{start}/{}", width - host.count_ones()) } else { format!("{start}-{end}") };
    text += &ports::show(selector);
    text
}

/// The dataplane's counters of packets that ended in it; a test compares them with the engine's.
const DROPS: &[&str] = &[
    "unknown_spi",
    "former_spi",
    "nat_keepalive",
    "fragment_kept",
    "icmp_about_esp",
    "dummy_packet",
    "not_ip",
    "malformed_ip",
    "for_host",
    "not_unicast",
    "cleartext_from_outside",
    "fragment_invalid",
    "fragment_too_long",
    "icmp_unknown_sa",
    "malformed_esp",
    "larval_spi",
    "retired_spi",
    "replayed",
    "authentication_failed",
    "malformed_inner",
    "ecn_mismatch",
    "selector_mismatch",
    "fragment_without_ports",
    "fragment_in_transport",
    "inbound_expired",
    "no_policy",
    "policy_discard",
    "no_sa",
    "sequence_exhausted",
    "ttl_expired",
    "too_big",
    "no_room",
    "wrong_side",
    "no_next_hop",
    "handover_full",
    "wrong_worker",
    "transmit_failed",
];

/// The packet equation from the dataplane's counters.
pub(super) fn equation(counters: &BTreeMap<String, u64>) -> Equation {
    let sum = |names: &[&str]| names.iter().filter_map(|n| counters.get(*n)).sum::<u64>();
    let equation = Equation {
        received: sum(&["received_inside", "received_outside"]),
        created: sum(&["created"]),
        delivered: sum(&["delivered_inside", "delivered_outside"]),
        dropped: sum(DROPS),
        // On its way from worker to worker, too.
        held: sum(&["held", "handed_over"]).saturating_sub(sum(&["taken_over"])),
        holds: false,
    };
    let came = equation.received + equation.created;
    let went = equation.delivered + equation.dropped + equation.held;
    Equation { holds: came == went, ..equation }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_equation_sums_all_drop_reasons_of_the_engine() {
        use spindle_engine::DropReason;
        let names: Vec<_> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(DROPS, names);
        let mut counters: BTreeMap<String, u64> = names.iter().map(|name| (name.to_string(), 1)).collect();
        counters.insert("received_outside".into(), names.len() as u64 + 2);
        counters.insert("delivered_inside".into(), 2);
        counters.insert("decapsulated".into(), 2);
        assert!(equation(&counters).holds);
        counters.insert("held".into(), 1);
        assert!(!equation(&counters).holds);
        counters.insert("received_inside".into(), 3);
        counters.insert("handed_over".into(), 5);
        counters.insert("taken_over".into(), 3);
        assert_eq!((equation(&counters).held, equation(&counters).holds), (3, true));
    }

    #[test]
    fn selectors_are_shown_as_people_write_them() {
        let show = |start: [u8; 4], end: [u8; 4]| selector(&Selector::addresses(start.into(), end.into()));
        assert_eq!(show([10, 1, 0, 0], [10, 1, 0, 255]), "10.1.0.0/24");
        assert_eq!(show([0; 4], [255; 4]), "0.0.0.0/0");
        assert_eq!(show([10, 1, 0, 7], [10, 1, 0, 7]), "10.1.0.7/32");
        assert_eq!(show([10, 1, 0, 1], [10, 1, 0, 9]), "10.1.0.1-10.1.0.9");
        assert_eq!(show([10, 1, 0, 1], [10, 1, 0, 254]), "10.1.0.1-10.1.0.254");
        let show = |start: &str, end: &str| {
            selector(&Selector::addresses(start.parse().unwrap(), end.parse().unwrap()))
        };
        assert_eq!(show("2001:db8:1::", "2001:db8:1:0:ffff:ffff:ffff:ffff"), "2001:db8:1::/64");
        assert_eq!(show("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), "::/0");
        assert_eq!(show("2001:db8::1", "2001:db8::9"), "2001:db8::1-2001:db8::9");
        let mut s = Selector::addresses([10, 1, 0, 7].into(), [10, 1, 0, 7].into());
        (s.protocol, s.start_port, s.end_port) = (6, 80, 80);
        assert_eq!(selector(&s), "10.1.0.7/32[tcp/80]");
    }
}
