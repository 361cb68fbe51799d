//! What happened lately, for `spindle events`: the last [`CAPACITY`] reports, stamped with the wall clock.

use crate::protocol::LoggedEvent;
use spindle_ike::api::IkeSpi;
use spindle_recovery::api::Report;
use std::collections::VecDeque;

/// Reports kept.
pub(super) const CAPACITY: usize = 4096;

/// The log.
pub(super) struct EventLog {
    events: VecDeque<LoggedEvent>,
}

impl EventLog {
    pub(super) fn new() -> EventLog {
        EventLog { events: VecDeque::with_capacity(CAPACITY) }
    }

    /// Adds what happened at `at_us`.
    pub(super) fn add(&mut self, at_us: u64, report: &Report) {
        if self.events.len() == CAPACITY {
            self.events.pop_front();
        }
        self.events.push_back(LoggedEvent {
            at_us,
            event: report.name.into(),
            connection: report.connection.clone(),
            ike_spi_i: report.spis.map(|s| ike_spi(s.initiator)),
            ike_spi_r: report.spis.map(|s| ike_spi(s.responder)),
            spi: report.spi.map(|s| s.to_string()),
            detail: report.detail.clone(),
        });
    }

    /// Oldest first.
    pub(super) fn all(&self) -> Vec<LoggedEvent> {
        self.events.iter().cloned().collect()
    }
}

/// 16 hexadecimal digits.
pub(super) fn ike_spi(spi: IkeSpi) -> String {
    format!("{:016x}", u64::from_be_bytes(spi))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_reports_are_kept_in_their_order() {
        let mut log = EventLog::new();
        let report = Report { name: "hint", connection: None, spis: None, spi: None, detail: String::new() };
        for at in 0..CAPACITY as u64 + 10 {
            log.add(at, &report);
        }
        let all = log.all();
        assert_eq!(all.len(), CAPACITY);
        assert_eq!((all[0].at_us, all[CAPACITY - 1].at_us), (10, CAPACITY as u64 + 9));
    }
}
