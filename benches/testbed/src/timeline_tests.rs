//! Recoveries as they would look on the wire, made by hand.

use super::*;
use crate::craft;
use crate::event::wire_events;
use crate::pcap::Frame;
use std::net::Ipv4Addr;

const A: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const B: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const OLD: u32 = 0xc000_0001;
const NEW: u32 = 0xc000_0002;
const MILLISECOND: u64 = 1_000_000;

/// A wire: times in milliseconds, the gateway is killed at 100, started at 600 and ready at 700.
#[derive(Default)]
struct Wire(Vec<Frame>);

impl Wire {
    fn frame(mut self, at: u64, from: Ipv4Addr, port: u16, payload: &[u8]) -> Wire {
        let to = if from == A { B } else { A };
        self.0.push(Frame {
            at: at * MILLISECOND,
            octets: craft::udp_frame((from, port), (to, port), payload),
        });
        self
    }

    fn esp(self, at: u64, spi: u32) -> Wire {
        self.frame(at, A, 4500, &craft::esp(spi, 1, &[0; 40]))
    }

    /// A stream of ESP packets to B, one each 10 ms.
    fn stream(self, times: std::ops::Range<u64>, spi: u32) -> Wire {
        times.step_by(10).fold(self, |wire, at| wire.esp(at, spi))
    }

    fn invalid_spi(self, at: u64, token: bool) -> Wire {
        let spi = craft::notify(if token { 41 } else { 0 }, number::INVALID_SPI, &OLD.to_be_bytes());
        let token = if token { craft::notify(0, number::QCD_TOKEN, &[7; 32]) } else { Vec::new() };
        let message = craft::ike((0, 0), 41, number::INFORMATIONAL, 0x08, 0, &[spi, token].concat());
        self.frame(at, B, 500, &message)
    }

    fn probe(self, at: u64) -> Wire {
        let message = craft::ike((1, 2), 46, number::INFORMATIONAL, 0x08, 5, &craft::payload(0, &[3; 40]));
        self.frame(at, A, 500, &message)
    }

    fn answer(self, at: u64) -> Wire {
        let notifies =
            [craft::notify(41, number::INVALID_IKE_SPI, &[]), craft::notify(0, number::QCD_TOKEN, &[7; 32])];
        self.frame(at, B, 500, &craft::ike((1, 2), 41, number::INFORMATIONAL, 0x20, 5, &notifies.concat()))
    }

    fn init(self, at: u64, cookie: bool) -> Wire {
        let body =
            if cookie { craft::notify(0, number::COOKIE, &[1; 20]) } else { craft::payload(0, &[1; 20]) };
        let first = if cookie { 41 } else { 33 };
        self.frame(at, A, 500, &craft::ike((9, 0), first, number::IKE_SA_INIT, 0x08, 0, &body))
    }

    fn init_response(self, at: u64, cookie: bool) -> Wire {
        let body =
            if cookie { craft::notify(0, number::COOKIE, &[1; 20]) } else { craft::payload(0, &[2; 20]) };
        let first = if cookie { 41 } else { 33 };
        self.frame(at, B, 500, &craft::ike((9, 8), first, number::IKE_SA_INIT, 0x20, 0, &body))
    }

    fn auth(self, request: u64, response: u64) -> Wire {
        let message =
            |flags| craft::ike((9, 8), 46, number::IKE_AUTH, flags, 1, &craft::payload(0, &[4; 40]));
        self.frame(request, A, 500, &message(0x08)).frame(response, B, 500, &message(0x20))
    }

    /// An exchange of an IKE SA that B initiates.
    fn asked_by_b(self, request: u64, response: u64, exchange: u8) -> Wire {
        let (first, id) = if exchange == number::IKE_SA_INIT { (33, 0) } else { (46, 1) };
        let message = |flags| craft::ike((9, 8), first, exchange, flags, id, &craft::payload(0, &[4; 40]));
        self.frame(request, B, 500, &message(0x08)).frame(response, A, 500, &message(0x20))
    }

