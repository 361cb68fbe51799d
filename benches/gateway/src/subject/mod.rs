//! What is measured: our gateway and its peers.

mod boringtun;
mod dataplane;
mod dpdk;

pub(crate) use boringtun::Boringtun;
pub(crate) use dataplane::Dataplane;
pub(crate) use dpdk::{Dpdk, HugePages, Neighbours};

use std::path::Path;

/// Where programs lie that are not Debian's.
pub(crate) struct Programs<'a> {
    /// Ours.
    pub(crate) spindle: &'a Path,
    /// ipsec-secgw.
    pub(crate) ipsec_secgw: &'a Path,
    /// boringtun-cli.
    pub(crate) boringtun: &'a Path,
}
