//! Proposals in strongSwan's notation, as transforms, and the responder's choice among them.
//!
//! `aes128gcm16-aes256gcm16-prfsha256-x25519-ecp256` is one proposal; names of one type are alternatives, best first.

use super::{Group, Prf};
use crate::kept::field::{Field, Reader, Writer};
use crate::wire::{Proposal, Transform, protocol, transform};
use spindle_abi::Suite;
use std::fmt;

/// What we accept for an IKE SA; each list best first, none empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IkeProposal {
    /// ENCR.
    pub encryption: Vec<Suite>,
    /// PRF.
    pub prf: Vec<Prf>,
    /// Key exchange.
    pub groups: Vec<Group>,
}

/// What we accept for a Child SA.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EspProposal {
    /// ENCR, best first, not empty.
    pub encryption: Vec<Suite>,
    /// Key exchange in CREATE_CHILD_SA, best first; empty: none.
    pub groups: Vec<Group>,
    /// Extended Sequence Numbers (RFC 4303 section 2.2.1), or none, best first, not empty.
    pub esn: Vec<bool>,
}

/// The transforms of an IKE SA.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct IkeSuite {
    /// ENCR.
    pub encryption: Suite,
    /// PRF.
    pub prf: Prf,
    /// Key exchange.
    pub group: Group,
}

/// By its notation.
impl Field for IkeSuite {
    fn put(&self, out: &mut Writer) {
        self.to_string().put(out);
    }
    fn take(from: &mut Reader<'_>) -> Option<IkeSuite> {
        IkeSuite::parse(&String::take(from)?)
    }
}

impl IkeSuite {
    /// From its notation, with one name of each type.
    pub fn parse(text: &str) -> Option<IkeSuite> {
        let IkeProposal { encryption, prf, groups } = parse_ike(text).ok()?;
        match (&encryption[..], &prf[..], &groups[..]) {
            ([encryption], [prf], [group]) => {
                Some(IkeSuite { encryption: *encryption, prf: *prf, group: *group })
            }
            _ => None,
        }
    }
}

/// The transforms of a Child SA.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct EspSuite {
    /// ENCR.
    pub encryption: Suite,
    /// Key exchange in CREATE_CHILD_SA.
    pub group: Option<Group>,
    /// Extended Sequence Numbers?
    pub esn: bool,
}

/// The operator's mistake in a proposal.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotationError {
    /// A name that is not known.
    #[error("proposal {proposal:?}: {name:?} is not known; known are {known}")]
    Unknown {
        /// The whole proposal.
        proposal: String,
        /// The bad name.
        name: String,
        /// The names that would do.
        known: String,
    },
    /// A type that must be there is not.
    #[error("proposal {proposal:?} names no {missing}; known are {known}")]
    Missing {
        /// The whole proposal.
        proposal: String,
        /// The type.
        missing: &'static str,
        /// The names that would do.
        known: String,
    },
}

/// None of the peer's proposals is one that we accept: NO_PROPOSAL_CHOSEN, nobody's fault but the configurations'.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no proposal in common")]
pub struct SelectionError;

const SUITES: [(&str, Suite); 4] = [
    ("aes128gcm16", Suite::Aes128Gcm),
    ("aes192gcm16", Suite::Aes192Gcm),
    ("aes256gcm16", Suite::Aes256Gcm),
    ("chacha20poly1305", Suite::ChaCha20Poly1305),
];
const PRFS: [(&str, Prf); 3] =
    [("prfsha256", Prf::HmacSha256), ("prfsha384", Prf::HmacSha384), ("prfsha512", Prf::HmacSha512)];
const GROUPS: [(&str, Group); 2] = [("x25519", Group::X25519), ("ecp256", Group::P256)];
const SEQUENCE_NUMBERS: [(&str, bool); 2] = [("esn", true), ("noesn", false)];
/// Other names of the same, understood but not printed.
const ALIASES: [(&str, &str); 7] = [
    ("aes128gcm128", "aes128gcm16"),
    ("aes128gcm", "aes128gcm16"),
    ("aes192gcm128", "aes192gcm16"),
    ("aes192gcm", "aes192gcm16"),
    ("aes256gcm128", "aes256gcm16"),
    ("aes256gcm", "aes256gcm16"),
    ("curve25519", "x25519"),
];

