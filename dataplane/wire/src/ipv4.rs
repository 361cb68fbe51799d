//! IPv4 (RFC 791): header with options and fragments, checksum kept right by every setter.

use crate::{Malformed, be16, be32, checksum, put16};
use std::net::Ipv4Addr;

/// Octets of a header without options.
pub const HEADER_LENGTH: usize = 20;
/// Octets of options at most.
pub const MAX_OPTIONS: usize = 40;

/// The first octet of a header without options.
pub(crate) const PLAIN: u8 = 0x45;
/// Where the header names the payload's protocol.
pub(crate) const PROTOCOL: usize = 9;

const OPTION_END: u8 = 0;
const OPTION_NO_OPERATION: u8 = 1;
/// In an option's type: it goes into each fragment.
const COPIED: u8 = 0x80;

/// A packet's octets. What lies behind its total length (Ethernet padding) is never shown.
#[derive(Clone, Copy, Debug)]
pub struct Packet<T>(T);

impl<T: AsRef<[u8]>> Packet<T> {
    /// Version 4, and header length ≤ total length ≤ octets? The checksum is [`Packet::verify_checksum`]'s.
    #[inline]
    pub fn new_checked(octets: T) -> Result<Packet<T>, Malformed> {
        let o = octets.as_ref();
        if o.len() < HEADER_LENGTH {
            return Err(Malformed::Truncated);
        }
        if o[0] >> 4 != 4 {
            return Err(Malformed::Field("IP version"));
        }
        let header = usize::from(o[0] & 15) * 4;
        let total = usize::from(be16(o, 2));
        if header < HEADER_LENGTH || total < header {
            return Err(Malformed::Field("IPv4 length"));
        }
        if total > o.len() {
            return Err(Malformed::Truncated);
        }
        Ok(Packet(octets))
    }

    #[inline]
    fn octets(&self) -> &[u8] {
        self.0.as_ref()
    }

    /// Octets of the header, options included.
    #[inline]
    pub fn header_length(&self) -> usize {
        usize::from(self.octets()[0] & 15) * 4
    }

    /// Octets of the packet.
    #[inline]
    pub fn total_length(&self) -> usize {
        usize::from(be16(self.octets(), 2))
    }

    /// DSCP and ECN (RFC 2474, RFC 3168): the former Type of Service.
    #[inline]
    pub fn traffic_class(&self) -> u8 {
        self.octets()[1]
    }

    /// Identification of the fragments of one packet.
    #[inline]
    pub fn identification(&self) -> u16 {
        be16(self.octets(), 4)
    }

    /// Must not be fragmented?
    #[inline]
    pub fn dont_fragment(&self) -> bool {
        self.octets()[6] & 0x40 != 0
    }

    /// Is this not the last fragment?
    #[inline]
    pub fn more_fragments(&self) -> bool {
        self.octets()[6] & 0x20 != 0
    }

    /// Where this fragment belongs, in units of 8 octets.
    #[inline]
    pub fn fragment_offset(&self) -> u16 {
        be16(self.octets(), 6) & 0x1fff
    }

    /// Is it less than a whole packet?
    #[inline]
    pub fn is_fragment(&self) -> bool {
        be16(self.octets(), 6) & 0x3fff != 0
    }

    /// Time to live.
    #[inline]
    pub fn ttl(&self) -> u8 {
        self.octets()[8]
    }

    /// Protocol of the payload.
    #[inline]
    pub fn protocol(&self) -> u8 {
        self.octets()[9]
    }

    /// The header's checksum.
    #[inline]
    pub fn checksum(&self) -> u16 {
        be16(self.octets(), 10)
    }

    /// Whence.
    #[inline]
    pub fn source(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(be32(self.octets(), 12))
    }

    /// Whereto.
    #[inline]
    pub fn destination(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(be32(self.octets(), 16))
    }

    /// The header's options, raw.
    #[inline]
    pub fn options(&self) -> &[u8] {
        &self.octets()[HEADER_LENGTH..self.header_length()]
    }

