//! strongSwan's charon with userspace ESP (kernel-libipsec) as a peer that no one here wrote.
//!
//! One charon per network namespace, in a mount namespace of its own with a tmpfs on /run, so that several run
//! side by side. It is configured and asked through swanctl over a vici socket in the test's folder.
//! kernel-libipsec knows only ESP in UDP and has no ESN.

use crate::Method;
use crate::gateway::{Retransmit, Settings};
use crate::topology::{Addresses, Side};
use anyhow::{Context, Result, bail};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How two gateways of strongSwan are configured to lose and find each other. All else is charon's default.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, clap::ValueEnum)]
pub enum Strongswan {
    /// Its defaults: no liveness check (`dpd_delay` is 0).
    #[value(name = "strongswan-defaults")]
    Defaults,
    /// `dpd_delay = 30s`, and the child is brought up again when the check was given up (`dpd_action = restart`).
    #[value(name = "strongswan-dpd-30s")]
    Dpd30s,
    /// The same with `dpd_delay = 1s` and retransmissions as impatient as liveness is in this testbed.
    #[value(name = "strongswan-fastest")]
    Fastest,
    /// Its defaults, and `start_action = start` on the side that is restarted: it initiates.
    #[value(name = "strongswan-start")]
    Start,
}

impl fmt::Display for Strongswan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Strongswan::Defaults => "strongswan-defaults",
            Strongswan::Dpd30s => "strongswan-dpd-30s",
            Strongswan::Fastest => "strongswan-fastest",
            Strongswan::Start => "strongswan-start",
        })
    }
}

impl Strongswan {
    /// All of them.
    pub const ALL: [Strongswan; 4] =
        [Strongswan::Defaults, Strongswan::Dpd30s, Strongswan::Fastest, Strongswan::Start];

    /// Does the restarted gateway initiate?
    pub fn restarted_side_initiates(self) -> bool {
        self == Strongswan::Start
    }

    /// One side of the pair; B is the one that is restarted.
    pub(crate) fn peer(self, side: Side, usual: Peer) -> Peer {
        match self {
            Strongswan::Defaults => usual,
            Strongswan::Dpd30s => Peer { dpd_delay: 30, restart: true, ..usual },
            Strongswan::Fastest => usual.impatient(),
            Strongswan::Start => Peer { start: side == Side::B, ..usual },
        }
    }
}

/// One end of the connection as charon is told.
#[derive(Clone, Debug)]
pub struct Peer {
    /// charon's outer address.
    pub local: String,
    /// The other gateway's outer address.
    pub remote: String,
    /// charon's identity.
    pub local_id: String,
    /// The other gateway's identity.
    pub remote_id: String,
    /// The shared secret.
    pub psk: String,
    /// Behind charon: a prefix.
    pub local_ts: String,
    /// Behind the other gateway: a prefix.
    pub remote_ts: String,
    /// IKE proposal.
    pub proposal: String,
    /// ESP proposal.
    pub esp_proposal: String,
    /// `dpd_delay` in seconds; 0 is charon's default, off.
    pub dpd_delay: u32,
    /// When requests are sent again and given up; charon's default if `None`.
    pub retransmit: Option<Retransmit>,
    /// Whether the child is brought up again when a liveness check was given up; by default it is cleared.
    pub restart: bool,
    /// Whether the child is brought up as soon as it is loaded.
    pub start: bool,
    /// Whether ESP goes in UDP without a NAT too.
    pub encap: bool,
    /// Packets; charon's default if `None`.
    pub replay_window: Option<u32>,
}

impl Peer {
    /// charon in the place of this side's gateway, beside one with these settings; all else is charon's default.
    pub fn of(addresses: &Addresses, side: Side, settings: &Settings) -> Peer {
        let id = |side: Side| format!("{}.example", side.letter());
        Peer {
            local: addresses.outer(side).to_string(),
            remote: addresses.outer(side.other()).to_string(),
            local_id: id(side),
            remote_id: id(side.other()),
            psk: "a secret of the testbed alone".to_owned(),
            local_ts: addresses.protected(side),
            remote_ts: addresses.protected(side.other()),
            proposal: settings.proposal.clone(),
            esp_proposal: settings.esp_proposal.clone(),
            dpd_delay: 0,
            retransmit: None,
            restart: false,
            start: false,
            encap: true,
            replay_window: None,
        }
    }

    /// Its connection `ab` with the child `net`, as swanctl.conf.
    pub fn connection(&self) -> String {
        let Peer {
            local,
            remote,
            local_id,
            remote_id,
            psk,
            local_ts,
            remote_ts,
            proposal,
            esp_proposal,
            dpd_delay,
            restart,
            start,
            retransmit: _,
            encap,
            replay_window,
        } = self;
        let dpd_action = if *restart { "restart" } else { "clear" };
        let encap = if *encap { "yes" } else { "no" };
        let replay_window =
            replay_window.map_or_else(String::new, |window| format!("\n        replay_window = {window}"));
        let start_action = if *start { "start" } else { "none" };
        format!(
            "connections {{
  ab {{
    version = 2
    local_addrs = {local}
    remote_addrs = {remote}
    proposals = {proposal}
    encap = {encap}
    dpd_delay = {dpd_delay}s
    local {{
      auth = psk
      id = {local_id}
    }}
    remote {{
      auth = psk
      id = {remote_id}
    }}
    children {{
      net {{
        local_ts = {local_ts}
        remote_ts = {remote_ts}
        esp_proposals = {esp_proposal}
        dpd_action = {dpd_action}{replay_window}
        start_action = {start_action}
      }}
    }}
  }}
}}
secrets {{
  ike {{
    id-a = {local_id}
    id-b = {remote_id}
    secret = \"{psk}\"
  }}
}}
"
        )
    }

    /// The same, as impatient as liveness is here: probing each second a peer that is silent, and beginning anew then.
    pub(crate) fn impatient(self) -> Peer {
        Peer { dpd_delay: 1, retransmit: Some(Method::SHORT), restart: true, ..self }
    }
}

