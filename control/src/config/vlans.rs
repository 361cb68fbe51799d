//! VLANs of the two interfaces: `inside_vlan`, `outside_vlan`.

use super::interfaces::check_name;
use super::read::{Section, Value};
use super::{GatewaySettings, Inside, Result, Settings};

/// A VLAN of an interface (IEEE 802.1Q): the side is that network, and frames without its tag are none of the gateway's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Vlan {
    /// Its VID, 1 to 4094.
    pub id: u16,
    /// The kernel's device for it, by which the host is in it: with the host's addresses there, its neighbours and routes.
    pub device: String,
}

impl GatewaySettings {
    /// What carries the unprotected side for the kernel: its VLAN's device, or the interface itself.
    pub fn outside_device(&self) -> &str {
        self.outside_vlan.as_ref().map_or(&self.outside, |vlan| &vlan.device)
    }

    /// All of the kernel's devices on the unprotected side.
    pub fn outside_devices(&self) -> Vec<String> {
        [&self.outside]
            .into_iter()
            .chain(self.outside_vlan.as_ref().map(|vlan| &vlan.device))
            .cloned()
            .collect()
    }

    /// The same on the protected one; none of ours where that is the host itself.
    pub fn inside_devices(&self) -> Vec<String> {
        match &self.inside {
            Inside::Interface(name) => [name]
                .into_iter()
                .chain(self.inside_vlan.as_ref().map(|vlan| &vlan.device))
                .cloned()
                .collect(),
            Inside::Host(_) => Vec::new(),
        }
    }

    /// Both, by the keys of `[gateway]`, with their interfaces.
    pub fn vlans(&self) -> impl Iterator<Item = (&'static str, &str, &Vlan)> {
        let inside = match &self.inside {
            Inside::Interface(name) | Inside::Host(name) => name.as_str(),
        };
        let inside = self.inside_vlan.as_ref().map(|vlan| ("inside_vlan", inside, vlan));
        inside
            .into_iter()
            .chain(self.outside_vlan.as_ref().map(|vlan| ("outside_vlan", self.outside.as_str(), vlan)))
    }
}

/// `inside_vlan` and `outside_vlan`.
pub(super) fn vlans(
    section: &Section<'_>,
    inside: &Inside,
    outside: &str,
) -> Result<(Option<Vlan>, Option<Vlan>)> {
    let of_inside = match (section.optional("inside_vlan"), inside) {
        (Some(value), Inside::Interface(name)) => Some(vlan(&value, name)?),
        (Some(value), Inside::Host(_)) => {
            return Err(value.error("needs an interface inside, and a TUN device is none; take it out"));
        }
        (None, _) => None,
    };
    let of_outside = section.optional("outside_vlan").map(|value| vlan(&value, outside)).transpose()?;
    Ok((of_inside, of_outside))
}

/// `100`, or `{ id = 100, device = "uplink" }` where the kernel's device is not called `eth0.100`.
fn vlan(value: &Value<'_>, interface: &str) -> Result<Vlan> {
    const IDS: std::ops::RangeInclusive<u64> = 1..=4094;
    if !value.is_table() {
        let id = value.integer(IDS)? as u16;
        let device = format!("{interface}.{id}");
        if device.len() > 15 {
            let problem = format!(
                "would have the device {device}, a name too long for the kernel; write \
                 `{{ id = {id}, device = \"…\" }}` with the name that `ip link` shows"
            );
            return Err(value.error(problem));
        }
        return Ok(Vlan { id, device });
    }
    let section = value.section()?;
    let id = section.required("id", "100")?.integer(IDS)? as u16;
    let name = section.required("device", &format!("\"{interface}.{id}\""))?;
    let device = check_name(&name, name.string()?)?;
    section.finish()?;
    Ok(Vlan { id, device })
}