    fn check<T>(mut self, round_trip: u64, look: impl FnOnce(&Recovery<'_>) -> T) -> T {
        self.0.sort_by_key(|frame| frame.at);
        let events = wire_events(&self.0);
        let at = |time: u64| time * MILLISECOND;
        let crash = Crash {
            gateway: B.into(),
            killed: at(100),
            started: at(600),
            ready: at(700),
            round_trip: Duration::from_millis(round_trip),
        };
        look(&Recovery::new(&events, crash))
    }
}

/// The token comes with INVALID_SPI, at 20 ms.
fn journal() -> Wire {
    Wire::default()
        .stream(0..730, OLD)
        .invalid_spi(700, true)
        .init(720, false)
        .init_response(721, false)
        .auth(741, 742)
        .esp(762, NEW)
}

/// The token comes in the answer to a probe, at 20 ms.
fn probed() -> Wire {
    Wire::default()
        .stream(0..750, OLD)
        .invalid_spi(700, false)
        .probe(720)
        .answer(720)
        .init(740, false)
        .init_response(741, false)
        .auth(761, 762)
        .esp(782, NEW)
}

#[test]
fn a_token_with_invalid_spi_makes_three_round_trips() {
    journal().check(20, |recovery| {
        assert_eq!(recovery.round_trips(), Some(3));
        let moments = recovery.timeline().moments();
        let milliseconds: Vec<(&str, u64)> =
            moments.iter().map(|&(what, at)| (what, at / MILLISECOND)).collect();
        let expected = [
            ("first ESP at ready B", 700),
            ("INVALID_SPI with token", 700),
            ("IKE_SA_INIT request", 720),
            ("IKE_SA_INIT response", 721),
            ("IKE_AUTH request", 741),
            ("IKE_AUTH response", 742),
            ("first ESP on the new SA", 762),
        ];
        assert_eq!(milliseconds, expected);
    });
}

#[test]
fn a_token_in_the_answer_to_a_probe_makes_four_round_trips() {
    probed().check(20, |recovery| {
        assert_eq!(recovery.round_trips(), Some(4));
        let tokens: Vec<bool> = recovery.exchanges().iter().map(|exchange| exchange.token).collect();
        assert_eq!(tokens, [false, true, false, false]);
        let moments = recovery.timeline().moments();
        assert_eq!(moments[2..4], [("probe", 720 * MILLISECOND), ("answer with token", 720 * MILLISECOND)]);
    });
}

#[test]
fn further_packets_on_the_same_spi_and_repeated_answers_are_not_counted_again() {
    let wire = journal().invalid_spi(710, true).invalid_spi(725, true);
    assert_eq!(wire.check(20, |recovery| recovery.round_trips()), Some(3));
}

#[test]
fn a_probe_that_crossed_invalid_spi_on_the_way_ran_beside_it() {
    let wire = journal().probe(705).answer(705);
    assert_eq!(wire.check(20, |recovery| recovery.round_trips()), Some(3));
}

#[test]
fn retransmitted_requests_are_counted_once() {
    let wire = probed().probe(735).answer(735).init(750, false).init_response(750, false);
    assert_eq!(wire.check(20, |recovery| recovery.round_trips()), Some(4));
}

#[test]
fn a_cookie_costs_a_round_trip() {
    let wire = Wire::default()
        .stream(0..730, OLD)
        .invalid_spi(700, true)
        .init(720, false)
        .init_response(720, true)
        .init(740, true)
        .init_response(741, false)
        .auth(761, 762)
        .esp(782, NEW);
    wire.check(20, |recovery| {
        assert_eq!(recovery.round_trips(), Some(4));
        assert_eq!(recovery.timeline().ike_sa_init_request, Some(740 * MILLISECOND));
        assert_eq!(recovery.timeline().ike_sa_init_response, Some(741 * MILLISECOND));
    });
}

#[test]
fn what_happens_before_the_gateway_is_ready_or_after_the_first_delivery_does_not_count() {
    let wire = journal().probe(690).answer(691).probe(800).answer(801);
    assert_eq!(wire.check(20, |recovery| recovery.round_trips()), Some(3));
}

#[test]
fn a_packet_that_was_queued_before_ready_and_answered_after_it_is_the_first() {
    let wire = Wire::default()
        .stream(6..716, OLD)
        .invalid_spi(701, true)
        .init(721, false)
        .init_response(722, false)
        .auth(742, 743)
        .esp(763, NEW);
    wire.check(20, |recovery| {
        assert_eq!(recovery.timeline().first_esp, Some(696 * MILLISECOND));
        assert_eq!(recovery.round_trips(), Some(3));
    });
}

#[test]
fn an_sa_that_was_made_before_the_gateway_was_ready_costs_no_round_trip_after_it() {
    let wire = Wire::default()
        .stream(0..640, OLD)
        .probe(610)
        .answer(610)
        .init(630, false)
        .init_response(631, false)
        .auth(651, 652)
        .stream(672..800, NEW);
    wire.check(20, |recovery| {
        assert_eq!(recovery.round_trips(), Some(0));
        let timeline = recovery.timeline();
        assert_eq!(timeline.first_esp, Some(702 * MILLISECOND));
        assert_eq!(timeline.first_esp_on_new_sa, timeline.first_esp);
        assert_eq!(timeline.ike_auth_response, Some(652 * MILLISECOND));
    });
}

#[test]
fn where_the_gateway_asks_a_packet_that_overtakes_the_last_answer_ends_nothing() {
    let wire = Wire::default()
        .stream(0..750, OLD)
        .asked_by_b(700, 720, number::IKE_SA_INIT)
        .asked_by_b(721, 741, number::IKE_AUTH)
        .esp(740, NEW)
        .esp(750, NEW);
    wire.check(20, |recovery| {
        let recovery = Recovery { asks: true, ..*recovery };
        assert_eq!(recovery.round_trips(), Some(2));
        assert_eq!(recovery.timeline().first_esp_on_new_sa, Some(750 * MILLISECOND));
    });
}

#[test]
fn without_an_esp_packet_on_a_new_sa_there_are_no_round_trips() {
    let wire = Wire::default().stream(0..1500, OLD).invalid_spi(700, true);
    assert_eq!(wire.check(20, |recovery| recovery.round_trips()), None);
}

#[test]
fn messages_are_counted_from_the_start_on() {
    let counts = probed().probe(300).check(20, |recovery| recovery.counts(u64::MAX));
    let expected = Counts {
        // 600 to 740 each 10 ms, and one on the new SA.
        esp_in: 16,
        esp_out: 0,
        invalid_spi: 1,
        invalid_ike_spi: 1,
        tokens: 1,
        informational_requests: 1,
        ike_sa_init_requests: 1,
        ike_sa_init_requests_out: 0,
        ike_auth_requests: 1,
        ike_in: 3,
        ike_out: 4,
    };
    assert_eq!(counts, expected);
}