    /// What follows the header, within the total length.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        &self.octets()[self.header_length()..self.total_length()]
    }

    /// Is the header's checksum right?
    #[inline]
    pub fn verify_checksum(&self) -> bool {
        let octets = self.octets();
        match octets.first_chunk::<HEADER_LENGTH>() {
            // Nearly all: a length that the compiler knows.
            Some(header) if octets[0] & 15 == 5 => checksum::is_right(header),
            _ => checksum::internet(&octets[..self.header_length()]) == 0,
        }
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Packet<T> {
    /// Changes one 16-bit word of the header, and the checksum with it.
    #[inline]
    fn set_word(&mut self, at: usize, new: u16) {
        let octets = self.0.as_mut();
        let updated = checksum::update(be16(octets, 10), be16(octets, at), new);
        put16(octets, at, new);
        put16(octets, 10, updated);
    }

    /// One hop less. At 0 it stays.
    #[inline]
    pub fn decrement_ttl(&mut self) {
        if self.ttl() > 0 {
            decrement_ttl(self.0.as_mut());
        }
    }

    /// Sets DSCP and ECN.
    #[inline]
    pub fn set_traffic_class(&mut self, class: u8) {
        let word = be16(self.octets(), 0) & 0xff00 | u16::from(class);
        self.set_word(0, word);
    }

    /// Sets flags and offset: `offset` in units of 8 octets.
    pub fn set_fragment(&mut self, dont_fragment: bool, more_fragments: bool, offset: u16) {
        let flags = u16::from(dont_fragment) << 14 | u16::from(more_fragments) << 13;
        self.set_word(6, flags | offset & 0x1fff);
    }

    /// What follows the header, to be changed.
    #[inline]
    pub fn payload_mut(&mut self) -> &mut [u8] {
        let (start, end) = (self.header_length(), self.total_length());
        &mut self.0.as_mut()[start..end]
    }
}

/// One hop less for the header at the front, whose TTL is not 0.
#[inline]
pub fn decrement_ttl(octets: &mut [u8]) {
    let Some(header) = octets.first_chunk_mut::<HEADER_LENGTH>() else { return };
    header[8] -= 1;
    // The word with the TTL becomes 0x100 less, whatever else is in it.
    let checksum = checksum::update(u16::from_be_bytes([header[10], header[11]]), 0x100, 0);
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
}

/// Makes the header at the front, of this length with its options, that of a fragment which is all these octets.
pub fn rewrite_as_fragment(octets: &mut [u8], header_length: usize, more_fragments: bool, offset: u16) {
    let length = octets.len().min(usize::from(u16::MAX)) as u16;
    octets[0] = 0x40 | (header_length / 4) as u8;
    put16(octets, 2, length);
    put16(octets, 6, u16::from(more_fragments) << 13 | offset & 0x1fff);
    fill_checksum(&mut octets[..header_length]);
}

/// Makes the checksum of a whole header right.
#[inline]
pub(crate) fn fill_checksum(header: &mut [u8]) {
    put16(header, 10, 0);
    let checksum = checksum::internet(header);
    put16(header, 10, checksum);
}

/// The options that each fragment bears, those whose copied flag is set (RFC 791 section 3.1), padded to whole words;
/// their length. What follows a malformed one is left out.
pub fn copied_options(options: &[u8]) -> ([u8; MAX_OPTIONS], usize) {
    let (mut copied, mut length) = ([0; MAX_OPTIONS], 0);
    let mut rest = options;
    while let [kind, tail @ ..] = rest {
        let size = match (*kind, tail) {
            (OPTION_END, _) => break,
            (OPTION_NO_OPERATION, _) => 1,
            (_, [size, ..]) if *size >= 2 => usize::from(*size),
            _ => break,
        };
        let Some((option, behind)) = rest.split_at_checked(size) else { break };
        if kind & COPIED != 0
            && let Some(room) = copied.get_mut(length..length + size)
        {
            room.copy_from_slice(option);
            length += size;
        }
        rest = behind;
    }
    (copied, length.next_multiple_of(4))
}

/// A header without options.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Repr {
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// Identification of the fragments of one packet.
    pub identification: u16,
    /// Must not be fragmented?
    pub dont_fragment: bool,
    /// Is this not the last fragment?
    pub more_fragments: bool,
    /// In units of 8 octets, below 8192.
    pub fragment_offset: u16,
    /// Time to live.
    pub ttl: u8,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Whence.
    pub source: Ipv4Addr,
    /// Whereto.
    pub destination: Ipv4Addr,
    /// Octets behind the header, at most 65,515.
    pub payload_length: u16,
}