/// A running charon; ended when dropped.
#[derive(Debug)]
pub struct Charon {
    process: Child,
    directory: PathBuf,
}

impl Charon {
    /// Starts charon in the network namespace `netns`, with its files in `directory`, and loads the connection
    /// `ab` with the child `net`.
    ///
    /// # Errors
    /// If charon or swanctl isn't installed or does not answer within ten seconds.
    pub fn start(netns: &str, directory: &Path, peer: &Peer) -> Result<Charon> {
        std::fs::create_dir_all(directory)?;
        std::fs::write(
            directory.join("strongswan.conf"),
            settings(directory, "kernel-libipsec kernel-netlink", peer.retransmit),
        )?;
        std::fs::write(directory.join("swanctl.conf"), peer.connection())?;
        // Of a life before, which was killed.
        drop(std::fs::remove_file(directory.join("charon.vici")));
        let process = Command::new("ip")
            .args(["netns", "exec", netns, "unshare", "-m", "sh", "-c"])
            .arg("mount -t tmpfs tmpfs /run; exec charon-systemd")
            .env("STRONGSWAN_CONF", directory.join("strongswan.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("charon-systemd did not start")?;
        let charon = Charon { process, directory: directory.to_owned() };
        let deadline = Instant::now() + Duration::from_secs(10);
        while !directory.join("charon.vici").exists() {
            if Instant::now() > deadline {
                bail!("charon-systemd opened no vici socket within 10 s; its log:\n{}", charon.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let file = directory.join("swanctl.conf");
        charon.swanctl(&["--load-all", "--file", file.to_str().context("path")?])?;
        Ok(charon)
    }

    /// `swanctl ARGUMENTS`; its output.
    ///
    /// # Errors
    /// If swanctl fails; with its output and charon's log.
    pub fn swanctl(&self, arguments: &[&str]) -> Result<String> {
        let socket = format!("unix://{}/charon.vici", self.directory.display());
        let output = Command::new("swanctl").args(arguments).args(["--uri", &socket]).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!("swanctl {arguments:?} failed:\n{text}\ncharon's log:\n{}", self.log());
        }
        Ok(text)
    }

    /// Brings up the child `net`.
    ///
    /// # Errors
    /// If it can't be established within ten seconds.
    pub fn initiate(&self) -> Result<()> {
        self.swanctl(&["--initiate", "--child", "net", "--timeout", "10"]).map(drop)
    }

    /// Rekeys the IKE SA, or the child `net`.
    ///
    /// # Errors
    /// If charon refuses.
    pub fn rekey(&self, ike: bool) -> Result<()> {
        let what = if ike { ["--rekey", "--ike", "ab"] } else { ["--rekey", "--child", "net"] };
        self.swanctl(&what).map(drop)
    }

    /// Ends the IKE SA with a Delete.
    ///
    /// # Errors
    /// If charon refuses.
    pub fn terminate(&self) -> Result<()> {
        self.swanctl(&["--terminate", "--ike", "ab", "--timeout", "10"]).map(drop)
    }

    /// `swanctl --list-sas`.
    ///
    /// # Errors
    /// If charon does not answer.
    pub fn list_sas(&self) -> Result<String> {
        self.swanctl(&["--list-sas"])
    }

    /// Its established IKE SAs, by both SPIs in hexadecimal and with the number of installed Child SAs.
    ///
    /// # Errors
    /// If charon does not answer.
    pub fn ike_sas(&self) -> Result<Vec<(String, usize)>> {
        let mut sas: Vec<(String, usize)> = Vec::new();
        let mut established = false;
        for line in self.list_sas()?.lines() {
            // A line that is not indented begins an IKE SA: `ab: #1, ESTABLISHED, IKEv2, SPI_i* SPI_r`.
            if !line.starts_with(' ') {
                established = line.contains("ESTABLISHED");
                let spi = |role: &str| {
                    let words = line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
                    words.filter_map(|word| word.strip_suffix(role)).next().unwrap_or_default().to_owned()
                };
                if established {
                    sas.push((spi("_i") + &spi("_r"), 0));
                }
            } else if established
                && line.contains("INSTALLED")
                && let Some(sa) = sas.last_mut()
            {
                sa.1 += 1;
            }
        }
        Ok(sas)
    }

    /// charon's log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }
}

impl Drop for Charon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// strongswan.conf, for files in `directory` and ESP by these plugins.
pub(crate) fn settings(directory: &Path, esp: &str, retransmit: Option<Retransmit>) -> String {
    let d = directory.display();
    let retransmit = retransmit.map_or_else(String::new, |Retransmit { timeout, base, tries }| {
        let timeout = timeout.as_secs_f64();
        format!("retransmit_timeout = {timeout}\n  retransmit_base = {base}\n  retransmit_tries = {tries}")
    });
    format!(
        "charon-systemd {{
  load = random nonce openssl pem pkcs1 pkcs8 x509 revocation constraints pubkey aes sha1 sha2 hmac kdf curve25519 gcm chapoly {esp} socket-default vici updown
  {retransmit}
  plugins {{
    vici {{
      socket = unix://{d}/charon.vici
    }}
  }}
  filelog {{
    file {{
      path = {d}/log
      flush_line = yes
      default = 1
      ike = 2
    }}
  }}
  journal {{
    default = -1
  }}
}}
"
    )
}
