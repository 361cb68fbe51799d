//! How much memory an SA takes, with all that points to it or that it points to: measured by what the process has.

mod common;

use common::*;
use spindle_abi::{Command, PolicyAction, SaParameters, Suite, Time};
use spindle_aead::Provider;
use spindle_engine::{Engine, EngineConfig, PortConfig};
use std::net::Ipv4Addr;

/// Pairs of SAs: as many SPIs as fill the SPI table up to its bound.
const PAIRS: u32 = 12_288;
/// An engine for so many pairs, each for one host, with replay windows of 1,024 packets.
fn engine(provider: Provider, suite: Suite) -> Engine {
    let port =
        PortConfig { mac: INSIDE_MAC, mtu: 1500, complete_checksums: false, address: None, address_v6: None };
    let mut config = EngineConfig::new(vec![OUTER_B.into()], port.clone(), port);
    (config.max_sas, config.max_spis, config.max_flows) = (2 * PAIRS, PAIRS, 0);
    config.provider = provider;
    let mut engine = Engine::new(config);
    let mut apply = |command| engine.apply(Time(1), command).unwrap();
    let everything = selectors(HOST_B, HOST_A);
    apply(Command::SetPolicy {
        id: POLICY,
        priority: 1,
        action: PolicyAction::Protect,
        selectors: everything,
        hold: 0,
    });
    for pair in 0..PAIRS {
        let host = Ipv4Addr::from(u32::from(HOST_A) + pair);
        let of = |spi: u32, index| SaParameters {
            selectors: selectors(HOST_B, host),
            ..sa(spi, index, false, suite, false)
        };
        // SPIs are random numbers.
        let spi = |n: u32| n.wrapping_mul(0x9e37_79b1) | 0x100;
        let (inbound, outbound) = (of(spi(2 * pair + 2), 2 * pair), of(spi(2 * pair + 3), 2 * pair + 1));
        apply(Command::InstallInbound { sa: inbound, replay_window: 1024, report_first: true });
        apply(Command::InstallOutbound { sa: outbound });
    }
    engine
}

/// Octets of this process's memory that are in use: a reservation that nothing was written to takes none.
fn resident() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<i64>().unwrap() * 1024
}

/// Keys, windows, selectors, limits, the SPI table, lists of what is to be told, and what the allocator adds: all of it.
/// The mean of both directions: only an inbound SA has a window.
#[test]
fn an_sa_takes_at_most_640_octets() {
    let provider = Provider::choose().unwrap().provider;
    // AES-256 has four keys of rounds more; ChaCha20-Poly1305's key is as large as AWS-LC makes it.
    for (suite, most) in [(Suite::Aes128Gcm, 640), (Suite::Aes256Gcm, 704), (Suite::ChaCha20Poly1305, 1024)] {
        let before = resident();
        let engine = engine(provider, suite);
        let each = (resident() - before) / i64::from(2 * PAIRS);
        assert_eq!(engine.spi_count(), PAIRS as usize);
        assert!((256..=most).contains(&each), "{provider}, {suite:?}: {each} octets for each SA");
        // So that the next one does not take what a freed one leaves behind.
        std::mem::forget(engine);
    }
}
