//! IKEv2 (RFC 7296) without I/O: datagrams, commands and the time go in; datagrams, dataplane commands and
//! reports come out.

#![forbid(unsafe_code)]

pub mod api;
mod endpoint;
pub mod random;

pub use endpoint::Endpoint;
