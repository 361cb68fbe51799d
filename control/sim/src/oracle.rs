//! What must hold after every step. The oracle knows the gateways' secrets and sees all that is sent.

use crate::attacker::ELSEWHERE;
use crate::machine::{Dataplane, MARKER, Machine, inside_number};
use crate::nat;
use crate::network::Packet;
use crate::scenario::OUTSIDE;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use spindle_abi::{Command, Spi, SpiState, Time};
use spindle_ike::api::{Datagram, Header, IkeSaId, IkeSaStatus, IkeSpis};
use spindle_ike::wire::Payload;
use spindle_ike::wire::{Message, View, notify};
use spindle_recovery::api::{Boot, Generation, JournalRecord, JournalWrite, TokenMethod, UsedTicket};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// IKE SAs that one gateway may hold here at most: one peer, rekeys, exchanges under way, COOKIE-less half-open ones.
const MAX_IKE_SAS: usize = 200;
/// Child SAs of one IKE SA at most.
const MAX_CHILDREN: usize = 16;

type Token = [u8; 32];

/// What the oracle knows of one gateway.
#[derive(Default)]
struct Known {
    /// Of all lives, dropped ones included, oldest first.
    secrets: Vec<([u8; 32], TokenMethod)>,
    /// Those on disk, newest first.
    on_disk: Vec<[u8; 32]>,
    /// Those that stay, if the write under way is done.
    keeping: Option<Vec<[u8; 32]>>,
    maker_id: Vec<u8>,
    incarnation: u64,
    /// Is the address of its side elsewhere, or has it not heard yet that it has come?
    absent: bool,
    /// IKE SPI pairs that it holds.
    held: BTreeSet<IkeSpis>,
    /// What must be in the journal, whatever happens.
    durable: BTreeMap<Spi, JournalRecord>,
    /// Handed to a commit that has not returned.
    uncertain: BTreeSet<Spi>,
    /// SPIs of earlier incarnations, in the journal at the start.
    former: BTreeSet<Spi>,
    /// Their IKE SAs, whose peers have not been told unasked in this life.
    lost: BTreeSet<IkeSpis>,
    /// Keys of tickets of all lives: each life seals with a new one.
    ticket_keys: BTreeSet<[u8; 32]>,
    /// Tickets by which its peer resumed, of all lives.
    used: BTreeSet<UsedTicket>,
    /// Where the peers of its IKE SAs are.
    peers: BTreeMap<IkeSaId, SocketAddr>,
    /// The same before the packet that it handles.
    peers_before: BTreeMap<IkeSaId, SocketAddr>,
    /// And where they may be instead, after control died at handling one.
    perhaps_peers: BTreeMap<IkeSaId, SocketAddr>,
    /// Protected messages that it has sent.
    sent: BTreeSet<Vec<u8>>,
    /// The one that it handles, if that is its peer's, and none by which it has followed its peer before.
    authentic: Option<Vec<u8>>,
    /// Those by which it has.
    followed: BTreeSet<(Vec<u8>, IkeSaId)>,
    /// ESP packets that left: the key, and the sequence number, which is the nonce.
    esp: HashSet<(Vec<u8>, u32)>,
    /// Protected IKE messages that left, as hashes: by Message ID, and by IV.
    messages: HashMap<(Key, bool, u32), u64>,
    ivs: HashMap<(Key, [u8; 8]), u64>,
    /// IKE SAs whose loss at the peer was confirmed in this step, which no more than begins another one.
    confirmed: Vec<IkeSpis>,
}

impl Known {
    /// These are on disk.
    fn learn(&mut self, generations: &[Generation]) {
        self.on_disk = of(generations);
        for generation in generations {
            let secret = (*generation.secret.0, generation.method);
            if !self.secrets.contains(&secret) {
                self.secrets.push(secret);
            }
        }
    }
}

impl Known {
    /// RFC 7296 section 2.1, 2.2: a Message ID is of one request and one response; RFC 5282 section 3.1: an IV is of one
    /// message.
    fn sent_sealed(&mut self, header: &Header, octets: &[u8]) -> Result<(), String> {
        let mut hasher = DefaultHasher::new();
        octets.hash(&mut hasher);
        let (hash, key) = (hasher.finish(), (header.spis, header.initiator));
        let id = (key, header.response, header.message_id);
        if *self.messages.entry(id).or_insert(hash) != hash {
            return Err(format!("sends another message with the Message ID of an earlier one: {id:?}"));
        }
        let iv = octets.get(32..40).and_then(|iv| iv.try_into().ok()).ok_or("sends a message without IV")?;
        match *self.ivs.entry((key, iv)).or_insert(hash) == hash {
            true => Ok(()),
            false => Err(format!("uses an IV of {key:?} twice")),
        }
    }
}

