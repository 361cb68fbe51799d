//! The journal's records on disk: a fixed head and the names of connection and child, all integers big-endian.
//!
//! RFC 6290 section 8.2: the map from Child SPIs to IKE SPIs may be kept on disk, so that INVALID_SPI can carry a
//! token at once after a crash. A record that does not decode is skipped and counted: a lost record costs one
//! round trip, never the start.

use crate::api::JournalRecord;
use spindle_abi::Spi;
use spindle_ike::api::IkeSpis;
use std::net::{IpAddr, SocketAddr};

const VERSION: u8 = 2;
const INITIATOR: u8 = 1;
const ENCAPSULATED: u8 = 2;
const EARLIER_PARENT: u8 = 4;

/// A name is cut here on disk; configuration allows no longer ones.
const MAX_NAME: usize = 255;

/// Octets of a key.
const KEY: usize = 4;

impl JournalRecord {
    /// Octets of its key and value on disk, without what the database adds.
    pub fn octets_on_disk(&self) -> usize {
        KEY + encode(self).len()
    }
}

/// The value of a record; its key is the SPI.
pub(crate) fn encode(record: &JournalRecord) -> Vec<u8> {
    let mut out = Vec::with_capacity(96 + record.connection.len() + record.child.len());
    let flag = |set: bool, bit: u8| if set { bit } else { 0 };
    out.push(VERSION);
    out.push(
        flag(record.initiator, INITIATOR)
            | flag(record.encapsulated, ENCAPSULATED)
            | flag(record.earlier_parent.is_some(), EARLIER_PARENT),
    );
    out.extend(record.incarnation.to_be_bytes());
    out.extend(record.hard_expiry.to_be_bytes());
    for spis in [Some(record.parent), record.earlier_parent] {
        let spis = spis.unwrap_or(IkeSpis { initiator: [0; 8], responder: [0; 8] });
        out.extend(spis.initiator);
        out.extend(spis.responder);
    }
    for address in [record.local, record.remote] {
        match address.ip() {
            IpAddr::V4(a) => {
                out.push(4);
                out.extend(a.octets());
                out.extend([0; 12]);
            }
            IpAddr::V6(a) => {
                out.push(6);
                out.extend(a.octets());
            }
        }
        out.extend(address.port().to_be_bytes());
    }
    for name in [&record.connection, &record.child] {
        let name = &name.as_bytes()[..name.len().min(MAX_NAME)];
        out.push(name.len() as u8);
        out.extend(name);
    }
    out
}

/// The record of an SPI, or `None` if these octets are not one.
pub(crate) fn decode(spi: Spi, octets: &[u8]) -> Option<JournalRecord> {
    let mut rest = octets;
    let [version, flags] = take::<2>(&mut rest)?;
    if version != VERSION || flags & !(INITIATOR | ENCAPSULATED | EARLIER_PARENT) != 0 {
        return None;
    }
    let incarnation = u64::from_be_bytes(take(&mut rest)?);
    let hard_expiry = u64::from_be_bytes(take(&mut rest)?);
    let parent = IkeSpis { initiator: take(&mut rest)?, responder: take(&mut rest)? };
    let earlier = IkeSpis { initiator: take(&mut rest)?, responder: take(&mut rest)? };
    let local = address(&mut rest)?;
    let remote = address(&mut rest)?;
    let connection = name(&mut rest)?;
    let child = name(&mut rest)?;
    if !rest.is_empty() {
        return None;
    }
    Some(JournalRecord {
        spi,
        parent,
        earlier_parent: (flags & EARLIER_PARENT != 0).then_some(earlier),
        initiator: flags & INITIATOR != 0,
        connection,
        child,
        local,
        remote,
        encapsulated: flags & ENCAPSULATED != 0,
        incarnation,
        hard_expiry,
    })
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

fn name(rest: &mut &[u8]) -> Option<String> {
    let [length] = take::<1>(rest)?;
    let (name, tail) = rest.split_at_checked(length.into())?;
    *rest = tail;
    Some(std::str::from_utf8(name).ok()?.to_owned())
}

fn address(rest: &mut &[u8]) -> Option<SocketAddr> {
    let [family] = take::<1>(rest)?;
    let octets: [u8; 16] = take(rest)?;
    let ip = match family {
        4 => IpAddr::from([octets[0], octets[1], octets[2], octets[3]]),
        6 => IpAddr::from(octets),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes(take(rest)?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spis() -> impl Strategy<Value = IkeSpis> {
        any::<([u8; 8], [u8; 8])>().prop_map(|(initiator, responder)| IkeSpis { initiator, responder })
    }

    fn socket() -> impl Strategy<Value = SocketAddr> {
        let ip =
            prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)];
        (ip, any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port))
    }

    fn record() -> impl Strategy<Value = JournalRecord> {
        (
            (any::<u32>(), spis(), proptest::option::of(spis()), any::<bool>(), "[a-z-]{0,40}"),
            ("[a-z-]{0,40}", socket(), socket(), any::<bool>(), any::<u64>(), any::<u64>()),
        )
            .prop_map(|(a, b)| JournalRecord {
                spi: Spi(a.0),
                parent: a.1,
                earlier_parent: a.2,
                initiator: a.3,
                connection: a.4,
                child: b.0,
                local: b.1,
                remote: b.2,
                encapsulated: b.3,
                incarnation: b.4,
                hard_expiry: b.5,
            })
    }

    proptest! {
        #[test]
        fn a_record_comes_back_as_it_was(record in record()) {
            prop_assert_eq!(decode(record.spi, &encode(&record)), Some(record));
        }

        #[test]
        fn a_cut_record_is_none(record in record(), cut in 1usize..200) {
            let octets = encode(&record);
            let end = octets.len().saturating_sub(cut);
            prop_assert_eq!(decode(record.spi, &octets[..end]), None);
        }

        #[test]
        fn any_octets_decode_to_what_encodes_or_to_none(octets in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(record) = decode(Spi(1), &octets) {
                prop_assert_eq!(decode(Spi(1), &encode(&record)), Some(record));
            }
        }
    }
}
