//! The fixed-size records in which commands and events travel on the rings, little-endian.
//!
//! Encoding cannot fail but for selector sets that are too large; decoding checks every field.

use crate::{
    AddressRange, Command, Event, KeyMaterial, Limits, MAX_FORMER_AT_ONCE, MAX_INTERFACES, MAX_SAS, Mode,
    PolicyAction, Resource, SaParameters, Selector, SelectorSet, Spi, SpiReport, SpiState, Suite, Time,
    Trigger,
};
use std::net::{IpAddr, SocketAddr};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};
use zeroize::Zeroize;

/// Octets of a command on the ring.
pub const COMMAND_SIZE: usize = 512;
/// Octets of an event on the rings: one cache line.
pub const EVENT_SIZE: usize = 64;

/// Version of everything in this file; change it with any layout.
const LAYOUT_VERSION: u64 = 8;

/// Both sides of an attachment must have the same.
pub const LAYOUT_HASH: u64 = {
    let parts = [
        LAYOUT_VERSION,
        COMMAND_SIZE as u64,
        EVENT_SIZE as u64,
        MAX_SAS as u64,
        SelectorSet::MAX as u64,
        crate::sa_slot::WORDS as u64,
    ];
    let mut hash = 0xcbf2_9ce4_8422_2325_u64; // FNV-1a
    let mut i = 0;
    while i < parts.len() {
        hash = (hash ^ parts[i]).wrapping_mul(0x0000_0100_0000_01b3);
        i += 1;
    }
    hash
};

/// Why a record is not a message: the other process is at fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DecodeError {
    /// No such kind.
    Kind(u8),
    /// A field has an impossible value.
    Field(&'static str),
}

impl std::fmt::Display for DecodeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DecodeError::Kind(kind) => write!(f, "the other process sent a record of unknown kind {kind}"),
            DecodeError::Field(name) => {
                write!(f, "the other process sent a record with an impossible {name}")
            }
        }
    }
}

impl std::error::Error for DecodeError {}

/// A command and its number, as on the ring. Zeroised on drop, for it may hold keys.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone)]
#[repr(C, align(64))]
pub struct CommandRecord([u8; COMMAND_SIZE]);

impl Drop for CommandRecord {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// An event as on the rings.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy)]
#[repr(C, align(64))]
pub struct EventRecord([u8; EVENT_SIZE]);

impl Default for CommandRecord {
    fn default() -> Self {
        CommandRecord([0; COMMAND_SIZE])
    }
}

impl Default for EventRecord {
    fn default() -> Self {
        EventRecord([0; EVENT_SIZE])
    }
}

struct Writer<'a> {
    rest: &'a mut [u8],
}

