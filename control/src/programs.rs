//! The programs of the two processes, as the supervisor runs them: held open, so that files that are replaced beneath a running
//! gateway change nothing until `spindle upgrade` says so, and what was there before can be put back.

use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The argument by which a program says what it is, before all others.
pub const FACTS: &str = "--facts";
/// The argument by which control says whether a configuration on its standard input would do; the file's name follows.
pub const CHECK: &str = "--check";
/// For an answer to [`FACTS`].
const PATIENCE: Duration = Duration::from_secs(5);

/// What a program says of itself, as JSON.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Facts {
    /// Its name.
    pub program: String,
    /// Its version.
    pub version: String,
    /// The layout of what is shared; another one could not be attached.
    pub layout: String,
    /// The layout of what control keeps; what is kept in another one could not be adopted.
    pub kept: String,
}

impl Facts {
    /// Those of a program of this build.
    pub fn of(program: &str) -> Facts {
        let [header, records] = spindle_ring::LAYOUT;
        Facts {
            program: program.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            layout: format!("{header:016x}{records:016x}"),
            // The dataplane has no part in it.
            kept: match program {
                "spindle-dataplane" => String::new(),
                _ => format!("{:016x}{:016x}", spindle_ring::KEPT_LAYOUT, spindle_ike::LAYOUT),
            },
        }
    }

    /// Printed where the program was asked for them, as its first argument; was it?
    pub fn answered(program: &str) -> bool {
        let asked = std::env::args_os().nth(1).is_some_and(|argument| argument == FACTS);
        if asked && let Ok(text) = serde_json::to_string(&Facts::of(program)) {
            // Who asked reads it, or has gone.
            let _ = writeln!(io::stdout(), "{text}");
        }
        asked
    }
}

/// One program.
#[derive(Debug)]
pub(crate) struct Program {
    path: PathBuf,
    file: File,
    pub(crate) version: String,
}

impl Program {
    /// The one at this path from here on, whatever becomes of the path; one of ours, which nothing is asked.
    pub(crate) fn beside_us(path: PathBuf) -> io::Result<Program> {
        let file = File::open(&path)?;
        Ok(Program { path, file, version: env!("CARGO_PKG_VERSION").into() })
    }

    /// Another one, which must be able to go on with what this build has made. The error says why it is not.
    pub(crate) fn candidate(folder: &Path, name: &str) -> Result<Program, String> {
        let path = folder.join(name);
        let shown = path.display().to_string();
        let file = File::open(&path).map_err(|e| format!("{shown} cannot be read: {e}"))?;
        let mut program = Program { path, file, version: String::new() };
        let text = program.facts().map_err(|why| format!("{shown} does not say what it is: {why}"))?;
        let facts: Facts = serde_json::from_str(&text)
            .map_err(|_| format!("{shown} does not say what it is: {FACTS} is answered by no facts"))?;
        let ours = Facts::of(name);
        let why = match () {
            () if facts.program != ours.program => format!("is {}", facts.program),
            () if facts.layout != ours.layout => "shares memory in another layout".into(),
            () if facts.kept != ours.kept => "keeps IKE SAs in another layout".into(),
            () => {
                program.version = facts.version;
                return Ok(program);
            }
        };
        Err(format!(
            "{shown} {why}, so it cannot go on where this gateway is; stop the gateway and start it anew"
        ))
    }

    fn facts(&self) -> Result<String, String> {
        let mut command = Command::new(self.path());
        command.arg(FACTS).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(|e| format!("it cannot be started: {e}"))?;
        let patience = Instant::now() + PATIENCE;
        while child.try_wait().map_err(|e| e.to_string())?.is_none() {
            if Instant::now() > patience {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("{FACTS} is not answered"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let output = child.wait_with_output().map_err(|e| e.to_string())?;
        if !output.status.success() {
            return Err(format!("{FACTS} ended with {}", output.status));
        }
        String::from_utf8(output.stdout).map_err(|e| e.to_string())
    }

    /// By which it is started: its path while that is still it, else what is held open.
    pub(crate) fn path(&self) -> PathBuf {
        let same = |a: &std::fs::Metadata, b: &std::fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
        match (std::fs::metadata(&self.path), self.file.metadata()) {
            (Ok(there), Ok(held)) if same(&there, &held) => self.path.clone(),
            _ => format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into(),
        }
    }

    /// The folder that it was in.
    pub(crate) fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }
}
