//! What DPDK's programs print each second.

/// Packets sent so far, if this line of ipsec-secgw's statistics says it.
pub(super) fn sent_by_secgw(line: &str) -> Option<u64> {
    line.strip_prefix("Total packets sent:")?.trim().parse().ok()
}

/// Packets sent so far by a port, if this line of testpmd's statistics says it. (At its end it says it in another form.)
pub(super) fn sent_by_testpmd(line: &str) -> Option<u64> {
    let (count, rest) = line.trim_start().strip_prefix("TX-packets:")?.trim_start().split_once(' ')?;
    rest.trim_start().starts_with("TX-errors").then(|| count.parse().ok()).flatten()
}

/// Packets that ipsec-secgw dropped so far.
pub(super) fn dropped_by_secgw(line: &str) -> Option<u64> {
    line.strip_prefix("Total packets dropped:")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secgw_s_aggregate_is_read() {
        let text = "\x1b[2J\x1b[1;1H\nCore statistics ====================================\n\
                    Statistics for core 1 ------------------------------\nPackets received:              1407392\n\
                    Packets sent:                  1407360\nPackets dropped:                     7\n\
                    Aggregate statistics ===============================\nTotal packets received:        1407392\n\
                    Total packets sent:            1407360\nTotal packets dropped:              12\n\
                    Total frag packets dropped:          0\n";
        assert_eq!(text.lines().filter_map(sent_by_secgw).collect::<Vec<_>>(), [1_407_360]);
        assert_eq!(text.lines().filter_map(dropped_by_secgw).collect::<Vec<_>>(), [12]);
    }

    #[test]
    fn testpmd_s_ports_are_read_and_its_last_words_are_not() {
        let text = "  ######################## NIC statistics for port 0  ########################\n  \
                    RX-packets: 16498336   RX-missed: 0          RX-bytes:  1286870208\n  RX-errors: 0\n  \
                    TX-packets: 0          TX-errors: 0          TX-bytes:  0\n  Tx-pps:            0\n  \
                    TX-packets: 16382624   TX-errors: 0          TX-bytes:  0\n  \
                    TX-packets: 24422304       TX-dropped: 0             TX-total: 24422304\n";
        assert_eq!(text.lines().filter_map(sent_by_testpmd).collect::<Vec<_>>(), [0, 16_382_624]);
    }
}
