//! ESP that is longer than its path leaves in fragments: around IPv6 packets of up to 1,280 octets, for every link
//! of IPv6 carries these, and a tunnel is one (RFC 8200 section 5, RFC 2473 section 7.1); and in transport mode, which takes
//! whole packets alone (RFC 4303 section 3.3.4), if these may be fragmented. The peer puts them together. All else is
//! fragmented before it is encapsulated, or refused.

use crate::outbound::FRAGMENTS;
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
            IpAddr::V6(_) => self.split_ipv6(mtu, &mut frame, out),
        };
        let Some(mut rest) = rest else { return self.discard(frame, DropReason::TooBig, out) };
        self.counters.add(Counter::FragmentedOutside, 1);
        self.counters.add(Counter::Created, rest.len() as u64);
        self.send(PortId::Outside, remote, frame, out);
        for piece in rest.drain(..) {
            self.send(PortId::Outside, remote, piece, out);
        }
    }
    /// Makes an IPv6 packet without extension headers its first fragment (RFC 8200 section 4.5), and returns the others.
    fn split_ipv6<F: Frame>(
        &mut self,
        mtu: usize,
        frame: &mut F,
        out: &mut impl Output<F>,
    ) -> Option<ArrayVec<F, FRAGMENTS>> {
        let step = mtu.checked_sub(ipv6::HEADER_LENGTH + ipv6::FRAGMENT_LENGTH)? & !7;
        let payload = frame.data().len().checked_sub(HEAD)?;
        let next = frame.data()[ETHERNET + 6];
        // The ICV's end is as good as random, as RFC 7739 wants it.
        let identification = u32::from_be_bytes(*frame.data().last_chunk()?);
        let is_plain = matches!(next, protocol::ESP | protocol::UDP);
        if !is_plain || step == 0 || payload <= step || !frame.grow_front(ipv6::FRAGMENT_LENGTH) {
            return None;
        }
        let front = HEAD + ipv6::FRAGMENT_LENGTH;
        let mut pieces = self.pieces(front, step, payload, out)?;
        let octets = frame.data_mut();
        octets.copy_within(ipv6::FRAGMENT_LENGTH..front, 0);
        let write = |octets: &mut [u8], start: usize| {
            let length = (octets.len() - HEAD) as u16;
            octets[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&length.to_be_bytes());
            octets[ETHERNET + 6] = protocol::FRAGMENT;
            let more = start + step < payload;
            let fragment = ipv6::Fragment { offset: (start / 8) as u16, more, identification };
            fragment.emit(next, &mut octets[HEAD..]);
        };
        for (piece, start) in pieces.iter_mut().zip((step..payload).step_by(step)) {
            let piece = piece.data_mut();
            piece[..HEAD].copy_from_slice(&octets[..HEAD]);
            let size = piece.len() - front;
            piece[front..].copy_from_slice(&octets[front + start..][..size]);
            write(piece, start);
        }
        frame.truncate(front + step);
        write(frame.data_mut(), 0);
        Some(pieces)
    }

    /// Frames for all fragments but the first, of `step` octets each behind `front`; `None` if there are not enough.
    pub(crate) fn pieces<F: Frame>(
        &mut self,
        front: usize,
        step: usize,
        payload: usize,
        out: &mut impl Output<F>,
    ) -> Option<ArrayVec<F, FRAGMENTS>> {
        if payload.div_ceil(step) > FRAGMENTS + 1 {
            return None;
        }
        let mut pieces: ArrayVec<F, FRAGMENTS> = ArrayVec::new();
        for start in (step..payload).step_by(step) {
            let size = front + step.min(payload - start);
            let Some(piece) = out.allocate(size).filter(|piece| piece.data().len() == size) else {
                // Frames of ours that no one received: they count as created and dropped.
                self.counters.add(Counter::Created, pieces.len() as u64);
                pieces.drain(..).for_each(|piece| self.discard(piece, DropReason::TooBig, out));
                return None;
            };
            pieces.push(piece);
        }
        Some(pieces)
    }
}
