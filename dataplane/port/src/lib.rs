//! Where frames come from and go to: AF_XDP sockets whose frames are move-only tokens, and ports in ordinary memory.
//!
//! A [`Umem`] is cut into chunks; the one [`XdpFrame`] of each chunk is in the [`Pool`], with the worker, or spent
//! on a ring of the kernel's. Data passes: kernel → [`Port::receive`] → engine → [`Port::transmit`] (staged) →
//! [`Port::flush`] → kernel; [`Port::replenish`] takes back what was sent and gives the kernel empty frames. All
//! ports of all workers share one UMEM, so a frame crosses the gateway without a copy.
//!
//! Where a port is a [`Vlan`]'s, tags end at it: frames come without, and leave with one.
//!
//! [`Tuns`] are the host's own stack instead of a wire; a packet is copied there.
//!
//! The sockets are set up here by plain system calls: xsk-rs keeps a descriptor's address to itself, and a header can
//! only be put in front of a packet in place by moving that address.

mod driver;
mod kernel_ring;
mod memory;
mod tun;
mod umem;
mod vlan;
mod xdp;

pub use driver::{driver_name, receive_queues, takes_tags_off};
pub use memory::MemoryPort;
pub use tun::{MAX_TUN_MTU, Tuns};
pub use umem::{CHUNK, HEADROOM, Pool, Umem, XdpFrame};
pub use vlan::Vlan;
pub use xdp::{BindError, SocketCounts, WorkerPorts, XdpPort, bind_workers};

use arrayvec::ArrayVec;
use spindle_engine::{BURST, Frame};

/// One side's queue.
pub trait Port {
    /// What it moves.
    type Frame: Frame;

    /// Adds received frames to the burst, as many as are there and fit.
    fn receive(&mut self, burst: &mut ArrayVec<Self::Frame, BURST>);

    /// Stages a frame that [`Port::flush`] will send; gives it back if there is no room.
    fn transmit(&mut self, frame: Self::Frame) -> Result<(), Self::Frame>;

    /// Sends what was staged.
    fn flush(&mut self);

    /// Takes back the frames that were sent and hands out empty ones to receive into.
    fn replenish(&mut self, pool: &mut Pool<Self::Frame>);

    /// A frame of this length and unspecified content, if the pool has one that large.
    fn fresh(pool: &mut Pool<Self::Frame>, length: usize) -> Option<Self::Frame>;
}

/// A side that has no queue: nothing comes, and what would leave comes back.
impl<P: Port> Port for Option<P> {
    type Frame = P::Frame;

    fn receive(&mut self, burst: &mut ArrayVec<P::Frame, BURST>) {
        if let Some(port) = self {
            port.receive(burst);
        }
    }

    fn transmit(&mut self, frame: P::Frame) -> Result<(), P::Frame> {
        match self {
            Some(port) => port.transmit(frame),
            None => Err(frame),
        }
    }

    fn flush(&mut self) {
        if let Some(port) = self {
            port.flush();
        }
    }

    fn replenish(&mut self, pool: &mut Pool<P::Frame>) {
        if let Some(port) = self {
            port.replenish(pool);
        }
    }

    fn fresh(pool: &mut Pool<P::Frame>, length: usize) -> Option<P::Frame> {
        P::fresh(pool, length)
    }
}
