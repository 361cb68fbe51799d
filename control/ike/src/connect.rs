//! Connections: which IKE SA serves one, when one is started, and started again after it was lost.

use crate::api::*;
use crate::crypto::{EspProposal, IkeProposal, parse_esp, parse_ike};
use crate::endpoint::{Endpoint, NAT_PORT};
use crate::exchange::{Purpose, Task};
use crate::sa::{ChildSa, ChildState, Ending, IkeSa, State};
use crate::ticket::Held;
use spindle_abi::{Selector, SelectorSet, Time, Trigger};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::rc::Rc;
use std::time::Duration;

/// A connection's configuration, its proposals parsed.
pub(crate) struct Profile {
    config: Shared<ConnectionConfig>,
    /// Its place among the connections.
    pub(crate) number: usize,
    pub(crate) proposals: Rc<[IkeProposal]>,
    pub(crate) children: Vec<Rc<ChildProfile>>,
}

/// A child's configuration, its proposals parsed.
pub(crate) struct ChildProfile {
    connection: Shared<ConnectionConfig>,
    /// Its place in the connection.
    place: usize,
    pub(crate) proposals: Rc<[EspProposal]>,
}

impl Deref for Profile {
    type Target = ConnectionConfig;
    fn deref(&self) -> &ConnectionConfig {
        &self.config
    }
}

impl Deref for ChildProfile {
    type Target = ChildConfig;
    fn deref(&self) -> &ChildConfig {
        &self.connection.children[self.place]
    }
}

impl Profile {
    /// The child with this name.
    pub(crate) fn child(&self, name: &str) -> Option<Rc<ChildProfile>> {
        self.children.iter().find(|c| c.name == name).cloned()
    }

    /// Our end and the peer's to initiate from and to, where it is at this address.
    pub(crate) fn ends_at(&self, address: IpAddr) -> (SocketAddr, SocketAddr) {
        let port = if self.remote_port == NAT_PORT { NAT_PORT } else { 500 };
        (SocketAddr::new(self.local, port), SocketAddr::new(address, self.remote_port))
    }

    /// The children that start with the gateway.
    pub(crate) fn started(&self) -> BTreeSet<String> {
        let all = self.start_action == StartAction::Start;
        let starts = |c: &&Rc<ChildProfile>| c.start_action == StartAction::Start;
        let mut names: BTreeSet<String> =
            self.children.iter().filter(starts).map(|c| c.name.clone()).collect();
        if all && names.is_empty() {
            names.extend(self.children.first().map(|c| c.name.clone()));
        }
        names
    }
}

/// A connection and what is under way for it.
pub(crate) struct Connection {
    pub(crate) profile: Rc<Profile>,
    /// Its IKE SAs, those of rekeys and half-open ones included.
    pub(crate) sas: BTreeSet<IkeSaId>,
    /// Where the peer was, our port first, if the configuration does not say where it is: until it is authenticated anew,
    /// or does not answer there.
    pub(crate) last_seen: Option<(u16, SocketAddr)>,
    /// When it is initiated again, for these children.
    pub(crate) retry_at: Option<Time>,
    waiting: BTreeSet<String>,
    /// By policy: the packet that has wanted an SA last, as selectors.
    triggers: BTreeMap<u32, (Selector, Selector)>,
    /// For the next initiation: of the IKE SA that the peer lost.
    pub(crate) ticket: Option<Held>,
    /// For the next initiation: the gateway that lost an IKE SA to which another one had redirected us, and that one.
    redirected: Option<(IpAddr, IpAddr)>,
    /// When redirects were followed lately.
    pub(crate) redirects: VecDeque<Time>,
    /// Initiations that failed since the last success, and when the last one did.
    failures: u32,
    failed_at: Time,
    /// How long an exchange with the peer took, as last measured at the end of an IKE SA's initial exchanges.
    round_trip: Option<Duration>,
}

