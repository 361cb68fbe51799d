//! IKEv2 (RFC 7296) without I/O: datagrams, commands and the time go in; datagrams, dataplane commands and
//! reports come out.

#![forbid(unsafe_code)]

pub mod api;
pub mod crypto;
mod endpoint;
pub mod random;
pub mod wire;

pub use endpoint::Endpoint;
