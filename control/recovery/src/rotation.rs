//! Rotation of the QCD secret while the gateway runs (RFC 6290 section 4.4, 5.1), such that no peer's token is void.
//!
//! A wish comes from the operator, from the secret's age, or from another method of making tokens than the newest
//! generation's. It is fulfilled by one write to disk: the new generation stands before three earlier ones, and the
//! fifth goes. That one must not be needed by anyone, so before:
//!
//! * every IKE SA here whose peer relies on its token ([`crate::given`]) sends a token of the newest generation,
//!   protected, and the peer acknowledges it. Not earlier: section 4.4 wants no token sent while the old one can be made;
//! * peers that may hold such tokens of IKE SAs that live here no more (of earlier incarnations, timed out) have had the
//!   time that an SA lives. That time goes to disk with the generation as soon as nobody here relies on it.
//!
//! [`Rotation::due`] says what is to be done next, and changes nothing by itself.

use crate::api::{Config, Generation, TokenMethod};
use crate::given::Given;
use crate::secrets::MAX_GENERATIONS;
use spindle_abi::Time;
use spindle_ike::api::IkeSpis;
use std::collections::BTreeSet;
use std::time::Duration;

/// Replacement tokens that await their acknowledgements at once.
const AT_ONCE: usize = 256;
/// IKE SAs that cannot be sent a token now (half-open, about to end) are looked at again after this.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// A write that failed is tried again after this.
const WRITE_AGAIN: Duration = Duration::from_secs(60);

/// Why the operator's wish to rotate is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    /// The maker's role is off.
    #[error("this gateway makes no tokens (recovery.token_maker, or switched off as unsafe)")]
    NotAMaker,
    /// A cluster's members must have the same generations.
    #[error(
        "the secret is a cluster's (recovery.secret_file): this gateway alone must not change it; bring a new file \
         to all members and start them again"
    )]
    Shared,
}

/// One generation as shown to people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GenerationStatus {
    /// How its tokens are made.
    pub method: TokenMethod,
    /// When it was made, seconds since 1970; 0 if that is not known.
    pub made: u64,
    /// IKE SAs here whose peers rely on its token.
    pub relying: usize,
    /// Peers of IKE SAs that are no more here may rely on it until then, seconds since 1970.
    pub needed_until: u64,
}

/// The secret as shown to people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SecretStatus {
    /// Newest first.
    pub generations: Vec<GenerationStatus>,
    /// Is a rotation under way?
    pub rotating: bool,
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Due {
    Nothing,
    /// To the secret's file; [`Rotation::written`] is due then.
    Write {
        new: Option<(TokenMethod, u64)>,
        keep: Vec<Generation>,
    },
    /// These IKE SAs are to send a token of the newest generation; [`Rotation::replacing`] is to be told which do.
    Replace(Vec<IkeSpis>),
}

/// A generation here.
#[derive(Clone, Debug)]
struct Row {
    number: u64,
    /// As it stands on disk.
    generation: Generation,
    /// Peers of IKE SAs that are no more here may rely on it until then.
    until: u64,
}

impl Row {
    /// Does nobody need it any more?
    fn is_free(&self, wall: u64, given: &Given) -> bool {
        self.until <= wall && given.relying(self.number).next().is_none()
    }

    /// What is to stand on disk of it behind a newer one.
    fn needed_until(&self, given: &Given) -> Option<u64> {
        given.relying(self.number).next().is_none().then_some(self.until)
    }

    fn behind(&self, given: &Given) -> Generation {
        Generation { needed_until: self.needed_until(given), ..self.generation.clone() }
    }
}

/// The generations, and what is under way with them.
#[derive(Debug)]
pub(crate) struct Rotation {
    /// Newest first.
    rows: Vec<Row>,
    method: TokenMethod,
    /// Seconds; zero is never.
    interval: u64,
    shared: bool,
    /// Seconds that a peer may rely on a token after the IKE SA is lost here.
    lifetime: u64,
    wanted: bool,
    writing: bool,
    /// Sent a replacement that is not acknowledged.
    replacing: BTreeSet<IkeSpis>,
    look_again: Time,
    write_again: Time,
}

