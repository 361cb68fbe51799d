//! A deterministic world in which two whole gateways live: control plane, dataplane and disk of each, a network
//! between them, and an attacker on it.
//!
//! Everything that happens follows from one seed: [`run`] draws a scenario, lets the clock jump from one thing due
//! to the next, and has every step judged by an oracle that knows all secrets. Nothing here sleeps, and no thread,
//! clock or random number of the machine has any influence; the same seed gives the same world. A [`Failure`]
//! prints its seed and how to see it again.
//!
//! Data flows as on real machines: host → dataplane → network → dataplane → host; control → commands → dataplane →
//! events → control; control → journal → disk. Only the clocks, the wires and the disks are not real.

#![forbid(unsafe_code)]

mod attacker;
mod disk;
mod machine;
mod nat;
mod network;
mod oracle;
mod random;
mod scenario;
mod schedule;
mod script;
mod store_world;
mod world;

pub use disk::{Disk, Handle};
pub use random::Dice;
pub use schedule::Schedule;
pub use script::Script;
pub use store_world::run_store;

use network::Packet;
use spindle_abi::Time;
use std::fmt;
use std::time::Duration;

/// What a world has seen.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Summary {
    /// Things that happened.
    pub steps: u64,
    /// Starts of gateways.
    pub boots: u64,
    /// Their deaths.
    pub crashes: u64,
    /// Deaths of control alone.
    pub control_deaths: u64,
    /// Starts of control beside a dataplane that had gone on.
    pub adoptions: u64,
    /// Deaths of dataplanes alone.
    pub dataplane_deaths: u64,
    /// IKE SAs authenticated, counted at both ends.
    pub established: u64,
    /// Of these, by a ticket.
    pub resumed: u64,
    /// IKE SAs that ended because the same gateways had another one.
    pub superseded: u64,
    /// IKE SAs that ended because the peer did not answer, and initiations that failed.
    pub given_up: u64,
    /// IKE SAs rekeyed, counted at both ends.
    pub ike_rekeys: u64,
    /// Tokens shown in clear.
    pub tokens_shown: u64,
    /// New generations of secrets.
    pub rotations: u64,
    /// Generations that were dropped.
    pub generations_dropped: u64,
    /// Tokens in exchanges of their own that the peer acknowledged.
    pub tokens_acknowledged: u64,
    /// Tokens that matched.
    pub proofs: u64,
    /// Tokens that matched none.
    pub tokens_failed: u64,
    /// Redirects that were followed.
    pub redirects_followed: u64,
    /// Gateways taken down.
    pub take_downs: u64,
    /// SAs that a gateway lost without a crash.
    pub forgotten: u64,
    /// Moves of a cluster's address from one member to the other.
    pub fail_overs: u64,
    /// Questions to a member that has not the address, or at an address of its own.
    pub standby_asked: u64,
    /// Mappings of a NAT that moved.
    pub mappings_moved: u64,
    /// IKE SAs that followed their peer to another address or port.
    pub followed: u64,
    /// Losses that SIR confirmed.
    pub confirmations: u64,
    /// The attacker's packets.
    pub strikes: u64,
    /// Hosts' packets.
    pub packets_sent: u64,
    /// Those that arrived.
    pub packets_delivered: u64,
    /// The longest time without a packet that arrived, from the first one on.
    pub longest_gap: Duration,
    /// From the last disturbance until both gateways agreed.
    pub recovered_in: Duration,
    /// Of all that was sent outside, and when: the same in every run of a seed.
    pub digest: u64,
}

impl Summary {
    fn hash(&mut self, now: Time, packet: &Packet) {
        let octets = match packet {
            Packet::Ike { data, .. } => data,
            Packet::Esp(octets) => octets,
        };
        // FNV-1a: enough to notice a difference.
        for octet in now.0.to_be_bytes().iter().chain(octets) {
            self.digest = (self.digest ^ u64::from(*octet)).wrapping_mul(0x100_0000_01b3);
        }
    }

    /// Adds another world's, but for what cannot be added.
    pub fn add(&mut self, other: &Summary) {
        self.steps += other.steps;
        self.boots += other.boots;
        self.crashes += other.crashes;
        self.dataplane_deaths += other.dataplane_deaths;
        self.control_deaths += other.control_deaths;
        self.adoptions += other.adoptions;
        self.established += other.established;
        self.resumed += other.resumed;
        self.superseded += other.superseded;
        self.given_up += other.given_up;
        self.ike_rekeys += other.ike_rekeys;
        self.tokens_shown += other.tokens_shown;
        self.proofs += other.proofs;
        self.rotations += other.rotations;
        self.generations_dropped += other.generations_dropped;
        self.tokens_acknowledged += other.tokens_acknowledged;
        self.tokens_failed += other.tokens_failed;
        self.redirects_followed += other.redirects_followed;
        self.take_downs += other.take_downs;
        self.forgotten += other.forgotten;
        self.fail_overs += other.fail_overs;
        self.standby_asked += other.standby_asked;
        self.mappings_moved += other.mappings_moved;
        self.followed += other.followed;
        self.confirmations += other.confirmations;
        self.strikes += other.strikes;
        self.packets_sent += other.packets_sent;
        self.packets_delivered += other.packets_delivered;
        self.longest_gap = self.longest_gap.max(other.longest_gap);
        self.recovered_in = self.recovered_in.max(other.recovered_in);
    }
}

/// What went wrong in a world.
#[derive(Debug)]
pub struct Failure {
    /// When.
    pub at: Time,
    /// What.
    pub what: String,
    /// All that happened, if a trace was asked for.
    pub trace: String,
    /// The scenario.
    pub scenario: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {:.6} s: {}", self.at.0 as f64 / 1e9, self.what)
    }
}

/// Plays this script, with what it leaves open drawn from the seed.
pub fn run_script(script: Script, seed: u64, trace: bool) -> Result<Summary, Failure> {
    let mut world = world::World::new(seed, trace, script.scenario(&mut Dice::new(seed, 0)));
    world.play()?;
    Ok(world.summary)
}

/// Plays the world of this seed; with `trace`, a failure tells all that happened before it.
pub fn run(seed: u64, trace: bool) -> Result<Summary, Failure> {
    let mut world = world::World::new(seed, trace, scenario::Scenario::of_seed(seed));
    world.play()?;
    Ok(world.summary)
}
