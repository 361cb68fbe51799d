//! A journal as an earlier incarnation left it.

use spindle_abi::{Spi, Time};
use spindle_control::config::Settings;
use spindle_control::daemon::disk::{Files, open_store};
use spindle_control::daemon::wall_clock_us;
use spindle_ike::api::IkeSpis;
use spindle_ike::random::Random;
use spindle_recovery::api::{JournalRecord, JournalWrite, TokenMethod};
use spindle_testbed::Gateway;

struct Counting(u8);

impl Random for Counting {
    fn fill(&mut self, octets: &mut [u8]) {
        for octet in octets {
            self.0 = self.0.wrapping_add(1);
            *octet = self.0;
        }
    }
}

/// Begins an incarnation of a gateway that does not run, and leaves so many records in its journal.
pub(crate) fn fill(gateway: &Gateway, records: u32) {
    let settings = Settings::load(&gateway.config()).unwrap();
    let mut store = open_store(&settings.gateway.state_dir).unwrap();
    let now = wall_clock_us() / 1_000_000;
    store
        .boot(&mut Files::new(&settings), &mut Counting(0), (now, Time(1)), false, TokenMethod::Spis)
        .unwrap();
    let record = |n: u32| JournalRecord {
        // Spread over all SPIs, as random ones are.
        spi: Spi((n + 1).wrapping_mul(0x9e37_79b1)),
        parent: IkeSpis { initiator: u64::from(n).to_be_bytes(), responder: [9; 8] },
        earlier_parent: None,
        initiator: n.is_multiple_of(2),
        connection: "ab".into(),
        child: "net".into(),
        local: "192.0.2.2:500".parse().unwrap(),
        remote: "192.0.2.1:500".parse().unwrap(),
        encapsulated: false,
        incarnation: 1,
        hard_expiry: now + 3600,
    };
    store.commit(&(0..records).map(|n| JournalWrite::Put(record(n))).collect::<Vec<_>>()).unwrap();
}