impl Writer<'_> {
    /// The records have room for the largest message; `sizes_suffice` below holds that.
    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        let (head, tail) = std::mem::take(&mut self.rest).split_at_mut(bytes.len());
        head.copy_from_slice(bytes);
        self.rest = tail;
        self
    }
    fn u8(&mut self, v: u8) -> &mut Self {
        self.bytes(&[v])
    }
    fn u16(&mut self, v: u16) -> &mut Self {
        self.bytes(&v.to_le_bytes())
    }
    fn u32(&mut self, v: u32) -> &mut Self {
        self.bytes(&v.to_le_bytes())
    }
    fn u64(&mut self, v: u64) -> &mut Self {
        self.bytes(&v.to_le_bytes())
    }
    fn address(&mut self, address: IpAddr) -> &mut Self {
        match address {
            IpAddr::V4(a) => self.u8(4).bytes(&a.octets()).bytes(&[0; 12]),
            IpAddr::V6(a) => self.u8(6).bytes(&a.octets()),
        }
    }
    fn socket(&mut self, socket: SocketAddr) -> &mut Self {
        self.address(socket.ip()).u16(socket.port())
    }
    fn selectors(&mut self, set: &SelectorSet) -> &mut Self {
        for side in [&set.local, &set.remote] {
            self.u8(side.len() as u8);
            for s in side {
                self.address(s.addresses.start).address(s.addresses.end);
                self.u8(s.protocol).u16(s.start_port).u16(s.end_port);
            }
        }
        self
    }
    fn sa(&mut self, sa: &SaParameters) -> &mut Self {
        self.u32(sa.spi.0).u32(sa.index).u32(sa.policy);
        self.u16(sa.resource.worker).u8(u8::from(sa.resource.dedicated)).u8(sa.mode as u8).u8(sa.suite as u8);
        self.bytes(sa.keymat.as_bytes());
        self.socket(sa.local).socket(sa.remote).u8(u8::from(sa.encapsulated));
        self.u8(u8::from(sa.esn)).limits(sa.soft).limits(sa.hard).selectors(&sa.selectors)
    }
    fn limits(&mut self, limits: Limits) -> &mut Self {
        self.u64(limits.packets).u64(limits.bytes)
    }
    fn report(&mut self, r: &SpiReport) -> &mut Self {
        self.u32(r.spi.0).u32(r.sequence).u64(r.at.0).socket(r.source).socket(r.destination)
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn bytes(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let (head, tail) = self.rest.split_at_checked(length).ok_or(DecodeError::Field("length"))?;
        self.rest = tail;
        Ok(head)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        self.bytes(N)?.try_into().map_err(|_| DecodeError::Field("length"))
    }
    fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }
    fn bool(&mut self) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::Field("flag")),
        }
    }
    fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_le_bytes(self.array()?))
    }
    fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    fn address(&mut self) -> Result<IpAddr, DecodeError> {
        let version = self.u8()?;
        let octets: [u8; 16] = self.array()?;
        match version {
            4 => Ok(IpAddr::from([octets[0], octets[1], octets[2], octets[3]])),
            6 => Ok(IpAddr::from(octets)),
            _ => Err(DecodeError::Field("IP version")),
        }
    }
    fn socket(&mut self) -> Result<SocketAddr, DecodeError> {
        Ok(SocketAddr::new(self.address()?, self.u16()?))
    }
    fn selectors(&mut self) -> Result<SelectorSet, DecodeError> {
        let mut set = SelectorSet::default();
        for side in [&mut set.local, &mut set.remote] {
            let count = usize::from(self.u8()?);
            if count > SelectorSet::MAX {
                return Err(DecodeError::Field("selector count"));
            }
            for _ in 0..count {
                let addresses = AddressRange { start: self.address()?, end: self.address()? };
                if addresses.start.is_ipv4() != addresses.end.is_ipv4() || addresses.start > addresses.end {
                    return Err(DecodeError::Field("address range"));
                }
                let (protocol, start_port, end_port) = (self.u8()?, self.u16()?, self.u16()?);
                side.push(Selector { addresses, protocol, start_port, end_port });
            }
        }
        Ok(set)
    }
    fn sa(&mut self) -> Result<SaParameters, DecodeError> {
        let spi = Spi(self.u32()?);
        if spi.0 < 256 {
            return Err(DecodeError::Field("SPI"));
        }
        let index = self.u32()?;
        if index >= MAX_SAS {
            return Err(DecodeError::Field("SA index"));
        }
        let policy = self.u32()?;
        let resource = Resource { worker: self.u16()?, dedicated: self.bool()? };
        let mode = Mode::from_u8(self.u8()?).ok_or(DecodeError::Field("mode"))?;
        let suite = Suite::from_u8(self.u8()?).ok_or(DecodeError::Field("suite"))?;
        let keymat =
            KeyMaterial::new(self.bytes(suite.keymat_length())?).ok_or(DecodeError::Field("key material"))?;
        let (local, remote) = (self.socket()?, self.socket()?);
        if local.is_ipv4() != remote.is_ipv4() {
            return Err(DecodeError::Field("IP version"));
        }
        let (encapsulated, esn) = (self.bool()?, self.bool()?);
        let (soft, hard) = (self.limits()?, self.limits()?);
        let selectors = self.selectors()?;
        Ok(SaParameters {
            spi,
            index,
            policy,
            resource,
            mode,
            suite,
            keymat,
            local,
            remote,
            encapsulated,
            selectors,
            esn,
            soft,
            hard,
        })
    }
    fn limits(&mut self) -> Result<Limits, DecodeError> {
        Ok(Limits { packets: self.u64()?, bytes: self.u64()? })
    }
    fn trigger(&mut self) -> Result<Trigger, DecodeError> {
        let (source, destination, protocol) = (self.address()?, self.address()?, self.u8()?);
        let (shown, ports) = (self.bool()?, (self.u16()?, self.u16()?));
        Ok(Trigger { source, destination, protocol, ports: shown.then_some(ports) })
    }
    fn report(&mut self) -> Result<SpiReport, DecodeError> {
        Ok(SpiReport {
            spi: Spi(self.u32()?),
            sequence: self.u32()?,
            at: Time(self.u64()?),
            source: self.socket()?,
            destination: self.socket()?,
        })
    }
}

