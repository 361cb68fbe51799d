//! Addresses and routes of virtual interfaces. The dataplane makes the devices; here they are given what the configuration
//! says, and taken away at the end.
//!
//! What goes into the tunnels by address has its routes in a table of its own, which a rule asks before the main one: so no
//! route of the operator's is in its way, nor changed by it. The selectors' own side is thrown back to the main table,
//! as 10.1.0.0/24 must be where 10.0.0.0/8 is behind the peer. Devices stay when the processes die, and their routes with
//! them; [`remove`] is for the operator's own end.

use crate::config::Settings;
use futures_util::TryStreamExt;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};
use spindle_abi::{AddressRange, SelectorSet};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The table's number, and its rule's priority: after the one of local addresses, before the main table's.
const TABLE: u32 = 210;

type Problem = Box<dyn std::error::Error + Send + Sync>;

/// A network: its first address and the prefix length in bits.
pub(crate) type Network = (IpAddr, u8);

fn connect() -> Result<Handle, Problem> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    Ok(handle)
}

/// Gives each device what it should have; again, after a start, to those that have it already.
pub(crate) async fn apply(settings: &Settings) -> Result<(), Problem> {
    let devices = settings.devices();
    if devices.is_empty() {
        return Ok(());
    }
    let handle = connect()?;
    let mut indexes = BTreeMap::new();
    for device in &devices {
        let index =
            index_of(&handle, &device.name).await.ok_or_else(|| format!("{} is gone", device.name))?;
        for (address, length) in &device.addresses {
            let add = handle.address().add(index, *address, *length).replace().execute().await;
            add.map_err(|e| format!("{}: address {address}/{length}: {e}", device.name))?;
        }
        for network in &device.routes {
            let route = route(*network, None)?.output_interface(index).build();
            let add = handle.route().add(route).replace().execute().await;
            add.map_err(|e| format!("{}: route {}/{}: {e}", device.name, network.0, network.1))?;
        }
        indexes.insert(device.number, (device.name.as_str(), index));
    }
    by_address(&handle, settings, &indexes).await
}

/// The table of what goes into the tunnels by address; of each device, by its number, the name and the kernel's index.
async fn by_address(
    handle: &Handle,
    settings: &Settings,
    devices: &BTreeMap<u16, (&str, u32)>,
) -> Result<(), Problem> {
    let mut wanted = BTreeSet::new();
    // Without a device of the inside, hosts are there, and route by themselves.
    let sets = settings.by_address().into_iter();
    let sets: Vec<_> = sets.filter_map(|(number, set)| Some((*devices.get(&number)?, set))).collect();
    let remote: BTreeSet<Network> =
        sets.iter().flat_map(|(_, set)| &set.remote).flat_map(|s| s.addresses.networks()).collect();
    for ((device, index), set) in sets {
        for network in set.remote.iter().flat_map(|s| s.addresses.networks()) {
            let source = own_address(set, network.0.is_ipv4());
            let route = route(network, source)?.output_interface(index).table_id(TABLE).build();
            let add = handle.route().add(route).replace().execute().await;
            add.map_err(|e| format!("{device}: route {}/{}: {e}", network.0, network.1))?;
            wanted.insert(network);
        }
        for network in set.local.iter().flat_map(|s| s.addresses.networks()) {
            if remote.contains(&network) {
                continue;
            }
            let back = route(network, None)?.table_id(TABLE).kind(RouteType::Throw).build();
            let add = handle.route().add(back).replace().execute().await;
            add.map_err(|e| format!("route throw {}/{}: {e}", network.0, network.1))?;
            wanted.insert(network);
        }
    }
    for old in table(handle).await? {
        if destination(&old).is_some_and(|network| !wanted.contains(&network)) {
            handle.route().del(old).execute().await?;
        }
    }
    for version in [IpVersion::V4, IpVersion::V6] {
        let is_of = |network: &Network| network.0.is_ipv4() == matches!(version, IpVersion::V4);
        if wanted.iter().any(is_of) && rules(handle, version.clone()).await?.is_empty() {
            let rule = handle.rule().add().table_id(TABLE).priority(TABLE).action(RuleAction::ToTable);
            match version {
                IpVersion::V4 => rule.v4().execute().await?,
                IpVersion::V6 => rule.v6().execute().await?,
            }
        }
    }
    Ok(())
}

/// Takes away the devices, and with them their addresses and routes.
pub(crate) async fn remove(settings: &Settings) -> Result<(), Problem> {
    let devices = settings.devices();
    if devices.is_empty() {
        return Ok(());
    }
    let handle = connect()?;
    for version in [IpVersion::V4, IpVersion::V6] {
        for rule in rules(&handle, version).await? {
            handle.rule().del(rule).execute().await?;
        }
    }
    for old in table(&handle).await? {
        handle.route().del(old).execute().await?;
    }
    for device in devices {
        if let Some(index) = index_of(&handle, &device.name).await {
            handle.link().del(index).execute().await?;
        }
    }
    Ok(())
}

