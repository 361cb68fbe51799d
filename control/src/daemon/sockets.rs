//! UDP ports 500 and 4500 on each local address. A task for each socket hands datagrams to the daemon through a
//! bounded queue; when it is full the kernel's own queue fills and then drops.
//!
//! Each socket is bound to its address, so a datagram's destination is known. ESP in UDP (RFC 3948) is the
//! dataplane's: it never comes here while XDP is attached, and what comes without a non-ESP marker is dropped.

use super::messages::{Messages, Way};
use nix::sys::socket::{setsockopt, sockopt};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};
use spindle_ike::api::Datagram;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

/// Datagrams waiting for the daemon at most.
const WAITING: usize = 1024;
/// Octets of the kernel's queue for each socket.
const KERNEL_QUEUE: usize = 4 << 20;
/// The longest UDP payload over IPv4.
const MAX_DATAGRAM: usize = 65_507;
/// The ports of RFC 7296 and RFC 3948, as the IKE side knows them whatever ports we really use.
const IKE: u16 = 500;
const NATT: u16 = 4500;

/// What sockets have counted.
#[derive(Default)]
pub(super) struct Counts {
    received: AtomicU64,
    sent: AtomicU64,
    not_sent: AtomicU64,
    without_marker: AtomicU64,
    messages: Messages,
}

/// All sockets.
pub(super) struct Sockets {
    sockets: HashMap<SocketAddr, Arc<UdpSocket>>,
    counts: Arc<Counts>,
    ports: [u16; 2],
    moved: bool,
    device: Option<String>,
    sender: mpsc::Sender<Datagram>,
}

impl Sockets {
    /// Binds `ports` (for IKE, and for IKE and ESP in UDP) on every address, on those that are not on this machine too if
    /// they are `moved`: then they serve as long as they are here. What passes goes by `device`, if there is one, whatever
    /// the routes say. The error names address and port.
    pub(super) fn bind(
        addresses: &[IpAddr],
        ports: [u16; 2],
        moved: bool,
        device: Option<&str>,
    ) -> Result<(Sockets, mpsc::Receiver<Datagram>), (SocketAddr, io::Error)> {
        let (sender, receiver) = mpsc::channel(WAITING);
        let counts = Arc::new(Counts::default());
        let (sockets, device) = (HashMap::new(), device.map(str::to_owned));
        let mut sockets = Sockets { sockets, counts, ports, moved, device, sender };
        sockets.add(addresses)?;
        Ok((sockets, receiver))
    }

    /// Binds the same on further addresses; all of them, or none.
    pub(super) fn add(&mut self, addresses: &[IpAddr]) -> Result<(), (SocketAddr, io::Error)> {
        let mut bound = Vec::new();
        for address in addresses.iter().filter(|a| !self.sockets.contains_key(&SocketAddr::new(**a, IKE))) {
            for (port, known_as) in self.ports.into_iter().zip([IKE, NATT]) {
                let real = SocketAddr::new(*address, port);
                let socket = bind(real, self.moved, self.device.as_deref()).map_err(|e| (real, e))?;
                bound.push((SocketAddr::new(*address, known_as), Arc::new(socket)));
            }
        }
        for (local, socket) in bound {
            tokio::spawn(receive(socket.clone(), local, self.sender.clone(), self.counts.clone()));
            self.sockets.insert(local, socket);
        }
        Ok(())
    }

    /// Sends, or counts what cannot be sent now: retransmission makes up for it. By a system call of its own, for the
    /// event loop believes that a socket is writable only once it has heard so, too late for the first answers.
    pub(super) fn send(&self, datagram: &Datagram) {
        let sent = match self.sockets.get(&datagram.local) {
            Some(socket) => rustix::net::sendto(socket, &datagram.data, SendFlags::empty(), &datagram.remote),
            None => Err(Errno::ADDRNOTAVAIL),
        };
        let counter = match sent {
            Ok(_) => {
                self.counts.messages.count(Way::Sent, message(datagram.local, &datagram.data));
                &self.counts.sent
            }
            Err(e) => {
                tracing::debug!("not sent from {} to {}: {e}", datagram.local, datagram.remote);
                &self.counts.not_sent
            }
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// What the kernel has dropped of what came for these sockets: its queue was full, or a checksum wrong.
    fn lost(&self) -> u64 {
        let inodes: Vec<u64> =
            self.sockets.values().filter_map(|s| Some(rustix::fs::fstat(s).ok()?.st_ino)).collect();
        let tables = ["/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"];
        let read = tables.iter().filter_map(|table| std::fs::read_to_string(table).ok());
        read.map(|table| drops(&table, &inodes)).sum()
    }

    /// Names and values for `stats`.
    pub(super) fn stats(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let datagrams = [
            ("datagrams_received", value(&self.counts.received)),
            ("datagrams_lost", self.lost()),
            ("datagrams_sent", value(&self.counts.sent)),
            ("datagrams_not_sent", value(&self.counts.not_sent)),
            ("datagrams_without_marker", value(&self.counts.without_marker)),
        ];
        datagrams.into_iter().chain(self.counts.messages.stats())
    }
}

/// Of these sockets, by inode, as one of the kernel's tables of them says (`/proc/net/udp`): the last column of each line.
fn drops(table: &str, inodes: &[u64]) -> u64 {
    let of_line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let inode = words.get(9)?.parse().ok()?;
        inodes.contains(&inode).then(|| words.get(12)?.parse::<u64>().ok()).flatten()
    };
    table.lines().filter_map(of_line).sum()
}

/// The IKE message of a datagram: what follows the non-ESP marker (RFC 3948 section 2.2).
fn message(local: SocketAddr, data: &[u8]) -> &[u8] {
    if local.port() == NATT { data.get(4..).unwrap_or(&[]) } else { data }
}

fn bind(address: SocketAddr, moved: bool, device: Option<&str>) -> io::Result<UdpSocket> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, None)?;
    if moved {
        match address {
            SocketAddr::V4(_) => rustix::net::sockopt::set_ip_freebind(&socket, true)?,
            SocketAddr::V6(_) => rustix::net::sockopt::set_ipv6_freebind(&socket, true)?,
        }
    }
    if let Some(device) = device {
        setsockopt(&socket, sockopt::BindToDevice, &device.into())?;
    }
    rustix::net::bind(&socket, &address)?;
    let socket = std::net::UdpSocket::from(socket);
    // Beyond the system's limit only for the privileged; less is no failure.
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, KERNEL_QUEUE);
    UdpSocket::from_std(socket)
}

