//! Our addresses as they come and go, where a cluster moves them between its members (RFC 6290 section 6).
//!
//! The member on whose machine an address is, is the active one for the connections at that address; nothing else makes
//! it so. Without the address it holds no SA of theirs, begins none and is silent, so that it cannot show a token of an SA
//! that the active one holds (section 9.2). That an address is on one machine at a time is for those who move it.

use super::Gateway;
use crate::stats::Counter;
use spindle_abi::Time;
use spindle_ike::api::ConnectionConfig;
use std::collections::BTreeSet;
use std::net::IpAddr;

impl Gateway {
    /// These are on this machine now.
    pub(super) fn addresses(&mut self, now: Time, here: &[IpAddr]) {
        let ours: BTreeSet<IpAddr> = self.config.connections.iter().map(|c| c.local).collect();
        for address in ours {
            match (here.contains(&address), self.answers.serves(address)) {
                (true, false) => self.address_came(now, address),
                (false, true) => self.address_left(now, address),
                _ => {}
            }
        }
    }

    /// As after a start: to the peers at this address nobody else speaks.
    fn address_came(&mut self, now: Time, address: IpAddr) {
        self.answers.serve(address, true);
        self.endpoint.address_came(address);
        self.report("address-came", None, None, None, address.to_string());
        if self.ready && !self.stopping {
            self.contact_peers(now, |at| at == address);
            self.start_connections(|at| at == address);
        }
    }

    /// Another member may have it already and tell the peers that our SAs are lost: so they are.
    fn address_left(&mut self, now: Time, address: IpAddr) {
        self.answers.serve(address, false);
        self.endpoint.address_left(now, address);
        let at_it: Vec<String> = self.at(address).map(|c| c.name.clone()).collect();
        at_it.iter().for_each(|name| self.reconnect.forget(name));
        self.report("address-left", None, None, None, address.to_string());
    }

    fn at(&self, address: IpAddr) -> impl Iterator<Item = &ConnectionConfig> {
        self.config.connections.iter().map(|c| &**c).filter(move |c| c.local == address)
    }

    /// Is the address of this connection on this machine?
    pub(super) fn serves_connection(&self, name: &str) -> bool {
        self.endpoint.connection(name).is_some_and(|c| self.answers.serves(c.local))
    }

    /// Silence, where an address is none of ours or another member's: what comes there is nothing to us.
    pub(super) fn is_elsewhere(&mut self, address: IpAddr) -> bool {
        let elsewhere = !self.answers.serves(address);
        if elsewhere {
            self.stats.count(Counter::Elsewhere);
        }
        elsewhere
    }
}
