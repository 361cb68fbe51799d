//! Transport mode: who has it, and what selectors say behind NATs (RFC 7296 section 1.3.1, 2.23.1).
//!
//! The initiator asks for it by USE_TRANSPORT_MODE, the responder accepts by the same notification, and both put the
//! addresses that they see in place of those that a NAT hides: what comes of it are the selectors of the SAs.

use crate::api::TransportMode;
use crate::connect::ChildProfile;
use crate::endpoint::{find_notify, notification};
use crate::narrow::narrow;
use crate::sa::IkeSa;
use crate::wire::{Payload, notify};
use spindle_abi::{AddressRange, Mode, Selector, SelectorSet};
use std::net::IpAddr;
use std::rc::Rc;

/// USE_TRANSPORT_MODE.
pub(crate) fn wish() -> Payload {
    notification(notify::USE_TRANSPORT_MODE, Vec::new())
}

/// Is USE_TRANSPORT_MODE in this message?
pub(crate) fn is_in(payloads: &[Payload]) -> bool {
    find_notify(payloads, notify::USE_TRANSPORT_MODE).is_some()
}

/// As responder: the mode of a Child SA for which the initiator has asked so; `None` if there is to be none.
pub(crate) fn accept(policy: TransportMode, asked: bool) -> Option<Mode> {
    match (policy, asked) {
        (TransportMode::Never, _) | (TransportMode::Preferred, false) => Some(Mode::Tunnel),
        (TransportMode::Preferred | TransportMode::Required, true) => Some(Mode::Transport),
        (TransportMode::Required, false) => None,
    }
}

/// As initiator: the mode of a Child SA to which the responder has answered so; `None` if it must not be. "If the responder
/// declines the request, the Child SA will be established in tunnel mode. If this is unacceptable to the initiator, the
/// initiator MUST delete the SA" (RFC 7296 section 1.3.1).
pub(crate) fn agreed(policy: TransportMode, asked: bool, accepted: bool) -> Option<Mode> {
    match (asked, accepted) {
        (true, true) => Some(Mode::Transport),
        (false, true) => None,
        (_, false) if policy == TransportMode::Required => None,
        (_, false) => Some(Mode::Tunnel),
    }
}

/// Selectors of transport mode, seen from here, with the addresses that are seen here: whose end is behind a NAT, its single
/// address is the IKE SA's (RFC 7296 section 2.23.1).
pub(crate) fn substitute(sa: &IkeSa, selectors: &SelectorSet) -> SelectorSet {
    let side = |selectors: &[Selector], end: IpAddr, behind_nat: bool| {
        let is_single = |s: &Selector| s.addresses.start == s.addresses.end;
        let seen = AddressRange { start: end, end };
        let substitute =
            |s: &Selector| if behind_nat && is_single(s) { Selector { addresses: seen, ..*s } } else { *s };
        selectors.iter().map(substitute).collect()
    };
    SelectorSet {
        local: side(&selectors.local, sa.local.ip(), sa.nat.here),
        remote: side(&selectors.remote, sa.remote.ip(), sa.nat.there),
    }
}

/// What a profile makes of the peer's wish.
pub(crate) struct Narrowed<'a> {
    pub(crate) profile: &'a Rc<ChildProfile>,
    pub(crate) mode: Mode,
    /// In transport mode with the addresses that are seen here.
    pub(crate) wish: SelectorSet,
    pub(crate) selectors: SelectorSet,
}

/// RFC 7296 section 2.23.1: in transport mode the selectors are substituted first; where that mode cannot be, tunnel mode is
/// looked at with the original ones.
pub(crate) fn narrow_for<'a>(
    sa: &IkeSa,
    profile: &'a Rc<ChildProfile>,
    wish: &SelectorSet,
    asked: bool,
) -> Option<Narrowed<'a>> {
    let narrowed = |mode, wish: SelectorSet| {
        let selectors = narrow(&wish, &profile.selectors)?;
        Some(Narrowed { profile, mode, wish, selectors })
    };
    let in_transport = || {
        let narrowed = narrowed(Mode::Transport, substitute(sa, wish))?;
        is_between_ends(sa, &narrowed.selectors).then_some(narrowed)
    };
    match accept(profile.transport, asked)? {
        Mode::Tunnel => narrowed(Mode::Tunnel, wish.clone()),
        Mode::Transport if profile.transport == TransportMode::Required => in_transport(),
        Mode::Transport => in_transport().or_else(|| narrowed(Mode::Tunnel, wish.clone())),
    }
}

/// Do these selectors name the ends of the IKE SA alone? Only they have transport mode (RFC 4301 section 4.1).
pub(crate) fn is_between_ends(sa: &IkeSa, selectors: &SelectorSet) -> bool {
    let is = |selectors: &[Selector], end: IpAddr| {
        selectors.iter().all(|s| s.addresses == AddressRange { start: end, end })
    };
    is(&selectors.local, sa.local.ip()) && is(&selectors.remote, sa.remote.ip())
}

#[cfg(test)]
mod tests {
    use super::*;
    use TransportMode::{Never, Preferred, Required};

    /// RFC 7296 section 1.3.1: the initiator asks, the responder may decline, and neither is bound to take what it won't.
    #[test]
    fn the_mode_is_what_both_will_have() {
        let (tunnel, transport) = (Some(Mode::Tunnel), Some(Mode::Transport));
        let as_responder =
            [(Never, [tunnel; 2]), (Preferred, [tunnel, transport]), (Required, [None, transport])];
        for (policy, modes) in as_responder {
            assert_eq!([false, true].map(|asked| accept(policy, asked)), modes, "{policy:?}");
        }
        let as_initiator = [
            (Never, false, [tunnel, None]),
            (Preferred, true, [tunnel, transport]),
            // After a rekey in tunnel mode.
            (Preferred, false, [tunnel, None]),
            (Required, true, [None, transport]),
        ];
        for (policy, asked, modes) in as_initiator {
            assert_eq!([false, true].map(|accepted| agreed(policy, asked, accepted)), modes, "{policy:?}");
        }
    }
}
