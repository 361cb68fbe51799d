//! The gateway: the IKE endpoint, and around it the recovery from crashes, ours and the peers'.

use crate::api::{Boot, Config, Input, Output};
use spindle_abi::Time;
use spindle_ike::api::{ActivityReader, IkeSaStatus, Refused};
use spindle_ike::random::Random;
use std::collections::VecDeque;

/// One connection as shown to people; a tunnel that is configured but down is here too.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConnectionStatus {
    /// Its name.
    pub name: String,
    /// Established IKE SAs.
    pub ike_sas: usize,
    /// Installed Child SAs.
    pub child_sas: usize,
    /// Is it waiting to be initiated again (after a proof)?
    pub initiating: bool,
}

/// A whole gateway's control plane.
pub struct Gateway {
    output: VecDeque<Output>,
}

impl Gateway {
    /// After [`Store::boot`](crate::store::Store::boot).
    pub fn new(
        _config: Config,
        _boot: Boot,
        _activity: Box<dyn ActivityReader>,
        _random: Box<dyn Random>,
        _now: Time,
    ) -> Gateway {
        Gateway { output: VecDeque::new() }
    }

    /// Takes a datagram or an event.
    pub fn handle(&mut self, _now: Time, _input: Input) {}

    /// Does what is due.
    pub fn tick(&mut self, _now: Time) {}

    /// What is to be done next, in order.
    pub fn poll(&mut self) -> Option<Output> {
        self.output.pop_front()
    }

    /// When [`Gateway::tick`] is to be called next.
    pub fn deadline(&self) -> Option<Time> {
        None
    }

    /// Starts a connection, or one of its children.
    pub fn initiate(&mut self, _now: Time, _connection: &str, _child: Option<&str>) -> Result<(), Refused> {
        Ok(())
    }

    /// Deletes the IKE SAs of a connection, or the Child SAs of one of its children; how many.
    pub fn terminate(
        &mut self,
        _now: Time,
        _connection: &str,
        _child: Option<&str>,
    ) -> Result<usize, Refused> {
        Ok(0)
    }

    /// Rekeys the IKE SAs of a connection, or the Child SAs of one of its children; how many.
    pub fn rekey(&mut self, _now: Time, _connection: &str, _child: Option<&str>) -> Result<usize, Refused> {
        Ok(0)
    }

    /// All IKE SAs with their Child SAs.
    pub fn sas(&self) -> Vec<IkeSaStatus> {
        Vec::new()
    }

    /// All connections, in configuration order.
    pub fn connections(&self) -> Vec<ConnectionStatus> {
        Vec::new()
    }

    /// Named counters; the names are stable.
    pub fn stats(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }

    /// Deletes all SAs by exchanges and begins none any more; drive the gateway until [`Gateway::sas`] is empty or
    /// patience ends.
    pub fn shut_down(&mut self, _now: Time) {}
}
