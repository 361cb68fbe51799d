//! Another configuration while IKE SAs live. What stays of the old one, goes on: an IKE SA serves the connection of its name
//! as before, by what that says now. What is to end, ends by exchanges, under what was agreed: its connection is *leaving*.
//! It keeps its place behind the others until its last IKE SA is gone, and nothing finds it there.

use crate::api::*;
use crate::connect::{Connection, Profile};
use crate::endpoint::{Endpoint, Lookups};
use crate::exchange::Task;
use crate::sa::{ChildState, IkeSa};
use spindle_abi::Time;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// Ends what the configuration has no more.
const TAKEN_OUT: Authority = Authority::Local("its configuration has changed");

/// What another configuration ends.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ending {
    /// Connections whose IKE SAs end; those that are configured no more need not be named.
    pub connections: BTreeSet<String>,
    /// Children whose Child SAs end, each with its connection's name; the same holds for these.
    pub children: BTreeSet<(String, String)>,
}

impl Endpoint {
    /// Goes on with these connections instead. Policies' ids may be new only where a child is new or ends.
    pub fn reconfigure(&mut self, now: Time, connections: Vec<Shared<ConnectionConfig>>, ending: &Ending) {
        let mut old: Vec<Option<Connection>> =
            std::mem::take(&mut self.connections).into_iter().map(Some).collect();
        let found = std::mem::replace(&mut self.lookups, Lookups::new(&connections));
        // Where each connection's IKE SAs are from here on.
        let mut moved: BTreeMap<usize, Rc<Profile>> = BTreeMap::new();
        for (number, config) in connections.into_iter().enumerate() {
            let before =
                found.by_name.get(&config.name).filter(|_| !ending.connections.contains(&config.name));
            let connection = match before.and_then(|before| Some((before, old.get_mut(*before)?.take()?))) {
                Some((before, connection)) => {
                    let connection = connection.with(number, config, self.connections.last());
                    moved.insert(*before, connection.profile.clone());
                    connection
                }
                None => Connection::new(number, config, self.connections.last()),
            };
            self.connections.push(connection);
        }
        let mut leaving = BTreeSet::new();
        for (before, connection) in old.into_iter().enumerate() {
            let Some(connection) = connection.filter(|connection| !connection.sas.is_empty()) else {
                continue;
            };
            let number = self.connections.len();
            let connection = connection.leaving(number);
            leaving.insert(number);
            moved.insert(before, connection.profile.clone());
            self.connections.push(connection);
        }
        let retries = self.connections.iter().enumerate();
        self.retries = retries.filter_map(|(number, c)| Some((c.retry_at?, number))).collect();
        let all: Vec<IkeSaId> = self.sas.keys().copied().collect();
        for id in all {
            let Some(sa) = self.sas.get_mut(&id) else { continue };
            if let Some(profile) = moved.get(&sa.connection.number) {
                sa.connection = profile.clone();
            }
            if leaving.contains(&sa.connection.number) {
                self.with_sa(now, id, |e, sa| e.close(now, sa, TAKEN_OUT));
                continue;
            }
            let ended = sa.ended_by(ending);
            sa.take_over(&ended);
            if !ended.is_empty() {
                self.with_sa(now, id, |_, sa| sa.end_children(now, &ended));
            }
        }
    }

    /// What follows from the methods of the connections: are tokens taken, and who speaks Safe IKE Recovery.
    pub fn set_methods(&mut self, token_taker: bool, sir: BTreeSet<String>) {
        self.config.token_taker = token_taker;
        self.config.sir = sir;
    }

    /// Is this Child SA one of those that the configuration has? An exchange may end that another one began.
    pub fn is_configured(&self, child: ChildSaId) -> bool {
        let sa = self.child_home.get(&child).and_then(|ike| self.sas.get(ike));
        let found = sa.and_then(|sa| sa.children.iter().find(|c| c.id == child));
        found.is_some_and(|child| self.lookups.policies.contains_key(&child.config.policy))
    }

    /// Is this IKE SA one of a connection that the configuration has?
    pub fn serves_a_connection(&self, ike: IkeSaId) -> bool {
        let number = self.sas.get(&ike).map(|sa| sa.connection.number);
        number.is_some_and(|number| {
            let name = &self.connections[number].profile.name;
            self.lookups.by_name.get(name) == Some(&number)
        })
    }
}

impl IkeSa {
    /// The children of those that it has, makes, or is to have, that end.
    fn ended_by(&self, ending: &Ending) -> BTreeSet<String> {
        let children = self.children.iter().map(|child| child.config.name.clone());
        let all = children.chain(self.wanted.iter().cloned()).chain(self.child_names());
        let ends = |name: &String| {
            let child = (self.connection.name.clone(), name.clone());
            self.connection.child(name).is_none() || ending.children.contains(&child)
        };
        all.filter(ends).collect()
    }

    /// Its Child SAs are those of the children of their names, but for these.
    fn take_over(&mut self, ended: &BTreeSet<String>) {
        for child in self.children.iter_mut().filter(|child| !ended.contains(&child.config.name)) {
            if let Some(profile) = self.connection.child(&child.config.name) {
                child.config = profile;
            }
        }
    }

    /// Ends the Child SAs of these children, and makes those again that start by themselves.
    fn end_children(&mut self, now: Time, ended: &BTreeSet<String>) {
        let configured = |name: &String| self.connection.child(name).is_some();
        self.wanted.retain(|name| !ended.contains(name) || self.connection.child(name).is_some());
        let again: Vec<String> = ended.iter().filter(|name| configured(name)).cloned().collect();
        self.queue.retain(|(_, task)| !matches!(task, Task::CreateChild(name) if ended.contains(name)));
        let of_ended = self.children.iter().filter(|child| ended.contains(&child.config.name));
        let ids: Vec<ChildSaId> =
            of_ended.filter(|child| child.state != ChildState::Deleting).map(|child| child.id).collect();
        self.queue.retain(
            |(_, task)| !matches!(task, Task::RekeyChild(id) | Task::ReplaceChild(id) if ids.contains(id)),
        );
        for id in ids {
            self.enqueue(now, Task::DeleteChild(id));
        }
        let started = self.connection.started();
        for name in again.into_iter().filter(|name| started.contains(name)) {
            self.enqueue(now, Task::CreateChild(name));
        }
    }
}
