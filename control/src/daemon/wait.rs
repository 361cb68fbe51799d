//! Callers of `initiate`, `terminate` and `rekey` wait here until the SAs are as they wished, or cannot be.

use crate::protocol::{Done, Response};
use spindle_abi::Time;
use spindle_ike::api::{ChildSaId, IkeSaId, IkeSaStatus};
use spindle_recovery::api::Report;
use tokio::sync::oneshot;

enum Wish {
    /// An SA of this connection (and child) is installed.
    There,
    /// None of these is left.
    Gone(Vec<Handle>),
    /// Each of these is replaced: gone or about to go, while others are there.
    Replaced(Vec<Handle>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Handle {
    Ike(IkeSaId),
    Child(ChildSaId),
}

/// One caller.
pub(super) struct Waiter {
    wish: Wish,
    connection: String,
    child: Option<String>,
    deadline: Time,
    failed: Option<String>,
    answer: Option<oneshot::Sender<Response>>,
}

/// What came of a wish so far.
pub(super) enum Verdict {
    Waiting,
    Settled(Response),
}

impl Waiter {
    fn new(wish: Wish, connection: String, child: Option<String>, deadline: Time) -> Waiter {
        Waiter { wish, connection, child, deadline, failed: None, answer: None }
    }

    pub(super) fn initiate(connection: String, child: Option<String>, deadline: Time) -> Waiter {
        Waiter::new(Wish::There, connection, child, deadline)
    }

    pub(super) fn terminate(
        connection: String,
        child: Option<String>,
        before: &[IkeSaStatus],
        deadline: Time,
    ) -> Waiter {
        let handles = handles(before, &connection, child.as_deref(), |_| true);
        Waiter::new(Wish::Gone(handles), connection, child, deadline)
    }

    pub(super) fn rekey(
        connection: String,
        child: Option<String>,
        before: &[IkeSaStatus],
        deadline: Time,
    ) -> Waiter {
        let handles = handles(before, &connection, child.as_deref(), is_in_use);
        Waiter::new(Wish::Replaced(handles), connection, child, deadline)
    }

    pub(super) fn answering(self, answer: oneshot::Sender<Response>) -> Waiter {
        Waiter { answer: Some(answer), ..self }
    }

    /// The connection whose SAs it is about.
    pub(super) fn connection(&self) -> &str {
        &self.connection
    }

    pub(super) fn deadline(&self) -> Time {
        self.deadline
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.answer.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    /// Learns that an initiation failed.
    pub(super) fn note(&mut self, report: &Report) {
        let ours = report.connection.as_deref() == Some(&self.connection);
        if ours && report.name == "initiation-failed" && matches!(self.wish, Wish::There) {
            self.failed = Some(report.detail.clone());
        }
    }

    pub(super) fn verdict(&self, sas: &[IkeSaStatus], now: Time) -> Verdict {
        let child = self.child.as_deref();
        let there = || handles(sas, &self.connection, child, is_in_use);
        let (done, count, what) = match &self.wish {
            Wish::There => {
                // Without a child's name any of the connection's will do.
                let count = match child {
                    Some(_) => there().len(),
                    None => sas
                        .iter()
                        .filter(|sa| sa.connection == self.connection)
                        .flat_map(|sa| &sa.children)
                        .filter(|c| is_in_use(c.state))
                        .count(),
                };
                (count > 0, count, "established")
            }
            Wish::Gone(before) => {
                let left = handles(sas, &self.connection, child, |_| true);
                (before.iter().all(|h| !left.contains(h)), before.len(), "deleted")
            }
            Wish::Replaced(before) => {
                let now = there();
                let replaced = before.iter().all(|h| !now.contains(h)) && now.len() >= before.len();
                (replaced, before.len(), "rekeyed")
            }
        };
        let name = match child {
            Some(child) => format!("{}/{child}", self.connection),
            None => self.connection.clone(),
        };
        if done {
            let done = Done { done: format!("{name}: {what}"), sas: count };
            let value =
                serde_json::to_value(done).map_or_else(|e| Response::Error(e.to_string()), Response::Result);
            return Verdict::Settled(value);
        }
        match &self.failed {
            Some(reason) => Verdict::Settled(Response::Error(format!("{name}: {reason}"))),
            None if self.deadline <= now => Verdict::Settled(Response::Error(format!(
                "{name}: not {what} in time; `spindle events` may tell why"
            ))),
            None => Verdict::Waiting,
        }
    }

    pub(super) fn settle(&mut self, response: Response) {
        if let Some(answer) = self.answer.take() {
            // A caller that has gone needs no answer.
            let _ = answer.send(response);
        }
    }
}

/// Neither about to be replaced nor about to go.
fn is_in_use(state: &str) -> bool {
    matches!(state, "established" | "installed" | "rekeying")
}

/// The IKE SAs of a connection, or the Child SAs with one of its children's names, in these states.
fn handles(
    sas: &[IkeSaStatus],
    connection: &str,
    child: Option<&str>,
    state: impl Fn(&'static str) -> bool,
) -> Vec<Handle> {
    let sas = sas.iter().filter(|sa| sa.connection == connection);
    match child {
        None => sas.filter(|sa| state(sa.state)).map(|sa| Handle::Ike(sa.id)).collect(),
        Some(name) => sas
            .flat_map(|sa| &sa.children)
            .filter(|c| c.name == name && state(c.state))
            .map(|c| Handle::Child(c.id))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spindle_abi::{SelectorSet, Spi};
    use spindle_ike::api::{ChildSaStatus, IkeSpis};

    fn sa(id: u64, state: &'static str, children: &[(u64, &'static str)]) -> IkeSaStatus {
        let child = |(id, state): &(u64, &'static str)| ChildSaStatus {
            id: ChildSaId(*id),
            name: "net".into(),
            policy: 1,
            inbound: Spi(256),
            outbound: Spi(257),
            inbound_index: 0,
            outbound_index: 1,
            resource: spindle_abi::Resource::default(),
            mode: spindle_abi::Mode::Tunnel,
            proposal: String::new(),
            selectors: SelectorSet::default(),
            state,
            installed: Time(0),
            encapsulated: false,
        };
        IkeSaStatus {
            id: IkeSaId(id),
            connection: "ab".into(),
            spis: IkeSpis { initiator: [1; 8], responder: [2; 8] },
            state,
            initiator: true,
            local: "192.0.2.2:500".parse().unwrap(),
            remote: "192.0.2.1:500".parse().unwrap(),
            remote_id: None,
            proposal: String::new(),
            established: None,
            token_held: false,
            ticket_held: false,
            resumed: false,
            children: children.iter().map(child).collect(),
        }
    }

    fn is_done(waiter: &Waiter, sas: &[IkeSaStatus]) -> bool {
        matches!(waiter.verdict(sas, Time(0)), Verdict::Settled(Response::Result(_)))
    }

    #[test]
    fn initiate_is_done_when_the_child_is_installed() {
        let w = Waiter::initiate("ab".into(), Some("net".into()), Time(9));
        assert!(!is_done(&w, &[sa(1, "connecting", &[])]));
        assert!(is_done(&w, &[sa(1, "established", &[(1, "installed")])]));
        let other = Waiter::initiate("ab".into(), Some("other".into()), Time(9));
        assert!(!is_done(&other, &[sa(1, "established", &[(1, "installed")])]));
    }

    #[test]
    fn a_rekey_is_done_when_a_successor_stands_beside_or_instead_of_each() {
        let before = [sa(1, "established", &[(1, "installed")])];
        let ike = Waiter::rekey("ab".into(), None, &before, Time(9));
        assert!(!is_done(&ike, &before));
        assert!(!is_done(&ike, &[]));
        assert!(is_done(&ike, &[sa(1, "deleting", &[]), sa(2, "established", &[(1, "installed")])]));
        let child = Waiter::rekey("ab".into(), Some("net".into()), &before, Time(9));
        assert!(!is_done(&child, &[sa(1, "established", &[(1, "rekeying")])]));
        assert!(is_done(&child, &[sa(1, "established", &[(1, "rekeyed"), (2, "installed")])]));
    }

    #[test]
    fn a_wish_fails_by_its_deadline_or_by_a_failed_initiation() {
        let mut w = Waiter::initiate("ab".into(), None, Time(9));
        assert!(matches!(w.verdict(&[], Time(8)), Verdict::Waiting));
        assert!(
            matches!(w.verdict(&[], Time(9)), Verdict::Settled(Response::Error(e)) if e.contains("in time"))
        );
        let detail = "no proposal chosen".to_string();
        w.note(&Report {
            name: "initiation-failed",
            connection: Some("ab".into()),
            spis: None,
            spi: None,
            detail,
        });
        assert!(
            matches!(w.verdict(&[], Time(1)), Verdict::Settled(Response::Error(e)) if e.contains("no proposal"))
        );
    }

    #[test]
    fn terminate_is_done_when_all_that_were_there_are_gone() {
        let before = [sa(1, "established", &[(1, "installed")]), sa(2, "established", &[])];
        let w = Waiter::terminate("ab".into(), None, &before, Time(9));
        assert!(!is_done(&w, &[sa(2, "deleting", &[])]));
        assert!(is_done(&w, &[sa(3, "established", &[])]));
    }
}
