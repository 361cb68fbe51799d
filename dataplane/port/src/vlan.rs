//! The tag of a VLAN (IEEE 802.1Q): taken off what a port receives and put on what it sends, so that the engine sees plain
//! Ethernet alone. Either way the two addresses move by four octets, and nothing else.

use spindle_engine::Frame;

/// Octets of a tag.
const TAG: usize = 4;
/// Octets of both addresses, behind which the tag stands.
const ADDRESSES: usize = 12;
/// Octets of an Ethernet header.
const HEADER: usize = 14;
/// Section 9.6: which tag this is.
const TPID: [u8; 2] = [0x81, 0];
/// The bits of the VID; above them stand the priority and the drop eligible indicator.
const VID: u16 = 0x0fff;

/// A VLAN of an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vlan(u16);

impl Vlan {
    /// By its VID, 1 to 4094.
    pub fn new(id: u16) -> Option<Vlan> {
        (1..=4094).contains(&id).then_some(Vlan(id))
    }

    /// Its VID.
    pub fn id(self) -> u16 {
        self.0
    }

    /// Takes the tag off. XDP gives us no frame of another network; if one comes all the same, nothing is left of it, and the
    /// engine drops and counts that as no IP.
    #[inline]
    pub fn strip(self, frame: &mut impl Frame) {
        let octets = frame.data_mut();
        if octets.len() >= HEADER + TAG
            && octets[ADDRESSES..][..2] == TPID
            && u16::from_be_bytes([octets[14], octets[15]]) & VID == self.0
        {
            octets.copy_within(..ADDRESSES, TAG);
            frame.shrink_front(TAG);
        } else {
            frame.truncate(0);
        }
    }

    /// Puts the tag on, with priority 0; `false` (and no change) if the frame has no header or no room in front of it.
    #[inline]
    pub fn push(self, frame: &mut impl Frame) -> bool {
        if frame.data().len() < HEADER || !frame.grow_front(TAG) {
            return false;
        }
        let octets = frame.data_mut();
        octets.copy_within(TAG..TAG + ADDRESSES, 0);
        octets[ADDRESSES..][..2].copy_from_slice(&TPID);
        octets[ADDRESSES + 2..][..2].copy_from_slice(&self.0.to_be_bytes());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CHUNK, HEADROOM, Umem};
    use proptest::prelude::*;
    use spindle_engine::MemoryFrame;

    fn vlan(id: u16) -> Vlan {
        Vlan::new(id).unwrap()
    }

    fn stripped(of: Vlan, octets: &[u8]) -> Vec<u8> {
        let mut frame = MemoryFrame::new(octets);
        of.strip(&mut frame);
        frame.data().to_vec()
    }

    #[test]
    fn ids_are_those_of_802_1q_that_name_a_vlan() {
        assert_eq!(
            [0, 1, 4094, 4095].map(|id| Vlan::new(id).map(Vlan::id)),
            [None, Some(1), Some(4094), None]
        );
    }

    proptest! {
        #[test]
        fn a_tag_that_is_put_on_comes_off_again(id in 1..4095_u16, octets in proptest::collection::vec(any::<u8>(), 14..2000)) {
            let mut frame = MemoryFrame::new(&octets);
            prop_assert!(vlan(id).push(&mut frame));
            let tagged = frame.data().to_vec();
            prop_assert_eq!(&tagged[..12], &octets[..12]);
            prop_assert_eq!(&tagged[12..14], [0x81, 0]);
            prop_assert_eq!(u16::from_be_bytes([tagged[14], tagged[15]]), id, "priority 0");
            prop_assert_eq!(&tagged[16..], &octets[12..]);
            vlan(id).strip(&mut frame);
            prop_assert_eq!(frame.data(), &octets[..]);
        }

        /// Sections 9.6 a and b: priority and drop eligibility say nothing of the VLAN.
        #[test]
        fn what_has_not_this_very_tag_is_emptied(
            id in 1..4095_u16, tpid in prop_oneof![Just(0x8100_u16), any::<u16>()], control: u16, same: bool,
            octets in proptest::collection::vec(any::<u8>(), 14..64)
        ) {
            let control = if same { control & 0xf000 | id } else { control };
            let tag = [tpid.to_be_bytes(), control.to_be_bytes()].concat();
            let frame = [&octets[..12], &tag, &octets[12..]].concat();
            let is_own = tpid == 0x8100 && control & 0xfff == id;
            prop_assert_eq!(stripped(vlan(id), &frame), if is_own { octets } else { Vec::new() });
        }
    }

    #[test]
    fn a_frame_cut_short_at_any_octet_is_emptied_until_it_is_an_ethernet_header() {
        let whole = [&[2; 12][..], &[0x81, 0, 0xe0, 100, 8, 0, 0x45, 0]].concat();
        for length in 0..=whole.len() {
            let left = stripped(vlan(100), &whole[..length]);
            assert_eq!(left.len(), if length < 18 { 0 } else { length - 4 }, "{length}");
        }
    }

    #[test]
    fn a_tag_needs_a_header_and_room_in_front_of_it() {
        for length in 0..14 {
            assert!(!vlan(1).push(&mut MemoryFrame::new(&vec![0; length])));
        }
        let mut frame = MemoryFrame::new(&[7; 60]);
        assert!(frame.grow_front(MemoryFrame::HEADROOM - 3));
        let before = frame.data().to_vec();
        assert!(!vlan(1).push(&mut frame));
        assert_eq!(frame.data(), before);
    }

    /// The longest frame of ours: as long as a chunk lets a fresh one be, and the tag goes before it.
    #[test]
    fn the_longest_frame_has_room_for_a_tag() {
        let (_, mut pool) = Umem::create(1).unwrap();
        let mut frame = pool.take().unwrap();
        assert!(frame.reset(CHUNK - HEADROOM));
        assert!(vlan(4094).push(&mut frame));
        assert_eq!(frame.data().len(), CHUNK - HEADROOM + 4);
        pool.put(frame);
    }
}
