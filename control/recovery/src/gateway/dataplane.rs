//! The dataplane as the gateway sees it: what it has been told, what it has acknowledged, and what it says.
//!
//! Commands are numbered and go out in order. What they have built up is kept here ([`Told`]), so that a dataplane that was
//! started anew, alone, is told all of it again; until that is acknowledged it is not *ready*.

use super::Gateway;
use crate::api::Output;
use crate::stats::Counter;
use spindle_abi::{Command, Event, MAX_FORMER_AT_ONCE, SaParameters, Spi, SpiState, Time};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// Of a policy that carried a packet so lately, more may be on their way.
const TRAFFIC: Duration = Duration::from_secs(10);

/// What an unacknowledged command is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Awaited {
    /// A part of the start, ours or the dataplane's; being ready waits for it.
    Boot,
    /// All others.
    Running,
}

#[derive(Default)]
pub(super) struct Dataplane {
    /// Of the last command.
    sequence: u64,
    awaited: HashMap<u64, Awaited>,
    /// Boot commands that are not acknowledged yet.
    boot_left: usize,
    /// Does it receive packets?
    is_up: bool,
    /// Is it one that was started anew, and does not yet have all that we know?
    is_new: bool,
    /// All is said again beside one that lives; what it has beyond that is to go then.
    sweeps: bool,
    told: Told,
}

/// The SAs and SPIs that a dataplane has which was told all commands so far. Policies and former SPIs, of which others here
/// know, are not in it.
#[derive(Default)]
struct Told {
    /// In the order of their installation, for of a policy's SAs the latest is used.
    sas: BTreeMap<u64, Command>,
    /// By index.
    places: HashMap<u32, u64>,
    /// The indexes of inbound SAs.
    inbound: HashMap<Spi, u32>,
    /// Those that are larval or retired.
    states: HashMap<Spi, SpiState>,
    installed: u64,
}

impl Told {
    fn note(&mut self, command: &Command) {
        match command {
            Command::InstallInbound { sa, .. } => {
                self.states.remove(&sa.spi);
                self.inbound.insert(sa.spi, sa.index);
                self.install(sa.index, command);
            }
            Command::InstallOutbound { sa } => self.install(sa.index, command),
            Command::RemoveOutbound { index } => self.remove(*index),
            Command::Readdress { index, local, remote } => {
                if let Some(sa) = self.sa(*index) {
                    (sa.local, sa.remote) = (*local, *remote);
                }
            }
            Command::SetSpiState { spi, state } => self.set_state(*spi, *state),
            Command::SetPolicy { .. }
            | Command::BindPolicy { .. }
            | Command::RemovePolicy { .. }
            | Command::SetFormer { .. }
            | Command::Doubt
            | Command::ConfirmInbound { .. }
            | Command::Sweep => {}
        }
    }

    fn install(&mut self, index: u32, command: &Command) {
        let place = *self.places.entry(index).or_insert_with(|| {
            self.installed += 1;
            self.installed
        });
        self.sas.insert(place, command.clone());
    }

    fn remove(&mut self, index: u32) {
        if let Some(place) = self.places.remove(&index) {
            self.sas.remove(&place);
        }
    }

    fn sa(&mut self, index: u32) -> Option<&mut SaParameters> {
        match self.sas.get_mut(self.places.get(&index)?)? {
            Command::InstallInbound { sa, .. } | Command::InstallOutbound { sa } => Some(sa),
            _ => None,
        }
    }

    fn set_state(&mut self, spi: Spi, state: SpiState) {
        match state {
            SpiState::Retired => {
                if let Some(index) = self.inbound.remove(&spi) {
                    self.remove(index);
                }
                self.states.insert(spi, state);
            }
            // Nothing else touches a current one.
            _ if self.inbound.contains_key(&spi) => {}
            SpiState::Larval => drop(self.states.insert(spi, state)),
            _ => drop(self.states.remove(&spi)),
        }
    }

    /// The first packet came on an inbound SA: no need to hear of it again.
    fn heard_first(&mut self, spi: Spi) {
        let place = self.inbound.get(&spi).and_then(|index| self.places.get(index));
        if let Some(Command::InstallInbound { report_first, .. }) =
            place.and_then(|place| self.sas.get_mut(place))
        {
            *report_first = false;
        }
    }

