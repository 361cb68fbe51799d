//! The TUN devices of virtual interfaces: made, given their MTU and set up. Addresses and routes are control's.

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use rtnetlink::{Handle, LinkUnspec};
use spindle_engine::Frame;
use spindle_port::{MAX_TUN_MTU, Tuns};
use std::str::FromStr;

/// Octets that tunnel mode needs at most: outer IPv6 header, UDP, ESP, IV, padding, trailer, ICV. So the host's own packets
/// fit the outside without fragments.
const AROUND: u16 = 40 + 8 + 8 + 8 + 3 + 2 + 16;

/// `NUMBER:NAME`; number 0 is the inside.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Device {
    pub(crate) interface: u16,
    pub(crate) name: String,
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Device, String> {
        let (number, name) = text.split_once(':').ok_or("must be NUMBER:NAME")?;
        let interface = number.parse().map_err(|_| "must begin with a number")?;
        Ok(Device { interface, name: name.into() })
    }
}

/// The MTU of devices, where the outside has this one.
pub(crate) fn mtu(outside: u16) -> u16 {
    outside.saturating_sub(AROUND).clamp(68, MAX_TUN_MTU)
}

/// Opens them and sets them up.
pub(crate) async fn open<F: Frame>(handle: &Handle, devices: &[Device], outside_mtu: u16) -> Result<Tuns<F>> {
    let names = devices.iter().map(|device| (device.interface, device.name.as_str()));
    let tuns = Tuns::open(names).map_err(|(name, error)| {
        anyhow::anyhow!(
            "the TUN device {name} cannot be opened: {error}; see that /dev/net/tun is there (`modprobe tun`), and that \
             no other interface has this name"
        )
    })?;
    for device in devices {
        let mut links = handle.link().get().match_name(device.name.clone()).execute();
        let link = links.try_next().await.ok().flatten();
        let index = link.with_context(|| format!("the device {} is gone", device.name))?.header.index;
        let change = LinkUnspec::new_with_index(index).mtu(mtu(outside_mtu).into()).up().build();
        handle
            .link()
            .change(change)
            .execute()
            .await
            .with_context(|| format!("the device {} cannot be set up", device.name))?;
    }
    Ok(tuns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_a_number_and_a_name() {
        assert_eq!("3:ipsec0".parse(), Ok(Device { interface: 3, name: "ipsec0".into() }));
        assert!("ipsec0".parse::<Device>().is_err() && "x:ipsec0".parse::<Device>().is_err());
    }

    #[test]
    fn a_full_packet_of_a_device_fits_the_outside_in_a_tunnel() {
        for outside in [1280, 1500, 4000] {
            let limit = spindle_engine::tunnel_limit(outside);
            assert!(usize::from(mtu(outside)) <= limit, "{outside}: {limit}");
        }
        assert_eq!(mtu(9000), MAX_TUN_MTU);
    }
}