impl Repr {
    /// What the header says; its options are left out.
    pub fn parse<T: AsRef<[u8]>>(packet: &Packet<T>) -> Result<Repr, Malformed> {
        if !packet.verify_checksum() {
            return Err(Malformed::Field("IPv4 checksum"));
        }
        Ok(Repr {
            traffic_class: packet.traffic_class(),
            identification: packet.identification(),
            dont_fragment: packet.dont_fragment(),
            more_fragments: packet.more_fragments(),
            fragment_offset: packet.fragment_offset(),
            ttl: packet.ttl(),
            protocol: packet.protocol(),
            source: packet.source(),
            destination: packet.destination(),
            payload_length: packet.payload().len() as u16,
        })
    }

    /// Octets that [`Repr::emit`] writes.
    pub const fn buffer_length(&self) -> usize {
        HEADER_LENGTH
    }

    /// Writes the header, checksum included, to the front.
    #[inline]
    pub fn emit(&self, octets: &mut [u8]) {
        let flags = u16::from(self.dont_fragment) << 14 | u16::from(self.more_fragments) << 13;
        octets[0] = 0x45;
        octets[1] = self.traffic_class;
        put16(octets, 2, self.payload_length.saturating_add(HEADER_LENGTH as u16));
        put16(octets, 4, self.identification);
        put16(octets, 6, flags | self.fragment_offset & 0x1fff);
        octets[8] = self.ttl;
        octets[9] = self.protocol;
        put16(octets, 10, 0);
        octets[12..16].copy_from_slice(&self.source.octets());
        octets[16..20].copy_from_slice(&self.destination.octets());
        let checksum = checksum::internet(&octets[..HEADER_LENGTH]);
        put16(octets, 10, checksum);
    }
}

/// The outer headers of a tunnel: without options or fragments, always of one TTL and protocol and between the same
/// addresses; so most of the sum is known beforehand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outer {
    source: Ipv4Addr,
    destination: Ipv4Addr,
    ttl: u8,
    protocol: u8,
    /// Of the words that never change, the checksum's complement as in RFC 1071.
    sum: u16,
}

impl Outer {
    /// Those with these fields.
    pub fn new(source: Ipv4Addr, destination: Ipv4Addr, ttl: u8, protocol: u8) -> Outer {
        let words = [u64::from(source.to_bits()), u64::from(destination.to_bits())];
        let fixed = u64::from(PLAIN) << 8 | u64::from(u16::from_be_bytes([ttl, protocol])) << 16;
        Outer { source, destination, ttl, protocol, sum: checksum::fold(words[0] + words[1] + fixed) }
    }

    /// Whence.
    #[inline]
    pub fn source(&self) -> Ipv4Addr {
        self.source
    }

    /// Whereto.
    #[inline]
    pub fn destination(&self) -> Ipv4Addr {
        self.destination
    }