impl Rotation {
    /// `wall`: seconds since 1970. `former_until`: when the last journal record of an earlier incarnation expires.
    pub(crate) fn new(
        config: &Config,
        secrets: &[Generation],
        lifetime: u64,
        former_until: u64,
        wall: u64,
    ) -> Rotation {
        let unknown = wall.saturating_add(lifetime).max(former_until);
        let row = |(number, generation): (u64, &Generation)| Row {
            number,
            until: generation.needed_until.unwrap_or(unknown),
            generation: generation.clone(),
        };
        let rows: Vec<Row> = (0..).zip(secrets.iter().rev()).map(row).collect();
        Rotation {
            rows: rows.into_iter().rev().collect(),
            method: config.token_method,
            interval: config.secret_rotation.as_secs(),
            shared: config.secret_shared,
            lifetime,
            wanted: false,
            writing: false,
            replacing: BTreeSet::new(),
            look_again: Time(0),
            write_again: Time(0),
        }
    }

    /// SAs may live so long from here on, those from before as long as they did.
    pub(crate) fn sas_live(&mut self, lifetime: u64) {
        self.lifetime = self.lifetime.max(lifetime);
    }

    /// All generations with their numbers, newest first.
    pub(crate) fn generations(&self) -> impl Iterator<Item = (u64, &Generation)> {
        self.rows.iter().map(|row| (row.number, &row.generation))
    }

    pub(crate) fn status(&self, given: &Given) -> SecretStatus {
        let generations = self.rows.iter().map(|row| GenerationStatus {
            method: row.generation.method,
            made: row.generation.made,
            relying: given.relying(row.number).count(),
            needed_until: row.until,
        });
        SecretStatus { generations: generations.collect(), rotating: self.wanted }
    }

    /// The operator's wish.
    pub(crate) fn want(&mut self) -> Result<(), Refused> {
        if self.shared {
            return Err(Refused::Shared);
        }
        self.wanted = true;
        Ok(())
    }

    /// An IKE SA is gone here; may its peer still rely on its token?
    pub(crate) fn ended(&mut self, wall: u64, spis: IkeSpis, relied: Option<u64>, peer_may_hold_it: bool) {
        self.replacing.remove(&spis);
        let row = self.rows.iter_mut().find(|row| Some(row.number) == relied);
        if let Some(row) = row.filter(|_| peer_may_hold_it) {
            row.until = row.until.max(wall.saturating_add(self.lifetime));
        }
    }

    /// A replacement is on its way.
    pub(crate) fn replacing(&mut self, spis: IkeSpis) {
        self.replacing.insert(spis);
    }

    /// The peer has the newest token; does one more await its replacement?
    pub(crate) fn acknowledged(&mut self, spis: IkeSpis) {
        if self.replacing.remove(&spis) {
            self.look_again = Time(0);
        }
    }

    /// What is to be done at `now`, `wall` seconds after 1970.
    pub(crate) fn due(&mut self, now: Time, wall: u64, given: &Given) -> Due {
        let Some((newest, earlier)) = self.rows.split_first() else { return Due::Nothing };
        if self.shared || self.writing || now < self.write_again {
            return Due::Nothing;
        }
        let old = self.interval > 0 && wall >= newest.generation.made.saturating_add(self.interval);
        self.wanted |= old || newest.generation.method != self.method;
        let oldest = earlier.last().filter(|_| self.rows.len() >= MAX_GENERATIONS);
        if self.wanted && oldest.is_none_or(|row| row.is_free(wall, given)) {
            self.writing = true;
            // Until the write is over tokens are made with the newest one of now.
            let in_use = Generation { needed_until: None, ..newest.generation.clone() };
            let keep = std::iter::once(in_use).chain(earlier.iter().map(|row| row.behind(given)));
            let keep = keep.take(MAX_GENERATIONS - 1).collect();
            return Due::Write { new: Some((self.method, wall)), keep };
        }
        // So that the next start need not take them for needed.
        if earlier.iter().any(|row| row.needed_until(given) != row.generation.needed_until) {
            self.writing = true;
            let keep = std::iter::once(newest.generation.clone());
            let keep = keep.chain(earlier.iter().map(|row| row.behind(given))).collect();
            return Due::Write { new: None, keep };
        }
        match oldest {
            Some(oldest) if self.wanted && self.look_again <= now => {
                let waiting = given.relying(oldest.number).filter(|spis| !self.replacing.contains(spis));
                let waiting: Vec<IkeSpis> =
                    waiting.take(AT_ONCE - self.replacing.len().min(AT_ONCE)).collect();
                self.look_again = now.after(LOOK_AGAIN);
                if waiting.is_empty() { Due::Nothing } else { Due::Replace(waiting) }
            }
            _ => Due::Nothing,
        }
    }

