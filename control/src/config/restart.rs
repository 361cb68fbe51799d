//! Which keys another file changes that a running gateway cannot follow: they were told to processes and the machine at
//! the start. Connections and policies are not among them; of these [`spindle_recovery::Changes`] tells.

use super::{GatewaySettings, RecoverySettings, Settings};

impl Settings {
    /// The keys of `new` that only a restart changes.
    pub fn needs_restart(&self, new: &Settings) -> Vec<String> {
        let mut keys = of_gateway(&self.gateway, &new.gateway);
        keys.extend(of_recovery(&self.recovery, &new.recovery));
        keys.extend(self.other_devices(new));
        // A cluster's addresses are followed from the start on.
        if new.gateway.cluster.is_some() {
            let known = self.local_addresses();
            let others = new.connections.iter().filter(|c| !known.contains(&c.local));
            keys.extend(others.map(|c| format!("connections.{}.local.address", c.name)));
        }
        keys
    }

    /// Children whose virtual interface is none that is there, or that leave one which no other has.
    fn other_devices(&self, new: &Settings) -> Vec<String> {
        if self.children_interfaces == new.children_interfaces {
            return Vec::new();
        }
        let keys = |of: &Settings, other: &Settings| {
            let children = of.connections.iter().flat_map(|c| c.children.iter().map(move |child| (c, child)));
            let name = |all: &Settings, number: u16| {
                all.children_interfaces.get(usize::from(number).wrapping_sub(1)).cloned()
            };
            let differs = |number| name(of, number) != name(other, number);
            let changed = children.filter(|(_, child)| child.interface > 0 && differs(child.interface));
            changed
                .map(|(c, child)| format!("connections.{}.children.{}.interface", c.name, child.name))
                .collect::<Vec<_>>()
        };
        let mut all = keys(new, self);
        all.extend(keys(self, new));
        all.sort();
        all.dedup();
        all
    }
}

/// A field that is added must be given a place here.
fn of_gateway(old: &GatewaySettings, new: &GatewaySettings) -> Vec<String> {
    let GatewaySettings {
        name,
        state_dir,
        run_dir,
        anchor,
        inside,
        inside_vlan,
        outside_vlan,
        interfaces,
        outside,
        cluster,
        polling,
        workers,
        core,
        ring_size,
        xdp_mode,
        ike_port,
        natt_port,
        cookie_threshold,
        ticket_lifetime,
        capture_keys,
    } = new;
    let keys = [
        ("name", old.name != *name),
        ("state_dir", old.state_dir != *state_dir),
        ("run_dir", old.run_dir != *run_dir),
        ("anchor", old.anchor != *anchor),
        ("inside", old.inside != *inside),
        ("inside_vlan", old.inside_vlan != *inside_vlan),
        ("outside_vlan", old.outside_vlan != *outside_vlan),
        ("interfaces", old.interfaces != *interfaces),
        ("outside", old.outside != *outside),
        ("cluster", old.cluster != *cluster),
        ("polling", old.polling != *polling),
        ("workers", old.workers != *workers),
        ("core", old.core != *core),
        ("ring_size", old.ring_size != *ring_size),
        ("xdp_mode", old.xdp_mode != *xdp_mode),
        ("ike_port", old.ike_port != *ike_port),
        ("natt_port", old.natt_port != *natt_port),
        ("cookie_threshold", old.cookie_threshold != *cookie_threshold),
        ("ticket_lifetime", old.ticket_lifetime != *ticket_lifetime),
        ("capture_keys", old.capture_keys != *capture_keys),
    ];
    named("gateway", &keys)
}

fn of_recovery(old: &RecoverySettings, new: &RecoverySettings) -> Vec<String> {
    let RecoverySettings {
        methods,
        proactive,
        journal,
        token_maker,
        token_taker,
        token_method,
        secret_rotation,
        secret_file,
        limits,
    } = new;
    let mut old_limits = old.limits;
    old_limits.sir = limits.sir;
    let keys = [
        ("methods", old.methods != *methods),
        ("proactive", old.proactive != *proactive),
        ("journal", old.journal != *journal),
        ("token_maker", old.token_maker != *token_maker),
        ("token_taker", old.token_taker != *token_taker),
        ("token_method", old.token_method != *token_method),
        ("secret_rotation", old.secret_rotation != *secret_rotation),
        ("secret_file", old.secret_file != *secret_file),
        ("limits", old_limits != *limits),
        ("sir", old.limits.sir != limits.sir),
    ];
    named("recovery", &keys)
}

fn named(section: &str, keys: &[(&str, bool)]) -> Vec<String> {
    keys.iter().filter(|(_, differs)| *differs).map(|(key, _)| format!("{section}.{key}")).collect()
}
