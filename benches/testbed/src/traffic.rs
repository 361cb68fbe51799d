//! Traffic from ordinary sockets on the hosts: a steady stream that measures outages, TCP transfers, a sweep of UDP
//! sizes, ping. Every payload begins with the testbed's marker, which must never be seen on the outer wire.

use crate::error::{Context, Error, Result};
use crate::namespace::Namespace;
use crate::packet::{be_punctual, nanoseconds, now};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{IoSliceMut, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Sixteen octets that begin every payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Marker(pub [u8; 16]);

impl Marker {
    /// A marker from the system's randomness.
    pub fn random() -> Marker {
        let mut octets = [0; 16];
        rand::rng().fill_bytes(&mut octets);
        Marker(octets)
    }
}

/// A host's namespace and address.
#[derive(Clone, Copy, Debug)]
pub struct Host<'a> {
    /// Where its sockets live.
    pub namespace: &'a Namespace,
    /// Its inside address.
    pub address: IpAddr,
}

/// A packet that arrived.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Delivery {
    /// Its number in the stream, from 0.
    pub number: u64,
    /// When it was sent, CLOCK_REALTIME in nanoseconds.
    pub sent: u64,
    /// When the receiving host's kernel got it, CLOCK_REALTIME in nanoseconds.
    pub received: u64,
}

/// What a stream did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StreamLog {
    /// When each packet was sent, by number; CLOCK_REALTIME in nanoseconds.
    pub sent: Vec<u64>,
    /// What arrived, in the order of arrival.
    pub deliveries: Vec<Delivery>,
}

/// The gap that a crash tore into a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outage {
    /// The last delivery before the gateway was started again.
    pub last_before: Delivery,
    /// The first delivery after that.
    pub first_after: Delivery,
    /// Packets sent between those two that never arrived.
    pub lost: u64,
}

impl Outage {
    /// Its length in nanoseconds.
    pub fn length(&self) -> u64 {
        self.first_after.received.saturating_sub(self.last_before.received)
    }
}

impl StreamLog {
    /// Packets that never arrived.
    pub fn lost(&self) -> u64 {
        let arrived: std::collections::BTreeSet<u64> =
            self.deliveries.iter().map(|delivery| delivery.number).collect();
        self.sent.len() as u64 - arrived.len() as u64
    }

    /// The outage around a crash, given when the gateway was started again (CLOCK_REALTIME in nanoseconds): between
    /// the crash and that moment nothing can be delivered but what had passed the gateway already. `None` if nothing
    /// arrived before or after.
    pub fn outage(&self, restarted: u64) -> Option<Outage> {
        let last_before = *self.deliveries.iter().rfind(|delivery| delivery.received < restarted)?;
        let first_after = *self.deliveries.iter().find(|delivery| delivery.received >= restarted)?;
        let arrived: std::collections::BTreeSet<u64> =
            self.deliveries.iter().map(|delivery| delivery.number).collect();
        let between = last_before.number..first_after.number;
        let lost = between.filter(|number| !arrived.contains(number)).count() as u64;
        Some(Outage { last_before, first_after, lost })
    }
}

#[derive(Debug, Default)]
struct Shared {
    stop_sending: AtomicBool,
    stop_receiving: AtomicBool,
    log: Mutex<StreamLog>,
}

impl Shared {
    fn log(&self) -> MutexGuard<'_, StreamLog> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running stream of UDP packets from one host to the other, at a fixed interval; stops when dropped.
#[derive(Debug)]
pub struct Stream {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Stream {
    /// The port that streams are sent to.
    pub const PORT: u16 = 7001;
    /// Octets of the shortest payload: marker, number, time.
    pub const SHORTEST: usize = 32;

