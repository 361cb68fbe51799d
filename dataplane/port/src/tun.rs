//! TUN devices: the host's own stack as the protected side. What it routes into a device is received here, and what is
//! transmitted comes out of the device for it.
//!
//! A device is *persistent*: it stays, with its addresses and routes, when this process dies. What the host then sends
//! into it is dropped by the kernel (no one is attached), and the next process attaches to it again. The kernel completes
//! checksums and cuts segments, for no offload is asked for; a packet is one system call and one copy.

use crate::umem::{CHUNK, HEADROOM, Pool};
use crate::{BURST, Port};
use arrayvec::ArrayVec;
use rustix::event::epoll;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use spindle_engine::Frame;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Octets in front of a packet, for the Ethernet header that the engine reckons with.
const ETHERNET: usize = 14;
/// Octets behind a packet that encapsulation may need.
const BEHIND: usize = 64;
/// The largest MTU of a device: a packet and what comes around it stay within a chunk.
pub const MAX_TUN_MTU: u16 = (CHUNK - HEADROOM - ETHERNET - BEHIND) as u16;
/// Frames that wait to be written.
const STAGED: usize = 1024;
/// Frames to read into.
const EMPTY: usize = 2 * BURST;

/// All devices of a worker.
pub struct Tuns<F> {
    devices: Vec<Tun>,
    /// Says which have something to be read; `None` where there are no devices.
    watch: Option<OwnedFd>,
    /// By the device's place.
    staged: Vec<(usize, F)>,
    written: Vec<F>,
    empty: ArrayVec<F, EMPTY>,
}

struct Tun {
    interface: u16,
    queue: OwnedFd,
}

impl<F> Default for Tuns<F> {
    fn default() -> Tuns<F> {
        let (devices, staged, written) = (Vec::new(), Vec::new(), Vec::new());
        Tuns { devices, watch: None, staged, written, empty: ArrayVec::new() }
    }
}

impl<F: Frame> Tuns<F> {
    /// Makes these devices, or attaches to them where an earlier process made them: each the number of the engine's
    /// interface, and its name. The error names the device.
    pub fn open<'a>(names: impl IntoIterator<Item = (u16, &'a str)>) -> Result<Tuns<F>, (String, io::Error)> {
        let mut tuns = Tuns::default();
        for (interface, name) in names {
            tuns.add(interface, name).map_err(|error| (name.to_owned(), error))?;
        }
        if !tuns.devices.is_empty() {
            tuns.staged.reserve_exact(STAGED);
            tuns.written.reserve_exact(STAGED);
        }
        Ok(tuns)
    }

    fn add(&mut self, interface: u16, name: &str) -> io::Result<()> {
        let queue = open_queue(name)?;
        let watch = match self.watch.take() {
            Some(watch) => watch,
            None => epoll::create(epoll::CreateFlags::CLOEXEC)?,
        };
        let place = epoll::EventData::new_u64(self.devices.len() as u64);
        epoll::add(&watch, &queue, place, epoll::EventFlags::IN)?;
        self.watch = Some(watch);
        self.devices.push(Tun { interface, queue });
        Ok(())
    }

    /// To be polled: readable when a device has a packet.
    pub fn watch(&self) -> Option<BorrowedFd<'_>> {
        self.watch.as_ref().map(AsFd::as_fd)
    }

    /// Places of devices that have packets.
    pub fn ready(&self, places: &mut ArrayVec<usize, BURST>) {
        let Some(watch) = &self.watch else { return };
        let nothing =
            || epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };
        let mut events: [epoll::Event; BURST] = std::array::from_fn(|_| nothing());
        let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        if let Ok(count) = epoll::wait(watch, &mut events[..], Some(&at_once)) {
            places.extend(events[..count].iter().map(|event| event.data.u64() as usize));
        }
    }

    /// Adds packets of one device to the burst, each behind 14 octets, as many as fit; the number of its interface.
    pub fn receive(&mut self, place: usize, burst: &mut ArrayVec<F, BURST>) -> Option<u16> {
        let device = self.devices.get(place)?;
        while !burst.is_full() {
            let Some(mut frame) = self.empty.pop() else { break };
            match rustix::io::read(&device.queue, &mut frame.data_mut()[ETHERNET..]) {
                Ok(length) if length > 0 => {
                    let packet = frame.data()[ETHERNET];
                    let ethertype = if packet >> 4 == 6 { [0x86, 0xdd] } else { [0x08, 0x00] };
                    frame.data_mut()[..ETHERNET - 2].fill(0);
                    frame.data_mut()[ETHERNET - 2..ETHERNET].copy_from_slice(&ethertype);
                    frame.truncate(ETHERNET + length);
                    burst.push(frame);
                }
                _ => {
                    self.empty.push(frame);
                    break;
                }
            }
        }
        Some(device.interface)
    }

    /// Stages a packet behind 14 octets for the host by an interface; gives it back if there is no room or no such
    /// interface.
    pub fn transmit(&mut self, interface: u16, frame: F) -> Result<(), F> {
        let place = self.devices.iter().position(|device| device.interface == interface);
        match place {
            Some(place) if self.staged.len() < STAGED => {
                self.staged.push((place, frame));
                Ok(())
            }
            _ => Err(frame),
        }
    }

    /// Writes what was staged; how many the kernel did not take.
    pub fn flush(&mut self) -> u64 {
        let mut lost = 0;
        for (place, frame) in self.staged.drain(..) {
            let packet = frame.data().get(ETHERNET..).unwrap_or(&[]);
            let written = loop {
                match rustix::io::write(&self.devices[place].queue, packet) {
                    Err(Errno::INTR) => {}
                    result => break result,
                }
            };
            // A device that is down takes nothing.
            lost += u64::from(written.is_err());
            self.written.push(frame);
        }
        lost
    }

    /// Gives written frames back, and takes empty ones to read into.
    pub fn replenish<P: Port<Frame = F>>(&mut self, pool: &mut Pool<F>) {
        self.written.drain(..).for_each(|frame| pool.put(frame));
        while !self.devices.is_empty() && !self.empty.is_full() {
            let Some(frame) = P::fresh(pool, ETHERNET + usize::from(MAX_TUN_MTU)) else { break };
            self.empty.push(frame);
        }
    }
}

/// `struct ifreq` of linux/if.h, as TUNSETIFF takes it.
fn open_queue(name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let queue = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?;
    // SAFETY: all zeros is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // A queue for each worker; no header before the packets.
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_MULTI_QUEUE) as libc::c_short;
    // SAFETY: the kernel reads and writes an ifreq.
    if unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the argument is a number.
    if unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETPERSIST, 1) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(queue)
}
