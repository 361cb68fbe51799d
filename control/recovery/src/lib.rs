//! The heart: SPI states, hint → confirmation → proof, QCD (RFC 6290), limits, journal records. No I/O.

#![forbid(unsafe_code)]

pub mod api;
mod gateway;
mod record;
pub mod secrets;
pub mod store;

pub use gateway::{ConnectionStatus, Gateway};
