//! What one configuration changes of another. This is what an operator is shown beforehand, and what
//! [`Gateway::reconfigure`](crate::Gateway::reconfigure) does: there is no other comparison.

use crate::api::{Config, Method};
use crate::spd::{Entry, in_order, stay};
use spindle_ike::Ending;
use spindle_ike::api::{ChildConfig, ConnectionConfig};
use std::collections::{BTreeMap, BTreeSet};
use subtle::ConstantTimeEq;

/// From one configuration to another one. Names are in the order of the file that they stand in.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// Connections that are new.
    pub added: Vec<String>,
    /// Connections that are configured no more; their IKE SAs end.
    pub removed: Vec<String>,
    /// Connections that are configured differently.
    pub changed: Vec<ConnectionChange>,
    /// What becomes of the SPD.
    pub policies: PolicyChanges,
    /// Keys that only a restart changes.
    pub restart: Vec<String>,
}

/// What changes of one connection.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ConnectionChange {
    /// Its name.
    pub name: String,
    /// What is configured differently, by its keys within the connection's section.
    pub keys: Vec<String>,
    /// The key is another one: it counts from the next authentication on.
    pub secret: bool,
    /// Its IKE SAs end, for they are between other ends than these.
    pub ends: bool,
    /// Its children whose Child SAs end, those that are configured no more included.
    pub children_ended: Vec<String>,
}

/// What changes of the SPD: policies by their names, those of children as `CONNECTION/CHILD`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PolicyChanges {
    /// New ones.
    pub added: Vec<String>,
    /// Those configured no more.
    pub removed: Vec<String>,
    /// Those that stand elsewhere among the others.
    pub moved: Vec<String>,
    /// Those that match or do something else.
    pub changed: Vec<String>,
}

impl Changes {
    /// Is there anything to do?
    pub fn is_empty(&self) -> bool {
        *self == Changes::default()
    }

    /// What `new` changes of `old`.
    pub fn between(old: &Config, new: &Config) -> Changes {
        let before: BTreeMap<&str, &ConnectionConfig> =
            old.connections.iter().map(|c| (c.name.as_str(), &**c)).collect();
        let after: BTreeSet<&str> = new.connections.iter().map(|c| c.name.as_str()).collect();
        let mut changes = Changes::default();
        for connection in &new.connections {
            let Some(before) = before.get(connection.name.as_str()) else {
                changes.added.push(connection.name.clone());
                continue;
            };
            let methods = [old, new].map(|config| config.connection_methods.get(&connection.name));
            let mut change = connection_change(before, connection);
            if methods[0] != methods[1] {
                change.keys.push("recovery".into());
            }
            if !change.keys.is_empty() {
                changes.changed.push(change);
            }
        }
        let removed = old.connections.iter().filter(|c| !after.contains(c.name.as_str()));
        changes.removed = removed.map(|c| c.name.clone()).collect();
        changes.policies = policy_changes(old, new);
        // What answers and asks is made at the start.
        let speaker =
            |config: &Config, c: &ConnectionConfig| config.methods_of(&c.name).contains(&Method::Sir);
        let speaks = |config: &Config| config.connections.iter().any(|c| speaker(config, c));
        if speaks(old) != speaks(new) {
            let config = if speaks(new) { new } else { old };
            let speakers = config.connections.iter().filter(|c| speaker(config, c));
            changes.restart.extend(speakers.map(|c| format!("connections.{}.recovery", c.name)));
        }
        changes
    }

    /// The SAs that end.
    pub(crate) fn ending(&self) -> Ending {
        let ended = self.changed.iter().filter(|change| change.ends).map(|change| change.name.clone());
        let children = self.changed.iter().flat_map(|change| {
            change.children_ended.iter().map(|child| (change.name.clone(), child.clone()))
        });
        Ending {
            connections: ended.chain(self.removed.iter().cloned()).collect(),
            children: children.collect(),
        }
    }
}

