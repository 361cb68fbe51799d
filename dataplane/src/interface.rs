//! One of the gateway's two interfaces: whose frames come and go, and which device of the kernel's has its addresses,
//! neighbours and routes. That is the interface itself, or the device of its VLAN, to which the kernel gives the frames that
//! XDP leaves to it: IKE, ARP, neighbour discovery.

use crate::network::Link;
use anyhow::{Context, Result, bail};
use futures_util::TryStreamExt;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVlan, LinkAttribute, LinkInfo, LinkMessage, VlanProtocol,
};
use rtnetlink::Handle;
use spindle_engine::PortConfig;
use spindle_port::{Vlan, driver_name, receive_queues, takes_tags_off};
use std::net::IpAddr;
use std::str::FromStr;

/// Drivers whose frames may carry a checksum that only their own hardware would have completed.
const PARTIAL_CHECKSUM_DRIVERS: [&str; 3] = ["veth", "virtio_net", "tun"];

/// `ID:DEVICE`, as the supervisor writes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct VlanDevice {
    pub(crate) vlan: Vlan,
    pub(crate) name: String,
}

impl FromStr for VlanDevice {
    type Err = String;

    fn from_str(text: &str) -> Result<VlanDevice, String> {
        let (id, name) = text.split_once(':').ok_or("must be ID:DEVICE")?;
        let vlan = id.parse().ok().and_then(Vlan::new).ok_or("must begin with a number from 1 to 4094")?;
        Ok(VlanDevice { vlan, name: name.into() })
    }
}

/// An interface, found and checked.
#[derive(Clone, Debug)]
pub(crate) struct Interface {
    /// Whose frames are received and sent.
    pub(crate) wire: Link,
    /// What the kernel's tables know it as.
    pub(crate) link: Link,
    /// The tag of its frames.
    pub(crate) vlan: Option<Vlan>,
}

impl Interface {
    /// Looks it up, with its VLAN's device, for so many workers.
    pub(crate) async fn find(
        handle: &Handle,
        name: &str,
        of_vlan: Option<&VlanDevice>,
        workers: usize,
    ) -> Result<Interface> {
        let mut wire = Link::of(name, &message(handle, name).await?)?;
        let driver = driver_name(name).unwrap_or_default();
        wire.complete_checksums = PARTIAL_CHECKSUM_DRIVERS.contains(&driver.as_str());
        check_queues(name, workers)?;
        // Not all drivers tell.
        let takes_tags_off = takes_tags_off(name).unwrap_or(false);
        let Some(VlanDevice { vlan, name: device }) = of_vlan else {
            if takes_tags_off && has_vlans(handle, wire.index).await {
                tracing::warn!(
                    "{name} has VLANs and takes their tags off, so their frames may be taken for its own: `ethtool -K {name} rxvlan off`"
                );
            }
            return Ok(Interface { link: wire.clone(), wire, vlan: None });
        };
        let id = vlan.id();
        if takes_tags_off {
            bail!(
                "{name} takes tags off the frames that it receives, so those of VLAN {id} cannot be told: `ethtool -K {name} rxvlan off`"
            );
        }
        let found = message(handle, device).await?;
        match is_device_of(&found, wire.index, id) {
            Some(true) => {}
            Some(false) => bail!(
                "{device} is not the device of VLAN {id} (802.1Q) of {name}: name that one, as in `{{ id = {id}, device = \"…\" }}`, \
                 or create it: `ip link add link {name} name {name}.{id} type vlan id {id}`"
            ),
            None => tracing::warn!(
                "{device} is no VLAN device: what else puts tags of VLAN {id} on what it sends by {name}, and takes them off?"
            ),
        }
        let link = Link { complete_checksums: wire.complete_checksums, ..Link::of(device, &found)? };
        Ok(Interface { wire, link, vlan: Some(*vlan) })
    }
}

async fn message(handle: &Handle, name: &str) -> Result<LinkMessage> {
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    let message = links.try_next().await.ok().flatten();
    message.with_context(|| format!("there is no interface {name} in this network namespace: see `ip link`"))
}

/// Below a VLAN device stands the interface that its frames come by.
fn parent(message: &LinkMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Link(parent) => Some(*parent),
        _ => None,
    })
}

