//! X's side: a query about an IKE SA is answered with what the table of IKE SAs says (draft section 3.2.2), and its
//! cookie is given back as it came. No state is made, and an answer is no longer than its query but for X's own cookie.

use crate::api::SirLimits;
use crate::limits::{Budget, Source};
use crate::qcd::Control;
use crate::stats::Counter;
use spindle_abi::Time;
use spindle_ike::api::Header;
use spindle_ike::check_spi::{CheckSpi, Subtype};

/// All that decides whether and how a query is answered.
pub(crate) struct Situation {
    /// Do we know of all SAs that live here? If not, there may be one that we deny.
    pub(crate) control: Control,
    /// Did the query come to an address that is ours now and serves a connection? A standby's own address does not.
    pub(crate) address_serves: bool,
    /// Is one of the header's IKE SPIs in use here, half-open and rekeying ones included?
    pub(crate) in_use: bool,
    /// Of whom the budget is.
    pub(crate) source: Source,
}

/// Answers within a budget.
#[derive(Debug)]
pub(crate) struct Asked {
    budget: Budget,
}

impl Asked {
    pub(crate) fn new(limits: &SirLimits) -> Asked {
        Asked { budget: Budget::new(limits.answers_per_source, limits.answers_total) }
    }

    /// The answer, or why there is none. An IKE SA that is half-open, or whose rekey is under way, is there: its
    /// exchange may be on its way.
    pub(crate) fn answer(
        &mut self,
        now: Time,
        header: &Header,
        query: &CheckSpi,
        situation: &Situation,
    ) -> Result<CheckSpi, Counter> {
        // RFC 7296 section 2.21.4: a response is never answered.
        if header.response || query.subtype != Subtype::Query {
            return Err(Counter::SirMalformed);
        }
        if situation.control != Control::Authoritative || !situation.address_serves {
            return Err(Counter::SirAnswersWithheld);
        }
        if !self.budget.allow(now, situation.source) {
            return Err(Counter::SirAnswersOverBudget);
        }
        let subtype = if situation.in_use { Subtype::Ack } else { Subtype::Nack };
        Ok(CheckSpi { subtype, ..query.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::SourceHash;
    use crate::testing::{NOW, pair, socket};

    fn header() -> Header {
        Header {
            spis: pair(1),
            next_payload: 41,
            exchange: 240,
            response: false,
            initiator: true,
            message_id: 0,
        }
    }

    fn query(cookie: &[u8]) -> CheckSpi {
        CheckSpi { subtype: Subtype::Query, child: None, cookie: cookie.to_vec() }
    }

    fn situation(source: &str) -> Situation {
        Situation {
            control: Control::Authoritative,
            address_serves: true,
            in_use: false,
            source: Source { key: SourceHash::new(&[1; 32]).source(socket(source).ip()), peers: 0 },
        }
    }

    /// Section 3.2.2: ACK if it is there, NACK if not, and the cookie as it came.
    #[test]
    fn a_query_is_answered_by_what_is_there_with_its_cookie() {
        let mut asked = Asked::new(&SirLimits { answers_per_source: 1000, ..SirLimits::default() });
        for length in [0, 1, 24, 255] {
            for (in_use, subtype) in [(true, Subtype::Ack), (false, Subtype::Nack)] {
                let cookie: Vec<u8> = (0..length).map(|n| n as u8).collect();
                let situation = Situation { in_use, ..situation("192.0.2.2:500") };
                let answer = asked.answer(NOW, &header(), &query(&cookie), &situation);
                assert_eq!(answer, Ok(CheckSpi { subtype, child: None, cookie }));
            }
        }
    }

    #[test]
    fn whoever_does_not_know_all_sas_or_was_asked_elsewhere_is_silent() {
        let mut asked = Asked::new(&SirLimits::default());
        let mut answer = |situation: Situation| asked.answer(NOW, &header(), &query(&[1]), &situation);
        let starting = Situation { control: Control::Starting, ..situation("192.0.2.2:500") };
        assert_eq!(answer(starting), Err(Counter::SirAnswersWithheld));
        let elsewhere = Situation { address_serves: false, ..situation("192.0.2.2:500") };
        assert_eq!(answer(elsewhere), Err(Counter::SirAnswersWithheld));
    }

    /// Answers are not answered, or two gateways would go on for ever.
    #[test]
    fn answers_and_responses_are_not_answered() {
        let mut asked = Asked::new(&SirLimits::default());
        let here = situation("192.0.2.2:500");
        for subtype in [Subtype::Ack, Subtype::Nack] {
            let answer = asked.answer(NOW, &header(), &CheckSpi { subtype, ..query(&[1]) }, &here);
            assert_eq!(answer, Err(Counter::SirMalformed));
        }
        let response = Header { response: true, ..header() };
        assert_eq!(asked.answer(NOW, &response, &query(&[1]), &here), Err(Counter::SirMalformed));
    }

    /// Section 4: two answers a second to one source, 5,000 in all; and a flood of strangers costs a known peer nothing.
    #[test]
    fn answers_are_limited_by_source_and_in_all() {
        let mut asked = Asked::new(&SirLimits::default());
        let mut count = |situation: &dyn Fn(u32) -> Situation| {
            let answered = |n: &u32| asked.answer(NOW, &header(), &query(&[1]), &situation(*n)).is_ok();
            (0..20_000).filter(answered).count()
        };
        assert_eq!(count(&|_| situation("192.0.2.2:500")), 2);
        let from = |n: u32| std::net::SocketAddr::from((n.to_be_bytes(), 500)).to_string();
        assert_eq!(count(&|n| situation(&from(n + 0x0a00_0000))), 5000 - 2);
        let known = || {
            let stranger = situation("192.0.2.2:500");
            Situation { source: Source { peers: 1, ..stranger.source }, ..stranger }
        };
        assert_eq!(count(&|_| known()), 2);
    }
}