impl CommandRecord {
    /// All octets, for who keeps a command elsewhere than on a ring.
    pub fn octets(&self) -> &[u8] {
        &self.0
    }

    /// From the first octets of a record, the others being zero; `None` if there are too many.
    pub fn from_octets(octets: &[u8]) -> Option<CommandRecord> {
        let mut record = CommandRecord([0; COMMAND_SIZE]);
        record.0.get_mut(..octets.len())?.copy_from_slice(octets);
        Some(record)
    }

    /// Encodes a command. `sequence` comes back in its acknowledgement. `None` if a selector set is larger than
    /// [`SelectorSet::MAX`], there are too many SPIs, or the key material does not fit the suite.
    pub fn encode(sequence: u64, command: &Command) -> Option<CommandRecord> {
        let small = |set: &SelectorSet| set.local.len().max(set.remote.len()) <= SelectorSet::MAX;
        let fits = match command {
            Command::SetPolicy { selectors, .. } => small(selectors),
            Command::InstallInbound { sa, .. } | Command::InstallOutbound { sa } => {
                small(&sa.selectors) && sa.keymat.as_bytes().len() == sa.suite.keymat_length()
            }
            Command::SetFormer { spis } => spis.len() <= MAX_FORMER_AT_ONCE,
            _ => true,
        };
        if !fits {
            return None;
        }
        let mut record = CommandRecord::default();
        let mut w = Writer { rest: &mut record.0 };
        w.u64(sequence);
        match command {
            Command::SetPolicy { id, priority, action, selectors, hold } => {
                w.u8(1).u32(*id).u32(*priority).u8(*action as u8).u16(*hold).selectors(selectors)
            }
            Command::RemovePolicy { id } => w.u8(2).u32(*id),
            Command::SetSpiState { spi, state } => w.u8(3).u32(spi.0).u8(*state as u8),
            Command::InstallInbound { sa, replay_window, report_first } => {
                w.u8(4).u32(*replay_window).u8(u8::from(*report_first)).sa(sa)
            }
            Command::InstallOutbound { sa } => w.u8(5).sa(sa),
            Command::RemoveOutbound { index } => w.u8(6).u32(*index),
            Command::Readdress { index, local, remote } => w.u8(7).u32(*index).socket(*local).socket(*remote),
            Command::BindPolicy { id, interface } => w.u8(9).u32(*id).u16(*interface),
            Command::SetFormer { spis } => {
                w.u8(8).u8(spis.len() as u8);
                spis.iter().fold(&mut w, |w, spi| w.u32(spi.0))
            }
            Command::Doubt => w.u8(10),
            Command::ConfirmInbound { spi, index } => w.u8(11).u32(spi.0).u32(*index),
            Command::Sweep => w.u8(12),
        };
        Some(record)
    }

    /// The number.
    pub fn sequence(&self) -> u64 {
        let (number, _) = self.0.split_at(8);
        u64::from_le_bytes(number.try_into().expect("8 octets"))
    }

    /// The number and the command. The number is valid even where the command is not.
    pub fn decode(&self) -> (u64, Result<Command, DecodeError>) {
        (self.sequence(), Self::decode_body(&mut Reader { rest: &self.0[8..] }))
    }

