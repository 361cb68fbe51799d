//! `spindle up`: sets the guard, starts both processes, and starts again what dies.
//!
//! An incarnation begins with a fresh attachment, fresh memory for what control keeps, the dataplane, then control. If one
//! of them dies alone it is started again with the next attachment (new rings, the regions that outlive it), and the other
//! one, which goes on, is handed its side of that; control finds in its memory what it needs to go on. If one dies again
//! and again as soon as it was started, both are ended and the next incarnation begins, later each time. A process that
//! exits with code 2 has said what the operator must change: then nothing is tried again.
//!
//! The children cannot outlive us: each is started through `spindle child`, which asks the kernel for SIGKILL at our
//! death and then becomes the program. All are one process group, so that `kill -9 -PGID` ends everything at once.

use crate::config::{Inside, Settings};
use crate::daemon::disk::private_directory;
use crate::daemon::wall_clock_us;
use crate::guard::Guard;
use crate::interfaces;
use crate::machine;
use crate::programs::Program;
use crate::protocol::Response;
use crate::upgrade;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use spindle_ring::{AttachmentFds, Handover, KeptFd, Side};
use std::cell::RefCell;
use std::fs::File;
use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, Instant};
use tokio::net::UnixListener;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

/// How long a process that was killed may take to give its lock back.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);
/// Control's own patience for its peers, of whom it takes leave one after the other, and some more.
const CONTROL_PATIENCE: Duration = Duration::from_secs(25);
const DATAPLANE_PATIENCE: Duration = Duration::from_secs(1);
/// An incarnation that lasted this long was a good one.
const GOOD_INCARNATION: Duration = Duration::from_secs(30);
/// A process that dies sooner did not come up at all.
const SHORT_LIFE: Duration = Duration::from_millis(300);
/// So many short lives in a row, and a new incarnation begins.
const SHORT_LIVES: u32 = 5;
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
    let programs = RefCell::new(Programs::beside_us()?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let result = supervise(settings, &programs, started_us, new_secret).await;
        // Told to stop, not fallen: what a fallen one had routed into its devices must go nowhere else.
        if matches!(result, Ok(0))
            && let Err(error) = interfaces::remove(settings).await
        {
            tracing::warn!("virtual interfaces stay: {error}");
        }
        result
    })
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

/// `spindle` itself, and the programs of the two processes.
pub(crate) struct Programs {
    dataplane: Program,
    control: Program,
}

impl Programs {
    fn beside_us() -> Result<Programs, Refused> {
        let spindle = std::env::current_exe()?;
        let beside = |name: &str| {
            let path = spindle.with_file_name(name);
            let missing =
                || format!("{} is missing; install spindle's programs into one directory", path.display());
            if !path.is_file() {
                return Err(missing());
            }
            Program::beside_us(path.clone()).map_err(|e| format!("{} cannot be read: {e}", path.display()))
        };
        Ok(Programs { dataplane: beside("spindle-dataplane")?, control: beside("spindle-control")? })
    }

    /// That of one process.
    pub(crate) fn of(&self, side: Side) -> &Program {
        match side {
            Side::Control => &self.control,
            Side::Dataplane => &self.dataplane,
        }
    }

    /// Another one for one process; the one before.
    pub(crate) fn put(&mut self, side: Side, program: Program) -> Program {
        match side {
            Side::Control => std::mem::replace(&mut self.control, program),
            Side::Dataplane => std::mem::replace(&mut self.dataplane, program),
        }
    }

