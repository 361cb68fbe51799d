//! Captures on an interface of a namespace, both directions, to a pcap file.
//!
//! A gateway's outer traffic is captured at the *other end* of its outer veth pair, on the delay box's interface: on
//! the gateway's own end packet sockets don't see what AF_XDP takes before the stack and gives past it. Every frame
//! that enters or leaves the gateway passes that other end, at the same instant.

use crate::error::{Context, Error, Result};
use crate::namespace::Namespace;
use crate::packet::{LARGEST_FRAME, PacketSocket, Show, be_punctual, now};
use crate::pcap::{Frame, Reader, Writer};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// A capture that is running; stops when dropped, but only [`Capture::stop`] tells whether it is whole.
#[derive(Debug)]
pub struct Capture {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<u64>>>,
}

impl Capture {
    /// Starts capturing; when it returns, every later frame will be in the file.
    pub fn start(namespace: &Namespace, interface: &str, path: &Path) -> Result<Capture> {
        let socket = PacketSocket::open(namespace, interface, Show::BothDirections)?;
        let writer = Writer::create(path)?;
        let stop = Arc::new(AtomicBool::new(false));
        let of_thread = Arc::clone(&stop);
        let file = path.to_owned();
        let thread = std::thread::spawn(move || record(&socket, writer, &file, &of_thread));
        Ok(Capture { path: path.to_owned(), stop, thread: Some(thread) })
    }

    /// Ends the capture and reads it. A capture that dropped frames proves nothing, so it is an error.
    pub fn stop(mut self) -> Result<Vec<Frame>> {
        self.stop.store(true, Ordering::Relaxed);
        let written = match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result?,
            _ => return Err(Error::Capture("the capture's thread is gone".to_owned())),
        };
        let frames = Reader::open(&self.path)?.collect::<Result<Vec<Frame>>>()?;
        if frames.len() as u64 != written {
            return Err(Error::Capture(format!("{written} frames were written, {} read", frames.len())));
        }
        Ok(frames)
    }

    /// The capture's file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Writes frames until it is told to stop and the queue is empty; how many there were.
fn record(
    socket: &PacketSocket,
    mut writer: Writer<std::io::BufWriter<std::fs::File>>,
    path: &Path,
    stop: &AtomicBool,
) -> Result<u64> {
    be_punctual();
    let what = || format!("capturing to {}", path.display());
    let mut frame = vec![0; LARGEST_FRAME];
    let mut written = 0;
    loop {
        // Read before the queue is drained, so all that arrived until then is written.
        let last_round = stop.load(Ordering::Relaxed);
        while let Some(received) = socket.receive(&mut frame).context(what)? {
            let at = if received.at == 0 { now() } else { received.at };
            writer.write(at, &frame[..received.length]).context(what)?;
            written += 1;
        }
        if last_round {
            break;
        }
        let mut descriptors = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut descriptors, PollTimeout::from(20_u8));
    }
    writer.finish().context(what)?;
    match socket.statistics()?.drops {
        0 => Ok(written),
        drops => Err(Error::Capture(format!("{drops} frames were dropped; the machine was too busy"))),
    }
}
