//! The testbed: two hosts, two gateways and a delay box on one machine, with traffic, captures and their analysis.
#![forbid(unsafe_code)]

mod capture;
mod cleanup;
pub mod craft;
mod delay;
mod error;
mod event;
mod frame;
mod leak;
mod namespace;
mod packet;
mod pcap;
pub mod strongswan;
mod timeline;
mod topology;

pub use capture::Capture;
pub use cleanup::{PREFIX, prepare};
pub use delay::{DelayBox, DelayCounters, Filter, Link, Verdict};
pub use error::{Error, Result};
pub use event::{IkeMessage, Kind, Notify, WireEvent, number, wire_events};
pub use leak::{InsideNetwork, Leak, Place, leaks};
pub use namespace::Namespace;
pub use packet::now;
pub use pcap::{Frame, Reader, Writer};
pub use timeline::{Counts, Crash, Exchange, Question, Recovery, Timeline};
pub use topology::{Addresses, Network, Side, Topology};
mod traffic;
pub use traffic::*;
