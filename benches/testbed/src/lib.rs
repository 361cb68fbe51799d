//! The testbed: two hosts, two gateways and a delay box on one machine, with traffic, captures and their analysis.
//!
//! ```text
//! topology   five namespaces, veth pairs          gateway    `spindle up` in its namespace, kill -9, events
//! delay      half the round-trip time each way    traffic    a steady stream, TCP, UDP sizes, ping
//! stage      a tunnel and traffic, on which a play is made: `crash` is the simplest, the lab's drills are others
//! capture ─► pcap ─► event ─► timeline            leak       no inside address, no marker on the outer wire
//!                                                 compare    the wire's counts against the gateways' own
//! ```
//!
//! [`Testbed`] joins them. What it makes is removed when it drops, on a panic and on SIGINT, SIGTERM or SIGHUP; what
//! a killed one left behind goes at the next start.

#![forbid(unsafe_code)]

mod capture;
mod cleanup;
mod compare;
pub mod craft;
mod crash;
mod delay;
mod error;
mod event;
mod flood;
mod frame;
mod gateway;
mod keepalived;
mod leak;
mod linux_peer;
mod method;
mod moments;
mod namespace;
mod narrow;
mod packet;
mod pcap;
mod stage;
mod storm;
pub mod strongswan;
mod testbed;
mod timeline;
mod topology;
mod traffic;
mod vlan;

pub use capture::Capture;
pub use cleanup::{PREFIX, prepare};
pub use compare::{Tally, disagreements};
pub use crash::{Plan, Run, crash};
pub use delay::{DelayBox, DelayCounters, Filter, Link, Verdict};
pub use error::{Error, Result};
pub use event::{IkeMessage, Kind, Notify, WireEvent, number, wire_events};
pub use flood::Flood;
pub use gateway::{Background, Gateway, GatewayEvent, Retransmit, Settings, programs};
pub use keepalived::Keepalived;
pub use leak::{InsideNetwork, Leak, Place, leaks};
pub use linux_peer::LinuxPeer;
pub use method::Method;
pub use moments::{Moment, moments};
pub use namespace::{Namespace, parse_mac};
pub use narrow::{narrow, shred};
pub use packet::now;
pub use pcap::{Frame, Reader, Writer};
pub use stage::{SIDES, Seen, Stage};
pub use storm::{absorb_answers, storm};
pub use strongswan::Strongswan;
pub use testbed::{Options, Testbed, Wires};
pub use timeline::{Counts, Crash, Exchange, Question, Recovery, Timeline};
pub use topology::{
    Addresses, IPV6_PREFIX, Layout, Member, Network, Side, Topology, Version, Versions, ipv6,
};
pub use traffic::{
    Delivery, Host, Marker, Outage, Stream, StreamLog, Transfer, ping, tcp_transfer, udp_sweep,
};
