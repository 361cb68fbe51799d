//! Redirects (RFC 5685), the client's side: the gateway that we asked, or have an IKE SA with, sends us to another
//! gateway of the same peer. What REDIRECT and REDIRECTED_FROM look like is here too.
//!
//! ```text
//!   client                                             gateway that is taken down
//!   HDR, SA, KE, Ni, N(REDIRECT_SUPPORTED)     ------>
//!                                              <------  HDR, N(REDIRECT, other, Ni)          in clear: section 3
//!
//!                                              <------  HDR, SK {N(REDIRECT, other)}         section 5
//!   HDR, SK {}                                 ------>
//!   an IKE SA with the other gateway, then on the old one:
//!   HDR, SK {D}                                ------>
//! ```
//!
//! A redirect changes where the next IKE_SA_INIT goes and nothing else: the other gateway must prove the identity that
//! the connection's configuration has, with its key, and the SPD stays as it is (section 3). It leads only to the
//! addresses that the configuration names for the connection. So an attacker who can read our IKE_SA_INIT request, and
//! hence forge an answer to it, can choose between gateways that the operator chose before, and can send neither our
//! requests to a victim nor our IKE_AUTH to a host of his own, which would see our identity and could guess at a weak key.
//! The old IKE SA, if there is one, stays until the new one is authenticated.

use crate::api::*;
use crate::connect::{Beginning, Profile};
use crate::create_child::ChildOffer;
use crate::endpoint::{Endpoint, find_notify, notification};
use crate::sa::IkeSa;
use crate::wire::{Payload, notify};
use spindle_abi::Time;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

/// MAX_REDIRECTS (RFC 5685 section 7): so many are followed …
const MAX_REDIRECTS: usize = 5;
/// … within REDIRECT_LOOP_DETECT_PERIOD.
const LOOP_DETECT_PERIOD: Duration = Duration::from_secs(300);

/// GW Identity Types (section 9.2).
const IPV4: u8 = 1;
const IPV6: u8 = 2;
const FQDN: u8 = 3;

/// A gateway as REDIRECT names it.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Gateway {
    Address(IpAddr),
    Name(String),
}

/// What REDIRECT holds (section 9.2): GW Ident Type, GW Ident Len, the identity, and in clear the nonce.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Redirect<'a> {
    gateway: Gateway,
    nonce: &'a [u8],
}

impl<'a> Redirect<'a> {
    /// The first REDIRECT of a message; `None` if there is none, or it is malformed. SPI Size MUST be 0.
    fn find(payloads: &'a [Payload]) -> Option<Redirect<'a>> {
        let notify = find_notify(payloads, notify::REDIRECT).filter(|n| n.spi.is_empty())?;
        let ([kind, length], rest) = notify.data.split_first_chunk()?;
        let (identity, nonce) = rest.split_at_checked(usize::from(*length))?;
        let gateway = match *kind {
            IPV4 => Gateway::Address(<[u8; 4]>::try_from(identity).ok()?.into()),
            IPV6 => Gateway::Address(<[u8; 16]>::try_from(identity).ok()?.into()),
            FQDN => Gateway::Name(std::str::from_utf8(identity).ok()?.into()),
            _ => return None,
        };
        Some(Redirect { gateway, nonce })
    }
}

/// GW Ident Type, GW Ident Len and the identity (section 9.2; RFC 7296 section 3.5).
fn identity(gateway: IpAddr) -> Vec<u8> {
    match gateway {
        IpAddr::V4(address) => [&[IPV4, 4], &address.octets()[..]].concat(),
        IpAddr::V6(address) => [&[IPV6, 16], &address.octets()[..]].concat(),
    }
}

/// REDIRECT; `nonce` is Ni in the answer to a first request, and empty under protection, where it MUST NOT be.
pub(crate) fn redirect(to: IpAddr, nonce: &[u8]) -> Payload {
    notification(notify::REDIRECT, [&identity(to), nonce].concat())
}

/// What a first request says of redirects: nothing where none is followed; after one, who made it (section 3: MUST).
pub(crate) fn announcement(sa: &IkeSa) -> Option<Payload> {
    if sa.connection.redirect_to.is_empty() {
        return None;
    }
    Some(match sa.redirected_from {
        Some(from) => notification(notify::REDIRECTED_FROM, identity(from)),
        None => notification(notify::REDIRECT_SUPPORTED, Vec::new()),
    })
}

/// May the sender of this first request be redirected (section 3)?
pub(crate) fn is_supported(payloads: &[Payload]) -> bool {
    let said = |kind| find_notify(payloads, kind).is_some();
    said(notify::REDIRECT_SUPPORTED) || said(notify::REDIRECTED_FROM)
}

/// Section 3: the PAD's entry decides where a redirect may lead. Back to the configured gateway it always may.
fn is_allowed(connection: &Profile, to: IpAddr) -> bool {
    connection.redirect_to.contains(&to) || connection.remote == Some(to)
}

impl Endpoint {
    /// REDIRECT in answer to our first request, in clear. If it is followed, the initiation goes on at the other gateway,
    /// with nothing of the first: SPI, key and nonce are new. If not, the true answer may still come.
    pub(crate) fn follow_redirect_in_clear(
        &mut self,
        now: Time,
        sa: &mut IkeSa,
        payloads: &[Payload],
    ) -> bool {
        // Section 3: the nonce MUST match, else the response is discarded silently.
        let redirect = Redirect::find(payloads).filter(|r| sa.redirectable && r.nonce == sa.setup.nonce_i);
        let Some(redirect) = redirect else { return false };
        let to = match self.leads_to(now, sa, &redirect) {
            Ok(to) => to,
            Err(reason) => {
                // Once for each initiation: whoever reads the nonce can make as many of these as he likes.
                if sa.refusal.is_none() {
                    self.refuse_redirect(sa, reason.clone());
                    sa.refusal = Some(format!("redirected {reason}"));
                }
                return false;
            }
        };
        let from = self.note_redirect(now, sa, to);
        self.forget_spi(&sa.own_spi());
        sa.spis = IkeSpis { initiator: self.allocate_ike_spi(), responder: [0; 8] };
        sa.redirected_from = Some(from);
        (sa.local, sa.remote) = sa.connection.ends_at(to);
        self.begin_init(now, sa, None);
        true
    }

