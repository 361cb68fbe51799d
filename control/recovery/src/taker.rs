//! The token taker: what a message in clear says about our SAs (RFC 6290 section 3 and 4.5; RFC 7296 section 2.4).
//!
//! Tokens are verified before anything is limited, for a lookup and at most four comparisons for each SA that
//! could be meant are cheaper than what a limit per source costs: a forger who spends the true peer's budget.
//! A token that matches is proof, from whatever address it came. Anything else is a hint, which may cause one
//! liveness check of the SA and nothing more; and nothing is ever answered.

use crate::message::{INVALID_IKE_SPI, INVALID_SPI, QUICK_CRASH_DETECTION};
use spindle_abi::{Spi, Time};
use spindle_ike::Endpoint;
use spindle_ike::api::{Authority, Header, IkeSaId, IkeSpis, Notify, ProbeResult};
use std::time::Duration;

/// Tokens of one message that are verified (RFC 6290 section 4.5: at least four MUST be supported).
const MAX_TOKENS: usize = 4;

/// SAs to which one message may refer: peers may choose the same SPI, by chance or by intent.
const MAX_CANDIDATES: usize = 64;

/// SAs that one hint may have checked.
const MAX_PROBED: usize = 4;

/// What the taker asks of the endpoint; a seam for tests.
pub(crate) trait IkeSas {
    fn find_by_spis(&self, spis: IkeSpis) -> Option<IkeSaId>;
    fn find_by_outbound_spi(&self, spi: Spi) -> Vec<IkeSaId>;
    fn verify_token(&self, ike: IkeSaId, token: &[u8]) -> Option<Authority>;
    fn probe(&mut self, now: Time, ike: IkeSaId, again_after: Duration) -> ProbeResult;
}

impl IkeSas for Endpoint {
    fn find_by_spis(&self, spis: IkeSpis) -> Option<IkeSaId> {
        Endpoint::find_by_spis(self, spis)
    }
    fn find_by_outbound_spi(&self, spi: Spi) -> Vec<IkeSaId> {
        Endpoint::find_by_outbound_spi(self, spi)
    }
    fn verify_token(&self, ike: IkeSaId, token: &[u8]) -> Option<Authority> {
        Endpoint::verify_token(self, ike, token)
    }
    fn probe(&mut self, now: Time, ike: IkeSaId, again_after: Duration) -> ProbeResult {
        Endpoint::probe(self, now, ike, again_after)
    }
}

/// What a message in clear amounts to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Finding {
    /// A token matched: this IKE SA is gone at the peer.
    pub(crate) proof: Option<(IkeSaId, Authority)>,
    /// It held tokens and none matched.
    pub(crate) token_failed: bool,
    /// It held tokens and we are no token taker.
    pub(crate) token_ignored: bool,
    /// It held INVALID_IKE_SPI or INVALID_SPI.
    pub(crate) hint: bool,
    /// IKE SAs that it may be about.
    pub(crate) candidates: Vec<IkeSaId>,
}

/// Looks at a message in clear; changes nothing.
pub(crate) fn examine(sas: &dyn IkeSas, taker: bool, header: &Header, notifies: &[Notify]) -> Finding {
    let mut finding = Finding::default();
    // RFC 6290 section 4.5 and RFC 7296 section 2.21.4: the pair in the header names the IKE SA.
    finding.candidates.extend(sas.find_by_spis(header.spis));
    // RFC 6290 section 8.2: INVALID_SPI names it by the SPI on which we send. The peer chose that SPI, so several
    // peers may have the same.
    for notify in notifies.iter().filter(|n| n.kind == INVALID_SPI) {
        finding.hint = true;
        if let Ok(spi) = notify.data.as_slice().try_into() {
            for ike in sas.find_by_outbound_spi(Spi(u32::from_be_bytes(spi))) {
                if finding.candidates.len() < MAX_CANDIDATES && !finding.candidates.contains(&ike) {
                    finding.candidates.push(ike);
                }
            }
            break;
        }
    }
    finding.hint |= notifies.iter().any(|n| n.kind == INVALID_IKE_SPI);

    let mut tokens = notifies.iter().filter(|n| n.kind == QUICK_CRASH_DETECTION).peekable();
    if tokens.peek().is_none() {
        return finding;
    }
    if !taker {
        finding.token_ignored = true;
        return finding;
    }
    // RFC 6290 section 4.1: SPI Size 0; section 5: 16 to 128 octets. The Protocol ID means nothing (RFC 7296
    // section 3.10).
    let well_formed = tokens.filter(|n| n.spi.is_empty() && (16..=128).contains(&n.data.len()));
    for token in well_formed.take(MAX_TOKENS) {
        for ike in &finding.candidates {
            if let Some(authority) = sas.verify_token(*ike, &token.data) {
                finding.proof = Some((*ike, authority));
                return finding;
            }
        }
    }
    finding.token_failed = true;
    finding
}

impl Finding {
    /// The SAs to check on this hint.
    pub(crate) fn to_probe(&self) -> impl Iterator<Item = IkeSaId> + '_ {
        self.candidates.iter().copied().filter(|_| self.hint).take(MAX_PROBED)
    }
}
