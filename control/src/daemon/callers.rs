//! Callers who wait for something that the whole gateway does, each with the end of its patience.

use crate::protocol::Response;
use spindle_abi::Time;
use tokio::sync::oneshot;

/// Those of one request.
#[derive(Default)]
pub(super) struct Callers(Vec<(Time, oneshot::Sender<Response>)>);

impl Callers {
    pub(super) fn add(&mut self, patience_ends: Time, answer: oneshot::Sender<Response>) {
        self.0.push((patience_ends, answer));
    }

    /// When the first one's patience ends.
    pub(super) fn deadline(&self) -> Option<Time> {
        self.0.iter().map(|(at, _)| *at).min()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All have what they waited for.
    pub(super) fn answer_all(&mut self, response: &Response) {
        self.answer(|_| true, response);
    }

    /// Those whose patience has ended are told why, if there are any.
    pub(super) fn answer_late(&mut self, now: Time, why: impl FnOnce() -> String) {
        if self.deadline().is_some_and(|at| at <= now) {
            self.answer(|patience_ends| patience_ends <= now, &Response::Error(why()));
        }
    }

    fn answer(&mut self, is_it: impl Fn(Time) -> bool, response: &Response) {
        for (_, answer) in self.0.extract_if(.., |(patience_ends, _)| is_it(*patience_ends)) {
            // A caller that has gone needs no answer.
            let _ = answer.send(response.clone());
        }
    }
}
