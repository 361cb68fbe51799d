//! A concentrator with very many peers crashes: how long until they are back, and what it costs.
//!
//! Both sides' control planes are the real ones ([`spindle_recovery::Gateway`]), every message is one that they made,
//! and the crashed gateway starts again from its real store. What is not real is around them: the clock jumps from one
//! thing due to the next, packets are SPIs that arrive or don't, and the concentrator is a server that takes as long for
//! each piece of work as the same work took on this machine ([`costs`]), while what comes waits in bounded queues.
//!
//! Very many peers are played frugally ([`scenario::Scenario::frugal`]).
//!
//! Data goes one way: [`scenario`] → [`world`] (with [`server`], [`peer`]) → [`summary`] → [`report`]. [`checks`] times what
//! a single peer is told.

#![forbid(unsafe_code)]

pub mod checks;
pub mod costs;
mod peer;
pub mod report;
pub mod scenario;
mod server;
pub mod summary;
mod work;
pub mod world;
