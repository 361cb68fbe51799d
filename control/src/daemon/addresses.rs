//! Which of our addresses are on this machine, in a cluster, where whoever moves them between the members (keepalived,
//! say) gives and takes them while we run.
//!
//! What is here, the kernel's list of addresses says, anew each time that the kernel has told something; so nothing is to be
//! kept in step with it, and `ip_nonlocal_bind` deceives nobody. Its notifications say what has left in between: an address
//! that is back by the next look was another member's meanwhile, who may have told the peers that our SAs are lost.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressAttribute;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use tokio::io::unix::AsyncFd;

/// RTMGRP_IPV4_IFADDR and RTMGRP_IPV6_IFADDR: an address came to an interface, or left it.
const GROUPS: u32 = 0x10 | 0x100;

/// Follows them.
pub(super) struct Addresses {
    configured: Vec<IpAddr>,
    here: Vec<IpAddr>,
    bell: AsyncFd<OwnedFd>,
}

impl Addresses {
    /// Follows these from now on.
    pub(super) fn follow(configured: Vec<IpAddr>) -> io::Result<Addresses> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // No protocol's number is that of NETLINK_ROUTE.
        let bell = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        bind(&bell, &SocketAddrNetlink::new(0, GROUPS))?;
        #[expect(
            deprecated,
            reason = "an OwnedFd is the descriptor that it claims to be; the successor is unsafe"
        )]
        let bell = AsyncFd::new(bell)?;
        // The bell rings from here on, so nothing that comes after this look is missed.
        let here = on_this_machine(&configured)?;
        Ok(Addresses { configured, here, bell })
    }

    /// Those that are here, as of the last look.
    pub(super) fn here(&self) -> &[IpAddr] {
        &self.here
    }

    /// Looks again if the kernel has told something; what was here since then, in order: nothing if nothing has changed.
    pub(super) fn changed(&mut self) -> Vec<Vec<IpAddr>> {
        let (mut told, mut all, mut left, mut message) = (false, false, HashSet::new(), [0; 4096]);
        loop {
            match recv(self.bell.get_ref(), &mut message, RecvFlags::empty()) {
                Ok((length, _)) => left.extend(removed(&message[..length.min(4096)])),
                // Told more than the queue held: that may have been anything.
                Err(Errno::NOBUFS) => all = true,
                Err(Errno::INTR) => continue,
                Err(_) => break,
            }
            told = true;
        }
        if !told {
            return Vec::new();
        }
        let here = on_this_machine(&self.configured).unwrap_or_else(|error| {
            tracing::error!(%error, "the kernel does not say which addresses are here, so none is taken to be");
            Vec::new()
        });
        let before = std::mem::replace(&mut self.here, here);
        steps(&before, &self.here, |address| all || left.contains(address))
    }

    /// Until the kernel has told something.
    pub(super) async fn wait(&self) {
        match self.bell.readable().await {
            Ok(mut ready) => ready.clear_ready(),
            // Without the event loop nothing else would wake us either.
            Err(_) => std::future::pending().await,
        }
    }
}

/// From what was here to what is, if some of it was away meanwhile.
fn steps(before: &[IpAddr], here: &[IpAddr], left: impl Fn(&IpAddr) -> bool) -> Vec<Vec<IpAddr>> {
    let (gone, stayed): (Vec<_>, Vec<_>) =
        before.iter().copied().filter(|address| here.contains(address)).partition(|address| left(address));
    let mut steps = Vec::new();
    if !gone.is_empty() {
        steps.push(stayed);
    }
    if !gone.is_empty() || before != here {
        steps.push(here.to_vec());
    }
    steps
}

/// The addresses whose removal these messages of the kernel's tell.
fn removed(mut octets: &[u8]) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    while let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(octets) {
        let next = (message.header.length as usize).next_multiple_of(4);
        octets = octets.get(next..).unwrap_or_default();
        if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelAddress(removed)) = message.payload {
            addresses.extend(removed.attributes.into_iter().filter_map(|attribute| match attribute {
                AddressAttribute::Address(address) | AddressAttribute::Local(address) => Some(address),
                _ => None,
            }));
        }
    }
    addresses
}

/// In the order of the configuration.
fn on_this_machine(addresses: &[IpAddr]) -> io::Result<Vec<IpAddr>> {
    let assigned: HashSet<IpAddr> =
        getifaddrs()?.filter_map(|interface| address(interface.address?)).collect();
    Ok(addresses.iter().copied().filter(|address| assigned.contains(address)).collect())
}

fn address(storage: SockaddrStorage) -> Option<IpAddr> {
    let v4 = storage.as_sockaddr_in().map(|a| a.ip().into());
    v4.or_else(|| storage.as_sockaddr_in6().map(|a| a.ip().into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_route::AddressFamily;
    use netlink_packet_route::address::AddressMessage;
    use rtnetlink::packet_core::NetlinkHeader;

    /// RFC 6290 section 9.2: who had it in between may have shown tokens of our SAs.
    #[test]
    fn an_address_that_is_back_by_the_next_look_was_away() {
        let [a, b, c] = ["192.0.2.1", "192.0.2.2", "192.0.2.3"].map(|a| a.parse().expect("an address"));
        let left = |gone: &'static [usize]| move |x: &IpAddr| gone.iter().any(|n| [a, b, c][*n] == *x);
        assert_eq!(steps(&[a, b], &[a, b], left(&[])), Vec::<Vec<IpAddr>>::new());
        assert_eq!(steps(&[a, b], &[a, b], left(&[1])), [vec![a], vec![a, b]]);
        assert_eq!(steps(&[a, b], &[a], left(&[1])), [vec![a]], "it is not back");
        assert_eq!(steps(&[a], &[a, b], left(&[1])), [vec![a, b]], "it came, left and came again");
        assert_eq!(steps(&[a, b], &[b, c], left(&[0, 1])), [vec![], vec![b, c]]);
    }

    #[test]
    fn removals_are_read_from_the_kernels_messages() {
        let told = |inner: fn(AddressMessage) -> RouteNetlinkMessage, address: IpAddr| {
            let mut message = AddressMessage::default();
            message.header.family = AddressFamily::Inet;
            message.attributes.push(AddressAttribute::Local(address));
            let mut message = NetlinkMessage::new(NetlinkHeader::default(), inner(message).into());
            message.finalize();
            let mut octets = vec![0; message.buffer_len()];
            message.serialize(&mut octets);
            octets
        };
        let [a, b, c] = ["192.0.2.1", "192.0.2.2", "192.0.2.3"].map(|a| a.parse().expect("an address"));
        let octets = [
            told(RouteNetlinkMessage::DelAddress, a),
            told(RouteNetlinkMessage::NewAddress, b),
            told(RouteNetlinkMessage::DelAddress, c),
        ];
        assert_eq!(removed(&octets.concat()), [a, c]);
        assert_eq!(removed(&octets.concat()[..50]), [a], "the rest is cut off");
        assert_eq!(removed(&[0; 64]), Vec::<IpAddr>::new());
    }

    #[test]
    fn an_address_is_here_if_an_interface_has_it() {
        let asked = ["127.0.0.1", "192.0.2.77", "127.0.0.2"].map(|a| a.parse().expect("an address"));
        assert_eq!(on_this_machine(&asked).expect("the kernel tells"), [asked[0]]);
    }
}
