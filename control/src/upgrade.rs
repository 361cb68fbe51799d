//! `spindle upgrade`: other programs in place of those that run, one process after the other, as if each had died alone; so no SA is
//! lost, and packets only while the dataplane is away. Before anything is stopped the new programs have shown that they can go
//! on here. One that does not get ready gives way to the one before.
//!
//! The supervisor itself goes on as it is: it owns the shared memory, and its children die with it.

use crate::control_socket;
use crate::programs::Program;
use crate::protocol::{Replaced, Request, Response, SOCKET, SUPERVISOR_SOCKET, Status, Upgraded};
use crate::supervisor::{Incarnation, Process};
use spindle_ring::Side;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

/// For a new process to become ready.
const READY: Duration = Duration::from_secs(10);
/// For the dataplane to end.
const STOP: Duration = Duration::from_secs(1);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(5);
/// For one request to control.
const ANSWER: Duration = Duration::from_secs(10);
/// Octets of a request, and seconds until it has come.
const LONGEST: u64 = 8192;
const PATIENCE: Duration = Duration::from_secs(2);

/// Where upgrades are asked for, by root alone.
pub(crate) fn listen(run_dir: &Path) -> io::Result<UnixListener> {
    control_socket::listen(run_dir, SUPERVISOR_SOCKET)
}

/// The next request, and who waits for its answer.
pub(crate) async fn asked(listener: &UnixListener) -> Option<(Option<PathBuf>, UnixStream)> {
    let Ok((stream, _)) = listener.accept().await else {
        // Out of descriptors, say.
        tokio::time::sleep(PATIENCE).await;
        return None;
    };
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    let read = async { (&mut reader).take(LONGEST).read_until(b'\n', &mut line).await };
    tokio::time::timeout(PATIENCE, read).await.ok()?.ok()?;
    match serde_json::from_slice(&line) {
        Ok(Request::Upgrade { from }) => Some((from, reader.into_inner())),
        _ => {
            answer(reader.into_inner(), &Response::Error("this is no request to the supervisor".into()))
                .await;
            None
        }
    }
}

/// A caller that has gone needs no answer.
pub(crate) async fn answer(mut stream: UnixStream, response: &Response) {
    let mut text = serde_json::to_vec(response).unwrap_or_default();
    text.push(b'\n');
    let _ = tokio::time::timeout(PATIENCE, stream.write_all(&text)).await;
}