/// Parses an IKE proposal.
pub fn parse_ike(text: &str) -> Result<IkeProposal, NotationError> {
    let lists = Lists::parse(text, true)?;
    let missing = |missing, known| Err(NotationError::Missing { proposal: text.to_owned(), missing, known });
    if lists.encryption.is_empty() {
        missing("encryption", names(&SUITES))
    } else if lists.prf.is_empty() {
        missing("pseudorandom function", names(&PRFS))
    } else if lists.groups.is_empty() {
        missing("key exchange", names(&GROUPS))
    } else {
        Ok(IkeProposal { encryption: lists.encryption, prf: lists.prf, groups: lists.groups })
    }
}

/// Parses an ESP proposal. Without `esn` and `noesn` it is one for sequence numbers of 32 bits.
pub fn parse_esp(text: &str) -> Result<EspProposal, NotationError> {
    let lists = Lists::parse(text, false)?;
    if lists.encryption.is_empty() {
        let known = names(&SUITES);
        return Err(NotationError::Missing { proposal: text.to_owned(), missing: "encryption", known });
    }
    let esn = if lists.esn.is_empty() { vec![false] } else { lists.esn };
    Ok(EspProposal { encryption: lists.encryption, groups: lists.groups, esn })
}

#[derive(Default)]
struct Lists {
    encryption: Vec<Suite>,
    prf: Vec<Prf>,
    groups: Vec<Group>,
    esn: Vec<bool>,
}

impl Lists {
    fn parse(text: &str, ike: bool) -> Result<Lists, NotationError> {
        let mut lists = Lists::default();
        for name in text.trim().split('-') {
            let name = name.to_ascii_lowercase();
            let name = ALIASES.iter().find(|(alias, _)| *alias == name).map_or(&*name, |(_, name)| name);
            if let Some(suite) = find(&SUITES, name) {
                add(&mut lists.encryption, suite);
            } else if let Some(group) = find(&GROUPS, name) {
                add(&mut lists.groups, group);
            } else if let Some(prf) = find(&PRFS, name).filter(|_| ike) {
                add(&mut lists.prf, prf);
            } else if let Some(esn) = find(&SEQUENCE_NUMBERS, name).filter(|_| !ike) {
                add(&mut lists.esn, esn);
            } else {
                let others = if ike { names(&PRFS) } else { names(&SEQUENCE_NUMBERS) };
                return Err(NotationError::Unknown {
                    proposal: text.to_owned(),
                    name: name.to_owned(),
                    known: format!("{}, {others}, {}", names(&SUITES), names(&GROUPS)),
                });
            }
        }
        Ok(lists)
    }
}

fn add<T: PartialEq>(list: &mut Vec<T>, value: T) {
    if !list.contains(&value) {
        list.push(value);
    }
}

fn find<T: Copy>(table: &[(&str, T)], name: &str) -> Option<T> {
    table.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
}

fn name<T: PartialEq>(table: &[(&'static str, T)], value: T) -> &'static str {
    table.iter().find(|(_, known)| *known == value).expect("every value has a name").0
}

fn names<T>(table: &[(&str, T)]) -> String {
    table.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

fn join(lists: &[Vec<&'static str>]) -> String {
    lists.concat().join("-")
}

fn all<T: PartialEq + Copy>(table: &[(&'static str, T)], values: &[T]) -> Vec<&'static str> {
    values.iter().map(|value| name(table, *value)).collect()
}

impl fmt::Display for IkeProposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&join(&[
            all(&SUITES, &self.encryption),
            all(&PRFS, &self.prf),
            all(&GROUPS, &self.groups),
        ]))
    }
}

impl fmt::Display for EspProposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let esn = if self.esn == [false] { Vec::new() } else { all(&SEQUENCE_NUMBERS, &self.esn) };
        f.write_str(&join(&[all(&SUITES, &self.encryption), all(&GROUPS, &self.groups), esn]))
    }
}

impl fmt::Display for IkeSuite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let IkeSuite { encryption, prf, group } = *self;
        write!(f, "{}-{}-{}", name(&SUITES, encryption), name(&PRFS, prf), name(&GROUPS, group))
    }
}

impl fmt::Display for EspSuite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(name(&SUITES, self.encryption))?;
        self.group.map_or(Ok(()), |group| write!(f, "-{}", name(&GROUPS, group)))?;
        f.write_str(if self.esn { "-esn" } else { "" })
    }
}

