//! ESP that is longer than its path leaves in fragments: only around IPv6 packets of up to 1,280 octets, for every link
//! of IPv6 carries these, and a tunnel is one (RFC 8200 section 5, RFC 2473 section 7.1). The peer puts them together. All else is
//! fragmented before it is encapsulated, or refused.

use crate::{ArrayVec, Counter, DropReason, ETHERNET, Engine, Frame, Output, PortId};
use spindle_wire::{ipv6, protocol};
use std::net::IpAddr;

/// Ethernet and IPv6 header.
const HEAD: usize = ETHERNET + ipv6::HEADER_LENGTH;

impl Engine {
    /// Sends ESP to a peer over a path for packets of so many octets.
    pub(crate) fn send_in_fragments<F: Frame>(
        &mut self,
        remote: IpAddr,
        mtu: usize,
        mut frame: F,
        out: &mut impl Output<F>,
    ) {
        let length = frame.data().len() - ETHERNET;
        let rest = match remote {
            IpAddr::V4(_) => self.split(length, mtu, &mut frame, out),
            IpAddr::V6(_) => split_ipv6(mtu, &mut frame, out).map(|rest| ArrayVec::from_iter([rest])),
        };
        let Some(mut rest) = rest else { return self.discard(frame, DropReason::TooBig, out) };
        self.counters.add(Counter::FragmentedOutside, 1);
        self.counters.add(Counter::Created, rest.len() as u64);
        self.send(PortId::Outside, remote, frame, out);
        for piece in rest.drain(..) {
            self.send(PortId::Outside, remote, piece, out);
        }
    }
}

/// Makes an IPv6 packet without extension headers its first fragment (RFC 8200 section 4.5), and returns the second one.
/// Two are enough where ESP around 1,280 octets meets a path of as many.
fn split_ipv6<F: Frame>(mtu: usize, frame: &mut F, out: &mut impl Output<F>) -> Option<F> {
    let step = mtu.checked_sub(ipv6::HEADER_LENGTH + ipv6::FRAGMENT_LENGTH)? & !7;
    let rest = frame.data().len().checked_sub(HEAD + step)?;
    if step == 0 || rest == 0 || rest > step || !frame.grow_front(ipv6::FRAGMENT_LENGTH) {
        return None;
    }
    let octets = frame.data_mut();
    octets.copy_within(ipv6::FRAGMENT_LENGTH..ipv6::FRAGMENT_LENGTH + HEAD, 0);
    // The ICV's end is as good as random, as RFC 7739 wants it.
    let identification = u32::from_be_bytes(*octets.last_chunk()?);
    let next = octets[ETHERNET + 6];
    let head = HEAD + ipv6::FRAGMENT_LENGTH;
    let size = head + rest;
    let mut second = out.allocate(size).filter(|second| second.data().len() == size)?;
    second.data_mut()[..HEAD].copy_from_slice(&octets[..HEAD]);
    second.data_mut()[head..].copy_from_slice(&octets[head + step..]);
    frame.truncate(head + step);
    let fragments = [(frame.data_mut(), 0, true), (second.data_mut(), step / 8, false)];
    for (octets, offset, more) in fragments {
        let length = (octets.len() - HEAD) as u16;
        octets[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&length.to_be_bytes());
        octets[ETHERNET + 6] = protocol::FRAGMENT;
        ipv6::Fragment { offset: offset as u16, more, identification }.emit(next, &mut octets[HEAD..]);
    }
    Some(second)
}