impl Settings {
    /// Each VLAN's device is one of its own.
    pub(super) fn check_vlans(&self) -> Result<()> {
        let gateway = &self.gateway;
        let mut names: Vec<String> = self.devices().into_iter().map(|device| device.name).collect();
        names.extend(gateway.inside_devices().into_iter().chain(gateway.outside_devices()));
        for (key, _, vlan) in gateway.vlans() {
            if names.iter().filter(|name| **name == vlan.device).count() > 1 {
                let problem = format!(
                    "has the device {}, which stands for something else here too; name the VLAN's own device",
                    vlan.device
                );
                return Err(self.error(&format!("gateway.{key}"), problem));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn with(gateway: &str) -> Result<Settings> {
        let source = format!(
            "[gateway]\nname = \"b\"\n{gateway}\n[connections.ab]\n\
             local = {{ address = \"192.0.2.2\", psk = \"secret\" }}\nremote = {{ address = \"192.0.2.1\" }}\n\
             [connections.ab.children.net]\nlocal_ts = [\"10.2.0.0/24\"]\nremote_ts = [\"10.1.0.0/24\"]\n"
        );
        Settings::parse(Path::new("/etc/spindle/b.toml"), &source)
    }

    const SIDES: &str = "inside = [\"eth1\"]\noutside = [\"eth0\"]\n";

    #[test]
    fn a_vlan_has_the_usual_device_or_the_one_that_is_named() {
        let none = with(SIDES).unwrap().gateway;
        assert_eq!((none.vlans().count(), none.outside_device()), (0, "eth0"));
        assert_eq!(
            (none.inside_devices(), none.outside_devices()),
            (vec!["eth1".into()], vec!["eth0".into()])
        );

        let text = format!("{SIDES}outside_vlan = 100\ninside_vlan = {{ id = 4094, device = \"lan\" }}");
        let both = with(&text).unwrap().gateway;
        assert_eq!(both.outside_vlan, Some(Vlan { id: 100, device: "eth0.100".into() }));
        assert_eq!(both.inside_vlan, Some(Vlan { id: 4094, device: "lan".into() }));
        assert_eq!(both.outside_device(), "eth0.100");
        assert_eq!(both.outside_devices(), ["eth0", "eth0.100"]);
        assert_eq!(both.inside_devices(), ["eth1", "lan"]);
        let named: Vec<_> = both.vlans().map(|(key, of, vlan)| (key, of, vlan.id)).collect();
        assert_eq!(named, [("inside_vlan", "eth1", 4094), ("outside_vlan", "eth0", 100)]);
    }

    #[test]
    fn what_is_no_vlan_is_refused_with_the_fix() {
        for (vlans, key, fix) in [
            ("outside_vlan = 0", "gateway.outside_vlan", "from 1 to 4094"),
            ("outside_vlan = 4095", "gateway.outside_vlan", "from 1 to 4094"),
            ("outside_vlan = \"100\"", "gateway.outside_vlan", "a whole number"),
            ("inside_vlan = -1", "gateway.inside_vlan", "from 1 to 4094"),
            ("inside_vlan = { device = \"lan\" }", "gateway.inside_vlan.id", "add `id = 100`"),
            ("inside_vlan = { id = 200 }", "gateway.inside_vlan.device", "add `device = \"eth1.200\"`"),
            ("inside_vlan = { id = 2, device = \"a b\" }", "gateway.inside_vlan.device", "letters, digits"),
            (
                "inside_vlan = { id = 2, name = \"a\", device = \"a\" }",
                "gateway.inside_vlan.name",
                "take it out",
            ),
            ("inside_vlan = { id = 2, device = \"eth0\" }", "gateway.inside_vlan", "the VLAN's own device"),
            (
                "inside_vlan = { id = 2, device = \"a\" }\noutside_vlan = { id = 2, device = \"a\" }",
                "gateway.inside_vlan",
                "the VLAN's own device",
            ),
        ] {
            let error = with(&format!("{SIDES}{vlans}")).expect_err(vlans);
            assert_eq!((error.key.as_str(), error.line), (key, 5), "{error}");
            assert!(error.to_string().contains(fix), "{error}");
        }
        let long = with("inside = [\"eth1\"]\noutside = [\"enp0s20f0u2u1\"]\noutside_vlan = 100")
            .expect_err("a name");
        assert!(long.to_string().contains("{ id = 100, device = "), "{long}");
        let host =
            with("inside = \"tun\"\noutside = [\"eth0\"]\ninside_vlan = 200").expect_err("no interface");
        assert!(host.to_string().contains("take it out"), "{host}");
    }
}
