//! What the outer header of a tunnel carries of the inner one, and back (RFC 6040, RFC 4301 section 5.1.2).

use spindle_abi::Spi;

/// Not ECN-capable.
pub const NOT_ECT: u8 = 0b00;
/// ECN-capable transport, code point 1.
pub const ECT_1: u8 = 0b01;
/// ECN-capable transport, code point 0.
pub const ECT_0: u8 = 0b10;
/// Congestion experienced.
pub const CE: u8 = 0b11;

/// TTL or hop limit of outer headers.
pub const TTL: u8 = 64;

/// What the outer header takes over from the inner packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Inner {
    pub(crate) traffic_class: u8,
    /// RFC 4301 section 5.1.2.1: DF is copied. Inner IPv6 can't be fragmented on its way, so neither may be the outer
    /// packet: its sender learns the path MTU.
    pub(crate) dont_fragment: bool,
}

impl Inner {
    #[inline]
    pub(crate) fn of(packet: &[u8]) -> Inner {
        match *packet {
            [first, second, ..] if first >> 4 == 6 => {
                Inner { traffic_class: first << 4 | second >> 4, dont_fragment: true }
            }
            [_, traffic_class, _, _, _, _, flags, ..] => {
                Inner { traffic_class, dont_fragment: flags & 0x40 != 0 }
            }
            _ => Inner { traffic_class: 0, dont_fragment: false },
        }
    }
}

/// The flow label of outer IPv6: one for each SA (RFC 6437 section 3). RFC 6438 would have one for each inner flow, but
/// that shows which packets belong together.
#[inline]
pub(crate) fn flow_label(spi: Spi) -> u32 {
    spi.0.wrapping_mul(0x9e37_79b1) >> 12
}

/// The outer traffic class: the inner DSCP, and the inner ECN field in RFC 6040's normal mode (section 4.1).
#[inline]
pub fn outer_traffic_class(inner: u8) -> u8 {
    inner
}

/// The inner traffic class after decapsulation: its own DSCP (RFC 4301 section 5.1.2), and the ECN field of
/// RFC 6040 section 4.2, figure 4. `None`: congestion on a packet that cannot show it, which must be dropped.
#[inline]
pub fn inner_traffic_class(inner: u8, outer: u8) -> Option<u8> {
    let ecn = match (inner & 3, outer & 3) {
        (NOT_ECT, CE) => return None,
        (NOT_ECT, _) => NOT_ECT,
        (CE, _) | (_, CE) => CE,
        (ECT_0, ECT_1) => ECT_1,
        (own, _) => own,
    };
    Some(inner & !3 | ecn)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6040 section 4.2, figure 4, row by row.
    #[test]
    fn decapsulation_follows_figure_4_of_rfc_6040() {
        let outers = [NOT_ECT, ECT_0, ECT_1, CE];
        let figure = [
            (NOT_ECT, [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None]),
            (ECT_0, [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)]),
            (ECT_1, [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)]),
            (CE, [Some(CE), Some(CE), Some(CE), Some(CE)]),
        ];
        for (inner, row) in figure {
            for (outer, expected) in outers.into_iter().zip(row) {
                let dscp = 0b1011_1000;
                assert_eq!(inner_traffic_class(dscp | inner, outer), expected.map(|ecn| dscp | ecn));
            }
        }
    }
}