    /// REDIRECT of an authenticated gateway in an INFORMATIONAL request, which was answered (section 5).
    pub(crate) fn follow_redirect(&mut self, now: Time, sa: &mut IkeSa, payloads: &[Payload]) {
        if let Some(redirect) = self.redirect_under_protection(sa, payloads)
            && sa.is_established()
        {
            let names = sa.child_names();
            sa.redirected |= self.begin_elsewhere(now, sa, names, &redirect);
        }
    }

    /// REDIRECT in the response to our IKE_AUTH request, whose AUTH is verified (section 6: MUST be), in the place of
    /// the Child SA. The IKE SA ends by a Delete, as it SHOULD.
    pub(crate) fn follow_redirect_in_auth(
        &mut self,
        now: Time,
        sa: &mut IkeSa,
        first: &ChildOffer,
        payloads: &[Payload],
    ) -> bool {
        let redirect = self.redirect_under_protection(sa, payloads).filter(|_| !sa.surplus);
        let Some(redirect) = redirect else { return false };
        let mut names = sa.child_names();
        names.insert(first.profile.name.clone());
        let followed = self.begin_elsewhere(now, sa, names, &redirect);
        if followed {
            self.release_child_spi(first.inbound);
            self.close(now, sa, Authority::Superseded(Evidence(())));
        }
        followed
    }