/// IKE keys: whose, and in which role. Who is made to talk to itself has both.
type Key = (IkeSpis, bool);

/// The judge.
pub(crate) struct Oracle {
    /// Of the first gateway, and of the second one or of both members in its place.
    known: [Known; 3],
    /// Whose tokens each side has shown in clear.
    shown: [BTreeMap<IkeSpis, Time>; 2],
    /// Tokens of every pair that was ever seen.
    tokens: BTreeMap<Token, (usize, IkeSpis)>,
    pairs: BTreeSet<IkeSpis>,
    /// Inside packets: who sent it, and did it arrive?
    packets: BTreeMap<u64, (usize, bool)>,
    /// A gateway's address, if it is behind a NAT.
    behind_nat: Option<IpAddr>,
    pub(crate) tokens_shown: u64,
    pub(crate) followed: u64,
}

/// The side that a machine is of.
pub(crate) fn side_of(machine: usize) -> usize {
    machine.min(1)
}

/// The machines of a side, where there are as many.
pub(crate) fn of_side(side: usize) -> impl Iterator<Item = usize> {
    (0..3).filter(move |machine| side_of(*machine) == side)
}

/// Where a taker may seem to be.
const TAKERS: [Ipv4Addr; 6] =
    [OUTSIDE[0], OUTSIDE[1], ELSEWHERE, nat::OUTER[0], nat::OUTER[1], nat::OUTER[2]];

fn of(generations: &[Generation]) -> Vec<[u8; 32]> {
    generations.iter().map(|generation| *generation.secret.0).collect()
}

/// A pair's token, or by the method with addresses that of each address.
fn tokens((secret, method): &([u8; 32], TokenMethod), maker_id: &[u8], spis: IkeSpis) -> Vec<Token> {
    match method {
        TokenMethod::Spis => vec![token(secret, maker_id, spis, &[])],
        TokenMethod::SpisAndAddress => TAKERS
            .iter()
            .map(|taker| token(secret, maker_id, spis, &[&[4], &taker.octets()[..]].concat()))
            .collect(),
    }
}

fn token(secret: &[u8; 32], maker_id: &[u8], spis: IkeSpis, taker: &[u8]) -> Token {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
    mac.update(b"qcd1");
    mac.update(&(maker_id.len() as u64).to_be_bytes());
    mac.update(maker_id);
    mac.update(&spis.initiator);
    mac.update(&spis.responder);
    mac.update(taker);
    mac.finalize().into_bytes().into()
}

impl Oracle {
    pub(crate) fn new(behind_nat: Option<IpAddr>) -> Oracle {
        Oracle {
            known: Default::default(),
            shown: Default::default(),
            tokens: BTreeMap::new(),
            pairs: BTreeSet::new(),
            packets: BTreeMap::new(),
            behind_nat,
            tokens_shown: 0,
            followed: 0,
        }
    }

    /// The address of its side has left a machine, or has come to it and the gateway knows.
    pub(crate) fn has_address(&mut self, machine: usize, here: bool) {
        self.known[machine].absent = !here;
    }

    /// A gateway died: it holds nothing.
    pub(crate) fn died(&mut self, side: usize) {
        self.known[side].held.clear();
        self.known[side].confirmed.clear();
        self.known[side].peers.clear();
        self.known[side].authentic = None;
    }

    /// A machine lost its secret, or all that was on its disk: nobody makes those tokens any more.
    pub(crate) fn secret_lost(&mut self, side: usize, state: bool) {
        let known = &mut self.known[side];
        (known.secrets, known.on_disk) = Default::default();
        if state {
            (known.maker_id, known.incarnation) = Default::default();
            (known.durable, known.uncertain, known.used) = Default::default();
        }
    }

    /// Control died alone. What it was at was not kept, or was: its peers are where they were before the packet that it
    /// handled, or after.
    pub(crate) fn control_died(&mut self, side: usize) {
        let known = &mut self.known[side];
        if let Some(message) = known.authentic.take() {
            known.followed.retain(|(by, _)| *by != message);
            known.perhaps_peers = std::mem::take(&mut known.peers_before);
        }
    }