/// Compares by keys; a field that is added must be given a place here.
fn connection_change(old: &ConnectionConfig, new: &ConnectionConfig) -> ConnectionChange {
    let ConnectionConfig {
        name,
        local,
        remote,
        remote_port,
        local_id,
        remote_id,
        psk,
        proposals,
        force_encapsulation,
        dpd_delay,
        retransmission,
        rekey_time,
        resumption,
        redirect_to,
        start_action,
        children,
    } = new;
    let mut change = ConnectionChange { name: name.clone(), ..ConnectionChange::default() };
    // Whom an IKE SA is between.
    for (key, differs) in [
        ("local.address", old.local != *local),
        ("local.id", old.local_id != *local_id),
        ("remote.address", old.remote != *remote),
        ("remote.id", old.remote_id != *remote_id),
    ] {
        if differs {
            change.keys.push(key.into());
            change.ends = true;
        }
    }
    change.secret = !bool::from(old.psk.0.ct_eq(&psk.0));
    for (key, differs) in [
        ("local.psk", change.secret),
        ("remote.port", old.remote_port != *remote_port),
        ("proposals", old.proposals != *proposals),
        ("encap", old.force_encapsulation != *force_encapsulation),
        ("dpd_delay", old.dpd_delay != *dpd_delay),
        ("retransmit", old.retransmission != *retransmission),
        ("rekey_time", old.rekey_time != *rekey_time),
        ("resumption", old.resumption != *resumption),
        ("redirect_to", old.redirect_to != *redirect_to),
        ("start_action", old.start_action != *start_action),
    ] {
        if differs {
            change.keys.push(key.into());
        }
    }
    for child in children {
        let key = format!("children.{}", child.name);
        let Some(before) = old.children.iter().find(|before| before.name == child.name) else {
            change.keys.push(key);
            continue;
        };
        let (keys, ends) = child_change(before, child);
        change.keys.extend(keys.into_iter().map(|name| format!("{key}.{name}")));
        change.children_ended.extend(ends.then(|| child.name.clone()));
    }
    let removed = old.children.iter().filter(|before| children.iter().all(|child| child.name != before.name));
    for child in removed {
        change.keys.push(format!("children.{}", child.name));
        change.children_ended.push(child.name.clone());
    }
    change
}

/// The keys, and do its Child SAs end?
fn child_change(old: &ChildConfig, new: &ChildConfig) -> (Vec<&'static str>, bool) {
    let ChildConfig {
        name: _,
        policy: _, // its place, which is the SPD's
        interface,
        transport,
        selectors,
        proposals,
        rekey_time,
        lifetime,
        replay_window,
        hold_packets,
        resources,
        start_action,
    } = new;
    // What its Child SAs were agreed on for.
    let ending = [
        ("local_ts", old.selectors.local != selectors.local),
        ("remote_ts", old.selectors.remote != selectors.remote),
        ("mode", old.transport != *transport),
        ("interface", old.interface != *interface),
    ];
    let (rekey, life) = (old.lifetime.rekey, old.lifetime.life);
    let others = [
        ("esp_proposals", old.proposals != *proposals),
        ("rekey_time", old.rekey_time != *rekey_time),
        ("rekey_bytes", rekey.bytes != lifetime.rekey.bytes),
        ("rekey_packets", rekey.packets != lifetime.rekey.packets),
        ("life_time", old.lifetime.life_time != lifetime.life_time),
        ("life_bytes", life.bytes != lifetime.life.bytes),
        ("life_packets", life.packets != lifetime.life.packets),
        ("replay_window", old.replay_window != *replay_window),
        ("hold_packets", old.hold_packets != *hold_packets),
        ("per_cpu_sas", old.resources != *resources),
        ("start_action", old.start_action != *start_action),
    ];
    let ends = ending.iter().any(|(_, differs)| *differs);
    let keys = ending.into_iter().chain(others).filter(|(_, differs)| *differs).map(|(key, _)| key);
    (keys.collect(), ends)
}

impl Entry<'_> {
    fn is_as(&self, other: &Entry<'_>) -> bool {
        match (self, other) {
            (Entry::Protect(_, old), Entry::Protect(_, new)) => {
                !child_change(old, new).1 && old.hold_packets == new.hold_packets
            }
            (Entry::Other(old), Entry::Other(new)) => {
                old.action == new.action && old.selectors == new.selectors
            }
            _ => false,
        }
    }
}