    /// Section 10: only the original responder redirects, and only who said that it may be (section 3). Section 5: there
    /// is no nonce.
    fn redirect_under_protection<'a>(&self, sa: &IkeSa, payloads: &'a [Payload]) -> Option<Redirect<'a>> {
        Redirect::find(payloads).filter(|r| sa.redirectable && sa.origin.ours && r.nonce.is_empty())
    }

    /// Begins an IKE SA with the gateway that a redirect leads to, with these children; it takes the place of `sa`, or of
    /// what that was to take the place of. `false` if the redirect is not followed.
    fn begin_elsewhere(
        &mut self,
        now: Time,
        sa: &IkeSa,
        names: BTreeSet<String>,
        redirect: &Redirect<'_>,
    ) -> bool {
        let number = sa.connection.number;
        let supersedes = sa.supersedes.or(Some(sa.id));
        let begun = self.leads_to(now, sa, redirect).and_then(|to| {
            let mut others = self.connections[number].sas.iter().copied();
            // Said twice, or we are on our way already: then the gateway will send that one on.
            if let Some(id) = others.find(|id| self.sas.get(id).is_some_and(IkeSa::is_initiation)) {
                self.with_sa(now, id, |_, other| {
                    other.wanted.extend(names);
                    other.supersedes = other.supersedes.or(supersedes);
                });
                return Ok(());
            }
            let beginning = Beginning {
                ends: Some(sa.connection.ends_at(to)),
                redirected_from: Some(sa.remote.ip()),
                supersedes,
                ..Beginning::default()
            };
            self.note_redirect(now, sa, to);
            self.start_ike(now, number, names, beginning).map_err(|refused| refused.to_string())
        });
        if let Err(reason) = begun {
            self.refuse_redirect(sa, reason);
            return false;
        }
        true
    }

    /// Where a redirect leads, if it is to be followed; else why not.
    fn leads_to(&mut self, now: Time, sa: &IkeSa, redirect: &Redirect<'_>) -> Result<IpAddr, String> {
        let to = match &redirect.gateway {
            Gateway::Address(to) => *to,
            Gateway::Name(name) => {
                let name = name.escape_default();
                return Err(format!("to the name {name}: names are not looked up; it must be an address"));
            }
        };
        if !is_allowed(&sa.connection, to) {
            return Err(format!("to {to}, which redirect_to does not name"));
        }
        if to == sa.remote.ip() {
            return Err(format!("to {to}, from where it came"));
        }
        // Section 7: no more than MAX_REDIRECTS within REDIRECT_LOOP_DETECT_PERIOD.
        let followed = &mut self.connections[sa.connection.number].redirects;
        while followed.front().is_some_and(|at| now.since(*at) >= LOOP_DETECT_PERIOD) {
            followed.pop_front();
        }
        if followed.len() >= MAX_REDIRECTS {
            let period = LOOP_DETECT_PERIOD.as_secs();
            return Err(format!("to {to}: {MAX_REDIRECTS} redirects were followed within {period} s"));
        }
        Ok(to)
    }

    /// It is followed; who made it.
    fn note_redirect(&mut self, now: Time, sa: &IkeSa, to: IpAddr) -> IpAddr {
        let from = sa.remote.ip();
        self.connections[sa.connection.number].redirects.push_back(now);
        self.report(Report::RedirectFollowed { connection: sa.connection.name.clone(), from, to });
        from
    }

    fn refuse_redirect(&mut self, sa: &IkeSa, reason: String) {
        self.report(Report::RedirectRefused { connection: sa.connection.name.clone(), reason });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notify_of(payload: Payload) -> Notify {
        match payload {
            Payload::Notify(notify) => notify,
            other => panic!("{other:?}"),
        }
    }

    /// RFC 5685 section 9.2: type, length, the address as in RFC 7296 section 3.5, the nonce; SPI Size and Protocol ID 0.
    #[test]
    fn redirect_octet_by_octet() {
        let notify = notify_of(redirect([192, 0, 2, 9].into(), &[7; 16]));
        assert_eq!((notify.kind, notify.protocol, notify.spi.len()), (16407, 0, 0));
        assert_eq!(notify.data, [&[1, 4, 192, 0, 2, 9][..], &[7; 16]].concat());
        let v6 = IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 9]);
        let protected = notify_of(redirect(v6, &[]));
        assert_eq!(protected.data[..6], [2, 16, 0x20, 0x01, 0x0d, 0xb8]);
        assert_eq!(protected.data.len(), 18);
        for (to, nonce) in [(IpAddr::from([192, 0, 2, 9]), &[7; 32][..]), (v6, &[])] {
            let payloads = [redirect(to, nonce)];
            assert_eq!(Redirect::find(&payloads), Some(Redirect { gateway: Gateway::Address(to), nonce }));
        }
    }

    #[test]
    fn a_malformed_redirect_is_none_and_a_name_is_one() {
        let find = |data: &[u8]| {
            let payloads = [notification(notify::REDIRECT, data.to_vec())];
            Redirect::find(&payloads).map(|r| r.gateway)
        };
        for data in [&[][..], &[1], &[1, 4], &[1, 4, 1, 2, 3], &[1, 5, 1, 2, 3, 4, 5], &[2, 4, 1, 2, 3, 4]] {
            assert_eq!(find(data), None, "{data:?}");
        }
        assert_eq!(find(&[0, 4, 1, 2, 3, 4]), None, "an unknown type");
        assert_eq!(find(&[3, 2, 0xff, 0xfe]), None, "not UTF-8");
        assert_eq!(find(b"\x03\x06b.test"), Some(Gateway::Name("b.test".into())));
        let spi = Notify { spi: vec![1], ..notify_of(redirect([192, 0, 2, 9].into(), &[])) };
        assert_eq!(Redirect::find(&[Payload::Notify(spi)]), None, "SPI Size MUST be 0");
    }
}