/// How an IKE SA begins.
#[derive(Default)]
pub(crate) struct Beginning {
    /// Our address and the peer's, where they are not those of the configuration.
    pub(crate) ends: Option<(SocketAddr, SocketAddr)>,
    /// INITIAL_CONTACT may be sent although it was before in this incarnation.
    pub(crate) initial_contact: bool,
    /// The peer's, for the first message.
    pub(crate) cookie: Option<Vec<u8>>,
    /// The IKE SA that ends once this one is authenticated.
    pub(crate) supersedes: Option<IkeSaId>,
    /// The gateway that redirected us to these ends.
    pub(crate) redirected_from: Option<IpAddr>,
}

/// Back-off after the first failed initiation; it doubles up to the other one.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LAST_BACKOFF: Duration = Duration::from_secs(60);
/// A peer at any address that leaves so many initiations in a row unanswered is elsewhere.
const ELSEWHERE: u32 = 10;
/// Back-off at most while traffic waits.
const TRAFFIC_BACKOFF: Duration = Duration::from_secs(2);
/// A Child SA that sent so recently has traffic.
const RECENT: Duration = Duration::from_secs(10);

impl Profile {
    /// Proposals that are those of `like` are shared with it: most connections have the same.
    fn new(number: usize, config: Shared<ConnectionConfig>, like: Option<&Profile>) -> Profile {
        let same = like.map(|like| (&*like.config.proposals, &like.proposals));
        let proposals = parsed(&config.proposals, same, |text| parse_ike(text).ok());
        let children = config.children.iter().enumerate().map(|(place, child)| {
            let like = like.and_then(|like| like.children.get(place));
            let same = like.map(|like| (&*like.connection.children[place].proposals, &like.proposals));
            let proposals = parsed(&child.proposals, same, |text| parse_esp(text).ok());
            Rc::new(ChildProfile { connection: config.clone(), place, proposals })
        });
        Profile { number, proposals, children: children.collect(), config }
    }
}

/// Proposals, shared with `like` (as they are written, and parsed) if they are the same. The configuration's reader has checked
/// the notation; what is wrong nevertheless is never offered.
fn parsed<P>(
    written: &[String],
    like: Option<(&[String], &Rc<[P]>)>,
    parse: impl Fn(&str) -> Option<P>,
) -> Rc<[P]> {
    match like {
        Some((same, parsed)) if same == written => parsed.clone(),
        _ => written.iter().filter_map(|text| parse(text)).collect(),
    }
}

impl Connection {
    /// `like` is one that has the same proposals, perhaps.
    pub(crate) fn new(
        number: usize,
        config: Shared<ConnectionConfig>,
        like: Option<&Connection>,
    ) -> Connection {
        let profile = Profile::new(number, config, like.map(|like| &*like.profile));
        Connection {
            profile: Rc::new(profile),
            sas: BTreeSet::new(),
            last_seen: None,
            retry_at: None,
            waiting: BTreeSet::new(),
            triggers: BTreeMap::new(),
            ticket: None,
            redirected: None,
            redirects: VecDeque::new(),
            failures: 0,
            failed_at: Time(0),
            round_trip: None,
        }
    }

    /// The same with another configuration and place.
    pub(crate) fn with(
        self,
        number: usize,
        config: Shared<ConnectionConfig>,
        like: Option<&Connection>,
    ) -> Connection {
        let fresh = Connection::new(number, config, like);
        let policies: BTreeSet<u32> = fresh.profile.children.iter().map(|child| child.policy).collect();
        let mut connection = Connection { profile: fresh.profile, ..self };
        connection.triggers.retain(|policy, _| policies.contains(policy));
        connection.waiting.retain(|name| connection.profile.child(name).is_some());
        connection
    }

    /// What is left of one that the configuration has no more: its IKE SAs.
    pub(crate) fn leaving(self, number: usize) -> Connection {
        let config = self.profile.config.clone();
        let fresh = Connection::new(number, config, Some(&self));
        Connection { sas: self.sas, ..fresh }
    }

