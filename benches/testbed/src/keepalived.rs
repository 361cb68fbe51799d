//! keepalived, which moves the shared addresses of a pair to the one that lives, by VRRP (RFC 5798).
//!
//! One per gateway of the pair, in a mount namespace of its own with a tmpfs on /run, so that they don't see each other's
//! files. VRRP is spoken inside, where the members hear each other and the unprotected side hears nothing of it; inside and
//! outside address move together. Who has come back takes nothing (`nopreempt`): a member that lives keeps what it has.

use crate::cleanup::Guard;
use crate::error::{Context, Result};
use crate::topology::{Member, Side, Topology};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

/// A running keepalived; killed when dropped, without a word to the other one.
#[derive(Debug)]
pub struct Keepalived {
    process: Child,
    _guard: Guard,
}

impl Keepalived {
    /// Between two advertisements of the active one.
    pub const INTERVAL: Duration = Duration::from_millis(100);
    /// After so long without one the other takes over, at most (RFC 5798 section 6.1: three intervals and a skew).
    pub const DETECTION: Duration = Duration::from_millis(400);

    /// Starts it beside one of a pair, with its files in `directory`.
    pub fn start(topology: &Topology, member: Member, directory: &Path) -> Result<Keepalived> {
        let file = directory.join("keepalived.conf");
        std::fs::write(&file, configuration(topology, member))
            .context(|| format!("writing {}", file.display()))?;
        let log = directory.join("keepalived.log");
        let what = || "starting keepalived (`scripts/install-packages test` installs it)".to_owned();
        let log = std::fs::File::options().create(true).append(true).open(log).context(what)?;
        let mut command = topology.member(member).command("unshare");
        command.args(["-m", "sh", "-c", "mount -t tmpfs tmpfs /run && exec keepalived \"$@\"", "sh"]);
        command.args(["--dont-fork", "--log-console", "--vrrp", "--use-file"]).arg(&file);
        command.stdin(Stdio::null()).stdout(log.try_clone().context(what)?).stderr(log);
        let process = command.spawn().context(what)?;
        let guard = Guard::process_group(process.id() as i32);
        Ok(Keepalived { process, _guard: guard })
    }
}

impl Drop for Keepalived {
    fn drop(&mut self) {
        let _ = killpg(Pid::from_raw(self.process.id() as i32), Signal::SIGKILL);
        let _ = self.process.wait();
    }
}

fn configuration(topology: &Topology, member: Member) -> String {
    let (addresses, side) = (&topology.addresses, Side::B);
    let (inside, outside) = (side.inside_interface(), side.outside_interface());
    let priority = match member {
        Member::First => 200,
        Member::Second => 100,
    };
    format!(
        "global_defs {{
  router_id {member:?}
  vrrp_version 3
}}
vrrp_instance pair {{
  state BACKUP
  nopreempt
  interface {inside}
  virtual_router_id 51
  priority {priority}
  advert_int {interval}
  virtual_ipaddress {{
    {inside_address}/32 dev {inside}
  }}
  virtual_ipaddress_excluded {{
    {outside_address}/32 dev {outside}
  }}
  track_interface {{
    {outside}
  }}
}}
",
        interval = Keepalived::INTERVAL.as_secs_f64(),
        inside_address = addresses.gateway_inside(side),
        outside_address = addresses.gateway_outside(side),
    )
}
