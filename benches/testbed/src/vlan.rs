//! VLAN devices for a kernel that has none: a thread puts the tags of IEEE 802.1Q on and takes them off.
//!
//! ```text
//!  the kernel's IP ── a-out.100 ══ far end ── this thread ── a-out ══ wire
//!                      no tags                 tag 100        tagged frames that XDP passes, or that we send
//! ```
//!
//! As those of Linux the device has the hardware address of the interface below it, and its frames are whole: no offloads.

use crate::error::Result;
use crate::frame::u16_at;
use crate::namespace::Namespace;
use crate::packet::{LARGEST_FRAME, OFFLOAD_HEADER, PacketSocket, Show, be_punctual, insert_tag};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// The TPID of IEEE 802.1Q.
const TPID: u16 = 0x8100;
/// Where the tag stands in what a socket gives, and its octets.
const TAG: std::ops::Range<usize> = OFFLOAD_HEADER + 12..OFFLOAD_HEADER + 16;

/// A running device; its tags end when it is dropped.
#[derive(Debug)]
pub(crate) struct VlanDevice {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// The usual name.
pub(crate) fn device(interface: &str, id: u16) -> String {
    format!("{interface}.{id}")
}

impl VlanDevice {
    /// Makes the device of this VLAN of an interface. Its far end lies in a namespace of its own.
    pub(crate) fn create(
        namespace: &Namespace,
        interface: &str,
        id: u16,
        far: &Namespace,
    ) -> Result<VlanDevice> {
        let (name, other) = (device(interface, id), format!("t-{}", device(interface, id)));
        let (address, far_name) = (namespace.mac(interface)?, far.name());
        namespace
            .ip(&format!("link add {name} address {address} type veth peer name {other} netns {far_name}"))?;
        namespace.run(&format!("ethtool -K {name} tx off tso off gso off gro off"))?;
        // XDP is to see the tags.
        namespace.run(&format!("ethtool -K {interface} rxvlan off txvlan off"))?;
        far.ip(&format!("link set {other} up"))?;
        namespace.ip(&format!("link set {name} up"))?;
        let show = Show::ArrivingWithOffloads;
        let tagged = PacketSocket::open(namespace, interface, show)?;
        let plain = PacketSocket::open(far, &other, show)?;
        let stop = Arc::new(AtomicBool::new(false));
        let of_thread = Arc::clone(&stop);
        let thread = std::thread::spawn(move || carry(id, &tagged, &plain, &of_thread));
        Ok(VlanDevice { stop, thread: Some(thread) })
    }
}

impl Drop for VlanDevice {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn carry(id: u16, tagged: &PacketSocket, plain: &PacketSocket, stop: &AtomicBool) {
    be_punctual();
    let mut frame = vec![0; LARGEST_FRAME];
    while !stop.load(Ordering::Relaxed) {
        while let Ok(Some(received)) = plain.receive(&mut frame) {
            let length = insert_tag(&mut frame, received.length, OFFLOAD_HEADER, TPID, id);
            tagged.send(&frame[..length]);
        }
        while let Ok(Some(received)) = tagged.receive(&mut frame) {
            let octets = &frame[..received.length];
            let is_ours = u16_at(octets, TAG.start) == Some(TPID)
                && u16_at(octets, TAG.start + 2).is_some_and(|control| control & 0xfff == id);
            if is_ours {
                plain.send(&[&octets[..TAG.start], &octets[TAG.end..]].concat());
            }
        }
        let mut descriptors = [tagged, plain].map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN));
        let _ = poll(&mut descriptors, PollTimeout::from(20_u8));
    }
}
