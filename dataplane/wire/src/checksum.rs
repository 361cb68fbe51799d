//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

use std::net::IpAddr;

/// Folds a sum of 16-bit words into 16 bits, the carries added back in.
#[inline]
pub fn fold(sum: u64) -> u16 {
    // Each step halves the width, and each leaves at most one carry for the next: no branch is needed.
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// The same of a few words, which carry twice at most.
#[inline]
pub(crate) fn fold_few(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// The one's complement sum, not yet folded, of the octets as big-endian words; an odd last octet is padded.
#[inline]
pub fn sum(octets: &[u8]) -> u64 {
    // Words of 32 bits add up to the same after folding; 2^32 of them fit.
    let mut total = 0u64;
    let mut chunks = octets.chunks_exact(4);
    for chunk in &mut chunks {
        total += u64::from(u32::from_be_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]));
    }
    let mut last = [0; 4];
    let rest = chunks.remainder();
    last[..rest.len()].copy_from_slice(rest);
    total + u64::from(u32::from_be_bytes(last))
}

/// The sum over the pseudo-header of TCP and UDP (RFC 9293 section 3.1, RFC 768; for IPv6 RFC 8200 section 8.1), not yet
/// folded. Both addresses are of one version.
#[inline]
pub fn pseudo_header(
    source: impl Into<IpAddr>,
    destination: impl Into<IpAddr>,
    protocol: u8,
    length: u16,
) -> u64 {
    let address = |address: IpAddr| match address {
        IpAddr::V4(address) => u64::from(address.to_bits()),
        IpAddr::V6(address) => sum(&address.octets()),
    };
    address(source.into()) + address(destination.into()) + u64::from(protocol) + u64::from(length)
}

/// The checksum of these octets: the complement of their folded sum. Zero over octets that hold a right one.
#[inline]
pub fn internet(octets: &[u8]) -> u16 {
    !fold(sum(octets))
}

/// Do these octets hold a right checksum? In whichever order a machine reads words, their sum is all ones then (RFC 1071
/// section 2, B).
#[inline]
pub fn is_right(octets: &[u8; 20]) -> bool {
    let (words, _) = octets.as_chunks();
    fold(words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum()) == 0xffff
}

/// The checksum after a 16-bit word of its octets changed (RFC 1624 section 3, equation 3).
#[inline]
pub fn update(checksum: u16, old: u16, new: u16) -> u16 {
    !fold_few(u32::from(!checksum) + u32::from(!old) + u32::from(new))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 section 3 gives this example.
    #[test]
    fn the_example_of_rfc_1071_sums_up() {
        assert_eq!(fold(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])), 0xddf2);
    }

    /// RFC 1624 section 4 gives this example, in which older methods yield 0xffff.
    #[test]
    fn the_example_of_rfc_1624_updates_to_zero() {
        assert_eq!(update(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    proptest! {
        #[test]
        fn folding_is_adding_carries_until_there_are_none(sum: u64) {
            let mut slow = sum;
            while slow > 0xffff {
                slow = (slow & 0xffff) + (slow >> 16);
            }
            for sum in [sum, sum | 0xffff_ffff_0000_0000, u64::MAX, 0xffff_ffff, 0x1_ffff, 0x1_0000, 0] {
                prop_assert_eq!(u64::from(fold(sum)) % 0xffff, sum % 0xffff);
                prop_assert_eq!(fold(sum) == 0, sum == 0);
            }
            prop_assert_eq!(u64::from(fold(sum)), slow);
        }

        #[test]
        fn summing_is_as_word_by_word(octets in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut slow = 0u64;
            for pair in octets.chunks(2) {
                slow += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
            }
            prop_assert_eq!(fold(sum(&octets)), fold(slow));
        }

        #[test]
        fn an_update_is_as_good_as_a_new_sum(mut words in proptest::collection::vec(any::<u16>(), 2..40),
                                             at in any::<prop::sample::Index>(), new: u16) {
            // A header is never all zeros; over all zeros the two forms of zero differ.
            words[0] |= 0x4000;
            let octets = |w: &[u16]| w.iter().flat_map(|x| x.to_be_bytes()).collect::<Vec<_>>();
            let before = internet(&octets(&words));
            let at = 1 + at.index(words.len() - 1);
            let old = std::mem::replace(&mut words[at], new);
            prop_assert_eq!(update(before, old, new), internet(&octets(&words)));
        }
    }
}
