//! Crashes of either side at random moments, rekeys, lost and doubled datagrams; afterwards it comes back, and no
//! token ever left for a living IKE SA (checked at every step in `common::world`).
//! SPINDLE_SIM_SEEDS sets how many seeds are tried.

mod common;

use common::Seeded;
use common::world::{A, B, Setup, World};
use std::time::Duration;

fn seeds() -> u64 {
    std::env::var("SPINDLE_SIM_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(1000).min(10_000)
}

#[test]
fn whatever_was_lost_doubled_rekeyed_or_crashed_the_tunnel_comes_back() {
    let mut shown = 0;
    for seed in 0..seeds() / 5 {
        let mut random = Seeded::new(seed);
        let mut pick = |n: u64| random.next() % n;
        let sending = [[true, false], [false, true], [true, true]][pick(3) as usize];
        let setup =
            Setup { journal: pick(2) == 0, encapsulation: pick(4) == 0, sending, seed, ..Setup::default() };
        let mut world = World::up(setup);
        let mut noise = Seeded::new(seed + 1_000_000);
        world.interference = Some(Box::new(move |_, datagram| match noise.next() % 20 {
            0 | 1 => vec![],
            2 => vec![datagram.clone(), datagram],
            _ => vec![datagram],
        }));
        for _ in 0..6 {
            let side = [A, B][pick(2) as usize];
            match pick(4) {
                0 => drop(world.wish(side, |gateway, now| gateway.rekey(now, "site", None))),
                1 => drop(world.wish(side, |gateway, now| gateway.rekey(now, "site", Some("net")))),
                _ => {
                    world.crash(side);
                    world.run(Duration::from_millis(pick(300)));
                    world.start(side);
                }
            }
            world.run(Duration::from_millis(pick(400)));
        }
        world.interference = None;
        world.run(Duration::from_secs(60));
        let before = [A, B].map(|side| world.sides[side].delivered.len());
        world.run(Duration::from_secs(1));
        for side in [A, B].into_iter().filter(|side| sending[1 - side]) {
            let delivered = world.sides[side].delivered.len() - before[side];
            assert!(delivered >= 95, "seed {seed}: {delivered} packets at {side}: {:#?}", world.story());
        }
        assert!(world.shown.iter().all(|tokens| tokens.len() < 1000));
        shown += world.shown.iter().map(|tokens| tokens.len()).sum::<usize>();
        for side in [A, B] {
            world.check_tokens(side);
        }
    }
    assert!(shown > 0, "no token was ever shown: nothing was tried");
}
