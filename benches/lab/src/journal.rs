//! What a gateway writes to its journal for a Child SA, by the gateway's own encoder.

use spindle_recovery::api::JournalRecord;
use std::net::SocketAddr;

/// Octets of a record's key and value, with these names of connection and child.
pub(crate) fn octets(connection: &str, child: &str) -> u64 {
    let nowhere = SocketAddr::from(([0, 0, 0, 0], 500));
    let record = JournalRecord {
        spi: spindle_abi::Spi(0x1_0000),
        parent: spindle_ike::api::IkeSpis { initiator: [0; 8], responder: [0; 8] },
        earlier_parent: None,
        initiator: false,
        connection: connection.to_owned(),
        child: child.to_owned(),
        local: nowhere,
        remote: nowhere,
        encapsulated: false,
        incarnation: 0,
        hard_expiry: 0,
    };
    record.octets_on_disk() as u64
}
