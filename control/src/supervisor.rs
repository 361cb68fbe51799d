//! `spindle up`: sets the guard, starts both processes, and ends and begins them together.
//!
//! Each round is an incarnation: fresh rings, the dataplane, then control. If one of them dies alone the other is
//! ended too, and the next round begins, later each time if it happens again and again. A process that exits with
//! code 2 has said what the operator must change: then nothing is tried again.
//!
//! The children cannot outlive us: each is started through `spindle child`, which asks the kernel for SIGKILL at our
//! death and then becomes the program. All are one process group, so that `kill -9 -PGID` ends everything at once.

use crate::config::Settings;
use crate::daemon::disk::private_directory;
use crate::daemon::wall_clock_us;
use crate::guard::Guard;
use crate::machine;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use spindle_ring::{AttachmentFds, Side};
use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

/// How long a process that was killed may take to give its lock back.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);
/// Control's own patience for its peers, and some more.
const CONTROL_PATIENCE: Duration = Duration::from_secs(4);
const DATAPLANE_PATIENCE: Duration = Duration::from_secs(1);
/// A round that lasted this long was a good one.
const GOOD_ROUND: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Why there is no gateway; exit code 2: the operator's to mend. Exit code 1 comes without words of ours.
#[derive(Debug)]
pub struct Refused(pub String);

impl<T: std::fmt::Display> From<T> for Refused {
    fn from(reason: T) -> Refused {
        Refused(reason.to_string())
    }
}

/// Runs until told to stop. The result is the exit code.
pub fn up(settings: &Settings, new_secret: bool) -> Result<u8, Refused> {
    let started_us = wall_clock_us();
    machine::check_privileges()?;
    // A session's leader leads its group already.
    let _ = rustix::process::setpgid(None, None);
    let gateway = &settings.gateway;
    for (key, directory) in [("state_dir", &gateway.state_dir), ("run_dir", &gateway.run_dir)] {
        private_directory(directory).map_err(|e| {
            let problem = format!("{} cannot be made: {e}; name another directory", directory.display());
            settings.error(&format!("gateway.{key}"), problem)
        })?;
    }
    let _lock = lock(settings)?;
    Guard::new(settings).close()?;
    machine::check(settings)?;
    let programs = Programs::beside_us()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(supervise(settings, &programs, started_us, new_secret))
}

