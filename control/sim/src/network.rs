//! The outer network: packets that are delayed, lost, doubled, overtaken, or held up by a partition.

use crate::random::Dice;
use spindle_abi::Time;
use spindle_ike::api::Datagram;
use spindle_ike::wire::View;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

/// What travels outside.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Packet {
    /// IKE: from a socket to a socket.
    Ike {
        /// Whence.
        source: SocketAddr,
        /// Whereto.
        destination: SocketAddr,
        /// UDP payload.
        data: Vec<u8>,
    },
    /// ESP, in UDP or not: an IPv4 packet, from a dataplane to a dataplane.
    Esp(Vec<u8>),
}

impl Packet {
    /// What a gateway sends.
    pub(crate) fn sent(datagram: &Datagram) -> Packet {
        Packet::Ike { source: datagram.local, destination: datagram.remote, data: datagram.data.clone() }
    }

    /// Where it goes; `None` if it is no packet.
    pub(crate) fn destination(&self) -> Option<IpAddr> {
        match self {
            Packet::Ike { destination, .. } => Some(destination.ip()),
            Packet::Esp(octets) => {
                let address: [u8; 4] = octets.get(16..20)?.try_into().ok()?;
                Some(Ipv4Addr::from(address).into())
            }
        }
    }

    /// The IKE message within, without its non-ESP marker.
    pub(crate) fn ike_message(&self) -> Option<&[u8]> {
        match self {
            Packet::Ike { source, destination, data } => {
                if source.port() == 4500 || destination.port() == 4500 {
                    spindle_ike::wire::strip_non_esp_marker(data)
                } else {
                    Some(data)
                }
            }
            Packet::Esp(_) => None,
        }
    }

    /// For traces.
    pub(crate) fn brief(&self) -> String {
        match (self, self.ike_message().and_then(|message| View::parse(message).ok())) {
            (Packet::Ike { source, destination, .. }, Some(view)) => {
                let (header, protection) = (view.header(), view.protection());
                format!("{source} to {destination} {header:?} {protection:?}")
            }
            (Packet::Ike { source, destination, data }, None) => {
                format!("{source} to {destination} {} octets", data.len())
            }
            (Packet::Esp(_), _) => format!("ESP {:08x?} to {:?}", self.esp_spi(), self.destination()),
        }
    }

    /// The ESP header's SPI.
    pub(crate) fn esp_spi(&self) -> Option<u32> {
        let Packet::Esp(octets) = self else { return None };
        let start = if *octets.get(9)? == 17 { 28 } else { 20 };
        Some(u32::from_be_bytes(octets.get(start..start + 4)?.try_into().ok()?))
    }
}

/// How the network treats packets.
#[derive(Clone, Debug)]
pub(crate) struct Conditions {
    /// One way, at least.
    pub(crate) delay: Duration,
    /// On top of it, at most; more than the gap between two packets lets one overtake the other.
    pub(crate) jitter: Duration,
    /// In percent.
    pub(crate) loss: u32,
    /// In percent.
    pub(crate) duplication: u32,
}

/// The network between the gateways.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) conditions: Conditions,
    /// Nothing passes to this gateway until then.
    cut_off: [Time; 2],
}

impl Network {
    pub(crate) fn new(conditions: Conditions) -> Network {
        Network { conditions, cut_off: [Time(0); 2] }
    }

    /// Nothing reaches `side` until then.
    pub(crate) fn cut_off(&mut self, side: usize, until: Time) {
        self.cut_off[side] = self.cut_off[side].max(until);
    }

    /// From now on nothing is lost, doubled or held up.
    pub(crate) fn heal(&mut self) {
        self.conditions.loss = 0;
        self.conditions.duplication = 0;
        self.cut_off = [Time(0); 2];
    }

    /// When a packet for `side` arrives: never, once or twice.
    pub(crate) fn arrivals(&self, now: Time, side: usize, dice: &mut Dice) -> Vec<Time> {
        if now < self.cut_off[side] || dice.percent(self.conditions.loss) {
            return Vec::new();
        }
        let copies = if dice.percent(self.conditions.duplication) { 2 } else { 1 };
        let mut once = || {
            let jitter = dice.between(Duration::ZERO, self.conditions.jitter);
            now.after(self.conditions.delay + jitter)
        };
        (0..copies).map(|_| once()).collect()
    }
}

/// An IPv4 packet from address to address.
pub(crate) fn ipv4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).expect("a small packet").to_be_bytes();
    let mut packet = vec![0x45, 0, length[0], length[1], 0, 0, 0x40, 0, 64, protocol, 0, 0];
    packet.extend_from_slice(&source.octets());
    packet.extend_from_slice(&destination.octets());
    let sum: u32 = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend_from_slice(payload);
    packet
}

/// A UDP datagram without checksum (RFC 768 allows it over IPv4).
pub(crate) fn udp(source_port: u16, destination_port: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).expect("a small datagram");
    let mut datagram = Vec::with_capacity(usize::from(length));
    for field in [source_port, destination_port, length, 0] {
        datagram.extend_from_slice(&field.to_be_bytes());
    }
    datagram.extend_from_slice(payload);
    datagram
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 1071: the sum over a header with its checksum is all ones.
    #[test]
    fn headers_carry_a_true_checksum() {
        let packet = ipv4([192, 0, 2, 1].into(), [192, 0, 2, 2].into(), 50, &[1, 2, 3]);
        let sum: u32 =
            packet[..20].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    }

    #[test]
    fn a_partition_holds_up_one_direction_until_it_heals() {
        let delay = Duration::from_millis(1);
        let conditions = Conditions { delay, jitter: Duration::ZERO, loss: 0, duplication: 0 };
        let mut network = Network::new(conditions);
        let mut dice = Dice::new(1, 1);
        network.cut_off(0, Time(1000));
        assert_eq!(network.arrivals(Time(10), 0, &mut dice), []);
        assert_eq!(network.arrivals(Time(10), 1, &mut dice), [Time(1_000_010)]);
        network.heal();
        assert_eq!(network.arrivals(Time(10), 0, &mut dice), [Time(1_000_010)]);
    }
}
