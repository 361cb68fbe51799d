//! The endpoint: all IKE SAs of a gateway, without I/O.

use crate::api::*;
use crate::random::Random;
use spindle_abi::{Spi, Time};
use std::time::Duration;

/// All IKE SAs of a gateway. Datagrams, the dataplane's events, wishes and the time go in; [`Output`]s come out.
pub struct Endpoint {
    _config: EndpointConfig,
}

impl Endpoint {
    /// Without any SA.
    pub fn new(
        config: EndpointConfig,
        tokens: Box<dyn TokenMaker>,
        activity: Box<dyn ActivityReader>,
        random: Box<dyn Random>,
    ) -> Endpoint {
        let _ = (tokens, activity, random);
        Endpoint { _config: config }
    }

    /// Starts what is configured with [`StartAction::Start`].
    pub fn start(&mut self, _now: Time) {}

    /// Takes a datagram of port 500 or 4500.
    pub fn handle(&mut self, _now: Time, _datagram: Datagram) {}

    /// Does what is due.
    pub fn tick(&mut self, _now: Time) {}

    /// What is to be done next, in order.
    pub fn poll(&mut self) -> Option<Output> {
        None
    }

    /// When [`Endpoint::tick`] is to be called next.
    pub fn deadline(&self) -> Option<Time> {
        None
    }

    /// Starts an IKE SA of a connection with `child` (or the first one configured) in IKE_AUTH, or, where an IKE SA
    /// stands, the Child SA on it. `initial_contact`: INITIAL_CONTACT may be sent again in this incarnation (after
    /// a proof); it is sent only if no other IKE SA to that identity is known.
    pub fn initiate(
        &mut self,
        _now: Time,
        _connection: &str,
        _child: Option<&str>,
        _initial_contact: bool,
    ) -> Result<(), Refused> {
        Ok(())
    }

    /// Deletes an IKE SA by an exchange.
    pub fn terminate_ike(&mut self, _now: Time, _ike: IkeSaId) -> Result<(), Refused> {
        Ok(())
    }

    /// Deletes a Child SA by an exchange.
    pub fn terminate_child(&mut self, _now: Time, _child: ChildSaId) -> Result<(), Refused> {
        Ok(())
    }

    /// Rekeys an IKE SA.
    pub fn rekey_ike(&mut self, _now: Time, _ike: IkeSaId) -> Result<(), Refused> {
        Ok(())
    }

    /// Rekeys a Child SA.
    pub fn rekey_child(&mut self, _now: Time, _child: ChildSaId) -> Result<(), Refused> {
        Ok(())
    }

    /// The dataplane has a packet for this policy and no SA.
    pub fn acquire(&mut self, _now: Time, _policy: u32) {}

    /// The first packet came on this inbound SA.
    pub fn first_inbound(&mut self, _now: Time, _spi: Spi) {}

    /// The SA with this index came to a limit.
    pub fn lifetime(&mut self, _now: Time, _index: u32, _hard: bool) {}

    /// A hint: starts a liveness exchange, or sends the outstanding request again if `again_after` has passed since
    /// it was last sent (RFC 7296 section 2.4; rate limits are the caller's).
    pub fn probe(&mut self, _now: Time, _ike: IkeSaId, _again_after: Duration) -> ProbeResult {
        ProbeResult::NoSuchSa
    }

    /// SPIs of earlier incarnations, never allocated.
    pub fn avoid_spis(&mut self, _spis: impl Iterator<Item = Spi>) {}

    /// An SPI of an earlier incarnation expired.
    pub fn release_spi(&mut self, _spi: Spi) {}

    /// Is this one of our own IKE SPIs: half-open, of a rekey under way, established or being deleted?
    pub fn spi_in_use(&self, _spi: IkeSpi) -> bool {
        false
    }

    /// The IKE SA with these SPIs.
    pub fn find_by_spis(&self, _spis: IkeSpis) -> Option<IkeSaId> {
        None
    }

    /// The IKE SAs that have, or recently had, an outbound SA with this SPI (several peers may choose the same).
    pub fn find_by_outbound_spi(&self, _spi: Spi) -> Vec<IkeSaId> {
        Vec::new()
    }

    /// Compares with the tokens stored for an IKE SA, in constant time (RFC 6290 section 5, at most four).
    pub fn verify_token(&self, _ike: IkeSaId, _token: &[u8]) -> Option<Authority> {
        None
    }

    /// Ends an IKE SA and its Child SAs: silently, but for [`Authority::Local`], which is an exchange.
    pub fn delete_ike_sa(&mut self, _now: Time, _ike: IkeSaId, _authority: Authority) {}

    /// All IKE SAs, for people.
    pub fn sas(&self) -> Vec<IkeSaStatus> {
        Vec::new()
    }

    /// Sends a Delete for every IKE SA and starts none any more.
    pub fn shut_down(&mut self, _now: Time) {}
}