    /// What brings a dataplane that knows nothing to the same: the SAs of policies that carried packets lately, the latest
    /// first, and all the rest. `last` tells of an SA's index when its last packet passed.
    fn all(&self, now: Time, last: impl Fn(u32) -> Time) -> [Vec<Command>; 2] {
        let mut policies: HashMap<u32, Time> = HashMap::new();
        for (_, sa, _) in self.installed() {
            let policy = policies.entry(sa.policy).or_default();
            *policy = last(sa.index).max(*policy);
        }
        let is_lively = |at: &Time| *at != Time(0) && now.since(*at) < TRAFFIC;
        let (mut lively, rest): (Vec<_>, Vec<_>) =
            self.installed().partition(|(_, sa, _)| is_lively(&policies[&sa.policy]));
        // Of one policy's SAs the order stays.
        lively.sort_by_key(|(_, sa, _)| std::cmp::Reverse((policies[&sa.policy], sa.policy)));
        let states = self.states.iter().map(|(spi, state)| Command::SetSpiState { spi: *spi, state: *state });
        let install = |(.., command): (_, _, &Command)| command.clone();
        [lively.into_iter().map(install).collect(), rest.into_iter().map(install).chain(states).collect()]
    }

    /// All SAs: is it inbound, what it is, and how it was installed.
    fn installed(&self) -> impl Iterator<Item = (bool, &SaParameters, &Command)> {
        self.sas.values().filter_map(|command| match command {
            Command::InstallInbound { sa, .. } => Some((true, sa, command)),
            Command::InstallOutbound { sa } => Some((false, sa, command)),
            _ => None,
        })
    }
}

impl Gateway {
    /// The SAs that the dataplane has, and whether each is inbound. They hold their keys.
    pub fn installed(&self) -> impl Iterator<Item = (bool, &SaParameters)> {
        self.dataplane.told.installed().map(|(inbound, sa, _)| (inbound, sa))
    }

    /// The connection that an SA of this policy is of: by the id in the dataplane, which another configuration does not
    /// change.
    pub fn connection_of(&self, policy: u32) -> Option<&str> {
        self.policies.get(&policy).map(String::as_str)
    }

    /// What a dataplane has to know from its start on, beside the SAs and before it is *ready*.
    pub(super) fn set_up(&mut self) {
        self.bind_policies();
        self.set_policies();
    }

    /// Before the SAs of these policies, which are then those of their interfaces.
    fn bind_policies(&mut self) {
        let children = self.config.connections.iter().flat_map(|c| &c.children);
        let bound = children.filter(|c| c.interface > 0);
        let bind = bound.map(|c| Command::BindPolicy { id: c.policy, interface: c.interface });
        self.boot_commands(bind.collect());
    }

    /// Policies, and the former SPIs.
    fn set_policies(&mut self) {
        // RFC 4301 section 4.4.1: policies are ordered.
        let all = self.entries();
        let policies = self.spd.places().iter().filter_map(|place| {
            let (action, selectors, hold, _) = *all.get(&place.id)?;
            let (id, priority) = (place.id, place.priority);
            Some(Command::SetPolicy { id, priority, action, selectors: selectors.clone(), hold })
        });
        let policies: Vec<Command> = policies.collect();
        self.boot_commands(policies);
        let former: Vec<Spi> = self.former.spis().collect();
        self.dataplane.boot_left += former.len().div_ceil(MAX_FORMER_AT_ONCE);
        self.untold = former.into_iter();
    }

    fn boot_commands(&mut self, commands: Vec<Command>) {
        self.dataplane.boot_left += commands.len();
        for command in commands {
            let output = self.numbered(command, Awaited::Boot);
            self.output.push_back(output);
        }
    }

    pub(super) fn command(&mut self, command: Command) {
        self.dataplane.told.note(&command);
        let output = self.numbered(command, Awaited::Running);
        self.output.push_back(output);
    }

    pub(super) fn numbered(&mut self, command: Command, awaited: Awaited) -> Output {
        self.dataplane.sequence += 1;
        self.dataplane.awaited.insert(self.dataplane.sequence, awaited);
        Output::Command { sequence: self.dataplane.sequence, command }
    }

    /// A dataplane may live that was told things by a process before this one. All is said again from here on, and in the
    /// end, by [`Gateway::sweep_doubts`], what it has beyond that goes.
    pub(super) fn say_all_again(&mut self) {
        self.boot_commands(vec![Command::Doubt]);
        self.dataplane.boot_left += 1;
        self.dataplane.sweeps = true;
    }

