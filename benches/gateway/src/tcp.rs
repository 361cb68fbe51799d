//! One TCP connection that sends as fast as it can, and what arrives of it.

use anyhow::{Context, Result, anyhow, bail};
use spindle_testbed::Host;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A connection that stands still for so long has failed.
const PATIENCE: Duration = Duration::from_secs(5);
/// Before the measurement, for the congestion window to open.
const WARM_UP: Duration = Duration::from_millis(500);
/// Octets of one read or write.
const BLOCK: usize = 256 << 10;

/// Bits of payload per second that arrive at `to`.
pub(crate) fn stream(from: Host<'_>, to: Host<'_>, seconds: f64) -> Result<f64> {
    let listener = to.namespace.enter(|| TcpListener::bind((to.address, 0)))??;
    let target = listener.local_addr()?;
    let mut sending = from
        .namespace
        .enter(|| TcpStream::connect_timeout(&target, PATIENCE))?
        .context("connecting host A to host B")?;
    let (mut receiving, _) = listener.accept()?;
    sending.set_write_timeout(Some(PATIENCE))?;
    receiving.set_read_timeout(Some(PATIENCE))?;
    let (arrived, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| -> std::io::Result<()> {
            let block = vec![0x5a; BLOCK];
            while !stop.load(Ordering::Relaxed) {
                sending.write_all(&block)?;
            }
            sending.shutdown(std::net::Shutdown::Both)
        });
        let receiver = scope.spawn(|| -> std::io::Result<()> {
            let mut block = vec![0; BLOCK];
            loop {
                match receiving.read(&mut block)? {
                    0 => return Ok(()),
                    octets => arrived.fetch_add(octets as u64, Ordering::Relaxed),
                };
            }
        });
        std::thread::sleep(WARM_UP);
        let (before, began) = (arrived.load(Ordering::Relaxed), Instant::now());
        std::thread::sleep(Duration::from_secs_f64(seconds));
        let (after, elapsed) = (arrived.load(Ordering::Relaxed), began.elapsed());
        stop.store(true, Ordering::Relaxed);
        let gone = || anyhow!("a thread of the connection is gone");
        sender.join().map_err(|_| gone())?.context("sending from host A")?;
        receiver.join().map_err(|_| gone())?.context("receiving at host B")?;
        if after == before {
            bail!("nothing arrived at host B");
        }
        Ok((after - before) as f64 * 8.0 / elapsed.as_secs_f64())
    })
}
