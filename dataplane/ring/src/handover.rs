//! How a child that lives on comes by the next attachment when the other one has died: over a socket that the supervisor
//! left to it, with the descriptors in the message.

use crate::attachment::{Inherited, inherit, inherited};
use crate::{AttachError, AttachmentFds, ControlSide, DataplaneSide, Side, descriptors};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, socketpair};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The environment variable that names a child's end of the socket, by its number.
pub const HANDOVER_ENVIRONMENT: &str = "SPINDLE_HANDOVER";

/// The supervisor's end: one for each child that it starts.
#[derive(Debug)]
pub struct Handover(OwnedFd);

impl Handover {
    /// Lets the child that `command` will start inherit its end, and tells it which it is.
    pub fn to(command: &mut Command) -> io::Result<Handover> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        command.env(HANDOVER_ENVIRONMENT, theirs.as_raw_fd().to_string());
        inherit(command, vec![Arc::new(theirs)]);
        Ok(Handover(ours))
    }

    /// Gives the child its side of the next attachment; `other` is the new process at the other side.
    pub fn give(&self, side: Side, attachment: &AttachmentFds, other: u32) -> io::Result<()> {
        let fds: Vec<_> = attachment.of(side).into_iter().map(|fd| fd.as_fd()).collect();
        descriptors::send(&self.0, &other.to_ne_bytes(), &fds)
    }
}

/// The child's end: readable when the other process has been started anew.
#[derive(Debug)]
pub struct Heir(OwnedFd);

impl Heir {
    /// Takes the socket that the supervisor left to this process; `None` where no supervisor did.
    pub fn from_environment() -> Result<Option<Heir>, AttachError> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        let Ok(number) = std::env::var(HANDOVER_ENVIRONMENT) else { return Ok(None) };
        let number = number.parse().ok().filter(|n: &RawFd| *n > 2).ok_or(AttachError::Environment)?;
        if TAKEN.swap(true, Ordering::Relaxed) {
            return Err(AttachError::Twice);
        }
        let fd = inherited(number).map_err(|e| AttachError::Part("handover", e))?;
        Ok(Some(Heir(fd)))
    }

    /// The dataplane's side of the latest attachment that came, if one did.
    pub fn dataplane_side(&self) -> Result<Option<DataplaneSide>, AttachError> {
        self.take()?.map(|(fds, _)| DataplaneSide::open(&fds)).transpose()
    }

    /// Control's side of the latest attachment that came, if one did, and the dataplane's new process.
    pub fn control_side(&self) -> Result<Option<(ControlSide, u32)>, AttachError> {
        self.take()?.map(|(fds, other)| Ok((ControlSide::open(&fds)?, other))).transpose()
    }

    /// Earlier attachments are over already.
    fn take(&self) -> Result<Option<(Inherited, u32)>, AttachError> {
        let failed = |e: io::Error| AttachError::Part("handover", e);
        let mut latest = None;
        while let Some(message) = self.receive().map_err(failed)? {
            latest = Some(message);
        }
        Ok(latest)
    }

    fn receive(&self) -> io::Result<Option<(Inherited, u32)>> {
        let mut message = [0; 4];
        let (received, fds) = match descriptors::receive(&self.0, &mut message, RecvFlags::DONTWAIT) {
            Ok(received) => received,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return Ok(None);
            }
            Err(e) => return Err(e),
        };
        match Inherited::new(fds) {
            Some(fds) if received == message.len() => Ok(Some((fds, u32::from_ne_bytes(message)))),
            // The supervisor has gone, and so shall we.
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl AsFd for Heir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Heir {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Words;
    use spindle_abi::{
        Command as Order, CommandRecord, Event, EventRecord, SaActivity, Spi, SpiState, Time, sa_slot,
    };

    fn pair() -> (Handover, Heir) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        (Handover(ours), Heir(theirs))
    }

    fn order(spi: u32) -> CommandRecord {
        CommandRecord::encode(1, &Order::SetSpiState { spi: Spi(spi), state: SpiState::Former }).unwrap()
    }

    #[test]
    fn who_lives_on_gets_fresh_rings_with_the_new_process_at_the_other_end() {
        let (handover, heir) = pair();
        let first = AttachmentFds::create(1).unwrap();
        let (mut old, dead) = (first.control_side().unwrap(), first.dataplane_side().unwrap());
        old.workers[0].commands.push(&order(300)).unwrap();
        dead.sas.as_ref()[7 * sa_slot::WORDS + sa_slot::SEQUENCE].store(64, Ordering::Relaxed);
        dead.windows.as_ref()[1 << 31].store(5, Ordering::Relaxed);
        dead.activity.store(7, SaActivity { packets: 3, bytes: 4, last: Time(5) });
        drop(dead);
        assert!(heir.control_side().unwrap().is_none());

        let second = first.successor(Side::Dataplane).unwrap();
        let mut dataplane = second.dataplane_side().unwrap();
        dataplane.counters.define("received").unwrap();
        handover.give(Side::Control, &second, 4711).unwrap();
        let (mut control, other) = heir.control_side().unwrap().expect("an attachment");
        assert_eq!((control.generation, other), (2, 4711));
        assert!(
            dataplane.workers[0].commands.pop().unwrap().is_none(),
            "what the dead one was told is told anew"
        );
        control.workers[0].commands.push(&order(301)).unwrap();
        assert!(dataplane.workers[0].commands.pop().unwrap().is_some());
        dataplane.workers[0].urgent.push(&EventRecord::encode(&Event::Ready)).unwrap();
        assert_eq!(control.workers[0].urgent.pop().unwrap().unwrap().decode(), Ok(Event::Ready));
        assert_eq!(control.activity.load(7).packets, 3, "the region outlives the dataplane");
        let kept = |words: &Words, at: usize| words.as_ref()[at].load(Ordering::Relaxed);
        assert_eq!(kept(&dataplane.sas, 7 * sa_slot::WORDS + sa_slot::SEQUENCE), 64);
        assert_eq!(kept(&dataplane.windows, 1 << 31), 5);
        assert_eq!(control.counters.iter().count(), 1, "counters are the new dataplane's own");
    }

    #[test]
    fn a_dataplane_that_lives_on_keeps_its_counters() {
        let (handover, heir) = pair();
        let first = AttachmentFds::create(1).unwrap();
        let mut old = first.dataplane_side().unwrap();
        let received = old.counters.define("received").unwrap();
        old.counters.store(received, 42);
        let second = first.successor(Side::Control).unwrap();
        // Two deaths in a row: the first successor is over before it was seen.
        let third = second.successor(Side::Control).unwrap();
        handover.give(Side::Dataplane, &second, 1).unwrap();
        handover.give(Side::Dataplane, &third, 2).unwrap();
        let dataplane = heir.dataplane_side().unwrap().expect("an attachment");
        assert_eq!(dataplane.generation, 3);
        assert_eq!(third.control_side().unwrap().counters.value("received"), Some(42));
        assert!(heir.dataplane_side().unwrap().is_none());
    }

    #[test]
    fn a_child_inherits_its_end_and_the_supervisors_death_shows() {
        let mut command = Command::new("sh");
        command.args(["-c", "readlink /proc/self/fd/$SPINDLE_HANDOVER"]);
        let handover = Handover::to(&mut command).unwrap();
        let output = command.output().unwrap();
        assert!(output.stdout.starts_with(b"socket:"), "{output:?}");
        drop((command, handover));
        let (handover, heir) = pair();
        drop(handover);
        assert!(heir.control_side().is_err());
    }
}
