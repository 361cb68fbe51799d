//! INFORMATIONAL (RFC 7296 section 1.4): liveness, Deletes, notifications. Both roles.

use crate::api::*;
use crate::endpoint::{Endpoint, NAT_PORT, find_notify, notification};
use crate::exchange::{Purpose, Task};
use crate::sa::{ChildState, IkeSa, State};
use crate::window::Request;
use crate::wire::{Delete, Payload, notify};
use spindle_abi::{Spi, Time};

impl Endpoint {
    /// An INFORMATIONAL request; an empty one asks whether we live.
    pub(crate) fn receive_informational_request(&mut self, now: Time, sa: &mut IkeSa, request: Request<'_>) {
        let deletes = || {
            request.payloads.iter().filter_map(|p| match p {
                Payload::Delete(delete) => Some(delete),
                _ => None,
            })
        };
        if deletes().any(|d| *d == Delete::Ike) {
            // RFC 7296 section 1.4.1: the answer to the Delete of an IKE SA is empty.
            self.respond(sa, &request, &[]);
            return self.finish_ike_delete(sa);
        }
        let named: Vec<Spi> = deletes()
            .filter_map(|d| match d {
                Delete::Esp(spis) => Some(spis.clone()),
                _ => None,
            })
            .flatten()
            .collect();
        // RFC 7296 section 1.5: our packets came on this SPI. Nothing is concluded from it here.
        let invalid = find_notify(&request.payloads, notify::INVALID_SPI);
        let invalid = invalid.and_then(|n| <[u8; 4]>::try_from(&n.data[..]).ok());
        let invalid = invalid.map(|spi| Spi(u32::from_be_bytes(spi)));
        let lost = invalid.and_then(|spi| sa.child_by_outbound(spi)).map(|c| c.config.name.clone());
        let mut paired = Vec::new();
        for spi in named {
            paired.extend(self.delete_by_peer(now, sa, spi));
        }
        let mut answer = Vec::new();
        answer.extend((!paired.is_empty()).then_some(Payload::Delete(Delete::Esp(paired))));
        answer.extend(self.answer_check_spi(sa, &request.payloads));
        answer.extend(self.answer_ticket_request(now, sa, &request.payloads));
        self.respond(sa, &request, &answer);
        self.follow_redirect(now, sa, &request.payloads);
        if let Some(spi) = invalid {
            self.report(Report::InvalidSpi { ike: sa.id, spi, child: lost });
        }
        // RFC 7296 section 2.21.2: the initiator did not accept our AUTH.
        if find_notify(&request.payloads, notify::AUTHENTICATION_FAILED).is_some() {
            sa.end(Authority::ProtocolError(Evidence(())), false);
        }
    }

    /// The peer is to be told under protection that its packet came on an SPI that is unknown here: at once, or when the
    /// exchange under way is over. `false` if it isn't: where the IKE SA isn't established, one waits to be told already,
    /// or the SPI is known after all. How often is the caller's to limit.
    pub fn notify_invalid_spi(&mut self, now: Time, ike: IkeSaId, spi: Spi) -> bool {
        if self.knows_child_spi(spi) {
            return false;
        }
        let told = self.with_sa(now, ike, |_, sa| {
            let waits = sa.queue.iter().any(|(_, task)| matches!(task, Task::TellInvalidSpi(_)));
            let tells = sa.is_established() && !waits;
            if tells {
                sa.enqueue(now, Task::TellInvalidSpi(spi));
            }
            tells
        });
        told == Some(true)
    }

    /// RFC 7296 section 1.5: INVALID_SPI with the SPI as its data; section 1.4.1: and the Delete of what may still send on
    /// it there, for of whatever pair we have lost this is the half that we chose.
    pub(crate) fn tell_invalid_spi(&mut self, now: Time, sa: &mut IkeSa, spi: Spi) {
        let invalid = notification(notify::INVALID_SPI, spi.0.to_be_bytes().to_vec());
        let delete = Payload::Delete(Delete::Esp(vec![spi]));
        self.inform(now, sa, &[invalid, delete], Purpose::Informational);
    }