    /// A command that becomes the program of one process and dies with us. By ourselves, whatever became of our file.
    fn child(&self, side: Side) -> std::process::Command {
        let program = self.of(side).path();
        let mut command = std::process::Command::new("/proc/self/exe");
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

/// One of the two processes.
pub(crate) struct Process {
    pub(crate) child: Child,
    handover: Handover,
    started: Instant,
}

impl Process {
    fn spawn(mut command: std::process::Command) -> std::io::Result<Process> {
        let handover = Handover::to(&mut command)?;
        let child = Command::from(command).kill_on_drop(true).spawn()?;
        Ok(Process { child, handover, started: Instant::now() })
    }

    /// 0 once it has died.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id().unwrap_or(0)
    }

    /// Asks it to end, and ends it if it takes longer.
    pub(crate) async fn stop(&mut self, patience: Duration) {
        if let Some(pid) = self.child.id().and_then(|id| Pid::from_raw(id as i32)) {
            let _ = kill_process(pid, Signal::TERM);
        }
        if tokio::time::timeout(patience, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}

/// What both processes are started with.
struct Plan<'a> {
    settings: &'a Settings,
    programs: &'a RefCell<Programs>,
    /// When this incarnation began, microseconds since 1970.
    started_us: u64,
    new_secret: bool,
}

impl Plan<'_> {
    fn dataplane(&self, attachment: &AttachmentFds) -> std::io::Result<Process> {
        let gateway = &self.settings.gateway;
        let mut dataplane = self.programs.borrow().child(Side::Dataplane);
        if let Inside::Interface(inside) = &gateway.inside {
            dataplane.args(["--inside", inside]);
        }
        dataplane.args(["--outside", &gateway.outside]);
        for (key, _, vlan) in gateway.vlans() {
            let option = format!("--{}", key.replace('_', "-"));
            dataplane.args([option, format!("{}:{}", vlan.id, vlan.device)]);
        }
        for device in self.settings.devices() {
            dataplane.args(["--tun", &format!("{}:{}", device.number, device.name)]);
        }
        dataplane.args(["--polling", gateway.polling.name(), "--xdp-mode", gateway.xdp_mode.name()]);
        dataplane.args(["--ring-size", &gateway.ring_size.to_string()]);
        dataplane.arg("--run-dir").arg(&gateway.run_dir);
        dataplane.args(["--nat-port", &gateway.natt_port.to_string()]);
        if let Some(core) = gateway.core {
            dataplane.args(["--core", &core.to_string()]);
        }
        attachment.give(Side::Dataplane, &mut dataplane);
        Process::spawn(dataplane)
    }

    fn control(
        &self,
        attachment: &AttachmentFds,
        kept: Option<&KeptFd>,
        dataplane: u32,
    ) -> std::io::Result<Process> {
        let mut control = self.programs.borrow().child(Side::Control);
        control.arg("--config").arg(&self.settings.file);
        control.args(["--dataplane-pid", &dataplane.to_string()]);
        control.args(["--started-us", &self.started_us.to_string()]);
        if self.new_secret {
            control.arg("--new-secret");
        }
        attachment.give(Side::Control, &mut control);
        if let Some(kept) = kept {
            kept.give(&mut control);
        }
        Process::spawn(control)
    }
}

/// One incarnation: both processes, and what they share.
pub(crate) struct Incarnation<'a> {
    plan: Plan<'a>,
    attachment: AttachmentFds,
    /// Control's alone; a cluster's member has none.
    kept: Option<KeptFd>,
    dataplane: Process,
    control: Process,
    /// In a row.
    short_lives: u32,
}

/// A process has died.
struct Death {
    who: Side,
    status: ExitStatus,
    /// How long it had lived.
    life: Duration,
}

impl Death {
    /// May it have been told to end, as we shall be?
    fn looks_told(&self) -> bool {
        let signals = [Signal::TERM, Signal::INT].map(|signal| Some(signal.as_raw()));
        self.status.success() || signals.contains(&self.status.signal())
    }
}

impl std::fmt::Display for Death {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match self.who {
            Side::Dataplane => "spindle-dataplane",
            Side::Control => "spindle-control",
        };
        write!(f, "{name} ended ({})", self.status)
    }
}

/// How an incarnation ends.
enum End {
    Told,
    /// The next one may begin.
    Died(Death),
    /// The operator has to change something first.
    Refused,
}

impl<'a> Incarnation<'a> {
    fn begin(plan: Plan<'a>, generation: u64) -> Result<Incarnation<'a>, Refused> {
        let attachment = AttachmentFds::for_workers(generation, plan.settings.gateway.workers)
            .map_err(|e| format!("no shared memory: {e}; free some"))?;
        // While nobody looks, a cluster's address may go to another member and come back: then our SAs are lost.
        let keeps = plan.settings.gateway.cluster.is_none();
        let kept = keeps.then(|| KeptFd::create(records(plan.settings))).transpose();
        let kept = kept.map_err(|e| format!("no shared memory: {e}; free some"))?;
        let dataplane = plan.dataplane(&attachment)?;
        let control = plan.control(&attachment, kept.as_ref(), dataplane.pid())?;
        Ok(Incarnation { plan, attachment, kept, dataplane, control, short_lives: 0 })
    }

    /// Starts again what dies alone, until it is told to end or cannot go on.
    async fn run(&mut self, told: &mut Told, upgrades: &UnixListener) -> std::io::Result<End> {
        loop {
            let death = tokio::select! {
                () = told.ended() => { self.stop().await; return Ok(End::Told) }
                death = self.first_death() => death?,
                asked = upgrade::asked(upgrades) => {
                    if let Some((from, caller)) = asked {
                        let response = self.upgrade(from.as_deref()).await;
                        match &response {
                            Response::Error(why) => tracing::error!("no upgrade: {why}"),
                            done => tracing::info!("upgraded: {done:?}"),
                        }
                        upgrade::answer(caller, &response).await;
                    }
                    continue;
                }
            };
            // A signal to the whole group reaches the children first, now and then.
            if death.looks_told() && told.within(Duration::from_millis(50)).await {
                self.stop().await;
                return Ok(End::Told);
            }
            if death.status.code() == Some(2) {
                // It has said why.
                self.kill().await;
                return Ok(End::Refused);
            }
            self.short_lives = if death.life < SHORT_LIFE { self.short_lives + 1 } else { 0 };
            let may_be_alone = death.who == Side::Dataplane || self.kept.is_some();
            if !may_be_alone || self.short_lives > SHORT_LIVES {
                self.kill().await;
                return Ok(End::Died(death));
            }
            let pause = FIRST_PAUSE * self.short_lives;
            tracing::error!("{death}; it is started again in {} ms", pause.as_millis());
            if told.within(pause).await {
                self.stop().await;
                return Ok(End::Told);
            }
            self.start_again(death.who)?;
        }
    }

    /// Starts one process in the place of one that has died.
    pub(crate) fn start_again(&mut self, side: Side) -> std::io::Result<()> {
        match side {
            Side::Dataplane => self.start_dataplane_again(),
            Side::Control => self.start_control_again(),
        }
    }

    pub(crate) fn process(&self, side: Side) -> &Process {
        match side {
            Side::Dataplane => &self.dataplane,
            Side::Control => &self.control,
        }
    }

    pub(crate) fn process_mut(&mut self, side: Side) -> &mut Process {
        match side {
            Side::Dataplane => &mut self.dataplane,
            Side::Control => &mut self.control,
        }
    }

    /// May control die alone?
    pub(crate) fn keeps(&self) -> bool {
        self.kept.is_some()
    }

    pub(crate) fn programs(&self) -> &'a RefCell<Programs> {
        self.plan.programs
    }