    /// The write is over: these are on disk now, or it failed.
    pub(crate) fn written(&mut self, now: Time, generations: Option<Vec<Generation>>) -> Written {
        self.writing = false;
        let Some(generations) = generations else {
            self.write_again = now.after(WRITE_AGAIN);
            return Written::Failed;
        };
        let mut before = std::mem::take(&mut self.rows);
        let next = before.first().map_or(0, |row| row.number + 1);
        let mut new = false;
        for generation in generations {
            let known = before.iter().position(|row| row.generation.secret == generation.secret);
            let row = match known.map(|at| before.swap_remove(at)) {
                Some(row) => Row { generation, ..row },
                None => {
                    new = true;
                    Row { number: next, until: generation.needed_until.unwrap_or(0), generation }
                }
            };
            self.rows.push(row);
        }
        if new {
            self.wanted = false;
            self.replacing.clear();
            self.look_again = Time(0);
            Written::Rotated
        } else {
            Written::Noted
        }
    }

    /// When [`Rotation::due`] is to be asked next; seconds since 1970 become times by `at`.
    pub(crate) fn deadline(&self, given: &Given, at: impl Fn(u64) -> Time) -> Option<Time> {
        let newest = self.rows.first().filter(|_| !self.shared && !self.writing)?;
        if !self.wanted {
            let due =
                (self.interval > 0).then(|| at(newest.generation.made.saturating_add(self.interval)))?;
            return Some(due.max(self.write_again));
        }
        let oldest = self.rows.last()?;
        let relied_on = given.relying(oldest.number).next().is_some();
        Some(if relied_on {
            self.look_again.max(self.write_again)
        } else {
            at(oldest.until).max(self.write_again)
        })
    }
}

