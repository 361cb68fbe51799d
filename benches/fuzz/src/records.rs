//! Records from the other process decode or are refused, and what decodes encodes to itself.

use spindle_abi::{COMMAND_SIZE, CommandRecord, EVENT_SIZE, EventRecord};
use zerocopy::FromBytes;

/// The octets are a record, cut or filled with zeros.
pub fn run(data: &[u8]) {
    let mut octets = [0; COMMAND_SIZE];
    let length = data.len().min(COMMAND_SIZE);
    octets[..length].copy_from_slice(&data[..length]);
    let record = CommandRecord::read_from_bytes(&octets).expect("the size fits");
    if let (number, Ok(command)) = record.decode() {
        let again = CommandRecord::encode(number, &command).expect("what was decoded fits");
        assert_eq!(again.decode(), (number, Ok(command)));
    }
    let record = EventRecord::read_from_bytes(&octets[..EVENT_SIZE]).expect("the size fits");
    if let Ok(event) = record.decode() {
        assert_eq!(EventRecord::encode(&event).decode(), Ok(event));
    }
}