    pub(crate) fn run_dir(&self) -> &'a Path {
        &self.plan.settings.gateway.run_dir
    }

    /// Waits until one has died.
    async fn first_death(&mut self) -> std::io::Result<Death> {
        let (who, status, started) = tokio::select! {
            status = self.dataplane.child.wait() => (Side::Dataplane, status, self.dataplane.started),
            status = self.control.child.wait() => (Side::Control, status, self.control.started),
        };
        Ok(Death { who, status: status?, life: started.elapsed() })
    }

    fn start_dataplane_again(&mut self) -> std::io::Result<()> {
        self.attachment = self.attachment.successor(Side::Dataplane)?;
        self.dataplane = self.plan.dataplane(&self.attachment)?;
        let handed = self.control.handover.give(Side::Control, &self.attachment, self.dataplane.pid());
        if let Err(error) = handed {
            // It has died as well: that is noticed next.
            tracing::error!("spindle-control takes no new attachment: {error}");
        }
        Ok(())
    }

    fn start_control_again(&mut self) -> std::io::Result<()> {
        self.attachment = self.attachment.successor(Side::Control)?;
        // It was made, if it was to be.
        self.plan.new_secret = false;
        self.control = self.plan.control(&self.attachment, self.kept.as_ref(), self.dataplane.pid())?;
        let handed = self.dataplane.handover.give(Side::Dataplane, &self.attachment, self.control.pid());
        if let Err(error) = handed {
            // It has died as well: that is noticed next.
            tracing::error!("spindle-dataplane takes no new attachment: {error}");
        }
        Ok(())
    }

    /// Ends both at once.
    async fn kill(&mut self) {
        let _ = tokio::join!(self.dataplane.child.kill(), self.control.child.kill());
    }

    /// Lets control say goodbye to the peers, then ends the dataplane.
    async fn stop(&mut self) {
        self.control.stop(CONTROL_PATIENCE).await;
        self.dataplane.stop(DATAPLANE_PATIENCE).await;
    }
}

/// Records that control may keep: those of IKE SAs, with some for each connection's rekeys, removed SPIs and tombstones.
fn records(settings: &Settings) -> usize {
    (settings.connections.len() * 8).clamp(1 << 10, 1 << 20)
}

/// By whom we are told to end.
struct Told {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Told {
    async fn ended(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    async fn within(&mut self, patience: Duration) -> bool {
        tokio::time::timeout(patience, self.ended()).await.is_ok()
    }
}

async fn supervise(
    settings: &Settings,
    programs: &RefCell<Programs>,
    mut started_us: u64,
    mut new_secret: bool,
) -> Result<u8, Refused> {
    let mut told =
        Told { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? };
    let run_dir = &settings.gateway.run_dir;
    let upgrades = upgrade::listen(run_dir).map_err(|e| {
        settings
            .error("gateway.run_dir", format!("{} cannot be used: {e}; make it writable", run_dir.display()))
    })?;
    let mut pause = FIRST_PAUSE;
    let mut generation = 1;
    loop {
        let begun = Instant::now();
        let plan = Plan { settings, programs, started_us, new_secret };
        let mut incarnation = Incarnation::begin(plan, generation)?;
        let death = match incarnation.run(&mut told, &upgrades).await? {
            End::Told => return Ok(0),
            End::Refused => return Ok(2),
            End::Died(death) => death,
        };
        generation = incarnation.attachment.generation() + 1;
        new_secret = false;
        if begun.elapsed() >= GOOD_INCARNATION {
            pause = FIRST_PAUSE;
        }
        tracing::error!("{death}; a new incarnation begins in {} ms", pause.as_millis());
        if told.within(pause).await {
            return Ok(0);
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
        started_us = wall_clock_us();
    }
}
