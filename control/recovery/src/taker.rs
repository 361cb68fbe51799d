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
pub(crate) const MAX_PROBED: usize = 4;

/// What the taker asks of the endpoint; a seam for tests.
pub(crate) trait IkeSas {
    fn find_by_spis(&self, spis: IkeSpis) -> Option<IkeSaId>;
    fn find_by_outbound_spi(&self, spi: Spi) -> Vec<IkeSaId>;
    fn verify_token(&self, ike: IkeSaId, token: &[u8]) -> Option<Authority>;
    fn awaits_answer(&self, ike: IkeSaId) -> bool;
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
    fn awaits_answer(&self, ike: IkeSaId) -> bool {
        Endpoint::awaits_answer(self, ike)
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
    /// INVALID_SPI's SPI, on which we send; `None` where an INVALID_IKE_SPI beside it speaks of the pair.
    pub(crate) spi: Option<Spi>,
    /// IKE SAs that it may be about.
    pub(crate) candidates: Vec<IkeSaId>,
}

/// Looks at a message in clear; changes nothing. `at_source`: has this IKE SA its peer at the address that it came from?
pub(crate) fn examine(
    sas: &dyn IkeSas,
    taker: bool,
    header: &Header,
    notifies: &[Notify],
    at_source: &dyn Fn(IkeSaId) -> bool,
) -> Finding {
    let mut finding = Finding::default();
    // RFC 6290 section 4.5 and RFC 7296 section 2.21.4: the pair in the header names the IKE SA.
    finding.candidates.extend(sas.find_by_spis(header.spis));
    // RFC 6290 section 8.2: INVALID_SPI names it by the SPI on which we send. The peer chose that SPI, so several
    // peers may have the same: those at the source first, from wherever it is accepted (section 3).
    for notify in notifies.iter().filter(|n| n.kind == INVALID_SPI) {
        finding.hint = true;
        if let Ok(spi) = notify.data.as_slice().try_into().map(|spi| Spi(u32::from_be_bytes(spi))) {
            finding.spi = Some(spi);
            let mut sending = sas.find_by_outbound_spi(spi);
            if sending.len() > 1 {
                sending.sort_by_cached_key(|ike| !at_source(*ike));
            }
            for ike in sending {
                if finding.candidates.len() < MAX_CANDIDATES && !finding.candidates.contains(&ike) {
                    finding.candidates.push(ike);
                }
            }
            break;
        }
    }
    if notifies.iter().any(|n| n.kind == INVALID_IKE_SPI) {
        finding.hint = true;
        finding.spi = None;
    }

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;

    const TOKEN: [u8; 32] = [0x55; 32];
    const SA: IkeSaId = IkeSaId(1);

    fn sas() -> FakeSas {
        FakeSas {
            ike_sas: vec![(SA, pair(1), vec![TOKEN.to_vec()]), (IkeSaId(2), pair(2), vec![vec![0x66; 32]])],
            outbound: vec![(Spi(0x1000), IkeSaId(2)), (Spi(0x1000), SA)],
            ..FakeSas::default()
        }
    }

    /// From where no peer is.
    fn look(sas: &FakeSas, taker: bool, header: &Header, notifies: &[Notify]) -> Finding {
        examine(sas, taker, header, notifies, &|_| false)
    }

    fn header(spis: IkeSpis) -> Header {
        Header { spis, next_payload: 41, exchange: 37, response: true, initiator: false, message_id: 3 }
    }

    fn zero() -> Header {
        let spis = IkeSpis { initiator: [0; 8], responder: [0; 8] };
        Header { response: false, initiator: true, message_id: 0, ..header(spis) }
    }

    fn notify(kind: u16, data: &[u8]) -> Notify {
        Notify { kind, protocol: 0, spi: Vec::new(), data: data.to_vec() }
    }

    fn token(data: &[u8]) -> Notify {
        Notify { protocol: 1, ..notify(16419, data) }
    }

    fn proof(finding: &Finding) -> Option<IkeSaId> {
        finding.proof.as_ref().map(|(ike, _)| *ike)
    }

    /// RFC 6290 section 3: compared with the token stored for the IKE SA of the header's SPIs.
    #[test]
    fn a_token_matches_under_the_spis_of_its_own_ike_sa_only() {
        let good = [notify(4, &[]), token(&TOKEN)];
        assert_eq!(proof(&look(&sas(), true, &header(pair(1)), &good)), Some(SA));
        let other_sa = look(&sas(), true, &header(pair(2)), &good);
        assert!(other_sa.proof.is_none() && other_sa.token_failed && other_sa.hint);
        let half_right = IkeSpis { responder: [9; 8], ..pair(1) };
        let unknown = look(&sas(), true, &header(half_right), &good);
        assert!(unknown.proof.is_none() && unknown.token_failed && unknown.candidates.is_empty());
    }

    /// RFC 7296 section 3.10: the Protocol ID of an empty SPI is ignored; RFC 6290 section 4.1: SPI Size 0; section
    /// 5: 16 to 128 octets.
    #[test]
    fn the_protocol_id_means_nothing_but_an_spi_or_a_wrong_length_is_malformed() {
        let one = |notify: Notify| proof(&look(&sas(), true, &header(pair(1)), &[notify]));
        for protocol in [0, 1, 3, 255] {
            assert_eq!(one(Notify { protocol, ..token(&TOKEN) }), Some(SA));
        }
        assert_eq!(one(Notify { spi: vec![0; 8], ..token(&TOKEN) }), None);
        let mut many = sas();
        many.ike_sas[0].2 = vec![vec![1; 15], vec![2; 16], vec![3; 128], vec![4; 129]];
        let of = |length: usize, octet: u8| {
            proof(&look(&many, true, &header(pair(1)), &[token(&vec![octet; length])]))
        };
        assert_eq!([of(15, 1), of(16, 2), of(128, 3), of(129, 4)], [None, Some(SA), Some(SA), None]);
    }

    /// RFC 6290 section 4.5: four tokens in a packet MUST be supported; any one that matches suffices.
    #[test]
    fn the_fourth_of_four_tokens_is_found_and_two_hundred_are_bounded_work() {
        let mut tokens =
            vec![notify(4, &[]), token(&[1; 32]), token(&[2; 32]), token(&[3; 32]), token(&TOKEN)];
        assert_eq!(proof(&look(&sas(), true, &header(pair(1)), &tokens)), Some(SA));
        tokens.splice(1..1, (0..200).map(|n| token(&[n as u8; 32])));
        assert_eq!(proof(&look(&sas(), true, &header(pair(1)), &tokens)), None);
    }

    /// RFC 6290 section 8.2: as if it had come with the parent's IKE SPIs; several peers may share the SPI.
    #[test]
    fn a_token_with_invalid_spi_is_checked_for_every_sa_that_sends_on_it() {
        let spi = 0x1000u32.to_be_bytes();
        let finding = look(&sas(), true, &zero(), &[notify(11, &spi), token(&TOKEN)]);
        assert_eq!(proof(&finding), Some(SA), "only the SA whose token it is");
        let under_parent = Header { spis: pair(1), ..zero() };
        let finding = look(&sas(), true, &under_parent, &[notify(11, &[0, 0, 0, 9]), token(&TOKEN)]);
        assert_eq!(proof(&finding), Some(SA), "the parent's pair in the header is accepted too");
        let other = look(&sas(), true, &zero(), &[notify(11, &[0, 0, 0, 9]), token(&TOKEN)]);
        assert!(other.proof.is_none() && other.candidates.is_empty());
    }

    /// RFC 6290 section 8.1 and 3: switched off, tokens mean nothing; hints remain.
    #[test]
    fn without_the_taker_a_token_is_ignored_and_the_hint_beside_it_stays() {
        let finding = look(&sas(), false, &header(pair(1)), &[notify(4, &[]), token(&TOKEN)]);
        assert!(finding.proof.is_none() && finding.token_ignored && !finding.token_failed);
        assert_eq!(finding.to_probe().collect::<Vec<_>>(), [SA]);
    }

    /// RFC 7296 section 2.4: a message in clear starts a liveness check at most.
    #[test]
    fn a_hint_names_the_sas_to_check_and_other_notifications_none() {
        let spi = 0x1000u32.to_be_bytes();
        let by_pair = look(&sas(), true, &header(pair(2)), &[notify(4, &[])]);
        assert_eq!(by_pair.to_probe().collect::<Vec<_>>(), [IkeSaId(2)]);
        let by_spi = look(&sas(), true, &zero(), &[notify(11, &spi)]);
        assert_eq!(by_spi.to_probe().collect::<Vec<_>>(), [IkeSaId(2), SA]);
        let nothing = look(&sas(), true, &header(pair(1)), &[notify(24, &[]), notify(16384, &[])]);
        assert_eq!(nothing.to_probe().count(), 0);
        for data in [&[][..], &[1, 2, 3], &[0; 5]] {
            assert_eq!(look(&sas(), true, &zero(), &[notify(11, data)]).to_probe().count(), 0);
        }
    }

    #[test]
    fn many_sas_that_share_an_spi_are_bounded_work() {
        let mut many = sas();
        many.outbound = (0..10_000).map(|n| (Spi(7), IkeSaId(n))).collect();
        let finding = look(&many, true, &zero(), &[notify(11, &[0, 0, 0, 7])]);
        assert_eq!(finding.candidates.len(), MAX_CANDIDATES);
        assert_eq!(finding.to_probe().count(), MAX_PROBED);
    }

    /// Peers choose their SPIs; one that is among very many with the same is heard from where it is.
    #[test]
    fn of_many_sas_that_share_an_spi_those_at_the_source_are_looked_at_first() {
        let (mut many, spi) = (sas(), notify(11, &[0, 0, 0, 7]));
        many.outbound = (0..10_000).map(|n| (Spi(7), IkeSaId(n))).collect();
        let there = IkeSaId(9_000);
        many.ike_sas.push((there, pair(3), vec![TOKEN.to_vec()]));
        let at_source = |ike: IkeSaId| ike == there;
        let hint = examine(&many, true, &zero(), std::slice::from_ref(&spi), &at_source);
        assert_eq!(hint.to_probe().collect::<Vec<_>>(), [there, IkeSaId(0), IkeSaId(1), IkeSaId(2)]);
        assert_eq!(proof(&examine(&many, true, &zero(), &[spi, token(&TOKEN)], &at_source)), Some(there));
    }
}
