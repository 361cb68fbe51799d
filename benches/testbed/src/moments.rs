//! What happened when in a recovery, from the hosts, the capture and the gateways: one list that people can read.

use crate::gateway::{Gateway, GatewayEvent};
use crate::timeline::{Crash, Timeline};
use crate::traffic::Outage;
use std::fmt;

/// Something that happened.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Moment {
    /// Microseconds from the moment on at which the restarted gateway was ready.
    pub at_us: i64,
    /// Who saw it: `host B`, `testbed`, `wire`, `gateway A`, `gateway B`.
    pub who: String,
    /// What.
    pub what: String,
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Moment { at_us, who, what } = self;
        write!(f, "{at_us:>12}  {who:<9} {what}")
    }
}

/// The moments of B's crash and its recovery, in their order; the gateways' reports are A's and B's.
pub fn moments(
    crash: &Crash,
    outage: Option<&Outage>,
    timeline: &Timeline,
    reports: &[Vec<GatewayEvent>; 2],
) -> Vec<Moment> {
    let mut moments = vec![
        (crash.killed, "testbed", "kill -9 to gateway B's process group"),
        (crash.started, "testbed", "gateway B is started again"),
        (crash.ready, "gateway B", "ready"),
    ];
    if let Some(outage) = outage {
        moments.push((outage.last_before.received, "host B", "last delivery before the crash"));
        moments.push((outage.first_after.received, "host B", "first delivery"));
    }
    moments.extend(timeline.moments().into_iter().map(|(what, at)| (at, "wire", what)));
    let mut reported = |who, events: &[GatewayEvent], names: &[&'static str]| {
        for name in names {
            if let Some(at) = Gateway::event_since(events, name, crash.started) {
                moments.push((at, who, name));
            }
        }
    };
    let [a, b] = reports;
    let by_a =
        ["hint", "probe", "query", "nack", "confirmation", "proof", "suspected", "initiating", "installed"];
    reported("gateway A", a, &by_a);
    reported("gateway B", b, &["start", "token-sent", "installed"]);
    moments.sort_by_key(|&(at, ..)| at);
    let relative = |at: u64| (at as i64 - crash.ready as i64) / 1_000;
    let named = |(at, who, what): (u64, &str, &str)| Moment {
        at_us: relative(at),
        who: who.to_owned(),
        what: what.to_owned(),
    };
    moments.into_iter().map(named).collect()
}
