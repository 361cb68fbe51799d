//! The inside, and virtual interfaces: `inside`, `[gateway.interfaces.*]`, and `interface` of a child.

use super::read::{Section, Value};
use super::{ConfigError, GatewaySettings, Result, Settings, interface};
use spindle_abi::{MAX_INTERFACES, SelectorSet};
use spindle_ike::api::TransportMode;
use std::net::IpAddr;

/// The TUN device of `inside = "tun"`.
const TUN: &str = "spindle0";

/// The protected side.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Inside {
    /// An interface, whose hosts this gateway protects.
    Interface(String),
    /// This machine itself and whatever it routes for, by a TUN device with this name.
    Host(String),
}

/// `[gateway.interfaces.*]`: a virtual interface's own addresses and routes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InterfaceSettings {
    /// Its name.
    pub name: String,
    /// Addresses, with prefix lengths.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Networks that are routed into it, beside what children say.
    pub routes: Vec<(IpAddr, u8)>,
}

/// A TUN device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Device {
    /// Its number in the dataplane; 0 is the inside.
    pub number: u16,
    /// Its name.
    pub name: String,
    /// Addresses, with prefix lengths.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Networks that are routed into it.
    pub routes: Vec<(IpAddr, u8)>,
}

impl Settings {
    /// All TUN devices.
    pub fn devices(&self) -> Vec<Device> {
        let device = |number, name: &String| {
            let settings = self.gateway.interfaces.iter().find(|interface| interface.name == *name);
            Device {
                number,
                name: name.clone(),
                addresses: settings.map_or(Vec::new(), |settings| settings.addresses.clone()),
                routes: settings.map_or(Vec::new(), |settings| settings.routes.clone()),
            }
        };
        let inside = match &self.gateway.inside {
            Inside::Host(name) => Some(device(0, name)),
            Inside::Interface(_) => None,
        };
        inside
            .into_iter()
            .chain((1..).zip(&self.children_interfaces).map(|(n, name)| device(n, name)))
            .collect()
    }

    /// Selectors whose addresses alone say what is protected, each with its device's number: of children that share the
    /// inside, and of those in transport mode, who have but one peer's address to send to.
    pub fn by_address(&self) -> Vec<(u16, &SelectorSet)> {
        let children = self.connections.iter().flat_map(|c| &c.children);
        let chosen = children.filter(|c| c.interface == 0 || c.transport != TransportMode::Never);
        chosen.map(|child| (child.interface, &child.selectors)).collect()
    }

    /// Interfaces that are set must be there, and none may be one of the machine's.
    pub(super) fn check_interfaces(&self) -> Result<()> {
        let devices = self.devices();
        for interface in &self.gateway.interfaces {
            if devices.iter().all(|device| device.name != interface.name) {
                let key = format!("gateway.interfaces.{}", interface.name);
                let fix = "is no virtual interface here; write `inside = \"tun\"` for spindle0, give it to a child \
                           (`interface`), or take it out";
                return Err(self.error(&key, fix));
            }
        }
        Ok(())
    }
}

/// `inside`.
pub(super) fn inside(value: &Value<'_>) -> Result<Inside> {
    if value.is_array() {
        return interface(value).map(Inside::Interface);
    }
    let fix = "an array, as in `[\"eth1\"]`, or \"tun\" (`\"tun:NAME\"`) for this machine's own traffic";
    match value.string().map_err(|_| value.expected(fix))? {
        "tun" => Ok(Inside::Host(TUN.into())),
        text => match text.strip_prefix("tun:") {
            Some(name) => check_name(value, name).map(Inside::Host),
            None => Err(value.expected(fix)),
        },
    }
}

pub(super) fn check_name(value: &Value<'_>, name: &str) -> Result<String> {
    let valid = (1..=15).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && name != "."
        && name != "..";
    if valid {
        return Ok(name.into());
    }
    Err(value.error(format!(
        "\"{name}\" cannot be the name of such a device; write 1 to 15 letters, digits, - _ and ."
    )))
}

/// `[gateway.interfaces]`.
pub(super) fn interfaces(section: &Section<'_>) -> Result<Vec<InterfaceSettings>> {
    let mut all = Vec::new();
    for (name, value) in section.entries() {
        let name = check_name(&value, &name)?;
        let section = value.section()?;
        let list = |key, host: bool| match section.optional(key) {
            Some(value) => value.array(256)?.iter().map(|entry| network(entry, host)).collect(),
            None => Ok(Vec::new()),
        };
        let (addresses, routes) = (list("addresses", true)?, list("routes", false)?);
        section.finish()?;
        all.push(InterfaceSettings { name, addresses, routes });
    }
    Ok(all)
}

/// `10.9.0.1/30`; a network without bits of a host unless it is one.
fn network(value: &Value<'_>, host: bool) -> Result<(IpAddr, u8)> {
    let text = value.string()?;
    let example = if host { "10.9.0.1/30" } else { "10.7.0.0/16" };
    let parts = text.split_once('/').and_then(|(address, length)| {
        let (address, length) = (address.parse::<IpAddr>().ok()?, length.parse::<u8>().ok()?);
        (length <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, length))
    });
    let Some((address, length)) = parts else {
        return Err(
            value.error(format!("\"{text}\" is no address with a prefix length; write \"{example}\""))
        );
    };
    let (number, bits) = match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()), 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    };
    let of_host = 1_u128.checked_shl(bits - u32::from(length)).map_or(u128::MAX, |above| above - 1);
    if !host && number & of_host != 0 {
        return Err(
            value.error(format!("\"{text}\" has host bits set; write a network such as \"{example}\""))
        );
    }
    Ok((address, length))
}

/// `interface` of a child: its number, by the order of names in the file.
pub(super) fn of_child(
    value: &Value<'_>,
    gateway: &GatewaySettings,
    names: &mut Vec<String>,
) -> std::result::Result<u16, ConfigError> {
    let name = check_name(value, value.string()?)?;
    let taken = match &gateway.inside {
        Inside::Interface(inside) | Inside::Host(inside) => *inside == name,
    };
    if taken || gateway.outside == name {
        return Err(value.error(format!("{name} is the inside or the outside already; write another name")));
    }
    let place = names.iter().position(|other| *other == name).unwrap_or(names.len());
    if place >= usize::from(MAX_INTERFACES) {
        return Err(
            value.error(format!("is one interface more than {MAX_INTERFACES}; let children share some"))
        );
    }
    if place == names.len() {
        names.push(name);
    }
    Ok(place as u16 + 1)
}
