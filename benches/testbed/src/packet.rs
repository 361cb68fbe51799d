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

/// What the kernel says of a frame's VLAN tag, which it has taken off (PACKET_AUXDATA, `struct tpacket_auxdata`).
#[derive(Clone, Copy, Debug)]
struct AuxiliaryData;
nix::setsockopt_impl!(AuxiliaryData, libc::SOL_PACKET, libc::PACKET_AUXDATA, bool, sockopt::SetBool);
/// Octets of that structure.
const AUXILIARY: usize = 20;
/// Octets of a tag.
const TAG: usize = 4;

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
            setsockopt(&descriptor, AuxiliaryData, &true).context(what)?;
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

    /// The next frame as it was on the wire, its VLAN tag included, or `None` if none waits.
    pub(crate) fn receive(&self, frame: &mut [u8]) -> nix::Result<Option<Received>> {
        let mut control = nix::cmsg_space!(nix::sys::time::TimeSpec, [u8; AUXILIARY]);
        loop {
            let mut slices = [IoSliceMut::new(frame)];
            let buffer = Some(&mut control[..]);
            match recvmsg::<LinkAddr>(self.descriptor.as_raw_fd(), &mut slices, buffer, MsgFlags::empty()) {
                Ok(message) => {
                    let outgoing =
                        message.address.is_some_and(|address| address.pkttype() == libc::PACKET_OUTGOING);
                    if outgoing && self.show == Show::ArrivingWithOffloads {
                        continue;
                    }
                    let (mut at, mut tag, mut length) = (0, None, message.bytes);
                    for message in message.cmsgs().into_iter().flatten() {
                        match message {
                            ControlMessageOwned::ScmTimestampns(time) => at = nanoseconds(time),
                            ControlMessageOwned::Unknown(data)
                                if data.cmsg_header.cmsg_type == libc::PACKET_AUXDATA =>
                            {
                                tag = taken_off(&data.data_bytes);
                            }
                            _ => {}
                        }
                    }
                    if let Some((tpid, control)) = tag {
                        let with_offloads = self.show == Show::ArrivingWithOffloads;
                        let before = if with_offloads { OFFLOAD_HEADER } else { 0 };
                        length = insert_tag(frame, length, before, tpid, control);
                    }
                    return Ok(Some(Received { length, at }));
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

/// TPID, and priority and VID, of the tag that a frame had.
fn taken_off(auxiliary: &[u8]) -> Option<(u16, u16)> {
    let word = |at: usize| Some(u16::from_ne_bytes(*auxiliary.get(at..)?.first_chunk()?));
    let status = u32::from_ne_bytes(*auxiliary.first_chunk()?);
    (status & libc::TP_STATUS_VLAN_VALID != 0).then_some(())?;
    Some((word(18)?, word(16)?))
}

/// Puts a tag into the frame of this length `before` octets into the buffer, be it none or an offload header; the new length.
pub(crate) fn insert_tag(buffer: &mut [u8], length: usize, before: usize, tpid: u16, control: u16) -> usize {
    let at = before + 12;
    if length < at || buffer.len() < length + TAG {
        return length;
    }
    buffer.copy_within(at..length, at + TAG);
    buffer[at..at + 2].copy_from_slice(&tpid.to_be_bytes());
    buffer[at + 2..at + TAG].copy_from_slice(&control.to_be_bytes());
    if before == OFFLOAD_HEADER {
        // `struct virtio_net_hdr`: the length of the headers and where what is summed begins, if they are told.
        for field in [2, 6] {
            let value = u16::from_ne_bytes([buffer[field], buffer[field + 1]]);
            if value > 0 {
                buffer[field..field + 2].copy_from_slice(&(value + TAG as u16).to_ne_bytes());
            }
        }
    }
    length + TAG
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
