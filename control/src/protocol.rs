//! What the command line and the control process say to each other: one JSON object a line over the unix socket
//! in `run_dir`. The results are what `--json` prints, so their fields stay as they are; the README has
//! them. Times are microseconds since 1970 (`*_us`) or seconds ago (`*_s`), SPIs hexadecimal.

use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The socket's name in `run_dir`.
pub const SOCKET: &str = "control.sock";
/// The supervisor's, for upgrades; no name here is longer.
pub const SUPERVISOR_SOCKET: &str = "supervisor.sock";
/// Octets of a request at most.
pub const MAX_REQUEST: usize = 4096;

/// What the operator wants.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// [`Status`].
    Status,
    /// A list of [`IkeSa`].
    ListSas {
        /// Of this connection alone.
        #[serde(default)]
        connection: Option<String>,
    },
    /// A list of [`Connection`].
    ListConns,
    /// [`Stats`].
    Stats,
    /// A list of [`LoggedEvent`], oldest first.
    Events,
    /// [`Secret`].
    Secret,
    /// Reads the configuration anew and follows it, or says what that would change. Result: [`Reload`].
    Reload {
        /// Change nothing.
        dry_run: bool,
    },
    /// Of the supervisor: other programs in place of those that run. Result: [`Upgraded`].
    Upgrade {
        /// The folder of the new ones; where the running ones were, if left out.
        from: Option<std::path::PathBuf>,
    },
    /// Of the supervisor's to control: would this program take the configuration that runs? Result: `null`.
    CheckConfiguration {
        /// Another `spindle-control`.
        program: std::path::PathBuf,
    },
    /// Rotates the QCD secret, and waits until the new generation is in use. Result: [`Secret`].
    RotateSecret {
        /// How long to wait.
        timeout_ms: u64,
    },
    /// Answered by `null`, and then by lists of [`WatchedSa`], one a line: first of those that there are, then of each that
    /// comes or changes, until the caller closes the connection or says anything.
    WatchSas {
        /// Of this connection alone.
        connection: Option<String>,
        /// With their keys: for root alone, and where `gateway.capture_keys` is true.
        keys: bool,
    },
    /// Starts a connection or a child, and waits until it is there. Result: [`Done`].
    Initiate {
        /// Connection's name.
        connection: String,
        /// Child's name; the first one if left out.
        child: Option<String>,
        /// How long to wait.
        timeout_ms: u64,
    },
    /// For drills: loses SAs as by a fault, without a word to the peer. Result: [`Done`].
    Forget {
        /// Connection's name.
        connection: String,
        /// Child's name; the IKE SAs if left out.
        child: Option<String>,
    },
    /// Deletes SAs, and waits until they are gone. Result: [`Done`].
    Terminate {
        /// Connection's name.
        connection: String,
        /// Child's name; the IKE SAs if left out.
        child: Option<String>,
        /// How long to wait.
        timeout_ms: u64,
    },
    /// Takes the gateway down: sends its peers elsewhere, and waits until their IKE SAs have ended. Result: [`TakenDown`].
    TakeDown {
        /// The gateway to which peers are redirected.
        to: Option<std::net::IpAddr>,
        /// How long a redirected peer has for that.
        grace_ms: u64,
        /// How long to wait.
        timeout_ms: u64,
    },
    /// Rekeys SAs, and waits until their successors are there. Result: [`Done`].
    Rekey {
        /// Connection's name.
        connection: String,
        /// Child's name; the IKE SAs if left out.
        child: Option<String>,
        /// How long to wait.
        timeout_ms: u64,
    },
}

/// The answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// What was asked for.
    Result(serde_json::Value),
    /// Why not, for people.
    Error(String),
    /// The configuration is not one; why, for people.
    Refused(String),
}

/// `status`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The gateway's name.
    pub name: String,
    /// The version of the programs.
    pub version: String,
    /// Counted on disk; each life of the state has its own.
    pub incarnation: u64,
    /// Would the first ESP packet be received and answered?
    pub ready: bool,
    /// The maker id in tokens: the cluster's name, or hexadecimal digits.
    pub maker_id: String,
    /// May tokens leave (the anchor matches, and token_maker is on and not switched off as unsafe)?
    pub tokens: bool,
    /// Journal records of earlier incarnations at the start.
    pub former_spis: usize,
    /// When this incarnation was started.
    pub started_us: u64,
    /// When it became ready.
    pub ready_us: Option<u64>,
    /// Is it taken down: are its peers sent away?
    pub taken_down: bool,
    /// The processes.
    pub pids: Pids,
    /// IKE SAs.
    pub ike_sas: usize,
    /// Child SAs.
    pub child_sas: usize,
}

