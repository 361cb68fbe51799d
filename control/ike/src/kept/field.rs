//! How a kept value becomes octets and is read back, all integers big-endian. Reading checks every field: whatever the
//! octets are, it ends with a value that this gateway could have written, or with `None`.
//!
//! A struct lists its fields once, by [`fields!`] beside its definition; one that is added and not listed does not
//! compile.

use crate::api::{Authority, ChildSaId, Evidence, IkeSaId, IkeSpis};
use crate::connect::{ChildProfile, Profile};
use crate::crypto::Secret;
use spindle_abi::{
    AddressRange, Command, CommandRecord, Mode, SaParameters, Selector, SelectorSet, Spi, Time,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;
use zeroize::Zeroizing;

/// What is being written. Secrets pass through it, so it has room for all from the start, as a rule.
pub(crate) struct Writer(Secret);

/// What is being read, and what a name in it means.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    find: &'a dyn Fn(&str) -> Option<Rc<Profile>>,
    /// Of the IKE SA at hand, once that is read.
    connection: Option<Rc<Profile>>,
}

/// Room for an IKE SA with a few Child SAs.
const ROOM: usize = 8192;

impl Writer {
    pub(crate) fn new() -> Writer {
        Writer(Zeroizing::new(Vec::with_capacity(ROOM)))
    }

    pub(crate) fn finish(self) -> Secret {
        // The capacity is not worth keeping.
        Zeroizing::new(self.0.to_vec())
    }

    fn extend(&mut self, octets: &[u8]) {
        if self.0.len() + octets.len() > self.0.capacity() {
            // By hand, so that no copy is left behind.
            let mut larger = Zeroizing::new(Vec::with_capacity(2 * (self.0.len() + octets.len())));
            larger.extend_from_slice(&self.0);
            self.0 = larger;
        }
        self.0.extend_from_slice(octets);
    }
}

impl<'a> Reader<'a> {
    pub(crate) fn new(octets: &'a [u8], find: &'a dyn Fn(&str) -> Option<Rc<Profile>>) -> Reader<'a> {
        Reader { rest: octets, find, connection: None }
    }

    /// Was that all?
    pub(crate) fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(head)
    }
}

