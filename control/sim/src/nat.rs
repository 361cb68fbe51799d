//! A NAT before a gateway (RFC 3022): the outside sees an address and ports of the NAT's, until it maps the gateway elsewhere
//! and forgets what was before. ESP without UDP does not pass.

use crate::network::{Packet, ipv4};
use crate::random::Dice;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Addresses of the NAT.
pub(crate) const OUTER: [Ipv4Addr; 3] =
    [Ipv4Addr::new(203, 0, 113, 1), Ipv4Addr::new(203, 0, 113, 2), Ipv4Addr::new(203, 0, 113, 3)];

/// What it maps the gateway behind it to.
#[derive(Debug)]
pub(crate) struct Nat {
    dice: Dice,
    /// The gateway's address.
    inner: Ipv4Addr,
    /// The address of the NAT that it is mapped to.
    outer: Ipv4Addr,
    /// The gateway's ports and the NAT's.
    ports: BTreeMap<u16, u16>,
}

impl Nat {
    pub(crate) fn new(inner: Ipv4Addr, dice: Dice) -> Nat {
        Nat { dice, inner, outer: OUTER[0], ports: BTreeMap::new() }
    }

    /// Where this port of the gateway's seems to be, if it is mapped.
    pub(crate) fn seen_at(&self, port: u16) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.outer.into(), *self.ports.get(&port)?))
    }

    /// From now on the gateway seems to be elsewhere: at another address, or at other ports alone.
    pub(crate) fn moves(&mut self) {
        self.outer = self.dice.one(&OUTER);
        self.ports.clear();
    }

    /// What becomes of a packet on its way out. A port is kept where it can be, or it is any other.
    pub(crate) fn outward(&mut self, packet: Packet) -> Option<Packet> {
        let inner = source_port(&packet)?;
        let kept = self.ports.is_empty() && self.dice.percent(50);
        let any = 10_000 + self.dice.below(50_000) as u16;
        let outer = *self.ports.entry(inner).or_insert(if kept { inner } else { any });
        Some(match packet {
            Packet::Ike { destination, data, .. } => {
                Packet::Ike { source: SocketAddr::new(self.outer.into(), outer), destination, data }
            }
            Packet::Esp(octets) => Packet::Esp(rewritten(&octets, (self.outer, 12), (outer, 0))),
        })
    }

    /// What becomes of a packet to one of the NAT's addresses: there may be nobody.
    pub(crate) fn inward(&self, packet: Packet) -> Option<Packet> {
        let outer = destination_port(&packet)?;
        if packet.destination() != Some(self.outer.into()) {
            return None;
        }
        let (inner, _) = self.ports.iter().find(|(_, port)| **port == outer)?;
        Some(match packet {
            Packet::Ike { source, data, .. } => {
                Packet::Ike { source, destination: SocketAddr::new(self.inner.into(), *inner), data }
            }
            Packet::Esp(octets) => Packet::Esp(rewritten(&octets, (self.inner, 16), (*inner, 2))),
        })
    }

    /// Is it one of the NAT's addresses?
    pub(crate) fn has(address: IpAddr) -> bool {
        OUTER.iter().any(|outer| address == *outer)
    }
}

fn source_port(packet: &Packet) -> Option<u16> {
    match packet {
        Packet::Ike { source, .. } => Some(source.port()),
        Packet::Esp(octets) => port(octets, 0),
    }
}

fn destination_port(packet: &Packet) -> Option<u16> {
    match packet {
        Packet::Ike { destination, .. } => Some(destination.port()),
        Packet::Esp(octets) => port(octets, 2),
    }
}

/// A port of ESP in UDP.
fn port(octets: &[u8], at: usize) -> Option<u16> {
    let port = octets.get(20 + at..22 + at)?;
    (octets[9] == 17).then(|| u16::from_be_bytes([port[0], port[1]]))
}

/// The packet with an address in the place of one in the IPv4 header, and a port of the UDP header's.
fn rewritten(octets: &[u8], (address, place): (Ipv4Addr, usize), (port, at): (u16, usize)) -> Vec<u8> {
    let mut octets = octets.to_vec();
    octets[place..place + 4].copy_from_slice(&address.octets());
    octets[20 + at..22 + at].copy_from_slice(&port.to_be_bytes());
    let address =
        |place: usize| Ipv4Addr::new(octets[place], octets[place + 1], octets[place + 2], octets[place + 3]);
    ipv4(address(12), address(16), 17, &octets[20..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::udp;

    const INNER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const PEER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

    /// RFC 3022 section 2.2: answers find the way of what they answer; after a move nothing finds the earlier one.
    #[test]
    fn answers_come_back_until_the_mapping_moves() {
        let mut nat = Nat::new(INNER, Dice::new(1, 1));
        let esp =
            |from, to, ports: [u16; 2]| Packet::Esp(ipv4(from, to, 17, &udp(ports[0], ports[1], &[7; 40])));
        let ike = |source: SocketAddr, destination| Packet::Ike { source, destination, data: vec![7; 40] };
        let peer = SocketAddr::new(PEER.into(), 4500);
        for _ in 0..20 {
            let Some(Packet::Ike { source, destination, .. }) =
                nat.outward(ike(SocketAddr::new(INNER.into(), 4500), peer))
            else {
                panic!("IKE passes")
            };
            assert!(Nat::has(source.ip()) && destination == peer);
            let Some(Packet::Esp(out)) = nat.outward(esp(INNER, PEER, [4500; 2])) else {
                panic!("ESP in UDP passes")
            };
            assert_eq!(
                (port(&out, 0), port(&out, 2)),
                (Some(source.port()), Some(4500)),
                "one mapping for both"
            );
            let IpAddr::V4(outer) = source.ip() else { panic!("IPv4") };
            let back = nat.inward(esp(PEER, outer, [4500, source.port()]));
            assert_eq!(back, Some(esp(PEER, INNER, [4500; 2])), "with a true checksum");
            let back = nat.inward(ike(peer, source));
            assert_eq!(back, Some(ike(peer, SocketAddr::new(INNER.into(), 4500))));
            nat.moves();
            assert_eq!(nat.inward(ike(peer, source)), None);
        }
        assert_eq!(nat.outward(Packet::Esp(ipv4(INNER, PEER, 50, &[7; 40]))), None);
    }
}