    fn decode_body(r: &mut Reader<'_>) -> Result<Command, DecodeError> {
        Ok(match r.u8()? {
            1 => Command::SetPolicy {
                id: r.u32()?,
                priority: r.u32()?,
                action: match r.u8()? {
                    1 => PolicyAction::Protect,
                    2 => PolicyAction::Bypass,
                    3 => PolicyAction::Discard,
                    _ => return Err(DecodeError::Field("policy action")),
                },
                hold: r.u16()?,
                selectors: r.selectors()?,
            },
            2 => Command::RemovePolicy { id: r.u32()? },
            3 => Command::SetSpiState {
                spi: Spi(r.u32()?),
                state: SpiState::from_u8(r.u8()?)
                    .filter(|state| *state != SpiState::Current)
                    .ok_or(DecodeError::Field("SPI state"))?,
            },
            4 => {
                let replay_window = r.u32()?;
                let valid = replay_window == 0
                    || (replay_window.is_power_of_two() && (32..=65536).contains(&replay_window));
                if !valid {
                    return Err(DecodeError::Field("replay window"));
                }
                Command::InstallInbound { replay_window, report_first: r.bool()?, sa: r.sa()? }
            }
            5 => Command::InstallOutbound { sa: r.sa()? },
            6 => Command::RemoveOutbound { index: r.u32()? },
            7 => Command::Readdress { index: r.u32()?, local: r.socket()?, remote: r.socket()? },
            8 => {
                let count = usize::from(r.u8()?);
                if count > MAX_FORMER_AT_ONCE {
                    return Err(DecodeError::Field("SPI count"));
                }
                Command::SetFormer { spis: (0..count).map(|_| r.u32().map(Spi)).collect::<Result<_, _>>()? }
            }
            9 => {
                let (id, interface) = (r.u32()?, r.u16()?);
                if !(1..=MAX_INTERFACES).contains(&interface) {
                    return Err(DecodeError::Field("interface"));
                }
                Command::BindPolicy { id, interface }
            }
            10 => Command::Doubt,
            11 => Command::ConfirmInbound { spi: Spi(r.u32()?), index: r.u32()? },
            12 => Command::Sweep,
            kind => return Err(DecodeError::Kind(kind)),
        })
    }
}

impl EventRecord {
    /// Encodes an event.
    pub fn encode(event: &Event) -> EventRecord {
        let mut record = EventRecord::default();
        let mut w = Writer { rest: &mut record.0 };
        match event {
            Event::Ready => w.u8(1),
            Event::Acknowledged { sequence, done } => w.u8(2).u64(*sequence).u8(u8::from(*done)),
            Event::FormerSpi(report) => w.u8(3).report(report),
            Event::UnknownSpi(report) => w.u8(4).report(report),
            Event::Acquire { policy, packet } => {
                let w = w.u8(5).u32(*policy).address(packet.source).address(packet.destination);
                let (source, destination) = packet.ports.unwrap_or_default();
                w.u8(packet.protocol).u8(u8::from(packet.ports.is_some())).u16(source).u16(destination)
            }
            Event::FirstInbound { spi } => w.u8(6).u32(spi.0),
            Event::Lifetime { index, hard } => w.u8(7).u32(*index).u8(u8::from(*hard)),
        };
        record
    }