/// `secret` and `rotate-secret`: the generations of the QCD secret, never the secrets.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Secret {
    /// Newest first, at most four.
    pub generations: Vec<Generation>,
    /// Is a rotation under way?
    pub rotating: bool,
}

/// One generation of the QCD secret.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Generation {
    /// `spis` or `spis-and-address`: what its tokens are made of.
    pub method: String,
    /// When it was made, if that is known.
    pub made_us: Option<u64>,
    /// IKE SAs whose peers rely on its token.
    pub ike_sas: usize,
    /// Peers of IKE SAs that are no more here may rely on its token until then.
    pub needed_until_us: Option<u64>,
}

/// The processes of a gateway.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pids {
    /// `spindle up`.
    pub supervisor: u32,
    /// `spindle-dataplane`.
    pub dataplane: u32,
    /// `spindle-control`.
    pub control: u32,
}

/// One IKE SA.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct IkeSa {
    /// A number that no other IKE SA of this incarnation has.
    pub id: u64,
    /// Connection's name.
    pub connection: String,
    /// `connecting`, `established`, `rekeying`, `deleting`.
    pub state: String,
    /// Our role: `initiator` or `responder`.
    pub role: String,
    /// SPIi, 16 digits.
    pub ike_spi_i: String,
    /// SPIr, 16 digits.
    pub ike_spi_r: String,
    /// Our address and port.
    pub local: String,
    /// The peer's.
    pub remote: String,
    /// Who the peer proved to be.
    pub remote_id: Option<String>,
    /// Algorithms.
    pub proposal: String,
    /// Seconds since it was established.
    pub established_s: Option<u64>,
    /// Do we hold the peer's QCD token?
    pub token_held: bool,
    /// Do we hold a ticket of the peer's?
    pub ticket_held: bool,
    /// Was it made by a ticket?
    pub resumed: bool,
    /// Its Child SAs.
    pub children: Vec<ChildSa>,
}

/// One Child SA.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChildSa {
    /// A number that no other Child SA of this incarnation has.
    pub id: u64,
    /// Child's name.
    pub name: String,
    /// `installed`, `rekeying`, `rekeyed`, `deleting`.
    pub state: String,
    /// The inbound SPI, ours, 8 digits.
    pub spi_i: String,
    /// The outbound SPI, the peer's, 8 digits.
    pub spi_o: String,
    /// Algorithms.
    pub proposal: String,
    /// `tunnel` or `transport`.
    pub mode: String,
    /// ESP in UDP?
    pub encapsulated: bool,
    /// The worker that both of its SAs belong to, where there are several.
    pub worker: Option<u16>,
    /// Behind us.
    pub local_ts: Vec<String>,
    /// Behind the peer.
    pub remote_ts: Vec<String>,
    /// Seconds since it was installed.
    pub installed_s: u64,
    /// Packets received. The dataplane tells the four counts each millisecond, so they may miss its last packets.
    pub packets_i: u64,
    /// Their inner octets.
    pub bytes_i: u64,
    /// Packets sent.
    pub packets_o: u64,
    /// Their inner octets.
    pub bytes_o: u64,
}

/// One connection as configured, and how it stands.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Connection {
    /// Its name.
    pub name: String,
    /// `up` (a Child SA is installed), `initiating`, `down`.
    pub state: String,
    /// Our address.
    pub local: String,
    /// The peer's, or `%any`.
    pub remote: String,
    /// Who we say we are.
    pub local_id: String,
    /// Who the peer must be.
    pub remote_id: String,
    /// Established IKE SAs.
    pub ike_sas: usize,
    /// Installed Child SAs.
    pub child_sas: usize,
    /// Its children.
    pub children: Vec<Child>,
}

/// One child as configured.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Child {
    /// Its name.
    pub name: String,
    /// Behind us.
    pub local_ts: Vec<String>,
    /// Behind the peer.
    pub remote_ts: Vec<String>,
    /// `none`, `trap`, `start`.
    pub start_action: String,
}

/// `stats`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Stats {
    /// Counters of the control process, IKE and recovery.
    pub control: BTreeMap<String, u64>,
    /// Counters of the dataplane.
    pub dataplane: BTreeMap<String, u64>,
    /// Does every packet have its place?
    pub packets: Equation,
}

/// Received + created = delivered + dropped + held. (Packets that pass to the kernel are not received; consumed ones
/// are among the dropped, by their reasons. While packets flow the counters may be of two moments a burst apart.)
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Equation {
    /// From both sides.
    pub received: u64,
    /// By the dataplane itself.
    pub created: u64,
    /// To both sides.
    pub delivered: u64,
    /// By all reasons.
    pub dropped: u64,
    /// Waiting for a next hop, for an SA, or for another worker.
    pub held: u64,
    /// Are both sides equal?
    pub holds: bool,
}

