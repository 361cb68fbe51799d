//! Wire events: what each frame of the outer wire says, as far as anybody on the wire can read it.

use crate::frame::{Ip, ethernet, ipv4_at, protocol, u16_at, u32_at, u64_at};
use crate::pcap::Frame;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr};

/// Numbers of RFC 7296 and RFC 6290 that the analysis knows.
pub mod number {
    /// Exchange type of IKE_SA_INIT.
    pub const IKE_SA_INIT: u8 = 34;
    /// Exchange type of IKE_AUTH.
    pub const IKE_AUTH: u8 = 35;
    /// Exchange type of CREATE_CHILD_SA.
    pub const CREATE_CHILD_SA: u8 = 36;
    /// Exchange type of INFORMATIONAL.
    pub const INFORMATIONAL: u8 = 37;
    /// Exchange type of IKE_SESSION_RESUME (RFC 5723).
    pub const IKE_SESSION_RESUME: u8 = 38;
    /// Exchange type of queries about IKE SAs in clear: a private number for draft-detienne-ikev2-recovery-03.
    pub const SIR: u8 = 240;
    /// Notification of an IKE message on an unknown IKE SA (RFC 7296 section 2.21.4).
    pub const INVALID_IKE_SPI: u16 = 4;
    /// Notification of an ESP packet on an unknown SPI (RFC 7296 section 1.5).
    pub const INVALID_SPI: u16 = 11;
    /// Notification that asks for another key exchange method (RFC 7296 section 1.2).
    pub const INVALID_KE_PAYLOAD: u16 = 17;
    /// Notification with a cookie (RFC 7296 section 2.6).
    pub const COOKIE: u16 = 16390;
    /// Notification that refuses a ticket (RFC 5723).
    pub const TICKET_NACK: u16 = 16412;
    /// Notification with a ticket that is presented (RFC 5723).
    pub const TICKET_OPAQUE: u16 = 16413;
    /// Notification with a token (RFC 6290 section 4.1; QUICK_CRASH_DETECTION at IANA).
    pub const QCD_TOKEN: u16 = 16419;

    pub(crate) const PAYLOAD_NOTIFY: u8 = 41;
    pub(crate) const PAYLOAD_ENCRYPTED: u8 = 46;
    pub(crate) const PAYLOAD_ENCRYPTED_FRAGMENT: u8 = 53;
    pub(crate) const FLAG_INITIATOR: u8 = 0x08;
    pub(crate) const FLAG_RESPONSE: u8 = 0x20;
}

/// A Notify payload in clear.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Notify {
    /// Notify Message Type.
    pub kind: u16,
    /// Notification Data.
    pub data: Vec<u8>,
}

/// An IKE message as it is seen on the wire.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IkeMessage {
    /// IKE SA Initiator's SPI.
    pub initiator_spi: u64,
    /// IKE SA Responder's SPI.
    pub responder_spi: u64,
    /// Exchange Type.
    pub exchange: u8,
    /// Whether the I flag is set: sent by the original initiator.
    pub from_initiator: bool,
    /// Whether the R flag is set.
    pub response: bool,
    /// Message ID.
    pub message_id: u32,
    /// Whether it holds an Encrypted payload, or an Encrypted Fragment (RFC 7383).
    pub protected: bool,
    /// Notify payloads in clear.
    pub notifies: Vec<Notify>,
    /// A hash of the message's octets: a retransmission is bit-identical (RFC 7296 section 2.1).
    pub digest: u64,
}

impl IkeMessage {
    /// The data of the first clear notification of this type.
    pub fn notify(&self, kind: u16) -> Option<&[u8]> {
        self.notifies.iter().find(|notify| notify.kind == kind).map(|notify| &notify.data[..])
    }

    /// Reads a message from its header on; payloads are read as far as they are whole.
    fn parse(octets: &[u8]) -> Option<IkeMessage> {
        let (exchange, flags) = (*octets.get(18)?, *octets.get(19)?);
        let length = usize::try_from(u32_at(octets, 24)?).ok()?;
        if octets[17] >> 4 != 2 || length < 28 || length > octets.len() {
            return None;
        }
        let octets = &octets[..length];
        let mut message = IkeMessage {
            initiator_spi: u64_at(octets, 0)?,
            responder_spi: u64_at(octets, 8)?,
            exchange,
            from_initiator: flags & number::FLAG_INITIATOR != 0,
            response: flags & number::FLAG_RESPONSE != 0,
            message_id: u32_at(octets, 20)?,
            protected: false,
            notifies: Vec::new(),
            digest: digest(octets),
        };
        let (mut kind, mut rest) = (octets[16], &octets[28..]);
        while kind != 0 {
            if matches!(kind, number::PAYLOAD_ENCRYPTED | number::PAYLOAD_ENCRYPTED_FRAGMENT) {
                message.protected = true;
                break;
            }
            let Some(length) = u16_at(rest, 2).map(usize::from) else { break };
            let Some(body) = rest.get(4..length) else { break };
            if kind == number::PAYLOAD_NOTIFY
                && let (Some(&spi_size), Some(kind)) = (body.get(1), u16_at(body, 2))
            {
                let data = body.get(4 + usize::from(spi_size)..).unwrap_or(&[]).to_vec();
                message.notifies.push(Notify { kind, data });
            }
            kind = rest[0];
            rest = &rest[length..];
        }
        Some(message)
    }
}

