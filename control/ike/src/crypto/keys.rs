//! Keys and what is computed with them: SKEYSEED and SK_* (RFC 7296 section 2.14, 2.18), KEYMAT (2.17), AUTH with a
//! pre-shared key (2.15), NAT detection (2.23).

use super::{IkeSuite, Prf, Secret};
use crate::api::IkeSpis;
use crate::kept::field::{Field, Reader, Writer};
use crate::wire::{OpeningKey, SealingKey};
use sha1::{Digest, Sha1};
use spindle_abi::{KeyMaterial, Suite};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// The keys of one IKE SA. With an AEAD there is no SK_a (RFC 5282 section 7). Redacted in Debug.
pub struct IkeKeys {
    suite: IkeSuite,
    sk_d: Secret,
    sk_ei: Secret,
    sk_er: Secret,
    sk_pi: Secret,
    sk_pr: Secret,
}

impl Field for IkeKeys {
    fn put(&self, out: &mut Writer) {
        let IkeKeys { suite, sk_d, sk_ei, sk_er, sk_pi, sk_pr } = self;
        suite.put(out);
        [sk_d, sk_ei, sk_er, sk_pi, sk_pr].into_iter().for_each(|key| key.put(out));
    }
    fn take(from: &mut Reader<'_>) -> Option<IkeKeys> {
        let suite = IkeSuite::take(from)?;
        let (prf, encryption) = (suite.prf.length(), suite.encryption.keymat_length());
        let mut key = |length| Secret::take(from).filter(|key| key.len() == length);
        Some(IkeKeys {
            suite,
            sk_d: key(prf)?,
            sk_ei: key(encryption)?,
            sk_er: key(encryption)?,
            sk_pi: key(prf)?,
            sk_pr: key(prf)?,
        })
    }
}

/// KEYMAT of a pair of ESP SAs.
#[derive(Debug)]
pub struct ChildKeys {
    /// For what the exchange's initiator sends.
    pub initiator: KeyMaterial,
    /// For what its responder sends.
    pub responder: KeyMaterial,
}

impl IkeKeys {
    /// Of a first IKE SA: SKEYSEED = prf(Ni | Nr, g^ir).
    pub fn new(suite: IkeSuite, shared: &[u8], ni: &[u8], nr: &[u8], spis: IkeSpis) -> IkeKeys {
        let nonces = Zeroizing::new([ni, nr].concat());
        let seed = suite.prf.compute(&nonces, &[shared]);
        IkeKeys::expand(suite, &seed, ni, nr, spis)
    }

    /// Of the IKE SA that replaces this one (section 2.18): SKEYSEED = prf(SK_d (old), g^ir (new) | Ni | Nr) with the
    /// old prf; the keys with the new one. `spis` are the new SA's, `ni` its initiator's.
    pub fn rekey(&self, suite: IkeSuite, shared: &[u8], ni: &[u8], nr: &[u8], spis: IkeSpis) -> IkeKeys {
        let seed = self.suite.prf.compute(&self.sk_d, &[shared, ni, nr]);
        IkeKeys::expand(suite, &seed, ni, nr, spis)
    }

    /// Of an IKE SA that a ticket resumes (RFC 5723 section 5.1): SKEYSEED = prf(SK_d (old), "Resumption" | Ni | Nr).
    pub fn resume(suite: IkeSuite, sk_d: &[u8], ni: &[u8], nr: &[u8], spis: IkeSpis) -> IkeKeys {
        let seed = suite.prf.compute(sk_d, &[b"Resumption", ni, nr]);
        IkeKeys::expand(suite, &seed, ni, nr, spis)
    }

    /// {SK_d | SK_ei | SK_er | SK_pi | SK_pr} = prf+(SKEYSEED, Ni | Nr | SPIi | SPIr).
    fn expand(suite: IkeSuite, seed: &[u8], ni: &[u8], nr: &[u8], spis: IkeSpis) -> IkeKeys {
        let (prf, encryption) = (suite.prf.length(), suite.encryption.keymat_length());
        let parts: [&[u8]; 4] = [ni, nr, &spis.initiator, &spis.responder];
        let octets = suite.prf.expand(seed, &parts, 3 * prf + 2 * encryption);
        let mut rest = octets.as_slice();
        let mut take = |length| {
            let (first, after) = rest.split_at(length);
            rest = after;
            Zeroizing::new(first.to_vec())
        };
        IkeKeys {
            suite,
            sk_d: take(prf),
            sk_ei: take(encryption),
            sk_er: take(encryption),
            sk_pi: take(prf),
            sk_pr: take(prf),
        }
    }