    /// Sends a payload of `length` octets (at least [`Stream::SHORTEST`]) each `interval`.
    pub fn start(
        from: Host<'_>,
        to: Host<'_>,
        marker: Marker,
        interval: Duration,
        length: usize,
    ) -> Result<Stream> {
        let bind = |host: Host<'_>, port: u16| {
            host.namespace
                .enter(|| bind_soon(SocketAddr::from((host.address, port))))?
                .context(|| format!("binding {}:{port}", host.address))
        };
        let receiver = bind(to, Self::PORT)?;
        let sender = bind(from, 0)?;
        setsockopt(&receiver, sockopt::ReceiveTimestampns, &true)
            .context(|| "asking for timestamps".to_owned())?;
        receiver
            .set_read_timeout(Some(Duration::from_millis(20)))
            .context(|| "setting a timeout".to_owned())?;
        let target = SocketAddr::from((to.address, Self::PORT));
        let shared = Arc::new(Shared::default());
        let (of_sender, of_receiver) = (Arc::clone(&shared), Arc::clone(&shared));
        let threads = vec![
            std::thread::spawn(move || send(&sender, target, marker, interval, length, &of_sender)),
            std::thread::spawn(move || receive(&receiver, marker, &of_receiver)),
        ];
        Ok(Stream { shared, threads })
    }

    /// The first delivery at or after a time (CLOCK_REALTIME in nanoseconds), if there was one yet.
    pub fn first_delivery_since(&self, time: u64) -> Option<Delivery> {
        let log = self.shared.log();
        let since = log.deliveries.partition_point(|delivery| delivery.received < time);
        log.deliveries.get(since).copied()
    }

    /// Waits for a delivery at or after a time.
    pub fn wait_delivery_since(&self, time: u64, patience: Duration) -> Option<Delivery> {
        let deadline = Instant::now() + patience;
        loop {
            match self.first_delivery_since(time) {
                None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
                delivery => return delivery,
            }
        }
    }

    /// Stops sending, waits `settle` for what is on its way, and returns the log.
    pub fn stop(mut self, settle: Duration) -> StreamLog {
        self.shared.stop_sending.store(true, Ordering::Relaxed);
        std::thread::sleep(settle);
        self.join();
        std::mem::take(&mut self.shared.log())
    }

    fn join(&mut self) {
        self.shared.stop_sending.store(true, Ordering::Relaxed);
        self.shared.stop_receiving.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.join();
    }
}

/// A child that another thread has just forked holds the socket of the stream before, until it executes its program.
fn bind_soon(address: SocketAddr) -> std::io::Result<UdpSocket> {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        match UdpSocket::bind(address) {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            bound => return bound,
        }
    }
}

