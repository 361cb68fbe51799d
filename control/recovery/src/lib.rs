//! The heart: SPI states, hint → confirmation → proof, QCD (RFC 6290), limits, journal records. No I/O.

#![forbid(unsafe_code)]

mod answer;
pub mod api;
mod capacity;
mod changes;
mod gateway;
mod given;
mod hints;
mod journal;
mod limits;
mod line;
mod message;
mod qcd;
mod reconnect;
mod record;
mod rotation;
pub mod secrets;
mod sir;
mod spd;
mod stats;
pub mod store;
mod taker;
#[cfg(test)]
mod testing;
mod tickets;
mod turns;

pub use changes::{Changes, ConnectionChange, PolicyChanges};
pub use gateway::{ConnectionStatus, Gateway, Left, Records, TakeDownRefused, TakeDownStatus};
pub use rotation::{GenerationStatus, Refused as RotationRefused, SecretStatus};