    /// Our port and the peer's address and port to initiate to.
    fn ends(&self) -> Option<(SocketAddr, SocketAddr)> {
        let seen = self.last_seen.map(|(port, at)| (SocketAddr::new(self.profile.local, port), at));
        seen.or_else(|| self.profile.remote.map(|address| self.profile.ends_at(address)))
    }

    fn backoff(&self) -> Duration {
        backoff(self.failures.saturating_sub(1))
    }
}

/// The pause after a failure, and `more` before it.
pub(crate) fn backoff(more: u32) -> Duration {
    (FIRST_BACKOFF * (1 << more.min(16))).min(LAST_BACKOFF)
}

impl Endpoint {
    /// Starts what is configured with [`StartAction::Start`] of the connection with this place in the configuration.
    /// `false` if there is nothing to start.
    pub fn start_connection(&mut self, now: Time, number: usize) -> bool {
        let Some(profile) = self.connections.get(number).map(|connection| &connection.profile) else {
            return false;
        };
        let names = profile.started();
        let starts = !names.is_empty() && profile.remote.is_some();
        starts && self.want(now, number, names, false).is_ok()
    }

    /// Sees to it that these children come to be: on the connection's IKE SA, or on a new one.
    pub(crate) fn want(
        &mut self,
        now: Time,
        number: usize,
        names: BTreeSet<String>,
        initial_contact: bool,
    ) -> Result<(), Refused> {
        if self.shutting_down {
            return Ok(());
        }
        let connection = &self.connections[number];
        if self.absent.contains(&connection.profile.local) {
            return Err(Refused::Absent(connection.profile.local));
        }
        let find = |usable: &dyn Fn(&IkeSa) -> bool| {
            connection.sas.iter().rev().find(|id| self.sas.get(id).is_some_and(usable)).copied()
        };
        if let Some(id) = find(&IkeSa::is_established) {
            self.with_sa(now, id, |_, sa| {
                for name in names {
                    sa.enqueue(now, Task::CreateChild(name));
                }
            });
            return Ok(());
        }
        if let Some(id) = find(&IkeSa::is_initiation) {
            self.with_sa(now, id, |_, sa| sa.wanted.extend(names));
            return Ok(());
        }
        self.start_ike(now, number, names, Beginning { initial_contact, ..Beginning::default() })
    }

    pub(crate) fn start_ike(
        &mut self,
        now: Time,
        number: usize,
        names: BTreeSet<String>,
        beginning: Beginning,
    ) -> Result<(), Refused> {
        if self.taken_down.is_some() {
            return Err(Refused::TakenDown);
        }
        self.retry(number, None);
        let profile = self.connections[number].profile.clone();
        let mut beginning = beginning;
        if let (Some((to, from)), None) = (self.connections[number].redirected.take(), beginning.ends) {
            beginning.ends = Some(profile.ends_at(to));
            beginning.redirected_from = Some(from);
        }
        let ends = beginning.ends.or_else(|| self.connections[number].ends());
        let ends = ends.ok_or_else(|| Refused::NoRemote(profile.name.clone()))?;
        if self.sas.len() >= self.config.max_ike_sas {
            return Err(Refused::TooMany);
        }
        let waiting = std::mem::take(&mut self.connections[number].waiting);
        let spis = IkeSpis { initiator: self.allocate_ike_spi(), responder: [0; 8] };
        let id = IkeSaId(self.next_id());
        let mut sa = IkeSa::new(id, profile, spis, true, ends, now);
        sa.initial_contact = beginning.initial_contact;
        sa.supersedes = beginning.supersedes;
        sa.redirected_from = beginning.redirected_from;
        // As at our last exchange with the peer; until it is measured again.
        sa.round_trip = self.connections[number].round_trip;
        // What the peer lost, packets are waiting for or run into; who knows of none sends nothing more for it.
        sa.awaited = (beginning.initial_contact || beginning.supersedes.is_some()).then_some(now);
        sa.wanted = names;
        sa.wanted.extend(waiting);
        match self.take_ticket(now, number) {
            Some(held) => self.begin_resume(now, &mut sa, held, beginning.cookie),
            None => self.begin_init(now, &mut sa, beginning.cookie),
        }
        self.insert_sa(now, sa);
        Ok(())
    }

