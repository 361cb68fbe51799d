//! Selectors (RFC 4301 section 4.4.1.1) as ranges, the form of RFC 7296 traffic selectors.

use std::net::IpAddr;

/// Addresses from `start` to `end`, both included and of one IP version.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct AddressRange {
    /// First address.
    pub start: IpAddr,
    /// Last address.
    pub end: IpAddr,
}

impl AddressRange {
    /// Does the range hold this address?
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.start, address, self.end) {
            (IpAddr::V4(start), IpAddr::V4(a), IpAddr::V4(end)) => start <= a && a <= end,
            (IpAddr::V6(start), IpAddr::V6(a), IpAddr::V6(end)) => start <= a && a <= end,
            _ => false,
        }
    }

    /// Does it hold all of the other's addresses?
    pub fn holds(&self, other: &AddressRange) -> bool {
        self.contains(other.start) && self.contains(other.end)
    }

    /// The addresses in both ranges, if any.
    pub fn intersection(&self, other: &AddressRange) -> Option<AddressRange> {
        let same = self.start.is_ipv4() == other.start.is_ipv4();
        let start = self.start.max(other.start);
        let end = self.end.min(other.end);
        (same && start <= end).then_some(AddressRange { start, end })
    }
}

/// One selector: addresses, protocol and ports.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Selector {
    /// Addresses.
    pub addresses: AddressRange,
    /// IP protocol; 0 is any.
    pub protocol: u8,
    /// First port (for ICMP: type and code, RFC 7296 section 3.13.1).
    pub start_port: u16,
    /// Last port. 0 to 65535 is any. `start_port` > `end_port` (65535 to 0) is OPAQUE.
    pub end_port: u16,
}

impl Selector {
    /// Any protocol and port between these addresses.
    pub fn addresses(start: IpAddr, end: IpAddr) -> Selector {
        Selector { addresses: AddressRange { start, end }, protocol: 0, start_port: 0, end_port: 65535 }
    }

    /// Matches this end of one packet: where it shows no port, any.
    pub fn of_packet(address: IpAddr, protocol: u8, port: Option<u16>) -> Selector {
        let (start_port, end_port) = port.map_or((0, 65535), |port| (port, port));
        Selector { addresses: AddressRange { start: address, end: address }, protocol, start_port, end_port }
    }

    /// Does it match whatever the other one matches?
    pub fn holds(&self, other: &Selector) -> bool {
        self.intersection(other) == Some(*other)
    }

    /// This one as it matches where the other end must match that one; `None` if no packet is of both their protocols
    /// and IP versions.
    fn beside(&self, other: &Selector) -> Option<Selector> {
        let same = self.addresses.start.is_ipv4() == other.addresses.start.is_ipv4();
        let protocol = match (self.protocol, other.protocol) {
            (0, p) | (p, 0) => p,
            (p, q) if p == q => p,
            _ => return None,
        };
        same.then_some(Selector { protocol, ..*self })
    }

    /// Does it match this end of a packet? `port` is `None` where the packet shows none (fragments, protocols
    /// without ports), which only "any port" and OPAQUE match.
    pub fn matches(&self, address: IpAddr, protocol: u8, port: Option<u16>) -> bool {
        let opaque = self.start_port == 65535 && self.end_port == 0;
        let any = self.start_port == 0 && self.end_port == 65535;
        self.addresses.contains(address)
            && (self.protocol == 0 || self.protocol == protocol)
            && match port {
                _ if any => true,
                Some(port) => self.start_port <= port && port <= self.end_port,
                None => opaque,
            }
    }

    /// What both selectors match, if anything.
    pub fn intersection(&self, other: &Selector) -> Option<Selector> {
        let protocol = match (self.protocol, other.protocol) {
            (0, p) | (p, 0) => p,
            (p, q) if p == q => p,
            _ => return None,
        };
        let start_port = self.start_port.max(other.start_port);
        let end_port = self.end_port.min(other.end_port);
        let opaque = |s: &Selector| s.start_port == 65535 && s.end_port == 0;
        let (start_port, end_port) = match (opaque(self), opaque(other)) {
            (true, _) | (_, true) if opaque(self) || opaque(other) => {
                let covers = |s: &Selector| opaque(s) || (s.start_port == 0 && s.end_port == 65535);
                if covers(self) && covers(other) { (65535, 0) } else { return None }
            }
            _ if start_port <= end_port => (start_port, end_port),
            _ => return None,
        };
        let addresses = self.addresses.intersection(&other.addresses)?;
        Some(Selector { addresses, protocol, start_port, end_port })
    }
}

/// Selectors of a policy or an SA: a packet matches if one of `local` matches the end behind us and one of
/// `remote` the other end. At most [`SelectorSet::MAX`] each.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct SelectorSet {
    /// Behind this gateway.
    pub local: Vec<Selector>,
    /// Behind the peer.
    pub remote: Vec<Selector>,
}

impl SelectorSet {
    /// Selectors on each side at most.
    pub const MAX: usize = 4;

    /// What a packet's two ends must match: one of `local` and one of `remote`, of one protocol and IP version.
    pub fn pairs(&self) -> impl Iterator<Item = (Selector, Selector)> {
        let remotes = |local: &Selector| {
            let local = *local;
            self.remote.iter().filter_map(move |r| Some((local.beside(r)?, r.beside(&local)?)))
        };
        self.local.iter().flat_map(remotes)
    }