    /// A packet comes to a gateway.
    pub(crate) fn arrives(&mut self, side: usize, packet: &Packet) {
        let sent =
            |message: &&[u8]| of_side(1 - side_of(side)).any(|peer| self.known[peer].sent.contains(*message));
        let message = packet.ike_message().filter(sent);
        self.known[side].authentic = message.map(<[u8]>::to_vec);
        self.known[side].peers_before = self.known[side].peers.clone();
    }

    /// All that follows from it is done.
    pub(crate) fn arrived_whole(&mut self, side: usize) {
        self.known[side].authentic = None;
    }

    /// RFC 7296 section 2.23: a peer is followed by a new authenticated message alone.
    fn follows(&mut self, side: usize, sas: &[IkeSaStatus]) -> Result<(), String> {
        let known = &mut self.known[side];
        let mut peers = BTreeMap::new();
        let perhaps = std::mem::take(&mut known.perhaps_peers);
        for sa in sas.iter().filter(|sa| sa.state != "connecting") {
            peers.insert(sa.id, sa.remote);
            if perhaps.get(&sa.id) == Some(&sa.remote) {
                continue;
            }
            let Some(before) = known.peers.get(&sa.id).filter(|before| **before != sa.remote) else {
                continue;
            };
            let spis = sa.spis;
            match &known.authentic {
                // It may move an IKE SA and the one that replaces it.
                Some(message) if known.followed.insert((message.clone(), sa.id)) => self.followed += 1,
                Some(_) => {
                    return Err(format!("follows {spis:?} from {before} to {} by an old message", sa.remote));
                }
                None => {
                    return Err(format!(
                        "follows {spis:?} from {before} to {} by no message of its peer",
                        sa.remote
                    ));
                }
            }
        }
        known.peers = peers;
        Ok(())
    }

    /// Is this an SPI of an earlier incarnation?
    pub(crate) fn is_former(&self, side: usize, spi: Spi) -> bool {
        self.known[side].former.contains(&spi)
    }

    /// A gateway took a token as proof that its peer lost this IKE SA.
    pub(crate) fn proved(&self, side: usize, spis: Option<IkeSpis>) -> Result<(), String> {
        match spis {
            Some(spis) if self.holds(1 - side_of(side), spis) => {
                Err(format!("takes for proven the loss of {spis:?}, which its peer holds"))
            }
            _ => Ok(()),
        }
    }

    /// Does a gateway that has the address of this side hold it?
    fn holds(&self, side: usize, spis: IkeSpis) -> bool {
        of_side(side).any(|machine| !self.known[machine].absent && self.known[machine].held.contains(&spis))
    }

    /// A gateway has its peer's NACK (SIR), which anybody who reads and injects packets could have made.
    pub(crate) fn confirmed(&mut self, side: usize, spis: Option<IkeSpis>) {
        self.known[side].confirmed.extend(spis);
    }

    /// RFC 7296 section 2.4, 2.21.4: by a message in clear, but for a token, no IKE SA ends. Which there were before it?
    pub(crate) fn nothing_ended(&self, before: Vec<IkeSaStatus>, machine: &Machine) -> Result<(), String> {
        let Some(running) = &machine.running else { return Ok(()) };
        let after: BTreeSet<IkeSaId> = running.gateway.sas().iter().map(|sa| sa.id).collect();
        match before.iter().find(|sa| !after.contains(&sa.id)) {
            Some(ended) => Err(format!("ends {:?} ({}) by a message in clear", ended.spis, ended.state)),
            None => Ok(()),
        }
    }