    /// The peer deletes its inbound SA; our inbound SA of the pair goes into the answer. RFC 7296 section 1.4.1: not
    /// if our own Delete of the pair is under way, and only once.
    fn delete_by_peer(&mut self, now: Time, sa: &mut IkeSa, spi: Spi) -> Option<Spi> {
        let child = sa.child_by_outbound(spi)?;
        let (id, inbound, state) = (child.id, child.inbound, child.state);
        let name = child.config.name.clone();
        if state == ChildState::Deleting {
            self.stop_sending(child);
            return None;
        }
        sa.queue.retain(|(_, task)| *task != Task::DeleteChild(id) && *task != Task::RekeyChild(id));
        let replaced = sa.children.iter().any(|c| c.replaces == Some(id));
        self.remove_child(now, sa, id, replaced);
        let served = sa.children.iter().any(|c| c.config.name == name && c.state == ChildState::Installed);
        if state == ChildState::Installed && !replaced && !served {
            self.make_child_later(now, sa, &name);
        }
        Some(inbound)
    }

    /// Deletes a Child SA. The outbound SA is used no more, the inbound one until the answer.
    pub(crate) fn begin_child_delete(&mut self, now: Time, sa: &mut IkeSa, id: ChildSaId) {
        let Some(child) = sa.child(id) else { return };
        child.state = ChildState::Deleting;
        child.rekey_at = None;
        let delete = Payload::Delete(Delete::Esp(vec![child.inbound]));
        self.stop_sending(child);
        self.inform(now, sa, &[delete], Purpose::DeleteChildren(vec![id]));
    }

    /// Our Delete of a Child SA is answered.
    pub(crate) fn finish_child_delete(&mut self, now: Time, sa: &mut IkeSa, id: ChildSaId) {
        let replaced = sa.children.iter().any(|c| c.replaces == Some(id));
        self.remove_child(now, sa, id, replaced);
    }

    /// Deletes the IKE SA: the last request on it.
    pub(crate) fn begin_ike_delete(&mut self, now: Time, sa: &mut IkeSa) {
        self.inform(now, sa, &[Payload::Delete(Delete::Ike)], Purpose::DeleteIke);
    }

    /// A Delete of the IKE SA, ours or the peer's, is answered.
    pub(crate) fn finish_ike_delete(&mut self, sa: &mut IkeSa) {
        let authority = match &sa.state {
            State::Rekeyed => Authority::Superseded(Evidence(())),
            State::Deleting(authority) => authority.clone(),
            _ => Authority::Delete(Evidence(())),
        };
        sa.end(authority, true);
    }

    /// When an authenticated packet of the peer last came, ESP on any of the Child SAs included.
    pub(crate) fn last_heard(&self, sa: &IkeSa) -> Time {
        let esp = sa.children.iter().map(|c| self.activity.activity(c.inbound_index).last).max();
        sa.heard.max(esp.unwrap_or_default())
    }

    /// RFC 7296 section 2.4: a liveness check after a while without any authenticated packet of the peer, ESP on any
    /// of the Child SAs included.
    pub(crate) fn check_liveness(&mut self, now: Time, sa: &mut IkeSa) {
        let due = self.last_heard(sa).after(sa.connection.dpd_delay);
        if due > now {
            sa.dpd_at = Some(due);
            return;
        }
        // An outstanding request asks the same.
        if sa.outstanding.is_none() {
            sa.enqueue(now, Task::Liveness);
        }
        sa.dpd_at = Some(now.after(sa.connection.dpd_delay));
    }

    /// RFC 3948 section 4: one octet 0xff keeps the NAT's mapping.
    pub(crate) fn send_keepalive(&mut self, now: Time, sa: &mut IkeSa) {
        if sa.local.port() == NAT_PORT {
            let data = vec![0xff];
            self.push(Output::Transmit(Datagram { local: sa.local, remote: sa.remote, data }));
        }
        sa.keepalive_at = Some(now.after(crate::auth::KEEPALIVE));
    }
}