fn send(
    socket: &UdpSocket,
    to: SocketAddr,
    marker: Marker,
    interval: Duration,
    length: usize,
    shared: &Shared,
) {
    be_punctual();
    let mut payload = vec![0; length.max(Stream::SHORTEST)];
    payload[..16].copy_from_slice(&marker.0);
    let mut due = Instant::now();
    for number in 0_u64.. {
        if shared.stop_sending.load(Ordering::Relaxed) {
            return;
        }
        let sent = now();
        payload[16..24].copy_from_slice(&number.to_be_bytes());
        payload[24..32].copy_from_slice(&sent.to_be_bytes());
        shared.log().sent.push(sent);
        // A send that the kernel refuses (no route while a gateway is down) is a packet lost.
        drop(socket.send_to(&payload, to));
        due += interval;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

fn receive(socket: &UdpSocket, marker: Marker, shared: &Shared) {
    be_punctual();
    let mut payload = [0; 65_536];
    while !shared.stop_receiving.load(Ordering::Relaxed) {
        let mut control = nix::cmsg_space!(nix::sys::time::TimeSpec);
        let mut slices = [IoSliceMut::new(&mut payload)];
        let received = recvmsg::<SockaddrStorage>(
            socket.as_raw_fd(),
            &mut slices,
            Some(&mut control),
            MsgFlags::empty(),
        );
        let Ok(message) = received else { continue };
        let at = message.cmsgs().ok().and_then(|mut messages| {
            messages.find_map(|message| match message {
                ControlMessageOwned::ScmTimestampns(time) => Some(nanoseconds(time)),
                _ => None,
            })
        });
        let length = message.bytes;
        let field = |at: usize| payload[at..at + 8].try_into().map_or(0, u64::from_be_bytes);
        if length >= Stream::SHORTEST && payload[..16] == marker.0 {
            let delivery = Delivery { number: field(16), sent: field(24), received: at.unwrap_or_else(now) };
            shared.log().deliveries.push(delivery);
        }
    }
}

/// A TCP transfer that came to its end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Transfer {
    /// Octets sent, and received.
    pub octets: usize,
    /// From the connection's establishment to the last octet.
    pub elapsed: Duration,
    /// SHA-256 of what was sent.
    pub sent: [u8; 32],
    /// SHA-256 of what was received.
    pub received: [u8; 32],
}

impl Transfer {
    /// Whether what arrived is what was sent.
    pub fn is_intact(&self) -> bool {
        self.sent == self.received
    }

    /// Bits of payload per second.
    pub fn bits_per_second(&self) -> f64 {
        self.octets as f64 * 8.0 / self.elapsed.as_secs_f64()
    }
}

/// Sends pseudo-random octets (the marker in each 1,024) over TCP and compares the digests; an error if the
/// connection stalls for longer than `patience`.
pub fn tcp_transfer(
    from: Host<'_>,
    to: Host<'_>,
    marker: Marker,
    octets: usize,
    patience: Duration,
) -> Result<Transfer> {
    let what = || format!("TCP from {} to {}", from.address, to.address);
    let mut data = vec![0; octets];
    ChaCha8Rng::seed_from_u64(octets as u64).fill_bytes(&mut data);
    for block in data.chunks_exact_mut(1024) {
        block[..16].copy_from_slice(&marker.0);
    }
    let listener = to.namespace.enter(|| TcpListener::bind((to.address, 0)))?.context(what)?;
    let target = listener.local_addr().context(what)?;
    let receiver = std::thread::spawn(move || -> std::io::Result<Vec<u8>> {
        listener.set_nonblocking(true)?;
        let deadline = Instant::now() + patience;
        let mut connection = loop {
            match listener.accept() {
                Ok((connection, _)) => break connection,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => return Err(error),
            }
        };
        connection.set_nonblocking(false)?;
        connection.set_read_timeout(Some(patience))?;
        let mut received = Vec::with_capacity(octets);
        connection.read_to_end(&mut received)?;
        connection.write_all(b"\n")?;
        Ok(received)
    });
    let (data, elapsed) = from
        .namespace
        .enter(move || -> std::io::Result<(Vec<u8>, Duration)> {
            let mut connection = TcpStream::connect_timeout(&target, patience)?;
            connection.set_write_timeout(Some(patience))?;
            connection.set_read_timeout(Some(patience))?;
            let start = Instant::now();
            connection.write_all(&data)?;
            connection.shutdown(std::net::Shutdown::Write)?;
            // The receiver's word that it has everything.
            connection.read_exact(&mut [0])?;
            Ok((data, start.elapsed()))
        })?
        .context(what)?;
    let received = receiver
        .join()
        .map_err(|_| Error::Subject("the receiver's thread is gone".to_owned()))?
        .context(what)?;
    let digest = |octets: &[u8]| <[u8; 32]>::from(Sha256::digest(octets));
    Ok(Transfer { octets: received.len(), elapsed, sent: digest(&data), received: digest(&received) })
}

/// Sends one UDP payload of each size and returns the sizes that did not arrive whole. Payloads of 16 octets and more
/// begin with the marker.
pub fn udp_sweep(
    from: Host<'_>,
    to: Host<'_>,
    marker: Marker,
    sizes: std::ops::RangeInclusive<usize>,
    interval: Duration,
    settle: Duration,
) -> Result<Vec<usize>> {
    let bind = |host: Host<'_>| {
        host.namespace
            .enter(|| UdpSocket::bind((host.address, 0)))?
            .context(|| format!("binding a UDP socket to {}", host.address))
    };
    let (sender, receiver) = (bind(from)?, bind(to)?);
    let target = receiver.local_addr().context(|| "reading a socket's address".to_owned())?;
    receiver.set_read_timeout(Some(settle)).context(|| "setting a timeout".to_owned())?;
    setsockopt(&receiver, sockopt::RcvBufForce, &(16 << 20)).context(|| "sizing a buffer".to_owned())?;
    let payload = |size: usize| {
        let mut payload: Vec<u8> = (0..size).map(|at| (at * 7 + size) as u8).collect();
        if let Some(start) = payload.get_mut(..16) {
            start.copy_from_slice(&marker.0);
        }
        payload
    };
    let wanted = sizes.clone();
    let reader = std::thread::spawn(move || {
        let mut arrived = BTreeMap::new();
        let mut buffer = [0; 65_536];
        while let Ok(length) = receiver.recv(&mut buffer) {
            arrived.insert(length, buffer[..length].to_vec());
            if wanted.clone().all(|size| arrived.contains_key(&size)) {
                break;
            }
        }
        arrived
    });
    for size in sizes.clone() {
        drop(sender.send_to(&payload(size), target));
        std::thread::sleep(interval);
    }
    let arrived = reader.join().map_err(|_| Error::Subject("the receiver's thread is gone".to_owned()))?;
    Ok(sizes.filter(|size| arrived.get(size) != Some(&payload(*size))).collect())
}

