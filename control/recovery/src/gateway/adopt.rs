//! A control process begins where an earlier one of the same incarnation died alone: the dataplane goes on with its SAs,
//! and what the earlier one kept ([`Output::Keep`](crate::api::Output)) says what they are.
//!
//! ```text
//! IKE SAs, Child SAs, removed SPIs are adopted; then the dataplane is told:
//! Doubt → SAs with traffic → policies → all other SAs → former SPIs → Sweep → ready
//! ```
//!
//! Commands are idempotent, so an SA that the dataplane has goes on with its sequence numbers, one whose command died
//! with the earlier process is installed now, and what no record names goes with the Sweep. Until all that is adopted
//! control is not authoritative: no token leaves, no INVALID_SPI. The incarnation stays as it was: nobody has lost
//! anything.
//!
//! What is lost with the process is what may be lost: budgets, hints and queries under way, initiations in their first
//! exchange, and which connections wait to be initiated again, which traffic or the start brings back.

use super::Gateway;
use crate::api::{Boot, JournalRecord};
use crate::given::Made;
use crate::qcd::Control;
use crate::spd::Spd;
use crate::stats::Counter;
use spindle_abi::Time;
use spindle_ike::api::{Change, IkeSaStatus, Key};
use zeroize::Zeroizing;

/// What an earlier process of this incarnation left.
#[derive(Clone, Debug, Default)]
pub struct Left {
    /// What it kept.
    pub records: Records,
    /// Its journal records that came to the disk.
    pub journal: Vec<JournalRecord>,
}

/// Kept records by their keys, with secrets. Redacted in Debug.
#[derive(Clone, Default)]
pub struct Records(pub Vec<(Key, Zeroizing<Vec<u8>>)>);

impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} records", self.0.len())
    }
}

/// What the records say of the incarnation that they are of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Life {
    incarnation: u64,
    /// Did the state directory match its anchor at the start?
    anchor_matches: bool,
    /// Was the maker's role given up, for a copy of this gateway was found?
    maker_off: bool,
}

impl Life {
    fn encode(self) -> Zeroizing<Vec<u8>> {
        let flags = [u8::from(self.anchor_matches), u8::from(self.maker_off)];
        Zeroizing::new([&self.incarnation.to_be_bytes()[..], &flags].concat())
    }

    fn decode(octets: &[u8]) -> Option<Life> {
        let (incarnation, [anchor_matches @ (0 | 1), maker_off @ (0 | 1)]) = octets.split_first_chunk()?
        else {
            return None;
        };
        Some(Life {
            incarnation: u64::from_be_bytes(*incarnation),
            anchor_matches: *anchor_matches == 1,
            maker_off: *maker_off == 1,
        })
    }
}

impl Records {
    fn life(&self) -> Option<Life> {
        let (_, record) = self.0.iter().find(|(key, _)| *key == Key::Incarnation)?;
        Life::decode(record)
    }

    /// The policies' numbers in the dataplane.
    pub(super) fn policies(&self) -> Option<Spd> {
        let (_, record) = self.0.iter().find(|(key, _)| *key == Key::Policies)?;
        Spd::decode(record)
    }

    /// The incarnation in which these were kept; `None`: they are nobody's, and nothing is to be adopted.
    pub fn incarnation(&self) -> Option<u64> {
        Some(self.life()?.incarnation)
    }
}

impl Gateway {
    /// Says from here on what is to be kept.
    pub(super) fn keep(&mut self) {
        self.endpoint.keep();
        self.note_life();
        self.keep_policies();
    }

    /// The maker's role was given up.
    pub(super) fn note_life_if_kept(&mut self) {
        if self.endpoint.keeps() {
            self.note_life();
        }
    }

    /// What stands for this life among the records.
    fn note_life(&mut self) {
        let life = Life {
            incarnation: self.incarnation,
            anchor_matches: self.answers.anchor_matches(),
            maker_off: self.tokens.is_switched_off() && self.config.token_maker,
        };
        self.life = Some(Change { key: Key::Incarnation, record: Some(life.encode()) });
    }

    /// Before anything that asks for an answer is looked at.
    pub(super) fn begin_adoption(&mut self) {
        self.answers.set_control(Control::Starting);
        self.has_adopted = true;
    }

    /// All at once; control is authoritative then.
    pub(super) fn adopt(&mut self, now: Time, left: Left) {
        if left.records.life().is_some_and(|life| life.maker_off) {
            self.tokens.switch_off();
            self.note_life();
        }
        let records = left.records.0.into_iter().filter(|(key, _)| *key != Key::Incarnation).collect();
        let adopted = self.endpoint.adopt(now, records);
        let sas = self.endpoint.sas();
        let wall = self.wall(now);
        self.journal.adopt(wall, &sas, &left.journal);
        self.adopt_token_holders(&sas);
        self.stats.add(Counter::Adopted, adopted.ike_sas as u64);
        self.stats.add(Counter::AdoptionLost, adopted.lost as u64);
        let children: usize = sas.iter().map(|sa| sa.children.len()).sum();
        let lost = match adopted.lost {
            0 => String::new(),
            lost => format!("; {lost} records could not be read"),
        };
        let detail = format!("{} IKE SAs, {children} Child SAs{lost}", adopted.ike_sas);
        self.report("adopted", None, None, None, detail);
        self.answers.set_control(Control::Authoritative);
        self.drain(now);
        if let Some((to, grace)) = adopted.taken_down {
            // Its own address it cannot be, for it was taken before.
            let _ = self.take_down(now, to, grace);
        }
    }

    /// Which token each peer holds is not kept: the oldest one that there is is not dropped on anybody's account.
    fn adopt_token_holders(&mut self, sas: &[IkeSaStatus]) {
        let oldest = self.rotation.generations().last().map(|(number, _)| number);
        let Some(generation) = oldest.filter(|_| self.tokens.is_maker()) else { return };
        let mut given = self.tokens.given();
        for sa in sas.iter().filter(|sa| sa.spis.responder != [0; 8]) {
            given.sent(sa.spis, Made { generation, taker: sa.remote.ip() });
            if sa.established.is_some() {
                given.reported(sa.spis);
            }
        }
    }
}

/// The life that is gone on with was begun by another start: what that found counts.
pub(super) fn as_begun(boot: &mut Boot, left: &Left) {
    boot.anchor_matches &= left.records.life().is_some_and(|life| life.anchor_matches);
}