fn digest(octets: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    octets.hash(&mut hasher);
    hasher.finish()
}

/// What a frame is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kind {
    /// An ESP packet (RFC 4303), raw or over UDP (RFC 3948).
    Esp {
        /// Security Parameters Index.
        spi: u32,
        /// Sequence number.
        sequence: u32,
        /// Whether it came over UDP.
        encapsulated: bool,
    },
    /// An IKE message.
    Ike(IkeMessage),
    /// A NAT keepalive (RFC 3948 section 2.3).
    Keepalive,
    /// ICMP or ICMPv6.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// Source and destination of the quoted packet.
        quoted: Option<(IpAddr, IpAddr)>,
    },
    /// Another IP packet, by its protocol number.
    OtherIp(u8),
    /// ARP for IPv4.
    Arp {
        /// 1 asks, 2 answers.
        operation: u16,
        /// The sender's protocol address.
        sender: Ipv4Addr,
        /// The target's protocol address.
        target: Ipv4Addr,
    },
    /// Anything else, by its EtherType (0 if it has none).
    Other(u16),
}

/// One frame on the outer wire.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WireEvent {
    /// The frame's number in the capture, from 1.
    pub frame: usize,
    /// CLOCK_REALTIME in nanoseconds.
    pub at: u64,
    /// IP source; `None` if it isn't IP.
    pub source: Option<IpAddr>,
    /// IP destination; `None` if it isn't IP.
    pub destination: Option<IpAddr>,
    /// What it is.
    pub kind: Kind,
}

impl WireEvent {
    /// The IKE message, if it is one.
    pub fn ike(&self) -> Option<&IkeMessage> {
        match &self.kind {
            Kind::Ike(message) => Some(message),
            _ => None,
        }
    }

    /// The SPI, if it is an ESP packet.
    pub fn esp(&self) -> Option<u32> {
        match self.kind {
            Kind::Esp { spi, .. } => Some(spi),
            _ => None,
        }
    }
}

/// The events of a capture, in its order.
pub fn wire_events(frames: &[Frame]) -> Vec<WireEvent> {
    frames
        .iter()
        .enumerate()
        .map(|(number, frame)| {
            let (addresses, kind) = read(&frame.octets);
            let (source, destination) = addresses.unzip();
            WireEvent { frame: number + 1, at: frame.at, source, destination, kind }
        })
        .collect()
}

fn read(frame: &[u8]) -> (Option<(IpAddr, IpAddr)>, Kind) {
    let Some((ether_type, packet)) = ethernet(frame) else { return (None, Kind::Other(0)) };
    match ether_type {
        0x0800 | 0x86dd => match Ip::parse(packet) {
            Some(ip) => (Some((ip.source, ip.destination)), read_ip(&ip)),
            None => (None, Kind::Other(ether_type)),
        },
        0x0806 => (None, read_arp(packet).unwrap_or(Kind::Other(ether_type))),
        _ => (None, Kind::Other(ether_type)),
    }
}

fn read_arp(packet: &[u8]) -> Option<Kind> {
    let (operation, sender, target) = (u16_at(packet, 6)?, ipv4_at(packet, 14)?, ipv4_at(packet, 24)?);
    Some(Kind::Arp { operation, sender, target })
}