    /// When the last packet passed on the SA with this index in the dataplane; `Time(0)` if none did.
    pub fn last_packet(&self, index: u32) -> Time {
        self.activity.activity(index).last
    }

    /// The dataplane has a packet for this policy and no SA. While such packets come, back-off is short.
    pub fn acquire(&mut self, now: Time, policy: u32, packet: Trigger) {
        let Some((number, name)) = self.lookups.policies.get(&policy).cloned() else { return };
        let serves = |sa: &IkeSa| {
            let mut children = sa.children.iter().filter(|c| c.state == ChildState::Installed);
            children.any(|c| c.config.name == name && (c.outbound_installed || c.outbound_waits))
        };
        let connection = &mut self.connections[number];
        if connection.sas.iter().any(|id| self.sas.get(id).is_some_and(serves)) {
            return;
        }
        connection.triggers.insert(policy, packet.selectors());
        if let Some(at) = connection.retry_at {
            connection.waiting.insert(name);
            let soon = connection.failed_at.after(TRAFFIC_BACKOFF.min(connection.backoff()));
            return self.retry(number, Some(at.min(soon.max(now))));
        }
        let connecting = connection
            .sas
            .iter()
            .rev()
            .copied()
            .find(|id| self.sas.get(id).is_some_and(IkeSa::is_initiation));
        if let Some(id) = connecting {
            self.with_sa(now, id, |_, sa| {
                sa.wanted.insert(name);
                sa.awaited = Some(now);
                sa.hasten_first_request(now, TRAFFIC_BACKOFF);
                sa.hurry();
            });
            return;
        }
        let failed = (connection.failures > 0).then(|| connection.failed_at.after(TRAFFIC_BACKOFF));
        match failed.filter(|at| *at > now) {
            Some(at) => {
                connection.waiting.insert(name);
                self.retry(number, Some(at));
            }
            None => {
                let _ = self.want(now, number, BTreeSet::from([name]), false);
                let newest = self.connections[number].sas.last().copied();
                if let Some(id) = newest.filter(|id| self.sas.get(id).is_some_and(IkeSa::is_initiation)) {
                    self.with_sa(now, id, |_, sa| {
                        sa.awaited = Some(now);
                        sa.hurry();
                    });
                }
            }
        }
    }

    /// The packet that wants this child, once: as the selectors of RFC 7296 section 2.9, if they are within the child's.
    pub(crate) fn take_trigger(&mut self, profile: &ChildProfile) -> Option<(Selector, Selector)> {
        let (number, _) = self.lookups.policies.get(&profile.policy)?;
        let (local, remote) = self.connections[*number].triggers.remove(&profile.policy)?;
        let packet = SelectorSet { local: vec![local], remote: vec![remote] };
        profile.selectors.holds(&packet).then_some((local, remote))
    }

    /// Another initiation of the same connection.
    fn initiation_beside(&self, sa: &IkeSa) -> Option<IkeSaId> {
        let others = self.connections[sa.connection.number].sas.iter().copied().filter(|id| *id != sa.id);
        sa.initiator.then_some(others)?.find(|id| self.sas.get(id).is_some_and(IkeSa::is_initiation))
    }

