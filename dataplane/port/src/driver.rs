//! What an interface's driver is called (ethtool's ETHTOOL_GDRVINFO), its receive queues (ETHTOOL_GCHANNELS), and whether it
//! takes VLAN tags off (ETHTOOL_GFLAGS).

use rustix::net::{AddressFamily, SocketType};
use std::io;
use std::os::fd::AsRawFd;

/// `struct ethtool_drvinfo` of linux/ethtool.h.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}

const _: () = assert!(size_of::<DriverInfo>() == 196);

const ETHTOOL_GDRVINFO: u32 = 3;

/// `struct ethtool_channels` of linux/ethtool.h.
#[repr(C)]
struct Channels {
    command: u32,
    /// For receiving, sending, else, both.
    most: [u32; 4],
    used: [u32; 4],
}

const ETHTOOL_GCHANNELS: u32 = 0x3c;

/// `struct ethtool_value` of linux/ethtool.h.
#[repr(C)]
struct Flags {
    command: u32,
    flags: u32,
}

const ETHTOOL_GFLAGS: u32 = 0x25;
const ETH_FLAG_RXVLAN: u32 = 1 << 8;

/// The driver's name, such as `veth`, `virtio_net` or `tun`.
pub fn driver_name(interface: &str) -> io::Result<String> {
    let mut info = DriverInfo { command: ETHTOOL_GDRVINFO, driver: [0; 32], rest: [0; 160] };
    ask(interface, &mut info)?;
    let end = info.driver.iter().position(|o| *o == 0).unwrap_or(info.driver.len());
    Ok(String::from_utf8_lossy(&info.driver[..end]).into_owned())
}

/// The queues on which an interface receives; an error where the driver does not tell.
pub fn receive_queues(interface: &str) -> io::Result<u32> {
    let mut channels = Channels { command: ETHTOOL_GCHANNELS, most: [0; 4], used: [0; 4] };
    ask(interface, &mut channels)?;
    let [receiving, _, _, both] = channels.used;
    Ok(receiving + both)
}

/// May the interface take VLAN tags off received frames, so that XDP does not see them (`ethtool -K NAME rxvlan on`)? An
/// error where the driver does not tell.
pub fn takes_tags_off(interface: &str) -> io::Result<bool> {
    let mut flags = Flags { command: ETHTOOL_GFLAGS, flags: 0 };
    ask(interface, &mut flags)?;
    Ok(flags.flags & ETH_FLAG_RXVLAN != 0)
}

/// `question` is a structure that begins with its command and that the kernel fills.
fn ask<T>(interface: &str, question: &mut T) -> io::Result<()> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // SAFETY: all zeros is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = std::ptr::from_mut(question).cast();
    // SAFETY: the kernel reads the name and the command, and writes the structure of that command, whose size `question`
    // has.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