    /// A gateway started. RFC 6290 section 5.1: a token once made can be made again.
    pub(crate) fn booted(
        &mut self,
        side: usize,
        boot: &Boot,
        journal: bool,
        wall_clock: u64,
    ) -> Result<(), String> {
        let known = &mut self.known[side];
        let secrets = of(&boot.secrets);
        let keeping = known.keeping.take();
        let rewritten =
            keeping.is_some_and(|keep| secrets.ends_with(&keep) && secrets.len() <= keep.len() + 1);
        if !known.on_disk.is_empty() && known.on_disk != secrets && !rewritten {
            return Err(format!(
                "of {} generations of the secret {} are there at the start: tokens cannot be made again",
                known.on_disk.len(),
                secrets.len()
            ));
        }
        if secrets.is_empty() || !boot.anchor_matches {
            return Err("a power cut or a kill left a state that makes no tokens".into());
        }
        if !known.maker_id.is_empty() && known.maker_id != boot.maker_id {
            return Err("the maker id changed: earlier tokens cannot be made again".into());
        }
        if boot.incarnation <= known.incarnation {
            return Err(format!("incarnation {} after {}", boot.incarnation, known.incarnation));
        }
        if journal {
            for (spi, record) in known.durable.iter().filter(|(spi, _)| !known.uncertain.contains(spi)) {
                if record.hard_expiry > wall_clock && !boot.former.contains(record) {
                    return Err(format!("the journal lost {spi}, which was committed"));
                }
            }
        }
        let newest = boot.tickets.keys.first().ok_or("no key for tickets")?;
        if !known.ticket_keys.insert(*newest.key.0) {
            return Err("seals tickets with a key of an earlier life".into());
        }
        if let Some(lost) =
            known.used.iter().find(|u| u.expiry > wall_clock && !boot.tickets.used.contains(u))
        {
            return Err(format!("forgot the use of a ticket that is good until {}", lost.expiry));
        }
        // What stands there now is what counts from here on.
        known.durable = boot.former.iter().map(|r| (r.spi, r.clone())).collect();
        known.uncertain.clear();
        known.former = boot.former.iter().map(|r| r.spi).collect();
        known.lost = boot.former.iter().flat_map(|r| [Some(r.parent), r.earlier_parent]).flatten().collect();
        known.learn(&boot.secrets);
        known.maker_id = boot.maker_id.clone();
        known.incarnation = boot.incarnation;
        known.held.clear();
        for spis in self.pairs.clone() {
            self.learn(side, spis);
        }
        for record in &boot.former {
            self.saw(record.parent);
            record.earlier_parent.into_iter().for_each(|spis| self.saw(spis));
        }
        Ok(())
    }

    /// A peer resumed by these tickets (RFC 5723 section 4.3.1: each once, whatever crashed in between).
    pub(crate) fn remembered(&mut self, side: usize, used: &[UsedTicket]) -> Result<(), String> {
        match used.iter().find(|ticket| !self.known[side].used.insert(**ticket)) {
            Some(twice) => Err(format!("takes the ticket that is good until {} twice", twice.expiry)),
            None => Ok(()),
        }
    }

    /// A group commit began.
    pub(crate) fn committing(&mut self, side: usize, writes: &[JournalWrite]) {
        for write in writes {
            self.known[side].uncertain.insert(match write {
                JournalWrite::Put(record) => record.spi,
                JournalWrite::Remove(spi) => *spi,
            });
        }
    }

    /// It returned: it must survive everything.
    pub(crate) fn committed(&mut self, side: usize, writes: Vec<JournalWrite>) {
        let known = &mut self.known[side];
        known.uncertain.clear();
        for write in writes {
            match write {
                JournalWrite::Put(record) => {
                    known.durable.insert(record.spi, record);
                }
                JournalWrite::Remove(spi) => {
                    known.durable.remove(&spi);
                    known.former.remove(&spi);
                }
            }
        }
    }

    /// A write of the secret's file begins.
    pub(crate) fn writing_secrets(&mut self, side: usize, keep: &[Generation]) {
        self.known[side].keeping = Some(of(keep));
    }

    /// It returned: these must survive everything. How many were dropped?
    pub(crate) fn wrote_secrets(
        &mut self,
        side: usize,
        generations: &[Generation],
        machines: &[Machine],
    ) -> Result<u64, String> {
        let known = &mut self.known[side];
        known.keeping = None;
        let before = std::mem::take(&mut known.on_disk);
        known.learn(generations);
        if known.on_disk.len() > 4 {
            return Err(format!("keeps {} generations of the secret", known.on_disk.len()));
        }
        let dropped = before.iter().filter(|secret| !known.on_disk.contains(secret)).count();
        for spis in self.pairs.clone() {
            self.learn(side, spis);
        }
        self.nobody_is_forsaken(side, machines)?;
        Ok(dropped as u64)
    }

