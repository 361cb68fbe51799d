//! Network namespaces: made, entered and removed.

use crate::cleanup::{self, Guard};
use crate::error::{Context, Error, Result};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// A named network namespace, deleted on drop together with the processes in it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    handle: File,
    _guard: Guard,
}

impl Namespace {
    /// Makes a namespace of this name, with the loopback interface up.
    pub fn create(name: &str) -> Result<Namespace> {
        let guard =
            Guard::namespace(name, || run(Command::new("ip").args(["netns", "add", name])).map(drop))?;
        let path = format!("/run/netns/{name}");
        let handle = File::open(&path).context(|| format!("opening {path}"))?;
        let namespace = Namespace { name: name.to_owned(), handle, _guard: guard };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Its name under `ip netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Does `work` on a thread inside the namespace; sockets that it opens stay in the namespace.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.handle, CloneFlags::CLONE_NEWNET)
                    .context(|| format!("entering namespace {}", self.name))?;
                Ok(work())
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A command that will run inside the namespace as the leader of a process group of its own.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        // `ip netns exec` replaces itself by the program (so the PID stays) and also shows it the namespace's /sys.
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program.as_ref()).process_group(0);
        command
    }

    /// Runs a command line (split at blanks) inside the namespace and returns what it printed.
    pub fn run(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        run(self.command(words.next().unwrap_or("true")).args(words))
    }

    /// Runs `ip` with these arguments for this namespace.
    pub fn ip(&self, line: &str) -> Result<String> {
        run(Command::new("ip").args(["-netns", &self.name]).args(line.split_whitespace()))
    }

    /// The MAC address of an interface inside, in its usual form.
    pub fn mac(&self, interface: &str) -> Result<String> {
        Ok(self.run(&format!("cat /sys/class/net/{interface}/address"))?.trim().to_owned())
    }

    /// Writes a setting under /proc/sys/net of this namespace; the path uses slashes, or dots.
    pub fn sysctl(&self, path: &str, value: &str) -> Result<()> {
        let path = if path.contains('/') { path.to_owned() } else { path.replace('.', "/") };
        let file = format!("/proc/sys/net/{path}");
        // The directory shows the namespace of the thread that opens it.
        self.enter(|| std::fs::write(&file, value))?.context(|| format!("writing {value} to {file}"))
    }

    /// PIDs of the processes inside.
    pub fn processes(&self) -> Vec<i32> {
        cleanup::processes_in(&self.name)
    }
}

/// Runs a command to its end; its standard output, or an error with what it said.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let line = format!("{command:?}").replace('"', "");
    let output = command.output().context(|| format!("starting `{line}`"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let output = if text.trim().is_empty() { output.status.to_string() } else { text.trim().to_owned() };
    Err(Error::Command { command: line, output })
}

/// A MAC address in its usual form.
pub fn parse_mac(text: &str) -> Result<[u8; 6]> {
    let octets: Option<Vec<u8>> = text.split(':').map(|octet| u8::from_str_radix(octet, 16).ok()).collect();
    let octets = octets.and_then(|octets| octets.try_into().ok());
    octets.ok_or_else(|| Error::Machine(format!("`{text}` is no MAC address")))
}