fn plain(kind: u8, id: u16) -> Transform {
    Transform { kind, id, key_length: None, unknown: Vec::new() }
}

fn sequence_numbers(esn: bool) -> Transform {
    plain(transform::SEQUENCE_NUMBERS, if esn { transform::ESN } else { transform::NO_ESN })
}

fn encryption(suite: Suite) -> Transform {
    let (id, key_length) = match suite {
        Suite::Aes128Gcm => (transform::AES_GCM_16, Some(128)),
        Suite::Aes192Gcm => (transform::AES_GCM_16, Some(192)),
        Suite::Aes256Gcm => (transform::AES_GCM_16, Some(256)),
        // RFC 7634 section 4: no Key Length attribute.
        Suite::ChaCha20Poly1305 => (transform::CHACHA20_POLY1305, None),
    };
    Transform { kind: transform::ENCRYPTION, id, key_length, unknown: Vec::new() }
}

impl IkeProposal {
    /// As a proposal on the wire. `spi` is empty in IKE_SA_INIT and the new SPI in a rekey (RFC 7296 section 3.3.1).
    pub fn to_wire(&self, number: u8, spi: &[u8]) -> Proposal {
        let mut transforms: Vec<Transform> = self.encryption.iter().map(|s| encryption(*s)).collect();
        transforms.extend(self.prf.iter().map(|prf| plain(transform::PRF, prf.id())));
        transforms.extend(self.groups.iter().map(|group| plain(transform::KEY_EXCHANGE, group.id())));
        Proposal { number, protocol: protocol::IKE, spi: spi.to_vec(), transforms }
    }
}

impl EspProposal {
    /// As a proposal on the wire. Pass `key_exchange: false` in IKE_AUTH, where
    /// there is no KE payload (RFC 7296 section 1.2).
    pub fn to_wire(&self, number: u8, spi: [u8; 4], key_exchange: bool) -> Proposal {
        let mut transforms: Vec<Transform> = self.encryption.iter().map(|s| encryption(*s)).collect();
        let groups = if key_exchange { self.groups.as_slice() } else { &[] };
        transforms.extend(groups.iter().map(|group| plain(transform::KEY_EXCHANGE, group.id())));
        transforms.extend(self.esn.iter().map(|esn| sequence_numbers(*esn)));
        Proposal { number, protocol: protocol::ESP, spi: spi.to_vec(), transforms }
    }
}

impl From<IkeSuite> for IkeProposal {
    fn from(suite: IkeSuite) -> IkeProposal {
        IkeProposal { encryption: vec![suite.encryption], prf: vec![suite.prf], groups: vec![suite.group] }
    }
}

impl From<EspSuite> for EspProposal {
    fn from(suite: EspSuite) -> EspProposal {
        EspProposal {
            encryption: vec![suite.encryption],
            groups: suite.group.into_iter().collect(),
            esn: vec![suite.esn],
        }
    }
}

/// The transforms of a type are alternatives; the first of ours that the peer offers too.
fn choose<T: Copy>(offered: &Proposal, ours: &[T], as_transform: impl Fn(T) -> Transform) -> Option<T> {
    ours.iter().copied().find(|t| offered.transforms.contains(&as_transform(*t)))
}

fn has(offered: &Proposal, kind: u8) -> bool {
    offered.transforms.iter().any(|t| t.kind == kind)
}

