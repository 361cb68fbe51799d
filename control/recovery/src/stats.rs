//! Named counters. A reason why something was not done is a counter's index, so none can be left uncounted.

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// What is counted.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(crate) enum Counter { $($(#[$doc])* $variant,)* }

        const NAMES: &[&str] = &[$($name,)*];
        const ALL: &[Counter] = &[$(Counter::$variant,)*];
    };
}

counters! {
    /// Tokens that left in clear.
    TokensSent = "tokens-sent",
    /// IKE SAs taken over from a control process that died alone.
    Adopted = "ike-sas-adopted",
    /// What such a process left and could not be read.
    AdoptionLost = "adoption-records-lost",
    /// INVALID_IKE_SPI sent, with a token or without.
    InvalidIkeSpiSent = "invalid-ike-spi-sent",
    /// INVALID_SPI sent, with a token or without.
    InvalidSpiSent = "invalid-spi-sent",
    /// INVALID_SPI sent under the protection of an IKE SA.
    InvalidSpiProtected = "invalid-spi-sent-protected",
    /// INVALID_SPI not sent under the protection of an IKE SA, for one about another SPI waits for an exchange under way.
    InvalidSpiWindow = "invalid-spi-exchange-under-way",
    /// INVALID_SPI received under the protection of an IKE SA.
    InvalidSpiReceived = "invalid-spi-received-protected",
    /// Child SAs made again after the peer had lost them.
    Rebuilt = "child-sas-rebuilt",
    /// Not made again, for one was a moment ago.
    RebuiltTooSoon = "child-sas-rebuilt-too-soon",
    /// ESP on SPIs that were unknown to the dataplane and are not to control.
    KnownSpi = "known-spi-events",
    /// Datagrams and ESP at addresses that serve no connection, or that another member of the cluster has.
    Elsewhere = "elsewhere",
    /// Unmatched requests over the budget even of plain answers.
    RequestsUnanswered = "requests-over-budget",
    /// Unmatched messages that are never answered: responses, IKE_SA_INIT, IKE_SESSION_RESUME.
    NeverAnswered = "never-answered",
    /// Requests that name an IKE SPI in use here.
    RequestsInUse = "requests-naming-spi-in-use",
    /// ESP on former SPIs whose answer waits until another handshake can be taken.
    FormerWaits = "former-spi-waits-for-its-turn",
    /// ESP on former SPIs, and requests for IKE SAs of the journal, of connections that we are initiating ourselves.
    FormerInitiating = "former-spi-own-initiation",
    /// Requests and SIR's queries about lost IKE SAs while no other handshake can be taken.
    RequestsPaced = "requests-over-handshakes",
    /// Tokens that left unasked, after a start.
    TokensUnasked = "tokens-sent-unasked",
    /// ESP on former SPIs sooner than the interval.
    FormerHeldBack = "former-spi-over-budget",
    /// The same to addresses that the journal does not name.
    FormerOtherHeldBack = "former-spi-other-source-over-budget",
    /// ESP on unknown SPIs over the budget.
    UnknownHeldBack = "unknown-spi-over-budget",
    /// ESP on unknown SPIs.
    UnknownSpi = "unknown-spi-events",
    /// ESP on former SPIs.
    FormerSpi = "former-spi-events",
    /// Token withheld: we are no token maker, or have no secret.
    WithheldSwitchedOff = "token-withheld-switched-off",
    /// Token withheld: control is not authoritative.
    WithheldNotAuthoritative = "token-withheld-not-authoritative",
    /// Token withheld: no protected request.
    WithheldTrigger = "token-withheld-trigger",
    /// Token withheld: the IKE SA ended by an exchange.
    WithheldTombstone = "token-withheld-tombstone",
    /// Token withheld: an IKE SPI is in use.
    WithheldSpiInUse = "token-withheld-spi-in-use",
    /// Token withheld: an IKE SPI is zero, so it names no IKE SA.
    WithheldZeroSpi = "token-withheld-zero-spi",
    /// Token withheld: the record is of this incarnation.
    WithheldSameIncarnation = "token-withheld-same-incarnation",
    /// Token withheld: the packet came to an address that does not serve the connection.
    WithheldAddress = "token-withheld-address",
    /// Token withheld: the anchor does not match.
    WithheldAnchor = "token-withheld-anchor",
    /// Token withheld: over the budget.
    WithheldBudget = "token-withheld-over-budget",
    /// Unauthenticated hints received.
    Hints = "hints",
    /// Hints that name no SA of ours.
    HintsUnknown = "hints-unknown-sa",
    /// Hints sooner after the last one about the same IKE SA than allowed.
    HintsTooSoon = "hints-too-soon",
    /// Hints over the budget of all IKE SAs.
    HintsOverBudget = "hints-over-budget",
    /// Liveness exchanges begun on a hint.
    ProbesStarted = "probes-started",
    /// Outstanding requests sent again on a hint.
    ProbesSentAgain = "probes-sent-again",
    /// Tokens that matched.
    Proofs = "proofs",
    /// Packets with tokens of which none matched.
    TokensFailed = "token-checks-failed",
    /// Of these, not logged.
    TokensFailedUnlogged = "token-checks-failed-not-logged",
    /// Packets with tokens while we are no token taker.
    TokensIgnored = "tokens-ignored",
    /// Commands that the dataplane refused.
    CommandsRefused = "commands-refused",
    /// Former SPIs that expired.
    FormerExpired = "former-spis-expired",
    /// Tokens sent, protected, in place of ones that can be made no longer.
    TokensReplaced = "tokens-replaced",
    /// New generations of the secret.
    SecretsRotated = "secrets-rotated",
    /// Initiations after a proof.
    Reinitiated = "reinitiated",
    /// Initiations after a start, for peers that we had or may have had.
    InitiatedAfterStart = "initiated-after-start",
    /// Peers that have acknowledged our REDIRECT, or were told in IKE_AUTH (RFC 5685).
    PeersRedirected = "peers-redirected",
    /// Redirects of ours by peers, followed.
    RedirectsFollowed = "redirects-followed",
    /// Redirects of ours by peers, not followed.
    RedirectsRefused = "redirects-refused",
    /// Tickets granted (RFC 5723).
    TicketsGranted = "tickets-granted",
    /// Tickets by which a peer resumed.
    TicketsAccepted = "tickets-accepted",
    /// Tickets refused: not ours, damaged, or of a key that is gone.
    TicketsForeign = "tickets-foreign",
    /// Tickets refused: expired.
    TicketsExpired = "tickets-expired",
    /// Tickets refused: used before, or use could not be remembered.
    TicketsUsed = "tickets-used",
    /// SIR: hints from a peer that is dampened; they are hints as others.
    SirDampened = "sir-hints-dampened",
    /// SIR: queries sent, those sent again included.
    SirQueriesSent = "sir-queries-sent",
    /// SIR: queries not sent, for there were too many.
    SirQueriesOverBudget = "sir-queries-over-budget",
    /// SIR: queries given up.
    SirQueriesUnanswered = "sir-queries-unanswered",
    /// SIR: ACKs to our queries: the IKE SA is there.
    SirAcks = "sir-acks",
    /// SIR: NACKs to our queries: it is not.
    SirNacks = "sir-nacks",
    /// SIR: both, or an authenticated packet after a NACK.
    SirContradicted = "sir-contradicted",
    /// SIR: losses confirmed.
    SirConfirmations = "sir-confirmations",
    /// SIR: answers whose cookie is not of our query, or stale.
    SirCookiesInvalid = "sir-cookies-invalid",
    /// SIR: answers to nothing asked.
    SirUnexpected = "sir-answers-unexpected",
    /// SIR: messages that make no sense.
    SirMalformed = "sir-malformed",
    /// SIR: queries received.
    SirQueriesReceived = "sir-queries-received",
    /// SIR: ACKs sent.
    SirAcksSent = "sir-acks-sent",
    /// SIR: NACKs sent.
    SirNacksSent = "sir-nacks-sent",
    /// SIR: queries not answered: not ready, or asked at an address that serves no connection.
    SirAnswersWithheld = "sir-answers-withheld",
    /// SIR: queries not answered, for there were too many.
    SirAnswersOverBudget = "sir-answers-over-budget",
    /// SIR: protected queries about an ESP SA, answered.
    SirProtectedQueries = "sir-protected-queries",
    /// SIR: protected ACKs of an ESP SA.
    SirProtectedAcks = "sir-protected-acks",
    /// SIR: protected NACKs of an ESP SA.
    SirProtectedNacks = "sir-protected-nacks",
}

/// The counters of a gateway.
#[derive(Clone, Debug)]
pub(crate) struct Stats([u64; ALL.len()]);

impl Default for Stats {
    fn default() -> Stats {
        Stats([0; ALL.len()])
    }
}

impl Stats {
    pub(crate) fn count(&mut self, counter: Counter) {
        self.add(counter, 1);
    }

    pub(crate) fn add(&mut self, counter: Counter, n: u64) {
        self.0[counter as usize] += n;
    }

    #[cfg(test)]
    pub(crate) fn of(&self, counter: Counter) -> u64 {
        self.0[counter as usize]
    }

    pub(crate) fn all(&self) -> Vec<(&'static str, u64)> {
        ALL.iter().map(|counter| (NAMES[*counter as usize], self.0[*counter as usize])).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_has_a_name_of_its_own() {
        let mut stats = Stats::default();
        stats.count(Counter::Proofs);
        let all = stats.all();
        let names: std::collections::BTreeSet<_> = all.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), all.len());
        assert_eq!(all.iter().find(|(name, _)| *name == "proofs"), Some(&("proofs", 1)));
    }
}