/// One thing that happened.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LoggedEvent {
    /// When, by the wall clock.
    pub at_us: u64,
    /// What: `start`, `ready`, `hint`, `probe`, `proof`, `token-sent`, `ike-established`, `installed`, …
    pub event: String,
    /// Connection's name, if one is concerned.
    pub connection: Option<String>,
    /// SPIi, if an IKE SA is concerned.
    pub ike_spi_i: Option<String>,
    /// SPIr, if an IKE SA is concerned.
    pub ike_spi_r: Option<String>,
    /// A Child SPI, if one is concerned.
    pub spi: Option<String>,
    /// More, for people.
    pub detail: String,
}

/// An SA of a Child SA in one direction, as `capture` is told of it. It may hold a key, so it knows no Debug.
#[derive(Serialize, Deserialize)]
pub struct WatchedSa<'a> {
    /// Connection's name.
    pub connection: Cow<'a, str>,
    /// In its packets.
    pub spi: u32,
    /// Where its packets come from.
    pub source: IpAddr,
    /// Where they go to.
    pub destination: IpAddr,
    /// As in proposals.
    pub suite: Cow<'a, str>,
    /// Key and salt, hexadecimal, if asked for.
    pub key: Option<&'a str>,
}

/// What `initiate`, `terminate` and `rekey` brought about.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Done {
    /// For people.
    pub done: String,
    /// SAs concerned.
    pub sas: usize,
}

/// What `take-down` brought about, since it was first said.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TakenDown {
    /// For people.
    pub done: String,
    /// IKE SAs whose peers were told to go.
    pub peers: usize,
    /// Of these, redirected to another gateway, and acknowledged.
    pub redirected: usize,
    /// Of these, ended by a Delete that was exchanged.
    pub deleted: usize,
}

/// What `upgrade` put in.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Upgraded {
    /// For people.
    pub done: String,
    /// Of the supervisor, which goes on as it is.
    pub supervisor_version: String,
    /// In the order in which they were replaced.
    pub processes: Vec<Replaced>,
}

/// One process that was replaced.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Replaced {
    /// `spindle-control` or `spindle-dataplane`.
    pub process: String,
    /// The new one's.
    pub pid: u32,
    /// The program's version.
    pub version_before: String,
    /// The new program's.
    pub version_after: String,
    /// From the end of the old one until the new one was ready.
    pub away_ms: u64,
}

/// What `reload` changes of the configuration that runs, or did. Policies of children are named `CONNECTION/CHILD`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Reload {
    /// Was it done?
    pub applied: bool,
    /// New connections.
    pub added: Vec<String>,
    /// Connections whose SAs end.
    pub removed: Vec<String>,
    /// Connections that are configured differently.
    pub changed: Vec<ChangedConnection>,
    /// Connections whose key is another one; it counts from the next authentication on.
    pub secrets: Vec<String>,
    /// What becomes of the policies.
    pub policies: ChangedPolicies,
    /// Keys that only a restart changes: with one of them nothing is done.
    pub restart: Vec<String>,
}

/// One connection that is configured differently.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChangedConnection {
    /// Its name.
    pub name: String,
    /// Its keys that differ.
    pub keys: Vec<String>,
    /// Its IKE SAs end, with their Child SAs.
    pub ike_sas_end: bool,
    /// Children whose Child SAs end.
    pub child_sas_end: Vec<String>,
}

/// Policies by what becomes of them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChangedPolicies {
    /// New ones.
    pub added: Vec<String>,
    /// Those that are there no more.
    pub removed: Vec<String>,
    /// Those that stand elsewhere among the others.
    pub moved: Vec<String>,
    /// Those that match or do something else.
    pub changed: Vec<String>,
}

