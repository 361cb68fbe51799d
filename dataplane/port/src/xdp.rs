//! AF_XDP sockets on one UMEM, as two ports: set up, receive, transmit, wake up.
//!
//! The outside port has a second socket on the same queue, the *background*: XDP gives it what nobody will miss
//! (unknown SPIs). Both are fed from one fill ring, which is as long as their receive rings together. So however long
//! the worker is away, and however hard the background is stormed, its ring fills and no more: the rest of the empty
//! frames, and all of the first socket's ring, stay for packets of SAs. Those are also received first.

use crate::kernel_ring::{FromKernel, ToKernel};
use crate::umem::{CHUNK, Pool, Umem, XdpFrame};
use crate::{BURST, Port, Vlan};
use arrayvec::ArrayVec;
use rustix::io::Errno;
use rustix::net::xdp::{
    SocketAddrXdp, SocketAddrXdpFlags, SocketAddrXdpWithSharedUmem, XDP_PGOFF_RX_RING, XDP_PGOFF_TX_RING,
    XDP_UMEM_PGOFF_COMPLETION_RING, XDP_UMEM_PGOFF_FILL_RING, XdpDesc, XdpDescOptions, XdpOptionsFlags,
    XdpUmemReg, XdpUmemRegFlags,
};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};
use spindle_engine::fetch_headers;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// A worker's frames for each descriptor of a ring, for both ports: three receive rings and as many in fill rings, two
/// transmit rings and as many completions.
const CHUNKS: usize = 10;
/// Frames that the kernel sends for one call, instead of 32.
const TRANSMIT_BUDGET: u32 = 512;
/// `XDP_MAX_TX_SKB_BUDGET`, since Linux 6.18.
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;
/// Octets of socket buffers in flight, for copy mode makes an skb of each frame that it sends.
const SEND_BUFFER: usize = 32 << 20;

/// A queue to be bound.
#[derive(Clone, Copy, Debug)]
struct Interface {
    /// The interface's index.
    index: u32,
    /// The queue on it.
    queue: u32,
    /// Descriptors of its rings.
    ring: u32,
}

/// Why there are no sockets, with the fix.
#[derive(Debug)]
pub struct BindError {
    step: &'static str,
    interface: Option<Interface>,
    error: io::Error,
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AF_XDP: cannot {}", self.step)?;
        if let Some(Interface { index, queue, .. }) = self.interface {
            write!(f, " (interface {index}, queue {queue})")?;
        }
        let fix = match self.error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => "start as root or with CAP_NET_RAW and CAP_BPF",
            Some(libc::EAFNOSUPPORT) => "the kernel needs CONFIG_XDP_SOCKETS",
            Some(libc::EBUSY) => "another process has bound this queue",
            Some(libc::ENODEV | libc::ENXIO | libc::EINVAL) => "the interface is gone or has no such queue",
            Some(libc::ENOBUFS | libc::ENOMEM) => "memory is short, or `ulimit -l` too low",
            _ => "Linux 5.11 or later is needed",
        };
        write!(f, ": {}; {fix}", self.error)
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

/// What the kernel counts for a port's sockets: packets that XDP gave them and that did not reach us.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SocketCounts {
    /// Dropped though the receive ring had room. In copy mode: too long for a chunk, or no empty frame was there. In
    /// zero-copy mode the driver counts what it drops for want of empty frames itself.
    pub dropped: u64,
    /// Dropped because we did not take packets fast enough.
    pub ring_full: u64,
    /// How often the kernel found no empty frame; in copy mode each time is one packet, in `dropped` already.
    pub fill_empty: u64,
    /// Descriptors of ours that the kernel refused to send.
    pub transmit_invalid: u64,
}

/// One AF_XDP socket with its rings, and perhaps a second one that receives in the background.
pub struct XdpPort {
    socket: OwnedFd,
    umem: &'static Umem,
    receive: FromKernel<XdpDesc>,
    background: Option<Background>,
    transmit: ToKernel<XdpDesc>,
    fill: ToKernel<u64>,
    completion: FromKernel<u64>,
    zero_copy: bool,
    /// Whose tag all of its frames have.
    vlan: Option<Vlan>,
    /// The kernel stopped before it had sent all that was published.
    unfinished: bool,
}

/// A socket that receives what may be lost; it shares the fill ring of its port's first socket.
struct Background {
    socket: OwnedFd,
    receive: FromKernel<XdpDesc>,
}