    /// RFC 6290 section 4.4: whoever holds a token of this gateway for a living IKE SA holds one that can be made from
    /// what is on its disk.
    pub(crate) fn nobody_is_forsaken(&self, side: usize, machines: &[Machine]) -> Result<(), String> {
        let known = &self.known[side];
        let others = of_side(1 - side_of(side)).filter(|peer| !self.known[*peer].absent);
        let peers = others.filter_map(|peer| machines.get(peer)?.running.as_ref());
        for (peer, sa) in peers.flat_map(|peer| peer.gateway.sas().into_iter().map(move |sa| (peer, sa))) {
            if !matches!(sa.state, "established" | "rekeying") {
                continue;
            }
            let holds = |secret| {
                tokens(secret, &known.maker_id, sa.spis).iter().any(|t| peer.gateway.holds_token(sa.spis, t))
            };
            let mut held = known.secrets.iter().filter(|secret| holds(secret)).peekable();
            if held.peek().is_some() && !held.any(|(secret, _)| known.on_disk.contains(secret)) {
                return Err(format!(
                    "dropped the only generation whose token its peer holds for {:?}",
                    sa.spis
                ));
            }
        }
        Ok(())
    }

    fn learn(&mut self, side: usize, spis: IkeSpis) {
        for secret in &self.known[side].secrets {
            for token in tokens(secret, &self.known[side].maker_id, spis) {
                self.tokens.insert(token, (side_of(side), spis));
            }
        }
    }

    /// A pair stood in a header, or in a gateway's memory.
    pub(crate) fn saw(&mut self, spis: IkeSpis) {
        if self.pairs.insert(spis) {
            (0..self.known.len()).for_each(|machine| self.learn(machine, spis));
        }
    }

    /// Nothing asked for the tokens of these pairs: they are of the journal's IKE SAs, each once in a life.
    pub(crate) fn unasked(&mut self, side: usize, shown: &BTreeSet<IkeSpis>) -> Result<(), String> {
        let known = &mut self.known[side];
        for spis in shown {
            if !known.lost.remove(spis) {
                return Err(format!(
                    "shows unasked the token of {spis:?}, once more or of no journal record"
                ));
            }
        }
        Ok(())
    }

    /// A gateway sends: no token in clear belongs to an IKE SA that it holds. Returns whose tokens were shown.
    pub(crate) fn transmitted(
        &mut self,
        now: Time,
        side: usize,
        datagram: &Datagram,
    ) -> Result<BTreeSet<IkeSpis>, String> {
        // RFC 3948 section 2.3: only who is behind a NAT keeps its mapping alive.
        if datagram.local.port() == 4500 && datagram.data == [0xff] {
            return match self.behind_nat == Some(datagram.local.ip()) {
                true => Ok(BTreeSet::new()),
                false => Err("keeps alive a mapping of no NAT".into()),
            };
        }
        let octets = if datagram.local.port() == 4500 {
            spindle_ike::wire::strip_non_esp_marker(&datagram.data)
                .ok_or("IKE on port 4500 without its marker")?
        } else {
            &datagram.data
        };
        let view = View::parse(octets).map_err(|e| format!("sends a message that does not parse: {e}"))?;
        let spis = view.header().spis;
        if spis.initiator != [0; 8] && spis.responder != [0; 8] {
            self.saw(spis);
        }
        if view.protection().is_some() {
            self.known[side].sent.insert(octets.to_vec());
            self.known[side].sent_sealed(&view.header(), octets)?;
            return Ok(BTreeSet::new());
        }
        let message: Message =
            view.message().map_err(|e| format!("sends a message that does not parse: {e}"))?;
        let mut shown = BTreeSet::new();
        for payload in message.payloads {
            let Payload::Notify(notify) = payload else { continue };
            if notify.kind != notify::QUICK_CRASH_DETECTION {
                continue;
            }
            let maker = Token::try_from(notify.data.as_slice()).ok().and_then(|t| self.tokens.get(&t));
            let Some((maker, spis)) = maker.copied() else {
                return Err(format!(
                    "shows a token of a pair that nobody ever saw, in a message for {spis:?}"
                ));
            };
            if maker != side_of(side) {
                return Err(format!("shows another gateway's token, of {spis:?}"));
            }
            if self.holds(maker, spis) {
                return Err(format!(
                    "shows in clear the token of {spis:?}, which it holds, or who has the address"
                ));
            }
            self.shown[maker].insert(spis, now);
            self.tokens_shown += 1;
            shown.insert(spis);
        }
        Ok(shown)
    }

