//! Waits in the delay box for a message of an exchange; from that frame on nothing passes, either way, until the watch ends.

use spindle_testbed::{Error, Frame, IkeMessage, Result, Testbed, Verdict, now, number, wire_events};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Which message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Awaited {
    /// One of these exchange types.
    pub(crate) exchanges: &'static [u8],
    /// Its response, or its request.
    pub(crate) response: bool,
}

impl Awaited {
    /// Is this it? An answer in clear to a protected request is none: it only says that the IKE SA is unknown.
    pub(crate) fn is(&self, message: &IkeMessage) -> bool {
        let whole =
            message.protected || matches!(message.exchange, number::IKE_SA_INIT | number::IKE_SESSION_RESUME);
        self.exchanges.contains(&message.exchange) && message.response == self.response && whole
    }
}

/// Waiting since the delay box was told.
pub(crate) struct Watch {
    awaited: Awaited,
    seen: Arc<AtomicU64>,
}

impl Watch {
    /// From the next frame on.
    pub(crate) fn begin(testbed: &Testbed, awaited: Awaited) -> Watch {
        let seen = Arc::new(AtomicU64::new(0));
        let told = Arc::clone(&seen);
        testbed.delay().set_filter(Some(Box::new(move |_, frame| {
            if told.load(Ordering::Relaxed) != 0 {
                return Verdict::Drop;
            }
            let frame = Frame { at: 0, octets: frame.to_vec() };
            let events = wire_events(std::slice::from_ref(&frame));
            let is_it = events.iter().filter_map(|event| event.ike()).any(|message| awaited.is(message));
            if !is_it {
                return Verdict::Pass;
            }
            told.store(now(), Ordering::Relaxed);
            Verdict::Drop
        })));
        Watch { awaited, seen }
    }

    /// Waits for the message; when it was in the delay box, CLOCK_REALTIME in nanoseconds.
    pub(crate) fn wait(&self, patience: Duration) -> Result<u64> {
        let deadline = Instant::now() + patience;
        loop {
            match self.seen.load(Ordering::Relaxed) {
                0 if Instant::now() > deadline => {
                    let Awaited { exchanges, response } = self.awaited;
                    let what = if response { "response" } else { "request" };
                    let text = format!("no {what} of exchange {exchanges:?} came within {patience:?}");
                    return Err(Error::Subject(text));
                }
                0 => std::thread::sleep(Duration::from_micros(50)),
                at => return Ok(at),
            }
        }
    }

    /// Lets everything pass again.
    pub(crate) fn end(self, testbed: &Testbed) {
        testbed.delay().set_filter(None);
    }
}
