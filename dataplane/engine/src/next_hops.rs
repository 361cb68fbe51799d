//! How to reach each destination: a cache of the kernel's routes and neighbours, filled by the process.

use crate::{NextHop, Refused};
use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::BuildHasherDefault;
use std::net::IpAddr;

pub(crate) struct NextHops {
    hops: HashMap<IpAddr, NextHop, BuildHasherDefault<DefaultHasher>>,
    limit: usize,
    /// The last one that was found: bursts tend to one destination.
    last: Option<(IpAddr, NextHop)>,
}

impl NextHops {
    pub(crate) fn new(limit: u32) -> NextHops {
        NextHops { hops: HashMap::default(), limit: limit as usize, last: None }
    }

    pub(crate) fn set(&mut self, destination: IpAddr, hop: Option<NextHop>) -> Result<(), Refused> {
        self.last = None;
        match hop {
            None => drop(self.hops.remove(&destination)),
            Some(_) if self.hops.len() >= self.limit && !self.hops.contains_key(&destination) => {
                return Err(Refused::Full("next hops"));
            }
            Some(hop) => drop(self.hops.insert(destination, hop)),
        }
        Ok(())
    }

    pub(crate) fn clear(&mut self) {
        self.hops.clear();
        self.last = None;
    }

    #[inline]
    pub(crate) fn find(&mut self, destination: IpAddr) -> Option<NextHop> {
        match self.last {
            Some((last, hop)) if last == destination => Some(hop),
            _ => {
                let hop = *self.hops.get(&destination)?;
                self.last = Some((destination, hop));
                Some(hop)
            }
        }
    }
}
