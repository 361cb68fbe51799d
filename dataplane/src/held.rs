//! Frames that wait for their next hop: at most [`Held::MAX`], each for [`Held::PATIENCE`].

use arrayvec::ArrayVec;
use spindle_abi::Time;
use spindle_engine::PortId;
use std::net::IpAddr;
use std::time::Duration;

/// One frame that waits.
pub(crate) struct Waiting<F> {
    pub(crate) egress: PortId,
    pub(crate) destination: IpAddr,
    pub(crate) since: Time,
    pub(crate) frame: F,
}

/// All that wait, oldest first.
pub(crate) struct Held<F> {
    frames: ArrayVec<Waiting<F>, { Held::<()>::MAX }>,
}

impl<F> Held<F> {
    /// Frames at most.
    pub(crate) const MAX: usize = 64;
    /// How long a frame waits.
    pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

    pub(crate) fn new() -> Held<F> {
        Held { frames: ArrayVec::new() }
    }

    /// Keeps a frame, or gives it back if there is no room.
    pub(crate) fn hold(&mut self, waiting: Waiting<F>) -> Result<(), F> {
        self.frames.try_push(waiting).map_err(|refused| refused.element().frame)
    }

    /// Does a frame wait for this destination?
    pub(crate) fn waits_for(&self, destination: IpAddr) -> bool {
        self.frames.iter().any(|w| w.destination == destination)
    }

    /// Takes the oldest frame for this destination.
    pub(crate) fn take_for(&mut self, destination: IpAddr) -> Option<Waiting<F>> {
        self.take(|w| w.destination == destination)
    }

    /// Takes the oldest frame whose time is over.
    pub(crate) fn take_expired(&mut self, now: Time) -> Option<Waiting<F>> {
        self.take(|w| now.since(w.since) > Self::PATIENCE)
    }

    /// The destinations that are waited for, some of them more than once.
    pub(crate) fn destinations(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.frames.iter().map(|w| w.destination)
    }

    fn take(&mut self, is_it: impl Fn(&Waiting<F>) -> bool) -> Option<Waiting<F>> {
        let at = self.frames.iter().position(is_it)?;
        Some(self.frames.remove(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(last: u8, at: u64, frame: u32) -> Waiting<u32> {
        let destination = IpAddr::from([10, 0, 0, last]);
        Waiting { egress: PortId::Inside, destination, since: Time(at), frame }
    }

    #[test]
    fn frames_leave_in_their_order_by_destination_or_age() {
        let mut held = Held::new();
        for (last, at, frame) in [(1, 0, 10), (2, 5, 20), (1, 9, 11)] {
            assert!(held.hold(waiting(last, at, frame)).is_ok());
        }
        let one = IpAddr::from([10, 0, 0, 1]);
        assert!(held.waits_for(one));
        assert_eq!(held.take_for(one).unwrap().frame, 10);
        assert_eq!(held.take_for(one).unwrap().frame, 11);
        assert!(!held.waits_for(one) && held.take_for(one).is_none());
        assert!(held.take_expired(Time(5).after(Held::<u32>::PATIENCE)).is_none());
        assert_eq!(held.take_expired(Time(6).after(Held::<u32>::PATIENCE)).unwrap().frame, 20);
    }

    #[test]
    fn a_frame_too_many_is_given_back() {
        let mut held = Held::new();
        for frame in 0..Held::<u32>::MAX as u32 {
            assert!(held.hold(waiting(1, 0, frame)).is_ok());
        }
        assert_eq!(held.hold(waiting(1, 0, 999)), Err(999));
    }
}
