//! Where storms happen: the testbed's topology, and children of this program that send and receive in it.

use crate::recycle::Recycled;
use crate::send::{Sent, Sunk, pin};
use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use spindle_testbed::{Addresses, Side, Topology, absorb_answers, storm};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The generator's core, and that of the receiving veth's NAPI.
pub(crate) const GENERATOR_CORE: usize = 0;
/// The worker's core.
pub(crate) const WORKER_CORE: usize = 1;

/// A storm's bounds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Seconds at most.
    pub(crate) seconds: f64,
    /// Frames at most.
    pub(crate) count: u64,
    /// Frames per second; 0 is as fast as possible.
    pub(crate) pps: u64,
    /// How far it yields to others on its core.
    pub(crate) nice: i32,
}

impl Bounds {
    /// As fast as possible.
    pub(crate) fn full(seconds: f64) -> Bounds {
        Bounds { seconds, count: u64::from(u32::MAX) - 256, pps: 0, nice: 0 }
    }
}

/// The topology, with no delay box running: nothing but storms passes it.
pub(crate) struct Field {
    pub(crate) topology: Topology,
}

impl Field {
    /// Makes the namespaces, and keeps this process and its children off the worker's core.
    pub(crate) fn create() -> Result<Field> {
        pin(GENERATOR_CORE)?;
        let topology = Topology::create(Addresses::default())?;
        absorb_answers(&topology, Side::B)?;
        Ok(Field { topology })
    }

    /// A child of this program that runs in gateway B's namespace, stands on its outer interface and says in a
    /// first line when it is there; then in another one what it saw.
    pub(crate) fn receiver(&self, arguments: &[&str]) -> Result<Receiver> {
        let mut command = self.topology.gateway(Side::B).command(std::env::current_exe()?);
        command.args(arguments).args(["--json", "--interface", &Side::B.outside_interface()]);
        Receiver::start(command)
    }

    /// Begins a storm towards gateway B's outer interface.
    pub(crate) fn begin_storm(&self, bounds: Bounds, core: usize) -> Result<RunningStorm> {
        let mut command = storm(&self.topology, Side::B, &std::env::current_exe()?)?;
        command
            .args(["--json", "--core", &core.to_string()])
            .args(["--seconds", &bounds.seconds.to_string(), "--count", &bounds.count.to_string()])
            .args(["--pps", &bounds.pps.to_string(), "--nice", &bounds.nice.to_string()])
            .stdout(Stdio::piped());
        Ok(RunningStorm(command.spawn().context("starting the storm")?))
    }

    /// A whole storm.
    pub(crate) fn storm(&self, bounds: Bounds) -> Result<Sent> {
        self.begin_storm(bounds, GENERATOR_CORE)?.finish()
    }

    /// Frames per second that the generator makes when nothing is done with them.
    pub(crate) fn ceiling(&self, seconds: f64) -> Result<f64> {
        let receiver = self.receiver(&["sink"])?;
        let sent = self.storm(Bounds::full(seconds))?;
        let sunk: Sunk = receiver.finish()?;
        // The odd frame of the kernel's own (router solicitations, say) arrives too.
        if sunk.frames < sent.accepted {
            bail!("{} frames were accepted and {} came to the sink", sent.accepted, sunk.frames);
        }
        Ok(sent.pps)
    }
}

/// Storms and the worker that only recycles.
impl Field {
    /// Frames per second that the port receives when its worker only gives them back.
    pub(crate) fn recycle(&self, bounds: Bounds) -> Result<f64> {
        let address = self.topology.addresses.gateway_outside(Side::B).to_string();
        let receiver = self.receiver(&[
            "recycle",
            "--inside",
            &Side::B.inside_interface(),
            "--address",
            &address,
            "--core",
            &WORKER_CORE.to_string(),
            "--seconds",
            &(bounds.seconds + 10.0).to_string(),
        ])?;
        let sent = self.storm(bounds)?;
        let recycled: Recycled = receiver.finish()?;
        let to_socket = recycled.xdp.get("xdp_outside_to_background").copied().unwrap_or(0);
        if to_socket != sent.accepted || to_socket != recycled.received + recycled.dropped_by_socket {
            bail!("{} frames were accepted, but the receiver tells {recycled:?}", sent.accepted);
        }
        Ok(recycled.received as f64 / sent.sent as f64 * sent.pps)
    }
}

/// A storm under way; ended if dropped.
pub(crate) struct RunningStorm(Child);

impl RunningStorm {
    /// Waits for its end.
    pub(crate) fn finish(mut self) -> Result<Sent> {
        let mut output = String::new();
        self.0.stdout.take().context("the storm's output")?.read_to_string(&mut output)?;
        let status = self.0.wait()?;
        if !status.success() {
            bail!("the storm ended with {status}");
        }
        Ok(serde_json::from_str(&output)?)
    }
}

impl Drop for RunningStorm {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A child that receives; ended if dropped.
pub(crate) struct Receiver {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Receiver {
    fn start(mut command: Command) -> Result<Receiver> {
        let mut child = command.stdout(Stdio::piped()).spawn().context("starting a receiver")?;
        let output = BufReader::new(child.stdout.take().context("the receiver's output")?);
        let mut receiver = Receiver { child, output };
        let mut ready = String::new();
        receiver.output.read_line(&mut ready)?;
        if ready.is_empty() {
            bail!("the receiver ended before it was ready: {}", receiver.child.wait()?);
        }
        Ok(receiver)
    }

    /// Lets it end, once what is under way has arrived, and tells what it saw.
    pub(crate) fn finish<T: DeserializeOwned>(mut self) -> Result<T> {
        std::thread::sleep(Duration::from_millis(100));
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        self.child.wait()?;
        serde_json::from_str(&line).context("what a receiver saw")
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