impl Reload {
    /// Is there nothing to change?
    pub fn is_empty(&self) -> bool {
        let Reload { applied: _, added, removed, changed, secrets, policies, restart } = self;
        let ChangedPolicies { added: a, removed: r, moved: m, changed: c } = policies;
        changed.is_empty() && [added, removed, secrets, restart, a, r, m, c].iter().all(|all| all.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::collections::BTreeSet;

    const README: &str = include_str!("../../README.md");

    /// The fields that the README has for a command's JSON, by dotted path.
    fn documented(command: &str) -> BTreeSet<String> {
        let row = README.lines().find(|line| {
            let name = line.strip_prefix("| `").and_then(|rest| rest.split([' ', '`']).next());
            name == Some(command) && line.contains('{')
        });
        let notation = row.and_then(|row| row.rsplit_once("| `")).expect("the README has it").1;
        let notation = notation.split('`').next().expect("it ends");
        let (mut fields, mut above) = (BTreeSet::new(), vec![String::new()]);
        let (mut word, mut last, mut is_value) = (String::new(), String::new(), false);
        for letter in notation.chars() {
            if letter.is_alphanumeric() || letter == '_' {
                word.push(letter);
                continue;
            }
            if !word.is_empty() && !is_value {
                last = format!("{}{word}", above.last().expect("balanced"));
                fields.insert(last.clone());
            }
            word.clear();
            match letter {
                ':' => is_value = true,
                ',' => is_value = false,
                '{' => {
                    above.push(if last.is_empty() { String::new() } else { format!("{last}.") });
                    is_value = false;
                }
                '}' => drop(above.pop()),
                _ => {}
            }
        }
        fields
    }

    fn fields(value: &Value, above: &str, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => map.iter().for_each(|(key, value)| {
                found.insert(format!("{above}{key}"));
                fields(value, &format!("{above}{key}."), found);
            }),
            Value::Array(values) => values.iter().for_each(|value| fields(value, above, found)),
            _ => {}
        }
    }

    fn is_as_documented(commands: &[&str], result: impl Serialize) {
        let mut found = BTreeSet::new();
        fields(&serde_json::to_value(result).unwrap(), "", &mut found);
        for command in commands {
            assert_eq!(documented(command), found, "{command}");
        }
    }

    #[test]
    fn every_json_is_as_the_readme_has_it() {
        let text = String::new;
        let pids = Pids { supervisor: 1, dataplane: 2, control: 3 };
        let status = Status {
            name: text(),
            version: text(),
            incarnation: 1,
            ready: true,
            maker_id: text(),
            tokens: true,
            former_spis: 0,
            started_us: 0,
            ready_us: None,
            taken_down: false,
            pids,
            ike_sas: 0,
            child_sas: 0,
        };
        is_as_documented(&["status"], status);
        let child = ChildSa {
            id: 1,
            name: text(),
            state: text(),
            spi_i: text(),
            spi_o: text(),
            proposal: text(),
            mode: text(),
            encapsulated: false,
            worker: None,
            local_ts: vec![text()],
            remote_ts: vec![text()],
            installed_s: 0,
            packets_i: 0,
            bytes_i: 0,
            packets_o: 0,
            bytes_o: 0,
        };
        let sa = IkeSa {
            id: 1,
            connection: text(),
            state: text(),
            role: text(),
            ike_spi_i: text(),
            ike_spi_r: text(),
            local: text(),
            remote: text(),
            remote_id: None,
            proposal: text(),
            established_s: None,
            token_held: false,
            ticket_held: false,
            resumed: false,
            children: vec![child],
        };
        is_as_documented(&["list-sas"], [sa]);
        let child =
            Child { name: text(), local_ts: vec![text()], remote_ts: vec![text()], start_action: text() };
        let connection = Connection {
            name: text(),
            state: text(),
            local: text(),
            remote: text(),
            local_id: text(),
            remote_id: text(),
            ike_sas: 0,
            child_sas: 0,
            children: vec![child],
        };
        is_as_documented(&["list-conns"], [connection]);
        let counters = BTreeMap::from([("NAME".to_owned(), 1)]);
        let packets = Equation::default();
        is_as_documented(&["stats"], Stats { control: counters.clone(), dataplane: counters, packets });
        let event = LoggedEvent {
            at_us: 0,
            event: text(),
            connection: None,
            ike_spi_i: None,
            ike_spi_r: None,
            spi: None,
            detail: text(),
        };
        is_as_documented(&["events"], [event]);
        let taken_down = TakenDown { done: text(), peers: 1, redirected: 1, deleted: 1 };
        is_as_documented(&["take-down"], taken_down);
        let names = || vec![text()];
        let changed =
            ChangedConnection { name: text(), keys: names(), ike_sas_end: false, child_sas_end: names() };
        let policies = ChangedPolicies { added: names(), removed: names(), moved: names(), changed: names() };
        let reload = Reload {
            applied: true,
            added: names(),
            removed: names(),
            changed: vec![changed],
            secrets: names(),
            policies,
            restart: names(),
        };
        is_as_documented(&["reload"], reload);
        let replaced =
            Replaced { process: text(), pid: 1, version_before: text(), version_after: text(), away_ms: 1 };
        let upgraded = Upgraded { done: text(), supervisor_version: text(), processes: vec![replaced] };
        is_as_documented(&["upgrade"], upgraded);
        is_as_documented(&["initiate", "terminate", "rekey"], Done { done: text(), sas: 1 });
    }
}
