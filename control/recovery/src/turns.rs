//! Whose turn it is to be told of a crash, and who has been told: peers of IKE SAs of earlier incarnations.
//!
//! Each IKE SA has one place in the line, however much is heard of it and from wherever; and from the pace it takes once
//! for each handshake that may follow. So whoever knows some of their SPIs (those of IKE are in clear) holds up the others
//! by no more than as many places. Those whose ESP comes are before those that only ask: a peer with many IKE SAs asks of
//! each, but sends on few. All is bounded by the journal.

use crate::line::Line;
use spindle_abi::{SpiReport, Time};
use spindle_ike::api::IkeSpis;
use std::collections::HashMap;
use std::time::Duration;

/// So long a peer that was told may take to come back: what tells it again costs no other handshake.
const UNDER_WAY: Duration = Duration::from_secs(10);

/// Those that wait, and those that were told; by the newest IKE SPIs of which the journal knows.
#[derive(Default)]
pub(crate) struct Turns {
    /// Who waits, with what was heard of it last. Traffic is its ESP.
    pub(crate) line: Line<IkeSpis, SpiReport>,
    /// When a handshake of theirs last took from the pace.
    told: HashMap<IkeSpis, Time>,
}

impl Turns {
    /// Has its peer been told, so that its handshake may be under way?
    pub(crate) fn is_told(&self, now: Time, parent: IkeSpis) -> bool {
        self.told.get(&parent).is_some_and(|at| now.since(*at) < UNDER_WAY)
    }

    /// Its peer is told. `true`: its handshake is to take from the pace.
    pub(crate) fn tell(&mut self, now: Time, parent: IkeSpis) -> bool {
        let takes = !self.is_told(now, parent);
        if takes {
            self.told.insert(parent, now);
        }
        takes
    }
}
