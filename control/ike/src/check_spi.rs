//! CHECK_SPI of Safe IKE Recovery, SIR (draft-detienne-ikev2-recovery-03 sections 3.2.1, 3.4 and 6): its form, and its
//! use under the protection of an IKE SA. What it means in clear is recovery's matter.
//!
//! An experiment, off by default: the draft never became an RFC and leaves numbers open, so the exchange type, the
//! notification's type and the Vendor ID are private ones (RFC 7296 section 3.1 and 3.10.1), and the draft's own Vendor
//! ID is not sent. Nobody else speaks this.

use crate::api::*;
use crate::endpoint::{Endpoint, notifies};
use crate::sa::IkeSa;
use crate::wire::{Payload, notify, protocol};
use spindle_abi::Spi;

/// Announces SIR with these numbers: the first half of a SHA-256 digest, and a version.
pub const VENDOR_ID: [u8; 17] = *b"\x66\x85\x60\x25\x87\xf5\x1b\x25\x46\xcb\x0d\x54\xab\x04\xee\x28\x01";

/// What CHECK_SPI says (section 6).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Subtype {
    /// Is this SA there?
    Query,
    /// It is.
    Ack,
    /// It is not.
    Nack,
}

/// A CHECK_SPI notification.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CheckSpi {
    /// What it says.
    pub subtype: Subtype,
    /// About the ESP SA on which its receiver, or the sender of an answer, receives; `None`: about the IKE SA of the
    /// header.
    pub child: Option<Spi>,
    /// Whatever the asker put there, reflected; at most 255 octets.
    pub cookie: Vec<u8>,
}

impl CheckSpi {
    /// As a Notify payload: subtype, length of the cookie, two octets reserved, the cookie (section 6). RFC 7296
    /// section 3.10: no SPI and Protocol ID 0 for the IKE SA of the header.
    pub fn to_notify(&self) -> Notify {
        let (protocol, spi) = match self.child {
            Some(spi) => (protocol::ESP, spi.0.to_be_bytes().to_vec()),
            None => (0, Vec::new()),
        };
        let subtype = match self.subtype {
            Subtype::Query => 0,
            Subtype::Ack => 1,
            Subtype::Nack => 2,
        };
        let cookie = &self.cookie[..self.cookie.len().min(255)];
        let data = [&[subtype, cookie.len() as u8, 0, 0], cookie].concat();
        Notify { kind: notify::SIR_CHECK_SPI, protocol, spi, data }
    }

    /// `None` if it is another notification, or malformed.
    pub fn from_notify(notify: &Notify) -> Option<CheckSpi> {
        if notify.kind != notify::SIR_CHECK_SPI {
            return None;
        }
        let child = match (notify.protocol, &notify.spi[..]) {
            (protocol::ESP, spi) => Some(Spi(u32::from_be_bytes(spi.try_into().ok()?))),
            (_, []) => None,
            _ => return None,
        };
        let ([subtype, size, _, _], cookie) = notify.data.split_first_chunk()?;
        let subtype = match subtype {
            0 => Subtype::Query,
            1 => Subtype::Ack,
            2 => Subtype::Nack,
            _ => return None,
        };
        (cookie.len() == usize::from(*size)).then(|| CheckSpi { subtype, child, cookie: cookie.to_vec() })
    }
}

/// Did the sender of this first message announce SIR (section 5)?
fn is_announced(payloads: &[Payload]) -> bool {
    payloads.iter().any(|p| matches!(p, Payload::VendorId(id) if id[..] == VENDOR_ID))
}

/// The first CHECK_SPI about an ESP SA.
fn about_child(payloads: &[Payload]) -> Option<(Subtype, Spi)> {
    let check = notifies(payloads).find_map(CheckSpi::from_notify)?;
    Some((check.subtype, check.child?))
}

impl Endpoint {
    /// Does any connection speak SIR?
    pub(crate) fn hears_sir(&self) -> bool {
        !self.config.sir.is_empty()
    }

    /// Did both announce SIR, the peer by these payloads, we as this connection's configuration says?
    pub(crate) fn agrees_on_sir(&self, connection: &str, payloads: &[Payload]) -> bool {
        self.config.sir.contains(connection) && is_announced(payloads)
    }

    /// Section 5: the Vendor ID in the first two messages, be they IKE_SA_INIT's or IKE_SESSION_RESUME's.
    pub(crate) fn sir_announcement(&self, connection: &str) -> Option<Payload> {
        self.config.sir.contains(connection).then(|| Payload::VendorId(VENDOR_ID.to_vec()))
    }

