//! The lab: ways in which gateways lose each other, played with real ones, and what each method of recovery makes of them.
//!
//! ```text
//! Scenario ─► play (on a testbed's stage) ─► Played ─┐
//!                                  captures, reports ┴► Outcome ─► people, JSON
//! ```
//!
//! [`drill()`] does one; [`compare`] does all, many times, and puts them side by side.

#![forbid(unsafe_code)]

pub mod compare;
mod contender;
mod drill;
mod journal;
mod outcome;
mod play;
mod scenario;
mod watch;

pub use contender::Contender;
pub use drill::{Drill, NEVER, Step, drill};
pub use outcome::Outcome;
pub use scenario::Scenario;