    /// The event, or what is wrong with the record.
    pub fn decode(&self) -> Result<Event, DecodeError> {
        let mut r = Reader { rest: &self.0 };
        Ok(match r.u8()? {
            1 => Event::Ready,
            2 => Event::Acknowledged { sequence: r.u64()?, done: r.bool()? },
            3 => Event::FormerSpi(r.report()?),
            4 => Event::UnknownSpi(r.report()?),
            5 => Event::Acquire { policy: r.u32()?, packet: r.trigger()? },
            6 => Event::FirstInbound { spi: Spi(r.u32()?) },
            7 => Event::Lifetime { index: r.u32()?, hard: r.bool()? },
            kind => return Err(DecodeError::Kind(kind)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)]
    }

    fn socket() -> impl Strategy<Value = SocketAddr> {
        (address(), any::<u16>()).prop_map(|(a, p)| SocketAddr::new(a, p))
    }

    fn selector() -> impl Strategy<Value = Selector> {
        let range = prop_oneof![
            any::<([u8; 4], [u8; 4])>().prop_map(|(a, b)| (IpAddr::from(a.min(b)), IpAddr::from(a.max(b)))),
            any::<([u8; 16], [u8; 16])>().prop_map(|(a, b)| (IpAddr::from(a.min(b)), IpAddr::from(a.max(b)))),
        ];
        (range, any::<u8>(), any::<u16>(), any::<u16>()).prop_map(
            |((start, end), protocol, start_port, end_port)| Selector {
                addresses: AddressRange { start, end },
                protocol,
                start_port,
                end_port,
            },
        )
    }

    fn selectors() -> impl Strategy<Value = SelectorSet> {
        let side = || proptest::collection::vec(selector(), 0..=SelectorSet::MAX);
        (side(), side()).prop_map(|(local, remote)| SelectorSet { local, remote })
    }

    fn sa() -> impl Strategy<Value = SaParameters> {
        let suite = proptest::sample::select(&Suite::ALL[..]);
        let ends = prop_oneof![
            any::<([u8; 4], u16, [u8; 4], u16)>()
                .prop_map(|(a, p, b, q)| (SocketAddr::from((a, p)), SocketAddr::from((b, q)))),
            any::<([u8; 16], u16, [u8; 16], u16)>()
                .prop_map(|(a, p, b, q)| (SocketAddr::from((a, p)), SocketAddr::from((b, q)))),
        ];
        let form = (prop_oneof![Just(Mode::Tunnel), Just(Mode::Transport)], any::<bool>(), any::<bool>());
        (256u32.., 0..MAX_SAS, any::<u32>(), suite, any::<[u8; 36]>(), ends, form, selectors()).prop_map(
            |(spi, index, policy, suite, key, (local, remote), (mode, encapsulated, esn), selectors)| {
                SaParameters {
                    spi: Spi(spi),
                    index,
                    policy,
                    resource: Resource { worker: policy as u16, dedicated: esn },
                    mode,
                    suite,
                    keymat: KeyMaterial::new(&key[..suite.keymat_length()]).unwrap(),
                    local,
                    remote,
                    encapsulated,
                    selectors,
                    esn,
                    soft: Limits { packets: policy.into(), bytes: spi.into() },
                    hard: Limits { packets: index.into(), bytes: policy.into() },
                }
            },
        )
    }

    fn command() -> impl Strategy<Value = Command> {
        let state = (0u8..5)
            .prop_map(|s| SpiState::from_u8(s).unwrap())
            .prop_filter("not current", |s| *s != SpiState::Current);
        let action =
            prop_oneof![Just(PolicyAction::Protect), Just(PolicyAction::Bypass), Just(PolicyAction::Discard)];
        prop_oneof![
            (any::<u32>(), any::<u32>(), action, selectors(), any::<u16>()).prop_map(
                |(id, priority, action, selectors, hold)| {
                    Command::SetPolicy { id, priority, action, selectors, hold }
                }
            ),
            any::<u32>().prop_map(|id| Command::RemovePolicy { id }),
            (any::<u32>(), 1..=MAX_INTERFACES)
                .prop_map(|(id, interface)| Command::BindPolicy { id, interface }),
            (any::<u32>(), state).prop_map(|(spi, state)| Command::SetSpiState { spi: Spi(spi), state }),
            (sa(), 5u32..=16, any::<bool>()).prop_map(|(sa, window, report_first)| {
                Command::InstallInbound { sa, replay_window: 1 << window, report_first }
            }),
            sa().prop_map(|sa| Command::InstallOutbound { sa }),
            any::<u32>().prop_map(|index| Command::RemoveOutbound { index }),
            proptest::collection::vec(any::<u32>().prop_map(Spi), 0..=MAX_FORMER_AT_ONCE)
                .prop_map(|spis| Command::SetFormer { spis }),
            Just(Command::Doubt),
            any::<(u32, u32)>().prop_map(|(spi, index)| Command::ConfirmInbound { spi: Spi(spi), index }),
            Just(Command::Sweep),
            (any::<u32>(), socket(), socket()).prop_map(|(index, local, remote)| Command::Readdress {
                index,
                local,
                remote
            }),
        ]
    }

    fn event() -> impl Strategy<Value = Event> {
        let report = || {
            (any::<u32>(), any::<u32>(), any::<u64>(), socket(), socket()).prop_map(
                |(spi, sequence, at, source, destination)| SpiReport {
                    spi: Spi(spi),
                    sequence,
                    at: Time(at),
                    source,
                    destination,
                },
            )
        };
        prop_oneof![
            Just(Event::Ready),
            (any::<u64>(), any::<bool>()).prop_map(|(sequence, done)| Event::Acknowledged { sequence, done }),
            report().prop_map(Event::FormerSpi),
            report().prop_map(Event::UnknownSpi),
            (any::<u32>(), address(), address(), any::<u8>(), any::<Option<(u16, u16)>>()).prop_map(
                |(policy, source, destination, protocol, ports)| Event::Acquire {
                    policy,
                    packet: Trigger { source, destination, protocol, ports },
                }
            ),
            any::<u32>().prop_map(|spi| Event::FirstInbound { spi: Spi(spi) }),
            (any::<u32>(), any::<bool>()).prop_map(|(index, hard)| Event::Lifetime { index, hard }),
        ]
    }

    proptest! {
        #[test]
        fn commands_come_back_as_they_were(sequence: u64, command in command()) {
            let (number, decoded) = CommandRecord::encode(sequence, &command).unwrap().decode();
            prop_assert_eq!(number, sequence);
            prop_assert_eq!(decoded.unwrap(), command);
        }

        #[test]
        fn events_come_back_as_they_were(event in event()) {
            prop_assert_eq!(EventRecord::encode(&event).decode().unwrap(), event);
        }

        #[test]
        fn any_octets_decode_or_are_refused(octets in proptest::collection::vec(any::<u8>(), COMMAND_SIZE)) {
            let record = CommandRecord::read_from_bytes(&octets).unwrap();
            if let (n, Ok(command)) = record.decode() {
                prop_assert_eq!(CommandRecord::encode(n, &command).unwrap().decode().1.unwrap(), command);
            }
            let _ = EventRecord::read_from_bytes(&octets[..EVENT_SIZE]).unwrap().decode();
        }

        #[test]
        fn a_mutated_command_never_panics(command in command(), at in 8..COMMAND_SIZE, to: u8) {
            let mut record = CommandRecord::encode(1, &command).unwrap();
            record.0[at] = to;
            let _ = record.decode();
        }
    }

    #[test]
    fn current_is_refused_as_a_state_to_set() {
        let mut record =
            CommandRecord::encode(0, &Command::SetSpiState { spi: Spi(7), state: SpiState::Former }).unwrap();
        record.0[13] = SpiState::Current as u8;
        assert_eq!(record.decode().1, Err(DecodeError::Field("SPI state")));
    }

    #[test]
    fn more_spis_than_a_record_holds_are_refused() {
        let command = |count| Command::SetFormer { spis: vec![Spi(256); count] };
        let mut record = CommandRecord::encode(1, &command(MAX_FORMER_AT_ONCE)).unwrap();
        assert!(CommandRecord::encode(1, &command(MAX_FORMER_AT_ONCE + 1)).is_none());
        record.0[9] = u8::MAX;
        assert_eq!(record.decode().1, Err(DecodeError::Field("SPI count")));
    }

    #[test]
    fn debug_shows_no_key() {
        let keymat = KeyMaterial::new(&[0x5a; 20]).unwrap();
        assert_eq!(format!("{keymat:?}"), "KeyMaterial(20 octets)");
    }
}