    /// A hint says that the peer has lost a half-open IKE SA whose IKE_AUTH is outstanding. Hints are not believed
    /// (RFC 7296 section 2.21.4), so it goes on; but a fresh attempt, one at a time, begins beside it, and whichever
    /// is authenticated first stands.
    pub(crate) fn begin_beside(&mut self, now: Time, id: IkeSaId) -> bool {
        let Some(sa) = self.sas.get(&id).filter(|sa| sa.is_initiation()) else { return false };
        let Some(Purpose::Auth(auth)) = sa.outstanding.as_ref().map(|o| &o.purpose) else { return false };
        let mut names = sa.wanted.clone();
        names.insert(auth.child.profile.name.clone());
        let (number, supersedes) = (sa.connection.number, sa.supersedes);
        let redirected_from = sa.redirected_from;
        let ends = match redirected_from {
            Some(_) => Some(sa.connection.ends_at(sa.remote.ip())),
            None => supersedes.and_then(|old| self.sas.get(&old)).map(|old| (old.local, old.remote)),
        };
        let initial_contact = sa.initial_contact;
        let beginning = Beginning { ends, initial_contact, supersedes, redirected_from, cookie: None };
        self.initiation_beside(sa).is_none() && self.start_ike(now, number, names, beginning).is_ok()
    }

    /// This initiation succeeded; one beside it is dropped, but for one that the peer may be answering: a Delete then
    /// takes it away from both.
    pub(crate) fn end_initiations_beside(&mut self, now: Time, sa: &mut IkeSa) {
        while let Some(other) = self.initiation_beside(sa) {
            self.with_sa(now, other, |_, other| {
                sa.wanted.append(&mut other.wanted);
                sa.supersedes = sa.supersedes.or(other.supersedes);
                other.surplus = true;
                if !matches!(other.outstanding.as_ref().map(|o| &o.purpose), Some(Purpose::Auth(_))) {
                    other.end(Authority::Superseded(Evidence(())), false);
                }
            });
        }
    }

    /// The peer's initiation succeeded: one of ours that has not come to IKE_AUTH is dropped, for the peer knows
    /// nothing of it that lasts. Further ones are settled once they are authenticated.
    pub(crate) fn drop_initiations(&mut self, now: Time, sa: &mut IkeSa) {
        for id in self.same_peer(sa) {
            self.with_sa(now, id, |_, other| {
                let init = other.outstanding.as_ref().is_some_and(|o| o.purpose.is_first());
                if init && other.is_initiation() && other.connection.number == sa.connection.number {
                    for name in std::mem::take(&mut other.wanted) {
                        sa.enqueue(now, Task::CreateChild(name));
                    }
                    other.surplus = true;
                    sa.supersedes = sa.supersedes.or(other.supersedes);
                    other.end(Authority::Superseded(Evidence(())), false);
                }
            });
        }
    }

    /// Starts the next connection that was lost, or whose initiation has failed, if its time has come. `false` if there is
    /// none.
    pub fn start_due(&mut self, now: Time) -> bool {
        let next = self.retries.first().filter(|(at, _)| *at <= now).map(|(_, number)| *number);
        let Some(number) = next else { return false };
        self.retry(number, None);
        let names = std::mem::take(&mut self.connections[number].waiting);
        let _ = self.want(now, number, names, false);
        true
    }

    /// When the time of the next one comes.
    pub fn start_due_at(&self) -> Option<Time> {
        self.retries.first().map(|(at, _)| *at)
    }

    /// Sets or clears when a connection is initiated again.
    fn retry(&mut self, number: usize, at: Option<Time>) {
        let connection = &mut self.connections[number];
        if let Some(old) = std::mem::replace(&mut connection.retry_at, at) {
            self.retries.remove(&(old, number));
        }
        self.retries.extend(at.map(|at| (at, number)));
    }

    /// An IKE SA of this connection is authenticated.
    pub(crate) fn note_success(&mut self, sa: &IkeSa) {
        let connection = &mut self.connections[sa.connection.number];
        connection.failures = 0;
        connection.last_seen = None;
        connection.ticket = None;
        connection.round_trip = sa.round_trip.or(connection.round_trip);
    }

