//! SIR's messages in clear: an IKE header of a private exchange type, CHECK_SPI, and in a NACK perhaps a COOKIE.

use crate::message::ENCAPSULATION_PORT;
use spindle_ike::api::{Datagram, Header, IkeSpis, Notify};
use spindle_ike::check_spi::CheckSpi;
use spindle_ike::wire::{Message, Payload, add_non_esp_marker, exchange, notify};
use std::net::SocketAddr;

/// Y asks: R flag cleared, the I flag is Y's role in the IKE SA, Message ID 0, which touches no window.
pub(crate) fn query(
    spis: IkeSpis,
    initiator: bool,
    check: &CheckSpi,
    (local, remote): (SocketAddr, SocketAddr),
) -> Datagram {
    let header =
        Header { spis, next_payload: 0, exchange: exchange::SIR, response: false, initiator, message_id: 0 };
    datagram(header, vec![check.to_notify()], local, remote)
}

/// X answers, back to where the query came from: both flags inverted, all else as it was.
pub(crate) fn answer(
    query: &Header,
    check: &CheckSpi,
    cookie: Option<Vec<u8>>,
    (local, remote): (SocketAddr, SocketAddr),
) -> Datagram {
    let header = Header { response: true, initiator: !query.initiator, ..*query };
    let cookie = cookie.map(|data| Notify { kind: notify::COOKIE, protocol: 0, spi: Vec::new(), data });
    datagram(header, [check.to_notify()].into_iter().chain(cookie).collect(), local, remote)
}

fn datagram(header: Header, notifies: Vec<Notify>, local: SocketAddr, remote: SocketAddr) -> Datagram {
    let payloads = notifies.into_iter().map(Payload::Notify).collect();
    let message = Message { header, payloads }.emit();
    let data = if local.port() == ENCAPSULATION_PORT { add_non_esp_marker(&message) } else { message };
    Datagram { local, remote, data }
}

/// What a message of this exchange says about the IKE SA of its header: exactly one CHECK_SPI, and perhaps a COOKIE
/// (RFC 7296 section 2.6: 1 to 64 octets). `None` if it is malformed.
pub(crate) fn parse(header: &Header, notifies: &[Notify]) -> Option<(CheckSpi, Option<Vec<u8>>)> {
    let of = |kind| notifies.iter().filter(move |n| n.kind == kind);
    let mut checks = of(notify::SIR_CHECK_SPI);
    let check = CheckSpi::from_notify(checks.next()?)?;
    let named = header.spis.initiator != [0; 8] && header.spis.responder != [0; 8];
    if checks.next().is_some() || check.child.is_some() || !named || header.message_id != 0 {
        return None;
    }
    let cookie = of(notify::COOKIE).next().map(|n| n.data.clone());
    Some((check, cookie.filter(|cookie| (1..=64).contains(&cookie.len()))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{pair, socket};
    use spindle_ike::check_spi::Subtype;

    /// Section 6, with the private numbers, octet by octet.
    #[test]
    fn a_query_and_its_answers_octet_by_octet() {
        let check = CheckSpi { subtype: Subtype::Query, child: None, cookie: vec![0x77; 24] };
        let ends = (socket("192.0.2.2:500"), socket("192.0.2.1:500"));
        let out = query(pair(1), true, &check, ends);
        let mut expected = [[1; 8], [0x81; 8]].concat();
        expected.extend([41, 0x20, 240, 0x08, 0, 0, 0, 0, 0, 0, 0, 64]);
        expected.extend([0, 0, 0, 36, 0, 0, 0xa0, 0x0a, 0, 24, 0, 0]);
        expected.extend([0x77; 24]);
        assert_eq!(out.data, expected);
        assert_eq!((out.local, out.remote), ends);

        let asked = Message::parse(&out.data).unwrap().header;
        let nack = CheckSpi { subtype: Subtype::Nack, ..check };
        let ends = (socket("192.0.2.1:4500"), socket("192.0.2.2:31000"));
        let out = answer(&asked, &nack, Some(vec![9; 53]), ends);
        let mut expected = [[0; 8], [1; 8], [0x81; 8]].concat()[4..].to_vec();
        expected.extend([41, 0x20, 240, 0x20, 0, 0, 0, 0, 0, 0, 0, 125]);
        expected.extend([41, 0, 0, 36, 0, 0, 0xa0, 0x0a, 2, 24, 0, 0]);
        expected.extend([0x77; 24]);
        expected.extend([0, 0, 0, 61, 0, 0, 0x40, 0x06]);
        expected.extend([9; 53]);
        assert_eq!(out.data, expected);
        assert_eq!((out.local, out.remote), ends);
    }

    #[test]
    fn what_names_no_ike_sa_or_holds_two_checks_is_malformed() {
        let check = CheckSpi { subtype: Subtype::Ack, child: None, cookie: vec![1; 24] };
        let notify = check.to_notify();
        let header = Header {
            spis: pair(1),
            next_payload: 41,
            exchange: 240,
            response: true,
            initiator: false,
            message_id: 0,
        };
        let cookie = |length| Notify { kind: 16390, protocol: 0, spi: vec![], data: vec![5; length] };
        let found = |notifies: &[Notify]| parse(&header, notifies);
        assert_eq!(found(std::slice::from_ref(&notify)), Some((check.clone(), None)));
        assert_eq!(found(&[notify.clone(), cookie(64)]), Some((check.clone(), Some(vec![5; 64]))));
        assert_eq!(found(&[notify.clone(), cookie(65)]), Some((check.clone(), None)));
        assert_eq!(found(&[notify.clone(), notify.clone()]), None);
        assert_eq!(found(&[cookie(5)]), None);
        let child = CheckSpi { child: Some(spindle_abi::Spi(1)), ..check }.to_notify();
        assert_eq!(found(&[child]), None, "about an ESP SA only under protection");
        let zero = IkeSpis { responder: [0; 8], ..pair(1) };
        assert_eq!(parse(&Header { spis: zero, ..header }, std::slice::from_ref(&notify)), None);
        assert_eq!(parse(&Header { message_id: 1, ..header }, &[notify]), None);
    }
}
