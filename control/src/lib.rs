//! The control process and the `spindle` command line.
//!
//! [`config`] reads the file that all parts share. `spindle up` ([`supervisor`]) sets the [`guard`], makes the
//! rings and starts `spindle-dataplane` and `spindle-control`; the latter carries datagrams and events between
//! sockets, rings and [`spindle_recovery`]'s gateway, and keeps on disk what must survive.

#![forbid(unsafe_code)]

pub mod config;
pub mod guard;