    /// The end of an IKE SA: its Child SAs, its SPIs, its secrets; and what comes after it.
    pub(crate) fn bury(&mut self, now: Time, mut sa: Box<IkeSa>, ending: Ending) {
        self.connections[sa.connection.number].sas.remove(&sa.id);
        self.leave_half_open(&mut sa);
        self.release_predecessor(now, &sa);
        self.keep_ticket(&mut sa, &ending.authority);
        self.remember_ends(&sa, &ending.authority);
        // A gateway that shows a token is there: the one that the peer sent us to, not the one of the configuration.
        if let (Some(from), Authority::Token(_)) = (sa.redirected_from, &ending.authority) {
            self.connections[sa.connection.number].redirected = Some((sa.remote.ip(), from));
        }
        if let Some(hash) = sa.init_hash.take() {
            self.by_init.remove(&hash);
        }
        let error = match sa.outstanding.as_ref().map(|o| &o.purpose) {
            Some(Purpose::Init(initiation)) => initiation.error,
            _ => None,
        };
        // Back-off counts from the last try, which a lost answer lies long behind.
        let tried = sa.outstanding.as_ref().map_or(now, |o| o.schedule.sent());
        let first = match sa.outstanding.as_ref().map(|o| &o.purpose) {
            Some(Purpose::Auth(auth)) => Some(auth.child.profile.name.clone()),
            _ => None,
        };
        sa.wanted.extend(first);
        if let Some(outstanding) = sa.outstanding.take() {
            self.abandon(now, &mut sa, outstanding.purpose);
        }
        let again = self.lost_children(now, &sa, &ending.authority);
        for child in std::mem::take(&mut sa.children) {
            self.outbound.remove(&(child.outbound, child.id));
            self.discard_child(now, child, false);
        }
        for key in std::mem::take(&mut sa.recent_outbound) {
            self.outbound.remove(&key);
        }
        self.forget_spi(&sa.own_spi());
        if ending.exchanged {
            let (last, until) = (sa.last_response.take(), now.after(self.config.tombstone_lifetime));
            self.keep_tombstone(sa.own_spi(), sa.spis, &last, until);
            let pushed_out =
                self.tombstones.insert(sa.own_spi(), sa.spis, last, until, self.config.max_tombstones);
            pushed_out.into_iter().for_each(|own| self.keep_tombstone_no_more(own));
        }
        let (number, connection) = (sa.connection.number, sa.connection.name.clone());
        if sa.established.is_some() {
            let authority = ending.authority.clone();
            self.report(Report::IkeDeleted { ike: sa.id, spis: sa.spis, connection, authority });
            self.restore(now, number, again, &ending.authority);
        } else if let Some(other) = self.initiation_beside(&sa) {
            self.with_sa(now, other, |_, other| other.wanted.append(&mut sa.wanted));
        } else if sa.initiator && !sa.surplus {
            let why = |error: u16| format!("the peer answers IKE_SA_INIT with error {error}");
            let reason = sa.refusal.take().or(error.map(why)).unwrap_or_else(|| match ending.authority {
                Authority::Local(reason) => reason.into(),
                _ => "no answer".into(),
            });
            self.report(Report::InitiationFailed { connection, reason });
            // What it was to take the place of still stands, and sees to its own end.
            let beside = sa.supersedes.is_some_and(|old| self.sas.contains_key(&old));
            let local = beside || matches!(ending.authority, Authority::Local(_));
            self.note_failure(now, tried, number, std::mem::take(&mut sa.wanted), local);
        }
    }

