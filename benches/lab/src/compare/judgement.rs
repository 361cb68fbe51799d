//! What no clock shows: what each kind of attacker can do to a method, and what is known of claims on it.
//!
//! Each entry says whether it was *run*, by the name of a test, or only *reasoned*.

/// How an entry is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Known {
    /// By these tests.
    Run(&'static [&'static str]),
    /// By thought alone.
    Reasoned,
}

/// An attacker.
pub(crate) const ATTACKERS: [&str; 4] =
    ["sends, sees nothing", "reads all, and sends", "stands between and drops", "has a file of the gateway"];

/// What each attacker of [`ATTACKERS`] can do.
type Row = [(&'static str, Known); 4];

const DROPS: (&str, Known) = ("times any SA out, as with plain IKEv2", Known::Reasoned);
const BY_TOKEN: Row = [
    (
        "at most one liveness check outstanding for each IKE SA, begun once and sent ten times a second; a flood does not hide \
         the true token",
        Known::Run(&[
            "a_flood_of_forged_notifications_neither_harms_nor_hides_the_truth",
            "in_a_storm_of_forged_notifications_a_gateway_that_is_down_is_asked_within_limits",
        ]),
    ),
    ("no token of a living IKE SA can be had", Known::Run(&["no_token_leaves_for_a_living_sa"])),
    DROPS,
    ("the secret: ends every IKE SA whose SPIs he reads, until the secret is replaced", Known::Reasoned),
];

/// A method's row.
pub(crate) fn attackers(method: &str) -> Row {
    match method {
        "liveness" => [
            ("liveness checks, limited as with qcd", Known::Reasoned),
            (
                "the same; no IKE SA ends by what he forges",
                Known::Run(&["loss_in_one_direction_and_forged_notifications_end_no_ike_sa"]),
            ),
            DROPS,
            ("nothing: no file is kept for it", Known::Reasoned),
        ],
        "initial-contact" => [
            ("nothing more than with IKEv2: it is authenticated", Known::Reasoned),
            ("the same", Known::Reasoned),
            DROPS,
            ("nothing by the journal: it holds no key", Known::Reasoned),
        ],
        "qcd-resumption" => [
            BY_TOKEN[0],
            (
                "the same; a ticket that he replays is refused, after a crash too",
                Known::Run(&["a_used_ticket_is_refused_after_the_next_crash"]),
            ),
            DROPS,
            ("as qcd; the ticket's key: decrypts what a recorded resumption made", Known::Reasoned),
        ],
        "proactive" => [
            BY_TOKEN[0],
            (
                "reads tokens of IKE SAs that are lost, never of one that lives",
                Known::Run(&["a_second_restart_tells_again_and_never_of_what_lives"]),
            ),
            DROPS,
            BY_TOKEN[3],
        ],
        "sir" => [
            (
                "one query per IKE SA and second; a NACK without our cookie does nothing",
                Known::Run(&["a_nack_that_does_not_answer_our_query_does_nothing"]),
            ),
            (
                "his hints have the peer asked, once a second; no NACK of his is believed where the peer's ACK comes. Only \
                 reasoned: queries of his own can use up the peer's ACKs, and then he can what one who drops can",
                Known::Run(&[
                    "an_ack_ends_it_and_the_peer_is_not_asked_again_for_a_while",
                    "a_forged_nack_before_the_ack_does_nothing",
                ]),
            ),
            (
                "has one IKE SA made anew in each dampening interval; the old one lives until then",
                Known::Run(&["whoever_stands_in_between_can_at_most_have_an_ike_sa_made_anew"]),
            ),
            ("nothing: no file is kept for it", Known::Reasoned),
        ],
        _ if method.starts_with("strongswan") => [
            ("nothing: it takes no notice of unprotected notifications", Known::Reasoned),
            ("the same", Known::Reasoned),
            DROPS,
            ("nothing: no file is kept for it", Known::Reasoned),
        ],
        _ => BY_TOKEN,
    }
}

/// What is known of claims on a method.
pub(crate) fn claims(method: &str) -> &'static str {
    match method {
        "sir" => {
            "the draft's page at tools.ietf.org (draft-detienne-ikev2-recovery-03) shows a link to an IPR disclosure, and the \
             working group's list spoke of one with an author of the draft, then at Cisco, in March 2010 (\"IPR statement for \
             draft-detienne-ikev2-recovery\"); its number and terms were not found"
        }
        "qcd" | "qcd-journal" | "proactive" => {
            "nothing found for RFC 6290; the page of draft-nir-ike-qcd-00 shows no link to a disclosure, which proves nothing"
        }
        "qcd-resumption" => "as qcd; disclosures on RFC 5723 were not looked up",
        _ => "it needs nothing but IKEv2 itself; disclosures on RFC 7296 were not looked up",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Contender;

    fn sources(folder: &std::path::Path, text: &mut String) {
        for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            if path.is_dir() && !matches!(name.to_str(), Some("target" | ".git")) {
                sources(&path, text);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                text.push_str(&std::fs::read_to_string(&path).expect("a file"));
            }
        }
    }

    #[test]
    fn every_test_that_is_named_exists() {
        let root = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
        let mut text = String::new();
        sources(&root.join("control"), &mut text);
        sources(&root.join("benches"), &mut text);
        let mut named = 0;
        for (_, known) in Contender::all().iter().flat_map(|method| attackers(&method.to_string())) {
            if let Known::Run(tests) = known {
                named += 1;
                for test in tests {
                    assert!(text.contains(&format!("#[test]\nfn {test}()")), "there is no test {test}");
                }
            }
        }
        assert!(named >= 10, "{named} entries were run");
    }
}
