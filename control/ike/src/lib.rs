//! IKEv2 (RFC 7296) without I/O: datagrams, commands and the time go in; datagrams, dataplane commands and
//! reports come out.

#![forbid(unsafe_code)]

mod admission;
pub mod api;
mod auth;
mod beside;
pub mod check_spi;
mod child;
mod child_refused;
mod collision;
mod connect;
mod cookie;
mod create_child;
pub mod crypto;
mod endpoint;
mod exchange;
mod informational;
mod init;
mod kept;
mod narrow;
pub mod random;
mod reconfigure;
mod redirect;
mod rekey_ike;
mod resources;
mod resume;
mod retransmit;
mod sa;
mod shared;
mod spi;
mod take_down;
mod ticket;
mod tombstone;
mod transport;
mod window;
pub mod wire;
mod wishes;

pub use admission::prefix;
pub use beside::SirPeer;
pub use endpoint::Endpoint;
pub use kept::LAYOUT;
pub use reconfigure::Ending;