fn policy_changes(old: &Config, new: &Config) -> PolicyChanges {
    let (old, new) = (in_order(old), in_order(new));
    let names = |of: &[(String, Entry<'_>)]| of.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    let (old_names, new_names) = (names(&old), names(&new));
    let stays = stay(&old_names, &new_names);
    let before: BTreeMap<&str, &Entry<'_>> = old.iter().map(|(name, entry)| (name.as_str(), entry)).collect();
    let after: BTreeSet<&str> = new_names.iter().map(String::as_str).collect();
    let mut changes = PolicyChanges::default();
    for (name, entry) in &new {
        match before.get(name.as_str()) {
            None => changes.added.push(name.clone()),
            Some(before) => {
                if !before.is_as(entry) {
                    changes.changed.push(name.clone());
                }
                if !stays.contains(name.as_str()) {
                    changes.moved.push(name.clone());
                }
            }
        }
    }
    changes.removed = old_names.iter().filter(|name| !after.contains(name.as_str())).cloned().collect();
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Policy;
    use crate::testing::{config, connection};
    use spindle_abi::{PolicyAction, Selector, SelectorSet};
    use std::time::Duration;

    fn two() -> Config {
        let mut config = config();
        config.connections.push(connection("other", Some("192.0.2.3")).into());
        config.connections[1].children[0].policy = 2;
        config
    }

    fn set(last: u8) -> SelectorSet {
        let one = |net: u8| Selector::addresses([10, net, 0, last].into(), [10, net, 0, last].into());
        SelectorSet { local: vec![one(1)], remote: vec![one(2)] }
    }

    #[test]
    fn the_same_changes_nothing() {
        assert!(Changes::between(&two(), &two()).is_empty());
    }

    #[test]
    fn a_connection_comes_and_goes_with_its_policies() {
        let (one, two) = (config(), two());
        let more = Changes::between(&one, &two);
        assert_eq!(
            (&more.added[..], &more.policies.added[..]),
            (&["other".into()][..], &["other/net".into()][..])
        );
        let less = Changes::between(&two, &one);
        assert_eq!(
            (&less.removed[..], &less.policies.removed[..]),
            (&["other".into()][..], &["other/net".into()][..])
        );
        assert_eq!(less.ending().connections, BTreeSet::from(["other".to_owned()]));
    }

    #[test]
    fn what_an_sa_is_between_ends_it_and_what_it_is_made_with_does_not() {
        let change = |edit: fn(&mut ConnectionConfig)| {
            let mut new = two();
            edit(&mut new.connections[0]);
            let mut changes = Changes::between(&two(), &new);
            assert_eq!(changes.changed.len(), 1);
            changes.changed.remove(0)
        };
        let other = change(|c| c.remote = Some([192, 0, 2, 9].into()));
        assert_eq!((&other.keys[..], other.ends), (&["remote.address".into()][..], true));
        let slower = change(|c| c.rekey_time = Duration::from_secs(7));
        assert_eq!(
            (&slower.keys[..], slower.ends, slower.secret),
            (&["rekey_time".into()][..], false, false)
        );
        let secret = change(|c| c.psk.0.push(b'!'));
        assert_eq!((&secret.keys[..], secret.ends, secret.secret), (&["local.psk".into()][..], false, true));
        let narrower = change(|c| c.children[0].selectors = set(7));
        assert_eq!(narrower.keys, ["children.net.local_ts", "children.net.remote_ts"]);
        assert_eq!((narrower.ends, &narrower.children_ended[..]), (false, &["net".into()][..]));
        let window = change(|c| c.children[0].replay_window = 128);
        assert_eq!((window.keys.len(), window.children_ended.len()), (1, 0));
    }

    #[test]
    fn of_policies_that_change_places_the_fewest_are_moved() {
        let policy = |name: &str, id| Policy {
            name: name.into(),
            id,
            action: PolicyAction::Discard,
            selectors: set(id as u8),
        };
        let of = |order: &[&str]| {
            let mut config = config();
            config.connections[0].children[0].policy = 100;
            // The selectors are the name's, the id is the place.
            config.policies = (1..)
                .zip(order)
                .map(|(place, name)| Policy { id: place, ..policy(name, u32::from(name.as_bytes()[0])) })
                .collect();
            config
        };
        let changes = Changes::between(&of(&["a", "b", "c", "d"]), &of(&["b", "c", "a", "e", "d"]));
        assert_eq!(
            (&changes.policies.moved[..], &changes.policies.added[..]),
            (&["a".into()][..], &["e".into()][..])
        );
        assert!(changes.policies.changed.is_empty() && changes.changed.is_empty());
    }

    /// Its parts are made once.
    #[test]
    fn the_first_speaker_of_sir_needs_a_restart() {
        let mut new = two();
        new.connection_methods.insert("other".into(), vec![Method::Sir, Method::Liveness]);
        let changes = Changes::between(&two(), &new);
        assert_eq!(changes.restart, ["connections.other.recovery"]);
        assert!(Changes::between(&new, &new).restart.is_empty());
    }
}