fn read_ip(ip: &Ip<'_>) -> Kind {
    let esp = |payload: &[u8], encapsulated| {
        let (spi, sequence) = (u32_at(payload, 0)?, u32_at(payload, 4)?);
        Some(Kind::Esp { spi, sequence, encapsulated })
    };
    let known = match ip.protocol {
        protocol::ESP => esp(ip.payload, false),
        protocol::UDP => match ip.udp() {
            // RFC 3948 sections 2.1 to 2.3: the first word is an SPI, zero before an IKE message, or a lone 0xff.
            Some((_, 4500, payload) | (4500, _, payload)) => match payload {
                [0xff] => Some(Kind::Keepalive),
                [0, 0, 0, 0, message @ ..] => IkeMessage::parse(message).map(Kind::Ike),
                _ => esp(payload, true),
            },
            Some((_, 500, payload) | (500, _, payload)) => IkeMessage::parse(payload).map(Kind::Ike),
            _ => None,
        },
        protocol::ICMP | protocol::ICMPV6 => ip.payload.first_chunk::<2>().map(|&[kind, code]| {
            let error = match ip.protocol {
                protocol::ICMP => matches!(kind, 3 | 4 | 5 | 11 | 12),
                _ => (1..=4).contains(&kind),
            };
            let quote = ip.payload.get(8..).filter(|_| error).and_then(Ip::parse);
            Kind::Icmp { kind, code, quoted: quote.map(|quote| (quote.source, quote.destination)) }
        }),
        _ => None,
    };
    known.unwrap_or(Kind::OtherIp(ip.protocol))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::craft;
    use rand::{RngCore, SeedableRng};

    const A: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const B: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

    fn kind(octets: Vec<u8>) -> Kind {
        wire_events(&[Frame { at: 7, octets }]).remove(0).kind
    }

    #[test]
    fn esp_is_read_raw_and_over_udp() {
        let esp = craft::esp(0xdead_beef, 77, &[0; 40]);
        let raw = craft::ethernet([2; 6], [4; 6], 0x0800, &craft::ipv4(A, B, 50, &esp));
        assert_eq!(kind(raw), Kind::Esp { spi: 0xdead_beef, sequence: 77, encapsulated: false });
        let over_udp = craft::udp_frame((A, 4500), (B, 31_000), &esp);
        assert_eq!(kind(over_udp), Kind::Esp { spi: 0xdead_beef, sequence: 77, encapsulated: true });
        assert_eq!(kind(craft::udp_frame((A, 4500), (B, 4500), &[0xff])), Kind::Keepalive);
    }

    #[test]
    fn clear_notifications_are_read_on_both_ports() {
        let notifies =
            [craft::notify(41, number::INVALID_SPI, &[1, 2, 3, 4]), craft::notify(0, 16419, &[9; 32])];
        let message = craft::ike((0, 0), 41, number::INFORMATIONAL, 0x08, 0, &notifies.concat());
        for (port, octets) in [(500, message.clone()), (4500, [&[0; 4][..], &message].concat())] {
            let Kind::Ike(read) = kind(craft::udp_frame((B, port), (A, port), &octets)) else {
                panic!("not read on port {port}");
            };
            assert_eq!(read.notify(number::INVALID_SPI), Some(&[1, 2, 3, 4][..]));
            assert_eq!(read.notify(number::QCD_TOKEN), Some(&[9; 32][..]));
            assert!(!read.protected && !read.response && read.from_initiator);
        }
    }

    #[test]
    fn a_protected_message_shows_its_header_alone() {
        let message =
            craft::ike((5, 6), 46, number::INFORMATIONAL, 0x28, 3, &craft::payload(41, &[0xab; 60]));
        let Kind::Ike(read) = kind(craft::udp_frame((A, 500), (B, 500), &message)) else {
            panic!("not read")
        };
        assert!(read.protected && read.response && read.notifies.is_empty());
        assert_eq!((read.initiator_spi, read.responder_spi, read.message_id), (5, 6, 3));
    }

    #[test]
    fn arp_and_quotes_are_read() {
        let arp = craft::ethernet([255; 6], [4; 6], 0x0806, &craft::arp(1, ([4; 6], A), ([0; 6], B)));
        assert_eq!(kind(arp), Kind::Arp { operation: 1, sender: A, target: B });
        let error = craft::icmp(3, 2, 0, &craft::ipv4(B, A, 50, &[0; 8]));
        let error = craft::ethernet([2; 6], [4; 6], 0x0800, &craft::ipv4(A, B, 1, &error));
        assert_eq!(kind(error), Kind::Icmp { kind: 3, code: 2, quoted: Some((B.into(), A.into())) });
    }

    #[test]
    fn no_octets_stop_the_reader() {
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(9);
        let notifies = [craft::notify(41, 11, &[1, 2, 3, 4]), craft::notify(0, 16419, &[9; 32])].concat();
        let whole = craft::udp_frame((A, 500), (B, 500), &craft::ike((0, 0), 41, 37, 8, 0, &notifies));
        (0..=whole.len()).for_each(|length| drop(kind(whole[..length].to_vec())));
        for _ in 0..20_000 {
            let mut frame = whole.clone();
            for _ in 0..3 {
                let at = random.next_u32() as usize % frame.len();
                frame[at] = random.next_u32() as u8;
            }
            drop(kind(frame));
        }
    }
}
