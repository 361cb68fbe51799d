//! Which of our addresses are on this machine, in a cluster, where whoever moves them between the members (keepalived,
//! say) gives and takes them while we run.
//!
//! The kernel's notifications only say that something may have changed; what is so, its list of addresses says, anew each
//! time. So nothing is to be kept in step with it, and `ip_nonlocal_bind` deceives nobody.

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;
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

    /// Looks again if the kernel has told something; those that are here now, if that is another answer.
    pub(super) fn changed(&mut self) -> Option<&[IpAddr]> {
        let (mut told, mut message) = (false, [0; 4096]);
        // Told more than the queue held: that is news as well.
        while let Ok(_) | Err(Errno::NOBUFS | Errno::INTR) =
            recv(self.bell.get_ref(), &mut message, RecvFlags::empty())
        {
            told = true;
        }
        if !told {
            return None;
        }
        let here = on_this_machine(&self.configured).unwrap_or_else(|error| {
            tracing::error!(%error, "the kernel does not say which addresses are here, so none is taken to be");
            Vec::new()
        });
        let changed = here != self.here;
        self.here = here;
        changed.then_some(&self.here[..])
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

    #[test]
    fn an_address_is_here_if_an_interface_has_it() {
        let asked = ["127.0.0.1", "192.0.2.77", "127.0.0.2"].map(|a| a.parse().expect("an address"));
        assert_eq!(on_this_machine(&asked).expect("the kernel tells"), [asked[0]]);
    }
}
