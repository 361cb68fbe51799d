//! Counts IKE messages as they pass the sockets, by exchange type: what a capture on the wire must show as well.

use std::sync::atomic::{AtomicU64, Ordering};

/// The octet of the IKE header with the Exchange Type, and the one with the flags (RFC 7296 section 3.1).
const EXCHANGE_TYPE: usize = 18;
const FLAGS: usize = 19;
const RESPONSE: u8 = 0x20;

/// Which way.
#[derive(Clone, Copy)]
pub(super) enum Way {
    Received = 0,
    Sent = 2,
}

macro_rules! names {
    ($($exchange:literal),*) => {
        [$([
            concat!($exchange, "_requests_received"),
            concat!($exchange, "_responses_received"),
            concat!($exchange, "_requests_sent"),
            concat!($exchange, "_responses_sent"),
        ]),*]
    };
}

/// Exchange types from 34 on (RFC 7296 section 3.1, RFC 5723 section 9), and the others.
const NAMES: [[&str; 4]; 6] = names![
    "ike_sa_init",
    "ike_auth",
    "create_child_sa",
    "informational",
    "ike_session_resume",
    "other_exchange"
];
const FIRST: u8 = 34;
const OTHER: usize = NAMES.len() - 1;

/// One counter for each name.
#[derive(Default)]
pub(super) struct Messages([[AtomicU64; 4]; NAMES.len()]);

impl Messages {
    /// Counts a message, without a non-ESP marker; what is too short for a header is of no exchange.
    pub(super) fn count(&self, way: Way, message: &[u8]) {
        let (exchange, flags) = (message.get(EXCHANGE_TYPE).copied(), message.get(FLAGS).copied());
        let exchange = exchange.and_then(|exchange| exchange.checked_sub(FIRST)).map_or(OTHER, usize::from);
        let response = flags.is_some_and(|flags| flags & RESPONSE != 0);
        self.0[exchange.min(OTHER)][way as usize + usize::from(response)].fetch_add(1, Ordering::Relaxed);
    }

    /// Names and values for `stats`.
    pub(super) fn stats(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let values = self.0.iter().flatten().map(|counter| counter.load(Ordering::Relaxed));
        NAMES.into_iter().flatten().zip(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_exchange_and_way_has_a_counter_of_its_own() {
        let messages = Messages::default();
        let message = |exchange: u8, flags: u8| {
            let mut octets = [0; 28];
            (octets[EXCHANGE_TYPE], octets[FLAGS]) = (exchange, flags);
            octets
        };
        messages.count(Way::Sent, &message(34, 0x08));
        messages.count(Way::Received, &message(34, 0x20));
        messages.count(Way::Received, &message(37, 0x08));
        messages.count(Way::Sent, &message(37, 0x28));
        messages.count(Way::Received, &message(38, 0));
        for exchange in [0, 33, 39, 255] {
            messages.count(Way::Received, &message(exchange, 0));
        }
        messages.count(Way::Received, &[0; 5]);
        let counted: Vec<_> = messages.stats().filter(|(_, value)| *value > 0).collect();
        assert_eq!(
            counted,
            [
                ("ike_sa_init_responses_received", 1),
                ("ike_sa_init_requests_sent", 1),
                ("informational_requests_received", 1),
                ("informational_responses_sent", 1),
                ("ike_session_resume_requests_received", 1),
                ("other_exchange_requests_received", 5),
            ]
        );
    }
}