    /// What was negotiated.
    pub fn suite(&self) -> IkeSuite {
        self.suite
    }

    /// SK_d, for a ticket.
    pub(crate) fn derivation_key(&self) -> &Secret {
        &self.sk_d
    }

    /// AUTH of the original initiator or of the responder of a resumed IKE SA (RFC 5723 section 4.3.3):
    /// prf(SK_p, octets).
    pub fn resumed_authentication(&self, initiator: bool, octets: &[u8]) -> Secret {
        let key = if initiator { &self.sk_pi } else { &self.sk_pr };
        self.suite.prf.compute(key, &[octets])
    }

    /// SK_ei or SK_er to send with, for the SA's original initiator or its responder. Call once in an SA's life: the
    /// IV starts anew.
    pub fn sealing(&self, initiator: bool) -> SealingKey {
        SealingKey::new(self.suite.encryption, if initiator { &self.sk_ei } else { &self.sk_er })
    }

    /// SK_er or SK_ei to receive with, for the SA's original initiator or its responder.
    pub fn opening(&self, initiator: bool) -> OpeningKey {
        OpeningKey::new(self.suite.encryption, if initiator { &self.sk_er } else { &self.sk_ei })
    }

    /// The octets that AUTH of the original initiator or of the responder covers (section 2.15): its first message,
    /// the other side's nonce, prf(SK_p, ID payload's body).
    pub fn signed_octets(&self, initiator: bool, message: &[u8], peer_nonce: &[u8], id: &[u8]) -> Secret {
        let key = if initiator { &self.sk_pi } else { &self.sk_pr };
        Zeroizing::new([message, peer_nonce, &self.suite.prf.compute(key, &[id])].concat())
    }

    /// KEYMAT of a Child SA (section 2.17): prf+(SK_d, [g^ir (new)] | Ni | Nr). The nonces are those of the exchange
    /// that makes it, `shared` its key exchange's, if it has one.
    pub fn child(&self, suite: Suite, shared: Option<&[u8]>, ni: &[u8], nr: &[u8]) -> ChildKeys {
        let length = suite.keymat_length();
        let octets = self.suite.prf.expand(&self.sk_d, &[shared.unwrap_or(&[]), ni, nr], 2 * length);
        let (initiator, responder) = octets.split_at(length);
        let keymat = |octets| KeyMaterial::new(octets).expect("at most 36 octets");
        ChildKeys { initiator: keymat(initiator), responder: keymat(responder) }
    }
}

impl fmt::Debug for IkeKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IkeKeys({:?})", self.suite)
    }
}

/// AUTH with a pre-shared key (section 2.15): prf(prf(psk, "Key Pad for IKEv2"), octets).
pub fn psk_authentication(prf: Prf, psk: &[u8], octets: &[u8]) -> Secret {
    prf.compute(&prf.compute(psk, &[b"Key Pad for IKEv2"]), &[octets])
}

/// Compares in constant time; the lengths are no secret.
pub fn equal(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

/// Data of NAT_DETECTION_SOURCE_IP and NAT_DETECTION_DESTINATION_IP (section 2.23): SHA-1 of SPIi | SPIr | address |
/// port, with the SPIs as they stand in the message's header.
pub fn nat_detection_hash(spis: IkeSpis, address: SocketAddr) -> [u8; 20] {
    let hash = Sha1::new().chain_update(spis.initiator).chain_update(spis.responder);
    let hash = match address.ip() {
        IpAddr::V4(a) => hash.chain_update(a.octets()),
        IpAddr::V6(a) => hash.chain_update(a.octets()),
    };
    hash.chain_update(address.port().to_be_bytes()).finalize().into()
}