/// What one worker has: a queue of each side, and its pool.
pub struct WorkerPorts {
    /// `None`: the inside is none of ours.
    pub inside: Option<XdpPort>,
    /// With a background.
    pub outside: XdpPort,
    /// Its frames.
    pub pool: Pool<XdpFrame>,
}

/// Ports for so many workers: the first one's on queue 0 of both interfaces, the next one's on queue 1, and so on. All share
/// one UMEM, so that a frame may leave by any of them. Zero-copy where both drivers can, else copy. They are ready to
/// receive once a program's XSKMAPs name their sockets. Receive, transmit and completion rings have `ring`
/// descriptors, a power of two.
pub fn bind_workers(
    inside: Option<u32>,
    outside: u32,
    workers: u32,
    ring: u32,
) -> Result<Vec<WorkerPorts>, BindError> {
    let memory = |error| BindError { step: "map memory for packets", interface: None, error };
    let (umem, pools) = Umem::divided(CHUNKS * ring as usize, workers as usize).map_err(memory)?;
    let bound = bind_queues(umem, (inside, outside), (workers, ring), SocketAddrXdpFlags::XDP_ZEROCOPY)
        .or_else(|_| bind_queues(umem, (inside, outside), (workers, ring), SocketAddrXdpFlags::XDP_COPY))?;
    let ports = bound.into_iter().zip(pools).map(|((mut inside, mut outside), mut pool)| {
        inside.replenish(&mut pool);
        outside.replenish(&mut pool);
        WorkerPorts { inside, outside, pool }
    });
    Ok(ports.collect())
}

fn bind_queues(
    umem: &'static Umem,
    (inside, outside): (Option<u32>, u32),
    (workers, ring): (u32, u32),
    mode: SocketAddrXdpFlags,
) -> Result<Vec<(Option<XdpPort>, XdpPort)>, BindError> {
    let mut bound: Vec<(Option<XdpPort>, XdpPort)> = Vec::new();
    for queue in 0..workers {
        let first = bound.first().map(|(inside, outside)| inside.as_ref().unwrap_or(outside));
        let inside = match inside {
            Some(index) => Some(bind_port(umem, Interface { index, queue, ring }, ring, mode, first)?),
            None => None,
        };
        let at = Interface { index: outside, queue, ring };
        // Its background receives as much again.
        let mut outside = bind_port(umem, at, 2 * ring, mode, first.or(inside.as_ref()))?;
        add_background(&mut outside, open_socket()?, at)?;
        bound.push((inside, outside));
    }
    Ok(bound)
}

/// The first port registers the memory, by its flags all others are bound.
fn bind_port(
    umem: &'static Umem,
    at: Interface,
    fill: u32,
    mode: SocketAddrXdpFlags,
    first: Option<&XdpPort>,
) -> Result<XdpPort, BindError> {
    let socket = open_socket()?;
    let Some(first) = first else {
        register(umem, &socket)?;
        let flags = mode | SocketAddrXdpFlags::XDP_USE_NEED_WAKEUP;
        let bind =
            |socket: &OwnedFd| rustix::net::bind(socket, &SocketAddrXdp::new(flags, at.index, at.queue));
        return XdpPort::open(socket, umem, at, fill, bind);
    };
    XdpPort::open(socket, umem, at, fill, |socket| share(socket, first, at))
}

fn open_socket() -> Result<OwnedFd, BindError> {
    rustix::net::socket_with(AddressFamily::XDP, SocketType::RAW, SocketFlags::CLOEXEC, None)
        .map_err(|e| BindError { step: "open a socket", interface: None, error: e.into() })
}

fn register(umem: &'static Umem, socket: &OwnedFd) -> Result<(), BindError> {
    let registration = XdpUmemReg {
        addr: umem.address(),
        len: umem.octets(),
        chunk_size: CHUNK as u32,
        headroom: 0,
        flags: XdpUmemRegFlags::empty(),
        tx_metadata_len: 0,
    };
    sockopt::set_xdp_umem_reg(socket, registration).map_err(|e| BindError {
        step: "register memory for packets",
        interface: None,
        error: e.into(),
    })
}

/// The flags of the first socket hold for all that share its memory; others are refused.
fn share(socket: &OwnedFd, with: &XdpPort, interface: Interface) -> Result<(), Errno> {
    let addr = SocketAddrXdp::new(SocketAddrXdpFlags::XDP_SHARED_UMEM, interface.index, interface.queue);
    let shared_umem_fd = with.socket.as_fd();
    rustix::net::bind(socket, &SocketAddrXdpWithSharedUmem { addr, shared_umem_fd })
}

