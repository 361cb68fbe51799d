//! A gateway that is taken down for maintenance: no IKE SA begins here any more, and the peers of those that stand are
//! sent to another gateway (RFC 5685) or, where they cannot be, their IKE SAs end by a Delete. The client's side of a
//! redirect is [`redirect`](crate::redirect)'s.
//!
//! Whom to dismiss when is the caller's to say, who paces it. A peer that is redirected has a while to make its SAs with
//! the other gateway; then its Delete comes all the same (section 5).

use crate::api::*;
use crate::endpoint::Endpoint;
use crate::exchange::{Purpose, Task};
use crate::redirect;
use crate::sa::IkeSa;
use crate::wire::{Payload, View};
use spindle_abi::Time;
use std::net::IpAddr;
use std::time::Duration;

/// Where the peers of a gateway that is taken down are to go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TakenDown {
    /// Another gateway with the same identity; `None`: they are told no more than that this one goes.
    to: Option<IpAddr>,
    /// So long a redirected peer may take to get there.
    grace: Duration,
}

/// Ends IKE SAs from here on.
pub(crate) const LEAVES: Authority = Authority::Local("the gateway is taken down");

/// Octets of a nonce (RFC 7296 section 3.9, RFC 5685 section 9.2).
const NONCE: std::ops::RangeInclusive<usize> = 16..=256;

impl Endpoint {
    /// From here on no IKE SA begins here, by us or by a peer. Those that stand are for [`Endpoint::dismiss`]; those whose
    /// IKE_AUTH is under way are dismissed as soon as they stand. Said again, it only changes where peers go.
    pub fn take_down(&mut self, now: Time, to: Option<IpAddr>, grace: Duration) {
        self.taken_down = Some(TakenDown { to, grace });
        self.keep_taken_down(to, grace);
        let all: Vec<IkeSaId> = self.sas.keys().copied().collect();
        for id in all {
            self.with_sa(now, id, |_, sa| {
                if sa.is_initiation() && sa.outstanding.as_ref().is_some_and(|o| o.purpose.is_first()) {
                    sa.end(LEAVES, false);
                }
            });
        }
    }

    /// Would this IKE SA's peer be redirected, were it dismissed now?
    pub fn may_redirect(&self, ike: IkeSaId) -> bool {
        self.sas.get(&ike).is_some_and(|sa| sa.is_established() && self.redirection(sa).is_some())
    }

    /// Redirects this IKE SA's peer, and ends the IKE SA by a Delete: after a while where the peer is redirected, else at
    /// once. Does nothing unless this gateway is taken down.
    pub fn dismiss(&mut self, now: Time, ike: IkeSaId) {
        self.with_sa(now, ike, |e, sa| e.send_away(now, sa));
    }

    /// The same for one that has just been authenticated.
    pub(crate) fn send_away(&mut self, now: Time, sa: &mut IkeSa) {
        let Some(TakenDown { grace, .. }) = self.taken_down.filter(|_| sa.is_established()) else { return };
        if self.redirection(sa).is_none() {
            return self.close(now, sa, LEAVES);
        }
        sa.enqueue(now, Task::Redirect);
        let leaves = now.after(grace);
        sa.leave_at = Some(sa.leave_at.map_or(leaves, |at| at.min(leaves)));
    }

    /// Where to send this IKE SA's peer. Section 3: only who said that it may be redirected; section 10: only the
    /// original responder may redirect.
    fn redirection(&self, sa: &IkeSa) -> Option<IpAddr> {
        let to = self.taken_down?.to?;
        (sa.redirectable && !sa.origin.ours).then_some(to)
    }

    /// Section 5: without nonce data; retransmitted until it is answered, as every request.
    pub(crate) fn redirect_peer(&mut self, now: Time, sa: &mut IkeSa) {
        if let Some(to) = self.redirection(sa) {
            self.inform(now, sa, &[redirect::redirect(to, &[])], Purpose::Redirect(to));
        }
    }

    /// Section 6: the peer, whose AUTH has been verified, is redirected in the IKE_AUTH response; no Child SA is made. It
    /// deletes the IKE SA, or we do.
    pub(crate) fn redirect_in_auth(&mut self, now: Time, sa: &mut IkeSa) -> Option<Payload> {
        let to = self.redirection(sa)?;
        sa.leave_at = Some(now.after(self.taken_down?.grace));
        self.report(Report::Redirected { ike: sa.id, to });
        Some(redirect::redirect(to, &[]))
    }

    /// Answers a first request while this gateway is taken down: REDIRECT with the nonce, where there is another gateway
    /// and the peer said that it may be redirected (section 3: else MUST NOT); silence to others, who try again as they
    /// would try a gateway that is off. No state is kept; the answer is shorter than the request, and goes only to
    /// addresses that a connection names.
    pub(crate) fn turn_away(&mut self, datagram: &Datagram, view: &View<'_>) {
        let Some(to) = self.taken_down.and_then(|taken_down| taken_down.to) else { return };
        let Ok(message) = view.message() else { return };
        let nonce = message.payloads.iter().find_map(|p| match p {
            Payload::Nonce(nonce) if NONCE.contains(&nonce.len()) => Some(nonce),
            _ => None,
        });
        let serves = self.candidates(datagram.local.ip(), datagram.remote.ip()).next().is_some();
        if let Some(nonce) = nonce.filter(|_| serves && redirect::is_supported(&message.payloads)) {
            self.answer_in_clear(datagram, &message.header, vec![redirect::redirect(to, nonce)]);
        }
    }
}