/// What [`Rotation::written`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Written {
    /// A new generation is in use.
    Rotated,
    /// Only what is known of the generations was written.
    Noted,
    Failed,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::given::Made;
    use crate::testing::{NOW, config, generation, pair};

    const WALL: u64 = 1_000_000;
    const LIFETIME: u64 = 86_400;

    fn rotation(secrets: &[Generation]) -> Rotation {
        Rotation::new(&config(), secrets, LIFETIME, 0, WALL)
    }

    /// Four generations that no peer of an earlier incarnation can need, newest first: 4, 3, 2, 1.
    fn four() -> Vec<Generation> {
        [4, 3, 2, 1].map(|n| Generation { needed_until: Some(0), ..generation(n) }).to_vec()
    }

    fn octets(generations: &[Generation]) -> Vec<u8> {
        generations.iter().map(|generation| generation.secret.0[0]).collect()
    }

    fn relies(given: &mut Given, spis: IkeSpis, generation: u64) {
        given.sent(spis, Made { generation, taker: [192, 0, 2, 2].into() });
    }

    /// Carries a write out, with 9 as the new secret.
    fn write(rotation: &mut Rotation, due: Due) -> (Vec<Generation>, Written) {
        let Due::Write { new, keep } = due else { panic!("{due:?}") };
        let new =
            new.map(|(method, made)| Generation { method, made, needed_until: Some(0), ..generation(9) });
        let generations: Vec<Generation> = new.into_iter().chain(keep).collect();
        let written = rotation.written(NOW, Some(generations.clone()));
        (generations, written)
    }

    #[test]
    fn a_wish_is_one_write_that_keeps_three_generations() {
        let (mut rotation, given) = (rotation(&four()), Given::default());
        assert_eq!(rotation.due(NOW, WALL, &given), Due::Nothing);
        rotation.want().unwrap();
        let due = rotation.due(NOW, WALL, &given);
        assert_eq!(rotation.due(NOW, WALL, &given), Due::Nothing, "one write at a time");
        let (generations, written) = write(&mut rotation, due);
        assert_eq!((octets(&generations), written), (vec![9, 4, 3, 2], Written::Rotated));
        assert_eq!(generations[0].made, WALL);
        assert_eq!(rotation.generations().map(|(number, _)| number).collect::<Vec<_>>(), [4, 3, 2, 1]);
        assert_eq!(generations[1].needed_until, None, "it was in use until the write was over");
    }

    /// RFC 6290 section 4.4: not before every IKE SA that relies on the oldest has another token.
    #[test]
    fn the_oldest_waits_for_those_who_rely_on_it_and_they_are_few_at_once() {
        let (mut rotation, mut given) = (rotation(&four()), Given::default());
        let many = (0..600u64).map(|n| IkeSpis { initiator: n.to_be_bytes(), responder: [7; 8] });
        many.for_each(|spis| relies(&mut given, spis, 0));
        relies(&mut given, pair(1), 1);
        let due = rotation.due(NOW, WALL, &given);
        let noted: Vec<_> = write(&mut rotation, due).0.iter().map(|g| g.needed_until).collect();
        assert_eq!(noted, [Some(0), Some(0), None, None], "the disk says that they are relied on");
        rotation.want().unwrap();
        let mut replaced = 0;
        let mut now = NOW;
        while replaced < 600 {
            let Due::Replace(pairs) = rotation.due(now, WALL, &given) else { panic!("after {replaced}") };
            assert!(pairs.len() <= AT_ONCE && !pairs.contains(&pair(1)));
            pairs.iter().for_each(|spis| rotation.replacing(*spis));
            assert_eq!(
                rotation.due(now.after(LOOK_AGAIN), WALL, &given),
                Due::Nothing,
                "enough are on their way"
            );
            for spis in pairs {
                relies(&mut given, spis, 3);
                given.acknowledged(spis);
                rotation.acknowledged(spis);
                replaced += 1;
            }
            now = now.after(LOOK_AGAIN * 2);
        }
        let due = rotation.due(now, WALL, &given);
        assert_eq!(octets(&write(&mut rotation, due).0), [9, 4, 3, 2]);
        assert_eq!(given.relying(1).count(), 1, "the others keep theirs");
    }

    /// What ended without the peer's knowledge may be held there as long as an SA lives.
    #[test]
    fn the_oldest_waits_for_peers_that_fell_silent() {
        let (mut rotation, mut given) = (rotation(&four()), Given::default());
        for (spis, silent) in [(pair(1), false), (pair(2), true)] {
            relies(&mut given, spis, 0);
            let relied = given.ended(spis);
            rotation.ended(WALL + 5, spis, relied, silent);
        }
        rotation.want().unwrap();
        let due = rotation.due(NOW, WALL + 5, &given);
        let (generations, written) = write(&mut rotation, due);
        assert_eq!((octets(&generations), written), (vec![4, 3, 2, 1], Written::Noted));
        assert_eq!(generations[3].needed_until, Some(WALL + 5 + LIFETIME), "on disk for the next start");
        let until = Duration::from_secs(5 + LIFETIME);
        let at = |second: u64| NOW.after(Duration::from_secs(second - WALL));
        assert_eq!(rotation.deadline(&given, at), Some(NOW.after(until)));
        assert_eq!(rotation.due(NOW.after(until - LOOK_AGAIN), WALL + 4 + LIFETIME, &given), Due::Nothing);
        let due = rotation.due(NOW.after(until), WALL + 5 + LIFETIME, &given);
        assert_eq!(octets(&write(&mut rotation, due).0), [9, 4, 3, 2]);
    }

    /// A start knows of no IKE SA, but peers do: what was in use is needed for as long as they may live, and as the
    /// journal says. That goes to disk, so that many starts in a row do not put it off.
    #[test]
    fn what_was_in_use_before_the_start_is_kept_for_an_sas_lifetime() {
        let secrets =
            [4, 3, 2, 1].map(|n| Generation { needed_until: (n == 1).then_some(WALL + 9), ..generation(n) });
        let (mut rotation, given) =
            (Rotation::new(&config(), &secrets, LIFETIME, WALL + 99_999, WALL), Given::default());
        let status = rotation.status(&given);
        let until: Vec<u64> = status.generations.iter().map(|generation| generation.needed_until).collect();
        assert_eq!(until, [WALL + 99_999, WALL + 99_999, WALL + 99_999, WALL + 9]);
        let due = rotation.due(NOW, WALL, &given);
        let (generations, _) = write(&mut rotation, due);
        let noted: Vec<_> = generations.iter().map(|generation| generation.needed_until).collect();
        assert_eq!(noted, [None, Some(WALL + 99_999), Some(WALL + 99_999), Some(WALL + 9)]);
        assert_eq!(rotation.due(NOW, WALL, &given), Due::Nothing);
        rotation.want().unwrap();
        assert_eq!(rotation.due(NOW, WALL + 8, &given), Due::Nothing);
        assert!(matches!(rotation.due(NOW, WALL + 9, &given), Due::Write { new: Some(_), .. }));
        let later = Rotation::new(&config(), &generations, LIFETIME, 0, WALL + 50_000);
        assert_eq!(later.status(&given).generations[1].needed_until, WALL + 99_999, "not put off");
    }

    #[test]
    fn age_and_another_method_are_wishes_too_and_a_shared_secret_stays() {
        let given = Given::default();
        let fresh = [Generation { made: WALL, needed_until: Some(0), ..generation(1) }];
        let aged = Config { secret_rotation: Duration::from_secs(100), ..config() };
        let mut by_age = Rotation::new(&aged, &fresh, LIFETIME, 0, WALL);
        assert_eq!(by_age.due(NOW, WALL + 99, &given), Due::Nothing);
        assert_eq!(by_age.deadline(&given, |second| Time(second - WALL)), Some(Time(100)));
        assert!(matches!(by_age.due(NOW, WALL + 100, &given), Due::Write { new: Some(_), .. }));

        let addressed = Config { token_method: TokenMethod::SpisAndAddress, ..config() };
        let mut by_method = Rotation::new(&addressed, &fresh, LIFETIME, 0, WALL);
        let due = by_method.due(NOW, WALL, &given);
        let (generations, _) = write(&mut by_method, due);
        assert_eq!(generations[0].method, TokenMethod::SpisAndAddress);
        assert!(!matches!(by_method.due(NOW, WALL, &given), Due::Write { new: Some(_), .. }), "once");

        for config in [aged, addressed] {
            let mut shared =
                Rotation::new(&Config { secret_shared: true, ..config }, &fresh, LIFETIME, 0, WALL);
            assert_eq!(shared.due(NOW, WALL + 500, &given), Due::Nothing);
            assert_eq!((shared.want(), shared.deadline(&given, Time)), (Err(Refused::Shared), None));
        }
    }

    #[test]
    fn a_write_that_failed_changes_nothing_and_is_tried_again() {
        let (mut rotation, given) = (rotation(&four()), Given::default());
        rotation.want().unwrap();
        assert!(matches!(rotation.due(NOW, WALL, &given), Due::Write { .. }));
        assert_eq!(rotation.written(NOW, None), Written::Failed);
        assert_eq!(rotation.generations().count(), 4);
        assert_eq!(rotation.due(NOW, WALL, &given), Due::Nothing);
        assert_eq!(rotation.deadline(&given, |_| NOW), Some(NOW.after(WRITE_AGAIN)));
        assert!(matches!(rotation.due(NOW.after(WRITE_AGAIN), WALL, &given), Due::Write { .. }));
    }
}