/// On the same queue as the port, so it shares the fill ring as well; and it has no other ring than this.
fn add_background(port: &mut XdpPort, socket: OwnedFd, interface: Interface) -> Result<(), BindError> {
    let receive =
        receive_ring(&socket, interface.ring).map_err(BindError::at("set up its receive ring", interface))?;
    bind_patiently(interface, || share(&socket, port, interface))?;
    port.background = Some(Background { socket, receive });
    Ok(())
}

fn receive_ring(socket: &OwnedFd, ring: u32) -> io::Result<FromKernel<XdpDesc>> {
    sockopt::set_xdp_rx_ring_size(socket, ring)?;
    let offsets = sockopt::xdp_mmap_offsets(socket)?;
    FromKernel::new(socket.as_fd(), XDP_PGOFF_RX_RING, &offsets.rx, ring)
}

/// A queue stays busy for some 30 ms after its owner was killed.
fn bind_patiently(interface: Interface, bind: impl Fn() -> Result<(), Errno>) -> Result<(), BindError> {
    let started = Instant::now();
    while let Err(e) = bind() {
        if e != Errno::BUSY || started.elapsed() > Duration::from_secs(1) {
            return Err(BindError::at("bind a queue", interface)(e.into()));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

impl BindError {
    fn at(step: &'static str, interface: Interface) -> impl Fn(io::Error) -> BindError + Copy {
        move |error| BindError { step, interface: Some(interface), error }
    }
}

impl XdpPort {
    fn open(
        socket: OwnedFd,
        umem: &'static Umem,
        interface: Interface,
        fill: u32,
        bind: impl Fn(&OwnedFd) -> Result<(), Errno>,
    ) -> Result<XdpPort, BindError> {
        let set_up = BindError::at("set up its rings", interface);
        let refused = |e: Errno| set_up(e.into());
        let ring = interface.ring;
        let receive = receive_ring(&socket, ring).map_err(set_up)?;
        sockopt::set_xdp_umem_fill_ring_size(&socket, fill).map_err(refused)?;
        sockopt::set_xdp_umem_completion_ring_size(&socket, ring).map_err(refused)?;
        sockopt::set_xdp_tx_ring_size(&socket, ring).map_err(refused)?;
        let offsets = sockopt::xdp_mmap_offsets(&socket).map_err(refused)?;
        let fd = socket.as_fd();
        let transmit = ToKernel::new(fd, XDP_PGOFF_TX_RING, &offsets.tx, ring).map_err(set_up)?;
        let fill = ToKernel::new(fd, XDP_UMEM_PGOFF_FILL_RING, &offsets.fr, fill).map_err(set_up)?;
        let completion =
            FromKernel::new(fd, XDP_UMEM_PGOFF_COMPLETION_RING, &offsets.cr, ring).map_err(set_up)?;
        raise_limits(&socket);
        bind_patiently(interface, || bind(&socket))?;
        let options = sockopt::xdp_options(&socket).unwrap_or(XdpOptionsFlags::empty());
        let zero_copy = options.contains(XdpOptionsFlags::XDP_OPTIONS_ZEROCOPY);
        Ok(XdpPort {
            socket,
            umem,
            receive,
            background: None,
            transmit,
            fill,
            completion,
            zero_copy,
            vlan: None,
            unfinished: false,
        })
    }

    /// Do frames reach the driver without a copy?
    pub fn is_zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// All of its frames have the tag of this VLAN, or none has any.
    pub fn set_vlan(&mut self, vlan: Option<Vlan>) {
        self.vlan = vlan;
    }

    /// The socket that receives in the background.
    pub fn background(&self) -> Option<BorrowedFd<'_>> {
        self.background.as_ref().map(|background| background.socket.as_fd())
    }

    /// What the kernel counts, for both sockets together.
    pub fn counts(&self) -> io::Result<SocketCounts> {
        let mut counts = SocketCounts::default();
        for socket in [Some(&self.socket), self.background.as_ref().map(|b| &b.socket)].into_iter().flatten()
        {
            let s = sockopt::xdp_statistics(socket)?;
            counts.dropped += s.rx_dropped;
            counts.ring_full += s.rx_ring_full.unwrap_or(0);
            counts.transmit_invalid += s.tx_invalid_descs;
            // The fill ring is one, and either socket tells of it.
            counts.fill_empty = counts.fill_empty.max(s.rx_fill_ring_empty_descs.unwrap_or(0));
        }
        Ok(counts)
    }

    /// Is nothing waiting to be received or to be sent?
    pub fn is_idle(&mut self) -> bool {
        let background = self.background.as_mut().map_or(0, |background| background.receive.backlog());
        self.receive.backlog() == 0 && background == 0 && !self.unfinished
    }

    fn wake_receiver(&self) {
        // Whatever it answers, the next burst asks again.
        let _ = rustix::net::recv(&self.socket, &mut [0; 0], RecvFlags::DONTWAIT);
    }
}

impl AsFd for XdpPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What isn't granted is done without.
fn raise_limits(socket: &OwnedFd) {
    let _ = sockopt::set_socket_send_buffer_size_force(socket, SEND_BUFFER);
    let budget = TRANSMIT_BUDGET;
    // SAFETY: the kernel reads four octets.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_XDP,
            XDP_MAX_TX_SKB_BUDGET,
            (&raw const budget).cast(),
            size_of::<u32>() as libc::socklen_t,
        )
    };
}

