//! AF_PACKET sockets on one interface of a namespace.

use crate::error::{Context, Error, Result};
use crate::namespace::Namespace;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recvmsg,
    send, setsockopt, socket, sockopt,
};
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Octets of `struct virtio_net_hdr`, which precedes each frame of a socket with offload metadata.
pub(crate) const OFFLOAD_HEADER: usize = 10;
/// The largest frame that can arrive: a GSO packet with its headers.
pub(crate) const LARGEST_FRAME: usize = OFFLOAD_HEADER + 65_535 + 32;

/// What AF_PACKET counted since the last query (PACKET_STATISTICS).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PacketStatistics {
    /// Frames seen, dropped ones included.
    pub(crate) packets: u32,
    /// Frames dropped because the receive queue was full.
    pub(crate) drops: u32,
}

#[derive(Clone, Copy, Debug)]
struct Statistics;
nix::getsockopt_impl!(
    Statistics,
    libc::SOL_PACKET,
    libc::PACKET_STATISTICS,
    PacketStatistics,
    sockopt::GetStruct<PacketStatistics>
);

#[derive(Clone, Copy, Debug)]
struct OffloadHeader;
nix::setsockopt_impl!(OffloadHeader, libc::SOL_PACKET, libc::PACKET_VNET_HDR, bool, sockopt::SetBool);

/// What a packet socket shows of each frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Show {
    /// Frames that arrive, each behind [`OFFLOAD_HEADER`] octets of offload metadata; the same is expected on send.
    /// So partial checksums and GSO frames pass through as they are.
    ArrivingWithOffloads,
    /// Frames in both directions with the kernel's timestamps.
    BothDirections,
}

/// A raw socket on one interface.
#[derive(Debug)]
pub(crate) struct PacketSocket {
    descriptor: OwnedFd,
    show: Show,
}

/// A frame that was received: its length in the buffer and its time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received {
    pub(crate) length: usize,
    /// CLOCK_REALTIME in nanoseconds; 0 if the socket has no timestamps.
    pub(crate) at: u64,
}

impl PacketSocket {
    /// Opens a socket on `interface`; when it returns, every later frame is queued.
    pub(crate) fn open(namespace: &Namespace, interface: &str, show: Show) -> Result<PacketSocket> {
        namespace.enter(|| {
            let what = || format!("opening a packet socket on {interface} in {}", namespace.name());
            let link = nix::ifaddrs::getifaddrs()
                .context(what)?
                .filter(|entry| entry.interface_name == interface)
                .find_map(|entry| entry.address?.as_link_addr().copied())
                .ok_or_else(|| {
                    Error::Machine(format!("{} has no interface {interface}", namespace.name()))
                })?;
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let descriptor =
                socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).context(what)?;
            match show {
                Show::ArrivingWithOffloads => setsockopt(&descriptor, OffloadHeader, &true).context(what)?,
                Show::BothDirections => {
                    setsockopt(&descriptor, sockopt::ReceiveTimestampns, &true).context(what)?;
                }
            }
            // A queue that holds what arrives while the reader is not scheduled.
            setsockopt(&descriptor, sockopt::RcvBufForce, &(256 << 20)).context(what)?;
            bind(descriptor.as_raw_fd(), &link).context(what)?;
            let socket = PacketSocket { descriptor, show };
            // Until it was bound it heard every interface.
            let mut frame = vec![0; LARGEST_FRAME];
            while socket.receive(&mut frame).context(what)?.is_some() {}
            socket.statistics()?;
            Ok(socket)
        })?
    }

    /// The next frame, or `None` if none waits.
    pub(crate) fn receive(&self, frame: &mut [u8]) -> nix::Result<Option<Received>> {
        let mut control = if self.show == Show::BothDirections {
            Some(nix::cmsg_space!(nix::sys::time::TimeSpec))
        } else {
            None
        };
        loop {
            let mut slices = [IoSliceMut::new(frame)];
            let buffer = control.as_deref_mut();
            match recvmsg::<LinkAddr>(self.descriptor.as_raw_fd(), &mut slices, buffer, MsgFlags::empty()) {
                Ok(message) => {
                    let outgoing =
                        message.address.is_some_and(|address| address.pkttype() == libc::PACKET_OUTGOING);
                    if outgoing && self.show == Show::ArrivingWithOffloads {
                        continue;
                    }
                    let at = message.cmsgs().ok().and_then(|mut messages| {
                        messages.find_map(|message| match message {
                            ControlMessageOwned::ScmTimestampns(time) => Some(nanoseconds(time)),
                            _ => None,
                        })
                    });
                    return Ok(Some(Received { length: message.bytes, at: at.unwrap_or(0) }));
                }
                Err(Errno::EAGAIN) => return Ok(None),
                // The interface went down (ENETDOWN is reported once), or a signal came.
                Err(Errno::ENETDOWN | Errno::EINTR) => continue,
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends a frame (behind its offload header, if the socket has them); false if the kernel would not take it now.
    pub(crate) fn send(&self, frame: &[u8]) -> bool {
        loop {
            match send(self.descriptor.as_raw_fd(), frame, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                result => return result.is_ok(),
            }
        }
    }

    /// Frames seen and dropped since the last call.
    pub(crate) fn statistics(&self) -> Result<PacketStatistics> {
        nix::sys::socket::getsockopt(&self.descriptor, Statistics)
            .context(|| "reading a packet socket's statistics".to_owned())
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// A kernel time in nanoseconds.
pub(crate) fn nanoseconds(time: nix::sys::time::TimeSpec) -> u64 {
    u64::try_from(time.tv_sec()).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec()).unwrap_or(0)
}

/// Now by CLOCK_REALTIME, in nanoseconds.
pub fn now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |elapsed| u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
}

/// Lets this thread run ahead of ordinary ones and be woken on time; without the privilege it runs as it is.
pub(crate) fn be_punctual() {
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), -15);
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1_000));
}