async fn index_of(handle: &Handle, name: &str) -> Option<u32> {
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    Some(links.try_next().await.ok()??.header.index)
}

fn route((address, length): Network, source: Option<IpAddr>) -> Result<RouteMessageBuilder<IpAddr>, Problem> {
    let route = RouteMessageBuilder::<IpAddr>::new().destination_prefix(address, length)?;
    Ok(match source {
        Some(source) => route.pref_source(source)?,
        None => route,
    })
}

fn destination(route: &RouteMessage) -> Option<Network> {
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::from(*address)),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::from(*address)),
        _ => None,
    });
    let any = || match route.header.address_family {
        netlink_packet_route::AddressFamily::Inet => Some(IpAddr::from([0; 4])),
        netlink_packet_route::AddressFamily::Inet6 => Some(IpAddr::from([0; 16])),
        _ => None,
    };
    Some((address.or_else(any)?, route.header.destination_prefix_length))
}

/// The routes in our table. A kernel without IPv6 has none of its routes.
async fn table(handle: &Handle) -> Result<Vec<RouteMessage>, Problem> {
    let of_v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let of_v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
    let mut all: Vec<RouteMessage> = handle.route().get(of_v4).execute().try_collect().await?;
    all.extend(handle.route().get(of_v6).execute().try_collect::<Vec<_>>().await.unwrap_or_default());
    let is_ours = |a: &RouteAttribute| matches!(a, RouteAttribute::Table(table) if *table == TABLE);
    all.retain(|route| route.attributes.iter().any(is_ours));
    Ok(all)
}

async fn rules(
    handle: &Handle,
    version: IpVersion,
) -> Result<Vec<netlink_packet_route::rule::RuleMessage>, Problem> {
    let listed = handle.rule().get(version.clone()).execute().try_collect::<Vec<_>>().await;
    let rules = match listed {
        Err(_) if matches!(version, IpVersion::V6) => Vec::new(),
        listed => listed?,
    };
    let is_ours = |a: &RuleAttribute| matches!(a, RuleAttribute::Priority(priority) if *priority == TABLE);
    Ok(rules.into_iter().filter(|rule| rule.attributes.iter().any(is_ours)).collect())
}

/// The address of this machine that packets of these selectors come from: the first one that they allow.
fn own_address(set: &SelectorSet, is_ipv4: bool) -> Option<IpAddr> {
    let here: Vec<IpAddr> = nix::ifaddrs::getifaddrs()
        .into_iter()
        .flatten()
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::from(a.ip())))
        })
        .filter(|address| address.is_ipv4() == is_ipv4 && !address.is_loopback())
        .collect();
    source_among(set, &here)
}

/// A link-local address is none but where a selector is that address: nobody beyond the link could answer (RFC 4291 section
/// 2.5.6, RFC 3927 section 2.7).
fn source_among(set: &SelectorSet, here: &[IpAddr]) -> Option<IpAddr> {
    let may_be = |range: &AddressRange, address: IpAddr| {
        range.contains(address) && (!is_link_local(address) || range.start == range.end)
    };
    let mut found = set
        .local
        .iter()
        .filter_map(|selector| here.iter().find(|address| may_be(&selector.addresses, **address)));
    found.next().copied()
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spindle_abi::Selector;

    fn addresses(all: &[&str]) -> Vec<IpAddr> {
        all.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn set(all: &[(&str, &str)]) -> SelectorSet {
        let any =
            |(start, end): &(&str, &str)| Selector::addresses(start.parse().unwrap(), end.parse().unwrap());
        let local = all.iter().map(any).collect();
        SelectorSet { local, remote: Vec::new() }
    }

    #[test]
    fn a_link_local_address_is_no_source_but_where_it_is_the_selector() {
        let here = addresses(&["fe80::1", "169.254.7.1", "2001:db8::1", "10.1.0.1"]);
        let own = |all: &[(&str, &str)]| source_among(&set(all), &here).map(|a| a.to_string());
        let six = ("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff");
        assert_eq!(own(&[six]).as_deref(), Some("2001:db8::1"));
        assert_eq!(own(&[("0.0.0.0", "255.255.255.255")]).as_deref(), Some("10.1.0.1"));
        assert_eq!(own(&[("fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff")]), None);
        assert_eq!(own(&[("fe80::1", "fe80::1"), six]).as_deref(), Some("fe80::1"));
        assert_eq!(own(&[("169.254.7.1", "169.254.7.1")]).as_deref(), Some("169.254.7.1"));
    }
}
