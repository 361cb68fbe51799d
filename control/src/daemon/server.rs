//! The control socket: one request a line, one answer a line. Requests reach the daemon through a queue and wait
//! for their answers there.

use crate::control_socket;
use crate::protocol::{MAX_REQUEST, Request, Response, SOCKET};
use std::io;
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc, oneshot};
use zeroize::Zeroizing;

/// Callers served at once; more wait.
const CALLERS: usize = 32;
/// Lines that wait for one who watches; who doesn't read them is told no more.
const LINES: usize = 4096;

/// What goes on coming after the answer; may hold keys.
pub(super) type Line = Zeroizing<Vec<u8>>;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller {
    pub(super) uid: u32,
    pub(super) pid: i32,
}

/// A request and where its answer goes.
pub(super) struct Asked {
    pub(super) request: Request,
    pub(super) caller: Caller,
    /// Where what comes after the answer goes, if the request is one to watch.
    pub(super) lines: Option<mpsc::Sender<Line>>,
    pub(super) answer: oneshot::Sender<Response>,
}

/// Listens in `run_dir`, for root alone.
pub(super) fn listen(run_dir: &Path) -> io::Result<mpsc::Receiver<Asked>> {
    let listener = control_socket::listen(run_dir, SOCKET)?;
    let (sender, receiver) = mpsc::channel(CALLERS);
    tokio::spawn(async move {
        let places = Arc::new(Semaphore::new(CALLERS));
        while let Ok(place) = places.clone().acquire_owned().await {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let sender = sender.clone();
                    tokio::spawn(async move {
                        let _ = serve(stream, &sender).await;
                        drop(place);
                    });
                }
                // Out of descriptors, say: those who are served give theirs back.
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
            }
        }
    });
    Ok(receiver)
}

async fn serve(stream: UnixStream, daemon: &mpsc::Sender<Asked>) -> io::Result<()> {
    let peer = stream.peer_cred()?;
    let caller = Caller { uid: peer.uid(), pid: peer.pid().unwrap_or(0) };
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        let mut limited = (&mut reader).take(MAX_REQUEST as u64);
        if limited.read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        if !line.ends_with(b"\n") && line.len() >= MAX_REQUEST {
            return Ok(());
        }
        let mut watched = None;
        let response = match serde_json::from_slice(&line) {
            Ok(request) => {
                let (answer, answered) = oneshot::channel();
                let lines = matches!(request, Request::WatchSas { .. }).then(|| mpsc::channel(LINES));
                let (lines, watch) = lines.unzip();
                watched = watch;
                if daemon.send(Asked { request, caller, lines, answer }).await.is_err() {
                    return Ok(());
                }
                answered.await.unwrap_or_else(|_| Response::Error("the gateway is stopping".into()))
            }
            Err(e) => Response::Error(format!("this is no request: {e}")),
        };
        let mut text = serde_json::to_vec(&response)?;
        text.push(b'\n');
        writer.write_all(&text).await?;
        if let (Some(mut lines), Response::Result(_)) = (watched, &response) {
            // Whatever the caller says now, it has ended watching.
            loop {
                tokio::select! {
                    line = lines.recv() => match line {
                        Some(line) => writer.write_all(&line).await?,
                        None => return Ok(()),
                    },
                    _ = reader.fill_buf() => return Ok(()),
                }
            }
        }
    }
}
