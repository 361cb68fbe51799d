//! `recycle`: the gateway's own XDP program, sockets and receive loop, and a worker that does nothing with a frame
//! but give it back. What this receives is what the port can do.

use crate::interface::Interface;
use crate::send::{pin, stop_flag};
use anyhow::{Context, Result};
use clap::Args;
use serde::{Deserialize, Serialize};
use spindle_abi::RING_SIZE;
use spindle_bpf::steer::{MAX_SPIS, Mode, NAT_PORT, Side, Steer};
use spindle_engine::{ArrayVec, BURST};
use spindle_port::{Port, WorkerPorts, bind_workers};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

#[derive(Args)]
pub(crate) struct RecycleArguments {
    /// The unprotected side, where the storm arrives
    #[arg(long)]
    interface: String,
    /// The protected side
    #[arg(long)]
    inside: String,
    /// Our address, to which the storm is sent
    #[arg(long)]
    address: Ipv4Addr,
    /// Seconds to stay
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// The worker's core
    #[arg(long)]
    core: Option<usize>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What `recycle` tells.
#[derive(Serialize, Deserialize, Clone, Debug, Default)]
pub(crate) struct Recycled {
    /// Frames that the worker received and gave back.
    pub(crate) received: u64,
    /// Frames that XDP gave to the socket and that it had no room for.
    pub(crate) dropped_by_socket: u64,
    /// How often there was no empty frame; in copy mode such frames are among those dropped.
    pub(crate) fill_empty: u64,
    /// XDP's decisions.
    pub(crate) xdp: BTreeMap<String, u64>,
}

/// Receives and recycles.
pub(crate) fn recycle(arguments: &RecycleArguments) -> Result<()> {
    let (inside, outside) = (Interface::find(&arguments.inside)?, Interface::find(&arguments.interface)?);
    let mut steer = Steer::load(&[arguments.address.into()], NAT_PORT, MAX_SPIS)?;
    let mut bound = bind_workers(Some(inside.index), outside.index, 1, RING_SIZE)?;
    let WorkerPorts { inside: _inside, outside: mut port, mut pool } = bound.remove(0);
    steer.set_socket(Side::Outside, 0, port.as_fd())?;
    steer.set_background(0, port.background().context("the outside port has no background")?)?;
    steer.attach(Side::Outside, outside.index, Mode::Native)?;
    if let Some(core) = arguments.core {
        pin(core)?;
    }
    let stop = stop_flag()?;
    let end = Instant::now() + Duration::from_secs_f64(arguments.seconds.clamp(0.0, 3600.0));
    if arguments.json {
        println!("{{\"ready\":true}}");
    }
    let mut told = Recycled::default();
    let mut burst = ArrayVec::<_, BURST>::new();
    while Instant::now() < end && !stop.load(Ordering::Relaxed) {
        // The clock is looked at now and then only.
        for _ in 0..1024 {
            port.receive(&mut burst);
            told.received += burst.len() as u64;
            burst.drain(..).for_each(|frame| pool.put(frame));
            port.replenish(&mut pool);
        }
    }
    let counts = port.counts()?;
    told.dropped_by_socket = counts.dropped + counts.ring_full;
    told.fill_empty = counts.fill_empty;
    told.xdp = steer.counts()?.into_iter().map(|(name, count)| (name.to_owned(), count)).collect();
    if arguments.json {
        println!("{}", serde_json::to_string(&told)?);
    } else {
        println!("{} frames received, {} dropped by the socket", told.received, told.dropped_by_socket);
    }
    Ok(())
}