    /// What a liveness check of this IKE SA holds: section 3.4.2, after INVALID_SPI in clear, a protected CHECK_SPI
    /// about the ESP SA.
    pub(crate) fn liveness_payloads(&self, sa: &mut IkeSa) -> Vec<Payload> {
        let query = |child| CheckSpi { subtype: Subtype::Query, child: Some(child), cookie: Vec::new() };
        sa.check.take().map(|spi| Payload::Notify(query(spi).to_notify())).into_iter().collect()
    }

    /// The peer asks under protection about one of our inbound SPIs. Section 3.4.2: that we can read it means that
    /// INVALID_SPI was forged, or crossed an exchange, or was our own mistake; so it is reported.
    pub(crate) fn answer_check_spi(&mut self, sa: &IkeSa, payloads: &[Payload]) -> Option<Payload> {
        let (Subtype::Query, spi) = about_child(payloads).filter(|_| sa.sir)? else { return None };
        // Larval and retired SPIs too: an exchange about them is under way, or has just ended.
        let known = self.child_spis.knows(spi);
        self.report(Report::SpiChecked { ike: sa.id, spi, known });
        let subtype = if known { Subtype::Ack } else { Subtype::Nack };
        Some(Payload::Notify(CheckSpi { subtype, child: Some(spi), cookie: Vec::new() }.to_notify()))
    }

    /// The peer's protected answer, which is reported.
    pub(crate) fn take_check_spi_answer(&mut self, sa: &IkeSa, payloads: &[Payload]) {
        let Some((subtype, spi)) = about_child(payloads).filter(|_| sa.sir) else { return };
        let known = match subtype {
            Subtype::Query => return,
            Subtype::Ack => true,
            Subtype::Nack => false,
        };
        self.report(Report::SpiAnswered { ike: sa.id, spi, known });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    #[test]
    fn the_vendor_id_is_made_of_a_long_text_and_a_version_and_is_not_the_drafts() {
        let text = "Spindle: an experiment with Safe IKE Recovery as in draft-detienne-ikev2-recovery-03, under private numbers";
        assert_eq!(VENDOR_ID[..16], Sha256::digest(text)[..16]);
        assert_eq!(VENDOR_ID[16], 1);
        assert!(is_announced(&[Payload::VendorId(vec![1]), Payload::VendorId(VENDOR_ID.to_vec())]));
        assert!(!is_announced(&[Payload::VendorId(b"SECURE IKE RECOVERY".to_vec())]));
        assert!(!is_announced(&[Payload::VendorId(VENDOR_ID[..16].to_vec())]));
    }

    /// Section 6, octet by octet; RFC 7296 section 3.10.
    #[test]
    fn check_spi_has_the_drafts_form() {
        let query = CheckSpi { subtype: Subtype::Query, child: None, cookie: vec![7, 8, 9] };
        let notify = query.to_notify();
        assert_eq!((notify.kind, notify.protocol, notify.spi.len()), (0xa00a, 0, 0));
        assert_eq!(notify.data, [0, 3, 0, 0, 7, 8, 9]);
        let nack = CheckSpi { subtype: Subtype::Nack, child: Some(Spi(0x01020304)), cookie: vec![] };
        let notify = nack.to_notify();
        assert_eq!(
            (notify.protocol, &notify.spi[..], &notify.data[..]),
            (3, &[1, 2, 3, 4][..], &[2, 0, 0, 0][..])
        );
        for check in [query, nack, CheckSpi { subtype: Subtype::Ack, child: None, cookie: vec![1; 255] }] {
            assert_eq!(CheckSpi::from_notify(&check.to_notify()), Some(check));
        }
    }

    #[test]
    fn malformed_ones_are_none() {
        let good = CheckSpi { subtype: Subtype::Ack, child: None, cookie: vec![1; 24] }.to_notify();
        let bad = [
            Notify { kind: 32770, ..good.clone() },
            Notify { data: good.data[..3].to_vec(), ..good.clone() },
            Notify { data: good.data[..27].to_vec(), ..good.clone() },
            Notify { data: [&good.data[..], &[0]].concat(), ..good.clone() },
            // Lone_Cookie has no value in the draft.
            Notify { data: vec![3, 0, 0, 0], ..good.clone() },
            Notify { protocol: 3, ..good.clone() },
            Notify { protocol: 3, spi: vec![1; 8], ..good.clone() },
            Notify { protocol: 1, spi: vec![1; 16], ..good.clone() },
        ];
        for notify in bad {
            assert_eq!(CheckSpi::from_notify(&notify), None, "{notify:?}");
        }
    }
}