async fn receive(
    socket: Arc<UdpSocket>,
    local: SocketAddr,
    sender: mpsc::Sender<Datagram>,
    counts: Arc<Counts>,
) {
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        let (length, remote) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // An ICMP error about a datagram of ours: no conclusion is drawn (RFC 7296 section 2.4).
            Err(e) => {
                tracing::debug!("{local}: {e}");
                tokio::task::yield_now().await;
                continue;
            }
        };
        let data = &buffer[..length];
        // RFC 3948 section 2.2 and 2.3: only after four zero octets does IKE begin; one octet of 0xff is a keepalive.
        if local.port() == NATT && !data.starts_with(&[0; 4]) {
            counts.without_marker.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        counts.received.fetch_add(1, Ordering::Relaxed);
        counts.messages.count(Way::Received, message(local, data));
        if sender.send(Datagram { local, remote, data: data.to_vec() }).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_drops_are_summed_by_inode() {
        let table = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n\
             \x20 101: 010200C0:01F4 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4711 2 0000000000000000 852\n\
             \x20 102: 010200C0:1194 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4712 2 0000000000000000 3\n\
             \x20 103: 010200C0:1B59 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4713 2 0000000000000000 9\n";
        assert_eq!(drops(table, &[4711, 4712]), 855);
        assert_eq!(drops(table, &[]), 0);
        assert_eq!(drops("4711 words\n", &[4711]), 0);
    }

    /// More than its queue holds, while nobody reads.
    #[tokio::test]
    async fn each_datagram_is_received_or_lost() {
        const SENT: u64 = 20_000;
        let (sockets, mut datagrams) =
            Sockets::bind(&["127.0.0.1".parse().unwrap()], [0, 0], false, None).unwrap();
        let local = SocketAddr::new("127.0.0.1".parse().unwrap(), IKE);
        let to = sockets.sockets[&local].local_addr().unwrap();
        let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..SENT {
            sender.send_to(&[1; 300], to).unwrap();
        }
        let count = |name: &str| sockets.stats().find(|(n, _)| *n == name).map_or(0, |(_, value)| value);
        let lost = count("datagrams_lost");
        assert!(lost > 0);
        for _ in 0..SENT - lost {
            datagrams.recv().await.unwrap();
        }
        assert_eq!((count("datagrams_received"), count("datagrams_lost")), (SENT - lost, lost));
    }

    /// Before the event loop has been asked even once, as at the start, where the first answers are due.
    #[tokio::test]
    async fn a_datagram_leaves_a_socket_that_was_just_bound() {
        let peer = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let (sockets, _datagrams) =
            Sockets::bind(&["127.0.0.1".parse().unwrap()], [0, 0], false, None).unwrap();
        let local = SocketAddr::new("127.0.0.1".parse().unwrap(), IKE);
        sockets.send(&Datagram { local, remote: peer.local_addr().unwrap(), data: b"message".to_vec() });
        let mut buffer = [0; 16];
        peer.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
        assert_eq!(peer.recv(&mut buffer).unwrap(), 7);
        let count = |name: &str| sockets.stats().find(|(n, _)| *n == name).map(|(_, value)| value);
        assert_eq!((count("datagrams_sent"), count("datagrams_not_sent")), (Some(1), Some(0)));
    }

    /// RFC 6290 section 9.2: nothing is said from an address that another member of the cluster has.
    #[tokio::test]
    async fn nothing_leaves_from_an_address_that_is_not_here() {
        let elsewhere = "192.0.2.77".parse().unwrap();
        let refused = Sockets::bind(&[elsewhere], [0, 0], false, None);
        assert!(refused.is_err_and(|(_, e)| e.kind() == io::ErrorKind::AddrNotAvailable));
        let (sockets, _datagrams) = Sockets::bind(&[elsewhere], [0, 0], true, None).unwrap();
        let peer = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let local = SocketAddr::new(elsewhere, IKE);
        sockets.send(&Datagram { local, remote: peer, data: b"message".to_vec() });
        let count = |name: &str| sockets.stats().find(|(n, _)| *n == name).map(|(_, value)| value);
        assert_eq!((count("datagrams_sent"), count("datagrams_not_sent")), (Some(0), Some(1)));
    }
}
