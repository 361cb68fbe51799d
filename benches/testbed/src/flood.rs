//! Frames of one's own at a steady rate, until it is enough: what a forger sends.

use crate::error::Result;
use crate::namespace::Namespace;
use crate::packet::{OFFLOAD_HEADER, PacketSocket, Show};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A running flood; stops when dropped.
#[derive(Debug)]
pub struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    /// How long it lasts at most.
    const LONGEST: Duration = Duration::from_secs(600);

    /// Sends what `frame` makes of each number from 0 on, `per_second` times a second.
    pub fn start(
        namespace: &Namespace,
        interface: &str,
        per_second: u32,
        mut frame: impl FnMut(u64) -> Vec<u8> + Send + 'static,
    ) -> Result<Flood> {
        let socket = PacketSocket::open(namespace, interface, Show::ArrivingWithOffloads)?;
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&sent));
        let thread = std::thread::spawn(move || {
            let began = Instant::now();
            for number in 0_u64.. {
                // In bursts of a millisecond: a thread is not woken for each frame.
                let due = Duration::from_secs_f64(number as f64 / f64::from(per_second.max(1)));
                if due > began.elapsed() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                if stopped.load(Ordering::Relaxed) || began.elapsed() > Self::LONGEST {
                    return;
                }
                if socket.send(&[&[0; OFFLOAD_HEADER][..], &frame(number)].concat()) {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Ok(Flood { stop, sent, thread: Some(thread) })
    }

    /// Frames that the kernel has taken so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