/// RFC 7296 section 3.3.3: AEADs go without INTEG, or with NONE. A type that is not known must not be there, since
/// one of its transforms would have to be chosen (section 3.3.6).
fn types_fit(offered: &Proposal, known: &[u8]) -> bool {
    let integrity = |t: &Transform| t.kind == transform::INTEGRITY && t.id == transform::INTEGRITY_NONE;
    let integrity = !has(offered, transform::INTEGRITY) || offered.transforms.iter().any(integrity);
    let fits = |t: &Transform| t.kind == transform::INTEGRITY || known.contains(&t.kind);
    integrity && offered.transforms.iter().all(fits)
}

/// The responder's choice for an IKE SA (RFC 7296 section 2.7, 3.3): the first of `ours` that one of the offered
/// proposals meets, with our order within it. The proposal's number and the peer's SPI come with it; what goes back
/// is `IkeProposal::from(suite).to_wire(number, spi)`.
///
/// `preferred` is the KE payload's group: of several alternatives it is taken, which saves a round trip.
pub fn select_ike<'a>(
    ours: &[IkeProposal],
    offered: &'a [Proposal],
    preferred: Option<Group>,
) -> Result<(IkeSuite, &'a Proposal), SelectionError> {
    let known = [transform::ENCRYPTION, transform::PRF, transform::KEY_EXCHANGE];
    for ours in ours {
        for offer in offered.iter().filter(|p| p.protocol == protocol::IKE && types_fit(p, &known)) {
            let suite = choose(offer, &ours.encryption, encryption)
                .zip(choose(offer, &ours.prf, |prf| plain(transform::PRF, prf.id())))
                .zip(choose_group(offer, &ours.groups, preferred));
            if let Some(((encryption, prf), group)) = suite {
                return Ok((IkeSuite { encryption, prf, group }, offer));
            }
        }
    }
    Err(SelectionError)
}

/// The responder's choice for a Child SA. `key_exchange` is false in IKE_AUTH, where groups are not looked at; in
/// CREATE_CHILD_SA a proposal of ours without groups meets offers without any, or with NONE, and one with groups
/// only those that offer one of them.
pub fn select_esp<'a>(
    ours: &[EspProposal],
    offered: &'a [Proposal],
    preferred: Option<Group>,
    key_exchange: bool,
) -> Result<(EspSuite, &'a Proposal), SelectionError> {
    let known = [transform::ENCRYPTION, transform::KEY_EXCHANGE, transform::SEQUENCE_NUMBERS];
    let none = plain(transform::KEY_EXCHANGE, transform::KEY_EXCHANGE_NONE);
    for ours in ours {
        for offer in offered.iter().filter(|p| p.protocol == protocol::ESP && types_fit(p, &known)) {
            let Some(suite) = choose(offer, &ours.encryption, encryption) else { continue };
            // RFC 7296 section 3.3.3: this type is mandatory in ESP proposals; where it lacks there is no ESN.
            let esn = match has(offer, transform::SEQUENCE_NUMBERS) {
                true => choose(offer, &ours.esn, sequence_numbers),
                false => ours.esn.contains(&false).then_some(false),
            };
            let Some(esn) = esn else { continue };
            if offer.spi.len() != 4 {
                continue;
            }
            let without = !has(offer, transform::KEY_EXCHANGE) || offer.transforms.contains(&none);
            let group = match choose_group(offer, &ours.groups, preferred) {
                _ if !key_exchange => None,
                None if ours.groups.is_empty() && without => None,
                None => continue,
                group => group,
            };
            return Ok((EspSuite { encryption: suite, group, esn }, offer));
        }
    }
    Err(SelectionError)
}

fn choose_group(offer: &Proposal, ours: &[Group], preferred: Option<Group>) -> Option<Group> {
    let as_transform = |group: Group| plain(transform::KEY_EXCHANGE, group.id());
    let preferred: Vec<Group> = ours.iter().copied().filter(|g| Some(*g) == preferred).collect();
    choose(offer, &preferred, as_transform).or_else(|| choose(offer, ours, as_transform))
}
