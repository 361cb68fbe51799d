//! Whose turn it is to be told of a crash, and who has been told: peers of IKE SAs of earlier incarnations.
//!
//! Each IKE SA has one place in the line, however much is heard of it and from wherever; and from the pace it takes once
//! for each handshake that may follow. So whoever knows some of their SPIs (those of IKE are in clear) holds up the others
//! by no more than as many places. Both are bounded by the journal.

use spindle_abi::{SpiReport, Time};
use spindle_ike::api::IkeSpis;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// So long a peer that was told may take to come back: what tells it again costs no other handshake.
const UNDER_WAY: Duration = Duration::from_secs(10);

/// Those that wait, and those that were told; by the newest IKE SPIs of which the journal knows.
#[derive(Default)]
pub(crate) struct Turns {
    /// Who waits, in the order of their coming, each once.
    line: VecDeque<IkeSpis>,
    /// What was heard last of each of them.
    heard: HashMap<IkeSpis, SpiReport>,
    /// When a handshake of theirs last took from the pace.
    told: HashMap<IkeSpis, Time>,
}

impl Turns {
    /// Does nobody wait?
    pub(crate) fn is_empty(&self) -> bool {
        self.line.is_empty()
    }

    /// Does this one wait?
    pub(crate) fn waits(&self, parent: IkeSpis) -> bool {
        self.heard.contains_key(&parent)
    }

    /// It waits behind all others; or where it waits already, and what was heard now counts.
    pub(crate) fn wait(&mut self, parent: IkeSpis, report: SpiReport) {
        if self.heard.insert(parent, report).is_none() {
            self.line.push_back(parent);
        }
    }

    /// What was heard last of the one that has waited longest; it waits no more.
    pub(crate) fn next(&mut self) -> Option<SpiReport> {
        self.heard.remove(&self.line.pop_front()?)
    }

    /// Nobody waits any more.
    pub(crate) fn clear(&mut self) {
        self.line.clear();
        self.heard.clear();
    }

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
