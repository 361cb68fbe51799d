//! Asks the control process over its socket.

use super::Unsuccessful;
use crate::protocol::{Request, Response, SOCKET, SUPERVISOR_SOCKET};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Patience beyond what the control process itself waits.
const GRACE: Duration = Duration::from_secs(10);
/// An upgrade takes so long at most, with what it puts back.
const UPGRADE: Duration = Duration::from_secs(60);

/// Sends one request and waits for its answer.
pub(super) fn ask(run_dir: &Path, request: &Request) -> Result<serde_json::Value, Unsuccessful> {
    let is_upgrade = matches!(request, Request::Upgrade { .. });
    let path = run_dir.join(if is_upgrade { SUPERVISOR_SOCKET } else { SOCKET });
    let mut stream = UnixStream::connect(&path).map_err(|e| {
        let why = match e.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                "no gateway runs there; start it with `spindle up`".into()
            }
            ErrorKind::PermissionDenied => "only root may ask".into(),
            _ => e.to_string(),
        };
        Unsuccessful::failed(format!("{}: {why}", path.display()))
    })?;
    let waits = match request {
        Request::Initiate { timeout_ms, .. }
        | Request::RotateSecret { timeout_ms }
        | Request::Terminate { timeout_ms, .. }
        | Request::Rekey { timeout_ms, .. }
        | Request::TakeDown { timeout_ms, .. } => Duration::from_millis(*timeout_ms),
        Request::Upgrade { .. } => UPGRADE,
        _ => Duration::ZERO,
    };
    let lost = |e: std::io::Error| Unsuccessful::failed(format!("{}: no answer: {e}", path.display()));
    stream.set_read_timeout(Some(waits + GRACE)).map_err(lost)?;
    let mut line = serde_json::to_string(request).map_err(Unsuccessful::failed)?;
    line.push('\n');
    stream.write_all(line.as_bytes()).map_err(lost)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).map_err(lost)?;
    if answer.is_empty() {
        return Err(Unsuccessful::failed("the gateway stopped before it answered"));
    }
    match serde_json::from_str(&answer) {
        Ok(Response::Result(value)) => Ok(value),
        Ok(Response::Error(reason)) => Err(Unsuccessful::failed(reason)),
        Ok(Response::Refused(reason)) => Err(Unsuccessful::usage(reason)),
        Err(e) => Err(Unsuccessful::failed(format!("an answer of another version: {e}"))),
    }
}
