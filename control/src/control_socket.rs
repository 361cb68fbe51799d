//! The sockets in `run_dir`, by which the gateway's processes are asked, in the words of [`protocol`](crate::protocol): made for
//! root alone, and asked without blocking.

use crate::protocol::{Request, Response};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

/// Listens in `run_dir` by this name, in the place of whatever a dead process left there.
pub(crate) fn listen(run_dir: &Path, name: &str) -> io::Result<UnixListener> {
    let path = run_dir.join(name);
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Sends one request to who listens there and waits for the answer; with the connection, on which more may come.
pub(crate) async fn ask(path: &Path, request: &Request) -> io::Result<(Response, BufReader<UnixStream>)> {
    let mut stream = BufReader::new(UnixStream::connect(path).await?);
    let mut text = serde_json::to_vec(request)?;
    text.push(b'\n');
    stream.write_all(&text).await?;
    let mut answer = String::new();
    stream.read_line(&mut answer).await?;
    let response = serde_json::from_str(&answer);
    Ok((response.map_err(|e| io::Error::other(format!("an answer of another version: {e}")))?, stream))
}
