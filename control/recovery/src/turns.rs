//! Whose turn it is to be told of a crash, and who has been told: peers of IKE SAs of earlier incarnations.
//!
//! Each IKE SA has one place in the line, however much is heard of it and from wherever; and from the pace it takes once
//! for each handshake that may follow. So whoever knows some of their SPIs (those of IKE are in clear) holds up the others
//! by no more than as many places. Those whose ESP comes are before those that only ask: a peer with many IKE SAs asks of
//! each, but sends on few. All is bounded by the journal.

use spindle_abi::{SpiReport, Time};
use spindle_ike::api::IkeSpis;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// So long a peer that was told may take to come back: what tells it again costs no other handshake.
const UNDER_WAY: Duration = Duration::from_secs(10);

/// A place in the line: those without traffic come last, each in the order of their coming.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    without_traffic: bool,
    order: u64,
}

/// Those that wait, and those that were told; by the newest IKE SPIs of which the journal knows.
#[derive(Default)]
pub(crate) struct Turns {
    /// Who waits, each once.
    line: BTreeMap<Place, IkeSpis>,
    /// Where each of them is, and what was heard of it last.
    heard: HashMap<IkeSpis, (Place, SpiReport)>,
    order: u64,
    /// When a handshake of theirs last took from the pace.
    told: HashMap<IkeSpis, Time>,
}

impl Turns {
    /// Does nobody wait?
    pub(crate) fn is_empty(&self) -> bool {
        self.line.is_empty()
    }

    /// Does somebody whose ESP came?
    pub(crate) fn any_with_traffic(&self) -> bool {
        self.line.first_key_value().is_some_and(|(place, _)| !place.without_traffic)
    }

    /// Does this one wait?
    pub(crate) fn waits(&self, parent: IkeSpis) -> bool {
        self.heard.contains_key(&parent)
    }

    /// It waits behind all others, or where it waits already, and what was heard now counts. `traffic`: it was ESP.
    pub(crate) fn wait(&mut self, parent: IkeSpis, report: SpiReport, traffic: bool) {
        let before = match self.heard.get_mut(&parent) {
            Some((place, heard)) if !traffic || !place.without_traffic => {
                *heard = report;
                return;
            }
            before => before.map(|(place, _)| *place),
        };
        self.order += 1;
        let place = Place { without_traffic: !traffic, order: self.order };
        if let Some(before) = before {
            self.line.remove(&before);
        }
        self.line.insert(place, parent);
        self.heard.insert(parent, (place, report));
    }

    /// What was heard last of the first one in the line; it waits no more.
    pub(crate) fn next(&mut self) -> Option<SpiReport> {
        let (_, parent) = self.line.pop_first()?;
        self.heard.remove(&parent).map(|(_, report)| report)
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