    /// Does it match whatever the other one matches? (Each of the other's pairs is to lie within one of these: what
    /// only several together hold is not found.)
    pub fn holds(&self, other: &SelectorSet) -> bool {
        let within = |(local, remote): &(Selector, Selector)| {
            self.pairs().any(|(l, r)| l.holds(local) && r.holds(remote))
        };
        other.pairs().all(|pair| within(&pair))
    }

    /// Does a packet between these two ends match? ("local" is behind us, whichever way the packet goes.)
    pub fn matches(&self, local: (IpAddr, Option<u16>), remote: (IpAddr, Option<u16>), protocol: u8) -> bool {
        self.local.iter().any(|s| s.matches(local.0, protocol, local.1))
            && self.remote.iter().any(|s| s.matches(remote.0, protocol, remote.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(a: [u8; 4]) -> IpAddr {
        IpAddr::from(a)
    }

    #[test]
    fn a_range_holds_its_ends_and_nothing_beyond() {
        let range = AddressRange { start: v4([10, 0, 0, 1]), end: v4([10, 0, 0, 9]) };
        assert!(range.contains(v4([10, 0, 0, 1])) && range.contains(v4([10, 0, 0, 9])));
        assert!(!range.contains(v4([10, 0, 0, 0])) && !range.contains(v4([10, 0, 0, 10])));
        assert!(!range.contains("::a00:1".parse().unwrap()));
    }

    #[test]
    fn a_packet_without_ports_matches_any_port_and_opaque_only() {
        let mut s = Selector::addresses(v4([10, 0, 0, 0]), v4([10, 0, 0, 255]));
        assert!(s.matches(v4([10, 0, 0, 7]), 17, None));
        (s.start_port, s.end_port) = (53, 53);
        assert!(s.matches(v4([10, 0, 0, 7]), 17, Some(53)));
        assert!(!s.matches(v4([10, 0, 0, 7]), 17, Some(54)));
        assert!(!s.matches(v4([10, 0, 0, 7]), 17, None));
        (s.start_port, s.end_port) = (65535, 0);
        assert!(s.matches(v4([10, 0, 0, 7]), 17, None));
        assert!(!s.matches(v4([10, 0, 0, 7]), 17, Some(53)));
    }

    fn ports(protocol: u8, start_port: u16, end_port: u16) -> Selector {
        let all = Selector::addresses(v4([10, 0, 0, 0]), v4([10, 0, 0, 255]));
        Selector { protocol, start_port, end_port, ..all }
    }

    #[test]
    fn a_selector_holds_what_is_narrower_in_each_part() {
        let (any, tcp, https) = (ports(0, 0, 65535), ports(6, 0, 65535), ports(6, 443, 443));
        let opaque = ports(6, 65535, 0);
        assert!(
            any.holds(&any)
                && any.holds(&tcp)
                && tcp.holds(&https)
                && any.holds(&opaque)
                && opaque.holds(&opaque)
        );
        assert!(
            !tcp.holds(&any)
                && !https.holds(&tcp)
                && !opaque.holds(&tcp)
                && !ports(17, 0, 65535).holds(&https)
        );
        assert!(!ports(6, 1, 65535).holds(&opaque), "a range of ports is not any port");
        let host = Selector::of_packet(v4([10, 0, 0, 7]), 6, Some(443));
        assert!(https.holds(&host) && !host.holds(&https));
    }

    #[test]
    fn of_two_sides_only_what_one_packet_can_be_makes_a_pair() {
        let (any, tcp, udp) = (ports(0, 0, 65535), ports(6, 443, 443), ports(17, 0, 65535));
        let v6 = Selector::addresses("2001:db8::".parse().unwrap(), "2001:db8::ff".parse().unwrap());
        let set = SelectorSet { local: vec![tcp, udp], remote: vec![any, v6] };
        let pairs: Vec<_> = set.pairs().map(|(l, r)| (l.protocol, r.protocol)).collect();
        assert_eq!(pairs, [(6, 6), (17, 17)]);
        assert_eq!(SelectorSet { local: vec![tcp], remote: vec![udp] }.pairs().count(), 0);
        // What the remote side says of the protocol counts for the local one too.
        let narrow = SelectorSet { local: vec![any], remote: vec![tcp] };
        let wide = SelectorSet { local: vec![ports(6, 0, 65535)], remote: vec![any] };
        assert!(wide.holds(&narrow) && !narrow.holds(&wide));
    }

    #[test]
    fn intersections_narrow_every_part() {
        let mut a = Selector::addresses(v4([10, 0, 0, 0]), v4([10, 0, 0, 255]));
        let mut b = Selector::addresses(v4([10, 0, 0, 128]), v4([10, 0, 1, 255]));
        b.protocol = 6;
        (b.start_port, b.end_port) = (80, 90);
        let both = a.intersection(&b).unwrap();
        assert_eq!(both.addresses, AddressRange { start: v4([10, 0, 0, 128]), end: v4([10, 0, 0, 255]) });
        assert_eq!((both.protocol, both.start_port, both.end_port), (6, 80, 90));
        (a.start_port, a.end_port) = (91, 95);
        assert_eq!(a.intersection(&b), None);
        (a.start_port, a.end_port) = (65535, 0);
        assert_eq!(a.intersection(&b), None);
    }
}