/// The answers to `count` echo requests, of `size` payload octets each, with the round-trip time in milliseconds.
pub fn ping(from: Host<'_>, to: IpAddr, count: u32, size: usize) -> Result<Vec<f64>> {
    let (size, to) = (size.to_string(), to.to_string());
    let time = |line: &str| line.split("time=").nth(1)?.split_whitespace().next()?.parse::<f64>().ok();
    let mut times = Vec::new();
    // One at a time: of several, ping waits for the last one's answer no longer than two round trips.
    for _ in 0..count {
        // ping ends with an error if an answer is missing; here that is a result.
        let output = from
            .namespace
            .command("ping")
            .args(["-n", "-W", "2", "-c", "1", "-s", &size, &to])
            .env("LC_ALL", "C")
            .output()
            .context(|| "starting ping".to_owned())?;
        let text = String::from_utf8_lossy(&output.stdout);
        times.extend(text.lines().filter(|line| !line.contains("DUP!")).find_map(time));
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_somebody_holds_for_a_moment_is_waited_for() {
        let held = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = held.local_addr().unwrap();
        let holder = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            drop(held);
        });
        assert_eq!(bind_soon(address).unwrap().local_addr().unwrap(), address);
        holder.join().unwrap();
    }

    fn log(received: &[(u64, u64)]) -> StreamLog {
        StreamLog {
            sent: (0..10).map(|number| number * 10).collect(),
            deliveries: received
                .iter()
                .map(|&(number, received)| Delivery { number, sent: number * 10, received })
                .collect(),
        }
    }

    #[test]
    fn an_outage_spans_the_restart_and_counts_what_never_arrived() {
        let log = log(&[(0, 1), (1, 11), (2, 21), (3, 33), (7, 75), (8, 81), (9, 91)]);
        let outage = log.outage(50).expect("deliveries on both sides");
        assert_eq!((outage.last_before.number, outage.first_after.number), (3, 7));
        assert_eq!((outage.length(), outage.lost, log.lost()), (42, 3, 3));
    }

    #[test]
    fn no_outage_is_reported_without_a_delivery_after_the_restart() {
        assert_eq!(log(&[(0, 1), (1, 11)]).outage(50), None);
        assert_eq!(log(&[(7, 75)]).outage(50), None);
    }
}