/// One value.
pub(crate) trait Field: Sized {
    fn put(&self, out: &mut Writer);
    fn take(from: &mut Reader<'_>) -> Option<Self>;
}

/// [`Field`] for a struct, field by field in this order. What stands after the semicolon is not written, and is so
/// after reading. Its `FIELDS` stands for the layout.
macro_rules! fields {
    ($type:ident { $($field:ident),* $(,)? $(; $($lost:ident: $value:expr),* $(,)?)? }) => {
        impl $crate::kept::field::Field for $type {
            fn put(&self, out: &mut $crate::kept::field::Writer) {
                let $type { $($field,)* $($($lost: _,)*)? } = self;
                $($crate::kept::field::Field::put($field, out);)*
            }
            fn take(from: &mut $crate::kept::field::Reader<'_>) -> Option<$type> {
                $(let $field = $crate::kept::field::Field::take(from)?;)*
                Some($type { $($field,)* $($($lost: $value,)*)? })
            }
        }
        impl $type {
            pub(crate) const FIELDS: u64 = $crate::kept::field::hash(stringify!($($field)*));
        }
    };
}

/// [`Field`] for an enum, each variant by its number.
macro_rules! variants {
    ($type:ident { $($number:literal = $variant:ident $(($inner:ident))?),* $(,)? } $(else $lost:pat)?) => {
        impl $crate::kept::field::Field for $type {
            fn put(&self, out: &mut $crate::kept::field::Writer) {
                match self {
                    $($type::$variant $(($inner))? => {
                        $crate::kept::field::Field::put(&($number as u8), out);
                        $($crate::kept::field::Field::put($inner, out);)?
                    })*
                    $($lost => $crate::kept::field::Field::put(&u8::MAX, out),)?
                }
            }
            fn take(from: &mut $crate::kept::field::Reader<'_>) -> Option<$type> {
                match <u8 as $crate::kept::field::Field>::take(from)? {
                    $($number => Some($type::$variant $(({
                        let $inner = $crate::kept::field::Field::take(from)?;
                        $inner
                    }))?),)*
                    _ => None,
                }
            }
        }
    };
}

pub(crate) use {fields, variants};

variants!(Mode { 0 = Tunnel, 1 = Transport });

/// FNV-1a.
pub(crate) const fn hash(text: &str) -> u64 {
    let (octets, mut hash, mut i) = (text.as_bytes(), 0xcbf2_9ce4_8422_2325_u64, 0);
    while i < octets.len() {
        hash = (hash ^ octets[i] as u64).wrapping_mul(0x0000_0100_0000_01b3);
        i += 1;
    }
    hash
}

macro_rules! integers {
    ($($type:ident),*) => { $(
        impl Field for $type {
            fn put(&self, out: &mut Writer) {
                out.extend(&self.to_be_bytes());
            }
            fn take(from: &mut Reader<'_>) -> Option<$type> {
                Some($type::from_be_bytes(from.take(size_of::<$type>())?.try_into().ok()?))
            }
        }
    )* };
}

integers!(u8, u16, u32, u64);

macro_rules! numbers {
    ($($type:ident),*) => { $(
        impl Field for $type {
            fn put(&self, out: &mut Writer) {
                self.0.put(out);
            }
            fn take(from: &mut Reader<'_>) -> Option<$type> {
                Some($type(Field::take(from)?))
            }
        }
    )* };
}

numbers!(Time, Spi, IkeSaId, ChildSaId);

impl Field for bool {
    fn put(&self, out: &mut Writer) {
        u8::from(*self).put(out);
    }
    fn take(from: &mut Reader<'_>) -> Option<bool> {
        match u8::take(from)? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

impl<const N: usize> Field for [u8; N] {
    fn put(&self, out: &mut Writer) {
        out.extend(self);
    }
    fn take(from: &mut Reader<'_>) -> Option<[u8; N]> {
        from.take(N)?.try_into().ok()
    }
}

impl<T: Field> Field for Option<T> {
    fn put(&self, out: &mut Writer) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }
    fn take(from: &mut Reader<'_>) -> Option<Option<T>> {
        if bool::take(from)? { T::take(from).map(Some) } else { Some(None) }
    }
}

impl<T: Field> Field for Box<T> {
    fn put(&self, out: &mut Writer) {
        (**self).put(out);
    }
    fn take(from: &mut Reader<'_>) -> Option<Box<T>> {
        T::take(from).map(Box::new)
    }
}

impl<A: Field, B: Field> Field for (A, B) {
    fn put(&self, out: &mut Writer) {
        self.0.put(out);
        self.1.put(out);
    }
    fn take(from: &mut Reader<'_>) -> Option<(A, B)> {
        Some((A::take(from)?, B::take(from)?))
    }
}

fn put_all<'a, T: Field + 'a>(count: usize, all: impl Iterator<Item = &'a T>, out: &mut Writer) {
    (count as u32).put(out);
    all.for_each(|one| one.put(out));
}

/// Every value has an octet at least, so a false count ends with the octets.
fn take_all<T: Field, C: FromIterator<T>>(from: &mut Reader<'_>) -> Option<C> {
    let count = u32::take(from)?;
    (0..count).map(|_| T::take(from)).collect()
}

impl<T: Field> Field for Vec<T> {
    fn put(&self, out: &mut Writer) {
        put_all(self.len(), self.iter(), out);
    }
    fn take(from: &mut Reader<'_>) -> Option<Vec<T>> {
        take_all(from)
    }
}

impl<T: Field + Ord> Field for BTreeSet<T> {
    fn put(&self, out: &mut Writer) {
        put_all(self.len(), self.iter(), out);
    }
    fn take(from: &mut Reader<'_>) -> Option<BTreeSet<T>> {
        take_all(from)
    }
}

impl<K: Field + Ord, V: Field> Field for BTreeMap<K, V> {
    fn put(&self, out: &mut Writer) {
        (self.len() as u32).put(out);
        for (key, value) in self {
            key.put(out);
            value.put(out);
        }
    }
    fn take(from: &mut Reader<'_>) -> Option<BTreeMap<K, V>> {
        take_all::<(K, V), _>(from)
    }
}

impl Field for Secret {
    fn put(&self, out: &mut Writer) {
        (self.len() as u32).put(out);
        out.extend(self);
    }
    fn take(from: &mut Reader<'_>) -> Option<Secret> {
        let length = u32::take(from)?;
        Some(Zeroizing::new(from.take(length as usize)?.to_vec()))
    }
}

impl Field for String {
    fn put(&self, out: &mut Writer) {
        (self.len() as u32).put(out);
        out.extend(self.as_bytes());
    }
    fn take(from: &mut Reader<'_>) -> Option<String> {
        let length = u32::take(from)?;
        Some(std::str::from_utf8(from.take(length as usize)?).ok()?.to_owned())
    }
}

impl Field for Duration {
    fn put(&self, out: &mut Writer) {
        u64::try_from(self.as_nanos()).unwrap_or(u64::MAX).put(out);
    }
    fn take(from: &mut Reader<'_>) -> Option<Duration> {
        Some(Duration::from_nanos(u64::take(from)?))
    }
}

impl Field for IkeSpis {
    fn put(&self, out: &mut Writer) {
        self.initiator.put(out);
        self.responder.put(out);
    }
    fn take(from: &mut Reader<'_>) -> Option<IkeSpis> {
        Some(IkeSpis { initiator: Field::take(from)?, responder: Field::take(from)? })
    }
}

impl Field for IpAddr {
    fn put(&self, out: &mut Writer) {
        match self {
            IpAddr::V4(address) => {
                4u8.put(out);
                address.octets().put(out);
            }
            IpAddr::V6(address) => {
                6u8.put(out);
                address.octets().put(out);
            }
        }
    }
    fn take(from: &mut Reader<'_>) -> Option<IpAddr> {
        match u8::take(from)? {
            4 => <[u8; 4]>::take(from).map(IpAddr::from),
            6 => <[u8; 16]>::take(from).map(IpAddr::from),
            _ => None,
        }
    }
}

impl Field for SocketAddr {
    fn put(&self, out: &mut Writer) {
        self.ip().put(out);
        self.port().put(out);
    }
    fn take(from: &mut Reader<'_>) -> Option<SocketAddr> {
        Some(SocketAddr::new(Field::take(from)?, Field::take(from)?))
    }
}

/// As it goes to the dataplane, without the record's zeros at the end.
impl Field for Command {
    fn put(&self, out: &mut Writer) {
        let record = CommandRecord::encode(0, self);
        let octets = record.as_ref().map_or(&[][..], CommandRecord::octets);
        let length = octets.iter().rposition(|octet| *octet != 0).map_or(0, |last| last + 1);
        (length as u16).put(out);
        out.extend(&octets[..length]);
    }
    fn take(from: &mut Reader<'_>) -> Option<Command> {
        let length = u16::take(from)?;
        CommandRecord::from_octets(from.take(length.into())?)?.decode().1.ok()
    }
}

impl Field for SaParameters {
    fn put(&self, out: &mut Writer) {
        Command::InstallOutbound { sa: self.clone() }.put(out);
    }
    fn take(from: &mut Reader<'_>) -> Option<SaParameters> {
        match Command::take(from)? {
            Command::InstallOutbound { sa } => Some(sa),
            _ => None,
        }
    }
}

impl Field for Selector {
    fn put(&self, out: &mut Writer) {
        let Selector { addresses, protocol, start_port, end_port } = self;
        (addresses.start, addresses.end).put(out);
        protocol.put(out);
        (*start_port, *end_port).put(out);
    }
    fn take(from: &mut Reader<'_>) -> Option<Selector> {
        let (start, end) = <(IpAddr, IpAddr)>::take(from)?;
        let protocol = Field::take(from)?;
        let (start_port, end_port) = Field::take(from)?;
        let addresses = AddressRange { start, end };
        (start.is_ipv4() == end.is_ipv4()).then_some(Selector { addresses, protocol, start_port, end_port })
    }
}

impl Field for SelectorSet {
    fn put(&self, out: &mut Writer) {
        let action = spindle_abi::PolicyAction::Protect;
        Command::SetPolicy { id: 0, priority: 0, action, selectors: self.clone(), hold: 0 }.put(out);
    }
    fn take(from: &mut Reader<'_>) -> Option<SelectorSet> {
        match Command::take(from)? {
            Command::SetPolicy { selectors, .. } => Some(selectors),
            _ => None,
        }
    }
}

/// By name; what follows of the IKE SA is read in its light.
impl Field for Rc<Profile> {
    fn put(&self, out: &mut Writer) {
        self.name.put(out);
    }
    fn take(from: &mut Reader<'_>) -> Option<Rc<Profile>> {
        let name = String::take(from)?;
        from.connection = (from.find)(&name);
        from.connection.clone()
    }
}

impl Field for Rc<ChildProfile> {
    fn put(&self, out: &mut Writer) {
        self.name.put(out);
    }
    fn take(from: &mut Reader<'_>) -> Option<Rc<ChildProfile>> {
        let name = String::take(from)?;
        from.connection.as_ref()?.child(&name)
    }
}

/// Of a reason of our own only that it was one is kept: it is for people.
impl Field for Authority {
    fn put(&self, out: &mut Writer) {
        let number: u8 = match self {
            Authority::Timeout(_) => 0,
            Authority::Token(_) => 1,
            Authority::InitialContact(_) => 2,
            Authority::Delete(_) => 3,
            Authority::Superseded(_) => 4,
            Authority::ProtocolError(_) => 5,
            Authority::Local(_) => 6,
        };
        number.put(out);
    }
    fn take(from: &mut Reader<'_>) -> Option<Authority> {
        let evidence = Evidence(());
        Some(match u8::take(from)? {
            0 => Authority::Timeout(evidence),
            1 => Authority::Token(evidence),
            2 => Authority::InitialContact(evidence),
            3 => Authority::Delete(evidence),
            4 => Authority::Superseded(evidence),
            5 => Authority::ProtocolError(evidence),
            6 => Authority::Local("by this gateway"),
            _ => return None,
        })
    }
}

/// The connection's settings, as they are now.
impl Reader<'_> {
    pub(crate) fn retransmission(&self) -> Option<crate::api::Retransmission> {
        Some(self.connection.as_ref()?.retransmission)
    }
}