fn info(message: &LinkMessage) -> &[LinkInfo] {
    let infos = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos.as_slice()),
        _ => None,
    });
    infos.unwrap_or_default()
}

fn is_vlan(message: &LinkMessage) -> bool {
    info(message).contains(&LinkInfo::Kind(InfoKind::Vlan))
}

/// Is a VLAN device that of this VLAN? `None`: it is another kind of device.
fn is_device_of(message: &LinkMessage, interface: u32, id: u16) -> Option<bool> {
    if !is_vlan(message) {
        return None;
    }
    let data = info(message).iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vlan(data)) => Some(data.as_slice()),
        _ => None,
    });
    let data = data.unwrap_or_default();
    let is_other_protocol = |info: &InfoVlan| matches!(info, InfoVlan::Protocol(protocol) if *protocol != VlanProtocol::Ieee8021Q);
    let is_same = data.contains(&InfoVlan::Id(id)) && !data.iter().any(is_other_protocol);
    Some(is_same && parent(message) == Some(interface))
}

/// Does the kernel have VLAN devices on this interface?
async fn has_vlans(handle: &Handle, interface: u32) -> bool {
    let mut links = handle.link().get().execute();
    while let Ok(Some(message)) = links.try_next().await {
        if is_vlan(&message) && parent(&message) == Some(interface) {
            return true;
        }
    }
    false
}

/// Each worker needs a queue, and a queue without one is a black hole.
fn check_queues(name: &str, workers: usize) -> Result<()> {
    // Not all drivers tell.
    let Ok(queues) = receive_queues(name) else { return Ok(()) };
    let queues = queues as usize;
    if queues < workers {
        bail!(
            "{name} has {queues} receive queues for {workers} workers: `ethtool -L {name} combined {workers}` (veth: `rx {workers} tx {workers}`), or lower gateway.workers"
        );
    }
    if queues > workers {
        tracing::error!(
            "{name} has {queues} receive queues, and what comes on those beyond {workers} is dropped: raise gateway.workers, or \
             `ethtool -L {name} combined {workers}`"
        );
    }
    Ok(())
}

/// What the engine is told of it, where the host has these addresses.
pub(crate) fn port_config(link: &Link, host: &[(u32, IpAddr)]) -> PortConfig {
    let own = || host.iter().filter(|(index, _)| *index == link.index).map(|(_, address)| *address);
    PortConfig {
        mac: link.mac,
        mtu: link.mtu,
        complete_checksums: link.complete_checksums,
        address: own()
            .find_map(|address| if let IpAddr::V4(address) = address { Some(address) } else { None }),
        address_v6: own().find_map(|address| match address {
            IpAddr::V6(address) if !address.is_unicast_link_local() => Some(address),
            _ => None,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vlan_s_device_is_an_id_and_a_name() {
        let vlan = Vlan::new(100).unwrap();
        assert_eq!("100:eth0.100".parse(), Ok(VlanDevice { vlan, name: "eth0.100".into() }));
        for text in ["eth0.100", "0:eth0", "4095:eth0", "x:eth0"] {
            assert!(text.parse::<VlanDevice>().is_err(), "{text}");
        }
    }

    #[test]
    fn only_the_device_of_this_vlan_of_this_interface_is_it() {
        let device = |parent: u32, kind, data: Vec<InfoVlan>| {
            let mut message = LinkMessage::default();
            let info = vec![LinkInfo::Kind(kind), LinkInfo::Data(InfoData::Vlan(data))];
            message.attributes = vec![LinkAttribute::Link(parent), LinkAttribute::LinkInfo(info)];
            message
        };
        let vlan = |parent, id, protocol| {
            device(parent, InfoKind::Vlan, vec![InfoVlan::Protocol(protocol), InfoVlan::Id(id)])
        };
        let is = |message| is_device_of(&message, 7, 100);
        assert_eq!(is(vlan(7, 100, VlanProtocol::Ieee8021Q)), Some(true));
        assert_eq!(is(vlan(7, 101, VlanProtocol::Ieee8021Q)), Some(false));
        assert_eq!(is(vlan(8, 100, VlanProtocol::Ieee8021Q)), Some(false));
        assert_eq!(is(vlan(7, 100, VlanProtocol::Ieee8021Ad)), Some(false));
        assert_eq!(is(device(7, InfoKind::Veth, Vec::new())), None);
    }
}