impl Incarnation<'_> {
    /// Puts the programs in this folder, or those where the running ones were, in the place of both.
    pub(crate) async fn upgrade(&mut self, from: Option<&Path>) -> Response {
        match self.try_upgrade(from).await {
            Ok(upgraded) => serde_json::to_value(upgraded)
                .map_or_else(|e| Response::Error(e.to_string()), Response::Result),
            Err(why) => Response::Error(why),
        }
    }

    async fn try_upgrade(&mut self, from: Option<&Path>) -> Result<Upgraded, String> {
        if !self.keeps() {
            return Err(
                "a member of a cluster loses its SAs with its control process; let the other member take over \
                        (stop this one), and start it with the new programs"
                    .into(),
            );
        }
        let folder = |side: Side| {
            from.map_or_else(|| self.programs().borrow().of(side).folder().to_owned(), Path::to_owned)
        };
        let control = Program::candidate(&folder(Side::Control), "spindle-control")?;
        let dataplane = Program::candidate(&folder(Side::Dataplane), "spindle-dataplane")?;
        let check = Request::CheckConfiguration { program: control.path() };
        self.ask(&check).await.map_err(|why| format!("nothing was changed: {why}"))?;
        let status = self.status().await.ok_or("control does not answer; nothing was changed")?;
        if !status.ready {
            return Err("the gateway is not ready; nothing was changed".into());
        }
        let first = self.replace(Side::Control, control).await?;
        let second = self
            .replace(Side::Dataplane, dataplane)
            .await
            .map_err(|why| format!("control is {} now, but {why}", first.version_after))?;
        Ok(Upgraded {
            done: format!("{} is put in; the supervisor stays until the next start", second.version_after),
            supervisor_version: env!("CARGO_PKG_VERSION").into(),
            processes: vec![first, second],
        })
    }

    /// One process is another program's from here on, or that of before if that does not get ready.
    async fn replace(&mut self, side: Side, program: Program) -> Result<Replaced, String> {
        let name = match side {
            Side::Control => "spindle-control",
            Side::Dataplane => "spindle-dataplane",
        };
        let after = program.version.clone();
        let before = self.programs().borrow_mut().put(side, program);
        let version_before = before.version.clone();
        let stopped = Instant::now();
        let mut began = self.restart(side).await;
        if began.is_ok() {
            began = self.wait_ready(side).await;
        }
        let Err(why) = began else {
            return Ok(Replaced {
                process: name.into(),
                pid: self.process(side).pid(),
                version_before,
                version_after: after,
                away_ms: stopped.elapsed().as_millis() as u64,
            });
        };
        self.programs().borrow_mut().put(side, before);
        let back = match self.restart(side).await {
            Ok(()) => self.wait_ready(side).await,
            Err(why) => Err(why),
        };
        let back = match back {
            Ok(()) => format!("version {version_before} is put back"),
            Err(why) => format!("version {version_before} is put back, and {why}"),
        };
        Err(format!("the new {name} {why}; {back}"))
    }

    /// Ends a process, and starts its program: nothing is said to a peer.
    async fn restart(&mut self, side: Side) -> Result<(), String> {
        // Control's death is what the next one takes up from; the dataplane finishes its bursts.
        let patience = if side == Side::Control { Duration::ZERO } else { STOP };
        self.process_mut(side).end(patience).await;
        self.start_again(side).map_err(|e| format!("cannot be started: {e}"))
    }

    async fn wait_ready(&mut self, side: Side) -> Result<(), String> {
        let patience = Instant::now() + READY;
        loop {
            if let Some(status) = self.process_mut(side).ended() {
                return Err(format!("ended ({status})"));
            }
            let pid = self.process(side).pid();
            let is_it = |status: &Status| {
                let shown = if side == Side::Control { status.pids.control } else { status.pids.dataplane };
                status.ready && shown == pid
            };
            if self.status().await.as_ref().is_some_and(is_it) {
                return Ok(());
            }
            if Instant::now() > patience {
                return Err(format!("was not ready within {} s", READY.as_secs()));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn status(&self) -> Option<Status> {
        serde_json::from_value(self.ask(&Request::Status).await.ok()?).ok()
    }

    async fn ask(&self, request: &Request) -> Result<serde_json::Value, String> {
        let path = self.run_dir().join(SOCKET);
        match tokio::time::timeout(ANSWER, control_socket::ask(&path, request)).await {
            Ok(Ok((Response::Result(value), _))) => Ok(value),
            Ok(Ok((Response::Error(why) | Response::Refused(why), _))) => Err(why),
            Ok(Err(e)) => Err(e.to_string()),
            Err(_) => Err("control does not answer".into()),
        }
    }
}

impl Process {
    /// Has it ended?
    fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Ends it: at once, or after as long as it may take by itself.
    async fn end(&mut self, patience: Duration) {
        match patience.is_zero() {
            true => drop(self.child.kill().await),
            false => self.stop(patience).await,
        }
    }
}

/// Of `spindle-control --check`: a configuration on standard input, the file that it is of as its argument.
pub fn check_configuration(file: &Path) -> Result<(), String> {
    let mut text = zeroize::Zeroizing::new(String::new());
    io::stdin().read_to_string(&mut text).map_err(|e| e.to_string())?;
    crate::config::Settings::parse(file, &text).map(drop).map_err(|e| e.to_string())
}
