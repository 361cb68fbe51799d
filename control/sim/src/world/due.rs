//! What can be due. Whatever is meant for a process says for which of its lives, for it does not reach a later one.

use crate::network::Packet;
use crate::scenario::Action;
use spindle_abi::{Command, Event};
use spindle_recovery::api::{Generation, TokenMethod};

pub(super) enum Due {
    Arrive(usize, Packet),
    Command {
        side: usize,
        life: u64,
        dataplane: u64,
        sequence: u64,
        command: Box<Command>,
    },
    Told {
        side: usize,
        life: u64,
        dataplane: u64,
        event: Event,
    },
    /// A dataplane in the place of a dead one.
    Up {
        side: usize,
        dataplane: u64,
    },
    Commit {
        side: usize,
        life: u64,
    },
    Secrets {
        side: usize,
        life: u64,
        new: Option<(TokenMethod, u64)>,
        keep: Vec<Generation>,
    },
    Sweep {
        side: usize,
        life: u64,
    },
    Boot(usize),
    /// Control alone.
    Resume {
        side: usize,
        life: u64,
    },
    PowerGone {
        side: usize,
        life: u64,
    },
    Host(usize),
    Strike,
    /// At a member's own address.
    Asked {
        machine: usize,
        packet: Packet,
    },
    /// The cluster's address comes to this machine.
    AddressComes(usize),
    /// A member looks which addresses it has.
    Look {
        machine: usize,
        life: u64,
    },
    Act(Action),
}