fn take(ring: &mut FromKernel<XdpDesc>, umem: &Umem, burst: &mut ArrayVec<XdpFrame, BURST>) {
    let count = (ring.available() as usize).min(burst.remaining_capacity());
    for _ in 0..count {
        let descriptor = ring.next();
        if let Some(frame) = umem.frame_from_kernel(descriptor.addr, descriptor.len) {
            fetch_headers(&frame);
            burst.push(frame);
        }
    }
    if count > 0 {
        ring.release();
    }
}

impl Port for XdpPort {
    type Frame = XdpFrame;

    fn receive(&mut self, burst: &mut ArrayVec<XdpFrame, BURST>) {
        let before = burst.len();
        take(&mut self.receive, self.umem, burst);
        if let Some(background) = &mut self.background {
            take(&mut background.receive, self.umem, burst);
        }
        if let Some(vlan) = self.vlan {
            burst[before..].iter_mut().for_each(|frame| vlan.strip(frame));
        }
    }

    fn transmit(&mut self, mut frame: XdpFrame) -> Result<(), XdpFrame> {
        if self.transmit.room(1) == 0 {
            return Err(frame);
        }
        if let Some(vlan) = self.vlan
            && !vlan.push(&mut frame)
        {
            return Err(frame);
        }
        let (addr, len) = self.umem.give_to_kernel(frame)?;
        self.transmit.stage(XdpDesc { addr, len, options: XdpDescOptions::empty() });
        self.unfinished = true;
        Ok(())
    }

    fn flush(&mut self) {
        if !self.unfinished {
            return;
        }
        self.transmit.publish();
        // EAGAIN and ENOBUFS: not all was sent, so the next flush goes on. A link that is down keeps what it has until
        // there is more to send: nothing to stay awake for.
        let is_down = self.transmit.needs_wakeup()
            && rustix::net::send(&self.socket, &[], SendFlags::DONTWAIT) == Err(Errno::NETDOWN);
        self.unfinished = !is_down && self.transmit.outstanding() > 0;
    }

    fn replenish(&mut self, pool: &mut Pool<XdpFrame>) {
        let sent = self.completion.available();
        for _ in 0..sent {
            if let Some(frame) = self.umem.frame_from_kernel(self.completion.next(), 0) {
                pool.put(frame);
            }
        }
        if sent > 0 {
            self.completion.release();
        }
        // In batches, for each look at the kernel's index is a cache miss.
        let room = self.fill.room(BURST as u32);
        if room < BURST as u32 {
            return;
        }
        for _ in 0..room {
            let Some(frame) = pool.take() else { break };
            match self.umem.give_to_kernel(frame) {
                // The kernel keeps to the chunk and puts its own headroom in front.
                Ok((address, _)) => self.fill.stage(address - address % CHUNK as u64),
                Err(_foreign) => break,
            }
        }
        self.fill.publish();
        if self.zero_copy && self.fill.needs_wakeup() {
            self.wake_receiver();
        }
    }

    fn fresh(pool: &mut Pool<XdpFrame>, length: usize) -> Option<XdpFrame> {
        let mut frame = pool.take()?;
        if frame.reset(length) {
            return Some(frame);
        }
        pool.put(frame);
        None
    }
}
