//! Compares what the wire shows with what a gateway says of itself. Whoever counts an event that was not sent, or
//! sends one that is not counted, is found here.

use crate::timeline::Counts;

/// What a gateway counted, by the names in the `control` part of `spindle stats --json`, with what the wire shows.
fn pairs(counts: &Counts) -> [(&'static str, usize); 4] {
    [
        ("datagrams_sent", counts.ike_out),
        ("tokens-sent", counts.tokens),
        ("invalid-spi-sent", counts.invalid_spi),
        ("invalid-ike-spi-sent", counts.invalid_ike_spi),
    ]
}

/// Each counter of the restarted gateway that differs from the capture on its outer interface, in words; `counts`
/// must end when `stats` (from `spindle stats --json`) was taken. A counter that is missing differs too.
pub fn disagreements(counts: &Counts, stats: &serde_json::Value) -> Vec<String> {
    let judge = |(name, seen): (&str, usize)| {
        let said = stats["control"][name].as_u64();
        (said != u64::try_from(seen).ok()).then(|| match said {
            Some(said) => format!("{name}: the gateway counts {said}, its outer wire shows {seen}"),
            None => format!("{name}: the gateway does not count it, its outer wire shows {seen}"),
        })
    };
    pairs(counts).into_iter().filter_map(judge).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_difference_of_one_event_is_found_either_way() {
        let counts = Counts { ike_out: 3, tokens: 1, invalid_spi: 2, ..Counts::default() };
        let stats = |tokens: u64, invalid_spi: u64| json!({"control": {"datagrams_sent": 3, "tokens-sent": tokens, "invalid-spi-sent": invalid_spi, "invalid-ike-spi-sent": 0}});
        assert_eq!(disagreements(&counts, &stats(1, 2)), [""; 0]);
        assert_eq!(disagreements(&counts, &stats(0, 2)).len(), 1);
        assert_eq!(disagreements(&counts, &stats(1, 3)).len(), 1);
        let one_more = Counts { ike_out: 4, ..counts };
        assert_eq!(disagreements(&one_more, &stats(1, 2)).len(), 1);
        assert_eq!(disagreements(&counts, &json!({})).len(), 4);
    }
}
