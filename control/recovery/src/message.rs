//! The messages in clear that recovery sends: an IKE header and Notify payloads (RFC 7296 section 3.1, 3.10).

use crate::qcd::Token;
use spindle_abi::Spi;
use spindle_ike::api::{Datagram, Header, IkeSpis};
use std::net::SocketAddr;

/// Notify Message Types.
pub(crate) const INVALID_IKE_SPI: u16 = 4;
pub(crate) const INVALID_SPI: u16 = 11;
pub(crate) const QUICK_CRASH_DETECTION: u16 = 16419;

/// UDP ports of IKE: plain, and shared with ESP, where four zero octets mark IKE (RFC 3948 section 2.2).
pub(crate) const IKE_PORT: u16 = 500;
pub(crate) const ENCAPSULATION_PORT: u16 = 4500;

const NOTIFY_PAYLOAD: u8 = 41;
const INFORMATIONAL: u8 = 37;
const VERSION: u8 = 0x20;
const INITIATOR_FLAG: u8 = 0x08;
const RESPONSE_FLAG: u8 = 0x20;

/// The answer to a protected request on an unknown IKE SPI: INVALID_IKE_SPI, then tokens, if any.
///
/// RFC 7296 section 2.21.4: to the source address and port, same IKE SPIs, Message ID and Exchange Type, Response
/// flag, not protected. The I flag is ours: the inverse of the sender's (section 3.1). RFC 6290 section 4.5: both
/// notifications in one message.
pub(crate) fn invalid_ike_spi(
    request: &Header,
    local: SocketAddr,
    remote: SocketAddr,
    tokens: &[Token],
) -> Datagram {
    let answer = Header { response: true, initiator: !request.initiator, ..*request };
    let mut notifies = vec![notify(0, INVALID_IKE_SPI, &[])];
    notifies.extend(tokens.iter().map(token));
    datagram(&answer, &notifies, local, remote)
}

/// A one-way message about an unknown ESP SPI: INVALID_SPI with the SPI, then tokens, if any.
///
/// RFC 7296 section 1.5: an informational message outside of an exchange, I flag set, Response flag cleared, IKE
/// SPIs zero or random. RFC 6290 section 4.5 and 8.2: with the tokens of the parent IKE SA.
pub(crate) fn invalid_spi(spi: Spi, local: SocketAddr, remote: SocketAddr, tokens: &[Token]) -> Datagram {
    let header = Header {
        spis: IkeSpis { initiator: [0; 8], responder: [0; 8] },
        next_payload: NOTIFY_PAYLOAD,
        exchange: INFORMATIONAL,
        response: false,
        initiator: true,
        message_id: 0,
    };
    let mut notifies = vec![notify(0, INVALID_SPI, &spi.0.to_be_bytes())];
    notifies.extend(tokens.iter().map(token));
    datagram(&header, &notifies, local, remote)
}

/// RFC 6290 section 4.1: Protocol ID 1, SPI Size 0. (RFC 7296 section 3.10 would have 0; receivers ignore it.)
fn token(token: &Token) -> Vec<u8> {
    notify(1, QUICK_CRASH_DETECTION, token)
}

/// A Notify payload but for its Next Payload. RFC 7296 section 3.10: an empty SPI field has Protocol ID 0.
fn notify(protocol: u8, kind: u16, data: &[u8]) -> Vec<u8> {
    let length = (8 + data.len()) as u16;
    let mut out = Vec::with_capacity(length.into());
    out.extend([0, 0]);
    out.extend(length.to_be_bytes());
    out.extend([protocol, 0]);
    out.extend(kind.to_be_bytes());
    out.extend(data);
    out
}

fn datagram(header: &Header, notifies: &[Vec<u8>], local: SocketAddr, remote: SocketAddr) -> Datagram {
    let length = 28 + notifies.iter().map(Vec::len).sum::<usize>();
    let mut data = Vec::with_capacity(4 + length);
    if local.port() == ENCAPSULATION_PORT {
        data.extend([0; 4]);
    }
    data.extend(header.spis.initiator);
    data.extend(header.spis.responder);
    let flags =
        if header.initiator { INITIATOR_FLAG } else { 0 } | if header.response { RESPONSE_FLAG } else { 0 };
    data.extend([NOTIFY_PAYLOAD, VERSION, header.exchange, flags]);
    data.extend(header.message_id.to_be_bytes());
    data.extend((length as u32).to_be_bytes());
    for (n, payload) in notifies.iter().enumerate() {
        data.push(if n + 1 < notifies.len() { NOTIFY_PAYLOAD } else { 0 });
        data.extend(&payload[1..]);
    }
    Datagram { local, remote, data }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// RFC 7296 section 2.21.4 and 3.1, RFC 6290 section 4.1 and 4.5, octet by octet.
    #[test]
    fn the_answer_to_a_request_copies_its_header_and_inverts_both_flags() {
        let request = Header {
            spis: IkeSpis { initiator: [0xa; 8], responder: [0xb; 8] },
            next_payload: 46,
            exchange: 36,
            response: false,
            initiator: true,
            message_id: 0x01020304,
        };
        let out = invalid_ike_spi(&request, socket("192.0.2.1:500"), socket("192.0.2.2:1234"), &[[0x77; 32]]);
        let mut expected = vec![0xa; 8];
        expected.extend([0xb; 8]);
        expected.extend([41, 0x20, 36, 0x20, 1, 2, 3, 4, 0, 0, 0, 76]);
        expected.extend([41, 0, 0, 8, 0, 0, 0, 4]);
        expected.extend([0, 0, 0, 40, 1, 0, 0x40, 0x23]);
        expected.extend([0x77; 32]);
        assert_eq!(out.data, expected);
        assert_eq!((out.local, out.remote), (socket("192.0.2.1:500"), socket("192.0.2.2:1234")));

        let from_responder = Header { initiator: false, ..request };
        let out = invalid_ike_spi(&from_responder, socket("192.0.2.1:4500"), socket("192.0.2.2:4500"), &[]);
        assert_eq!(out.data[..4], [0; 4]);
        assert_eq!(out.data[4 + 19], 0x28);
        assert_eq!(out.data.len(), 4 + 28 + 8);
    }

    /// RFC 7296 section 1.5, octet by octet.
    #[test]
    fn invalid_spi_is_a_message_of_its_own_with_zero_ike_spis() {
        let out = invalid_spi(Spi(0xdeadbeef), socket("192.0.2.1:500"), socket("192.0.2.2:500"), &[]);
        let mut expected = vec![0; 16];
        expected.extend([41, 0x20, 37, 0x08, 0, 0, 0, 0, 0, 0, 0, 40]);
        expected.extend([0, 0, 0, 12, 0, 0, 0, 11, 0xde, 0xad, 0xbe, 0xef]);
        assert_eq!(out.data, expected);
        let out = invalid_spi(Spi(1), socket("192.0.2.1:4500"), socket("192.0.2.2:9"), &[[1; 32]; 4]);
        assert_eq!(out.data[..4], [0; 4]);
        assert_eq!(out.data.len(), 4 + 28 + 12 + 4 * 40);
    }
}
