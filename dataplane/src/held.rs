//! Frames that wait: for a next hop, or for an SA. A bounded number, each for a bounded time.

use arrayvec::ArrayVec;
use spindle_abi::Time;
use spindle_engine::PortId;
use std::net::IpAddr;
use std::time::Duration;

/// The side that a frame leaves by, and where to: what its next hop is asked by.
pub(crate) type Towards = (PortId, IpAddr);

/// Frames that wait for their next hops, at most.
pub(crate) const UNRESOLVED: usize = 64;
/// Frames that wait for SAs, at most, all policies together.
pub(crate) const WITHOUT_SA: usize = 256;

/// One frame that waits.
pub(crate) struct Waiting<K, F> {
    /// For what.
    pub(crate) key: K,
    pub(crate) since: Time,
    pub(crate) frame: F,
}

/// All that wait, oldest first; at most `MAX`.
pub(crate) struct Held<K, F, const MAX: usize> {
    frames: ArrayVec<Waiting<K, F>, MAX>,
    patience: Duration,
}

impl<K: Copy, F, const MAX: usize> Held<K, F, MAX> {
    /// Each frame waits so long.
    pub(crate) fn new(patience: Duration) -> Held<K, F, MAX> {
        Held { frames: ArrayVec::new(), patience }
    }

    /// Keeps a frame, or gives it back if there is no room.
    pub(crate) fn hold(&mut self, key: K, since: Time, frame: F) -> Result<(), F> {
        let waiting = Waiting { key, since, frame };
        self.frames.try_push(waiting).map_err(|refused| refused.element().frame)
    }

    /// How many frames wait for this?
    pub(crate) fn count(&self, is_it: impl Fn(K) -> bool) -> usize {
        self.frames.iter().filter(|w| is_it(w.key)).count()
    }

    /// Is there no room for another one?
    pub(crate) fn is_full(&self) -> bool {
        self.frames.is_full()
    }

    /// Takes the oldest frame that waits for this.
    pub(crate) fn take_for(&mut self, is_it: impl Fn(K) -> bool) -> Option<Waiting<K, F>> {
        self.take(|w| is_it(w.key))
    }

    /// Takes the oldest frame whose time is over.
    pub(crate) fn take_expired(&mut self, now: Time) -> Option<Waiting<K, F>> {
        let patience = self.patience;
        self.take(|w| now.since(w.since) > patience)
    }

    /// What is waited for, some of it more than once.
    pub(crate) fn keys(&self) -> impl Iterator<Item = K> + '_ {
        self.frames.iter().map(|w| w.key)
    }

    fn take(&mut self, is_it: impl Fn(&Waiting<K, F>) -> bool) -> Option<Waiting<K, F>> {
        let at = self.frames.iter().position(is_it)?;
        Some(self.frames.remove(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(1);

    #[test]
    fn frames_leave_in_their_order_by_what_they_wait_for_or_by_age() {
        let mut held: Held<u8, u32, 8> = Held::new(PATIENCE);
        for (key, at, frame) in [(1, 0, 10), (2, 5, 20), (1, 9, 11)] {
            assert!(held.hold(key, Time(at), frame).is_ok());
        }
        assert_eq!((held.count(|key| key == 1), held.count(|key| key == 3)), (2, 0));
        assert_eq!(held.take_for(|key| key == 1).unwrap().frame, 10);
        assert_eq!(held.take_for(|key| key == 1).unwrap().frame, 11);
        assert!(held.take_for(|key| key == 1).is_none());
        assert!(held.take_expired(Time(5).after(PATIENCE)).is_none());
        assert_eq!(held.take_expired(Time(6).after(PATIENCE)).unwrap().frame, 20);
    }

    #[test]
    fn a_frame_too_many_is_given_back() {
        let mut held: Held<u8, u32, 3> = Held::new(PATIENCE);
        for frame in 0..3 {
            assert!(!held.is_full() && held.hold(1, Time(0), frame).is_ok());
        }
        assert_eq!((held.is_full(), held.hold(1, Time(0), 999)), (true, Err(999)));
    }
}
