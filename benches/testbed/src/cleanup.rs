//! Removes everything a testbed made, whichever way it ends.
//!
//! Each process group, namespace and directory is registered when it is made and removed when its [`Guard`] drops
//! (so also on a panic), or by the signal thread on SIGINT, SIGTERM and SIGHUP. What a killed testbed left behind is
//! found at the next start by the PID in its name.

use crate::error::{Context, Error, Result};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

/// All names on the system that belong to a testbed begin with this, then `-PID-`.
pub const PREFIX: &str = "spindle";

#[derive(Debug)]
enum Resource {
    ProcessGroup(i32),
    Namespace(String),
    Directory(PathBuf),
}

impl Resource {
    fn remove(&self) {
        match self {
            Resource::ProcessGroup(group) => {
                let _ = killpg(Pid::from_raw(*group), Signal::SIGKILL);
            }
            Resource::Namespace(name) => remove_namespace(name),
            Resource::Directory(path) => remove_directory(path),
        }
    }
}

/// Until it is gone: after a signal other threads go on, and may just have put something into it.
fn remove_directory(path: &Path) {
    for _ in 0..100 {
        match std::fs::remove_dir_all(path) {
            Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => {}
            _ => return,
        }
    }
}

/// The last number, and what stands by each.
type Registry = (u64, BTreeMap<u64, Resource>);

static REGISTRY: Mutex<Registry> = Mutex::new((0, BTreeMap::new()));

fn registry() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes what it stands for when dropped.
#[derive(Debug)]
pub(crate) struct Guard(u64);

impl Guard {
    fn register(resource: Resource) -> Guard {
        Guard::enter(&mut registry(), resource)
    }

    fn enter(registry: &mut Registry, resource: Resource) -> Guard {
        registry.0 += 1;
        let number = registry.0;
        registry.1.insert(number, resource);
        Guard(number)
    }

    /// A process group that is killed.
    pub(crate) fn process_group(group: i32) -> Guard {
        Guard::register(Resource::ProcessGroup(group))
    }

    /// A network namespace, made here under the lock, or a signal could come between; it is deleted after the processes in it
    /// are killed.
    pub(crate) fn namespace(name: &str, make: impl FnOnce() -> Result<()>) -> Result<Guard> {
        let mut registry = registry();
        make().inspect_err(|_| remove_namespace(name))?;
        Ok(Guard::enter(&mut registry, Resource::Namespace(name.to_owned())))
    }

    /// A directory that is deleted with all it holds.
    pub(crate) fn directory(path: &Path) -> Guard {
        Guard::register(Resource::Directory(path.to_owned()))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let resource = registry().1.remove(&self.0);
        if let Some(resource) = resource {
            resource.remove();
        }
    }
}

/// Installs the signal thread, once in a process, and removes what testbeds of dead processes left.
pub fn prepare() -> Result<()> {
    static ONCE: Once = Once::new();
    if !rustix::process::geteuid().is_root() {
        return Err(Error::Machine("network namespaces need root; run it as root".to_owned()));
    }
    let mut result = Ok(());
    ONCE.call_once(|| {
        result = watch_signals();
        remove_leftovers();
    });
    result
}

fn watch_signals() -> Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP])
        .context(|| "watching for signals".to_owned())?;
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            // The lock is held until the process is gone, so nothing new is made meanwhile.
            let registry = registry();
            let groups_first = |resource: &&Resource| !matches!(resource, Resource::ProcessGroup(_));
            let mut resources: Vec<&Resource> = registry.1.values().collect();
            resources.sort_by_key(groups_first);
            resources.iter().for_each(|resource| resource.remove());
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}

/// The name of something of this process, unique on this machine.
pub(crate) fn unique_name(number: u32, what: &str) -> String {
    format!("{PREFIX}-{}-{number}-{what}", std::process::id())
}

/// Whether a name belongs to a testbed whose process is gone.
fn is_leftover(name: &str) -> bool {
    let mut parts = name.split('-');
    let (prefix, pid) = (parts.next(), parts.next().and_then(|pid| pid.parse::<u32>().ok()));
    match (prefix, pid, parts.next().and_then(|number| number.parse::<u32>().ok())) {
        (Some(PREFIX), Some(pid), Some(_)) => !Path::new(&format!("/proc/{pid}")).exists(),
        _ => false,
    }
}

fn remove_leftovers() {
    for (directory, remove) in [
        (
            PathBuf::from("/run/netns"),
            (|path: &Path| {
                remove_namespace(&path.file_name().unwrap_or_default().to_string_lossy());
            }) as fn(&Path),
        ),
        (std::env::temp_dir(), remove_directory),
    ] {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            if is_leftover(&entry.file_name().to_string_lossy()) {
                remove(&entry.path());
            }
        }
    }
}

/// The processes in a named namespace.
pub(crate) fn processes_in(namespace: &str) -> Vec<i32> {
    Command::new("ip")
        .args(["netns", "pids", namespace])
        .output()
        .map(|output| {
            String::from_utf8_lossy(&output.stdout)
                .lines()
                .filter_map(|line| line.trim().parse().ok())
                .collect()
        })
        .unwrap_or_default()
}

fn remove_namespace(name: &str) {
    let ourselves = i32::try_from(std::process::id()).unwrap_or_default();
    for pid in processes_in(name).into_iter().filter(|&pid| pid != ourselves) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    drop(Command::new("ip").args(["netns", "delete", name]).stderr(Stdio::null()).status());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_dead_testbeds_are_leftovers() {
        assert!(is_leftover("spindle-4294967295-0-host-a"));
        assert!(!is_leftover(&unique_name(0, "host-a")));
        assert!(!is_leftover("spindle-main"));
        assert!(!is_leftover("spindle-4294967295"));
        assert!(!is_leftover("other-4294967295-0-host-a"));
    }
}
