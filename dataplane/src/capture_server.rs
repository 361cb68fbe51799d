//! Main's part in a capture: takes who asks for one, makes its rings, sets the workers to it and has them end it.
//!
//! One capture at a time, for root alone. It ends with its connection: main takes the workers' parts back, and only then
//! closes its end, so that the client knows that all has been written.

use crate::capture::{Capture, Wanted};
use crate::worker::Shared;
use rustix::net::UCred;
use spindle_engine::DropReason;
use spindle_ring::capture::create;
use spindle_ring::capture_socket::{Asked, Begun, CaptureListener, CaptureServer, Interface, Request};
use std::io;
use std::path::Path;
use std::sync::Arc;
use tokio::io::unix::AsyncFd;

/// Where captures are asked for, and the one that runs.
pub(crate) struct Captures {
    listener: AsyncFd<CaptureListener>,
    interfaces: Vec<Interface>,
    nat_port: u16,
    current: Option<Current>,
}

struct Current {
    connection: AsyncFd<CaptureServer>,
    peer: UCred,
    stage: Stage,
}

enum Stage {
    /// Has not said yet what it wants.
    Silent,
    Runs(Arc<Wanted>),
    /// So many workers have not given their parts back.
    Ends(usize),
}

#[expect(deprecated, reason = "these own the descriptor that they claim to be; the successor is unsafe")]
fn watch<T: std::os::fd::AsRawFd>(descriptor: T) -> io::Result<AsyncFd<T>> {
    AsyncFd::new(descriptor)
}

impl Captures {
    /// Listens in the gateway's run directory.
    pub(crate) fn listen(run_dir: &Path, interfaces: Vec<Interface>, nat_port: u16) -> io::Result<Captures> {
        Ok(Captures {
            listener: watch(CaptureListener::bind(run_dir)?)?,
            interfaces,
            nat_port,
            current: None,
        })
    }

    /// Waits until somebody asks, or says more.
    pub(crate) async fn wait(&self) -> io::Result<()> {
        let said = async {
            match &self.current {
                Some(Current { connection, stage: Stage::Silent | Stage::Runs(_), .. }) => {
                    connection.readable().await.map(|mut ready| ready.clear_ready())
                }
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            ready = self.listener.readable() => ready.map(|mut ready| ready.clear_ready()),
            ready = said => ready,
        }
    }

    /// Does what was asked for.
    pub(crate) fn serve(&mut self, workers: &[Arc<Shared>]) -> io::Result<()> {
        while let Some((connection, peer)) = self.listener.get_ref().accept()? {
            if !peer.uid.is_root() {
                tracing::warn!(uid = peer.uid.as_raw(), "a capture was refused: it is for root alone");
                connection.refuse("only root may capture");
            } else if let Some(current) = &self.current {
                let pid = current.peer.pid.as_raw_nonzero();
                connection.refuse(&format!("a capture runs already (process {pid}); end that one first"));
            } else {
                let connection = watch(connection)?;
                self.current = Some(Current { connection, peer, stage: Stage::Silent });
            }
        }
        while let Some(current) = &mut self.current {
            match (current.connection.get_ref().asked(), &current.stage) {
                (Asked::Nothing, _) | (_, Stage::Ends(_)) => break,
                (Asked::End, Stage::Silent) => self.current = None,
                (Asked::End, Stage::Runs(_)) => {
                    tracing::info!(pid = current.peer.pid.as_raw_nonzero(), "the capture ends");
                    for worker in workers {
                        worker.captures.force_push(None);
                        worker.sleeper.wake();
                    }
                    current.stage = Stage::Ends(workers.len());
                }
                (Asked::Request(request), Stage::Runs(wanted)) => wanted.replace(request.spis.as_deref()),
                (Asked::Request(request), Stage::Silent) => {
                    if let Err(error) = self.begin(&request, workers) {
                        tracing::warn!(%error, "a capture cannot begin");
                        if let Some(refused) = self.current.take() {
                            refused.connection.into_inner().refuse(&error.to_string());
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self, request: &Request, workers: &[Arc<Shared>]) -> io::Result<()> {
        let Some(current) = &mut self.current else { return Ok(()) };
        let (writers, rings) = create(workers.len())?;
        let reasons = DropReason::ALL.iter().map(|reason| reason.name().to_owned()).collect();
        let begun = Begun { interfaces: self.interfaces.clone(), reasons };
        current.connection.get_ref().begun(&begun, &rings)?;
        let (uid, pid) = (current.peer.uid.as_raw(), current.peer.pid.as_raw_nonzero());
        tracing::info!(uid, pid, ?request, "a capture begins");
        let wanted = Arc::new(Wanted::new(request.spis.as_deref()));
        for (worker, writer) in workers.iter().zip(writers) {
            let capture = Capture::new(writer, request, wanted.clone(), self.nat_port);
            worker.captures.force_push(Some(Box::new(capture)));
            worker.sleeper.wake();
        }
        current.stage = Stage::Runs(wanted);
        Ok(())
    }

    /// Takes back what workers have ended; now and then.
    pub(crate) fn collect(&mut self, workers: &[Arc<Shared>]) {
        let Some(Current { stage: Stage::Ends(left), .. }) = &mut self.current else { return };
        for worker in workers {
            while let Some(ended) = worker.captured.pop() {
                drop(ended);
                *left -= 1;
            }
        }
        if *left == 0 {
            self.current = None;
        }
    }
}