/// Takes the lock of the run directory, which ends with this process.
pub fn lock(settings: &Settings) -> Result<File, Refused> {
    let path = settings.gateway.run_dir.join("lock");
    let refused = |problem: String| settings.error("gateway.run_dir", problem);
    let open = File::options().create(true).truncate(false).read(true).write(true).open(&path);
    let mut file = open.map_err(|e| {
        refused(format!(
            "{} cannot be written: {e}; make it writable, or name another directory",
            path.display()
        ))
    })?;
    let patience = Instant::now() + LOCK_PATIENCE;
    while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        if Instant::now() >= patience {
            let holder = std::fs::read_to_string(&path).unwrap_or_default();
            let problem = format!(
                "another `spindle up` (process {}) runs with this directory; stop it, or give this gateway one of its own",
                holder.trim()
            );
            return Err(refused(problem).into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    file.set_len(0)?;
    write!(file, "{}", std::process::id())?;
    Ok(file)
}

struct Programs {
    spindle: PathBuf,
    dataplane: PathBuf,
    control: PathBuf,
}

impl Programs {
    fn beside_us() -> Result<Programs, Refused> {
        let spindle = std::env::current_exe()?;
        let beside = |name: &str| {
            let path = spindle.with_file_name(name);
            let missing =
                || format!("{} is missing; install spindle's programs into one directory", path.display());
            if path.is_file() { Ok(path) } else { Err(missing()) }
        };
        Ok(Programs { dataplane: beside("spindle-dataplane")?, control: beside("spindle-control")?, spindle })
    }

    /// A command that becomes `program` and dies with us.
    fn child(&self, program: &Path) -> std::process::Command {
        let mut command = std::process::Command::new(&self.spindle);
        command.arg("child").arg(std::process::id().to_string()).arg("--").arg(program);
        command
    }
}

/// `spindle child`: asks for SIGKILL at the parent's death, then becomes the program. Returns only on failure.
pub fn become_child(parent: u32, program: &Path, arguments: &[String]) -> String {
    if let Err(e) = rustix::process::set_parent_process_death_signal(Some(Signal::KILL)) {
        return format!("no death signal: {e}");
    }
    // It may have died before we asked.
    if rustix::process::getppid().is_none_or(|p| p.as_raw_nonzero().get() as u32 != parent) {
        return "the supervisor has gone".into();
    }
    let error = std::process::Command::new(program).args(arguments).exec();
    format!("{} cannot be started: {error}", program.display())
}

/// Both processes of an incarnation.
struct Round {
    dataplane: Child,
    control: Child,
}

impl Round {
    fn start(
        settings: &Settings,
        programs: &Programs,
        generation: u64,
        started_us: u64,
        new_secret: bool,
    ) -> Result<Round, Refused> {
        let attachment =
            AttachmentFds::create(generation).map_err(|e| format!("no shared memory: {e}; free some"))?;
        let gateway = &settings.gateway;
        let mut dataplane = programs.child(&programs.dataplane);
        dataplane.args(["--inside", &gateway.inside, "--outside", &gateway.outside]);
        dataplane.args(["--polling", gateway.polling.name(), "--xdp-mode", gateway.xdp_mode.name()]);
        dataplane.args(["--nat-port", &gateway.natt_port.to_string()]);
        if let Some(core) = gateway.core {
            dataplane.args(["--core", &core.to_string()]);
        }
        attachment.give(Side::Dataplane, &mut dataplane);
        let dataplane = Command::from(dataplane).kill_on_drop(true).spawn()?;

        let mut control = programs.child(&programs.control);
        control.arg("--config").arg(&settings.file);
        control.args(["--dataplane-pid", &dataplane.id().unwrap_or(0).to_string()]);
        control.args(["--started-us", &started_us.to_string()]);
        if new_secret {
            control.arg("--new-secret");
        }
        attachment.give(Side::Control, &mut control);
        let control = Command::from(control).kill_on_drop(true).spawn()?;
        Ok(Round { dataplane, control })
    }

    /// Waits until one has died; its name and how.
    async fn first_death(&mut self) -> std::io::Result<(&'static str, ExitStatus)> {
        tokio::select! {
            status = self.dataplane.wait() => status.map(|s| ("spindle-dataplane", s)),
            status = self.control.wait() => status.map(|s| ("spindle-control", s)),
        }
    }

    /// Ends both at once.
    async fn kill(&mut self) {
        let _ = tokio::join!(self.dataplane.kill(), self.control.kill());
    }

    /// Lets control say goodbye to the peers, then ends the dataplane.
    async fn stop(&mut self) {
        for (child, patience) in
            [(&mut self.control, CONTROL_PATIENCE), (&mut self.dataplane, DATAPLANE_PATIENCE)]
        {
            if let Some(pid) = child.id().and_then(|id| Pid::from_raw(id as i32)) {
                let _ = kill_process(pid, Signal::TERM);
            }
            if tokio::time::timeout(patience, child.wait()).await.is_err() {
                let _ = child.kill().await;
            }
        }
    }
}

async fn supervise(
    settings: &Settings,
    programs: &Programs,
    mut started_us: u64,
    mut new_secret: bool,
) -> Result<u8, Refused> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut pause = FIRST_PAUSE;
    for generation in 1.. {
        let begun = Instant::now();
        let mut round = Round::start(settings, programs, generation, started_us, new_secret)?;
        new_secret = false;
        let (who, status) = tokio::select! {
            _ = terminate.recv() => { round.stop().await; return Ok(0) }
            _ = interrupt.recv() => { round.stop().await; return Ok(0) }
            death = round.first_death() => death?,
        };
        // A signal to the whole group reaches the children first, now and then.
        let stopped = tokio::select! {
            _ = terminate.recv() => true,
            _ = interrupt.recv() => true,
            () = tokio::time::sleep(Duration::from_millis(50)) => false,
        };
        if stopped {
            round.stop().await;
            return Ok(0);
        }
        round.kill().await;
        if status.code() == Some(2) {
            // It has said why.
            return Ok(2);
        }
        if begun.elapsed() >= GOOD_ROUND {
            pause = FIRST_PAUSE;
        }
        tracing::error!("{who} ended ({status}); a new incarnation begins in {} ms", pause.as_millis());
        tokio::select! {
            _ = terminate.recv() => return Ok(0),
            _ = interrupt.recv() => return Ok(0),
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
        started_us = wall_clock_us();
    }
    Ok(1)
}
