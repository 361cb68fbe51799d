//! Key exchange: Curve25519 (RFC 8031) and the 256-bit random ECP group (RFC 5903).

use super::Secret;
use crate::kept::field::{Field, Reader, Writer};
use crate::random::Random;
use crate::wire::transform;
use aws_lc_rs::agreement::{self, UnparsedPublicKey, X25519};
use p256::elliptic_curve::sec1::ToSec1Point;
use std::fmt;
use zeroize::Zeroizing;

/// A key exchange method.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Group {
    /// Curve25519, group 31.
    X25519,
    /// 256-bit random ECP group, group 19.
    P256,
}

/// The peer's public value is not one that the group allows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the peer's public value is not valid")]
pub struct ExchangeError;

/// An ephemeral private key with its public value. Zeroised on drop, redacted in Debug.
pub struct PrivateKey {
    secret: Private,
    octets: Zeroizing<[u8; 32]>,
    public: Vec<u8>,
}

impl Field for PrivateKey {
    fn put(&self, out: &mut Writer) {
        self.group().id().put(out);
        self.octets.put(out);
    }
    fn take(from: &mut Reader<'_>) -> Option<PrivateKey> {
        let group = Group::from_id(Field::take(from)?)?;
        PrivateKey::from_octets(group, &Zeroizing::new(Field::take(from)?))
    }
}

enum Private {
    X25519(agreement::PrivateKey),
    P256(p256::SecretKey),
}

impl Group {
    /// All of them.
    pub const ALL: [Group; 2] = [Group::X25519, Group::P256];

    /// Its Transform ID.
    pub fn id(self) -> u16 {
        match self {
            Group::X25519 => transform::CURVE25519,
            Group::P256 => transform::ECP_256,
        }
    }

    /// The one with this Transform ID.
    pub fn from_id(id: u16) -> Option<Group> {
        Group::ALL.into_iter().find(|group| group.id() == id)
    }
}

impl PrivateKey {
    /// A fresh one.
    pub fn generate(group: Group, random: &mut dyn Random) -> PrivateKey {
        let mut octets = Zeroizing::new([0; 32]);
        loop {
            random.fill(&mut *octets);
            // Zero and values above the order are drawn again: 1 in 2^32 times for P-256.
            if let Some(key) = PrivateKey::from_octets(group, &octets) {
                return key;
            }
        }
    }

    fn from_octets(group: Group, octets: &[u8; 32]) -> Option<PrivateKey> {
        let copy = Zeroizing::new(*octets);
        Some(match group {
            Group::X25519 => {
                let key = agreement::PrivateKey::from_private_key(&X25519, octets).ok()?;
                let public = key.compute_public_key().ok()?.as_ref().to_vec();
                PrivateKey { secret: Private::X25519(key), octets: copy, public }
            }
            Group::P256 => {
                let key = p256::SecretKey::from_slice(octets).ok()?;
                // RFC 5903 section 7: x and y, without a format octet.
                let public = key.public_key().to_sec1_point(false).as_bytes()[1..].to_vec();
                PrivateKey { secret: Private::P256(key), octets: copy, public }
            }
        })
    }

    /// Its group.
    pub fn group(&self) -> Group {
        match self.secret {
            Private::X25519(_) => Group::X25519,
            Private::P256(_) => Group::P256,
        }
    }

    /// The Key Exchange Data for the peer.
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// g^ir with the peer's Key Exchange Data.
    pub fn agree(&self, peer: &[u8]) -> Result<Secret, ExchangeError> {
        match &self.secret {
            Private::X25519(secret) => {
                // RFC 8031 section 2.3 with RFC 7748 section 6.1: the all-zero value, which means a point of small
                // order, is an error there.
                let peer = UnparsedPublicKey::new(&X25519, peer);
                agreement::agree(secret, peer, ExchangeError, |shared| Ok(Zeroizing::new(shared.to_vec())))
            }
            Private::P256(secret) => {
                // RFC 5903 section 8 with RFC 6989 section 2.3: the point must be on the curve.
                let peer: &[u8; 64] = peer.try_into().map_err(|_| ExchangeError)?;
                let mut point = [4; 65];
                point[1..].copy_from_slice(peer);
                let peer = p256::PublicKey::from_sec1_bytes(&point).map_err(|_| ExchangeError)?;
                let shared = p256::ecdh::diffie_hellman(secret.to_nonzero_scalar(), peer.as_affine());
                // RFC 5903 section 9: the x coordinate alone.
                Ok(Zeroizing::new(shared.raw_secret_bytes().to_vec()))
            }
        }
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({:?})", self.group())
    }
}