    /// A gateway commands its dataplane: no SPI of an earlier incarnation is given out while the journal holds it.
    pub(crate) fn commanded(&mut self, side: usize, command: &Command) -> Result<(), String> {
        let former = &self.known[side].former;
        match command {
            Command::InstallInbound { sa, .. } if former.contains(&sa.spi) => {
                Err(format!("installs {}, an SPI of an earlier incarnation", sa.spi))
            }
            Command::SetSpiState { spi, state: SpiState::Larval } if former.contains(spi) => {
                Err(format!("allocates {spi}, an SPI of an earlier incarnation"))
            }
            _ => Ok(()),
        }
    }

    /// After every step of a gateway: what it holds, no token of which has ever been shown, and how much that is.
    pub(crate) fn stepped(&mut self, side: usize, machine: &Machine) -> Result<(), String> {
        let Some(running) = &machine.running else {
            self.known[side].confirmed.clear();
            // What control held the dataplane still holds, and another control will.
            if machine.dataplane.is_none() {
                self.known[side].held.clear();
            }
            return Ok(());
        };
        let sas = running.gateway.sas();
        if sas.len() > MAX_IKE_SAS {
            return Err(format!("holds {} IKE SAs", sas.len()));
        }
        self.follows(side, &sas)?;
        let mut held = BTreeSet::new();
        for sa in sas {
            if sa.children.len() > MAX_CHILDREN {
                return Err(format!("holds {} Child SAs of {:?}", sa.children.len(), sa.spis));
            }
            if sa.spis.responder == [0; 8] {
                continue;
            }
            if let Some(at) = self.shown[side_of(side)].get(&sa.spis).filter(|_| !self.known[side].absent) {
                return Err(format!(
                    "holds {:?} ({}), whose token it showed at {} ns",
                    sa.spis, sa.state, at.0
                ));
            }
            self.saw(sa.spis);
            held.insert(sa.spis);
        }
        if let Some(ended) = self.known[side].confirmed.drain(..).find(|spis| !held.contains(spis)) {
            return Err(format!("ends {ended:?} by a confirmation, before another IKE SA is authenticated"));
        }
        self.known[side].held = held;
        Ok(())
    }

    /// A host sent this packet.
    pub(crate) fn host_sent(&mut self, side: usize, number: u64) {
        self.packets.insert(number, (side, false));
    }

    /// Did it arrive?
    pub(crate) fn arrived(&self, number: u64) -> bool {
        self.packets.get(&number).is_some_and(|(_, arrived)| *arrived)
    }

    /// A gateway delivers a packet inside: one that the other side's host sent, and only once.
    pub(crate) fn delivered(&mut self, side: usize, packet: &[u8]) -> Result<u64, String> {
        let number = inside_number(packet).ok_or("delivers inside what no host sent")?;
        match self.packets.get_mut(&number) {
            Some((sender, arrived)) if *sender != side_of(side) && !*arrived => {
                *arrived = true;
                Ok(number)
            }
            Some((sender, _)) if *sender == side_of(side) => {
                Err(format!("gives packet {number} back to its sender"))
            }
            Some(_) => Err(format!("delivers packet {number} twice")),
            None => Err(format!("delivers packet {number}, which no host sent")),
        }
    }

    /// A dataplane sends outside: ESP, and nothing of the inside in clear.
    pub(crate) fn sent_outside(
        &mut self,
        side: usize,
        packet: &[u8],
        dataplane: &Dataplane,
    ) -> Result<(), String> {
        if packet.windows(MARKER.len()).any(|window| window == MARKER) {
            return Err("sends an inside packet in clear".into());
        }
        if packet[12] == 10 || packet[16] == 10 {
            return Err("shows an inside address outside".into());
        }
        let esp = match packet[9] {
            50 => &packet[20..],
            17 if packet[20..22] == 4500u16.to_be_bytes() => &packet[28..],
            protocol => return Err(format!("sends IP protocol {protocol} outside")),
        };
        let number = |at: usize| u32::from_be_bytes([esp[at], esp[at + 1], esp[at + 2], esp[at + 3]]);
        let key = dataplane.key(Spi(number(0))).ok_or("sends on an SPI that it was not told")?;
        match self.known[side].esp.insert((key.as_bytes().to_vec(), number(4))) {
            true => Ok(()),
            false => Err(format!("sends sequence number {} on {:08x} twice", number(4), number(0))),
        }
    }
}