    /// When all is said.
    pub(super) fn sweep_doubts(&mut self) -> Option<Output> {
        let sweeps = std::mem::take(&mut self.dataplane.sweeps);
        sweeps.then(|| self.numbered(Command::Sweep, Awaited::Boot))
    }

    /// What was adopted goes to the dataplane of before, or to one that is new.
    pub(super) fn tell_adopted(&mut self, now: Time) {
        let (commands, others) = self.begin_anew();
        self.say_all_again();
        // Of those that only receive for a while yet nothing is kept that could install them.
        let confirm = |command: &Command| matches!(command, Command::ConfirmInbound { .. });
        self.boot_commands(commands.into_iter().filter(confirm).collect());
        self.tell_all(now);
        self.output.extend(others);
    }

    /// Another dataplane stands in the dead one's place. Nobody answers for what the dead one was told, so all of it is told
    /// again.
    pub(super) fn dataplane_is_new(&mut self, now: Time) {
        let (_, others) = self.begin_anew();
        (self.dataplane.is_up, self.dataplane.is_new) = (false, true);
        // It has nothing else.
        self.dataplane.sweeps = false;
        self.tell_all(now);
        self.output.extend(others);
        let detail = format!("{} SAs are installed anew", self.dataplane.told.sas.len());
        self.report("dataplane-restarted", None, None, None, detail);
    }

    /// No command is on its way any more. Those that were, and all else that is to go out, after what will be told.
    fn begin_anew(&mut self) -> (Vec<Command>, Vec<Output>) {
        self.dataplane.awaited.clear();
        self.dataplane.boot_left = 0;
        let (mut commands, mut others) = (Vec::new(), Vec::new());
        for output in self.output.drain(..) {
            match output {
                Output::Command { command, .. } => commands.push(command),
                other => others.push(other),
            }
        }
        (commands, others)
    }

    /// Packets pass again by the policies, and those are told whole and in their order; so the SAs that packets wait for come
    /// before them, and all others after.
    fn tell_all(&mut self, now: Time) {
        let [lively, rest] = self.dataplane.told.all(now, |index| self.endpoint.last_packet(index));
        self.bind_policies();
        self.boot_commands(lively);
        self.set_policies();
        self.boot_commands(rest);
    }

    pub(super) fn event(&mut self, now: Time, event: Event) {
        match event {
            Event::Ready => {
                self.dataplane.is_up = true;
                self.check_ready(now);
            }
            Event::Acknowledged { sequence, done } => self.acknowledged(now, sequence, done),
            // Which of the two it is, control knows best: the state may still be on its way to the dataplane.
            Event::FormerSpi(report) | Event::UnknownSpi(report) => self.esp_without_sa(now, &report),
            Event::Acquire { policy, packet } if !self.stopping => self.acquire(now, policy, packet),
            Event::Acquire { .. } => {}
            Event::FirstInbound { spi } => {
                self.dataplane.told.heard_first(spi);
                self.endpoint.first_inbound(now, spi);
            }
            Event::Lifetime { index, hard } => self.endpoint.lifetime(now, index, hard),
        }
    }

    fn acknowledged(&mut self, now: Time, sequence: u64, done: bool) {
        let Some(awaited) = self.dataplane.awaited.remove(&sequence) else { return };
        if !done {
            self.stats.count(Counter::CommandsRefused);
            self.report("command-refused", None, None, None, format!("number {sequence}"));
        }
        if awaited == Awaited::Boot {
            self.dataplane.boot_left -= 1;
            self.check_ready(now);
        }
    }

    fn check_ready(&mut self, now: Time) {
        let dataplane = &mut self.dataplane;
        if !dataplane.is_up || dataplane.boot_left > 0 {
            return;
        }
        let is_new = std::mem::take(&mut dataplane.is_new);
        if self.ready {
            if is_new {
                self.report("dataplane-ready", None, None, None, String::new());
            }
            return;
        }
        self.ready = true;
        self.report("ready", None, None, None, format!("incarnation {}", self.incarnation));
        let here = self.answers.addresses();
        self.contact_peers(now, |at| here.contains(&at));
        self.start_connections(|at| here.contains(&at));
    }
}
