//! A ticket keeper that outlives its endpoint, and crashes of one side with a token for the other.

use super::{A, Activity, B, Maker, Seeded, World, connection, token};
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::SeedableRng;
use spindle_abi::Time;
use spindle_ike::Endpoint;
use spindle_ike::api::*;
use spindle_ike::random::Random;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;
use zeroize::Zeroizing;

/// Tickets here are random names of states that are kept in the clear: a test's sealing.
#[derive(Default)]
pub struct Kept {
    granted: BTreeMap<[u8; 32], (Time, Vec<u8>)>,
    pub used: BTreeSet<[u8; 32]>,
    /// Octets after the name.
    pub padding: usize,
}

impl Kept {
    /// All that were ever granted.
    pub fn granted(&self) -> impl Iterator<Item = [u8; 32]> + '_ {
        self.granted.keys().copied()
    }
}

#[derive(Clone, Default)]
pub struct Keeper(pub Rc<RefCell<Kept>>);

impl TicketKeeper for Keeper {
    fn seal(
        &mut self,
        now: Time,
        lifetime: Duration,
        state: &[u8],
        random: &mut dyn Random,
    ) -> Option<Vec<u8>> {
        let mut name = [0; 32];
        random.fill(&mut name);
        let mut kept = self.0.borrow_mut();
        kept.granted.insert(name, (now.after(lifetime), state.to_vec()));
        Some([&name[..], &vec![0; kept.padding]].concat())
    }

    fn open(&mut self, now: Time, ticket: &[u8]) -> Option<OpenedTicket> {
        let name = *ticket.first_chunk::<32>()?;
        let kept = self.0.borrow();
        let (expires, state) = kept.granted.get(&name)?;
        let good = *expires > now && !kept.used.contains(&name);
        good.then(|| OpenedTicket { id: TicketId(name), state: Zeroizing::new(state.clone()) })
    }

    fn spend(&mut self, _: Time, ticket: TicketId) -> bool {
        self.0.borrow_mut().used.insert(ticket.0)
    }
}

impl Keeper {
    /// All that was granted is forgotten, as if its key were lost.
    pub fn forget(&self) {
        self.0.borrow_mut().granted.clear();
    }
}

/// Both resume.
pub fn resuming(side: usize) -> EndpointConfig {
    EndpointConfig::new(vec![ConnectionConfig { resumption: true, ..connection(side) }])
}

impl World {
    /// Both resume, and an IKE SA stands that A initiated.
    pub fn resuming(seed: u64) -> (World, [Keeper; 2]) {
        World::resuming_with(seed, resuming(A), resuming(B))
    }

    pub fn resuming_with(seed: u64, a: EndpointConfig, b: EndpointConfig) -> (World, [Keeper; 2]) {
        let mut world = World::with(seed, a, b);
        let keepers = [Keeper::default(), Keeper::default()];
        for (side, keeper) in world.sides.iter_mut().zip(&keepers) {
            side.endpoint.set_tickets(Box::new(keeper.clone()));
        }
        let mut world = world.established_by_a();
        // Time for what is asked for in exchanges of their own.
        world.run(Duration::from_secs(3));
        world.recorded.clear();
        (world, keepers)
    }

    /// This side forgets all but its tickets' keeper, and begins anew with this configuration.
    pub fn crash(&mut self, side: usize, keeper: &Keeper, config: EndpointConfig) {
        let rng = ChaCha12Rng::seed_from_u64(self.now.0);
        let it = &mut self.sides[side];
        it.activities.borrow_mut().clear();
        let activity = Box::new(Activity(it.activities.clone()));
        it.endpoint = Endpoint::new(config, Box::new(Maker(side)), activity, Box::new(Seeded(rng)));
        it.endpoint.set_tickets(Box::new(keeper.clone()));
        it.plane = Default::default();
    }

    /// This side learns by a token that the other one lost its only IKE SA, and begins again.
    pub fn take_token(&mut self, side: usize) {
        let sa = self.sas(side)[0].clone();
        self.at(side, |e, now| {
            let authority = e.verify_token(sa.id, &token(1 - side, sa.spis)).expect("its token");
            e.delete_ike_sa(now, sa.id, authority);
            e.initiate(now, "peer", None, true).unwrap();
        });
    }

    /// The exchange types of what was recorded, in order.
    pub fn exchanges(&self) -> Vec<u8> {
        self.recorded.iter().map(|(_, d)| d.data.strip_prefix(&[0; 4]).unwrap_or(&d.data)[18]).collect()
    }
}