    /// What an exchange that will not end has taken.
    pub(crate) fn abandon(&mut self, now: Time, sa: &mut IkeSa, purpose: Purpose) {
        match purpose {
            Purpose::Auth(auth) => self.release_child_spi(auth.child.inbound),
            Purpose::CreateChild(offer) => self.release_child_spi(offer.inbound),
            Purpose::RekeyIke(offer) => {
                self.forget_spi(&offer.spi);
                // RFC 7296 section 2.8.2: the peer did not see that the rekeys crossed; its own stands.
                if let Some(collision) = offer.collision {
                    self.inherit(now, sa, collision.theirs);
                }
            }
            _ => {}
        }
    }

    /// The children that are to be made again. After a token that is recovery's to say, which paces how many peers'
    /// are at once.
    fn lost_children(&self, now: Time, sa: &IkeSa, authority: &Authority) -> BTreeSet<String> {
        if matches!(authority, Authority::Local(_) | Authority::Superseded(_) | Authority::Token(_)) {
            return BTreeSet::new();
        }
        let started = sa.connection.started();
        let lost = matches!(authority, Authority::Timeout(_) | Authority::ProtocolError(_));
        let wanted = sa.children.iter().filter(|c| c.state != ChildState::Deleting).filter(|c| {
            let trapped = c.config.start_action == StartAction::Trap;
            started.contains(&c.config.name) || lost && trapped && self.child_has_traffic(now, c)
        });
        wanted.map(|c| c.config.name.clone()).chain(started.iter().cloned()).collect()
    }

    /// Did a packet leave on one of this IKE SA's Child SAs lately?
    pub fn has_traffic(&self, now: Time, ike: IkeSaId) -> bool {
        self.sas.get(&ike).is_some_and(|sa| sa.children.iter().any(|c| self.child_has_traffic(now, c)))
    }

    fn child_has_traffic(&self, now: Time, child: &ChildSa) -> bool {
        let last = self.activity.activity(child.outbound_index).last;
        last != Time(0) && now.since(last) < RECENT
    }

    /// Starts what was lost: at once where the peer lost it, a little later where it took leave.
    fn restore(&mut self, now: Time, number: usize, names: BTreeSet<String>, authority: &Authority) {
        if names.is_empty() || self.connections[number].profile.remote.is_none() {
            return;
        }
        let at_once = matches!(authority, Authority::Timeout(_) | Authority::ProtocolError(_));
        if at_once && !self.config.paced {
            return drop(self.want(now, number, names, false));
        }
        let connection = &mut self.connections[number];
        connection.waiting.extend(names);
        let at = if at_once { now } else { connection.retry_at.unwrap_or(now.after(FIRST_BACKOFF)) };
        self.retry(number, Some(at));
    }

    /// An initiation failed; what is configured to be started is tried again, ever more seldom.
    fn note_failure(&mut self, now: Time, tried: Time, number: usize, wanted: BTreeSet<String>, local: bool) {
        if local || self.shutting_down {
            return;
        }
        let started = self.connections[number].profile.started();
        let jitter = Duration::from_millis(u64::from(self.random_u32() % 250));
        let connection = &mut self.connections[number];
        connection.failures = connection.failures.saturating_add(1);
        if connection.failures >= if connection.profile.remote.is_some() { 1 } else { ELSEWHERE } {
            connection.last_seen = None;
        }
        connection.failed_at = tried;
        if !started.is_empty() {
            connection.waiting.extend(started.into_iter().chain(wanted));
            let at = connection.retry_at.unwrap_or(now.after(connection.backoff() + jitter));
            self.retry(number, Some(at));
        }
    }

    /// The other IKE SAs with the same peer, half-open ones included.
    pub(crate) fn same_peer(&self, sa: &IkeSa) -> Vec<IkeSaId> {
        let numbers = self.lookups.peers.get(&crate::auth::peer(&sa.connection)).map_or(&[][..], |n| n);
        let ids = numbers.iter().flat_map(|n| &self.connections[*n].sas).copied();
        let counts = |id: &IkeSaId| {
            *id != sa.id && self.sas.get(id).is_some_and(|other| other.state != State::Refused)
        };
        ids.filter(counts).collect()
    }
}
