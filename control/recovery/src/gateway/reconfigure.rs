//! Another configuration of connections and policies while the gateway runs. Of what [`Changes`] does not name nothing is
//! touched: no SA, no policy, no counter.

use super::{Gateway, connections_of_policies, sir, takes_tokens};
use crate::api::Config;
use crate::changes::Changes;
use crate::journal::longest_lifetime;
use crate::spd::{Entry, Spd, entries, label};
use spindle_abi::{Command, PolicyAction, SelectorSet, Time};
use spindle_ike::api::{Change, Key};
use std::collections::{BTreeSet, HashMap};
use zeroize::Zeroizing;

impl Gateway {
    /// The configuration as it was given last.
    pub fn configuration(&self) -> &Config {
        &self.configured
    }

    /// What another configuration changes of this one's.
    pub fn changes(&self, config: &Config) -> Changes {
        // Places are compared, of which the ids here are none.
        Changes::between(&self.configured, config)
    }

    /// Goes on with this configuration, of which all but connections, their methods and policies is as it was. What
    /// [`Gateway::changes`] says of it is done when the outputs are carried out; SAs that end do so by exchanges.
    pub fn reconfigure(&mut self, now: Time, config: Config) -> Changes {
        let changes = self.changes(&config);
        if changes.is_empty() {
            return changes;
        }
        let ending = changes.ending();
        let mut replaced: BTreeSet<String> =
            ending.children.iter().map(|(connection, child)| label(connection, child)).collect();
        // With another mode or interface it is none of the old Child SAs' policy.
        let of_ended = config.connections.iter().filter(|c| ending.connections.contains(&c.name));
        replaced.extend(of_ended.flat_map(|c| c.children.iter().map(|child| label(&c.name, &child.name))));
        let before = self.spd.clone();
        self.spd = before.next(&config, &replaced);
        self.configured = config.clone();
        let mut config = config;
        self.spd.number(&mut config);
        let starting: Vec<String> = self
            .starting
            .iter()
            .filter_map(|number| Some(self.config.connections.get(*number)?.name.clone()))
            .collect();
        self.config = config;
        self.keep_policies();

        self.change_policies(&before, &changes.policies.changed);
        self.endpoint.reconfigure(now, self.config.connections.clone(), &ending);
        self.takes_tokens = takes_tokens(&self.config);
        self.endpoint.set_methods(self.takes_tokens, sir::speakers(&self.config));
        self.answers.reconfigure(&self.config);
        self.journal.reconfigure(&self.config);
        self.rotation.sas_live(longest_lifetime(&self.config));
        self.policies = connections_of_policies(&self.config);
        ending.connections.iter().for_each(|name| self.reconnect.forget(name));

        let numbers: HashMap<&str, usize> =
            self.config.connections.iter().enumerate().map(|(number, c)| (c.name.as_str(), number)).collect();
        // What the start has not come to starts as it says now; and what begins here starts as at a start.
        let begun = changes.added.iter().chain(&ending.connections).filter(|_| self.ready && !self.stopping);
        let names = starting.iter().chain(begun);
        self.starting = names.filter_map(|name| numbers.get(name.as_str()).copied()).collect();
        if self.taking_down.is_some() {
            self.starting.clear();
        }
        let detail = format!(
            "{} connections added, {} removed, {} changed",
            changes.added.len(),
            changes.removed.len(),
            changes.changed.len()
        );
        self.report("reconfigured", None, None, None, detail);
        self.drain(now);
        changes
    }

    /// What the dataplane has to be told: what is new or elsewhere first, so that nothing is without its policy for a moment.
    fn change_policies(&mut self, before: &Spd, changed: &[String]) {
        let known: HashMap<u32, u32> =
            before.places().iter().map(|place| (place.id, place.priority)).collect();
        let is_as_before = |id: u32, priority: u32, label: &String| {
            known.get(&id) == Some(&priority) && !changed.contains(label)
        };
        let all = self.entries();
        let mut commands = Vec::new();
        for place in self.spd.order_after(before) {
            if is_as_before(place.id, place.priority, &place.label) {
                continue;
            }
            let Some((action, selectors, hold, interface)) = all.get(&place.id) else { continue };
            let is_new = !known.contains_key(&place.id);
            if *interface > 0 && is_new {
                commands.push(Command::BindPolicy { id: place.id, interface: *interface });
            }
            commands.push(Command::SetPolicy {
                id: place.id,
                priority: place.priority,
                action: *action,
                selectors: (*selectors).clone(),
                hold: *hold,
            });
        }
        let stays: BTreeSet<u32> = self.spd.places().iter().map(|place| place.id).collect();
        let gone = before.places().iter().filter(|place| !stays.contains(&place.id));
        commands.extend(gone.map(|place| Command::RemovePolicy { id: place.id }));
        commands.into_iter().for_each(|command| self.command(command));
    }

    /// Policies by their ids: action, selectors, packets held, interface.
    pub(super) fn entries(&self) -> HashMap<u32, (PolicyAction, &SelectorSet, u16, u16)> {
        let told = entries(&self.config).map(|entry| match entry {
            Entry::Protect(_, c) => {
                (c.policy, (PolicyAction::Protect, &c.selectors, c.hold_packets, c.interface))
            }
            Entry::Other(policy) => (policy.id, (policy.action, &policy.selectors, 0, 0)),
        });
        told.collect()
    }

    /// The policies' numbers outlive this process with their SAs.
    pub(super) fn keep_policies(&mut self) {
        if self.endpoint.keeps() {
            let record = Some(Zeroizing::new(self.spd.encode()));
            self.numbers = Some(Change { key: Key::Policies, record });
        }
    }
}