    /// Writes one, checksum included, to the front: as [`Repr::emit`].
    #[inline]
    pub fn emit(
        &self,
        traffic_class: u8,
        identification: u16,
        dont_fragment: bool,
        payload_length: u16,
        octets: &mut [u8],
    ) {
        let length = payload_length.saturating_add(HEADER_LENGTH as u16);
        let flags = u16::from(dont_fragment) << 14;
        let words = [u16::from(traffic_class), length, identification, flags];
        let sum = words.iter().fold(u32::from(self.sum), |sum, word| sum + u32::from(*word));
        let checksum = !checksum::fold_few(sum);
        let first = u64::from(PLAIN) << 56
            | u64::from(traffic_class) << 48
            | u64::from(length) << 32
            | u64::from(identification) << 16
            | u64::from(flags);
        let second = u32::from(self.ttl) << 24 | u32::from(self.protocol) << 16 | u32::from(checksum);
        let octets = &mut octets[..HEADER_LENGTH];
        octets[..8].copy_from_slice(&first.to_be_bytes());
        octets[8..12].copy_from_slice(&second.to_be_bytes());
        octets[12..16].copy_from_slice(&self.source.octets());
        octets[16..].copy_from_slice(&self.destination.octets());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn repr() -> impl Strategy<Value = Repr> {
        (any::<(u8, u16, bool, bool)>(), 0u16..8192, any::<(u8, u8, [u8; 4], [u8; 4])>(), 0u16..100).prop_map(
            |((traffic_class, identification, df, mf), offset, (ttl, protocol, source, destination), n)| {
                Repr {
                    traffic_class,
                    identification,
                    dont_fragment: df,
                    more_fragments: mf,
                    fragment_offset: offset,
                    ttl,
                    protocol,
                    source: source.into(),
                    destination: destination.into(),
                    payload_length: n,
                }
            },
        )
    }

    proptest! {
        /// RFC 1071: a sum that is partly known beforehand is the same.
        #[test]
        fn an_outer_header_is_the_one_that_is_written_anew(
            source: u32, destination: u32, ttl: u8, protocol: u8, traffic_class: u8, identification: u16,
            dont_fragment: bool, payload_length in 0u16..=65_515,
        ) {
            let (source, destination) = (Ipv4Addr::from_bits(source), Ipv4Addr::from_bits(destination));
            let repr = Repr {
                traffic_class, identification, dont_fragment, more_fragments: false, fragment_offset: 0, ttl, protocol,
                source, destination, payload_length,
            };
            let (mut anew, mut octets) = ([0; HEADER_LENGTH], [0; HEADER_LENGTH]);
            repr.emit(&mut anew);
            let outer = Outer::new(source, destination, ttl, protocol);
            outer.emit(traffic_class, identification, dont_fragment, payload_length, &mut octets);
            prop_assert_eq!(octets, anew);
        }

        #[test]
        fn a_header_comes_back_as_it_was(repr in repr()) {
            let mut octets = vec![0xa5; HEADER_LENGTH + usize::from(repr.payload_length) + 7];
            repr.emit(&mut octets);
            let packet = Packet::new_checked(&octets).unwrap();
            prop_assert_eq!(Repr::parse(&packet).unwrap(), repr);
            prop_assert_eq!(packet.payload().len(), usize::from(repr.payload_length));
        }

        #[test]
        fn setters_keep_the_checksum_right(repr in repr(), class: u8, offset in 0u16..8192, df: bool) {
            let mut octets = vec![0; HEADER_LENGTH + usize::from(repr.payload_length)];
            repr.emit(&mut octets);
            let mut packet = Packet::new_checked(&mut octets[..]).unwrap();
            packet.decrement_ttl();
            packet.set_traffic_class(class);
            packet.set_fragment(df, true, offset);
            prop_assert!(packet.verify_checksum());
            prop_assert_eq!(packet.ttl(), repr.ttl.saturating_sub(1));
            prop_assert_eq!((packet.traffic_class(), packet.fragment_offset()), (class, offset));
            prop_assert_eq!((packet.dont_fragment(), packet.more_fragments()), (df, true));
        }

        /// RFC 791 section 3.1.
        #[test]
        fn options_of_fragments_are_those_to_be_copied(options in proptest::collection::vec(any::<u8>(), 0..=40)) {
            let (copied, length) = copied_options(&options);
            prop_assert!(length <= options.len().next_multiple_of(4) && length % 4 == 0);
            prop_assert_eq!(copied_options(&copied[..length]), (copied, length));
            let made = [7, 3, 4, 0x94, 4, 0, 0, 1, 0x83, 3, 4, 68, 4, 5, 0];
            prop_assert_eq!(&copied_options(&made).0[..8], [0x94, 4, 0, 0, 0x83, 3, 4, 0]);
        }

        #[test]
        fn mutated_octets_parse_or_are_refused(repr in repr(), at in 0usize..20, to: u8, cut in 0usize..130) {
            let mut octets = vec![0; HEADER_LENGTH + usize::from(repr.payload_length)];
            repr.emit(&mut octets);
            octets[at] = to;
            octets.truncate(cut);
            if let Ok(mut packet) = Packet::new_checked(&mut octets[..]) {
                let _ = (packet.options().len(), Repr::parse(&packet));
                prop_assert_eq!(packet.header_length() + packet.payload().len(), packet.total_length());
                packet.decrement_ttl();
                let _ = packet.payload_mut();
            }
        }
    }
}
